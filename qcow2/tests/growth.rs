//! Images that outgrow their refcount table and the cache: clusters of 512 bytes with refcounts of 64 bits, of which
//! a table of one cluster counts 2 MiB.

mod common;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use block::test_utils::{Recorder, Rng};
use block::{Access, BlockDevice, MemStorage, Storage, ZeroMode};
use qcow2::{Header, Image, IncompatibleFeatures, OpenOptions};

const OPTIONS: &str = "cluster_size=512,refcount_bits=64";
const LAZY: &str = "cluster_size=512,refcount_bits=64,lazy_refcounts=on";
const DISK: u64 = 6 << 20;

/// A new image whose refcount table is as small as can be. QEMU makes it so, and grows it as we do.
fn image(options: &str) -> MemStorage {
    let storage = common::create(options, DISK, None);
    let header = Header::read(&storage).expect("QEMU's header");
    assert!(
        header.refcount_table_clusters < 3,
        "the table is large from the start: nothing would be tested"
    );
    storage
}

#[test]
fn random_writes_over_a_map_larger_than_the_cache() {
    [OPTIONS, LAZY].into_iter().for_each(random_writes);
}

fn random_writes(options: &str) {
    let storage = Arc::new(image(options));
    let image = common::open(storage.clone(), None);
    let mut model = vec![0; DISK as usize];
    let mut rng = Rng::new(7);
    for step in 0..6000u64 {
        let at = rng.below(DISK - 5000);
        let len = rng.below(5000);
        let range = at as usize..(at + len) as usize;
        match rng.below(12) {
            0 => {
                image.zero_at(at, len, ZeroMode::Unmap).expect("zero");
                model[range].fill(0);
            }
            1 if step % 20 == 0 => image.flush().expect("flush"),
            _ => {
                let byte = rng.below(256) as u8;
                image.write_at(&vec![byte; len as usize], at).expect("write");
                model[range].fill(byte);
            }
        }
    }
    image.close().expect("close");
    let clusters = Header::read(&*storage).expect("header").refcount_table_clusters;
    assert!(
        clusters >= 3,
        "the refcount table has not grown: {clusters} clusters"
    );
    let file = storage.to_vec();
    let (code, words) = common::qemu_check(&file);
    assert_eq!(code, 0, "{words}");
    assert!(
        common::qemu_read(&file, None) == model,
        "QEMU reads something else"
    );
}

/// Power cuts while the table moves: what was flushed stays, and nothing is worse than leaked.
#[test]
fn power_cuts_while_the_refcount_table_moves() {
    [OPTIONS, LAZY].into_iter().for_each(cut_while_the_table_moves);
}

fn cut_while_the_table_moves(options: &str) {
    let chunk = 64 << 10;
    let recorder = Recorder::new();
    let storage = recorder.storage(image(options));
    let image = common::open(storage, None);
    // Chunks that are on the disk for good from this point of the log on.
    let mut flushed = Vec::new();
    for number in 0..DISK / chunk {
        image
            .write_at(&vec![number as u8 + 1; chunk as usize], number * chunk)
            .expect("write");
        image.flush().expect("flush");
        flushed.push(recorder.position());
    }
    image.close().expect("close");
    let states = recorder.crash_states();
    let mut moved = false;
    for point in states.points() {
        let disk = states.at(point, point as u64 % 7).remove(0);
        let header = Header::read(&disk).unwrap_or_else(|error| panic!("point {point}: {error}"));
        moved |= header.refcount_table_clusters > 2;
        if header.incompatible.contains(IncompatibleFeatures::DIRTY) {
            qcow2::recover(&disk).unwrap_or_else(|error| panic!("point {point}: {error}"));
        }
        let report = qcow2::check(&disk, &qcow2::CheckOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        });
        let report = report.unwrap_or_else(|error| panic!("point {point}: {error}"));
        assert!(
            report.corruptions == 0 && report.check_errors == 0,
            "point {point}: {report:?}"
        );
        let image = Image::open(Arc::new(disk), OpenOptions::default()).expect("it opens");
        let kept = flushed.iter().take_while(|position| **position <= point).count();
        if let Some(last) = kept.checked_sub(1) {
            let mut data = vec![0; chunk as usize];
            image.read_at(&mut data, last as u64 * chunk).expect("read");
            assert!(
                data.iter().all(|byte| usize::from(*byte) == kept),
                "point {point}: chunk {last} is lost"
            );
        }
    }
    assert!(moved, "the table has not moved");
}

type Hook = Box<dyn FnOnce() + Send>;

/// A storage in whose next sync something else happens.
struct Interrupted {
    inner: MemStorage,
    in_sync: Mutex<Option<Hook>>,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl Storage for Interrupted {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
        self.inner.read_exact_at(buf, offset)
    }
    fn sync_data(&self) -> block::Result<()> {
        let hook = self.in_sync.lock().expect("no panic").take();
        if let Some(hook) = hook {
            hook();
        }
        self.inner.sync_data()
    }
    common::pass_on_to_inner!();
}

/// Another thread makes the refcount table move, once or several times, while a flush is under way that may itself
/// be moving it.
#[test]
fn the_refcount_table_moves_during_a_flush() {
    let chunk: u64 = 256 << 10;
    for (before, meanwhile) in [(2, 8), (6, 4), (8, 20), (12, 40), (30, 50)] {
        let disk = 128 * chunk;
        let storage = Arc::new(Interrupted {
            inner: common::create(OPTIONS, disk, None),
            in_sync: Mutex::new(None),
        });
        // A cache that holds all of the map: were it full, the other thread would wait for this flush to end.
        let options = OpenOptions {
            access: Access::WRITE,
            ..OpenOptions::default()
        };
        let image = Arc::new(Image::open(storage.clone(), options).expect("the image opens"));
        let write = move |image: &Image, number: u64| {
            image
                .write_at(&vec![number as u8 + 1; chunk as usize], number * chunk)
                .expect("write");
        };
        (0..before).for_each(|number| write(&image, number));
        let other = Arc::clone(&image);
        *storage.in_sync.lock().expect("no panic") = Some(Box::new(move || {
            let writer = std::thread::spawn(move || {
                (before..before + meanwhile).for_each(|number| write(&other, number));
            });
            writer.join().expect("no thread fails");
        }));
        image.flush().expect("flush");
        Arc::into_inner(image)
            .expect("the other thread has ended")
            .close()
            .expect("close");
        let file = storage.inner.to_vec();
        let (code, words) = common::qemu_check(&file);
        assert_eq!(code, 0, "{before} and {meanwhile}: {words}");
        let seen = common::qemu_read(&file, None);
        let chunks = seen.chunks(chunk as usize).zip(1..=before + meanwhile);
        for (bytes, number) in chunks {
            assert!(
                bytes.iter().all(|byte| u64::from(*byte) == number),
                "chunk {number} is lost"
            );
        }
    }
}
