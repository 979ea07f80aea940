//! What became of a job: the events settled, and those that are left.

use std::collections::VecDeque;

use super::{Refusal, Update};
use crate::codec::Rejected;
use crate::event::Event;
use crate::window::{Bag, CloseReason, Closed};

/// What became of a job.
#[derive(Debug)]
pub struct Done {
    /// The update; `None` where no answer passed the gate.
    pub update: Option<Update>,
    /// Events that are given up, each with its reason.
    pub dead: Vec<(Event, Rejected)>,
    /// What is still to be folded, in order.
    pub rest: VecDeque<Closed>,
    /// Answers that the gate refused, in order.
    pub refusals: Vec<Refusal>,
}

impl Done {
    /// Gives up the first of the events, whose turn it is.
    pub(super) fn give_up_first(mut self, rejected: Rejected) -> Self {
        let first = settle(&mut self.rest, 1).events;
        self.dead
            .extend(first.iter().map(|e| (e, rejected.clone())));
        self
    }
}

/// Events that were taken out of closed windows.
pub(super) struct Settled {
    /// The events, in their order.
    pub(super) events: Bag,
    /// How many windows they complete.
    pub(super) windows: u32,
    /// Why the last one touched had closed.
    pub(super) reason: CloseReason,
}

/// Takes the first `count` events out.
pub(super) fn settle(windows: &mut VecDeque<Closed>, count: usize) -> Settled {
    let mut settled = Settled {
        events: Bag::default(),
        windows: 0,
        reason: CloseReason::EndOfInput,
    };
    while settled.events.len() < count
        && let Some(first) = windows.front_mut()
    {
        settled.reason = first.reason;
        let some = first.events.split_front(count - settled.events.len());
        if first.events.is_empty() {
            windows.pop_front();
            settled.windows += 1;
        }
        if settled.events.is_empty() {
            settled.events = some;
        } else {
            settled.events.append(&some);
        }
    }
    settled
}
