#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (10 unless told), with stable Rust; ends non-zero where one finds something, and
# says which file does it. Fetches cargo-fuzz into the cache where it is missing. LIMN_CACHE says where that is; default: ~/.cache/limn
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds="${1:-10}"
version=0.13.2
tools="${LIMN_CACHE:-$HOME/.cache/limn}/cargo-fuzz-$version"
export PATH="$PATH:$tools/bin"
if ! command -v cargo-fuzz >/dev/null; then
    echo "fuzz: fetching cargo-fuzz $version into $tools" >&2
    cargo install --quiet --locked --root "$tools" --version "$version" cargo-fuzz
fi

# Sound files to begin with.
LIMN_FUZZ_SEEDS="$PWD/fuzz/seeds" LIMN_FUZZ_SECONDS=0 cargo test --quiet --locked --lib engine::candle::entry
cargo fuzz build --sanitizer none --dev
failed=()
for target in $(cargo fuzz list); do
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    echo "fuzz: $target for $seconds s" >&2
    cargo fuzz run --sanitizer none --dev "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 ||
        failed+=("$target")
done
if ((${#failed[@]} > 0)); then
    echo "fuzz: ${failed[*]} found something; fuzz/artifacts has the files" >&2
    exit 1
fi
