//! Operations on names: create, mkdir, unlink, rmdir, rename.
//!
//! Each operation has three steps. First it lists the directories at the remote, with bounded waits and no locks
//! held. Then it decides, journals the change and changes the tree, all under the tree's and the journal's locks. It
//! returns once the record is in the journal's file. The schedule changes the remote later.

use crate::fs::content::Contents;
use crate::fs::content::edit::Edit;
use crate::fs::content::quota::Quota;
use crate::fs::errno::Error;
use crate::fs::gate::WriteGate;
use crate::fs::handle::Handles;
use crate::fs::handle::{Access, FileHandle, Opened};
use crate::fs::ids::{FileKind, FileNo, Ino, OpNo};
use crate::fs::journal::file::Journal;
use crate::fs::journal::file::{Purpose, Ticket};
use crate::fs::journal::ledger::{Entry, Ledger, QueuedOp, Remote};
use crate::fs::journal::ledger::{remote_of, track};
use crate::fs::lock::lock;
use crate::fs::options::Options;
use crate::fs::sync::policy::KEPT_HERE;
use crate::fs::sync::policy::Policy;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::inode::touch;
use crate::fs::tree::inode::{Attr, Body, Cached, NewAttrs, Node, Tree};
use crate::fs::tree::keep_directory;
use crate::fs::tree::listing::Directories;
use crate::fs::tree::twins::Twins;
use crate::store::View;
use crate::store::staging::Pool;
use crate::store::{DraftState, Format, Len, PlainPath, Side, stored_now};
mod link;
mod special;

use std::sync::Arc;
use std::time::SystemTime;

/// Number of times that an operation lists again because the directory changed meanwhile.
const ATTEMPTS: u32 = 8;

/// The parameters of `create`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    /// The access to open the file with.
    pub access: Access,
    /// Fail if the name is taken.
    pub exclusive: bool,
    /// Attributes of a new file.
    pub new_attrs: NewAttrs,
}

/// The removal of a file's name from the file's record.
struct Removal {
    entries: Vec<Entry>,
    /// The content that the remote has at the name, for a file that replaces this one. `None` means that it depends
    /// on queued operations.
    leaves: Option<Remote>,
}

/// The entries of a file's rename, and the files and the operation that they concern.
struct FileMove {
    file: FileNo,
    /// The file that was at the target.
    target: Option<FileNo>,
    entries: Vec<Entry>,
    /// A queued removal at the target. The entries cancel it.
    cancelled: Option<OpNo>,
}

/// The ticket of a move, and the local content of the file that it replaced.
type Moved = (Ticket, Option<Arc<Edit>>);

/// Operations on names. See the module.
pub(crate) struct Namespace {
    pub(crate) view: Arc<dyn View>,
    pub(crate) options: Arc<Options>,
    pub(crate) tree: Arc<InodeTable>,
    pub(crate) handles: Arc<Handles>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) twins: Arc<Twins>,
    pub(crate) gate: Arc<WriteGate>,
    pub(crate) policy: Policy,
    pub(crate) directories: Arc<Directories>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) contents: Arc<Contents>,
}

impl Namespace {
    /// Fails if the name can't be created.
    pub(crate) fn check_new_name(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.gate.check_writable()?;
        let parent = lock(&self.tree).path(parent)?;
        Ok(self.view.check_name(&parent, name)?)
    }

