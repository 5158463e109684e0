//! Where a LUKS header and its key material lie in a file: how they are read, and how passphrases come and go there. The
//! data, and the key that it is encrypted with, stay as they are.
//!
//! **Order.** A new slot's key material is durable before the header says that there is some, and an old one's is wiped once the
//! header does not. So at every instant each passphrase opens the disk that opened it before, or will. The header reaches into
//! a second sector, in which slot 6 begins to be described: its state, in the first, is written last when it is to be used,
//! and first when it is not.

use block::{Passphrase, Result, Storage};

use crate::cipher::SECTOR;
use crate::luks::{HEADER_LEN, Luks, SLOTS};
use crate::slots::{Iterations, MasterKey, NewSlot};

/// Sectors that the header reaches into.
const HEADER_SECTORS: usize = HEADER_LEN.div_ceil(SECTOR);

/// A LUKS header and its key material in a file.
#[derive(Clone, Copy, Debug)]
pub struct KeyArea<'a> {
    storage: &'a dyn Storage,
    /// Of the header, in bytes.
    start: u64,
}

impl<'a> KeyArea<'a> {
    /// The area whose header is at byte `start` of `storage`.
    pub fn new(storage: &'a dyn Storage, start: u64) -> Self {
        Self { storage, start }
    }

    /// The header.
    ///
    /// # Errors
    /// As [`Luks::parse`]; `Io`.
    pub fn read(&self) -> Result<Luks> {
        let mut bytes = [0; HEADER_LEN];
        self.storage.read_exact_at(&mut bytes, self.start)?;
        Luks::parse(&bytes)
    }

    /// The master key, if one of the passphrases opens a slot.
    ///
    /// # Errors
    /// As [`Luks::unlock`]; `Io`.
    pub fn unlock(&self, luks: &Luks, passphrases: &[Passphrase]) -> Result<Option<MasterKey>> {
        for passphrase in passphrases {
            let key = luks.unlock(passphrase.as_bytes(), |slot| self.material(luks, slot))?;
            if key.is_some() {
                return Ok(key);
            }
        }
        Ok(None)
    }

    /// The slots that a passphrase opens.
    ///
    /// # Errors
    /// As [`Luks::open_slot`]; `Io`.
    pub fn slots_opened_by(&self, luks: &Luks, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let mut slots = Vec::new();
        for slot in (0..SLOTS).filter(|slot| luks.slots()[*slot].active) {
            let material = self.material(luks, slot)?;
            if luks.open_slot(slot, passphrase.as_bytes(), &material)?.is_some() {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    /// Gives a slot a passphrase, durably: [`Luks::add_key`]. Which slot it was.
    ///
    /// # Errors
    /// As there; `Io`, and the passphrase may then open the slot or not.
    pub fn add_key(
        &self,
        luks: &mut Luks,
        key: &MasterKey,
        passphrase: &Passphrase,
        slot: Option<usize>,
        iterations: Iterations,
    ) -> Result<usize> {
        let new = luks.add_key(key, passphrase.as_bytes(), slot, iterations)?;
        self.write_material(luks, &new)?;
        self.write_header(luks, [1, 0])?;
        Ok(new.slot)
    }

    /// Takes the key out of a slot and wipes what it was made of, durably: [`Luks::remove_key`].
    ///
    /// # Errors
    /// As there; `Io`, and the passphrase may then open the slot or not.
    pub fn remove_key(&self, luks: &mut Luks, slot: usize, even_the_last: bool) -> Result<()> {
        let old = luks.remove_key(slot, even_the_last)?;
        self.write_header(luks, [0, 1])?;
        self.write_material(luks, &old)
    }

    fn material(&self, luks: &Luks, slot: usize) -> Result<Vec<u8>> {
        let place = luks.material(slot);
        let mut material = vec![0; place.len()];
        self.storage
            .read_exact_at(&mut material, self.start + place.start as u64)?;
        Ok(material)
    }

    fn write_material(&self, luks: &Luks, slot: &NewSlot) -> Result<()> {
        let at = self.start + luks.material(slot.slot).start as u64;
        self.storage.write_all_at(&slot.material, at)?;
        self.storage.sync_data()
    }

    /// Writes the sectors of the header, in this order, each durable before the next.
    fn write_header(&self, luks: &Luks, order: [usize; HEADER_SECTORS]) -> Result<()> {
        let mut old = [0; HEADER_SECTORS * SECTOR];
        self.storage.read_exact_at(&mut old, self.start)?;
        let mut new = old;
        let encoded = luks.encode();
        new[..encoded.len()].copy_from_slice(&encoded);
        for sector in order {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if new[range.clone()] != old[range.clone()] {
                self.storage
                    .write_all_at(&new[range.clone()], self.start + range.start as u64)?;
                self.storage.sync_data()?;
            }
        }
        Ok(())
    }
}

/// An open image that is encrypted with LUKS, as far as its key slots are concerned.
pub trait KeySlots {
    /// The header of LUKS as it is now; `None` in an image that is not encrypted with LUKS.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`, `Io`.
    fn luks(&self) -> Result<Option<Luks>>;

    /// Lets another passphrase open the image, by this key slot or the first free one. Which it was.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that is in use or is none, and if all are in use; `Unsupported` for an image without LUKS;
    /// `Key` for one that was opened without a key; `ReadOnly`; `Io`, and the passphrase may then open the image or not.
    fn add_key(&self, passphrase: &Passphrase, slot: Option<usize>, iterations: Iterations) -> Result<usize>;

    /// Takes the key out of a slot and wipes what it was made of: the passphrase opens the image no more.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that has no key, and for the last that has one, unless `even_the_last`: without it nobody
    /// ever reads the data again; else as [`add_key`](Self::add_key), but that it takes no key.
    fn remove_key(&self, slot: usize, even_the_last: bool) -> Result<()>;

    /// The key slots that a passphrase opens.
    ///
    /// # Errors
    /// `Unsupported` for an image without LUKS, or with a cipher or hash that is not known; `Corrupt`, `Io`.
    fn slots_opened_by(&self, passphrase: &Passphrase) -> Result<Vec<usize>>;
}
