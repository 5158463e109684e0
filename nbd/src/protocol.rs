//! The messages of the protocol, as bytes. All numbers are big-endian (`doc/proto.md` of the nbd project).

use block::{Error, ErrorKind, Result};
use byteorder::{BigEndian, ByteOrder};

/// The first bytes of a server.
pub(crate) const SERVER_MAGIC: &[u8; 8] = b"NBDMAGIC";
/// The second of one that speaks newstyle, and the first of each option.
pub(crate) const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
/// The second of one that speaks oldstyle.
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;

const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same for both sides.
pub(crate) const FIXED_NEWSTYLE: u16 = 1;
pub(crate) const NO_ZEROES: u16 = 1 << 1;

/// Options of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum HandshakeOption {
    ExportName = 1,
    Go = 7,
    StructuredReply = 8,
    SetMetaContext = 10,
}

/// What is asked for in [`HandshakeOption::Go`], and what the answers to it are about.
pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportFlags(pub(crate) u16);

impl ExportFlags {
    fn has(self, bit: u32) -> bool {
        // Bit 0 says that the others mean anything.
        self.0 & 1 != 0 && self.0 & 1 << bit != 0
    }

    pub(crate) fn read_only(self) -> bool {
        self.has(1)
    }

    pub(crate) fn flush(self) -> bool {
        self.has(2)
    }

    pub(crate) fn trim(self) -> bool {
        self.has(5)
    }

    pub(crate) fn write_zeroes(self) -> bool {
        self.has(6)
    }

    pub(crate) fn several_connections(self) -> bool {
        self.has(8)
    }
}

/// What comes back for an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OptionReply {
    Ack,
    Info,
    MetaContext,
    Error(u32),
    Other(u32),
}

pub(crate) const ERROR_UNSUPPORTED: u32 = 1 << 31 | 1;
pub(crate) const ERROR_POLICY: u32 = 1 << 31 | 2;
pub(crate) const ERROR_TLS_REQUIRED: u32 = 1 << 31 | 5;
pub(crate) const ERROR_UNKNOWN_EXPORT: u32 = 1 << 31 | 6;
pub(crate) const ERROR_SHUTDOWN: u32 = 1 << 31 | 7;

/// The header of an option with `len` bytes of data.
pub(crate) fn option_header(option: HandshakeOption, len: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(OPTION_MAGIC);
    BigEndian::write_u32(&mut bytes[8..], option as u32);
    BigEndian::write_u32(&mut bytes[12..], len);
    bytes
}

/// The reply to `option`, and the length of its data.
pub(crate) fn option_reply(bytes: &[u8; 20], option: HandshakeOption) -> Result<(OptionReply, u32)> {
    let magic = BigEndian::read_u64(bytes);
    let to = BigEndian::read_u32(&bytes[8..]);
    if magic != OPTION_REPLY_MAGIC || to != option as u32 {
        return Err(violation(format!(
            "the reply to option {} starts with {magic:#x}, for option {to}",
            option as u32
        )));
    }
    let reply = match BigEndian::read_u32(&bytes[12..]) {
        1 => OptionReply::Ack,
        3 => OptionReply::Info,
        4 => OptionReply::MetaContext,
        error if error >> 31 == 1 => OptionReply::Error(error),
        other => OptionReply::Other(other),
    };
    Ok((reply, BigEndian::read_u32(&bytes[16..])))
}

/// What is asked of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

impl Command {
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "discard",
            Self::WriteZeroes => "write zeros",
            Self::BlockStatus => "ask for holes",
        }
    }
}

/// Of [`Command::WriteZeroes`]: keep the room.
pub(crate) const NO_HOLE: u16 = 1 << 1;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    pub(crate) fn encode(&self, cookie: u64) -> [u8; 28] {
        let mut bytes = [0; 28];
        BigEndian::write_u32(&mut bytes, REQUEST_MAGIC);
        BigEndian::write_u16(&mut bytes[4..], self.flags);
        BigEndian::write_u16(&mut bytes[6..], self.command as u16);
        BigEndian::write_u64(&mut bytes[8..], cookie);
        BigEndian::write_u64(&mut bytes[16..], self.offset);
        BigEndian::write_u32(&mut bytes[24..], self.len);
        bytes
    }
}

/// What a part of a structured reply holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    None,
    Data,
    Hole,
    BlockStatus,
    /// Any of the errors.
    Error,
}

/// The head of what comes back for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// All of it, with the data following where it was read and there is no error.
    Simple { error: u32 },
    /// A part of it, with `len` bytes following.
    Chunk { kind: ChunkKind, last: bool, len: u32 },
}

/// How many bytes more the head of a reply has after its first 16.
pub(crate) fn rest_of_head(start: &[u8; 16]) -> usize {
    if BigEndian::read_u32(start) == STRUCTURED_REPLY_MAGIC {
        4
    } else {
        0
    }
}

