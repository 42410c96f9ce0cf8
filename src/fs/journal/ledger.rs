//! What this machine owes the source: files with local content, directories that exist here only, and the queue of namespace operations.
//!
//! The ledger is the pure state machine behind the journal: its state is what replaying all entries gives, live and after a crash alike, and
//! compacting the journal means writing the ledger down. It does no I/O and knows no inodes; [`crate::fs::journal::file`] owns one behind its lock.
//!
//! Operations are queued in the order the kernel asked for them and refer to files by number, not by version: what must be at a path for an
//! operation to happen ([`Remote`]) is looked up when it is carried out, so an operation stays right when one before it in the queue has
//! changed that. An operation waits for every earlier one whose paths overlap its own, and for nothing else.

use crate::fs::ids::FileNo;
use crate::fs::ids::OpNo;
use crate::fs::ids::Special;
use crate::fs::journal::queue::{PathIndex, PathKey, Queue};
use crate::fs::tree::queued::{LocalChild, Moved, Overlay, Walk};
use crate::store::Len;
use crate::store::{Binding, Delta, DraftState, Expect, Frozen, Hash, PlainPath, RecordRef, SlotId, Stored, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use time::OffsetDateTime;

/// What the source holds where a file lies, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// Nothing.
    Absent,
    /// This file's content, of this plaintext size.
    Own(Version, u64),
    /// Content of a file that this one replaced here: may be overwritten, mustn't be moved along.
    Replaced(Hash),
    /// Content of a file that was removed here and is damaged, or may be: its header could not be read. May be removed,
    /// mustn't be overwritten.
    Unreadable(Hash),
    /// An object without a hash: can't be compared.
    Unhashed,
}

impl Remote {
    /// What to demand before a change.
    pub(crate) fn expect(&self) -> Expect {
        match self {
            Self::Absent => Expect::Absent,
            Self::Own(version, _) => Expect::Is(version.hash),
            Self::Replaced(hash) | Self::Unreadable(hash) => Expect::Is(*hash),
            Self::Unhashed => Expect::Any,
        }
    }

    /// What it is to a file that takes the place over.
    pub(crate) fn replaced(&self) -> Self {
        match self {
            Self::Own(version, _) => Self::Replaced(version.hash),
            other => *other,
        }
    }
}

/// A version that was frozen and maybe uploaded.
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
    /// Counts changes; 0: the same as what it was begun from.
    pub(crate) generation: u64,
    /// The newest generation that is committed.
    pub(crate) committed: u64,
    pub(crate) mtime: OffsetDateTime,
    pub(crate) frozen: Option<FrozenRecord>,
}

impl DraftRecord {
    /// Whether the source doesn't have it yet.
    pub(crate) fn is_dirty(&self) -> bool {
        self.generation > self.committed
    }
}

/// A file that differs from the source, or is part of a queued operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRecord {
    /// Where it is now; `None`: it has no name any more.
    pub(crate) path: Option<PlainPath>,
    /// What the source holds there once all queued operations of this file are done.
    pub(crate) remote: Remote,
    pub(crate) mtime: Option<OffsetDateTime>,
    pub(crate) draft: Option<DraftRecord>,
}

/// A queued operation. Paths are those of the moment it was queued at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum QueuedOp {
    /// Commit the uploaded generation at the path.
    Put { file: FileNo, generation: u64, path: PlainPath },
    /// Remove the file.
    Delete { file: FileNo, path: PlainPath },
    /// Move the file, in the place of `replaced`.
    Rename { file: FileNo, from: PlainPath, to: PlainPath, replaced: Option<FileNo> },
    /// Move a whole directory.
    RenameDirectory { from: PlainPath, to: PlainPath },
    /// Nothing to do at the source: hides the directory until the operations below it are done.
    RemoveDirectory { path: PlainPath },
}

