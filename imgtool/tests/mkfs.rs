//! Filesystems made by the command, judged by the ext4 tools.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::copy_program;
use crate::common::filesystems::{UUID, assert_good, field, lab, tool, words};
use crate::common::{Lab, interrupted_by};
use serde_json::Value;

/// Runs with a file as standard input.
fn with_input(lab: &Lab, line: &str, input: &str) -> std::process::Output {
    let mut command = lab.command("imgtool");
    command.args(line.split_whitespace());
    command
        .stdin(File::open(lab.path(input)).unwrap())
        .output()
        .unwrap()
}

#[test]
fn directories_and_archives_become_filesystems() {
    let lab = lab();
    for source in ["tree", "tree.tar", "tree.tar.gz", "tree.tar.zst", "tree.tar.xz"] {
        for size in ["", "--size 100M", "--free 20%", "--free 50M", "--shrink"] {
            lab.imgtool(&format!("mkfs -q {size} {source} out"));
            assert_good(&lab, "out");
            let len = lab.path("out").metadata().unwrap().len();
            match size {
                "--size 100M" => assert_eq!(len, 100 << 20),
                "--free 50M" => assert!(len > 50 << 20, "{len}"),
                _ => assert!(len < 8 << 20, "{len}"),
            }
        }
    }
    let output = with_input(&lab, "mkfs -q - out", "tree.tar.gz");
    assert!(output.status.success(), "{output:?}");
    assert_good(&lab, "out");
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}

#[test]
fn images_of_both_formats_partitions_and_devices_are_written() {
    let lab = lab();
    for (options, size) in [
        ("", ""),
        ("-o cluster_size=4k,extended_l2=off", "--size 70M"),
        ("-o extended_l2=on,cluster_size=128k", "--shrink"),
        ("-o lazy_refcounts=on,data_file=data", ""),
    ] {
        lab.imgtool(&format!("mkfs -q -O qcow2 {options} {size} tree.tar out.qcow2"));
        lab.qemu_img("check -q out.qcow2");
        lab.qemu_img("convert -O raw out.qcow2 raw");
        assert_good(&lab, "raw");
        let blocks: u64 = field(&lab, "raw", "Block count").parse().unwrap();
        assert_eq!(
            lab.path("raw").metadata().unwrap().len(),
            blocks * 4096,
            "{options}"
        );
        fs::remove_file(lab.path("data")).unwrap_or_default();
    }

    for format in ["raw", "qcow2"] {
        lab.imgtool(&format!("create -q -f {format} disk 100M"));
        lab.imgtool("partition create -q disk size=10M,name=before size=30M,name=root name=after");
        for name in ["before", "root", "after"] {
            lab.imgtool(&format!("mkfs -q tree disk#name:{name}"));
        }
        for name in ["root", "before", "after"] {
            lab.imgtool(&format!("convert -O raw disk#name:{name} part"));
            assert_good(&lab, "part");
        }
        assert_eq!(field(&lab, "part", "Block count"), "14848");
        lab.imgtool("partition verify disk");
        // One that is smaller than what it lies on.
        lab.imgtool("mkfs -q --shrink tree disk#2");
        lab.imgtool("convert -O raw disk#2 part");
        assert_good(&lab, "part");
    }

    fs::write(lab.path("device"), vec![0xFF; 20 << 20]).unwrap();
    let device = tool(&lab, &["losetup", "--show", "-f", "device"]).ok();
    let device = device.trim();
    let made = lab.run(&format!("imgtool mkfs -q tree {device}"));
    let small = lab.run(&format!("imgtool mkfs -q --size 2M tree {device}"));
    let erased = lab.run(&format!("imgtool mkfs -q --size 21M tree {device}"));
    let again = lab.run(&format!("imgtool mkfs -q --size 19M tree {device}"));
    tool(&lab, &["losetup", "-d", device]).ok();
    made.ok();
    small.fails(1, &[device, "bytes more than", "choose a size of"]);
    erased.fails(1, &[device, "has 20971520 bytes, and 22020096 are asked for"]);
    again.ok();
    assert_good(&lab, "device");
}

