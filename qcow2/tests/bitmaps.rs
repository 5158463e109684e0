//! Dirty bitmaps against QEMU's: made by either, kept by either while the disk is written to, and read by either.

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use block::test_utils::Rng;
use block::{BlockDevice, ErrorKind, MemStorage, Resize, Storage, ZeroMode};
use common::{load, run, run_ok, text};
use qcow2::{Header, Image, OpenOptions};

const SIZE: u64 = 4 << 20;

/// The first byte of each dirty part, and one past its last.
fn pairs(bits: &qcow2::DirtyBits) -> Vec<[u64; 2]> {
    bits.ranges().map(|range| [range.start, range.end]).collect()
}

/// A directory with an image in it.
struct Lab(tempfile::TempDir, std::path::PathBuf);

impl Lab {
    fn new(options: &str, size: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("image");
        let lab = Self(dir, image);
        let size = size.to_string();
        let args = ["create", "-q", "-f", "qcow2", "-o", options];
        run_ok("qemu-img", &[&args[..], &[lab.image(), &size]].concat());
        lab
    }

    fn image(&self) -> &str {
        text(&self.1)
    }

    fn bitmap(&self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let (options, name) = words.split_at(words.len() - 1);
        run_ok(
            "qemu-img",
            &[&["bitmap"], options, &[self.image(), name[0]]].concat(),
        );
    }

    fn qemu_io(&self, commands: &[String]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<&str> = ["-f", "qcow2"]
            .into_iter()
            .chain(commands)
            .chain([self.image()])
            .collect();
        run_ok("qemu-io", &args);
    }

    /// The file, in memory.
    fn load(&self) -> Arc<MemStorage> {
        Arc::new(load(&self.1))
    }

    fn store(&self, storage: &MemStorage) {
        std::fs::write(&self.1, storage.to_vec()).expect("room for the image");
    }

    /// What QEMU says is dirty.
    fn qemu_dirty(&self, bitmap: &str) -> Vec<[u64; 2]> {
        let socket = self.0.path().join("socket");
        let mut server = Command::new("qemu-nbd")
            .args([
                "-r",
                "-f",
                "qcow2",
                "-k",
                text(&socket),
                "-B",
                bitmap,
                self.image(),
            ])
            .spawn()
            .expect("qemu-nbd must be installed");
        // The socket has a name before anybody listens there (SO_ACCEPTCON).
        let listens = |line: &str| line.contains(" 00010000 ") && line.ends_with(text(&socket));
        for _ in 0..500 {
            let sockets = std::fs::read_to_string("/proc/net/unix").expect("the kernel's list");
            if sockets.lines().any(listens) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
            text(&socket)
        );
        let json = run_ok("qemu-img", &["map", "--output=json", "--image-opts", &options]);
        server.wait().expect("qemu-nbd ends with its client");
        let extents: Vec<serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        let dirty = extents.iter().filter(|extent| extent["data"] == false);
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        dirty
            .map(|extent| {
                let start = number(&extent["start"]);
                [start, start + number(&extent["length"])]
            })
            .collect()
    }

    /// Nothing is wrong with the image, not even leaks.
    fn assert_clean(&self) {
        let output = run("qemu-img", &["check", "-f", "qcow2", self.image()]);
        assert!(output.status.success(), "{output:?}");
    }

    fn qemu_info(&self) -> serde_json::Value {
        let json = run_ok("qemu-img", &["info", "--output=json", self.image()]);
        let info: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        info["format-specific"]["data"]["bitmaps"].clone()
    }
}

fn open(storage: &Arc<MemStorage>) -> Image {
    common::open(storage.clone(), None)
}

/// What we say is dirty in a file.
fn our_dirty(storage: &MemStorage, bitmap: &str) -> Vec<[u64; 2]> {
    let image = Image::open(Arc::new(storage.clone()), OpenOptions::default()).expect("the image opens");
    pairs(&image.dirty_bits(bitmap).expect("the bitmap"))
}

/// Changes of the disk, as qemu-io commands and as done by us.
fn random_changes(rng: &mut Rng, size: u64) -> Vec<(String, u64, u64)> {
    (0..12)
        .map(|_| {
            let offset = rng.below(size);
            let len = 1 + rng.below((size - offset).min(300_000));
            let kind = ["write", "write -z", "write -z -u", "discard"][rng.below(4) as usize];
            (kind.to_owned(), offset, len)
        })
        .collect()
}

