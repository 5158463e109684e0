//! The journal ("Journal (jbd2)"): one transaction that has all changed blocks, so that a power cut leaves all of them or
//! none.
//!
//! The order, with a flush after each step: new contents, and the transaction's blocks in the log, and the marks that
//! there is something to replay; the commit block, from which on the change counts; the blocks where they belong; and the
//! marks taken away. Whoever finds the marks after a power cut, this crate, e2fsck or a kernel, does the third step again.
//!
//! The log is started anew at its first block each time. It is always empty then, and blocks of older transactions have
//! lower numbers. Numbers in the journal are big-endian.

use block::{Error, Result};
use byteorder::{BigEndian, ByteOrder};
use ext4_builder::format::Checksum;
use ext4_reader::format::{Journal, Tags};

use crate::staging::Blocks;
use crate::{Editor, damaged};

const MAGIC: u32 = 0xC03B_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const HEADER: usize = 12;
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;
const UUID: std::ops::Range<usize> = 0x30..0x40;
/// Fields of the journal's superblock.
const SEQUENCE: usize = 0x18;
const START: usize = 0x1C;
const ERROR: usize = 0x20;
const SUPERBLOCK_CHECKSUM: usize = 0xFC;
const SUPERBLOCK_SIZE: usize = 1024;
/// Fields of a commit block.
const COMMIT_CHECKSUM: usize = 0x10;
const COMMIT_TIME: usize = 0x30;

/// A journal that a transaction can be written to.
#[derive(Debug)]
pub(crate) struct Log {
    journal: Journal,
}

impl Log {
    /// The journal of a filesystem, where it has one.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`, `Io`.
    pub(crate) fn of(editor: &Editor) -> Result<Option<Self>> {
        let Some(journal) = editor.filesystem.journal()? else {
            return Ok(None);
        };
        if BigEndian::read_u32(&journal.superblock[ERROR..]) != 0 {
            let error = damaged("the journal was given up after an error".to_owned());
            return Err(error);
        }
        Ok(Some(Self { journal }))
    }

    fn has_checksums(&self) -> bool {
        self.journal.tags != Tags::Plain
    }

    fn seed(&self) -> Checksum {
        Checksum::of_value(self.journal.seed)
    }

    fn place(&self, index: u64) -> Result<u64> {
        let place = self.journal.place(index);
        place.ok_or_else(|| damaged(format!("block {index} of the journal has no place on the disk")))
    }

    /// The journal's superblock, and where it is.
    fn superblock(&self, sequence: u32, start: u32) -> Result<(u64, Vec<u8>)> {
        let mut bytes = self.journal.superblock.clone();
        BigEndian::write_u32(&mut bytes[SEQUENCE..], sequence);
        BigEndian::write_u32(&mut bytes[START..], start);
        if self.has_checksums() && BigEndian::read_u32(&bytes[4..]) != SUPERBLOCK_V1 {
            BigEndian::write_u32(&mut bytes[SUPERBLOCK_CHECKSUM..], 0);
            let sum = Checksum::START.with(&bytes[..SUPERBLOCK_SIZE]);
            BigEndian::write_u32(&mut bytes[SUPERBLOCK_CHECKSUM..], sum.value());
        }
        Ok((self.place(0)?, bytes))
    }

    /// Its superblock while the transaction counts.
    pub(crate) fn started(&self) -> Result<(u64, Vec<u8>)> {
        self.superblock(self.journal.sequence, self.journal.log.start as u32)
    }

    /// Its superblock when there is nothing to replay, before the transaction or after it.
    pub(crate) fn emptied(&self, after: bool) -> Result<(u64, Vec<u8>)> {
        self.superblock(self.journal.sequence.wrapping_add(after.into()), 0)
    }

    /// Bytes of a tag, but for the UUID behind the first.
    fn tag_size(&self) -> usize {
        match self.journal.tags {
            Tags::Checksum3 => 16,
            Tags::Checksum2 => 10 + 4 * usize::from(self.journal.is_64bit),
            Tags::Plain => 8 + 4 * usize::from(self.journal.is_64bit),
        }
    }

    /// Tags that fit a descriptor.
    fn tags_in_block(&self) -> usize {
        let size = self.journal.superblock.len();
        let tail = if self.has_checksums() { 4 } else { 0 };
        (size - HEADER - UUID.len() - tail) / self.tag_size()
    }

