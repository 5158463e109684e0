//! Archives that are cut short, damaged, hostile, or merely odd: an error that says what is wrong, or all of it.

use std::fmt::Write as _;
use std::io::Cursor;

use block::{Error, ErrorKind, Result};
use ext4_builder::tar::{Archive, Entry, Kind, Options};
use proptest::prelude::*;

const BLOCK: usize = 512;

/// A header of ustar with the type, name and size given; everything else is what it usually is.
fn header(type_flag: u8, name: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000001\0");
    block[116..124].copy_from_slice(b"0000002\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000003\0");
    block[156] = type_flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(block)
}

/// The header with the checksum that it should have.
fn seal(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A header and its data, filled up.
fn entry(type_flag: u8, name: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(type_flag, name, data.len() as u64);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn link(type_flag: u8, name: &str, target: &str, size: u64) -> Vec<u8> {
    let mut block = header(type_flag, name, size);
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    seal(block)
}

/// Records of an extended header, with the header in front.
fn extended(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let len = (rest.len()..rest.len() + 20)
            .find(|len| len - rest.len() == len.to_string().len())
            .expect("a length");
        let _ = write!(text, "{len}{rest}");
    }
    entry(b'x', "pax", text.as_bytes())
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// All entries with their data.
fn read_with(archive: &[u8], options: Options) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut archive = Archive::new(Cursor::new(archive), options);
    let mut entries = Vec::new();
    loop {
        let entry = match archive.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(entries),
            Err(error) => {
                // It stays.
                assert_eq!(archive.next_entry().unwrap_err().to_string(), error.to_string());
                return Err(error);
            }
        };
        let mut data = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            let len = archive.read_data(&mut buffer)?;
            if len == 0 {
                break;
            }
            data.extend_from_slice(&buffer[..len]);
        }
        if let Kind::File { size, data: ranges } = &entry.kind {
            let stored: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            assert_eq!(stored, data.len() as u64, "data is as long as its ranges");
            assert!(ranges.last().is_none_or(|range| range.end <= *size));
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        } else {
            assert!(data.is_empty(), "only files have data");
        }
        entries.push((entry, data));
    }
}

fn read(parts: &[Vec<u8>]) -> Result<Vec<(Entry, Vec<u8>)>> {
    read_with(&parts.concat(), Options::default())
}

fn fail(parts: &[Vec<u8>]) -> Error {
    match read(parts) {
        Ok(entries) => panic!("was read: {entries:?}"),
        Err(error) => error,
    }
}

fn paths(entries: &[(Entry, Vec<u8>)]) -> Vec<&str> {
    let paths = entries.iter().map(|(entry, _)| entry.path.as_slice());
    paths
        .map(|path| std::str::from_utf8(path).expect("UTF-8"))
        .collect()
}

/// A bit of everything.
fn specimen() -> Vec<u8> {
    let mut map = b"2\n0\n512\n4096\n3\n".to_vec();
    map.resize(BLOCK, 0);
    map.resize(2 * BLOCK, b'a');
    map.extend_from_slice(b"end");
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "5000"),
    ];
    let mut old_sparse = header(b'S', "old", 512);
    old_sparse[257..265].copy_from_slice(b"ustar  \0");
    old_sparse[386..398].copy_from_slice(b"00000010000\0");
    old_sparse[398..410].copy_from_slice(b"00000001000\0");
    old_sparse[483..495].copy_from_slice(b"00000100000\0");
    [
        entry(b'5', "d/", b""),
        entry(b'0', "d/file", b"some data"),
        extended(&[
            ("path", "d/other"),
            ("mtime", "1.5"),
            ("SCHILY.xattr.user.x", "y"),
        ]),
        entry(b'0', "other", &[7; 600]),
        entry(b'L', "././@LongLink", &[b'n'; 300]),
        entry(b'0', "n", b""),
        extended(&sparse),
        entry(b'0', "GNUSparseFile.1/s", &map),
        seal(old_sparse),
        vec![5; 512],
        link(b'1', "d/link", "d/file", 0),
        link(b'2', "d/symlink", "file", 0),
        end(),
    ]
    .concat()
}

#[test]
fn the_specimen_is_sound() {
    let entries = read(&[specimen()]).unwrap();
    assert_eq!(entries.len(), 8);
    assert_eq!(paths(&entries)[..3], ["d", "d/file", "d/other"]);
    assert_eq!(
        entries[4].0.kind,
        Kind::File {
            size: 5000,
            data: vec![0..512, 4096..4099]
        }
    );
    assert_eq!(entries[4].1, [&[b'a'; 512][..], b"end"].concat());
    assert_eq!(
        entries[5].0.kind,
        Kind::File {
            size: 32768,
            data: std::iter::once(4096..4608).collect()
        }
    );
}

