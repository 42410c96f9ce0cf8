//! Names: create, mkdir, unlink, rmdir, rename.
//!
//! Each looks at the source first (bounded, no locks held), then decides, journals and changes the tree in one go under the tree's and the
//! journal's locks, and answers once the journal's record is written. The source is changed later, by the schedule.

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
use crate::fs::slots::Pool;
use crate::fs::sync::policy::KEPT_HERE;
use crate::fs::sync::policy::Policy;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::inode::touch;
use crate::fs::tree::inode::{Attr, Birth, Body, Cached, Node, Tree};
use crate::fs::tree::keep_directory;
use crate::fs::tree::listing::Directories;
use crate::fs::tree::twins::Twins;
use crate::store::View;
use crate::store::{DraftState, Format, Len, PlainPath, Side, stored_now};
mod link;
mod special;

use std::sync::Arc;
use std::time::SystemTime;

/// Times that an operation looks again because somebody changed the directory meanwhile.
const ATTEMPTS: u32 = 8;

/// What `create` was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    /// How to open it.
    pub access: Access,
    /// Fail where the name is taken.
    pub exclusive: bool,
    /// What a new file gets.
    pub birth: Birth,
}

/// What happens to a file's record when its name goes.
struct Going {
    entries: Vec<Entry>,
    /// What the source holds at the name, for whoever takes it over; `None`: the queue has to sort that out.
    leaves: Option<Remote>,
}

/// The entries of a file's rename, and what they are about.
struct FileMove {
    file: FileNo,
    /// The file that was at the target.
    target: Option<FileNo>,
    entries: Vec<Entry>,
    /// A queued removal at the target, which the entries cancel.
    cancelled: Option<OpNo>,
}

