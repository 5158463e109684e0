//! Where metadata lies, and how large the filesystem is: worked out once everything but inode tables is placed.
//!
//! Groups lie in flex groups of 16. Those that data reaches get their bitmaps and inode tables at the cursor, behind
//! the data, and all others at their own start, as mke2fs has it. More groups need more tables, which may need more
//! groups: [`solve`] starts from the fewest and goes up until everything fits, which soon it does, as a group holds
//! far more than its own metadata.

use block::{Error, ErrorKind, Result};

use crate::allocator::{Cursor, Run};
use crate::builder::push_extent;
use crate::extent::{self, Extent};
use crate::geometry::{FLEX_GROUPS, Geometry, groups_with_superblock, has_superblock};
use crate::options::{Free, Inodes, Journal, Options, Size, TooSmall};
use crate::{journal, orphan_file};

/// A last group with less room for data than this is left off a given size: its metadata would be most of it.
const MIN_DATA_BLOCKS: u64 = 50;

/// What a layout has to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) options: &'a Options,
    pub(crate) geometry: Geometry,
    /// Blocks kept for descriptors behind each superblock.
    pub(crate) descriptor_room: u32,
    /// Above all that is allocated.
    pub(crate) cursor: Cursor,
    /// Blocks below it that are free.
    pub(crate) free: u64,
    /// Inodes in use, the reserved ones included.
    pub(crate) inodes: u32,
    /// Whether more was placed than a given size has room for.
    pub(crate) overflowed: bool,
    /// Whether the profile has an orphan file where there is a journal.
    pub(crate) orphan_file: bool,
}

/// Where a group's own metadata is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupPlace {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
}

/// How many blocks the filesystem's own files have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OwnFiles {
    journal: u64,
    orphan_file: u64,
}

/// Where one of them is.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnFile {
    pub(crate) extents: Vec<Extent>,
    /// Blocks of the extent tree.
    pub(crate) tree: Vec<u64>,
}

impl OwnFile {
    fn take(cursor: &mut Cursor, blocks: u64, geometry: Geometry) -> Self {
        let mut runs = Vec::new();
        let mut logical = 0;
        for run in cursor.take_all(blocks) {
            push_extent(&mut runs, logical, &run);
            logical += run.end - run.start;
        }
        let extents: Vec<Extent> = runs.into_iter().flat_map(Extent::pieces).collect();
        let tree = extent::tree_blocks(extents.len(), geometry.block_size() as usize);
        let tree = cursor.take_all(tree).into_iter().flatten().collect();
        Self { extents, tree }
    }

    /// Blocks of its contents.
    pub(crate) fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.len)).sum()
    }

    /// The blocks of its contents, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> {
        self.extents
            .iter()
            .flat_map(|extent| extent.physical..extent.physical + u64::from(extent.len))
    }
}

/// A whole filesystem's places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Blocks in the filesystem.
    pub(crate) blocks: u64,
    pub(crate) inodes_per_group: u32,
    /// Blocks of an inode table.
    pub(crate) table_blocks: u32,
    /// Blocks of descriptors, and those kept behind them for more.
    pub(crate) descriptor_blocks: u32,
    pub(crate) reserved_descriptor_blocks: u32,
    pub(crate) groups: Vec<GroupPlace>,
    /// Without blocks where there is none.
    pub(crate) journal: OwnFile,
    pub(crate) orphan_file: OwnFile,
    /// Blocks below `end` that were too few for an inode table.
    pub(crate) skipped: Vec<Run>,
    /// The resize inode's own block, where there is one.
    pub(crate) resize_block: Option<u64>,
    /// Blocks below this are in use but for those known to be free; above it, those of groups' metadata and copies.
    pub(crate) end: u64,
    /// Blocks in use, copies of superblock and descriptors included.
    pub(crate) used: u64,
}

impl Layout {
    /// Blocks of metadata that no file is charged for, and the journal: what statfs leaves out.
    pub(crate) fn overhead(&self, geometry: Geometry) -> u64 {
        let groups = self.groups.len() as u64;
        geometry.first_data_block()
            + groups * (2 + u64::from(self.table_blocks))
            + self.copies() * u64::from(self.copy_blocks())
            + self.journal.blocks()
    }

    /// Blocks of each copy of superblock and descriptors.
    pub(crate) fn copy_blocks(&self) -> u32 {
        1 + self.descriptor_blocks + self.reserved_descriptor_blocks
    }

    fn copies(&self) -> u64 {
        groups_with_superblock(self.groups.len() as u32).count() as u64
    }
}

