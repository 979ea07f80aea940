//! What the README's figures are measured with.

mod engine;
mod input;
mod requests;
mod score;
mod stream;

pub use engine::{Answered, EngineOptions, EngineReport, engine};
pub use input::Input;
pub use requests::{Asked, Error as EngineError, Making, requests};
pub use score::{ScoreReport, score};
pub use stream::{Error, Options, Report, stream};
