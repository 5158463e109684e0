//! The handshake: what both sides can do, and which export is meant.

use block::{Error, ErrorKind, Result};
use byteorder::{BigEndian, ByteOrder};

use crate::Address;
use crate::connection::{Connection, Stream, connect, fill};
use crate::protocol::{
    self, ExportFlags, FIXED_NEWSTYLE, HandshakeOption, INFO_BLOCK_SIZE, INFO_EXPORT, NO_ZEROES,
    OPTION_MAGIC, OptionReply, SERVER_MAGIC, violation,
};

/// The longest reply to an option that is read: more than the texts of the protocol come to.
const MAX_REPLY: u32 = 64 << 10;

/// As many replies to one option as are read: more than a server has to say.
const MAX_REPLIES: usize = 64;

/// The largest block that an export may insist on, by the protocol.
const MAX_MIN_BLOCK: u32 = 64 << 10;

/// What clients may send at once where nothing is said.
const DEFAULT_MAX_BLOCK: u32 = 32 << 20;

/// The context that tells holes.
const ALLOCATION: &str = "base:allocation";

/// What the server says of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExportInfo {
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) flags: ExportFlags,
    /// What offsets and lengths must be multiples of: a power of two.
    pub(crate) min_block: u32,
    /// As many bytes as one request may move: a multiple of `min_block`.
    pub(crate) max_block: u32,
}

impl ExportInfo {
    fn new(size: u64, flags: u16) -> Result<Self> {
        if i64::try_from(size).is_err() {
            return Err(violation(format!("an export of {size} bytes")));
        }
        Ok(Self {
            size,
            flags: ExportFlags(flags),
            min_block: 1,
            max_block: DEFAULT_MAX_BLOCK,
        })
    }

    /// Takes in the sizes of blocks that the server tells.
    fn with_blocks(mut self, min: u32, max: u32) -> Result<Self> {
        if !min.is_power_of_two() || min > MAX_MIN_BLOCK || max < min {
            return Err(violation(format!("blocks of {min} to {max} bytes")));
        }
        self.min_block = min;
        self.max_block = max.min(DEFAULT_MAX_BLOCK) & !(min - 1);
        Ok(self)
    }
}

/// Connects to an export.
pub(crate) fn open(address: &Address) -> Result<(Connection, ExportInfo)> {
    let mut stream = connect(address)?;
    let no_zeroes = greet(&mut *stream)?;
    let mut handshake = Handshake { stream, address };
    let context = handshake.ask_for_holes()?;
    let info = match handshake.go()? {
        Some(info) => info,
        None => handshake.export_name(no_zeroes)?,
    };
    Ok((Connection::new(handshake.stream, context)?, info))
}

/// The first words of both sides. Gives whether padding is left out.
fn greet(stream: &mut dyn Stream) -> Result<bool> {
    let mut magic = [0; 16];
    fill(stream, &mut magic)?;
    if &magic[..8] != SERVER_MAGIC {
        return Err(Error::new(ErrorKind::Io, "this is no NBD server"));
    }
    if BigEndian::read_u64(&magic[8..]) == protocol::OLDSTYLE_MAGIC {
        return Err(Error::unsupported(
            "the server speaks only the oldstyle NBD protocol",
        ));
    }
    let mut flags = [0; 2];
    fill(stream, &mut flags)?;
    let flags = BigEndian::read_u16(&flags);
    if &magic[8..] != OPTION_MAGIC {
        return Err(violation("it starts with an unknown magic number"));
    }
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Error::unsupported(
            "the server speaks only the unfixed newstyle NBD protocol",
        ));
    }
    let ours = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES));
    send(stream, &ours.to_be_bytes())?;
    Ok(flags & NO_ZEROES != 0)
}

fn send(stream: &mut dyn Stream, bytes: &[u8]) -> Result<()> {
    let sent = stream.write_all(bytes);
    sent.map_err(|error| Error::io("send to the server", error))
}

struct Handshake<'a> {
    stream: Box<dyn Stream>,
    address: &'a Address,
}

