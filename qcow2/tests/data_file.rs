//! Images with an external data file: what is in which file, judged by QEMU, and what is refused.

mod common;

use std::sync::Arc;

use block::test_utils::Rng;
use block::{
    Access, Backing, BackingReference, BlockDevice, ErrorKind, ExtentState, MemStorage, Overlay,
    Preallocation, Resize, Storage, ZeroMode,
};
use common::Bytes;
use qcow2::{CreateOptions, Image, OpenOptions};

fn image_options(size: u64, cluster_bits: u32) -> CreateOptions {
    CreateOptions {
        size,
        cluster_bits,
        ..CreateOptions::default()
    }
}

fn open(image: &Arc<MemStorage>, data: &Arc<MemStorage>, access: Access) -> block::Result<Image> {
    let options = OpenOptions {
        access,
        backing: Backing::Detached,
        data_file: Some(data.clone()),
        ..OpenOptions::default()
    };
    Image::open(image.clone(), options)
}

/// Random requests against a vector; then the vector against what QEMU reads and what is in a raw file.
fn requests(cluster_bits: u32, raw: bool, backing: Option<u64>, seed: u64) {
    let what = format!("clusters of 2^{cluster_bits}, raw: {raw}, backing: {backing:?}, seed {seed}");
    let mut rng = Rng::new(seed);
    let size = (1 + rng.below(400)) * 512;
    let mut options = image_options(size, cluster_bits);
    options.backing = backing.map(|_| BackingReference {
        name: "base.raw".into(),
        format: Some("raw".into()),
    });
    let (image, data) = common::create_with_data_file(&options, raw);
    let (image, data) = (Arc::new(image), Arc::new(data));
    let below = backing.map(|len| Bytes::pattern(len, seed).0);
    let device = below
        .clone()
        .map(|bytes| Arc::new(Bytes(bytes)) as Arc<dyn BlockDevice>);
    let mut model = below.clone().unwrap_or_default();
    model.resize(size as usize, 0);
    let reopen = || common::open_with_data_file(image.clone(), device.as_ref(), Some(data.clone()));
    let mut disk = reopen();
    let cluster = 1usize << cluster_bits;
    for step in 0..60 {
        let start = rng.below(model.len() as u64) as usize;
        let end = model
            .len()
            .min(start + 1 + rng.below(4 * cluster as u64) as usize);
        let (at, len) = (start as u64, (end - start) as u64);
        match rng.below(12) {
            0 => disk.zero_at(at, len, ZeroMode::Unmap).expect("zero"),
            1 => disk.zero_at(at, len, ZeroMode::Allocate).expect("zero"),
            2 | 3 => {
                disk.discard_at(at, len).expect("discard");
                let first = start.next_multiple_of(cluster);
                let last = if end == model.len() {
                    end
                } else {
                    end / cluster * cluster
                };
                if first < last {
                    model[first..last].fill(0);
                }
                continue;
            }
            4 => {
                disk.close().expect("close");
                disk = reopen();
                continue;
            }
            5 => {
                let size = (1 + rng.below(400)) * 512;
                let preallocation = match rng.below(4) {
                    0 if size > disk.size() => Preallocation::Metadata,
                    1 if size > disk.size() => Preallocation::Full,
                    _ => Preallocation::Off,
                };
                let how = Resize {
                    shrink: true,
                    preallocation,
                };
                disk.resize(size, how).expect("resize");
                model.resize(size as usize, 0);
                assert_eq!(data.len().unwrap(), size, "{what}");
                continue;
            }
            _ => {
                let bytes = vec![step + 1; end - start];
                disk.write_at(&bytes, at).expect("write");
                model[start..end].copy_from_slice(&bytes);
                continue;
            }
        }
        model[start..end].fill(0);
    }
    disk.flush().expect("flush");
    let mut seen = vec![0xaa; model.len()];
    disk.read_at(&mut seen, 0).expect("read");
    assert!(seen == model, "{what}: the disk differs from the model");
    disk.close().expect("close");

    assert_eq!(data.len().unwrap(), model.len() as u64, "{what}");
    if raw {
        assert!(data.to_vec() == model, "{what}: the raw file is not the disk");
    }
    let (code, words) = common::qemu_check(&image.to_vec());
    assert_eq!(code, 0, "{what}: {words}");
    let report = qcow2::check(&*image, &qcow2::CheckOptions::default(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    assert!(report.unwrap().is_clean(), "{what}");
    let theirs = common::qemu_read_with_data_file(&image.to_vec(), below.as_deref(), Some(&data.to_vec()));
    assert!(theirs == model, "{what}: QEMU reads something else");
}

#[test]
fn data_files_hold_what_a_vector_would() {
    for seed in 0..12 {
        requests([9, 12, 16][seed as usize % 3], false, None, seed);
    }
}

#[test]
fn data_files_hold_what_a_vector_would_over_a_backing_file() {
    for seed in 0..12 {
        requests([9, 12, 16][seed as usize % 3], false, Some(60_000), seed);
    }
}

#[test]
fn raw_data_files_are_the_disk() {
    for seed in 0..16 {
        requests([9, 12, 16][seed as usize % 3], true, None, seed);
    }
}

/// What qemu-io writes, with discards and zeros, is read here; and what is written here after it, there.
#[test]
fn qemu_and_we_take_turns() {
    for raw in ["on", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("image"), dir.path().join("data.raw"));
        let create = format!("data_file={},data_file_raw={raw}", common::text(&file));
        common::run_ok(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                &create,
                common::text(&path),
                "1000k",
            ],
        );
        let commands = [
            "write -P 1 0 300k",
            "write -z 0 64k",
            "write -z -u 64k 64k",
            "discard 128k 64k",
            "write -P 2 900k 100k",
        ];
        let args = commands.iter().flat_map(|command| ["-c", command]);
        let args: Vec<_> = args.chain(["-f", "qcow2", common::text(&path)]).collect();
        common::run_ok("qemu-io", &args);
        let (image, data) = (Arc::new(common::load(&path)), Arc::new(common::load(&file)));
        let mut model = vec![0; 1000 << 10];
        model[192 << 10..300 << 10].fill(1);
        model[900 << 10..].fill(2);
        let disk = open(&image, &data, Access::WRITE).unwrap();
        let mut seen = vec![0xaa; model.len()];
        disk.read_at(&mut seen, 0).unwrap();
        assert!(seen == model, "raw: {raw}");

        disk.write_at(&vec![3; 100_000], 50_000).unwrap();
        model[50_000..150_000].fill(3);
        disk.discard_at(900 << 10, 100 << 10).unwrap();
        model[960 << 10..].fill(0);
        disk.close().unwrap();
        model[900 << 10..960 << 10].fill(2);
        std::fs::write(&path, image.to_vec()).unwrap();
        std::fs::write(&file, data.to_vec()).unwrap();
        let out = dir.path().join("out");
        common::run_ok(
            "qemu-img",
            &["convert", "-O", "raw", common::text(&path), common::text(&out)],
        );
        assert!(std::fs::read(&out).unwrap() == model, "raw: {raw}");
        // QEMU fills the last cluster, and the file is longer than the disk.
        assert!(raw == "off" || data.to_vec().starts_with(&model));
        common::run_ok("qemu-img", &["check", common::text(&path)]);
    }
}

