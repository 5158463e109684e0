//! Images made to do harm: each is refused by name, changes nothing, and neither hangs nor panics.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Duration;

use block::chain::MAX_LAYERS;
use block::{Access, BackingReference, BlockDevice, Error, ErrorKind, Resize, ZeroMode};
use byteorder::{BE, ByteOrder};
use qcow2::CreateOptions;
use tests::{Lab, Shape, within};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(30);
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Of an L2 entry: the cluster reads as zeros.
const ZERO: u64 = 1;
const CLUSTER: u64 = 1 << 16;
const SHAPE: Shape = Shape {
    cluster_bits: 16,
    refcount_order: 4,
    v2: false,
    zstd: false,
    extended_l2: false,
    lazy: false,
};

/// A small image with data in its first two clusters, in the file `image`.
struct Victim {
    lab: Lab,
    l1: u64,
    l2: u64,
    table: u64,
    block: u64,
    bytes: Vec<u8>,
}

impl Victim {
    fn new(shape: Shape) -> Self {
        let lab = Lab::new();
        lab.qemu_create("image", shape, 4 << 20, None);
        let commands = ["-f", "qcow2", "-c", "write -P 7 0 128k", "image"];
        assert_eq!(lab.run("qemu-io", &commands).code, 0);
        let bytes = lab.bytes("image");
        let word = |at: u64| BE::read_u64(&bytes[at as usize..]);
        let (l1, table) = (word(40), word(48));
        let (l2, block) = (word(l1) & !COPIED, word(table));
        Self {
            lab,
            l1,
            l2,
            table,
            block,
            bytes,
        }
    }

    /// The places of metadata by name.
    fn metadata(&self) -> [(&'static str, u64); 4] {
        [
            ("L1 table", self.l1),
            ("L2 table", self.l2),
            ("refcount table", self.table),
            ("refcount block", self.block),
        ]
    }

    fn poke(&mut self, at: u64, entry: u64) {
        BE::write_u64(&mut self.bytes[at as usize..], entry);
    }

    fn poke_u32(&mut self, at: u64, value: u32) {
        BE::write_u32(&mut self.bytes[at as usize..], value);
    }

    /// Sets the 16-bit refcount of the cluster at `host`.
    fn count(&mut self, host: u64, refcount: u16) {
        let at = self.block + host / CLUSTER * 2;
        BE::write_u16(&mut self.bytes[at as usize..], refcount);
    }

    /// Appends bytes and gives their offset.
    fn append(&mut self, bytes: &[u8]) -> u64 {
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }

    fn store(&self) {
        fs::write(self.lab.path("image"), &self.bytes).expect("room for the image");
    }

    fn stored(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.store();
        self
    }

    /// Does something to the disk, which must fail and leave the file as it is, also when it is closed.
    fn refuses(
        self,
        access: Access,
        act: impl Fn(&dyn BlockDevice) -> block::Result<()> + Send + 'static,
    ) -> Error {
        within(LIMIT, move || {
            let error = match self.lab.try_open("image", "qcow2", access) {
                Err(error) => error,
                Ok(chain) => act(&**chain.active()).expect_err("a hostile image was taken for a sound one"),
            };
            let path = self.lab.path("image");
            assert_eq!(error.path(), Some(&*path), "{error}");
            let now = self.lab.bytes("image");
            let differs = now.iter().zip(&self.bytes).position(|(a, b)| a != b);
            assert!(
                now.len() == self.bytes.len() && differs.is_none(),
                "{error}: the file has changed at {differs:x?}"
            );
            error
        })
    }
}

fn corrupt(error: &Error, words: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error}: no word of {word}");
    }
}

fn flushed(device: &dyn BlockDevice, result: block::Result<()>) -> block::Result<()> {
    result.and_then(|()| device.flush())
}

