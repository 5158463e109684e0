//! Group descriptors ("Block Group Descriptors"): where each group's part of the inode table is.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::Filesystem;
use crate::checksum::crc16;
use crate::corruption::{Corruption, verify};
use crate::superblock::{
    Compatible, Incompatible, OFFSET as SUPERBLOCK_OFFSET, ReadOnlyCompatible, Superblock,
};

const CHECKSUM: std::ops::Range<usize> = 0x1E..0x20;

/// The first block of the inode table of `group`.
pub(crate) fn inode_table(filesystem: &Filesystem, group: u32) -> Result<u64> {
    let superblock = filesystem.superblock();
    let mut bytes = vec![0; superblock.descriptor_size.into()];
    let (block, skip) = place(superblock, group);
    filesystem.read_blocks(&mut bytes, block, skip as u64)?;
    check(superblock, group, &bytes)?;

    let mut table = u64::from(LittleEndian::read_u32(&bytes[0x8..]));
    if superblock.has(Incompatible::IS_64BIT) {
        table |= u64::from(LittleEndian::read_u32(&bytes[0x28..])) << 32;
    }
    let len = (u64::from(superblock.inodes_per_group) * u64::from(superblock.inode_size))
        .div_ceil(superblock.block_size());
    if table <= u64::from(superblock.first_data_block)
        || table.checked_add(len).is_none_or(|end| end > superblock.blocks)
    {
        return Err(Corruption::InodeTable { group, block: table }.into());
    }
    Ok(table)
}

/// The block that holds the descriptor of `group`, and the byte at which it starts there.
pub(crate) fn place(superblock: &Superblock, group: u32) -> (u64, usize) {
    let size = u64::from(superblock.descriptor_size);
    let per_block = (superblock.block_size() / size) as u32;
    let block = block_of(superblock, group / per_block, per_block);
    (block, (u64::from(group % per_block) * size) as usize)
}

/// Which block of the filesystem is block `index` of the descriptors.
fn block_of(superblock: &Superblock, index: u32, per_block: u32) -> u64 {
    let first = u64::from(superblock.first_data_block);
    if !superblock.has(Incompatible::META_BG) || index < superblock.first_meta_group {
        // After the superblock, which with blocks of 1 KiB is in the second even where groups start at the first.
        return (SUPERBLOCK_OFFSET >> superblock.block_bits) + 1 + u64::from(index);
    }
    // The descriptors of each run of groups are at the start of its first group, after a copy of the superblock.
    let group = u64::from(index) * u64::from(per_block);
    // With block 0 the boot loader's, the superblock is alone in a block of 1 KiB.
    let boot = u64::from(index == 0 && first == 0 && superblock.block_size() == 1024);
    first
        + group * u64::from(superblock.blocks_per_group)
        + u64::from(has_superblock(superblock, group))
        + boot
}

/// Whether a copy of the superblock is at the start of `group`.
pub(crate) fn has_superblock(superblock: &Superblock, group: u64) -> bool {
    let power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    if superblock.compatible.contains(Compatible::SPARSE_SUPER2) {
        return group == 0 || superblock.backup_groups.contains(&(group as u32));
    }
    let sparse = superblock
        .read_only_compatible
        .contains(ReadOnlyCompatible::SPARSE_SUPER);
    !sparse || group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

pub(crate) fn check(superblock: &Superblock, group: u32, bytes: &[u8]) -> Result<()> {
    let number = group.to_le_bytes();
    let (before, after) = (&bytes[..CHECKSUM.start], &bytes[CHECKSUM.end..]);
    let computed = if superblock.has_checksums() {
        let zeroed = superblock.seed.with(&number).with(before).with(&[0; 2]);
        zeroed.with(after).low()
    } else if superblock
        .read_only_compatible
        .contains(ReadOnlyCompatible::GDT_CSUM)
    {
        crc16(&[&superblock.uuid, &number, before, after])
    } else {
        return Ok(());
    };
    let stored = LittleEndian::read_u16(&bytes[CHECKSUM]);
    verify(stored.into(), computed.into(), || {
        format!("the descriptor of block group {group}")
    })
}