impl QueuedOp {
    /// The paths it concerns.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PlainPath> {
        let (a, b) = match self {
            Self::Put { path, .. } | Self::Delete { path, .. } | Self::RemoveDirectory { path } => (path, None),
            Self::Rename { from, to, .. } | Self::RenameDirectory { from, to } => (from, Some(to)),
        };
        std::iter::once(a).chain(b)
    }

    /// The path at which, or below which, the source has something when it is done.
    pub(crate) fn fills(&self) -> Option<&PlainPath> {
        match self {
            Self::Put { path, .. } => Some(path),
            Self::Rename { to, .. } | Self::RenameDirectory { to, .. } => Some(to),
            Self::Delete { .. } | Self::RemoveDirectory { .. } => None,
        }
    }

    /// Returns true if it changes names: a removal or a rename.
    pub(crate) fn changes_names(&self) -> bool {
        !matches!(self, Self::Put { .. } | Self::RemoveDirectory { .. })
    }

    /// Returns the file whose commit it is.
    pub(crate) fn put_file(&self) -> Option<FileNo> {
        match self {
            Self::Put { file, .. } => Some(*file),
            _ => None,
        }
    }

    /// The files it names.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileNo> {
        let (a, b) = match self {
            Self::Put { file, .. } | Self::Delete { file, .. } => (Some(*file), None),
            Self::Rename { file, replaced, .. } => (Some(*file), *replaced),
            Self::RenameDirectory { .. } | Self::RemoveDirectory { .. } => (None, None),
        };
        a.into_iter().chain(b)
    }
}

/// One change of the ledger. A journal record holds one or more, applied all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A file becomes known.
    Track { file: FileNo, path: Option<PlainPath>, remote: Remote, mtime: Option<OffsetDateTime> },
    /// Local content begins, in the place of any that was there.
    Begin { file: FileNo, state: DraftState, generation: u64, mtime: OffsetDateTime },
    /// Local content changed. `checksums` belong to `delta.placed`, in order.
    Extend { file: FileNo, generation: u64, mtime: OffsetDateTime, delta: Option<Delta>, checksums: Vec<u32> },
    /// A version was frozen.
    Freeze { file: FileNo, generation: u64, mtime: OffsetDateTime, frozen: Arc<Frozen> },
    /// The frozen version was uploaded.
    Uploaded { file: FileNo, generation: u64, stored: Stored },
    /// The local content isn't needed any more.
    End { file: FileNo },
    /// The file has another path, or none, without an operation at the source.
    Move { file: FileNo, path: Option<PlainPath> },
    /// What the source holds at the file's path.
    Remote { file: FileNo, remote: Remote },
    /// A directory exists here, whatever the source has.
    Directory { path: PlainPath },
    /// It doesn't have to be remembered any more.
    ForgetDirectory { path: PlainPath },
    /// A link, a pipe, a socket or a device is there.
    Special { path: PlainPath, special: Special },
    /// It isn't there any more.
    ForgetSpecial { path: PlainPath },
    /// An operation was queued.
    Queue { op: OpNo, what: QueuedOp },
    /// It is done, or was given up.
    Finish { op: OpNo },
    /// A generation is what the source has now.
    Committed { file: FileNo, generation: u64, version: Version },
    /// Numbers up to these were used (first entry of a compacted journal).
    Numbers { file: u64, op: u64 },
    /// A commit, made by this operation, is to be read back.
    Unconfirmed { op: OpNo, commit: Unconfirmed },
    /// It was, or need not be.
    Confirmed { op: OpNo },
}

/// A commit that wasn't read back yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    pub(crate) path: PlainPath,
    pub(crate) version: Version,
    /// Plaintext bytes, where they are known; else they are asked for if the version has to be put somewhere again.
    pub(crate) len: Option<u64>,
    pub(crate) mtime: OffsetDateTime,
    /// Something else was at the path before, which others may have known, or was seen there since: if nothing is left of the version, it may
    /// have gone unseen.
    pub(crate) replaced: bool,
}

