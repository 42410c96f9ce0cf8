//! Open files and directories.

use crate::fs::content::prefetch::Readahead;
use crate::fs::errno::Error;
use crate::fs::ids::HandleNo;
use crate::fs::ids::{FileKind, Ino};
use crate::fs::lock::{Mutex, Rank, lock};
use crate::fs::tree::inode::Cached;
use crate::store::{Object, Version};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Flags with which a file was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Truncate the file to zero bytes.
    pub truncate: bool,
}

impl Access {
    /// Returns the access that the flags of `open(2)` ask for.
    pub fn from_flags(flags: i32) -> Self {
        let mode = flags & libc::O_ACCMODE;
        Self {
            read: mode != libc::O_WRONLY,
            write: mode != libc::O_RDONLY,
            append: flags & libc::O_APPEND != 0,
            truncate: flags & libc::O_TRUNC != 0,
        }
    }

    /// Returns true if opening or using the handle can change the file.
    pub(crate) fn changes(&self) -> bool {
        self.write || self.truncate
    }
}

/// An open file.
pub(crate) struct FileHandle {
    pub(crate) ino: Ino,
    pub(crate) access: Access,
    /// The version that the handle reads, and the inode's epoch when it was pinned.
    pub(crate) pinned: Mutex<Option<Pinned>>,
    pub(crate) ahead: Readahead,
}

/// The version that a handle continues to read.
#[derive(Clone)]
pub(crate) struct Pinned {
    pub(crate) epoch: u64,
    pub(crate) version: Version,
    pub(crate) object: Arc<dyn Object>,
}

impl FileHandle {
    /// Returns a handle that has read nothing.
    pub(crate) fn new(ino: Ino, access: Access) -> Self {
        Self { ino, access, pinned: Mutex::new(None), ahead: Readahead::default() }
    }
}

/// An open directory, with the entries that it had when it was opened. Paging through them is stable, whatever
/// changes meanwhile.
pub(crate) struct DirectoryHandle {
    pub(crate) ino: Ino,
    pub(crate) entries: Vec<Listed>,
}

impl DirectoryHandle {
    /// Returns the entries from `offset` on, each with the offset of the next one.
    pub(crate) fn from(&self, offset: u64) -> impl Iterator<Item = (&Listed, u64)> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.entries.len());
        self.entries[from..].iter().zip(offset.saturating_add(1)..)
    }
}

/// An entry of an open directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The inode.
    pub ino: Ino,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: FileKind,
}

/// All open handles. Each map has its own lock, which is held only for the access to the map.
#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    files: Mutex<HashMap<HandleNo, Arc<FileHandle>>, { Rank::Handles as u8 }>,
    directories: Mutex<HashMap<HandleNo, Arc<DirectoryHandle>>, { Rank::Handles as u8 }>,
}

impl Handles {
    fn number(&self) -> HandleNo {
        HandleNo(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Adds an open file.
    pub(crate) fn add_file(&self, handle: FileHandle) -> HandleNo {
        let no = self.number();
        lock(&self.files).insert(no, Arc::new(handle));
        no
    }

    /// Returns an open file.
    pub(crate) fn file(&self, no: HandleNo) -> Result<Arc<FileHandle>, Error> {
        lock(&self.files).get(&no).cloned().ok_or(Error::BadHandle)
    }

    /// Removes an open file and returns it.
    pub(crate) fn remove_file(&self, no: HandleNo) -> Result<Arc<FileHandle>, Error> {
        lock(&self.files).remove(&no).ok_or(Error::BadHandle)
    }

    /// Adds an open directory.
    pub(crate) fn add_directory(&self, handle: DirectoryHandle) -> HandleNo {
        let no = self.number();
        lock(&self.directories).insert(no, Arc::new(handle));
        no
    }

    /// Returns an open directory.
    pub(crate) fn directory(&self, no: HandleNo) -> Result<Arc<DirectoryHandle>, Error> {
        lock(&self.directories).get(&no).cloned().ok_or(Error::BadHandle)
    }

    /// Removes an open directory and returns it.
    pub(crate) fn remove_directory(&self, no: HandleNo) -> Result<Arc<DirectoryHandle>, Error> {
        lock(&self.directories).remove(&no).ok_or(Error::BadHandle)
    }

    /// Frees the read-ahead buffers of files that have not been read for a while.
    pub(crate) fn free_idle_buffers(&self) {
        lock(&self.files).values().for_each(|handle| handle.ahead.free_idle_buffers());
    }
}

/// The reply to `open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: HandleNo,
    /// True if the kernel's cached pages are of exactly this content, so that the kernel may keep them.
    pub keep_cache: bool,
}

impl Opened {
    /// Decides if the kernel may keep its pages. `cached` is the content that they hold. It is set to the content
    /// that they will hold.
    pub(crate) fn new(handle: HandleNo, cached: &mut Option<Cached>, now: Option<Cached>) -> Self {
        let keep_cache = now.is_some() && *cached == now;
        *cached = now;
        Self { handle, keep_cache }
    }
}
