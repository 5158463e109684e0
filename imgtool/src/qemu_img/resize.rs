//! `qemu-img resize`.

use std::io;

use block::{Error, ErrorKind, Preallocation, Resize};
use qcow2::Limit;

use super::amend::OLD_WITH_SNAPSHOTS;
use super::console::Console;
use super::create::Device;
use super::format_options;
use super::getopt::Options;
use super::image::Image;
use super::node::Flags;
use super::refusal::{EFBIG, Refusal, host_text, reason};
use super::secret::Secrets;
use super::{Outcome, pages, qcow2_of};
use crate::commands::resize::resize as resize_chain;

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    // A size may start with a minus, and so it is taken away before options are looked for, unless long options follow it.
    let (last, arguments) = match arguments {
        [only] if matches!(&**only, "-h" | "--help") => return super::show(console, &pages::RESIZE),
        [_, .., last] if last.starts_with("--") => (None, arguments),
        [arguments @ .., size] if !arguments.is_empty() => (Some(size), arguments),
        _ => return Err(Refusal::usage("Not enough arguments")),
    };
    let (mut format, mut quiet, mut image_opts) = (None, false, false);
    let mut how = Resize::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::RESIZE, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::RESIZE),
            "f" => format = Some(value),
            "q" => quiet = true,
            "image-opts" => image_opts = true,
            "preallocation" => {
                how.preallocation = preallocation(&value)
                    .ok_or_else(|| Refusal::new(format!("Invalid preallocation mode '{value}'")))?;
            }
            "shrink" => how.shrink = true,
            _ => secrets.add(console, &value)?,
        }
    }
    let mut operands = options.operands();
    let size = last.cloned().or_else(|| operands.pop()).unwrap_or_default();
    if operands.len() != 1 {
        return Err(Refusal::usage("Expecting image file name and size"));
    }
    let (sign, digits) = match size.as_bytes().first() {
        Some(b'+') => (1, &size[1..]),
        Some(b'-') => (-1, &size[1..]),
        _ => (0, &*size),
    };
    let bytes = i128::from(format_options::parse_size("size", digits)?);
    let spec = super::one_image(&operands, format.as_deref(), image_opts)?;
    let flags = Flags {
        write: true,
        ..Flags::default()
    };
    let image = super::open_to_write(console, &spec, flags)?;
    image.layers[0].refuse_base()?;
    let old = image.device().size();
    let new = if sign == 0 {
        bytes
    } else {
        i128::from(old) + sign * bytes
    };
    let new = u64::try_from(new)
        .ok()
        .filter(|new| i64::try_from(*new).is_ok_and(|new| new > 0));
    let new = new.ok_or_else(|| Refusal::new("New image size must be positive"))?;
    resize(&image, new, how)?;
    if !quiet {
        console.remark("Image resized.\n");
    }
    Ok(0)
}

pub(super) fn preallocation(name: &str) -> Option<Preallocation> {
    Some(match name {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => return None,
    })
}

fn resize(image: &Image, new: u64, how: Resize) -> Result<(), Refusal> {
    let old = image.device().size();
    if new <= old && how.preallocation != Preallocation::Off {
        return Err(Refusal::new("Preallocation can only be used for growing images"));
    }
    if new < old && !how.shrink {
        return Err(
            Refusal::new("Use the --shrink option to perform a shrink operation.").with_more(
                "warning: Shrinking an image will delete all data beyond the shrunken image's end. \
                 Before performing such an operation, make sure there is no important data there.",
            ),
        );
    }
    refuse(image, new, how.preallocation)?;
    let resized = resize_chain(&image.chain, new, how).and_then(|()| image.chain.settle());
    resized.map_err(|error| words(&error, image, new, how.preallocation))
}

/// Fails for what there cannot be, in QEMU's words.
fn refuse(image: &Image, new: u64, preallocation: Preallocation) -> Result<(), Refusal> {
    let Some(qcow2) = qcow2_of(image) else {
        let node = &image.layers[0].node;
        let device = match node.driver {
            // What is encrypted need not fill what it lies in.
            _ if image.layers[0].format != "raw" => None,
            "host_device" => Some(Device::OfHost),
            "nbd" => Some(Device::Export),
            _ => None,
        };
        return match preallocation {
            Preallocation::Falloc | Preallocation::Full if device == Some(Device::OfHost) => {
                let mode = if preallocation == Preallocation::Full {
                    "full"
                } else {
                    "falloc"
                };
                let text = format!("Preallocation mode '{mode}' unsupported for this non-regular file");
                Err(Refusal::new(text))
            }
            _ if device.is_some() && new != image.device().size() => Err(Refusal::new(format!(
                "Cannot resize {}",
                device.map_or("", Device::plural)
            ))),
            _ if image.layers[0]
                .part
                .as_ref()
                .is_some_and(|part| part.len.is_some()) =>
            {
                Err(Refusal::new("Cannot resize fixed-size raw disks"))
            }
            Preallocation::Metadata => Err(Refusal::new("Unsupported preallocation mode: metadata")),
            _ => Ok(()),
        };
    };
    if !new.is_multiple_of(512) {
        return Err(Refusal::new("The new size must be a multiple of 512"));
    }
    let header = image.layers[0].header.as_ref();
    let old_version = header.is_some_and(|header| header.version == qcow2::Version::V2);
    let snapshots = qcow2.snapshots().is_ok_and(|snapshots| !snapshots.is_empty());
    if old_version && snapshots {
        return Err(Refusal::new(OLD_WITH_SNAPSHOTS));
    }
    Ok(())
}

/// Why an L1 table is not longer now.
pub(super) fn no_table(why: &str) -> Refusal {
    Refusal::new(format!("Failed to grow the L1 table: {why}"))
}

fn words(error: &Error, image: &Image, new: u64, preallocation: Preallocation) -> Refusal {
    let why = reason(error);
    let format = image.layers[0].format;
    match error.kind() {
        ErrorKind::InvalidInput if matches!(Limit::of(error), Some(Limit::DiskSize { .. })) => {
            no_table(&host_text(&io::Error::from_raw_os_error(EFBIG)))
        }
        ErrorKind::Unsupported | ErrorKind::InvalidInput => Refusal::new(error.message().to_owned()),
        ErrorKind::Io | ErrorKind::NoSpace if format == "qcow2" => match preallocation {
            Preallocation::Off => no_table(&why),
            Preallocation::Metadata => Refusal::new(format!("Allocating clusters failed: {why}")),
            _ => not_preallocated(preallocation, &why).after("Failed to resize underlying file: "),
        },
        ErrorKind::Io | ErrorKind::NoSpace if preallocation != Preallocation::Off => {
            not_preallocated(preallocation, &why)
        }
        _ => Refusal::new(format!("Failed to resize the image to {new} bytes: {why}")),
    }
}

/// Why there is no room for what a file is to hold later.
pub(super) fn not_preallocated(how: Preallocation, why: &str) -> Refusal {
    let what = match how {
        Preallocation::Full => "write zeros for preallocation",
        _ => "preallocate new data",
    };
    Refusal::new(format!("Could not {what}: {why}"))
}
