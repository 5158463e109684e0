//! docs/qcow2.md against the specification and the tree: each section of the one is in its table, and each test that it names is
//! there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The headings of the specification (`docs/interop/qcow2.txt` of QEMU), and the features of the header that it
/// describes bit by bit.
const SECTIONS: [&str; 22] = [
    "General",
    "Header",
    "Incompatible features",
    "Compatible features",
    "Autoclear features",
    "Additional fields",
    "Header padding",
    "Header extensions",
    "String header extensions",
    "Feature name table",
    "Bitmaps extension",
    "Full disk encryption header pointer",
    "Data encryption",
    "Host cluster management",
    "Cluster mapping",
    "Extended L2 entries",
    "Snapshots",
    "Bitmaps",
    "Bitmap directory",
    "Bitmap table",
    "Bitmap data",
    "Dirty tracking bitmaps",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the first table, cell by cell.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| !line.starts_with('|'));
    let table = lines.take_while(|line| line.starts_with('|')).skip(2);
    let cells = |line: &str| {
        let line = line.trim_matches('|');
        line.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    table.map(cells).collect()
}

#[test]
fn every_section_of_the_specification_is_in_the_table_with_tests_that_are_there() {
    let text = fs::read_to_string(root().join("docs/qcow2.md")).expect("the document");
    let rows = rows(&text);
    let sections: Vec<&str> = rows
        .iter()
        .map(|row| &*row[0])
        .filter(|cell| !cell.is_empty())
        .collect();
    assert_eq!(
        sections.iter().collect::<BTreeSet<_>>(),
        SECTIONS.iter().collect(),
        "the sections"
    );
    let places = ["qcow2/src", "qcow2", "tests/tests", "."].map(|place| root().join(place));
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let tests: Vec<&str> = row[3].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() && !row[2].is_empty(), "nothing shows {row:?}");
        for name in tests {
            let name = name.trim_start_matches("../");
            let file = places
                .iter()
                .map(|place| place.join(name))
                .find(|file| file.is_file());
            let file = file.unwrap_or_else(|| panic!("{row:?}: there is no {name}"));
            let code = fs::read_to_string(file).expect("a test");
            assert!(
                ["#[test]", "proptest!", "$test"]
                    .iter()
                    .any(|mark| code.contains(mark)),
                "{row:?}: {name} has no tests"
            );
        }
    }
}
