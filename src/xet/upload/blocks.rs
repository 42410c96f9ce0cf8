//! The memory of a session: blocks that files are read into, lent by a pool that never lends more than its budget.
//!
//! Every byte of payload in memory is covered by a lease, from before it is read until the xorb it lies in is stored.
//! If little of a block is left to send, that part is copied out and the block is released.
//!
//! # Deadlock freedom
//!
//! Only reading waits for memory (and the first chunk of a late head, when its file holds nothing
//! else). Leases are held by
//!
//! 1. blocks being read into. A reader that has nothing to give while somebody waits hands on what it has read, or
//!    gives its block back ([`Pool::wanted`]): a block is never held by a file that waits for its source;
//! 2. chunks on their way to the packer: scanning, hashing and packing take time, but no memory. What of them is no
//!    whole chunk yet is carried outside the budget, below 128 KiB per file, as is the first chunk of a late head.
//!    Several batches of a file may be kept to be packed together, in all at most a quarter of the budget;
//! 3. the xorb under construction: cut when a third of the budget is in it. As blocks that are less
//!    than three quarters full of it are copied, that pins at most four ninths, the block over a
//!    cut, and what rounding adds: 64 bytes for each of 8192 chunks;
//! 4. xorbs being sent: they end, with success or failure, as every request has a deadline.
//!
//! When somebody waits and 1, 2 and 4 have run dry, at most 1/4 + 4/9 of the budget, a block and 512 KiB are held; of
//! the least budget, 16 MiB, that leaves 3.2 MiB: a block is free, and the semaphore is fair. Nothing of this holds for
//! an `add` that is neither polled nor dropped.

use crate::chunker::MAX_CHUNK;
use bytes::Bytes;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Bytes before the data of a block: room for what is carried over from the block before.
pub(super) const ROOM: usize = MAX_CHUNK;
/// Bytes of a block: some 16 chunks of data behind the room, about 1 ms of work.
pub(super) const BLOCK: usize = ROOM + 1024 * 1024;
/// Least budget in bytes: see the proof.
pub(super) const LEAST_MEMORY: usize = 16 * 1024 * 1024;
/// Bytes that leases are counted in: no more than a tiny chunk takes anyhow.
const UNIT: usize = 64;

/// Lends memory.
pub(super) struct Pool {
    /// In units.
    budget: Arc<Semaphore>,
    /// Blocks that were given back. They are not leased, but never more than is free.
    spare: Mutex<Vec<Vec<u8>>>,
    /// How many wait for a lease.
    waiting: AtomicUsize,
    /// Told when one more waits.
    wanted: Notify,
}

/// A right to hold so much memory.
pub(super) struct Lease(OwnedSemaphorePermit);

impl Pool {
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let units = (bytes.max(LEAST_MEMORY) / UNIT).min(Semaphore::MAX_PERMITS);
        let budget = Arc::new(Semaphore::new(units));
        Arc::new(Self { budget, spare: Mutex::default(), waiting: AtomicUsize::new(0), wanted: Notify::new() })
    }

    /// A block, when there is one.
    pub(super) async fn block(self: &Arc<Self>) -> Buffer {
        let lease = self.lease(BLOCK).await;
        let bytes = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = bytes.unwrap_or_else(|| vec![0; BLOCK]);
        Buffer { bytes, lease: Some(lease), home: Some(Arc::clone(self)) }
    }

    /// `bytes` of our own as a buffer, when there is room for them.
    pub(super) async fn adopt(self: &Arc<Self>, bytes: Vec<u8>) -> Buffer {
        let lease = self.lease(bytes.len()).await;
        Buffer { bytes, lease: Some(lease), home: None }
    }

    async fn lease(&self, bytes: usize) -> Lease {
        let units = units(bytes);
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(units) {
            return Lease(permit);
        }
        let _waiting = Waiting::on(self);
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await;
        Lease(permit.expect("the semaphore is never closed"))
    }

    /// Returns when somebody waits for memory.
    pub(super) async fn wanted(&self) {
        let mut told = pin!(self.wanted.notified());
        // Before the count is looked at: who comes in between tells us.
        told.as_mut().enable();
        if self.waiting.load(Ordering::SeqCst) == 0 {
            told.await;
        }
    }

    /// Bytes that are not leased.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.budget.available_permits() * UNIT
    }

    /// Keeps a block for the next that is asked for, if its memory is free.
    fn take_back(&self, bytes: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if (spare.len() + 1) * units(BLOCK) as usize <= self.budget.available_permits() {
            spare.push(bytes);
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).expect("no buffer is larger than a block")
}

