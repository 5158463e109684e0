//! Filesystems made of container images, compared with what umoci and skopeo make of these.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use block::test_utils::Rng;
use block::{Error, ErrorKind, MemStorage, Result, Storage};
use ext4_builder::oci::{self, Platform, Reference};
use ext4_builder::source::{Control, Filter, copy_image};
use ext4_builder::{Builder, Summary};
use tempfile::TempDir;

use crate::directories::{PYTHON, compare, fit, hard_tree};
use crate::image::{Image, succeed};

fn open(name: &str, platform: Option<&str>) -> Result<oci::Image> {
    let reference = Reference::parse(OsStr::new(name))?.expect("the name of an image");
    let platform: Option<Platform> = platform.map(|text| text.parse().expect("platform"));
    oci::Image::open(&reference, platform.as_ref())
}

fn copy(storage: &MemStorage, image: &oci::Image) -> Result<Summary> {
    let mut builder = Builder::new(storage, fit())?;
    copy_image(&mut builder, image, &Filter::default(), &Control::unwatched())?;
    builder.finish()
}

/// Opens an image and makes a filesystem of it.
fn build(name: &str) -> Result<MemStorage> {
    let storage = MemStorage::new();
    copy(&storage, &open(name, None)?)?;
    Ok(storage)
}

fn bytes(storage: &MemStorage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A directory with a layout in it. See `layout.py`.
fn layout(images: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    succeed(
        Command::new("python3")
            .arg(format!("{PYTHON}/layout.py"))
            .arg(directory.path().join("layout"))
            .arg(images),
    );
    directory
}

fn name_in(directory: &Path, rest: &str) -> String {
    format!("oci:{}/layout{rest}", directory.display())
}

/// What umoci unpacks.
fn unpacked(directory: &Path, tag: &str) -> PathBuf {
    let bundle = directory.join(format!("bundle-{tag}"));
    succeed(
        Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}/layout:{tag}", directory.display()))
            .arg(&bundle),
    );
    bundle.join("rootfs")
}

/// An image in `directory` is, as a filesystem, what umoci unpacks.
fn assert_same(directory: &Path, tag: &str, without: &str) -> Image {
    let storage = build(&name_in(directory, &format!(":{tag}"))).unwrap();
    let image = Image::of(&storage);
    image.assert_clean(tag);
    let tree = unpacked(directory, tag);
    let found = compare(&image, &tree, &format!("created changed accessed {without}"));
    let (count, rest) = found.trim().split_once(' ').expect("a summary");
    assert_eq!(rest, "compared", "{found}");
    assert!(count.parse::<u32>().unwrap() > 1, "{found}");
    image
}

/// The error that an image ends with.
fn refused(directory: &Path) -> Error {
    build(&name_in(directory, ""))
        .map(|_| ())
        .expect_err("it was taken")
}

