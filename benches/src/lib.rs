//! Benchmarks of the disk-image toolkit.
