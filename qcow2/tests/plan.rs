//! Map-then-I/O: the tests move the bytes themselves, where the image says.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use block::test_utils::{Recorder, Rng, seeds};
use block::{BackingReference, BlockDevice, ErrorKind, MemStorage, Resize, Storage, ZeroMode};
use common::Bytes;
use qcow2::{CreateOptions, GuestOffset, Image, Mapped, OpenOptions, Place, WritePlan};

/// Reads through [`Image::map`] where it says where, and through the image where it does not.
fn read(image: &Image, buf: &mut [u8], offset: u64) {
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let mapped = image
            .map(GuestOffset(at), (buf.len() - done) as u64)
            .expect("map");
        let run = &mut buf[done..done + mapped.len as usize];
        match mapped.place {
            Place::Host(host) => image.data_storage().read_exact_at(run, host.0).expect("read"),
            Place::Zeros => run.fill(0),
            Place::Backing | Place::Compressed | Place::Encrypted => image.read_at(run, at).expect("read"),
        }
        done += mapped.len as usize;
    }
}

/// Fills what a plan names, as a caller with a file descriptor of its own does.
fn fill(image: &Image, plan: &WritePlan<'_>, data: &[u8], offset: u64) {
    let mut at = offset;
    for run in plan.runs() {
        assert_eq!(run.guest.0, at, "runs follow each other");
        let start = (at - offset) as usize;
        image
            .data_storage()
            .write_all_at(&data[start..start + run.len as usize], run.host.0)
            .expect("write");
        at += run.len;
    }
    assert_eq!(at, offset + data.len() as u64, "runs cover the range");
}

fn write(image: &Image, data: &[u8], offset: u64) {
    let plan = image
        .plan_write(GuestOffset(offset), data.len() as u64)
        .expect("plan");
    fill(image, &plan, data, offset);
    plan.commit().expect("commit");
}

/// An image, its data file if it has one, and the bytes of its backing device.
struct Shape {
    image: Arc<MemStorage>,
    data: Option<Arc<MemStorage>>,
    below: Option<Vec<u8>>,
}

impl Shape {
    /// Clusters of 16 and of 128 KiB have subclusters.
    fn new(cluster_bits: u32, data_file: Option<bool>, backing: Option<u64>, size: u64) -> Self {
        let options = CreateOptions {
            size,
            cluster_bits,
            extended_l2: [14, 17].contains(&cluster_bits),
            backing: backing.map(|_| BackingReference {
                name: "base.raw".into(),
                format: Some("raw".into()),
            }),
            ..CreateOptions::default()
        };
        let (image, data) = if let Some(raw) = data_file {
            let (image, data) = common::create_with_data_file(&options, raw);
            (image, Some(Arc::new(data)))
        } else {
            let image = MemStorage::new();
            qcow2::create(&image, &options).expect("valid options");
            (image, None)
        };
        Self {
            image: Arc::new(image),
            data,
            below: backing.map(|len| Bytes::pattern(len, 3).0),
        }
    }

    fn open(&self) -> Image {
        let below = self
            .below
            .clone()
            .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
        let data = self.data.clone().map(|data| data as Arc<dyn Storage>);
        common::open_with_data_file(self.image.clone(), below.as_ref(), data)
    }

    fn model(&self, size: u64) -> Vec<u8> {
        let mut model = self.below.clone().unwrap_or_default();
        model.resize(size as usize, 0);
        model
    }

    fn judge(&self, model: &[u8], what: &str) {
        let image = self.image.to_vec();
        let (code, words) = common::qemu_check(&image);
        assert_eq!(code, 0, "{what}: {words}");
        let data = self.data.as_ref().map(|data| data.to_vec());
        let theirs = common::qemu_read_with_data_file(&image, self.below.as_deref(), data.as_deref());
        assert!(theirs == model, "{what}: QEMU reads something else");
    }
}

