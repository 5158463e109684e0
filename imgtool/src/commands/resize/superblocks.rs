//! What else than ext or a partition table a disk starts with, and where that says that it ends.
//!
//! Each is known by a magic number at its place, and its size is read from where its format has it: those of XFS, Btrfs, LVM,
//! LUKS and swap as their own documents say, FAT's "BIOS Parameter Block", ECMA-119 for ISO 9660, and squashfs's superblock.

use block::{BlockDevice, Result};

/// What is known of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// As people call it.
    pub(super) name: &'static str,
    /// Bytes from the start of the disk to its end; `None` where it does not say, or what cannot be.
    pub(super) end: Option<u64>,
    /// What makes it smaller.
    pub(super) how: &'static str,
}

/// Bytes at the start of a disk that are looked at: to the end of Btrfs's superblock.
const START: usize = 68 << 10;

/// Sizes of memory pages, at the end of the first of which swap says what it is.
const PAGES: [usize; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];

/// What can be known: its name, where it says so, in which bytes, how its end is read, and what makes it smaller.
type Format = (
    &'static str,
    usize,
    &'static [u8],
    fn(&[u8]) -> Option<u64>,
    &'static str,
);

const NONE_SHRINKS: &str = "it cannot be made smaller: copy what is in it to a new one";

const FORMATS: [Format; 11] = [
    ("an XFS filesystem", 0, b"XFSB", xfs, NONE_SHRINKS),
    (
        "a Btrfs filesystem",
        BTRFS + 0x40,
        b"_BHRfS_M",
        btrfs,
        "make it smaller first, with btrfs filesystem resize say",
    ),
    (
        "an NTFS filesystem",
        3,
        b"NTFS    ",
        ntfs,
        "make it smaller first, with ntfsresize say",
    ),
    (
        "a FAT filesystem",
        82,
        b"FAT32   ",
        fat,
        "make it smaller first, with fatresize say",
    ),
    (
        "a FAT filesystem",
        54,
        b"FAT1",
        fat,
        "make it smaller first, with fatresize say",
    ),
    // How long the part is that is encrypted is nowhere said: it goes on to the end of the disk.
    (
        "a LUKS volume",
        0,
        b"LUKS\xBA\xBE",
        |_| None,
        "make what is in it smaller first",
    ),
    (
        "a physical volume of LVM",
        0x000,
        b"LABELONE",
        |start| lvm(start, 0x000),
        PVRESIZE,
    ),
    (
        "a physical volume of LVM",
        0x200,
        b"LABELONE",
        |start| lvm(start, 0x200),
        PVRESIZE,
    ),
    (
        "a physical volume of LVM",
        0x400,
        b"LABELONE",
        |start| lvm(start, 0x400),
        PVRESIZE,
    ),
    ("an ISO 9660 filesystem", ISO + 1, b"CD001", iso9660, NONE_SHRINKS),
    (
        "a squashfs filesystem",
        0,
        b"hsqs",
        |start| le64(start, 40),
        NONE_SHRINKS,
    ),
];

const PVRESIZE: &str = "make it smaller first, with pvresize say";

/// Where the superblock of Btrfs is, and the first descriptor of ISO 9660.
const BTRFS: usize = 64 << 10;
const ISO: usize = 32 << 10;

/// What a disk starts with, if that is known.
///
/// # Errors
/// `Io`.
pub(super) fn known(disk: &dyn BlockDevice) -> Result<Option<Known>> {
    let mut start = vec![0; disk.size().min(START as u64) as usize];
    disk.read_at(&mut start, 0)?;
    Ok(known_of(&start))
}

fn known_of(start: &[u8]) -> Option<Known> {
    let has = |at: usize, magic: &[u8]| start.get(at..at + magic.len()) == Some(magic);
    let found = FORMATS.iter().find(|(_, at, magic, ..)| has(*at, magic));
    if let Some((name, _, _, end, how)) = found {
        return Some(Known {
            name,
            end: end(start).filter(|end| *end > 0),
            how,
        });
    }
    let page = PAGES.into_iter().find(|page| has(page - 10, b"SWAPSPACE2"))?;
    Some(Known {
        name: "swap",
        end: swap(start, page as u64),
        how: "make it anew, with mkswap say",
    })
}

/// Superblock: `sb_blocksize`, `sb_dblocks`.
fn xfs(start: &[u8]) -> Option<u64> {
    let word: [u8; 4] = start.get(4..8)?.try_into().ok()?;
    let blocks: [u8; 8] = start.get(8..16)?.try_into().ok()?;
    u64::from(u32::from_be_bytes(word)).checked_mul(u64::from_be_bytes(blocks))
}

/// `dev_item.total_bytes`: how much of this disk, of maybe several, is its.
fn btrfs(start: &[u8]) -> Option<u64> {
    le64(start, BTRFS + 0xC9 + 8)
}

/// Sectors, behind which is one more: the copy of the boot sector.
fn ntfs(start: &[u8]) -> Option<u64> {
    let sectors = le64(start, 0x28)?.checked_add(1)?;
    sectors.checked_mul(le16(start, 11)?)
}

fn fat(start: &[u8]) -> Option<u64> {
    let sectors = match le16(start, 19)? {
        0 => le32(start, 32)?,
        sectors => sectors,
    };
    sectors.checked_mul(le16(start, 11)?)
}

/// The header of a physical volume is where its label says, and starts with a UUID of 32 bytes.
fn lvm(start: &[u8], label: usize) -> Option<u64> {
    let header = label + usize::try_from(le32(start, label + 20)?).ok()?;
    le64(start, header.checked_add(32)?)
}

/// "Volume Space Size", in blocks of "Logical Block Size".
fn iso9660(start: &[u8]) -> Option<u64> {
    le32(start, ISO + 80)?.checked_mul(le16(start, ISO + 128)?)
}

/// The number of the last page.
fn swap(start: &[u8], page: u64) -> Option<u64> {
    (le32(start, 1024)? == 1).then_some(())?;
    (le32(start, 1028)? + 1).checked_mul(page)
}

fn le16(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(u16::from_le_bytes(word).into())
}

fn le32(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_le_bytes(word).into())
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    Some(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_are_none() {
        for (_, at, magic, ..) in FORMATS {
            for fill in [0, 0xFF] {
                let mut start = vec![fill; START];
                start[at..at + magic.len()].copy_from_slice(magic);
                let found = known_of(&start).unwrap();
                assert!(found.end != Some(0), "{}", found.name);
                // As short as it can be.
                start.truncate(at + magic.len());
                assert!(known_of(&start).is_some());
            }
        }
        assert_eq!(known_of(&vec![0; START]), None);
        assert_eq!(known_of(&[]), None);
    }
}
