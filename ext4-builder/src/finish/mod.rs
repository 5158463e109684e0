//! Writes the metadata of a finished tree.
//!
//! Everything has its place before anything that says so is written: first what belongs to single files (`contents`: directory
//! blocks, extent trees, extended attributes), as its amount is known only when it is made; then the layout is worked
//! out ([`layout::solve`]), the filesystem's own files are written (`own_files`), and the groups get their inode tables and bitmaps (`groups`). All that and the
//! copies of the superblock is durable before the superblock itself is written.

mod contents;
mod groups;
mod own_files;
mod xattrs;

use block::{Error, ErrorKind, Result};

use crate::builder::Builder;
use crate::layout::{self, Demand};
use crate::superblock::{SUPERBLOCK_OFFSET, Superblock};
use crate::{Inodes, Summary};
use contents::Contents;
use own_files::OwnFiles;

/// Writes all that is left, and the superblock last.
pub(crate) fn finish(mut builder: Builder<'_>) -> Result<Summary> {
    builder.settle();
    let mut contents = Contents::place(&mut builder)?;
    builder.settle();
    let inodes = contents.inodes + 1; // the orphan file's
    if let Inodes::Count(count) = builder.options.inodes
        && count < inodes
    {
        let message = format!("the tree needs {inodes} inodes, and {count} are asked for");
        let hint = format!("choose {inodes} or more, or leave the number open");
        return Err(Error::new(ErrorKind::NoSpace, message).with_hint(hint));
    }
    let layout = layout::solve(&Demand {
        options: &builder.options,
        geometry: builder.geometry,
        descriptor_room: builder.descriptor_room,
        cursor: builder.allocator.cursor(),
        free: builder.allocator.free().map(|run| run.end - run.start).sum(),
        inodes,
        overflowed: builder.allocator.overflowed(),
        orphan_file: builder.features.orphan_file,
    })?;
    builder.features.ea_inode = contents.has_value_inodes();
    builder.features.large_directory = contents.large_directories;
    builder.features.journal = layout.journal.blocks() > 0;
    builder.features.orphan_file = layout.orphan_file.blocks() > 0;
    builder.features.resize_inode = layout.resize_block.is_some();
    builder.disk.grow(layout.blocks * builder.geometry.block_size())?;
    let own_files = OwnFiles::write(&builder, &mut contents, &layout)?;
    let groups = groups::write(&builder, &contents, &own_files, &layout)?;
    let superblock = Superblock {
        options: &builder.options,
        geometry: builder.geometry,
        features: builder.features,
        layout: &layout,
        free_blocks: groups.free_blocks,
        free_inodes: groups.free_inodes,
        seed: builder.seal.seed(),
        journal: own_files.journal_backup(),
        orphan_file_inode: own_files.orphan_file_number(),
    };
    groups::write_copies(&builder, &layout, &groups.descriptors, &superblock)?;
    builder.disk.sync()?;
    builder
        .disk
        .write_at(SUPERBLOCK_OFFSET, &superblock.to_bytes(0))?;
    builder.disk.sync()?;
    Ok(Summary {
        block_size: builder.options.block_size,
        blocks: layout.blocks,
        free_blocks: groups.free_blocks,
        inodes: layout.groups.len() as u32 * layout.inodes_per_group,
        free_inodes: groups.free_inodes,
        journal_blocks: layout.journal.blocks(),
    })
}
