//! The inode table of an overlay.
//!
//! An inode belongs to a name in the merged tree. It holds one reference to its inode in each branch that has it. A
//! file stays in the branch where it was found; a folder gains and loses branches. Numbers are computed from the
//! parent's number and the name, so that a listing needs no table entry for each name. They are stable while the kernel
//! knows them.

use crate::fs::{Error, FileKind, Ino};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Most branches of an overlay.
pub(super) const BRANCHES: usize = 3;
/// Bits of a number. More would not survive in programs that take numbers for floating-point values.
const NUMBER_BITS: u32 = 53;

/// Inodes in the branches.
pub(super) type Inos = [Option<Ino>; BRANCHES];
/// References to inodes in the branches that aren't needed any more.
pub(super) type Surplus = Vec<(usize, Ino)>;

/// An inode of the overlay.
#[derive(Clone)]
pub(super) struct Node {
    /// Parent and name. `None` for the root and for entries that were removed.
    pub(super) place: Option<(Ino, String)>,
    pub(super) kind: FileKind,
    pub(super) inos: Inos,
    /// References of the kernel.
    lookups: u64,
    children: usize,
}

/// The table. See the module.
pub(super) struct Nodes {
    nodes: HashMap<Ino, Node>,
    names: HashMap<(Ino, String), Ino>,
}

impl Nodes {
    /// Returns a table with the root, which all branches have.
    pub(super) fn new(branches: usize) -> Self {
        let mut inos = Inos::default();
        inos[..branches].fill(Some(Ino::ROOT));
        let root = Node { place: None, kind: FileKind::Directory, inos, lookups: 1, children: 0 };
        Self { nodes: HashMap::from([(Ino::ROOT, root)]), names: HashMap::new() }
    }

    /// Returns an inode.
    pub(super) fn node(&self, ino: Ino) -> Result<&Node, Error> {
        self.nodes.get(&ino).ok_or(Error::NotFound)
    }

    /// Returns the parent of a directory. The root is its own parent.
    pub(super) fn parent(&self, ino: Ino) -> Ino {
        self.nodes.get(&ino).and_then(|node| node.place.as_ref()).map_or(ino, |(parent, _)| *parent)
    }

    /// Returns the number that a listing shows for a name.
    pub(super) fn listed_number(&self, parent: Ino, name: &str) -> Ino {
        let known = self.names.get(&(parent, name.to_owned())).copied();
        known.unwrap_or_else(|| self.free_number(parent, name))
    }

    /// Returns the number that a name has, or would get as an entry of this kind in these branches.
    pub(super) fn number(&self, parent: Ino, name: &str, kind: FileKind, inos: &Inos) -> Ino {
        match self.names.get(&(parent, name.to_owned())) {
            Some(ino) if self.is_same(*ino, kind, inos) => *ino,
            _ => self.free_number(parent, name),
        }
    }

    /// Adds one reference of the kernel to the inode of a name, which takes over the references in `inos`. With
    /// `is_whole`, branches that `inos` lacks don't have the entry any more.
    pub(super) fn adopt(
        &mut self,
        parent: Ino,
        name: &str,
        kind: FileKind,
        inos: Inos,
        is_whole: bool,
    ) -> Result<(Ino, Surplus), Error> {
        self.node(parent)?;
        let mut surplus = Surplus::new();
        let known = self.names.get(&(parent, name.to_owned())).copied();
        if let Some(ino) = known {
            if self.is_same(ino, kind, &inos)
                && let Some(node) = self.nodes.get_mut(&ino)
            {
                node.lookups += 1;
                merge(&mut node.inos, inos, is_whole, &mut surplus);
                return Ok((ino, surplus));
            }
            surplus = self.detach(parent, name);
        }
        let ino = self.free_number(parent, name);
        self.nodes.insert(ino, Node { place: None, kind, inos, lookups: 1, children: 0 });
        self.attach(ino, (parent, name.to_owned()));
        Ok((ino, surplus))
    }

