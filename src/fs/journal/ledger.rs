//! The ledger: all changes that the remote doesn't have yet. It holds files with local content, directories that
//! exist on this machine only, and the queue of operations on names.
//!
//! The ledger is the pure state machine of the journal. Its state is the result of applying all entries in order,
//! both live and after a crash. Compacting the journal means writing the ledger's state as entries. The ledger does
//! no I/O and knows no inodes. [`crate::fs::journal::file`] owns one behind its lock.
//!
//! Operations are queued in the order of the kernel's requests. They refer to files by number, not by version. The
//! version that must be at a path before an operation ([`Remote`]) is read from the ledger when the operation is
//! carried out. So an operation stays correct if an earlier one in the queue changes that version. An operation waits
//! for every earlier one whose paths overlap its own, and for no other.

use crate::fs::ids::FileNo;
use crate::fs::ids::OpNo;
use crate::fs::ids::Special;
use crate::fs::journal::queue::{PathIndex, PathKey, Queue};
use crate::fs::tree::queued::{LocalChild, Moved, QueuedChanges, Walk};
use crate::store::Len;
use crate::store::{
    Binding, ContentId, Delta, DraftState, Expect, Frozen, PlainPath, RecordRef, SlotId, Stored, Version,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use time::OffsetDateTime;

/// The content that the remote has at a file's path, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// No object.
    Absent,
    /// This file's content, with its plaintext size.
    Own(Version, u64),
    /// The content of a file that this one replaced on this machine. It may be overwritten, but must not be moved
    /// with this file.
    Replaced(ContentId),
    /// The content of a file that was removed on this machine and whose header could not be read, so that it is
    /// damaged or may be. It may be removed, but must not be overwritten.
    Unreadable(ContentId),
    /// An object without a content id, which can't be compared.
    Unhashed,
}

impl Remote {
    /// Returns the precondition of a change.
    pub(crate) fn expect(&self) -> Expect {
        match self {
            Self::Absent => Expect::Absent,
            Self::Own(version, _) => Expect::Is(version.id),
            Self::Replaced(id) | Self::Unreadable(id) => Expect::Is(*id),
            Self::Unhashed => Expect::Any,
        }
    }

    /// Returns the content from the view of a file that takes the path over.
    pub(crate) fn replaced(&self) -> Self {
        match self {
            Self::Own(version, _) => Self::Replaced(version.id),
            other => *other,
        }
    }
}

/// A version that was frozen and possibly uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrozenRecord {
    pub(crate) generation: u64,
    pub(crate) frozen: Arc<Frozen>,
    pub(crate) mtime: OffsetDateTime,
    pub(crate) stored: Option<Stored>,
}

/// A file's local content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DraftRecord {
    pub(crate) state: DraftState,
    /// A counter of changes. 0 means that the content equals the version that it was started from.
    pub(crate) generation: u64,
    /// The newest generation that is committed.
    pub(crate) committed: u64,
    pub(crate) mtime: OffsetDateTime,
    pub(crate) frozen: Option<FrozenRecord>,
}

impl DraftRecord {
    /// Returns true if the remote doesn't have the newest generation yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.generation > self.committed
    }
}

/// A file that differs from the remote, or that a queued operation names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// The present path. `None` if the file has no name any more.
    pub(crate) path: Option<PlainPath>,
    /// The content that the remote will have at that path once all queued operations of this file are done.
    pub(crate) remote: Remote,
    pub(crate) mtime: Option<OffsetDateTime>,
    pub(crate) draft: Option<DraftRecord>,
}

/// A queued operation. Its paths are those at the time when it was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueuedOp {
    /// Commit the uploaded generation at the path.
    Put { file: FileNo, generation: u64, path: PlainPath },
    /// Remove the file.
    Delete { file: FileNo, path: PlainPath },
    /// Move the file, and replace `replaced`.
    Rename { file: FileNo, from: PlainPath, to: PlainPath, replaced: Option<FileNo> },
    /// Move a whole directory.
    RenameDirectory { from: PlainPath, to: PlainPath },
    /// Hide the directory until the operations below it are done. The remote isn't changed.
    RemoveDirectory { path: PlainPath },
}

