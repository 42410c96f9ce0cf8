//! Uploads pending contents, commits pending changes, and reads commits back from the Hub.

pub(crate) mod commit;
pub(crate) mod conflict;
pub(crate) mod drain;
pub(crate) mod pending;
pub(crate) mod policy;
pub(crate) mod readback;
pub(crate) mod schedule;
pub(crate) mod twins;
pub(crate) mod upload;

use crate::fs::content::Contents;
use crate::fs::journal::file::Journal;
use crate::fs::options::{Options, Status};
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::listing::Directories;
use crate::fs::tree::twins::Twins;
use crate::store::staging::Pool;
use crate::store::{ContentId, View};
use policy::Policy;
use readback::ReadBacks;
use schedule::Schedule;
use std::sync::Arc;
use tokio::sync::watch;

/// The synchronization of pending changes with the remote. Each file of this module is one step of it.
pub(crate) struct Sync {
    view: Arc<dyn View>,
    options: Arc<Options>,
    tree: Arc<InodeTable>,
    journal: Arc<Journal>,
    pool: Arc<Pool>,
    schedule: Arc<Schedule>,
    twins: Arc<Twins>,
    policy: Policy,
    directories: Arc<Directories>,
    contents: Arc<Contents>,
    read_backs: ReadBacks,
    /// Turns true when the mount stops.
    stop: watch::Sender<bool>,
}

impl Sync {
    /// Returns a value that does nothing until [`Sync::run`].
    pub(crate) fn new(contents: Arc<Contents>, twins: Arc<Twins>) -> Self {
        let parts = &*contents;
        Self {
            view: parts.view.clone(),
            options: parts.options.clone(),
            tree: parts.tree.clone(),
            journal: parts.journal.clone(),
            pool: parts.pool.clone(),
            schedule: parts.schedule.clone(),
            twins,
            policy: parts.policy,
            directories: parts.directories.clone(),
            read_backs: ReadBacks::default(),
            stop: watch::channel(false).0,
            contents,
        }
    }

    /// Starts the loops. They end when the mount stops, or when nothing else holds this value.
    pub(crate) fn run(self: &Arc<Self>) {
        let stop = || self.stop.subscribe();
        tokio::spawn(Self::upload_loop(Arc::downgrade(self), self.schedule.clone(), stop()));
        tokio::spawn(Self::commit_loop(Arc::downgrade(self), self.schedule.clone(), stop()));
        tokio::spawn(Self::confirm_loop(Arc::downgrade(self), stop()));
        tokio::spawn(Self::twins_loop(Arc::downgrade(self), stop()));
    }

    /// Counts files and changes of names that the Hub doesn't have. Files that are open for writing are included.
    pub(crate) fn pending_changes(&self) -> u64 {
        self.schedule.pending().0 + self.journal.ledger().queue().name_changes()
    }

    /// Returns the parts of `status` that don't concern listings.
    pub(crate) fn status(&self) -> Status {
        let (files, pending_bytes, parked) = self.schedule.pending();
        let queued = self.journal.ledger().queue().name_changes();
        let parked_ops = self.schedule.parked_ops();
        let sync_failure = self
            .journal
            .sync_failure()
            .map(|kind| format!("staging could not be synced ({kind}): nothing more is taken until the next start"));
        let kept_files = self.schedule.kept();
        let counters = self.schedule.counters();
        Status {
            pending_files: files + queued,
            pending_bytes,
            parked_files: parked + parked_ops,
            conflicts: counters.conflicts,
            kept_files,
            last_error: sync_failure.or_else(|| counters.last_error.clone()),
            ..Status::default()
        }
    }

    /// Ends the loops.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns a receiver that turns true when the mount stops.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }
}

/// The entry at a path of the remote.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Content(ContentId),
    /// A directory, or an object that has no content id.
    Other,
}
