#!/usr/bin/env bash
# limn and Kafka Streams on the same events and the same broker, one after the other:
#   scripts/bench-peer.sh [--events N] [--users N] [--list line|whole] [--limn PROGRAM]
# limn, Kafka Streams, and limn again, each twice in one process, of which the second counts, behind a run of limn's that does not
# count. limn's two on either side of Kafka Streams' one stand for it (their mean). Prints a JSON object for each, and one with the ratios;
# benches/kafka-streams/README.md says what they mean.
# Builds limn as services do (profile `production`) unless a PROGRAM is given. Needs a JDK 17 or newer (javac), Maven for the first time, and Python 3.
# LIMN_CACHE says where the cache is; default: ~/.cache/limn
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
events=1000000 users=100000 list=line limn= inside=
while [[ $# -gt 0 ]]; do
    case "$1" in
        --events) events=$2 ;;
        --users) users=$2 ;;
        --list) list=$2 ;;
        --limn) limn=$2 ;;
        --inside) inside=$2 ;; # how this script goes on once the broker is there: the folder of the classes and jars
        *) sed -n 2,8p "$0" >&2; exit 2 ;;
    esac
    shift 2
done
if [[ -z "$limn" ]]; then
    cargo build --profile production --locked
    limn=target/production/limn
fi

if [[ -z "$inside" ]]; then
    if ! command -v javac >/dev/null; then
        echo "bench-peer: javac is missing: install a JDK 17 or newer (Debian, Ubuntu: apt-get install openjdk-17-jdk-headless)" >&2
        exit 1
    fi
    libs=$(scripts/fetch-kafka.sh benches/kafka-streams/pom.xml kafka-streams)
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    ln -s "$libs" "$folder/libs"
    javac -proc:none -cp "$libs/*" -d "$folder/classes" benches/kafka-streams/Peer.java
    # The first broker of a machine would be busy with writing down its classes.
    scripts/with-kafka.sh true
    # limn's bench deletes its topics; this broker keeps them, so that Kafka Streams reads the very same records.
    KAFKA_PROPERTIES="delete.topic.enable=false" scripts/with-kafka.sh "$0" --inside "$folder" \
        --events "$events" --users "$users" --list "$list" --limn "$limn"
    exit
fi

echo "bench-peer: $(nproc) processors, load $(cut -d ' ' -f 1-3 /proc/loadavg 2>/dev/null || echo unknown)" >&2
# The state folder is made inside the folder in which limn is started.
limn() {
    "$limn" bench stream --config config/bench.toml --events "$events" --users "$users" --runs 2 \
        2> >(tee "$inside/limn.log" >&2) >"$inside/$1.json"
    echo "bench-peer: load $(cut -d ' ' -f 1-3 /proc/loadavg 2>/dev/null || echo unknown)" >&2
}
# The broker's JVM compiles for a minute what it does most, on the same processors: nobody's figures are taken meanwhile.
limn warm
limn before
topic=$(grep -om1 'limn-bench-[0-9a-f]\{8\}' "$inside/limn.log")
# The throughput collector: on few processors it takes less of them than G1. The heap is as large as it will be from the start.
java -XX:+UseParallelGC -Xms1536m -Xmx1536m -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
    -cp "$inside/classes:$inside/libs/*" Peer --topic "$topic" --runs 2 --events "$list" >"$inside/peer.json"
limn after
cat "$inside/before.json" "$inside/peer.json" "$inside/after.json"
python3 - "$inside"/{before,after,peer}.json <<'PYTHON'
import json, sys
before, after, peer = (json.load(open(path)) for path in sys.argv[1:])
assert before["events"] == after["events"] == peer["events"], "not the same input"
mean = lambda key: (before[key] + after[key]) / 2
rate = mean("events_per_second")
print(json.dumps({
    "ratio": round(rate / peer["events_per_second"], 2),
    "ratio_to_second_half": round(rate / peer["events_per_second_of_second_half"], 2),
    "ratio_of_first_runs": round(before["events_per_second_of_first_run"] / peer["events_per_second_of_first_run"], 2),
    "ratio_to_raw_reading": round(rate / mean("raw_consume_events_per_second"), 2),
}))
PYTHON
