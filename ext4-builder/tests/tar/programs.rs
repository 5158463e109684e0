//! Archives that other programs make of a tree with all hard cases: what is read equals what they extract.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use ext4_builder::tar::{Archive, Kind, Names, Options};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, setxattr, utimensat,
};
use tempfile::TempDir;

use crate::tree::{assert_same, of_archive, of_directory};

/// How much of a tree a format can hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hardness {
    V7,
    Ustar,
    Any,
}

fn set_times(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec {
        tv_sec: secs,
        tv_nsec: nanos,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
}

fn make_tree(root: &Path, hardness: Hardness) {
    fs::create_dir(root).expect("mkdir");
    let at = |name: &str| root.join(name);
    for len in [0, 1, 511, 512, 513, 300_000] {
        let bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();
        fs::write(at(&format!("file{len}")), bytes).expect("write");
    }
    fs::write(root.join(OsStr::from_bytes(b"not \xff\xfe UTF-8")), b"bytes").expect("write");
    fs::write(at("new\nline = %25 \\ é"), b"").expect("write");
    fs::create_dir_all(at("deep/er")).expect("mkdir");
    fs::write(at("deep/er/inside"), b"here").expect("write");
    symlink("deep/er/inside", at("link")).expect("symlink");
    lchown(at("link"), Some(12), Some(13)).expect("chown");
    fs::hard_link(at("file513"), at("deep/again")).expect("link");
    lchown(at("file512"), Some(1_000_000), Some(2_000_000)).expect("chown");
    run(Command::new("chmod").arg("6711").arg(at("file511")));
    run(Command::new("chmod").arg("1777").arg(at("deep")));
    run(Command::new("chmod").arg("0").arg(at("file1")));

    if hardness >= Hardness::Ustar {
        mknodat(
            CWD,
            at("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(1, 3),
        )
        .expect("mknod");
        mknodat(
            CWD,
            at("disk"),
            FileType::BlockDevice,
            Mode::from_raw_mode(0o600),
            makedev(259, 70_000),
        )
        .expect("mknod");
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("mknod");
        let long = at(&"d".repeat(90)).join("e".repeat(50));
        fs::create_dir_all(&long).expect("mkdir");
        fs::write(long.join("f".repeat(99)), b"in the prefix").expect("write");
    }
    if hardness == Hardness::Any {
        let long = at(&"x".repeat(255)).join("y".repeat(254));
        fs::create_dir_all(&long).expect("mkdir");
        fs::write(long.join("z".repeat(255)), b"far down").expect("write");
        symlink("t".repeat(300), at("long link")).expect("symlink");
        fs::hard_link(long.join("z".repeat(255)), long.join("another")).expect("link");
        fs::hard_link(at("long link"), at("long link too")).expect("link");
        lchown(at("file512"), Some(4_000_000_000), Some(3_000_000_000)).expect("chown");
        set_times(&at("file0"), -86_400, 0);
        set_times(&at("file513"), 10_000_000_000, 0);
    }
    // With fractions, which the older formats cut off, and so does what extracts them.
    set_times(&at("file512"), 1_700_000_000, 123_456_789);
    set_times(&at("link"), 1_600_000_000, 1);
    set_times(&at("deep"), 1_500_000_000, 999_999_999);
    set_times(root, 1_400_000_000, 0);
}

/// Adds what only pax headers hold: attributes of all namespaces, access control lists, negative fractions.
fn add_metadata(root: &Path) {
    let at = |name: &str| root.join(name);
    let set = |file: &str, name: &str, value: &[u8]| {
        setxattr(at(file), name, value, XattrFlags::empty()).expect("set attribute");
    };
    let binary: Vec<u8> = (0..=255).collect();
    set("file1", "user.binary", &binary);
    set("file1", "user.lines", b"a\n10 path=x\n");
    set("file1", "user.empty", b"");
    set("file1", "user.a=b%25c%3D", b"name");
    set("file1", "user.big", &[b'v'; 3000]);
    set("file512", "trusted.overlay.opaque", b"y");
    set("deep", "user.of.directory", b"d");
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    set("file511", "security.capability", capability);
    let acl = "user:daemon:rwx,user:4242:r,user:7:rw,group:adm:r,group:70000:x";
    run(Command::new("setfacl").args(["-m", acl]).arg(at("file300000")));
    run(Command::new("setfacl").args(["-m", acl]).arg(at("deep/er")));
    run(Command::new("setfacl").args(["-d", "-m", acl]).arg(at("deep/er")));
    set_times(&at("file0"), -2, 250_000_000);
    set_times(&at("deep/er"), 1, 5);
}

pub(crate) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}

fn host_names() -> Options {
    let read = |path| fs::read(path).expect("read the names of users and groups");
    Options {
        names: Names::new(&read("/etc/passwd"), &read("/etc/group")),
        ..Options::default()
    }
}

/// Has a program make an archive of `source` and extract it, and compares that with what is read of it.
fn judge(scratch: &Path, name: &str, make: &mut Command, extract: &mut Command) {
    let archive = scratch.join(format!("{name}.tar"));
    let target = scratch.join(format!("{name}.extracted"));
    fs::create_dir(&target).expect("mkdir");
    run(make
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(scratch.join("source"))
        .arg("."));
    run(extract.arg("-xpf").arg(&archive).arg("-C").arg(&target));
    let tree = of_archive(File::open(&archive).expect("open"), host_names());
    let tree = tree.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(tree.len() > 10, "{name}: a tree of {}", tree.len());
    let mut extracted = of_directory(&target);
    if extract.get_program() == "bsdtar" {
        // It does not restore the times of a directory that was there before, and comparing with itself proves
        // nothing, so GNU tar is the one that judges the root.
        extracted.get_mut(&b""[..]).expect("root").mtime = tree[&b""[..]].mtime;
    }
    assert_same(&tree, &extracted, name);
}

fn gnu_tar(format: &str) -> Command {
    let mut command = Command::new("tar");
    command.arg(format!("--format={format}"));
    command
}

fn gnu_extract() -> Command {
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]);
    command
}

