//! Staging: content on the local disk that is not uploaded yet, in slots of equal size.
//!
//! A [`Draft`](super::Draft) stores its records through [`SlotIo`]. [`Pool`] implements it with one file. Both are part
//! of `store`, so that each front end can stage content without the filesystem layer. The module keeps no record of
//! which file a slot belongs to: the caller does, in a journal for example.

mod pool;

#[cfg(test)]
pub(crate) use pool::SLACK;
pub(crate) use pool::{GROWTH, Pool, checksum};
use std::io;

/// The number of a slot in the staging pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u64);

/// Storage for slots. Calls block on local I/O only. A caller that moves many slots calls from a blocking thread.
pub trait SlotIo: Send + Sync + 'static {
    /// Allocates a free slot, which stays allocated until it is freed. Fails with `StorageFull` before anything is
    /// written if there is no space.
    fn allocate(&self) -> io::Result<SlotId>;
    /// Frees a slot that was allocated but never named in a delta.
    fn cancel(&self, slot: SlotId);
    /// Reads a whole slot.
    fn read(&self, slot: SlotId, out: &mut [u8]) -> io::Result<()>;
    /// Writes a whole slot.
    fn write(&self, slot: SlotId, bytes: &[u8]) -> io::Result<()>;
}
