#!/usr/bin/env bash
# Fetches and builds all that the demo needs, then runs it; arguments go to `limn demo`.
# Needs Rust, a C and C++ compiler, make, and Python 3 with pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/fetch-model.sh
cargo build --release --locked
exec target/release/limn demo "$@"
