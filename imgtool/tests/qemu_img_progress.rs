//! The progress line of `qemu-img -p`, by our link and by QEMU's own program.

mod common;

use std::path::Path;

use common::twins::{Twins, run, words};

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
