//! Lists, retries, reads and discards pending changes one by one.
//!
//! Pending changes are discarded only on explicit request, which is handled here. A file whose changes are discarded
//! returns to the remote's version. A change of names is undone only if the result is unambiguous: the change isn't
//! in progress, and no later change depends on it.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, Ino, OnConflict, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::{Entry, Ledger, QueuedOp, Remote};
use crate::fs::lock::lock;
use crate::fs::sync::Sync;
use crate::fs::sync::readback::move_unconfirmed;
use crate::fs::sync::schedule::FlushStatus;
use crate::fs::tree::inode::{Node, Tree};
use crate::store::{Len, PlainPath};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The number of a pending change, valid as long as the change is pending. Files come before changes of names, older
/// ones before newer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingNo {
    /// A file's content.
    File(u64),
    /// A change of names.
    Change(u64),
}

/// The kind of a pending change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingKind {
    /// The content of a file.
    File,
    /// A file was removed on this machine.
    Delete,
    /// A file was renamed on this machine.
    Rename,
    /// A directory was renamed on this machine.
    RenameDirectory,
}

/// The progress of a pending change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingState {
    /// A file with changes that no frozen version contains yet.
    Dirty,
    /// Its version is frozen, but not uploaded yet.
    Frozen,
    /// Its version is uploaded, but has no name at the remote yet.
    Uploaded,
    /// A change of names that waits for its turn.
    Queued,
    /// The remote is being changed right now.
    Committing,
    /// It failed, and is retried automatically.
    Retrying,
    /// It was refused permanently, or waits for the user.
    Parked,
}

/// A change that the remote doesn't have yet. Paths are plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its number.
    pub number: PendingNo,
    /// Its kind.
    pub kind: PendingKind,
    /// The file, or the old name.
    pub path: String,
    /// The new name.
    pub to: Option<String>,
    /// Size of a file.
    pub bytes: Option<u64>,
    /// Its progress.
    pub state: PendingState,
    /// Time of the change, RFC 3339. For a change that an earlier daemon left, the start of this one.
    pub since: Option<String>,
    /// Number of attempts that failed.
    pub attempts: u32,
    /// Error of the last attempt.
    pub error: Option<String>,
}

impl FlushStatus {
    fn state(&self, otherwise: PendingState) -> PendingState {
        match &self.failure {
            _ if self.committing => PendingState::Committing,
            Some((_, true, _)) => PendingState::Parked,
            Some((_, false, _)) => PendingState::Retrying,
            None => otherwise,
        }
    }

    fn attempts(&self) -> u32 {
        self.failure.as_ref().map_or(0, |(attempts, _, _)| *attempts)
    }

    fn error(self) -> Option<String> {
        self.failure.map(|(_, _, error)| error)
    }
}

/// A pending file that is opened for reading its present content.
pub struct PendingFile {
    edit: Arc<Edit>,
    generation: u64,
    len: u64,
}

impl PendingFile {
    /// Returns the size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the time of the last change.
    pub fn mtime(&self) -> OffsetDateTime {
        self.edit.mtime()
    }

    /// Returns the bytes `[offset, offset + len)`, or fewer at the end. Fails if the file has changed since it was
    /// opened.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let guard = self.edit.reader().await;
        let draft = guard.as_ref().filter(|_| self.edit.generation() == self.generation);
        let draft = draft.ok_or(Error::NotPermitted("it changed while it was read"))?;
        Ok(draft.read_at(offset, len).await?)
    }
}

/// State of a pending file's content.
struct Content {
    file: FileNo,
    generation: u64,
    len: u64,
    age: Duration,
}

impl Content {
    fn of(edit: &Edit) -> Self {
        Self { file: edit.file, generation: edit.generation(), len: edit.len(), age: edit.age() }
    }
}

const BUSY: &str = "it is being committed at this moment";
const LATER: &str = "something that was done later builds on it";

