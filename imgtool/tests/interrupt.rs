//! Ctrl-C: over within a second, with nothing left behind.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Lab, interrupted_by};

/// A disk of 500 GiB whose clusters are all one and the same takes longer to read than anybody waits.
fn endless(lab: &Lab, name: &str) {
    lab.qemu_img(&format!("create -q -f qcow2 -o cluster_size=2M {name} 500G"));
    lab.qemu_io("qcow2", name, &["write -P 1 0 2M"]);
    let mut image = std::fs::read(lab.path(name)).unwrap();
    let number = |image: &[u8], at: usize| u64::from_be_bytes(image[at..][..8].try_into().unwrap());
    let l1 = number(&image, 40) as usize;
    let l2 = (number(&image, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = number(&image, l2).to_be_bytes();
    for other in image[l2..][..2 << 20].chunks_exact_mut(8) {
        other.copy_from_slice(&entry);
    }
    std::fs::write(lab.path(name), image).unwrap();
}

/// Sends a signal once there is something to interrupt, and waits for the end.
fn interrupt(lab: &Lab, mut child: Child, signal: &str, started: impl Fn() -> bool) -> std::process::Output {
    let start = Instant::now();
    while !started() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not start");
        assert!(child.try_wait().unwrap().is_none(), "it is over already");
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.run(&format!("kill -{signal} {}", child.id())).ok();
    let sent = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(
        sent.elapsed() < Duration::from_millis(1500),
        "it took {:?} to stop",
        sent.elapsed()
    );
    output
}

#[test]
fn convert_leaves_nothing_behind() {
    let lab = Lab::new();
    endless(&lab, "disk");
    std::fs::write(lab.path("old"), "precious").unwrap();
    for (target, signal, says) in [
        ("new", "INT", "nothing was left"),
        ("old", "TERM", "as it was"),
        ("new", "HUP", "nothing was left"),
        ("new", "QUIT", "nothing was left"),
        ("old", "XCPU", "as it was"),
        ("new", "ALRM", "nothing was left"),
        ("new", "USR2", "nothing was left"),
    ] {
        let mut command = lab.command("imgtool");
        command.args(["convert", "-c", "-O", "qcow2", "disk", target]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let started = || {
            let partial = lab.names().into_iter().find(|name| name.ends_with(".partial"));
            partial.is_some_and(|name| lab.path(&name).metadata().is_ok_and(|file| file.len() > 400_000))
        };
        let output = interrupt(&lab, child, signal, started);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(interrupted_by(signal)), "{stderr}");
        assert!(stderr.contains(target) && stderr.contains(says), "{stderr}");
        assert_eq!(lab.names(), ["disk", "old"]);
        assert_eq!(std::fs::read(lab.path("old")).unwrap(), b"precious");
    }
}

/// As qemu-img it ends as one that the signal has ended, and leaves no more than it found.
#[test]
fn convert_as_qemu_img_leaves_nothing_behind() {
    let lab = Lab::new();
    endless(&lab, "disk");
    for signal in ["INT", "TERM", "HUP"] {
        let mut command = lab.command("imgtool");
        command.args(["qemu-img", "convert", "-c", "-O", "qcow2", "disk", "new"]);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = interrupt(&lab, child, signal, || {
            lab.names().iter().any(|name| name.ends_with(".partial"))
        });
        assert_eq!(output.status.code(), Some(interrupted_by(signal)));
        assert_eq!(lab.names(), ["disk"]);
    }
}

/// One that waits for a server is not waited for.
#[test]
fn convert_as_qemu_img_says_so_by_the_name_that_it_was_called_by() {
    let lab = Lab::new();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imgtool"), lab.path("qemu-img")).unwrap();
    let mut slow = Command::new("nbdkit")
        .args([
            "-f",
            "-U",
            "slow",
            "--filter=delay",
            "memory",
            "16M",
            "delay-read=60",
        ])
        .current_dir(lab.dir())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !lab.path("slow").exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "nbdkit does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let child = lab
        .command(lab.path("qemu-img").to_str().unwrap())
        .args([
            "convert",
            "-f",
            "raw",
            "-S",
            "0",
            "nbd+unix:///?socket=slow",
            "new",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = interrupt(&lab, child, "INT", || {
        lab.names().iter().any(|name| name.ends_with(".partial"))
    });
    slow.kill().unwrap();
    slow.wait().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(interrupted_by("INT")), "{stderr}");
    assert!(stderr.starts_with("qemu-img: interrupted"), "{stderr}");
}

#[test]
fn compare_stops() {
    let lab = Lab::new();
    endless(&lab, "disk");
    std::fs::copy(lab.path("disk"), lab.path("copy")).unwrap();
    let mut command = lab.command("imgtool");
    command.args(["compare", "disk", "copy"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let output = interrupt(&lab, child, "INT", || {
        start.elapsed() > Duration::from_millis(300)
    });
    assert_eq!(output.status.code(), Some(130));
}

/// A process that is killed can't tidy up: the next one does, and leaves alone what others are still busy with.
#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let lab = Lab::new();
    endless(&lab, "endless");
    let mut child = lab.command(env!("CARGO_BIN_EXE_imgtool"));
    let mut child = child
        .args(["convert", "-f", "qcow2", "-O", "qcow2", "-c", "endless", "out"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partials = |lab: &Lab| {
        lab.names()
            .iter()
            .filter(|name| name.ends_with(".partial"))
            .count()
    };
    let start = Instant::now();
    while partials(&lab) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.imgtool("create -q -f qcow2 while-it-runs 1M");
    assert_eq!(partials(&lab), 1, "a file in the making is not a leftover");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!lab.names().contains(&"out".to_owned()));
    assert_eq!(partials(&lab), 1, "nobody has removed it yet");
    lab.imgtool("create -q -f qcow2 after-it 1M");
    assert_eq!(partials(&lab), 0);
}
