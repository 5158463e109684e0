//! `imgtool fs cp`: files out of a filesystem, onto the host.
//!
//! # How it works
//!
//! Everything is made in a directory of its own beside where it is to be, `.imgtool-unfinished-...`, which nobody else may
//! enter, and given its name when all of it is whole. So a copy that failed or was killed is not taken for a whole one, and
//! nothing of the host is in the way of what is copied: in there, every name is new, or it is an error. No link that
//! comes from the image is ever followed.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Known;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::{Error, ErrorKind, Result, escape};
use clap::Args;
use ext4_reader::{FileKind, Inode, InodeNumber, LastLink};
use ops::{Cancel, Progress};
use serde_json::json;

use super::host::{Directories, Directory, Lost, Made, Staging};
use super::read::{self, Piece};
use super::walk::{Step, Walk};
use super::{Outcome, Source, SourceArgs, absolute, below, describe};
use crate::arguments::{ProgressMode, WatchArgs};
use crate::images::directory_of;
use crate::interrupt;
use crate::output::{self, OutputFormat};
use crate::stores::refuse_target;
use crate::watch::Watch;

/// Copy files and directories out of a filesystem
///
/// Holes stay holes, and files that have several names in what is copied keep them. What is copied appears under its name
/// when all of it is whole. A copy that fails or is interrupted leaves nothing. One that is killed at once (kill -9, a power
/// cut) leaves a directory beside it whose name starts with .imgtool-unfinished-, which can be removed: rm -r.
#[derive(Debug, Args)]
#[command(
    override_usage = "imgtool fs cp [OPTIONS] <IMAGE> <PATH>... <TARGET>",
    after_help = "Examples:
  imgtool fs cp disk.qcow2#2 /etc/fstab .
  imgtool fs cp -r -p disk.qcow2#2 /home/anna anna
  imgtool fs cp -r disk.qcow2#2 /etc /var/log saved/

Without -p, new files are the user's own, and their modes are those in the image less the umask. With -p, owners, devices and
extended attributes that this user may not make are left out, and counted at the end on standard error: root may."
)]
pub(super) struct CopyArgs {
    /// Copy directories, with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Keep modes, owners, times and extended attributes
    #[arg(short, long)]
    preserve: bool,
    /// Replace files that are there; directories are never replaced
    #[arg(long)]
    force: bool,
    /// How to print what was done
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    progress: ProgressMode,
    /// Print errors and nothing else
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    source: SourceArgs,
    /// What to copy, and where to: into a directory that is there, or under a new name
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    paths: Vec<OsString>,
}

/// A file that is copied, by name.
struct Job {
    /// In the image.
    path: Vec<u8>,
    inode: Inode,
    /// What it is to be called.
    name: OsString,
}

/// What has been copied.
#[derive(Default)]
struct Copied {
    files: u64,
    directories: u64,
    symlinks: u64,
    others: u64,
    /// Further names of files.
    links: u64,
    /// Of files, without holes.
    bytes: u64,
    lost: Lost,
}

