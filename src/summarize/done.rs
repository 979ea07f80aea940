//! What became of a job: the events settled, and those that are left.

use std::collections::VecDeque;

use super::{Refusal, Update};
use crate::codec::Rejected;
use crate::event::Event;
use crate::window::{CloseReason, Closed};

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
    pub(super) fn give_up_first(mut self, events: Vec<Event>, rejected: Rejected) -> Self {
        settle(&mut self.rest, 1);
        self.dead
            .extend(events.into_iter().next().map(|e| (e, rejected)));
        self
    }
}

/// Takes the first `count` events away; with how many windows they complete, and why the last one touched had closed.
pub(super) fn settle(windows: &mut VecDeque<Closed>, count: usize) -> (u32, CloseReason) {
    let (mut left, mut complete, mut reason) = (count, 0, CloseReason::EndOfInput);
    while left > 0
        && let Some(first) = windows.front_mut()
    {
        reason = first.reason;
        if first.events.len() <= left {
            left -= first.events.len();
            windows.pop_front();
            complete += 1;
        } else {
            first.events.skip(left);
            left = 0;
        }
    }
    (complete, reason)
}
