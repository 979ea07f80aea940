//! What `limn demo` is made of beside the pipeline: its events, how its profiles are judged, and what it shows.

pub mod form;
pub mod movielens;
