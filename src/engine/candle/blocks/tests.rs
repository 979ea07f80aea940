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
