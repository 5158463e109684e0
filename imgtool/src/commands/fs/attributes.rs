//! `imgtool fs chmod` and `chown`: what is said of files in a filesystem.

use std::ffi::OsString;

use block::Result;
use clap::Args;
use ext4_editor::{Attributes, LastLink};

use super::write::{Owner, TargetArgs, mode, owner};
use super::{Outcome, absolute};

/// Set the permissions of files in a filesystem
///
/// Access control lists follow. Links are followed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs chmod disk.qcow2#2 600 /etc/ssh/ssh_host_rsa_key
  imgtool fs chmod disk.qcow2#2 4755 /usr/bin/sudo")]
pub(super) struct ChmodArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Permissions, in octal digits
    #[arg(value_parser = mode)]
    mode: u16,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl ChmodArgs {
    pub(super) fn run(&self) -> Outcome {
        set(
            &self.target,
            &self.paths,
            LastLink::Follow,
            &Attributes::of(self.mode),
        )?;
        Ok(0)
    }
}

/// Set owner and group of files in a filesystem
///
/// They are numbers: what names stand for them in the image is not looked up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs chown disk.qcow2#2 1000:1000 /home/anna
  imgtool fs chown disk.qcow2#2 :42 /etc/shadow")]
pub(super) struct ChownArgs {
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
    pub(super) fn run(&self) -> Outcome {
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
        set(&self.target, &self.paths, last, &attributes)?;
        Ok(0)
    }
}

fn set(target: &TargetArgs, paths: &[OsString], last: LastLink, attributes: &Attributes) -> Result<()> {
    target.change(|editor| {
        let mut paths = paths.iter();
        paths.try_for_each(|path| editor.set_attributes(&absolute(path), last, attributes))
    })
}