#[test]
fn a_system_that_changed_layer_by_layer_is_what_umoci_unpacks() {
    let directory = tempfile::tempdir().unwrap();
    let (_tree_directory, tree) = hard_tree();
    let script = r#"
        set -e; cd "$1"; export SOURCE_DATE_EPOCH=1
        umoci init --layout layout; umoci new --image layout:one
        umoci config --image layout:one --config.user 5:6 --config.env X=Y --config.workingdir /w --config.label a=b --config.cmd run
        umoci unpack --image layout:one bundle; root=bundle/rootfs
        rm "$2"/*socket "$2"/large "$2"/all-hole
        # Times after 2262 are too much for umoci.
        touch "$2"/file4096; cp -a "$2"/. $root; mkdir $root/w; ln -s w $root/to-w
        umoci repack --refresh-bundle --image layout:one bundle
        # Removed, replaced by what is of another type, emptied, changed, added, renamed and linked to again.
        rm -r $root/many $root/deep0 $root/file1 $root/fifo; mkdir $root/fifo; echo now >$root/fifo/file; mkdir $root/many; touch $root/many/new
        rm $root/link-to-file4097; ln $root/links/another $root/again; mv $root/empty-directory $root/renamed
        rm -r $root/mode4755; ln -s file4096 $root/mode4755; chmod 700 $root/links; rm $root/null; echo file >$root/null
        umoci repack --refresh-bundle --image layout:one bundle
        mkdir -p $root/deep0/deep1; echo again >$root/deep0/deep1/file; rm -r $root/fifo $root/renamed; echo w >$root/w/file; rm $root/many/new
        umoci repack --refresh-bundle --image layout:one bundle
    "#;
    succeed(
        Command::new("bash")
            .args(["-c", script, "sh"])
            .arg(directory.path())
            .arg(&tree),
    );
    let image = open(&name_in(directory.path(), ":one"), None).unwrap();
    assert_eq!(image.layers(), 3);
    let config = image.config();
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("5:6", "/w"));
    assert!(config.env.contains(&"X=Y".to_owned()), "{config:?}");
    assert_eq!(config.cmd, Some(vec!["run".to_owned()]));
    assert_eq!(config.labels["a"], "b");
    assert_same(directory.path(), "one", "holes");
}

#[test]
fn whiteouts_are_about_lower_layers_wherever_they_come() {
    // What is removed, what stays and what is emptied, by whiteouts that come first, last and as other names of a file.
    let directory = layout(
        r#"[("t", None, [
            ("gzip", [
                ("d", "DIRTYPE", 0o755), ("d/a", "REGTYPE", b"a"), ("d/b", "REGTYPE", b"b"), ("d/sub", "DIRTYPE", 0o755), ("d/sub/x", "REGTYPE", b"x"),
                ("o", "DIRTYPE", 0o755), ("o/old", "REGTYPE", b"old"), ("o/sub", "DIRTYPE", 0o755), ("o/sub/old", "REGTYPE", b"old"), ("o/both", "REGTYPE", b"1"),
                ("p", "DIRTYPE", 0o755), ("p/old", "REGTYPE", b"old"), ("gone", "DIRTYPE", 0o755), ("gone/deep", "REGTYPE", b""),
                ("file", "REGTYPE", b"file"), ("name", "LNKTYPE", "file"), ("again", "DIRTYPE", 0o711), ("again/old", "REGTYPE", b"old"),
                ("lib", "SYMTYPE", "d/sub"), ("zero", "REGTYPE", b"")]),
            ("gzip", [
                ("d/.wh.a", "REGTYPE", b""), ("o/new", "REGTYPE", b"new"), ("o/both", "REGTYPE", b"2"), ("o/sub/new", "REGTYPE", b"new"),
                ("o/.wh..wh..opq", "REGTYPE", b""),
                ("p/.wh..wh..opq", "REGTYPE", b""), ("p/new", "REGTYPE", b"new"), (".wh.gone", "REGTYPE", b""),
                (".wh.name", "REGTYPE", b""), (".wh.nothing", "REGTYPE", b""), ("none/.wh.nothing", "REGTYPE", b""), ("lib/through", "REGTYPE", b"link"),
                (".wh.again", "REGTYPE", b""), ("again", "DIRTYPE", 0o700), ("again/new", "REGTYPE", b"new"),
                ("early/below", "REGTYPE", b"early"), ("early", "DIRTYPE", 0o750), ("zero", "CHRTYPE", (0, 0)),
                ("linked", "LNKTYPE", "d/b")]),
            ("", [
                ("file", "DIRTYPE", 0o755), ("file/now", "REGTYPE", b"a directory"), ("d/sub", "REGTYPE", b"a file now"),
                ("linked-too", "LNKTYPE", "linked"), ("linked", "SYMTYPE", "d/b")]),
        ])]"#,
    );
    // For directories that a layer has no entry of, umoci has the time at which it emptied them.
    let image = assert_same(directory.path(), "t", "modified");
    // And in words, so that it does not hang on one program's opinion.
    let listed = image.mounted(
        r#"cd "$1"; find . -mindepth 1 -not -name lost+found \( -type d -printf '%P/\n' -o -printf '%P %y%s %n\n' \) | LC_ALL=C sort; cd /"#,
    );
    let expected = "again/\nagain/new f3 1\nd/\nd/b f1 2\nd/sub f10 1\nearly/\nearly/below f5 1\nfile/\nfile/now f11 1\n\
                    lib l5 1\nlinked l3 1\nlinked-too f1 2\no/\no/both f1 1\no/new f3 1\no/sub/\no/sub/new f3 1\n\
                    p/\np/new f3 1\nzero c0 1\n";
    assert_eq!(listed, expected);
}

#[test]
fn layers_of_aufs_are_understood() {
    let directory = layout(
        r#"[("t", None, [
            ("gzip", [("a", "REGTYPE", b"a"), ("b", "REGTYPE", b"b"), ("d", "DIRTYPE", 0o755), ("d/c", "REGTYPE", b"c")]),
            ("gzip", [
                (".wh..wh.aufs", "REGTYPE", b""), (".wh..wh.orph", "DIRTYPE", 0o700), (".wh..wh.orph/x", "REGTYPE", b"x"),
                (".wh..wh.plnk", "DIRTYPE", 0o700), (".wh..wh.plnk/12.34", "REGTYPE", b"shared"), ("one", "LNKTYPE", ".wh..wh.plnk/12.34"),
                ("two", "LNKTYPE", ".wh..wh.plnk/12.34"), (".wh.a", "REGTYPE", b""), ("d/.wh.c", "LNKTYPE", ".wh.a"), (".wh.b", "LNKTYPE", ".wh..wh.aufs")]),
        ])]"#,
    );
    let storage = build(&name_in(directory.path(), "")).unwrap();
    let image = Image::of(&storage);
    image.assert_clean("aufs");
    let listed = image.mounted(
        "cd \"$1\"; find . -not -name lost+found -printf '%P %y%n\n' | LC_ALL=C sort; cat one; cd /",
    );
    assert_eq!(listed, " d4\nd d2\none f2\ntwo f2\nshared");
}

#[test]
fn an_image_is_the_same_wherever_it_is_stored() {
    let directory = layout(
        r#"[("t", None, [
            ("gzip", [("d", "DIRTYPE", 0o755), ("d/a", "REGTYPE", bytes(range(256)) * 5000), ("b", "REGTYPE", b"b")]),
            ("gzip", [(".wh.b", "REGTYPE", b""), ("c", "LNKTYPE", "d/a")]),
            ("gzip", [(".wh.b", "REGTYPE", b""), ("c", "LNKTYPE", "d/a")])])]"#,
    );
    let root = directory.path();
    let wanted = bytes(&build(&name_in(root, ":t")).unwrap());
    let shown = root.display();
    for (made_by, name) in [
        (
            format!("oci-archive:{shown}/archive:t"),
            format!("oci-archive:{shown}/archive:t"),
        ),
        (
            format!("oci-archive:{shown}/archive2"),
            format!("oci-archive:{shown}/archive2"),
        ),
        (
            format!("docker-archive:{shown}/docker:name/of:tag"),
            format!("docker-archive:{shown}/docker:name/of:tag"),
        ),
        (
            format!("docker-archive:{shown}/docker2:x:1"),
            format!("docker-archive:{shown}/docker2"),
        ),
        (format!("oci:{shown}/other:tag"), format!("oci:{shown}/other")),
    ] {
        succeed(Command::new("skopeo").args([
            "copy",
            "-q",
            "--insecure-policy",
            &name_in(root, ":t"),
            &made_by,
        ]));
        assert!(bytes(&build(&name).unwrap()) == wanted, "{name}");
        let image = open(&name, None).unwrap();
        assert_eq!(
            image.config().cmd,
            Some(vec!["-c".to_owned(), "t".to_owned()]),
            "{name}"
        );
        assert_eq!(
            image.config().entrypoint,
            Some(vec!["/bin/sh".to_owned()]),
            "{name}"
        );
    }
    for (name, says) in [
        (format!("oci-archive:{shown}/archive:u"), "the tag \"u\""),
        (format!("docker-archive:{shown}/docker:other"), "called \"other\""),
        (format!("docker-archive:{shown}/archive"), "no manifest.json"),
        (format!("oci-archive:{shown}/docker"), "no oci-layout"),
        (format!("oci:{shown}/docker"), "no directory"),
        (format!("oci:{shown}"), "no oci-layout"),
        (format!("oci:{shown}/nothing:t"), "No such file"),
    ] {
        let error = build(&name).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(error.path().is_some(), "{name}: {error}");
    }
    succeed(Command::new("gzip").arg(root.join("archive")));
    let error = build(&format!("oci-archive:{shown}/archive.gz:t"))
        .map(|_| ())
        .unwrap_err();
    assert!(error.hint().unwrap().contains("not compressed"), "{error:?}");
}

#[test]
fn how_layers_are_compressed_makes_no_difference() {
    let of = |how: [&str; 2]| {
        let directory = layout(&format!(
            r#"[("t", None, [
                ("{}", [("d", "DIRTYPE", 0o755), ("d/a", "REGTYPE", bytes(range(256)) * 9000), ("b", "REGTYPE", b"b")]),
                ("{}", [(".wh.b", "REGTYPE", b""), ("c", "REGTYPE", b"c")])])]"#,
            how[0], how[1]
        ));
        bytes(&build(&name_in(directory.path(), "")).unwrap())
    };
    let plain = of(["", ""]);
    for how in [["gzip", "gzip"], ["zstd", "gzip"], ["", "zstd"]] {
        assert!(of(how) == plain, "{how:?}");
    }
}

#[test]
fn tags_and_platforms_choose() {
    let directory = layout(
        r#"[("old", None, [("gzip", [("old", "REGTYPE", b"")])]),
            ("registry/name:both", "linux/amd64", [("gzip", [("amd64", "REGTYPE", b"")])]),
            ("registry/name:both", "linux/riscv64", [("gzip", [("riscv64", "REGTYPE", b"")])]),
            ("foreign", "linux/s390x", [("gzip", [("s390x", "REGTYPE", b"")])])]"#,
    );
    let root = directory.path();
    let first = |rest: &str, platform: Option<&str>| -> Result<(String, String)> {
        let image = open(&name_in(root, rest), platform)?;
        let mut changes = image.changes();
        changes.next_change()?;
        match changes.next_change()? {
            Some(oci::Change::Put(entry)) => Ok((
                String::from_utf8(entry.path).unwrap(),
                image.platform().to_string(),
            )),
            other => panic!("{other:?}"),
        }
    };
    let is = |rest: &str, platform, found: &str, for_whom: &str| {
        let expected = (found.to_owned(), for_whom.to_owned());
        assert_eq!(first(rest, platform).unwrap(), expected, "{rest} {platform:?}");
    };
    is(":old", None, "old", "linux/amd64");
    is(":both", Some("linux/amd64"), "amd64", "linux/amd64");
    is(":both", Some("linux/riscv64"), "riscv64", "linux/riscv64");
    is(
        ":registry/name:both",
        Some("linux/riscv64"),
        "riscv64",
        "linux/riscv64",
    );
    // The only one there is.
    is(":foreign", None, "s390x", "linux/s390x");
    let host = Platform::host().to_string();
    if host == "linux/amd64" {
        is(":both", None, "amd64", "linux/amd64");
    }
    for (rest, platform, says) in [
        (":both", Some("linux/mips"), "no image for linux/mips"),
        (":foreign", Some("linux/amd64"), "no image for linux/amd64"),
        (":new", None, "the tag \"new\""),
        ("", None, "several images"),
    ] {
        let error = first(rest, platform).unwrap_err();
        assert!(error.to_string().contains(says), "{rest}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    assert!(
        first("", None)
            .unwrap_err()
            .hint()
            .unwrap()
            .contains("old, registry/name:both")
    );
}

#[test]
fn what_is_not_what_its_digest_says_makes_no_filesystem() {
    let directory = layout(
        r#"[("t", None, [
            ("gzip", [("a", "REGTYPE", bytes(range(256)) * 400)]),
            ("zstd", [("b", "REGTYPE", bytes(range(256)) * 300)]),
            ("", [("c", "REGTYPE", bytes(range(256)) * 200)])])]"#,
    );
    build(&name_in(directory.path(), ":t")).unwrap();
    let blobs = directory.path().join("layout/blobs/sha256");
    let mut rng = Rng::new(7);
    let mut count = 0;
    for blob in fs::read_dir(&blobs).unwrap() {
        let path = blob.unwrap().path();
        let good = fs::read(&path).unwrap();
        count += 1;
        for round in 0..24 {
            let mut bad = good.clone();
            match round % 4 {
                0 => bad.truncate(rng.below(good.len() as u64) as usize),
                1 => bad.push(0),
                // In the padding of an archive too, which nobody looks at.
                _ => bad[rng.below(good.len() as u64) as usize] ^= 1 << rng.below(8),
            }
            fs::write(&path, bad).unwrap();
            let error = refused(directory.path());
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.path().is_some(), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(refused(directory.path()).to_string().contains("missing"));
        fs::create_dir(&path).unwrap();
        assert!(refused(directory.path()).to_string().contains("no regular file"));
        fs::remove_dir(&path).unwrap();
        fs::write(&path, good).unwrap();
    }
    assert_eq!(count, 5);
    build(&name_in(directory.path(), ":t")).unwrap();
    // In a Docker archive too, where only the contents of layers have digests.
    let directory = layout(r#"[("t", None, [("gzip", [("a", "REGTYPE", bytes(range(256)) * 400)])])]"#);
    let archive = directory.path().join("docker");
    let name = format!("docker-archive:{}", archive.display());
    succeed(Command::new("skopeo").args([
        "copy",
        "-q",
        "--insecure-policy",
        &name_in(directory.path(), ":t"),
        &format!("{name}:x:1"),
    ]));
    let good = fs::read(&archive).unwrap();
    let data: Vec<u8> = (0..=255).collect();
    let places: Vec<usize> = (0..good.len() - 256)
        .filter(|at| good[*at..*at + 256] == data)
        .collect();
    assert!(places.len() > 100);
    for _ in 0..20 {
        let mut bad = good.clone();
        let place = places[rng.below(places.len() as u64) as usize];
        bad[place + 17] ^= 4;
        fs::write(&archive, bad).unwrap();
        let error = build(&name).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("its digest is"), "{error}");
    }
}

#[test]
fn hostile_layers_are_refused_by_name() {
    for (entries, says) in [
        (r#"[("../evil", "REGTYPE", b"")]"#, "\"..\""),
        (r#"[("a/../../evil", "REGTYPE", b"")]"#, "\"..\""),
        (r#"[("/etc/evil", "REGTYPE", b"")]"#, "absolute"),
        (r#"[("a", "LNKTYPE", "../../etc/passwd")]"#, "\"..\""),
        (r#"[("a", "LNKTYPE", "nothing")]"#, "\"nothing\""),
        (
            r#"[("a", "SYMTYPE", "b"), ("b", "SYMTYPE", "a"), ("a/x", "REGTYPE", b"")]"#,
            "links",
        ),
        (
            r#"[("a", "REGTYPE", b""), ("a/b", "REGTYPE", b"")]"#,
            "no directory",
        ),
        (
            r#"[("d", "DIRTYPE", 0o755), ("e", "LNKTYPE", "d")]"#,
            "directories have one name",
        ),
        (r#"[(".wh.", "REGTYPE", b"")]"#, ".wh."),
        (r#"[("d/.wh..", "REGTYPE", b"")]"#, ".wh.."),
        (r#"[(".wh...", "REGTYPE", b"")]"#, ".wh..."),
        (r#"[(".wh.x/y", "REGTYPE", b"")]"#, ".wh.x/y"),
        (r#"b"no archive" * 100"#, "no tar archive"),
    ] {
        let directory = layout(&format!(
            r#"[("t", None, [("gzip", [("kept", "REGTYPE", b"")]), ("gzip", {entries})])]"#
        ));
        let error = refused(directory.path());
        let text = error.to_string();
        assert!(
            text.contains(says) && text.contains("layer 2 of 2"),
            "{entries}: {text}"
        );
        assert!(error.path().unwrap().ends_with("layout"), "{text}");
    }
    // Links lead to what is in the image, however they are written.
    let directory = layout(
        r#"[("t", None, [("gzip", [("d", "DIRTYPE", 0o755), ("up", "SYMTYPE", "../../../../d"), ("root", "SYMTYPE", "/d"),
            ("up/a", "REGTYPE", b"a"), ("root/b", "REGTYPE", b"b"), ("far", "SYMTYPE", "/proc/self/root/d")])])]"#,
    );
    let image = Image::of(&build(&name_in(directory.path(), "")).unwrap());
    assert_eq!(image.mounted("cat \"$1/d/a\" \"$1/d/b\""), "ab");
}
