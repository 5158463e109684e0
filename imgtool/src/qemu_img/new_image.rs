//! What `-o` says a new image is to be, judged in QEMU's words.

use block::{BackingReference, DataFileReference, Preallocation};
use qcow2::{CompressionType, CreateOptions, Version};

use super::encrypted;
use super::format_options::{self, FormatOptions};
use super::refusal::Refusal;
use super::secret::Secrets;
use crate::formats::NewImage;

const TOO_OLD: &str = "(use version=v3 or greater)";

/// The options of a format's new images; `None` for a format that is not known.
pub(super) fn options_of(format: &str, in_file: bool) -> Result<FormatOptions, Refusal> {
    can_be_made(format)?;
    let own = match format {
        "raw" => format_options::RAW,
        "qcow2" => format_options::QCOW2,
        "luks" => format_options::LUKS,
        _ => return Err(Refusal::new(format!("Unknown file format '{format}'"))),
    };
    Ok(if in_file {
        FormatOptions::of(&[own, format_options::FILE])
    } else {
        FormatOptions::of(&[own])
    })
}

/// Fails for a format that QEMU knows and makes no images in.
pub(super) fn can_be_made(format: &str) -> Result<(), Refusal> {
    match format {
        "bochs" | "cloop" | "dmg" => Err(Refusal::new(format!(
            "Format driver '{format}' does not support image creation"
        ))),
        _ => Ok(()),
    }
}

/// What `-o help` prints; `target` is the file that the image is to be in.
pub(super) fn help(format: &str, target: Option<&str>) -> Result<String, Refusal> {
    let options = options_of(format, target.is_some())?;
    Ok(match target {
        Some(_) => format!("Supported options:\n{}", options.help()),
        None => format!(
            "Supported {format} options:\n{}\nThe protocol level may support further options.\n\
             Specify the target filename to include those options.\n",
            options.help()
        ),
    })
}

/// The image that these options are about.
pub(super) fn image(format: &str, options: &FormatOptions, secrets: &Secrets) -> Result<NewImage, Refusal> {
    if format == "raw" {
        let size = options.size("size").unwrap_or_default();
        return Ok(NewImage::raw(size, raw_preallocation(options)?));
    }
    if format != "qcow2" {
        return Err(Refusal::new(format!("Unknown file format '{format}'")));
    }
    let options = qcow2_options(options, secrets)?;
    options.validate().map_err(|_| {
        let hint = if options.cluster_bits < 21 {
            " (try using a larger cluster size)"
        } else {
            ""
        };
        Refusal::new(format!(
            "The image size is too large for file format 'qcow2'{hint}"
        ))
    })?;
    Ok(NewImage::of_qcow2(options))
}

fn raw_preallocation(options: &FormatOptions) -> Result<Preallocation, Refusal> {
    match options.get("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some("metadata") => Err(Refusal::new("Unsupported preallocation mode: metadata")),
        Some(other) => Err(Refusal::new(format!("invalid parameter value: {other}"))),
    }
}

fn qcow2_options(options: &FormatOptions, secrets: &Secrets) -> Result<CreateOptions, Refusal> {
    let new = CreateOptions {
        size: block::size::whole_sectors(options.size("size").unwrap_or_default()),
        version: version(options)?,
        extended_l2: options.is_on("extended_l2"),
        lazy_refcounts: options.is_on("lazy_refcounts"),
        preallocation: preallocation(options)?,
        compression: compression(options)?,
        backing: options.get("backing_file").map(|name| BackingReference {
            name: name.to_owned(),
            format: options.get("backing_fmt").map(ToOwned::to_owned),
        }),
        data_file: options.get("data_file").map(|name| DataFileReference {
            name: Some(name.to_owned()),
            raw: options.is_on("data_file_raw"),
        }),
        encryption: encrypted::of_qcow2(options, secrets)?,
        ..CreateOptions::default()
    };
    let cluster_size = options.size("cluster_size").unwrap_or(1 << 16);
    let refcount_bits = options.number("refcount_bits").unwrap_or(16);
    judge(&new, options, cluster_size, refcount_bits)?;
    Ok(CreateOptions {
        cluster_bits: cluster_size.trailing_zeros(),
        refcount_order: refcount_bits.trailing_zeros(),
        ..new
    })
}

fn version(options: &FormatOptions) -> Result<Version, Refusal> {
    match options.get("compat") {
        None | Some("1.1" | "v3") => Ok(Version::V3),
        Some("0.10" | "v2") => Ok(Version::V2),
        Some(other) => Err(not_accepted("version", other)),
    }
}

fn preallocation(options: &FormatOptions) -> Result<Preallocation, Refusal> {
    match options.get("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(not_accepted("preallocation", other)),
    }
}

fn compression(options: &FormatOptions) -> Result<CompressionType, Refusal> {
    match options.get("compression_type") {
        None | Some("zlib") => Ok(CompressionType::Zlib),
        Some("zstd") => Ok(CompressionType::Zstd),
        Some(other) => Err(not_accepted("compression-type", other)),
    }
}

pub(super) fn not_accepted(parameter: &str, value: &str) -> Refusal {
    Refusal::new(format!("Parameter '{parameter}' does not accept value '{value}'"))
}

/// Fails for what there cannot be, in the order in which QEMU looks.
fn judge(
    new: &CreateOptions,
    options: &FormatOptions,
    cluster_size: u64,
    refcount_bits: u64,
) -> Result<(), Refusal> {
    let v2 = new.version == Version::V2;
    let refuse = |text: String| Err(Refusal::new(text));
    if new.extended_l2 && v2 {
        return refuse(format!(
            "Extended L2 entries are only supported with compatibility level 1.1 and above {TOO_OLD}"
        ));
    }
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return refuse("Cluster size must be a power of two between 512 and 2048k".to_owned());
    }
    if new.extended_l2 && cluster_size < 16384 {
        return refuse(
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes".to_owned(),
        );
    }
    if new.backing.is_some() && new.preallocation != Preallocation::Off && !new.extended_l2 {
        return refuse(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on"
                .to_owned(),
        );
    }
    if new.lazy_refcounts && v2 {
        return refuse(format!(
            "Lazy refcounts only supported with compatibility level 1.1 and above {TOO_OLD}"
        ));
    }
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return refuse("Refcount width must be a power of two and may not exceed 64 bits".to_owned());
    }
    if refcount_bits != 16 && v2 {
        return refuse(format!(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above {TOO_OLD}"
        ));
    }
    if options.is_on("data_file_raw") && new.data_file.is_none() {
        return refuse("data-file-raw requires data-file".to_owned());
    }
    if options.is_on("data_file_raw") && new.backing.is_some() {
        return refuse("Backing file and data-file-raw cannot be used at the same time".to_owned());
    }
    if new.data_file.is_some() && v2 {
        return refuse(format!(
            "External data files are only supported with compatibility level 1.1 and above {TOO_OLD}"
        ));
    }
    if new.compression != CompressionType::Zlib && v2 {
        return refuse(format!(
            "Non-zlib compression type is only supported with compatibility level 1.1 and above {TOO_OLD}"
        ));
    }
    Ok(())
}
