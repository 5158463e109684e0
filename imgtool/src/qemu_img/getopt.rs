//! Command lines as GNU `getopt_long` reads them: options may follow operands, `--` ends them, letters may be joined, and
//! long names may be cut as long as they are unambiguous.
//!
//! # How it works
//!
//! A command has a [`Page`], which lists its options for its help too, and asks for one option after the other, so that what is wrong with
//! the second is told only when nothing is wrong with the first: scripts see the messages in that order. An option goes by one
//! name, whichever way it was written: its letter where it has one, its long name where not.

use std::fmt::Write as _;

use super::refusal::Refusal;

/// What there is to know of a command.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) name: &'static str,
    /// What it does, in a line.
    pub(super) about: &'static str,
    /// What its command line looks like, behind its name; in lines.
    pub(super) usage: &'static str,
    pub(super) flags: &'static [Flag],
    /// What else is named, and what that is.
    pub(super) operands: &'static [(&'static str, &'static str)],
    /// Command lines, behind its name.
    pub(super) examples: &'static [&'static str],
}

/// An option of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    /// Its letter, if it has one.
    letter: &'static str,
    name: &'static str,
    /// What its argument is called, if it takes one.
    argument: Option<&'static str>,
    help: &'static str,
}

/// An option that takes no argument.
pub(super) const fn flag(letter: &'static str, name: &'static str, help: &'static str) -> Flag {
    Flag {
        letter,
        name,
        argument: None,
        help,
    }
}

/// An option that takes an argument, which is called so.
pub(super) const fn valued(
    letter: &'static str,
    name: &'static str,
    argument: &'static str,
    help: &'static str,
) -> Flag {
    Flag {
        letter,
        name,
        argument: Some(argument),
        help,
    }
}

impl Flag {
    /// What the command knows it by.
    fn key(&self) -> &'static str {
        if self.letter.is_empty() {
            self.name
        } else {
            self.letter
        }
    }
}

impl Page {
    /// What `--help` prints.
    pub(super) fn help(&self) -> String {
        let program = format!("qemu-img {}", self.name);
        let usage = self.usage.replace('\n', "\n        ");
        let mut text = format!("{}.  Usage:\n\n  {program} {usage}\n\nArguments:\n", self.about);
        for flag in self.flags {
            let letter = match flag.letter {
                "" => String::new(),
                letter => format!("-{letter}, "),
            };
            let argument = flag
                .argument
                .map(|argument| format!(" {argument}"))
                .unwrap_or_default();
            let _ = writeln!(text, "  {letter}--{}{argument}\n     {}", flag.name, flag.help);
        }
        for (operand, help) in self.operands {
            let _ = writeln!(text, "  {operand}\n     {help}");
        }
        text += "\nExamples:\n\n";
        for example in self.examples {
            let _ = writeln!(text, "  {program} {example}");
        }
        text
    }
}

/// What a command line says, one option after the other.
#[derive(Debug)]
pub(super) struct Options<'a> {
    page: &'static Page,
    arguments: std::slice::Iter<'a, String>,
    /// The rest of joined letters.
    letters: &'a str,
    operands: Vec<String>,
}

