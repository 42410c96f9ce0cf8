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
use crate::fs::tree::queued::{LocalChild, Overlay, Walk};
use crate::store::Len;
use crate::store::{Delta, DraftState, Expect, Frozen, Hash, PlainPath, SlotId, Stored, Version};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
    /// An object without a hash: can't be compared.
    Unhashed,
}

impl Remote {
    /// What to demand before a change.
    pub(crate) fn expect(&self) -> Expect {
        match self {
            Self::Absent => Expect::Absent,
            Self::Own(version, _) => Expect::Is(version.hash),
            Self::Replaced(hash) => Expect::Is(*hash),
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

/// A path as a key that sorts a directory right before what is below it: names hold no NUL, and NUL sorts before everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PathKey(String);

impl std::fmt::Debug for PathKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PathKey(hidden)")
    }
}

impl PathKey {
    pub(crate) fn new(path: &PlainPath) -> Self {
        Self(path.as_str().replace('/', "\0"))
    }

    /// The keys strictly below this one.
    fn below(&self) -> std::ops::Range<PathKey> {
        if self.0.is_empty() {
            // No name begins with NUL, so everything but the root sorts at or behind this.
            return PathKey("\u{1}".into())..PathKey("\u{10ffff}\u{10ffff}".into());
        }
        PathKey(format!("{}\0", self.0))..PathKey(format!("{}\u{1}", self.0))
    }
}

/// A set of paths that answers whether another one is, holds or lies below one of them.
#[derive(Default)]
pub(crate) struct PathSet(BTreeSet<PathKey>);

impl PathSet {
    pub(crate) fn insert(&mut self, path: &PlainPath) {
        self.0.insert(PathKey::new(path));
    }

    pub(crate) fn overlaps(&self, path: &PlainPath) -> bool {
        let mut above = Some(path.clone());
        while let Some(at) = above {
            if self.0.contains(&PathKey::new(&at)) {
                return true;
            }
            above = at.split().map(|(parent, _)| parent);
        }
        self.0.range(PathKey::new(path).below()).next().is_some()
    }
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

/// See the module.
#[derive(Default)]
pub(crate) struct Ledger {
    files: BTreeMap<FileNo, FileRecord>,
    /// Files that have a path, by it.
    places: BTreeMap<PathKey, FileNo>,
    directories: BTreeMap<PathKey, PlainPath>,
    specials: BTreeMap<PathKey, (PlainPath, Special)>,
    ops: BTreeMap<OpNo, QueuedOp>,
    /// The queue by the paths it concerns.
    op_places: BTreeSet<(PathKey, OpNo)>,
    /// How many queued operations name a file.
    mentions: HashMap<FileNo, u32>,
    slots: HashMap<SlotId, SlotUse>,
    /// Slots that no entry names any more, since the last [`Ledger::take_unnamed`].
    unnamed: Vec<SlotId>,
    last_file: u64,
    last_op: u64,
    unconfirmed: Commits,
    /// Not journalled: operations that finished while a listing was under way, with the stamp of that moment. Such a listing may show the
    /// state before or after them.
    finished: BTreeMap<OpNo, (u64, QueuedOp)>,
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

    /// The queue.
    pub(crate) fn ops(&self) -> impl DoubleEndedIterator<Item = (OpNo, &QueuedOp)> {
        self.ops.iter().map(|(op, what)| (*op, what))
    }

    /// Counts queued changes of names: removals and renames.
    pub(crate) fn name_changes(&self) -> u64 {
        let counts = |op: &QueuedOp| !matches!(op, QueuedOp::Put { .. } | QueuedOp::RemoveDirectory { .. });
        self.ops().filter(|(_, op)| counts(op)).count() as u64
    }

