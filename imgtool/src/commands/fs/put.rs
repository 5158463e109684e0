//! `imgtool fs put`: files of the host into a filesystem.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block::{Error, Result};
use clap::Args;
use ext4_editor::{Attributes, Editor, LastLink};
use ext4_reader::FileKind;

use super::write::{AttributeArgs, TargetArgs};
use super::{Outcome, absolute, below};

/// Put files into a filesystem
///
/// A file that is there gets the new contents, and keeps its mode, owner and attributes; where a symbolic link is, the file
/// that it leads to does. A new file belongs to root, with the mode that it has here. All files are put, or none.
#[derive(Debug, Args)]
#[command(
    override_usage = "imgtool fs put [OPTIONS] <IMAGE> <FILE>... <PATH>",
    after_help = "Examples:
  imgtool fs put disk.qcow2#2 hosts resolv.conf /etc/
  imgtool fs put --mkdir --mode 600 --owner 1000:1000 disk.qcow2#2 id.pub /home/anna/.ssh/authorized_keys
  echo guest | imgtool fs put disk.qcow2#2 - /etc/hostname"
)]
pub(super) struct PutArgs {
    /// Make directories that are missing
    #[arg(long)]
    mkdir: bool,
    #[command(flatten)]
    attributes: AttributeArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// The files, or - for standard input, and where they go: into a directory that is there, or under a name
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    files: Vec<OsString>,
}

impl PutArgs {
    pub(super) fn run(&self) -> Outcome {
        let Some((path, files)) = self.files.split_last() else {
            return Ok(0);
        };
        let is_directory = path.as_bytes().ends_with(b"/");
        let path = absolute(path);
        self.target.change(|editor| {
            let into = is_directory || files.len() > 1 || leads_to_directory(editor, &path);
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
                editor.make_directories(directory, &attributes)?;
            }
            for file in files {
                let path = if into {
                    below(&path, name_of(file)?)
                } else {
                    path.clone()
                };
                self.put(editor, file, &path)?;
            }
            Ok(())
        })?;
        Ok(0)
    }

    fn put(&self, editor: &mut Editor, file: &OsStr, path: &[u8]) -> Result<()> {
        let mut attributes = self.attributes.attributes();
        if file == "-" {
            let mut contents = Vec::new();
            io::stdin()
                .read_to_end(&mut contents)
                .map_err(|error| Error::io("read standard input", error))?;
            return editor.put(path, &contents, &attributes);
        }
        let failed = |what: &'static str| move |error| Error::io(what, error).with_path(file);
        let mut opened = File::open(file).map_err(failed("open"))?;
        let metadata = opened.metadata().map_err(failed("look at"))?;
        if metadata.is_dir() {
            return Err(Error::invalid("this is a directory").with_path(file));
        }
        let is_new = editor.filesystem().resolve(path, LastLink::Keep).is_err();
        if is_new && attributes.permissions.is_none() && metadata.is_file() {
            attributes.permissions = Some((metadata.mode() & 0o777) as u16);
        }
        if metadata.is_file() {
            return editor.put_from(path, metadata.len(), &mut opened, &attributes);
        }
        let mut contents = Vec::new();
        opened.read_to_end(&mut contents).map_err(failed("read"))?;
        editor.put(path, &contents, &attributes)
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
