#!/usr/bin/env bash
# The engine on an NVIDIA GPU, held against the processor on the same requests: scripts/bench-cuda.sh [REQUESTS=200]
# The requests are those of scripts/bench-engine.sh. Prints a JSON object a line; `identical` counts the answers that are those of the
# processor in f32, `mean_nll` tells how likely the GPU finds these.
# Takes the limn that LIMN names; without it scripts/build-cuda.sh builds one, with a CUDA toolkit that must be there.
# A limn's first run on a machine has the driver compile its kernels, which is in that run's figures.
# QWEN3_LAYERS=36 adds a model of Qwen3-8B's shape with random weights (scripts/cuda/random-qwen3.py, which wants PyTorch; 16 GB in
# TMPDIR), so many layers of it; its answers say nothing, their pace does.
# LIMN_CACHE says where the model is; default: ~/.cache/limn
set -euo pipefail
[[ -z "${LIMN:-}" ]] || LIMN=$(realpath "$LIMN")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache="${LIMN_CACHE:-$HOME/.cache/limn}"
count=${1:-200}
scripts/fetch-model.sh
[[ -z "${QWEN3_LAYERS:-}" ]] || scripts/fetch-tokenizers.sh
[[ -n "${LIMN:-}" ]] || scripts/build-cuda.sh >&2
limn=("${LIMN:-${CARGO_TARGET_DIR:-target}/release/limn}" bench)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
requests=(--requests "$folder/requests.jsonl")
model=(--model "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" --adapter adapters/movielens)
"${limn[@]}" requests "${model[@]}" --dtype f32 --requests "$count" --users $(((count + 4) / 5)) >"$folder/requests.jsonl"
"${limn[@]}" engine "${model[@]}" "${requests[@]}" --dtype f32 --outputs "$folder/cpu.jsonl"
for dtype in f32 bf16; do
    for at_once in 16 64 200; do
        "${limn[@]}" engine "${model[@]}" "${requests[@]}" --device cuda --dtype $dtype --concurrency $at_once --compare "$folder/cpu.jsonl"
    done
    "${limn[@]}" score "${model[@]}" "${requests[@]}" --device cuda --dtype $dtype --outputs "$folder/cpu.jsonl"
done
if [[ -n "${QWEN3_LAYERS:-}" ]]; then
    python3 scripts/cuda/random-qwen3.py "$folder/qwen3" "$cache/tokenizers/qwen3" "$QWEN3_LAYERS"
    for at_once in 16 64 200; do
        "${limn[@]}" engine --model "$folder/qwen3" "${requests[@]}" --device cuda --dtype bf16 --concurrency $at_once
    done
fi
