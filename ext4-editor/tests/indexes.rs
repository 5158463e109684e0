//! Directories with so many names that their index has levels, made by the kernel and gone on with here, and the other way
//! round.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::process::Command;

use common::{Image, succeed};
use ext4_builder::format::NameHash;
use ext4_editor::Attributes;

/// Kinds of filesystems, and requests to debugfs that make them what mke2fs has no option for.
const KINDS: [(&str, &[&str]); 6] = [
    ("-t ext4 -b 1024", &[]),
    ("-t ext4 -b 1024 -O ^metadata_csum,large_dir", &[]),
    // Names have bytes that count as signed, or do not.
    ("-t ext4 -b 1024", &["ssv flags 2"]),
    ("-t ext4 -b 1024", &["ssv def_hash_version tea"]),
    ("-t ext4 -b 2048", &["ssv def_hash_version legacy", "ssv flags 2"]),
    ("-t ext3 -b 1024", &[]),
];

fn name(number: u32) -> Vec<u8> {
    let mut name = format!("{number}-").into_bytes();
    // Some bytes above 0x7f, and lengths from 20 to 140.
    name.extend([0xE4, 0x80, 0xFF]);
    name.resize(20 + (number * 37 % 120) as usize, b'n');
    name
}

fn names(image: &Image) -> BTreeSet<Vec<u8>> {
    let filesystem = image.open();
    let filesystem = filesystem.filesystem();
    let directory = filesystem.resolve(b"/many", ext4_editor::LastLink::Keep).unwrap();
    filesystem
        .read_dir(&directory)
        .unwrap()
        .into_iter()
        .map(|entry| entry.name)
        .collect()
}

/// Has the kernel find each name by its hash.
fn kernel_finds(image: &Image, numbers: impl Iterator<Item = u32>) {
    use std::os::unix::ffi::OsStrExt;
    let mounted = image.mount("ro");
    for number in numbers {
        let path = mounted
            .0
            .join("many")
            .join(std::ffi::OsStr::from_bytes(&name(number)));
        assert!(path.symlink_metadata().is_ok(), "{number}");
    }
}

#[test]
fn indexes_of_several_levels_are_grown_and_thinned() {
    for (kind, requests) in KINDS {
        let image = Image::new("96M", &format!("{kind} -N 60000 -J size=16"));
        for request in requests {
            succeed(
                Command::new("debugfs")
                    .args(["-w", "-R", request])
                    .arg(&image.path),
            );
        }
        // The kernel makes the first ones.
        image.change("mkdir many");
        {
            use std::os::unix::ffi::OsStrExt;
            let mounted = image.mount("rw");
            for number in 0..4000 {
                let path = mounted
                    .0
                    .join("many")
                    .join(std::ffi::OsStr::from_bytes(&name(number)));
                std::fs::write(path, b"").unwrap();
            }
        }
        let when = format!("{kind} {requests:?}");
        let path = |number: u32| [b"/many/".to_vec(), name(number)].concat();
        image.edit(|editor| editor.put(b"/one", b"", &Attributes::default()).unwrap());
        // The journal holds so many at a time.
        for some in [4000..10_000, 10_000..17_000, 17_000..24_000] {
            image.edit(|editor| {
                for number in some {
                    editor
                        .link(b"/one", &path(number))
                        .unwrap_or_else(|error| panic!("{when}, {number}: {error:?}"));
                }
            });
        }
        image.assert_clean(&when);
        assert_eq!(names(&image), (0..24_000).map(name).collect(), "{when}");
        let levels = image.debugfs("htree_dump /many");
        assert!(
            levels.contains("Indirect levels: 1") || kind.contains("2048"),
            "{when}: {levels:.500}"
        );
        kernel_finds(&image, (0..24_000).step_by(7));
        for third in 0..3 {
            image.edit(|editor| {
                for number in (third * 8000..(third + 1) * 8000).filter(|number| number % 3 != 0) {
                    editor
                        .remove(&path(number))
                        .unwrap_or_else(|error| panic!("{when}, {number}: {error:?}"));
                }
                for number in 24_000 + third * 1000..25_000 + third * 1000 {
                    editor.link(b"/one", &path(number)).unwrap();
                }
            });
        }
        image.assert_clean(&when);
        let left: BTreeSet<u32> = (0..24_000).step_by(3).chain(24_000..27_000).collect();
        assert_eq!(names(&image), left.iter().copied().map(name).collect(), "{when}");
        kernel_finds(&image, left.into_iter());
        // The kernel goes on.
        image.change(
            "cd many; for i in $(seq 3000); do : >\"kernel's name that is not short $i\"; done; rm [0-4]*",
        );
        image.assert_clean(&when);
    }
}

#[test]
fn names_of_one_hash_are_found_in_all_blocks_that_have_them() {
    const SEED: &str = "01020304-a5b6-c7d8-e9fa-fbfcfdfeff00";
    let hex: String = SEED.chars().filter(|&char| char != '-').collect();
    let seed = u128::from_str_radix(&hex, 16).unwrap().to_be_bytes();
    let hash = NameHash::half_md4(seed);
    let image = Image::new("64M", &format!("-t ext4 -b 1024 -E hash_seed={SEED}"));

    // So long that three fill a block. Of a million, some hundred pairs have the same hash.
    let name = |number: u32| format!("{number:0>240}").into_bytes();
    let mut seen = HashMap::new();
    let mut pairs = Vec::new();
    for number in 0..1_000_000 {
        if let Some(other) = seen.insert(hash.of(&name(number)), number) {
            pairs.extend([other, number]);
        }
    }
    assert!(pairs.len() > 200, "{}", pairs.len());
    let path = |number: u32| [b"/many/".to_vec(), name(number)].concat();
    image.edit(|editor| {
        editor.put(b"/one", b"", &Attributes::default()).unwrap();
        editor.make_directory(b"/many", &Attributes::default()).unwrap();
        for &number in &pairs {
            editor.link(b"/one", &path(number)).unwrap();
        }
    });
    image.assert_clean("made");
    // An index says so by the lowest bit of a hash.
    let dump = image.debugfs("htree_dump /many");
    let goes_on = |line: &str| {
        let (_, hash) = line.split_once("Hash 0x")?;
        let digits: String = hash.chars().take_while(char::is_ascii_hexdigit).collect();
        Some(line.starts_with("Entry #") && u32::from_str_radix(&digits, 16).ok()? & 1 == 1)
    };
    assert!(
        dump.lines().any(|line| goes_on(line) == Some(true)),
        "{dump:.1000}"
    );
    image.edit(|editor| {
        for &number in pairs.iter().skip(1).step_by(2) {
            let error = editor.link(b"/one", &path(number)).unwrap_err();
            assert!(error.to_string().contains("there already"), "{error}");
            editor.remove(&path(number)).unwrap();
        }
    });
    image.assert_clean("thinned");
}
