//! Any sequence of operations on a sound image: it reads as an array of bytes would, and so do its snapshots; its bitmap
//! knows what has changed; and it checks clean after every closing.
#![no_main]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use arbitrary::{Arbitrary, Unstructured};
use block::{
    Access, Backing, BackingReference, BlockDevice, ErrorKind, MemStorage, Resize, Result, SnapshotSelector,
    Storage, ZeroMode,
};
use libfuzzer_sys::fuzz_target;
use qcow2::{
    CheckOptions, CompressionType, CreateOptions, GuestOffset, Image, OpenOptions, SnapshotProgress, Version,
};

/// Longest disk in bytes.
const MAX_SIZE: u64 = 512 * 512;

/// Snapshots at most.
const SNAPSHOTS: u8 = 4;

/// The only bitmap.
const BITMAP: &str = "changed";

#[derive(Arbitrary, Debug)]
struct Setup {
    size: u64,
    cluster_bits: u32,
    refcount_order: u32,
    version_2: bool,
    zstd: bool,
    extended_l2: bool,
    /// Length of the backing file, where there is one: shorter than the disk, or longer.
    backing: Option<u64>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Write {
        offset: u64,
        len: u64,
        byte: u8,
    },
    WriteCompressed {
        cluster: u64,
        byte: u8,
    },
    Zero {
        offset: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Read {
        offset: u64,
        len: u64,
    },
    /// Room is planned, and either written to and committed or given back.
    Plan {
        offset: u64,
        len: u64,
        byte: u8,
        commit: bool,
    },
    Resize {
        size: u64,
    },
    CreateSnapshot {
        number: u8,
    },
    ApplySnapshot {
        number: u8,
    },
    DeleteSnapshot {
        number: u8,
    },
    AddBitmap {
        granularity_bits: u8,
    },
    ClearBitmap,
    RemoveBitmap,
    Flush,
    Reopen,
}

/// An image, and the bytes that its disk should hold.
struct Pair {
    storage: Arc<MemStorage>,
    backing: Option<Arc<dyn BlockDevice>>,
    image: Option<Image>,
    model: Vec<u8>,
    /// What the snapshots hold, by their numbers.
    snapshots: BTreeMap<u8, Vec<u8>>,
    /// What the disk held when the bitmap began, as far as it was not cut off since.
    since: Option<Vec<u8>>,
    /// A discarded cluster reads as zeros. Version 2 can't say so over a backing file, and keeps the data.
    discards: bool,
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(setup) = input.arbitrary() else { return };
    let mut pair = Pair::new(&setup);
    while let (false, Ok(operation)) = (input.is_empty(), input.arbitrary()) {
        pair.apply(&operation);
    }
    pair.reopen();
    pair.verify();
});

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

impl Pair {
    fn new(setup: &Setup) -> Self {
        let size = setup.size % MAX_SIZE / 512 * 512;
        let mut model = vec![0; size as usize];
        let backing = setup.backing.map(|len| {
            let below: Vec<u8> = (0..len % MAX_SIZE).map(|index| (index / 97) as u8 | 1).collect();
            let storage = MemStorage::new();
            storage.write_all_at(&below, 0).expect("memory");
            let shared = below.len().min(model.len());
            model[..shared].copy_from_slice(&below[..shared]);
            Arc::new(raw::Image::open(Arc::new(storage), Access::READ).expect("raw")) as Arc<dyn BlockDevice>
        });
        let storage = Arc::new(MemStorage::new());
        let discards = !setup.version_2 || backing.is_none();
        let options = CreateOptions {
            size,
            version: if setup.version_2 { Version::V2 } else { Version::V3 },
            cluster_bits: 9 + setup.cluster_bits % 8,
            refcount_order: if setup.version_2 {
                4
            } else {
                setup.refcount_order % 7
            },
            compression: if setup.zstd && !setup.version_2 {
                CompressionType::Zstd
            } else {
                CompressionType::Zlib
            },
            extended_l2: setup.extended_l2 && !setup.version_2 && setup.cluster_bits % 8 >= 5,
            backing: backing.is_some().then(|| BackingReference {
                name: "below".into(),
                format: Some("raw".into()),
            }),
            ..CreateOptions::default()
        };
        qcow2::create(&*storage, &options).expect("an image that can be");
        let mut pair = Self {
            storage,
            backing,
            image: None,
            model,
            snapshots: BTreeMap::new(),
            since: None,
            discards,
        };
        pair.open();
        pair
    }

