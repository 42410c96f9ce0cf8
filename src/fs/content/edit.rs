//! A file's local content: a draft, its locks, and the part of it that the journal has.
//!
//! The locks have this order: the draft (async; held over reads of the base, which are bounded), the tree, `meta`,
//! the journal. A task that holds the draft for writing appends to the journal before it releases the draft. So
//! deltas are journaled in the order in which they were made.

use crate::fs::content::quota::Room;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, Ino};
use crate::fs::journal::file::{Journal, Purpose, Ticket};
use crate::fs::journal::ledger::{Entry, FrozenRecord};
use crate::fs::lock::{Mutex, Rank, before_wait, lock};
use crate::store::staging::Pool;
use crate::store::{Delta, Draft, DraftState, Frozen, Stored, Version, stored_now};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The time at which a file is due, and the latest time at which its upload starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    pub(crate) latest: Instant,
}

/// The local content of a file. See the module.
pub(crate) struct Edit {
    /// The file's number in the ledger.
    pub(crate) file: FileNo,
    /// The draft. `None` once the edit has ended: the content is then the inode's version.
    draft: RwLock<Option<Draft>>,
    meta: Mutex<Meta, { Rank::Meta as u8 }>,
    /// The inode, once there is one. After a restart, there is none before the directory is listed.
    ino: OnceLock<Ino>,
}

struct Meta {
    len: u64,
    mtime: OffsetDateTime,
    /// A counter of changes. 0 means that the content equals the version that it was started from.
    generation: u64,
    /// The generation that the journal has.
    settled: u64,
    /// The ticket of the newest journal record.
    ticket: Ticket,
    committed: u64,
    /// Time of the oldest change that is not committed. The next field has that of the newest change.
    first_change: Instant,
    last_change: Instant,
    /// Deltas that the journal has refused so far.
    backlog: Vec<Delta>,
    /// The version that the remote has now, if the draft doesn't know it yet.
    rebase: Option<Version>,
    /// Generations up to this one are flushed without waiting for a quiet time.
    hurry: u64,
    /// Number of commits that were made while the file was open for writing.
    early: u32,
    /// True if the last write failed.
    stuck: bool,
    /// Bytes of the base that a freeze still has to fetch, at most.
    owed: u64,
    /// Offset of the next write in streaming mode, for a file that was extended before its first write. `None` means
    /// the end.
    next_write: Option<u64>,
    /// Slots that are promised to this file, if disk space is limited.
    room: Option<Room>,
    /// The totals in which the file is counted while the remote lacks it. The next field has the files and bytes that
    /// are counted for it.
    totals: Option<Arc<Totals>>,
    share: (u64, u64),
}

/// Number of files that the remote lacks, and their total size.
#[derive(Default)]
pub(crate) struct Totals(Mutex<(u64, u64)>);

impl Totals {
    /// Returns the number of files and the number of bytes.
    pub(crate) fn get(&self) -> (u64, u64) {
        *lock(&self.0)
    }

    fn replace(&self, old: (u64, u64), new: (u64, u64)) {
        let mut totals = lock(&self.0);
        *totals = (totals.0 - old.0 + new.0, totals.1 - old.1 + new.1);
    }
}

impl Meta {
    /// Updates the totals. It must be called after each change of length, generation or commit.
    fn recount(&mut self) {
        let Some(totals) = &self.totals else { return };
        let share = if self.generation > self.committed { (1, self.len) } else { (0, 0) };
        totals.replace(std::mem::replace(&mut self.share, share), share);
    }

    fn is_evictable(&self) -> bool {
        let settled = self.settled == self.generation && self.backlog.is_empty();
        self.generation > 0 && self.generation == self.committed && settled
    }
}

impl Edit {
    /// Returns an edit at `generation`, of which the remote has `committed`. The journal has both up to `ticket`.
    pub(crate) fn new(
        file: FileNo,
        draft: Draft,
        mtime: OffsetDateTime,
        generation: u64,
        committed: u64,
        ticket: Ticket,
    ) -> Self {
        let now = Instant::now();
        let meta = Meta {
            len: draft.len(),
            mtime,
            generation,
            settled: generation,
            ticket,
            committed,
            first_change: now,
            last_change: now,
            backlog: Vec::new(),
            rebase: None,
            hurry: 0,
            early: 0,
            stuck: false,
            owed: draft.state().base.map_or(0, |(_, visible)| visible),
            next_write: None,
            room: None,
            totals: None,
            share: (0, 0),
        };
        Self { file, draft: RwLock::new(Some(draft)), meta: Mutex::new(meta), ino: OnceLock::new() }
    }

