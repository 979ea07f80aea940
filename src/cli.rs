//! The commands. Each has a file of its own with its arguments and `run`; a new one is a variant here and an arm below.
//!
//! Exit codes: 0 all is well, 1 a fault was found or something failed, 2 the command line is wrong.

mod check;
mod topics;

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use limn::config::Config;

/// Keeps textual user profiles up to date from a Kafka stream with a language model, exactly once.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Configuration: config/limn.toml explains every key; LIMN_SECTION__KEY in the environment goes before the file.\n\
                  Exit codes: 0 all is well, 1 a fault was found or something failed, 2 the command line is wrong."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Check),
    Topics(topics::Topics),
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Check(check) => check.run(),
            Command::Topics(topics) => topics.run(),
        }
    }
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "LIMN_CONFIG",
        default_value = "limn.toml"
    )]
    config: PathBuf,
}

impl ConfigFile {
    /// The configuration, every fault of it in one error.
    pub fn load(&self) -> anyhow::Result<Config> {
        Config::load(&self.config, environment())
            .map_err(|faults| anyhow::anyhow!("{}:\n{faults}", self.config.display()))
    }
}

/// The environment's variables. One that is not Unicode is none of ours.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Runs a command's own future to its end.
pub fn wait<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
