//! Zero clusters made what version 2 has for them: unallocated clusters, or clusters full of zeros.
//!
//! An entry that says "zeros" is replaced by one that means the same, in the table that has it, which may be shared: it
//! means the same to all who share it. What an entry becomes:
//!
//! | | nothing below | over a backing file |
//! |---|---|---|
//! | no host cluster | unallocated | a new cluster of zeros |
//! | a host cluster that only this entry names | that one, with zeros written to it | the same |
//! | a host cluster that others name too | unallocated | a new cluster of zeros |
//!
//! In the last row others may hold data there: a snapshot does, if the cluster was zeroed after it was taken and kept its
//! host cluster. Whether an entry is alone follows from refcounts, which a check has found to be right: a cluster that is
//! counted as often as the table with its entry is used is named by no other.
//!
//! The backing file's length does not matter: it might be longer one day. New clusters are holes in the file.
//!
//! For each batch of tables, each step durable before the next: zeros and refcounts of new clusters; the entries; and only
//! then fall the refcounts of the host clusters that are named no more.

use std::ops::Range;

use block::{Result, Storage, ZeroMode};

use super::tables::Tables;
use crate::address::{ClusterIndex, HostOffset};
use crate::allocator::Use;
use crate::entry::{L2Entry, Subclusters};
use crate::image::Image;
use crate::image::snapshot::{Batch, Change, Steps, latching};

/// Most clusters that are given out as one.
const RUN: usize = 1 << 13;

/// Entries of a batch that change.
#[derive(Debug, Default)]
struct Plan {
    /// By their number in the batch.
    entries: Vec<(usize, L2Entry)>,
    /// Entries that get a new cluster.
    homeless: Vec<usize>,
    /// Host clusters that entries stop to name, and how often.
    released: Vec<(Range<u64>, u64)>,
}

impl Change<'_> {
    /// Leaves no zero cluster in any table. `backed`: what is unallocated may not read as zeros.
    pub(super) fn expand_zeros(&self, tables: &Tables, backed: bool, steps: &mut Steps<'_>) -> Result<()> {
        let (image, writer) = (self.image, self.writer);
        tables.tree.for_each_batch(image, steps, |batch| {
            let mut plan = self.plan(tables, batch, backed)?;
            latching(writer, || {
                self.give_homes(tables, batch, &mut plan)?;
                image.write_back()?;
                write_entries(image, batch, &plan)?;
                for (clusters, references) in plan.released {
                    writer.meta().allocator.release(clusters, references)?;
                }
                image.write_back()
            })
        })
    }

    /// What becomes of the entries of a batch. Zeros are written, without a sync, to clusters that are kept.
    fn plan(&self, tables: &Tables, batch: &Batch<'_>, backed: bool) -> Result<Plan> {
        let (image, geometry) = (self.image, self.image.geometry);
        let mut plan = Plan::default();
        for (slot, words) in L2Entry::words(&batch.bytes, geometry).enumerate() {
            let index = slot & ((1 << geometry.l2_bits()) - 1);
            let entry = L2Entry::decode(words, index as u64, geometry, image.zero_flag)
                .map_err(|corruption| image.corrupt(corruption))?;
            let L2Entry::Standard {
                host,
                subclusters: Subclusters { zero: 1, .. },
            } = entry
            else {
                continue;
            };
            let uses = uses_of(tables, batch, slot, image);
            if let Some((host, copied)) = host {
                let cluster = geometry.cluster_of(host);
                if self.writer.meta().allocator.refcounts.refcount(cluster)? == uses {
                    image
                        .storage
                        .zero(host.0, geometry.cluster_size(), ZeroMode::Allocate)?;
                    plan.entries.push((slot, standard(host, copied, image)));
                    continue;
                }
                plan.released.push((cluster.0..cluster.0 + 1, uses));
            }
            if backed {
                plan.homeless.push(slot);
            } else {
                plan.entries.push((slot, L2Entry::UNALLOCATED));
            }
        }
        Ok(plan)
    }

    /// Gives entries new clusters that read as zeros, counted as often as their tables are used; not durably.
    fn give_homes(&self, tables: &Tables, batch: &Batch<'_>, plan: &mut Plan) -> Result<()> {
        let (image, geometry) = (self.image, self.image.geometry);
        let uses = |slot: usize| uses_of(tables, batch, slot, image);
        for run in plan.homeless.chunk_by(|a, b| a + 1 == *b && uses(*a) == uses(*b)) {
            for run in run.chunks(RUN) {
                let (count, uses) = (run.len() as u64, uses(run[0]));
                let allocation = self.writer.meta().allocator.allocate(count, Use::Data)?;
                let first = allocation.clusters.start;
                image.clear(
                    first << geometry.cluster_bits,
                    count << geometry.cluster_bits,
                    allocation.fresh,
                )?;
                if uses > 1 {
                    let refcounts = &mut self.writer.meta().allocator.refcounts;
                    refcounts.raise(allocation.clusters, uses - 1)?;
                }
                for (slot, cluster) in run.iter().zip(first..) {
                    let host = geometry.offset_of(ClusterIndex(cluster));
                    plan.entries.push((*slot, standard(host, uses == 1, image)));
                }
            }
        }
        Ok(())
    }
}

fn standard(host: HostOffset, copied: bool, image: &Image) -> L2Entry {
    L2Entry::Standard {
        host: Some((host, copied)),
        subclusters: Subclusters {
            allocated: image.geometry.all_subclusters(),
            zero: 0,
        },
    }
}

/// How often the table is used that the `slot`-th entry of a batch is in.
fn uses_of(tables: &Tables, batch: &Batch<'_>, slot: usize, image: &Image) -> u64 {
    let table = batch.tables[slot >> image.geometry.l2_bits()];
    tables.uses.get(&table).copied().unwrap_or(0)
}

/// Puts the entries in their tables, durably.
fn write_entries(image: &Image, batch: &mut Batch<'_>, plan: &Plan) -> Result<()> {
    if plan.entries.is_empty() {
        return Ok(());
    }
    let geometry = image.geometry;
    let mut changed = vec![false; batch.tables.len()];
    for (slot, entry) in &plan.entries {
        let at = slot << geometry.l2_entry_bits();
        let [word, _] = entry.encode(geometry);
        batch.bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        changed[slot >> geometry.l2_bits()] = true;
    }
    batch.write(image, &changed)?;
    image.storage.sync_data()
}
