//! The queue of operations on names and contents. It is indexed, so that the cost of a call depends only on the
//! operations that it concerns.
//!
//! Operations are numbered in the order of the kernel's requests. An operation may be carried out once no earlier one
//! overlaps it. Two operations overlap if they name the same path, or if one names a path above or below the other's.
//! The queue counts for each operation how many earlier ones overlap it, so no walk is needed to find operations that
//! are ready.
//!
//! An operation that the caller takes with [`Queue::take_ready`] is held. It isn't returned again until it is
//! released ([`Queue::release`]), and later operations that overlap it wait until it is removed.

use crate::fs::ids::{FileNo, OpNo};
use crate::fs::journal::ledger::QueuedOp;
use crate::store::PlainPath;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A path as a key that sorts a directory directly before the entries below it. Names contain no NUL, and NUL sorts
/// before all other characters.
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

    /// Returns the range of the keys strictly below this one.
    pub(crate) fn below(&self) -> std::ops::Range<PathKey> {
        if self.0.is_empty() {
            // No name begins with NUL, so all keys except the root are not less than this one.
            return PathKey("\u{1}".into())..PathKey("\u{10ffff}\u{10ffff}".into());
        }
        PathKey(format!("{}\0", self.0))..PathKey(format!("{}\u{1}", self.0))
    }

    /// Returns the part of `key` that follows this key, with NUL between names. `key` must be below this one.
    pub(crate) fn relative<'a>(&self, below: &'a PathKey) -> &'a str {
        let start = if self.0.is_empty() { 0 } else { self.0.len() + 1 };
        below.0.get(start..).unwrap_or("")
    }

    /// Returns the key that follows this one, below it or not.
    pub(crate) fn next(&self) -> PathKey {
        PathKey(format!("{}\0", self.0))
    }

    /// Returns the first key after the child `name` and everything below it.
    pub(crate) fn after_child(&self, name: &str) -> PathKey {
        let separator = if self.0.is_empty() { "" } else { "\0" };
        PathKey(format!("{}{separator}{name}\u{1}", self.0))
    }
}

/// A set of paths. It answers if a path equals one of them, contains one of them, or lies below one of them.
#[derive(Default)]
pub(crate) struct PathSet(BTreeSet<PathKey>);

impl PathSet {
    pub(crate) fn insert(&mut self, path: &PlainPath) {
        self.0.insert(PathKey::new(path));
    }

    pub(crate) fn overlaps(&self, path: &PlainPath) -> bool {
        let is_at_or_above = at_and_above(path).any(|at| self.0.contains(&PathKey::new(&at)));
        is_at_or_above || self.0.range(PathKey::new(path).below()).next().is_some()
    }
}

/// Returns a path and all paths above it.
fn at_and_above(path: &PlainPath) -> impl Iterator<Item = PlainPath> {
    std::iter::successors(Some(path.clone()), |at| at.split().map(|(parent, _)| parent))
}

/// An index of operations by the paths that they name.
#[derive(Default)]
pub(crate) struct PathIndex(BTreeSet<(PathKey, OpNo)>);

impl PathIndex {
    pub(crate) fn insert(&mut self, op: OpNo, what: &QueuedOp) {
        self.0.extend(what.paths().map(|path| (PathKey::new(path), op)));
    }

    pub(crate) fn remove(&mut self, op: OpNo, what: &QueuedOp) {
        for path in what.paths() {
            self.0.remove(&(PathKey::new(path), op));
        }
    }

    /// Returns the operations that name a path or one above it.
    pub(crate) fn at_or_above(&self, path: &PlainPath) -> impl Iterator<Item = OpNo> {
        at_and_above(path).flat_map(|at| {
            let key = PathKey::new(&at);
            self.0.range((key.clone(), OpNo(0))..=(key, OpNo(u64::MAX))).map(|(_, op)| *op)
        })
    }

    /// Returns the operations that name a path below this one.
    pub(crate) fn below(&self, path: &PlainPath) -> impl Iterator<Item = OpNo> {
        let below = PathKey::new(path).below();
        self.0.range((below.start, OpNo(0))..(below.end, OpNo(0))).map(|(_, op)| *op)
    }

