//! An engine in this process that goes wrong now and then.

use super::load::Events;
use super::run::Run;
use crate::broker::eventually;

/// Every so-manieth request of the scripted engine meets the fault.
fn meets(run: &mut Run<'_>, fault: &str, every: u32) {
    run.replace(
        "kind = \"scripted\"",
        format!("kind = \"scripted\"\nfault = \"{fault}\"\nfault_every = {every}"),
    );
}

/// The engine ends, as the thread of a model does that has panicked: the service ends too, and the next one goes on.
pub fn ends(run: &mut Run<'_>) {
    let every = run.rng.u32(100..300);
    meets(run, "broken", every);
    run.load(Events::default());
    for _ in 0..3 {
        run.start("a");
        run.stops("a", &["the engine cannot work"]);
    }
    run.replace("kind = \"scripted\"", "kind = \"scripted\"");
    run.start("a");
    run.works();
}

pub fn faulty(run: &mut Run<'_>, fault: &str, every: u32) {
    meets(run, fault, every);
    run.replace(
        "max_tokens = 10000",
        "max_tokens = 10000\nbackoff = \"50ms\"\nanswer_timeout = \"1s\"",
    );
    run.panics = fault == "panic";
    run.load(Events::default());
    run.start("a");
    run.works();
    run.works();
    eventually("a request to meet the fault", || {
        let met = match fault {
            "panic" => run.metric("a", "limn_restarts_total") > 0.0,
            "hang" | "unavailable" => run.case.log("a").contains("the engine is not available"),
            _ => run.metric("a", "limn_refusals_total") > 0.0,
        };
        met.then_some(())
    });
    run.works();
}
