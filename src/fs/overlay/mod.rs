//! Overlay mode: shows a remote that is never changed, with a writable local layer over it (`--overlay`).
//!
//! An [`Overlay`] merges *branches*, each of which is a [`Filesystem`]. The first branch that has a name decides what
//! it is; folders of several branches are merged. The last branch is the remote. One branch is writable, and every
//! change goes to it. A name that another branch has can't be changed, removed or replaced.
//!
//! | mode | branches | writable |
//! |---|---|---|
//! | without a key, or with `--overlay-plaintext` | folder of the mount point, remote | the folder |
//! | with a key | folder of the mount point, sealed local files, remote | the sealed local files |
//!
//! Sealed local files are those of a second [`Vfs`], whose remote is empty (`detached`) and which uploads nothing.
//! Its journal and staging pool keep them over a restart.

mod detached;
mod directory;
mod folder;
mod local_layer;
mod nodes;
#[cfg(test)]
mod tests;

pub use detached::Detached;
pub use local_layer::LocalLayer;

use crate::fs::lock::{Mutex, lock};
use crate::fs::{
    Access, Allocate, Attr, AttrSink, Create, EntrySink, Error, FileKind, Filesystem, HandleNo, Ino, NewAttrs, Opened,
    SetAttr, SetXattr, Special, Vfs,
};
use async_trait::async_trait;
use bytes::Bytes;
use directory::OpenDirectories;
use nodes::{BRANCHES, Inos, Nodes, Surplus};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NOT_LOCAL: Error = Error::NotPermitted("only files and folders of the local layer can be changed");
const NO_SPECIALS: Error = Error::NotPermitted("the local layer has files and folders only");
const NO_LINKS: Error = Error::NotPermitted("a file of the local layer has one name");

/// The part of an overlay that a [`Vfs`] serves. Each has a staging folder of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Shows the remote.
    Remote,
    /// Holds sealed local files.
    Local,
}

/// Returns the identity of the staging folder for one part of an overlay: it belongs to a remote and a mount point.
/// Several overlays of one remote, and a mount without an overlay, therefore don't exclude each other.
pub fn instance(remote: &[u8; 32], mountpoint: &Path, role: Role) -> [u8; 32] {
    let role: &[u8] = match role {
        Role::Remote => b"overlay remote",
        Role::Local => b"overlay local",
    };
    Sha256::new()
        .chain_update(remote)
        .chain_update(role)
        .chain_update(mountpoint.as_os_str().as_encoded_bytes())
        .finalize()
        .into()
}

/// The merged filesystem. See the module.
pub struct Overlay {
    /// In the order of precedence, at most [`BRANCHES`].
    branches: Vec<Arc<dyn Filesystem>>,
    writable: usize,
    nodes: Mutex<Nodes>,
    directories: OpenDirectories,
    metadata_ttl: Duration,
    reply_deadline: Duration,
}

/// A name that at least one branch has, with one reference to its inode in each of them.
struct Found<'a> {
    refs: Refs<'a>,
    attr: Attr,
    /// The branch that decides.
    top: usize,
}

/// References to inodes of the branches. They are dropped with this value.
struct Refs<'a> {
    overlay: &'a Overlay,
    inos: Inos,
}

impl Refs<'_> {
    fn take(mut self) -> Inos {
        std::mem::take(&mut self.inos)
    }
}

impl Drop for Refs<'_> {
    fn drop(&mut self) {
        let inos = std::mem::take(&mut self.inos);
        self.overlay.release_refs(inos.into_iter().enumerate().filter_map(|(branch, ino)| Some((branch, ino?))));
    }
}

impl Found<'_> {
    /// Returns the only branch that has the entry. `None`: several have it.
    fn only_branch(&self) -> Option<usize> {
        let mut branches = (0..BRANCHES).filter(|branch| self.refs.inos[*branch].is_some());
        branches.next().filter(|_| branches.next().is_none())
    }
}

impl Overlay {
    /// Returns the overlay of a folder, which takes the changes, over a remote.
    pub fn new(folder: LocalLayer, remote: Arc<Vfs>) -> Self {
        Self::of(vec![Arc::new(folder)], 0, remote)
    }

    /// Returns the overlay of a folder, which is not changed, and of sealed files, which take the changes, over a
    /// remote.
    pub fn sealed(folder: LocalLayer, sealed: Arc<Vfs>, remote: Arc<Vfs>) -> Self {
        Self::of(vec![Arc::new(folder), sealed], 1, remote)
    }

