//! How many of the states that a disk may be in are looked at: few in a run that somebody waits for, and as many as there is time
//! for at night.
//!
//! `TORTURE=50` has every loop over [`seeds`] run 50 times as long, `TORTURE_SEED=1000` has them begin with seed 1000, where
//! another night ended, and `TORTURE_LOG=FILE` has every [`CrashStates`](super::CrashStates) write how many states were asked for.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;

/// The seeds of a loop that tries `count` of them unless the environment asks for more, or for others.
///
/// # Panics
///
/// Where the environment says something that is no number.
pub fn seeds(count: u64) -> Range<u64> {
    let number = |name: &str, default| match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    range(count, number("TORTURE", 1), number("TORTURE_SEED", 0))
}

fn range(count: u64, times: u64, first: u64) -> Range<u64> {
    first..first.saturating_add(count.saturating_mul(times))
}

/// Adds a line to the log that the environment names, if it does. Lines of tests that run at once do not mix: each is one write.
pub(super) fn log(states: u64) {
    let Some(path) = env::var_os("TORTURE_LOG") else {
        return;
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{states}\n").as_bytes()));
    if let Err(error) = written {
        panic!("TORTURE_LOG={}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_as_many_as_asked_for() {
        assert_eq!(range(6, 1, 0), 0..6);
        assert_eq!(range(6, 50, 1000), 1000..1300);
        assert_eq!(range(6, u64::MAX, 1), 1..u64::MAX);
    }
}
