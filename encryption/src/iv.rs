//! Initialisation vectors: what makes equal sectors at different places unlike.

use crate::mode::{BLOCK, Block, BlockCipher};

/// How the initialisation vector of a sector follows from its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IvGenerator {
    /// The low 32 bits of the number: it repeats every 2 TiB.
    Plain,
    /// The number.
    #[default]
    Plain64,
    /// The number, encrypted with the SHA-256 of the key.
    Essiv,
}

impl IvGenerator {
    /// The name as on QEMU's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv => "essiv",
        }
    }
}

/// A generator with the key that it may need.
pub(crate) enum Ivs {
    Plain,
    Plain64,
    Essiv(Box<dyn EncryptBlocks>),
}

pub(crate) trait EncryptBlocks: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
}

impl<C: BlockCipher> EncryptBlocks for C {
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }
}

impl Ivs {
    /// Fills in those of sectors that follow each other.
    pub(crate) fn fill(&self, first: u64, ivs: &mut [Block]) {
        let mask = match self {
            Self::Plain => u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => u64::MAX,
        };
        for (at, iv) in (0..).zip(&mut *ivs) {
            let number = first.wrapping_add(at) & mask;
            *iv = Block::from([0; BLOCK]);
            iv[..8].copy_from_slice(&number.to_le_bytes());
        }
        if let Self::Essiv(cipher) = self {
            cipher.encrypt(ivs);
        }
    }
}
