//! Several threads on one image, as a VMM's queues are: each writes its own bytes of clusters that they share.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use block::test_utils::Rng;
use block::{BlockDevice, MemStorage, Storage, ZeroMode};
use common::Bytes;

const UNIT: u64 = 700;
const UNITS: u64 = 600;

/// Thread `index` of `threads` owns every `threads`-th unit of the disk, so that most clusters have several owners.
fn work(image: &qcow2::Image, index: u64, threads: u64, seed: u64, model: &mut [u8]) {
    let mut rng = Rng::new(seed * 100 + index);
    for _ in 0..400 {
        let unit = rng.below(UNITS / threads) * threads + index;
        let at = unit * UNIT;
        let range = at as usize..(at + UNIT) as usize;
        match rng.below(8) {
            0 => {
                image.zero_at(at, UNIT, ZeroMode::Unmap).expect("zero");
                model[range].fill(0);
            }
            1 => image.flush().expect("flush"),
            2 | 3 => {
                let mut seen = vec![0; UNIT as usize];
                image.read_at(&mut seen, at).expect("read");
                assert!(seen == model[range], "thread {index} lost unit {unit}");
            }
            _ => {
                let byte = rng.below(255) as u8 + 1;
                image.write_at(&vec![byte; UNIT as usize], at).expect("write");
                model[range].fill(byte);
            }
        }
    }
}

fn threads(options: &str, backing: Option<u64>, threads: u64, seed: u64) {
    let size = (UNIT * UNITS).next_multiple_of(512);
    let storage: Arc<MemStorage> = Arc::new(common::create(options, size, backing));
    let bytes = backing.map(|len| Bytes::pattern(len, seed).0);
    let device = bytes
        .clone()
        .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
    let image = common::open(storage.clone(), device.as_ref());
    let mut initial = bytes.clone().unwrap_or_default();
    initial.resize(size as usize, 0);
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|index| {
                let (image, mut model) = (&image, initial.clone());
                scope.spawn(move || {
                    work(image, index, threads, seed, &mut model);
                    model
                })
            })
            .collect();
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
    let file = storage.to_vec();
    let (code, words) = common::qemu_check(&file);
    assert_eq!(code, 0, "{options}: {words}");
    assert!(
        common::qemu_read(&file, bytes.as_deref()) == expected,
        "{options}: QEMU reads something else"
    );
}

#[test]
fn two_threads_share_small_clusters() {
    (0..4).for_each(|seed| threads("cluster_size=512", None, 2, seed));
}

#[test]
fn four_threads_share_clusters_over_a_backing_file() {
    (0..4).for_each(|seed| threads("cluster_size=4096", Some(300_000), 4, seed));
}

/// Flushes that postpone refcounts, under writes that take and free clusters.
#[test]
fn four_threads_share_clusters_with_lazy_refcounts() {
    (0..3).for_each(|seed| threads("cluster_size=512,lazy_refcounts=on", None, 4, seed));
    let wide = "cluster_size=4096,refcount_bits=64,lazy_refcounts=on";
    (0..3).for_each(|seed| threads(wide, Some(300_000), 4, seed));
}

#[test]
fn eight_threads_share_one_large_cluster() {
    (0..2).for_each(|seed| threads("cluster_size=2M", Some(100_000), 8, seed));
}

#[test]
fn four_threads_share_subclusters() {
    (0..2).for_each(|seed| threads("cluster_size=16k,extended_l2=on", Some(300_000), 4, seed));
    (0..2).for_each(|seed| threads("cluster_size=256k,extended_l2=on", None, 4, seed));
}

/// A storage that lets a thread be stopped in the middle of a read.
#[derive(Debug)]
struct Turnstile {
    inner: MemStorage,
    /// Reads of this length stop until it is `None`.
    stopped: Mutex<Option<usize>>,
    changed: Condvar,
    waiting: AtomicBool,
}

impl Turnstile {
    fn stop(&self, len: Option<usize>) {
        *self.stopped.lock().expect("no panic") = len;
        self.changed.notify_all();
    }
}

impl Storage for Turnstile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
        let mut stopped = self.stopped.lock().expect("no panic");
        while *stopped == Some(buf.len()) {
            self.waiting.store(true, Ordering::SeqCst);
            stopped = self.changed.wait(stopped).expect("no panic");
        }
        drop(stopped);
        self.inner.read_exact_at(buf, offset)
    }
    fn sync_data(&self) -> block::Result<()> {
        self.inner.sync_data()
    }
    common::pass_on_to_inner!();
}

/// A reader that has looked up where its data lies, and is slow to read it, must not find another cluster's data
/// there.
#[test]
fn a_freed_cluster_is_not_reused_under_a_slow_reader() {
    const CLUSTER: usize = 4096;
    let storage = Arc::new(Turnstile {
        inner: common::create("cluster_size=4096", 1 << 20, None),
        stopped: Mutex::new(None),
        changed: Condvar::new(),
        waiting: AtomicBool::new(false),
    });
    let image = common::open(storage.clone(), None);
    image.write_at(&[1; CLUSTER], 0).expect("write");
    image.flush().expect("flush");
    // Not the length of a table slice, nor of a refcount block.
    let len = 1000;
    storage.stop(Some(len));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buf = vec![0; len];
            image.read_at(&mut buf, 0).expect("read");
            buf
        });
        while !storage.waiting.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        image.discard_at(0, CLUSTER as u64).expect("discard");
        for cluster in 1..20 {
            image.flush().expect("flush");
            image
                .write_at(&[2; CLUSTER], cluster * CLUSTER as u64)
                .expect("write");
        }
        storage.stop(None);
        let seen = reader.join().expect("no thread fails");
        assert!(
            seen.iter().all(|byte| *byte != 2),
            "the reader saw another cluster's data"
        );
    });
    let length = storage.len().expect("memory");
    image.flush().expect("flush");
    image.write_at(&[3; CLUSTER], 30 * CLUSTER as u64).expect("write");
    assert_eq!(
        storage.len().expect("memory"),
        length,
        "the freed cluster is used once the reader has ended"
    );
}
