//! `qemu-img bitmap`.

use block::ErrorKind;
use qcow2::{BitmapEdit, DirtyBits, Limit, Version};

use super::console::Console;
use super::getopt::Options;
use super::image::{self, Image, Spec};
use super::node::Flags;
use super::refusal::{EINVAL, Refusal, host_text, reason};
use super::secret::Secrets;
use super::{Outcome, number, pages, qcow2_of};

/// A node as QEMU names those that have no name: by a number, of three digits or more, that is another in each run.
const NODE: &str = "#block000";

/// Bytes of a name, at most.
const MAX_NAME: usize = 1023;

const GRANULARITY: &str = "Granularity must be power of 2 and at least 512";

/// What is done, in the order of the command line: what it is called, and the bitmap that is merged.
type Action = (&'static str, String);

#[derive(Debug, Default)]
struct Wanted {
    actions: Vec<Action>,
    format: Option<String>,
    source: Option<String>,
    source_format: Option<String>,
    granularity: Option<u64>,
    image_opts: bool,
}

impl Wanted {
    fn has(&self, action: &str) -> bool {
        self.actions.iter().any(|asked| asked.0 == action)
    }

    /// Fails for options that mean nothing together.
    fn check(&self) -> Result<(), Refusal> {
        let wrong = match () {
            () if self.actions.is_empty() => {
                "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
            }
            () if self.granularity.is_some() && !self.has("add") => "granularity only supported with --add",
            () if self.source_format.is_some() && self.source.is_none() => "-F only supported with -b",
            () if self.source.is_some() && !self.has("merge") => {
                "Merge bitmap source file only supported with --merge"
            }
            () => return Ok(()),
        };
        Err(Refusal::new(wrong))
    }
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let mut secrets = Secrets::default();
    let mut options = Options::new(&pages::BITMAP, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::BITMAP),
            "b" => wanted.source = Some(value),
            "f" => wanted.format = Some(value),
            "F" => wanted.source_format = Some(value),
            "g" => {
                let bytes = number::disk_size("granularity", &value)?;
                wanted.granularity = Some(bytes).filter(|bytes| *bytes > 0);
            }
            "image-opts" => wanted.image_opts = true,
            "object" => secrets.add(console, &value)?,
            action => wanted.actions.push((action, value)),
        }
    }
    let operands = options.operands();
    let [file, bitmap] = &*operands else {
        return Err(Refusal::new("Expecting filename and bitmap name"));
    };
    wanted.check()?;
    let spec = super::spec(file, wanted.format.as_deref(), wanted.image_opts)?;
    change(console, &spec, bitmap, &wanted)?;
    Ok(0)
}

fn change(console: &Console, spec: &Spec, name: &str, wanted: &Wanted) -> Result<(), Refusal> {
    // What lies below has no say in bitmaps, and need not be there.
    let flags = Flags {
        write: true,
        no_backing: true,
        ..Flags::default()
    };
    let image = super::open_to_write(console, spec, flags)?;
    let failed =
        |action: &str, why: &str| Refusal::new(format!("Operation {action} on bitmap {name} failed: {why}"));
    let Some(qcow2) = qcow2_of(&image) else {
        open_source(wanted)?;
        let first = wanted.actions.first().map_or("add", |action| action.0);
        return Err(failed(first, &why_not_in(wanted, first, name)));
    };
    let old = qcow2.header().version < Version::V3;
    let mut sources = sources(wanted, name)?.into_iter();
    let mut names: Vec<String> = qcow2
        .bitmaps()
        .map_err(|error| image::engine_words(&error))?
        .into_iter()
        .map(|bitmap| bitmap.name)
        .collect();
    let mut refusal = None;
    let changed = qcow2.edit_bitmaps(|bitmaps| {
        store_anew(bitmaps)?;
        wanted.actions.iter().try_for_each(|(action, source)| {
            let missing = |wanted: &str| format!("Dirty bitmap '{wanted}' not found");
            let known = names.iter().any(|known| known == name);
            let done = match *action {
                "add" => bitmaps.add(name, wanted.granularity, true),
                "remove" => bitmaps.remove(name),
                "clear" => bitmaps.clear(name),
                "enable" => bitmaps.enable(name),
                "disable" => bitmaps.disable(name),
                _ => {
                    let own = || bitmaps.dirty_bits(source);
                    let bits = sources.next().map_or_else(own, Ok);
                    bits.and_then(|bits| bitmaps.merge(name, &bits))
                }
            };
            match (*action, done.is_ok()) {
                ("add", true) => names.push(name.to_owned()),
                ("remove", true) => names.retain(|known| known != name),
                _ => {}
            }
            done.inspect_err(|error| {
                let broken = known && *action != "add" && error.kind() == ErrorKind::Unsupported;
                let cannot_be =
                    |why: &str| format!("Can't make bitmap '{name}' persistent in '{NODE}': {why}");
                let why = match *action {
                    "add" if !wanted.granularity.is_none_or(is_granularity) => GRANULARITY.to_owned(),
                    "add" if known => format!("Bitmap already exists: {name}"),
                    "add" if name.is_empty() => "Bitmap name cannot be empty".to_owned(),
                    "add" if old => cannot_be("Cannot store dirty bitmaps in qcow2 v2 files"),
                    "add" if name.len() > MAX_NAME => {
                        cannot_be(&format!("Name length exceeds maximum ({MAX_NAME} characters)"))
                    }
                    "add" if matches!(Limit::of(error), Some(Limit::BitmapSize { .. })) => {
                        cannot_be("Too much space will be occupied by the bitmap. Use larger granularity")
                    }
                    "add" => error.message().to_owned(),
                    _ if !known => missing(name),
                    "merge" if wanted.source.is_none() && !names.contains(source) => missing(source),
                    _ if broken => format!("Bitmap '{name}' is inconsistent and cannot be used"),
                    _ => error.message().to_owned(),
                };
                let said = failed(action, &why);
                refusal = Some(if broken {
                    said.with_hint("Try block-dirty-bitmap-remove to delete this bitmap from disk")
                } else {
                    said
                });
            })
        })
    });
    let saved = changed.and_then(|()| image.chain.settle());
    match (refusal, saved) {
        (Some(refusal), _) => Err(refusal),
        (None, saved) => saved.map_err(|error| match error.kind() {
            ErrorKind::Io | ErrorKind::NoSpace => lost(console, name, &reason(&error)),
            _ => image::engine_words(&error),
        }),
    }
}

