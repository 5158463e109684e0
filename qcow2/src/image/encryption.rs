//! Encrypted guest data ("Data encryption", "Full disk encryption header pointer"). Tables are never encrypted.
//!
//! Each sector of 512 bytes is encrypted by itself, under a number: that of its place in the file with LUKS, of its place on the
//! disk with AES. Clusters start with a sector, and all that copies data reads and writes the disk rather than the file. So
//! nothing outside of this file knows of it, but that zeros in the file are not zeros on the disk.
//!
//! **A part of a sector** that is written in place is read, changed and written as a whole. What others write to the rest of
//! the sector meanwhile must not be undone, so it is done with `partial` held exclusively, and whole sectors are written with
//! it shared. Guests write whole sectors.
//!
//! **Power cuts** tear writes between sectors and not within: a sector is the old or the new one, encrypted or not.

use std::io::IoSlice;
use std::sync::{PoisonError, RwLock};

use block::{Error, ErrorKind, Keys, Passphrase, Result, Storage};
use encryption::{HEADER_LEN, Luks, MasterKey, SECTOR, SectorCipher};

use super::Image;
use crate::address::{GuestOffset, HostOffset};
use crate::entry::L2Mapping;
use crate::header::{self, Header};
use crate::scratch::Scratch;

/// Bytes that are encrypted and written at once at most.
const PIECE: usize = 256 << 10;

/// Longest header of LUKS that is read, with its key material: several times what the longest keys need.
const MAX_HEADER: u64 = 16 << 20;

/// How the data of an open image is encrypted.
#[derive(Debug)]
pub(super) struct Encryption {
    /// `None` in an image that was opened without a key.
    cipher: Option<SectorCipher>,
    /// Of LUKS.
    master_key: Option<MasterKey>,
    numbers: Numbers,
    partial: RwLock<()>,
}

/// What the number of a sector follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    Host,
    Guest,
}

