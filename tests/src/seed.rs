//! Random cases that can be replayed, and a limit to how long one may take.

use std::panic::resume_unwind;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use block::test_utils::Rng;

/// The variable that names the seed to run alone, or a range of others (`1000..2000`).
const VARIABLE: &str = "TEST_SEED";

/// Runs `case` with each of `count` seeds, or with the one (`17`) or those (`1000..2000`) that the variable
/// `TEST_SEED` names. A case that panics is named, so that it can be run again.
pub fn seeded(count: u64, case: impl Fn(&mut Rng)) {
    let seeds = match std::env::var(VARIABLE) {
        Ok(text) => {
            let number = |text: &str| {
                text.parse::<u64>()
                    .expect("TEST_SEED is a number, or two with .. between")
            };
            match text.split_once("..") {
                Some((first, end)) => number(first)..number(end),
                None => number(&text)..number(&text) + 1,
            }
        }
        Err(_) => 0..count,
    };
    for seed in seeds {
        let _named = NameOnPanic(seed);
        case(&mut Rng::new(seed));
    }
}

struct NameOnPanic(u64);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the case above is run alone with {VARIABLE}={}", self.0);
        }
    }
}

/// Runs `work`, which must come to an end within `limit`: for what could hang.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let worker = thread::spawn(move || {
        let result = work();
        let _ = done.send(());
        result
    });
    let ended = wait.recv_timeout(limit);
    assert!(
        ended != Err(RecvTimeoutError::Timeout),
        "nothing came of it within {limit:?}"
    );
    worker.join().unwrap_or_else(|panic| resume_unwind(panic))
}
