//! The flusher's first half: which files are due, and getting their content to the store.
//!
//! A file goes from dirty to frozen (its bytes fixed, so retries send the same ones) to uploaded to committed. Here it is frozen and uploaded; then a
//! `Put` joins the queue of operations, which [`crate::fs::sync::commit`] carries out. Many small files share one upload session; a large one has its own, so
//! that it keeps nobody waiting. What fails in passing is tried again by itself, ever more rarely; what is refused for good is *parked*: its
//! data stays, `status` counts it, and the next change or explicit flush tries again.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, OnConflict, OpNo};
use crate::fs::journal::file::Journal;
use crate::fs::journal::ledger::{Ledger, PathSet};
use crate::fs::lock::lock;
use crate::fs::lock::{Mutex, MutexGuard, Rank};
use crate::store::{self, PutProgress, deadline};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Bytes up to which files share an upload session (64 MiB: one xorb), and how many may.
const GROUP_BYTES: u64 = 64 << 20;
const GROUP_FILES: usize = 256;
/// Sessions at once.
const SESSIONS: usize = 4;
/// Pause after a first failure; doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Pause after an operation was refused for good: somebody has to change something, and may.
const PARKED_PAUSE: Duration = Duration::from_secs(300);
/// Refusals of a single change that are taken for passing ones (they have been seen to); then it counts as refused for good.
const REFUSALS: u32 = 5;
/// Pause of what waits for its user's decision (30 days): nothing that passes by itself.
const UNDECIDED_PAUSE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes that a new upload may hand to connections without being taken for progress, if the one before failed (32
/// MiB). As much may fit into the
/// buffers of connections to a Hub that takes nothing, again and again.
const BUFFERED: u64 = 32 << 20;
/// The uploader looks around at least this often.
const LOOK: Duration = Duration::from_secs(3600);

/// What went wrong with a file or an operation, and when to try again.
#[derive(Clone)]
struct Trouble {
    attempts: u32,
    /// Not before.
    next: Instant,
    /// Refused for good.
    parked: bool,
    /// The generation that failed; a newer one starts afresh.
    generation: u64,
    error: Arc<Error>,
}

impl Trouble {
    /// As a user is told of it.
    fn told(&self, parked: bool) -> (u32, bool, String) {
        (self.attempts, parked, self.error.to_string())
    }
}

#[derive(Default)]
struct Work {
    /// Files being frozen or uploaded.
    busy: HashSet<FileNo>,
    /// Files with a commit in the queue.
    launched: HashSet<FileNo>,
    /// Operations being carried out.
    running: HashSet<OpNo>,
    files: HashMap<FileNo, Trouble>,
    ops: HashMap<OpNo, Trouble>,
    /// Files whose upload in company was refused for good: the next attempt tells which of them was meant.
    alone: HashSet<FileNo>,
    /// What the user wants done about conflicts of these, whatever the mount's policy.
    file_wishes: HashMap<FileNo, OnConflict>,
    op_wishes: HashMap<OpNo, OnConflict>,
}

/// What the flusher knows of something pending.
#[derive(Default)]
pub(crate) struct Standing {
    pub(crate) committing: bool,
    pub(crate) trouble: Option<(u32, bool, String)>,
}

/// What `status` tells.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) flushed: u64,
    pub(crate) conflicts: u64,
    pub(crate) last_error: Option<String>,
    /// Counts uploads, commits and changes of names that succeeded.
    achieved: u64,
}

/// How far uploads are.
#[derive(Default)]
struct Uploads {
    under_way: HashMap<u64, UnderWay>,
    next: u64,
    /// How far uploads got that failed since one succeeded. A new one counts once it is further.
    failed: PutProgress,
    /// Grows whenever an upload gets further.
    advances: u64,
}

struct UnderWay {
    progress: Box<dyn Fn() -> PutProgress + Send + Sync>,
    /// How far it is known to be.
    seen: PutProgress,
}

impl Uploads {
    /// Returns a number that differs from that of an earlier call if an upload has advanced since.
    fn look(&mut self) -> u64 {
        for upload in self.under_way.values_mut() {
            let now = (upload.progress)();
            if now.read > upload.seen.read || now.sent > upload.seen.sent {
                let seen = upload.seen;
                upload.seen = PutProgress { read: now.read.max(seen.read), sent: now.sent.max(seen.sent) };
                self.advances += 1;
            }
        }
        self.advances
    }

