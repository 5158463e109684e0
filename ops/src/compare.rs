//! Finding where two disks differ.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use block::{BlockDevice, Error, Extent, ExtentState};

use crate::buffer::Buffer;
use crate::extents::extent_at;
use crate::{Control, is_zero};

/// Bytes that a worker reads of each disk at once.
const CHUNK: u64 = 1 << 20;

/// The longest run that is passed over at once: progress and cancellation come between two.
const LONGEST: u64 = 1 << 30;

/// Differences are reported as the sector they lie in.
const SECTOR: u64 = 512;

/// How to [`compare`](compare()).
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The sizes must be equal too, and what is data, zeros or nowhere stated must be so in both.
    pub strict: bool,
    /// Threads that read.
    pub threads: NonZeroUsize,
}

impl CompareOptions {
    /// Contents only, one thread per processor.
    pub fn new() -> Self {
        Self {
            strict: false,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What a comparison finds first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes, up to zeros at the end of the longer one.
    Identical,
    /// Another size (strict only).
    Size,
    /// Another byte in the sector at this offset, which may lie past the end of the shorter one.
    Content(u64),
    /// The runs at this offset are not in the same state (strict only).
    State(u64),
}

/// What a comparison failed at.
#[derive(Debug)]
pub enum CompareError {
    /// Finding out what is where, or being stopped.
    Extents(Error),
    /// Reading.
    Read(Error),
}

impl CompareError {
    /// The device's error.
    pub fn into_inner(self) -> Error {
        match self {
            Self::Extents(error) | Self::Read(error) => error,
        }
    }
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extents(error) | Self::Read(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CompareError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Extents(error) | Self::Read(error) => std::error::Error::source(error),
        }
    }
}

/// Compares what two disks read as. Ranges that read as zeros in both are not read; where one does, only the other
/// is.
///
/// # Errors
/// As [`BlockDevice::extent_at`] and [`BlockDevice::read_at`]; `Interrupted` on request. A difference found before
/// an error is what counts.
pub fn compare(
    left: &dyn BlockDevice,
    right: &dyn BlockDevice,
    options: &CompareOptions,
    control: &Control<'_>,
) -> Result<Comparison, CompareError> {
    if options.strict && left.size() != right.size() {
        return Ok(Comparison::Size);
    }
    let walk = Walk {
        sides: [Side::new(left), Side::new(right)],
        size: left.size().max(right.size()),
        offset: 0,
        strict: options.strict,
        end: None,
    };
    let total = walk.size;
    let walk = Mutex::new(walk);
    thread::scope(|scope| {
        for _ in 1..options.threads.get() {
            // Where no more threads can be started, those that there are do all of it.
            let other = thread::Builder::new().spawn_scoped(scope, || work(&walk, control));
            if other.is_err() {
                break;
            }
        }
        work(&walk, control);
    });
    control.report(total, total);
    match walk.into_inner().unwrap_or_else(PoisonError::into_inner).end {
        None => Ok(Comparison::Identical),
        Some(End {
            found: Ok(comparison),
            ..
        }) => Ok(comparison),
        Some(End {
            found: Err(error), ..
        }) => Err(error),
    }
}

/// The walk through both disks, shared by the workers.
struct Walk<'a> {
    sides: [Side<'a>; 2],
    /// Of the longer disk.
    size: u64,
    /// Everything before has been taken by a worker.
    offset: u64,
    strict: bool,
    /// Nothing from here on matters.
    end: Option<End>,
}

/// The first thing known to end the comparison.
struct End {
    offset: u64,
    found: Result<Comparison, CompareError>,
}

/// A range that must be read: which of the disks hold data there.
struct Job<'a> {
    offset: u64,
    len: usize,
    data: [Option<&'a dyn BlockDevice>; 2],
}

struct Side<'a> {
    device: &'a dyn BlockDevice,
    size: u64,
    run: Option<Extent>,
}

