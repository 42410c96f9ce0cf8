//! The inode table: the inodes that the kernel and this filesystem know, and their positions in the tree.
//!
//! The table is pure memory with one lock, which is held briefly and never across an await. An inode number is never
//! reused, and its kind never changes. A name gets a new inode if its kind changes, or if its version changes while
//! handles are open. An inode stays in the table while it has a name in a directory, while the kernel has references
//! to it (lookup count), or while a handle is open.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::FileKind;
use crate::fs::ids::Ino;
use crate::fs::ids::{FileNo, Special};
use crate::fs::lock::{Mutex, Rank};
use crate::fs::options::Options;
use crate::fs::tree::evict::SLACK;
use crate::fs::tree::freshness::Mark;
use crate::fs::tree::xattr::Xattrs;
use crate::store::{Len, PlainPath, Version, stored_mtime};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use time::OffsetDateTime;
use tokio::sync::Notify;

/// The error for access to a special file's content. The kernel never asks for it.
const NO_CONTENT: Error = Error::Invalid("a special file has no content");
/// Unit in which `stat` reports blocks, bytes.
const BLOCK: u64 = 512;

/// Mode and owner of a new entry. `None` stands for the mount's default.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewAttrs {
    /// Permission bits.
    pub mode: Option<u16>,
    /// User and group of the process.
    pub owner: Option<(u32, u32)>,
}

/// The attributes that `stat` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Plaintext size in bytes.
    pub len: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access, as set by the user: reading doesn't change it.
    pub atime: SystemTime,
    /// Last change of the content.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// Permission bits.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The number of a device.
    pub device: u32,
    /// True if the size is known. Otherwise, it must not be cached.
    pub is_certain: bool,
}

/// The set-group-ID bit of a mode.
const SET_GROUP_ID: u16 = 0o2000;

/// Attributes that override the defaults. They are kept in memory only and are lost at unmount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttrOverrides {
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
    /// Number of children that are directories.
    subdirectories: u32,
    /// Time of the last listing of the remote.
    pub(crate) loaded: Option<Instant>,
    /// Revision of that listing, if it is known.
    pub(crate) mark: Option<Mark>,
    /// Duration of that listing.
    pub(crate) took: Duration,
    /// Time of the last failure of a listing for a missed name.
    pub(crate) failed: Option<Instant>,
    /// Stored entries that exist but can't be shown.
    pub(crate) unreadable: u64,
    /// True if the directory is on the plaintext side of a view with a key.
    pub(crate) read_only: bool,
    /// Number of the last use of its listing, see [`Tree::use_listing`], and its time.
    used: Option<(u64, Instant)>,
    /// True if its listing was dropped. The next one brings back what was there, which is no change.
    pub(crate) was_dropped: bool,
    /// The lock that allows one listing at a time.
    pub(crate) gate: Arc<tokio::sync::Mutex<()>>,
    pub(crate) mtime: SystemTime,
}

/// A file's state.
pub(crate) struct File {
    /// The content at the remote, as last listed or committed.
    pub(crate) version: Option<Version>,
    pub(crate) len: Len,
    pub(crate) mtime: Option<OffsetDateTime>,
    pub(crate) mtime_source: MtimeSource,
    pub(crate) read_only: bool,
    /// The file's number in the ledger. It is stale if the ledger has no such record any more.
    pub(crate) file: Option<FileNo>,
    /// The local content, if any.
    pub(crate) edit: Option<Arc<Edit>>,
    /// A counter of our own changes of `version`. Handles switch to those versions. They stay with their version if
    /// another client changes the file.
    pub(crate) epoch: u64,
    /// The content from which the kernel's page cache was filled.
    pub(crate) cached: Option<Cached>,
}

/// The origin of a file's `mtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MtimeSource {
    /// The time is from a listing.
    Remote,
    /// The time is that of a change in this mount. The remote object may have a newer time, so that other clients
    /// notice the replacement.
    Local {
        /// The time that listings show for the version.
        remote: Option<OffsetDateTime>,
    },
}

/// The content to which the kernel's cached pages of a file belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// A version of the remote.
    Version(Version),
    /// Local content, which changes only through the kernel.
    Edit(FileNo),
}

/// The kind of an inode, with the state of that kind.
pub(crate) enum Body {
    Directory(Directory),
    File(File),
    /// A file that only this machine has, and its creation time.
    Special(Special, SystemTime),
}

