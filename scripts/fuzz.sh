#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (10 unless told), with stable Rust; ends non-zero where one finds something, and
# says which file does it:
#   scripts/fuzz.sh [SECONDS] [--keep]
# It goes on from what fuzz/kept has. --keep puts there what led further this time, without what others of it make needless.
# Fetches cargo-fuzz into the cache where it is missing. LIMN_CACHE says where that is; default: ~/.cache/limn
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=10 keep=
for argument in "$@"; do
    case "$argument" in
        --keep) keep=yes ;;
        *[!0-9]* | "")
            sed -n 2,6p scripts/fuzz.sh >&2
            exit 2
            ;;
        *) seconds=$argument ;;
    esac
done
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
    corpus="fuzz/corpus/$target" seeds="fuzz/seeds/$target" kept="fuzz/kept/$target.tar.gz"
    mkdir -p "$corpus" "$seeds"
    [[ ! -f $kept ]] || tar -xzf "$kept" -C "$corpus"
    echo "fuzz: $target for $seconds s" >&2
    cargo fuzz run --sanitizer none --dev "$target" "$corpus" "$seeds" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 ||
        failed+=("$target")
    if [[ -n $keep ]]; then
        mkdir -p fuzz/kept
        least=$(mktemp -d)
        if cargo fuzz run --sanitizer none --dev "$target" "$least" "$corpus" -- \
            -merge=1 -rss_limit_mb=2048 -verbosity=0; then
            # The same files make the same archive.
            (cd "$least" && find . -type f -printf '%P\0' | sort -z) |
                tar -C "$least" --null -T - --owner=0 --group=0 --numeric-owner --mode=644 --mtime=@0 -cf - |
                gzip -9n >"$kept.new"
            mv "$kept.new" "$kept"
        else
            failed+=("$target (merging)")
        fi
        rm -rf "$least"
    fi
done
if ((${#failed[@]} > 0)); then
    echo "fuzz: ${failed[*]} found something; fuzz/artifacts has the files" >&2
    exit 1
fi
