//! Tables that were made to harm: refused by name, whatever their checksums say, and never a panic.

use block::test_utils::Rng;
use block::{ErrorKind, Storage};
use byteorder::{ByteOrder, LittleEndian as LE};

use super::*;

const SIZE: u64 = 20 * MIB;

/// A disk whose primary table was changed and has right checksums again; no backup unless it is kept.
fn forged(keep_backup: bool, change: impl FnOnce(&mut [u8])) -> Arc<dyn BlockDevice> {
    let (storage, _) = partitioned(SIZE, SectorSize::B512);
    let mut bytes = storage.to_vec();
    change(&mut bytes);
    let sum = crc32fast::hash(&bytes[1024..1024 + 16384]);
    LE::write_u32(&mut bytes[512 + 88..], sum);
    LE::write_u32(&mut bytes[512 + 16..], 0);
    let sum = crc32fast::hash(&bytes[512..512 + 92]);
    LE::write_u32(&mut bytes[512 + 16..], sum);
    if !keep_backup {
        let end = bytes.len();
        bytes[end - 33 * 512..].fill(0);
    }
    storage.write_all_at(&bytes, 0).unwrap();
    disk(storage)
}

fn entry(number: usize) -> usize {
    1024 + (number - 1) * 128
}

#[test]
fn what_a_header_claims_is_bounded() {
    for (what, field, width, value) in [
        ("it has 4294967295 entries", 80, 4, u64::from(u32::MAX)),
        ("it has 40000 entries", 80, 4, 40_000),
        ("entries have 4294967295 bytes", 84, 4, u64::from(u32::MAX)),
        ("entries have 8192 bytes", 84, 4, 8192),
        ("entries have 64 bytes", 84, 4, 64),
        ("cannot be in sector 18446744073709551615", 72, 8, u64::MAX),
        ("cannot be in sector 40940", 72, 8, 40_940),
        ("sectors 34 to 18446744073709551615", 48, 8, u64::MAX),
        ("sectors 34 to 5", 48, 8, 5),
    ] {
        let change = |bytes: &mut [u8]| LE::write_uint(&mut bytes[512 + field..], value, width);
        let disk = forged(false, change);
        let error = PartitionTable::read(&*disk, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(what), "{error} does not say {what}");
        // With the backup there, that counts.
        let table = PartitionTable::read(&*forged(true, change), None).unwrap();
        assert_eq!(table.partitions().len(), 3);
    }
}

#[test]
fn a_partition_in_the_wrong_place_is_found_and_not_opened() {
    for (first, last, what) in [
        (
            12_000,
            11_999,
            "partition 1 ends in sector 11999, before it starts in sector 12000",
        ),
        (u64::MAX, 0, "partition 1 ends in sector 0"),
        (
            12_288,
            u64::MAX,
            "partition 1 has sectors 12288 to 18446744073709551615, and partitions may have 34 to 40926",
        ),
        (0, 50, "partition 1 has sectors 0 to 50, and"),
        (33, 33, "partition 1 has sectors 33 to 33, and"),
        (12_288, 40_927, "partition 1 has sectors 12288 to 40927, and"),
        (5000, 20_000, "partitions 15 and 1 overlap, from sector 5000 on"),
        (3000, 20_000, "partitions 14 and 1 overlap, from sector 3000 on"),
    ] {
        let disk = forged(false, |bytes| {
            LE::write_u64(&mut bytes[entry(1) + 32..], first);
            LE::write_u64(&mut bytes[entry(1) + 40..], last);
        });
        let table = PartitionTable::read(&*disk, None).unwrap();
        let found: Vec<_> = table.findings().iter().map(ToString::to_string).collect();
        assert!(
            found.iter().any(|found| found.contains(what)),
            "{found:?} does not say {what}"
        );
        let error = table.open(disk.clone(), &Selector::Number(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        // Reading what the table says must not overflow either.
        let _ = (table.partitions()[0].start(), table.partitions()[0].len());
        assert!(grow(&*disk, None, true).is_err() || what.contains("40927"));
    }
}

#[test]
fn guids_that_are_not_unique_are_found() {
    let disk = forged(false, |bytes| {
        bytes.copy_within(entry(14) + 16..entry(14) + 32, entry(15) + 16);
    });
    let found = findings(&*disk);
    assert!(
        found[1].starts_with("partitions 14 and 15 have the same GUID, "),
        "{found:?}"
    );
    let disk = forged(false, |bytes| bytes[entry(1) + 16..entry(1) + 32].fill(0));
    assert_eq!(findings(&*disk)[1], "partition 1 has no GUID of its own");
}

#[test]
fn an_own_copy_is_no_backup() {
    let disk = forged(true, |bytes| LE::write_u64(&mut bytes[512 + 32..], 1));
    assert!(findings(&*disk)[0].starts_with("the backup table in sector 1 is damaged"));
    repair(&*disk, None, None).unwrap();
    assert!(findings(&*disk).is_empty());
}

#[test]
fn random_damage_is_an_error_or_a_finding_and_never_a_panic() {
    let seed = 0x5eed_0001;
    let mut rng = Rng::new(seed);
    for round in 0..300 {
        let disk = forged(rng.coin(), |bytes| {
            for _ in 0..=rng.below(6) {
                let at =
                    [512, 1024, entry(14), entry(15), 440][rng.below(5) as usize] + rng.below(92) as usize;
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, rng.next_u64() as u8][rng.below(6) as usize];
            }
        });
        let Ok(table) = PartitionTable::read(&*disk, None) else {
            continue;
        };
        for partition in table.partitions() {
            if let Ok(window) = table.open(disk.clone(), &Selector::Number(partition.number)) {
                assert!(
                    window.size() <= SIZE && window.size() > 0,
                    "seed {seed:#x}, round {round}"
                );
            }
        }
        let _ = (
            repair(&*disk, None, Some(CopyKind::Primary)),
            grow(&*disk, None, true),
        );
        let _ = PartitionTable::read(&*disk, None);
    }
}

/// A record at a sector, with entries of (type, first, sectors).
type Records<'a> = (u64, &'a [(u8, u32, u32)]);

