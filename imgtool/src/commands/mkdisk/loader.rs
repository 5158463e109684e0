//! The boot loader: systemd-boot, or whatever EFI program is given.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use block::{Error, Result};
use ext4_reader::{Filesystem, Inode};

use super::boot;

/// Where systemd has it, from the root on.
const DIRECTORY: &str = "/usr/lib/systemd/boot/efi";

/// What it is called there: where it is signed, that one counts, as for `bootctl`.
const NAMES: [&str; 2] = ["systemd-bootx64.efi.signed", "systemd-bootx64.efi"];

/// Bytes from the start of a program in which what [`is_efi_program`] looks at is.
pub(super) const HEADERS: u64 = 4096;

/// The machine of a program for x86-64.
const X86_64: [u8; 2] = 0x8664_u16.to_le_bytes();

/// A boot loader.
#[derive(Debug)]
pub(super) struct BootLoader {
    place: Place,
    /// Where it comes from, for who is told of it.
    origin: String,
}

#[derive(Debug)]
enum Place {
    /// On this machine, open.
    Host(File, PathBuf),
    /// In the filesystem that is booted.
    Tree(Box<Inode>),
}

impl BootLoader {
    /// The one in a file.
    ///
    /// # Errors
    /// `InvalidInput` for what is no EFI program; `Io`.
    pub(super) fn given(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", error).with_path(path))?;
        let this = Self {
            place: Place::Host(file, path.to_owned()),
            origin: path.to_string_lossy().into_owned(),
        };
        this.check_host()?;
        Ok(this)
    }

    /// The one that is in the filesystem to be booted, or else on this machine.
    ///
    /// # Errors
    /// `InvalidInput` if there is none, or it is no EFI program; `Corrupt`, `Io`.
    pub(super) fn find(filesystem: &Filesystem) -> Result<Self> {
        let paths = NAMES.map(|name| format!("{DIRECTORY}/{name}"));
        for path in &paths {
            if let Some(inode) = boot::find(filesystem, path)? {
                let mut start = Vec::new();
                let reader = filesystem.reader(&inode)?;
                reader
                    .take(HEADERS)
                    .read_to_end(&mut start)
                    .map_err(boot::inside)?;
                if !is_efi_program(&start) {
                    return Err(no_program().with_path(format!("{path} of the source")));
                }
                return Ok(Self {
                    place: Place::Tree(Box::new(inode)),
                    origin: format!("{path} of the source"),
                });
            }
        }
        if let Some(path) = paths.iter().find(|path| Path::new(path).is_file()) {
            return Self::given(Path::new(path));
        }
        let message = format!("there is no boot loader in {DIRECTORY}, neither in the source nor here");
        let hint = "install Debian's systemd-boot-efi in either, or name a program with --boot-efi";
        Err(Error::invalid(message).with_hint(hint))
    }

    /// Where it comes from.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Its length, and its bytes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn open<'l>(&'l self, filesystem: &'l Filesystem) -> Result<(u64, Box<dyn Read + 'l>)> {
        match &self.place {
            Place::Tree(inode) => Ok((inode.size(), Box::new(filesystem.reader(inode)?))),
            Place::Host(file, path) => {
                let failed = |error| Error::io("read", error).with_path(path);
                let len = file.metadata().map_err(failed)?.len();
                let mut file = file;
                file.rewind().map_err(failed)?;
                Ok((len, Box::new(file)))
            }
        }
    }

    fn check_host(&self) -> Result<()> {
        let Place::Host(file, path) = &self.place else {
            return Ok(());
        };
        let mut start = Vec::new();
        let read = file.take(HEADERS).read_to_end(&mut start);
        read.map_err(|error| Error::io("read", error).with_path(path))?;
        if is_efi_program(&start) {
            Ok(())
        } else {
            Err(no_program().with_path(path))
        }
    }
}

fn no_program() -> Error {
    Error::invalid("this is no EFI program for x86-64").with_hint("systemd-boot's is systemd-bootx64.efi")
}

/// Whether a file that starts with these bytes is a program for UEFI on x86-64: a PE image (Microsoft's "PE Format").
pub(super) fn is_efi_program(start: &[u8]) -> bool {
    let field = |at: usize, len: usize| start.get(at..at.checked_add(len)?);
    let is_pe = || {
        let header = field(0x3C, 4)?.try_into().ok().map(u32::from_le_bytes)? as usize;
        Some(field(header, 4)? == b"PE\0\0" && field(header.checked_add(4)?, 2)? == X86_64)
    };
    start.starts_with(b"MZ") && is_pe() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_headers() {
        let mut program = vec![0; 256];
        program[..2].copy_from_slice(b"MZ");
        program[0x3C] = 0x80;
        program[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x86");
        assert!(is_efi_program(&program));
        assert!(!is_efi_program(&program[..0x85]));
        for (at, byte) in [(0, b'Z'), (0x80, b'N'), (0x84, 0x4C), (0x3F, 0xFF)] {
            let mut other = program.clone();
            other[at] = byte;
            assert!(!is_efi_program(&other), "{at}");
        }
        assert!(!is_efi_program(b"") && !is_efi_program(b"#!/bin/sh\n"));
    }
}
