//! States that were written by themselves, gathered into blocks. sled remembers each of its pages in memory, of sixteen values at
//! most: 20 bytes and more for each value, for ever. So they do not stay by themselves for ever (`view/gather.rs`).
//!
//! A partition's blocks are in the order of its users, and have all of a user's versions together, oldest first. A block's key is where
//! it begins; it has every user from there on up to where the next one begins. The first one begins before every user. So there is one block
//! at most to look into, and to write a user anew is to write that block.
//!
//! What stands here is older than what is written by itself, and newer than what was packed as it was read back (`packed.rs`): a restore
//! packs only where nothing else is.

use std::mem;
use std::ops::Bound;

use super::Error;
use super::database::{Database, Trees, cost};
use super::packed::{Block, Packed, Page, Sealer, append, split};

/// Bytes of a block's states where one is split. A state is looked up by reading its block, and mostly the page with the fifteen beside it:
/// few, as users are asked for in no order. In a debug build very few, so that the tests and the fault suite see many blocks.
const TARGET: usize = if cfg!(debug_assertions) { 256 } else { 2 << 10 };

/// Bytes of a block's states behind which it is split.
const MOST: usize = 2 * TARGET;

/// Bytes of a user's states behind which they are not gathered any more: whoever needs so many spares little, and a block would be
/// large for all who look into it.
pub(super) const LARGE: usize = 32 << 10;

/// What blocks cost that are written at once, or little more ([`cost`]). sled writes a batch to the disk by itself, however small it is, and
/// waits for that.
const AT_ONCE: usize = if cfg!(debug_assertions) {
    8 << 10
} else {
    1 << 20
};

/// Blocks that are looked through at once.
const PAGE: usize = 64;

/// A user's states that are written by themselves.
pub(super) struct Alone {
    user: String,
    /// Oldest first, the current one last: their versions, and they as they stand in a block.
    versions: Vec<(u64, Vec<u8>)>,
    /// What was gathered and is older than this is too old.
    least: u64,
    /// Where they stand by themselves.
    pub(super) keys: Vec<sled::IVec>,
    /// They are too many to be gathered, or would be with those that were.
    pub(super) stay: bool,
}

impl Alone {
    pub(super) fn new(user: &str, least: u64) -> Self {
        Self {
            user: user.to_owned(),
            versions: Vec::new(),
            least,
            keys: Vec::new(),
            stay: false,
        }
    }

    /// Takes one more, a newer one. Says whether they are not too many.
    pub(super) fn push(&mut self, key: sled::IVec, version: u64, state: &[u8]) -> bool {
        let mut bytes = Vec::with_capacity(state.len() + self.user.len() + 16);
        let packed = Packed {
            user: &self.user,
            version,
            state,
        };
        append(&mut bytes, &packed);
        self.versions.push((version, bytes));
        self.keys.push(key);
        self.bytes() <= LARGE
    }

    pub(super) fn bytes(&self) -> usize {
        self.versions.iter().map(|(_, state)| state.len()).sum()
    }

    /// Whose they are, their versions, and they.
    fn states(&self) -> impl Iterator<Item = (&str, u64, &[u8])> {
        let states = self.versions.iter();
        states.map(|(version, state)| (&*self.user, *version, &state[..]))
    }

    /// Whether a version that was gathered stays: it is older than the current one and none of these, and not too old.
    fn keeps(&self, version: u64) -> bool {
        let of = |at: &u64| self.versions.iter().any(|(version, _)| version == at);
        let current = self.versions.last().map(|(version, _)| *version);
        let replaced = || current.is_some_and(|current| version >= current) || of(&version);
        version >= self.least && (self.stay || !replaced())
    }
}

fn key(partition: i32, user: &str) -> Vec<u8> {
    let mut key = partition.to_be_bytes().to_vec();
    key.extend_from_slice(user.as_bytes());
    key
}

/// The user with whom the block of a key begins.
fn begins(key: &[u8]) -> &[u8] {
    key.get(4..).unwrap_or_default()
}

/// The block that has a user, if that was gathered, as it is sealed at its key.
fn covering(
    trees: &Trees,
    partition: i32,
    user: &str,
) -> Result<Option<(sled::IVec, sled::IVec)>, Error> {
    let mut blocks = trees
        .gathered
        .range(key(partition, "")..=key(partition, user));
    Ok(blocks.next_back().transpose()?)
}

