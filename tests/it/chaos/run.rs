//! One run of a fault: instances under load, and the account of every record in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use limn::codec;
use limn::engine::Positions;
use limn::event::Record;
use limn::failpoint;
use limn::source;
use limn::verify::{self, Kind, Report};
use rdkafka::consumer::BaseConsumer;

use super::load::{Events, Load};
use crate::broker::{self, Broker, DEADLINE, OwnedRecord, eventually};
use crate::case::{Case, Instance, PARTITIONS};
use crate::http::get;

/// What limn writes, as [`Case::topic`] has it.
const OUTPUTS: [&str; 4] = ["changes", "profiles", "checkpoints", "dead"];

pub struct Run<'a> {
    pub case: Case<'a>,
    pub brokers: &'a [Broker],
    pub rng: fastrand::Rng,
    /// What the final account may find, because this fault destroys what it needs.
    pub allowed: Vec<Kind>,
    /// The events of dead letters whose topic was deleted after they were seen. With these, each event must be in a profile or have a
    /// dead letter, whatever is `allowed`.
    letters: Option<BTreeSet<(i32, i64)>>,
    /// The input is not to be worked off in the end: limn must refuse to.
    pub stopped: bool,
    /// Records of the input that are there no more.
    pub removed: u64,
    /// The engine panics until the end: who is told to stop may meet it then, and say so with exit code 1.
    pub panics: bool,
    /// Asks what the group has committed.
    client: BaseConsumer,
    load: Option<Load>,
    /// By loads that have ended.
    produced: u64,
    instances: BTreeMap<String, Instance>,
}

impl<'a> Run<'a> {
    pub fn new(name: &str, seed: u64, brokers: &'a [Broker]) -> Self {
        let case = Case::on(&brokers[0], name);
        Self {
            client: brokers[0].of_group(&case.input),
            case,
            brokers,
            rng: fastrand::Rng::with_seed(seed),
            allowed: Vec::new(),
            letters: None,
            stopped: false,
            removed: 0,
            panics: false,
            load: None,
            produced: 0,
            instances: BTreeMap::new(),
        }
    }

