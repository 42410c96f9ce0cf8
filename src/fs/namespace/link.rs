//! `link`: creates a second name. It is a copy that moves no bytes (see [`crate::fs::content::copy`]).

use crate::fs::content::copy::{LOCAL_COPY, Original, Unnamed, fill, frozen_of, state_of};
use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{FileNo, Ino, Special};
use crate::fs::journal::file::{Purpose, Ticket};
use crate::fs::journal::ledger::Entry;
use crate::fs::lock::lock;
use crate::fs::namespace::{Create, Namespace, finished};
use crate::fs::sync::policy::KEPT_HERE;
use crate::fs::tree::inode::{Attr, NewAttrs, Node, Tree, touch};
use crate::store::{DraftState, Stored, stored_now};
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;

impl Namespace {
    /// Creates an empty file and closes it. The attributes count as one kernel reference.
    pub(crate) async fn create_closed(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        let create = Create { exclusive: true, new_attrs, ..Create::default() };
        let (attr, opened) = self.create(parent, name, create).await?;
        self.contents.abandon(opened.handle).await;
        Ok(attr)
    }

    /// Creates a file with the content of another file. The attributes count as one kernel reference.
    pub(crate) async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.check_new_name(parent, name)?;
        let path = lock(&self.tree).path(parent)?.join(name)?;
        if self.policy.keeps(&path) {
            return Err(KEPT_HERE);
        }
        if self.directories.find_child(parent, name).await?.is_some() {
            return Err(Error::Exists);
        }
        let overrides = {
            let tree = lock(&self.tree);
            if is_git_objects(&tree, parent) {
                return Err(Error::NotPermitted(
                    "git takes a link that is a copy for an attack, and does without where there are none",
                ));
            }
            tree.node(original)?.overrides
        };
        if let Some(link) = self.symbolic_link(original)? {
            let new_attrs = NewAttrs { mode: None, owner: overrides.uid.zip(overrides.gid) };
            return self.create_special(parent, name, link, new_attrs).await;
        }
        self.directories.measure(&[original]).await?;
        let edit = match self.contents.original(original)? {
            Original::Stored(stored, mtime) => {
                self.contents.check_format_of(&stored, &path)?;
                self.link_stored(original, parent, name, stored, mtime)?
            }
            Original::Local(edit) => self.link_local(original, parent, name, &edit).await?,
        };
        self.schedule.touch(&edit);
        let ticket = edit.settle(&self.journal, &self.pool).await?;
        self.journal.written(ticket).await?;
        let ino = edit.ino().ok_or(Error::NotFound)?;
        let mut tree = lock(&self.tree);
        tree.remember(ino);
        tree.attr(ino, &self.options)
    }

    /// Returns the symbolic link at an inode, or `None` for a regular file. A copy of a symbolic link serves as well
    /// as the original, because links never change. For a pipe, socket or device this fails: a second one would be a
    /// different object.
    fn symbolic_link(&self, ino: Ino) -> Result<Option<Special>, Error> {
        match lock(&self.tree).node(ino)?.as_special() {
            None => Ok(None),
            Some(link @ Special::Link(_)) => Ok(Some(link.clone())),
            Some(_) => Err(Error::NotPermitted("a pipe, socket or device has one name")),
        }
    }

    fn link_stored(
        &self,
        original: Ino,
        parent: Ino,
        name: &str,
        stored: Stored,
        mtime: Option<OffsetDateTime>,
    ) -> Result<Arc<Edit>, Error> {
        let mtime = mtime.unwrap_or_else(stored_now);
        let state = state_of(&stored);
        let draft = self.view.draft(state.clone(), self.pool.clone())?;
        let mut tree = lock(&self.tree);
        let (ticket, file) = self.name_copy(&tree, parent, name, mtime, state, |file| {
            vec![
                Entry::Freeze { file, generation: 1, mtime, frozen: frozen_of(&stored) },
                Entry::Uploaded { file, generation: 1, stored },
            ]
        })?;
        let edit = Arc::new(Edit::new(file, draft, mtime, 1, 0, ticket));
        self.insert_copy(&mut tree, original, parent, name, edit)
    }

    /// Links a file whose content isn't at the remote, by copying it. The copy gets its name when it is complete.
    async fn link_local(&self, original: Ino, parent: Ino, name: &str, from: &Edit) -> Result<Arc<Edit>, Error> {
        // Space is reserved before the draft is locked. While the lock is held, the original couldn't be uploaded to
        // free space.
        let len = if from.len() <= LOCAL_COPY { from.len() } else { 0 };
        let _room = self.quota.reserve_space(len, len).await?;
        let reader = from.reader().await;
        let source = reader.as_ref().filter(|source| source.len() <= LOCAL_COPY).ok_or(Error::NotSupported)?;
        let mut draft = self.view.draft(DraftState::default(), self.pool.clone())?;
        let filled = fill(&mut draft, source).await;
        let delta = filled.as_ref().map_or_else(|_| draft.abandon(), Clone::clone);
        let mut unnamed = Unnamed { pool: &self.pool, delta };
        filled?;
        let mtime = from.mtime();
        let mut tree = lock(&self.tree);
        let (ticket, file) = self.name_copy(&tree, parent, name, mtime, DraftState::default(), |file| {
            let delta = unnamed.delta.clone()?;
            let checksums = delta.placed.iter().map(|(_, record)| self.pool.checksum(record.slot)).collect();
            Some(Entry::Extend { file, generation: 1, mtime, delta: Some(delta), checksums })
        })?;
        unnamed.delta = None;
        let edit = Arc::new(Edit::new(file, draft, mtime, 1, 0, ticket));
        self.insert_copy(&mut tree, original, parent, name, edit)
    }

    /// Journals a new file with its content, as one record.
    fn name_copy<C: IntoIterator<Item = Entry>>(
        &self,
        tree: &Tree,
        parent: Ino,
        name: &str,
        mtime: OffsetDateTime,
        state: DraftState,
        content: impl FnOnce(FileNo) -> C,
    ) -> Result<(Ticket, FileNo), Error> {
        if tree.child(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let path = tree.path(parent)?.join(name)?;
        let (ticket, (file, cancelled)) = self.journal.transact(Purpose::Work, |ledger| {
            let file = ledger.new_file();
            let (remote, cancelled) = self.take_over(ledger, &path);
            let mut entries: Vec<_> = finished(cancelled).collect();
            entries.push(Entry::Track { file, path: Some(path.clone()), remote, mtime: None });
            entries.push(Entry::Begin { file, state, generation: 1, mtime });
            entries.extend(content(file));
            Ok((entries, (file, cancelled)))
        })?;
        self.op_cancelled(cancelled);
        Ok((ticket, file))
    }

    /// Inserts a copy into the tree. It gets the attributes of its original. The original counts as changed.
    fn insert_copy(
        &self,
        tree: &mut Tree,
        original: Ino,
        parent: Ino,
        name: &str,
        edit: Arc<Edit>,
    ) -> Result<Arc<Edit>, Error> {
        self.schedule.add(edit.clone());
        let mut node = Node::edited(edit.clone());
        let overrides = &mut tree.node_mut(original)?.overrides;
        overrides.ctime = Some(SystemTime::now());
        node.overrides = *overrides;
        let ino = tree.insert(parent, name, node)?;
        edit.set_ino(ino);
        touch(tree, parent);
        Ok(edit)
    }
}

/// Returns true if a directory belongs to the object store of a git repository. There, `git clone` aborts if a link
/// turns out to be a copy, but it copies by itself if links are refused. Git also links each new object to its final
/// name. If that is refused, it renames the object, which costs nothing.
fn is_git_objects(tree: &Tree, directory: Ino) -> bool {
    let mut at = directory;
    while let Ok(Some((parent, name))) = tree.node(at).map(|node| &node.place) {
        if name == "objects" && tree.child(*parent, "HEAD").is_ok_and(|head| head.is_some()) {
            return true;
        }
        at = *parent;
    }
    false
}
