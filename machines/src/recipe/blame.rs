//! What of a recipe a program complains of: apt and debootstrap name packages and releases that they do not find, and the line of
//! the recipe that has one is of more use than the start of the table.

use super::origins::Step::{self, Key, Text};
use super::source::Source;

/// What a line says is not there.
#[derive(Debug, PartialEq, Eq)]
enum Missing<'l> {
    Package(&'l str),
    Suite(&'l str),
}

/// The way to the value of a source that lines of complaints are about: the first that is found.
pub(super) fn blamed<'s>(source: &'s Source, complaints: &[String]) -> Option<Vec<Step<'s>>> {
    let rest = complaints
        .iter()
        .flat_map(|line| missing(line))
        .find_map(|missing| place(source, &missing))?;
    Some(
        [Key("source"), Key(source.key())]
            .into_iter()
            .chain(rest)
            .collect(),
    )
}

/// What a line says is not there, in the words of apt(8) and debootstrap(8).
fn missing(line: &str) -> Vec<Missing<'_>> {
    let Some(error) = line.trim().strip_prefix("E: ") else {
        return Vec::new();
    };
    let between = |start: &str, end: &str| {
        let rest = error.strip_prefix(start)?;
        rest.strip_suffix(end)
    };
    if let Some(names) = between("Couldn't find these debs: ", "") {
        return names.split_whitespace().map(Missing::Package).collect();
    }
    let packages = [
        between("Unable to locate package ", ""),
        between("Package '", "' has no installation candidate"),
        between("Version '", "' was not found").and_then(|rest| rest.split("' for '").nth(1)),
        between("Release '", "' was not found").and_then(|rest| rest.split("' for '").nth(1)),
    ];
    let suites = [
        between("No such script: ", "").and_then(|path| path.rsplit('/').next()),
        between("The repository '", " Release' does not have a Release file.")
            .and_then(|site| site.rsplit(' ').next()),
    ];
    let packages = packages.into_iter().flatten().map(Missing::Package);
    packages
        .chain(suites.into_iter().flatten().map(Missing::Suite))
        .collect()
}

/// The steps from the table of a source to what is missing, if the table has it: packages that others depend on are in none.
fn place<'s>(source: &'s Source, missing: &Missing<'_>) -> Option<Vec<Step<'s>>> {
    let (suite, packages, kernel) = match source {
        Source::Mmdebstrap(debian) => (&debian.suite, &debian.packages, &None),
        Source::Debootstrap(debian) => (&debian.suite, &debian.packages, &None),
        Source::Debs(debs) => (&None, &debs.packages, &debs.kernel),
        _ => return None,
    };
    match missing {
        Missing::Suite(name) => (suite.as_deref() == Some(*name)).then(|| vec![Key("suite")]),
        Missing::Package(name) => {
            let in_list = packages.iter().find(|text| names(text, name));
            let in_list = in_list.map(|text| vec![Key("packages"), Text(text)]);
            let is_kernel = kernel.as_deref().is_some_and(|text| names(text, name));
            in_list.or_else(|| is_kernel.then(|| vec![Key("kernel")]))
        }
    }
}

/// Whether a text of a recipe, in which mmdebstrap takes commas and spaces for more of a list, is of a package, of whichever version,
/// release and architecture.
fn names(text: &str, package: &str) -> bool {
    let bare = |name: &str| name.split([':', '=', '/']).next().unwrap_or_default().to_owned();
    let mut words = text.split(|c: char| c == ',' || c.is_whitespace());
    words.any(|word| !word.is_empty() && bare(word) == bare(package))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Debs, Mmdebstrap};

    #[test]
    fn what_programs_say_is_missing_is_taken_from_their_words() {
        for (line, found) in [
            (
                "E: Unable to locate package nginx-x",
                vec![Missing::Package("nginx-x")],
            ),
            (
                "E: Package 'a' has no installation candidate",
                vec![Missing::Package("a")],
            ),
            (
                "E: Version '9' for 'a' was not found",
                vec![Missing::Package("a")],
            ),
            (
                "E: Release 'x' for 'b' was not found",
                vec![Missing::Package("b")],
            ),
            (
                "E: Couldn't find these debs: a b",
                vec![Missing::Package("a"), Missing::Package("b")],
            ),
            (
                "E: The repository 'http://mirror/debian bookwurm Release' does not have a Release file.",
                vec![Missing::Suite("bookwurm")],
            ),
            (
                "E: No such script: /usr/share/debootstrap/scripts/bookwurm",
                vec![Missing::Suite("bookwurm")],
            ),
            ("W: Unable to locate package a", vec![]),
            ("E: setup failed", vec![]),
        ] {
            assert_eq!(missing(line), found, "{line}");
        }
    }

    #[test]
    fn only_what_the_recipe_says_is_blamed() {
        let lines = |text: &str| vec!["I: x".to_owned(), format!("E: Unable to locate package {text}")];
        let debian = Mmdebstrap {
            packages: vec!["a".into(), "b=2, c:arm64".into()],
            ..Mmdebstrap::default()
        };
        let source = Source::Mmdebstrap(Box::new(debian));
        for (name, text) in [("a", Some("a")), ("c", Some("b=2, c:arm64")), ("d", None)] {
            let complaints = lines(name);
            let way = blamed(&source, &complaints);
            let found = way.map(|way| match way.as_slice() {
                [Key("source"), Key("mmdebstrap"), Key("packages"), Text(text)] => (*text).to_owned(),
                other => panic!("{other:?}"),
            });
            assert_eq!(found.as_deref(), text, "{name}");
        }
        let source = Source::Debs(Debs {
            kernel: Some("linux".into()),
            ..Debs::default()
        });
        let way = blamed(&source, &lines("linux")).unwrap();
        assert!(matches!(way[..], [_, Key("debs"), Key("kernel")]), "{way:?}");
    }
}