#[test]
fn every_early_end_is_an_error() {
    let archive = specimen();
    // The first block of zeros marks the end, and the second one may be missing.
    for len in (0..archive.len() - BLOCK).chain(archive.len() - BLOCK + 1..archive.len()) {
        let error = read_with(&archive[..len], Options::default()).expect_err("an early end");
        assert!(matches!(error.kind(), ErrorKind::Corrupt), "{len} bytes: {error}");
    }
    read_with(&archive[..archive.len() - BLOCK], Options::default()).unwrap();
    let padded = [archive, vec![0; 9000]].concat();
    read_with(&padded, Options::default()).unwrap();
}

#[test]
fn a_missing_end_mark_may_be_allowed() {
    let options = Options {
        end_mark_optional: true,
        ..Options::default()
    };
    let file = entry(b'0', "file", b"some data");
    assert_eq!(read_with(&file, options.clone()).unwrap().len(), 1);
    read_with(&[file.clone(), vec![0; BLOCK]].concat(), options.clone()).unwrap();
    // All data is there, and nothing of what fills up its block.
    let data_end = BLOCK + b"some data".len();
    assert_eq!(
        read_with(&file[..data_end], options.clone()).unwrap()[0].1,
        b"some data"
    );
    for len in [data_end - 1, data_end + 1, file.len() - 1] {
        read_with(&file[..len], options.clone()).unwrap_err();
    }
    read_with(&[file, extended(&[("mtime", "1")])].concat(), options).unwrap_err();
}

#[test]
fn what_follows_the_end_is_an_error() {
    let file = entry(b'0', "file", b"");
    let error = fail(&[file.clone(), end(), file.clone(), end()]);
    assert!(error.to_string().contains("follows the mark"), "{error}");
    let error = fail(&[file.clone(), vec![0; BLOCK], file, end()]);
    assert!(error.to_string().contains("lone block"), "{error}");
}

#[test]
fn what_is_no_archive_is_called_so() {
    for bytes in [
        vec![b'x'; 5000],
        b"\x7fELF".repeat(300),
        b"PK\x03\x04".repeat(300),
    ] {
        let error = fail(&[bytes]);
        assert!(error.to_string().contains("no tar archive"), "{error}");
    }
}

#[test]
fn names_are_normalised() {
    let names = [".//a/./b", "./", "x//y/"];
    let parts: Vec<_> = names
        .map(|name| entry(b'5', name, b""))
        .into_iter()
        .chain([end()])
        .collect();
    assert_eq!(paths(&read(&parts).unwrap()), ["a/b", "", "x/y"]);
}

#[test]
fn names_that_lead_elsewhere_are_errors() {
    for name in ["..", "../x", "a/../b", "a/.."] {
        let error = fail(&[entry(b'0', name, b""), end()]);
        assert!(error.to_string().contains(&format!("entry {name:?}")), "{error}");
        assert!(error.to_string().contains("\"..\""), "{error}");
        fail(&[link(b'1', "link", name, 0), end()]);
    }
    let absolute = [entry(b'0', "/etc/x", b""), link(b'1', "l", "/etc/x", 0), end()];
    let error = fail(&absolute);
    assert!(error.to_string().contains("\"/etc/x\" is absolute"), "{error}");
    let options = Options {
        absolute_names: true,
        ..Options::default()
    };
    let entries = read_with(&absolute.concat(), options).unwrap();
    assert_eq!(paths(&entries), ["etc/x", "l"]);
    assert_eq!(
        entries[1].0.kind,
        Kind::HardLink {
            target: b"etc/x".to_vec()
        }
    );
    // Where a symbolic link leads is for who follows it.
    read(&[link(b'2', "s", "/../x", 0), end()]).unwrap();
    for nothing in ["", ".", "./"] {
        fail(&[entry(b'6', nothing, b""), end()]);
        fail(&[link(b'1', "link", nothing, 0), end()]);
    }
    fail(&[extended(&[("path", "a\0b")]), entry(b'0', "x", b""), end()]);
}

