//! Encrypted sectors in a storage: read and decrypted, encrypted and written.
//!
//! **A part of a sector** that is written is read, changed and written as a whole. What others write to the rest of
//! the sector meanwhile must not be undone, so it is done with `partial` held exclusively, and whole sectors are written with
//! it shared. Guests write whole sectors.
//!
//! **Power cuts** tear writes between sectors and not within: a sector is the old or the new one, encrypted or not.

use std::io::IoSlice;
use std::sync::{PoisonError, RwLock};

use block::{Result, Scratch, Storage};

use crate::cipher::{SECTOR, SectorCipher};

/// Bytes that are encrypted and written at once at most.
const PIECE: usize = 256 << 10;

/// A cipher with its key, for the sectors of one disk.
#[derive(Debug)]
pub struct SectorIo {
    cipher: SectorCipher,
    partial: RwLock<()>,
}

impl SectorIo {
    /// Sectors that this cipher encrypts.
    pub fn new(cipher: SectorCipher) -> Self {
        Self {
            cipher,
            partial: RwLock::new(()),
        }
    }

    /// Decrypts whole sectors in place, the first of which is number `first`.
    ///
    /// # Panics
    /// If `data` is no whole number of sectors.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.cipher.decrypt(first, data);
    }

    /// Writes the bytes of `parts` to byte `at` of `storage`, encrypted; `number` is that of the sector in which it lies.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn write(&self, storage: &dyn Storage, parts: &[IoSlice<'_>], at: u64, number: u64) -> Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let end = at + len as u64;
        let whole = [at, end].iter().all(|edge| edge.is_multiple_of(SECTOR as u64));
        let (_shared, _alone);
        if whole {
            _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
        } else {
            _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        }
        let mut parts = Parts(parts, 0);
        let mut skipped = at as usize % SECTOR;
        let (mut at, mut number) = (at - skipped as u64, number);
        let mut buf = Scratch::new((skipped + len).next_multiple_of(SECTOR).min(PIECE));
        while at < end {
            let sectors = (end - at).next_multiple_of(SECTOR as u64).min(buf.len() as u64) as usize;
            let piece = &mut buf[..sectors];
            let filled = skipped..sectors.min((end - at) as usize);
            for edge in [skipped > 0, filled.end < sectors]
                .iter()
                .zip([0, sectors - SECTOR])
            {
                if let (true, edge) = edge {
                    let sector = &mut piece[edge..edge + SECTOR];
                    storage.read_exact_at(sector, at + edge as u64)?;
                    self.cipher.decrypt(number + (edge / SECTOR) as u64, sector);
                }
            }
            parts.fill(&mut piece[filled]);
            self.cipher.encrypt(number, piece);
            storage.write_all_at(piece, at)?;
            at += sectors as u64;
            number += (sectors / SECTOR) as u64;
            skipped = 0;
        }
        Ok(())
    }
}

/// Fills `buf`, which starts at byte `at` of a disk, by reads of whole sectors: `read` is given buffers and where on the disk they
/// start. What is in part of a sector is read with the rest of it, by the side.
///
/// # Errors
/// Those of `read`.
pub fn read_in_sectors(
    mut buf: &mut [u8],
    mut at: u64,
    mut read: impl FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<()> {
    while !buf.is_empty() {
        let within = at as usize % SECTOR;
        let whole = buf.len() / SECTOR * SECTOR;
        let len = if within == 0 && whole > 0 {
            read(&mut buf[..whole], at)?;
            whole
        } else {
            let len = buf.len().min(SECTOR - within);
            let mut sector = [0; SECTOR];
            read(&mut sector, at - within as u64)?;
            buf[..len].copy_from_slice(&sector[within..within + len]);
            len
        };
        buf = &mut buf[len..];
        at += len as u64;
    }
    Ok(())
}

/// The bytes of some slices, one after the other.
struct Parts<'a, 'b>(&'a [IoSlice<'b>], usize);

impl Parts<'_, '_> {
    fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty()
            && let [first, rest @ ..] = self.0
        {
            let left = &first[self.1..];
            let len = left.len().min(out.len());
            out[..len].copy_from_slice(&left[..len]);
            out = &mut out[len..];
            self.1 += len;
            if self.1 == first.len() {
                (self.0, self.1) = (rest, 0);
            }
        }
    }
}
