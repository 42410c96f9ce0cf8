//! One opened cache folder: what both caches share. Reading entries, reserving room for new ones,
//! evicting, and the thread that does all writing.
//!
//! Lock order: the gate of the folder, then the index's writer; `opened` and the notes are held for moments only and
//! nothing else is taken under them. Calls block, except where it says otherwise.

use super::entry::{Kind, Table, file_len};
use super::folder::{FileId, Folder, Key, Owner, SHARDS, Temp};
use super::index::{self, Changes, Entry, Index, USE_GRAIN};
use super::queue::{Limit, Next, Queue, Run};
use super::read::{Miss, Reader};
use super::{Cached, Options};
use crate::Hash;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// Bytes of chunks in one entry: what is evicted at a time, and about what a reader of a long range opens a file for.
const MAX_ENTRY_BYTES: u64 = 8 << 20;
/// Chunks in one entry: as many of the smallest kind as fill it.
const MAX_ENTRY_CHUNKS: usize = 1024;
/// No entry takes more than this part of the whole bound, lest each one push out all others.
const MAX_ENTRY_PART: u64 = 8;
/// Blocks that file systems hand out, bytes.
const BLOCK: u64 = 4096;
/// What an entry costs besides its blocks: inode, name, row of the index.
const OVERHEAD: u64 = 1024;
/// A file that claims more (1 PiB) is counted as this: sums must not overflow.
const MAX_COUNTED: u64 = 1 << 50;
/// Entries evicted in one transaction: other processes wait for it.
const EVICT_AT_ONCE: usize = 64;
/// How long nothing is written after a failure (a full or broken disk, a read-only file system).
const PAUSE: Duration = Duration::from_secs(60);
/// Room is made on a disk that is nearly full at most this often: what an unlink frees shows late.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);
/// Files and index are compared this often, and after each boot. Milliseconds.
const SCAN_EVERY: i64 = 7 * 24 * 3600 * 1000;
/// Free space that is left alone by default: this part of the file system…
const MIN_FREE_PART: u64 = 20;
/// … or this many bytes, whichever is less.
const MIN_FREE_MOST: u64 = 1 << 30;
/// Uses that are remembered between two entries into the index. What is over it is forgotten.
const MAX_USES: usize = 4096;
/// Lost entries and given-up reservations that are remembered. What is over it shows again.
const MAX_NOTES: usize = 1024;

/// What differs between the program and its tests.
#[derive(Clone)]
pub(super) struct Knobs {
    /// Unix milliseconds.
    pub(super) clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// See [`USE_GRAIN`].
    pub(super) use_grain: i64,
    /// See [`PAUSE`].
    pub(super) pause: Duration,
    /// Which boot of the machine this is.
    pub(super) boot: String,
}

impl Default for Knobs {
    fn default() -> Self {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            clock: Arc::new(move || i64::try_from(since(SystemTime::now()).as_millis()).unwrap_or(i64::MAX)),
            use_grain: USE_GRAIN,
            pause: PAUSE,
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        }
    }
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Index(#[from] rusqlite::Error),
}

/// Folder and index, as they were when opened. Somebody may remove or replace them meanwhile.
pub(super) struct Opened {
    index: Index,
    index_id: Option<FileId>,
    pub(super) owner: Owner,
    pub(super) folder: Folder,
    /// When entries of this index were used, by id.
    uses: Mutex<HashMap<i64, i64>>,
}

impl Opened {
    fn open(options: &Options) -> Result<Self, Failure> {
        let folder = Folder::open(&options.dir)?;
        let _gate = folder.gate()?;
        let owner = Owner::claim(&folder)?;
        let living = folder.sweep()?;
        let open_index = || -> Result<Index, Failure> {
            let index = Index::open(&folder.index_path()?)?;
            bury_the_dead(&folder, &index, &living)?;
            Ok(index)
        };
        let index = match open_index() {
            Err(Failure::Index(error)) if index::is_damaged(&error) => {
                tracing::warn!(%error, "the index of the disk cache is damaged: it is rebuilt");
                folder.remove_index()?;
                open_index()?
            }
            outcome => outcome?,
        };
        Ok(Self { index, index_id: folder.index_id(), owner, folder, uses: Mutex::default() })
    }

