//! Compressed archives, as the programs make them.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use block::ErrorKind;
use ext4_builder::tar::{Options, decompress};

use crate::tree::{NodeKind, of_archive};

/// What a program makes of its input.
fn filter(program: &str, input: &[u8]) -> Vec<u8> {
    let mut words = program.split(' ');
    let mut child = Command::new(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("write"));
        child.wait_with_output().expect("wait")
    });
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// An archive of one file of `len` bytes that compress, but not to nothing.
pub(crate) fn archive(len: usize) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut state = 1_u32;
    let bytes: Vec<u8> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 29) as u8
        })
        .collect();
    std::fs::write(directory.path().join("file"), bytes).expect("write");
    let path = directory.path().join("file");
    let output = Command::new("tar")
        .arg("-cC")
        .arg(directory.path())
        .arg("file")
        .output();
    let archive = output.expect("tar").stdout;
    assert!(archive.len() > len, "{}", path.display());
    archive
}

/// A reader that gives a byte or a few at a time, as a slow pipe does.
struct Slow(std::io::Cursor<Vec<u8>>, usize);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let len = buffer.len().min(self.1);
        self.0.read(&mut buffer[..len])
    }
}

fn read_all(bytes: Vec<u8>) -> block::Result<Vec<u8>> {
    let mut all = Vec::new();
    match decompress(std::io::Cursor::new(bytes))?.read_to_end(&mut all) {
        Ok(_) => Ok(all),
        Err(error) => Err(error.downcast().expect("an error of ours")),
    }
}

#[test]
fn what_the_programs_compress_is_read() {
    let plain = archive(1_500_000);
    for program in [
        "cat",
        "gzip",
        "gzip -1",
        "zstd",
        "zstd --no-check",
        "zstd -3 --long=27",
        "xz -1",
        "xz -1 --block-size=100000 --check=sha256",
        "xz -0 --x86 --lzma2",
    ] {
        let compressed = filter(program, &plain);
        assert!(read_all(compressed.clone()).expect(program) == plain, "{program}");
        let tree = of_archive(Slow(std::io::Cursor::new(compressed), 0), Options::default()).expect(program);
        assert!(matches!(&tree[&b"file"[..]].kind, NodeKind::File(bytes) if bytes.0.len() == 1_500_000));
    }
}

#[test]
fn several_streams_are_one() {
    let plain = archive(100_000);
    let (first, second) = plain.split_at(40_000);
    for (program, padding) in [
        ("gzip", vec![]),
        ("gzip", vec![0; 1000]),
        ("zstd", vec![]),
        ("zstd", b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec()),
        ("xz", vec![]),
        ("xz", vec![0; 8]),
    ] {
        let bytes = [filter(program, first), filter(program, second), padding].concat();
        assert!(read_all(bytes).expect(program) == plain, "{program}");
    }
}

#[test]
fn every_early_end_is_an_error() {
    let plain = archive(3000);
    for program in ["gzip", "zstd", "xz"] {
        let compressed = filter(program, &plain);
        // The first bytes are what tells how it is compressed.
        for len in 6..compressed.len() {
            let error = read_all(compressed[..len].to_vec()).expect_err(program);
            assert_eq!(
                error.kind(),
                ErrorKind::Corrupt,
                "{program}, {len} bytes: {error}"
            );
            assert!(
                error.to_string().contains("ends early"),
                "{program}, {len} bytes: {error}"
            );
        }
        for len in 0..6 {
            let archive = std::io::Cursor::new(compressed[..len].to_vec());
            assert!(
                of_archive(archive, Options::default()).is_err(),
                "{program}, {len} bytes"
            );
        }
    }
}

#[test]
fn damage_and_garbage_are_errors() {
    let plain = archive(3000);
    for program in ["gzip", "zstd", "xz"] {
        let compressed = filter(program, &plain);
        for garbage in [&b"x"[..], b"garbage that follows"] {
            let error = read_all([&compressed[..], garbage].concat()).expect_err(program);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{program}: {error}");
            // A few bytes may be the first ones of another stream of xz.
            if program != "xz" || garbage.len() > 12 {
                assert!(!error.to_string().contains("ends early"), "{program}: {error}");
            }
        }
        let mut damaged = compressed.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x10;
        let error = read_all(damaged).expect_err(program);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{program}: {error}");
    }
}

#[test]
fn other_compressions_are_named() {
    let plain = archive(3000);
    for program in ["bzip2", "lz4", "xz --format=lzma"] {
        let compressed = filter(program, &plain);
        let error = read_all(compressed).expect_err(program);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{program}: {error}");
        let name = program.split("--format=").last().expect("a name");
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("-dc")), "{error}");
    }
}

#[test]
fn a_name_that_looks_like_a_magic_is_no_compression() {
    let directory = tempfile::tempdir().expect("temporary directory");
    std::fs::write(directory.path().join("BZh91AY"), b"").expect("write");
    let output = Command::new("tar")
        .arg("-cC")
        .arg(directory.path())
        .arg("BZh91AY")
        .output();
    let archive = std::io::Cursor::new(output.expect("tar").stdout);
    assert_eq!(of_archive(archive, Options::default()).expect("read").len(), 1);
}

#[test]
fn a_reader_that_stops_early_leaves_nothing_behind() {
    /// Zeros, and a channel's end that is closed when nobody reads them any more.
    struct Endless {
        _alive: std::sync::mpsc::Sender<()>,
    }
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(0);
            Ok(buffer.len())
        }
    }
    let compressed = filter("gzip -1", &vec![0; 20 << 20]);
    let (alive, ended) = std::sync::mpsc::channel();
    let input = std::io::Cursor::new(compressed).chain(Endless { _alive: alive });
    let mut reader = decompress(input).expect("decompress");
    reader.read_exact(&mut [0; 1000]).expect("read");
    drop(reader);
    // The input is dropped with the thread.
    assert!(ended.recv().is_err());
}
