//! What the README's figures are measured with.

mod engine;
mod input;
mod requests;
mod stream;

pub use engine::{Answered, EngineOptions, EngineReport, engine};
pub use input::Input;
pub use requests::{Asked, Error as EngineError, Making, read_lines, requests};
pub use stream::{Error, Options, Report, stream};
