//! Two processes on one image, QEMU's tools as one of them: whoever writes has it alone, and whoever reads has it with other
//! readers. What is refused changes nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use crate::common::Lab;
use crate::nbd::Served;

/// Ours that read `%`.
const READERS: [&str; 20] = [
    "imgtool info %",
    "imgtool check %",
    "imgtool map %",
    "imgtool inspect %",
    "imgtool measure -O qcow2 %",
    "imgtool compare -q % same",
    "imgtool convert -q -O raw % copy",
    "imgtool dd -q if=% of=copy",
    "imgtool snapshot list %",
    "imgtool snapshot export -q -O qcow2 % first copy",
    "imgtool bitmap --list %",
    "imgtool bitmap --ranges % all",
    "imgtool qemu-img info %",
    "imgtool qemu-img check %",
    "imgtool qemu-img map %",
    "imgtool qemu-img measure -O raw %",
    "imgtool qemu-img compare -q % same",
    "imgtool qemu-img convert -O raw % copy",
    "imgtool qemu-img dd if=% of=copy",
    "imgtool qemu-img snapshot -l %",
];

/// Ours that write to it, or put another in its place.
const WRITERS: [&str; 27] = [
    "imgtool create -q -f qcow2 % 1M",
    "imgtool convert -q -O qcow2 same %",
    "imgtool convert -q -n -O qcow2 same %",
    "imgtool convert -q --in-place -O qcow2 same %",
    "imgtool dd -q -O qcow2 if=same of=%",
    "imgtool resize -q % 20M",
    "imgtool amend -q -o lazy_refcounts=on %",
    "imgtool check -q -r all %",
    "imgtool commit -q %",
    "imgtool rebase -q -u -b other -F qcow2 %",
    "imgtool snapshot create -q % second",
    "imgtool snapshot apply -q % first",
    "imgtool snapshot rename -q % first 1st",
    "imgtool snapshot delete -q % first",
    "imgtool bitmap --add % new",
    "imgtool bitmap --clear % all",
    "imgtool bitmap --remove % all",
    "imgtool qemu-img create -q -f qcow2 % 1M",
    "imgtool qemu-img convert -O qcow2 same %",
    "imgtool qemu-img convert -n -O qcow2 same %",
    "imgtool qemu-img resize -q % 20M",
    "imgtool qemu-img amend -o lazy_refcounts=on %",
    "imgtool qemu-img check -r all %",
    "imgtool qemu-img commit -q %",
    "imgtool qemu-img rebase -u -b other -F qcow2 %",
    "imgtool qemu-img snapshot -c second %",
    "imgtool qemu-img bitmap --add % new",
];

/// Ours that read it whoever writes to it.
const SHARING: [&str; 9] = [
    "imgtool info -U %",
    "imgtool map -U %",
    "imgtool measure -U -O qcow2 %",
    "imgtool compare -U -q % same",
    "imgtool convert -U -q -O raw % copy",
    "imgtool dd -U -q if=% of=copy",
    "imgtool snapshot list -U %",
    "imgtool qemu-img info -U %",
    "imgtool qemu-img convert -U -O raw % copy",
];

/// QEMU's that read it.
const QEMU_READERS: [&str; 9] = [
    "qemu-img info %",
    "qemu-img check %",
    "qemu-img map %",
    "qemu-img measure -O raw %",
    "qemu-img compare -q % same",
    "qemu-img convert -O raw % copy",
    "qemu-img dd if=% of=copy",
    "qemu-img snapshot -l %",
    "qemu-io -r -f qcow2 -c 'read 0 512' %",
];

/// QEMU's that write to it.
const QEMU_WRITERS: [&str; 13] = [
    "qemu-img create -q -f qcow2 % 1M",
    "qemu-img convert -O qcow2 same %",
    "qemu-img convert -n -O qcow2 same %",
    "qemu-img resize -q % 20M",
    "qemu-img amend -o lazy_refcounts=on %",
    "qemu-img check -r all %",
    "qemu-img commit -q %",
    "qemu-img rebase -u -b other -F qcow2 %",
    "qemu-img snapshot -c second %",
    "qemu-img bitmap --add % new",
    "qemu-img bench -w -c 1 -f qcow2 %",
    "qemu-io -f qcow2 -c 'write 0 512' %",
    "qemu-nbd --fork -f qcow2 -k $PWD/socket %",
];

/// `image` over `base`, both with a snapshot and a bitmap, and `same`, which holds what `image` reads as.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.raw("data", 8 << 20, 3);
    lab.imgtool("convert -q -O qcow2 data base");
    lab.qemu_img("create -q -f qcow2 other 8M");
    lab.qemu_img("create -q -f qcow2 -b base -F qcow2 image");
    lab.qemu_io("qcow2", "image", &["write -q -P 7 1M 300k"]);
    lab.qemu_img("convert -O raw image same");
    lab.imgtool("snapshot create -q image first");
    lab.imgtool("bitmap --add image all");
    lab
}

/// A process that has an image open.
struct Holder(Child);

