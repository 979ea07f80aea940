//! The scheduler's promises, on a model that notices when its cache is wrong.

mod demands;
mod fake;
mod property;

use super::*;

fn limits() -> Limits {
    Limits {
        blocks: 64,
        context: 1000,
        step_tokens: 256,
        sequences: 16,
        drafts: Policy {
            most: 0,
            ..Policy::default()
        },
    }
}

/// What is true between any two steps.
fn check(scheduler: &Scheduler) {
    let tables: Vec<_> = scheduler.running.iter().map(|s| &s.table).collect();
    scheduler.blocks.verify(&tables);
    for sequence in &scheduler.running {
        assert!(sequence.pending() > 0 && sequence.remaining() > 0);
        let blocks = sequence.tokens.len().div_ceil(BLOCK);
        assert!(sequence.table.positions() >= sequence.computed);
        assert!(
            sequence.table.blocks().len() <= blocks,
            "a rejected draft's blocks"
        );
    }
    for sequence in &scheduler.waiting {
        assert!(sequence.table.blocks().is_empty() && sequence.computed == 0);
    }
    // The tests number their requests in the order of arrival.
    let ids = scheduler.running.iter().chain(&scheduler.waiting);
    assert!(ids.map(|s| s.request.id).is_sorted(), "out of order");
}
