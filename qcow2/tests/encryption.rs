//! Encrypted images: QEMU reads ours and we read QEMU's, with every cipher that both have; what is refused without a key, and
//! what takes none.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use block::test_utils::{Recorder, Rng, seeds};
use block::{
    Access, Backing, BlockDevice, ErrorKind, ExtentState, Keys, MemStorage, Overlay, Passphrase,
    Preallocation, Resize, Result, SnapshotSelector, Storage, ZeroMode,
};
use common::{Bytes, KEY, run_ok, text};
use encryption::{Cipher, CipherSpec, Iterations, IvGenerator, KeySlots, Mode, SECTOR};
use qcow2::{CreateOptions, GuestOffset, Header, Image, NewEncryption, OpenOptions, Place, read_luks};

const SIZE: u64 = 1 << 20;

/// Every cipher in every mode, and every initialisation vector with the longest keys. QEMU falls over keys whose copies do not
/// end with a sector.
fn specs() -> impl Iterator<Item = CipherSpec> {
    let modes = [Mode::Xts, Mode::Cbc];
    let ivs = [IvGenerator::Plain, IvGenerator::Plain64, IvGenerator::Essiv];
    Cipher::ALL
        .into_iter()
        .flat_map(move |cipher| modes.map(|mode| (cipher, mode)))
        .flat_map(move |(cipher, mode)| ivs.map(|iv| CipherSpec { cipher, mode, iv }))
        .filter(|spec| (spec.key_len() * 4000).is_multiple_of(SECTOR))
        .filter(|spec| spec.iv == IvGenerator::Plain64 || spec.cipher.name().ends_with("256"))
}

fn created(encryption: NewEncryption) -> Arc<MemStorage> {
    made(&CreateOptions {
        size: SIZE,
        encryption: Some(encryption),
        ..CreateOptions::default()
    })
}

fn made(options: &CreateOptions) -> Arc<MemStorage> {
    Arc::new(common::created(options))
}

fn opened(storage: &Arc<MemStorage>, keys: Keys) -> Result<Image> {
    let options = OpenOptions {
        access: Access::WRITE,
        keys,
        ..OpenOptions::default()
    };
    Image::open(storage.clone(), options)
}

fn read(image: &Image) -> Vec<u8> {
    let mut disk = vec![0xaa; image.size() as usize];
    image.read_at(&mut disk, 0).expect("read");
    disk
}

/// Writes of all kinds, in the middle of sectors too; what the disk then holds.
fn scribble(image: &Image, seed: u64) -> Vec<u8> {
    let mut disk = read(image);
    let mut rng = Rng::new(seed);
    for step in 0..40u8 {
        let start = rng.below(SIZE) as usize;
        let len = (1 + rng.below(100_000) as usize).min(disk.len() - start);
        let range = start..start + if rng.coin() { len } else { len.min(700) };
        if rng.below(5) == 0 {
            image
                .zero_at(start as u64, range.len() as u64, ZeroMode::Unmap)
                .expect("zero");
            disk[range].fill(0);
        } else {
            let data: Vec<u8> = range
                .clone()
                .map(|at| step.wrapping_mul(7) ^ (at / 5) as u8)
                .collect();
            image.write_at(&data, start as u64).expect("write");
            disk[range].copy_from_slice(&data);
        }
    }
    image.flush().expect("flush");
    disk
}

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("image.qcow2")
    }

    fn save(&self, image: &MemStorage) {
        std::fs::write(self.path(), image.to_vec()).expect("room for the image");
    }

    /// Has qemu-io write to the image.
    fn qemu_writes(&self, commands: &[&str]) -> Arc<MemStorage> {
        let name = common::qemu_name(&self.path());
        let mut args: Vec<&str> = name.iter().map(String::as_str).collect();
        for command in commands {
            args.extend(["-c", command]);
        }
        let said = run_ok("qemu-io", &args);
        assert!(!said.contains("failed") && !said.contains("error"), "{said}");
        Arc::new(common::load(&self.path()))
    }
}

fn qemu_created(path: &Path, options: &str) -> Arc<MemStorage> {
    let secret = format!("secret,id=key,data={KEY}");
    let options = format!("encrypt.key-secret=key,{options}");
    let args = [
        "create",
        "-q",
        "--object",
        &secret,
        "-f",
        "qcow2",
        "-o",
        &options,
        text(path),
        "1M",
    ];
    run_ok("qemu-img", &args);
    Arc::new(common::load(path))
}

