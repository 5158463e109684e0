//! Key slots: how a passphrase leads to the master key, how it comes to do so, and how it ceases to.

use std::fmt::{self, Debug};
use std::time::{Duration, Instant};

use block::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

use crate::af;
use crate::cipher::{CipherSpec, SECTOR, SectorCipher};
use crate::hash::Hash;
use crate::luks::{DIGEST, KeySlot, Luks, SALT, SLOTS, STRIPES};

/// Fewest rounds that are chosen by time.
const MIN_ITERATIONS: u32 = 1000;
/// How much shorter than a slot's the time for the master key's digest is.
const DIGEST_SHARE: u32 = 8;
/// Most hashes, one after the other, that are done to try a passphrase in all slots: half an hour's worth on a slow machine, many times
/// what headers ask for that people make. What somebody makes up could take days.
const MAX_HASHES: u64 = 1 << 30;
/// How long a measurement takes at least.
const MEASURED: Duration = Duration::from_millis(10);
/// How often it is repeated.
const RUNS: usize = 3;

/// How many rounds of hashing there are to be between a passphrase and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iterations {
    /// As many as take so long on this machine.
    Time(Duration),
    /// So many.
    Exactly(u32),
}

impl Default for Iterations {
    /// Two seconds, as QEMU and cryptsetup have it.
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl Iterations {
    /// As many, for so many digests' worth of key.
    fn resolve(self, hash: Hash, key_len: usize) -> Result<u32> {
        match self {
            Self::Exactly(0) => Err(Error::invalid("a key takes at least one iteration")),
            Self::Exactly(iterations) => Ok(iterations),
            Self::Time(time) => measured(time, hash, key_len),
        }
        .and_then(|iterations| match hashes(iterations, hash, key_len) {
            ..=MAX_HASHES => Ok(iterations),
            _ => Err(too_many(iterations)),
        })
    }

    fn for_digest(self) -> Self {
        match self {
            Self::Time(time) => Self::Time(time / DIGEST_SHARE),
            Self::Exactly(iterations) => {
                Self::Exactly((iterations / DIGEST_SHARE).max(iterations.min(MIN_ITERATIONS)))
            }
        }
    }
}

/// How many hashes a key of this length takes.
fn hashes(iterations: u32, hash: Hash, key_len: usize) -> u64 {
    u64::from(iterations) * key_len.div_ceil(hash.digest_len()) as u64
}

fn too_many(iterations: u32) -> Error {
    let message = format!("{iterations} iterations are more than would ever be done to open the disk again");
    Error::invalid(message).with_hint("ask for fewer iterations, or for less time")
}

/// A machine that is busy is slower than it can be, and whoever guesses passphrases has one that is not: the fastest run counts.
fn measured(time: Duration, hash: Hash, key_len: usize) -> Result<u32> {
    let mut key = Zeroizing::new(vec![0; key_len]);
    let mut run = |iterations| {
        let start = Instant::now();
        hash.pbkdf2(b"passphrase", &[0; SALT], iterations, &mut key);
        start.elapsed().as_secs_f64()
    };
    let mut iterations = 1 << 12;
    let mut fastest = run(iterations);
    while fastest < MEASURED.as_secs_f64() && iterations < 1 << 30 {
        iterations *= 2;
        fastest = run(iterations);
    }
    for _ in 1..RUNS {
        fastest = fastest.min(run(iterations));
    }
    let fitting = f64::from(iterations) * time.as_secs_f64() / fastest;
    if fitting > f64::from(u32::MAX) {
        let message = format!(
            "{} s are {fitting:.0} iterations here, and {} are the most",
            time.as_secs(),
            u32::MAX
        );
        return Err(Error::invalid(message).with_hint("ask for less time"));
    }
    Ok((fitting as u32).max(MIN_ITERATIONS))
}

/// What a new header is to be. The default is QEMU's: AES-256 in XTS mode, SHA-256, two seconds for a passphrase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LuksOptions {
    /// How data is encrypted.
    pub spec: CipherSpec,
    /// What keys are derived with.
    pub hash: Hash,
    /// How long that takes.
    pub iterations: Iterations,
}

impl LuksOptions {
    /// How long header and key material are, in bytes.
    pub fn area_len(&self) -> u64 {
        u64::from(Luks::places(self.spec.key_len()).1) * SECTOR as u64
    }
}

/// The key that data is encrypted with. Wiped when it is dropped, and never shown.
pub struct MasterKey(Zeroizing<Vec<u8>>);

