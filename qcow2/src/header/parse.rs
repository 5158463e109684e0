//! From the bytes of the first cluster to a [`Header`]. Names in here are the specification's.

use std::fmt::Write;

use block::{Error, Result, escape};
use byteorder::{BE, ByteOrder};

use super::{
    COMPRESSION_TYPE, Encryption, Header, MAGIC, MAX_BACKING_NAME, V2_LENGTH, V3_MIN_LENGTH, Version, check,
};
use crate::address::HostOffset;
use crate::compression::CompressionType;
use crate::corruption::Corruption;
use crate::extension::{Extensions, find_feature_names};
use crate::feature::{AutoclearFeatures, CompatibleFeatures, FeatureKind, IncompatibleFeatures};
use crate::geometry::{Geometry, MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS};

/// Without the length of the file, it is not checked whether tables lie in it and apart.
pub(super) fn parse(bytes: &[u8], file_len: Option<u64>) -> Result<Header> {
    let version = version(bytes)?;
    require(bytes, minimum_length(version))?;
    let cluster_bits = cluster_bits(bytes)?;
    // Nothing below looks further than the first cluster.
    let bytes = &bytes[..bytes.len().min(1 << cluster_bits)];
    let header_length = header_length(bytes, version)?;
    let features = Features::read(bytes, version);
    let (name_offset, backing_name) = backing_name(bytes, header_length, cluster_bits)?;
    // The backing file's name, where there is one, ends the extensions.
    let extensions_end = name_offset.unwrap_or(bytes.len());
    features.refuse_unknown(bytes, header_length, extensions_end)?;

    let header = Header {
        version,
        geometry: Geometry {
            cluster_bits,
            refcount_order: refcount_order(bytes, version)?,
            extended_l2: features.incompatible.contains(IncompatibleFeatures::EXTENDED_L2),
            data_file: features
                .incompatible
                .contains(IncompatibleFeatures::EXTERNAL_DATA_FILE),
        },
        size: BE::read_u64(&bytes[24..]),
        encryption: encryption(bytes)?,
        l1_entries: BE::read_u32(&bytes[36..]),
        l1_offset: HostOffset(BE::read_u64(&bytes[40..])),
        refcount_table_offset: HostOffset(BE::read_u64(&bytes[48..])),
        refcount_table_clusters: BE::read_u32(&bytes[56..]),
        snapshot_count: BE::read_u32(&bytes[60..]),
        snapshots_offset: HostOffset(BE::read_u64(&bytes[64..])),
        incompatible: features.incompatible,
        compatible: features.compatible,
        autoclear: features.autoclear,
        compression: compression(bytes, header_length, features.incompatible)?,
        later_fields: bytes
            .get(COMPRESSION_TYPE + 1..header_length)
            .unwrap_or_default()
            .to_vec(),
        extensions: Extensions::decode(bytes, header_length, extensions_end)?,
        backing_name,
    };
    match file_len {
        Some(file_len) => check::check(&header, file_len)?,
        None => check::check_damaged(&header)?,
    }
    Ok(header)
}

fn version(bytes: &[u8]) -> Result<Version> {
    if !Header::probe(bytes) {
        let start = bytes.get(..MAGIC.len()).unwrap_or(bytes);
        let message = match start {
            [] => "not a qcow2 image: it is empty".into(),
            _ => {
                format!("not a qcow2 image: it starts with {start:02x?} and not with {MAGIC:02x?} (QFI\\xfb)")
            }
        };
        return Err(Error::invalid(message).with_hint("name its real format with -f"));
    }
    require(bytes, 8)?;
    match BE::read_u32(&bytes[4..]) {
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        other => Err(Error::unsupported(format!(
            "the image is qcow version {other}; versions 2 and 3 are supported"
        ))),
    }
}

fn minimum_length(version: Version) -> usize {
    match version {
        Version::V2 => V2_LENGTH,
        Version::V3 => V3_MIN_LENGTH,
    }
}

fn require(bytes: &[u8], need: usize) -> Result<(), Corruption> {
    if bytes.len() >= need {
        return Ok(());
    }
    Err(Corruption::CutOff {
        what: "the header",
        need: need as u64,
        have: bytes.len() as u64,
    })
}

fn cluster_bits(bytes: &[u8]) -> Result<u32, Corruption> {
    let cluster_bits = BE::read_u32(&bytes[20..]);
    if (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        return Ok(cluster_bits);
    }
    Err(Corruption::HeaderField {
        field: "cluster_bits",
        value: cluster_bits.into(),
        rule: "must be from 9 (512 bytes) to 21 (2 MiB)",
    })
}

fn header_length(bytes: &[u8], version: Version) -> Result<usize, Corruption> {
    if version == Version::V2 {
        return Ok(V2_LENGTH);
    }
    let length = BE::read_u32(&bytes[100..]);
    if length as usize >= V3_MIN_LENGTH && length.is_multiple_of(8) && length as usize <= bytes.len() {
        return Ok(length as usize);
    }
    Err(Corruption::HeaderField {
        field: "header_length",
        value: length.into(),
        rule: "must be a multiple of 8 from 104 to the end of the first cluster",
    })
}

