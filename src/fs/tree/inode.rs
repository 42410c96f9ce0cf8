//! The inode table: what the kernel and we call a file, and where it hangs in the tree.
//!
//! Pure memory behind one lock, held for short and never across an await. An inode number is given once and its kind never changes; a name
//! that becomes another kind, or another version while handles are open, gets a new inode. An inode lives while it has a place in a directory, the
//! kernel remembers it (lookup count) or a handle is open.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::FileKind;
use crate::fs::ids::Ino;
use crate::fs::ids::{FileNo, Special};
use crate::fs::lock::{Mutex, Rank};
use crate::fs::options::Options;
use crate::fs::tree::xattr::Xattrs;
use crate::store::{Len, PlainPath, Version, stored_mtime};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use time::OffsetDateTime;

/// A special file has no content; the kernel never asks for it.
const NO_CONTENT: Error = Error::Invalid("a special file has no content");
/// Blocks are reported in units of this many bytes.
const BLOCK: u64 = 512;

/// What a new entry gets from whoever makes it; what is missing it has as all others do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Birth {
    /// Permission bits.
    pub mode: Option<u16>,
    /// User and group of the process.
    pub owner: Option<(u32, u32)>,
}

/// What `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// What it is.
    pub kind: FileKind,
    /// Plaintext size in bytes.
    pub len: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access, as set by hand: reading doesn't change it.
    pub atime: SystemTime,
    /// Last change of the content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// Permission bits.
    pub mode: u16,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// A device's number.
    pub device: u32,
    /// Whether the size is known: else it must not be cached.
    pub is_certain: bool,
}

/// The set-group-ID bit of a mode.
const SET_GROUP_ID: u16 = 0o2000;

/// Attributes that live in memory only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks {
    pub(crate) mode: Option<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) atime: Option<SystemTime>,
    pub(crate) mtime: Option<SystemTime>,
    pub(crate) ctime: Option<SystemTime>,
}

/// A directory's state.
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<String, Ino>,
    /// How many of them are directories.
    subdirectories: u32,
    /// When the source was listed last.
    pub(crate) loaded: Option<Instant>,
    /// How long that took.
    pub(crate) took: Duration,
    /// When a listing for a missed name failed last.
    pub(crate) failed: Option<Instant>,
    /// Stored entries that can't be shown and yet are there.
    pub(crate) unreadable: u64,
    /// It has a plaintext side in a view with a key.
    pub(crate) read_only: bool,
    /// One listing at a time.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
    pub(crate) mtime: SystemTime,
}

/// A file's state.
pub(crate) struct File {
    /// The content at the source, as last seen or committed.
    pub(crate) version: Option<Version>,
    pub(crate) len: Len,
    pub(crate) mtime: Option<OffsetDateTime>,
    pub(crate) mtime_source: MtimeSource,
    pub(crate) read_only: bool,
    /// Its number in the ledger; stale when the ledger has no such record any more.
    pub(crate) file: Option<FileNo>,
    /// Local content.
    pub(crate) edit: Option<Arc<Edit>>,
    /// Counts our own changes of `version`: handles follow those, but stay with their version when somebody else makes one.
    pub(crate) epoch: u64,
    /// What the kernel's page cache was filled from.
    pub(crate) cached: Option<Cached>,
}

/// Where a file's `mtime` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MtimeSource {
    /// A listing.
    Remote,
    /// A change made in this mount. The remote object may have a newer time, so that other clients see that it was
    /// replaced.
    Local {
        /// The time that listings show for the version.
        remote: Option<OffsetDateTime>,
    },
}

/// What the pages that the kernel holds of a file belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// A version of the source.
    Version(Version),
    /// Local content, which changes through the kernel only.
    Edit(FileNo),
}

/// What an inode is.
pub(crate) enum Body {
    Directory(Directory),
    File(File),
    /// What only this machine has, and when it was made.
    Special(Special, SystemTime),
}

/// An inode.
pub(crate) struct Node {
    /// Parent and name; none for the root and for what was removed.
    pub(crate) place: Option<(Ino, String)>,
    pub(crate) lookups: u64,
    /// Somebody else took its name away; the kernel may not have heard of it.
    pub(crate) lost: bool,
    /// Open handles, and those that write.
    pub(crate) opens: u32,
    pub(crate) writers: u32,
    pub(crate) looks: Looks,
    pub(crate) xattrs: Xattrs,
    pub(crate) body: Body,
}

