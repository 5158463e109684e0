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
