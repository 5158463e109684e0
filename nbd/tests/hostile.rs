//! Servers that do not keep to the protocol: an error each time, never a panic, an endless wait or a large allocation.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use block::{Access, Result, Storage};
use nbd::{Address, Export, Server};
use proptest::prelude::*;

/// Has a server say what `serve` says, and gives what `client` makes of it.
fn against<T>(
    serve: impl FnOnce(&mut UnixStream) -> std::io::Result<()> + Send,
    client: impl FnOnce(Address) -> T,
) -> T {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let address = Address::new(Server::Unix(socket), String::new(), "nbd:test").unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The client may hang up at any time.
            let _ = serve(&mut stream);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        client(address)
    })
}

/// A sound handshake: structured replies, the context of holes as number 1, an export of 1 MiB.
fn shake(stream: &mut UnixStream) -> std::io::Result<()> {
    shake_with(stream, [1, 1])
}

/// As [`shake`], with so many replies that name a context, and that tell of the export, before the last one to each.
fn shake_with(stream: &mut UnixStream, [contexts, facts]: [usize; 2]) -> std::io::Result<()> {
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
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        stream.read_exact(&mut vec![0; len as usize])?;
        match option {
            8 => stream.write_all(&reply(8, 1, &[]))?,
            10 => {
                stream.write_all(&reply(10, 4, b"\0\0\0\x01base:allocation").repeat(contexts))?;
                stream.write_all(&reply(10, 1, &[]))?;
            }
            _ => {
                let fact = reply(7, 3, b"\0\0\0\0\0\0\0\x10\0\0\0\x65");
                stream.write_all(&fact.repeat(facts))?;
                return stream.write_all(&reply(7, 1, &[]));
            }
        }
    }
}

#[test]
fn a_server_is_listened_to_for_64_replies_to_a_question() {
    for (replies, says) in [
        ([63, 63], None),
        ([64, 1], Some("too many contexts")),
        ([1, 64], Some("too much is told of the export")),
    ] {
        let opened = against(
            |stream| shake_with(stream, replies),
            |address| Export::open(&address, Access::READ).map(drop),
        );
        match says {
            None => opened.unwrap(),
            Some(says) => {
                let error = opened.unwrap_err().to_string();
                assert!(error.contains(says), "{error}");
            }
        }
    }
}

/// Has the server answer the first request with `reply`, in which its cookie is 1.
fn answered<T>(reply: &[u8], ask: impl FnOnce(&Export) -> Result<T>) -> Result<T> {
    let serve = |stream: &mut UnixStream| {
        shake(stream)?;
        stream.read_exact(&mut [0; 28])?;
        stream.write_all(reply)
    };
    against(serve, |address| {
        ask(&Export::open(&address, Access::WRITE).unwrap())
    })
}

/// The head of a chunk of a structured reply.
fn chunk(last: bool, kind: u16, len: u32) -> Vec<u8> {
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(u16::from(last).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1_u64.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn read_512(export: &Export) -> Result<[u8; 512]> {
    let mut buf = [0; 512];
    export.read_exact_at(&mut buf, 4096).map(|()| buf)
}

fn data(last: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut all = chunk(last, 1, 8 + bytes.len() as u32);
    all.extend(offset.to_be_bytes());
    all.extend(bytes);
    all
}

#[test]
fn a_read_in_parts_and_holes_is_put_together() {
    let mut hole = chunk(true, 2, 12);
    hole.extend(4096_u64.to_be_bytes());
    hole.extend(500_u32.to_be_bytes());
    let reply = [data(false, 4596, &[7; 12]), hole].concat();
    let bytes = answered(&reply, read_512).unwrap();
    assert_eq!((&bytes[..500], &bytes[500..]), (&[0; 500][..], &[7; 12][..]));
}

#[test]
fn data_that_was_not_asked_for_is_refused() {
    let cases = [
        (
            data(true, 0, &[1; 512]),
            "512 bytes at 0 came for a read of 512 at 4096",
        ),
        (data(true, u64::MAX, &[1; 512]), "came for a read"),
        (data(true, 4097, &[1; 512]), "came for a read"),
        (data(true, 4096, &[1; 100]), "a read of 512 bytes got 100"),
        (
            [data(false, 4096, &[1; 512]), data(true, 4096, &[1; 512])].concat(),
            "came for a read",
        ),
        (chunk(true, 0, 0), "a read of 512 bytes got 0"),
        (chunk(true, 0, u32::MAX), "out of place"),
        (chunk(true, 2, u32::MAX), "out of place"),
        (chunk(true, 5, u32::MAX), "out of place"),
        (chunk(true, 0x8001, u32::MAX), "out of place"),
        (chunk(true, 77, 0), "unknown kind 77"),
    ];
    for (reply, expected) in cases {
        let error = answered(&reply, read_512).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} for {expected}");
    }
}

#[test]
fn a_status_without_runs_is_refused() {
    let mut reply = chunk(true, 5, 12);
    reply.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let error = answered(&reply, |export| export.host_extent(0, 4096)).unwrap_err();
    assert!(error.to_string().contains("empty run"), "{error}");
    let error = answered(&chunk(true, 0, 0), |export| export.host_extent(0, 4096)).unwrap_err();
    assert!(error.to_string().contains("holds nothing"), "{error}");
}

#[test]
fn the_words_of_a_server_do_not_steer_the_terminal() {
    let mut reply = chunk(true, 0x8001, 11);
    reply.extend([0, 0, 0, 28, 0, 5]);
    reply.extend(b"\x1b[31m");
    let error = answered(&reply, read_512).unwrap_err();
    assert_eq!(error.kind(), block::ErrorKind::NoSpace);
    assert!(error.to_string().contains("\\u{1b}[31m"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let serve = |stream: &mut UnixStream| stream.write_all(&bytes);
        prop_assert!(against(serve, |address| Export::open(&address, Access::READ)).is_err());
    }

    #[test]
    fn random_bytes_after_a_sound_start_are_an_error(
        prefix in prop::sample::select(vec![&b"NBDMAGIC"[..], b"NBDMAGICIHAVEOPT\0\x03", b"NBDMAGICIHAVEOPT\0\x01\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08"]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let all = [prefix, &bytes].concat();
        let serve = |stream: &mut UnixStream| stream.write_all(&all);
        prop_assert!(against(serve, |address| Export::open(&address, Access::READ)).is_err());
    }

    #[test]
    fn random_replies_are_an_error(
        head in prop::sample::select(vec![vec![], chunk(false, 1, 20), chunk(true, 2, 12), chunk(false, 0x8001, 10)]),
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        prop_assert!(answered(&[head, bytes].concat(), read_512).is_err());
    }
}
