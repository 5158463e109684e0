//! Filesystems made here, judged by dosfstools and mtools. The kernel's judgement is in imgtool's test of a
//! disk that boots, since not every kernel that these run on knows FAT.

mod generated;
mod image;
mod trees;
mod volumes;
