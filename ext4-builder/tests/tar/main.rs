//! The tar reader, judged by what other people's programs make of the same archives: GNU tar, bsdtar and Python.
//!
//! Trees have owners and devices, so the tests need root.

mod compressions;
mod damage;
mod programs;
mod tree;