fn make(image: &Image, changes: &[(String, u64, u64)]) {
    for (kind, offset, len) in changes {
        match &**kind {
            "write" => image.write_at(&vec![0xcd; *len as usize], *offset),
            "write -z" => image.zero_at(*offset, *len, ZeroMode::Allocate),
            "write -z -u" => image.zero_at(*offset, *len, ZeroMode::Unmap),
            _ => image.discard_at(*offset, *len),
        }
        .expect("a change of the disk");
    }
}

/// The same changes leave the same bits, whoever made them and whoever looks.
#[test]
fn every_change_sets_the_bits_that_qemu_sets() {
    for (seed, options) in [
        (1, "cluster_size=64k"),
        (2, "cluster_size=512"),
        (3, "cluster_size=2M"),
    ] {
        let (theirs, ours) = (Lab::new(options, SIZE), Lab::new(options, SIZE));
        let mut rng = Rng::new(seed);
        for lab in [&theirs, &ours] {
            lab.bitmap("--add -g 64k coarse");
            lab.bitmap("--add -g 512 fine");
            lab.bitmap("--add --disable -g 4k idle");
        }
        let storage = ours.load();
        for _ in 0..3 {
            let changes = random_changes(&mut rng, SIZE);
            let commands: Vec<String> = changes
                .iter()
                .map(|(kind, offset, len)| format!("{kind} {offset} {len}"))
                .collect();
            theirs.qemu_io(&commands);
            let image = open(&storage);
            make(&image, &changes);
            image.close().expect("close");
        }
        ours.store(&storage);
        for name in ["coarse", "fine", "idle"] {
            let expected = theirs.qemu_dirty(name);
            assert_eq!(ours.qemu_dirty(name), expected, "{options} {name}");
            assert_eq!(our_dirty(&storage, name), expected, "{options} {name}");
            assert_eq!(our_dirty(&theirs.load(), name), expected, "{options} {name}");
            assert_eq!(expected.is_empty(), name == "idle");
        }
        assert_eq!(ours.qemu_info(), theirs.qemu_info());
        ours.assert_clean();
        // And QEMU goes on where we stopped.
        ours.qemu_io(&["write 0 1".to_owned()]);
        assert_eq!(ours.qemu_dirty("coarse")[0][0], 0);
        ours.assert_clean();
    }
}

#[test]
fn a_compressed_write_dirties_its_cluster() {
    let lab = Lab::new("cluster_size=64k", SIZE + 512);
    lab.bitmap("--add -g 512 x");
    let storage = lab.load();
    let image = open(&storage);
    let writer = image.compressed().expect("open for writing");
    let compressed = writer.compress(&vec![7; 65_536]).unwrap().unwrap();
    writer.write_compressed_at(&compressed, 128 << 10).unwrap();
    writer.write_compressed_at(&compressed, SIZE).unwrap();
    image.close().unwrap();
    lab.store(&storage);
    assert_eq!(lab.qemu_dirty("x"), [[128 << 10, 192 << 10], [SIZE, SIZE + 512]]);
    lab.assert_clean();
}

/// Bitmaps made, changed and merged by both in the same way.
#[test]
fn edits_are_qemus() {
    let theirs = Lab::new("cluster_size=64k", SIZE);
    let ours = Lab::new("cluster_size=64k", SIZE);
    for line in [
        "--add a",
        "--add --disable -g 512 b",
        "--add -g 1M c",
        "--add -g 2G huge",
    ] {
        theirs.bitmap(line);
    }
    let storage = ours.load();
    let image = open(&storage);
    image
        .edit_bitmaps(|bitmaps| {
            bitmaps.add("a", None, true)?;
            bitmaps.add("b", Some(512), false)?;
            bitmaps.add("c", Some(1 << 20), true)?;
            bitmaps.add("huge", Some(2 << 30), true)
        })
        .unwrap();
    let changes = random_changes(&mut Rng::new(9), SIZE);
    make(&image, &changes);
    theirs.qemu_io(
        &changes
            .iter()
            .map(|(kind, offset, len)| format!("{kind} {offset} {len}"))
            .collect::<Vec<_>>(),
    );
    theirs.bitmap("--merge a --enable b");
    theirs.bitmap("--clear --disable a");
    theirs.bitmap("--merge b --merge c a");
    theirs.bitmap("--remove huge");
    image
        .edit_bitmaps(|bitmaps| {
            let a = bitmaps.dirty_bits("a")?;
            bitmaps.merge("b", &a)?;
            bitmaps.enable("b")?;
            bitmaps.clear("a")?;
            bitmaps.disable("a")?;
            for source in ["b", "c"] {
                let source = bitmaps.dirty_bits(source)?;
                bitmaps.merge("a", &source)?;
            }
            bitmaps.remove("huge")
        })
        .unwrap();
    image.close().unwrap();
    ours.store(&storage);
    for name in ["a", "b", "c"] {
        assert_eq!(ours.qemu_dirty(name), theirs.qemu_dirty(name), "{name}");
    }
    assert_eq!(ours.qemu_info(), theirs.qemu_info());
    ours.assert_clean();
    let image = open(&storage);
    image
        .edit_bitmaps(|bitmaps| ["a", "b", "c"].iter().try_for_each(|name| bitmaps.remove(name)))
        .unwrap();
    image.close().unwrap();
    ours.store(&storage);
    assert!(ours.qemu_info().is_null());
    ours.assert_clean();
}

