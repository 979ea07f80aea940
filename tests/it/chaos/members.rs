//! Instances that come, go and stand still.

use super::load::Events;
use super::run::Run;
use crate::case::NEW_PROTOCOL;

/// A line of the configuration that others can stand beside.
const POLL: &str = "\"max.poll.interval.ms\" = 6000";

fn beside(line: &str) -> String {
    format!("{POLL}\n{line}")
}

pub fn join_and_leave(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    for name in ["b", "c"] {
        run.start(name);
        run.restored(name, 1);
        run.works();
        run.end(name);
    }
    run.works();
}

pub fn restart_all(run: &mut Run<'_>) {
    run.load(Events::default());
    for round in 0..3 {
        run.start("a");
        run.start("b");
        run.works();
        if round == 2 {
            return;
        }
        // None is there to take over.
        match run.rng.bool() {
            true => run.stop_all(),
            false => run.kill_all(),
        }
    }
}

pub fn fixed(run: &mut Run<'_>) {
    // Long enough to come back in, on a busy machine too.
    run.replace(
        "\"session.timeout.ms\" = 3000",
        "\"session.timeout.ms\" = 6000",
    );
    run.load(Events::default());
    let start = |run: &mut Run<'_>, name: &str| {
        run.replace(POLL, beside(&format!("\"group.instance.id\" = \"{name}\"")));
        run.start(name);
    };
    start(run, "a");
    start(run, "b");
    run.restored("b", 1);
    run.works();
    for name in ["a", "b"] {
        run.end(name);
        // It is back within its session: no rebalance.
        start(run, name);
        run.works();
    }
    // Who works off the rest is a third.
    run.replace(POLL, beside(""));
}

pub fn cooperative(run: &mut Run<'_>) {
    be_sticky(run);
    join_and_leave(run);
}

fn be_sticky(run: &mut Run<'_>) {
    let sticky = "\"partition.assignment.strategy\" = \"cooperative-sticky\"";
    run.replace(POLL, beside(sticky));
}

fn speak_the_new_protocol(run: &mut Run<'_>) {
    for (old, new) in NEW_PROTOCOL {
        run.replace(old, new);
    }
}

pub fn new_protocol(run: &mut Run<'_>) {
    speak_the_new_protocol(run);
    join_and_leave(run);
}

pub fn zombie(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    // Longer than its session: the group gives its partitions to another.
    run.signal("a", "-STOP");
    run.start("b");
    run.restored("b", 3);
    run.works();
    run.signal("a", "-CONT");
    run.says("a", "beginning anew from what is committed");
    run.works();
}

/// The same in the midst of a transaction, whose outcome must be the one that the new owner has seen.
pub fn zombie_in_a_transaction(run: &mut Run<'_>) {
    match run.rng.u32(0..3) {
        0 => be_sticky(run),
        1 => speak_the_new_protocol(run),
        _ => {}
    }
    run.load(Events::default());
    let steps = ["transaction_begun", "records_sent", "offsets_sent"];
    let step = steps[run.rng.usize(..steps.len())];
    let release = run.held_at(step);
    run.signal("a", "-STOP");
    run.start("b");
    run.restored("b", 3);
    run.works();
    std::fs::write(&release, "").unwrap();
    run.signal("a", "-CONT");
    run.says("a", "beginning anew from what is committed");
    assert!(run.metric("a", "limn_transaction_failures_total") > 0.0);
    run.works();
}
