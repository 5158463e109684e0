//! Extended attributes ("Extended Attributes"): the set of a file is planned and written anew whenever it changes. So are
//! values that have inodes of their own ("Large Extended Attribute Values"): each is then one file's, and those that it may have shared with
//! others lose it.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};
use ext4_builder::format::{Checksum, FLAG_EA_INODE, FileType, Xattr, XattrPlan, fits_inode, value_hash};
use ext4_reader::InodeNumber;

use crate::inode::Inode;
use crate::{Editor, damaged};

const MAGIC: u32 = 0xEA02_0000;
const REFERENCES: usize = 4;
const CHECKSUM: usize = 16;

impl Editor {
    /// A file's attributes.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be written again; `Corrupt`, `Io`.
    pub(crate) fn xattrs(&self, number: u32) -> Result<Vec<Xattr>> {
        let inode = self.reader_inode(number)?;
        let mut set = Vec::new();
        for xattr in self.filesystem.xattrs(&inode)? {
            set.extend(Xattr::new(&xattr.name, &xattr.value)?);
        }
        Ok(set)
    }

    /// Whether an inode has room for these attributes, and for this rest of its content.
    pub(crate) fn fits_inline(inode: &mut Inode, set: &[Xattr], rest: &[u8]) -> bool {
        let rest = Xattr::inline_data(rest.to_vec());
        fits_inode(set.iter().chain([&rest]), inode.room().len())
    }

    /// Gives a file these attributes and no others. `rest` is what an inode that holds its content itself has besides
    /// its map: it must fit the inode.
    ///
    /// # Errors
    /// `InvalidInput` where they do not fit; `NoSpace`, `Corrupt`, `Io`.
    pub(crate) fn store_xattrs(
        &mut self,
        inode: &mut Inode,
        mut set: Vec<Xattr>,
        rest: Option<Vec<u8>>,
    ) -> Result<()> {
        set.extend(rest.map(Xattr::inline_data));
        let size = self.block_size();
        let plan = XattrPlan::new(set, inode.room().len(), size, self.superblock.has_large_values())?;
        let large = self.hold_values(inode.number, &plan)?;
        let old = inode.xattr_block();
        let is_own = old != 0 && self.xattr_references(old)? == 1;
        let [mut released, in_block] = self.value_inodes(inode.number)?;
        if is_own && plan.has_block() {
            released.extend_from_slice(&in_block);
        }
        let room = inode.room();
        room.fill(0);
        plan.put_inode(room, &large);
        let mut block = 0;
        if plan.has_block() {
            block = if is_own {
                old
            } else {
                self.take_block(self.group_of_inode(inode.number))?
            };
            let bytes = plan.block(size, &large).to_bytes(block, 1, self.seed());
            self.staging.put(block, bytes)?;
        }
        if old != 0 && old != block && self.release_xattr_block(old)? {
            released.extend(in_block);
        }
        for number in released {
            self.release_value(number.into())?;
        }
        inode.set_xattr_block(block);
        let lens = plan.large_values().map(|value| value.len().div_ceil(size) as u64);
        let before = std::mem::replace(&mut inode.values, lens.sum());
        let values = inode.values.cast_signed() - before.cast_signed();
        self.adjust_room(inode, i64::from(block != 0) - i64::from(old != 0) + values)
    }

    /// Has inodes hold the values that a plan has no room for elsewhere. Gives their numbers and hashes.
    fn hold_values(&mut self, owner: u32, plan: &XattrPlan) -> Result<Vec<(u32, u32)>> {
        let group = self.group_of_inode(owner);
        let mut large = Vec::new();
        for value in plan.large_values() {
            let number = self.take_inode(group, false)?;
            let mut inode = self.new_inode(number, FileType::Regular.mode() | 0o600);
            self.empty(&mut inode)?;
            self.write_bytes(&mut inode, value)?;
            let hash = value_hash(value, self.value_seed());
            inode.set_value_hash(hash);
            inode.set_links(1);
            self.store(&mut inode)?;
            large.push((number, hash));
        }
        Ok(large)
    }

    /// What hashes of values start from, where metadata has no checksums too.
    fn value_seed(&self) -> Checksum {
        self.seed()
            .unwrap_or_else(|| Checksum::of_filesystem(&self.layout().uuid()))
    }

    /// The inodes that hold values of a file, as it is on the disk: of those in its inode, and of those in its block.
    fn value_inodes(&self, number: u32) -> Result<[Vec<InodeNumber>; 2]> {
        if !self.superblock.has_large_values() {
            return Ok([Vec::new(), Vec::new()]);
        }
        self.filesystem.xattr_inodes(&self.reader_inode(number)?)
    }

    /// Blocks that a file is charged for values in inodes of their own.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn blocks_of_values(&self, inode: &ext4_reader::Inode) -> Result<u64> {
        if !self.superblock.has_large_values() {
            return Ok(0);
        }
        let mut blocks: u64 = 0;
        for number in self.filesystem.xattr_inodes(inode)?.into_iter().flatten() {
            let len = self.filesystem.inode(number)?.size();
            blocks = blocks.saturating_add(len.div_ceil(self.layout().block_size()));
        }
        Ok(blocks)
    }

    fn xattr_references(&self, block: u64) -> Result<u32> {
        let bytes = self.staging.block(block)?;
        let references = LittleEndian::read_u32(&bytes[REFERENCES..]);
        if LittleEndian::read_u32(&bytes) != MAGIC || references == 0 {
            return Err(damaged(format!("block {block} is none of extended attributes")));
        }
        Ok(references)
    }

    /// Takes one file from those that share a block. Says whether it was the last.
    fn release_xattr_block(&mut self, block: u64) -> Result<bool> {
        let references = self.xattr_references(block)?;
        if references == 1 {
            self.free_blocks(block..block + 1)?;
            return Ok(true);
        }
        let seed = self.seed();
        self.change(block, |bytes| {
            LittleEndian::write_u32(&mut bytes[REFERENCES..], references - 1);
            if let Some(seed) = seed {
                LittleEndian::write_u32(&mut bytes[CHECKSUM..], 0);
                let sum = seed.with(&block.to_le_bytes()).with(bytes);
                LittleEndian::write_u32(&mut bytes[CHECKSUM..], sum.value());
            }
        })?;
        Ok(false)
    }

    /// Gives back all that a file has for its attributes outside of its inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn drop_xattrs(&mut self, inode: &Inode) -> Result<()> {
        let [own, shared] = self.filesystem.xattr_inodes(&self.reader_inode(inode.number)?)?;
        for number in own {
            self.release_value(number.into())?;
        }
        let block = inode.xattr_block();
        if block != 0 && self.release_xattr_block(block)? {
            for number in shared {
                self.release_value(number.into())?;
            }
        }
        Ok(())
    }

    /// Takes one reference from an inode that holds a value.
    fn release_value(&mut self, number: u32) -> Result<()> {
        let mut inode = self.load(number)?;
        if !inode.has(FLAG_EA_INODE) {
            return Err(damaged(format!(
                "inode {number} is to hold the value of an extended attribute, and does not"
            )));
        }
        if inode.references() > 1 {
            inode.set_references(inode.references() - 1);
            return self.store(&mut inode);
        }
        let allocation = self.filesystem.allocation(&self.reader_inode(number)?)?;
        self.free_allocation(&allocation)?;
        self.wipe_inode(number)?;
        self.free_inode(number, false)
    }
}
