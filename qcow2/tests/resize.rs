//! Changes of size, where they are easy to get wrong.

mod common;

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use block::test_utils::{Fault, FaultStorage, IoOp};
use block::{BlockDevice, Error, HostExtent, MemStorage, Preallocation, Resize, Result, Storage, ZeroMode};
use common::Bytes;

/// Where the header says how long the disk is.
const SIZE: u64 = 24;
const CLUSTER: usize = 4096;

fn read(image: &qcow2::Image) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size() as usize];
    image.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn finish(image: qcow2::Image, storage: &MemStorage) {
    image.close().expect("close");
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");
}

#[test]
fn growing_inside_a_cluster_keeps_what_it_holds() {
    for backing in [None, Some(3 * CLUSTER as u64)] {
        let storage = Arc::new(common::create("cluster_size=4096", 512, backing));
        let device = backing.map(|len| Arc::new(Bytes::pattern(len, 1)) as Arc<dyn BlockDevice>);
        let image = common::open(storage.clone(), device.as_ref());
        image.write_at(&[7; 512], 0).expect("write");
        for sectors in [2, 3, 8] {
            image.resize(sectors * 512, Resize::default()).expect("grow");
            let disk = read(&image);
            assert!(disk[..512] == [7; 512], "{sectors} sectors: the data is gone");
            assert!(
                disk[512..].iter().all(|byte| *byte == 0),
                "{sectors} sectors: growth is not zero"
            );
        }
        finish(image, &storage);
    }
}

/// A disk made shorter by a tool that left its clusters mapped: growing it again must not bring the old data back.
#[test]
fn clusters_left_mapped_past_the_end_stay_hidden() {
    for preallocation in [Preallocation::Off, Preallocation::Metadata] {
        let storage = Arc::new(common::create("cluster_size=4096", 64 * CLUSTER as u64, None));
        let image = common::open(storage.clone(), None);
        // Not the first cluster past the new end, so that looking at that one alone is not enough.
        image.write_at(&[7; 2 * CLUSTER], 0).expect("write");
        image
            .write_at(&[9; 3 * CLUSTER], 5 * CLUSTER as u64)
            .expect("write");
        image.close().expect("close");
        storage
            .write_all_at(&(2 * CLUSTER as u64).to_be_bytes(), SIZE)
            .expect("poke");

        let image = common::open(storage.clone(), None);
        let how = Resize {
            preallocation,
            ..Resize::default()
        };
        image.resize(64 * CLUSTER as u64, how).expect("grow");
        let disk = read(&image);
        assert!(
            disk[..2 * CLUSTER].iter().all(|byte| *byte == 7),
            "the data is gone"
        );
        assert!(
            disk[2 * CLUSTER..].iter().all(|byte| *byte == 0),
            "old data came back"
        );
        finish(image, &storage);
    }
}

/// Refcount blocks of clusters that are gone count nothing: their room goes too.
#[test]
fn refcount_blocks_that_count_nothing_are_given_back() {
    let storage = Arc::new(common::create("cluster_size=512,refcount_bits=64", 3 << 20, None));
    let image = common::open(storage.clone(), None);
    // Out of order, so that blocks are counted by others.
    for at in [2, 0, 1] {
        image.write_at(&vec![7; 1 << 20], at << 20).expect("write");
    }
    image.flush().expect("flush");
    let before = refcount_blocks(&storage);
    let how = Resize {
        shrink: true,
        ..Resize::default()
    };
    image.resize(1 << 20, how).expect("shrink");
    assert!(read(&image).iter().all(|byte| *byte == 7), "the data is gone");
    let after = refcount_blocks(&storage);
    assert!(after.len() < before.len(), "{} of {}", after.len(), before.len());
    let bytes = storage.to_vec();
    for block in after {
        let counts = bytes.get(block as usize..block as usize + 512).expect("a block");
        assert!(counts.iter().any(|byte| *byte != 0), "{block:#x} counts nothing");
    }
    // They come back where they are needed.
    image.resize(3 << 20, Resize::default()).expect("grow");
    image.write_at(&vec![8; 2 << 20], 1 << 20).expect("write");
    finish(image, &storage);
}

