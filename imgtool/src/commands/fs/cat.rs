//! `imgtool fs cat`: what is in files.

use std::ffi::OsString;
use std::io::Write;

use block::Error;
use clap::Args;
use ext4_reader::{FileKind, LastLink};

use super::read::{self, Piece};
use super::{Outcome, SourceArgs, absolute};
use crate::failure::Failure;
use crate::interrupt;

/// Print what is in files, one after the other
///
/// The bytes of the files and nothing else, holes as zeros. What is known about a file, `imgtool fs stat` prints, as JSON
/// too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs cat disk.qcow2#2 /etc/fstab
  imgtool fs cat disk.qcow2#2 /boot/initrd.img | lsinitramfs -")]
pub(super) struct CatArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl CatArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let source = self.source.open()?;
        let cancel = interrupt::watch()?;
        for path in &self.paths {
            let path = absolute(path);
            let inode = source.find(&path, LastLink::Follow)?;
            let named = |failure: Failure| match failure {
                Failure::Error { error, code } => Failure::Error {
                    error: source.at(&path, error),
                    code,
                },
                nobody @ Failure::NobodyReads { .. } => nobody,
            };
            if inode.kind() == FileKind::Directory {
                let error =
                    Error::invalid("this is a directory").with_hint("imgtool fs ls lists what is in it");
                return Err(named(error.into()));
            }
            read::pieces(&source.filesystem, &inode, &cancel, |piece| match piece {
                Piece::Hole(len) => zeros(out, len, &cancel),
                Piece::Data(_, bytes) => Ok(out.write_all(bytes)?),
            })
            .map_err(named)?;
        }
        Ok(0)
    }
}

fn zeros(out: &mut dyn Write, mut len: u64, cancel: &ops::Cancel) -> Result<(), Failure> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    while len > 0 {
        cancel.check()?;
        let piece = len.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..piece as usize])?;
        len -= piece;
    }
    Ok(())
}