    /// Sets the inode of this content.
    pub(crate) fn set_ino(&self, ino: Ino) {
        // A second inode for this content can only be the same file that was listed again. The first one stays.
        let _ = self.ino.set(ino);
    }

    /// Returns the inode.
    pub(crate) fn ino(&self) -> Option<Ino> {
        self.ino.get().copied()
    }

    /// Returns the present size.
    pub(crate) fn len(&self) -> u64 {
        lock(&self.meta).len
    }

    /// Returns the time of the last change.
    pub(crate) fn mtime(&self) -> OffsetDateTime {
        lock(&self.meta).mtime
    }

    /// Returns the current generation.
    pub(crate) fn generation(&self) -> u64 {
        lock(&self.meta).generation
    }

    /// Returns the age of the oldest change that the remote doesn't have.
    pub(crate) fn age(&self) -> Duration {
        lock(&self.meta).first_change.elapsed()
    }

    /// Returns true if the file is new or emptied, and no byte was written to it since. It may have been extended.
    pub(crate) fn is_unwritten(&self) -> bool {
        let meta = lock(&self.meta);
        meta.generation > meta.committed && (meta.len == 0 || meta.next_write == Some(0))
    }

    /// Returns the offset that a write in order must have.
    pub(crate) fn next_write(&self) -> u64 {
        let meta = lock(&self.meta);
        meta.next_write.unwrap_or(meta.len)
    }

    /// Sets the offset of the next write in order. The draft must be held for writing.
    pub(crate) fn set_next_write(&self, offset: u64) {
        let mut meta = lock(&self.meta);
        meta.next_write = Some(offset).filter(|offset| *offset < meta.len);
    }

    /// Returns true if the remote doesn't have the newest generation.
    pub(crate) fn is_dirty(&self) -> bool {
        let meta = lock(&self.meta);
        meta.generation > meta.committed
    }

    /// Returns true if the remote has this generation.
    pub(crate) fn has_committed(&self, generation: u64) -> bool {
        lock(&self.meta).committed >= generation
    }

    /// Returns true if the journal doesn't have the newest generation, or lacks deltas.
    pub(crate) fn is_unsettled(&self) -> bool {
        let meta = lock(&self.meta);
        meta.generation > meta.settled || !meta.backlog.is_empty()
    }

    /// Returns the time at which the edit should be flushed: after `debounce` without changes, but not later than
    /// `window` after the first change. Each flush of a file that is open for writing doubles the window, so that a
    /// long copy isn't uploaded over and over. Returns `None` if the remote has the newest generation.
    pub(crate) fn due(&self, debounce: Duration, window: Duration) -> Option<Due> {
        let meta = lock(&self.meta);
        if meta.generation <= meta.committed {
            return None;
        }
        if meta.hurry > meta.committed {
            return Some(Due { at: meta.first_change, latest: meta.first_change });
        }
        let window = window.saturating_mul(1 << meta.early.min(16));
        let latest = meta.first_change + window;
        Some(Due { at: (meta.last_change + debounce).min(latest), latest })
    }

    /// Returns the time since the last change.
    pub(crate) fn quiet(&self) -> Duration {
        lock(&self.meta).last_change.elapsed()
    }

    /// Returns the bytes of slots that a first change would need in addition to its own, for the rest of the file.
    pub(crate) fn owed(&self) -> u64 {
        let meta = lock(&self.meta);
        if meta.generation == meta.committed { meta.owed } else { 0 }
    }

    /// Returns true if the edit was changed and the remote has all of it.
    pub(crate) fn is_evictable(&self) -> bool {
        let meta = lock(&self.meta);
        meta.is_evictable()
    }

    /// Counts the edit in `totals` while the remote lacks it. `None` stops counting it.
    pub(crate) fn count_in(&self, totals: Option<&Arc<Totals>>) {
        let mut meta = lock(&self.meta);
        if let Some(old) = meta.totals.take() {
            old.replace(std::mem::take(&mut meta.share), (0, 0));
        }
        meta.totals = totals.cloned();
        meta.recount();
    }

    /// Makes the present generation due immediately. Only the schedule calls this, because it also queues the edit.
    pub(crate) fn flush_early(&self) {
        let mut meta = lock(&self.meta);
        meta.hurry = meta.generation;
    }

