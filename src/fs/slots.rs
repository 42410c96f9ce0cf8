//! The staging pool: one file of equal slots, and which of them are free.
//!
//! A slot is never rewritten while anything may still name it: the journal hands slots back through [`Pool::free`] only when the entry that
//! no longer names them is durable, and an upload pins the slots it reads. Space is reserved before a slot is given out, so a full disk
//! is reported before anything is written. What the allocation map was is learnt from the journal at start ([`Pool::open`]).

use crate::disk::{Beyond, Disk, DiskFile, Existing};
use crate::fs::lock::{Mutex, Rank, lock};
use crate::store::{SlotId, SlotIo};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use tokio::sync::watch;

/// Slots by which the file grows (4 MiB): few enough that a small mount stays small, many enough that reserving costs nothing.
pub(crate) const GROWTH: u64 = 64;
/// Free slots at the end of the file that may stay (64 MiB) before it is cut.
pub(crate) const SLACK: u64 = 1024;

/// See the module.
pub(crate) struct Pool {
    file: Box<dyn DiskFile>,
    slot_len: usize,
    state: Mutex<State, { Rank::Pool as u8 }>,
    /// Counts whenever slots were freed.
    freed: watch::Sender<u64>,
}

/// Stands for a checksum that isn't known (one slot in 2^32 has it by chance, and goes unchecked).
const NO_CHECKSUM: u32 = 0;

#[derive(Default)]
struct State {
    /// Slots below `end` that are free.
    free: BTreeSet<u64>,
    /// First slot never given out since the file was cut last.
    end: u64,
    /// Slots that the disk has room for.
    reserved: u64,
    /// Checksums of written slots.
    checksums: HashMap<u64, u32>,
    /// How many readers need a slot's bytes to stay.
    pins: HashMap<u64, u32>,
    /// Freed while pinned.
    doomed: BTreeSet<u64>,
    /// See [`Pool::keep_small`].
    is_small: bool,
}

impl Pool {
    /// Opens or makes the pool; `used` slots hold something. The file is as long as it was until [`Pool::cut`].
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

    /// Gives back what is behind the last slot in use. Only once nothing durable names anything there: a journal whose newest records a power cut
    /// may still undo could name slots that they have freed.
    pub(crate) fn cut(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        self.file.set_len(state.end.saturating_mul(self.slot_len as u64))?;
        state.reserved = state.end;
        Ok(())
    }

    /// Makes all written slots durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The checksum of what was written to a slot.
    pub(crate) fn checksum(&self, slot: SlotId) -> u32 {
        lock(&self.state).checksums.get(&slot.0).copied().unwrap_or(NO_CHECKSUM)
    }

    /// Frees slots that nothing durable names.
    pub(crate) fn free(&self, slots: &[SlotId]) {
        let mut state = lock(&self.state);
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
    pub(crate) fn pin(self: &std::sync::Arc<Self>, slots: &[SlotId]) -> Pins {
        let mut state = lock(&self.state);
        slots.iter().for_each(|slot| *state.pins.entry(slot.0).or_default() += 1);
        Pins { pool: self.clone(), slots: slots.to_vec() }
    }

    /// Bytes of a slot.
    pub(crate) fn slot_len(&self) -> u64 {
        self.slot_len as u64
    }

    /// Resolves when slots have been freed since it was called.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + use<> {
        let mut freed = self.freed.subscribe();
        async move {
            // The pool can't go while somebody waits for it; if it did, there would be nothing to wait for.
            let _ = freed.changed().await;
        }
    }

    /// Lets at most [`GROWTH`] free slots stay at the end of the file: there is a limit of disk space.
    pub(crate) fn keep_small(&self) {
        lock(&self.state).is_small = true;
    }

