//! Entries of the L1, L2 and refcount tables ("Cluster mapping", "Host cluster management"). No other file knows
//! their bits: an entry decodes into an enum once, here.

use crate::address::HostOffset;
use crate::corruption::Corruption;
use crate::geometry::Geometry;

/// Bit 63 of L1 and L2 entries: the refcount of what they name is exactly 1.
pub(crate) const COPIED: u64 = 1 << 63;
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

/// Where compressed data lies: any byte, and a length that is known in sectors only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// First byte of the data.
    pub host: HostOffset,
    /// Bytes from there to the end of the last sector used. The data may end up to 511 bytes earlier.
    pub len: u64,
}

/// What a layer says about a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Mapping {
    /// Nothing: the backing file decides.
    Unallocated,
    /// The data lies in a host cluster.
    Standard {
        /// Where the cluster starts.
        host: HostOffset,
        /// Its refcount is exactly 1: it may be written in place.
        copied: bool,
    },
    /// Reads as zeros, whatever the backing file or the host cluster hold.
    Zero {
        /// A host cluster that is kept for later writes, and whether its refcount is exactly 1.
        preallocated: Option<(HostOffset, bool)>,
    },
    /// The data is compressed.
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

    fn decode_compressed(entry: u64, index: u64, geometry: Geometry) -> Result<Self, Corruption> {
        // "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8); x bits of offset, then sectors.
        let x = 62 - (geometry.cluster_bits - 8);
        let host = entry & ((1 << x) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> x;
        let what = "compressed L2";
        let reserved = if entry & COPIED != 0 {
            COPIED
        } else {
            host & !((1 << 56) - 1)
        };
        if reserved != 0 {
            return Err(Corruption::ReservedBits {
                what,
                index,
                entry,
                reserved,
            });
        }
        if host < geometry.cluster_size() {
            return Err(Corruption::IntoHeader { what, index, entry });
        }
        let len = (sectors + 1) * SECTOR - host % SECTOR;
        Ok(Self::Compressed(CompressedCluster {
            host: HostOffset(host),
            len,
        }))
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
fn host_offset(
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
}
