//! The options of encryption.

use std::path::Path;
use std::time::Duration;

use block::{Error, Passphrase, Result};
use encryption::{Cipher, Hash, Iterations, IvGenerator, KeySlots, LuksOptions, Mode, SLOTS};
use qcow2::{EncryptionMethod, NewEncryption};

use super::no_such;
use crate::keys;
use crate::option_list::OptionList;

/// Options that say how LUKS encrypts.
const OF_LUKS: [&str; 6] = [
    "cipher-alg",
    "cipher-mode",
    "ivgen-alg",
    "ivgen-hash-alg",
    "hash-alg",
    "iter-time",
];

/// In front of the options of a qcow2 image that are about its encryption.
const IN_QCOW2: &str = "encrypt.";

/// What the options say of a new image. Its passphrase is empty where none was given: measuring takes none.
pub(super) fn parse(options: &mut OptionList) -> Result<Option<NewEncryption>> {
    let obsolete = options.take_switch("encryption")? == Some(true);
    let format = options.take("encrypt.format");
    let of_luks = OF_LUKS.map(|key| options.take(&format!("{IN_QCOW2}{key}")));
    let key = options.take("encrypt.key");
    let method = match format.as_deref() {
        Some("luks") if !obsolete => EncryptionMethod::Luks(luks(&of_luks, IN_QCOW2)?),
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
    let passphrase = passphrase(key)?;
    Ok(Some(NewEncryption { method, passphrase }))
}

/// What the options say of a new disk in LUKS's own form; its passphrase is as in [`parse`].
pub(super) fn parse_luks(options: &mut OptionList) -> Result<(LuksOptions, Passphrase)> {
    let of_luks = OF_LUKS.map(|key| options.take(key));
    let passphrase = passphrase(options.take("key"))?;
    Ok((luks(&of_luks, "")?, passphrase))
}

fn passphrase(file: Option<String>) -> Result<Passphrase> {
    match file {
        Some(file) => keys::from_file(Path::new(&file)),
        None => Ok(keys::of_new_image().unwrap_or_else(|_| Passphrase::new(""))),
    }
}

/// What the values of [`OF_LUKS`] say; `prefix` is what stands in front of these names.
fn luks(options: &[Option<String>; 6], prefix: &str) -> Result<LuksOptions> {
    let [cipher, mode, iv, iv_hash, hash, time] = options;
    let mut luks = LuksOptions::default();
    if let Some(name) = cipher {
        luks.spec.cipher = Cipher::named(name)?;
    }
    if let Some(name) = mode {
        luks.spec.mode = mode_of_new(name, prefix)?;
    }
    if let Some(name) = iv {
        luks.spec.iv = IvGenerator::named(name)?;
    }
    match iv_hash.as_deref() {
        Some("sha256") if luks.spec.iv == IvGenerator::Essiv => {}
        Some("sha256") => {
            let message =
                format!("{prefix}ivgen-hash-alg is the hash of essiv, and another ivgen-alg is asked for");
            return Err(Error::invalid(message).with_hint(format!("use {prefix}ivgen-alg=essiv")));
        }
        Some(other) => return Err(no_such(&format!("{prefix}ivgen-hash-alg"), other, "sha256")),
        None => {}
    }
    if let Some(name) = hash {
        luks.hash = Hash::named(name)?;
    }
    luks.iterations = iterations(time.as_deref(), prefix)?;
    Ok(luks)
}

/// A mode by its name, if it is one to make disks with.
fn mode_of_new(name: &str, prefix: &str) -> Result<Mode> {
    let mode = Mode::named(name).ok().filter(|mode| mode.protects());
    mode.ok_or_else(|| no_such(&format!("{prefix}cipher-mode"), name, "xts and cbc"))
}

fn iterations(time: Option<&str>, prefix: &str) -> Result<Iterations> {
    let Some(text) = time else {
        return Ok(Iterations::default());
    };
    let milliseconds = text.parse::<u32>().ok().filter(|time| *time > 0);
    let time = milliseconds.ok_or_else(|| {
        no_such(
            &format!("{prefix}iter-time"),
            text,
            "numbers of milliseconds, from 1 on",
        )
    })?;
    Ok(Iterations::Time(Duration::from_millis(time.into())))
}

/// The options again, for `Formatting 'a', ...`.
pub(super) fn describe(encryption: &NewEncryption, add: &mut impl FnMut(&str, &str)) {
    let EncryptionMethod::Luks(luks) = encryption.method else {
        return add("encrypt.format", "aes");
    };
    add("encrypt.format", "luks");
    describe_luks(&luks, IN_QCOW2, add);
}

/// The same for what says how LUKS encrypts; `prefix` stands in front of the names.
pub(super) fn describe_luks(luks: &LuksOptions, prefix: &str, add: &mut impl FnMut(&str, &str)) {
    let mut add = |key: &str, value: &str| add(&format!("{prefix}{key}"), value);
    let usual = LuksOptions::default();
    if luks.spec.cipher != usual.spec.cipher {
        add("cipher-alg", luks.spec.cipher.name());
    }
    if luks.spec.mode != usual.spec.mode {
        add("cipher-mode", luks.spec.mode.name());
    }
    if luks.spec.iv != usual.spec.iv {
        add("ivgen-alg", luks.spec.iv.name());
    }
    if luks.hash != usual.hash {
        add("hash-alg", luks.hash.name());
    }
    if let Iterations::Time(time) = luks.iterations
        && luks.iterations != usual.iterations
    {
        add("iter-time", &time.as_millis().to_string());
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
    /// `prefix` stands in front of the names of the options.
    pub(super) fn parse(options: &mut OptionList, prefix: &str) -> Result<Self> {
        let name = |key: &str| format!("{prefix}{key}");
        let passphrase = |file: String| keys::from_file(Path::new(&file));
        let new = options.take(&name("new-key")).map(passphrase).transpose()?;
        let old = options.take(&name("old-key")).map(passphrase).transpose()?;
        let time = options.take(&name("iter-time"));
        let slot = options
            .take(&name("keyslot"))
            .map(|text| slot(&text, prefix))
            .transpose()?;
        let inactive = match options.take(&name("state")).as_deref() {
            None => false,
            Some("active") if new.is_some() => false,
            Some("inactive") if new.is_none() => true,
            Some("inactive") => {
                let message = "a key cannot be added and its slot inactive";
                let hint = format!("remove a key that is there with {prefix}old-key=FILE");
                return Err(Error::invalid(message).with_hint(hint));
            }
            Some("active") => {
                let hint = format!("name the file that holds the new passphrase: {prefix}new-key=FILE");
                return Err(Error::invalid("a key slot becomes active with a key").with_hint(hint));
            }
            Some(other) => return Err(no_such(&name("state"), other, "active and inactive")),
        };
        if inactive && slot.is_some() && old.is_some() {
            let message = format!("{prefix}old-key and {prefix}keyslot both say whose key is removed");
            let hint = format!("remove one after the other, or leave out {prefix}keyslot and {prefix}state");
            return Err(Error::invalid(message).with_hint(hint));
        }
        let change = match new {
            Some(new) => Self {
                new: Some((new, slot, iterations(time.as_deref(), prefix)?)),
                old,
                remove: None,
            },
            None if time.is_some() || slot.is_some() && !inactive => {
                let message = format!(
                    "{prefix}iter-time and {prefix}keyslot say how a key is added, and there is none"
                );
                return Err(Error::invalid(message).with_hint(format!("name it with {prefix}new-key=FILE")));
            }
            None if inactive && slot.is_none() && old.is_none() => {
                let message = "no key slot is named that is to be inactive";
                let hint = format!("name it with {prefix}keyslot=N or {prefix}old-key=FILE");
                return Err(Error::invalid(message).with_hint(hint));
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
    pub(crate) fn apply(&self, image: &dyn KeySlots) -> Result<bool> {
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

fn slot(text: &str, prefix: &str) -> Result<usize> {
    let slot = text.parse::<usize>().ok().filter(|slot| *slot < SLOTS);
    slot.ok_or_else(|| no_such(&format!("{prefix}keyslot"), text, "0 to 7"))
}
