//! Files that were cut: what they no longer have is an error to read, and nothing that a writer leaves out is.

mod common;

use std::sync::Arc;

use block::{
    Access, Backing, BlockDevice, CompressedWrite, ErrorKind, ExtentState, MemStorage, Overlay,
    Preallocation, Storage,
};
use qcow2::{CreateOptions, GuestOffset, Image, OpenOptions, Place};

const CLUSTER: u64 = 64 << 10;
const DISK: u64 = 4 << 20;

fn open(storage: &MemStorage, write: bool) -> block::Result<Image> {
    let options = OpenOptions {
        access: if write { Access::WRITE } else { Access::READ },
        backing: Backing::Detached,
        ..OpenOptions::default()
    };
    Image::open(Arc::new(storage.clone()), options)
}

/// The image in a file cut to `len` bytes.
fn cut(storage: &MemStorage, len: u64) -> MemStorage {
    let cut = storage.clone();
    cut.set_len(len).expect("memory");
    cut
}

/// An image whose guest wrote its number to each of the first eight clusters, in this order, and where these lie.
fn eight_clusters(options: &str) -> (MemStorage, Vec<u64>) {
    let storage = Arc::new(common::create(options, DISK, None));
    let image = common::open(storage.clone(), None);
    for cluster in 0..8u8 {
        let bytes = vec![cluster + 1; CLUSTER as usize];
        image
            .write_at(&bytes, u64::from(cluster) * CLUSTER)
            .expect("write");
    }
    image.flush().expect("flush");
    let host = |cluster: u64| {
        let mapped = image.map(GuestOffset(cluster * CLUSTER), 1).expect("map");
        match mapped.place {
            Place::Host(host) => host.0,
            place => panic!("{place:?}"),
        }
    };
    let hosts = (0..8).map(host).collect();
    image.close().expect("close");
    ((*storage).clone(), hosts)
}

#[test]
fn what_a_cut_file_has_lost_is_no_zeros() {
    for options in ["cluster_size=64k", "cluster_size=64k,extended_l2=on"] {
        let (storage, hosts) = eight_clusters(options);
        for lost in 1..8usize {
            for len in [hosts[lost], hosts[lost] - 1, hosts[lost] - CLUSTER + 1] {
                let image = open(&cut(&storage, len), false).expect("its tables are there");
                let mut bytes = vec![0; CLUSTER as usize];
                for (number, at) in (0u64..8).map(|cluster| (cluster as usize, cluster * CLUSTER)) {
                    let what = format!("{options}, {lost} lost at {len}, cluster {number}");
                    let read = image.read_at(&mut bytes, at);
                    let extent = image.own_extent_at(at, CLUSTER).expect("an extent");
                    assert_eq!(extent.state, ExtentState::Data, "{what}");
                    if number < lost {
                        read.unwrap_or_else(|error| panic!("{what}: {error}"));
                        let kept = (len.min(hosts[number] + CLUSTER) - hosts[number]) as usize;
                        assert!(
                            bytes[..kept].iter().all(|byte| *byte == number as u8 + 1),
                            "{what}"
                        );
                        assert!(bytes[kept..].iter().all(|byte| *byte == 0), "{what}");
                        assert_eq!(extent.host, Some(hosts[number]), "{what}");
                        continue;
                    }
                    assert_eq!(extent.host, None, "{what}");
                    assert!(image.map(GuestOffset(at), 1).is_err(), "{what}");
                    let error = read.expect_err(&what);
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
                    let text = format!("{error}{}", error.hint().unwrap_or_default());
                    for part in [
                        format!("{at:#x}"),
                        format!("{:#x}", hosts[number]),
                        len.to_string(),
                    ] {
                        assert!(text.contains(&part), "{what}: {text}");
                    }
                    assert!(text.contains("cut"), "{what}: {text}");
                }
                // A read of all names the first that is lost.
                let mut all = vec![0; DISK as usize];
                let error = image.read_at(&mut all, 0).expect_err("some is lost");
                assert!(
                    error
                        .to_string()
                        .contains(&format!("{:#x}", lost as u64 * CLUSTER)),
                    "{error}"
                );
                assert!(
                    image
                        .read_at(&mut all[8 * CLUSTER as usize..], 8 * CLUSTER)
                        .is_ok()
                );
            }
        }
    }
}

#[test]
fn a_cut_image_is_not_written_to_until_somebody_makes_its_file_as_long_again() {
    let (storage, hosts) = eight_clusters("cluster_size=64k");
    let short = cut(&storage, hosts[6]);
    let error = open(&short, true).expect_err("two clusters are lost");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let hint = error.hint().expect("what to do");
    let whole = storage.len().expect("memory").next_multiple_of(CLUSTER);
    assert!(hint.contains(&format!("truncate -s {whole}")), "{hint}");
    short.set_len(whole).expect("memory");
    let image = open(&short, true).expect("as long as it was");
    let mut bytes = vec![1; 8 * CLUSTER as usize];
    image.read_at(&mut bytes, 0).expect("all is there");
    assert!(
        bytes[5 * CLUSTER as usize..][..CLUSTER as usize]
            .iter()
            .all(|byte| *byte == 6)
    );
    assert!(bytes[6 * CLUSTER as usize..].iter().all(|byte| *byte == 0));
    // Where the file ends in the last cluster, nothing is known to be lost.
    assert!(open(&cut(&storage, hosts[7] + 512), true).is_ok());
}

