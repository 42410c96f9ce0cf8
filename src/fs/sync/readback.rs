//! Reading commits back: the Hub has no conditional commit, so a change made elsewhere in the very moment of ours may have replaced it (DESIGN,
//! promise 5).
//!
//! What was committed stays *unconfirmed* in the journal until its path was compared once more, at least [`crate::fs::Options::read_back_after`] later; also
//! across restarts. A later change of ours to that version confirms nothing and is compared itself, so it takes the note's place; one to
//! what somebody put there meanwhile doesn't. Many paths are compared by one request: as renames of files to themselves, which change
//! nothing (but for a missing sidecar, which it brings back) and compare all the same.
//!
//! A version that is gone altogether was removed by somebody who saw it, or by somebody who compared with the one before. The second can't be
//! where our commit replaced nothing; else it is put back.
//!
//! Each commit is read back once, and so is what is kept under another name: two mounts may choose the same. Putting a version back over
//! another one begins no new term: two mounts that would both overwrite don't do so for ever.

use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, OnConflict, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::Unconfirmed;
use crate::fs::journal::ledger::{Entry, FileRecord, Ledger, QueuedOp, Remote};
use crate::fs::lock::lock;
use crate::fs::lock::{Mutex, MutexGuard};
use crate::fs::sync::Found;
use crate::fs::sync::Sync;
use crate::store::{Change, Expect, Hash, Len, MovedFile, Op, Outcome, PlainPath, Side, Stored};
use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::watch;

/// Commits that wait to be read back, at most: some hundred bytes each. Beyond that a commit isn't.
pub(crate) const MAX_UNCONFIRMED: usize = 65_536;
/// Paths compared by one request: what the Hub takes in one.
const BATCH: usize = 1000;
/// Files of one renamed directory that are read back, at most: others have to find room, too.
const MAX_MOVED: usize = 8192;
/// Notes of one record of the journal.
const PORTION: usize = 1000;
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a comparison that could not be made.
const PAUSE: Duration = Duration::from_secs(60);

/// The first look comes after a tenth of the time: what overwrote a new file may be gone when the second one comes, and what is gone then can't be
/// told from what somebody removed. It confirms nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    Last,
}

/// When what is to be read back.
#[derive(Default)]
pub(crate) struct ReadBacks {
    first: Mutex<BTreeSet<(Instant, OpNo)>>,
    last: Mutex<BTreeSet<(Instant, OpNo)>>,
}

