//! Faults while events keep coming, and behind each the account of every record. Each is a test of its own, done once; with
//! `scripts/chaos.sh` any of them are done many times, with other seeds, and a table tells what came of it.

mod answers;
mod folders;
mod inputs;
mod kills;
mod load;
mod members;
mod nodes;
mod remote;
mod run;
mod topics;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use limn::verify::Report;

use crate::broker::{self, Broker};
use run::Run;

/// Something that goes wrong.
struct Fault {
    name: &'static str,
    brokers: Brokers,
    act: fn(&mut Run<'_>),
}

/// What it is done to.
#[derive(Clone, Copy)]
enum Brokers {
    /// It leaves the broker that all tests share in peace.
    Shared,
    /// So many of its own.
    Own(usize),
    /// One of its own that may be away for long ([`Broker::patient`]).
    Patient,
}
use Brokers::{Own, Patient, Shared};

/// Every fault by its name: a test, and an entry of the list.
macro_rules! faults {
    ($($name:ident: $brokers:expr, $act:expr;)*) => {
        const FAULTS: &[Fault] = &[$(Fault {
            name: stringify!($name),
            brokers: $brokers,
            act: $act,
        }),*];

        $(
            #[test]
            fn $name() {
                let fault = FAULTS.iter().find(|fault| fault.name == stringify!($name));
                fault.unwrap().run(1);
            }
        )*
    };
}

faults! {
    killed_when_a_window_has_closed: Shared, |run| kills::at(run, "window_closed", 30, "");
    killed_when_the_model_has_answered: Shared, |run| kills::at(run, "model_answered", 30, "");
    killed_when_the_transaction_has_begun: Shared, |run| kills::at(run, "transaction_begun", 12, "");
    killed_when_the_records_are_sent: Shared, |run| kills::at(run, "records_sent", 12, "");
    killed_when_the_offsets_are_sent: Shared, |run| kills::at(run, "offsets_sent", 12, "");
    killed_when_the_commit_is_requested: Shared, |run| kills::at(run, "offsets_sent", 12, "=die 3ms");
    killed_when_committed_and_before_the_view: Shared, |run| kills::at(run, "committed", 12, "");
    killed_while_the_view_is_written: Shared, |run| kills::at(run, "view_begun", 12, "=die 300us");
    killed_while_states_are_gathered: Shared, |run| kills::at(run, "gathered", 6, "");
    killed_while_the_view_is_restored: Shared, kills::in_restore;
    killed_while_it_shuts_down: Shared, kills::in_shutdown;
    instances_join_and_leave: Shared, members::join_and_leave;
    all_instances_restart_at_once: Shared, members::restart_all;
    members_are_static: Shared, members::fixed;
    members_cooperate: Shared, members::cooperative;
    members_speak_the_new_protocol: Shared, members::new_protocol;
    an_instance_is_frozen_past_its_session: Shared, members::zombie;
    an_instance_is_frozen_in_a_transaction: Shared, members::zombie_in_a_transaction;
    a_broker_is_killed: Own(3), nodes::killed;
    the_broker_is_frozen_for_ten_seconds: Patient, nodes::frozen;
    a_broker_of_three_is_frozen: Own(3), nodes::frozen;
    leaders_move_among_three_brokers: Own(3), nodes::leaders;
    the_coordinator_is_killed_between_offsets_and_commit: Own(3), nodes::coordinator;
    the_broker_gives_a_transaction_up: Shared, nodes::timed_out;
    another_producer_takes_the_name: Shared, nodes::fenced;
    the_folder_is_deleted: Shared, folders::deleted;
    the_folder_is_cut_short: Shared, folders::cut;
    the_folder_is_full_of_noise: Shared, folders::noise;
    the_folder_is_read_only: Shared, folders::read_only;
    the_disk_is_full: Shared, folders::full;
    the_engine_panics: Shared, |run| answers::faulty(run, "panic", 200);
    the_engine_ends: Shared, answers::ends;
    the_engine_hangs: Shared, |run| answers::faulty(run, "hang", 20);
    answers_are_empty: Shared, |run| answers::faulty(run, "empty", 3);
    answers_are_over_long: Shared, |run| answers::faulty(run, "long", 3);
    answers_loop: Shared, |run| answers::faulty(run, "loop", 3);
    answers_are_cut_off: Shared, |run| answers::faulty(run, "cut", 3);
    the_engine_is_away_now_and_then: Shared, |run| answers::faulty(run, "unavailable", 3);
    the_engine_refuses_requests: Shared, |run| answers::faulty(run, "rejected", 3);
    the_server_says_429: Shared, |run| remote::answers(run, remote::Answer::TooMany);
    the_server_says_500: Shared, |run| remote::answers(run, remote::Answer::Broken);
    the_server_says_garbage: Shared, |run| remote::answers(run, remote::Answer::Garbage);
    the_server_says_nothing: Shared, |run| remote::answers(run, remote::Answer::Nothing);
    poison_by_the_thousand: Shared, inputs::poison;
    the_clock_is_set_back: Shared, |run| inputs::clock(run, -3_600_000);
    the_clock_is_set_forward: Shared, |run| inputs::clock(run, 7_200_000);
    a_partition_is_idle: Shared, inputs::idle;
    a_partition_is_an_hour_behind: Shared, inputs::behind;
    a_user_has_very_many_events: Shared, inputs::hot_user;
    very_many_users_have_one_event: Shared, inputs::many_users;
    messages_are_as_large_as_the_broker_allows: Shared, inputs::largest;
    a_summary_is_larger_than_its_topic_allows: Shared, inputs::too_large_a_summary;
    an_output_topic_is_deleted: Shared, topics::changes_and_dead_letters_deleted;
    the_checkpoints_are_deleted: Shared, topics::checkpoints_deleted;
    the_profiles_are_deleted: Shared, topics::profiles_deleted;
    an_output_topic_gets_other_partitions: Shared, topics::grown;
    an_output_topic_is_made_anew_with_fewer_partitions: Shared, topics::shrunk;
    retention_removes_unread_input: Shared, topics::removed;
}

impl Fault {
    /// Once, with what the seed makes of it.
    fn run(&self, seed: u64) -> Report {
        static ALONE: Mutex<()> = Mutex::new(());
        if matches!(self.brokers, Shared) {
            return self.on(std::slice::from_ref(broker::shared()), seed);
        }
        // One cluster at a time: several would starve each other on a small machine.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let brokers = match self.brokers {
            Own(count) => Broker::cluster(count),
            _ => Broker::patient(),
        };
        self.on(&brokers, seed)
    }

