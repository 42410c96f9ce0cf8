//! Files and folders of one name of which this mount made one.
//!
//! A Hub keeps `a` and `a/b` beside each other, so no commit is refused for that. After a new name was committed it is
//! looked up whether the source has the other kind under it: a folder where a file was made, or a file where a folder
//! above the new name is. Where it has, it is looked up whether it still has the kind that was made: this mount may
//! have put the one in the place of the other since. Each name that has both is counted as a conflict, once. `flush`
//! looks before it answers, everything else is looked up in the background.
//!
//! Of two mounts, the one whose commit came later finds the other's, so one of them reports it. The exception is a file
//! in a folder that was made here less than a minute ago, see [`NEW_FOLDER`].

use crate::fs::errno::Error;
use crate::fs::lock::lock;
use crate::fs::sync::Sync;
use crate::fs::tree::listing::Listing;
use crate::fs::tree::twins::Taken;
use crate::store::PlainPath;
use std::sync::Weak;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Groups of names that are looked up concurrently.
const LOOKS: usize = 8;
/// Shortest pause between two looks in the background.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after a look in the background, in times of what the look took: files that are added to a large folder have
/// all of that folder listed.
const PAUSE_SHARE: u32 = 4;

impl Sync {
    /// Looks up what was committed under new names since the last time, each group of names once. A group whose look
    /// fails or is given up is left for the next time, after all others. Ends early if several looks fail together.
    pub(crate) async fn find_twins(&self) -> Result<(), Error> {
        let _one_at_a_time = self.twins.looking.lock().await;
        let mut left = self.twins.queue();
        let mut failed = None;
        while left > 0 {
            let groups = self.twins.take(left.min(LOOKS));
            left -= groups.len();
            let count = groups.len();
            let looks = groups.into_iter().map(|group| self.look_up(group));
            let errors: Vec<_> = futures::future::join_all(looks).await.into_iter().filter_map(Result::err).collect();
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
            // Each of them has the other kind. Does it still have its own?
            let (files, folders): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| group.files.contains(path));
            found = self.view.twins(&folders, &files).await?;
        }
        self.schedule.looked_up();
        // One of the two may be what a change of ours has removed since the look began, or is about to remove.
        let (unclear, twins): (Vec<_>, Vec<_>) = found.iter().partition(|path| self.is_changed(path, &look));
        if unclear.is_empty() {
            taken.done();
        }
        twins.into_iter().filter(|path| self.twins.report(path)).for_each(|path| self.note_twin(path));
        Ok(())
    }

    /// Returns true if a change of this name, or of one above or below it, is on its way to the source, or was carried
    /// out since the look began.
    fn is_changed(&self, path: &PlainPath, look: &Listing<'_>) -> bool {
        let ledger = self.journal.ledger();
        let is_parked = |op| self.schedule.op_status(op).failure.is_some_and(|(_, parked, _)| parked);
        ledger.queue().any_overlapping(path, |op| !is_parked(op)) || ledger.any_finished(path, look.stamp)
    }

    /// Looks for twins in the background until the mount stops.
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

    fn note_twin(&self, path: &PlainPath) {
        tracing::warn!(path = self.view.log_name(path), "a file and a folder have this name; both are kept");
        self.schedule.conflict();
        let Some((parent, _)) = path.split() else { return };
        self.directories.look_again(&parent);
        let directory = lock(&self.tree).find(&parent);
        // What was hidden there is counted again by the next listing.
        directory.into_iter().for_each(|ino| self.twins.note_covered(ino, 0));
    }

    /// Does as [`Vfs::find_twins`]; a failure is logged, because what was flushed is flushed all the same.
    pub(crate) async fn find_committed_twins(&self) {
        if let Err(error) = self.find_twins().await {
            tracing::warn!(%error, "cannot look for folders with the names of new files");
        }
    }
}