#[test]
fn data_that_is_mapped_onto_metadata_is_never_written_to() {
    for which in 0..4 {
        for flags in [COPIED, COPIED | ZERO, 0] {
            let victim = Victim::new(SHAPE).stored(|victim| {
                let (_, host) = victim.metadata()[which];
                victim.poke(victim.l2, host | flags);
            });
            let cluster = format!("cluster {:#x}", victim.metadata()[which].1 / CLUSTER);
            let error = victim.refuses(Access::WRITE, |disk| {
                flushed(disk, disk.write_at(&[0xff; 512], 100))
            });
            corrupt(&error, &[&cluster, "metadata"]);
        }
    }
}

/// Giving such a cluster back would let the table be overwritten later.
#[test]
fn metadata_that_data_is_mapped_onto_is_never_given_back() {
    for which in 0..4 {
        for request in 0..3 {
            let victim = Victim::new(SHAPE).stored(|victim| {
                let (_, host) = victim.metadata()[which];
                victim.poke(victim.l2, host | COPIED);
            });
            let error = victim.refuses(Access::WRITE, move |disk| {
                let done = match request {
                    0 => disk.discard_at(0, CLUSTER),
                    1 => disk.zero_at(0, CLUSTER, ZeroMode::Unmap),
                    _ => {
                        let writer = disk.compressed().expect("qcow2 compresses");
                        let compressed = writer.compress(&vec![1; CLUSTER as usize])?;
                        writer.write_compressed_at(&compressed.expect("it compresses"), 0)
                    }
                };
                flushed(disk, done)
            });
            corrupt(&error, &["metadata"]);
        }
    }
}

/// The disk is shorter then, and the tables are as they were.
#[test]
fn metadata_that_data_is_mapped_onto_survives_a_shrink() {
    for which in 0..4 {
        let victim = Victim::new(SHAPE).stored(|victim| {
            let (_, host) = victim.metadata()[which];
            victim.poke(victim.l2, host | COPIED);
        });
        let chain = victim.lab.open("image", "qcow2", Access::WRITE);
        let shrink = Resize {
            shrink: true,
            ..Resize::default()
        };
        corrupt(&chain.resize(0, shrink).unwrap_err(), &["metadata"]);
        drop(chain);
        let now = victim.lab.bytes("image");
        for (name, host) in victim.metadata() {
            let cluster = host as usize..(host + CLUSTER) as usize;
            assert!(
                now[cluster.clone()] == victim.bytes[cluster],
                "the {name} has changed"
            );
        }
    }
}

#[test]
fn entries_that_point_into_the_header_or_between_clusters_are_named() {
    for (entry, words) in [
        (0x200 | COPIED, ["L2 entry 0", "0x8000000000000200"]),
        (0x5_0200 | COPIED, ["L2 entry 0", "0x8000000000050200"]),
        (COPIED | 1 << 60 | 0x5_0000, ["L2 entry 0", "reserved"]),
    ] {
        for access in [Access::READ, Access::WRITE] {
            let victim = Victim::new(SHAPE).stored(|victim| victim.poke(victim.l2, entry));
            let error = victim.refuses(access, |disk| disk.read_at(&mut [0; 512], 0));
            corrupt(&error, &words);
        }
    }
    for entry in [0x200 | COPIED, 0x4_0200 | COPIED] {
        let victim = Victim::new(SHAPE).stored(|victim| victim.poke(victim.l1, entry));
        let error = victim.refuses(Access::READ, |disk| disk.read_at(&mut [0; 512], 0));
        corrupt(&error, &["L1 entry 0", &format!("{entry:#x}")]);
    }
}

#[test]
fn impossible_subclusters_are_named() {
    let shape = Shape {
        extended_l2: true,
        ..SHAPE
    };
    for access in [Access::READ, Access::WRITE] {
        for (descriptor, bitmap, word) in [
            (None, 1 << 32 | 1, "both allocated and zero"),
            (None, 1 << 63 | 1 << 31, "both allocated and zero"),
            (Some(0), 1 << 7, "there is no host cluster"),
            (
                Some(COMPRESSED | 5 << 16),
                1 << 40,
                "a compressed cluster has no subclusters",
            ),
            (Some(COPIED | ZERO | 5 << 16), 0, "reserved bits 0x1"),
        ] {
            let victim = Victim::new(shape).stored(|victim| {
                if let Some(descriptor) = descriptor {
                    victim.poke(victim.l2, descriptor);
                }
                victim.poke(victim.l2 + 8, bitmap);
            });
            let error = victim.refuses(access, move |disk| {
                if access == Access::READ {
                    return disk.read_at(&mut [0; 512], 30_000);
                }
                flushed(disk, disk.zero_at(0, CLUSTER, ZeroMode::Unmap))?;
                flushed(disk, disk.write_at(&[1; 512], 30_000))
            });
            corrupt(&error, &["L2 entry 0", word]);
        }
    }
}

