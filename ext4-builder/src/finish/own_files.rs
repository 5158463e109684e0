//! Files of the filesystem itself, which have no name: the journal, the orphan file, and what holds the room that
//! the descriptors of a larger filesystem will need.

use block::Result;

use super::contents::Contents;
use crate::builder::Builder;
use crate::geometry::groups_with_superblock;
use crate::inode::{FLAG_EXTENTS, FileType, Inode};
use crate::journal::{self, JOURNAL_INODE};
use crate::layout::{Layout, OwnFile};
use crate::resize_inode::{RESIZE_INODE, Reserved};
use crate::{extent, orphan_file};

/// Their inodes.
#[derive(Debug)]
pub(super) struct OwnFiles {
    journal: Option<Inode>,
    resize: Option<Inode>,
    orphan_file: Option<(u32, Inode)>,
}

impl OwnFiles {
    /// Writes what they hold. An orphan file gets the next number.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub(super) fn write(builder: &Builder<'_>, contents: &mut Contents, layout: &Layout) -> Result<Self> {
        let journal = builder
            .features
            .journal
            .then(|| journal(builder, &layout.journal));
        let resize = layout
            .resize_block
            .map(|block| resize_inode(builder, layout, block));
        let orphan_file = builder.features.orphan_file.then(|| -> Result<_> {
            contents.inodes += 1;
            let inode = orphan_file(builder, &layout.orphan_file, contents.inodes)?;
            Ok((contents.inodes, inode))
        });
        Ok(Self {
            journal: journal.transpose()?,
            resize: resize.transpose()?,
            orphan_file: orphan_file.transpose()?,
        })
    }

    /// The inode of this number: zeros where it is none of these.
    pub(super) fn inode(&self, number: u32) -> Inode {
        let inode = match number {
            JOURNAL_INODE => self.journal.as_ref(),
            RESIZE_INODE => self.resize.as_ref(),
            _ => self
                .orphan_file
                .as_ref()
                .and_then(|(own, inode)| (*own == number).then_some(inode)),
        };
        inode.cloned().unwrap_or_default()
    }

    pub(super) fn orphan_file_number(&self) -> Option<u32> {
        self.orphan_file.as_ref().map(|&(number, _)| number)
    }

    /// What the superblock repeats of the journal's inode.
    pub(super) fn journal_backup(&self) -> Option<[u8; journal::BACKUP_SIZE]> {
        let inode = self.journal.as_ref()?;
        Some(journal::backup(&inode.map, inode.size))
    }
}

/// Writes a journal without transactions. All of it is zeroed: what is left of an older one could pass for a
/// transaction after a crash.
fn journal(builder: &Builder<'_>, file: &OwnFile) -> Result<Inode> {
    let first = file.extents[0].physical;
    for extent in &file.extents {
        let start = if extent.physical == first {
            first + 1
        } else {
            extent.physical
        };
        builder
            .disk
            .zero_new(start..extent.physical + u64::from(extent.len))?;
    }
    let block_size = builder.geometry.block_size() as usize;
    let bytes = journal::first_block(block_size, file.blocks() as u32, &builder.options.uuid);
    builder.disk.write(first, &bytes)?;
    inode(builder, file, JOURNAL_INODE)
}

fn orphan_file(builder: &Builder<'_>, file: &OwnFile, number: u32) -> Result<Inode> {
    let seed = builder.seal.seed().map(|seed| seed.of_inode(number, 0));
    for place in file.places() {
        let bytes = orphan_file::block(builder.geometry.block_size() as usize, place, &[], seed);
        builder.disk.write(place, &bytes)?;
    }
    inode(builder, file, number)
}

/// Writes the extent tree of a file, and makes its inode.
fn inode(builder: &Builder<'_>, file: &OwnFile, number: u32) -> Result<Inode> {
    let block_size = builder.geometry.block_size();
    let seed = builder.seal.seed().map(|seed| seed.of_inode(number, 0));
    let mut places = file.tree.iter();
    let map = extent::tree(&file.extents, block_size as usize, seed, |bytes| {
        // There are as many places as blocks.
        let place = places.next().copied().unwrap_or(0);
        builder.disk.write(place, bytes)?;
        Ok(place)
    })?;
    let blocks = file.blocks() + file.tree.len() as u64;
    let inode = Inode {
        mode: FileType::Regular.mode() | 0o600,
        size: file.blocks() * block_size,
        sectors: blocks * (block_size / 512),
        links: 1,
        flags: FLAG_EXTENTS,
        map,
        ..Inode::default()
    };
    Ok(with_times(builder, inode))
}

fn resize_inode(builder: &Builder<'_>, layout: &Layout, block: u64) -> Result<Inode> {
    let groups: Vec<u64> = groups_with_superblock(layout.groups.len() as u32)
        .map(|group| builder.geometry.first_block(group))
        .collect();
    let reserved = Reserved {
        block_size: builder.geometry.block_size() as usize,
        descriptors: layout.descriptor_blocks,
        blocks: layout.reserved_descriptor_blocks,
        groups: &groups,
    };
    builder.disk.write(block, &reserved.double_indirect())?;
    for (place, bytes) in reserved.indirect() {
        builder.disk.write(place, &bytes)?;
    }
    Ok(with_times(builder, reserved.inode(block)))
}

/// Sets all times to that of creation.
fn with_times(builder: &Builder<'_>, mut inode: Inode) -> Inode {
    let time = builder.options.time;
    inode.accessed = time;
    inode.changed = time;
    inode.modified = time;
    inode.created = time;
    inode
}
