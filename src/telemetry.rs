//! Logs: to standard error, for people or as JSON, one event a line. Standard output is the commands' own.
//!
//! What users did and what is written of them is logged at no level above `debug`; secrets are logged at none.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// How it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// For whom.
    pub format: Format,
    /// What limn itself logs; other crates log from `warn` up. `RUST_LOG` goes before it.
    pub level: LevelFilter,
}

/// For whom it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// People: colours on a terminal.
    Human,
    /// Machines: one JSON object a line.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `RUST_LOG` cannot be read.
    #[error(
        "environment variable RUST_LOG: {0}; wants directives such as \"info\" or \"limn=debug,warn\""
    )]
    Filter(#[from] tracing_subscriber::filter::FromEnvError),
    /// There is a logger already.
    #[error("logs are set up already")]
    Twice,
}

/// Sets the logs up for the whole process.
///
/// # Errors
/// [`Error`]: `RUST_LOG` is wrong, or this was called before.
pub fn start(config: Config) -> Result<(), Error> {
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter(config.level)?)
        .with_span_events(FmtSpan::NONE);
    let started = match config.format {
        Format::Human => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| Error::Twice)
}

fn filter(level: LevelFilter) -> Result<EnvFilter, Error> {
    if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some() {
        return Ok(EnvFilter::try_from_default_env()?);
    }
    let others = level.min(LevelFilter::WARN);
    Ok(EnvFilter::new(format!("{others},limn={level}")))
}
