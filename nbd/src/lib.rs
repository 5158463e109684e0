//! A client of the Network Block Device protocol: an export of some server, as a [`Storage`](block::Storage) for a
//! disk-image format to lie on.
//!
//! The protocol is that of `doc/proto.md` in the nbd project, in its fixed newstyle form: structured replies, so that
//! holes are not sent, and the `base:allocation` context, so that they are known without reading, where the server has
//! them; block sizes, several connections at once. Encrypted connections (TLS) are not offered.
//!
//! ```no_run
//! use block::Storage;
//!
//! let address = nbd::Address::parse("nbd+unix:///disk?socket=/run/nbd.sock")?;
//! let export = nbd::Export::open(&address, block::Access::READ)?;
//! let mut sector = [0; 512];
//! export.read_exact_at(&mut sector, 0)?;
//! println!("{} bytes", export.len()?);
//! # Ok::<(), block::Error>(())
//! ```

mod address;
mod connection;
mod export;
mod handshake;
mod protocol;

pub use address::{Address, Server};
pub use export::Export;
