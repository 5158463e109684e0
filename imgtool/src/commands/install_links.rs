//! `imgtool install-links`: the other name that this program goes by.

use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs};

use block::{Error, Result};
use clap::Args;

use super::Outcome;
use crate::target::missing_directory;

/// Names that a link makes this program answer to.
const NAMES: [&str; 1] = ["qemu-img"];

/// Make links by which this program is called as another: qemu-img
///
/// In a directory that comes first in PATH, scripts that call qemu-img use this program. A file or link that is there already
/// is left alone, unless it is a link to this program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool install-links ~/.local/bin
  imgtool install-links /usr/local/lib/imgtool/bin")]
pub(crate) struct InstallLinksArgs {
    /// The directory that gets the links
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl InstallLinksArgs {
    pub(crate) fn run(self, out: &mut dyn Write) -> Outcome {
        let program = env::current_exe().map_err(|error| Error::io("find this program's own file", error))?;
        for name in NAMES {
            let link = self.directory.join(name);
            let what = if install(&program, &link)? {
                "is now"
            } else {
                "is already"
            };
            writeln!(out, "{} {what} {}", link.display(), program.display())?;
        }
        Ok(0)
    }
}

/// Makes the link, unless it is there. Returns whether it was made.
fn install(program: &Path, link: &Path) -> Result<bool> {
    let found = match fs::read_link(link) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let failed = |error| missing_directory(Error::io("make the link", error).with_path(link), link);
            return symlink(program, link).map_err(failed).map(|()| true);
        }
        Err(_) => return Err(in_the_way(link)),
    };
    if found == program {
        return Ok(false);
    }
    // Where this program was before it was moved.
    let is_ours = !link.exists() && found.file_name() == program.file_name();
    if !is_ours {
        return Err(in_the_way(link));
    }
    let failed = |error| Error::io("replace the link", error).with_path(link);
    fs::remove_file(link).map_err(failed)?;
    symlink(program, link).map_err(failed).map(|()| true)
}

fn in_the_way(link: &Path) -> Error {
    Error::invalid("something that is not a link to this program is there already")
        .with_path(link)
        .with_hint("move it away, or choose another directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_once_and_what_is_not_ours_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (program, link) = (
            directory.path().join("imgtool"),
            directory.path().join("qemu-img"),
        );
        fs::write(&program, "").unwrap();
        assert!(install(&program, &link).unwrap());
        assert!(!install(&program, &link).unwrap());
        assert_eq!(fs::read_link(&link).unwrap(), program);

        let other = directory.path().join("other");
        fs::write(&other, "theirs").unwrap();
        for theirs in [&other, &directory.path().join("dangling")] {
            fs::remove_file(&link).unwrap();
            symlink(theirs, &link).unwrap();
            assert!(install(&program, &link).is_err());
            assert_eq!(&fs::read_link(&link).unwrap(), theirs);
        }
        assert!(install(&program, &other).is_err());
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
    }

    #[test]
    fn a_link_to_where_the_program_was_follows_it() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("qemu-img");
        symlink(directory.path().join("gone/imgtool"), &link).unwrap();
        let program = directory.path().join("imgtool");
        assert!(install(&program, &link).unwrap());
        assert_eq!(fs::read_link(&link).unwrap(), program);
    }
}
