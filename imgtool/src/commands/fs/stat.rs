//! `imgtool fs stat`: all that is known about files.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::Args;
use ext4_reader::{FileKind, Inode, LastLink, Xattr};
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{Outcome, SourceArgs, absolute, describe};
use crate::output::{self, OutputFormat, human_size};

/// Tell all that is known about files, extended attributes included
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool fs stat disk.qcow2#2 /etc/shadow
  imgtool fs stat -L --output json disk.qcow2#2 /vmlinuz")]
pub(super) struct StatArgs {
    /// Follow a link to what it leads to
    #[arg(short = 'L', long)]
    dereference: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    output: OutputFormat,
    #[command(flatten)]
    source: SourceArgs,
    /// The files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

/// A file, and what else is to be told of it.
struct Told {
    path: Vec<u8>,
    inode: Inode,
    target: Option<Vec<u8>>,
    xattrs: Vec<Xattr>,
}

impl StatArgs {
    pub(super) fn run(&self, out: &mut dyn Write) -> Outcome {
        let source = self.source.open()?;
        let last = if self.dereference {
            LastLink::Follow
        } else {
            LastLink::Keep
        };
        let mut objects = Vec::new();
        let zone = TimeZone::system();
        for (i, path) in self.paths.iter().enumerate() {
            let slash: &[u8] = if path.as_encoded_bytes().ends_with(b"/") {
                b"/"
            } else {
                b""
            };
            let path = absolute(path);
            let inode = source.find(&[&path, slash].concat(), last)?;
            let xattrs = source.filesystem.xattrs(&inode);
            let told = Told {
                target: source.target(&path, &inode)?,
                xattrs: xattrs.map_err(|error| source.at(&path, error))?,
                path,
                inode,
            };
            match self.output {
                OutputFormat::Json => objects.push(told.json()),
                OutputFormat::Human => {
                    if i > 0 {
                        writeln!(out)?;
                    }
                    told.print(out, &zone)?;
                }
            }
        }
        if self.output == OutputFormat::Json {
            output::json(out, &objects.into())?;
        }
        Ok(0)
    }
}

impl Told {
    fn json(&self) -> Value {
        let inode = &self.inode;
        let mut object = describe::json(&self.path, inode, self.target.as_deref());
        object["accessed"] = describe::universal(inode.accessed()).into();
        object["changed"] = describe::universal(inode.changed()).into();
        object["created"] = inode.created().map(describe::universal).into();
        object["allocated"] = inode.sectors().saturating_mul(512).into();
        object["generation"] = inode.generation().into();
        object["flags"] = inode.flags().into();
        object["encrypted"] = inode.is_encrypted().into();
        object["xattrs"] = describe::xattrs_json(&self.xattrs);
        object
    }

    fn print(&self, out: &mut dyn Write, zone: &TimeZone) -> io::Result<()> {
        let inode = &self.inode;
        writeln!(out, "file: {}", describe::shown(&self.path))?;
        write!(out, "type: {}", describe::kind(inode.kind()))?;
        match inode.device() {
            Some((major, minor)) => writeln!(out, " {major}, {minor}")?,
            None => writeln!(out)?,
        }
        if let Some(target) = &self.target {
            writeln!(out, "leads to: {}", describe::shown(target))?;
        }
        writeln!(out, "inode: {}", inode.number())?;
        let mode = inode.mode() & 0o7777;
        writeln!(out, "mode: {mode:04o} ({})", describe::mode(inode))?;
        writeln!(out, "owner: {}\ngroup: {}", inode.uid(), inode.gid())?;
        writeln!(out, "links: {}", inode.links())?;
        if matches!(
            inode.kind(),
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        ) {
            let size = inode.size();
            writeln!(out, "size: {} ({size} bytes)", human_size(size))?;
        }
        let allocated = inode.sectors().saturating_mul(512);
        writeln!(out, "allocated: {}", human_size(allocated))?;
        for (key, time) in [
            ("modified", Some(inode.modified())),
            ("accessed", Some(inode.accessed())),
            ("changed", Some(inode.changed())),
            ("created", inode.created()),
        ] {
            if let Some(time) = time {
                writeln!(out, "{key}: {}", describe::exact_date(time, zone))?;
            }
        }
        if inode.is_encrypted() {
            writeln!(out, "encrypted: yes")?;
        }
        for xattr in &self.xattrs {
            let name = describe::shown(&xattr.name);
            match std::str::from_utf8(&xattr.value) {
                Ok(text) if !text.chars().any(char::is_control) => writeln!(out, "xattr {name}: \"{text}\"")?,
                _ => writeln!(out, "xattr {name}: 0x{}", describe::hexadecimal(&xattr.value))?,
            }
        }
        Ok(())
    }
}
