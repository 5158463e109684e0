//! Filesystems with something in them, and what cannot be put there.

use std::fs;
use std::io;

use block::{Error, ErrorKind, MemStorage, Storage};
use fat_builder::{Builder, Time};

use crate::image::{Image, MIB, TIME, noise, of_size, put_file};

/// Names with all that is hard about them.
const NAMES: [&str; 16] = [
    "BOOTX64.EFI",
    "bootx64.bak",
    "vmlinuz-6.1.0-28-cloud-amd64",
    "initrd.img-6.1.0-28-cloud-amd64",
    "The quick brown.fox",
    "THEQUI~1.FOX",
    "a",
    " leading space",
    ".profile",
    "..two",
    "[+,;=]",
    "grüße aus köln.txt",
    "日本語のとても長いファイル名.conf",
    "Ω",
    "exactly 13 ch",
    "exactly twenty-six units x",
];

/// Of the first names' files.
const LENGTHS: [usize; 8] = [0, 1, 511, 512, 513, 3 << 20, 100, 65_536];

const DIRECTORIES: [(&str, u64); 3] = [
    ("", 1),
    ("loader/", 2),
    ("loader/a directory with a long name/", 3),
];

#[test]
fn what_was_put_in_is_read_by_others() {
    let image = Image::built(&of_size(64 * MIB), |builder| {
        let root = builder.root();
        let loader = builder.directory(root, b"loader", TIME).unwrap();
        let entries = builder
            .directory(loader, b"a directory with a long name", TIME)
            .unwrap();
        for (parent, (_, seed)) in [root, loader, entries].into_iter().zip(DIRECTORIES) {
            for (name, len) in NAMES.iter().zip(LENGTHS) {
                put_file(builder, parent, name, &noise(seed + len as u64, len));
            }
            for name in &NAMES[8..] {
                put_file(builder, parent, name, name.as_bytes());
            }
            put_file(
                builder,
                parent,
                &"long ".repeat(51).replace("long ", "long_"),
                b"255",
            );
        }
    });
    image.assert_clean("with names of every kind");
    let contents = image.contents();
    assert_eq!(contents.len(), 3 * (NAMES.len() + 1) + 2);
    for (directory, seed) in DIRECTORIES {
        for (name, len) in NAMES.iter().zip(LENGTHS) {
            let bytes = noise(seed + len as u64, len);
            assert!(
                contents[&format!("{directory}{name}")] == Some(bytes),
                "{directory}{name}"
            );
        }
        for name in &NAMES[8..] {
            assert_eq!(
                contents[&format!("{directory}{name}")].as_deref(),
                Some(name.as_bytes())
            );
            let modified = fs::metadata(image.out().join(directory).join(name))
                .unwrap()
                .modified()
                .unwrap();
            let secs = modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(secs, TIME.secs as u64, "{directory}{name}");
        }
    }
}

#[test]
fn others_go_on_using_it() {
    let image = Image::built(&of_size(40 * MIB), |builder| {
        let directory = builder.directory(builder.root(), b"EFI", TIME).unwrap();
        for name in NAMES {
            put_file(builder, directory, name, name.as_bytes());
        }
    });
    image.script(
        "mmove 'x:EFI/The quick brown.fox' x:; mren 'x:The quick brown.fox' 'x:The quick brown.dog'; mdel x:EFI/BOOTX64.EFI; \
         echo new >bootx64.EFI; mcopy bootx64.EFI x:EFI; mmd x:again; \
         mkdir many; cd many; seq -f 'The quick brown number %g' 100 | xargs -d '\\n' touch; mcopy ./* x:again; cd ..; \
         truncate -s 100M full; ! mcopy full x: 2>/dev/null; mdel x:full 2>/dev/null || true; \
         echo more >more; mcopy more x:EFI",
    );
    image.assert_clean("after others wrote to it, filled it and made room again");
    let contents = image.contents();
    assert_eq!(contents.len(), NAMES.len() + 1 + 2 + 100);
    for (name, bytes) in [
        ("The quick brown.dog", "The quick brown.fox"),
        ("EFI/bootx64.EFI", "new\n"),
        ("EFI/bootx64.bak", "bootx64.bak"),
        ("EFI/more", "more\n"),
        ("again/The quick brown number 100", ""),
    ] {
        assert_eq!(contents[name].as_deref(), Some(bytes.as_bytes()), "{name}");
    }
}

