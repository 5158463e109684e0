//! What an image is to be, and why it cannot be.

use block::{BackingReference, BlockDevice, Error, Result, escape};

use super::tables::Seen;
use super::{Amendment, NewBacking};
use crate::compression::CompressionType;
use crate::feature::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures};
use crate::geometry::MAX_REFCOUNT_ORDER;
use crate::header::{Encryption, Header, MAX_BACKING_NAME, Version};
use crate::image::Image;
use crate::snapshot::Snapshot;

/// What becomes of an image.
#[derive(Debug)]
pub(super) struct Target<'a> {
    amendment: &'a Amendment,
    /// As it is.
    old: Header,
    version: Version,
    refcount_order: u32,
    compression: CompressionType,
    size: u64,
}

const USE_V3: &str = "make it one of version 3: compat=1.1";

impl<'a> Target<'a> {
    /// What `amendment` makes of `image`.
    ///
    /// # Errors
    /// `InvalidInput`, `Unsupported` for what there cannot be, as far as the header tells.
    pub(super) fn of(image: &Image, amendment: &'a Amendment) -> Result<Self> {
        let old = image.header();
        let target = Self {
            amendment,
            version: amendment.version.unwrap_or(old.version),
            refcount_order: amendment.refcount_order.unwrap_or(old.geometry.refcount_order),
            compression: amendment.compression.unwrap_or(old.compression),
            size: amendment.size.unwrap_or(old.size),
            old,
        };
        target.check_version()?;
        target.check_size(image)?;
        target.check_data_file()?;
        target.check_backing()?;
        Ok(target)
    }

    pub(super) fn upgrades(&self) -> bool {
        self.version > self.old.version
    }

    pub(super) fn downgrades(&self) -> bool {
        self.version < self.old.version
    }

    /// The width of refcounts, if it changes.
    pub(super) fn new_order(&self) -> Option<u32> {
        let order = self.refcount_order;
        (order != self.old.geometry.refcount_order).then_some(order)
    }

    pub(super) fn new_size(&self) -> Option<u64> {
        (self.size != self.old.size).then_some(self.size)
    }

    /// The data file stops to be one that is the disk by itself.
    pub(super) fn gives_up_raw(&self) -> bool {
        self.is_raw() && self.amendment.data_file_raw == Some(false)
    }

    /// Entries of L2 tables can be in the way.
    pub(super) fn looks_at_tables(&self) -> bool {
        self.version != self.old.version || self.compression != self.old.compression
    }

    /// What is unallocated may read as something else than zeros, before or after.
    pub(super) fn is_backed(&self) -> bool {
        self.old.backing_name.is_some() || matches!(self.amendment.backing, Some(NewBacking::File(_)))
    }

    pub(super) fn is_a_change(&self) -> bool {
        let mut new = self.old.clone();
        if self.upgrades() {
            return true;
        }
        self.apply(&mut new);
        new != self.old || self.new_size().is_some()
    }

    /// Makes a header, which is of version 3 already if it is to be, say everything but sizes and places.
    pub(super) fn apply(&self, header: &mut Header) {
        let amendment = self.amendment;
        header.geometry.refcount_order = self.refcount_order;
        if let Some(lazy) = amendment.lazy_refcounts {
            header.compatible.set(CompatibleFeatures::LAZY_REFCOUNTS, lazy);
        }
        if self.compression != self.old.compression {
            header.set_compression(self.compression);
        }
        match &amendment.backing {
            None => {}
            Some(NewBacking::Nothing) => header.set_backing(None),
            Some(NewBacking::File(reference)) => header.set_backing(Some(reference.clone())),
        }
        if let Some(name) = &amendment.data_file {
            header.extensions.data_file = Some(name.clone());
        }
        if self.gives_up_raw() {
            header.autoclear.remove(AutoclearFeatures::RAW_EXTERNAL_DATA);
        }
        if self.downgrades() {
            header.downgrade();
        }
    }

