//! Container images: those of the Open Container Initiative, in a directory or an archive, and archives of `docker save`.
//!
//! A [`Reference`] names one; [`Image::open`] finds it among others by its tag and platform, and verifies its manifest and
//! configuration; [`Image::changes`] gives what its layers do, one after the other.
//!
//! # What is verified
//! Everything, against its digest and its size, from the index down: what an index names, manifests, configurations,
//! layers as they are stored and as they are without their compression. The index of a layout and the list of images in a
//! Docker archive have no digest; whoever may write those says what the image is.
//!
//! Layers are verified as they are read. So what they say is known to be right only at their end, and a filesystem that is
//! made of them must not be kept if one of them ends with an error.
//!
//! # What is refused
//! Names in layers that are absolute or have `..`, links that lead in circles, names that are both something and removed,
//! documents that are index and manifest at once, and digests that are paths.

mod changes;
mod config;
mod digest;
mod fault;
mod image;
mod manifest;
mod reference;
mod store;

pub(crate) use changes::PLINK;
pub use changes::{Change, Changes};
pub use config::Config;
pub use digest::Digest;
pub use image::Image;
pub use manifest::Platform;
pub use reference::{Reference, Storing};
