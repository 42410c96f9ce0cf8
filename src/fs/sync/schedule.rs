//! Decides when a file is uploaded and when a failed operation is retried.
//!
//! A file goes through these states: dirty, frozen (its content is fixed, so that retries send the same bytes),
//! uploaded, committed. [`super::upload`] freezes and uploads it. Then a `Put` joins the queue of operations, which
//! [`super::commit`] carries out.
//!
//! **Shared sessions.** An upload session, its shard and its commit cost several requests, however small the files
//! are. A file is due when it wasn't written to for the debounce time, or when its window is over. A due file waits
//! for others to share its session. The session starts when the due files fill it ([`GROUP_FILES`], [`GROUP_BYTES`]),
//! when no other file will be due soon, or when the first of them has waited for [`COMPANY`] or for its whole window.
//! A file that a user waits for (`fsync`, `flush`, `stop`) starts a session immediately.
//!
//! **Cost.** Files are kept in queues ordered by time. Only calls that concern all dirty files walk over all of them.
//!
//! **Failures.** Transient failures are retried with exponential backoff. A permanent failure *parks* the file or
//! operation: its data stays, `status` counts it, and the next change or explicit flush retries it.

use crate::fs::content::edit::{Due, Edit, Totals};
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, OnConflict, OpNo};
use crate::fs::lock::{Mutex, MutexGuard, Rank, lock};
use crate::store::{self, PutProgress, deadline};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Total size up to which files share an upload session (64 MiB: one xorb), and number of files that may share one.
pub(crate) const GROUP_BYTES: u64 = 64 << 20;
pub(crate) const GROUP_FILES: usize = 256;
/// Longest time that a due file waits for others to share its session.
pub(crate) const COMPANY: Duration = Duration::from_secs(2);
/// Number of concurrent upload sessions.
const SESSIONS: usize = 4;
/// Pause after a first failure. It is doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Pause after an operation was refused permanently. The cause may be removed in that time.
const PARKED_PAUSE: Duration = Duration::from_secs(300);
/// Number of refusals of a single change that count as transient (such refusals have been observed). After that, the
/// change counts as refused permanently.
const REFUSALS: u32 = 5;
/// Pause of an operation that waits for a decision of the user (30 days), because no retry can resolve it.
const UNDECIDED_PAUSE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes (32 MiB) that a repeated upload may pass to connections before it counts as progress, if the upload before
/// failed. As many bytes may fit into the buffers of connections to a Hub that accepts nothing, again and again.
const BUFFERED: u64 = 32 << 20;
/// Longest sleep of the loops.
const CHECK_INTERVAL: Duration = Duration::from_secs(3600);

/// A failure of a file or an operation, and the time of the next attempt.
#[derive(Clone)]
struct Failure {
    attempts: u32,
    /// Earliest time of the next attempt.
    next: Instant,
    /// True if it was refused permanently.
    parked: bool,
    /// The generation that failed. A newer one is tried without regard to this failure.
    generation: u64,
    error: Arc<Error>,
}

impl Failure {
    /// Returns the attempts, `parked` and the error, as they are shown to the user.
    fn report(&self, parked: bool) -> (u32, bool, String) {
        (self.attempts, parked, self.error.to_string())
    }
}

/// The state of a dirty file.
struct Checked {
    file: FileNo,
    generation: u64,
    len: u64,
    /// `None` if the remote has the file.
    due: Option<Due>,
}

/// The queue that a dirty file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In no queue: the file is being uploaded or committed, is parked, or is being checked.
    Idle,
    /// Checked at that time, because the file may be due then.
    Coming(Instant),
    /// Checked at that time, after a failure.
    Retry(Instant),
    /// Due, and waiting for a session, which starts at that time at the latest.
    Waiting(Instant),
}

struct DirtyFile {
    edit: Arc<Edit>,
    place: Place,
}

/// Dirty files in queues that are ordered by time.
#[derive(Default)]
struct Dirty {
    files: HashMap<FileNo, DirtyFile>,
    /// Files that are [`Place::Coming`] or [`Place::Retry`].
    checks: BTreeSet<(Instant, FileNo)>,
    /// Number of files that are [`Place::Coming`].
    coming: usize,
    /// Files that are [`Place::Waiting`], with their lengths.
    waiting: BTreeMap<(Instant, FileNo), u64>,
    waiting_bytes: u64,
}

impl Dirty {
    /// Moves a file to another queue. `len` matters only for [`Place::Waiting`].
    fn put(&mut self, file: FileNo, place: Place, len: u64) {
        let Some(dirty) = self.files.get_mut(&file) else { return };
        let old = std::mem::replace(&mut dirty.place, place);
        self.leave(file, old);
        match place {
            Place::Idle => {}
            Place::Coming(at) => {
                self.coming += 1;
                self.checks.insert((at, file));
            }
            Place::Retry(at) => drop(self.checks.insert((at, file))),
            Place::Waiting(latest) => {
                self.waiting_bytes += len;
                self.waiting.insert((latest, file), len);
            }
        }
    }

