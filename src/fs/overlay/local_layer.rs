//! The local layer of an overlay as a [`Filesystem`]: the files and folders below the mount point.
//!
//! An inode stands for a name in the folder, and its path is computed for each operation. Symbolic links and special
//! files are not shown, and nothing leads out of the folder (see [`Folder`]). All system calls run on threads that may
//! block.

use super::folder::{self, Folder, Seen, join};
use super::{NO_LINKS, NO_SPECIALS};
use crate::fs::lock::{Mutex, Rank, lock};
use crate::fs::{
    Access, Allocate, Attr, AttrSink, Create, EntrySink, Error, FileKind, Filesystem, HandleNo, Ino, Listed, NewAttrs,
    Opened, SetAttr, SetXattr, Special,
};
use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Stat};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Number of entries whose attributes are read ahead while a directory is paged through.
pub(super) const PAGE: usize = 512;
/// Permission bits of a new file and of a new folder for which the caller gives none.
const NEW_FILE: u16 = 0o644;
const NEW_FOLDER: u16 = 0o755;
/// Longest storage of one file. Only its disk can delay it.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The local layer. See the module.
pub struct LocalLayer(Arc<Layer>);

struct Layer {
    folder: Folder,
    /// Held for reading while a path is in use, for writing while paths change. Only threads that may block take it,
    /// and they take it before all other locks.
    paths: RwLock<()>,
    table: Mutex<Table, { Rank::Tree as u8 }>,
    open: Mutex<OpenTable>,
}

/// An inode of the layer.
#[derive(Default)]
struct Node {
    /// Parent and name. `None` for the root and for entries that were removed.
    place: Option<(Ino, String)>,
    lookups: u64,
    children: usize,
    /// Number of open handles, and the file of one of them: it outlives the name.
    opens: usize,
    file: Option<Arc<File>>,
}

struct Table {
    nodes: HashMap<Ino, Node>,
    names: HashMap<(Ino, String), Ino>,
    next: u64,
}

#[derive(Default)]
struct OpenTable {
    next: u64,
    files: HashMap<HandleNo, (Ino, Arc<File>)>,
    folders: HashMap<HandleNo, Arc<OpenFolder>>,
}

/// An open directory with its entries, `.` and `..` included.
struct OpenFolder {
    ino: Ino,
    entries: Vec<(String, FileKind)>,
    /// The offset of a page, and the attributes of its entries.
    page: Mutex<(usize, Vec<Option<Stat>>)>,
}

/// The way to reach an inode: by its path, or by an open file without a name.
enum Reach {
    Path(String),
    File(Arc<File>),
}

impl LocalLayer {
    /// Opens the folder. A mount that covers its path later doesn't hide it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let table = Table {
            nodes: HashMap::from([(Ino::ROOT, Node::default())]),
            names: HashMap::new(),
            next: Ino::ROOT.0 + 1,
        };
        let folder = Folder::open(path)?;
        let table = Mutex::new(table);
        Ok(Self(Arc::new(Layer { folder, paths: RwLock::default(), table, open: Mutex::default() })))
    }

    /// Runs system calls on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layer) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let layer = self.0.clone();
        let done = tokio::task::spawn_blocking(move || work(&layer)).await;
        done.map_err(|error| Error::Local(io::Error::other(error)))?
    }

    fn file(&self, handle: HandleNo) -> Result<Arc<File>, Error> {
        lock(&self.0.open).files.get(&handle).map(|(_, file)| file.clone()).ok_or(Error::BadHandle)
    }

    fn folder(&self, handle: HandleNo) -> Result<Arc<OpenFolder>, Error> {
        lock(&self.0.open).folders.get(&handle).cloned().ok_or(Error::BadHandle)
    }
}

impl Table {
    fn path(&self, ino: Ino) -> Result<String, Error> {
        let (mut names, mut at) = (Vec::new(), ino);
        while at != Ino::ROOT {
            let (parent, name) = self.node(at)?.place.as_ref().ok_or(Error::NotFound)?;
            names.push(name.as_str());
            at = *parent;
        }
        names.reverse();
        Ok(names.join("/"))
    }

    fn node(&self, ino: Ino) -> Result<&Node, Error> {
        self.nodes.get(&ino).ok_or(Error::NotFound)
    }

    /// Returns the inode of a name. Adds one if the name has none.
    fn enter(&mut self, parent: Ino, name: &str) -> Ino {
        let key = (parent, name.to_owned());
        if let Some(ino) = self.names.get(&key) {
            return *ino;
        }
        let ino = Ino(self.next);
        self.next += 1;
        self.attach(ino, key);
        ino
    }

    fn attach(&mut self, ino: Ino, place: (Ino, String)) {
        if let Some(parent) = self.nodes.get_mut(&place.0) {
            parent.children += 1;
        }
        self.nodes.entry(ino).or_default().place = Some(place.clone());
        self.names.insert(place, ino);
    }

