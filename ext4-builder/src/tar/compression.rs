//! What lies around an archive: nothing, or one of the compressions, known by the input's first bytes.
//!
//! Decompressing has a thread of its own, so that it overlaps with whatever is done with the bytes. The two share a
//! few buffers that go back and forth. A failure travels the same way as data, and in order with it; when the reader
//! goes away, the thread ends at the next buffer.
//!
//! Each format may consist of several streams, which follow each other (`cat a.gz b.gz`, and what pigz or zstd write
//! in parallel): they are one. What follows the last stream is an error, except for padding as the programs take it:
//! zeros after gzip (tapes), stream padding after xz, and skippable frames in zstd.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use block::{Error, Result};
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::fault::Fault;
use super::header::{BLOCK, Header};
use super::other;

/// Bytes of a buffer, and how many of them there are.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;

/// Memory that an archive may make xz use. Its highest level takes 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// What every member of a gzip file starts with.
const GZIP_START: u8 = 0x1f;

/// Log of the window that an archive may make zstd use, as the program has it by default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The bytes of an input without its compression. See [`decompress`].
pub struct Decompressed(Source);

enum Source {
    Plain(Box<dyn Read + Send>),
    Thread(Buffers),
}

/// The end of the thread's work that the reader has.
struct Buffers {
    filled: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    ended: bool,
}

/// Finds out how an input is compressed, by gzip, zstd, xz or not at all, and undoes it. It need not be seekable.
///
/// # Errors
/// `Unsupported` for other compressions that are known; `Io`. Reading may then fail with an [`Error`] as the cause,
/// `Corrupt` for damaged data and for an early end.
pub fn decompress(mut input: impl Read + Send + 'static) -> Result<Decompressed> {
    let mut start = Vec::with_capacity(BLOCK);
    input
        .by_ref()
        .take(BLOCK as u64)
        .read_to_end(&mut start)
        .map_err(read_error)?;
    let format = detect(&start)?;
    let input = Cursor::new(start).chain(input);
    let Some(format) = format else {
        return Ok(Decompressed(Source::Plain(Box::new(input))));
    };
    let (send_filled, filled) = sync_channel(BUFFERS);
    let (empty, take_empty) = channel();
    for _ in 0..BUFFERS {
        // The receiver is right here.
        let _ = empty.send(Vec::new());
    }
    thread::Builder::new()
        .name("decompress".into())
        .spawn(move || run(format, input, &send_filled, &take_empty))
        .map_err(|error| Error::io("cannot start a thread to decompress", error))?;
    Ok(Decompressed(Source::Thread(Buffers {
        filled,
        empty,
        current: Vec::new(),
        position: 0,
        ended: false,
    })))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Zstd,
    Xz,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        }
    }

    fn decoder(self, input: impl Read + Send + 'static) -> io::Result<Box<dyn Read>> {
        let input = BufReader::with_capacity(BUFFER, input);
        Ok(match self {
            Self::Gzip => Box::new(Gzip(Some(GzDecoder::new(input)))),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
                Box::new(XzDecoder::new_stream(input, stream))
            }
        })
    }
}

/// Compressions that are known and not undone here, with the programs that undo them.
const OTHERS: [(&[u8], &str, &str); 8] = [
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"LZIP", "lzip", "lzip -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4 -dc"),
    (b"\x1f\x9d", "compress", "uncompress -c"),
    (b"\x89LZO", "lzop", "lzop -dc"),
    (b"\x5d\0\0", "lzma", "xz -dc"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x -so"),
];

fn detect(start: &[u8]) -> Result<Option<Format>> {
    // The name of an archive's first entry may look like anything.
    if let Some(block) = start.first_chunk()
        && Header::parse(block).is_ok()
    {
        return Ok(None);
    }
    let is_skippable = |start: &[u8]| start[0] & 0xf0 == 0x50 && start[1..4] == *b"\x2a\x4d\x18";
    if start.starts_with(b"\x1f\x8b") {
        return Ok(Some(Format::Gzip));
    }
    if start.starts_with(b"\x28\xb5\x2f\xfd") || start.get(..4).is_some_and(is_skippable) {
        return Ok(Some(Format::Zstd));
    }
    if start.starts_with(b"\xfd7zXZ\0") {
        return Ok(Some(Format::Xz));
    }
    match OTHERS.iter().find(|(magic, ..)| start.starts_with(magic)) {
        Some((_, name, program)) => Err(Error::unsupported(format!(
            "the archive is compressed by {name}, which is not supported"
        ))
        .with_hint(format!("undo that first: {program} FILE | ..."))),
        None => match other::name(start) {
            Some(name) => Err(Fault::Other(name).at(0, None)),
            None => Ok(None),
        },
    }
}

