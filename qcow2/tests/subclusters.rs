//! What extended L2 entries are for: no more is allocated, copied or given up than what a request touches.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::{
    Access, BlockDevice, ExtentState, MemStorage, Overlay, Preallocation, Resize, Storage, ZeroMode,
};
use common::Bytes;
use qcow2::{GuestOffset, Image, L2Mapping, OpenOptions};

const CLUSTER: u64 = 128 << 10;
const SUBCLUSTER: u64 = 4 << 10;
const OPTIONS: &str = "cluster_size=128k,extended_l2=on";

/// A backing device that counts the bytes read from it.
#[derive(Debug)]
struct Counting {
    inner: Bytes,
    read: AtomicU64,
}

impl Counting {
    fn new(len: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: Bytes::pattern(len, 3),
            read: AtomicU64::new(0),
        })
    }

    /// Bytes read since this was last asked.
    fn read(&self) -> u64 {
        self.read.swap(0, Ordering::Relaxed)
    }
}

impl BlockDevice for Counting {
    fn info(&self) -> block::DeviceInfo {
        self.inner.info()
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> block::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> block::Result<()> {
        self.inner.write_at(buf, offset)
    }
    fn zero_at(&self, offset: u64, len: u64, mode: ZeroMode) -> block::Result<()> {
        self.inner.zero_at(offset, len, mode)
    }
    fn discard_at(&self, offset: u64, len: u64) -> block::Result<()> {
        self.inner.discard_at(offset, len)
    }
    fn extent_at(&self, offset: u64, len: u64) -> block::Result<block::Extent> {
        self.inner.extent_at(offset, len)
    }
    fn flush(&self) -> block::Result<()> {
        Ok(())
    }
}

/// The layer's own runs as state and length in subclusters; zeros with a host cluster are `z`, others `Z`.
fn runs(image: &Image, end: u64) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < end {
        let run = image.own_extent_at(at, end - at).expect("extent");
        let state = match (run.state, run.host) {
            (ExtentState::Hole, None) => '-',
            (ExtentState::Hole, Some(_)) => '_',
            (ExtentState::Zero, None) => 'Z',
            (ExtentState::Zero, Some(_)) => 'z',
            (ExtentState::Data, _) => 'D',
            (ExtentState::Compressed, _) => 'C',
        };
        assert_eq!(run.len % SUBCLUSTER, 0);
        text.push(state);
        text += &(run.len / SUBCLUSTER).to_string();
        at = run.end();
    }
    text
}

fn host_cluster(image: &Image, guest: u64) -> Option<u64> {
    match image.lookup(GuestOffset(guest)).expect("lookup") {
        L2Mapping::Standard { host, .. }
        | L2Mapping::Zero {
            preallocated: Some((host, _)),
        } => Some(host.0 / CLUSTER),
        _ => None,
    }
}

fn assert_sound(storage: &MemStorage) {
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");
}

#[test]
fn a_write_allocates_and_copies_what_it_touches() {
    let backing = Counting::new(4 * CLUSTER);
    let storage = Arc::new(common::create(OPTIONS, 4 * CLUSTER, Some(4 * CLUSTER)));
    let device = Arc::clone(&backing) as Arc<dyn BlockDevice>;
    let image = common::open(storage.clone(), Some(&device));
    let mut model = backing.inner.0.clone();
    let mut write = |at: u64, len: u64, copied: u64, expected: &str| {
        image.write_at(&vec![0xee; len as usize], at).expect("write");
        model[at as usize..(at + len) as usize].fill(0xee);
        assert_eq!(backing.read(), copied, "copied for {at}+{len}");
        assert_eq!(runs(&image, 2 * CLUSTER), expected);
    };
    // Whole subclusters: nothing is copied.
    write(5 * SUBCLUSTER, SUBCLUSTER, 0, "_5D1_26-32");
    let host = host_cluster(&image, 5 * SUBCLUSTER);
    // Parts of one, and of two.
    write(7 * SUBCLUSTER + 100, 10, SUBCLUSTER - 10, "_5D1_1D1_24-32");
    write(9 * SUBCLUSTER - 1, 2, 2 * SUBCLUSTER - 2, "_5D1_1D3_22-32");
    // What is allocated is not copied again.
    write(9 * SUBCLUSTER + 5, SUBCLUSTER, SUBCLUSTER - 5, "_5D1_1D4_21-32");
    // From one cluster into the next.
    write(CLUSTER - SUBCLUSTER, 2 * SUBCLUSTER, 0, "_5D1_1D4_20D2_31");
    assert_eq!(
        host_cluster(&image, 9 * SUBCLUSTER),
        host,
        "the cluster has moved"
    );
    image.close().expect("close");
    assert_sound(&storage);
    assert!(common::qemu_read(&storage.to_vec(), Some(&backing.inner.0)) == model);
}