fn refcount_order(bytes: &[u8], version: Version) -> Result<u32, Corruption> {
    let order = match version {
        Version::V2 => 4,
        Version::V3 => BE::read_u32(&bytes[96..]),
    };
    if order <= MAX_REFCOUNT_ORDER {
        return Ok(order);
    }
    Err(Corruption::HeaderField {
        field: "refcount_order",
        value: order.into(),
        rule: "must be at most 6 (64 bits)",
    })
}

fn encryption(bytes: &[u8]) -> Result<Encryption> {
    match BE::read_u32(&bytes[32..]) {
        0 => Ok(Encryption::None),
        1 => Ok(Encryption::Aes),
        2 => Ok(Encryption::Luks),
        other => Err(Error::unsupported(format!(
            "the image is encrypted with method {other}, which is unknown"
        ))),
    }
}

fn compression(
    bytes: &[u8],
    header_length: usize,
    incompatible: IncompatibleFeatures,
) -> Result<CompressionType> {
    let stored = if header_length > COMPRESSION_TYPE {
        bytes[COMPRESSION_TYPE]
    } else {
        0
    };
    if incompatible.contains(IncompatibleFeatures::COMPRESSION_TYPE) != (stored != 0) {
        return Err(Error::from(Corruption::HeaderField {
            field: "compression_type",
            value: stored.into(),
            rule: "must be non-zero with incompatible feature bit 3, and zero without",
        }));
    }
    CompressionType::decode(stored).ok_or_else(|| {
        Error::unsupported(format!(
            "the image uses compression type {stored}, which is unknown (0 is zlib, 1 is zstd)"
        ))
    })
}

/// Where the backing file's name starts, if there is one, and the name.
fn backing_name(
    bytes: &[u8],
    header_length: usize,
    cluster_bits: u32,
) -> Result<(Option<usize>, Option<String>)> {
    let offset = BE::read_u64(&bytes[8..]);
    let len = BE::read_u32(&bytes[16..]) as usize;
    if offset == 0 {
        return Ok((None, None));
    }
    if len > MAX_BACKING_NAME {
        return Err(Error::from(Corruption::HeaderField {
            field: "backing_file_size",
            value: len as u64,
            rule: "must be at most 1023",
        }));
    }
    let place = Corruption::HeaderOffset {
        field: "backing_file_offset",
        offset: HostOffset(offset),
        rule: "the name must lie behind the header and in the first cluster",
    };
    let start = usize::try_from(offset)
        .ok()
        .filter(|start| (header_length..=1 << cluster_bits).contains(start))
        .ok_or_else(|| place.clone())?;
    let name = bytes.get(start..start + len).ok_or(place)?;
    if name.is_empty() {
        return Ok((Some(start), None));
    }
    match str::from_utf8(name) {
        Ok(text) if !text.contains('\0') => Ok((Some(start), Some(text.to_owned()))),
        _ => Err(Error::unsupported(
            "the name of the backing file is not UTF-8, or has a NUL in it",
        )),
    }
}

/// The three sets of feature bits.
struct Features {
    incompatible: IncompatibleFeatures,
    compatible: CompatibleFeatures,
    autoclear: AutoclearFeatures,
}

impl Features {
    fn read(bytes: &[u8], version: Version) -> Self {
        let field = |at: usize| match version {
            Version::V2 => 0,
            Version::V3 => BE::read_u64(&bytes[at..]),
        };
        Self {
            incompatible: IncompatibleFeatures::from_bits_retain(field(72)),
            compatible: CompatibleFeatures::from_bits_retain(field(80)),
            autoclear: AutoclearFeatures::from_bits_retain(field(88)),
        }
    }

    /// "An implementation must fail to open an image if an unknown bit is set", with the names that the image's
    /// own table gives them.
    fn refuse_unknown(&self, bytes: &[u8], extensions: usize, end: usize) -> Result<()> {
        let unknown = self.incompatible.bits() & !IncompatibleFeatures::all().bits();
        if unknown == 0 {
            return Ok(());
        }
        let names = find_feature_names(bytes, extensions, end);
        let mut message = String::from("the image uses features that this build does not know:");
        for bit in (0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1) {
            let separator = if message.ends_with(':') { " " } else { ", " };
            message.push_str(separator);
            let name = names
                .as_ref()
                .and_then(|names| names.name(FeatureKind::Incompatible, bit));
            // Writing to a String cannot fail.
            let _ = match name {
                Some(name) => write!(message, "\"{}\" (incompatible bit {bit})", escape(&name)),
                None => write!(message, "incompatible bit {bit}"),
            };
        }
        Err(Error::unsupported(message).with_hint("open it with the program that made it"))
    }
}
