//! One connection to an export: a request, then its reply.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use block::{Error, ErrorKind, Result};
use byteorder::{BigEndian, ByteOrder};

use crate::protocol::{self, Allocation, ChunkKind, Command, Reply, Request, violation};
use crate::{Address, Server};

/// How long a server may take over each message of the handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest text that a server may send with an error, with its head.
const MAX_ERROR: u32 = 6 + 4096 + 8;

/// The longest list of runs that is read, in bytes: more than any server sends.
const MAX_BLOCK_STATUS: u32 = 4 + (8 << 20);

/// A socket of either kind.
pub(crate) trait Stream: Read + Write + Send {
    /// Waits for the server at most this long, or for ever.
    fn set_patience(&self, patience: Option<Duration>) -> std::io::Result<()>;
}

impl Stream for TcpStream {
    fn set_patience(&self, patience: Option<Duration>) -> std::io::Result<()> {
        self.set_read_timeout(patience)
    }
}

impl Stream for UnixStream {
    fn set_patience(&self, patience: Option<Duration>) -> std::io::Result<()> {
        self.set_read_timeout(patience)
    }
}

/// Reaches the server, which has [`PATIENCE`] seconds for each of its words until [`Connection::new`].
pub(crate) fn connect(address: &Address) -> Result<Box<dyn Stream>> {
    let stream: std::io::Result<Box<dyn Stream>> = match address.server() {
        Server::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as _)
        }),
        Server::Unix(path) => UnixStream::connect(path).map(|stream| Box::new(stream) as _),
    };
    let stream = stream.and_then(|stream| stream.set_patience(Some(PATIENCE)).map(|()| stream));
    let failed = |error| Error::io(format!("connect to {}", address.server()), error);
    stream.map_err(|error| failed(error).with_hint("is the server running, and reached from here?"))
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused it; the next may be better.
    Refused(Error),
    /// The connection is of no more use.
    Broken(Error),
}

/// What a request moves.
pub(crate) enum Payload<'b> {
    None,
    /// To the server.
    Write(&'b [u8]),
    /// From the server, all of it.
    Read(&'b mut [u8]),
    /// From the server: the runs of the range.
    Status(&'b mut Vec<Allocation>),
}

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    cookie: u64,
    /// The number that the server gave to `base:allocation`.
    context: Option<u32>,
}

impl Connection {
    pub(crate) fn new(stream: Box<dyn Stream>, context: Option<u32>) -> Result<Self> {
        stream
            .set_patience(None)
            .map_err(|error| Error::io("set up the connection", error))?;
        Ok(Self {
            stream,
            cookie: 0,
            context,
        })
    }

    /// Whether runs can be asked for.
    pub(crate) fn has_status(&self) -> bool {
        self.context.is_some()
    }

    /// Sends a request and takes in its whole reply.
    pub(crate) fn request(&mut self, request: &Request, payload: Payload<'_>) -> Result<(), Failure> {
        self.cookie += 1;
        self.send(request, &payload).map_err(Failure::Broken)?;
        let mut reception = Reception {
            request,
            payload,
            filled: 0,
            refusal: None,
        };
        while !self.part(&mut reception).map_err(Failure::Broken)? {}
        reception.end()
    }

    /// Says that no more is to come.
    pub(crate) fn close(mut self) {
        let request = Request {
            command: Command::Disconnect,
            flags: 0,
            offset: 0,
            len: 0,
        };
        // The server closes the connection without an answer; if it has gone already, so much the better.
        let _ = self.send(&request, &Payload::None);
    }

    fn send(&mut self, request: &Request, payload: &Payload<'_>) -> Result<()> {
        let head = request.encode(self.cookie);
        let sent = self.stream.write_all(&head).and_then(|()| match payload {
            Payload::Write(bytes) => self.stream.write_all(bytes),
            _ => Ok(()),
        });
        sent.map_err(|error| Error::io("send to the server", error))
    }

    /// Takes in a part of a reply, and says whether it was the last.
    fn part(&mut self, reception: &mut Reception<'_, '_>) -> Result<bool> {
        match self.head()? {
            Reply::Simple { error: 0 } => {
                match &mut reception.payload {
                    Payload::Read(buf) => {
                        fill(&mut *self.stream, buf)?;
                        reception.filled = buf.len();
                    }
                    Payload::Status(_) => return Err(violation("a simple reply to a block status")),
                    Payload::None | Payload::Write(_) => {}
                }
                Ok(true)
            }
            Reply::Simple { error } => {
                reception.refuse(error, "");
                Ok(true)
            }
            Reply::Chunk { kind, last, len } => {
                self.chunk(kind, len, reception)?;
                Ok(last)
            }
        }
    }

    fn head(&mut self) -> Result<Reply> {
        let mut bytes = [0; 20];
        fill(&mut *self.stream, &mut bytes[..16])?;
        let end = 16 + protocol::rest_of_head(bytes.first_chunk().expect("20 bytes are more"));
        fill(&mut *self.stream, &mut bytes[16..end])?;
        protocol::reply(&bytes[..end], self.cookie)
    }

    /// Takes in what follows the head of a part of a structured reply.
    fn chunk(&mut self, kind: ChunkKind, len: u32, reception: &mut Reception<'_, '_>) -> Result<()> {
        match (kind, &mut reception.payload) {
            (ChunkKind::None, _) if len == 0 => {}
            (ChunkKind::Error, _) if (6..=MAX_ERROR).contains(&len) => {
                let (error, words) = protocol::error_chunk(&self.take(len)?)?;
                reception.refuse(error, &words);
            }
            (ChunkKind::Data, Payload::Read(_)) if len > 8 => {
                let offset = BigEndian::read_u64(&self.take(8)?);
                let part = reception.range(offset, len - 8)?;
                fill(&mut *self.stream, part)?;
            }
            (ChunkKind::Hole, Payload::Read(_)) if len == 12 => {
                let bytes = self.take(len)?;
                let part = reception.range(BigEndian::read_u64(&bytes), BigEndian::read_u32(&bytes[8..]))?;
                part.fill(0);
            }
            (ChunkKind::BlockStatus, Payload::Status(runs)) if len <= MAX_BLOCK_STATUS && runs.is_empty() => {
                let bytes = self.take(len)?;
                let context = self
                    .context
                    .ok_or_else(|| violation("a block status came unasked"))?;
                **runs = protocol::block_status(&bytes, context)?;
            }
            (kind, _) => {
                let what = format!("a part of a reply ({kind:?}, {len} bytes) is out of place");
                return Err(violation(what));
            }
        }
        Ok(())
    }

    /// The next bytes, few enough to be kept.
    fn take(&mut self, len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        fill(&mut *self.stream, &mut bytes)?;
        Ok(bytes)
    }
}

/// Reads all of `buf`.
pub(crate) fn fill(stream: &mut dyn Stream, buf: &mut [u8]) -> Result<()> {
    stream.read_exact(buf).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Io, "the server closed the connection"),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Error::new(
            ErrorKind::Io,
            format!("no answer within {} seconds", PATIENCE.as_secs()),
        ),
        _ => Error::io("receive from the server", error),
    })
}

