//! Copies that move no bytes: `link`, and `copy_file_range` of a whole file.
//!
//! A content hash may be committed at any number of paths. So a copy of what the source has is a draft over that version, frozen and uploaded from
//! the start; its commit sends a name and a hash. There are no hard links: a bucket has names of contents, not of files, so what `link` makes
//! is a file of its own, and a later change of one is none of the other. What the source doesn't have yet is copied here.
//!
//! A large file with a key must be marked as shared before a second name has it, since edits in place would keep its file id (format spec,
//! section 4); the view does that only for copies that it makes itself, so those are left to whoever copies by reading and writing.

use crate::fs::content::edit::Edit;
use crate::fs::handle::HandleNo;
use crate::fs::journal::file::{Purpose, Ticket};
use crate::fs::journal::ledger::{Entry, FileNo};
use crate::fs::namespace::{finished, touch};
use crate::fs::slots::Pool;
use crate::fs::special::Special;
use crate::fs::sync::policy::KEPT_HERE;
use crate::fs::tree::inode::{Attr, Birth, Ino, Node, Tree};
use crate::fs::{Create, Error, Vfs, lock};
use crate::store::{Delta, Draft, DraftState, Format, Frozen, Len, PlainPath, Side, SlotIo, Stored, stored_now};
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;

/// The largest file that the source doesn't have and `link` copies (64 MiB): above it the caller is told to do that itself.
const LOCAL_COPY: u64 = 64 << 20;
/// Up to this stored size (64 MiB) every version with a key has a file id of its own (format spec, section 4), so a copy needs no mark.
const UNMARKED: u64 = 64 << 20;
/// Longest name in format 1, bytes (format spec, section 2).
const NAME_MAX_V1: usize = 194;
/// Bytes copied at once there.
const STEP: usize = 1 << 20;

/// What a copy is made of.
enum Original {
    /// What the source has.
    Stored(Stored, Option<OffsetDateTime>),
    /// What only this machine has.
    Local(Arc<Edit>),
}

impl Vfs {
    /// Makes an empty file and closes it. The attributes are a reference of the kernel.
    pub async fn make_closed(&self, parent: Ino, name: &str, birth: Birth) -> Result<Attr, Error> {
        let create = Create { exclusive: true, birth, ..Create::default() };
        let (attr, opened) = self.create(parent, name, create).await?;
        self.abandon(opened.handle).await;
        Ok(attr)
    }

