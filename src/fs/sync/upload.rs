//! Freezes files that are due, and uploads them.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::Entry;
use crate::fs::journal::ledger::QueuedOp;
use crate::fs::journal::ledger::Remote;
use crate::fs::options::Drained;
use crate::fs::sync::Sync;
use crate::fs::sync::schedule::{Busy, Schedule, Watched};
use crate::store::Content;
use crate::store::Frozen;
use crate::store::PutSession;
use crate::store::Stored;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;
use tokio::sync::watch;

/// Files of one session that are frozen and sent at once.
const FILES_AT_ONCE: usize = 4;
/// A waiting flush looks this often whether uploads advance, at most and at least.
const STALL_LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// A file's version, frozen.
struct Fixed {
    edit: Arc<Edit>,
    generation: u64,
    frozen: Arc<Frozen>,
    stored: Option<Stored>,
}

impl Sync {
    /// Uploads what is due until the mount stops.
    pub(crate) async fn upload_loop(sync: Weak<Self>, schedule: Arc<Schedule>, mut stop: watch::Receiver<bool>) {
        loop {
            let (due, next) = schedule.take_due();
            let groups = schedule.groups(due);
            if !groups.is_empty() {
                let Some(this) = sync.upgrade() else { return };
                groups.into_iter().for_each(|group| drop(tokio::spawn(this.clone().upload(group))));
            }
            tokio::select! {
                () = schedule.uploads_wanted() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Uploads some files in one session.
    async fn upload(self: Arc<Self>, group: Vec<Arc<Edit>>) {
        let Some(_permit) = self.schedule.session().await else { return };
        // A panic below must not keep the files from being tried again.
        let _busy = Busy::new(&self.schedule, group.iter().map(|edit| edit.file).collect());
        let generations: Vec<_> = group.iter().map(|edit| (edit.file, edit.generation())).collect();
        let mut added = Vec::new();
        let outcome = match self.view.put().await {
            Ok(session) => {
                let watched = Watched::new(&self.schedule, session.progress());
                added = self.add_all(&*session, group).await;
                watched.end(session.finish().await, !added.is_empty())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            let error = Arc::new(Error::Store(error));
            if generations.len() > 1 && !error.is_transient() {
                tracing::warn!(%error, files = generations.len(), "an upload was refused; its files are sent one by one");
                self.schedule.send_alone(generations.iter().map(|(file, _)| *file));
                return;
            }
            for (file, generation) in generations {
                self.schedule.file_failed(file, generation, error.clone());
            }
            return;
        }
        for (fixed, stored) in added {
            if let Err(error) = self.queue_put(&fixed, stored) {
                self.schedule.file_failed(fixed.edit.file, fixed.generation, Arc::new(error));
            }
        }
        self.schedule.wake();
    }

    /// Freezes and sends; what failed or isn't wanted any more is left out.
    async fn add_all(&self, session: &dyn PutSession, group: Vec<Arc<Edit>>) -> Vec<(Fixed, Stored)> {
        let one = |edit: Arc<Edit>| async move {
            let (file, generation) = (edit.file, edit.generation());
            match self.add(session, edit).await {
                Ok(Some(added)) => return Some(added),
                Ok(None) => {}
                Err(error) => self.schedule.file_failed(file, generation, Arc::new(error)),
            }
            None
        };
        let all = futures::stream::iter(group.into_iter().map(one)).buffer_unordered(FILES_AT_ONCE);
        all.filter_map(std::future::ready).collect().await
    }

    async fn add(&self, session: &dyn PutSession, edit: Arc<Edit>) -> Result<Option<(Fixed, Stored)>, Error> {
        let Some(fixed) = self.fix(edit).await? else { return Ok(None) };
        if let Some(stored) = fixed.stored {
            return Ok(Some((fixed, stored)));
        }
        // The file may be removed while it is read: its slots mustn't be given to another one then.
        let _pins = self.pool.pin(&fixed.frozen.records);
        let content = Content::Frozen { frozen: fixed.frozen.clone(), slots: self.pool.clone() };
        let stored = session.add(content).await?;
        tracing::debug!(hash = %stored.version.hash, bytes = fixed.frozen.len, "uploaded");
        Ok(Some((fixed, stored)))
    }

    /// The version to send: the one frozen before, if nothing changed since.
    async fn fix(&self, edit: Arc<Edit>) -> Result<Option<Fixed>, Error> {
        if self.schedule.is_kept(edit.file) {
            return Ok(None);
        }
        let generation = edit.generation();
        let earlier = {
            let ledger = self.journal.ledger();
            let Some(record) = ledger.file(edit.file).filter(|record| record.path.is_some()) else { return Ok(None) };
            let frozen = record.draft.as_ref().and_then(|draft| draft.frozen.clone());
            frozen.filter(|frozen| frozen.generation == generation)
        };
        if let Some(earlier) = earlier {
            return Ok(Some(Fixed { edit, generation, frozen: earlier.frozen, stored: earlier.stored }));
        }
        edit.fetch_base(&self.journal, &self.pool, || self.schedule.advanced()).await?;
        let frozen = edit.freeze(&self.journal, &self.pool).await?;
        Ok(frozen.map(|(generation, frozen)| Fixed { edit, generation, frozen, stored: None }))
    }

    /// Queues the commit at the path the file has now; nothing where it lost its name.
    fn queue_put(&self, fixed: &Fixed, stored: Stored) -> Result<(), Error> {
        let (file, generation) = (fixed.edit.file, fixed.generation);
        let _ = self.journal.transact(Purpose::Relief, |ledger| {
            let record = ledger.file(file).filter(|_| !self.schedule.is_kept(file));
            let path = record.and_then(|record| record.path.clone());
            let is_unseen = record.is_some_and(|record| record.remote == Remote::Absent);
            if is_unseen && path.as_ref().is_some_and(|path| self.policy.keeps(path)) {
                // It was renamed while it was uploaded.
                self.schedule.keep_new(file);
                return Ok((Vec::new(), ()));
            }
            let frozen = record.and_then(|record| record.draft.as_ref()?.frozen.as_ref());
            let (Some(path), Some(frozen)) = (path, frozen.filter(|frozen| frozen.generation == generation)) else {
                return Ok((Vec::new(), ()));
            };
            self.schedule.launch(file);
            self.schedule.achieved();
            let uploaded = frozen.stored.is_none().then_some(Entry::Uploaded { file, generation, stored });
            let put = Entry::Queue { op: ledger.new_op(), what: QueuedOp::Put { file, generation, path } };
            Ok((uploaded.into_iter().chain([put]).collect(), ()))
        })?;
        self.schedule.drop_kept(&fixed.edit);
        Ok(())
    }

    /// Waits until all that was pending when it was called is at the source, or the deadline is over.
    pub(crate) async fn flush(&self, deadline: Option<Duration>) -> Drained {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        self.flush_until(over).await
    }

    /// Flushes for as long as the source takes something: ends early when no upload has advanced and nothing was
    /// committed for `stalled`.
    pub(crate) async fn flush_unless_stalled(&self, stalled: Duration) -> Drained {
        let over = async {
            let achieved = || self.schedule.progress();
            let (mut last, mut since) = (achieved(), Instant::now());
            loop {
                tokio::time::sleep((stalled / 4).clamp(STALL_LOOK.0, STALL_LOOK.1)).await;
                let now = achieved();
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() >= stalled {
                    return;
                }
            }
        };
        self.flush_until(over).await
    }

    async fn flush_until(&self, over: impl Future<Output = ()>) -> Drained {
        let before = self.schedule.tally().flushed;
        let targets: Vec<_> = self.schedule.edits().into_iter().filter(|edit| edit.is_dirty()).collect();
        let targets: Vec<_> = targets.into_iter().map(|edit| (edit.generation(), edit)).collect();
        let last = self.journal.ledger().ops().next_back().map(|(op, _)| op);
        self.schedule.forgive();
        targets.iter().for_each(|(_, edit)| edit.hurry());
        self.schedule.wake();
        let mut progress = self.schedule.changes();
        let wait = async {
            while !self.schedule.is_flushed(&self.journal, &targets, last) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        let mut stop = self.stop.subscribe();
        let work = async {
            wait.await;
            self.find_committed_twins().await;
        };
        // What isn't done by then is counted below.
        tokio::select! {
            () = work => {}
            () = over => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        // What waits for its `close` is no failure of a flush.
        let pending = self.schedule.dirty_files().len() as u64 + self.journal.ledger().name_changes();
        let tally = self.schedule.tally();
        Drained { flushed: tally.flushed - before, pending, conflicts: tally.conflicts }
    }
}
