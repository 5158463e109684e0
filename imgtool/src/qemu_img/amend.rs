//! `qemu-img amend`.

use std::io;
use std::ops::ControlFlow;

use block::ErrorKind;
use qcow2::{Amendment, CompressionType, Header, IncompatibleFeatures, Limit, Snapshot, Version};

use super::console::Console;
use super::format_options::{self, Definition, FormatOptions};
use super::getopt::Options;
use super::image::{self, Spec};
use super::node::Flags;
use super::progress::Progress;
use super::refusal::{EFBIG, Refusal, host_text, reason};
use super::secret::Secrets;
use super::{Outcome, key_slots, option_list, pages, resize};

/// What says that a disk of version 2 with snapshots cannot have another size.
pub(super) const OLD_WITH_SNAPSHOTS: &str = "Can't resize a v2 image which has snapshots";

const TOO_OLD: &str = "(use compat=1.1 or greater)";

#[derive(Debug, Default)]
struct Wanted {
    format: Option<String>,
    options: Option<String>,
    direct: bool,
    /// Also what loses the data.
    force: bool,
    secrets: Secrets,
}

pub(super) fn run(console: &Console, arguments: &[String]) -> Outcome {
    let mut wanted = Wanted::default();
    let (mut image_opts, mut show, mut quiet) = (false, false, false);
    let mut options = Options::new(&pages::AMEND, arguments);
    while let Some((name, value)) = options.next()? {
        match name {
            "h" => return super::show(console, &pages::AMEND),
            "o" => option_list::accumulate(&mut wanted.options, &value)?,
            "f" => wanted.format = Some(value),
            "t" => wanted.direct = super::target_cache(&value)?.direct,
            "p" => show = true,
            "q" => quiet = true,
            "image-opts" => image_opts = true,
            "force" => wanted.force = true,
            _ => wanted.secrets.add(console, &value)?,
        }
    }
    let Some(list) = wanted.options.clone() else {
        return Err(Refusal::usage("Must specify options (-o)"));
    };
    let help = option_list::asks_for_help(Some(&list));
    if let Some(format) = wanted.format.as_deref().filter(|_| help) {
        console.print(help_of(format)?)?;
        return Ok(0);
    }
    let operands = options.operands();
    if help && operands.len() != 1 {
        return Err(Refusal::new("Expecting one image file name"));
    }
    let spec = super::one_image(&operands, wanted.format.as_deref(), image_opts)?;
    let progress = Progress::new(console, show && !quiet, 1.0);
    let result = amend(console, &spec, &list, &wanted, &progress);
    if result.is_ok() {
        progress.end_at(100.0);
    }
    progress.end();
    result.map(|()| 0)
}

fn help_of(format: &str) -> Result<String, Refusal> {
    let Some((options, _)) = definitions(format) else {
        return Err(not_amended(format));
    };
    let options = FormatOptions::of(&[options]).help();
    Ok(format!("Amend options for '{format}':\n{options}"))
}

/// The options of images that exist in a format, and those of new ones.
fn definitions(format: &str) -> Option<(&'static [Definition], &'static [Definition])> {
    match format {
        "qcow2" => Some((format_options::AMEND, format_options::QCOW2)),
        "luks" => Some((format_options::AMEND_LUKS, format_options::LUKS)),
        _ => None,
    }
}

/// What was asked for.
fn parse(list: &str, format: &str) -> Result<FormatOptions, Refusal> {
    let (amended, new) = definitions(format).ok_or_else(|| not_amended(format))?;
    let mut options = FormatOptions::of(&[amended]);
    options.parse(list).map_err(|refusal| {
        let create = FormatOptions::of(&[new]);
        let mut keys = option_list::pairs(list).into_iter().map(|pair| pair.0);
        let first = keys.find(|key| !options.has(key));
        match first.filter(|key| create.has(key)) {
            Some(_) => refusal.with_hint("This option is only supported for image creation"),
            None => refusal,
        }
    })?;
    Ok(options)
}

fn not_amended(format: &str) -> Refusal {
    Refusal::new(format!(
        "Format driver '{format}' does not support option amendment"
    ))
}

fn amend(
    console: &Console,
    spec: &Spec,
    list: &str,
    wanted: &Wanted,
    progress: &Progress,
) -> Result<(), Refusal> {
    let flags = Flags {
        write: true,
        direct: wanted.direct,
        ..Flags::default()
    };
    let downgrades = option_list::pairs(list)
        .iter()
        .any(|(key, value)| key == "compat" && matches!(&**value, "0.10" | "v2"));
    let found = image::find(spec, flags)?;
    if downgrades && let Some(wrong) = found.bad_snapshot() {
        console.error(wrong.text());
        let why = wrong.reason();
        return Err(Refusal::new(format!(
            "Failed to turn zero into data clusters: {why}"
        )));
    }
    let image = super::go_on_to_write(console, spec, found, flags)?;
    let found = &image.layers[0];
    if option_list::asks_for_help(Some(list)) {
        console.print(help_of(found.format)?)?;
        return Ok(());
    }
    let options = parse(list, found.format)?;
    if let Some(luks) = super::luks_of(&image) {
        return key_slots::of_options(&options, "", &wanted.secrets)?.apply(luks, wanted.force);
    }
    let (Some(qcow2), Some(header)) = (super::qcow2_of(&image), &found.header) else {
        return Err(not_amended(found.format));
    };
    let mut amendment = amendment(&options, header)?;
    let snapshots = qcow2.snapshots().map_err(|error| Refusal::new(reason(&error)))?;
    judge(&amendment, header, &snapshots)?;
    if amendment.version == Some(Version::V2) && header.compression != CompressionType::Zlib {
        // Which says nothing as long as no cluster is compressed.
        amendment.compression = Some(CompressionType::Zlib);
    }
    let keys = key_slots::of_qcow2(&options, header, &wanted.secrets)?;
    if let Some(keys) = keys {
        keys.apply(qcow2, wanted.force)?;
    }
    let changed = qcow2.amend(&amendment, &mut |at| {
        progress.report(at.fraction() * 100.0);
        ControlFlow::Continue(())
    });
    changed.map(|_| ()).map_err(|error| match error.kind() {
        ErrorKind::Unsupported if amendment.compression.is_some() => Refusal::new(
            "Cannot downgrade an image with zstd compression type and existing compressed clusters",
        ),
        _ => words(&error, &amendment),
    })
}