impl Directory {
    fn add(&mut self, name: &str, ino: Ino, is_directory: bool) {
        self.children.insert(name.to_owned(), ino);
        self.subdirectories += u32::from(is_directory);
    }

    fn take(&mut self, name: &str, is_directory: bool) {
        if self.children.remove(name).is_some() {
            self.subdirectories -= u32::from(is_directory);
        }
    }
}

impl Node {
    /// A directory that nobody has listed yet.
    pub(crate) fn directory(read_only: bool) -> Self {
        let directory = Directory {
            children: BTreeMap::new(),
            subdirectories: 0,
            loaded: None,
            took: Duration::ZERO,
            failed: None,
            unreadable: 0,
            read_only,
            gate: Arc::default(),
            mtime: SystemTime::now(),
        };
        Self::new(Body::Directory(directory))
    }

    /// A file as the source has it.
    pub(crate) fn file(version: Option<Version>, len: Len, mtime: Option<OffsetDateTime>, read_only: bool) -> Self {
        let mtime_source = MtimeSource::Remote;
        let file =
            File { version, len, mtime, mtime_source, read_only, file: None, edit: None, epoch: 0, cached: None };
        Self::new(Body::File(file))
    }

    /// A file with local content.
    pub(crate) fn edited(edit: Arc<Edit>) -> Self {
        let mut node = Self::file(None, Len::Known(0), None, false);
        if let Body::File(file) = &mut node.body {
            file.file = Some(edit.file);
            file.edit = Some(edit);
        }
        node
    }

    /// A link, a pipe, a socket or a device.
    pub(crate) fn special(special: Special) -> Self {
        Self::new(Body::Special(special, SystemTime::now()))
    }

    fn new(body: Body) -> Self {
        let (looks, xattrs) = (Looks::default(), Xattrs::default());
        Self { place: None, lookups: 0, lost: false, opens: 0, writers: 0, looks, xattrs, body }
    }

    /// What it is.
    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::Directory(_) => FileKind::Directory,
            Body::File(_) => FileKind::File,
            Body::Special(special, _) => special.kind(),
        }
    }

    /// What only this machine has.
    pub(crate) fn as_special(&self) -> Option<&Special> {
        match &self.body {
            Body::Special(special, _) => Some(special),
            _ => None,
        }
    }

    /// The file, or `IsDirectory`; `Invalid` for what has no content of its own.
    pub(crate) fn as_file(&self) -> Result<&File, Error> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::IsDirectory),
            Body::Special(..) => Err(NO_CONTENT),
        }
    }

    /// See [`Node::as_file`].
    pub(crate) fn as_file_mut(&mut self) -> Result<&mut File, Error> {
        match &mut self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::IsDirectory),
            Body::Special(..) => Err(NO_CONTENT),
        }
    }

    /// The directory, or `NotDirectory`.
    pub(crate) fn as_directory(&self) -> Result<&Directory, Error> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Special(..) => Err(Error::NotDirectory),
        }
    }

    /// See [`Node::as_directory`].
    pub(crate) fn as_directory_mut(&mut self) -> Result<&mut Directory, Error> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Special(..) => Err(Error::NotDirectory),
        }
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn is_needed(&self) -> bool {
        self.place.is_some() || self.lookups > 0 || self.opens > 0
    }
}

/// The inode table behind its lock.
pub(crate) type InodeTable = Mutex<Tree, { Rank::Tree as u8 }>;

/// See the module.
pub(crate) struct Tree {
    nodes: HashMap<Ino, Node>,
    next: u64,
    /// What has no time of its own gets the time of the mount.
    started: SystemTime,
    /// Bytes of all extended attributes.
    xattr_bytes: usize,
}

impl Tree {
    /// A root that nobody has listed yet.
    pub(crate) fn new() -> Self {
        let nodes = HashMap::from([(Ino::ROOT, Node::directory(false))]);
        Self { nodes, next: Ino::ROOT.0 + 1, started: SystemTime::now(), xattr_bytes: 0 }
    }

    /// An inode.
    pub(crate) fn node(&self, ino: Ino) -> Result<&Node, Error> {
        self.nodes.get(&ino).ok_or(Error::NotFound)
    }

    /// See [`Tree::node`].
    pub(crate) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Error> {
        self.nodes.get_mut(&ino).ok_or(Error::NotFound)
    }

    /// A directory's state.
    pub(crate) fn directory(&self, ino: Ino) -> Result<&Directory, Error> {
        self.node(ino)?.as_directory()
    }