impl QueuedOp {
    /// Returns the paths that the operation concerns.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PlainPath> {
        let (a, b) = match self {
            Self::Put { path, .. } | Self::Delete { path, .. } | Self::RemoveDirectory { path } => (path, None),
            Self::Rename { from, to, .. } | Self::RenameDirectory { from, to } => (from, Some(to)),
        };
        std::iter::once(a).chain(b)
    }

    /// Returns the path at or below which the remote has new entries after the operation.
    pub(crate) fn fills(&self) -> Option<&PlainPath> {
        match self {
            Self::Put { path, .. } => Some(path),
            Self::Rename { to, .. } | Self::RenameDirectory { to, .. } => Some(to),
            Self::Delete { .. } | Self::RemoveDirectory { .. } => None,
        }
    }

    /// Returns true if the operation changes names: a removal or a rename.
    pub(crate) fn changes_names(&self) -> bool {
        !matches!(self, Self::Put { .. } | Self::RemoveDirectory { .. })
    }

    /// Returns the file that the operation commits, if it is a commit.
    pub(crate) fn put_file(&self) -> Option<FileNo> {
        match self {
            Self::Put { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// Returns the files that the operation names.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileNo> {
        let (a, b) = match self {
            Self::Put { file, .. } | Self::Delete { file, .. } => (Some(*file), None),
            Self::Rename { file, replaced, .. } => (Some(*file), *replaced),
            Self::RenameDirectory { .. } | Self::RemoveDirectory { .. } => (None, None),
        };
        a.into_iter().chain(b)
    }
}

/// One change of the ledger. A journal record holds one or more, which are applied all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A file was added to the ledger.
    Track { file: FileNo, path: Option<PlainPath>, remote: Remote, mtime: Option<OffsetDateTime> },
    /// Local content was started. It replaces earlier local content.
    Begin { file: FileNo, state: DraftState, generation: u64, mtime: OffsetDateTime },
    /// Local content changed. `checksums` belong to `delta.placed`, in order.
    Extend { file: FileNo, generation: u64, mtime: OffsetDateTime, delta: Option<Delta>, checksums: Vec<u32> },
    /// A version was frozen.
    Freeze { file: FileNo, generation: u64, mtime: OffsetDateTime, frozen: Arc<Frozen> },
    /// The frozen version was uploaded.
    Uploaded { file: FileNo, generation: u64, stored: Stored },
    /// The local content isn't needed any more.
    End { file: FileNo },
    /// The file has another path, or none, without an operation at the remote.
    Move { file: FileNo, path: Option<PlainPath> },
    /// The content that the remote has at the file's path.
    Remote { file: FileNo, remote: Remote },
    /// A directory exists on this machine, whatever the remote has.
    Directory { path: PlainPath },
    /// The directory doesn't have to be recorded any more.
    ForgetDirectory { path: PlainPath },
    /// A link, a pipe, a socket or a device was created.
    Special { path: PlainPath, special: Special },
    /// The special file was removed.
    ForgetSpecial { path: PlainPath },
    /// An operation was queued.
    Queue { op: OpNo, what: QueuedOp },
    /// The operation is done, or was discarded.
    Finish { op: OpNo },
    /// The remote has this generation now.
    Committed { file: FileNo, generation: u64, version: Version },
    /// Numbers up to these were used. This is the first entry of a compacted journal.
    Numbers { file: u64, op: u64 },
    /// The commit that this operation made has to be read back.
    Unconfirmed { op: OpNo, commit: Unconfirmed },
    /// The commit was read back, or doesn't need it.
    Confirmed { op: OpNo },
}

/// A commit that wasn't read back yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    pub(crate) path: PlainPath,
    pub(crate) version: Version,
    /// Plaintext size, if it is known. Otherwise it is requested if the version has to be committed again.
    pub(crate) len: Option<u64>,
    pub(crate) mtime: OffsetDateTime,
    /// True if the path had another version before, or was seen with another version since. Another client may then
    /// have removed that version and hit ours without having seen it.
    pub(crate) replaced: bool,
}

/// The error for an entry that doesn't fit the state: a programming error, or a journal that isn't ours.
#[derive(Debug, thiserror::Error)]
#[error("an entry refers to {0} that is not there")]
pub(crate) struct InvalidEntry(&'static str);

/// The number of entries that name a slot, and the checksum of its bytes.
#[derive(Clone, Copy, Debug, Default)]
struct SlotUse {
    count: u32,
    checksum: u32,
}

/// Commits that have to be read back. A path may have several: a version that another client overwrote, and the one
/// that this mount made of the new version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Commits {
    by_op: BTreeMap<OpNo, Unconfirmed>,
    places: BTreeSet<(PathKey, OpNo)>,
}

impl Commits {
    /// Returns the number of commits.
    pub(crate) fn len(&self) -> usize {
        self.by_op.len()
    }

    /// Returns the commit that an operation made.
    pub(crate) fn of(&self, op: OpNo) -> Option<&Unconfirmed> {
        self.by_op.get(&op)
    }

    /// Returns all commits.
    pub(crate) fn all(&self) -> impl Iterator<Item = (OpNo, &Unconfirmed)> {
        self.by_op.iter().map(|(op, commit)| (*op, commit))
    }

    /// Returns the commits at a path.
    pub(crate) fn at(&self, path: &PlainPath) -> impl Iterator<Item = (OpNo, &Unconfirmed)> {
        let key = PathKey::new(path);
        let at = self.places.range((key.clone(), OpNo(0))..=(key, OpNo(u64::MAX)));
        at.filter_map(|(_, op)| Some((*op, self.by_op.get(op)?)))
    }

    /// Returns the commits at or below a path.
    pub(crate) fn within(&self, path: &PlainPath) -> impl Iterator<Item = (OpNo, &Unconfirmed)> {
        let below = PathKey::new(path).below();
        let below = self.places.range((below.start, OpNo(0))..(below.end, OpNo(0)));
        self.at(path).chain(below.filter_map(|(_, op)| Some((*op, self.by_op.get(op)?))))
    }

