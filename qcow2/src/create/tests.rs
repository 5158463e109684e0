use std::path::Path;
use std::process::Command;

use block::MemStorage;
use block::test_utils::{Recorder, seeds};

use super::*;

fn qemu_img(directory: &Path, args: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(args)
        .current_dir(directory)
        .output()
        .expect("qemu-img must be installed");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn created(options: &CreateOptions) -> Vec<u8> {
    let storage = MemStorage::new();
    create(&storage, options).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    storage.to_vec()
}

/// What `qemu-img create` makes of the same options.
fn created_by_qemu(directory: &Path, options: &CreateOptions) -> Vec<u8> {
    let compat = match options.version {
        Version::V2 => "0.10",
        Version::V3 => "1.1",
    };
    let text = format!(
        "compat={compat},cluster_size={},refcount_bits={},lazy_refcounts={},compression_type={},extended_l2={}",
        1u64 << options.cluster_bits,
        1 << options.refcount_order,
        if options.lazy_refcounts { "on" } else { "off" },
        options.compression.name(),
        if options.extended_l2 { "on" } else { "off" },
    );
    let data_file = options.data_file.as_ref().map(|file| {
        let raw = if file.raw { "on" } else { "off" };
        let name = file.name.as_ref().unwrap();
        let preallocation = match options.preallocation {
            Preallocation::Off => "off",
            _ => "metadata",
        };
        format!(",data_file={name},data_file_raw={raw},preallocation={preallocation}")
    });
    let text = text + data_file.as_deref().unwrap_or("");
    let size = options.size.to_string();
    let mut args = vec!["create", "-q", "-u", "-f", "qcow2", "-o", &text];
    if let Some(backing) = &options.backing {
        args.extend(["-b", &backing.name]);
        args.extend(backing.format.iter().flat_map(|format| ["-F", format]));
    }
    args.extend(["theirs.qcow2", &size]);
    qemu_img(directory, &args);
    std::fs::read(directory.join("theirs.qcow2")).unwrap()
}

fn assert_same_as_qemu(directory: &Path, options: &CreateOptions) {
    let (ours, theirs) = (created(options), created_by_qemu(directory, options));
    assert_eq!(ours.len(), theirs.len(), "{options:?}");
    let difference = ours.iter().zip(&theirs).position(|(our, their)| our != their);
    assert_eq!(difference, None, "{options:?}");
}

fn assert_clean(directory: &Path, image: &[u8]) {
    std::fs::write(directory.join("ours.qcow2"), image).unwrap();
    let report = qemu_img(directory, &["check", "ours.qcow2"]);
    assert!(report.starts_with("No errors were found"), "{report}");
}

#[test]
fn makes_the_bytes_that_qemu_img_makes() {
    let directory = tempfile::tempdir().unwrap();
    for version in [Version::V2, Version::V3] {
        for cluster_bits in [9, 12, 13, 16, 21] {
            for refcount_order in [0, 1, 2, 3, 4, 5, 6] {
                if version == Version::V2 && refcount_order != 4 {
                    continue;
                }
                for size in [0, 512, 64 << 20, (1 << 30) + 512, 1 << 40, 64 << 40] {
                    let options = CreateOptions {
                        size,
                        version,
                        cluster_bits,
                        refcount_order,
                        ..CreateOptions::default()
                    };
                    // Beyond this, a file is too large to compare or the format can't express the disk.
                    if size.div_ceil(1 << (2 * cluster_bits - 3)) <= 1 << 18 {
                        assert_same_as_qemu(directory.path(), &options);
                    }
                }
            }
        }
    }
}

#[test]
fn makes_the_bytes_that_qemu_img_makes_with_other_options() {
    let directory = tempfile::tempdir().unwrap();
    let backing = |name: &str, format: Option<&str>| {
        Some(BackingReference {
            name: name.into(),
            format: format.map(Into::into),
        })
    };
    let disk = CreateOptions {
        size: 10 << 30,
        ..CreateOptions::default()
    };
    for options in [
        CreateOptions {
            extended_l2: true,
            ..disk.clone()
        },
        CreateOptions {
            extended_l2: true,
            cluster_bits: 14,
            backing: backing("base.img", Some("raw")),
            ..disk.clone()
        },
        CreateOptions {
            lazy_refcounts: true,
            compression: CompressionType::Zstd,
            backing: backing("base.img", Some("raw")),
            ..disk.clone()
        },
        CreateOptions {
            version: Version::V2,
            backing: backing("/a/b", Some("qcow2")),
            ..disk.clone()
        },
        CreateOptions {
            cluster_bits: 9,
            backing: backing(&"n".repeat(512 - 112 - 16 - 8), Some("raw")),
            ..disk.clone()
        },
        CreateOptions {
            backing: backing(&"n".repeat(1023), Some("raw")),
            ..disk
        },
    ] {
        assert_same_as_qemu(directory.path(), &options);
    }
}

#[test]
fn makes_the_bytes_that_qemu_img_makes_with_a_data_file() {
    let directory = tempfile::tempdir().unwrap();
    for (cluster_bits, size) in [
        (9, 512),
        (9, 1 << 20),
        (16, 1000 * 1024),
        (16, 1 << 30),
        (21, 5 << 20),
    ] {
        for (raw, preallocation) in [
            (false, Preallocation::Off),
            (false, Preallocation::Metadata),
            (true, Preallocation::Off),
        ] {
            let options = CreateOptions {
                size,
                cluster_bits,
                preallocation,
                data_file: Some(DataFileReference {
                    name: Some("disk.data".into()),
                    raw,
                }),
                ..CreateOptions::default()
            };
            assert_same_as_qemu(directory.path(), &options);
        }
    }
}

/// QEMU moves the refcount table here; ours is large enough from the start.
#[test]
fn a_refcount_table_of_several_clusters_is_clean() {
    let directory = tempfile::tempdir().unwrap();
    for (size, refcount_order) in [(16 << 30, 6), (32 << 30, 4), (128 << 30, 4), (128 << 30, 6)] {
        let options = CreateOptions {
            size,
            cluster_bits: 9,
            refcount_order,
            ..CreateOptions::default()
        };
        assert_clean(directory.path(), &created(&options));
    }
}

#[test]
fn preallocated_images_are_clean_and_map_every_cluster() {
    let directory = tempfile::tempdir().unwrap();
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (size, cluster_bits, refcount_order) in [
            (0, 16, 4),
            (512, 16, 4),
            (100_000 * 512, 16, 4),
            (1_000 * 512, 9, 6),
            (40_000 * 512, 9, 6),
            (3 << 20, 9, 0),
            (5 << 20, 21, 4),
        ] {
            let options = CreateOptions {
                size,
                cluster_bits,
                refcount_order,
                preallocation,
                ..CreateOptions::default()
            };
            let image = created(&options);
            let measured = crate::measure(&options, None).unwrap();
            assert!(image.len() as u64 <= measured.fully_allocated, "{options:?}");
            assert_clean(directory.path(), &image);
            if size > 0 {
                let map = qemu_img(directory.path(), &["map", "--output=json", "ours.qcow2"]);
                assert_eq!(map.lines().count(), 1, "{map}");
                assert!(
                    map.contains(&format!("\"length\": {size}")) && map.contains("\"offset\""),
                    "{map}"
                );
            }
            std::fs::write(directory.path().join("zeros"), vec![0; size as usize]).unwrap();
            qemu_img(
                directory.path(),
                &["compare", "-f", "qcow2", "-F", "raw", "ours.qcow2", "zeros"],
            );
        }
    }
}

