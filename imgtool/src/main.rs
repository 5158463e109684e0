//! The `imgtool` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    imgtool::run(std::env::args_os())
}