#[test]
fn extents_lie_in_the_data_file() {
    for raw in [false, true] {
        let (image, data) = common::create_with_data_file(&image_options(1 << 20, 16), raw);
        let (image, data) = (Arc::new(image), Arc::new(data));
        let disk = open(&image, &data, Access::WRITE).unwrap();
        let before = disk.extent_at(0, 1 << 20).unwrap();
        let state = if raw { ExtentState::Data } else { ExtentState::Hole };
        assert_eq!((before.state, before.len), (state, 1 << 20));
        assert!(disk.info().zero_init && disk.compressed().is_none());
        disk.write_at(b"hello", 100_000).unwrap();
        let extent = disk.extent_at(100_000, 5).unwrap();
        assert_eq!((extent.state, extent.host), (ExtentState::Data, Some(100_000)));
        let mut there = [0; 5];
        data.read_exact_at(&mut there, 100_000).unwrap();
        assert_eq!(&there, b"hello");
    }
}

/// The rest of the disk is less than a subcluster, in the last cluster, whose other subclusters lie past its end.
#[test]
fn a_discard_of_the_last_bytes_of_a_raw_data_file_changes_nothing() {
    let options = CreateOptions {
        extended_l2: true,
        ..image_options((64 << 10) + 1024, 16)
    };
    let (image, data) = common::create_with_data_file(&options, true);
    let (image, data) = (Arc::new(image), Arc::new(data));
    let disk = open(&image, &data, Access::WRITE).unwrap();
    disk.write_at(&[7; 1024], 64 << 10).unwrap();
    disk.discard_at((64 << 10) + 1, 1023).unwrap();
    disk.unmap_to_backing((64 << 10) + 1, 1023).unwrap();
    disk.close().unwrap();
    assert_eq!(data.len().unwrap(), (64 << 10) + 1024);
    assert!(data.to_vec()[64 << 10..] == [7; 1024]);
}

