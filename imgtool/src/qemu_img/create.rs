//! `qemu-img create`.

use std::path::Path;

use block::Storage;
use ops::Cancel;

use super::console::Console;
use super::format_options::FormatOptions;
use super::getopt::Options;
use super::image::{self, Spec};
use super::node::{self, Flags, name};
use super::refusal::{Refusal, is_errno, reason};
use super::secret::Secrets;
use super::{Outcome, encrypted, new_image, number, option_list, pages};
use crate::target::Making;
use crate::targets::Targets;

/// What is to be made, and what is said of it.
#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    backing: Option<String>,
    backing_format: Option<String>,
    options: Option<String>,
    quiet: bool,
    no_backing: bool,
    size: Option<u64>,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::CREATE, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::CREATE),
            "F" => wanted.backing_format = Some(value),
            "b" => wanted.backing = Some(value),
            "f" => wanted.format = Some(value),
            "o" => option_list::accumulate(&mut wanted.options, &value)?,
            "q" => wanted.quiet = true,
            "u" => wanted.no_backing = true,
            _ => secrets.add(&value)?,
        }
    }
    let mut operands = options.operands().into_iter();
    let file = operands.next();
    let format = wanted.format.clone().unwrap_or_else(|| "raw".to_owned());
    if option_list::asks_for_help(wanted.options.as_deref()) {
        console.print(new_image::help(&format, file.as_deref())?)?;
        return Ok(0);
    }
    let Some(file) = file else {
        return Err(Refusal::usage("Expecting image file name"));
    };
    if let Some(text) = operands.next() {
        wanted.size = Some(number::disk_size("image size", &text)?);
    }
    if let Some(more) = operands.next() {
        return Err(Refusal::usage(format!("Unexpected argument: {more}")));
    }
    create(console, &file, &format, &wanted, &secrets)
        .map_err(|refusal| refusal.after(format!("{file}: ")))?;
    Ok(0)
}

fn create(
    console: &Console,
    file: &str,
    format: &str,
    wanted: &Wanted,
    secrets: &Secrets,
) -> Result<(), Refusal> {
    let mut options = new_image::options_of(format, true)?;
    let path = target_path(file)?;
    options.parse(wanted.options.as_deref().unwrap_or_default())?;
    if let Some(size) = wanted.size {
        if options.get("size").is_some() {
            return Err(Refusal::new("The image size must be specified only once"));
        }
        options.set("size", &size.to_string())?;
    }
    let backing = backing(&mut options, file, format, wanted)?;
    if let Some(size) = backing.filter(|_| options.get("size").is_none()) {
        options.set("size", &size.to_string())?;
    }
    if options.get("size").is_none() {
        return Err(Refusal::new("Image creation needs a size parameter"));
    }
    if !wanted.quiet {
        console.print(formatting(file, format, &options))?;
        console.flush()?;
    }
    make(&path, format, &options, secrets, &console.stop_orderly()?)
}

/// The path of a file that may be made.
pub(super) fn target_path(file: &str) -> Result<String, Refusal> {
    match name::protocol(file) {
        None => Ok(file.to_owned()),
        Some("file") => Ok(file["file:".len()..].to_owned()),
        Some(_) if nbd::Address::names_one(file) => Ok(file.to_owned()),
        Some(protocol) if node::is_node_driver(protocol) => Err(Refusal::new(format!(
            "Protocol driver '{protocol}' does not support creating new images, so an existing image must be selected as \
             the target"
        ))),
        Some(protocol) => Err(Refusal::new(format!("Unknown protocol '{protocol}'"))),
    }
}

/// `Formatting 'F', fmt=X k=v ...`.
pub(super) fn formatting(file: &str, format: &str, options: &FormatOptions) -> String {
    format!("Formatting '{file}', fmt={format}{}\n", options.show())
}

/// Looks at the backing file; gives its size.
fn backing(
    options: &mut FormatOptions,
    file: &str,
    format: &str,
    wanted: &Wanted,
) -> Result<Option<u64>, Refusal> {
    for (key, value, what) in [
        ("backing_file", &wanted.backing, "Backing file"),
        ("backing_fmt", &wanted.backing_format, "Backing format"),
    ] {
        let Some(value) = value else { continue };
        if !options.has(key) {
            return Err(Refusal::new(format!(
                "{what} not supported for file format '{format}'"
            )));
        }
        options.set(key, value)?;
    }
    let Some(name) = options.get("backing_file") else {
        return Ok(None);
    };
    if name.is_empty() {
        return Err(Refusal::new("Expected backing file name, got empty string"));
    }
    if name == file {
        return Err(Refusal::new(
            "Error: Trying to create an image with the same filename as the backing file",
        ));
    }
    let backing_format = options.get("backing_fmt").map(ToOwned::to_owned);
    let no_format = || Refusal::new("Backing file specified without backing format");
    if wanted.no_backing {
        return match backing_format {
            Some(_) => Ok(None),
            None => Err(no_format()),
        };
    }
    let full = backing_of(&target_path(file)?, name);
    let spec = Spec::new(&full, backing_format.as_deref(), false);
    let flags = Flags {
        locked: true,
        ..Flags::default()
    };
    let opened = image::open_spec(&spec, flags);
    let image = opened.map_err(|refusal| refusal.with_hint("Could not open backing image."))?;
    if backing_format.is_none() {
        return Err(no_format().with_hint(&format!("Detected format of {}.", image.layers[0].format)));
    }
    if image::is_same_file(&image, &target_path(file)?) {
        return Err(Refusal::new(
            "Error: Trying to create an image with the same filename as the backing file",
        ));
    }
    Ok(Some(image.device().size()))
}

