//! Templates of disk images, copy-on-write clones of them, and what a launcher is told to boot them.
//!
//! A [`Machine`] is what hardware, disks and network one instance has. It is put together from [`Settings`]: those of a
//! template, of profiles, and of the instance itself, of which the later win.
//! A [`Store`](store::Store) keeps templates and instances. A [`Recipe`](recipe::Recipe) says how a template is built.

mod accel;
pub mod archive;
mod bound;
mod bridge;
mod credential;
pub mod doctor;
pub mod export;
pub mod import;
pub mod launch;
mod machine;
pub mod personalise;
pub mod recipe;
mod root;
pub mod run;
pub mod seal;
mod seed;
mod settings;
pub mod store;
#[cfg(test)]
mod testing;

pub use accel::{Accel, Choice, Kvm};
pub use credential::{CredentialName, Credentials};
pub use machine::{Architecture, Boot, Disk, Forward, Layer, Limits, Machine, Network};
pub use root::{Root, filesystem_in};
pub use seed::Seed;
pub use settings::{BootKind, BootSettings, MAX_CPUS, NetworkKind, NetworkSettings, Settings};
pub use store::nearest;