    /// Takes its name from an inode.
    fn detach(&mut self, parent: Ino, name: &str) -> Option<Ino> {
        let ino = self.names.remove(&(parent, name.to_owned()))?;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = None;
        }
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children -= 1;
        }
        Some(ino)
    }

    /// Adds one reference.
    fn remember(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// Drops an inode that isn't needed, and its parents as far as they aren't.
    fn sweep(&mut self, ino: Ino) {
        let mut at = Some(ino);
        while let Some(ino) = at.take().filter(|ino| *ino != Ino::ROOT) {
            let Some(node) = self.nodes.get(&ino) else { return };
            if node.lookups > 0 || node.children > 0 || node.opens > 0 {
                return;
            }
            if let Some((parent, name)) = node.place.clone() {
                self.detach(parent, &name);
                at = Some(parent);
            }
            self.nodes.remove(&ino);
        }
    }
}

impl Layer {
    fn using_paths(&self) -> RwLockReadGuard<'_, ()> {
        self.paths.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing_paths(&self) -> RwLockWriteGuard<'_, ()> {
        self.paths.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, parent: Ino, name: &str) -> Result<String, Error> {
        Ok(join(&lock(&self.table).path(parent)?, name))
    }

    fn reach(&self, ino: Ino) -> Result<Reach, Error> {
        let table = lock(&self.table);
        match table.node(ino)?.file.clone().filter(|_| table.path(ino).is_err()) {
            Some(file) => Ok(Reach::File(file)),
            None => Ok(Reach::Path(table.path(ino)?)),
        }
    }

    fn stat(&self, ino: Ino) -> Result<Attr, Error> {
        let stat = match self.reach(ino)? {
            Reach::File(file) => rustix::fs::fstat(&file).map_err(folder::error)?,
            Reach::Path(path) => match self.folder.stat(&path)? {
                Seen::Entry(stat) => stat,
                Seen::Absent | Seen::Hidden => return Err(Error::NotFound),
            },
        };
        attr(ino, &stat).ok_or(Error::NotFound)
    }

    /// Adds a reference to the inode of a name, and returns its attributes.
    fn entered(&self, parent: Ino, name: &str, stat: &Stat) -> Result<Attr, Error> {
        let mut table = lock(&self.table);
        table.node(parent)?;
        let ino = table.enter(parent, name);
        table.remember(ino);
        attr(ino, stat).ok_or(Error::NotFound)
    }

    fn add_file(&self, ino: Ino, file: File) -> Result<Opened, Error> {
        let file = Arc::new(file);
        let mut table = lock(&self.table);
        let node = table.nodes.get_mut(&ino).ok_or(Error::NotFound)?;
        node.opens += 1;
        node.file = Some(file.clone());
        drop(table);
        let mut open = lock(&self.open);
        open.next += 1;
        let handle = HandleNo(open.next);
        open.files.insert(handle, (ino, file));
        // Another program may have changed the file by another path.
        Ok(Opened { handle, keep_cache: false })
    }

    fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        let _paths = self.using_paths();
        let path = self.path(parent, name)?;
        let file = match self.folder.create_file(&path, create.access) {
            Ok(file) => {
                let NewAttrs { mode, owner } = create.new_attrs;
                self.folder.set_new(file.as_fd(), &path, mode.unwrap_or(NEW_FILE), owner.unwrap_or_else(process))?;
                file
            }
            Err(Error::Exists) if !create.exclusive => self.folder.open_file(&path, create.access)?,
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::fstat(&file).map_err(folder::error)?;
        let attr = self.entered(parent, name, &stat)?;
        Ok((attr, self.add_file(attr.ino, file)?))
    }

    fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        let _paths = self.using_paths();
        let path = self.path(parent, name)?;
        let made = self.folder.create_folder(&path)?;
        let owner = new_attrs.owner.unwrap_or_else(process);
        self.folder.set_new(made.as_fd(), &path, new_attrs.mode.unwrap_or(NEW_FOLDER), owner)?;
        self.entered(parent, name, &rustix::fs::fstat(&made).map_err(folder::error)?)
    }

    fn remove(&self, parent: Ino, name: &str, is_folder: bool) -> Result<(), Error> {
        let _paths = self.changing_paths();
        self.folder.remove(&self.path(parent, name)?, is_folder)?;
        let mut table = lock(&self.table);
        if let Some(ino) = table.detach(parent, name) {
            table.sweep(ino);
        }
        Ok(())
    }

    fn rename(&self, from: (Ino, String), to: (Ino, String), replace: bool) -> Result<(), Error> {
        let _paths = self.changing_paths();
        let (old, new) = (self.path(from.0, &from.1)?, self.path(to.0, &to.1)?);
        if old == new {
            return Ok(());
        }
        if !replace && matches!(self.folder.stat(&new)?, Seen::Entry(_)) {
            return Err(Error::Exists);
        }
        self.folder.rename(&old, &new)?;
        let mut table = lock(&self.table);
        let replaced = table.detach(to.0, &to.1);
        if let Some(moved) = table.detach(from.0, &from.1) {
            table.attach(moved, to);
        }
        if let Some(replaced) = replaced {
            table.sweep(replaced);
        }
        Ok(())
    }

    fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        let _paths = self.using_paths();
        let path = lock(&self.table).path(ino)?;
        let dots = [".", ".."].map(|name| (name.to_owned(), FileKind::Directory));
        let entries = dots.into_iter().chain(self.folder.list(&path)?).collect();
        let mut open = lock(&self.open);
        open.next += 1;
        let handle = HandleNo(open.next);
        open.folders.insert(handle, Arc::new(OpenFolder { ino, entries, page: Mutex::default() }));
        Ok(handle)
    }

    fn measure_page(&self, open: &OpenFolder, offset: usize) -> Result<(), Error> {
        let _paths = self.using_paths();
        let Ok(path) = lock(&self.table).path(open.ino) else { return Ok(()) };
        let stat = |(name, _): &(String, FileKind)| match name.as_str() {
            "." | ".." => self.folder.stat(&path),
            name => self.folder.stat(&join(&path, name)),
        };
        let mut page = Vec::new();
        for entry in open.entries.iter().skip(offset).take(PAGE) {
            page.push(match stat(entry)? {
                Seen::Entry(stat) => Some(stat),
                Seen::Absent | Seen::Hidden => None,
            });
        }
        *lock(&open.page) = (offset, page);
        Ok(())
    }
}

