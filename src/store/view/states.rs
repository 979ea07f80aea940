//! Every current state of a partition, one behind another.

use std::ops::Bound;

use super::super::database::Trees;
use super::super::{gathered, packed};
use super::{Error, PAGE, View, current_key, key, unseal_current};

impl View {
    /// Every current state of a partition as it was encoded. Behind an error nothing follows. For whoever knows that nobody
    /// writes meanwhile: what moves is found twice, or not at all.
    pub fn states(&self, partition: i32) -> impl Iterator<Item = Result<Vec<u8>, Error>> + '_ {
        let mut next = Some(Next::Alone(Bound::Included(key(b's', partition))));
        // A page at a time: nothing of sled leaves its room, so that the database can be closed between two pages.
        let page = move || {
            let from = next.take()?;
            let page = self
                .database
                .with(|trees| states_from(trees, partition, from));
            match page {
                Ok((states, behind)) => {
                    next = behind;
                    Some(states.into_iter().map(Ok).collect::<Vec<_>>())
                }
                Err(error) => Some(vec![Err(error)]),
            }
        };
        std::iter::from_fn(page).flatten()
    }
}

/// Where reading every current state goes on: among those that are written by themselves, the gathered, or the packed ones.
enum Next {
    Alone(Bound<Vec<u8>>),
    Gathered(Bound<Vec<u8>>),
    Packed(Bound<Vec<u8>>),
}

/// A page of current states, and where it goes on, if it does.
fn states_from(
    trees: &Trees,
    partition: i32,
    from: Next,
) -> Result<(Vec<Vec<u8>>, Option<Next>), Error> {
    let alone = |user: &str| Ok(trees.view.contains_key(current_key(partition, user))?);
    let from = match from {
        Next::Alone(from) => from,
        Next::Gathered(from) => {
            let page = gathered::page(trees, partition, from, alone)?;
            let packed = || Next::Packed(packed::beginning(partition));
            return Ok((
                page.states,
                Some(page.next.map_or_else(packed, Next::Gathered)),
            ));
        }
        Next::Packed(from) => {
            let newer = |user: &str| Ok(alone(user)? || gathered::has(trees, partition, user)?);
            let page = packed::page(trees, partition, from, newer)?;
            return Ok((page.states, page.next.map(Next::Packed)));
        }
    };
    let prefix = key(b's', partition);
    let mut states = Vec::new();
    for entry in trees.view.range((from, Bound::Unbounded)).take(PAGE) {
        let (key, sealed) = entry?;
        if !key.starts_with(&prefix) {
            break;
        }
        states.push(unseal_current(&key, &sealed)?.1);
        if states.len() == PAGE {
            let next = Bound::Excluded(key.to_vec());
            return Ok((states, Some(Next::Alone(next))));
        }
    }
    Ok((states, Some(Next::Gathered(gathered::beginning(partition)))))
}
