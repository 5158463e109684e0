//! Making an image.
//!
//! The header is written last, after everything else is on the disk: a file that is only half an image starts
//! with zeros and is refused by every reader.

mod layout;
mod stream;
#[cfg(test)]
mod tests;

use block::{
    BackingReference, DataFileReference, Error, ErrorKind, Passphrase, Preallocation, Result, Storage,
    ZeroMode,
};
use byteorder::{BE, ByteOrder};
use encryption::{Luks, LuksOptions};

pub(crate) use self::layout::{ENTRY, refcount_clusters};
use self::layout::{Layout, Mapped, Run};
pub use self::stream::Streamed;
use crate::address::{ClusterIndex, HostOffset};
use crate::compression::CompressionType;
use crate::entry::{L1Entry, L2Entry};
use crate::extension::{EncryptionHeader, Extensions};
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::{
    Geometry, MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS, MIN_CLUSTER_BITS_EXTENDED_L2,
};
use crate::header::{Encryption, Header, MAX_BACKING_NAME, Version, new_feature_names, new_later_fields};
use crate::refcount;

/// Bytes written at once.
const CHUNK: u64 = 1 << 20;

/// What a new image is to be. The default is an empty disk, with `qemu-img create`'s other defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Length of the virtual disk in bytes; a multiple of 512.
    pub size: u64,
    /// Version of the format.
    pub version: Version,
    /// log2 of the cluster size, 9..=21.
    pub cluster_bits: u32,
    /// log2 of the width of a refcount in bits, 0..=6; 4 in version 2.
    pub refcount_order: u32,
    /// How compressed clusters are to be compressed; zlib in version 2.
    pub compression: CompressionType,
    /// Refcount updates may be postponed; not in version 2.
    pub lazy_refcounts: bool,
    /// L2 entries are 128 bits wide, and clusters are allocated in 32 subclusters; not in version 2, and from
    /// clusters of 16 KiB on.
    pub extended_l2: bool,
    /// The backing file. It is only named: whether it exists, and how long it is, is the caller's business.
    pub backing: Option<BackingReference>,
    /// The file that is to hold the guest's data, by name; not in version 2, nor a raw one with a backing file. It
    /// is made by the caller: `size` bytes long and, if it is raw, with zeros in it.
    pub data_file: Option<DataFileReference>,
    /// What is laid out in advance; in an image with a backing file only with extended L2 entries, where a cluster
    /// can have its place and read from the backing file all the same. The tables of a raw data file always are.
    pub preallocation: Preallocation,
    /// How the data is encrypted; not with a raw data file, and in version 2 not preallocated.
    pub encryption: Option<NewEncryption>,
}

/// How the data of a new image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEncryption {
    /// The method.
    pub method: EncryptionMethod,
    /// What opens the image.
    pub passphrase: Passphrase,
}

/// A method of encryption ("Data encryption").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionMethod {
    /// AES-CBC with the passphrase for a key. It protects badly, and is for who must have it.
    Aes,
    /// LUKS version 1.
    Luks(LuksOptions),
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            version: Version::V3,
            cluster_bits: 16,
            refcount_order: 4,
            compression: CompressionType::Zlib,
            lazy_refcounts: false,
            extended_l2: false,
            backing: None,
            data_file: None,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }
}

impl CreateOptions {
    /// Checks that there can be such an image.
    ///
    /// # Errors
    /// `InvalidInput`, naming the option, its value and what it may be.
    pub fn validate(&self) -> Result<()> {
        self.plan().map(|_| ())
    }

