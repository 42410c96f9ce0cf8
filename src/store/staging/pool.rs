//! The staging pool: one file of slots of equal size, and a map of the free ones.
//!
//! Local changes are staged in slots before they are uploaded. A slot is never rewritten while anything may still
//! name it. The journal frees slots with [`Pool::free`] only after the entry that no longer names them is durable. An
//! upload pins the slots that it reads. Disk space is reserved before a slot is allocated, so a full disk is reported
//! before anything is written. At start, the allocation map is rebuilt from the journal ([`Pool::open`]).

use super::{SlotId, SlotIo};
use crate::disk::{Beyond, Disk, DiskFile, Existing};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Number of slots by which the file grows (4 MiB). It is small enough that a small mount stays small, and large
/// enough that reserving costs almost nothing.
pub(crate) const GROWTH: u64 = 64;
/// Number of free slots that may stay at the end of the file (64 MiB) before the file is truncated.
pub(crate) const SLACK: u64 = 1024;

/// The staging pool. See the module.
pub(crate) struct Pool {
    file: Box<dyn DiskFile>,
    slot_len: usize,
    /// The map of slots. A thread takes no other lock while it holds this one. It may hold others when it takes it.
    state: Mutex<State>,
    /// A counter that changes whenever slots are freed.
    freed: watch::Sender<u64>,
}

/// The value for an unknown checksum. One slot in 2^32 has this checksum by chance and is not checked.
const NO_CHECKSUM: u32 = 0;

#[derive(Default)]
struct State {
    /// Free slots below `end`.
    free: BTreeSet<u64>,
    /// First slot that was not allocated since the file was truncated last.
    end: u64,
    /// Number of slots for which disk space is reserved.
    reserved: u64,
    /// Checksums of written slots.
    checksums: HashMap<u64, u32>,
    /// Number of readers that need the bytes of a slot.
    pins: HashMap<u64, u32>,
    /// Slots that were freed while they were pinned.
    doomed: BTreeSet<u64>,
    /// True if at most [`GROWTH`] free slots may stay at the end, see [`Pool::keep_small`].
    is_small: bool,
}

impl Pool {
    /// Opens or creates the pool. `used` are the slots that hold data. The file keeps its length until [`Pool::cut`].
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        slot_len: usize,
        used: impl Iterator<Item = (SlotId, u32)>,
    ) -> io::Result<Self> {
        let file = disk.create(path, Existing::Kept)?;
        let checksums: HashMap<u64, u32> = used.map(|(slot, checksum)| (slot.0, checksum)).collect();
        let end = checksums.keys().max().map_or(0, |last| last.saturating_add(1));
        let free = (0..end).filter(|slot| !checksums.contains_key(slot)).collect();
        let state = State { free, end, reserved: end, checksums, ..State::default() };
        Ok(Self { file, slot_len, state: Mutex::new(state), freed: watch::channel(0).0 })
    }

    /// Truncates the file after the last slot in use. The caller must make sure that nothing durable names a slot
    /// past it: while a power cut can still undo the newest records of the journal, older records could name slots
    /// that the undone ones freed.
    pub(crate) fn cut(&self) -> io::Result<()> {
        let mut state = self.state();
        self.file.set_len(state.end.saturating_mul(self.slot_len as u64))?;
        state.reserved = state.end;
        Ok(())
    }

    /// Makes all written slots durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Returns the checksum of the bytes that were written to a slot.
    pub(crate) fn checksum(&self, slot: SlotId) -> u32 {
        self.state().checksums.get(&slot.0).copied().unwrap_or(NO_CHECKSUM)
    }

    /// Frees slots that nothing durable names.
    pub(crate) fn free(&self, slots: &[SlotId]) {
        let mut state = self.state();
        for slot in slots {
            if state.pins.contains_key(&slot.0) {
                state.doomed.insert(slot.0);
            } else {
                state.release(slot.0);
            }
        }
        self.trim(&mut state);
        drop(state);
        self.freed.send_modify(|count| *count += 1);
    }

    /// Keeps the bytes of slots while the guard lives.
    pub(crate) fn pin(self: &Arc<Self>, slots: &[SlotId]) -> Pins {
        let mut state = self.state();
        slots.iter().for_each(|slot| *state.pins.entry(slot.0).or_default() += 1);
        Pins { pool: self.clone(), slots: slots.to_vec() }
    }

    /// Returns the size of a slot, bytes.
    pub(crate) fn slot_len(&self) -> u64 {
        self.slot_len as u64
    }

    /// Returns a future that resolves when slots are freed after this call.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + use<> {
        let mut freed = self.freed.subscribe();
        async move {
            // The caller holds the pool, so it can't be dropped during the wait. If it were dropped, there would be
            // nothing to wait for.
            let _ = freed.changed().await;
        }
    }

    /// Limits the free slots at the end of the file to [`GROWTH`]. Called if the mount has a limit of disk space.
    pub(crate) fn keep_small(&self) {
        self.state().is_small = true;
    }

    /// Returns the slots in use and the slots that the disk has space for.
    pub(crate) fn size(&self) -> (u64, u64) {
        let state = self.state();
        (state.end - state.free.len() as u64, state.reserved)
    }

    /// Returns the number of slots in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        let state = self.state();
        state.end - state.free.len() as u64
    }

    /// Truncates free slots at the end of the file.
    fn trim(&self, state: &mut State) {
        while state.end > 0 && state.free.last() == Some(&(state.end - 1)) {
            state.free.pop_last();
            state.end -= 1;
        }
        let slack = if state.is_small { GROWTH } else { SLACK };
        if state.reserved > state.end + slack || (state.end == 0 && state.reserved > GROWTH) {
            // A failure is harmless: the file only stays longer.
            if self.file.set_len(state.end * self.slot_len as u64).is_ok() {
                state.reserved = state.end;
            }
        }
    }

    /// Locks the map of slots. Ignores poisoning: nothing panics halfway through a change of the map.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self, slot: SlotId, len: usize) -> io::Result<u64> {
        let known = slot.0 < self.state().reserved && len == self.slot_len;
        let offset = slot.0.checked_mul(self.slot_len as u64).filter(|_| known);
        offset.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such slot"))
    }

    /// Reserves disk space so that the file has `slots` slots in total.
    fn reserve(&self, from: u64, slots: u64) -> io::Result<()> {
        let len = self.slot_len as u64;
        match self.file.allocate(from * len, (slots - from) * len, Beyond::Lengthens) {
            // If the file system can't reserve space, the write itself reports a full disk.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.file.set_len(slots * len),
            outcome => outcome,
        }
    }
}

