//! Images with internal snapshots of QEMU's: what we write to the disk leaves them as they were.

use block::test_utils::Rng;
use block::{Access, BlockDevice, ErrorKind, Resize};
use tests::{Lab, Model, Request, Shape, assert_same_bytes, seeded, varied_size};

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
    seeded(20, keeps_snapshots);
}

fn keeps_snapshots_of_other_sizes(rng: &mut Rng) {
    let lab = Lab::new();
    let mut shape = Shape::random(rng);
    (shape.v2, shape.refcount_order) = (false, shape.refcount_order.max(3));
    let size = shape.random_size(rng).max(512);
    lab.qemu_create("image", shape, size, None);
    let model = Model::new(size);
    let mut taken = Vec::new();
    for number in 0..3 {
        write(&lab, shape, &model, rng);
        let name = format!("s{number}");
        lab.qemu_img(&["snapshot", "-c", &name, "image"]);
        taken.push((name, model.clone()));

        let chain = lab.open("image", "qcow2", Access::WRITE);
        let size = varied_size(model.size(), rng).max(512);
        let how = Resize {
            shrink: true,
            ..Resize::default()
        };
        chain.resize(size, how).expect("resize");
        model.resize(size);
        drop(chain);
        write(&lab, shape, &model, rng);
        lab.assert_clean("image");
        lab.assert_holds("image", "qcow2", &model, rng);
    }
    for (name, then) in &taken {
        lab.qemu_img(&["snapshot", "-a", name, "image"]);
        lab.assert_clean("image");
        lab.assert_holds("image", "qcow2", then, rng);
    }
}

#[test]
fn survive_a_change_of_the_disk_s_size() {
    seeded(12, keeps_snapshots_of_other_sizes);
}

/// As QEMU does.
#[test]
fn of_version_2_keep_the_disk_s_size() {
    let lab = Lab::new();
    lab.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "image", "1M"]);
    lab.qemu_img(&["snapshot", "-c", "s", "image"]);
    assert_ne!(
        lab.run("qemu-img", &["resize", "-f", "qcow2", "image", "2M"])
            .code,
        0
    );
    let before = lab.bytes("image");
    let chain = lab.open("image", "qcow2", Access::WRITE);
    let error = chain.resize(2 << 20, Resize::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    drop(chain);
    assert!(lab.bytes("image") == before, "the file has changed");
    lab.qemu_img(&["amend", "-f", "qcow2", "-o", "compat=1.1", "image"]);
    let chain = lab.open("image", "qcow2", Access::WRITE);
    chain.resize(2 << 20, Resize::default()).expect("resize");
}