    fn of(mut branches: Vec<Arc<dyn Filesystem>>, writable: usize, remote: Arc<Vfs>) -> Self {
        let (metadata_ttl, reply_deadline) = (remote.options().metadata_ttl, remote.reply_deadline());
        branches.push(remote);
        let nodes = Mutex::new(Nodes::new(branches.len()));
        Self { branches, writable, nodes, directories: OpenDirectories::default(), metadata_ttl, reply_deadline }
    }

    fn local(&self) -> &dyn Filesystem {
        &*self.branches[self.writable]
    }

    /// Drops references to inodes of the branches. The caller holds no lock.
    fn release_refs(&self, refs: impl IntoIterator<Item = (usize, Ino)>) {
        refs.into_iter().for_each(|(branch, ino)| self.branches[branch].forget(ino, 1));
    }

    /// Changes the inode table, and drops the references that aren't needed any more.
    fn change_nodes(&self, change: impl FnOnce(&mut Nodes) -> Surplus) {
        let surplus = change(&mut lock(&self.nodes));
        self.release_refs(surplus);
    }

    fn inos(&self, ino: Ino) -> Result<Inos, Error> {
        Ok(lock(&self.nodes).node(ino)?.inos)
    }

    /// Returns the branch that decides about an inode, and its inode there.
    fn top(&self, ino: Ino) -> Result<(usize, Ino), Error> {
        let inos = self.inos(ino)?;
        let mut present = inos.iter().enumerate().filter_map(|(branch, ino)| Some((branch, (*ino)?)));
        present.next().ok_or(Error::NotFound)
    }

    /// Returns the inode in the writable branch, if that branch decides about it.
    fn changeable(&self, ino: Ino) -> Result<Ino, Error> {
        match self.top(ino)? {
            (branch, there) if branch == self.writable => Ok(there),
            _ => Err(NOT_LOCAL),
        }
    }

    fn handle(&self, branch: usize, handle: HandleNo) -> HandleNo {
        HandleNo(handle.0 * BRANCHES as u64 + branch as u64)
    }

    /// Returns the branch and the handle there.
    fn opened(&self, handle: HandleNo) -> Result<(&dyn Filesystem, HandleNo), Error> {
        let branch = (handle.0 % BRANCHES as u64) as usize;
        let there = HandleNo(handle.0 / BRANCHES as u64);
        Ok((&**self.branches.get(branch).ok_or(Error::BadHandle)?, there))
    }

