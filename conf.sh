# conf NAME FOLDER
conf() { cat <<T
[kafka]
brokers = "$LIMN_KAFKA__BROKERS"
[kafka.consumer]
"session.timeout.ms" = 6000
"heartbeat.interval.ms" = 500
[source]
topic = "$1"
group = "$1"
[source.json]
user = "/user"
time = "/time"
[window]
kind = "tumbling"
size = "10s"
max_events = 4
out_of_orderness = "5s"
allowed_lateness = "10s"
[summary]
event = "- @{{ partition }}:{{ offset }}"
message = "{{ profile }}\n{{ events }}"
empty_profile = ""
max_tokens = 10000
prompt_tokens = 100000
max_events_per_update = 5
[engine]
kind = "scripted"
delay = "${DELAY:-2s}"
[commit]
interval = "40ms"
transaction_timeout = "5s"
[topics]
changes = "$1.changes"
profiles = "$1.profiles"
checkpoints = "$1.checkpoints"
dead_letters = "$1.dead"
[store]
folder = "/tmp/x/$2"
[http]
listen = "127.0.0.1:$3"
[limits]
waiting_bytes = "1MiB"
T
}
topic() { java -Xmx256m -cp "$HOME/.cache/limn/kafka-4.3.1/*" org.apache.kafka.tools.TopicCommand --bootstrap-server $LIMN_KAFKA__BROKERS --create --topic $1 --partitions ${2:-3} --replication-factor 1 2>&1 | tail -1; }
m() { curl -s --noproxy '*' http://127.0.0.1:$1/metrics | grep -E "^(limn_paused|limn_windows_waiting_bytes|limn_events_folded_total|limn_events_read_total|limn_engine_running|limn_engine_queue|limn_windows_open |limn_oldest|limn_ready|limn_consumer_lag|limn_restarts)" | tr '\n' ' '; echo; }
