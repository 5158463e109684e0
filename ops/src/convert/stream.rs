//! Sources and targets that can be read or written only from the front to the back, such as pipes.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, DeviceInfo, Error, Extent, ExtentState, Resize, Result, ZeroMode};

use super::walker::{Chunk, Kind, Run};
use super::{ConvertOptions, Copy, Feed};
use crate::Control;
use crate::buffer::Buffer;

/// A target whose size follows what arrives grows by this much at least.
const GROWTH: u64 = 64 << 20;

/// How long the target of [`receive`] is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// As long as the input, in whole sectors of 512 bytes.
    Follows,
    /// As it is. What the input does not reach stays as it was.
    Fixed,
}

/// Copies everything that `input` gives onto the start of `target`. Returns how many bytes there were; the rest of the
/// last sector is filled with zeros. The caller flushes.
///
/// # Errors
/// `InvalidInput` for an input that is longer than a target of fixed length; `Io` for a failing input; as
/// [`convert`](super::convert()) and, for a length that follows, [`BlockDevice::resize`].
pub fn receive(
    input: &mut (dyn Read + Send),
    target: &dyn BlockDevice,
    length: Length,
    options: &ConvertOptions,
    control: &Control<'_>,
) -> Result<u64> {
    // Only the front of the target exists while the rest is to come.
    let options = ConvertOptions {
        in_order: true,
        ..options.clone()
    };
    let stream = Stream {
        input,
        offset: 0,
        number: 0,
    };
    let feed = move |_, _| Feed::Stream(length, Mutex::new(stream));
    let copy = Copy::new(feed, 0, target, &options, control)?;
    copy.run()?;
    let len = match &copy.feed {
        Feed::Stream(_, stream) => stream.lock().unwrap_or_else(PoisonError::into_inner).offset,
        Feed::Disk { .. } => 0,
    };
    let size = len.next_multiple_of(512);
    if length == Length::Follows && target.size() != size {
        let shrink = Resize {
            shrink: true,
            ..Resize::default()
        };
        target.resize(size, shrink)?;
    }
    Ok(len)
}

/// Makes sure that the target reaches `end`, with room for what is likely to follow where its length follows.
pub(super) fn make_room(target: &dyn BlockDevice, length: Length, end: u64) -> Result<()> {
    let size = target.size();
    if end <= size {
        return Ok(());
    }
    if length == Length::Fixed {
        let message = format!("the input has more than the target's {size} bytes");
        return Err(Error::invalid(message));
    }
    let next = end.max(size + size / 2).next_multiple_of(GROWTH);
    target.resize(next, Resize::default())
}

/// Hands out the chunks of an input, read.
pub(super) struct Stream<'a> {
    input: &'a mut (dyn Read + Send),
    offset: u64,
    number: u64,
}

impl Stream<'_> {
    /// `None` at the end of the input.
    pub(super) fn next_chunk(&mut self, mut buffer: Buffer) -> Result<Option<Chunk>> {
        let len = fill(self.input, &mut buffer)
            .map_err(|error| Error::io("read the input", error).with_offset(self.offset))?;
        if len == 0 {
            return Ok(None);
        }
        // The disk has whole sectors.
        let padded = len.next_multiple_of(512).min(buffer.len());
        buffer[len..padded].fill(0);
        let (offset, number) = (self.offset, self.number);
        self.offset += len as u64;
        self.number += 1;
        Ok(Some(Chunk {
            number,
            offset,
            len: padded as u64,
            runs: vec![Run {
                kind: Kind::Data,
                range: offset..offset + padded as u64,
            }],
            read: Some(buffer),
        }))
    }
}

/// Fills `buffer`, or as much of it as there is.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// A disk of which some ranges go to an output, one after the other, and must be written from the front to the back.
/// What is left out of them is sent as zeros; outside them there is nothing to write to.
#[derive(Debug)]
pub struct Sequential<W> {
    size: AtomicU64,
    /// In order, and apart from each other.
    ranges: Vec<Range<u64>>,
    /// The ranges are all of the disk, however long it is.
    whole: bool,
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    output: W,
    /// The range that is being sent.
    range: usize,
    /// How much of the disk has been dealt with.
    position: u64,
}

impl<W: Write + Send + std::fmt::Debug> Sequential<W> {
    /// A disk of `size` bytes whose `ranges`, in order and apart from each other, go to `output`. They may reach past
    /// its end.
    pub fn new(output: W, size: u64, ranges: Vec<Range<u64>>) -> Self {
        Self {
            size: AtomicU64::new(size),
            ranges,
            whole: false,
            state: Mutex::new(State {
                output,
                range: 0,
                position: 0,
            }),
        }
    }

