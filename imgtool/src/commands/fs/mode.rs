//! Modes as chmod(1) takes them: octal digits, or symbols such as `u+x,go-w`.

use block::Result;

/// Bits of the set-user-ID and set-group-ID, which directories keep unless they are named.
const SET_ID: u16 = 0o6000;
const EXECUTE: u16 = 0o111;
const ALL: u16 = 0o7777;

/// What a mode is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// This, all twelve bits of it.
    Exact(u16),
    /// What comes of these changes, one after the other.
    Changed(Vec<Change>),
}

/// One operation of a symbolic mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Bits of those that are meant; where nobody is named, all that the umask lets through.
    who: Option<u16>,
    operation: Operation,
    permissions: Permissions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permissions {
    /// These bits, for everybody; and with `X` that to execute, of what is a directory or anybody may execute.
    Given { bits: u16, execute_if_any: bool },
    /// Those that the owner, the group or others have: how far they are to the left.
    Of { shift: u32 },
}

impl Mode {
    /// Up to four octal digits, or clauses of who, how and what with commas in between.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.bytes().any(|byte| byte.is_ascii_digit()) {
            return octal(text).map(Self::Exact);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut changes).ok_or_else(|| explain(clause))?;
        }
        Ok(Self::Changed(changes))
    }

    /// What a mode becomes by it: the lower 12 bits.
    pub(super) fn of(&self, mode: u16, is_directory: bool, umask: u16) -> u16 {
        match self {
            Self::Exact(mode) => *mode,
            Self::Changed(changes) => changes
                .iter()
                .fold(mode & ALL, |mode, change| change.apply(mode, is_directory, umask)),
        }
    }
}

/// A mode in octal digits.
pub(super) fn octal(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= ALL && digits => Ok(mode),
        _ => Err("a mode has up to four octal digits, such as 0644".to_owned()),
    }
}

fn explain(clause: &str) -> String {
    format!(
        "\"{clause}\" is none of u, g, o and a (for whom), then +, - or =, then any of r, w, x, X, s and t or one of u, g and o: \
         u+x, go-w, a=rX, +t"
    )
}

