//! Any sequence of operations on a sound image: it reads as an array of bytes would, and checks clean after
//! every closing.
#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use block::{Access, Backing, BackingReference, BlockDevice, MemStorage, Resize, Storage, ZeroMode};
use libfuzzer_sys::fuzz_target;
use qcow2::{CheckOptions, CompressionType, CreateOptions, Image, OpenOptions, Version};

/// Longest disk in bytes.
const MAX_SIZE: u64 = 512 * 512;

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
    Write { offset: u64, len: u64, byte: u8 },
    WriteCompressed { cluster: u64, byte: u8 },
    Zero { offset: u64, len: u64, unmap: bool },
    Discard { offset: u64, len: u64 },
    Read { offset: u64, len: u64 },
    Resize { size: u64 },
    Flush,
    Reopen,
}

/// An image, and the bytes that its disk should hold.
struct Pair {
    storage: Arc<MemStorage>,
    backing: Option<Arc<dyn BlockDevice>>,
    image: Option<Image>,
    model: Vec<u8>,
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
            discards,
        };
        pair.open();
        pair
    }

    fn open(&mut self) {
        let backing = self.backing.clone().map_or(Backing::None, Backing::Device);
        let options = OpenOptions {
            access: Access::WRITE,
            backing,
            l2_cache: 8192,
            ..OpenOptions::default()
        };
        self.image = Some(Image::open(self.storage.clone(), options).expect("open"));
    }

    fn reopen(&mut self) {
        self.image.take().expect("open").close().expect("close");
        let report = qcow2::check(&*self.storage, &CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.expect("check");
        assert!(report.is_clean(), "{report:#?}");
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
            Operation::Resize { size } => {
                let size = size % MAX_SIZE / 512 * 512;
                let how = Resize {
                    shrink: true,
                    ..Resize::default()
                };
                self.image().resize(size, how).expect("resize");
                self.model.resize(size as usize, 0);
            }
            Operation::Flush => self.image().flush().expect("flush"),
            Operation::Reopen => self.reopen(),
        }
        assert_eq!(self.image().size(), self.model.len() as u64);
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
    }
}
