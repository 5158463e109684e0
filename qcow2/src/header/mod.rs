//! The header: what an image says about itself in its first cluster ("Header").
//!
//! The layout, for version 3; version 2 ends its fixed fields at byte 72:
//!
//! ```text
//! 0          72         104         header_length   ...              ...
//! | version 2 | version 3 | later ...| extensions ...| backing file name |  rest of the first cluster: unused
//! ```
//!
//! Every fixed field that has a meaning here lies in bytes 0..112, so in the first 512-byte sector: a torn write
//! of the header leaves the old fields or the new ones, never some of both. What lies further back is replaced in
//! steps ([`rewrite`]). Parsing is a pure function of the
//! first cluster and the file's length, and checks everything that can be checked without reading further;
//! whoever has a [`Header`] may compute with its fields. What a header holds and this crate does not know (fields
//! beyond byte 105, compatible and autoclear bits, extensions) is kept byte for byte.

mod check;
mod encode;
mod parse;
mod rewrite;
#[cfg(test)]
mod tests;
mod version;

pub(crate) use rewrite::{SectorWrite, plan};
pub(crate) use version::{new_feature_names, new_later_fields};

use block::{BackingReference, DataFileReference, Error, ErrorKind, Result, Storage};
use byteorder::{BE, ByteOrder};

use crate::address::HostOffset;
use crate::compression::CompressionType;
use crate::extension::Extensions;
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::{Geometry, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS};
use crate::snapshot::Snapshot;

/// First bytes of every qcow2 image: `QFI` and 0xfb.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Longest name of a backing file, in bytes.
pub(crate) const MAX_BACKING_NAME: usize = 1023;
/// Most internal snapshots (QEMU's limit, kept).
pub(crate) const MAX_SNAPSHOTS: u32 = 65_536;

/// The autoclear features that stay true when this crate writes.
const KEPT_UP: AutoclearFeatures = AutoclearFeatures::BITMAPS.union(AutoclearFeatures::RAW_EXTERNAL_DATA);

/// Bytes that the fixed fields of a version 2 header take.
const V2_LENGTH: usize = 72;
/// Bytes that the fixed fields of a version 3 header take at least.
const V3_MIN_LENGTH: usize = 104;
/// Where `compression_type` is; what follows it has no meaning yet.
const COMPRESSION_TYPE: usize = 104;
/// First read of an unknown image: enough for the first cluster of most.
const FIRST_READ: u64 = 64 << 10;

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `compat=0.10`: no feature bits, no zero clusters, 16-bit refcounts.
    V2,
    /// `compat=1.1`.
    V3,
}

/// How guest data is encrypted ("Data encryption").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encryption {
    /// Not at all.
    None,
    /// AES-CBC, without any header; obsolete.
    Aes,
    /// LUKS, whose header an extension points to.
    Luks,
}

/// A header that passed every check ([`parse`](Self::parse)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// Cluster size, refcount width and kind of L2 entries.
    pub geometry: Geometry,
    /// Length of the virtual disk in bytes.
    pub size: u64,
    /// How guest data is encrypted.
    pub encryption: Encryption,
    /// Entries in the active L1 table; enough for `size`.
    pub l1_entries: u32,
    /// Where the active L1 table starts. Means nothing if it has no entries.
    pub l1_offset: HostOffset,
    /// Where the refcount table starts.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table, at least 1.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table starts. Means nothing without snapshots.
    pub snapshots_offset: HostOffset,
    /// Features that a reader must know; no unknown ones, and none in version 2.
    pub incompatible: IncompatibleFeatures,
    /// Features that a reader may ignore, unknown ones included.
    pub compatible: CompatibleFeatures,
    /// Features that a writer must keep up or clear, unknown ones included.
    pub autoclear: AutoclearFeatures,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Bytes from 105 to the end of the fixed header: padding, and fields that have no meaning here. Empty in
    /// version 2, and in version 3 with the shortest header.
    pub later_fields: Vec<u8>,
    /// Header extensions.
    pub extensions: Extensions,
    /// Name of the backing file as stored, never empty. See [`backing`](Self::backing).
    pub backing_name: Option<String>,
}

impl Header {
    /// Whether a file that starts with `head` says that it is a qcow2 image.
    pub fn probe(head: &[u8]) -> bool {
        head.starts_with(&MAGIC)
    }

