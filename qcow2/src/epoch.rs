//! Grace periods: when nobody can still be using a host cluster that was freed.
//!
//! Requests look a cluster up and then move data with no lock held. Meanwhile another thread may free that cluster,
//! and a third be given it for other data: the first would then read, or worse write, what is not its own. So a
//! freed cluster waits until every request that could have looked it up has ended.
//!
//! Time is a counter of epochs. A request counts itself in under the current epoch's parity for as long as it
//! runs ([`Epoch::pin`]), in one of several shards so that threads don't fight for a cache line. The epoch moves
//! from E to E + 1 only when nobody is counted in under the parity of E - 1, so when it has moved twice since a
//! cluster was freed, all who ran then have ended. Whoever wants to reuse tries to move the epoch on
//! ([`Epoch::advance`]), and tries again another time if it does not move: no request waits for another. Only a
//! change of the whole disk does ([`Epoch::wait`]).

use block::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use block::sync::thread;

const SHARDS: usize = 16;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    current: AtomicU64,
    shards: [Shard; SHARDS],
}

/// Requests that run, by parity of their epoch. A cache line (and its prefetched neighbour) of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([AtomicUsize; 2]);

/// A request that runs: while it is there, what it may have looked up is not reused.
#[derive(Debug)]
pub(crate) struct Pin<'a>(&'a AtomicUsize);

impl Epoch {
    /// Counts a request in.
    #[inline]
    pub(crate) fn pin(&self) -> Pin<'_> {
        let shard = &self.shards[shard_of_this_thread()];
        loop {
            let epoch = self.current.load(Ordering::SeqCst);
            let counter = &shard.0[(epoch & 1) as usize];
            counter.fetch_add(1, Ordering::SeqCst);
            // Counted in under an epoch that has passed meanwhile, we would not hold up the right one.
            if self.current.load(Ordering::SeqCst) == epoch {
                return Pin(counter);
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The current epoch.
    pub(crate) fn now(&self) -> u64 {
        self.current.load(Ordering::SeqCst)
    }

    /// Moves the epoch on as far as two steps, if no request stands in the way. Calls must not overlap: the caller
    /// holds the lock of whatever it wants to reuse.
    pub(crate) fn advance(&self) {
        for _ in 0..2 {
            let epoch = self.now();
            let previous = ((epoch + 1) & 1) as usize;
            if self
                .shards
                .iter()
                .any(|shard| shard.0[previous].load(Ordering::SeqCst) != 0)
            {
                return;
            }
            self.current.store(epoch + 1, Ordering::SeqCst);
        }
    }

    /// Waits until everybody who runs now has ended. `advance` moves the epoch on as it may be moved.
    pub(crate) fn wait(&self, advance: impl Fn(&Self)) {
        let then = self.now();
        loop {
            advance(self);
            if self.passed(then) {
                return;
            }
            thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    /// Whether everybody who ran in epoch `then` has ended.
    pub(crate) fn passed(&self, then: u64) -> bool {
        self.now() >= then + 2
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(not(shuttle))]
#[inline]
fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

/// The same in each run of one schedule.
#[cfg(shuttle)]
fn shard_of_this_thread() -> usize {
    usize::from(thread::current().id()) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_on_freely_when_nobody_runs() {
        let epoch = Epoch::default();
        let freed = epoch.now();
        epoch.advance();
        assert!(epoch.passed(freed));
    }

    #[test]
    fn waits_for_who_ran_and_not_for_who_came_later() {
        let epoch = Epoch::default();
        let early = epoch.pin();
        let freed = epoch.now();
        epoch.advance();
        assert!(!epoch.passed(freed));
        let late = epoch.pin();
        drop(early);
        epoch.advance();
        assert!(epoch.passed(freed));
        drop(late);
    }

    #[test]
    fn a_pin_of_each_of_the_last_two_epochs_holds_it_up() {
        let epoch = Epoch::default();
        for _ in 0..5 {
            let pin = epoch.pin();
            let freed = epoch.now();
            for _ in 0..3 {
                epoch.advance();
                assert!(!epoch.passed(freed));
            }
            drop(pin);
        }
    }
}