fn lock<'m, 'a>(walk: &'m Mutex<Walk<'a>>) -> MutexGuard<'m, Walk<'a>> {
    walk.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(walk: &Mutex<Walk<'_>>, control: &Control<'_>) {
    let mut buffers = [Buffer::new(CHUNK as usize), Buffer::new(CHUNK as usize)];
    loop {
        let job = {
            let mut walk = lock(walk);
            let job = walk.next_job(control);
            control.report(walk.offset, walk.size);
            job
        };
        let Some(job) = job else { return };
        if let Err(end) = job.run(&mut buffers) {
            lock(walk).end_at(end);
        }
    }
}

impl<'a> Walk<'a> {
    /// The next range that must be read. `None` at the end, wherever it is.
    fn next_job(&mut self, control: &Control<'_>) -> Option<Job<'a>> {
        while self.offset < self.size && self.end.is_none() {
            match control.check().and_then(|()| self.step()) {
                Ok(None) => {}
                Ok(Some(job)) => return Some(job),
                Err(error) => self.end_at(End {
                    offset: self.offset,
                    found: Err(CompareError::Extents(error)),
                }),
            }
        }
        None
    }

    /// Goes on by one run. `None` if it need not be read.
    fn step(&mut self) -> block::Result<Option<Job<'a>>> {
        let offset = self.offset;
        let limit = (self.size - offset).min(LONGEST);
        let (left, right) = (
            self.sides[0].run(offset, limit)?,
            self.sides[1].run(offset, limit)?,
        );
        if self.strict && left.state != right.state {
            self.end_at(End {
                offset,
                found: Ok(Comparison::State(offset)),
            });
            return Ok(None);
        }
        let len = left.len.min(right.len);
        let data = [left, right].map(|run| !run.state.reads_as_zero());
        if data == [false, false] {
            self.offset += len;
            return Ok(None);
        }
        let len = len.min(CHUNK);
        self.offset += len;
        let device = |index: usize| data[index].then_some(self.sides[index].device);
        Ok(Some(Job {
            offset,
            len: len as usize,
            data: [device(0), device(1)],
        }))
    }

    /// Keeps the earliest end; workers may find theirs in any order.
    fn end_at(&mut self, end: End) {
        if self.end.as_ref().is_none_or(|other| end.offset < other.offset) {
            self.end = Some(end);
        }
    }
}

impl Side<'_> {
    /// What is left of the run at `offset`, at most `limit` bytes. Zeros past the end.
    fn run(&mut self, offset: u64, limit: u64) -> block::Result<Extent> {
        if offset >= self.size {
            return Ok(Extent {
                offset,
                len: limit,
                state: ExtentState::Hole,
                depth: 0,
                host: None,
            });
        }
        let run = match self.run {
            Some(run) if run.end() > offset => run,
            _ => extent_at(self.device, offset, (self.size - offset).min(LONGEST))?,
        };
        self.run = Some(run);
        Ok(run.clip(offset, limit))
    }
}

impl<'a> Side<'a> {
    fn new(device: &'a dyn BlockDevice) -> Self {
        Self {
            device,
            size: device.size(),
            run: None,
        }
    }
}

impl Job<'_> {
    fn run(&self, buffers: &mut [Buffer; 2]) -> Result<(), End> {
        for (device, buffer) in self.data.iter().zip(buffers.iter_mut()) {
            if let Some(device) = device {
                device
                    .read_at(&mut buffer[..self.len], self.offset)
                    .map_err(|error| End {
                        offset: self.offset,
                        found: Err(CompareError::Read(error)),
                    })?;
            }
        }
        let [left, right] = buffers;
        let (left, right) = (&left[..self.len], &right[..self.len]);
        let different = match self.data {
            [Some(_), Some(_)] => first_difference(left, right),
            [Some(_), None] => first_data(left),
            _ => first_data(right),
        };
        different.map_or(Ok(()), |sector| {
            let offset = self.offset + sector;
            Err(End {
                offset,
                found: Ok(Comparison::Content(offset)),
            })
        })
    }
}

/// The offset of the first sector that is not the same in both.
fn first_difference(left: &[u8], right: &[u8]) -> Option<u64> {
    // Comparing all of it is one call; looking for the place is rare.
    if left == right {
        return None;
    }
    let sectors = left.chunks(SECTOR as usize).zip(right.chunks(SECTOR as usize));
    sectors
        .map(|(left, right)| left == right)
        .position(|same| !same)
        .map(|sector| sector as u64 * SECTOR)
}

