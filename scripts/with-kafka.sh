#!/usr/bin/env bash
# Starts a real Apache Kafka on free ports of this machine, runs a command with its address in LIMN_KAFKA__BROKERS, and
# takes the broker away again: scripts/with-kafka.sh COMMAND ARGUMENTS…
# KAFKA_PROPERTIES may hold further lines for its server.properties.
# Needs what scripts/fetch-kafka.sh needs: Java 17 or newer, and Maven for the first time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || { echo "usage: scripts/with-kafka.sh COMMAND ARGUMENTS…" >&2; exit 2; }
libs=$(scripts/fetch-kafka.sh)
folder=$(mktemp -d)
# Kafka's classes as Java has laid them out once: with them a broker starts in half the time. Of another Java or of other
# jars the archive is of no use; then a broker that starts leaves a new one behind.
archive="$libs.jsa" started=
format=() broker_classes=()
if java -Xshare:on -XX:SharedArchiveFile="$archive" -cp "$libs/*" -version >/dev/null 2>&1; then
    format=(-XX:SharedArchiveFile="$archive")
    broker_classes=("${format[@]}")
elif [[ -w "${libs%/*}" ]]; then
    broker_classes=(-XX:ArchiveClassesAtExit="$folder/classes")
fi
broker=
finish() {
    [[ -z "$broker" ]] || { kill "$broker" 2>/dev/null || true; wait "$broker" 2>/dev/null || true; }
    if [[ -n "$started" && -f "$folder/classes" ]]; then
        # Under its name the archive is whole.
        mv -f "$folder/classes" "$archive.$$" && mv -f "$archive.$$" "$archive" || rm -f "$archive.$$"
    fi
    rm -rf "$folder"
}
trap finish EXIT
read -r port controller < <(python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
cat >"$folder/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$folder/log
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
${KAFKA_PROPERTIES:-}
PROPERTIES
java "${format[@]}" -cp "$libs/*" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg \
    -c "$folder/server.properties" >"$folder/format.log" 2>&1 || { cat "$folder/format.log" >&2; exit 1; }
java -Xmx768m "${broker_classes[@]}" -cp "$libs/*" kafka.Kafka "$folder/server.properties" >"$folder/broker.log" 2>&1 &
broker=$!
for _ in $(seq 240); do
    if grep -q "Kafka Server started" "$folder/broker.log"; then
        started=1
        LIMN_KAFKA__BROKERS="127.0.0.1:$port" "$@"
        exit
    fi
    kill -0 "$broker" 2>/dev/null || break
    sleep 0.25
done
echo "with-kafka: the broker does not start; its log ends so:" >&2
tail -n 20 "$folder/broker.log" >&2
exit 1