    /// Returns the operations that name a child of a directory. All paths below a child together cost one step.
    pub(crate) fn children(&self, directory: &PlainPath) -> impl Iterator<Item = OpNo> {
        let key = PathKey::new(directory);
        let below = key.below();
        let (mut from, end) = ((below.start, OpNo(0)), (below.end, OpNo(0)));
        std::iter::from_fn(move || {
            loop {
                let (at, op) = self.0.range(from.clone()..end.clone()).next()?;
                match key.relative(at).split_once('\0') {
                    Some((child, _)) => from = (key.after_child(child), OpNo(0)),
                    None => {
                        from = (at.clone(), OpNo(op.0.saturating_add(1)));
                        return Some(*op);
                    }
                }
            }
        })
    }
}

/// The kinds of operations that are carried out in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    /// An operation that shares a request with many others.
    Batched,
    /// The rename of a directory, which may take long and is committed alone.
    DirectoryRename,
}

impl OpKind {
    /// Returns the kind of an operation.
    pub(crate) fn of(what: &QueuedOp) -> Self {
        match what {
            QueuedOp::RenameDirectory { .. } => Self::DirectoryRename,
            _ => Self::Batched,
        }
    }
}

/// The queue of operations. See the module.
#[derive(Default)]
pub(crate) struct Queue {
    ops: BTreeMap<OpNo, QueuedOp>,
    places: PathIndex,
    by_file: BTreeSet<(FileNo, OpNo)>,
    /// Number of earlier operations that overlap an operation, if it isn't zero.
    blockers: HashMap<OpNo, usize>,
    /// Operations that may be taken, by [`OpKind`].
    ready: [BTreeSet<OpNo>; 2],
    held: HashSet<OpNo>,
    /// Number of operations that change names.
    name_changes: u64,
}

impl Queue {
    /// Adds an operation.
    pub(crate) fn insert(&mut self, op: OpNo, what: QueuedOp) {
        self.remove(op);
        let overlapping = self.overlapping_with(&what);
        let earlier = overlapping.range(..op).count();
        if earlier > 0 {
            self.blockers.insert(op, earlier);
        }
        // Later operations exist only if the entries of the journal are out of order.
        overlapping.range(op..).for_each(|later| self.block(*later));
        self.places.insert(op, &what);
        self.by_file.extend(what.files().map(|file| (file, op)));
        self.name_changes += u64::from(what.changes_names());
        self.ops.insert(op, what);
        self.make_ready(op);
    }

    /// Removes an operation and returns it.
    pub(crate) fn remove(&mut self, op: OpNo) -> Option<QueuedOp> {
        let what = self.ops.remove(&op)?;
        self.places.remove(op, &what);
        for file in what.files() {
            self.by_file.remove(&(file, op));
        }
        self.name_changes -= u64::from(what.changes_names());
        self.blockers.remove(&op);
        self.held.remove(&op);
        self.ready_of(OpKind::of(&what)).remove(&op);
        for later in self.overlapping_with(&what).range(op..) {
            self.unblock(*later);
        }
        Some(what)
    }

    fn block(&mut self, op: OpNo) {
        *self.blockers.entry(op).or_default() += 1;
        if let Some(what) = self.ops.get(&op) {
            let kind = OpKind::of(what);
            self.ready_of(kind).remove(&op);
        }
    }

    fn unblock(&mut self, op: OpNo) {
        if let Some(count) = self.blockers.get_mut(&op) {
            *count -= 1;
            if *count == 0 {
                self.blockers.remove(&op);
                self.make_ready(op);
            }
        }
    }

    fn make_ready(&mut self, op: OpNo) {
        let Some(what) = self.ops.get(&op) else { return };
        if !self.blockers.contains_key(&op) && !self.held.contains(&op) {
            let kind = OpKind::of(what);
            self.ready_of(kind).insert(op);
        }
    }

