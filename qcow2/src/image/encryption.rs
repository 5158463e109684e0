//! Encrypted guest data ("Data encryption", "Full disk encryption header pointer"). Tables are never encrypted.
//!
//! Each sector of 512 bytes is encrypted by itself, under a number: that of its place in the file with LUKS, of its place on the
//! disk with AES. Clusters start with a sector, and all that copies data reads and writes the disk rather than the file. So
//! nothing outside of this file knows of it, but that zeros in the file are not zeros on the disk.

use std::io::IoSlice;

use block::{Error, ErrorKind, Keys, Passphrase, Result, Storage};
use encryption::{HEADER_LEN, KeyArea, Luks, MasterKey, SECTOR, SectorCipher, SectorIo, read_in_sectors};

use super::Image;
use crate::address::{GuestOffset, HostOffset};
use crate::entry::L2Mapping;
use crate::header::{self, Header};

/// Longest header of LUKS that is read, with its key material: several times what the longest keys need.
const MAX_HEADER: u64 = 16 << 20;

/// How the data of an open image is encrypted.
#[derive(Debug)]
pub(super) struct Encryption {
    /// `None` in an image that was opened without a key.
    sectors: Option<SectorIo>,
    /// Of LUKS.
    master_key: Option<MasterKey>,
    numbers: Numbers,
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

/// Where an encrypted image has its LUKS header.
pub(super) fn key_area<'a>(storage: &'a dyn Storage, header: &Header) -> KeyArea<'a> {
    let place = header.extensions.encryption_header;
    KeyArea::new(storage, place.map_or(0, |place| place.offset.0))
}

impl Encryption {
    pub(super) fn open(storage: &dyn Storage, header: &Header, keys: &Keys) -> Result<Option<Self>> {
        let numbers = match header.encryption {
            header::Encryption::None => return Ok(None),
            header::Encryption::Aes => Numbers::Guest,
            header::Encryption::Luks => Numbers::Host,
        };
        let (sectors, master_key) = match keys {
            Keys::None => return Err(missing(header)),
            Keys::Locked => (None, None),
            Keys::Passphrases(passphrases) => {
                let (cipher, master_key) = unlock(storage, header, passphrases)?;
                (Some(SectorIo::new(cipher)), master_key)
            }
        };
        Ok(Some(Self {
            sectors,
            master_key,
            numbers,
        }))
    }

    fn sectors(&self) -> Result<&SectorIo> {
        self.sectors.as_ref().ok_or_else(locked)
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
    if let Some(key) = key_area(storage, header).unlock(&luks, passphrases)? {
        return Ok((luks.cipher(&key)?, Some(key)));
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
    /// [`read`](Self::read), decrypted.
    #[inline(never)]
    pub(super) fn read_encrypted(
        &self,
        encryption: &Encryption,
        buf: &mut [u8],
        guest: GuestOffset,
    ) -> Result<()> {
        let sectors = encryption
            .sectors()
            .map_err(|error| error.with_path_of(self.storage.path()))?;
        read_in_sectors(buf, guest.0, |buf, guest| {
            self.read_sectors(encryption, sectors, buf, GuestOffset(guest))
        })
    }

    /// Fills `buf`, whole sectors.
    fn read_sectors(
        &self,
        encryption: &Encryption,
        sectors: &SectorIo,
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
            sectors.decrypt(number, run);
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
        let number = encryption.number(guest, host);
        encryption.sectors()?.write(&self.data, parts, host.0, number)
    }
}
