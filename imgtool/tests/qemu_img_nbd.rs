//! Exports of NBD servers, by our link and by QEMU's own program: each has servers of its own, with the same contents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::twins::Twins;

/// Servers in both directories, ended with the test.
struct Servers<'a> {
    twins: &'a Twins,
    pid_files: Vec<PathBuf>,
}

impl<'a> Servers<'a> {
    fn new(twins: &'a Twins) -> Self {
        Self {
            twins,
            pid_files: Vec::new(),
        }
    }

    /// Starts one that listens at `NAME.socket`; `line` is what it is called with after that.
    fn serve(&mut self, program: &str, name: &str, line: &str) {
        for directory in [self.twins.theirs(), self.twins.ours()] {
            let (socket, pid) = (file(directory, name, "socket"), file(directory, name, "pid"));
            let mut command = Command::new(program);
            match program {
                "nbdkit" => command.args(["-U", &socket, "-P", &pid]),
                _ => command.args(["--fork", "-t", "-e", "8", "-k", &socket, "--pid-file", &pid]),
            };
            let done = command.args(line.split(' ')).current_dir(directory).output();
            let done = done.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
            assert!(done.status.success(), "{program} {line}: {done:?}");
            self.pid_files.push(pid.into());
        }
    }
}

impl Drop for Servers<'_> {
    fn drop(&mut self) {
        for pid in self
            .pid_files
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
        {
            let _ = Command::new("kill").arg(pid.trim()).output();
        }
    }
}

fn file(directory: &Path, name: &str, extension: &str) -> String {
    let path = directory.join(name).with_extension(extension);
    path.to_str().unwrap().to_owned()
}

/// Does what a script says, in which `@NAME` stands for an export.
fn script(twins: &Twins, script: &str) {
    let lines = script.lines().map(|line| {
        let word = |word: &str| match word.split_once('@') {
            Some((option, name)) => format!("{option}nbd+unix:///?socket={name}.socket"),
            None => word.to_owned(),
        };
        line.trim().split(' ').map(word).collect::<Vec<_>>().join(" ")
    });
    twins.script(&lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn exports_are_described_mapped_compared_and_copied_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 disk 16M
         io disk write -P 3 1M 2M
         io disk write -P 4 9M 192k",
    );
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "disk", "-r -f qcow2 disk");
    servers.serve("qemu-nbd", "file", "-r -f raw disk");
    servers.serve("nbdkit", "kit", "-r file disk");
    script(
        &twins,
        "0 info @disk
         0 info --output json @disk
         0 info nbd:unix:disk.socket
         0 info -f qcow2 @file
         0 info --output json @kit
         0 info --image-opts driver=nbd,path=disk.socket
         0 info --image-opts driver=nbd,server.type=unix,server.path=disk.socket
         0 map @disk
         0 map --output json @disk
         0 map --output json -f qcow2 @file
         0 map --output json -f qcow2 @kit
         0 check @file
         0 check @kit
         0 snapshot -l @kit
         0 measure -O qcow2 @disk
         0 compare @disk disk
         0 compare -F raw @kit @disk
         0 convert -f raw -O qcow2 @disk copy
         0 compare copy disk
         0 convert -f qcow2 -O raw @kit copy
         0 compare copy disk
         0 dd if=@disk of=part bs=1M skip=1 count=9
         file part
         0 dd -f qcow2 -O qcow2 if=@kit of=part bs=1M skip=1 count=9
         same part",
    );
}

#[test]
fn exports_are_written_to_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 disk 16M
         io disk write -P 3 1M 2M
         0 create -q -f raw target 16M",
    );
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "target", "-f raw target");
    servers.serve("nbdkit", "kit", "memory 16M");
    script(
        &twins,
        "0 convert -n -O raw disk @target
         0 compare -f raw @target disk
         0 convert -n -O raw disk @kit
         0 compare -f raw @kit disk
         0 convert -O raw disk @target
         file target
         0 create -f qcow2 @target 8M
         0 info @target
         0 convert -n -f qcow2 -O raw disk @kit
         0 compare -f raw -F raw @kit @kit
         1 commit @target",
    );
}

#[test]
fn what_is_not_served_is_refused_in_the_same_words() {
    let twins = Twins::new();
    twins.script("0 create -q -f raw disk 1M");
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "disk", "-f raw -x name disk");
    script(
        &twins,
        "1 info @nowhere
         1 info @disk
         0 info nbd+unix:///name?socket=disk.socket
         1 info nbd+unix:///other?socket=disk.socket
         1 info nbd:unix:disk.socket:exportname=other
         0 info nbd:unix:disk.socket:exportname=name
         1 convert -O raw @disk copy
         1 convert -n -O raw disk @nowhere
         1 info nbd:localhost:1",
    );
}

#[test]
fn exports_stay_as_long_as_they_are() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f raw disk 4M
         0 create -q -f raw big 8M
         0 create -q -f raw small 2M",
    );
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "disk", "-f raw disk");
    script(
        &twins,
        "1 resize -f raw @disk 8M
         1 resize -f raw --shrink @disk 8M
         1 resize -f raw --preallocation=full @disk 8M
         0 resize -f raw @disk 4M
         1 resize -f raw @disk 2M
         1 resize -f raw --shrink @disk 2M
         1 create -f raw @disk 8M
         0 create -f raw @disk 2M
         1 convert -f raw big @disk
         1 convert -n -f raw big @disk
         0 convert -n -f raw small @disk",
    );
}