#[async_trait]
impl Filesystem for LocalLayer {
    async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        let name = name.to_owned();
        self.run(move |layer| {
            let _paths = layer.using_paths();
            match layer.folder.stat(&layer.path(parent, &name)?)? {
                Seen::Entry(stat) => layer.entered(parent, &name, &stat),
                Seen::Absent | Seen::Hidden => Err(Error::NotFound),
            }
        })
        .await
    }

    fn forget(&self, ino: Ino, count: u64) {
        let mut table = lock(&self.0.table);
        if let Some(node) = table.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
            table.sweep(ino);
        }
    }

    fn absent_for(&self, _parent: Ino) -> Duration {
        Duration::ZERO
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.run(move |layer| {
            let _paths = layer.using_paths();
            layer.stat(ino)
        })
        .await
    }

    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        self.run(move |layer| {
            let _paths = layer.using_paths();
            match layer.reach(ino)? {
                Reach::File(file) => folder::set_attributes(file.as_fd(), set)?,
                Reach::Path(path) => folder::set_attributes(layer.folder.handle(&path)?.as_fd(), set)?,
            }
            layer.stat(ino)
        })
        .await
    }

    fn readlink(&self, _ino: Ino) -> Result<Vec<u8>, Error> {
        Err(Error::Invalid("the local layer has no symbolic links"))
    }

    async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        self.run(move |layer| layer.opendir(ino)).await
    }

    fn readdir(&self, handle: HandleNo, offset: u64, sink: EntrySink<'_>) -> Result<(), Error> {
        let open = self.folder(handle)?;
        let table = lock(&self.0.table);
        for ((name, kind), next) in open.entries.iter().zip(1..).skip(start(offset)) {
            let ino = table.names.get(&(open.ino, name.clone())).copied().unwrap_or(Ino(0));
            if sink(&Listed { ino, name: name.clone(), kind: *kind }, next) {
                break;
            }
        }
        Ok(())
    }

    async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        let open = self.folder(handle)?;
        self.run(move |layer| layer.measure_page(&open, start(offset))).await
    }

    fn readdirplus(&self, handle: HandleNo, offset: u64, sink: AttrSink<'_>) -> Result<(), Error> {
        let open = self.folder(handle)?;
        let mut table = lock(&self.0.table);
        let page = std::mem::take(&mut *lock(&open.page));
        if page.0 != start(offset) || (page.1.is_empty() && page.0 < open.entries.len()) {
            return Err(Error::TimedOut);
        }
        let entries = open.entries.iter().zip(1..).skip(page.0);
        for (((name, kind), next), stat) in entries.zip(page.1) {
            let Some(stat) = stat else { continue };
            let is_dot = name == "." || name == "..";
            let ino = if is_dot { open.ino } else { table.enter(open.ino, name) };
            let Some(attr) = attr(ino, &stat).filter(|attr| attr.kind == *kind) else { continue };
            let is_full = sink(&Listed { ino, name: name.clone(), kind: *kind }, &attr, next);
            if !is_full && !is_dot {
                table.remember(ino);
            }
            table.sweep(ino);
            if is_full {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, handle: HandleNo) -> Result<(), Error> {
        lock(&self.0.open).folders.remove(&handle).map(drop).ok_or(Error::BadHandle)
    }

    async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        let name = name.to_owned();
        self.run(move |layer| layer.create(parent, &name, create)).await
    }

    async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        let name = name.to_owned();
        self.run(move |layer| layer.mkdir(parent, &name, new_attrs)).await
    }

    async fn create_special(&self, _: Ino, _: &str, _: Special, _: NewAttrs) -> Result<Attr, Error> {
        Err(NO_SPECIALS)
    }

    async fn link(&self, _original: Ino, _parent: Ino, _name: &str) -> Result<Attr, Error> {
        Err(NO_LINKS)
    }

    async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.run(move |layer| layer.remove(parent, &name, false)).await
    }

    async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.run(move |layer| layer.remove(parent, &name, true)).await
    }

    async fn rename(&self, parent: Ino, name: &str, to_parent: Ino, to_name: &str, replace: bool) -> Result<(), Error> {
        let (from, to) = ((parent, name.to_owned()), (to_parent, to_name.to_owned()));
        self.run(move |layer| layer.rename(from, to, replace)).await
    }

    async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        self.run(move |layer| {
            let _paths = layer.using_paths();
            let path = lock(&layer.table).path(ino)?;
            layer.add_file(ino, layer.folder.open_file(&path, access)?)
        })
        .await
    }

    async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        let file = self.file(handle)?;
        self.run(move |_| read(&file, offset, len).map_err(Error::Local)).await
    }

    async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        let file = self.file(handle)?;
        // With O_APPEND the system ignores the offset.
        self.run(move |_| file.write_all_at(&data, offset).map(|()| data.len()).map_err(Error::Local)).await
    }

    async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        let file = self.file(handle)?;
        let flags = match how {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::Reserve => FallocateFlags::KEEP_SIZE,
            Allocate::Zero { keep_size: true } => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::Zero { keep_size: false } => FallocateFlags::ZERO_RANGE,
        };
        self.run(move |_| rustix::fs::fallocate(&file, flags, offset, len).map_err(folder::error)).await
    }

    async fn copy_whole(&self, _from: HandleNo, _to: HandleNo, _len: u64) -> Result<u32, Error> {
        Err(Error::NotSupported)
    }

    fn timeout(&self, _handle: HandleNo) -> Duration {
        TIMEOUT
    }

    async fn flush_file(&self, _handle: HandleNo) -> Result<(), Error> {
        Ok(())
    }

    async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        let file = self.file(handle)?;
        self.run(move |_| file.sync_all().map_err(Error::Local)).await
    }

    async fn fsyncdir(&self) -> Result<(), Error> {
        self.run(|layer| layer.folder.sync()).await
    }

    async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        self.run(move |layer| {
            let (ino, file) = lock(&layer.open).files.remove(&handle).ok_or(Error::BadHandle)?;
            let mut table = lock(&layer.table);
            let mut kept = None;
            if let Some(node) = table.nodes.get_mut(&ino) {
                node.opens -= 1;
                kept = node.file.take_if(|_| node.opens == 0);
            }
            table.sweep(ino);
            // The file is closed when no lock is held.
            drop(table);
            drop((file, kept));
            Ok(())
        })
        .await
    }

    async fn abandon(&self, handle: HandleNo) {
        if let Err(error) = self.release(handle).await {
            tracing::debug!(%error, "an abandoned handle could not be released");
        }
    }

    fn getxattr(&self, _ino: Ino, _name: &str) -> Result<Vec<u8>, Error> {
        Err(Error::NoAttribute)
    }

    fn listxattr(&self, _ino: Ino) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }

    fn setxattr(&self, _ino: Ino, _name: &str, _value: &[u8], _how: SetXattr) -> Result<(), Error> {
        Err(Error::NotSupported)
    }

    fn removexattr(&self, _ino: Ino, _name: &str) -> Result<(), Error> {
        Err(Error::NoAttribute)
    }

    fn reply_deadline(&self) -> Duration {
        TIMEOUT
    }

    fn metadata_ttl(&self) -> Duration {
        Duration::ZERO
    }
}

/// Returns the index of the first entry of a page.
fn start(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut data = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(filled);
    Ok(data.into())
}

/// Returns the user and the group of this process.
fn process() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Returns the attributes of an entry. `None`: it isn't shown.
fn attr(ino: Ino, stat: &Stat) -> Option<Attr> {
    let time = |seconds: i64, nanos: u64| folder::time(seconds, i64::try_from(nanos).unwrap_or(0));
    Some(Attr {
        ino,
        kind: folder::kind(stat)?,
        len: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mode: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: 0,
        is_certain: true,
    })
}
