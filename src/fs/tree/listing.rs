//! Directories: lists the remote, merges local state into the listing, finds names, and pages through entries.

use crate::fs::errno::Error;
use crate::fs::handle::Handles;
use crate::fs::handle::{DirectoryHandle, Listed};
use crate::fs::ids::{FileKind, HandleNo, Ino};
use crate::fs::journal::file::Journal;
use crate::fs::journal::ledger::{Ledger, QueuedOp, Remote};
use crate::fs::lock::{Mutex, lock};
use crate::fs::options::Options;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::freshness::Freshness;
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::inode::{Attr, Body, MtimeSource, Node, Tree};
use crate::fs::tree::queued::{LocalChild, QueuedChanges};
use crate::fs::tree::twins::Twins;
use crate::store::View;
use crate::store::{Entry, Hidden, Kind, Len, PlainPath, Version};
use futures::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Number of sizes that are read ahead while a directory is paged through.
const SIZES_AHEAD: usize = 512;
/// Longest name, bytes.
pub(crate) const NAME_MAX: usize = 255;
/// Number of concurrent listings in a subtree.
const LISTINGS: usize = 8;

/// Longest wait for a listing that is made because a name was missed. After that, the previous listing is used.
const MISS_TIMEOUT: Duration = Duration::from_secs(2);
/// Duration from which a listing counts as slow. Slow listings are repeated less often for missed names.
const SLOW_LISTING: Duration = Duration::from_millis(250);
/// Share of the time that slow listings may take: one part in this number.
const SLOW_LISTING_SHARE: u32 = 4;

/// Entries that listings for missed names may read at once, over all directories of a mount.
const MISS_BURST: f64 = 10_000.0;
/// Entries per second that such listings may read over a longer time. To read and decrypt them takes some 5 % of one
/// CPU.
const MISS_RATE: f64 = 5_000.0;

/// Limits the listings that are made because a name was missed, by the number of entries that they read. Beyond the
/// limit
/// a missed name counts as missing until the directory is listed again, after the metadata TTL at the latest.
#[derive(Debug)]
pub(crate) struct MissBudget {
    left: f64,
    at: Instant,
}

impl Default for MissBudget {
    fn default() -> Self {
        Self { left: MISS_BURST, at: Instant::now() }
    }
}

impl MissBudget {
    /// Takes the entries of a directory from the budget. Returns false if nothing of it is left.
    fn take(&mut self, entries: usize) -> bool {
        let now = Instant::now();
        let refill = MISS_RATE * now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + refill).min(MISS_BURST), now);
        if self.left <= 0.0 {
            return false;
        }
        self.left -= entries as f64;
        true
    }
}

/// A read of the remote's state that is in progress. The ledger records the operations that finish meanwhile.
pub(crate) struct Listing<'a> {
    journal: &'a Journal,
    pub(crate) stamp: u64,
}

impl<'a> Listing<'a> {
    pub(crate) fn begin(journal: &'a Journal) -> Self {
        Self { journal, stamp: journal.ledger().begin_listing() }
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        self.journal.ledger().end_listing(self.stamp);
    }
}

/// Lists directories, finds names in them, and merges local changes into the remote's listings.
pub(crate) struct Directories {
    pub(crate) view: Arc<dyn View>,
    pub(crate) options: Arc<Options>,
    pub(crate) tree: Arc<InodeTable>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) twins: Arc<Twins>,
    pub(crate) misses: Mutex<MissBudget>,
    pub(crate) freshness: Arc<Freshness>,
}

impl Directories {
    /// Lists a directory unless it was listed within the metadata TTL.
    pub(crate) async fn load(&self, ino: Ino) -> Result<(), Error> {
        self.load_within(ino, self.options.metadata_ttl).await
    }