    /// Whether the path still leads to this index.
    fn is_current(&self) -> bool {
        self.index_id.is_some() && self.folder.index_id() == self.index_id
    }

    fn enter_uses(&self, changes: &Changes<'_>) -> rusqlite::Result<()> {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        uses.into_iter().try_for_each(|(id, at)| changes.used(id, at))
    }

    /// Removes the entry that was used least recently. `None`: there is none.
    fn evict_one(&self, changes: &Changes<'_>) -> Result<Option<u64>, Failure> {
        let Some(entry) = changes.oldest()? else { return Ok(None) };
        // First the file: a row without one is found out by the first who wants it, a file without
        // a row by the next scan only.
        self.folder.remove_entry(&entry.key)?;
        changes.remove(entry.id)?;
        Ok(Some(entry.bytes))
    }
}

/// Removes what writers that are not among the living have reserved.
fn bury_the_dead(folder: &Folder, index: &Index, living: &BTreeSet<String>) -> Result<(), Failure> {
    index.write(|changes| {
        for entry in changes.unwritten()? {
            if entry.owner.as_ref().is_some_and(|owner| !living.contains(owner)) {
                folder.remove_entry(&entry.key)?;
                changes.remove(entry.id)?;
            }
        }
        Ok(())
    })
}

/// Something for the writing thread to put right in the index it was seen in.
struct Note {
    opened: Arc<Opened>,
    id: i64,
    key: Key,
    what: Wrong,
}

impl Note {
    fn enter(&self) -> Result<(), Failure> {
        let Opened { index, folder, .. } = &*self.opened;
        if let Wrong::Orphaned = self.what {
            let _gate = folder.gate()?;
            return bury_the_dead(folder, index, &folder.sweep()?);
        }
        index.write(|changes| {
            if changes.find(&self.key)?.is_none_or(|entry| entry.id != self.id) {
                return Ok(());
            }
            if let Wrong::Lost(Some(seen)) = self.what
                && folder.entry_id(&self.key).is_some_and(|now| now != seen)
            {
                // Somebody has put another file in its place: the next read will tell.
                return Ok(());
            }
            folder.remove_entry(&self.key)?;
            Ok(changes.remove(self.id)?)
        })
    }
}

enum Wrong {
    /// A read found it missing or damaged; the file, if there was one.
    Lost(Option<FileId>),
    /// A reservation was given up.
    Released,
    /// Its writer is dead.
    Orphaned,
}

#[derive(Default)]
struct Notes {
    wrong: Vec<Note>,
    /// Somebody found the index damaged.
    index_damaged: bool,
}

/// Whether something can be made to fit into the bound.
enum Fit {
    Fits,
    Never,
    /// Enough was evicted for one transaction.
    Later,
}

/// What a lookup of a whole file gave.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The bytes, checked.
    Found(Bytes),
    /// It could be filled.
    Absent,
    /// It is being filled elsewhere, or is about to go.
    Busy,
}

/// An opened cache folder. Its thread lives until [`Queue::close`].
pub(super) struct Store {
    options: Options,
    pub(super) knobs: Knobs,
    opened: RwLock<Arc<Opened>>,
    notes: Mutex<Notes>,
    pub(super) queue: Queue,
    paused: Mutex<Option<Instant>>,
    /// When room was last made on a disk that is nearly full.
    made_room: Mutex<Option<Instant>>,
    /// Whether a scan is due.
    unscanned: AtomicBool,
}

impl Store {
    /// Opens the folder and starts the thread.
    pub(super) fn open(options: Options, knobs: Knobs) -> Result<Arc<Self>, Failure> {
        let opened = Arc::new(Opened::open(&options)?);
        let queue = Queue::new(options.queue_bytes, limit_of(&options));
        let store = Arc::new(Self {
            options,
            knobs,
            opened: RwLock::new(opened),
            notes: Mutex::default(),
            queue,
            paused: Mutex::default(),
            made_room: Mutex::default(),
            unscanned: AtomicBool::new(true),
        });
        let keeper = Arc::clone(&store);
        std::thread::Builder::new().name("xet-cache".to_owned()).spawn(move || keeper.keep())?;
        Ok(store)
    }

