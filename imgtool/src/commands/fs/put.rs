//! `imgtool fs put`: files and directories of the host into a filesystem.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use block::{Error, ErrorKind, Result};
use clap::Args;
use ext4_editor::{Attributes, Editor, LastLink};
use ext4_reader::FileKind;

use super::putting::Putting;
use super::write::{AttributeArgs, TargetArgs};
use super::{Outcome, absolute, below};
use crate::arguments::{ProgressMode, WatchArgs};
use crate::commands::mkfs::tell_left_out;
use crate::interrupt;
use crate::output::{self, OutputFormat};
use crate::watch::Watch;

/// Put files and directories into a filesystem
///
/// A file that is there gets the new contents, and keeps its mode, owner and attributes, but for capabilities, set-user-ID and
/// set-group-ID bits, as with every write; with -p it has those of its source only, and its label (security.selinux). Where a
/// symbolic link is, the file that it leads to gets them. A new file belongs to root, with the mode that it has here. With -r,
/// directories are put with all that is in them: into one that has the name, which keeps what else is in it, or as a new one.
/// Links and special files are made as they are here, in the place of what is no directory, and what has several names keeps
/// them. Nothing is put into what was just put. All is put, or nothing.
#[derive(Debug, Args)]
#[command(
    override_usage = "imgtool fs put [OPTIONS] <IMAGE> <FILE>... <PATH>",
    after_help = "Examples:
  imgtool fs put disk.qcow2#2 hosts resolv.conf /etc/
  imgtool fs put --mkdir --mode 600 --owner 1000:1000 disk.qcow2#2 id.pub /home/anna/.ssh/authorized_keys
  echo guest | imgtool fs put disk.qcow2#2 - /etc/hostname
  imgtool fs put -r --owner 33:33 disk.qcow2#2 site /var/www
  imgtool fs put -r -p disk.qcow2#2 overlay/. /

site becomes /var/www/site where /var/www is a directory, and else /var/www. What is in overlay, as its name ends with /., \
goes into the root. Holes in files become zeros."
)]
pub(super) struct PutArgs {
    /// Put directories, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Keep modes, owners, times and extended attributes
    #[arg(short, long, conflicts_with = "mode")]
    preserve: bool,
    /// Make directories that are missing
    #[arg(long)]
    mkdir: bool,
    #[command(flatten)]
    attributes: AttributeArgs,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    progress: ProgressMode,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// The files, or - for standard input, and where they go: into a directory that is there, or under a name
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    files: Vec<OsString>,
}

impl PutArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let Some((path, files)) = self.files.split_last() else {
            return Ok(0);
        };
        // Standard input is waited for as long as it takes, and an interrupt ends that at once.
        let cancel = if files.iter().any(|file| file == "-") {
            ops::Cancel::new()
        } else {
            interrupt::watch_patiently()?
        };
        let watch = Watch::new(&WatchArgs {
            show: false,
            progress: self.progress,
            quiet: self.quiet,
        });
        let mut target = self.target.open()?;
        let refuse = target.files();
        let attributes = self.attributes.attributes();
        let mut putting = Putting::new(
            &mut target.editor,
            attributes,
            self.preserve,
            refuse,
            &cancel,
            &watch,
        );
        let put = self
            .put_all(&mut putting, files, path)
            .and_then(|()| putting.finish());
        watch.finish();
        let put = target.finish(put).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => {
                Error::new(ErrorKind::Interrupted, "interrupted; the filesystem is as it was")
            }
            _ => error,
        })?;
        if self.target.output == OutputFormat::Json {
            output::json(out, &put.json())?;
        }
        if !self.quiet {
            tell_left_out(&put.left_out);
        }
        Ok(0)
    }

    fn put_all(&self, putting: &mut Putting<'_>, files: &[OsString], path: &OsStr) -> Result<()> {
        let is_directory = path.as_bytes().ends_with(b"/");
        let path = absolute(path);
        let into = is_directory || files.len() > 1 || leads_to_directory(putting.editor(), &path);
        let directory = match path.iter().rposition(|byte| *byte == b'/') {
            _ if into => &path[..],
            Some(slash) => &path[..slash],
            None => b"",
        };
        if self.mkdir && !directory.is_empty() {
            let attributes = Attributes {
                permissions: None,
                ..self.attributes.attributes()
            };
            putting.editor().make_directories(directory, &attributes)?;
        }
        for file in files {
            let path = if into && !self.is_all_in(file) {
                below(&path, name_of(file)?)
            } else {
                path.clone()
            };
            self.put(putting, file, &path)?;
        }
        Ok(())
    }

    /// Whether what is in a directory is meant, and not itself: `DIRECTORY/.`.
    fn is_all_in(&self, file: &OsStr) -> bool {
        self.recursive && (file == "." || file.as_bytes().ends_with(b"/."))
    }

    fn put(&self, putting: &mut Putting<'_>, file: &OsStr, path: &[u8]) -> Result<()> {
        if file == "-" {
            let mut contents = Vec::new();
            io::stdin()
                .read_to_end(&mut contents)
                .map_err(|error| Error::io("read standard input", error))?;
            putting.bytes(&contents, path, Path::new(file))
        } else if self.recursive {
            putting.tree(Path::new(file), path)
        } else {
            putting.followed(Path::new(file), path)
        }
    }
}

fn leads_to_directory(editor: &Editor, path: &[u8]) -> bool {
    let found = editor.filesystem().resolve(path, LastLink::Follow);
    found.is_ok_and(|inode| inode.kind() == FileKind::Directory)
}

/// What a file is called in a directory.
fn name_of(file: &OsStr) -> Result<&[u8]> {
    let name = Path::new(file).file_name().filter(|_| file != "-");
    let name = name.ok_or_else(|| {
        Error::invalid("what it is to be called in a directory is not known").with_path(file)
    })?;
    Ok(name.as_bytes())
}
