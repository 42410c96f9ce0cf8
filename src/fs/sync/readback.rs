//! Reads commits back after some time, to find changes that another client made at the moment of our commit.
//!
//! The Hub has no conditional commit. So another client that changes a path at the moment of our commit may replace
//! our version without notice (DESIGN, promise 5).
//!
//! After a commit, the journal marks its version as *unconfirmed*. It stays so until its path was compared once more,
//! at least [`crate::fs::Options::read_back_after`] later, also across restarts. A later change of ours to that
//! version doesn't confirm it. That change is read back itself, so its mark replaces this one. A later change of ours
//! to a version that another client put there meanwhile leaves the mark in place.
//!
//! One request compares many paths. It renames each file to itself, which compares the hash and changes nothing,
//! except that a missing sidecar is restored.
//!
//! If our version was removed, there are two possibilities: another client saw our version and removed it, or it
//! removed the version before ours and hit ours. If our commit replaced nothing, only the first is possible, and the
//! file stays removed. Otherwise our version is restored.
//!
//! Each commit is read back once. A version that is kept under a conflict name is read back, too, because two mounts
//! may choose the same name. A version that was restored over another one isn't read back again. Otherwise two mounts
//! that both overwrite would do so without end.

use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, OnConflict, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::Unconfirmed;
use crate::fs::journal::ledger::{Entry, FileRecord, Ledger, QueuedOp, Remote};
use crate::fs::lock::{Mutex, MutexGuard, lock};
use crate::fs::sync::Found;
use crate::fs::sync::Sync;
use crate::store::{Change, ContentId, Expect, Len, MovedFile, Op, Outcome, PlainPath, Side, Stored};
use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::watch;

/// Limit of the commits that wait for their read-back. Each takes some hundred bytes. Commits beyond the limit aren't
/// read back.
pub(crate) const MAX_UNCONFIRMED: usize = 65_536;
/// Number of paths that one request compares. The Hub accepts as many in one request.
const BATCH: usize = 1000;
/// Limit of the files of one renamed directory that are read back, so that space is left for other commits.
const MAX_MOVED: usize = 8192;
/// Number of unconfirmed commits in one journal record.
const JOURNAL_BATCH: usize = 1000;
/// Interval of the check for commits that are due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a comparison that failed.
const PAUSE: Duration = Duration::from_secs(60);

/// The first or the second comparison of a commit. The first one comes after a tenth of the time and confirms
/// nothing. It is needed because a version that replaced a new file may be removed before the second one comes. At
/// that time, it can't be distinguished from a removal of our version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    First,
    Last,
}

/// The commits that wait for their read-back, by time.
#[derive(Default)]
pub(crate) struct ReadBacks {
    first: Mutex<BTreeSet<(Instant, OpNo)>>,
    last: Mutex<BTreeSet<(Instant, OpNo)>>,
}

impl ReadBacks {
    fn of(&self, look: Comparison) -> MutexGuard<'_, BTreeSet<(Instant, OpNo)>> {
        lock(if look == Comparison::First { &self.first } else { &self.last })
    }

    fn add(&self, look: Comparison, at: Instant, op: OpNo) {
        self.of(look).insert((at, op));
    }

    /// Returns the commits that are due, at most one batch.
    fn take_due(&self, look: Comparison) -> Vec<OpNo> {
        let mut waiting = self.of(look);
        let now = Instant::now();
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some(first) = waiting.first().copied().filter(|(at, _)| *at <= now)
        {
            waiting.remove(&first);
            due.push(first.1);
        }
        due
    }
}

/// Returns the entry that marks the commit of a file by operation `op` as unconfirmed, at the file's present path.
/// Returns `None` if another operation on the file is queued. That operation is compared with the result of this one,
/// whatever the paths were when the two were queued.
pub(crate) fn note(
    ledger: &Ledger,
    op: OpNo,
    file: FileNo,
    stored: Stored,
    mtime: OffsetDateTime,
    replaced: bool,
) -> Option<Entry> {
    let path = ledger.file(file)?.path.clone()?;
    let is_last = !ledger.queue().of_file(file).any(|(other, _)| other != op);
    let fits = ledger.unconfirmed().len() < MAX_UNCONFIRMED;
    let (version, len) = (stored.version, Some(stored.plain_len));
    (fits && is_last).then_some(Entry::Unconfirmed { op, commit: Unconfirmed { path, version, len, mtime, replaced } })
}