    /// The image's shape.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.extended_l2,
            data_file: self.data_file.is_some(),
        }
    }

    /// Whether L2 tables are laid out. A raw data file is mapped from the start, so that what is written to it by
    /// itself is seen in the image too.
    fn maps_everything(&self) -> bool {
        self.preallocation != Preallocation::Off || self.data_file.as_ref().is_some_and(|file| file.raw)
    }

    /// Where everything goes, and the header that says so.
    fn plan(&self) -> Result<(Layout, Vec<u8>)> {
        let mapped = if self.maps_everything() {
            Mapped::all(self)
        } else {
            Mapped::default()
        };
        self.plan_mapping(mapped)
    }

    /// The same, with so much of the disk mapped.
    fn plan_mapping(&self, mapped: Mapped) -> Result<(Layout, Vec<u8>)> {
        self.check()?;
        let layout = Layout::of(self, mapped)?;
        let header = self.header(&layout).encode()?;
        Ok((layout, header))
    }

    /// Checks everything that does not depend on the layout.
    fn check(&self) -> Result<()> {
        let v2 = self.version == Version::V2;
        if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&self.cluster_bits) {
            return Err(Error::invalid(format!(
                "a cluster size of 2^{} bytes: it must be from 512 bytes to 2 MiB",
                self.cluster_bits
            )));
        }
        if self.refcount_order > MAX_REFCOUNT_ORDER {
            return Err(Error::invalid(format!(
                "refcounts of 2^{} bits: they must be from 1 to 64 bits wide",
                self.refcount_order
            )));
        }
        let too_new = match () {
            () if !v2 => None,
            () if self.refcount_order != 4 => Some("refcounts of another width than 16 bits"),
            () if self.lazy_refcounts => Some("lazy refcounts"),
            () if self.extended_l2 => Some("extended L2 entries"),
            () if self.compression != CompressionType::Zlib => Some("other compression than zlib"),
            () if self.data_file.is_some() => Some("external data files"),
            () => None,
        };
        if let Some(feature) = too_new {
            let message = format!("version 2 (compat=0.10) has no {feature}");
            return Err(Error::invalid(message).with_hint("use version 3 (compat=1.1)"));
        }
        if self.extended_l2 && self.cluster_bits < MIN_CLUSTER_BITS_EXTENDED_L2 {
            let message = format!(
                "extended L2 entries with a cluster size of {} bytes: it must be at least 16 KiB",
                1u64 << self.cluster_bits
            );
            return Err(Error::invalid(message));
        }
        if !self.size.is_multiple_of(512) {
            return Err(Error::invalid(format!(
                "a disk of {} bytes: its size must be a multiple of 512",
                self.size
            )));
        }
        self.check_data_file()?;
        self.check_encryption()?;
        self.check_backing()
    }

    fn check_data_file(&self) -> Result<()> {
        let Some(file) = &self.data_file else {
            return Ok(());
        };
        let named = file
            .name
            .as_ref()
            .is_some_and(|name| !name.is_empty() && !name.contains('\0'));
        if !named {
            return Err(Error::invalid(
                "the data file has no name, or one with a NUL in it",
            ));
        }
        if file.raw && self.backing.is_some() {
            let message = "a raw data file holds the whole disk: such an image cannot have a backing file";
            return Err(Error::invalid(message).with_hint("leave out data_file_raw"));
        }
        Ok(())
    }

    /// Bytes of the header of LUKS and its key material.
    pub(crate) fn encryption_header_len(&self) -> u64 {
        match &self.encryption {
            Some(NewEncryption {
                method: EncryptionMethod::Luks(luks),
                ..
            }) => luks.area_len(),
            _ => 0,
        }
    }

    fn check_encryption(&self) -> Result<()> {
        let raw = self.data_file.as_ref().is_some_and(|file| file.raw);
        let no_zeros = self.version == Version::V2 && self.preallocation != Preallocation::Off;
        let (message, hint) = match &self.encryption {
            Some(_) if raw => (
                "a raw data file is the disk as it is: it cannot be encrypted",
                "leave out data_file_raw",
            ),
            Some(_) if no_zeros => (
                "an encrypted image of version 2 (compat=0.10) cannot be preallocated: it has no zero clusters",
                "use version 3 (compat=1.1)",
            ),
            _ => return Ok(()),
        };
        Err(Error::invalid(message).with_hint(hint))
    }

    fn check_backing(&self) -> Result<()> {
        let Some(backing) = &self.backing else {
            return Ok(());
        };
        let len = backing.name.len();
        if len == 0 || len > MAX_BACKING_NAME || backing.name.contains('\0') {
            return Err(Error::invalid(format!(
                "the name of the backing file has {len} bytes: it must have from 1 to 1023, and no NUL"
            )));
        }
        if self.preallocation != Preallocation::Off && !self.extended_l2 {
            let message = "an image with a backing file cannot be preallocated: nothing would be read from the backing file";
            return Err(
                Error::invalid(message).with_hint("with extended L2 entries it can be (extended_l2=on)")
            );
        }
        Ok(())
    }

    fn header(&self, layout: &Layout) -> Header {
        let v3 = self.version >= Version::V3;
        let (compressed, lazy) = (self.compression != CompressionType::Zlib, self.lazy_refcounts);
        let mut incompatible = IncompatibleFeatures::empty();
        incompatible.set(IncompatibleFeatures::COMPRESSION_TYPE, compressed);
        incompatible.set(IncompatibleFeatures::EXTENDED_L2, self.extended_l2);
        incompatible.set(IncompatibleFeatures::EXTERNAL_DATA_FILE, self.data_file.is_some());
        let raw = self.data_file.as_ref().is_some_and(|file| file.raw);
        let mut autoclear = AutoclearFeatures::empty();
        autoclear.set(AutoclearFeatures::RAW_EXTERNAL_DATA, raw);
        let mut compatible = CompatibleFeatures::empty();
        compatible.set(CompatibleFeatures::LAZY_REFCOUNTS, lazy);
        let mut header = Header {
            version: self.version,
            geometry: layout.geometry,
            size: self.size,
            encryption: match self.encryption.as_ref().map(|encryption| encryption.method) {
                None => Encryption::None,
                Some(EncryptionMethod::Aes) => Encryption::Aes,
                Some(EncryptionMethod::Luks(_)) => Encryption::Luks,
            },
            l1_entries: layout.l1_entries as u32,
            l1_offset: match layout.l1.count {
                0 => HostOffset(0),
                _ => layout.host(layout.l1.start),
            },
            refcount_table_offset: layout.host(layout.refcount_table.start),
            refcount_table_clusters: layout.refcount_table.count as u32,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible,
            compatible,
            autoclear,
            compression: self.compression,
            later_fields: if v3 { new_later_fields() } else { Vec::new() },
            extensions: Extensions {
                encryption_header: (layout.encryption.count > 0).then(|| EncryptionHeader {
                    offset: layout.host(layout.encryption.start),
                    len: self.encryption_header_len(),
                }),
                data_file: self.data_file.as_ref().and_then(|file| file.name.clone()),
                feature_names: v3.then(|| new_feature_names(self.cluster_bits)).flatten(),
                ..Extensions::default()
            },
            backing_name: None,
        };
        header.set_backing(self.backing.clone());
        header
    }
}