/// An option's name, and its argument if it takes one.
pub(super) type Found = (&'static str, String);

impl<'a> Options<'a> {
    pub(super) fn new(page: &'static Page, arguments: &'a [String]) -> Self {
        Self {
            page,
            arguments: arguments.iter(),
            letters: "",
            operands: Vec::new(),
        }
    }

    /// The next option.
    pub(super) fn next(&mut self) -> Result<Option<Found>, Refusal> {
        loop {
            if !self.letters.is_empty() {
                return self.letter().map(Some);
            }
            let Some(argument) = self.arguments.next() else {
                return Ok(None);
            };
            if argument == "--" {
                self.operands.extend(self.arguments.by_ref().cloned());
                return Ok(None);
            }
            if let Some(long) = argument.strip_prefix("--") {
                return self.long(argument, long).map(Some);
            }
            match argument.strip_prefix('-') {
                Some(letters) if !letters.is_empty() => self.letters = letters,
                _ => self.operands.push(argument.clone()),
            }
        }
    }

    /// What is left when there are no more options.
    pub(super) fn operands(self) -> Vec<String> {
        self.operands
    }

    fn letter(&mut self) -> Result<Found, Refusal> {
        let mut letters = self.letters.chars();
        let letter = letters.next().unwrap_or_default();
        self.letters = letters.as_str();
        let written = format!("-{letter}");
        let flag = self
            .page
            .flags
            .iter()
            .find(|flag| flag.letter.starts_with(letter));
        let flag = flag.ok_or_else(|| unrecognized(&written))?;
        if flag.argument.is_none() {
            return Ok((flag.key(), String::new()));
        }
        let argument = match std::mem::take(&mut self.letters) {
            "" => self.arguments.next().map(String::as_str),
            rest => Some(rest),
        };
        match argument {
            Some(argument) => Ok((flag.key(), argument.to_owned())),
            None => Err(missing(&written)),
        }
    }

    fn long(&mut self, argument: &str, long: &str) -> Result<Found, Refusal> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let flags = self.page.flags;
        let exact = flags.iter().find(|flag| flag.name == name);
        let mut cut = flags.iter().filter(|flag| flag.name.starts_with(name));
        let ((Some(flag), _, _) | (None, Some(flag), None)) = (exact, cut.next(), cut.next()) else {
            return Err(unrecognized(argument));
        };
        if flag.argument.is_none() {
            return match value {
                None => Ok((flag.key(), String::new())),
                Some(_) => Err(unrecognized(argument)),
            };
        }
        match value.or_else(|| self.arguments.next().map(String::as_str)) {
            Some(value) => Ok((flag.key(), value.to_owned())),
            None => Err(missing(argument)),
        }
    }
}

fn unrecognized(option: &str) -> Refusal {
    Refusal::usage(format!("unrecognized option '{option}'"))
}

fn missing(option: &str) -> Refusal {
    Refusal::usage(format!("missing argument for option '{option}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    static PAGE: Page = Page {
        name: "copy",
        about: "Copy",
        usage: "[-f FMT]\nFILENAME",
        flags: &[
            flag("h", "help", "help"),
            valued("f", "format", "FMT", "a format"),
            flag("U", "force-share", "share"),
            valued("", "output", "WAY", "a way"),
        ],
        operands: &[("FILENAME", "a file")],
        examples: &["-f raw a"],
    };

    fn parse(line: &str) -> Result<(String, Vec<String>), String> {
        let arguments: Vec<String> = line.split(' ').map(ToOwned::to_owned).collect();
        let mut options = Options::new(&PAGE, &arguments);
        let mut found = String::new();
        while let Some((name, value)) = options.next().map_err(|refusal| refusal.text().to_owned())? {
            found += &format!("{name}={value};");
        }
        Ok((found, options.operands()))
    }

    #[test]
    fn options_and_operands_may_be_mixed() {
        let (found, operands) = parse("a -f raw b --output=json -Ufqcow2 -- -c").unwrap();
        assert_eq!(found, "f=raw;output=json;U=;f=qcow2;");
        assert_eq!(operands, ["a", "b", "-c"]);
        assert_eq!(parse("- x").unwrap().1, ["-", "x"]);
    }

    #[test]
    fn long_names_may_be_cut_while_they_are_unambiguous() {
        assert_eq!(
            parse("--out json --forc --form x").unwrap().0,
            "output=json;U=;f=x;"
        );
        assert_eq!(parse("--fo x").unwrap_err(), "unrecognized option '--fo'");
        assert_eq!(parse("--help=x").unwrap_err(), "unrecognized option '--help=x'");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("-Z").unwrap_err(), "unrecognized option '-Z'");
        assert_eq!(parse("a -f").unwrap_err(), "missing argument for option '-f'");
        assert_eq!(
            parse("--output").unwrap_err(),
            "missing argument for option '--output'"
        );
    }

    #[test]
    fn help_has_every_option_operand_and_example() {
        assert_eq!(
            PAGE.help(),
            "Copy.  Usage:\n\n  qemu-img copy [-f FMT]\n        FILENAME\n\nArguments:\n  -h, --help\n     help\n  -f, --format FMT\n     \
             a format\n  -U, --force-share\n     share\n  --output WAY\n     a way\n  FILENAME\n     a file\n\n\
             Examples:\n\n  qemu-img copy -f raw a\n"
        );
    }
}