    /// The folder and index of now.
    pub(super) fn opened(&self) -> Arc<Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> i64 {
        (self.knobs.clock)()
    }

    /// Whether nothing is written for now. Doesn't block.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }

    // Reading.

    /// Chunks of a xorb, all or none.
    pub(super) fn chunks(&self, xorb: &Hash, wanted: Range<u32>) -> Option<Vec<Cached>> {
        let opened = self.opened();
        let entries = self.looked_up(opened.index.overlapping(xorb, &wanted))?;
        let mut pieces = Vec::new();
        let mut at = wanted.start;
        for entry in entries {
            if self.is_being_written(&opened, &entry) {
                return None;
            }
            let has = entry.chunks();
            if has.start > at || has.end <= at {
                continue;
            }
            let end = has.end.min(wanted.end);
            pieces.push((at - has.start..end - has.start, entry));
            at = end;
        }
        if at != wanted.end {
            return None;
        }
        let mut found = Vec::with_capacity(wanted.len());
        for (range, entry) in pieces {
            let read = Reader::open(&opened.folder, &entry.key).and_then(|reader| reader.chunks(range));
            found.extend(self.outcome(&opened, &entry, read)?);
        }
        tracing::debug!(%xorb, chunks = ?wanted, "read from the disk cache");
        Some(found)
    }

    /// Bytes of a file, which is `len` bytes long. `wanted` lies in it and is not empty.
    pub(super) fn file(&self, file: &Hash, len: u64, wanted: Range<u64>) -> Lookup {
        let opened = self.opened();
        let Some(entry) = self.looked_up(opened.index.file(file)) else { return Lookup::Busy };
        let Some(entry) = entry else { return Lookup::Absent };
        if self.is_being_written(&opened, &entry) {
            return Lookup::Busy;
        }
        let range = wanted.clone();
        let read = Reader::open(&opened.folder, &entry.key).and_then(|reader| {
            // Else the caller's length is wrong, and a read of it must not be answered.
            if reader.data_len() == len { reader.bytes(wanted).map(Some) } else { Ok(None) }
        });
        let found = self.outcome(&opened, &entry, read).flatten();
        if found.is_some() {
            tracing::debug!(%file, bytes = ?range, "read from the disk cache");
        }
        found.map_or(Lookup::Busy, Lookup::Found)
    }

    /// Whether an entry isn't there yet. If it never will be, because its writer is dead, it is noted.
    fn is_being_written(&self, opened: &Arc<Opened>, entry: &Entry) -> bool {
        let Some(owner) = &entry.owner else { return false };
        if !opened.folder.is_alive(owner) {
            self.note(opened, entry, Wrong::Orphaned);
        }
        true
    }

    fn looked_up<T>(&self, outcome: rusqlite::Result<T>) -> Option<T> {
        outcome.inspect_err(|error| self.index_failed(error)).ok()
    }

    /// Notes the use of an entry, or that it must go.
    fn outcome<T>(&self, opened: &Arc<Opened>, entry: &Entry, read: Result<T, Miss>) -> Option<T> {
        match read {
            Ok(found) => {
                self.note_use(opened, entry);
                Some(found)
            }
            Err(Miss::Lost(why, file)) => {
                tracing::debug!(xorb_or_file = %entry.key.hash, why, "an entry of the disk cache is dropped");
                self.note(opened, entry, Wrong::Lost(file));
                None
            }
            Err(Miss::Failed(error)) => {
                tracing::debug!(%error, "an entry of the disk cache can't be read");
                None
            }
        }
    }

    fn note_use(&self, opened: &Opened, entry: &Entry) {
        let now = self.now();
        if now.saturating_sub(entry.used) < self.knobs.use_grain {
            return;
        }
        let mut uses = opened.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if uses.len() < MAX_USES || uses.contains_key(&entry.id) {
            uses.insert(entry.id, now);
            drop(uses);
            self.queue.note(false);
        }
    }

