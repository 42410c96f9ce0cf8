//! Carries out the queue of operations at the remote.
//!
//! Operations that overlap no earlier one are committed together in a batch. The rename of a directory may take long,
//! so it is committed alone. The version that must be at a path before a change is read from the ledger at that time.
//! If the remote has something else there, nothing is overwritten: see [`crate::fs::sync::conflict`].

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::after_local_move;
use crate::fs::journal::ledger::left_by;
use crate::fs::journal::ledger::{Entry, FrozenRecord, Ledger, QueuedOp, Remote};
use crate::fs::journal::queue::OpKind;
use crate::fs::lock::lock;
use crate::fs::sync::Sync;
use crate::fs::sync::readback;
use crate::fs::sync::schedule::Schedule;
use crate::store;
use crate::store::{Change, Expect, Len, Op, Outcome, Stored, Version};
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Number of operations in one batch.
const BATCH: usize = 256;
/// Number of concurrent renames of directories.
const DIRECTORIES: usize = 2;

/// The way to carry out an operation.
enum Step {
    /// The remote needs no change. These entries finish the operation.
    Nothing(Vec<Entry>),
    /// The remote has to carry out this change.
    Remote(Op),
}

impl Sync {
    /// Carries out queued operations, until the mount stops.
    pub(crate) async fn commit_loop(sync: Weak<Self>, schedule: Arc<Schedule>, mut stop: watch::Receiver<bool>) {
        let (batches, directories) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(DIRECTORIES)));
        loop {
            let Some(this) = sync.upgrade() else { return };
            #[cfg(test)]
            schedule.turns.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            this.release_retries();
            this.start_ready(&batches, BATCH, OpKind::Batched);
            for _ in 0..DIRECTORIES {
                this.start_ready(&directories, 1, OpKind::DirectoryRename);
            }
            // The reference isn't held during the wait, because the mount may be dropped without a shutdown.
            drop(this);
            tokio::select! {
                () = schedule.commits_wanted() => {}
                () = tokio::time::sleep_until(schedule.next_retry().into()) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Releases failed operations whose retry is due now.
    fn release_retries(&self) {
        let retries = self.schedule.take_retries(Instant::now());
        if !retries.is_empty() {
            let mut ledger = self.journal.ledger();
            retries.into_iter().for_each(|op| ledger.queue_mut().release(op));
        }
    }

    /// Starts operations of one kind that are ready, if a permit is free.
    fn start_ready(self: &Arc<Self>, turn: &Arc<Semaphore>, limit: usize, kind: OpKind) {
        let Ok(permit) = turn.clone().try_acquire_owned() else { return };
        let ready = {
            let mut ledger = self.journal.ledger();
            let ready = ledger.queue_mut().take_ready(kind, limit);
            ready.iter().for_each(|(op, _)| self.schedule.op_started(*op));
            ready
        };
        if !ready.is_empty() {
            tokio::spawn(self.clone().carry_out(ready, permit));
        }
    }

    async fn carry_out(self: Arc<Self>, ready: Vec<(OpNo, QueuedOp)>, permit: OwnedSemaphorePermit) {
        // This is dropped last: the loop is woken when the permit is free, also after a panic.
        let _turn = Turn { sync: &self, permit: Some(permit) };
        let _running = Running { sync: &self, ops: ready.iter().map(|(op, _)| *op).collect() };
        let mut asked = Vec::new();
        let mut ops = Vec::new();
        for (op, what) in ready {
            let step = prepare(&self.journal.ledger(), &what);
            match step {
                Step::Nothing(entries) => self.finish(op, &what, entries),
                Step::Remote(request) => {
                    asked.push((op, what));
                    ops.push(request);
                }
            }
        }
        if !ops.is_empty() && self.is_recorded().await {
            let outcomes = self.commit_at_remote(&ops).await;
            for (((op, what), request), outcome) in asked.into_iter().zip(ops).zip(outcomes) {
                let file = what.put_file();
                self.log_commit(&what, &outcome);
                self.handle_outcome(op, what, &request, outcome).await;
                if let Some(file) = file {
                    self.end_removed(file);
                }
            }
        }
    }

    /// Carries out operations at the remote. From then on, a changed revision may be that of this mount's own change.
    pub(crate) async fn commit_at_remote(&self, ops: &[Op]) -> Vec<Outcome> {
        self.directories.freshness.note_own_change();
        let outcomes = self.view.commit(ops).await;
        self.directories.freshness.note_own_change();
        outcomes
    }

    /// Logs the outcome of a commit under stored names.
    fn log_commit(&self, what: &QueuedOp, outcome: &Outcome) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let paths: Vec<_> = what.paths().map(|path| self.view.log_name(path)).collect();
        let kind = match what {
            QueuedOp::Put { .. } => "put",
            QueuedOp::Delete { .. } => "delete",
            QueuedOp::Rename { .. } => "rename",
            QueuedOp::RenameDirectory { .. } => "rename directory",
            QueuedOp::RemoveDirectory { .. } => "remove directory",
        };
        match outcome {
            Outcome::Done(_) | Outcome::Moved(_) => tracing::debug!(kind, ?paths, "committed"),
            Outcome::Conflict { .. } => tracing::debug!(kind, ?paths, "conflict at the commit"),
            Outcome::Failed(error) => tracing::debug!(kind, ?paths, %error, "commit failed"),
        }
    }

    /// Ends the local content of a file that was removed while its commit was in the queue.
    fn end_removed(self: &Arc<Self>, file: FileNo) {
        let ended = self.journal.transact(Purpose::Relief, |ledger| {
            let removed = ledger.file(file).is_some_and(|record| record.path.is_none() && record.draft.is_some());
            let settled = !ledger.queue().of_file(file).any(|(_, what)| what.put_file() == Some(file));
            let edit = self.schedule.edit(file).filter(|_| removed && settled);
            let unseen = removed && settled && edit.is_none();
            Ok((unseen.then_some(Entry::End { file }).into_iter().collect(), edit))
        });
        match ended {
            Ok((_, Some(edit))) => {
                self.schedule.forget(file);
                let this = self.clone();
                tokio::spawn(async move { this.end_if_over(&edit).await });
            }
            Ok((_, None)) => {}
            Err(error) => tracing::warn!(%error, "cannot drop the staged content of a removed file"),
        }
    }

    /// Ends local content that isn't needed any more.
    async fn end_if_over(&self, edit: &Arc<Edit>) {
        let ended = match edit.ino() {
            Some(ino) => self.contents.end_if_idle(ino, edit).await,
            None => self.contents.end_if_unseen(edit).await,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "cannot drop the staged content of a committed file");
        }
    }

    /// Waits until no power cut can undo the changes that are about to be committed, or anything before them.
    /// Otherwise the next start would take the new objects at the remote for those of another client, or for newer
    /// ones than the local state. If the sync fails, the commit continues: the data may be nowhere else. Returns
    /// false if the mount stops.
    async fn is_recorded(&self) -> bool {
        let synced = self.journal.sync_all().await;
        if *self.stop.borrow() {
            return false;
        }
        if let Err(error) = synced {
            tracing::warn!(%error, "committing what a power cut could make unknown");
        }
        true
    }

    async fn handle_outcome(self: &Arc<Self>, op: OpNo, what: QueuedOp, request: &Op, outcome: Outcome) {
        match outcome {
            Outcome::Done(version) => self.done(op, &what, request, version),
            Outcome::Moved(moved) => {
                if let QueuedOp::RenameDirectory { to, .. } = &what
                    && !moved.is_empty()
                {
                    self.twins.record_moved_folder(to);
                }
                self.read_back_moved(op, moved);
                self.done(op, &what, request, None);
            }
            Outcome::Conflict { found } => self.resolve(op, what, request, found).await,
            Outcome::Failed(error) => self.failed(op, &what, error).await,
        }
    }

    /// Removes an operation from the queue.
    pub(crate) fn finish(&self, op: OpNo, what: &QueuedOp, entries: Vec<Entry>) {
        self.finish_as(op, what, |_| entries);
    }

    /// Removes an operation from the queue, with entries that depend on the state of the ledger at that time.
    pub(crate) fn finish_as(&self, op: OpNo, what: &QueuedOp, decide: impl FnOnce(&Ledger) -> Vec<Entry>) {
        let noted = self.journal.transact(Purpose::Relief, |ledger| {
            let mut entries = decide(ledger);
            entries.push(Entry::Finish { op });
            Ok((entries, ()))
        });
        if let Err(error) = noted {
            return self.schedule.op_failed(op, error);
        }
        self.schedule.op_finished(op, what.put_file());
    }

    /// Records that the remote has carried out an operation.
    pub(crate) fn done(self: &Arc<Self>, op: OpNo, what: &QueuedOp, request: &Op, version: Option<Version>) {
        match what {
            QueuedOp::Put { file, generation, .. } => {
                let Change::Put { stored, .. } = &request.change else { return };
                let stored = Stored { version: version.unwrap_or(stored.version), ..*stored };
                self.put_done(op, what, *file, *generation, stored);
            }
            QueuedOp::Delete { file, .. } => {
                self.finish(op, what, vec![Entry::Remote { file: *file, remote: Remote::Absent }]);
            }
            QueuedOp::Rename { file, replaced, to, .. } => {
                self.finish_as(op, what, |ledger| {
                    self.twins.record_created(to);
                    match (&request.change, ledger.file(*file).map(|record| record.remote)) {
                        // The path at the remote belonged to another file. At its new path, this file replaces the
                        // content that the move replaced there.
                        (Change::Delete, _) => after_local_move(ledger, *file, *replaced),
                        (_, Some(Remote::Own(old, len))) => {
                            let version = version.filter(|new| new.id == old.id).unwrap_or(old);
                            let remote = Entry::Remote { file: *file, remote: Remote::Own(version, len) };
                            renamed(ledger, op, *file, *replaced).into_iter().chain([remote]).collect()
                        }
                        _ => Vec::new(),
                    }
                });
                self.read_back_later(op);
            }
            QueuedOp::RenameDirectory { .. } | QueuedOp::RemoveDirectory { .. } => self.finish(op, what, Vec::new()),
        }
    }

    /// Records that the remote has a file's content.
    pub(crate) fn put_done(self: &Arc<Self>, op: OpNo, what: &QueuedOp, file: FileNo, generation: u64, stored: Stored) {
        let version = stored.version;
        let mtime = self.journal.ledger().frozen(file).map(|frozen| frozen.mtime);
        let note = |ledger: &Ledger| {
            let record = ledger.file(file);
            let replaced = record.is_some_and(|record| record.remote != Remote::Absent);
            if !replaced && let QueuedOp::Put { path, .. } = what {
                self.twins.record_created(path);
            }
            let has_draft = record.is_some_and(|record| record.draft.is_some());
            let time = mtime.unwrap_or_else(time::OffsetDateTime::now_utc);
            let read_back = readback::note(ledger, op, file, stored, time, replaced);
            let done = match has_draft {
                true => Entry::Committed { file, generation, version },
                // The file was removed meanwhile. The operation that removes it is in the queue.
                false => Entry::Remote { file, remote: Remote::Own(version, stored.plain_len) },
            };
            [done].into_iter().chain(read_back).collect::<Vec<_>>()
        };
        if let Some(edit) = self.schedule.edit(file) {
            let writing = self.show_commit(edit.ino(), &stored, mtime);
            edit.committed(generation, version, writing);
            self.schedule.file_committed(file);
            self.finish_as(op, what, note);
            // The Hub has the file, so its name doesn't exclude it from upload any more.
            if self.schedule.stop_keeping(file) {
                self.schedule.touch(&edit);
            }
            // The draft's lock may be held during a long read, so this function doesn't wait for it.
            let this = self.clone();
            tokio::spawn(async move { this.end_if_over(&edit).await });
        } else {
            self.finish_as(op, what, note);
        }
        self.read_back_later(op);
    }

    /// Flushes a file again after its commit has left the queue without being carried out. Does nothing if the file
    /// was removed (see [`Self::end_removed`]).
    pub(crate) fn flush_again(&self, file: FileNo) {
        let has_name = self.journal.ledger().file(file).is_some_and(|record| record.path.is_some());
        if has_name {
            self.flush_soon(file);
        }
    }

    /// Updates the inode to the committed version. Returns true if the file is open for writing.
    fn show_commit(
        &self,
        ino: Option<crate::fs::ids::Ino>,
        stored: &Stored,
        mtime: Option<time::OffsetDateTime>,
    ) -> bool {
        let mut tree = lock(&self.tree);
        let Some(node) = ino.and_then(|ino| tree.node_mut(ino).ok()) else { return false };
        let writing = node.writers > 0;
        if let Ok(file) = node.as_file_mut() {
            file.version = Some(stored.version);
            file.len = Len::Known(stored.plain_len);
            file.keep_mtime(mtime);
            file.epoch += 1;
        }
        writing
    }

    /// Handles the failure of an operation. An operation that may succeed later stays in the queue. A commit that was
    /// refused permanently leaves it, and its file is parked.
    async fn failed(&self, op: OpNo, what: &QueuedOp, error: crate::store::Error) {
        if let QueuedOp::RenameDirectory { from, to } = what
            && concerns_a_directory(&error)
        {
            let policy = self.schedule.overridden(op, None).unwrap_or(self.options.on_conflict);
            if let Err(error) = self.resolve_directory(op, what, from, to, policy).await {
                self.schedule.op_failed(op, error);
            }
            return;
        }
        let error = Error::Store(error);
        match what {
            QueuedOp::Put { file, generation, .. } if self.schedule.is_final(op, &error) => {
                let copy = self.schedule.edit(*file).filter(|_| is_copy(&self.journal.ledger(), *file, *generation));
                match copy {
                    // The original of the copy may have been removed from the remote. The copy is then uploaded like
                    // any other content.
                    Some(edit) => {
                        self.finish(op, what, Vec::new());
                        edit.invalidate_frozen(*generation);
                        self.flush_again(*file);
                    }
                    None => {
                        // Parked before it leaves the queue. Otherwise it could be queued again in between.
                        self.schedule.file_failed(*file, *generation, Arc::new(error));
                        self.schedule.park_file(*file);
                        self.finish(op, what, Vec::new());
                    }
                }
            }
            _ => self.schedule.op_failed(op, error),
        }
    }
}

