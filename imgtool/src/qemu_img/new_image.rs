//! What `-o` says a new image is to be, judged in QEMU's words.

use block::{BackingReference, DataFileReference, Preallocation};
use qcow2::{CompressionType, CreateOptions, Version};

use super::create::not_created;
use super::encrypted;
use super::format_options::{self, FormatOptions};
use super::refusal::{EINVAL, ENOENT, ENOSPC, Refusal, host_text};
use super::secret::Secrets;
use crate::formats::NewImage;

/// Bytes of the name of a backing file.
const MAX_BACKING_NAME: usize = 1023;

/// What a backing file may be read by, there or here.
const DRIVERS: [&str; 45] = [
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "virtio-blk-vfio-pci",
    "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
    "vmdk",
    "vpc",
    "vvfat",
];

const TOO_OLD: &str = "(use version=v3 or greater)";

/// The options of a format's new images; `None` for a format that is not known.
pub(super) fn options_of(format: &str, in_file: bool) -> Result<FormatOptions, Refusal> {
    can_be_made(format)?;
    let own = match format {
        "raw" => format_options::RAW,
        "qcow2" => format_options::QCOW2,
        "luks" => format_options::LUKS,
        // A file as it is, which a raw image is too.
        "file" => format_options::FILE,
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
        "bochs" | "cloop" | "dmg" | "blkdebug" | "null-aio" | "null-co" | "quorum" => Err(Refusal::new(
            format!("Format driver '{format}' does not support image creation"),
        )),
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
    let hint = options.size("extent_size_hint");
    if hint.is_some_and(|hint| u32::try_from(hint).is_err()) {
        return Err(Refusal::new("Extent size hint is too large"));
    }
    if matches!(format, "raw" | "file") {
        let size = options.size("size").unwrap_or_default();
        return Ok(NewImage::raw(size, raw_preallocation(options)?));
    }
    if format == "luks" {
        return encrypted::luks_image(options, secrets);
    }
    if format != "qcow2" {
        return Err(Refusal::new(format!("Unknown file format '{format}'")));
    }
    check_backing_format(options)?;
    if options.get("data_file") == Some("") {
        return Err(not_created("", ENOENT));
    }
    let options = qcow2_options(options, secrets)?;
    options.validate().map_err(|_| {
        if let Some(refusal) = bad_backing(&options) {
            return refusal;
        }
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

/// Fails for a format of a backing file that QEMU has no driver for, or where no such file is named.
fn check_backing_format(options: &FormatOptions) -> Result<(), Refusal> {
    match options.get("backing_fmt") {
        Some(format) if !DRIVERS.contains(&format) => Err(not_accepted("backing-fmt", format)),
        Some(_) if options.get("backing_file").is_none() => {
            Err(Refusal::new("Backing format cannot be used without backing file"))
        }
        _ => Ok(()),
    }
}

/// Why a new image cannot name this backing file, if it could be made without.
fn bad_backing(options: &CreateOptions) -> Option<Refusal> {
    let BackingReference { name, format } = options.backing.as_ref()?;
    let without = CreateOptions {
        backing: None,
        ..options.clone()
    };
    without.validate().ok()?;
    // What is not too long by itself does not fit into the first cluster.
    let number = if name.len() > MAX_BACKING_NAME {
        EINVAL
    } else {
        ENOSPC
    };
    let why = host_text(&std::io::Error::from_raw_os_error(number));
    let format = format.as_deref().unwrap_or_default();
    Some(Refusal::new(format!(
        "Could not assign backing file '{name}' with format '{format}': {why}"
    )))
}

pub(super) fn raw_preallocation(options: &FormatOptions) -> Result<Preallocation, Refusal> {
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
