//! Where an export is: NBD URIs (`doc/uri.md` of the nbd project), and the older names of QEMU.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use block::{Error, Result};

/// The port of servers whose address names none.
const PORT: u16 = 10809;

/// A longer export name is refused by the protocol.
const MAX_NAME: usize = 4096;

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// By TCP.
    Tcp {
        /// Its name or address, without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// By a socket in the filesystem.
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(&block::escape(&path.to_string_lossy())),
        }
    }
}

/// An export of a server.
///
/// ```
/// use nbd::{Address, Server};
///
/// let address = Address::parse("nbd://[::1]/root%20disk")?;
/// assert_eq!(address.server(), &Server::Tcp { host: "::1".into(), port: 10809 });
/// assert_eq!(address.export(), "root disk");
/// # Ok::<(), block::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    server: Server,
    export: String,
    text: String,
}

impl Address {
    /// Whether `text` is the name of an export and not of a file.
    pub fn names_one(text: &str) -> bool {
        ["nbd://", "nbd+tcp://", "nbd+unix://", "nbds://", "nbds+unix://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    /// Reads `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.
    ///
    /// # Errors
    /// `InvalidInput`, with what is wrong; `Unsupported` for TLS.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |what: &str| {
            let error = Error::invalid(format!("not an NBD address: {what}")).with_path(text);
            error.with_hint("as in nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse("no ://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(export).ok_or_else(|| refuse("the export's name is wrongly escaped"))?;
        let server = match scheme {
            "nbd" | "nbd+tcp" => tcp(authority).map_err(refuse)?,
            "nbd+unix" if authority.is_empty() => Server::Unix(socket(query).map_err(refuse)?),
            "nbd+unix" => return Err(refuse("a socket's address starts with three slashes")),
            "nbds" | "nbds+tcp" | "nbds+unix" => {
                let error = Error::unsupported("NBD over TLS is not supported").with_path(text);
                return Err(error.with_hint("use a tunnel, such as ssh -L, or a socket on this machine"));
            }
            _ => return Err(refuse("the scheme is nbd or nbd+unix")),
        };
        Self::new(server, export, text)
    }

    /// Reads what QEMU takes besides: `nbd:HOST:PORT[:exportname=EXPORT]` or `nbd:unix:PATH[:exportname=EXPORT]`.
    ///
    /// # Errors
    /// `InvalidInput`, with what is wrong.
    pub fn parse_colons(text: &str) -> Result<Self> {
        let refuse = |what: &str| Error::invalid(format!("not an NBD address: {what}")).with_path(text);
        let rest = text
            .strip_prefix("nbd:")
            .ok_or_else(|| refuse("no nbd: at its start"))?;
        let (server, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
        let server = match server.strip_prefix("unix:") {
            Some("") => return Err(refuse("the socket has no name")),
            Some(path) => Server::Unix(path.into()),
            None => tcp(server).map_err(refuse)?,
        };
        Self::new(server, export.to_owned(), text)
    }

    /// The export called `export` (mostly empty: the default one) of a server.
    ///
    /// # Errors
    /// `InvalidInput` for a name that the protocol cannot carry. `text` is the address as messages are to tell it.
    pub fn new(server: Server, export: String, text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if export.len() > MAX_NAME {
            return Err(Error::invalid("an export's name has 4096 bytes at most").with_path(text));
        }
        Ok(Self { server, export, text })
    }

    /// How the server is reached.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The export's name.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The address as it was given.
    pub fn path(&self) -> &Path {
        Path::new(&self.text)
    }
}

/// `HOST`, `HOST:PORT`, `[HOST]:PORT`, or none of it for this machine.
fn tcp(authority: &str) -> std::result::Result<Server, &'static str> {
    if authority.contains('@') {
        return Err("NBD has no users");
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or("a bracket is not closed")?;
        if !port.is_empty() && !port.starts_with(':') {
            return Err("something other than a port follows the bracket");
        }
        (host, port.trim_start_matches(':'))
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    let port = match port {
        "" => PORT,
        port => port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or("the port is a number of 1 to 65535")?,
    };
    let host = match host {
        "" => "localhost".to_owned(),
        host => decode(host).ok_or("the host's name is wrongly escaped")?,
    };
    Ok(Server::Tcp { host, port })
}

/// The path in `socket=PATH`.
fn socket(query: &str) -> std::result::Result<PathBuf, &'static str> {
    let mut path = None;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("socket", value)) => path = decode(value).filter(|path| !path.is_empty()),
            _ => return Err("the only parameter is socket=PATH"),
        }
    }
    path.map(Into::into).ok_or("it names no socket (?socket=PATH)")
}

