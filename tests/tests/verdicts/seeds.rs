//! Images that other programs make, and where in them it matters.

use std::fs;
use std::ops::Range;

use byteorder::{BE, ByteOrder, LE};
use tests::Lab;

use crate::streams;

/// What encrypted images are opened with.
pub(crate) const SECRET: &str = "secret,id=s,data=key";
/// The data of that secret.
pub(crate) const SECRET_KEY: &[u8] = b"key";
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image, and where its tables are.
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// What is changed more often than the rest.
    pub(crate) areas: Vec<Range<usize>>,
}

impl Image {
    fn new(lab: &Lab, name: &str, areas: impl FnOnce(&[u8]) -> Vec<Range<usize>>) -> Self {
        let bytes = lab.bytes(name);
        let whole = 0..bytes.len();
        let areas = areas(&bytes)
            .into_iter()
            .map(|area| area.start.min(whole.end)..area.end.min(whole.end))
            .filter(|area| !area.is_empty())
            .collect();
        Self {
            name: name.to_owned(),
            bytes,
            areas,
        }
    }
}

fn be(bytes: &[u8], at: usize) -> usize {
    BE::read_u64(&bytes[at..]) as usize
}

fn le(bytes: &[u8], at: usize) -> usize {
    LE::read_u64(&bytes[at..]) as usize
}

fn le32(bytes: &[u8], at: usize) -> usize {
    LE::read_u32(&bytes[at..]) as usize
}

/// The disk that all images hold: `disk`, 1 MiB with something here and there.
fn disk(lab: &Lab) {
    let noise = lab.bytes("noise");
    let mut disk = vec![0; 1 << 20];
    for (at, len) in [(0, 5000), (70_000, 3000), (300_000, 140_000), (1_040_000, 8576)] {
        for (place, byte) in disk[at..at + len].iter_mut().enumerate() {
            *byte = noise[(at + place) % noise.len()];
        }
    }
    // Not the start of anything.
    disk[..512].fill(0x5a);
    fs::write(lab.path("disk"), disk).unwrap();
}

fn convert(lab: &Lab, name: &str, format: &str, options: &str) {
    let mut args = vec!["convert", "-f", "raw", "-O", format];
    if !options.is_empty() {
        args.extend(options.split(' '));
    }
    lab.qemu_img(&[&args[..], &["disk", name]].concat());
}

