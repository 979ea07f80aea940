//! `limn bench`

mod engine;
mod requests;
mod stream;

use clap::Subcommand;

/// Measure, and print the figures as JSON.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Stream(stream::Args),
    Engine(engine::Args),
    Score(engine::ScoreArgs),
    Requests(requests::Args),
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Stream(args) => stream::run(args),
        What::Engine(args) => engine::run(args),
        What::Score(args) => engine::score(args),
        What::Requests(args) => requests::run(args),
    }
}