#[test]
fn what_is_asked_for_is_what_there_is() {
    let lab = lab();
    lab.imgtool(&format!(
        "mkfs -q --size 64M --block-size 1k --label sixteen-bytes-ok --uuid {UUID} --journal 5M --inodes 5000 --reserved 1 \
         --hash-seed ffffffff-0000-0000-0000-000000000001 --compat linux-5.15 --grow 1G tree out"
    ));
    assert_good(&lab, "out");
    for (name, value) in [
        ("Filesystem volume name", "sixteen-bytes-ok"),
        ("Filesystem UUID", UUID),
        ("Directory Hash Seed", "ffffffff-0000-0000-0000-000000000001"),
        ("Block size", "1024"),
        ("Block count", "65536"),
        ("Reserved block count", "655"),
        ("Inode count", "5056"),
        ("Total journal size", "5120k"),
    ] {
        assert_eq!(field(&lab, "out", name), value, "{name}");
    }
    assert!(!field(&lab, "out", "Filesystem features").contains("orphan_file"));
    lab.imgtool("mkfs -q --journal none --compat linux-3.10 tree out");
    let features = field(&lab, "out", "Filesystem features");
    lab.imgtool("mkfs -q --inline-data tree.tar inline");
    tool(&lab, &["e2fsck", "-fn", "inline"]).ok();
    assert!(field(&lab, "inline", "Filesystem features").contains("inline_data"));
    let hostname = tool(&lab, &["debugfs", "-R", "stat /etc/hostname", "inline"]).ok();
    assert!(hostname.contains("Size of inline data: 60"), "{hostname}");
    assert!(
        !features.contains("has_journal") && features.contains("uninit_bg"),
        "{features}"
    );

    lab.imgtool("mkfs -q --owner 5:70000 --exclude *.d --exclude /large tree out");
    let listing = tool(&lab, &["debugfs", "-R", "ls -l /etc", "out"]).ok();
    assert!(
        words(&listing).contains(" 5 70000 ") && !listing.contains("init.d"),
        "{listing}"
    );
    lab.imgtool("mkfs -q --uid-map 0:1000:1 --gid-map 0:7 tree.tar out");
    let listing = tool(&lab, &["debugfs", "-R", "ls -l /etc", "out"]).ok();
    assert!(words(&listing).contains(" 1000 7 "), "{listing}");
}

#[test]
fn the_summary_is_that_of_the_superblock() {
    let lab = lab();
    let output = lab.imgtool(&format!(
        "mkfs --output json --uuid {UUID} --label data --size 50M tree out"
    ));
    let made: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(made["filename"], "out");
    assert_eq!(made["size"], 50 << 20);
    assert_eq!((&made["uuid"], &made["label"]), (&UUID.into(), &"data".into()));
    for (key, name) in [
        ("blocks", "Block count"),
        ("free-blocks", "Free blocks"),
        ("inodes", "Inode count"),
        ("free-inodes", "Free inodes"),
        ("block-size", "Block size"),
    ] {
        assert_eq!(made[key].to_string(), field(&lab, "out", name), "{key}");
    }
    assert_eq!(made["journal-size"], 4 << 20);
    let line = lab.imgtool(&format!("mkfs --uuid {UUID} --size 50M tree out"));
    assert!(
        line.starts_with("out: ext4, 50 MiB, ") && line.contains(UUID),
        "{line}"
    );
    let done = lab.run("imgtool mkfs -q --progress json tree.tar out");
    assert!(done.stderr().is_empty(), "{}", done.stderr());
    let done = lab.run("imgtool mkfs --progress json tree.tar out");
    let last: Value = serde_json::from_str(done.stderr().lines().last().unwrap()).unwrap();
    assert_eq!(last["total"], lab.path("tree.tar").metadata().unwrap().len());
}

#[test]
fn the_same_source_makes_the_same_bytes() {
    let lab = lab();
    let make = |source: &str, threads: u32, epoch: Option<&str>| {
        let mut command = lab.command("imgtool");
        command.args([
            "mkfs",
            "-q",
            "--uuid",
            UUID,
            "--threads",
            &threads.to_string(),
            source,
            "out",
        ]);
        match epoch {
            Some(epoch) => command.env("SOURCE_DATE_EPOCH", epoch),
            None => command.env_remove("SOURCE_DATE_EPOCH"),
        };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read(lab.path("out")).unwrap()
    };
    for source in ["tree", "tree.tar.zst"] {
        assert!(make(source, 1, None) == make(source, 8, None), "{source}");
    }
    // Another copy of the tree, made in another order, has other times, all of them later.
    fs::create_dir(lab.path("other")).unwrap();
    for name in ["large", "etc"] {
        lab.run(&format!("cp -a --no-preserve=timestamps tree/{name} other"))
            .ok();
    }
    lab.run("chmod --reference=tree other").ok();
    let epoch = Some("1000000000");
    assert!(make("tree", 2, epoch) == make("other", 2, epoch));
    assert_eq!(
        field(&lab, "out", "Filesystem created"),
        "Sun Sep  9 01:46:40 2001"
    );

    let mut command = lab.command("imgtool");
    let output = command
        .args(["mkfs", "tree", "new"])
        .env("SOURCE_DATE_EPOCH", "today")
        .output();
    let text = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(
        text.starts_with("imgtool: new: SOURCE_DATE_EPOCH is \"today\""),
        "{text}"
    );
    assert!(!lab.path("new").exists());
}

