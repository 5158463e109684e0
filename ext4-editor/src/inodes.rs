//! Inodes that are taken and given back.

use block::{Error, ErrorKind, Result};
use ext4_builder::format::Checksum;

use crate::bitmap;
use crate::group_descriptor::Group;
use crate::{Editor, damaged};

impl Editor {
    /// Takes an inode in `group`, or the next that has one.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn take_inode(&mut self, group: u32, is_directory: bool) -> Result<u32> {
        let groups = self.layout().groups();
        for step in 0..groups {
            let number = (group % groups + step) % groups;
            if let Some(inode) = self.take_inode_in(number, is_directory)? {
                return Ok(inode);
            }
        }
        let message = format!(
            "all {} inodes of the filesystem are in use",
            self.layout().inodes()
        );
        Err(Error::new(ErrorKind::NoSpace, message))
    }

    fn take_inode_in(&mut self, number: u32, is_directory: bool) -> Result<Option<u32>> {
        let mut group = self.group(number)?;
        if group.free_inodes() == 0 {
            return Ok(None);
        }
        let per_group = self.layout().inodes_per_group();
        let mut bits = self.inode_bitmap(&group)?;
        // Those of the filesystem's own files are never given out, whatever the bitmap says.
        let before = number.saturating_mul(per_group);
        let first = self.layout().first_inode().max(1) - 1;
        let reserved = first.saturating_sub(before);
        let last = self.layout().inodes().saturating_sub(before).min(per_group);
        let Some(bit) = bitmap::first_clear(&bits, reserved.min(last), last) else {
            return Ok(None);
        };
        if group.inodes_uninit() {
            self.init_block_bitmap(number)?;
            group = self.group(number)?;
        }
        bitmap::fill(&mut bits, bit..bit + 1, true);
        group.set_free_inodes(group.free_inodes() - 1);
        let unused = group.unused_inodes().min(per_group - bit - 1);
        group.set_unused_inodes(unused);
        if is_directory {
            group.set_directories(group.directories().saturating_add(1));
        }
        self.put_inode_bitmap(group, bits)?;
        let free = self.superblock.free_inodes().checked_sub(1);
        let free =
            free.ok_or_else(|| damaged("more inodes are free in groups than are counted".to_owned()))?;
        self.change_superblock(|superblock| superblock.set_free_inodes(free))?;
        Ok(Some(number * per_group + bit + 1))
    }

    /// Gives an inode back.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn free_inode(&mut self, inode: u32, is_directory: bool) -> Result<()> {
        let per_group = self.layout().inodes_per_group();
        let (number, bit) = ((inode - 1) / per_group, (inode - 1) % per_group);
        let mut group = self.group(number)?;
        let mut bits = self.inode_bitmap(&group)?;
        if !bitmap::is_set(&bits, bit) {
            let problem = format!("inode {inode} is in use, and its bitmap says it is free");
            return Err(damaged(problem));
        }
        bitmap::fill(&mut bits, bit..bit + 1, false);
        group.set_free_inodes(group.free_inodes().saturating_add(1));
        if is_directory {
            group.set_directories(group.directories().saturating_sub(1));
        }
        self.put_inode_bitmap(group, bits)?;
        let free = self.superblock.free_inodes().saturating_add(1);
        self.change_superblock(|superblock| superblock.set_free_inodes(free))
    }

    pub(crate) fn group_of_inode(&self, inode: u32) -> u32 {
        (inode - 1) / self.layout().inodes_per_group()
    }

    pub(crate) fn inode_bitmap(&self, group: &Group) -> Result<Vec<u8>> {
        if group.inodes_uninit() {
            let size = self.block_size();
            let mut bits = vec![0; size];
            bitmap::fill(&mut bits, self.layout().inodes_per_group()..size as u32 * 8, true);
            return Ok(bits);
        }
        let bits = self.staging.block(group.inode_bitmap())?;
        if let Some(sum) = self.inode_bitmap_sum(&bits)
            && !group.is_inode_bitmap_sum(sum)
        {
            let problem = format!(
                "the inode bitmap of block group {} has a wrong checksum",
                group.number
            );
            return Err(damaged(problem));
        }
        Ok(bits)
    }

    pub(crate) fn inode_bitmap_sum(&self, bits: &[u8]) -> Option<Checksum> {
        let bytes = self.layout().inodes_per_group() as usize / 8;
        Some(self.seed()?.with(&bits[..bytes]))
    }

    fn put_inode_bitmap(&mut self, mut group: Group, bits: Vec<u8>) -> Result<()> {
        group.init_inodes();
        if let Some(sum) = self.inode_bitmap_sum(&bits) {
            group.set_inode_bitmap_sum(sum);
        }
        self.staging.put(group.inode_bitmap(), bits)?;
        self.put_group(&group)
    }
}