/// Blocks to keep for descriptors behind each superblock, reserved ones included.
pub(crate) fn descriptor_room(options: &Options, geometry: Geometry) -> Result<u32> {
    /// The size that one that is made to fit can grow to.
    const GROWTH: u64 = 512 << 30;
    /// And one of a given size, by as much.
    const GROWTH_FACTOR: u64 = 1024;
    let blocks_for = |bytes: u64| {
        let blocks = (bytes / geometry.block_size()).max(geometry.first_data_block() + 1);
        geometry.descriptor_blocks(geometry.groups(blocks))
    };
    // The reserved blocks' pointers fill at most one block, and beyond 2^32 blocks there are none.
    let reserved = geometry.block_size() as u32 / 4;
    let most = geometry.block_size().saturating_mul(u64::from(u32::MAX));
    let (least, wanted) = match options.size {
        Size::Given(size) => (
            blocks_for(size),
            options.growth.unwrap_or(size.saturating_mul(GROWTH_FACTOR)),
        ),
        Size::Fit(_) | Size::Shrink => (1, options.growth.unwrap_or(GROWTH)),
    };
    // With copies of them in some groups, half of a group.
    let limit = geometry.blocks_per_group() / 2;
    let wanted = blocks_for(wanted.min(most)).min(least + reserved).min(limit);
    if least > limit {
        let groups = u64::from(limit) * u64::from(geometry.descriptors_per_block());
        let largest = groups * u64::from(geometry.blocks_per_group()) * geometry.block_size();
        let message = format!(
            "blocks of {} bytes allow for no filesystem as large as this",
            geometry.block_size()
        );
        let larger = match geometry.block_size() {
            4096 => "",
            _ => ", or larger blocks",
        };
        return Err(
            Error::invalid(message).with_hint(format!("choose a size of {largest} bytes at most{larger}"))
        );
    }
    Ok(wanted.max(least))
}

/// Finds the layout.
///
/// # Errors
/// `NoSpace` where a given size is too small, with the size that would do; `InvalidInput` for more inodes or groups
/// than there can be.
pub(crate) fn solve(demand: &Demand<'_>) -> Result<Layout> {
    match demand.options.size {
        Size::Given(size) => demand.given(size / demand.geometry.block_size()),
        Size::Fit(free) => demand.fit(free),
        Size::Shrink => demand.fit(Free::Bytes(0)),
    }
}

