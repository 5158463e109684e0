//! Empty filesystems: their sizes, and what their boot record says.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use block::{MemStorage, Storage};
use fat_builder::{Builder, Options};

use crate::image::{GIB, Image, MIB, of_size, put_file, run};

#[test]
fn fsck_finds_nothing_wrong_at_any_size() {
    for size in [
        34 * MIB,
        34 * MIB + 511,
        64 * MIB,
        260 * MIB - 1,
        260 * MIB,
        512 * MIB,
        2 * GIB,
        8 * GIB,
        16 * GIB + 777,
        64 * GIB,
    ] {
        Image::built(&of_size(size), |_| ()).assert_clean(&format!("{size} bytes"));
    }
}

#[test]
fn fsck_finds_nothing_wrong_with_any_sectors_and_clusters() {
    for (sector_size, cluster_size) in [
        (512, 1024),
        (512, 32 << 10),
        (1024, 1024),
        (2048, 8192),
        (4096, 4096),
        (4096, 32 << 10),
    ] {
        let options = Options {
            sector_size,
            cluster_size: Some(cluster_size),
            ..of_size(3 * GIB)
        };
        let image = Image::built(&options, |builder| {
            put_file(builder, builder.root(), "file", &vec![7; 100_000]);
        });
        image.assert_clean(&format!("sectors of {sector_size}, clusters of {cluster_size}"));
        assert_eq!(image.summary.cluster_size, cluster_size);
        assert_eq!(image.mtools("mcopy", &["::file", "-"]), "\u{7}".repeat(100_000));
    }
}

#[test]
fn the_smallest_that_is_said_to_do_is_fine() {
    let error = Builder::new(&MemStorage::new(), of_size(MIB)).unwrap_err();
    let hint = error.hint().unwrap();
    let least = hint.split(' ').nth(4).unwrap().parse().unwrap();
    assert!((32 * MIB..33 * MIB).contains(&least), "{hint}");
    Image::built(&of_size(least), |_| ()).assert_clean(hint);
}

#[test]
fn mkfs_makes_as_large_clusters_and_as_many_of_them() {
    for size in [40 * MIB, 512 * MIB, 9 * GIB, 20 * GIB, 40 * GIB] {
        let ours = Image::built(&of_size(size), |_| ());
        let theirs = tempfile::NamedTempFile::new().unwrap();
        theirs.as_file().set_len(size).unwrap();
        let mut mkfs = Command::new("mkfs.fat");
        assert!(run(mkfs.args(["-F", "32"]).arg(theirs.path())).status.success());
        let info = |path: &std::path::Path| {
            let output = run(Command::new("minfo").arg("-i").arg(path));
            String::from_utf8(output.stdout).unwrap()
        };
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let number: String = line.chars().filter(char::is_ascii_digit).collect();
            number.parse().unwrap()
        };
        let (mine, other) = (info(&ours.path), info(theirs.path()));
        for name in ["cluster size: ", "sector size: "] {
            assert_eq!(field(&mine, name), field(&other, name), "{size}: {name}");
        }
        let fat = |text| field(text, "Big fatlen=");
        let most = 64.max(fat(&other) / 1000);
        assert!(
            fat(&mine).abs_diff(fat(&other)) <= most,
            "{size}: {mine}\n{other}"
        );
    }
}

#[test]
fn the_boot_record_says_what_was_asked_for() {
    let options = Options {
        label: "MY ESP".into(),
        hidden_sectors: 2048,
        ..of_size(512 * MIB)
    };
    let image = Image::built(&options, |_| ());
    image.assert_clean("with every option");
    let info = image.mtools("minfo", &[]);
    for says in [
        "serial number: 1234ABCD",
        "disk label=\"MY ESP     \"",
        "hidden sectors: 2048",
        "backup boot sector=6",
        "free clusters=130811",
    ] {
        assert!(info.contains(says), "{says}: {info}");
    }
    assert!(
        image
            .mtools("mdir", &["::"])
            .starts_with(" Volume in drive : is MY ESP     \n")
    );
    let probe = run(Command::new("blkid")
        .args(["-p", "-o", "export"])
        .arg(&image.path));
    let probe = String::from_utf8(probe.stdout).unwrap();
    for says in [
        "LABEL=MY\\ ESP\n",
        "UUID=1234-ABCD\n",
        "TYPE=vfat\n",
        "VERSION=FAT32\n",
    ] {
        assert!(probe.contains(says), "{says}: {probe}");
    }
    let free = u64::from(image.summary.free_clusters) * 4096;
    let shown: String = free.to_string();
    let listing = image.mtools("mdir", &["::"]).replace(' ', "");
    assert!(listing.contains(&format!("{shown}bytesfree")), "{listing}");
}

