//! What a disk is made of, besides the filesystems of ext4: FAT, swap, and room that is no partition's.
//!
//! The last two hold what a running system has put there, or one before it, and nobody looks for. Swap keeps the page by which a system finds it,
//! with its UUID and label; behind it all goes. Between partitions and behind the last one there is nothing that a system
//! finds. Before the first one there may be a boot loader, which stays; and so does all of a disk whose table contradicts itself.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use block::{BlockDevice, Error, ErrorKind, Result};
use ext4_reader::Filesystem;
use fat_builder::Leftovers;
use raw::partition::{Partition, PartitionTable, Selector};

use super::behind::{Behind, behind};
use super::plan::Search;
use super::shown;
use super::swap::{Swap, hibernated};
use crate::Root;

/// Bytes at the start of a partition by which filesystems are known.
const START: usize = 128 << 10;

/// What on a disk was not looked into, or stays as it was, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLookedInto(String);

impl fmt::Display for NotLookedInto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a FAT filesystem is called.
const VFAT: &str = "vfat";

/// What messages call a disk without partitions.
const THE_DISK: &str = "the disk";

/// What has other filesystems in it, at places of its own.
const HOLDERS: [&str; 3] = ["luks", "lvm", "raid"];

/// A partition on a disk.
pub(super) struct Part {
    pub(super) number: u32,
    pub(super) device: Arc<dyn BlockDevice>,
    content: Content,
    kind: Option<&'static str>,
}

/// What is on a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Ext4,
    /// Behind a page of so many bytes.
    Swap(u64),
    Fat,
    Other(&'static str),
    Unknown,
}

impl Content {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Ext4 => Some("ext4"),
            Self::Swap(_) => Some("swap"),
            Self::Fat => Some(VFAT),
            Self::Other(name) => Some(name),
            Self::Unknown => None,
        }
    }
}

impl Part {
    /// The filesystem on it, where that is ext4.
    pub(super) fn filesystem(&self) -> Option<Root> {
        (self.content == Content::Ext4).then(|| Root {
            device: self.device.clone(),
            partition: Some(self.number),
        })
    }

    /// What is wrong with it, with which one it is.
    pub(super) fn about(&self, error: Error) -> Error {
        match error.hint() {
            None => error.with_hint(format!("it is about partition {}", self.number)),
            Some(_) => error,
        }
    }

    /// What swap has behind the page that says that it is some.
    pub(super) fn swapped(&self) -> Option<Range<u64>> {
        match self.content {
            Content::Swap(page) => Some(page..self.device.size()),
            _ => None,
        }
    }

    /// What is free on it, where it has a FAT filesystem or swap. Of ext4, its editor knows that.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn free(&self) -> Result<Vec<Range<u64>>> {
        let mut free = Vec::from_iter(self.swapped());
        if let Some(Ok(fat)) = self.fat_leftovers()? {
            free.extend(fat.free);
            free.extend(room_behind(&*self.device, fat.end)?);
        }
        Ok(free)
    }

    /// What is in no file of a FAT filesystem, or why that is not known; none where it is none.
    fn fat_leftovers(&self) -> Result<Option<Result<Leftovers>>> {
        if self.content != Content::Fat {
            return Ok(None);
        }
        match fat_builder::leftovers(&*self.device) {
            Err(error) if [ErrorKind::Corrupt, ErrorKind::Unsupported].contains(&error.kind()) => {
                Ok(Some(Err(error)))
            }
            left => left.map(|left| Some(Ok(left))),
        }
    }

    /// What stays on it as it was when the disk has been sealed.
    fn untouched(&self, is_root: bool) -> Result<Vec<NotLookedInto>> {
        let name = self.described();
        let mut told = Vec::new();
        let end = match (self.content, self.fat_leftovers()?) {
            (_, Some(Err(error))) => {
                told.push(format!(
                    "{name} is not looked into, and its free room stays as it is ({error})"
                ));
                None
            }
            (_, Some(Ok(fat))) => {
                told.push(wiped(&name));
                let mut loader = fat.loader.into_iter();
                let is_there = loader.try_fold(false, |is_there, range| {
                    Ok::<_, Error>(is_there || holds_something(&*self.device, range)?)
                })?;
                if is_there {
                    told.push(format!(
                        "reserved sectors of {name}, where its boot loader may go on, stay as they are"
                    ));
                }
                Some(fat.end)
            }
            (Content::Ext4, None) => {
                if !is_root {
                    told.push(wiped(&name));
                }
                Some(end_of(&Filesystem::open(self.device.clone())?))
            }
            (Content::Swap(_), None) => None,
            (Content::Fat | Content::Other(_) | Content::Unknown, None) => {
                told.push(skipped(&name));
                None
            }
        };
        if let Some(end) = end {
            told.extend(used_behind(&*self.device, end, &name)?);
        }
        Ok(told.into_iter().map(NotLookedInto).collect())
    }

    fn described(&self) -> String {
        let kind = self.kind.unwrap_or("of an unknown kind");
        format!(
            "partition {} ({})",
            self.number,
            self.content.name().unwrap_or(kind)
        )
    }
}

