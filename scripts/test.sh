#!/usr/bin/env bash
# Fetches what the tests need and runs every test; exits non-zero on any failure. Arguments go to cargo test.
# Needs Rust, a C and C++ compiler, make, Python 3 with pip, Java 17 or newer and Maven. (npm is taken where it is there, else fetched by pip.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/fetch-kafka.sh >/dev/null
scripts/fetch-model.sh
scripts/fetch-tokenizers.sh
cargo test --locked "$@" </dev/null