    fn note(&self, opened: &Arc<Opened>, entry: &Entry, what: Wrong) {
        self.push_note(Note { opened: Arc::clone(opened), id: entry.id, key: entry.key, what });
    }

    fn push_note(&self, note: Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.wrong.len() < MAX_NOTES {
            notes.wrong.push(note);
        }
        drop(notes);
        self.queue.note(true);
    }

    fn index_failed(&self, error: &rusqlite::Error) {
        tracing::debug!(%error, "the index of the disk cache failed");
        if index::is_damaged(error) {
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).index_damaged = true;
            self.queue.note(true);
        }
    }

    // Writing.

    /// Cuts a run of chunks into entries and queues them. Doesn't block.
    pub(super) fn queue_run(&self, xorb: &Hash, first: u32, chunks: Vec<Cached>) {
        let limit = limit_of(&self.options);
        let mut run = Run { xorb: *xorb, first, chunks: Default::default(), bytes: 0 };
        for chunk in chunks {
            let len = chunk.bytes.len() as u64;
            let is_full = run.bytes + len > limit.bytes || run.chunks.len() == limit.chunks;
            if is_full && !run.chunks.is_empty() {
                let next = Run { first: run.range().end, chunks: Default::default(), bytes: 0, ..run };
                self.queue.push(std::mem::replace(&mut run, next));
            }
            run.chunks.push_back(chunk);
            run.bytes += len;
        }
        if !run.chunks.is_empty() {
            self.queue.push(run);
        }
    }

    /// Reserves room for what each of `wanted` finds missing: evicts what was used least recently until all of it is
    /// within the bound. Where that can't be, it gets nothing.
    pub(super) fn reserve<W>(self: &Arc<Self>, wanted: &[W]) -> Result<Vec<Vec<Reservation>>, Failure>
    where
        W: Fn(&Changes<'_>) -> rusqlite::Result<Vec<(Key, u64)>>,
    {
        let opened = self.opened();
        let mut reserved = Vec::new();
        while reserved.len() < wanted.len() {
            // Other processes get their turn after so many evictions.
            let more = opened.index.write(|changes| {
                let is_complete = changes.scanned()?.complete;
                let mut evictions = EVICT_AT_ONCE;
                let mut more = Vec::new();
                for wanted in &wanted[reserved.len()..] {
                    let missing = if is_complete { wanted(changes)? } else { Vec::new() };
                    match self.fit(&opened, changes, &missing, &mut evictions)? {
                        Fit::Fits => more.push(self.add_all(&opened, changes, &missing)?),
                        Fit::Never => more.push(Vec::new()),
                        Fit::Later => break,
                    }
                }
                Ok::<_, Failure>(more)
            })?;
            let reservation = |(id, key, len)| {
                let (store, opened) = (Arc::clone(self), Arc::clone(&opened));
                Reservation { store, opened, id, key, len, kept: false }
            };
            reserved.extend(more.into_iter().map(|rows| rows.into_iter().map(reservation).collect()));
        }
        Ok(reserved)
    }

    /// Evicts until `missing` is within the bound.
    fn fit(
        &self,
        opened: &Opened,
        changes: &Changes<'_>,
        missing: &[(Key, u64)],
        evictions: &mut usize,
    ) -> Result<Fit, Failure> {
        let need = missing.iter().fold(0, |sum: u64, (_, len)| sum.saturating_add(cost(*len)));
        if missing.is_empty() || need > self.options.max_bytes {
            return Ok(Fit::Never);
        }
        while changes.total()?.saturating_add(need) > self.options.max_bytes {
            if *evictions == 0 {
                return Ok(Fit::Later);
            }
            *evictions -= 1;
            opened.enter_uses(changes)?;
            if opened.evict_one(changes)?.is_none() {
                return Ok(Fit::Never);
            }
        }
        Ok(Fit::Fits)
    }

    fn add_all(
        &self,
        opened: &Opened,
        changes: &Changes<'_>,
        missing: &[(Key, u64)],
    ) -> Result<Vec<(i64, Key, u64)>, Failure> {
        let add = |(key, len): &(Key, u64)| {
            let id = changes.add(key, cost(*len), self.now(), Some(opened.owner.name()))?;
            Ok((id, *key, *len))
        };
        missing.iter().map(add).collect()
    }

    /// Whether the disk has room for `len` bytes more. If not, evicts what it lacks, unless that were in vain.
    pub(super) fn has_room(&self, len: u64) -> Result<bool, Failure> {
        let opened = self.opened();
        let lacking = self.lacking(&opened, len)?;
        if lacking == 0 {
            return Ok(true);
        }
        let is_below_floor = self.lacking(&opened, 0)? > 0;
        if !is_below_floor && opened.index.write(|changes| changes.total())? < lacking {
            return Ok(false);
        }
        let now = Instant::now();
        let made = self.made_room.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        if made.is_none_or(|made| now - made >= MAKE_ROOM_EVERY) {
            tracing::debug!(lacking, "the disk is nearly full: the disk cache shrinks");
            self.evict(&opened, lacking)?;
        }
        Ok(!is_below_floor && self.lacking(&opened, len)? == 0)
    }

    /// What has to be freed before `len` bytes may be written.
    fn lacking(&self, opened: &Opened, len: u64) -> Result<u64, Failure> {
        let (free, all) = opened.folder.space()?;
        let floor = self.options.min_free.unwrap_or_else(|| (all / MIN_FREE_PART).min(MIN_FREE_MOST));
        Ok(floor.saturating_add(len).saturating_sub(free))
    }

    /// Evicts at least `bytes`, or all there is.
    fn evict(&self, opened: &Opened, bytes: u64) -> Result<(), Failure> {
        let mut freed = 0u64;
        loop {
            let is_done = freed >= bytes
                || opened.index.write(|changes| {
                    opened.enter_uses(changes)?;
                    for _ in 0..EVICT_AT_ONCE {
                        if freed >= bytes {
                            return Ok(true);
                        }
                        let Some(more) = opened.evict_one(changes)? else { return Ok(true) };
                        freed = freed.saturating_add(more);
                    }
                    Ok::<_, Failure>(false)
                })?;
            if is_done {
                return Ok(());
            }
        }
    }

    fn write(self: &Arc<Self>, runs: &[Run]) -> Result<(), Failure> {
        if self.is_paused() || !self.has_room(runs.iter().map(|run| run.bytes).sum())? {
            return Ok(());
        }
        let wanted: Vec<_> = runs.iter().map(|run| move |changes: &Changes<'_>| missing_of(run, changes)).collect();
        let mut written = Vec::new();
        for (run, reservations) in runs.iter().zip(self.reserve(&wanted)?) {
            for reservation in reservations {
                let temp = write_part(run, &reservation)?;
                written.push((reservation, temp));
            }
        }
        publish(written)
    }

    // The thread.

    fn keep(self: Arc<Self>) {
        self.attempt(Self::scan);
        self.attempt(Self::shrink);
        loop {
            match self.queue.next() {
                Next::Write(runs) => self.attempt(|store| {
                    // What a read found out before a run was handed in comes first, lest the run pass for covered.
                    store.enter_notes(false)?;
                    store.write(&runs)
                }),
                Next::Notes => self.attempt(|store| store.enter_notes(true)),
                Next::Closed => break,
            }
        }
        // Best effort: they say which entries are worth keeping, no more.
        let _ = self.enter_notes(true);
    }

    fn attempt(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) -> Result<(), Failure>) {
        let outcome = self.refresh().and_then(|()| {
            work(self).or_else(|failure| match &failure {
                Failure::Index(error) if index::is_damaged(error) => {
                    self.index_failed(error);
                    self.refresh()
                }
                _ => Err(failure),
            })
        });
        if let Err(failure) = outcome {
            self.pause(&failure);
        }
    }

    /// Writes nothing for a while.
    pub(super) fn pause(&self, failure: &Failure) {
        let until = Instant::now() + self.knobs.pause;
        let before = self.paused.lock().unwrap_or_else(PoisonError::into_inner).replace(until);
        match before {
            None => tracing::warn!(error = %failure, "the disk cache can't be written: it is left alone for a while"),
            Some(_) => tracing::debug!(error = %failure, "the disk cache still can't be written"),
        }
    }

    /// Opens folder and index again if they were damaged, removed or replaced.
    fn refresh(self: &Arc<Self>) -> Result<(), Failure> {
        let damaged = std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner).index_damaged);
        let opened = self.opened();
        if damaged {
            let _gate = opened.folder.gate()?;
            if opened.is_current() {
                tracing::warn!("the index of the disk cache is damaged: it is rebuilt");
                opened.folder.remove_index()?;
            }
        }
        if opened.is_current() {
            return self.scan_if_due();
        }
        let again = Arc::new(Opened::open(&self.options)?);
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = again;
        self.unscanned.store(true, Ordering::Relaxed);
        self.scan_if_due()
    }

    fn scan_if_due(self: &Arc<Self>) -> Result<(), Failure> {
        if self.unscanned.load(Ordering::Relaxed) { self.scan() } else { Ok(()) }
    }

    /// The bound may have been higher when the folder was filled.
    fn shrink(self: &Arc<Self>) -> Result<(), Failure> {
        let opened = self.opened();
        let total = opened.index.write(|changes| changes.total())?;
        self.evict(&opened, total.saturating_sub(self.options.max_bytes))
    }

    fn pop_note(&self) -> Option<Note> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).wrong.pop()
    }

    fn enter_notes(&self, with_uses: bool) -> Result<(), Failure> {
        while let Some(note) = self.pop_note() {
            if let Err(failure) = note.enter() {
                // Nobody else will ever take this writer's reservations back. What is in an index
                // of the past doesn't matter.
                if Arc::ptr_eq(&note.opened, &self.opened()) {
                    self.notes.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(note);
                    return Err(failure);
                }
            }
        }
        if with_uses {
            let opened = self.opened();
            opened.index.write(|changes| opened.enter_uses(changes))?;
        }
        Ok(())
    }

    /// Compares index and files, if that is due and no other process is at it.
    fn scan(self: &Arc<Self>) -> Result<(), Failure> {
        let opened = self.opened();
        let is_due = || -> Result<bool, Failure> {
            let scanned = opened.index.write(|changes| changes.scanned())?;
            let age = self.now().saturating_sub(scanned.at);
            Ok(!scanned.complete || scanned.boot != self.knobs.boot || !(0..SCAN_EVERY).contains(&age))
        };
        if is_due()? {
            let Some(_alone) = opened.folder.try_scan()? else { return Ok(()) };
            if is_due()? {
                for kind in Kind::ALL {
                    (0..SHARDS).try_for_each(|shard| self.scan_shard(&opened, kind, shard as u8))?;
                }
                opened.index.write(|changes| changes.set_scanned(self.now(), &self.knobs.boot))?;
            }
        }
        self.unscanned.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody writes meanwhile: a file that has no row now has lost it for good.
    fn scan_shard(&self, opened: &Opened, kind: Kind, shard: u8) -> Result<(), Failure> {
        opened.index.write(|changes| {
            let listed = opened.folder.list(kind, shard)?;
            let mut files: HashMap<Key, _> = listed.into_iter().map(|found| (found.key, found)).collect();
            for entry in changes.shard(kind, shard)? {
                match files.remove(&entry.key) {
                    _ if entry.owner.is_some() => {}
                    None => changes.remove(entry.id)?,
                    Some(found) if cost(found.len) != entry.bytes => changes.resize(entry.id, cost(found.len))?,
                    Some(_) => {}
                }
            }
            for (key, found) in files {
                let is_taken = match kind {
                    Kind::File => changes.find(&key)?.is_some(),
                    Kind::Xorb => !changes.overlapping(&key.hash, &(key.first..key.first + key.count))?.is_empty(),
                };
                if is_taken {
                    opened.folder.remove_entry(&key)?;
                } else {
                    changes.add(&key, cost(found.len), found.written.min(self.now()), None)?;
                }
            }
            Ok(())
        })
    }

    /// The sum of all sizes by the index.
    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.opened().index.write(|changes| changes.total()).unwrap()
    }
}