impl Sync {
    /// Returns pending changes in the order of their numbers: at most `limit` of those after `after`.
    pub(crate) fn pending(&self, after: Option<PendingNo>, limit: usize) -> Vec<Pending> {
        let mut pending = Vec::new();
        let mut file = match after {
            None => Some(None),
            Some(PendingNo::File(file)) => Some(Some(FileNo(file))),
            Some(PendingNo::Change(_)) => None,
        };
        while let Some(after) = file.filter(|_| pending.len() < limit) {
            // This is read before the ledger is locked, because an edit locks its own state before the journal.
            let unsent = self.schedule.unsent_after(after, limit - pending.len());
            let unsent: Vec<_> = unsent.iter().map(|edit| Content::of(edit)).collect();
            file = unsent.last().map(|content| Some(content.file));
            let ledger = self.journal.ledger();
            pending.extend(unsent.iter().filter_map(|content| self.describe_file(&ledger, content)));
        }
        let change = match after {
            Some(PendingNo::Change(op)) => Some(OpNo(op)),
            _ => None,
        };
        let ledger = self.journal.ledger();
        let changes = ledger.queue().after(change).filter(|(_, what)| what.changes_names());
        let changes = changes.filter_map(|(op, _)| self.describe_change(&ledger, op));
        let left = limit - pending.len();
        pending.extend(changes.take(left));
        pending
    }

    fn describe_file(&self, ledger: &Ledger, content: &Content) -> Option<Pending> {
        let Content { file, generation, .. } = *content;
        let record = ledger.file(file)?;
        let frozen = record.draft.as_ref().and_then(|draft| draft.frozen.as_ref());
        let fixed = match frozen.filter(|frozen| frozen.generation == generation) {
            None => PendingState::Dirty,
            Some(frozen) if frozen.stored.is_none() => PendingState::Frozen,
            Some(_) => PendingState::Uploaded,
        };
        let status = self.schedule.file_status(file, generation, put_of(ledger, file).next());
        let since = OffsetDateTime::now_utc().checked_sub(content.age.try_into().ok()?);
        Some(Pending {
            number: PendingNo::File(file.0),
            kind: PendingKind::File,
            path: record.path.as_ref()?.as_str().to_owned(),
            to: None,
            bytes: Some(content.len),
            state: status.state(fixed),
            since: since.and_then(to_text),
            attempts: status.attempts(),
            error: status.error(),
        })
    }

    fn describe_change(&self, ledger: &crate::fs::journal::file::LedgerGuard<'_>, op: OpNo) -> Option<Pending> {
        let (kind, path, to) = match ledger.queue().get(op)? {
            QueuedOp::Delete { path, .. } => (PendingKind::Delete, path, None),
            QueuedOp::Rename { from, to, .. } => (PendingKind::Rename, from, Some(to)),
            QueuedOp::RenameDirectory { from, to } => (PendingKind::RenameDirectory, from, Some(to)),
            QueuedOp::Put { .. } | QueuedOp::RemoveDirectory { .. } => return None,
        };
        let status = self.schedule.op_status(op);
        Some(Pending {
            number: PendingNo::Change(op.0),
            kind,
            path: path.as_str().to_owned(),
            to: to.map(|to| to.as_str().to_owned()),
            bytes: None,
            state: status.state(PendingState::Queued),
            since: ledger.queued_since(op).and_then(to_text),
            attempts: status.attempts(),
            error: status.error(),
        })
    }

    /// Retries these changes immediately, whatever the reason that delayed them. Returns how many of them are
    /// pending. If they meet a conflict, `wish` overrides the mount's policy.
    pub(crate) fn retry(&self, numbers: &[PendingNo], wish: Option<OnConflict>) -> usize {
        let mut tried = 0;
        for number in numbers {
            tried += usize::from(match number {
                PendingNo::File(file) => self.retry_file(FileNo(*file), wish),
                PendingNo::Change(op) => self.retry_change(OpNo(*op), wish),
            });
        }
        self.schedule.wake();
        tried
    }

