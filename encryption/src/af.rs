//! The anti-forensic splitter: a key blown up so that losing any part of it loses the key ("anti-forensic splitting" in the
//! LUKS on-disk format).
//!
//! All stripes but the last are random. The last is the key, exclusive-or a hash over all the others: without one of
//! them, nothing is known of it.

use block::Result;
use zeroize::Zeroizing;

use crate::hash::Hash;
use crate::slots::random;

/// Splits `key` into `stripes` stripes, at least one.
pub(crate) fn split(key: &[u8], stripes: usize, hash: Hash) -> Result<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(vec![0; key.len() * stripes]);
    let last = key.len() * (stripes - 1);
    random(&mut out[..last])?;
    let sum = diffused(&out[..last], key.len(), hash);
    for ((out, sum), key) in out[last..].iter_mut().zip(sum.iter()).zip(key) {
        *out = sum ^ key;
    }
    Ok(out)
}

/// The key of `len` bytes that was split into `stripes`.
pub(crate) fn merge(stripes: &[u8], len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let last = stripes.len() - len;
    let mut key = diffused(&stripes[..last], len, hash);
    for (key, stripe) in key.iter_mut().zip(&stripes[last..]) {
        *key ^= stripe;
    }
    key
}

/// What all the stripes but the last make together.
fn diffused(stripes: &[u8], len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        for (sum, byte) in sum.iter_mut().zip(stripe) {
            *sum ^= byte;
        }
        diffuse(&mut sum, hash);
    }
    sum
}

/// Replaces each piece, as long as a digest, by the digest of its number and itself.
fn diffuse(block: &mut [u8], hash: Hash) {
    for (number, piece) in (0u32..).zip(block.chunks_mut(hash.digest_len())) {
        let digest = hash.digest(&[&number.to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_split_merges(key in prop::collection::vec(any::<u8>(), 1..80), stripes in 1usize..40, hash in 0..Hash::ALL.len()) {
            let hash = Hash::ALL[hash];
            let split = split(&key, stripes, hash).unwrap();
            prop_assert_eq!(split.len(), key.len() * stripes);
            prop_assert_eq!(&*merge(&split, key.len(), hash), &key);
        }

        #[test]
        fn any_bit_that_is_lost_loses_the_key(key in prop::collection::vec(any::<u8>(), 16..64), at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let mut split = split(&key, 20, Hash::Sha256).unwrap();
            let at = at.index(split.len());
            split[at] ^= 1u8 << bit;
            prop_assert_ne!(&*merge(&split, key.len(), Hash::Sha256), &key);
        }
    }
}
