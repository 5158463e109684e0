//! Any bytes as a header: parsing ends without a panic, and what it accepts is stable. A header that is encoded
//! and parsed again is the same header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qcow2::Header;

fuzz_target!(|bytes: &[u8]| {
    // The tables that it names lie within the file, or within one that is long enough for any.
    for file_len in [bytes.len() as u64, 1 << 50] {
        let Ok(header) = Header::parse(bytes, file_len) else {
            continue;
        };
        let encoded = match header.encode() {
            Ok(encoded) => encoded,
            // Extensions may end with the cluster, and then there is no room for the mark that ends them.
            Err(error) => {
                assert_eq!(error.kind(), block::ErrorKind::InvalidInput, "{error}");
                continue;
            }
        };
        let again = Header::parse(&encoded, file_len).expect("what was encoded can be parsed");
        assert_eq!(header, again);
    }
});
