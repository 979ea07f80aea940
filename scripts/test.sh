#!/usr/bin/env bash
# Fetches what the tests need and runs every test; exits non-zero on any failure. Arguments go to cargo test.
# Needs Rust, a C compiler, Java 17 or newer and Maven.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/fetch-kafka.sh >/dev/null
cargo test --locked "$@" </dev/null
