//! Finding zeros.

/// Bytes looked at between two decisions: wide enough for vector registers, narrow enough to stop early.
const STRIDE: usize = 256;

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Real data mostly shows itself at once.
    if bytes.first().is_some_and(|byte| *byte != 0) {
        return false;
    }
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    // An OR over a fixed length has no branch inside and becomes vector code.
    strides
        .iter()
        .all(|stride| stride.iter().fold(0, |sum, byte| sum | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_found() {
        for len in [0, 1, 7, 255, 256, 257, 511, 4096, 4099] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len} zeros");
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