/// The newest gathered state of a user: its version and the state.
pub(super) fn newest(
    trees: &Trees,
    partition: i32,
    user: &str,
) -> Result<Option<(u64, Vec<u8>)>, Error> {
    Ok(versions(trees, partition, user, 0)?.pop())
}

/// The gathered versions of a user from `least` on, oldest first.
pub(super) fn versions(
    trees: &Trees,
    partition: i32,
    user: &str,
    least: u64,
) -> Result<Vec<(u64, Vec<u8>)>, Error> {
    let Some((key, sealed)) = covering(trees, partition, user)? else {
        return Ok(Vec::new());
    };
    let block = Block::open(&key, &sealed)?;
    let mut versions = Vec::new();
    for state in block.each() {
        let (state, _) = state?;
        if state.user > user {
            break;
        }
        if state.user == user && state.version >= least {
            versions.push((state.version, state.state.to_vec()));
        }
    }
    Ok(versions)
}

/// Whether anything of a partition was gathered.
pub(super) fn any(trees: &Trees, partition: i32) -> Result<bool, Error> {
    let first = trees.gathered.scan_prefix(partition.to_be_bytes()).next();
    Ok(first.transpose()?.is_some())
}

/// Whether a user was gathered.
pub(super) fn has(trees: &Trees, partition: i32, user: &str) -> Result<bool, Error> {
    Ok(newest(trees, partition, user)?.is_some())
}

/// Takes a user out, also where a block begins with them. Nobody else may write profiles of the partition meanwhile.
pub(super) fn erase(database: &Database, partition: i32, user: &str) -> Result<(), Error> {
    let (mut batch, mut bytes) = (sled::Batch::default(), 0);
    let found = database.with(|trees| {
        let Some((before, sealed)) = covering(trees, partition, user)? else {
            return Ok(false);
        };
        let block = Block::open(&before, &sealed)?.renewed()?;
        let rest = block.without(|_, state| state.user == user)?;
        let named = before[..] == key(partition, user)[..];
        if rest.is_none() && !named {
            return Ok(false);
        }
        let rest = rest.as_deref().unwrap_or(&block.states);
        // The block before has the users up to where this one begins then, of whom there are none; or all, where nothing is left.
        let after = match (split(rest), named) {
            (None, _) => None,
            (Some(_), false) => Some(before.to_vec()),
            (Some((first, _)), true) => Some(key(partition, first.user)),
        };
        if after.as_deref() != Some(&before[..]) {
            batch.remove(before);
        }
        if let Some(after) = after {
            let sealed = Sealer::new().seal(&after, rest);
            bytes = sealed.len();
            batch.insert(after, sealed);
        }
        Ok(true)
    })?;
    if !found {
        return Ok(());
    }
    database.write(cost(2, bytes), |trees| {
        Ok(trees.gathered.apply_batch(batch)?)
    })
}

/// Removes what was gathered of a partition, or of all.
pub(super) fn clear(database: &Database, partition: Option<i32>) -> Result<(), Error> {
    let prefix = partition.map_or_else(Vec::new, |p| p.to_be_bytes().to_vec());
    database.remove(|trees| &trees.gathered, &prefix)
}

/// Gathers states of users in their order. They are to stay by themselves until this is done, and go then: whoever looks finds them
/// there or here, and behind a crash in between they stand in both, and are gathered once more. Nobody else may write profiles of the partition meanwhile.
/// Those that are to [`Alone::stay`] are not gathered, and said to be so. Says how many states the blocks have that were written.
pub(super) fn put(
    database: &Database,
    sealer: &mut Sealer,
    partition: i32,
    mut users: &mut [Alone],
) -> Result<usize, Error> {
    let most = AT_ONCE.min(database.most() / 2);
    let mut written = 0;
    while !users.is_empty() {
        let (blocks, bytes, count) = database.with(|trees| {
            let (mut blocks, mut bytes, mut count) = (Blocks::new(), 0, 0);
            while let Some(first) = users.first()
                && cost(blocks.len(), bytes) < most
            {
                let (key, sealed) = covering(trees, partition, &first.user)?
                    .unwrap_or_else(|| (key(partition, "").into(), sled::IVec::default()));
                let behind = (Bound::Excluded(&key), Bound::Unbounded);
                let next = trees.gathered.range::<&sled::IVec, _>(behind).keys().next();
                let next = next.transpose()?.filter(|next| next[..4] == key[..4]);
                let here = next.map_or(users.len(), |next| {
                    users.partition_point(|alone| alone.user.as_bytes() < begins(&next))
                });
                let (here, rest) = mem::take(&mut users).split_at_mut(here);
                users = rest;
                let block = Block::open(&key, &sealed)?.renewed()?;
                count += merged(partition, &key, &block, here, |key, states| {
                    let sealed = sealer.seal(&key, &states);
                    bytes += sealed.len();
                    blocks.push((key, sealed));
                })?;
            }
            Ok((blocks, bytes, count))
        })?;
        if blocks.is_empty() {
            continue;
        }
        written += count;
        database.write(cost(blocks.len(), bytes), |trees| {
            // At once: where a block is split, its users are in one or in another.
            let mut batch = sled::Batch::default();
            for (key, sealed) in blocks {
                batch.insert(key, sealed);
            }
            Ok(trees.gathered.apply_batch(batch)?)
        })?;
    }
    Ok(written)
}

