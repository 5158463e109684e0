//! Disk encryption as QEMU and cryptsetup do it: sector ciphers, and the header of LUKS version 1 that keeps their key.
//!
//! [`Image`] is a disk in LUKS's own form, open. Formats that keep a LUKS header somewhere inside use its parts: [`KeyArea`] for the
//! header, and [`SectorIo`] for the data. [`Luks`] is the header itself, and does no I/O: a caller reads the header and the key
//! material, and writes what is to be written:
//!
//! ```
//! use encryption::{Iterations, Luks, LuksOptions};
//!
//! let options = LuksOptions { iterations: Iterations::Exactly(1000), ..LuksOptions::default() };
//! let (luks, mut area) = Luks::format(&options, b"correct horse")?;
//! assert_eq!(area.len() as u64, luks.payload_offset());
//!
//! // Somebody else, later:
//! let luks = Luks::parse(&area)?;
//! let material = |slot| Ok(area[luks.material(slot)].to_vec());
//! let key = luks.unlock(b"correct horse", material)?.expect("it is the right passphrase");
//! let cipher = luks.cipher(&key)?;
//! let mut sector = [7; 512];
//! cipher.encrypt(40, &mut sector);
//! assert_ne!(sector, [7; 512]);
//! cipher.decrypt(40, &mut sector);
//! assert_eq!(sector, [7; 512]);
//! # area.clear();
//! # Ok::<(), block::Error>(())
//! ```
//!
//! # What protects what
//!
//! Data is encrypted with a *master key* that was chosen at random once. Each of eight *key slots* holds it, encrypted with a
//! key that is derived from a passphrase by many rounds of hashing ([`Hash::pbkdf2`]), and blown up to 4000 times its length
//! (`af.rs`) so that wiping any part of that wipes all of it. So passphrases come and go, and the data stays as it is. Whether
//! a key that comes out of a slot is the master key is told by its digest in the header.
//!
//! Sectors of 512 bytes are encrypted each by itself, with an initialisation vector that follows from its number. There is
//! nothing that would tell whether a sector was changed: that is what this kind of encryption does not do.
//!
//! # Memory
//!
//! Keys, key schedules and what is derived on the way to them are wiped when they are dropped. Buffers of data are not:
//! whoever can read those can read the disk.
//!
//! # What there is
//!
//! AES, Serpent and Twofish with the modes `xts` and `cbc`, initialisation vectors `plain`, `plain64` and `essiv` (with
//! SHA-256, the only hash whose length is a key's), and the hashes SHA-1, SHA-2 and RIPEMD-160. The modes `ctr` and `ecb` are
//! there for disks that exist: they do not protect one ([`Mode::protects`]). What else a header may name is refused by name: CAST5 and
//! 3DES, since their blocks of 64 bits protect no disk either, SM4, MD5 and SM3, and the other generators of cryptsetup's (`benbi`,
//! `lmk`, `tcw`).

mod af;
mod cipher;
mod hash;
mod image;
mod iv;
mod key_area;
mod luks;
mod mode;
mod sector_io;
mod slots;

pub use cipher::{Cipher, CipherSpec, SECTOR, SectorCipher};
pub use hash::Hash;
pub use image::{Image, LuksFormat, create, disk_size, read_luks};
pub use iv::IvGenerator;
pub use key_area::{KeyArea, KeySlots};
pub use luks::{HEADER_LEN, KeySlot, Luks, SLOTS, STRIPES};
pub use mode::Mode;
pub use sector_io::{SectorIo, read_in_sectors};
pub use slots::{Iterations, LuksOptions, MasterKey, NewSlot};