/// Requests of all kinds in random order, half of the writes by plan, some of them given up.
fn requests(cluster_bits: u32, data_file: Option<bool>, backing: Option<u64>, seed: u64) {
    let what = format!("2^{cluster_bits}, data file {data_file:?}, backing {backing:?}, seed {seed}");
    let size = 300 * 512;
    let shape = Shape::new(cluster_bits, data_file, backing, size);
    let mut model = shape.model(size);
    let mut image = shape.open();
    let mut rng = Rng::new(seed);
    for step in 0..80u8 {
        let start = rng.below(size) as usize;
        let end = model.len().min(start + 1 + rng.below(5 << cluster_bits) as usize);
        let (at, len) = (start as u64, (end - start) as u64);
        let data = vec![step + 1; end - start];
        match rng.below(12) {
            0 => {
                image.zero_at(at, len, ZeroMode::Allocate).expect("zero");
                model[start..end].fill(0);
            }
            1 => {
                image.zero_at(at, len, ZeroMode::Unmap).expect("zero");
                model[start..end].fill(0);
            }
            2 => {
                image.write_at(&data, at).expect("write");
                model[start..end].copy_from_slice(&data);
            }
            3 | 4 => {
                let mut seen = vec![0xaa; end - start];
                read(&image, &mut seen, at);
                assert!(seen == model[start..end], "{what}: read of {start}..{end}");
            }
            5 | 6 => {
                // Given up before anything is written where others could see it.
                let plan = image.plan_write(GuestOffset(at), len).expect("plan");
                if rng.coin() {
                    let written = |host| {
                        let mut seen = vec![0; model.len()];
                        image.read_at(&mut seen, 0).expect("read");
                        let before = seen == model;
                        image
                            .data_storage()
                            .write_all_at(&[0xee; 1], host)
                            .expect("write");
                        before
                    };
                    let fresh = plan
                        .runs()
                        .iter()
                        .find(|run| image.map(run.guest, 1).expect("map").place != Place::Host(run.host));
                    if let Some(run) = fresh {
                        assert!(
                            written(run.host.0),
                            "{what}: a plan is seen before it is committed"
                        );
                    }
                }
                drop(plan);
            }
            7 => image.flush().expect("flush"),
            8 => {
                image.close().expect("close");
                image = shape.open();
            }
            _ => {
                write(&image, &data, at);
                model[start..end].copy_from_slice(&data);
            }
        }
        let mut seen = vec![0xaa; model.len()];
        image.read_at(&mut seen, 0).expect("read");
        assert!(seen == model, "{what}: step {step}");
    }
    image.close().expect("close");
    shape.judge(&model, &what);
}

#[test]
fn plans_leave_what_a_vector_would_hold() {
    for seed in seeds(4) {
        for cluster_bits in [9, 12, 14, 16, 17] {
            requests(cluster_bits, None, None, seed);
            requests(cluster_bits, None, Some(100_000), seed);
        }
    }
}

#[test]
fn plans_leave_what_a_vector_would_hold_in_data_files() {
    for seed in seeds(4) {
        for cluster_bits in [9, 12, 14, 16, 17] {
            requests(cluster_bits, Some(false), Some(100_000), seed);
            requests(cluster_bits, Some(true), None, seed);
        }
    }
}