/// Decompresses all of the input into buffers, until there is no more, an error, or nobody who reads. The end is a
/// buffer without bytes: a thread that is merely gone must not look like one.
fn run(
    format: Format,
    input: impl Read + Send + 'static,
    filled: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) {
    let fail = |error| {
        // Nobody reads any more, and nobody needs to know.
        let _ = filled.send(Err(describe(format, error)));
    };
    let mut decoder = match format.decoder(SourceErrors(input)) {
        Ok(decoder) => decoder,
        Err(error) => return fail(error),
    };
    while let Ok(mut buffer) = empty.recv() {
        buffer.clear();
        let result = decoder.by_ref().take(BUFFER as u64).read_to_end(&mut buffer);
        let ended = buffer.is_empty();
        match result {
            Err(error) => {
                // What came before it is good.
                if !ended && filled.send(Ok(buffer)).is_err() {
                    return;
                }
                return fail(error);
            }
            Ok(_) if filled.send(Ok(buffer)).is_err() || ended => return,
            Ok(_) => {}
        }
    }
}

/// An input whose errors are ours, so that they are told from those of a decoder.
struct SourceErrors<R>(R);

impl<R: Read> Read for SourceErrors<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::from(read_error(error)),
        })
    }
}

/// The error of an input; one of ours that came through `Read` is itself again.
pub(super) fn read_error(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("cannot read the archive", error),
    }
}

/// A decoder's error, unless it only passes on one of its input's.
fn describe(format: Format, error: io::Error) -> io::Error {
    let error = match error.downcast::<Error>() {
        Ok(error) => return error.into(),
        Err(error) => error,
    };
    let name = format.name();
    let error = if error.kind() == io::ErrorKind::UnexpectedEof {
        Error::new(
            block::ErrorKind::Corrupt,
            format!("the archive ends early, within its {name} compression"),
        )
        .with_hint("what made or sent it stopped before it was done: make or fetch it again")
    } else {
        Error::new(
            block::ErrorKind::Corrupt,
            format!("cannot undo the archive's {name} compression: {error}"),
        )
    };
    error.into()
}

impl Read for Decompressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Source::Plain(input) => input.read(buffer),
            Source::Thread(buffers) => buffers.read(buffer),
        }
    }
}

impl Buffers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() && !self.ended {
            // The thread is gone where it has ended, and then it wants no buffers.
            let _ = self.empty.send(std::mem::take(&mut self.current));
            self.position = 0;
            self.current = match self.filled.recv() {
                Ok(filled) => filled?,
                Err(_) => return Err(io::Error::other("the thread that decompresses it is gone")),
            };
            self.ended = self.current.is_empty();
        }
        let rest = &self.current[self.position..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.position += len;
        Ok(len)
    }
}

/// The members of a gzip file, one after the other; none when the last one has ended.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.0 else { return Ok(0) };
            let len = decoder.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            let Some(mut input) = self.0.take().map(GzDecoder::into_inner) else {
                return Ok(0);
            };
            match input.fill_buf()?.first() {
                None => return Ok(0),
                Some(0) => return read_padding(&mut input),
                Some(&GZIP_START) => self.0 = Some(GzDecoder::new(input)),
                Some(_) => return Err(junk()),
            }
        }
    }
}

/// Reads the zeros up to the end.
fn read_padding(input: &mut impl BufRead) -> io::Result<usize> {
    loop {
        let bytes = input.fill_buf()?;
        let len = bytes.len();
        if len == 0 {
            return Ok(0);
        }
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(junk());
        }
        input.consume(len);
    }
}

fn junk() -> io::Error {
    io::Error::other("something that is not part of it follows its end")
}