/// Takes a clause apart; none where it is not one.
fn parse_clause(clause: &str, changes: &mut Vec<Change>) -> Option<()> {
    let start = clause.find(['+', '-', '='])?;
    let (named, mut rest) = clause.split_at(start);
    let mut who = None;
    for letter in named.chars() {
        let bits = match letter {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => ALL,
            _ => return None,
        };
        who = Some(who.unwrap_or(0) | bits);
    }
    while let Some(operation) = rest.chars().next() {
        let operation = match operation {
            '+' => Operation::Add,
            '-' => Operation::Remove,
            '=' => Operation::Set,
            _ => return None,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        let permissions = Permissions::parse(&rest[1..end])?;
        rest = &rest[end..];
        changes.push(Change {
            who,
            operation,
            permissions,
        });
    }
    Some(())
}

impl Permissions {
    fn parse(letters: &str) -> Option<Self> {
        match letters {
            "u" => return Some(Self::Of { shift: 6 }),
            "g" => return Some(Self::Of { shift: 3 }),
            "o" => return Some(Self::Of { shift: 0 }),
            _ => {}
        }
        let (mut bits, mut execute_if_any) = (0, false);
        for letter in letters.chars() {
            match letter {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= EXECUTE,
                'X' => execute_if_any = true,
                's' => bits |= SET_ID,
                't' => bits |= 0o1000,
                _ => return None,
            }
        }
        Some(Self::Given { bits, execute_if_any })
    }

    /// The bits that are meant, for everybody, of a file with this mode.
    fn bits(self, mode: u16, is_directory: bool) -> u16 {
        match self {
            Self::Given { bits, execute_if_any } if execute_if_any => {
                let any = is_directory || mode & EXECUTE != 0;
                bits | if any { EXECUTE } else { 0 }
            }
            Self::Given { bits, .. } => bits,
            Self::Of { shift } => (mode >> shift & 7) * EXECUTE,
        }
    }

    fn name_set_id(self) -> bool {
        matches!(self, Self::Given { bits, .. } if bits & SET_ID != 0)
    }
}

impl Change {
    fn apply(self, mode: u16, is_directory: bool, umask: u16) -> u16 {
        let kept = if is_directory && !self.permissions.name_set_id() {
            SET_ID
        } else {
            0
        };
        let reach = self.who.unwrap_or(!umask) & !kept;
        let bits = self.permissions.bits(mode, is_directory) & reach & ALL;
        match self.operation {
            Operation::Add => mode | bits,
            Operation::Remove => mode & !bits,
            // Without a name, what the umask holds back is taken away even so.
            Operation::Set => mode & !(self.who.unwrap_or(ALL) & !kept) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    use super::*;

    /// What chmod(1) makes of a file's or directory's mode.
    fn judge(path: &std::path::Path, before: u16, text: &str, umask: u16) -> u16 {
        fs::set_permissions(path, Permissions::from_mode(before.into())).unwrap();
        // Its exit code says whether the umask held something back as well.
        let script = format!("umask {umask:o}; exec chmod -- \"$1\" \"$2\" 2>/dev/null");
        let status = Command::new("sh")
            .args(["-c", &script, "sh", text])
            .arg(path)
            .status();
        assert!(matches!(status.unwrap().code(), Some(0 | 1)));
        (fs::metadata(path).unwrap().mode() & 0o7777) as u16
    }

    #[test]
    fn symbolic_modes_do_what_chmod_does() {
        let lab = tempfile::tempdir().unwrap();
        let (file, directory) = (lab.path().join("file"), lab.path().join("directory"));
        fs::write(&file, "").unwrap();
        fs::create_dir(&directory).unwrap();
        let texts = [
            "u+x",
            "go-w",
            "a=rX",
            "+t",
            "-t",
            "o+t",
            "u+t",
            "=",
            "a=",
            "ug=",
            "+X",
            "-x",
            "+w",
            "=rwx",
            "u=rwx",
            "g=s",
            "u=s",
            "o=s",
            "+s",
            "-s",
            "ug-s",
            "a=s",
            "=t",
            "g=u",
            "o=g",
            "u=o",
            "go=u",
            "g+o",
            "u-g",
            "=u",
            "+u",
            "-o",
            "u+rw-x=s",
            "u=rwx,go=rX",
            "a-x,a+X",
            "u+s,g+s,o+t",
            "uo=wt",
            "a+x-w",
            "go=",
            "ugo+rwx",
            "o=u-w",
            "=rwxst",
            "a=,u+X",
        ];
        let modes = [
            0, 0o644, 0o755, 0o640, 0o4755, 0o2750, 0o1777, 0o7777, 0o421, 0o6010, 0o5224,
        ];
        let mut differing = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let mode = Mode::parse(text).unwrap();
            for (turn, before) in modes.iter().enumerate() {
                let umask = [0, 0o022, 0o077, 0o137][(number + turn) % 4];
                for (path, is_directory) in [(&file, false), (&directory, true)] {
                    let theirs = judge(path, *before, text, umask);
                    let ours = mode.of(*before, is_directory, umask);
                    if theirs != ours {
                        differing.push(format!(
                            "{text} of {before:o} ({is_directory}, {umask:o}): {ours:o}, not {theirs:o}"
                        ));
                    }
                }
            }
        }
        assert!(differing.is_empty(), "{differing:#?}");
    }

    #[test]
    fn what_chmod_refuses_is_refused() {
        let lab = tempfile::tempdir().unwrap();
        let file = lab.path().join("file");
        fs::write(&file, "").unwrap();
        for text in [
            "", ",", "u", "u+q", "x+u", "u+x,", "u+ur", "ab=r", "u +x", "r", "8", "u+é",
        ] {
            assert!(Mode::parse(text).is_err(), "{text}");
            let chmod = Command::new("chmod").args(["--", text]).arg(&file).output();
            assert!(!chmod.unwrap().status.success(), "{text}");
        }
        assert_eq!(Mode::parse("4755"), Ok(Mode::Exact(0o4755)));
        for text in ["10000", "+644", "0o644"] {
            assert!(Mode::parse(text).is_err(), "{text}");
        }
    }
}
