//! Damaged images: every figure and the exit code as QEMU's.
//!
//! Where QEMU gives no figures, since it can't open the image or gives up on the way, the least we say is that the
//! image is not sound. Where the damage is to the header or to the snapshot table we may refuse what QEMU takes:
//! our parser of these is the one that opens images, and no check of a sound image is lost by that.

use std::fs;
use std::ops::Range;

use super::super::report::Finding;
use super::corpus::{self, Sample};
use super::{CheckReport, Figures, exit_code, in_memory, our_check, qemu_check};
use crate::address::HostOffset;
use crate::geometry::Geometry;
use crate::header::Header;

/// Where the tables of a sound image are.
pub(super) struct Places {
    geometry: Geometry,
    clusters: u64,
    /// Entries of 64 bits that name clusters.
    entries: Vec<Range<u64>>,
    refcounts: Vec<Range<u64>>,
    /// The snapshot table, the bitmap directory.
    directories: Vec<Range<u64>>,
}

impl Places {
    pub(super) fn of(sample: &Sample) -> Self {
        let header = Header::read(&in_memory(&sample.bytes)).unwrap();
        let geometry = header.geometry;
        let size = geometry.cluster_size();
        let l1 = header.l1_offset.0..header.l1_offset.0 + u64::from(header.l1_entries).min(64) * 8;
        let table = header.refcount_table_offset.0..header.refcount_table_offset.0 + 64;
        let mut places = Self {
            geometry,
            clusters: geometry.clusters(sample.bytes.len() as u64),
            entries: vec![table.clone()],
            refcounts: Vec::new(),
            directories: Vec::new(),
        };
        let blocks = sample.words(table).filter(|block| *block != 0);
        for block in blocks {
            let used = (places.clusters << geometry.refcount_order).div_ceil(8).min(size);
            places.refcounts.push(block..block + used);
        }
        if header.l1_entries > 0 {
            places.entries.push(l1.clone());
            let tables = sample.words(l1).map(|entry| entry & crate::entry::OFFSET);
            for table in tables.filter(|table| *table != 0) {
                places.entries.push(table..table + size.min(1024));
            }
        }
        if header.snapshot_count > 0 {
            let HostOffset(start) = header.snapshots_offset;
            places.directories.push(start..start + 160);
        }
        if let Some(bitmaps) = header.extensions.bitmaps {
            let HostOffset(start) = bitmaps.directory_offset;
            places.directories.push(start..start + bitmaps.directory_size);
            let table = sample.words(start..start + 8).next().unwrap();
            places.entries.push(table..table + 8);
        }
        places
    }

    /// The clusters of all tables.
    pub(super) fn tables(&self) -> Vec<Range<u64>> {
        let size = self.geometry.cluster_size();
        let ranges = self
            .entries
            .iter()
            .chain(&self.refcounts)
            .chain(&self.directories);
        ranges
            .map(|range| range.start / size * size..range.end.next_multiple_of(size))
            .collect()
    }
}

impl Sample {
    fn words(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let bytes = &self.bytes[range.start as usize..range.end as usize];
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_be_bytes(*word))
    }
}

/// Numbers that look random and are the same every time.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn offset(&mut self, ranges: &[Range<u64>]) -> u64 {
        let range = self.pick(ranges);
        range.start + self.below(range.end - range.start)
    }

    fn word(&mut self, ranges: &[Range<u64>]) -> u64 {
        self.offset(ranges) & !7
    }
}

/// What was done to an image, for messages, and whether header or snapshot table were hit.
#[derive(Debug, Default)]
pub(super) struct Damage {
    done: Vec<String>,
    pub(super) may_refuse: bool,
}

impl Damage {
    pub(super) fn inflict(bytes: &mut Vec<u8>, places: &Places, dice: &mut Dice) -> Self {
        let mut damage = Self::default();
        for _ in 0..=dice.below(3) {
            match dice.below(16) {
                5..=7 => damage.flip(bytes, &places.entries, dice),
                8..=10 => damage.flip(bytes, &places.refcounts, dice),
                11 | 12 => damage.copy(bytes, places, dice),
                13 if !places.directories.is_empty() => {
                    damage.may_refuse = true;
                    damage.flip(bytes, &places.directories, dice);
                }
                14 => {
                    damage.may_refuse = true;
                    let len = bytes.len()
                        - dice
                            .below(places.geometry.cluster_size() * 3)
                            .min(bytes.len() as u64 / 2) as usize;
                    bytes.truncate(len);
                    damage.done.push(format!("cut to {len}"));
                }
                _ => damage.entry(bytes, places, dice),
            }
        }
        damage
    }

    fn write(&mut self, bytes: &mut [u8], at: u64, new: &[u8]) {
        if let Some(old) = bytes.get_mut(at as usize..at as usize + new.len()) {
            old.copy_from_slice(new);
            self.done.push(format!("{at:#x}: {new:02x?}"));
        }
    }

