//! Filesystems made here, judged by dosfstools and mtools. The kernel's own judgement is in the workspace's package of tests,
//! since not every kernel that these run on knows FAT.

mod generated;
mod image;
mod trees;
mod volumes;