#[test]
fn a_map_says_what_is_where() {
    let shape = Shape::new(16, None, Some(100_000), 1 << 20);
    let image = shape.open();
    let place = |offset, len| {
        let mapped = image.map(GuestOffset(offset), len).unwrap();
        (mapped.place, mapped.len)
    };
    assert_eq!(place(10, 1 << 20), (Place::Backing, 100_000 - 10));
    assert_eq!(place(100_000, 10), (Place::Zeros, 10));
    image.write_at(&[1; 10], 200_000).unwrap();
    image.zero_at(0, 1 << 16, ZeroMode::Unmap).unwrap();
    assert_eq!(place(5, 10), (Place::Zeros, 10));
    let compressor = image.compressed().unwrap();
    let compressed = compressor.compress(&vec![7; 1 << 16]).unwrap().unwrap();
    compressor.write_compressed_at(&compressed, 1 << 16).unwrap();
    assert_eq!(place(1 << 16, 1 << 20), (Place::Compressed, 1 << 16));
    let (Place::Host(host), 5) = place(200_003, 5) else {
        panic!("it was written")
    };
    let mut seen = [0; 5];
    image.data_storage().read_exact_at(&mut seen, host.0).unwrap();
    assert_eq!(seen, [1; 5]);
    for (offset, len) in [(1 << 20, 1), (0, 0)] {
        assert_eq!(
            image.map(GuestOffset(offset), len).unwrap_err().kind(),
            ErrorKind::OutOfBounds
        );
    }
    for (offset, len) in [((1 << 20) - 1, 2), (5, 0), (u64::MAX, 2)] {
        let refused = image.plan_write(GuestOffset(offset), len).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::OutOfBounds);
    }
    drop(image);
    let reader = Image::open(
        shape.image.clone(),
        OpenOptions {
            backing: block::Backing::Detached,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    assert_eq!(
        reader.map(GuestOffset(300_000), 10).unwrap().place,
        Place::Backing
    );
    assert_eq!(
        reader.plan_write(GuestOffset(0), 1).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
}

/// Whoever holds a map reads what was there, whatever is discarded and written meanwhile.
#[test]
fn a_mapped_cluster_is_not_reused() {
    let shape = Shape::new(12, None, None, 1 << 20);
    let image = shape.open();
    image.write_at(&[1; 4096], 0).unwrap();
    image.flush().unwrap();
    let mapped = image.map(GuestOffset(0), 4096).unwrap();
    let Place::Host(host) = mapped.place else {
        panic!("it was written")
    };
    image.discard_at(0, 4096).unwrap();
    let churn = || {
        for cluster in 1..20 {
            image.flush().unwrap();
            write(&image, &[2; 4096], cluster * 4096);
        }
        let mut seen = [0; 4096];
        image.data_storage().read_exact_at(&mut seen, host.0).unwrap();
        seen.contains(&2)
    };
    assert!(!churn(), "the cluster was given to somebody else");
    drop(mapped);
    image.discard_at(4096, 19 << 12).unwrap();
    image.flush().unwrap();
    assert!(churn(), "the cluster is given out again when nobody reads it");
}

/// Plans that are dropped leave neither a trace nor a leak.
#[test]
fn a_plan_that_is_dropped_gives_back_what_it_took() {
    for (data_file, backing) in [(None, None), (None, Some(1 << 20)), (Some(false), None)] {
        let shape = Shape::new(12, data_file, backing, 1 << 20);
        let image = shape.open();
        let before = image.storage_len();
        for _ in 0..50 {
            drop(image.plan_write(GuestOffset(5000), 100_000).unwrap());
        }
        image.close().unwrap();
        assert!(
            shape.image.len().unwrap() < before + (1 << 18),
            "room is used again"
        );
        shape.judge(&shape.model(1 << 20), "dropped");
    }
}

trait StorageLen {
    fn storage_len(&self) -> u64;
}

impl StorageLen for Image {
    fn storage_len(&self) -> u64 {
        block::Overlay::storage(self).len().unwrap()
    }
}

#[test]
fn who_holds_plans_asks_without_waiting() {
    fn assert_send<T: Send>(_: &T) {}
    let shape = Shape::new(16, None, None, 1 << 20);
    let image = shape.open();
    let first = image.plan_write(GuestOffset(100), 10).unwrap();
    assert_send(&first);
    assert!(
        image.try_plan_write(GuestOffset(200), 10).unwrap().is_none(),
        "one cluster"
    );
    let second = image.try_plan_write(GuestOffset(1 << 16), 10).unwrap().unwrap();
    fill(&image, &second, &[2; 10], 1 << 16);
    fill(&image, &first, &[1; 10], 100);
    first.commit().unwrap();
    second.commit().unwrap();
    let mapped: Mapped<'_> = image.map(GuestOffset(100), 10).unwrap();
    assert_send(&mapped);
    // In place now, and nothing to wait for.
    let third = image.plan_write(GuestOffset(100), 10).unwrap();
    let fourth = image.try_plan_write(GuestOffset(105), 10).unwrap().unwrap();
    assert_eq!(third.runs()[0].host + 5, fourth.runs()[0].host);
    drop((third, fourth, mapped));
    image.close().unwrap();
}

#[test]
fn a_change_of_size_waits_for_plans() {
    let shape = Shape::new(16, None, None, 1 << 20);
    let image = shape.open();
    let plan = image.plan_write(GuestOffset((1 << 20) - 10), 10).unwrap();
    let resized = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let shrink = Resize {
                shrink: true,
                ..Resize::default()
            };
            image.resize(1 << 19, shrink).unwrap();
            resized.store(true, Ordering::SeqCst);
        });
        // Long enough for a resize that does not wait.
        std::thread::sleep(Duration::from_millis(50));
        while image.try_plan_write(GuestOffset(0), 1).unwrap().is_some() {
            std::thread::yield_now();
        }
        assert!(!resized.load(Ordering::SeqCst));
        fill(&image, &plan, &[1; 10], (1 << 20) - 10);
        plan.commit().unwrap();
    });
    assert_eq!(image.size(), 1 << 19);
    image.close().unwrap();
    shape.judge(&vec![0; 1 << 19], "shrunk");
}

