#!/usr/bin/env bash
# Fetches the Apache Kafka that the tests run (scripts/kafka/pom.xml) into the cache and prints the folder of its jars:
#   scripts/fetch-kafka.sh [POM NAME]
# With a POM it does so for the jars that this one brings, NAME-VERSION.jar among them (benches/kafka-streams).
# Does nothing when they are there already. LIMN_CACHE says where the cache is; default: ~/.cache/limn
set -euo pipefail
pom="${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/kafka/pom.xml}"
name="${2:-kafka}"
jar="${2:-kafka_2.13}"
version=4.3.1
cache="${LIMN_CACHE:-$HOME/.cache/limn}"
target="$cache/$name-$version"

fail() {
    printf 'fetch-kafka: %s\n' "$@" >&2
    exit 1
}

if ! command -v java >/dev/null; then
    fail "java is missing: install Java 17 or newer (Debian, Ubuntu: apt-get install openjdk-17-jre-headless)"
fi
java_version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
if [[ ! "$java_version" =~ ^[0-9]+$ ]] || ((java_version < 17)); then
    fail "Java 17 or newer is needed, found ${java_version:-an unknown version}: install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless) and put it first on the PATH"
fi

if [[ ! -d "$target" ]]; then
    if ! command -v mvn >/dev/null; then
        fail "mvn is missing: install Maven (Debian, Ubuntu: apt-get install maven)"
    fi
    mkdir -p "$cache"
    # Filled beside the target and moved there whole: a folder under the final name is always complete.
    part=$(mktemp -d "$target.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    echo "fetch-kafka: fetching Apache Kafka $version (60 to 100 MB)" >&2
    mvn -q -B --strict-checksums -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$part" -DincludeScope=runtime </dev/null >&2 ||
        fail "Maven could not fetch Apache Kafka $version: its own message is above; a network or a mirror in Maven's settings is needed once"
    [[ -f "$part/$jar-$version.jar" ]] || fail "$pom does not bring $jar-$version.jar"
    chmod 755 "$part"
    # Another run may have been faster: then its folder stays.
    mv -T "$part" "$target" 2>/dev/null || [[ -d "$target" ]] || fail "could not move $part to $target"
fi
printf '%s\n' "$target"