    fn ready_of(&mut self, kind: OpKind) -> &mut BTreeSet<OpNo> {
        &mut self.ready[kind as usize]
    }

    /// Returns all queued operations that overlap a path of `what`.
    fn overlapping_with(&self, what: &QueuedOp) -> BTreeSet<OpNo> {
        what.paths().flat_map(|path| self.places.at_or_above(path).chain(self.places.below(path))).collect()
    }

    /// Takes the oldest operations of a kind that may be carried out now, at most `limit`.
    pub(crate) fn take_ready(&mut self, kind: OpKind, limit: usize) -> Vec<(OpNo, QueuedOp)> {
        let ready: Vec<OpNo> = self.ready_of(kind).iter().take(limit).copied().collect();
        ready.iter().for_each(|op| self.hold(*op));
        ready.into_iter().filter_map(|op| Some((op, self.ops.get(&op)?.clone()))).collect()
    }

    /// Holds an operation, so that it can't be taken.
    pub(crate) fn hold(&mut self, op: OpNo) {
        let Some(what) = self.ops.get(&op) else { return };
        let kind = OpKind::of(what);
        self.ready_of(kind).remove(&op);
        self.held.insert(op);
    }

    /// Releases an operation, so that it can be taken again.
    pub(crate) fn release(&mut self, op: OpNo) {
        if self.held.remove(&op) {
            self.make_ready(op);
        }
    }

