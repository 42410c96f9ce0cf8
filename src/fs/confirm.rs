//! Reading commits back: the Hub has no conditional commit, so a change made elsewhere in the very moment of ours may have replaced it (DESIGN,
//! promise 5).
//!
//! What was committed stays *unconfirmed* in the journal until its path was compared once more, at least [`super::Options::read_back_after`] later; also
//! across restarts. A later change of ours at the path confirms nothing and is compared itself, so it takes the note's place. Many paths are
//! compared by one request: as renames of files to themselves, which change nothing and compare all the same.
//!
//! Each commit is read back once. Putting a version back begins no new term: two mounts that would both overwrite don't do so for ever.

use super::conflict::OnConflict;
use super::journal::Purpose;
use super::ledger::{Entry, FileRecord, Ledger, OpNo};
use super::{Error, Vfs, lock};
use crate::store::{Change, Expect, Hash, Op, Outcome, PlainPath, Stored};
use std::collections::VecDeque;
use std::sync::{Mutex, Weak};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::watch;

/// Commits that wait to be read back, at most: some hundred bytes each. Beyond that a commit isn't.
pub(super) const MAX_UNCONFIRMED: usize = 65_536;
/// Paths compared by one request: what the Hub takes in one.
const BATCH: usize = 1000;
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a comparison that could not be made.
const PAUSE: Duration = Duration::from_secs(60);

/// A commit that wasn't read back yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unconfirmed {
    pub(super) path: PlainPath,
    pub(super) stored: Stored,
    pub(super) mtime: OffsetDateTime,
}

/// When what is to be read back.
#[derive(Default)]
pub(super) struct ReadBacks(Mutex<VecDeque<(Instant, PlainPath, Hash)>>);

impl ReadBacks {
    pub(super) fn add(&self, at: Instant, path: PlainPath, hash: Hash) {
        lock(&self.0).push_back((at, path, hash));
    }

    /// What is due, at most a batch.
    fn take_due(&self) -> Vec<(PlainPath, Hash)> {
        let mut waiting = lock(&self.0);
        let now = Instant::now();
        let mut due = Vec::new();
        // All wait equally long, but for those that could not be compared: they may let others wait a little longer.
        while due.len() < BATCH && waiting.front().is_some_and(|(at, _, _)| *at <= now) {
            due.extend(waiting.pop_front().map(|(_, path, hash)| (path, hash)));
        }
        due
    }
}

/// The note of a commit that operation `op` made; none where something queued already concerns the path.
pub(super) fn note(
    ledger: &Ledger,
    op: OpNo,
    path: &PlainPath,
    stored: Stored,
    mtime: OffsetDateTime,
) -> Option<Entry> {
    let is_last = ledger.overlapping(path).all(|(other, _)| other == op);
    let fits = is_last && ledger.unconfirmed().len() < MAX_UNCONFIRMED;
    fits.then(|| Entry::Unconfirmed { path: path.clone(), stored, mtime })
}

impl Vfs {
    /// Has a commit read back later.
    pub(super) fn read_back_later(&self, path: PlainPath, hash: Hash) {
        self.read_backs.add(Instant::now() + self.options.read_back_after, path, hash);
    }

    /// Reads back what is due until the mount stops.
    pub(super) async fn confirm_loop(vfs: Weak<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            {
                let Some(this) = vfs.upgrade() else { return };
                this.confirm_due().await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads back what is due.
    pub(super) async fn confirm_due(&self) {
        loop {
            let due = self.read_backs.take_due();
            if due.is_empty() {
                return;
            }
            self.read_back(due).await;
        }
    }

    async fn read_back(&self, due: Vec<(PlainPath, Hash)>) {
        let (commits, settled) = self.to_compare(due);
        self.confirm(settled);
        let compare = |commit: &Unconfirmed| Op {
            path: commit.path.clone(),
            expect: Expect::Is(commit.stored.version.hash),
            change: Change::Rename { to: commit.path.clone(), expect_to: Expect::Any },
        };
        let ops: Vec<_> = commits.iter().map(compare).collect();
        if ops.is_empty() {
            return;
        }
        let outcomes = self.view.commit(&ops).await;
        let mut confirmed = Vec::new();
        for (commit, outcome) in commits.into_iter().zip(outcomes) {
            let known = match outcome {
                Outcome::Done(_) => Ok(()),
                Outcome::Conflict { found: None } => {
                    // Others may remove what they see: it isn't put back.
                    tracing::info!(
                        path = self.view.log_name(&commit.path),
                        "removed by somebody else since its commit"
                    );
                    Ok(())
                }
                Outcome::Conflict { found: Some(theirs) } => self.overwritten(&commit, theirs).await,
                Outcome::Failed(error) => Err(error.into()),
            };
            match known {
                Ok(()) => confirmed.push(commit.path),
                Err(error) => {
                    tracing::debug!(%error, "a commit can't be read back now");
                    self.read_backs.add(Instant::now() + PAUSE, commit.path, commit.stored.version.hash);
                }
            }
        }
        self.confirm(confirmed);
    }

    /// Commits of these that are still to be compared, and paths whose local changes will be compared instead.
    fn to_compare(&self, due: Vec<(PlainPath, Hash)>) -> (Vec<Unconfirmed>, Vec<PlainPath>) {
        let ledger = self.journal.ledger();
        let (mut commits, mut settled) = (Vec::new(), Vec::new());
        for (path, hash) in due {
            let Some(commit) = ledger.unconfirmed().of(&path).filter(|commit| commit.stored.version.hash == hash)
            else {
                continue;
            };
            let is_dirty = |record: &FileRecord| record.draft.as_ref().is_some_and(|draft| draft.is_dirty());
            let changed = ledger.files_within(&path).any(|(_, record)| is_dirty(record));
            if changed {
                settled.push(path);
            } else {
                commits.push(commit.clone());
            }
        }
        (commits, settled)
    }

    fn confirm(&self, paths: Vec<PlainPath>) {
        let noted = self.journal.transact(Purpose::Relief, |ledger| {
            let there = paths.into_iter().filter(|path| ledger.unconfirmed().of(path).is_some());
            Ok((there.map(|path| Entry::Confirmed { path }).collect(), ()))
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note that commits were read back");
        }
    }

    /// Somebody replaced our version in the moment of its commit, or soon after.
    async fn overwritten(&self, commit: &Unconfirmed, theirs: Hash) -> Result<(), Error> {
        let (path, expect) = match self.options.on_conflict {
            OnConflict::Overwrite => (commit.path.clone(), Expect::Is(theirs)),
            // Nothing local is left that could be parked: under another name both are there to be looked at.
            OnConflict::KeepBoth | OnConflict::Fail => (self.free_conflict_path(&commit.path)?, Expect::Absent),
        };
        let change = Change::Put { stored: commit.stored, mtime: commit.mtime };
        self.ask(Op { path, expect, change }).await?;
        match self.options.on_conflict {
            OnConflict::Overwrite => self.note_overwritten(&commit.path),
            OnConflict::KeepBoth | OnConflict::Fail => self.note_conflict(&commit.path),
        }
        Ok(())
    }
}
