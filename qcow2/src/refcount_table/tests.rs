//! The table beside a map from clusters to numbers, and what it hands to a flush.

use std::collections::BTreeMap;

use block::test_utils::{Rng, seeds};
use block::{ErrorKind, MemStorage};

use super::*;
use crate::header::Header;
use crate::{CreateOptions, create};

/// Clusters that get refcounts.
const CLUSTERS: u64 = 1500;
/// Where the block with a number goes: behind them.
const BLOCKS: u64 = 3000;

/// The table of a new image.
fn table(cluster_bits: u32, refcount_order: u32) -> (Arc<MemStorage>, RefcountTable) {
    let storage = Arc::new(MemStorage::new());
    let options = CreateOptions {
        size: 1 << 16,
        cluster_bits,
        refcount_order,
        ..CreateOptions::default()
    };
    create(&*storage, &options).unwrap();
    let table = open(&storage);
    (storage, table)
}

fn open(storage: &Arc<MemStorage>) -> RefcountTable {
    let header = Header::read(&**storage).unwrap();
    let place = header.refcount_table_offset;
    let clusters = header.refcount_table_clusters;
    RefcountTable::open(storage.clone(), header.geometry, place, clusters).unwrap()
}

/// Writes what a flush does, but for the header.
fn write(storage: &MemStorage, writes: &RefcountWrites) {
    for write in writes.blocks.iter().chain(&writes.table) {
        storage.write_all_at(&write.bytes, write.at.0).unwrap();
    }
}

/// Whether it is over: one flush.
fn flush(storage: &MemStorage, table: &mut RefcountTable) -> Option<Range<u64>> {
    let writes = table.take_writes();
    write(storage, &writes);
    let left = table.written(&writes);
    assert!(!table.is_dirty());
    left
}

struct Model {
    storage: Arc<MemStorage>,
    table: RefcountTable,
    /// Only those that are not 0.
    counts: BTreeMap<u64, u64>,
    /// Clusters of the blocks by their number.
    blocks: BTreeMap<u64, u64>,
    max: u64,
    bits: u32,
}

impl Model {
    fn new(refcount_order: u32) -> Self {
        let (storage, mut table) = table(9, refcount_order);
        let geometry = table.geometry;
        let counts = (0..CLUSTERS).filter_map(|cluster| {
            let count = table.refcount(ClusterIndex(cluster)).unwrap();
            (count > 0).then_some((cluster, count))
        });
        let counts = counts.collect();
        let entries = table.table.iter().enumerate().filter(|(_, entry)| **entry != 0);
        let blocks = entries
            .map(|(number, entry)| (number as u64, entry >> 9))
            .collect();
        Self {
            storage,
            counts,
            blocks,
            max: geometry.max_refcount(),
            bits: geometry.refcount_block_bits(),
            table,
        }
    }

    fn count(&self, cluster: u64) -> u64 {
        self.counts.get(&cluster).copied().unwrap_or(0)
    }

    fn note(&mut self, cluster: u64, count: u64) {
        match count {
            0 => drop(self.counts.remove(&cluster)),
            _ => drop(self.counts.insert(cluster, count)),
        }
    }

    /// Makes the block that counts a cluster.
    fn ensure(&mut self, cluster: u64) {
        while let Some(number) = self.table.missing_block(cluster..cluster + 1) {
            let place = BLOCKS + number as u64;
            self.table.add_block(number, ClusterIndex(place));
            self.blocks.insert(number as u64, place);
            self.set(place, 1);
        }
    }

    fn set(&mut self, cluster: u64, count: u64) {
        self.ensure(cluster);
        assert_eq!(
            self.table.block_number(ClusterIndex(cluster)) as u64,
            cluster >> self.bits
        );
        self.table.set(ClusterIndex(cluster), count).unwrap();
        self.note(cluster, count);
    }

    /// The parts of a range that blocks count.
    fn pieces(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let numbers = range.start >> self.bits..=(range.end - 1) >> self.bits;
        let piece = |number: u64| {
            let of_block = number << self.bits..(number + 1) << self.bits;
            range.start.max(of_block.start)..range.end.min(of_block.end)
        };
        numbers.map(piece).collect()
    }

