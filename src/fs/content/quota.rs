//! Limits the disk space of local changes.
//!
//! A mount keeps local changes in two files: the slot pool, which grows by [`GROWTH`] slots, and the journal, which
//! has disk space reserved ahead of its end. Both limits count the size of these two files on disk, including
//! reserved space.
//!
//! - `--max-pending-size` is a hard limit. Near it, uploads begin early. At it, content that the remote already has
//!   is evicted, even of open files. A writer waits until there is space, or until most of the reply deadline has
//!   passed; then it gets `ENOSPC`. Earlier writes are not touched. Only writers wait. An upload may need slots for
//!   the rest of an edited file. They are counted when the edit begins, so that the upload can't fail for lack of
//!   them.
//! - `--max-staging-size` never delays or refuses a write. Above it, content that the remote already has is evicted
//!   in the background.
//!
//! The file that was changed least recently is evicted first.

use crate::fs::content::edit::Edit;
use crate::fs::content::promises::{Promises, SpacePromise};
use crate::fs::errno::Error;
use crate::fs::journal;
use crate::fs::journal::file::Journal;
use crate::fs::lock::{Mutex, lock};
use crate::fs::options::Options;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::inode::InodeTable;
use crate::store::View;
use crate::store::staging::{GROWTH, Pool};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Smallest `--max-pending-size`, bytes (16 MiB). A journal of a few pending changes grows to 9 MiB before it is
/// compacted, and the pool to 4 MiB with its first slot.
pub const MIN_PENDING: u64 = 16 << 20;
/// Part of the limit (in eighths) above which uploads begin early.
const NEARLY_FULL: u64 = 6;
/// Shortest interval between two early starts of uploads.
const HURRY: Duration = Duration::from_millis(200);
/// Part of the reply deadline (in quarters) that a writer waits for space. The rest is for the reply.
const MAX_WAIT: u32 = 3;
/// Plaintext bytes of one slot.
const RECORD: u64 = 1 << 16;

/// Disk space that pool and journal take.
#[derive(Clone, Copy)]
struct Taken {
    /// Slots with content.
    used: u64,
    /// Slots for which disk space is reserved.
    reserved: u64,
    slot_len: u64,
    /// Size of the journal after its next record, bytes, at most.
    journal: u64,
}

impl Taken {
    /// Returns the bytes on disk now.
    fn bytes(&self) -> u64 {
        self.reserved.saturating_mul(self.slot_len).saturating_add(self.journal)
    }

    /// Returns the bytes on disk if `slots` more slots get content. The pool grows only if its free slots don't
    /// suffice.
    fn bytes_with(&self, slots: u64) -> u64 {
        let wanted = self.used.saturating_add(slots);
        let growths = wanted.saturating_sub(self.reserved).div_ceil(GROWTH);
        // Free slots need no further space. They don't count, so that a limit which is lower than an earlier one can
        // be met.
        let total = if growths == 0 { wanted } else { self.reserved.saturating_add(growths.saturating_mul(GROWTH)) };
        total.saturating_mul(self.slot_len).saturating_add(self.journal)
    }
}

/// The limits of disk space. See the module.
pub(crate) struct Quota {
    pub(crate) view: Arc<dyn View>,
    pub(crate) options: Arc<Options>,
    pub(crate) tree: Arc<InodeTable>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) promises: Arc<Promises>,
    pub(crate) hurried: Mutex<Option<Instant>>,
}

impl Quota {
    /// Waits for disk space for a change of `edit`: `bytes` are written or added, and the file is `end` bytes long
    /// afterwards. The caller passes the result to `EditGuard::keep_promise` after the change. Returns `None` if
    /// there is no limit.
    pub(crate) async fn make_space(&self, edit: &Edit, bytes: u64, end: u64) -> Result<Option<SpacePromise>, Error> {
        let bytes = bytes.saturating_add(edit.unfetched().min(end));
        self.reserve_space(bytes, end).await
    }