/// Archives that are wrong, by what is wrong with them.
fn bad_archives(lab: &Lab) -> Vec<(&'static str, &'static str)> {
    let script = "
import io, tarfile
def write(name, *entries):
    archive = tarfile.open(name, 'w', format=tarfile.PAX_FORMAT)
    for path, kind, link in entries:
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry)
    archive.close()
write('up', ('a/../../b', tarfile.REGTYPE, ''))
write('absolute', ('/etc/passwd', tarfile.REGTYPE, ''))
write('dangling', ('a', tarfile.LNKTYPE, 'nothing'))
write('loop', ('a', tarfile.SYMTYPE, 'b'), ('b', tarfile.SYMTYPE, 'a'), ('a/c', tarfile.REGTYPE, ''))
write('long', ('n' * 300, tarfile.REGTYPE, ''))
";
    lab.run_words(&["python3", "-c", script]).ok();
    let whole = fs::read(lab.path("tree.tar")).unwrap();
    fs::write(lab.path("truncated"), &whole[..2_000_000]).unwrap();
    let compressed = fs::read(lab.path("tree.tar.zst")).unwrap();
    fs::write(lab.path("truncated.zst"), &compressed[..compressed.len() / 2]).unwrap();
    fs::write(lab.path("garbage"), vec![b'g'; 100_000]).unwrap();
    fs::write(lab.path("empty"), "").unwrap();
    fs::write(lab.path("lz4"), b"\x04\x22\x4d\x18 and more of it").unwrap();
    // A file of 93 TB, all of which is a hole.
    lab.run("truncate -s 12T huge").ok();
    lab.run_words(&[
        "sh",
        "-c",
        "tar --format=posix -cSf - huge | sed 's/GNU.sparse.realsize=13194139533312/GNU.sparse.realsize=93194139533312/' >too-large; rm huge",
    ])
    .ok();
    vec![
        ("up", "\"..\""),
        ("absolute", "absolute"),
        ("dangling", "\"a\": it is a link to \"nothing\""),
        ("loop", "\"a/c\": on the way to it are more than 40 links"),
        ("long", "255 at most"),
        ("truncated", "ends"),
        ("truncated.zst", "ends"),
        ("garbage", "tar"),
        ("empty", "ends early"),
        ("lz4", "lz4"),
        ("too-large", "larger than the 17592186040320 that ext4 can hold"),
    ]
}

#[test]
fn bad_archives_are_one_line_and_leave_nothing() {
    let lab = lab();
    fs::write(lab.path("old"), "precious").unwrap();
    let bad = bad_archives(&lab);
    let names = lab.names();
    for (archive, words) in &bad {
        for target in ["new", "old", "-O qcow2 new", "-O qcow2 old"] {
            lab.run(&format!("imgtool mkfs {archive} {target}"))
                .fails(1, &[archive, words]);
        }
        let output = with_input(&lab, "mkfs - new", archive);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text.starts_with("imgtool: -: ") && text.contains(words),
            "{archive}: {text}"
        );
    }
    assert_eq!(lab.names(), names);
    assert_eq!(fs::read(lab.path("old")).unwrap(), b"precious");
}