/// A crash leaves them: counted, and not yet named.
#[test]
fn leaks_past_the_end_of_the_file_are_no_reason_not_to_write() {
    let (storage, _) = eight_clusters("cluster_size=64k");
    let end = storage.len().expect("memory").div_ceil(CLUSTER);
    let table = qcow2::Header::read(&storage)
        .expect("sound")
        .refcount_table_offset;
    let mut block = [0; 8];
    storage.read_exact_at(&mut block, table.0).expect("memory");
    let leak = u64::from_be_bytes(block) + (end + 3) * 2;
    storage.write_all_at(&[0, 1], leak).expect("memory");
    let image = open(&storage, true).expect("nothing is lost");
    image.write_at(&[7; 100], 2 << 20).expect("write");
    image.close().expect("close");
}

#[test]
fn compressed_data_may_end_in_its_last_sector_and_not_before() {
    let storage = Arc::new(common::create("cluster_size=64k", DISK, None));
    let image = common::open(storage.clone(), None);
    let mut noise = 1u64;
    let bytes: Vec<u8> = (0..CLUSTER)
        .map(|_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 60) as u8
        })
        .collect();
    let compressed = image.compress(&bytes).expect("compress").expect("smaller");
    image.write_compressed_at(&compressed, 0).expect("write");
    image.close().expect("close");
    let len = storage.len().expect("memory");
    let start = len / CLUSTER * CLUSTER;
    let stored = start + compressed.len() as u64;
    assert!(len <= stored.next_multiple_of(512), "{len} {stored}");
    let mut read = vec![0; CLUSTER as usize];
    let whole = open(&cut(&storage, stored), false).expect("sound");
    whole.read_at(&mut read, 0).expect("all of it is there");
    assert!(read == bytes);
    for len in [stored / 512 * 512 - 512, start + 1000, start] {
        let image = open(&cut(&storage, len), false).expect("its tables are there");
        let error = image.read_at(&mut read, 0).expect_err("cut");
        assert!(
            error.to_string().contains("past the end of the file"),
            "{len}: {error}"
        );
    }
}

/// Every way in which a file may be shorter than what it maps, or full of holes.
#[test]
fn what_writers_leave_out_reads_as_zeros() {
    let mut images: Vec<(String, MemStorage)> = Vec::new();
    for preallocation in ["metadata", "falloc", "full"] {
        for more in ["", ",cluster_size=512", ",cluster_size=2M", ",extended_l2=on"] {
            let options = format!("preallocation={preallocation}{more}");
            let size = (1 << 20) + 512;
            images.push((options.clone(), common::create(&options, size, None)));
        }
    }
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for (cluster_bits, extended_l2) in [(9, false), (16, false), (21, false), (16, true)] {
            let options = CreateOptions {
                size: (1 << 20) + 512,
                cluster_bits,
                extended_l2,
                preallocation,
                ..CreateOptions::default()
            };
            let storage = MemStorage::new();
            let Ok(()) = qcow2::create(&storage, &options).map(drop) else {
                panic!("{options:?}")
            };
            images.push((format!("{options:?}"), storage));
        }
    }
    for (what, storage) in images {
        for write in [false, true] {
            let image = open(&storage, write).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut bytes = vec![1; image.size() as usize];
            image
                .read_at(&mut bytes, 0)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}");
        }
    }
}

/// A sector here and there, each in a new cluster of which the file gets no more, and read at once and later.
#[test]
fn new_clusters_of_which_a_part_is_written_are_there() {
    for options in [
        "cluster_size=64k",
        "cluster_size=2M",
        "cluster_size=64k,extended_l2=on",
    ] {
        let storage = Arc::new(common::create(options, 64 << 20, None));
        let image = common::open(storage.clone(), None);
        let mut expected = vec![0; 64 << 20];
        for step in 0..32u64 {
            let at = ((step * 7919) % 32) * (2 << 20) + (step % 5) * 4096 + 512;
            image.write_at(&[step as u8 + 1; 512], at).expect("write");
            expected[at as usize..][..512].fill(step as u8 + 1);
            let mut bytes = vec![0; 2 << 20];
            let start = at / (2 << 20) * (2 << 20);
            image.read_at(&mut bytes, start).expect("read");
            assert!(bytes == expected[start as usize..][..2 << 20], "{options} {step}");
            if step % 9 == 0 {
                image.flush().expect("flush");
                let crashed = open(&storage.as_ref().clone(), true).expect("open");
                let mut all = vec![0; 64 << 20];
                crashed.read_at(&mut all, 0).expect("read");
                assert!(all == expected, "{options} {step}");
            }
        }
        image.close().expect("close");
        let mut all = vec![0; 64 << 20];
        open(&storage, false)
            .expect("open")
            .read_at(&mut all, 0)
            .expect("read");
        assert!(all == expected, "{options}");
    }
}
