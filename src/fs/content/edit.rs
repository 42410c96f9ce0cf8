//! A file's local content: a draft, its locks, and the part of it that the journal has.
//!
//! The locks have this order: the draft (async; held over reads of the base, which are bounded), the tree, `meta`,
//! the journal.
//! Only [`EditGuard`] changes a draft: it holds the draft's lock together with the journal and the pool.

use crate::fs::content::promises::SpacePromise;
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
    unfetched: u64,
    /// Offset of the next write in streaming mode, for a file that was extended before its first write. `None` means
    /// the end.
    next_write: Option<u64>,
    /// Slots that are promised to this file, if disk space is limited.
    room: Option<SpacePromise>,
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
            unfetched: draft.state().base.map_or(0, |(_, visible)| visible),
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
    pub(crate) fn is_unpersisted(&self) -> bool {
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
    pub(crate) fn unfetched(&self) -> u64 {
        let meta = lock(&self.meta);
        if meta.generation == meta.committed { meta.unfetched } else { 0 }
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

    /// Locks the draft for a change. `None`: the edit has ended, and the content is the inode's version.
    pub(crate) async fn write_guard<'a>(&'a self, journal: &'a Journal, pool: &'a Pool) -> Option<EditGuard<'a>> {
        before_wait("a file's draft");
        EditGuard::new(self, self.draft.write().await, journal, pool)
    }

    /// Locks the draft for a change, unless something reads or changes it now.
    pub(crate) fn try_write_guard<'a>(&'a self, journal: &'a Journal, pool: &'a Pool) -> Option<EditGuard<'a>> {
        EditGuard::new(self, self.draft.try_write().ok()?, journal, pool)
    }

    /// Sets the remote's present version in the draft, if the draft doesn't have it yet.
    fn rebase(&self, draft: &mut Draft) {
        let version = lock(&self.meta).rebase.take();
        if let Some(version) = version
            // A copy is committed as the version that it is based on, and most of it may be nowhere else.
            && draft.state().base.is_none_or(|(base, _)| base.id != version.id)
        {
            draft.rebase(version);
        }
    }

    /// Takes over the slots that were promised to its content, before anything else sees it.
    pub(crate) fn with_room(self, room: Option<SpacePromise>) -> Self {
        lock(&self.meta).room = room;
        self
    }

    /// Invalidates a frozen version: it counts as an older generation, although its content is the present one.
    pub(crate) fn invalidate_frozen(&self, generation: u64) {
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

    /// Writes every change to the journal. The caller waits until the journal file holds the ticket's entry.
    pub(crate) async fn settle(&self, journal: &Journal, pool: &Pool) -> Result<Ticket, Error> {
        match self.write_guard(journal, pool).await {
            Some(mut guard) => guard.settle().await,
            None => Ok(lock(&self.meta).ticket),
        }
    }

    /// Fetches the parts of the base that a freeze needs, piece by piece. Between the pieces, the draft may be read
    /// and written. No lock is held during a request. Calls `fetched` after each piece.
    pub(crate) async fn fetch_base(&self, journal: &Journal, pool: &Pool, fetched: impl Fn()) -> Result<(), Error> {
        let mut from = 0;
        loop {
            let Some(mut guard) = self.write_guard(journal, pool).await else { return Ok(()) };
            let Some(gap) = guard.draft_mut().gap(from).await? else { return Ok(()) };
            drop(guard);
            from = gap.end();
            let filling = gap.fetch().await?;
            let Some(mut guard) = self.write_guard(journal, pool).await else { return Ok(()) };
            guard.draft_mut().fill(filling);
            guard.settle().await?;
            fetched();
        }
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
}

/// The locked draft of an edit, with the journal and the pool that a change of it needs. Everything that changes the
/// draft is a method of this guard, so no change is possible without the lock. Deltas are appended to the journal
/// before the lock is released, and are therefore journaled in the order in which they were made.
pub(crate) struct EditGuard<'a> {
    edit: &'a Edit,
    /// `Some` as long as this guard exists. Only [`EditGuard::end_with`], which consumes the guard, removes the draft.
    draft: RwLockWriteGuard<'a, Option<Draft>>,
    journal: &'a Journal,
    pool: &'a Pool,
}

impl std::ops::Deref for EditGuard<'_> {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        self.draft.as_ref().expect("a guard is made for a draft, and `end_with` consumes it")
    }
}