    /// Lists a directory unless it was listed less than `max_age` ago.
    async fn load_within(&self, ino: Ino, max_age: Duration) -> Result<(), Error> {
        loop {
            let gate = {
                let mut tree = lock(&self.tree);
                if self.is_fresh(tree.directory(ino)?.loaded, max_age) {
                    tree.use_listing(ino);
                    return Ok(());
                }
                tree.directory(ino)?.gate.clone()
            };
            let asked = Instant::now();
            crate::fs::lock::before_wait("a directory's gate");
            let _one_at_a_time = gate.lock().await;
            let (path, mark) = {
                let tree = lock(&self.tree);
                let directory = tree.directory(ino)?;
                // A concurrent listing that began after this request serves as well as an own one, whatever the TTL.
                if self.is_fresh(directory.loaded, max_age) || directory.loaded.is_some_and(|at| at >= asked) {
                    return Ok(());
                }
                (tree.path(ino)?, directory.loaded.and(directory.mark.clone()))
            };
            if let Some(mark) = mark
                && let Some(until) = self.freshness.still_holds(&mark, max_age).await
            {
                let mut tree = lock(&self.tree);
                let directory = tree.directory_mut(ino)?;
                // A change by this mount may have asked for another listing meanwhile.
                if directory.loaded.is_some() {
                    directory.loaded = Some(until);
                    tree.use_listing(ino);
                    return Ok(());
                }
            }
            if self.list(ino, &path).await? {
                return Ok(());
            }
        }
    }

    /// Returns true if a listing may be shown without a question to the remote.
    fn is_fresh(&self, loaded: Option<Instant>, max_age: Duration) -> bool {
        is_younger(loaded, max_age) && loaded.is_some_and(|at| !self.freshness.is_stale(at))
    }

    /// Lists a directory again after a lookup that began at `asked` missed a name in it. Does nothing if the last
    /// listing is younger than the TTL of negative results. One listing serves all names that are missed meanwhile.
    /// If it fails, the last listing stays in use during the metadata TTL.
    ///
    /// Listings of large directories for missed names are limited over all directories, see [`MissBudget`]. Otherwise a
    /// program that creates files in large directories would cause a listing of each of them for every new name.
    async fn load_for_missed_name(&self, ino: Ino, asked: Instant) -> Result<(), Error> {
        let ttl = {
            let tree = lock(&self.tree);
            let directory = tree.directory(ino)?;
            let ttl = self.negative_ttl(directory.took);
            let is_new = directory.loaded.is_some_and(|at| at >= asked);
            if is_new || self.is_fresh(directory.loaded, ttl) || is_younger(directory.failed, ttl) {
                return Ok(());
            }
            // A listing that is being made serves this name too, and costs nothing more.
            if directory.gate.try_lock().is_ok() && !lock(&self.misses).take(directory.children.len()) {
                return Ok(());
            }
            ttl
        };
        let listed = tokio::time::timeout(MISS_TIMEOUT, self.load_within(ino, ttl)).await;
        if let Err(error) = listed.unwrap_or(Err(Error::TimedOut)) {
            tracing::debug!(%error, "a directory can't be listed for a missed name");
            lock(&self.tree).directory_mut(ino)?.failed = Some(Instant::now());
        }
        Ok(())
    }

    /// Returns the time that a missed name counts as missing in a directory whose listing took `took`.
    fn negative_ttl(&self, took: Duration) -> Duration {
        let slow = if took > SLOW_LISTING { took * SLOW_LISTING_SHARE } else { Duration::ZERO };
        self.options.negative_ttl.max(slow).min(self.options.metadata_ttl)
    }

    /// Returns the remaining time that a missed name of a directory counts as missing. The kernel may cache it for
    /// that time.
    pub(crate) fn absent_for(&self, parent: Ino) -> Duration {
        let tree = lock(&self.tree);
        let Ok(directory) = tree.directory(parent) else { return Duration::ZERO };
        let age = directory.loaded.map_or(Duration::MAX, |at| at.elapsed());
        self.options.negative_ttl.min(self.options.metadata_ttl).saturating_sub(age)
    }

