//! A mount for tests. It takes paths instead of inodes, and it can be restarted.

use crate::fs::memory_view::MemoryView;
use crate::fs::{
    Access, Attr, Create, Error, FileKind, HandleNo, Ino, Listed, NewAttrs, OnConflict, Options, SetAttr, Special, Vfs,
};
use crate::store::View;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A time that is long enough that nothing is flushed unless a test requests it.
const NEVER: Duration = Duration::from_secs(3600);

/// Returns the options of tests: names are always looked up at the remote, and nothing is flushed automatically.
pub(in crate::fs) fn options(cache_dir: &Path) -> Options {
    Options {
        cache_dir: cache_dir.to_owned(),
        advanced_writes: true,
        read_only: false,
        metadata_ttl: Duration::ZERO,
        negative_ttl: NEVER,
        poll_interval: None,
        poll_listings: 4,
        inode_limit: None,
        sweep_interval: NEVER,
        flush_debounce: NEVER,
        flush_max_window: NEVER,
        uid: 1000,
        gid: 1000,
        file_mode: 0o644,
        dir_mode: 0o755,
        filter_os_files: true,
        keep_all: false,
        instance: None,
        reply_deadline: Duration::from_secs(30),
        fsync_remote: false,
        on_conflict: OnConflict::KeepBoth,
        max_staging: None,
        max_pending: None,
        read_back_after: Duration::from_secs(10),
    }
}

/// A mount for tests. See the module.
pub(in crate::fs) struct Mount<V: ?Sized = MemoryView> {
    pub(in crate::fs) vfs: Arc<Vfs>,
    pub(in crate::fs) view: Arc<V>,
    pub(in crate::fs) dir: Arc<tempfile::TempDir>,
    pub(in crate::fs) options: Options,
}

impl Mount {
    pub(in crate::fs) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(in crate::fs) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut options = options(dir.path());
        change(&mut options);
        Self::on(MemoryView::new(false), dir, options).await
    }

    pub(in crate::fs) async fn on(view: Arc<MemoryView>, dir: Arc<tempfile::TempDir>, options: Options) -> Self {
        let vfs = Vfs::start(view.clone() as Arc<dyn View>, options.clone()).await.unwrap();
        Self { vfs, view, dir, options }
    }

    /// Returns the mount after `kill -9` and a new start. Nothing is persisted, flushed or synced before.
    pub(in crate::fs) async fn killed(self) -> Self {
        let Self { vfs, view, dir, options } = self;
        vfs.kill();
        drop(vfs);
        // Background tasks release the folder at their next turn.
        for _ in 0..1000 {
            match Vfs::start(view.clone() as Arc<dyn View>, options.clone()).await {
                Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
                started => return Self { vfs: started.unwrap(), view, dir, options },
            }
        }
        panic!("the old daemon doesn't release its folder");
    }

    /// Returns the files of the remote.
    pub(in crate::fs) fn remote(&self) -> BTreeMap<String, Vec<u8>> {
        self.view.files()
    }
}

