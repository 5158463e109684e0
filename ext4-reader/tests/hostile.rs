//! Damaged and hostile filesystems: errors at worst, never a panic and never without an end.

mod common;

use std::fs;
use std::ops::Range;
use std::process::Command;

use block::test_utils::Rng;
use block::{ErrorKind, Result};
use common::{Image, open, open_bytes, run};
use ext4_reader::{FileKind, Filesystem, InodeNumber, LastLink, Visits};

/// Reads all there is below the root, as far as it can be read. Gives how many files were read without an error.
fn read_everything(filesystem: &Filesystem) -> usize {
    let mut visits = Visits::new(filesystem.superblock());
    let mut ahead = vec![InodeNumber::ROOT];
    let mut whole = 0;
    while let Some(number) = ahead.pop() {
        let mut one = || -> Result<Vec<InodeNumber>> {
            let inode = filesystem.inode(number)?;
            filesystem.xattrs(&inode)?;
            match inode.kind() {
                FileKind::Directory => {
                    visits.enter(&inode)?;
                    return Ok(filesystem
                        .read_dir(&inode)?
                        .into_iter()
                        .map(|entry| entry.inode)
                        .collect());
                }
                FileKind::Symlink => drop(filesystem.read_link(&inode)?),
                FileKind::Regular => {
                    for run in filesystem.content(&inode)? {
                        let run = run?;
                        visits.read(run.len)?;
                        filesystem.read_run(&run, 0, &mut vec![0; run.len.min(1 << 20) as usize])?;
                    }
                }
                _ => {}
            }
            Ok(Vec::new())
        };
        match one() {
            Ok(more) => {
                ahead.extend(more);
                whole += 1;
            }
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::InvalidInput
                ),
                "{error:?}"
            ),
        }
    }
    whole
}

/// The parts of the disk that hold metadata, for damage to hit.
fn metadata(bytes: &[u8]) -> Vec<Range<usize>> {
    let blocks = bytes.chunks(1024).enumerate();
    blocks
        .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        .map(|(i, _)| i * 1024..(i + 1) * 1024)
        .collect()
}

#[test]
fn random_damage_never_panics_and_always_ends() {
    // Without checksums damage is not found before it is believed.
    for kind in [
        "-t ext4 -b 1024 -O ^metadata_csum,inline_data,ea_inode",
        "-t ext2 -b 1024",
        "-t ext4 -b 1024",
    ] {
        let image = Image::new("4M", &format!("{kind} -N 512 -I 256"));
        image.change(
            "mkdir -p a/b/c many; seq -f 'entry %g of a directory' 300 | (cd many; xargs -d '\\n' touch) || :; echo text >a/text; ln -s a/b l; \
             ln -s $(head -c 200 /dev/zero | tr '\\0' x) long; for i in $(seq 0 2 150); do dd if=/etc/hostname of=pieces bs=1024 count=1 seek=$i conv=notrunc status=none; done",
        );
        let good = fs::read(&image.path).unwrap();
        let all = read_everything(&open_bytes(good.clone()).unwrap());
        assert!(all > 300, "{kind}: {all}");
        let places = metadata(&good);
        let mut rng = Rng::new(4);
        let mut differing = 0;
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(12) {
                // The first blocks decide most.
                let among = if rng.below(2) == 0 {
                    places.len().min(40)
                } else {
                    places.len()
                };
                let place = &places[rng.below(among as u64) as usize];
                let at = place.start + rng.below(1024) as usize;
                match rng.below(3) {
                    0 => bytes[at] ^= 1 << rng.below(8),
                    1 => bytes[at] = rng.below(256) as u8,
                    _ => bytes[at & !3..][..4].copy_from_slice(&[0xFF; 4]),
                }
            }
            let read = open_bytes(bytes).map(|filesystem| read_everything(&filesystem));
            if !read.is_ok_and(|count| count == all) {
                differing += 1;
            }
        }
        // About one in eight of what has no checksums; which bytes are hit depends on the filesystem's UUID.
        assert!(differing > 10, "{kind}: damage is not noticed");
    }
}