#[test]
fn directories_grow_over_many_clusters_up_to_their_limit() {
    let name = |i: u32| format!("two entries long {i:05}");
    let image = Image::built(&of_size(64 * MIB), |builder| {
        let directory = builder.directory(builder.root(), b"many", TIME).unwrap();
        // Each takes three entries; two are the dots.
        for i in 0..(65_536 - 2) / 3 {
            put_file(builder, directory, &name(i), b"");
            put_file(builder, builder.root(), &format!("R{i}"), b"x");
        }
        put_file(builder, directory, "LAST", b"");
        put_file(builder, directory, "A", b"");
        assert_refused(
            builder.file(directory, b"B", TIME, 0, &mut io::empty()),
            &["one name too many"],
        );
    });
    image.assert_clean("with a directory that is full");
    let list = |path| image.mtools("mdir", &["-b", "-a", path]);
    let (root, many) = (list("::"), list("::many"));
    assert_eq!((root.lines().count(), many.lines().count()), (1 + 21_844, 21_846));
    assert!(
        root.contains("::/R21843\n") && many.contains("::/many/LAST\n"),
        "{}",
        many.len()
    );
    assert!(
        many.contains(&format!("::/many/{}\n", name(21_843))),
        "{}",
        many.len()
    );
    assert_eq!(image.mtools("mcopy", &["::R21843", "-"]), "x");
}

fn assert_refused<T>(result: Result<T, Error>, says: &[&str]) {
    let error = result.err().expect("an error");
    assert!(
        says.iter().all(|says| error.to_string().contains(says)),
        "{error}"
    );
}

#[test]
fn what_fat_cannot_hold_is_refused_and_nothing_of_it_is_there() {
    let image = Image::built(&of_size(40 * MIB), |builder| {
        let root = builder.root();
        put_file(builder, root, "Readme.txt", b"first");
        let directory = builder.directory(root, b"Directory", TIME).unwrap();
        assert_eq!(builder.directory(root, b"Directory", TIME).unwrap(), directory);
        let mut file = |name: &str, size| {
            builder.file(
                root,
                name.as_bytes(),
                TIME,
                size,
                &mut io::Read::take(io::repeat(7), size),
            )
        };
        assert_refused(
            file("README.TXT", 1),
            &["\"Readme.txt\"", "\"README.TXT\"", "case only"],
        );
        assert_refused(file("Readme.txt", 1), &["two files called \"Readme.txt\""]);
        assert_refused(file("Directory", 1), &["two files called \"Directory\""]);
        assert_refused(file("a:b", 1), &["cannot hold the name \"a:b\""]);
        assert_refused(file("huge", 1 << 32), &["\"huge\"", "4294967296 bytes is larger"]);
        assert_refused(builder.directory(root, b"DIRECTORY", TIME), &["case only"]);
        assert_refused(builder.directory(root, b"Readme.txt", TIME), &["two files"]);

        let short = builder.file(root, b"short", TIME, 700_000, &mut &vec![1; 600_000][..]);
        assert_refused(short, &["\"short\" ends after 600000 of 700000 bytes"]);
        let long = builder.file(root, b"long", TIME, 5, &mut &[1; 6][..]);
        assert_refused(long, &["\"long\" goes on after 5 bytes"]);
        let broken = builder.file(
            root,
            b"broken",
            TIME,
            5,
            &mut Broken(|| io::Error::other("cable pulled")),
        );
        assert_refused(broken, &["read the content of \"broken\": cable pulled"]);
        let ours = || Error::new(ErrorKind::Interrupted, "stopped").into();
        let stopped = builder
            .file(root, b"stopped", TIME, 5, &mut Broken(ours))
            .unwrap_err();
        assert_eq!(
            (stopped.kind(), stopped.message()),
            (ErrorKind::Interrupted, "stopped")
        );
        put_file(builder, root, "last", b"last");
    });
    image.assert_clean("after refusals");
    let contents: Vec<_> = image.contents().into_iter().collect();
    let expected = [
        ("Directory", None),
        ("Readme.txt", Some(&b"first"[..])),
        ("last", Some(b"last")),
    ];
    assert_eq!(
        contents,
        expected.map(|(name, bytes)| (name.to_owned(), bytes.map(<[u8]>::to_vec)))
    );
}

