//! Entries of the L1, L2 and refcount tables ("Cluster mapping", "Host cluster management"). No other file knows
//! their bits: an entry decodes into an enum once, here.

use std::ops::Range;

use byteorder::{BE, ByteOrder};

use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::geometry::Geometry;

/// Bit 63 of L1 and L2 entries: the refcount of what they name is exactly 1.
pub(crate) const COPIED: u64 = 1 << 63;
/// [`COPIED`] in the first byte of an entry as it is stored.
const COPIED_BYTE: u8 = 1 << 7;
/// Bit 62 of L2 entries.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard cluster descriptor.
pub(crate) const ZERO: u64 = 1;
/// Bits 9-55.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes in a sector, the unit in which compressed lengths are stored.
pub(crate) const SECTOR: u64 = 512;

/// An L1 entry: where an L2 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Entry {
    /// No table: every cluster it would map is unallocated.
    Unallocated,
    /// The table's place, and whether it may be written in place.
    Table {
        /// Where the table starts.
        host: HostOffset,
        /// Its refcount is exactly 1.
        copied: bool,
    },
}

impl L1Entry {
    pub(crate) fn decode(entry: u64, index: u64, geometry: Geometry) -> Result<Self, Corruption> {
        let what = "L1";
        let host = host_offset(what, entry, index, OFFSET, COPIED, geometry)?;
        match (host, entry & COPIED != 0) {
            (0, false) => Ok(Self::Unallocated),
            (0, true) => Err(Corruption::IntoHeader { what, index, entry }),
            (host, copied) => Ok(Self::Table {
                host: HostOffset(host),
                copied,
            }),
        }
    }

    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Unallocated => 0,
            Self::Table { host, copied } => host.0 | if copied { COPIED } else { 0 },
        }
    }
}

/// Clears COPIED in every entry of a table's bytes, `entry_len` bytes each. Whether any had it.
pub(crate) fn clear_copied(table: &mut [u8], entry_len: usize) -> bool {
    let mut any = false;
    for entry in table.chunks_exact_mut(entry_len) {
        any |= entry[0] & COPIED_BYTE != 0;
        entry[0] &= !COPIED_BYTE;
    }
    any
}

/// Sets COPIED in the entry that starts `entry`. Whether it was clear.
pub(crate) fn set_copied(entry: &mut [u8]) -> bool {
    let clear = entry[0] & COPIED_BYTE == 0;
    entry[0] |= COPIED_BYTE;
    clear
}

/// Where compressed data lies: any byte, and a length that is known in sectors only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// First byte of the data.
    pub host: HostOffset,
    /// Bytes from there to the end of the last sector used. The data may end up to 511 bytes earlier.
    pub len: u64,
}

impl CompressedCluster {
    /// What the descriptor of a compressed cluster names, sound or not ("Compressed Clusters Descriptor": x bits of
    /// offset, then the number of further sectors).
    #[inline]
    pub(crate) fn of_descriptor(entry: u64, geometry: Geometry) -> Self {
        let x = 62 - (geometry.cluster_bits - 8);
        let host = entry & ((1 << x) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> x) + 1;
        Self {
            host: HostOffset(host),
            len: sectors * SECTOR - host % SECTOR,
        }
    }
}

/// What a layer says about a subcluster of the disk: about a whole cluster, where there are no extended L2 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Mapping {
    /// Nothing: the backing file decides.
    Unallocated,
    /// The data lies in a host cluster.
    Standard {
        /// Where the subcluster starts.
        host: HostOffset,
        /// The host cluster's refcount is exactly 1: it may be written in place.
        copied: bool,
    },
    /// Reads as zeros, whatever the backing file or the host cluster hold.
    Zero {
        /// Where it starts in a host cluster that is kept for later writes, and whether that one's refcount is
        /// exactly 1.
        preallocated: Option<(HostOffset, bool)>,
    },
    /// The data is compressed, that of the whole cluster.
    Compressed(CompressedCluster),
}

