//! Copying one disk onto another.
//!
//! # How it works
//!
//! ```text
//!            chunk 7                                         steps of 5, 6, 7 ...
//! walker ───────────────► workers: read, compare, ───────────────► turnstile ──► target
//! (extents, in order)     find zeros, compress             (one writer at a time,
//!                                                           in guest order)
//! ```
//!
//! The walker goes through the source's extents and cuts the disk into numbered chunks. Every worker thread takes
//! the next chunk, does all that needs the processor into a buffer of its own, and hands the resulting [`Step`]s to
//! the turnstile, which has them carried out in the order of the chunks by whichever worker comes with the one that
//! is due. So the target gives out room in guest order and its layout does not depend on timing, and no thread waits
//! unless it has run a whole window ahead of the writer: that window is also the bound on memory. One writer is not
//! only enough but faster: hosts let one write at a time into a file, and others that try burn a processor waiting.
//! Where that is not so (a block device), order can be given up, and a worker carries its steps out at once.
//!
//! Data that the host can [take over](Offload) is not read at all: in its turn the host is asked to put it there. What it
//! refuses is then read and written by whoever is at the turnstile.
//!
//! What is left out depends on what the target reads as before ([`Before`]): a run is skipped where the target reads
//! the same already, and zeros are written as zeros elsewhere.

mod stream;
mod turnstile;
mod walker;

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use block::{BlockDevice, CompressedWrite, Error, Extent, Result, ZeroMode};

use crate::buffer::Buffer;
use crate::extents::extent_at;
use crate::offload::Offloading;
use crate::throttle::Throttle;
use crate::{Control, Offload, is_zero};
use stream::Stream;
pub use stream::{Length, Sequential, receive};
use turnstile::Turnstile;
pub(crate) use walker::IN_TARGET;
use walker::{Chunk, Kind, Run, Walker};

/// Bytes that a worker reads at once: enough to make calls cheap, little enough to stay in a core's cache between
/// the read, the search for zeros and the write. And a host that is asked to write a MiB at once looks for that much
/// memory in one piece, which can take longer than the writing.
const CHUNK: u64 = 256 << 10;

/// The same where the host's page cache is left out: each read and write is a request to the device then, which takes its time
/// however long it is.
pub const DIRECT_CHUNK: u64 = 2 << 20;

/// The size of the pieces in which zeros are looked for where nothing else is said.
const PIECE: u64 = 4096;

/// What the target reads as where nothing is written.
#[derive(Clone, Debug, Default)]
pub enum Before {
    /// Zeros: it is new.
    #[default]
    Zeros,
    /// Anything: it has been in use.
    Unknown,
    /// What the source's layers from `depth` on read as: they lie below the target too, which is otherwise new.
    Layers {
        /// The source's layer that is the target's backing; at least 1.
        depth: u32,
        /// Its size in bytes. Past it the target reads as zeros.
        size: u64,
    },
    /// What this device reads as, and zeros past its end: it is the target's backing, and the target is otherwise
    /// new. What is the same there is found by reading both.
    Device(Arc<dyn BlockDevice>),
}

impl Before {
    /// Where on the disk, in bytes, the target begins to read as zeros.
    fn end(&self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Unknown => u64::MAX,
            Self::Layers { size, .. } => *size,
            Self::Device(backing) => backing.size(),
        }
    }
}

/// How to [`convert`](convert()).
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Threads that read, search and compress.
    pub threads: NonZeroUsize,
    /// Bytes that a thread reads at once, a cluster of the target at least.
    pub chunk: u64,
    /// The shortest run of zeros inside data that is not written as data, in bytes; 0 writes everything, holes too. It is looked
    /// for in aligned pieces of the largest power of two in this, as QEMU does.
    pub sparse: u64,
    /// Write compressed clusters.
    pub compress: bool,
    /// Write in guest order, one write at a time, so that the target's layout is always the same. Compressed clusters
    /// are in any case.
    pub in_order: bool,
    /// Deal with whole clusters of the target, each as data or as zeros. Compressed ones are in any case.
    pub whole_clusters: bool,
    /// Bytes a second that are written at most: data, compressed where it is. What the host takes over does not count.
    pub rate: Option<NonZeroU64>,
    /// What the target reads as before.
    pub before: Before,
    /// Whom to ask to have the host copy data that is the same in both files. Not where `compress` or `whole_clusters` is
    /// asked for, or where data is compared with a backing device. What the host takes over is not searched for zeros.
    pub offload: Option<Offload>,
}

