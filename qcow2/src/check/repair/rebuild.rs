//! A new refcount structure: table and blocks, made from counted references alone.
//!
//! It is written whole to clusters that nothing references, and made durable, before the header names it. Until then the
//! old structure is what it was, however damaged; from then on its clusters are free, and the new structure says so
//! already. Nothing of it depends on the width of the old refcounts.

use std::collections::BTreeMap;
use std::ops::Range;

use block::{Error, ErrorKind, Result, Storage};
use byteorder::{BE, ByteOrder};

use super::room::Room;
use crate::address::HostOffset;
use crate::check::references::{CHUNK, References};
use crate::geometry::{Geometry, MAX_REFCOUNT_TABLE_BYTES};
use crate::refcount;

/// Bytes that a new refcount structure may take beyond what the whole file takes.
const EXTRA_BUDGET: u64 = 64 << 20;
/// Clusters whose counts are written at a time.
const PIECE: u64 = 1 << 14;

/// Where a new structure is: what the header has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewStructure {
    pub(super) table: HostOffset,
    pub(super) table_clusters: u32,
    /// Bytes that table and blocks take.
    pub(super) bytes: u64,
}

/// The most bytes that the blocks of a new structure may take for a file that takes `host_bytes` on its host.
pub(super) fn budget(host_bytes: u64) -> u64 {
    host_bytes.saturating_add(EXTRA_BUDGET)
}

/// Writes a refcount structure for everything that the room's references say, with refcounts as wide as `geometry` says.
/// `budget` is the most bytes that its blocks may take. What was written is not durable yet.
///
/// # Errors
/// `NoSpace` if there is no room in reach of a refcount table, or on the host; `Unsupported` if the references are so
/// scattered that the blocks exceed the budget; `Io`. The room is then as it was.
pub(super) fn build(
    storage: &dyn Storage,
    geometry: Geometry,
    room: &mut Room<'_>,
    budget: u64,
) -> Result<NewStructure> {
    let built = Layout::of(geometry, room, budget)
        .and_then(|layout| layout.write(storage, geometry, room.references));
    built.inspect_err(|_| room.take_back_all())
}

struct Layout {
    table: Range<u64>,
    /// The cluster of each refcount block, by its number.
    blocks: BTreeMap<u64, u64>,
}

impl Layout {
    fn of(geometry: Geometry, room: &mut Room<'_>, budget: u64) -> Result<Self> {
        let max_blocks = budget >> geometry.cluster_bits;
        let mut missing = needed_blocks(geometry, room.references, max_blocks)?;
        let mut blocks = BTreeMap::new();
        let bits = geometry.refcount_block_bits();
        loop {
            // Each block's own cluster may need another block.
            while let Some(index) = missing.pop() {
                if blocks.contains_key(&index) {
                    continue;
                }
                if blocks.len() as u64 >= max_blocks {
                    return Err(scattered(budget));
                }
                let cluster = room.take(1)?;
                blocks.insert(index, cluster);
                missing.push(cluster >> bits);
            }
            let last = blocks.last_key_value().map_or(0, |(&index, _)| index);
            let clusters = table_clusters(geometry, last)?;
            let start = room.take(clusters)?;
            let table = start..start + clusters;
            let uncounted =
                (table.start >> bits..=(table.end - 1) >> bits).find(|index| !blocks.contains_key(index));
            let Some(index) = uncounted else {
                return Ok(Self { table, blocks });
            };
            // The table may have to grow for it: it is placed again behind.
            for cluster in table {
                room.take_back(cluster);
            }
            missing.push(index);
        }
    }

    fn write(
        &self,
        storage: &dyn Storage,
        geometry: Geometry,
        references: &References,
    ) -> Result<NewStructure> {
        let cluster_size = geometry.cluster_size();
        let mut table = vec![0; ((self.table.end - self.table.start) << geometry.cluster_bits) as usize];
        for (&index, &cluster) in &self.blocks {
            BE::write_u64(&mut table[index as usize * 8..], cluster << geometry.cluster_bits);
            let bytes = block_bytes(geometry, references, index);
            storage.write_all_at(&bytes, cluster << geometry.cluster_bits)?;
        }
        let start = HostOffset(self.table.start << geometry.cluster_bits);
        storage.write_all_at(&table, start.0)?;
        Ok(NewStructure {
            table: start,
            table_clusters: (self.table.end - self.table.start) as u32,
            bytes: table.len() as u64 + self.blocks.len() as u64 * cluster_size,
        })
    }
}

/// The numbers of the blocks that count anything.
fn needed_blocks(geometry: Geometry, references: &References, max: u64) -> Result<Vec<u64>> {
    let bits = geometry.refcount_block_bits();
    let mut counts = vec![0; CHUNK as usize];
    let mut needed: Vec<u64> = Vec::new();
    for key in references.keys() {
        let Some(chunk) = references.chunk(key) else {
            continue;
        };
        chunk.copy(0, &mut counts);
        for (cluster, _) in (key * CHUNK..).zip(&counts).filter(|(_, count)| **count > 0) {
            if needed.last() != Some(&(cluster >> bits)) {
                needed.push(cluster >> bits);
            }
        }
        if needed.len() as u64 > max {
            return Err(scattered(max << geometry.cluster_bits));
        }
    }
    needed.reverse();
    Ok(needed)
}

/// Clusters of a table with an entry for block `last`.
fn table_clusters(geometry: Geometry, last: u64) -> Result<u64> {
    let bytes = last.saturating_add(1).saturating_mul(8);
    if bytes > MAX_REFCOUNT_TABLE_BYTES.max(geometry.cluster_size()) {
        let message = "the image reaches further than a refcount table can count";
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(geometry.clusters(bytes))
}

/// The bytes of a refcount block.
fn block_bytes(geometry: Geometry, references: &References, index: u64) -> Vec<u8> {
    let (order, max) = (geometry.refcount_order, geometry.max_refcount());
    let mut bytes = vec![0; geometry.cluster_size() as usize];
    let first = index << geometry.refcount_block_bits();
    let end = first + (1 << geometry.refcount_block_bits());
    let mut counts = vec![0; CHUNK.min(end - first) as usize];
    for start in (first..end).step_by(PIECE.min(end - first) as usize) {
        let Some(chunk) = references.chunk(start / CHUNK) else {
            continue;
        };
        chunk.copy((start % CHUNK) as usize, &mut counts);
        for (cluster, &count) in (start..).zip(&counts).filter(|(_, count)| **count > 0) {
            refcount::write(&mut bytes, order, (cluster - first) as usize, count.min(max));
        }
    }
    bytes
}

fn scattered(budget: u64) -> Error {
    let message = format!(
        "a new refcount structure would take more than {} MiB: references are scattered too widely",
        budget >> 20
    );
    Error::unsupported(message)
        .with_hint("no writer makes such an image; if it can be read, convert it to a new one")
}