    /// A disk of `size` bytes, which can be resized, all of which goes to `output`: a raw image.
    pub fn whole(output: W, size: u64) -> Self {
        Self {
            whole: true,
            ..Self::new(output, size, std::iter::once(0..u64::MAX).collect())
        }
    }

    /// Sends the zeros that are missing up to the end, and gives the output back, flushed.
    ///
    /// # Errors
    /// `Io`, `NoSpace`.
    pub fn finish(self) -> Result<W> {
        let end = if self.whole { self.size() } else { u64::MAX };
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.skip_to(&self.ranges, end)?;
        state.output.flush().map_err(write_error)?;
        Ok(state.output)
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write> State<W> {
    /// Sends zeros for whatever of the ranges lies between the position and `end`.
    fn skip_to(&mut self, ranges: &[Range<u64>], end: u64) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while let Some(range) = ranges.get(self.range) {
            self.position = self.position.max(range.start.min(end));
            let mut missing = range.end.min(end).saturating_sub(self.position);
            while missing > 0 {
                let len = missing.min(ZEROS.len() as u64);
                self.output
                    .write_all(&ZEROS[..len as usize])
                    .map_err(write_error)?;
                self.position += len;
                missing -= len;
            }
            if range.end > end {
                break;
            }
            self.range += 1;
        }
        Ok(())
    }

    /// Sends `bytes` for `offset`, which must not lie in front of the position, and lie in one range.
    fn send(&mut self, ranges: &[Range<u64>], bytes: &[u8], offset: u64) -> Result<()> {
        if offset < self.position {
            let message = format!("byte {offset} of the disk comes after byte {}", self.position);
            return Err(Error::invalid(message));
        }
        self.skip_to(ranges, offset)?;
        let end = offset + bytes.len() as u64;
        if !ranges
            .get(self.range)
            .is_some_and(|range| range.start <= offset && end <= range.end)
        {
            let message = format!("{} bytes at offset {offset} are not to be sent", bytes.len());
            return Err(Error::invalid(message));
        }
        self.output.write_all(bytes).map_err(write_error)?;
        self.position = end;
        Ok(())
    }
}

fn write_error(error: io::Error) -> Error {
    Error::io("write the output", error)
}

impl<W: Write + Send + std::fmt::Debug> BlockDevice for Sequential<W> {
    fn info(&self) -> DeviceInfo {
        let mut info = DeviceInfo::new("stream");
        info.zero_init = true;
        info.fast_zero = true;
        info
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<()> {
        Err(Error::unsupported("what was sent cannot be read back"))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.lock().send(&self.ranges, buf, offset)
    }

    fn zero_at(&self, _offset: u64, _len: u64, _mode: ZeroMode) -> Result<()> {
        // What is not written is sent as zeros.
        Ok(())
    }

    fn discard_at(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        let size = self.size();
        if offset >= size || len == 0 {
            return Err(Error::out_of_bounds("extent query", offset, len, size));
        }
        Ok(Extent {
            offset,
            len: len.min(size - offset),
            state: ExtentState::Data,
            depth: 0,
            host: None,
        })
    }

    fn flush(&self) -> Result<()> {
        self.lock().output.flush().map_err(write_error)
    }

    fn resize(&self, size: u64, _how: Resize) -> Result<()> {
        if !self.whole {
            return Err(Error::unsupported("the size of the disk has been sent already"));
        }
        if size < self.lock().position {
            return Err(Error::invalid("what was sent cannot be cut off"));
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_sent_as_zeros_and_what_is_outside_not_at_all() {
        let disk = Sequential::new(Vec::new(), 100, vec![10..20, 30..40, 50..60]);
        disk.write_at(b"abc", 12).unwrap();
        disk.write_at(b"d", 15).unwrap();
        disk.write_at(b"ef", 55).unwrap();
        for (bytes, offset) in [(&b"x"[..], 54), (b"x", 60), (b"xxxx", 58), (b"x", 25)] {
            disk.write_at(bytes, offset).unwrap_err();
        }
        let sent = disk.finish().unwrap();
        let mut expected = vec![0; 30];
        expected[2..5].copy_from_slice(b"abc");
        expected[5] = b'd';
        expected[25..27].copy_from_slice(b"ef");
        assert_eq!(sent, expected);
    }
}
