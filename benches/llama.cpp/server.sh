#!/usr/bin/env bash
# llama.cpp's server on the requests of `limn bench engine`: server.sh FOLDER BASE.gguf ADAPTER REQUESTS.jsonl [CONCURRENCY=16]
# Builds it for this very processor out of the llama-cpp-python sdist on PyPI (a dozen minutes on two cores, kept in FOLDER),
# merges the adapter, and prints a JSON object for each of BF16, Q8_0 and Q4_0. Needs a C and C++ compiler, cmake, ninja and Python 3.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ $# -ge 4 ]] || { echo "usage: server.sh FOLDER BASE.gguf ADAPTER REQUESTS.jsonl [CONCURRENCY]" >&2; exit 2; }
folder=$1 base=$(realpath "$2") adapter=$(realpath "$3") requests=$(realpath "$4") concurrency=${5:-16}
for tool in python3 cmake ninja cc c++; do
    command -v "$tool" >/dev/null || { echo "server.sh: $tool is missing (Debian, Ubuntu: apt-get install build-essential cmake ninja-build python3-venv)" >&2; exit 1; }
done
mkdir -p "$folder"
cd "$folder"
if [[ ! -e venv/complete ]]; then
    python3 -m venv venv
    venv/bin/pip install --quiet scikit-build-core gguf numpy safetensors >&2
    touch venv/complete
fi
if [[ ! -x build/bin/llama-server ]]; then
    venv/bin/pip download --quiet --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36 >&2
    mkdir -p src
    tar xzf llama_cpp_python-*.tar.gz -C src --strip-components=1
    cmake -S src/vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF >cmake.log
    ninja -C build llama-server llama-quantize >build.log
fi
# Every time: what lies here may be of another model or adapter, or cut off.
venv/bin/python "$here/merge-adapter.py" "$base" "$adapter" bf16.gguf >&2
for format in q8_0 q4_0; do
    build/bin/llama-quantize bf16.gguf $format.gguf $format >quantize.log 2>&1
done
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
threads=$(nproc)
for format in bf16 q8_0 q4_0; do
    build/bin/llama-server -m $format.gguf --host 127.0.0.1 --port "$port" -t "$threads" -tb "$threads" -np "$concurrency" \
        -c $((2048 * concurrency)) -b 2048 -ub 512 >server.log 2>&1 &
    server=$!
    # shellcheck disable=SC2064
    trap "kill $server 2>/dev/null || true" EXIT
    venv/bin/python "$here/drive.py" "http://127.0.0.1:$port" "$requests" "$concurrency" "llama.cpp $format"
    kill $server
    wait $server 2>/dev/null || true
done