impl ReadBacks {
    fn of(&self, look: Look) -> MutexGuard<'_, BTreeSet<(Instant, OpNo)>> {
        lock(if look == Look::First { &self.first } else { &self.last })
    }

    fn add(&self, look: Look, at: Instant, op: OpNo) {
        self.of(look).insert((at, op));
    }

    /// What is due, at most a batch.
    fn take_due(&self, look: Look) -> Vec<OpNo> {
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

/// The note of a file's commit that operation `op` made, at the place that the file has by now; none where another operation that names the file
/// is queued: it will be compared with what this one made, whatever the paths were called when the two were queued.
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
    /// Has the commit that an operation made read back later.
    pub(crate) fn read_back_later(&self, op: OpNo) {
        let after = self.options.read_back_after;
        self.read_backs.add(Look::First, Instant::now() + after / 10, op);
        self.read_backs.add(Look::Last, Instant::now() + after, op);
    }

    /// Has commits that no operation of the queue made read back later, as far as there is room.
    pub(crate) fn note_commits(&self, commits: Vec<Unconfirmed>) -> Result<(), Error> {
        self.note_commits_if(&commits, |_, _| true)
    }

    fn note_commits_if(
        &self,
        commits: &[Unconfirmed],
        is_due: impl Fn(&Ledger, &Unconfirmed) -> bool,
    ) -> Result<(), Error> {
        let (_, ops) = self.journal.transact(Purpose::Relief, |ledger| {
            let room = MAX_UNCONFIRMED.saturating_sub(ledger.unconfirmed().len());
            let due: Vec<_> = commits.iter().filter(|commit| is_due(ledger, commit)).take(room).cloned().collect();
            let mut entries: Vec<_> = due.iter().flat_map(|commit| others_were_overwritten(ledger, commit)).collect();
            let noted: Vec<_> = due.into_iter().map(|commit| (ledger.new_op(), commit)).collect();
            let ops: Vec<_> = noted.iter().map(|(op, _)| *op).collect();
            entries.extend(noted.into_iter().map(|(op, commit)| Entry::Unconfirmed { op, commit }));
            Ok((entries, ops))
        })?;
        ops.into_iter().for_each(|op| self.read_back_later(op));
        Ok(())
    }

    /// Has the files of a directory that operation `op` moved read back, but for those that changed here since, and those that are to be anyway.
    pub(crate) fn note_moved(&self, op: OpNo, moved: Vec<MovedFile>) {
        if moved.len() > MAX_MOVED {
            tracing::warn!(files = moved.len() - MAX_MOVED, "files of a renamed directory are not read back: too many");
        }
        let is_unchanged = |ledger: &Ledger, commit: &Unconfirmed| {
            let waits = ledger.queue().overlapping(&commit.path).any(|(other, _)| other != op);
            let has_draft = |record: &FileRecord| record.path.as_ref() == Some(&commit.path) && record.draft.is_some();
            let is_noted = ledger.unconfirmed().at(&commit.path).any(|(_, at)| at.version.hash == commit.version.hash);
            !waits && !is_noted && !ledger.files_within(&commit.path).any(|(_, record)| has_draft(record))
        };
        let commit = |MovedFile { path, version, mtime }| {
            let len = (version.side == Side::Plain).then_some(version.stored_len);
            let mtime = mtime.unwrap_or_else(OffsetDateTime::now_utc);
            Unconfirmed { path, version, len, mtime, replaced: false }
        };
        let commits: Vec<_> = moved.into_iter().take(MAX_MOVED).map(commit).collect();
        for portion in commits.chunks(PORTION) {
            if let Err(error) = self.note_commits_if(portion, is_unchanged) {
                tracing::warn!(%error, "a renamed directory is not read back");
                return;
            }
        }
    }

    /// Reads back what is due until the mount stops.
    pub(crate) async fn confirm_loop(sync: Weak<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            {
                let Some(this) = sync.upgrade() else { return };
                this.confirm_due().await;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads back what is due.
    pub(crate) async fn confirm_due(&self) {
        for look in [Look::First, Look::Last] {
            loop {
                let due = self.read_backs.take_due(look);
                if due.is_empty() {
                    break;
                }
                self.read_back(look, due).await;
            }
        }
    }

    async fn read_back(&self, look: Look, due: Vec<OpNo>) {
        let Sorted { compare, settled, later } = self.sort(due);
        self.confirm(settled);
        later.into_iter().for_each(|op| self.read_backs.add(look, Instant::now() + LOOK, op));
        let ops: Vec<_> = compare
            .iter()
            .map(|(_, commit)| Op {
                path: commit.path.clone(),
                expect: Expect::Is(commit.version.hash),
                change: Change::Rename { to: commit.path.clone(), expect_to: Expect::Any },
            })
            .collect();
        if ops.is_empty() {
            return;
        }
        let outcomes = self.view.commit(&ops).await;
        let mut confirmed = Vec::new();
        for ((op, commit), outcome) in compare.into_iter().zip(outcomes) {
            if self.compared(look, op, &commit, outcome).await {
                confirmed.push(op);
            }
        }
        self.confirm(confirmed);
    }

    /// Deals with what a comparison has found; says whether the commit needn't be looked at again.
    async fn compared(&self, look: Look, op: OpNo, commit: &Unconfirmed, outcome: Outcome) -> bool {
        if matches!(outcome, Outcome::Conflict { .. }) && !self.is_still_to_compare(look, op, commit) {
            return false;
        }
        let known = match outcome {
            Outcome::Conflict { found: Some(theirs) } => self.overwritten(commit, theirs).await,
            _ if look == Look::First => return false,
            Outcome::Done(_) | Outcome::Moved(_) => Ok(()),
            Outcome::Conflict { found: None } => self.missing(commit).await,
            Outcome::Failed(error) => Err(error.into()),
        };
        if let Err(error) = &known {
            tracing::debug!(%error, "a commit can't be read back now");
            // After the first look comes another one in any case.
            if look == Look::Last {
                self.read_backs.add(look, Instant::now() + PAUSE, op);
            }
        }
        known.is_ok()
    }

    /// Whether the commit is to be compared at that path even now. Else the source may have carried out a change of ours before it compared:
    /// what it found says nothing of others.
    fn is_still_to_compare(&self, look: Look, op: OpNo, commit: &Unconfirmed) -> bool {
        let Sorted { compare, settled, later } = self.sort(vec![op]);
        self.confirm(settled);
        let stands = compare.iter().any(|(_, now)| now == commit);
        let has_moved = !stands && compare.len() + later.len() > 0;
        if has_moved {
            self.read_backs.add(look, Instant::now() + LOOK, op);
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
            tracing::warn!(%error, "cannot note that commits were read back");
        }
    }

    /// Our version isn't there, and no other that has a hash.
    async fn missing(&self, commit: &Unconfirmed) -> Result<(), Error> {
        match self.look(&commit.path).await? {
            Found::Nothing => self.removed(commit).await,
            Found::Other => self.keep_aside(commit).await,
            // It has come since: to be compared once more.
            Found::Content(_) => Err(Error::TimedOut),
        }
    }

    /// Nothing is left of our version.
    async fn removed(&self, commit: &Unconfirmed) -> Result<(), Error> {
        if !commit.replaced {
            // Others may remove what they see: it isn't put back.
            tracing::info!(path = self.view.log_name(&commit.path), "removed by somebody else since its commit");
            return Ok(());
        }
        if self.options.on_conflict == OnConflict::Fail {
            return self.keep_aside(commit).await;
        }
        self.put_back(commit, Expect::Absent).await?;
        self.note_put_back(&commit.path);
        self.note_commits(vec![Unconfirmed { replaced: false, ..commit.clone() }])
    }

    /// Another version is where ours was.
    async fn overwritten(&self, commit: &Unconfirmed, theirs: Hash) -> Result<(), Error> {
        let since = ours_since(&self.journal.ledger(), commit, theirs);
        match since {
            // Nothing was there when it came, and nothing else was seen there in between: ours had been removed, as others may.
            Some(Since { replaced: false }) if !commit.replaced => Ok(()),
            None if self.options.on_conflict == OnConflict::Overwrite => {
                self.put_back(commit, Expect::Is(theirs)).await?;
                self.note_overwritten(&commit.path);
                Ok(())
            }
            // Also where conflicts are to be parked: nothing local is left. Under another name both are there to be looked at.
            _ => self.keep_aside(commit).await,
        }
    }

    async fn put_back(&self, commit: &Unconfirmed, expect: Expect) -> Result<(), Error> {
        let change = Change::Put { stored: self.stored(commit).await?, mtime: commit.mtime };
        self.ask(Op { path: commit.path.clone(), expect, change }).await.map(drop)
    }

    /// Our version gets a conflict name.
    async fn keep_aside(&self, commit: &Unconfirmed) -> Result<(), Error> {
        let path = self.put_aside(&commit.path, self.stored(commit).await?, commit.mtime).await?;
        self.note_conflict(&commit.path);
        self.note_commits(vec![Unconfirmed { path, replaced: false, ..commit.clone() }])
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

/// A version that this mount committed after one that isn't there any more.
#[derive(Clone, Copy)]
struct Since {
    /// Something was at the path before.
    replaced: bool,
}

/// Whether the version found is our own: what somebody had put in the place of `commit` was changed here, or what they had removed was made anew.
fn ours_since(ledger: &Ledger, commit: &Unconfirmed, found: Hash) -> Option<Since> {
    let noted = ledger.unconfirmed().at(&commit.path).find(|(_, other)| other.version.hash == found);
    if let Some((_, other)) = noted {
        return Some(Since { replaced: other.replaced });
    }
    let is_it = |record: &FileRecord| {
        record.path.as_ref() == Some(&commit.path)
            && matches!(record.remote, Remote::Own(version, _) if version.hash == found)
            && record.draft.is_some()
    };
    ledger.files_within(&commit.path).any(|(_, record)| is_it(record)).then_some(Since { replaced: true })
}

/// What else of ours is noted at the path of a version that is there now was overwritten.
fn others_were_overwritten(ledger: &Ledger, found: &Unconfirmed) -> Vec<Entry> {
    let noted = ledger.unconfirmed().at(&found.path);
    let others = noted.filter(|(_, commit)| commit.version.hash != found.version.hash && !commit.replaced);
    others
        .map(|(op, commit)| Entry::Unconfirmed { op, commit: Unconfirmed { replaced: true, ..commit.clone() } })
        .collect()
}

/// Entries that take the notes of what is at or below a path elsewhere: what was to move there doesn't.
pub(crate) fn notes_moved(ledger: &Ledger, from: &PlainPath, to: &PlainPath) -> Vec<Entry> {
    let notes = ledger.unconfirmed().within(from);
    let moved = notes.filter_map(|(op, commit)| {
        let path = commit.path.rebase(from, to)?;
        Some(Entry::Unconfirmed { op, commit: Unconfirmed { path, ..commit.clone() } })
    });
    moved.collect()
}

/// What is to become of commits that are due.
#[derive(Default)]
struct Sorted {
    compare: Vec<(OpNo, Unconfirmed)>,
    /// A local change will be compared instead.
    settled: Vec<OpNo>,
    /// Their directory is on its way elsewhere.
    later: Vec<OpNo>,
}

/// Whether the version was changed here, and that isn't committed yet.
fn is_edited(ledger: &Ledger, commit: &Unconfirmed) -> bool {
    let hash = commit.version.hash;
    ledger.files_within(&commit.path).any(|(_, record)| {
        record.path.as_ref() == Some(&commit.path)
            && record.draft.as_ref().is_some_and(|draft| draft.is_dirty())
            && matches!(record.remote, Remote::Own(version, _) if version.hash == hash)
    })
}

#[cfg(test)]
impl Sync {
    /// As if every commit that is to be read back had been compared, with that outcome.
    pub(crate) async fn all_compared(&self, commits: Vec<(OpNo, Unconfirmed)>, outcome: impl Fn() -> Outcome) {
        for (op, commit) in commits {
            self.compared(Look::Last, op, &commit, outcome()).await;
        }
    }
}
