//! The cache's book-keeping against a plain account of who holds what.
use super::*;

impl Blocks {
    /// Panics where the books do not agree with the tables that are out.
    pub(crate) fn verify(&self, tables: &[&Table]) {
        let mut users = vec![0; self.count()];
        for table in tables {
            for (i, &block) in table.blocks.iter().enumerate() {
                users[block as usize] += 1;
                let published = self.entries[block as usize].is_some();
                if i < table.published {
                    assert!(published, "block {block} was taken from its chain");
                }
            }
        }
        assert_eq!(users, self.users, "tables and counts differ");
        let mut seen = vec![false; self.count()];
        for &block in self.free.iter().chain(self.idle.values()) {
            assert!(!std::mem::replace(&mut seen[block as usize], true));
            assert_eq!(self.users[block as usize], 0);
        }
        for (block, seen) in seen.into_iter().enumerate() {
            assert!(seen || self.users[block] > 0, "block {block} is lost");
        }
        let published = self.entries.iter().flatten().count();
        assert_eq!(published, self.index.len());
        let mut children = vec![0; self.count()];
        for (key, &block) in &self.index {
            let entry = self.entries[block as usize].as_ref().unwrap();
            assert_eq!(&entry.key, key);
            if key.0 != ROOT {
                children[key.0 as usize] += 1;
                assert!(self.entries[key.0 as usize].is_some(), "an orphan");
            }
            if self.users[block as usize] == 0 {
                assert_eq!(self.idle.get(&entry.left), Some(&block));
            } else if key.0 != ROOT {
                assert!(self.users[key.0 as usize] > 0, "held without its parent");
            }
        }
        for (block, entry) in self.entries.iter().enumerate() {
            assert_eq!(entry.as_ref().map_or(0, |e| e.children), children[block]);
        }
    }
}

use proptest::prelude::*;

fn tokens(len: usize) -> Vec<u32> {
    (0..len as u32).collect()
}

/// Computes all of `tokens`, as a sequence would.
fn computed(blocks: &mut Blocks, tokens: &[u32]) -> Table {
    let (mut table, found) = blocks.find(tokens);
    blocks
        .reserve(&mut table, found, tokens.len() - found)
        .unwrap();
    blocks.publish(&mut table, tokens, tokens.len());
    table
}

#[test]
fn full_blocks_are_shared_and_a_part_of_the_next_is_copied_before_it_is_written() {
    let mut blocks = Blocks::new(10);
    let first = computed(&mut blocks, &tokens(100));
    // The same 75 tokens, then others.
    let mut other = tokens(75);
    other.extend([900; 20]);
    let (mut table, found) = blocks.find(&other);
    assert_eq!(found, 75);
    assert_eq!(table.blocks(), &first.blocks()[..3]);
    let copy = blocks.reserve(&mut table, 75, 20).unwrap().unwrap();
    assert_eq!(copy.from, first.blocks()[2]);
    assert_eq!(table.blocks()[..2], first.blocks()[..2]);
    assert_eq!(table.blocks()[2], copy.to);
    // Nothing that the first can read is written, so a second write needs no copy.
    assert!(!first.blocks().contains(&copy.to));
    assert_eq!(blocks.reserve(&mut table, 80, 10), Ok(None));
    blocks.verify(&[&first, &table]);
    assert_eq!((blocks.in_use(), blocks.available()), (5, 5));
    blocks.release(first);
    blocks.release(table);
    assert_eq!((blocks.in_use(), blocks.cached()), (0, 3));
}

#[test]
fn the_longest_run_among_the_blocks_behind_a_chain_is_found() {
    let mut blocks = Blocks::new(20);
    let mut tables = Vec::new();
    for differs in [3, 20, 9, 31, 0] {
        let mut text = tokens(64);
        text[32 + differs] = 1000;
        tables.push(computed(&mut blocks, &text));
    }
    let (table, found) = blocks.find(&tokens(65));
    assert_eq!(found, 32 + 31);
    assert_eq!(table.blocks()[1], tables[3].blocks()[1]);
    // The last token asked for is computed, whatever is known.
    let (short, found) = blocks.find(&tokens(40));
    assert_eq!(found, 39);
    tables.extend([table, short]);
    blocks.verify(&tables.iter().collect::<Vec<_>>());
}

#[test]
fn the_same_tokens_behind_others_are_another_block() {
    let mut blocks = Blocks::new(10);
    let mut text = vec![7; 32];
    text.extend(tokens(32));
    let table = computed(&mut blocks, &text);
    // The second block's tokens, as a first block.
    let (found, run) = blocks.find(&tokens(40));
    assert_eq!((found.blocks().len(), run), (0, 0));
    let mut other = vec![8; 32];
    other.extend(tokens(32));
    let (found, run) = blocks.find(&other);
    assert_eq!((found.blocks().len(), run), (0, 0));
    blocks.verify(&[&table, &found]);
}

#[test]
fn what_two_computed_at_once_is_kept_once() {
    let mut blocks = Blocks::new(10);
    let text = tokens(70);
    let mut tables: Vec<Table> = (0..2)
        .map(|_| {
            let mut table = Table::default();
            blocks.reserve(&mut table, 0, 70).unwrap();
            table
        })
        .collect();
    assert_eq!(blocks.in_use(), 6);
    for table in &mut tables {
        blocks.publish(table, &text, 70);
    }
    assert_eq!(tables[0].blocks()[..2], tables[1].blocks()[..2]);
    assert_ne!(tables[0].blocks()[2], tables[1].blocks()[2]);
    assert_eq!(blocks.in_use(), 4);
    blocks.verify(&tables.iter().collect::<Vec<_>>());
}