fn bsdtar(format: &str) -> Command {
    let mut command = Command::new("bsdtar");
    command.arg(format!("--format={format}"));
    command
}

fn scratch(hardness: Hardness) -> TempDir {
    let scratch = tempfile::tempdir().expect("temporary directory");
    make_tree(&scratch.path().join("source"), hardness);
    scratch
}

#[test]
fn gnu_tar_in_its_formats() {
    for (format, hardness) in [
        ("v7", Hardness::V7),
        ("oldgnu", Hardness::Any),
        ("gnu", Hardness::Any),
        ("ustar", Hardness::Ustar),
        ("posix", Hardness::Any),
    ] {
        let scratch = scratch(hardness);
        judge(scratch.path(), format, &mut gnu_tar(format), &mut gnu_extract());
    }
}

#[test]
fn bsdtar_in_its_formats() {
    for (format, hardness) in [
        ("v7", Hardness::V7),
        ("gnutar", Hardness::Any),
        ("ustar", Hardness::Ustar),
        ("pax", Hardness::Any),
        ("paxr", Hardness::Any),
    ] {
        let scratch = scratch(hardness);
        judge(
            scratch.path(),
            format,
            &mut bsdtar(format),
            &mut Command::new("bsdtar"),
        );
    }
}

#[test]
fn times_that_python_writes_with_an_exponent() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let archive = directory.path().join("archive");
    let script = "import sys, tarfile
archive = tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT)
for number, time in enumerate([-9.9e-10, 9.9e-10, 2.5e-06, -2.5e-06, 1e16]):
    entry = tarfile.TarInfo(str(number))
    entry.mtime = time
    archive.addfile(entry)
archive.close()";
    run(Command::new("python3").args(["-c", script]).arg(&archive));
    let text = fs::read(&archive).expect("read");
    assert!(text.windows(15).any(|text| text == b"mtime=-9.9e-10\n"));
    let tree = of_archive(File::open(&archive).expect("open"), Options::default()).expect("an archive");
    let times: Vec<_> = tree.values().map(|node| node.mtime).collect();
    let expected = [
        (-1, 999_999_999),
        (0, 0),
        (0, 2500),
        (-1, 999_997_500),
        (10_000_000_000_000_000, 0),
    ];
    assert_eq!(times, expected);
}