pub(crate) fn qcow2(lab: &Lab) -> Vec<Image> {
    disk(lab);
    for (name, options) in [
        ("v3", "-o cluster_size=4k"),
        ("v2", "-o compat=0.10,cluster_size=8k"),
        ("large", "-o cluster_size=64k,lazy_refcounts=on"),
        ("narrow", "-o cluster_size=512,refcount_bits=1"),
        ("wide", "-o cluster_size=4k,refcount_bits=64"),
        ("extended", "-o extended_l2=on,cluster_size=16k"),
        ("zlib", "-c -o cluster_size=8k"),
        ("zstd", "-c -o compression_type=zstd"),
        ("full", "-o preallocation=full,cluster_size=4k"),
        ("snapshots", "-o cluster_size=4k"),
        ("bitmaps", "-o cluster_size=4k"),
    ] {
        convert(lab, name, "qcow2", options);
    }
    let io = |name: &str, commands: &[&str]| {
        let mut args = vec!["-f", "qcow2", "-d", "unmap"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(name);
        let outcome = lab.run("qemu-io", &args);
        assert_eq!(outcome.code, 0, "{outcome:?}");
    };
    lab.qemu_img(&["snapshot", "-c", "one", "snapshots"]);
    io(
        "snapshots",
        &["write -P 7 0 20k", "write -z 300k 40k", "discard 500k 20k"],
    );
    lab.qemu_img(&["snapshot", "-c", "two", "snapshots"]);
    for name in ["one", "two"] {
        lab.qemu_img(&["bitmap", "--add", "-g", "4k", "bitmaps", name]);
    }
    io("bitmaps", &["write -P 7 0 20k"]);
    io("extended", &["write -z 32k 2k", "discard 300k 3k"]);
    for (name, format, cipher) in [("aes", "aes", ""), ("luks2", "luks", ",encrypt.iter-time=10")] {
        let options = format!("encrypt.format={format},encrypt.key-secret=s{cipher}");
        let words = ["convert", "-f", "raw", "--object", SECRET, "-O", "qcow2", "-o"];
        lab.qemu_img(&[&words[..], &[&options, "disk", name]].concat());
    }
    let names = [
        "v3",
        "v2",
        "large",
        "narrow",
        "wide",
        "extended",
        "zlib",
        "zstd",
        "full",
        "snapshots",
        "bitmaps",
        "aes",
        "luks2",
    ];
    names
        .into_iter()
        .map(|name| Image::new(lab, name, qcow2_areas))
        .collect()
}

/// The header, and the first entries of each table that it leads to.
fn qcow2_areas(bytes: &[u8]) -> Vec<Range<usize>> {
    let some = |at: usize, len: usize| at..at + len;
    let (l1, refcounts) = (be(bytes, 40), be(bytes, 48));
    let mut areas = vec![0..104, 0..256, some(l1, 16), some(refcounts, 16)];
    let place = |at: usize| (BE::read_u64(&bytes[at..]) & OFFSET) as usize;
    areas.push(some(place(l1), 128));
    areas.push(some(place(refcounts), 64));
    if BE::read_u32(&bytes[60..]) > 0 {
        areas.push(some(be(bytes, 64), 160));
    }
    let magic = 0x2385_2875_u32.to_be_bytes();
    if let Some(at) = bytes[..512].windows(4).position(|window| window == magic) {
        let directory = be(bytes, at + 24);
        areas.push(some(directory, 64));
        areas.push(some(be(bytes, directory), 16));
    }
    areas
}

pub(crate) fn raw(lab: &Lab) -> Vec<Image> {
    disk(lab);
    for name in ["gpt", "mbr", "odd"] {
        fs::copy(lab.path("disk"), lab.path(name)).unwrap();
    }
    assert_eq!(lab.run("sgdisk", &["-n", "1:64:1024", "gpt"]).code, 0);
    let table =
        "printf 'label: dos\\nstart=64,size=100,type=83\\nstart=200,size=100,type=7\\n' | sfdisk -q mbr";
    assert_eq!(lab.run("sh", &["-c", table]).code, 0);
    fs::OpenOptions::new()
        .write(true)
        .open(lab.path("odd"))
        .unwrap()
        .set_len(1_000_001)
        .unwrap();
    fs::create_dir(lab.path("tree")).unwrap();
    fs::write(lab.path("tree/file"), vec![7; 9000]).unwrap();
    let disc = lab.run(
        "xorriso",
        &["-as", "mkisofs", "-quiet", "-R", "-J", "-o", "iso", "tree"],
    );
    assert_eq!(disc.code, 0, "{disc:?}");
    let areas = |bytes: &[u8]| {
        let end = bytes.len() - 1024;
        vec![
            0..96,
            446..512,
            512..604,
            1024..1152,
            end..end + 1024,
            0x8000..0x80c0,
            0x8800..0x88c0,
        ]
    };
    ["disk", "gpt", "mbr", "odd", "iso"]
        .into_iter()
        .map(|name| Image::new(lab, name, areas))
        .collect()
}

pub(crate) fn older(lab: &Lab) -> Vec<Image> {
    disk(lab);
    convert(lab, "qed", "qed", "");
    convert(lab, "vdi", "vdi", "");
    convert(lab, "static", "vdi", "-o static=on");
    convert(
        lab,
        "luks",
        "luks",
        &format!("--object {SECRET} -o key-secret=s,iter-time=10"),
    );
    vec![
        Image::new(lab, "qed", |bytes| {
            let l1 = le(bytes, 40);
            let l2 = le(bytes, l1);
            vec![0..64, l1..l1 + 16, l2..l2 + 128]
        }),
        Image::new(lab, "vdi", vdi_areas),
        Image::new(lab, "static", vdi_areas),
        Image::new(lab, "luks", |_| vec![0..592, 0..112]),
    ]
}

fn vdi_areas(bytes: &[u8]) -> Vec<Range<usize>> {
    let map = le32(bytes, 340);
    vec![64..84, 340..456, map..map + 16]
}

pub(crate) fn vmdk(lab: &Lab) -> Vec<Image> {
    disk(lab);
    convert(lab, "sparse", "vmdk", "-o subformat=monolithicSparse");
    convert(
        lab,
        "zeros",
        "vmdk",
        "-o subformat=monolithicSparse,zeroed_grain=on",
    );
    convert(lab, "stream", "vmdk", "-o subformat=streamOptimized");
    fs::write(lab.path("vmware"), streams::from_qemu(&lab.bytes("stream"))).unwrap();
    ["sparse", "zeros", "stream", "vmware"]
        .into_iter()
        .map(|name| Image::new(lab, name, vmdk_areas))
        .collect()
}

fn vmdk_areas(bytes: &[u8]) -> Vec<Range<usize>> {
    let sector = |at: usize| 512 * le32(bytes, at);
    let mut directory = sector(56);
    if le(bytes, 56) == usize::MAX {
        directory = sector(bytes.len() - 1024 + 56);
    }
    let (table, first) = (sector(directory), sector(64));
    let end = bytes.len() - 1536;
    vec![
        0..80,
        0..80,
        512..900,
        512..900,
        directory..directory + 16,
        table..table + 64,
        first..first + 16,
        end..end + 1536,
    ]
}

pub(crate) fn vhd(lab: &Lab) -> Vec<Image> {
    disk(lab);
    for (name, options) in [
        ("dynamic", "-o subformat=dynamic,force_size=on"),
        ("rounded", "-o subformat=dynamic"),
        ("fixed", "-o subformat=fixed,force_size=on"),
    ] {
        convert(lab, name, "vpc", options);
    }
    ["dynamic", "rounded", "fixed"]
        .into_iter()
        .map(|name| {
            Image::new(lab, name, |bytes| {
                let end = bytes.len() - 512;
                vec![
                    0..96,
                    512..640,
                    1536..1552,
                    2048..2064,
                    end..end + 96,
                    end..end + 96,
                ]
            })
        })
        .collect()
}

pub(crate) fn vhdx(lab: &Lab) -> Vec<Image> {
    disk(lab);
    convert(lab, "grows", "vhdx", "-o subformat=dynamic,block_size=1M");
    convert(lab, "fixed", "vhdx", "-o subformat=fixed,block_size=1M");
    ["grows", "fixed"]
        .into_iter()
        .map(|name| {
            Image::new(lab, name, |bytes| {
                const KIB: usize = 1 << 10;
                let first = le(bytes, 192 * KIB + 16 + 16);
                let second = le(bytes, 192 * KIB + 48 + 16);
                let mut areas = vec![
                    64 * KIB..64 * KIB + 80,
                    128 * KIB..128 * KIB + 80,
                    192 * KIB..192 * KIB + 80,
                    256 * KIB..256 * KIB + 80,
                ];
                for start in [first, second] {
                    areas.extend([start..start + 224, start + 64 * KIB..start + 64 * KIB + 48]);
                }
                areas
            })
        })
        .collect()
}
