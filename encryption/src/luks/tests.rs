use proptest::prelude::*;

use super::*;
use crate::slots::{Iterations, LuksOptions};

fn fresh() -> (Luks, Vec<u8>) {
    let options = LuksOptions {
        iterations: Iterations::Exactly(10),
        ..LuksOptions::default()
    };
    Luks::format(&options, b"first").unwrap()
}

fn opens(luks: &Luks, area: &[u8], passphrase: &str) -> bool {
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    luks.unlock(passphrase.as_bytes(), material).unwrap().is_some()
}

fn refused(change: impl FnOnce(&mut [u8])) -> String {
    let (_, mut area) = fresh();
    change(&mut area);
    Luks::parse(&area).unwrap_err().to_string()
}

#[test]
fn a_header_survives_a_round_trip_and_lies_where_qemu_puts_it() {
    let (luks, area) = fresh();
    assert_eq!(Luks::parse(&area).unwrap(), luks);
    assert_eq!(luks.encode(), area[..HEADER_LEN]);
    assert_eq!((luks.payload_offset(), area.len()), (2_068_480, 2_068_480));
    let places: Vec<_> = luks.slots().iter().map(KeySlot::offset).collect();
    assert_eq!(places[..3], [4096, 262_144, 520_192]);
    assert_eq!(luks.names(), ["aes", "xts-plain64", "sha256"]);
    assert_eq!(luks.uuid().len(), 36);
}

#[test]
fn keys_come_and_go_and_the_last_one_stays() {
    let (mut luks, mut area) = fresh();
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    assert!(luks.unlock(b"second", material).unwrap().is_none());
    let key = luks.unlock(b"first", material).unwrap().unwrap();
    let new = luks
        .add_key(&key, b"second", None, Iterations::Exactly(20))
        .unwrap();
    assert_eq!(new.slot, 1);
    area[luks.material(1)].copy_from_slice(&new.material);
    assert!(opens(&luks, &area, "first") && opens(&luks, &area, "second"));
    assert!(luks.add_key(&key, b"x", Some(1), Iterations::Exactly(1)).is_err());
    assert!(luks.add_key(&key, b"x", Some(8), Iterations::Exactly(1)).is_err());

    let gone = luks.remove_key(0, false).unwrap();
    area[luks.material(0)].copy_from_slice(&gone.material);
    assert!(!opens(&luks, &area, "first") && opens(&luks, &area, "second"));
    assert!(luks.remove_key(0, false).is_err() && luks.remove_key(9, true).is_err());
    let error = luks.remove_key(1, false).unwrap_err();
    assert!(error.to_string().contains("last key"), "{error}");
    assert!(luks.clone().remove_key(1, true).is_ok());
    let other = fresh();
    let material = |slot| Ok(other.1[other.0.material(slot)].to_vec());
    let foreign = other.0.unlock(b"first", material).unwrap().unwrap();
    assert!(
        luks.add_key(&foreign, b"x", None, Iterations::Exactly(1))
            .is_err()
    );
}

#[test]
fn eight_keys_are_all_there_can_be() {
    let (mut luks, area) = fresh();
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    let key = luks.unlock(b"first", material).unwrap().unwrap();
    for slot in 1..SLOTS {
        assert_eq!(
            luks.add_key(&key, b"x", None, Iterations::Exactly(1))
                .unwrap()
                .slot,
            slot
        );
    }
    assert!(luks.add_key(&key, b"x", None, Iterations::Exactly(1)).is_err());
}

#[test]
fn what_cannot_be_is_refused_and_named() {
    let be = |at: usize, value: u32| move |area: &mut [u8]| BE::write_u32(&mut area[at..], value);
    assert!(Luks::parse(&[0; 100]).is_err());
    assert!(refused(|area| area[0] = 0).contains("no LUKS header"));
    assert!(refused(|area| area[7] = 2).contains("version 2"));
    assert!(refused(|area| area[8..40].fill(b'a')).contains("cipher-name"));
    assert!(refused(|area| area[40] = 0xff).contains("cipher-mode"));
    assert!(refused(be(108, 0)).contains("key-bytes"));
    assert!(refused(be(108, 129)).contains("key-bytes"));
    assert!(refused(be(164, 0)).contains("mk-digest-iterations"));
    assert!(refused(be(208, 7)).contains("slot 0: its state"));
    assert!(refused(be(212, 0)).contains("iterations"));
    assert!(refused(be(248, 1)).contains("in the header"));
    assert!(refused(be(248, u32::MAX)).contains("payload"));
    assert!(refused(be(252, 0)).contains("stripes"));
    assert!(refused(be(252, u32::MAX)).contains("stripes"));
    assert!(refused(be(104, 5)).contains("payload"));
    let overlap = refused(|area| {
        let first = area[208..256].to_vec();
        area[256..304].copy_from_slice(&first);
    });
    assert!(overlap.contains("over that of slot"), "{overlap}");
}

#[test]
fn a_header_that_asks_for_days_of_hashing_is_refused_at_once_and_none_is_made() {
    let asks = |places: &[usize], iterations: u32| {
        let (_, mut area) = fresh();
        for at in places {
            BE::write_u32(&mut area[*at..], iterations);
        }
        let luks = Luks::parse(&area).unwrap();
        let material = |slot| Ok(area[luks.material(slot)].to_vec());
        luks.unlock(b"first", material).unwrap_err()
    };
    for places in [&[212][..], &[164], &[164, 212]] {
        let error = asks(places, u32::MAX);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    let (mut luks, area) = fresh();
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    let key = luks.unlock(b"first", material).unwrap().unwrap();
    let error = luks
        .add_key(&key, b"x", None, Iterations::Exactly(u32::MAX))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let before = luks.clone();
    // What one slot may take is too much where others take their share.
    let error = luks
        .add_key(&key, b"x", None, Iterations::Exactly(1 << 29))
        .unwrap_err();
    assert_eq!(
        (error.kind(), &luks),
        (ErrorKind::InvalidInput, &before),
        "{error}"
    );
    let options = LuksOptions {
        iterations: Iterations::Exactly(u32::MAX),
        ..LuksOptions::default()
    };
    assert!(Luks::format(&options, b"x").is_err());
}

#[test]
fn unknown_ciphers_are_shown_and_not_used() {
    let (_, mut area) = fresh();
    area[40..44].copy_from_slice(b"lrw\0");
    area[72..76].copy_from_slice(b"md5\0");
    let luks = Luks::parse(&area).unwrap();
    assert_eq!(luks.names(), ["aes", "lrw", "md5"]);
    assert!(luks.spec().is_err() && luks.hash().is_err());
    let material = |slot| Ok(area[luks.material(slot)].to_vec());
    assert_eq!(
        luks.unlock(b"first", material).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_header_that_reads_back(noise in prop::collection::vec(any::<u8>(), 0..700), places in prop::collection::vec((0usize..HEADER_LEN, any::<u8>()), 0..6)) {
        let _ = Luks::parse(&noise);
        let (_, mut area) = fresh_header();
        for (at, byte) in places {
            area[at] = byte;
        }
        if let Ok(luks) = Luks::parse(&area) {
            prop_assert_eq!(Luks::parse(&luks.encode()).unwrap(), luks);
        }
    }
}

/// A header made once: only its bytes are changed.
fn fresh_header() -> (Luks, Vec<u8>) {
    static FRESH: std::sync::OnceLock<(Luks, Vec<u8>)> = std::sync::OnceLock::new();
    let (luks, area) = FRESH.get_or_init(fresh);
    (luks.clone(), area[..HEADER_LEN].to_vec())
}