/// The offsets in the refcount table.
fn refcount_blocks(storage: &MemStorage) -> Vec<u64> {
    let header = qcow2::Header::read(storage).expect("header");
    let clusters = u64::from(header.refcount_table_clusters);
    let mut table = vec![0; (clusters * header.geometry.cluster_size()) as usize];
    storage
        .read_exact_at(&mut table, header.refcount_table_offset.0)
        .expect("read");
    let entries = table.as_chunks::<8>().0.iter();
    entries
        .map(|entry| u64::from_be_bytes(*entry))
        .filter(|entry| *entry != 0)
        .collect()
}

/// A storage on a full disk: so many pages can be written that are not there yet. Those that are can be written over.
#[derive(Debug)]
struct Full {
    content: Mutex<MemStorage>,
    pages: u64,
}

impl Full {
    fn new(content: MemStorage, room: u64) -> Self {
        let pages = content.allocated().unwrap().unwrap() / 4096 + room;
        Self {
            content: Mutex::new(content),
            pages,
        }
    }

    fn content(&self) -> MemStorage {
        self.content.lock().unwrap().clone()
    }

    fn change(&self, change: impl FnOnce(&MemStorage) -> Result<()>) -> Result<()> {
        let mut content = self.content.lock().unwrap();
        let changed = content.clone();
        change(&changed)?;
        if changed.allocated()?.unwrap() > self.pages * 4096 {
            return Err(Error::io("write", io::ErrorKind::StorageFull.into()));
        }
        *content = changed;
        Ok(())
    }
}

impl Storage for Full {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.content().read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(|content| content.write_all_at(buf, offset))
    }
    fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.change(|content| content.zero(offset, len, mode))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(|content| content.discard(offset, len))
    }
    fn host_extent(&self, offset: u64, len: u64) -> Result<HostExtent> {
        self.content().host_extent(offset, len)
    }
    fn sync_data(&self) -> Result<()> {
        Ok(())
    }
    fn len(&self) -> Result<u64> {
        self.content().len()
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.change(|content| content.set_len(len))
    }
}

const MIB: u64 = 1 << 20;
const OLD: u64 = (256 << 10) + 512;
const NEW: u64 = 3 * MIB;

/// Images that take metadata of each kind when they grow to 3 MiB: tables, a longer L1 table, refcount blocks and a longer table
/// of them, bitmaps, a copy of a cluster that a snapshot shares.
fn before_growth(options: &str) -> MemStorage {
    let storage = Arc::new(common::create(options, OLD, None));
    let image = common::open(storage.clone(), None);
    image.write_at(&vec![7; OLD as usize], 0).expect("write");
    if !options.contains("compat=0.10") {
        let added = image.edit_bitmaps(|bitmaps| bitmaps.add("all", Some(512), true));
        added.expect("a bitmap");
        let now = std::time::UNIX_EPOCH;
        let taken = image.create_snapshot("s", now, &mut |_| ControlFlow::Continue(()));
        taken.expect("a snapshot");
    }
    image.close().expect("close");
    (*storage).clone()
}

/// Grows the disk on a storage, which may fail; the disk then reads as before, and so does the image in memory.
fn try_to_grow(storage: Arc<dyn Storage>, preallocation: Preallocation) -> bool {
    let image = common::open(storage, None);
    let how = Resize {
        preallocation,
        ..Resize::default()
    };
    let grown = image.resize(NEW, how).is_ok();
    // Where the header was written and could not be made durable, the file says that the disk has grown.
    assert!(image.size() == NEW || image.size() == OLD && !grown);
    let disk = read(&image);
    assert!(
        disk[..OLD as usize].iter().all(|byte| *byte == 7),
        "the data is gone"
    );
    assert!(
        disk[OLD as usize..].iter().all(|byte| *byte == 0),
        "growth is not zero"
    );
    // What fails here fails again, or was not part of the growth.
    let _ = image.close();
    grown
}