#[test]
fn a_damaged_journal_never_panics() {
    let image = Image::new("16M", "-t ext4 -b 1024 -O ^metadata_csum -J size=1");
    let copy = {
        let mounted = image.mount("rw,commit=1000");
        run(Command::new("sh")
            .args([
                "-ec",
                "mkdir a b; seq 100 | xargs touch; sync -f .; rm -r a; sync -f .",
            ])
            .current_dir(&mounted.0));
        image.copy()
    };
    let good = fs::read(&copy.path).unwrap();
    assert!(open_bytes(good.clone()).unwrap().is_replayed());
    let journal: Vec<usize> = (0..good.len())
        .step_by(1024)
        .filter(|at| good[*at..at + 4] == [0xC0, 0x3B, 0x39, 0x98])
        .collect();
    let mut rng = Rng::new(5);
    let mut refused = 0;
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(4) {
            let block = journal[rng.below(journal.len() as u64) as usize];
            bytes[block + rng.below(96) as usize] =
                [0, 1, 0x7F, 0xFF, rng.below(256) as u8][rng.below(5) as usize];
        }
        match open_bytes(bytes) {
            Ok(filesystem) => drop(read_everything(&filesystem)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 30, "{refused}");
}

/// Has debugfs change a filesystem that has no checksums.
fn spoil(commands: &[&str]) -> Image {
    let image = Image::new("8M", "-t ext4 -b 1024 -O ^metadata_csum,^dir_index");
    image.change("mkdir -p a/b; head -c 5000 /dev/urandom >file; head -c 3000 /dev/urandom >other; touch c");
    for command in commands {
        run(Command::new("debugfs")
            .args(["-w", "-R", command])
            .arg(&image.path));
    }
    image
}

/// Where an inode is on the disk.
fn place(image: &Image, path: &str) -> u64 {
    let said = run(Command::new("debugfs")
        .args(["-R", &format!("imap {path}")])
        .arg(&image.path));
    let (_, said) = said.split_once("located at block ").unwrap();
    let (block, offset) = said.trim().split_once(", offset 0x").unwrap();
    block.parse::<u64>().unwrap() * 1024 + u64::from_str_radix(offset, 16).unwrap()
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let image = spoil(&["link <7> /reserved"]);
    let good = fs::read(&image.path).unwrap();
    let first_data = place(&image, "/file") as usize;
    let root = place(&image, "/") as usize;
    for (place, bytes, path, says) in [
        (
            first_data + 0x28,
            &[0, 0][..],
            "/file",
            "its magic number is wrong (0)",
        ),
        (first_data + 0x2A, &[9, 0], "/file", "more entries than fit (9)"),
        (first_data + 0x2E, &[9, 0], "/file", "depth is wrong (9)"),
        (first_data + 0x38, &[0, 0], "/file", "empty or out of order"),
        (
            first_data + 0x3C,
            &[0xFF; 4],
            "/file",
            "outside of the filesystem",
        ),
        (first_data, &[0, 0xF0], "/file", "mode"),
        (first_data + 0x1A, &[0, 0], "/file", "deleted"),
        (
            first_data + 0x68,
            &[5, 0, 0, 0],
            "/file",
            "extended attributes: the magic number",
        ),
        (
            first_data + 0x68,
            &[0xFF; 4],
            "/file",
            "extended attributes: their block lies outside",
        ),
        (
            first_data + 0x6C,
            &[0xFF; 4],
            "/file",
            "more than a file can have",
        ),
        (first_data + 0x80, &[0xFF; 2], "/file", "extra fields"),
        (root, &[0, 0xF0], "/file", "inode 2"),
        (1024 * 2 + 8, &[0xFF; 4], "/file", "inode table of block group 0"),
        (1024, &[0xFF; 4], "/", "s_inodes_count is 4294967295"),
        (1024 + 0x18, &[9], "/", "s_log_block_size is 9"),
        (1024 + 0x20, &[0; 4], "/", "s_blocks_per_group is 0"),
        (1024 + 0x58, &[7, 0], "/", "s_inode_size is 7"),
        (0, &[0], "/reserved", "its inode is none that a file can have"),
    ] {
        let mut image = good.clone();
        image[place..place + bytes.len()].copy_from_slice(bytes);
        let read = open_bytes(image).and_then(|filesystem| {
            let inode = filesystem.resolve(path.as_bytes(), LastLink::Keep)?;
            filesystem.xattrs(&inode)?;
            filesystem.content(&inode)?.collect::<Result<Vec<_>>>()
        });
        let error = read.expect_err(says);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn a_directory_that_contains_itself_is_met_once() {
    let image = spoil(&["link /a /a/b/again", "link <2> /a/root"]);
    let filesystem = open(&image.path).unwrap();
    let deep = filesystem
        .resolve(b"/a/b/again/b/again/root/a", LastLink::Follow)
        .unwrap();
    assert_eq!(
        deep.number(),
        filesystem.resolve(b"a", LastLink::Follow).unwrap().number()
    );
    let mut visits = Visits::new(filesystem.superblock());
    visits.enter(&deep).unwrap();
    assert!(visits.enter(&deep).unwrap_err().to_string().contains("two ways"));
    // Two of its names are not followed.
    assert_eq!(read_everything(&filesystem), 7);
}

#[test]
fn a_tree_cannot_be_larger_than_the_disk() {
    let image = Image::new("8M", "-t ext4");
    let filesystem = open(&image.path).unwrap();
    let mut visits = Visits::new(filesystem.superblock());
    visits.read(5 << 20).unwrap();
    assert!(
        visits
            .read(5 << 20)
            .unwrap_err()
            .to_string()
            .contains("claimed more than once")
    );
}

/// However little room their inodes say that they take, and though it is said that files share blocks.
#[test]
fn directories_cannot_share_their_blocks() {
    for shares_blocks in [false, true] {
        let image = Image::new("8M", "-t ext4 -b 1024 -O ^metadata_csum,^dir_index -N 3000");
        image.change(
            r#"mkdir $(seq 20) many; x=$(head -c 230 /dev/zero | tr '\0' x); cd many; seq -f "$x %g" 2000 | xargs -d '\n' touch"#,
        );
        let mut bytes = fs::read(&image.path).unwrap();
        let many = place(&image, "/many") as usize;
        let [size, map] = [4..8, 0x28..0x64].map(|field| bytes[many..][field].to_vec());
        assert!(size[2] >= 7, "the directory is too small");
        for name in 1..=20 {
            let at = place(&image, &format!("/{name}")) as usize;
            bytes[at + 4..at + 8].copy_from_slice(&size);
            bytes[at + 0x1C..at + 0x20].copy_from_slice(&[0; 4]);
            bytes[at + 0x28..at + 0x64].copy_from_slice(&map);
        }
        if shares_blocks {
            bytes[1024 + 0x65] |= 0x40;
        }
        let filesystem = open_bytes(bytes).unwrap();
        let mut visits = Visits::new(filesystem.superblock());
        let entered: Vec<Result<()>> = (1..=20)
            .map(|name| {
                let directory = filesystem.resolve(format!("{name}").as_bytes(), LastLink::Follow)?;
                assert_eq!(filesystem.read_dir(&directory)?.len(), 2000);
                visits.enter(&directory)
            })
            .collect();
        let refused = entered.into_iter().find_map(Result::err).unwrap();
        assert_eq!(refused.kind(), ErrorKind::Corrupt);
        assert!(
            refused.to_string().contains("claimed more than once"),
            "{refused}"
        );
    }
}