#[test]
fn what_cannot_be_made_is_one_line_and_leaves_nothing() {
    let lab = lab();
    let names = lab.names();
    for (line, words) in [
        ("missing new", "missing: open: No such file"),
        ("tree none/new", "make the directory none first"),
        ("tree tree", "tree: "),
        (
            "tree tree/new",
            "tree: the filesystem is being written to a file in the tree",
        ),
        (
            "tree.tar tree.tar",
            "tree.tar: the target is the archive that is read",
        ),
        ("tree -", "-: a filesystem cannot be written to standard output"),
        (
            "--size 2M tree new",
            "new: the filesystem is too small: the tree needs ",
        ),
        (
            "--size 10k tree new",
            "new: cannot make an ext4 filesystem of 10240 bytes",
        ),
        ("--size x tree new", "\"x\" is no size"),
        ("--free 95% tree new", "95 %"),
        ("--block-size 3k tree new", "3072"),
        ("--block-size 8k tree new", "8192"),
        ("--journal 10k tree new", "10240"),
        ("--reserved 60 tree new", "60"),
        ("--label seventeen-bytes.. tree new", "seventeen-bytes.."),
        ("--uuid 1234 tree new", "\"1234\" is no UUID"),
        ("--hash-seed 1234 tree new", "\"1234\" is no UUID"),
        ("--exclude a[ tree new", "\"a[\" is no pattern"),
        ("--owner root tree new", "--owner root"),
        ("--owner 4294967295 tree new", "the last id is 4294967294"),
        ("--owner 0:4294967295 tree new", "the last id is 4294967294"),
        ("--uid-map 1:2:3:4 tree new", "--uid-map 1:2:3:4"),
        (
            "--uid-map 1:2:0 tree new",
            "--uid-map 1:2:0: the range of ids from 1 to 2 is empty",
        ),
        ("--inodes 12 tree new", "new: the tree needs "),
        ("--inodes 400000000 tree new", "more than room was kept for"),
        ("--inodes 4294967295 tree new", "more than room was kept for"),
        ("--exclude . tree new", "\".\" is no pattern"),
        ("--uid-map 1:2:3 --uid-map 3:9 tree new", "in another range"),
        ("-O vmdk tree new", "vmdk"),
        ("-O qcow2 -o size=1G tree new", "give --size"),
        (
            "-O qcow2 -o backing_file=tree.tar,backing_fmt=raw tree new",
            "backing",
        ),
        ("-O qcow2 -o preallocation=full tree new", "preallocated"),
        ("-O qcow2 -o cluster_size=3k tree new", "cluster_size"),
        ("tree tree.tar#1", "tree.tar"),
    ] {
        lab.run(&format!("imgtool mkfs {line}")).fails(1, &[words]);
    }
    assert_eq!(lab.run("imgtool mkfs --free 20 --shrink tree new").code(), 1);
    assert_eq!(lab.names(), names);
    let too_small = lab.run("imgtool mkfs --size 2M tree new");
    let hint = too_small.stderr();
    let enough = hint
        .split(' ')
        .filter_map(|word| word.parse::<u64>().ok())
        .next_back()
        .unwrap();
    lab.imgtool(&format!("mkfs -q --size {enough} tree new"));
    assert_good(&lab, "new");
    for i in 0..100 {
        fs::write(lab.path(&format!("tree/number {i}")), "").unwrap();
    }
    let too_few = lab.run("imgtool mkfs --size 30M --inodes 64 tree new").stderr();
    let needed = too_few.split("needs ").nth(1).unwrap();
    let needed = needed.split(' ').next().unwrap();
    lab.imgtool(&format!("mkfs -q --size 30M --inodes {needed} tree new"));
    assert_good(&lab, "new");
    let count: u64 = field(&lab, "new", "Inode count").parse().unwrap();
    let (needed, granule) = (needed.parse::<u64>().unwrap(), 16);
    assert!((needed..needed + granule).contains(&count), "{needed} {count}");
}

#[test]
fn files_that_may_not_be_read_are_named() {
    let lab = lab();
    fs::write(lab.path("tree/secret"), "x").unwrap();
    lab.run("chmod 0 tree/secret").ok();
    lab.run("chmod 777 .").ok();
    lab.imgtool("mkfs -q tree out");
    assert_eq!(tool(&lab, &["debugfs", "-R", "cat /secret", "out"]).ok(), "x");
    let program = lab.path("imgtool");
    copy_program(&program);
    let done = lab.run_words(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        program.to_str().unwrap(),
        "mkfs",
        "tree",
        "new",
    ]);
    done.fails(1, &["tree/secret: open the file: Permission denied", "--exclude"]);
    assert!(!lab.path("new").exists());
}

