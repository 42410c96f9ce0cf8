//! A view as a filesystem: inodes, handles, staging and journal, flush; and the FUSE front end that only translates.
//!
//! Does no crypto and no HTTP: all of that is behind [`crate::store::View`]. [`Vfs`] is a facade; each state machine has one owner:
//!
//! | module | owns |
//! |---|---|
//! | `inode` | the inode table, lookup counts |
//! | `handle`, `read` | open handles, pinned versions, read-ahead |
//! | `dir`, `overlay` | listings of the source with local state laid over them |
//! | `edit`, `write` | local content of files |
//! | `name` | operations on names |
//! | `special` | links, pipes, sockets, devices: what only this machine has |
//! | `copy` | copies that move no bytes |
//! | `xattr` | extended attributes |
//! | `journal`, `ledger`, `codec` | what this machine owes the source, so that no crash loses it |
//! | `lock` | the order of all locks |
//! | `slots` | the pool of staging slots |
//! | `room` | how much may be staged |
//! | `flush`, `commit`, `conflict`, `confirm` | paying what is owed |
//! | `twins` | files and folders of one name |
//! | `policy` | which local content is uploaded |
//! | `pending` | what the user sees and decides of that |
//! | `errno` | the one table of error numbers |
//!
//! Two kinds of lock are async and are held across awaits: a directory's gate, and then a file's draft. All other locks
//! come after them, are held for a short time and never across an await. Their order is that of `lock::Rank`, which
//! debug builds check.

mod attr;
mod content;
mod errno;
mod front;
mod handle;
mod journal;
mod lock;
#[cfg(test)]
mod memory_view;
mod namespace;
mod slots;
mod special;
mod staging;
mod sync;
#[cfg(test)]
mod tests;
mod tree;

pub use attr::{STATFS_BLOCK, STATFS_BLOCKS, STATFS_NAME, SetAttr, TIME_GRANULARITY};
pub use content::quota::MIN_PENDING;
pub use content::write::Allocate;
pub use errno::Error;
#[cfg(feature = "fuse")]
pub use front::fuse;
pub use handle::{Access, HandleNo, Listed, Opened};
pub use namespace::Create;
pub use special::Special;
pub use sync::conflict::OnConflict;
pub use sync::pending::{Pending, PendingFile, PendingKind, PendingNo, PendingState, drop_order};
pub use tree::inode::{Attr, Birth, FileKind, Ino};
pub use tree::xattr::SetXattr;

use crate::disk::{Disk, RealDisk};
use crate::store::View;
use content::{edit::Edit, quota};
use handle::Handles;
use journal::file::{Journal, Purpose};
use journal::ledger::{self, Entry};
use lock::{Mutex, Rank, lock};
use slots::Pool;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use sync::{commit, readback, schedule::Flusher, twins};
use tokio::sync::watch;
use tree::inode::Tree;

/// Journal and pool are synced this often, so that a power cut loses at most what a second brought.
const TICK: Duration = Duration::from_secs(1);
/// Writes to a file that stays open reach the journal at the latest after so many ticks.
const SETTLE_TICKS: u64 = 5;
/// Longest time that files which are held may keep the ticker from its next turn, for each of its two jobs.
const SETTLE_PATIENCE: Duration = Duration::from_millis(500);
/// Wait of an operation without a deadline: not endless, so that an operation on a Hub that never answers ends.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Returns the deadline that a duration stands for: zero stands for an hour.
pub fn or_longest_wait(deadline: Duration) -> Duration {
    if deadline.is_zero() { LONGEST_WAIT } else { deadline }
}

/// How a mount behaves. Defaults are the command line's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Staging and journal lie in a folder below, named by the view's identity.
    pub cache_dir: PathBuf,
    /// Staging files and asynchronous flush; without it (plain views only) files are written in order and committed when closed.
    pub advanced_writes: bool,
    /// Refuse all writes.
    pub read_only: bool,
    /// How long attributes and entries may be cached.
    pub metadata_ttl: Duration,
    /// How long a missed name counts as missing. Not longer than [`Options::metadata_ttl`].
    pub negative_ttl: Duration,
    /// Quiet time before a dirty file is flushed.
    pub flush_debounce: Duration,
    /// Longest time a dirty file waits.
    pub flush_max_window: Duration,
    /// Owner of all entries that were made elsewhere, or before this mount.
    pub uid: u32,
    /// Group of the same.
    pub gid: u32,
    /// Permission bits of such files.
    pub file_mode: u16,
    /// Permission bits of such directories.
    pub dir_mode: u16,
    /// Keep new `.DS_Store`, `Thumbs.db` and the like on this machine and don't upload them.
    pub filter_os_files: bool,
    /// Deadline of every remote wait a kernel request makes; zero stands for an hour.
    pub reply_deadline: Duration,
    /// `fsync` also waits for the Hub.
    pub fsync_remote: bool,
    /// What becomes of two changes of the same thing.
    pub on_conflict: OnConflict,
    /// Bytes of disk space for local changes above which content is evicted that the remote already has; `None`:
    /// no limit.
    pub max_staging: Option<u64>,
    /// Bytes of disk space that local changes may take, at least [`MIN_PENDING`]; `None`: no limit.
    pub max_pending: Option<u64>,
    /// How long after a commit it is read back: 10 s or more, except in tests.
    pub read_back_after: Duration,
}

