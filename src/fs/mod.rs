//! A view as a filesystem: inodes, handles, staging and journal, uploads; and the front ends that only translate.
//!
//! Does no crypto and no HTTP: all of that is behind [`crate::store::View`]. [`Vfs`] holds the public operations and
//! delegates each of them to the owner of the state that it concerns. An owner sees only the parts that it names in its
//! fields:
//!
//! | module | owns |
//! |---|---|
//! | `tree` | the inode table, listings of the remote with local changes laid over them, extended attributes |
//! | `handle` | open files and directories |
//! | `content` | contents of files: reading, local edits, copies, the limit of disk space |
//! | `namespace` | operations on names; links, pipes, sockets and devices, which only this machine has |
//! | `journal` | pending changes, kept so that no crash loses them |
//! | `sync` | uploads, commits, conflicts, reading back, and what the user decides of them |
//! | `persist` | what happens every second: syncing, and bringing open files into the journal |
//! | `slots`, `staging` | the pool of staging slots, and the folder that holds pool and journal |
//! | `front` | FUSE |
//! | `lock` | the order of all locks |
//! | `errno` | the one table of error numbers |
//! | `ids`, `options` | numbers and plain data |
//!
//! Two kinds of lock are async and are held across awaits: a directory's gate, and then a file's draft. All other locks
//! come after them, are held for a short time and never across an await. Their order is that of `lock::Rank`, which
//! debug builds check.

mod content;
mod errno;
mod front;
mod gate;
mod handle;
mod ids;
mod journal;
mod lock;
#[cfg(test)]
mod memory_view;
mod namespace;
mod options;
mod persist;
mod slots;
mod staging;
mod start;
mod sync;
#[cfg(test)]
mod tests;
mod tree;

pub use content::attr::{STATFS_BLOCK, STATFS_BLOCKS, STATFS_NAME, SetAttr, TIME_GRANULARITY};
pub use content::quota::MIN_PENDING;
pub use content::write::Allocate;
pub use errno::Error;
#[cfg(feature = "fuse")]
pub use front::fuse;
pub use handle::{Access, Listed, Opened};
pub use ids::{FileKind, HandleNo, Ino, OnConflict, Special};
pub use namespace::Create;
pub use options::{Drained, Options, Status, or_longest_wait};
pub use sync::pending::{Pending, PendingFile, PendingKind, PendingNo, PendingState, drop_order};
pub use tree::inode::{Attr, Birth};
pub use tree::xattr::SetXattr;

use crate::store::View;
use bytes::Bytes;
use content::Contents;
use content::quota::Quota;
use gate::WriteGate;
use handle::Handles;
use journal::file::Journal;
use namespace::Namespace;
use persist::Persister;
use slots::Pool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sync::Sync;
use sync::schedule::Schedule;
use tree::inode::InodeTable;
use tree::listing::Directories;
use tree::twins::Twins;
use tree::xattr::Attributes;

/// The filesystem. Starts with [`Vfs::start`] and ends with [`Vfs::shutdown`].
#[allow(dead_code, reason = "tests look at all parts")]
pub struct Vfs {
    view: Arc<dyn View>,
    options: Arc<Options>,
    tree: Arc<InodeTable>,
    journal: Arc<Journal>,
    pool: Arc<Pool>,
    handles: Arc<Handles>,
    schedule: Arc<Schedule>,
    twins: Arc<Twins>,
    gate: Arc<WriteGate>,
    quota: Arc<Quota>,
    directories: Arc<Directories>,
    contents: Arc<Contents>,
    names: Namespace,
    attributes: Attributes,
    sync: Arc<Sync>,
    persister: Arc<Persister>,
    /// Keeps other daemons out of the staging folder; released last.
    _folder: staging::Folder,
}

