//! `imgtool fs ls`: what is in directories.

use std::ffi::OsString;
use std::io::{self, Write};

use block::Result;
use clap::Args;
use ext4_reader::{Entry, FileKind, Inode, LastLink};
use jiff::tz::TimeZone;

use super::walk::{Step, Walk};
use super::{Outcome, Source, SourceArgs, absolute, below, describe, or_root};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::OutputFormat;
use ops::Cancel;

/// List what is in directories
///
/// One name a line, in the order of their bytes. With -l: mode, links, owner, group, size (of a device, its numbers), time of
/// the last change, name, and where a link leads.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs ls disk.qcow2#2
  imgtool fs ls -l -a disk.qcow2#2 /etc /root
  imgtool fs ls -R --output json disk.qcow2#name:root /var/log")]
pub(super) struct ListArgs {
    /// Say more than the names
    #[arg(short)]
    long: bool,
    /// List names that start with a dot too
    #[arg(short, long)]
    all: bool,
    /// List what is in the directories below too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// How to print it; json has an object for each file, with all that -l says
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    source: SourceArgs,
    /// Directories, or files to be listed themselves [default: the root]
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

/// A file in a listing.
struct Row {
    /// All of it, and the part that is its name.
    path: Vec<u8>,
    name: Vec<u8>,
    /// Where there is more to say than the name.
    known: Option<(Inode, Option<Vec<u8>>)>,
}

impl ListArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let source = self.source.open()?;
        let cancel = interrupt::watch()?;
        let mut listing = Listing::new(self, out)?;
        let mut directories = Vec::new();
        let mut files = Vec::new();
        for given in or_root(&self.paths) {
            let path = absolute(given);
            let inode = self.named(&source, &path, given.as_encoded_bytes().ends_with(b"/"))?;
            if inode.kind() == FileKind::Directory {
                directories.push((path, inode));
            } else {
                files.push(self.row(&source, path.clone(), path, Some(inode))?);
            }
        }
        if !files.is_empty() {
            listing.rows(None, &files)?;
        }
        let headed = self.recursive || self.paths.len() > 1;
        for (path, directory) in directories {
            self.directory(&source, &path, &directory, headed, &cancel, &mut listing)?;
        }
        listing.finish()?;
        Ok(0)
    }

    /// What is at a path that was given. A link stands for the directory it leads to, unless it is to be described.
    fn named(&self, source: &Source, path: &[u8], slash: bool) -> Result<Inode> {
        let inode = source.find(path, LastLink::Keep)?;
        if inode.kind() != FileKind::Symlink || self.long && !slash {
            return Ok(inode);
        }
        match source.find(path, LastLink::Follow) {
            Ok(followed) if followed.kind() == FileKind::Directory => Ok(followed),
            Err(error) if slash => Err(error),
            _ => Ok(inode),
        }
    }

    fn directory(
        &self,
        source: &Source,
        start: &[u8],
        directory: &Inode,
        headed: bool,
        cancel: &Cancel,
        listing: &mut Listing<'_>,
    ) -> Result<(), Failure> {
        let mut walk = Walk::new(&source.filesystem, self.all);
        let mut inode = directory.clone();
        let mut path = start.to_vec();
        loop {
            walk.enter(&inode).map_err(|error| source.at(&path, error))?;
            let rows = walk.left().last().unwrap_or_default().iter();
            let rows = rows.map(|entry| {
                cancel.check()?;
                self.entry(source, &path, entry)
            });
            let rows = rows.collect::<Result<Vec<_>>>()?;
            listing.rows(headed.then_some(&path), &rows)?;
            if !self.recursive {
                return Ok(());
            }
            loop {
                let step = walk.step();
                path = below(start, walk.path());
                match step.map_err(|error| source.at(&path, error))? {
                    None => return Ok(()),
                    Some(Step::Entry(_, found)) if found.kind() == FileKind::Directory => {
                        inode = found;
                        break;
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// An entry of the directory at `path`. Its inode is only read where it is needed: names can be listed of files that
    /// are damaged.
    fn entry(&self, source: &Source, path: &[u8], entry: &Entry) -> Result<Row> {
        let path = below(path, &entry.name);
        let inode = if self.is_brief() {
            None
        } else {
            let inode = source.filesystem.inode(entry.inode);
            Some(inode.map_err(|error| source.at(&path, error))?)
        };
        self.row(source, path, entry.name.clone(), inode)
    }

    fn row(&self, source: &Source, path: Vec<u8>, name: Vec<u8>, inode: Option<Inode>) -> Result<Row> {
        let known = match inode {
            Some(inode) if !self.is_brief() => {
                let target = source.target(&path, &inode)?;
                Some((inode, target))
            }
            _ => None,
        };
        Ok(Row { path, name, known })
    }

    fn is_brief(&self) -> bool {
        !self.long && self.output == OutputFormat::Human
    }
}

/// A listing as it is printed.
struct Listing<'a> {
    out: &'a mut dyn Write,
    format: OutputFormat,
    zone: TimeZone,
    first: bool,
}

impl<'a> Listing<'a> {
    fn new(arguments: &ListArgs, out: &'a mut dyn Write) -> io::Result<Self> {
        if arguments.output == OutputFormat::Json {
            write!(out, "[")?;
        }
        Ok(Self {
            out,
            format: arguments.output,
            zone: TimeZone::system(),
            first: true,
        })
    }

    /// Prints files, below the path of the directory that they are in.
    fn rows(&mut self, directory: Option<&Vec<u8>>, rows: &[Row]) -> io::Result<()> {
        match self.format {
            OutputFormat::Json => self.objects(rows),
            OutputFormat::Human => {
                if !self.first {
                    writeln!(self.out)?;
                }
                self.first = false;
                if let Some(directory) = directory {
                    writeln!(self.out, "{}:", describe::shown(directory))?;
                }
                self.lines(rows)
            }
        }
    }

    fn objects(&mut self, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            let between = if self.first { "\n" } else { ",\n" };
            self.first = false;
            if let Some((inode, target)) = &row.known {
                let object = describe::json(&row.path, inode, target.as_deref());
                write!(self.out, "{between}    {object}")?;
            }
        }
        Ok(())
    }

    fn lines(&mut self, rows: &[Row]) -> io::Result<()> {
        let columns: Vec<Option<[String; 6]>> = rows
            .iter()
            .map(|row| row.known.as_ref().map(|(inode, _)| self.columns(inode)))
            .collect();
        let mut widths = [0; 6];
        for columns in columns.iter().flatten() {
            for (width, column) in widths.iter_mut().zip(columns) {
                *width = column.len().max(*width);
            }
        }
        for (row, columns) in rows.iter().zip(columns) {
            let name = describe::shown(&row.name);
            let Some([mode, links, uid, gid, size, time]) = columns else {
                writeln!(self.out, "{name}")?;
                continue;
            };
            let [_, links_width, uid_width, gid_width, size_width, _] = widths;
            write!(
                self.out,
                "{mode} {links:>links_width$} {uid:>uid_width$} {gid:>gid_width$} {size:>size_width$} {time} {name}"
            )?;
            match row.known.as_ref().and_then(|(_, target)| target.as_ref()) {
                Some(target) => writeln!(self.out, " -> {}", describe::shown(target))?,
                None => writeln!(self.out)?,
            }
        }
        Ok(())
    }

    fn columns(&self, inode: &Inode) -> [String; 6] {
        let size = match inode.device() {
            Some((major, minor)) => format!("{major}, {minor}"),
            None => inode.size().to_string(),
        };
        [
            describe::mode(inode),
            inode.links().to_string(),
            inode.uid().to_string(),
            inode.gid().to_string(),
            size,
            describe::date(inode.modified(), &self.zone),
        ]
    }

    fn finish(self) -> io::Result<()> {
        match self.format {
            OutputFormat::Human => Ok(()),
            OutputFormat::Json if self.first => writeln!(self.out, "]"),
            OutputFormat::Json => writeln!(self.out, "\n]"),
        }
    }
}