/// A disk with an MBR, and records at other sectors.
fn mbr(records: &[Records<'_>]) -> Arc<dyn BlockDevice> {
    let (_, disk) = empty(SIZE);
    for (sector, entries) in records {
        let mut bytes = [0; 512];
        for (number, (kind, first, sectors)) in entries.iter().enumerate() {
            let entry = &mut bytes[446 + 16 * number..];
            entry[4] = *kind;
            LE::write_u32(&mut entry[8..], *first);
            LE::write_u32(&mut entry[12..], *sectors);
        }
        bytes[510..].copy_from_slice(&[0x55, 0xaa]);
        disk.write_at(&bytes, sector * 512).unwrap();
    }
    disk
}

#[test]
fn a_list_of_logical_partitions_leads_nowhere_it_should_not() {
    for (records, what) in [
        // To itself, for ever.
        (
            vec![
                (0, &[(5, 2048, 8192)][..]),
                (2048, &[(0x83, 8, 8), (5, 0, 10)][..]),
            ],
            "does not end",
        ),
        (
            vec![
                (0, &[(5, 2048, 8192)][..]),
                (2048, &[(0x83, 8, 8), (5, 9000, 10)][..]),
            ],
            "leads to sector 11048, outside",
        ),
        (
            vec![
                (0, &[(5, 2048, 8192)][..]),
                (2048, &[(0x83, 8, 8), (5, 4096, 10)][..]),
            ],
            "breaks off at sector 6144",
        ),
        (
            vec![(0, &[(5, u32::MAX, u32::MAX)][..])],
            "leads to sector 4294967295",
        ),
        (
            vec![(0, &[(0x83, 1, 100), (0x83, 50, 100)][..])],
            "partitions 1 and 2 overlap",
        ),
        (
            vec![(0, &[(0x83, 1, u32::MAX)][..])],
            "partition 1 has sectors 1 to 4294967295",
        ),
    ] {
        let found = findings(&*mbr(&records));
        assert!(
            found.iter().any(|found| found.contains(what)),
            "{found:?} does not say {what}"
        );
    }
}

#[test]
fn an_mbr_is_not_written() {
    let disk = mbr(&[(0, &[(0x83, 2048, 8192)])]);
    for error in [
        repair(&*disk, None, None).unwrap_err(),
        grow(&*disk, None, false).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    assert!(create(&*disk, &Layout::new([0; 16])).is_err());
}

#[test]
fn what_is_no_table_is_said_to_be_none() {
    let (_, fat) = empty(SIZE);
    // A boot sector: the magic number, and text where the entries would be.
    fat.write_at(&[b'x'; 510], 0).unwrap();
    fat.write_at(&[0x55, 0xaa], 510).unwrap();
    for disk in [
        empty(SIZE).1,
        empty(0).1,
        empty(512).1,
        empty(1024).1,
        empty(5120).1,
        fat,
    ] {
        let error = PartitionTable::read(&*disk, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), "there is no partition table on the disk");
    }
    let error = PartitionTable::read(&*mbr(&[(0, &[(0xee, 1, 40_959)])]), None).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("both copies of the partition table are damaged"),
        "{error}"
    );
}
