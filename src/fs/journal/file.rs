//! The journal file: makes the ledger durable.
//!
//! The file is append-only. It begins with a header of 128 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `HFCJRNL2` |
//! | 8 | 4 | slot length, bytes |
//! | 12 | 4 | zeros |
//! | 16 | 32 | journal id, random |
//! | 48 | 32 | identity of the remote |
//! | 80 | 8 | sequence number of the first record |
//! | 88 | 36 | zeros |
//! | 124 | 4 | CRC-32C of the bytes before |
//!
//! Then records follow, each padded with zeros to a multiple of 8. A record has these fields: the first 4 bytes of
//! the journal id, the payload length (u32), the sequence number (u64), the highest sequence number known to be
//! durable when this record was made (u64), the CRC-32C of the three fields before and the payload (u32), and the
//! payload. All numbers are little-endian. The payload holds entries ([`crate::fs::journal::codec`]). It is padded to
//! a multiple of 256 bytes, so that its length doesn't reveal the lengths of names. It is sealed by [`Sealer`] for
//! this journal id and sequence number (format spec, section 4c).
//!
//! **Guarantees.** [`Journal::append`] changes the ledger and returns a [`Ticket`]. After [`Journal::written`], the
//! record is in the file, so `kill -9` can't lose it. After [`Journal::synced`], first the slots and then the journal
//! were synced, so a power cut can't lose it. One sync serves all callers that wait.
//!
//! **Recovery after a crash.** Records are read up to the first bad one. If a later record says that the bad one was
//! durable, acknowledged data is lost: opening fails, and the file is left as it is. Otherwise the bad record is the
//! tail that the crash tore, and the file is truncated there. A record that was not known to be durable also counts
//! as torn if a slot that it names doesn't have the bytes of its checksum.

use crate::disk::{Beyond, Disk, DiskFile, Existing};
use crate::fs::errno::Error;
use crate::fs::ids::OpNo;
use crate::fs::journal::codec;
use crate::fs::journal::ledger::{Entry, Ledger};
use crate::fs::lock::{Condvar, Mutex, MutexGuard, Rank, before_wait, lock};
use crate::store::staging::{Pool, checksum};
use crate::store::{Sealer, SlotId};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::watch;

/// The first bytes of the file. The digit is the version of the layout.
const MAGIC: &[u8; 8] = b"HFCJRNL2";
/// The first bytes of a journal of the earlier layout, in which a version has no kind byte before its hash. Such a
/// journal is refused: it may hold changes that only the program which wrote it can upload.
const EARLIER_MAGIC: &[u8; 8] = b"HFCJRNL1";
/// Size of the file's header, bytes.
const HEADER_LEN: usize = 128;
/// Size of a record's header, bytes.
const RECORD_HEADER_LEN: usize = 28;
/// Payloads are padded to a multiple of this size, bytes.
const PADDING: usize = 256;
/// Longest payload (64 MiB): the slots of a frozen version of some TiB that was written at random offsets.
const MAX_PAYLOAD: usize = 64 << 20;
/// Size up to which entries of a snapshot share a record, bytes.
const SNAPSHOT_RECORD: usize = 512 << 10;
/// Length (8 MiB) above which a journal is compacted, if it is also longer than [`GROWTH`] snapshots.
const COMPACT_LEN: u64 = 8 << 20;
/// Ratio of the length at which the journal is compacted to the length of a snapshot. Between two compactions, three
/// times the length of a snapshot is appended. So the bytes that are rewritten stay in proportion to the bytes that
/// are appended, whatever the size of the ledger.
const GROWTH: u64 = 4;
/// Length (256 KiB) above which a journal with nothing pending is compacted, if it is also longer than [`GROWTH`]
/// snapshots.
const BLANK_LEN: u64 = 256 << 10;
/// Disk space that is reserved ahead (1 MiB), so that necessary entries can still be written when the disk is full.
pub(crate) const RESERVE: u64 = 1 << 20;
/// Reserved space (512 KiB) below which new work is refused, if no more space is available.
const RESERVE_LOW: u64 = 512 << 10;
/// Longest journal (4 GiB). A longer file isn't ours.
const MAX_LEN: u64 = 4 << 30;
/// Pause between a failed write and the next attempt.
const RETRY: Duration = Duration::from_secs(1);

