//! A bitmap's table ("Bitmap table"): where the clusters of its data are.

use std::ops::Range;

use block::{Error, Result, Storage};

use super::Bitmap;
use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::entry::{OFFSET, host_offset};
use crate::geometry::Geometry;

/// Bit 0 of an entry that names no cluster.
const ALL_ONES: u64 = 1;

/// A cluster of a bitmap's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableEntry {
    Zeros,
    Ones,
    Data(HostOffset),
}

impl TableEntry {
    pub(crate) fn decode(entry: u64, index: u64, geometry: Geometry) -> Result<Self, Corruption> {
        let what = "bitmap table";
        let host = host_offset(what, entry, index, OFFSET, ALL_ONES, geometry)?;
        match (host, entry & ALL_ONES != 0) {
            (0, false) => Ok(Self::Zeros),
            (0, true) => Ok(Self::Ones),
            (host, false) => Ok(Self::Data(HostOffset(host))),
            (_, true) => Err(Corruption::ReservedBits {
                what,
                index,
                entry,
                reserved: ALL_ONES,
            }),
        }
    }

    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => ALL_ONES,
            Self::Data(host) => host.0,
        }
    }
}

/// Clusters of a file that bitmaps may take. Where tables and data lie apart there is room for all of them. Where they do not, they would take
/// memory and time as a file of another length would.
#[derive(Debug)]
pub(crate) struct Room {
    file: u64,
    left: u64,
}

impl Room {
    pub(crate) fn new(file_len: u64, geometry: Geometry) -> Self {
        let file = geometry.clusters(file_len);
        Self { file, left: file }
    }

    pub(crate) fn take(&mut self, clusters: u64) -> Result<(), Corruption> {
        let left = self.left.checked_sub(clusters);
        self.left = left.ok_or(Corruption::Shared {
            what: "bitmaps",
            file: self.file,
        })?;
        Ok(())
    }
}

/// Reads a bitmap's table, which lies inside the file: the directory's parser has seen to that. Its entries are not
/// decoded: what only counts clusters passes over those that are broken.
pub(crate) fn read(storage: &dyn Storage, bitmap: &Bitmap) -> Result<Vec<u64>> {
    let mut bytes = vec![0; bitmap.table_entries as usize * 8];
    storage.read_exact_at(&mut bytes, bitmap.table_offset.0)?;
    let entries = bytes.as_chunks().0.iter();
    Ok(entries.map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Every host cluster that a bitmap's table and its data take, and that is named properly.
pub(crate) fn clusters(
    storage: &dyn Storage,
    bitmap: &Bitmap,
    geometry: Geometry,
) -> Result<Vec<Range<u64>>> {
    let first = geometry.cluster_of(bitmap.table_offset).0;
    let table = first..first + geometry.clusters(u64::from(bitmap.table_entries) * 8);
    let entries = read(storage, bitmap)?;
    let data = (0..).zip(entries).filter_map(|(index, entry)| {
        let Ok(TableEntry::Data(host)) = TableEntry::decode(entry, index, geometry) else {
            return None;
        };
        let cluster = geometry.cluster_of(host).0;
        Some(cluster..cluster + 1)
    });
    Ok(std::iter::once(table).chain(data).collect())
}

/// Refuses what reaches past the end of the file.
pub(crate) fn check_inside(
    what: &'static str,
    start: HostOffset,
    len: u64,
    file_len: u64,
) -> Result<(), Error> {
    if start.0.checked_add(len).is_some_and(|end| end <= file_len) {
        return Ok(());
    }
    Err(Error::from(Corruption::BeyondEnd {
        what,
        start,
        len,
        file_len,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Geometry = Geometry {
        cluster_bits: 16,
        refcount_order: 4,
        extended_l2: false,
        data_file: false,
    };

    #[test]
    fn every_entry_survives_a_round_trip() {
        for entry in [
            TableEntry::Zeros,
            TableEntry::Ones,
            TableEntry::Data(HostOffset(0x5_0000)),
        ] {
            assert_eq!(TableEntry::decode(entry.encode(), 0, G), Ok(entry));
        }
    }

    #[test]
    fn refuses_what_the_format_reserves() {
        for entry in [2, 1 << 56, 0x5_0001, 0x5_0200, 1 << 63] {
            assert!(TableEntry::decode(entry, 0, G).is_err(), "{entry:#x}");
        }
    }
}
