//! Feature bits, and the table that gives them names ("Header", bytes 72-95; "Feature name table").
//!
//! Bits that have no name here are kept: whether they are an error is a question for whoever opens the image.

use std::borrow::Cow;

use bitflags::bitflags;

bitflags! {
    /// Features that a reader must know, or leave the image alone.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IncompatibleFeatures: u64 {
        /// Refcounts may be wrong: the writer that postponed them did not close the image.
        const DIRTY = 1 << 0;
        /// Any structure may be wrong: write nothing but repairs.
        const CORRUPT = 1 << 1;
        /// Guest data lies in an external data file.
        const EXTERNAL_DATA_FILE = 1 << 2;
        /// Clusters are compressed with something else than deflate.
        const COMPRESSION_TYPE = 1 << 3;
        /// L2 entries are 128 bits wide, with an allocation bitmap of subclusters.
        const EXTENDED_L2 = 1 << 4;
    }

    /// Features that a reader may ignore.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CompatibleFeatures: u64 {
        /// Refcount updates may be postponed, with [`IncompatibleFeatures::DIRTY`] set meanwhile.
        const LAZY_REFCOUNTS = 1 << 0;
    }

    /// Features whose bits a writer must clear unless it keeps up what they promise.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct AutoclearFeatures: u64 {
        /// The bitmaps of the bitmaps extension are consistent.
        const BITMAPS = 1 << 0;
        /// The external data file is a raw image of the whole disk.
        const RAW_EXTERNAL_DATA = 1 << 1;
    }
}

/// Which of the three sets a feature belongs to: byte 0 of an entry of the feature name table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// One of [`IncompatibleFeatures`].
    Incompatible,
    /// One of [`CompatibleFeatures`].
    Compatible,
    /// One of [`AutoclearFeatures`].
    Autoclear,
}

impl FeatureKind {
    fn encode(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }
}

/// Bytes in an entry of the table: kind, bit, name padded with zeros.
const ENTRY: usize = 48;

/// The names of the features that the program which made an image knew.
///
/// Kept as stored, since nothing in it matters but for a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FeatureNames(Vec<u8>);

impl FeatureNames {
    /// The table that new images get: every feature that has a name here.
    pub fn known() -> Self {
        use FeatureKind::{Autoclear, Compatible, Incompatible};
        let names = [
            (Incompatible, 0, "dirty bit"),
            (Incompatible, 1, "corrupt bit"),
            (Incompatible, 2, "external data file"),
            (Incompatible, 3, "compression type"),
            (Incompatible, 4, "extended L2 entries"),
            (Compatible, 0, "lazy refcounts"),
            (Autoclear, 0, "bitmaps"),
            (Autoclear, 1, "raw external data"),
        ];
        let mut table = vec![0; names.len() * ENTRY];
        for (entry, (kind, bit, name)) in table.chunks_exact_mut(ENTRY).zip(names) {
            entry[0] = kind.encode();
            entry[1] = bit;
            entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        }
        Self(table)
    }

    /// The table in an extension's data.
    pub fn of_table(data: &[u8]) -> Self {
        Self(data.to_vec())
    }

    pub(crate) fn encode(&self) -> &[u8] {
        &self.0
    }

    /// The name of a feature, if the table has one. It comes from the file: escape it before it is printed.
    pub fn name(&self, kind: FeatureKind, bit: u32) -> Option<Cow<'_, str>> {
        let entry = self.0.chunks_exact(ENTRY).nth(self.position(kind, bit)?)?;
        let name = entry[2..].split(|byte| *byte == 0).next()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name))
    }

    /// The number of a feature's entry in the table.
    pub fn position(&self, kind: FeatureKind, bit: u32) -> Option<usize> {
        self.0
            .chunks_exact(ENTRY)
            .position(|entry| entry[0] == kind.encode() && u32::from(entry[1]) == bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_names_by_kind_and_bit() {
        let names = FeatureNames::known();
        let name = |kind, bit| names.name(kind, bit).map(Cow::into_owned);
        assert_eq!(name(FeatureKind::Incompatible, 1).as_deref(), Some("corrupt bit"));
        assert_eq!(
            name(FeatureKind::Autoclear, 1).as_deref(),
            Some("raw external data")
        );
        assert_eq!(name(FeatureKind::Compatible, 1), None);
    }

    #[test]
    fn a_name_may_fill_its_entry_and_the_table_may_end_anywhere() {
        let mut table = vec![b'x'; ENTRY + 7];
        table[..2].copy_from_slice(&[0, 9]);
        let names = FeatureNames::of_table(&table);
        assert_eq!(names.name(FeatureKind::Incompatible, 9).unwrap(), "x".repeat(46));
        assert_eq!(names.encode(), table);
    }
}
