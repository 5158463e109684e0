//! `imgtool fs edit`: a file in a filesystem, in an editor.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use block::{Error, Result};
use clap::Args;
use ext4_editor::{Attributes, LastLink};
use ext4_reader::FileKind;

use super::write::{Target, TargetArgs};
use super::{Outcome, absolute};

/// Bytes of a file that is edited, at most: editors want it in memory.
const LIMIT: u64 = 64 << 20;

/// Edit a file in a filesystem
///
/// The editor is what the environment variable VISUAL or EDITOR says, or vi, and gets a copy of the file. When it ends, and
/// the copy has changed, the file gets its contents. Mode, owner and attributes stay. Meanwhile nobody else can write to
/// the image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs edit disk.qcow2#2 /etc/fstab
  EDITOR='sed -i s/quiet//' imgtool fs edit disk.qcow2#2 /etc/default/grub")]
pub(super) struct EditArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The file
    #[arg(value_name = "PATH")]
    path: OsString,
}

impl EditArgs {
    pub(super) fn run(&self) -> Outcome {
        let mut target = self.target.open()?;
        let path = absolute(&self.path);
        let edited = edit(&target, &path).and_then(|new| match new {
            Some(contents) => target.editor.put(&path, &contents, &Attributes::default()),
            None => Ok(()),
        });
        target.finish(edited)?;
        Ok(0)
    }
}

/// The new contents of a file, where they are others.
fn edit(target: &Target, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let filesystem = target.editor.filesystem();
    let inode = filesystem.resolve(path, LastLink::Follow)?;
    if inode.kind() != FileKind::Regular {
        return Err(Error::invalid("only regular files can be edited"));
    }
    if inode.size() > LIMIT {
        let message = format!("a file of {} bytes is too large to be edited", inode.size());
        return Err(Error::invalid(message).with_hint("copy it out with fs cp, and put it back with fs put"));
    }
    let mut before = Vec::new();
    filesystem
        .reader(&inode)?
        .read_to_end(&mut before)
        .map_err(|error| Error::io("read the file", error))?;
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let copy = Copy::new(OsStr::from_bytes(name), &before)?;
    let after = copy.edited()?;
    Ok((after != before).then_some(after))
}

/// A copy in a directory that nobody else may enter, removed when it is dropped.
struct Copy {
    directory: PathBuf,
    file: PathBuf,
}

impl Copy {
    fn new(name: &OsStr, contents: &[u8]) -> Result<Self> {
        let mut random = [0; 8];
        let urandom = Path::new("/dev/urandom");
        File::open(urandom)
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(|error| Error::io("read", error).with_path(urandom))?;
        let directory =
            std::env::temp_dir().join(format!("imgtool-edit-{:016x}", u64::from_le_bytes(random)));
        let failed = |path: &Path, error| Error::io("make", error).with_path(path);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| failed(&directory, error))?;
        let copy = Self {
            file: directory.join(name),
            directory,
        };
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&copy.file)
            .and_then(|mut file| file.write_all(contents))
            .map_err(|error| failed(&copy.file, error))?;
        Ok(copy)
    }

    /// What an editor makes of it.
    fn edited(&self) -> Result<Vec<u8>> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let mut script = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or("vi".into());
        script.push(" \"$1\"");
        // As git and others do it, so that it may have arguments.
        let status = Command::new("sh")
            .arg("-c")
            .arg(&script)
            .arg("sh")
            .arg(&self.file)
            .status();
        let status = status.map_err(|error| Error::io("run the editor", error))?;
        if !status.success() {
            return Err(
                Error::invalid(format!("the editor failed ({status}), and nothing was changed"))
                    .with_hint("the environment variables VISUAL and EDITOR say which one is run"),
            );
        }
        fs::read(&self.file).map_err(|error| Error::io("read", error).with_path(&self.file))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What is left over in a directory for temporary files does no harm, and there is nobody to tell.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
