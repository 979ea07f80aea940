//! `limn demo`: on its in-process broker with the scripted engine, and once as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use limn::codec::proto::ProfileChange;
use limn::config::Config;
use limn::demo::show::{Mode, Show};
use limn::demo::{self, Options, Summary, movielens};
use limn::engine::{Positions, Script, Scripted};
use limn::pipeline::{self, Topics};
use tokio::sync::watch;

use crate::broker::eventually;

const USERS: usize = 3;
/// What the demo loads of each user.
const EVENTS: usize = 24 * USERS;

fn config() -> Config {
    let own = [
        ("LIMN_ENGINE__MODEL", "m"),
        ("LIMN_SUMMARY__EVENT", "- @{{ partition }}:{{ offset }}"),
        ("LIMN_SUMMARY__MAX_TOKENS", "500"),
        ("LIMN_COMMIT__INTERVAL", "50ms"),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Config::parse(include_str!("../../config/demo.toml"), own).unwrap()
}

fn options(folder: &Path, max_updates: Option<u64>) -> Options {
    let config = config();
    let mut store = config.store.room();
    store.folder = folder.to_owned();
    Options {
        users: USERS,
        max_updates,
        pipeline: pipeline::Config {
            source: config.source_room(),
            codec: config.source.codec.clone(),
            partitioner: config.source.partitioner,
            window: config.window.clone(),
            summarize: config.summary.clone(),
            commit: config.commit_room("limn-demo".to_owned()),
            topics: Topics {
                changes: config.topics.changes.clone(),
                profiles: config.topics.profiles.clone(),
                checkpoints: config.topics.checkpoints.clone(),
                dead_letters: config.topics.dead_letters.clone(),
            },
            commit_interval: config.commit.interval,
            commit_updates: config.commit.max_updates,
            open_bytes: config.limits.open_bytes,
            waiting_bytes: config.limits.waiting_bytes,
            shutdown_timeout: config.shutdown_timeout,
            restore_timeout: config.store.restore_timeout,
            waits_for_open: config.commit.waits_for_open,
            stop_at_end: false,
            max_updates: None,
            checkpoint_runs: pipeline::CHECKPOINT_RUNS,
        },
        store,
        data: movielens::default_folder().expect("neither LIMN_CACHE nor HOME is set"),
        time_limit: Duration::from_secs(60),
    }
}

/// Runs a demo; `stop_at` presses Ctrl-C when the engine gets its so-manieth request.
fn run(options: &Options, stop_at: Option<u64>) -> (Summary, Vec<ProfileChange>) {
    let (stop, stopped) = watch::channel(false);
    let engine = Scripted::with(2, move |_, call| {
        if stop_at == Some(call) {
            stop.send_replace(true);
        }
        Script::After(Duration::from_millis(20), Box::new(Script::Answer))
    });
    let mut out = Vec::new();
    let mut show = Show::new(Mode::Json, false, &mut out);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let summary = runtime.block_on(demo::run(options, Arc::new(engine), &mut show, stopped));
    drop(show);
    // The committing thread of a pipeline that has ended lets the folder go a moment later.
    let lock = std::fs::File::open(options.store.folder.join("lock")).unwrap();
    eventually("the folder to be let go", || lock.try_lock().ok());
    (summary.unwrap(), changes(&out))
}

/// The lines as change events. Each must have the fields that the README names, under these very names.
fn changes(out: &[u8]) -> Vec<ProfileChange> {
    let lines = std::str::from_utf8(out).unwrap().lines();
    lines
        .map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).expect(line);
            for field in ["user_id", "version", "previous_version", "before", "after"] {
                assert!(json.get(field).is_some(), "{field}: {line}");
            }
            serde_json::from_value(json).expect(line)
        })
        .collect()
}

/// Versions without a gap, each on the one before; every event folded at most once. Returns how many are.
fn folded(changes: &[ProfileChange]) -> usize {
    let mut last: BTreeMap<&str, &ProfileChange> = BTreeMap::new();
    for change in changes {
        let before = last.insert(&change.user_id, change);
        let version = before.map_or(0, |b| b.version);
        assert_eq!(change.previous_version, version, "{}", change.user_id);
        assert_eq!(change.version, version + 1, "{}", change.user_id);
        assert_eq!(change.before, before.map_or("", |b| b.after.as_str()));
    }
    let mut all = std::collections::BTreeSet::new();
    for change in last.values() {
        let positions = Positions::parse(&change.after).unwrap();
        assert!(positions.repeated.is_empty(), "{:?}", positions.repeated);
        for (partition, offsets) in positions.folded {
            for offset in offsets.runs().flat_map(|(first, end)| first..end) {
                assert!(
                    all.insert((partition, offset)),
                    "{partition}:{offset} twice"
                );
            }
        }
    }
    all.len()
}

#[test]
fn a_demo_that_is_stopped_goes_on_at_the_next_start_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Ctrl-C: what is under way is finished and shown.
    let (summary, mut all) = run(&options(folder.path(), None), Some(3));
    assert!(all.len() >= 3 && folded(&all) < EVENTS, "{}", all.len());
    assert_eq!(summary.updates, all.len() as u64);
    // So many updates more.
    let (summary, more) = run(&options(folder.path(), Some(2)), None);
    assert_eq!((summary.updates, more.len()), (2, 2));
    all.extend(more);
    // To the end.
    let (_, more) = run(&options(folder.path(), None), None);
    all.extend(more);
    assert_eq!(folded(&all), EVENTS);
    // Nothing is left, and what there is stays.
    let (summary, more) = run(&options(folder.path(), None), None);
    assert_eq!((more.len(), summary.updates), (0, 0));
    assert_eq!(
        (summary.users, summary.versions),
        (USERS as u64, all.len() as u64)
    );
}

#[test]
fn a_demo_on_a_torn_folder_begins_anew_without_a_hand() {
    let folder = tempfile::tempdir().unwrap();
    run(&options(folder.path(), Some(4)), None);
    let database = folder.path().join("db/db");
    let mut bytes = std::fs::read(&database).unwrap();
    bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&database, bytes).unwrap();
    let (_, all) = run(&options(folder.path(), None), None);
    assert_eq!(folded(&all), EVENTS);
}

/// The demo's promise. It ends by itself before the five minutes are over, whether it has made them or not.
#[test]
fn three_hundred_updates_by_the_real_model_within_five_minutes_are_in_form_and_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_limn"))
        .args(["demo", "--json", "--max-updates", "300"])
        .arg("--folder")
        .arg(folder.path())
        .output()
        .unwrap();
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let changes = changes(&output.stdout);
    assert_eq!(changes.len(), 300, "in {took:?}: {said}");
    assert!(took < Duration::from_secs(300), "{took:?}: {said}");
    eprintln!("300 updates in {took:?}");
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut in_form = 0;
    for change in changes {
        in_form += usize::from(demo::form::in_form(&change.after));
        let last = versions.entry(change.user_id).or_default();
        assert_eq!(
            (change.previous_version, change.version),
            (*last, *last + 1)
        );
        *last = change.version;
    }
    assert_eq!(versions.len(), 80, "{said}");
    // At least 95 of 100.
    assert!(in_form * 100 >= 300 * 95, "{in_form} of 300");
}