    fn leave(&mut self, file: FileNo, place: Place) {
        match place {
            Place::Idle => {}
            Place::Coming(at) => {
                self.coming -= 1;
                self.checks.remove(&(at, file));
            }
            Place::Retry(at) => drop(self.checks.remove(&(at, file))),
            Place::Waiting(latest) => {
                self.waiting_bytes -= self.waiting.remove(&(latest, file)).unwrap_or(0);
            }
        }
    }

    fn remove(&mut self, file: FileNo) -> Option<Arc<Edit>> {
        let dirty = self.files.remove(&file)?;
        self.leave(file, dirty.place);
        Some(dirty.edit)
    }

    /// Removes the files that have to be checked by `now` from their queue, and returns them.
    fn take_due_checks(&mut self, now: Instant) -> Vec<Arc<Edit>> {
        let mut taken = Vec::new();
        while let Some((_, file)) = self.checks.first().copied().filter(|(at, _)| *at <= now) {
            self.put(file, Place::Idle, 0);
            taken.extend(self.files.get(&file).map(|dirty| dirty.edit.clone()));
        }
        taken
    }

    /// Returns true if a session has to start at `now`.
    fn is_session_due(&self, now: Instant) -> bool {
        let Some(((latest, _), _)) = self.waiting.first_key_value() else { return false };
        let is_full = self.waiting.len() >= GROUP_FILES || self.waiting_bytes >= GROUP_BYTES;
        is_full || self.coming == 0 || *latest <= now
    }

    /// Takes the files of one session: several small ones, or a single one that is large or that `is_single` accepts.
    fn take_group(&mut self, is_single: impl Fn(FileNo) -> bool) -> Vec<Arc<Edit>> {
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(((_, file), len)) = self.waiting.first_key_value().map(|(key, len)| (*key, *len)) {
            let single = is_single(file);
            if !group.is_empty() && (single || group.len() >= GROUP_FILES || bytes + len > GROUP_BYTES) {
                break;
            }
            bytes += len;
            self.put(file, Place::Idle, 0);
            group.extend(self.files.get(&file).map(|dirty| dirty.edit.clone()));
            if single {
                break;
            }
        }
        group
    }

    /// Returns the time at which the next file has to be checked, or a session is due.
    fn next(&self) -> Option<Instant> {
        let look = self.checks.first().map(|(at, _)| *at);
        let session = self.waiting.first_key_value().map(|((latest, _), _)| *latest);
        look.into_iter().chain(session).min()
    }
}

#[derive(Default)]
struct Work {
    dirty: Dirty,
    /// Files that are being frozen or uploaded.
    busy: HashSet<FileNo>,
    /// Files with a commit in the queue.
    commit_queued: HashSet<FileNo>,
    /// Operations that are being carried out.
    running: HashSet<OpNo>,
    files: HashMap<FileNo, Failure>,
    ops: HashMap<OpNo, Failure>,
    /// Number of operations that are parked.
    parked_ops: u64,
    /// Times at which failed operations, which are held, have to be released.
    retries: BTreeSet<(Instant, OpNo)>,
    /// Files whose common upload was refused permanently. They are retried one by one, to find the one that was
    /// refused.
    alone: HashSet<FileNo>,
    /// The user's policy for conflicts of these files, which overrides the mount's policy.
    file_overrides: HashMap<FileNo, OnConflict>,
    op_overrides: HashMap<OpNo, OnConflict>,
}

impl Work {
    fn is_parked(&self, file: FileNo, generation: u64) -> bool {
        self.files.get(&file).is_some_and(|failure| failure.parked && failure.generation >= generation)
    }

    fn op_failed(&mut self, op: OpNo, failure: Failure) {
        self.clear_op(op);
        self.parked_ops += u64::from(failure.parked);
        self.ops.insert(op, failure);
    }

    /// Clears the failures of an operation. Returns true if there were any.
    fn clear_op(&mut self, op: OpNo) -> bool {
        let failure = self.ops.remove(&op);
        self.parked_ops -= u64::from(failure.as_ref().is_some_and(|failure| failure.parked));
        failure.is_some()
    }

    /// Queues a file that is in no queue for a check at `at`.
    fn look(&mut self, file: FileNo, at: Instant) {
        if self.dirty.files.get(&file).is_some_and(|dirty| dirty.place == Place::Idle) && !self.is_in_progress(file) {
            self.dirty.put(file, Place::Coming(at), 0);
        }
    }

    fn is_in_progress(&self, file: FileNo) -> bool {
        self.busy.contains(&file) || self.commit_queued.contains(&file)
    }

    /// Puts a file that was checked at `now` into the right queue.
    fn place(&mut self, looked: &Checked, now: Instant) {
        let Checked { file, generation, len, due } = *looked;
        // Another task may have queued or removed the file meanwhile.
        if self.dirty.files.get(&file).is_none_or(|dirty| dirty.place != Place::Idle) || self.is_in_progress(file) {
            return;
        }
        let Some(due) = due else { return drop(self.dirty.remove(file)) };
        if self.is_parked(file, generation) {
            return;
        }
        let next = self.files.get(&file).map(|failure| failure.next).filter(|next| *next > now);
        let place = match next {
            Some(next) => Place::Retry(next),
            None if due.at > now => Place::Coming(due.at),
            None => Place::Waiting(due.latest),
        };
        self.dirty.put(file, place, len);
    }
}

