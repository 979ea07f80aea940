#!/usr/bin/env bash
# Builds a release of limn that can compute the model on an NVIDIA GPU (the feature `cuda`). Arguments go to cargo build.
#
# Takes the CUDA toolkit that is there: nvcc on the PATH, or in CUDA_HOME. Where there is none, nvcc 13.0 and its headers
# come as Python wheels into the cache (scripts/cuda/requirements.txt, 400 MB there), and limn is linked against stubs:
# libraries with the names of CUDA's functions (scripts/cuda/symbols.txt) and nothing behind them. Such a limn runs where
# the real libraries are. Where the linker misses a cu…, cublas…, curand… or nvrtc… name, add it to symbols.txt.
#
# CUDA_COMPUTE_CAP says which GPUs it is for; default: the one of this machine, else 80. Code for 80 runs on every GPU
# since Ampere, code for 90 and above on that kind alone.
# LIMN_CACHE says where the cache is; default: ~/.cache/limn
#
# Needs Rust, a C and C++ compiler, make, and without a toolkit Python 3 with pip. The first build takes a quarter of an
# hour on two cores, most of it candle's kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache="${LIMN_CACHE:-$HOME/.cache/limn}"
toolkit="$cache/cuda-13.0"
stubs=

fail() {
    printf 'build-cuda: %s\n' "$@" >&2
    exit 1
}

fetch_toolkit() {
    [[ "$(uname -s)" == Linux ]] || fail "there is no CUDA toolkit, and wheels of it are for Linux only: install one, and put nvcc on the PATH"
    [[ ! -d "$toolkit" ]] || return 0
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.9 or newer, or a CUDA toolkit"
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: install it (Debian, Ubuntu: apt-get install python3-pip), or a CUDA toolkit"
    mkdir -p "$cache"
    # Filled beside the target and moved there whole: a folder under the final name is always complete.
    part=$(mktemp -d "$cache/cuda-13.0.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    echo "build-cuda: there is no nvcc; fetching nvcc 13.0 and its headers" >&2
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary :all: --require-hashes \
        --target "$part" --requirement scripts/cuda/requirements.txt >&2 ||
        fail "pip could not fetch nvcc: its own message is above"
    [[ -x "$part/nvidia/cu13/bin/nvcc" ]] || fail "the wheels bring no nvcc"
    chmod 755 "$part"
    # Another run may have been faster: then its folder stays.
    mv -T "$part" "$toolkit" 2>/dev/null || [[ -d "$toolkit" ]] || fail "could not move $part to $toolkit"
}

# stub NAME FILE PATTERN: a library whose functions all answer CUDA_ERROR_STUB_LIBRARY. At run time FILE is loaded.
stub() {
    grep -E "$3" scripts/cuda/symbols.txt | sed 's/.*/int &(void) { return 34; }/' |
        "${CC:-cc}" -w -shared -fPIC "-Wl,-soname,$2" -o "$stubs/lib$1.so" -x c -
}

if ! command -v nvcc >/dev/null && [[ -x "${CUDA_HOME:-}/bin/nvcc" ]]; then
    PATH="$CUDA_HOME/bin:$PATH"
fi
if ! command -v nvcc >/dev/null; then
    fetch_toolkit
    export CUDA_HOME="$toolkit/nvidia/cu13" CUDA_PATH="$toolkit/nvidia/cu13" CUDA_ROOT="$toolkit/nvidia/cu13"
    PATH="$CUDA_HOME/bin:$PATH"
    stubs="$cache/cuda-13.0-stubs"
    mkdir -p "$stubs"
    stub cuda libcuda.so.1 '^cu[A-Z]'
    stub cudart libcudart.so.13 '^(cuda|__cuda)'
    stub cublas libcublas.so.13 '^cublas([A-KM-Z]|Logger)'
    stub cublasLt libcublasLt.so.13 '^cublasLt'
    stub curand libcurand.so.10 '^curand'
    stub nvrtc libnvrtc.so.13 '^nvrtc'
    export LIBRARY_PATH="$stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
elif [[ -z "${CUDA_HOME:-}${CUDA_PATH:-}${CUDA_ROOT:-}" ]]; then
    # A toolkit in a folder of its own; a distribution's is where the build looks by itself.
    home=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
    [[ ! -e "$home/include/cuda_runtime.h" ]] || export CUDA_HOME="$home"
fi
export PATH
if [[ -z "${CUDA_COMPUTE_CAP:-}" ]] && ! nvidia-smi >/dev/null 2>&1; then
    export CUDA_COMPUTE_CAP=80
fi
echo "build-cuda: building with $(command -v nvcc), for compute capability ${CUDA_COMPUTE_CAP:-of this machine}" >&2
cargo build --release --locked --features cuda --bin limn "$@"

binary="${CARGO_TARGET_DIR:-target}/release/limn"
printf '%s  %s\n' "$binary" "$(du -h "$binary" | cut -f 1)"
if [[ -n "$stubs" ]]; then
    cat >&2 <<'TEXT'
build-cuda: linked against stubs, since there is no CUDA toolkit here. It starts only where the loader finds the real
libraries: libcuda.so.1 (NVIDIA's driver, 580 or newer), and CUDA 13's libcudart.so.13, libcublas.so.13 (which brings
libcublasLt.so.13) and libcurand.so.10.
TEXT
fi
