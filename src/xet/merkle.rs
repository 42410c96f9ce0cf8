//! Aggregated hashes of chunk lists (Xet spec, sections 4.1-4.3).
//!
//! [`Tree`] takes chunks one by one and keeps at most nine entries per level, so hashing a file of any length needs a
//! few KiB. That works because a group's end never depends on what follows it, except for the last group of a level.
//! Lengths are uncompressed bytes. Nothing here fails.

use super::Hash;
use std::fmt::Write as _;

/// BLAKE3 key of inner nodes.
const NODE_KEY: [u8; 32] = [
    0x01, 0x7e, 0xc5, 0xc7, 0xa5, 0x47, 0x29, 0x96, 0xfd, 0x94, 0x66, 0x66, 0xb4, 0x8a, 0x02, 0xe6, //
    0x5d, 0xdd, 0x53, 0x6f, 0x37, 0xc7, 0x6d, 0xd2, 0xf8, 0x63, 0x52, 0xe6, 0x4a, 0x53, 0x71, 0x3f,
];
/// BLAKE3 key of the last step to a file hash: the protocol's "salt", which the Hub leaves at zero.
const FILE_KEY: [u8; 32] = [0; 32];
/// Fewest entries of a group that a hash may end.
const MIN_GROUP: usize = 3;
/// Entries at which a group ends whatever its hashes are.
const MAX_GROUP: usize = 9;
/// A hash that is 0 modulo this ends its group.
const BRANCHING: u64 = 4;

/// Xorb hash of `(chunk hash, uncompressed length)` in xorb order.
pub fn xorb_hash(chunks: &[(Hash, u64)]) -> Hash {
    chunks.iter().copied().collect::<Tree>().into_xorb_hash()
}

/// File hash of all chunks in file order; zeros for an empty file.
pub fn file_hash(chunks: &[(Hash, u64)]) -> Hash {
    chunks.iter().copied().collect::<Tree>().into_file_hash()
}

/// A chunk list being hashed.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Chunks at 0, their parents at 1, and so on. A level exists from its first entry on.
    levels: Vec<Level>,
}

impl Tree {
    /// Of no chunk yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next chunk.
    pub fn push(&mut self, chunk: Hash, len: u64) {
        self.push_at(0, (chunk, len));
    }

    /// The aggregated hash: of a xorb, if these are its chunks. Zeros for no chunks.
    pub fn into_xorb_hash(mut self) -> Hash {
        self.root().unwrap_or(Hash::ZERO)
    }

    /// The file hash, if these are all chunks of a file. Zeros for no chunks.
    pub fn into_file_hash(mut self) -> Hash {
        self.root().map_or(Hash::ZERO, |root| Hash(*blake3::keyed_hash(&FILE_KEY, &root.0).as_bytes()))
    }

    fn push_at(&mut self, mut depth: usize, mut entry: (Hash, u64)) {
        loop {
            if depth == self.levels.len() {
                self.levels.push(Level::default());
            }
            let level = &mut self.levels[depth];
            level.group.push(entry);
            if !level.is_group_complete() {
                return;
            }
            entry = level.close_group();
            depth += 1;
        }
    }

    fn root(&mut self) -> Option<Hash> {
        for depth in 0.. {
            let level = self.levels.get_mut(depth)?;
            if let ([(root, _)], false) = (level.group.as_slice(), level.has_parents) {
                return Some(*root);
            }
            if !level.group.is_empty() {
                let parent = level.close_group();
                self.push_at(depth + 1, parent);
            }
        }
        None
    }
}

impl FromIterator<(Hash, u64)> for Tree {
    fn from_iter<I: IntoIterator<Item = (Hash, u64)>>(chunks: I) -> Self {
        let mut tree = Self::new();
        chunks.into_iter().for_each(|(hash, len)| tree.push(hash, len));
        tree
    }
}

