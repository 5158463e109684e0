//! Storage that fails, records and loses power on command: to test formats against what hosts do to them.
//!
//! [`FaultStorage`] makes chosen calls fail, and everything after an error is up to the code under test.
//! [`Recorder`] writes down what a format does to its storages, and [`CrashStates`] builds from that what a disk may
//! hold after a power cut at any moment in between. [`DiskOp`] draws what a guest does to a disk, and [`DiskModel`] knows what that holds
//! then, and may hold after a power cut.

mod crash;
mod disk;
mod fault;
mod recorder;
mod rng;
mod torture;

pub use crash::CrashStates;
pub use disk::{DiskModel, DiskOp};
pub use fault::{Fault, FaultStorage, IoOp};
pub use recorder::{Change, Entry, Recorder, RecordingStorage};
pub use rng::Rng;
pub use torture::seeds;