/// A position in the journal. It stands for all changes up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The reason of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// New work. It is refused when the disk is full.
    Work,
    /// The result of earlier work, which frees space sooner or later. It is always accepted.
    Relief,
}

/// Rank of the journal's state.
const JOURNAL: u8 = Rank::Journal as u8;

/// The journal. See the module.
pub(crate) struct Journal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>, { Rank::Threads as u8 }>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    identity: [u8; 32],
    slot_len: u32,
    sealer: Arc<dyn Sealer>,
    pool: Arc<Pool>,
    state: Mutex<State, JOURNAL>,
    /// Wakes the writer and the syncer.
    work: Condvar,
    progress: watch::Sender<Progress>,
}

struct State {
    /// The error of an entry in the middle of a record that didn't fit, which is a bug of this program. The ledger
    /// then has part of a record that the file lacks. From then on, nothing is appended, and the journal isn't
    /// compacted.
    refused: Option<String>,
    ledger: Ledger,
    /// Time at which each operation was queued, or at which the start found it in the queue.
    queued: HashMap<OpNo, OffsetDateTime>,
    id: [u8; 32],
    /// Sequence number of the next record.
    next: u64,
    /// Records that aren't in the file yet. With `rotate`, a whole new file.
    queue: Vec<u8>,
    rotate: bool,
    /// The open file. `None` before the first compaction, which is part of opening.
    file: Option<Arc<dyn DiskFile>>,
    /// Bytes in the file, and bytes reserved for it. While a compaction is queued, `len` is 0, because the compaction
    /// replaces them.
    len: u64,
    reserved: u64,
    /// Length of the last compaction, written or not.
    compacted: u64,
    /// Number of compactions so far, and their bytes.
    #[cfg(test)]
    compactions: (u64, u64),
    /// Slots that are free once the record with this number is durable.
    retired: VecDeque<(u64, Vec<SlotId>)>,
    sync_wanted: u64,
    /// True if the disk has no space for new work.
    full: bool,
    /// True if the writer has to check the disk space again.
    recheck: bool,
    stop: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    written: u64,
    durable: u64,
    /// The number of the newest record and the error of the last attempt to write, if it failed.
    failed: Option<(u64, io::ErrorKind)>,
    /// The error of a failed sync. The state of the disk is unknown from then on.
    sync_failed: Option<io::ErrorKind>,
    /// True if nothing is written any more.
    closed: bool,
}