/// The status of an upload or commit.
#[derive(Default)]
pub(crate) struct FlushStatus {
    pub(crate) committing: bool,
    /// Attempts, parked, and the last error.
    pub(crate) failure: Option<(u32, bool, String)>,
}

/// Counters that `status` shows.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) flushed: u64,
    pub(crate) conflicts: u64,
    pub(crate) last_error: Option<String>,
    /// Number of uploads, commits and changes of names that succeeded.
    achieved: u64,
}

/// Progress of uploads.
#[derive(Default)]
struct Uploads {
    in_progress: HashMap<u64, UploadInProgress>,
    next: u64,
    /// Largest progress of the uploads that failed since one succeeded. A new upload counts as advancing once it
    /// exceeds this.
    failed: PutProgress,
    /// A counter that grows whenever an upload advances.
    advances: u64,
}

struct UploadInProgress {
    progress: Box<dyn Fn() -> PutProgress + Send + Sync>,
    /// The last progress that was read.
    seen: PutProgress,
}

impl Uploads {
    /// Returns a number that differs from that of an earlier call if an upload has advanced since.
    fn check(&mut self) -> u64 {
        for upload in self.in_progress.values_mut() {
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
        self.in_progress.insert(self.next, UploadInProgress { progress, seen: self.failed });
        self.next
    }

    fn end(&mut self, upload: u64, succeeded: bool) {
        self.check();
        let Some(ended) = self.in_progress.remove(&upload) else { return };
        self.failed = match succeeded {
            true => PutProgress::default(),
            false => PutProgress {
                read: ended.seen.read.max(self.failed.read),
                sent: ended.seen.sent.clamp(self.failed.sent, BUFFERED),
            },
        };
    }
}

/// The schedule of uploads and retries. See the module. No two of its locks are held together, except `edits` and
/// then `work`.
pub(crate) struct Schedule {
    /// All local content, by file.
    edits: Mutex<BTreeMap<FileNo, Arc<Edit>>, { Rank::Edits as u8 }>,
    /// Local content that isn't uploaded (see [`super::policy`]).
    kept: Mutex<HashSet<FileNo>>,
    /// Files with writes that the journal may lack.
    unpersisted: Mutex<HashMap<FileNo, Arc<Edit>>>,
    work: Mutex<Work, { Rank::Work as u8 }>,
    counters: Mutex<Counters>,
    uploads_in_progress: Mutex<Uploads>,
    /// Number of files that the remote lacks, and their bytes.
    totals: Arc<Totals>,
    debounce: Duration,
    window: Duration,
    uploads: Notify,
    commits: Notify,
    sessions: Arc<Semaphore>,
    /// A counter of all successes and failures.
    progress: watch::Sender<u64>,
    /// Number of turns of the commit loop.
    #[cfg(test)]
    pub(crate) turns: std::sync::atomic::AtomicU64,
    /// Number of files that were checked.
    #[cfg(test)]
    pub(crate) checks: std::sync::atomic::AtomicU64,
}

impl Schedule {
    pub(crate) fn new(debounce: Duration, window: Duration) -> Self {
        Self {
            debounce,
            window,
            edits: Mutex::default(),
            kept: Mutex::default(),
            unpersisted: Mutex::default(),
            work: Mutex::default(),
            counters: Mutex::default(),
            uploads_in_progress: Mutex::default(),
            totals: Arc::default(),
            uploads: Notify::new(),
            commits: Notify::new(),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            progress: watch::channel(0).0,
            #[cfg(test)]
            turns: Default::default(),
            #[cfg(test)]
            checks: Default::default(),
        }
    }

    /// Adds local content of a file that has a name.
    pub(crate) fn add(&self, edit: Arc<Edit>) {
        if !self.is_kept(edit.file) {
            edit.count_in(Some(&self.totals));
        }
        lock(&self.edits).insert(edit.file, edit);
    }

    /// Returns the local content of a file.
    pub(crate) fn edit(&self, file: FileNo) -> Option<Arc<Edit>> {
        lock(&self.edits).get(&file).cloned()
    }

    /// Returns all local content.
    pub(crate) fn edits(&self) -> Vec<Arc<Edit>> {
        lock(&self.edits).values().cloned().collect()
    }

    /// Removes local content that has ended.
    pub(crate) fn remove(&self, edit: &Arc<Edit>) {
        edit.count_in(None);
        {
            let mut written = lock(&self.unpersisted);
            if written.get(&edit.file).is_some_and(|now| Arc::ptr_eq(now, edit)) {
                written.remove(&edit.file);
            }
        }
        {
            let mut edits = lock(&self.edits);
            // The file may have been opened for writing again since. In that case, it has another edit.
            if !edits.get(&edit.file).is_some_and(|now| Arc::ptr_eq(now, edit)) {
                return;
            }
            edits.remove(&edit.file);
        }
        self.forget(edit.file);
    }

