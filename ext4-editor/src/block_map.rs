//! Block maps ("Direct/Indirect Block Addressing") for files of filesystems without extents: twelve numbers of blocks,
//! and one each of a block of such numbers, of a block of numbers of those, and once more. 0 is a hole.

use block::{Error, Result};
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{Extent, MAP_SIZE};

const DIRECT: u64 = 12;
/// Levels of blocks of numbers.
const LEVELS: u32 = 3;

/// Blocks that a file may have: as many as there is a number for, and a count of 512-byte sectors in 32 bits with those of the map.
pub(crate) fn max_blocks(block_size: usize) -> u64 {
    let numbers = block_size as u64 / 4;
    let (squared, cubed) = (numbers.pow(2), numbers.pow(3));
    let nodes = 1 + (1 + numbers) + (1 + numbers + squared);
    let counted = u64::from(u32::MAX) / (block_size as u64 / 512);
    (DIRECT + numbers + squared + cubed).min(counted.saturating_sub(nodes))
}

/// Blocks of numbers in the map of these runs.
pub(crate) fn nodes(runs: &[Extent], block_size: usize) -> u64 {
    let mut count = 0;
    let counted = encode(runs, block_size, |_| {
        count += 1;
        Ok(1)
    });
    // What cannot be mapped fails when it is written.
    counted.map_or(0, |_| count)
}

/// Makes the map of sorted runs. `write` takes each block of numbers and says where it put it.
///
/// # Errors
/// `InvalidInput` for what it cannot hold; those of `write`.
pub(crate) fn encode(
    runs: &[Extent],
    block_size: usize,
    mut write: impl FnMut(&[u8]) -> Result<u64>,
) -> Result<[u8; MAP_SIZE]> {
    let mut encoder = Encoder {
        runs,
        block_size,
        write: &mut write,
    };
    let mut map = [0; MAP_SIZE];
    let mut first = 0;
    for place in 0..DIRECT as usize + LEVELS as usize {
        let level = (place as u32 + 1).saturating_sub(DIRECT as u32);
        let number = encoder.number(level, first)?;
        LittleEndian::write_u32(&mut map[place * 4..], number);
        first += encoder.span(level);
    }
    match runs.last() {
        Some(last) if u64::from(last.logical) + u64::from(last.len) > first => Err(Error::invalid(
            "the file is too large for a filesystem without extents",
        )),
        _ => Ok(map),
    }
}

struct Encoder<'a> {
    runs: &'a [Extent],
    block_size: usize,
    write: &'a mut dyn FnMut(&[u8]) -> Result<u64>,
}

impl Encoder<'_> {
    /// Blocks of the file below a number of a level.
    fn span(&self, level: u32) -> u64 {
        (self.block_size as u64 / 4).pow(level)
    }

    /// The number for the part of the file from block `first` on.
    fn number(&mut self, level: u32, first: u64) -> Result<u32> {
        let end = first + self.span(level);
        let next = self
            .runs
            .partition_point(|run| u64::from(run.logical) + u64::from(run.len) <= first);
        let Some(run) = self.runs.get(next).filter(|run| u64::from(run.logical) < end) else {
            return Ok(0);
        };
        let block = if level == 0 {
            run.physical + (first - u64::from(run.logical))
        } else {
            let mut bytes = vec![0; self.block_size];
            let below = self.span(level - 1);
            for (place, entry) in bytes.chunks_exact_mut(4).enumerate() {
                let number = self.number(level - 1, first + place as u64 * below)?;
                LittleEndian::write_u32(entry, number);
            }
            (self.write)(&bytes)?
        };
        u32::try_from(block).map_err(|_| Error::invalid("a block map cannot name blocks past 2^32"))
    }
}