/// An inode.
pub(crate) struct Node {
    /// Parent and name. `None` for the root and for inodes that were removed.
    pub(crate) place: Option<(Ino, String)>,
    pub(crate) lookups: u64,
    /// True if another client removed the name. The kernel may not know that yet.
    pub(crate) lost: bool,
    /// True if it goes as soon as the kernel has no references to it.
    unwanted: bool,
    /// Number of open handles. The next field counts those that write.
    pub(crate) opens: u32,
    pub(crate) writers: u32,
    pub(crate) overrides: AttrOverrides,
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
    /// Returns a directory that was never listed.
    pub(crate) fn directory(read_only: bool) -> Self {
        let directory = Directory {
            children: BTreeMap::new(),
            subdirectories: 0,
            loaded: None,
            mark: None,
            took: Duration::ZERO,
            failed: None,
            unreadable: 0,
            read_only,
            used: None,
            was_dropped: false,
            gate: Arc::default(),
            mtime: SystemTime::now(),
        };
        Self::new(Body::Directory(directory))
    }

    /// Returns a file as the remote has it.
    pub(crate) fn file(version: Option<Version>, len: Len, mtime: Option<OffsetDateTime>, read_only: bool) -> Self {
        let mtime_source = MtimeSource::Remote;
        let file =
            File { version, len, mtime, mtime_source, read_only, file: None, edit: None, epoch: 0, cached: None };
        Self::new(Body::File(file))
    }

    /// Returns a file with local content.
    pub(crate) fn edited(edit: Arc<Edit>) -> Self {
        let mut node = Self::file(None, Len::Known(0), None, false);
        if let Body::File(file) = &mut node.body {
            file.file = Some(edit.file);
            file.edit = Some(edit);
        }
        node
    }

    /// Returns a link, a pipe, a socket or a device.
    pub(crate) fn special(special: Special) -> Self {
        Self::new(Body::Special(special, SystemTime::now()))
    }

    fn new(body: Body) -> Self {
        let (overrides, xattrs) = (AttrOverrides::default(), Xattrs::default());
        Self { place: None, lookups: 0, lost: false, unwanted: false, opens: 0, writers: 0, overrides, xattrs, body }
    }

    /// Returns the kind.
    pub(crate) fn kind(&self) -> FileKind {
        match &self.body {
            Body::Directory(_) => FileKind::Directory,
            Body::File(_) => FileKind::File,
            Body::Special(special, _) => special.kind(),
        }
    }

    /// Returns the special file, if it is one.
    pub(crate) fn as_special(&self) -> Option<&Special> {
        match &self.body {
            Body::Special(special, _) => Some(special),
            _ => None,
        }
    }

    /// Returns the file's state. Fails with `IsDirectory`, or with `Invalid` for a special file.
    pub(crate) fn as_file(&self) -> Result<&File, Error> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::IsDirectory),
            Body::Special(..) => Err(NO_CONTENT),
        }
    }

    /// Returns the file's state, as [`Node::as_file`] does.
    pub(crate) fn as_file_mut(&mut self) -> Result<&mut File, Error> {
        match &mut self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Error::IsDirectory),
            Body::Special(..) => Err(NO_CONTENT),
        }
    }

    /// Returns the directory's state, or `NotDirectory`.
    pub(crate) fn as_directory(&self) -> Result<&Directory, Error> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Special(..) => Err(Error::NotDirectory),
        }
    }

    /// Returns the directory's state, as [`Node::as_directory`] does.
    pub(crate) fn as_directory_mut(&mut self) -> Result<&mut Directory, Error> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) | Body::Special(..) => Err(Error::NotDirectory),
        }
    }

    /// Returns true if it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn is_needed(&self) -> bool {
        self.place.is_some() || self.lookups > 0 || self.opens > 0
    }

    /// Returns true if a listing brings back all that the inode holds, and no handle is open.
    fn is_of_listing(&self) -> bool {
        let is_remote = match &self.body {
            Body::Directory(directory) => directory.children.is_empty(),
            Body::File(file) => file.edit.is_none() && file.mtime_source == MtimeSource::Remote,
            Body::Special(..) => false,
        };
        is_remote && self.opens == 0 && self.overrides == AttrOverrides::default() && self.xattrs.bytes() == 0
    }
}

/// The inode table with its lock.
pub(crate) type InodeTable = Mutex<Tree, { Rank::Tree as u8 }>;

/// The inode table. See the module.
pub(crate) struct Tree {
    nodes: HashMap<Ino, Node>,
    next: u64,
    /// Start of the mount: the time of all entries without a time of their own.
    started: SystemTime,
    /// Total size of all extended attributes, bytes.
    xattr_bytes: usize,
    /// Limit of inodes, and what is notified when there are more. `None`: there is no limit.
    limit: Option<(usize, Arc<Notify>)>,
    /// Directories that were listed, by the number of their last use. Empty without a limit.
    used: BTreeMap<u64, Ino>,
    uses: u64,
}

