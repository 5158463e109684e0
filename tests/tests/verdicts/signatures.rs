//! What formats are recognised by, where their readers look and where they do not.

use inspector::{Format, Report};
use tests::Lab;

use crate::judge;
use crate::qemu::Qemu;

/// A raw disk of 1 MiB with something at each of some places.
fn disk(places: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    for (at, magic) in places {
        bytes[*at..at + magic.len()].copy_from_slice(magic);
    }
    bytes
}

fn assert_named(report: &Report, format: Format, offset: u64) {
    assert!(!report.is_safe(), "{report:?}");
    let named = report.signatures.iter().map(|one| (one.format, one.offset));
    assert!(
        named.clone().any(|one| one == (format, offset)),
        "{format:?} at {offset}: {report:?}"
    );
}

#[test]
fn a_disk_may_hold_any_bytes_where_no_reader_looks_for_a_signature() {
    let lab = Lab::new();
    let mut qemu = Qemu::new(&lab);
    let plain = disk(&[]);
    qemu.learn(&plain, &judge(&plain));
    let magics: [&[u8]; 11] = [
        b"QFI\xfb\0\0\0\x03",
        b"QED\0",
        b"KDMV",
        b"conectix",
        b"vhdxfile",
        b"LUKS\xba\xbe\0\x01",
        b"WithoutFreeSpace",
        b"# Disk DescriptorFile\nversion=1\n",
        b"\x7f\x10\xda\xbe",
        b"koly\0\0\0\x04",
        b"\x01CD001\x01",
    ];
    for magic in magics {
        // The start of a partition, the middle of a sector, and far from both ends.
        for at in [4, 512, 4096, 0x8000 + 512, 0x8800 + 64, 300_000, (1 << 20) - 2048] {
            let bytes = disk(&[(at, magic)]);
            let report = judge(&bytes);
            assert!(
                report.is_safe(),
                "\"{}\" at {at}: {report:?}",
                magic.escape_ascii()
            );
            if at == 512 || at == 4096 {
                assert_eq!(qemu.agrees(&bytes, &report), Ok(()));
            }
        }
    }
}

#[test]
fn footers_and_trailers_are_found_wherever_somebody_looks_for_them() {
    let end = 1 << 20;
    for len in [511, 512] {
        let report = judge(&disk(&[(end - len, b"conectix")]));
        assert_named(&report, Format::Vhd, (end - len) as u64);
    }
    for at in [end - 512, end - 700, end - 1023] {
        assert_named(&judge(&disk(&[(at, b"koly")])), Format::Dmg, at as u64);
    }
}

#[test]
fn a_disc_is_one_even_past_what_is_no_descriptor() {
    let primary = b"\x01CD001\x01";
    for sector in [16, 17, 40, 100] {
        let at = sector * 2048;
        let report = judge(&disk(&[(at, primary)]));
        assert_named(&report, Format::Iso, at as u64 + 1);
        assert_eq!(report.format, Some(Format::Iso));
    }
    // What was there before ISO 9660, which Linux mounts as well.
    assert_named(&judge(&disk(&[(0x8008, b"\x01CDROM\x01")])), Format::Iso, 0x8009);
    let report = judge(&disk(&[(101 * 2048, primary)]));
    assert!(report.is_safe(), "{report:?}");
    // The list ends before it says where the volume is.
    let report = judge(&disk(&[(0x8000, b"\xffCD001\x01"), (0x8800, primary)]));
    assert_named(&report, Format::Iso, 0x8001);
}