#[test]
fn attributes_and_access_control_lists() {
    let scratch = scratch(Hardness::Any);
    let source = scratch.path().join("source");
    add_metadata(&source);
    let mut original = of_directory(&source);
    let mut gnu = gnu_tar("posix");
    gnu.args(["--xattrs", "--xattrs-include=*", "--acls"]);
    judge(scratch.path(), "gnu", &mut gnu, &mut gnu_extract());

    // As mmdebstrap calls it.
    let mut mmdebstrap = gnu_tar("pax");
    mmdebstrap.args([
        "--numeric-owner",
        "--xattrs",
        "--xattrs-include=*",
        "--one-file-system",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    ]);
    // With --acls, GNU tar would not look at the lists that came as attributes.
    let mut extract = Command::new("tar");
    extract.args(["--xattrs", "--xattrs-include=*", "--numeric-owner"]);
    judge(scratch.path(), "mmdebstrap", &mut mmdebstrap, &mut extract);

    // bsdtar itself reads attributes with odd names twice, under two names. Its times before 1970 with a fraction
    // are off by up to two seconds for everyone else.
    set_times(&source.join("file0"), -2, 0);
    set_times(&source, 1_400_000_000, 0);
    let archive = scratch.path().join("bsd.tar");
    run(bsdtar("pax")
        .args(["--xattrs", "--acls", "-cf"])
        .arg(&archive)
        .arg("-C")
        .arg(&source)
        .arg("."));

    // Nothing was lost on the way: what each wrote is what there was.
    for name in ["gnu", "mmdebstrap", "bsd"] {
        let archive = File::open(scratch.path().join(format!("{name}.tar"))).expect("open");
        let tree = of_archive(archive, host_names()).unwrap_or_else(|error| panic!("{name}: {error}"));
        if name == "bsd" {
            original.get_mut(&b"file0"[..]).expect("file0").mtime = (-2, 0);
        }
        assert_same(&tree, &original, name);
    }
}

#[test]
fn sparse_files_in_all_formats() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let source = scratch.path().join("source");
    make_tree(&source, Hardness::Any);
    let file = File::create(source.join("many pieces")).expect("create");
    for piece in 0..300_u64 {
        file.write_all_at(&[(piece % 255) as u8 + 1; 4096], piece * 65536)
            .expect("write");
    }
    file.write_all_at(b"the end", 300 * 65536).expect("write");
    file.set_len(30 << 20).expect("truncate");
    File::create(source.join("hole"))
        .expect("create")
        .set_len(20 << 20)
        .expect("truncate");
    let file = File::create(source.join("x".repeat(150))).expect("create");
    file.write_all_at(&[1; 5000], 1 << 20).expect("write");

    let mut makers = vec![
        ("old".to_owned(), gnu_tar("gnu")),
        ("bsd".to_owned(), bsdtar("pax")),
    ];
    makers[0].1.arg("--sparse");
    for version in ["0.0", "0.1", "1.0"] {
        let mut command = gnu_tar("posix");
        command.args(["--sparse", &format!("--sparse-version={version}")]);
        makers.push((version.to_owned(), command));
    }
    for (name, mut make) in makers {
        let mut extract = if name == "bsd" {
            Command::new("bsdtar")
        } else {
            gnu_extract()
        };
        judge(scratch.path(), &name, &mut make, &mut extract);
        let archive = File::open(scratch.path().join(format!("{name}.tar"))).expect("open");
        let mut archive = Archive::new(archive, host_names());
        let mut pieces = 0;
        while let Some(entry) = archive.next_entry().expect("next entry") {
            let Kind::File { size, data } = entry.kind else {
                continue;
            };
            match entry.path.as_slice() {
                b"hole" => assert_eq!((size, data), (20 << 20, vec![]), "{name}"),
                b"many pieces" => {
                    assert!(
                        data.iter().all(|range| range.end - range.start <= 4096),
                        "{name}: {data:?}"
                    );
                    pieces = data.len();
                }
                _ => {}
            }
        }
        assert_eq!(pieces, 301, "{name}");
    }
}

/// Runs a script that writes an archive to its first argument.
fn python_archive(scratch: &Path, script: &str) -> File {
    let path = scratch.join("python.tar");
    run(Command::new("python3").arg("-c").arg(script).arg(&path));
    File::open(path).expect("open")
}

