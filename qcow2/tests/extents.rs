//! Runs of the disk: how much is looked at to find one.

mod common;

use std::sync::Arc;

use block::{BlockDevice, Extent, ExtentState, Overlay};
use qcow2::Image;

const MIB: u64 = 1 << 20;

/// All runs of the image, none of its backing's.
fn runs(image: &Image) -> Vec<Extent> {
    let (mut at, mut runs) = (0, Vec::new());
    while at < image.size() {
        let run = image.own_extent_at(at, u64::MAX).unwrap();
        assert_eq!(run.offset, at);
        at = run.end();
        runs.push(run);
    }
    assert_eq!(at, image.size());
    runs
}

/// Over a backing file in small pieces, each piece asks for the run above it anew.
#[test]
fn finding_a_run_looks_at_a_bounded_part_of_the_tables() {
    let storage = Arc::new(common::create("cluster_size=512", 2048 * MIB, None));
    let image = common::open(storage, None);
    let table = image.geometry().l2_coverage();
    image.write_at(&[1; 512], 1024 * MIB).unwrap();
    for run in runs(&image) {
        let data = 1024 * MIB..1024 * MIB + 512;
        assert_eq!(run.state == ExtentState::Data, data.contains(&run.offset));
        assert!(run.len <= 4096 * table, "{run:?}");
    }

    let storage = Arc::new(common::create("cluster_size=2M", 2_097_152 * MIB, None));
    let image = common::open(storage, None);
    let slice = (2 * MIB) << image.geometry().slice_bits();
    assert!(slice < image.geometry().l2_coverage());
    image.write_at(&[1; 512], 0).unwrap();
    let runs = runs(&image);
    assert_eq!(runs[0].state, ExtentState::Data);
    assert!(runs[1..].iter().all(|run| run.state == ExtentState::Hole));
    let in_table = runs
        .iter()
        .take_while(|run| run.end() <= image.geometry().l2_coverage());
    assert!(in_table.clone().count() > 1);
    assert!(in_table.clone().all(|run| run.len <= slice), "{runs:?}");
}