    /// Returns all operations, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (OpNo, &QueuedOp)> {
        self.ops.iter().map(|(op, what)| (*op, what))
    }

    /// Returns the operations after `op`, oldest first. `None` stands for the beginning.
    pub(crate) fn after(&self, op: Option<OpNo>) -> impl Iterator<Item = (OpNo, &QueuedOp)> {
        let from = op.map_or(OpNo(0), |op| OpNo(op.0.saturating_add(1)));
        self.ops.range(from..).map(|(op, what)| (*op, what))
    }

    /// Returns an operation.
    pub(crate) fn get(&self, op: OpNo) -> Option<&QueuedOp> {
        self.ops.get(&op)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Returns the operations that name a file, oldest first.
    pub(crate) fn of_file(&self, file: FileNo) -> impl Iterator<Item = (OpNo, &QueuedOp)> {
        let of_file = self.by_file.range((file, OpNo(0))..=(file, OpNo(u64::MAX)));
        of_file.filter_map(|(_, op)| Some((*op, self.ops.get(op)?)))
    }

    /// Returns the number of operations that change names: removals and renames.
    pub(crate) fn name_changes(&self) -> u64 {
        self.name_changes
    }

    /// Returns the operations that overlap a path, oldest first.
    pub(crate) fn overlapping(&self, path: &PlainPath) -> impl Iterator<Item = (OpNo, &QueuedOp)> {
        let found: BTreeSet<OpNo> = self.places.at_or_above(path).chain(self.places.below(path)).collect();
        found.into_iter().filter_map(|op| Some((op, self.ops.get(&op)?)))
    }

    /// Returns true if `test` accepts an operation that overlaps a path. Ends at the first one, however many there
    /// are below.
    pub(crate) fn any_overlapping(&self, path: &PlainPath, test: impl Fn(OpNo) -> bool) -> bool {
        self.places.at_or_above(path).chain(self.places.below(path)).any(test)
    }

    /// Returns the operations that name a directory, one above it, or a child of it.
    pub(crate) fn around(&self, directory: &PlainPath) -> impl Iterator<Item = OpNo> {
        self.places.at_or_above(directory).chain(self.places.children(directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> PlainPath {
        PlainPath::new(text).unwrap()
    }

    fn delete(at: &str) -> QueuedOp {
        QueuedOp::Delete { file: FileNo(1), path: path(at) }
    }

    /// Finds ready operations by a walk over the whole queue.
    fn ready_by_walk(queue: &Queue, kind: OpKind) -> Vec<OpNo> {
        let mut earlier = PathSet::default();
        let mut ready = Vec::new();
        for (op, what) in queue.iter() {
            let waits = queue.held.contains(&op) || what.paths().any(|path| earlier.overlaps(path));
            if OpKind::of(what) == kind && !waits {
                ready.push(op);
            }
            what.paths().for_each(|path| earlier.insert(path));
        }
        ready
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(QueuedOp),
        Remove(usize),
        Take(usize),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = || "[ab](/[ab]){0,2}".prop_map(|text| PlainPath::new(&text).unwrap());
        let file = || (0..3u64).prop_map(FileNo);
        let op = prop_oneof![
            (file(), at()).prop_map(|(file, path)| QueuedOp::Put { file, generation: 1, path }),
            (file(), at()).prop_map(|(file, path)| QueuedOp::Delete { file, path }),
            (file(), at(), at()).prop_map(|(file, from, to)| QueuedOp::Rename { file, from, to, replaced: None }),
            (at(), at()).prop_map(|(from, to)| QueuedOp::RenameDirectory { from, to }),
            at().prop_map(|path| QueuedOp::RemoveDirectory { path }),
        ];
        prop_oneof![
            4 => op.prop_map(Step::Insert),
            2 => (0..20usize).prop_map(Step::Remove),
            2 => (1..4usize).prop_map(Step::Take),
            1 => (0..20usize).prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn ready_operations_match_walk_over_queue(steps in prop::collection::vec(step(), 1..60)) {
            let mut queue = Queue::default();
            let mut last = 0;
            let nth = |queue: &Queue, at: usize| queue.iter().map(|(op, _)| op).nth(at);
            for step in steps {
                match step {
                    Step::Insert(what) => {
                        last += 1;
                        queue.insert(OpNo(last), what);
                    }
                    Step::Remove(at) => drop(nth(&queue, at).and_then(|op| queue.remove(op))),
                    Step::Take(limit) => drop(queue.take_ready(OpKind::Batched, limit)),
                    Step::Release(at) => drop(nth(&queue, at).map(|op| queue.release(op))),
                }
                for kind in [OpKind::Batched, OpKind::DirectoryRename] {
                    let ready: Vec<_> = queue.ready[kind as usize].iter().copied().collect();
                    prop_assert_eq!(ready, ready_by_walk(&queue, kind));
                }
                let changes = queue.iter().filter(|(_, what)| what.changes_names()).count();
                prop_assert_eq!(queue.name_changes(), changes as u64);
                let blocked = queue.ops.keys().filter(|op| queue.blockers.contains_key(op)).count();
                prop_assert_eq!(blocked, queue.blockers.len());
            }
        }
    }

    #[test]
    fn children_are_found_among_many_deeper_paths() {
        let mut queue = Queue::default();
        for (number, at) in ["d", "d/a", "d/a/x/y", "d/a/z", "d/b/c", "d/e", "d\u{1}", "e"].iter().enumerate() {
            queue.insert(OpNo(number as u64 + 1), delete(at));
        }
        let children: Vec<_> = queue.places.children(&path("d")).map(|op| op.0).collect();
        assert_eq!(children, [2, 6]);
        let children: Vec<_> = queue.places.children(&PlainPath::root()).map(|op| op.0).collect();
        assert_eq!(children, [1, 7, 8]);
    }

    #[test]
    fn held_operation_blocks_later_ones_until_removed() {
        let mut queue = Queue::default();
        queue.insert(OpNo(1), delete("d/a"));
        queue.insert(OpNo(2), delete("d/b"));
        queue.insert(OpNo(3), QueuedOp::RemoveDirectory { path: path("d") });
        let taken: Vec<_> = queue.take_ready(OpKind::Batched, 9).into_iter().map(|(op, _)| op.0).collect();
        assert_eq!(taken, [1, 2]);
        assert!(queue.take_ready(OpKind::Batched, 9).is_empty());
        queue.remove(OpNo(1));
        queue.release(OpNo(2));
        assert_eq!(queue.take_ready(OpKind::Batched, 9).len(), 1);
        queue.remove(OpNo(2));
        assert_eq!(queue.take_ready(OpKind::Batched, 9)[0].0, OpNo(3));
    }
}