impl Holder {
    /// One that is ready when it has written something, and then waits for ever.
    fn start(lab: &Lab, words: &[&str]) -> Self {
        let mut command = lab.command(words[0]);
        command.args(&words[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// qemu-io, ready when it has read from the image.
    fn qemu_io(lab: &Lab, options: &[&str]) -> Self {
        let mut holder = Self::start(lab, &[&["qemu-io", "-f", "qcow2"], options, &["image"]].concat());
        let stdin = holder.0.stdin.as_mut().unwrap();
        stdin.write_all(b"read 0 512\n").unwrap();
        let mut said = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert!(said.contains("512/512 bytes"), "{said}");
        holder
    }

    /// Ours, which cannot get rid of what it reads.
    fn reader(lab: &Lab) -> Self {
        let mut holder = Self::start(lab, &["imgtool", "convert", "-q", "-O", "raw", "image", "-"]);
        holder.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        holder
    }

    /// Ours, which writes a byte a second.
    fn writer(lab: &Lab) -> Self {
        let mut command = lab.command("imgtool");
        command.args(["commit", "-r", "1", "--progress", "json", "image"]);
        let mut holder = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut said = String::new();
        BufReader::new(holder.0.stderr.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert!(said.contains("total"), "{said}");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What becomes of a command while somebody else has the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    IsLockedOut,
}
use Outcome::{IsLockedOut, Works};

/// Commands while somebody has the image.
struct Trial<'a> {
    lab: &'a Lab,
    holder: &'a str,
    /// Files in which nothing changes meanwhile.
    kept: &'a [&'a str],
}

impl<'a> Trial<'a> {
    fn of(lab: &'a Lab, holder: &'a str) -> Self {
        let kept = &["image", "base"];
        Self { lab, holder, kept }
    }

    /// Runs each of them on an image.
    fn all(&self, commands: &[&str], image: &str, outcome: Outcome) {
        let Self { lab, holder, kept } = *self;
        let bytes = || -> Vec<Vec<u8>> {
            let bytes = kept.iter().map(|name| fs::read(lab.path(name)).unwrap());
            bytes.collect()
        };
        let before = bytes();
        for command in commands {
            let line = command.replace('%', image);
            let line = line.replacen("imgtool", env!("CARGO_BIN_EXE_imgtool"), 1);
            let done = lab.run_words(&["sh", "-c", &line]);
            let says = done.stderr();
            match outcome {
                Works => assert_eq!(done.code(), 0, "{holder}: {line}: {says}"),
                IsLockedOut => assert!(
                    done.code() != 0 && says.contains("lock"),
                    "{holder}: {line}: {says}"
                ),
            }
            assert!(bytes() == before, "{holder}: {line}");
        }
    }
}

/// Those of ours that say something of any image.
fn plain(commands: &[&'static str]) -> Vec<&'static str> {
    let special = ["first", "% all", "same", "commit", "rebase"];
    let commands = commands.iter().copied();
    commands
        .filter(|command| special.iter().all(|word| !command.contains(word)))
        .collect()
}

#[test]
fn while_qemu_writes_ours_neither_write_nor_read_but_by_force() {
    let lab = lab();
    let judge = |holder: &str| {
        let trial = Trial::of(&lab, holder);
        trial.all(&READERS, "image", IsLockedOut);
        trial.all(&WRITERS, "image", IsLockedOut);
        trial.all(&SHARING, "image", Works);
        // It reads what is below.
        trial.all(&plain(&READERS), "base", Works);
        trial.all(&plain(&WRITERS), "base", IsLockedOut);
    };
    let qemu_io = Holder::qemu_io(&lab, &[]);
    judge("qemu-io");
    drop(qemu_io);
    let server = Served::qemu(&lab, "qcow2", "image", "");
    judge("qemu-nbd");
    server.stop();
}

#[test]
fn while_qemu_reads_ours_read_and_do_not_write() {
    let lab = lab();
    let judge = |holder: &str| {
        let trial = Trial::of(&lab, holder);
        trial.all(&READERS, "image", Works);
        trial.all(&WRITERS, "image", IsLockedOut);
        trial.all(&SHARING, "image", Works);
        trial.all(&plain(&READERS), "base", Works);
        trial.all(&plain(&WRITERS), "base", IsLockedOut);
    };
    let qemu_io = Holder::qemu_io(&lab, &["-r"]);
    judge("qemu-io -r");
    drop(qemu_io);
    let server = Served::qemu(&lab, "qcow2", "image", "-r");
    judge("qemu-nbd -r");
    server.stop();
}

#[test]
fn while_ours_write_qemu_neither_writes_nor_reads() {
    let lab = lab();
    // Images with snapshots are not emptied.
    lab.imgtool("snapshot delete -q image first");
    let _holder = Holder::writer(&lab);
    let trial = Trial {
        lab: &lab,
        holder: "commit",
        kept: &[],
    };
    trial.all(&QEMU_READERS, "image", IsLockedOut);
    trial.all(&QEMU_WRITERS, "image", IsLockedOut);
    trial.all(&READERS, "image", IsLockedOut);
    trial.all(&WRITERS, "image", IsLockedOut);
    // It is what is below that it writes to.
    trial.all(&plain(&QEMU_READERS), "base", IsLockedOut);
    trial.all(&plain(&QEMU_WRITERS), "base", IsLockedOut);
}

#[test]
fn while_ours_read_qemu_reads_and_does_not_write() {
    let lab = lab();
    let holder = Holder::reader(&lab);
    let trial = Trial::of(&lab, "convert");
    trial.all(&QEMU_READERS, "image", Works);
    trial.all(&QEMU_WRITERS, "image", IsLockedOut);
    trial.all(&READERS, "image", Works);
    trial.all(&WRITERS, "image", IsLockedOut);
    trial.all(&plain(&QEMU_READERS), "base", Works);
    trial.all(&plain(&QEMU_WRITERS), "base", IsLockedOut);
    // One that serves it for reading starts, and one for writing does when ours has ended.
    Served::qemu(&lab, "qcow2", "image", "-r").stop();
    drop(holder);
    Served::qemu(&lab, "qcow2", "image", "").stop();
}
