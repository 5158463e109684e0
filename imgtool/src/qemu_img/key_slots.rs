//! Key slots of encrypted images, as `amend -o encrypt.state=...` changes them.

use std::time::Duration;

use block::Passphrase;
use encryption::{Iterations, KeySlots, Luks, SLOTS};
use qcow2::{Encryption, Header};

use super::format_options::FormatOptions;
use super::image;
use super::new_image::not_accepted;
use super::refusal::Refusal;
use super::secret::Secrets;

/// What is to become of key slots.
#[derive(Debug)]
pub(super) enum KeyChange {
    /// A passphrase gets a slot: this one, or the first that is free.
    Add {
        passphrase: Passphrase,
        slot: Option<usize>,
        iterations: Iterations,
    },
    /// A slot is emptied, or all that the passphrase opens; with both, the slot if the passphrase opens it.
    Erase {
        slot: Option<usize>,
        passphrase: Option<Passphrase>,
    },
}

/// What options say of the key slots of a qcow2 image, if anything, judged in QEMU's words.
pub(super) fn of_qcow2(
    options: &FormatOptions,
    header: &Header,
    secrets: &Secrets,
) -> Result<Option<KeyChange>, Refusal> {
    if !options.names().any(|name| name.starts_with("encrypt.")) {
        return Ok(None);
    }
    match header.encryption {
        Encryption::Luks => {}
        Encryption::None => {
            return Err(Refusal::new(
                "Can't amend encryption options - encryption not present",
            ));
        }
        Encryption::Aes => return Err(Refusal::new("Only LUKS encryption options can be amended")),
    }
    of_options(options, "encrypt.", secrets).map(Some)
}

/// The same for a disk in LUKS's own form, or with a `prefix` in front of the names of the options.
pub(super) fn of_options(
    options: &FormatOptions,
    prefix: &str,
    secrets: &Secrets,
) -> Result<KeyChange, Refusal> {
    let refuse = |text: &str| Err(Refusal::new(text));
    let name = |key: &str| format!("{prefix}{key}");
    let [new, old] = ["new-secret", "old-secret"].map(|key| options.get(&name(key)));
    let time = options.number(&name("iter-time"));
    let number = options.number(&name("keyslot"));
    let passphrase = |id| secrets.get(id).map(Passphrase::new);
    match (options.get(&name("state")), new) {
        (None, _) => refuse("Parameter 'state' is missing"),
        (Some("active"), None) => refuse("'new-secret' is required to activate a keyslot"),
        (Some("active"), Some(_)) if old.is_some() => {
            refuse("'old-secret' must not be given when activating keyslots")
        }
        (Some("active"), Some(new)) => Ok(KeyChange::Add {
            slot: slot(number)?,
            passphrase: passphrase(new)?,
            iterations: time.map_or_else(Iterations::default, |time| {
                Iterations::Time(Duration::from_millis(time.max(1)))
            }),
        }),
        (Some("inactive"), Some(_)) => refuse("'new-secret' must not be given when erasing keyslots"),
        (Some("inactive"), None) if time.is_some() => {
            refuse("'iter-time' must not be given when erasing keyslots")
        }
        (Some("inactive"), None) if number.is_none() && old.is_none() => refuse(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
        ),
        (Some("inactive"), None) => Ok(KeyChange::Erase {
            passphrase: old.map(passphrase).transpose()?,
            slot: slot(number)?,
        }),
        (Some(other), _) => Err(not_accepted("state", other)),
    }
}

fn slot(number: Option<u64>) -> Result<Option<usize>, Refusal> {
    let Some(number) = number else {
        return Ok(None);
    };
    // A negative number is as large as QEMU makes it.
    let slot = number as u32;
    if slot as usize >= SLOTS {
        let last = SLOTS - 1;
        return Err(Refusal::new(format!(
            "Invalid keyslot {slot} specified, must be between 0 and {last}"
        )));
    }
    Ok(Some(slot as usize))
}

