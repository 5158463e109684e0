//! What we write, QEMU reads and checks clean.

use block::test_utils::Rng;
use block::{Access, BlockDevice, Resize};
use tests::{Fill, Lab, Model, Request, Shape, seeded, varied_size};

/// Writes to the top of a chain at random, changing its size now and then.
fn write(lab: &Lab, name: &str, shape: Shape, over_backing: bool, model: &Model, rng: &mut Rng) {
    let chain = lab.open(name, "qcow2", Access::WRITE);
    let device: &dyn BlockDevice = &**chain.active();
    let count = if shape.cluster_bits > 18 { 8 } else { 24 };
    for _ in 0..count {
        match rng.below(12) {
            0 | 1 => {
                let size = varied_size(model.size(), rng);
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                device.resize(size, how).expect("resize");
                model.resize(size);
            }
            2 => device.flush().expect("flush"),
            _ if model.size() == 0 => {}
            _ => {
                let request = Request::random(shape, model.size(), rng);
                request
                    .apply(device)
                    .unwrap_or_else(|error| panic!("{request:?}: {error}"));
                request.model(model, shape, over_backing);
            }
        }
    }
    device.flush().expect("flush");
}

fn judge_chain(depth: u64, rng: &mut Rng) {
    let lab = Lab::new();
    let size = Shape::random(rng).random_size(rng);
    let mut below: Option<(String, &str, Model)> = None;
    for number in 0..depth {
        let (shape, size) = (Shape::random(rng), varied_size(size, rng));
        let name = format!("layer{number}");
        if below.is_none() && rng.below(4) == 0 {
            let model = Model::new(size);
            lab.create_raw(&name, size);
            let chain = lab.open(&name, "raw", Access::WRITE);
            for _ in 0..if size == 0 { 0 } else { 6 } {
                let fill = Fill::Noise;
                let offset = rng.below(size);
                let len = (1 + rng.below(100_000)).min(size - offset);
                let request = Request::Write { offset, len, fill };
                request.apply(&**chain.active()).expect("write");
                request.model(&model, shape, false);
            }
            below = Some((name, "raw", model));
            continue;
        }
        let backing = below.as_ref().map(|(name, format, _)| (name.as_str(), *format));
        lab.create(&name, shape, size, backing);
        let model = match &below {
            Some((_, _, model)) => model.overlay(size),
            None => Model::new(size),
        };
        write(&lab, &name, shape, below.is_some(), &model, rng);
        lab.assert_clean(&name);
        below = Some((name, "qcow2", model));
    }
    let (name, format, model) = below.expect("a layer");
    lab.assert_holds(&name, format, &model, rng);
    lab.assert_same_map(&name, format);
}

/// What a shrink cut off does not come back, whether it was in this image or below it.
#[test]
fn a_disk_that_shrank_and_grew_has_zeros_at_its_end() {
    for v2 in [false, true] {
        let shape = Shape {
            cluster_bits: 16,
            refcount_order: 4,
            v2,
            zstd: false,
            extended_l2: false,
            lazy: false,
        };
        let lab = Lab::new();
        let model = Model::new(1 << 20);
        let fill = |offset, len, byte| Request::Write {
            offset,
            len,
            fill: Fill::Byte(byte),
        };
        lab.create("base", shape, 1 << 20, None);
        let chain = lab.open("base", "qcow2", Access::WRITE);
        let request = fill(0, 1 << 20, 1);
        request.apply(&**chain.active()).expect("write");
        request.model(&model, shape, false);
        drop(chain);
        lab.create("image", shape, 1 << 20, Some(("base", "qcow2")));
        let chain = lab.open("image", "qcow2", Access::WRITE);
        let request = fill(300_000, 100_000, 2);
        request.apply(&**chain.active()).expect("write");
        request.model(&model, shape, true);
        for size in [350_208, 390_144, 20_480, 1 << 21] {
            let how = Resize {
                shrink: true,
                ..Resize::default()
            };
            chain.resize(size, how).expect("resize");
            model.resize(size);
        }
        drop(chain);
        lab.assert_clean("image");
        lab.assert_holds("image", "qcow2", &model, &mut Rng::new(1));
    }
}

#[test]
fn one_image() {
    seeded(70, |rng| judge_chain(1, rng));
}

#[test]
fn two_layers() {
    seeded(36, |rng| judge_chain(2, rng));
}

#[test]
fn three_layers() {
    seeded(18, |rng| judge_chain(3, rng));
}

#[test]
fn five_layers() {
    seeded(10, |rng| judge_chain(5, rng));
}
