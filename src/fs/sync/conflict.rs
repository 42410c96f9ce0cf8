//! Resolves an operation for which the remote has something other than the operation expected.
//!
//! An apparent conflict may be caused by our own earlier attempt: its response was lost, or the daemon was killed
//! before it could record the result. So a version with the content id that we sent counts as ours. In all other cases
//! the mount's policy decides ([`OnConflict`]):
//!
//! | operation | found | keep both | overwrite |
//! |---|---|---|---|
//! | commit | another version | ours goes to `name (conflict <host> <time>).ext` | ours replaces it |
//! | commit | no version any more | ours is restored | ours is restored |
//! | removal | another version | it stays | it is removed |
//! | rename | another version at old name | it stays; ours gets the new name | it is removed; ours gets the new name |
//! | rename | no version at the old name | ours gets the new name | ours gets the new name |
//! | rename | another version at the target | it goes to a conflict name, ours replaces it | ours replaces it |
//! | directory rename | files at the new names of ours | as a rename of each file | as a rename of each file |
//!
//! With the policy `fail`, the operation is parked in each of these cases.
//!
//! If a directory can't be renamed as a whole, its files are renamed one by one. A file that can't be moved at all
//! (its format can't store the new name, or the object has no content id) stays at the old name, which is logged. The
//! operation doesn't stay in the queue for such files.

