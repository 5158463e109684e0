//! Extended attributes outside of the inodes that have them: blocks, each shared by as many inodes as can be, and
//! inodes of large values, one for each different value. Sets that no node has any more get neither.

use std::collections::HashMap;

use block::Result;

use super::contents::Placing;
use crate::Node;
use crate::checksum::Checksum;
use crate::inode::{Inode, MAP_SIZE, XATTR_ROOM};
use crate::tree::{Content, Record, Tree};
use crate::xattr::{MAX_REFERENCES, value_hash, value_inode};
use crate::xattr_sets::XattrSets;

/// All attributes, with their places.
#[derive(Debug)]
pub(super) struct Xattrs {
    sets: XattrSets,
    filesystem: Checksum,
    values: Vec<Value>,
    /// For each set, the inodes of its large values and their hashes.
    large: Vec<Vec<(u32, u32)>>,
    /// For each set and each block that it takes, or would take if it took any; records have their numbers.
    shares: Vec<Share>,
}

/// A value in an inode of its own.
#[derive(Debug)]
pub(super) struct Value {
    /// A set that has it, and which one of its large values it is.
    place: (usize, usize),
    references: u64,
    pub(super) number: u32,
    pub(super) content: Content,
}

/// A set and one of its blocks.
#[derive(Clone, Copy, Debug)]
struct Share {
    set: u32,
    /// 0 where all fits the inode.
    block: u64,
}

/// What an inode says of its attributes.
#[derive(Debug)]
pub(super) struct InInode {
    pub(super) room: [u8; XATTR_ROOM],
    pub(super) block: u64,
    /// Blocks that it is charged for: its own, and those of its values, whoever else has them.
    pub(super) blocks: u64,
}

impl Xattrs {
    /// Places what the nodes have, with inodes for values from the number `first` on.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(super) fn place(
        sets: XattrSets,
        filesystem: Checksum,
        tree: &mut Tree,
        nodes: &[Node],
        first: u32,
        placing: &mut Placing<'_, '_>,
    ) -> Result<Self> {
        let mut users = vec![0; sets.plans().len()];
        for &node in nodes {
            users[tree.record(node).xattrs as usize] += 1;
        }
        let (values, large) = gather_values(&sets, &users, filesystem, first);
        let mut placed = Self {
            sets,
            filesystem,
            values,
            large,
            shares: Vec::new(),
        };
        for index in 0..placed.values.len() {
            let value = &placed.values[index];
            let content = placing.contents(value.number, placed.bytes(value))?;
            placed.values[index].content = content;
        }
        let mut next = placed.place_blocks(&users, placing)?;
        for &node in nodes {
            let record = tree.record_mut(node);
            let next = &mut next[record.xattrs as usize];
            record.xattrs = next.share;
            next.users += 1;
            next.share += u32::from(next.users.is_multiple_of(MAX_REFERENCES));
        }
        Ok(placed)
    }

    /// Writes the blocks of all sets. Returns which share the first user of each gets.
    fn place_blocks(&mut self, users: &[u32], placing: &mut Placing<'_, '_>) -> Result<Vec<Next>> {
        let mut next = Vec::with_capacity(users.len());
        for (set, (plan, &users)) in self.sets.plans().iter().zip(users).enumerate() {
            next.push(Next {
                share: self.shares.len() as u32,
                users: 0,
            });
            let bytes = plan
                .has_block()
                .then(|| plan.block(placing.block_size, &self.large[set]));
            let mut left = users;
            while left > 0 {
                let references = left.min(MAX_REFERENCES);
                left -= references;
                let block = match &bytes {
                    Some(bytes) => placing.block(|block, seed| bytes.to_bytes(block, references, seed))?,
                    None => 0,
                };
                let set = set as u32;
                self.shares.push(Share { set, block });
            }
        }
        Ok(next)
    }

    fn bytes(&self, value: &Value) -> &[u8] {
        let (set, index) = value.place;
        self.sets.plans()[set]
            .large_values()
            .nth(index)
            .unwrap_or_default()
    }

    /// The inodes that hold values.
    pub(super) fn values(&self) -> &[Value] {
        &self.values
    }

    /// The inode of a value, for where its contents are.
    pub(super) fn value_inode(&self, value: &Value, map: [u8; MAP_SIZE], sectors: u64) -> Inode {
        value_inode(self.bytes(value), value.references, self.filesystem, map, sectors)
    }

    /// What the inode of a record says.
    pub(super) fn of(&self, record: &Record, block_size: u64) -> InInode {
        let Share { set, block } = self.shares[record.xattrs as usize];
        let plan = &self.sets.plans()[set as usize];
        let mut room = [0; XATTR_ROOM];
        plan.put_inode(&mut room, &self.large[set as usize]);
        let values = plan
            .large_values()
            .map(|value| (value.len() as u64).div_ceil(block_size));
        InInode {
            room,
            block,
            blocks: u64::from(block != 0) + values.sum::<u64>(),
        }
    }
}

/// The share that a set's next user gets, and how many came before.
#[derive(Clone, Copy, Debug)]
struct Next {
    share: u32,
    users: u32,
}

/// Gives each different large value a number, from `first` on, and counts who refers to it. Returns the values too by
/// set, as numbers and hashes.
fn gather_values(
    sets: &XattrSets,
    users: &[u32],
    filesystem: Checksum,
    first: u32,
) -> (Vec<Value>, Vec<Vec<(u32, u32)>>) {
    let mut values: Vec<Value> = Vec::new();
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    let mut of_sets = Vec::with_capacity(users.len());
    for (set, (plan, &users)) in sets.plans().iter().zip(users).enumerate() {
        let mut large = Vec::new();
        let all = plan.large_values().zip(plan.large_in_inode()).enumerate();
        for (index, (bytes, is_in_inode)) in all.filter(|_| users > 0) {
            let value = *known.entry(bytes).or_insert_with(|| {
                values.push(Value {
                    place: (set, index),
                    references: 0,
                    number: first + values.len() as u32,
                    content: Content::Empty,
                });
                values.len() - 1
            });
            let value = &mut values[value];
            // Those who share a block refer to it once.
            let references = if is_in_inode {
                users
            } else {
                users.div_ceil(MAX_REFERENCES)
            };
            value.references += u64::from(references);
            large.push((value.number, value_hash(bytes, filesystem)));
        }
        of_sets.push(large);
    }
    (values, of_sets)
}
