//! Guest offset to host offset ("Cluster mapping"): the hot path, and how table slices come into the cache.
//!
//! A look-up that hits the cache reads one slot of [`SliceCache`](block::slice_cache::SliceCache) and decodes the
//! entry: no lock, no allocation, and not even the L1 table, since slots are found by guest offset. A miss reads
//! the L1 entry and then 4 KiB of the L2 table, with no lock held over the I/O.
//!
//! An extended L2 entry is a pair of words in the cache. A run then may start and end inside a cluster; the bits of
//! its subclusters are counted, not looked at one by one.

use block::slice_cache::{Inserted, MAX_SLICE_ENTRIES};
use block::{Error, Result, Storage};
use byteorder::{BigEndian, ByteOrder};

use super::Image;
use crate::address::{GuestOffset, HostOffset};
use crate::corruption::Corruption;
use crate::entry::{L1Entry, L2Entry, L2Mapping};

impl Image {
    /// What this layer says about the subcluster that `guest` lies in: about its cluster, in an image without
    /// extended L2 entries. Offsets past the end of the disk are unallocated.
    ///
    /// In an image that is being written to, what a host offset holds may be another cluster's as soon as this has
    /// returned.
    ///
    /// # Errors
    /// `Corrupt` for an entry that the format does not allow, or a table outside the file; `Io`.
    #[inline]
    pub fn lookup(&self, guest: GuestOffset) -> Result<L2Mapping> {
        let _pin = self.pin();
        self.mapping(guest)
    }

    /// [`lookup`](Self::lookup), for a request that has counted itself in.
    #[inline]
    pub(super) fn mapping(&self, guest: GuestOffset) -> Result<L2Mapping> {
        if self.geometry.extended_l2 {
            return Ok(self.run_of_entry(guest)?.0);
        }
        let (slice, index) = self.slice_of(guest);
        let entry = match self.cache.get(slice, index) {
            Some(entry) => entry,
            None => self.load(guest)?[0],
        };
        let mapping = L2Mapping::decode(
            entry,
            self.geometry.l2_index(guest) as u64,
            self.geometry,
            self.zero_flag,
        )
        .map_err(|corruption| self.corrupt_entry(corruption, guest))?;
        if self.geometry.data_file
            && let L2Mapping::Standard { host, .. }
            | L2Mapping::Zero {
                preallocated: Some((host, _)),
            } = mapping
        {
            self.check_place_in_data_file(host, guest)?;
        }
        Ok(mapping)
    }

    /// The whole entry of the cluster that `guest` lies in.
    pub(super) fn entry(&self, guest: GuestOffset) -> Result<L2Entry> {
        self.decode_l2(self.words(guest)?, guest)
    }

    /// The same as it is stored.
    pub(super) fn words(&self, guest: GuestOffset) -> Result<[u64; 2]> {
        let (slice, index) = self.slice_of(guest);
        match self.cached_words(slice, index) {
            Some(words) => Ok(words),
            None => self.load(guest),
        }
    }

    pub(super) fn decode_l2(&self, words: [u64; 2], guest: GuestOffset) -> Result<L2Entry> {
        let entry = L2Entry::decode(
            words,
            self.geometry.l2_index(guest) as u64,
            self.geometry,
            self.zero_flag,
        )
        .map_err(|corruption| self.corrupt_entry(corruption, guest))?;
        if self.geometry.data_file
            && let L2Entry::Standard {
                host: Some((host, _)),
                ..
            } = entry
        {
            self.check_place_in_data_file(host, guest)?;
        }
        Ok(entry)
    }

    /// The words of the `index`-th entry of a slice, if that is in the cache.
    fn cached_words(&self, slice: u64, index: usize) -> Option<[u64; 2]> {
        if self.geometry.extended_l2 {
            self.cache.get_pair(slice, 2 * index)
        } else {
            Some([self.cache.get(slice, index)?, 0])
        }
    }