/// The offset of the first sector that is not zero.
fn first_data(bytes: &[u8]) -> Option<u64> {
    if is_zero(bytes) {
        return None;
    }
    bytes
        .chunks(SECTOR as usize)
        .position(|sector| !is_zero(sector))
        .map(|sector| sector as u64 * SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cancel;
    use crate::testing::{PAGE, Toy};
    use block::{ErrorKind, ZeroMode};

    fn find(left: &Toy, right: &Toy, strict: bool) -> Comparison {
        let results = [1, 2, 5].map(|threads| {
            let threads = NonZeroUsize::new(threads).unwrap();
            compare(
                left,
                right,
                &CompareOptions { strict, threads },
                &Control::unwatched(),
            )
            .unwrap()
        });
        assert!(results.iter().all(|result| *result == results[0]));
        results[0]
    }

    #[test]
    fn the_first_different_sector_is_found() {
        let size = 5 * CHUNK + 700;
        let left = Toy::new(size).filled(3);
        for at in [0, 511, 512, CHUNK - 1, 3 * CHUNK + 5, size - 1] {
            let right = Toy::new(size).filled(3);
            assert_eq!(find(&left, &right, true), Comparison::Identical);
            let mut byte = [0];
            for at in [at, size - 1] {
                right.read_at(&mut byte, at).unwrap();
                right.write_at(&[byte[0] ^ 1], at).unwrap();
                if at == size - 1 {
                    break;
                }
            }
            assert_eq!(find(&left, &right, false), Comparison::Content(at - at % SECTOR));
        }
    }

    #[test]
    fn a_longer_disk_may_only_add_zeros() {
        let short = Toy::new(3 * PAGE).filled(1);
        let long = Toy::new(900 * PAGE).filled(2);
        long.zero_at(0, 900 * PAGE, ZeroMode::Unmap).unwrap();
        long.write_at(&short.contents(), 0).unwrap();
        long.write_at(&[0; 100], 800 * PAGE).unwrap();
        assert_eq!(find(&short, &long, false), Comparison::Identical);
        assert_eq!(find(&long, &short, true), Comparison::Size);
        long.write_at(&[1], 850 * PAGE + 600).unwrap();
        assert_eq!(find(&short, &long, false), Comparison::Content(850 * PAGE + 512));
        assert_eq!(find(&long, &short, false), Comparison::Content(850 * PAGE + 512));
    }

    #[test]
    fn strict_tells_zeros_from_zeros() {
        let (left, right) = (Toy::new(600 * PAGE), Toy::new(600 * PAGE));
        left.zero_at(300 * PAGE, PAGE, ZeroMode::Unmap).unwrap();
        assert_eq!(find(&left, &right, false), Comparison::Identical);
        assert_eq!(find(&left, &right, true), Comparison::State(300 * PAGE));
        right.write_at(&[0; 10], 300 * PAGE).unwrap();
        assert_eq!(find(&left, &right, true), Comparison::State(300 * PAGE));
    }

    #[test]
    fn a_difference_before_an_error_counts() {
        let left = || Toy::new(8 * CHUNK).filled(1);
        let right = Toy::new(8 * CHUNK).filled(1);
        let options = CompareOptions::new();
        let outcome = |left: &Toy| compare(left, &right, &options, &Control::unwatched());
        assert!(matches!(
            outcome(&left().failing_reads_from(4 * CHUNK)),
            Err(CompareError::Read(_))
        ));
        assert!(matches!(
            outcome(&left().failing_extents_from(4 * CHUNK)),
            Err(CompareError::Extents(_))
        ));
        let mut byte = [0];
        right.read_at(&mut byte, CHUNK).unwrap();
        right.write_at(&[byte[0] ^ 1], CHUNK).unwrap();
        let found = outcome(&left().failing_reads_from(4 * CHUNK)).unwrap();
        assert_eq!(found, Comparison::Content(CHUNK));
    }

    #[test]
    fn stops_on_request() {
        let disk = Toy::new(CHUNK);
        let cancel = Cancel::new();
        cancel.cancel();
        let error = compare(
            &disk,
            &disk,
            &CompareOptions::new(),
            &Control::new(cancel, &|_| {}),
        )
        .unwrap_err();
        assert_eq!(error.into_inner().kind(), ErrorKind::Interrupted);
    }
}
