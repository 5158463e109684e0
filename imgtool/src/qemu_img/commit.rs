//! `qemu-img commit`.
//!
//! The image to write to is opened by itself, with what it is based on, and the part of the chain above it by itself: one file cannot
//! be locked for reading and for writing at a time.

use std::fs;

use ops::{CommitOptions, Control};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Found, Image, Spec};
use super::node::{Flags, exports, name};
use super::progress::Progress;
use super::refusal::{Refusal, reason};
use super::secret::Secrets;
use super::{Outcome, pages};
use crate::layers;

#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    base: Option<String>,
    image_opts: bool,
    keep: bool,
    show: bool,
    quiet: bool,
    direct: bool,
    rate: Option<std::num::NonZeroU64>,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::COMMIT, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::COMMIT),
            "f" => wanted.format = Some(value),
            "t" => wanted.direct = super::target_cache(&value)?.direct,
            "b" => {
                wanted.base = Some(value);
                // What is above the base goes on to read the same, and so what was committed stays.
                wanted.keep = true;
            }
            "d" => wanted.keep = true,
            "p" => wanted.show = true,
            "q" => wanted.quiet = true,
            "r" => wanted.rate = super::rate(&value)?,
            "image-opts" => wanted.image_opts = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let operands = options.operands();
    let spec = super::one_image(&operands, wanted.format.as_deref(), wanted.image_opts)?;
    let progress = Progress::new(console, wanted.show && !wanted.quiet, 1.0);
    let result = commit(console, &spec, &operands[0], &wanted, &progress);
    if result.is_ok() {
        progress.end_at(100.0);
    }
    progress.end();
    result?;
    if !wanted.quiet {
        console.remark("Image committed.\n");
    }
    Ok(0)
}

fn commit(
    console: &Console,
    spec: &Spec,
    file: &str,
    wanted: &Wanted,
    progress: &Progress,
) -> Result<(), Refusal> {
    let flags = Flags {
        direct: wanted.direct,
        ..Flags::default()
    };
    let write = Flags { write: true, ..flags };
    // It is written to, if only to be emptied.
    drop(image::find(spec, write)?);
    let whole = image::open(spec, flags)?;
    super::warn_of_probing(console, &whole.layers[0]);
    let number = find(&whole, wanted, file)?;
    refuse_others(&whole, number)?;
    drop(whole);
    let above = image::open_part(spec, write, number)?;
    let base = image::open_below(&above, write).map_err(|refusal| match refusal.text() {
        exports::READ_ONLY => Refusal::new("Can't reopen read-only NBD mount as read/write"),
        _ => refusal,
    })?;
    let report = |at: ops::Progress| progress.bytes(at.done, at.total);
    let control = Control::new(ops::Cancel::new(), &report);
    let options = CommitOptions {
        rate: wanted.rate,
        ..CommitOptions::default()
    };
    ops::commit(&above.chain, &**base.device(), &options, &control)
        .map_err(|error| Refusal::new(format!("Block job failed: {}", reason(&error))))?;
    if !wanted.keep {
        ops::empty(&**above.device(), &control)
            .map_err(|error| Refusal::new(format!("Failed to empty {file}: {}", reason(&error))))?;
    }
    Ok(())
}

/// Fails if disks in a store of machines, outside of the chain, are based on what changes: they would read something else. Elsewhere it is up
/// to the user, as with QEMU's program.
fn refuse_others(image: &Image, number: usize) -> Result<(), Refusal> {
    let chain = image.chain.layers();
    match layers::others_in_stores(&chain[1..=number], chain).first() {
        Some(other) => Err(Refusal::new(format!(
            "Could not open '{}': {} is based on it, and would read something else afterwards",
            image.layers[number].filename,
            block::escape(&other.to_string_lossy()),
        ))),
        None => Ok(()),
    }
}

/// The number of the layer to write to.
fn find(image: &Image, wanted: &Wanted, file: &str) -> Result<usize, Refusal> {
    let Some(base) = &wanted.base else {
        return if image.layers.len() > 1 {
            Ok(1)
        } else {
            Err(Refusal::new("Image does not have a backing file"))
        };
    };
    let pairs = image.layers.iter().zip(&image.layers[1..]);
    let at = pairs
        .into_iter()
        .position(|(above, below)| means(above, below, base));
    at.map(|at| at + 1)
        .ok_or_else(|| Refusal::new(format!("Did not find '{base}' in the backing chain of '{file}'")))
}

/// Whether `name`, looked up beside `above`, leads to `below`.
fn means(above: &Found, below: &Found, name: &str) -> bool {
    if name::protocol(name).is_some() {
        return below.filename == name;
    }
    let real = |path: &str| fs::canonicalize(path).ok();
    let from_there = name::combine(above.node.directory.as_deref(), name);
    from_there
        .and_then(|path| real(&path))
        .is_some_and(|path| real(&below.filename) == Some(path))
}