/// Reads the head of a reply: 16 bytes of a simple one, 20 of a structured one.
pub(crate) fn reply(bytes: &[u8], cookie: u64) -> Result<Reply> {
    let (reply, to) = match (BigEndian::read_u32(bytes), bytes.len()) {
        (SIMPLE_REPLY_MAGIC, 16) => {
            let error = BigEndian::read_u32(&bytes[4..]);
            (Reply::Simple { error }, BigEndian::read_u64(&bytes[8..]))
        }
        (STRUCTURED_REPLY_MAGIC, 20) => {
            let kind = match BigEndian::read_u16(&bytes[6..]) {
                0 => ChunkKind::None,
                1 => ChunkKind::Data,
                2 => ChunkKind::Hole,
                5 => ChunkKind::BlockStatus,
                kind if kind >> 15 == 1 => ChunkKind::Error,
                kind => {
                    return Err(violation(format!(
                        "a part of a reply is of the unknown kind {kind}"
                    )));
                }
            };
            let last = bytes[5] & 1 != 0;
            let len = BigEndian::read_u32(&bytes[16..]);
            (Reply::Chunk { kind, last, len }, BigEndian::read_u64(&bytes[8..]))
        }
        (magic, _) => return Err(violation(format!("a reply starts with {magic:#010x}"))),
    };
    if to != cookie {
        return Err(violation(format!("the reply is to request {to}, not {cookie}")));
    }
    Ok(reply)
}

/// A run in the context `base:allocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) len: u32,
    /// It reads as zeros.
    pub(crate) zero: bool,
}

/// The runs in the data of a block status chunk, for the context `context`.
pub(crate) fn block_status(bytes: &[u8], context: u32) -> Result<Vec<Allocation>> {
    let runs = bytes
        .get(4..)
        .filter(|runs| !runs.is_empty() && runs.len().is_multiple_of(8));
    let Some(runs) = runs else {
        return Err(violation(format!("a block status has {} bytes", bytes.len())));
    };
    if BigEndian::read_u32(bytes) != context {
        return Err(violation("a block status is in a context that was not asked for"));
    }
    let runs = runs.chunks_exact(8).map(|run| Allocation {
        len: BigEndian::read_u32(run),
        zero: BigEndian::read_u32(&run[4..]) & 2 != 0,
    });
    let runs: Vec<_> = runs.collect();
    if runs.iter().any(|run| run.len == 0) {
        return Err(violation("a block status has an empty run"));
    }
    Ok(runs)
}

/// The number and the words of an error chunk.
pub(crate) fn error_chunk(bytes: &[u8]) -> Result<(u32, String)> {
    let words = bytes.get(4..6).map(|len| usize::from(BigEndian::read_u16(len)));
    let words = words.and_then(|len| bytes.get(6..6 + len));
    let Some(words) = words else {
        return Err(violation(format!("an error has {} bytes", bytes.len())));
    };
    let words = block::escape(&String::from_utf8_lossy(words)).into_owned();
    Ok((BigEndian::read_u32(bytes), words))
}

/// The server does not keep to the protocol.
pub(crate) fn violation(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("the server does not keep to the NBD protocol: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_to_another_request_is_refused() {
        let mut bytes = [0; 16];
        BigEndian::write_u32(&mut bytes, SIMPLE_REPLY_MAGIC);
        BigEndian::write_u64(&mut bytes[8..], 7);
        assert_eq!(reply(&bytes, 7).unwrap(), Reply::Simple { error: 0 });
        assert!(
            reply(&bytes, 8)
                .unwrap_err()
                .to_string()
                .contains("request 7, not 8")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64), context: u32) {
            let _ = block_status(&bytes, context);
            let _ = error_chunk(&bytes);
            if bytes.len() >= 20 {
                let _ = reply(&bytes[..16], 0);
                let _ = reply(&bytes[..20], 0);
                let _ = option_reply(bytes[..20].try_into().unwrap(), HandshakeOption::Go);
            }
        }

        #[test]
        fn a_chunk_is_what_it_says(kind in prop::sample::select(vec![0u16, 1, 2, 5, 0x8001]), len: u32, cookie: u64) {
            let mut bytes = [0; 20];
            BigEndian::write_u32(&mut bytes, STRUCTURED_REPLY_MAGIC);
            BigEndian::write_u16(&mut bytes[4..], 1);
            BigEndian::write_u16(&mut bytes[6..], kind);
            BigEndian::write_u64(&mut bytes[8..], cookie);
            BigEndian::write_u32(&mut bytes[16..], len);
            let Reply::Chunk { last: true, len: read, .. } = reply(&bytes, cookie).unwrap() else { panic!() };
            prop_assert_eq!(read, len);
        }
    }
}
