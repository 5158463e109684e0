//! The header of LUKS version 1, as the "LUKS On-Disk Format Specification" 1.2.3 has it: from bytes, and to bytes.
//!
//! ```text
//! | header, 592 bytes | key material of slot 0 | ... | of slot 7 | payload
//! ```
//!
//! All numbers are big-endian, and places are counted in sectors of 512 bytes.

use std::ops::Range;

use block::{Error, ErrorKind, Result, escape};
use byteorder::{BE, ByteOrder};

use crate::cipher::{CipherSpec, SECTOR};
use crate::hash::Hash;

/// Bytes of the header itself.
pub const HEADER_LEN: usize = 592;
/// Key slots.
pub const SLOTS: usize = 8;
/// Stripes of new key material (`LUKS_STRIPES`).
pub const STRIPES: u32 = 4000;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// A slot that holds a key (`LUKS_KEY_ENABLED`).
const ENABLED: u32 = 0x00ac_71f3;
/// A slot that holds none (`LUKS_KEY_DISABLED`).
const DISABLED: u32 = 0x0000_dead;
/// Where the first slot's description is, and how long each is.
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
/// Longest key in bytes that is read: twice that of any cipher here in XTS mode.
const MAX_KEY: u32 = 128;
/// Most stripes that are read. Everybody writes 4000.
const MAX_STRIPES: u32 = 1 << 16;
/// Key material starts at such a multiple of sectors.
const ALIGNMENT: u64 = 8;

/// Length of a salt, and of the digest of a master key.
pub(crate) const SALT: usize = 32;
pub(crate) const DIGEST: usize = 20;

/// What a header says. It was checked that key material lies behind the header, apart, and in front of the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Luks {
    pub(crate) cipher_name: String,
    pub(crate) cipher_mode: String,
    pub(crate) hash_spec: String,
    /// In sectors.
    pub(crate) payload_offset: u32,
    pub(crate) key_bytes: u32,
    pub(crate) digest: [u8; DIGEST],
    pub(crate) digest_salt: [u8; SALT],
    pub(crate) digest_iterations: u32,
    pub(crate) uuid: [u8; 40],
    pub(crate) slots: [KeySlot; SLOTS],
}

/// A key slot: where one passphrase's copy of the master key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// It holds a key.
    pub active: bool,
    /// Rounds of hashing between passphrase and key.
    pub iterations: u32,
    pub(crate) salt: [u8; SALT],
    /// First sector of the key material, from the start of the header.
    pub(crate) material: u32,
    /// How many times as long as a key the key material is.
    pub stripes: u32,
}

impl KeySlot {
    /// First byte of the key material, from the start of the header.
    pub fn offset(&self) -> u64 {
        u64::from(self.material) * SECTOR as u64
    }
}