impl Vfs {
    /// Finds a name and makes the kernel's reference to it: give it back with [`Self::forget`].
    pub async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.directories.lookup(parent, name).await
    }

    /// Gives `count` references of the kernel back.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.directories.forget(ino, count)
    }

    /// Returns how much longer a name that was missed in a directory counts as missing: the kernel may remember it for
    /// that time.
    pub fn absent_for(&self, parent: Ino) -> Duration {
        self.directories.absent_for(parent)
    }

    /// What `stat` tells. What may have changed at the source is looked at again.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.contents.getattr(ino).await
    }

    /// Changes attributes. All but the size, and the time of a file that isn't committed yet, are remembered in memory only.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        self.contents.setattr(ino, set).await
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.names.readlink(ino)
    }

    /// Opens a directory: what it holds now is what paging shows.
    pub async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        self.directories.opendir(ino).await
    }

    /// Hands the entries of an open directory from `offset` on to `sink`, until it is full. An entry's own offset is its place plus one.
    pub fn readdir(&self, handle: HandleNo, offset: u64, sink: impl FnMut(&Listed, u64) -> bool) -> Result<(), Error> {
        self.directories.readdir(handle, offset, sink)
    }

    /// Reads the sizes of the entries that follow `offset`, as far as that is possible.
    pub async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        self.directories.measure_page(handle, offset).await
    }

    /// As [`Self::readdir`], with attributes as far as they are known. Each entry that was taken is a reference to be given back, dots excepted.
    /// What was removed since is left out. An entry without a known size is uncertain, so that whoever asks for it alone gets the error.
    pub fn readdirplus(
        &self,
        handle: HandleNo,
        offset: u64,
        sink: impl FnMut(&Listed, &Attr, u64) -> bool,
    ) -> Result<(), Error> {
        self.directories.readdirplus(handle, offset, sink)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: HandleNo) -> Result<(), Error> {
        self.directories.releasedir(handle)
    }

    /// Creates and opens a file, or opens the one that is there. The attributes are a reference of the kernel.
    pub async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        self.names.create(parent, name, create).await
    }

    /// Makes an empty file and closes it. The attributes are a reference of the kernel.
    pub async fn make_closed(&self, parent: Ino, name: &str, birth: Birth) -> Result<Attr, Error> {
        self.names.make_closed(parent, name, birth).await
    }

    /// Makes a directory; it exists here only until something in it is committed. The attributes are a reference of the kernel.
    pub async fn mkdir(&self, parent: Ino, name: &str, birth: Birth) -> Result<Attr, Error> {
        self.names.mkdir(parent, name, birth).await
    }

    /// Makes a special file. The attributes are a reference of the kernel.
    pub async fn make_special(&self, parent: Ino, name: &str, special: Special, birth: Birth) -> Result<Attr, Error> {
        self.names.make_special(parent, name, special, birth).await
    }

    /// Makes a file with the content of another. The attributes are a reference of the kernel.
    pub async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.names.link(original, parent, name).await
    }

    /// Removes a file's name. What is open stays readable.
    pub async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.names.unlink(parent, name).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.names.rmdir(parent, name).await
    }

    /// Moves a file or a directory. `replace`: what is at the target goes, if it is of the same kind and, for a directory, empty.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &str,
        to_parent: Ino,
        to_name: &str,
        replace: bool,
    ) -> Result<(), Error> {
        self.names.rename(parent, name, to_parent, to_name, replace).await
    }

    /// Opens a file.
    pub async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        self.contents.open(ino, access).await
    }

    /// Reads; fewer bytes than asked for only at the end of the file.
    pub async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.contents.read(handle, offset, len).await
    }

    /// Writes all of `data`. With `append`, `offset` counts for nothing.
    pub async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        self.contents.write(handle, offset, data).await
    }

    /// Sets the size of a file.
    pub async fn truncate(&self, ino: Ino, len: u64) -> Result<(), Error> {
        self.contents.truncate(ino, len).await
    }

    /// Makes a range zeros, or the file longer. No space is reserved: what is written later may still find the disk full.
    pub async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        self.contents.allocate(handle, offset, len, how).await
    }

    /// Copies the first `len` bytes of a file into another, if that is all of it and the other is empty, without moving them; else
    /// `NotSupported`. Gives how many that were.
    pub async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error> {
        self.contents.copy_whole(from, to, len).await
    }

    /// How long the source may take over what a handle has written, at a MiB a second on top of the deadline.
    pub fn patience(&self, handle: HandleNo) -> Duration {
        self.contents.patience(handle)
    }

    /// What `close` of any descriptor does: all that was written is where `kill -9` can't reach it; in streaming mode, at the source.
    pub async fn flush_file(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.flush_file(handle).await
    }

    /// All that was written to the file is safe from a power cut; with `--fsync remote`, at the source.
    pub async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.fsync(handle).await
    }

    /// All operations on names so far are safe from a power cut.
    pub async fn fsyncdir(&self) -> Result<(), Error> {
        self.contents.fsyncdir().await
    }

    /// Closes a handle.
    pub async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.release(handle).await
    }

    /// Closes a handle that nobody will hear of.
    pub async fn abandon(&self, handle: HandleNo) {
        self.contents.abandon(handle).await
    }

    /// The value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error> {
        self.attributes.getxattr(ino, name)
    }

    /// The names of the extended attributes that were set, each ended by NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.attributes.listxattr(ino)
    }

    /// Sets an extended attribute.
    pub fn setxattr(&self, ino: Ino, name: &str, value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.attributes.setxattr(ino, name, value, how)
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Error> {
        self.attributes.removexattr(ino, name)
    }

    /// Waits until all that was pending when it was called is at the source, or the deadline is over.
    pub async fn flush(&self, deadline: Option<Duration>) -> Drained {
        self.sync.flush(deadline).await
    }

    /// Flushes for as long as the source takes something: ends early when no upload has advanced and nothing was
    /// committed for `stalled`.
    pub async fn flush_unless_stalled(&self, stalled: Duration) -> Drained {
        self.sync.flush_unless_stalled(stalled).await
    }

    /// What isn't at the source, in the order of its numbers: at most `limit` of those behind `after`.
    pub fn pending(&self, after: Option<PendingNo>, limit: usize) -> Vec<Pending> {
        self.sync.pending(after, limit)
    }

    /// Tries these again at once, whatever kept them; where they meet a conflict, `wish` goes before the mount's policy. Says how many of them
    /// are pending.
    pub fn retry(&self, numbers: &[PendingNo], wish: Option<OnConflict>) -> usize {
        self.sync.retry(numbers, wish)
    }

    /// Opens a pending file for reading. Needs no network for what is local: all that was written here, and what was fetched beside it.
    pub fn open_pending(&self, number: PendingNo) -> Result<PendingFile, Error> {
        self.sync.open_pending(number)
    }

    /// Gives up what is pending, in this order; `drop_order` is a good one. One answer each: why it was not given up, if so.
    pub async fn drop_pending(&self, numbers: &[PendingNo]) -> Result<Vec<Option<Error>>, Error> {
        self.sync.drop_pending(numbers).await
    }

    /// Persists and flushes everything, then refuses new work. All of it together takes about as long as the deadline
    /// says. What isn't on the Hub by then stays in the journal.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        self.gate.stop();
        let began = Instant::now();
        // Whoever holds a file may wait for a Hub that hangs.
        self.persister.persist_all(deadline).await;
        let mut drained = self.flush(Some(deadline.saturating_sub(began.elapsed()))).await;
        // A streaming file that is still open isn't on the Hub either.
        drained.pending = self.sync.pending_changes();
        self.persister.close().await;
        drained
    }

    /// For `status`.
    pub fn status(&self) -> Status {
        let hidden = self.view.hidden().total().saturating_add(self.directories.covered());
        Status { unreadable_entries: hidden, ..self.sync.status() }
    }

    /// Stops everything where it is, as far as that can be done without killing the process.
    #[cfg(test)]
    fn kill(&self) {
        self.sync.stop();
        self.journal.close();
    }

    /// Stops everything without waiting, when there is nothing left to write to.
    #[cfg(test)]
    fn abandon_all(&self) {
        self.sync.stop();
        self.journal.abandon();
    }

    /// Returns the longest that one operation may wait for the Hub.
    pub fn reply_deadline(&self) -> Duration {
        self.options.reply_timeout()
    }

    /// How the mount behaves.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