    fn retry_change(&self, op: OpNo, wish: Option<OnConflict>) -> bool {
        let is_pending = self.journal.ledger().queue().get(op).is_some();
        if is_pending {
            wish.into_iter().for_each(|wish| self.schedule.override_op(op, wish));
            self.schedule.clear_op_failures(op);
        }
        is_pending
    }

    fn retry_file(&self, file: FileNo, wish: Option<OnConflict>) -> bool {
        let Some(edit) = self.schedule.edit(file).filter(|edit| edit.is_dirty()) else { return false };
        let puts: Vec<_> = put_of(&self.journal.ledger(), file).collect();
        wish.into_iter().for_each(|wish| self.schedule.override_file(file, wish));
        puts.into_iter().for_each(|op| self.schedule.clear_op_failures(op));
        self.schedule.clear_file_failures(file);
        self.schedule.touch(&edit);
        self.schedule.flush_early(&edit);
        true
    }

    /// Opens a pending file for reading. Local data needs no network: everything that was written here, and the parts
    /// of the remote version that were fetched along with it.
    pub(crate) fn open_pending(&self, number: PendingNo) -> Result<PendingFile, Error> {
        let PendingNo::File(file) = number else { return Err(Error::NotPermitted("it has no content of its own")) };
        let edit = self.schedule.edit(FileNo(file)).filter(|edit| edit.is_dirty()).ok_or(Error::NotFound)?;
        Ok(PendingFile { generation: edit.generation(), len: edit.len(), edit })
    }

    /// Discards pending changes in the given order; `drop_order` computes a suitable one. Returns one result for
    /// each: `None`, or the reason why it was not discarded.
    pub(crate) async fn drop_pending(&self, numbers: &[PendingNo]) -> Result<Vec<Option<Error>>, Error> {
        let mut answers = Vec::with_capacity(numbers.len());
        for number in numbers {
            let dropped = match number {
                PendingNo::File(file) => self.drop_content(FileNo(*file)).await,
                PendingNo::Change(op) => self.drop_change(OpNo(*op)),
            };
            answers.push(dropped.err());
        }
        self.schedule.wake();
        // The caller may cut the power now, and the discarded changes must not come back.
        self.journal.written(self.journal.last()).await?;
        Ok(answers)
    }

    /// Returns a file to the remote's version, or removes it if the remote has none.
    async fn drop_content(&self, file: FileNo) -> Result<(), Error> {
        let edit = self.schedule.edit(file).filter(|edit| edit.is_dirty()).ok_or(Error::NotFound)?;
        let claim = self.claim_puts(file)?;
        let discard = |end: &mut dyn FnMut(Vec<Entry>) -> Result<(), Error>| {
            let mut tree = lock(&self.tree);
            let node = edit.ino().and_then(|ino| tree.node(ino).ok());
            if node.is_some_and(|node| node.writers > 0) {
                return Err(Error::NotPermitted("it is open for writing"));
            }
            let (path, remote, mtime, mut entries) = {
                let ledger = self.journal.ledger();
                let Some(record) = ledger.file(file) else { return Ok(false) };
                let Some(path) = record.path.clone() else { return Ok(false) };
                let finish = claim.ops.iter().map(|op| Entry::Finish { op: *op }).collect::<Vec<_>>();
                let emptied = emptied_directory(&ledger, &tree, &path).filter(|_| !is_own(record.remote));
                (path, record.remote, record.mtime, finish.into_iter().chain(emptied).collect::<Vec<_>>())
            };
            if !is_own(remote) {
                entries.push(Entry::Move { file, path: None });
            }
            end(entries)?;
            self.show_dropped(&mut tree, &edit, &path, remote, mtime);
            Ok(true)
        };
        let guard = edit.write_guard(&self.journal, &self.pool).await.ok_or(Error::NotFound)?;
        if !guard.end_with(discard)? {
            return Err(Error::NotFound);
        }
        claim.finish(Some(file));
        self.schedule.remove(&edit);
        tracing::warn!("a pending file was discarded by the user");
        Ok(())
    }