    fn is_raw(&self) -> bool {
        self.old.data_file().is_some_and(|file| file.raw)
    }

    /// What version 2 does not have.
    fn check_version(&self) -> Result<()> {
        if self.refcount_order > MAX_REFCOUNT_ORDER {
            return Err(Error::invalid(format!(
                "refcounts of 2^{} bits: they must be from 1 to 64 bits wide",
                self.refcount_order
            )));
        }
        if self.version >= Version::V3 {
            return Ok(());
        }
        let bits = 1 << self.refcount_order;
        if self.amendment.lazy_refcounts == Some(true) {
            return Err(not_in_v2("lazy refcounts", USE_V3));
        }
        if self.refcount_order != 4 {
            let what = format!("refcounts of {bits} bits, only of 16");
            return Err(not_in_v2(
                &what,
                self.hint_v2("change their width too: refcount_bits=16"),
            ));
        }
        if self.compression != CompressionType::Zlib {
            let hint = "if no cluster is compressed, change that too: compression_type=zlib";
            return Err(not_in_v2("compression with zstd", self.hint_v2(hint)));
        }
        if self.downgrades() && self.old.encryption != Encryption::None {
            let hint = "copy it: imgtool convert -O qcow2 -o compat=0.10,encrypt.format=luks";
            return Err(not_in_v2(
                "zero clusters, which an encrypted image may have",
                hint,
            ));
        }
        self.check_features()
    }

