//! Random images, written by QEMU and by us, read, mapped and checked by both.

mod alternating;
mod features;
mod header;
mod reading;
mod snapshots;
mod writing;
