//! Images that outgrow their refcount table and the cache: clusters of 512 bytes with refcounts of 64 bits, of which
//! a table of one cluster counts 2 MiB.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Recorder, Rng};
use block::{BlockDevice, MemStorage, ZeroMode};
use qcow2::{Header, Image, OpenOptions};

const OPTIONS: &str = "cluster_size=512,refcount_bits=64";
const DISK: u64 = 6 << 20;

/// A new image whose refcount table is as small as can be. QEMU makes it so, and grows it as we do.
fn image() -> MemStorage {
    let storage = common::create(OPTIONS, DISK, None);
    let header = Header::read(&storage).expect("QEMU's header");
    assert!(
        header.refcount_table_clusters < 3,
        "the table is large from the start: nothing would be tested"
    );
    storage
}

#[test]
fn random_writes_over_a_map_larger_than_the_cache() {
    let storage = Arc::new(image());
    let image = common::open(storage.clone(), None);
    let mut model = vec![0; DISK as usize];
    let mut rng = Rng::new(7);
    for step in 0..6000u64 {
        let at = rng.below(DISK - 5000);
        let len = rng.below(5000);
        let range = at as usize..(at + len) as usize;
        match rng.below(12) {
            0 => {
                image.zero_at(at, len, ZeroMode::Unmap).expect("zero");
                model[range].fill(0);
            }
            1 if step % 20 == 0 => image.flush().expect("flush"),
            _ => {
                let byte = rng.below(256) as u8;
                image.write_at(&vec![byte; len as usize], at).expect("write");
                model[range].fill(byte);
            }
        }
    }
    image.close().expect("close");
    let clusters = Header::read(&*storage).expect("header").refcount_table_clusters;
    assert!(
        clusters >= 3,
        "the refcount table has not grown: {clusters} clusters"
    );
    let file = storage.to_vec();
    let (code, words) = common::qemu_check(&file);
    assert_eq!(code, 0, "{words}");
    assert!(
        common::qemu_read(&file, None) == model,
        "QEMU reads something else"
    );
}

/// Power cuts while the table moves: what was flushed stays, and nothing is worse than leaked.
#[test]
fn power_cuts_while_the_refcount_table_moves() {
    let chunk = 64 << 10;
    let recorder = Recorder::new();
    let storage = recorder.storage(image());
    let image = common::open(storage, None);
    // Chunks that are on the disk for good from this point of the log on.
    let mut flushed = Vec::new();
    for number in 0..DISK / chunk {
        image
            .write_at(&vec![number as u8 + 1; chunk as usize], number * chunk)
            .expect("write");
        image.flush().expect("flush");
        flushed.push(recorder.position());
    }
    image.close().expect("close");
    let states = recorder.crash_states();
    let mut moved = false;
    for point in states.points() {
        let disk = states.at(point, point as u64 % 7).remove(0);
        let header = Header::read(&disk).unwrap_or_else(|error| panic!("point {point}: {error}"));
        moved |= header.refcount_table_clusters > 2;
        let report = qcow2::check(&disk, &qcow2::CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.unwrap_or_else(|error| panic!("point {point}: {error}"));
        assert!(
            report.corruptions == 0 && report.check_errors == 0,
            "point {point}: {report:?}"
        );
        let image = Image::open(Arc::new(disk), OpenOptions::default()).expect("it opens");
        let kept = flushed.iter().take_while(|position| **position <= point).count();
        if let Some(last) = kept.checked_sub(1) {
            let mut data = vec![0; chunk as usize];
            image.read_at(&mut data, last as u64 * chunk).expect("read");
            assert!(
                data.iter().all(|byte| usize::from(*byte) == kept),
                "point {point}: chunk {last} is lost"
            );
        }
    }
    assert!(moved, "the table has not moved");
}
