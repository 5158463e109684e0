//! Replacing a header so that a power cut in the middle leaves the old one or the new one.
//!
//! # Why it takes steps
//!
//! A disk writes a sector of 512 bytes whole or not at all, and sectors in any order. The fixed fields lie in the first
//! sector; extensions and the backing file's name can reach into others, where a new name would overwrite the old
//! one sector by sector.
//!
//! # How it is done
//!
//! A [`Layout`] is a header with a place for each of its parts. From one layout the disk may *switch* to another if
//! no more than one sector has bytes that both need and that differ: everything else of the new layout goes into
//! bytes that the old one does not use, is made durable, and then that one sector (the first, with hardly an
//! exception) makes the switch.
//!
//! Where the old and the new header are in each other's way, the disk goes through other layouts of the old or the
//! new header in between: the name can lie anywhere behind the extensions, and an extension of a type that everybody
//! skips can lead from the fixed fields to extensions further back. Mostly one such stop is enough: the new header
//! behind the old one, and from there to the usual place. [`plan`] finds the shortest way.
//!
//! Only where a first cluster of a few sectors is too small for that, optional extensions (feature names and unknown
//! ones) are left out on the way and put back at its end. Where even that is not enough, nothing is changed. What a
//! cut leaves is the whole old or new header, in whatever layout; the next change brings it back to the usual one.

use std::collections::{BTreeSet, VecDeque};

use block::{Error, Result};
use byteorder::{BE, ByteOrder};

use super::Header;
use super::encode::{SECTOR, fixed_fields};
use crate::extension::{self, Extensions};

/// Sectors of the first cluster that may be written in any order, and must be durable before the next step.
pub(crate) type Step = Vec<SectorWrite>;

/// One sector of the first cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SectorWrite {
    /// Where it starts in the file, in bytes.
    pub(crate) offset: u64,
    /// What it is to hold.
    pub(crate) bytes: Vec<u8>,
}

/// The steps from the header in `disk`, all of the first cluster, to `new`. None where that is there already.
///
/// # Errors
/// `InvalidInput` if `new` is no valid header, or the first cluster has no room for the way; `Corrupt` if `disk` has no
/// valid header.
pub(crate) fn plan(disk: Vec<u8>, new: &Header) -> Result<Vec<Step>> {
    new.encode()?;
    let old = Header::parse(&disk, u64::MAX)?;
    let current = Layout::found(&disk, &old);
    let mut stops = Vec::new();
    for optional in [true, false] {
        let (from, to) = (Pieces::of(&old, optional), Pieces::of(new, optional));
        let Some(target) = Pieces::of(new, true).usual(disk.len()) else {
            break;
        };
        for pieces in [to, from] {
            stops.extend(pieces.layouts(&current, &target, disk.len()));
        }
        if let Some(way) = shortest_way(&current, &stops, &target) {
            return Ok(steps(disk, &current, &way));
        }
    }
    let message = format!(
        "the first cluster of {} bytes has no room for the old header and the new one, so that one could replace the \
         other safely",
        disk.len()
    );
    let hint = "use a shorter name, or copy the image into one with larger clusters: imgtool convert -o cluster_size=64k";
    Err(Error::invalid(message).with_hint(hint))
}

/// Bytes of a header that lie together.
#[derive(Clone, Debug)]
struct Part {
    at: usize,
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }
}

/// A header and where its parts lie: ascending, and the first one all of the first sector at least.
#[derive(Clone, Debug)]
struct Layout(Vec<Part>);

impl Layout {
    /// The one that `disk` holds, where `header` is what it says.
    fn found(disk: &[u8], header: &Header) -> Self {
        let (name_at, name_len) = (
            BE::read_u64(&disk[8..]) as usize,
            BE::read_u32(&disk[16..]) as usize,
        );
        let limit = if name_at == 0 { disk.len() } else { name_at };
        let extensions = header.header_length();
        let end = extension::area_end(disk, extensions, limit).max(SECTOR);
        let mut layout = Self(vec![Part {
            at: 0,
            bytes: disk[..end].to_vec(),
        }]);
        if name_at + name_len > end {
            let at = name_at.max(end);
            layout.0.push(Part {
                at,
                bytes: disk[at..name_at + name_len].to_vec(),
            });
        }
        layout
    }

    fn end(&self) -> usize {
        self.0.last().map_or(0, Part::end)
    }