/// What `status` tells of a mount. Paths in it are plaintext: only the control socket carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Files not on the Hub yet, also those that are open for writing, and changes of names that it hasn't seen.
    pub pending_files: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Files and changes of names that were refused for good, or wait for a decision; nothing of them is lost.
    pub parked_files: u64,
    /// Conflicts kept.
    pub conflicts: u64,
    /// Files that are kept on this machine and not uploaded, because of their names.
    #[serde(default)]
    pub kept_files: u64,
    /// Entries that are at the source and not shown: this key can't read them, their names can't be names of files, or
    /// others hide them.
    pub unreadable_entries: u64,
    /// The last error, as a sentence.
    pub last_error: Option<String>,
    /// When the source was last polled, RFC 3339.
    pub last_poll: Option<String>,
}

/// What a drain achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drained {
    /// Files committed.
    pub flushed: u64,
    /// Files and changes of names still pending (kept in the journal). A flush doesn't count streaming files that
    /// are open; the end of the mount does.
    pub pending: u64,
    /// Conflicts kept over the mount's life.
    pub conflicts: u64,
}

/// The filesystem, a facade that delegates.
pub struct Vfs {
    view: Arc<dyn View>,
    options: Options,
    tree: Mutex<Tree, { Rank::Tree as u8 }>,
    handles: Handles,
    journal: Arc<Journal>,
    pool: Arc<Pool>,
    flusher: Flusher,
    read_backs: readback::ReadBacks,
    twins: twins::Twins,
    /// When uploads were hurried last, to make room.
    hurried: Mutex<Option<Instant>>,
    promises: Arc<quota::Promises>,
    stopping: AtomicBool,
    stop: watch::Sender<bool>,
    /// Keeps other daemons out of the staging folder; released last.
    _folder: staging::Folder,
}

impl Vfs {
    /// Opens staging and journal (a lock keeps a second daemon out), recovers what is pending, starts the flusher.
    pub async fn start(view: Arc<dyn View>, options: Options) -> Result<Arc<Self>, Error> {
        Self::start_on(Arc::new(RealDisk), view, options).await
    }

