//! Holding a job to a rate.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use block::Result;

use crate::Control;

/// The longest wait between two looks at whether the job is to stop.
const NAP: Duration = Duration::from_millis(50);

/// How much lost time is made up for: waits last longer than they should, and devices have their moments, but after a
/// long stop nobody wants all of it at once.
const CREDIT: Duration = Duration::from_secs(1);

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

    /// Waits until `bytes` may pass.
    pub(crate) fn pass(&self, bytes: u64, control: &Control<'_>) -> Result<()> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(wait) = next
            .checked_duration_since(Instant::now())
            .filter(|wait| !wait.is_zero())
        {
            control.check()?;
            thread::sleep(wait.min(NAP));
        }
        *next = after(*next, Instant::now(), time_for(bytes, rate));
        Ok(())
    }
}

/// How long `bytes` take.
fn time_for(bytes: u64, rate: NonZeroU64) -> Duration {
    let whole = Duration::from_secs(bytes / rate);
    let rest = u128::from(bytes % rate) * 1_000_000_000 / u128::from(rate.get());
    whole.saturating_add(Duration::from_nanos(rest as u64))
}

/// When the next bytes may pass if some that take `time`, due at `due`, pass `now`.
fn after(due: Instant, now: Instant, time: Duration) -> Instant {
    // Since it is due then, it counts from then.
    let from = now.checked_sub(CREDIT).map_or(due, |earliest| due.max(earliest));
    // As good as never.
    let never = Duration::from_secs(u64::from(u32::MAX));
    from + time.min(never)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cancel;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(rate: u64) -> NonZeroU64 {
        NonZeroU64::new(rate).unwrap()
    }

    #[test]
    fn bytes_take_as_long_as_the_rate_says() {
        assert_eq!(time_for(50 << 10, rate(100 << 10)), SECOND / 2);
        assert_eq!(time_for(0, rate(1)), Duration::ZERO);
        assert_eq!(time_for(3, rate(2)), SECOND * 3 / 2);
        assert_eq!(time_for(1, rate(u64::MAX)), Duration::ZERO);
        assert_eq!(time_for(u64::MAX, rate(1)), Duration::from_secs(u64::MAX));
    }

    #[test]
    fn lost_time_is_made_up_for_within_a_second() {
        let start = Instant::now() + 10 * SECOND;
        // In time: it adds up without a loss.
        assert_eq!(after(start, start, SECOND / 4), start + SECOND / 4);
        // Late by little: as if it had been in time.
        assert_eq!(after(start, start + SECOND / 2, SECOND / 4), start + SECOND / 4);
        // Late by a lot: a second of it counts.
        let late = start + 5 * SECOND;
        assert_eq!(after(start, late, SECOND / 4) + SECOND * 3 / 4, late);
        // Nothing overflows.
        assert!(after(start, start, time_for(u64::MAX, rate(1))) > start + SECOND);
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
