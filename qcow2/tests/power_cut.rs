//! Power cuts: whatever of the unflushed writes is lost, torn or reordered, the image opens, is whole but for leaks,
//! and holds what was flushed.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use block::test_utils::{Recorder, Rng, seeds};
use block::{Access, Backing, BackingReference, BlockDevice, MemStorage, Overlay, Resize, Storage, ZeroMode};
use common::Bytes;
use encryption::{Cipher, CipherSpec, IvGenerator, Mode};
use qcow2::{
    CompatibleFeatures, CreateOptions, Header, Image, IncompatibleFeatures, NewEncryption, OpenOptions,
};

/// Bytes that each unit of the disk may hold after a cut: those of the last flush, or of any write since.
struct Allowed {
    unit: usize,
    flushed: Vec<u8>,
    since: Vec<Vec<u8>>,
}

impl Allowed {
    fn write(&mut self, start: usize, bytes: &[u8]) {
        for (i, unit) in bytes.chunks(self.unit).enumerate() {
            self.since[start / self.unit + i].push(unit[0]);
        }
    }

    fn flush(&mut self) {
        for (flushed, since) in self.flushed.iter_mut().zip(&mut self.since) {
            *flushed = since.drain(..).next_back().unwrap_or(*flushed);
        }
    }

    fn refuse(&self, disk: &[u8]) -> Option<usize> {
        let seen = disk.chunks(self.unit).enumerate();
        seen.filter(|(i, unit)| {
            let allowed = |byte: &u8| *byte == self.flushed[*i] || self.since[*i].contains(byte);
            // A tear leaves whole sectors of either.
            !unit
                .chunks(512)
                .all(|sector| allowed(&sector[0]) && sector.iter().all(|byte| *byte == sector[0]))
        })
        .map(|(i, _)| i)
        .next()
    }
}

/// A state of the image and what it must hold if the power goes from here on.
struct Promise {
    from: usize,
    flushed: Vec<u8>,
    since: Vec<Vec<u8>>,
}

/// Writes, zeroes, discards and unmaps of whole sectors in random order on a small image, every crash point cut several
/// times.
fn torture(options: &str, backing: Option<u64>, seed: u64) {
    let image = common::create(options, DISK, backing);
    torture_image(options, image, None, backing, seed);
}

/// The same on an image whose data lies in a file of its own, which may be raw; with subclusters, if they are large
/// enough.
fn torture_with_data_file(cluster_bits: u32, raw: bool, backing: Option<u64>, seed: u64) {
    let lazy_refcounts = seed % 2 == 1;
    let options = CreateOptions {
        lazy_refcounts,
        size: DISK,
        cluster_bits,
        extended_l2: cluster_bits >= 14,
        backing: backing.map(|_| BackingReference {
            name: "base.raw".into(),
            format: Some("raw".into()),
        }),
        ..CreateOptions::default()
    };
    let (image, data) = common::create_with_data_file(&options, raw);
    let name = format!("data file, raw: {raw}, clusters of 2^{cluster_bits}");
    torture_image(&name, image, Some(data), backing, seed);
}