    /// Stops flushing a file, and clears its failures.
    pub(crate) fn forget(&self, file: FileNo) {
        lock(&self.kept).remove(&file);
        let dirty = {
            let mut work = lock(&self.work);
            let dirty = work.dirty.remove(file);
            work.files.remove(&file);
            work.alone.remove(&file);
            work.file_overrides.remove(&file);
            dirty
        };
        dirty.into_iter().chain(self.edit(file)).for_each(|edit| edit.count_in(None));
        // Others may have been waiting for this file to share a session.
        self.uploads.notify_one();
        self.report_change();
    }

    /// Schedules a file that has changed.
    pub(crate) fn touch(&self, edit: &Arc<Edit>) {
        if self.is_kept(edit.file) {
            return;
        }
        edit.count_in(Some(&self.totals));
        let Some(due) = edit.due(self.debounce, self.window) else { return };
        let mut work = lock(&self.work);
        let first = work.dirty.next();
        let new = || DirtyFile { edit: edit.clone(), place: Place::Idle };
        // A number may come back with other local content while an operation still names the file.
        work.dirty.files.entry(edit.file).and_modify(|dirty| dirty.edit = edit.clone()).or_insert_with(new);
        let is_waiting = matches!(work.dirty.files.get(&edit.file), Some(DirtyFile { place: Place::Waiting(_), .. }));
        if is_waiting && due.at > Instant::now() {
            // It is being written again.
            work.dirty.put(edit.file, Place::Coming(due.at), 0);
        } else {
            work.look(edit.file, due.at);
        }
        let is_earlier = first.is_none_or(|first| due.at < first);
        drop(work);
        if is_earlier {
            self.uploads.notify_one();
        }
    }

    /// Schedules a file immediately, without waiting for a quiet time or for other files.
    pub(crate) fn flush_early(&self, edit: &Arc<Edit>) {
        edit.flush_early();
        if self.is_kept(edit.file) {
            return;
        }
        let now = Instant::now();
        let mut work = lock(&self.work);
        let Some(dirty) = work.dirty.files.get(&edit.file) else { return };
        if dirty.place != Place::Idle {
            work.dirty.put(edit.file, Place::Coming(now), 0);
        } else {
            work.look(edit.file, now);
        }
        drop(work);
        self.uploads.notify_one();
    }

    /// Records that the journal may lack writes of a file.
    pub(crate) fn wrote(&self, edit: &Arc<Edit>) {
        lock(&self.unpersisted).insert(edit.file, edit.clone());
    }

    /// Removes and returns the files with writes that the journal may lack.
    pub(crate) fn take_unsettled(&self) -> Vec<Arc<Edit>> {
        let unpersisted = std::mem::take(&mut *lock(&self.unpersisted));
        unpersisted.into_values().filter(|edit| edit.is_unpersisted()).collect()
    }

    /// Excludes a file from upload.
    pub(crate) fn keep(&self, file: FileNo) {
        lock(&self.kept).insert(file);
        // Dropped when the lock is free.
        let _dirty = lock(&self.work).dirty.remove(file);
        if let Some(edit) = self.edit(file) {
            edit.count_in(None);
        }
        self.uploads.notify_one();
        self.report_change();
    }

    /// Removes a file from the flush if it is kept. Another rename may stop keeping it concurrently; then it is
    /// flushed.
    pub(crate) fn drop_kept(&self, edit: &Arc<Edit>) {
        if self.is_kept(edit.file) {
            let _dirty = lock(&self.work).dirty.remove(edit.file);
            edit.count_in(None);
            self.touch(edit);
            self.uploads.notify_one();
            self.report_change();
        }
    }

    /// Excludes a new file, which was never touched, from upload. Takes no other lock.
    pub(crate) fn keep_new(&self, file: FileNo) {
        lock(&self.kept).insert(file);
    }

    /// Allows the upload of a file once it is touched. Returns true if it was kept.
    pub(crate) fn stop_keeping(&self, file: FileNo) -> bool {
        lock(&self.kept).remove(&file)
    }

    /// Returns true if a file is excluded from upload.
    pub(crate) fn is_kept(&self, file: FileNo) -> bool {
        lock(&self.kept).contains(&file)
    }

    /// Returns the number of files that are excluded from upload.
    pub(crate) fn kept(&self) -> u64 {
        lock(&self.kept).len() as u64
    }

    /// Wakes the upload loop and the commit loop.
    pub(crate) fn wake(&self) {
        self.uploads.notify_one();
        self.commits.notify_one();
    }

    /// Wakes the commit loop after operations were queued.
    pub(crate) fn wake_commits(&self) {
        self.commits.notify_one();
    }

    /// Waits for [`Schedule::wake_commits`].
    pub(crate) async fn commits_wanted(&self) {
        self.commits.notified().await;
    }

