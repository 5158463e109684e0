//! A filesystem that becomes larger: groups are added to it, and blocks of descriptors for them where blocks were kept for
//! that ("Special inodes", inode 7), or with `meta_bg` at the start of the first of the groups that they describe ("Meta Block Groups").
//!
//! Where more descriptors are needed than blocks were kept for, the filesystem gets `meta_bg`: the blocks that were kept have
//! descriptors from then on, those behind are in their groups, and the inode that had kept them has nothing to do any more.
//!
//! New groups have their metadata at their own start. Where groups have checksums, their descriptors say that nothing of
//! them is initialised, so that of each only the descriptor is written: whoever uses the group first makes its bitmaps, and
//! the kernel zeroes its inodes in the background. All of it is one change like others, and so happens or does not.

use std::ops::Range;

use block::{Error, Result, ZeroMode};
use ext4_builder::format::{MAP_SIZE, Reserved};
use ext4_reader::Filesystem;

use crate::bitmap;
use crate::group_descriptor::{BLOCK_UNINIT, Group, INODE_UNINIT};
use crate::inode::Inode;
use crate::superblock::{COMPATIBLE, INCOMPATIBLE, OFFSET, Superblock};
use crate::{Editor, damaged};

const RESIZE_INODE_FEATURE: u32 = 0x10;
const META_BG: u32 = 0x10;
const RESIZE_INODE: u32 = 7;
/// The word of the resize inode's map that leads to its double-indirect block.
const DOUBLE_INDIRECT: usize = 13;
/// Blocks besides its metadata that make a last group worth having.
const LEAST: u64 = 50;

/// Fields of the superblock.
const BLOCKS: (usize, usize) = (0x04, 0x150);
const ROOT_BLOCKS: (usize, usize) = (0x08, 0x154);
const INODES: usize = 0x00;
const GROUP: usize = 0x5A;
const RESERVED_BLOCKS: usize = 0xCE;
const OVERHEAD: usize = 0x248;

/// What there is more of.
#[derive(Clone, Debug)]
struct Growth {
    blocks: u64,
    /// The new groups.
    groups: Range<u32>,
    /// The new blocks of descriptors.
    descriptors: Range<u32>,
    /// How many of all of them are behind the superblock, and not in groups of their own.
    plain: u32,
    /// Blocks that are kept for more of them.
    reserved: u32,
    /// The filesystem gets `meta_bg` for this.
    converts: bool,
}

impl Editor {
    /// The largest size that [`grow`](Self::grow) can give the filesystem, in bytes: that of its block and inode numbers.
    pub fn largest_size(&self) -> u64 {
        let layout = self.layout();
        let groups = u64::from(u32::MAX / layout.inodes_per_group());
        let blocks = layout.first_data_block() + groups * u64::from(layout.blocks_per_group());
        let most = if self.superblock.is_64bit() {
            1 << 48
        } else {
            u64::from(u32::MAX)
        };
        blocks.min(most) * layout.block_size()
    }

