//! The `imgtool` command.
fn main() {}