    /// Counts a step of an upload that isn't repeated if the upload fails.
    pub(crate) fn advanced(&self) {
        lock(&self.uploads_in_progress).advances += 1;
    }

    fn report_change(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Returns true if an operation is being carried out.
    pub(crate) fn is_running(&self, op: OpNo) -> bool {
        lock(&self.work).running.contains(&op)
    }

    /// Removes and returns the operations whose retry is due at `now`.
    pub(crate) fn take_retries(&self, now: Instant) -> Vec<OpNo> {
        let mut work = lock(&self.work);
        let mut due = Vec::new();
        while let Some((at, op)) = work.retries.first().copied().filter(|(at, _)| *at <= now) {
            work.retries.remove(&(at, op));
            // The operation may have been started since, or may have failed again.
            let is_early = work.ops.get(&op).is_some_and(|failure| failure.next > now);
            if !is_early && !work.running.contains(&op) {
                due.push(op);
            }
        }
        due
    }

    /// Returns the time of the next retry.
    pub(crate) fn next_retry(&self) -> Instant {
        let first = lock(&self.work).retries.first().map(|(at, _)| *at);
        first.unwrap_or_else(|| Instant::now() + CHECK_INTERVAL)
    }

    /// Marks an operation as being carried out.
    pub(crate) fn op_started(&self, op: OpNo) {
        lock(&self.work).running.insert(op);
    }

    /// Records that an operation has left the queue. `file` is the file whose commit it was, if it was one.
    pub(crate) fn op_finished(&self, op: OpNo, file: Option<FileNo>) {
        lock(&self.counters).achieved += 1;
        {
            let mut work = lock(&self.work);
            work.running.remove(&op);
            work.clear_op(op);
            work.op_overrides.remove(&op);
            if let Some(file) = file {
                work.commit_queued.remove(&file);
                work.look(file, Instant::now());
            }
        }
        self.report_change();
        self.wake();
    }

    /// Records the failure of an operation, which stays in the queue.
    pub(crate) fn op_failed(&self, op: OpNo, error: Error) {
        self.note_error(&error);
        {
            let mut work = lock(&self.work);
            work.running.remove(&op);
            let attempts = work.ops.get(&op).map_or(0, |failure| failure.attempts) + 1;
            let parked = is_final(&error, attempts);
            let pause = match (&error, parked) {
                (Error::Conflict, _) => UNDECIDED_PAUSE,
                (_, true) => PARKED_PAUSE,
                (_, false) => pause(attempts),
            };
            let next = Instant::now() + pause;
            work.retries.insert((next, op));
            work.op_failed(op, Failure { attempts, next, parked, generation: 0, error: Arc::new(error) });
        }
        self.report_change();
        self.wake();
    }

    /// Releases an operation, which stays in the queue and may be carried out again immediately.
    pub(crate) fn op_again(&self, op: OpNo) {
        {
            let mut work = lock(&self.work);
            work.running.remove(&op);
            work.retries.insert((Instant::now(), op));
        }
        self.wake();
    }

    /// Records the failure of a file's upload or commit.
    pub(crate) fn file_failed(&self, file: FileNo, generation: u64, error: Arc<Error>) {
        self.note_error(&error);
        {
            let mut work = lock(&self.work);
            let attempts = work.files.get(&file).map_or(0, |failure| failure.attempts) + 1;
            // A full disk is not permanent: commits may free space on it.
            let is_local = matches!(&*error, Error::Staging(_) | Error::Store(crate::store::Error::Io(_)));
            let is_full_here = is_local && error.errno() == libc::ENOSPC;
            let parked = !error.is_transient() && !is_full_here;
            let next = Instant::now() + pause(attempts);
            work.files.insert(file, Failure { attempts, next, parked, generation, error });
            work.look(file, Instant::now());
        }
        self.report_change();
        self.uploads.notify_one();
    }

    /// Returns true if an operation that fails with this error is refused permanently.
    pub(crate) fn is_final(&self, op: OpNo, error: &Error) -> bool {
        is_final(error, lock(&self.work).ops.get(&op).map_or(0, |failure| failure.attempts) + 1)
    }

    /// Parks a failed file, so that it isn't retried automatically.
    pub(crate) fn park_file(&self, file: FileNo) {
        if let Some(failure) = lock(&self.work).files.get_mut(&file) {
            failure.parked = true;
        }
    }

    /// Returns the user's policy for a conflict of an operation, or of the file that it commits.
    pub(crate) fn overridden(&self, op: OpNo, file: Option<FileNo>) -> Option<OnConflict> {
        let work = lock(&self.work);
        let of_file = || work.file_overrides.get(&file?);
        work.op_overrides.get(&op).or_else(of_file).copied()
    }

    /// Sets the user's policy for conflicts of an operation.
    pub(crate) fn override_op(&self, op: OpNo, policy: OnConflict) {
        lock(&self.work).op_overrides.insert(op, policy);
    }

    /// Sets the user's policy for conflicts of a file.
    pub(crate) fn override_file(&self, file: FileNo, policy: OnConflict) {
        lock(&self.work).file_overrides.insert(file, policy);
    }

    /// Records that the remote has a file.
    pub(crate) fn file_committed(&self, file: FileNo) {
        lock(&self.counters).flushed += 1;
        let mut work = lock(&self.work);
        work.files.remove(&file);
        work.alone.remove(&file);
        work.file_overrides.remove(&file);
    }

    /// Counts parked operations.
    pub(crate) fn parked_ops(&self) -> u64 {
        lock(&self.work).parked_ops
    }

    /// Records that committed names were looked up, which `flush` waits for.
    pub(crate) fn looked_up(&self) {
        lock(&self.counters).achieved += 1;
        self.report_change();
    }

    /// Counts a conflict.
    pub(crate) fn conflict(&self) {
        lock(&self.counters).conflicts += 1;
    }

    fn note_error(&self, error: &Error) {
        tracing::warn!(%error, "cannot flush");
        lock(&self.counters).last_error = Some(error.to_string());
    }

    /// Returns the counters and the last error.
    pub(crate) fn counters(&self) -> MutexGuard<'_, Counters> {
        lock(&self.counters)
    }