fn torture_image(
    options: &str,
    image: MemStorage,
    data_file: Option<MemStorage>,
    backing: Option<u64>,
    seed: u64,
) {
    let backing_bytes = backing.map(|len| vec![0xbb; len as usize]);
    let device = backing_bytes
        .clone()
        .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
    let recorder = Recorder::new();
    let storage = recorder.storage(image);
    let data_file = data_file.map(|data| recorder.storage(data) as Arc<dyn Storage>);
    let image = common::open_with_data_file(storage, device.as_ref(), data_file);
    let size = image.size();
    let unit = 1024;
    let mut flushed = vec![0; size as usize / unit];
    if let Some(len) = backing {
        flushed[..len.min(size) as usize / unit].fill(0xbb);
    }
    let mut below = vec![0; size as usize];
    if let Some(len) = backing {
        below[..len.min(size) as usize].fill(0xbb);
    }
    let mut allowed = Allowed {
        unit,
        since: vec![Vec::new(); flushed.len()],
        flushed,
    };
    let mut promises = vec![Promise {
        from: 0,
        flushed: allowed.flushed.clone(),
        since: allowed.since.clone(),
    }];
    let mut rng = Rng::new(seed);
    let units = size / unit as u64;
    for step in 0..30u8 {
        let start = rng.below(units);
        let len = (1 + rng.below(6)).min(units - start);
        let (at, bytes) = (start * unit as u64, len * unit as u64);
        // Known before it starts: a cut in the middle may find it done.
        match rng.below(12) {
            0 | 1 => {
                allowed.write(at as usize, &vec![0; bytes as usize]);
                promises.push(promise(&recorder, &allowed));
                let mode = if rng.coin() {
                    ZeroMode::Unmap
                } else {
                    ZeroMode::Allocate
                };
                image.zero_at(at, bytes, mode).expect("zero");
            }
            2 => {
                let v2 = options.contains("0.10") && backing.is_some();
                let cluster = image.geometry().subcluster_size();
                let first = at.next_multiple_of(cluster);
                let last = if at + bytes == size {
                    size
                } else {
                    (at + bytes) / cluster * cluster
                };
                if first < last && !v2 {
                    allowed.write(first as usize, &vec![0; (last - first) as usize]);
                }
                promises.push(promise(&recorder, &allowed));
                image.discard_at(at, bytes).expect("discard");
            }
            10 => {
                let cluster = image.geometry().subcluster_size();
                let first = at.next_multiple_of(cluster);
                let last = if at + bytes == size {
                    size
                } else {
                    (at + bytes) / cluster * cluster
                };
                if first < last {
                    allowed.write(first as usize, &below[first as usize..last as usize]);
                }
                promises.push(promise(&recorder, &allowed));
                image.unmap_to_backing(at, bytes).expect("unmap");
            }
            11 => {
                allowed.write(at as usize, &vec![0; bytes as usize]);
                promises.push(promise(&recorder, &allowed));
                image.state_zero(at, bytes).expect("zeros");
            }
            3 => {
                image.flush().expect("flush");
                allowed.flush();
            }
            _ => {
                let data = vec![step + 1; bytes as usize];
                allowed.write(at as usize, &data);
                promises.push(promise(&recorder, &allowed));
                image.write_at(&data, at).expect("write");
            }
        }
        promises.push(promise(&recorder, &allowed));
    }
    let lazy = image
        .header()
        .compatible
        .contains(CompatibleFeatures::LAZY_REFCOUNTS);
    image.close().expect("close");

    let states = recorder.crash_states();
    for point in states.points() {
        for cut in seeds(6) {
            let mut disks = states.at(point, seed * 1000 + cut);
            let disk = disks.remove(0);
            let at = promises
                .iter()
                .rposition(|promise| promise.from <= point)
                .expect("the first is 0");
            let promise = &promises[at];
            let now = Allowed {
                unit,
                flushed: promise.flushed.clone(),
                since: promise.since.clone(),
            };
            let what = format!("{options} seed {seed} point {point} cut {cut}");
            let data_file = disks.pop();
            let with_qemu = cut == 0 && point % 16 == 0;
            verify(&disk, device.as_ref(), data_file.clone(), &now, &what);
            if is_dirty(&disk) {
                assert!(lazy, "{what}: dirty, and nothing was postponed");
                recover(&disk, &what, with_qemu, |disk| {
                    verify(disk, device.as_ref(), data_file.clone(), &now, &what);
                });
            }
            judge(&disk, &what, with_qemu);
        }
    }
}

fn promise(recorder: &Recorder, allowed: &Allowed) -> Promise {
    Promise {
        from: recorder.position(),
        flushed: allowed.flushed.clone(),
        since: allowed.since.clone(),
    }
}

fn is_dirty(disk: &MemStorage) -> bool {
    let header = Header::read(disk).expect("the header is whole");
    header.incompatible.contains(IncompatibleFeatures::DIRTY)
}

