//! `imgtool fs tree`: directories, as a drawing of what is in them.

use std::ffi::OsString;
use std::io::{self, Write};

use block::Result;
use clap::Args;
use ext4_reader::{FileKind, Inode, LastLink};
use ops::Cancel;

use super::walk::{Step, Walk};
use super::{Outcome, Source, SourceArgs, absolute, below, describe, or_root};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{OutputFormat, counted};

/// Draw directories, with what is in them and in those below
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs tree -L 2 disk.qcow2#2
  imgtool fs tree -a --output json disk.qcow2#2 /etc")]
pub(super) struct TreeArgs {
    /// List names that start with a dot too
    #[arg(short, long)]
    all: bool,
    /// Go this deep [default: to the end]
    #[arg(short = 'L', long, value_name = "DEPTH", value_parser = clap::value_parser!(u32).range(1..))]
    level: Option<u32>,
    /// How to print it; in json, directories have their contents in them
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    source: SourceArgs,
    /// Directories [default: the root]
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

impl TreeArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let source = self.source.open()?;
        let cancel = interrupt::watch()?;
        let mut drawing = Drawing {
            out,
            format: self.output,
            first: true,
            open: false,
            directories: 0,
            files: 0,
        };
        drawing.start()?;
        for path in or_root(&self.paths) {
            let path = absolute(path);
            let inode = source.find(&path, LastLink::Follow)?;
            self.draw(&source, &path, &inode, &cancel, &mut drawing)?;
        }
        drawing.finish()?;
        Ok(0)
    }

    fn draw(
        &self,
        source: &Source,
        start: &[u8],
        inode: &Inode,
        cancel: &Cancel,
        drawing: &mut Drawing<'_>,
    ) -> Result<(), Failure> {
        let at = |walk: &Walk<'_>, error| source.at(&below(start, walk.path()), error);
        let mut walk = Walk::new(&source.filesystem, self.all);
        drawing.entry(&walk, &source.file(start, start, inode.clone())?)?;
        if inode.kind() != FileKind::Directory {
            return Ok(());
        }
        walk.enter(inode).map_err(|error| at(&walk, error))?;
        drawing.enter()?;
        loop {
            cancel.check()?;
            let step = walk.step().map_err(|error| at(&walk, error))?;
            match step {
                None => return Ok(()),
                Some(Step::Left) => drawing.leave()?,
                Some(Step::Entry(entry, inode)) => {
                    let path = below(start, walk.path());
                    let file = source.file(&path, &entry.name, inode)?;
                    drawing.entry(&walk, &file)?;
                    let depth = walk.left().count();
                    if file.inode.kind() == FileKind::Directory
                        && self.level.is_none_or(|most| depth < most as usize)
                    {
                        walk.enter(&file.inode).map_err(|error| source.at(&path, error))?;
                        drawing.enter()?;
                    }
                }
            }
        }
    }
}

/// A file that is drawn.
struct File {
    path: Vec<u8>,
    name: Vec<u8>,
    inode: Inode,
    target: Option<Vec<u8>>,
}

impl Source {
    fn file(&self, path: &[u8], name: &[u8], inode: Inode) -> Result<File> {
        Ok(File {
            path: path.to_vec(),
            name: name.to_vec(),
            target: self.target(path, &inode)?,
            inode,
        })
    }
}

/// The trees as they are printed. Objects are left open until what comes next is known.
struct Drawing<'a> {
    out: &'a mut dyn Write,
    format: OutputFormat,
    /// Nothing comes before in the same array.
    first: bool,
    /// The latest object is not closed yet.
    open: bool,
    directories: u64,
    files: u64,
}

impl Drawing<'_> {
    fn start(&mut self) -> io::Result<()> {
        match self.format {
            OutputFormat::Human => Ok(()),
            OutputFormat::Json => write!(self.out, "["),
        }
    }

    /// Prints a file that `walk` has just come to.
    fn entry(&mut self, walk: &Walk<'_>, file: &File) -> io::Result<()> {
        match (file.inode.kind(), walk.left().next()) {
            // What the walk starts at.
            (FileKind::Directory, None) => {}
            (FileKind::Directory, _) => self.directories += 1,
            _ => self.files += 1,
        }
        match self.format {
            OutputFormat::Human => self.line(walk, file),
            OutputFormat::Json => self.object(file),
        }
    }

    fn line(&mut self, walk: &Walk<'_>, file: &File) -> io::Result<()> {
        let mut levels = walk.left().map(<[_]>::is_empty).peekable();
        while let Some(is_last) = levels.next() {
            let branch = match (levels.peek(), is_last) {
                (Some(_), true) => "    ",
                (Some(_), false) => "│   ",
                (None, true) => "└── ",
                (None, false) => "├── ",
            };
            write!(self.out, "{branch}")?;
        }
        write!(self.out, "{}", describe::shown(&file.name))?;
        match &file.target {
            Some(target) => writeln!(self.out, " -> {}", describe::shown(target)),
            None => writeln!(self.out),
        }
    }

    /// Starts a file's object. It is closed by what comes next.
    fn object(&mut self, file: &File) -> io::Result<()> {
        self.close()?;
        let between = if self.first { "\n" } else { ",\n" };
        let object = describe::json(&file.path, &file.inode, file.target.as_deref()).to_string();
        let open = object.strip_suffix('}').unwrap_or(&object);
        write!(self.out, "{between}{open}")?;
        (self.first, self.open) = (false, true);
        Ok(())
    }

    /// What comes next is in the directory that was the latest entry.
    fn enter(&mut self) -> io::Result<()> {
        if self.format == OutputFormat::Json {
            write!(self.out, ",\"contents\":[")?;
            (self.first, self.open) = (true, false);
        }
        Ok(())
    }

    /// What comes next is after the directory that was entered last.
    fn leave(&mut self) -> io::Result<()> {
        if self.format == OutputFormat::Json {
            self.close()?;
            write!(self.out, "]")?;
            (self.first, self.open) = (false, true);
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        if self.open {
            write!(self.out, "}}")?;
        }
        self.open = false;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        match self.format {
            OutputFormat::Human => {
                let directories = counted(self.directories, "directory", "directories");
                writeln!(
                    self.out,
                    "\n{directories}, {}",
                    counted(self.files, "file", "files")
                )
            }
            OutputFormat::Json => {
                self.close()?;
                writeln!(self.out, "\n]")
            }
        }
    }
}