#[test]
fn bitmaps_follow_the_disks_size() {
    for cluster_size in ["64k", "512"] {
        let options = format!("cluster_size={cluster_size}");
        let (theirs, ours) = (Lab::new(&options, SIZE), Lab::new(&options, SIZE));
        for lab in [&theirs, &ours] {
            lab.bitmap("--add -g 64k on");
            lab.bitmap("--add -g 512 off");
            lab.qemu_io(&["write 100k 3M".to_owned()]);
            lab.bitmap("--disable off");
        }
        let storage = ours.load();
        let image = open(&storage);
        for size in [SIZE + 512, 20 << 20, (2 << 20) + 1024, 64 << 20, 512] {
            run_ok(
                "qemu-img",
                &["resize", "-q", "--shrink", theirs.image(), &size.to_string()],
            );
            let how = Resize {
                shrink: true,
                ..Resize::default()
            };
            image.resize(size, how).unwrap();
            let last = size - 512;
            theirs.qemu_io(&[format!("write {last} 512")]);
            image.write_at(&[0xcd; 512], last).unwrap();
            image.flush().unwrap();
            for name in ["on", "off"] {
                let now = pairs(&image.dirty_bits(name).unwrap());
                assert_eq!(now, theirs.qemu_dirty(name), "{size} {name}");
            }
        }
        image.close().unwrap();
        ours.store(&storage);
        for name in ["on", "off"] {
            assert_eq!(ours.qemu_dirty(name), theirs.qemu_dirty(name), "{name}");
        }
        ours.assert_clean();
    }
}

/// What is left when nobody closes the image is not believed, by us or by QEMU, and is removed by either.
#[test]
fn what_was_not_saved_is_inconsistent() {
    let lab = Lab::new("cluster_size=64k", SIZE);
    lab.bitmap("--add on");
    lab.bitmap("--add --disable off");
    let storage = lab.load();
    let image = open(&storage);
    image.write_at(&[1; 100], 0).unwrap();
    image.flush().unwrap();
    let crashed = Arc::new(MemStorage::from(storage.to_vec()));
    image.close().unwrap();

    lab.store(&crashed);
    assert_eq!(lab.qemu_info()[0]["flags"], serde_json::json!(["in-use", "auto"]));
    assert_eq!(lab.qemu_info()[1]["flags"], serde_json::json!([]));
    let image = open(&crashed);
    let refused = |error: block::Error| {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(
            error.to_string().contains("bitmap 'on' is inconsistent"),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("imgtool bitmap --remove"));
    };
    refused(image.dirty_bits("on").unwrap_err());
    refused(image.resize(SIZE * 2, Resize::default()).unwrap_err());
    refused(image.edit_bitmaps(|bitmaps| bitmaps.clear("on")).unwrap_err());
    refused(image.edit_bitmaps(|bitmaps| bitmaps.disable("on")).unwrap_err());
    let off = image.dirty_bits("off").unwrap();
    refused(
        image
            .edit_bitmaps(|bitmaps| bitmaps.merge("on", &off))
            .unwrap_err(),
    );
    // Writing goes on, and does not make it any better.
    image.write_at(&[1; 100], 1 << 20).unwrap();
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("new", None, true))
        .unwrap();
    image.write_at(&[1; 100], 2 << 20).unwrap();
    assert!(image.bitmaps().unwrap()[0].in_use);
    image.close().unwrap();
    lab.store(&crashed);
    assert_eq!(lab.qemu_info()[0]["flags"], serde_json::json!(["in-use", "auto"]));
    assert_eq!(lab.qemu_dirty("new"), [[2 << 20, (2 << 20) + 65_536]]);
    lab.assert_clean();
    let image = open(&crashed);
    image.edit_bitmaps(|bitmaps| bitmaps.remove("on")).unwrap();
    image.resize(SIZE * 2, Resize::default()).unwrap();
    image.close().unwrap();
    lab.store(&crashed);
    lab.assert_clean();
}