    /// What is said about the subcluster of `guest`, and how many bytes of the cluster, from `guest` on, it is said
    /// about.
    fn run_of_entry(&self, guest: GuestOffset) -> Result<(L2Mapping, u64)> {
        let subcluster = self.geometry.subcluster_of(guest);
        let (mapping, count) = self.entry(guest)?.run(subcluster, self.geometry);
        let len = u64::from(count) << self.geometry.subcluster_bits();
        Ok((mapping, len - self.geometry.in_subcluster(guest)))
    }

    /// As [`mapping`](Self::mapping), with the length of its run: how many bytes from `guest` on, `most` at most, are
    /// in the same state, and adjacent in the file. A compressed cluster is a run of its own.
    pub(super) fn run(&self, guest: GuestOffset, most: u64) -> Result<(L2Mapping, u64)> {
        let (mapping, mut len) = self.run_in_cluster(guest)?;
        while len < most {
            let (next, more) = self.run_in_cluster(guest + len)?;
            if !continues(mapping, next, len + self.geometry.in_subcluster(guest)) {
                break;
            }
            len += more;
        }
        Ok((mapping, len.min(most)))
    }

    fn run_in_cluster(&self, guest: GuestOffset) -> Result<(L2Mapping, u64)> {
        if self.geometry.extended_l2 {
            return self.run_of_entry(guest);
        }
        let len = self.geometry.cluster_size() - self.geometry.in_cluster(guest);
        Ok((self.mapping(guest)?, len))
    }

    /// Which slice maps `guest`, counted over the whole disk, and which of its entries does.
    #[inline]
    pub(super) fn slice_of(&self, guest: GuestOffset) -> (u64, usize) {
        let cluster = guest.0 >> self.geometry.cluster_bits;
        let bits = self.geometry.slice_bits();
        (cluster >> bits, (cluster & ((1 << bits) - 1)) as usize)
    }

    /// The first guest offset that slice `slice` maps.
    pub(super) fn slice_start(&self, slice: u64) -> GuestOffset {
        GuestOffset(slice << (self.geometry.slice_bits() + self.geometry.cluster_bits))
    }

    /// One past the last guest offset that the slice of `guest` maps.
    pub(super) fn slice_end(&self, guest: GuestOffset) -> GuestOffset {
        self.slice_start(self.slice_of(guest).0 + 1)
    }

    /// The L1 entry for `guest`.
    pub(super) fn l1_entry(&self, guest: GuestOffset) -> Result<L1Entry> {
        let index = self.geometry.l1_index(guest);
        self.decode_l1(self.l1.load(index), index)
    }

    pub(super) fn decode_l1(&self, entry: u64, index: usize) -> Result<L1Entry> {
        L1Entry::decode(entry, index as u64, self.geometry).map_err(|corruption| self.corrupt(corruption))
    }

    /// Where a slice lies in the file, given its L2 table.
    pub(super) fn slice_place(&self, slice: u64, table: HostOffset) -> HostOffset {
        let slices_per_table = 1 << (self.geometry.l2_bits() - self.geometry.slice_bits());
        table + slice % slices_per_table * (self.geometry.slice_words() as u64 * 8)
    }

    /// The words of the entry of `guest`, which is not in the cache.
    fn load(&self, guest: GuestOffset) -> Result<[u64; 2]> {
        // Every look-up in a new overlay comes here: where there is no table, nothing is made ready for one.
        match self.l1_entry(guest)? {
            L1Entry::Unallocated => Ok([0; 2]),
            L1Entry::Table { .. } => self.load_slice(guest),
        }
    }