impl CopyArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let source = self.source.open()?;
        let (directory, jobs) = self.plan(&source)?;
        for job in &jobs {
            self.check_place(&source, job, &directory.join(&job.name))?;
        }
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&WatchArgs {
            show: false,
            progress: self.progress,
            quiet: self.quiet,
        });
        let copied = self.copy(&source, &directory, &jobs, &cancel, &watch);
        watch.finish();
        let copied = copied.map_err(|error| match error.kind() {
            ErrorKind::Interrupted => {
                Error::new(ErrorKind::Interrupted, "interrupted; nothing was left behind")
                    .with_path(&directory)
            }
            _ => error,
        })?;
        if self.output == OutputFormat::Json {
            output::json(out, &copied.json())?;
        }
        if !self.quiet && !copied.lost.is_nothing() {
            // A watcher that has gone away does not undo the copy.
            let _ = writeln!(
                std::io::stderr(),
                "imgtool: not permitted, and left out: {}",
                copied.lost
            );
        }
        Ok(0)
    }

    /// What is to be copied, and the directory of the host to put it in.
    fn plan(&self, source: &Source) -> Result<(PathBuf, Vec<Job>)> {
        let [paths @ .., target] = self.paths.as_slice() else {
            return Err(Error::invalid("nothing is named that is to be copied"));
        };
        let target = Path::new(target);
        if fs::metadata(target).is_ok_and(|file| file.is_dir()) {
            let jobs = paths.iter().map(|path| self.job(source, path, own_name(path)?));
            return Ok((target.to_owned(), jobs.collect::<Result<_>>()?));
        }
        let refuse = |what, hint| Err(Error::invalid(what).with_path(target).with_hint(hint));
        let [path] = paths else {
            return refuse(
                "several files are copied into a directory, and this is none",
                "make it first",
            );
        };
        let slash = target.as_os_str().as_bytes().ends_with(b"/");
        let job = match target.file_name() {
            Some(name) => self.job(source, path, name)?,
            None => {
                return refuse(
                    "this is no name for a copy",
                    "name a directory that is there, or a new file",
                );
            }
        };
        if slash && job.inode.kind() != FileKind::Directory {
            return refuse(
                "there is no such directory",
                "make it first, or leave out the slash",
            );
        }
        Ok((directory_of(target).to_owned(), vec![job]))
    }

    fn job(&self, source: &Source, path: &OsStr, name: &OsStr) -> Result<Job> {
        let last = if self.recursive {
            LastLink::Keep
        } else {
            LastLink::Follow
        };
        let path = absolute(path);
        let inode = source.find(&path, last)?;
        if !self.recursive && inode.kind() != FileKind::Regular {
            let what = format!("this is no file but a {}", describe::kind(inode.kind()));
            return Err(source.at(&path, Error::invalid(what).with_hint("copy it with -r")));
        }
        Ok(Job {
            path,
            inode,
            name: name.to_owned(),
        })
    }

    /// Fails for what must not be replaced.
    fn check_place(&self, source: &Source, job: &Job, place: &Path) -> Result<()> {
        refuse_target(place)?;
        let existing = match fs::symlink_metadata(place) {
            Ok(existing) => existing,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io("look at the target", error).with_path(place)),
        };
        let refuse = |what, hint| Err(Error::invalid(what).with_path(place).with_hint(hint));
        if source.is_read_from(place) {
            return refuse(
                "this is the image that is read from",
                "give the copy another name",
            );
        }
        if existing.is_dir() || job.inode.kind() == FileKind::Directory {
            return refuse(
                "it exists already",
                "move it away first: directories are not replaced, nor merged",
            );
        }
        if !self.force {
            return refuse("it exists already", "--force replaces it");
        }
        Ok(())
    }

    fn copy(
        &self,
        source: &Source,
        directory_path: &Path,
        jobs: &[Job],
        cancel: &Cancel,
        watch: &Watch,
    ) -> Result<Copied> {
        let staging = Staging::new(directory_path)?;
        let mut copier = Copier {
            source,
            staging: &staging,
            preserve: self.preserve,
            cancel,
            watch,
            total: total(source, jobs, cancel)?,
            known: HashMap::new(),
            late: Vec::new(),
            copied: Copied::default(),
        };
        for job in jobs {
            copier.job(job)?;
        }
        for job in jobs {
            staging.give_name(&job.name, self.force)?;
        }
        let (late, copied) = (copier.late, copier.copied);
        for (directory, mode) in &late {
            let set = directory.set_owner_rights(*mode);
            set.map_err(|error| Error::io("set the directory's mode", error).with_path(directory_path))?;
        }
        staging.finish()?;
        Ok(copied)
    }
}

/// The name that a copy of a path has where it is given no other.
fn own_name(path: &OsStr) -> Result<&OsStr> {
    Path::new(path).file_name().ok_or_else(|| {
        let text = escape(&path.to_string_lossy()).into_owned();
        Error::invalid(format!("a copy of \"{text}\" has no name"))
            .with_hint("give it one: name a target that is not there yet")
    })
}

/// Bytes to be copied, as far as inodes tell. Goes through all of a tree, and so finds most damage before anything is made.
fn total(source: &Source, jobs: &[Job], cancel: &Cancel) -> Result<u64> {
    let mut total: u64 = 0;
    let mut add = |inode: &Inode| {
        if inode.kind() == FileKind::Regular {
            total = total.saturating_add(inode.size().min(inode.sectors().saturating_mul(512)));
        }
    };
    for job in jobs {
        add(&job.inode);
        if job.inode.kind() != FileKind::Directory {
            continue;
        }
        let mut walk = Walk::new(&source.filesystem, true);
        let at = |walk: &Walk<'_>, error| source.at(&below(&job.path, walk.path()), error);
        walk.enter(&job.inode).map_err(|error| at(&walk, error))?;
        while let Some(step) = walk.step().map_err(|error| at(&walk, error))? {
            cancel.check()?;
            if let Step::Entry(_, inode) = step {
                add(&inode);
                if inode.kind() == FileKind::Directory {
                    walk.enter(&inode).map_err(|error| at(&walk, error))?;
                }
            }
        }
    }
    Ok(total)
}

