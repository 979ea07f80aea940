//! What `limn demo` is made of beside the pipeline: its events, how its profiles are judged, and what it shows.

pub mod broker;
pub mod form;
pub mod movielens;
mod run;
pub mod show;
mod table;

pub use run::{Error, Options, run};
pub use table::{Summary, peak_memory_bytes};
