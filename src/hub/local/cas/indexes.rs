//! The indexes of the xorbs used last, in memory: a bounded cache that decides nothing but speed.

use crate::xet::Hash;
use crate::xet::xorb::XorbIndex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Chunks of all indexes together, 40 bytes each: 42 MB.
const CACHED_CHUNKS: usize = 1 << 20;

/// Indexes used last. What is in it changes only where a damaged xorb was replaced, which its file's length shows.
#[derive(Default)]
pub(super) struct Cache {
    entries: HashMap<Hash, Cached>,
    /// Hashes by the tick of their last use.
    order: BTreeMap<u64, Hash>,
    tick: u64,
    chunks: usize,
}

/// What is known of a xorb's file.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) index: Arc<XorbIndex>,
    /// Bytes.
    pub(super) file_len: u64,
}

struct Cached {
    known: Known,
    tick: u64,
    /// Whether the xorb's name is known to be on disk.
    durable: bool,
}

impl Cache {
    /// What is known of a xorb, which counts as a use.
    pub(super) fn touch(&mut self, hash: &Hash) -> Option<Known> {
        self.tick += 1;
        let cached = self.entries.get_mut(hash)?;
        self.order.remove(&cached.tick);
        cached.tick = self.tick;
        self.order.insert(self.tick, *hash);
        Some(cached.known.clone())
    }

    /// Whether a xorb's name is known to be on disk.
    pub(super) fn is_durable(&self, hash: &Hash) -> bool {
        self.entries.get(hash).is_some_and(|cached| cached.durable)
    }

    /// A xorb's name is on disk.
    pub(super) fn mark_durable(&mut self, hash: &Hash) {
        if let Some(cached) = self.entries.get_mut(hash) {
            cached.durable = true;
        }
    }

    /// Takes up a xorb, in the place of what was known of it.
    pub(super) fn insert(&mut self, hash: Hash, known: Known, durable: bool) {
        let durable = durable || self.is_durable(&hash);
        self.remove(&hash);
        self.tick += 1;
        self.chunks += known.index.chunks.len();
        self.order.insert(self.tick, hash);
        self.entries.insert(hash, Cached { known, tick: self.tick, durable });
        while self.chunks > CACHED_CHUNKS
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            self.remove(&oldest.clone());
        }
    }

    /// Forgets a xorb.
    pub(super) fn remove(&mut self, hash: &Hash) {
        if let Some(cached) = self.entries.remove(hash) {
            self.order.remove(&cached.tick);
            self.chunks -= cached.known.index.chunks.len();
        }
    }
}
