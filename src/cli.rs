//! What can be asked of limn in a terminal.

mod bench;
mod check;
mod demo;
mod load;
mod profile;
mod run;
mod topics;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use limn::config::{Config, Faults};

/// Textual user profiles, kept up to date from a Kafka stream by a language model, exactly once.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "config/limn.toml explains every key; LIMN_SECTION__KEY in the environment goes before the file.\n\
                  Exit codes: 0 all is well, 1 a fault was found or something failed, 2 the command line is wrong."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Check(check::Args),
    Topics(topics::Args),
    Load(load::Args),
    Profile(profile::Args),
    Verify(verify::Args),
    Bench(bench::Args),
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file; config/limn.toml teaches it. LIMN_SECTION__KEY in the environment goes before it.
    #[arg(long, short, env = "LIMN_CONFIG")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Faults> {
        Config::load(&self.config, environment())
    }

    /// What of it is sound, beside all its faults.
    fn examine(&self) -> (Option<Config>, Faults) {
        Config::examine(&self.config, environment())
    }
}

/// What is no UTF-8 can be none of our keys.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Runs what the arguments ask for: 0, or 1 after a failure, which is told on the standard error. Wrong arguments end it with 2.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Topics(args) => topics::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limn: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