#[test]
fn a_lost_boot_record_is_recovered_from_its_copy() {
    let image = Image::built(&of_size(64 * MIB), |builder| {
        put_file(builder, builder.root(), "file", b"hello\n");
    });
    let before = fs::read(&image.path).unwrap();
    let file = File::options().read(true).write(true).open(&image.path).unwrap();
    let record = 3 * 512;
    file.write_all_at(&vec![0; record], 0).unwrap();
    assert!(
        !run(Command::new("fsck.fat").arg("-n").arg(&image.path))
            .status
            .success()
    );
    let mut copy = vec![0; record];
    file.read_exact_at(&mut copy, 6 * 512).unwrap();
    file.write_all_at(&copy, 0).unwrap();
    image.assert_clean("recovered from the copy");
    assert!(fs::read(&image.path).unwrap() == before);
}

#[test]
fn labels_that_cannot_be_are_refused_before_anything_is_written() {
    for label in ["esp", "TWELVE CHARS", " A", "A.B", "Ä", "A\0", "A/B"] {
        let options = Options {
            label: label.into(),
            ..of_size(64 * MIB)
        };
        let storage = MemStorage::new();
        let error = Builder::new(&storage, options).unwrap_err();
        assert!(error.message().contains(&format!("{label:?}")), "{error}");
        assert_eq!(storage.len().unwrap(), 0);
    }
}

#[test]
fn two_tebibytes_are_read_and_written_by_others() {
    let image = Image::built(&of_size(2 << 40), |builder| {
        put_file(builder, builder.root(), "file", b"hello\n");
    });
    assert_eq!(image.mtools("mcopy", &["::file", "-"]), "hello\n");
    image.script("echo more >other; mcopy other x:");
    assert_eq!(image.mtools("mcopy", &["::other", "-"]), "more\n");
    assert!(image.summary.clusters > 67_000_000);
}

#[test]
fn old_contents_of_the_disk_do_not_show_through() {
    let storage = MemStorage::new();
    let size = 300 * MIB;
    let ones = vec![0xFF; MIB as usize];
    for offset in (0..size).step_by(ones.len()) {
        storage.write_all_at(&ones, offset).expect("write");
    }
    let image = Image::on(&storage, &of_size(size), |builder| {
        let directory = builder
            .directory(builder.root(), b"directory", of_size(0).time)
            .unwrap();
        put_file(builder, directory, "file", b"hello\n");
    });
    image.assert_clean("on a disk full of ones");
    assert_eq!(image.mtools("mcopy", &["::directory/file", "-"]), "hello\n");
    image.script(
        "mkdir many; cd many; seq -f 'a long name %g' 200 | xargs -d '\\n' touch; mcopy ./* x:directory",
    );
    image.assert_clean("after clusters were taken there");
    let mut slack = [0xFF; 4096 - 6];
    storage
        .read_exact_at(&mut slack, first_data(&storage) + 4096 + 6)
        .unwrap();
    assert!(
        slack.iter().all(|byte| *byte == 0),
        "the rest of a file's cluster"
    );
}

/// Where the first cluster is, by the boot sector.
fn first_data(storage: &MemStorage) -> u64 {
    let mut boot = [0; 512];
    storage.read_exact_at(&mut boot, 0).unwrap();
    let reserved = u64::from(u16::from_le_bytes([boot[14], boot[15]]));
    let table = u64::from(u32::from_le_bytes([boot[36], boot[37], boot[38], boot[39]]));
    (reserved + 2 * table) * 512
}
