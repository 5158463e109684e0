//! Files that are made under a name of their own, until they are whole and get the name that they are to have.
//!
//! The name says which process makes the file. What a process that was killed has left under such a name, the next one that makes a file in that
//! directory removes: its process is gone then, and nobody has it locked.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use block::Result;

use crate::{File, OpenOptions};

/// How often another name is tried.
const ATTEMPTS: u32 = 100;

/// Makes a file that is to be called `path` when it is whole, in the same directory, opened as `options` say, which must be for writing.
/// Gives its path until then. What killed processes have left in the directory goes.
///
/// # Errors
/// As of [`OpenOptions::open`], of `path`.
pub fn create_partial(path: &Path, options: &OpenOptions) -> Result<(File, PathBuf)> {
    let options = options.clone().create_new(true);
    let directory = path.parent().unwrap_or(Path::new(""));
    remove_leftovers(directory);
    let mut attempt = 0;
    loop {
        let name = format!(".imgtool-{}-{attempt}.partial", std::process::id());
        let partial = directory.join(name);
        match options.open(&partial) {
            Ok(file) => return Ok((file, partial)),
            Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) && attempt < ATTEMPTS => {
                attempt += 1;
            }
            Err(error) => return Err(error.with_path_replaced(&partial, path)),
        }
    }
}

fn remove_leftovers(directory: &Path) {
    let named = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let Ok(entries) = fs::read_dir(named) else {
        return;
    };
    for entry in entries.flatten() {
        let Some(process) = process_of(&entry.file_name()) else {
            continue;
        };
        let gone = !Path::new("/proc").join(process.to_string()).exists();
        if gone && OpenOptions::new().write(true).open(entry.path()).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The process that a file with such a name belongs to.
fn process_of(name: &OsStr) -> Option<u32> {
    let numbers = name
        .to_str()?
        .strip_prefix(".imgtool-")?
        .strip_suffix(".partial")?;
    let (process, attempt) = numbers.split_once('-')?;
    attempt.parse::<u32>().ok()?;
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn what_killed_processes_have_left_goes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (gone, own) = (child.id(), id());
        let names = [
            format!(".imgtool-{own}-0.partial"),
            format!(".imgtool-{gone}-0.partial.old"),
            format!(".imgtool-{gone}-a.partial"),
            format!(".imgtool-{gone}-1.partial"),
            format!(".imgtool-{gone}-2.partial"),
        ];
        for name in &names {
            fs::write(directory.path().join(name), "left").unwrap();
        }
        let locked = OpenOptions::new().write(true);
        let _locked = locked.open(directory.path().join(&names[4])).unwrap();
        let path = directory.path().join("image");
        let (_file, partial) = create_partial(&path, &OpenOptions::new().write(true)).unwrap();
        assert_eq!(
            partial,
            directory.path().join(format!(".imgtool-{own}-1.partial"))
        );
        assert!(!directory.path().join(&names[3]).exists());
        for stays in [0, 1, 2, 4] {
            let path = directory.path().join(&names[stays]);
            assert_eq!(fs::read(path).unwrap(), b"left", "{}", names[stays]);
        }
    }

    #[test]
    fn errors_are_of_the_name_that_it_is_to_have() {
        let path = Path::new("/none/image");
        let error = create_partial(path, &OpenOptions::new().write(true)).unwrap_err();
        assert_eq!(error.path(), Some(path));
    }
}
