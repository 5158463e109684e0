//! Filesystems made here, judged by the e2fsprogs tools and by the kernel.
//!
//! The kernel's judgement needs a loop mount, hence root, or sudo without a password.

mod archives;
mod directories;
mod empty;
mod generated;
mod image;
mod images;
mod overlays;
mod sizes;
mod trees;
mod xattrs;
