use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn spec(cipher: Cipher, mode: Mode, iv: IvGenerator) -> CipherSpec {
    CipherSpec { cipher, mode, iv }
}

/// IEEE 1619, vectors 4 and 10: whole sectors of 512 bytes with the keys and numbers given, by their first and last blocks.
#[test]
fn xts_is_that_of_ieee_1619() {
    let data: Vec<u8> = (0..512).map(|at| at as u8).collect();
    for (cipher, key, sector, start, end) in [
        (
            Cipher::Aes128,
            "2718281828459045235360287471352631415926535897932384626433832795",
            0,
            "27a7479befa1d476489f308cd4cfa6e2",
            "0a282df920147beabe421ee5319d0568",
        ),
        (
            Cipher::Aes256,
            "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592",
            0xff,
            "1c3b3a102f770386e4836c99e370cf9b",
            "c4f36ffda9fcea70b9c6e693e148c151",
        ),
    ] {
        let spec = spec(cipher, Mode::Xts, IvGenerator::Plain64);
        let cipher = SectorCipher::new(spec, &bytes(key)).unwrap();
        let mut sector_data = data.clone();
        cipher.encrypt(sector, &mut sector_data);
        assert_eq!(
            (&sector_data[..16], &sector_data[496..]),
            (&bytes(start)[..], &bytes(end)[..])
        );
        cipher.decrypt(sector, &mut sector_data);
        assert_eq!(sector_data, data);
    }
}

/// NIST SP 800-38A, F.2.1: the first block, with an initialisation vector that is a sector's number here.
#[test]
fn cbc_chains_from_the_number_of_the_sector() {
    let key = bytes("2b7e151628aed2a6abf7158809cf4f3c");
    let cipher = SectorCipher::new(spec(Cipher::Aes128, Mode::Cbc, IvGenerator::Plain64), &key).unwrap();
    // The published plaintext, with the published vector and ours (sector 5) added.
    let mut data = vec![0; SECTOR];
    let plain = bytes("6bc1bee22e409f96e93d7e117393172a");
    let published = bytes("000102030405060708090a0b0c0d0e0f");
    for (at, byte) in data[..16].iter_mut().enumerate() {
        *byte = plain[at] ^ published[at] ^ if at == 0 { 5 } else { 0 };
    }
    // The second block of F.2.1 follows the first as it is.
    data[16..32].copy_from_slice(&bytes("ae2d8a571e03ac9c9eb76fac45af8e51"));
    cipher.encrypt(5, &mut data);
    assert_eq!(data[..16], bytes("7649abac8119b246cee98e9b12e9197d"));
    assert_eq!(data[16..32], bytes("5086cb9b507219ee95db113a917678b2"));
}

/// NIST SP 800-38A, F.5.1 and F.1.1: two blocks each, with a counter that ends in zeros here.
#[test]
fn ctr_counts_up_and_ecb_does_not_chain() {
    let key = bytes("2b7e151628aed2a6abf7158809cf4f3c");
    let plain = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51";
    let encrypted = |mode, start: &str| {
        let cipher = SectorCipher::new(spec(Cipher::Aes128, mode, IvGenerator::Plain64), &key).unwrap();
        let mut data = bytes(start);
        data.resize(SECTOR, 0);
        cipher.encrypt(7, &mut data);
        data
    };
    assert_eq!(
        encrypted(Mode::Ecb, plain)[..32],
        bytes("3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf")
    );
    // Counters are what ECB makes of them.
    let counters = "07000000000000000000000000000000".to_owned() + "07000000000000000000000000000001";
    let stream = encrypted(Mode::Ecb, &counters);
    let expected: Vec<u8> = stream.iter().zip(bytes(plain)).map(|(a, b)| a ^ b).collect();
    assert_eq!(encrypted(Mode::Ctr, plain)[..32], expected[..32]);
}

#[test]
fn legacy_aes_takes_16_bytes_of_the_passphrase() {
    let encrypted = |passphrase: &str| {
        let mut data = [1; SECTOR];
        SectorCipher::legacy_aes(&Passphrase::new(passphrase)).encrypt(9, &mut data);
        data
    };
    assert_eq!(encrypted("0123456789abcdef"), encrypted("0123456789abcdefgh"));
    assert_eq!(encrypted("short"), encrypted("short\0\0"));
    assert_ne!(encrypted("short"), encrypted("shorter"));
}

#[test]
fn a_key_of_another_length_is_refused() {
    for cipher in Cipher::ALL {
        let spec = spec(cipher, Mode::Xts, IvGenerator::Essiv);
        assert!(SectorCipher::new(spec, &vec![1; spec.key_len() - 1]).is_err());
    }
}

fn any_spec() -> impl Strategy<Value = CipherSpec> {
    let modes = prop::sample::select(Mode::ALL.to_vec());
    let ivs = prop::sample::select(vec![IvGenerator::Plain, IvGenerator::Plain64, IvGenerator::Essiv]);
    (prop::sample::select(Cipher::ALL.to_vec()), modes, ivs)
        .prop_map(|(cipher, mode, iv)| spec(cipher, mode, iv))
}

proptest! {
    #[test]
    fn what_was_encrypted_decrypts_in_any_pieces(
        spec in any_spec(),
        key in prop::array::uniform32(any::<u8>()),
        first in any::<u64>(),
        sectors in 1usize..20,
        cut in any::<prop::sample::Index>(),
    ) {
        let key: Vec<u8> = key.iter().chain(&key).enumerate().map(|(at, byte)| byte ^ at as u8).collect();
        let cipher = SectorCipher::new(spec, &key[..spec.key_len()]).unwrap();
        let data: Vec<u8> = (0..sectors * SECTOR).map(|at| (at % 251) as u8).collect();
        let mut whole = data.clone();
        cipher.encrypt(first, &mut whole);
        let mut single = data.clone();
        for (number, sector) in single.as_chunks_mut::<SECTOR>().0.iter_mut().enumerate() {
            cipher.encrypt(first.wrapping_add(number as u64), sector);
        }
        prop_assert!(single == whole);
        prop_assert!(whole != data);
        let cut = cut.index(sectors);
        let (start, end) = whole.split_at_mut(cut * SECTOR);
        cipher.decrypt(first.wrapping_add(cut as u64), end);
        cipher.decrypt(first, start);
        prop_assert_eq!(whole, data);
    }

    #[test]
    fn names_lead_back_to_what_they_name(spec in any_spec()) {
        let (name, mode) = spec.luks_names();
        prop_assert_eq!(CipherSpec::from_luks(name, &mode, spec.key_len() as u32).unwrap(), spec);
        prop_assert_eq!(Cipher::named(spec.cipher.name()).unwrap(), spec.cipher);
        prop_assert_eq!(Mode::named(spec.mode.name()).unwrap(), spec.mode);
        prop_assert_eq!(IvGenerator::named(spec.iv.name()).unwrap(), spec.iv);
    }
}