impl Journal {
    /// Opens or creates the journal and the pool in `folder`, and restores the ledger. Blocks.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        folder: &Path,
        identity: [u8; 32],
        slot_len: usize,
        sealer: Arc<dyn Sealer>,
    ) -> Result<(Arc<Self>, Arc<Pool>), Error> {
        let path = folder.join("journal");
        let pool_path = folder.join("pool");
        let slot_len_u32 = u32::try_from(slot_len).map_err(|_| Error::Invalid("slot length"))?;
        let mut ledger = Ledger::default();
        let mut next = 1;
        if let Some(bytes) = read_if_there(&*disk, &path)? {
            let reader = Replay { path: &path, bytes: &bytes, sealer: &*sealer };
            next = reader.run(&mut ledger, identity, slot_len_u32, disk.open(&pool_path).ok().as_deref())?;
        }
        ledger.take_unnamed();
        let pool = Arc::new(Pool::open(&*disk, &pool_path, slot_len, ledger.slots())?);
        let now = OffsetDateTime::now_utc();
        let queued = ledger.queue().iter().map(|(op, _)| (op, now)).collect();
        let (progress, _) = watch::channel(Progress { written: next - 1, durable: next - 1, ..Progress::default() });
        let state = State {
            ledger,
            queued,
            id: [0; 32],
            next,
            queue: Vec::new(),
            refused: None,
            rotate: false,
            file: None,
            len: 0,
            reserved: 0,
            compacted: 0,
            #[cfg(test)]
            compactions: (0, 0),
            retired: VecDeque::new(),
            sync_wanted: 0,
            full: false,
            recheck: false,
            stop: false,
        };
        let shared = Arc::new(Shared {
            disk,
            folder: folder.to_owned(),
            identity,
            slot_len: slot_len_u32,
            sealer,
            pool: pool.clone(),
            state: Mutex::new(state),
            work: Condvar::default(),
            progress,
        });
        // A new journal is written immediately. Its id is new, so no sequence number is ever sealed twice under one
        // id, whatever the old tail contained.
        shared.compact(&mut lock(&shared.state))?;
        shared.write_queue()?;
        shared.pool.cut()?;
        let spawn = |name: &str, run: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || run(&shared))
        };
        let threads = vec![spawn("journal-write", Shared::write_loop)?, spawn("journal-sync", Shared::sync_loop)?];
        Ok((Arc::new(Self { shared, threads: Mutex::new(threads) }), pool))
    }

    /// Locks the ledger. The caller must hold the guard only briefly, never across an await, and take no other lock
    /// under it.
    pub(crate) fn ledger(&self) -> LedgerGuard<'_> {
        LedgerGuard(lock(&self.shared.state))
    }

    /// Appends the entries that `decide` returns, as one record, all or none. Without entries it appends nothing, and
    /// the ticket is that of the last record.
    pub(crate) fn transact<R>(
        &self,
        purpose: Purpose,
        decide: impl FnOnce(&mut Ledger) -> Result<(Vec<Entry>, R), Error>,
    ) -> Result<(Ticket, R), Error> {
        let mut state = lock(&self.shared.state);
        if purpose == Purpose::Work {
            if let Some((_, kind)) = self.shared.progress.borrow().failed {
                return Err(Error::Staging(kind.into()));
            }
            // After a failed sync, the kernel may have dropped unwritten data. Nothing may be promised on top of
            // that.
            if let Some(kind) = self.shared.progress.borrow().sync_failed {
                return Err(Error::Staging(kind.into()));
            }
            if state.full {
                return Err(Error::Staging(io::ErrorKind::StorageFull.into()));
            }
        }
        let (entries, result) = decide(&mut state.ledger)?;
        let ticket = self.shared.append(&mut state, &entries)?;
        Ok((ticket, result))
    }

    /// Appends entries as one record.
    pub(crate) fn append(&self, purpose: Purpose, entries: Vec<Entry>) -> Result<Ticket, Error> {
        self.transact(purpose, |_| Ok((entries, ()))).map(|(ticket, ())| ticket)
    }

    /// Waits until a `kill` can't lose the changes of the ticket.
    pub(crate) async fn written(&self, ticket: Ticket) -> Result<(), Error> {
        self.wait(|progress| match progress.failed {
            _ if progress.written >= ticket.0 => Some(Ok(())),
            Some((upto, kind)) if upto >= ticket.0 => Some(Err(kind)),
            _ => None,
        })
        .await
    }

    /// Waits until a power cut can't lose any change so far.
    pub(crate) async fn sync_all(&self) -> Result<(), Error> {
        self.synced(self.last()).await
    }

    /// Waits until a power cut can't lose the changes of the ticket.
    pub(crate) async fn synced(&self, ticket: Ticket) -> Result<(), Error> {
        self.want_sync(ticket);
        self.wait(|progress| match (progress.sync_failed, progress.failed) {
            (Some(kind), _) => Some(Err(kind)),
            _ if progress.durable >= ticket.0 => Some(Ok(())),
            (None, Some((upto, kind))) if upto >= ticket.0 => Some(Err(kind)),
            _ => None,
        })
        .await
    }

    async fn wait(&self, done: impl Fn(&Progress) -> Option<Result<(), io::ErrorKind>>) -> Result<(), Error> {
        before_wait("the journal");
        let mut progress = self.shared.progress.subscribe();
        let done =
            |progress: &Progress| done(progress).or_else(|| progress.closed.then_some(Err(io::ErrorKind::BrokenPipe)));
        let seen = progress.wait_for(|progress| done(progress).is_some()).await;
        // The sender is in `shared`, which `self` holds.
        let outcome = seen.ok().and_then(|progress| done(&progress)).unwrap_or(Err(io::ErrorKind::BrokenPipe));
        outcome.map_err(|kind| Error::Staging(kind.into()))
    }

    /// Returns the ticket of the newest record.
    pub(crate) fn last(&self) -> Ticket {
        Ticket(lock(&self.shared.state).next - 1)
    }

    /// Returns the error of a failed sync, if there was one.
    pub(crate) fn sync_failure(&self) -> Option<io::ErrorKind> {
        self.shared.progress.borrow().sync_failed
    }

    /// Returns the size of the file on disk after its next record, with the space that is reserved ahead.
    pub(crate) fn disk_len(&self) -> u64 {
        let state = lock(&self.shared.state);
        state.reserved.max(state.len + state.queue.len() as u64 + RESERVE)
    }

    /// Compacts if at least half of the file, and at least [`RESERVE`] bytes, are history. Returns true if a
    /// compaction was queued.
    pub(crate) fn compact_if_worthwhile(&self) -> bool {
        let mut state = lock(&self.shared.state);
        let len = state.len + state.queue.len() as u64;
        if state.refused.is_some() || state.rotate || len < (state.compacted * 2).max(RESERVE) {
            return false;
        }
        let outcome = self.shared.compact(&mut state);
        self.shared.work.notify_all();
        outcome.map_err(|error| tracing::warn!(%error, "cannot compact the journal")).is_ok()
    }

    /// Requests a sync of everything so far, without waiting. If the disk was full, checks its space again.
    pub(crate) fn sync_soon(&self) {
        {
            let mut state = lock(&self.shared.state);
            state.recheck = state.full;
        }
        self.want_sync(self.last());
        self.shared.work.notify_all();
    }

    fn want_sync(&self, ticket: Ticket) {
        let mut state = lock(&self.shared.state);
        if state.sync_wanted < ticket.0 {
            state.sync_wanted = ticket.0;
            self.shared.work.notify_all();
        }
    }

    /// Ends the threads after a last write and sync. Blocks.
    pub(crate) fn close(&self) {
        lock(&self.shared.state).stop = true;
        self.shared.work.notify_all();
        for thread in lock(&self.threads).drain(..) {
            // A thread that panicked has nothing left to write.
            let _ = thread.join();
        }
        // The last write and sync are done. No caller has to wait for the rest.
        self.shared.progress.send_modify(|progress| progress.closed = true);
    }
}