    /// Finds a name in all branches.
    async fn find(&self, parent: Ino, name: &str) -> Result<Option<Found<'_>>, Error> {
        let parents = self.directory(parent)?.inos;
        let mut found: Option<Found<'_>> = None;
        for (branch, there) in self.branches.iter().enumerate() {
            let Some(parent) = parents[branch] else { continue };
            let attr = match there.lookup(parent, name).await {
                Ok(attr) => attr,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error),
            };
            match &mut found {
                None => {
                    let mut refs = Refs { overlay: self, inos: Inos::default() };
                    refs.inos[branch] = Some(attr.ino);
                    found = Some(Found { refs, attr, top: branch });
                    if attr.kind != FileKind::Directory {
                        break;
                    }
                }
                Some(found) if attr.kind == FileKind::Directory => {
                    found.refs.inos[branch] = Some(attr.ino);
                    found.attr = merged(found.attr, &attr);
                }
                // It is hidden, and hides what the branches below it have.
                Some(_) => {
                    there.forget(attr.ino, 1);
                    break;
                }
            }
        }
        Ok(found)
    }

    async fn find_there(&self, parent: Ino, name: &str) -> Result<Found<'_>, Error> {
        self.find(parent, name).await?.ok_or(Error::NotFound)
    }

    fn directory(&self, ino: Ino) -> Result<nodes::Node, Error> {
        let node = lock(&self.nodes).node(ino)?.clone();
        if node.kind == FileKind::Directory { Ok(node) } else { Err(Error::NotDirectory) }
    }

    /// Gives what was found to the kernel: its inode gets one reference.
    fn adopt(&self, parent: Ino, name: &str, found: Found<'_>) -> Result<Attr, Error> {
        let Found { refs, attr, .. } = found;
        let inos = refs.inos;
        let (ino, surplus) = lock(&self.nodes).adopt(parent, name, attr.kind, inos, true)?;
        refs.take();
        self.release_refs(surplus);
        Ok(Attr { ino, ..attr })
    }

    /// Gives a new entry of the writable branch to the kernel.
    fn adopt_new(&self, parent: Ino, name: &str, attr: Attr) -> Result<Attr, Error> {
        let mut refs = Refs { overlay: self, inos: Inos::default() };
        refs.inos[self.writable] = Some(attr.ino);
        self.adopt(parent, name, Found { refs, attr, top: self.writable })
    }

    /// Returns the inode of a directory in the writable branch. Creates the directory there, and those above it, if
    /// only other branches have them.
    async fn local_directory(&self, ino: Ino) -> Result<Ino, Error> {
        let mut missing = Vec::new();
        let mut at = ino;
        let mut local = loop {
            let node = self.directory(at)?;
            if let Some(there) = node.inos[self.writable] {
                break there;
            }
            let (parent, name) = node.place.ok_or(Error::NotFound)?;
            missing.push((at, name));
            at = parent;
        };
        while let Some((ino, name)) = missing.pop() {
            let shown = self.getattr(ino).await?;
            let new_attrs = NewAttrs { mode: Some(shown.mode), owner: Some((shown.uid, shown.gid)) };
            let created = match self.local().mkdir(local, &name, new_attrs).await {
                Err(Error::Exists) => self.local().lookup(local, &name).await?,
                created => created?,
            };
            local = created.ino;
            self.change_nodes(|nodes| nodes.extend(ino, self.writable, local));
        }
        Ok(local)
    }

    /// Looks for a directory in the branches that had none of its name before.
    async fn refresh(&self, ino: Ino) -> Result<(), Error> {
        let node = self.directory(ino)?;
        let Some((parent, name)) = node.place else { return Ok(()) };
        let parents = self.inos(parent)?;
        for (branch, there) in self.branches.iter().enumerate() {
            let (None, Some(parent)) = (node.inos[branch], parents[branch]) else { continue };
            match there.lookup(parent, &name).await {
                Ok(attr) if attr.kind == FileKind::Directory => {
                    self.change_nodes(|nodes| nodes.extend(ino, branch, attr.ino));
                }
                Ok(attr) => {
                    there.forget(attr.ino, 1);
                    break;
                }
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn create_new(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        let local = self.local_directory(parent).await?;
        let (attr, opened) = self.local().create(local, name, create).await?;
        match self.adopt_new(parent, name, attr) {
            Ok(attr) => Ok((attr, Opened { handle: self.handle(self.writable, opened.handle), ..opened })),
            Err(error) => {
                self.local().abandon(opened.handle).await;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Filesystem for Overlay {
    async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        let found = self.find_there(parent, name).await?;
        self.adopt(parent, name, found)
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.change_nodes(|nodes| nodes.forget(ino, count));
    }

    fn absent_for(&self, parent: Ino) -> Duration {
        let remote = self.branches.len() - 1;
        match self.inos(parent) {
            Ok(inos) => inos[remote].map_or(Duration::ZERO, |there| self.branches[remote].absent_for(there)),
            Err(_) => Duration::ZERO,
        }
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        let inos = self.inos(ino)?;
        let mut shown: Option<Attr> = None;
        for (branch, there) in self.branches.iter().enumerate() {
            let Some(inode) = inos[branch] else { continue };
            match (shown, there.getattr(inode).await) {
                (None, Ok(attr)) => shown = Some(attr),
                (Some(top), Ok(attr)) => shown = Some(merged(top, &attr)),
                (None, Err(error)) if !is_missing(&error) => return Err(error),
                // The folder is shown without what this branch has of it. A listing reports the error.
                (_, Err(_)) => {}
            }
        }
        Ok(Attr { ino, ..shown.ok_or(Error::NotFound)? })
    }

    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        self.local().setattr(self.changeable(ino)?, set).await?;
        self.getattr(ino).await
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let (branch, there) = self.top(ino)?;
        self.branches[branch].readlink(there)
    }

    async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        self.refresh(ino).await?;
        self.open_directory(ino).await
    }

    fn readdir(&self, handle: HandleNo, offset: u64, sink: EntrySink<'_>) -> Result<(), Error> {
        self.page(handle, offset, sink)
    }

    async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        self.measure(handle, offset).await
    }

    fn readdirplus(&self, handle: HandleNo, offset: u64, sink: AttrSink<'_>) -> Result<(), Error> {
        self.page_with_attrs(handle, offset, sink)
    }

    fn releasedir(&self, handle: HandleNo) -> Result<(), Error> {
        self.close_directory(handle)
    }

    async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        let Some(found) = self.find(parent, name).await? else { return self.create_new(parent, name, create).await };
        if create.exclusive {
            return Err(Error::Exists);
        }
        let attr = self.adopt(parent, name, found)?;
        match self.open(attr.ino, create.access).await {
            Ok(opened) => Ok((attr, opened)),
            Err(error) => {
                self.forget(attr.ino, 1);
                Err(error)
            }
        }
    }

    async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        if self.find(parent, name).await?.is_some() {
            return Err(Error::Exists);
        }
        let local = self.local_directory(parent).await?;
        let attr = self.local().mkdir(local, name, new_attrs).await?;
        self.adopt_new(parent, name, attr)
    }

    async fn create_special(&self, parent: Ino, name: &str, _: Special, _: NewAttrs) -> Result<Attr, Error> {
        match self.find(parent, name).await? {
            Some(_) => Err(Error::Exists),
            None => Err(NO_SPECIALS),
        }
    }

    async fn link(&self, _original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        match self.find(parent, name).await? {
            Some(_) => Err(Error::Exists),
            None => Err(NO_LINKS),
        }
    }

    async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        let found = self.find_there(parent, name).await?;
        if found.attr.kind == FileKind::Directory {
            return Err(Error::IsDirectory);
        }
        if found.top != self.writable {
            return Err(NOT_LOCAL);
        }
        let local = self.inos(parent)?[self.writable].ok_or(Error::NotFound)?;
        self.local().unlink(local, name).await?;
        self.change_nodes(|nodes| nodes.detach(parent, name));
        Ok(())
    }

    async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        let found = self.find_there(parent, name).await?;
        if found.attr.kind != FileKind::Directory {
            return Err(Error::NotDirectory);
        }
        if found.only_branch() != Some(self.writable) {
            return Err(NOT_LOCAL);
        }
        let local = self.inos(parent)?[self.writable].ok_or(Error::NotFound)?;
        self.local().rmdir(local, name).await?;
        self.change_nodes(|nodes| nodes.detach(parent, name));
        Ok(())
    }

    async fn rename(&self, parent: Ino, name: &str, to_parent: Ino, to_name: &str, replace: bool) -> Result<(), Error> {
        if self.find_there(parent, name).await?.only_branch() != Some(self.writable) {
            return Err(NOT_LOCAL);
        }
        match self.find(to_parent, to_name).await? {
            Some(_) if !replace => return Err(Error::Exists),
            Some(target) if target.only_branch() != Some(self.writable) => return Err(NOT_LOCAL),
            _ => {}
        }
        let local = self.inos(parent)?[self.writable].ok_or(Error::NotFound)?;
        let to_local = self.local_directory(to_parent).await?;
        self.local().rename(local, name, to_local, to_name, replace).await?;
        if (parent, name) != (to_parent, to_name) {
            self.change_nodes(|nodes| nodes.rename(parent, name, to_parent, to_name));
        }
        Ok(())
    }

    async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        let (branch, there) = self.top(ino)?;
        if branch != self.writable && access.changes() {
            return Err(NOT_LOCAL);
        }
        let opened = self.branches[branch].open(there, access).await?;
        Ok(Opened { handle: self.handle(branch, opened.handle), ..opened })
    }

    async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.read(handle, offset, len).await
    }

    async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.write(handle, offset, data).await
    }

    async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.allocate(handle, offset, len, how).await
    }

    async fn copy_whole(&self, _from: HandleNo, _to: HandleNo, _len: u64) -> Result<u32, Error> {
        Err(Error::NotSupported)
    }

    fn timeout(&self, handle: HandleNo) -> Duration {
        self.opened(handle).map_or(self.reply_deadline, |(branch, handle)| branch.timeout(handle))
    }

    async fn flush_file(&self, handle: HandleNo) -> Result<(), Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.flush_file(handle).await
    }

    async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.fsync(handle).await
    }

    async fn fsyncdir(&self) -> Result<(), Error> {
        self.local().fsyncdir().await
    }

    async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        let (branch, handle) = self.opened(handle)?;
        branch.release(handle).await
    }

    async fn abandon(&self, handle: HandleNo) {
        if let Ok((branch, handle)) = self.opened(handle) {
            branch.abandon(handle).await;
        }
    }

    fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error> {
        let (branch, there) = self.top(ino)?;
        self.branches[branch].getxattr(there, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let (branch, there) = self.top(ino)?;
        self.branches[branch].listxattr(there)
    }

    fn setxattr(&self, ino: Ino, name: &str, value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.local().setxattr(self.changeable(ino)?, name, value, how)
    }

    fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Error> {
        self.local().removexattr(self.changeable(ino)?, name)
    }

    fn reply_deadline(&self) -> Duration {
        self.reply_deadline
    }

    fn metadata_ttl(&self) -> Duration {
        self.metadata_ttl
    }
}

/// Returns true if the branch doesn't have the entry, or no longer has its folder.
fn is_missing(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::ENOTDIR | libc::ESTALE)
}

/// Returns the attributes of a folder that several branches have. Its times are the latest ones, so that programs which
/// compare them notice new entries in each branch. The number of its subfolders is unknown, which 1 stands for.
fn merged(top: Attr, other: &Attr) -> Attr {
    Attr { nlink: 1, mtime: top.mtime.max(other.mtime), ctime: top.ctime.max(other.ctime), ..top }
}
