//! Holding a job to a rate.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use block::Result;

use crate::Control;

/// The longest wait between two looks at whether the job is to stop.
const NAP: Duration = Duration::from_millis(50);

/// Lets so many bytes a second pass, and any number where there is no rate.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Option<NonZeroU64>,
    /// When the next bytes may pass.
    next: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        Self {
            rate,
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may pass. Time that nobody has used is not made up for.
    pub(crate) fn pass(&self, bytes: u64, control: &Control<'_>) -> Result<()> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(wait) = next.checked_duration_since(Instant::now()) {
            control.check()?;
            thread::sleep(wait.min(NAP));
        }
        *next = Instant::now() + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cancel;

    #[test]
    fn takes_as_long_as_the_rate_says() {
        let throttle = Throttle::new(NonZeroU64::new(1 << 20));
        let start = Instant::now();
        for _ in 0..5 {
            throttle.pass(50 << 10, &Control::unwatched()).unwrap();
        }
        // The last one passes when four have had their time.
        let least = Duration::from_secs_f64(4.0 * 50.0 / 1024.0);
        assert!(start.elapsed() >= least && start.elapsed() < 3 * least);
    }

    #[test]
    fn a_wait_can_be_cut_short() {
        let throttle = Throttle::new(NonZeroU64::new(1));
        let cancel = Cancel::new();
        let control = Control::new(cancel.clone(), &|_| {});
        throttle.pass(1 << 30, &control).unwrap();
        cancel.cancel();
        assert!(throttle.pass(1, &control).is_err());
    }
}