impl State {
    fn release(&mut self, slot: u64) {
        self.checksums.remove(&slot);
        if slot < self.end {
            self.free.insert(slot);
        }
    }
}

impl SlotIo for Pool {
    fn allocate(&self) -> io::Result<SlotId> {
        let mut state = self.state();
        if let Some(slot) = state.free.pop_first() {
            return Ok(SlotId(slot));
        }
        if state.end == state.reserved {
            self.reserve(state.reserved, state.reserved + GROWTH)?;
            state.reserved += GROWTH;
        }
        state.end += 1;
        Ok(SlotId(state.end - 1))
    }

    fn cancel(&self, slot: SlotId) {
        self.state().release(slot.0);
    }

    fn read(&self, slot: SlotId, out: &mut [u8]) -> io::Result<()> {
        let offset = self.offset(slot, out.len())?;
        self.file.read_exact_at(out, offset)?;
        // Sealed slots have a tag of their own. For plain slots, this checksum is the only check against a damaged
        // pool.
        let written = self.checksum(slot);
        if written != NO_CHECKSUM && written != checksum(out) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a staging slot is damaged"));
        }
        Ok(())
    }

    fn write(&self, slot: SlotId, bytes: &[u8]) -> io::Result<()> {
        let offset = self.offset(slot, bytes.len())?;
        self.file.write_all_at(bytes, offset)?;
        self.state().checksums.insert(slot.0, checksum(bytes));
        Ok(())
    }
}

/// A guard that keeps slots from being allocated again.
pub(crate) struct Pins {
    pool: Arc<Pool>,
    slots: Vec<SlotId>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        for slot in &self.slots {
            let Some(count) = state.pins.get_mut(&slot.0) else { continue };
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&slot.0);
                if state.doomed.remove(&slot.0) {
                    state.release(slot.0);
                }
            }
        }
    }
}

/// Returns the CRC-32C of a slot. It distinguishes a slot that a power cut tore from a whole one. It doesn't protect
/// against an attacker.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn pool(used: &[u64]) -> (tempfile::TempDir, Arc<Pool>) {
        let dir = tempfile::tempdir().unwrap();
        let used = used.iter().map(|slot| (SlotId(*slot), 0)).collect::<Vec<_>>();
        let pool = Pool::open(&RealDisk, &dir.path().join("pool"), 16, used.into_iter()).unwrap();
        (dir, Arc::new(pool))
    }

    #[test]
    fn slots_named_by_journal_are_not_allocated() {
        let (_dir, pool) = pool(&[0, 2, 3]);
        let got: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().0).collect();
        assert_eq!(got, [1, 4, 5]);
    }

    #[test]
    fn freed_pinned_slot_is_allocated_again_only_after_last_unpin() {
        let (_dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        let last = pool.allocate().unwrap();
        let (one, two) = (pool.pin(&[slot]), pool.pin(&[slot]));
        pool.free(&[slot]);
        assert_ne!(pool.allocate().unwrap(), slot);
        drop(one);
        assert_ne!(pool.allocate().unwrap(), slot);
        drop(two);
        assert_eq!(pool.allocate().unwrap(), slot);
        assert_ne!(last, slot);
    }

    #[test]
    fn written_slot_reads_back_with_checksum_of_its_bytes() {
        let (_dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        pool.write(slot, &[7; 16]).unwrap();
        let mut out = [0; 16];
        pool.read(slot, &mut out).unwrap();
        assert_eq!(out, [7; 16]);
        assert_eq!(pool.checksum(slot), checksum(&[7; 16]));
    }

    #[test]
    fn damaged_slot_is_refused() {
        let (dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        pool.write(slot, &[7; 16]).unwrap();
        let file = RealDisk.create(&dir.path().join("pool"), Existing::Kept).unwrap();
        file.write_all_at(&[8], 3).unwrap();
        assert_eq!(pool.read(slot, &mut [0; 16]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn slot_of_wrong_length_or_position_is_refused() {
        let (_dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        assert!(pool.write(slot, &[0; 15]).is_err());
        assert!(pool.read(SlotId(u64::MAX), &mut [0; 16]).is_err());
    }

    #[test]
    fn empty_pool_frees_its_disk_space() {
        let (dir, pool) = pool(&[]);
        let slots: Vec<_> = (0..GROWTH * 2).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(pool.used(), GROWTH * 2);
        pool.free(&slots);
        assert_eq!(pool.used(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("pool")).unwrap().len(), 0);
        assert!(pool.allocate().is_ok());
    }
}