#[cfg(test)]
impl Journal {
    /// Makes the threads end, without waiting for them.
    pub(crate) fn abandon(&self) {
        lock(&self.shared.state).stop = true;
        self.shared.work.notify_all();
    }

    /// Returns how often the journal was rewritten, and the number of bytes that were written for that.
    pub(crate) fn compactions(&self) -> (u64, u64) {
        lock(&self.shared.state).compactions
    }

    /// Compacts now.
    pub(crate) fn compact(&self) -> Result<(), Error> {
        let outcome = self.shared.compact(&mut lock(&self.shared.state));
        self.shared.work.notify_all();
        outcome
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// The ledger, locked.
pub(crate) struct LedgerGuard<'a>(MutexGuard<'a, State, JOURNAL>);

impl LedgerGuard<'_> {
    /// Returns the time at which an operation was queued. For an operation that an earlier daemon left, it is the
    /// start of this one.
    pub(crate) fn queued_since(&self, op: OpNo) -> Option<OffsetDateTime> {
        self.0.queued.get(&op).copied()
    }
}

impl std::ops::Deref for LedgerGuard<'_> {
    type Target = Ledger;
    fn deref(&self) -> &Ledger {
        &self.0.ledger
    }
}

impl std::ops::DerefMut for LedgerGuard<'_> {
    fn deref_mut(&mut self) -> &mut Ledger {
        &mut self.0.ledger
    }
}