impl ConvertOptions {
    /// One thread per processor, zeros from 4 KiB on left out, uncompressed, in order, onto a new target.
    pub fn new() -> Self {
        Self {
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            chunk: CHUNK,
            sparse: PIECE,
            compress: false,
            in_order: true,
            whole_clusters: false,
            rate: None,
            before: Before::Zeros,
            offload: None,
        }
    }
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies all of `source` onto the start of `target`. The caller flushes.
///
/// # Errors
/// `InvalidInput` for a target smaller than the source; `Unsupported` for compression that the target has not;
/// `Interrupted` on request; as the devices. The target then holds some of the source.
pub fn convert(
    source: &dyn BlockDevice,
    target: &dyn BlockDevice,
    options: &ConvertOptions,
    control: &Control<'_>,
) -> Result<()> {
    if target.size() < source.size() {
        return Err(Error::invalid(format!(
            "the target has {} bytes, fewer than the source's {}",
            target.size(),
            source.size()
        )));
    }
    let total = source.size();
    // Whole clusters are made of data and zeros, and what the target's backing holds too is found by reading.
    let reads = options.compress || options.whole_clusters || matches!(options.before, Before::Device(_));
    let offload = options.offload.as_ref().filter(|_| !reads);
    let offloading = offload.and_then(|offload| offload.onto(target));
    let offloading = offloading.as_ref();
    let feed = |chunk, unit| Feed::Disk {
        source,
        walker: Mutex::new(Walker::new(source, options, offloading, chunk, unit)),
        offloading,
    };
    Copy::new(feed, total, target, options, control)?.run()
}

/// One thing to do to the target.
#[derive(Debug)]
enum Step {
    /// Write what the buffer holds for this range of the disk.
    Write(Range<u64>),
    /// Make this range of the disk read as zeros.
    Zero(Range<u64>),
    /// Store a compressed cluster at this offset.
    Compressed(u64, Vec<u8>),
    /// Have the host put this range of the disk there.
    Host(Range<u64>),
}

/// A chunk whose steps can be carried out.
#[derive(Debug)]
struct Prepared {
    offset: u64,
    len: u64,
    steps: Vec<Step>,
    /// Holds the disk from `offset` on, where anything was read.
    buffer: Option<Buffer>,
}

/// A copy under way: what its workers share.
struct Copy<'a> {
    feed: Feed<'a>,
    /// Bytes of the source; 0 where that is not known.
    total: u64,
    target: &'a dyn BlockDevice,
    compressed: Option<&'a dyn CompressedWrite>,
    options: &'a ConvertOptions,
    control: &'a Control<'a>,
    throttle: Throttle,
    in_order: bool,
    /// Bytes in a full chunk.
    chunk: u64,
    /// The target's unit of allocation.
    cluster: u64,
    turnstile: Turnstile<'a>,
}

/// Where chunks come from.
enum Feed<'a> {
    /// A disk: whoever has a chunk reads it.
    Disk {
        source: &'a dyn BlockDevice,
        walker: Mutex<Walker<'a>>,
        offloading: Option<&'a Offloading<'a>>,
    },
    /// An input that can be read only in order: chunks come with what was read.
    Stream(Length, Mutex<Stream<'a>>),
}

impl<'a> Copy<'a> {
    /// A copy of `total` bytes from a feed that is made for chunks of so many bytes, and data in whole units of so
    /// many.
    fn new(
        feed: impl FnOnce(u64, u64) -> Feed<'a>,
        total: u64,
        target: &'a dyn BlockDevice,
        options: &'a ConvertOptions,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let info = target.info();
        let compressed = if options.compress {
            let unsupported = || Error::unsupported(format!("a {} image cannot be compressed", info.format));
            Some(target.compressed().ok_or_else(unsupported)?)
        } else {
            None
        };
        let cluster = info.cluster_size.unwrap_or(PIECE);
        let chunk = options.chunk.max(cluster).next_multiple_of(cluster);
        // Compressed clusters are made whole, from data and the zeros around it.
        let unit = if options.compress || options.whole_clusters {
            cluster
        } else {
            1
        };
        Ok(Self {
            feed: feed(chunk, unit),
            total,
            target,
            compressed,
            options,
            control,
            throttle: Throttle::new(options.rate),
            in_order: options.in_order || options.compress,
            chunk,
            cluster,
            turnstile: Turnstile::new(options.threads.get() * 2, total, control),
        })
    }

    /// Copies everything.
    fn run(&self) -> Result<()> {
        thread::scope(|scope| {
            for _ in 1..self.options.threads.get() {
                // Where no more threads can be started, those that there are do all of it.
                if thread::Builder::new()
                    .spawn_scoped(scope, || self.work())
                    .is_err()
                {
                    break;
                }
            }
            self.work();
        });
        self.turnstile.finish()
    }