/// Makes an image in `storage`, whatever was there before. It is durable when this returns.
///
/// # Errors
/// `InvalidInput` as [`CreateOptions::validate`], with nothing written; `Io`, `NoSpace`, and what is in `storage`
/// is then no image.
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let named = |error: Error| error.with_path_of(storage.path());
    let (layout, header) = options.plan().map_err(named)?;
    clear(storage)?;
    write_refcounts(storage, &layout)?;
    write_encryption_header(storage, &layout, options)?;
    if layout.l2.count > 0 {
        write_l1(storage, &layout)?;
        write_l2(storage, &layout, options)?;
        if layout.data.count > 0 {
            preallocate(storage, &layout, options.preallocation)?;
        }
    } else if layout.l1.count > 0 {
        let l1 = layout.host(layout.l1.start);
        storage.zero(l1.0, layout.l1_entries * ENTRY, ZeroMode::Unmap)?;
    }
    if storage.len()? < layout.file_len() {
        storage.set_len(layout.file_len())?;
    }
    storage.sync_data()?;
    storage.write_all_at(&header, 0)?;
    storage.sync_data()
}

/// Makes sure that no old header is found while the new image is half made.
fn clear(storage: &dyn Storage) -> Result<()> {
    if storage.is_empty()? {
        return Ok(());
    }
    match storage.set_len(0) {
        // A block device keeps its length, and its bytes.
        Err(error) if error.kind() == ErrorKind::Unsupported => storage.write_all_at(&[0; 512], 0)?,
        result => result?,
    }
    storage.sync_data()
}