    /// A directory's state.
    pub(crate) fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Error> {
        self.node_mut(ino)?.as_directory_mut()
    }

    /// A file's state.
    pub(crate) fn file(&self, ino: Ino) -> Result<&File, Error> {
        self.node(ino)?.as_file()
    }

    /// A file's state.
    pub(crate) fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Error> {
        self.node_mut(ino)?.as_file_mut()
    }

    /// The child of a name.
    pub(crate) fn child(&self, parent: Ino, name: &str) -> Result<Option<Ino>, Error> {
        Ok(self.directory(parent)?.children.get(name).copied())
    }

    /// The inode at a path, as far as it is in the table.
    pub(crate) fn find(&self, path: &PlainPath) -> Option<Ino> {
        let mut at = Ino::ROOT;
        for name in path.as_str().split('/').filter(|name| !name.is_empty()) {
            at = self.child(at, name).ok()??;
        }
        Some(at)
    }

    /// Where an inode is now; `NotFound` for what was removed, or lies in something that was.
    pub(crate) fn path(&self, ino: Ino) -> Result<PlainPath, Error> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let (parent, name) = self.node(at)?.place.as_ref().ok_or(Error::NotFound)?;
            names.push(name.as_str());
            at = *parent;
        }
        let mut path = PlainPath::root();
        for name in names.into_iter().rev() {
            path = path.join(name)?;
        }
        Ok(path)
    }

    /// Whether `ino` is `above` or lies below it.
    pub(crate) fn is_within(&self, ino: Ino, above: Ino) -> bool {
        let mut at = Some(ino);
        while let Some(now) = at {
            if now == above {
                return true;
            }
            at = self.nodes.get(&now).and_then(|node| node.place.as_ref()).map(|(parent, _)| *parent);
        }
        false
    }

    /// All inodes below a directory, parents first.
    pub(crate) fn below(&self, ino: Ino) -> Vec<Ino> {
        let mut found = Vec::new();
        let mut open = vec![ino];
        while let Some(at) = open.pop() {
            let children = self.directory(at).map(|directory| directory.children.values().copied());
            for child in children.into_iter().flatten() {
                found.push(child);
                open.push(child);
            }
        }
        found
    }

    /// Hangs a new node into a directory.
    pub(crate) fn insert(&mut self, parent: Ino, name: &str, mut node: Node) -> Result<Ino, Error> {
        let ino = Ino(self.next);
        self.directory_mut(parent)?.add(name, ino, node.is_directory());
        self.next += 1;
        node.place = Some((parent, name.to_owned()));
        self.nodes.insert(ino, node);
        Ok(ino)
    }

    /// Takes a name away. The inode stays while somebody needs it.
    pub(crate) fn remove(&mut self, parent: Ino, name: &str) -> Option<Ino> {
        let ino = self.child(parent, name).ok()??;
        let is_directory = self.nodes.get(&ino).is_some_and(Node::is_directory);
        self.directory_mut(parent).ok()?.take(name, is_directory);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = None;
        }
        self.sweep(ino);
        Some(ino)
    }

    /// The same for a name that somebody else took away, and all that is below it: what the kernel still believes to be there must not be
    /// changed any more, since nothing would come of it.
    pub(crate) fn lose(&mut self, parent: Ino, name: &str) {
        if let Ok(Some(ino)) = self.child(parent, name) {
            for ino in std::iter::once(ino).chain(self.below(ino)) {
                if let Some(node) = self.nodes.get_mut(&ino) {
                    node.lost = true;
                }
            }
        }
        self.remove(parent, name);
    }

    /// Moves an inode; what was at the target is removed.
    pub(crate) fn relocate(&mut self, ino: Ino, parent: Ino, name: &str) -> Result<(), Error> {
        self.directory(parent)?;
        let is_directory = self.node(ino)?.is_directory();
        if let Some((old, name)) = self.node_mut(ino)?.place.take() {
            self.directory_mut(old)?.take(&name, is_directory);
        }
        self.remove(parent, name);
        self.directory_mut(parent)?.add(name, ino, is_directory);
        self.node_mut(ino)?.place = Some((parent, name.to_owned()));
        Ok(())
    }

    /// Drops a node, and what hangs below it, that nobody needs.
    fn sweep(&mut self, ino: Ino) {
        let mut open = vec![ino];
        while let Some(at) = open.pop() {
            let Some(node) = self.nodes.get(&at).filter(|node| !node.is_needed()) else { continue };
            if let Body::Directory(directory) = &node.body {
                let children: Vec<_> = directory.children.values().copied().collect();
                for child in children {
                    if let Some(node) = self.nodes.get_mut(&child) {
                        node.place = None;
                    }
                    open.push(child);
                }
            }
            let gone = self.nodes.remove(&at);
            self.count_xattrs(gone.map_or(0, |node| node.xattrs.bytes()), 0);
        }
    }

    /// Bytes of all extended attributes.
    pub(crate) fn xattr_bytes(&self) -> usize {
        self.xattr_bytes
    }

    /// Those of an inode took `before` bytes, and take `after` now.
    pub(crate) fn count_xattrs(&mut self, before: usize, after: usize) {
        self.xattr_bytes = self.xattr_bytes - before + after;
    }

    /// The kernel learns of an inode once more.
    pub(crate) fn remember(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// The kernel forgets it `count` times.
    pub(crate) fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            node.lookups = node.lookups.saturating_sub(count);
            self.sweep(ino);
        }
    }

    /// A handle was opened.
    pub(crate) fn opened(&mut self, ino: Ino, writes: bool) -> Result<(), Error> {
        let node = self.node_mut(ino)?;
        node.opens += 1;
        node.writers += u32::from(writes);
        Ok(())
    }

    /// A handle was closed.
    pub(crate) fn closed(&mut self, ino: Ino, writes: bool) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_sub(1);
            node.writers = node.writers.saturating_sub(u32::from(writes));
            if ino != Ino::ROOT {
                self.sweep(ino);
            }
        }
    }

    /// What a new entry of a directory looks like. A directory with the set-group-ID bit hands its group down, and the bit to directories.
    pub(crate) fn looks_for(
        &self,
        parent: Ino,
        birth: Birth,
        is_directory: bool,
        options: &Options,
    ) -> Result<Looks, Error> {
        let parent = self.attr(parent, options)?;
        let hands_down = parent.mode & SET_GROUP_ID != 0;
        let bit = if hands_down && is_directory { SET_GROUP_ID } else { 0 };
        Ok(Looks {
            mode: birth.mode.map(|mode| (mode & 0o7777) | bit),
            uid: birth.owner.map(|(uid, _)| uid),
            gid: if hands_down { Some(parent.gid) } else { birth.owner.map(|(_, gid)| gid) },
            ..Looks::default()
        })
    }

    /// What `stat` tells of an inode.
    pub(crate) fn attr(&self, ino: Ino, options: &Options) -> Result<Attr, Error> {
        let node = self.node(ino)?;
        let (len, mtime, nlink, is_certain, mode) = match &node.body {
            Body::Directory(directory) => {
                let links = if node.place.is_none() && ino != Ino::ROOT { 0 } else { 2 + directory.subdirectories };
                (0, directory.mtime, links, true, options.dir_mode)
            }
            Body::Special(special, made) => {
                let mode = if matches!(special, Special::Link(_)) { 0o777 } else { options.file_mode };
                (special.len(), *made, u32::from(node.place.is_some()), true, mode)
            }
            Body::File(file) => {
                let (len, is_certain) = file.size();
                let mtime = file.time().map_or(self.started, SystemTime::from);
                let mode = if file.read_only { options.file_mode & !0o222 } else { options.file_mode };
                (len, mtime, u32::from(node.place.is_some()), is_certain, mode)
            }
        };
        let mode = if options.read_only { mode & !0o222 } else { mode };
        let looks = &node.looks;
        let mtime = shown(looks.mtime.unwrap_or(mtime));
        Ok(Attr {
            ino,
            kind: node.kind(),
            len,
            blocks: len.div_ceil(BLOCK),
            atime: looks.atime.map_or(mtime, shown),
            mtime,
            ctime: looks.ctime.map_or(mtime, |ctime| shown(ctime).max(mtime)),
            mode: looks.mode.unwrap_or(mode),
            nlink,
            uid: looks.uid.unwrap_or(options.uid),
            gid: looks.gid.unwrap_or(options.gid),
            device: node.as_special().map_or(0, Special::device),
            is_certain,
        })
    }
}

