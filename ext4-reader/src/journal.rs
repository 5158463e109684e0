//! The journal ("Journal (jbd2)"): what was to be written when the filesystem was last in use.
//!
//! A filesystem that was not unmounted is right only together with its journal. Whoever mounts it copies the journal's
//! blocks to their places; a reader must not write, so it makes a map of which blocks to read from the journal
//! instead. A transaction counts from its first to its commit block, and the log ends at the first block that does
//! not belong to the next one: what follows is of an older round, or was torn by a power cut.
//!
//! Two passes: one finds the complete transactions and the blocks that they revoke (freed, maybe used for data since),
//! the other maps. Numbers in the journal are big-endian.

use std::collections::{BTreeMap, HashMap};

use bitflags::bitflags;
use block::{Error, Result};
use byteorder::{BigEndian, ByteOrder};

use crate::Filesystem;
use crate::block_map::BlockMap;
use crate::checksum::Checksum;
use crate::content::BlockRun;
use crate::corruption::{Corruption, verify};
use crate::extent_tree::ExtentTree;
use crate::inode::{Flags, InodeNumber};
use crate::superblock::{Incompatible, Superblock};

const MAGIC: u32 = 0xC03B_3998;
const HEADER: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

/// Bytes of a commit block that say something.
const COMMIT_SIZE: usize = 0x3C;

const CHECKSUM_CRC32C: u8 = 4;
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;
const UUID_SIZE: usize = 16;

/// First tag of a block of fast commits, and where the transaction's number is in it.
const FAST_COMMIT_HEAD: u16 = 9;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Features: u32 {
        const REVOKE = 0x1;
        const IS_64BIT = 0x2;
        const ASYNC_COMMIT = 0x4;
        const CSUM_V2 = 0x8;
        const CSUM_V3 = 0x10;
        const FAST_COMMIT = 0x20;
    }
}

/// Where the newest copy of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The block of the disk.
    pub(crate) block: u64,
    /// Whether its first four bytes are the journal's magic number, which are zeros in the copy.
    pub(crate) escaped: bool,
}

/// What starts a journaled block that would look like one of the journal's own.
pub(crate) const ESCAPED: [u8; 4] = MAGIC.to_be_bytes();

/// The blocks of the filesystem that are to be read from elsewhere.
pub(crate) type Replay = BTreeMap<u64, Copy>;

/// Reads the journal of a filesystem that needs it.
pub(crate) fn replay(filesystem: &Filesystem) -> Result<Replay> {
    if !filesystem.superblock().has(Incompatible::RECOVER) {
        return Ok(Replay::new());
    }
    let log = Log::of(filesystem)?;
    if log.start == 0 {
        return Ok(Replay::new());
    }
    let (end, revoked) = log.scan()?;
    log.refuse_fast_commits(end)?;
    log.map(end, &revoked)
}

/// The number that the next transaction gets: after all that are in the log. The log decides and not the mark of the filesystem,
/// which is gone for whoever has replayed it in memory: older transactions with the same numbers would be replayed after the new one.
pub(crate) fn next_sequence(log: &Log<'_>) -> Result<u32> {
    if log.start == 0 {
        return Ok(log.sequence);
    }
    // The one after the last complete one may be there in part, and must not be taken for the new one.
    Ok(log.scan()?.0.wrapping_add(1))
}

/// Gets a block's kind, its bytes, its index, and its transaction's number.
type See<'a> = dyn FnMut(u32, &[u8], u64, u32) -> Result<u64> + 'a;

/// The last transaction that revoked a block.
type Revoked = HashMap<u64, u32>;

pub(crate) struct Log<'a> {
    filesystem: &'a Filesystem,
    pub(crate) runs: Vec<BlockRun>,
    features: Features,
    pub(crate) seed: Checksum,
    /// The log's first block, and the one after its last: a ring.
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Blocks after it with fast commits.
    fast_commits: u64,
    /// Where the oldest transaction starts, and its number.
    start: u64,
    sequence: u32,
}

/// A tag: the block that the next one in the log is a copy of.
struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
}

