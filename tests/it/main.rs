//! limn against a real Apache Kafka. `scripts/with-kafka.sh true` brings it; `scripts/test.sh` does so by itself.

mod bench;
mod broker;
mod case;
mod chaos;
mod commit;
mod dead_letters;
mod demo;
mod deploy;
mod group;
mod http;
mod load;
mod logs;
mod permissions;
mod rebalance;
mod reconfigured;
mod restore;
mod service;
mod sizes;
mod source;
mod start;
mod steps;
mod topics;
mod verify;