/// Operations that were started. On drop, those without a result (after a panic, or without an outcome) are released
/// for a retry.
struct Running<'a> {
    sync: &'a Sync,
    ops: Vec<OpNo>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.sync.schedule.abandon_ops(&self.ops);
    }
}

/// The permit of a batch. It is freed on drop, and then the commit loop checks the queue again.
struct Turn<'a> {
    sync: &'a Sync,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.sync.schedule.wake_commits();
    }
}

/// Returns true if a frozen version is one that the remote had before, so that no bytes have to be sent.
fn is_copy(ledger: &Ledger, file: FileNo, generation: u64) -> bool {
    let draft = ledger.file(file).and_then(|record| record.draft.as_ref());
    let frozen = draft.and_then(|draft| draft.frozen.as_ref()).filter(|frozen| frozen.generation == generation);
    frozen.is_some_and(|frozen| frozen.frozen.len > 0 && frozen.frozen.records.is_empty())
}

/// Returns the change that an operation needs at the remote now.
fn prepare(ledger: &Ledger, what: &QueuedOp) -> Step {
    let nothing = Step::Nothing(Vec::new());
    let request = match what {
        QueuedOp::Put { file, generation, path } => {
            let Some(record) = ledger.file(*file) else { return nothing };
            let frozen = record.draft.as_ref().and_then(|draft| draft.frozen.as_ref());
            let Some((frozen, stored)) = frozen.filter(|frozen| frozen.generation == *generation).and_then(uploaded)
            else {
                return nothing;
            };
            let change = Change::Put { stored, mtime: frozen.mtime, metadata: None };
            Op { path: path.clone(), expect: record.remote.expect(), change }
        }
        QueuedOp::Delete { file, path } => {
            let Some(record) = ledger.file(*file).filter(|record| record.remote != Remote::Absent) else {
                return nothing;
            };
            Op { path: path.clone(), expect: record.remote.expect(), change: Change::Delete }
        }
        QueuedOp::Rename { file, from, to, replaced } => {
            let Some(record) = ledger.file(*file) else { return nothing };
            let expect = record.remote.expect();
            let change = match record.remote {
                Remote::Absent => return Step::Nothing(after_local_move(ledger, *file, *replaced)),
                Remote::Own(..) => Change::Rename { to: to.clone(), expect_to: left_by(ledger, *replaced).expect() },
                Remote::Replaced(_) | Remote::Unreadable(_) | Remote::Unhashed => Change::Delete,
            };
            Op { path: from.clone(), expect, change }
        }
        QueuedOp::RenameDirectory { from, to } => {
            Op { path: from.clone(), expect: Expect::Any, change: Change::RenameDirectory { to: to.clone() } }
        }
        QueuedOp::RemoveDirectory { .. } => return nothing,
    };
    Step::Remote(request)
}

