//! Passphrases that the command line names: a command has them for all the images that it opens, whichever way.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use block::{Error, ErrorKind, Passphrase, Result};

/// Longest passphrase in bytes.
const LONGEST: u64 = 1 << 20;

static GIVEN: OnceLock<Vec<Passphrase>> = OnceLock::new();

/// Reads the files that `--key` names, once a command.
pub(crate) fn read(files: &[PathBuf]) -> Result<()> {
    let passphrases = files.iter().map(|file| from_file(file)).collect::<Result<_>>()?;
    GIVEN.get_or_init(|| passphrases);
    Ok(())
}

/// What was read.
pub(crate) fn given() -> &'static Vec<Passphrase> {
    static NONE: Vec<Passphrase> = Vec::new();
    GIVEN.get().unwrap_or(&NONE)
}

/// The passphrase in a file: all of it, as for cryptsetup and QEMU.
pub(crate) fn from_file(path: &Path) -> Result<Passphrase> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io("read the passphrase", error).with_path(path))?;
    let passphrase = Passphrase::new(bytes);
    match passphrase.as_bytes().len() as u64 {
        0 => Err(Error::invalid("the file is empty, and should hold a passphrase").with_path(path)),
        len if len > LONGEST => {
            let message = format!("the file is longer than {LONGEST} bytes, and should hold a passphrase");
            Err(Error::invalid(message).with_path(path))
        }
        _ => Ok(passphrase),
    }
}

/// The passphrase of an image that is to be made, where no option names it.
pub(crate) fn of_new_image() -> Result<Passphrase> {
    match &given()[..] {
        [one] => Ok(one.clone()),
        [] => Err(Error::new(
            ErrorKind::Key,
            "the new image is to be encrypted, and there is no passphrase for it",
        )
        .with_hint("write one to a file, and name that with --key FILE")),
        _ => Err(
            Error::invalid("several keys are given, and none is said to be the new image's")
                .with_hint("say which: -o encrypt.key=FILE"),
        ),
    }
}

/// Says how a key is given where one was missing.
pub(crate) fn explain(error: Error) -> Error {
    if error.kind() != ErrorKind::Key {
        return error;
    }
    error.with_hint(if given().is_empty() {
        "name a file that holds the passphrase with --key FILE; a disk that was encrypted inside, by its guest, is copied as it is with -f raw"
    } else {
        "all that is in the file is the passphrase, a newline at its end too (printf writes none)"
    })
}
