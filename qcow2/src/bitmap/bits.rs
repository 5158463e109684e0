//! A bitmap's data in memory: bits that any number of threads set at once, and that take room where there are any.
//!
//! The bits lie in chunks of the size of a cluster, each of which becomes one entry of the bitmap's table. A chunk
//! without any bit set, or with all of them, takes no memory, so that what a bitmap costs follows from what the image
//! file holds, or from what was written to the disk: never from a size that a file claims.
//!
//! To set a bit that is set already, which is what nearly every write does, is a load and no more.

use std::ops::Range;
use std::sync::OnceLock;

use block::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use block::{Error, ErrorKind, Result, Scratch, Storage};

use super::table::{self, Room, TableEntry};
use super::{Bitmap, MAX_DATA};
use crate::geometry::Geometry;
use crate::limit::Limit;

/// Bits in a word.
const WORD: u64 = u64::BITS as u64;

/// A bitmap's contents: which parts of a disk are dirty.
#[derive(Debug)]
pub struct DirtyBits {
    size: u64,
    granularity_bits: u32,
    /// How many bits count; those after them in the last chunk are zero.
    bits: u64,
    /// log2 of the bits in a chunk.
    chunk_bits: u32,
    /// None of a chunk's bits is set before it is there.
    chunks: Box<[OnceLock<Chunk>]>,
    /// A bit was set since the bits were loaded.
    changed: AtomicBool,
}

#[derive(Debug)]
enum Chunk {
    /// Every bit is set. Not for the last chunk, unless all of its bits count.
    Ones,
    Words(Box<[AtomicU64]>),
}

/// What the table says of a chunk, with the data if it has some.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StoredChunk {
    Zeros,
    Ones,
    Data(Vec<u8>),
}

impl DirtyBits {
    /// Nothing of a disk of `size` bytes is dirty.
    ///
    /// # Errors
    /// `InvalidInput` if there would be no bits at all, for which QEMU has no table, or more than 512 MiB of them.
    pub(crate) fn clean(size: u64, granularity_bits: u32, geometry: Geometry) -> Result<Self> {
        let bits = super::bits(size, granularity_bits);
        if bits == 0 {
            return Err(Error::invalid("a disk of 0 bytes cannot have bitmaps"));
        }
        if bits > MAX_DATA * 8 {
            let limit = Limit::BitmapSize {
                bits,
                most: MAX_DATA * 8,
                granularity: 1 << granularity_bits,
            };
            return Err(limit.error(ErrorKind::InvalidInput, "use a larger granularity"));
        }
        let chunk_bits = geometry.cluster_bits + 3;
        let chunks = bits.div_ceil(1 << chunk_bits);
        Ok(Self {
            size,
            granularity_bits,
            bits,
            chunk_bits,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            changed: AtomicBool::new(false),
        })
    }

    /// All of a disk of `size` bytes is dirty.
    ///
    /// # Errors
    /// As [`clean`](Self::clean).
    pub(crate) fn all(size: u64, granularity_bits: u32, geometry: Geometry) -> Result<Self> {
        let mut bits = Self::clean(size, granularity_bits, geometry)?;
        for index in 0..bits.chunks.len() {
            let ones = bits.chunk_of_bytes(index, |_| 0xff);
            bits.chunks[index] = ones.map_or_else(OnceLock::new, OnceLock::from);
        }
        Ok(bits)
    }

    /// Reads the contents of a bitmap that [can be used](Bitmap::check_usable), and whose table and data fit into the room that others
    /// have left of the file.
    pub(crate) fn load(
        storage: &dyn Storage,
        bitmap: &Bitmap,
        size: u64,
        geometry: Geometry,
        room: &mut Room,
    ) -> Result<Self> {
        room.take(geometry.clusters(u64::from(bitmap.table_entries) * 8))?;
        let mut bits = Self::clean(size, bitmap.granularity_bits, geometry)?;
        let entries = table::read(storage, bitmap)?;
        let file_len = storage.len()?;
        let mut data = Scratch::new(geometry.cluster_size() as usize);
        for index in 0..bits.chunks.len() {
            let entry = entries.get(index).copied().unwrap_or(0);
            let loaded = match TableEntry::decode(entry, index as u64, geometry)? {
                TableEntry::Zeros => continue,
                TableEntry::Ones => bits.chunk_of_bytes(index, |_| 0xff),
                TableEntry::Data(host) => {
                    room.take(1)?;
                    table::check_inside("a bitmap's data", host, data.len() as u64, file_len)?;
                    storage.read_exact_at(&mut data, host.0)?;
                    bits.chunk_of_bytes(index, |i| data[i])
                }
            };
            bits.chunks[index] = loaded.map_or_else(OnceLock::new, OnceLock::from);
        }
        Ok(bits)
    }