impl<'a> Log<'a> {
    /// The log of a filesystem that has one.
    pub(crate) fn of(filesystem: &'a Filesystem) -> Result<Self> {
        let superblock = filesystem.superblock();
        if superblock.journal_inode == 0 {
            let message = "the filesystem was not unmounted, and its journal is on another device";
            return Err(Error::unsupported(message).with_hint("recover it with e2fsck, on a copy"));
        }
        let inode = filesystem.inode(InodeNumber(superblock.journal_inode))?;
        let runs = if inode.flags.contains(Flags::EXTENTS) {
            ExtentTree::new(filesystem, &inode)?.collect::<Result<Vec<_>>>()?
        } else {
            BlockMap::new(filesystem, &inode).collect::<Result<Vec<_>>>()?
        };
        Self::open(filesystem, superblock, runs)
    }

    fn open(filesystem: &'a Filesystem, superblock: &Superblock, runs: Vec<BlockRun>) -> Result<Self> {
        let mut log = Self {
            filesystem,
            runs,
            features: Features::empty(),
            seed: Checksum::START,
            first: 1,
            last: 1,
            fast_commits: 0,
            start: 0,
            sequence: 0,
        };
        let block = log.read(0)?;
        let u32_at = |offset: usize| BigEndian::read_u32(&block[offset..]);
        let wrong = |problem| Err(Corruption::Journal { block: 0, problem }.into());
        if u32_at(0) != MAGIC || !matches!(u32_at(4), SUPERBLOCK_V1 | SUPERBLOCK_V2) {
            return wrong("this is no journal's superblock");
        }
        if u64::from(u32_at(0xC)) != superblock.block_size() {
            return wrong("its blocks have another size than the filesystem's");
        }
        let features = if u32_at(4) == SUPERBLOCK_V2 {
            u32_at(0x28)
        } else {
            0
        };
        log.features = Features::from_bits(features).ok_or_else(|| {
            let unknown = features & !Features::all().bits();
            Error::unsupported(format!(
                "the journal has unknown incompatible features {unknown:#x}"
            ))
        })?;
        if log.has_checksums() {
            if block[0x50] != CHECKSUM_CRC32C {
                return wrong("its checksums are of an unknown kind");
            }
            let computed = Checksum::START
                .with(&block[..0xFC])
                .with(&[0; 4])
                .with(&block[0x100..1024]);
            verify(u32_at(0xFC), computed.0, || "the journal's superblock".to_owned())?;
        }
        log.seed = Checksum::START.with(&block[0x30..0x40]);
        (log.first, log.last) = (u32_at(0x14).into(), u32_at(0x10).into());
        (log.sequence, log.start) = (u32_at(0x18), u32_at(0x1C).into());
        if log.features.contains(Features::FAST_COMMIT) {
            // 0 stands for the usual number.
            log.fast_commits = if u32_at(0x54) == 0 {
                256
            } else {
                u32_at(0x54).into()
            };
            log.last = log.last.saturating_sub(log.fast_commits);
        }
        if log.first == 0 || log.start != 0 && !(log.first..log.last).contains(&log.start) {
            return wrong("its log starts outside of it");
        }
        Ok(log)
    }

    pub(crate) fn has(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }

    pub(crate) fn has_checksums(&self) -> bool {
        self.features.intersects(Features::CSUM_V2 | Features::CSUM_V3)
    }

    /// Where block `index` of the journal is on the disk.
    fn place(&self, index: u64) -> Result<u64> {
        let run = self.runs.partition_point(|run| run.logical + run.len <= index);
        match self.runs.get(run) {
            Some(run) if run.logical <= index => Ok(run.block + (index - run.logical)),
            _ => Err(Corruption::Journal {
                block: index,
                problem: "it has no place on the disk",
            }
            .into()),
        }
    }

    pub(crate) fn read(&self, index: u64) -> Result<Vec<u8>> {
        self.filesystem.metadata_block(self.place(index)?)
    }