    /// Lists a directory and merges local state. Returns false if it has to be listed again: either it was renamed
    /// meanwhile, or the remote got something that the local state no longer shows by itself.
    async fn list(&self, ino: Ino, path: &PlainPath) -> Result<bool, Error> {
        let began = Instant::now();
        let listing = Listing::begin(&self.journal);
        let sources = self.journal.ledger().queued_changes(path, None).sources;
        let was_listed = lock(&self.tree).directory(ino)?.loaded.is_some();
        let _turn = match was_listed {
            true => self.freshness.again.acquire().await.ok(),
            false => None,
        };
        let mut listings = Vec::with_capacity(sources.len());
        for source in sources {
            let listed = self.view.list(&source).await?;
            listings.push((source, listed));
        }
        let mut tree = lock(&self.tree);
        if tree.path(ino)? != *path {
            return Ok(false);
        }
        let ledger = self.journal.ledger();
        let queued_changes = ledger.queued_changes(path, Some(listing.stamp));
        listings.retain(|(source, _)| !queued_changes.stale.contains(source));
        let hidden = |count: fn(&Hidden) -> u64| listings.iter().map(|(_, listed)| count(&listed.hidden)).sum::<u64>();
        let (unreadable, not_shown) = (hidden(Hidden::nameless), hidden(Hidden::total));
        if not_shown > 0 {
            tracing::debug!(directory = self.view.log_name(path), unreadable, not_shown, "entries are not shown");
        }
        let mut found = union(listings.into_iter().flat_map(|(_, listed)| listed.entries));
        let merge = Merge { directories: self, ledger: &ledger, path, queued_changes };
        merge.show_files_beside_folders(&mut found);
        let (covered, covered_files) = merge.covered(&found)?;
        if merge.lacks_arrivals(&tree, ino, &found)? {
            return Ok(false);
        }
        merge.run(&mut tree, ino, found)?;
        let directory = tree.directory_mut(ino)?;
        (directory.loaded, directory.took, directory.failed) = (Some(began), began.elapsed(), None);
        directory.mark = self.freshness.mark(began);
        directory.unreadable = unreadable + covered;
        tree.use_listing(ino);
        drop(ledger);
        drop(tree);
        self.twins.record_covered(ino, covered + covered_files);
        Ok(true)
    }

    /// Lists everything below a directory that isn't fresh.
    pub(crate) async fn load_below(&self, ino: Ino) -> Result<(), Error> {
        let mut listed = BTreeSet::new();
        loop {
            let stale: Vec<Ino> = {
                let tree = lock(&self.tree);
                let below = std::iter::once(ino).chain(tree.below(ino));
                below.filter(|at| !listed.contains(at) && tree.directory(*at).is_ok()).collect()
            };
            if stale.is_empty() {
                return Ok(());
            }
            listed.extend(stale.iter().copied());
            let mut loads = futures::stream::iter(stale.into_iter().map(|at| self.load(at))).buffer_unordered(LISTINGS);
            while let Some(loaded) = loads.next().await {
                match loaded {
                    // The directory was removed meanwhile.
                    Err(Error::NotFound) => {}
                    other => other?,
                }
            }
        }
    }

    /// Returns the inode of a name. Uses local state alone if that is sufficient.
    pub(crate) async fn find_child(&self, parent: Ino, name: &str) -> Result<Option<Ino>, Error> {
        if name.len() > NAME_MAX {
            return Err(Error::Store(crate::store::Error::NameTooLong));
        }
        let local = {
            let tree = lock(&self.tree);
            let child = tree.child(parent, name)?;
            child.filter(|ino| tree.file(*ino).is_ok_and(|file| file.edit.is_some()))
        };
        if local.is_some() {
            return Ok(local);
        }
        let asked = Instant::now();
        loop {
            self.load(parent).await?;
            let tree = lock(&self.tree);
            let child = tree.child(parent, name)?;
            if child.is_some() {
                return Ok(child);
            }
            // The listing may have been dropped in between.
            if !tree.directory(parent)?.was_dropped {
                break;
            }
        }
        self.load_for_missed_name(parent, asked).await?;
        lock(&self.tree).child(parent, name)
    }

