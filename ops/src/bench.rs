//! Timing requests to a disk.
//!
//! # How it works
//!
//! As many threads as there are to be requests at once each take the number of the next request, send it and wait for it. Where
//! flushes are asked for, the requests between two of them are a *round*: whoever completes the last one of a round flushes, and where
//! the flush is to be waited for, threads that have a request of a later round wait until it is done.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use block::{BlockDevice, Error, ErrorKind, Result};

use crate::buffer::Buffer;

/// Requests that are under way at once, at most: each has a thread.
pub const MAX_PARALLEL: u32 = 1024;

/// What threads need of stack: a request goes through a handful of layers.
const STACK: usize = 256 << 10;

/// What is to be timed.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Requests in all.
    pub count: u64,
    /// Requests that are under way at once; no more than [`MAX_PARALLEL`] are.
    pub parallel: NonZeroU32,
    /// Bytes of each.
    pub len: usize,
    /// Where the first one starts.
    pub offset: u64,
    /// How much further each starts than the one before. Past the end it goes on at the start of the disk.
    pub step: u64,
    /// Write this byte instead of reading.
    pub write: Option<u8>,
    /// Flush after each request, so that it is durable.
    pub durable: bool,
    /// Flush after so many requests.
    pub flush_interval: Option<NonZeroU64>,
    /// Send no requests while it is flushed.
    pub drain: bool,
}

impl BenchOptions {
    /// Reading one piece of `len` bytes after the other from the start on, one at a time.
    pub fn new(count: u64, len: usize) -> Self {
        Self {
            count,
            parallel: NonZeroU32::MIN,
            len,
            offset: 0,
            step: len as u64,
            write: None,
            durable: false,
            flush_interval: None,
            drain: true,
        }
    }

    /// Where a request starts.
    fn offset_of(&self, number: u64, size: u64) -> u64 {
        if number == 0 {
            return self.offset;
        }
        let offset = u128::from(self.offset) + u128::from(number) * u128::from(self.step);
        (offset % u128::from(size.max(1))) as u64
    }
}

/// Sends requests to a disk and gives the time from the first to the end of the last.
///
/// # Errors
/// As [`BlockDevice::read_at`], [`BlockDevice::write_at`] and [`BlockDevice::flush`], of the first request that failed: no more are
/// sent then. `Io` where there is no memory for the buffers, or the host has no more threads.
pub fn bench(device: &dyn BlockDevice, options: &BenchOptions) -> Result<Duration> {
    let (count, len) = (options.count, options.len as u64);
    let size = device.size();
    let first_end = options.offset.checked_add(len);
    if count > 0 && first_end.is_none_or(|end| end > size) {
        // Buffers are not made for what fails in any case.
        let message = format!(
            "{len} bytes at {} are past the end of the disk, {size}",
            options.offset
        );
        return Err(Error::new(ErrorKind::OutOfBounds, message));
    }
    let threads = u64::from(options.parallel.get().min(MAX_PARALLEL)).min(count);
    let number = if options.write.is_some() { 1 } else { threads };
    let mut buffers = (0..number)
        .map(|_| Buffer::try_new(options.len))
        .collect::<Result<Vec<_>>>()?;
    let works: Vec<Work<'_>> = match options.write {
        Some(byte) => {
            buffers[0].fill(byte);
            (0..threads).map(|_| Work::Write(&buffers[0])).collect()
        }
        None => buffers.iter_mut().map(|buffer| Work::Read(buffer)).collect(),
    };
    let run = Run {
        device,
        options,
        size,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        flushed: AtomicU64::new(0),
        over: AtomicBool::new(false),
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    let start = Instant::now();
    thread::scope(|scope| {
        for work in works {
            let run = &run;
            let builder = thread::Builder::new().stack_size(STACK);
            let spawned = builder.spawn_scoped(scope, move || run.work(work));
            if let Err(error) = spawned {
                run.fail(Error::io("start a thread", error));
            }
        }
    });
    let time = start.elapsed();
    let failed = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(time), Err)
}

/// What a thread does again and again.
enum Work<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

struct Run<'a> {
    device: &'a dyn BlockDevice,
    options: &'a BenchOptions,
    size: u64,
    /// The next request.
    next: AtomicU64,
    /// Requests that are done.
    done: AtomicU64,
    /// Rounds that are flushed.
    flushed: AtomicU64,
    /// One has failed.
    over: AtomicBool,
    /// Why.
    state: Mutex<Option<Error>>,
    /// A round was flushed, or all is over.
    changed: Condvar,
}