#[test]
fn exports_that_are_only_read_are_not_written_to() {
    let twins = Twins::new();
    twins.script("0 create -q -f raw disk 4M\n0 create -q -f raw small 2M");
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "disk", "-r -f raw disk");
    script(
        &twins,
        "0 info @disk
         1 create -f raw @disk 2M
         1 create -f raw @disk 8M
         1 create -f qcow2 @disk 1M
         1 convert -f raw small @disk
         1 convert -n -f raw small @disk
         1 convert -f raw -O qcow2 small @disk
         1 dd -f raw if=small of=@disk
         1 resize -f raw @disk 8M
         1 resize @disk 8M
         1 snapshot -c x @disk
         0 snapshot -l @disk
         1 bitmap --add -f raw @disk b
         1 amend -f raw -o size=1M @disk
         63 check @disk
         1 check -r all @disk
         1 bench -w -c 1 -f raw @disk
         1 rebase -f raw -b '' @disk
         0 create -q -f qcow2 -b @disk -F raw over
         io over write -P 1 0 64k
         1 commit over
         1 commit -d over",
    );
}

#[test]
fn names_of_no_export_are_refused_alike() {
    let twins = Twins::new();
    twins.ok("create -q -f raw r 1M");
    for name in [
        "nbd://",
        "nbd:",
        "nbd:HOST",
        "nbd:127.0.0.1",
        "nbd:127.0.0.1:",
        "nbd:127.0.0.1:x",
        "nbd:127.0.0.1:1",
        "nbd:127.0.0.1:1:exportname=",
        "nbd:127.0.0.1:1:exportname=x",
        "nbd:127.0.0.1:1:foo",
        "nbd::1",
        "nbd:unix",
        "nbd:unix:gone",
        "nbd:/foo",
        "nbd:[::1",
        "nbd:[::1]",
        "nbd://127.0.0.1:1",
        "nbd://127.0.0.1:99999",
        "nbd://127.0.0.1:x",
        "nbd://127.0.0.1:1/x?y=z",
        "nbd://127.0.0.1:1?x",
        "nbd://[::1",
        "nbd://user@127.0.0.1:1",
        "nbd://127.0.0.1:1#fragment",
        "nbd:///x",
        "nbd://:1",
        "nbd+tcp://",
        "nbd+tcp:127.0.0.1:1",
        "nbd+unix:///?socket=gone&a=b",
        "nbd+unix:///?a=b",
        "nbd+unix://host/?socket=gone",
        "nbd+unix:x",
        "nbds://127.0.0.1:1",
        "nbds+unix:///?socket=gone",
    ] {
        for line in ["info", "convert -n -f raw r"] {
            let line = format!("{line} {name}");
            assert_eq!(twins.both(&line).code, Some(1), "{line}");
        }
    }
    for name in ["nbd://", "nbd:x", "nbd:127.0.0.1:1", "nbd+unix:///?socket=gone"] {
        for line in [
            format!("create -f raw {name} 1M"),
            format!("create -f qcow2 {name} 1M"),
            format!("convert -f raw r {name}"),
            format!("dd -f raw if=r of={name}"),
            format!("create -f qcow2 -b {name} -F raw over"),
        ] {
            assert_eq!(twins.both(&line).code, Some(1), "{line}");
        }
    }
    for options in [
        "",
        "host=127.0.0.1",
        "host=127.0.0.1,port=1",
        "host=127.0.0.1,port=x",
        "host=127.0.0.1,path=x",
        "path=gone",
        "path=gone,port=1",
        "path=gone,foo=1",
        "path=gone,tls-creds=x",
        "path=gone,reconnect-delay=x",
        "port=1",
        "export=x",
        "filename=nbd:unix:gone",
        "server=x",
        "server.type=unix",
        "server.type=unix,server.path=gone",
        "server.type=unix,server.path=gone,server.foo=x",
        "server.type=inet",
        "server.type=inet,server.host=127.0.0.1",
        "server.type=inet,server.host=127.0.0.1,server.port=1",
        "server.type=inet,server.host=127.0.0.1,server.port=1,host=x",
        "server.type=foo",
        "server.path=gone",
    ] {
        let line = format!("info --image-opts driver=nbd,{options}");
        assert_eq!(twins.both(&line).code, Some(1), "{line}");
    }
}

#[test]
fn exports_for_reading_only_are_not_written_to() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f raw disk 1M
         0 create -q -f qcow2 image 1M",
    );
    let mut servers = Servers::new(&twins);
    servers.serve("qemu-nbd", "raw", "-r -f raw disk");
    servers.serve("qemu-nbd", "image", "-r -f raw image");
    script(
        &twins,
        "1 commit @raw
         1 commit -f raw @raw
         1 commit @image
         1 rebase -b '' @image
         1 resize -f raw @raw 2M
         1 snapshot -c s @image
         1 create -f raw @raw 1M
         1 convert -f raw disk @raw
         1 convert -n -f raw disk @raw
         1 dd -f raw if=disk of=@raw
         1 create -f raw nbd:unix:raw.socket 1M",
    );
}
