//! The backup of what a repair overwrites, and putting it back.
//!
//! All numbers are big-endian. The file begins with 24 bytes:
//!
//! | bytes | |
//! |---|---|
//! | 0-7 | `IMGTMETA` |
//! | 8-15 | version of this format: 1 |
//! | 16-23 | length of the image before the repair, in bytes |
//!
//! Behind them are records, one for each step of the repair, and each on the disk before its step writes anything:
//!
//! | bytes | |
//! |---|---|
//! | 0-7 | number of sectors in the record |
//! | 8-15 | length of the image after the step |
//! | 524 for each | number of the sector in the image (8), CRC-32C of the sector as the step wrote it (4), its 512 bytes before that |
//! | last 4 | CRC-32C of everything before, in this record |
//!
//! A sector is 512 bytes; past the end of the image it is zeros. A record that is cut off or whose sum is wrong ends the
//! file: it was being written when the power went, and its step has written nothing.
//!
//! Putting back looks at every sector first: one that is neither as it was nor as the repair left it was written by
//! somebody else since, and nothing is put back then.

use std::collections::{BTreeMap, HashMap};

use block::{Error, ErrorKind, Result, Storage};
use byteorder::{BE, ByteOrder};

use super::staged::{SECTOR, Sector};

const MAGIC: [u8; 8] = *b"IMGTMETA";
const VERSION: u64 = 1;
const HEADER: usize = 24;
/// Bytes of a record in front of its sectors.
const RECORD: usize = 16;
/// Bytes that a sector takes in a record.
const ENTRY: usize = 12 + SECTOR as usize;
/// Sectors written or read at a time.
const BATCH: usize = 1024;

/// Writes a backup.
#[derive(Debug)]
pub(super) struct BackupWriter<'a> {
    file: &'a dyn Storage,
    end: u64,
}

impl<'a> BackupWriter<'a> {
    /// Begins a backup in an empty file.
    pub(super) fn new(file: &'a dyn Storage, image: &dyn Storage) -> Result<Self> {
        if !file.is_empty()? {
            let error = Error::invalid("the file for the backup is not empty").with_path_of(file.path());
            return Err(error.with_hint("name a new file"));
        }
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        BE::write_u64(&mut header[8..], VERSION);
        BE::write_u64(&mut header[16..], image.len()?);
        file.write_all_at(&header, 0)?;
        Ok(Self {
            file,
            end: HEADER as u64,
        })
    }

    /// Keeps what `image` holds where these sectors are about to be written, and make it `len` bytes long. It is durable when this returns.
    pub(super) fn record(
        &mut self,
        image: &dyn Storage,
        sectors: &BTreeMap<u64, Box<Sector>>,
        len: u64,
    ) -> Result<()> {
        let mut sum = 0;
        let mut bytes = (sectors.len() as u64).to_be_bytes().to_vec();
        bytes.extend_from_slice(&len.to_be_bytes());
        for (index, (&number, new)) in sectors.iter().enumerate() {
            let at = bytes.len();
            bytes.resize(at + ENTRY, 0);
            BE::write_u64(&mut bytes[at..], number);
            BE::write_u32(&mut bytes[at + 8..], crc32c::crc32c(&new[..]));
            image.read_exact_at(&mut bytes[at + 12..], number * SECTOR)?;
            if index % BATCH == BATCH - 1 {
                self.append(&bytes, &mut sum)?;
                bytes.clear();
            }
        }
        self.append(&bytes, &mut sum)?;
        let last = sum.to_be_bytes();
        self.append(&last, &mut sum)?;
        self.file.sync_data()
    }

    fn append(&mut self, bytes: &[u8], sum: &mut u32) -> Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        *sum = crc32c::crc32c_append(*sum, bytes);
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// What [`restore`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// Bytes of metadata that were put back.
    pub bytes: u64,
    /// The backup ends with a record that is not whole: a step of the repair that had not begun to write.
    pub cut_off: bool,
}

/// A sector that a backup holds.
#[derive(Clone, Debug)]
struct Kept {
    /// Where its first bytes are in the backup.
    at: u64,
    /// The CRC-32C of everything that it can hold now, unless somebody else wrote.
    expected: Vec<u32>,
}

