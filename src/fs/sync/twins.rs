//! Finds a file and a folder of the same name, one of which this mount created.
//!
//! A Hub stores `a` and `a/b` side by side, so it doesn't refuse a commit that adds one of them. After a new name was
//! committed, this module asks the remote if the other kind exists under it: a folder if a file was created, or a
//! file if it is the name of a folder above the new name. If it exists, the module asks if the kind that was created
//! still exists, because this mount may have replaced one by the other since. Each name that has both is counted as a
//! conflict, once. `flush` does this check before it returns. Otherwise it is done in the background.
//!
//! If two mounts create the two entries, the one that commits later finds the other's entry, so one of them reports
//! it. The exception is a file in a folder that was created here less than a minute ago, see [`NEW_FOLDER`].

use crate::fs::errno::Error;
use crate::fs::lock::lock;
use crate::fs::sync::Sync;
use crate::fs::tree::listing::Listing;
use crate::fs::tree::twins::Taken;
use crate::store::PlainPath;
use std::sync::Weak;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Number of groups that are looked up concurrently.
const CONCURRENT_CHECKS: usize = 8;
/// Shortest pause between two checks in the background.
const PAUSE: Duration = Duration::from_secs(1);
/// Ratio of the pause after a check in the background to the duration of that check. It matters for files that are
/// added to a large folder, because the whole folder is listed for each check.
const PAUSE_SHARE: u32 = 16;

impl Sync {
    /// Checks the new names that were committed since the last check, each group of names once. A group whose check
    /// fails or is cancelled is left for the next time, after all others. Ends early if several checks fail together.
    pub(crate) async fn find_twins(&self) -> Result<(), Error> {
        let _one_at_a_time = self.twins.looking.lock().await;
        let mut left = self.twins.queue();
        let mut failed = None;
        while left > 0 {
            let groups = self.twins.take(left.min(CONCURRENT_CHECKS));
            left -= groups.len();
            let count = groups.len();
            let checks = groups.into_iter().map(|group| self.look_up(group));
            let errors: Vec<_> = futures::future::join_all(checks).await.into_iter().filter_map(Result::err).collect();
            let all_failed = count > 1 && errors.len() == count;
            failed = errors.into_iter().next().or(failed);
            if all_failed {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn look_up(&self, taken: Taken<'_>) -> Result<(), Error> {
        let Some(group) = &taken.group else { return Ok(()) };
        let look = Listing::begin(&self.journal);
        let mut found = self.view.twins(&group.files, &group.folders).await?;
        if !found.is_empty() {
            // Each of them has the other kind. The second query returns those that still have their own kind, too.
            let (files, folders): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| group.files.contains(path));
            found = self.view.twins(&folders, &files).await?;
        }
        self.schedule.looked_up();
        // One of the two may be an entry that a change of ours has removed since the check began, or is about to
        // remove.
        let (unclear, twins): (Vec<_>, Vec<_>) = found.iter().partition(|path| self.is_changed(path, &look));
        if unclear.is_empty() {
            taken.done();
        }
        twins.into_iter().filter(|path| self.twins.report(path)).for_each(|path| self.log_twin(path));
        Ok(())
    }

    /// Returns true if a change of this name, or of one above or below it, is about to reach the remote, or was
    /// carried out since the check began.
    fn is_changed(&self, path: &PlainPath, look: &Listing<'_>) -> bool {
        let ledger = self.journal.ledger();
        let is_parked = |op| self.schedule.op_status(op).failure.is_some_and(|(_, parked, _)| parked);
        ledger.queue().any_overlapping(path, |op| !is_parked(op)) || ledger.any_finished(path, look.stamp)
    }

    /// Checks for twins in the background until the mount stops.
    pub(crate) async fn twins_loop(sync: Weak<Self>, mut stop: watch::Receiver<bool>) {
        let mut pause = PAUSE;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let Some(this) = sync.upgrade() else { return };
            let began = Instant::now();
            tokio::select! {
                () = this.find_committed_twins() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            pause = began.elapsed().saturating_mul(PAUSE_SHARE).max(PAUSE);
        }
    }

    fn log_twin(&self, path: &PlainPath) {
        tracing::warn!(path = self.view.log_name(path), "a file and a folder have this name; both are kept");
        self.schedule.conflict();
        let Some((parent, _)) = path.split() else { return };
        self.directories.revalidate(&parent);
        let directory = lock(&self.tree).find(&parent);
        // The next listing counts the hidden entries there again.
        directory.into_iter().for_each(|ino| self.twins.record_covered(ino, 0));
    }

    /// Checks for twins as [`Sync::find_twins`] does. A failure is only logged, because it doesn't undo the flush.
    pub(crate) async fn find_committed_twins(&self) {
        if let Err(error) = self.find_twins().await {
            tracing::warn!(%error, "cannot check for folders with the names of new files");
        }
    }
}
