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
    Essiv(Box<dyn EncryptBlock>),
}

pub(crate) trait EncryptBlock: Send + Sync {
    fn encrypt(&self, block: &mut Block);
}

impl<C: BlockCipher> EncryptBlock for C {
    fn encrypt(&self, block: &mut Block) {
        self.encrypt_block(block);
    }
}

impl Ivs {
    pub(crate) fn of(&self, sector: u64) -> Block {
        let number = match self {
            Self::Plain => sector & u64::from(u32::MAX),
            _ => sector,
        };
        let mut iv = Block::from([0; BLOCK]);
        iv[..8].copy_from_slice(&number.to_le_bytes());
        if let Self::Essiv(cipher) = self {
            cipher.encrypt(&mut iv);
        }
        iv
    }
}