impl L2Mapping {
    /// Decodes an entry of 64 bits. `zero_flag`: bit 0 means something (version 3, no extended entries).
    #[inline]
    pub(crate) fn decode(
        entry: u64,
        index: u64,
        geometry: Geometry,
        zero_flag: bool,
    ) -> Result<Self, Corruption> {
        if entry == 0 {
            return Ok(Self::Unallocated);
        }
        if entry & COMPRESSED != 0 {
            return Self::decode_compressed(entry, index, geometry);
        }
        if geometry.data_file {
            return Self::decode_in_data_file(entry, index, geometry, zero_flag);
        }
        let what = "L2";
        let flags = COPIED | if zero_flag { ZERO } else { 0 };
        let host = host_offset(what, entry, index, OFFSET, flags, geometry)?;
        let copied = entry & COPIED != 0;
        if host == 0 && copied {
            return Err(Corruption::IntoHeader { what, index, entry });
        }
        let host = HostOffset(host);
        Ok(match (entry & ZERO != 0, host.0) {
            (true, 0) => Self::Zero { preallocated: None },
            (true, _) => Self::Zero {
                preallocated: Some((host, copied)),
            },
            (false, _) => Self::Standard { host, copied },
        })
    }

    /// In a data file offset 0 is as good as any other, and COPIED tells it from none. All guest clusters have an
    /// implicit refcount of 1 there.
    fn decode_in_data_file(
        entry: u64,
        index: u64,
        geometry: Geometry,
        zero_flag: bool,
    ) -> Result<Self, Corruption> {
        let flags = COPIED | if zero_flag { ZERO } else { 0 };
        let host = host_offset("L2", entry, index, OFFSET, flags, geometry)?;
        let (zero, copied) = (entry & ZERO != 0, true);
        let preallocated = (host != 0).then_some((HostOffset(host), copied));
        Ok(match (zero, host) {
            (true, _) => Self::Zero { preallocated },
            (false, 0) if entry & COPIED == 0 => Self::Unallocated,
            (false, _) => Self::Standard {
                host: HostOffset(host),
                copied,
            },
        })
    }

    fn decode_compressed(entry: u64, index: u64, geometry: Geometry) -> Result<Self, Corruption> {
        if geometry.data_file {
            return Err(Corruption::CompressedWithDataFile { index, entry });
        }
        let data = CompressedCluster::of_descriptor(entry, geometry);
        let what = "compressed L2";
        let reserved = if entry & COPIED != 0 {
            COPIED
        } else {
            data.host.0 & !((1 << 56) - 1)
        };
        if reserved != 0 {
            return Err(Corruption::ReservedBits {
                what,
                index,
                entry,
                reserved,
            });
        }
        if data.host.0 < geometry.cluster_size() {
            return Err(Corruption::IntoHeader { what, index, entry });
        }
        Ok(Self::Compressed(data))
    }

    /// The entry's 64 bits.
    pub(crate) fn encode(self, geometry: Geometry) -> u64 {
        let flag = |copied: bool| if copied { COPIED } else { 0 };
        match self {
            Self::Unallocated => 0,
            Self::Standard { host, copied } => host.0 | flag(copied),
            Self::Zero { preallocated: None } => ZERO,
            Self::Zero {
                preallocated: Some((host, copied)),
            } => host.0 | flag(copied) | ZERO,
            Self::Compressed(CompressedCluster { host, len }) => {
                let x = 62 - (geometry.cluster_bits - 8);
                let sectors = (host.0 % SECTOR + len).div_ceil(SECTOR) - 1;
                COMPRESSED | sectors << x | host.0
            }
        }
    }
}

/// Which subclusters of a cluster are allocated, and which read as zeros ("Extended L2 Entries"): a bit for each,
/// the first the least significant one. Those that are neither are the backing file's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subclusters {
    /// Their data lies in the host cluster.
    pub allocated: u32,
    /// They read as zeros, and are not allocated.
    pub zero: u32,
}