    /// Locks the draft for reading. It is `None` once the edit has ended.
    pub(crate) async fn reader(&self) -> RwLockReadGuard<'_, Option<Draft>> {
        before_wait("a file's draft");
        self.draft.read().await
    }

    /// Locks the draft for writing.
    pub(crate) async fn writer(&self) -> RwLockWriteGuard<'_, Option<Draft>> {
        before_wait("a file's draft");
        let mut draft = self.draft.write().await;
        self.rebase(draft.as_mut());
        draft
    }

    /// Locks the draft for writing, unless another task holds it now.
    pub(crate) fn try_writer(&self) -> Option<RwLockWriteGuard<'_, Option<Draft>>> {
        let mut draft = self.draft.try_write().ok()?;
        self.rebase(draft.as_mut());
        Some(draft)
    }

    /// Sets the remote's present version in the draft, if the draft doesn't have it yet.
    fn rebase(&self, draft: Option<&mut Draft>) {
        let version = lock(&self.meta).rebase.take();
        if let (Some(draft), Some(version)) = (draft, version)
            // A copy is committed as the version that it is based on, and most of it may be nowhere else.
            && draft.state().base.is_none_or(|(base, _)| base.id != version.id)
        {
            draft.rebase(version);
        }
    }

    /// Records a change of `draft`, which is held for writing.
    pub(crate) fn change(&self, draft: &Draft) {
        self.change_at(draft, stored_now());
    }

    fn change_at(&self, draft: &Draft, mtime: OffsetDateTime) {
        let mut meta = lock(&self.meta);
        let now = Instant::now();
        meta.len = draft.len();
        meta.mtime = mtime;
        if meta.generation == meta.committed {
            meta.first_change = now;
        }
        meta.last_change = now;
        meta.generation += 1;
        meta.recount();
    }

    /// Stores the slots that were promised to a change of this file.
    pub(crate) fn keep_room(&self, room: Option<Room>) {
        if room.is_some() {
            lock(&self.meta).room = room;
        }
    }

    /// Limits the promise to the slots that the upload of `draft` still needs.
    pub(crate) fn resize_room(&self, draft: &Draft) {
        let mut meta = lock(&self.meta);
        let slots = if meta.generation > meta.committed { draft.slots_needed() } else { 0 };
        if let Some(room) = &mut meta.room {
            room.resize(slots);
        }
    }

    /// Invalidates a frozen version: it counts as an older generation, although its content is the present one.
    pub(crate) fn outgrow(&self, generation: u64) {
        let mut meta = lock(&self.meta);
        if meta.generation == generation {
            meta.generation += 1;
            meta.recount();
        }
    }

    /// Sets the time to be committed, if nothing was frozen since the last change. Returns true if it did.
    pub(crate) fn set_mtime(&self, journal: &Journal, mtime: OffsetDateTime) -> Result<bool, Error> {
        let mut meta = lock(&self.meta);
        if meta.generation <= meta.committed {
            return Ok(false);
        }
        let (file, generation) = (self.file, meta.settled);
        let (_, done) = journal.transact(Purpose::Work, |ledger| {
            let draft = ledger.file(file).and_then(|record| record.draft.as_ref());
            let frozen = draft.and_then(|draft| draft.frozen.clone());
            let mut entries = vec![Entry::Extend { file, generation, mtime, delta: None, checksums: Vec::new() }];
            match frozen.filter(|frozen| frozen.generation == meta.generation) {
                None if draft.is_none() => return Ok((Vec::new(), false)),
                None => {}
                // A version that is uploaded but not queued yet (a new copy) is recorded again with the new time.
                Some(FrozenRecord { generation, frozen, stored: Some(stored), .. }) if !ledger.is_mentioned(file) => {
                    entries.push(Entry::Freeze { file, generation, mtime, frozen });
                    entries.push(Entry::Uploaded { file, generation, stored });
                }
                Some(_) => return Ok((Vec::new(), false)),
            }
            Ok((entries, true))
        })?;
        if done {
            meta.mtime = mtime;
        }
        Ok(done)
    }

    /// Records every change in the journal. The caller waits until the ticket is written.
    pub(crate) async fn settle(&self, journal: &Journal, pool: &Pool) -> Result<Ticket, Error> {
        let mut guard = self.writer().await;
        match guard.as_mut() {
            Some(draft) => self.settle_locked(draft, journal, pool).await,
            None => Ok(lock(&self.meta).ticket),
        }
    }

    /// Records every change in the journal, as [`Edit::settle`] does. `draft` is this edit's, held for writing.
    pub(crate) async fn settle_locked(
        &self,
        draft: &mut Draft,
        journal: &Journal,
        pool: &Pool,
    ) -> Result<Ticket, Error> {
        let delta = draft.settle().await?;
        self.resize_room(draft);
        let ticket = self.journal(Purpose::Work, delta, journal, pool, Vec::new())?;
        lock(&self.meta).stuck = false;
        Ok(ticket)
    }

    /// Writes to `draft`, which is held for writing. After a failed write, nothing more is accepted into memory until
    /// the data in memory could be persisted. So a program that ignores errors can't fill the memory.
    pub(crate) async fn write(
        &self,
        draft: &mut Draft,
        offset: u64,
        data: &[u8],
        journal: &Journal,
        pool: &Pool,
    ) -> Result<(), Error> {
        if lock(&self.meta).stuck {
            self.settle_locked(draft, journal, pool).await?;
        }
        let outcome = draft.write_at(offset, data).await;
        lock(&self.meta).stuck = outcome.is_err();
        // A failed write counts as a change, too, because part of it may be there.
        self.change(draft);
        Ok(outcome?)
    }

    /// Appends `delta`, the deltas that were refused earlier, and `more`. A delta that the journal refuses now is
    /// appended with the next one.
    fn journal(
        &self,
        purpose: Purpose,
        delta: Option<Delta>,
        journal: &Journal,
        pool: &Pool,
        more: Vec<Entry>,
    ) -> Result<Ticket, Error> {
        let mut meta = lock(&self.meta);
        meta.backlog.extend(delta);
        if meta.backlog.is_empty() && meta.settled == meta.generation && more.is_empty() {
            return Ok(meta.ticket);
        }
        let (file, generation, mtime) = (self.file, meta.generation, meta.mtime);
        let extend = |delta: Option<&Delta>| {
            let checksums = delta.map_or_else(Vec::new, |delta| {
                delta.placed.iter().map(|(_, record)| pool.checksum(record.slot)).collect()
            });
            Entry::Extend { file, generation, mtime, delta: delta.cloned(), checksums }
        };
        let mut entries: Vec<Entry> = meta.backlog.iter().map(|delta| extend(Some(delta))).collect();
        if entries.is_empty() && meta.settled != meta.generation {
            entries.push(extend(None));
        }
        entries.extend(more);
        meta.ticket = journal.append(purpose, entries)?;
        meta.backlog.clear();
        meta.settled = generation;
        Ok(meta.ticket)
    }

    /// Journals that the content is `copy` from now on, a version that the remote has. The draft must be held for
    /// writing and be fully in the journal. The caller replaces it with `copy` right after.
    pub(crate) fn become_copy(
        &self,
        copy: &Draft,
        stored: Stored,
        frozen: Arc<Frozen>,
        journal: &Journal,
    ) -> Result<(), Error> {
        let (file, mtime) = (self.file, stored_now());
        {
            let mut meta = lock(&self.meta);
            let generation = meta.generation + 1;
            let entries = vec![
                Entry::Begin { file, state: copy.state().clone(), generation, mtime },
                Entry::Freeze { file, generation, mtime, frozen },
                Entry::Uploaded { file, generation, stored },
            ];
            meta.ticket = journal.append(Purpose::Work, entries)?;
            meta.settled = generation;
        }
        self.change_at(copy, mtime);
        Ok(())
    }

    /// Evicts the plaintext in memory, if the journal has all of the draft. `again` creates the same draft from its
    /// state. Otherwise each of thousands of files that wait for their flush would keep a record in memory.
    pub(crate) async fn cool(&self, again: impl FnOnce(DraftState) -> Result<Draft, Error>) -> Result<(), Error> {
        let mut guard = self.writer().await;
        if let Some(draft) = guard.as_mut().filter(|_| !self.is_unsettled()) {
            *draft = again(draft.state().clone())?;
        }
        Ok(())
    }

    /// Frees all slots, if the remote has their content. After that, it is an edit of the remote's version without
    /// changes. Returns the number of slots. Frees none while another task reads or changes the draft, because a read
    /// may wait for the network.
    pub(crate) async fn evict(
        &self,
        journal: &Journal,
        pool: &Pool,
        again: impl FnOnce(DraftState) -> Result<Draft, Error>,
    ) -> Result<u64, Error> {
        let Some(mut guard) = self.try_writer() else { return Ok(0) };
        let Some(draft) = guard.as_mut().filter(|_| self.is_evictable()) else { return Ok(0) };
        // A fetch may have brought data into memory that no entry has yet.
        self.settle_locked(draft, journal, pool).await?;
        let slots = draft.state().records.len() as u64;
        let Some((version, _)) = draft.state().base.filter(|_| slots > 0) else { return Ok(0) };
        let (file, len) = (self.file, draft.len());
        let state = DraftState { len, base: Some((version, len)), ..DraftState::default() };
        let fresh = again(state.clone())?;
        let mut meta = lock(&self.meta);
        let (generation, mtime) = (meta.generation, meta.mtime);
        // The entry of a commit says that no byte of the base is needed. Here all of them are needed.
        let base = Delta { len, base_len: len, ..Delta::default() };
        let entries = vec![
            Entry::Begin { file, state, generation, mtime },
            Entry::Committed { file, generation, version },
            Entry::Extend { file, generation, mtime, delta: Some(base), checksums: Vec::new() },
        ];
        meta.ticket = journal.append(Purpose::Relief, entries)?;
        meta.owed = len;
        *draft = fresh;
        Ok(slots)
    }

    /// Fetches the parts of the base that a freeze needs, piece by piece. Between the pieces, the draft may be read
    /// and written. No lock is held during a request. Calls `fetched` after each piece.
    pub(crate) async fn fetch_base(&self, journal: &Journal, pool: &Pool, fetched: impl Fn()) -> Result<(), Error> {
        let mut from = 0;
        loop {
            let Some(gap) = (match self.writer().await.as_mut() {
                Some(draft) => draft.gap(from).await?,
                None => None,
            }) else {
                return Ok(());
            };
            from = gap.end();
            let filling = gap.fetch().await?;
            let mut guard = self.writer().await;
            let Some(draft) = guard.as_mut() else { return Ok(()) };
            draft.fill(filling);
            self.settle_locked(draft, journal, pool).await?;
            fetched();
        }
    }

    /// Freezes the current generation. The journal has it when the ticket is written. Returns `None` if the edit has
    /// ended.
    pub(crate) async fn freeze(&self, journal: &Journal, pool: &Pool) -> Result<Option<(u64, Arc<Frozen>)>, Error> {
        let mut guard = self.writer().await;
        let Some(draft) = guard.as_mut() else { return Ok(None) };
        let (frozen, delta) = draft.freeze().await?;
        self.resize_room(draft);
        let frozen = Arc::new(frozen);
        let (generation, mtime) = {
            let meta = lock(&self.meta);
            (meta.generation, meta.mtime)
        };
        lock(&self.meta).owed = 0;
        let entry = Entry::Freeze { file: self.file, generation, mtime, frozen: frozen.clone() };
        // On a full disk, this entry must be accepted: the commit that follows frees slots.
        self.journal(Purpose::Relief, delta, journal, pool, vec![entry])?;
        Ok(Some((generation, frozen)))
    }

    /// Records that the remote has `generation` now, as `version`. `writing` is true if the file is open for writing.
    pub(crate) fn committed(&self, generation: u64, version: Version, writing: bool) {
        let mut meta = lock(&self.meta);
        meta.committed = meta.committed.max(generation);
        meta.rebase = Some(version);
        meta.early = if writing { meta.early + 1 } else { 0 };
        meta.first_change = Instant::now();
        meta.recount();
    }

    /// Ends the edit if `give_up` agrees, while no other task can use the draft. The edit's entries in the journal
    /// are dropped. `give_up` decides under the tree's lock. It calls the function that it gets, which journals the
    /// end, before it releases the tree. So no other task can start a new edit in between.
    pub(crate) async fn end(
        &self,
        journal: &Journal,
        pool: &Pool,
        give_up: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        self.end_with(journal, pool, |end| give_up(&mut || end(Vec::new()))).await
    }

    /// Ends the edit as [`Edit::end`] does, with entries that come right before the end.
    pub(crate) async fn end_with(
        &self,
        journal: &Journal,
        pool: &Pool,
        give_up: impl FnOnce(&mut dyn FnMut(Vec<Entry>) -> Result<(), Error>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut guard = self.writer().await;
        let Some(draft) = guard.as_mut() else { return Ok(false) };
        // Nothing may wait under the tree's lock. Data that isn't in a slot yet is dropped. Slots that no entry names
        // yet are freed with the rest.
        let mut end = |mut entries: Vec<Entry>| {
            let delta = draft.abandon();
            entries.push(Entry::End { file: self.file });
            self.journal(Purpose::Relief, delta, journal, pool, entries).map(|_| ())
        };
        let ended = give_up(&mut end)?;
        if ended {
            *guard = None;
            lock(&self.meta).room = None;
        }
        Ok(ended)
    }
}