    fn show_dropped(
        &self,
        tree: &mut Tree,
        edit: &Arc<Edit>,
        path: &PlainPath,
        remote: Remote,
        mtime: Option<OffsetDateTime>,
    ) {
        let Some(ino) = edit.ino() else { return };
        if let Ok(file) = tree.file_mut(ino)
            && file.edit.as_ref().is_some_and(|now| Arc::ptr_eq(now, edit))
        {
            file.edit = None;
            file.epoch += 1;
            if let Remote::Own(version, len) = remote {
                (file.version, file.len, file.mtime) = (Some(version), Len::Known(len), mtime.or(file.mtime));
                return;
            }
            (file.version, file.len) = (None, Len::Known(0));
        }
        let Some((parent, name)) = path.split() else { return };
        if let Some(parent) = tree.find(&parent)
            && tree.child(parent, name).is_ok_and(|child| child == Some(ino))
        {
            tree.remove(parent, name);
            revalidate(tree, parent);
        }
    }

    /// Prevents the commits of a file from being carried out while the claim lives.
    fn claim_puts(&self, file: FileNo) -> Result<Claim<'_>, Error> {
        let mut ledger = self.journal.ledger();
        let ops: Vec<_> = put_of(&ledger, file).collect();
        if ops.iter().any(|op| self.schedule.is_running(*op)) {
            return Err(Error::NotPermitted(BUSY));
        }
        for op in &ops {
            ledger.queue_mut().hold(*op);
            self.schedule.op_started(*op);
        }
        Ok(Claim { sync: self, ops })
    }

    /// Undoes a change of names.
    fn drop_change(&self, op: OpNo) -> Result<(), Error> {
        let what = self.journal.ledger().queue().get(op).cloned().ok_or(Error::NotFound)?;
        let mut tree = lock(&self.tree);
        // An entry that returns needs a free name, in the table too.
        let place = match &what {
            QueuedOp::Rename { from, .. } | QueuedOp::RenameDirectory { from, .. } => {
                Some(free_place(&mut tree, from)?)
            }
            _ => None,
        };
        let (_, undone) = self.journal.transact(Purpose::Relief, |ledger| self.undo(ledger, &tree, op, &what))?;
        match (&what, place) {
            (QueuedOp::Rename { from, to, file, .. }, Some(place)) => {
                restore(&mut tree, place, from, to, |node| node.as_file().is_ok_and(|at| at.file == Some(*file)))?;
            }
            (QueuedOp::RenameDirectory { from, to }, Some(place)) => {
                restore(&mut tree, place, from, to, Node::is_directory)?;
            }
            (QueuedOp::Delete { path, .. }, _) => {
                if let Some((parent, _)) = path.split() {
                    revalidate_above(&mut tree, &parent);
                }
            }
            _ => {}
        }
        drop(tree);
        for (op, file) in undone {
            self.schedule.op_finished(op, file);
            file.into_iter().filter_map(|file| self.schedule.edit(file)).for_each(|edit| self.schedule.touch(&edit));
        }
        tracing::warn!("a pending change of names was discarded by the user");
        Ok(())
    }

    /// Returns the entries that undo an operation, and the operations that leave the queue with it.
    fn undo(&self, ledger: &Ledger, tree: &Tree, op: OpNo, what: &QueuedOp) -> Result<(Vec<Entry>, Vec<Left>), Error> {
        if ledger.queue().get(op) != Some(what) {
            return Err(Error::NotFound);
        }
        if self.schedule.is_running(op) {
            return Err(Error::NotPermitted(BUSY));
        }
        let mut left = self.undone_with(ledger, op, what)?;
        let mut entries: Vec<_> = left.iter().map(|(op, _)| Entry::Finish { op: *op }).collect();
        match what {
            QueuedOp::Delete { file, path } => {
                if ledger.files_within(path).next().is_some() || ledger.has_directory(path) {
                    return Err(Error::NotPermitted("its name is taken again"));
                }
                let Some(record) = ledger.file(*file) else { return Err(Error::NotFound) };
                if record.draft.is_some() {
                    return Err(Error::NotPermitted("the removed file is still open"));
                }
                // The content that the remote will have under this name depends on the operations before this one.
                let earlier = ledger.queue().of_file(*file).any(|(no, _)| no != op);
                if earlier && !is_own(record.remote) {
                    return Err(Error::NotPermitted("an earlier change of this file isn't done yet"));
                }
                entries.push(Entry::Move { file: *file, path: Some(path.clone()) });
            }
            QueuedOp::Rename { file, from, to, .. } => {
                check_free(ledger, from)?;
                if ledger.file(*file).and_then(|record| record.path.as_ref()) != Some(to) {
                    return Err(Error::NotPermitted(LATER));
                }
                entries.push(Entry::Move { file: *file, path: Some(from.clone()) });
            }
            QueuedOp::RenameDirectory { from, to } => {
                check_free(ledger, from)?;
                entries.extend(directory_back(ledger, tree, from, to));
                entries.extend(move_unconfirmed(ledger, to, from));
            }
            QueuedOp::Put { .. } | QueuedOp::RemoveDirectory { .. } => return Err(Error::NotFound),
        }
        entries.push(Entry::Finish { op });
        left.push((op, None));
        Ok((entries, left))
    }

    /// Returns the later operations on the same paths that are undone together with this one: commits of files that
    /// move back, which are queued again, and the hiding of directories. Any other later operation depends on this
    /// one, which is an error.
    fn undone_with(&self, ledger: &Ledger, op: OpNo, what: &QueuedOp) -> Result<Vec<Left>, Error> {
        let later: BTreeSet<OpNo> = what
            .paths()
            .flat_map(|path| ledger.queue().overlapping(path))
            .map(|(no, _)| no)
            .filter(|no| *no > op)
            .collect();
        let mut left = Vec::new();
        for no in later {
            let moves_back = |path: &PlainPath| match what {
                QueuedOp::Rename { to, .. } | QueuedOp::RenameDirectory { to, .. } => path.is_within(to),
                _ => false,
            };
            match ledger.queue().get(no) {
                Some(QueuedOp::RemoveDirectory { path })
                    if what.paths().next().is_some_and(|at| at.is_within(path)) =>
                {
                    left.push((no, None));
                }
                Some(QueuedOp::Put { file, path, .. }) if moves_back(path) && !self.schedule.is_running(no) => {
                    left.push((no, Some(*file)));
                }
                _ => return Err(Error::NotPermitted(LATER)),
            }
        }
        Ok(left)
    }
}