    /// Records that a branch has a directory.
    pub(super) fn extend(&mut self, ino: Ino, branch: usize, there: Ino) -> Surplus {
        let mut inos = Inos::default();
        inos[branch] = Some(there);
        let mut surplus = Surplus::new();
        match self.nodes.get_mut(&ino) {
            Some(node) => merge(&mut node.inos, inos, false, &mut surplus),
            None => surplus.push((branch, there)),
        }
        surplus
    }

    /// Takes its name from an inode.
    pub(super) fn detach(&mut self, parent: Ino, name: &str) -> Surplus {
        let Some(ino) = self.unname(parent, name) else { return Surplus::new() };
        let mut surplus = self.sweep(ino);
        surplus.extend(self.sweep(parent));
        surplus
    }

    /// Moves the inode of a name. Takes its name from the inode at the target.
    pub(super) fn rename(&mut self, parent: Ino, name: &str, to_parent: Ino, to_name: &str) -> Surplus {
        let mut surplus = self.detach(to_parent, to_name);
        if let Some(ino) = self.unname(parent, name) {
            self.attach(ino, (to_parent, to_name.to_owned()));
            surplus.extend(self.sweep(parent));
        }
        surplus
    }

    /// Drops `count` references of the kernel.
    pub(super) fn forget(&mut self, ino: Ino, count: u64) -> Surplus {
        match self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            Some(node) => node.lookups = node.lookups.saturating_sub(count),
            None => return Surplus::new(),
        }
        self.sweep(ino)
    }

    /// Returns the number of inodes, the root included.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns true if an inode can stand for an entry of this kind in these branches.
    fn is_same(&self, ino: Ino, kind: FileKind, inos: &Inos) -> bool {
        let node = self.nodes.get(&ino).filter(|node| node.kind == kind);
        node.is_some_and(|node| kind == FileKind::Directory || node.inos == *inos)
    }

    fn free_number(&self, parent: Ino, name: &str) -> Ino {
        let mut hasher = DefaultHasher::new();
        (parent.0, name).hash(&mut hasher);
        let mut number = hasher.finish() >> (u64::BITS - NUMBER_BITS);
        while number <= Ino::ROOT.0 || self.nodes.contains_key(&Ino(number)) {
            number += 1;
        }
        Ino(number)
    }

    fn attach(&mut self, ino: Ino, place: (Ino, String)) {
        if let Some(parent) = self.nodes.get_mut(&place.0) {
            parent.children += 1;
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = Some(place.clone());
        }
        self.names.insert(place, ino);
    }

    fn unname(&mut self, parent: Ino, name: &str) -> Option<Ino> {
        let ino = self.names.remove(&(parent, name.to_owned()))?;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = None;
        }
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children -= 1;
        }
        Some(ino)
    }

    /// Drops an inode that isn't needed, and its parents as far as they aren't.
    fn sweep(&mut self, ino: Ino) -> Surplus {
        let (mut surplus, mut at) = (Surplus::new(), Some(ino));
        while let Some(ino) = at.take() {
            let Some(node) = self.nodes.get(&ino).filter(|node| node.lookups == 0 && node.children == 0) else { break };
            if let Some((parent, name)) = node.place.clone() {
                self.unname(parent, &name);
                at = Some(parent);
            }
            let node = self.nodes.remove(&ino);
            let inos = node.map(|node| node.inos).unwrap_or_default();
            surplus.extend(inos.into_iter().enumerate().filter_map(|(branch, ino)| Some((branch, ino?))));
        }
        surplus
    }
}

/// Merges references to inodes of the branches.
fn merge(inos: &mut Inos, new: Inos, is_whole: bool, surplus: &mut Surplus) {
    for (branch, (ino, new)) in inos.iter_mut().zip(new).enumerate() {
        let dropped = match (*ino, new) {
            (Some(old), Some(new)) if old == new => Some(new),
            (old, Some(new)) => {
                *ino = Some(new);
                old
            }
            (old, None) if is_whole => {
                *ino = None;
                old
            }
            (_, None) => None,
        };
        surplus.extend(dropped.map(|ino| (branch, ino)));
    }
}