/// An entry that doesn't fit what came before: a programming error, or a journal that isn't ours.
#[derive(Debug, thiserror::Error)]
#[error("an entry refers to {0} that is not there")]
pub(crate) struct Misfit(&'static str);

/// How often a slot is named, and the checksum of its bytes.
#[derive(Clone, Copy, Debug, Default)]
struct SlotUse {
    count: u32,
    checksum: u32,
}

/// Commits that are to be read back. A path may have several: what somebody overwrote, and what we made of that since.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Commits {
    by_op: BTreeMap<OpNo, Unconfirmed>,
    places: BTreeSet<(PathKey, OpNo)>,
}

impl Commits {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_op.len()
    }

    /// The one that an operation made.
    pub(crate) fn of(&self, op: OpNo) -> Option<&Unconfirmed> {
        self.by_op.get(&op)
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (OpNo, &Unconfirmed)> {
        self.by_op.iter().map(|(op, commit)| (*op, commit))
    }

    /// Those at a path.
    pub(crate) fn at(&self, path: &PlainPath) -> impl Iterator<Item = (OpNo, &Unconfirmed)> {
        let key = PathKey::new(path);
        let at = self.places.range((key.clone(), OpNo(0))..=(key, OpNo(u64::MAX)));
        at.filter_map(|(_, op)| Some((*op, self.by_op.get(op)?)))
    }

    /// Those at or below a path.
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

    /// A change of ours will be compared with this version at the path. Any other that we committed there was overwritten, then: it must not be
    /// taken for one that somebody has removed, whatever becomes of the path.
    fn supersede(&mut self, path: &PlainPath, version: Hash) {
        for (op, commit) in self.at(path).map(|(op, commit)| (op, commit.clone())).collect::<Vec<_>>() {
            match commit.version.hash == version {
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

/// Operations that finished while a listing was in progress, with the stamp of that moment: such a listing may show the
/// state before or after them. Not journalled.
#[derive(Default)]
struct Finished {
    ops: HashMap<OpNo, (u64, QueuedOp)>,
    places: PathIndex,
    /// All of them in the order in which they finished.
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

    /// Returns those of a listing that began at `since` that overlap a path.
    fn overlapping(&self, path: &PlainPath, since: u64) -> impl Iterator<Item = OpNo> {
        let all = self.places.at_or_above(path).chain(self.places.below(path));
        all.filter(move |op| self.ops.get(op).is_some_and(|(stamp, _)| *stamp >= since))
    }

    /// Forgets those of listings that ended.
    fn forget_before(&mut self, stamp: u64) {
        while let Some((_, op)) = self.order.pop_front_if(|(at, _)| *at < stamp) {
            if let Some((_, what)) = self.ops.remove(&op) {
                self.places.remove(op, &what);
            }
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Ledger {
    files: BTreeMap<FileNo, FileRecord>,
    /// Files that have a path, by it.
    places: BTreeMap<PathKey, FileNo>,
    directories: BTreeMap<PathKey, PlainPath>,
    specials: BTreeMap<PathKey, (PlainPath, Special)>,
    queue: Queue,
    slots: HashMap<SlotId, SlotUse>,
    /// Slots that no entry names any more, since the last [`Ledger::take_unnamed`].
    unnamed: Vec<SlotId>,
    last_file: u64,
    last_op: u64,
    unconfirmed: Commits,
    finished: Finished,
    stamp: u64,
    listings: BTreeMap<u64, usize>,
}

impl Ledger {
    /// A number for a new file.
    pub(crate) fn new_file(&mut self) -> FileNo {
        self.last_file += 1;
        FileNo(self.last_file)
    }

    /// A number for a new operation.
    pub(crate) fn new_op(&mut self) -> OpNo {
        self.last_op += 1;
        OpNo(self.last_op)
    }

    /// A file's record.
    pub(crate) fn file(&self, file: FileNo) -> Option<&FileRecord> {
        self.files.get(&file)
    }

    /// All files.
    pub(crate) fn files(&self) -> impl Iterator<Item = (FileNo, &FileRecord)> {
        self.files.iter().map(|(file, record)| (*file, record))
    }

    /// Returns the queue of operations.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Returns the queue, to take operations from it. Adding and removing them is for entries.
    pub(crate) fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Files that have a path at or below this one.
    pub(crate) fn files_within(&self, path: &PlainPath) -> impl Iterator<Item = (FileNo, &FileRecord)> {
        let key = PathKey::new(path);
        let below = self.places.range(key.below()).map(|(_, file)| *file);
        let all = self.places.get(&key).copied().into_iter().chain(below);
        all.filter_map(|file| Some((file, self.files.get(&file)?)))
    }

    /// Commits that weren't read back yet.
    pub(crate) fn unconfirmed(&self) -> &Commits {
        &self.unconfirmed
    }

    /// Returns true if an operation in the queue names the file.
    pub(crate) fn is_mentioned(&self, file: FileNo) -> bool {
        self.queue.of_file(file).next().is_some()
    }

    /// Whether a directory is remembered as existing here.
    pub(crate) fn has_directory(&self, path: &PlainPath) -> bool {
        self.directories.contains_key(&PathKey::new(path))
    }

    /// Whether nothing is pending and nothing is remembered.
    pub(crate) fn is_blank(&self) -> bool {
        self.files.is_empty() && self.queue.is_empty() && self.slots.is_empty()
    }

    /// Returns true if an operation that overlaps the path finished since the look at the source that got this stamp
    /// began. The look must be in progress.
    pub(crate) fn any_finished(&self, path: &PlainPath, since: u64) -> bool {
        self.finished.overlapping(path, since).next().is_some()
    }

    /// Whether the rename of a directory that is queued will bring the source what is at the path.
    fn is_to_be_moved_to(&self, path: &PlainPath) -> bool {
        let brings = |what: &QueuedOp| matches!(what, QueuedOp::RenameDirectory { to, .. } if path.is_within(to));
        self.queue.overlapping(path).any(|(_, what)| brings(what))
    }

    /// The special file at a path.
    pub(crate) fn special(&self, path: &PlainPath) -> Option<&Special> {
        self.specials.get(&PathKey::new(path)).map(|(_, special)| special)
    }

    /// Special files below a path.
    pub(crate) fn specials_within(&self, path: &PlainPath) -> impl Iterator<Item = &(PlainPath, Special)> {
        self.specials.range(PathKey::new(path).below()).map(|(_, special)| special)
    }

    /// Remembered directories at or below a path.
    pub(crate) fn directories_within(&self, path: &PlainPath) -> impl Iterator<Item = &PlainPath> {
        let key = PathKey::new(path);
        let below = self.directories.range(key.below()).map(|(_, path)| path);
        self.directories.get(&key).into_iter().chain(below)
    }

    /// Slots in use, with the checksum of their bytes.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (SlotId, u32)> {
        self.slots.iter().map(|(slot, used)| (*slot, used.checksum))
    }

    /// The checksum of a slot in use.
    pub(crate) fn checksum(&self, slot: SlotId) -> Option<u32> {
        self.slots.get(&slot).map(|used| used.checksum)
    }

    /// Slots that lost their last name. They are free once what took it is durable.
    pub(crate) fn take_unnamed(&mut self) -> Vec<SlotId> {
        std::mem::take(&mut self.unnamed)
    }

    /// Marks the beginning of a listing of the source; give the stamp to [`Ledger::overlay`] and [`Ledger::end_listing`].
    pub(crate) fn begin_listing(&mut self) -> u64 {
        self.stamp += 1;
        *self.listings.entry(self.stamp).or_default() += 1;
        self.stamp
    }

    /// Ends a listing that [`Ledger::begin_listing`] began.
    pub(crate) fn end_listing(&mut self, stamp: u64) {
        if let Some(count) = self.listings.get_mut(&stamp) {
            *count -= 1;
            if *count == 0 {
                self.listings.remove(&stamp);
            }
        }
        self.finished.forget_before(self.listings.keys().next().copied().unwrap_or(u64::MAX));
    }

    /// Returns how queued and local changes lie over the listing of `directory` that began at `since`.
    pub(crate) fn overlay(&self, directory: &PlainPath, since: Option<u64>) -> Overlay {
        let mut overlay = self.walk(directory, since.unwrap_or(u64::MAX)).finish();
        let key = PathKey::new(directory);
        add_children(&mut overlay, &key, &self.places, |file| LocalChild::File(*file));
        add_children(&mut overlay, &key, &self.specials, |_| LocalChild::Special);
        add_children(&mut overlay, &key, &self.directories, |_| LocalChild::Directory);
        overlay
    }

    /// Walks from the newest operation back to the oldest, over those that concern a place where the content of the
    /// directory was at that point: they name it, one above it, or a child of it.
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
                // An operation that fills such a place waits for earlier ones there.
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

    /// Applies an entry. On an error nothing has changed.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Result<(), Misfit> {
        match entry {
            Entry::Track { file, path, remote, mtime } => {
                self.last_file = self.last_file.max(file.0);
                let record = FileRecord { path: None, remote: *remote, mtime: *mtime, draft: None };
                self.files.insert(*file, record);
                self.place(*file, path.clone());
            }
            Entry::Begin { file, state, generation, mtime } => {
                if !self.files.contains_key(file) {
                    return Err(Misfit("a file"));
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
                frozen.ok_or(Misfit("a frozen version"))?.stored = Some(*stored);
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

    fn record(&mut self, file: FileNo) -> Result<&mut FileRecord, Misfit> {
        self.files.get_mut(&file).ok_or(Misfit("a file"))
    }

    fn draft(&mut self, file: FileNo) -> Result<&mut DraftRecord, Misfit> {
        self.record(file)?.draft.as_mut().ok_or(Misfit("a draft"))
    }

    /// Gives a file a path, or takes it away.
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

    fn extend(&mut self, file: FileNo, delta: &Delta, checksums: &[u32]) -> Result<(), Misfit> {
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

    /// Forgets a file that nothing needs any more.
    fn collect(&mut self, file: FileNo) {
        let idle = self.files.get(&file).is_some_and(|record| record.draft.is_none());
        if idle && !self.is_mentioned(file) {
            self.place(file, None);
            self.files.remove(&file);
        }
    }

    fn enqueue(&mut self, op: OpNo, what: &QueuedOp) -> Result<(), Misfit> {
        if what.files().any(|file| !self.files.contains_key(&file)) {
            return Err(Misfit("a file"));
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

    /// What an operation is going to be compared with needn't be read back any more. That is the version that its file has, not whatever is at
    /// the path: what somebody has put in the place of ours meanwhile may have been seen and changed since.
    fn supersede(&mut self, what: &QueuedOp) {
        let version = |file: &FileNo| match self.files.get(file)?.remote {
            Remote::Own(version, _) => Some(version.hash),
            Remote::Replaced(hash) | Remote::Unreadable(hash) => Some(hash),
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

    /// Moves every file, special file and remembered directory below `from`; `to` itself is remembered until the operation is done.
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

    fn finish(&mut self, op: OpNo) -> Result<(), Misfit> {
        let what = self.queue.remove(op).ok_or(Misfit("an operation"))?;
        what.files().for_each(|file| self.collect(file));
        if !self.listings.is_empty() {
            self.finished.add(op, self.stamp, what);
        }
        Ok(())
    }

    fn committed(&mut self, file: FileNo, generation: u64, version: Version) -> Result<(), Misfit> {
        let draft = self.draft(file)?;
        draft.committed = draft.committed.max(generation);
        // The version that was frozen is whole in slots: of the base only its identity counts from now on. A copy is nothing but its base.
        if draft.state.base.is_none_or(|(base, _)| base.hash != version.hash) {
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
        // What lies at the source needs no memory of its directories, once they are there themselves.
        let mut above = path.filter(|path| !self.is_to_be_moved_to(path));
        while let Some((parent, _)) = above.as_ref().and_then(PlainPath::split) {
            self.directories.remove(&PathKey::new(&parent));
            above = Some(parent);
        }
        Ok(())
    }

    /// Entries that bring an empty ledger to this state, in portions that fit a journal record. Slots keep their checksums.
    pub(crate) fn snapshot(&self) -> Vec<Entry> {
        let mut out = vec![Entry::Numbers { file: self.last_file, op: self.last_op }];
        out.extend(self.directories.values().map(|path| Entry::Directory { path: path.clone() }));
        for (file, record) in &self.files {
            // Paths are those of now, so the effect of queued operations on them is in already; queueing them again must not repeat it.
            out.push(Entry::Track { file: *file, path: None, remote: record.remote, mtime: record.mtime });
            if let Some(draft) = &record.draft {
                self.snapshot_draft(*file, draft, &mut out);
            }
        }
        out.extend(self.queue.iter().map(|(op, what)| Entry::Queue { op, what: what.clone() }));
        out.extend(self.files.iter().map(|(file, record)| Entry::Move { file: *file, path: record.path.clone() }));
        let specials = self.specials.values().cloned();
        out.extend(specials.map(|(path, special)| Entry::Special { path, special }));
        // Queueing a directory's rename or removal changed these again.
        out.extend(self.replay_directories());
        out.extend(self.unconfirmed.all().map(|(op, commit)| Entry::Unconfirmed { op, commit: commit.clone() }));
        out
    }

    /// Entries that set `directories` right after the queue was replayed over them.
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
            // `Committed` sets what the record itself says.
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

    /// Adds entries of a frozen version, before those of the draft's own records. A `Freeze` names slots without their
    /// checksums. Slots that nothing else names are therefore placed in the draft before it, and cut off after it.
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

/// Adds the children of a directory that a map has, or has something below. What is further below costs one step a child.
fn add_children<T>(
    overlay: &mut Overlay,
    directory: &PathKey,
    map: &BTreeMap<PathKey, T>,
    child: impl Fn(&T) -> LocalChild,
) {
    let below = directory.below();
    let mut from = below.start;
    while let Some((at, value)) = map.range(from..below.end.clone()).next() {
        let relative = directory.relative(at);
        overlay.add_child(relative, child(value));
        from = match relative.split_once('\0') {
            Some((name, _)) => directory.after_child(name),
            None => at.next(),
        };
    }
}

/// Records in one entry of a snapshot (about 0.5 MiB encoded).
const SNAPSHOT_RECORDS: usize = 8192;

/// Names in a directory that local state decides.
pub(crate) type Names = HashSet<String>;

/// The file's number in the ledger, and the entry that makes it known where it isn't.
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

/// What the source holds of a clean file.
pub(crate) fn remote_of(version: Option<Version>, len: Len) -> Remote {
    match (version, len) {
        (Some(version), Len::Known(len)) => Remote::Own(version, len),
        (Some(version), Len::Unread | Len::Damaged) => Remote::Unreadable(version.hash),
        (None, _) => Remote::Unhashed,
    }
}

/// What a replaced file leaves at the source.
pub(crate) fn left_by(ledger: &Ledger, replaced: Option<FileNo>) -> Remote {
    replaced.and_then(|file| ledger.file(file)).map_or(Remote::Absent, |record| record.remote.replaced())
}

/// What becomes of a file that moved here but had nothing to move at the source.
pub(crate) fn after_local_move(ledger: &Ledger, file: FileNo, replaced: Option<FileNo>) -> Vec<Entry> {
    let entry = Entry::Remote { file, remote: left_by(ledger, replaced) };
    let emptied = replaced.map(|file| Entry::Remote { file, remote: Remote::Absent });
    std::iter::once(entry).chain(emptied).collect()
}

#[cfg(test)]
mod tests;
