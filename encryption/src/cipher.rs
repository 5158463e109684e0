//! A disk's cipher: which one, in which mode, and with a key.

use std::fmt::{self, Debug};

use aes::{Aes128, Aes192, Aes256};
use block::{Error, Passphrase, Result, escape};
use cipher::KeyInit;
use serpent::Serpent;
use twofish::Twofish;
use zeroize::Zeroizing;

use crate::hash::Hash;
use crate::iv::{EncryptBlocks, IvGenerator, Ivs};
use crate::mode::{BLOCK, Block, BlockCipher, Cbc, Ctr, Ecb, Mode, Sectors, Xts};

/// Bytes of a sector: what is encrypted by itself.
pub const SECTOR: usize = 512;

/// Sectors that are worked on at once.
pub(crate) const BATCH: usize = 8;

/// A cipher with the length of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cipher {
    /// AES with a key of 128 bits.
    Aes128,
    /// AES with a key of 192 bits.
    Aes192,
    /// AES with a key of 256 bits.
    #[default]
    Aes256,
    /// Serpent with a key of 128 bits.
    Serpent128,
    /// Serpent with a key of 192 bits.
    Serpent192,
    /// Serpent with a key of 256 bits.
    Serpent256,
    /// Twofish with a key of 128 bits.
    Twofish128,
    /// Twofish with a key of 192 bits.
    Twofish192,
    /// Twofish with a key of 256 bits.
    Twofish256,
}

impl Cipher {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::Serpent128,
        Self::Serpent192,
        Self::Serpent256,
        Self::Twofish128,
        Self::Twofish192,
        Self::Twofish256,
    ];

    /// The name as on QEMU's command line: with the length of the key in bits.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::Serpent128 => "serpent-128",
            Self::Serpent192 => "serpent-192",
            Self::Serpent256 => "serpent-256",
            Self::Twofish128 => "twofish-128",
            Self::Twofish192 => "twofish-192",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// The cipher of this name.
    ///
    /// # Errors
    /// `InvalidInput`, naming those that there are.
    pub fn named(name: &str) -> Result<Self> {
        named(name, "cipher", &Self::ALL, Self::name)
    }

    /// The name without the length of the key, as in a header.
    pub(crate) fn family(self) -> &'static str {
        self.name().split('-').next().unwrap_or_default()
    }

    /// Length of a key in bytes.
    pub(crate) fn key_len(self) -> usize {
        match self {
            Self::Aes128 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }
}

/// The one of `all` that has this name.
fn named<T: Copy, const N: usize>(
    name: &str,
    what: &str,
    all: &[T; N],
    name_of: fn(T) -> &'static str,
) -> Result<T> {
    all.iter()
        .copied()
        .find(|candidate| name_of(*candidate) == name)
        .ok_or_else(|| {
            let message = format!("the {what} \"{}\" is not supported", escape(name));
            let hint = format!("there are {}", all.map(name_of).join(", "));
            Error::invalid(message).with_hint(hint)
        })
}

impl Mode {
    /// The mode of this name.
    ///
    /// # Errors
    /// `InvalidInput`, naming those that there are.
    pub fn named(name: &str) -> Result<Self> {
        named(name, "cipher mode", &Self::ALL, Self::name)
    }
}

impl IvGenerator {
    /// The generator of this name.
    ///
    /// # Errors
    /// `InvalidInput`, naming those that there are.
    pub fn named(name: &str) -> Result<Self> {
        let all = [Self::Plain, Self::Plain64, Self::Essiv];
        named(name, "generator of initialisation vectors", &all, Self::name)
    }
}

/// How sectors are encrypted, but for the key. The default is LUKS's and QEMU's: AES-256 in XTS mode with `plain64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CipherSpec {
    /// The cipher.
    pub cipher: Cipher,
    /// Its mode.
    pub mode: Mode,
    /// Initialisation vectors.
    pub iv: IvGenerator,
}

impl CipherSpec {
    /// Length of a key in bytes: of both keys in XTS mode.
    pub fn key_len(self) -> usize {
        self.cipher.key_len() * self.mode.keys()
    }

    /// What a LUKS header calls it: "cipher-name" and "cipher-mode".
    pub(crate) fn luks_names(self) -> (&'static str, String) {
        let hash = match self.iv {
            IvGenerator::Essiv => ":sha256",
            _ => "",
        };
        let mode = format!("{}-{}{hash}", self.mode.name(), self.iv.name());
        (self.cipher.family(), mode)
    }

    /// What a LUKS header with these names and keys of so many bytes means.
    pub(crate) fn from_luks(cipher_name: &str, cipher_mode: &str, key_bytes: u32) -> Result<Self> {
        let unsupported = |what: &str| {
            let message = format!(
                "{what} \"{}-{}\" with a key of {key_bytes} bytes is not supported",
                escape(cipher_name),
                escape(cipher_mode)
            );
            Error::unsupported(message).with_hint(
                "there are aes, serpent and twofish with xts, cbc, ctr or ecb, and plain, plain64 or essiv:sha256",
            )
        };
        let (mode, iv) = match cipher_mode.split_once('-') {
            Some(names) => names,
            // It makes no difference there.
            None if cipher_mode == Mode::Ecb.name() => (cipher_mode, IvGenerator::Plain64.name()),
            None => return Err(unsupported("the cipher")),
        };
        let iv = match iv {
            "essiv:sha256" => IvGenerator::Essiv,
            "plain" => IvGenerator::Plain,
            "plain64" => IvGenerator::Plain64,
            _ => return Err(unsupported("the initialisation vector of")),
        };
        let mode = Mode::named(mode).map_err(|_| unsupported("the mode of"))?;
        let fits = |cipher: &Cipher| {
            cipher.family() == cipher_name && cipher.key_len() * mode.keys() == key_bytes as usize
        };
        let cipher = Cipher::ALL.into_iter().find(fits);
        let cipher = cipher.ok_or_else(|| unsupported("the cipher"))?;
        Ok(Self { cipher, mode, iv })
    }
}

