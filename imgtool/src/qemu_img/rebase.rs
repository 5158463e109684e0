//! `qemu-img rebase`.

use std::num::NonZeroUsize;

use block::{BackingReference, ErrorKind};
use ops::{Control, NewBacking, RebaseOptions, SparseChain};
use qcow2::Header;

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Image, Spec};
use super::node::Flags;
use super::progress::Progress;
use super::refusal::{ENOTSUP, Refusal, host_text, reason};
use super::secret::Secrets;
use super::{Outcome, cache_mode, pages};
use crate::commands::rebase::same_layer;

#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    image_opts: bool,
    trust: bool,
    show: bool,
    quiet: bool,
    compress: bool,
    direct: bool,
    source: Flags,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::REBASE, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::REBASE),
            "f" => wanted.format = Some(value),
            "F" => wanted.backing_format = Some(value),
            "b" => wanted.backing = Some(value),
            "u" => wanted.trust = true,
            "p" => wanted.show = true,
            "t" => wanted.direct = super::target_cache(&value)?.direct,
            "T" => wanted.source.direct = cache_mode("source", &value)?.direct,
            "q" => wanted.quiet = true,
            "U" => wanted.source.force_share = true,
            "c" => wanted.compress = true,
            "image-opts" => wanted.image_opts = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let operands = options.operands();
    if operands.len() != 1 {
        return Err(Refusal::usage("Expecting one image file name"));
    }
    if !wanted.trust && wanted.backing.is_none() {
        return Err(Refusal::usage(
            "Must specify backing file (-b) or use unsafe mode (-u)",
        ));
    }
    let spec = super::one_image(&operands, wanted.format.as_deref(), wanted.image_opts)?;
    let progress = Progress::new(console, wanted.show && !wanted.quiet, 1.0);
    let result = rebase(console, &spec, &wanted, &progress);
    if result.is_ok() {
        progress.end_at(100.0);
    }
    progress.end();
    result.map(|()| 0)
}

fn rebase(console: &Console, spec: &Spec, wanted: &Wanted, progress: &Progress) -> Result<(), Refusal> {
    let flags = Flags {
        write: true,
        direct: wanted.direct,
        no_backing: wanted.trust,
        ..Flags::default()
    };
    let image = super::open_to_write(console, spec, flags)?;
    if let Some(format) = &wanted.backing_format
        && !image::is_driver(format)
    {
        return Err(Refusal::new(format!("Invalid format name: '{format}'")));
    }
    let name = wanted.backing.as_deref().filter(|name| !name.is_empty());
    if wanted.trust {
        return rename(&image, name, wanted);
    }
    if wanted.compress && super::qcow2_of(&image).is_none() {
        return Err(Refusal::new("Compression not supported for this file format"));
    }
    let new = match name {
        Some(name) => Some(new_backing(&image, name, wanted)?),
        None => None,
    };
    let reference = reference(&image, name, wanted)?;
    let header = image.layers[0].header.as_ref();
    if wanted.compress && header.and_then(Header::data_file).is_some() {
        let why = host_text(&std::io::Error::from_raw_os_error(ENOTSUP));
        return Err(not_written(&why));
    }
    let new = match (new, reference) {
        (Some(new), Some(reference)) => {
            let device = SparseChain::device(&new.chain);
            Some(NewBacking {
                reference,
                layer: same_layer(&image.chain, &new.chain),
                device: device.map_err(|error| image::engine_words(&error))?,
            })
        }
        _ => None,
    };
    let report = |at: ops::Progress| progress.bytes(at.done, at.total);
    let control = Control::new(ops::Cancel::new(), &report);
    let options = RebaseOptions {
        compress: wanted.compress,
        // Room is taken in the order of the disk, as QEMU takes it.
        threads: NonZeroUsize::MIN,
        // As QEMU does: what lies in the image afterwards is data.
        write_zeros: true,
        ..RebaseOptions::default()
    };
    ops::rebase(&image.chain, new, &options, &control)
        .map(|_| ())
        .map_err(|error| match error.kind() {
            // There is nothing else that is written to.
            ErrorKind::NoSpace => not_written(&reason(&error)),
            _ => image::engine_words(&error),
        })
}

fn not_written(why: &str) -> Refusal {
    Refusal::new(format!("Error while writing to COW image: {why}"))
}

/// Changes the name alone.
fn rename(image: &Image, name: Option<&str>, wanted: &Wanted) -> Result<(), Refusal> {
    let reference = reference(image, name, wanted)?;
    let set = image.chain.set_backing_reference(reference);
    set.and_then(|()| image.chain.settle())
        .map_err(|error| could_not(name.unwrap_or_default(), &reason(&error)))
}

fn new_backing(image: &Image, name: &str, wanted: &Wanted) -> Result<Image, Refusal> {
    let text = image.layers[0]
        .full_backing(name)
        .unwrap_or_else(|| name.to_owned());
    let spec = Spec::new(&text, wanted.backing_format.as_deref(), false);
    image::open_spec(&spec, wanted.source)
        .map_err(|refusal| refusal.after(format!("Could not open new backing file '{name}': ")))
}

/// What the image is to name.
fn reference(
    image: &Image,
    name: Option<&str>,
    wanted: &Wanted,
) -> Result<Option<BackingReference>, Refusal> {
    let format = wanted.backing_format.clone();
    if super::qcow2_of(image).is_none() {
        return Err(could_not(name.unwrap_or_default(), "Operation not supported"));
    }
    match (name, format) {
        (None, _) => Ok(None),
        (Some(name), None) => Err(could_not(name, "backing format must be specified")),
        (Some(name), format) => Ok(Some(BackingReference {
            name: name.to_owned(),
            format,
        })),
    }
}

fn could_not(name: &str, why: &str) -> Refusal {
    Refusal::new(format!("Could not change the backing file to '{name}': {why}"))
}
