//! What is made, found, repaired and grown.

use block::{ErrorKind, Resize};

use super::*;

const B512: SectorSize = SectorSize::B512;

#[test]
fn what_is_created_reads_back_on_sectors_of_either_size() {
    for sector in SectorSize::ALL {
        let (_, disk) = partitioned(20 * MIB, sector);
        let table = PartitionTable::read(&*disk, None).unwrap();
        assert_eq!((table.sector(), table.findings()), (sector, &[][..]));
        let rows: Vec<_> = table
            .partitions()
            .iter()
            .map(|p| {
                (
                    p.number,
                    p.start() / MIB,
                    p.len() / MIB,
                    p.kind.to_string(),
                    p.name.as_str(),
                    p.attributes,
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                (1, 6, 13, "root-x86-64".to_owned(), "Wurzel ½ 🌱", 0),
                (14, 1, 1, "bios-boot".to_owned(), "", 0),
                (15, 2, 4, "efi".to_owned(), "ESP", 1),
            ]
        );
    }
}

#[test]
fn the_same_layout_makes_the_same_bytes() {
    let bytes = |layout: &Layout| {
        let (storage, disk) = empty(20 * MIB);
        create(&*disk, layout).unwrap();
        storage.to_vec()
    };
    assert!(bytes(&layout(B512)) == bytes(&layout(B512)));
    let other = Layout::new([4; 16]).with(NewPartition::new(PartitionKind::LINUX));
    let mut again = other.clone();
    assert!(bytes(&other) == bytes(&again));
    again = again.disk_guid(Guid::from_seed([9; 16], 9));
    assert!(bytes(&other) != bytes(&again));
}

#[test]
fn a_layout_that_cannot_be_is_refused_and_nothing_written() {
    let linux = || NewPartition::new(PartitionKind::LINUX);
    let plan = || Layout::new([0; 16]);
    for (layout, what) in [
        (plan().with(linux().size(100 * MIB)), "may have 34 to"),
        (plan().with(linux().start(0).size(MIB)), "may have 34 to"),
        (
            plan()
                .with(linux().start(2 * MIB).size(2 * MIB))
                .with(linux().start(3 * MIB).size(1)),
            "overlap",
        ),
        (plan().with(linux()).with(linux()), "no room left for partition 2"),
        (plan().with(linux().size(0)), "no sectors"),
        (plan().with(linux().size(u64::MAX)), "larger than any disk"),
        (
            plan().with(linux().start(u64::MAX / 2 + 1).size(u64::MAX / 2 + 1)),
            "larger than any disk",
        ),
        (plan().with(linux().start(MIB + 1)), "inside a sector"),
        (plan().with(linux().number(0)), "1 to 128"),
        (plan().with(linux().number(129)), "1 to 128"),
        (
            plan().with(linux().number(2)).with(linux().number(2)),
            "two partitions 2",
        ),
        (plan().with(linux().name("x".repeat(37))), "36"),
        (plan().with(linux().name("a\0b")), "NUL"),
        (
            plan().with(NewPartition::new(PartitionKind::Mbr(0x83))),
            "type of the MBR",
        ),
    ] {
        let (storage, disk) = empty(20 * MIB);
        let error = create(&*disk, &layout).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(what), "{error} does not say {what}");
        assert!(storage.to_vec().iter().all(|byte| *byte == 0));
    }
    for size in [0, 512, 34816 - 512] {
        let error = create(&*empty(size).1, &plan()).unwrap_err();
        assert!(error.to_string().contains("too short"), "{error}");
    }
    create(&*empty(34816).1, &plan()).unwrap();
}

#[test]
fn a_disk_that_holds_something_is_left_alone() {
    let (_, disk) = partitioned(20 * MIB, B512);
    let error = create(&*disk, &Layout::new([0; 16])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has a partition table (gpt) already, with 3 partitions"),
        "{error}"
    );
    let table = create(&*disk, &Layout::new([0; 16]).overwrite(true)).unwrap();
    assert!(table.partitions().is_empty() && table.findings().is_empty());
    for offset in [1080, 65_600, 20 * MIB - 1] {
        let (_, disk) = empty(20 * MIB);
        disk.write_at(&[1], offset).unwrap();
        let error = create(&*disk, &Layout::new([0; 16])).unwrap_err();
        assert_eq!(error.offset(), Some(offset), "{error}");
    }
}