/// Counts one who waits, for as long as that.
struct Waiting<'a>(&'a Pool);

impl<'a> Waiting<'a> {
    fn on(pool: &'a Pool) -> Self {
        pool.waiting.fetch_add(1, Ordering::SeqCst);
        pool.wanted.notify_waiters();
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Leased memory. Dropped, or when the last piece of it is, it goes back.
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
    /// Always there, until dropped.
    lease: Option<Lease>,
    /// Where a block goes back to.
    home: Option<Arc<Pool>>,
}

impl Buffer {
    /// These bytes instead, of which there are not more.
    pub(super) fn replaced_by(mut self, bytes: Vec<u8>) -> Self {
        let lease = self.lease.as_mut().expect("only taken when dropped");
        let part = lease.0.split(units(bytes.len()) as usize).expect("not more than there were");
        Self { bytes, lease: Some(Lease(part)), home: None }
    }

    /// Only these parts, whose lengths add up to `len`, one behind the other.
    pub(super) fn copied(self, parts: &[Range<usize>], len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len);
        parts.iter().for_each(|part| bytes.extend_from_slice(&self.bytes[part.clone()]));
        self.replaced_by(bytes)
    }

    /// To be cut in pieces that keep it alive.
    pub(super) fn share(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.lease = None;
        if let Some(home) = &self.home {
            home.take_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn no_more_is_lent_than_the_budget_and_blocks_are_used_again() {
        let pool = Pool::new(0);
        let mut blocks = Vec::new();
        while let Some(block) = pool.block().now_or_never() {
            blocks.push(block);
        }
        assert_eq!(blocks.len(), LEAST_MEMORY / BLOCK);
        let at = blocks[0].bytes.as_ptr();
        let last = blocks.swap_remove(0);
        let slice = last.share().slice(5..6);
        assert!(pool.block().now_or_never().is_none());
        drop(slice);
        assert_eq!(pool.block().await.bytes.as_ptr(), at);
    }

    #[tokio::test]
    async fn what_is_copied_out_frees_the_rest() {
        let pool = Pool::new(0);
        let mut block = pool.block().await;
        block.bytes[100..104].copy_from_slice(b"abcd");
        let before = pool.free();
        let copy = block.copied(&[102..104, 100..101], 3);
        assert_eq!((&copy.bytes[..], pool.free()), (&b"cda"[..], before + BLOCK - UNIT));
        drop(copy);
        assert_eq!(pool.free(), LEAST_MEMORY);
    }

    #[tokio::test]
    async fn who_holds_is_told_when_somebody_waits_and_not_before() {
        let pool = Pool::new(0);
        let blocks: Vec<_> = std::iter::from_fn(|| pool.block().now_or_never()).collect();
        let mut wanted = Box::pin(pool.wanted());
        assert!((&mut wanted).now_or_never().is_none());
        let mut waiting = Box::pin(pool.block());
        assert!((&mut waiting).now_or_never().is_none());
        assert!(wanted.now_or_never().is_some() && pool.wanted().now_or_never().is_some());
        drop(waiting);
        assert!(pool.wanted().now_or_never().is_none());
        drop(blocks);
        assert!(pool.free() == LEAST_MEMORY);
        // Spare blocks never exceed what is free.
        let _leases: Vec<_> = std::iter::from_fn(|| pool.adopt(vec![0; 1 << 20]).now_or_never()).collect();
        assert!(pool.block().now_or_never().is_none());
    }
}
