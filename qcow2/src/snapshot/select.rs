//! Which snapshot is meant, and what a new one may be called.

use block::{Error, Result, SnapshotSelector, escape};

use super::Snapshot;

/// Longest name in bytes: what QEMU keeps of one.
const MAX_NAME: usize = 255;

/// Finds the snapshot that is meant.
///
/// # Errors
/// `InvalidInput` where there is none, or where more than one fits: of two that might be deleted or gone back to,
/// none is chosen by a rule that has to be looked up.
pub(crate) fn find(snapshots: &[Snapshot], which: &SnapshotSelector) -> Result<usize> {
    let fits = |snapshot: &&Snapshot| which.matches(&snapshot.id, &snapshot.name);
    let mut found = snapshots.iter().filter(fits);
    match (found.next(), found.next()) {
        (None, _) => Err(not_found(snapshots, which)),
        (Some(only), None) => Ok(snapshots.iter().position(|s| std::ptr::eq(s, only)).unwrap_or(0)),
        (Some(first), Some(second)) => Err(Error::invalid(format!(
            "{which} is not one snapshot: it fits that with ID \"{}\", named \"{}\", and that with ID \"{}\", named \"{}\"",
            escape(&first.id),
            escape(&first.name),
            escape(&second.id),
            escape(&second.name),
        ))
        .with_hint("say which: snapshot.id=ID, snapshot.name=NAME, or both with a comma between")),
    }
}

fn not_found(snapshots: &[Snapshot], which: &SnapshotSelector) -> Error {
    let error = Error::invalid(format!("there is no snapshot {which}"));
    if snapshots.is_empty() {
        error.with_hint("the image has no snapshots at all")
    } else {
        error.with_hint("`imgtool snapshot list` shows those that there are")
    }
}

/// Whether a snapshot may be called `name`, beside these.
///
/// # Errors
/// `InvalidInput`, saying why not.
pub(crate) fn check_name(snapshots: &[Snapshot], name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "the name of a snapshot cannot be empty".to_owned()
    } else if name.len() > MAX_NAME {
        format!(
            "the name of a snapshot has {MAX_NAME} bytes at most, and this one {}",
            name.len()
        )
    } else if name.contains('\0') {
        "the name of a snapshot cannot have a NUL in it".to_owned()
    } else if let Some(taken) = snapshots.iter().find(|snapshot| snapshot.name == name) {
        let (id, name) = (escape(&taken.id), escape(name));
        return Err(Error::invalid(format!(
            "there is a snapshot named \"{name}\" already, with ID \"{id}\""
        ))
        .with_hint("choose another name, or delete that one first"));
    } else {
        return Ok(());
    };
    Err(Error::invalid(problem))
}

/// The ID of a new snapshot: one more than the highest that is a number, as QEMU chooses it.
pub(crate) fn new_id(snapshots: &[Snapshot]) -> String {
    let number = |snapshot: &Snapshot| {
        let digits = snapshot.id.bytes().take_while(u8::is_ascii_digit).count();
        snapshot.id[..digits].parse::<u64>().unwrap_or(0)
    };
    let highest = snapshots.iter().map(number).max().unwrap_or(0);
    let taken = |id: &u64| snapshots.iter().any(|snapshot| snapshot.id == id.to_string());
    // Where the highest is the highest that there is, the lowest that is free.
    let mut candidates = (highest.saturating_add(1)..=u64::MAX).chain(1..=u64::MAX);
    candidates
        .find(|id| !taken(id))
        .map_or_else(String::new, |id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::HostOffset;

    fn named(names: &[(&str, &str)]) -> Vec<Snapshot> {
        let snapshot = |(id, name): &(&str, &str)| Snapshot {
            l1_offset: HostOffset(0),
            l1_entries: 0,
            id: (*id).to_owned(),
            name: (*name).to_owned(),
            date_seconds: 0,
            date_nanoseconds: 0,
            vm_clock_nanoseconds: 0,
            vm_state_size: 0,
            size: 0,
            icount: None,
            extra_data: Vec::new(),
        };
        names.iter().map(snapshot).collect()
    }

    fn index(names: &[(&str, &str)], which: &str) -> Result<usize> {
        find(&named(names), &SnapshotSelector::parse(which).unwrap())
    }

    #[test]
    fn an_id_or_a_name_that_fits_one_finds_it() {
        let names = [
            ("1", "a"),
            ("2", "b"),
            ("x", "2"),
            ("4", "4"),
            ("5", "c"),
            ("6", "c"),
        ];
        assert_eq!(index(&names, "a").unwrap(), 0);
        assert_eq!(index(&names, "1").unwrap(), 0);
        assert_eq!(index(&names, "4").unwrap(), 3);
        assert_eq!(index(&names, "snapshot.name=2").unwrap(), 2);
        assert_eq!(index(&names, "snapshot.id=2").unwrap(), 1);
        assert_eq!(index(&names, "snapshot.id=6,snapshot.name=c").unwrap(), 5);
        for (which, words) in [
            ("2", "ID \"2\", named \"b\""),
            ("c", "not one"),
            ("d", "no snapshot"),
            ("snapshot.id=a", "no snapshot ID \"a\""),
            (
                "snapshot.id=1,snapshot.name=b",
                "no snapshot ID \"1\" and name \"b\"",
            ),
        ] {
            let message = index(&names, which).unwrap_err().to_string();
            assert!(message.contains(words), "{which}: {message}");
        }
    }

    #[test]
    fn ids_go_up() {
        assert_eq!(new_id(&[]), "1");
        assert_eq!(new_id(&named(&[("2", "a"), ("x", "b"), ("10y", "c")])), "11");
        let max = u64::MAX.to_string();
        assert_eq!(new_id(&named(&[(&max, "a"), ("1", "b")])), "2");
    }

    #[test]
    fn bad_names_are_refused() {
        let taken = named(&[("1", "a")]);
        assert!(check_name(&taken, &"x".repeat(255)).is_ok());
        for (name, words) in [
            ("", "empty"),
            (&*"x".repeat(256), "255 bytes"),
            ("a\0b", "NUL"),
            ("a", "already"),
        ] {
            let message = check_name(&taken, name).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