/// Content that cannot be read.
struct Broken<F>(F);

impl<F: Fn() -> io::Error> io::Read for Broken<F> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err((self.0)())
    }
}

#[test]
fn what_does_not_fit_is_refused_by_how_much_and_all_else_fits_to_the_last_cluster() {
    let image = Image::built(&of_size(40 * MIB), |builder| {
        let root = builder.root();
        let put = |builder: &mut Builder<'_>, name: &str, size| {
            builder.file(
                root,
                name.as_bytes(),
                TIME,
                size,
                &mut io::Read::take(io::repeat(b'x'), size),
            )
        };
        put(builder, "big", 30 * MIB).unwrap();
        let error = put(builder, "bigger", 30 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let numbers: Vec<u64> = error
            .message()
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [needed, missing, free] = numbers[..] else {
            panic!("{error}")
        };
        assert_eq!((needed, missing), (30 * MIB, 30 * MIB - free), "{error}");
        put(builder, "rest", free).unwrap();
        // Room in the root's only cluster is left, and no cluster.
        put(builder, "empty", 0).unwrap();
        assert_refused(
            put(builder, "one", 1),
            &["\"one\" needs 512 bytes, 512 more than the 0 that are free"],
        );
        assert_refused(
            builder.directory(root, b"two", TIME),
            &["\"two\" needs 512 bytes"],
        );
        for i in 0..4 {
            put(builder, &format!("E{i}"), 0).unwrap();
        }
    });
    image.assert_clean("full to the last cluster");
    assert_eq!(image.summary.free_clusters, 0);
    assert_eq!(
        image.script("echo x >x; mcopy x x: 2>/dev/null || echo full"),
        "full\n"
    );
    assert!(
        image.contents()["rest"]
            .as_ref()
            .unwrap()
            .iter()
            .all(|byte| *byte == b'x')
    );
}

#[test]
fn the_same_calls_make_the_same_bytes() {
    let bytes = || {
        let storage = MemStorage::new();
        let mut builder = Builder::new(&storage, of_size(34 * MIB)).unwrap();
        let directory = builder.directory(builder.root(), b"directory", TIME).unwrap();
        for name in NAMES {
            put_file(&mut builder, directory, name, name.as_bytes());
        }
        builder.finish().unwrap();
        storage.to_vec()
    };
    assert!(bytes() == bytes());
}

#[test]
fn times_are_those_that_others_see() {
    let times = [315_532_800, 951_782_398, 1_700_000_000, 4_102_444_798];
    let image = Image::built(&of_size(34 * MIB), |builder| {
        for secs in times {
            let name = secs.to_string();
            builder
                .file(
                    builder.root(),
                    name.as_bytes(),
                    Time { secs },
                    0,
                    &mut io::empty(),
                )
                .unwrap();
        }
        let secs = 1_700_000_001;
        builder
            .file(builder.root(), b"odd", Time { secs }, 0, &mut io::empty())
            .unwrap();
    });
    image.assert_clean("with times from the first to the last");
    image.contents();
    let modified = |name: &str| {
        let modified = fs::metadata(image.out().join(name)).unwrap().modified().unwrap();
        modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    };
    for secs in times {
        assert_eq!(modified(&secs.to_string()), secs as u64);
    }
    // To two seconds.
    assert_eq!(modified("odd"), 1_700_000_000);
    assert!(image.mtools("mdir", &["::"]).contains("2023-11-14  22:13"));
}

#[test]
fn a_storage_of_another_length_keeps_it_or_grows() {
    let storage = MemStorage::new();
    storage.set_len(100 * MIB).unwrap();
    Builder::new(&storage, of_size(34 * MIB))
        .unwrap()
        .finish()
        .unwrap();
    assert_eq!(storage.len().unwrap(), 100 * MIB);
    let storage = MemStorage::new();
    Builder::new(&storage, of_size(34 * MIB + 100))
        .unwrap()
        .finish()
        .unwrap();
    assert_eq!(storage.len().unwrap(), 34 * MIB + 100);
}