    /// The same with journal and pool on another disk, below the same path.
    async fn start_on(disk: Arc<dyn Disk>, view: Arc<dyn View>, options: Options) -> Result<Arc<Self>, Error> {
        let (identity, slot_len, sealer) = (view.identity(), view.slot_len(), view.sealer());
        let cache_dir = options.cache_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let folder = staging::Folder::open(&*disk, &cache_dir, &identity)?;
            let (journal, pool) = Journal::open(disk, folder.path(), identity, slot_len, sealer)?;
            Ok::<_, Error>((folder, journal, pool))
        });
        let (folder, journal, pool) = opened.await.map_err(|e| Error::Staging(std::io::Error::other(e)))??;
        let flusher = Flusher::new(options.flush_debounce, options.flush_max_window);
        let vfs = Arc::new(Self {
            view,
            options,
            tree: Mutex::new(Tree::new()),
            handles: Handles::default(),
            journal,
            pool,
            flusher,
            read_backs: readback::ReadBacks::default(),
            twins: twins::Twins::default(),
            hurried: Mutex::default(),
            promises: Arc::default(),
            stopping: AtomicBool::new(false),
            stop: watch::channel(false).0,
            _folder: folder,
        });
        if vfs.options.max_staging.or(vfs.options.max_pending).is_some() {
            vfs.pool.keep_small();
        }
        vfs.restore()?;
        let stop = || vfs.stop.subscribe();
        tokio::spawn(Self::upload_loop(Arc::downgrade(&vfs), stop()));
        tokio::spawn(Self::commit_loop(Arc::downgrade(&vfs), stop()));
        tokio::spawn(Self::confirm_loop(Arc::downgrade(&vfs), stop()));
        tokio::spawn(Self::twins_loop(Arc::downgrade(&vfs), stop()));
        tokio::spawn(Self::tick_loop(Arc::downgrade(&vfs), stop()));
        Ok(vfs)
    }

    /// Takes up what an earlier daemon left. Files appear in the tree when their directories are listed.
    fn restore(&self) -> Result<(), Error> {
        let left: Vec<_> = {
            let ledger = self.journal.ledger();
            // Nothing newer of such a file is frozen before it is known what became of this: the source may have it already.
            ledger.ops().filter_map(|(_, what)| commit::put_file(what)).for_each(|file| self.flusher.launch(file));
            ledger.unconfirmed().all().for_each(|(op, _)| self.read_back_later(op));
            ledger
                .files()
                .filter_map(|(file, record)| {
                    let is_unseen = record.remote == ledger::Remote::Absent;
                    let keeps = is_unseen && record.path.as_ref().is_some_and(|path| self.policy().keeps(path));
                    Some((file, record.path.is_some(), keeps, record.draft.clone()?))
                })
                .collect()
        };
        let mut ended = Vec::new();
        for (file, has_name, keeps, draft) in left {
            if !has_name && self.flusher.is_launched(file) {
                // Ended when it is known what became of its commit.
                continue;
            }
            if !has_name || !draft.is_dirty() {
                ended.push(Entry::End { file });
                continue;
            }
            let ticket = self.journal.last();
            let restored = self.view.draft(draft.state, self.pool.clone())?;
            let room = self.options.max_pending.map(|_| self.promises.add(restored.slots_needed()));
            let edit = Arc::new(Edit::new(file, restored, draft.mtime, draft.generation, draft.committed, ticket));
            edit.keep_room(room);
            self.flusher.add(edit.clone());
            if keeps {
                self.flusher.keep(file);
            }
            self.flusher.touch(&edit);
        }
        self.journal.append(Purpose::Relief, ended)?;
        let (pending, queued) = (self.flusher.pending(&self.journal).0, self.queued_changes());
        if pending + queued > 0 {
            tracing::info!(files = pending, changes = queued, "taking up what was pending");
        }
        Ok(())
    }

    async fn tick_loop(vfs: Weak<Self>, mut stop: watch::Receiver<bool>) {
        let mut ticks = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let Some(this) = vfs.upgrade() else { return };
            ticks += 1;
            // First: settling may wait for a file that is held.
            this.journal.sync_soon();
            // What isn't evicted now is evicted by a later tick.
            let _ = tokio::time::timeout(SETTLE_PATIENCE, this.collect()).await;
            if ticks % SETTLE_TICKS == 0 {
                this.settle_together(SETTLE_PATIENCE).await;
            }
            this.handles.cool_down();
        }
    }

    /// Brings everything that was written into the journal, as far as that is possible in the given time: files
    /// that are held keep no other waiting.
    async fn settle_together(&self, patience: Duration) {
        let unsettled: Vec<_> = self.flusher.edits().into_iter().filter(|edit| edit.is_unsettled()).collect();
        futures::future::join_all(unsettled.iter().map(|edit| self.settle_one(edit, patience))).await;
    }

    async fn settle_one(&self, edit: &Edit, patience: Duration) {
        let settled = tokio::time::timeout(patience, edit.settle(&self.journal, &self.pool)).await;
        if let Err(error) = settled.unwrap_or(Err(Error::TimedOut)) {
            tracing::warn!(%error, "an open file's writes aren't in the journal yet");
        }
    }

    /// Settles and flushes everything, then refuses new work. All of it together takes about as long as the
    /// deadline says. What isn't on the
    /// Hub by then stays in the journal.
    pub async fn shutdown(&self, deadline: Duration) -> Drained {
        self.stopping.store(true, Ordering::Release);
        let began = Instant::now();
        // Whoever holds a file may wait for a Hub that hangs.
        self.settle_together(deadline.max(SETTLE_PATIENCE)).await;
        let mut drained = self.flush(Some(deadline.saturating_sub(began.elapsed()))).await;
        // A streaming file that is still open isn't on the Hub either.
        drained.pending = self.flusher.pending(&self.journal).0 + self.queued_changes();
        self.settle_together(SETTLE_PATIENCE).await;
        if let Err(error) = self.sync_journal().await {
            tracing::error!(%error, "the journal could not be synced");
        }
        self.stop.send_replace(true);
        let journal = self.journal.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || journal.close()).await {
            tracing::error!(%error, "the journal could not be closed");
        }
        drained
    }

    /// For `status`.
    pub fn status(&self) -> Status {
        let (files, bytes, parked) = self.flusher.pending(&self.journal);
        let queued = self.queued_changes();
        let hidden = self.view.hidden();
        let parked_ops = self.flusher.parked_ops(&self.journal.ledger());
        let (kept_files, unreadable_entries) = (self.flusher.kept(), hidden.total().saturating_add(self.covered()));
        let trouble = self.sync_trouble();
        let tally = self.flusher.tally();
        Status {
            pending_files: files + queued,
            pending_bytes: bytes,
            parked_files: parked + parked_ops,
            conflicts: tally.conflicts,
            kept_files,
            unreadable_entries,
            last_error: trouble.or_else(|| tally.last_error.clone()),
            last_poll: None,
        }
    }

    fn sync_trouble(&self) -> Option<String> {
        let kind = self.journal.sync_failure()?;
        Some(format!("staging could not be synced ({kind}): nothing more is taken until the next start"))
    }

    /// Stops everything where it is, as far as that can be done without killing the process.
    #[cfg(test)]
    fn kill(&self) {
        self.stop.send_replace(true);
        self.journal.close();
    }

    /// The same without waiting for anything, when there is nothing left to write to.
    #[cfg(test)]
    fn abandon_all(&self) {
        self.stop.send_replace(true);
        self.journal.abandon();
    }

    /// Returns the longest that one operation may wait for the Hub.
    pub fn reply_deadline(&self) -> Duration {
        or_longest_wait(self.options.reply_deadline)
    }

    /// How the mount behaves.
    pub fn options(&self) -> &Options {
        &self.options
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
