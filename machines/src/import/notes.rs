//! What is known of a template before it is one: the document of another store, beside a file or in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result};

use crate::export::{INITRD, KERNEL, NOTES};
use crate::store::{Fingerprint, MAX_KERNEL, NewTemplate, Store, TemplateDocument, parse};
use crate::{NetworkKind, Settings};

/// Bytes of a document at most.
pub(super) const MAX_NOTES: u64 = 1 << 20;

/// Files that start a machine, by their SHA-256, as notes have them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BootFiles {
    kernel: Option<Fingerprint>,
    initrd: Option<Fingerprint>,
}

/// What is beside a file: `FILE.toml`, or for the image of a template in a store, its document there.
pub(super) fn beside(file: &Path) -> Result<Option<TemplateDocument>> {
    let path = path(file);
    let Some(bytes) = read(&path, MAX_NOTES)? else {
        return Ok(None);
    };
    parse_notes(&bytes).map(Some).map_err(|error| {
        error
            .with_path(path)
            .with_hint("it was exported with the image; to import that alone, move it elsewhere")
    })
}

/// Where they are.
pub(super) fn path(file: &Path) -> PathBuf {
    beside_of(file, NOTES)
}

pub(super) fn parse_notes(bytes: &[u8]) -> Result<TemplateDocument> {
    let text = str::from_utf8(bytes).map_err(|_| Error::invalid("it is not UTF-8"))?;
    parse(text)
}

/// Takes the kernel and the initrd beside a file, unless a kernel is stated: those that the notes name, if they name any.
pub(super) fn boot_files(file: &Path, noted: BootFiles, new: &mut NewTemplate) -> Result<()> {
    if new.kernel.is_some() {
        return Ok(());
    }
    let take = |suffix, wanted: Option<Fingerprint>| -> Result<Option<Vec<u8>>> {
        let path = beside_of(file, suffix);
        let (Some(wanted), Some(bytes)) = (wanted, read(&path, MAX_KERNEL)?) else {
            return Ok(None);
        };
        let found = Fingerprint::of_bytes(&bytes);
        if found == wanted {
            return Ok(Some(bytes));
        }
        let message =
            format!("its SHA-256 is {found}, and what is known of the template says that it is {wanted}");
        Err(Error::new(ErrorKind::Corrupt, message)
            .with_path(path)
            .with_hint("export the template again, or name a kernel with --kernel"))
    };
    new.kernel = take(KERNEL, noted.kernel)?;
    if new.kernel.is_some() {
        new.initrd = take(INITRD, noted.initrd)?;
    }
    Ok(())
}

fn beside_of(file: &Path, suffix: &str) -> PathBuf {
    if Store::is_template_image(file) {
        return file.with_extension(&suffix[1..]);
    }
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file of at most `most` bytes; `None` where there is none.
fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let failed = |error| Error::io("read", error).with_path(path);
    match fs::metadata(path) {
        // Of a disk /dev/sda that is imported, say.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_file() || found.len() > most => {
            let message = format!("this is no file of at most {most} bytes");
            return Err(Error::invalid(message).with_path(path));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

impl NewTemplate {
    /// Takes what is known from elsewhere, where nothing is stated. What a machine has of the host that it was on is left out.
    pub(super) fn take_notes(&mut self, notes: TemplateDocument) -> BootFiles {
        self.os = self.os.take().or(notes.os);
        self.user = self.user.take().or(notes.user);
        self.notes = self.notes.take().or(notes.notes);
        self.parent = self.parent.or(notes.parent);
        if notes.provenance.is_some() {
            self.provenance = notes.provenance;
        }
        self.machine = portable(notes.machine).then(std::mem::take(&mut self.machine));
        BootFiles {
            kernel: notes.kernel,
            initrd: notes.initrd,
        }
    }
}

/// Settings without files, bridges and ports of the host that they come from: they would be those of this one. Nor do credentials
/// come along: who may read a template need not know them, and whoever made the notes would be let into all machines of it.
fn portable(mut settings: Settings) -> Settings {
    settings.credentials.clear();
    settings.boot.firmware = None;
    settings.network.forward = None;
    settings.network.bridge = None;
    if settings.network.kind == Some(NetworkKind::Bridge) {
        settings.network.kind = None;
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stated_wins_and_nothing_of_another_host_comes_along() {
        let notes = parse_notes(
            b"os = \"Theirs\"\nuser = \"theirs\"\ncreated = \"2024-01-01T00:00:00Z\"\ndisk-size = 1\nimage-size = 1\nimage-modified = 1
              [machine]\ncpus = 3\nmemory = \"1G\"\n[machine.boot]\nkind = \"uefi\"\nfirmware = \"/etc/shadow\"
              [machine.network]\nkind = \"bridge\"\nbridge = \"br0\"\nforward = [\"0.0.0.0:22:22\"]
              [machine.credentials]\n\"ssh.authorized_keys.root\" = \"theirs\"",
        )
        .unwrap();
        let mut new = NewTemplate {
            os: Some("Ours".to_owned()),
            machine: parse("cpus = 2").unwrap(),
            ..NewTemplate::default()
        };
        new.take_notes(notes);
        assert_eq!(
            (new.os.as_deref(), new.user.as_deref()),
            (Some("Ours"), Some("theirs"))
        );
        let machine: Settings = parse("cpus = 2\nmemory = \"1G\"\n[boot]\nkind = \"uefi\"").unwrap();
        assert_eq!(new.machine, machine);
    }
}
