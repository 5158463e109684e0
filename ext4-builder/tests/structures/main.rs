//! Single structures, judged by filesystems that mke2fs, debugfs and the kernel wrote: the same values must give the
//! same bytes; or they are put in the place of theirs, for e2fsck and the kernel to judge.
//!
//! The structures are private, so that their sources are compiled into this test. The kernel needs a loop mount,
//! hence root, or sudo without a password.

#![allow(dead_code, unreachable_pub)]

#[path = "../../src/acl.rs"]
mod acl;
#[path = "../../src/checksum.rs"]
mod checksum;
#[path = "../../src/directory.rs"]
mod directory;
#[path = "../../src/extent.rs"]
mod extent;
#[path = "../../src/hash.rs"]
mod hash;
#[path = "../../src/htree.rs"]
mod htree;
#[path = "../../src/inline_data.rs"]
mod inline_data;
#[path = "../../src/inode.rs"]
mod inode;
#[path = "../../src/journal.rs"]
mod journal;
#[path = "../../src/orphan_file.rs"]
mod orphan_file;
#[path = "../../src/resize_inode.rs"]
mod resize_inode;
#[path = "../../src/time.rs"]
mod time;
#[path = "../../src/xattr.rs"]
mod xattr;

mod directories;
mod extents;
mod image;
mod inline;
mod inodes;
mod special_inodes;
mod xattrs;
