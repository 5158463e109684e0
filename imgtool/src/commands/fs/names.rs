//! `imgtool fs mkdir`, `rm`, `mv` and `ln`: names in a filesystem.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use block::{Error, Result};
use clap::Args;
use ext4_editor::{Attributes, Editor, LastLink};
use ext4_reader::FileKind;
use serde_json::Value;

use super::write::{AttributeArgs, TargetArgs, file_json};
use super::{Outcome, absolute, below};

/// Make directories in a filesystem
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs mkdir disk.qcow2#2 /srv/data
  imgtool fs mkdir -p --mode 700 --owner 1000:1000 disk.qcow2#2 /home/anna/.ssh")]
pub(super) struct MkdirArgs {
    /// Make those above too, and do nothing where it is there
    #[arg(short, long)]
    parents: bool,
    #[command(flatten)]
    attributes: AttributeArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// The directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl MkdirArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let attributes = self.attributes.attributes();
        self.target.change(out, |editor| {
            for path in &self.paths {
                let path = absolute(path);
                if self.parents {
                    editor.make_directories(&path, &attributes)?;
                } else {
                    editor.make_directory(&path, &attributes)?;
                }
            }
            let paths = self.paths.iter().map(|path| absolute(path));
            paths
                .map(|path| file_json(editor, &path, LastLink::Follow))
                .collect()
        })
    }
}

/// Remove files from a filesystem
///
/// All of them are removed, or none. What they held stays on the disk until it is written over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs rm disk.qcow2#2 /etc/machine-id
  imgtool fs rm -r disk.qcow2#2 /var/cache/apt /root/.ssh")]
pub(super) struct RmArgs {
    /// Remove directories, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Do nothing where there is no such file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl RmArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        self.target.change(out, |editor| {
            let mut removed = Vec::new();
            for path in &self.paths {
                removed.extend(self.remove(editor, &absolute(path))?);
            }
            Ok(Value::Array(removed))
        })
    }

    /// Removes a file. Says what it was.
    fn remove(&self, editor: &mut Editor, path: &[u8]) -> Result<Option<Value>> {
        match editor.filesystem().resolve(path, LastLink::Keep) {
            Err(error) if self.force && error.kind() == block::ErrorKind::InvalidInput => return Ok(None),
            Ok(inode) if inode.kind() == FileKind::Directory && !self.recursive => {
                let path = String::from_utf8_lossy(path);
                let message = format!("{} is a directory", block::escape(&path));
                return Err(Error::invalid(message).with_hint("-r removes it with all that is in it"));
            }
            _ => {}
        }
        let was = file_json(editor, path, LastLink::Keep)?;
        editor.remove_tree(path)?;
        Ok(Some(was))
    }
}

/// Move or rename a file in a filesystem
///
/// It is moved into a directory that is there, or to a new name; a file or empty directory that has the name is replaced.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs mv disk.qcow2#2 /etc/fstab /etc/fstab.old")]
pub(super) struct MvArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The file
    from: OsString,
    /// Where it is to be
    to: OsString,
}

impl MvArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        self.target.change(out, |editor| {
            let from = absolute(&self.from);
            let to = in_directory(editor, &absolute(&self.to), &from);
            editor.rename(&from, &to)?;
            file_json(editor, &to, LastLink::Keep)
        })
    }
}

/// Make a link in a filesystem
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs ln -s disk.qcow2#2 ../usr/share/zoneinfo/Europe/Paris /etc/localtime
  imgtool fs ln disk.qcow2#2 /boot/vmlinuz /boot/vmlinuz.old")]
pub(super) struct LnArgs {
    /// Make a symbolic link
    #[arg(short, long)]
    symbolic: bool,
    /// Remove what is there before, if it is no directory
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// Where it leads: taken as it is for a symbolic link, and else a file in the filesystem
    leads_to: OsString,
    /// The link
    path: OsString,
}

impl LnArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        self.target.change(out, |editor| {
            let from = absolute(&self.leads_to);
            let path = in_directory(editor, &absolute(&self.path), &from);
            let there = editor.filesystem().resolve(&path, LastLink::Keep);
            if self.force && there.is_ok_and(|inode| inode.kind() != FileKind::Directory) {
                editor.remove(&path)?;
            }
            if self.symbolic {
                editor.symlink(&path, self.leads_to.as_bytes(), &Attributes::default())?;
            } else {
                editor.link(&from, &path)?;
            }
            file_json(editor, &path, LastLink::Keep)
        })
    }
}

/// A path, or the place under the name of another in it where it is a directory.
fn in_directory(editor: &Editor, path: &[u8], other: &[u8]) -> Vec<u8> {
    let there = editor.filesystem().resolve(path, LastLink::Follow);
    if there.is_ok_and(|inode| inode.kind() == FileKind::Directory) {
        let name = other.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        return below(path, name);
    }
    path.to_vec()
}
