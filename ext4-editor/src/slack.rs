//! Names of deleted files in directories that are still there.
//!
//! To delete a name is to give its room to the entry before it, or to say that its entry stands for nothing: the name
//! itself stays (Linux erases it since 5.13, e2fsprogs and other systems do not). And where a block of names is split, or becomes the root
//! of an index, it keeps copies of the names that moved to another one, whatever deletes those later.

use std::collections::BTreeMap;

use block::Result;

use crate::directory::{HEADER, slots};
use crate::htree::Node;
use crate::{Editor, bitmap};

/// Blocks that are committed together: a quarter of what the smallest journal has.
const BATCH: usize = 256;

/// The root directory.
const ROOT: u32 = 2;

impl Editor {
    /// Makes zeros of all in directories that is no entry in use, and commits that, in as many transactions as it takes.
    /// What the directories have, and their times, stay as they are.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`.
    pub fn forget_names(&mut self) -> Result<()> {
        for group in 0..self.layout().groups() {
            let group = self.group(group)?;
            let first = group.number * self.layout().inodes_per_group();
            let count = (self.layout().inodes() - first).min(self.layout().inodes_per_group());
            let mut used: Vec<u32> = Vec::new();
            let mut next = 0;
            for free in bitmap::clear_runs(&self.inode_bitmap(&group)?, count) {
                used.extend(next..free.start);
                next = free.end;
            }
            used.extend(next..count);
            for number in used.into_iter().map(|bit| first + bit + 1) {
                let is_own = number < self.layout().first_inode() && number != ROOT;
                if !is_own && self.load(number)?.is_directory() {
                    self.forget_names_of(number)?;
                }
            }
        }
        self.commit()
    }

    fn forget_names_of(&mut self, number: u32) -> Result<()> {
        if self.load(number)?.is_inline() {
            self.forget_inline_names(number)?;
            return self.commit_batch();
        }
        let directory = self.blocked(number)?;
        let mut index: BTreeMap<u32, Node> = self.index(&directory)?;
        let end = self.names_end();
        for (logical, &block) in (0..).zip(&directory.blocks) {
            if let Some(mut node) = index.remove(&logical) {
                if node.clear_slack() {
                    self.put_node_of(&directory, node)?;
                }
            } else {
                let mut bytes = self.staging.block(block)?;
                self.check_leaf(&directory, &bytes)?;
                if clear_slack(&mut bytes[..end])? {
                    self.put_leaf(block, bytes, directory.seed)?;
                }
            }
            self.commit_batch()?;
        }
        Ok(())
    }

    fn commit_batch(&mut self) -> Result<()> {
        if self.staging.blocks().len() < BATCH {
            return Ok(());
        }
        self.commit()
    }
}

/// Makes zeros of what entries in `bytes` have besides themselves. Says whether there was something else.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn clear_slack(bytes: &mut [u8]) -> Result<bool> {
    let mut ranges = Vec::new();
    for slot in slots(bytes)? {
        let name = slot.at + HEADER;
        if slot.inode == 0 {
            // The length of a name, and the type.
            ranges.push(slot.at + 6..name);
        }
        ranges.push(name + slot.name.len()..slot.at + slot.len);
    }
    let mut cleared = false;
    for range in ranges {
        cleared |= clear(&mut bytes[range]);
    }
    Ok(cleared)
}

/// Makes zeros of `bytes`. Says whether they were something else.
pub(crate) fn clear(bytes: &mut [u8]) -> bool {
    let is_clear = bytes.iter().all(|byte| *byte == 0);
    bytes.fill(0);
    !is_clear
}
