//! Swap: what a running system has put there of its memory, on partitions and in files.
//!
//! It starts with a page by which a system finds it, with its UUID and label; behind that there are pages of memory. A file's blocks
//! are swapped to past the filesystem, so that those that it calls unwritten hold something too. They stay the file's when they
//! are made zeros, since no system swaps to a file with holes.

use std::ops::Range;

use block::{Error, Result};
use ext4_reader::{FileKind, Inode};

use super::plan::Search;

/// Sizes of memory pages that systems have: where swap says that it is some depends on that.
const PAGES: [u64; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];

/// Bytes at the start of swap by which it is known.
pub(super) const START: u64 = PAGES[3];

/// Where files of swap are besides those that fstab(5) has: Ubuntu's, Raspberry Pi OS's and others'.
const PLACES: [&str; 4] = ["/swap.img", "/swapfile", "/var/swap", "/swap/swapfile"];

/// The flag of a file whose content is kept with its inode.
const INLINE_DATA: u32 = 0x1000_0000;

/// What swap says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swap {
    /// Memory was put behind a page of so many bytes.
    Used(u64),
    /// The memory of a machine that is to go on from there.
    Hibernated,
}

impl Swap {
    /// What is said in these first bytes, if it is swap that they are of.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        let has = |at: usize, magic: &[u8]| start.get(at..at + magic.len()) == Some(magic);
        PAGES.into_iter().find_map(|page| {
            let at = page as usize - 10;
            if has(at, b"SWAPSPACE2") || has(at, b"SWAP-SPACE") {
                return Some(Self::Used(page));
            }
            let suspended: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
            suspended
                .iter()
                .any(|magic| has(at, magic))
                .then_some(Self::Hibernated)
        })
    }
}

/// That something holds the memory of a machine that is to go on from there.
pub(super) fn hibernated(what: &str) -> Error {
    let message = format!("{what} holds the memory of a machine that is hibernated");
    Error::invalid(message).with_hint("start the machine, and turn it off")
}

/// A file that is swapped to.
#[derive(Debug)]
pub(super) struct SwapFile {
    /// From the root on.
    pub(super) path: Vec<u8>,
    pub(super) swap: Swap,
    /// The bytes of the device that it has behind its first page.
    pub(super) swapped: Vec<Range<u64>>,
}

impl Search<'_> {
    /// The files that are swapped to: those of them that say that they are.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(super) fn swap_files(&self) -> Result<Vec<SwapFile>> {
        let mut paths: Vec<Vec<u8>> = PLACES.iter().map(|place| place.as_bytes().to_vec()).collect();
        paths.extend(in_fstab(&self.text(b"/etc/fstab")?.unwrap_or_default()));
        let (mut files, mut seen) = (Vec::new(), Vec::new());
        for path in paths {
            let Some(file) = self.followed(&path)?.filter(may_be_swap) else {
                continue;
            };
            if seen.contains(&file.number()) {
                continue;
            }
            seen.push(file.number());
            if let Some(swap) = Swap::of(&self.start(&file, START)?) {
                let page = match swap {
                    Swap::Used(page) => page,
                    Swap::Hibernated => 0,
                };
                let swapped = self.places(&file, page)?;
                files.push(SwapFile { path, swap, swapped });
            }
        }
        Ok(files)
    }

    /// Where on the device a file has its bytes from `from` on, its room past its end included.
    fn places(&self, file: &Inode, from: u64) -> Result<Vec<Range<u64>>> {
        let size = self.filesystem().superblock().block_size();
        let mut places = Vec::new();
        for run in self.filesystem().allocation(file)?.content {
            let skip = from.saturating_sub(run.logical * size).min(run.len * size);
            places.push(run.physical * size + skip..(run.physical + run.len) * size);
        }
        places.retain(|place| !place.is_empty());
        Ok(places)
    }
}

fn may_be_swap(file: &Inode) -> bool {
    file.kind() == FileKind::Regular && !file.is_encrypted() && file.flags() & INLINE_DATA == 0
}

/// The paths that fstab(5) says are swap, devices among them.
fn in_fstab(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (what, kind) = (fields.next()?, fields.nth(1)?);
        (kind == "swap" && what.starts_with('/')).then(|| unescaped(what))
    });
    lines.collect()
}

/// A field of fstab(5), in which a backslash and three octal digits are a byte that could not be there else.
fn unescaped(field: &str) -> Vec<u8> {
    let mut parts = field.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) => bytes.push(byte),
            None => bytes.push(b'\\'),
        }
        let rest = if digits.is_some() { &part[3..] } else { part };
        bytes.extend(rest.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_found_in_fstab_by_its_path() {
        let text = "# /a none swap sw 0 0\n/swap.img\tnone\tswap\tsw\t0\t0\nUUID=1 / ext4 defaults 0 1\n/data /srv none bind\n\
                    /a\\040b\\x none swap\nLABEL=s none swap\n/dev/sda2 none swap sw\n/short\n#/no none swap\n";
        assert_eq!(
            in_fstab(text),
            [&b"/swap.img"[..], b"/a b\\x", b"/dev/sda2"].map(<[u8]>::to_vec)
        );
    }

    #[test]
    fn swap_of_all_sizes_of_pages_says_what_it_is() {
        for page in PAGES {
            let mut start = vec![0; START as usize];
            assert_eq!(Swap::of(&start), None);
            start[page as usize - 10..][..10].copy_from_slice(b"SWAPSPACE2");
            assert_eq!(Swap::of(&start), Some(Swap::Used(page)));
            assert_eq!(Swap::of(&start[..page as usize - 1]), None);
            start[page as usize - 10..][..10].copy_from_slice(b"S1SUSPEND\0");
            assert_eq!(Swap::of(&start), Some(Swap::Hibernated));
        }
    }
}
