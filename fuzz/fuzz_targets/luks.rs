//! Any bytes as a LUKS header: an error, or a header that encodes and parses to itself, and whose key material lies where it
//! may.
#![no_main]

use encryption::{HEADER_LEN, Luks, SLOTS};
use libfuzzer_sys::fuzz_target;

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
});