/// An image as QEMU made them before it mapped raw data files whole.
#[test]
fn what_a_raw_file_holds_is_read_whether_it_is_mapped_or_not() {
    let (image, data) = common::create_with_data_file(&image_options(256 << 10, 16), true);
    let l2 = 4 << 16;
    image.write_all_at(&[0; 32], l2).unwrap();
    data.write_all_at(&vec![7; 100_000], 50_000).unwrap();
    let (image, data) = (Arc::new(image), Arc::new(data));
    let disk = open(&image, &data, Access::WRITE).unwrap();
    let mut seen = vec![0; 256 << 10];
    disk.read_at(&mut seen, 0).unwrap();
    assert!(seen == data.to_vec());
    disk.write_at(&[8; 10], 60_000).unwrap();
    disk.zero_at(100_000, 10, ZeroMode::Unmap).unwrap();
    disk.close().unwrap();
    seen[60_000..60_010].fill(8);
    seen[100_000..100_010].fill(0);
    assert!(seen == data.to_vec());
}

fn refused(result: block::Result<Image>, kind: ErrorKind, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_data_file_must_be_there_whole_and_wanted() {
    let (image, data) = common::create_with_data_file(&image_options(1 << 20, 16), false);
    let (image, data) = (Arc::new(image), Arc::new(data));
    refused(
        Image::open(image.clone(), OpenOptions::default()),
        ErrorKind::InvalidInput,
        "'data.raw', and none was given",
    );
    data.set_len((1 << 20) - 1).unwrap();
    refused(
        open(&image, &data, Access::READ),
        ErrorKind::Corrupt,
        "disk of 1048576 bytes, and has only 1048575",
    );
    let plain = Arc::new(MemStorage::new());
    qcow2::create(&*plain, &image_options(1 << 20, 16)).unwrap();
    refused(
        open(&plain, &data, Access::READ),
        ErrorKind::InvalidInput,
        "the image has none",
    );
}

#[test]
fn entries_that_no_data_file_can_have_are_damage() {
    for (entry, words) in [
        (1 << 63 | 0x2_0000u64, "must be at the same offset"),
        (1 << 62 | 0x5_0000, "compressed cluster"),
        (1 << 63 | 0x1_0200, "not a multiple"),
    ] {
        let (image, data) = common::create_with_data_file(&image_options(256 << 10, 16), true);
        image.write_all_at(&entry.to_be_bytes(), (4 << 16) + 8).unwrap();
        let disk = open(&Arc::new(image), &Arc::new(data), Access::WRITE).unwrap();
        let results = [
            disk.read_at(&mut [0; 10], 70_000),
            disk.write_at(&[0; 10], 70_000),
            disk.extent_at(70_000, 10).map(|_| ()),
        ];
        for result in results {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(words), "{error}");
        }
        // The others are as they were.
        disk.read_at(&mut [0; 10], 0).unwrap();
    }
}