/// Threads write their own bytes of clusters that they share, by plans that they commit or give up.
#[test]
fn threads_share_clusters() {
    const UNIT: u64 = 700;
    const UNITS: u64 = 400;
    for (seed, cluster_bits, data_file, backing) in [
        (1, 9, None, None),
        (2, 12, None, Some(200_000)),
        (3, 16, None, None),
        (4, 12, Some(true), None),
        (5, 14, None, Some(200_000)),
        (6, 17, Some(false), None),
    ] {
        let size = (UNIT * UNITS).next_multiple_of(512);
        let shape = Shape::new(cluster_bits, data_file, backing, size);
        let image = shape.open();
        let initial = shape.model(size);
        let threads = 4;
        let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers = (0..threads).map(|index| {
                let (image, mut model) = (&image, initial.clone());
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 100 + index);
                    for _ in 0..300 {
                        let at = (rng.below(UNITS / threads) * threads + index) * UNIT;
                        let range = at as usize..(at + UNIT) as usize;
                        let data = vec![rng.below(255) as u8 + 1; UNIT as usize];
                        match rng.below(8) {
                            0 => image.flush().expect("flush"),
                            1 => {
                                image.zero_at(at, UNIT, ZeroMode::Unmap).expect("zero");
                                model[range].fill(0);
                            }
                            2 => {
                                let mut seen = vec![0; UNIT as usize];
                                read(image, &mut seen, at);
                                assert!(seen == model[range], "thread {index} lost {at}");
                            }
                            3 => drop(image.plan_write(GuestOffset(at), UNIT).expect("plan")),
                            4 => {
                                image.write_at(&data, at).expect("write");
                                model[range].copy_from_slice(&data);
                            }
                            _ => {
                                write(image, &data, at);
                                model[range].copy_from_slice(&data);
                            }
                        }
                    }
                    model
                })
            });
            let workers: Vec<_> = workers.collect();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("no thread fails"))
                .collect()
        });
        image.close().expect("close");
        let mut expected = initial;
        for unit in 0..UNITS {
            let range = (unit * UNIT) as usize..((unit + 1) * UNIT) as usize;
            expected[range.clone()].copy_from_slice(&models[(unit % threads) as usize][range]);
        }
        shape.judge(&expected, &format!("seed {seed}"));
    }
}

