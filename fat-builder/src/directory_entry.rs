//! Directory entries ("Directory Structure"): 32 bytes each.

use crate::layout::FIRST_CLUSTER;
use crate::short_name::ShortName;
use crate::time::Time;

/// One entry, as it is on the disk.
pub(crate) type Entry = [u8; 32];

/// Entries of a directory at most: two bytes count them, or 2 MiB.
pub(crate) const MAX_ENTRIES: usize = 65_536;

pub(crate) const ATTR_VOLUME_ID: u8 = 0x08;
pub(crate) const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_ARCHIVE: u8 = 0x20;

/// Read only, hidden, system and volume at once: what no reader without long names takes for a file.
pub(crate) const ATTR_LONG_NAME: u8 = 0x0F;

/// What an entry is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The volume, whose name is the label.
    Label,
    /// A directory.
    Directory,
    /// A file of so many bytes.
    File(u32),
}

/// The entry with a short name. `cluster` is the first one, or 0 for none.
pub(crate) fn encode(name: ShortName, kind: Kind, time: Time, cluster: u32) -> Entry {
    debug_assert!(cluster == 0 || cluster >= FIRST_CLUSTER);
    let (attributes, size) = match kind {
        Kind::Label => (ATTR_VOLUME_ID, 0),
        Kind::Directory => (ATTR_DIRECTORY, 0),
        Kind::File(size) => (ATTR_ARCHIVE, size),
    };
    let stamp = time.stamp();
    let mut entry = [0; size_of::<Entry>()];
    let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.0);
    put(11, &[attributes]);
    put(22, &stamp.time.to_le_bytes());
    put(24, &stamp.date.to_le_bytes());
    // A label has no other time.
    if kind != Kind::Label {
        put(13, &[stamp.hundredths]);
        put(14, &stamp.time.to_le_bytes());
        put(16, &stamp.date.to_le_bytes());
        put(18, &stamp.date.to_le_bytes());
    }
    put(20, &((cluster >> 16) as u16).to_le_bytes());
    put(26, &(cluster as u16).to_le_bytes());
    put(28, &size.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_where_the_specification_has_it() {
        let time = Time { secs: 1_700_000_001 };
        let entry = encode(
            ShortName(*b"KERNEL  EFI"),
            Kind::File(0x1234_5678),
            time,
            0x0ABC_DEF0,
        );
        let stamp = time.stamp();
        let [time_low, time_high] = stamp.time.to_le_bytes();
        let [date_low, date_high] = stamp.date.to_le_bytes();
        assert_eq!(&entry[..13], b"KERNEL  EFI\x20\0");
        assert_eq!(
            entry[13..],
            [
                100, time_low, time_high, date_low, date_high, date_low, date_high, 0xBC, 0x0A, time_low,
                time_high, date_low, date_high, 0xF0, 0xDE, 0x78, 0x56, 0x34, 0x12
            ]
        );
    }
}