/// Recovers an image whose refcounts were postponed, as opening it for writing does. QEMU can too.
fn recover(disk: &MemStorage, what: &str, with_qemu: bool, verify: impl Fn(&MemStorage)) {
    if with_qemu {
        let repaired = common::qemu_repair(&disk.to_vec());
        assert!(!is_dirty(&repaired), "{what}: QEMU leaves it dirty");
        verify(&repaired);
    }
    let report = qcow2::recover(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.after.is_clean() && !is_dirty(disk), "{what}: {report:?}");
    verify(disk);
}

/// Our check judges every state, QEMU's a sample: starting it thousands of times would take minutes.
fn judge(disk: &MemStorage, what: &str, with_qemu: bool) {
    let report = qcow2::check(disk, &qcow2::CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        report.corruptions == 0 && report.check_errors == 0,
        "{what}: {report:?}"
    );
    if with_qemu {
        let (code, words) = common::qemu_check(&disk.to_vec());
        assert!(code == 0 || code == 3, "{what}: {words}");
    }
}

fn verify(
    disk: &MemStorage,
    device: Option<&Arc<dyn BlockDevice>>,
    data_file: Option<MemStorage>,
    allowed: &Allowed,
    what: &str,
) {
    let backing = device.map_or(Backing::None, |device| Backing::Device(Arc::clone(device)));
    let options = OpenOptions {
        access: Access::READ,
        keys: common::keys(),
        backing,
        data_file: data_file.clone().map(|data| Arc::new(data) as Arc<dyn Storage>),
        ..OpenOptions::default()
    };
    let image =
        Image::open(Arc::new(disk.clone()), options).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut bytes = vec![0; image.size() as usize];
    image
        .read_at(&mut bytes, 0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(unit) = allowed.refuse(&bytes) {
        let found = bytes[unit * allowed.unit];
        let (flushed, since) = (allowed.flushed[unit], &allowed.since[unit]);
        panic!("{what}: unit {unit} holds {found}, flushed {flushed}, since {since:?}");
    }
    if let Some(data) = data_file.filter(|_| image.header().data_file().is_some_and(|file| file.raw)) {
        assert!(
            data.to_vec()[..bytes.len()] == bytes,
            "{what}: the raw file is not the disk"
        );
    }
}

/// Bytes of the disks.
const DISK: u64 = 48 << 10;

const SEEDS: u64 = 6;

#[test]
fn small_clusters() {
    seeds(SEEDS).for_each(|seed| torture("cluster_size=512", None, seed));
}

#[test]
fn small_clusters_over_a_backing_file() {
    seeds(SEEDS).for_each(|seed| torture("cluster_size=512,refcount_bits=64", Some(30 << 10), seed));
}

#[test]
fn larger_clusters_with_narrow_refcounts() {
    seeds(SEEDS).for_each(|seed| torture("cluster_size=4096,refcount_bits=1", Some(64 << 10), seed));
}

/// More often than not a cut finds the image dirty.
#[test]
fn lazy_refcounts() {
    for seed in seeds(SEEDS) {
        torture("cluster_size=512,lazy_refcounts=on", None, seed);
        let wide = "cluster_size=512,refcount_bits=64,lazy_refcounts=on";
        torture(wide, Some(30 << 10), seed);
        torture(
            "cluster_size=4096,refcount_bits=1,lazy_refcounts=on",
            Some(64 << 10),
            seed,
        );
        torture(
            "cluster_size=16k,extended_l2=on,lazy_refcounts=on",
            Some(30 << 10),
            seed,
        );
    }
}

#[test]
fn version_2() {
    seeds(SEEDS).for_each(|seed| torture("compat=0.10,cluster_size=1024", None, seed));
    seeds(SEEDS).for_each(|seed| torture("compat=0.10,cluster_size=2048", Some(30 << 10), seed));
}

#[test]
fn data_files() {
    seeds(SEEDS).for_each(|seed| torture_with_data_file(9, false, None, seed));
    seeds(SEEDS).for_each(|seed| torture_with_data_file(12, false, Some(30 << 10), seed));
}

#[test]
fn raw_data_files() {
    seeds(SEEDS).for_each(|seed| torture_with_data_file(9, true, None, seed));
    seeds(SEEDS).for_each(|seed| torture_with_data_file(12, true, None, seed));
}

/// Subclusters of half a unit, and of two.
#[test]
fn subclusters() {
    let small = "cluster_size=16k,extended_l2=on";
    seeds(SEEDS).for_each(|seed| torture(small, None, seed));
    seeds(SEEDS).for_each(|seed| torture(small, Some(30 << 10), seed));
    let large = "cluster_size=64k,extended_l2=on,refcount_bits=1";
    for seed in seeds(3) {
        let backing = Some(70 << 10);
        let image = common::create(large, 80 << 10, backing);
        torture_image(large, image, None, backing, seed);
    }
    seeds(3).for_each(|seed| torture_with_data_file(14, false, Some(30 << 10), seed));
    seeds(3).for_each(|seed| torture_with_data_file(14, true, None, seed));
}

/// A sector is the old or the new one, encrypted as in the clear.
#[test]
fn encrypted() {
    let torture_encrypted = |encryption: &NewEncryption, cluster_bits, backing: Option<u64>, seed| {
        let options = CreateOptions {
            size: DISK,
            cluster_bits,
            extended_l2: cluster_bits >= 14,
            lazy_refcounts: seed % 2 == 1,
            encryption: Some(encryption.clone()),
            backing: backing.map(|_| BackingReference {
                name: "base.raw".into(),
                format: Some("raw".into()),
            }),
            ..CreateOptions::default()
        };
        let name = format!("{encryption:?}, clusters of 2^{cluster_bits}");
        torture_image(&name, common::created(&options), None, backing, seed);
    };
    for seed in seeds(SEEDS) {
        torture_encrypted(&common::aes(), 9, None, seed);
        torture_encrypted(&common::aes(), 14, Some(30 << 10), seed);
    }
    let short = CipherSpec {
        cipher: Cipher::Aes128,
        mode: Mode::Cbc,
        iv: IvGenerator::Essiv,
    };
    torture_encrypted(&common::luks(short), 12, Some(30 << 10), 1);
    torture_encrypted(&common::luks(short), 14, None, 2);
}

/// Sizes that need more or less of the L1 and refcount tables, with data on either side of the change.
#[test]
fn resizing() {
    for (from, to) in [
        (64u64 << 10, 4 << 20),
        (4 << 20, 64 << 10),
        (100 << 10, 100 << 20),
    ] {
        let recorder = Recorder::new();
        let storage = recorder.storage(common::create("cluster_size=512", from, None));
        let image = common::open(storage, None);
        let kept = from.min(to);
        image.write_at(&vec![7; from as usize], 0).expect("write");
        image.flush().expect("flush");
        let flushed = recorder.position();
        image
            .resize(
                to,
                Resize {
                    shrink: true,
                    ..Resize::default()
                },
            )
            .expect("resize");
        let resized = recorder.position();
        image.close().expect("close");
        let states = recorder.crash_states();
        for point in states.points().filter(|point| *point >= flushed) {
            for cut in seeds(4) {
                let what = format!("{from} to {to} point {point} cut {cut}");
                let disk = states.at(point, cut).remove(0);
                let image = Image::open(Arc::new(disk.clone()), OpenOptions::default())
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                let size = image.size();
                assert!(size == to || size == from && point < resized, "{what}: {size}");
                let mut data = vec![0; size.min(8 << 20) as usize];
                image
                    .read_at(&mut data, 0)
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                let written = size.min(from) as usize;
                let sound = if size == to { kept as usize } else { 0 };
                assert!(data[..sound].iter().all(|byte| *byte == 7), "{what}: data lost");
                assert!(
                    data[..written].iter().all(|byte| [0, 7].contains(byte)),
                    "{what}: strange data"
                );
                assert!(
                    data[written..].iter().all(|byte| *byte == 0),
                    "{what}: growth is not zero"
                );
                judge(&disk, &what, cut == 0 && point % 16 == 0);
            }
        }
    }
}
