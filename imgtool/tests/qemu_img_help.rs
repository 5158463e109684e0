//! What `qemu-img` says of itself, beside QEMU's own program: its options are ours.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::twins::{Outcome, Twins, run, words};

const COMMANDS: [&str; 15] = [
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map",
    "measure", "rebase", "resize", "snapshot",
];

fn both(twins: &Twins, line: &str) -> [Outcome; 2] {
    [Path::new("qemu-img"), &twins.link()].map(|program| run(program, &words(line), twins.ours()))
}

/// The options that a page names at the start of a line, `-x` and `--long`.
fn options(page: &str) -> BTreeSet<String> {
    let arguments = page
        .split_once("Arguments:")
        .map_or(page, |(_, arguments)| arguments);
    let lines = arguments
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',', ']']).filter(|word| word.starts_with('-')));
    words.map(ToOwned::to_owned).collect()
}

#[test]
fn every_command_has_a_page_with_all_options_and_examples() {
    let twins = Twins::new();
    for command in COMMANDS {
        for help in ["-h", "--help"] {
            let [theirs, ours] = both(&twins, &format!("{command} {help}"));
            assert_eq!(
                (theirs.code, ours.code, &*ours.err),
                (Some(0), Some(0), ""),
                "{command}"
            );
            for part in [
                &format!("  qemu-img {command} "),
                "Usage:",
                "Arguments:\n",
                "Examples:\n",
            ] {
                assert!(ours.out.contains(part), "{command}: {part}\n{}", ours.out);
            }
            let (mut theirs, ours) = (options(&theirs.out), options(&ours.out));
            // Slips of theirs: the option is --progress.
            theirs.remove("--progres");
            let missing: Vec<&String> = theirs.difference(&ours).collect();
            assert!(missing.is_empty(), "{command}: {missing:?}");
        }
    }
}

/// What is listed is taken: no option of a page is refused as one that is not known.
#[test]
fn every_option_of_a_page_is_known_to_both() {
    let twins = Twins::new();
    for command in COMMANDS {
        let page = run(&twins.link(), &words(&format!("{command} --help")), twins.ours());
        for option in options(&page.out) {
            let done = run(
                &twins.link(),
                &words(&format!("{command} {option}")),
                twins.ours(),
            );
            let unknown = done.err.contains("unrecognized option");
            assert!(!unknown, "{command} {option}: {done:?}");
        }
    }
}

#[test]
fn options_of_formats_are_listed_alike() {
    let twins = Twins::new();
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 create -f qcow2 -o help
         0 create -f qcow2 -o ? file
         0 create -f raw -o help
         0 create -f raw -o help file
         0 create -o size=1M,help file
         0 convert -O qcow2 -o help
         0 convert -O raw -o ? a b
         0 amend -f qcow2 -o help
         0 amend -o help a
         1 amend -f raw -o help
         1 create -f nothing -o help",
    );
}

#[test]
fn the_program_says_what_it_is_and_refuses_what_it_does_not_know() {
    let twins = Twins::new();
    for line in ["--help", "-h", "-h info", "--trace x --help"] {
        let [theirs, ours] = both(&twins, line);
        assert_eq!((theirs.code, ours.code), (Some(0), Some(0)), "{line}");
        for command in COMMANDS {
            let listed = format!("\n  {command} - ");
            assert!(
                theirs.out.contains(&listed) && ours.out.contains(&listed),
                "{command}"
            );
        }
    }
    for line in ["--version", "-V", "-V info"] {
        for done in both(&twins, line) {
            assert_eq!(done.code, Some(0));
            assert!(done.out.starts_with("qemu-img version 10.0."), "{done:?}");
        }
    }
    twins.script(
        "0 create -q -f qcow2 a 1M
         0 -T bdrv_no_such_event_* info a
         0 --trace=bdrv_no_such_event_* info a
         1
         1 foo
         1 --foo
         1 --foo info a
         1 info
         1 info a b
         1 snapshot -l -c x a
         1 create
         1 create -f qcow2 a 1M 2M
         1 compare a
         1 commit
         1 map",
    );
}

/// Upstream's words for these are ours; distributions have those of the C library. The ends are the same.
#[test]
fn wrong_options_end_alike() {
    let twins = Twins::new();
    for line in [
        "resize",
        "info -Z",
        "info --foo",
        "info --output",
        "info -f",
        "check -r foo a",
        "info --output foo a",
    ] {
        let [theirs, ours] = both(&twins, line);
        assert_eq!((theirs.code, ours.code), (Some(1), Some(1)), "{line}");
        assert!(
            ours.err.ends_with("Try help\n") && theirs.err.ends_with("Try help\n"),
            "{ours:?} {theirs:?}"
        );
    }
}

/// Names that later programs have for the letters.
#[test]
fn long_names_of_letters_are_taken() {
    let twins = Twins::new();
    twins.script(
        "0 create --quiet --format qcow2 --options cluster_size=4k base 1M
         0 create --format qcow2 --backing base --backing-format qcow2 top
         io top write -P 1 0 64k
         0 info -b top
         0 map --format qcow2 --start-offset 4k --max-length 8k top
         0 measure --target-format qcow2 --size 1G
         0 snapshot --format qcow2 -c one top
         0 snapshot -a one top
         0 snapshot -d one top
         0 convert --source-format qcow2 -O raw --sparse-size 0 --parallel 2 top raw
         file raw
         0 convert --source-image-opts driver=qcow2,file.filename=top raw
         0 compare --a-format qcow2 --b-format qcow2 --strict top top
         0 commit --drop --quiet top
         same base
         0 rebase --backing-unsafe --backing '' top
         0 check --quiet --repair all top
         0 bench --count 3 --depth 1 --buffer-size 512 --step-size 512 --offset 512 --write base
         same base",
    );
}
