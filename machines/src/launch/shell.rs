//! Command lines for a shell.

use super::words::Word;

/// A word as a POSIX shell reads it: as it is where nothing in it means anything, in single quotes otherwise.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A command line, one option a line. `line` starts with the program, and words that follow it directly.
pub(super) fn command_line(line: &[Word]) -> String {
    let mut text = String::new();
    for (number, word) in line.iter().enumerate() {
        text.push_str(match (number, word.is_option()) {
            (0, _) => "",
            (_, true) => " \\\n  ",
            (_, false) => " ",
        });
        text.push_str(&word.for_shell());
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_the_words_that_were_quoted() {
        let words = [
            "",
            "a b",
            "it's",
            "$HOME `id`",
            "a\nb",
            "\\",
            "grüße",
            "-x",
            "a=b,c",
            "*?[]~#!",
        ];
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let script = format!("printf '%s\\0' {}", line.join(" "));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let read = String::from_utf8(output.stdout).unwrap();
        assert_eq!(read.split_terminator('\0').collect::<Vec<_>>(), words);
    }
}