    /// Parses a header from the first cluster of a file that is `file_len` bytes long. `bytes` may be longer or,
    /// in a file that is shorter than a cluster, shorter.
    ///
    /// What parses is sound but not necessarily something this crate can work with: see
    /// [`unsupported`](Self::unsupported).
    ///
    /// # Errors
    /// `InvalidInput` for what is no qcow2 image, `Unsupported` for a version, encryption, compression or
    /// incompatible feature that has no name here, `Corrupt` for everything that contradicts the format or
    /// exceeds a limit.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<Self> {
        parse::parse(bytes, Some(file_len))
    }

    /// Reads and parses the header of an image.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), with the storage's path; `Io`.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        Self::read_with(storage, Self::parse)
    }

    /// Reads the header of an image that is to be checked or repaired: tables may lie past the end of the file, over
    /// each other, or at 0; there may be no refcount table and more snapshots than the limit allows. All else is as
    /// for [`read`](Self::read).
    pub(crate) fn read_damaged(storage: &dyn Storage) -> Result<Self> {
        Self::read_with(storage, |bytes, _| parse::parse(bytes, None))
    }

    fn read_with(storage: &dyn Storage, parse: impl FnOnce(&[u8], u64) -> Result<Self>) -> Result<Self> {
        let file_len = storage.len()?;
        let mut bytes = vec![0; file_len.min(FIRST_READ) as usize];
        storage.read_exact_at(&mut bytes, 0)?;
        let first_cluster = file_len.min(first_cluster_len(&bytes)) as usize;
        if let Some(read) = first_cluster.checked_sub(bytes.len()) {
            let start = bytes.len();
            bytes.resize(start + read, 0);
            storage.read_exact_at(&mut bytes[start..], start as u64)?;
        }
        parse(&bytes, file_len).map_err(|error| error.with_path_of(storage.path()))
    }

    /// The header, its extensions and the backing file's name, as they lie in the file from offset 0; zeros fill
    /// the last 512-byte sector.
    ///
    /// Writing these bytes replaces an older header. Bytes of that which lie beyond them keep no meaning.
    ///
    /// # Errors
    /// `InvalidInput` if it does not fit the first cluster, or is a header that [`parse`](Self::parse) refuses or
    /// reads differently.
    pub fn encode(&self) -> Result<Vec<u8>> {
        encode::encode(self)
    }

    /// Length of the fixed header in bytes: 72 in version 2, a multiple of 8 from 104 on in version 3.
    pub fn header_length(&self) -> usize {
        match (self.version, self.later_fields.len()) {
            (Version::V2, _) => V2_LENGTH,
            (Version::V3, 0) => V3_MIN_LENGTH,
            (Version::V3, later) => COMPRESSION_TYPE + 1 + later,
        }
    }

    /// The backing file, if the image has one.
    pub fn backing(&self) -> Option<BackingReference> {
        Some(BackingReference {
            name: self.backing_name.clone()?,
            format: self.extensions.backing_format.clone(),
        })
    }

    /// Gives the image another backing file, or none. [`encode`](Self::encode) tells whether its name fits.
    pub fn set_backing(&mut self, backing: Option<BackingReference>) {
        (self.backing_name, self.extensions.backing_format) = match backing {
            Some(BackingReference { name, format }) => (Some(name), format),
            None => (None, None),
        };
    }

    /// Makes the disk of a snapshot the active one, for who wants to read it.
    pub(crate) fn show(&mut self, snapshot: &Snapshot) {
        self.l1_offset = snapshot.l1_offset;
        self.l1_entries = snapshot.l1_entries;
        self.size = snapshot.size;
    }

    /// The external data file, if the image has one.
    pub fn data_file(&self) -> Option<DataFileReference> {
        self.incompatible
            .contains(IncompatibleFeatures::EXTERNAL_DATA_FILE)
            .then(|| DataFileReference {
                name: self.extensions.data_file.clone(),
                raw: self.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA),
            })
    }

    /// Whether bit 0 of an L2 entry means that the cluster reads as zeros.
    pub fn has_zero_flag(&self) -> bool {
        self.version >= Version::V3 && !self.geometry.extended_l2
    }

    /// Clears the autoclear bits of features that this crate's writer does not keep up. Returns whether there were
    /// any: then the header must reach the disk before anything else is written.
    pub fn clear_autoclear(&mut self) -> bool {
        let any = !KEPT_UP.contains(self.autoclear);
        self.autoclear &= KEPT_UP;
        any
    }

    /// Why this crate cannot read the image, or, with `write`, write to it.
    pub fn unsupported(&self, write: bool) -> Option<Error> {
        if let Some(cannot) = self.unsupported_encryption() {
            return Some(cannot);
        }
        if write && self.geometry.data_file && self.snapshot_count > 0 {
            let message =
                "the image has an external data file and internal snapshots, which exclude each other";
            return Some(Error::unsupported(message).with_hint("copy it with `imgtool convert`"));
        }
        let corrupt = write && self.has(IncompatibleFeatures::CORRUPT);
        corrupt.then(|| {
            let message = "the image is marked corrupt: it can be read, and not written to";
            Error::new(ErrorKind::Corrupt, message).with_hint("`imgtool check -r all` repairs it")
        })
    }

    /// What encryption excludes. Nobody makes such images.
    fn unsupported_encryption(&self) -> Option<Error> {
        let raw = self.autoclear.contains(AutoclearFeatures::RAW_EXTERNAL_DATA);
        let message = match self.encryption {
            Encryption::None => return None,
            _ if raw => {
                "the image is encrypted, and says that its data file is a raw disk, which exclude each other"
            }
            _ if !self.size.is_multiple_of(encryption::SECTOR as u64) => {
                "the image is encrypted, and does not end with a whole sector"
            }
            _ => return None,
        };
        Some(Error::unsupported(message))
    }

    fn has(&self, feature: IncompatibleFeatures) -> bool {
        self.incompatible.contains(feature)
    }
}

/// Length of the first cluster of the image that starts with `bytes`; 0 if that cannot be told.
fn first_cluster_len(bytes: &[u8]) -> u64 {
    match bytes.get(20..24).map(BE::read_u32) {
        Some(bits @ MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS) if Header::probe(bytes) => 1 << bits,
        _ => 0,
    }
}
