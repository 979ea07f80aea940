//! What can be asked of limn in a terminal.

mod demo;
mod profile;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Textual user profiles, kept up to date from a Kafka stream by a language model, exactly once.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Profile(profile::Args),
}

/// Runs what the arguments ask for: 0, or 1 after a failure, which is told on the standard error. Wrong arguments end it with 2.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Profile(args) => profile::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limn: {error:#}");
            ExitCode::FAILURE
        }
    }
}