    /// Creates and opens a file, or opens the existing one. The attributes count as one kernel reference.
    pub(crate) async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        self.check_new_name(parent, name)?;
        for _ in 0..ATTEMPTS {
            match self.directories.find_child(parent, name).await? {
                Some(_) if create.exclusive => return Err(Error::Exists),
                Some(ino) => {
                    let opened = self.contents.open(ino, create.access).await?;
                    let mut tree = lock(&self.tree);
                    tree.remember(ino);
                    return Ok((tree.attr(ino, &self.options)?, opened));
                }
                None => {}
            }
            if let Some((ino, edit, ticket)) = self.create_file(parent, name, create)? {
                if self.contents.is_advanced() || !create.access.write {
                    self.schedule.touch(&edit);
                }
                if let Err(error) = self.journal.written(ticket).await {
                    lock(&self.tree).closed(ino, create.access.write);
                    return Err(error);
                }
                let mut tree = lock(&self.tree);
                let handle = self.handles.add_file(FileHandle::new(ino, create.access));
                let opened = Opened::new(handle, &mut tree.file_mut(ino)?.cached, Some(Cached::Edit(edit.file)));
                tree.remember(ino);
                return Ok((tree.attr(ino, &self.options)?, opened));
            }
        }
        Err(Error::TimedOut)
    }

    /// Creates an empty file and opens it. Returns `None` if the name was taken meanwhile.
    fn create_file(&self, parent: Ino, name: &str, create: Create) -> Result<Option<(Ino, Arc<Edit>, Ticket)>, Error> {
        let mut tree = lock(&self.tree);
        if tree.child(parent, name)?.is_some() {
            return Ok(None);
        }
        let path = tree.path(parent)?.join(name)?;
        let overrides = tree.overrides_for(parent, create.new_attrs, false, &self.options)?;
        let mtime = stored_now();
        let draft = self.view.draft(DraftState::default(), self.pool.clone())?;
        let keeps = self.policy.keeps(&path);
        let (ticket, (file, cancelled)) = self.journal.transact(Purpose::Work, |ledger| {
            let file = ledger.new_file();
            // A file that is kept on this machine replaces nothing at the remote. A removal that is queued at its
            // path is carried out.
            let (remote, cancelled) = if keeps { (Remote::Absent, None) } else { self.take_over(ledger, &path) };
            let mut entries: Vec<_> = finished(cancelled).collect();
            entries.push(Entry::Track { file, path: Some(path.clone()), remote, mtime: None });
            entries.push(Entry::Begin { file, state: DraftState::default(), generation: 1, mtime });
            Ok((entries, (file, cancelled)))
        })?;
        self.op_cancelled(cancelled);
        let edit = Arc::new(Edit::new(file, draft, mtime, 1, 0, ticket));
        if keeps {
            self.schedule.keep_new(file);
        }
        self.schedule.add(edit.clone());
        let mut node = Node::edited(edit.clone());
        node.overrides = overrides;
        let ino = tree.insert(parent, name, node)?;
        edit.set_ino(ino);
        tree.opened(ino, create.access.write)?;
        touch(&mut tree, parent);
        Ok(Some((ino, edit, ticket)))
    }

    /// Returns the content that the Hub has at `path`, for a new file at a path that has no file here. If the only
    /// queued operation there is a removal that isn't being carried out, returns that operation, too. The caller
    /// appends [`finished`] for it, then reports it with [`Self::op_cancelled`]. The new file then replaces the old
    /// one in one step, so no crash leaves a state without either of them. A damaged file can't be replaced, so its
    /// removal is carried out first.
    pub(crate) fn take_over(&self, ledger: &Ledger, path: &PlainPath) -> (Remote, Option<OpNo>) {
        let overlapping: Vec<_> = ledger.queue().overlapping(path).map(|(op, what)| (op, what.clone())).collect();
        if let [(op, QueuedOp::Delete { file, path: at })] = &overlapping[..]
            && at == path
            && !self.schedule.is_running(*op)
            && let Some(record) = ledger.file(*file)
            && !matches!(record.remote, Remote::Unreadable(_) | Remote::Unhashed)
        {
            return (record.remote.replaced(), Some(*op));
        }
        (Remote::Absent, None)
    }

    /// Reports to the schedule that the journal has cancelled an operation, so that it is neither retried nor
    /// counted.
    pub(crate) fn op_cancelled(&self, cancelled: Option<OpNo>) {
        cancelled.into_iter().for_each(|op| self.schedule.op_finished(op, None));
    }

    /// Creates a directory. It exists on this machine only, until something in it is committed. The attributes count
    /// as one kernel reference.
    pub(crate) async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        self.create_local(parent, name, new_attrs, Node::directory(false), |path| Entry::Directory { path }).await
    }

    /// Creates a node that the remote has no object for. `entry` builds the journal entry that stores it. The
    /// attributes count as one kernel reference.
    pub(crate) async fn create_local(
        &self,
        parent: Ino,
        name: &str,
        new_attrs: NewAttrs,
        mut node: Node,
        entry: impl FnOnce(PlainPath) -> Entry,
    ) -> Result<Attr, Error> {
        self.check_new_name(parent, name)?;
        if self.directories.find_child(parent, name).await?.is_some() {
            return Err(Error::Exists);
        }
        let (ino, ticket) = {
            let mut tree = lock(&self.tree);
            if tree.child(parent, name)?.is_some() {
                return Err(Error::Exists);
            }
            let path = tree.path(parent)?.join(name)?;
            node.overrides = tree.overrides_for(parent, new_attrs, node.is_directory(), &self.options)?;
            if node.is_directory() {
                self.twins.record_new_folder(path.clone());
            }
            let ticket = self.journal.append(Purpose::Work, vec![entry(path)])?;
            if let Ok(directory) = node.as_directory_mut() {
                // The listing above has shown that the remote has nothing at this path.
                directory.loaded = tree.directory(parent)?.loaded;
            }
            let ino = tree.insert(parent, name, node)?;
            touch(&mut tree, parent);
            (ino, ticket)
        };
        self.journal.written(ticket).await?;
        let mut tree = lock(&self.tree);
        tree.remember(ino);
        tree.attr(ino, &self.options)
    }

    /// Removes a file's name. Open handles can still read the file.
    pub(crate) async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.gate.check_writable()?;
        let ino = self.directories.find_child(parent, name).await?.ok_or(Error::NotFound)?;
        self.directories.measure_if_possible(ino).await;
        let (ticket, edit) = {
            let mut tree = lock(&self.tree);
            if tree.child(parent, name)? != Some(ino) {
                return Err(Error::NotFound);
            }
            if !is_uncommitted(&tree, ino) {
                self.check_removable(&tree, ino)?;
            }
            let (ticket, edit) = match tree.node(ino)?.as_special() {
                None => self.unlink_file(&mut tree, parent, name, ino)?,
                Some(_) => {
                    let forget = |ledger: &mut Ledger| Ok((self.forget_special(ledger, &tree, parent, name)?, ()));
                    (self.journal.transact(Purpose::Work, forget)?.0, None)
                }
            };
            tree.remove(parent, name);
            if edit.as_ref().is_some_and(|edit| self.schedule.is_kept(edit.file)) {
                // The Hub may have a file that this one hid.
                tree.directory_mut(parent)?.loaded = None;
            }
            touch(&mut tree, parent);
            touch_node(&mut tree, ino);
            (ticket, edit)
        };
        self.gone(ino, edit).await;
        self.schedule.wake_commits();
        self.journal.written(ticket).await
    }

    /// Journals the removal of a file that may be removed. The caller then removes it from the tree.
    fn unlink_file(&self, tree: &mut Tree, parent: Ino, name: &str, ino: Ino) -> Result<Moved, Error> {
        let path = tree.path(ino)?;
        let (ticket, file) = self.journal.transact(Purpose::Work, |ledger| {
            let (file, mut entries) = self.remove_file(ledger, tree, ino, &path)?;
            // A special file that this file hid is removed with it.
            entries.extend(ledger.special(&path).map(|_| Entry::ForgetSpecial { path: path.clone() }));
            entries.extend(keep_directory(ledger, tree, parent, name)?);
            Ok((entries, file))
        })?;
        let edit = tree.file(ino)?.edit.clone();
        if file.is_some() {
            tree.file_mut(ino)?.file = file;
        }
        Ok((ticket, edit))
    }

    /// Returns the entries that remove a file, here and at the remote.
    fn remove_file(
        &self,
        ledger: &mut Ledger,
        tree: &Tree,
        ino: Ino,
        path: &PlainPath,
    ) -> Result<(Option<FileNo>, Vec<Entry>), Error> {
        let (file, removal) = self.go(ledger, tree, ino, path)?;
        let mut entries = removal.entries;
        if removal.leaves.is_none_or(|remote| remote != Remote::Absent) {
            let (file, mut tracked) = self.track_file(ledger, tree, ino, path)?;
            tracked.append(&mut entries);
            entries = tracked;
            let op = ledger.new_op();
            entries.push(Entry::Queue { op, what: QueuedOp::Delete { file, path: path.clone() } });
        }
        Ok((file, entries))
    }

    fn check_removable(&self, tree: &Tree, ino: Ino) -> Result<(), Error> {
        let node = tree.node(ino)?;
        if node.as_special().is_some() {
            return Ok(());
        }
        let file = node.as_file()?;
        if file.read_only {
            return Err(Error::Denied("plaintext files of a mount with a key are read-only"));
        }
        let writing = node.writers > 0 && file.edit.as_ref().is_some_and(|edit| edit.is_dirty());
        if writing && !self.contents.is_advanced() {
            return Err(Error::NotPermitted("a file that is being written can't be removed without --advanced-writes"));
        }
        Ok(())
    }

    /// Returns the removal of a file's name from its record, and the file's number if the ledger has it.
    fn go(&self, ledger: &Ledger, tree: &Tree, ino: Ino, path: &PlainPath) -> Result<(Option<FileNo>, Removal), Error> {
        let file = tree.file(ino)?;
        let known = file.file.and_then(|no| ledger.file(no).map(|record| (no, record)));
        let Some((no, record)) = known else {
            let queued = ledger.queue().overlapping(path).next().is_some();
            let leaves = (!queued).then(|| remote_of(file.version, file.len));
            return Ok((None, Removal { entries: Vec::new(), leaves }));
        };
        // While operations of this file are queued, the content at the name depends on them.
        let leaves = (!ledger.is_mentioned(no)).then_some(record.remote);
        let entries = leaves.map(|_| Entry::Move { file: no, path: None }).into_iter().collect();
        Ok((Some(no), Removal { entries, leaves }))
    }

    /// Returns the file's number in the ledger, and the entries that add it to the ledger if it isn't there.
    fn track_file(
        &self,
        ledger: &mut Ledger,
        tree: &Tree,
        ino: Ino,
        path: &PlainPath,
    ) -> Result<(FileNo, Vec<Entry>), Error> {
        let file = tree.file(ino)?;
        let remote = remote_of(file.version, file.len);
        Ok(track(ledger, file.file, Some(path.clone()), remote, file.mtime))
    }

    /// Cleans up after a file has lost its name: its local content isn't uploaded any more, and is dropped once no
    /// handle is open.
    async fn gone(&self, ino: Ino, edit: Option<Arc<Edit>>) {
        let Some(edit) = edit else { return };
        self.schedule.forget(edit.file);
        if let Err(error) = self.contents.end_if_idle(ino, &edit).await {
            tracing::warn!(%error, "cannot drop the staged content of a removed file");
        }
    }

    /// Removes an empty directory.
    pub(crate) async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.gate.check_writable()?;
        let ino = self.directories.find_child(parent, name).await?.ok_or(Error::NotFound)?;
        self.directories.load(ino).await?;
        let ticket = {
            let mut tree = lock(&self.tree);
            if tree.child(parent, name)? != Some(ino) {
                return Err(Error::NotFound);
            }
            check_empty(&tree, ino)?;
            let path = tree.path(ino)?;
            let ticket = self.journal.transact(Purpose::Work, |ledger| {
                let mut entries = remove_directory(ledger, &path);
                entries.extend(keep_directory(ledger, &tree, parent, name)?);
                Ok((entries, ()))
            })?;
            tree.remove(parent, name);
            touch(&mut tree, parent);
            ticket.0
        };
        self.schedule.wake_commits();
        self.journal.written(ticket).await
    }

    /// Moves a file or a directory. With `replace`, removes an existing target if it is of the same kind and, for a
    /// directory, empty.
    pub(crate) async fn rename(
        &self,
        parent: Ino,
        name: &str,
        to_parent: Ino,
        to_name: &str,
        replace: bool,
    ) -> Result<(), Error> {
        self.check_new_name(to_parent, to_name)?;
        for _ in 0..ATTEMPTS {
            let source = self.directories.find_child(parent, name).await?.ok_or(Error::NotFound)?;
            let target = self.directories.find_child(to_parent, to_name).await?;
            if target.is_some() && !replace {
                return Err(Error::Exists);
            }
            if target == Some(source) {
                return Ok(());
            }
            let kind = lock(&self.tree).node(source)?.kind();
            if kind == FileKind::Directory {
                self.directories.load_below(source).await?;
            } else {
                self.directories.measure(&[source]).await?;
            }
            if let Some(target) = target {
                if lock(&self.tree).node(target).is_ok_and(Node::is_directory) {
                    self.directories.load(target).await?;
                } else {
                    self.directories.measure_if_possible(target).await;
                }
            }
            let plan = Move { parent, name, to_parent, to_name, source, target };
            let moved = match kind {
                FileKind::Directory => self.move_directory(&plan)?,
                FileKind::File => self.move_file(&plan)?,
                _ => self.move_special(&plan)?,
            };
            let Some((ticket, replaced)) = moved else { continue };
            self.apply_policy_below(source);
            if let Some(target) = target {
                self.gone(target, replaced).await;
            }
            self.schedule.wake();
            return self.journal.written(ticket).await;
        }
        Err(Error::TimedOut)
    }

    fn move_file(&self, plan: &Move<'_>) -> Result<Option<Moved>, Error> {
        let mut tree = lock(&self.tree);
        if !plan.holds(&tree)? {
            return Ok(None);
        }
        let source = tree.file(plan.source)?;
        if source.read_only {
            return Err(Error::Denied("plaintext files of a mount with a key are read-only"));
        }
        if source.edit.is_none() && source.version.is_some() && source.len == Len::Unread {
            // A listing has just brought another version, whose size is not known yet.
            return Ok(None);
        }
        // The remote moves only an object that is proven to be a file's content.
        if source.edit.is_none() && (source.version.is_none() || !matches!(source.len, Len::Known(_))) {
            return Err(Error::Damaged);
        }
        let target_file = plan.target_file(&tree);
        let replaced = match target_file {
            Some(target) => {
                self.check_removable(&tree, target)?;
                let target = tree.file(target)?;
                // A damaged file is never overwritten silently (format spec, section 5).
                if target.edit.is_none() && (target.len == Len::Damaged || target.version.is_none()) {
                    return Err(Error::Damaged);
                }
                target.edit.clone()
            }
            None => None,
        };
        let (from, to) = plan.paths(&tree)?;
        self.check_format(tree.file(plan.source)?, &to)?;
        let (ticket, FileMove { file: no, target: target_no, cancelled, .. }) =
            self.journal.transact(Purpose::Work, |ledger| {
                let mut moved = self.file_move(ledger, &tree, plan, &from, &to)?;
                moved.entries.extend(plan.keep_parent(ledger, &tree)?);
                Ok((std::mem::take(&mut moved.entries), moved))
            })?;
        self.op_cancelled(cancelled);
        if self.schedule.is_kept(no) {
            // The Hub may have a file that this one hid.
            tree.directory_mut(plan.parent)?.loaded = None;
        }
        tree.file_mut(plan.source)?.file = Some(no);
        if let (Some(target), Some(no)) = (target_file, target_no) {
            tree.file_mut(target)?.file = Some(no);
        }
        plan.apply(&mut tree)?;
        Ok(Some((ticket, replaced)))
    }

    /// Moves a special file, which only this machine has. A file at the target is removed.
    fn move_special(&self, plan: &Move<'_>) -> Result<Option<Moved>, Error> {
        let mut tree = lock(&self.tree);
        if !plan.holds(&tree)? {
            return Ok(None);
        }
        let special = tree.node(plan.source)?.as_special().cloned().ok_or(Error::NotFound)?;
        let target = plan.target_file(&tree);
        target.map_or(Ok(()), |target| self.check_removable(&tree, target))?;
        let (from, to) = plan.paths(&tree)?;
        let (ticket, no) = self.journal.transact(Purpose::Work, |ledger| {
            let removed = target.map(|target| self.remove_file(ledger, &tree, target, &to)).transpose()?;
            let (no, mut entries) = removed.unwrap_or_default();
            entries.push(Entry::ForgetSpecial { path: from });
            entries.push(Entry::Special { path: to, special });
            entries.extend(plan.keep_parent(ledger, &tree)?);
            Ok((entries, no))
        })?;
        let mut replaced = None;
        if let Some(target) = target {
            let target = tree.file_mut(target)?;
            target.file = no.or(target.file);
            replaced = target.edit.clone();
        }
        plan.apply(&mut tree)?;
        Ok(Some((ticket, replaced)))
    }

    /// Returns the entries that move a file. If the remote has never had the file, the move is local: the file is
    /// committed at the new path and nowhere else.
    fn file_move(
        &self,
        ledger: &mut Ledger,
        tree: &Tree,
        plan: &Move<'_>,
        from: &PlainPath,
        to: &PlainPath,
    ) -> Result<FileMove, Error> {
        let (no, mut entries) = self.track_file(ledger, tree, plan.source, from)?;
        let replaced = plan.target_file(tree);
        if ledger.special(to).is_some() {
            entries.push(Entry::ForgetSpecial { path: to.clone() });
        }
        let unseen = ledger.file(no).is_some_and(|record| record.remote == Remote::Absent) && !ledger.is_mentioned(no);
        let removal = replaced.map(|target| self.go(ledger, tree, target, to)).transpose()?;
        let keeps = self.policy.keeps(to);
        if keeps && !(unseen && removal.as_ref().is_none_or(|(_, removal)| removal.leaves == Some(Remote::Absent))) {
            return Err(KEPT_HERE);
        }
        let taken = match &removal {
            Some((_, removal)) => removal.leaves.map(|remote| (remote.replaced(), None)),
            None if keeps => Some((Remote::Absent, None)),
            None => Some(self.take_over(ledger, to)),
        };
        if let (true, Some((remote, cancelled))) = (unseen, taken) {
            entries.extend(finished(cancelled));
            let target_no = removal.and_then(|(target, removal)| {
                entries.extend(removal.entries);
                // The name at the remote belongs to the moved file from here on. The rest of the replaced file is
                // local.
                entries.extend(target.map(|file| Entry::Remote { file, remote: Remote::Absent }));
                target
            });
            entries.push(Entry::Move { file: no, path: Some(to.clone()) });
            entries.push(Entry::Remote { file: no, remote });
            return Ok(FileMove { file: no, target: target_no, entries, cancelled });
        }
        let mut target_no = None;
        if let Some(target) = replaced {
            let (file, tracked) = self.track_file(ledger, tree, target, to)?;
            entries.extend(tracked);
            target_no = Some(file);
        }
        let what = QueuedOp::Rename { file: no, from: from.clone(), to: to.clone(), replaced: target_no };
        entries.push(Entry::Queue { op: ledger.new_op(), what });
        Ok(FileMove { file: no, target: target_no, entries, cancelled: None })
    }

    fn move_directory(&self, plan: &Move<'_>) -> Result<Option<Moved>, Error> {
        let mut tree = lock(&self.tree);
        if !plan.holds(&tree)? {
            return Ok(None);
        }
        if let Some(target) = plan.target {
            check_empty(&tree, target)?;
        }
        let (from, to) = plan.paths(&tree)?;
        self.check_subtree(&tree, plan.source, &from, &to)?;
        let (ticket, ()) = self.journal.transact(Purpose::Work, |ledger| {
            let mut entries = if plan.target.is_some() { remove_directory(ledger, &to) } else { Vec::new() };
            entries.extend(directory_move(ledger, &tree, plan.source, &from, &to)?);
            if self.policy.keeps(&to) && entries.iter().any(|entry| matches!(entry, Entry::Queue { .. })) {
                return Err(KEPT_HERE);
            }
            entries.extend(plan.keep_parent(ledger, &tree)?);
            Ok((entries, ()))
        })?;
        plan.apply(&mut tree)?;
        Ok(Some((ticket, None)))
    }

    /// Fails if something below a directory can't be moved. Read-only and unreadable entries can't be moved. Every
    /// name must be storable at its new path.
    fn check_subtree(&self, tree: &Tree, source: Ino, from: &PlainPath, to: &PlainPath) -> Result<(), Error> {
        for ino in std::iter::once(source).chain(tree.below(source)) {
            let node = tree.node(ino)?;
            let (read_only, unreadable) = match &node.body {
                Body::Directory(directory) => (directory.read_only, directory.unreadable),
                Body::File(file) => (file.read_only, 0),
                Body::Special(..) => (false, 0),
            };
            if read_only {
                return Err(Error::Denied("plaintext entries of a mount with a key are read-only"));
            }
            if unreadable > 0 {
                return Err(Error::Store(crate::store::Error::NotEmpty(unreadable)));
            }
            let path = tree.path(ino)?.rebase(from, to).ok_or(Error::NotFound)?;
            let (parent, name) = path.split().ok_or(Error::Invalid("the root can't be moved"))?;
            self.view.check_name(&parent, name)?;
            if let Ok(file) = node.as_file() {
                self.check_format(file, &path)?;
            }
        }
        Ok(())
    }

    /// Fails if a file can't be stored at its new path in its present format. A rename doesn't change the content, so
    /// it can't change the format.
    fn check_format(&self, file: &crate::fs::tree::inode::File, path: &PlainPath) -> Result<(), Error> {
        let is_old = file.version.is_some_and(|version| version.side == Side::Encrypted(Format::V1));
        if !is_old {
            return Ok(());
        }
        let fits = path.as_str().split('/').all(|name| name.len() <= FORMAT_1_NAME);
        if !fits {
            return Err(Error::Store(crate::store::Error::NameTooLong));
        }
        Ok(self.view.check_format_1(path)?)
    }

    /// Applies the policy for local-only files again, to a file that was moved or to all files below a folder that
    /// was moved.
    pub(crate) fn apply_policy_below(&self, ino: Ino) {
        let moved: Vec<(Arc<Edit>, PlainPath)> = {
            let tree = lock(&self.tree);
            let file = |ino: Ino| Some((tree.file(ino).ok()?.edit.clone()?, tree.path(ino).ok()?));
            std::iter::once(ino).chain(tree.below(ino)).filter_map(file).collect()
        };
        for (edit, path) in moved {
            let is_unseen = self.journal.ledger().file(edit.file).is_some_and(|file| file.remote == Remote::Absent);
            if is_unseen && self.policy.keeps(&path) {
                self.schedule.keep(edit.file);
            } else if self.schedule.stop_keeping(edit.file) {
                self.schedule.touch(&edit);
            }
        }
    }
}

