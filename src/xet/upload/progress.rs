//! Progress of an upload session, for a caller that watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts the bytes of a session. Reading a count costs one atomic load.
///
/// The mount watches it to end a flush whose uploads make no progress.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    sent: Arc<AtomicU64>,
}

impl Progress {
    /// Bytes read from content.
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes of xorbs handed to the connection, after compression and with headers. Bytes that are sent again count
    /// once.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(super) fn add_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Relaxed);
    }

    /// The counter of [`Progress::sent`].
    pub(super) fn sent_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }
}