    /// Whether a transaction of so many blocks fits.
    pub(crate) fn fits(&self, blocks: usize) -> bool {
        let all = blocks + blocks.div_ceil(self.tags_in_block()) + 1;
        all as u64 <= self.journal.log.end - self.journal.log.start
    }

    /// The transaction's blocks in the log, each with its place on the disk; the last one is the commit block.
    ///
    /// # Errors
    /// `Unsupported`, `Corrupt`.
    pub(crate) fn transaction(&self, blocks: &Blocks, time: (i64, u32)) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut log = Vec::new();
        let mut index = self.journal.log.start;
        let mut push = |bytes: Vec<u8>| {
            log.push((self.place(index)?, bytes));
            index += 1;
            Ok::<(), Error>(())
        };
        let all: Vec<_> = blocks.iter().collect();
        for tagged in all.chunks(self.tags_in_block()) {
            let mut descriptor = self.header(DESCRIPTOR);
            let mut at = HEADER;
            let mut copies = Vec::with_capacity(tagged.len());
            for (number, &(&block, bytes)) in tagged.iter().enumerate() {
                let mut copy = bytes.to_vec();
                let mut flags = 0;
                if copy[..4] == MAGIC.to_be_bytes() {
                    copy[..4].fill(0);
                    flags |= TAG_ESCAPED;
                }
                if number > 0 {
                    flags |= TAG_SAME_UUID;
                }
                if number + 1 == tagged.len() {
                    flags |= TAG_LAST;
                }
                self.put_tag(&mut descriptor[at..], block, flags, &copy)?;
                at += self.tag_size();
                if number == 0 {
                    descriptor[at..at + UUID.len()].copy_from_slice(&self.journal.superblock[UUID]);
                    at += UUID.len();
                }
                copies.push(copy);
            }
            if self.has_checksums() {
                let tail = descriptor.len() - 4;
                let sum = self.seed().with(&descriptor).value();
                BigEndian::write_u32(&mut descriptor[tail..], sum);
            }
            push(descriptor)?;
            copies.into_iter().try_for_each(&mut push)?;
        }
        push(self.commit(time))?;
        Ok(log)
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.journal.superblock.len()];
        BigEndian::write_u32(&mut bytes, MAGIC);
        BigEndian::write_u32(&mut bytes[4..], kind);
        BigEndian::write_u32(&mut bytes[8..], self.journal.sequence);
        bytes
    }

    fn put_tag(&self, tag: &mut [u8], block: u64, flags: u32, copy: &[u8]) -> Result<()> {
        let high = (block >> 32) as u32;
        if high != 0 && !self.journal.is_64bit {
            let message = format!("the journal's form has no room for block {block}");
            return Err(Error::unsupported(message)
                .with_hint("mount the filesystem once, which gives its journal another form"));
        }
        let sum = self
            .seed()
            .with(&self.journal.sequence.to_be_bytes())
            .with(copy)
            .value();
        BigEndian::write_u32(tag, block as u32);
        if self.journal.tags == Tags::Checksum3 {
            BigEndian::write_u32(&mut tag[4..], flags);
            BigEndian::write_u32(&mut tag[8..], high);
            BigEndian::write_u32(&mut tag[12..], sum);
            return Ok(());
        }
        if self.journal.tags == Tags::Checksum2 {
            BigEndian::write_u16(&mut tag[4..], sum as u16);
        }
        BigEndian::write_u16(&mut tag[6..], flags as u16);
        if self.journal.is_64bit {
            BigEndian::write_u32(&mut tag[8..], high);
        }
        Ok(())
    }

    fn commit(&self, (seconds, nanos): (i64, u32)) -> Vec<u8> {
        let mut bytes = self.header(COMMIT);
        BigEndian::write_i64(&mut bytes[COMMIT_TIME..], seconds);
        BigEndian::write_u32(&mut bytes[COMMIT_TIME + 8..], nanos);
        if self.has_checksums() {
            let sum = self.seed().with(&bytes).value();
            BigEndian::write_u32(&mut bytes[COMMIT_CHECKSUM..], sum);
        }
        bytes
    }
}
