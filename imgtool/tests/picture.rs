//! Pictures: `imgtool map --svg` and `--bar`, and the chain that `imgtool info --backing-chain` draws.

use std::collections::BTreeMap;

use crate::common::Lab;
use serde_json::Value;

/// Images of all kinds, one of them a chain.
fn images(lab: &Lab) -> Vec<&'static str> {
    lab.raw("raw", 3 << 20, 1);
    lab.qemu_img("create -q -f qcow2 empty 64M");
    lab.qemu_img("convert -c -O qcow2 raw base");
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata prealloc 20M");
    lab.qemu_io("qcow2", "prealloc", &["write -z 1M 2M", "write -P 1 5M 64k"]);
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 middle 4M");
    lab.qemu_io("qcow2", "middle", &["write -P 9 192k 100k", "write -z 1M 128k"]);
    lab.qemu_img("create -q -f qcow2 -o cluster_size=4k -b middle -F qcow2 top 5M");
    lab.qemu_io("qcow2", "top", &["write -P 8 4095k 5k", "write -P 3 0 512"]);
    vec!["raw", "empty", "base", "prealloc", "middle", "top"]
}

fn map(lab: &Lab, image: &str) -> Vec<Value> {
    let map: Value = serde_json::from_str(&lab.qemu_img(&format!("map --output json {image}"))).unwrap();
    map.as_array().unwrap().clone()
}

/// Bytes of each class, as qemu-img has it.
fn expected(lab: &Lab, image: &str) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    for run in map(lab, image) {
        let is = |key: &str| run[key].as_bool().unwrap();
        let depth = run["depth"].as_u64().unwrap();
        let class = match () {
            () if is("zero") && !is("present") => "hole".to_owned(),
            () if is("zero") => "zero".to_owned(),
            () if is("compressed") => format!("compressed-{depth}"),
            () => format!("data-{depth}"),
        };
        *bytes.entry(class).or_default() += run["length"].as_u64().unwrap();
    }
    bytes
}

/// The figures of a picture's legend, but for those that are 0.
fn legend(svg: &str) -> BTreeMap<String, u64> {
    let entries = svg.split("data-class=\"").skip(1).map(|entry| {
        let (class, rest) = entry.split_once('"').unwrap();
        let bytes = rest.split('"').nth(1).unwrap();
        (class.to_owned(), bytes.parse().unwrap())
    });
    entries.filter(|(_, bytes)| *bytes > 0).collect()
}

#[test]
fn figures_are_those_of_qemus_map() {
    let lab = Lab::new();
    for image in images(&lab) {
        lab.imgtool(&format!("map --svg {image}.svg {image}"));
        lab.run(&format!("xmllint --noout {image}.svg")).ok();
        let svg = std::fs::read_to_string(lab.path(&format!("{image}.svg"))).unwrap();
        assert_eq!(legend(&svg), expected(&lab, image), "{image}");
        assert_eq!(svg, lab.imgtool(&format!("map --svg - {image}")));
    }
}

#[test]
fn a_picture_of_a_large_disk_is_small() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 -o cluster_size=2M huge 1T");
    let writes: Vec<String> = (0..400u64)
        .map(|i| format!("write -P 1 {}M 1M", i * i * 6 % (1 << 20)))
        .collect();
    let writes: Vec<&str> = writes.iter().map(String::as_str).collect();
    lab.qemu_io("qcow2", "huge", &writes);
    let svg = lab.imgtool("map --svg - huge");
    assert!(svg.len() < 64 << 10, "{}", svg.len());
    assert_eq!(legend(&svg), expected(&lab, "huge"));
    // One cluster of so many still shows.
    let (before, _) = svg.split_once("</g>").unwrap();
    assert!(before.contains("<path class=\"d0\""), "{before}");
}

#[test]
fn names_cannot_break_a_picture() {
    let lab = Lab::new();
    let name = "<\"&\u{1b}'>.qcow2";
    lab.run_words(&["qemu-img", "create", "-q", "-f", "qcow2", name, "1M"])
        .ok();
    lab.run_words(&["imgtool", "map", "--svg", "out.svg", name]).ok();
    lab.run("xmllint --noout out.svg").ok();
    let bars = lab.run_words(&["imgtool", "map", "--bar", name]).ok();
    assert!(!bars.contains('\u{1b}'));
}