#[test]
fn pythons_archives_with_odd_numbers() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    for format in ["GNU_FORMAT", "PAX_FORMAT"] {
        let script = format!(
            r#"
import io, os, sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.{format}) as archive:
    def add(name, **fields):
        entry = tarfile.TarInfo(name)
        for key, value in fields.items(): setattr(entry, key, value)
        archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    add("old", mtime=-5_000_000_000, size=3)
    add("owned", uid=4_294_967_294, gid=2**31, mode=0o4755, size=512)
    add(os.fsdecode(b"bytes \xff\xfe" + b"y" * 230), size=1)
    add("contiguous", type=tarfile.CONTTYPE, size=600)
    add("device", type=tarfile.CHRTYPE, devmajor=4095, devminor=1048575)
    add("sub", type=tarfile.DIRTYPE, mode=0o755)
    add("sub/link", type=tarfile.SYMTYPE, linkname="l" * 200)
    add("sub/again", type=tarfile.LNKTYPE, linkname="./owned")
"#
        );
        let archive = python_archive(scratch.path(), &script);
        let extracted = scratch.path().join(format);
        fs::create_dir(&extracted).expect("mkdir");
        run(gnu_extract()
            .arg("-xpf")
            .arg(scratch.path().join("python.tar"))
            .arg("-C")
            .arg(&extracted));
        // Neither holds the root, and the kernel keeps no times before 1901.
        let mut theirs = of_directory(&extracted);
        theirs.remove(&b""[..]);
        let mut ours = of_archive(archive, Options::default()).expect(format);
        assert_eq!(ours[&b"old"[..]].mtime, (-5_000_000_000, 0), "{format}");
        ours.get_mut(&b"old"[..]).expect("old").mtime = theirs[&b"old"[..]].mtime;
        assert_same(&ours, &theirs, format);
    }
}

#[test]
fn global_headers_hold_until_overridden() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let script = r#"
import sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT,
                  pax_headers={"mtime": "77.5", "SCHILY.xattr.user.all": "every", "comment": "none"}) as archive:
    for name, records in (("first", {}), ("second", {"mtime": "-1.25", "SCHILY.xattr.user.all": "one",
                          "RHT.security.selinux": "a:b:c", "LIBARCHIVE.creationtime": "3.000000001",
                          "atime": "5", "ctime": "6.7"}), ("third", {})):
        entry = tarfile.TarInfo(name)
        entry.pax_headers = records
        archive.addfile(entry)
"#;
    let mut archive = Archive::new(python_archive(scratch.path(), script), Options::default());
    let mut seen = Vec::new();
    while let Some(entry) = archive.next_entry().expect("next entry") {
        let xattrs: Vec<String> = entry
            .xattrs
            .iter()
            .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()))
            .collect();
        let times = [Some(entry.mtime), entry.atime, entry.ctime, entry.created];
        let times =
            times.map(|time| time.map_or(String::new(), |time| format!("{}+{}", time.secs, time.nanos)));
        seen.push(format!(
            "{} {} {}",
            entry.path.escape_ascii(),
            times.join(","),
            xattrs.join(",")
        ));
    }
    assert_eq!(
        seen,
        [
            "first 77+500000000,,, user.all=every",
            "second -2+750000000,5+0,6+700000000,3+1 security.selinux=a:b:c\\x00,user.all=one",
            "third 77+500000000,,, user.all=every",
        ]
    );
}

#[test]
fn access_and_change_times_of_incremental_dumps() {
    let scratch = scratch(Hardness::Any);
    let mut make = gnu_tar("gnu");
    make.arg("--listed-incremental")
        .arg(scratch.path().join("snapshot"));
    let archive = scratch.path().join("dump.tar");
    let source = scratch.path().join("source");
    let wanted = of_directory(&source);
    run(make.arg("-cf").arg(&archive).arg("-C").arg(&source).arg("."));
    let tree = of_archive(File::open(&archive).expect("open"), host_names()).expect("read");
    // Seconds are all that this format has.
    let whole_seconds = |tree: crate::tree::Tree| -> crate::tree::Tree {
        tree.into_iter()
            .map(|(name, mut node)| {
                node.mtime.1 = 0;
                (name, node)
            })
            .collect()
    };
    assert_same(&tree, &whole_seconds(wanted), "dump");
    let mut archive = Archive::new(File::open(&archive).expect("open"), host_names());
    while let Some(entry) = archive.next_entry().expect("next entry") {
        assert!(
            entry.atime.is_some() && entry.ctime.is_some(),
            "{:?}",
            entry.path.escape_ascii()
        );
    }
}
