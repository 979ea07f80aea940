//! What the README's figures are measured with.

mod input;
mod stream;

pub use input::Input;
pub use stream::{Error, Options, Report, stream};
