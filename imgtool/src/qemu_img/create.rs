//! `qemu-img create`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use block::{ErrorKind, Preallocation, Storage};
use ops::Cancel;

use super::console::Console;
use super::format_options::FormatOptions;
use super::getopt::Options;
use super::image::{self, Spec};
use super::node::{self, Flags, exports, name};
use super::refusal::{EFBIG, EISDIR, ELOOP, ENXIO, Refusal, host_text, is_errno, reason};
use super::resize::not_preallocated;
use super::secret::Secrets;
use super::{Outcome, new_image, number, option_list, pages};
use crate::formats::NewImage;
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
            _ => secrets.add(console, &value)?,
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
        console.remark(formatting(file, format, &options));
        console.flush()?;
    }
    make(&path, format, &options, secrets, &console.stop_orderly()?)
}

/// The path of a file that may be made.
pub(super) fn target_path(file: &str) -> Result<String, Refusal> {
    match name::protocol(file) {
        None => Ok(file.to_owned()),
        Some("file") => Ok(name::of_path(&file["file:".len()..])),
        Some(protocol) if name::is_nbd(protocol) => Ok(file.to_owned()),
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
    // Only its size is asked for, and it may be in use: so snapshots of running machines are made.
    let flags = Flags {
        locked: true,
        force_share: true,
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
    let new = new_image::image(format, options, secrets)?;
    if takes_nothing(path, &new) {
        return Ok(());
    }
    let targets = begin(path, format, &new, making())?;
    lay_out(path, format, &new, &targets)?;
    let finished = targets.finish(cancel);
    finished.map_err(|error| could_not_create(path, format, &error))
}

/// Whether the image is as long as a character device, and has nothing else to write to one.
pub(super) fn takes_nothing(path: &str, new: &NewImage) -> bool {
    let device = node::is_device(path) && !node::is_block_device(path);
    device && new.file_size() == Some(0)
}

/// Writes what an image is made of, before it holds anything.
pub(super) fn lay_out(path: &str, format: &str, new: &NewImage, targets: &Targets) -> Result<(), Refusal> {
    let storage = targets.image().storage();
    let made = targets
        .create(new)
        .and_then(|()| formatted(&*storage, new.qcow2().as_ref()));
    made.map_err(|error| match error.kind() {
        ErrorKind::Io | ErrorKind::NoSpace if !is_errno(&error, EFBIG) => {
            let len = storage.len().unwrap_or_default();
            not_laid_out(new, len, &reason(&error))
        }
        _ => could_not_create(path, format, &error),
    })
}

/// Why an image was not made whose file is so long now.
fn not_laid_out(new: &NewImage, len: u64, why: &str) -> Refusal {
    let preallocation = new.preallocation();
    let Some(options) = new.qcow2() else {
        return match (new.format(), preallocation) {
            ("luks", _) => Refusal::new(format!("Could not write encryption header: {why}")),
            (_, how) => not_preallocated(how, why),
        };
    };
    let refusal = match preallocation {
        Preallocation::Off if len < 1 << options.cluster_bits => {
            return Refusal::new(format!("Could not write qcow2 header: {why}"));
        }
        Preallocation::Off => return Refusal::new(format!("Could not write refcount table: {why}")),
        Preallocation::Metadata => Refusal::new(format!("Allocating clusters failed: {why}")),
        how if options.data_file.is_some() => not_preallocated(how, why),
        how => not_preallocated(how, why).after("Failed to resize underlying file: "),
    };
    refusal.after("Could not resize image: ")
}

/// Makes ready to write an image to a file, a device or an export.
pub(super) fn begin(path: &str, format: &str, new: &NewImage, making: Making) -> Result<Targets, Refusal> {
    if Device::at(path) != Some(Device::Export) {
        let targets = Targets::new(Path::new(path), new, making);
        return targets.map_err(|error| {
            let data = new.data_file();
            let data = data.filter(|name| error.path().is_some_and(|path| path.ends_with(name)));
            could_not_create(data.as_deref().unwrap_or(path), format, &error)
        });
    }
    let opened = exports::of_name(path).and_then(|address| {
        let targets = Targets::new(address.path(), new, making);
        targets.map_err(|error| exports::words(&address, &error))
    });
    opened.map_err(|refusal| not_opened("nbd", refusal))
}

/// Sees to it that the start of a file is no hole, as it is none in what QEMU makes: the header's whole cluster, and of a raw image the
/// first block, which is read to find out what alignment direct I/O needs. That one has no need of room: it is zeros.
fn formatted(storage: &dyn Storage, qcow2: Option<&qcow2::CreateOptions>) -> block::Result<()> {
    let length = storage.len()?;
    let start = match qcow2 {
        Some(options) => 1 << options.cluster_bits,
        None if length < 4096 => 512,
        None => 4096,
    };
    let mut bytes = vec![0; start.min(length) as usize];
    storage.read_exact_at(&mut bytes, 0)?;
    match storage.write_all_at(&bytes, 0) {
        Err(error) if error.kind() == ErrorKind::NoSpace && bytes.iter().all(|byte| *byte == 0) => Ok(()),
        written => written,
    }
}

/// How the files of new images are made.
pub(super) fn making() -> Making {
    Making {
        replace_data: true,
        or_in_place: true,
        ..Making::default()
    }
}

/// A target that is no file, with a length of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    OfHost,
    Export,
}

impl Device {
    pub(super) fn at(path: &str) -> Option<Self> {
        match () {
            () if name::protocol(path).is_some_and(name::is_nbd) => Some(Self::Export),
            () if node::is_device(path) => Some(Self::OfHost),
            () => None,
        }
    }

    /// What QEMU calls such targets.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::OfHost => "device files",
            Self::Export => "NBD nodes",
        }
    }
}