#[test]
fn either_copy_is_restored_from_the_other() {
    for sector in SectorSize::ALL {
        let size = 20 * MIB;
        let last = size - sector.bytes();
        for (offsets, restored) in [
            (vec![], None),
            (vec![sector.bytes()], Some(CopyKind::Primary)),
            (vec![sector.bytes() + 60], Some(CopyKind::Primary)),
            (vec![2 * sector.bytes() + 40], Some(CopyKind::Primary)),
            (vec![last + 17], Some(CopyKind::Backup)),
            (vec![last - 16384], Some(CopyKind::Backup)),
        ] {
            let (storage, disk) = partitioned(size, sector);
            let whole = storage.to_vec();
            for offset in &offsets {
                damage(&*disk, *offset);
            }
            let table = PartitionTable::read(&*disk, None).unwrap();
            assert_eq!(table.partitions().len(), 3);
            assert_eq!(table.findings().is_empty(), restored.is_none());
            let done = repair(&*disk, None, None).unwrap();
            assert_eq!(
                (done.restored, done.moved, done.mbr),
                (restored, false, false),
                "{offsets:?}"
            );
            assert!(storage.to_vec() == whole);
        }
    }
}

#[test]
fn two_damaged_copies_are_refused() {
    let (storage, disk) = partitioned(20 * MIB, B512);
    damage(&*disk, 1024);
    damage(&*disk, 20 * MIB - 512 + 8);
    let before = storage.to_vec();
    for error in [
        PartitionTable::read(&*disk, None).unwrap_err(),
        repair(&*disk, None, None).unwrap_err(),
        grow(&*disk, None, false).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains("checksum of its entries")
                && text.contains("the backup: the checksum of its header"),
            "{text}"
        );
    }
    assert!(storage.to_vec() == before);
}

#[test]
fn copies_that_differ_are_restored_only_from_the_one_that_is_said_to_be_right() {
    for (from, number) in [(CopyKind::Primary, 3), (CopyKind::Backup, 1)] {
        let (storage, disk) = partitioned(20 * MIB, B512);
        let primary = storage.to_vec()[..17408].to_vec();
        let other = layout(B512)
            .overwrite(true)
            .with(NewPartition::new(PartitionKind::LINUX).start(6 * MIB).size(MIB));
        drop(create(&*disk, &other).unwrap_err());
        let other = Layout::new([8; 16])
            .overwrite(true)
            .with(NewPartition::new(PartitionKind::LINUX));
        create(&*disk, &other).unwrap();
        disk.write_at(&primary, 0).unwrap();
        assert_eq!(
            findings(&*disk),
            ["the primary table and the backup have different disk GUIDs"]
        );
        let error = repair(&*disk, None, None).unwrap_err();
        assert!(
            error.hint().unwrap().contains("--from primary or --from backup"),
            "{error}"
        );
        repair(&*disk, None, Some(from)).unwrap();
        let table = PartitionTable::read(&*disk, None).unwrap();
        assert_eq!((table.findings().len(), table.partitions().len()), (0, number));
    }
}

#[test]
fn a_backup_that_may_be_left_from_before_is_not_restored_unasked() {
    let (storage, disk) = partitioned(20 * MIB, B512);
    // As when a file system was made on the whole disk.
    disk.write_at(&[0; 1024], 0).unwrap();
    disk.write_at(&[0x53, 0xef], 1080).unwrap();
    let before = storage.to_vec();
    let error = repair(&*disk, None, None).unwrap_err();
    assert!(error.hint().unwrap().contains("--from backup"), "{error}");
    assert!(storage.to_vec() == before);
    assert!(repair(&*disk, None, Some(CopyKind::Backup)).unwrap().mbr);
    assert!(findings(&*disk).is_empty());
}

#[test]
fn the_protective_mbr_is_restored_and_boot_code_kept() {
    for (offset, bytes, what) in [
        (510, vec![0], "there is no protective MBR"),
        (446 + 4, vec![0], "does not protect"),
        (446 + 8, vec![2], "starts at sector 2"),
        (
            446 + 12,
            vec![1, 0, 0, 0],
            "covers 1 sectors, and there are 40959",
        ),
    ] {
        let (storage, disk) = partitioned(20 * MIB, B512);
        disk.write_at(b"boot code and signature", 420).unwrap();
        let before = storage.to_vec();
        disk.write_at(&bytes, offset).unwrap();
        let found = findings(&*disk);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
        assert!(repair(&*disk, None, None).unwrap().mbr);
        assert!(storage.to_vec() == before);
    }
    let (storage, disk) = partitioned(20 * MIB, B512);
    disk.write_at(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0], 446 + 16)
        .unwrap();
    let before = storage.to_vec();
    assert_eq!(
        findings(&*disk),
        ["the MBR has partitions of its own beside those of the GPT"]
    );
    assert!(repair(&*disk, None, None).unwrap().is_nothing());
    assert!(storage.to_vec() == before);
}