impl Luks {
    /// Whether these bytes begin as a LUKS header of any version does.
    pub fn probe(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    /// Parses a header; `bytes` may be longer. Names of ciphers and hashes need not be known: see [`spec`](Self::spec)
    /// and [`hash`](Self::hash).
    ///
    /// # Errors
    /// `InvalidInput` for what is no LUKS header; `Unsupported` for another version; `Corrupt` for fields that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or_else(|| {
            corrupt(format!(
                "the LUKS header has {} bytes of {HEADER_LEN}",
                bytes.len()
            ))
        })?;
        if !Self::probe(bytes) {
            let start = &bytes[..MAGIC.len()];
            let message = format!("no LUKS header: it starts with {start:02x?} and not with {MAGIC:02x?}");
            return Err(Error::invalid(message));
        }
        match BE::read_u16(&bytes[6..]) {
            1 => {}
            version => {
                let message = format!("the header is of LUKS version {version}; version 1 is supported");
                return Err(Error::unsupported(message));
            }
        }
        let luks = Self {
            cipher_name: name(bytes, 8, "cipher-name")?,
            cipher_mode: name(bytes, 40, "cipher-mode")?,
            hash_spec: name(bytes, 72, "hash-spec")?,
            payload_offset: BE::read_u32(&bytes[104..]),
            key_bytes: BE::read_u32(&bytes[108..]),
            digest: array(bytes, 112),
            digest_salt: array(bytes, 132),
            digest_iterations: BE::read_u32(&bytes[164..]),
            uuid: array(bytes, 168),
            slots: slots(bytes)?,
        };
        luks.check()?;
        Ok(luks)
    }

    fn check(&self) -> Result<()> {
        if !(1..=MAX_KEY).contains(&self.key_bytes) {
            return Err(field("key-bytes", self.key_bytes, "must be from 1 to 128"));
        }
        if self.digest_iterations == 0 {
            return Err(field("mk-digest-iterations", 0, "must be at least 1"));
        }
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            if slot.iterations == 0 {
                return Err(slot_problem(index, "iterations are 0"));
            }
            self.check_place(index)?;
        }
        Ok(())
    }

    /// Checks that a slot's key material lies behind the header, in front of the payload, and not over another's.
    pub(crate) fn check_place(&self, index: usize) -> Result<()> {
        let slot = &self.slots[index];
        if !(1..=MAX_STRIPES).contains(&slot.stripes) {
            let problem = format!(
                "stripes are {}, and must be from 1 to {MAX_STRIPES}",
                slot.stripes
            );
            return Err(slot_problem(index, problem));
        }
        let place = self.material_u64(index);
        if place.start < HEADER_LEN as u64 {
            let problem = format!("key material is at byte {}, in the header", place.start);
            return Err(slot_problem(index, problem));
        }
        if place.end > self.payload_offset() {
            let problem = format!(
                "key material ends at byte {}, and the payload starts at {}",
                place.end,
                self.payload_offset()
            );
            return Err(slot_problem(index, problem));
        }
        for (other, _) in self.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
            let others = self.material_u64(other);
            if other != index && place.start < others.end && others.start < place.end {
                return Err(slot_problem(
                    index,
                    format!("key material lies over that of slot {other}"),
                ));
            }
        }
        Ok(())
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..6].copy_from_slice(&MAGIC);
        BE::write_u16(&mut bytes[6..], 1);
        for (at, name) in [
            (8, &self.cipher_name),
            (40, &self.cipher_mode),
            (72, &self.hash_spec),
        ] {
            bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        }
        BE::write_u32(&mut bytes[104..], self.payload_offset);
        BE::write_u32(&mut bytes[108..], self.key_bytes);
        bytes[112..132].copy_from_slice(&self.digest);
        bytes[132..164].copy_from_slice(&self.digest_salt);
        BE::write_u32(&mut bytes[164..], self.digest_iterations);
        bytes[168..208].copy_from_slice(&self.uuid);
        for (slot, out) in self
            .slots
            .iter()
            .zip(bytes[SLOTS_AT..].chunks_exact_mut(SLOT_LEN))
        {
            BE::write_u32(&mut out[0..], if slot.active { ENABLED } else { DISABLED });
            BE::write_u32(&mut out[4..], slot.iterations);
            out[8..40].copy_from_slice(&slot.salt);
            BE::write_u32(&mut out[40..], slot.material);
            BE::write_u32(&mut out[44..], slot.stripes);
        }
        bytes
    }

    /// How the data is encrypted.
    ///
    /// # Errors
    /// `Unsupported` for a cipher, mode, key length or generator of initialisation vectors that is not known here.
    pub fn spec(&self) -> Result<CipherSpec> {
        CipherSpec::from_luks(&self.cipher_name, &self.cipher_mode, self.key_bytes)
    }

    /// The hash that keys are derived with.
    ///
    /// # Errors
    /// `Unsupported` for one that is not known here.
    pub fn hash(&self) -> Result<Hash> {
        Hash::named(&self.hash_spec)
    }

    /// Names of cipher, mode with initialisation vectors, and hash, as they are in the header: for showing them, known or
    /// not.
    pub fn names(&self) -> [&str; 3] {
        [&self.cipher_name, &self.cipher_mode, &self.hash_spec]
    }

    /// Length of the master key in bytes.
    pub fn key_len(&self) -> usize {
        self.key_bytes as usize
    }

    /// First byte behind header and key material: how much of them there is to keep.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload_offset) * SECTOR as u64
    }

    /// Rounds of hashing between the master key and its digest.
    pub fn digest_iterations(&self) -> u32 {
        self.digest_iterations
    }

    /// The UUID, as text.
    pub fn uuid(&self) -> String {
        let end = self
            .uuid
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.uuid.len());
        String::from_utf8_lossy(&self.uuid[..end]).into_owned()
    }

    /// The key slots.
    pub fn slots(&self) -> &[KeySlot; SLOTS] {
        &self.slots
    }

    /// Where the key material of a slot is, in bytes from the start of the header.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn material(&self, slot: usize) -> Range<usize> {
        let place = self.material_u64(slot);
        place.start as usize..place.end as usize
    }

    fn material_u64(&self, slot: usize) -> Range<u64> {
        let slot = &self.slots[slot];
        let len = u64::from(self.key_bytes) * u64::from(slot.stripes);
        slot.offset()..slot.offset() + len.next_multiple_of(SECTOR as u64)
    }

    /// Where slots and payload of a new header go: first sectors. As QEMU and cryptsetup place them.
    pub(crate) fn places(key_len: usize) -> ([u32; SLOTS], u32) {
        let material = (key_len as u64 * u64::from(STRIPES)).div_ceil(SECTOR as u64);
        let each = material.next_multiple_of(ALIGNMENT) as u32;
        let place = |index: u32| ALIGNMENT as u32 + index * each;
        let mut places = [0; SLOTS];
        for (index, out) in (0..).zip(&mut places) {
            *out = place(index);
        }
        (places, place(SLOTS as u32))
    }
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn field(name: &str, value: u32, rule: &str) -> Error {
    corrupt(format!("LUKS header field {name} is {value}, but {rule}"))
}