/// The LUKS header of an image that has one; reading it takes no key.
///
/// # Errors
/// `Corrupt` for a header that contradicts itself or the image's; `Unsupported`, `Io`.
pub fn read_luks(storage: &dyn Storage, header: &Header) -> Result<Option<Luks>> {
    let Some(place) = header.extensions.encryption_header else {
        return Ok(None);
    };
    let mut bytes = vec![0; place.len.min(HEADER_LEN as u64) as usize];
    let luks = storage
        .read_exact_at(&mut bytes, place.offset.0)
        .and_then(|()| Luks::parse(&bytes))
        .and_then(|luks| {
            if luks.payload_offset() > place.len || place.len > MAX_HEADER {
                let message = format!(
                    "the encryption header has {} bytes of key material and itself, and the image says {}",
                    luks.payload_offset(),
                    place.len
                );
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            Ok(luks)
        });
    luks.map(Some).map_err(|error| {
        let error = error.with_path_of(storage.path()).with_offset(place.offset.0);
        match error.kind() {
            // What is no LUKS header is here no wrong argument.
            ErrorKind::InvalidInput => {
                Error::new(ErrorKind::Corrupt, "the encryption header is no LUKS header")
                    .with_path_of(storage.path())
                    .with_offset(place.offset.0)
                    .with_source(error)
            }
            _ => error,
        }
    })
}

/// Reads the key material of a slot.
pub(super) fn read_material(
    storage: &dyn Storage,
    header: &Header,
    luks: &Luks,
    slot: usize,
) -> Result<Vec<u8>> {
    let start = header
        .extensions
        .encryption_header
        .map_or(0, |place| place.offset.0);
    let place = luks.material(slot);
    let mut material = vec![0; place.len()];
    storage.read_exact_at(&mut material, start + place.start as u64)?;
    Ok(material)
}

impl Encryption {
    pub(super) fn open(storage: &dyn Storage, header: &Header, keys: &Keys) -> Result<Option<Self>> {
        let numbers = match header.encryption {
            header::Encryption::None => return Ok(None),
            header::Encryption::Aes => Numbers::Guest,
            header::Encryption::Luks => Numbers::Host,
        };
        let (cipher, master_key) = match keys {
            Keys::None => return Err(missing(header)),
            Keys::Locked => (None, None),
            Keys::Passphrases(passphrases) => {
                let (cipher, master_key) = unlock(storage, header, passphrases)?;
                (Some(cipher), master_key)
            }
        };
        Ok(Some(Self {
            cipher,
            master_key,
            numbers,
            partial: RwLock::new(()),
        }))
    }

    fn cipher(&self) -> Result<&SectorCipher> {
        self.cipher.as_ref().ok_or_else(locked)
    }

    pub(super) fn master_key(&self) -> Result<&MasterKey> {
        self.master_key.as_ref().ok_or_else(locked)
    }

    /// The number of the sector at these places.
    fn number(&self, guest: GuestOffset, host: HostOffset) -> u64 {
        let at = match self.numbers {
            Numbers::Host => host.0,
            Numbers::Guest => guest.0,
        };
        at / SECTOR as u64
    }
}

fn locked() -> Error {
    let message = "the image is encrypted, and was opened without a passphrase";
    Error::new(ErrorKind::Key, message)
}

fn missing(header: &Header) -> Error {
    let how = match header.encryption {
        header::Encryption::Aes => "AES",
        _ => "LUKS",
    };
    let message = format!("the image is encrypted with {how}, and no passphrase was given");
    Error::new(ErrorKind::Key, message).with_hint("open it with its passphrase")
}

/// The cipher that the first fitting passphrase leads to.
fn unlock(
    storage: &dyn Storage,
    header: &Header,
    passphrases: &[Passphrase],
) -> Result<(SectorCipher, Option<MasterKey>)> {
    let Some(luks) = read_luks(storage, header)? else {
        return match passphrases {
            [] => Err(missing(header)),
            [one] => Ok((SectorCipher::legacy_aes(one), None)),
            _ => {
                let message = "the image is encrypted with AES, which does not tell which of several passphrases is right";
                Err(Error::invalid(message).with_hint("give one"))
            }
        };
    };
    for passphrase in passphrases {
        let material = |slot| read_material(storage, header, &luks, slot);
        if let Some(key) = luks.unlock(passphrase.as_bytes(), material)? {
            return Ok((luks.cipher(&key)?, Some(key)));
        }
    }
    match passphrases {
        [] => Err(missing(header)),
        _ => Err(Error::new(
            ErrorKind::Key,
            "the passphrase opens none of the image's key slots",
        )),
    }
}

impl Image {
    /// [`read`](Self::read), decrypted. What lies in a part of a sector is read with the rest of it.
    #[inline(never)]
    pub(super) fn read_encrypted(
        &self,
        encryption: &Encryption,
        buf: &mut [u8],
        guest: GuestOffset,
    ) -> Result<()> {
        let cipher = encryption
            .cipher()
            .map_err(|error| error.with_path_of(self.storage.path()))?;
        let (mut buf, mut guest) = (buf, guest);
        while !buf.is_empty() {
            let within = guest.0 as usize % SECTOR;
            let whole = buf.len() / SECTOR * SECTOR;
            let len = if within == 0 && whole > 0 {
                self.read_sectors(encryption, cipher, &mut buf[..whole], guest)?;
                whole
            } else {
                let len = buf.len().min(SECTOR - within);
                let mut sector = [0; SECTOR];
                self.read_sectors(
                    encryption,
                    cipher,
                    &mut sector,
                    GuestOffset(guest.0 - within as u64),
                )?;
                buf[..len].copy_from_slice(&sector[within..within + len]);
                len
            };
            buf = &mut buf[len..];
            guest += len as u64;
        }
        Ok(())
    }

    /// Fills `buf`, whole sectors.
    fn read_sectors(
        &self,
        encryption: &Encryption,
        cipher: &SectorCipher,
        mut buf: &mut [u8],
        mut guest: GuestOffset,
    ) -> Result<()> {
        let (mut runs, mut numbers) = (Vec::new(), Vec::new());
        while !buf.is_empty() {
            let (mapping, len) = self.run(guest, buf.len() as u64)?;
            let (run, rest) = buf.split_at_mut(len as usize);
            match mapping {
                L2Mapping::Standard { host, .. } => {
                    let host = host + self.geometry.in_subcluster(guest);
                    self.check_present(host, len, guest)?;
                    runs.push((host.0, run));
                    numbers.push(encryption.number(guest, host));
                }
                _ => self.read_mapped(mapping, run, guest)?,
            }
            buf = rest;
            guest += len;
        }
        match &mut runs[..] {
            [] => return Ok(()),
            [(host, run)] => self.data.read_exact_at(run, *host)?,
            _ => self.data.read_batch(&mut runs)?,
        }
        for ((_, run), number) in runs.iter_mut().zip(numbers) {
            cipher.decrypt(number, run);
        }
        Ok(())
    }

    /// Writes guest data to the host clusters at `host`, encrypted.
    #[inline(never)]
    pub(super) fn put_encrypted(
        &self,
        encryption: &Encryption,
        parts: &[IoSlice<'_>],
        guest: GuestOffset,
        host: HostOffset,
    ) -> Result<()> {
        let cipher = encryption.cipher()?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let end = guest + len as u64;
        let whole = [guest, end]
            .iter()
            .all(|edge| edge.0.is_multiple_of(SECTOR as u64));
        let (_shared, _alone);
        if whole {
            _shared = encryption.partial.read().unwrap_or_else(PoisonError::into_inner);
        } else {
            _alone = encryption.partial.write().unwrap_or_else(PoisonError::into_inner);
        }
        let mut parts = Parts(parts, 0);
        let within = guest.0 as usize % SECTOR;
        let (mut guest, mut host) = (GuestOffset(guest.0 - within as u64), host.0 - within as u64);
        let mut skipped = within;
        let mut buf = Scratch::new((skipped + len).next_multiple_of(SECTOR).min(PIECE));
        while guest < end {
            let sectors = (end - guest)
                .next_multiple_of(SECTOR as u64)
                .min(buf.len() as u64) as usize;
            let piece = &mut buf[..sectors];
            let number = encryption.number(guest, HostOffset(host));
            let filled = skipped..sectors.min((end - guest) as usize);
            for edge in [skipped > 0, filled.end < sectors]
                .iter()
                .zip([0, sectors - SECTOR])
            {
                if let (true, at) = edge {
                    let sector = &mut piece[at..at + SECTOR];
                    self.data.read_exact_at(sector, host + at as u64)?;
                    cipher.decrypt(number + (at / SECTOR) as u64, sector);
                }
            }
            parts.fill(&mut piece[filled]);
            cipher.encrypt(number, piece);
            self.data.write_all_at(piece, host)?;
            guest += sectors as u64;
            host += sectors as u64;
            skipped = 0;
        }
        Ok(())
    }
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
