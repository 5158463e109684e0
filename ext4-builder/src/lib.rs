//! Writes ext4 filesystems from a source tree to any storage
