//! What programs that call `qemu-img` ask of it, by their documentation and their logs: with our link and with QEMU's own program
//! first in PATH, the same lines say the same, end with the same exit codes, and leave the same files with the same disks.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// What a line said, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A directory in which one of the programs is `qemu-img`.
struct Side {
    directory: tempfile::TempDir,
    path: OsString,
}

impl Side {
    fn new(path: OsString) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, path }
    }

    fn run(&self, line: &str) -> Outcome {
        let mut command = Command::new("sh");
        command.args(["-ec", line]).env("PATH", &self.path);
        let output = command.current_dir(self.directory.path()).output().unwrap();
        let text = |bytes| self.plain(&String::from_utf8(bytes).unwrap());
        Outcome {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Without where it was, what a file takes on the host, and how long it is, as ours are smaller. Of progress the start and the end
    /// count, and not how far each step came.
    fn plain(&self, text: &str) -> String {
        let of_host = |line: &&str| {
            let start = line.trim_start();
            let below = line.len() - start.len() >= 12;
            ["disk size:", "file length:", "\"actual-size\":"]
                .iter()
                .any(|name| start.starts_with(name))
                || (below && start.starts_with("\"virtual-size\":"))
        };
        let text = text.replace(self.directory.path().to_str().unwrap(), "LAB");
        let mut pieces: Vec<&str> = text.split_inclusive(['\n', '\r']).collect();
        pieces.retain(|piece| {
            let between =
                piece.ends_with("/100%)\r") && !matches!(piece.trim(), "(0.00/100%)" | "(100.00/100%)");
            !between && !of_host(piece)
        });
        pieces.dedup_by(|next, last| next == last && next.ends_with('\r'));
        pieces.concat()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Sees to it that a server, which has written its number to `pid`, ends with the line, and leaves nothing behind, no lock of `disk`
/// either: the kernel lets go of it some time after the process has gone, and answers for the file alone where /proc/locks, which is read
/// in pieces, leaves out what others change meanwhile.
const END_SERVER: &str = "until [ -s pid ]; do sleep 0.02; done; server=$(cat pid)
    locked='import fcntl, struct, sys
LOCK, F_OFD_GETLK, F_WRLCK, F_UNLCK = \"hhqqi4x\", 36, 1, 2
with open(\"disk\") as file:
    found = fcntl.fcntl(file, F_OFD_GETLK, struct.pack(LOCK, F_WRLCK, 0, 0, 0, 0))
sys.exit(struct.unpack(LOCK, found)[0] == F_UNLCK)'
    runs() { [ -e /proc/$server ] || { [ -e disk ] && python3 -c \"$locked\"; }; }
    trap 'kill $server; for n in $(seq 6000); do runs || break; sleep 0.05; done; rm -f pid socket' EXIT";

/// Runs the lines with both. One that starts with `!` is to fail.
fn same(lines: &[&str]) {
    let links = tempfile::tempdir().unwrap();
    symlink(env!("CARGO_BIN_EXE_imgtool"), links.path().join("qemu-img")).unwrap();
    let theirs = env::var_os("PATH").unwrap();
    let mut ours = links.path().as_os_str().to_owned();
    ours.push(":");
    ours.push(&theirs);
    let [ours, theirs] = [ours, theirs].map(Side::new);
    let called = ours.run("qemu-img --version").out;
    assert!(called.contains("imgtool"), "{called}");
    for line in lines {
        let (line, succeeds) = match line.strip_prefix('!') {
            Some(line) => (line, false),
            None => (*line, true),
        };
        let [ours, theirs] = [&ours, &theirs].map(|side| side.run(line));
        assert_eq!(ours, theirs, "{line}");
        assert_eq!(ours.code == Some(0), succeeds, "{line}: {ours:?}");
    }
    assert_eq!(ours.names(), theirs.names());
    for name in ours.names() {
        let paths = [&ours, &theirs].map(|side| side.directory.path().join(&name));
        assert_same_disk(&paths.each_ref().map(|path| &**path));
    }
}

/// QEMU's own program finds the images whole, and their disks the same.
fn assert_same_disk(paths: &[&Path; 2]) {
    let qemu_img = |command: &str, files: &[&Path]| {
        let output = Command::new("qemu-img")
            .arg(command)
            .args(files)
            .output()
            .unwrap();
        let code = output.status.code();
        assert!(
            code == Some(0) || code == Some(63),
            "{command} {files:?}: {output:?}"
        );
    };
    qemu_img("compare", paths);
    qemu_img("check", &paths[..1]);
}

#[test]
fn packer_makes_resizes_and_compacts_disks() {
    same(&[
        "qemu-img create -q -f qcow2 box.qcow2 16M",
        "qemu-io -c 'write -P 7 1M 2M' box.qcow2 >log",
        "rm log",
        "qemu-img create -f qcow2 disk 40M",
        "qemu-img create -f qcow2 -b box.qcow2 -F qcow2 overlay 40960K",
        "qemu-img create -f raw -o preallocation=off packer-raw 40M",
        "qemu-img create -f qcow2 disk-1 1024K",
        "qemu-img convert -O qcow2 box.qcow2 copy",
        "qemu-img resize -f qcow2 copy 40M",
        "!qemu-img resize -f qcow2 copy 20M",
        "qemu-img resize -f qcow2 --shrink copy 20M",
        "qemu-io -c 'write -P 9 5M 64k' overlay >log",
        "rm log",
        "qemu-img convert -c -O qcow2 overlay overlay.convert",
        "mv overlay.convert overlay",
        "qemu-img convert -c -o compression_type=zstd -O qcow2 copy copy.convert",
        "qemu-img convert -O raw overlay flat.convert",
        "qemu-img info --output=json overlay",
        "qemu-img info copy.convert -f qcow2 --output json",
        "qemu-img check overlay",
    ]);
}

#[test]
fn a_disk_that_is_in_use_is_refused_in_the_words_that_packer_waits_for() {
    let serve = |then: &str| {
        let server = "qemu-nbd --fork -t -k $PWD/socket --pid-file pid -f qcow2 disk";
        format!("{server}; {END_SERVER}; {then}")
    };
    same(&[
        "qemu-img create -q -f qcow2 disk 1M",
        &format!("!{}", serve("qemu-img convert -O qcow2 disk disk.convert")),
        &format!("!{}", serve("qemu-img info disk")),
        &format!("!{}", serve("qemu-img resize disk 2M")),
        &serve("qemu-img info --force-share --output=json disk"),
        &serve("qemu-img info -U disk"),
    ]);
}

/// What `OpenStack` and CDI let a look at an image take: address space and seconds of processor time.
const LIMITED: &str = "prlimit --as=1073741824 --cpu=30 -- env LC_ALL=C LANG=C qemu-img";

#[test]
fn nova_looks_at_converts_and_flattens_the_disks_of_instances() {
    let limited = |rest: &str| format!("{LIMITED} {rest}");
    same(&[
        "qemu-img create -q -f qcow2 image 32M",
        "qemu-io -c 'write -P 7 1M 2M' -c 'write -z 4M 1M' image >log; rm log",
        &limited("info $PWD/image --force-share --output=json"),
        &limited("info $PWD/image --force-share --output=json -f qcow2"),
        "qemu-img convert -t none -O raw -f qcow2 image image.part",
        "mv image.part base",
        &limited("info $PWD/base --force-share --output=json -f raw"),
        "qemu-img create -f qcow2 -o backing_file=$PWD/base,backing_fmt=raw,size=64M disk",
        "qemu-img create -f qcow2 -o backing_file=base,backing_fmt=raw disk.local 50331648",
        &limited("info $PWD/disk --force-share --output=json"),
        "qemu-io -c 'write -P 3 40M 1M' disk >log; rm log",
        "qemu-img resize disk 67108864",
        "qemu-img resize -f qcow2 disk 83886080",
        "qemu-img create -f qcow2 -o backing_file=$PWD/disk,backing_fmt=qcow2 disk.delta",
        "qemu-img rebase -u -f qcow2 -b base -F raw disk",
        "qemu-img convert -t none -O qcow2 -f qcow2 -c disk snapshot.qcow2",
        "qemu-img convert -t writeback -O qcow2 -f qcow2 disk snapshot-2",
        "qemu-img convert -O raw -f qcow2 -t none disk snapshot.raw",
        "qemu-img snapshot -c nova disk",
        "qemu-img convert -f qcow2 -O qcow2 -l nova disk of-snapshot",
        "qemu-img snapshot -d nova disk",
        "qemu-img rebase -f qcow2 -b '' disk",
        "env LC_ALL=C LANG=C qemu-img info disk",
        "!env LC_ALL=C LANG=C qemu-img info --output=json --force-share gone",
        &format!(
            "!{}",
            limited("info $PWD/base --force-share --output=json -f qcow2")
        ),
    ]);
}

#[test]
fn glance_and_cinder_take_images_in_and_make_volumes_of_them() {
    let limited = |rest: &str| format!("{LIMITED} {rest}");
    same(&[
        "qemu-img create -q -f qcow2 upload 24M",
        "qemu-io -c 'write -P 5 2M 3M' upload >log; rm log",
        &limited("info -f qcow2 --output=json $PWD/upload"),
        &limited("info --force-share --output=json $PWD/upload"),
        &limited("info -f raw --force-share --output=json $PWD/upload"),
        "qemu-img convert -f qcow2 -O raw upload imported",
        "truncate -s 32M volume",
        "qemu-img convert -O raw -t none -f qcow2 -n upload volume",
        "qemu-img convert -O raw -t none -f qcow2 -W upload volume-2",
        "qemu-img convert -p -n -W -f qcow2 -O raw upload volume",
        "truncate -s 32M zeroed",
        "qemu-img convert -n --target-is-zero -f qcow2 -O raw -m 2 upload zeroed",
        "qemu-img create -f raw volume-3 1G",
        "qemu-img create -f qcow2 -o preallocation=metadata,cluster_size=2M volume-4 64M",
        "qemu-img create -f qcow2 -o backing_file=volume-4,backing_fmt=qcow2 -F qcow2 volume-4.snap",
        "qemu-img rebase -u -b volume-4 volume-4.snap -F qcow2",
        "qemu-io -c 'write -P 6 60M 1M' volume-4.snap >log; rm log",
        "qemu-img commit volume-4.snap",
        "qemu-img commit -f qcow2 -d volume-4.snap",
        "qemu-img resize -f qcow2 volume-4 96M",
        "qemu-img resize -f raw volume-3 2G",
        "qemu-img measure -O qcow2 upload",
        "qemu-img measure --output=json -f qcow2 -O raw upload",
        "qemu-img measure --size 10G -O qcow2 --output json",
        "qemu-img convert -O qcow2 -c -f raw volume back",
    ]);
}

#[test]
fn lima_makes_a_disk_over_its_base() {
    same(&[
        "qemu-img create -q -f qcow2 download 8M",
        "qemu-io -c 'write -P 5 2M 3M' download >log; rm log",
        "qemu-img info --output=json --force-share download",
        "qemu-img convert -O qcow2 download basedisk",
        "qemu-img create -f qcow2 -F qcow2 -b basedisk diffdisk 107374182400",
        "qemu-img convert -f qcow2 -O raw basedisk raw",
        "qemu-img resize -f raw raw 16777216",
        "qemu-img create -f qcow2 datadisk 10737418240",
        "qemu-img resize datadisk 21474836480",
        "qemu-img snapshot -c tag diffdisk",
        "qemu-img snapshot -a tag diffdisk",
        "qemu-img snapshot -d tag diffdisk",
        "qemu-img snapshot -l diffdisk",
        "!qemu-img snapshot -a gone diffdisk",
        "qemu-img rebase -b '' basedisk",
        "qemu-img info --backing-chain --output=json --force-share diffdisk",
    ]);
}

#[test]
fn vagrant_libvirt_and_proxmox_import_export_and_link_disks() {
    same(&[
        "qemu-img create -q -f qcow2 box.img 16M",
        "qemu-io -c 'write -P 5 2M 3M' box.img >log; rm log",
        "qemu-img info --output=json box.img",
        "qemu-img rebase -p -b '' box.img",
        "qemu-img convert -p -f qcow2 -O qcow2 box.img packaged",
        "qemu-img convert -c -S 16k -O qcow2 -o compat=0.10 packaged shrunk",
        "qemu-img create -f qcow2 -o preallocation=off vm-100-disk-0.qcow2 32768K",
        "qemu-img create -f qcow2 -o preallocation=metadata vm-100-disk-1.qcow2 32768K",
        "qemu-img create -f raw -o preallocation=falloc vm-100-disk-2.raw 4194304",
        "qemu-img create -f raw -o preallocation=full vm-100-disk-3.raw 4194304",
        "qemu-img convert -p -n -f qcow2 -O qcow2 box.img vm-100-disk-0.qcow2",
        "truncate -s 16M device",
        "qemu-img convert -p -n -T none -f qcow2 -O raw box.img device",
        "qemu-img create -F qcow2 -b ./box.img -f qcow2 vm-101-disk-0.qcow2",
        "qemu-img resize -f qcow2 vm-101-disk-0.qcow2 +8G",
        "qemu-img resize --preallocation=off -f qcow2 vm-101-disk-0.qcow2 10G",
        "qemu-img snapshot -c snap1 vm-101-disk-0.qcow2",
        "qemu-img info -U --output=json vm-100-disk-2.raw",
        "qemu-img convert -p -f qcow2 -O raw -l snapshot.name=snap1 vm-101-disk-0.qcow2 out.raw",
        "qemu-img snapshot -d snap1 vm-101-disk-0.qcow2",
        "qemu-img dd -f qcow2 -O raw bs=65536 if=box.img of=dd.raw",
        "qemu-img dd -f raw -O raw count=16 bs=64k if=dd.raw of=dd-2.raw",
        "qemu-img measure --output=json --size 1T -O qcow2",
        "qemu-img bitmap --add -g 64k box.img backup",
        "qemu-img info box.img",
        "qemu-img bitmap --remove box.img backup",
    ]);
}

#[test]
fn cdi_imports_what_nbdkit_serves() {
    let served = |then: &str| {
        let server = "nbdkit -U $PWD/socket -P $PWD/pid --filter=retry file image";
        format!("{server}; {END_SERVER}; {then}")
    };
    let node = r#"'json: {"file.driver": "nbd", "file.path": "'$PWD'/socket", "file.export": ""}'"#;
    let limited = "prlimit --as=1073741824 --cpu=30 qemu-img info --output=json nbd:unix:$PWD/socket";
    same(&[
        "qemu-img create -q -f qcow2 image 16M",
        "qemu-io -c 'write -P 5 2M 3M' image >log; rm log",
        "qemu-img info --output=json --backing-chain $PWD/image",
        &served(limited),
        &served(&format!("qemu-img convert -t writeback -p -O raw {node} target")),
        &served("qemu-img convert -t none -p -O raw nbd+unix:///?socket=$PWD/socket target-2"),
        &served(
            "qemu-img convert -t writeback -p -O raw nbd:unix:$PWD/socket target-3 -o preallocation=falloc",
        ),
        "qemu-img convert -t writeback -p -O raw $PWD/image block",
        "qemu-img resize -f raw target 33554432",
        "qemu-img resize -f raw target-2 33554432 --preallocation=falloc",
        "qemu-img create -f raw blank 10485760 -o preallocation=falloc",
        "qemu-img create -q -f qcow2 -F qcow2 -b image delta",
        "qemu-img commit -p -b image delta",
        "!qemu-img info --output=json $PWD/nothing",
    ]);
}

#[test]
fn ganeti_and_libguestfs_make_overlays_and_convert() {
    same(&[
        "qemu-img create -q -f raw template 24M",
        "qemu-io -f raw -c 'write -P 5 2M 3M' template >log; rm log",
        "LANG=C qemu-img info --output json $PWD/template",
        "qemu-img info --output json ./template",
        "qemu-img create -f qcow2 -o compat=1.1,backing_file=$PWD/template,backing_fmt=raw overlay 32M",
        "qemu-img create -f qcow2 -b $PWD/template -o backing_fmt=raw,lazy_refcounts=on,cluster_size=64K overlay-2.qcow2",
        "qemu-img create -f raw -o preallocation=off output 32M",
        "qemu-img create -f qcow2 -o preallocation=metadata output.qcow2 32M",
        "qemu-img convert -n -f raw -O qcow2 template output.qcow2",
        "qemu-img convert -q -f qcow2 -O raw overlay flat",
        "qemu-img convert -f raw -O qcow2 -o compat=0.10 template sparse.qcow2",
        "qemu-img convert -f qcow2 output.qcow2 -O qcow2 -o compression_type=zstd -c compressed.qcow2",
        "qemu-img resize output.qcow2 +8M",
        "qemu-img rebase -f qcow2 -F raw -b ./template overlay",
        "qemu-img amend -f qcow2 -o compat=1.1 sparse.qcow2",
        "qemu-img check -f qcow2 --output json sparse.qcow2",
        "qemu-img map --output=json overlay",
        "qemu-img map overlay",
        "qemu-img compare -s -f qcow2 -F qcow2 sparse.qcow2 sparse.qcow2",
        "qemu-img compare flat overlay -p",
    ]);
}