impl Sync {
    /// Schedules the read-back of the commit that an operation made.
    pub(crate) fn read_back_later(&self, op: OpNo) {
        let after = self.options.read_back_after;
        self.read_backs.add(Comparison::First, Instant::now() + after / 10, op);
        self.read_backs.add(Comparison::Last, Instant::now() + after, op);
    }

    /// Schedules the read-back of commits that no queued operation made, as far as the limit permits.
    pub(crate) fn mark_unconfirmed(&self, commits: Vec<Unconfirmed>) -> Result<(), Error> {
        self.mark_unconfirmed_if(&commits, |_, _| true)
    }

    fn mark_unconfirmed_if(
        &self,
        commits: &[Unconfirmed],
        is_due: impl Fn(&Ledger, &Unconfirmed) -> bool,
    ) -> Result<(), Error> {
        let (_, ops) = self.journal.transact(Purpose::Relief, |ledger| {
            let room = MAX_UNCONFIRMED.saturating_sub(ledger.unconfirmed().len());
            let due: Vec<_> = commits.iter().filter(|commit| is_due(ledger, commit)).take(room).cloned().collect();
            let mut entries: Vec<_> = due.iter().flat_map(|commit| mark_others_overwritten(ledger, commit)).collect();
            let noted: Vec<_> = due.into_iter().map(|commit| (ledger.new_op(), commit)).collect();
            let ops: Vec<_> = noted.iter().map(|(op, _)| *op).collect();
            entries.extend(noted.into_iter().map(|(op, commit)| Entry::Unconfirmed { op, commit }));
            Ok((entries, ops))
        })?;
        ops.into_iter().for_each(|op| self.read_back_later(op));
        Ok(())
    }

    /// Schedules the read-back of the files of a directory that operation `op` moved. Skips files that changed here
    /// since, and files whose read-back is scheduled already.
    pub(crate) fn read_back_moved(&self, op: OpNo, moved: Vec<MovedFile>) {
        if moved.len() > MAX_MOVED {
            tracing::warn!(files = moved.len() - MAX_MOVED, "files of a renamed directory are not read back: too many");
        }
        let is_unchanged = |ledger: &Ledger, commit: &Unconfirmed| {
            let waits = ledger.queue().overlapping(&commit.path).any(|(other, _)| other != op);
            let has_draft = |record: &FileRecord| record.path.as_ref() == Some(&commit.path) && record.draft.is_some();
            let is_recorded = ledger.unconfirmed().at(&commit.path).any(|(_, at)| at.version.id == commit.version.id);
            !waits && !is_recorded && !ledger.files_within(&commit.path).any(|(_, record)| has_draft(record))
        };
        let commit = |MovedFile { path, version, mtime }| {
            let len = (version.side == Side::Plain).then_some(version.stored_len);
            let mtime = mtime.unwrap_or_else(OffsetDateTime::now_utc);
            Unconfirmed { path, version, len, mtime, replaced: false }
        };
        let commits: Vec<_> = moved.into_iter().take(MAX_MOVED).map(commit).collect();
        for batch in commits.chunks(JOURNAL_BATCH) {
            if let Err(error) = self.mark_unconfirmed_if(batch, is_unchanged) {
                tracing::warn!(%error, "a renamed directory is not read back");
                return;
            }
        }
    }

