//! The options of encryption.

use std::path::Path;
use std::time::Duration;

use block::{Error, Passphrase, Result};
use encryption::{Cipher, Hash, Iterations, IvGenerator, LuksOptions, Mode, SLOTS};
use qcow2::{EncryptionMethod, Image, NewEncryption};

use super::no_such;
use crate::keys;
use crate::option_list::OptionList;

/// Options that say how LUKS encrypts.
const OF_LUKS: [&str; 6] = [
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
];

/// What the options say of a new image. Its passphrase is empty where none was given: measuring takes none.
pub(super) fn parse(options: &mut OptionList) -> Result<Option<NewEncryption>> {
    let obsolete = options.take_switch("encryption")? == Some(true);
    let format = options.take("encrypt.format");
    let of_luks = OF_LUKS.map(|key| options.take(key));
    let key = options.take("encrypt.key");
    let method = match format.as_deref() {
        Some("luks") if !obsolete => EncryptionMethod::Luks(luks(&of_luks)?),
        Some("aes") | None if format.is_some() || obsolete => EncryptionMethod::Aes,
        Some("luks") => {
            let message =
                "the options encryption and encrypt.format contradict each other: encryption=on is aes";
            return Err(Error::invalid(message));
        }
        Some(other) => return Err(no_such("encrypt.format", other, "luks and aes")),
        None if key.is_some() || of_luks.iter().any(Option::is_some) => {
            let message = "options say how the image is to be encrypted, and none that it is";
            return Err(Error::invalid(message).with_hint("add encrypt.format=luks"));
        }
        None => return Ok(None),
    };
    if method == EncryptionMethod::Aes && of_luks.iter().any(Option::is_some) {
        let message = "images with encrypt.format=aes have no options of LUKS";
        return Err(Error::invalid(message).with_hint("use encrypt.format=luks"));
    }
    let passphrase = match key {
        Some(file) => keys::from_file(Path::new(&file))?,
        None => keys::of_new_image().unwrap_or_else(|_| Passphrase::new("")),
    };
    Ok(Some(NewEncryption { method, passphrase }))
}

fn luks(options: &[Option<String>; 6]) -> Result<LuksOptions> {
    let [cipher, mode, iv, iv_hash, hash, time] = options;
    let mut luks = LuksOptions::default();
    if let Some(name) = cipher {
        luks.spec.cipher = Cipher::named(name)?;
    }
    if let Some(name) = mode {
        luks.spec.mode = Mode::named(name)?;
    }
    if let Some(name) = iv {
        luks.spec.iv = IvGenerator::named(name)?;
    }
    match iv_hash.as_deref() {
        Some("sha256") if luks.spec.iv == IvGenerator::Essiv => {}
        Some("sha256") => {
            let message = "encrypt.ivgen-hash-alg is the hash of essiv, and another ivgen-alg is asked for";
            return Err(Error::invalid(message).with_hint("use encrypt.ivgen-alg=essiv"));
        }
        Some(other) => return Err(no_such("encrypt.ivgen-hash-alg", other, "sha256")),
        None => {}
    }
    if let Some(name) = hash {
        luks.hash = Hash::named(name)?;
    }
    luks.iterations = iterations(time.as_deref())?;
    Ok(luks)
}

fn iterations(time: Option<&str>) -> Result<Iterations> {
    let Some(text) = time else {
        return Ok(Iterations::default());
    };
    let milliseconds = text.parse::<u32>().ok().filter(|time| *time > 0);
    let time = milliseconds
        .ok_or_else(|| no_such("encrypt.iter-time", text, "numbers of milliseconds, from 1 on"))?;
    Ok(Iterations::Time(Duration::from_millis(time.into())))
}

