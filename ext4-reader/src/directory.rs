//! Directories ("Directory Entries"): names, and the inodes that they stand for.
//!
//! They are read from end to end, indexed ones too: the blocks of an index look like unused entries to those who do not
//! know it. A look-up so costs as much as a listing, which is what a tool that runs once wants; it needs no hash, and
//! finds what a damaged index would hide.

use block::Result;
use byteorder::{ByteOrder, LittleEndian};

use crate::Filesystem;
use crate::corruption::{Corruption, verify};
use crate::inode::{FileKind, Flags, Inode, InodeNumber};
use crate::superblock::Incompatible;

const HEADER: usize = 8;
/// Block tail with the checksum: an unused entry of this length and type.
const TAIL: usize = 12;
const TAIL_TYPE: u8 = 0xDE;
/// Where an index's limit and count are: in its root after the entries `.` and `..` and a header, in others after
/// an unused entry.
const ROOT_COUNT: usize = 0x20;
const NODE_COUNT: usize = 8;
/// Entries of an inline directory come after the number of the one above it.
const INLINE_START: usize = 4;
/// Of those, this many bytes are where other inodes have their map; the others are another list.
const INLINE_FIRST: usize = 60;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Without `/` and NUL; never `.` or `..`. Any other bytes, and 255 of them at most.
    pub name: Vec<u8>,
    /// What it stands for.
    pub inode: InodeNumber,
}