impl KeyChange {
    /// Changes the image. With `force` slots that are in use are given to others, and the last may be emptied.
    pub(super) fn apply(&self, image: &dyn KeySlots, force: bool) -> Result<(), Refusal> {
        let luks = image.luks().map_err(|error| image::engine_words(&error))?;
        let Some(luks) = luks else {
            return Err(Refusal::new("Only LUKS encryption options can be amended"));
        };
        match self {
            Self::Add {
                passphrase,
                slot,
                iterations,
            } => add(image, &luks, passphrase, *slot, *iterations, force),
            Self::Erase { slot, passphrase } => erase(image, &luks, *slot, passphrase.as_ref(), force),
        }
    }
}

fn add(
    image: &dyn KeySlots,
    luks: &Luks,
    passphrase: &Passphrase,
    slot: Option<usize>,
    iterations: Iterations,
    force: bool,
) -> Result<(), Refusal> {
    let free = luks.slots().iter().position(|slot| !slot.active);
    let taken = slot.filter(|slot| luks.slots()[*slot].active);
    let add = |slot| image.add_key(passphrase, slot, iterations);
    let done = match (taken, free) {
        (Some(slot), _) if !force => {
            return Err(Refusal::new(format!(
                "Refusing to overwrite active keyslot {slot} - please erase it first"
            )));
        }
        (None, None) => return Err(Refusal::new("Can't add a keyslot - all keyslots are in use")),
        (None, Some(_)) => add(slot).map(drop),
        // The one that is overwritten may be the only one that anybody knows the passphrase of: the new one opens the image before the
        // old one ceases to.
        (Some(slot), Some(free)) => add(Some(free))
            .and_then(|_| image.remove_key(slot, true))
            .and_then(|()| add(Some(slot)))
            .and_then(|_| image.remove_key(free, true)),
        (Some(slot), None) => image
            .remove_key(slot, true)
            .and_then(|()| add(Some(slot)).map(drop)),
    };
    done.map_err(|error| image::engine_words(&error))
}

fn erase(
    image: &dyn KeySlots,
    luks: &Luks,
    slot: Option<usize>,
    passphrase: Option<&Passphrase>,
    force: bool,
) -> Result<(), Refusal> {
    let opened = passphrase
        .map(|passphrase| image.slots_opened_by(passphrase))
        .transpose()
        .map_err(|error| image::engine_words(&error))?;
    let active = luks.slots().iter().filter(|slot| slot.active).count();
    let slots = match (slot, opened) {
        (Some(slot), Some(opened)) if !opened.contains(&slot) => {
            return Err(Refusal::new(format!(
                "Given keyslot {slot} doesn't contain the given old password for erase operation"
            )));
        }
        (Some(slot), _) if !luks.slots()[slot].active && !force => {
            // The blank at the end is QEMU's.
            return Err(Refusal::new(format!(
                "Given keyslot {slot} is already erased (inactive) "
            )));
        }
        (Some(slot), _) if luks.slots()[slot].active && active == 1 && !force => {
            return Err(Refusal::new(format!(
                "Attempt to erase the only active keyslot {slot} which will erase all the data in the image irreversibly - \
                 refusing operation"
            )));
        }
        (Some(slot), _) => vec![slot],
        (None, Some(opened)) if opened.is_empty() => {
            return Err(Refusal::new(
                "No keyslots match given (old) password for erase operation",
            ));
        }
        (None, Some(opened)) if opened.len() == active && !force => {
            return Err(Refusal::new(
                "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the \
                 image irreversibly - refusing operation",
            ));
        }
        (None, opened) => opened.unwrap_or_default(),
    };
    let mut active = slots.into_iter().filter(|slot| luks.slots()[*slot].active);
    active
        .try_for_each(|slot| image.remove_key(slot, force))
        .map_err(|error| image::engine_words(&error))
}
