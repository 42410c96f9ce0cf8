//! What is pending, one by one: listing it, trying it again, reading it, giving it up.
//!
//! Nothing pending is ever dropped without the user's word; this is where the user gives it. A file that is given up goes back to what the
//! source has. A change of names is undone only where that has one meaning: it isn't under way, and nothing that was done later builds on it.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, Ino, OnConflict, OpNo};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::{Entry, Ledger, QueuedOp, Remote};
use crate::fs::lock::lock;
use crate::fs::sync::Sync;
use crate::fs::sync::readback::notes_moved;
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

/// Names something pending for as long as it is. Files come before changes of names, older before newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingNo {
    /// A file's content.
    File(u64),
    /// A change of names.
    Change(u64),
}

/// What is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingKind {
    /// The content of a file.
    File,
    /// A file was removed here.
    Delete,
    /// A file was renamed here.
    Rename,
    /// A directory was renamed here.
    RenameDirectory,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PendingState {
    /// A file with changes that no version holds yet.
    Dirty,
    /// Its version is fixed, and not uploaded yet.
    Frozen,
    /// Its version is in the store, and under no name yet.
    Uploaded,
    /// A change of names that waits for its turn.
    Queued,
    /// The source is being changed right now.
    Committing,
    /// It failed, and is tried again by itself.
    Retrying,
    /// It was refused for good, or waits for its user.
    Parked,
}

/// Something that isn't at the source yet. Paths are plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its number.
    pub number: PendingNo,
    /// What it is.
    pub kind: PendingKind,
    /// The file, or the old name.
    pub path: String,
    /// The new name.
    pub to: Option<String>,
    /// Size of a file.
    pub bytes: Option<u64>,
    /// How far it is.
    pub state: PendingState,
    /// Since when, RFC 3339; of what an earlier daemon left, since this one started.
    pub since: Option<String>,
    /// Attempts that failed.
    pub attempts: u32,
    /// Why the last one did.
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

/// A pending file, to be read as it is now.
pub struct PendingFile {
    edit: Arc<Edit>,
    generation: u64,
    len: u64,
}

impl PendingFile {
    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When it was changed last.
    pub fn mtime(&self) -> OffsetDateTime {
        self.edit.mtime()
    }

    /// The bytes `[offset, offset + len)`, cut at the end. An error where the file has changed since it was opened.
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
    /// Lists pending changes in the order of their numbers: at most `limit` of those after `after`.
    pub(crate) fn pending(&self, after: Option<PendingNo>, limit: usize) -> Vec<Pending> {
        let mut pending = Vec::new();
        let mut file = match after {
            None => Some(None),
            Some(PendingNo::File(file)) => Some(Some(FileNo(file))),
            Some(PendingNo::Change(_)) => None,
        };
        while let Some(after) = file.filter(|_| pending.len() < limit) {
            // Read before the ledger is locked: an edit locks its own state before the journal.
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
        let standing = self.schedule.file_status(file, generation, put_of(ledger, file).next());
        let since = OffsetDateTime::now_utc().checked_sub(content.age.try_into().ok()?);
        Some(Pending {
            number: PendingNo::File(file.0),
            kind: PendingKind::File,
            path: record.path.as_ref()?.as_str().to_owned(),
            to: None,
            bytes: Some(content.len),
            state: standing.state(fixed),
            since: since.and_then(to_text),
            attempts: standing.attempts(),
            error: standing.error(),
        })
    }

    fn describe_change(&self, ledger: &crate::fs::journal::file::LedgerGuard<'_>, op: OpNo) -> Option<Pending> {
        let (kind, path, to) = match ledger.queue().get(op)? {
            QueuedOp::Delete { path, .. } => (PendingKind::Delete, path, None),
            QueuedOp::Rename { from, to, .. } => (PendingKind::Rename, from, Some(to)),
            QueuedOp::RenameDirectory { from, to } => (PendingKind::RenameDirectory, from, Some(to)),
            QueuedOp::Put { .. } | QueuedOp::RemoveDirectory { .. } => return None,
        };
        let standing = self.schedule.op_status(op);
        Some(Pending {
            number: PendingNo::Change(op.0),
            kind,
            path: path.as_str().to_owned(),
            to: to.map(|to| to.as_str().to_owned()),
            bytes: None,
            state: standing.state(PendingState::Queued),
            since: ledger.queued_since(op).and_then(to_text),
            attempts: standing.attempts(),
            error: standing.error(),
        })
    }

    /// Tries these again at once, whatever kept them; where they meet a conflict, `wish` goes before the mount's policy. Says how many of them
    /// are pending.
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

    /// Opens a pending file for reading. Needs no network for what is local: all that was written here, and what was fetched beside it.
    pub(crate) fn open_pending(&self, number: PendingNo) -> Result<PendingFile, Error> {
        let PendingNo::File(file) = number else { return Err(Error::NotPermitted("it has no content of its own")) };
        let edit = self.schedule.edit(FileNo(file)).filter(|edit| edit.is_dirty()).ok_or(Error::NotFound)?;
        Ok(PendingFile { generation: edit.generation(), len: edit.len(), edit })
    }

    /// Gives up what is pending, in this order; `drop_order` is a good one. One answer each: why it was not given up, if so.
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
        // Whoever asked may pull the plug now, and what was given up doesn't come back.
        self.journal.written(self.journal.last()).await?;
        Ok(answers)
    }

