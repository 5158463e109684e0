//! Hashes of names ("Hash Tree Directories"). Half MD4 is the compression function of MD4 (RFC 1320) with half of the
//! steps in each round, over 32 bytes of the name at a time. Older filesystems may have others.

/// The state that hashes start from, MD4's, for filesystems without a seed.
const START: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];

/// Round by round: what is added to every word, the order of words, and the shifts.
const ROUNDS: [(u32, [usize; 8], [u32; 4]); 3] = [
    (0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
    (0x5A82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
    (0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
];

/// What reading a directory calls its end; no name may have it for a hash.
const END: u32 = 0xFFFF_FFFE;

/// Which hash an index is sorted by; the discriminant is how its root and the superblock say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashVersion {
    /// A sum of products, of the first indexes.
    Legacy = 0,
    /// Half of MD4, which all filesystems of today have.
    HalfMd4 = 1,
    /// The Tiny Encryption Algorithm.
    Tea = 2,
}

/// The hash of a filesystem's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameHash {
    /// Which hash it is.
    pub version: HashVersion,
    /// Whether bytes of a name count as signed, as the superblock says.
    pub signed: bool,
    /// The filesystem's seed.
    pub seed: [u8; 16],
}

impl NameHash {
    /// That of filesystems made here.
    pub fn half_md4(seed: [u8; 16]) -> Self {
        Self {
            version: HashVersion::HalfMd4,
            signed: true,
            seed,
        }
    }

    /// The hash of a name. The lowest bit is clear; indexes use it.
    pub fn of(&self, name: &[u8]) -> u32 {
        let hash = match self.version {
            HashVersion::Legacy => self.legacy(name),
            HashVersion::HalfMd4 => self.mixed::<8>(name, half_md4)[1],
            HashVersion::Tea => self.mixed::<4>(name, tea)[0],
        };
        match hash & !1 {
            END => END - 2,
            hash => hash,
        }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
        for &byte in name {
            let mut hash = before.wrapping_add(last ^ self.number(byte).wrapping_mul(7_152_373));
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7FFF_FFFF);
            }
            (last, before) = (hash, last);
        }
        last << 1
    }

    /// The state after `WORDS` words of the name at a time.
    fn mixed<const WORDS: usize>(&self, name: &[u8], mix: fn(&mut [u32; 4], &[u32; WORDS])) -> [u32; 4] {
        let mut state = START;
        if self.seed != [0; 16] {
            for (word, bytes) in state.iter_mut().zip(self.seed.chunks_exact(4)) {
                *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
        }
        for start in (0..name.len()).step_by(4 * WORDS) {
            mix(&mut state, &self.words(&name[start..]));
        }
        state
    }

    /// The first bytes of what is left of a name, as words with the first byte on top. Where there are fewer, the
    /// rest is filled with the number of bytes left.
    fn words<const WORDS: usize>(&self, rest: &[u8]) -> [u32; WORDS] {
        let fill = u32::from(rest.len() as u8) * 0x0101_0101;
        let mut words = [fill; WORDS];
        for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
            for &byte in bytes {
                // Sign extension reaches into the bytes before.
                *word = (*word << 8).wrapping_add(self.number(byte));
            }
        }
        words
    }

    fn number(&self, byte: u8) -> u32 {
        if self.signed {
            i32::from(byte.cast_signed()) as u32
        } else {
            byte.into()
        }
    }
}

fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    let [mut a, mut b, mut c, mut d] = *state;
    for (round, (constant, order, shifts)) in ROUNDS.iter().enumerate() {
        for (step, &word) in order.iter().enumerate() {
            let mixed = match round {
                0 => (b & c) | (!b & d),
                1 => (b & c) | (b & d) | (c & d),
                _ => b ^ c ^ d,
            };
            let sum = a
                .wrapping_add(mixed)
                .wrapping_add(words[word])
                .wrapping_add(*constant);
            // Every step updates the next register backwards, so that they turn by one.
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, change) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(change);
    }
}

fn tea(state: &mut [u32; 4], words: &[u32; 4]) {
    let [mut a, mut b, ..] = *state;
    let mut sum = 0_u32;
    let mixed = |half: u32, sum: u32, key: &[u32]| {
        let above = (half << 4).wrapping_add(key[0]);
        let below = (half >> 5).wrapping_add(key[1]);
        above ^ half.wrapping_add(sum) ^ below
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9E37_79B9);
        a = a.wrapping_add(mixed(b, sum, &words[..2]));
        b = b.wrapping_add(mixed(a, sum, &words[2..]));
    }
    state[0] = state[0].wrapping_add(a);
    state[1] = state[1].wrapping_add(b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fill_counts_what_is_left_of_the_name() {
        let hash = NameHash::half_md4([0; 16]);
        assert_eq!(hash.words::<8>(b"abc")[..2], [0x0361_6263, 0x0303_0303]);
        assert_eq!(hash.words::<8>(&[b'a'; 255])[0], 0x6161_6161);
        // 0xff is -1.
        assert_eq!(hash.words::<8>(b"\xff")[0], 0x0101_00FF);
        let hash = NameHash {
            signed: false,
            ..hash
        };
        assert_eq!(hash.words::<8>(b"\xff")[0], 0x0101_01FF);
    }

    #[test]
    fn the_lowest_bit_is_clear() {
        for byte in 0..=255 {
            assert_eq!(NameHash::half_md4([1; 16]).of(&[byte]) & 1, 0);
        }
    }
}