    /// Finds a name and adds one kernel reference to its inode. The caller drops the reference with [`Vfs::forget`].
    pub(crate) async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        let ino = self.find_child(parent, name).await?.ok_or(Error::NotFound)?;
        self.measure(&[ino]).await?;
        let mut tree = lock(&self.tree);
        let attr = tree.attr(ino, &self.options)?;
        tree.remember(ino);
        Ok(attr)
    }

    /// Drops `count` references of the kernel.
    pub(crate) fn forget(&self, ino: Ino, count: u64) {
        lock(&self.tree).forget(ino, count);
    }

    /// Reads the sizes of files that aren't known yet. Fails if one of them can't be read.
    pub(crate) async fn measure(&self, inos: &[Ino]) -> Result<(), Error> {
        let unread: Vec<(Ino, Version)> = {
            let tree = lock(&self.tree);
            let version = |ino: &Ino| {
                let file = tree.file(*ino).ok().filter(|file| file.edit.is_none() && file.len == Len::Unread)?;
                Some((*ino, file.version?))
            };
            inos.iter().filter_map(version).collect()
        };
        if unread.is_empty() {
            return Ok(());
        }
        let versions: Vec<Version> = unread.iter().map(|(_, version)| *version).collect();
        let lens = self.view.lens(&versions).await;
        let mut failed = None;
        let mut tree = lock(&self.tree);
        for ((ino, version), len) in unread.into_iter().zip(lens) {
            match (tree.file_mut(ino), len) {
                (Ok(file), Ok(len)) if file.version == Some(version) => file.len = len,
                (_, Ok(_)) => {}
                (_, Err(error)) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Opens a directory. The handle shows the entries that the directory has now, even if they change later.
    pub(crate) async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        let mut tree = loop {
            self.load(ino).await?;
            let tree = lock(&self.tree);
            // The listing may have been dropped in between.
            if !tree.directory(ino)?.was_dropped {
                break tree;
            }
        };
        let parent = tree.node(ino)?.place.as_ref().map_or(ino, |(parent, _)| *parent);
        let dot = |ino, name: &str| Listed { ino, name: name.to_owned(), kind: FileKind::Directory };
        let mut entries = vec![dot(ino, "."), dot(parent, "..")];
        let children = tree.directory(ino)?.children.iter().map(|(name, child)| Listed {
            ino: *child,
            name: name.clone(),
            kind: tree.node(*child).map_or(FileKind::File, Node::kind),
        });
        entries.extend(children);
        tree.opened(ino, false)?;
        drop(tree);
        Ok(self.handles.add_directory(DirectoryHandle { ino, entries }))
    }

    /// Passes the entries of an open directory to `sink`, starting at `offset`, until `sink` is full. An entry's own
    /// offset is its position plus one.
    pub(crate) fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        mut sink: impl FnMut(&Listed, u64) -> bool,
    ) -> Result<(), Error> {
        let handle = self.handles.directory(handle)?;
        for (entry, next) in handle.from(offset) {
            if sink(entry, next) {
                break;
            }
        }
        Ok(())
    }

    /// Reads the sizes of the entries that follow `offset`, as far as that is possible.
    pub(crate) async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        let handle = self.handles.directory(handle)?;
        let ahead: Vec<Ino> = handle.from(offset).take(SIZES_AHEAD).map(|(entry, _)| entry.ino).collect();
        if let Err(error) = self.measure(&ahead).await {
            tracing::warn!(%error, "some sizes of a directory can't be read");
        }
        Ok(())
    }

    /// Passes entries with their attributes to `sink`, as [`Vfs::readdir`] does with entries alone. Attributes are
    /// those that are known. Each entry that `sink` accepts counts as one kernel reference that must be dropped,
    /// except for `.` and `..`. Entries that were removed since the directory was opened are left out. An entry
    /// without a known size is marked as uncertain, so that the kernel asks for it alone, and that request gets the
    /// error.
    pub(crate) fn readdirplus(
        &self,
        handle: HandleNo,
        offset: u64,
        mut sink: impl FnMut(&Listed, &Attr, u64) -> bool,
    ) -> Result<(), Error> {
        let handle = self.handles.directory(handle)?;
        let mut tree = lock(&self.tree);
        for (entry, next) in handle.from(offset) {
            let Ok(attr) = tree.attr(entry.ino, &self.options) else { continue };
            if sink(entry, &attr, next) {
                break;
            }
            if entry.name != "." && entry.name != ".." {
                tree.remember(entry.ino);
            }
        }
        Ok(())
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, handle: HandleNo) -> Result<(), Error> {
        let handle = self.handles.remove_directory(handle)?;
        lock(&self.tree).closed(handle.ino, false);
        Ok(())
    }

    /// Reads the size of a file if possible. The size is used only to describe the old version. A file that is
    /// damaged or unreachable can be removed without it.
    pub(crate) async fn measure_if_possible(&self, ino: Ino) {
        if let Err(error) = self.measure(&[ino]).await {
            tracing::debug!(%error, "removing a file whose size can't be read");
        }
    }

    /// Returns how many entries of the remote aren't shown because files of this machine hide them.
    pub(crate) fn covered(&self) -> u64 {
        let tree = lock(&self.tree);
        self.twins.covered(|directory| tree.path(directory).is_ok())
    }

    /// Invalidates the listing of a directory, so that it is listed again before it is shown.
    pub(crate) fn revalidate(&self, directory: &PlainPath) {
        let mut tree = lock(&self.tree);
        if let Some(Ok(directory)) = tree.find(directory).map(|ino| tree.directory_mut(ino)) {
            directory.loaded = None;
        }
    }

    pub(crate) fn is_child(&self, directory: Option<Ino>, name: &str) -> bool {
        directory.is_some_and(|ino| lock(&self.tree).child(ino, name).is_ok_and(|child| child.is_some()))
    }
}