    fn insert(&mut self, op: OpNo, commit: Unconfirmed) {
        self.remove(op);
        self.places.insert((PathKey::new(&commit.path), op));
        self.by_op.insert(op, commit);
    }

    fn remove(&mut self, op: OpNo) {
        if let Some(commit) = self.by_op.remove(&op) {
            self.places.remove(&(PathKey::new(&commit.path), op));
        }
    }

    /// Records that a change of ours will be compared with `version` at the path, so that the commit of this version
    /// needn't be read back. Every other version of ours at the path was overwritten. It must not be taken for a
    /// version that another client removed on purpose, so it is marked as one that replaced something.
    fn supersede(&mut self, path: &PlainPath, version: ContentId) {
        for (op, commit) in self.at(path).map(|(op, commit)| (op, commit.clone())).collect::<Vec<_>>() {
            match commit.version.id == version {
                true => self.remove(op),
                false => self.insert(op, Unconfirmed { replaced: true, ..commit }),
            }
        }
    }

    fn rebase(&mut self, from: &PlainPath, to: &PlainPath) {
        let below = self.within(from).filter(|(_, commit)| commit.path != *from);
        let moved = below.map(|(op, commit)| (op, commit.clone()));
        for (op, commit) in moved.collect::<Vec<_>>() {
            if let Some(path) = commit.path.rebase(from, to) {
                self.insert(op, Unconfirmed { path, ..commit });
            }
        }
    }
}

/// Operations that finished during a listing, with the stamp at that time. Such a listing may show the state before
/// or after them. They aren't in the journal.
#[derive(Default)]
struct Finished {
    ops: HashMap<OpNo, (u64, QueuedOp)>,
    places: PathIndex,
    /// All operations, in the order in which they finished.
    order: VecDeque<(u64, OpNo)>,
}

impl Finished {
    fn add(&mut self, op: OpNo, stamp: u64, what: QueuedOp) {
        self.places.insert(op, &what);
        self.ops.insert(op, (stamp, what));
        self.order.push_back((stamp, op));
    }

    fn get(&self, op: OpNo) -> Option<&QueuedOp> {
        self.ops.get(&op).map(|(_, what)| what)
    }

    /// Returns the operations that finished since the stamp `since` and overlap a path.
    fn overlapping(&self, path: &PlainPath, since: u64) -> impl Iterator<Item = OpNo> {
        let all = self.places.at_or_above(path).chain(self.places.below(path));
        all.filter(move |op| self.ops.get(op).is_some_and(|(stamp, _)| *stamp >= since))
    }

    /// Drops operations that finished before `stamp`. No listing in progress needs them.
    fn forget_before(&mut self, stamp: u64) {
        while let Some((_, op)) = self.order.front().copied().filter(|(at, _)| *at < stamp) {
            self.order.pop_front();
            if let Some((_, what)) = self.ops.remove(&op) {
                self.places.remove(op, &what);
            }
        }
    }
}

/// The state of pending changes. See the module.
#[derive(Default)]
pub(crate) struct Ledger {
    files: BTreeMap<FileNo, FileRecord>,
    /// Files that have a path, by path.
    places: BTreeMap<PathKey, FileNo>,
    directories: BTreeMap<PathKey, PlainPath>,
    specials: BTreeMap<PathKey, (PlainPath, Special)>,
    queue: Queue,
    slots: HashMap<SlotId, SlotUse>,
    /// Slots that lost their last entry since the last [`Ledger::take_unnamed`].
    unnamed: Vec<SlotId>,
    last_file: u64,
    last_op: u64,
    unconfirmed: Commits,
    finished: Finished,
    stamp: u64,
    listings: BTreeMap<u64, usize>,
}

impl Ledger {
    /// Returns the number of a new file.
    pub(crate) fn new_file(&mut self) -> FileNo {
        self.last_file += 1;
        FileNo(self.last_file)
    }

    /// Returns the number of a new operation.
    pub(crate) fn new_op(&mut self) -> OpNo {
        self.last_op += 1;
        OpNo(self.last_op)
    }

    /// Returns a file's record.
    pub(crate) fn file(&self, file: FileNo) -> Option<&FileRecord> {
        self.files.get(&file)
    }

    /// Returns all files.
    pub(crate) fn files(&self) -> impl Iterator<Item = (FileNo, &FileRecord)> {
        self.files.iter().map(|(file, record)| (*file, record))
    }

    /// Returns the version of a file that was frozen last, while it isn't committed.
    pub(crate) fn frozen(&self, file: FileNo) -> Option<&FrozenRecord> {
        self.file(file)?.draft.as_ref()?.frozen.as_ref()
    }

    /// Returns the queue of operations.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Returns the queue for taking operations from it. Only entries may add or remove operations.
    pub(crate) fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Returns the files that have a path at or below this one.
    pub(crate) fn files_within(&self, path: &PlainPath) -> impl Iterator<Item = (FileNo, &FileRecord)> {
        let key = PathKey::new(path);
        let below = self.places.range(key.below()).map(|(_, file)| *file);
        let all = self.places.get(&key).copied().into_iter().chain(below);
        all.filter_map(|file| Some((file, self.files.get(&file)?)))
    }