    /// Makes a file with the content of another. The attributes are a reference of the kernel.
    pub async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        self.check_new_name(parent, name)?;
        let path = lock(&self.tree).path(parent)?.join(name)?;
        if self.policy().keeps(&path) {
            return Err(KEPT_HERE);
        }
        if self.find_child(parent, name).await?.is_some() {
            return Err(Error::Exists);
        }
        let looks = {
            let tree = lock(&self.tree);
            if is_git_objects(&tree, parent) {
                return Err(Error::NotPermitted(
                    "git takes a link that is a copy for an attack, and does without where there are none",
                ));
            }
            tree.node(original)?.looks
        };
        if let Some(link) = self.symbolic_link(original)? {
            let birth = Birth { mode: None, owner: looks.uid.zip(looks.gid) };
            return self.make_special(parent, name, link, birth).await;
        }
        self.measure(&[original]).await?;
        let edit = match self.original(original)? {
            Original::Stored(stored, mtime) => {
                self.check_format_of(&stored, &path)?;
                self.link_stored(original, parent, name, stored, mtime)?
            }
            Original::Local(edit) => self.link_local(original, parent, name, &edit).await?,
        };
        self.flusher.touch(&edit);
        let ticket = edit.settle(&self.journal, &self.pool).await?;
        self.journal.written(ticket).await?;
        let ino = edit.ino().ok_or(Error::NotFound)?;
        let mut tree = lock(&self.tree);
        tree.remember(ino);
        tree.attr(ino, &self.options)
    }

    /// Checks a copy's path: what is in format 1 keeps it, and with it the limits of its names.
    fn check_format_of(&self, stored: &Stored, path: &PlainPath) -> Result<(), Error> {
        if stored.version.side != Side::Encrypted(Format::V1) {
            return Ok(());
        }
        let fits = path.split().is_some_and(|(_, name)| name.len() <= NAME_MAX_V1);
        let fits = fits && self.view.check_format_1(path).is_ok();
        if fits { Ok(()) } else { Err(Error::NotSupported) }
    }

    /// A symbolic link, which never changes, is as good as its copy; a second pipe, socket or device would be another one.
    fn symbolic_link(&self, ino: Ino) -> Result<Option<Special>, Error> {
        match lock(&self.tree).node(ino)?.as_special() {
            None => Ok(None),
            Some(link @ Special::Link(_)) => Ok(Some(link.clone())),
            Some(_) => Err(Error::NotPermitted("a pipe, socket or device has one name")),
        }
    }

    fn original(&self, ino: Ino) -> Result<Original, Error> {
        let tree = lock(&self.tree);
        let file = tree.file(ino)?;
        let dirty = file.edit.clone().filter(|edit| edit.is_dirty());
        if let Some(edit) = dirty {
            // Streaming, a file that isn't closed may still fail.
            if !self.is_advanced() {
                return Err(Error::NotSupported);
            }
            return Ok(Original::Local(edit));
        }
        let (Some(version), Len::Known(plain_len)) = (file.version, file.len) else { return Err(Error::Damaged) };
        let encrypted = matches!(version.side, Side::Encrypted(_));
        if encrypted != self.view.key_id().is_some() || (encrypted && version.stored_len > UNMARKED) {
            return Err(Error::NotSupported);
        }
        Ok(Original::Stored(Stored { version, plain_len }, file.mtime))
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
        self.hang_copy(&mut tree, original, parent, name, edit)
    }

    /// Copies what isn't at the source. It gets its name when it is whole.
    async fn link_local(&self, original: Ino, parent: Ino, name: &str, from: &Edit) -> Result<Arc<Edit>, Error> {
        // Before the lock, without which the original couldn't be uploaded.
        let len = if from.len() <= LOCAL_COPY { from.len() } else { 0 };
        let _room = self.reserve_room(len, len).await?;
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
        self.hang_copy(&mut tree, original, parent, name, edit)
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

    /// Hangs a copy into the tree; it looks like what it was made of, which counts as changed.
    fn hang_copy(
        &self,
        tree: &mut Tree,
        original: Ino,
        parent: Ino,
        name: &str,
        edit: Arc<Edit>,
    ) -> Result<Arc<Edit>, Error> {
        self.flusher.add(edit.clone());
        let mut node = Node::edited(edit.clone());
        let looks = &mut tree.node_mut(original)?.looks;
        looks.ctime = Some(SystemTime::now());
        node.looks = *looks;
        let ino = tree.insert(parent, name, node)?;
        edit.set_ino(ino);
        touch(tree, parent);
        Ok(edit)
    }

    /// Copies the first `len` bytes of a file into another, if that is all of it and the other is empty, without moving them; else
    /// `NotSupported`. Gives how many that were.
    pub async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error> {
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        if !from.access.read || !to.access.write {
            return Err(Error::BadHandle);
        }
        self.check_writable()?;
        let Original::Stored(stored, _) = self.original(from.ino)? else { return Err(Error::NotSupported) };
        let copied = u32::try_from(stored.plain_len).ok().filter(|copied| *copied > 0 && u64::from(*copied) <= len);
        let copied = copied.ok_or(Error::NotSupported)?;
        let path = lock(&self.tree).path(to.ino).map_err(|_| Error::NotSupported)?;
        self.check_format_of(&stored, &path)?;
        let edit = self.edit(to.ino).await?;
        if self.policy().keeps(&path) {
            return Err(Error::NotSupported);
        }
        let mut guard = edit.writer().await;
        let draft = guard.as_mut().filter(|draft| draft.is_empty()).ok_or(Error::NotSupported)?;
        // A commit that is under way would be taken for that of the copy.
        if self.flusher.is_under_way(edit.file) || !self.is_advanced() {
            return Err(Error::NotSupported);
        }
        edit.settle_locked(draft, &self.journal, &self.pool).await?;
        let copy = self.view.draft(state_of(&stored), self.pool.clone())?;
        edit.become_copy(&copy, stored, frozen_of(&stored), &self.journal)?;
        *draft = copy;
        drop(guard);
        self.changed(to.ino, &edit);
        Ok(copied)
    }
}

/// Whether a directory belongs to the object store of a git repository. There `git clone` gives up over a link that isn't one, but copies
/// where links are refused; and every new object is linked to its final name, or, where that is refused, renamed, which costs nothing.
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

/// A draft that is a version, untouched.
fn state_of(stored: &Stored) -> DraftState {
    let base = Some((stored.version, stored.plain_len));
    DraftState { len: stored.plain_len, base, ..DraftState::default() }
}

/// Stands for a version whose bytes nobody will ask for, since the source has them.
fn frozen_of(stored: &Stored) -> Arc<Frozen> {
    Arc::new(Frozen { header: None, len: stored.plain_len, records: Vec::new() })
}

/// Brings all of `source` into an empty draft.
async fn fill(draft: &mut Draft, source: &Draft) -> Result<Option<Delta>, Error> {
    let mut at = 0;
    while at < source.len() {
        let bytes = source.read_at(at, STEP).await?;
        draft.write_at(at, &bytes).await?;
        at += bytes.len() as u64;
    }
    Ok(draft.settle().await?)
}

/// Slots that were filled and that no journal entry names; given back unless one does.
struct Unnamed<'a> {
    pool: &'a Pool,
    delta: Option<Delta>,
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        let Some(delta) = self.delta.take() else { return };
        let placed = delta.placed.iter().map(|(_, record)| record.slot);
        placed.chain(delta.freed).for_each(|slot| self.pool.cancel(slot));
    }
}
