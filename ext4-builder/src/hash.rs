//! Hashes of names ("Hash Tree Directories"): half MD4, the compression function of MD4 (RFC 1320) with half of the
//! steps in each round, over 32 bytes of the name at a time.

/// The state that MD4 starts from, for filesystems without a seed.
const MD4_START: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];

/// Round by round: what is added to every word, the order of words, and the shifts.
const ROUNDS: [(u32, [usize; 8], [u32; 4]); 3] = [
    (0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
    (0x5A82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
    (0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
];

/// What reading a directory calls its end; no name may have it for a hash.
const END: u32 = 0xFFFF_FFFE;

/// Bytes that go into a step.
const CHUNK: usize = 32;

/// The hash of a name under a filesystem's seed. Bytes of a name count as signed: the superblock has to say so. The
/// lowest bit is clear; indexes use it.
pub(crate) fn half_md4(name: &[u8], seed: &[u8; 16]) -> u32 {
    let mut state = MD4_START;
    if seed.iter().any(|&byte| byte != 0) {
        for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
    }
    for start in (0..name.len()).step_by(CHUNK) {
        compress(&mut state, &words(&name[start..]));
    }
    match state[1] & !1 {
        END => END - 2,
        hash => hash,
    }
}

/// The first 32 bytes of what is left of a name, as words with the first byte on top. Where there are fewer, the
/// rest is filled with the number of bytes left.
fn words(rest: &[u8]) -> [u32; 8] {
    let fill = u32::from(rest.len() as u8) * 0x0101_0101;
    let mut words = [fill; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        for &byte in bytes {
            // Sign extension reaches into the bytes before.
            let signed = i32::from(byte.cast_signed()) as u32;
            *word = (*word << 8).wrapping_add(signed);
        }
    }
    words
}

fn compress(state: &mut [u32; 4], words: &[u32; 8]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fill_counts_what_is_left_of_the_name() {
        assert_eq!(words(b"abc")[..2], [0x0361_6263, 0x0303_0303]);
        assert_eq!(words(&[b'a'; 255])[0], 0x6161_6161);
        // 0xff is -1.
        assert_eq!(words(b"\xff")[0], 0x0101_00FF);
    }

    #[test]
    fn the_lowest_bit_is_clear() {
        for byte in 0..=255 {
            assert_eq!(half_md4(&[byte], &[1; 16]) & 1, 0);
        }
    }
}
