//! Room for staging under `--max-staging-size`.
//!
//! Near the limit uploads are hurried; at it, content that the source has already is given back, even of files that are open, least recently
//! touched first, and writers wait until there is room or their patience ends: then it is `ENOSPC`, and nothing that was taken before is touched.
//! Only writers are held up. What a version needs on its way to the source (the rest of an edited file, at most its own size) is counted when
//! the edit begins, so that what was taken can be paid.

use super::edit::Edit;
use super::{Error, Vfs, lock};
use std::io;
use std::time::{Duration, Instant};

/// Uploads are hurried when staging is fuller than this part of the limit (in eighths).
const NEARLY_FULL: u64 = 6;
/// Uploads are hurried at most this often.
const HURRY: Duration = Duration::from_millis(200);
/// Part of the reply deadline that a writer waits for room (in quarters): the rest is for the answer.
const PATIENCE: u32 = 3;

impl Vfs {
    /// Waits for room for `len` more bytes of a file that will be `end` bytes long with them.
    pub(super) async fn make_room(&self, edit: &Edit, len: u64, end: u64) -> Result<(), Error> {
        let Some(limit) = self.options.max_staging else { return Ok(()) };
        let full = || Error::Staging(io::ErrorKind::StorageFull.into());
        let slot = self.pool.slot_len();
        let needed = len.saturating_add(edit.owed().min(end));
        if needed == 0 {
            return Ok(());
        }
        // No wait can make room for a file that doesn't fit by itself.
        if end.div_ceil(slot).saturating_mul(slot) > limit {
            return Err(full());
        }
        let until = Instant::now() + self.options.reply_deadline / 4 * PATIENCE;
        loop {
            let freed = self.pool.freed();
            let wanted = self.pool.used().saturating_mul(slot).saturating_add(needed);
            if wanted <= limit / 8 * NEARLY_FULL {
                return Ok(());
            }
            self.hurry(wanted > limit);
            if wanted <= limit {
                return Ok(());
            }
            // One at a time: its slots are free a little later.
            if !self.evict().await? && Instant::now() >= until {
                return Err(full());
            }
            // Slots are free when what freed them is on disk.
            self.journal.sync_soon();
            let _ = tokio::time::timeout(HURRY, freed).await;
        }
    }

    /// Uploads at once what can be; with `all`, also what is still being written.
    fn hurry(&self, all: bool) {
        {
            let mut last = lock(&self.hurried);
            if last.is_some_and(|at| at.elapsed() < HURRY) {
                return;
            }
            *last = Some(Instant::now());
        }
        let edits = self.flusher.dirty_files();
        edits.iter().filter(|edit| all || !self.is_being_written(edit)).for_each(|edit| edit.hurry());
        self.flusher.wake();
    }

    fn is_being_written(&self, edit: &Edit) -> bool {
        let tree = lock(&self.tree);
        edit.ino().and_then(|ino| tree.node(ino).ok()).is_some_and(|node| node.writers > 0)
    }

    /// Gives the slots of one file back that the source has whole; says whether there was one.
    async fn evict(&self) -> Result<bool, Error> {
        let mut clean: Vec<_> = self.flusher.edits().into_iter().filter(|edit| edit.is_evictable()).collect();
        clean.sort_by_key(|edit| std::cmp::Reverse(edit.quiet()));
        for edit in clean {
            let again = |state| Ok(self.view.draft(state, self.pool.clone())?);
            if edit.evict(&self.journal, &self.pool, again).await? {
                self.journal.sync_soon();
                return Ok(true);
            }
        }
        Ok(false)
    }
}