    /// Raises or lowers the counts in a range, piece by piece, as far as that goes. Whether all of it did, and what is free now.
    fn change(&mut self, range: Range<u64>, change: impl Fn(u64) -> Option<u64>) -> (bool, Vec<Range<u64>>) {
        let mut unused: Vec<Range<u64>> = Vec::new();
        for piece in self.pieces(range) {
            let changed: Option<Vec<u64>> =
                piece.clone().map(|cluster| change(self.count(cluster))).collect();
            let Some(changed) = changed.filter(|_| self.blocks.contains_key(&(piece.start >> self.bits)))
            else {
                return (false, unused);
            };
            let mut in_piece: Vec<Range<u64>> = Vec::new();
            for (cluster, count) in piece.zip(changed) {
                self.note(cluster, count);
                match in_piece.last_mut() {
                    _ if count > 0 => {}
                    Some(last) if last.end == cluster => last.end += 1,
                    _ => in_piece.push(cluster..cluster + 1),
                }
            }
            unused.extend(in_piece);
        }
        (true, unused)
    }

    fn raise(&mut self, range: Range<u64>, by: u64) {
        let (max, existing) = (self.max, self.table.missing_block(range.clone()).is_none());
        let raised = self.table.raise(range.clone(), by);
        let raise = |count: u64| count.checked_add(by).filter(|count| *count <= max);
        let (whole, _) = self.change(range, raise);
        assert_eq!(raised.is_ok(), whole);
        if let Err(error) = raised {
            let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
            assert!(kinds[usize::from(existing)..].contains(&error.kind()), "{error}");
        }
    }