/// Why an image was not changed, in QEMU's words where it has some.
fn words(error: &block::Error, amendment: &Amendment) -> Refusal {
    let host = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace);
    match Limit::of(error) {
        Some(Limit::DiskSize { .. }) => resize::no_table(&host_text(&io::Error::from_raw_os_error(EFBIG))),
        Some(Limit::References {
            offset,
            references,
            bits,
            ..
        }) => Refusal::new(format!(
            "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset} has a refcount of {references}"
        )),
        _ if host && amendment.refcount_order.is_some() => {
            image::engine_words(error).after("Failed to write refblock: ")
        }
        _ if host && amendment.size.is_some() => resize::no_table(&reason(error)),
        _ => image::engine_words(error),
    }
}

/// What the options say, as far as each is possible by itself.
fn amendment(options: &FormatOptions, header: &Header) -> Result<Amendment, Refusal> {
    let refuse = |text: &str| Err(Refusal::new(text));
    let version = match options.get("compat") {
        None => None,
        Some("1.1" | "v3") => Some(Version::V3),
        Some("0.10" | "v2") => Some(Version::V2),
        Some(other) => return refuse(&format!("Unknown compatibility level {other}")),
    };
    let backing = header.backing();
    let same = |key, now: Option<String>| {
        let stated = options.get(key);
        stated.is_none() || stated == Some(now.unwrap_or_default().as_str())
    };
    let name = backing.as_ref().map(|backing| backing.name.clone());
    let format = backing.and_then(|backing| backing.format);
    if !same("backing_file", name) || !same("backing_fmt", format) {
        return Err(
            Refusal::new("Cannot amend the backing file").with_hint("You can use 'qemu-img rebase' instead.")
        );
    }
    let bits = options.number("refcount_bits");
    if bits.is_some_and(|bits| !bits.is_power_of_two() || bits > 64) {
        return refuse("Refcount width must be a power of two and may not exceed 64 bits");
    }
    let data_file = header.data_file();
    if options.get("data_file").is_some() && data_file.is_none() {
        return refuse("data-file can only be set for images that use an external data file");
    }
    let raw = options.get("data_file_raw").map(|value| value == "on");
    if raw == Some(true) && data_file.is_none_or(|file| !file.raw) {
        return refuse("data-file-raw cannot be set on existing images");
    }
    Ok(Amendment {
        version: version.filter(|version| *version != header.version),
        lazy_refcounts: options.get("lazy_refcounts").map(|value| value == "on"),
        refcount_order: bits.map(u64::trailing_zeros),
        data_file: options.get("data_file").map(ToOwned::to_owned),
        data_file_raw: raw,
        size: options.size("size"),
        ..Amendment::default()
    })
}

/// Fails for what there cannot be together, in QEMU's words.
fn judge(amendment: &Amendment, header: &Header, snapshots: &[Snapshot]) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::new(text));
    let version = amendment.version.unwrap_or(header.version);
    let order = amendment.refcount_order.unwrap_or(header.geometry.refcount_order);
    if version == Version::V2 && amendment.refcount_order.is_some_and(|order| order != 4) {
        return refuse(format!(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above {TOO_OLD}"
        ));
    }
    if version == Version::V2 && amendment.lazy_refcounts == Some(true) {
        return refuse(format!(
            "Lazy refcounts only supported with compatibility level 1.1 and above {TOO_OLD}"
        ));
    }
    if amendment.size.is_some_and(|size| !size.is_multiple_of(512)) {
        return refuse("The new size must be a multiple of 512".to_owned());
    }
    if header.version == Version::V2
        && version == Version::V2
        && amendment.size.is_some()
        && !snapshots.is_empty()
    {
        return refuse(OLD_WITH_SNAPSHOTS.to_owned());
    }
    if version == Version::V3 || header.version == Version::V2 {
        return Ok(());
    }
    if header.data_file().is_some() {
        return refuse("Cannot downgrade an image with a data file".to_owned());
    }
    // What a clean end of the last writer clears is no hindrance.
    let passing = IncompatibleFeatures::DIRTY | IncompatibleFeatures::COMPRESSION_TYPE;
    let features = header.incompatible.bits() & !passing.bits();
    if features != 0 {
        return refuse(format!(
            "Cannot downgrade an image with incompatible features {features:#x} set"
        ));
    }
    let size = amendment.size.unwrap_or(header.size);
    let of_old = |snapshot: &Snapshot| snapshot.size == size && u32::try_from(snapshot.vm_state_size).is_ok();
    if !snapshots.iter().all(of_old) {
        return refuse("Internal snapshots prevent downgrade of image".to_owned());
    }
    if order != 4 {
        return refuse("compat=0.10 requires refcount_bits=16".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_amended_is_listed_for_qcow2_alone() {
        let help = help_of("qcow2").unwrap();
        assert!(help.starts_with("Amend options for 'qcow2':\n  backing_file=<str> "));
        assert!(help.ends_with("  size=<size>            - Virtual disk size\n"));
        assert_eq!(
            help_of("raw").unwrap_err().text(),
            "Format driver 'raw' does not support option amendment"
        );
    }
}