/// Keys, and blocks as they are sealed there.
type Blocks = Vec<(Vec<u8>, Vec<u8>)>;

/// Gives out a block with these users' states in it, or several: keys and states, nothing where nothing changes. Says how many states there are.
fn merged(
    partition: i32,
    key: &[u8],
    block: &Block<'_>,
    users: &mut [Alone],
    mut each: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<usize, Error> {
    let block = block.states()?;
    for alone in &mut *users {
        let before = block.partition_point(|(state, _)| *state.user < *alone.user);
        let of = block[before..].iter();
        let of = of.take_while(|(state, _)| *state.user == *alone.user);
        let kept = of.filter(|(state, _)| alone.keeps(state.version));
        let kept: usize = kept.map(|(_, bytes)| bytes.len()).sum();
        alone.stay |= kept + alone.bytes() > LARGE;
    }
    let mut states: Vec<(&str, u64, &[u8])> = Vec::with_capacity(block.len() + users.len());
    for (state, bytes) in &block {
        let alone = users.binary_search_by(|alone| (*alone.user).cmp(state.user));
        if alone.is_err() || alone.is_ok_and(|at| users[at].keeps(state.version)) {
            states.push((state.user, state.version, bytes));
        }
    }
    let gone = states.len() < block.len();
    let gathered = users.iter().filter(|alone| !alone.stay);
    states.extend(gathered.flat_map(Alone::states));
    if !gone && states.len() == block.len() {
        return Ok(0);
    }
    states.sort_by_key(|(user, version, _)| (*user, *version));
    let bytes: usize = states.iter().map(|(_, _, state)| state.len()).sum();
    let full = match bytes {
        ..=MOST => MOST,
        // As many as it takes, of one size.
        _ => bytes / bytes.div_ceil(TARGET * 3 / 2),
    };
    let count = states.len();
    let room = || Vec::with_capacity(bytes.min(MOST));
    let (mut key, mut now, mut last) = (key.to_vec(), room(), None);
    for (user, _, state) in states {
        // All of a user is in one.
        if last != Some(user) && now.len() >= full {
            let key = mem::replace(&mut key, self::key(partition, user));
            each(key, mem::replace(&mut now, room()));
        }
        now.extend_from_slice(state);
        last = Some(user);
    }
    each(key, now);
    Ok(count)
}

/// Where reading what was gathered of a partition begins.
pub(super) fn beginning(partition: i32) -> Bound<Vec<u8>> {
    Bound::Included(key(partition, ""))
}

/// The current states of users of a partition that were gathered and are not written by themselves (`alone`), of some blocks from
/// `from` on; and where it goes on, if it does.
pub(super) fn page(
    trees: &Trees,
    partition: i32,
    from: Bound<Vec<u8>>,
    alone: impl Fn(&str) -> Result<bool, Error>,
) -> Result<Page, Error> {
    let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
    for entry in trees.gathered.range((from, Bound::Unbounded)).take(PAGE) {
        let (key, sealed) = entry?;
        if key[..4] != partition.to_be_bytes() {
            break;
        }
        let block = Block::open(&key, &sealed)?;
        let states = block.states()?;
        for (at, (state, _)) in states.iter().enumerate() {
            let next = states.get(at + 1).map(|(next, _)| next.user);
            if next != Some(state.user) && !alone(state.user)? {
                found.push(state.state.to_vec());
            }
        }
        seen += 1;
        last = Some(Bound::Excluded(key.to_vec()));
    }
    Ok(Page {
        states: found,
        next: last.filter(|_| seen == PAGE),
    })
}