/// Puts the metadata back that a [repair](super::repair) overwrote, from the backup that it was told to make. Done again,
/// it changes nothing; cut off, it can be done again.
///
/// # Errors
/// `InvalidInput` for what is no backup, or one of another image; `Corrupt` for an image that was written to since the
/// repair, with the place. Nothing is changed then. `Io`, `NoSpace`.
pub fn restore(storage: &dyn Storage, backup: &dyn Storage) -> Result<RestoreReport> {
    let named = |error: Error| error.with_path_of(backup.path());
    let mut reader = BackupReader::open(backup).map_err(named)?;
    let mut sectors = HashMap::new();
    while reader.record(&mut sectors).map_err(named)? {}
    let mut numbers: Vec<u64> = sectors.keys().copied().collect();
    numbers.sort_unstable();
    check_unchanged(storage, &numbers, &sectors).map_err(|error| error.with_path_of(storage.path()))?;
    for &number in &numbers {
        let at = number * SECTOR;
        let len = SECTOR.min(reader.image_len.saturating_sub(at)) as usize;
        if len > 0 {
            let mut bytes = [0; SECTOR as usize];
            backup.read_exact_at(&mut bytes, sectors[&number].at)?;
            storage.write_all_at(&bytes[..len], at)?;
        }
    }
    storage.sync_data()?;
    // What the repair appended; a file that is longer than it left it was written to by others, and left alone.
    let len = storage.len()?;
    if len > reader.image_len && len <= reader.longest {
        storage.set_len(reader.image_len)?;
        storage.sync_data()?;
    }
    Ok(RestoreReport {
        bytes: numbers.len() as u64 * SECTOR,
        cut_off: reader.cut_off,
    })
}

/// Fails for a sector that is neither as it was before the repair nor as one of its steps left it.
fn check_unchanged(storage: &dyn Storage, numbers: &[u64], sectors: &HashMap<u64, Kept>) -> Result<()> {
    for number in numbers {
        let mut bytes = [0; SECTOR as usize];
        storage.read_exact_at(&mut bytes, number * SECTOR)?;
        if !sectors[number].expected.contains(&crc32c::crc32c(&bytes)) {
            let message =
                "the image was written to after the repair, or is not the one that the backup was made of";
            return Err(Error::new(ErrorKind::Corrupt, message)
                .with_offset(number * SECTOR)
                .with_hint("nothing was put back"));
        }
    }
    Ok(())
}

struct BackupReader<'a> {
    file: &'a dyn Storage,
    len: u64,
    image_len: u64,
    /// The longest that the image was during the repair.
    longest: u64,
    at: u64,
    cut_off: bool,
}

impl<'a> BackupReader<'a> {
    fn open(file: &'a dyn Storage) -> Result<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Err(Error::invalid("this is no backup of an image's metadata"));
        }
        let version = BE::read_u64(&header[8..]);
        if version != VERSION {
            let message = format!("the backup is of version {version}; this build knows version {VERSION}");
            return Err(Error::unsupported(message));
        }
        Ok(Self {
            file,
            len: file.len()?,
            image_len: BE::read_u64(&header[16..]),
            longest: 0,
            at: HEADER as u64,
            cut_off: false,
        })
    }

    /// Takes in the next record. `false` if there is no further one.
    fn record(&mut self, sectors: &mut HashMap<u64, Kept>) -> Result<bool> {
        let left = self.len.saturating_sub(self.at);
        if left == 0 {
            return Ok(false);
        }
        let mut bytes = [0; RECORD];
        self.file.read_exact_at(&mut bytes, self.at)?;
        let mut sum = crc32c::crc32c(&bytes);
        let count = BE::read_u64(&bytes);
        let frame = RECORD as u64 + 4;
        if left < frame || count > (left - frame) / ENTRY as u64 {
            self.cut_off = true;
            return Ok(false);
        }
        let mut found = Vec::with_capacity(count as usize);
        let mut entry = [0; ENTRY];
        for index in 0..count {
            let at = self.at + RECORD as u64 + index * ENTRY as u64;
            self.file.read_exact_at(&mut entry, at)?;
            sum = crc32c::crc32c_append(sum, &entry);
            let new = BE::read_u32(&entry[8..]);
            found.push((BE::read_u64(&entry), at + 12, new, crc32c::crc32c(&entry[12..])));
        }
        let end = self.at + RECORD as u64 + count * ENTRY as u64;
        let mut stored = [0; 4];
        self.file.read_exact_at(&mut stored, end)?;
        if u32::from_be_bytes(stored) != sum {
            self.cut_off = true;
            return Ok(false);
        }
        self.at = end + 4;
        self.longest = self.longest.max(BE::read_u64(&bytes[8..]));
        for (number, at, new, old) in found {
            if number > i64::MAX as u64 / SECTOR {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    "the backup names a sector that no file has",
                ));
            }
            // The first record that holds a sector holds it as it was.
            let kept = sectors.entry(number).or_insert_with(|| Kept {
                at,
                expected: vec![old],
            });
            kept.expected.push(new);
        }
        Ok(true)
    }
}