/// Merges several listings into one. The oldest path comes first. An entry that is being moved appears in two
/// listings. If both show a directory, it is one directory. If both show files, the older path has ours, which is
/// being moved, and the newer path has another client's file.
fn union(entries: impl Iterator<Item = Entry>) -> BTreeMap<String, Entry> {
    let mut found: BTreeMap<String, Entry> = BTreeMap::new();
    for entry in entries {
        match found.get_mut(&entry.name) {
            Some(older) if matches!(entry.kind, Kind::Directory { .. }) => *older = entry,
            Some(_) => {}
            None => drop(found.insert(entry.name.clone(), entry)),
        }
    }
    found
}

/// The merge of local state into a listing of the remote.
struct Merge<'a> {
    directories: &'a Directories,
    ledger: &'a Ledger,
    path: &'a PlainPath,
    queued_changes: QueuedChanges,
}

impl Merge<'_> {
    /// Returns true if the remote got something during the listing that neither the listing nor the local state
    /// shows. That happens after a restart: the record of a committed change is dropped here immediately, and the
    /// record of a directory is dropped with the commit of its first file. Listing again finds it, because then only
    /// operations that finish after that point count.
    fn lacks_arrivals(&self, tree: &Tree, ino: Ino, found: &BTreeMap<String, Entry>) -> Result<bool, Error> {
        for name in self.queued_changes.arrived.iter().filter(|name| !self.queued_changes.children.contains_key(*name))
        {
            let lacking = match self.queued_changes.governed.contains(name) {
                true => tree.child(ino, name)?.is_none(),
                false => !found.contains_key(name),
            };
            if lacking {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Renames remote files that have the same name as a folder that only this machine has. They get the alias under
    /// which the store shows them beside the folder.
    fn show_files_beside_folders(&self, found: &mut BTreeMap<String, Entry>) {
        let is_folder = |name: &String| self.queued_changes.children.get(name) == Some(&LocalChild::Directory);
        let is_hidden = |entry: &Entry| {
            matches!(entry.kind, Kind::File { .. })
                && is_folder(&entry.name)
                && !self.queued_changes.governed.contains(&entry.name)
        };
        let names: Vec<String> =
            found.values().filter(|entry| is_hidden(entry)).map(|entry| entry.name.clone()).collect();
        for name in names {
            let taken = |alias: &str| found.contains_key(alias) || self.queued_changes.children.contains_key(alias);
            let Some(alias) = self.directories.view.show_beside(self.path, &name, &taken) else { continue };
            if let Some(entry) = found.remove(&name) {
                found.insert(alias.clone(), Entry { name: alias, ..entry });
            }
        }
    }

    /// Counts remote folders that a file of this machine hides until it is committed, and remote files that a kept
    /// file hides. Hidden files don't prevent a move of their directory.
    fn covered(&self, found: &BTreeMap<String, Entry>) -> Result<(u64, u64), Error> {
        let (mut folders, mut files) = (0, 0);
        for (name, child) in &self.queued_changes.children {
            let (Some(entry), LocalChild::File(file)) = (found.get(name), child) else { continue };
            let is_folder = matches!(entry.kind, Kind::Directory { .. });
            if !is_folder && !self.directories.schedule.is_kept(*file) {
                continue;
            }
            // While other operations are queued here, the entry may be one that was removed.
            let path = self.path.join(name)?;
            let is_hidden =
                self.ledger.queue().overlapping(&path).all(|(_, what)| matches!(what, QueuedOp::Put { .. }));
            *(if is_folder { &mut folders } else { &mut files }) += u64::from(is_hidden);
        }
        Ok((folders, files))
    }

    fn run(&self, tree: &mut Tree, ino: Ino, mut found: BTreeMap<String, Entry>) -> Result<(), Error> {
        let mut names: BTreeSet<String> = found.keys().cloned().collect();
        names.extend(tree.directory(ino)?.children.keys().cloned());
        names.extend(self.queued_changes.children.keys().cloned());
        let mut changed = false;
        for name in names {
            changed |= self.name(tree, ino, &name, found.remove(&name))?;
        }
        let directory = tree.directory_mut(ino)?;
        if changed && !directory.was_dropped {
            directory.mtime = SystemTime::now();
        }
        directory.was_dropped = false;
        Ok(())
    }

    /// Merges one name. Returns true if the name was added or removed.
    fn name(&self, tree: &mut Tree, parent: Ino, name: &str, found: Option<Entry>) -> Result<bool, Error> {
        let mut here = tree.child(parent, name)?;
        let known = self.queued_changes.children.get(name);
        if known == Some(&LocalChild::Special)
            && found.is_none()
            && let Some(ino) = here
            && tree.node(ino)?.as_special().is_none()
        {
            // The entry that the remote showed in its place was removed.
            tree.lose(parent, name);
            here = None;
        }
        if self.queued_changes.governed.contains(name) || (known.is_some() && found.is_none()) {
            let Some(known) = known.filter(|_| here.is_none()) else { return Ok(false) };
            return self.restore(tree, parent, name, *known);
        }
        match (here, found) {
            (None, None) => Ok(false),
            (Some(ino), None) => {
                // The next write restores the file. Without a name, that write would be lost.
                if is_being_written(tree, ino) {
                    return Ok(false);
                }
                tree.lose(parent, name);
                Ok(true)
            }
            (None, Some(entry)) => {
                tree.insert(parent, name, node(&entry.kind))?;
                Ok(true)
            }
            (Some(ino), Some(entry)) => {
                if update(tree.node_mut(ino)?, &entry.kind) || is_being_written(tree, ino) {
                    return Ok(false);
                }
                tree.lose(parent, name);
                tree.insert(parent, name, node(&entry.kind))?;
                Ok(true)
            }
        }
    }

    /// Restores an entry that only the ledger has. After a restart, the inode table is empty.
    fn restore(&self, tree: &mut Tree, parent: Ino, name: &str, known: LocalChild) -> Result<bool, Error> {
        let node = match known {
            LocalChild::Directory => Node::directory(false),
            LocalChild::Special => match self.ledger.special(&self.path.join(name)?) {
                Some(special) => Node::special(special.clone()),
                None => return Ok(false),
            },
            LocalChild::File(no) => {
                let Some(record) = self.ledger.file(no) else { return Ok(false) };
                match (self.directories.schedule.edit(no), record.remote) {
                    (Some(edit), remote) => {
                        let mut node = Node::edited(edit);
                        if let Remote::Own(version, len) = remote {
                            // The committed version stays when the local content ends.
                            let file = node.as_file_mut()?;
                            (file.version, file.len) = (Some(version), Len::Known(len));
                            file.keep_mtime(record.mtime);
                        }
                        node
                    }
                    (None, Remote::Own(version, len)) => {
                        let mut node = Node::file(Some(version), Len::Known(len), record.mtime, false);
                        let file = node.as_file_mut()?;
                        file.file = Some(no);
                        file.keep_mtime(record.mtime);
                        node
                    }
                    (None, _) => {
                        tracing::error!(
                            directory = self.directories.view.log_name(self.path),
                            "a file of the journal has no content"
                        );
                        return Ok(false);
                    }
                }
            }
        };
        let edit = node.as_file().ok().and_then(|file| file.edit.clone());
        let ino = tree.insert(parent, name, node)?;
        edit.iter().for_each(|edit| edit.set_ino(ino));
        Ok(true)
    }
}

/// Returns true if a listing was made less than `age` ago.
fn is_younger(listed: Option<Instant>, age: Duration) -> bool {
    listed.is_some_and(|at| at.elapsed() < age)
}

fn node(kind: &Kind) -> Node {
    match kind {
        Kind::Directory { read_only } => Node::directory(*read_only),
        Kind::File { version, len, mtime, read_only } => Node::file(*version, *len, *mtime, *read_only),
    }
}

/// Returns true if the file, or one below the directory, is open for writing. The first write then changes the
/// version that was opened.
fn is_being_written(tree: &Tree, ino: Ino) -> bool {
    let mut all = std::iter::once(ino).chain(tree.below(ino));
    all.any(|ino| tree.node(ino).is_ok_and(|node| node.writers > 0))
}

/// Updates an inode from a listing. Returns false if a new inode is needed: the kind differs, or the version differs
/// while handles are open. The kernel's pages belong to the inode, and no reader may mix two versions.
fn update(node: &mut Node, kind: &Kind) -> bool {
    let open = node.opens > 0;
    match (&mut node.body, kind) {
        (Body::Directory(directory), Kind::Directory { read_only }) => {
            directory.read_only = *read_only;
            true
        }
        (Body::File(file), Kind::File { version, len, mtime, read_only }) => {
            if file.edit.is_some() {
                return true;
            }
            let keeps_mtime = file.version == *version && file.keeps_mtime(*mtime);
            if file.version == *version {
                if *len != Len::Unread {
                    file.len = *len;
                }
            } else if open {
                return false;
            } else {
                file.version = *version;
                file.len = *len;
                node.overrides.mtime = None;
            }
            if !keeps_mtime {
                (file.mtime, file.mtime_source) = (*mtime, MtimeSource::Remote);
            }
            file.read_only = *read_only;
            true
        }
        _ => false,
    }
}
