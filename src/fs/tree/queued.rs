//! Lays queued operations over a listing of the source.
//!
//! While operations are queued, the source shows a past state. To list a local directory one asks: where does the source still keep what is
//! now in this directory, and which names must be taken from local state whatever the source says? Both are answered by walking the
//! queue from the newest operation back to the oldest.

use crate::fs::ids::FileNo;
use crate::fs::journal::ledger::{Names, QueuedOp};
use crate::store::PlainPath;
use std::collections::BTreeMap;

/// A child of a directory that the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalChild {
    /// A file.
    File(FileNo),
    /// A directory: itself remembered, or above something that is.
    Directory,
    /// A special file. What the source has of its name is shown instead.
    Special,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// Directories of the source whose union is this directory. In this order they show every entry at least once, even while an operation is
    /// moving entries from one to the next.
    pub(crate) sources: Vec<PlainPath>,
    /// Those of them that show nothing yet of what is to come there: operations before the one that fills them are queued, and what they
    /// show is on its way out.
    pub(crate) stale: Vec<PlainPath>,
    /// Names whose presence and kind local state decides.
    pub(crate) governed: Names,
    /// Names at or below which an operation put something that finished while the source was listed: the listing may lack them.
    pub(crate) arrived: Names,
    /// Children that the ledger knows.
    pub(crate) children: BTreeMap<String, LocalChild>,
}

impl Overlay {
    /// Adds what is at `below`, a NUL-separated path relative to the directory. A directory wins over a file of its name, as in a listing.
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

/// A place that an operation fills, and where the content was before.
pub(crate) struct Moved {
    pub(crate) filled: PlainPath,
    pub(crate) before: PlainPath,
}

/// The walk back through the queue.
pub(crate) struct Walk {
    /// Where the directory's content was at the point the walk has reached.
    now: Vec<PlainPath>,
    /// Places that an operation may have filled already; nothing before it concerns them.
    filled: Vec<PlainPath>,
    /// Those of them that are still empty of that.
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

    /// Takes one operation back. `is_queued`: it wasn't carried out meanwhile. Returns the places from which the
    /// content moves by that.
    pub(crate) fn step_back(&mut self, op: &QueuedOp, is_queued: bool) -> Vec<Moved> {
        op.paths().for_each(|path| self.govern(path));
        if let Some(path) = op.fills().filter(|_| !is_queued) {
            self.arrive(path);
        }
        let mut moved = Vec::new();
        match op {
            QueuedOp::Put { .. } | QueuedOp::Delete { .. } | QueuedOp::Rename { .. } => {}
            // What the source shows there is on its way out.
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

    /// Notes that a filled place shows nothing yet of what is to come there.
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

    /// The oldest places come first: entries only move from older to newer ones.
    pub(crate) fn finish(mut self) -> Overlay {
        self.filled.reverse();
        self.now.append(&mut self.filled);
        let Self { now, stale, governed, arrived, .. } = self;
        Overlay { sources: now, stale, governed, arrived, children: BTreeMap::new() }
    }
}