#[test]
fn an_l2_table_past_the_end_of_the_file_is_no_table_of_zeros() {
    let victim = Victim::new(SHAPE).stored(|victim| victim.poke(victim.l1, 1 << 40 | COPIED));
    let error = victim.refuses(Access::READ, |disk| disk.read_at(&mut [0; 512], 0));
    corrupt(&error, &["L2 table at 0x10000000000", "past the end of the file"]);
}

/// The table would be changed as one kind of metadata, and be read as another.
#[test]
fn an_l2_table_that_is_other_metadata_is_never_written_to() {
    for which in [0, 2, 3] {
        let victim = Victim::new(SHAPE).stored(|victim| {
            let (_, host) = victim.metadata()[which];
            victim.poke(victim.l1, host | COPIED);
        });
        let at = format!("cluster {:#x}", victim.metadata()[which].1 / CLUSTER);
        // A cluster that the bytes there say nothing of, so that nothing but the table is in the way.
        let error = victim.refuses(Access::WRITE, |disk| {
            flushed(disk, disk.write_at(&[0xff; 512], 40 * CLUSTER))
        });
        corrupt(&error, &["an L2 table lies in", &at, "other metadata"]);
    }
}

#[test]
fn a_refcount_block_that_is_other_metadata_is_never_written_to() {
    for which in 0..3 {
        let victim = Victim::new(SHAPE).stored(|victim| {
            let (_, host) = victim.metadata()[which];
            victim.poke(victim.table, host);
        });
        let at = format!("cluster {:#x}", victim.metadata()[which].1 / CLUSTER);
        let error = victim.refuses(Access::WRITE, |disk| {
            flushed(disk, disk.write_at(&[0xff; 512], 40 * CLUSTER))
        });
        corrupt(&error, &["lies in", &at, "other metadata"]);
    }
}

#[test]
fn metadata_that_is_counted_as_free_is_not_given_out() {
    for which in 0..5 {
        let victim = Victim::new(SHAPE).stored(|victim| {
            let host = match which {
                4 => 0,
                _ => victim.metadata()[which].1,
            };
            victim.count(host, 0);
        });
        let error = victim.refuses(Access::WRITE, |disk| {
            flushed(disk, disk.write_at(&[0xff; 512], 8 * CLUSTER))
        });
        corrupt(&error, &["counted as free", "metadata"]);
        assert!(error.hint().is_some());
    }
}

#[test]
fn headers_that_ask_for_too_much_are_refused_before_anything_is_allocated() {
    type Change = fn(&mut Victim);
    let cases: [(Change, &[&str]); 8] = [
        (|v| v.poke_u32(20, 8), &["cluster_bits is 8"]),
        (|v| v.poke_u32(20, 22), &["cluster_bits is 22"]),
        (
            |v| v.poke_u32(36, (4 << 20) + 1),
            &["l1_size is 4194305", "32 MiB"],
        ),
        (
            |v| v.poke(40, 1 << 30),
            &["L1 table at 0x40000000", "past the end of the file"],
        ),
        (
            |v| v.poke_u32(36, 4 << 20),
            &["L1 table", "33554432 bytes", "past the end"],
        ),
        (|v| v.poke(24, 1 << 60), &["l1_size is 1", "virtual size"]),
        (
            |v| v.poke_u32(56, 129),
            &["refcount_table_clusters is 129", "8 MiB"],
        ),
        (|v| v.poke(48, v.l1), &["overlap"]),
    ];
    for (change, words) in cases {
        for access in [Access::READ, Access::WRITE] {
            let victim = Victim::new(SHAPE).stored(change);
            let error = victim.refuses(access, |_| Ok(()));
            corrupt(&error, words);
        }
    }
}

