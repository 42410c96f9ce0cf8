//! Limits the data that a crash can lose. Syncs journal and pool every second, and records the writes to open files
//! in the journal.
//!
//! Syncing is a task of its own, so that no file delays it. A file whose draft is locked, because a read or an upload
//! waits for the network, delays only itself.

use crate::fs::content::edit::Edit;
use crate::fs::content::quota::Quota;
use crate::fs::errno::Error;
use crate::fs::handle::Handles;
use crate::fs::journal::file::Journal;
use crate::fs::sync::Sync;
use crate::fs::sync::schedule::Schedule;
use crate::store::staging::Pool;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;

/// Interval of syncing journal and pool: a power cut loses at most the changes of one second.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Ticks between two times at which the writes to open files are recorded in the journal.
const PERSIST_TICKS: u64 = 5;
/// Longest time that locked files may delay the loop, for each of its jobs.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// Runs the periodic jobs. See the module.
pub(crate) struct Persister {
    pub(crate) journal: Arc<Journal>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) sync: Arc<Sync>,
}

impl Persister {
    /// Starts the loops. They end when the mount stops, or when nothing else holds this value.
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
            // Content that isn't evicted now is evicted at a later tick.
            let _ = tokio::time::timeout(MAX_WAIT, this.quota.collect()).await;
            if ticks % PERSIST_TICKS == 0 {
                this.persist_together(MAX_WAIT).await;
            }
            this.handles.free_idle_buffers();
        }
    }

    /// Records all writes in the journal, as far as that is possible within `timeout` or a little more.
    pub(crate) async fn persist_all(&self, timeout: Duration) {
        self.persist_together(timeout.max(MAX_WAIT)).await;
    }

    /// Records all writes in the journal, as far as that is possible within `timeout`. A locked file doesn't delay
    /// the others.
    pub(crate) async fn persist_together(&self, timeout: Duration) {
        let unpersisted = self.schedule.take_unsettled();
        futures::future::join_all(unpersisted.iter().map(|edit| self.persist(edit, timeout))).await;
    }

    async fn persist(&self, edit: &Arc<Edit>, timeout: Duration) {
        let settled = tokio::time::timeout(timeout, edit.settle(&self.journal, &self.pool)).await;
        if let Err(error) = settled.unwrap_or(Err(Error::TimedOut)) {
            tracing::warn!(%error, "an open file's writes aren't in the journal yet");
            self.schedule.wrote(edit);
        }
    }

    /// Persists everything for the last time, and closes the journal.
    pub(crate) async fn close(&self) {
        self.persist_together(MAX_WAIT).await;
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