    /// A file goes back to what the source has, or goes away.
    async fn drop_content(&self, file: FileNo) -> Result<(), Error> {
        let edit = self.schedule.edit(file).filter(|edit| edit.is_dirty()).ok_or(Error::NotFound)?;
        let claim = self.claim_puts(file)?;
        let give_up = |end: &mut dyn FnMut(Vec<Entry>) -> Result<(), Error>| {
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
        if !edit.end_with(&self.journal, &self.pool, give_up).await? {
            return Err(Error::NotFound);
        }
        claim.finish(Some(file));
        self.schedule.remove(&edit);
        tracing::warn!("a pending file was given up by the user");
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
            look_again(tree, parent);
        }
    }

    /// Keeps the commits of a file from being carried out meanwhile.
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

    /// Takes a change of names back.
    fn drop_change(&self, op: OpNo) -> Result<(), Error> {
        let what = self.journal.ledger().queue().get(op).cloned().ok_or(Error::NotFound)?;
        let mut tree = lock(&self.tree);
        // What goes back needs a place to go to, in the table too.
        let place = match &what {
            QueuedOp::Rename { from, .. } | QueuedOp::RenameDirectory { from, .. } => {
                Some(free_place(&mut tree, from)?)
            }
            _ => None,
        };
        let (_, undone) = self.journal.transact(Purpose::Relief, |ledger| self.undo(ledger, &tree, op, &what))?;
        match (&what, place) {
            (QueuedOp::Rename { from, to, file, .. }, Some(place)) => {
                put_back(&mut tree, place, from, to, |node| node.as_file().is_ok_and(|at| at.file == Some(*file)))?;
            }
            (QueuedOp::RenameDirectory { from, to }, Some(place)) => {
                put_back(&mut tree, place, from, to, Node::is_directory)?;
            }
            (QueuedOp::Delete { path, .. }, _) => {
                if let Some((parent, _)) = path.split() {
                    look_again_above(&mut tree, &parent);
                }
            }
            _ => {}
        }
        drop(tree);
        for (op, file) in undone {
            self.schedule.op_finished(op, file);
            file.into_iter().filter_map(|file| self.schedule.edit(file)).for_each(|edit| self.schedule.touch(&edit));
        }
        tracing::warn!("a pending change of names was given up by the user");
        Ok(())
    }

    /// Entries that take an operation back, and the operations that leave the queue by them.
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
                // What the source has under this name by then is for the operations before this one to say.
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
                entries.extend(notes_moved(ledger, to, from));
            }
            QueuedOp::Put { .. } | QueuedOp::RemoveDirectory { .. } => return Err(Error::NotFound),
        }
        entries.push(Entry::Finish { op });
        left.push((op, None));
        Ok((entries, left))
    }

    /// Later operations on the same paths that go with this one: commits of what moves back, which are queued again, and the hiding of
    /// directories. Anything else is a later change that builds on it.
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

/// The order in which everything can be given up at once: contents first, then what was done last.
pub fn drop_order(numbers: &mut [PendingNo]) {
    numbers.sort_unstable_by_key(|number| match number {
        PendingNo::File(_) => (0, 0),
        PendingNo::Change(op) => (1, u64::MAX - op),
    });
}

/// Operations kept from being carried out while this lives.
struct Claim<'a> {
    sync: &'a Sync,
    ops: Vec<OpNo>,
}

impl Claim<'_> {
    /// They have left the queue.
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

/// A directory whose last entry goes stays until it is removed by name.
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

/// The directory that `path` lies in, made where the table doesn't have it; an error where the name is taken there.
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

/// Moves what is at `to` back to `from`, whose directory is `place`.
fn put_back(
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
        tree.below(ino).into_iter().chain([ino]).for_each(|ino| look_again(tree, ino));
    }
    look_again_above(tree, &to_parent);
    look_again(tree, place);
    Ok(())
}

/// Has a directory listed anew before it is shown again.
fn look_again(tree: &mut Tree, directory: Ino) {
    if let Ok(directory) = tree.directory_mut(directory) {
        directory.loaded = None;
    }
}

/// The same for one that may not be in the table, and for those above it, which may have to show it again.
fn look_again_above(tree: &mut Tree, path: &PlainPath) {
    let mut above = Some(path.clone());
    while let Some(at) = above {
        if let Some(ino) = tree.find(&at) {
            look_again(tree, ino);
        }
        above = at.split().map(|(parent, _)| parent);
    }
}

/// Entries that move all that the ledger knows below `to` back to `from`.
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