/// Longest name that format 1 can store, bytes (format spec, section 2).
const FORMAT_1_NAME: usize = 194;

/// A rename, with the inodes that were found at both names.
struct Move<'a> {
    parent: Ino,
    name: &'a str,
    to_parent: Ino,
    to_name: &'a str,
    source: Ino,
    target: Option<Ino>,
}

impl Move<'_> {
    /// Returns true if both names still have the same inodes. Fails if the kinds don't fit.
    fn holds(&self, tree: &Tree) -> Result<bool, Error> {
        if tree.child(self.parent, self.name)? != Some(self.source)
            || tree.child(self.to_parent, self.to_name)? != self.target
        {
            return Ok(false);
        }
        if tree.is_within(self.to_parent, self.source) {
            return Err(Error::Invalid("a directory can't be moved into itself"));
        }
        let Some(target) = self.target else { return Ok(true) };
        match (tree.node(self.source)?.is_directory(), tree.node(target)?.is_directory()) {
            (true, false) => Err(Error::NotDirectory),
            (false, true) => Err(Error::IsDirectory),
            _ => Ok(true),
        }
    }

    /// Returns the inode at the target if it is a regular file.
    fn target_file(&self, tree: &Tree) -> Option<Ino> {
        self.target.filter(|target| tree.file(*target).is_ok())
    }

    fn paths(&self, tree: &Tree) -> Result<(PlainPath, PlainPath), Error> {
        Ok((tree.path(self.source)?, tree.path(self.to_parent)?.join(self.to_name)?))
    }

    fn keep_parent(&self, ledger: &Ledger, tree: &Tree) -> Result<Option<Entry>, Error> {
        if self.parent == self.to_parent { Ok(None) } else { keep_directory(ledger, tree, self.parent, self.name) }
    }

    fn apply(&self, tree: &mut Tree) -> Result<(), Error> {
        tree.relocate(self.source, self.to_parent, self.to_name)?;
        touch(tree, self.parent);
        touch(tree, self.to_parent);
        let node = tree.node_mut(self.source)?;
        node.overrides.ctime = Some(SystemTime::now());
        if let Ok(file) = node.as_file_mut() {
            file.keep_mtime(file.mtime);
        }
        Ok(())
    }
}

