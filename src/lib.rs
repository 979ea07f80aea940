//! limn keeps textual user profiles up to date from a Kafka stream with a language model.
//!
//! Interaction events are grouped per user in event-time windows, a model folds each window into that user's
//! profile, and every change is published in the same Kafka transaction that moves the consumer group on.
#![warn(missing_docs)]

pub mod bench;
pub mod checkpoint;
pub mod clock;
pub mod codec;
pub mod commit;
pub mod config;
pub mod demo;
pub mod engine;
pub mod event;
pub mod failpoint;
pub mod load;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod pages;
pub mod pipeline;
pub mod profile;
pub mod serve;
pub mod source;
pub mod store;
pub mod summarize;
pub mod telemetry;
pub mod text;
pub mod topics;
pub mod verify;
pub mod window;
