//! Tests of partition tables as a whole.

mod faults;
mod hostile;
mod oracles;
mod power_cut;
mod tables;

use std::path::Path;
use std::sync::Arc;

use block::{Access, BlockDevice, MemStorage, Preallocation, Storage};

use super::*;
use crate::{Image, OpenOptions};

const MIB: u64 = 1 << 20;

/// A disk over a storage.
fn disk(storage: Arc<dyn Storage>) -> Arc<dyn BlockDevice> {
    Arc::new(Image::open(storage, Access::WRITE).unwrap())
}

/// An empty disk in memory.
fn empty(size: u64) -> (Arc<MemStorage>, Arc<dyn BlockDevice>) {
    let storage = Arc::new(MemStorage::new());
    crate::create(&*storage, size, Preallocation::Off).unwrap();
    (storage.clone(), disk(storage))
}

/// The disk in a file.
fn file(path: &Path) -> Arc<dyn BlockDevice> {
    disk(Arc::new(OpenOptions::new().write(true).open(path).unwrap()))
}

/// A system's disk, of 20 MiB at least.
fn layout(sector: SectorSize) -> Layout {
    Layout::new([3; 16])
        .sector(sector)
        .with(
            NewPartition::new("bios-boot".parse().unwrap())
                .number(14)
                .size(MIB),
        )
        .with(
            NewPartition::new("efi".parse().unwrap())
                .number(15)
                .size(4 * MIB)
                .name("ESP")
                .attributes(1),
        )
        .with(NewPartition::new("root-x86-64".parse().unwrap()).name("Wurzel ½ 🌱"))
}

/// A disk in memory with that layout.
fn partitioned(size: u64, sector: SectorSize) -> (Arc<MemStorage>, Arc<dyn BlockDevice>) {
    let (storage, disk) = empty(size);
    create(&*disk, &layout(sector)).unwrap();
    (storage, disk)
}

fn gpt(device: &dyn BlockDevice) -> Gpt {
    match PartitionTable::read(device, None).unwrap() {
        PartitionTable::Gpt(gpt) => *gpt,
        PartitionTable::Mbr(_) => panic!("an MBR"),
    }
}

fn findings(device: &dyn BlockDevice) -> Vec<String> {
    let table = PartitionTable::read(device, None).unwrap();
    table.findings().iter().map(ToString::to_string).collect()
}

fn damage(device: &dyn BlockDevice, offset: u64) {
    let mut byte = [0];
    device.read_at(&mut byte, offset).unwrap();
    device.write_at(&[byte[0] ^ 1], offset).unwrap();
}
