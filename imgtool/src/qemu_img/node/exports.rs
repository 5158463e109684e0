//! Exports of NBD servers, as names and options say them.

use std::error::Error as _;
use std::sync::Arc;

use block::{Access, ErrorKind};
use nbd::{Address, Export, Server};

use super::super::json::Object;
use super::super::refusal::{Refusal, reason};
use super::{Flags, Node, NodeOptions};

/// The port of NBD.
const PORT: u16 = 10809;

/// Opens what a name, or `server.*` and `export`, say.
pub(super) fn open(mut options: NodeOptions, flags: Flags) -> Result<Node, Refusal> {
    let address = address(&mut options)?;
    super::ignore(&mut options, &["reconnect-delay", "open-timeout"]);
    if let Some(left) = options.first() {
        return Err(Refusal::new(format!(
            "Block protocol 'nbd' doesn't support the option '{left}'"
        )));
    }
    let access = Access {
        write: flags.write,
        force_share: false,
    };
    let export = Export::open(&address, access).map_err(|error| match error.kind() {
        // What the server says is no error of the host.
        ErrorKind::Io if error.source().is_none() => refused(error.message()),
        ErrorKind::Io => {
            let server = match address.server() {
                Server::Tcp { host, port } => format!("{host}:{port}"),
                Server::Unix(path) => path.to_string_lossy().into_owned(),
            };
            Refusal::new(format!("Failed to connect to '{server}': {}", reason(&error)))
        }
        _ => Refusal::new(error.message().to_owned()),
    })?;
    // In a sandbox there is no other time.
    export.connect_ahead();
    let mut shown = Object::default();
    shown.insert("driver", "nbd");
    Ok(Node {
        storage: Arc::new(export),
        data: None,
        driver: "nbd",
        exact: Some(name(&address)),
        options: shown,
        directory: None,
        child: None,
        disk: None,
    })
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

fn address(options: &mut NodeOptions) -> Result<Address, Refusal> {
    let wrong = |error: block::Error| Refusal::new(error.message().to_owned());
    if let Some(name) = options.take("filename") {
        let parsed = if Address::names_one(&name) {
            Address::parse(&name)
        } else {
            Address::parse_colons(&name)
        };
        return parsed.map_err(wrong);
    }
    // An older way of saying it has no server.
    let mut server = options.take_node("server");
    for key in ["host", "port", "path"] {
        if let Some(value) = options.take(key) {
            server.set_default(key, &value);
        }
    }
    server.take("type");
    let server = match (server.take("path"), server.take("host")) {
        (Some(path), None) => Server::Unix(path.into()),
        (None, Some(host)) => Server::Tcp {
            host,
            port: match server.take("port") {
                None => PORT,
                Some(port) => port
                    .parse()
                    .map_err(|_| Refusal::new(format!("Invalid port '{port}'")))?,
            },
        },
        _ => return Err(Refusal::new("NBD server address missing")),
    };
    let export = options.take("export").unwrap_or_default();
    Address::new(server, export, "").map_err(wrong)
}

/// The name of an export that says everything.
fn name(address: &Address) -> String {
    let export = address.export();
    match address.server() {
        Server::Tcp { .. } if export.is_empty() => format!("nbd://{}", address.server()),
        Server::Tcp { .. } => format!("nbd://{}/{export}", address.server()),
        Server::Unix(path) if export.is_empty() => format!("nbd+unix://?socket={}", path.display()),
        Server::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
    }
}