use crate::fs::errno::Error;
use crate::fs::ids::OnConflict;
use crate::fs::ids::{FileNo, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::{Entry, QueuedOp, Remote};
use crate::fs::journal::ledger::{Unconfirmed, after_local_move, left_by};
use crate::fs::lock::lock;
use crate::fs::sync::Found;
use crate::fs::sync::Sync;
use crate::fs::sync::commit::{concerns_one_file, renamed};
use crate::fs::sync::readback::move_unconfirmed;
use crate::store::{
    self, Change, ContentId, Entry as Listed, Expect, Kind, MovedFile, Op, Outcome, PlainPath, Stored, Version,
};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use time::OffsetDateTime;
use time::macros::format_description;

/// Number of attempts to find a free conflict name.
const TRIES: u32 = 100;
/// Number of files of a directory that are moved in one batch.
const BATCH: usize = 256;
/// Number of times that the files of a directory are listed and moved. After that, other clients seem to be changing
/// them, and the operation is retried later.
const ROUNDS: usize = 4;
/// Longest part of the host name that a conflict name contains, bytes.
const HOST_LEN: usize = 32;

impl Sync {
    /// Resolves a conflict of an operation, or leaves the operation for a retry.
    pub(crate) async fn resolve(self: &Arc<Self>, op: OpNo, what: QueuedOp, request: &Op, found: Option<ContentId>) {
        let policy = self.schedule.overridden(op, what.put_file()).unwrap_or(self.options.on_conflict);
        let outcome = match &what {
            QueuedOp::Put { file, generation, path } => {
                let Change::Put { stored, .. } = request.change else { return };
                if found == Some(stored.version.id) {
                    self.put_done(op, &what, *file, *generation, stored);
                    return;
                }
                self.resolve_put(op, &what, (*file, *generation), path, found, policy)
            }
            QueuedOp::Delete { file, path } => self.resolve_delete(op, &what, *file, path, found, policy),
            QueuedOp::Rename { file, from, to, replaced } => {
                self.resolve_rename(op, &what, *file, from, to, *replaced, policy).await
            }
            QueuedOp::RenameDirectory { from, to } => self.resolve_directory(op, &what, from, to, policy).await,
            QueuedOp::RemoveDirectory { .. } => Err(Error::Exists),
        };
        if let Err(error) = outcome {
            self.schedule.op_failed(op, error);
        }
    }

    fn resolve_put(
        self: &Arc<Self>,
        op: OpNo,
        what: &QueuedOp,
        (file, generation): (FileNo, u64),
        path: &PlainPath,
        found: Option<ContentId>,
        policy: OnConflict,
    ) -> Result<(), Error> {
        let now = self.journal.ledger().file(file).and_then(|record| record.path.clone());
        if now.as_ref() != Some(path) {
            // The file was moved already, so its path is free for the other version. Or it was removed, and the
            // removal is in the queue.
            self.put_again(op, what, file);
            return Ok(());
        }
        match (policy, found) {
            (OnConflict::Fail, _) => {
                // Parked before it leaves the queue. Otherwise it could be queued again in between.
                self.schedule.file_failed(file, generation, Arc::new(Error::Conflict));
                self.finish(op, what, Vec::new());
            }
            // Another client removed the file. There is no second version to keep, so ours is committed again.
            (_, None) => self.put_again(op, what, file),
            (OnConflict::KeepBoth, Some(_)) => {
                self.log_conflict(path);
                let absent = vec![Entry::Remote { file, remote: Remote::Absent }];
                self.rename_to_conflict_name(op, what, file, path, absent)?;
                self.flush_soon(file);
            }
            (OnConflict::Overwrite, Some(theirs)) => self.overwrite(op, file, path, theirs)?,
        }
        Ok(())
    }

    fn resolve_delete(
        &self,
        op: OpNo,
        what: &QueuedOp,
        file: FileNo,
        path: &PlainPath,
        found: Option<ContentId>,
        policy: OnConflict,
    ) -> Result<(), Error> {
        match (policy, found) {
            (OnConflict::Fail, Some(_)) => return Err(Error::Conflict),
            (OnConflict::Overwrite, Some(theirs)) => return self.overwrite(op, file, path, theirs),
            (OnConflict::KeepBoth, Some(_)) => self.log_conflict(path),
            (_, None) => {}
        }
        self.finish(op, what, vec![Entry::Remote { file, remote: Remote::Absent }]);
        Ok(())
    }

    /// Schedules the operation again, so that it replaces `theirs`.
    fn overwrite(&self, op: OpNo, file: FileNo, path: &PlainPath, theirs: ContentId) -> Result<(), Error> {
        self.log_overwritten(path);
        self.journal.append(Purpose::Relief, vec![Entry::Remote { file, remote: Remote::Replaced(theirs) }])?;
        self.schedule.op_again(op);
        Ok(())
    }

    pub(crate) fn log_overwritten(&self, path: &PlainPath) {
        self.schedule.conflict();
        tracing::warn!(path = self.view.log_name(path), "changed by another client meanwhile; ours replaces it");
    }

    /// Counts and logs a conflict, and invalidates the listing of the directory.
    pub(crate) fn log_conflict(&self, path: &PlainPath) {
        self.schedule.conflict();
        tracing::warn!(path = self.view.log_name(path), "changed by another client meanwhile; both versions are kept");
        if let Some((parent, _)) = path.split() {
            self.directories.revalidate(&parent);
        }
    }

    /// Logs that a version was restored after another client removed it.
    pub(crate) fn log_restored(&self, path: &PlainPath) {
        tracing::warn!(
            path = self.view.log_name(path),
            "removed by another client at the moment of its commit; restored"
        );
        if let Some((parent, _)) = path.split() {
            self.directories.revalidate(&parent);
        }
    }

    /// Commits the file again, for a path that has no file at the remote.
    fn put_again(&self, op: OpNo, what: &QueuedOp, file: FileNo) {
        self.finish(op, what, vec![Entry::Remote { file, remote: Remote::Absent }]);
        self.flush_again(file);
    }

    /// Flushes a file's local content without waiting for a quiet time.
    pub(crate) fn flush_soon(&self, file: FileNo) {
        if let Some(edit) = self.schedule.edit(file) {
            self.schedule.touch(&edit);
            self.schedule.flush_early(&edit);
        }
        self.schedule.wake();
    }

    fn rename_to_conflict_name(
        &self,
        op: OpNo,
        what: &QueuedOp,
        file: FileNo,
        path: &PlainPath,
        mut entries: Vec<Entry>,
    ) -> Result<(), Error> {
        let (parent, name) = path.split().ok_or(Error::Invalid("the root is no file"))?;
        let mut tree = lock(&self.tree);
        let directory = tree.find(&parent);
        let taken = |name: &str| directory.is_some_and(|ino| tree.child(ino, name).is_ok_and(|child| child.is_some()));
        let name_now = self.conflict_name(&parent, name, taken)?;
        entries.push(Entry::Move { file, path: Some(parent.join(&name_now)?) });
        entries.push(Entry::Finish { op });
        self.journal.append(Purpose::Relief, entries)?;
        let ino = self.schedule.edit(file).and_then(|edit| edit.ino());
        if let (Some(ino), Some(directory)) = (ino, directory)
            && tree.child(directory, name)? == Some(ino)
        {
            tree.relocate(ino, directory, &name_now)?;
        }
        drop(tree);
        self.schedule.op_finished(op, what.put_file());
        Ok(())
    }

    /// Returns a free name of the form `name (conflict <host> <time>).ext` that can be stored.
    fn conflict_name(&self, parent: &PlainPath, name: &str, taken: impl Fn(&str) -> bool) -> Result<String, Error> {
        let time = OffsetDateTime::now_utc().format(format_description!("[year][month][day]T[hour][minute][second]Z"));
        let time = time.unwrap_or_default();
        let host =
            rustix::system::uname().nodename().to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let host = host.get(..HOST_LEN).unwrap_or(&host);
        let free = (1..=TRIES).map(|number| {
            let number = if number == 1 { String::new() } else { format!(" {number}") };
            store::marked_name(name, &format!(" (conflict {host} {time}{number})"))
        });
        let free = free.filter(|name| !taken(name)).find(|name| self.view.check_name(parent, name).is_ok());
        free.ok_or(Error::Exists)
    }

    pub(crate) async fn look(&self, path: &PlainPath) -> Result<Found, Error> {
        Ok(match self.view.stat(path).await? {
            // Keys below this path (that is, a directory) don't prevent a file at it.
            None | Some(Listed { kind: Kind::Directory { .. }, .. }) => Found::Nothing,
            Some(Listed { kind: Kind::File { version: Some(version), .. }, .. }) => Found::Content(version.id),
            Some(_) => Found::Other,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "a rename has that many parts")]
    async fn resolve_rename(
        self: &Arc<Self>,
        op: OpNo,
        what: &QueuedOp,
        file: FileNo,
        from: &PlainPath,
        to: &PlainPath,
        replaced: Option<FileNo>,
        policy: OnConflict,
    ) -> Result<(), Error> {
        let (record, at_target, local) = {
            let ledger = self.journal.ledger();
            (ledger.file(file).cloned(), left_by(&ledger, replaced), after_local_move(&ledger, file, replaced))
        };
        let Some(record) = record else {
            self.finish(op, what, Vec::new());
            return Ok(());
        };
        let source = self.look(from).await?;
        let Remote::Own(version, len) = record.remote else {
            // Only the version that this file had replaced was to be removed. Another version is there now.
            self.remove_theirs(from, source, policy).await?;
            self.finish(op, what, local);
            return Ok(());
        };
        let ours = Found::Content(version.id);
        let target = self.look(to).await?;
        if target == ours {
            // The response was lost after the first half.
            if source == ours {
                self.ask(Op { path: from.clone(), expect: Expect::Is(version.id), change: Change::Delete }).await?;
            }
            self.finish_rename(op, what, file, replaced);
            return Ok(());
        }
        let is_taken = !matches_expected(target, at_target);
        if is_taken && (target == Found::Nothing || policy == OnConflict::KeepBoth) {
            return self.clear_target(op, to, target, replaced).await;
        }
        if policy == OnConflict::Fail {
            // The rename may be complete already.
            return Err(if is_taken || source != ours { Error::Conflict } else { Error::TimedOut });
        }
        let expect = match target {
            Found::Nothing => Expect::Absent,
            Found::Content(id) => Expect::Is(id),
            Found::Other => return Err(Error::Exists),
        };
        if is_taken {
            self.log_overwritten(to);
        }
        let dirty = record.draft.as_ref().is_some_and(|draft| draft.is_dirty());
        if !dirty {
            let mtime = record.mtime.unwrap_or_else(OffsetDateTime::now_utc);
            let change = Change::Put { stored: Stored { version, plain_len: len }, mtime, metadata: None };
            self.ask(Op { path: to.clone(), expect, change }).await?;
        }
        match source {
            // Ours, still at its old name.
            _ if source == ours => {
                self.ask(Op { path: from.clone(), expect: Expect::Is(version.id), change: Change::Delete }).await?;
            }
            Found::Nothing => self.log_conflict(from),
            theirs => self.remove_theirs(from, theirs, policy).await?,
        }
        if dirty {
            // The commit that follows expects the version that was found here.
            let remote = if let Found::Content(id) = target { Remote::Replaced(id) } else { Remote::Absent };
            let emptied = replaced.map(|file| Entry::Remote { file, remote: Remote::Absent });
            self.finish(op, what, [Entry::Remote { file, remote }].into_iter().chain(emptied).collect());
        } else {
            self.finish_rename(op, what, file, replaced);
        }
        Ok(())
    }

    /// Finishes a rename: the remote has the file's version at its new path.
    fn finish_rename(&self, op: OpNo, what: &QueuedOp, file: FileNo, replaced: Option<FileNo>) {
        self.finish_as(op, what, |ledger| renamed(ledger, op, file, replaced).into_iter().collect());
        self.read_back_later(op);
    }

    /// Handles another client's version at a path that was to become empty.
    async fn remove_theirs(&self, path: &PlainPath, theirs: Found, policy: OnConflict) -> Result<(), Error> {
        match (theirs, policy) {
            (Found::Nothing, _) => Ok(()),
            (_, OnConflict::Fail) => Err(Error::Conflict),
            (Found::Content(id), OnConflict::Overwrite) => {
                self.log_overwritten(path);
                self.ask(Op { path: path.clone(), expect: Expect::Is(id), change: Change::Delete }).await.map(drop)
            }
            _ => {
                self.log_conflict(path);
                Ok(())
            }
        }
    }

    /// Moves the files of a directory one by one, because the directory can't be renamed as a whole.
    pub(crate) async fn resolve_directory(
        &self,
        op: OpNo,
        what: &QueuedOp,
        from: &PlainPath,
        to: &PlainPath,
        policy: OnConflict,
    ) -> Result<(), Error> {
        if policy == OnConflict::Fail {
            return Err(Error::Conflict);
        }
        let mut stuck = HashSet::new();
        for round in 0.. {
            let mut files = self.files_below(from).await?;
            files.retain(|path, _| !stuck.contains(path));
            if files.is_empty() {
                break;
            }
            if round == ROUNDS {
                return Err(Error::TimedOut);
            }
            let files: Vec<_> = files.into_iter().collect();
            for batch in files.chunks(BATCH) {
                let moved = self.move_files(batch, from, to, policy, &mut stuck).await?;
                self.read_back_moved(op, moved);
            }
        }
        if stuck.is_empty() {
            // No file is left to move. This rename ends an earlier attempt to move the whole directory, which the
            // store may remember.
            let change = Change::RenameDirectory { to: to.clone() };
            if let Err(error) = self.ask(Op { path: from.clone(), expect: Expect::Any, change }).await {
                tracing::debug!(%error, "a directory was moved file by file");
            }
        }
        for path in &stuck {
            self.log_conflict(path);
            tracing::warn!(path = self.view.log_name(path), "can't be moved with its directory; it stays");
        }
        for path in [from, to] {
            if let Some((parent, _)) = path.split() {
                self.directories.revalidate(&parent);
            }
            self.directories.revalidate(path);
        }
        // Files that stay are read back at their old paths.
        self.finish_as(op, what, |ledger| {
            let meant = |path: &PlainPath| path.rebase(from, to);
            stuck.iter().filter_map(|path| Some(move_unconfirmed(ledger, &meant(path)?, path))).flatten().collect()
        });
        Ok(())
    }

    /// Returns our files at the remote below a directory, by path. `None` marks a file that can't be moved.
    async fn files_below(&self, directory: &PlainPath) -> Result<BTreeMap<PlainPath, Option<ContentId>>, Error> {
        let mut files = BTreeMap::new();
        let mut open = vec![directory.clone()];
        while let Some(at) = open.pop() {
            for entry in self.view.list(&at).await?.entries {
                let path = at.join(&entry.name)?;
                match entry.kind {
                    Kind::Directory { .. } => open.push(path),
                    Kind::File { read_only: true, .. } => {}
                    Kind::File { version, .. } => drop(files.insert(path, version.map(|version| version.id))),
                }
            }
        }
        Ok(files)
    }

    async fn move_files(
        &self,
        files: &[(PlainPath, Option<ContentId>)],
        from: &PlainPath,
        to: &PlainPath,
        policy: OnConflict,
        stuck: &mut HashSet<PlainPath>,
    ) -> Result<Vec<MovedFile>, Error> {
        let mut ops = Vec::with_capacity(files.len());
        for (path, id) in files {
            match (id, path.rebase(from, to)) {
                (Some(id), Some(target)) => {
                    let change = Change::Rename { to: target, expect_to: Expect::Absent };
                    ops.push(Op { path: path.clone(), expect: Expect::Is(*id), change });
                }
                _ => drop(stuck.insert(path.clone())),
            }
        }
        let outcomes = self.commit_at_remote(&ops).await;
        let mut moved = Vec::new();
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            let (Change::Rename { to, .. }, Expect::Is(id)) = (&op.change, op.expect) else { continue };
            match outcome {
                Outcome::Done(version) => {
                    moved.extend(version.map(|version| MovedFile { path: to.clone(), version, mtime: None }));
                }
                Outcome::Moved(_) => {}
                Outcome::Conflict { .. } => {
                    if !self.clear_for(&op.path, id, to, policy).await? {
                        stuck.insert(op.path.clone());
                    }
                }
                Outcome::Failed(error) if concerns_one_file(&error) => drop(stuck.insert(op.path.clone())),
                Outcome::Failed(error) => return Err(error.into()),
            }
        }
        Ok(moved)
    }

    /// Frees `to` for a file of a directory that is being moved, so that the next round can move it. Returns false if
    /// that isn't possible.
    async fn clear_for(
        &self,
        path: &PlainPath,
        ours: ContentId,
        to: &PlainPath,
        policy: OnConflict,
    ) -> Result<bool, Error> {
        match self.look(to).await? {
            // The file itself was changed or removed. The next round sees its present state.
            Found::Nothing => {}
            Found::Other => return Ok(false),
            Found::Content(id) if id == ours => {
                self.ask(Op { path: path.clone(), expect: Expect::Is(ours), change: Change::Delete }).await?;
            }
            Found::Content(theirs) if policy == OnConflict::Overwrite => {
                self.log_overwritten(to);
                let change = Change::Rename { to: to.clone(), expect_to: Expect::Is(theirs) };
                self.ask(Op { path: path.clone(), expect: Expect::Is(ours), change }).await?;
            }
            Found::Content(theirs) => self.move_to_conflict_name(to, theirs).await?,
        }
        Ok(true)
    }

    /// Moves another client's version away from the target of a rename, and schedules the rename again.
    async fn clear_target(
        &self,
        op: OpNo,
        to: &PlainPath,
        target: Found,
        replaced: Option<FileNo>,
    ) -> Result<(), Error> {
        match target {
            Found::Other => return Err(Error::Exists),
            Found::Nothing => {}
            Found::Content(theirs) => self.move_to_conflict_name(to, theirs).await?,
        }
        if let Some(file) = replaced {
            self.journal.append(Purpose::Relief, vec![Entry::Remote { file, remote: Remote::Absent }])?;
        }
        self.schedule.op_again(op);
        Ok(())
    }

    /// Renames another client's version to a conflict name.
    async fn move_to_conflict_name(&self, path: &PlainPath, theirs: ContentId) -> Result<(), Error> {
        self.log_conflict(path);
        let path_now = self.free_conflict_path(path, &HashSet::new())?;
        let change = Change::Rename { to: path_now.clone(), expect_to: Expect::Absent };
        let Some(version) = self.ask(Op { path: path.clone(), expect: Expect::Is(theirs), change }).await? else {
            return Ok(());
        };
        // Another mount may have chosen the same conflict name.
        let mtime = OffsetDateTime::now_utc();
        self.mark_unconfirmed(vec![Unconfirmed { path: path_now, version, len: None, mtime, replaced: false }])
    }

    /// Commits our version under a conflict name in the folder of `path`.
    pub(crate) async fn save_conflict_copy(
        &self,
        path: &PlainPath,
        stored: Stored,
        mtime: OffsetDateTime,
    ) -> Result<PlainPath, Error> {
        let mut taken = HashSet::new();
        loop {
            let aside = self.free_conflict_path(path, &taken)?;
            let change = Change::Put { stored, mtime, metadata: None };
            let put = Op { path: aside.clone(), expect: Expect::Absent, change };
            match self.commit_at_remote(std::slice::from_ref(&put)).await.into_iter().next() {
                Some(Outcome::Done(_) | Outcome::Moved(_)) => return Ok(aside),
                // Another mount took this name just before.
                Some(Outcome::Conflict { .. }) => drop(taken.insert(aside)),
                Some(Outcome::Failed(error)) => return Err(error.into()),
                None => return Err(Error::TimedOut),
            }
        }
    }

    /// Returns a free conflict name for the version at `path`, in the same folder.
    fn free_conflict_path(&self, path: &PlainPath, taken: &HashSet<PlainPath>) -> Result<PlainPath, Error> {
        let (parent, name) = path.split().ok_or(Error::Invalid("the root is no file"))?;
        let directory = lock(&self.tree).find(&parent);
        let is_taken = |name: &str| {
            self.directories.is_child(directory, name) || parent.join(name).is_ok_and(|path| taken.contains(&path))
        };
        let aside = self.conflict_name(&parent, name, is_taken)?;
        Ok(parent.join(&aside)?)
    }

    /// Commits a single operation. A conflict is returned as an error, so that the whole change is retried.
    pub(crate) async fn ask(&self, op: Op) -> Result<Option<Version>, Error> {
        match self.commit_at_remote(std::slice::from_ref(&op)).await.into_iter().next() {
            Some(Outcome::Done(version)) => Ok(version),
            Some(Outcome::Moved(_)) => Ok(None),
            Some(Outcome::Failed(error)) => Err(error.into()),
            Some(Outcome::Conflict { .. }) | None => Err(Error::TimedOut),
        }
    }
}

fn matches_expected(found: Found, expected: Remote) -> bool {
    match (found, expected.expect()) {
        (_, Expect::Any) | (Found::Nothing, Expect::Absent) => true,
        (Found::Content(id), Expect::Is(expected)) => id == expected,
        _ => false,
    }
}