impl<'a> EditGuard<'a> {
    fn new(
        edit: &'a Edit,
        mut draft: RwLockWriteGuard<'a, Option<Draft>>,
        journal: &'a Journal,
        pool: &'a Pool,
    ) -> Option<Self> {
        edit.rebase(draft.as_mut()?);
        Some(Self { edit, draft, journal, pool })
    }

    fn draft_mut(&mut self) -> &mut Draft {
        self.draft.as_mut().expect("a guard is made for a draft, and `end_with` consumes it")
    }

    /// Records that the draft has changed.
    pub(crate) fn change(&mut self) {
        self.change_at(stored_now());
    }

    fn change_at(&mut self, mtime: OffsetDateTime) {
        let mut meta = lock(&self.edit.meta);
        let now = Instant::now();
        meta.len = self.len();
        meta.mtime = mtime;
        if meta.generation == meta.committed {
            meta.first_change = now;
        }
        meta.last_change = now;
        meta.generation += 1;
        meta.recount();
    }

    /// Sets the offset that the next write in order has.
    pub(crate) fn set_next_write(&mut self, offset: u64) {
        let mut meta = lock(&self.edit.meta);
        meta.next_write = Some(offset).filter(|offset| *offset < meta.len);
    }

    /// Takes over the slots that were promised to a change of this file.
    pub(crate) fn keep_promise(&mut self, room: Option<SpacePromise>) {
        if room.is_some() {
            lock(&self.edit.meta).room = room;
        }
    }

    /// Limits the promise to what the upload of the draft still needs.
    pub(crate) fn resize_promise(&mut self) {
        let mut meta = lock(&self.edit.meta);
        let slots = if meta.generation > meta.committed { self.slots_needed() } else { 0 };
        if let Some(room) = &mut meta.room {
            room.resize(slots);
        }
    }

    /// Writes every change to the journal. The caller waits until the journal file holds the ticket's entry.
    pub(crate) async fn settle(&mut self) -> Result<Ticket, Error> {
        let delta = self.draft_mut().settle().await?;
        self.resize_promise();
        let ticket = self.append(Purpose::Work, delta, Vec::new())?;
        lock(&self.edit.meta).stuck = false;
        Ok(ticket)
    }

