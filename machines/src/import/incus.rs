//! Images of virtual machines of Incus and LXD: one archive with `metadata.yaml` and `rootfs.img`, or an archive with the first and a
//! file that is the second. The disk is in qcow2 format, whatever it looks like.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use block::chain::{Chain, ChainOptions};
use block::gate::Deny;
use block::{Error, Result, Storage};
use ext4_builder::tar::{Archive, Decompressed, Kind, Options, decompress};
use ops::Control;
use raw::HostOpener;

use super::metadata::Metadata;
use super::notes::{self, BootFiles, MAX_NOTES};
use crate::store::{NewTemplate, Store, Template, copy_image, stands_alone};

/// Bytes of a document at most.
const MAX_DOCUMENT: u64 = MAX_NOTES;

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

impl Store {
    /// Of an archive, and the disk where that is a file of its own.
    pub(super) fn import_incus(
        &self,
        file: &Path,
        disk: Option<&Path>,
        mut new: NewTemplate,
        control: &Control<'_>,
    ) -> Result<Template> {
        let compress = new.compress;
        self.template_of(compress, control, |image, beside| {
            let extracted = beside.join("rootfs.img");
            let unpacked = unpack(file, &extracted, control).map_err(|error| error.with_path(file))?;
            let is_whole = unpacked.has_disk;
            let noted = unpacked
                .describe(&mut new)
                .map_err(|error| error.with_path(file))?;
            let disk = match (is_whole, disk) {
                (true, None) => &extracted,
                (false, Some(disk)) => disk,
                (true, Some(_)) => {
                    let message = "the archive has a disk in it already: name no other";
                    return Err(Error::invalid(message).with_path(file));
                }
                (false, None) => {
                    let error = Error::invalid("the archive has no disk in it: there is no rootfs.img");
                    return Err(error.with_path(file).with_hint(
                        "name the file that has it, too: imgtool template import incus.tar.xz disk.qcow2",
                    ));
                }
            };
            notes::boot_files(file, noted, &mut new)?;
            let chain = open(disk)?;
            new.look_at(&chain.device())
                .map_err(|error| error.with_path(file))?;
            if is_whole && stands_alone(&chain)? {
                drop(chain);
                fs::rename(&extracted, image)
                    .map_err(|error| Error::io("rename", error).with_path(&extracted))?;
            } else {
                copy_image(&chain, image, false, control)?;
            }
            Ok(new)
        })
    }
}

/// Opens the disk, which is not to be based on anything.
fn open(path: &Path) -> Result<Chain> {
    let formats: [&dyn block::Format; 2] = [&qcow2::Qcow2, &raw::Raw];
    let options = ChainOptions {
        format: Some("qcow2"),
        ..ChainOptions::default()
    };
    Chain::open_with(&HostOpener::new(), &formats, &Deny, path, &options)
}

/// What was in an archive.
#[derive(Debug, Default)]
struct Unpacked {
    metadata: Option<Vec<u8>>,
    notes: Option<Vec<u8>>,
    has_disk: bool,
}

/// Takes what is wanted from an archive. The disk is written to a new file, with holes.
fn unpack(file: &Path, disk: &Path, control: &Control<'_>) -> Result<Unpacked> {
    let input = File::open(file).map_err(|error| Error::io("open", error))?;
    let mut archive = Archive::new(decompress(input)?, Options::default());
    let mut unpacked = Unpacked::default();
    while let Some(entry) = archive.next_entry()? {
        control.check()?;
        match (&*entry.path, &entry.kind) {
            (b"metadata.yaml", Kind::File { size, .. }) => {
                unpacked.metadata = Some(document(&mut archive, "metadata.yaml", *size)?);
            }
            (b"template.toml", Kind::File { size, .. }) => {
                unpacked.notes = Some(document(&mut archive, "template.toml", *size)?);
            }
            (b"rootfs.img", Kind::File { size, data }) => {
                if unpacked.has_disk {
                    return Err(Error::invalid("the archive has two files rootfs.img"));
                }
                write_disk(&mut archive, disk, *size, data, control)?;
                unpacked.has_disk = true;
            }
            (b"metadata.yaml" | b"template.toml" | b"rootfs.img", _) => {
                let name = String::from_utf8_lossy(&entry.path);
                return Err(Error::invalid(format!("{name} in the archive is no file")));
            }
            (path, _) if path == b"rootfs" || path.starts_with(b"rootfs/") => {
                let error = Error::unsupported(
                    "the image is a container's: it has a directory rootfs, and no disk rootfs.img",
                );
                return Err(error.with_hint("choose the image of a virtual machine"));
            }
            _ => {}
        }
    }
    Ok(unpacked)
}

fn document(archive: &mut Archive<Decompressed>, name: &str, size: u64) -> Result<Vec<u8>> {
    if size > MAX_DOCUMENT {
        return Err(Error::invalid(format!(
            "{name} has more than {MAX_DOCUMENT} bytes"
        )));
    }
    let mut bytes = vec![0; size as usize];
    let read = archive.read_data(&mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn write_disk(
    archive: &mut Archive<Decompressed>,
    path: &Path,
    size: u64,
    data: &[Range<u64>],
    control: &Control<'_>,
) -> Result<()> {
    let options = raw::OpenOptions::new().write(true).create_new(true).lock(false);
    let storage: Arc<dyn Storage> = Arc::new(options.open(path)?);
    storage.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    for range in data {
        let mut at = range.start;
        while at < range.end {
            control.check()?;
            let len = (range.end - at).min(CHUNK as u64) as usize;
            let read = archive.read_data(&mut buffer[..len])?;
            // What is not written is a hole already.
            if !ops::is_zero(&buffer[..read]) {
                storage.write_all_at(&buffer[..read], at)?;
            }
            at += read as u64;
            control.report(at, size);
        }
    }
    storage.sync_data()
}

impl Unpacked {
    /// Says what is known of the template.
    fn describe(self, new: &mut NewTemplate) -> Result<BootFiles> {
        let Some(metadata) = self.metadata else {
            let error = Error::invalid("the archive is no image of Incus or LXD: there is no metadata.yaml");
            return Err(error.with_hint("of an archive of a root filesystem: --format tar"));
        };
        let text = str::from_utf8(&metadata).map_err(|_| Error::invalid("metadata.yaml is not UTF-8"))?;
        let metadata = Metadata::parse(text)?;
        let mut noted = BootFiles::default();
        if let Some(notes) = self.notes {
            let notes = notes::parse_notes(&notes)
                .map_err(|error| Error::invalid(format!("template.toml in the archive: {error}")))?;
            noted = new.take_notes(notes);
        } else {
            let property = |name| metadata.properties.get(name).cloned();
            new.notes = new.notes.take().or_else(|| property("description"));
            let os = [property("os"), property("release")];
            let os: Vec<String> = os.into_iter().flatten().collect();
            new.os = new
                .os
                .take()
                .or_else(|| Some(os.join(" ")).filter(|os| !os.is_empty()));
        }
        if metadata.architecture.is_some() {
            new.machine.architecture = metadata.architecture;
        }
        Ok(noted)
    }
}
