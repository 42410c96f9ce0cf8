//! Merges queued operations into a listing of the remote.
//!
//! While operations are queued, the remote shows a past state. The listing of a local directory therefore needs two
//! answers. At which paths does the remote still keep the entries that are now in this directory? Which names must
//! come from local state, whatever the remote shows? Both follow from walking the queue from the newest operation
//! back to the oldest.

use crate::fs::ids::FileNo;
use crate::fs::journal::ledger::{Names, QueuedOp};
use crate::store::PlainPath;
use std::collections::BTreeMap;

/// A child of a directory, as the ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalChild {
    /// A file.
    File(FileNo),
    /// A directory: recorded itself, or an ancestor of a recorded path.
    Directory,
    /// A special file. If the remote has an entry of that name, that one is shown instead.
    Special,
}

/// The local state to merge into the listing of one directory. See the module.
#[derive(Debug, Default)]
pub(crate) struct QueuedChanges {
    /// Directories of the remote whose union is this directory. Listed in this order, they show every entry at least
    /// once, even while an operation is moving entries from one to the next.
    pub(crate) sources: Vec<PlainPath>,
    /// Those of `sources` whose listing must be ignored. The operation that fills such a directory still waits for
    /// earlier ones, and its present entries are about to leave it.
    pub(crate) stale: Vec<PlainPath>,
    /// Names whose presence and kind are decided by local state.
    pub(crate) governed: Names,
    /// Names that the listing may lack. An operation that finished while the remote was listed has put something at
    /// or below them.
    pub(crate) arrived: Names,
    /// Children that the ledger has.
    pub(crate) children: BTreeMap<String, LocalChild>,
}

impl QueuedChanges {
    /// Adds a child at `below`, a NUL-separated path relative to the directory. A directory takes precedence over a
    /// file of the same name, as in a listing.
    pub(crate) fn add_child(&mut self, below: &str, child: LocalChild) {
        let (name, child) = match below.split_once('\0') {
            Some((name, _)) => (name, LocalChild::Directory),
            None => (below, child),
        };
        if matches!(child, LocalChild::File(_)) {
            self.governed.insert(name.to_owned());
        }
        let slot = self.children.entry(name.to_owned()).or_insert(child);
        if child == LocalChild::Directory {
            *slot = child;
        }
    }
}

/// A path that an operation fills, and the path that the content had before.
pub(crate) struct Moved {
    pub(crate) filled: PlainPath,
    pub(crate) before: PlainPath,
}

/// The walk back through the queue.
pub(crate) struct Walk {
    /// Paths that the directory's content had at the point that the walk has reached.
    now: Vec<PlainPath>,
    /// Paths that an operation may have filled already. Earlier operations don't concern them.
    filled: Vec<PlainPath>,
    /// Those of `filled` that are still empty of that content.
    stale: Vec<PlainPath>,
    governed: Names,
    arrived: Names,
}

impl Walk {
    /// Starts at the newest state.
    pub(crate) fn new(directory: &PlainPath) -> Self {
        Self {
            now: vec![directory.clone()],
            filled: Vec::new(),
            stale: Vec::new(),
            governed: Names::default(),
            arrived: Names::default(),
        }
    }

    /// Steps back over one operation. `is_queued` is false if the operation was carried out meanwhile. Returns the
    /// paths between which the operation moves the directory's content.
    pub(crate) fn step_back(&mut self, op: &QueuedOp, is_queued: bool) -> Vec<Moved> {
        op.paths().for_each(|path| self.govern(path));
        if let Some(path) = op.fills().filter(|_| !is_queued) {
            self.arrive(path);
        }
        let mut moved = Vec::new();
        match op {
            QueuedOp::Put { .. } | QueuedOp::Delete { .. } | QueuedOp::Rename { .. } => {}
            // The entries that the remote shows there are about to be removed.
            QueuedOp::RemoveDirectory { path } => self.now.retain(|place| !place.is_within(path)),
            QueuedOp::RenameDirectory { from, to } => {
                self.now.retain(|place| !place.is_within(from));
                for place in &mut self.now {
                    if let Some(before) = place.rebase(to, from) {
                        let filled = std::mem::replace(place, before.clone());
                        self.filled.push(filled.clone());
                        moved.push(Moved { filled, before });
                    }
                }
            }
        }
        moved
    }

    /// Records that the remote's listing of a filled path must be ignored, because the content hasn't arrived there
    /// yet.
    pub(crate) fn is_stale(&mut self, filled: PlainPath) {
        self.stale.push(filled);
    }

    fn govern(&mut self, path: &PlainPath) {
        if let Some((parent, name)) = path.split()
            && self.now.contains(&parent)
        {
            self.governed.insert(name.to_owned());
        }
    }

    fn arrive(&mut self, path: &PlainPath) {
        let below = self.now.iter().filter_map(|place| path.rebase(place, &PlainPath::root()));
        let names = below.filter_map(|below| Some(below.as_str().split('/').next()?.to_owned()));
        self.arrived.extend(names.filter(|name| !name.is_empty()));
    }

    /// Returns the result. The oldest paths come first, because entries only move from older to newer ones.
    pub(crate) fn finish(mut self) -> QueuedChanges {
        self.filled.reverse();
        self.now.append(&mut self.filled);
        let Self { now, stale, governed, arrived, .. } = self;
        QueuedChanges { sources: now, stale, governed, arrived, children: BTreeMap::new() }
    }
}