    /// Writes. After a failed write, first settles what is in memory, and takes nothing more while that fails: a
    /// program that ignores errors can't fill the memory.
    pub(crate) async fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        if lock(&self.edit.meta).stuck {
            self.settle().await?;
        }
        let outcome = self.draft_mut().write_at(offset, data).await;
        lock(&self.edit.meta).stuck = outcome.is_err();
        // A failed write may have written a part.
        self.change();
        Ok(outcome?)
    }

    /// Sets the size. New bytes are zeros.
    pub(crate) async fn truncate(&mut self, len: u64) -> Result<(), Error> {
        self.draft_mut().truncate(len).await?;
        self.change();
        Ok(())
    }

    /// Appends `delta`, earlier deltas that the journal refused, and `more`. If the journal refuses the delta now, the
    /// next call appends it.
    fn append(&mut self, purpose: Purpose, delta: Option<Delta>, more: Vec<Entry>) -> Result<Ticket, Error> {
        let mut meta = lock(&self.edit.meta);
        meta.backlog.extend(delta);
        if meta.backlog.is_empty() && meta.settled == meta.generation && more.is_empty() {
            return Ok(meta.ticket);
        }
        let (file, generation, mtime) = (self.edit.file, meta.generation, meta.mtime);
        let extend = |delta: Option<&Delta>| {
            let checksums = delta.map_or_else(Vec::new, |delta| {
                delta.placed.iter().map(|(_, record)| self.pool.checksum(record.slot)).collect()
            });
            Entry::Extend { file, generation, mtime, delta: delta.cloned(), checksums }
        };
        let mut entries: Vec<Entry> = meta.backlog.iter().map(|delta| extend(Some(delta))).collect();
        if entries.is_empty() && meta.settled != meta.generation {
            entries.push(extend(None));
        }
        entries.extend(more);
        meta.ticket = self.journal.append(purpose, entries)?;
        meta.backlog.clear();
        meta.settled = generation;
        Ok(meta.ticket)
    }

    /// Replaces the content by `copy`, a version that the remote has, and journals that.
    pub(crate) async fn become_copy(&mut self, copy: Draft, stored: Stored, frozen: Arc<Frozen>) -> Result<(), Error> {
        self.settle().await?;
        let (file, mtime) = (self.edit.file, stored_now());
        {
            let mut meta = lock(&self.edit.meta);
            let generation = meta.generation + 1;
            let entries = vec![
                Entry::Begin { file, state: copy.state().clone(), generation, mtime },
                Entry::Freeze { file, generation, mtime, frozen },
                Entry::Uploaded { file, generation, stored },
            ];
            meta.ticket = self.journal.append(Purpose::Work, entries)?;
            meta.settled = generation;
        }
        *self.draft_mut() = copy;
        self.change_at(mtime);
        Ok(())
    }

    /// Frees the decrypted records in memory if the journal has all of them: `again` creates the same draft from its
    /// state. Otherwise each of the thousands of files that wait for their upload would keep a record in memory.
    pub(crate) fn cool(mut self, again: impl FnOnce(DraftState) -> Result<Draft, Error>) -> Result<(), Error> {
        if !self.edit.is_unpersisted() {
            *self.draft_mut() = again(self.state().clone())?;
        }
        Ok(())
    }

    /// Frees all slots if the remote has their content: the edit is then one of that version without a change. Returns
    /// the number of slots. `again` creates a draft from its state.
    pub(crate) async fn evict(mut self, again: impl FnOnce(DraftState) -> Result<Draft, Error>) -> Result<u64, Error> {
        if !self.edit.is_evictable() {
            return Ok(0);
        }
        // A fetch may have brought records into memory that no entry names yet.
        self.settle().await?;
        let slots = self.state().records.len() as u64;
        let Some((version, _)) = self.state().base.filter(|_| slots > 0) else { return Ok(0) };
        let (file, len) = (self.edit.file, self.len());
        let state = DraftState { len, base: Some((version, len)), ..DraftState::default() };
        let fresh = again(state.clone())?;
        let mut meta = lock(&self.edit.meta);
        let (generation, mtime) = (meta.generation, meta.mtime);
        // The entry of a commit says that no byte of the base is needed. Here all of them are needed.
        let base = Delta { len, base_len: len, ..Delta::default() };
        let entries = vec![
            Entry::Begin { file, state, generation, mtime },
            Entry::Committed { file, generation, version },
            Entry::Extend { file, generation, mtime, delta: Some(base), checksums: Vec::new() },
        ];
        meta.ticket = self.journal.append(Purpose::Relief, entries)?;
        meta.unfetched = len;
        drop(meta);
        *self.draft_mut() = fresh;
        Ok(slots)
    }

    /// Freezes the current generation and journals that.
    pub(crate) async fn freeze(mut self) -> Result<(u64, Arc<Frozen>), Error> {
        let (frozen, delta) = self.draft_mut().freeze().await?;
        self.resize_promise();
        let frozen = Arc::new(frozen);
        let (generation, mtime) = {
            let mut meta = lock(&self.edit.meta);
            meta.unfetched = 0;
            (meta.generation, meta.mtime)
        };
        let entry = Entry::Freeze { file: self.edit.file, generation, mtime, frozen: frozen.clone() };
        // On a full disk, a commit is the only way to free slots.
        self.append(Purpose::Relief, delta, vec![entry])?;
        Ok((generation, frozen))
    }

    /// Ends the edit if `discard` agrees: its content in the journal is given up. Returns true if it has ended.
    /// `discard` decides under the tree's lock. It calls its argument, which journals the end, before it releases the
    /// tree, so that no new edit begins in between.
    pub(crate) fn end(
        self,
        discard: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        self.end_with(|end| discard(&mut || end(Vec::new())))
    }

    /// Ends the edit as [`Self::end`] does, with entries that come right before the end.
    pub(crate) fn end_with(
        mut self,
        discard: impl FnOnce(&mut dyn FnMut(Vec<Entry>) -> Result<(), Error>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        // Nothing may wait under the tree's lock. So records that are in no slot are dropped, and slots that no entry
        // names are freed together with the others.
        let mut end = |mut entries: Vec<Entry>| {
            let delta = self.draft_mut().abandon();
            entries.push(Entry::End { file: self.edit.file });
            self.append(Purpose::Relief, delta, entries).map(|_| ())
        };
        let ended = discard(&mut end)?;
        if ended {
            *self.draft = None;
            lock(&self.edit.meta).room = None;
        }
        Ok(ended)
    }
}