    /// The sectors with bytes that this layout needs and that `next` needs otherwise.
    fn conflicts(&self, next: &Self) -> BTreeSet<usize> {
        let mut sectors = BTreeSet::new();
        for one in &self.0 {
            for other in &next.0 {
                let both = one.at.max(other.at)..one.end().min(other.end());
                sectors.extend(
                    both.filter(|at| one.bytes[at - one.at] != other.bytes[at - other.at])
                        .map(|at| at / SECTOR),
                );
            }
        }
        sectors
    }

    fn switches_to(&self, next: &Self) -> bool {
        self.conflicts(next).len() <= 1
    }
}

/// What layouts of one header are made of.
struct Pieces {
    /// The fixed fields, without the name's place.
    fixed: Vec<u8>,
    extensions: Vec<u8>,
    name: Vec<u8>,
}

impl Pieces {
    /// Those of `header`, with its optional extensions or without.
    fn of(header: &Header, optional: bool) -> Self {
        let mut extensions = Vec::new();
        if optional {
            header.extensions.encode(&mut extensions);
        } else {
            let needed = Extensions {
                feature_names: None,
                unknown: Vec::new(),
                ..header.extensions.clone()
            };
            needed.encode(&mut extensions);
        }
        Self {
            fixed: fixed_fields(header),
            extensions,
            name: header.backing_name.clone().unwrap_or_default().into_bytes(),
        }
    }

    /// Layouts in a first cluster of `len` bytes that may lie beside `current` and `target`.
    fn layouts(&self, current: &Layout, target: &Layout, len: usize) -> Vec<Layout> {
        let inline = self.fixed.len() + self.extensions.len();
        let behind = current.end().max(target.end());
        let total = self.extensions.len() + self.name.len();
        let last = len.saturating_sub(total) / 8 * 8;
        let mut layouts = Vec::new();
        for at in [behind, current.end(), target.end(), SECTOR, last] {
            layouts.extend(self.led_to(at.next_multiple_of(8), len));
        }
        let last = len.saturating_sub(self.name.len());
        for name in [inline, behind, current.end(), target.end(), SECTOR, last] {
            layouts.extend(self.layout(None, name, len));
        }
        layouts
    }

    /// As [`Header::encode`] has it.
    fn usual(&self, len: usize) -> Option<Layout> {
        self.layout(None, self.fixed.len() + self.extensions.len(), len)
    }

    /// The extensions at `at`, with the name behind them.
    fn led_to(&self, at: usize, len: usize) -> Option<Layout> {
        self.layout(Some(at), at + self.extensions.len(), len)
    }

    /// The extensions behind the fixed fields or at `moved`, and the name at `name`; if that can be.
    fn layout(&self, moved: Option<usize>, name: usize, len: usize) -> Option<Layout> {
        let mut head = self.fixed.clone();
        let mut parts = Vec::new();
        let mut end = match moved {
            None => {
                head.extend_from_slice(&self.extensions);
                head.len()
            }
            Some(at) => {
                let prefix = extension::padding_prefix(at.checked_sub(head.len())?)?;
                head.extend_from_slice(&prefix);
                if head.len() > SECTOR || at < SECTOR {
                    return None;
                }
                parts.push(Part {
                    at,
                    bytes: self.extensions.clone(),
                });
                at + self.extensions.len()
            }
        };
        if !self.name.is_empty() {
            if name < end {
                return None;
            }
            BE::write_u64(&mut head[8..], name as u64);
            BE::write_u32(&mut head[16..], self.name.len() as u32);
            parts.push(Part {
                at: name,
                bytes: self.name.clone(),
            });
            end = name + self.name.len();
        }
        (end <= len).then(|| joined(head, parts))
    }
}

/// A layout of `head` and what lies behind it; all of the first sector is made one part.
fn joined(mut head: Vec<u8>, parts: Vec<Part>) -> Layout {
    head.resize(head.len().max(SECTOR), 0);
    let mut layout = Layout(Vec::new());
    for mut part in parts {
        if part.at < head.len() {
            let inside = part.bytes.len().min(head.len() - part.at);
            head[part.at..][..inside].copy_from_slice(&part.bytes[..inside]);
            part.bytes.drain(..inside);
            part.at += inside;
        }
        if !part.bytes.is_empty() {
            layout.0.push(part);
        }
    }
    layout.0.insert(0, Part { at: 0, bytes: head });
    layout
}