impl Copied {
    fn json(&self) -> serde_json::Value {
        json!({
            "files": self.files,
            "directories": self.directories,
            "symlinks": self.symlinks,
            "others": self.others,
            "links": self.links,
            "bytes": self.bytes,
            "left-out": {
                "owners": self.lost.owners,
                "xattrs": self.lost.xattrs,
                "devices": self.lost.devices,
            },
        })
    }
}

struct Copier<'a> {
    source: &'a Source,
    staging: &'a Staging,
    preserve: bool,
    cancel: &'a Cancel,
    watch: &'a Watch,
    /// Bytes in all, as far as is known.
    total: u64,
    /// Where in the staging directory the first copies of files with several names are.
    known: HashMap<InodeNumber, PathBuf>,
    /// Directories that are given their names before they lose what rights their owner lacks.
    late: Vec<(Directory, u16)>,
    copied: Copied,
}

/// A file on its way.
struct Passage<'a> {
    /// In the image.
    path: &'a [u8],
    inode: &'a Inode,
    /// In the staging directory, from its top.
    staged: &'a Path,
    /// The directory that it goes to.
    directory: &'a Directory,
    name: &'a [u8],
}

impl Copier<'_> {
    fn job(&mut self, job: &Job) -> Result<()> {
        let source = self.source;
        let mut walk = Walk::new(&source.filesystem, true);
        let mut here = Directories::new(self.staging.directory()?);
        let mut inodes = Vec::new();
        let mut path = job.path.clone();
        let mut staged = PathBuf::from(&job.name);
        let mut name = job.name.as_bytes().to_vec();
        let mut inode = job.inode.clone();
        loop {
            self.cancel.check()?;
            if inode.kind() == FileKind::Directory {
                walk.enter(&inode).map_err(|error| source.at(&path, error))?;
                let made = here.make(&name, inode.mode() & 0o777);
                made.map_err(|error| self.host("make the directory", &staged, error))?;
                self.copied.directories += 1;
                inodes.push(inode);
            } else {
                let passage = Passage {
                    path: &path,
                    inode: &inode,
                    staged: &staged,
                    directory: here.here(),
                    name: &name,
                };
                self.file(&passage, &mut walk)?;
            }
            loop {
                let step = walk.step();
                path = below(&job.path, walk.path());
                staged = Path::new(&job.name).join(OsStr::from_bytes(walk.path()));
                match step.map_err(|error| source.at(&path, error))? {
                    None => return Ok(()),
                    Some(Step::Entry(entry, found)) => {
                        check_name(&entry.name).map_err(|error| source.at(&path, error))?;
                        (name, inode) = (entry.name, found);
                        break;
                    }
                    Some(Step::Left) => {
                        let left = here.leave();
                        let left = left.map_err(|error| self.host("leave the directory", &staged, error))?;
                        if let Some(inode) = inodes.pop() {
                            self.finish_directory(left, &path, &staged, &inode)?;
                        }
                    }
                }
            }
        }
    }

    /// An error of the host, with the file that it would have become.
    fn host(&self, op: &'static str, staged: &Path, error: std::io::Error) -> Error {
        let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
        let error = Error::io(op, error).with_path(self.staging.place(staged));
        match error.kind() {
            _ if exists => error.with_hint(
                "the directory in the image has this name twice, or the host takes two of its names for one",
            ),
            ErrorKind::NoSpace => error.with_hint("make room on that file system, or choose another"),
            _ => error,
        }
    }

    /// Copies what is no directory.
    fn file(&mut self, passage: &Passage<'_>, walk: &mut Walk<'_>) -> Result<()> {
        let &Passage { inode, staged, .. } = passage;
        if inode.links() > 1 {
            match self.known.entry(inode.number()) {
                Known::Vacant(unknown) => drop(unknown.insert(staged.to_owned())),
                Known::Occupied(known) => {
                    let top = self.staging.directory()?;
                    let linked = top.link(known.get(), passage.directory, passage.name);
                    self.copied.links += 1;
                    return linked.map_err(|error| self.host("give the file another name", staged, error));
                }
            }
        }
        match inode.kind() {
            FileKind::Regular => self.content(passage, walk),
            FileKind::Symlink => self.symlink(passage),
            _ => self.special(passage),
        }
    }

    fn content(&mut self, passage: &Passage<'_>, walk: &mut Walk<'_>) -> Result<()> {
        let &Passage {
            path, inode, staged, ..
        } = passage;
        let fail = |copier: &Self, error| copier.host("write the file", staged, error);
        let file = passage.directory.file(passage.name, inode.mode() & 0o777);
        let file = file.map_err(|error| self.host("make the file", staged, error))?;
        let source = self.source;
        let cancel = self.cancel;
        // Errors of the host have a path already, so that the image's is not put there.
        read::pieces(&source.filesystem, inode, cancel, |piece| {
            let Piece::Data(offset, bytes) = piece else {
                return Ok(());
            };
            walk.read(bytes.len() as u64)?;
            file.write_all_at(bytes, offset)
                .map_err(|error| fail(self, error))?;
            self.copied.bytes += bytes.len() as u64;
            self.watch.report(Progress {
                done: self.copied.bytes,
                total: self.total.max(self.copied.bytes),
            });
            Ok(())
        })
        .map_err(|error: Error| match error.kind() {
            ErrorKind::Interrupted => error,
            _ => source.at(path, error),
        })?;
        file.set_len(inode.size()).map_err(|error| fail(self, error))?;
        self.copied.files += 1;
        self.keep(passage, &Made::Open(&file))
    }

    fn symlink(&mut self, passage: &Passage<'_>) -> Result<()> {
        let target = self
            .source
            .target(passage.path, passage.inode)?
            .unwrap_or_default();
        let made = passage.directory.symlink(passage.name, &target);
        made.map_err(|error| self.host("make the link", passage.staged, error))?;
        self.copied.symlinks += 1;
        self.keep(passage, &Made::Named(passage.directory, passage.name))
    }

    fn special(&mut self, passage: &Passage<'_>) -> Result<()> {
        let Passage { inode, .. } = passage;
        let made = passage
            .directory
            .special(passage.name, inode, inode.mode() & 0o777);
        if !made.map_err(|error| self.host("make the file", passage.staged, error))? {
            self.copied.lost.devices += 1;
            // Other names of it find nothing that they could be names of.
            self.known.remove(&inode.number());
            return Ok(());
        }
        self.copied.others += 1;
        self.keep(passage, &Made::Named(passage.directory, passage.name))
    }

    fn keep(&mut self, passage: &Passage<'_>, made: &Made<'_>) -> Result<()> {
        if !self.preserve {
            return Ok(());
        }
        let xattrs = self.source.filesystem.xattrs(passage.inode);
        let xattrs = xattrs.map_err(|error| self.source.at(passage.path, error))?;
        let kept = made.keep(passage.inode, &xattrs, &mut self.copied.lost);
        kept.map_err(|error| self.host("set what is known about the file", passage.staged, error))
    }

    /// Gives a directory, with all in it that belongs there, what is known about it.
    fn finish_directory(
        &mut self,
        directory: Directory,
        path: &[u8],
        staged: &Path,
        inode: &Inode,
    ) -> Result<()> {
        let told = |copier: &Self, error| copier.host("set what is known about the directory", staged, error);
        if self.preserve {
            let xattrs = self.source.filesystem.xattrs(inode);
            let xattrs = xattrs.map_err(|error| self.source.at(path, error))?;
            let kept = Made::Open(&directory).keep(inode, &xattrs, &mut self.copied.lost);
            kept.map_err(|error| told(self, error))?;
        }
        // Only its owner moves a directory elsewhere, and only one that may be written to.
        let is_top = staged.components().count() == 1;
        let rights = if is_top { 0o700 } else { inode.mode() };
        directory
            .set_owner_rights(rights)
            .map_err(|error| told(self, error))?;
        if is_top {
            self.late.push((directory, inode.mode()));
        }
        Ok(())
    }
}

/// Refuses a name that would lead elsewhere. The reader gives none, but for names that are encrypted.
fn check_name(name: &[u8]) -> Result<()> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Error::unsupported("no file of the host can have this name"));
    }
    Ok(())
}
