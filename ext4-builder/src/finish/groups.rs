//! What each group keeps: bitmaps, its part of the inode table, its descriptor, and copies of the superblock.

use block::Result;

use super::contents::Contents;
use super::own_files::OwnFiles;
use crate::allocator::Run;
use crate::bitmap::Bitmap;
use crate::builder::Builder;
use crate::disk::BlockWriter;
use crate::geometry::{Geometry, groups_with_superblock, has_superblock};
use crate::group_descriptor::GroupDescriptor;
use crate::inode::INODE_SIZE;
use crate::layout::Layout;
use crate::superblock::Superblock;

/// What is to be said of all groups.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) descriptors: Vec<u8>,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
}

/// Writes inode tables and bitmaps, and makes the table of descriptors.
pub(super) fn write(
    builder: &Builder<'_>,
    contents: &Contents,
    own_files: &OwnFiles,
    layout: &Layout,
) -> Result<Groups> {
    let geometry = builder.geometry;
    let directories = write_inodes(builder, contents, own_files, layout)?;
    let used = used_runs(builder, layout);
    let mut used = &used[..];
    let mut groups = Groups {
        descriptors: Vec::with_capacity(layout.groups.len() * 64),
        free_blocks: 0,
        free_inodes: 0,
    };
    let (mut block_bitmaps, mut inode_bitmaps) =
        (BlockWriter::new(&builder.disk), BlockWriter::new(&builder.disk));
    for (group, &place) in (0..).zip(&layout.groups) {
        let start = geometry.first_block(group);
        let len = (layout.blocks - start).min(geometry.blocks_per_group().into()) as u32;
        let (in_use, rest) = runs_of_group(used, start, len);
        used = rest;
        let used_blocks: u32 = in_use.iter().map(|(start, end)| end - start).sum();
        let copy = if has_superblock(group) {
            layout.copy_blocks()
        } else {
            0
        };
        // Where the bitmap is not written, it is taken that all but the copy is free. The last group may be short,
        // which only its bitmap's padding says: it always has one.
        let is_implied = used_blocks == copy && group + 1 < layout.groups.len() as u32;
        let blocks = (!is_implied).then(|| {
            let mut bitmap = Bitmap::new(geometry.block_size(), len);
            for &(start, end) in &in_use {
                bitmap.set(start, end);
            }
            bitmap
        });
        let used_inodes = contents
            .inodes
            .saturating_sub(group * layout.inodes_per_group)
            .min(layout.inodes_per_group);
        let inodes = (used_inodes > 0).then(|| {
            let mut bitmap = Bitmap::new(geometry.block_size(), layout.inodes_per_group);
            bitmap.set(0, used_inodes);
            bitmap
        });
        if let Some(bitmap) = &blocks {
            block_bitmaps.write(place.block_bitmap, bitmap.as_bytes())?;
        }
        if let Some(bitmap) = &inodes {
            inode_bitmaps.write(place.inode_bitmap, bitmap.as_bytes())?;
        }
        let descriptor = GroupDescriptor {
            group,
            place,
            free_blocks: len - used_blocks,
            inodes_per_group: layout.inodes_per_group,
            used_inodes,
            directories: directories.get(group as usize).copied().unwrap_or(0),
            blocks,
            inodes,
        };
        groups.descriptors.extend(descriptor.to_bytes(builder.seal));
        groups.free_blocks += u64::from(len - used_blocks);
        groups.free_inodes += layout.inodes_per_group - used_inodes;
    }
    block_bitmaps.flush()?;
    inode_bitmaps.flush()?;
    debug_assert_eq!(groups.free_blocks, layout.blocks - layout.used);
    Ok(groups)
}

