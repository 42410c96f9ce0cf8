//! Limits what a crash loses: syncs journal and pool every second, and brings open files into the journal.
//!
//! Syncing is a task of its own, so that no file delays it. A file whose draft is held, because a read or an upload waits
//! for the network, delays only itself.

use crate::fs::content::edit::Edit;
use crate::fs::content::quota::Quota;
use crate::fs::errno::Error;
use crate::fs::handle::Handles;
use crate::fs::journal::file::Journal;
use crate::fs::slots::Pool;
use crate::fs::sync::Sync;
use crate::fs::sync::schedule::Schedule;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Journal and pool are synced this often, so that a power cut loses at most what a second brought.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Writes to a file that stays open reach the journal at the latest after so many ticks.
const PERSIST_TICKS: u64 = 5;
/// Longest time that files which are held may keep a loop from its next turn, for each of its jobs.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
pub(crate) struct Persister {
    pub(crate) journal: Arc<Journal>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) sync: Arc<Sync>,
}

impl Persister {
    /// Starts the loops. They end when the mount stops, or when nothing else holds this any more.
    pub(crate) fn run(self: &Arc<Self>) {
        tokio::spawn(Self::sync_loop(Arc::downgrade(&self.journal), self.sync.stopped()));
        tokio::spawn(Self::persist_loop(Arc::downgrade(self), self.sync.stopped()));
    }

    async fn sync_loop(journal: Weak<Journal>, mut stop: watch::Receiver<bool>) {
        while ticked(&mut stop).await {
            let Some(journal) = journal.upgrade() else { return };
            journal.sync_soon();
        }
    }

    async fn persist_loop(this: Weak<Self>, mut stop: watch::Receiver<bool>) {
        let mut ticks = 0;
        while ticked(&mut stop).await {
            let Some(this) = this.upgrade() else { return };
            ticks += 1;
            // What isn't evicted now is evicted by a later tick.
            let _ = tokio::time::timeout(PATIENCE, this.quota.collect()).await;
            if ticks % PERSIST_TICKS == 0 {
                this.persist_together(PATIENCE).await;
            }
            this.handles.cool_down();
        }
    }

    /// Brings everything that was written into the journal, as far as that is possible in `patience` or a little more.
    pub(crate) async fn persist_all(&self, patience: Duration) {
        self.persist_together(patience.max(PATIENCE)).await;
    }

    /// Brings everything that was written into the journal, as far as that is possible in the given time: files
    /// that are held keep no other waiting.
    pub(crate) async fn persist_together(&self, patience: Duration) {
        let unsettled = self.schedule.take_unsettled();
        futures::future::join_all(unsettled.iter().map(|edit| self.persist(edit, patience))).await;
    }

    async fn persist(&self, edit: &Arc<Edit>, patience: Duration) {
        let settled = tokio::time::timeout(patience, edit.settle(&self.journal, &self.pool)).await;
        if let Err(error) = settled.unwrap_or(Err(Error::TimedOut)) {
            tracing::warn!(%error, "an open file's writes aren't in the journal yet");
            self.schedule.wrote(edit);
        }
    }

    /// Persists everything for the last time, and closes the journal.
    pub(crate) async fn close(&self) {
        self.persist_together(PATIENCE).await;
        if let Err(error) = self.journal.sync_all().await {
            tracing::error!(%error, "the journal could not be synced");
        }
        self.sync.stop();
        let journal = self.journal.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || journal.close()).await {
            tracing::error!(%error, "the journal could not be closed");
        }
    }
}

/// Waits for the next tick. Returns false when the mount stops.
async fn ticked(stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(TICK) => true,
        _ = stop.wait_for(|stop| *stop) => false,
    }
}
