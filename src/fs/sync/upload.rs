//! Freezes files that are due, and uploads them. Many small files share one upload session. A large file has its own,
//! so that it doesn't delay others.

use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::FileNo;
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::{Entry, Ledger, QueuedOp, Remote};
use crate::fs::sync::Sync;
use crate::fs::sync::schedule::{Schedule, Session, Watched};
use crate::store::{self, Content, Frozen, PutSession, Stored};
use futures::StreamExt;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::watch;

/// Number of files of one session that are frozen and sent concurrently.
const CONCURRENT_FILES: usize = 4;
/// Number of commits that one journal record queues.
const PUTS: usize = 64;

/// A frozen version of a file.
struct FrozenFile {
    edit: Arc<Edit>,
    generation: u64,
    frozen: Arc<Frozen>,
    stored: Option<Stored>,
}

impl Sync {
    /// Uploads files that are due, until the mount stops.
    pub(crate) async fn upload_loop(sync: Weak<Self>, schedule: Arc<Schedule>, mut stop: watch::Receiver<bool>) {
        loop {
            while let Some(session) = schedule.take_session(Instant::now()) {
                let Some(this) = sync.upgrade() else { return };
                tokio::spawn(async move { this.upload(session).await });
            }
            let next = schedule.next_session();
            tokio::select! {
                () = schedule.uploads_wanted() => {}
                () = tokio::time::sleep_until(next.into()) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Uploads the files of a session.
    async fn upload(&self, session: Session) {
        if session.edits.is_empty() {
            return;
        }
        let generations: Vec<_> = session.edits.iter().map(|edit| (edit.file, edit.generation())).collect();
        let mut added = Vec::new();
        let outcome = match self.view.put().await {
            Ok(put) => {
                let watched = Watched::new(&self.schedule, put.progress());
                added = self.add_all(&*put, session.edits.clone()).await;
                watched.end(put.finish().await, !added.is_empty())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.upload_failed(&generations, error);
            return;
        }
        let files: Vec<_> = added.iter().map(|(frozen, _)| (frozen.edit.file, frozen.generation)).collect();
        if let Err(error) = self.queue_puts(added) {
            let error = Arc::new(error);
            let left = files.into_iter().filter(|(file, _)| !self.schedule.is_commit_queued(*file));
            left.for_each(|(file, generation)| self.schedule.file_failed(file, generation, error.clone()));
        }
        drop(session);
        self.schedule.wake();
    }

    fn upload_failed(&self, generations: &[(FileNo, u64)], error: store::Error) {
        let error = Arc::new(Error::Store(error));
        if generations.len() > 1 && !error.is_transient() {
            tracing::warn!(%error, files = generations.len(), "upload refused; its files are sent one by one");
            self.schedule.send_alone(generations.iter().map(|(file, _)| *file));
            return;
        }
        for (file, generation) in generations {
            self.schedule.file_failed(*file, *generation, error.clone());
        }
    }

    /// Freezes and sends files. Leaves out those that failed or aren't needed any more.
    async fn add_all(&self, session: &dyn PutSession, group: Vec<Arc<Edit>>) -> Vec<(FrozenFile, Stored)> {
        let one = |edit: Arc<Edit>| async move {
            let (file, generation) = (edit.file, edit.generation());
            match self.add(session, edit).await {
                Ok(Some(added)) => return Some(added),
                Ok(None) => {}
                Err(error) => self.schedule.file_failed(file, generation, Arc::new(error)),
            }
            None
        };
        let all = futures::stream::iter(group.into_iter().map(one)).buffer_unordered(CONCURRENT_FILES);
        all.filter_map(std::future::ready).collect().await
    }

    async fn add(&self, session: &dyn PutSession, edit: Arc<Edit>) -> Result<Option<(FrozenFile, Stored)>, Error> {
        let Some(frozen) = self.freeze(edit.clone()).await? else {
            self.forget_removed(&edit);
            self.schedule.drop_kept(&edit);
            return Ok(None);
        };
        if let Some(stored) = frozen.stored {
            return Ok(Some((frozen, stored)));
        }
        // The file may be removed while it is read. Its slots must not be allocated to another file then.
        let _pins = self.pool.pin(&frozen.frozen.records);
        let content = Content::Frozen { frozen: frozen.frozen.clone(), slots: self.pool.clone() };
        let stored = session.add(content).await?;
        tracing::debug!(hash = %stored.version.id, bytes = frozen.frozen.len, "uploaded");
        Ok(Some((frozen, stored)))
    }

    /// Stops flushing a file that has lost its name. A write that ended after the removal may have touched it since.
    fn forget_removed(&self, edit: &Edit) {
        let has_name = self.journal.ledger().file(edit.file).is_some_and(|record| record.path.is_some());
        if !has_name {
            self.schedule.forget(edit.file);
        }
    }

    /// Returns the version to send. It is the earlier frozen one if nothing changed since.
    async fn freeze(&self, edit: Arc<Edit>) -> Result<Option<FrozenFile>, Error> {
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
            return Ok(Some(FrozenFile { edit, generation, frozen: earlier.frozen, stored: earlier.stored }));
        }
        edit.fetch_base(&self.journal, &self.pool, || self.schedule.advanced()).await?;
        let (generation, frozen) = match edit.write_guard(&self.journal, &self.pool).await {
            Some(guard) => guard.freeze().await?,
            None => return Ok(None),
        };
        Ok(Some(FrozenFile { edit, generation, frozen, stored: None }))
    }

    /// Queues the commits at the files' present paths, in few journal records. Leaves out files that have lost their
    /// names or have changed since they were frozen.
    fn queue_puts(&self, added: Vec<(FrozenFile, Stored)>) -> Result<(), Error> {
        let mut edits: Vec<_> = added.iter().map(|(frozen, _)| frozen.edit.clone()).collect();
        for batch in added.chunks(PUTS) {
            let queued = self.journal.transact(Purpose::Relief, |ledger| {
                let mut entries = Vec::new();
                for (frozen, stored) in batch {
                    entries.extend(self.put_entries(ledger, frozen, *stored));
                }
                Ok((entries, ()))
            });
            if let Err(error) = queued {
                self.schedule.commits_not_queued(batch.iter().map(|(frozen, _)| frozen.edit.file));
                return Err(error);
            }
        }
        edits.retain(|edit| self.schedule.is_kept(edit.file));
        edits.iter().for_each(|edit| self.schedule.drop_kept(edit));
        Ok(())
    }

    fn put_entries(&self, ledger: &mut Ledger, frozen: &FrozenFile, stored: Stored) -> Vec<Entry> {
        let (file, generation) = (frozen.edit.file, frozen.generation);
        let record = ledger.file(file).filter(|_| !self.schedule.is_kept(file));
        let path = record.and_then(|record| record.path.clone());
        let is_unseen = record.is_some_and(|record| record.remote == Remote::Absent);
        if is_unseen && path.as_ref().is_some_and(|path| self.policy.keeps(path)) {
            // The file was renamed during its upload.
            self.schedule.keep_new(file);
            return Vec::new();
        }
        let version = record.and_then(|record| record.draft.as_ref()?.frozen.as_ref());
        let (Some(path), Some(version)) = (path, version.filter(|version| version.generation == generation)) else {
            return Vec::new();
        };
        let uploaded = version.stored.is_none().then_some(Entry::Uploaded { file, generation, stored });
        self.schedule.commit_queued(file);
        self.schedule.achieved(1);
        let put = Entry::Queue { op: ledger.new_op(), what: QueuedOp::Put { file, generation, path } };
        uploaded.into_iter().chain([put]).collect()
    }
}