#[test]
fn zeros_are_stated_by_bits_until_nothing_is_left() {
    for mode in [ZeroMode::Unmap, ZeroMode::Allocate] {
        let backing = Counting::new(CLUSTER);
        let storage = Arc::new(common::create(OPTIONS, 2 * CLUSTER, Some(CLUSTER)));
        let device = Arc::clone(&backing) as Arc<dyn BlockDevice>;
        let image = common::open(storage.clone(), Some(&device));
        image.zero_at(3 * SUBCLUSTER, SUBCLUSTER, mode).expect("zero");
        assert_eq!(runs(&image, CLUSTER), "-3Z1-28");
        image.write_at(&[1; 2 * SUBCLUSTER as usize], 0).expect("write");
        assert_eq!(runs(&image, CLUSTER), "D2_1z1_28");
        image.zero_at(0, SUBCLUSTER, mode).expect("zero");
        assert_eq!(runs(&image, CLUSTER), "z1D1_1z1_28");
        image.discard_at(SUBCLUSTER, SUBCLUSTER).expect("discard");
        assert_eq!(runs(&image, CLUSTER), "Z2-1Z1-28", "the last data has gone");
        image.write_at(&[1; 4096], SUBCLUSTER).expect("write");
        image.zero_at(0, CLUSTER, mode).expect("zero");
        let kept = if mode == ZeroMode::Unmap { "Z32" } else { "z32" };
        assert_eq!(runs(&image, CLUSTER), kept);
        // Nothing lies below the second cluster.
        image.zero_at(CLUSTER, SUBCLUSTER, mode).expect("zero");
        assert_eq!(&runs(&image, 2 * CLUSTER)[3..], "-32");
        assert_eq!(backing.read(), 0);
        image.close().expect("close");
        assert_sound(&storage);
        let seen = common::qemu_read(&storage.to_vec(), Some(&backing.inner.0));
        assert!(seen.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn parts_of_a_compressed_cluster_are_written_or_left() {
    let storage = Arc::new(common::create(OPTIONS, 2 * CLUSTER, None));
    let image = common::open(storage.clone(), None);
    let mut model = vec![7; CLUSTER as usize];
    let writer = image.compressed().expect("qcow2 compresses");
    let compressed = writer.compress(&model).expect("compress").expect("it saves room");
    writer.write_compressed_at(&compressed, 0).expect("write");
    model.resize(2 * CLUSTER as usize, 0);

    image.discard_at(0, SUBCLUSTER).expect("discard");
    assert_eq!(runs(&image, CLUSTER), "C32");
    image
        .zero_at(SUBCLUSTER, SUBCLUSTER, ZeroMode::Unmap)
        .expect("zero");
    model[SUBCLUSTER as usize..2 * SUBCLUSTER as usize].fill(0);
    assert_eq!(runs(&image, CLUSTER), "D32");
    image.close().expect("close");
    assert_sound(&storage);
    assert!(common::qemu_read(&storage.to_vec(), None) == model);
}

fn qemu_img(args: &[&str], image: &Path) -> String {
    let args: Vec<&str> = args.iter().copied().chain([common::text(image)]).collect();
    common::run_ok("qemu-img", &args)
}

/// What of a shared cluster was allocated moves with it, and the rest goes on falling through.
#[test]
fn a_cluster_that_a_snapshot_shares_moves_with_what_it_holds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("image.qcow2");
    let backing = Counting::new(2 * CLUSTER);
    let storage = Arc::new(common::create(OPTIONS, 2 * CLUSTER, Some(2 * CLUSTER)));
    let device = Arc::clone(&backing) as Arc<dyn BlockDevice>;
    let image = common::open(storage.clone(), Some(&device));
    let mut model = backing.inner.0.clone();
    for (subcluster, byte) in [(2u64, 1u8), (3, 2), (20, 3)] {
        let at = subcluster * SUBCLUSTER;
        image.write_at(&[byte; SUBCLUSTER as usize], at).expect("write");
        model[at as usize..][..SUBCLUSTER as usize].fill(byte);
    }
    image
        .zero_at(30 * SUBCLUSTER, SUBCLUSTER, ZeroMode::Allocate)
        .expect("zero");
    model[30 * SUBCLUSTER as usize..][..SUBCLUSTER as usize].fill(0);
    image.close().expect("close");
    std::fs::write(dir.path().join("base.raw"), &backing.inner.0).expect("room");
    std::fs::write(&path, storage.to_vec()).expect("room");
    qemu_img(&["snapshot", "-c", "then"], &path);

    let storage = Arc::new(common::load(&path));
    let image = common::open(storage.clone(), Some(&device));
    let before = host_cluster(&image, 2 * SUBCLUSTER);
    image.write_at(&[9; 100], 10 * SUBCLUSTER).expect("write");
    let then = model.clone();
    model[10 * SUBCLUSTER as usize..][..100].fill(9);
    assert_eq!(backing.read(), SUBCLUSTER - 100);
    assert_eq!(runs(&image, CLUSTER), "_2D2_6D1_9D1_9z1_1");
    assert_ne!(host_cluster(&image, 2 * SUBCLUSTER), before);
    image.close().expect("close");
    assert_sound(&storage);
    assert!(common::qemu_read(&storage.to_vec(), Some(&backing.inner.0)) == model);
    std::fs::write(&path, storage.to_vec()).expect("room");
    qemu_img(&["snapshot", "-a", "then"], &path);
    let file = std::fs::read(&path).expect("the image");
    assert!(common::qemu_read(&file, Some(&backing.inner.0)) == then);
}

/// Clusters that are preallocated go on showing what lies below, as QEMU's do.
#[test]
fn preallocation_allocates_no_subclusters() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (name, how) in [
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ] {
        let (ours, theirs) = (dir.path().join("ours.qcow2"), dir.path().join("theirs.qcow2"));
        let storage = Arc::new(common::create(OPTIONS, CLUSTER, None));
        std::fs::write(&theirs, storage.to_vec()).expect("room");
        let image = common::open(storage.clone(), None);
        image
            .resize(
                5 * CLUSTER,
                Resize {
                    preallocation: how,
                    ..Resize::default()
                },
            )
            .expect("resize");
        assert_eq!(runs(&image, 5 * CLUSTER), "-32_128");
        image.write_at(&[1; 512], 2 * CLUSTER).expect("write");
        assert_eq!(runs(&image, 5 * CLUSTER), "-32_32D1_95");
        image.close().expect("close");
        assert_sound(&storage);
        std::fs::write(&ours, storage.to_vec()).expect("room");
        let option = format!("--preallocation={name}");
        common::run_ok(
            "qemu-img",
            &["resize", "-q", &option, common::text(&theirs), "640k"],
        );
        common::run_ok("qemu-io", &["-c", "write -P 1 256k 512", common::text(&theirs)]);
        let map = |path| {
            let text = qemu_img(&["map", "--output=json"], path);
            // Where clusters lie is everyone's own choice.
            text.split(',')
                .filter(|field| !field.contains("offset"))
                .map(|field| field.replace(['}', ']', '\n'], ""))
                .collect::<String>()
        };
        assert_eq!(map(&ours), map(&theirs), "{name}");
    }
}

/// A disk that ends inside a cluster, with a longer backing file, grows over it.
#[test]
fn growth_hides_the_backing_file_from_the_first_subcluster_on() {
    let backing = Counting::new(3 * CLUSTER);
    let size = CLUSTER + 3 * SUBCLUSTER + 512;
    let storage = Arc::new(common::create(OPTIONS, size, Some(3 * CLUSTER)));
    let device = Arc::clone(&backing) as Arc<dyn BlockDevice>;
    let image = common::open(storage.clone(), Some(&device));
    image.resize(3 * CLUSTER, Resize::default()).expect("resize");
    assert_eq!(runs(&image, 3 * CLUSTER), "-32_3D1z28Z32");
    image.close().expect("close");
    assert_sound(&storage);
    let mut model = backing.inner.0[..size as usize].to_vec();
    model.resize(3 * CLUSTER as usize, 0);
    assert!(common::qemu_read(&storage.to_vec(), Some(&backing.inner.0)) == model);
}

/// Readers in threads never see half of an entry: what changes all the time is whole whenever it is looked at.
#[test]
fn an_entry_is_read_as_one() {
    let storage: Arc<dyn Storage> = Arc::new(common::create(OPTIONS, CLUSTER, None));
    let options = OpenOptions {
        access: Access::WRITE,
        ..OpenOptions::default()
    };
    let image = Image::open(storage, options).expect("the image opens");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..3000 {
                image.write_at(&[5; 512], 0).expect("write");
                image.discard_at(0, CLUSTER).expect("discard");
            }
        });
        let mut seen = [0; 512];
        while !writer.is_finished() {
            // Half an entry would be an allocated subcluster of no host cluster.
            image.read_at(&mut seen, 0).expect("read");
            assert!(seen == [0; 512] || seen == [5; 512]);
        }
    });
}