#[test]
fn nothing_but_a_picture_is_replaced() {
    let lab = Lab::new();
    lab.imgtool("create -q -f qcow2 base 1M");
    lab.imgtool("create -q -f qcow2 -b base -F qcow2 top");
    std::fs::write(lab.path("notes"), "mine").unwrap();
    std::fs::write(lab.path("blank"), "").unwrap();
    lab.imgtool("create -q flat 0");
    for file in ["base", "top", "notes", "."] {
        let before = std::fs::read(lab.path(file)).unwrap_or_default();
        lab.run(&format!("imgtool map --svg {file} top"))
            .fails(1, &[file, "no SVG"]);
        assert!(std::fs::read(lab.path(file)).unwrap_or_default() == before);
    }
    lab.run("imgtool map --svg flat flat")
        .fails(1, &["flat", "no SVG"]);
    lab.imgtool("map --svg blank top");
    lab.imgtool("map --svg blank base");
    lab.run("imgtool map --svg none/x top")
        .fails(1, &["none/x", "No such file"]);
    assert_eq!(lab.run("imgtool map --svg x --output json top").code(), 1);
}

#[test]
fn bars_show_the_disk_and_each_layer() {
    let lab = Lab::new();
    lab.qemu_img("create -q -f qcow2 base 64M");
    lab.qemu_io("qcow2", "base", &["write -P 1 0 32M", "write -z 48M 8M"]);
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 top");
    lab.qemu_io("qcow2", "top", &["write -P 2 40M 512k"]);
    let bars = |line: &str| -> Vec<String> {
        let text = lab.imgtool(line);
        text.lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::to_owned)
            .collect()
    };
    let [hash, dot, zero] = ["#", ".", "0"].map(|c| move |n: usize| c.repeat(n));
    assert_eq!(
        bars("map --bar top"),
        [
            format!("{}{}-{}{}{}", hash(32), dot(8), dot(7), zero(8), dot(8)),
            format!("{}-{}", dot(40), dot(23)),
            format!("{}{}{}{}", hash(32), dot(16), zero(8), dot(8)),
        ]
    );
    assert_eq!(
        bars("map --bar --start-offset 40M --max-length 1M top")[1],
        format!("{}{}", hash(32), dot(32))
    );
    let text = lab.imgtool("map --bar top");
    assert!(text.contains("| 32.5 MiB data, 8 MiB zeros\n"), "{text}");
}

#[test]
fn the_chain_is_drawn_with_what_each_layer_holds() {
    let lab = Lab::new();
    images(&lab);
    let text = lab.imgtool("info --backing-chain top");
    let (_, chain) = text.split_once("\nchain:\n").unwrap();
    let own = |image: &str| -> u64 {
        let runs = map(&lab, image).into_iter();
        let data = runs.filter(|run| run["depth"] == 0 && run["data"] == true && run["zero"] == false);
        data.map(|run| run["length"].as_u64().unwrap()).sum()
    };
    let lines: Vec<&str> = chain.lines().collect();
    for (line, (image, indent)) in
        lines
            .iter()
            .zip([("top", "    "), ("middle", "    └─ "), ("base", "       └─ ")])
    {
        assert!(
            line.starts_with(&format!("{indent}{image}: qcow2, disk ")),
            "{chain}"
        );
        let kib = own(image) / 1024;
        let data = line.split("own data ").nth(1).unwrap().split(',').next().unwrap();
        let (number, unit) = data.split_once(' ').unwrap();
        let scale = if unit == "MiB" { 1024.0 } else { 1.0 };
        let number: f64 = number.parse().unwrap();
        assert!(
            (number * scale - kib as f64).abs() <= kib as f64 / 100.0,
            "{line}: {kib} KiB"
        );
    }
    assert_eq!(lines.len(), 3);
    assert!(!lab.imgtool("info --backing-chain base").contains("chain:"));
}