#[test]
fn a_full_disk_leaves_nothing() {
    let (lab, _mounted) = Lab::on("ext4", 20);
    fs::create_dir(lab.path("tree")).unwrap();
    fs::write(lab.path("tree/file"), vec![1; 12 << 20]).unwrap();
    let names = lab.names();
    for options in ["", "-O qcow2"] {
        lab.run(&format!("imgtool mkfs {options} tree new"))
            .fails(1, &["new: ", "No space left on device", "make room"]);
        assert_eq!(lab.names(), names);
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    let lab = lab();
    fs::write(lab.path("old"), "precious").unwrap();
    let names = lab.names();
    for (target, signal) in [("new", "INT"), ("old", "TERM")] {
        let mut command = lab.command("imgtool");
        command
            .args(["mkfs", "-", target])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // An archive that does not end.
        let archive = fs::read(lab.path("tree.tar")).unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&archive[..1_000_000]).unwrap();
        let start = Instant::now();
        while lab.names() == names {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        lab.run(&format!("kill -{signal} {}", child.id())).ok();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(interrupted_by(signal)));
        assert_eq!(lab.names(), names);
    }
    assert_eq!(fs::read(lab.path("old")).unwrap(), b"precious");
}

/// Nobody takes a disk that is being written, or was when power failed, for a filesystem.
#[test]
fn a_killed_run_leaves_no_filesystem_on_a_partition() {
    let lab = lab();
    lab.imgtool("create -q disk 40M");
    lab.imgtool("partition create -q disk name=root");
    lab.imgtool("mkfs -q tree disk#1");
    let magic = || {
        let mut bytes = [0; 2];
        let file = File::open(lab.path("disk")).unwrap();
        file.read_exact_at(&mut bytes, (1 << 20) + 1024 + 0x38).unwrap();
        bytes
    };
    assert_eq!(magic(), [0x53, 0xEF]);
    let mut command = lab.command("imgtool");
    command.args(["mkfs", "-", "disk#1"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(&fs::read(lab.path("tree.tar")).unwrap()[..1_000_000])
        .unwrap();
    let start = Instant::now();
    while magic() != [0, 0] {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(magic(), [0, 0]);
    let found = tool(&lab, &["blkid", "-p", "-O", "1048576", "disk"]);
    assert_eq!(found.code(), 2, "{}", found.stdout());
}

/// A container image in `layout`, as `TAG`, of two layers: the tree of [`lab`], and one that changes it.
fn container(lab: &Lab) {
    let script = "set -e
        umoci init --layout layout; umoci new --image layout:t; umoci unpack --image layout:t bundle
        cp -a tree/. bundle/rootfs; echo gone >bundle/rootfs/gone; umoci repack --refresh-bundle --image layout:t bundle
        rm bundle/rootfs/gone; echo new >bundle/rootfs/etc/new; umoci repack --image layout:t bundle
        umoci config --image layout:t --config.user 5:6 --config.env A=b --config.entrypoint /sbin/init --config.label a=b
        skopeo copy -q --insecure-policy oci:layout:t oci-archive:archive.oci:t
        skopeo copy -q --insecure-policy oci:layout:t docker-archive:archive.docker:name:t";
    lab.run_words(&["bash", "-c", script]).ok();
}

#[test]
fn container_images_become_filesystems_and_say_how_they_are_run() {
    let lab = lab();
    container(&lab);
    for (source, image) in [
        ("oci:layout:t", "a"),
        ("oci:layout", "b"),
        ("oci-archive:archive.oci", "c"),
        ("docker-archive:archive.docker", "d"),
    ] {
        lab.imgtool(&format!("mkfs -q --uuid {UUID} {source} {image}"));
        assert_good(&lab, image);
        let root = lab.imgtool(&format!("fs ls {image} / etc"));
        assert_eq!(
            root,
            "/:\netc\nlarge\nlost+found\n\n/etc:\nhostname\ninit.d\nlink\nnew\n"
        );
        let config: Value =
            serde_json::from_slice(&fs::read(lab.path(&format!("{image}.json"))).unwrap()).unwrap();
        assert_eq!(config["image"], source);
        assert!(
            config["platform"].as_str().unwrap().starts_with("linux/"),
            "{config}"
        );
        let config = &config["config"];
        assert_eq!(config["User"], "5:6");
        assert_eq!(config["Entrypoint"], serde_json::json!(["/sbin/init"]));
        assert!(
            config["Env"].as_array().unwrap().contains(&"A=b".into()),
            "{config}"
        );
        assert_eq!(config["Labels"]["a"], "b");
        assert!(
            fs::read(lab.path(image)).unwrap() == fs::read(lab.path("a")).unwrap(),
            "{source}"
        );
        // And again, over what is there.
        lab.imgtool(&format!("mkfs -q --uuid {UUID} {source} {image}"));
    }
    lab.imgtool("mkfs -q -O qcow2 --config elsewhere oci:layout:t disk");
    lab.qemu_img("check -q disk");
    assert_eq!(lab.imgtool("fs cat disk /etc/new"), "new\n");
    assert!(lab.path("elsewhere").exists() && !lab.path("disk.json").exists());
    lab.imgtool("mkfs -q --config none oci:layout:t quiet");
    assert!(!lab.path("quiet.json").exists());
}

#[test]
fn bad_container_images_are_one_line_and_leave_nothing() {
    let lab = lab();
    container(&lab);
    fs::write(lab.path("precious.json"), "{\"precious\": true}").unwrap();
    let before = lab.names();
    for (line, says) in [
        (
            "oci:layout:none out",
            &["layout", "the tag \"none\"", "there are: t"][..],
        ),
        ("oci:missing:t out", &["missing", "No such file"]),
        ("oci:tree out", &["tree", "oci-layout"]),
        ("oci:tree.tar out", &["tree.tar", "no directory", "oci-archive:"]),
        ("oci-archive:tree.tar out", &["tree.tar", "oci-layout"]),
        (
            "docker-archive:tree.tar.gz out",
            &["tree.tar.gz", "not compressed"],
        ),
        ("oci: out", &["no image is named"]),
        (
            "--platform linux/amd64 tree out",
            &["--platform", "container images"],
        ),
        ("--platform linux oci:layout out", &["\"linux\"", "linux/amd64"]),
        (
            "--platform linux/s390x oci:layout:t out",
            &["the image is for linux/", "not for linux/s390x"],
        ),
        (
            "--platform linux/s390x oci-archive:archive.oci out",
            &["not for linux/s390x"],
        ),
        (
            "--platform linux/s390x docker-archive:archive.docker out",
            &["not for linux/s390x"],
        ),
        ("--config x tree out", &["--config", "container images"]),
        ("oci:layout:t precious", &["precious.json", "--config"]),
        (
            "oci-archive:archive.oci archive.oci",
            &["archive.oci", "another name"],
        ),
    ] {
        lab.run(&format!("imgtool mkfs {line}")).fails(1, says);
        assert_eq!(lab.names(), before, "{line}");
    }
    // A layer that is not what it should be: nothing is made, and what was there stays.
    let blobs = fs::read_dir(lab.path("layout/blobs/sha256")).unwrap();
    let layer = blobs
        .map(|blob| blob.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&layer, bytes).unwrap();
    fs::write(lab.path("old"), "old").unwrap();
    lab.run("imgtool mkfs oci:layout:t old")
        .fails(1, &["layout", "layer 1 of 2"]);
    assert_eq!(fs::read(lab.path("old")).unwrap(), b"old");
    fs::remove_file(lab.path("old")).unwrap();
    assert_eq!(lab.names(), before);
}

#[test]
fn manifests_and_labels_are_laid_over_any_source() {
    let lab = lab();
    let manifest =
        "[[entry]]\npath = \"/etc/motd\"\ntype = \"file\"\nsource = \"hello\"\nmode = 0o640\nuid = 7\n";
    fs::create_dir(lab.path("overlay")).unwrap();
    fs::write(lab.path("overlay/hello"), "welcome\n").unwrap();
    fs::write(lab.path("overlay/manifest.toml"), manifest).unwrap();
    fs::write(lab.path("contexts"), "/etc(/.*)? u:etc\n").unwrap();
    for source in ["tree", "tree.tar.zst"] {
        lab.imgtool(&format!(
            "mkfs -q --manifest overlay/manifest.toml --file-contexts contexts {source} out"
        ));
        assert_good(&lab, "out");
        assert_eq!(
            tool(&lab, &["debugfs", "-R", "cat /etc/motd", "out"]).ok(),
            "welcome\n"
        );
        let stat = tool(&lab, &["debugfs", "-R", "stat /etc/motd", "out"]).ok();
        assert!(
            words(&stat).contains("Mode: 0640") && words(&stat).contains("User: 7 "),
            "{stat}"
        );
        let label = tool(
            &lab,
            &["debugfs", "-R", "ea_get /etc/motd security.selinux", "out"],
        )
        .ok();
        assert!(label.contains("75 3a 65 74 63 00"), "{label}");
    }
    lab.imgtool("create -q -f qcow2 overlay/disk 64M");
    lab.imgtool("partition create -q overlay/disk name=root");
    lab.imgtool("mkfs -q --manifest overlay/manifest.toml tree overlay/disk#1");
    let again = "[[entry]]\npath = \"/taken\"\nimage = \"disk#1\"\nsource = \"/etc/motd\"\ngid = 8\n";
    fs::write(lab.path("overlay/again.toml"), again).unwrap();
    lab.imgtool("mkfs -q --manifest overlay/again.toml tree out");
    assert_good(&lab, "out");
    let stat = tool(&lab, &["debugfs", "-R", "stat /taken", "out"]).ok();
    assert!(
        words(&stat).contains("Mode: 0640") && words(&stat).contains("User: 7 Group: 8 "),
        "{stat}"
    );
    fs::remove_file(lab.path("out")).unwrap();
    fs::write(
        lab.path("bad.toml"),
        "\n[[entry]]\npath = \"/a\"\ntype = \"pipe\"\n",
    )
    .unwrap();
    fs::write(
        lab.path("nothing.toml"),
        "[[entry]]\npath = \"/none\"\nmode = 0\n",
    )
    .unwrap();
    fs::write(lab.path("bad-contexts"), "/a\n").unwrap();
    let names = lab.names();
    for (options, what) in [
        ("--manifest missing.toml", "missing.toml: read: No such file"),
        (
            "--manifest bad.toml",
            "bad.toml: line 4, column 8: there is no type \"pipe\"",
        ),
        (
            "--manifest nothing.toml",
            "nothing.toml: line 2, column 8: there is nothing at \"/none\"",
        ),
        ("--file-contexts bad-contexts", "bad-contexts: line 1: "),
    ] {
        lab.run(&format!("imgtool mkfs {options} tree new"))
            .fails(1, &[what]);
    }
    assert_eq!(lab.names(), names);
}

#[test]
fn a_source_that_is_none_does_not_cost_what_a_partition_holds() {
    let lab = lab();
    container(&lab);
    lab.imgtool("create -q -f qcow2 disk 64M");
    lab.imgtool("partition create -q disk name=root");
    lab.imgtool("mkfs -q tree disk#1");
    let before = lab.imgtool("fs tree disk#1");
    fs::write(lab.path("garbage"), [7; 5000]).unwrap();
    fs::write(lab.path("empty"), "").unwrap();
    fs::create_dir(lab.path("layout-without-blobs")).unwrap();
    lab.run("cp layout/index.json layout/oci-layout layout-without-blobs")
        .ok();
    for (file, magic) in [
        ("garbage.gz", &b"\x1f\x8b\x08"[..]),
        ("garbage.zst", b"\x28\xb5\x2f\xfd"),
        ("garbage.xz", b"\xfd7zXZ\0"),
    ] {
        fs::write(lab.path(file), [magic, &[7; 5000]].concat()).unwrap();
    }
    // How the image is run is another file than its name says.
    let script = "set -e; mkdir docker; tar -C docker -xf archive.docker; cd docker
        config=$(python3 -c 'import json; print(json.load(open(\"manifest.json\"))[0][\"Config\"])')
        sed 's/sbin/SBIN/' $config >changed; cat changed >$config; rm changed; tar -cf ../changed.docker .";
    lab.run_words(&["bash", "-c", script]).ok();
    for source in [
        "garbage",
        "garbage.gz",
        "garbage.zst",
        "garbage.xz",
        "empty",
        "/dev/null",
        "missing",
        "oci:layout:none",
        "oci:missing",
        "oci:layout-without-blobs",
        "oci-archive:garbage",
        "docker-archive:garbage",
        "docker-archive:changed.docker",
    ] {
        let (_, named) = source.rsplit_once("archive:").unwrap_or(("", source));
        let named = named.trim_start_matches("oci:").split(':').next().unwrap();
        lab.run(&format!("imgtool mkfs {source} disk#1"))
            .fails(1, &[named]);
        assert_eq!(lab.imgtool("fs tree disk#1"), before, "{source}");
    }
    lab.qemu_img("check -q disk");
}
