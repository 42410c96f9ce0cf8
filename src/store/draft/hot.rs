//! Holds decrypted records in buffers. Their number in the process is bounded. They are locked in memory if
//! the system allows it, and wiped when they are dropped. Some wiped buffers are kept for the next drafts, because
//! locking and unlocking memory costs more than the rest of a small file's write.

use crate::crypto::geometry::{NONCE_LEN, RECORD_LEN, RECORD_PLAIN};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroize;

/// Decrypted records that may stay in buffers in the whole process: 512 of 64 KiB, 32 MiB. Above it drafts
/// persist theirs after every write.
const BUDGET: usize = 512;

/// Wiped buffers that are kept: 4 MiB.
const KEPT: usize = 64;

/// Page size that buffers are laid out for. A system with larger pages locks a little more.
const PAGE: usize = 4096;

/// Offset of a slot from a page boundary. Its plaintext, 16 bytes later, is then aligned to a cache line.
const SLOT_AT: usize = 64 - NONCE_LEN;

/// Bytes of the whole pages that hold `SLOT_AT + RECORD_LEN` bytes. They belong to one buffer alone, so
/// unlocking it can't unlock another one.
const LOCKED: usize = (SLOT_AT + RECORD_LEN).next_multiple_of(PAGE);

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static WIPED: Mutex<Vec<Locked>> = Mutex::new(Vec::new());

/// Memory of a buffer, all zeros unless a [`HotBuffer`] owns it.
struct Locked {
    /// Declared first: it is unlocked before the memory is freed.
    _lock: Option<region::LockGuard>,
    memory: Vec<u8>,
    start: usize,
}

impl Locked {
    fn zeroed() -> Self {
        let memory = vec![0u8; LOCKED + PAGE];
        let page = memory.as_ptr().align_offset(PAGE);
        // Best effort: the limit of locked memory of an unprivileged user may be small. SECURITY.md states
        // this.
        let _lock = region::lock(memory[page..].as_ptr(), LOCKED).ok();
        Self { _lock, memory, start: page + SLOT_AT }
    }
}

/// Plaintext of one record, laid out as a slot (space for the nonce before it and the tag after it).
pub(super) struct HotBuffer {
    /// `None` only while it is dropped.
    locked: Option<Locked>,
}

impl HotBuffer {
    /// Returns a buffer of zeros.
    pub(super) fn zeroed() -> Self {
        IN_USE.fetch_add(1, Ordering::Relaxed);
        let kept = WIPED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self { locked: Some(kept.unwrap_or_else(Locked::zeroed)) }
    }

    /// Returns the whole slot.
    pub(super) fn slot(&self) -> &[u8; RECORD_LEN] {
        let locked = self.locked.as_ref().expect("a buffer has its memory until it is dropped");
        locked.memory[locked.start..].first_chunk().expect("the buffer is larger than a slot")
    }

    pub(super) fn slot_mut(&mut self) -> &mut [u8; RECORD_LEN] {
        let locked = self.locked.as_mut().expect("a buffer has its memory until it is dropped");
        locked.memory[locked.start..].first_chunk_mut().expect("the buffer is larger than a slot")
    }

    /// Returns the plaintext.
    pub(super) fn plain(&self) -> &[u8] {
        &self.slot()[NONCE_LEN..NONCE_LEN + RECORD_PLAIN]
    }

    pub(super) fn plain_mut(&mut self) -> &mut [u8] {
        &mut self.slot_mut()[NONCE_LEN..NONCE_LEN + RECORD_PLAIN]
    }

    /// Returns true if the process holds more buffers than [`BUDGET`].
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
        self.slot_mut().zeroize();
        IN_USE.fetch_sub(1, Ordering::Relaxed);
        let mut wiped = WIPED.lock().unwrap_or_else(PoisonError::into_inner);
        if wiped.len() < KEPT {
            wiped.extend(self.locked.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_that_is_used_again_is_zero() {
        let mut buffers: Vec<HotBuffer> = (0..2 * KEPT).map(|_| HotBuffer::zeroed()).collect();
        buffers.iter_mut().for_each(|buffer| buffer.slot_mut().fill(7));
        drop(buffers);
        // Other tests take and return buffers at the same time.
        assert!(WIPED.lock().unwrap().len() <= KEPT);
        for _ in 0..2 * KEPT {
            assert!(HotBuffer::zeroed().slot().iter().all(|byte| *byte == 0));
        }
    }
}
