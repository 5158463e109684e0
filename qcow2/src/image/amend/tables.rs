//! All L2 tables of an image, the disk's and those that only snapshots use: each once, whoever shares it.

use std::collections::BTreeMap;
use std::fmt;

use block::{Result, escape};

use crate::address::{GuestOffset, HostOffset};
use crate::entry::{L1Entry, L2Entry};
use crate::image::snapshot::{Change, Steps, Tree};
use crate::snapshot::Snapshot;

/// See the [module](self).
pub(super) struct Tables {
    pub(super) tree: Tree,
    /// How many L1 entries name a table.
    pub(super) uses: BTreeMap<HostOffset, u64>,
}

/// What there is in the tables.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Clusters that read as zeros, with a host cluster or without.
    pub(super) zeros: u64,
    pub(super) compressed: u64,
    pub(super) first_compressed: Option<Place>,
}

/// Where a cluster is, for a message.
#[derive(Debug)]
pub(super) struct Place {
    guest: GuestOffset,
    /// Whose disk that is; the image's own if it is nobody's.
    snapshot: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => write!(f, "at offset {}", self.guest),
            Some(name) => write!(f, "at offset {} of the snapshot '{}'", self.guest, escape(name)),
        }
    }
}

impl Tables {
    pub(super) fn of(change: &Change<'_>) -> Result<Self> {
        let image = change.image;
        let mut uses = BTreeMap::new();
        let mut add = |entries: &[u64]| {
            for (index, entry) in entries.iter().enumerate() {
                if let L1Entry::Table { host, .. } = image.decode_l1(*entry, index)? {
                    *uses.entry(host).or_insert(0) += 1;
                }
            }
            Ok::<_, block::Error>(())
        };
        add(&change.active_l1(image.l1.entries()))?;
        for snapshot in &change.table.snapshots {
            add(&change.snapshot_l1(snapshot)?)?;
        }
        let tree = Tree::of_tables(image, uses.keys().copied().collect())?;
        Ok(Self { tree, uses })
    }

    pub(super) fn count(&self) -> usize {
        self.tree.tables().len()
    }

    /// Decodes all entries. One that is no entry of the image's version is an error: another version would read it
    /// otherwise.
    pub(super) fn look(&self, change: &Change<'_>, steps: &mut Steps<'_>) -> Result<Seen> {
        let image = change.image;
        let geometry = image.geometry;
        let mut seen = Seen::default();
        let mut first = None;
        self.tree.for_each_batch(image, steps, |batch| {
            for (slot, words) in L2Entry::words(&batch.bytes, geometry).enumerate() {
                if L2Entry::is_plain(words, geometry) {
                    continue;
                }
                let (table, index) = (slot >> geometry.l2_bits(), slot & ((1 << geometry.l2_bits()) - 1));
                let entry = L2Entry::decode(words, index as u64, geometry, image.zero_flag)
                    .map_err(|corruption| image.corrupt(corruption))?;
                match entry {
                    L2Entry::Compressed(_) => {
                        seen.compressed += 1;
                        first.get_or_insert((batch.tables[table], index));
                    }
                    L2Entry::Standard { subclusters, .. } => seen.zeros += u64::from(subclusters.zero != 0),
                }
            }
            Ok(())
        })?;
        if let Some((table, index)) = first {
            seen.first_compressed = Some(place(change, table, index)?);
        }
        Ok(seen)
    }
}

/// The place of the `index`-th entry of a table: on the disk, or else on the disk of a snapshot.
fn place(change: &Change<'_>, table: HostOffset, index: usize) -> Result<Place> {
    let image = change.image;
    let found = |entries: &[u64]| {
        let mut entries = entries.iter().enumerate();
        entries.find_map(|(number, entry)| match image.decode_l1(*entry, number) {
            Ok(L1Entry::Table { host, .. }) if host == table => {
                let start = number as u64 * image.geometry.l2_coverage();
                Some(GuestOffset(
                    start + ((index as u64) << image.geometry.cluster_bits),
                ))
            }
            _ => None,
        })
    };
    let active = found(&change.active_l1(image.l1.entries()));
    let mut place = Place {
        guest: active.unwrap_or(GuestOffset(0)),
        snapshot: None,
    };
    let snapshots: &[Snapshot] = if active.is_none() {
        &change.table.snapshots
    } else {
        &[]
    };
    for snapshot in snapshots {
        if let Some(guest) = found(&change.snapshot_l1(snapshot)?) {
            place = Place {
                guest,
                snapshot: Some(snapshot.name.clone()),
            };
            break;
        }
    }
    Ok(place)
}