    fn begin(&mut self, progress: Box<dyn Fn() -> PutProgress + Send + Sync>) -> u64 {
        self.next += 1;
        self.under_way.insert(self.next, UnderWay { progress, seen: self.failed });
        self.next
    }

    fn end(&mut self, upload: u64, succeeded: bool) {
        self.look();
        let Some(ended) = self.under_way.remove(&upload) else { return };
        self.failed = match succeeded {
            true => PutProgress::default(),
            false => PutProgress {
                read: ended.seen.read.max(self.failed.read),
                sent: ended.seen.sent.clamp(self.failed.sent, BUFFERED),
            },
        };
    }
}

/// State of the schedule.
pub(crate) struct Schedule {
    /// All local content. Nothing is locked under it.
    edits: Mutex<HashMap<FileNo, Arc<Edit>>, { Rank::Edits as u8 }>,
    /// What is to be flushed. Locked before an edit's own lock.
    dirty: Mutex<HashMap<FileNo, Arc<Edit>>, { Rank::Dirty as u8 }>,
    /// Local content that isn't uploaded (see [`crate::fs::sync::policy`]). Nothing is locked under it.
    kept: Mutex<HashSet<FileNo>>,
    /// Nothing is locked under it: it is asked while the journal is locked.
    work: Mutex<Work, { Rank::Work as u8 }>,
    /// Nothing is locked under it.
    tally: Mutex<Tally>,
    /// Nothing is locked under it.
    uploads_under_way: Mutex<Uploads>,
    /// When the uploader looks next. Nothing is locked under it.
    next_look: Mutex<Instant>,
    debounce: Duration,
    window: Duration,
    uploads: Notify,
    commits: Notify,
    sessions: Arc<Semaphore>,
    /// Counts everything that was achieved or failed.
    progress: watch::Sender<u64>,
    /// Turns of the commit loop.
    #[cfg(test)]
    pub(crate) turns: std::sync::atomic::AtomicU64,
}

impl Schedule {
    pub(crate) fn new(debounce: Duration, window: Duration) -> Self {
        Self {
            next_look: Mutex::new(Instant::now()),
            debounce,
            window,
            edits: Mutex::default(),
            dirty: Mutex::default(),
            kept: Mutex::default(),
            work: Mutex::default(),
            tally: Mutex::default(),
            uploads_under_way: Mutex::default(),
            uploads: Notify::new(),
            commits: Notify::new(),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            progress: watch::channel(0).0,
            #[cfg(test)]
            turns: Default::default(),
        }
    }

    /// Makes local content known.
    pub(crate) fn add(&self, edit: Arc<Edit>) {
        lock(&self.edits).insert(edit.file, edit);
    }

    /// The local content of a file.
    pub(crate) fn edit(&self, file: FileNo) -> Option<Arc<Edit>> {
        lock(&self.edits).get(&file).cloned()
    }

    /// All local content.
    pub(crate) fn edits(&self) -> Vec<Arc<Edit>> {
        lock(&self.edits).values().cloned().collect()
    }

    /// Local content that ended.
    pub(crate) fn remove(&self, edit: &Arc<Edit>) {
        {
            let mut edits = lock(&self.edits);
            // The file may have been opened for writing again since: that is another edit.
            if !edits.get(&edit.file).is_some_and(|now| Arc::ptr_eq(now, edit)) {
                return;
            }
            edits.remove(&edit.file);
        }
        self.forget(edit.file);
    }

    /// A file that isn't to be flushed any more.
    pub(crate) fn forget(&self, file: FileNo) {
        lock(&self.dirty).remove(&file);
        lock(&self.kept).remove(&file);
        {
            let mut work = lock(&self.work);
            work.files.remove(&file);
            work.alone.remove(&file);
            work.file_wishes.remove(&file);
        }
        self.moved();
    }