impl Subclusters {
    /// The two halves of a subcluster allocation bitmap, sound or not.
    #[inline]
    pub(crate) fn from_bitmap(bitmap: u64) -> Self {
        Self {
            allocated: bitmap as u32,
            zero: (bitmap >> 32) as u32,
        }
    }

    /// The subcluster allocation bitmap.
    pub(crate) fn bitmap(self) -> u64 {
        u64::from(self.zero) << 32 | u64::from(self.allocated)
    }

    /// Some are said to be allocated and to read as zeros.
    #[inline]
    pub(crate) fn contradict(self) -> bool {
        self.allocated & self.zero != 0
    }
}

/// An L2 entry: what a layer says about a cluster of the disk, and about each subcluster. Without extended L2 entries
/// a cluster has one, and bit 0 stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// The data of the whole cluster is compressed.
    Compressed(CompressedCluster),
    /// Each subcluster has a state of its own.
    Standard {
        /// The host cluster, and whether its refcount is exactly 1. There is one if a subcluster is allocated.
        host: Option<(HostOffset, bool)>,
        /// The states.
        subclusters: Subclusters,
    },
}

impl L2Entry {
    /// Nothing is known of the cluster.
    pub(crate) const UNALLOCATED: Self = Self::Standard {
        host: None,
        subclusters: Subclusters {
            allocated: 0,
            zero: 0,
        },
    };

    /// The entry of a cluster of which all is allocated at `host`, this image's alone.
    pub(crate) fn allocated(host: HostOffset, geometry: Geometry) -> Self {
        Self::Standard {
            host: Some((host, true)),
            subclusters: Subclusters {
                allocated: geometry.all_subclusters(),
                zero: 0,
            },
        }
    }

    /// The entry of a cluster that is given the host cluster `host`, full of zeros, for later: it reads as what that
    /// holds. With extended L2 entries nothing is allocated in it, as QEMU has it: subclusters go on reading as zeros
    /// (those in `zero`), or as what lies below. So it is where `zero` says it of the whole cluster: on an encrypted disk
    /// the zeros in it would not read as such.
    pub(crate) fn preallocated(host: HostOffset, zero: u32, geometry: Geometry) -> Self {
        if !geometry.extended_l2 && zero == 0 {
            return Self::allocated(host, geometry);
        }
        Self::Standard {
            host: Some((host, true)),
            subclusters: Subclusters { allocated: 0, zero },
        }
    }

    /// The words of the entries in (part of) an L2 table: the descriptor, and the subcluster bitmap where there are
    /// any, else 0.
    pub(crate) fn words(table: &[u8], geometry: Geometry) -> impl Iterator<Item = [u64; 2]> {
        table.chunks_exact(1 << geometry.l2_entry_bits()).map(|entry| {
            let word = |at| entry.get(at..at + 8).map_or(0, BE::read_u64);
            [word(0), word(8)]
        })
    }

    /// Whether an entry, at a glance, is a sound one without a cluster, or with a whole one of plain data. `false` for any other,
    /// and wherever there are subclusters.
    #[inline]
    pub(crate) fn is_plain([entry, _]: [u64; 2], geometry: Geometry) -> bool {
        let host = entry & !COPIED;
        let cluster = host & OFFSET & !(geometry.cluster_size() - 1);
        !geometry.extended_l2 && (entry == 0 || host != 0 && host == cluster)
    }

