//! Command lines as GNU `getopt_long` reads them: options may follow operands, `--` ends them, letters may be joined, and
//! long names may be cut as long as they are unambiguous.
//!
//! # How it works
//!
//! A command has a [`Table`] and asks for one option after the other, so that what is wrong with the second is told only when
//! nothing is wrong with the first: scripts see the messages in that order. An option goes by one name, whichever way it was
//! written: its long name where it has one, its letter where not.

use super::refusal::Refusal;

/// The options of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// Letters; one that takes an argument is followed by a colon.
    pub(super) short: &'static str,
    /// Long names; one that takes an argument ends in `=`. One that is the same as a letter is followed by it: `("output=", "")`,
    /// `("force-share", "U")`.
    pub(super) long: &'static [(&'static str, &'static str)],
}

/// What a command line says, one option after the other.
#[derive(Debug)]
pub(super) struct Options<'a> {
    table: Table,
    arguments: std::slice::Iter<'a, String>,
    /// The rest of joined letters.
    letters: &'a str,
    operands: Vec<String>,
}

/// An option's name, and its argument if it takes one.
pub(super) type Found = (&'static str, String);

impl<'a> Options<'a> {
    pub(super) fn new(table: Table, arguments: &'a [String]) -> Self {
        Self {
            table,
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
        let unknown = || unrecognized(&format!("-{letter}"));
        let at = self.table.short.find(letter).ok_or_else(unknown)?;
        if letter == ':' {
            return Err(unknown());
        }
        let name = &self.table.short[at..at + letter.len_utf8()];
        if !self.table.short[at + letter.len_utf8()..].starts_with(':') {
            return Ok((name, String::new()));
        }
        let argument = match std::mem::take(&mut self.letters) {
            "" => self.arguments.next().map(String::as_str),
            rest => Some(rest),
        };
        match argument {
            Some(argument) => Ok((name, argument.to_owned())),
            None => Err(missing(&format!("-{letter}"))),
        }
    }

    fn long(&mut self, argument: &str, long: &str) -> Result<Found, Refusal> {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let plain = |entry: &&(&'static str, &'static str)| entry.0.trim_end_matches('=');
        let exact = self.table.long.iter().find(|entry| plain(entry) == name);
        let mut cut = self
            .table
            .long
            .iter()
            .filter(|entry| plain(entry).starts_with(name));
        let ((Some(entry), _, _) | (None, Some(entry), None)) = (exact, cut.next(), cut.next()) else {
            return Err(unrecognized(argument));
        };
        let key = if entry.1.is_empty() {
            plain(&entry)
        } else {
            entry.1
        };
        if !entry.0.ends_with('=') {
            return match value {
                None => Ok((key, String::new())),
                Some(_) => Err(unrecognized(argument)),
            };
        }
        match value.or_else(|| self.arguments.next().map(String::as_str)) {
            Some(value) => Ok((key, value.to_owned())),
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

    const TABLE: Table = Table {
        short: "hf:U",
        long: &[
            ("help", "h"),
            ("format=", "f"),
            ("force-share", "U"),
            ("output=", ""),
        ],
    };

    fn parse(line: &str) -> Result<(String, Vec<String>), String> {
        let arguments: Vec<String> = line.split(' ').map(ToOwned::to_owned).collect();
        let mut options = Options::new(TABLE, &arguments);
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
}
