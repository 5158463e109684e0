//! Any bytes as what a server of NBD says: every call ends with an error or with what was asked for, without a panic or a large
//! allocation.
//!
//! The first byte says whether they come at once, or behind a sound handshake as answers to requests.
#![no_main]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use block::{Access, Storage};
use libfuzzer_sys::fuzz_target;
use nbd::{Address, Export, Server};

/// What the server says.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Extents that are asked for at most: an export may have more than anybody has time for.
const MAX_EXTENTS: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    static SERVER: OnceLock<Address> = OnceLock::new();
    let address = SERVER.get_or_init(start);
    *SAID.lock().expect("nobody panics with it") = bytes.to_vec();
    let Ok(export) = Export::open(address, Access::WRITE) else {
        return;
    };
    let len = export.len().unwrap_or(0);
    let mut buf = [1; 512];
    let _ = export.read_exact_at(&mut buf, 4096);
    let mut offset = 0;
    for _ in 0..MAX_EXTENTS {
        let rest = len.saturating_sub(offset);
        if rest == 0 {
            break;
        }
        let Ok(extent) = export.host_extent(offset, rest) else {
            break;
        };
        assert!(extent.len > 0 && extent.len <= rest, "{extent:?}");
        offset += extent.len;
    }
    let _ = export.write_all_at(&[7; 700], 0);
    let _ = export.sync_data();
});

/// Starts the server, which runs as long as the program.
fn start() -> Address {
    let socket = std::env::temp_dir().join(format!("fuzz-nbd-{}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let bytes = Arc::new(SAID.lock().expect("nobody panics with it").clone());
            // The client may hang up at any time.
            thread::spawn(move || {
                let _ = serve(&mut stream, &bytes);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = io::copy(&mut stream, &mut io::sink());
            });
        }
    });
    Address::new(Server::Unix(socket), String::new(), "nbd:fuzz").expect("an address")
}

fn serve(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    match bytes.split_first() {
        Some((0, bytes)) => {
            shake(stream)?;
            stream.write_all(bytes)
        }
        Some((_, bytes)) => stream.write_all(bytes),
        None => Ok(()),
    }
}

/// A sound handshake: structured replies, the context of holes as number 1, an export of 1 MiB.
fn shake(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        for number in [option, kind, data.len() as u32] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(data);
        bytes
    };
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        stream.read_exact(&mut vec![0; number(12) as usize])?;
        match number(8) {
            8 => stream.write_all(&reply(8, 1, &[]))?,
            10 => {
                stream.write_all(&reply(10, 4, b"\0\0\0\x01base:allocation"))?;
                stream.write_all(&reply(10, 1, &[]))?;
            }
            _ => {
                stream.write_all(&reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x65"))?;
                return stream.write_all(&reply(7, 1, &[]));
            }
        }
    }
}