/// An operation that left the queue, and the file whose commit it was.
type Left = (OpNo, Option<FileNo>);

/// Sorts changes into an order in which all of them can be discarded: contents first, then changes of names, newest
/// first.
pub fn drop_order(numbers: &mut [PendingNo]) {
    numbers.sort_unstable_by_key(|number| match number {
        PendingNo::File(_) => (0, 0),
        PendingNo::Change(op) => (1, u64::MAX - op),
    });
}

/// Operations that aren't carried out while this value lives.
struct Claim<'a> {
    sync: &'a Sync,
    ops: Vec<OpNo>,
}

impl Claim<'_> {
    /// Records that the operations have left the queue.
    fn finish(mut self, file: Option<FileNo>) {
        self.ops.drain(..).for_each(|op| self.sync.schedule.op_finished(op, file));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.ops.iter().for_each(|op| self.sync.schedule.op_again(*op));
    }
}

fn put_of(ledger: &Ledger, file: FileNo) -> impl Iterator<Item = OpNo> {
    let of_file = ledger.queue().of_file(file);
    of_file.filter(move |(_, what)| what.put_file() == Some(file)).map(|(op, _)| op)
}

fn is_own(remote: Remote) -> bool {
    matches!(remote, Remote::Own(..))
}

fn to_text(time: OffsetDateTime) -> Option<String> {
    time.replace_nanosecond(0).ok()?.format(&Rfc3339).ok()
}