/// The layouts to pass, `target` last, so that each switches to the next.
fn shortest_way<'a>(current: &'a Layout, stops: &'a [Layout], target: &'a Layout) -> Option<Vec<&'a Layout>> {
    let mut ways = VecDeque::from([vec![current]]);
    let mut left: Vec<&Layout> = stops.iter().collect();
    while let Some(way) = ways.pop_front() {
        let here = *way.last()?;
        if here.switches_to(target) {
            let passed = way.into_iter().skip(1);
            return Some(passed.chain([target]).collect());
        }
        left.retain(|stop| {
            let reached = here.switches_to(stop);
            if reached {
                ways.push_back(way.iter().copied().chain([*stop]).collect());
            }
            !reached
        });
    }
    None
}

/// What to write to pass the layouts of `way`, from `current` on `disk`; and to clear what they leave at the end.
fn steps(mut disk: Vec<u8>, current: &Layout, way: &[&Layout]) -> Vec<Step> {
    let mut steps = Vec::new();
    let (mut here, mut used) = (current, current.end());
    for layout in way {
        let mut next = disk.clone();
        for part in &layout.0 {
            next[part.at..part.end()].copy_from_slice(&part.bytes);
        }
        let switch = here.conflicts(layout).first().copied().unwrap_or(0);
        steps.push(changed_sectors(&disk, &next, |sector| sector != switch));
        steps.push(changed_sectors(&disk, &next, |sector| sector == switch));
        (disk, here, used) = (next, layout, used.max(layout.end()));
    }
    let mut cleared = disk.clone();
    cleared[here.end()..used.max(here.end().next_multiple_of(SECTOR))].fill(0);
    steps.push(changed_sectors(&disk, &cleared, |_| true));
    steps.retain(|step| !step.is_empty());
    steps
}