impl Shared {
    fn append(&self, state: &mut State, entries: &[Entry]) -> Result<Ticket, Error> {
        if entries.is_empty() {
            return Ok(Ticket(state.next - 1));
        }
        if let Some(why) = &state.refused {
            return Err(self.broken(why));
        }
        let record = self.record(&state.id, state.next, entries)?;
        for (index, entry) in entries.iter().enumerate() {
            if let Err(invalid) = state.ledger.apply(entry) {
                // The entries before it are in the ledger now, but in no record.
                state.refused = (index > 0).then(|| invalid.to_string());
                return Err(self.broken(&invalid.to_string()));
            }
            match entry {
                Entry::Queue { op, .. } => drop(state.queued.insert(*op, OffsetDateTime::now_utc())),
                Entry::Finish { op } => drop(state.queued.remove(op)),
                _ => {}
            }
        }
        let ticket = Ticket(state.next);
        state.next += 1;
        let unnamed = state.ledger.take_unnamed();
        if !unnamed.is_empty() {
            state.retired.push_back((ticket.0, unnamed));
        }
        state.queue.extend_from_slice(&record);
        if self.is_overgrown(state)
            && let Err(error) = self.compact(state)
        {
            tracing::warn!(%error, "cannot compact the journal");
        }
        self.work.notify_all();
        Ok(ticket)
    }

    fn is_overgrown(&self, state: &State) -> bool {
        let len = state.len + state.queue.len() as u64;
        if state.refused.is_some() || state.rotate || len <= BLANK_LEN.max(state.compacted * GROWTH) {
            return false;
        }
        len > COMPACT_LEN || state.ledger.is_blank()
    }