    /// A file changed.
    pub(crate) fn touch(&self, edit: &Arc<Edit>) {
        if self.is_kept(edit.file) {
            return;
        }
        let is_new = lock(&self.dirty).insert(edit.file, edit.clone()).is_none();
        // Looking costs as much as there is dirty: not for every file anew.
        if is_new && edit.due(self.debounce, self.window).is_some_and(|due| due < *lock(&self.next_look)) {
            self.uploads.notify_one();
        }
    }

    /// Has a file not uploaded.
    pub(crate) fn keep(&self, file: FileNo) {
        lock(&self.kept).insert(file);
        lock(&self.dirty).remove(&file);
        self.moved();
    }

    /// Has a file not flushed if it is kept. Another rename may stop keeping it at the same time: it is flushed then.
    pub(crate) fn drop_kept(&self, edit: &Arc<Edit>) {
        if self.is_kept(edit.file) {
            lock(&self.dirty).remove(&edit.file);
            self.touch(edit);
            self.moved();
        }
    }

    /// Has a new file, which was never touched, not uploaded. Locks nothing else.
    pub(crate) fn keep_new(&self, file: FileNo) {
        lock(&self.kept).insert(file);
    }

    /// Has a file uploaded once it is touched. Returns true if it was kept.
    pub(crate) fn stop_keeping(&self, file: FileNo) -> bool {
        lock(&self.kept).remove(&file)
    }

    /// Returns true if a file isn't uploaded.
    pub(crate) fn is_kept(&self, file: FileNo) -> bool {
        lock(&self.kept).contains(&file)
    }

    /// Returns how many files aren't uploaded.
    pub(crate) fn kept(&self) -> u64 {
        lock(&self.kept).len() as u64
    }

    /// Looks at everything again.
    pub(crate) fn wake(&self) {
        self.uploads.notify_one();
        self.commits.notify_one();
    }

    /// Operations were queued.
    pub(crate) fn wake_commits(&self) {
        self.commits.notify_one();
    }

    /// Waits for [`Schedule::wake_commits`].
    pub(crate) async fn commits_wanted(&self) {
        self.commits.notified().await;
    }

    /// Something was done for an upload that needn't be done again if it fails.
    pub(crate) fn advanced(&self) {
        lock(&self.uploads_under_way).advances += 1;
    }