    /// What helps where version 2 has no such thing: `down`, if version 2 is what was asked for.
    fn hint_v2(&self, down: &'static str) -> &'static str {
        if self.downgrades() { down } else { USE_V3 }
    }

    /// What an image of version 3 can have that has to go by other means.
    fn check_features(&self) -> Result<()> {
        const CONVERT: &str = "copy it: imgtool convert -O qcow2 -o compat=0.10";
        let left = self.old.incompatible - IncompatibleFeatures::COMPRESSION_TYPE;
        let bitmaps = self.old.extensions.bitmaps.map_or(0, |bitmaps| bitmaps.count);
        if left.contains(IncompatibleFeatures::EXTENDED_L2) {
            return Err(not_in_v2("extended L2 entries", CONVERT));
        }
        if left.contains(IncompatibleFeatures::EXTERNAL_DATA_FILE) {
            return Err(not_in_v2("external data files", CONVERT));
        }
        if !left.is_empty() {
            let what = format!("the incompatible features {:#x}", left.bits());
            return Err(not_in_v2(
                &what,
                "`imgtool check -r all` repairs an image that is marked",
            ));
        }
        if self.old.autoclear.contains(AutoclearFeatures::BITMAPS) && bitmaps > 0 {
            let what = format!("bitmaps, and the image has {bitmaps}");
            return Err(not_in_v2(
                &what,
                "remove those that are not needed: imgtool bitmap --remove",
            ));
        }
        Ok(())
    }

    fn check_size(&self, image: &Image) -> Result<()> {
        let (old, new) = (self.old.size, self.size);
        if new < old {
            let message = format!(
                "the disk has {old} bytes, and {new} would cut off its last {}",
                old - new
            );
            let hint = "if nothing that is needed lies there: imgtool resize --shrink";
            return Err(Error::invalid(message).with_hint(hint));
        }
        if new != old && !new.is_multiple_of(512) {
            return Err(Error::invalid(format!("a qcow2 disk cannot be {new} bytes long"))
                .with_hint("give a multiple of 512"));
        }
        if new != old && self.old.backing_name.is_some() {
            if self.amendment.backing.is_some() {
                let message = "the size and the backing file cannot change in one run: what is added would show what the \
                               new backing file holds there";
                return Err(Error::invalid(message).with_hint("change the backing file first"));
            }
            if block::Overlay::backing(image).is_none() {
                let message = "the size cannot change while the image is open without its backing file";
                return Err(Error::invalid(message));
            }
        }
        debug_assert_eq!(image.size(), old);
        image.check_mappable(new)
    }

    fn check_data_file(&self) -> Result<()> {
        const CONVERT: &str = "copy it: imgtool convert -O qcow2 -o data_file=FILE";
        let has_one = self.old.geometry.data_file;
        match &self.amendment.data_file {
            Some(_) if !has_one => {
                let message = "the image has no external data file, whose name could change";
                return Err(Error::invalid(message).with_hint(CONVERT));
            }
            Some(name) if name.is_empty() || name.contains('\0') => {
                let message = "the data file has no name, or one with a NUL in it";
                return Err(Error::invalid(message));
            }
            _ => {}
        }
        match self.amendment.data_file_raw {
            Some(true) if !has_one => {
                let message = "data_file_raw says what a data file is, and there is none";
                Err(Error::invalid(message).with_hint(CONVERT))
            }
            Some(true) if !self.is_raw() => {
                let message = "the data file cannot become a raw image: it may hold anything where the disk reads as zeros";
                let hint = "copy it: imgtool convert -O qcow2 -o data_file=FILE,data_file_raw=on";
                Err(Error::unsupported(message).with_hint(hint))
            }
            _ => Ok(()),
        }
    }

    fn check_backing(&self) -> Result<()> {
        let Some(NewBacking::File(BackingReference { name, .. })) = &self.amendment.backing else {
            return Ok(());
        };
        if self.is_raw() && !self.gives_up_raw() {
            let message = "a raw data file holds the whole disk: such an image cannot have a backing file";
            return Err(Error::invalid(message).with_hint("give up that it is one: data_file_raw=off"));
        }
        let len = name.len();
        if len == 0 || len > MAX_BACKING_NAME || name.contains('\0') {
            return Err(Error::invalid(format!(
                "the name of the backing file has {len} bytes: it must have from 1 to 1023, and no NUL"
            )));
        }
        Ok(())
    }

    /// In version 2 a snapshot's disk is as long as the image's, and its VM state shorter than 4 GiB.
    pub(super) fn check_snapshots(&self, snapshots: &[Snapshot]) -> Result<()> {
        if !self.downgrades() {
            return Ok(());
        }
        for snapshot in snapshots {
            let name = escape(&snapshot.name);
            let message = if snapshot.size != self.size {
                format!(
                    "the snapshot '{name}' has a disk of {} bytes, and in version 2 (compat=0.10) it must have as many \
                     as the image ({})",
                    snapshot.size, self.size
                )
            } else if u32::try_from(snapshot.vm_state_size).is_err() {
                format!(
                    "the snapshot '{name}' has a VM state of {} bytes, and in version 2 (compat=0.10) it must be \
                     shorter than 4 GiB",
                    snapshot.vm_state_size
                )
            } else {
                continue;
            };
            let hint = "delete it, or copy the image: imgtool convert -O qcow2 -o compat=0.10";
            return Err(Error::unsupported(message).with_hint(hint));
        }
        Ok(())
    }

    /// Compressed clusters that another compression could not read.
    pub(super) fn check_tables(&self, seen: &Seen) -> Result<()> {
        let Some(first) = seen
            .first_compressed
            .as_ref()
            .filter(|_| self.compression != self.old.compression)
        else {
            return Ok(());
        };
        let (count, name) = (seen.compressed, self.old.compression.name());
        let message = match count {
            1 => format!("a cluster is compressed with {name}, {first}"),
            _ => format!("{count} clusters are compressed with {name}, one of them {first}"),
        };
        let hint = format!(
            "copy it: imgtool convert -c -O qcow2 -o compression_type={}",
            self.compression.name()
        );
        Err(Error::unsupported(message).with_hint(hint))
    }
}

fn not_in_v2(what: &str, hint: &'static str) -> Error {
    Error::invalid(format!("version 2 (compat=0.10) has no {what}")).with_hint(hint)
}