/// `text` with `%41` read as `A`; `None` where that fails, or gives a NUL or what is no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = match first {
            b'%' => {
                let digits = after
                    .get(..2)
                    .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
                let digits = std::str::from_utf8(digits).ok()?;
                (u8::from_str_radix(digits, 16).ok()?, &after[2..])
            }
            byte => (byte, after),
        };
        bytes.push(Some(byte).filter(|&byte| byte != 0)?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Cow<'_, str> = block::escape(&self.text);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let address = Address::parse(text).unwrap();
        (address.server().to_string(), address.export().to_owned())
    }

    fn refused(text: &str) -> String {
        Address::parse(text).unwrap_err().message().to_owned()
    }

    #[test]
    fn uris_name_server_and_export() {
        let pair = |server: &str, export: &str| (server.to_owned(), export.to_owned());
        assert_eq!(parsed("nbd://host"), pair("host:10809", ""));
        assert_eq!(parsed("nbd://host:99/"), pair("host:99", ""));
        assert_eq!(parsed("nbd:///a/b"), pair("localhost:10809", "a/b"));
        assert_eq!(parsed("nbd+tcp://[fe80::1]:5/a%2Fb"), pair("[fe80::1]:5", "a/b"));
        assert_eq!(parsed("nbd+unix:///x?socket=/run/a%3Fb"), pair("/run/a?b", "x"));
        assert_eq!(parsed("nbd+unix://?socket=rel"), pair("rel", ""));
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        assert!(refused("nbd+unix:///x").contains("names no socket"));
        assert!(refused("nbd+unix:///x?socket=").contains("names no socket"));
        assert!(refused("nbd+unix://host/x?socket=/a").contains("three slashes"));
        assert!(refused("nbd://host:0/x").contains("1 to 65535"));
        assert!(refused("nbd://host:70000/x").contains("1 to 65535"));
        assert!(refused("nbd://[::1/x").contains("bracket"));
        assert!(refused("nbd://[::1]9/x").contains("bracket"));
        assert!(refused("nbd://user@host/x").contains("users"));
        assert!(refused("nbd://host/%zz").contains("escaped"));
        assert!(refused("nbd://host/%00").contains("escaped"));
        assert!(refused("nbds://host/x").contains("TLS"));
        assert!(refused("http://host/x").contains("scheme"));
    }

    #[test]
    fn the_older_names_are_read_too() {
        let address = Address::parse_colons("nbd:unix:/run/s:exportname=a b").unwrap();
        assert_eq!(address.server(), &Server::Unix("/run/s".into()));
        assert_eq!(address.export(), "a b");
        let address = Address::parse_colons("nbd:host:1234").unwrap();
        assert_eq!(
            (address.server().to_string().as_str(), address.export()),
            ("host:1234", "")
        );
        assert!(Address::parse_colons("nbd:unix:").is_err());
    }

    proptest! {
        #[test]
        fn no_address_is_too_odd(text in ".*") {
            let _ = Address::parse(&text);
            let _ = Address::parse(&format!("nbd://{text}"));
            let _ = Address::parse(&format!("nbd+unix://{text}"));
            let _ = Address::parse_colons(&format!("nbd:{text}"));
        }
    }
}