    /// `None` when everything has been handed out.
    fn next_chunk(&self) -> Result<Option<Chunk>> {
        match &self.feed {
            Feed::Disk { walker, .. } => walker.lock().unwrap_or_else(PoisonError::into_inner).next_chunk(),
            Feed::Stream(_, stream) => {
                let buffer = self.turnstile.buffer(self.chunk as usize);
                stream
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .next_chunk(buffer)
            }
        }
    }

    /// A worker: prepares chunks until there are no more or somebody has failed.
    fn work(&self) {
        let _failing = self.turnstile.fail_on_panic();
        if let Err(error) = self.prepare_all() {
            self.turnstile.fail(error);
        }
    }

    fn prepare_all(&self) -> Result<()> {
        loop {
            self.control.check()?;
            let Some(chunk) = self.next_chunk()? else {
                return Ok(());
            };
            if !self.in_order {
                let prepared = self.prepare(chunk)?;
                self.carry_out(&prepared)?;
                self.turnstile.done(prepared);
                continue;
            }
            let number = chunk.number;
            if !self.turnstile.wait_for_room(number) {
                return Ok(());
            }
            let prepared = self.prepare(chunk)?;
            self.turnstile
                .hand_in(number, prepared, |prepared| self.carry_out(prepared))?;
        }
    }

