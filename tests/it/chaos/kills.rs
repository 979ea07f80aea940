//! `kill -9` at named steps.

use super::load::Events;
use super::run::Run;

/// At some time that the step is done, up to the `most`-th.
pub fn at(run: &mut Run<'_>, step: &str, most: u64, action: &str) {
    run.load(Events::default());
    let together = run.rng.bool();
    if together {
        run.start("b");
    }
    for _ in 0..2 {
        let times = run.rng.u64(1..=most);
        run.start_armed("a", &format!("{step}:{times}{action}"));
        run.died("a");
    }
    run.start("a");
    run.works();
}

pub fn in_restore(run: &mut Run<'_>) {
    run.load(Events::default());
    run.start("a");
    run.works();
    run.works();
    run.kill("a");
    // Everything must be read back.
    std::fs::remove_dir_all(run.case.folder("a")).unwrap();
    for _ in 0..2 {
        // While it reads; in the middle of a run; behind it, before its position; and when that is written.
        let (step, most) = [
            ("record_restored", 15),
            ("run_going_on", 1),
            ("run_written", 1),
            ("view_begun", 2),
        ][run.rng.usize(..4)];
        let times = run.rng.u64(1..=most);
        run.start_armed("a", &format!("{step}:{times}"));
        run.died("a");
    }
    run.start("a");
    run.works();
}

pub fn in_shutdown(run: &mut Run<'_>) {
    run.load(Events::default());
    for wait in ["", " 2ms", " 20ms"] {
        run.start_armed("a", &format!("draining=die{wait}"));
        run.works();
        run.signal("a", "-TERM");
        run.died("a");
    }
    run.start("a");
    run.works();
}
