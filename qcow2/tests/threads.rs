//! Several threads on one image, as a VMM's queues are: each writes its own bytes of clusters that they share.

mod common;

use std::sync::Arc;

use block::test_utils::Rng;
use block::{BlockDevice, MemStorage, ZeroMode};
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

#[test]
fn eight_threads_share_one_large_cluster() {
    (0..2).for_each(|seed| threads("cluster_size=2M", Some(100_000), 8, seed));
}

/// One thread keeps discarding what the others read: they must never see another cluster's data.
#[test]
fn a_freed_cluster_is_not_seen_by_readers_of_its_old_place() {
    let storage: Arc<MemStorage> = Arc::new(common::create("cluster_size=4096", 1 << 20, None));
    let image = common::open(storage, None);
    let clusters = 64;
    std::thread::scope(|scope| {
        let image = &image;
        scope.spawn(move || {
            let mut rng = Rng::new(1);
            for _ in 0..4000 {
                let cluster = rng.below(clusters);
                if rng.coin() {
                    image.discard_at(cluster * 4096, 4096).expect("discard");
                    image.flush().expect("flush");
                } else {
                    image
                        .write_at(&[cluster as u8 + 1; 4096], cluster * 4096)
                        .expect("write");
                }
            }
        });
        for thread in 0..2 {
            scope.spawn(move || {
                let mut rng = Rng::new(thread + 10);
                let mut buf = [0; 4096];
                for _ in 0..8000 {
                    let cluster = rng.below(clusters);
                    image.read_at(&mut buf, cluster * 4096).expect("read");
                    let own = cluster as u8 + 1;
                    assert!(
                        buf.iter().all(|byte| *byte == 0 || *byte == own),
                        "cluster {cluster} holds {}",
                        buf[0]
                    );
                }
            });
        }
    });
}
