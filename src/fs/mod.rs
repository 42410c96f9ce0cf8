//! Presents a [`crate::store::View`] as a filesystem: inodes, handles, local staging, a journal of pending changes,
//! and uploads.
//!
//! This layer does no crypto and no HTTP: the view does both. [`Vfs`] holds the public operations. It delegates each
//! operation to the owner of the state that it concerns. An owner sees only the parts that it names in its fields:
//!
//! | module | owns |
//! |---|---|
//! | `tree` | the inode table, listings of the remote merged with local changes, extended attributes |
//! | `handle` | open files and directories |
//! | `content` | contents of files: reads, local edits, copies, the limit of disk space |
//! | `namespace` | operations on names; links, pipes, sockets and devices, which exist on this machine only |
//! | `journal` | pending changes, stored so that no crash loses them |
//! | `sync` | uploads, commits, conflicts, read-backs, and the user's decisions about pending changes |
//! | `persist` | the periodic jobs: syncing every second, and journaling the writes to open files |
//! | `staging` | the folder that holds the journal and the staging pool (`store::staging`) |
//! | `filesystem` | the trait that front ends call |
//! | `overlay` | a writable local layer over the remote (`--overlay`), above [`Vfs`] |
//! | `front` | FUSE |
//! | `lock` | the order of all locks |
//! | `errno` | the table of error numbers |
//! | `ids`, `options` | numbers and plain data |
//!
//! Two kinds of lock are async and are held across awaits: first a directory's gate, then a file's draft. All other
//! locks come after them in the lock order. They are held for a short time and never across an await. Their order is
//! that of `lock::Rank`, which debug builds check. The lock of the staging pool belongs to `store` and has no rank. It
//! is the innermost: a thread takes no other lock while it holds it.

mod content;
mod errno;
mod filesystem;
pub mod front;
mod gate;
mod handle;
mod ids;
mod journal;
mod lock;
#[cfg(test)]
mod memory_view;
mod namespace;
mod options;
pub mod overlay;
mod persist;
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
pub use filesystem::{AttrSink, EntrySink, Filesystem};
pub use handle::{Access, Listed, Opened};
pub use ids::{FileKind, HandleNo, Ino, OnConflict, Special};
pub use namespace::Create;
pub use options::{Drained, Options, Status, or_longest_wait};
pub use sync::pending::{Pending, PendingFile, PendingKind, PendingNo, PendingState, drop_order};
pub use tree::evict::KernelCache;
pub use tree::inode::{Attr, NewAttrs};
pub use tree::xattr::SetXattr;

use crate::store::View;
use crate::store::staging::Pool;
use bytes::Bytes;
use content::Contents;
use content::quota::Quota;
use gate::WriteGate;
use journal::file::Journal;
use lock::lock;
use namespace::Namespace;
use persist::Persister;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sync::Sync;
use sync::schedule::Schedule;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tree::evict::Evictor;
use tree::freshness::Freshness;
use tree::inode::InodeTable;
use tree::listing::Directories;
#[cfg(test)]
use tree::twins::Twins;
use tree::xattr::Attributes;

/// The filesystem. Starts with [`Vfs::start`] and ends with [`Vfs::shutdown`].
pub struct Vfs {
    view: Arc<dyn View>,
    options: Arc<Options>,
    tree: Arc<InodeTable>,
    journal: Arc<Journal>,
    pool: Arc<Pool>,
    schedule: Arc<Schedule>,
    #[cfg(test)]
    twins: Arc<Twins>,
    gate: Arc<WriteGate>,
    quota: Arc<Quota>,
    directories: Arc<Directories>,
    contents: Arc<Contents>,
    names: Namespace,
    attributes: Attributes,
    /// `None`: the inode table has no limit.
    evictor: Option<Arc<Evictor>>,
    freshness: Arc<Freshness>,
    sync: Arc<Sync>,
    persister: Arc<Persister>,
    /// Keeps other daemons out of the staging folder; released last.
    _folder: staging::Folder,
}

