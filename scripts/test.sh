#!/usr/bin/env bash
# Runs every test; exits non-zero on any failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo test --locked "$@"
