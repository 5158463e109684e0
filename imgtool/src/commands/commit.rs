//! `imgtool commit`: write what an overlay holds into what it is based on.

use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;

use block::chain::{Chain, Layer};
use block::{Access, Error, ErrorKind, Result};
use clap::Args;
use ops::{CommitOptions, Control, Moved};
use serde_json::json;

use super::Outcome;
use super::convert::interrupted;
use crate::arguments::{CacheMode, OpenArgs, ThreadArgs, WatchArgs};
use crate::images::Opening;
use crate::layers::Identity;
use crate::output::{self, OutputFormat};
use crate::watch::Watch;
use crate::{interrupt, layers, size};

/// Write what an image holds into what it is based on
///
/// Without -b that is its backing file, and the image is then emptied: it goes on as an overlay that holds nothing. With -b
/// it is any image further down, and the data of all images above that one goes there; they stay as they are, but those
/// between the image and BASE make no sense any more, and what they read as is undefined. The image itself reads the same
/// at every instant, whatever happens meanwhile; a run that was stopped is finished by another.
///
/// Others that are based on what is written to would change. So it is refused where the image, or one between it and the
/// base, has internal snapshots, and where another image is based on what changes; such are looked for in the directories
/// of the images of the chain, and in stores that these are in, and cannot be found elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  imgtool commit clone.qcow2
  imgtool commit -p -d clone.qcow2
  imgtool commit -b base.qcow2 -r 50M top.qcow2")]
pub(crate) struct CommitArgs {
    /// Format of the image [default: found out]
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image to write to, one that FILE is based on. FILE is not emptied then
    #[arg(short, long, value_name = "BASE")]
    base: Option<String>,
    /// Do not empty the image
    #[arg(short = 'd', long = "drop")]
    keep: bool,
    /// Write so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate_limit: Option<String>,
    /// Go on although other images, or internal snapshots of the images above BASE, are based on what is written to: what
    /// they read as is undefined afterwards
    #[arg(long)]
    force: bool,
    /// How the page cache is used
    #[arg(
        short = 't',
        long,
        value_enum,
        default_value = "writeback",
        value_name = "MODE"
    )]
    cache: CacheMode,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputFormat,
    #[command(flatten)]
    threads: ThreadArgs,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// The image
    file: PathBuf,
}

/// A chain, and the layer of it that is to be written to.
#[derive(Debug)]
struct Looked {
    number: usize,
    path: PathBuf,
    format: &'static str,
    layers: Vec<Identity>,
}

/// The images to write to and to read from.
#[derive(Debug)]
struct Opened {
    base: Chain,
    above: Chain,
}

impl CommitArgs {
    pub(crate) fn run(mut self) -> Outcome {
        self.open.check()?;
        // Standard output is for the result.
        self.watch.show &= self.output == OutputFormat::Human;
        let mut options = CommitOptions {
            rate: self.rate_limit.as_deref().map(rate).transpose()?,
            empty: self.base.is_none() && !self.keep,
            ..CommitOptions::default()
        };
        if let Some(threads) = self.threads.threads.and_then(|n| usize::from(n).try_into().ok()) {
            options.threads = threads;
        }
        let opened = self.open_images(&self.look()?, options.empty)?;
        let cancel = interrupt::watch()?;
        let watch = Watch::new(&self.watch);
        let report = |progress| watch.report(progress);
        let control = Control::new(cancel, &report);
        let moved = ops::commit(&opened.above, &**opened.base.active(), &options, &control);
        watch.finish();
        let left = "the image reads as before, and another run finishes the job";
        let moved = moved.map_err(|error| interrupted(error, &self.file, left))?;
        self.print(&opened, moved, options.empty)?;
        Ok(0)
    }

    fn opening(&self, write: bool) -> Opening {
        Opening {
            nested: self.open.nested,
            io: self.open.io.into(),
            access: Access {
                write,
                ..Access::READ
            },
            direct: self.cache.direct(),
        }
    }

    /// Finds the image to write to.
    fn look(&self) -> Result<Looked> {
        let whole = self.opening(false).chain(&self.file, self.format.as_deref())?;
        let number = match &self.base {
            Some(name) => layers::find(&whole, &self.file, name)?,
            None if whole.layers().len() > 1 => 1,
            None => {
                let error = Error::invalid("it has no backing file to commit to").with_path(&self.file);
                return Err(error);
            }
        };
        Ok(Looked {
            number,
            path: whole.layers()[number].path.clone(),
            format: whole.layers()[number].format,
            layers: whole.layers().iter().map(Identity::of).collect(),
        })
    }