    fn on(&self, brokers: &[Broker], seed: u64) -> Report {
        let mut run = Run::new(self.name, seed, brokers);
        let input = run.case.input.clone();
        (self.act)(&mut run);
        let report = run.finish();
        if matches!(self.brokers, Shared) {
            Run::tidy(&brokers[0], &input);
        }
        report
    }
}

/// What came of all runs of a fault.
#[derive(Default)]
struct Row {
    runs: u64,
    events: u64,
    folded: u64,
    dead_lettered: u64,
    seconds: f64,
    failed: Vec<u64>,
}

/// For `scripts/chaos.sh`: `LIMN_CHAOS_FAULTS` (names or beginnings, by commas; all unless it is set), each `LIMN_CHAOS_RUNS` times
/// (1) with seeds from `LIMN_CHAOS_SEED` on (1), `LIMN_CHAOS_JOBS` at a time (2).
#[test]
#[ignore = "done by scripts/chaos.sh; each fault has a test of its own"]
fn table() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: {text}")),
        Err(_) => default,
    };
    let (runs, first) = (number("LIMN_CHAOS_RUNS", 1), number("LIMN_CHAOS_SEED", 1));
    let wanted = std::env::var("LIMN_CHAOS_FAULTS").unwrap_or_default();
    let faults: Vec<&Fault> = wanted
        .split(',')
        .flat_map(|name| {
            let found: Vec<&Fault> = (FAULTS.iter())
                .filter(|fault| fault.name.starts_with(name.trim()))
                .collect();
            assert!(!found.is_empty(), "no fault is called {name}");
            found
        })
        .collect();
    let all = (first..first + runs).flat_map(|seed| faults.iter().map(move |fault| (*fault, seed)));
    let (shared, own): (Vec<_>, Vec<_>) =
        all.partition(|(fault, _)| matches!(fault.brokers, Shared));
    let (shared, own) = (Mutex::new(shared.into_iter()), Mutex::new(own.into_iter()));
    let rows: Mutex<BTreeMap<usize, Row>> = Mutex::default();
    std::thread::scope(|scope| {
        for job in 0..number("LIMN_CHAOS_JOBS", 2) {
            let (shared, own, rows) = (&shared, &own, &rows);
            // Those with brokers of their own go one at a time: the first job begins with them, and no other waits for one.
            let next = move || {
                let alone = (job == 0).then(|| own.lock().unwrap().next()).flatten();
                alone.or_else(|| shared.lock().unwrap().next())
            };
            scope.spawn(move || {
                while let Some((fault, seed)) = next() {
                    let began = Instant::now();
                    let report = catch_unwind(AssertUnwindSafe(|| fault.run(seed)));
                    let mut rows = rows.lock().unwrap();
                    let at = FAULTS.iter().position(|f| f.name == fault.name).unwrap();
                    let row = rows.entry(at).or_default();
                    row.runs += 1;
                    row.seconds += began.elapsed().as_secs_f64();
                    match report {
                        Ok(report) => {
                            row.events += report.events;
                            row.folded += report.folded;
                            row.dead_lettered += report.dead_lettered;
                            eprintln!("ok      {} seed {seed}", fault.name);
                        }
                        Err(_) => {
                            row.failed.push(seed);
                            eprintln!("FAILED  {} seed {seed}", fault.name);
                        }
                    }
                }
            });
        }
    });
    println!("| fault | runs | events | folded | dead-lettered | seconds a run | failed seeds |");
    println!("|---|---|---|---|---|---|---|");
    let rows = rows.into_inner().unwrap();
    let mut failed = 0;
    for (at, row) in &rows {
        failed += row.failed.len();
        println!(
            "| {} | {} | {} | {} | {} | {:.1} | {} |",
            FAULTS[*at].name.replace('_', " "),
            row.runs,
            row.events,
            row.folded,
            row.dead_lettered,
            row.seconds / f64::from(u32::try_from(row.runs).unwrap()),
            if row.failed.is_empty() {
                "none".to_owned()
            } else {
                format!("{:?}", row.failed)
            }
        );
    }
    assert_eq!(failed, 0, "{failed} runs failed");
}
