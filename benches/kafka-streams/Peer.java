// The job of `limn bench stream`, done with Kafka Streams: scripts/bench-peer.sh runs it, README.md says how it was tuned.
//
// java -cp 'LIBS/*' Peer.java --topic TOPIC [--runs 2] [--events line|whole], the brokers in LIMN_KAFKA__BROKERS.

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Stream;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaClientSupplier;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.processor.TimestampExtractor;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.Stores;

public class Peer {
    // config/bench.toml: window.gap, window.out_of_orderness, commit.interval.
    static final Duration GAP = Duration.ofSeconds(30);
    static final Duration GRACE = Duration.ofMillis(200);
    static final int COMMIT_MS = 500;
    // The user of the one record that stands behind each partition's events, so late that all sessions close. It is no event.
    static final String END = "kafka-streams-peer-end";

    final String brokers = System.getenv().getOrDefault("LIMN_KAFKA__BROKERS", "localhost:9092");
    final String topic;
    final boolean whole;
    final int partitions;
    final int threads;
    final long events;
    final Map<TopicPartition, Long> ends;

    // What one run counts.
    final AtomicLong first = new AtomicLong();
    final AtomicLong half = new AtomicLong();
    final AtomicLong read = new AtomicLong();
    final AtomicLong folded = new AtomicLong();
    final AtomicLong lastCommit = new AtomicLong();
    final List<Long> commits = java.util.Collections.synchronizedList(new ArrayList<>());

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>(Map.of("--runs", "2", "--events", "line"));
        for (int i = 0; i < arguments.length; i++) {
            if (!Set.of("--topic", "--runs", "--events").contains(arguments[i]) || i + 1 == arguments.length) {
                throw new IllegalArgumentException("what is " + arguments[i] + "?");
            }
            options.put(arguments[i], arguments[++i]);
        }
        Peer peer = new Peer(options.get("--topic"), options.get("--events").equals("whole"));
        int runs = Integer.parseInt(options.get("--runs"));
        List<Result> results = new ArrayList<>();
        for (int run = 1; run <= runs; run++) {
            Result result = peer.run();
            System.err.printf("peer: run %d of %d: %.0f events/s%n", run, runs, result.rate);
            results.add(result);
        }
        // The last run has the warmest JVM. The first is told too.
        System.out.println(results.get(runs - 1).json(results.get(0).rate));
    }

    Peer(String topic, boolean whole) throws Exception {
        this.topic = topic;
        this.whole = whole;
        try (Admin admin = admin()) {
            partitions = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
        }
        // As many as there are processors: more only take turns.
        threads = Math.min(partitions, Runtime.getRuntime().availableProcessors());
        end();
        long all = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            ends = consumer.endOffsets(all());
            Map<TopicPartition, Long> begins = consumer.beginningOffsets(all());
            for (TopicPartition partition : all()) {
                all += ends.get(partition) - begins.get(partition) - 1;
            }
        }
        events = all;
    }

    List<TopicPartition> all() {
        return Stream.iterate(0, p -> p + 1).limit(partitions).map(p -> new TopicPartition(topic, p)).toList();
    }

    // Writes the records that close the last sessions, unless they are there.
    void end() throws Exception {
        long latest = Long.MIN_VALUE;
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            consumer.assign(all());
            Map<TopicPartition, Long> found = consumer.endOffsets(all());
            Set<TopicPartition> awaited = new HashSet<>(all());
            found.forEach((partition, end) -> consumer.seek(partition, Math.max(0, end - 1)));
            while (!awaited.isEmpty()) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    if (Arrays.equals(record.key(), END.getBytes(StandardCharsets.UTF_8))) {
                        return;
                    }
                    latest = Math.max(latest, Event.parse(record.value()).time);
                    awaited.remove(new TopicPartition(topic, record.partition()));
                }
            }
        }
        long time = latest + 2 * GRACE.toMillis() + GAP.toMillis() + 1000;
        Map<String, Object> config = Map.of("bootstrap.servers", brokers, "acks", "all");
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            byte[] value = ("{\"user\":\"" + END + "\",\"time\":" + time + "}").getBytes(StandardCharsets.UTF_8);
            for (int partition = 0; partition < partitions; partition++) {
                producer.send(new ProducerRecord<>(topic, partition, END.getBytes(StandardCharsets.UTF_8), value)).get();
            }
        }
    }

    Properties config(String application, Path state) {
        Properties p = new Properties();
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        p.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, threads);
        // As limn's config/bench.toml; Kafka Streams' own under exactly_once_v2 is 100, which makes five times the transactions.
        p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, COMMIT_MS);
        // One broker, no standby: limn's topics have one replica too.
        p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        p.put(StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE);
        // All that changes between two commits fits (10 MiB by default): a session that gets ten events in that time goes
        // through RocksDB, the changelog and suppress once and not ten times.
        p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 256L << 20);
        // More records wait for each task, so that no poll finds it idle.
        p.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        // Fewer, larger polls and fetches: a full input waits.
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 8 << 20);
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.RECEIVE_BUFFER_CONFIG), 1 << 20);
        // librdkafka, which limn reads with, does not check them either.
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.CHECK_CRCS_CONFIG), false);
        // Batches fill up: nothing is waited for but the commit, and that flushes at once.
        p.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 100);
        p.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 512 << 10);
        p.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128L << 20);
        p.put(StreamsConfig.producerPrefix(ProducerConfig.SEND_BUFFER_CONFIG), 1 << 20);
        // The cheapest codec; less for the broker, which is on the same processors, to take in.
        p.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        // On a busy machine a transaction must not be given up after Streams' 10 seconds.
        p.put(StreamsConfig.producerPrefix(ProducerConfig.TRANSACTION_TIMEOUT_CONFIG), 60_000);
        return p;
    }

    // The job. The profiles topic is the changelog of the store of profiles: compacted, keyed by user, in the same
    // transaction. A topic beside it with the same records would only cost.
    StreamsBuilder topology(String changes) {
        Serde<Event> values = Serdes.serdeFrom((t, e) -> e.raw, (t, bytes) -> Event.parse(bytes));
        TimestampExtractor time = (record, before) -> ((Event) record.value()).time;
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore("profiles"), Serdes.Bytes(), Serdes.ByteArray()).withCachingEnabled());
        builder.stream(topic, Consumed.with(Serdes.Bytes(), values).withTimestampExtractor(time))
                .processValues(Pack::new)
                // The key is the user already: no repartitioning.
                .groupByKey(Grouped.with(Serdes.Bytes(), Serdes.ByteArray()))
                .windowedBy(SessionWindows.ofInactivityGapAndGrace(GAP, GRACE))
                .aggregate(() -> new byte[0], (user, event, list) -> join(list, event), (user, a, b) -> join(a, b),
                        Materialized.<Bytes, byte[], SessionStore<Bytes, byte[]>>as("sessions")
                                .withKeySerde(Serdes.Bytes()).withValueSerde(Serdes.ByteArray())
                                .withCachingEnabled()
                                // The time is split into segments of half of this, each its own RocksDB: with the least
                                // that is allowed they would come and go every minute of event time.
                                .withRetention(Duration.ofMinutes(30))
                                // The events are years old; what is logged of them must not be deleted for that.
                                .withLoggingEnabled(Map.of("retention.ms", "-1")))
                .suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()))
                .toStream()
                .process(Fold::new, "profiles")
                .to(changes, Produced.with(Serdes.Bytes(), Serdes.ByteArray()));
        return builder;
    }

    static byte[] join(byte[] a, byte[] b) {
        if (a.length == 0) {
            return b;
        }
        byte[] joined = Arrays.copyOf(a, a.length + b.length);
        System.arraycopy(b, 0, joined, a.length, b.length);
        return joined;
    }

    // An input record's value. All of it is parsed: an input with faults must be told from one without.
    static final class Event {
        static final JsonFactory JSON = new JsonFactory();
        byte[] raw;
        long time;
        String user;
        String action;
        String item;
        String text;

        static Event parse(byte[] raw) {
            Event event = new Event();
            event.raw = raw;
            try (JsonParser parser = JSON.createParser(raw)) {
                if (parser.nextToken() != JsonToken.START_OBJECT) {
                    throw new IllegalArgumentException("no JSON object");
                }
                for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                    parser.nextToken();
                    switch (name) {
                        case "user" -> event.user = parser.getText();
                        case "time" -> event.time = parser.getLongValue();
                        case "action" -> event.action = parser.getText();
                        case "item" -> event.item = parser.getText();
                        case "text" -> event.text = parser.getText();
                        default -> parser.skipChildren();
                    }
                }
            } catch (IOException error) {
                throw new IllegalArgumentException(error);
            }
            return event;
        }
    }

    // An event of a list: its length, partition, offset and time, then the prompt's line or the whole record.
    static final int HEAD = 4 + 4 + 8 + 8;

    final class Pack extends ContextualFixedKeyProcessor<Bytes, Event, byte[]> {
        @Override
        public void process(FixedKeyRecord<Bytes, Event> record) {
            Event event = record.value();
            boolean end = END.equals(event.user);
            if (!end) {
                long number = read.incrementAndGet();
                if (number == 1) {
                    first.set(System.nanoTime());
                } else if (number == events / 2) {
                    half.set(System.nanoTime());
                }
            }
            var place = context().recordMetadata().orElseThrow();
            byte[] content = whole ? event.raw
                    : ("- @" + place.partition() + ":" + place.offset()).getBytes(StandardCharsets.ISO_8859_1);
            context().forward(record.withValue(ByteBuffer.allocate(HEAD + content.length).putInt(content.length)
                    .putInt(place.partition()).putLong(place.offset()).putLong(event.time).put(content).array()));
        }
    }

    record Place(int partition, long offset, long time) {}

    // Folds a closed session into the user's profile, as limn's scripted engine does: the profile lists the positions of all
    // that was folded. Writes limn's own messages (proto/limn.proto: ProfileState, ProfileChange).
    final class Fold extends ContextualProcessor<Windowed<Bytes>, byte[], Bytes, byte[]> {
        KeyValueStore<Bytes, byte[]> profiles;

        @Override
        public void init(ProcessorContext<Bytes, byte[]> context) {
            super.init(context);
            profiles = context.getStateStore("profiles");
        }

        @Override
        public void process(Record<Windowed<Bytes>, byte[]> record) {
            Bytes key = record.key().key();
            String user = new String(key.get(), StandardCharsets.UTF_8);
            if (user.equals(END)) {
                return;
            }
            List<Place> places = new ArrayList<>();
            ByteBuffer list = ByteBuffer.wrap(record.value());
            while (list.hasRemaining()) {
                int length = list.getInt();
                places.add(new Place(list.getInt(), list.getLong(), list.getLong()));
                list.position(list.position() + length);
            }
            places.sort(Comparator.comparingLong(Place::time).thenComparingLong(Place::offset));
            State before = State.read(profiles.get(key));
            Positions all = Positions.parse(before.summary);
            Positions these = new Positions();
            for (Place place : places) {
                all.add(place);
                these.add(place);
            }
            String after = all.toString();
            long now = System.currentTimeMillis();
            long begin = places.get(0).time();
            long end = places.get(places.size() - 1).time();
            State state = new State(before.version + 1, after, Math.max(before.eventTime, end), before.events + places.size());
            profiles.put(key, state.write(user, now));
            Wire change = new Wire().number(1, 1).text(2, user).number(3, state.version).number(4, before.version)
                    .text(5, before.summary).text(6, after);
            if (!before.summary.isEmpty()) {
                change.message(7, new Wire().number(1, 2).text(2, before.summary));
            }
            change.message(7, new Wire().number(1, 3).text(2, after));
            change.message(8, new Wire().number(1, begin).number(2, end).text(3, "gap").number(4, places.size()).number(6, 1));
            for (var partition : these.runs.entrySet()) {
                Wire source = new Wire().text(1, topic).number(2, partition.getKey());
                for (long[] run : partition.getValue()) {
                    source.message(3, new Wire().number(1, run[0]).number(2, run[1]));
                }
                change.message(9, source);
            }
            change.message(10, new Wire().text(1, "scripted").text(2, "scripted-1"));
            change.message(11, new Wire().number(3, 1).number(6, 1)).text(12, "window").number(13, now);
            context().forward(new Record<>(key, change.bytes(), now));
            folded.addAndGet(places.size());
        }
    }

    // What a profile's state has that the next update needs.
    record State(long version, String summary, long eventTime, long events) {
        static State read(byte[] bytes) {
            long version = 0, time = 0, events = 0;
            String summary = "";
            for (Field field : bytes == null ? List.<Field>of() : Field.all(ByteBuffer.wrap(bytes))) {
                switch (field.tag) {
                    case 3 -> version = field.number;
                    case 4 -> summary = field.text();
                    case 7 -> time = field.number;
                    case 8 -> events = field.number;
                    default -> { }
                }
            }
            return new State(version, summary, time, events);
        }

        byte[] write(String user, long now) {
            return new Wire().number(1, 1).text(2, user).number(3, version).text(4, summary).number(6, now)
                    .number(7, eventTime).number(8, events).text(9, "scripted").text(10, "scripted-1").bytes();
        }
    }

    // Offsets by partition, as `0:5-9,12;1:3`.
    static final class Positions {
        // Runs in order: first offset, offset behind the last.
        final TreeMap<Integer, ArrayList<long[]>> runs = new TreeMap<>();

        static Positions parse(String summary) {
            Positions positions = new Positions();
            for (String partition : summary.isEmpty() ? new String[0] : summary.split(";")) {
                int colon = partition.indexOf(':');
                var list = new ArrayList<long[]>();
                for (String run : partition.substring(colon + 1).split(",")) {
                    int dash = run.indexOf('-');
                    long first = Long.parseLong(dash < 0 ? run : run.substring(0, dash));
                    list.add(new long[] {first, 1 + (dash < 0 ? first : Long.parseLong(run.substring(dash + 1)))});
                }
                positions.runs.put(Integer.parseInt(partition.substring(0, colon)), list);
            }
            return positions;
        }

        void add(Place place) {
            ArrayList<long[]> list = runs.computeIfAbsent(place.partition(), p -> new ArrayList<>());
            long offset = place.offset();
            int at = list.size();
            while (at > 0 && list.get(at - 1)[0] > offset) {
                at--;
            }
            boolean behind = at > 0 && list.get(at - 1)[1] >= offset;
            boolean before = at < list.size() && list.get(at)[0] == offset + 1;
            if (behind && before) {
                list.get(at - 1)[1] = list.remove(at)[1];
            } else if (behind) {
                list.get(at - 1)[1] = Math.max(list.get(at - 1)[1], offset + 1);
            } else if (before) {
                list.get(at)[0] = offset;
            } else {
                list.add(at, new long[] {offset, offset + 1});
            }
        }

        @Override
        public String toString() {
            StringBuilder text = new StringBuilder();
            runs.forEach((partition, list) -> {
                text.append(text.isEmpty() ? "" : ";").append(partition).append(':');
                for (int i = 0; i < list.size(); i++) {
                    long[] run = list.get(i);
                    text.append(i == 0 ? "" : ",").append(run[0]);
                    if (run[1] > run[0] + 1) {
                        text.append('-').append(run[1] - 1);
                    }
                }
            });
            return text.toString();
        }
    }

    // As much of Protocol Buffers as is needed.
    static final class Wire {
        final ByteArrayOutputStream out = new ByteArrayOutputStream(256);

        Wire varint(long n) {
            for (; (n & ~0x7fL) != 0; n >>>= 7) {
                out.write((int) (n & 0x7f | 0x80));
            }
            out.write((int) n);
            return this;
        }

        Wire number(int tag, long n) {
            return n == 0 ? this : varint(tag << 3).varint(n);
        }

        Wire text(int tag, String text) {
            return text.isEmpty() ? this : bytes(tag, text.getBytes(StandardCharsets.UTF_8));
        }

        Wire message(int tag, Wire message) {
            return bytes(tag, message.bytes());
        }

        Wire bytes(int tag, byte[] bytes) {
            varint(tag << 3 | 2).varint(bytes.length).out.writeBytes(bytes);
            return this;
        }

        byte[] bytes() {
            return out.toByteArray();
        }
    }

    record Field(int tag, long number, ByteBuffer bytes) {
        static List<Field> all(ByteBuffer in) {
            List<Field> fields = new ArrayList<>();
            while (in.hasRemaining()) {
                long head = varint(in);
                long number = varint(in);
                ByteBuffer bytes = null;
                if ((head & 7) == 2) {
                    bytes = in.slice(in.position(), (int) number);
                    in.position(in.position() + (int) number);
                }
                fields.add(new Field((int) (head >>> 3), number, bytes));
            }
            return fields;
        }

        static long varint(ByteBuffer in) {
            long n = 0;
            for (int shift = 0; ; shift += 7) {
                byte b = in.get();
                n |= (long) (b & 0x7f) << shift;
                if (b >= 0) {
                    return n;
                }
            }
        }

        String text() {
            return StandardCharsets.UTF_8.decode(bytes.duplicate()).toString();
        }
    }

    // Notes when each commit was through; nothing else differs from what Kafka Streams makes by itself.
    final class Clients implements KafkaClientSupplier {
        @Override
        public Admin getAdmin(Map<String, Object> config) {
            return Admin.create(config);
        }

        @Override
        public Producer<byte[], byte[]> getProducer(Map<String, Object> config) {
            return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer()) {
                @Override
                public void commitTransaction() {
                    long began = System.nanoTime();
                    super.commitTransaction();
                    long now = System.nanoTime();
                    commits.add(now - began);
                    lastCommit.accumulateAndGet(now, Math::max);
                }
            };
        }

        @Override
        public Consumer<byte[], byte[]> getConsumer(Map<String, Object> config) {
            return new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        }

        @Override
        public Consumer<byte[], byte[]> getRestoreConsumer(Map<String, Object> config) {
            return getConsumer(config);
        }

        @Override
        public Consumer<byte[], byte[]> getGlobalConsumer(Map<String, Object> config) {
            return getConsumer(config);
        }
    }

    record Result(Peer peer, double seconds, double rate, double secondHalf, long updates, long users, List<Long> commits,
            double cpu, long peak) {
        double quantile(double share) {
            List<Long> sorted = commits.stream().sorted().toList();
            return sorted.isEmpty() ? 0 : sorted.get((int) Math.ceil(sorted.size() * share) - 1) / 1e9;
        }

        String json(double cold) {
            return String.format(java.util.Locale.ROOT,
                    "{\"kafka_streams\":\"%s\",\"list\":\"%s\",\"threads\":%d,\"events\":%d,\"users\":%d,\"updates\":%d,"
                            + "\"transactions\":%d,\"seconds\":%.3f,\"events_per_second\":%.1f,"
                            + "\"events_per_second_of_second_half\":%.1f,\"events_per_second_of_first_run\":%.1f,"
                            + "\"updates_per_second\":%.1f,\"commit_p50_seconds\":%.4f,\"commit_p99_seconds\":%.4f,"
                            + "\"cpu_seconds\":%.2f,\"peak_memory_bytes\":%d}",
                    org.apache.kafka.common.utils.AppInfoParser.getVersion(), peer.whole ? "whole" : "line", peer.threads,
                    peer.events, users, updates, commits.size(), seconds, rate, secondHalf, cold, updates / seconds,
                    quantile(0.5), quantile(0.99), cpu, peak);
        }
    }

    Result run() throws Exception {
        String application = "kafka-streams-peer-" + Long.toHexString(System.nanoTime());
        String changes = application + "-changes";
        Path state = Files.createTempDirectory(application);
        for (AtomicLong count : List.of(first, half, read, folded, lastCommit)) {
            count.set(0);
        }
        commits.clear();
        try (Admin admin = admin()) {
            admin.createTopics(List.of(new NewTopic(changes, partitions, (short) 1))).all().get();
            Properties config = config(application, state);
            AtomicReference<Throwable> failed = new AtomicReference<>();
            KafkaStreams streams = new KafkaStreams(topology(changes).build(config), config, new Clients());
            streams.setUncaughtExceptionHandler(error -> {
                failed.set(error);
                return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
            });
            System.gc();
            forgetPeak();
            long cpu = cpu();
            double seconds, secondHalf, used;
            List<Long> took;
            try {
                streams.start();
                long told = System.nanoTime();
                // In the transaction that commits the input's last offset is all that was made of the input.
                while (folded.get() < events || !committed(admin, application)) {
                    if (failed.get() != null) {
                        throw new IllegalStateException(failed.get());
                    }
                    Thread.sleep(folded.get() < events ? 100 : 20);
                    if (System.nanoTime() - told > 5_000_000_000L) {
                        told = System.nanoTime();
                        System.err.printf("peer: %d events read, %d folded%n", read.get(), folded.get());
                    }
                }
                long end = lastCommit.get();
                seconds = (end - first.get()) / 1e9;
                secondHalf = (events - events / 2) / ((end - half.get()) / 1e9);
                took = new ArrayList<>(commits);
                used = (cpu() - cpu) / 1e9;
            } finally {
                streams.close(Duration.ofSeconds(60));
            }
            long peak = peak();
            long[] found = verify(changes);
            return new Result(this, seconds, events / seconds, secondHalf, found[0], found[1], took, used, peak);
        } finally {
            try (Stream<Path> files = Files.walk(state)) {
                files.sorted(Comparator.reverseOrder()).map(Path::toFile).forEach(File::delete);
            }
        }
    }

    boolean committed(Admin admin, String group) throws Exception {
        Map<TopicPartition, OffsetAndMetadata> offsets =
                admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        return ends.entrySet().stream().allMatch(e -> {
            OffsetAndMetadata offset = offsets.get(e.getKey());
            return offset != null && offset.offset() >= e.getValue();
        });
    }

    // Reads what was committed: every event must be in exactly one update. Returns the updates and the users.
    long[] verify(String changes) throws Exception {
        Map<Integer, BitSet> seen = new HashMap<>();
        Set<Bytes> users = new HashSet<>();
        long updates = 0, places = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            var partitions = consumer.partitionsFor(changes).stream()
                    .map(p -> new TopicPartition(changes, p.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            // All that is there, not what is already open to this reader: the brokers write a transaction's end a little
            // after they have said that it is committed.
            Map<TopicPartition, Long> ends;
            try (Admin admin = admin()) {
                ends = new HashMap<>();
                var latest = admin.listOffsets(partitions.stream()
                        .collect(java.util.stream.Collectors.toMap(p -> p, p -> OffsetSpec.latest()))).all().get();
                latest.forEach((partition, info) -> ends.put(partition, info.offset()));
            }
            while (ends.entrySet().stream().anyMatch(e -> consumer.position(e.getKey()) < e.getValue())) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    updates++;
                    users.add(Bytes.wrap(record.key()));
                    for (Field field : Field.all(ByteBuffer.wrap(record.value()))) {
                        if (field.tag != 9) {
                            continue;
                        }
                        int partition = 0;
                        for (Field source : Field.all(field.bytes)) {
                            if (source.tag == 2) {
                                partition = (int) source.number;
                            } else if (source.tag == 3) {
                                long first = 0, end = 0;
                                for (Field run : Field.all(source.bytes)) {
                                    first = run.tag == 1 ? run.number : first;
                                    end = run.tag == 2 ? run.number : end;
                                }
                                seen.computeIfAbsent(partition, p -> new BitSet()).set((int) first, (int) end);
                                places += end - first;
                            }
                        }
                    }
                }
            }
        }
        long distinct = seen.values().stream().mapToLong(BitSet::cardinality).sum();
        if (places != events || distinct != events) {
            throw new IllegalStateException(events + " events, but " + distinct + " folded, " + places + " times: "
                    + "the figures would be worth nothing");
        }
        return new long[] {updates, users.size()};
    }

    Admin admin() {
        return Admin.create(Map.of(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, brokers));
    }

    KafkaConsumer<byte[], byte[]> consumer() {
        return new KafkaConsumer<>(Map.of("bootstrap.servers", brokers, "isolation.level", "read_committed"),
                new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static long cpu() {
        return ((com.sun.management.OperatingSystemMXBean)
                java.lang.management.ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    // Begins the peak of resident memory anew, where the system can (Linux).
    static void forgetPeak() {
        try {
            Files.writeString(Path.of("/proc/self/clear_refs"), "5");
        } catch (IOException error) {
            // Then it is that of the whole process.
        }
    }

    static long peak() throws IOException {
        Path status = Path.of("/proc/self/status");
        if (!Files.exists(status)) {
            return 0;
        }
        for (String line : Files.readAllLines(status)) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) << 10;
            }
        }
        return 0;
    }
}