impl Tree {
    /// Returns a table with a root that was never listed.
    pub(crate) fn new() -> Self {
        let nodes = HashMap::from([(Ino::ROOT, Node::directory(false))]);
        Self {
            nodes,
            next: Ino::ROOT.0 + 1,
            started: SystemTime::now(),
            xattr_bytes: 0,
            limit: None,
            used: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Sets the limit of inodes. Beyond it by [`SLACK`], `grown` is notified.
    pub(crate) fn limit(&mut self, limit: usize, grown: Arc<Notify>) {
        self.limit = Some((limit, grown));
    }

    /// Returns the number of inodes.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Records that the listing of a directory is used, so that others are dropped first.
    pub(crate) fn use_listing(&mut self, ino: Ino) {
        let Some(Body::Directory(directory)) = self.nodes.get_mut(&ino).map(|node| &mut node.body) else { return };
        if self.limit.is_none() {
            return;
        }
        self.uses += 1;
        if let Some((old, _)) = directory.used.replace((self.uses, Instant::now())) {
            self.used.remove(&old);
        }
        self.used.insert(self.uses, ino);
    }

    /// Returns the directory whose listing was not used for longest, and at least for `unused`. Takes it from the order
    /// of uses.
    pub(crate) fn least_recently_used(&mut self, unused: Duration) -> Option<Ino> {
        let (number, ino) = self.used.pop_first()?;
        let used = self.directory(ino).ok().and_then(|directory| directory.used);
        if used.is_some_and(|(_, at)| at.elapsed() < unused) {
            self.used.insert(number, ino);
            return None;
        }
        if let Ok(directory) = self.directory_mut(ino) {
            directory.used = None;
        }
        Some(ino)
    }

    /// Drops the listing of a directory, and its entries as far as another listing brings them back. Adds those that
    /// the kernel should drop before to `asked`. Returns true if others stay.
    pub(crate) fn drop_listing(&mut self, ino: Ino, asked: &mut Vec<(Ino, String)>) -> bool {
        let Ok(directory) = self.directory_mut(ino) else { return false };
        (directory.loaded, directory.mark, directory.was_dropped) = (None, None, true);
        let children: Vec<(String, Ino)> = directory.children.iter().map(|(name, at)| (name.clone(), *at)).collect();
        let mut has_others = false;
        for (name, child) in children {
            let Some(node) = self.nodes.get_mut(&child) else { continue };
            match (node.is_of_listing(), node.lookups) {
                (true, 0) => drop(self.remove(ino, &name)),
                (true, _) if !node.is_directory() => {
                    node.unwanted = true;
                    asked.push((ino, name));
                }
                _ => has_others = true,
            }
        }
        has_others
    }

    /// Returns an inode.
    pub(crate) fn node(&self, ino: Ino) -> Result<&Node, Error> {
        self.nodes.get(&ino).ok_or(Error::NotFound)
    }

    /// Returns an inode for changing.
    pub(crate) fn node_mut(&mut self, ino: Ino) -> Result<&mut Node, Error> {
        self.nodes.get_mut(&ino).ok_or(Error::NotFound)
    }

    /// Returns a directory's state.
    pub(crate) fn directory(&self, ino: Ino) -> Result<&Directory, Error> {
        self.node(ino)?.as_directory()
    }

    /// Returns a directory's state for changing.
    pub(crate) fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Error> {
        self.node_mut(ino)?.as_directory_mut()
    }

    /// Returns a file's state.
    pub(crate) fn file(&self, ino: Ino) -> Result<&File, Error> {
        self.node(ino)?.as_file()
    }

    /// Returns a file's state for changing.
    pub(crate) fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Error> {
        self.node_mut(ino)?.as_file_mut()
    }

    /// Returns the child with a name.
    pub(crate) fn child(&self, parent: Ino, name: &str) -> Result<Option<Ino>, Error> {
        Ok(self.directory(parent)?.children.get(name).copied())
    }

    /// Returns the inode at a path, if it is in the table.
    pub(crate) fn find(&self, path: &PlainPath) -> Option<Ino> {
        let mut at = Ino::ROOT;
        for name in path.as_str().split('/').filter(|name| !name.is_empty()) {
            at = self.child(at, name).ok()??;
        }
        Some(at)
    }

    /// Returns the present path of an inode. Fails with `NotFound` if the inode or one of its ancestors was removed.
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

    /// Returns true if `ino` is `above` or below it.
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

    /// Returns all inodes below a directory, parents first.
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

    /// Inserts a new node into a directory.
    pub(crate) fn insert(&mut self, parent: Ino, name: &str, mut node: Node) -> Result<Ino, Error> {
        let ino = Ino(self.next);
        self.directory_mut(parent)?.add(name, ino, node.is_directory());
        self.next += 1;
        node.place = Some((parent, name.to_owned()));
        self.nodes.insert(ino, node);
        if let Some((limit, grown)) = &self.limit
            && self.nodes.len() >= limit + SLACK
        {
            grown.notify_one();
        }
        Ok(ino)
    }

    /// Removes a name. The inode stays in the table while it is needed.
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

    /// Removes an entry that another client removed, and marks its whole subtree as lost. The kernel may still have
    /// these inodes. Later changes to them fail, because they would have no effect.
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

    /// Moves an inode. Removes the entry at the target.
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

    /// Drops a node and its descendants, as far as they aren't needed.
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
            if let Some(Body::Directory(Directory { used: Some((used, _)), .. })) = gone.as_ref().map(|node| &node.body)
            {
                self.used.remove(used);
            }
            self.count_xattrs(gone.map_or(0, |node| node.xattrs.bytes()), 0);
        }
    }