    /// Returns the number of files with a name that the remote lacks, their bytes, and the number of them that are
    /// parked. Files that wait for their `close` are included.
    pub(crate) fn pending(&self) -> (u64, u64, u64) {
        let parked: Vec<FileNo> = {
            let work = lock(&self.work);
            work.files.iter().filter(|(_, failure)| failure.parked).map(|(file, _)| *file).collect()
        };
        let parked: Vec<_> = parked.into_iter().filter_map(|file| self.edit(file)).collect();
        let parked = parked
            .into_iter()
            .filter(|edit| edit.is_dirty() && self.is_parked(edit) && !self.is_kept(edit.file))
            .count();
        let (files, bytes) = self.totals.get();
        (files, bytes, parked as u64)
    }

    /// Returns true if the present content of a file was refused permanently.
    pub(crate) fn is_parked(&self, edit: &Edit) -> bool {
        let generation = edit.generation();
        lock(&self.work).is_parked(edit.file, generation)
    }

    /// Moves files that are due to the queue of those that wait for a session.
    fn advance(&self, now: Instant) {
        let looked = lock(&self.work).dirty.take_due_checks(now);
        #[cfg(test)]
        self.checks.fetch_add(looked.len() as u64, std::sync::atomic::Ordering::Relaxed);
        // An edit's own lock comes before this one.
        let looked: Vec<_> = looked.iter().map(|edit| self.check(edit)).collect();
        let mut work = lock(&self.work);
        looked.iter().for_each(|looked| work.place(looked, now));
    }

    fn check(&self, edit: &Edit) -> Checked {
        let due = edit.due(self.debounce, self.window);
        let due = due.map(|due| Due { latest: due.latest.min(due.at + COMPANY).max(due.at), ..due });
        Checked { file: edit.file, generation: edit.generation(), len: edit.len(), due }
    }

    /// Takes the files of the next upload session and marks them busy, if a session is due and a permit is free.
    pub(crate) fn take_session(self: &Arc<Self>, now: Instant) -> Option<Session> {
        self.advance(now);
        let permit = self.sessions.clone().try_acquire_owned().ok()?;
        let mut work = lock(&self.work);
        if !work.dirty.is_session_due(now) {
            return None;
        }
        let Work { dirty, alone, busy, .. } = &mut *work;
        let edits = dirty.take_group(|file| alone.contains(&file));
        busy.extend(edits.iter().map(|edit| edit.file));
        drop(work);
        let files = edits.iter().map(|edit| edit.file).collect();
        // A file that is being written again isn't uploaded. The end of the session queues it again.
        let is_due = |edit: &Arc<Edit>| edit.due(self.debounce, self.window).is_none_or(|due| due.at <= now);
        Some(Session {
            files,
            edits: edits.into_iter().filter(is_due).collect(),
            schedule: self.clone(),
            permit: Some(permit),
        })
    }

    /// Returns the time at which [`Schedule::take_session`] may return a session. If no permit is free, the end of a
    /// session wakes the upload loop.
    pub(crate) fn next_session(&self) -> Instant {
        let next = lock(&self.work).dirty.next().filter(|_| self.sessions.available_permits() > 0);
        next.unwrap_or_else(|| Instant::now() + CHECK_INTERVAL)
    }

    /// Returns true if a file is being uploaded, or its commit is in the queue.
    pub(crate) fn is_in_progress(&self, file: FileNo) -> bool {
        lock(&self.work).is_in_progress(file)
    }

    /// Returns true if a commit of the file is in the queue.
    pub(crate) fn is_commit_queued(&self, file: FileNo) -> bool {
        lock(&self.work).commit_queued.contains(&file)
    }

    /// Records that a commit of the file is in the queue.
    pub(crate) fn commit_queued(&self, file: FileNo) {
        lock(&self.work).commit_queued.insert(file);
    }

