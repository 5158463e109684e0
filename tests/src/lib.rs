//! Tests of the disk-image toolkit against other people's tools