    /// Opens what was looked at, one part to write to. It cannot be locked for writing while it is for reading, so that
    /// others had their chance in between: it must still be what it was.
    fn open_images(&self, looked: &Looked, empty: bool) -> Result<Opened> {
        let base = self.opening(true).chain(&looked.path, Some(looked.format))?;
        let above = self
            .opening(empty)
            .part(&self.file, self.format.as_deref(), looked.number - 1)?;
        let chain: Vec<Layer> = [above.layers(), base.layers()].concat();
        let found: Vec<Identity> = chain.iter().map(Identity::of).collect();
        if found != looked.layers {
            let changed = found
                .iter()
                .zip(&looked.layers)
                .position(|(now, then)| now != then);
            let path = &chain[changed.unwrap_or(0)].path;
            let message = "the chain changed at this image while it was being locked";
            let error = Error::new(ErrorKind::Denied, message).with_path(path);
            return Err(
                error.with_hint("nothing was written; see who else works on these images, and try again")
            );
        }
        if !self.force {
            refuse_others(&base.layers()[0], &chain, looked.number)?;
            layers::refuse_snapshots(above.layers())?;
        }
        Ok(Opened { base, above })
    }

    fn print(&self, opened: &Opened, moved: Moved, emptied: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.output {
            OutputFormat::Json => output::json(
                &mut out,
                &json!({
                    "filename": self.file.to_string_lossy(),
                    "base": opened.base.layers()[0].path.to_string_lossy(),
                    "data-bytes": moved.data,
                    "zero-bytes": moved.zeros,
                    "emptied": emptied,
                }),
            ),
            OutputFormat::Human if self.watch.quiet => Ok(()),
            OutputFormat::Human => {
                use io::Write;
                writeln!(out, "Image committed.")
            }
        }
    }
}

/// What -r says.
pub(super) fn rate(text: &str) -> Result<NonZeroU64> {
    let rate = NonZeroU64::new(size::of("-r", text)?);
    rate.ok_or_else(|| Error::invalid(format!("-r {text}: at least one byte a second must pass")))
}

/// Fails if images outside of the chain are based on what changes: the base, and with it all between it and the image.
fn refuse_others(base: &Layer, chain: &[Layer], number: usize) -> Result<()> {
    let others = layers::others_based_on(&chain[1..=number], chain);
    if others.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = others.iter().map(|path| path.to_string_lossy()).collect();
    let message = format!(
        "other images are based on it, and would read something else afterwards: {}",
        layers::some_of(names.iter().map(|name| &**name))
    );
    let hint = "if they are not needed any more, go on with --force";
    Err(Error::invalid(message).with_path(&base.path).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        commit: CommitArgs,
    }

    fn qemu_img(directory: &Path, line: &str) {
        let mut command = Command::new("qemu-img");
        let status = command.args(line.split(' ')).current_dir(directory).status();
        assert!(status.unwrap().success(), "{line}");
    }

    fn commit(directory: &Path, base: &str) -> CommitArgs {
        let top = directory.join("top");
        let words = ["commit".as_ref(), "-b".as_ref(), base.as_ref(), top.as_os_str()];
        Line::try_parse_from(words).unwrap().commit
    }

    /// While no lock is held, somebody replaces a file, or bases one on another.
    #[test]
    fn a_chain_that_changes_while_it_is_being_locked_is_refused() {
        type Step = fn(&Path);
        let steps: [(&str, Step); 4] = [
            ("base", |dir| {
                fs::rename(dir.join("twin"), dir.join("base")).unwrap();
            }),
            ("mid", |dir| {
                fs::copy(dir.join("mid"), dir.join("new")).unwrap();
                fs::rename(dir.join("new"), dir.join("mid")).unwrap();
            }),
            ("mid", |dir| qemu_img(dir, "rebase -u -b twin -F qcow2 mid")),
            ("top", |dir| qemu_img(dir, "rebase -u -b twin -F qcow2 top")),
        ];
        for (changed, step) in steps {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            for line in [
                "create -q -f qcow2 base 1M",
                "create -q -f qcow2 twin 1M",
                "create -q -f qcow2 -b base -F qcow2 mid",
                "create -q -f qcow2 -b mid -F qcow2 top",
            ] {
                qemu_img(dir, line);
            }
            let commit = commit(dir, "base");
            let looked = commit.look().unwrap();
            commit.open_images(&looked, false).unwrap();
            step(dir);
            let error = commit.open_images(&looked, false).unwrap_err();
            assert_eq!(error.path(), Some(&*dir.join(changed)), "{changed}: {error}");
            assert!(error.to_string().contains("changed"), "{changed}: {error}");
        }
    }
}