    pub(crate) fn moved(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Whether an operation is being carried out.
    pub(crate) fn is_running(&self, op: OpNo) -> bool {
        lock(&self.work).running.contains(&op)
    }

    /// Returns true if an operation has to wait at `now`, because it is being carried out or failed not long ago.
    pub(crate) fn is_waiting(&self, op: OpNo, now: Instant) -> bool {
        let work = lock(&self.work);
        work.running.contains(&op) || work.ops.get(&op).is_some_and(|trouble| trouble.next > now)
    }

    /// Returns when the next failed operation of those that `counts` accepts may be tried again. That is after `now`:
    /// an operation that was due then has been started, or waits for an event that wakes the commit loop.
    pub(crate) fn next_op(&self, now: Instant, counts: impl Fn(OpNo) -> bool) -> Instant {
        let work = lock(&self.work);
        let waits = |op: &OpNo| !work.running.contains(op) && counts(*op);
        let times = work.ops.iter().filter(|(op, trouble)| trouble.next > now && waits(op));
        times.map(|(_, trouble)| trouble.next).min().unwrap_or(now + LOOK)
    }

    /// An operation begins.
    pub(crate) fn op_started(&self, op: OpNo) {
        lock(&self.work).running.insert(op);
    }

    /// An operation left the queue. `file`: it was that file's commit.
    pub(crate) fn op_finished(&self, op: OpNo, file: Option<FileNo>) {
        lock(&self.tally).achieved += 1;
        {
            let mut work = lock(&self.work);
            work.running.remove(&op);
            work.ops.remove(&op);
            work.op_wishes.remove(&op);
            file.map(|file| work.launched.remove(&file));
        }
        self.moved();
        self.wake();
    }

    /// An operation failed and stays in the queue.
    pub(crate) fn op_failed(&self, op: OpNo, error: Error) {
        self.note(&error);
        {
            let mut work = lock(&self.work);
            work.running.remove(&op);
            let attempts = work.ops.get(&op).map_or(0, |trouble| trouble.attempts) + 1;
            let parked = is_final(&error, attempts);
            let pause = match (&error, parked) {
                (Error::Conflict, _) => UNDECIDED_PAUSE,
                (_, true) => PARKED_PAUSE,
                (_, false) => pause(attempts),
            };
            let trouble =
                Trouble { attempts, next: Instant::now() + pause, parked, generation: 0, error: Arc::new(error) };
            work.ops.insert(op, trouble);
        }
        self.moved();
        self.wake();
    }

    /// An operation stays in the queue and may be carried out again at once.
    pub(crate) fn op_again(&self, op: OpNo) {
        lock(&self.work).running.remove(&op);
        self.wake();
    }

    /// A file's upload or commit failed.
    pub(crate) fn file_failed(&self, file: FileNo, generation: u64, error: Arc<Error>) {
        self.note(&error);
        {
            let mut work = lock(&self.work);
            let attempts = work.files.get(&file).map_or(0, |trouble| trouble.attempts) + 1;
            // A full disk may be emptied by what is committed meanwhile.
            let is_local = matches!(&*error, Error::Staging(_) | Error::Store(crate::store::Error::Io(_)));
            let is_full_here = is_local && error.errno() == libc::ENOSPC;
            let parked = !error.is_transient() && !is_full_here;
            let next = Instant::now() + pause(attempts);
            work.files.insert(file, Trouble { attempts, next, parked, generation, error });
        }
        self.moved();
        self.uploads.notify_one();
    }

    /// Whether an operation that fails with this has been refused for good.
    pub(crate) fn is_final(&self, op: OpNo, error: &Error) -> bool {
        is_final(error, lock(&self.work).ops.get(&op).map_or(0, |trouble| trouble.attempts) + 1)
    }

    /// Whatever a file failed with, it isn't tried again by itself.
    pub(crate) fn park_file(&self, file: FileNo) {
        if let Some(trouble) = lock(&self.work).files.get_mut(&file) {
            trouble.parked = true;
        }
    }

    /// What the user wants done about a conflict of this.
    pub(crate) fn wish(&self, op: OpNo, file: Option<FileNo>) -> Option<OnConflict> {
        let work = lock(&self.work);
        let of_file = || work.file_wishes.get(&file?);
        work.op_wishes.get(&op).or_else(of_file).copied()
    }

    /// The user wants this of an operation.
    pub(crate) fn wish_op(&self, op: OpNo, wish: OnConflict) {
        lock(&self.work).op_wishes.insert(op, wish);
    }

    /// The user wants this of a file.
    pub(crate) fn wish_file(&self, file: FileNo, wish: OnConflict) {
        lock(&self.work).file_wishes.insert(file, wish);
    }

    /// A file is at the source.
    pub(crate) fn file_committed(&self, file: FileNo) {
        lock(&self.tally).flushed += 1;
        let mut work = lock(&self.work);
        work.files.remove(&file);
        work.alone.remove(&file);
        work.file_wishes.remove(&file);
    }

    /// Counts the parked operations of the queue.
    pub(crate) fn parked_ops(&self, ledger: &Ledger) -> u64 {
        let work = lock(&self.work);
        work.ops.iter().filter(|(op, trouble)| trouble.parked && ledger.op(**op).is_some()).count() as u64
    }

    /// Reports that committed names were looked up, which `flush` waits for.
    pub(crate) fn looked_up(&self) {
        lock(&self.tally).achieved += 1;
        self.moved();
    }

    /// A foreign change was kept.
    pub(crate) fn conflict(&self) {
        lock(&self.tally).conflicts += 1;
    }

    fn note(&self, error: &Error) {
        tracing::warn!(%error, "cannot flush");
        lock(&self.tally).last_error = Some(error.to_string());
    }

    /// Counts and the last error.
    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// Returns how many files with a name the source lacks, their bytes, and how many of them are parked. Counts
    /// files that wait for their `close`.
    pub(crate) fn pending(&self, journal: &Journal) -> (u64, u64, u64) {
        // An edit locks its own state before the journal.
        let mut unsent: Vec<_> =
            self.unsent_files().iter().map(|edit| (edit.file, edit.generation(), edit.len())).collect();
        {
            let ledger = journal.ledger();
            unsent.retain(|(file, ..)| ledger.file(*file).is_some_and(|record| record.path.is_some()));
        }
        let bytes = unsent.iter().map(|(.., len)| len).sum();
        let work = lock(&self.work);
        let parked = unsent.iter().filter(|(file, generation, _)| work.is_parked(*file, *generation)).count();
        (unsent.len() as u64, bytes, parked as u64)
    }

    /// Files that are due, now marked busy, and when to look again.
    pub(crate) fn take_due(&self) -> (Vec<Arc<Edit>>, Instant) {
        // Whoever comes meanwhile must wake us.
        *lock(&self.next_look) = Instant::now() + LOOK;
        let mut dirty = Vec::new();
        lock(&self.dirty).retain(|_, edit| match edit.due(self.debounce, self.window) {
            Some(at) => {
                dirty.push((edit.clone(), edit.generation(), at));
                true
            }
            None => false,
        });
        let now = Instant::now();
        let mut next = now + LOOK;
        let mut due = Vec::new();
        let mut work = lock(&self.work);
        for (edit, generation, mut at) in dirty {
            let under_way = work.busy.contains(&edit.file) || work.launched.contains(&edit.file);
            if under_way || work.is_parked(edit.file, generation) {
                continue;
            }
            if let Some(trouble) = work.files.get(&edit.file) {
                at = at.max(trouble.next);
            }
            if at <= now {
                work.busy.insert(edit.file);
                due.push(edit);
            } else {
                next = next.min(at);
            }
        }
        drop(work);
        *lock(&self.next_look) = next;
        (due, next)
    }

    /// Whether the file is being uploaded, or its commit is in the queue.
    pub(crate) fn is_under_way(&self, file: FileNo) -> bool {
        let work = lock(&self.work);
        work.busy.contains(&file) || work.launched.contains(&file)
    }

    /// Whether a commit of the file is in the queue.
    pub(crate) fn is_launched(&self, file: FileNo) -> bool {
        lock(&self.work).launched.contains(&file)
    }

    /// A commit of the file is in the queue.
    pub(crate) fn launch(&self, file: FileNo) {
        lock(&self.work).launched.insert(file);
    }

    /// Gives operations up that nobody has dealt with.
    pub(crate) fn abandon_ops(&self, ops: &[OpNo]) {
        let left: Vec<_> = ops.iter().copied().filter(|op| self.is_running(*op)).collect();
        left.into_iter().for_each(|op| self.op_failed(op, Error::TimedOut));
    }

    /// Forgets failures, so that everything is tried again at once.
    pub(crate) fn forgive(&self) {
        let mut work = lock(&self.work);
        work.files.clear();
        work.ops.clear();
    }

    /// Returns the files that the source lacks and that aren't kept. A file that is written in streaming mode is
    /// one of them before its `close`, too.
    pub(crate) fn unsent_files(&self) -> Vec<Arc<Edit>> {
        let kept = lock(&self.kept).clone();
        self.edits().into_iter().filter(|edit| !kept.contains(&edit.file) && edit.is_dirty()).collect()
    }

    /// Files to be flushed that the source lacks.
    pub(crate) fn dirty_files(&self) -> Vec<Arc<Edit>> {
        lock(&self.dirty).values().filter(|edit| edit.is_dirty()).cloned().collect()
    }

    /// How a file's flush stands; `put`: its commit, if that is in the queue.
    pub(crate) fn file_standing(&self, file: FileNo, generation: u64, put: Option<OpNo>) -> Standing {
        let work = lock(&self.work);
        let of_file = work.files.get(&file).map(|trouble| trouble.told(work.is_parked(file, generation)));
        let of_put = || put.and_then(|op| work.ops.get(&op)).map(|trouble| trouble.told(trouble.parked));
        let committing = put.is_some_and(|op| work.running.contains(&op));
        Standing { committing, trouble: of_file.or_else(of_put) }
    }

    /// How an operation stands.
    pub(crate) fn op_standing(&self, op: OpNo) -> Standing {
        let work = lock(&self.work);
        let trouble = work.ops.get(&op).map(|trouble| trouble.told(trouble.parked));
        Standing { committing: work.running.contains(&op), trouble }
    }

    /// Forgets an operation's failures.
    pub(crate) fn forgive_op(&self, op: OpNo) {
        lock(&self.work).ops.remove(&op);
    }

    /// Forgets a file's failures.
    pub(crate) fn forgive_file(&self, file: FileNo) {
        lock(&self.work).files.remove(&file);
    }

    /// Flushes one file and waits until the source has what it is now. Fails where an attempt was refused, or
    /// failed in any way if the
    /// caller has no deadline. With a deadline, what may pass is tried again until then.
    pub(crate) async fn commit_now(&self, edit: &Arc<Edit>) -> Result<(), Error> {
        let generation = edit.generation();
        lock(&self.work).files.remove(&edit.file);
        edit.hurry();
        self.touch(edit);
        self.wake();
        let outcome = || {
            if edit.has_committed(generation) || !lock(&self.dirty).contains_key(&edit.file) {
                return Some(Ok(()));
            }
            let work = lock(&self.work);
            let trouble = work.files.get(&edit.file).filter(|trouble| trouble.parked || deadline::current().is_none());
            trouble.map(|trouble| Err(Error::Flush(trouble.error.clone())))
        };
        let mut progress = self.progress.subscribe();
        loop {
            if let Some(outcome) = outcome() {
                return outcome;
            }
            match deadline::timely(progress.changed()).await {
                Some(Ok(())) => {}
                Some(Err(_)) => return Err(Error::Stopping),
                None => {
                    let work = lock(&self.work);
                    let last = work.files.get(&edit.file).map(|trouble| Error::Flush(trouble.error.clone()));
                    return Err(last.unwrap_or(Error::TimedOut));
                }
            }
        }
    }

    /// Waits for a turn to upload. `None`: the mount has ended.
    pub(crate) async fn session(&self) -> Option<OwnedSemaphorePermit> {
        self.sessions.clone().acquire_owned().await.ok()
    }

    /// Has files uploaded one by one from now on: one of them makes their common upload fail.
    pub(crate) fn send_alone(&self, files: impl Iterator<Item = FileNo>) {
        lock(&self.work).alone.extend(files);
    }

    /// Waits until files may be due.
    pub(crate) async fn uploads_wanted(&self) {
        self.uploads.notified().await;
    }

    /// Counts an upload that succeeded.
    pub(crate) fn achieved(&self) {
        lock(&self.tally).achieved += 1;
    }

    /// Returns two numbers that differ from those of an earlier call if something was achieved, or an upload has
    /// advanced, since.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let achieved = self.tally().achieved;
        (achieved, lock(&self.uploads_under_way).look())
    }

