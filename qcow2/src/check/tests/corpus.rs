//! Images of every kind that QEMU makes, each with a bit of everything in it.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{Figures, exit_code, in_memory, must, our_check, qemu_check};

/// An image, and the directory with it and what it refers to.
pub(super) struct Sample {
    pub(super) dir: TempDir,
    pub(super) bytes: Vec<u8>,
    /// What QEMU must be told to open it.
    pub(super) options: &'static str,
}

/// Name, options of `create`, size, and what is done then.
type Recipe = (&'static str, &'static str, &'static str, &'static [Step]);

#[derive(Clone, Copy)]
enum Step {
    /// Commands of `qemu-io`.
    Io(&'static [&'static str]),
    Snapshot(&'static str),
    Delete(&'static str),
    Bitmap(&'static str),
    /// Makes the image anew from itself, compressed.
    Compress,
    /// Moves the image below a new overlay with these options.
    Overlay(&'static str),
}
use Step::{Bitmap, Compress, Delete, Io, Overlay, Snapshot};

const WRITES: Step = Io(&[
    "write -P 1 0 200k",
    "write -P 2 1M 100k",
    "write -P 3 300k 4k",
    "write -z 700k 64k",
    "write -z -u 900k 64k",
    "write -P 4 2M 64k",
    "discard 1M 64k",
]);
const MORE: Step = Io(&["write -P 5 64k 200k", "write -P 6 3M 130k", "write -z 0 64k"]);

const RECIPES: &[Recipe] = &[
    ("empty", "", "64M", &[]),
    ("nothing", "", "0", &[]),
    ("plain", "", "8M", &[WRITES]),
    ("v2", "compat=0.10", "8M", &[WRITES, Snapshot("s"), MORE]),
    ("512-byte clusters", "cluster_size=512", "4M", &[WRITES]),
    ("4 KiB clusters", "cluster_size=4k", "64M", &[WRITES, MORE]),
    ("2 MiB clusters", "cluster_size=2M", "64M", &[WRITES]),
    ("1-bit refcounts", "refcount_bits=1", "8M", &[WRITES]),
    (
        "2-bit refcounts",
        "refcount_bits=2,cluster_size=4k",
        "8M",
        &[WRITES, Snapshot("s"), MORE],
    ),
    (
        "4-bit refcounts",
        "refcount_bits=4",
        "8M",
        &[WRITES, Snapshot("s"), MORE],
    ),
    (
        "8-bit refcounts",
        "refcount_bits=8,cluster_size=1k",
        "8M",
        &[WRITES, Snapshot("s"), MORE],
    ),
    (
        "32-bit refcounts",
        "refcount_bits=32",
        "8M",
        &[WRITES, Snapshot("s"), MORE],
    ),
    (
        "64-bit refcounts",
        "refcount_bits=64,cluster_size=512",
        "4M",
        &[WRITES],
    ),
    ("compressed", "", "8M", &[WRITES, Compress]),
    (
        "compressed, small clusters",
        "cluster_size=512",
        "4M",
        &[WRITES, Compress],
    ),
    (
        "compressed, large clusters",
        "cluster_size=2M",
        "64M",
        &[WRITES, Compress, MORE],
    ),
    (
        "zstd",
        "compression_type=zstd,cluster_size=16k",
        "8M",
        &[WRITES, Compress, Snapshot("s"), MORE],
    ),
    (
        "snapshots",
        "",
        "8M",
        &[
            WRITES,
            Snapshot("a"),
            MORE,
            Snapshot("b"),
            Snapshot("c"),
            WRITES,
            Delete("b"),
        ],
    ),
    (
        "snapshots, small clusters",
        "cluster_size=1k",
        "8M",
        &[WRITES, Snapshot("a"), MORE, Snapshot("b")],
    ),
    (
        "bitmaps",
        "cluster_size=4k",
        "8M",
        &[Bitmap("one"), WRITES, Bitmap("two"), MORE],
    ),
    ("overlay", "", "8M", &[WRITES, Overlay("cluster_size=32k"), MORE]),
    ("lazy", "lazy_refcounts=on", "8M", &[WRITES]),
    (
        "preallocated",
        "preallocation=metadata,cluster_size=4k",
        "8M",
        &[WRITES],
    ),
    (
        "extended L2",
        "extended_l2=on",
        "8M",
        &[WRITES, Snapshot("s"), MORE],
    ),
    (
        "extended L2, compressed",
        "extended_l2=on,cluster_size=16k",
        "8M",
        &[WRITES, Compress, MORE],
    ),
    (
        "LUKS",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,preallocation=metadata",
        "8M",
        &[],
    ),
    ("data file", "data_file=data", "8M", &[WRITES, MORE]),
    (
        "raw data file",
        "data_file=data,data_file_raw=on",
        "8M",
        &[WRITES],
    ),
];

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.0)
}

pub(super) fn make(wanted: &str) -> Sample {
    let &(_, options, size, steps) = RECIPES.iter().find(|recipe| recipe.0 == wanted).expect(wanted);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    create(path, options, &["i.qcow2", size]);
    for step in steps {
        apply(path, options, *step);
    }
    let bytes = fs::read(path.join("i.qcow2")).unwrap();
    let options = if options.contains("key-secret") {
        ",encrypt.key-secret=s"
    } else {
        ""
    };
    Sample { dir, bytes, options }
}

fn create(dir: &Path, options: &str, rest: &[&str]) {
    let mut args = vec!["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend(rest);
    must(dir, "qemu-img", &args);
}

fn apply(dir: &Path, options: &str, step: Step) {
    match step {
        Io(commands) => {
            let mut args = vec!["-f", "qcow2", "-d", "unmap"];
            args.extend(commands.iter().flat_map(|command| ["-c", command]));
            args.push("i.qcow2");
            must(dir, "qemu-io", &args);
        }
        Snapshot(name) => drop(must(dir, "qemu-img", &["snapshot", "-c", name, "i.qcow2"])),
        Delete(name) => drop(must(dir, "qemu-img", &["snapshot", "-d", name, "i.qcow2"])),
        Bitmap(name) => drop(must(dir, "qemu-img", &["bitmap", "--add", "i.qcow2", name])),
        Compress => {
            let mut args = vec!["convert", "-c", "-f", "qcow2", "-O", "qcow2"];
            if !options.is_empty() {
                args.extend(["-o", options]);
            }
            args.extend(["i.qcow2", "c.qcow2"]);
            must(dir, "qemu-img", &args);
            fs::rename(dir.join("c.qcow2"), dir.join("i.qcow2")).unwrap();
        }
        Overlay(options) => {
            fs::rename(dir.join("i.qcow2"), dir.join("base.qcow2")).unwrap();
            create(dir, options, &["-b", "base.qcow2", "-F", "qcow2", "i.qcow2"]);
        }
    }
}

#[test]
fn sound_images_have_the_same_figures() {
    for name in names() {
        let sample = make(name);
        let judgement = qemu_check(sample.dir.path(), "i.qcow2", sample.options);
        let report = our_check(&in_memory(&sample.bytes)).unwrap();
        assert_eq!(
            Some(Figures::from(&report)),
            judgement.figures,
            "{name}: {report:?}"
        );
        assert_eq!(Some(exit_code(&report)), judgement.code, "{name}");
        assert!(report.is_clean() && report.findings.is_empty(), "{name}");
    }
}