/// The L2 entry of `sectors` sectors of compressed data at `host`.
fn compressed_entry(host: u64, sectors: u64) -> u64 {
    let offset_bits = 62 - (u64::from(SHAPE.cluster_bits) - 8);
    COMPRESSED | (sectors - 1) << offset_bits | host
}

/// A hundred megabytes of zeros in a hundred kilobytes: no more than a cluster of it comes out.
#[test]
fn a_deflate_bomb_is_cut_off_at_a_cluster() {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..100 {
        encoder.write_all(&vec![0; 1 << 20]).expect("memory");
    }
    let bomb = encoder.finish().expect("memory");
    let victim = Victim::new(SHAPE).stored(|victim| {
        let host = victim.append(&bomb);
        victim.poke(
            victim.l2,
            compressed_entry(host, (bomb.len() as u64).div_ceil(512)),
        );
    });
    within(LIMIT, move || {
        let chain = victim.lab.open("image", "qcow2", Access::READ);
        let mut seen = vec![1; CLUSTER as usize];
        chain
            .read_at(&mut seen, 0)
            .expect("what fills a cluster is enough");
        assert!(seen.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_zstd_bomb_is_an_error() {
    let shape = Shape { zstd: true, ..SHAPE };
    let bomb = zstd::bulk::compress(&vec![0; 100 << 20], 3).expect("memory");
    let victim = Victim::new(shape).stored(|victim| {
        let host = victim.append(&bomb);
        victim.append(&[0; 4096]);
        victim.poke(
            victim.l2,
            compressed_entry(host, (bomb.len() as u64).div_ceil(512)),
        );
    });
    let error = victim.refuses(Access::READ, |disk| disk.read_at(&mut [0; 512], 0));
    corrupt(&error, &["zstd", "65536"]);
}

#[test]
fn compressed_data_that_is_none_is_an_error() {
    for (zstd, word) in [(false, "zlib"), (true, "zstd")] {
        let shape = Shape { zstd, ..SHAPE };
        let garbage = Victim::new(shape).stored(|victim| {
            let host = victim.append(&[0xff; 4096]);
            victim.poke(victim.l2, compressed_entry(host, 8));
        });
        let error = garbage.refuses(Access::READ, |disk| disk.read_at(&mut [0; 512], 0));
        corrupt(&error, &[word]);
        let nowhere =
            Victim::new(shape).stored(|victim| victim.poke(victim.l2, compressed_entry(1 << 40, 8)));
        let error = nowhere.refuses(Access::READ, |disk| disk.read_at(&mut [0; 512], 0));
        corrupt(&error, &[]);
    }
}

/// Makes an image that names `backing`, which need not exist.
fn overlay(lab: &Lab, name: &str, backing: &str, format: Option<&str>) {
    let file = raw::OpenOptions::new().write(true).truncate(true);
    let file = file.open(lab.path(name)).expect("a new file");
    let options = CreateOptions {
        size: 1 << 20,
        backing: Some(BackingReference {
            name: backing.to_owned(),
            format: format.map(ToOwned::to_owned),
        }),
        ..CreateOptions::default()
    };
    qcow2::create(&file, &options).expect("a new image");
}

/// Opens `name` in `lab`, which must fail, quickly and with the image unchanged.
fn refused_chain(lab: Lab, name: &'static str) -> (Lab, Error) {
    within(LIMIT, move || {
        let before = lab.bytes(name);
        let error = lab.try_open(name, "qcow2", Access::WRITE).unwrap_err();
        assert!(lab.bytes(name) == before, "the file has changed");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert!(
            !error.hint().unwrap_or_default().contains(char::is_control),
            "{:?}",
            error.hint()
        );
        (lab, error)
    })
}

#[test]
fn chains_that_loop_end() {
    let lab = Lab::new();
    overlay(&lab, "a", "b", Some("qcow2"));
    overlay(&lab, "b", "a", Some("qcow2"));
    let (lab, error) = refused_chain(lab, "a");
    corrupt(&error, &["the chain loops", "/a", "/b"]);

    overlay(&lab, "self", "./self", Some("qcow2"));
    let (lab, error) = refused_chain(lab, "self");
    corrupt(&error, &["the chain loops", "/self"]);

    overlay(&lab, "c", "link", Some("qcow2"));
    symlink("c", lab.path("link")).expect("a link");
    let (lab, error) = refused_chain(lab, "c");
    corrupt(&error, &["the chain loops", "/link", "/c"]);

    overlay(&lab, "d", "hard", Some("qcow2"));
    fs::hard_link(lab.path("d"), lab.path("hard")).expect("a link");
    let (lab, error) = refused_chain(lab, "d");
    corrupt(&error, &["the chain loops", "/hard", "/d"]);

    // As raw bytes it is the same file all the same.
    overlay(&lab, "e", "e", Some("raw"));
    let (_, error) = refused_chain(lab, "e");
    corrupt(&error, &["the chain loops"]);
}

#[test]
fn a_chain_that_is_too_deep_is_refused_and_one_that_is_not_quite_opens() {
    let lab = Lab::new();
    for layer in 0..MAX_LAYERS {
        overlay(
            &lab,
            &format!("l{layer}"),
            &format!("l{}", layer + 1),
            Some("qcow2"),
        );
    }
    lab.create(&format!("l{MAX_LAYERS}"), SHAPE, 1 << 20, None);
    let (lab, error) = refused_chain(lab, "l0");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("more than 200 layers"), "{error}");
    within(LIMIT, move || {
        let chain = lab.open("l1", "qcow2", Access::READ);
        chain.read_at(&mut [0; 512], 0).expect("a read");
    });
}

#[test]
fn names_that_are_no_paths_are_refused_by_name() {
    for name in [
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "nbd:localhost:10809",
        "nbd+unix:///disk?socket=/run/nbd",
        "ssh://root@localhost/etc/passwd",
        "fat:rw:/etc",
    ] {
        let lab = Lab::new();
        overlay(&lab, "image", name, Some("raw"));
        let (lab, error) = refused_chain(lab, "image");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert_eq!(error.path(), Some(&*lab.path("image")));
        assert!(
            error.to_string().contains(name) && error.hint().is_some(),
            "{error}"
        );
    }
}

#[test]
fn a_backing_file_that_is_no_file_is_refused_and_not_waited_for() {
    let lab = Lab::new();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = lab.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    fs::create_dir(lab.path("directory")).expect("a directory");
    let mut lab = lab;
    for (name, kind, word) in [
        ("fifo", ErrorKind::InvalidInput, "FIFO"),
        ("directory", ErrorKind::InvalidInput, "directory"),
        ("/dev/zero", ErrorKind::InvalidInput, "character device"),
        ("missing", ErrorKind::Io, "missing"),
    ] {
        for format in ["raw", "qcow2"] {
            overlay(&lab, "image", name, Some(format));
            let error;
            (lab, error) = refused_chain(lab, "image");
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(error.path(), Some(&*lab.path("image")));
            let text = error.to_string();
            assert!(text.contains(word) && text.contains(name), "{text}");
        }
    }
}

#[test]
fn a_backing_file_without_a_format_is_not_probed() {
    let lab = Lab::new();
    lab.create("base", SHAPE, 1 << 20, None);
    overlay(&lab, "image", "base", None);
    let (lab, error) = refused_chain(lab, "image");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("\"base\""), "{error}");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("-F")),
        "{:?}",
        error.hint()
    );

    overlay(&lab, "other", "base", Some("vmdk"));
    let (_, error) = refused_chain(lab, "other");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("vmdk"), "{error}");
}

#[test]
fn names_with_control_characters_do_not_reach_a_terminal() {
    for (name, format) in [
        ("evil\u{1b}[2J\nname", Some("raw")),
        ("x\u{1b}]0;title\u{7}:y", Some("raw")),
        ("base\r", None),
        ("base", Some("r\u{1b}aw")),
    ] {
        let lab = Lab::new();
        overlay(&lab, "image", name, format);
        // What is looked for is in `refused_chain`.
        let (_, error) = refused_chain(lab, "image");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}