impl Vfs {
    /// Finds a name and adds one kernel reference to its inode. The caller drops the reference with [`Self::forget`].
    pub async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.directories.lookup(parent, name).await
    }

    /// Drops `count` references of the kernel.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.directories.forget(ino, count)
    }

    /// Returns how much longer a name that was missed in a directory counts as missing: the kernel may remember it
    /// for that time.
    pub fn absent_for(&self, parent: Ino) -> Duration {
        self.directories.absent_for(parent)
    }

    /// Returns the attributes of an inode. Revalidates what may have changed at the remote.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.contents.getattr(ino).await
    }

    /// Changes attributes. The size is always stored, and so is the modification time of a file that isn't committed
    /// yet. All other attributes are kept in memory only.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        self.contents.setattr(ino, set).await
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.names.readlink(ino)
    }

    /// Opens a directory. The handle shows the entries that the directory has now, even if they change later.
    pub async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        self.directories.opendir(ino).await
    }

    /// Passes the entries of an open directory to `sink`, starting at `offset`, until `sink` is full. An entry's own
    /// offset is its position plus one.
    pub fn readdir(&self, handle: HandleNo, offset: u64, sink: impl FnMut(&Listed, u64) -> bool) -> Result<(), Error> {
        self.directories.readdir(handle, offset, sink)
    }

    /// Reads the sizes of the entries that follow `offset`, as far as that is possible.
    pub async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        self.directories.measure_page(handle, offset).await
    }

    /// Passes entries with their attributes to `sink`, as [`Self::readdir`] does with entries alone. Attributes are
    /// those that are known. Each entry that `sink` accepts counts as one kernel reference that must be dropped,
    /// except for `.` and `..`. Entries that were removed since the directory was opened are left out. An entry
    /// without a known size is marked as uncertain, so that the kernel asks for it alone, and that request gets the
    /// error.
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

    /// Creates and opens a file, or opens the existing one. The attributes count as one kernel reference.
    pub async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        self.names.create(parent, name, create).await
    }

    /// Creates an empty file and closes it. The attributes count as one kernel reference.
    pub async fn create_closed(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        self.names.create_closed(parent, name, new_attrs).await
    }

    /// Creates a directory. It exists on this machine only, until something in it is committed. The attributes count
    /// as one kernel reference.
    pub async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        self.names.mkdir(parent, name, new_attrs).await
    }

    /// Creates a special file. The attributes count as one kernel reference.
    pub async fn create_special(
        &self,
        parent: Ino,
        name: &str,
        special: Special,
        new_attrs: NewAttrs,
    ) -> Result<Attr, Error> {
        self.names.create_special(parent, name, special, new_attrs).await
    }

    /// Creates a file with the content of another file. The attributes count as one kernel reference.
    pub async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.names.link(original, parent, name).await
    }

    /// Removes a file's name. Open handles can still read the file.
    pub async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.names.unlink(parent, name).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.names.rmdir(parent, name).await
    }

    /// Moves a file or a directory. With `replace`, removes an existing target if it is of the same kind and, for a
    /// directory, empty.
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

    /// Reads from a file. Returns fewer bytes than requested only at the end of the file.
    pub async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.contents.read(handle, offset, len).await
    }

    /// Writes all of `data`. With `append`, `offset` is ignored.
    pub async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        self.contents.write(handle, offset, data).await
    }

    /// Sets the size of a file.
    pub async fn truncate(&self, ino: Ino, len: u64) -> Result<(), Error> {
        self.contents.truncate(ino, len).await
    }

    /// Fills a range with zeros, or extends the file. Reserves no space: a later write may still find the disk full.
    pub async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        self.contents.allocate(handle, offset, len, how).await
    }

    /// Copies the first `len` bytes of a file into another file without moving bytes. Works only if `len` covers the
    /// whole file and the target is empty, else fails with `NotSupported`. Returns the number of bytes that were
    /// copied.
    pub async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error> {
        self.contents.copy_whole(from, to, len).await
    }

    /// Returns how long the remote may take to store what a handle has written: the deadline, plus one second per
    /// MiB.
    pub fn timeout(&self, handle: HandleNo) -> Duration {
        self.contents.timeout(handle)
    }

    /// Persists all writes, as every `close` of a descriptor does. After that, `kill -9` doesn't lose them. In
    /// streaming mode, commits them to the remote.
    pub async fn flush_file(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.flush_file(handle).await
    }

    /// Makes all writes to the file durable, so that a power cut doesn't lose them. With `--fsync remote`, commits
    /// them to the remote.
    pub async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.fsync(handle).await
    }

    /// Makes all operations on names so far durable, so that a power cut doesn't lose them.
    pub async fn fsyncdir(&self) -> Result<(), Error> {
        self.contents.fsyncdir().await
    }

    /// Closes a handle.
    pub async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        self.contents.release(handle).await
    }

    /// Closes a handle whose number was never returned to the kernel.
    pub async fn abandon(&self, handle: HandleNo) {
        self.contents.abandon(handle).await
    }

    /// Returns the value of an extended attribute.
    pub fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error> {
        self.attributes.getxattr(ino, name)
    }

    /// Returns the names of the extended attributes that users have set, each terminated by NUL.
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

    /// Waits until all changes that were pending at the call are at the remote, or until the deadline has passed.
    pub async fn flush(&self, deadline: Option<Duration>) -> Drained {
        self.sync.flush(deadline).await
    }

    /// Flushes for as long as there is progress. Ends early when, for `stalled`, no upload has advanced and no commit
    /// has succeeded.
    pub async fn flush_unless_stalled(&self, stalled: Duration) -> Drained {
        self.sync.flush_unless_stalled(stalled).await
    }

    /// Returns the pending changes in the order of their numbers: at most `limit` of those after `after`.
    pub fn pending(&self, after: Option<PendingNo>, limit: usize) -> Vec<Pending> {
        self.sync.pending(after, limit)
    }

    /// Retries these changes immediately, whatever the reason that delayed them. Returns how many of them are
    /// pending. If they meet a conflict, `wish` overrides the mount's policy.
    pub fn retry(&self, numbers: &[PendingNo], wish: Option<OnConflict>) -> usize {
        self.sync.retry(numbers, wish)
    }

    /// Opens a pending file for reading. Local data needs no network: everything that was written here, and the parts
    /// of the remote version that were fetched along with it.
    pub fn open_pending(&self, number: PendingNo) -> Result<PendingFile, Error> {
        self.sync.open_pending(number)
    }

    /// Discards pending changes in the given order; `drop_order` computes a suitable one. Returns one result for
    /// each: `None`, or the reason why it was not discarded.
    pub async fn drop_pending(&self, numbers: &[PendingNo]) -> Result<Vec<Option<Error>>, Error> {
        self.sync.drop_pending(numbers).await
    }

    /// Persists and flushes everything, then refuses new work. All steps together take about as long as `deadline`.
    /// Changes that aren't on the Hub by then stay in the journal.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        self.gate.stop();
        let began = Instant::now();
        // A task that holds a file may be waiting for a Hub that hangs.
        self.persister.persist_all(deadline).await;
        let mut drained = self.flush(Some(deadline.saturating_sub(began.elapsed()))).await;
        // A streaming file that is still open isn't on the Hub either.
        drained.pending = self.sync.pending_changes();
        self.persister.close().await;
        drained
    }

    /// Returns the figures that `status` shows.
    pub fn status(&self) -> Status {
        let hidden = self.view.hidden().total().saturating_add(self.directories.covered());
        let last_poll = self.freshness.last_poll().map(OffsetDateTime::from);
        let last_poll = last_poll.and_then(|at| at.replace_nanosecond(0).ok()?.format(&Rfc3339).ok());
        Status { unreadable_entries: hidden, inodes: lock(&self.tree).len() as u64, last_poll, ..self.sync.status() }
    }

    /// Stops all tasks at their current state, as far as possible without killing the process.
    #[cfg(test)]
    fn kill(&self) {
        self.sync.stop();
        self.journal.close();
    }

    /// Stops all tasks without waiting, for use when the disk accepts no more writes.
    #[cfg(test)]
    fn abandon_all(&self) {
        self.sync.stop();
        self.journal.abandon();
    }

    /// Returns the longest that one operation may wait for the Hub.
    pub fn reply_deadline(&self) -> Duration {
        self.options.reply_timeout()
    }

    /// Tells which kernel has references to inodes. Where their number has a limit, it is asked to drop some.
    pub(crate) fn use_kernel(&self, cache: Arc<dyn KernelCache>) -> Result<(), Error> {
        self.evictor.as_ref().map_or(Ok(()), |evictor| evictor.use_kernel(cache))
    }

    /// Asks the kernel nothing more.
    pub(crate) fn leave_kernel(&self) {
        self.evictor.iter().for_each(|evictor| evictor.leave_kernel());
    }

    /// Returns the settings of the mount.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