/// Returns the entry that removes a cancelled operation from the queue.
pub(crate) fn finished(cancelled: Option<OpNo>) -> impl Iterator<Item = Entry> {
    cancelled.into_iter().map(|op| Entry::Finish { op })
}

/// Returns true for a file that was created here and that the remote has never had. Removing it while it is being
/// written loses nothing at the remote.
fn is_uncommitted(tree: &Tree, ino: Ino) -> bool {
    tree.file(ino).is_ok_and(|file| !file.read_only && file.edit.is_some() && file.version.is_none())
}

/// Sets the change time of an inode of which a name was added or removed.
fn touch_node(tree: &mut Tree, ino: Ino) {
    if let Ok(node) = tree.node_mut(ino) {
        node.overrides.ctime = Some(SystemTime::now());
    }
}

fn check_empty(tree: &Tree, ino: Ino) -> Result<(), Error> {
    let directory = tree.directory(ino)?;
    if directory.read_only {
        return Err(Error::Denied("plaintext entries of a mount with a key are read-only"));
    }
    match directory.unreadable {
        0 if directory.children.is_empty() => Ok(()),
        0 => Err(Error::NotEmpty),
        hidden => Err(Error::Store(crate::store::Error::NotEmpty(hidden))),
    }
}

/// Returns the entries that remove an empty directory. While operations below it are queued, the remote still shows
/// it, so its removal is queued, too.
fn remove_directory(ledger: &mut Ledger, path: &PlainPath) -> Vec<Entry> {
    // Special files that the directory hid, at its path or below it.
    let hidden = ledger.specials_within(path).map(|(path, _)| path);
    let hidden = hidden.chain(ledger.special(path).map(|_| path));
    let mut entries: Vec<_> = hidden.map(|path| Entry::ForgetSpecial { path: path.clone() }).collect();
    if ledger.has_directory(path) {
        entries.push(Entry::ForgetDirectory { path: path.clone() });
    }
    if ledger.queue().overlapping(path).next().is_some() {
        let op = ledger.new_op();
        entries.push(Entry::Queue { op, what: QueuedOp::RemoveDirectory { path: path.clone() } });
    }
    entries
}