    pub fn broker(&self) -> &'a Broker {
        &self.brokers[0]
    }

    /// Makes the topics.
    pub fn topics(&self) {
        // Of three brokers that are short of time one may not know the input yet that another has told of.
        eventually("topics on an input that each broker knows", || {
            let made = self.case.topics();
            let said = String::from_utf8_lossy(&made.stderr);
            let unknown = said.contains("there is no topic");
            assert!(made.status.success() || unknown, "{said}");
            made.status.success().then_some(())
        });
    }

    /// Makes the topics, and events come from now on.
    pub fn load(&mut self, events: Events) {
        self.topics();
        self.feed(events);
    }

    /// Events come from now on, and others no more.
    pub fn feed(&mut self, events: Events) {
        self.unfeed();
        let seed = self.rng.u64(..);
        self.load = Some(Load::start(self.broker(), &self.case.input, events, seed));
    }

    /// No events come any more.
    pub fn unfeed(&mut self) {
        self.produced += self.load.take().map_or(0, Load::stop);
    }

    pub fn start(&mut self, name: &str) {
        self.start_with(name, &[]);
    }

    pub fn start_with(&mut self, name: &str, environment: &[(&str, &str)]) {
        let instance = self.case.start_with(name, environment);
        self.instances.insert(name.to_owned(), instance);
    }

    /// With something that happens at a step.
    pub fn start_armed(&mut self, name: &str, point: &str) {
        self.start_with(name, &[(failpoint::VARIABLE, point)]);
    }

    /// An instance that was started otherwise.
    pub fn add(&mut self, name: &str, instance: Instance) {
        self.instances.insert(name.to_owned(), instance);
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.instances[name].0.id()
    }

    pub fn signal(&self, name: &str, signal: &str) {
        broker::signal(&self.instances[name].0, signal);
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self, name: &str) {
        drop(self.instances.remove(name).expect("it runs"));
    }

    /// One way or the other.
    pub fn end(&mut self, name: &str) {
        if self.rng.bool() {
            self.stop(name);
        } else {
            self.kill(name);
        }
    }

    /// An instance works, is killed, and works again.
    pub fn survives_a_kill(&mut self) {
        self.start("a");
        self.works();
        self.kill("a");
        self.start("a");
        self.works();
    }

    /// An instance that waits at a step, at some time that it is done: the file that lets it go on, once it waits.
    pub fn held_at(&mut self, step: &str) -> PathBuf {
        let release = self.case.dir.path().join("release");
        let times = self.rng.u64(2..8);
        self.start_armed("a", &format!("{step}:{times}=hold {}", release.display()));
        self.says("a", "held");
        release
    }

    /// Ends it as a service manager does; it must end cleanly.
    pub fn stop(&mut self, name: &str) {
        let told = self.terminate(name);
        let code = self.ended(name);
        self.clean(name, told, code);
    }

    /// Ends all of them so, at once.
    pub fn stop_all(&mut self) {
        let names: Vec<String> = self.instances.keys().cloned().collect();
        let told: Vec<bool> = names.iter().map(|name| self.terminate(name)).collect();
        for (name, told) in names.iter().zip(told) {
            let code = self.ended(name);
            self.clean(name, told, code);
        }
    }

    /// Ends all of them as a power cut would.
    pub fn kill_all(&mut self) {
        for name in self.instances.keys() {
            self.signal(name, "-KILL");
        }
        self.instances.clear();
    }

    /// Tells it to end once it can hear it, or has ended: one that has just begun would die of the signal. Whether it was told.
    fn terminate(&mut self, name: &str) -> bool {
        let (case, instance) = (&self.case, self.instances.get_mut(name).expect("it runs"));
        let ended = eventually("the instance to begin", || {
            let ended = instance.0.try_wait().unwrap().is_some();
            (ended || case.log(name).contains("HTTP:")).then_some(ended)
        });
        if !ended {
            self.signal(name, "-TERM");
        }
        !ended
    }

    /// Whether it has ended as it should: when told to, with exit code 0, or with 1 where it says why in the end.
    fn clean(&self, name: &str, told: bool, code: Option<i32>) {
        let log = self.case.log(name);
        let last = log.lines().last().unwrap_or_default();
        // Brokers of a starved machine take longer than a transaction may.
        let excused = last.contains("transaction in doubt")
            || self.panics && last.contains("a part of the pipeline has failed");
        let clean = code == Some(0) || code == Some(1) && excused;
        assert!(told && clean, "{name}, told: {told}, {code:?}: {log}");
    }

    /// Waits until it has ended by itself; its exit code, or none where a signal ended it.
    pub fn ended(&mut self, name: &str) -> Option<i32> {
        let mut instance = self.instances.remove(name).expect("it runs");
        instance.ended().code()
    }

    /// Waits until it has stopped by itself, with an error that has these words.
    pub fn stops(&mut self, name: &str, words: &[&str]) {
        let code = self.ended(name);
        let said = self.case.log(name);
        assert_eq!(code, Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        for word in words {
            assert!(last.contains(word), "{word} in: {last}");
        }
    }

    /// Waits until it has died at the step that it was armed with.
    pub fn died(&mut self, name: &str) {
        assert_eq!(self.ended(name), None, "{}", self.case.log(name));
    }

    /// Waits until the log of an instance says something.
    pub fn says(&self, name: &str, what: &str) {
        eventually(what, || self.case.log(name).contains(what).then_some(()));
    }

    /// Waits until so many partitions were restored by an instance since it was started.
    pub fn restored(&self, name: &str, partitions: usize) {
        self.case.until_restored(name, partitions);
    }

    fn offsets(&self) -> BTreeMap<i32, i64> {
        broker::committed_offsets(&self.client, &self.case.input, PARTITIONS)
    }

    /// Waits until the group gets on, by a hundred events at least, and in each partition where anything waits.
    pub fn works(&self) {
        let before = self.offsets();
        let ends = self.broker().ends(&self.case.input);
        eventually("the group to get on", || {
            let now = self.offsets();
            // Where nothing was committed yet, an offset at all is progress.
            let at = |all: &BTreeMap<i32, i64>, p| all.get(p).copied().unwrap_or_default();
            let on = |p| at(&now, p) - at(&before, p);
            let everywhere = ends.iter().all(|(p, &end)| on(p) > 0 || at(&now, p) >= end);
            (everywhere && now.keys().map(on).sum::<i64>() >= 100).then_some(())
        });
    }

    /// Waits until the group gets on in each partition, or the instance has ended; whether it gets on.
    pub fn works_everywhere_or_ends(&mut self, name: &str) -> bool {
        let before = self.offsets();
        eventually("the group to get on, or an end", || {
            let instance = self.instances.get_mut(name).expect("it runs");
            let ended = instance.0.try_wait().unwrap().is_some();
            let now = self.offsets();
            let works = before.iter().all(|(partition, &at)| now[partition] > at);
            (ended || works).then_some(!ended)
        })
    }

    /// Waits until all that was written is folded or dead-lettered, without an end of the input.
    pub fn works_off(&self) {
        let end = self.broker().end(&self.case.input);
        eventually("everything to be folded", || {
            (self.offsets().values().sum::<i64>() >= end).then_some(())
        });
    }

    /// Whether a transaction is open on any of the outputs: it may hold dead letters only, or a checkpoint.
    pub fn in_transaction(&self) -> bool {
        OUTPUTS.iter().any(|kind| self.is_open(kind))
    }

    /// Whether one is open on this one.
    fn is_open(&self, kind: &str) -> bool {
        let properties = [("bootstrap.servers".to_owned(), self.broker().servers())];
        let topic = self.case.topic(kind);
        let bounds = source::bounds(&properties, "looks", &topic, DEADLINE).unwrap();
        let stable: i64 = bounds.values().map(|(_, end)| end).sum();
        stable < self.broker().end(&topic)
    }

    /// The sum of a metric of a running instance over its labels.
    pub fn metric(&self, name: &str, metric: &str) -> f64 {
        let (_, text) = get(&self.case.address(name), "/metrics").unwrap_or_default();
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(metric)?;
            rest.starts_with([' ', '{']).then_some(())?;
            line.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        values.sum()
    }

    /// Lines of the configuration that are others from now on.
    pub fn replace(&mut self, old: &'static str, new: impl Into<String>) {
        self.case.replaced.retain(|(known, _)| *known != old);
        self.case.replaced.push((old, new.into()));
    }

    /// Ends all that runs, works off what is left, on the old folder or on none, and accounts for every record.
    pub fn finish(mut self) -> Report {
        self.unfeed();
        for name in self.instances.keys() {
            self.signal(name, "-CONT");
        }
        self.stop_all();
        let drained = !self.stopped;
        // Nothing is left to break: no need to take long.
        let slow = "delay = \"50ms\"";
        if self.case.replaced.iter().all(|(old, _)| *old != slow) {
            self.replace(slow, "");
        }
        if drained {
            let folder = if self.rng.bool() { "a" } else { "fresh" };
            self.case.run_to_the_end(folder);
        }
        let report = verify::verify(&self.case.verify_options(drained), &mut |_| ()).unwrap();
        let found: Vec<_> = (report.findings.keys())
            .filter(|kind| !self.allowed.contains(kind))
            .collect();
        assert!(found.is_empty(), "{report:#?}");
        assert!(
            report.events + self.removed >= self.produced && report.folded > 0,
            "{} produced: {report:?}",
            self.produced
        );
        self.all_are_told();
        report
    }

    /// Keeps what dead letters tell that are deleted after this. The end of the run looks at each event then.
    pub fn remember_dead_letters(&mut self) {
        let now = self.dead_letters();
        self.letters.get_or_insert_default().extend(now);
    }

    fn dead_letters(&self) -> BTreeSet<(i32, i64)> {
        let letters = self.broker().read_committed(&self.case.topic("dead"));
        let place = |letter: OwnedRecord| {
            let record = Record {
                headers: letter.headers.into(),
                ..Record::default()
            };
            let letter = codec::Letter::read(&record).unwrap();
            (letter.partition, letter.offset)
        };
        letters.into_iter().map(place).collect()
    }

    /// Stops an instance's process in a moment in which no transaction has a dead letter that is not committed.
    pub fn freeze_without_open_dead_letters(&self, name: &str) {
        eventually("a moment without open dead letters", || {
            self.signal(name, "-STOP");
            // What it had sent is with the broker by the second look.
            let open = self.is_open("dead") || self.is_open("dead");
            if open {
                self.signal(name, "-CONT");
            }
            (!open).then_some(())
        });
    }

    /// Each event is in a last profile, once, or has a dead letter.
    fn all_are_told(&self) {
        let Some(remembered) = &self.letters else {
            return;
        };
        let mut states = BTreeMap::new();
        for state in self.case.read("profiles") {
            let state = codec::decode_state(&state.value.unwrap()).unwrap();
            states.insert(state.user_id, state.summary);
        }
        let mut folded = BTreeSet::new();
        for (user, summary) in states {
            let positions = Positions::parse(&summary).expect("a scripted summary");
            assert_eq!(positions.repeated, [], "{user}");
            for (partition, offsets) in positions.folded {
                for offset in offsets.runs().flat_map(|(first, end)| first..end) {
                    let place = (partition, offset);
                    assert!(folded.insert(place), "{place:?} is folded twice");
                }
            }
        }
        let now = self.dead_letters();
        if let Some(place) = now.intersection(remembered).next() {
            panic!("{place:?} is a dead letter twice");
        }
        let given_up_too = self.allowed.contains(&Kind::FoldedAndDeadLettered);
        for (partition, end) in self.broker().ends(&self.case.input) {
            for offset in 0..end {
                let place = (partition, offset);
                let given_up = now.contains(&place) || remembered.contains(&place);
                match (folded.contains(&place), given_up) {
                    (false, false) => panic!("{place:?} is lost"),
                    (true, true) => assert!(given_up_too, "{place:?} is both"),
                    _ => {}
                }
            }
        }
    }

    /// The topics are not needed any more.
    pub fn tidy(broker: &Broker, input: &str) {
        let all = OUTPUTS.map(|kind| format!("{input}.{kind}"));
        let mut names: Vec<&str> = all.iter().map(String::as_str).collect();
        names.push(input);
        broker.delete_topics(&names);
    }
}
