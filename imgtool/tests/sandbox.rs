//! The sandbox that reading commands enter: a library that is loaded into imgtool tries to leave it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;

use crate::common::Lab;

const MIB: usize = 1 << 20;
/// Attempts of `escape.c`, each of which is made in two threads.
const ATTEMPTS: usize = 31;
/// Those that succeed outside of a sandbox, whoever runs this.
const POSSIBLE: [&str; 17] = [
    "open",
    "open-path",
    "write-over",
    "create",
    "truncate",
    "chmod",
    "tcp",
    "udp",
    "unix",
    "signal",
    "run-code",
    "make-code",
    "execute",
    "open-in-others",
    "send",
    "process",
    "ask-file",
];
const ENOSYS: i32 = 38;
const EACCES: i32 = 13;

/// Images, and what tries to leave.
fn lab() -> Lab {
    let lab = Lab::new();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/escape/escape.c");
    lab.run_words(&["cc", "-shared", "-fPIC", "-O1", "-o", "escape.so", source])
        .ok();
    lab.raw("raw", 4 * MIB, 3);
    lab.qemu_img("convert -f raw -O qcow2 raw image");
    lab.qemu_img("create -q -f qcow2 -b image -F qcow2 over");
    lab.qemu_img("snapshot -c s image");
    lab
}

/// What came of each attempt on the file `victim` of `elsewhere`, and on the rest of the world, while a command ran: the worst of
/// both threads, 0 if one of them succeeded.
fn attempts(lab: &Lab, elsewhere: &Lab, words: &[&str]) -> BTreeMap<String, i32> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = elsewhere.path("socket");
    let _ = fs::remove_file(&socket);
    let _daemon = UnixDatagram::bind(&socket).unwrap();
    let notes = lab.path("notes");
    let _ = fs::remove_file(&notes);
    let victim = elsewhere.path("victim");
    fs::write(&victim, "precious").unwrap();
    let mut command = lab.command("env");
    command
        .arg(format!("LD_PRELOAD={}", lab.path("escape.so").display()))
        .arg(format!("ESCAPE_NOTES={}", notes.display()))
        .arg(format!("ESCAPE_VICTIM={}", victim.display()))
        .arg(format!("ESCAPE_SOCKET={}", socket.display()))
        .arg(format!("ESCAPE_PORT={}", listener.local_addr().unwrap().port()))
        .args(words)
        .stdin(Stdio::null());
    // It says that nothing is done yet before it opens anything.
    if words.ends_with(&imgtool("qemu-img convert -p -O raw over new")) {
        command.env("ESCAPE_LATER", "");
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    let mut worst = BTreeMap::new();
    let mut lines = 0;
    for line in fs::read_to_string(&notes).unwrap_or_default().lines() {
        let (name, error) = line.split_once(' ').unwrap();
        let error: i32 = error.parse().unwrap();
        let one = worst.entry(name.to_owned()).or_insert(error);
        *one = error.min(*one);
        lines += 1;
    }
    assert_eq!(
        (worst.len(), lines),
        (ATTEMPTS, 2 * ATTEMPTS),
        "{words:?}: {worst:?}"
    );
    worst
}

fn imgtool(line: &str) -> Vec<&str> {
    let mut words = vec![env!("CARGO_BIN_EXE_imgtool")];
    words.extend(line.split_whitespace());
    words
}

fn assert_untouched(elsewhere: &Lab) {
    assert_eq!(elsewhere.names(), ["socket", "victim"]);
    assert_eq!(fs::read_to_string(elsewhere.path("victim")).unwrap(), "precious");
}

#[test]
fn no_command_that_reads_can_be_made_to_do_anything_else() {
    let (lab, elsewhere) = (lab(), Lab::new());
    for line in [
        "info image",
        "info --backing-chain over",
        "check image",
        "map over",
        "map --svg - over",
        "inspect --safe image",
        "compare raw over",
        "compare --io mmap raw image",
        "measure -O qcow2 over",
        "convert -p -O raw over new",
        "convert -p -c -O qcow2 over new",
        "convert -p -n -O raw over new.raw",
        "convert -O raw over -",
        "qemu-img info image",
        "qemu-img info --backing-chain over",
        "qemu-img check image",
        "qemu-img map over",
        "qemu-img compare raw over",
        "qemu-img measure -O qcow2 over",
        "qemu-img convert -p -O raw over new",
    ] {
        fs::File::create(lab.path("new.raw"))
            .unwrap()
            .set_len(4 * MIB as u64)
            .unwrap();
        for (name, error) in attempts(&lab, &elsewhere, &imgtool(line)) {
            assert_ne!(error, 0, "{line}: {name} succeeded");
        }
        assert_untouched(&elsewhere);
    }
}

#[test]
fn without_the_sandbox_the_same_attempts_succeed() {
    let lab = lab();
    let worst = attempts(&lab, &Lab::new(), &imgtool("info --no-sandbox image"));
    for name in POSSIBLE {
        assert_eq!(worst[name], 0, "{name}: {worst:?}");
    }
}