/// Bitmaps are stored as an image is closed, which QEMU tries two times.
fn lost(console: &Console, name: &str, why: &str) -> Refusal {
    let lost = format!(
        "Lost persistent bitmaps during inactivation of node '{NODE}': Failed to write bitmap '{name}' to file: {why}"
    );
    console.error(&lost);
    let invalid = host_text(&std::io::Error::from_raw_os_error(EINVAL));
    Refusal::new(format!("Error while closing the image: {invalid}")).with_more(lost)
}

/// QEMU writes all bitmaps that it can read to new places, whichever it changes, and files are as long as that makes them.
fn store_anew(bitmaps: &mut BitmapEdit<'_>) -> block::Result<()> {
    let names: Vec<String> = bitmaps.list().map(|bitmap| bitmap.name.clone()).collect();
    names.iter().try_for_each(|name| match bitmaps.dirty_bits(name) {
        Ok(bits) => bitmaps.merge(name, &bits),
        // It stays as it is, and can be removed.
        Err(_) => Ok(()),
    })
}

fn is_granularity(bytes: u64) -> bool {
    bytes.is_power_of_two() && bytes >= 512 && u32::try_from(bytes).is_ok()
}

/// Why something cannot be done to a bitmap of an image that cannot have any.
fn why_not_in(wanted: &Wanted, action: &str, name: &str) -> String {
    match action {
        "add" if !wanted.granularity.is_none_or(is_granularity) => GRANULARITY.to_owned(),
        "add" => format!("Can't store persistent bitmaps to {NODE}: Operation not supported"),
        _ => format!("Dirty bitmap '{name}' not found"),
    }
}

/// The image that bitmaps are merged from.
fn open_source(wanted: &Wanted) -> Result<Option<Image>, Refusal> {
    let Some(file) = &wanted.source else {
        return Ok(None);
    };
    let spec = Spec::new(file, wanted.source_format.as_deref(), false);
    let flags = Flags {
        no_backing: true,
        ..Flags::default()
    };
    image::open(&spec, flags).map(Some)
}

/// What is to be merged from another image, in order.
fn sources(wanted: &Wanted, name: &str) -> Result<Vec<DirtyBits>, Refusal> {
    let Some(image) = open_source(wanted)? else {
        return Ok(Vec::new());
    };
    let merged = wanted.actions.iter().filter(|action| action.0 == "merge");
    let bits = merged.map(|(_, source)| {
        let missing = || {
            Refusal::new(format!(
                "Operation merge on bitmap {name} failed: Dirty bitmap '{source}' not found"
            ))
        };
        let image = qcow2_of(&image).ok_or_else(missing)?;
        image.dirty_bits(source).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => missing(),
            _ => image::engine_words(&error),
        })
    });
    bits.collect()
}