    /// Returns the commits that weren't read back yet.
    pub(crate) fn unconfirmed(&self) -> &Commits {
        &self.unconfirmed
    }

    /// Returns true if an operation in the queue names the file.
    pub(crate) fn is_mentioned(&self, file: FileNo) -> bool {
        self.queue.of_file(file).next().is_some()
    }

    /// Returns true if a directory is recorded as existing on this machine.
    pub(crate) fn has_directory(&self, path: &PlainPath) -> bool {
        self.directories.contains_key(&PathKey::new(path))
    }

    /// Returns true if no file, operation or slot is recorded.
    pub(crate) fn is_blank(&self) -> bool {
        self.files.is_empty() && self.queue.is_empty() && self.slots.is_empty()
    }

    /// Returns true if an operation that overlaps the path finished since the read of the remote with the stamp
    /// `since` began. That read must still be in progress.
    pub(crate) fn any_finished(&self, path: &PlainPath, since: u64) -> bool {
        self.finished.overlapping(path, since).next().is_some()
    }

    /// Returns true if the queued rename of a directory will move something to the path at the remote.
    fn is_to_be_moved_to(&self, path: &PlainPath) -> bool {
        let brings = |what: &QueuedOp| matches!(what, QueuedOp::RenameDirectory { to, .. } if path.is_within(to));
        self.queue.overlapping(path).any(|(_, what)| brings(what))
    }

    /// Returns the special file at a path.
    pub(crate) fn special(&self, path: &PlainPath) -> Option<&Special> {
        self.specials.get(&PathKey::new(path)).map(|(_, special)| special)
    }

    /// Returns the special files below a path.
    pub(crate) fn specials_within(&self, path: &PlainPath) -> impl Iterator<Item = &(PlainPath, Special)> {
        self.specials.range(PathKey::new(path).below()).map(|(_, special)| special)
    }

    /// Returns the recorded directories at or below a path.
    pub(crate) fn directories_within(&self, path: &PlainPath) -> impl Iterator<Item = &PlainPath> {
        let key = PathKey::new(path);
        let below = self.directories.range(key.below()).map(|(_, path)| path);
        self.directories.get(&key).into_iter().chain(below)
    }