/// A cipher with its key: encrypts and decrypts sectors in place. Any number of threads may use it at once.
pub struct SectorCipher {
    sectors: Box<dyn Sectors>,
    ivs: Ivs,
}

impl Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SectorCipher(..)")
    }
}

impl SectorCipher {
    /// The cipher with a key.
    ///
    /// # Errors
    /// `InvalidInput` for a key of another length than [`CipherSpec::key_len`].
    pub fn new(spec: CipherSpec, key: &[u8]) -> Result<Self> {
        let ivs = match spec.iv {
            IvGenerator::Plain => Ivs::Plain,
            IvGenerator::Plain64 => Ivs::Plain64,
            IvGenerator::Essiv => Ivs::Essiv(essiv(spec.cipher, &Hash::Sha256.digest(&[key]))?),
        };
        let sectors = match spec.cipher {
            Cipher::Aes128 => sectors::<Aes128>(spec, key),
            Cipher::Aes192 => sectors::<Aes192>(spec, key),
            Cipher::Aes256 => sectors::<Aes256>(spec, key),
            Cipher::Serpent128 | Cipher::Serpent192 | Cipher::Serpent256 => sectors::<Serpent>(spec, key),
            Cipher::Twofish128 | Cipher::Twofish192 | Cipher::Twofish256 => sectors::<Twofish>(spec, key),
        };
        Ok(Self {
            sectors: sectors?,
            ivs,
        })
    }

    /// The encryption of old qcow2 images: AES-128 in CBC mode with `plain64`, and for a key the first 16 bytes of the
    /// passphrase itself, or the passphrase and zeros. It protects badly, and tells nobody whether a passphrase is right.
    pub fn legacy_aes(passphrase: &Passphrase) -> Self {
        let mut key = Zeroizing::new([0; BLOCK]);
        let len = passphrase.as_bytes().len().min(BLOCK);
        key[..len].copy_from_slice(&passphrase.as_bytes()[..len]);
        Self {
            sectors: Box::new(Cbc(Aes128::new(&(*key).into()))),
            ivs: Ivs::Plain64,
        }
    }

    /// Encrypts whole sectors in place, the first of which is number `first`.
    ///
    /// # Panics
    /// If `data` is no whole number of sectors.
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.each(first, data, |ivs, sectors| self.sectors.encrypt(ivs, sectors));
    }

    /// Decrypts whole sectors in place, the first of which is number `first`.
    ///
    /// # Panics
    /// If `data` is no whole number of sectors.
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.each(first, data, |ivs, sectors| self.sectors.decrypt(ivs, sectors));
    }

    #[inline]
    fn each(&self, first: u64, data: &mut [u8], work: impl Fn(&[Block], &mut [[u8; SECTOR]])) {
        let (sectors, rest) = data.as_chunks_mut::<SECTOR>();
        assert!(rest.is_empty(), "a sector is encrypted as a whole");
        let mut number = first;
        for batch in sectors.chunks_mut(BATCH) {
            let mut ivs = [Block::from([0; BLOCK]); BATCH];
            let ivs = &mut ivs[..batch.len()];
            self.ivs.fill(number, ivs);
            number = number.wrapping_add(ivs.len() as u64);
            self.sectors.prepare(ivs);
            work(ivs, batch);
        }
    }
}

fn sectors<C: BlockCipher + KeyInit + 'static>(spec: CipherSpec, key: &[u8]) -> Result<Box<dyn Sectors>> {
    if key.len() != spec.key_len() {
        return Err(wrong_length(spec, key.len()));
    }
    let schedule = |key: &[u8]| C::new_from_slice(key).map_err(|_| wrong_length(spec, key.len()));
    Ok(match spec.mode {
        Mode::Cbc => Box::new(Cbc(schedule(key)?)),
        Mode::Ctr => Box::new(Ctr(schedule(key)?)),
        Mode::Ecb => Box::new(Ecb(schedule(key)?)),
        Mode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            Box::new(Xts {
                data: schedule(data)?,
                tweak: schedule(tweak)?,
            })
        }
    })
}

/// The cipher's family with a key as long as the digest.
fn essiv(cipher: Cipher, digest: &[u8]) -> Result<Box<dyn EncryptBlocks>> {
    let wrong = |_| Error::invalid("the digest is no key of the cipher");
    Ok(match cipher {
        Cipher::Aes128 | Cipher::Aes192 | Cipher::Aes256 => {
            Box::new(Aes256::new_from_slice(digest).map_err(wrong)?)
        }
        Cipher::Serpent128 | Cipher::Serpent192 | Cipher::Serpent256 => {
            Box::new(Serpent::new_from_slice(digest).map_err(wrong)?)
        }
        Cipher::Twofish128 | Cipher::Twofish192 | Cipher::Twofish256 => {
            Box::new(Twofish::new_from_slice(digest).map_err(wrong)?)
        }
    })
}

fn wrong_length(spec: CipherSpec, len: usize) -> Error {
    Error::invalid(format!(
        "a key of {len} bytes for {} in {} mode, which takes {}",
        spec.cipher.name(),
        spec.mode.name(),
        spec.key_len()
    ))
}

#[cfg(test)]
mod tests;