    /// Records that commits of files could not be queued, although they were reported as queued.
    pub(crate) fn commits_not_queued(&self, files: impl Iterator<Item = FileNo>) {
        let mut work = lock(&self.work);
        for file in files {
            work.commit_queued.remove(&file);
        }
    }

    /// Releases operations that have no result for a retry.
    pub(crate) fn abandon_ops(&self, ops: &[OpNo]) {
        let left: Vec<_> = ops.iter().copied().filter(|op| self.is_running(*op)).collect();
        left.into_iter().for_each(|op| self.op_failed(op, Error::TimedOut));
    }

    /// Clears all failures, so that everything is retried immediately.
    pub(crate) fn clear_failures(&self) {
        let now = Instant::now();
        let mut work = lock(&self.work);
        let files: Vec<_> = work.files.drain().map(|(file, _)| file).collect();
        for file in files {
            work.dirty.put(file, Place::Idle, 0);
            work.look(file, now);
        }
        let ops: Vec<_> = work.ops.drain().map(|(op, _)| (now, op)).collect();
        work.parked_ops = 0;
        work.retries.extend(ops);
    }

    /// Returns the files after `file` that the remote lacks and that aren't kept, in the order of their numbers. A
    /// file that is written in streaming mode is one of them, even before its `close`.
    pub(crate) fn unsent_after(&self, file: Option<FileNo>, limit: usize) -> Vec<Arc<Edit>> {
        let from = file.map_or(FileNo(0), |file| FileNo(file.0.saturating_add(1)));
        let mut unsent = Vec::new();
        let mut at = from;
        // The files are read in batches, because an edit's own lock comes before this one.
        while unsent.len() < limit {
            let batch: Vec<_> = lock(&self.edits).range(at..).take(limit).map(|(_, edit)| edit.clone()).collect();
            let Some(last) = batch.last() else { break };
            at = FileNo(last.file.0.saturating_add(1));
            unsent.extend(batch.into_iter().filter(|edit| edit.is_dirty() && !self.is_kept(edit.file)));
        }
        unsent.truncate(limit);
        unsent
    }

    /// Returns the files to be flushed that the remote lacks.
    pub(crate) fn dirty_files(&self) -> Vec<Arc<Edit>> {
        let all: Vec<_> = lock(&self.work).dirty.files.values().map(|dirty| dirty.edit.clone()).collect();
        all.into_iter().filter(|edit| edit.is_dirty()).collect()
    }

    /// Returns true if a file will be flushed.
    pub(crate) fn is_to_be_flushed(&self, file: FileNo) -> bool {
        lock(&self.work).dirty.files.contains_key(&file)
    }

    /// Returns the status of a file's flush. `put` is its commit, if that is in the queue.
    pub(crate) fn file_status(&self, file: FileNo, generation: u64, put: Option<OpNo>) -> FlushStatus {
        let work = lock(&self.work);
        let of_file = work.files.get(&file).map(|failure| failure.report(work.is_parked(file, generation)));
        let of_put = || put.and_then(|op| work.ops.get(&op)).map(|failure| failure.report(failure.parked));
        let committing = put.is_some_and(|op| work.running.contains(&op));
        FlushStatus { committing, failure: of_file.or_else(of_put) }
    }

    /// Returns the status of an operation.
    pub(crate) fn op_status(&self, op: OpNo) -> FlushStatus {
        let work = lock(&self.work);
        let failure = work.ops.get(&op).map(|failure| failure.report(failure.parked));
        FlushStatus { committing: work.running.contains(&op), failure }
    }

    /// Returns true if an operation was refused permanently and isn't being retried now.
    pub(crate) fn is_op_parked(&self, op: OpNo) -> bool {
        let work = lock(&self.work);
        work.ops.get(&op).is_some_and(|failure| failure.parked) && !work.running.contains(&op)
    }

    /// Returns true if any operation is parked.
    pub(crate) fn has_parked_ops(&self) -> bool {
        lock(&self.work).parked_ops > 0
    }

    /// Clears an operation's failures, so that it is retried immediately.
    pub(crate) fn clear_op_failures(&self, op: OpNo) {
        let mut work = lock(&self.work);
        if work.clear_op(op) {
            work.retries.insert((Instant::now(), op));
        }
    }

    /// Clears a file's failures.
    pub(crate) fn clear_file_failures(&self, file: FileNo) {
        lock(&self.work).files.remove(&file);
    }

