//! Starts a mount: opens the staging folder, connects the owners, and restores the pending changes of an earlier
//! daemon.

use crate::disk::{Disk, RealDisk};
use crate::fs::Vfs;
use crate::fs::content::Contents;
use crate::fs::content::edit::Edit;
use crate::fs::content::prefetch::Budget;
use crate::fs::content::promises::Promises;
use crate::fs::content::quota::Quota;
use crate::fs::errno::Error;
use crate::fs::gate::WriteGate;
use crate::fs::handle::Handles;
use crate::fs::ids::FileNo;
use crate::fs::journal::file::{Journal, Purpose};
use crate::fs::journal::ledger::{DraftRecord, Entry, Remote};
use crate::fs::lock::Mutex;
use crate::fs::namespace::Namespace;
use crate::fs::options::Options;
use crate::fs::persist::Persister;
use crate::fs::staging::Folder;
use crate::fs::sync::Sync;
use crate::fs::sync::policy::Policy;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::evict::Evictor;
use crate::fs::tree::freshness::Freshness;
use crate::fs::tree::inode::{InodeTable, Tree};
use crate::fs::tree::listing::Directories;
use crate::fs::tree::twins::Twins;
use crate::fs::tree::xattr::Attributes;
use crate::store::View;
use crate::store::staging::Pool;
use std::sync::Arc;
use std::time::Duration;

/// A file that an earlier daemon left in the journal.
struct Left {
    file: FileNo,
    has_name: bool,
    /// True if the file stays on this machine, see [`Policy`].
    is_kept: bool,
    draft: DraftRecord,
}

impl Vfs {
    /// Opens staging and journal, restores pending changes, and starts uploading. A lock keeps a second daemon out.
    pub async fn start(view: Arc<dyn View>, options: Options) -> Result<Arc<Self>, Error> {
        Self::start_on(Arc::new(RealDisk), view, options).await
    }