/// Each mechanism holds by itself what it is there for, and where a kernel has neither, commands work as ever.
#[test]
fn either_half_holds_alone_and_neither_is_needed() {
    let lab = lab();
    let inject = |call: &'static str, rest: &str| {
        let line = format!("strace -f -qq -o trace -e inject={call}:error=EOPNOTSUPP {rest}");
        line.replace("imgtool", env!("CARGO_BIN_EXE_imgtool"))
    };
    let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    let run = |line: String| {
        let words = words(&line);
        attempts(
            &lab,
            &Lab::new(),
            &words.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    };
    let no_landlock = run(inject("landlock_create_ruleset", "imgtool info image"));
    assert!(no_landlock.values().all(|error| *error != 0), "{no_landlock:?}");
    assert_eq!(no_landlock["open"], ENOSYS);
    let no_seccomp = run(inject("seccomp", "imgtool info image"));
    for name in [
        "open",
        "open-path",
        "write-over",
        "create",
        "truncate",
        "rename",
        "remove",
    ] {
        assert_eq!(no_seccomp[name], EACCES, "{name}");
    }
    assert_eq!(no_seccomp["tcp"], 0);
    let expected = lab.imgtool("info image");
    let neither = inject("seccomp,landlock_create_ruleset", "imgtool info image");
    let done = lab.run(&neither);
    assert_eq!((done.stdout(), done.stderr().as_str()), (expected, ""));
    // A person is told.
    let done = lab.run_words(&["script", "-qec", &neither, "typescript"]);
    assert!(
        done.stdout().contains("this kernel allows no sandbox"),
        "{}",
        done.stdout()
    );
}

#[test]
fn every_thread_of_a_conversion_is_filtered() {
    let lab = lab();
    let mut command = lab.command("imgtool");
    command.args("convert -r 100k --threads 3 --progress json -O qcow2 over slow".split(' '));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    let tasks = Path::new("/proc").join(child.id().to_string()).join("task");
    let look = || -> Vec<String> {
        let tasks = fs::read_dir(&tasks).unwrap();
        tasks
            .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .collect()
    };
    // The one that waits for signals, the first one, and those that work; at this rate there is a minute left.
    let mut status = look();
    while status.len() < 4 {
        status = look();
    }
    // An interrupt is heard in there, and leaves nothing.
    let child_id = child.id().to_string();
    lab.run(&format!("kill -INT {child_id}")).ok();
    let ended = child.wait().unwrap();
    for status in status {
        assert!(
            status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"),
            "{status}"
        );
    }
    assert_eq!(ended.code(), Some(130));
    assert!(
        !lab.names()
            .iter()
            .any(|name| name == "slow" || name.contains("partial")),
        "{:?}",
        lab.names()
    );
}

#[test]
fn what_is_asked_of_the_host_still_works_inside() {
    let (lab, _mounted) = Lab::on("xfs", 300);
    lab.raw("raw", 8 * MIB, 7);
    lab.qemu_img("convert -f raw -O qcow2 raw image");
    for line in [
        "convert -O raw raw shared",
        "convert -C -O raw raw ranges",
        "convert --io uring -O qcow2 raw rings",
        "convert -T none -t none -O qcow2 image direct",
        "convert --io mmap -c -O qcow2 raw mapped",
        "convert -t writeback -O qcow2 image durable",
        "convert -O qcow2 -o data_file=data image with-data",
    ] {
        lab.imgtool(line);
        let name = line.rsplit(' ').next().unwrap();
        lab.qemu_img(&format!("compare raw {name}"));
    }
    for line in [
        "compare --io uring raw image",
        "map --svg picture.svg image",
        "measure --io uring -O qcow2 raw",
    ] {
        lab.imgtool(line);
    }
    assert!(
        fs::read_to_string(lab.path("picture.svg"))
            .unwrap()
            .starts_with("<svg")
    );
    // What is shared takes no room: the host did it.
    let extents = lab.run("filefrag -v shared").ok();
    assert!(extents.contains("shared"), "{extents}");
}

#[test]
fn local_time_is_known_inside() {
    let lab = lab();
    let at = |zone: &str, line: &str| {
        let line = format!("env TZ={zone} {line}").replace("imgtool", env!("CARGO_BIN_EXE_imgtool"));
        lab.run(&line).ok()
    };
    for zone in ["Asia/Tokyo", "America/New_York"] {
        let ours = at(zone, "imgtool info image");
        assert_eq!(ours, at(zone, "imgtool info --no-sandbox image"), "{zone}");
        let date = |text: &str| {
            text.lines()
                .find(|line| line.contains(":00:00.000"))
                .map(ToOwned::to_owned)
        };
        assert_eq!(date(&ours), date(&at(zone, "qemu-img info image")), "{zone}");
    }
}