    /// Returns a receiver that is told whenever something succeeded or failed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Whether all of it is at the source, or waits for somebody: parked, or behind something that is.
    pub(crate) fn is_flushed(&self, journal: &Journal, targets: &[(u64, Arc<Edit>)], last: Option<OpNo>) -> bool {
        let ops: Vec<_> = journal.ledger().ops().map(|(op, what)| (op, what.clone())).collect();
        let dirty: HashSet<_> = lock(&self.dirty).keys().copied().collect();
        let left =
            targets.iter().filter(|(generation, edit)| !edit.has_committed(*generation) && dirty.contains(&edit.file));
        let left: Vec<_> = left.map(|(_, edit)| (edit.file, edit.generation())).collect();
        let work = lock(&self.work);
        let (mut held, mut held_files) = (PathSet::default(), HashSet::new());
        let mut is_done = true;
        for (op, what) in &ops {
            let parked = work.ops.get(op).is_some_and(|trouble| trouble.parked) && !work.running.contains(op);
            if parked || what.paths().any(|path| held.overlaps(path)) {
                what.paths().for_each(|path| held.insert(path));
                held_files.extend(what.put_file());
            } else if Some(*op) <= last {
                is_done = false;
            }
        }
        is_done && left.iter().all(|(file, generation)| work.is_parked(*file, *generation) || held_files.contains(file))
    }
}