    /// The block that comes `steps` after `index` in the ring.
    fn after(&self, index: u64, steps: u64) -> u64 {
        let ring = self.last - self.first;
        self.first + (index - self.first + steps % ring) % ring
    }

    /// Walks all transactions before `end`, or all complete ones. `see` gets each block of the log that is not a copy, and
    /// says how many copies follow it. Gives the number of the transaction after the last complete one.
    fn walk(&self, end: Option<u32>, see: &mut See<'_>) -> Result<u32> {
        let (mut index, mut sequence) = (self.start, self.sequence);
        // Each block is met once at most.
        let mut left = self.last - self.first;
        // A block of the transaction has a wrong checksum. At the end of the log that is what a power cut leaves.
        let mut torn = None;
        while end != Some(sequence) {
            let block = self.read(index)?;
            let [magic, kind, number] = [0, 4, 8].map(|offset| BigEndian::read_u32(&block[offset..]));
            if magic != MAGIC || number != sequence || !matches!(kind, DESCRIPTOR | COMMIT | REVOKE) {
                break;
            }
            if !self.is_whole(kind, &block) {
                torn.get_or_insert(index);
            }
            if let (COMMIT, Some(block)) = (kind, torn) {
                let problem = "its checksum is wrong, and the transaction that it belongs to was committed";
                return Err(Corruption::Journal { block, problem }.into());
            }
            let steps = match see(kind, &block, index, sequence) {
                Err(_) if torn.is_some() => break,
                copies => 1 + copies?,
            };
            let Some(rest) = left.checked_sub(steps) else {
                break;
            };
            left = rest;
            index = self.after(index, steps);
            if kind == COMMIT {
                sequence = sequence.wrapping_add(1);
            }
        }
        Ok(sequence)
    }

    /// Whether a block of the journal's own has the right checksum.
    fn is_whole(&self, kind: u32, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        // The rest of a commit block is zeros, and it counts without them: its first sector is all that must be whole.
        let (at, end) = if kind == COMMIT {
            (0x10, COMMIT_SIZE)
        } else {
            (block.len() - 4, block.len())
        };
        let sum = self
            .seed
            .with(&block[..at])
            .with(&[0; 4])
            .with(&block[at + 4..end]);
        let sum = sum.with(&vec![0; block.len() - end]);
        sum.0 == BigEndian::read_u32(&block[at..])
    }

    /// Finds where the complete transactions end, and what they revoke.
    fn scan(&self) -> Result<(u32, Revoked)> {
        let mut revoked = Revoked::new();
        // Of the transaction that is not known to be complete yet.
        let mut pending = Vec::new();
        let end = self.walk(None, &mut |kind, block, index, sequence| {
            match kind {
                DESCRIPTOR => return Ok(self.tags(block, index)?.len() as u64),
                REVOKE => pending.extend(self.revocations(block, index)?),
                _ => revoked.extend(pending.drain(..).map(|block| (block, sequence))),
            }
            Ok(0)
        })?;
        Ok((end, revoked))
    }

    /// Maps the blocks of all transactions before `end`; later ones win.
    fn map(&self, end: u32, revoked: &Revoked) -> Result<Replay> {
        let mut replay = Replay::new();
        // What is in the journal may be of a filesystem that has grown, with its new size in the journal too.
        let blocks = self.filesystem.device.size() >> self.filesystem.superblock().block_bits;
        self.walk(Some(end), &mut |kind, block, index, sequence| {
            if kind != DESCRIPTOR {
                return Ok(0);
            }
            let tags = self.tags(block, index)?;
            for (number, tag) in tags.iter().enumerate() {
                // Numbers wrap around: the revocation counts if it is not older.
                let is_revoked = |by: &u32| by.wrapping_sub(sequence).cast_signed() >= 0;
                if revoked.get(&tag.block).is_some_and(is_revoked) {
                    continue;
                }
                let from = self.after(index, 1 + number as u64);
                if tag.block >= blocks {
                    let problem = "it is a copy of a block outside of the disk";
                    return Err(Corruption::Journal { block: from, problem }.into());
                }
                self.check_copy(from, sequence, tag)?;
                let copy = Copy {
                    block: self.place(from)?,
                    escaped: tag.flags & TAG_ESCAPED != 0,
                };
                replay.insert(tag.block, copy);
            }
            Ok(tags.len() as u64)
        })?;
        Ok(replay)
    }

