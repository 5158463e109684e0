//! Exclusive use of ranges of guest clusters: two writers that would both allocate the same cluster meet here, and
//! so do an allocating writer and a discard. Reads and writes in place never come here.

use std::ops::Range;
use std::sync::PoisonError;

use block::sync::{Condvar, Mutex, MutexGuard};

/// The ranges that are in use. There are as many as threads inside allocating writes, so a list will do.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    held: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// Exclusive use of a range until dropped.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
}

impl RangeLocks {
    /// Waits until nobody uses any of `range`, and takes it. A thread must not hold one range and ask for another.
    pub(crate) fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        let mut held = self.held();
        while held
            .iter()
            .any(|other| other.start < range.end && range.start < other.end)
        {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.push(range.clone());
        RangeGuard { locks: self, range }
    }

    /// Takes `range`, if nobody uses any of it.
    pub(crate) fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard<'_>> {
        let mut held = self.held();
        if held
            .iter()
            .any(|other| other.start < range.end && range.start < other.end)
        {
            return None;
        }
        held.push(range.clone());
        Some(RangeGuard { locks: self, range })
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(index) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(index);
        }
        drop(held);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_overlapping_ranges_wait() {
        let locks = RangeLocks::default();
        let free = AtomicBool::new(false);
        let first = locks.lock(10..20);
        let _beside = locks.lock(20..30);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = locks.lock(15..16);
                assert!(free.load(Ordering::SeqCst));
            });
            std::thread::sleep(Duration::from_millis(20));
            free.store(true, Ordering::SeqCst);
            drop(first);
        });
    }
}
