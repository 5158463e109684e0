//! Any bytes as a tar archive: reading ends without a panic, what is claimed of an entry holds, and an error stays.
//!
//! The first byte says how to read it. Checksums of blocks with a header's magic are made right, or few inputs would
//! get past the first one.
#![no_main]

use ext4_builder::tar::{Archive, Kind, Options};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    for block in bytes.as_chunks_mut::<512>().0 {
        seal(block);
    }
    let options = Options {
        absolute_names: how & 1 != 0,
        end_mark_optional: how & 2 != 0,
        ..Options::default()
    };
    let mut archive = Archive::new(&bytes[..], options);
    let mut buffer = [0; 700];
    let error = loop {
        let entry = match archive.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return,
            Err(error) => break error,
        };
        let components = || entry.path.split(|&byte| byte == b'/');
        assert!(entry.path.is_empty() || components().all(|name| !matches!(name, b"" | b"." | b"..")));
        assert!(entry.xattrs.is_sorted_by(|(a, _), (b, _)| a < b));
        let mut stored = 0;
        if let Kind::File { size, data } = &entry.kind {
            assert!(
                data.iter()
                    .all(|range| range.start < range.end && range.end <= *size)
            );
            assert!(data.windows(2).all(|pair| pair[0].end < pair[1].start));
            stored = data.iter().map(|range| range.end - range.start).sum();
        }
        let mut read = 0;
        let result = loop {
            match archive.read_data(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(len) => read += len as u64,
                Err(error) => break Err(error),
            }
        };
        match result {
            Ok(()) => assert_eq!(read, stored),
            Err(error) => break error,
        }
    };
    let again = archive.next_entry().expect_err("an error stays");
    assert_eq!(again.to_string(), error.to_string());
});

/// Sets the checksum of a block that looks like a header.
fn seal(block: &mut [u8; 512]) {
    if block[257..262] != *b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
