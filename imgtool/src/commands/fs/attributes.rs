//! `imgtool fs chmod` and `chown`: what is said of files in a filesystem.

use std::ffi::OsString;
use std::io::Write;

use block::{Error, Result};
use clap::Args;
use ext4_editor::{Attributes, Editor, LastLink};
use ext4_reader::{FileKind, Inode};
use serde_json::Value;

use super::mode::Mode;
use super::walk::{Step, Walk};
use super::write::{Owner, TargetArgs, file_json, owner};
use super::{Outcome, absolute, below};

/// Set the permissions of files in a filesystem
///
/// The mode is octal digits, which set all bits, or symbols, as chmod(1) takes them: u, g, o or a (for whom; all that the umask
/// lets through, where nobody is named), then +, - or =, then any of r, w, x, X (x of directories and of what somebody may
/// execute), s and t, or one of u, g and o; several with commas. Access control lists follow. Links are followed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs chmod disk.qcow2#2 600 /etc/ssh/ssh_host_rsa_key
  imgtool fs chmod disk.qcow2#2 u+s /usr/bin/sudo
  imgtool fs chmod -R disk.qcow2#2 u=rwX,go=rX /srv/www
  imgtool fs chmod disk.qcow2#2 -- -x /etc/cron.daily/report")]
pub(super) struct ChmodArgs {
    /// Change what is in directories too; links in there are passed over
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// Permissions: 644, or u+x,go-w
    #[arg(value_parser = Mode::parse)]
    mode: Mode,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl ChmodArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let umask = umask()?;
        self.target.change(out, |editor| {
            let mut changed = Changed::default();
            for path in &self.paths {
                for (path, inode) in named(editor, &absolute(path), LastLink::Follow, self.recursive)? {
                    if inode.kind() == FileKind::Symlink {
                        continue;
                    }
                    let is_directory = inode.kind() == FileKind::Directory;
                    let mode = self.mode.of(inode.mode() & 0o7777, is_directory, umask);
                    changed.set(editor, path, LastLink::Follow, &Attributes::of(mode))?;
                }
            }
            changed.json(editor)
        })
    }
}

/// Set owner and group of files in a filesystem
///
/// They are numbers: what names stand for them in the image is not looked up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs chown -R disk.qcow2#2 1000:1000 /home/anna
  imgtool fs chown disk.qcow2#2 :42 /etc/shadow")]
pub(super) struct ChownArgs {
    /// Change what is in directories too; links in there are changed themselves
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Change a symbolic link itself
    #[arg(long)]
    no_dereference: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// Owner and group
    #[arg(value_name = "UID[:GID]", value_parser = owner)]
    owner: Owner,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl ChownArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let attributes = Attributes {
            uid: self.owner.uid,
            gid: self.owner.gid,
            ..Attributes::default()
        };
        let last = if self.no_dereference {
            LastLink::Keep
        } else {
            LastLink::Follow
        };
        self.target.change(out, |editor| {
            let mut changed = Changed::default();
            for path in &self.paths {
                let mut last = last;
                for (path, _) in named(editor, &absolute(path), last, self.recursive)? {
                    changed.set(editor, path, last, &attributes)?;
                    last = LastLink::Keep;
                }
            }
            changed.json(editor)
        })
    }
}

/// The files that were changed.
#[derive(Default)]
struct Changed(Vec<(Vec<u8>, LastLink)>);

impl Changed {
    fn set(
        &mut self,
        editor: &mut Editor,
        path: Vec<u8>,
        last: LastLink,
        attributes: &Attributes,
    ) -> Result<()> {
        editor.set_attributes(&path, last, attributes)?;
        self.0.push((path, last));
        Ok(())
    }

    /// What they are now.
    fn json(&self, editor: &Editor) -> Result<Value> {
        self.0
            .iter()
            .map(|(path, last)| file_json(editor, path, *last))
            .collect()
    }
}

/// What is at a path and, where that is wanted and it is a directory, all that is below it.
fn named(editor: &Editor, path: &[u8], last: LastLink, recursive: bool) -> Result<Vec<(Vec<u8>, Inode)>> {
    let filesystem = editor.filesystem();
    let inode = filesystem.resolve(path, last)?;
    let mut found = vec![(path.to_vec(), inode.clone())];
    if !recursive || inode.kind() != FileKind::Directory {
        return Ok(found);
    }
    let mut walk = Walk::new(filesystem, true);
    walk.enter(&inode)?;
    while let Some(step) = walk.step()? {
        let Step::Entry(_, inode) = step else {
            continue;
        };
        found.push((below(path, walk.path()), inode.clone()));
        if inode.kind() == FileKind::Directory {
            walk.enter(&inode)?;
        }
    }
    Ok(found)
}

/// The permissions that new files of this process do not get.
fn umask() -> Result<u16> {
    // The system call sets it as well, and files that others make meanwhile would be everybody's.
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(|error| {
        Error::io("read the umask", error)
            .with_path(path)
            .with_hint("mount /proc")
    })?;
    let digits = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = digits.and_then(|digits| u16::from_str_radix(digits.trim(), 8).ok());
    umask.map(|umask| umask & 0o777).ok_or_else(|| {
        Error::unsupported("the kernel does not tell the umask; it is older than Linux 4.7").with_path(path)
    })
}