    fn lower(&mut self, range: Range<u64>, by: u64) {
        let mut unused = Vec::new();
        let lowered = self.table.lower(range.clone(), by, &mut |run| unused.push(run));
        let (whole, expected) = self.change(range, |count| count.checked_sub(by));
        assert_eq!((lowered.is_ok(), unused), (whole, expected));
        if let Err(error) = lowered {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }

    fn compare(&mut self, rng: &mut Rng) {
        let start = rng.below(CLUSTERS);
        let range = start..start + 1 + rng.below(300);
        let counts = || range.clone().map(|cluster| self.count(cluster));
        let extremes = (counts().min().unwrap(), counts().max().unwrap());
        let missing = self
            .pieces(range.clone())
            .into_iter()
            .map(|piece| piece.start >> self.bits);
        let missing = missing.filter(|number| !self.blocks.contains_key(number)).min();
        let wanted = 1 + rng.below(20);
        let is_free = |at: &u64| (*at..at + wanted).all(|cluster| self.count(cluster) == 0);
        let free = (start..2 * BLOCKS).find(is_free).unwrap();
        let end = self
            .counts
            .range(start..)
            .next_back()
            .map_or(start, |(last, _)| last + 1);

        assert_eq!(self.table.extremes(range.clone()).unwrap(), extremes);
        assert_eq!(
            self.table.missing_block(range).map(|number| number as u64),
            missing
        );
        assert_eq!(self.table.find_free(ClusterIndex(start), wanted).unwrap().0, free);
        assert_eq!(self.table.end_from(ClusterIndex(start)).unwrap().0, end);
        assert_eq!(
            self.table.refcount(ClusterIndex(start)).unwrap(),
            self.count(start)
        );
    }

    /// All of it, and where the blocks are.
    fn compare_all(&mut self) {
        for cluster in 0..BLOCKS + 100 {
            let count = self.table.refcount(ClusterIndex(cluster)).unwrap();
            assert_eq!(count, self.count(cluster), "cluster {cluster}");
        }
        let mut places: Vec<u64> = self.table.metadata().skip(1).map(|range| range.start).collect();
        places.sort_unstable();
        assert!(
            places.iter().eq(self.blocks.values()),
            "{places:?} {:?}",
            self.blocks
        );
    }
}

#[test]
fn counts_as_a_map_does_before_and_after_it_is_written() {
    for order in 0..=6 {
        for seed in seeds(6) {
            let mut rng = Rng::new(seed * 7 + u64::from(order));
            let mut model = Model::new(order);
            let room = (BLOCKS + 64) << 9;
            model.storage.set_len(room).unwrap();
            for _ in 0..120 {
                let start = rng.below(CLUSTERS);
                let range = start..start + 1 + rng.below(300);
                let by = 1 + rng.below(2);
                match rng.below(8) {
                    0 | 1 => model.set(start, rng.below(model.max.min(3) + 1)),
                    2 => range.for_each(|cluster| model.set(cluster, model.max.min(by))),
                    3 => model.set(start, model.max),
                    4 => model.raise(range, by),
                    5 | 6 => model.lower(range, by),
                    _ => assert_eq!(flush(&model.storage, &mut model.table), None),
                }
                model.compare(&mut rng);
            }
            model.compare_all();
            flush(&model.storage, &mut model.table);
            model.table = open(&model.storage);
            model.compare_all();
        }
    }
}

#[test]
fn whole_sectors_that_changed_are_written_and_no_others() {
    let (storage, mut table) = table(16, 4);
    let place = table.table[0];
    let pieces = |writes: &RefcountWrites| {
        let pieces = writes.blocks.iter();
        let pieces = pieces.map(|write| (write.at.0 - place, write.bytes.len()));
        pieces.collect::<Vec<_>>()
    };
    table.set(ClusterIndex(300), 1).unwrap();
    assert!(table.is_dirty());
    let writes = table.take_writes();
    assert_eq!(pieces(&writes), [(512, 512)]);
    assert!(writes.table.is_empty() && writes.moved_to.is_none() && !table.is_dirty());
    // Another change while that is being written waits for the next.
    table.set(ClusterIndex(1000), 1).unwrap();
    table.set(ClusterIndex(300), 2).unwrap();
    write(&storage, &writes);
    table.written(&writes);
    assert_eq!(pieces(&table.take_blocks()), [(512, 1536)]);
    table.raise(511..513, 1).unwrap();
    assert_eq!(pieces(&table.take_blocks()), [(512, 1024)]);
    table.lower(512..513, 1, &mut |_| {}).unwrap();
    assert_eq!(pieces(&table.take_blocks()), [(1024, 512)]);
    // The last sector of a block.
    table.set(ClusterIndex((1 << 15) - 1), 1).unwrap();
    assert_eq!(pieces(&table.take_blocks()), [((1 << 16) - 512, 512)]);
    assert_eq!(pieces(&table.take_writes()), []);
}

#[test]
fn new_blocks_are_written_before_the_entries_that_name_them() {
    let (_, mut table) = table(9, 4);
    assert_eq!((table.has_entry(63), table.has_entry(64)), (true, false));
    for number in [3, 2] {
        table.add_block(number, ClusterIndex(100 + number as u64));
    }
    table.set(ClusterIndex(3 << 8), 9).unwrap();
    let writes = table.take_writes();
    let blocks: Vec<_> = writes
        .blocks
        .iter()
        .map(|write| (write.at.0 >> 9, write.bytes.len()))
        .collect();
    assert_eq!(blocks, [(102, 512), (103, 512)]);
    assert_eq!(writes.blocks[1].bytes[..3], [0, 9, 0]);
    let entries: Vec<_> = writes
        .table
        .iter()
        .map(|write| (write.at.0, &*write.bytes))
        .collect();
    let start = table.place.0;
    let [second, third] = [102_u64 << 9, 103 << 9].map(u64::to_be_bytes);
    assert_eq!(entries, [(start + 16, &second[..]), (start + 24, &third[..])]);
    assert_eq!(table.written(&writes), None);
    assert!(table.take_writes().table.is_empty());
}

#[test]
fn a_table_that_moves_is_written_whole_and_leaves_its_old_place_once_nothing_names_it() {
    let (storage, mut table) = table(9, 4);
    let first = table.table_clusters();
    // Half as much again as it takes, in whole clusters.
    assert_eq!(table.grown_clusters(64).unwrap(), 2);
    assert_eq!(table.grown_clusters(84).unwrap(), 2);
    assert_eq!(table.grown_clusters(85).unwrap(), 3);
    assert_eq!(table.move_to(ClusterIndex(200), 2), None);
    assert_eq!((table.has_entry(127), table.has_entry(128)), (true, false));
    // Nothing has named the place that it leaves.
    assert_eq!(table.move_to(ClusterIndex(300), 3), Some(200..202));
    assert_eq!(table.metadata().next(), Some(300..303));
    assert!(table.is_dirty());
    let writes = table.take_writes();
    assert_eq!(writes.moved_to, Some((HostOffset(300 << 9), 3)));
    assert_eq!(
        (writes.table.len(), writes.table[0].at),
        (1, HostOffset(300 << 9))
    );
    assert_eq!(writes.table[0].bytes.len(), 3 * 512);
    // The header is about to name the place that it leaves now.
    assert_eq!(table.move_to(ClusterIndex(400), 4), None);
    write(&storage, &writes);
    assert_eq!(table.written(&writes), Some(first));
    assert!(table.is_dirty());
    let writes = table.take_writes();
    assert_eq!(writes.moved_to, Some((HostOffset(400 << 9), 4)));
    assert_eq!(table.written(&writes), Some(300..303));
    assert!(!table.is_dirty());
    assert_eq!(table.take_writes().moved_to, None);
}

#[test]
fn a_table_has_8_mib_at_most() {
    let (_, small) = table(9, 4);
    assert_eq!(small.grown_clusters((1 << 20) - 1).unwrap(), 1 << 14);
    let error = small.grown_clusters(1 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let (_, large) = table(21, 4);
    assert_eq!(large.grown_clusters((1 << 20) - 1).unwrap(), 4);
    assert!(large.grown_clusters(1 << 20).is_err());
}

#[test]
fn there_is_no_cluster_behind_the_last_offset() {
    let (_, mut table) = table(16, 4);
    let last = (MAX_HOST_OFFSET >> 16) - 1;
    assert_eq!(table.find_free(ClusterIndex(last), 1).unwrap().0, last);
    let error = table.find_free(ClusterIndex(last), 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(table.find_free(ClusterIndex(last + 1), 1).is_err());
}

#[test]
fn blocks_that_count_nothing_but_themselves_are_dropped() {
    let (storage, mut table) = table(9, 4);
    storage.set_len(1 << 20).unwrap();
    // Nothing; itself; something else; itself and something else. A block counts 256 clusters.
    for (number, cluster) in [(1, 100), (2, 2 << 8), (3, 101), (4, 4 << 8)] {
        table.add_block(number, ClusterIndex(cluster));
    }
    for cluster in [2 << 8, (3 << 8) + 7, 4 << 8, (4 << 8) + 255] {
        table.set(ClusterIndex(cluster), 1).unwrap();
    }
    flush(&storage, &mut table);
    assert_eq!(
        table.drop_empty_blocks().unwrap(),
        [ClusterIndex(100), ClusterIndex(2 << 8)]
    );
    assert!(table.is_dirty());
    assert_eq!(table.missing_block(0..5 << 8), Some(1));
    assert_eq!(table.missing_block(2 << 8..5 << 8), Some(2));
    assert_eq!(table.missing_block(3 << 8..5 << 8), None);
    flush(&storage, &mut table);
    let mut again = open(&storage);
    let left: Vec<usize> = (0..6).filter(|number| again.table[*number] != 0).collect();
    assert_eq!(left, [0, 3, 4]);
    assert_eq!(again.drop_empty_blocks().unwrap(), []);
}

#[test]
fn blocks_that_wait_to_be_written_stay_in_memory_and_others_go() {
    // Two blocks of 2 MiB are kept.
    let (storage, mut table) = table(21, 6);
    let first = |number: u64| ClusterIndex(number << 18);
    assert!(!table.is_full());
    for number in 1..5 {
        table.add_block(number, ClusterIndex(10 + number as u64));
        table.set(first(number as u64), number as u64).unwrap();
    }
    assert!(table.is_full());
    let writes = table.take_writes();
    // They are not in the file yet, and are not read from there.
    storage.set_len(20 << 21).unwrap();
    table.refcount(ClusterIndex(0)).unwrap();
    for number in 1..5 {
        assert_eq!(table.refcount(first(number)).unwrap(), number);
    }
    write(&storage, &writes);
    table.written(&writes);
    assert!(!table.is_full() && table.blocks.len() < 2);
    for number in [1, 2, 3, 2, 4] {
        assert_eq!(table.refcount(first(number)).unwrap(), number);
        assert!(table.blocks.len() <= 2);
    }
    // The one that was used longest ago has gone.
    assert!(table.blocks.contains_key(&2) && table.blocks.contains_key(&4));
}

#[test]
fn entries_that_lead_nowhere_are_errors() {
    for (entry, says) in [
        ((1_u64 << 40), "refcount block"),
        (513, "reserved bits"),
        (1 << 63 | 512, ""),
    ] {
        let (storage, table) = table(9, 4);
        storage
            .write_all_at(&entry.to_be_bytes(), table.place.0 + 8)
            .unwrap();
        let mut table = open(&storage);
        for error in [
            table.refcount(ClusterIndex(300)).unwrap_err(),
            table.set(ClusterIndex(300), 1).unwrap_err(),
            table.extremes(0..300).unwrap_err(),
            table.find_free(ClusterIndex(300), 1).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
    let (_, mut table) = table(9, 4);
    assert_eq!(
        table.set(ClusterIndex(300), 1).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(table.extremes(300..301).unwrap(), (0, 0));
}