/// Room in the index for an entry that is being written. Dropped unpublished it is given up.
pub(super) struct Reservation {
    store: Arc<Store>,
    pub(super) opened: Arc<Opened>,
    id: i64,
    pub(super) key: Key,
    /// Bytes of the file that is to come.
    len: u64,
    kept: bool,
}

/// Gives written files their names and rows, in one transaction. They are of one index.
pub(super) fn publish(mut written: Vec<(Reservation, Temp)>) -> Result<(), Failure> {
    let Some((first, _)) = written.first() else { return Ok(()) };
    let opened = Arc::clone(&first.opened);
    opened
        .index
        .write(|changes| {
            // Files that no row of the index of now names would not be counted.
            if !opened.is_current() {
                return Ok(());
            }
            for (reservation, temp) in &mut written {
                let len = temp.len()?;
                debug_assert!(len <= reservation.len, "an entry became larger than its reservation");
                if changes.written(reservation.id, cost(len))? {
                    opened.folder.publish(temp, &reservation.key)?;
                    reservation.kept = true;
                }
            }
            Ok::<_, Failure>(())
        })
        .inspect_err(|_| written.iter_mut().for_each(|(reservation, _)| reservation.kept = false))
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            let (opened, id, key) = (Arc::clone(&self.opened), self.id, self.key);
            self.store.push_note(Note { opened, id, key, what: Wrong::Released });
        }
    }
}