    /// The chunk with these bytes, less bits that do not count. `None` if none is left.
    fn chunk_of_bytes(&self, index: usize, byte: impl Fn(usize) -> u8) -> Option<Chunk> {
        let start = (index as u64) << self.chunk_bits;
        let words = 1usize << (self.chunk_bits - WORD.ilog2());
        let counts = |word: usize| {
            let left = self.bits.saturating_sub(start + word as u64 * WORD);
            mask_below(left)
        };
        let word = |word: usize| {
            let bytes = std::array::from_fn(|i| byte(word * 8 + i));
            u64::from_le_bytes(bytes) & counts(word)
        };
        let words: Vec<u64> = (0..words).map(word).collect();
        if words.iter().all(|word| *word == 0) {
            None
        } else if words.iter().all(|word| *word == u64::MAX) {
            Some(Chunk::Ones)
        } else {
            Some(Chunk::Words(words.into_iter().map(AtomicU64::new).collect()))
        }
    }

    /// Length of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the disk that a bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// The dirty parts of the disk in bytes, in order, as long as they can be: what an incremental backup copies.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.find(at, true);
            if start == self.bits {
                return None;
            }
            at = self.find(start, false);
            let end = (at << self.granularity_bits).min(self.size);
            Some(start << self.granularity_bits..end)
        })
    }

    /// Makes `len` bytes at `offset` dirty, with what else the granularity takes in. They lie on the disk.
    pub(crate) fn set(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = (offset + (len - 1)) >> self.granularity_bits;
        let mut bit = offset >> self.granularity_bits;
        while bit <= last {
            let chunk = bit >> self.chunk_bits;
            let end = last.min(((chunk + 1) << self.chunk_bits) - 1);
            self.set_in_chunk(chunk as usize, self.in_chunk(bit)..=self.in_chunk(end));
            bit = end + 1;
        }
    }

    fn set_in_chunk(&self, index: usize, bits: std::ops::RangeInclusive<u64>) {
        let Chunk::Words(words) = self.chunks[index].get_or_init(|| self.empty_chunk()) else {
            return;
        };
        let (first, last) = (*bits.start(), *bits.end());
        for word in first / WORD..=last / WORD {
            let below = mask_below(last + 1 - word * WORD);
            let from = !mask_below(first.saturating_sub(word * WORD));
            let mask = below & from;
            let word = &words[word as usize];
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
                self.changed.store(true, Ordering::Relaxed);
            }
        }
    }

    fn empty_chunk(&self) -> Chunk {
        let words = 1 << (self.chunk_bits - WORD.ilog2());
        Chunk::Words((0..words).map(|_: u64| AtomicU64::new(0)).collect())
    }

    /// Makes dirty what is so in `source`, as far as the disk reaches.
    pub(crate) fn absorb(&self, source: &Self) {
        for range in source.ranges().take_while(|range| range.start < self.size) {
            self.set(range.start, range.end.min(self.size) - range.start);
        }
    }

    /// The same contents for a disk of another size: what is cut off is forgotten, and what is added is clean.
    ///
    /// # Errors
    /// `InvalidInput` if there would be no bits, or more than 512 MiB of them.
    pub fn resized(&self, size: u64) -> Result<Self> {
        let geometry = Geometry {
            cluster_bits: self.chunk_bits - 3,
            refcount_order: 0,
            extended_l2: false,
            data_file: false,
        };
        let resized = Self::clean(size, self.granularity_bits, geometry)?;
        resized.absorb(self);
        Ok(resized)
    }

    /// Whether a bit was set since the bits were loaded, or made.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Relaxed)
    }

    /// The chunks as the file is to hold them.
    pub(crate) fn stored_chunks(&self) -> impl ExactSizeIterator<Item = StoredChunk> + '_ {
        self.chunks.iter().map(|chunk| match chunk.get() {
            None => StoredChunk::Zeros,
            Some(Chunk::Ones) => StoredChunk::Ones,
            Some(Chunk::Words(words)) => {
                let all = |word: u64| words.iter().all(|other| other.load(Ordering::Relaxed) == word);
                if all(0) {
                    StoredChunk::Zeros
                } else if all(u64::MAX) {
                    StoredChunk::Ones
                } else {
                    let bytes = words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes());
                    StoredChunk::Data(bytes.collect())
                }
            }
        })
    }

    fn in_chunk(&self, bit: u64) -> u64 {
        bit & ((1 << self.chunk_bits) - 1)
    }

    /// The first bit from `from` on that is set, or is not; the number of bits if there is none.
    fn find(&self, from: u64, set: bool) -> u64 {
        let mut bit = from;
        while bit < self.bits {
            let index = bit >> self.chunk_bits;
            let found = match self.chunks[index as usize].get() {
                None => (!set).then_some(self.in_chunk(bit)),
                Some(Chunk::Ones) => set.then_some(self.in_chunk(bit)),
                Some(Chunk::Words(words)) => find_in_words(words, self.in_chunk(bit), set),
            };
            let start = index << self.chunk_bits;
            if let Some(found) = found {
                return (start + found).min(self.bits);
            }
            bit = start + (1 << self.chunk_bits);
        }
        self.bits
    }
}