fn skipped(name: &str) -> String {
    format!("{name} is not looked into")
}

/// What is somebody's behind the filesystem of a device that messages call `name`.
fn used_behind(device: &dyn BlockDevice, end: u64, name: &str) -> Result<Option<String>> {
    Ok(match behind(device, end)? {
        Behind::Used(by) => Some(format!(
            "room behind the filesystem of {name}, which is {by}'s, stays as it is"
        )),
        Behind::Free(_) => None,
    })
}

fn wiped(name: &str) -> String {
    format!("files of {name} are not looked into; what is free there is wiped")
}

/// The byte behind a filesystem's last one.
pub(super) fn end_of(filesystem: &Filesystem) -> u64 {
    let superblock = filesystem.superblock();
    superblock.blocks().saturating_mul(superblock.block_size())
}

/// What is nobody's behind a filesystem.
///
/// # Errors
/// `Io`.
pub(super) fn room_behind(device: &dyn BlockDevice, end: u64) -> Result<Option<Range<u64>>> {
    Ok(match behind(device, end)? {
        Behind::Free(range) => Some(range),
        Behind::Used(_) => None,
    })
}

/// The partitions of a disk that hold something themselves.
///
/// # Errors
/// `InvalidInput` for a disk that holds the memory of a machine; `Corrupt` too for a partition that says that it is two things; `Io`.
pub(super) fn parts(disk: &Arc<dyn BlockDevice>, table: &PartitionTable) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for partition in table.partitions().iter().filter(|part| !part.is_container()) {
        let selector: Selector = partition.number.to_string().parse()?;
        let device: Arc<dyn BlockDevice> = Arc::new(table.open(disk.clone(), &selector)?);
        parts.push(Part {
            number: partition.number,
            content: content(&*device, &format!("partition {}", partition.number))?,
            kind: partition.kind.name(),
            device,
        });
    }
    Ok(parts)
}

/// [`refuse_hibernated`] for the filesystems of all partitions.
///
/// # Errors
/// As there and for [`parts`].
pub(super) fn refuse_hibernated_parts(disk: &Arc<dyn BlockDevice>) -> Result<()> {
    let Ok(table) = PartitionTable::read(&**disk, None) else {
        return Ok(());
    };
    for part in parts(disk, &table)? {
        if let Some(filesystem) = part.filesystem() {
            refuse_hibernated(&filesystem).map_err(|error| part.about(error))?;
        }
    }
    Ok(())
}

