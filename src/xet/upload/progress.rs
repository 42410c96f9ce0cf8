//! What a session has done so far, to be looked at from outside while it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts the bytes of a session. Cheap to ask: a few atomics, each right by itself.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    hashed: AtomicU64,
    deduplicated: AtomicU64,
    fresh: AtomicU64,
    sent: Arc<AtomicU64>,
}

impl Progress {
    /// Bytes read from content.
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes chunked and hashed.
    pub fn hashed(&self) -> u64 {
        self.hashed.load(Relaxed)
    }

    /// Bytes found to be stored already.
    pub fn deduplicated(&self) -> u64 {
        self.deduplicated.load(Relaxed)
    }

    /// Bytes that have to be sent, before compression.
    pub fn fresh(&self) -> u64 {
        self.fresh.load(Relaxed)
    }

    /// Bytes of xorbs that have left, after compression and with headers; what is sent again counts once.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(super) fn add_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn add_hashed(&self, bytes: usize) {
        self.hashed.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn add_packed(&self, fresh: u64, deduplicated: u64) {
        self.fresh.fetch_add(fresh, Relaxed);
        self.deduplicated.fetch_add(deduplicated, Relaxed);
    }

    /// Where bytes sent are counted.
    pub(super) fn sent_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }
}