impl<V: ?Sized> Mount<V> {
    pub(in crate::fs) async fn find(&self, path: &str) -> Result<Ino, Error> {
        let mut at = Ino::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.vfs.directories.find_child(at, name).await?.ok_or(Error::NotFound)?;
        }
        Ok(at)
    }

    async fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a str), Error> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(parent).await?, name))
    }

    pub(in crate::fs) async fn stat(&self, path: &str) -> Result<Attr, Error> {
        self.vfs.getattr(self.find(path).await?).await
    }

    pub(in crate::fs) async fn open(&self, path: &str, flags: i32) -> Result<HandleNo, Error> {
        let access = Access::from_flags(flags);
        let found = self.find(path).await;
        if flags & libc::O_CREAT != 0 && (found.is_err() || flags & libc::O_EXCL != 0) {
            let (parent, name) = self.parent(path).await?;
            let create = Create { access, exclusive: flags & libc::O_EXCL != 0, new_attrs: NewAttrs::default() };
            let (attr, opened) = self.vfs.create(parent, name, create).await?;
            self.vfs.forget(attr.ino, 1);
            return Ok(opened.handle);
        }
        Ok(self.vfs.open(found?, access).await?.handle)
    }

    pub(in crate::fs) async fn close(&self, handle: HandleNo) -> Result<(), Error> {
        let flushed = self.vfs.flush_file(handle).await;
        self.vfs.release(handle).await?;
        flushed
    }

    pub(in crate::fs) async fn put(&self, handle: HandleNo, offset: u64, data: &[u8]) -> Result<usize, Error> {
        self.vfs.write(handle, offset, Bytes::copy_from_slice(data)).await
    }

    /// Writes a whole file, as `cp` does.
    pub(in crate::fs) async fn write(&self, path: &str, data: &[u8]) -> Result<(), Error> {
        let handle = self.open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC).await?;
        let written = self.put(handle, 0, data).await.map(drop);
        let closed = self.close(handle).await;
        written.and(closed)
    }

    /// Writes into a file.
    pub(in crate::fs) async fn write_at(&self, path: &str, offset: u64, data: &[u8]) -> Result<(), Error> {
        let handle = self.open(path, libc::O_RDWR).await?;
        let written = self.put(handle, offset, data).await.map(drop);
        let closed = self.close(handle).await;
        written.and(closed)
    }

    pub(in crate::fs) async fn read_all(&self, handle: HandleNo) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        loop {
            let part = self.vfs.read(handle, out.len() as u64, 100_000).await?;
            if part.is_empty() {
                return Ok(out);
            }
            out.extend_from_slice(&part);
        }
    }

    pub(in crate::fs) async fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        let handle = self.open(path, libc::O_RDONLY).await?;
        let read = self.read_all(handle).await;
        self.vfs.release(handle).await?;
        read
    }

    pub(in crate::fs) async fn truncate(&self, path: &str, len: u64) -> Result<(), Error> {
        let set = SetAttr { len: Some(len), ..SetAttr::default() };
        self.vfs.setattr(self.find(path).await?, set).await.map(drop)
    }

    pub(in crate::fs) async fn mkdir(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = self.parent(path).await?;
        let attr = self.vfs.mkdir(parent, name, NewAttrs::default()).await?;
        self.vfs.forget(attr.ino, 1);
        Ok(())
    }

    pub(in crate::fs) async fn special(&self, path: &str, special: Special) -> Result<(), Error> {
        let (parent, name) = self.parent(path).await?;
        let attr = self.vfs.create_special(parent, name, special, NewAttrs::default()).await?;
        self.vfs.forget(attr.ino, 1);
        Ok(())
    }

    pub(in crate::fs) async fn symlink(&self, path: &str, target: &str) -> Result<(), Error> {
        self.special(path, Special::Link(target.into())).await
    }

    pub(in crate::fs) async fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        let from = self.find(from).await?;
        let (parent, name) = self.parent(to).await?;
        let attr = self.vfs.link(from, parent, name).await?;
        self.vfs.forget(attr.ino, 1);
        Ok(())
    }

    /// Copies a whole file as `cp` does: by one call if possible, else by reading and writing. Returns true if it was
    /// one call.
    pub(in crate::fs) async fn copy(&self, from: &str, to: &str) -> Result<bool, Error> {
        let reader = self.open(from, libc::O_RDONLY).await?;
        let content = self.read_all(reader).await?;
        let writer = self.open(to, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC).await?;
        let moved = match self.vfs.copy_whole(reader, writer, u64::MAX).await {
            Ok(copied) => {
                assert_eq!(copied as usize, content.len());
                true
            }
            Err(Error::NotSupported) => {
                self.put(writer, 0, &content).await?;
                false
            }
            Err(error) => return Err(error),
        };
        self.close(writer).await?;
        self.close(reader).await?;
        Ok(moved)
    }

    pub(in crate::fs) async fn unlink(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = self.parent(path).await?;
        self.vfs.unlink(parent, name).await
    }

    pub(in crate::fs) async fn rmdir(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = self.parent(path).await?;
        self.vfs.rmdir(parent, name).await
    }

    pub(in crate::fs) async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.rename_as(from, to, true).await
    }

    pub(in crate::fs) async fn rename_as(&self, from: &str, to: &str, replace: bool) -> Result<(), Error> {
        let (parent, name) = self.parent(from).await?;
        let (to_parent, to_name) = self.parent(to).await?;
        self.vfs.rename(parent, name, to_parent, to_name, replace).await
    }

    pub(in crate::fs) async fn list(&self, path: &str) -> Result<Vec<Listed>, Error> {
        let handle = self.vfs.opendir(self.find(path).await?).await?;
        let mut entries = Vec::new();
        self.vfs.readdir(handle, 2, |entry, _| {
            entries.push(entry.clone());
            false
        })?;
        self.vfs.releasedir(handle)?;
        Ok(entries)
    }

    pub(in crate::fs) async fn names(&self, path: &str) -> Vec<String> {
        self.list(path).await.unwrap().into_iter().map(|entry| entry.name).collect()
    }

    /// Returns everything in the mount: files with their content, symbolic links with their target, directories with
    /// `None`.
    pub(in crate::fs) async fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut open = vec![String::new()];
        while let Some(directory) = open.pop() {
            for entry in self.list(&directory).await.unwrap() {
                let path = if directory.is_empty() { entry.name } else { format!("{directory}/{}", entry.name) };
                match entry.kind {
                    FileKind::Directory => {
                        found.insert(path.clone(), None);
                        open.push(path);
                    }
                    FileKind::File => drop(found.insert(path.clone(), Some(self.read(&path).await.unwrap()))),
                    _ => {
                        let target = self.vfs.readlink(entry.ino).unwrap();
                        found.insert(path, Some([&b"-> "[..], &target].concat()));
                    }
                }
            }
        }
        found
    }

    /// Flushes everything. Panics if something stays pending.
    pub(in crate::fs) async fn flush(&self) {
        let drained = self.vfs.flush(Some(Duration::from_secs(20))).await;
        assert_eq!(drained.pending, 0, "{:?}", self.vfs.status());
    }

    /// Waits until no slot is in use. Slots are freed in the background, once the change that freed them is durable.
    pub(in crate::fs) async fn staging_empties(&self) {
        for _ in 0..2000 {
            self.vfs.journal.synced(self.vfs.journal.last()).await.unwrap();
            if self.vfs.pool.used() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} slots stay in use", self.vfs.pool.used());
    }
}

/// Returns the shortest of several times that `run` takes.
pub(in crate::fs) fn shortest(mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let began = Instant::now();
        run();
        began.elapsed()
    };
    (0..7).map(time).min().unwrap()
}