impl File {
    /// The size, and whether it is known.
    pub(crate) fn size(&self) -> (u64, bool) {
        match (&self.edit, self.len) {
            (Some(edit), _) => (edit.len(), true),
            (None, Len::Known(len)) => (len, true),
            (None, Len::Damaged) => (0, true),
            (None, Len::Unread) => (0, false),
        }
    }

    fn time(&self) -> Option<OffsetDateTime> {
        self.edit.as_ref().map(|edit| edit.mtime()).or(self.mtime)
    }

    /// Sets the time that a change in this mount gave the version. Listings don't change it.
    pub(crate) fn keep_mtime(&mut self, mtime: Option<OffsetDateTime>) {
        if mtime.is_some() {
            (self.mtime, self.mtime_source) = (mtime, MtimeSource::Local { remote: None });
        }
    }

    /// Returns true if a listing that shows `listed` for the same version leaves the time as it is. A listing with
    /// another time than the first
    /// one shows a change that another client made.
    pub(crate) fn keeps_mtime(&mut self, listed: Option<OffsetDateTime>) -> bool {
        match &mut self.mtime_source {
            MtimeSource::Remote => false,
            MtimeSource::Local { remote } => listed.is_none_or(|listed| *remote.get_or_insert(listed) == listed),
        }
    }
}