    /// Starts with journal and pool on `disk`, below the path in the options.
    pub(super) async fn start_on(
        disk: Arc<dyn Disk>,
        view: Arc<dyn View>,
        options: Options,
    ) -> Result<Arc<Self>, Error> {
        let identity = options.instance.unwrap_or_else(|| view.identity());
        let (slot_len, sealer) = (view.slot_len(), view.sealer());
        let cache_dir = options.cache_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let folder = Folder::open(&*disk, &cache_dir, &identity)?;
            let (journal, pool) = Journal::open(disk, folder.path(), identity, slot_len, sealer)?;
            Ok::<_, Error>((folder, journal, pool))
        });
        let (folder, journal, pool) = opened.await.map_err(|e| Error::Staging(std::io::Error::other(e)))??;
        let vfs = Arc::new(Self::connect(view, Arc::new(options), journal, pool, folder));
        vfs.restore()?;
        vfs.sync.run();
        if let Some(evictor) = &vfs.evictor {
            tokio::spawn(evictor.clone().run(vfs.sync.stopped()));
        }
        if let Some(interval) = vfs.options.poll_interval {
            tokio::spawn(vfs.freshness.clone().poll_loop(interval, vfs.sync.stopped()));
        }
        vfs.persister.run();
        Ok(vfs)
    }

    /// Creates each owner with the parts that it works with.
    fn connect(
        view: Arc<dyn View>,
        options: Arc<Options>,
        journal: Arc<Journal>,
        pool: Arc<Pool>,
        folder: Folder,
    ) -> Self {
        if options.max_staging.or(options.max_pending).is_some() {
            pool.keep_small();
        }
        let tree = Arc::new(InodeTable::new(Tree::new()));
        let schedule = Arc::new(Schedule::new(options.flush_debounce, options.flush_max_window));
        let is_read_only = options.read_only || view.read_only();
        let gate = Arc::new(WriteGate::new(is_read_only));
        let policy = Policy { filter_os_files: options.filter_os_files, keep_all: options.keep_all };
        let (handles, twins) = (Arc::new(Handles::default()), Arc::new(Twins::default()));
        let unused = if is_read_only { Duration::ZERO } else { options.reply_timeout() };
        let evictor =
            options.inode_limit.map(|limit| Evictor::new(tree.clone(), limit.max(1), options.sweep_interval, unused));
        let freshness = Arc::new(Freshness::new(view.clone(), options.poll_listings));
        let directories = Arc::new(Directories {
            view: view.clone(),
            options: options.clone(),
            tree: tree.clone(),
            handles: handles.clone(),
            journal: journal.clone(),
            schedule: schedule.clone(),
            twins: twins.clone(),
            misses: Mutex::default(),
            freshness: freshness.clone(),
        });
        let quota = Arc::new(Quota {
            view: view.clone(),
            options: options.clone(),
            tree: tree.clone(),
            journal: journal.clone(),
            pool: pool.clone(),
            schedule: schedule.clone(),
            promises: Arc::<Promises>::default(),
            hurried: Mutex::default(),
        });
        let contents = Arc::new(Contents {
            view: view.clone(),
            options: options.clone(),
            tree: tree.clone(),
            handles: handles.clone(),
            journal: journal.clone(),
            pool: pool.clone(),
            schedule: schedule.clone(),
            gate: gate.clone(),
            policy,
            directories: directories.clone(),
            quota: quota.clone(),
            read_ahead: Budget::default(),
        });
        let names = Namespace {
            view: view.clone(),
            options: options.clone(),
            tree: tree.clone(),
            handles: handles.clone(),
            journal: journal.clone(),
            pool: pool.clone(),
            schedule: schedule.clone(),
            twins: twins.clone(),
            gate: gate.clone(),
            policy,
            directories: directories.clone(),
            quota: quota.clone(),
            contents: contents.clone(),
        };
        let attributes = Attributes { view: view.clone(), tree: tree.clone(), gate: gate.clone() };
        let sync = Arc::new(Sync::new(contents.clone(), twins.clone()));
        let persister = Arc::new(Persister {
            journal: journal.clone(),
            pool: pool.clone(),
            schedule: schedule.clone(),
            quota: quota.clone(),
            handles: handles.clone(),
            sync: sync.clone(),
        });
        Self {
            view,
            options,
            tree,
            journal,
            pool,
            schedule,
            #[cfg(test)]
            twins,
            gate,
            quota,
            directories,
            contents,
            names,
            attributes,
            evictor,
            freshness,
            sync,
            persister,
            _folder: folder,
        }
    }

    /// Restores the pending changes of an earlier daemon. Files appear in the tree when their directories are listed.
    fn restore(&self) -> Result<(), Error> {
        let mut ended = Vec::new();
        for Left { file, has_name, is_kept, draft } in self.left() {
            if !has_name && self.schedule.is_commit_queued(file) {
                // The record ends when the result of its commit is known.
                continue;
            }
            if !has_name || !draft.is_dirty() {
                ended.push(Entry::End { file });
                continue;
            }
            let edit = self.restored(file, draft)?;
            self.schedule.add(edit.clone());
            if is_kept {
                self.schedule.keep(file);
            }
            self.schedule.touch(&edit);
        }
        self.journal.append(Purpose::Relief, ended)?;
        let pending = self.sync.pending_changes();
        if pending > 0 {
            tracing::info!(pending, "resuming pending changes");
        }
        Ok(())
    }

    /// Returns the files of the journal that have local content. Queues the journal's commits, and schedules their
    /// read-backs.
    fn left(&self) -> Vec<Left> {
        let ledger = self.journal.ledger();
        // No newer version of such a file is frozen before the result of its commit is known: the remote may have it
        // already.
        ledger
            .queue()
            .iter()
            .filter_map(|(_, what)| what.put_file())
            .for_each(|file| self.schedule.commit_queued(file));
        ledger.unconfirmed().all().for_each(|(op, _)| self.sync.read_back_later(op));
        let policy = self.contents.policy;
        let left = ledger.files().filter_map(|(file, record)| {
            let is_unseen = record.remote == Remote::Absent;
            let is_kept = is_unseen && record.path.as_ref().is_some_and(|path| policy.keeps(path));
            Some(Left { file, has_name: record.path.is_some(), is_kept, draft: record.draft.clone()? })
        });
        left.collect()
    }

    fn restored(&self, file: FileNo, draft: DraftRecord) -> Result<Arc<Edit>, Error> {
        let ticket = self.journal.last();
        let restored = self.view.draft(draft.state, self.pool.clone())?;
        let space = self.options.max_pending.map(|_| self.quota.promises.add(restored.slots_needed()));
        let edit = Edit::new(file, restored, draft.mtime, draft.generation, draft.committed, ticket);
        Ok(Arc::new(edit.with_room(space)))
    }
}
