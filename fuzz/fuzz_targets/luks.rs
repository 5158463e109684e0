//! Any bytes as a LUKS header: an error, or a header that encodes and parses to itself, and whose key material lies where it
//! may. And as a disk: without a key it has a size within the file and nothing that can be read, and a passphrase opens it or does not, in
//! bounded time.
#![no_main]

use std::sync::Arc;

use block::{Access, BlockDevice, Keys, MemStorage, Passphrase, Storage};
use encryption::{HEADER_LEN, Image, Luks, SLOTS};
use libfuzzer_sys::fuzz_target;

/// Rounds of hashing that a fuzzer has time for.
const QUICK: u32 = 100;

fuzz_target!(|bytes: &[u8]| {
    let Ok(luks) = Luks::parse(bytes) else {
        return;
    };
    assert_eq!(
        Luks::parse(&luks.encode()).expect("what was encoded can be parsed"),
        luks
    );
    let active = (0..SLOTS).filter(|slot| luks.slots()[*slot].active);
    let mut places: Vec<_> = active.map(|slot| luks.material(slot)).collect();
    places.sort_by_key(|place| place.start);
    let mut end = HEADER_LEN;
    for place in places {
        assert!(place.start >= end);
        end = place.end;
    }
    assert!(end as u64 <= luks.payload_offset() || end == HEADER_LEN);
    let _ = (luks.spec(), luks.hash(), luks.uuid());
    open(bytes, &luks);
});

fn open(bytes: &[u8], luks: &Luks) {
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::from(bytes.to_vec()));
    let Ok(image) = Image::open(storage.clone(), Access::READ, &Keys::Locked) else {
        return;
    };
    assert!(image.size() <= bytes.len().next_multiple_of(512) as u64);
    if image.size() > 0 {
        assert!(image.read_at(&mut [0], 0).is_err());
        assert_eq!(image.extent_at(0, u64::MAX).expect("it is on the disk").len, image.size());
    }
    let slots = luks.slots().iter().filter(|slot| slot.active);
    let slowest = slots.map(|slot| slot.iterations).max().unwrap_or_default();
    // Either few rounds, or so many that none is done.
    if slowest.max(luks.digest_iterations()) <= QUICK || slowest == u32::MAX {
        let keys = Keys::Passphrases(vec![Passphrase::new("x")]);
        if let Ok(image) = Image::open(storage, Access::READ, &keys) {
            let mut disk = vec![0; image.size() as usize];
            image.read_at(&mut disk, 0).expect("it is all there");
        }
    }
}