    /// Queues a whole new journal, which replaces the records that were waiting.
    fn compact(&self, state: &mut State) -> Result<(), Error> {
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|e| Error::Staging(io::Error::other(e.to_string())))?;
        let mut out = self.header(&id, state.next).to_vec();
        let mut sequence = state.next;
        let mut group: Vec<Entry> = Vec::new();
        let mut group_len = 0;
        let mut flush = |group: &mut Vec<Entry>| -> Result<(), Error> {
            out.extend_from_slice(&self.record(&id, sequence, group)?);
            sequence += 1;
            group.clear();
            Ok(())
        };
        for entry in state.ledger.snapshot() {
            group_len += codec::encode(std::slice::from_ref(&entry)).len();
            group.push(entry);
            if group_len > SNAPSHOT_RECORD {
                flush(&mut group)?;
                group_len = 0;
            }
        }
        if !group.is_empty() {
            flush(&mut group)?;
        }
        #[cfg(test)]
        {
            state.compactions = (state.compactions.0 + 1, state.compactions.1 + out.len() as u64);
        }
        state.id = id;
        state.next = sequence;
        (state.len, state.compacted) = (0, out.len() as u64);
        state.queue = out;
        state.rotate = true;
        Ok(())
    }

    fn header(&self, id: &[u8; 32], first: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&self.slot_len.to_le_bytes());
        header[16..48].copy_from_slice(id);
        header[48..80].copy_from_slice(&self.identity);
        header[80..88].copy_from_slice(&first.to_le_bytes());
        let sum = checksum(&header[..HEADER_LEN - 4]);
        header[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        header
    }

    fn record(&self, id: &[u8; 32], sequence: u64, entries: &[Entry]) -> Result<Vec<u8>, Error> {
        let mut payload = codec::encode(entries);
        payload.resize(payload.len().next_multiple_of(PADDING), 0);
        let sealed = self.sealer.seal(id, sequence, &payload)?;
        if sealed.len() > MAX_PAYLOAD {
            return Err(Error::TooLarge);
        }
        let mut record = Vec::with_capacity(RECORD_HEADER_LEN + sealed.len() + 8);
        record.extend_from_slice(&id[..4]);
        record.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        record.extend_from_slice(&sequence.to_le_bytes());
        record.extend_from_slice(&self.progress.borrow().durable.to_le_bytes());
        let sum = checksum(&[&record[4..], &sealed[..]].concat());
        record.extend_from_slice(&sum.to_le_bytes());
        record.extend_from_slice(&sealed);
        record.resize(record.len().next_multiple_of(8), 0);
        Ok(record)
    }

    /// Logs and returns the error for an entry that our own code should not have produced.
    fn broken(&self, why: &str) -> Error {
        tracing::error!(why, "the journal refused an entry");
        Error::Journal { path: self.folder.join("journal").display().to_string(), why: why.to_owned() }
    }

    fn write_loop(&self) {
        loop {
            let stop = {
                let mut state = lock(&self.state);
                while state.queue.is_empty() && !state.stop && !state.recheck {
                    state = self.work.wait(state);
                }
                state.stop
            };
            let done = self.write_queue();
            if stop {
                return;
            }
            if done.is_err() {
                let state = lock(&self.state);
                self.work.wait_timeout_while(state, RETRY, |state| !state.stop);
            }
        }
    }

    /// Writes the queued records. On failure they stay queued.
    fn write_queue(&self) -> Result<(), Error> {
        let (bytes, upto, rotate, at, file) = {
            let mut state = lock(&self.state);
            state.recheck = false;
            let (queue, at) = (std::mem::take(&mut state.queue), state.len);
            let rotate = std::mem::take(&mut state.rotate);
            if rotate {
                // The length counts during the write. Otherwise the next append would compact again.
                state.len = queue.len() as u64;
            }
            (queue, state.next - 1, rotate, at, state.file.clone())
        };
        let outcome = match file {
            _ if rotate => self.replace_file(&bytes),
            Some(file) => self.reserve(&*file, at, bytes.len() as u64).and_then(|()| match bytes.is_empty() {
                true => Ok(()),
                false => file.write_all_at(&bytes, at),
            }),
            None => Ok(()),
        };
        if bytes.is_empty() {
            return Ok(outcome?);
        }
        let mut state = lock(&self.state);
        match outcome {
            Ok(()) => {
                // A compaction that was queued meanwhile replaces the bytes that were written.
                if !state.rotate {
                    state.len = bytes.len() as u64 + if rotate { 0 } else { at };
                }
                self.progress.send_modify(|progress| {
                    progress.written = upto;
                    progress.failed = None;
                    if rotate {
                        progress.durable = upto;
                    }
                });
                if rotate {
                    self.free_retired(&mut state, upto);
                }
                self.work.notify_all();
                Ok(())
            }
            Err(error) => {
                // A compaction that was queued meanwhile contains all of them already.
                if !state.rotate {
                    let newer = std::mem::replace(&mut state.queue, bytes);
                    state.queue.extend_from_slice(&newer);
                    state.rotate = rotate;
                    if rotate {
                        state.len = 0;
                    }
                }
                tracing::warn!(%error, "cannot write the journal");
                self.progress.send_modify(|progress| progress.failed = Some((upto, error.kind())));
                Err(Error::Staging(error))
            }
        }
    }

    /// Keeps disk space reserved ahead of the end.
    fn reserve(&self, file: &dyn DiskFile, at: u64, len: u64) -> io::Result<()> {
        let (reserved, end) = (lock(&self.state).reserved, at + len);
        if end + RESERVE_LOW <= reserved {
            return Ok(());
        }
        let more = file.allocate(at, len + RESERVE, Beyond::Reserves);
        let mut state = lock(&self.state);
        match more {
            Ok(()) => (state.reserved, state.full) = (end + RESERVE, false),
            Err(error) if is_full(&error) => state.full = true,
            // If the file system can't reserve space, the write itself reports a full disk.
            Err(_) => state.full = false,
        }
        Ok(())
    }

    /// Replaces the journal with `bytes`. After a crash, either the old or the new journal is there, complete.
    fn replace_file(&self, bytes: &[u8]) -> io::Result<()> {
        let (fresh, path) = (self.folder.join("journal.new"), self.folder.join("journal"));
        let file = self.disk.create(&fresh, Existing::Emptied)?;
        let reserved = bytes.len() as u64 + RESERVE;
        match file.allocate(0, reserved, Beyond::Reserves) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error),
            _ => file.write_all_at(bytes, 0)?,
        }
        // The slots that the journal names must be durable before it.
        self.pool.sync()?;
        file.sync()?;
        self.disk.rename(&fresh, &path)?;
        self.disk.sync_folder(&self.folder)?;
        let mut state = lock(&self.state);
        state.file = Some(Arc::from(file));
        (state.reserved, state.full) = (reserved, false);
        Ok(())
    }

    fn sync_loop(&self) {
        loop {
            // Both are read under one lock. So the records that are written up to now are in this file, or in an
            // older one that was synced before it was replaced.
            let (stop, file, upto) = {
                let mut state = lock(&self.state);
                while !state.stop && !self.is_sync_due(&state) {
                    state = self.work.wait(state);
                }
                (state.stop, state.file.clone(), self.progress.borrow().written)
            };
            let outcome = self.pool.sync().and_then(|()| file.map_or(Ok(()), |file| file.sync_data()));
            match outcome {
                Ok(()) => {
                    let mut state = lock(&self.state);
                    self.progress.send_modify(|progress| progress.durable = progress.durable.max(upto));
                    self.free_retired(&mut state, upto);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot sync the journal");
                    self.progress.send_modify(|progress| progress.sync_failed = Some(error.kind()));
                }
            }
            if stop {
                return;
            }
        }
    }

    fn is_sync_due(&self, state: &State) -> bool {
        let progress = self.progress.borrow();
        progress.sync_failed.is_none() && state.sync_wanted > progress.durable && progress.written > progress.durable
    }

    fn free_retired(&self, state: &mut State, upto: u64) {
        if self.progress.borrow().sync_failed.is_some() {
            return;
        }
        let free = state.retired.partition_point(|(sequence, _)| *sequence <= upto);
        state.retired.drain(..free).for_each(|(_, slots)| self.pool.free(&slots));
    }
}

