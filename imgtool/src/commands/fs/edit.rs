//! `imgtool fs edit`: a file in a filesystem, in an editor.
//!
//! The editor has a copy, in a directory of its own that nobody else may enter. What is typed at the keyboard is the editor's alone, Ctrl-C too:
//! as long as it runs, only its end ends this, or a signal from elsewhere, which it is passed. The copy goes away at the end, unless
//! there is work in it that the image did not get.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use block::{Error, Result};
use clap::Args;
use ext4_editor::{Attributes, Editor, LastLink};
use ext4_reader::FileKind;
use ops::Cancel;
use rustix::process::{Pid, Signal, kill_process};

use super::write::{TargetArgs, file_json};
use super::{Outcome, absolute};
use crate::interrupt;
use crate::output::note;

/// Bytes of a file that is edited, at most: editors want it in memory.
const LIMIT: u64 = 64 << 20;
/// Between two looks at whether the editor has ended.
const TICK: Duration = Duration::from_millis(20);
/// How long an editor that is told to end may take to put away what it has.
const TO_END: Duration = Duration::from_secs(5);

/// Edit a file in a filesystem
///
/// The editor is what the environment variable VISUAL or EDITOR says, or vi, and gets a copy of the file. When it ends, and
/// the copy has changed, the file gets its contents. Mode, owner and attributes stay. Meanwhile nobody else can write to
/// the image. Where that fails, the copy is kept, and where it is is said.
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
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let stop = interrupt::leave_the_keyboard()?;
        let path = absolute(&self.path);
        let mut copy = None;
        let outcome = self.target.change(out, |editor| {
            let new = copy.insert(copy_of(editor, &path)?).edit(&stop)?;
            if let Some(contents) = &new {
                editor.put(&path, contents, &Attributes::default())?;
            }
            let mut told = file_json(editor, &path, LastLink::Follow)?;
            told["changed"] = new.is_some().into();
            Ok(told)
        });
        if let (Err(_), Some(copy)) = (&outcome, &mut copy) {
            copy.keep_work();
        }
        outcome
    }
}

/// A copy of a regular file.
fn copy_of(editor: &Editor, path: &[u8]) -> Result<Copy> {
    let filesystem = editor.filesystem();
    let inode = filesystem.resolve(path, LastLink::Follow)?;
    if inode.kind() != FileKind::Regular {
        return Err(Error::invalid("only regular files can be edited"));
    }
    if inode.size() > LIMIT {
        let message = format!("a file of {} bytes is too large to be edited", inode.size());
        return Err(Error::invalid(message).with_hint("copy it out with fs cp, and put it back with fs put"));
    }
    let mut contents = Vec::new();
    filesystem
        .reader(&inode)?
        .read_to_end(&mut contents)
        .map_err(|error| Error::io("read the file", error))?;
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    Copy::new(OsStr::from_bytes(name), contents)
}

/// A copy in a directory that nobody else may enter, removed when it is dropped.
struct Copy {
    directory: PathBuf,
    file: PathBuf,
    /// What was in it.
    before: Vec<u8>,
    /// Whoever edits it has not had the editor fail, which throws away what was done.
    has_work: bool,
    is_kept: bool,
}

impl Copy {
    fn new(name: &OsStr, contents: Vec<u8>) -> Result<Self> {
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
            before: contents,
            has_work: true,
            is_kept: false,
        };
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&copy.file)
            .and_then(|mut file| file.write_all(&copy.before))
            .map_err(|error| failed(&copy.file, error))?;
        Ok(copy)
    }

    /// What an editor makes of it, where that is something else.
    fn edit(&mut self, stop: &Cancel) -> Result<Option<Vec<u8>>> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        // The shell outlives what the keyboard sends, and hands nothing of that down: it is the editor's.
        let mut script = OsString::from("trap : INT QUIT\n");
        script.push(set("VISUAL").or_else(|| set("EDITOR")).unwrap_or("vi".into()));
        script.push(" \"$1\"");
        // As git and others do it, so that it may have arguments.
        let editor = Command::new("sh")
            .arg("-c")
            .arg(&script)
            .arg("sh")
            .arg(&self.file)
            .spawn();
        let status = editor.and_then(|editor| wait(editor, stop));
        let status = status.map_err(|error| Error::io("run the editor", error))?;
        stop.check()?;
        if !status.success() {
            // A shell says by 128 and more that a signal ended what it ran.
            self.has_work = status.signal().is_some() || status.code().is_some_and(|code| code > 128);
            return Err(
                Error::invalid(format!("the editor failed ({status}), and nothing was changed"))
                    .with_hint("the environment variables VISUAL and EDITOR say which one is run"),
            );
        }
        let after = self.contents()?;
        Ok((after != self.before).then_some(after))
    }

    fn contents(&self) -> Result<Vec<u8>> {
        fs::read(&self.file).map_err(|error| Error::io("read", error).with_path(&self.file))
    }

    /// Where there is more than the file as it was, which may be what an editor has put aside, keeps all of it, and says where.
    fn keep_work(&mut self) {
        let names = fs::read_dir(&self.directory).map_or(0, Iterator::count);
        let is_as_it_was = names == 1 && self.contents().is_ok_and(|contents| contents == self.before);
        if self.has_work && !is_as_it_was {
            self.is_kept = true;
            note(&format!("what was edited is kept: {}", self.file.display()));
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.is_kept {
            // What is left over in a directory for temporary files does no harm, and there is nobody to tell.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Waits for an editor's end, and puts one to it when this is to stop.
fn wait(mut editor: Child, stop: &Cancel) -> std::io::Result<ExitStatus> {
    let mut told = None;
    loop {
        if let Some(status) = editor.try_wait()? {
            return Ok(status);
        }
        match told {
            None if stop.is_cancelled() => {
                end(&editor, Signal::TERM);
                told = Some(Instant::now());
            }
            Some(since) if since.elapsed() > TO_END => end(&editor, Signal::KILL),
            _ => {}
        }
        thread::sleep(TICK);
    }
}

/// Sends a signal to the shell and to the editor that it runs.
fn end(shell: &Child, signal: Signal) {
    let shell = Pid::from_child(shell);
    let number = shell.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    for pid in children.chain([shell]) {
        // One that has ended needs none.
        let _ = kill_process(pid, signal);
    }
}
