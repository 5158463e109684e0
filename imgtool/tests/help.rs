//! Help, completions, manual pages, and what is wrong with a command line.

mod common;

use common::Lab;

#[test]
fn every_command_helps() {
    let lab = Lab::new();
    for command in [
        "create",
        "info",
        "check",
        "map",
        "convert",
        "compare",
        "measure",
        "resize",
        "amend",
        "commit",
        "rebase",
        "stream",
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
