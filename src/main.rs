//! The command line.

#[cfg(target_os = "linux")]
mod allocator;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
