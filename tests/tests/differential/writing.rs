//! What we write, QEMU reads and checks clean.

use block::test_utils::Rng;
use block::{Access, BlockDevice, Resize};
use tests::{Lab, Model, Request, Shape, seeded, varied_size};

/// Writes to the top of a chain at random, changing its size now and then.
fn write(lab: &Lab, name: &str, shape: Shape, over_backing: bool, model: &Model, rng: &mut Rng) {
    let chain = lab.open(name, "qcow2", Access::WRITE);
    let device: &dyn BlockDevice = &**chain.active();
    let count = if shape.cluster_bits > 18 { 8 } else { 24 };
    for _ in 0..count {
        match rng.below(12) {
            0 => {
                let size = varied_size(model.size(), rng);
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                device.resize(size, how).expect("resize");
                model.resize(size);
            }
            1 => device.flush().expect("flush"),
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
                let fill = tests::Fill::Noise;
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

#[test]
fn one_image() {
    seeded(30, |rng| judge_chain(1, rng));
}

#[test]
fn two_layers() {
    seeded(16, |rng| judge_chain(2, rng));
}

#[test]
fn three_layers() {
    seeded(8, |rng| judge_chain(3, rng));
}

#[test]
fn five_layers() {
    seeded(6, |rng| judge_chain(5, rng));
}