type Edit<'a> = Box<dyn Fn(&mut qcow2::BitmapEdit<'_>) -> block::Result<()> + 'a>;

#[test]
fn a_failed_edit_changes_nothing() {
    let storage = Lab::new("cluster_size=64k", SIZE).load();
    let image = open(&storage);
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("there", None, true))
        .unwrap();
    image.flush().unwrap();
    let before = storage.to_vec();
    let long = "n".repeat(1024);
    let other = Lab::new("cluster_size=64k", SIZE * 2).load();
    let other = open(&other);
    other
        .edit_bitmaps(|bitmaps| bitmaps.add("x", None, false))
        .unwrap();
    let other = other.dirty_bits("x").unwrap();
    let edits: [(&str, Edit<'_>); 9] = [
        ("already", Box::new(|b| b.add("there", None, true))),
        ("empty", Box::new(|b| b.add("", None, true))),
        ("1023 bytes", Box::new(|b| b.add(&long, None, true))),
        ("256 bytes", Box::new(|b| b.add("new", Some(256), true))),
        ("1000 bytes", Box::new(|b| b.add("new", Some(1000), true))),
        (
            "4294967296 bytes",
            Box::new(|b| b.add("new", Some(4 << 30), true)),
        ),
        ("no bitmap 'gone'", Box::new(|b| b.remove("gone"))),
        ("no bitmap 'gone'", Box::new(|b| b.enable("gone"))),
        ("a disk of 8388608 bytes", Box::new(|b| b.merge("there", &other))),
    ];
    for (words, edit) in edits {
        let error = image
            .edit_bitmaps(|bitmaps| {
                bitmaps.add("first", None, true)?;
                edit(bitmaps)
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(storage.to_vec() == before, "{words}");
    }
    let v2 = open(&Lab::new("compat=0.10", SIZE).load());
    let error = v2
        .edit_bitmaps(|bitmaps| bitmaps.add("x", None, true))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let longest = "n".repeat(1023);
    image
        .edit_bitmaps(|bitmaps| bitmaps.add(&longest, None, true))
        .unwrap();
    assert_eq!(image.bitmaps().unwrap()[1].name, longest);
}

/// Too large a bitmap for its disk, and a disk without a byte.
#[test]
fn sizes_at_the_limits() {
    let lab = Lab::new("cluster_size=64k", 4 << 40);
    let storage = lab.load();
    let image = open(&storage);
    let error = image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", Some(512), true))
        .unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", Some(1024), true))
        .unwrap();
    image.write_at(&[1], (4 << 40) - 1).unwrap();
    let error = image.resize((4 << 40) + 512, Resize::default()).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    image.close().unwrap();
    lab.store(&storage);
    assert_eq!(lab.qemu_dirty("x"), [[(4 << 40) - 1024, 4 << 40]]);
    lab.assert_clean();

    // QEMU cannot open an image of no bytes that has one.
    let image = open(&Lab::new("cluster_size=64k", 0).load());
    let error = image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", None, true))
        .unwrap_err();
    assert!(error.to_string().contains("0 bytes"), "{error}");
    image.resize(1 << 20, Resize::default()).unwrap();
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", None, true))
        .unwrap();
    let how = Resize {
        shrink: true,
        ..Resize::default()
    };
    assert!(image.resize(0, how).is_err());
    assert_eq!(image.size(), 1 << 20);
}

/// A bitmap that a program with another idea of it has made.
#[test]
fn flags_and_extra_data_are_the_specifications() {
    let lab = Lab::new("cluster_size=64k", SIZE);
    lab.bitmap("--add x");
    let storage = lab.load();
    let directory = directory(&storage);
    let mut entry = vec![0; 32];
    storage.read_exact_at(&mut entry, directory).unwrap();
    // 8 bytes of extra data before the name.
    let mut with_extra = entry[..24].to_vec();
    with_extra[20..24].copy_from_slice(&8u32.to_be_bytes());
    with_extra.extend_from_slice(b"whatever");
    with_extra.extend_from_slice(&entry[24..]);
    let header = Header::read(&*storage).unwrap();
    let mut longer = header;
    longer.extensions.bitmaps.as_mut().unwrap().directory_size = 40;
    storage.write_all_at(&longer.encode().unwrap(), 0).unwrap();
    storage.write_all_at(&with_extra, directory).unwrap();

    // Not compatible: not used, not changed, and so the disk is not written to, since the bitmap is enabled.
    let image = open(&storage);
    for error in [
        image.dirty_bits("x").unwrap_err(),
        image.write_at(&[1], 0).unwrap_err(),
        image.resize(SIZE * 2, Resize::default()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("extra data"), "{error}");
    }
    image.close().unwrap();

    // Compatible: used, and the extra data is kept.
    with_extra[15] |= 4;
    storage.write_all_at(&with_extra, directory).unwrap();
    let image = open(&storage);
    image.write_at(&[1], 0).unwrap();
    image.close().unwrap();
    assert_eq!(our_dirty(&storage, "x"), [[0, 65_536]]);
    let mut kept = vec![0; 40];
    let place = Header::read(&*storage)
        .unwrap()
        .extensions
        .bitmaps
        .unwrap()
        .directory_offset
        .0;
    storage.read_exact_at(&mut kept, place).unwrap();
    assert_eq!(kept[12..], with_extra[12..]);
}

fn directory(storage: &MemStorage) -> u64 {
    let header = Header::read(storage).unwrap();
    header.extensions.bitmaps.unwrap().directory_offset.0
}

/// Without the autoclear bit the bitmaps are of no use, and writing does not care about them.
#[test]
fn bitmaps_that_are_not_consistent_are_none() {
    let lab = Lab::new("cluster_size=64k", SIZE);
    lab.bitmap("--add x");
    let storage = lab.load();
    storage.write_all_at(&[0; 8], 88).unwrap();
    let image = open(&storage);
    assert_eq!(image.bitmaps().unwrap(), []);
    image.write_at(&[1; 100], 0).unwrap();
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", None, true))
        .unwrap();
    image.close().unwrap();
    lab.store(&storage);
    assert!(lab.qemu_dirty("x").is_empty());
}

/// A table entry for all ones, and a tail with bits that do not count.
#[test]
fn ones_are_read_and_the_tail_is_not() {
    let lab = Lab::new("cluster_size=512", SIZE);
    lab.bitmap("--add -g 512 x");
    let storage = lab.load();
    // 8,192 bits are two clusters of data.
    let table = {
        let image = Image::open(storage.clone(), OpenOptions::default()).unwrap();
        image.bitmaps().unwrap()[0].table_offset.0
    };
    storage.write_all_at(&1u64.to_be_bytes(), table).unwrap();
    lab.store(&storage);
    assert_eq!(lab.qemu_dirty("x"), [[0, SIZE / 2]]);
    assert_eq!(our_dirty(&storage, "x"), [[0, SIZE / 2]]);
    let image = open(&storage);
    let how = Resize {
        shrink: true,
        ..Resize::default()
    };
    image.resize(SIZE / 4, how).unwrap();
    image.resize(SIZE, how).unwrap();
    image.close().unwrap();
    lab.store(&storage);
    assert_eq!(lab.qemu_dirty("x"), [[0, SIZE / 4]]);
    lab.assert_clean();
}

/// Whoever writes at the same time from many threads, no bit is lost.
#[test]
fn threads_share_the_bits() {
    let storage = Lab::new("cluster_size=64k", SIZE).load();
    let image = open(&storage);
    image
        .edit_bitmaps(|bitmaps| bitmaps.add("x", Some(512), true))
        .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let image = &image;
            scope.spawn(move || {
                for i in 0..1000 {
                    image.write_at(&[1; 512], (i * 8 + thread * 2) * 512).unwrap();
                    if thread == 0 && i % 100 == 0 {
                        image
                            .edit_bitmaps(|bitmaps| bitmaps.add(&i.to_string(), None, false))
                            .unwrap();
                    }
                }
            });
        }
    });
    image.close().unwrap();
    let expected: Vec<_> = (0..4000).map(|i| [i * 1024, i * 1024 + 512]).collect();
    assert_eq!(our_dirty(&storage, "x"), expected);
}

/// A bitmap that cannot be read can be removed.
#[test]
fn a_table_entry_that_breaks_the_rules_is_named() {
    let lab = Lab::new("cluster_size=64k", SIZE);
    lab.bitmap("--add x");
    let storage = lab.load();
    let table = open(&storage).bitmaps().unwrap()[0].table_offset.0;
    storage.write_all_at(&3u64.to_be_bytes(), table).unwrap();
    let image = open(&storage);
    let error = image.write_at(&[1], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.hint().unwrap().contains("--remove"), "{error}");
    image.edit_bitmaps(|bitmaps| bitmaps.remove("x")).unwrap();
    image.write_at(&[1], 0).unwrap();
    image.close().unwrap();
    lab.store(&storage);
    lab.assert_clean();
}