/// Ours: written by us, read by QEMU, written by QEMU, read by us, and sound for all.
fn exchange(storage: &Arc<MemStorage>, seed: u64, what: &str) {
    let image = opened(storage, common::keys()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut disk = scribble(&image, seed);
    image.close().expect("close");
    assert!(
        common::qemu_read(&storage.to_vec(), None) == disk,
        "{what}: QEMU reads something else"
    );
    let lab = Lab::new();
    lab.save(storage);
    let changed = lab.qemu_writes(&[
        "write -q -P 201 3k 100k",
        "write -q -z 512k 64k",
        "write -q -P 7 700k 512",
    ]);
    disk[3 << 10..103 << 10].fill(201);
    disk[512 << 10..576 << 10].fill(0);
    disk[700 << 10..(700 << 10) + 512].fill(7);
    let image = opened(&changed, common::keys()).unwrap();
    assert!(read(&image) == disk, "{what}: QEMU has written something else");
    image.close().expect("close");
    judge(&changed, what);
}

/// Our check, which needs no key.
fn judge(image: &Arc<MemStorage>, what: &str) {
    let report = qcow2::check(&**image, &qcow2::CheckOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(report.unwrap().is_clean(), "{what}");
}

#[test]
fn qemu_reads_and_writes_ours_with_every_cipher() {
    for (seed, spec) in specs().enumerate() {
        exchange(&created(common::luks(spec)), seed as u64, &format!("{spec:?}"));
    }
    exchange(&created(common::aes()), 99, "AES");
}

#[test]
fn we_read_and_write_what_qemu_makes() {
    let lab = Lab::new();
    for options in [
        "encrypt.format=luks,encrypt.iter-time=10",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.hash-alg=sha1,encrypt.cipher-alg=serpent-256",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.hash-alg=ripemd160,encrypt.cipher-alg=twofish-128,\
         encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        "encrypt.format=luks,encrypt.iter-time=10,encrypt.hash-alg=sha512,encrypt.cipher-alg=aes-192,cluster_size=512",
        "encrypt.format=luks,encrypt.iter-time=10,compat=0.10",
        "encrypt.format=luks,encrypt.iter-time=10,extended_l2=on",
        "encrypt.format=aes",
        "encrypt.format=aes,cluster_size=4k,refcount_bits=1",
    ] {
        exchange(&qemu_created(&lab.path(), options), 5, options);
    }
}

#[test]
fn a_new_image_lies_as_qemu_lays_it_out() {
    let lab = Lab::new();
    for cluster_bits in [9, 12, 16, 21] {
        let options = format!(
            "encrypt.format=luks,encrypt.iter-time=10,cluster_size={}",
            1u64 << cluster_bits
        );
        let theirs = qemu_created(&lab.path(), &options);
        let ours = made(&CreateOptions {
            size: SIZE,
            cluster_bits,
            encryption: Some(common::luks(CipherSpec::default())),
            ..CreateOptions::default()
        });
        let (mut header, their_header) = (Header::read(&*ours).unwrap(), Header::read(&*theirs).unwrap());
        if cluster_bits == 9 {
            // QEMU's has a table that it has had to move.
            header.refcount_table_offset = their_header.refcount_table_offset;
            header.refcount_table_clusters = their_header.refcount_table_clusters;
            header.extensions.encryption_header = their_header.extensions.encryption_header;
            header.l1_offset = their_header.l1_offset;
        } else {
            assert_eq!(ours.len().unwrap(), theirs.len().unwrap());
        }
        assert_eq!(header, their_header);
        let (ours_luks, theirs_luks) = (
            read_luks(&*ours, &Header::read(&*ours).unwrap()),
            read_luks(&*theirs, &their_header),
        );
        let (ours_luks, theirs_luks) = (ours_luks.unwrap().unwrap(), theirs_luks.unwrap().unwrap());
        assert_eq!(ours_luks.names(), theirs_luks.names());
        assert_eq!(ours_luks.payload_offset(), theirs_luks.payload_offset());
        assert_eq!(ours_luks.material(7), theirs_luks.material(7));
        let (code, words) = common::qemu_check(&ours.to_vec());
        assert_eq!(code, 0, "{words}");
    }
}

#[test]
fn without_the_right_passphrase_nothing_is_read() {
    let storage = created(common::luks(CipherSpec::default()));
    let refused = |keys: Keys| opened(&storage, keys).unwrap_err();
    let error = refused(Keys::None);
    assert_eq!(error.kind(), ErrorKind::Key, "{error}");
    assert!(
        error.to_string().contains("LUKS, and no passphrase was given"),
        "{error}"
    );
    let error = refused(Keys::Passphrases(vec![Passphrase::new("wrong")]));
    assert_eq!(error.kind(), ErrorKind::Key, "{error}");
    assert!(error.to_string().contains("opens none"), "{error}");
    opened(
        &storage,
        Keys::Passphrases(vec![Passphrase::new("wrong"), Passphrase::new(KEY)]),
    )
    .unwrap();

    let image = opened(&storage, Keys::Locked).unwrap();
    assert_eq!(image.own_extent_at(0, SIZE).unwrap().state, ExtentState::Hole);
    assert_eq!(image.read_at(&mut [0; 10], 0).unwrap_err().kind(), ErrorKind::Key);
    assert_eq!(image.write_at(&[1; 512], 0).unwrap_err().kind(), ErrorKind::Key);
    image.close().unwrap();
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");

    let aes = created(common::aes());
    assert_eq!(opened(&aes, Keys::None).unwrap_err().kind(), ErrorKind::Key);
    let two = vec![Passphrase::new("a"), Passphrase::new("b")];
    assert_eq!(
        opened(&aes, Keys::Passphrases(two)).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn the_file_does_not_hold_the_data_and_does_not_say_where_it_is() {
    for encryption in [common::aes(), common::luks(CipherSpec::default())] {
        let storage = created(encryption);
        let image = opened(&storage, common::keys()).unwrap();
        let data = [
            *b"what nobody may read but us ....",
            *b"what nobody may read but us ....",
        ]
        .concat();
        image.write_at(&data.repeat(1024), 0).unwrap();
        assert_eq!(image.map(GuestOffset(0), 512).unwrap().place, Place::Encrypted);
        assert_eq!(
            image.plan_write(GuestOffset(0), 512).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        let extent = image.extent_at(0, SIZE).unwrap();
        assert_eq!((extent.state, extent.host), (ExtentState::Data, None));
        assert!(image.offloaded().is_none() && image.compressed().is_none());
        image.close().unwrap();
        let file = storage.to_vec();
        assert!(!file.windows(20).any(|bytes| bytes == b"what nobody may read"));
        // Nor which of its sectors are alike.
        let sectors = file[file.len() - (64 << 10)..].as_chunks::<SECTOR>().0;
        assert!(
            sectors
                .iter()
                .enumerate()
                .all(|(at, sector)| !sectors[..at].contains(sector))
        );
    }
}

#[test]
fn writes_to_parts_of_one_sector_do_not_undo_each_other() {
    let storage = created(common::luks(CipherSpec::default()));
    let image = opened(&storage, common::keys()).unwrap();
    image.write_at(&[0xff; 4096], 0).unwrap();
    std::thread::scope(|scope| {
        for part in 0..8u64 {
            let image = &image;
            scope.spawn(move || {
                for round in 0..100u8 {
                    image.write_at(&[part as u8 ^ round; 64], part * 64).unwrap();
                    image.write_at(&[round; 512], 512 + part / 4 * 512).unwrap();
                    image.write_at(&[round; 100], 2048 - 50).unwrap();
                }
            });
        }
    });
    let mut disk = [0; 4096];
    image.read_at(&mut disk, 0).unwrap();
    for part in 0..8 {
        assert_eq!(disk[part * 64..part * 64 + 64], [part as u8 ^ 0x63; 64], "{part}");
    }
    assert!(disk[2098..].iter().all(|byte| *byte == 0xff));
}

#[test]
fn snapshots_read_as_they_were_and_for_qemu_too() {
    for encryption in [common::aes(), common::luks(CipherSpec::default())] {
        let storage = created(encryption);
        let image = opened(&storage, common::keys()).unwrap();
        let before = scribble(&image, 1);
        image
            .create_snapshot("one", UNIX_EPOCH, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let after = scribble(&image, 2);
        image.close().unwrap();
        let options = OpenOptions {
            keys: common::keys(),
            ..OpenOptions::default()
        };
        let which = SnapshotSelector::name("one");
        let snapshot = Image::open_snapshot(storage.clone(), &which, options).unwrap();
        assert!(read(&snapshot) == before);
        assert!(common::qemu_read(&storage.to_vec(), None) == after);
        let image = opened(&storage, common::keys()).unwrap();
        image
            .apply_snapshot(&which, &mut |_| ControlFlow::Continue(()))
            .unwrap();
        assert!(read(&image) == before);
        image.close().unwrap();
        assert!(common::qemu_read(&storage.to_vec(), None) == before);
    }
}

#[test]
fn what_is_preallocated_reads_as_zeros_for_everybody() {
    for (preallocation, extended_l2) in [
        (Preallocation::Metadata, false),
        (Preallocation::Falloc, true),
        (Preallocation::Full, false),
    ] {
        let storage = made(&CreateOptions {
            size: SIZE,
            extended_l2,
            preallocation,
            encryption: Some(common::luks(CipherSpec::default())),
            ..CreateOptions::default()
        });
        let image = opened(&storage, common::keys()).unwrap();
        let how = Resize {
            preallocation,
            ..Resize::default()
        };
        image.resize(2 * SIZE, how).unwrap();
        assert!(read(&image).iter().all(|byte| *byte == 0));
        image.write_at(&[5; 1000], SIZE + 100).unwrap();
        image.write_at(&[6; 1000], 100).unwrap();
        let disk = read(&image);
        assert_eq!(disk.iter().filter(|byte| **byte != 0).count(), 2000);
        image.close().unwrap();
        assert!(common::qemu_read(&storage.to_vec(), None) == disk);
    }
    let old = CreateOptions {
        size: SIZE,
        version: qcow2::Version::V2,
        encryption: Some(common::aes()),
        ..CreateOptions::default()
    };
    let preallocation = Preallocation::Metadata;
    assert!(
        CreateOptions {
            preallocation,
            ..old.clone()
        }
        .validate()
        .is_err()
    );
    let image = opened(&made(&old), common::keys()).unwrap();
    let how = Resize {
        preallocation,
        ..Resize::default()
    };
    assert_eq!(
        image.resize(2 * SIZE, how).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn data_files_are_encrypted_too_and_raw_ones_are_not_made() {
    for encryption in [common::aes(), common::luks(CipherSpec::default())] {
        let options = CreateOptions {
            size: SIZE,
            encryption: Some(encryption),
            ..CreateOptions::default()
        };
        let (storage, data) = common::create_with_data_file(&options, false);
        let (storage, data) = (Arc::new(storage), Arc::new(data));
        let data_file: Arc<dyn Storage> = data.clone();
        let image = common::open_with_data_file(storage.clone(), None, Some(data_file));
        let disk = scribble(&image, 3);
        image.close().unwrap();
        let seen = common::qemu_read_with_data_file(&storage.to_vec(), None, Some(&data.to_vec()));
        assert!(seen == disk);
        assert!(data.to_vec() != disk);
        let raw = CreateOptions {
            data_file: Some(block::DataFileReference {
                name: Some("data.raw".into()),
                raw: true,
            }),
            ..options
        };
        assert_eq!(raw.validate().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn overlays_copy_what_lies_below_encrypted() {
    let below = Bytes::pattern(SIZE, 7);
    let base: Arc<dyn BlockDevice> = Arc::new(Bytes(below.0.clone()));
    for encryption in [common::aes(), common::luks(CipherSpec::default())] {
        let storage = made(&CreateOptions {
            size: SIZE,
            encryption: Some(encryption),
            backing: Some(block::BackingReference {
                name: "base.raw".into(),
                format: Some("raw".into()),
            }),
            ..CreateOptions::default()
        });
        let options = OpenOptions {
            access: Access::WRITE,
            backing: Backing::Device(base.clone()),
            keys: common::keys(),
            ..OpenOptions::default()
        };
        let image = Image::open(storage.clone(), options).unwrap();
        let disk = scribble(&image, 4);
        image.close().unwrap();
        assert!(common::qemu_read(&storage.to_vec(), Some(&below.0)) == disk);
    }
}

/// Data that an entry maps to the key material would overwrite it, and with it the keys of everything.
#[test]
fn key_material_is_never_written_over() {
    let storage = created(common::luks(CipherSpec::default()));
    let image = opened(&storage, common::keys()).unwrap();
    image.write_at(&vec![1; 65536], 0).unwrap();
    image.close().unwrap();
    let header = Header::read(&*storage).unwrap();
    let place = header.extensions.encryption_header.unwrap().offset;
    let mut entry = [0; 8];
    storage.read_exact_at(&mut entry, header.l1_offset.0).unwrap();
    let table = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    storage
        .write_all_at(&((place.0 + 65536) | (1 << 63)).to_be_bytes(), table)
        .unwrap();
    let before = storage.to_vec();
    let image = opened(&storage, common::keys()).unwrap();
    assert_eq!(
        image.write_at(&[2; 512], 0).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    drop(image);
    assert!(storage.to_vec()[place.0 as usize..][..2 << 20] == before[place.0 as usize..][..2 << 20]);
    // Nor is an L1 table that is said to lie there.
    storage.write_all_at(&place.0.to_be_bytes(), 40).unwrap();
    assert_eq!(
        opened(&storage, common::keys()).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn a_repair_without_a_key_keeps_the_key_material() {
    let storage = created(common::luks(CipherSpec::default()));
    let image = opened(&storage, common::keys()).unwrap();
    let disk = scribble(&image, 6);
    image.close().unwrap();
    // No refcounts at all: everything is found by its references.
    let header = Header::read(&*storage).unwrap();
    storage
        .write_all_at(&vec![0; 65536], header.refcount_table_offset.0)
        .unwrap();
    let report = qcow2::repair(&*storage, &qcow2::RepairOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(report.unwrap().after.is_clean());
    let image = opened(&storage, common::keys()).unwrap();
    assert!(read(&image) == disk);
    image.write_at(&vec![9; 300_000], 1000).unwrap();
    image.close().unwrap();
    let (code, words) = common::qemu_check(&storage.to_vec());
    assert_eq!(code, 0, "{words}");
    opened(&storage, common::keys()).unwrap();
}

#[test]
fn keys_are_added_and_removed_and_qemu_goes_by_them() {
    let storage = created(common::luks(CipherSpec::default()));
    let image = opened(&storage, common::keys()).unwrap();
    let disk = scribble(&image, 8);
    let second = Passphrase::new("second");
    let once = Iterations::Exactly(1);
    assert_eq!(image.add_key(&second, Some(6), once).unwrap(), 6);
    assert_eq!(image.add_key(&second, None, once).unwrap(), 1);
    assert!(image.add_key(&second, Some(1), once).is_err());
    assert_eq!(image.slots_opened_by(&second).unwrap(), [1, 6]);
    let lab = Lab::new();
    lab.save(&storage);
    for (passphrase, opens) in [(KEY, true), ("second", true), ("third", false)] {
        let secret = format!("secret,id=key,data={passphrase}");
        let name = format!(
            "driver=qcow2,encrypt.key-secret=key,file.filename={}",
            text(&lab.path())
        );
        let output = common::run("qemu-img", &["map", "--object", &secret, "--image-opts", &name]);
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            !words.contains("Invalid password"),
            opens,
            "{passphrase}: {words}"
        );
    }
    image.remove_key(0, false).unwrap();
    image.remove_key(1, false).unwrap();
    assert!(image.remove_key(1, false).is_err() && image.remove_key(6, false).is_err());
    image.close().unwrap();
    assert_eq!(
        opened(&storage, common::keys()).unwrap_err().kind(),
        ErrorKind::Key
    );
    let image = opened(&storage, Keys::Passphrases(vec![second])).unwrap();
    assert!(read(&image) == disk);
    image.remove_key(6, true).unwrap();
    image.close().unwrap();
    let aes = created(common::aes());
    let image = opened(&aes, common::keys()).unwrap();
    let error = image.add_key(&Passphrase::new("x"), None, once).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// The old passphrase opens it, or the new one, and never nobody's.
#[test]
fn a_power_cut_while_keys_change_locks_nobody_out() {
    for slot in [1, 6, 7] {
        let recorder = Recorder::new();
        let storage = recorder.storage(Arc::unwrap_or_clone(created(common::luks(CipherSpec::default()))));
        let image = common::open(storage, None);
        let second = Passphrase::new("second");
        image
            .add_key(&second, Some(slot), Iterations::Exactly(1))
            .unwrap();
        let added = recorder.position();
        image.remove_key(0, false).unwrap();
        let removed = recorder.position();
        image.remove_key(slot, true).unwrap();
        let last = recorder.position();
        image.close().unwrap();
        let states = recorder.crash_states();
        for point in states.points().filter(|point| *point < last) {
            for cut in seeds(6) {
                let what = format!("slot {slot} point {point} cut {cut}");
                let disk = Arc::new(states.at(point, cut).remove(0));
                let opens = |passphrase: &Passphrase| {
                    opened(&disk, Keys::Passphrases(vec![passphrase.clone()])).is_ok()
                };
                if point < added {
                    assert!(opens(&Passphrase::new(KEY)), "{what}");
                } else if point < removed {
                    assert!(opens(&second), "{what}");
                }
                // Whatever is on the disk, it is a header.
                opened(&disk, Keys::Locked).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        }
    }
}
