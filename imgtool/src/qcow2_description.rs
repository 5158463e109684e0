//! What a qcow2 image says about itself, for `info` and for its counterpart in qemu-img.

use block::{Result, Storage};
use encryption::Luks;
use qcow2::{
    AutoclearFeatures, Bitmap, CompatibleFeatures, Encryption, Header, IncompatibleFeatures, Snapshot,
    SnapshotTable, Version, read_luks,
};
use serde_json::{Value, json};

use crate::commands::bitmap_flags;
use crate::luks_description;

/// What only qcow2 images have.
#[derive(Debug)]
pub(crate) struct Qcow2Description {
    pub(crate) header: Header,
    pub(crate) snapshots: Vec<Snapshot>,
    bitmaps: Vec<Bitmap>,
    luks: Option<Luks>,
}

impl Qcow2Description {
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        let header = Header::read(storage)?;
        // Without the bit the bitmaps are those of an older disk.
        let bitmaps = if header.autoclear.contains(AutoclearFeatures::BITMAPS) {
            Bitmap::list(storage, &header)?
        } else {
            Vec::new()
        };
        Ok(Self {
            snapshots: SnapshotTable::read(storage, &header)?.snapshots,
            bitmaps,
            luks: read_luks(storage, &header)?,
            header,
        })
    }

    /// It was not closed as it should be.
    pub(crate) fn is_dirty(&self) -> bool {
        self.header.incompatible.contains(IncompatibleFeatures::DIRTY)
    }

    /// The keys that only this format has, named as QEMU does and in the order in which it prints them.
    pub(crate) fn facts(&self) -> Value {
        let header = &self.header;
        let v3 = header.version >= Version::V3;
        let mut facts = json!({
            "compat": if v3 { "1.1" } else { "0.10" },
            "compression-type": header.compression.name(),
        });
        if let Some(data_file) = header.data_file() {
            if let Some(name) = data_file.name {
                facts["data-file"] = name.into();
            }
            facts["data-file-raw"] = data_file.raw.into();
        }
        if v3 {
            facts["lazy-refcounts"] = header
                .compatible
                .contains(CompatibleFeatures::LAZY_REFCOUNTS)
                .into();
        }
        if !self.bitmaps.is_empty() {
            facts["bitmaps"] = self.bitmaps.iter().map(bitmap_json).collect();
        }
        facts["refcount-bits"] = (1 << header.geometry.refcount_order).into();
        if header.encryption == Encryption::Aes {
            facts["encrypt"] = json!({ "format": "aes" });
        } else if let Some(luks) = &self.luks {
            facts["encrypt"] = luks_description::facts(luks, true);
        }
        if v3 {
            facts["corrupt"] = header.incompatible.contains(IncompatibleFeatures::CORRUPT).into();
            facts["extended-l2"] = header.geometry.extended_l2.into();
        }
        facts
    }
}

fn bitmap_json(bitmap: &Bitmap) -> Value {
    json!({ "flags": bitmap_flags(bitmap), "name": bitmap.name, "granularity": bitmap.granularity() })
}