    /// An operation in the queue.
    pub(crate) fn op(&self, op: OpNo) -> Option<&QueuedOp> {
        self.ops.get(&op)
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

    /// Whether an operation in the queue names the file.
    pub(crate) fn is_mentioned(&self, file: FileNo) -> bool {
        self.mentions(file) > 0
    }

    /// How many operations in the queue name the file.
    pub(crate) fn mentions(&self, file: FileNo) -> usize {
        self.mentions.get(&file).map_or(0, |count| *count as usize)
    }

    /// Whether a directory is remembered as existing here.
    pub(crate) fn has_directory(&self, path: &PlainPath) -> bool {
        self.directories.contains_key(&PathKey::new(path))
    }

    /// Whether nothing is pending and nothing is remembered.
    pub(crate) fn is_blank(&self) -> bool {
        self.files.is_empty() && self.ops.is_empty() && self.slots.is_empty()
    }

    /// Operations of a sort that may be carried out now: those that overlap no earlier one. `waiting` ones aren't given out, but hold up others.
    pub(crate) fn ready(
        &self,
        waiting: impl Fn(OpNo) -> bool,
        sort: impl Fn(&QueuedOp) -> bool,
        limit: usize,
    ) -> Vec<(OpNo, QueuedOp)> {
        let mut earlier = PathSet::default();
        let mut ready = Vec::new();
        for (op, what) in &self.ops {
            if ready.len() == limit {
                break;
            }
            if sort(what) && !waiting(*op) && !what.paths().any(|path| earlier.overlaps(path)) {
                ready.push((*op, what.clone()));
            }
            what.paths().for_each(|path| earlier.insert(path));
        }
        ready
    }

    /// Queued operations that overlap the path, oldest first.
    pub(crate) fn overlapping(&self, path: &PlainPath) -> impl Iterator<Item = (OpNo, &QueuedOp)> {
        let mut found = BTreeSet::new();
        let mut above = Some(path.clone());
        while let Some(at) = above {
            let key = PathKey::new(&at);
            let here = (key.clone(), OpNo(0))..=(key, OpNo(u64::MAX));
            found.extend(self.op_places.range(here).map(|(_, op)| *op));
            above = at.split().map(|(parent, _)| parent);
        }
        let below = PathKey::new(path).below();
        found.extend(self.op_places.range((below.start, OpNo(0))..(below.end, OpNo(0))).map(|(_, op)| *op));
        found.into_iter().filter_map(|op| Some((op, self.ops.get(&op)?)))
    }

    /// Returns true if `test` accepts a queued operation that overlaps the path. Ends at the first one, however
    /// many there are below.
    pub(crate) fn any_overlapping(&self, path: &PlainPath, test: impl Fn(OpNo) -> bool) -> bool {
        let mut above = Some(path.clone());
        while let Some(at) = above {
            let key = PathKey::new(&at);
            if self.op_places.range((key.clone(), OpNo(0))..=(key, OpNo(u64::MAX))).any(|(_, op)| test(*op)) {
                return true;
            }
            above = at.split().map(|(parent, _)| parent);
        }
        let below = PathKey::new(path).below();
        self.op_places.range((below.start, OpNo(0))..(below.end, OpNo(0))).any(|(_, op)| test(*op))
    }

    /// Whether the rename of a directory that is queued will bring the source what is at the path.
    fn is_to_be_moved_to(&self, path: &PlainPath) -> bool {
        let brings = |what: &QueuedOp| matches!(what, QueuedOp::RenameDirectory { to, .. } if path.is_within(to));
        self.overlapping(path).any(|(_, what)| brings(what))
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

    /// See [`Ledger::begin_listing`].
    pub(crate) fn end_listing(&mut self, stamp: u64) {
        if let Some(count) = self.listings.get_mut(&stamp) {
            *count -= 1;
            if *count == 0 {
                self.listings.remove(&stamp);
            }
        }
        let oldest = self.listings.keys().next().copied().unwrap_or(u64::MAX);
        self.finished.retain(|_, (at, _)| *at >= oldest);
    }

    /// How what is queued and local lies over the listing of `directory` that began at `since`.
    pub(crate) fn overlay(&self, directory: &PlainPath, since: Option<u64>) -> Overlay {
        let since = since.unwrap_or(u64::MAX);
        let recent = self.finished.iter().filter(|(_, (at, _))| *at >= since).map(|(op, (_, what))| (op, what));
        let mut walk = Walk::new(directory);
        // Both are sorted: merge them from the newest to the oldest.
        let mut all: Vec<_> = self.ops.iter().chain(recent).collect();
        all.sort_unstable_by_key(|(op, _)| std::cmp::Reverse(**op));
        all.into_iter().for_each(|(op, what)| walk.step_back(what, self.ops.contains_key(op)));
        let mut overlay = walk.finish();
        let key = PathKey::new(directory);
        let depth = if key.0.is_empty() { 0 } else { key.0.len() + 1 };
        for (below, file) in self.places.range(key.below()) {
            overlay.add_child(&below.0[depth..], LocalChild::File(*file));
        }
        for below in self.specials.range(key.below()).map(|(below, _)| below) {
            overlay.add_child(&below.0[depth..], LocalChild::Special);
        }
        for below in self.directories.range(key.below()).map(|(below, _)| below) {
            overlay.add_child(&below.0[depth..], LocalChild::Directory);
        }
        overlay
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
            Entry::Queue { op, what } => self.queue(*op, what)?,
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

    fn queue(&mut self, op: OpNo, what: &QueuedOp) -> Result<(), Misfit> {
        if what.files().any(|file| !self.files.contains_key(&file)) {
            return Err(Misfit("a file"));
        }
        self.last_op = self.last_op.max(op.0);
        what.files().for_each(|file| *self.mentions.entry(file).or_default() += 1);
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
        self.op_places.extend(what.paths().map(|path| (PathKey::new(path), op)));
        self.ops.insert(op, what.clone());
        Ok(())
    }

    /// What an operation is going to be compared with needn't be read back any more. That is the version that its file has, not whatever is at
    /// the path: what somebody has put in the place of ours meanwhile may have been seen and changed since.
    fn supersede(&mut self, what: &QueuedOp) {
        let version = |file: &FileNo| match self.files.get(file)?.remote {
            Remote::Own(version, _) => Some(version.hash),
            Remote::Replaced(hash) => Some(hash),
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
        let what = self.ops.remove(&op).ok_or(Misfit("an operation"))?;
        for path in what.paths() {
            self.op_places.remove(&(PathKey::new(path), op));
        }
        for file in what.files() {
            if let Some(count) = self.mentions.get_mut(&file) {
                *count -= 1;
                if *count == 0 {
                    self.mentions.remove(&file);
                }
            }
            self.collect(file);
        }
        if !self.listings.is_empty() {
            self.finished.insert(op, (self.stamp, what));
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
        out.extend(self.ops.iter().map(|(op, what)| Entry::Queue { op: *op, what: what.clone() }));
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
        for op in self.ops.values() {
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
        if let (true, Some((version, visible))) = (draft.committed > 0, draft.state.base) {
            out.push(Entry::Committed { file, generation: draft.committed, version });
            if visible > 0 {
                let delta = Delta { len: state.len, binding: state.binding, base_len: visible, ..Delta::default() };
                out.push(Entry::Extend { file, generation, mtime, delta: Some(delta), checksums: Vec::new() });
            }
            // `Committed` sets what the record itself says.
            out.extend(self.file(file).map(|record| Entry::Remote { file, remote: record.remote }));
        }
        if let Some(frozen) = &draft.frozen {
            let (generation, mtime) = (frozen.generation, frozen.mtime);
            out.push(Entry::Freeze { file, generation, mtime, frozen: frozen.frozen.clone() });
            out.extend(frozen.stored.map(|stored| Entry::Uploaded { file, generation, stored }));
        }
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
        (Some(version), Len::Unread | Len::Damaged) => Remote::Replaced(version.hash),
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
