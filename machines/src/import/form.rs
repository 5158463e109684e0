//! What a file is, by what is in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use block::{Error, Result, escape};
use ext4_builder::oci::Reference;
use ext4_builder::tar::{Archive, Options, decompress};
use inspector::Format;

use crate::export::Form;

/// Bytes at the start of a file that tell what it is: up to the end of the first header of an archive.
const START: usize = 512;

/// What the files at the top of an archive are called, of each form.
const OCI: [&[u8]; 3] = [b"oci-layout", b"index.json", b"blobs"];
const INCUS: [&[u8]; 4] = [b"metadata.yaml", b"rootfs.img", b"templates", b"rootfs"];

/// Finds out what is at a path.
pub(super) fn detect(path: &Path) -> Result<Form> {
    if fs::symlink_metadata(path).is_err() && Reference::parse(path.as_os_str())?.is_some() {
        return Ok(Form::Oci);
    }
    let failed = |error| Error::io("open", error).with_path(path);
    let kind = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        // Who opens it as a disk knows what else may have been meant.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Form::Raw),
        Err(error) => return Err(failed(error)),
    };
    if kind.is_dir() {
        if path.join("oci-layout").is_file() {
            return Ok(Form::Oci);
        }
        let error = Error::invalid("the directory is no image layout: it has no file oci-layout");
        return Err(error.with_path(path).with_hint(
            "of a directory that is a root filesystem, make a template by a recipe: imgtool template build",
        ));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::invalid("this is neither a file nor a disk").with_path(path));
    }
    let mut start = Vec::with_capacity(START);
    let mut file = File::open(path).map_err(failed)?;
    file.by_ref()
        .take(START as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    if !kind.is_block_device() && is_archive(&start) {
        return of_archive(path).map_err(|error| error.with_path(path));
    }
    refuse_foreign(path)?;
    Ok(if start.starts_with(b"QFI\xfb") {
        Form::Qcow2
    } else {
        Form::Raw
    })
}

/// Fails for an image in a format that nothing here reads: taken as a raw disk, it would be one of nonsense.
fn refuse_foreign(path: &Path) -> Result<()> {
    let storage = raw::OpenOptions::new().lock(false).open(path)?;
    let found = inspector::signatures(Arc::new(storage)).map_err(|error| error.with_path(path))?;
    let mut formats = found.into_iter().map(|signature| signature.format);
    let Some(format) = formats.find(|format| is_foreign(*format)) else {
        return Ok(());
    };
    let theirs = if format == Format::Vhd {
        "vpc"
    } else {
        format.name()
    };
    let message = format!("it is a {} image, which is not read here", format.name());
    Err(Error::unsupported(message).with_path(path).with_hint(format!(
        "convert it with QEMU's own program: qemu-img convert -f {theirs} -O qcow2 {} disk.qcow2; --format raw takes its bytes as \
         those of a disk",
        escape(&path.to_string_lossy())
    )))
}

/// Whether a format holds a disk in a way of its own. Discs, partition tables and LUKS are what raw disks may have.
fn is_foreign(format: Format) -> bool {
    matches!(
        format,
        Format::Qcow
            | Format::Qed
            | Format::Vmdk
            | Format::Vhd
            | Format::Vhdx
            | Format::Vdi
            | Format::Parallels
            | Format::Bochs
            | Format::Cloop
            | Format::Dmg
    )
}

/// Whether this is the start of a tar archive, or of something that is compressed.
fn is_archive(start: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh"];
    start.get(257..262) == Some(b"ustar") || compressed.iter().any(|magic| start.starts_with(magic))
}

/// What an archive is, by the first name in it.
fn of_archive(path: &Path) -> Result<Form> {
    let file = File::open(path).map_err(|error| Error::io("open", error))?;
    let options = Options {
        absolute_names: true,
        ..Options::default()
    };
    let mut archive = Archive::new(decompress(file)?, options);
    while let Some(entry) = archive.next_entry()? {
        let top = entry.path.split(|byte| *byte == b'/').next().unwrap_or_default();
        if top.is_empty() {
            continue;
        }
        return Ok(match top {
            top if OCI.contains(&top) => Form::Oci,
            top if INCUS.contains(&top) => Form::Incus,
            _ => Form::Tar,
        });
    }
    Err(Error::invalid("the archive is empty"))
}