impl Clone for DirtyBits {
    /// The bits as they are now; those that are being set meanwhile may be missing.
    fn clone(&self) -> Self {
        let copy = |chunk: &OnceLock<Chunk>| match chunk.get() {
            None => OnceLock::new(),
            Some(Chunk::Ones) => OnceLock::from(Chunk::Ones),
            Some(Chunk::Words(words)) => {
                let words = words.iter().map(|word| word.load(Ordering::Relaxed).into());
                OnceLock::from(Chunk::Words(words.collect()))
            }
        };
        Self {
            chunks: self.chunks.iter().map(copy).collect(),
            changed: AtomicBool::new(self.is_changed()),
            ..*self
        }
    }
}

/// The `bits` lowest bits of a word, all of them from 64 on.
fn mask_below(bits: u64) -> u64 {
    if bits >= WORD { u64::MAX } else { (1 << bits) - 1 }
}

fn find_in_words(words: &[AtomicU64], from: u64, set: bool) -> Option<u64> {
    let flip = if set { 0 } else { u64::MAX };
    let mut skip = mask_below(from % WORD);
    for (index, word) in words.iter().enumerate().skip((from / WORD) as usize) {
        let wanted = (word.load(Ordering::Relaxed) ^ flip) & !skip;
        if wanted != 0 {
            return Some(index as u64 * WORD + u64::from(wanted.trailing_zeros()));
        }
        skip = 0;
    }
    None
}

#[cfg(test)]
mod tests {
    use bitvec::prelude::{BitVec, Lsb0};
    use block::test_utils::Rng;

    use super::*;

    const G: Geometry = Geometry {
        cluster_bits: 9,
        refcount_order: 4,
        extended_l2: false,
        data_file: false,
    };

    fn bits_of(bits: &DirtyBits) -> BitVec<u8, Lsb0> {
        let mut seen = BitVec::repeat(false, bits.bits as usize);
        for range in bits.ranges() {
            let granularity = bits.granularity();
            let end = range.end.div_ceil(granularity) as usize;
            seen[(range.start / granularity) as usize..end].fill(true);
        }
        seen
    }

    /// Random ranges against one bit after the other.
    #[test]
    fn ranges_are_those_that_were_set() {
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let size = (rng.below(12_000) + 1) * 512 - rng.below(512);
            let bits = DirtyBits::clean(size, 9, G).unwrap();
            let mut expected: BitVec<u8, Lsb0> = BitVec::repeat(false, bits.bits as usize);
            for _ in 0..rng.below(20) {
                let offset = rng.below(size);
                let len = 1 + rng.below((size - offset).min(4_000_000));
                bits.set(offset, len);
                expected[(offset / 512) as usize..(offset + len).div_ceil(512) as usize].fill(true);
            }
            assert_eq!(bits_of(&bits), expected, "seed {seed}");
            let before = bits.ranges().collect::<Vec<_>>();
            let other = rng.below(size * 2) + 1;
            let resized = bits.resized(other).unwrap();
            let mut expected = expected;
            expected.resize(resized.bits as usize, false);
            assert_eq!(bits_of(&resized), expected, "seed {seed} resized to {other}");
            assert_eq!(bits.clone().ranges().collect::<Vec<_>>(), before);
        }
    }

    #[test]
    fn stored_chunks_name_zeros_and_ones_and_keep_the_tail_clear() {
        // Two chunks of 4,096 bits, and one of which 100 count.
        let bits = DirtyBits::clean((2 * 4096 + 100) * 512, 9, G).unwrap();
        bits.set(4096 * 512, (4096 + 100) * 512);
        let chunks: Vec<_> = bits.stored_chunks().collect();
        let mut tail = vec![0; 512];
        tail[..12].fill(0xff);
        tail[12] = 0xf;
        assert_eq!(
            chunks,
            [StoredChunk::Zeros, StoredChunk::Ones, StoredChunk::Data(tail)]
        );
        let ranges: Vec<_> = bits.ranges().map(|range| (range.start, range.end)).collect();
        assert_eq!(ranges, [(4096 * 512, bits.size())]);
    }

    #[test]
    fn says_whether_anything_new_was_set() {
        let bits = DirtyBits::clean(1 << 20, 16, G).unwrap();
        assert!(!bits.is_changed());
        bits.set(0, 1);
        assert!(bits.is_changed());
    }

    #[test]
    fn refuses_more_bits_than_may_be() {
        assert!(DirtyBits::clean(2 << 40, 9, G).is_ok());
        let error = DirtyBits::clean((2 << 40) + 1, 9, G).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }
}