impl Run<'_> {
    fn work(&self, mut work: Work<'_>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.options.count || !self.may_go(number) {
                return;
            }
            let offset = self.options.offset_of(number, self.size);
            let sent = match &mut work {
                Work::Read(buffer) => self.device.read_at(buffer, offset),
                Work::Write(bytes) => self.device.write_at(bytes, offset),
            };
            let durable = sent.and_then(|()| {
                if self.options.durable {
                    self.device.flush()
                } else {
                    Ok(())
                }
            });
            if let Err(error) = durable.and_then(|()| self.complete()) {
                return self.fail(error);
            }
        }
    }

    /// Waits until a request may be sent. Whether that is so.
    fn may_go(&self, number: u64) -> bool {
        let round = match self.options.flush_interval {
            Some(interval) if self.options.drain => number / interval,
            _ => 0,
        };
        if self.flushed.load(Ordering::Acquire) < round {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.is_none() && self.flushed.load(Ordering::Acquire) < round {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        !self.over.load(Ordering::Relaxed)
    }

    /// Counts a request as done, and flushes where it was the last of its round.
    fn complete(&self) -> Result<()> {
        let done = self.done.fetch_add(1, Ordering::AcqRel) + 1;
        if self
            .options
            .flush_interval
            .is_some_and(|interval| done.is_multiple_of(interval.get()))
        {
            self.device.flush()?;
            let _state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.flushed.fetch_add(1, Ordering::Release);
            self.changed.notify_all();
        }
        Ok(())
    }

    fn fail(&self, error: Error) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.get_or_insert(error);
        self.over.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Barrier};

    use block::test_utils::{Change, Recorder};
    use block::{Access, HostExtent, MemStorage, Storage, ZeroMode};

    use super::*;

    const SIZE: u64 = 64 << 10;

    /// A storage whose reads wait for each other, in groups.
    #[derive(Debug)]
    struct Gathering(Barrier);

    impl Storage for Gathering {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            self.0.wait();
            Ok(())
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> Result<()> {
            Ok(())
        }
        fn zero(&self, _: u64, _: u64, _: ZeroMode) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<()> {
            Ok(())
        }
        fn host_extent(&self, _: u64, len: u64) -> Result<HostExtent> {
            Ok(HostExtent { len, data: true })
        }
        fn sync_data(&self) -> Result<()> {
            Ok(())
        }
        fn len(&self) -> Result<u64> {
            Ok(SIZE)
        }
        fn set_len(&self, _: u64) -> Result<()> {
            Ok(())
        }
    }

    fn writing(count: u64, parallel: u32) -> BenchOptions {
        BenchOptions {
            parallel: NonZeroU32::new(parallel).unwrap(),
            write: Some(7),
            ..BenchOptions::new(count, 4096)
        }
    }

    fn recorded(options: &BenchOptions) -> (Result<Duration>, Vec<Change>) {
        let recorder = Recorder::new();
        let storage = recorder.storage(MemStorage::new());
        storage.set_len(SIZE).unwrap();
        let before = recorder.position();
        let disk = raw::Image::open(storage, Access::WRITE).unwrap();
        let timed = bench(&disk, options);
        let changes = recorder
            .entries()
            .drain(before..)
            .map(|entry| entry.change)
            .collect();
        (timed, changes)
    }

    fn offsets(changes: &[Change]) -> BTreeSet<u64> {
        let offset = |change: &Change| match change {
            Change::Write { offset, .. } => Some(*offset),
            _ => None,
        };
        changes.iter().filter_map(offset).collect()
    }

    #[test]
    fn as_many_requests_are_under_way_at_once_as_asked() {
        let disk = raw::Image::open(Arc::new(Gathering(Barrier::new(5))), Access::READ).unwrap();
        let options = BenchOptions {
            parallel: NonZeroU32::new(5).unwrap(),
            ..BenchOptions::new(15, 4096)
        };
        bench(&disk, &options).unwrap();
    }

    #[test]
    fn requests_start_over_at_the_end_of_the_disk() {
        let options = BenchOptions {
            offset: SIZE - 4096,
            step: 8192,
            ..writing(3, 1)
        };
        let (timed, changes) = recorded(&options);
        timed.unwrap();
        assert_eq!(offsets(&changes), BTreeSet::from([SIZE - 4096, 4096, 3 * 4096]));
    }

    #[test]
    fn a_flush_that_is_waited_for_parts_the_requests_before_it_from_those_after_it() {
        for parallel in [1, 3, 4] {
            let options = BenchOptions {
                flush_interval: NonZeroU64::new(4),
                ..writing(10, parallel)
            };
            let (timed, changes) = recorded(&options);
            timed.unwrap();
            let rounds: Vec<&[Change]> = changes.split(|change| *change == Change::Sync).collect();
            assert_eq!(rounds.len(), 3, "{changes:?}");
            assert_eq!(offsets(rounds[0]), BTreeSet::from([0, 4096, 8192, 12288]));
            assert_eq!(offsets(rounds[2]), BTreeSet::from([32768, 36864]));
        }
    }

    #[test]
    fn a_flush_that_is_not_waited_for_is_sent_all_the_same() {
        let options = BenchOptions {
            flush_interval: NonZeroU64::new(2),
            drain: false,
            ..writing(10, 4)
        };
        let (timed, changes) = recorded(&options);
        timed.unwrap();
        assert_eq!(
            changes.iter().filter(|change| **change == Change::Sync).count(),
            5
        );
        assert_eq!(offsets(&changes).len(), 10);
    }

    #[test]
    fn each_request_is_durable_where_that_is_asked_for() {
        let options = BenchOptions {
            durable: true,
            ..writing(3, 1)
        };
        let (timed, changes) = recorded(&options);
        timed.unwrap();
        let syncs: Vec<bool> = changes.iter().map(|change| *change == Change::Sync).collect();
        assert_eq!(syncs, [false, true, false, true, false, true]);
    }

    #[test]
    fn what_fails_ends_it_even_where_others_wait_for_a_flush() {
        let options = BenchOptions {
            // The last request of the first round is past the end.
            offset: SIZE - 3 * 4096 - 512,
            flush_interval: NonZeroU64::new(4),
            ..writing(40, 4)
        };
        let (timed, _) = recorded(&options);
        assert_eq!(timed.unwrap_err().kind(), ErrorKind::OutOfBounds);
        let far = BenchOptions {
            len: usize::MAX / 2,
            ..writing(1, 1)
        };
        assert_eq!(recorded(&far).0.unwrap_err().kind(), ErrorKind::OutOfBounds);
    }
}