    /// Returns the slots in use, with the checksums of their bytes.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, u32)> {
        self.slots.iter().map(|(slot, used)| (*slot, used.checksum))
    }

    /// Returns the checksum of a slot in use.
    pub(crate) fn checksum(&self, slot: SlotId) -> Option<u32> {
        self.slots.get(&slot).map(|used| used.checksum)
    }

    /// Returns the slots that lost their last entry. They are free once the change that removed it is durable.
    pub(crate) fn take_unnamed(&mut self) -> Vec<SlotId> {
        std::mem::take(&mut self.unnamed)
    }

    /// Marks the beginning of a listing of the remote. Pass the stamp to [`Ledger::queued_changes`] and
    /// [`Ledger::end_listing`].
    pub(crate) fn begin_listing(&mut self) -> u64 {
        self.stamp += 1;
        *self.listings.entry(self.stamp).or_default() += 1;
        self.stamp
    }

    /// Marks the end of a listing that [`Ledger::begin_listing`] began.
    pub(crate) fn end_listing(&mut self, stamp: u64) {
        if let Some(count) = self.listings.get_mut(&stamp) {
            *count -= 1;
            if *count == 0 {
                self.listings.remove(&stamp);
            }
        }
        self.finished.forget_before(self.listings.keys().next().copied().unwrap_or(u64::MAX));
    }

    /// Returns the queued and local changes to merge into the listing of `directory` that began at `since`.
    pub(crate) fn queued_changes(&self, directory: &PlainPath, since: Option<u64>) -> QueuedChanges {
        let mut queued_changes = self.walk(directory, since.unwrap_or(u64::MAX)).finish();
        let key = PathKey::new(directory);
        add_children(&mut queued_changes, &key, &self.places, |file| LocalChild::File(*file));
        add_children(&mut queued_changes, &key, &self.specials, |_| LocalChild::Special);
        add_children(&mut queued_changes, &key, &self.directories, |_| LocalChild::Directory);
        queued_changes
    }

    /// Walks back from the newest operation to the oldest. Visits only operations that concern a path at which the
    /// directory's content was at that point: they name that path, one above it, or a child of it.
    fn walk(&self, directory: &PlainPath, since: u64) -> Walk {
        let mut walk = Walk::new(directory);
        let mut ahead = BTreeSet::new();
        self.add_around(directory, since, OpNo(u64::MAX), &mut ahead);
        while let Some(op) = ahead.pop_last() {
            let (what, is_queued) = match (self.queue.get(op), self.finished.get(op)) {
                (Some(what), _) => (what, true),
                (None, Some(what)) => (what, false),
                (None, None) => continue,
            };
            let moved = walk.step_back(what, is_queued);
            for Moved { filled, before } in moved {
                // An operation that fills such a path waits for earlier ones there.
                if self.queue.any_overlapping(&filled, |earlier| earlier < op) {
                    walk.is_stale(filled);
                }
                self.add_around(&before, since, op, &mut ahead);
            }
        }
        walk
    }

    fn add_around(&self, place: &PlainPath, since: u64, before: OpNo, ahead: &mut BTreeSet<OpNo>) {
        let queued = self.queue.around(place);
        ahead.extend(queued.chain(self.finished.overlapping(place, since)).filter(|op| *op < before));
    }

    /// Applies an entry. On an error, the ledger is unchanged.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Result<(), InvalidEntry> {
        match entry {
            Entry::Track { file, path, remote, mtime } => {
                self.last_file = self.last_file.max(file.0);
                let record = FileRecord { path: None, remote: *remote, mtime: *mtime, draft: None };
                self.files.insert(*file, record);
                self.place(*file, path.clone());
            }
            Entry::Begin { file, state, generation, mtime } => {
                if !self.files.contains_key(file) {
                    return Err(InvalidEntry("a file"));
                }
                self.end_draft(*file);
                for record in state.records.values() {
                    self.name_slot(record.slot, None);
                }
                let draft = DraftRecord {
                    state: state.clone(),
                    generation: *generation,
                    committed: 0,
                    mtime: *mtime,
                    frozen: None,
                };
                self.record(*file)?.draft = Some(draft);
            }
            Entry::Extend { file, generation, mtime, delta, checksums } => {
                let draft = self.draft(*file)?;
                draft.generation = *generation;
                draft.mtime = *mtime;
                if let Some(delta) = delta {
                    self.extend(*file, delta, checksums)?;
                }
            }
            Entry::Freeze { file, generation, mtime, frozen } => {
                self.draft(*file)?;
                frozen.records.iter().for_each(|slot| self.name_slot(*slot, None));
                let record =
                    FrozenRecord { generation: *generation, frozen: frozen.clone(), mtime: *mtime, stored: None };
                let old = self.draft(*file)?.frozen.replace(record);
                self.drop_frozen(old);
            }
            Entry::Uploaded { file, generation, stored } => {
                let frozen = self.draft(*file)?.frozen.as_mut().filter(|frozen| frozen.generation == *generation);
                frozen.ok_or(InvalidEntry("a frozen version"))?.stored = Some(*stored);
            }
            Entry::End { file } => {
                self.record(*file)?;
                self.end_draft(*file);
                self.collect(*file);
            }
            Entry::Move { file, path } => {
                self.record(*file)?;
                self.place(*file, path.clone());
            }
            Entry::Remote { file, remote } => self.record(*file)?.remote = *remote,
            Entry::Directory { path } => {
                self.directories.insert(PathKey::new(path), path.clone());
            }
            Entry::ForgetDirectory { path } => {
                self.directories.remove(&PathKey::new(path));
            }
            Entry::Special { path, special } => {
                self.specials.insert(PathKey::new(path), (path.clone(), special.clone()));
            }
            Entry::ForgetSpecial { path } => {
                self.specials.remove(&PathKey::new(path));
            }
            Entry::Queue { op, what } => self.enqueue(*op, what)?,
            Entry::Finish { op } => self.finish(*op)?,
            Entry::Committed { file, generation, version } => self.committed(*file, *generation, *version)?,
            Entry::Numbers { file, op } => {
                self.last_file = self.last_file.max(*file);
                self.last_op = self.last_op.max(*op);
            }
            Entry::Unconfirmed { op, commit } => {
                self.last_op = self.last_op.max(op.0);
                self.unconfirmed.insert(*op, commit.clone());
            }
            Entry::Confirmed { op } => self.unconfirmed.remove(*op),
        }
        Ok(())
    }

    fn record(&mut self, file: FileNo) -> Result<&mut FileRecord, InvalidEntry> {
        self.files.get_mut(&file).ok_or(InvalidEntry("a file"))
    }

    fn draft(&mut self, file: FileNo) -> Result<&mut DraftRecord, InvalidEntry> {
        self.record(file)?.draft.as_mut().ok_or(InvalidEntry("a draft"))
    }

    /// Sets or removes a file's path.
    fn place(&mut self, file: FileNo, path: Option<PlainPath>) {
        let Some(record) = self.files.get_mut(&file) else { return };
        if let Some(old) = std::mem::replace(&mut record.path, path.clone()) {
            let key = PathKey::new(&old);
            if self.places.get(&key) == Some(&file) {
                self.places.remove(&key);
            }
        }
        if let Some(path) = path {
            self.places.insert(PathKey::new(&path), file);
        }
    }

    fn name_slot(&mut self, slot: SlotId, checksum: Option<u32>) {
        let used = self.slots.entry(slot).or_default();
        used.count += 1;
        if let Some(checksum) = checksum {
            used.checksum = checksum;
        }
    }

    fn unname_slot(&mut self, slot: SlotId) {
        if let Some(used) = self.slots.get_mut(&slot) {
            used.count -= 1;
            if used.count == 0 {
                self.slots.remove(&slot);
                self.unnamed.push(slot);
            }
        }
    }

    fn extend(&mut self, file: FileNo, delta: &Delta, checksums: &[u32]) -> Result<(), InvalidEntry> {
        let draft = self.draft(file)?;
        draft.state.len = delta.len;
        draft.state.binding = delta.binding;
        if let Some((_, visible)) = &mut draft.state.base {
            *visible = delta.base_len;
        }
        let mut replaced = Vec::new();
        if let Some(cut) = delta.cut {
            replaced.extend(draft.state.records.split_off(&cut).into_values().map(|record| record.slot));
        }
        for (index, record) in &delta.placed {
            replaced.extend(draft.state.records.insert(*index, *record).map(|old| old.slot));
        }
        for (at, (_, record)) in delta.placed.iter().enumerate() {
            self.name_slot(record.slot, checksums.get(at).copied());
        }
        replaced.into_iter().for_each(|slot| self.unname_slot(slot));
        // A slot that was filled and replaced between two deltas was never named.
        let stray = delta.freed.iter().filter(|slot| !self.slots.contains_key(slot) && !self.unnamed.contains(slot));
        let stray: Vec<_> = stray.copied().collect();
        self.unnamed.extend(stray);
        Ok(())
    }

    fn drop_frozen(&mut self, frozen: Option<FrozenRecord>) {
        let slots = frozen.iter().flat_map(|record| record.frozen.records.iter().copied()).collect::<Vec<_>>();
        slots.into_iter().for_each(|slot| self.unname_slot(slot));
    }

    fn end_draft(&mut self, file: FileNo) -> Option<DraftRecord> {
        let mut draft = self.files.get_mut(&file)?.draft.take()?;
        self.drop_frozen(draft.frozen.take());
        draft.state.records.values().for_each(|record| self.unname_slot(record.slot));
        Some(draft)
    }

    /// Removes the record of a file that isn't needed any more.
    fn collect(&mut self, file: FileNo) {
        let idle = self.files.get(&file).is_some_and(|record| record.draft.is_none());
        if idle && !self.is_mentioned(file) {
            self.place(file, None);
            self.files.remove(&file);
        }
    }

    fn enqueue(&mut self, op: OpNo, what: &QueuedOp) -> Result<(), InvalidEntry> {
        if what.files().any(|file| !self.files.contains_key(&file)) {
            return Err(InvalidEntry("a file"));
        }
        self.last_op = self.last_op.max(op.0);
        self.supersede(what);
        match what {
            QueuedOp::Put { .. } => {}
            QueuedOp::Delete { file, .. } => self.place(*file, None),
            QueuedOp::Rename { file, to, replaced, .. } => {
                replaced.iter().for_each(|file| self.place(*file, None));
                self.place(*file, Some(to.clone()));
            }
            QueuedOp::RenameDirectory { from, to } => self.rebase(from, to),
            QueuedOp::RemoveDirectory { path } => {
                self.directories.remove(&PathKey::new(path));
            }
        }
        self.queue.insert(op, what.clone());
        Ok(())
    }

    /// Records that the versions which an operation will be compared with needn't be read back any more. These are
    /// the versions that its files have, not whatever is at the path. A version that another client put in place of
    /// ours may have been seen and changed since.
    fn supersede(&mut self, what: &QueuedOp) {
        let version = |file: &FileNo| match self.files.get(file)?.remote {
            Remote::Own(version, _) => Some(version.id),
            Remote::Replaced(id) | Remote::Unreadable(id) => Some(id),
            Remote::Absent | Remote::Unhashed => None,
        };
        let compared: Vec<_> = match what {
            QueuedOp::Put { file, path, .. } | QueuedOp::Delete { file, path } => vec![(path, version(file))],
            QueuedOp::Rename { file, from, to, replaced } => {
                vec![(from, version(file)), (to, replaced.as_ref().and_then(version))]
            }
            QueuedOp::RenameDirectory { from, to } => return self.unconfirmed.rebase(from, to),
            QueuedOp::RemoveDirectory { .. } => return,
        };
        for (path, version) in compared {
            version.into_iter().for_each(|version| self.unconfirmed.supersede(path, version));
        }
    }

    /// Moves every file, special file and recorded directory below `from`. `to` itself stays recorded until the
    /// operation is done.
    fn rebase(&mut self, from: &PlainPath, to: &PlainPath) {
        let below = PathKey::new(from).below();
        let files: Vec<_> = self.places.range(below.clone()).map(|(_, file)| *file).collect();
        for file in files {
            let path = self.files.get(&file).and_then(|record| record.path.as_ref()?.rebase(from, to));
            self.place(file, path);
        }
        let specials: Vec<_> = self.specials.range(below.clone()).map(|(key, _)| key.clone()).collect();
        for (path, special) in specials.iter().filter_map(|key| self.specials.remove(key)).collect::<Vec<_>>() {
            if let Some(path) = path.rebase(from, to) {
                self.specials.insert(PathKey::new(&path), (path, special));
            }
        }
        let directories: Vec<_> = self.directories.range(below).map(|(_, path)| path.clone()).collect();
        for path in directories.into_iter().chain([from.clone()]) {
            self.directories.remove(&PathKey::new(&path));
            if let Some(path) = path.rebase(from, to) {
                self.directories.insert(PathKey::new(&path), path);
            }
        }
    }

    fn finish(&mut self, op: OpNo) -> Result<(), InvalidEntry> {
        let what = self.queue.remove(op).ok_or(InvalidEntry("an operation"))?;
        what.files().for_each(|file| self.collect(file));
        if !self.listings.is_empty() {
            self.finished.add(op, self.stamp, what);
        }
        Ok(())
    }

    fn committed(&mut self, file: FileNo, generation: u64, version: Version) -> Result<(), InvalidEntry> {
        let draft = self.draft(file)?;
        draft.committed = draft.committed.max(generation);
        // All content of the frozen version is in slots, so only the identity of the base matters from now on. A copy
        // consists of nothing but its base.
        if draft.state.base.is_none_or(|(base, _)| base.id != version.id) {
            draft.state.base = Some((version, 0));
        }
        let frozen = draft.frozen.take_if(|frozen| frozen.generation == generation);
        let len = frozen.as_ref().map_or(draft.state.len, |frozen| frozen.frozen.len);
        let mtime = frozen.as_ref().map(|frozen| frozen.mtime);
        self.drop_frozen(frozen);
        let record = self.record(file)?;
        record.mtime = mtime.or(record.mtime);
        record.remote = Remote::Own(version, len);
        let path = record.path.clone();
        // A directory needs no record once the remote has something in it.
        let mut above = path.filter(|path| !self.is_to_be_moved_to(path));
        while let Some((parent, _)) = above.as_ref().and_then(PlainPath::split) {
            self.directories.remove(&PathKey::new(&parent));
            above = Some(parent);
        }
        Ok(())
    }

    /// Returns entries that lead from an empty ledger to this state, in batches that fit a journal record. Slots keep
    /// their checksums.
    pub(crate) fn snapshot(&self) -> Vec<Entry> {
        let mut out = vec![Entry::Numbers { file: self.last_file, op: self.last_op }];
        out.extend(self.directories.values().map(|path| Entry::Directory { path: path.clone() }));
        for (file, record) in &self.files {
            // The effect of queued operations is already in the present paths. Queueing them again must not repeat
            // it.
            out.push(Entry::Track { file: *file, path: None, remote: record.remote, mtime: record.mtime });
            if let Some(draft) = &record.draft {
                self.snapshot_draft(*file, draft, &mut out);
            }
        }
        out.extend(self.queue.iter().map(|(op, what)| Entry::Queue { op, what: what.clone() }));
        out.extend(self.files.iter().map(|(file, record)| Entry::Move { file: *file, path: record.path.clone() }));
        let specials = self.specials.values().cloned();
        out.extend(specials.map(|(path, special)| Entry::Special { path, special }));
        // Queueing the rename or the removal of a directory has changed these records again.
        out.extend(self.replay_directories());
        out.extend(self.unconfirmed.all().map(|(op, commit)| Entry::Unconfirmed { op, commit: commit.clone() }));
        out
    }

    /// Returns the entries that set `directories` after the queue was replayed over them.
    fn replay_directories(&self) -> Vec<Entry> {
        let mut touched: BTreeSet<PathKey> = BTreeSet::new();
        let mut now: BTreeMap<PathKey, PlainPath> = self.directories.clone();
        for (_, op) in self.queue.iter() {
            match op {
                QueuedOp::RenameDirectory { from, to } => {
                    let below: Vec<_> = now.values().filter(|path| path.is_within(from)).cloned().collect();
                    for path in below.into_iter().chain([from.clone()]) {
                        now.remove(&PathKey::new(&path));
                        touched.insert(PathKey::new(&path));
                        if let Some(path) = path.rebase(from, to) {
                            touched.insert(PathKey::new(&path));
                            now.insert(PathKey::new(&path), path);
                        }
                    }
                }
                QueuedOp::RemoveDirectory { path } => {
                    now.remove(&PathKey::new(path));
                    touched.insert(PathKey::new(path));
                }
                _ => {}
            }
        }
        let surplus = now.iter().filter(|(key, _)| !self.directories.contains_key(key));
        let missing = self.directories.iter().filter(|(key, _)| !now.contains_key(key));
        surplus
            .map(|(_, path)| Entry::ForgetDirectory { path: path.clone() })
            .chain(missing.map(|(_, path)| Entry::Directory { path: path.clone() }))
            .collect()
    }

    fn snapshot_draft(&self, file: FileNo, draft: &DraftRecord, out: &mut Vec<Entry>) {
        let mut state = draft.state.clone();
        let records = std::mem::take(&mut state.records);
        let (generation, mtime) = (draft.generation, draft.mtime);
        out.push(Entry::Begin { file, state: state.clone(), generation, mtime });
        if let (true, Some((version, visible))) = (draft.committed > 0, draft.state.base) {
            out.push(Entry::Committed { file, generation: draft.committed, version });
            if visible > 0 {
                let delta = Delta { len: state.len, binding: state.binding, base_len: visible, ..Delta::default() };
                out.push(Entry::Extend { file, generation, mtime, delta: Some(delta), checksums: Vec::new() });
            }
            // `Committed` sets the field that the record itself has.
            out.extend(self.file(file).map(|record| Entry::Remote { file, remote: record.remote }));
        }
        self.snapshot_frozen(file, draft, out);
        let records: Vec<_> = records.into_iter().collect();
        for placed in records.chunks(SNAPSHOT_RECORDS) {
            let checksums = placed.iter().map(|(_, r)| self.slots.get(&r.slot).map_or(0, |used| used.checksum));
            let delta = Delta {
                len: state.len,
                binding: state.binding,
                base_len: state.base.map_or(0, |(_, visible)| visible),
                placed: placed.to_vec(),
                cut: None,
                freed: Vec::new(),
            };
            let checksums = checksums.collect();
            out.push(Entry::Extend { file, generation, mtime, delta: Some(delta), checksums });
        }
    }

    /// Adds the entries of a frozen version, before those of the draft's own records. A `Freeze` entry names slots
    /// without their checksums. Therefore, slots that nothing else names are placed in the draft before it, and
    /// truncated after it.
    fn snapshot_frozen(&self, file: FileNo, draft: &DraftRecord, out: &mut Vec<Entry>) {
        let Some(frozen) = &draft.frozen else { return };
        let delta = |placed, cut| {
            let base_len = draft.state.base.map_or(0, |(_, visible)| visible);
            let Delta { len, binding, .. } =
                Delta { len: draft.state.len, binding: draft.state.binding, ..Delta::default() };
            Delta { len, binding, base_len, placed, cut, freed: Vec::new() }
        };
        let extend = |delta: Delta| {
            let checksums = delta.placed.iter().map(|(_, record)| self.checksum(record.slot).unwrap_or(0)).collect();
            Entry::Extend { file, generation: draft.generation, mtime: draft.mtime, delta: Some(delta), checksums }
        };
        let named: HashSet<SlotId> = draft.state.records.values().map(|record| record.slot).collect();
        let unnamed: HashSet<SlotId> =
            frozen.frozen.records.iter().filter(|slot| !named.contains(slot)).copied().collect();
        let record = |slot| RecordRef { slot, binding: Binding::default() };
        let placed: Vec<_> = unnamed.into_iter().enumerate().map(|(at, slot)| (at as u64, record(slot))).collect();
        out.extend(placed.chunks(SNAPSHOT_RECORDS).map(|placed| extend(delta(placed.to_vec(), None))));
        let (generation, mtime) = (frozen.generation, frozen.mtime);
        out.push(Entry::Freeze { file, generation, mtime, frozen: frozen.frozen.clone() });
        out.extend(frozen.stored.map(|stored| Entry::Uploaded { file, generation, stored }));
        if !placed.is_empty() {
            out.push(extend(delta(Vec::new(), Some(0))));
        }
    }
}

