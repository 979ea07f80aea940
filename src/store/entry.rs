//! Bytes from anywhere into what reads the state folder's values, for the fuzz target: nothing may panic. Their checksums are made right
//! first, or no byte would get behind these.

use super::packed::{self, Block, Sealer};
use super::{seal, unseal};

const KEY: &[u8] = b"key";

/// A block of states, packed or gathered, in each of its formats, and a block of an index. What can be read is written, and read
/// again as it was.
///
/// # Panics
/// Where that is otherwise.
pub fn block(bytes: &[u8]) {
    for format in 0..12 {
        let before = seal(format, KEY, &[bytes]);
        assert_eq!(unseal(format, KEY, &before), Some(bytes));
        packed::check_index(KEY, &before);
        let Ok(block) = Block::open(KEY, &before) else {
            continue;
        };
        let Ok(states) = block.states() else {
            continue;
        };
        let mut written = Vec::new();
        for (state, _) in &states {
            packed::append(&mut written, state);
        }
        let sealed = Sealer::new().seal(KEY, &written);
        let renewed = Block::open(KEY, &before).and_then(Block::renewed);
        let again = Block::open(KEY, &sealed);
        let again = renewed.and_then(|renewed| Ok([renewed, again?]));
        for block in again.expect("limn wrote it") {
            let again = block.states().expect("limn wrote it");
            assert!(
                again
                    .iter()
                    .map(|(state, _)| state)
                    .eq(states.iter().map(|(state, _)| state))
            );
            let rest = block.without(|at, _| at == 0).map(|rest| rest.is_some());
            assert_eq!(rest.ok(), Some(!states.is_empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::profile;
    use super::super::packed::Packed;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_stands_in_a_value_is_read_or_refused(
            states in prop::collection::vec(("[a-c]{0,3}", any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..9),
            changed in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
            compressed in any::<bool>(),
        ) {
            let mut bytes = Vec::new();
            for (user, version, state) in &states {
                // By turns a profile and something else.
                let profile = profile(user, *version, "tea");
                let state = if version % 2 == 0 { &profile } else { state };
                packed::append(&mut bytes, &Packed { user, version: *version, state });
            }
            if compressed {
                // Its head is what `block` puts there.
                bytes = Sealer::new().seal(KEY, &bytes.repeat(9)).split_off(super::super::HEAD);
            }
            if let Some((at, byte)) = changed && !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            block(&bytes);
        }
    }
}