    fn check_copy(&self, index: u64, sequence: u32, tag: &Tag) -> Result<()> {
        if !self.has_checksums() {
            return Ok(());
        }
        let sum = self.seed.with(&sequence.to_be_bytes()).with(&self.read(index)?);
        let computed = if self.features.contains(Features::CSUM_V3) {
            sum.0
        } else {
            sum.low().into()
        };
        verify(tag.checksum, computed, || {
            format!("journal block {index}, a copy of block {},", tag.block)
        })
    }

    fn tags(&self, block: &[u8], index: u64) -> Result<Vec<Tag>> {
        let wide = self.features.contains(Features::IS_64BIT);
        let v3 = self.features.contains(Features::CSUM_V3);
        let size = match (v3, wide) {
            (true, _) => 16,
            (false, _) => {
                8 + usize::from(wide) * 4 + usize::from(self.features.contains(Features::CSUM_V2)) * 2
            }
        };
        let end = block.len() - usize::from(self.has_checksums()) * 4;
        let mut tags = Vec::new();
        let mut at = HEADER;
        loop {
            let Some(bytes) = block[..end].get(at..at + size) else {
                return Err(Corruption::Journal {
                    block: index,
                    problem: "its last tag is missing",
                }
                .into());
            };
            let low = u64::from(BigEndian::read_u32(bytes));
            let high = |offset| {
                if wide {
                    u64::from(BigEndian::read_u32(&bytes[offset..])) << 32
                } else {
                    0
                }
            };
            let tag = if v3 {
                Tag {
                    block: low | high(8),
                    flags: BigEndian::read_u32(&bytes[4..]),
                    checksum: BigEndian::read_u32(&bytes[12..]),
                }
            } else {
                Tag {
                    block: low | high(8),
                    flags: BigEndian::read_u16(&bytes[6..]).into(),
                    checksum: BigEndian::read_u16(&bytes[4..]).into(),
                }
            };
            at += size
                + if tag.flags & TAG_SAME_UUID == 0 {
                    UUID_SIZE
                } else {
                    0
                };
            let last = tag.flags & TAG_LAST != 0;
            tags.push(tag);
            if last {
                return Ok(tags);
            }
        }
    }

    fn revocations(&self, block: &[u8], index: u64) -> Result<Vec<u64>> {
        let size = if self.features.contains(Features::IS_64BIT) {
            8
        } else {
            4
        };
        let used = BigEndian::read_u32(&block[HEADER..]) as usize;
        let end = block.len() - usize::from(self.has_checksums()) * 4;
        let Some(bytes) = block[..end].get(HEADER + 4..used) else {
            return Err(Corruption::Journal {
                block: index,
                problem: "its revocations do not fit",
            }
            .into());
        };
        Ok(bytes
            .chunks_exact(size)
            .map(|bytes| BigEndian::read_uint(bytes, size))
            .collect())
    }

    /// Fails if changes were committed after `end` in the short form that only the kernel and e2fsck understand.
    fn refuse_fast_commits(&self, end: u32) -> Result<()> {
        if self.fast_commits == 0 {
            return Ok(());
        }
        // The block in between is never used.
        let block = self.read(self.last + 1)?;
        // Tag and length, then features and the transaction.
        let [head, _len] = [0, 2].map(|offset| byteorder::LittleEndian::read_u16(&block[offset..]));
        let transaction = byteorder::LittleEndian::read_u32(&block[8..]);
        if head == FAST_COMMIT_HEAD && transaction == end {
            let message =
                "the filesystem was not unmounted, and its journal has fast commits, which are not supported";
            return Err(Error::unsupported(message).with_hint("recover it with e2fsck, on a copy"));
        }
        Ok(())
    }
}
