//! Any partition table: reading, repairing and growing it ends without a panic, changes no byte of a partition, and leaves
//! a table that is sound.
#![no_main]

use std::ops::Range;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use block::{Access, BlockDevice, MemStorage, Preallocation};
use libfuzzer_sys::fuzz_target;
use raw::partition::{
    self, CopyKind, Layout, NewPartition, PartitionKind, PartitionTable, SectorSize, Selector, Severity,
};

/// The longest disk in bytes: more than one boundary at which partitions begin and end.
const MAX_LEN: u64 = 5 << 19;

#[derive(Arbitrary, Debug)]
struct Setup {
    large_sectors: bool,
    sectors: u64,
    partitions: Vec<(u16, u16)>,
    /// Bytes that are changed from the start of the primary table or the backup, or of the MBR, on.
    changes: Vec<(Place, u16, u8)>,
    /// Has the tables' checksums made right again afterwards.
    forge: bool,
    /// The disk's size changes by so many sectors.
    grown: i16,
    last: bool,
    from: Option<bool>,
    stated: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Mbr,
    Header,
    Entries,
    BackupHeader,
    BackupEntries,
}

fuzz_target!(|bytes: &[u8]| {
    // Half of them are bytes as they come.
    let (first, rest) = bytes.split_at(bytes.len().min(1));
    if first == [0] {
        exercise(&disk(rest.to_vec()), None, None, true);
        return;
    }
    let Ok(setup) = Setup::arbitrary(&mut Unstructured::new(bytes)) else {
        return;
    };
    let sector = SectorSize::ALL[usize::from(setup.large_sectors)];
    let Some(bytes) = partitioned(&setup, sector) else {
        return;
    };
    let from = setup.from.map(|backup| match backup {
        true => CopyKind::Backup,
        false => CopyKind::Primary,
    });
    exercise(&disk(bytes), setup.stated.then_some(sector), from, setup.last);
});

fn disk(bytes: Vec<u8>) -> Arc<raw::Image> {
    Arc::new(raw::Image::open(Arc::new(MemStorage::from(bytes)), Access::WRITE).expect("raw"))
}

/// A disk with a table, changed as `setup` says.
fn partitioned(setup: &Setup, sector: SectorSize) -> Option<Vec<u8>> {
    let unit = sector.bytes();
    let sectors = setup.sectors % (MAX_LEN / unit);
    let storage = Arc::new(MemStorage::new());
    raw::create(&*storage, sectors * unit, Preallocation::Off).expect("memory");
    let image = raw::Image::open(storage.clone(), Access::WRITE).expect("raw");
    let mut layout = Layout::new([7; 16]).sector(sector);
    for (start, len) in setup.partitions.iter().take(4) {
        let partition = NewPartition::new(PartitionKind::LINUX);
        layout = layout.with(
            partition
                .start(u64::from(*start) * unit)
                .size(u64::from(*len) * unit),
        );
    }
    partition::create(&image, &layout).ok()?;
    // What is in partitions is not all the same.
    for at in (34 * unit..sectors.saturating_sub(33) * unit).step_by(4096) {
        let mut found = [0];
        image.read_at(&mut found, at).expect("memory");
        if found == [0] {
            image.write_at(&[(at / 4096) as u8], at).expect("memory");
        }
    }
    let mut bytes = storage.to_vec();
    change(&mut bytes, setup, unit);
    let len = (sectors as i64 + i64::from(setup.grown) % (MAX_LEN / unit) as i64).max(0) as u64 * unit;
    bytes.resize(len as usize, 0);
    Some(bytes)
}

fn change(bytes: &mut [u8], setup: &Setup, unit: u64) {
    let (unit, end) = (unit as usize, bytes.len());
    let array = 16384;
    let start = |place| match place {
        Place::Mbr => 0,
        Place::Header => unit,
        Place::Entries => 2 * unit,
        Place::BackupHeader => end - unit,
        Place::BackupEntries => end - unit - array,
    };
    for (place, offset, value) in &setup.changes {
        let len = match place {
            Place::Entries | Place::BackupEntries => array,
            _ => 512,
        };
        bytes[start(*place) + usize::from(*offset) % len] = *value;
    }
    if setup.forge {
        for (header, entries) in [
            (Place::Header, Place::Entries),
            (Place::BackupHeader, Place::BackupEntries),
        ] {
            let (header, entries) = (start(header), start(entries));
            let sum = crc32fast::hash(&bytes[entries..entries + array]);
            bytes[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
            bytes[header + 16..header + 20].fill(0);
            let sum = crc32fast::hash(&bytes[header..header + 92]);
            bytes[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
        }
    }
}

/// Reads, repairs and grows the table of `disk`.
fn exercise(disk: &Arc<raw::Image>, sector: Option<SectorSize>, from: Option<CopyKind>, last: bool) {
    let read = || PartitionTable::read(&**disk, sector);
    let before = read();
    if let Ok(table) = &before {
        open_all(disk, table);
    }
    let contents = contents(&**disk);
    let held = before.as_ref().map(|table| held(disk, table)).unwrap_or_default();
    match partition::repair(&**disk, sector, from) {
        Ok(done) => {
            let table = read().expect("what was repaired can be read");
            assert!(!done.is_nothing() || contents == self::contents(&**disk));
            let again = partition::repair(&**disk, Some(table.sector()), None);
            assert!(again.is_ok_and(|again| again.is_nothing()), "{done:?}, and again");
            same(&held, &contents, disk);
        }
        Err(_) => assert!(contents == self::contents(&**disk), "refused, and has changed"),
    }
    let Ok(before) = read() else { return };
    let contents = self::contents(&**disk);
    let held = self::held(disk, &before);
    match partition::grow(&**disk, sector, last) {
        Ok(grown) => {
            let table = read().expect("what has grown can be read");
            let errors = table.findings().iter();
            let errors: Vec<_> = errors
                .filter(|finding| finding.severity() == Severity::Error)
                .collect();
            assert!(errors.is_empty(), "{grown:?}: {errors:?}");
            assert_eq!(before.partitions().len(), table.partitions().len());
            same(&held, &contents, disk);
        }
        Err(_) => assert!(contents == self::contents(&**disk), "refused, and has changed"),
    }
}

fn contents(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(&mut bytes, 0).expect("memory");
    bytes
}

/// Opens each partition: it lies on the disk, or is refused.
fn open_all(disk: &Arc<raw::Image>, table: &PartitionTable) {
    for partition in table.partitions() {
        let which = Selector::Number(partition.number);
        if let Ok(window) = table.open(disk.clone(), &which) {
            assert!(partition.start() + window.size() <= disk.size());
            let mut byte = [0];
            if window.size() > 0 {
                window.read_at(&mut byte, window.size() - 1).expect("memory");
            }
        }
    }
}

/// Where the partitions are that can be used.
fn held(disk: &Arc<raw::Image>, table: &PartitionTable) -> Vec<Range<usize>> {
    let usable = table.partitions().iter().filter(|partition| {
        table
            .open(disk.clone(), &Selector::Number(partition.number))
            .is_ok()
    });
    usable
        .map(|partition| partition.start() as usize..(partition.start() + partition.len()) as usize)
        .collect()
}

fn same(held: &[Range<usize>], before: &[u8], disk: &Arc<raw::Image>) {
    let now = contents(&**disk);
    for range in held {
        assert!(
            now[range.clone()] == before[range.clone()],
            "{range:?} was written to"
        );
    }
}