    /// Returns the total size of all extended attributes, bytes.
    pub(crate) fn xattr_bytes(&self) -> usize {
        self.xattr_bytes
    }

    /// Records that the attributes of an inode took `before` bytes and take `after` bytes now.
    pub(crate) fn count_xattrs(&mut self, before: usize, after: usize) {
        self.xattr_bytes = self.xattr_bytes - before + after;
    }

    /// Adds one kernel reference.
    pub(crate) fn remember(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
            node.unwanted = false;
        }
    }

    /// Drops `count` kernel references.
    pub(crate) fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            node.lookups = node.lookups.saturating_sub(count);
            let is_over = node.lookups == 0 && node.unwanted && node.is_of_listing();
            if let Some((parent, name)) = node.place.clone().filter(|_| is_over)
                && self.directory(parent).is_ok_and(|parent| parent.loaded.is_none())
            {
                self.remove(parent, &name);
                return;
            }
            self.sweep(ino);
        }
    }

    /// Counts a handle that was opened.
    pub(crate) fn opened(&mut self, ino: Ino, writes: bool) -> Result<(), Error> {
        let node = self.node_mut(ino)?;
        node.opens += 1;
        node.writers += u32::from(writes);
        Ok(())
    }

    /// Counts a handle that was closed.
    pub(crate) fn closed(&mut self, ino: Ino, writes: bool) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_sub(1);
            node.writers = node.writers.saturating_sub(u32::from(writes));
            if ino != Ino::ROOT {
                self.sweep(ino);
            }
        }
    }

    /// Returns the attributes of a new entry of a directory. A directory with the set-group-ID bit passes its group
    /// on to new entries, and the bit to new directories.
    pub(crate) fn overrides_for(
        &self,
        parent: Ino,
        new_attrs: NewAttrs,
        is_directory: bool,
        options: &Options,
    ) -> Result<AttrOverrides, Error> {
        let parent = self.attr(parent, options)?;
        let hands_down = parent.mode & SET_GROUP_ID != 0;
        let bit = if hands_down && is_directory { SET_GROUP_ID } else { 0 };
        Ok(AttrOverrides {
            mode: new_attrs.mode.map(|mode| (mode & 0o7777) | bit),
            uid: new_attrs.owner.map(|(uid, _)| uid),
            gid: if hands_down { Some(parent.gid) } else { new_attrs.owner.map(|(_, gid)| gid) },
            ..AttrOverrides::default()
        })
    }

    /// Returns the attributes that `stat` reports.
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
        let overrides = &node.overrides;
        let mtime = shown(overrides.mtime.unwrap_or(mtime));
        Ok(Attr {
            ino,
            kind: node.kind(),
            len,
            blocks: len.div_ceil(BLOCK),
            atime: overrides.atime.map_or(mtime, shown),
            mtime,
            ctime: overrides.ctime.map_or(mtime, |ctime| shown(ctime).max(mtime)),
            mode: overrides.mode.unwrap_or(mode),
            nlink,
            uid: overrides.uid.unwrap_or(options.uid),
            gid: overrides.gid.unwrap_or(options.gid),
            device: node.as_special().map_or(0, Special::device),
            is_certain,
        })
    }
}

impl File {
    /// Returns the size, and true if it is known.
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
    /// another time than the first one shows a change that another client made.
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

/// Records that a name was added to a directory or removed from it.
pub(crate) fn touch(tree: &mut Tree, directory: Ino) {
    if let Ok(node) = tree.node_mut(directory) {
        // A time that was set by the user is replaced at the next change.
        (node.overrides.mtime, node.overrides.ctime) = (None, None);
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
    fn removed_inode_stays_while_kernel_or_handle_needs_it() {
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
    fn removed_directory_drops_unneeded_children_only() {
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
    fn relocated_inode_replaces_target_and_keeps_number() {
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
    fn forgetting_more_references_than_counted_is_harmless() {
        let mut tree = Tree::new();
        let ino = tree.insert(Ino::ROOT, "a", file()).unwrap();
        tree.forget(ino, 7);
        tree.forget(Ino::ROOT, 7);
        assert!(tree.node(ino).is_ok() && tree.node(Ino::ROOT).is_ok());
    }
}