/// The options again, for `Formatting 'a', ...`.
pub(super) fn describe(encryption: &NewEncryption, add: &mut impl FnMut(&str, &str)) {
    let EncryptionMethod::Luks(luks) = encryption.method else {
        return add("encrypt.format", "aes");
    };
    add("encrypt.format", "luks");
    let usual = LuksOptions::default();
    if luks.spec.cipher != usual.spec.cipher {
        add("encrypt.cipher-alg", luks.spec.cipher.name());
    }
    if luks.spec.mode != usual.spec.mode {
        add("encrypt.cipher-mode", luks.spec.mode.name());
    }
    if luks.spec.iv != usual.spec.iv {
        add("encrypt.ivgen-alg", luks.spec.iv.name());
    }
    if luks.hash != usual.hash {
        add("encrypt.hash-alg", luks.hash.name());
    }
    if let Iterations::Time(time) = luks.iterations
        && luks.iterations != usual.iterations
    {
        add("encrypt.iter-time", &time.as_millis().to_string());
    }
}

/// What `amend -o` says of the keys of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyChange {
    new: Option<(Passphrase, Option<usize>, Iterations)>,
    old: Option<Passphrase>,
    /// The slot whose key is removed.
    remove: Option<usize>,
}

impl KeyChange {
    pub(super) fn parse(options: &mut OptionList) -> Result<Self> {
        let passphrase = |file: String| keys::from_file(Path::new(&file));
        let new = options.take("encrypt.new-key").map(passphrase).transpose()?;
        let old = options.take("encrypt.old-key").map(passphrase).transpose()?;
        let time = options.take("encrypt.iter-time");
        let slot = options
            .take("encrypt.keyslot")
            .map(|text| slot(&text))
            .transpose()?;
        let inactive = match options.take("encrypt.state").as_deref() {
            None => false,
            Some("active") if new.is_some() => false,
            Some("inactive") if new.is_none() => true,
            Some("inactive") => {
                let message = "a key cannot be added and its slot inactive";
                return Err(
                    Error::invalid(message).with_hint("remove a key that is there with encrypt.old-key=FILE")
                );
            }
            Some("active") => {
                let hint = "name the file that holds the new passphrase: encrypt.new-key=FILE";
                return Err(Error::invalid("a key slot becomes active with a key").with_hint(hint));
            }
            Some(other) => return Err(no_such("encrypt.state", other, "active and inactive")),
        };
        let change = match new {
            Some(new) => Self {
                new: Some((new, slot, iterations(time.as_deref())?)),
                old,
                remove: None,
            },
            None if time.is_some() || slot.is_some() && !inactive => {
                let message =
                    "encrypt.iter-time and encrypt.keyslot say how a key is added, and there is none";
                return Err(Error::invalid(message).with_hint("name it with encrypt.new-key=FILE"));
            }
            None if inactive && slot.is_none() && old.is_none() => {
                let message = "no key slot is named that is to be inactive";
                return Err(Error::invalid(message)
                    .with_hint("name it with encrypt.keyslot=N or encrypt.old-key=FILE"));
            }
            None => Self {
                new: None,
                old,
                remove: slot,
            },
        };
        Ok(change)
    }

    /// Changes the keys of an image: the new one first, so that no moment leaves it without any. Whether any changed.
    pub(crate) fn apply(&self, image: &Image) -> Result<bool> {
        let slots = match &self.old {
            None => Vec::new(),
            Some(old) => match image.slots_opened_by(old)? {
                slots if slots.is_empty() => {
                    return Err(Error::invalid(
                        "the old passphrase opens none of the image's key slots",
                    ));
                }
                slots => slots,
            },
        };
        if let Some((new, slot, iterations)) = &self.new {
            image.add_key(new, *slot, *iterations)?;
        }
        for slot in slots.iter().chain(&self.remove) {
            image.remove_key(*slot, false)?;
        }
        Ok(self.new.is_some() || self.remove.is_some() || !slots.is_empty())
    }
}

fn slot(text: &str) -> Result<usize> {
    let slot = text.parse::<usize>().ok().filter(|slot| *slot < SLOTS);
    slot.ok_or_else(|| no_such("encrypt.keyslot", text, "0 to 7"))
}