    /// Makes the filesystem as large as it can be in `size` bytes, which its device has to have already. A last part that
    /// is too small for a group is left over.
    ///
    /// # Errors
    /// `InvalidInput` for a smaller size, or a larger one than its numbers reach, with the largest that can be; `Corrupt`, `Io`.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        let grown = self.atomically(|editor| {
            let Some(growth) = editor.growth(size)? else {
                return Ok(Vec::new());
            };
            if growth.converts {
                editor.convert(&growth)?;
            }
            editor.extend_last_group(&growth)?;
            editor.clear_descriptors(&growth)?;
            let free = editor.add_groups(&growth)?;
            editor.update_resize_inode(&growth)?;
            editor.count_growth(&growth, free)?;
            editor.copies_of(&growth)
        });
        // The new size, or the old one again.
        self.filesystem = Filesystem::open(self.staging.clone())?;
        let copies = grown?;
        if !copies.is_empty() {
            self.copies = copies;
        }
        Ok(())
    }

    fn growth(&self, size: u64) -> Result<Option<Growth>> {
        let layout = self.layout();
        let (old, blocks) = (layout.blocks(), size / layout.block_size());
        if self.device.size() < size {
            let message = format!("the disk has {} bytes, and not {size}", self.device.size());
            return Err(Error::invalid(message).with_hint("grow the image or the partition first"));
        }
        if blocks < old {
            let message = format!(
                "a filesystem of {} bytes cannot be shrunk",
                old * layout.block_size()
            );
            return Err(Error::invalid(message).with_hint("resize2fs can, on a raw image"));
        }
        if blocks > self.largest_size() / layout.block_size() {
            let message = format!(
                "the filesystem can be grown to {} bytes at most: its numbers of blocks and inodes reach no further",
                self.largest_size()
            );
            return Err(
                Error::invalid(message).with_hint("make a new one, with larger blocks or fewer inodes")
            );
        }
        let per_group = u64::from(layout.blocks_per_group());
        let mut growth = self.growth_to(blocks);
        let last = growth.groups.end - 1;
        let left = blocks - self.first_block(last);
        if last >= layout.groups() && left < self.metadata_blocks(last, &growth) + LEAST && left < per_group {
            growth = self.growth_to(blocks - left);
        }
        Ok((growth.blocks > old).then_some(growth))
    }

    fn growth_to(&self, blocks: u64) -> Growth {
        let layout = self.layout();
        let groups = (blocks - layout.first_data_block()).div_ceil(layout.blocks_per_group().into()) as u32;
        let old = self.descriptor_blocks(layout.groups());
        let new = self.descriptor_blocks(groups).max(old);
        let reserved = u32::from(self.superblock.reserved_descriptor_blocks());
        let room = old + reserved;
        let (plain, reserved, converts) = if self.has_meta_groups() {
            (self.superblock.plain_descriptor_blocks(new), reserved, false)
        } else if new > room {
            (room, 0, true)
        } else {
            (new, room - new, false)
        };
        Growth {
            blocks,
            groups: layout.groups()..groups,
            descriptors: old..new,
            plain,
            reserved,
            converts,
        }
    }

    /// Whether blocks of descriptors are, from one on, in the groups that they describe.
    fn has_meta_groups(&self) -> bool {
        self.superblock.has(INCOMPATIBLE, META_BG)
    }

    fn descriptors_per_block(&self) -> u32 {
        self.block_size() as u32 / u32::from(self.layout().descriptor_size())
    }

    fn descriptor_blocks(&self, groups: u32) -> u32 {
        groups.div_ceil(self.descriptors_per_block())
    }

    fn table_blocks(&self) -> u64 {
        let layout = self.layout();
        let bytes = u64::from(layout.inodes_per_group()) * u64::from(layout.inode_size());
        bytes.div_ceil(layout.block_size())
    }

    /// Blocks of superblock and descriptors at the start of a group.
    fn copies_in(&self, group: u32, growth: &Growth) -> u64 {
        let superblock = u64::from(self.filesystem.has_superblock(group));
        if group / self.descriptors_per_block() >= growth.plain {
            return superblock + u64::from(self.holds_descriptors(group));
        }
        superblock * (1 + u64::from(growth.plain) + u64::from(growth.reserved))
    }

    /// Whether the descriptors of a meta block group are in one of its groups, or a copy: in the first, the second and the last.
    fn holds_descriptors(&self, group: u32) -> bool {
        let count = self.descriptors_per_block();
        [0, 1, count - 1].contains(&(group % count))
    }

    fn metadata_blocks(&self, group: u32, growth: &Growth) -> u64 {
        self.copies_in(group, growth) + 2 + self.table_blocks()
    }

    fn blocks_of(&self, group: u32, growth: &Growth) -> u32 {
        let left = growth.blocks - self.first_block(group);
        left.min(self.layout().blocks_per_group().into()) as u32
    }

    /// Has descriptors from here on be in their groups.
    fn convert(&mut self, growth: &Growth) -> Result<()> {
        if self.superblock.has(COMPATIBLE, RESIZE_INODE_FEATURE) {
            let (mut inode, double_indirect) = self.resize_inode()?;
            // The blocks that it kept are not free: they are those of descriptors now.
            self.free_blocks(double_indirect..double_indirect + 1)?;
            inode.set_map(&[0; MAP_SIZE]);
            self.set_room(&mut inode, 0)?;
            self.store(&mut inode)?;
        }
        self.change_superblock(|superblock| superblock.set_meta_groups(growth.plain))?;
        // Where descriptors are follows from what it says.
        self.filesystem = Filesystem::open(self.staging.clone())?;
        Ok(())
    }

    /// The inode of blocks that are kept for descriptors, and the block of addresses that its map leads to.
    fn resize_inode(&self) -> Result<(Inode, u64)> {
        let inode = self.load(RESIZE_INODE)?;
        let word = &inode.map()[DOUBLE_INDIRECT * 4..][..4];
        let double_indirect = u64::from(u32::from_le_bytes(word.try_into().unwrap_or_default()));
        let range = self.layout().first_data_block() + 1..self.layout().blocks();
        if !range.contains(&double_indirect) {
            return Err(damaged("the resize inode has no block of addresses".to_owned()));
        }
        Ok((inode, double_indirect))
    }

    /// Gives the last group the blocks that it was short of.
    fn extend_last_group(&mut self, growth: &Growth) -> Result<()> {
        let number = growth.groups.start - 1;
        let (old, new) = (self.blocks_in(number), self.blocks_of(number, growth));
        if new == old {
            return Ok(());
        }
        let mut group = self.group(number)?;
        group.set_free_blocks(group.free_blocks().saturating_add(new - old));
        let free = self.superblock.free_blocks().saturating_add((new - old).into());
        self.change_superblock(|superblock| superblock.set_free_blocks(free))?;
        if group.blocks_uninit() {
            return self.put_group(&group);
        }
        let mut bits = self.block_bitmap(&group)?;
        bitmap::fill(&mut bits, old..new, false);
        self.put_block_bitmap(group, bits)
    }

    /// Blocks that were kept for descriptors have something else in them.
    fn clear_descriptors(&self, growth: &Growth) -> Result<()> {
        for index in growth.descriptors.clone() {
            let (block, _) = self
                .filesystem
                .descriptor_place(index * self.descriptors_per_block());
            self.staging.put(block, vec![0; self.block_size()])?;
        }
        Ok(())
    }

    /// Adds the new groups. Gives how many blocks are free in them.
    fn add_groups(&mut self, growth: &Growth) -> Result<u64> {
        let lazy = self.superblock.has_group_checksums();
        let mut free = 0;
        for number in growth.groups.clone() {
            let start = self.first_block(number);
            let len = self.blocks_of(number, growth);
            let used = self.metadata_blocks(number, growth);
            let bitmap = start + self.copies_in(number, growth);
            let inodes = self.layout().inodes_per_group();
            if used > u64::from(len) {
                return Err(damaged(format!(
                    "block group {number} has no room for its metadata"
                )));
            }
            let bytes = vec![0; self.layout().descriptor_size().into()];
            let mut group = Group::new(number, bytes, lazy);
            group.set_places([bitmap, bitmap + 1, bitmap + 2]);
            group.set_free_blocks(len - used as u32);
            group.set_free_inodes(inodes);
            group.set_unused_inodes(inodes);
            free += u64::from(len) - used;
            // A short group says so by its bitmap alone, and the last one always has one.
            let is_implied = lazy && number + 1 < growth.groups.end;
            if lazy {
                group.set_flags(INODE_UNINIT | if is_implied { BLOCK_UNINIT } else { 0 });
            } else {
                self.write_inodes(bitmap + 1)?;
            }
            if is_implied {
                self.put_group(&group)?;
            } else {
                let mut bits = vec![0; self.block_size()];
                bitmap::fill(&mut bits, 0..used as u32, true);
                bitmap::fill(&mut bits, len..self.block_size() as u32 * 8, true);
                self.put_block_bitmap(group, bits)?;
            }
        }
        Ok(free)
    }

    /// Writes an inode bitmap and the table behind it, of a group without checksums that would say that they are not there.
    fn write_inodes(&self, bitmap: u64) -> Result<()> {
        let size = self.layout().block_size();
        let mut bits = vec![0; self.block_size()];
        let inodes = self.layout().inodes_per_group();
        bitmap::fill(&mut bits, inodes..self.block_size() as u32 * 8, true);
        self.staging.put(bitmap, bits)?;
        // It is past the end of the filesystem as it is.
        let len = self.table_blocks() * size;
        self.device.zero_at((bitmap + 1) * size, len, ZeroMode::Unmap)
    }

    /// Has the inode of blocks that are kept for descriptors have those of new groups too, and not those that are used.
    fn update_resize_inode(&mut self, growth: &Growth) -> Result<()> {
        if !self.superblock.has(COMPATIBLE, RESIZE_INODE_FEATURE) {
            return Ok(());
        }
        let with_copy = (0..growth.groups.end).filter(|group| self.filesystem.has_superblock(*group));
        let groups: Vec<u64> = with_copy.map(|group| self.first_block(group)).collect();
        let reserved = Reserved {
            block_size: self.block_size(),
            descriptors: growth.descriptors.end,
            blocks: growth.reserved,
            groups: &groups,
        };
        let (mut inode, double_indirect) = self.resize_inode()?;
        self.staging.put(double_indirect, reserved.double_indirect())?;
        for (block, bytes) in reserved.indirect() {
            self.staging.put(block, bytes)?;
        }
        let taken = 1 + u64::from(growth.reserved) * groups.len() as u64;
        self.set_room(&mut inode, taken)?;
        self.store(&mut inode)
    }

    /// Says in the superblock what there is.
    fn count_growth(&mut self, growth: &Growth, free: u64) -> Result<()> {
        let layout = self.layout();
        let old = layout.blocks();
        let added = growth.groups.len() as u32;
        let inodes = layout.inodes().saturating_add(added * layout.inodes_per_group());
        let new_inodes = added * layout.inodes_per_group();
        let metadata: u64 = growth
            .groups
            .clone()
            .map(|group| self.metadata_blocks(group, growth))
            .sum();
        let has_reserve = self.superblock.has(COMPATIBLE, RESIZE_INODE_FEATURE);
        self.change_superblock(|superblock| {
            let root = superblock.wide(ROOT_BLOCKS.0, ROOT_BLOCKS.1);
            let root = u128::from(root) * u128::from(growth.blocks) / u128::from(old);
            superblock.set_wide(BLOCKS.0, BLOCKS.1, growth.blocks);
            superblock.set_wide(ROOT_BLOCKS.0, ROOT_BLOCKS.1, root as u64);
            superblock.set_free_blocks(superblock.free_blocks().saturating_add(free));
            superblock.set_free_inodes(superblock.free_inodes().saturating_add(new_inodes));
            superblock.set_u32(INODES, inodes);
            if has_reserve {
                superblock.set_u16(RESERVED_BLOCKS, growth.reserved as u16);
            }
            // 0 has the kernel count itself.
            let overhead = superblock.u32(OVERHEAD);
            if overhead != 0 {
                superblock.set_u32(OVERHEAD, overhead.saturating_add(metadata as u32));
            }
        })
    }

    /// The copies of superblock and descriptors.
    fn copies_of(&self, growth: &Growth) -> Result<Vec<(u64, Vec<u8>)>> {
        let (first, _) = self.filesystem.descriptor_place(0);
        let plain = growth.plain;
        let mut descriptors = Vec::new();
        let count = u64::from(plain);
        for block in first..first + count {
            descriptors.extend(self.staging.block(block)?);
        }
        let mut copies = Vec::new();
        for group in (1..growth.groups.end).filter(|group| self.filesystem.has_superblock(*group)) {
            let start = self.first_block(group);
            let mut bytes = vec![0; self.block_size()];
            let copy = copy_of(&self.superblock, group);
            bytes[..copy.len()].copy_from_slice(&copy);
            if group / self.descriptors_per_block() < plain {
                bytes.extend_from_slice(&descriptors);
            }
            copies.push((start, bytes));
        }
        copies.extend(self.copies_in_meta_groups(growth, plain)?);
        Ok(copies)
    }

    /// The copies of blocks of descriptors, from the `first` on that is in a group which it describes, as far as they change.
    fn copies_in_meta_groups(&self, growth: &Growth, first: u32) -> Result<Vec<(u64, Vec<u8>)>> {
        let count = self.descriptors_per_block();
        let changed = (growth.groups.start - 1) / count;
        let mut copies = Vec::new();
        for index in changed.max(first)..growth.descriptors.end {
            let (place, _) = self.filesystem.descriptor_place(index * count);
            let bytes = self.staging.block(place)?;
            let groups = [index * count + 1, index * count + count - 1];
            for group in groups.into_iter().filter(|group| *group < growth.groups.end) {
                let superblock = u64::from(self.filesystem.has_superblock(group));
                copies.push((self.first_block(group) + superblock, bytes.clone()));
            }
        }
        Ok(copies)
    }
}

/// The superblock's copy in a group. Whoever falls back to it cannot know how old it is, so that it is never called clean.
fn copy_of(superblock: &Superblock, group: u32) -> [u8; OFFSET as usize] {
    let mut copy = superblock.clone();
    copy.set_u16(GROUP, group as u16);
    copy.set_clean(false);
    copy.sealed()
}
