//! Exports of NBD servers, as names and options say them.
//!
//! Addresses are read here and not by [`nbd`], which looks for a server on this machine and its usual port wherever none is said: scripts
//! know what QEMU refuses.

use std::error::Error as _;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use block::{Access, ErrorKind};
use nbd::{Address, Export, Server};

use super::super::json::Object;
use super::super::refusal::{Refusal, reason};
use super::common::number;
use super::{Flags, Node, NodeOptions, nothing_left};

/// The port of NBD.
const PORT: u16 = 10809;

/// What is said of an export that cannot be written to, and is to be.
pub(in super::super) const READ_ONLY: &str = "Could not open image: Permission denied";

/// Opens what a name, or `server.*` and `export`, say.
pub(super) fn open(name: Option<&str>, mut options: NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    let address = match name {
        Some(name) => of_name(name)?,
        None => of_options(&mut options)?,
    };
    number(&mut options, "reconnect-delay")?;
    number(&mut options, "open-timeout")?;
    options.take("x-dirty-bitmap");
    options.take("tls-hostname");
    if let Some(id) = options.take("tls-creds") {
        return Err(Refusal::new(format!("No TLS credentials with id '{id}'")));
    }
    let access = Access {
        write: flags.write,
        force_share: false,
    };
    let export = Export::open(&address, access).map_err(|error| words(&address, &error))?;
    // In a sandbox there is no other time.
    export.connect_ahead();
    nothing_left("nbd", &options)?;
    let mut shown = Object::default();
    shown.insert("driver", "nbd");
    Ok(Node {
        storage: Arc::new(export),
        data: None,
        driver: "nbd",
        exact: Some(shown_name(&address)),
        options: shown,
        directory: None,
        child: None,
        disk: None,
        _name: None,
    })
}

/// Why an export is not opened.
pub(in super::super) fn words(address: &Address, error: &block::Error) -> Refusal {
    match error.kind() {
        // What the server says is no error of the host.
        ErrorKind::Io if error.source().is_none() => refused(error.message()),
        ErrorKind::Io => {
            let server = match address.server() {
                Server::Tcp { host, port } => format!("{host}:{port}"),
                Server::Unix(path) => path.to_string_lossy().into_owned(),
            };
            Refusal::new(format!("Failed to connect to '{server}': {}", reason(error)))
        }
        ErrorKind::ReadOnly => Refusal::new(READ_ONLY),
        _ => Refusal::new(error.message().to_owned()),
    }
}

/// Why the server does not give an export.
fn refused(message: &str) -> Refusal {
    let Some(unknown) = message.strip_prefix("the server does not have ") else {
        return Refusal::new(message);
    };
    let refusal = Refusal::new("Requested export not available");
    match unknown.split_once(": ") {
        Some((_, words)) => refusal.with_hint(&format!("server reported: {words}")),
        None => refusal,
    }
}

/// What a URI says, or a name of the older form.
pub(in super::super) fn of_name(name: &str) -> Result<Address, Refusal> {
    let no_url = || Refusal::new("No valid URL specified");
    if name.contains("://") {
        let plain = plain_uri(name).ok_or_else(no_url)?;
        let address = Address::parse(&plain).map_err(|_| no_url())?;
        return known(address);
    }
    let Some(rest) = name.strip_prefix("nbd:") else {
        return Err(Refusal::new("File name string for NBD must start with 'nbd:'"));
    };
    let (server, export) = match rest.split_once(":exportname=") {
        Some((_, "")) => return Err(no_server()),
        Some((server, export)) => (server, export),
        None => (rest, ""),
    };
    let server = match server.strip_prefix("unix:") {
        Some(path) => Server::Unix(path.into()),
        None => of_colons(server)?,
    };
    made(server, export.to_owned())
}

fn no_server() -> Refusal {
    Refusal::new("NBD server address missing")
}

fn made(server: Server, export: String) -> Result<Address, Refusal> {
    let named = Address::new(server, export, "").map_err(|error| Refusal::new(error.message().to_owned()))?;
    // So that it can be told, and opened by.
    let uri = uri(&named);
    let (server, export) = (named.server().clone(), named.export().to_owned());
    let address =
        Address::new(server, export, uri).map_err(|error| Refusal::new(error.message().to_owned()))?;
    known(address)
}

/// A URI without what QEMU takes and makes nothing of. `None` for one that lacks a server, or that says more than there is to say.
fn plain_uri(name: &str) -> Option<String> {
    let (scheme, rest) = name.split_once("://")?;
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_start_matches('/');
    if scheme == "nbd+unix" {
        let socket = query?
            .strip_prefix("socket=")
            .filter(|path| !path.contains(['&', ';']))?;
        return authority
            .is_empty()
            .then(|| format!("{scheme}:///{path}?socket={socket}"));
    }
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let has_host = !host.is_empty() && !host.starts_with(':');
    // A port of 0 is that of NBD.
    let host = host.strip_suffix(":0").unwrap_or(host);
    (query.is_none() && has_host).then(|| format!("{scheme}://{host}/{path}"))
}

/// `HOST:PORT` or `[HOST]:PORT`.
fn of_colons(text: &str) -> Result<Server, Refusal> {
    if text.is_empty() {
        return Err(no_server());
    }
    let bracketed = text.strip_prefix('[').map(|rest| rest.split_once("]:"));
    let (parts, kind) = match bracketed {
        Some(parts) => (parts, "IPv6 address"),
        None => (text.split_once(':'), "address"),
    };
    let parts = parts.filter(|(host, port)| !port.is_empty() && (bracketed.is_none() || !host.is_empty()));
    let (host, port) = parts.ok_or_else(|| Refusal::new(format!("error parsing {kind} '{text}'")))?;
    tcp(host, port)
}

