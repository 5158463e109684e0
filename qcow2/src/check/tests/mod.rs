//! Checks against the original: every figure that `qemu-img check` gives, on sound images and damaged ones.

mod corpus;
mod cut;
mod damage;
mod hostile;
mod overlap;
mod repair;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use block::{MemStorage, Result, Storage};
use serde_json::Value;

use super::{CheckOptions, CheckReport, Severity, check};

/// Runs a program of the QEMU family and returns whether it succeeded, and what it wrote.
fn run(dir: &Path, program: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (Debian: qemu-utils): {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Runs a program that must succeed.
fn must(dir: &Path, program: &str, args: &[&str]) -> String {
    let (code, stdout, stderr) = run(dir, program, args);
    assert_eq!(code, Some(0), "{program} {args:?}: {stdout}{stderr}");
    stdout
}

/// The figures that both report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Figures {
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
    total: u64,
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    end: u64,
}

impl From<&CheckReport> for Figures {
    fn from(report: &CheckReport) -> Self {
        Self {
            corruptions: report.corruptions,
            leaks: report.leaks,
            check_errors: report.check_errors,
            total: report.total_clusters,
            allocated: report.allocated_clusters,
            compressed: report.compressed_clusters,
            fragmented: report.fragmented_clusters,
            end: report.image_end_offset,
        }
    }
}

/// What `qemu-img check` says: its exit code, its figures if it came to an end, and its messages.
#[derive(Debug)]
struct Judgement {
    code: Option<i32>,
    figures: Option<Figures>,
    #[expect(dead_code, reason = "shown when a test fails")]
    messages: String,
}

/// `options`: more of QEMU's options for opening the image, each with a comma before it.
fn qemu_check(dir: &Path, image: &str, options: &str) -> Judgement {
    let image = format!("driver=qcow2,file.filename={image}{options}");
    let object = ["--object", "secret,id=s,data=x"];
    let args = [
        &["check", "--output", "json"],
        &object[..],
        &["--image-opts", &image],
    ]
    .concat();
    let (code, stdout, messages) = run(dir, "qemu-img", &args);
    let figures = serde_json::from_str::<Value>(&stdout).ok().map(|json| {
        let figure = |key: &str| json[key].as_u64().unwrap_or(0);
        Figures {
            corruptions: figure("corruptions"),
            leaks: figure("leaks"),
            check_errors: figure("check-errors"),
            total: figure("total-clusters"),
            allocated: figure("allocated-clusters"),
            compressed: figure("compressed-clusters"),
            fragmented: figure("fragmented-clusters"),
            end: figure("image-end-offset"),
        }
    });
    Judgement {
        code,
        figures,
        messages,
    }
}

/// Our check of an image in memory.
fn our_check(storage: &dyn Storage) -> Result<CheckReport> {
    check(storage, &CheckOptions::default(), &mut |progress| {
        assert!((0.0..=1.0).contains(&progress.fraction()));
        ControlFlow::Continue(())
    })
}

/// The exit code that our figures stand for.
fn exit_code(report: &CheckReport) -> i32 {
    match report.worst() {
        None => 0,
        Some(Severity::Leak) => 3,
        Some(Severity::Corruption) => 2,
        Some(Severity::CheckError) => 1,
    }
}

fn in_memory(bytes: &[u8]) -> MemStorage {
    let storage = MemStorage::new();
    for (page, bytes) in (0..).zip(bytes.chunks(4096)) {
        if bytes.iter().any(|&byte| byte != 0) {
            storage.write_all_at(bytes, page * 4096).unwrap();
        }
    }
    storage.set_len(bytes.len() as u64).unwrap();
    storage
}