/// Writes the refcount table and its blocks: every cluster in front of the image's end is in use, once.
fn write_refcounts(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    let geometry = layout.geometry;
    let table = layout.refcount_blocks.iter().map(|block| layout.host(*block).0);
    write_entries(storage, layout, layout.refcount_table, table)?;
    let per_block = 1u64 << geometry.refcount_block_bits();
    let mut block = vec![0; geometry.cluster_size() as usize];
    let mut ones = 0;
    for (number, cluster) in layout.refcount_blocks.iter().enumerate() {
        let first = number as u64 * per_block;
        let used = layout.end().0.saturating_sub(first).min(per_block);
        if used < ones {
            block.fill(0);
            ones = 0;
        }
        for index in ones..used {
            refcount::write(&mut block, geometry.refcount_order, index as usize, 1);
        }
        ones = used;
        storage.write_all_at(&block, layout.host(*cluster).0)?;
    }
    Ok(())
}

/// Writes the header of LUKS with one key, and zeros behind it.
fn write_encryption_header(storage: &dyn Storage, layout: &Layout, options: &CreateOptions) -> Result<()> {
    let Some(NewEncryption {
        method: EncryptionMethod::Luks(luks),
        passphrase,
    }) = &options.encryption
    else {
        return Ok(());
    };
    let (_, mut area) = Luks::format(luks, passphrase.as_bytes())?;
    area.resize(
        (layout.encryption.count << layout.geometry.cluster_bits) as usize,
        0,
    );
    storage.write_all_at(&area, layout.host(layout.encryption.start).0)
}

fn write_l1(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    let tables = (layout.l2.start.0..layout.l2.end().0).map(|table| {
        let host = layout.host(ClusterIndex(table));
        L1Entry::Table { host, copied: true }.encode()
    });
    write_entries(storage, layout, layout.l1, tables)
}

/// The L2 tables lie one after the other, and so do the clusters that they map: here, or in the data file.
fn write_l2(storage: &dyn Storage, layout: &Layout, options: &CreateOptions) -> Result<()> {
    let raw = options.data_file.as_ref().is_some_and(|file| file.raw);
    // On an encrypted disk the zeros in the file would not read as such.
    let zero = match options.encryption {
        Some(_) if !layout.geometry.extended_l2 => layout.geometry.all_subclusters(),
        _ => 0,
    };
    let clusters = layout.mapped.start.0..layout.mapped.end().0;
    let clusters = clusters.flat_map(|cluster| {
        let host = layout.host(ClusterIndex(cluster));
        let entry = if raw {
            L2Entry::allocated(host, layout.geometry)
        } else {
            L2Entry::preallocated(host, zero, layout.geometry)
        };
        entry.stored(layout.geometry)
    });
    write_entries(storage, layout, layout.l2, clusters)
}

/// Fills a run of clusters with entries, and zeros behind them.
fn write_entries(
    storage: &dyn Storage,
    layout: &Layout,
    run: Run,
    mut entries: impl Iterator<Item = u64>,
) -> Result<()> {
    let (mut at, end) = (layout.host(run.start).0, layout.host(run.end()).0);
    let mut chunk = vec![0; CHUNK.min(end - at) as usize];
    while at < end {
        let len = CHUNK.min(end - at) as usize;
        for bytes in chunk[..len].chunks_exact_mut(ENTRY as usize) {
            BE::write_u64(bytes, entries.next().unwrap_or(0));
        }
        storage.write_all_at(&chunk[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// Makes the data clusters read as zeros, with as much room as was asked for.
fn preallocate(storage: &dyn Storage, layout: &Layout, preallocation: Preallocation) -> Result<()> {
    let (start, end) = (layout.host(layout.data.start).0, layout.host(layout.data.end()).0);
    match preallocation {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => storage.zero(start, end - start, ZeroMode::Unmap),
        Preallocation::Falloc => storage.zero(start, end - start, ZeroMode::Allocate),
        Preallocation::Full => write_entries(storage, layout, layout.data, std::iter::empty()),
    }
}