#[test]
fn what_would_be_lost_is_refused_by_name() {
    for (type_flag, text) in [
        (b'M', "multi-volume"),
        (b'N', "long names"),
        (b'A', "Solaris"),
        (b'8', "'8'"),
        (b'Z', "'Z'"),
    ] {
        let error = fail(&[entry(type_flag, "thing", b"data"), end()]);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains(text) && error.to_string().contains("\"thing\""),
            "{error}"
        );
    }
    for (key, value) in [
        ("SCHILY.acl.ace", "everyone@:r::allow"),
        ("GNU.volume.filename", "x"),
        ("SCHILY.realsize", "5"),
        ("hdrcharset", "KOI8-R"),
        ("GNU.sparse.major", "2"),
    ] {
        let error = fail(&[extended(&[(key, value)]), entry(b'0', "x", b""), end()]);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn labels_are_passed_over_and_dumps_are_directories() {
    let entries = read(&[
        entry(b'V', "label", b""),
        entry(b'D', "d/", b"Yfile\0\0"),
        entry(b'7', "c", b"x"),
        end(),
    ])
    .unwrap();
    assert_eq!(paths(&entries), ["d", "c"]);
    assert_eq!(
        (&entries[0].0.kind, &entries[1].1[..]),
        (&Kind::Directory, &b"x"[..])
    );
}

#[test]
fn a_size_without_data_is_told_from_one_with() {
    for type_flag in *b"123456" {
        let first = || link(type_flag, "first", "target", 600);
        let next = entry(b'0', "next", b"x");
        let without = read(&[first(), next.clone(), end()]).unwrap();
        let with = read(&[first(), vec![b'd'; 1024], next, end()]).unwrap();
        let last = read(&[first(), end()]).unwrap();
        assert_eq!((paths(&without), &without), (vec!["first", "next"], &with));
        assert_eq!(paths(&last), ["first"]);
    }
}

#[test]
fn old_checksums_of_signed_bytes_hold() {
    let mut block = header(b'0', "x", 0);
    block[..3].copy_from_slice(b"\xe9t\xe9");
    block[148..156].fill(b' ');
    let sum: i32 = block.iter().map(|&byte| i32::from(byte.cast_signed())).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(read(&[block.clone(), end()]).unwrap()[0].0.path, b"\xe9t\xe9");
    block[101] ^= 1;
    fail(&[block, end()]);
}

#[test]
fn the_format_of_star_has_times_and_a_shorter_prefix() {
    let mut block = header(b'0', "name", 0);
    block[345..351].copy_from_slice(b"prefix");
    block[476..488].copy_from_slice(b"00000000012 ");
    block[488..500].copy_from_slice(b"00000000013 ");
    block[508..512].copy_from_slice(b"tar\0");
    let entries = read(&[seal(block), end()]).unwrap();
    let entry = &entries[0].0;
    assert_eq!(entry.path, b"prefix/name");
    assert_eq!((entry.atime.unwrap().secs, entry.ctime.unwrap().secs), (10, 11));
}

#[test]
fn damaged_sparse_maps_are_errors() {
    let with_map = |map: &str| {
        let records = [
            ("GNU.sparse.size", "1000"),
            ("GNU.sparse.numblocks", "1"),
            ("GNU.sparse.map", map),
        ];
        read(&[extended(&records), entry(b'0', "x", &[1; 600]), end()])
    };
    assert_eq!(with_map("400,600").unwrap()[0].1.len(), 600);
    assert_eq!(with_map("0,512,900,88").unwrap()[0].1.len(), 600);
    // GNU tar and bsdtar differ in where the second piece would be.
    for map in [
        "401,600",
        "0,600,700,0,700,1",
        "0,100,200,500",
        "0,599",
        "0,700",
        "0",
        "500,512,0,88",
        "0,x",
        "18446744073709551615,600",
    ] {
        with_map(map).expect_err(map);
    }
}

#[test]
fn claims_of_size_cost_no_memory() {
    // Each claims far more than there is.
    for (type_flag, size) in [
        (b'L', 60 << 10),
        (b'x', 15 << 20),
        (b'g', 15 << 20),
        (b'0', 7 << 30),
    ] {
        let error = fail(&[header(type_flag, "x", size)]);
        assert!(error.to_string().contains("ends early"), "{error}");
    }
    for (type_flag, size) in [(b'L', 65 << 10), (b'x', 17 << 20), (b'g', 17 << 20)] {
        let error = fail(&[header(type_flag, "x", size)]);
        assert!(error.to_string().contains("more than"), "{error}");
    }
    for size in ["9223372036854775807", "18446744073709551615"] {
        let error = fail(&[extended(&[("size", size)]), entry(b'0', "x", b""), end()]);
        assert!(error.to_string().contains("more than"), "{error}");
    }
    // Headers of one entry add up, and so do global ones. Those of several entries do not.
    let text = format!("{} comment={}\n", 9_000_000, "c".repeat(9_000_000 - 17));
    let global = entry(b'g', "pax", text.as_bytes());
    read(&[global.clone(), end()]).unwrap();
    let error = fail(&[global.clone(), global, end()]);
    assert!(error.to_string().contains("more than"), "{error}");
    let local = entry(b'x', "pax", text.as_bytes());
    let file = entry(b'0', "x", b"");
    read(&[local.clone(), file.clone(), local.clone(), file.clone(), end()]).unwrap();
    let error = fail(&[local.clone(), local, file, end()]);
    assert!(error.to_string().contains("more than"), "{error}");
}

#[test]
fn a_path_has_no_more_parts_than_a_kernel_takes() {
    let deep = |parts: usize| "a/".repeat(parts);
    for key in ["path", "linkpath"] {
        let kind = if key == "path" { b'0' } else { b'1' };
        let error = fail(&[extended(&[(key, &deep(2048))]), entry(kind, "x", b""), end()]);
        assert!(error.to_string().contains("more than 2047 parts"), "{error}");
    }
    read(&[extended(&[("path", &deep(2047))]), entry(b'5', "x", b""), end()]).unwrap();
}

#[test]
fn the_number_that_means_no_id_is_no_owner() {
    let file = entry(b'0', "x", b"");
    for key in ["uid", "gid"] {
        read(&[extended(&[(key, "4294967294")]), file.clone(), end()]).unwrap();
        let error = fail(&[extended(&[(key, "4294967295")]), file.clone(), end()]);
        assert!(
            error.to_string().contains("4294967295, which is out of range"),
            "{error}"
        );
    }
}

fn any_entry() -> impl Strategy<Value = Vec<u8>> {
    let name = "[a-c./]{1,6}";
    let number = prop_oneof![Just(0_u64), 0..2000_u64, any::<u64>()];
    let key = prop::sample::select(vec![
        "path",
        "linkpath",
        "size",
        "mtime",
        "uid",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.size",
        "GNU.sparse.realsize",
        "GNU.sparse.map",
        "GNU.sparse.offset",
        "GNU.sparse.numbytes",
        "GNU.sparse.numblocks",
        "SCHILY.acl.access",
        "SCHILY.xattr.user.a",
        "LIBARCHIVE.xattr.user.b",
        "SCHILY.devmajor",
    ]);
    let value = prop_oneof![
        "[0-9]{0,4}",
        "[0-9,.-]{0,20}",
        "[a-z:,-]{0,30}",
        Just("user::rwx,group::r-x,other::---,mask::rwx,user:5:r--".to_owned()),
    ];
    let flag = prop::sample::select(b"01234567LKxgSDVM\0".to_vec());
    prop_oneof![
        (
            flag,
            name,
            prop::collection::vec(b"0123456789\n\0".to_vec().prop_index(), 0..1200)
        )
            .prop_map(|(flag, name, data)| entry(flag, &name, &data)),
        (name, number).prop_map(|(name, size)| header(b'0', &name, size & ((1 << 33) - 1))),
        prop::collection::vec((key, value), 0..6).prop_map(|records| {
            let records: Vec<_> = records
                .iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect();
            extended(&records)
        }),
        Just(vec![0; BLOCK]),
    ]
}

/// A byte out of a few.
trait PropIndex {
    fn prop_index(self) -> prop::sample::Select<u8>;
}

impl PropIndex for Vec<u8> {
    fn prop_index(self) -> prop::sample::Select<u8> {
        prop::sample::select(self)
    }
}

proptest! {
    #[test]
    fn any_sequence_of_entries_is_read_or_refused(parts in prop::collection::vec(any_entry(), 0..8)) {
        let archive = [parts.concat(), end()].concat();
        let _ = read_with(&archive, Options { absolute_names: true, ..Options::default() });
    }

    #[test]
    fn flipped_bits_are_read_or_refused(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4), sealed: bool) {
        let mut archive = specimen();
        for (index, bit) in flips {
            let index = index.index(archive.len());
            archive[index] ^= 1 << bit;
            if sealed {
                // As somebody would who means harm.
                let start = index / BLOCK * BLOCK;
                let block = seal(archive[start..start + BLOCK].to_vec());
                archive[start..start + BLOCK].copy_from_slice(&block);
            }
        }
        let _ = read_with(&archive, Options::default());
    }
}
