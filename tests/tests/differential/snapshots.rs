//! Images with internal snapshots of QEMU's: what we write to the disk leaves them as they were.

use block::test_utils::Rng;
use block::{Access, BlockDevice};
use tests::{Lab, Model, Request, Shape, assert_same_bytes, seeded};

fn write(lab: &Lab, shape: Shape, model: &Model, rng: &mut Rng) {
    let chain = lab.open("image", "qcow2", Access::WRITE);
    let device: &dyn BlockDevice = &**chain.active();
    for _ in 0..if shape.cluster_bits > 18 { 4 } else { 12 } {
        let request = Request::random(shape, model.size(), rng);
        request
            .apply(device)
            .unwrap_or_else(|error| panic!("{request:?}: {error}"));
        request.model(model, shape, false);
    }
    device.flush().expect("flush");
}

fn keeps_snapshots(rng: &mut Rng) {
    let lab = Lab::new();
    let mut shape = Shape::random(rng);
    // Each snapshot is another reference, and so are compressed clusters that share a host cluster.
    shape.refcount_order = shape.refcount_order.max(3);
    let size = shape.random_size(rng).max(512);
    lab.qemu_create("image", shape, size, None);
    let mut model = Model::new(size);
    let mut taken = Vec::new();
    for number in 0..3 {
        write(&lab, shape, &model, rng);
        let name = format!("s{number}");
        lab.qemu_img(&["snapshot", "-c", &name, "image"]);
        taken.push((name, model.clone()));
    }
    write(&lab, shape, &model, rng);
    lab.assert_clean("image");
    lab.assert_holds("image", "qcow2", &model, rng);
    for (name, then) in &taken {
        let selection = format!("snapshot.name={name}");
        let seen = lab.qemu_reads("image", "qcow2", &["-l", &selection]);
        assert_same_bytes(&*seen, then.bytes(), name);
    }

    // Back to one of them, without another, and on.
    let (name, then) = &taken[rng.below(3) as usize];
    lab.qemu_img(&["snapshot", "-a", name, "image"]);
    model = then.clone();
    lab.assert_holds("image", "qcow2", &model, rng);
    let (gone, _) = &taken[rng.below(3) as usize];
    lab.qemu_img(&["snapshot", "-d", gone, "image"]);
    write(&lab, shape, &model, rng);
    lab.assert_clean("image");
    lab.assert_holds("image", "qcow2", &model, rng);
    for (name, then) in taken.iter().filter(|(name, _)| name != gone) {
        let selection = format!("snapshot.name={name}");
        let seen = lab.qemu_reads("image", "qcow2", &["-l", &selection]);
        assert_same_bytes(&*seen, then.bytes(), name);
    }
}

#[test]
fn survive_what_is_written_to_the_disk() {
    seeded(14, keeps_snapshots);
}
