//! What a guest does to a disk, drawn at random, and the power that goes at any moment of it: images hold what the model of a disk says.

use std::sync::Arc;

use block::test_utils::{DiskModel, DiskOp, Recorder, Rng, seeds};
use block::{Access, BlockDevice, MemStorage, Storage};
use qcow2::{CreateOptions, Image, OpenOptions};

const SIZE: u64 = 48 << 10;

fn open(storage: Arc<dyn Storage>) -> Image {
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    Image::open(storage, options).unwrap()
}

#[test]
fn images_hold_what_was_drawn_and_after_a_power_cut_what_was_flushed() {
    for seed in seeds(60) {
        let mut rng = Rng::new(seed);
        let empty = MemStorage::new();
        let options = CreateOptions {
            size: SIZE,
            cluster_bits: [9, 12, 14, 16][rng.below(4) as usize],
            lazy_refcounts: rng.coin(),
            ..CreateOptions::default()
        };
        qcow2::create(&empty, &options).unwrap();
        let recorder = Recorder::new();
        let image = open(recorder.storage(empty));
        let mut model = DiskModel::new(&image).unwrap();
        let mut moments = vec![(recorder.position(), model.clone())];
        for _ in 0..12 {
            let operation = DiskOp::draw(SIZE, &mut |limit| rng.below(limit));
            model.apply(&image, &operation).unwrap();
            moments.push((recorder.position(), model.clone()));
        }
        model.verify(&image).unwrap();
        drop(image);
        let states = recorder.crash_states();
        for (position, model) in moments {
            for cut in seeds(3) {
                let left = states.at(position, seed << 8 | cut).remove(0);
                model.verify_after_power_cut(&open(Arc::new(left))).unwrap();
            }
        }
    }
}

/// An oracle that nothing surprises would not be one.
#[test]
#[should_panic(expected = "should be")]
fn a_lost_byte_is_noticed() {
    let storage = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: SIZE,
        ..CreateOptions::default()
    };
    qcow2::create(&*storage, &options).unwrap();
    let image = open(storage);
    let mut model = DiskModel::new(&image).unwrap();
    let write = DiskOp::Write {
        range: 5..5000,
        byte: 7,
    };
    model.apply(&image, &write).unwrap();
    model.apply(&image, &DiskOp::Flush).unwrap();
    image.write_at(&[8], 4000).unwrap();
    model.verify_after_power_cut(&image).unwrap();
}