    /// Decodes an entry. `zero_flag`: as in [`L2Mapping::decode`].
    #[inline]
    pub(crate) fn decode(
        words: [u64; 2],
        index: u64,
        geometry: Geometry,
        zero_flag: bool,
    ) -> Result<Self, Corruption> {
        let [entry, bitmap] = words;
        let descriptor = L2Mapping::decode(entry, index, geometry, zero_flag)?;
        let subclusters = if geometry.extended_l2 {
            Subclusters::from_bitmap(bitmap)
        } else {
            Subclusters {
                allocated: matches!(descriptor, L2Mapping::Standard { .. }).into(),
                zero: matches!(descriptor, L2Mapping::Zero { .. }).into(),
            }
        };
        let problem = match descriptor {
            L2Mapping::Compressed(_) if subclusters != Subclusters::default() => {
                "a compressed cluster has no subclusters"
            }
            _ if subclusters.contradict() => "a subcluster is both allocated and zero",
            L2Mapping::Unallocated if subclusters.allocated != 0 => {
                "a subcluster is allocated, and there is no host cluster"
            }
            L2Mapping::Compressed(data) => return Ok(Self::Compressed(data)),
            L2Mapping::Standard { host, copied } => {
                return Ok(Self::Standard {
                    host: Some((host, copied)),
                    subclusters,
                });
            }
            L2Mapping::Zero { preallocated: host } => return Ok(Self::Standard { host, subclusters }),
            L2Mapping::Unallocated => {
                return Ok(Self::Standard {
                    host: None,
                    subclusters,
                });
            }
        };
        Err(Corruption::SubclusterBitmap {
            index,
            entry,
            bitmap,
            problem,
        })
    }

    /// The entry's words; the second one is 0, and not stored, without extended L2 entries.
    pub(crate) fn encode(self, geometry: Geometry) -> [u64; 2] {
        match self {
            Self::Standard { host, subclusters } if geometry.extended_l2 => {
                let descriptor = host.map_or(0, |(host, copied)| host.0 | if copied { COPIED } else { 0 });
                [descriptor, subclusters.bitmap()]
            }
            Self::Standard { .. } | Self::Compressed(_) => [self.run(0, geometry).0.encode(geometry), 0],
        }
    }

    /// The entry's words as they are stored: one, or two with extended L2 entries.
    pub(crate) fn stored(self, geometry: Geometry) -> impl Iterator<Item = u64> {
        let count = if geometry.extended_l2 { 2 } else { 1 };
        self.encode(geometry).into_iter().take(count)
    }

    /// What the entry says about a subcluster, and how many from that one on are alike in it.
    #[inline]
    pub(crate) fn run(self, subcluster: u32, geometry: Geometry) -> (L2Mapping, u32) {
        let rest = geometry.subclusters() - subcluster;
        let (host, subclusters) = match self {
            Self::Compressed(data) => return (L2Mapping::Compressed(data), rest),
            Self::Standard { host, subclusters } => (host, subclusters),
        };
        let (allocated, zero) = (
            subclusters.allocated >> subcluster,
            subclusters.zero >> subcluster,
        );
        let start = u64::from(subcluster) << geometry.subcluster_bits();
        let host = host.map(|(host, copied)| (host + start, copied));
        let (mapping, alike) = match host {
            Some((host, copied)) if allocated & 1 != 0 => (L2Mapping::Standard { host, copied }, allocated),
            _ if zero & 1 != 0 => (L2Mapping::Zero { preallocated: host }, zero),
            _ => (L2Mapping::Unallocated, !(allocated | zero)),
        };
        (mapping, alike.trailing_ones().min(rest))
    }

    /// Whether the entry says of data that it is there, in a place where `old` says of none.
    pub(crate) fn names_more_than(self, old: Self) -> bool {
        match (self, old) {
            (Self::Standard { host: None, .. }, _) => false,
            (
                Self::Standard {
                    host: Some((new_host, _)),
                    subclusters: new,
                },
                Self::Standard {
                    host: Some((old_host, _)),
                    subclusters: old,
                },
            ) if new_host == old_host => new.allocated & !old.allocated != 0,
            (Self::Compressed(new), Self::Compressed(old)) => new != old,
            _ => true,
        }
    }

    /// The host clusters that the entry names; empty if there are none.
    pub(crate) fn host_clusters(self, geometry: Geometry) -> Range<u64> {
        let (first, len) = match self {
            Self::Compressed(data) => (data.host, data.len),
            Self::Standard {
                host: Some((host, _)),
                ..
            } => (host, 1),
            Self::Standard { host: None, .. } => return 0..0,
        };
        geometry.cluster_of(first).0..geometry.cluster_of(first + (len - 1)).0 + 1
    }
}

