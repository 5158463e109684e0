//! Key slots of an image that is encrypted with LUKS: passphrases that come and go. The data, and the key that it is encrypted
//! with, stay as they are.
//!
//! **Order.** A new slot's key material is durable before the header says that there is some, and an old one's is wiped once the
//! header does not. So at every instant each passphrase opens the image that opened it before, or will. The header reaches into
//! a second sector, in which slot 6 begins to be described: its state, in the first, is written last when it is to be used,
//! and first when it is not.

use block::{Error, Passphrase, Result};
use encryption::{Iterations, Luks, NewSlot, SECTOR, SLOTS};

use super::Image;
use super::encryption::{Encryption, read_luks, read_material};
use crate::header::Header;

/// Sectors that the header reaches into.
const HEADER: usize = 2;

impl Image {
    /// The header of LUKS as it is now; `None` in an image that is not encrypted with LUKS.
    ///
    /// # Errors
    /// As [`read_luks`].
    pub fn luks(&self) -> Result<Option<Luks>> {
        read_luks(&*self.storage, &self.header())
    }

    /// Lets another passphrase open the image, by this key slot or the first free one. Which it was.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that is in use or is none, and if all are in use; `Unsupported` for an image without LUKS;
    /// `Key` for one that was opened without a key; `ReadOnly`; `Io`, and the passphrase may then open the image or not.
    pub fn add_key(
        &self,
        passphrase: &Passphrase,
        slot: Option<usize>,
        iterations: Iterations,
    ) -> Result<usize> {
        self.change_keys("add a key", |encryption, header, luks| {
            let key = encryption.master_key()?;
            let new = luks.add_key(key, passphrase.as_bytes(), slot, iterations)?;
            self.write_material(header, luks, &new)?;
            self.write_luks(header, luks, [1, 0])?;
            Ok(new.slot)
        })
    }

    /// Takes the key out of a slot and wipes what it was made of: the passphrase opens the image no more.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that has no key, and for the last that has one, unless `even_the_last`: without it nobody
    /// ever reads the data again; else as [`add_key`](Self::add_key), but that it takes no key.
    pub fn remove_key(&self, slot: usize, even_the_last: bool) -> Result<()> {
        self.change_keys("remove a key", |_, header, luks| {
            let old = luks.remove_key(slot, even_the_last)?;
            self.write_luks(header, luks, [0, 1])?;
            self.write_material(header, luks, &old)
        })
    }

    /// The key slots that a passphrase opens.
    ///
    /// # Errors
    /// `Unsupported` for an image without LUKS, or with a cipher or hash that is not known; `Corrupt`, `Io`.
    pub fn slots_opened_by(&self, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let (header, luks) = (self.header(), self.luks()?.ok_or_else(no_luks)?);
        let mut slots = Vec::new();
        for slot in (0..SLOTS).filter(|slot| luks.slots()[*slot].active) {
            let material = read_material(&*self.storage, &header, &luks, slot)?;
            if luks.open_slot(slot, passphrase.as_bytes(), &material)?.is_some() {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    /// Runs a change of the key slots while nobody else changes anything.
    fn change_keys<T>(
        &self,
        op: &str,
        change: impl FnOnce(&Encryption, &Header, &mut Luks) -> Result<T>,
    ) -> Result<T> {
        let writer = self.writer(op)?;
        let _alone = writer.bitmaps_mut();
        let changed = self.clear_autoclear(writer).and_then(|()| {
            let header = self.header();
            let (Some(encryption), Some(mut luks)) = (&self.encryption, self.luks()?) else {
                return Err(no_luks());
            };
            change(encryption, &header, &mut luks)
        });
        changed.map_err(|error| error.with_path_of(self.storage.path()))
    }

    fn write_material(&self, header: &Header, luks: &Luks, slot: &NewSlot) -> Result<()> {
        let at = place(header) + luks.material(slot.slot).start as u64;
        self.storage.write_all_at(&slot.material, at)?;
        self.storage.sync_data()
    }

    /// Writes the sectors of the header, in this order, each durable before the next.
    fn write_luks(&self, header: &Header, luks: &Luks, order: [usize; HEADER]) -> Result<()> {
        let start = place(header);
        let mut old = [0; HEADER * SECTOR];
        self.storage.read_exact_at(&mut old, start)?;
        let mut new = old;
        let encoded = luks.encode();
        new[..encoded.len()].copy_from_slice(&encoded);
        for sector in order {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            if new[range.clone()] != old[range.clone()] {
                self.storage
                    .write_all_at(&new[range.clone()], start + range.start as u64)?;
                self.storage.sync_data()?;
            }
        }
        Ok(())
    }
}

/// Where the header of LUKS starts in the file.
fn place(header: &Header) -> u64 {
    header
        .extensions
        .encryption_header
        .map_or(0, |place| place.offset.0)
}

fn no_luks() -> Error {
    Error::unsupported("the image is not encrypted with LUKS: it has no key slots")
}