#[test]
fn replaces_an_old_image_whole() {
    let storage = MemStorage::from(vec![0xaa; 10 << 20]);
    let options = CreateOptions {
        size: 1 << 30,
        ..CreateOptions::default()
    };
    create(&storage, &options).unwrap();
    assert_eq!(storage.to_vec(), created(&options));
}

/// Over nothing and over an older image; a name so long that the header takes several sectors.
#[test]
fn a_power_cut_leaves_the_old_image_or_none_or_the_new_one() {
    let old = created(&CreateOptions {
        size: 1 << 20,
        cluster_bits: 12,
        preallocation: Preallocation::Full,
        ..CreateOptions::default()
    });
    let plain = CreateOptions {
        size: 40 << 20,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    let overlay = CreateOptions {
        backing: Some(BackingReference {
            name: "n".repeat(1000),
            format: Some("raw".into()),
        }),
        ..plain.clone()
    };
    let preallocated = CreateOptions {
        preallocation: Preallocation::Metadata,
        ..plain
    };
    for (before, options) in [(vec![], &overlay), (old.clone(), &overlay), (old, &preallocated)] {
        let new = created(options);
        let recorder = Recorder::new();
        let storage = recorder.storage(MemStorage::from(before.clone()));
        create(&*storage, options).unwrap();
        let states = recorder.crash_states();
        let (mut refused, mut complete) = (0, 0);
        for point in states.points() {
            for seed in seeds(32) {
                let disk = states.at(point, seed).remove(0);
                match Header::read(&disk) {
                    Err(_) => refused += 1,
                    Ok(_) if disk.to_vec() == new => complete += 1,
                    Ok(_) => assert!(disk.to_vec() == before, "point {point}, seed {seed}"),
                }
            }
        }
        assert!(refused > 0 && complete > 0, "{refused} {complete}");
    }
}

#[test]
fn refuses_what_cannot_be() {
    let refuse = |words: &str, change: fn(&mut CreateOptions)| {
        let mut options = CreateOptions {
            size: 1 << 30,
            ..CreateOptions::default()
        };
        change(&mut options);
        let error = options.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(words), "{error}");
        let storage = MemStorage::from(b"old".to_vec());
        assert!(create(&storage, &options).is_err());
        assert_eq!(storage.to_vec(), b"old");
    };
    refuse("2^8 bytes", |options| options.cluster_bits = 8);
    refuse("2^22 bytes", |options| options.cluster_bits = 22);
    refuse("2^7 bits", |options| options.refcount_order = 7);
    refuse("multiple of 512", |options| options.size += 1);
    refuse("137438953472 bytes at most", |options| {
        options.cluster_bits = 9;
        options.size = (128 << 30) + 512;
    });
    refuse("too large", |options| options.size = u64::MAX - 511);
    refuse("64 PiB", |options| {
        options.cluster_bits = 21;
        options.size = 1 << 57;
        options.preallocation = Preallocation::Metadata;
    });
    refuse("more than refcounts can count", |options| {
        options.cluster_bits = 9;
        options.refcount_order = 6;
        options.size = 128 << 30;
        options.preallocation = Preallocation::Metadata;
    });
    refuse("no lazy refcounts", |options| {
        options.version = Version::V2;
        options.lazy_refcounts = true;
    });
    refuse("no other compression", |options| {
        options.version = Version::V2;
        options.compression = CompressionType::Zstd;
    });
    refuse("another width", |options| {
        options.version = Version::V2;
        options.refcount_order = 3;
    });
    refuse("no external data files", |options| {
        options.version = Version::V2;
        options.data_file = Some(DataFileReference {
            name: Some("data".into()),
            raw: false,
        });
    });
    refuse("no name", |options| {
        options.data_file = Some(DataFileReference {
            name: None,
            raw: false,
        });
    });
    refuse("cannot have a backing file", |options| {
        options.data_file = Some(DataFileReference {
            name: Some("data".into()),
            raw: true,
        });
        options.backing = Some(BackingReference {
            name: "base".into(),
            format: None,
        });
    });
    refuse("1024 bytes", |options| {
        options.backing = Some(BackingReference {
            name: "n".repeat(1024),
            format: None,
        });
    });
    refuse("first cluster has 512", |options| {
        options.cluster_bits = 9;
        options.backing = Some(BackingReference {
            name: "n".repeat(500),
            format: None,
        });
    });
    refuse("cannot be preallocated", |options| {
        options.preallocation = Preallocation::Metadata;
        options.backing = Some(BackingReference {
            name: "base".into(),
            format: None,
        });
    });
}

#[test]
fn larger_clusters_are_advised_only_where_there_are_any() {
    for (cluster_bits, advice) in [(16, "use larger clusters"), (21, "make the disk smaller")] {
        let options = CreateOptions {
            size: 7 << 60,
            cluster_bits,
            ..CreateOptions::default()
        };
        let error = options.validate().unwrap_err();
        assert!(error.hint().unwrap().ends_with(advice), "{error}");
    }
}
