//! Key slots of an image that is encrypted with LUKS: passphrases that come and go.

use block::{Error, Passphrase, Result, Storage};
use encryption::{Iterations, KeyArea, KeySlots, Luks};

use super::Image;
use super::encryption::{Encryption, key_area, read_luks};

impl KeySlots for Image {
    fn luks(&self) -> Result<Option<Luks>> {
        read_luks(&self.storage, &self.header())
    }

    fn add_key(&self, passphrase: &Passphrase, slot: Option<usize>, iterations: Iterations) -> Result<usize> {
        self.change_keys("add a key", |encryption, area, luks| {
            area.add_key(luks, encryption.master_key()?, passphrase, slot, iterations)
        })
    }

    fn remove_key(&self, slot: usize, even_the_last: bool) -> Result<()> {
        self.change_keys("remove a key", |_, area, luks| {
            area.remove_key(luks, slot, even_the_last)
        })
    }

    fn slots_opened_by(&self, passphrase: &Passphrase) -> Result<Vec<usize>> {
        let luks = self.luks()?.ok_or_else(no_luks)?;
        key_area(&self.storage, &self.header()).slots_opened_by(&luks, passphrase)
    }
}

impl Image {
    /// Runs a change of the key slots while nobody else changes anything.
    fn change_keys<T>(
        &self,
        op: &str,
        change: impl FnOnce(&Encryption, KeyArea<'_>, &mut Luks) -> Result<T>,
    ) -> Result<T> {
        let writer = self.writer(op)?;
        let _alone = writer.bitmaps_mut();
        let changed = self.clear_autoclear(writer).and_then(|()| {
            let (Some(encryption), Some(mut luks)) = (&self.encryption, self.luks()?) else {
                return Err(no_luks());
            };
            change(encryption, key_area(&self.storage, &self.header()), &mut luks)
        });
        changed.map_err(|error| error.with_path_of(self.storage.path()))
    }
}

fn no_luks() -> Error {
    Error::unsupported("the image is not encrypted with LUKS: it has no key slots")
}