/// Writes all inode tables. Returns the number of directories in each group that has inodes.
fn write_inodes(
    builder: &Builder<'_>,
    contents: &Contents,
    own_files: &OwnFiles,
    layout: &Layout,
) -> Result<Vec<u32>> {
    let per_group = layout.inodes_per_group as usize;
    let block_size = builder.geometry.block_size();
    let mut directories = Vec::new();
    let mut table = Vec::with_capacity(per_group * INODE_SIZE);
    let mut inodes = contents.inodes(builder, own_files).peekable();
    for place in &layout.groups {
        table.clear();
        let mut count = 0;
        if inodes.peek().is_some() {
            for (is_directory, bytes) in inodes.by_ref().take(per_group) {
                count += u32::from(is_directory);
                table.extend_from_slice(&bytes);
            }
            directories.push(count);
        }
        if !table.is_empty() {
            builder.disk.write(place.inode_table, &table)?;
        }
        let written = (table.len() as u64).div_ceil(block_size);
        let end = place.inode_table + u64::from(layout.table_blocks);
        builder.disk.zero_new(place.inode_table + written..end)?;
    }
    Ok(directories)
}

/// All blocks in use, in order; none touches another, and none is in two.
fn used_runs(builder: &Builder<'_>, layout: &Layout) -> Vec<Run> {
    let geometry = builder.geometry;
    let groups = layout.groups.len() as u32;
    let mut runs = Vec::new();

    // Below the end: what is between the free runs.
    let mut free: Vec<Run> = builder
        .allocator
        .free()
        .chain(layout.skipped.iter().cloned())
        .collect();
    let room = geometry_copy(geometry, builder.descriptor_room);
    for group in groups_with_superblock(groups) {
        let place = room(group);
        let left_over = place.start + u64::from(layout.copy_blocks())..place.end;
        if place.start < layout.end && !left_over.is_empty() {
            free.push(left_over);
        }
    }
    free.sort_by_key(|run| run.start);
    let mut start = geometry.first_data_block();
    for run in free {
        runs.push(start..run.start);
        start = run.end;
    }
    runs.push(start..layout.end);

    // Above it: copies, and metadata of groups that have nothing else.
    let above = |run: &Run| run.start >= layout.end;
    runs.extend(
        groups_with_superblock(groups)
            .map(|group| {
                let start = geometry.first_block(group);
                start..start + u64::from(layout.copy_blocks())
            })
            .filter(above),
    );
    for place in &layout.groups {
        let table = place.inode_table..place.inode_table + u64::from(layout.table_blocks);
        let bitmaps = [place.block_bitmap, place.inode_bitmap].map(|block| block..block + 1);
        runs.extend(bitmaps.into_iter().chain([table]).filter(above));
    }
    runs.retain(|run| !run.is_empty());
    runs.sort_by_key(|run| run.start);
    runs.dedup_by(|next, before| {
        let touch = before.end == next.start;
        if touch {
            before.end = next.end;
        }
        touch
    });
    runs
}

fn geometry_copy(geometry: Geometry, descriptor_room: u32) -> impl Fn(u32) -> Run {
    move |group| {
        let start = geometry.first_block(group);
        start..start + 1 + u64::from(descriptor_room)
    }
}

/// The parts of `runs` in a group, counted from its start, and the runs that reach past its end.
fn runs_of_group(runs: &[Run], start: u64, len: u32) -> (Vec<(u32, u32)>, &[Run]) {
    let end = start + u64::from(len);
    let reach = runs.partition_point(|run| run.start < end);
    let within = runs[..reach]
        .iter()
        .map(|run| {
            let (from, to) = (run.start.max(start), run.end.min(end));
            ((from - start) as u32, (to - start) as u32)
        })
        .collect();
    let past = runs.partition_point(|run| run.end <= end);
    (within, &runs[past..])
}

/// Writes the descriptors of every group that has a copy, and the superblock of all but the first.
pub(super) fn write_copies(
    builder: &Builder<'_>,
    layout: &Layout,
    descriptors: &[u8],
    superblock: &Superblock<'_>,
) -> Result<()> {
    let geometry = builder.geometry;
    for group in groups_with_superblock(layout.groups.len() as u32) {
        let start = geometry.first_block(group);
        builder.disk.write(start + 1, descriptors)?;
        if group != 0 {
            builder.disk.write(start, &superblock.to_bytes(group))?;
            let reserved = start + 1 + u64::from(layout.descriptor_blocks);
            let end = start + u64::from(layout.copy_blocks());
            builder.disk.zero_new(reserved..end)?;
        }
    }
    Ok(())
}