fn uploaded(frozen: &FrozenRecord) -> Option<(&FrozenRecord, Stored)> {
    Some((frozen, frozen.stored?))
}

/// Returns the entry that marks a finished rename of a file as unconfirmed.
pub(crate) fn renamed(ledger: &Ledger, op: OpNo, file: FileNo, replaced: Option<FileNo>) -> Option<Entry> {
    let record = ledger.file(file)?;
    let Remote::Own(version, plain_len) = record.remote else { return None };
    let mtime = record.mtime.unwrap_or_else(time::OffsetDateTime::now_utc);
    let replaced = left_by(ledger, replaced) != Remote::Absent;
    readback::note(ledger, op, file, Stored { version, plain_len }, mtime, replaced)
}

/// Returns true if the rename of a directory failed because of its content, or because of its new path.
pub(crate) fn concerns_a_directory(error: &store::Error) -> bool {
    matches!(error, store::Error::NotEmpty(_)) || concerns_one_file(error)
}

/// Returns true if the refusal to move one file of a directory doesn't concern the others.
pub(crate) fn concerns_one_file(error: &store::Error) -> bool {
    use store::Error as E;
    matches!(error, E::NameTooLong | E::InvalidName | E::NoContent | E::Unauthentic(_) | E::ReadOnly | E::NotFound)
}
