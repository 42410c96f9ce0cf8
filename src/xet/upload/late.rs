//! The file hash of chunks whose first one comes last (Xet spec, 4.1), in constant memory.
//!
//! The ends of groups never depend on the first entry of a level: entries 0 and 1 of a group are not tested. So all
//! groups but the first of each level are hashed as they fill, and of those first ones the known entries, at most eight
//! per level, wait for the first chunk.

use crate::Hash;
use crate::merkle::{file_hash, xorb_hash};

/// Fewest and most entries of a group, and what a hash that ends one is 0 modulo.
const MIN_GROUP: usize = 3;
const MAX_GROUP: usize = 9;
const BRANCHING: u64 = 4;

type Entry = (Hash, u64);

/// All chunks of a file but the first.
#[derive(Default)]
pub(super) struct LateTree {
    levels: Vec<Level>,
}

#[derive(Default)]
struct Level {
    /// Of the group whose first entry is missing: the entries behind it.
    first: Vec<Entry>,
    /// Whether that group is complete.
    is_first_complete: bool,
    /// The group under way behind it.
    group: Vec<Entry>,
}

impl LateTree {
    pub(super) fn push(&mut self, chunk: Hash, len: u64) {
        self.push_at(0, (chunk, len));
    }

    fn push_at(&mut self, mut depth: usize, mut entry: Entry) {
        loop {
            if depth == self.levels.len() {
                self.levels.push(Level::default());
            }
            let level = &mut self.levels[depth];
            if !level.is_first_complete {
                level.first.push(entry);
                level.is_first_complete = is_complete(level.first.len() + 1, entry.0);
                return;
            }
            level.group.push(entry);
            if !is_complete(level.group.len(), entry.0) {
                return;
            }
            entry = parent(std::mem::take(&mut level.group));
            depth += 1;
        }
    }

    /// The file hash, now that the first chunk is known.
    pub(super) fn into_file_hash(mut self, first: Hash, len: u64) -> Hash {
        let mut missing = (first, len);
        for depth in 0.. {
            let Some(level) = self.levels.get_mut(depth) else { break };
            let last = std::mem::take(&mut level.group);
            let mut group = vec![missing];
            group.append(&mut level.first);
            // One entry alone is the root.
            if group.len() > 1 || level.is_first_complete {
                missing = parent(group);
            }
            if !last.is_empty() {
                self.push_at(depth + 1, parent(last));
            }
        }
        file_hash(&[missing])
    }
}

fn is_complete(len: usize, last: Hash) -> bool {
    len == MAX_GROUP || (len >= MIN_GROUP && last.modulo(BRANCHING) == 0)
}

/// The node over one group.
fn parent(group: Vec<Entry>) -> Entry {
    let len = group.iter().fold(0u64, |sum, entry| sum.wrapping_add(entry.1));
    (group_hash(&group), len)
}

/// Of two to nine entries that are one group, the tree's root is its node. A group of one is hashed
/// as a node all the same.
fn group_hash(group: &[Entry]) -> Hash {
    match group {
        [(hash, len)] => crate::merkle::node_hash(format!("{hash} : {len}\n").as_bytes()),
        group => xorb_hash(group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn first_chunk_pushed_last_gives_the_same_file_hash(
            ends in prop_oneof![Just(0.0), Just(0.25), Just(1.0)], count in 1usize..400, seed: u64,
        ) {
            let chunks: Vec<Entry> = crate::testdata::random(seed, 32 * count)
                .as_chunks::<32>().0.iter().enumerate()
                .map(|(i, raw)| {
                    let mut raw = *raw;
                    let ending = (i * 7919 % 100) as f64 / 100.0 < ends;
                    raw[24] = if ending { raw[24] & !3 } else { raw[24] | 1 };
                    (Hash(raw), 1 + i as u64)
                })
                .collect();
            let mut late = LateTree::default();
            chunks[1..].iter().for_each(|&(hash, len)| late.push(hash, len));
            prop_assert!(late.levels.iter().all(|level| level.first.len() < 9 && level.group.len() < 9));
            prop_assert_eq!(late.into_file_hash(chunks[0].0, chunks[0].1), file_hash(&chunks));
        }
    }
}