fn check(storage: &MemStorage) -> qcow2::CheckReport {
    let options = qcow2::CheckOptions::default();
    qcow2::check(storage, &options, &mut |_| ControlFlow::Continue(())).expect("a check")
}

const GROWING: [(&str, Preallocation); 7] = [
    ("cluster_size=4096", Preallocation::Metadata),
    ("cluster_size=4096", Preallocation::Off),
    ("cluster_size=4096,compat=0.10", Preallocation::Full),
    ("cluster_size=4096,lazy_refcounts=on", Preallocation::Metadata),
    ("cluster_size=16384,extended_l2=on", Preallocation::Metadata),
    ("cluster_size=512,refcount_bits=64", Preallocation::Metadata),
    ("cluster_size=512,refcount_bits=64", Preallocation::Off),
];

#[test]
fn a_growth_without_room_gives_back_what_it_took() {
    for (options, preallocation) in GROWING {
        let before = before_growth(options);
        let mut refused = 0;
        for room in 0.. {
            let storage = Arc::new(Full::new(before.clone(), room * (room / 16 + 1)));
            if try_to_grow(storage.clone(), preallocation) {
                break;
            }
            refused += 1;
            let file = storage.content();
            let (code, words) = common::qemu_check(&file.to_vec());
            assert_eq!(code, 0, "{options}, {preallocation:?}, room for {room}: {words}");
            // Nothing is mapped past the end of the disk.
            let [was, is] = [&before, &file].map(|storage| check(storage).allocated_clusters);
            assert_eq!(was, is, "{options}, {preallocation:?}, room for {room}");
        }
        // With clusters of 512 bytes a longer L1 table finds room in a page that is there.
        let is_small = options.starts_with("cluster_size=512,") && preallocation == Preallocation::Off;
        assert!(
            refused > 0 || is_small,
            "{options}, {preallocation:?}: it takes no room"
        );
    }
}

#[test]
fn a_growth_that_fails_at_any_call_gives_back_what_it_took() {
    for (options, preallocation) in GROWING {
        let before = before_growth(options);
        let mut failures = 0;
        for n in 1.. {
            let file = Arc::new(before.clone());
            let storage = Arc::new(FaultStorage::new(file.clone()));
            storage.inject(Fault::nth(n, io::ErrorKind::Other).on(&IoOp::CHANGES));
            let grown = try_to_grow(storage.clone(), preallocation);
            if storage.failed() == 0 {
                break;
            }
            failures += 1;
            // One in three by QEMU, which takes as long as all the others.
            let (code, words) = if n % 3 == 1 {
                common::qemu_check(&file.to_vec())
            } else {
                (0, String::new())
            };
            let report = check(&file);
            assert!(
                code == 0 && report.is_clean() || grown,
                "{options}, {preallocation:?}, call {n}: {report:?}, {words}"
            );
        }
        assert!(failures > 5, "{options}, {preallocation:?}: {failures} calls");
    }
}

/// Where giving back fails as well, clusters leak, and nothing else is wrong.
#[test]
fn a_growth_on_a_storage_that_stays_broken_leaks_at_worst() {
    for (options, preallocation) in GROWING {
        let before = before_growth(options);
        for n in (1..).step_by(3) {
            let file = Arc::new(before.clone());
            let storage = Arc::new(FaultStorage::new(file.clone()));
            storage.inject(Fault::from_nth(n, io::ErrorKind::StorageFull).on(&IoOp::CHANGES));
            if try_to_grow(storage, preallocation) {
                break;
            }
            let (code, words) = common::qemu_check(&file.to_vec());
            let dirty = options.contains("lazy");
            assert!(
                code == 0 || code == 3 || dirty && code == 2,
                "{options}, {preallocation:?}, from call {n} on: {words}"
            );
        }
    }
}