impl MasterKey {
    /// The bytes: whoever has them reads the data.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Key material of a slot that is to be written to its place, [`Luks::material`].
///
/// In front of the header that names a new key, and behind the one that no longer names an old key, each durable before the next:
/// then a passphrase opens what it did, or what it will.
#[derive(Debug)]
pub struct NewSlot {
    /// Which.
    pub slot: usize,
    /// The key material.
    pub material: Zeroizing<Vec<u8>>,
}

impl Luks {
    /// A new header with a new master key, which this passphrase opens, and all that lies in front of the payload.
    ///
    /// # Errors
    /// `InvalidInput` for no iterations; `Io` if there is no randomness to be had.
    pub fn format(options: &LuksOptions, passphrase: &[u8]) -> Result<(Self, Vec<u8>)> {
        let (luks, area, _) = Self::format_with_key(options, passphrase)?;
        Ok((luks, area))
    }

    /// The same with the master key.
    pub(crate) fn format_with_key(
        options: &LuksOptions,
        passphrase: &[u8],
    ) -> Result<(Self, Vec<u8>, MasterKey)> {
        let key_len = options.spec.key_len();
        let mut key = Zeroizing::new(vec![0; key_len]);
        random(&mut key)?;
        let mut digest_salt = [0; SALT];
        random(&mut digest_salt)?;
        let iterations = options.iterations.resolve(options.hash, key_len)?;
        let digest_iterations = options.iterations.for_digest().resolve(options.hash, DIGEST)?;
        let mut digest = [0; DIGEST];
        options
            .hash
            .pbkdf2(&key, &digest_salt, digest_iterations, &mut digest);
        let (cipher_name, cipher_mode) = options.spec.luks_names();
        let (places, payload_offset) = Self::places(key_len);
        let mut uuid = [0; 40];
        let text = uuid::Uuid::new_v4().to_string();
        uuid[..text.len()].copy_from_slice(text.as_bytes());
        let mut luks = Self {
            cipher_name: cipher_name.to_owned(),
            cipher_mode,
            hash_spec: options.hash.name().to_owned(),
            payload_offset,
            key_bytes: key_len as u32,
            digest,
            digest_salt,
            digest_iterations,
            uuid,
            slots: places.map(|material| KeySlot {
                active: false,
                iterations: 0,
                salt: [0; SALT],
                material,
                stripes: STRIPES,
            }),
        };
        let key = MasterKey(key);
        let new = luks.add_key(&key, passphrase, Some(0), Iterations::Exactly(iterations))?;
        let mut area = vec![0; luks.payload_offset() as usize];
        let header = luks.encode();
        area[..header.len()].copy_from_slice(&header);
        area[luks.material(new.slot)].copy_from_slice(&new.material);
        Ok((luks, area, key))
    }