    #[cold]
    fn load_slice(&self, guest: GuestOffset) -> Result<[u64; 2]> {
        let (slice, index) = self.slice_of(guest);
        loop {
            let mut entries = [0; MAX_SLICE_ENTRIES];
            // The ticket before the L1 entry: were it the other way round, a table that moved and changed in
            // between would be read at its old place without the ticket's telling.
            let ticket = self.cache.ticket(slice);
            let L1Entry::Table { host, .. } = self.l1_entry(guest)? else {
                return Ok([0; 2]);
            };
            let entries = self.read_slice(slice, host, &mut entries)?;
            match self.cache.insert(slice, entries, ticket) {
                Inserted::Stale => {}
                Inserted::Full => return Ok(self.words_at(entries, index)),
                Inserted::Yes => {
                    if let Some(words) = self.cached_words(slice, index) {
                        return Ok(words);
                    }
                }
            }
        }
    }

    /// Brings the slice of `guest` into the cache; its table must exist. It may be evicted again at once.
    pub(super) fn load_for_update(&self, guest: GuestOffset) -> Result<()> {
        let (slice, index) = self.slice_of(guest);
        while self.cached_words(slice, index).is_none() {
            let mut entries = [0; MAX_SLICE_ENTRIES];
            let ticket = self.cache.ticket(slice);
            let L1Entry::Table { host, .. } = self.l1_entry(guest)? else {
                return Ok(());
            };
            let entries = self.read_slice(slice, host, &mut entries)?;
            if self.cache.insert(slice, entries, ticket) == Inserted::Full {
                self.write_back_for_guest()?;
            }
        }
        Ok(())
    }

    /// The words of the `index`-th entry of a slice.
    pub(super) fn words_at(&self, slice: &[u64], index: usize) -> [u64; 2] {
        if self.geometry.extended_l2 {
            [slice[2 * index], slice[2 * index + 1]]
        } else {
            [slice[index], 0]
        }
    }

    fn read_slice<'a>(&self, slice: u64, table: HostOffset, entries: &'a mut [u64]) -> Result<&'a [u64]> {
        let entries = &mut entries[..self.geometry.slice_words()];
        self.check_inside("L2 table", table, self.geometry.cluster_size())?;
        let mut bytes = [0; MAX_SLICE_ENTRIES * 8];
        let bytes = &mut bytes[..entries.len() * 8];
        self.storage
            .read_exact_at(bytes, self.slice_place(slice, table).0)?;
        BigEndian::read_u64_into(bytes, entries);
        Ok(entries)
    }

    /// Refuses metadata that lies past the end of the file: reading it as zeros would make data disappear.
    pub(super) fn check_inside(&self, what: &'static str, start: HostOffset, len: u64) -> Result<()> {
        let file_len = self.storage.len()?;
        if start.0.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(self.corrupt(Corruption::BeyondEnd {
                what,
                start,
                len,
                file_len,
            }));
        }
        Ok(())
    }

    #[cold]
    pub(super) fn corrupt_entry(&self, corruption: Corruption, guest: GuestOffset) -> Error {
        self.corrupt(corruption).with_hint(format!(
            "the guest's data at offset {guest} cannot be found; check the image"
        ))
    }

    #[cold]
    pub(super) fn corrupt(&self, corruption: Corruption) -> Error {
        Error::corrupt(corruption).with_path_of(self.storage.path())
    }
}

/// Whether a subcluster mapped as `next`, `distance` bytes after the start of one mapped as `first`, goes on with it.
fn continues(first: L2Mapping, next: L2Mapping, distance: u64) -> bool {
    let adjacent = |a: HostOffset, b: HostOffset| a + distance == b;
    match (first, next) {
        (L2Mapping::Unallocated, L2Mapping::Unallocated)
        | (L2Mapping::Zero { preallocated: None }, L2Mapping::Zero { preallocated: None }) => true,
        (L2Mapping::Standard { host: a, copied: x }, L2Mapping::Standard { host: b, copied: y })
        | (
            L2Mapping::Zero {
                preallocated: Some((a, x)),
            },
            L2Mapping::Zero {
                preallocated: Some((b, y)),
            },
        ) => adjacent(a, b) && x == y,
        _ => false,
    }
}