    fn options(&self, access: Access) -> OpenOptions {
        OpenOptions {
            access,
            backing: self.backing.clone().map_or(Backing::None, Backing::Device),
            l2_cache: 8192,
            ..OpenOptions::default()
        }
    }

    fn open(&mut self) {
        let options = self.options(Access::WRITE);
        self.image = Some(Image::open(self.storage.clone(), options).expect("open"));
    }

    fn reopen(&mut self) {
        self.image.take().expect("open").close().expect("close");
        let report = qcow2::check(&*self.storage, &CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.expect("check");
        assert!(report.is_clean(), "{report:#?}");
        for (number, model) in &self.snapshots {
            let which = SnapshotSelector::name(number.to_string());
            let options = self.options(Access::READ);
            let snapshot = Image::open_snapshot(self.storage.clone(), &which, options).expect("a snapshot");
            let mut found = vec![0; snapshot.size() as usize];
            snapshot.read_at(&mut found, 0).expect("read");
            assert!(found == *model, "snapshot {number}");
        }
        self.open();
    }

    fn image(&self) -> &Image {
        self.image.as_ref().expect("open")
    }

    /// A range of the disk, out of any two numbers.
    fn range(&self, offset: u64, len: u64) -> (u64, usize) {
        let size = self.model.len() as u64;
        let offset = offset % (size + 1);
        (offset, (len % (size - offset + 1)) as usize)
    }

    fn model(&mut self, offset: u64, len: usize) -> &mut [u8] {
        &mut self.model[offset as usize..][..len]
    }

    fn apply(&mut self, operation: &Operation) {
        match *operation {
            Operation::Write { offset, len, byte } => {
                let (offset, len) = self.range(offset, len);
                self.image().write_at(&vec![byte; len], offset).expect("write");
                self.model(offset, len).fill(byte);
            }
            Operation::WriteCompressed { cluster, byte } => self.write_compressed(cluster, byte),
            Operation::Zero { offset, len, unmap } => {
                let (offset, len) = self.range(offset, len);
                let mode = if unmap {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                self.image().zero_at(offset, len as u64, mode).expect("zero");
                self.model(offset, len).fill(0);
            }
            Operation::Discard { offset, len } => self.discard(offset, len),
            Operation::Read { offset, len } => {
                let (offset, len) = self.range(offset, len);
                let mut found = vec![0; len];
                self.image().read_at(&mut found, offset).expect("read");
                assert!(found == self.model(offset, len), "{operation:?}");
            }
            Operation::Plan {
                offset,
                len,
                byte,
                commit,
            } => self.plan(offset, len, byte, commit),
            Operation::Resize { size } => {
                let size = size % MAX_SIZE / 512 * 512;
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                // Version 2 has no snapshots of another size.
                if self.done_or_refused(|image| image.resize(size, how)) {
                    self.model.resize(size as usize, 0);
                    self.cut();
                }
            }
            Operation::CreateSnapshot { number } => self.create_snapshot(number % SNAPSHOTS),
            Operation::ApplySnapshot { number } => self.apply_snapshot(number % SNAPSHOTS),
            Operation::DeleteSnapshot { number } => self.delete_snapshot(number % SNAPSHOTS),
            Operation::AddBitmap { granularity_bits } => {
                let granularity = 1 << (9 + granularity_bits % 10);
                let add = |image: &Image| {
                    image.edit_bitmaps(|bitmaps| bitmaps.add(BITMAP, Some(granularity), true))
                };
                if self.since.is_none() && self.done_or_refused(add) {
                    self.since = Some(self.model.clone());
                }
            }
            Operation::ClearBitmap => {
                if self.since.is_some() {
                    let clear = self.image().edit_bitmaps(|bitmaps| bitmaps.clear(BITMAP));
                    clear.expect("clear");
                    self.since = Some(self.model.clone());
                }
            }
            Operation::RemoveBitmap => {
                if self.since.take().is_some() {
                    let remove = self.image().edit_bitmaps(|bitmaps| bitmaps.remove(BITMAP));
                    remove.expect("remove");
                }
            }
            Operation::Flush => self.image().flush().expect("flush"),
            Operation::Reopen => {
                self.reopen();
                self.verify();
            }
        }
        assert_eq!(self.image().size(), self.model.len() as u64);
    }

    /// Whether something was done that an image of this kind may refuse; then nothing has changed.
    fn done_or_refused<T>(&self, act: impl FnOnce(&Image) -> Result<T>) -> bool {
        match act(self.image()) {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// The bitmap knows nothing of what was cut off.
    fn cut(&mut self) {
        let size = self.model.len();
        if let Some(since) = &mut self.since {
            since.truncate(size);
        }
    }

    fn plan(&mut self, offset: u64, len: u64, byte: u8, commit: bool) {
        let (offset, len) = self.range(offset, len);
        if len == 0 {
            return;
        }
        let plan = self.image().plan_write(GuestOffset(offset), len as u64);
        let plan = plan.expect("plan");
        // What lies in place is written by writing there.
        if !commit {
            return;
        }
        for run in plan.runs() {
            let data = vec![byte; run.len as usize];
            self.image()
                .data_storage()
                .write_all_at(&data, run.host.0)
                .expect("memory");
        }
        plan.commit().expect("commit");
        self.model(offset, len).fill(byte);
    }

    fn create_snapshot(&mut self, number: u8) {
        if self.snapshots.contains_key(&number) {
            return;
        }
        let name = number.to_string();
        let date = SystemTime::UNIX_EPOCH;
        // Narrow refcounts have no room for many.
        if self.done_or_refused(|image| image.create_snapshot(&name, date, &mut go_on)) {
            self.snapshots.insert(number, self.model.clone());
        }
    }

    fn apply_snapshot(&mut self, number: u8) {
        let which = SnapshotSelector::name(number.to_string());
        let Some(then) = self.snapshots.get(&number).cloned() else {
            let refused = self.image().apply_snapshot(&which, &mut go_on);
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
            return;
        };
        if self.done_or_refused(|image| image.apply_snapshot(&which, &mut go_on)) {
            self.model = then;
            self.cut();
        }
    }

    fn delete_snapshot(&mut self, number: u8) {
        let which = SnapshotSelector::name(number.to_string());
        let deleted = self.image().delete_snapshot(&which, &mut go_on);
        assert_eq!(deleted.is_ok(), self.snapshots.remove(&number).is_some());
    }

    fn write_compressed(&mut self, cluster: u64, byte: u8) {
        let size = self.image().geometry().cluster_size();
        let clusters = self.model.len() as u64 / size;
        if clusters == 0 {
            return;
        }
        let offset = cluster % clusters * size;
        let data = vec![byte; size as usize];
        let writer = self.image().compressed().expect("qcow2 compresses");
        let compressed = writer
            .compress(&data)
            .expect("compress")
            .expect("one byte over and over saves room");
        writer
            .write_compressed_at(&compressed, offset)
            .expect("write compressed");
        self.model(offset, data.len()).fill(byte);
    }

    /// Whole clusters read as zeros afterwards; of the rest the contract says nothing, so that the model takes
    /// over what is found, if it is the old byte or zero.
    fn discard(&mut self, offset: u64, len: u64) {
        let (offset, len) = self.range(offset, len);
        self.image().discard_at(offset, len as u64).expect("discard");
        let mut found = vec![0; len];
        self.image().read_at(&mut found, offset).expect("read");
        let cluster = self.image().geometry().cluster_size();
        let end = offset + len as u64;
        let whole = offset.next_multiple_of(cluster)..if self.discards { end / cluster * cluster } else { 0 };
        for (at, (now, model)) in (offset..).zip(found.iter().zip(self.model(offset, len))) {
            assert!(
                *now == 0 || *now == *model && !whole.contains(&at),
                "discard at {offset}: byte {at} is {now}"
            );
            *model = *now;
        }
    }

    fn verify(&self) {
        let mut found = vec![0; self.model.len()];
        self.image().read_at(&mut found, 0).expect("read");
        assert!(found == self.model);
        let Some(since) = &self.since else { return };
        let dirty = self.image().dirty_bits(BITMAP).expect("a bitmap");
        let mut known = vec![false; self.model.len()];
        for range in dirty.ranges() {
            let end = range.end.min(known.len() as u64) as usize;
            known[range.start as usize..end].fill(true);
        }
        for (at, (then, now)) in since.iter().zip(&self.model).enumerate() {
            assert!(
                then == now || known[at],
                "byte {at} has changed, and the bitmap does not know"
            );
        }
    }
}