/// Returns true if the disk is full, or this user's quota is used up.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn read_if_there(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let len = file.size()?;
    if len > MAX_LEN {
        return Err(Error::Journal { path: path.display().to_string(), why: "it is too long to be ours".into() });
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// A record that was found in the file.
struct Found<'a> {
    sequence: u64,
    durable: u64,
    payload: &'a [u8],
    /// Offset of the next record.
    end: usize,
}

struct Replay<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    sealer: &'a dyn Sealer,
}

impl<'a> Replay<'a> {
    fn error(&self, why: impl Into<String>) -> Error {
        Error::Journal { path: self.path.display().to_string(), why: why.into() }
    }

    /// Applies all good records. Returns the next sequence number.
    fn run(
        self,
        ledger: &mut Ledger,
        identity: [u8; 32],
        slot_len: u32,
        pool: Option<&dyn DiskFile>,
    ) -> Result<u64, Error> {
        let (id, first) = self.header(identity, slot_len)?;
        let (mut at, mut next, mut durable) = (HEADER_LEN, first, 0);
        let mut good: Vec<(u64, Vec<Entry>)> = Vec::new();
        while let Some((found, entries)) = self.entries_at(&id, at, next) {
            durable = durable.max(found.durable);
            good.push((next, entries));
            (at, next) = (found.end, next + 1);
        }
        if let Some(later) = self.durable_after(&id, at, next) {
            return Err(self.error(format!(
                "record {next} is damaged although record {later} was on disk after it; the journal is not changed"
            )));
        }
        if self.bytes[at.min(self.bytes.len())..].iter().any(|byte| *byte != 0) {
            tracing::warn!(sequence = next, "the journal's tail is torn; it is truncated there");
        }
        loop {
            *ledger = self.replay(&good)?;
            let torn = good.iter().position(|(sequence, entries)| {
                *sequence > durable && !slots_are_whole(entries, ledger, pool, slot_len as usize)
            });
            let Some(torn) = torn else { return Ok(next) };
            next = good[torn].0;
            tracing::warn!(
                sequence = next,
                "the journal's tail names slots that were never written; it is truncated there"
            );
            // Slots that the removed records had replaced are in use again, so they have to be checked.
            good.truncate(torn);
        }
    }