/// Writes the chunks of a run that a reservation is for.
fn write_part(run: &Run, reservation: &Reservation) -> Result<Temp, Failure> {
    let (key, opened) = (&reservation.key, &reservation.opened);
    let start = (key.first - run.first) as usize;
    let chunks = || run.chunks.range(start..start + key.count as usize);
    let mut table = Table::default();
    chunks().for_each(|chunk| table.push(&chunk.hash, chunk.bytes.len() as u32));
    let (head, tail) = table.finish(key.kind, key.hash, key.first);
    let mut pieces: Vec<&[u8]> = vec![&head];
    pieces.extend(chunks().map(|chunk| &chunk.bytes[..]));
    pieces.push(&tail);
    let mut temp = opened.owner.create(&opened.folder)?;
    temp.append(&opened.folder, &pieces)?;
    Ok(temp)
}

/// The chunks of a run that no entry has yet, as entries and lengths of their files.
fn missing_of(run: &Run, changes: &Changes<'_>) -> rusqlite::Result<Vec<(Key, u64)>> {
    let wanted = run.range();
    let mut missing = Vec::new();
    let mut gap = |from: u32, to: u32| {
        if from < to {
            let chunks = run.chunks.range((from - wanted.start) as usize..(to - wanted.start) as usize);
            let data_len = chunks.map(|chunk| chunk.bytes.len() as u64).sum();
            missing.push((Key::xorb(&run.xorb, from, to - from), file_len(u64::from(to - from), data_len)));
        }
    };
    let mut at = wanted.start;
    for entry in changes.overlapping(&run.xorb, &wanted)? {
        gap(at, entry.key.first.min(wanted.end));
        at = at.max(entry.chunks().end);
    }
    gap(at, wanted.end);
    Ok(missing)
}

/// How large an entry may become.
fn limit_of(options: &Options) -> Limit {
    Limit { bytes: (options.max_bytes / MAX_ENTRY_PART).clamp(1, MAX_ENTRY_BYTES), chunks: MAX_ENTRY_CHUNKS }
}

/// What a file of this length is counted as.
fn cost(len: u64) -> u64 {
    len.min(MAX_COUNTED).next_multiple_of(BLOCK) + OVERHEAD
}

#[cfg(test)]
impl Opened {
    /// The index, to play another process.
    pub(super) fn index_for_tests(&self) -> &Index {
        &self.index
    }
}
