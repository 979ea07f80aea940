//! limn against a real Apache Kafka. `scripts/fetch-kafka.sh` brings it; `scripts/test.sh` does so by itself.

mod broker;
mod commit;
mod service;
mod source;
mod topics;
