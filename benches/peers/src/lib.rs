//! Three libraries for qcow2 behind one trait, each called the fastest way that its documentation shows.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{Access, Backing, BlockDevice};
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2::{GuestOffset, OpenOptions, Place};
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::sync_io::Qcow2IoSync;
use qcow2_rs::utils::qcow2_setup_dev_sync;

/// A library under test, with an image open.
///
/// # Panics
///
/// All of it, where the library reports an error: there is nothing to measure then.
pub trait Peer: Sized {
    /// What it is called in results.
    const NAME: &str;

    /// Opens the image at `path` with its chain.
    fn open(path: &Path, write: bool) -> Self;

    /// Where the byte at `offset` of the disk lies in the file.
    fn map(&self, offset: u64) -> u64;

    /// Reads at `offset`.
    fn read(&self, buf: &mut [u8], offset: u64);

    /// Writes at `offset`.
    fn write(&self, bytes: &[u8], offset: u64);
}

/// This one.
pub struct Ours {
    chain: Arc<dyn BlockDevice>,
    /// The image on top by itself, if it is only read.
    image: Option<qcow2::Image>,
}

impl Peer for Ours {
    const NAME: &str = "imgtool";

    fn open(path: &Path, write: bool) -> Self {
        let access = if write { Access::WRITE } else { Access::READ };
        let image = (!write).then(|| {
            let storage = Arc::new(raw::File::open(path).expect("the file opens"));
            let options = OpenOptions {
                backing: Backing::Detached,
                ..OpenOptions::default()
            };
            qcow2::Image::open(storage, options).expect("the image opens")
        });
        Self {
            chain: benches::open_chain(path, access),
            image,
        }
    }

    fn map(&self, offset: u64) -> u64 {
        let image = self.image.as_ref().expect("it is only read");
        match image
            .map(GuestOffset(offset), 4096)
            .expect("the table can be read")
            .place
        {
            Place::Host(host) => host.0,
            other => panic!("offset {offset} is not mapped: {other:?}"),
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        self.chain.read_at(buf, offset).expect("read");
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        self.chain.write_at(bytes, offset).expect("write");
    }
}

/// The crate imago, with calls that block.
pub struct Imago(FormatAccess<imago::file::File>);

impl Peer for Imago {
    const NAME: &str = "imago";

    fn open(path: &Path, write: bool) -> Self {
        let builder = imago::qcow2::Qcow2::<imago::file::File>::builder_path(path).write(write);
        let image = builder.open(PermissiveImplicitOpenGate::default());
        Self(FormatAccess::new(image.expect("the chain opens")))
    }

    fn map(&self, offset: u64) -> u64 {
        match self.0.get_mapping(offset, 4096).expect("the table can be read").0 {
            imago::Mapping::Raw { offset, .. } => offset,
            other => panic!("offset {offset} is not mapped: {other:?}"),
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        self.0.read(buf, offset).expect("read");
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        self.0.write(bytes, offset).expect("write");
    }
}

/// The crate qcow2-rs, with calls that block.
pub struct Qcow2Rs(Qcow2Dev<Qcow2IoSync>);

impl Peer for Qcow2Rs {
    const NAME: &str = "qcow2-rs";

    fn open(path: &Path, write: bool) -> Self {
        let parameters = Qcow2DevParams::new(9, None, None, !write, false);
        let device = qcow2_setup_dev_sync(path, &parameters).expect("the chain opens");
        done(device.qcow2_prep_io()).expect("its tables can be read");
        Self(device)
    }

    fn map(&self, offset: u64) -> u64 {
        let mapping = done(self.0.get_mapping(offset)).expect("the table can be read");
        mapping.cluster_offset.expect("it is mapped")
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        done(self.0.read_at(buf, offset)).expect("read");
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        done(self.0.write_at(bytes, offset)).expect("write");
    }
}

/// What a future says that waits for nothing: its calls to the host block, and nobody else has its locks.
fn done<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits for something"),
    }
}
