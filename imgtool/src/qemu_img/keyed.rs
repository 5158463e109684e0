//! Secrets that are encrypted with another one (`keyid`): by AES-256 in CBC mode, filled up as PKCS #7 has it.

use encryption::{Cipher, CipherSpec, IvGenerator, Mode, SECTOR, SectorCipher};

use super::refusal::Refusal;

/// Bytes that are encrypted at once.
const BLOCK: usize = 16;

/// Bytes of a key.
const KEY: usize = 32;

/// What `data` says to whoever has a key, and the block that the chain starts with.
pub(super) fn decrypted(key: &[u8], iv: &[u8], data: &[u8]) -> Result<Vec<u8>, Refusal> {
    let refuse = |text: String| Err(Refusal::new(text));
    if !data.len().is_multiple_of(BLOCK) {
        return refuse(format!(
            "Length {} must be a multiple of block size {BLOCK}",
            data.len()
        ));
    }
    let spec = CipherSpec {
        cipher: Cipher::Aes256,
        // Each block is mixed with the one in front of it here: a chain starts anew in each sector of a disk.
        mode: Mode::Ecb,
        iv: IvGenerator::Plain64,
    };
    let cipher = SectorCipher::new(spec, key).map_err(|error| Refusal::new(error.message().to_owned()))?;
    let mut plain = data.to_vec();
    plain.resize(data.len().next_multiple_of(SECTOR), 0);
    cipher.decrypt(0, &mut plain);
    plain.truncate(data.len());
    let before = iv.iter().chain(data);
    for (byte, before) in plain.iter_mut().zip(before) {
        *byte ^= before;
    }
    let Some(&filled) = plain.last() else {
        return Ok(plain);
    };
    if usize::from(filled) > BLOCK {
        return refuse(format!(
            "Incorrect number of padding bytes ({filled}) found on decrypted data"
        ));
    }
    plain.truncate(data.len() - usize::from(filled));
    Ok(plain)
}

/// Fails for a key of another length.
pub(super) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.len() == KEY {
        return Ok(());
    }
    Err(Refusal::new(format!("Key should be {KEY} bytes in length")))
}

/// Fails for a first block of another length.
pub(super) fn check_iv(iv: &[u8]) -> Result<(), Refusal> {
    if iv.len() == BLOCK {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "IV should be {BLOCK} bytes in length not {}",
        iv.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What openssl made of it: `enc -aes-256-cbc` with this key, in hexadecimal, and 16 zeros.
    #[test]
    fn chains_of_blocks_are_read() {
        let hex = "8f6a81b08f5bdcc2516fa43fdcd766cb789e60a56eae3094310a63039309285af628cd2b39560e61c116eb4995b0357d";
        let data: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let plain = decrypted(b"01234567890123456789012345678901", &[0; BLOCK], &data);
        assert_eq!(plain.unwrap(), b"zero-and-a-longer-one-of-more-blocks");
    }
}