impl Demand<'_> {
    fn given(&self, blocks: u64) -> Result<Layout> {
        match self.place_given(blocks) {
            Ok(Some(layout)) if !self.overflowed => Ok(layout),
            _ => Err(self.too_small(blocks)),
        }
    }

    /// The layout of so many blocks, or few less; `None` where they are too few.
    fn place_given(&self, mut blocks: u64) -> Result<Option<Layout>> {
        loop {
            let groups = self.geometry.groups(blocks);
            let inodes_per_group = self.inodes_per_group(groups, blocks)?;
            let own = 2 + u64::from(inodes_per_group / self.geometry.inodes_per_block());
            let last = self.geometry.first_block(groups - 1);
            let copy = if has_superblock(groups - 1) {
                1 + u64::from(self.descriptor_room)
            } else {
                0
            };
            if groups > 1 && blocks - last < copy + own + MIN_DATA_BLOCKS {
                blocks = last;
                continue;
            }
            let layout = self.place(groups, inodes_per_group, self.own_files(blocks));
            return Ok((layout.blocks <= blocks).then_some(Layout { blocks, ..layout }));
        }
    }

    /// Whether so many blocks would do if they were given from the start.
    fn would_do(&self, blocks: u64) -> bool {
        let options = Options {
            size: Size::Given(blocks * self.geometry.block_size()),
            ..self.options.clone()
        };
        let Ok(descriptor_room) = descriptor_room(&options, self.geometry) else {
            return false;
        };
        let mut cursor = Cursor::new(self.geometry, 1 + descriptor_room);
        // Copies of another length cut other files in two, and each of these may need one more block of extents.
        let cuts = if descriptor_room == self.descriptor_room {
            0
        } else {
            groups_with_superblock(self.geometry.groups(blocks))
                .skip(1)
                .count() as u64
        };
        cursor.take_all(self.cursor.taken() + cuts);
        let demand = Demand {
            options: &options,
            descriptor_room,
            cursor,
            overflowed: false,
            ..*self
        };
        demand.place_given(blocks).is_ok_and(|layout| layout.is_some())
    }

    /// A number of blocks, more than `blocks`, that would do: about the least.
    ///
    /// Not all larger ones need do, as from certain sizes on journal and descriptors are larger too. So it is looked for
    /// upwards, in small steps, and more closely between the first that does and the one before.
    fn enough(&self, blocks: u64) -> Option<u64> {
        /// At least a block for every 4 is no inode table where these follow from the size, and no journal is longer.
        const FACTOR: u64 = 8;
        const OWN_FILES: u64 = 1 << 25;
        let tables = |inodes: u64| inodes / u64::from(self.geometry.inodes_per_block());
        let least = blocks.max(self.cursor.taken() + tables(self.inodes.into()));
        let most = (least + tables(self.least_inodes())) * FACTOR + OWN_FILES;
        let (mut too_few, mut enough) = (least, least + 1);
        while !self.would_do(enough) {
            if enough > most {
                return None;
            }
            too_few = enough;
            enough += (enough / 64).max(1);
            // No step passes over the last size before the journal gets longer, which may be the only one that does.
            let last = journal::LENGTHS.iter().map(|(from, _)| from - 1);
            enough = last.filter(|last| *last > too_few).fold(enough, u64::min);
        }
        while too_few + 1 < enough {
            let middle = too_few.midpoint(enough);
            if self.would_do(middle) {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        Some(enough)
    }

    /// Where a longer journal takes more than there is to spare in a filesystem of `enough` blocks: the first number
    /// that is too small again, and one from which on all do.
    fn gap(&self, enough: u64) -> Option<(u64, u64)> {
        if self.options.journal != Journal::Default {
            return None;
        }
        let mut too_few = journal::LENGTHS
            .iter()
            .map(|(from, _)| *from)
            .filter(|&blocks| blocks > enough && !self.would_do(blocks));
        let first = too_few.next()?;
        Some((first, self.enough(too_few.next_back().unwrap_or(first))?))
    }

    fn too_small(&self, blocks: u64) -> Error {
        let block_size = self.geometry.block_size();
        let error = |message: String| Error::new(ErrorKind::NoSpace, message);
        match self.enough(blocks) {
            Some(enough) => {
                let but = self.gap(enough).map(|(from, to)| {
                    let (from, to) = (from * block_size, to * block_size);
                    format!(", but from {from} on one of {to} or more: the journal is longer there")
                });
                let enough = enough * block_size;
                error("the filesystem is too small".to_owned())
                    .with_source(TooSmall {
                        given: blocks * block_size,
                        enough,
                    })
                    .with_hint(format!(
                        "choose a size of {enough} bytes or more{}",
                        but.unwrap_or_default()
                    ))
            }
            None => error(format!(
                "{} bytes leave no room for the tree beside this many inodes",
                blocks * block_size
            ))
            .with_hint("choose a larger size, fewer inodes or no journal"),
        }
    }

    fn fit(&self, free: Free) -> Result<Layout> {
        let geometry = self.geometry;
        let most_per_group = geometry.max_inodes_per_group();
        let mut groups = geometry
            .groups(self.cursor.next().max(geometry.first_data_block() + 1))
            .max(self.least_inodes().div_ceil(u64::from(most_per_group)) as u32);
        let mut own = OwnFiles::default();
        loop {
            let nominal = geometry.first_block(groups);
            let inodes_per_group = self.inodes_per_group(groups, nominal)?;
            let mut layout = self.place(groups, inodes_per_group, own);
            let wanted = match free {
                Free::Bytes(bytes) => layout.used + geometry.blocks_of(bytes),
                Free::Percent(percent) => (layout.used * 100).div_ceil(100 - u64::from(percent)),
            };
            // The last group exists: it holds a block beyond its copy.
            let last = groups - 1;
            let copy = if has_superblock(last) {
                1 + self.descriptor_room
            } else {
                0
            };
            let least = geometry.first_block(last) + u64::from(copy) + 1;
            layout.blocks = wanted.max(layout.blocks).max(least);
            let (more, larger) = (geometry.groups(layout.blocks), self.own_files(layout.blocks));
            if more <= groups && larger.journal <= own.journal && larger.orphan_file <= own.orphan_file {
                return self.check_descriptors(layout);
            }
            groups = groups.max(more);
            own.journal = own.journal.max(larger.journal);
            own.orphan_file = own.orphan_file.max(larger.orphan_file);
        }
    }

    /// Fewer descriptors fit than there are groups when the tree turned out larger than what room was kept for.
    fn check_descriptors(&self, layout: Layout) -> Result<Layout> {
        if layout.descriptor_blocks <= self.descriptor_room {
            return Ok(layout);
        }
        let size = layout.blocks * self.geometry.block_size();
        let message = format!("the tree takes {size} bytes, more than room was kept for");
        Err(Error::new(ErrorKind::NoSpace, message)
            .with_hint("state a size, or up to which size the filesystem can grow"))
    }

    /// Inodes that there must be.
    fn least_inodes(&self) -> u64 {
        let used = u64::from(self.inodes);
        match (self.options.size, self.options.inodes) {
            (_, Inodes::Count(count)) => used.max(count.into()),
            (Size::Shrink, _) => used,
            // Where files are so small that they need more inodes than usual, so will those to come.
            (_, Inodes::BytesPerInode(_)) => used + used / 8,
        }
    }

    fn inodes_per_group(&self, groups: u32, blocks: u64) -> Result<u32> {
        let by_size = match (self.options.size, self.options.inodes) {
            (Size::Shrink, _) | (_, Inodes::Count(_)) => 0,
            (_, Inodes::BytesPerInode(bytes)) => blocks * self.geometry.block_size() / bytes,
        };
        let granule = self.geometry.inodes_granule();
        // The number of all inodes must fit 32 bits.
        let most = self.geometry.max_inodes_per_group().min(u32::MAX / groups);
        let most = u64::from(most - most % granule);
        let wanted = |inodes: u64| inodes.div_ceil(groups.into()).next_multiple_of(granule.into());
        // A filesystem of few groups may have room for those needed and not for those to spare.
        if wanted(self.inodes.into()) > most {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{} files need more inodes than the {} of {groups} groups",
                    self.inodes,
                    most * u64::from(groups)
                ),
            )
            .with_hint("choose a larger size"));
        }
        Ok(wanted(self.least_inodes().max(by_size)).min(most) as u32)
    }

    /// As mke2fs has it, there is an orphan file only where there is a journal.
    fn own_files(&self, blocks: u64) -> OwnFiles {
        let journal = match self.options.journal {
            Journal::Default => journal::default_blocks(blocks).map_or(0, u64::from),
            Journal::Bytes(bytes) => bytes / self.geometry.block_size(),
            Journal::None => 0,
        };
        let orphan_file = if self.orphan_file && journal > 0 {
            orphan_file::default_blocks(blocks).into()
        } else {
            0
        };
        OwnFiles { journal, orphan_file }
    }

    /// Blocks to keep behind the descriptors, which the resize inode can lead to.
    fn reserved_descriptor_blocks(&self, groups: u32, descriptor_blocks: u32) -> u32 {
        if self.geometry.first_block(groups) > u32::MAX.into() {
            return 0;
        }
        self.descriptor_room
            .saturating_sub(descriptor_blocks)
            .min(self.geometry.block_size() as u32 / 4)
    }

    /// Places everything for so many groups; the layout is as short as that allows.
    fn place(&self, groups: u32, inodes_per_group: u32, own: OwnFiles) -> Layout {
        let geometry = self.geometry;
        let mut cursor = self.cursor;
        let descriptor_blocks = geometry.descriptor_blocks(groups);
        let reserved = self.reserved_descriptor_blocks(groups, descriptor_blocks);
        let mut layout = Layout {
            inodes_per_group,
            table_blocks: inodes_per_group / geometry.inodes_per_block(),
            descriptor_blocks,
            reserved_descriptor_blocks: reserved,
            groups: Vec::with_capacity(groups as usize),
            journal: OwnFile::take(&mut cursor, own.journal, geometry),
            orphan_file: OwnFile::take(&mut cursor, own.orphan_file, geometry),
            ..Layout::default()
        };
        if reserved > 0 {
            layout.resize_block = Some(cursor.take(1).start);
        }

        let mut used_above = 0;
        let mut top = 0;
        for first in (0..groups).step_by(FLEX_GROUPS as usize) {
            let count = FLEX_GROUPS.min(groups - first);
            let own = geometry.first_block(first);
            if own < cursor.next() {
                layout.place_flex_group(&mut cursor, count);
            } else {
                let mut own_cursor = cursor;
                own_cursor.move_to(own);
                let skipped_below = layout.skipped.len();
                layout.place_flex_group(&mut own_cursor, count);
                layout.skipped.truncate(skipped_below);
                used_above += u64::from(count) * (2 + u64::from(layout.table_blocks));
                top = own_cursor.next();
            }
        }
        layout.end = cursor.next();
        layout.blocks = layout.end.max(top);
        // Below the end all is in use but what is free and what the copies there leave of their room.
        let copies_below = groups_with_superblock(groups)
            .filter(|&group| geometry.first_block(group) < layout.end)
            .count() as u64;
        // One with more descriptors than there is room for is refused when it is whole.
        let left_over = u64::from((1 + self.descriptor_room).saturating_sub(layout.copy_blocks()));
        let skipped: u64 = layout.skipped.iter().map(|run| run.end - run.start).sum();
        layout.used = layout.end - self.free - skipped - copies_below * left_over
            + used_above
            + (layout.copies() - copies_below) * u64::from(layout.copy_blocks());
        layout
    }
}

impl Layout {
    fn place_flex_group(&mut self, cursor: &mut Cursor, count: u32) {
        let mut places = vec![GroupPlace::default(); count as usize];
        for place in &mut places {
            place.block_bitmap = cursor.take(1).start;
        }
        for place in &mut places {
            place.inode_bitmap = cursor.take(1).start;
        }
        for place in &mut places {
            place.inode_table = cursor
                .take_contiguous(self.table_blocks.into(), &mut self.skipped)
                .start;
        }
        self.groups.extend(places);
    }
}