/// What is on a device that messages call `name`: a partition, or a disk without any.
fn content(device: &dyn BlockDevice, name: &str) -> Result<Content> {
    let mut start = vec![0; START.min(device.size() as usize)];
    device.read_at(&mut start, 0)?;
    let has = |at: usize, magic: &[u8]| start.get(at..at + magic.len()) == Some(magic);
    // At these places each of them says what it is.
    let known: [(usize, &[u8], &'static str); 13] = [
        (82, b"FAT32   ", VFAT),
        (54, b"FAT1", VFAT),
        (3, b"EXFAT   ", "exfat"),
        (3, b"NTFS    ", "ntfs"),
        (0, b"XFSB", "xfs"),
        (0, b"LUKS\xba\xbe", "luks"),
        (0, b"hsqs", "squashfs"),
        (0x200, b"LABELONE", "lvm"),
        (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
        (0, b"\xfc\x4e\x2b\xa9", "raid"),
        (0x1000, b"\xfc\x4e\x2b\xa9", "raid"),
        (0x8001, b"CD001", "iso9660"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
    ];
    let found = known.iter().find(|(at, magic, _)| has(*at, magic));
    let found = found.map(|(_, _, name)| *name);
    if Filesystem::is_on(device)? {
        // mdadm leaves the superblock of a filesystem that was there before, whose free blocks are somebody's data now.
        return match found {
            Some(other) if HOLDERS.contains(&other) => {
                let message = format!("{name} says that it is ext4, and that it is {other}");
                let error = Error::new(ErrorKind::Corrupt, message);
                Err(error.with_hint("take away what is not so: wipefs -o OFFSET DEVICE"))
            }
            _ => Ok(Content::Ext4),
        };
    }
    match Swap::of(&start) {
        Some(Swap::Used(page)) => Ok(Content::Swap(page)),
        Some(Swap::Hibernated) => Err(hibernated(name)),
        None => Ok(match found {
            Some(VFAT) => Content::Fat,
            found => found.map_or(Content::Unknown, Content::Other),
        }),
    }
}

/// Fails where a filesystem of a disk has the memory of a machine in a file.
///
/// # Errors
/// `InvalidInput` for that; `Unsupported`, `Corrupt`, `Io`.
pub(super) fn refuse_hibernated(filesystem: &Root) -> Result<()> {
    let filesystem = filesystem.filesystem()?;
    for file in Search::new(&filesystem)?.swap_files()? {
        if file.swap == Swap::Hibernated {
            return Err(hibernated(&shown(&file.path)));
        }
    }
    Ok(())
}

/// Bytes of a disk between its partitions and behind the last one, which are nobody's; none where the table is doubtful.
pub(super) fn gaps(disk: &dyn BlockDevice, table: &PartitionTable) -> Vec<Range<u64>> {
    if !table.findings().is_empty() {
        return Vec::new();
    }
    let end = match table {
        PartitionTable::Gpt(gpt) => byte(table, gpt.usable().1.0.saturating_add(1)).min(disk.size()),
        _ => disk.size(),
    };
    let mut taken: Vec<Range<u64>> = table.partitions().iter().map(bytes_of).collect();
    taken.sort_unstable_by_key(|taken| taken.start);
    let Some(first) = taken.first() else {
        return Vec::new();
    };
    let (mut gaps, mut at) = (Vec::new(), first.start);
    for taken in taken {
        if taken.start > at {
            gaps.push(at..taken.start);
        }
        at = at.max(taken.end);
    }
    if end > at {
        gaps.push(at..end);
    }
    gaps
}

/// Where a sector starts.
fn byte(table: &PartitionTable, sector: u64) -> u64 {
    sector.saturating_mul(table.sector().bytes())
}

fn bytes_of(partition: &Partition) -> Range<u64> {
    partition.start()..partition.start() + partition.len()
}

/// What on a disk nobody looks into: all partitions but that of the root filesystem. Of those, what is free in filesystems of
/// ext4 and FAT, and all that is in swap, goes when the disk is sealed.
///
/// # Errors
/// As [`seal`](super::seal()).
pub fn not_looked_into(disk: &Arc<dyn BlockDevice>, sealed: bool) -> Result<Vec<NotLookedInto>> {
    let root = Root::find(disk)?;
    if let Some(root) = &root {
        refuse_hibernated(root)?;
    }
    let Ok(table) = PartitionTable::read(&**disk, None) else {
        // What contradicts itself is found out.
        let content = content(&**disk, THE_DISK)?;
        if !sealed || content != Content::Ext4 {
            return Ok(Vec::new());
        }
        let end = end_of(&Filesystem::open(disk.clone())?);
        let told = used_behind(&**disk, end, THE_DISK)?;
        return Ok(told.into_iter().map(NotLookedInto).collect());
    };
    let root = root.and_then(|root| root.partition);
    let mut found = Vec::new();
    for part in parts(disk, &table)? {
        let is_root = Some(part.number) == root;
        if sealed {
            found.extend(part.untouched(is_root)?);
        } else if !is_root {
            found.push(NotLookedInto(skipped(&part.described())));
        }
    }
    for partition in table.partitions().iter().filter(|part| part.is_container()) {
        let what = format!("room between the partitions in partition {}", partition.number);
        found.push(NotLookedInto(skipped(&what)));
    }
    if !table.findings().is_empty() {
        let what = "room that is no partition's, on a disk whose partition table contradicts itself,";
        found.push(NotLookedInto(skipped(what)));
    } else if let Some(range) = before_the_first(&table)
        && holds_something(&**disk, range)?
    {
        let what = "room before the first partition, where boot loaders are,";
        found.push(NotLookedInto(skipped(what)));
    }
    Ok(found)
}

/// What there is on a disk that has no root filesystem of ext4, in the words of a message.
///
/// # Errors
/// As [`not_looked_into`].
pub fn instead_of_root(disk: &Arc<dyn BlockDevice>) -> Result<String> {
    let table = match PartitionTable::read(&**disk, None) {
        Ok(table) => table,
        Err(error) if error.kind() != ErrorKind::InvalidInput => {
            return Ok(format!("its partition table cannot be read ({error})"));
        }
        Err(_) => {
            return Ok(match content(&**disk, THE_DISK)?.name() {
                Some(name) => format!("all of it is {name}"),
                None if holds_something(&**disk, 0..disk.size())? => {
                    "it has no partition table, and no filesystem that is known".to_owned()
                }
                None => "it is empty: all zeros".to_owned(),
            });
        }
    };
    let parts: Vec<String> = parts(disk, &table)?.iter().map(Part::described).collect();
    Ok(match parts.as_slice() {
        [] => "it has a partition table without partitions".to_owned(),
        parts => format!("there is {}", parts.join(", ")),
    })
}

/// What is between a table and the first partition.
fn before_the_first(table: &PartitionTable) -> Option<Range<u64>> {
    let first = table.partitions().iter().map(Partition::start).min()?;
    let from = match table {
        PartitionTable::Gpt(gpt) => byte(table, gpt.usable().0.0),
        _ => byte(table, 1),
    };
    (from < first).then_some(from..first)
}

/// Whether there is anything but zeros.
pub(super) fn holds_something(disk: &dyn BlockDevice, range: Range<u64>) -> Result<bool> {
    let mut at = range.start;
    let mut buffer = vec![0; 64 << 10];
    while at < range.end {
        let extent = disk.extent_at(at, range.end - at)?;
        if extent.state.reads_as_zero() {
            at += extent.len;
            continue;
        }
        let part = &mut buffer[..(range.end - at).min(64 << 10) as usize];
        disk.read_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        at += part.len() as u64;
    }
    Ok(false)
}