impl Filesystem {
    /// The names in a directory but for `.` and `..`, in the order in which they are stored.
    ///
    /// # Errors
    /// `InvalidInput` for what is no directory; `Corrupt`, `Io`.
    pub fn read_dir(&self, inode: &Inode) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.for_each_entry(inode, &mut |name, inode| {
            entries.push(Entry {
                name: name.to_vec(),
                inode,
            });
            true
        })?;
        Ok(entries)
    }

    /// What a name in a directory stands for.
    ///
    /// # Errors
    /// As [`read_dir`](Self::read_dir).
    pub fn lookup(&self, directory: &Inode, wanted: &[u8]) -> Result<Option<InodeNumber>> {
        let mut found = None;
        self.for_each_entry(directory, &mut |name, inode| {
            if name == wanted {
                found = Some(inode);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Calls `see` with each name, until it says that this is enough.
    fn for_each_entry(&self, inode: &Inode, see: &mut dyn FnMut(&[u8], InodeNumber) -> bool) -> Result<()> {
        if inode.kind() != FileKind::Directory {
            return Err(block::Error::invalid("this is no directory"));
        }
        let mut reader = Reader {
            filesystem: self,
            inode,
            see,
        };
        for run in self.content(inode)? {
            let run = run?;
            if inode.flags.contains(Flags::INLINE_DATA) {
                let mut bytes = vec![0; run.len as usize];
                self.read_run(&run, 0, &mut bytes)?;
                return reader.inline(&bytes);
            }
            let mut block = vec![0; self.superblock().block_size() as usize];
            let mut skip = 0;
            while skip + block.len() as u64 <= run.len {
                self.read_run(&run, skip, &mut block)?;
                if !reader.block(&block, run.offset + skip)? {
                    return Ok(());
                }
                skip += block.len() as u64;
            }
        }
        Ok(())
    }
}

struct Reader<'a> {
    filesystem: &'a Filesystem,
    inode: &'a Inode,
    see: &'a mut dyn FnMut(&[u8], InodeNumber) -> bool,
}

impl Reader<'_> {
    fn wrong(&self, offset: u64, problem: &'static str) -> block::Error {
        let number = self.inode.number;
        Corruption::Directory {
            number,
            offset,
            problem,
        }
        .into()
    }

    fn inline(&mut self, bytes: &[u8]) -> Result<()> {
        let (first, second) = bytes.split_at(bytes.len().min(INLINE_FIRST));
        let _ = self.entries(first.get(INLINE_START..).unwrap_or_default(), INLINE_START as u64)?
            && self.entries(second, INLINE_FIRST as u64)?;
        Ok(())
    }

    /// Reads the block at byte `offset` of the directory. Gives whether to go on.
    fn block(&mut self, block: &[u8], offset: u64) -> Result<bool> {
        if self.filesystem.superblock().has_checksums() {
            self.check(block, offset)?;
        }
        // The root of an index has the entries `.` and `..`, which are not of interest.
        if self.is_index(block, offset) {
            Ok(true)
        } else {
            self.entries(block, offset)
        }
    }

    /// Whether it is a block of an index, not of names.
    fn is_index(&self, block: &[u8], offset: u64) -> bool {
        self.inode.flags.contains(Flags::INDEX)
            && (offset == 0
                || (block[..4] == [0; 4] && block[6..8] == [0; 2] && self.length(block) == block.len()))
    }

    fn check(&self, block: &[u8], offset: u64) -> Result<()> {
        let what = || {
            format!(
                "the block at byte {offset} of directory inode {}",
                self.inode.number
            )
        };
        if !self.is_index(block, offset) {
            let (entries, tail) = block.split_at(block.len() - TAIL);
            if tail[..4] != [0; 4]
                || LittleEndian::read_u16(&tail[4..]) != TAIL as u16
                || tail[7] != TAIL_TYPE
            {
                return Err(self.wrong(offset, "the block has no room for its checksum"));
            }
            let stored = LittleEndian::read_u32(&tail[HEADER..]);
            return verify(stored, self.inode.seed.with(entries).0, what);
        }
        let start = if offset == 0 { ROOT_COUNT } else { NODE_COUNT };
        let limit = usize::from(LittleEndian::read_u16(&block[start..]));
        let count = usize::from(LittleEndian::read_u16(&block[start + 2..]));
        let tail = start + limit * 8;
        if count > limit || tail + 8 > block.len() {
            return Err(self.wrong(offset, "the index has more entries than fit"));
        }
        // The sum covers the entries in use, and of the tail what is not the sum.
        let sum = self
            .inode
            .seed
            .with(&block[..start + count * 8])
            .with(&block[tail..tail + 4])
            .with(&[0; 4]);
        verify(LittleEndian::read_u32(&block[tail + 4..]), sum.0, what)
    }

    /// An entry's length. In blocks of 64 KiB it may be all of the block, which 16 bits cannot say.
    fn length(&self, entry: &[u8]) -> usize {
        let len = usize::from(LittleEndian::read_u16(&entry[4..]));
        if self.filesystem.superblock().block_size() < 65536 {
            return len;
        }
        if len == 0 || len == 65535 {
            65536
        } else {
            (len & 0xFFFC) | ((len & 3) << 16)
        }
    }

    /// Goes through the entries that fill `bytes`, from byte `start` of the directory on. Gives whether to go on.
    fn entries(&mut self, bytes: &[u8], start: u64) -> Result<bool> {
        let superblock = self.filesystem.superblock();
        let has_types = superblock.has(Incompatible::FILETYPE);
        let inodes = superblock.inodes();
        let mut at = 0;
        while at < bytes.len() {
            let offset = start + at as u64;
            let entry = &bytes[at..];
            if entry.len() < HEADER {
                return Err(self.wrong(offset, "it is cut off"));
            }
            let len = self.length(entry);
            let number = LittleEndian::read_u32(entry);
            // Without types their byte belongs to the name's length, which is always less.
            let name_len = if has_types {
                entry[6].into()
            } else {
                usize::from(LittleEndian::read_u16(&entry[6..]))
            };
            if len < HEADER + 4 && !(number == 0 && len >= HEADER)
                || !len.is_multiple_of(4)
                || len > entry.len()
            {
                return Err(self.wrong(offset, "its length is wrong"));
            }
            at += len;
            if number == 0 {
                continue;
            }
            if name_len == 0 || name_len > 255 || HEADER + name_len > len {
                return Err(self.wrong(offset, "its name's length is wrong"));
            }
            let name = &entry[HEADER..HEADER + name_len];
            if name.iter().any(|byte| matches!(byte, 0 | b'/')) && !self.inode.is_encrypted() {
                return Err(self.wrong(offset, "its name has a slash or a NUL"));
            }
            if number > inodes || (number < superblock.first_inode && number != InodeNumber::ROOT.0) {
                return Err(self.wrong(offset, "its inode is none that a file can have"));
            }
            if name != b"." && name != b".." && !(self.see)(name, InodeNumber(number)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
