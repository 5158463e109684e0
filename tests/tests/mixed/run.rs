//! An image and its model, and the steps that change both.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use block::test_utils::Rng;
use block::{
    Access, Backing, BlockDevice, ErrorKind, ExtentState, MemStorage, Overlay, Resize, SnapshotSelector,
    Storage, ZeroMode,
};
use qcow2::{
    GuestOffset, Header, Image, IncompatibleFeatures, OpenOptions, Place, RepairKind, RepairOptions,
    SnapshotProgress, WritePlan,
};
use tests::Lab;

use crate::model::{Model, Taken, Track};
use crate::shape::Kind;

pub(crate) struct Run {
    pub(crate) kind: Kind,
    pub(crate) lab: Lab,
    pub(crate) storage: Arc<MemStorage>,
    pub(crate) data: Option<Arc<MemStorage>>,
    backing: Option<Arc<MemStorage>>,
    /// Closed and opened again now and then.
    image: Option<Image>,
    pub(crate) model: Model,
    /// Names given so far: each is another.
    names: u32,
    /// Clusters may have leaked since the last repair, as a process was killed.
    leaky: bool,
    pub(crate) done: Vec<String>,
}

fn go_on(_: SnapshotProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

impl Run {
    pub(crate) fn new(kind: Kind, rng: &mut Rng) -> Self {
        let storage = Arc::new(MemStorage::new());
        qcow2::create(&*storage, &kind.create_options()).expect("a new image");
        let data = kind.data_file.map(|_| {
            let data = MemStorage::new();
            data.set_len(kind.size).expect("memory");
            Arc::new(data)
        });
        let below = kind
            .backing
            .map(|len| (0..len).map(|_| rng.below(255) as u8 + 1).collect::<Vec<_>>());
        let mut disk = below.clone().unwrap_or_default();
        disk.resize(kind.size as usize, 0);
        let mut run = Self {
            kind,
            lab: Lab::new(),
            storage,
            data,
            backing: below.map(|bytes| Arc::new(MemStorage::from(bytes))),
            image: None,
            model: Model::new(disk),
            names: 0,
            leaky: false,
            done: vec![format!("{kind:?}")],
        };
        if let Some(backing) = &run.backing {
            std::fs::write(run.lab.path("base.raw"), backing.to_vec()).expect("room for the backing file");
        }
        run.open();
        run
    }

    fn options(&self, access: Access) -> OpenOptions {
        let backing = self.backing.as_ref().map_or(Backing::None, |below| {
            let device = raw::Image::open(Arc::clone(below) as _, Access::READ);
            Backing::Device(Arc::new(device.expect("a raw image")))
        });
        OpenOptions {
            access,
            backing,
            data_file: self.data.clone().map(|data| data as Arc<dyn Storage>),
            // One set of slots, so that eviction happens too.
            l2_cache: 1,
            ..OpenOptions::default()
        }
    }

    fn open(&mut self) {
        let options = self.options(Access::WRITE);
        self.image = Some(Image::open(self.storage.clone(), options).expect("the image opens"));
    }

    fn image(&self) -> &Image {
        self.image.as_ref().expect("open")
    }

    fn close(&mut self) {
        self.image.take().expect("open").close().expect("close");
        if self.leaky {
            self.repair(RepairKind::Leaks);
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    fn cluster(&self) -> usize {
        self.kind.shape.cluster_size() as usize
    }

    fn range(&self, rng: &mut Rng) -> Range<usize> {
        let size = self.model.disk.len();
        let start = rng.below(size as u64) as usize;
        let longest = match rng.below(4) {
            0 => size / 2 + 1,
            1 => 600,
            _ => 3 * self.cluster(),
        };
        let end = start + 1 + rng.below(longest as u64) as usize;
        start..end.min(size)
    }

    /// One random step. The disk and all that follows from it is compared after each.
    pub(crate) fn step(&mut self, rng: &mut Rng) {
        let range = self.range(rng);
        let number = rng.below(32);
        self.done.push(format!("{number}: {range:?}"));
        match number {
            0..6 => self.write(&range, rng),
            6..9 => self.plans(&range, rng),
            9 | 10 => self.zero(&range, rng),
            11 | 12 => self.discard(&range),
            13 | 14 => self.write_compressed(&range, rng),
            15 => self.resize(rng),
            16..19 => self.take_snapshot(),
            19 => self.apply_snapshot(rng),
            20 => self.delete_snapshot(rng),
            21 => self.rename_snapshot(rng),
            22 | 23 => self.add_bitmap(rng),
            24 | 25 => self.edit_bitmap(rng),
            26 => self.image().flush().expect("flush"),
            27 => self.reopen(),
            28 => self.kill(rng),
            29 => self.damage(rng),
            _ => self.qemu(rng),
        }
        self.compare();
    }

    fn write(&mut self, range: &Range<usize>, rng: &mut Rng) {
        let byte = rng.below(256) as u8;
        let bytes: Vec<u8> = range
            .clone()
            .map(|at| byte.wrapping_add((at / 3) as u8))
            .collect();
        self.image().write_at(&bytes, range.start as u64).expect("write");
        self.model.write(&bytes, range);
    }

    fn zero(&mut self, range: &Range<usize>, rng: &mut Rng) {
        let mode = if rng.coin() {
            ZeroMode::Unmap
        } else {
            ZeroMode::Allocate
        };
        let zeroed = self.image().zero_at(range.start as u64, range.len() as u64, mode);
        zeroed.expect("zero");
        self.model.zero(range);
    }

    /// Whole subclusters read as zeros afterwards, but for those of a compressed cluster that stays.
    fn discard(&mut self, range: &Range<usize>) {
        let shape = self.kind.shape;
        let cluster = self.cluster();
        let unit = if shape.extended_l2 { cluster / 32 } else { cluster };
        let size = self.model.disk.len();
        let start = range.start.next_multiple_of(unit);
        let end = if range.end == size {
            size.next_multiple_of(cluster)
        } else {
            range.end / unit * unit
        };
        let mut zeroed = Vec::new();
        if start < end && !(shape.v2 && self.backing.is_some()) {
            for at in (start / cluster * cluster..end).step_by(cluster) {
                let extent = self.image().own_extent_at(at as u64, 1).expect("extent");
                let part = start.max(at)..end.min(at + cluster);
                if extent.state != ExtentState::Compressed || part.len() == cluster {
                    zeroed.push(part.start.min(size)..part.end.min(size));
                }
            }
        }
        let discarded = self.image().discard_at(range.start as u64, range.len() as u64);
        discarded.expect("discard");
        self.model.mark(range);
        for part in zeroed {
            self.model.disk[part].fill(0);
        }
    }

    fn write_compressed(&mut self, range: &Range<usize>, rng: &mut Rng) {
        let cluster = self.cluster();
        let start = range.start / cluster * cluster;
        let range = start..self.model.disk.len().min(start + cluster);
        let Some(writer) = self.image().compressed() else {
            assert!(self.kind.data_file.is_some());
            return;
        };
        let byte = rng.below(255) as u8 + 1;
        let mut bytes: Vec<u8> = (0..cluster)
            .map(|at| byte.wrapping_add((at / 100) as u8))
            .collect();
        bytes[range.len()..].fill(0);
        let written = match writer.compress(&bytes).expect("compress") {
            Some(compressed) => writer.write_compressed_at(&compressed, start as u64),
            None => self.image().write_at(&bytes[..range.len()], start as u64),
        };
        written.expect("write");
        self.model.write(&bytes[..range.len()], &range);
    }

    /// Two plans at a time, committed in either order or dropped, with reads in between.
    fn plans(&mut self, range: &Range<usize>, rng: &mut Rng) {
        let other = self.range(rng);
        let (first_kept, second_kept, swapped, byte) =
            (rng.coin(), rng.coin(), rng.coin(), rng.below(256) as u8);
        let mut model = self.model.clone();
        let image = self.image();
        let plan = |range: &Range<usize>| (GuestOffset(range.start as u64), range.len() as u64);
        let (guest, len) = plan(range);
        let first = image.plan_write(guest, len).expect("a plan");
        model.mark(range);
        let apart = other.end <= range.start || range.end <= other.start;
        let second = if apart {
            let (guest, len) = plan(&other);
            model.mark(&other);
            image.try_plan_write(guest, len).expect("a plan, or none")
        } else {
            None
        };
        image.flush().expect("flush");
        assert!(
            disk(image) == model.disk,
            "plans are seen before they are committed"
        );
        let mut plans = vec![(first, range.clone(), first_kept)];
        plans.extend(second.map(|plan| (plan, other, second_kept)));
        if swapped {
            plans.reverse();
        }
        for (plan, range, kept) in plans {
            if !kept {
                continue;
            }
            let bytes = vec![byte.wrapping_add(range.start as u8); range.len()];
            fill(image, &plan, &bytes, range.start);
            plan.commit().expect("commit");
            model.disk[range].copy_from_slice(&bytes);
        }
        self.model = model;
    }

    fn resize(&mut self, rng: &mut Rng) {
        let size = if rng.coin() {
            self.kind.random_size(rng)
        } else {
            // Inside a cluster, or just over its edge.
            (self.model.disk.len() as u64 + 512 * rng.below(9))
                .saturating_sub(2048)
                .max(512)
        };
        let how = Resize {
            shrink: true,
            ..Resize::default()
        };
        let resized = self.image().resize(size, how);
        let v2 = self.kind.shape.v2 && !self.model.snapshots.is_empty();
        if v2 || !self.model.can_resize() {
            // To the length that it has, there is nothing to refuse.
            let same = size == self.model.disk.len() as u64;
            assert!(same || resized.unwrap_err().kind() == ErrorKind::Unsupported);
        } else {
            resized.expect("resize");
            self.model.resize(size as usize);
        }
    }

    fn take_snapshot(&mut self) {
        let name = self.name("snapshot ");
        let taken = self.image().create_snapshot(&name, UNIX_EPOCH, &mut go_on);
        match taken {
            Ok(_) => {
                assert!(self.kind.data_file.is_none(), "a snapshot without its data");
                let disk = self.model.disk.clone();
                self.model.snapshots.push(Taken { name, disk });
            }
            Err(error) => {
                let narrow = self.kind.shape.refcount_order < 4;
                assert!(
                    error.kind() == ErrorKind::Unsupported && (narrow || self.kind.data_file.is_some()),
                    "{error}"
                );
            }
        }
    }

    fn some_snapshot(&self, rng: &mut Rng) -> Option<(usize, SnapshotSelector)> {
        let count = self.model.snapshots.len() as u64;
        let number = (count > 0).then(|| rng.below(count) as usize)?;
        Some((
            number,
            SnapshotSelector::name(&*self.model.snapshots[number].name),
        ))
    }

    fn apply_snapshot(&mut self, rng: &mut Rng) {
        let Some((number, which)) = self.some_snapshot(rng) else {
            return;
        };
        let applied = self.image().apply_snapshot(&which, &mut go_on);
        let same = self.model.snapshots[number].disk.len() == self.model.disk.len();
        match applied {
            Ok(()) => {
                assert!(same || self.model.can_resize());
                self.model.go_back(number);
            }
            Err(error) => {
                let narrow = self.kind.shape.refcount_order < 4;
                let allowed = narrow || !same && !self.model.can_resize();
                assert!(error.kind() == ErrorKind::Unsupported && allowed, "{error}");
            }
        }
    }

    fn delete_snapshot(&mut self, rng: &mut Rng) {
        if let Some((number, which)) = self.some_snapshot(rng) {
            self.image().delete_snapshot(&which, &mut go_on).expect("delete");
            self.model.snapshots.remove(number);
        }
    }

    fn rename_snapshot(&mut self, rng: &mut Rng) {
        let name = self.name("renamed ");
        if let Some((number, which)) = self.some_snapshot(rng) {
            self.image().rename_snapshot(&which, &name).expect("rename");
            self.model.snapshots[number].name = name;
        }
    }

    fn add_bitmap(&mut self, rng: &mut Rng) {
        let name = self.name("bitmap");
        let (granularity, enabled) = (512 << rng.below(8), rng.below(4) > 0);
        let added = self
            .image()
            .edit_bitmaps(|bitmaps| bitmaps.add(&name, Some(granularity), enabled));
        if self.kind.shape.v2 {
            assert_eq!(added.unwrap_err().kind(), ErrorKind::Unsupported);
            return;
        }
        added.expect("add");
        let size = self.model.disk.len();
        self.model
            .bitmaps
            .push(Track::new(name, granularity, enabled, size));
    }

    fn edit_bitmap(&mut self, rng: &mut Rng) {
        let count = self.model.bitmaps.len();
        if count == 0 {
            return;
        }
        let [number, other] = [rng.below(count as u64) as usize, rng.below(count as u64) as usize];
        let edit = rng.below(5);
        let size = self.model.disk.len();
        let (track, source) = (&self.model.bitmaps[number], &self.model.bitmaps[other]);
        let edited = self.image().edit_bitmaps(|bitmaps| match edit {
            0 => bitmaps.remove(&track.name),
            1 => bitmaps.clear(&track.name),
            2 => bitmaps.enable(&track.name),
            3 => bitmaps.disable(&track.name),
            _ => {
                let bits = bitmaps.dirty_bits(&source.name)?;
                bitmaps.merge(&track.name, &bits)
            }
        });
        let usable = track.bits.is_some() && (edit != 4 || source.bits.is_some());
        if edit != 0 && !usable {
            assert_eq!(edited.unwrap_err().kind(), ErrorKind::Unsupported);
            return;
        }
        edited.expect("edit");
        match edit {
            0 => drop(self.model.bitmaps.remove(number)),
            1 => {
                let track = &mut self.model.bitmaps[number];
                *track = Track::new(track.name.clone(), track.granularity, track.enabled, size);
            }
            2 => self.model.bitmaps[number].enabled = true,
            3 => self.model.bitmaps[number].enabled = false,
            _ => self.model.merge(number, other),
        }
    }

    pub(crate) fn reopen(&mut self) {
        self.close();
        self.judge_file();
        self.open();
    }

    /// Ends as a process does that is killed after a flush. Bitmaps that it tracked are lost then.
    fn kill(&mut self, rng: &mut Rng) {
        self.image().flush().expect("flush");
        let left = Arc::new(MemStorage::clone(&self.storage));
        let data = self.data.as_ref().map(|data| Arc::new(MemStorage::clone(data)));
        self.close();
        (self.storage, self.data) = (left, data);
        self.leaky = true;
        let header = Header::read(&*self.storage).expect("a header");
        let dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        assert!(self.kind.shape.lazy || !dirty, "nothing was to be postponed");
        if rng.coin() {
            self.repair(if dirty { RepairKind::All } else { RepairKind::Leaks });
        }
        self.open();
        let stored = self.image().bitmaps().expect("the bitmaps");
        for (track, bitmap) in self.model.bitmaps.iter_mut().zip(stored) {
            assert!(!bitmap.in_use || track.enabled, "in use and disabled: {bitmap:?}");
            if bitmap.in_use {
                track.bits = None;
            }
        }
    }

    /// Breaks something that a repair sets right, and has it set right.
    fn damage(&mut self, rng: &mut Rng) {
        self.close();
        let harmed = crate::damage::harm(&self.storage, self.kind.data_file.is_some(), rng);
        self.done.push(format!("harmed: {harmed:?}"));
        self.repair(RepairKind::All);
        self.judge_file();
        self.open();
    }

    fn repair(&mut self, what: RepairKind) {
        let options = RepairOptions {
            what,
            ..RepairOptions::default()
        };
        let report = qcow2::repair(&*self.storage, &options, &mut |_| ControlFlow::Continue(()));
        let report = report.expect("a repair");
        if what == RepairKind::All && report.lost_tables > 0 && report.after.corruptions == 0 {
            // The map is empty: whether that is right, only who asks for it knows.
            return self.repair(RepairKind::Leaks);
        }
        assert!(report.after.is_clean(), "after a repair: {report:?}");
        let before = &report.before;
        assert!(
            what == RepairKind::All || before.corruptions + before.check_errors == 0,
            "worse than leaks: {before:?}"
        );
        self.leaky = false;
    }

    /// The image, as it is open, against the model.
    fn compare(&self) {
        let image = self.image();
        assert_eq!(image.size(), self.model.disk.len() as u64);
        self.assert_same(&disk(image), &self.model.disk, "the disk");
        let stored = image.bitmaps().expect("the bitmaps");
        assert_eq!(stored.len(), self.model.bitmaps.len());
        for (bitmap, track) in stored.iter().zip(&self.model.bitmaps) {
            assert_eq!((&bitmap.name, bitmap.auto), (&track.name, track.enabled));
            let bits = image.dirty_bits(&track.name);
            if track.bits.is_some() {
                let ranges: Vec<_> = bits.expect("its bits").ranges().collect();
                assert_eq!(ranges, track.ranges(image.size()), "{}", track.name);
            } else {
                assert_eq!(bits.unwrap_err().kind(), ErrorKind::Unsupported);
            }
        }
        let snapshots = image.snapshots().expect("the snapshots");
        let names = snapshots.iter().map(|snapshot| &snapshot.name);
        assert!(names.eq(self.model.snapshots.iter().map(|taken| &taken.name)));
    }

    /// The file, closed, against the model: both checks, snapshots as we read them.
    fn judge_file(&self) {
        self.store();
        let figures = self.lab.assert_same_check("image");
        assert!(figures.is_clean(), "{figures:?} after {:#?}", self.done);
        for taken in &self.model.snapshots {
            let which = SnapshotSelector::name(&*taken.name);
            let snapshot = Image::open_snapshot(self.storage.clone(), &which, self.options(Access::READ));
            self.assert_same(
                &disk(&snapshot.expect("the snapshot opens")),
                &taken.disk,
                &taken.name,
            );
        }
    }

    pub(crate) fn store(&self) {
        let files = [("image", Some(&self.storage)), ("data.raw", self.data.as_ref())];
        for (name, storage) in files {
            if let Some(storage) = storage {
                std::fs::write(self.lab.path(name), storage.to_vec()).expect("room for the file");
            }
        }
    }

    pub(crate) fn assert_same(&self, seen: &[u8], expected: &[u8], what: &str) {
        let differs = seen.iter().zip(expected).position(|(a, b)| a != b);
        assert!(
            differs.is_none() && seen.len() == expected.len(),
            "{what}: differs at {differs:?}, lengths {} and {}, after {:#?}",
            seen.len(),
            expected.len(),
            self.done
        );
    }

    /// Everything, as QEMU sees it.
    pub(crate) fn finish(mut self) {
        self.reopen();
        self.compare();
        self.close();
        self.judge_by_qemu();
    }

    fn qemu(&mut self, rng: &mut Rng) {
        self.close();
        self.store();
        self.qemu_changes(rng);
        self.load();
        self.judge_file();
        self.open();
    }

    fn load(&mut self) {
        self.storage = Arc::new(MemStorage::from(self.lab.bytes("image")));
        if self.data.is_some() {
            self.data = Some(Arc::new(MemStorage::from(self.lab.bytes("data.raw"))));
        }
    }
}

/// The disk, as mapped and read by ourselves where the image says where.
fn disk(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size() as usize];
    let mut at = 0;
    while at < bytes.len() {
        let rest = (bytes.len() - at) as u64;
        let mapped = image.map(GuestOffset(at as u64), rest).expect("map");
        let run = &mut bytes[at..at + mapped.len as usize];
        match mapped.place {
            Place::Host(host) => image.data_storage().read_exact_at(run, host.0).expect("read"),
            Place::Zeros => run.fill(0),
            Place::Backing | Place::Compressed | Place::Encrypted => {
                image.read_at(run, at as u64).expect("read");
            }
        }
        at += mapped.len as usize;
    }
    let mut read = vec![0x55; bytes.len()];
    image.read_at(&mut read, 0).expect("read");
    assert!(read == bytes, "what is read is not what is mapped");
    bytes
}

/// Writes what a plan names.
fn fill(image: &Image, plan: &WritePlan<'_>, bytes: &[u8], start: usize) {
    for run in plan.runs() {
        let at = run.guest.0 as usize - start;
        let part = &bytes[at..at + run.len as usize];
        image
            .data_storage()
            .write_all_at(part, run.host.0)
            .expect("write");
    }
}