/// Returns the entries that move a directory. If the remote has nothing of it, only our own records move.
fn directory_move(
    ledger: &mut Ledger,
    tree: &Tree,
    source: Ino,
    from: &PlainPath,
    to: &PlainPath,
) -> Result<Vec<Entry>, Error> {
    let mut files = Vec::new();
    let mut local = ledger.queue().overlapping(from).chain(ledger.queue().overlapping(to)).next().is_none();
    for ino in tree.below(source) {
        let Ok(file) = tree.file(ino) else { continue };
        match file.file.and_then(|no| ledger.file(no).map(|record| (no, record))) {
            Some((no, record)) if record.remote == Remote::Absent => files.push((no, tree.path(ino)?)),
            _ => local = false,
        }
    }
    if !local {
        let what = QueuedOp::RenameDirectory { from: from.clone(), to: to.clone() };
        // While the operation is queued, the remote's listing is ignored for both names. After a restart, only this
        // entry shows the new name.
        return Ok(vec![Entry::Queue { op: ledger.new_op(), what }, Entry::Directory { path: to.clone() }]);
    }
    let moved = |path: &PlainPath| path.rebase(from, to).ok_or(Error::NotFound);
    let mut entries = Vec::new();
    for (path, special) in ledger.specials_within(from) {
        entries.push(Entry::ForgetSpecial { path: path.clone() });
        entries.push(Entry::Special { path: moved(path)?, special: special.clone() });
    }
    for path in ledger.directories_within(from) {
        entries.push(Entry::ForgetDirectory { path: path.clone() });
        entries.push(Entry::Directory { path: moved(path)? });
    }
    // The directory may have had no entry of its own, because it wasn't empty.
    entries.push(Entry::Directory { path: to.clone() });
    let moves = files.into_iter().map(|(file, path)| Ok(Entry::Move { file, path: Some(moved(&path)?) }));
    entries.extend(moves.collect::<Result<Vec<_>, Error>>()?);
    Ok(entries)
}
