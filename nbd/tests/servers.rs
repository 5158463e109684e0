//! Against other people's servers: nbdkit and qemu-nbd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use block::{Access, ErrorKind, Storage, ZeroMode};
use nbd::{Address, Export, Server};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A server in the background, ended with the test.
struct Running {
    directory: TempDir,
    socket: PathBuf,
}

impl Running {
    /// Runs `program` with what `arguments` gives for its socket, its pid file, and the directory of both.
    fn start(program: &str, arguments: impl FnOnce(&Path, &Path, &Path) -> Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (socket, pid) = (directory.path().join("socket"), directory.path().join("pid"));
        let arguments = arguments(&socket, &pid, directory.path());
        let output = Command::new(program).args(&arguments).output();
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error} (scripts/setup.sh test installs it)"));
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        Self { directory, socket }
    }

    /// nbdkit with these arguments: it goes to the background when it is ready.
    fn nbdkit(arguments: &[&str]) -> Self {
        Self::start("nbdkit", |socket, pid, _| {
            let mut all = vec!["-U".to_owned(), text(socket), "-P".to_owned(), text(pid)];
            all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
            all
        })
    }

    /// qemu-nbd of a new qcow2 image of 64 MiB.
    fn qemu_nbd(options: &[&str]) -> Self {
        Self::start("qemu-nbd", |socket, pid, directory| {
            let image = text(&directory.join("disk.qcow2"));
            run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"]);
            let mut all = vec!["--fork", "-t", "-f", "qcow2", "-k"];
            let (socket, pid) = (text(socket), text(pid));
            all.extend([socket.as_str(), "--pid-file", pid.as_str()]);
            all.extend(options);
            all.push(&image);
            all.into_iter().map(ToOwned::to_owned).collect()
        })
    }

    fn address(&self, export: &str) -> Address {
        Address::new(Server::Unix(self.socket.clone()), export.to_owned(), "nbd:test").unwrap()
    }

    fn open(&self) -> Export {
        Export::open(&self.address(""), Access::WRITE).unwrap()
    }

    fn pid(&self) -> String {
        fs::read_to_string(self.directory.path().join("pid"))
            .unwrap()
            .trim()
            .to_owned()
    }

    fn stop(&self) {
        run("kill", &["-9", &self.pid()]);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have been stopped by the test.
        let _ = Command::new("kill").arg(self.pid()).output();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

fn read(storage: &dyn Storage, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    storage.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Writes, zeroes and discards at odd places, and compares with the same done to memory.
fn exercise(export: &Export) {
    let size = export.len().unwrap();
    let mut model = vec![0; size as usize];
    export.zero(0, size, ZeroMode::Unmap).unwrap();
    for (seed, offset, len) in [
        (1, 0, 4096),
        (2, 777, 12_345),
        (3, 5 * MIB - 3, 70_001),
        (4, size - 513, 513),
    ] {
        let bytes = pattern(len, seed);
        export.write_all_at(&bytes, offset).unwrap();
        model[offset as usize..][..len].copy_from_slice(&bytes);
    }
    for (offset, len, mode) in [(1000, 5000, ZeroMode::Unmap), (5 * MIB, 1001, ZeroMode::Allocate)] {
        export.zero(offset, len, mode).unwrap();
        model[offset as usize..][..len as usize].fill(0);
    }
    export.sync_data().unwrap();
    let chunk = 3 * MIB as usize + 17;
    for offset in (0..model.len()).step_by(chunk) {
        let len = chunk.min(model.len() - offset);
        assert!(
            read(export, offset as u64, len) == model[offset..][..len],
            "at {offset}"
        );
    }
    let past = read(export, size - 4, 8);
    assert_eq!((&past[..4], &past[4..]), (&model[model.len() - 4..], &[0; 4][..]));
}

/// The runs of the export, joined where they are alike.
fn runs(export: &Export) -> Vec<(u64, bool)> {
    let (size, mut offset, mut runs) = (export.len().unwrap(), 0, Vec::<(u64, bool)>::new());
    while offset < size {
        let extent = export.host_extent(offset, size - offset).unwrap();
        assert!(extent.len > 0 && offset + extent.len <= size);
        match runs.last_mut() {
            Some(last) if last.1 == extent.data => last.0 += extent.len,
            _ => runs.push((extent.len, extent.data)),
        }
        offset += extent.len;
    }
    runs
}

#[test]
fn nbdkit_gives_back_what_it_was_given() {
    exercise(&Running::nbdkit(&["memory", "20M"]).open());
}

#[test]
fn what_qemu_nbd_was_given_is_in_its_image() {
    let server = Running::qemu_nbd(&["-e", "8"]);
    exercise(&server.open());
    let bytes = pattern(100_000, 9);
    let export = server.open();
    export.write_all_at(&bytes, 40 * MIB).unwrap();
    export.sync_data().unwrap();
    drop(export);
    server.stop();
    let (image, raw) = (
        server.directory.path().join("disk.qcow2"),
        server.directory.path().join("raw"),
    );
    run("qemu-img", &["convert", "-O", "raw", &text(&image), &text(&raw)]);
    let raw = fs::read(raw).unwrap();
    assert!(raw[40 * MIB as usize..][..bytes.len()] == bytes[..]);
}

#[test]
fn a_server_that_insists_on_whole_blocks_gets_them() {
    for server in [
        Running::nbdkit(&[
            "--filter=blocksize-policy",
            "memory",
            "20M",
            "blocksize-minimum=4096",
            "blocksize-maximum=1M",
            "blocksize-error-policy=error",
        ]),
        // It tells no block sizes, no zeroes, no trimming and no several connections.
        Running::nbdkit(&[
            "--filter=nozero",
            "--filter=multi-conn",
            "memory",
            "20M",
            "multi-conn-mode=disable",
        ]),
        Running::nbdkit(&["--no-sr", "memory", "20M"]),
    ] {
        exercise(&server.open());
    }
}

#[test]
fn holes_are_known_without_reading() {
    let server = Running::qemu_nbd(&[]);
    let export = server.open();
    assert_eq!(runs(&export), [(64 * MIB, false)]);
    export.write_all_at(&pattern(65536, 1), 8 * MIB).unwrap();
    export.write_all_at(&pattern(65536, 1), 64 * MIB - 65536).unwrap();
    let expected = [
        (8 * MIB, false),
        (65536, true),
        (56 * MIB - 2 * 65536, false),
        (65536, true),
    ];
    assert_eq!(runs(&export), expected);
    let inside = export.host_extent(8 * MIB + 1000, 10).unwrap();
    assert_eq!((inside.len, inside.data), (10, true));
    // A server without structured replies tells of no holes.
    let export = Running::nbdkit(&["--no-sr", "memory", "1M"]).open();
    assert_eq!(runs(&export), [(MIB, true)]);
}

#[test]
fn a_huge_export_is_asked_in_parts() {
    let server = Running::nbdkit(&["memory", "6E"]);
    let export = server.open();
    export.write_all_at(b"far out", (5 << 60) + 3).unwrap();
    assert_eq!(read(&export, (5 << 60) + 2, 9), b"\0far out\0");
    export
        .zero((5 << 60) - (3 << 30), 4 << 30, ZeroMode::Unmap)
        .unwrap();
    assert_eq!(read(&export, (5 << 60) + 2, 9), [0; 9]);
    export.discard(0, 5 << 30).unwrap();
}

#[test]
fn threads_share_the_connections() {
    for server in [
        Running::nbdkit(&["memory", "20M"]),
        Running::nbdkit(&["--filter=multi-conn", "memory", "20M", "multi-conn-mode=disable"]),
    ] {
        let export = server.open();
        std::thread::scope(|scope| {
            for thread in 0..8_u8 {
                let export = &export;
                scope.spawn(move || {
                    for round in 0..20 {
                        let bytes = pattern(60_000, thread ^ round);
                        let offset = u64::from(thread) * 2 * MIB + u64::from(round);
                        export.write_all_at(&bytes, offset).unwrap();
                        assert!(read(export, offset, bytes.len()) == bytes);
                    }
                });
            }
        });
    }
}

#[test]
fn a_refused_request_is_an_error_and_the_next_is_none() {
    let server = Running::nbdkit(&[
        "--filter=error",
        "memory",
        "1M",
        "error=ENOSPC",
        "error-pwrite-rate=100%",
    ]);
    let export = server.open();
    let error = export.write_all_at(&[1; 512], 1024).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::NoSpace, Some(1024)));
    assert_eq!(read(&export, 1024, 4), [0; 4]);
    let server = Running::nbdkit(&[
        "--filter=error",
        "memory",
        "1M",
        "error=EIO",
        "error-pread-rate=100%",
    ]);
    let error = server.open().read_exact_at(&mut [0; 512], 512).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Io, Some(512)));
}