/// The sectors that differ, as far as they are `wanted`, as they are in `new`.
fn changed_sectors(old: &[u8], new: &[u8], wanted: impl Fn(usize) -> bool) -> Step {
    let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR)).enumerate();
    sectors
        .filter(|(sector, (old, new))| wanted(*sector) && old != new)
        .map(|(sector, (_, new))| SectorWrite {
            offset: (sector * SECTOR) as u64,
            bytes: new.to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use block::test_utils::{Recorder, Rng, seeds};
    use block::{MemStorage, Storage};

    use super::*;
    use crate::address::HostOffset;
    use crate::extension::{BitmapsExtension, UnknownExtension};
    use crate::feature::FeatureNames;
    use crate::header::Version;

    const LARGEST: u64 = 16 << 10;

    fn text(rng: &mut Rng, longest: u64) -> String {
        let len = 1 + rng.below(longest);
        (0..len).map(|_| char::from(b'a' + rng.below(26) as u8)).collect()
    }

    fn name(rng: &mut Rng) -> Option<String> {
        let longest = [20, 120, 400, 1023][rng.below(4) as usize];
        (rng.below(8) > 0).then(|| text(rng, longest))
    }

    fn extensions(rng: &mut Rng) -> Extensions {
        let mut extensions = Extensions {
            backing_format: rng.coin().then(|| "qcow2".into()),
            data_file: (rng.below(4) == 0).then(|| text(rng, 200)),
            encryption_header: None,
            feature_names: rng.coin().then(|| FeatureNames::of_table(&[7; 48 * 8])),
            bitmaps: (rng.below(3) == 0).then_some(BitmapsExtension {
                count: 1,
                directory_size: 32,
                directory_offset: HostOffset(8 << 20),
            }),
            unknown: Vec::new(),
        };
        for kind in 0..rng.below(6).saturating_sub(3) as u32 {
            let len = rng.below(700);
            let data = (0..len).map(|_| rng.below(256) as u8).collect();
            extensions.unknown.push(UnknownExtension {
                kind: 99 + kind,
                data,
            });
        }
        extensions
    }

    /// A header that fits clusters of `bits`; of the clusters' number hardly anything depends.
    fn header(rng: &mut Rng, bits: u32) -> Header {
        let mut bytes = vec![0; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        BE::write_u32(&mut bytes[20..], bits);
        BE::write_u64(&mut bytes[24..], 1 << 20);
        BE::write_u32(&mut bytes[36..], 1 << 15);
        BE::write_u64(&mut bytes[40..], 4 << 20);
        BE::write_u64(&mut bytes[48..], 6 << 20);
        BE::write_u32(&mut bytes[56..], 1);
        BE::write_u32(&mut bytes[96..], 4);
        BE::write_u32(&mut bytes[100..], 112);
        let mut header = Header::parse(&bytes, u64::MAX).unwrap();
        if rng.below(3) == 0 {
            header.version = Version::V2;
            header.later_fields.clear();
        }
        loop {
            header.extensions = extensions(rng);
            header.backing_name = name(rng);
            if header.encode().is_ok() {
                return header;
            }
        }
    }

    /// What another writer, or somebody who changes one thing, makes of `old`.
    fn changed(rng: &mut Rng, old: &Header) -> Header {
        loop {
            let mut new = old.clone();
            match rng.below(6) {
                0 => new = header(rng, old.geometry.cluster_bits),
                1 => new.extensions = extensions(rng),
                2 => new.size += 512,
                _ => new.backing_name = name(rng),
            }
            if rng.coin() {
                new.refcount_table_offset.0 += 1 << 20;
            }
            if new.encode().is_ok() {
                return new;
            }
        }
    }

    fn disk(header: &Header, rng: &mut Rng) -> MemStorage {
        let mut bytes = header.encode().unwrap();
        bytes.resize(header.geometry.cluster_size() as usize, 0);
        // What lies behind a header means nothing.
        let end = header.encode().unwrap().len();
        if header.backing_name.is_some() && rng.coin() {
            bytes[end..].fill(0xee);
        }
        MemStorage::from(bytes)
    }

    fn first_cluster(storage: &dyn Storage, header: &Header) -> Vec<u8> {
        let mut bytes = vec![0; header.geometry.cluster_size() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn essential(header: &Header) -> Header {
        let mut header = header.clone();
        header.extensions.feature_names = None;
        header.extensions.unknown.clear();
        header
    }

    /// Carries out a plan. `None` where there is none.
    fn rewrite(storage: &dyn Storage, new: &Header) -> Option<usize> {
        let steps = plan(first_cluster(storage, new), new).ok()?;
        for step in &steps {
            for sector in step {
                assert!(sector.offset.is_multiple_of(512) && sector.bytes.len() == 512);
                storage.write_all_at(&sector.bytes, sector.offset).unwrap();
            }
            storage.sync_data().unwrap();
        }
        Some(steps.len())
    }

    #[test]
    fn a_power_cut_leaves_the_old_header_or_the_new_one() {
        let (mut refused, mut longest) = (0, 0);
        for seed in seeds(1500) {
            let mut rng = Rng::new(seed);
            let bits = [9, 10, 11, 12, 13, 14][rng.below(6) as usize];
            let old = header(&mut rng, bits);
            let new = changed(&mut rng, &old);
            let recorder = Recorder::new();
            let storage = recorder.storage(disk(&old, &mut rng));
            let Some(count) = rewrite(&*storage, &new) else {
                let needed = 512 + old.encode().unwrap().len() + new.encode().unwrap().len();
                assert!(needed as u64 > 1 << bits, "seed {seed}: {needed} bytes would fit");
                assert_eq!(recorder.position(), 0, "seed {seed}");
                refused += 1;
                continue;
            };
            longest = longest.max(count);
            let roomy = 3 * LARGEST / 8 <= 1 << bits;
            let states = recorder.crash_states();
            for point in states.points() {
                for cut in seeds(12) {
                    let what = format!("seed {seed} point {point} cut {cut}");
                    let disk = states.at(point, cut).remove(0);
                    let bytes = first_cluster(&disk, &old);
                    let found = Header::parse(&bytes, u64::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
                    let whole = found == old || found == new;
                    let needed = essential(&found) == essential(&old) || essential(&found) == essential(&new);
                    assert!(whole || needed && !roomy, "{what}: {found:?}");
                    // Whatever a cut leaves can be changed again.
                    if roomy && cut == 7 {
                        let third = changed(&mut rng, &found);
                        rewrite(&disk, &third).unwrap_or_else(|| panic!("{what}: no way on"));
                        assert!(disk.to_vec().starts_with(&third.encode().unwrap()), "{what}");
                    }
                }
            }
            let left = storage.snapshot().to_vec();
            assert!(left.starts_with(&new.encode().unwrap()), "seed {seed}");
        }
        assert!(refused < 300, "{refused} refused");
        assert!(longest <= 8, "{longest} steps");
    }

    #[test]
    fn what_lies_in_one_sector_takes_one_step() {
        let mut rng = Rng::new(1);
        let mut old = header(&mut rng, 16);
        old.backing_name = Some("base.qcow2".into());
        let mut new = old.clone();
        new.size += 512;
        assert_eq!(rewrite(&disk(&old, &mut rng), &new), Some(1));
        assert_eq!(rewrite(&disk(&old, &mut rng), &old), Some(0));
    }
}
