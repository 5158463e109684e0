//! Help, completions, manual pages, and what is wrong with a command line.

use crate::common::Lab;

#[test]
fn every_command_helps() {
    let lab = Lab::new();
    for command in [
        "create",
        "info",
        "inspect",
        "check",
        "map",
        "convert",
        "compare",
        "measure",
        "mkfs",
        "mkdisk",
        "resize",
        "amend",
        "commit",
        "rebase",
        "stream",
        "fs",
        "template",
        "clone",
        "ls",
        "show",
        "config",
        "run",
        "launch",
        "doctor",
        "diff",
        "rename",
        "rm",
        "install-links",
        "completions",
        "man",
    ] {
        let help = lab.imgtool(&format!("{command} --help"));
        assert!(
            help.contains("Examples:") && help.contains(&format!("imgtool {command}")),
            "{command}"
        );
    }
    assert!(lab.imgtool("--version").starts_with("imgtool "));
}

/// What is broken into lines in the source is broken again to fit the terminal: a line of one word or two in the middle
/// of a paragraph says that it happened twice.
#[test]
fn paragraphs_are_broken_into_lines_once() {
    let lab = Lab::new();
    let list = lab.imgtool("--help");
    let commands = list.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let names = commands.map(|line| line.split_whitespace().next().unwrap());
    for command in names.chain([""]).filter(|name| *name != "help") {
        let help = lab.imgtool(&format!("{command} --help"));
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines.windows(2) {
            let [line, next] = pair else { unreachable!() };
            let prose = |line: &str| line.starts_with(|c: char| c.is_ascii_alphabetic());
            let first = next.split(' ').next().unwrap_or_default();
            let fits = line.len() + 1 + first.len() <= 100;
            assert!(
                !(prose(line) && prose(next) && fits),
                "{command}: {line:?} goes on with {next:?}"
            );
        }
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let lab = Lab::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.imgtool(&format!("completions {shell}")).contains("convert"));
    }
    lab.imgtool("man .");
    assert!(lab.names().contains(&"imgtool-convert.1".to_owned()));
}

#[test]
fn a_wrong_command_line_is_an_error() {
    let lab = Lab::new();
    for line in [
        "",
        "frobnicate",
        "info",
        "info --frobnicate x",
        "info --output xml x",
        "create -f",
    ] {
        let done = lab.run(&format!("imgtool {line}"));
        assert_eq!(done.code(), 1, "{line}");
        assert!(
            done.stderr().starts_with("imgtool: ") || line.is_empty(),
            "{line}: {}",
            done.stderr()
        );
    }
}

#[test]
fn help_that_cannot_be_printed_is_a_failure() {
    let lab = Lab::new();
    for words in ["help", "--help", "--version", "convert --help"] {
        let line = format!("{} {words} >/dev/full", env!("CARGO_BIN_EXE_imgtool"));
        lab.run_words(&["sh", "-c", &line])
            .fails(1, &["write to standard output", "No space left"]);
    }
}