#[test]
fn growing_moves_the_backup_and_the_end_of_the_last_partition() {
    for sector in SectorSize::ALL {
        for more in [sector.bytes(), 8 * sector.bytes(), 10 * MIB, 1 << 40] {
            let (storage, disk) = partitioned(20 * MIB, sector);
            let new = 20 * MIB + more;
            disk.resize(new, Resize::default()).unwrap();
            let found = findings(&*disk);
            assert!(found[0].contains("the disk has grown"), "{found:?}");
            let old = gpt(&*disk);
            let grown = grow(&*disk, None, true).unwrap();
            let last = Lba(new / sector.bytes() - 1);
            assert_eq!(grown.backup, Some((Lba(20 * MIB / sector.bytes() - 1), last)));
            let end = (new - 16384 - sector.bytes()) / MIB * MIB;
            match grown.partition {
                Some((was, is)) => {
                    assert_eq!((was.number, is.start() + is.len()), (1, end));
                    assert_eq!(was, old.partitions()[0]);
                }
                None => assert_eq!(end, 19 * MIB),
            }
            assert!(findings(&*disk).is_empty());
            assert_eq!(grow(&*disk, None, true).unwrap(), Grown::default());
            // Nothing is left of the old backup.
            let mut old_end = vec![0; 512];
            if more >= MIB {
                disk.read_at(&mut old_end, 20 * MIB - sector.bytes()).unwrap();
                assert!(old_end.iter().all(|byte| *byte == 0));
            }
            drop(storage);
        }
    }
}

#[test]
fn a_disk_that_was_cut_gets_its_backup_back_if_partitions_fit() {
    let shrink = Resize {
        shrink: true,
        ..Resize::default()
    };
    let ways: [fn(&dyn BlockDevice) -> Result<()>; 2] = [
        |disk| grow(disk, None, false).map(drop),
        |disk| repair(disk, None, None).map(drop),
    ];
    for fit in ways {
        let layout = Layout::new([0; 16]).with(NewPartition::new(PartitionKind::LINUX).size(4 * MIB));
        let (storage, disk) = empty(20 * MIB);
        create(&*disk, &layout).unwrap();
        disk.resize(8 * MIB, shrink).unwrap();
        let found = findings(&*disk);
        assert!(
            found[0].contains("the disk ends before it") && found[2].contains("has been cut"),
            "{found:?}"
        );
        fit(&*disk).unwrap();
        assert!(findings(&*disk).is_empty(), "{:?}", findings(&*disk));
        disk.resize(5 * MIB, shrink).unwrap();
        let before = storage.to_vec();
        let error = fit(&*disk).unwrap_err();
        assert!(
            error.to_string().contains("partition 1 reaches to sector 10239"),
            "{error}"
        );
        let hint = error.hint().unwrap();
        let enough: u64 = hint.split(' ').find_map(|word| word.parse().ok()).unwrap();
        assert!(storage.to_vec() == before);
        disk.resize(enough - 512, Resize::default()).unwrap();
        fit(&*disk).unwrap_err();
        disk.resize(enough, Resize::default()).unwrap();
        fit(&*disk).unwrap();
    }
}

#[test]
fn partitions_are_found_by_number_name_and_guid_and_are_disks() {
    let (_, disk) = partitioned(20 * MIB, B512);
    let table = PartitionTable::read(&*disk, None).unwrap();
    let guid = Guid::from_seed([3; 16], 15);
    for which in [
        "15",
        "name:ESP",
        &format!("uuid:{guid}"),
        &format!("uuid:{guid}").to_lowercase().replace("UUID", "uuid"),
    ] {
        let partition = table.open(disk.clone(), &which.parse().unwrap()).unwrap();
        partition.write_at(which.as_bytes(), 100).unwrap();
        let mut bytes = vec![0; which.len()];
        disk.read_at(&mut bytes, 2 * MIB + 100).unwrap();
        assert_eq!((partition.size(), bytes.as_slice()), (4 * MIB, which.as_bytes()));
    }
    for which in [
        "2",
        "name:esp",
        "name:",
        "uuid:00112233-4455-6677-8899-AABBCCDDEEFF",
    ] {
        match table.open(disk.clone(), &which.parse().unwrap()) {
            // One has no name.
            Ok(partition) => assert_eq!((which, partition.size()), ("name:", MIB)),
            Err(error) => assert_eq!(
                error.hint(),
                Some("there are 1 (Wurzel ½ 🌱), 14 and 15 (ESP)"),
                "{error}"
            ),
        }
    }
    for text in [
        "",
        "0",
        "-1",
        "+1",
        "x",
        "1 ",
        "4294967296",
        "uuid:1",
        "label:ESP",
    ] {
        assert!(text.parse::<Selector>().is_err(), "{text}");
    }
}

#[test]
fn a_name_that_two_have_is_refused() {
    let linux = || NewPartition::new(PartitionKind::LINUX).size(MIB).name("a");
    let (_, disk) = empty(20 * MIB);
    let table = create(&*disk, &Layout::new([0; 16]).with(linux()).with(linux())).unwrap();
    let error = table.find(&"name:a".parse().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "there is more than one partition name:a");
}