    /// Everything about a chunk that can be done before its turn.
    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        let mut steps = Vec::new();
        let mut buffer = chunk.read;
        for run in &chunk.runs {
            match run.kind {
                Kind::Same => {}
                Kind::Zero => self.zero(run.range.clone(), &mut steps),
                Kind::Host => steps.push(Step::Host(run.range.clone())),
                Kind::Data => {
                    let buffer = buffer.get_or_insert_with(|| self.turnstile.buffer(self.chunk as usize));
                    let bytes = &mut buffer[within(&run.range, chunk.offset)];
                    if let Feed::Disk { source, .. } = self.feed {
                        source.read_at(bytes, run.range.start)?;
                    }
                    for range in self.different(bytes, &run.range)? {
                        self.sort_out(&bytes[within(&range, run.range.start)], &range, &mut steps)?;
                    }
                }
            }
        }
        Ok(Prepared {
            offset: chunk.offset,
            len: chunk.len,
            steps,
            buffer,
        })
    }

    /// The parts of `range`, read as `bytes`, that the target's backing does not read as already.
    fn different(&self, bytes: &[u8], range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let Before::Device(backing) = &self.options.before else {
            return Ok(vec![range.clone()]);
        };
        let mut below = vec![0; bytes.len()];
        let there = backing.size().clamp(range.start, range.end) - range.start;
        if there > 0 {
            backing.read_at(&mut below[..there as usize], range.start)?;
        }
        let same = |part: &Range<u64>| bytes[within(part, range.start)] == below[within(part, range.start)];
        Ok(split(range, self.cluster, same)
            .into_iter()
            .filter_map(|(same, part)| (!same).then_some(part))
            .collect())
    }

    /// Turns `range`, read as `bytes`, into steps: zeros, compressed clusters, and data.
    fn sort_out(&self, bytes: &[u8], range: &Range<u64>, steps: &mut Vec<Step>) -> Result<()> {
        let sparse = self.options.sparse;
        let unit = match (&self.options.before, self.compressed) {
            // Less than a cluster of zeros would have the rest copied up from the backing.
            (Before::Layers { .. } | Before::Device(_), _) | (_, Some(_)) => self.cluster,
            _ if self.options.whole_clusters => self.cluster,
            _ => sparse.checked_ilog2().map_or(PIECE, |bits| 1 << bits),
        };
        let zero = |part: &Range<u64>| sparse > 0 && is_zero(&bytes[within(part, range.start)]);
        for (zero, part) in split(range, unit, zero) {
            let bytes = &bytes[within(&part, range.start)];
            let long = bytes.len() as u64 >= sparse || part == *range || part.end == self.total;
            if zero && (long || self.compressed.is_some()) {
                self.zero(part, steps);
            } else if let Some(compressed) = self.compressed {
                for (index, cluster) in bytes.chunks(self.cluster as usize).enumerate() {
                    let offset = part.start + index as u64 * self.cluster;
                    steps.push(self.compress(compressed, cluster, offset)?);
                }
            } else {
                push(steps, Step::Write(part));
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros, where the target does not by itself.
    fn zero(&self, range: Range<u64>, steps: &mut Vec<Step>) {
        if range.start < self.options.before.end() {
            push(steps, Step::Zero(range));
        }
    }

    fn compress(&self, compressed: &dyn CompressedWrite, cluster: &[u8], offset: u64) -> Result<Step> {
        let bytes = if cluster.len() as u64 == self.cluster {
            compressed.compress(cluster)?
        } else {
            // The disk ends inside its last cluster; what lies past the end is zero.
            let mut whole = cluster.to_vec();
            whole.resize(self.cluster as usize, 0);
            compressed.compress(&whole)?
        };
        Ok(match bytes {
            Some(bytes) => Step::Compressed(offset, bytes),
            None => Step::Write(offset..offset + cluster.len() as u64),
        })
    }

    /// Does to the target what was prepared.
    fn carry_out(&self, prepared: &Prepared) -> Result<()> {
        if let Feed::Stream(length, _) = self.feed {
            stream::make_room(self.target, length, prepared.offset + prepared.len)?;
        }
        for step in &prepared.steps {
            self.control.check()?;
            match (step, &prepared.buffer, self.compressed) {
                (Step::Host(range), ..) => self.take_over(range)?,
                (Step::Zero(range), ..) => {
                    self.target
                        .zero_at(range.start, range.end - range.start, ZeroMode::Unmap)?;
                }
                (Step::Write(range), Some(buffer), _) => {
                    self.throttle.pass(range.end - range.start, self.control)?;
                    self.target
                        .write_at(&buffer[within(range, prepared.offset)], range.start)?;
                }
                (Step::Compressed(offset, bytes), _, Some(compressed)) => {
                    self.throttle.pass(bytes.len() as u64, self.control)?;
                    compressed.write_compressed_at(bytes, *offset)?;
                }
                (Step::Write(_), None, _) | (Step::Compressed(..), _, None) => {
                    unreachable!(
                        "data comes from a buffer, and compressed data from a target that compresses"
                    )
                }
            }
        }
        Ok(())
    }
}

impl Copy<'_> {
    /// Has the host put `range` into the target, and does itself what the host refuses.
    fn take_over(&self, range: &Range<u64>) -> Result<()> {
        let Feed::Disk {
            source,
            offloading: Some(offloading),
            ..
        } = self.feed
        else {
            unreachable!("only a disk has runs for the host")
        };
        let mut at = range.start;
        while at < range.end {
            self.control.check()?;
            let extent = extent_at(source, at, range.end - at)?;
            at += match offloading.take_over(&extent)? {
                0 => self.copy_by_hand(&extent)?,
                taken => taken,
            };
        }
        Ok(())
    }

    /// Reads and writes the first part of a run. Returns how many bytes that is.
    fn copy_by_hand(&self, extent: &Extent) -> Result<u64> {
        let len = extent.len.min(self.chunk);
        let run = Run {
            kind: Kind::Data,
            range: extent.offset..extent.offset + len,
        };
        let prepared = self.prepare(Chunk {
            number: 0,
            offset: extent.offset,
            len,
            runs: vec![run],
            read: None,
        })?;
        self.carry_out(&prepared)?;
        self.turnstile.keep(prepared.buffer);
        Ok(len)
    }
}

/// Where `range` of the disk lies in a buffer that holds the disk from `start` on.
fn within(range: &Range<u64>, start: u64) -> Range<usize> {
    (range.start - start) as usize..(range.end - start) as usize
}

/// Cuts `range` at multiples of `unit`, asks `test` about every piece, and joins neighbours with the same answer.
pub(crate) fn split(
    range: &Range<u64>,
    unit: u64,
    test: impl Fn(&Range<u64>) -> bool,
) -> Vec<(bool, Range<u64>)> {
    let mut parts: Vec<(bool, Range<u64>)> = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = (start - start % unit + unit).min(range.end);
        let answer = test(&(start..end));
        match parts.last_mut() {
            Some((last, part)) if *last == answer => part.end = end,
            _ => parts.push((answer, start..end)),
        }
        start = end;
    }
    parts
}

/// Adds a step, joining it to the one before where that is the same kind of step and ends there.
fn push(steps: &mut Vec<Step>, step: Step) {
    match (steps.last_mut(), &step) {
        (Some(Step::Write(last)), Step::Write(next)) | (Some(Step::Zero(last)), Step::Zero(next))
            if last.end == next.start =>
        {
            last.end = next.end;
        }
        _ => steps.push(step),
    }
}

#[cfg(test)]
mod tests;
