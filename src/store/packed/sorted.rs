//! Runs of the formats 3 and 4 of the state folder: their blocks are sorted by a hash of the users, and there is no index. They are read
//! and erased from, and no more are written.

use super::super::Error;
use super::super::database::Trees;
use super::{Found, Packed, run_key};

/// The format of a block that is not compressed: its states. Folders of format 3 have no others.
pub(super) const PLAIN: u8 = 1;
/// The format of one that is, as [`super::block::Form::formats`] says.
pub(super) const COMPRESSED: u8 = 2;

/// Where a user stands in the order.
fn order(user: &[u8]) -> u64 {
    let hash = blake3::hash(user);
    hash.as_bytes()
        .first_chunk::<8>()
        .map_or(0, |b| u64::from_be_bytes(*b))
}

/// A block's key: where its first state stands, and a number for those that begin with the same.
fn block_key(partition: i32, run: u32, first: u64, same: u32) -> Vec<u8> {
    let mut key = run_key(partition, run);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&same.to_be_bytes());
    key
}

/// A text that stands behind its length, and what is behind it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)
}

/// The first of some states, and what is behind it.
pub(super) fn split(bytes: &[u8]) -> Option<(Packed<'_>, &[u8])> {
    let (user, rest) = text(bytes)?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    let (state, rest) = text(rest)?;
    let packed = Packed {
        user: std::str::from_utf8(user).ok()?,
        version: u64::from_be_bytes(*version),
        state,
    };
    Some((packed, rest))
}

/// The blocks of a run in which a user may stand, the last first: one, or more where it is the first of its block, or has
/// more versions than a block has room for.
pub(super) fn blocks(
    trees: &Trees,
    partition: i32,
    run: u32,
    user: &str,
) -> Result<Vec<Found>, Error> {
    let order = order(user.as_bytes());
    let begin = block_key(partition, run, order, 0);
    let range = run_key(partition, run)..=block_key(partition, run, order, u32::MAX);
    let mut blocks = Vec::new();
    for entry in trees.packed.range(range).rev() {
        let (key, sealed) = entry?;
        let before = key[..] < begin[..];
        blocks.push((key, sealed));
        if before {
            break;
        }
    }
    Ok(blocks)
}

#[cfg(test)]
pub(super) mod tests;