    fn replay(&self, records: &[(u64, Vec<Entry>)]) -> Result<Ledger, Error> {
        let mut ledger = Ledger::default();
        for (sequence, entries) in records {
            for entry in entries {
                ledger.apply(entry).map_err(|invalid| self.error(format!("record {sequence}: {invalid}")))?;
            }
        }
        Ok(ledger)
    }

    fn header(&self, identity: [u8; 32], slot_len: u32) -> Result<([u8; 32], u64), Error> {
        if self.bytes.starts_with(EARLIER_MAGIC) {
            return Err(Error::EarlierJournal(self.path.display().to_string()));
        }
        let header: &[u8; HEADER_LEN] =
            self.bytes.first_chunk().ok_or_else(|| self.error("it has no header; the file is not changed"))?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if &header[..8] != MAGIC || checksum(&header[..HEADER_LEN - 4]) != u32_at(HEADER_LEN - 4) {
            return Err(self.error("its header is damaged or has another version; the file is not changed"));
        }
        if header[48..80] != identity || u32_at(8) != slot_len {
            return Err(self.error("it belongs to another bucket, folder or key; the file is not changed"));
        }
        let first = u64::from_le_bytes(std::array::from_fn(|i| header[80 + i]));
        Ok((std::array::from_fn(|i| header[16 + i]), first))
    }

    /// Returns the record at `at`, if its frame is complete.
    fn frame_at(&self, id: &[u8; 32], at: usize) -> Option<Found<'a>> {
        let rest = self.bytes.get(at..)?;
        let header: &[u8; RECORD_HEADER_LEN] = rest.first_chunk()?;
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let len = u32_at(4) as usize;
        if header[..4] != id[..4] || len > MAX_PAYLOAD {
            return None;
        }
        let payload = rest.get(RECORD_HEADER_LEN..RECORD_HEADER_LEN + len)?;
        if checksum(&[&header[4..24], payload].concat()) != u32_at(24) {
            return None;
        }
        let end = at + (RECORD_HEADER_LEN + len).next_multiple_of(8);
        Some(Found { sequence: u64_at(8), durable: u64_at(16), payload, end })
    }

    fn entries_at(&self, id: &[u8; 32], at: usize, sequence: u64) -> Option<(Found<'a>, Vec<Entry>)> {
        let found = self.frame_at(id, at).filter(|found| found.sequence == sequence)?;
        let payload = self.sealer.open(id, sequence, found.payload).ok()?;
        let entries = codec::decode(&payload).ok()?;
        Some((found, entries))
    }

    /// Returns the number of a complete record after `at` which says that record `bad` was durable.
    fn durable_after(&self, id: &[u8; 32], at: usize, bad: u64) -> Option<u64> {
        let places = (at.next_multiple_of(8)..self.bytes.len()).step_by(8);
        places
            .filter(|place| self.bytes[*place..].starts_with(&id[..4]))
            .filter_map(|place| self.frame_at(id, place))
            .find(|found| found.durable >= bad && self.sealer.open(id, found.sequence, found.payload).is_ok())
            .map(|found| found.sequence)
    }
}

/// Returns true if the slots that the entries fill have the expected bytes. Slots that the ledger doesn't name any
/// more, or names for a later content, may have been allocated again and aren't checked.
fn slots_are_whole(entries: &[Entry], ledger: &Ledger, pool: Option<&dyn DiskFile>, slot_len: usize) -> bool {
    let mut buffer = vec![0; slot_len];
    entries.iter().all(|entry| {
        let Entry::Extend { delta: Some(delta), checksums, .. } = entry else { return true };
        let named = delta.placed.iter().zip(checksums);
        named.filter(|((_, record), sum)| ledger.checksum(record.slot) == Some(**sum)).all(|((_, record), sum)| {
            let offset = record.slot.0.checked_mul(slot_len as u64);
            let read = pool.zip(offset).map(|(pool, offset)| pool.read_exact_at(&mut buffer, offset));
            matches!(read, Some(Ok(()))) && checksum(&buffer) == *sum
        })
    })
}

#[cfg(test)]
mod tests;