/// One level of a tree.
#[derive(Clone, Debug, Default)]
struct Level {
    /// The group that isn't complete.
    group: Vec<(Hash, u64)>,
    /// Whether a group was completed before it.
    has_parents: bool,
}

impl Level {
    fn is_group_complete(&self) -> bool {
        let ends = |(hash, _): &(Hash, u64)| hash.modulo(BRANCHING) == 0;
        self.group.len() == MAX_GROUP || (self.group.len() >= MIN_GROUP && self.group.last().is_some_and(ends))
    }

    /// The parent of the group; a new group begins.
    fn close_group(&mut self) -> (Hash, u64) {
        // A line is 64 digits, separators and at most 20 digits.
        let mut text = String::with_capacity(88 * self.group.len());
        let mut total = 0u64;
        for (hash, len) in self.group.drain(..) {
            writeln!(text, "{hash} : {len}").expect("a String takes all writes");
            total = total.wrapping_add(len);
        }
        self.has_parents = true;
        (node_hash(text.as_bytes()), total)
    }
}

/// Hash of an inner node's text.
pub(super) fn node_hash(text: &[u8]) -> Hash {
    Hash(*blake3::keyed_hash(&NODE_KEY, text).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule as the spec words it: whole rounds over a list.
    fn slow_root(list: &[(Hash, u64)]) -> Hash {
        let mut list = list.to_vec();
        if list.is_empty() {
            return Hash::ZERO;
        }
        while list.len() > 1 {
            let mut rest = list.as_slice();
            let mut parents = Vec::new();
            while !rest.is_empty() {
                let (group, later) = rest.split_at(slow_group_len(rest));
                let text: String = group.iter().map(|(hash, len)| format!("{hash} : {len}\n")).collect();
                parents.push((node_hash(text.as_bytes()), group.iter().map(|entry| entry.1).sum()));
                rest = later;
            }
            list = parents;
        }
        list[0].0
    }

    fn slow_group_len(rest: &[(Hash, u64)]) -> usize {
        if rest.len() <= 2 {
            return rest.len();
        }
        let m = rest.len().min(9);
        (2..m).find(|&i| rest[i].0.modulo(4) == 0).map_or(m, |i| i + 1)
    }

    fn chunks() -> impl Strategy<Value = Vec<(Hash, u64)>> {
        // From lists where no hash ends a group to lists where all do.
        let entry = |ends: f64| {
            (prop::bool::weighted(ends), any::<[u8; 32]>(), 1..=131_072u64).prop_map(|(ends, mut raw, len)| {
                raw[24] = if ends { raw[24] & !3 } else { raw[24] | 1 };
                (Hash(raw), len)
            })
        };
        prop_oneof![Just(0.0), Just(0.25), Just(1.0)]
            .prop_flat_map(move |ends| prop::collection::vec(entry(ends), 0..400))
    }

    proptest! {
        #[test]
        fn streaming_gives_the_root_of_whole_rounds(chunks in chunks()) {
            prop_assert_eq!(xorb_hash(&chunks), slow_root(&chunks));
        }
    }

    #[test]
    fn a_tree_keeps_at_most_a_group_per_level() {
        let mut tree = Tree::new();
        for i in 0..20_000u64 {
            tree.push(node_hash(&i.to_le_bytes()), 1);
        }
        assert!(tree.levels.len() <= 10);
        assert!(tree.levels.iter().all(|level| level.group.len() < MAX_GROUP));
    }

    #[test]
    fn one_chunk_is_its_own_xorb_but_not_its_own_file() {
        let chunk = super::super::hash::chunk_hash(b"hello world");
        assert_eq!(xorb_hash(&[(chunk, 11)]), chunk);
        assert_ne!(file_hash(&[(chunk, 11)]), chunk);
        assert_eq!(file_hash(&[]), Hash::ZERO);
    }

    #[test]
    fn absurd_lengths_do_not_overflow() {
        let chunk = (Hash::ZERO, u64::MAX);
        assert_ne!(xorb_hash(&[chunk, chunk]), Hash::ZERO);
    }
}