    /// Flips a bit.
    fn flip(&mut self, bytes: &mut [u8], ranges: &[Range<u64>], dice: &mut Dice) {
        let at = dice.offset(ranges);
        if let Some(byte) = bytes.get(at as usize) {
            self.write(bytes, at, &[byte ^ 1 << dice.below(8)]);
        }
    }

    /// Writes an entry that names some cluster, or a place close to one.
    fn entry(&mut self, bytes: &mut [u8], places: &Places, dice: &mut Dice) {
        let at = dice.word(&places.entries);
        let mut entry = dice.below(places.clusters + 3) << places.geometry.cluster_bits;
        let flags = [0, 1 << 63, 1 << 63, 1, 1 << 62, 1 << 56, 1 << 9, 2];
        entry |= dice.pick(&flags) | dice.pick(&flags);
        self.write(bytes, at, &entry.to_be_bytes());
    }

    /// Copies one entry over another.
    fn copy(&mut self, bytes: &mut [u8], places: &Places, dice: &mut Dice) {
        let from = dice.word(&places.entries) as usize;
        let to = dice.word(&places.entries);
        if let Some(entry) = bytes.get(from..from + 8).map(<[u8]>::to_vec) {
            self.write(bytes, to, &entry);
        }
    }
}

/// Variants of each sample: about 800 in all.
const ROUNDS: u64 = 30;

/// Judges `rounds` damaged variants of a sample.
fn judge(name: &str, rounds: u64) {
    let sample = corpus::make(name);
    let places = Places::of(&sample);
    let mut dice = Dice(name.bytes().fold(88_172_645_463_325_252, |seed, byte| {
        seed.rotate_left(7) ^ u64::from(byte)
    }));
    let (mut failures, mut unsound) = (Vec::new(), 0);
    for round in 0..rounds {
        let mut bytes = sample.bytes.clone();
        let damage = Damage::inflict(&mut bytes, &places, &mut dice);
        fs::write(sample.dir.path().join("damaged"), &bytes).unwrap();
        let qemu = qemu_check(sample.dir.path(), "damaged", sample.options);
        let ours = our_check(&in_memory(&bytes));
        unsound += u64::from(qemu.figures.is_some() && qemu.code != Some(0));
        let agree = match (&ours, qemu.figures) {
            // Behind the end of a file QEMU finds snapshots of zeros, where we find no more table.
            (Ok(ours), Some(_)) if damage.may_refuse && cuts_snapshots(ours) => true,
            (Ok(ours), Some(figures)) => {
                let ours = &without_cuts(ours);
                Figures::from(ours) == figures && Some(exit_code(ours)) == qemu.code
            }
            (Ok(ours), None) => !ours.is_clean(),
            (Err(_), Some(_)) => damage.may_refuse,
            (Err(_), None) => true,
        };
        if !agree {
            failures.push(format!(
                "{name}, round {round}: {damage:x?}\nours: {ours:#?}\nQEMU: {qemu:#?}"
            ));
        }
    }
    assert!(
        unsound > rounds / 2,
        "{name}: only {unsound} of {rounds} did harm"
    );
    assert!(
        failures.is_empty(),
        "{} of {rounds}; the first:\n{}",
        failures.len(),
        failures[0]
    );
}

/// The report without what QEMU does not look at: what is cut off inside of a cluster.
fn without_cuts(report: &CheckReport) -> CheckReport {
    let is_cut = |finding: &&Finding| matches!(finding, Finding::Cut { .. });
    let cuts = report.findings.iter().filter(is_cut).count() as u64;
    CheckReport {
        corruptions: report.corruptions - cuts,
        ..report.clone()
    }
}

fn cuts_snapshots(report: &CheckReport) -> bool {
    let unreadable = |finding: &Finding| matches!(finding, Finding::SnapshotTableUnreadable { .. });
    report.findings.iter().any(unreadable)
}

macro_rules! judge {
    ($($test:ident: $names:expr;)*) => {
        $(#[test]
        fn $test() {
            for name in $names {
                judge(name, ROUNDS);
            }
        })*
    };
}

judge! {
    plain: ["plain", "v2", "lazy", "overlay", "LUKS"];
    cluster_sizes: ["512-byte clusters", "4 KiB clusters", "2 MiB clusters", "preallocated"];
    narrow_refcounts: ["1-bit refcounts", "2-bit refcounts", "4-bit refcounts", "8-bit refcounts"];
    wide_refcounts: ["32-bit refcounts", "64-bit refcounts"];
    compressed: ["compressed", "compressed, small clusters", "compressed, large clusters", "zstd"];
    snapshots: ["snapshots", "snapshots, small clusters"];
    bitmaps: ["bitmaps"];
    extended_l2: ["extended L2", "extended L2, compressed"];
    data_files: ["data file", "raw data file"];
}
