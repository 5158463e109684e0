//! What the tests against other people's tools share.
//!
//! A [`Lab`] is a directory with images, in which QEMU's tools are run and from which our chains are opened. A
//! [`Shape`] says what a random image is like, and a [`Request`] is one thing that a guest may ask of its disk: the
//! same request can be made of QEMU ([`Lab::qemu_io`]), of any [`BlockDevice`](block::BlockDevice) and of a
//! [`Model`], which is what the disk must read as. Everything random follows from a seed ([`seeded`]), which a
//! failure names.

mod device;
mod judge;
mod lab;
mod model;
mod request;
mod seed;
mod shape;

pub use device::{assert_reads_as, assert_same_bytes};
pub use judge::{Figures, MapEntry};
pub use lab::{FORMATS, Lab, Outcome};
pub use model::Model;
pub use request::{Fill, Request};
pub use seed::{seeded, within};
pub use shape::{Shape, varied_size};