/// A target that is read from, or that somebody else has open.
pub(super) fn in_use(path: &str) -> Refusal {
    let refusal = Refusal::new(LOCK);
    let refusal = match Device::at(path) {
        Some(Device::OfHost) => not_opened("host_device", refusal),
        _ => refusal,
    };
    refusal.with_hint(&format!("Is another process using the image [{path}]?"))
}

const LOCK: &str = "Failed to get \"write\" lock";

/// A target that this driver does not make, and that is not opened either.
fn not_opened(driver: &str, why: Refusal) -> Refusal {
    why.after(format!(
        "Protocol driver '{driver}' does not support creating new images, so an existing image must be selected as the \
         target; however, opening the given target as an existing image failed: "
    ))
}

/// Why the host did not make a file.
pub(super) fn could_not_create(path: &str, format: &str, error: &block::Error) -> Refusal {
    if is_errno(error, EFBIG) {
        return Refusal::new(format!("The image size is too large for file format '{format}'"));
    }
    let device = Device::at(path);
    match error.kind() {
        ErrorKind::Locked => {
            let held = error.path().map_or(path.into(), Path::to_string_lossy);
            in_use(&held)
        }
        ErrorKind::InvalidInput if device.is_some() && format != "qcow2" => {
            Refusal::new(format!("Cannot grow {}", device.map_or("", Device::plural)))
        }
        ErrorKind::InvalidInput if device == Some(Device::OfHost) && !node::is_block_device(path) => {
            Refusal::new("Image is not in qcow2 format")
        }
        ErrorKind::InvalidInput if Path::new(path).is_dir() => is_directory(path),
        // What the host says of a name that can only be a directory's.
        ErrorKind::Io if path.ends_with('/') && !Path::new(path).exists() => is_directory(path),
        ErrorKind::InvalidInput if links_lead_nowhere(path) => not_created(path, ELOOP),
        ErrorKind::InvalidInput if is_kind(path, FileTypeExt::is_socket) => not_created(path, ENXIO),
        ErrorKind::InvalidInput if is_kind(path, FileTypeExt::is_fifo) => {
            Refusal::new(format!("Could not resize file: {}", reason(error)))
        }
        ErrorKind::Io | ErrorKind::NoSpace => {
            Refusal::new(format!("Could not create '{path}': {}", reason(error)))
        }
        _ => Refusal::new(error.message().to_owned()),
    }
}

fn is_directory(path: &str) -> Refusal {
    not_created(path, EISDIR)
}

pub(super) fn not_created(path: &str, number: i32) -> Refusal {
    let why = host_text(&std::io::Error::from_raw_os_error(number));
    Refusal::new(format!("Could not create '{path}': {why}"))
}

fn is_kind(path: &str, which: impl Fn(&fs::FileType) -> bool) -> bool {
    fs::metadata(path).is_ok_and(|file| which(&file.file_type()))
}

/// Whether links at this name lead to each other.
fn links_lead_nowhere(path: &str) -> bool {
    fs::metadata(path).is_err_and(|error| error.raw_os_error() == Some(ELOOP))
}
