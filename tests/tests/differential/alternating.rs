//! QEMU and we write to one image in turn, each going on where the other left off.

use block::Access;
use block::test_utils::Rng;
use tests::{Fill, Lab, Model, Request, Shape, seeded};

/// Requests that both serve alike: QEMU does not compress over what is there.
fn requests(shape: Shape, size: u64, compressed: bool, rng: &mut Rng) -> Vec<Request> {
    let count = if shape.cluster_bits > 18 { 2 } else { 5 };
    let random = (0..count).map(|_| Request::random(shape, size, rng));
    random
        .filter(|request| compressed || !matches!(request, Request::Compressed { .. }))
        .collect()
}

fn alternate(over_backing: bool, rng: &mut Rng) {
    let lab = Lab::new();
    let shape = Shape::random(rng);
    let size = shape.random_size(rng).max(512);
    let mut model = Model::new(size);
    if over_backing {
        lab.qemu_create("base", shape, size, None);
        let fill = Fill::Byte(0xba);
        let len = size.min(1 << 20);
        let request = Request::Write { offset: 0, len, fill };
        lab.qemu_io("base", "qcow2", &[request]);
        request.model(&model, shape, false);
        model = model.overlay(size);
    }
    lab.qemu_create("image", shape, size, over_backing.then_some(("base", "qcow2")));
    for round in 0..8 {
        let turn = requests(shape, size, false, rng);
        lab.qemu_io("image", "qcow2", &turn);
        for request in turn {
            request.model(&model, shape, over_backing);
        }

        let turn = requests(shape, size, true, rng);
        let chain = lab.open("image", "qcow2", Access::WRITE);
        for request in turn {
            request.apply(&**chain.active()).expect("a request");
            request.model(&model, shape, over_backing);
        }
        chain.flush().expect("flush");
        drop(chain);
        if round % 3 == 1 {
            lab.assert_clean("image");
            lab.assert_holds("image", "qcow2", &model, rng);
        }
    }
    lab.assert_clean("image");
    lab.assert_holds("image", "qcow2", &model, rng);
    lab.assert_same_map("image", "qcow2");
}

#[test]
fn one_image() {
    seeded(10, |rng| alternate(false, rng));
}

#[test]
fn an_overlay() {
    seeded(10, |rng| alternate(true, rng));
}