#[test]
fn a_server_that_has_gone_fails_everything_after() {
    let server = Running::nbdkit(&["memory", "1M"]);
    let export = server.open();
    export.write_all_at(&[1; 512], 0).unwrap();
    server.stop();
    let first = export.sync_data().unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Io);
    let second = export.read_exact_at(&mut [0; 512], 0).unwrap_err();
    assert_eq!(second.to_string(), first.to_string());
}

#[test]
fn an_export_for_reading_is_not_written_to() {
    let server = Running::nbdkit(&["-r", "memory", "1M"]);
    let error = Export::open(&server.address(""), Access::WRITE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let export = Export::open(&server.address(""), Access::READ).unwrap();
    assert_eq!(read(&export, 0, 2), [0; 2]);
    let refusals = [
        export.write_all_at(&[1], 0),
        export.zero(0, 1, ZeroMode::Unmap),
        export.discard(0, 1),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
}

#[test]
fn the_end_of_an_export_is_told() {
    let server = Running::nbdkit(&["memory", "1000001"]);
    let export = server.open();
    exercise_end(&export, 1_000_001);
    let error = export.write_all_at(&[1; 2], 1_000_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(export.set_len(5).unwrap_err().kind(), ErrorKind::Unsupported);
    export.set_len(1_000_001).unwrap();
}

fn exercise_end(export: &Export, size: u64) {
    assert_eq!(export.len().unwrap(), size);
    export.write_all_at(&[7; 3], size - 3).unwrap();
    assert_eq!(read(export, size - 4, 6), [0, 7, 7, 7, 0, 0]);
    let past = export.host_extent(size, 10).unwrap();
    assert_eq!((past.len, past.data), (10, false));
}

#[test]
fn an_export_by_name_is_that_or_an_error() {
    let server = Running::qemu_nbd(&["-x", "disk one"]);
    assert!(Export::open(&server.address("disk one"), Access::READ).is_ok());
    let error = Export::open(&server.address("other"), Access::READ).unwrap_err();
    assert!(
        error.to_string().contains("does not have the export 'other'"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("nbdinfo --list"));
}

#[test]
fn a_server_that_wants_tls_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("keys.psk");
    fs::write(
        &keys,
        "alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n",
    )
    .unwrap();
    let server = Running::nbdkit(&[
        "--tls=require",
        &format!("--tls-psk={}", text(&keys)),
        "memory",
        "1M",
    ]);
    let error = Export::open(&server.address(""), Access::READ).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[test]
fn an_old_server_is_refused_with_its_reason() {
    let server = Running::nbdkit(&["-o", "memory", "1M"]);
    let error = Export::open(&server.address(""), Access::READ).unwrap_err();
    assert!(error.to_string().contains("oldstyle"), "{error}");
}

#[test]
fn a_socket_that_is_not_there_is_told() {
    let address = Address::parse("nbd+unix:///x?socket=/nonexistent/socket").unwrap();
    let error = Export::open(&address, Access::READ).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::NotFound));
    assert!(error.to_string().contains("/nonexistent/socket"), "{error}");
}
