//! Counts lookups of a cache.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often a cache had what was asked of it, and how often not.
#[derive(Debug, Default)]
pub struct Lookups {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Lookups {
    /// Counts a lookup.
    pub fn count(&self, is_hit: bool) {
        self.add(u64::from(is_hit), u64::from(!is_hit));
    }

    /// Counts several.
    pub fn add(&self, hits: u64, misses: u64) {
        self.hits.fetch_add(hits, Ordering::Relaxed);
        self.misses.fetch_add(misses, Ordering::Relaxed);
    }

    /// Returns the numbers of hits and of misses.
    pub fn get(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}
