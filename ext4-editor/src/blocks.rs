//! Blocks that are taken and given back.
//!
//! A block that is given back is not taken again before the change is committed: if the power goes before, the file that
//! had it must have its contents still.

use std::ops::Range;

use block::{Error, ErrorKind, Result};
use ext4_builder::format::Checksum;

use crate::bitmap;
use crate::group_descriptor::Group;
use crate::{Editor, damaged};

/// Groups that are searched for one run, before contents come in pieces.
const GROUPS_FOR_ONE_RUN: u32 = 64;

impl Editor {
    /// Takes `count` blocks, from `group` on and as few runs as it takes.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn take_blocks(&mut self, count: u64, group: u32) -> Result<Vec<Range<u64>>> {
        let mut taken = Vec::new();
        let mut left = count;
        let groups = self.layout().groups();
        let in_order = |many: u32| (0..many.min(groups)).map(move |step| (group % groups + step) % groups);
        if count > self.superblock.free_blocks() {
            return Err(self.no_space(count));
        }
        let one_run = if count <= u64::from(self.layout().blocks_per_group()) {
            GROUPS_FOR_ONE_RUN
        } else {
            0
        };
        for number in in_order(one_run) {
            if left == 0 {
                return Ok(taken);
            }
            self.take_in(number, &mut left, count, &mut taken)?;
        }
        for number in in_order(groups) {
            if left == 0 {
                return Ok(taken);
            }
            self.take_in(number, &mut left, 1, &mut taken)?;
        }
        if left == 0 {
            Ok(taken)
        } else {
            Err(self.no_space(count))
        }
    }

    /// Takes one block.
    ///
    /// # Errors
    /// As [`take_blocks`](Self::take_blocks).
    pub(crate) fn take_block(&mut self, group: u32) -> Result<u64> {
        let taken = self.take_blocks(1, group)?;
        Ok(taken[0].start)
    }

    fn no_space(&self, count: u64) -> Error {
        let size = self.layout().block_size();
        let message = format!(
            "the filesystem has no room for {} bytes more: {} bytes are free",
            count.saturating_mul(size),
            self.superblock.free_blocks().saturating_mul(size)
        );
        let error = Error::new(ErrorKind::NoSpace, message);
        if self.freed.is_empty() {
            error
        } else {
            error.with_hint("what was removed in the same change can be used after it is committed")
        }
    }

    /// Takes up to `left` blocks of a group, in runs of at least so many.
    fn take_in(
        &mut self,
        number: u32,
        left: &mut u64,
        least: u64,
        taken: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let mut group = self.group(number)?;
        if u64::from(group.free_blocks()) < least {
            return Ok(());
        }
        let mut bits = self.block_bitmap(&group)?;
        let mut busy = bits.clone();
        if let Some(freed) = self.freed.get(&number) {
            busy.iter_mut()
                .zip(freed)
                .for_each(|(byte, freed)| *byte |= freed);
        }
        let start = self.first_block(number);
        let mut count = 0;
        for run in bitmap::clear_runs(&busy, self.blocks_in(number)) {
            if *left == 0 {
                break;
            }
            if u64::from(run.end - run.start) < least {
                continue;
            }
            let len = u64::from(run.end - run.start).min(*left) as u32;
            bitmap::fill(&mut bits, run.start..run.start + len, true);
            *left -= u64::from(len);
            count += len;
            let from = start + u64::from(run.start);
            taken.push(from..from + u64::from(len));
        }
        if count == 0 {
            return Ok(());
        }
        let free = group.free_blocks().checked_sub(count);
        let free = free.ok_or_else(|| wrong_count(number))?;
        group.set_free_blocks(free);
        self.put_block_bitmap(group, bits)?;
        let free = self.superblock.free_blocks().checked_sub(count.into());
        let free = free.ok_or_else(|| wrong_count(number))?;
        self.change_superblock(|superblock| superblock.set_free_blocks(free))
    }

    /// Gives blocks back.
    ///
    /// # Errors
    /// `Corrupt` if they are not in use; `Io`.
    pub(crate) fn free_blocks(&mut self, mut blocks: Range<u64>) -> Result<()> {
        let layout = self.layout();
        if blocks.start <= layout.first_data_block() || blocks.end > layout.blocks() {
            let problem = format!("blocks {blocks:?} are to be freed, and are not in the filesystem");
            return Err(damaged(problem));
        }
        while !blocks.is_empty() {
            let per_group = u64::from(self.layout().blocks_per_group());
            let number = ((blocks.start - self.layout().first_data_block()) / per_group) as u32;
            let start = self.first_block(number);
            let end = blocks.end.min(start + per_group);
            self.free_in(number, (blocks.start - start) as u32..(end - start) as u32)?;
            blocks.start = end;
        }
        Ok(())
    }

    fn free_in(&mut self, number: u32, range: Range<u32>) -> Result<()> {
        let mut group = self.group(number)?;
        let mut bits = self.block_bitmap(&group)?;
        let start = self.first_block(number);
        if let Some(bit) = range.clone().find(|&bit| !bitmap::is_set(&bits, bit)) {
            let block = start + u64::from(bit);
            return Err(damaged(format!(
                "block {block} is in use, and its bitmap says it is free"
            )));
        }
        let own = |block: u64| {
            block
                .checked_sub(start)
                .is_some_and(|bit| range.contains(&(bit as u32)))
        };
        if own(group.block_bitmap()) || own(group.inode_bitmap()) || own(group.inode_table()) {
            let problem = format!("a file has blocks that hold the metadata of block group {number}");
            return Err(damaged(problem));
        }
        bitmap::fill(&mut bits, range.clone(), false);
        let count = range.end - range.start;
        group.set_free_blocks(group.free_blocks().saturating_add(count));
        self.put_block_bitmap(group, bits)?;
        self.pin(start + u64::from(range.start)..start + u64::from(range.end));
        let free = self.superblock.free_blocks().saturating_add(count.into());
        self.change_superblock(|superblock| superblock.set_free_blocks(free))
    }

    /// Has blocks of one group not be taken before the next commit.
    pub(crate) fn pin(&mut self, blocks: Range<u64>) {
        let first = self.layout().first_data_block();
        let (size, per_group) = (self.block_size(), u64::from(self.layout().blocks_per_group()));
        for block in blocks {
            let Some(at) = block.checked_sub(first) else {
                continue;
            };
            let bits = self
                .freed
                .entry((at / per_group) as u32)
                .or_insert_with(|| vec![0; size]);
            let bit = (at % per_group) as u32;
            bitmap::fill(bits, bit..bit + 1, true);
        }
    }

    pub(crate) fn first_block(&self, group: u32) -> u64 {
        let layout = self.layout();
        layout.first_data_block() + u64::from(group) * u64::from(layout.blocks_per_group())
    }

    pub(crate) fn blocks_in(&self, group: u32) -> u32 {
        let left = self.layout().blocks() - self.first_block(group);
        left.min(self.layout().blocks_per_group().into()) as u32
    }

    /// A group's block bitmap, which need not be on the disk.
    pub(crate) fn block_bitmap(&self, group: &Group) -> Result<Vec<u8>> {
        if group.blocks_uninit() {
            return Ok(self.initial_bitmap(group));
        }
        let bits = self.staging.block(group.block_bitmap())?;
        if let Some(sum) = self.block_bitmap_sum(&bits)
            && !group.is_block_bitmap_sum(sum)
        {
            let problem = format!(
                "the block bitmap of block group {} has a wrong checksum",
                group.number
            );
            return Err(damaged(problem));
        }
        Ok(bits)
    }

    pub(crate) fn block_bitmap_sum(&self, bits: &[u8]) -> Option<Checksum> {
        let bytes = self.layout().blocks_per_group() as usize / 8;
        Some(self.seed()?.with(bits.get(..bytes).unwrap_or(bits)))
    }

    /// The bitmap of a group in which nothing was ever in use but its own metadata.
    pub(crate) fn initial_bitmap(&self, group: &Group) -> Vec<u8> {
        let layout = self.layout();
        let (start, len) = (self.first_block(group.number), self.blocks_in(group.number));
        let mut bits = vec![0; self.block_size()];
        bitmap::fill(&mut bits, 0..self.copy_blocks(group.number).min(len), true);
        let table = u64::from(layout.inodes_per_group()) * u64::from(layout.inode_size());
        let table = table.div_ceil(layout.block_size());
        let own = [
            (group.block_bitmap(), 1),
            (group.inode_bitmap(), 1),
            (group.inode_table(), table),
        ];
        for (block, count) in own {
            let from = block.max(start);
            let to = (block + count).min(start + u64::from(len));
            if from < to {
                bitmap::fill(&mut bits, (from - start) as u32..(to - start) as u32, true);
            }
        }
        bitmap::fill(&mut bits, len..self.block_size() as u32 * 8, true);
        bits
    }

    /// Blocks at the start of a group that hold copies of superblock and descriptors, and room for more of those.
    fn copy_blocks(&self, group: u32) -> u32 {
        let layout = self.layout();
        let per_block = layout.block_size() as u32 / u32::from(layout.descriptor_size());
        let has_superblock = self.filesystem.has_superblock(group);
        let plain = self
            .superblock
            .plain_descriptor_blocks(layout.groups().div_ceil(per_block));
        let in_meta_group = group / per_block >= plain;
        if in_meta_group {
            let place = group % per_block;
            let has_descriptors = place == 0 || place == 1 || place == per_block - 1;
            return u32::from(has_superblock) + u32::from(has_descriptors);
        }
        if !has_superblock {
            return 0;
        }
        1 + plain + u32::from(self.superblock.reserved_descriptor_blocks())
    }

    /// Changes a group's block bitmap, and what its descriptor says of it.
    pub(crate) fn put_block_bitmap(&mut self, mut group: Group, bits: Vec<u8>) -> Result<()> {
        group.init_blocks();
        if let Some(sum) = self.block_bitmap_sum(&bits) {
            group.set_block_bitmap_sum(sum);
        }
        self.staging.put(group.block_bitmap(), bits)?;
        self.put_group(&group)
    }

    /// Writes the bitmap of a group that has none on the disk yet.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn init_block_bitmap(&mut self, number: u32) -> Result<()> {
        let group = self.group(number)?;
        if group.blocks_uninit() {
            let bits = self.initial_bitmap(&group);
            self.put_block_bitmap(group, bits)?;
        }
        Ok(())
    }
}

fn wrong_count(group: u32) -> Error {
    damaged(format!(
        "block group {group} has more free blocks in its bitmap than are counted"
    ))
}