    /// Flushes one file and waits until the remote has its present content. Without a deadline, the first failed
    /// attempt ends the wait with its error. With a deadline, transient failures are retried until the deadline, and
    /// only a refusal ends the wait earlier.
    pub(crate) async fn commit_now(&self, edit: &Arc<Edit>) -> Result<(), Error> {
        let generation = edit.generation();
        self.clear_file_failures(edit.file);
        self.touch(edit);
        self.flush_early(edit);
        self.wake();
        let outcome = || {
            if edit.has_committed(generation) || !self.is_to_be_flushed(edit.file) {
                return Some(Ok(()));
            }
            let work = lock(&self.work);
            let failure = work.files.get(&edit.file).filter(|failure| failure.parked || deadline::current().is_none());
            failure.map(|failure| Err(Error::Flush(failure.error.clone())))
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
                    let last = work.files.get(&edit.file).map(|failure| Error::Flush(failure.error.clone()));
                    return Err(last.unwrap_or(Error::TimedOut));
                }
            }
        }
    }

    /// Makes the next uploads of these files use a session each, because one of them makes their common upload fail.
    pub(crate) fn send_alone(&self, files: impl Iterator<Item = FileNo>) {
        lock(&self.work).alone.extend(files);
    }

    /// Waits until files may be due.
    pub(crate) async fn uploads_wanted(&self) {
        self.uploads.notified().await;
    }

    /// Counts uploads that succeeded.
    pub(crate) fn achieved(&self, count: u64) {
        lock(&self.counters).achieved += count;
    }

    /// Returns two numbers. At least one differs from that of an earlier call if an operation succeeded or an upload
    /// advanced since.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let achieved = self.counters().achieved;
        (achieved, lock(&self.uploads_in_progress).check())
    }

    /// Returns a receiver that is notified of each success and failure.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }
}

#[cfg(test)]
impl Schedule {
    /// Returns true if no file waits for its flush and no operation is being carried out.
    pub(crate) fn is_idle(&self) -> bool {
        let is_clean = self.dirty_files().is_empty();
        let work = lock(&self.work);
        is_clean && work.busy.is_empty() && work.commit_queued.is_empty() && work.running.is_empty()
    }
}

#[cfg(test)]
impl std::fmt::Debug for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dirty: Vec<_> = self.dirty_files().iter().map(|edit| edit.file).collect();
        let Work { busy, commit_queued, running, .. } = &*lock(&self.work);
        write!(f, "dirty {dirty:?}, busy {busy:?}, commits queued {commit_queued:?}, running {running:?}")
    }
}

/// Returns true if another retry is useless: the error is permanent, or the Hub has refused the change [`REFUSALS`]
/// times.
fn is_final(error: &Error, attempts: u32) -> bool {
    let refused = matches!(error, Error::Store(store::Error::Refused(_)));
    !error.is_transient() || (refused && attempts >= REFUSALS)
}

fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

/// The files of an upload session, and its permit. On drop, also after a panic, the files may be uploaded again.
pub(crate) struct Session {
    pub(crate) edits: Vec<Arc<Edit>>,
    files: Vec<FileNo>,
    schedule: Arc<Schedule>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Session {
    fn drop(&mut self) {
        {
            let now = Instant::now();
            let mut work = lock(&self.schedule.work);
            for file in &self.files {
                work.busy.remove(file);
                work.look(*file, now);
            }
        }
        drop(self.permit.take());
        self.schedule.report_change();
        self.schedule.uploads.notify_one();
    }
}

/// An upload whose progress is tracked. If it is dropped before its end, it has failed.
pub(crate) struct Watched<'a> {
    schedule: &'a Schedule,
    upload: u64,
    succeeded: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(schedule: &'a Schedule, progress: Box<dyn Fn() -> PutProgress + Send + Sync>) -> Self {
        let upload = lock(&schedule.uploads_in_progress).begin(progress);
        Self { schedule, upload, succeeded: false }
    }

    /// Records the outcome of the upload, and whether it has content. Returns the outcome.
    pub(crate) fn end<T, E>(mut self, outcome: Result<T, E>, has_content: bool) -> Result<T, E> {
        self.succeeded = has_content && outcome.is_ok();
        outcome
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        lock(&self.schedule.uploads_in_progress).end(self.upload, self.succeeded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    #[test]
    fn repeated_upload_advances_only_past_failed_ones() {
        let mut uploads = Uploads::default();
        let far = Arc::new(AtomicU64::new(0));
        let begin = |uploads: &mut Uploads| {
            far.store(0, Relaxed);
            let far = far.clone();
            uploads.begin(Box::new(move || PutProgress { read: far.load(Relaxed), sent: far.load(Relaxed) / 2 }))
        };
        let advanced = |uploads: &mut Uploads, to| {
            let before = uploads.check();
            far.store(to, Relaxed);
            uploads.check() > before
        };
        let first = begin(&mut uploads);
        assert!(advanced(&mut uploads, 1000) && !advanced(&mut uploads, 1000));
        uploads.end(first, false);
        let second = begin(&mut uploads);
        assert!(!advanced(&mut uploads, 500) && !advanced(&mut uploads, 1000) && advanced(&mut uploads, 1001));
        uploads.end(second, true);
        let third = begin(&mut uploads);
        assert!(advanced(&mut uploads, 1));
        // Bytes that are sent in a second attempt count as progress again, past the size that connections may buffer.
        assert!(advanced(&mut uploads, 100 * BUFFERED));
        uploads.end(third, false);
        begin(&mut uploads);
        assert!(!advanced(&mut uploads, 2 * BUFFERED) && advanced(&mut uploads, 2 * BUFFERED + 2));
    }
}
