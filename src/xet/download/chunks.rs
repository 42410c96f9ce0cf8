//! Where raw chunks may be kept between reads: the seam of a chunk cache.

use crate::Hash;
pub use crate::cache::Cached;
use crate::cache::ChunkCache;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Chunks by xorb and index. What it gives was checked since it was kept, so that a damaged entry is absent, not wrong.
#[async_trait]
pub trait Chunks: Send + Sync + 'static {
    /// All chunks of the range, in order, or none.
    async fn chunks(&self, xorb: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>>;
    /// Keeps consecutive chunks, the first of index `first`. Best effort.
    async fn insert(&self, xorb: &Hash, first: u32, chunks: &[(Hash, Bytes)]);
}

#[async_trait]
impl Chunks for ChunkCache {
    async fn chunks(&self, xorb: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>> {
        ChunkCache::chunks(self, xorb, chunks).await
    }

    async fn insert(&self, xorb: &Hash, first: u32, chunks: &[(Hash, Bytes)]) {
        ChunkCache::insert(self, xorb, first, chunks).await;
    }
}

/// The chunks that were read last, in memory: so that readers of small neighbouring ranges fetch each stretch once.
pub struct Recent {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<(Hash, u32), (Cached, u64)>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

impl Recent {
    /// Of at most so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { most: bytes, state: Mutex::default() }
    }
}

#[async_trait]
impl Chunks for Recent {
    async fn chunks(&self, xorb: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let (now, count) = (state.clock, chunks.len());
        let found = state.chunks.range_mut((*xorb, chunks.start)..(*xorb, chunks.end)).map(|(_, (chunk, used))| {
            *used = now;
            chunk.clone()
        });
        let found: Vec<_> = found.collect();
        (found.len() == count).then_some(found)
    }

    async fn insert(&self, xorb: &Hash, first: u32, chunks: &[(Hash, Bytes)]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let now = state.clock;
        for (index, (hash, bytes)) in (first..).zip(chunks) {
            // A copy: what came may be a small part of a large buffer.
            let chunk = Cached { hash: *hash, bytes: Bytes::copy_from_slice(bytes) };
            state.bytes += bytes.len();
            if let Some((old, _)) = state.chunks.insert((*xorb, index), (chunk, now)) {
                state.bytes -= old.bytes.len();
            }
        }
        state.shrink(self.most);
    }
}

impl State {
    /// Drops what was used longest ago until an eighth of the room is free, if there is too much.
    fn shrink(&mut self, most: usize) {
        if self.bytes <= most {
            return;
        }
        let mut by_use: Vec<_> = self.chunks.iter().map(|(&name, (_, used))| (*used, name)).collect();
        by_use.sort_unstable();
        for (_, name) in by_use {
            if self.bytes <= most - most / 8 {
                return;
            }
            if let Some((chunk, _)) = self.chunks.remove(&name) {
                self.bytes -= chunk.bytes.len();
            }
        }
    }
}