/// The file that an image at `path` means by a backing file called `name`.
pub(super) fn backing_of(path: &str, name: &str) -> String {
    let from = name::of_path(path);
    name::combine(Some(name::directory(&from)), name).unwrap_or_default()
}

/// Makes the image: whole under its name, or not at all.
pub(super) fn make(
    path: &str,
    format: &str,
    options: &FormatOptions,
    secrets: &Secrets,
    cancel: &Cancel,
) -> Result<(), Refusal> {
    if format == "luks" {
        return make_luks(path, options, secrets, cancel);
    }
    let new = new_image::image(format, options, secrets)?;
    let could_not = |error: block::Error| could_not_create(path, format, &error);
    let targets = Targets::new(Path::new(path), &new, making()).map_err(could_not)?;
    targets.create(&new).map_err(could_not)?;
    let storage = targets.image().storage();
    formatted(&*storage, new.qcow2().as_ref()).map_err(could_not)?;
    targets.finish(cancel).map_err(could_not)
}

/// In steps of so many bytes what lies in front of encrypted data is left out where it is zero.
const AREA_BLOCK: usize = 4096;

/// Makes an encrypted disk that is no image: a LUKS header, and room for the data behind it.
fn make_luks(path: &str, options: &FormatOptions, secrets: &Secrets, cancel: &Cancel) -> Result<(), Refusal> {
    let could_not = |error: block::Error| could_not_create(path, "luks", &error);
    let area = encrypted::luks_area(options, secrets)?;
    let size = options.size("size").unwrap_or_default();
    let Some(size) = size.checked_add(area.len() as u64) else {
        return Err(Refusal::new("The image size is too large for file format 'luks'"));
    };
    let new = crate::formats::NewImage::raw(size, block::Preallocation::Off);
    let targets = Targets::new(Path::new(path), &new, making()).map_err(could_not)?;
    targets.create(&new).map_err(could_not)?;
    let storage = targets.image().storage();
    // Key slots that are not in use are holes.
    for (number, block) in area.chunks(AREA_BLOCK).enumerate() {
        if !block::is_zero(block) {
            let offset = (number * AREA_BLOCK) as u64;
            storage.write_all_at(block, offset).map_err(could_not)?;
        }
    }
    targets.finish(cancel).map_err(could_not)
}

/// Sees to it that the start of a file is no hole, as it is none in what QEMU makes: the header's whole cluster, and of a raw image the
/// first block, which is read to find out what alignment direct I/O needs.
pub(super) fn formatted(storage: &dyn Storage, qcow2: Option<&qcow2::CreateOptions>) -> block::Result<()> {
    let length = storage.len()?;
    let start = match qcow2 {
        Some(options) => 1 << options.cluster_bits,
        None if length < 4096 => 512,
        None => 4096,
    };
    let mut bytes = vec![0; start.min(length) as usize];
    storage.read_exact_at(&mut bytes, 0)?;
    storage.write_all_at(&bytes, 0)
}

/// How the files of new images are made.
pub(super) fn making() -> Making {
    Making {
        replace_data: true,
        ..Making::default()
    }
}

/// Why the host did not make a file.
pub(super) fn could_not_create(path: &str, format: &str, error: &block::Error) -> Refusal {
    use block::ErrorKind;
    if is_errno(error, super::refusal::EFBIG) {
        return Refusal::new(format!("The image size is too large for file format '{format}'"));
    }
    match error.kind() {
        ErrorKind::Locked => Refusal::new("Failed to get \"write\" lock")
            .with_hint(&format!("Is another process using the image [{path}]?")),
        ErrorKind::InvalidInput if Path::new(path).is_dir() => {
            Refusal::new(format!("Could not create '{path}': Is a directory"))
        }
        ErrorKind::Io | ErrorKind::NoSpace => {
            Refusal::new(format!("Could not create '{path}': {}", reason(error)))
        }
        _ => Refusal::new(error.message().to_owned()),
    }
}