/// Returns the entry that keeps a directory whose last entry is removed. It stays until it is removed by name.
fn emptied_directory(ledger: &Ledger, tree: &Tree, path: &PlainPath) -> Option<Entry> {
    let (parent, name) = path.split()?;
    let directory = tree.find(&parent).and_then(|ino| tree.directory(ino).ok());
    let empties = directory.is_none_or(|directory| directory.children.keys().all(|child| child == name));
    (empties && !parent.is_root() && !ledger.has_directory(&parent)).then_some(Entry::Directory { path: parent })
}

fn check_free(ledger: &Ledger, from: &PlainPath) -> Result<(), Error> {
    let taken = ledger.files_within(from).next().is_some() || ledger.directories_within(from).next().is_some();
    if taken { Err(Error::NotPermitted("its old name is taken")) } else { Ok(()) }
}

/// Returns the directory that contains `path`, and creates it if the table doesn't have it. Fails if the name is
/// taken there.
fn free_place(tree: &mut Tree, path: &PlainPath) -> Result<Ino, Error> {
    let (parent, name) = path.split().ok_or(Error::Invalid("the root has no other name"))?;
    let mut at = Ino::ROOT;
    for name in parent.as_str().split('/').filter(|name| !name.is_empty()) {
        at = match tree.child(at, name)? {
            Some(child) => child,
            None => tree.insert(at, name, Node::directory(false))?,
        };
    }
    if tree.child(at, name)?.is_some() {
        return Err(Error::NotPermitted("its old name is taken"));
    }
    Ok(at)
}

/// Moves the inode at `to` back to `from`, whose directory is `place`.
fn restore(
    tree: &mut Tree,
    place: Ino,
    from: &PlainPath,
    to: &PlainPath,
    is_it: impl Fn(&Node) -> bool,
) -> Result<(), Error> {
    let (Some((_, name)), Some((to_parent, _))) = (from.split(), to.split()) else { return Ok(()) };
    let ino = tree.find(to).filter(|ino| tree.node(*ino).is_ok_and(&is_it));
    if let Some(ino) = ino {
        tree.relocate(ino, place, name)?;
        tree.below(ino).into_iter().chain([ino]).for_each(|ino| revalidate(tree, ino));
    }
    revalidate_above(tree, &to_parent);
    revalidate(tree, place);
    Ok(())
}

/// Invalidates the listing of a directory, so that it is listed again before it is shown.
fn revalidate(tree: &mut Tree, directory: Ino) {
    if let Ok(directory) = tree.directory_mut(directory) {
        directory.loaded = None;
    }
}

/// Invalidates the listings of a directory, which may not be in the table, and of all directories above it, which may
/// have to show it again.
fn revalidate_above(tree: &mut Tree, path: &PlainPath) {
    let mut above = Some(path.clone());
    while let Some(at) = above {
        if let Some(ino) = tree.find(&at) {
            revalidate(tree, ino);
        }
        above = at.split().map(|(parent, _)| parent);
    }
}

/// Returns the entries that move all records below `to` back to `from`.
fn directory_back(ledger: &Ledger, tree: &Tree, from: &PlainPath, to: &PlainPath) -> Vec<Entry> {
    let back = |path: &PlainPath| path.rebase(to, from);
    let files = ledger.files_within(to).filter_map(|(file, record)| {
        let path = back(record.path.as_ref()?)?;
        Some(Entry::Move { file, path: Some(path) })
    });
    let shows = tree.find(to).and_then(|ino| tree.directory(ino).ok());
    let is_empty = shows.is_none_or(|directory| directory.children.is_empty());
    let directories = ledger.directories_within(to).flat_map(|path| {
        let kept = back(path).filter(|_| path != to || is_empty).map(|path| Entry::Directory { path });
        [Entry::ForgetDirectory { path: path.clone() }].into_iter().chain(kept)
    });
    directories.chain(files).collect()
}