/// Largest host offset (exclusive) that a compressed entry can name.
pub(crate) fn max_compressed_offset(geometry: Geometry) -> u64 {
    1 << (62 - (geometry.cluster_bits - 8)).min(56)
}

/// Decodes an entry of the refcount table: where its refcount block is, if there is one.
pub(crate) fn decode_refcount_table_entry(
    entry: u64,
    index: u64,
    geometry: Geometry,
) -> Result<Option<HostOffset>, Corruption> {
    // Its offsets are wider than those of the other tables: bits 9-63.
    let host = host_offset("refcount table", entry, index, !(SECTOR - 1), 0, geometry)?;
    Ok((host != 0).then_some(HostOffset(host)))
}

/// The host offset that lies in the bits `offset` of an entry: of a whole cluster, with no bits set beside those and
/// `flags`.
#[inline]
pub(crate) fn host_offset(
    what: &'static str,
    entry: u64,
    index: u64,
    offset: u64,
    flags: u64,
    geometry: Geometry,
) -> Result<u64, Corruption> {
    let reserved = entry & !(offset | flags);
    if reserved != 0 {
        return Err(Corruption::ReservedBits {
            what,
            index,
            entry,
            reserved,
        });
    }
    let host = entry & offset;
    if !geometry.is_aligned(host) {
        return Err(Corruption::Unaligned {
            what,
            index,
            entry,
            cluster_size: geometry.cluster_size(),
        });
    }
    Ok(host)
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

    fn decode(entry: u64) -> Result<L2Mapping, Corruption> {
        L2Mapping::decode(entry, 0, G, true)
    }

    #[test]
    fn every_mapping_survives_a_round_trip() {
        let host = HostOffset(0x5_0000);
        for mapping in [
            L2Mapping::Unallocated,
            L2Mapping::Standard { host, copied: true },
            L2Mapping::Standard { host, copied: false },
            L2Mapping::Zero { preallocated: None },
            L2Mapping::Zero {
                preallocated: Some((host, true)),
            },
            L2Mapping::Compressed(CompressedCluster {
                host: HostOffset(0x5_0123),
                len: 512 * 7 - 0x123,
            }),
        ] {
            assert_eq!(decode(mapping.encode(G)), Ok(mapping));
        }
    }

    #[test]
    fn in_a_data_file_copied_tells_offset_0_from_none() {
        let geometry = Geometry { data_file: true, ..G };
        let decode = |entry| L2Mapping::decode(entry, 0, geometry, true);
        let standard = |host| L2Mapping::Standard {
            host: HostOffset(host),
            copied: true,
        };
        assert_eq!(decode(COPIED), Ok(standard(0)));
        assert_eq!(standard(0).encode(geometry), COPIED);
        assert_eq!(decode(COPIED | 0x5_0000), Ok(standard(0x5_0000)));
        // Nothing in a data file has another refcount than 1.
        assert_eq!(decode(0x5_0000), Ok(standard(0x5_0000)));
        for entry in [ZERO, COPIED | ZERO] {
            assert_eq!(decode(entry), Ok(L2Mapping::Zero { preallocated: None }));
        }
        assert!(decode(COMPRESSED | 0x5_0000).is_err() && decode(0x5_0002).is_err());
    }

    #[test]
    fn what_is_plain_at_a_glance_decodes_to_data_or_nothing() {
        let bits = [0, 0x5_0000, COPIED, COMPRESSED, ZERO, 2, 0x1000, 1 << 57, 1 << 55];
        for set in 0..1u32 << bits.len() {
            let chosen = bits.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1);
            let entry = chosen.fold(0, |entry, (_, bit)| entry | bit);
            for geometry in [G, Geometry { data_file: true, ..G }] {
                let plain = matches!(
                    L2Mapping::decode(entry, 0, geometry, false),
                    Ok(L2Mapping::Unallocated | L2Mapping::Standard { .. })
                );
                // In a data file, COPIED by itself is the first cluster, which a second look finds.
                let missed = geometry.data_file && entry == COPIED;
                assert_eq!(
                    L2Entry::is_plain([entry, 0], geometry),
                    plain && !missed,
                    "{entry:#x}"
                );
            }
        }
        assert!(!L2Entry::is_plain(
            [0, 0],
            Geometry {
                extended_l2: true,
                ..G
            }
        ));
    }

    #[test]
    fn compressed_length_ends_with_a_sector() {
        let exact = CompressedCluster {
            host: HostOffset(0x1_0001),
            len: 600,
        };
        let Ok(L2Mapping::Compressed(stored)) = decode(L2Mapping::Compressed(exact).encode(G)) else {
            panic!("not compressed")
        };
        assert_eq!((stored.host, stored.len), (exact.host, 1023));
    }

    #[test]
    fn refuses_what_the_format_reserves() {
        for entry in [
            0x5_0002,
            1 << 56 | 0x5_0000,
            0x5_0200,
            1 << 63,
            1 << 63 | 1 << 62 | 0x5_0000,
            1 << 62 | 0x100,
        ] {
            assert!(decode(entry).is_err(), "{entry:#x}");
        }
        // Bit 0 is reserved in version 2.
        assert!(L2Mapping::decode(1, 0, G, false).is_err());
    }

    const EXTENDED: Geometry = Geometry {
        extended_l2: true,
        ..G
    };

    #[test]
    fn every_entry_survives_a_round_trip() {
        let host = HostOffset(0x5_0000);
        let compressed = L2Entry::Compressed(CompressedCluster {
            host: HostOffset(0x5_0123),
            len: 512 * 7 - 0x123,
        });
        for geometry in [G, EXTENDED] {
            let all = geometry.all_subclusters();
            for (host, allocated, zero) in [
                (None, 0, 0),
                (None, 0, all),
                (Some((host, true)), 0, all),
                (Some((host, false)), all, 0),
            ] {
                let subclusters = Subclusters { allocated, zero };
                let entry = L2Entry::Standard { host, subclusters };
                let words = entry.encode(geometry);
                assert_eq!(
                    L2Entry::decode(words, 0, geometry, !geometry.extended_l2),
                    Ok(entry)
                );
            }
            let words = compressed.encode(geometry);
            assert_eq!(L2Entry::decode(words, 0, geometry, false), Ok(compressed));
        }
    }

    #[test]
    fn runs_of_subclusters_end_where_the_state_changes() {
        let entry = L2Entry::decode([COPIED | 0x5_0000, 0xf0 << 32 | 0xf], 0, EXTENDED, false).unwrap();
        let host = HostOffset(0x5_0000);
        let runs = [0, 1, 4, 8, 31].map(|index| entry.run(index, EXTENDED));
        let standard = |host| L2Mapping::Standard { host, copied: true };
        let zero = L2Mapping::Zero {
            preallocated: Some((host + 4 * 2048, true)),
        };
        assert_eq!(
            runs,
            [
                (standard(host), 4),
                (standard(host + 2048), 3),
                (zero, 4),
                (L2Mapping::Unallocated, 24),
                (L2Mapping::Unallocated, 1),
            ]
        );
        assert_eq!(entry.host_clusters(EXTENDED), 5..6);
        assert_eq!(L2Entry::UNALLOCATED.host_clusters(EXTENDED), 0..0);
        assert_eq!(
            L2Entry::UNALLOCATED.run(3, EXTENDED),
            (L2Mapping::Unallocated, 29)
        );
    }

    #[test]
    fn refuses_impossible_subclusters() {
        for (entry, bitmap, problem) in [
            (0x5_0000, 1 << 40 | 1 << 8, "both allocated and zero"),
            (0, 1, "there is no host cluster"),
            (COMPRESSED | 0x5_0000, 1, "has no subclusters"),
            (0x5_0001, 0, "reserved bits 0x1"),
        ] {
            let error = L2Entry::decode([entry, bitmap], 7, EXTENDED, false).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
        // Where there are none, the second word means nothing.
        assert!(L2Entry::decode([0x5_0000, 1], 0, G, true).is_ok());
    }
}