impl Handshake<'_> {
    /// Asks for structured replies and, where they are given, for the context that tells holes.
    fn ask_for_holes(&mut self) -> Result<Option<u32>> {
        self.option(HandshakeOption::StructuredReply, &[])?;
        if !matches!(
            self.reply(HandshakeOption::StructuredReply)?,
            (OptionReply::Ack, _)
        ) {
            return Ok(None);
        }
        let mut data = self.name();
        data.extend(1u32.to_be_bytes());
        data.extend((ALLOCATION.len() as u32).to_be_bytes());
        data.extend(ALLOCATION.as_bytes());
        self.option(HandshakeOption::SetMetaContext, &data)?;
        let mut context = None;
        for _ in 0..MAX_REPLIES {
            match self.reply(HandshakeOption::SetMetaContext)? {
                (OptionReply::MetaContext, data) if data.len() > 4 => {
                    if &data[4..] == ALLOCATION.as_bytes() {
                        context = Some(BigEndian::read_u32(&data));
                    }
                }
                (OptionReply::Ack, _) => return Ok(context),
                (OptionReply::Error(_), _) => return Ok(None),
                (reply, _) => return Err(violation(format!("{reply:?} as the reply to a context"))),
            }
        }
        Err(violation("too many contexts"))
    }

    /// Asks for the export; `None` from a server that does not know how.
    fn go(&mut self) -> Result<Option<ExportInfo>> {
        let mut data = self.name();
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.option(HandshakeOption::Go, &data)?;
        let mut export = None;
        let mut blocks = None;
        for _ in 0..MAX_REPLIES {
            match self.reply(HandshakeOption::Go)? {
                (OptionReply::Info, data) => match data.get(..2).map(BigEndian::read_u16) {
                    Some(INFO_EXPORT) if data.len() == 12 => {
                        export = Some(ExportInfo::new(
                            BigEndian::read_u64(&data[2..]),
                            BigEndian::read_u16(&data[10..]),
                        )?);
                    }
                    Some(INFO_BLOCK_SIZE) if data.len() == 14 => {
                        blocks = Some((BigEndian::read_u32(&data[2..]), BigEndian::read_u32(&data[10..])));
                    }
                    Some(INFO_EXPORT | INFO_BLOCK_SIZE) | None => {
                        return Err(violation(format!("an information has {} bytes", data.len())));
                    }
                    Some(_) => {}
                },
                (OptionReply::Ack, _) => {
                    let export = export.ok_or_else(|| violation("the export's size was not told"))?;
                    return match blocks {
                        Some((min, max)) => export.with_blocks(min, max).map(Some),
                        None => Ok(Some(export)),
                    };
                }
                (OptionReply::Error(protocol::ERROR_UNSUPPORTED), _) => return Ok(None),
                (OptionReply::Error(error), words) => return Err(self.refused(error, &words)),
                (reply, _) => return Err(violation(format!("{reply:?} as the reply to an export's name"))),
            }
        }
        Err(violation("too much is told of the export"))
    }

    /// Asks for the export as of old: a server that does not have it closes the connection.
    fn export_name(&mut self, no_zeroes: bool) -> Result<ExportInfo> {
        self.option(HandshakeOption::ExportName, self.address.export().as_bytes())?;
        let mut bytes = [0; 134];
        let bytes = &mut bytes[..if no_zeroes { 10 } else { 134 }];
        fill(&mut *self.stream, bytes)?;
        ExportInfo::new(BigEndian::read_u64(bytes), BigEndian::read_u16(&bytes[8..]))
    }

    /// The name of the export after its length.
    fn name(&self) -> Vec<u8> {
        let name = self.address.export().as_bytes();
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data
    }

    fn option(&mut self, option: HandshakeOption, data: &[u8]) -> Result<()> {
        let mut bytes = protocol::option_header(option, data.len() as u32).to_vec();
        bytes.extend(data);
        send(&mut *self.stream, &bytes)
    }

    fn reply(&mut self, option: HandshakeOption) -> Result<(OptionReply, Vec<u8>)> {
        let mut head = [0; 20];
        fill(&mut *self.stream, &mut head)?;
        let (reply, len) = protocol::option_reply(&head, option)?;
        if len > MAX_REPLY {
            return Err(violation(format!("a reply to an option has {len} bytes")));
        }
        let mut data = vec![0; len as usize];
        fill(&mut *self.stream, &mut data)?;
        Ok((reply, data))
    }

    /// What the server says to an export that it does not give.
    fn refused(&self, error: u32, words: &[u8]) -> Error {
        let export = match self.address.export() {
            "" => "its default export".to_owned(),
            name => format!("the export '{}'", block::escape(name)),
        };
        let message = match error {
            protocol::ERROR_UNKNOWN_EXPORT => format!("the server does not have {export}"),
            protocol::ERROR_POLICY => format!("the server's policy refuses {export}"),
            protocol::ERROR_TLS_REQUIRED => "the server insists on TLS, which is not supported".to_owned(),
            protocol::ERROR_SHUTDOWN => "the server is shutting down".to_owned(),
            error => format!("the server refuses {export} (error {error:#x})"),
        };
        let words = String::from_utf8_lossy(words);
        let message = match &*block::escape(&words) {
            "" => message,
            words => format!("{message}: {words}"),
        };
        let kind = match error {
            protocol::ERROR_TLS_REQUIRED => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        let refused = Error::new(kind, message);
        match error {
            protocol::ERROR_UNKNOWN_EXPORT => {
                refused.with_hint("`nbdinfo --list` shows the exports of a server")
            }
            _ => refused,
        }
    }
}