/// A server whose port is a number or, as the host has it, a service.
fn tcp(host: &str, port: &str) -> Result<Server, Refusal> {
    let unresolved = |why: &str| Refusal::new(format!("address resolution failed for {host}:{port}: {why}"));
    if host.is_empty() {
        return Err(unresolved("Name or service not known"));
    }
    let port = port
        .parse()
        .map_err(|_| unresolved("Servname not supported for ai_socktype"))?;
    Ok(Server::Tcp {
        host: host.to_owned(),
        port,
    })
}

/// An address whose server has one on the network, too.
fn known(address: Address) -> Result<Address, Refusal> {
    let Server::Tcp { host, port } = address.server() else {
        return Ok(address);
    };
    match (host.as_str(), *port).to_socket_addrs() {
        Ok(_) => Ok(address),
        Err(error) => {
            let text = error.to_string();
            // What the resolver says comes last.
            let why = text.rsplit(": ").next().unwrap_or_default();
            Err(Refusal::new(format!(
                "address resolution failed for {host}:{port}: {why}"
            )))
        }
    }
}

/// What options say.
fn of_options(options: &mut NodeOptions) -> Result<Address, Refusal> {
    let refuse = |text: &str| Err(Refusal::new(text));
    let legacy = ["path", "host", "port"].map(|key| options.take(key));
    let server = options.take_node("server");
    let server = match legacy {
        [Some(_), Some(_), _] => return refuse("path and host may not be used at the same time"),
        [Some(_), None, Some(_)] => return refuse("port may not be used without host"),
        [None, None, _] if server.is_empty() => return Err(no_server()),
        [None, None, _] => of_server(server)?,
        _ if !server.is_empty() => {
            return refuse("Cannot use 'server' and path/host/port at the same time");
        }
        [Some(path), ..] => Server::Unix(path.into()),
        [None, Some(host), port] => tcp(&host, port.as_deref().unwrap_or(&PORT.to_string()))?,
    };
    made(server, options.take("export").unwrap_or_default())
}

/// A server as an object says it.
fn of_server(mut server: NodeOptions) -> Result<Server, Refusal> {
    let mut take = |key: &str| {
        let value = server.take(key);
        value.ok_or_else(|| Refusal::new(format!("Parameter '{key}' is missing")))
    };
    let kind = take("type")?;
    let parsed = match &*kind {
        "inet" => tcp(&take("host")?, &take("port")?)?,
        "unix" => Server::Unix(take("path")?.into()),
        "vsock" | "fd" => {
            let text = format!("Servers of type '{kind}' are not supported");
            return Err(Refusal::new(text));
        }
        _ => {
            let text = format!("Parameter 'type' does not accept value '{kind}'");
            return Err(Refusal::new(text));
        }
    };
    match server.first() {
        None => Ok(parsed),
        Some(left) => Err(Refusal::new(format!("Parameter '{left}' is unexpected"))),
    }
}

/// The URI of an export.
fn uri(address: &Address) -> String {
    let export = escaped(address.export());
    match address.server() {
        server @ Server::Tcp { .. } => format!("nbd://{server}/{export}"),
        Server::Unix(path) => format!("nbd+unix:///{export}?socket={}", escaped(&path.to_string_lossy())),
    }
}

/// A text whose characters mean nothing in a URI.
fn escaped(text: &str) -> String {
    let mut uri = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(byte.into());
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri
}

/// The name of an export that says everything.
fn shown_name(address: &Address) -> String {
    let export = address.export();
    match address.server() {
        Server::Tcp { .. } if export.is_empty() => format!("nbd://{}", address.server()),
        Server::Tcp { .. } => format!("nbd://{}/{export}", address.server()),
        Server::Unix(path) if export.is_empty() => format!("nbd+unix://?socket={}", path.display()),
        Server::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Result<(String, String), String> {
        let address = of_name(name).map_err(|refusal| refusal.text().to_owned())?;
        Ok((address.server().to_string(), address.export().to_owned()))
    }

    #[test]
    fn names_are_read_in_both_forms() {
        let pair = |server: &str, export: &str| Ok((server.to_owned(), export.to_owned()));
        assert_eq!(
            parsed("nbd://u@127.0.0.1:0//a%20b#c"),
            pair("127.0.0.1:10809", "a b")
        );
        assert_eq!(parsed("nbd+unix:///x?socket=/s"), pair("/s", "x"));
        assert_eq!(parsed("nbd:[::1]:9"), pair("[::1]:9", ""));
        assert_eq!(
            parsed("nbd:127.0.0.1:9:exportname=a?b"),
            pair("127.0.0.1:9", "a?b")
        );
        assert_eq!(parsed("nbd:unix:/a:b"), pair("/a:b", ""));
    }

    #[test]
    fn an_address_is_told_as_it_is_read() {
        for name in [
            "nbd:127.0.0.1:9:exportname=a?b%#/c",
            "nbd:unix:/a b?c:exportname=x",
        ] {
            let address = of_name(name).unwrap();
            let again = of_name(&address.path().to_string_lossy()).unwrap();
            assert_eq!(
                (again.server(), again.export()),
                (address.server(), address.export())
            );
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for (name, why) in [
            ("nbd://", "No valid URL specified"),
            ("nbd://:1/x", "No valid URL specified"),
            ("nbd://127.0.0.1/x?y", "No valid URL specified"),
            ("nbd+unix:///x", "No valid URL specified"),
            ("nbd:", "NBD server address missing"),
            ("nbd:host", "error parsing address 'host'"),
            ("nbd:[::1]", "error parsing IPv6 address '[::1]'"),
            ("nbd+unix:x", "File name string for NBD must start with 'nbd:'"),
        ] {
            assert_eq!(parsed(name).unwrap_err(), why, "{name}");
        }
    }
}