/// The ticket of a move, and the local content of what it replaced.
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
    /// Whether a new name may be made.
    pub(crate) fn check_new_name(&self, parent: Ino, name: &str) -> Result<(), Error> {
        self.gate.check_writable()?;
        let parent = lock(&self.tree).path(parent)?;
        Ok(self.view.check_name(&parent, name)?)
    }

    /// Creates and opens a file, or opens the one that is there. The attributes are a reference of the kernel.
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
            if let Some((ino, edit, ticket)) = self.make_file(parent, name, create)? {
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

    /// Makes an empty file that is open; `None` where the name was taken meanwhile.
    fn make_file(&self, parent: Ino, name: &str, create: Create) -> Result<Option<(Ino, Arc<Edit>, Ticket)>, Error> {
        let mut tree = lock(&self.tree);
        if tree.child(parent, name)?.is_some() {
            return Ok(None);
        }
        let path = tree.path(parent)?.join(name)?;
        let looks = tree.looks_for(parent, create.birth, false, &self.options)?;
        let mtime = stored_now();
        let draft = self.view.draft(DraftState::default(), self.pool.clone())?;
        let keeps = self.policy.keeps(&path);
        let (ticket, (file, cancelled)) = self.journal.transact(Purpose::Work, |ledger| {
            let file = ledger.new_file();
            // What is kept here replaces nothing at the source: a removal that waits there is carried out.
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
        node.looks = looks;
        let ino = tree.insert(parent, name, node)?;
        edit.set_ino(ino);
        tree.opened(ino, create.access.write)?;
        touch(&mut tree, parent);
        Ok(Some((ino, edit, ticket)))
    }

    /// Returns what the Hub has at `path`, for a new file at a path that has no file here. If the only queued operation
    /// there is a removal that isn't being carried out, returns that one, too. The caller appends [`finished`] for it,
    /// and then reports it with [`Self::op_cancelled`]. The new file then replaces the old one in one step, and no
    /// crash leaves neither. A damaged file can't be replaced, so its removal is carried out first.
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

    /// Reports to the flusher that the journal has cancelled an operation: nothing of it is tried again or counted.
    pub(crate) fn op_cancelled(&self, cancelled: Option<OpNo>) {
        cancelled.into_iter().for_each(|op| self.schedule.op_finished(op, None));
    }

    /// Makes a directory; it exists here only until something in it is committed. The attributes are a reference of the kernel.
    pub(crate) async fn mkdir(&self, parent: Ino, name: &str, birth: Birth) -> Result<Attr, Error> {
        self.make_here(parent, name, birth, Node::directory(false), |path| Entry::Directory { path }).await
    }

    /// Makes what the source has no object for; `entry` keeps it. The attributes are a reference of the kernel.
    pub(crate) async fn make_here(
        &self,
        parent: Ino,
        name: &str,
        birth: Birth,
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
            node.looks = tree.looks_for(parent, birth, node.is_directory(), &self.options)?;
            if node.is_directory() {
                self.twins.note_new_folder(path.clone());
            }
            let ticket = self.journal.append(Purpose::Work, vec![entry(path)])?;
            if let Ok(directory) = node.as_directory_mut() {
                // The listing above has shown that the source has nothing there.
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

    /// Removes a file's name. What is open stays readable.
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

    /// Journals the removal of a file that may go; what is left is to take it out of the tree.
    fn unlink_file(&self, tree: &mut Tree, parent: Ino, name: &str, ino: Ino) -> Result<Moved, Error> {
        let path = tree.path(ino)?;
        let (ticket, file) = self.journal.transact(Purpose::Work, |ledger| {
            let (file, mut entries) = self.remove_file(ledger, tree, ino, &path)?;
            // A special file that was hidden by this one goes with it.
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

    /// Entries that remove a file, here and at the source.
    fn remove_file(
        &self,
        ledger: &mut Ledger,
        tree: &Tree,
        ino: Ino,
        path: &PlainPath,
    ) -> Result<(Option<FileNo>, Vec<Entry>), Error> {
        let (file, going) = self.go(ledger, tree, ino, path)?;
        let mut entries = going.entries;
        if going.leaves.is_none_or(|remote| remote != Remote::Absent) {
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

    /// What becomes of a file whose name is about to go: entries, and what the source holds there.
    fn go(&self, ledger: &Ledger, tree: &Tree, ino: Ino, path: &PlainPath) -> Result<(Option<FileNo>, Going), Error> {
        let file = tree.file(ino)?;
        let known = file.file.and_then(|no| ledger.file(no).map(|record| (no, record)));
        let Some((no, record)) = known else {
            let queued = ledger.queue().overlapping(path).next().is_some();
            let leaves = (!queued).then(|| remote_of(file.version, file.len));
            return Ok((None, Going { entries: Vec::new(), leaves }));
        };
        // While operations of this file are queued, what lies at the name depends on them.
        let leaves = (!ledger.is_mentioned(no)).then_some(record.remote);
        let entries = leaves.map(|_| Entry::Move { file: no, path: None }).into_iter().collect();
        Ok((Some(no), Going { entries, leaves }))
    }

    /// The file's number in the ledger, and the entries that make it known.
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

    /// After a file lost its name: its local content isn't flushed any more, and ends when nobody has it open.
    async fn gone(&self, ino: Ino, edit: Option<Arc<Edit>>) {
        let Some(edit) = edit else { return };
        self.schedule.forget(edit.file);
        if let Err(error) = self.contents.end_if_idle(ino, &edit).await {
            tracing::warn!(%error, "cannot give up the staging of a removed file");
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

    /// Moves a file or a directory. `replace`: what is at the target goes, if it is of the same kind and, for a directory, empty.
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
        // The source moves only what it can prove to be a file's content.
        if source.edit.is_none() && (source.version.is_none() || !matches!(source.len, Len::Known(_))) {
            return Err(Error::Damaged);
        }
        let target_file = plan.target_file(&tree);
        let replaced = match target_file {
            Some(target) => {
                self.check_removable(&tree, target)?;
                let target = tree.file(target)?;
                // Nothing overwrites a damaged file silently (format spec, section 5).
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

    /// Moves what only this machine has. A file in its way is removed.
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

    /// Entries that move a file. One that the source has never seen moves here only: it is committed at the new path and nowhere else.
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
        let going = replaced.map(|target| self.go(ledger, tree, target, to)).transpose()?;
        let keeps = self.policy.keeps(to);
        if keeps && !(unseen && going.as_ref().is_none_or(|(_, going)| going.leaves == Some(Remote::Absent))) {
            return Err(KEPT_HERE);
        }
        let taken = match &going {
            Some((_, going)) => going.leaves.map(|remote| (remote.replaced(), None)),
            None if keeps => Some((Remote::Absent, None)),
            None => Some(self.take_over(ledger, to)),
        };
        if let (true, Some((remote, cancelled))) = (unseen, taken) {
            entries.extend(finished(cancelled));
            let target_no = going.and_then(|(target, going)| {
                entries.extend(going.entries);
                // The place is the other file's now; what is left of this one is local.
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

    /// Whether everything below a directory can be moved: nothing that is read-only or unreadable, and every name storable at its new place.
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

    /// Whether a file can be stored at its new place in the format that it has: a rename changes no content.
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

    /// Decides again about the local content of a file that was moved, or of all files below a folder that was.
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

/// A rename, with what was found at both names.
struct Move<'a> {
    parent: Ino,
    name: &'a str,
    to_parent: Ino,
    to_name: &'a str,
    source: Ino,
    target: Option<Ino>,
}

impl Move<'_> {
    /// Whether what was found is still there, and the kinds fit.
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

    /// What is at the target, where that is a file and not just special.
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
        node.looks.ctime = Some(SystemTime::now());
        if let Ok(file) = node.as_file_mut() {
            file.keep_mtime(file.mtime);
        }
        Ok(())
    }
}

/// Returns the entry that takes a cancelled operation out of the queue.
pub(crate) fn finished(cancelled: Option<OpNo>) -> impl Iterator<Item = Entry> {
    cancelled.into_iter().map(|op| Entry::Finish { op })
}

/// Returns true for a file that was created here and that the remote has never had: nothing is lost elsewhere if
/// it goes while it is being written.
fn is_uncommitted(tree: &Tree, ino: Ino) -> bool {
    tree.file(ino).is_ok_and(|file| !file.read_only && file.edit.is_some() && file.version.is_none())
}

/// A name of an inode came or went.
fn touch_node(tree: &mut Tree, ino: Ino) {
    if let Ok(node) = tree.node_mut(ino) {
        node.looks.ctime = Some(SystemTime::now());
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

/// Entries for an empty directory that goes. While operations below it are queued, the source still shows it.
fn remove_directory(ledger: &mut Ledger, path: &PlainPath) -> Vec<Entry> {
    // Special files that were hidden by it, or below it.
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

/// Entries that move a directory. Where the source has nothing of it, only our own notes move.
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
        // While the operation is queued the source's word doesn't count for either name: after a restart only this shows the new one.
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
    // It may have had no note of its own because of what is in it.
    entries.push(Entry::Directory { path: to.clone() });
    for (file, path) in files {
        entries.push(Entry::Move { file, path: Some(moved(&path)?) });
    }
    Ok(entries)
}
