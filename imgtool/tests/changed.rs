//! Files that somebody else cuts or writes over while a command has them open. What is read then is anybody's guess; but a
//! command ends by itself, does not crash, and leaves no half of a target.
//!
//! strace stops the command at one of its reads, and goes on with it when the file is changed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::Lab;

/// What is done to a file of a length.
type Change = fn(&File, u64);

const CHANGES: [(&str, Change); 4] = [
    ("cut to nothing", |file, _| file.set_len(0).unwrap()),
    ("cut in half", |file, len| file.set_len(len / 2 + 100).unwrap()),
    ("cut behind its start", |file, _| file.set_len(5000).unwrap()),
    ("written over", |file, len| {
        // Large numbers wherever there are any, the header too.
        file.write_all_at(&vec![0xfe; len as usize], 0).unwrap();
    }),
];

/// Runs `imgtool`, which is stopped at its so many-th read, where the file is changed. `None` if it does not read so often.
fn run_over(lab: &Lab, line: &str, read: usize, name: &str, change: Change) -> Option<Output> {
    let log = lab.path("trace");
    let _ = fs::remove_file(&log);
    let inject = format!("inject=pread64,preadv:signal=STOP:when={read}");
    let mut command = lab.command("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "trace",
        "-e",
        "trace=pread64,preadv",
        "-e",
        &inject,
    ]);
    command.arg(env!("CARGO_BIN_EXE_imgtool")).args(line.split(' '));
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stops = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        // Every thread stops all of them when it comes there.
        let now = text.matches("stopped by SIGSTOP").count();
        if now > stops {
            if stops == 0 {
                let file = File::options().write(true).open(lab.path(name)).unwrap();
                change(&file, file.metadata().unwrap().len());
            }
            stops = now;
            let threads: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
            for thread in threads {
                // One that has ended has nobody to go on with.
                lab.run(&format!("kill -CONT {thread}"));
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (stops > 0).then_some(output)
}

fn images(lab: &Lab) {
    let script = "
        head -c 3000000 /dev/urandom >a.raw; truncate -s 6M a.raw; printf old >old.key
        $0 convert -q -O qcow2 -o cluster_size=4k a.raw a.qcow2; $0 snapshot create -q a.qcow2 s
        $0 convert -q -c -O qcow2 a.raw c.qcow2; $0 convert -q --key old.key -O luks -o iter-time=10 a.raw a.luks
        qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
        mkdir tree; head -c 500000 /dev/urandom >tree/file; $0 mkfs -q --size 16M tree fs.img; cp tree/file new";
    lab.run_words(&["sh", "-ec", script, env!("CARGO_BIN_EXE_imgtool")])
        .ok();
}

#[test]
fn what_is_changed_while_it_is_read_ends_no_command_badly() {
    let origin = Lab::new();
    images(&origin);
    let mut changed = 0;
    for (line, name) in [
        ("convert -q -f raw -O qcow2 a.raw out.qcow2", "a.raw"),
        ("convert -q -O raw a.qcow2 out.raw", "a.qcow2"),
        ("convert -q -O raw c.qcow2 out.raw", "c.qcow2"),
        ("convert -q -O raw top.qcow2 out.raw", "a.qcow2"),
        ("convert -q --key old.key -f luks -O raw a.luks out.raw", "a.luks"),
        ("qemu-img convert -O raw a.qcow2 out.raw", "a.qcow2"),
        ("dd -q -f qcow2 -O raw bs=64k if=a.qcow2 of=out.raw", "a.qcow2"),
        ("compare -f raw -F qcow2 a.raw a.qcow2", "a.qcow2"),
        ("check a.qcow2", "a.qcow2"),
        ("map --output json top.qcow2", "a.qcow2"),
        ("measure -O qcow2 a.qcow2", "a.qcow2"),
        ("inspect --safe a.qcow2", "a.qcow2"),
        ("fs cp fs.img /file out.raw", "fs.img"),
    ] {
        for read in [2, 4, 7, 20] {
            for (what, change) in CHANGES {
                let lab = Lab::new();
                origin
                    .run_words(&["cp", "-a", ".", lab.dir().to_str().unwrap()])
                    .ok();
                let what = format!("{line}, {name} {what} at read {read}");
                let Some(output) = run_over(&lab, line, read, name, change) else {
                    break;
                };
                changed += 1;
                let said = String::from_utf8_lossy(&output.stderr);
                let code = output.status.code();
                assert!(
                    code.is_some_and(|code| code < 100) && !said.contains("panicked"),
                    "{what}: {:?}: {said}",
                    output.status
                );
                for target in ["out.raw", "out.qcow2"].map(|target| lab.path(target)) {
                    assert!(
                        code == Some(0) || !target.exists(),
                        "{what}: half a target is there"
                    );
                }
            }
        }
    }
    assert!(changed > 60, "{changed} changes");
}

/// Nothing can be promised of the file itself.
#[test]
fn what_is_changed_while_it_is_written_to_ends_no_command_badly() {
    let origin = Lab::new();
    images(&origin);
    let mut changed = 0;
    for (line, name) in [
        ("resize -q a.qcow2 20M", "a.qcow2"),
        ("snapshot apply -q a.qcow2 s", "a.qcow2"),
        ("snapshot delete -q a.qcow2 s", "a.qcow2"),
        ("bitmap --add a.qcow2 b", "a.qcow2"),
        ("check -q -r all a.qcow2", "a.qcow2"),
        ("amend -q -o compat=0.10 c.qcow2", "c.qcow2"),
        ("stream -q top.qcow2", "a.qcow2"),
        ("commit -q top.qcow2", "a.qcow2"),
        ("fs put fs.img new /new", "fs.img"),
        ("fs rm fs.img /file", "fs.img"),
        ("fs put fs.img new /new", "new"),
    ] {
        for read in [2, 5, 12] {
            for (what, change) in CHANGES {
                let lab = Lab::new();
                origin
                    .run_words(&["cp", "-a", ".", lab.dir().to_str().unwrap()])
                    .ok();
                let what = format!("{line}, {name} {what} at read {read}");
                let Some(output) = run_over(&lab, line, read, name, change) else {
                    break;
                };
                changed += 1;
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.code().is_some_and(|code| code < 100) && !said.contains("panicked"),
                    "{what}: {:?}: {said}",
                    output.status
                );
            }
        }
    }
    assert!(changed > 40, "{changed} changes");
}