/// Returns a time as it is shown: with the granularity that the Hub stores, so that no upload changes it.
fn shown(time: SystemTime) -> SystemTime {
    stored_mtime(time).into()
}

/// A name came or went.
pub(crate) fn touch(tree: &mut Tree, directory: Ino) {
    if let Ok(node) = tree.node_mut(directory) {
        // A time that was set by hand ends with the next change.
        (node.looks.mtime, node.looks.ctime) = (None, None);
    }
    if let Ok(directory) = tree.directory_mut(directory) {
        directory.mtime = SystemTime::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Node {
        Node::file(None, Len::Known(0), None, false)
    }

    #[test]
    fn a_removed_inode_lives_while_the_kernel_or_a_handle_needs_it() {
        let mut tree = Tree::new();
        let ino = tree.insert(Ino::ROOT, "a", file()).unwrap();
        tree.remember(ino);
        tree.opened(ino, false).unwrap();
        tree.remove(Ino::ROOT, "a");
        assert!(matches!(tree.path(ino), Err(Error::NotFound)));
        tree.forget(ino, 1);
        assert!(tree.node(ino).is_ok());
        tree.closed(ino, false);
        assert!(tree.node(ino).is_err());
    }

    #[test]
    fn a_removed_directory_takes_unneeded_children_with_it_and_keeps_needed_ones() {
        let mut tree = Tree::new();
        let dir = tree.insert(Ino::ROOT, "d", Node::directory(false)).unwrap();
        let kept = tree.insert(dir, "kept", file()).unwrap();
        let gone = tree.insert(dir, "gone", file()).unwrap();
        tree.remember(kept);
        tree.remove(Ino::ROOT, "d");
        assert!(tree.node(dir).is_err());
        assert!(tree.node(gone).is_err());
        assert!(tree.node(kept).is_ok());
        tree.forget(kept, 1);
        assert!(tree.node(kept).is_err());
    }

    #[test]
    fn relocating_replaces_the_target_and_keeps_the_number() {
        let mut tree = Tree::new();
        let dir = tree.insert(Ino::ROOT, "d", Node::directory(false)).unwrap();
        let a = tree.insert(Ino::ROOT, "a", file()).unwrap();
        let b = tree.insert(dir, "b", file()).unwrap();
        tree.relocate(a, dir, "b").unwrap();
        assert_eq!(tree.path(a).unwrap().as_str(), "d/b");
        assert_eq!(tree.child(Ino::ROOT, "a").unwrap(), None);
        assert!(tree.node(b).is_err());
        assert!(tree.is_within(a, dir) && !tree.is_within(dir, a));
        let below = tree.insert(dir, "below", Node::directory(false)).unwrap();
        tree.relocate(below, Ino::ROOT, "d2").unwrap();
        tree.relocate(dir, below, "d").unwrap();
        let links = |ino| tree.directory(ino).unwrap().subdirectories;
        assert_eq!((links(Ino::ROOT), links(below), links(dir)), (1, 1, 0));
    }

    #[test]
    fn forgetting_more_than_was_remembered_is_harmless() {
        let mut tree = Tree::new();
        let ino = tree.insert(Ino::ROOT, "a", file()).unwrap();
        tree.forget(ino, 7);
        tree.forget(Ino::ROOT, 7);
        assert!(tree.node(ino).is_ok() && tree.node(Ino::ROOT).is_ok());
    }
}