    /// The master key, if the passphrase opens a slot. `material` reads the key material of a slot, which is at
    /// [`Luks::material`].
    ///
    /// # Errors
    /// `Unsupported` as [`spec`](Self::spec) and [`hash`](Self::hash); what `material` returns.
    pub fn unlock(
        &self,
        passphrase: &[u8],
        mut material: impl FnMut(usize) -> Result<Vec<u8>>,
    ) -> Result<Option<MasterKey>> {
        for slot in (0..SLOTS).filter(|slot| self.slots[*slot].active) {
            if let Some(key) = self.open_slot(slot, passphrase, &material(slot)?)? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// The master key, if the passphrase opens this slot, with this key material.
    ///
    /// # Errors
    /// As [`unlock`](Self::unlock); `InvalidInput` for material of another length than the slot's.
    pub fn open_slot(&self, slot: usize, passphrase: &[u8], material: &[u8]) -> Result<Option<MasterKey>> {
        let (spec, hash) = (self.spec()?, self.hash()?);
        let KeySlot {
            active,
            iterations,
            salt,
            stripes,
            ..
        } = self.slots[slot];
        if !active {
            return Ok(None);
        }
        self.check_hashes(hash)?;
        if material.len() != self.material(slot).len() {
            return Err(Error::invalid(format!(
                "{} bytes of key material",
                material.len()
            )));
        }
        let mut slot_key = Zeroizing::new(vec![0; self.key_len()]);
        hash.pbkdf2(passphrase, &salt, iterations, &mut slot_key);
        let mut split = Zeroizing::new(material.to_vec());
        SectorCipher::new(spec, &slot_key)?.decrypt(0, &mut split);
        split.truncate(self.key_len() * stripes as usize);
        let key = MasterKey(af::merge(&split, self.key_len(), hash));
        Ok((self.digest_of(&key, hash) == self.digest).then_some(key))
    }

    /// Fails if trying a passphrase in all slots would take very long.
    fn check_hashes(&self, hash: Hash) -> Result<()> {
        let digest = hashes(self.digest_iterations, hash, DIGEST);
        let slots = self.slots.iter().filter(|slot| slot.active);
        let all: u64 = slots
            .map(|slot| hashes(slot.iterations, hash, self.key_len()) + digest)
            .sum();
        if all <= MAX_HASHES {
            return Ok(());
        }
        let message = format!(
            "trying a passphrase in the key slots would take {all} hashes one after the other, and no more than {MAX_HASHES} are done"
        );
        Err(Error::unsupported(message)
            .with_hint("if the header is to be trusted, cryptsetup opens it, in a long time"))
    }

    fn digest_of(&self, key: &MasterKey, hash: Hash) -> [u8; DIGEST] {
        let mut digest = [0; DIGEST];
        hash.pbkdf2(&key.0, &self.digest_salt, self.digest_iterations, &mut digest);
        digest
    }

    /// The cipher of the data.
    ///
    /// # Errors
    /// As [`spec`](Self::spec); `InvalidInput` for a key of another header.
    pub fn cipher(&self, key: &MasterKey) -> Result<SectorCipher> {
        SectorCipher::new(self.spec()?, &key.0)
    }

    /// Gives a slot a passphrase that opens it: this one, or the first that has none. What is returned must be written, and
    /// then the [header](Self::encode).
    ///
    /// # Errors
    /// `InvalidInput` for a slot that is in use or is none, if all are in use, for no iterations, and for a key of
    /// another header; `Unsupported`; `Corrupt` for a slot that has no room; `Io` without randomness.
    pub fn add_key(
        &mut self,
        key: &MasterKey,
        passphrase: &[u8],
        slot: Option<usize>,
        iterations: Iterations,
    ) -> Result<NewSlot> {
        let (spec, hash) = (self.spec()?, self.hash()?);
        let slot = self.free_slot(slot)?;
        if self.digest_of(key, hash) != self.digest {
            return Err(Error::invalid("the key is not the one of this header"));
        }
        let iterations = iterations.resolve(hash, self.key_len())?;
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let before = self.slots[slot];
        self.slots[slot] = KeySlot {
            active: true,
            iterations,
            salt,
            material: before.material,
            stripes: STRIPES,
        };
        let possible = self.check_place(slot);
        if let Err(error) = possible.and_then(|()| self.check_hashes(hash).map_err(|_| too_many(iterations)))
        {
            self.slots[slot] = before;
            return Err(error);
        }
        let mut slot_key = Zeroizing::new(vec![0; self.key_len()]);
        hash.pbkdf2(passphrase, &salt, iterations, &mut slot_key);
        let mut material = af::split(&key.0, STRIPES as usize, hash)?;
        material.resize(self.material(slot).len(), 0);
        SectorCipher::new(spec, &slot_key)?.encrypt(0, &mut material);
        Ok(NewSlot { slot, material })
    }

    fn free_slot(&self, slot: Option<usize>) -> Result<usize> {
        match slot {
            None => self.slots.iter().position(|slot| !slot.active).ok_or_else(|| {
                Error::invalid("all key slots are in use").with_hint("remove the key of one of them first")
            }),
            Some(slot) if slot >= SLOTS => Err(no_slot(slot)),
            Some(slot) if self.slots[slot].active => {
                let message = format!("key slot {slot} is in use");
                Err(Error::invalid(message).with_hint("remove its key first, or let another be chosen"))
            }
            Some(slot) => Ok(slot),
        }
    }

    /// Takes the key out of a slot: the [header](Self::encode) must be written, and then what is returned, which is noise.
    ///
    /// # Errors
    /// `InvalidInput` for a slot that has no key, and for the last that has one, unless `even_the_last`: without it nobody
    /// ever reads the data again;
    /// `Io` without randomness.
    pub fn remove_key(&mut self, slot: usize, even_the_last: bool) -> Result<NewSlot> {
        if !self.slots.get(slot).ok_or_else(|| no_slot(slot))?.active {
            return Err(Error::invalid(format!("key slot {slot} holds no key")));
        }
        if !even_the_last && self.slots.iter().filter(|slot| slot.active).count() == 1 {
            let message = format!("key slot {slot} holds the last key: without it the data is lost");
            return Err(Error::invalid(message).with_hint("add another key first"));
        }
        let mut material = Zeroizing::new(vec![0; self.material(slot).len()]);
        random(&mut material)?;
        self.slots[slot] = KeySlot {
            active: false,
            iterations: 0,
            salt: [0; SALT],
            ..self.slots[slot]
        };
        Ok(NewSlot { slot, material })
    }
}

fn no_slot(slot: usize) -> Error {
    Error::invalid(format!(
        "there is no key slot {slot}: they are 0 to {}",
        SLOTS - 1
    ))
}

/// Fills `out` with randomness from the host.
pub(crate) fn random(out: &mut [u8]) -> Result<()> {
    getrandom::fill(out).map_err(|error| {
        Error::new(
            ErrorKind::Io,
            format!("cannot get random bytes from the host: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_than_there_are_iterations_is_refused() {
        let centuries = Iterations::Time(Duration::from_secs(1 << 34));
        let error = centuries.resolve(Hash::Sha256, 64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
