//! Sizes that are too small for a tree, and those that are said to do.

use block::{ErrorKind, MemStorage, Result, Storage};
use ext4_builder::{Builder, Compat, Inodes, Journal, Metadata, Options, Size, Summary};
use proptest::prelude::*;

use crate::image::{Image, MIB, given};

/// What a tree has: files of so many bytes, and names in one directory.
#[derive(Clone, Debug)]
struct Tree {
    files: Vec<u64>,
    names: u32,
}

fn build(options: &Options, tree: &Tree, storage: &dyn Storage) -> Result<Summary> {
    let mut builder = Builder::new(storage, options.clone())?;
    let root = builder.root();
    let metadata = Metadata::at(builder.time());
    for (number, &size) in tree.files.iter().enumerate() {
        let name = format!("file-{number}");
        // Where data would go is all that matters.
        let data = 0..size;
        builder.file(
            root,
            name.as_bytes(),
            &metadata,
            size,
            std::slice::from_ref(&data),
        )?;
    }
    let directory = builder.directory(root, b"names", &metadata)?;
    for number in 0..tree.names {
        let name = format!("{number}-{}", "long".repeat(number as usize % 20));
        builder.file(directory, name.as_bytes(), &metadata, 0, &[])?;
    }
    builder.finish()
}

/// The size that an error for too small a one says would do.
fn named_size(options: &Options, tree: &Tree) -> Option<u64> {
    let error = build(options, tree, &MemStorage::new()).err()?;
    let hint = error.hint().expect("a hint");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}: {hint}");
    let number = hint
        .strip_prefix("choose a size of ")
        .and_then(|rest| rest.split_once(" bytes or more"))
        .map(|(number, _)| number);
    Some(
        number
            .unwrap_or_else(|| panic!("{error}: {hint}"))
            .parse()
            .expect("number"),
    )
}

/// Holds the size that is named for a tree to what is said of it.
fn check(options: &Options, tree: &Tree) {
    let Size::Given(given) = options.size else {
        unreachable!("sizes are given")
    };
    let Some(named) = named_size(options, tree) else {
        return;
    };
    let with = |size| Options {
        size: Size::Given(size),
        ..options.clone()
    };
    let storage = MemStorage::new();
    if let Err(error) = build(&with(named), tree, &storage) {
        panic!(
            "{given} is too small and {named} does not do: {error}: {:?}",
            error.hint()
        );
    }
    let image = Image::of(&storage);
    image.assert_clean("the size that was named");
    for percent in [50, 70, 80, 90] {
        let size = named * percent / 100;
        if size > given {
            let smaller = build(&with(size), tree, &MemStorage::new());
            assert!(smaller.is_err(), "{named} is named and {size} would do");
        }
    }
}

fn options() -> impl Strategy<Value = Options> {
    let journal = prop_oneof![
        Just(Journal::Default),
        Just(Journal::None),
        (4 * MIB..20 * MIB).prop_map(Journal::Bytes),
    ];
    let inodes = prop_oneof![
        (1024_u64..100_000).prop_map(Inodes::BytesPerInode),
        (0_u32..100_000).prop_map(Inodes::Count),
    ];
    let compat = prop_oneof![Just(Compat::Latest), Just(Compat::Linux3_10)];
    let growth = prop_oneof![Just(None), (1_u64..1 << 40).prop_map(Some)];
    let block_size = prop_oneof![Just(1024), Just(2048), Just(4096)];
    (MIB..64 * MIB, block_size, journal, inodes, compat, growth).prop_map(
        |(size, block_size, journal, inodes, compat, growth)| Options {
            block_size,
            journal,
            inodes,
            compat,
            growth,
            ..given(size)
        },
    )
}

fn trees() -> impl Strategy<Value = Tree> {
    let sizes = prop_oneof![8 => 0_u64..20_000, 2 => 0..10 * MIB, 1 => 0..200 * MIB];
    let files = proptest::collection::vec(sizes, 0..30);
    (files, prop_oneof![0_u32..300, 0_u32..20_000]).prop_map(|(files, names)| Tree { files, names })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn the_size_that_is_named_does_and_not_much_less(mut options in options(), tree in trees()) {
        // Too few inodes are another error, which no size is named by.
        if let Inodes::Count(count) = &mut options.inodes {
            *count = (*count).max(tree.names + tree.files.len() as u32 + 16);
        }
        check(&options, &tree);
    }
}

#[test]
fn small_blocks_with_many_inodes_have_a_size_named() {
    let tree = Tree {
        files: vec![3 * MIB; 10],
        names: 40_000,
    };
    for block_size in [1024, 4096] {
        for inodes in [Inodes::BytesPerInode(1024), Inodes::Count(200_000)] {
            for size in [MIB, 8 * MIB, 32 * MIB] {
                let options = Options {
                    block_size,
                    inodes,
                    ..given(size)
                };
                assert!(named_size(&options, &tree).is_some());
                check(&options, &tree);
            }
        }
    }
}

#[test]
fn a_size_just_below_that_of_a_longer_journal_is_named() {
    let tree = Tree {
        files: vec![120_381_441],
        names: 34,
    };
    let inodes = Inodes::BytesPerInode(3437);
    for size in [3 * MIB, 10 * MIB, 60 * MIB, 127 * MIB] {
        let options = Options {
            inodes,
            ..given(size)
        };
        check(&options, &tree);
        let named = named_size(&options, &tree).expect("too small");
        assert!(named < 128 * MIB, "{named}");
    }
}

#[test]
fn sizes_that_a_longer_journal_makes_too_small_are_named() {
    let tree = Tree {
        files: vec![118_000_000],
        names: 0,
    };
    let error = build(&given(10 * MIB), &tree, &MemStorage::new()).unwrap_err();
    let hint = error.hint().expect("a hint");
    let numbers: Vec<u64> = hint
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    let [enough, from, to] = numbers[..] else {
        panic!("{hint}");
    };
    assert_eq!(from, 128 * MIB);
    for size in [enough, from - 4096, to, 140 * MIB, 1024 * MIB] {
        build(&given(size), &tree, &MemStorage::new()).unwrap();
    }
    for size in [enough - MIB, from, to - MIB] {
        build(&given(size), &tree, &MemStorage::new()).unwrap_err();
    }
    // One that is as long for every size.
    let journal = Journal::Bytes(4 * MIB);
    let options = Options {
        journal,
        ..given(10 * MIB)
    };
    let error = build(&options, &tree, &MemStorage::new()).unwrap_err();
    assert!(
        error.hint().is_some_and(|hint| hint.ends_with("or more")),
        "{error}"
    );
}
