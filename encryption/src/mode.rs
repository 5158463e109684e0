//! Modes of a cipher: how the blocks of a sector are chained.
//!
//! Processors have instructions that work on eight blocks at once. XTS and decrypting CBC give them those of a sector;
//! encrypting CBC, where each block needs the one before, those at the same place of several sectors.

use cipher::consts::U16;
use cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use crate::cipher::{BATCH, SECTOR};

/// Bytes of a cipher's block.
pub(crate) const BLOCK: usize = 16;

/// Blocks of a sector.
const BLOCKS: usize = SECTOR / BLOCK;

/// One block.
pub(crate) type Block = Array<u8, U16>;

/// How the blocks of a sector are chained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// XTS (IEEE 1619), with a key for the data and one for the tweaks.
    #[default]
    Xts,
    /// Cipher block chaining: each block depends on those in front of it.
    Cbc,
    /// Counters, encrypted, are added to the data: whoever has two states of a sector has their difference. For
    /// disks that are there: they are read and written, and made only where qemu-img would make them.
    Ctr,
    /// Each block by itself: equal blocks look equal, wherever they are. For disks that are there, as [`Mode::Ctr`].
    Ecb,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Xts, Self::Cbc, Self::Ctr, Self::Ecb];

    /// Whether it protects a disk that is written to again and again.
    pub fn protects(self) -> bool {
        matches!(self, Self::Xts | Self::Cbc)
    }

    /// The name as in a header and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xts => "xts",
            Self::Cbc => "cbc",
            Self::Ctr => "ctr",
            Self::Ecb => "ecb",
        }
    }

    /// How many keys of the cipher's length it takes.
    pub(crate) fn keys(self) -> usize {
        match self {
            Self::Xts => 2,
            Self::Cbc | Self::Ctr | Self::Ecb => 1,
        }
    }
}

/// A cipher with blocks of 128 bits.
pub(crate) trait BlockCipher:
    BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync
{
}

impl<C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> BlockCipher
    for C
{
}

/// A cipher in a mode, with its keys.
pub(crate) trait Sectors: Send + Sync {
    /// Encrypts sectors in place, as many as there are initialisation vectors.
    fn encrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]);
    /// Decrypts sectors in place, as many as there are initialisation vectors.
    fn decrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]);
    /// Works on initialisation vectors until they are what [`encrypt`](Self::encrypt) is given.
    fn prepare(&self, ivs: &mut [Block]);
}

pub(crate) struct Xts<C> {
    pub(crate) data: C,
    pub(crate) tweak: C,
}

impl<C: BlockCipher> Sectors for Xts<C> {
    fn encrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for (iv, sector) in ivs.iter().zip(sectors) {
            let tweaks = tweaks(*iv);
            let blocks = blocks_of(sector);
            add(blocks, &tweaks);
            self.data.encrypt_blocks(blocks);
            add(blocks, &tweaks);
        }
    }

    fn decrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for (iv, sector) in ivs.iter().zip(sectors) {
            let tweaks = tweaks(*iv);
            let blocks = blocks_of(sector);
            add(blocks, &tweaks);
            self.data.decrypt_blocks(blocks);
            add(blocks, &tweaks);
        }
    }

    fn prepare(&self, ivs: &mut [Block]) {
        self.tweak.encrypt_blocks(ivs);
    }
}

/// What is added to each block: the first, multiplied by x from block to block in the field of 2^128 elements.
fn tweaks(first: Block) -> [u128; BLOCKS] {
    let mut tweak = u128::from_le_bytes(first.0);
    [(); BLOCKS].map(|()| {
        let this = tweak;
        tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        this
    })
}

fn add(blocks: &mut [Block], tweaks: &[u128; BLOCKS]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        block.0 = (u128::from_ne_bytes(block.0) ^ tweak.to_le()).to_ne_bytes();
    }
}

fn blocks_of(sector: &mut [u8]) -> &mut [Block] {
    Block::slice_as_chunks_mut(sector).0
}

pub(crate) struct Cbc<C>(pub(crate) C);

impl<C: BlockCipher> Sectors for Cbc<C> {
    fn encrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        let mut column = [Block::default(); BATCH];
        for (ivs, sectors) in ivs.chunks(BATCH).zip(sectors.chunks_mut(BATCH)) {
            let column = &mut column[..ivs.len()];
            column.copy_from_slice(ivs);
            for at in 0..BLOCKS {
                for (block, sector) in column.iter_mut().zip(&mut *sectors) {
                    *block = xor(*block, blocks_of(sector)[at]);
                }
                self.0.encrypt_blocks(column);
                for (block, sector) in column.iter().zip(&mut *sectors) {
                    blocks_of(sector)[at] = *block;
                }
            }
        }
    }

    fn decrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for (iv, sector) in ivs.iter().zip(sectors) {
            let mut encrypted = *sector;
            let blocks = blocks_of(sector);
            self.0.decrypt_blocks(blocks);
            let before = std::iter::once(iv).chain(blocks_of(&mut encrypted).iter());
            for (block, before) in blocks.iter_mut().zip(before) {
                *block = xor(*block, *before);
            }
        }
    }

    fn prepare(&self, _: &mut [Block]) {}
}

/// The initialisation vector counts up from block to block, as a number whose last byte is the lowest.
pub(crate) struct Ctr<C>(pub(crate) C);

impl<C: BlockCipher> Ctr<C> {
    fn add_counters(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for (iv, sector) in ivs.iter().zip(sectors) {
            let mut counter = u128::from_be_bytes(iv.0);
            let mut stream = [(); BLOCKS].map(|()| {
                let block = Array(counter.to_be_bytes());
                counter = counter.wrapping_add(1);
                block
            });
            self.0.encrypt_blocks(&mut stream);
            for (block, stream) in blocks_of(sector).iter_mut().zip(stream) {
                *block = xor(*block, stream);
            }
        }
    }
}

impl<C: BlockCipher> Sectors for Ctr<C> {
    fn encrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        self.add_counters(ivs, sectors);
    }

    fn decrypt(&self, ivs: &[Block], sectors: &mut [[u8; SECTOR]]) {
        self.add_counters(ivs, sectors);
    }

    fn prepare(&self, _: &mut [Block]) {}
}

pub(crate) struct Ecb<C>(pub(crate) C);

impl<C: BlockCipher> Sectors for Ecb<C> {
    fn encrypt(&self, _: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for sector in sectors {
            self.0.encrypt_blocks(blocks_of(sector));
        }
    }

    fn decrypt(&self, _: &[Block], sectors: &mut [[u8; SECTOR]]) {
        for sector in sectors {
            self.0.decrypt_blocks(blocks_of(sector));
        }
    }

    fn prepare(&self, _: &mut [Block]) {}
}

fn xor(a: Block, b: Block) -> Block {
    Array((u128::from_ne_bytes(a.0) ^ u128::from_ne_bytes(b.0)).to_ne_bytes())
}