    /// Reads back the commits that are due, until the mount stops.
    pub(crate) async fn confirm_loop(sync: Weak<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            {
                let Some(this) = sync.upgrade() else { return };
                this.confirm_due().await;
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads back the commits that are due.
    pub(crate) async fn confirm_due(&self) {
        for look in [Comparison::First, Comparison::Last] {
            loop {
                let due = self.read_backs.take_due(look);
                if due.is_empty() {
                    break;
                }
                self.read_back(look, due).await;
            }
        }
    }

    async fn read_back(&self, look: Comparison, due: Vec<OpNo>) {
        let Sorted { compare, settled, later } = self.sort(due);
        self.confirm(settled);
        later.into_iter().for_each(|op| self.read_backs.add(look, Instant::now() + CHECK_INTERVAL, op));
        let ops: Vec<_> = compare
            .iter()
            .map(|(_, commit)| Op {
                path: commit.path.clone(),
                expect: Expect::Is(commit.version.id),
                change: Change::Rename { to: commit.path.clone(), expect_to: Expect::Any },
            })
            .collect();
        if ops.is_empty() {
            return;
        }
        let outcomes = self.commit_at_remote(&ops).await;
        let mut confirmed = Vec::new();
        for ((op, commit), outcome) in compare.into_iter().zip(outcomes) {
            if self.compared(look, op, &commit, outcome).await {
                confirmed.push(op);
            }
        }
        self.confirm(confirmed);
    }

    /// Handles the result of a comparison. Returns true if the commit doesn't need another one.
    async fn compared(&self, look: Comparison, op: OpNo, commit: &Unconfirmed, outcome: Outcome) -> bool {
        if matches!(outcome, Outcome::Conflict { .. }) && !self.is_still_to_compare(look, op, commit) {
            return false;
        }
        let known = match outcome {
            Outcome::Conflict { found: Some(theirs) } => self.overwritten(commit, theirs).await,
            _ if look == Comparison::First => return false,
            Outcome::Done(_) | Outcome::Moved(_) => Ok(()),
            Outcome::Conflict { found: None } => self.missing(commit).await,
            Outcome::Failed(error) => Err(error.into()),
        };
        if let Err(error) = &known {
            tracing::debug!(%error, "a commit can't be read back now");
            // After the first comparison the second one follows in any case.
            if look == Comparison::Last {
                self.read_backs.add(look, Instant::now() + PAUSE, op);
            }
        }
        known.is_ok()
    }

    /// Returns true if the commit is still to be compared at that path. If it isn't, the remote may have carried out
    /// a change of ours before the comparison. Then the result doesn't show a change of another client.
    fn is_still_to_compare(&self, look: Comparison, op: OpNo, commit: &Unconfirmed) -> bool {
        let Sorted { compare, settled, later } = self.sort(vec![op]);
        self.confirm(settled);
        let stands = compare.iter().any(|(_, now)| now == commit);
        let has_moved = !stands && compare.len() + later.len() > 0;
        if has_moved {
            self.read_backs.add(look, Instant::now() + CHECK_INTERVAL, op);
        }
        stands
    }

    fn sort(&self, due: Vec<OpNo>) -> Sorted {
        let ledger = self.journal.ledger();
        let mut sorted = Sorted::default();
        for op in due {
            let Some(commit) = ledger.unconfirmed().of(op) else { continue };
            let moves = |what: &QueuedOp| matches!(what, QueuedOp::RenameDirectory { .. });
            if ledger.queue().overlapping(&commit.path).any(|(_, what)| moves(what)) {
                sorted.later.push(op);
            } else if is_edited(&ledger, commit) {
                sorted.settled.push(op);
            } else {
                sorted.compare.push((op, commit.clone()));
            }
        }
        sorted
    }

    fn confirm(&self, ops: Vec<OpNo>) {
        let noted = self.journal.transact(Purpose::Relief, |ledger| {
            let there = ops.into_iter().filter(|op| ledger.unconfirmed().of(*op).is_some());
            Ok((there.map(|op| Entry::Confirmed { op }).collect(), ()))
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot record that commits were read back");
        }
    }

    /// Handles a path that has neither our version nor another one with a hash.
    async fn missing(&self, commit: &Unconfirmed) -> Result<(), Error> {
        match self.look(&commit.path).await? {
            Found::Nothing => self.removed(commit).await,
            Found::Other => self.keep_conflict_copy(commit).await,
            // The version appeared after the comparison, so the path has to be compared once more.
            Found::Content(_) => Err(Error::TimedOut),
        }
    }

    /// Handles a path that has nothing any more.
    async fn removed(&self, commit: &Unconfirmed) -> Result<(), Error> {
        if !commit.replaced {
            // Another client may remove a version that it sees, so ours isn't restored.
            tracing::info!(path = self.view.log_name(&commit.path), "removed by another client since its commit");
            return Ok(());
        }
        if self.options.on_conflict == OnConflict::Fail {
            return self.keep_conflict_copy(commit).await;
        }
        self.restore(commit, Expect::Absent).await?;
        self.log_restored(&commit.path);
        self.mark_unconfirmed(vec![Unconfirmed { replaced: false, ..commit.clone() }])
    }

    /// Handles a path that has another version.
    async fn overwritten(&self, commit: &Unconfirmed, theirs: ContentId) -> Result<(), Error> {
        let since = ours_since(&self.journal.ledger(), commit, theirs);
        match since {
            // Nothing was there before our commit, and nothing else was seen there since. So another client removed
            // ours, as it may.
            Some(Since { replaced: false }) if !commit.replaced => Ok(()),
            None if self.options.on_conflict == OnConflict::Overwrite => {
                self.restore(commit, Expect::Is(theirs)).await?;
                self.log_overwritten(&commit.path);
                Ok(())
            }
            // This also applies if conflicts are to be parked, because nothing local is left. Under a conflict name,
            // the user can see both versions.
            _ => self.keep_conflict_copy(commit).await,
        }
    }

    async fn restore(&self, commit: &Unconfirmed, expect: Expect) -> Result<(), Error> {
        let change = Change::Put { stored: self.stored(commit).await?, mtime: commit.mtime, metadata: None };
        self.ask(Op { path: commit.path.clone(), expect, change }).await.map(drop)
    }

    /// Commits our version under a conflict name.
    async fn keep_conflict_copy(&self, commit: &Unconfirmed) -> Result<(), Error> {
        let path = self.save_conflict_copy(&commit.path, self.stored(commit).await?, commit.mtime).await?;
        self.log_conflict(&commit.path);
        self.mark_unconfirmed(vec![Unconfirmed { path, replaced: false, ..commit.clone() }])
    }

    async fn stored(&self, commit: &Unconfirmed) -> Result<Stored, Error> {
        let version = commit.version;
        if let Some(plain_len) = commit.len {
            return Ok(Stored { version, plain_len });
        }
        match self.view.lens(&[version]).await.pop() {
            Some(Ok(Len::Known(plain_len))) => Ok(Stored { version, plain_len }),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(Len::Unread | Len::Damaged)) | None => Err(Error::Damaged),
        }
    }
}

/// A version that this mount committed after one that was replaced or removed since.
#[derive(Clone, Copy)]
struct Since {
    /// True if the path had a version before.
    replaced: bool,
}

/// Returns a value if the version that was found is our own: this mount changed the version that another client had
/// put in place of `commit`, or created the file again after the other client had removed it.
fn ours_since(ledger: &Ledger, commit: &Unconfirmed, found: ContentId) -> Option<Since> {
    let noted = ledger.unconfirmed().at(&commit.path).find(|(_, other)| other.version.id == found);
    if let Some((_, other)) = noted {
        return Some(Since { replaced: other.replaced });
    }
    let is_it = |record: &FileRecord| {
        record.path.as_ref() == Some(&commit.path)
            && matches!(record.remote, Remote::Own(version, _) if version.id == found)
            && record.draft.is_some()
    };
    ledger.files_within(&commit.path).any(|(_, record)| is_it(record)).then_some(Since { replaced: true })
}

/// Returns entries for our other unconfirmed commits at the path of `found`. The version of `found` is there now, so
/// they were overwritten. The entries mark them as commits that replaced something.
fn mark_others_overwritten(ledger: &Ledger, found: &Unconfirmed) -> Vec<Entry> {
    let noted = ledger.unconfirmed().at(&found.path);
    let others = noted.filter(|(_, commit)| commit.version.id != found.version.id && !commit.replaced);
    others
        .map(|(op, commit)| Entry::Unconfirmed { op, commit: Unconfirmed { replaced: true, ..commit.clone() } })
        .collect()
}

/// Returns entries that move the unconfirmed commits at or below a path to another path. Used for files that stay
/// although their directory moves.
pub(crate) fn move_unconfirmed(ledger: &Ledger, from: &PlainPath, to: &PlainPath) -> Vec<Entry> {
    let notes = ledger.unconfirmed().within(from);
    let moved = notes.filter_map(|(op, commit)| {
        let path = commit.path.rebase(from, to)?;
        Some(Entry::Unconfirmed { op, commit: Unconfirmed { path, ..commit.clone() } })
    });
    moved.collect()
}

/// Commits that are due, by the next step.
#[derive(Default)]
struct Sorted {
    compare: Vec<(OpNo, Unconfirmed)>,
    /// A local change will be compared instead.
    settled: Vec<OpNo>,
    /// Their directory is being moved.
    later: Vec<OpNo>,
}

/// Returns true if the version was changed here and the change isn't committed yet.
fn is_edited(ledger: &Ledger, commit: &Unconfirmed) -> bool {
    let id = commit.version.id;
    ledger.files_within(&commit.path).any(|(_, record)| {
        record.path.as_ref() == Some(&commit.path)
            && record.draft.as_ref().is_some_and(|draft| draft.is_dirty())
            && matches!(record.remote, Remote::Own(version, _) if version.id == id)
    })
}

#[cfg(test)]
impl Sync {
    /// Handles `outcome` as the result of the second comparison for each of the commits.
    pub(crate) async fn all_compared(&self, commits: Vec<(OpNo, Unconfirmed)>, outcome: impl Fn() -> Outcome) {
        for (op, commit) in commits {
            self.compared(Comparison::Last, op, &commit, outcome()).await;
        }
    }
}