/// Whether nothing is left to wait for after so many attempts.
fn is_final(error: &Error, attempts: u32) -> bool {
    let refused = matches!(error, Error::Store(store::Error::Refused(_)));
    !error.is_transient() || (refused && attempts >= REFUSALS)
}

impl Work {
    fn is_parked(&self, file: FileNo, generation: u64) -> bool {
        self.files.get(&file).is_some_and(|trouble| trouble.parked && trouble.generation >= generation)
    }
}

/// Files of an upload; whatever becomes of it, they may be looked at again afterwards.
pub(crate) struct Busy<'a> {
    schedule: &'a Schedule,
    files: Vec<FileNo>,
}

impl<'a> Busy<'a> {
    pub(crate) fn new(schedule: &'a Schedule, files: Vec<FileNo>) -> Self {
        Self { schedule, files }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        {
            let mut work = lock(&self.schedule.work);
            work.busy.retain(|file| !self.files.contains(file));
        }
        self.schedule.moved();
        self.schedule.uploads.notify_one();
    }
}

/// An upload whose progress is looked at. Has failed if it is dropped before its end.
pub(crate) struct Watched<'a> {
    schedule: &'a Schedule,
    upload: u64,
    succeeded: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(
        schedule: &'a Schedule,
        progress: Box<dyn Fn() -> PutProgress + Send + std::marker::Sync>,
    ) -> Self {
        let upload = lock(&schedule.uploads_under_way).begin(progress);
        Self { schedule, upload, succeeded: false }
    }

    /// Notes the outcome of the upload, which has content or hasn't, and returns it.
    pub(crate) fn end<T, E>(mut self, outcome: Result<T, E>, has_content: bool) -> Result<T, E> {
        self.succeeded = has_content && outcome.is_ok();
        outcome
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        lock(&self.schedule.uploads_under_way).end(self.upload, self.succeeded);
    }
}

fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

impl Schedule {
    /// Small files together; large ones, and those that company did no good, alone.
    pub(crate) fn groups(&self, due: Vec<Arc<Edit>>) -> Vec<Vec<Arc<Edit>>> {
        let alone = lock(&self.work).alone.clone();
        let (single, together): (Vec<_>, Vec<_>) = due.into_iter().partition(|edit| alone.contains(&edit.file));
        groups(together).into_iter().chain(single.into_iter().map(|edit| vec![edit])).collect()
    }
}

/// Small files together, large ones alone.
fn groups(due: Vec<Arc<Edit>>) -> Vec<Vec<Arc<Edit>>> {
    let mut groups: Vec<Vec<Arc<Edit>>> = Vec::new();
    let mut bytes = 0;
    for edit in due {
        let len = edit.len();
        match groups.last_mut() {
            Some(group) if group.len() < GROUP_FILES && bytes + len <= GROUP_BYTES => {
                bytes += len;
                group.push(edit);
            }
            _ => {
                bytes = len;
                groups.push(vec![edit]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[test]
    fn repeated_upload_counts_once_it_is_further_than_those_that_failed() {
        let mut uploads = Uploads::default();
        let far = Arc::new(AtomicU64::new(0));
        let begin = |uploads: &mut Uploads| {
            far.store(0, Relaxed);
            let far = far.clone();
            uploads.begin(Box::new(move || PutProgress { read: far.load(Relaxed), sent: far.load(Relaxed) / 2 }))
        };
        let advanced = |uploads: &mut Uploads, to| {
            let before = uploads.look();
            far.store(to, Relaxed);
            uploads.look() > before
        };
        let first = begin(&mut uploads);
        assert!(advanced(&mut uploads, 1000) && !advanced(&mut uploads, 1000));
        uploads.end(first, false);
        let second = begin(&mut uploads);
        assert!(!advanced(&mut uploads, 500) && !advanced(&mut uploads, 1000) && advanced(&mut uploads, 1001));
        uploads.end(second, true);
        let third = begin(&mut uploads);
        assert!(advanced(&mut uploads, 1));
        // What is sent in a second try counts again beyond what connections may hold.
        assert!(advanced(&mut uploads, 100 * BUFFERED));
        uploads.end(third, false);
        begin(&mut uploads);
        assert!(!advanced(&mut uploads, 2 * BUFFERED) && advanced(&mut uploads, 2 * BUFFERED + 2));
    }
}
