//! Ctrl-C: over within a second, with nothing left behind.

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::Lab;

/// A disk of 200 GiB that is all data takes longer to read than anybody waits. Its data is one cluster, shared.
fn endless(lab: &Lab) {
    lab.raw("data", 1 << 20, 1);
    std::fs::File::create(lab.path("zeros"))
        .unwrap()
        .set_len(200 << 30)
        .unwrap();
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
    endless(&lab);
    std::fs::write(lab.path("old"), "precious").unwrap();
    for (target, signal, says) in [("new", "INT", "nothing was left"), ("old", "TERM", "as it was")] {
        // -S 0 writes every zero, and the sparse source has many.
        let mut command = lab.command("imgtool");
        command.args([
            "convert", "-c", "-S", "0", "-f", "raw", "-O", "qcow2", "zeros", target,
        ]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let started = || {
            let partial = lab.names().into_iter().find(|name| name.ends_with(".partial"));
            partial.is_some_and(|name| lab.path(&name).metadata().is_ok_and(|file| file.len() > 400_000))
        };
        let output = interrupt(&lab, child, signal, started);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains(target) && stderr.contains(says), "{stderr}");
        assert_eq!(lab.names(), ["data", "old", "zeros"]);
        assert_eq!(std::fs::read(lab.path("old")).unwrap(), b"precious");
    }
}

#[test]
fn compare_stops() {
    let lab = Lab::new();
    endless(&lab);
    lab.qemu_img("create -q -f qcow2 -o preallocation=metadata,cluster_size=2M allocated 200G");
    let mut command = lab.command("imgtool");
    command.args(["compare", "-f", "qcow2", "-F", "raw", "allocated", "zeros"]);
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
