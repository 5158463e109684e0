//! Changes of size, where they are easy to get wrong.

mod common;

use std::sync::Arc;

use block::{BlockDevice, MemStorage, Preallocation, Resize, Storage};
use common::Bytes;

/// Where the header says how long the disk is.
const SIZE: u64 = 24;
const CLUSTER: usize = 4096;

fn read(image: &qcow2::Image) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size() as usize];
    image.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn finish(image: qcow2::Image, storage: &MemStorage) {
    image.close().expect("close");
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");
}

#[test]
fn growing_inside_a_cluster_keeps_what_it_holds() {
    for backing in [None, Some(3 * CLUSTER as u64)] {
        let storage = Arc::new(common::create("cluster_size=4096", 512, backing));
        let device = backing.map(|len| Arc::new(Bytes::pattern(len, 1)) as Arc<dyn BlockDevice>);
        let image = common::open(storage.clone(), device.as_ref());
        image.write_at(&[7; 512], 0).expect("write");
        for sectors in [2, 3, 8] {
            image.resize(sectors * 512, Resize::default()).expect("grow");
            let disk = read(&image);
            assert!(disk[..512] == [7; 512], "{sectors} sectors: the data is gone");
            assert!(
                disk[512..].iter().all(|byte| *byte == 0),
                "{sectors} sectors: growth is not zero"
            );
        }
        finish(image, &storage);
    }
}

/// A disk made shorter by a tool that left its clusters mapped: growing it again must not bring the old data back.
#[test]
fn clusters_left_mapped_past_the_end_stay_hidden() {
    for preallocation in [Preallocation::Off, Preallocation::Metadata] {
        let storage = Arc::new(common::create("cluster_size=4096", 64 * CLUSTER as u64, None));
        let image = common::open(storage.clone(), None);
        // Not the first cluster past the new end, so that looking at that one alone is not enough.
        image.write_at(&[7; 2 * CLUSTER], 0).expect("write");
        image
            .write_at(&[9; 3 * CLUSTER], 5 * CLUSTER as u64)
            .expect("write");
        image.close().expect("close");
        storage
            .write_all_at(&(2 * CLUSTER as u64).to_be_bytes(), SIZE)
            .expect("poke");

        let image = common::open(storage.clone(), None);
        let how = Resize {
            preallocation,
            ..Resize::default()
        };
        image.resize(64 * CLUSTER as u64, how).expect("grow");
        let disk = read(&image);
        assert!(
            disk[..2 * CLUSTER].iter().all(|byte| *byte == 7),
            "the data is gone"
        );
        assert!(
            disk[2 * CLUSTER..].iter().all(|byte| *byte == 0),
            "old data came back"
        );
        finish(image, &storage);
    }
}

/// Refcount blocks of clusters that are gone count nothing: their room goes too.
#[test]
fn refcount_blocks_that_count_nothing_are_given_back() {
    let storage = Arc::new(common::create("cluster_size=512,refcount_bits=64", 3 << 20, None));
    let image = common::open(storage.clone(), None);
    // Out of order, so that blocks are counted by others.
    for at in [2, 0, 1] {
        image.write_at(&vec![7; 1 << 20], at << 20).expect("write");
    }
    image.flush().expect("flush");
    let before = refcount_blocks(&storage);
    let how = Resize {
        shrink: true,
        ..Resize::default()
    };
    image.resize(1 << 20, how).expect("shrink");
    assert!(read(&image).iter().all(|byte| *byte == 7), "the data is gone");
    let after = refcount_blocks(&storage);
    assert!(after.len() < before.len(), "{} of {}", after.len(), before.len());
    let bytes = storage.to_vec();
    for block in after {
        let counts = bytes.get(block as usize..block as usize + 512).expect("a block");
        assert!(counts.iter().any(|byte| *byte != 0), "{block:#x} counts nothing");
    }
    // They come back where they are needed.
    image.resize(3 << 20, Resize::default()).expect("grow");
    image.write_at(&vec![8; 2 << 20], 1 << 20).expect("write");
    finish(image, &storage);
}

/// The offsets in the refcount table.
fn refcount_blocks(storage: &MemStorage) -> Vec<u64> {
    let header = qcow2::Header::read(storage).expect("header");
    let clusters = u64::from(header.refcount_table_clusters);
    let mut table = vec![0; (clusters * header.geometry.cluster_size()) as usize];
    storage
        .read_exact_at(&mut table, header.refcount_table_offset.0)
        .expect("read");
    let entries = table.as_chunks::<8>().0.iter();
    entries
        .map(|entry| u64::from_be_bytes(*entry))
        .filter(|entry| *entry != 0)
        .collect()
}