#[test]
fn the_least_recently_used_goes_first_and_children_before_their_parents() {
    let mut blocks = Blocks::new(6);
    let texts = [tokens(65), vec![500; 65]];
    for text in &texts {
        let table = computed(&mut blocks, text);
        blocks.release(table);
    }
    // Two blocks of each are known. The first is used again.
    let (table, found) = blocks.find(&texts[0]);
    assert_eq!(found, 64);
    blocks.release(table);
    let mut table = Table::default();
    blocks.reserve(&mut table, 0, 3 * 32).unwrap();
    blocks.verify(&[&table]);
    let (other, found) = blocks.find(&texts[1]);
    assert_eq!(found, 32, "the parent went before the child");
    blocks.release(other);
    blocks.reserve(&mut table, 96, 32).unwrap();
    let mut found = |text: &[u32]| {
        let (other, found) = blocks.find(text);
        blocks.release(other);
        found
    };
    // Only looking made the second's parent the last used; the first's child goes now.
    assert_eq!((found(&texts[0]), found(&texts[1])), (32, 32));
}

#[test]
fn a_full_cache_says_so_and_changes_nothing() {
    let mut blocks = Blocks::new(4);
    let mut first = computed(&mut blocks, &tokens(70));
    let before = first.blocks().to_vec();
    assert_eq!(blocks.reserve(&mut first, 70, 59), Err(Full));
    assert_eq!(first.blocks(), before);
    blocks.verify(&[&first]);
    // A shared block cannot be written where it is.
    let (mut second, found) = blocks.find(&tokens(50));
    assert_eq!(found, 49);
    assert_eq!(blocks.reserve(&mut second, 49, 40), Err(Full));
    blocks.verify(&[&first, &second]);
    // With its other users gone it can, although there is no room for a copy.
    blocks.release(first);
    assert_eq!(blocks.reserve(&mut second, 49, 79), Ok(None));
    assert_eq!(second.positions(), 128);
    blocks.verify(&[&second]);
    // It is no longer what others would find.
    let (third, found) = blocks.find(&tokens(64));
    assert_eq!(found, 32);
    blocks.verify(&[&second, &third]);
}

#[test]
fn truncation_gives_back_what_stands_behind() {
    let mut blocks = Blocks::new(6);
    let mut table = computed(&mut blocks, &tokens(40));
    blocks.reserve(&mut table, 40, 60).unwrap();
    assert_eq!(table.blocks().len(), 4);
    blocks.truncate(&mut table, 64);
    assert_eq!((table.blocks().len(), blocks.in_use()), (2, 2));
    // Published blocks are right as they are.
    blocks.truncate(&mut table, 0);
    assert_eq!(table.blocks().len(), 1);
    blocks.verify(&[&table]);
}

proptest! {
    #[test]
    fn what_is_found_is_what_was_written_whatever_happened_before(
        count in 2usize..12,
        actions in proptest::collection::vec((0u8..5, 0usize..6, 0u32..3, 1usize..120), 1..60),
    ) {
        let mut blocks = Blocks::new(count);
        // What each block holds: the whole text up to each position, as K and V depend on it.
        let mut held: Vec<Vec<Vec<u32>>> = vec![vec![Vec::new(); BLOCK]; count];
        let mut open: Vec<(Table, Vec<u32>, usize)> = Vec::new();
        for (action, which, variant, len) in actions {
            if action < 2 || open.is_empty() {
                // Texts that agree up to a place which is no multiple of a block.
                let text: Vec<u32> = (0..len as u32)
                    .map(|i| if i < 45 { i % 7 } else { i % 5 + variant * 10 })
                    .collect();
                let (mut table, found) = blocks.find(&text);
                prop_assert!(found < text.len());
                for (i, &block) in table.blocks().iter().enumerate() {
                    for (place, written) in held[block as usize].iter().enumerate() {
                        let position = i * BLOCK + place;
                        if position < found {
                            prop_assert_eq!(&written[..], &text[..=position]);
                        }
                    }
                }
                match blocks.reserve(&mut table, found, text.len() - found) {
                    Ok(copy) => {
                        if let Some(Copy { from, to }) = copy {
                            held[to as usize] = held[from as usize].clone();
                        }
                        open.push((table, text, found));
                    }
                    Err(Full) => blocks.release(table),
                }
            } else {
                let index = which % open.len();
                if action == 2 {
                    blocks.release(open.swap_remove(index).0);
                } else {
                    let (table, text, done) = &mut open[index];
                    let until = (*done + len).min(text.len());
                    for position in *done..until {
                        let block = table.blocks()[position / BLOCK];
                        held[block as usize][position % BLOCK] = text[..=position].to_vec();
                    }
                    *done = until;
                    blocks.publish(table, text, until);
                }
            }
            blocks.verify(&open.iter().map(|o| &o.0).collect::<Vec<_>>());
            for (table, text, done) in &open {
                for position in 0..*done {
                    let block = table.blocks()[position / BLOCK];
                    prop_assert_eq!(&held[block as usize][position % BLOCK][..], &text[..=position]);
                }
            }
        }
        for (table, ..) in open {
            blocks.release(table);
        }
        prop_assert_eq!(blocks.available(), count);
        blocks.forget();
        blocks.verify(&[]);
        prop_assert_eq!(blocks.cached(), 0);
    }
}