/// Adds the children of a directory that are in a map, or that have descendants in it. All descendants of a child
/// together cost one step.
fn add_children<T>(
    queued_changes: &mut QueuedChanges,
    directory: &PathKey,
    map: &BTreeMap<PathKey, T>,
    child: impl Fn(&T) -> LocalChild,
) {
    let below = directory.below();
    let mut from = below.start;
    while let Some((at, value)) = map.range(from..below.end.clone()).next() {
        let relative = directory.relative(at);
        queued_changes.add_child(relative, child(value));
        from = match relative.split_once('\0') {
            Some((name, _)) => directory.after_child(name),
            None => at.next(),
        };
    }
}

/// Number of records in one entry of a snapshot (about 0.5 MiB encoded).
const SNAPSHOT_RECORDS: usize = 8192;

/// Names in a directory that local state decides.
pub(crate) type Names = HashSet<String>;

/// Returns the file's number in the ledger, and the entry that adds the file if the ledger doesn't have it.
pub(crate) fn track(
    ledger: &mut Ledger,
    known: Option<FileNo>,
    path: Option<PlainPath>,
    remote: Remote,
    mtime: Option<OffsetDateTime>,
) -> (FileNo, Vec<Entry>) {
    match known.filter(|no| ledger.file(*no).is_some()) {
        Some(no) => (no, Vec::new()),
        None => {
            let no = ledger.new_file();
            (no, vec![Entry::Track { file: no, path, remote, mtime }])
        }
    }
}

/// Returns the content that the remote has of a clean file.
pub(crate) fn remote_of(version: Option<Version>, len: Len) -> Remote {
    match (version, len) {
        (Some(version), Len::Known(len)) => Remote::Own(version, len),
        (Some(version), Len::Unread | Len::Damaged) => Remote::Unreadable(version.id),
        (None, _) => Remote::Unhashed,
    }
}

/// Returns the content that a replaced file leaves at the remote.
pub(crate) fn left_by(ledger: &Ledger, replaced: Option<FileNo>) -> Remote {
    replaced.and_then(|file| ledger.file(file)).map_or(Remote::Absent, |record| record.remote.replaced())
}

/// Returns the entries for a file that was moved on this machine while the remote had nothing of it to move.
pub(crate) fn after_local_move(ledger: &Ledger, file: FileNo, replaced: Option<FileNo>) -> Vec<Entry> {
    let entry = Entry::Remote { file, remote: left_by(ledger, replaced) };
    let emptied = replaced.map(|file| Entry::Remote { file, remote: Remote::Absent });
    std::iter::once(entry).chain(emptied).collect()
}

#[cfg(test)]
mod tests;
