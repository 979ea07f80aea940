//! The command line of limn.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // Alone on its line, then what it came from: some errors are several lines long.
            eprintln!("limn: {error:#}");
            ExitCode::FAILURE
        }
    }
}
