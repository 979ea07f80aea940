#!/usr/bin/env bash
# The engine and llama.cpp's server on the same requests, one after the other, on this machine: scripts/bench-engine.sh [REQUESTS=200] [AT-ONCE=16]
# The requests are the demo's: ratings of MovieLens, each behind the profile that the model itself wrote before. Prints a JSON object a line.
# LIMN_CACHE says where the cache is, llama.cpp's build in it; default: ~/.cache/limn. What it needs: see benches/llama.cpp/server.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache="${LIMN_CACHE:-$HOME/.cache/limn}"
count=${1:-200} at_once=${2:-16}
scripts/fetch-model.sh
cargo build --release --locked
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
limn=(target/release/limn bench)
model=(--model "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" --adapter adapters/movielens)
"${limn[@]}" requests "${model[@]}" --dtype f32 --requests "$count" --users $(((count + 4) / 5)) >"$folder/requests.jsonl"
for dtype in f32 bf16 int8; do
    compare=()
    [[ $dtype == f32 ]] || compare=(--compare "$folder/f32.jsonl")
    "${limn[@]}" engine "${model[@]}" --dtype $dtype --concurrency "$at_once" --requests "$folder/requests.jsonl" \
        --outputs "$folder/$dtype.jsonl" "${compare[@]}"
    "${limn[@]}" score "${model[@]}" --dtype $dtype --requests "$folder/requests.jsonl" --outputs "$folder/f32.jsonl"
done
"${limn[@]}" engine "${model[@]}" --dtype int8 --concurrency 1 --requests "$folder/requests.jsonl"
benches/llama.cpp/server.sh "$cache/llama.cpp" "${model[1]}" adapters/movielens "$folder/requests.jsonl" "$at_once"
