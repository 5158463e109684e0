//! Trees that nobody thought of, read back by others.

use std::collections::BTreeMap;

use fat_builder::Options;
use proptest::prelude::*;

use crate::image::{Image, MIB, TIME, noise, of_size};

/// Something that is put in a directory that is there.
#[derive(Clone, Debug)]
struct Put {
    parent: prop::sample::Index,
    name: String,
    /// Bytes of a file; none for a directory.
    size: Option<usize>,
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Z0-9_~]{1,8}(\\.[A-Z]{1,3})?",
        "[a-zA-Z]{1,3}\\.[a-z]{1,4}",
        "(loader|LOADER|Loader) ?[a-c~1]{1,4}",
        "[a-z +,;=.äÖ日]{0,40}[a-zß]",
        "x{250,255}",
    ]
}

fn put() -> impl Strategy<Value = Put> {
    let size = prop_oneof![
        1 => Just(None),
        3 => (0usize..3000).prop_map(Some),
        1 => (0usize..300_000).prop_map(Some),
    ];
    (any::<prop::sample::Index>(), name(), size).prop_map(|(parent, name, size)| Put { parent, name, size })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn others_find_what_was_accepted_and_nothing_else(
        puts in prop::collection::vec(put(), 0..120),
        large in any::<bool>(),
    ) {
        let mut expected = BTreeMap::new();
        let options = Options {
            cluster_size: large.then_some(4096),
            ..of_size(if large { 300 * MIB } else { 48 * MIB })
        };
        let image = Image::built(&options, |builder| {
            let mut directories = vec![(builder.root(), String::new())];
            for (number, Put { parent, name, size }) in puts.iter().enumerate() {
                let (parent, path) = directories[parent.index(directories.len())].clone();
                let path = format!("{path}{name}");
                let known = |key: &String| key.to_uppercase() == path.to_uppercase();
                let is_known = expected.keys().any(known);
                if let Some(size) = *size {
                    let bytes = noise(number as u64, size);
                    let put = builder.file(parent, name.as_bytes(), TIME, size as u64, &mut &bytes[..]);
                    assert_eq!(put.is_ok(), !is_known, "{path}: {put:?}");
                    if put.is_ok() {
                        expected.insert(path, Some(bytes));
                    }
                } else if let Ok(node) = builder.directory(parent, name.as_bytes(), TIME) {
                    assert!(!is_known || expected[&path].is_none(), "{path}");
                    expected.insert(path.clone(), None);
                    directories.push((node, format!("{path}/")));
                } else {
                    assert!(is_known, "{path}");
                }
            }
        });
        image.assert_clean("generated");
        prop_assert!(image.contents() == expected);
        image.script("echo x >'a new file'; mcopy -o 'a new file' x:; mmd 'x:a new directory'");
        image.assert_clean("after others wrote to it");
    }
}
