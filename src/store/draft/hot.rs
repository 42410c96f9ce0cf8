//! Buffers that hold decrypted records: bounded over the process, locked in memory where the system allows it, wiped when they go.

use crate::crypto::geometry::{NONCE_LEN, RECORD_LEN, RECORD_PLAIN};
use std::sync::atomic::{AtomicUsize, Ordering};
use zeroize::Zeroize;

/// Decrypted records that may stay hot over the whole process: 512 of 64 KiB, 32 MiB. Above it drafts settle after every write.
const BUDGET: usize = 512;

/// The page size that buffers are laid out for; a system with larger pages locks a little more.
const PAGE: usize = 4096;

/// Where a slot begins behind a page boundary, so that its plaintext, 16 bytes on, is aligned to a cache line.
const SLOT_AT: usize = 64 - NONCE_LEN;

/// Whole pages that hold `SLOT_AT + RECORD_LEN` bytes and belong to one buffer alone: unlocking it can't unlock another's.
const LOCKED: usize = (SLOT_AT + RECORD_LEN).next_multiple_of(PAGE);

static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// One record's plaintext, laid out as a slot (room for the nonce before it and the tag behind it).
pub(super) struct HotBuffer {
    /// Declared first: unlocked before the memory is given back.
    _lock: Option<region::LockGuard>,
    memory: Vec<u8>,
    start: usize,
}

impl HotBuffer {
    /// A buffer of zeros.
    pub(super) fn zeroed() -> Self {
        IN_USE.fetch_add(1, Ordering::Relaxed);
        let memory = vec![0u8; LOCKED + PAGE];
        let page = memory.as_ptr().align_offset(PAGE);
        // Best effort: an unprivileged user's limit of locked memory may be small. SECURITY.md says so.
        let _lock = region::lock(memory[page..].as_ptr(), LOCKED).ok();
        Self { _lock, memory, start: page + SLOT_AT }
    }

    /// The whole slot.
    pub(super) fn slot(&self) -> &[u8; RECORD_LEN] {
        self.memory[self.start..].first_chunk().expect("the buffer is larger than a slot")
    }

    pub(super) fn slot_mut(&mut self) -> &mut [u8; RECORD_LEN] {
        self.memory[self.start..].first_chunk_mut().expect("the buffer is larger than a slot")
    }

    /// The plaintext.
    pub(super) fn plain(&self) -> &[u8] {
        &self.slot()[NONCE_LEN..NONCE_LEN + RECORD_PLAIN]
    }

    pub(super) fn plain_mut(&mut self) -> &mut [u8] {
        &mut self.slot_mut()[NONCE_LEN..NONCE_LEN + RECORD_PLAIN]
    }

    /// Whether the process holds more of these than it should.
    pub(super) fn over_budget() -> bool {
        IN_USE.load(Ordering::Relaxed) > BUDGET
    }
}

impl Clone for HotBuffer {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed();
        copy.slot_mut().copy_from_slice(self.slot());
        copy
    }
}

impl Drop for HotBuffer {
    fn drop(&mut self) {
        self.memory.zeroize();
        IN_USE.fetch_sub(1, Ordering::Relaxed);
    }
}
