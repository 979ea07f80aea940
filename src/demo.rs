//! What `limn demo` is made of beside the pipeline: its events, how its profiles are judged, and what it shows.

pub mod form;
pub mod movielens;
pub mod show;
mod table;

pub use table::{Summary, peak_memory_bytes};