    /// Returns the slots in use and the slots that the disk has space for.
    pub(crate) fn size(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.end - state.free.len() as u64, state.reserved)
    }

    /// Slots in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        let state = lock(&self.state);
        state.end - state.free.len() as u64
    }

    /// Gives the end of the file back to the disk.
    fn trim(&self, state: &mut State) {
        while state.end > 0 && state.free.last() == Some(&(state.end - 1)) {
            state.free.pop_last();
            state.end -= 1;
        }
        let slack = if state.is_small { GROWTH } else { SLACK };
        if state.reserved > state.end + slack || (state.end == 0 && state.reserved > GROWTH) {
            // Only an attempt: a file that stays long is no fault.
            if self.file.set_len(state.end * self.slot_len as u64).is_ok() {
                state.reserved = state.end;
            }
        }
    }

    fn offset(&self, slot: SlotId, len: usize) -> io::Result<u64> {
        let known = slot.0 < lock(&self.state).reserved && len == self.slot_len;
        let offset = slot.0.checked_mul(self.slot_len as u64).filter(|_| known);
        offset.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such slot"))
    }

    /// Reserves disk space for `slots` slots in all.
    fn reserve(&self, from: u64, slots: u64) -> io::Result<()> {
        let len = self.slot_len as u64;
        match self.file.allocate(from * len, (slots - from) * len, Beyond::Lengthens) {
            // A file system that can't reserve: the write itself will tell.
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
        let mut state = lock(&self.state);
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
        lock(&self.state).release(slot.0);
    }

    fn read(&self, slot: SlotId, out: &mut [u8]) -> io::Result<()> {
        let offset = self.offset(slot, out.len())?;
        self.file.read_exact_at(out, offset)?;
        // Sealed slots have a tag of their own; plain ones have nothing else between a damaged pool and their reader.
        let written = self.checksum(slot);
        if written != NO_CHECKSUM && written != checksum(out) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a staging slot is damaged"));
        }
        Ok(())
    }

    fn write(&self, slot: SlotId, bytes: &[u8]) -> io::Result<()> {
        let offset = self.offset(slot, bytes.len())?;
        self.file.write_all_at(bytes, offset)?;
        lock(&self.state).checksums.insert(slot.0, checksum(bytes));
        Ok(())
    }
}

/// Keeps slots from being given out again.
pub(crate) struct Pins {
    pool: std::sync::Arc<Pool>,
    slots: Vec<SlotId>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.state);
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

/// CRC-32C: tells a slot that a power cut tore from a whole one; no protection against anybody.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use std::sync::Arc;

    fn pool(used: &[u64]) -> (tempfile::TempDir, Arc<Pool>) {
        let dir = tempfile::tempdir().unwrap();
        let used = used.iter().map(|slot| (SlotId(*slot), 0)).collect::<Vec<_>>();
        let pool = Pool::open(&RealDisk, &dir.path().join("pool"), 16, used.into_iter()).unwrap();
        (dir, Arc::new(pool))
    }

    #[test]
    fn slots_named_by_the_journal_are_not_given_out() {
        let (_dir, pool) = pool(&[0, 2, 3]);
        let got: Vec<_> = (0..3).map(|_| pool.allocate().unwrap().0).collect();
        assert_eq!(got, [1, 4, 5]);
    }

    #[test]
    fn a_pinned_slot_is_not_given_out_again_until_it_is_unpinned() {
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
    fn a_slot_reads_back_and_has_the_checksum_of_its_bytes() {
        let (_dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        pool.write(slot, &[7; 16]).unwrap();
        let mut out = [0; 16];
        pool.read(slot, &mut out).unwrap();
        assert_eq!(out, [7; 16]);
        assert_eq!(pool.checksum(slot), checksum(&[7; 16]));
    }

    #[test]
    fn a_damaged_slot_is_refused() {
        let (dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        pool.write(slot, &[7; 16]).unwrap();
        let file = RealDisk.create(&dir.path().join("pool"), Existing::Kept).unwrap();
        file.write_all_at(&[8], 3).unwrap();
        assert_eq!(pool.read(slot, &mut [0; 16]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn slots_of_other_lengths_and_places_are_refused() {
        let (_dir, pool) = pool(&[]);
        let slot = pool.allocate().unwrap();
        assert!(pool.write(slot, &[0; 15]).is_err());
        assert!(pool.read(SlotId(u64::MAX), &mut [0; 16]).is_err());
    }

    #[test]
    fn an_empty_pool_gives_its_disk_space_back() {
        let (dir, pool) = pool(&[]);
        let slots: Vec<_> = (0..GROWTH * 2).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(pool.used(), GROWTH * 2);
        pool.free(&slots);
        assert_eq!(pool.used(), 0);
        assert_eq!(std::fs::metadata(dir.path().join("pool")).unwrap().len(), 0);
        assert!(pool.allocate().is_ok());
    }
}