    /// Waits for disk space for `bytes` bytes of a file that is `end` bytes long with them.
    pub(crate) async fn reserve_space(&self, bytes: u64, end: u64) -> Result<Option<SpacePromise>, Error> {
        let Some(limit) = self.options.max_pending.filter(|_| bytes > 0) else { return Ok(None) };
        let full = || Error::Staging(io::ErrorKind::StorageFull.into());
        // No wait can free enough space for a file that doesn't fit by itself.
        let alone = Taken { used: 0, reserved: 0, slot_len: self.pool.slot_len(), journal: journal::file::RESERVE };
        if alone.bytes_with(end.div_ceil(RECORD)) > limit {
            return Err(full());
        }
        // One more slot is counted, because a change needn't begin at the start of a record.
        let slots = bytes.div_ceil(RECORD) + 1;
        let until = Instant::now() + self.options.reply_timeout() / 4 * MAX_WAIT;
        loop {
            let freed = self.pool.freed();
            let mut wanted = 0;
            let promise = self.promises.add_if(slots, |all| {
                wanted = self.taken().bytes_with(all);
                wanted <= limit
            });
            if wanted > limit / 8 * NEARLY_FULL {
                self.hurry(wanted > limit);
            }
            if promise.is_some() {
                return Ok(promise);
            }
            // Files are evicted one at a time. The slots are free a little later.
            let evicted = self.evict(1).await?;
            let compacted = self.journal.compact_if_worthwhile();
            if evicted == 0 && !compacted && Instant::now() >= until {
                return Err(full());
            }
            // Slots are free when the records that freed them are on disk.
            self.journal.sync_soon();
            let _ = tokio::time::timeout(HURRY, freed).await;
        }
    }

    /// Evicts content that the remote already has, while more than `--max-staging-size` is taken.
    pub(crate) async fn collect(&self) {
        let Some(limit) = self.options.max_staging else { return };
        let excess = self.taken().bytes().saturating_sub(limit);
        if excess > 0
            && let Err(error) = self.evict(excess).await
        {
            tracing::warn!(%error, "cannot evict staged content");
        }
    }

    fn taken(&self) -> Taken {
        let journal = self.journal.disk_len();
        let (used, reserved) = self.pool.size();
        Taken { used, reserved, slot_len: self.pool.slot_len(), journal }
    }

    /// Starts the upload of all files that can be uploaded now. With `all`, includes files that are still being
    /// written.
    fn hurry(&self, all: bool) {
        {
            let mut last = lock(&self.hurried);
            if last.is_some_and(|at| at.elapsed() < HURRY) {
                return;
            }
            *last = Some(Instant::now());
        }
        let edits = self.schedule.dirty_files();
        edits
            .iter()
            .filter(|edit| all || !self.is_being_written(edit))
            .for_each(|edit| self.schedule.flush_early(edit));
        self.schedule.wake();
    }

    fn is_being_written(&self, edit: &Edit) -> bool {
        let tree = lock(&self.tree);
        edit.ino().and_then(|ino| tree.node(ino).ok()).is_some_and(|node| node.writers > 0)
    }

    /// Frees slots of files that the remote has completely, until `bytes` are freed or no such file is left. Skips
    /// files that are being read or written. Returns the number of bytes that were freed.
    async fn evict(&self, bytes: u64) -> Result<u64, Error> {
        let mut clean: Vec<_> = self.schedule.edits().into_iter().filter(|edit| edit.is_evictable()).collect();
        {
            let ledger = self.journal.ledger();
            let draft = |file| ledger.file(file).and_then(|record| record.draft.as_ref());
            clean.retain(|edit| draft(edit.file).is_some_and(|draft| !draft.state.records.is_empty()));
        }
        clean.sort_by_key(|edit| std::cmp::Reverse(edit.quiet()));
        let mut freed = 0;
        for edit in clean {
            if freed >= bytes {
                break;
            }
            let again = |state| Ok(self.view.draft(state, self.pool.clone())?);
            // A draft that is locked is skipped: a read may hold it over a wait for the network.
            let Some(guard) = edit.try_write_guard(&self.journal, &self.pool) else { continue };
            freed += guard.evict(again).await?.saturating_mul(self.pool.slot_len());
        }
        if freed > 0 {
            self.journal.sync_soon();
        }
        Ok(freed)
    }
}
