//! What QEMU writes, we read, map and check the same.

use block::Access;
use block::test_utils::Rng;
use tests::{Lab, Request, Shape, assert_reads_as, seeded, varied_size};

/// A file of a chain.
struct Layer {
    name: String,
    format: &'static str,
}

impl Layer {
    /// A layer over `below`, made and written to by QEMU.
    fn made_by_qemu(lab: &Lab, number: u64, below: Option<&Self>, size: u64, rng: &mut Rng) -> Self {
        let shape = Shape::random(rng);
        let name = format!("layer{number}");
        let requests = |rng: &mut Rng| -> Vec<Request> {
            let most = if shape.cluster_bits > 18 { 6 } else { 14 };
            let count = if size == 0 { 0 } else { rng.below(most) };
            (0..count).map(|_| Request::random(shape, size, rng)).collect()
        };
        if below.is_none() && rng.below(3) == 0 {
            lab.qemu_img(&["create", "-q", "-f", "raw", &name, &size.to_string()]);
            let plain: Vec<Request> = requests(rng)
                .into_iter()
                .filter(|request| !matches!(request, Request::Compressed { .. }))
                .collect();
            lab.qemu_io(&name, "raw", &plain);
            return Self { name, format: "raw" };
        }
        let backing = below.map(|below| (below.name.as_str(), below.format));
        lab.qemu_create(&name, shape, size, backing);
        lab.qemu_io(&name, "qcow2", &requests(rng));
        if rng.below(3) == 0 {
            compress(lab, &name, shape, backing);
            lab.qemu_io(&name, "qcow2", &requests(rng));
        }
        Self {
            name,
            format: "qcow2",
        }
    }
}

/// Makes an image anew from itself, compressed.
fn compress(lab: &Lab, name: &str, shape: Shape, backing: Option<(&str, &str)>) {
    let options = shape.qemu_options();
    let mut args = vec!["convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", &options];
    if let Some((backing, format)) = backing {
        args.extend(["-B", backing, "-F", format]);
    }
    args.extend([name, "compressed"]);
    lab.qemu_img(&args);
    std::fs::rename(lab.path("compressed"), lab.path(name)).expect("a new name");
}

fn judge_chain(depth: u64, rng: &mut Rng) {
    let lab = Lab::new();
    let size = Shape::random(rng).random_size(rng);
    let mut layers: Vec<Layer> = Vec::new();
    for number in 0..depth {
        let size = varied_size(size, rng);
        let layer = Layer::made_by_qemu(&lab, number, layers.last(), size, rng);
        layers.push(layer);
    }
    for layer in layers.iter().filter(|layer| layer.format == "qcow2") {
        lab.assert_clean(&layer.name);
    }
    let active = layers.last().expect("a layer");
    lab.assert_same_map(&active.name, active.format);
    let chain = lab.open(&active.name, active.format, Access::READ);
    assert_eq!(chain.layers().len() as u64, depth);
    let expected = lab.qemu_reads(&active.name, active.format, &[]);
    assert_reads_as(&**chain.active(), &*expected, rng);
}

#[test]
fn one_image() {
    seeded(44, |rng| judge_chain(1, rng));
}

#[test]
fn two_layers() {
    seeded(26, |rng| judge_chain(2, rng));
}

#[test]
fn three_layers() {
    seeded(14, |rng| judge_chain(3, rng));
}

#[test]
fn five_layers() {
    seeded(10, |rng| judge_chain(5, rng));
}
