//! The progress line of `qemu-img -p`, by our link and by QEMU's own program.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::twins::{Twins, run, words};

/// The percentages that were printed, one over the other, and what came after them.
fn percentages(out: &str) -> (Vec<f64>, &str) {
    let (line, rest) = out.rsplit_once('\r').unwrap_or_else(|| panic!("{out:?}"));
    let percentage = |text: &str| {
        let number = text
            .strip_prefix("    (")
            .and_then(|text| text.strip_suffix("/100%)"));
        let number = number.filter(|number| number.split_once('.').is_some_and(|parts| parts.1.len() == 2));
        number.unwrap_or_else(|| panic!("{out:?}")).parse().unwrap()
    };
    (line.split('\r').map(percentage).collect(), rest)
}

/// How far it has come from step to step is not the same: each copies in pieces of its own. Start, end, form and what follows are.
#[test]
fn progress_goes_from_nothing_to_all_over_itself() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 base 16M
         io base write -P 1 0 8M
         0 create -q -f qcow2 other 16M
         io other write -P 2 0 8M
         0 create -q -f qcow2 -b base -F qcow2 top
         io top write -P 3 4M 4M",
    );
    for line in [
        "convert -p -O raw top raw",
        "compare -p top top",
        "rebase -p -b other -F qcow2 top",
        "amend -p -o refcount_bits=8 top",
        "commit -p top",
    ] {
        let programs = [
            (Path::new("qemu-img").to_owned(), twins.theirs()),
            (twins.link(), twins.ours()),
        ];
        let [theirs, ours] = programs.map(|(program, directory)| run(&program, &words(line), directory));
        assert_eq!((ours.code, &ours.err), (theirs.code, &theirs.err), "{line}");
        let ((their_steps, their_rest), (steps, rest)) = (percentages(&theirs.out), percentages(&ours.out));
        assert_eq!(rest, their_rest, "{line}");
        for steps in [&steps, &their_steps] {
            assert!(steps.is_sorted(), "{line}: {steps:?}");
            assert_eq!(steps.first().zip(steps.last()), Some((&0.0, &100.0)), "{line}");
        }
        let quiet = run(&twins.link(), &words(&line.replace("-p", "-p -q")), twins.ours());
        assert!(!quiet.out.contains('%'), "{line}: {quiet:?}");
    }
}

/// A disk that takes long enough to copy for anybody to ask how far that is: all its clusters are one and the same.
fn long(directory: &Path) {
    let image = directory.join("long");
    let mut bytes = std::fs::read(&image).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = number(l2).to_be_bytes();
    for other in bytes[l2..][..2 << 20].chunks_exact_mut(8) {
        other.copy_from_slice(&entry);
    }
    std::fs::write(&image, bytes).unwrap();
}

/// Without `-p`, a signal asks for a line on standard error; the copy goes on. QEMU answers with the next hundredth.
#[test]
fn sigusr1_asks_how_far_it_is() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 -o cluster_size=2M long 20G
         io long write -P 1 0 2M",
    );
    twins.in_both(long);
    let programs = [
        (Path::new("qemu-img").to_owned(), twins.theirs()),
        (twins.link(), twins.ours()),
    ];
    for (program, directory) in programs {
        // What is written is compressed to nearly nothing.
        let mut child = Command::new(&program)
            .args(["convert", "-c", "-O", "qcow2", "long", "copy"])
            .current_dir(directory)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let is_under_way = || {
            let files = std::fs::read_dir(directory).unwrap().flatten();
            let new = |file: &std::fs::DirEntry| file.file_name() != "long";
            files
                .filter(new)
                .any(|file| file.metadata().is_ok_and(|file| file.len() > 400_000))
        };
        while !is_under_way() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{} has ended",
                program.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let asked = Command::new("kill")
            .args(["-USR1", &child.id().to_string()])
            .status();
        assert!(asked.unwrap().success());
        let line = lines.next().unwrap().unwrap();
        let number = line
            .strip_prefix("    (")
            .and_then(|rest| rest.strip_suffix("/100%)"));
        let number = number.unwrap_or_else(|| panic!("{}: {line:?}", program.display()));
        assert!((0.0..100.0).contains(&number.parse().unwrap()), "{line}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