fn slot_problem(index: usize, problem: impl std::fmt::Display) -> Error {
    corrupt(format!("LUKS key slot {index}: {problem}"))
}

fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// A name in 32 bytes, with a NUL behind it.
fn name(bytes: &[u8; HEADER_LEN], at: usize, field: &str) -> Result<String> {
    let stored = &bytes[at..at + 32];
    let end = stored.iter().position(|byte| *byte == 0);
    let text = end.and_then(|end| str::from_utf8(&stored[..end]).ok());
    text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
        .map(ToOwned::to_owned)
        .ok_or_else(|| {
            let shown = String::from_utf8_lossy(stored);
            let problem = format!(
                "LUKS header field {field} is \"{}\", which is no name",
                escape(&shown)
            );
            corrupt(problem)
        })
}

fn slots(bytes: &[u8; HEADER_LEN]) -> Result<[KeySlot; SLOTS]> {
    let mut slots = [KeySlot {
        active: false,
        iterations: 0,
        salt: [0; SALT],
        material: 0,
        stripes: 0,
    }; SLOTS];
    for (index, slot) in slots.iter_mut().enumerate() {
        let at = SLOTS_AT + index * SLOT_LEN;
        *slot = KeySlot {
            active: match BE::read_u32(&bytes[at..]) {
                ENABLED => true,
                DISABLED => false,
                other => {
                    return Err(slot_problem(
                        index,
                        format!("its state is {other:#010x}, which has no meaning"),
                    ));
                }
            },
            iterations: BE::read_u32(&bytes[at + 4..]),
            salt: array(bytes, at + 8),
            material: BE::read_u32(&bytes[at + 40..]),
            stripes: BE::read_u32(&bytes[at + 44..]),
        };
    }
    Ok(slots)
}

#[cfg(test)]
mod tests;
