#!/usr/bin/env bash
# Fetches what the tests need and runs every test; exits non-zero on any failure. Arguments go to cargo test.
# Needs Rust, a C and C++ compiler, make, Python 3 with pip, Java 17 or newer and Maven. (npm is taken where it is there, else fetched by pip.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A first broker, with which all others start faster.
scripts/with-kafka.sh true
scripts/fetch-model.sh
scripts/fetch-tokenizers.sh
# The tests on real brokers wait for most of their time: more of them than processors.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 1))}
cargo test --locked "$@" </dev/null
