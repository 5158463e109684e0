//! Images of virtual machines for Incus and LXD ("Image format"): one tar archive with `metadata.yaml` and the disk, in qcow2 format, as
//! `rootfs.img`. What only this program knows of a template is in there too, as `template.toml`, which they leave alone.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use block::{BlockDevice, Error, Result, Storage};
use ops::Control;

use super::tarball::Tarball;
use crate::store::{Template, has_esp};

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Writes the archive.
pub(super) fn write(
    template: &Template,
    disk: &dyn BlockDevice,
    storage: &Arc<dyn Storage>,
    control: &Control<'_>,
) -> Result<()> {
    if !has_esp(disk) {
        let message =
            "the disk has no EFI system partition, and Incus and LXD start virtual machines by UEFI only";
        return Err(Error::invalid(message)
            .with_path(template.image())
            .with_hint("build the template with --boot uefi, or make the disk with imgtool mkdisk"));
    }
    let mut tarball = Tarball::new(&**storage, template.document.created.as_second());
    tarball.file("metadata.yaml", metadata(template).as_bytes())?;
    tarball.file(
        "template.toml",
        template.document.without_credentials().to_toml()?.as_bytes(),
    )?;
    let mut member = tarball.member();
    member.end = copy(&template.image(), storage, member.start, control)?;
    tarball.end("rootfs.img", &member)?;
    tarball.finish()
}

/// Copies a file to an offset of storage, as it is; gives the end of it there.
fn copy(from: &Path, to: &Arc<dyn Storage>, mut at: u64, control: &Control<'_>) -> Result<u64> {
    let failed = |error| Error::io("read", error).with_path(from);
    let mut file = File::open(from).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        control.check()?;
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok(at),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
        done += read as u64;
        control.report(done.min(total), total);
    }
}

/// What Incus and LXD are told.
fn metadata(template: &Template) -> String {
    let document = &template.document;
    let os = document.os.as_deref().unwrap_or("Linux");
    let description = document.notes.as_deref().unwrap_or(os);
    let architecture = document.machine.architecture.unwrap_or_default().name();
    // The first word of "Debian GNU/Linux 12 (bookworm)", and what is behind the first digit.
    let name = os.split(' ').next().unwrap_or(os);
    let release = os.find(|c: char| c.is_ascii_digit()).map(|at| &os[at..]);
    let properties = [
        ("architecture", Some(architecture)),
        ("description", Some(description)),
        ("name", Some(&*template.name())),
        ("os", Some(name)),
        ("release", release),
        // The boot loader has no signature that firmware would know.
        ("requirements.secureboot", Some("false")),
    ]
    .map(|(key, value)| (key, value.map(quoted)));
    let mut text = format!(
        "architecture: {architecture}\ncreation_date: {}\nproperties:\n",
        document.created.as_second()
    );
    for (key, value) in properties {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {key}: {value}");
        }
    }
    text
}

/// A string of YAML (1.2, "Double-Quoted Style").
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_one_string_of_yaml() {
        assert_eq!(quoted("a \"b\"\n\\: #"), r#""a \"b\"\U0000000a\\: #""#);
        assert_eq!(quoted("grün\u{7f}"), "\"grün\\U0000007f\"");
    }
}