/// A reply that is being taken in.
struct Reception<'r, 'b> {
    request: &'r Request,
    payload: Payload<'b>,
    /// How many bytes of a read have come.
    filled: usize,
    refusal: Option<Error>,
}

impl Reception<'_, '_> {
    /// The place of `len` bytes that belong at `offset` of the export.
    fn range(&mut self, offset: u64, len: u32) -> Result<&mut [u8]> {
        let Payload::Read(buf) = &mut self.payload else {
            return Err(violation("data came unasked"));
        };
        let whole = buf.len();
        let start = offset.checked_sub(self.request.offset);
        let range = start.and_then(|start| {
            buf.get_mut(usize::try_from(start).ok()?..)?
                .get_mut(..len as usize)
        });
        // Parts do not overlap, so together they are no longer than the whole.
        let filled = self.filled + len as usize;
        let range = range.filter(|_| filled <= whole).ok_or_else(|| {
            let Request {
                offset: from,
                len: asked,
                ..
            } = self.request;
            violation(format!(
                "{len} bytes at {offset} came for a read of {asked} at {from}"
            ))
        })?;
        self.filled = filled;
        Ok(range)
    }

    /// Keeps the first refusal of the request.
    fn refuse(&mut self, error: u32, words: &str) {
        self.refusal.get_or_insert_with(|| {
            let verb = self.request.command.verb();
            let message = match words {
                "" => format!("{verb}: refused by the server"),
                words => format!("{verb}: refused by the server ({words})"),
            };
            // The numbers of the protocol are Linux's; one that it does not have stands for EINVAL.
            let number = match error {
                1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => error.cast_signed(),
                _ => 22,
            };
            let cause = std::io::Error::from_raw_os_error(number);
            Error::io(message, cause).with_offset(self.request.offset)
        });
    }

    fn end(self) -> Result<(), Failure> {
        let problem = match (self.refusal, &self.payload) {
            (Some(refusal), _) => return Err(Failure::Refused(refusal)),
            (None, Payload::Read(buf)) if self.filled != buf.len() => {
                format!("a read of {} bytes got {}", buf.len(), self.filled)
            }
            (None, Payload::Status(runs)) if runs.is_empty() => "a block status holds nothing".to_owned(),
            (None, _) => return Ok(()),
        };
        Err(Failure::Broken(violation(problem)))
    }
}
