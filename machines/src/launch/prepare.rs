//! Files in the form that a launcher wants.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use block::chain::{Chain, ChainOptions};
use block::gate::Explicit;
use block::{Error, Result};
use ops::{Control, ConvertOptions};

use super::{Needs, is_raw, vmlinux};
use crate::machine::{Boot, Disk, Layer, Machine};

/// A kernel has less, compressed or not.
const MAX_KERNEL: u64 = 1 << 30;

/// The machine with its files as they are [needed](super::Launcher::needs), those that are not so made anew in
/// `directory`: `NAME-disk0.raw`, `NAME-vmlinux`. They are copies, which go their own way from then on. Each has its name only
/// when it is whole.
///
/// # Errors
/// `InvalidInput` for a name that is taken, since a machine may write to it; whatever reading, converting and unpacking
/// meet.
pub fn prepare(machine: &Machine, needs: Needs, directory: &Path, control: &Control<'_>) -> Result<Machine> {
    let mut machine = machine.clone();
    if needs.raw_disks {
        for (number, disk) in machine.disks.iter_mut().enumerate() {
            if !is_raw(disk) {
                let path = directory.join(format!("{}-disk{number}.raw", machine.name));
                make(&path, |file| convert(disk, file, control))?;
                disk.chain = vec![Layer {
                    path,
                    format: "raw".to_owned(),
                }];
            }
        }
    }
    if let (true, Boot::Direct { kernel, .. }) = (needs.elf_kernel, &mut machine.boot) {
        let bytes = read(kernel)?;
        let elf = vmlinux::extract(&bytes).map_err(|error| error.with_path(&*kernel))?;
        if elf != bytes {
            let path = directory.join(format!("{}-vmlinux", machine.name));
            make(&path, |file| {
                let written = fs::File::create(file).and_then(|mut to| {
                    to.write_all(&elf)?;
                    to.sync_all()
                });
                written.map_err(|error| Error::io("write", error))
            })?;
            *kernel = path;
        }
    }
    Ok(machine)
}

/// Has `fill` write a file that gets its name when it is whole, and is gone otherwise.
fn make(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let named = |error: Error| error.with_path(path);
    let directory = path.parent().unwrap_or(Path::new("."));
    let partial = tempfile::Builder::new()
        .prefix(".imgtool-")
        .tempfile_in(directory)
        .map_err(|error| named(Error::io("make a file in its directory", error)))?
        .into_temp_path();
    fill(&partial).map_err(|error| error.with_path_replaced(&partial, path).with_path(path))?;
    partial.persist_noclobber(path).map_err(|error| {
        if error.error.kind() == std::io::ErrorKind::AlreadyExists {
            named(Error::invalid("there is a file of that name already"))
                .with_hint("remove it if no machine uses it any more, or choose another directory")
        } else {
            named(Error::io("name a file", error.error))
        }
    })
}

fn convert(disk: &Disk, to: &Path, control: &Control<'_>) -> Result<()> {
    let [active, below @ ..] = disk.chain.as_slice() else {
        return Err(Error::invalid("a disk of the machine has no image"));
    };
    // Those that the machine was told to have, and no others.
    let gate = Explicit::new(below.iter().map(|layer| &layer.path))?;
    let options = ChainOptions {
        format: Some(&active.format),
        ..ChainOptions::default()
    };
    let opener = raw::HostOpener::new();
    let source = Chain::open_with(
        &opener,
        &[&qcow2::Qcow2, &raw::Raw],
        &gate,
        &active.path,
        &options,
    )?;
    let storage = raw::OpenOptions::new().write(true).open(to)?;
    let storage = std::sync::Arc::new(storage);
    raw::create(&*storage, source.size(), block::Preallocation::Off)?;
    let target = raw::Image::open(storage, block::Access::WRITE)?;
    ops::convert(&*source.device(), &target, &ConvertOptions::new(), control)?;
    block::BlockDevice::flush(&target)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let named = |error| Error::io("read", error).with_path(path);
    let file = fs::File::open(path).map_err(named)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_KERNEL + 1).read_to_end(&mut bytes).map_err(named)?;
    if read as u64 > MAX_KERNEL {
        return Err(Error::invalid("it is too long for a kernel").with_path(path));
    }
    Ok(bytes)
}