/// The power goes while plans are open, committed, dropped and flushed: what was flushed stays, what was not
/// committed is never seen, and there are leaks at worst.
#[test]
fn power_cuts_between_plan_and_commit() {
    for (seed, data_file, backing) in [
        (1, None, None),
        (2, None, Some(40 << 10)),
        (3, Some(false), Some(40 << 10)),
        (4, Some(true), None),
    ] {
        let size = 48 << 10;
        let shape = Shape::new(12, data_file, backing.map(|len: u64| len), size);
        let below = shape
            .below
            .clone()
            .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
        let recorder = Recorder::new();
        let file = recorder.storage((*shape.image).clone());
        let data = shape
            .data
            .as_ref()
            .map(|data| recorder.storage((**data).clone()) as Arc<dyn Storage>);
        let image = common::open_with_data_file(file, below.as_ref(), data);
        let mut rng = Rng::new(seed);
        // What each sector may hold: that of the last flush, or of any commit since.
        let mut flushed = shape.model(size);
        let mut since: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut promises = vec![(0, flushed.clone(), since.clone())];
        for step in 0..25u8 {
            let start = (rng.below(size / 512) * 512) as usize;
            let end = (start + 512 * (1 + rng.below(20) as usize)).min(size as usize);
            let bytes = vec![step + 1; end - start];
            let plan = image
                .plan_write(GuestOffset(start as u64), bytes.len() as u64)
                .expect("plan");
            let in_place = plan
                .runs()
                .iter()
                .any(|run| image.map(run.guest, run.len).expect("map").place == Place::Host(run.host));
            if rng.below(4) == 0 && !in_place {
                fill(&image, &plan, &vec![0xee; bytes.len()], start as u64);
                drop(plan);
            } else {
                since.push((start, bytes.clone()));
                promises.push((recorder.position(), flushed.clone(), since.clone()));
                fill(&image, &plan, &bytes, start as u64);
                plan.commit().expect("commit");
            }
            if rng.below(3) == 0 {
                image.flush().expect("flush");
                for (start, bytes) in since.drain(..) {
                    flushed[start..start + bytes.len()].copy_from_slice(&bytes);
                }
            }
            promises.push((recorder.position(), flushed.clone(), since.clone()));
        }
        drop(image);
        let states = recorder.crash_states();
        for point in states.points() {
            let (_, flushed, since) = promises
                .iter()
                .rfind(|promise| promise.0 <= point)
                .expect("the first is 0");
            for cut in seeds(4) {
                let what = format!("seed {seed}, point {point}, cut {cut}");
                let mut disks = states.at(point, cut);
                let file = disks.remove(0);
                let report = qcow2::check(&file, &qcow2::CheckOptions::default(), &mut |_| {
                    ControlFlow::Continue(())
                });
                let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(
                    report.corruptions == 0 && report.check_errors == 0,
                    "{what}: {report:?}"
                );
                if cut == 0 && point % 16 == 0 {
                    let (code, words) = common::qemu_check(&file.to_vec());
                    assert!(code == 0 || code == 3, "{what}: {words}");
                }
                let data = disks.pop().map(|data| Arc::new(data) as Arc<dyn Storage>);
                let disk = common::open_with_data_file(Arc::new(file), below.as_ref(), data);
                let mut seen = vec![0; size as usize];
                disk.read_at(&mut seen, 0)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                for (number, sector) in seen.chunks(512).enumerate() {
                    let at = number * 512;
                    let old = &flushed[at..at + 512];
                    let new = since
                        .iter()
                        .filter(|(start, bytes)| (*start..start + bytes.len()).contains(&at));
                    let allowed = sector == old || new.clone().any(|(_, bytes)| sector == &bytes[..512]);
                    assert!(allowed, "{what}: sector {number} holds {}", sector[0]);
                }
            }
        }
    }
}
