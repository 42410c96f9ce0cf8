//! Opens, writes and truncates files, and keeps the promises of `close` and `fsync`.
//!
//! There are two ways of writing. *Advanced* writing (always used with a key) accepts any offset: data is staged and
//! committed later. *Streaming* is for a plain mount without `--advanced-writes`. It accepts only a new or emptied
//! file, which is written in order. It is committed when it is closed, and `close` reports errors of the commit. The
//! file may be extended before its first write. While the file is open for writing, nothing else uploads it. If it is
//! removed before it was closed, the remote never sees it. Both ways use the same staging from the first byte.

use crate::fs::content::Contents;
use crate::fs::content::edit::{Edit, EditGuard};
use crate::fs::errno::Error;
use crate::fs::handle::{Access, FileHandle, Opened};
use crate::fs::ids::{HandleNo, Ino};
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::track;
use crate::fs::journal::ledger::{Entry, Remote};
use crate::fs::lock::lock;
use crate::fs::tree::inode::{Cached, File, Node, Tree};
use crate::store::{DraftState, Len};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// Largest size of a file (8 TiB). A gap before a write past the end is stored as zeros, so a larger file can't be
/// intended.
const MAX_LEN: u64 = 8 << 40;
/// Tries to start an edit while listings bring other versions of the file.
const MEASURE_TRIES: u32 = 16;
/// Longest hole in the middle of a file (1 GiB). A hole is stored as zeros, which are written.
const MAX_HOLE: u64 = 1 << 30;
/// The zeros of one write to a hole.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

const RESIZED: Error = Error::NotPermitted("a file is resized without --advanced-writes");

/// The operation of `fallocate` on a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Extend the file to at least this size.
    Extend,
    /// Do nothing visible: no space is reserved.
    Reserve,
    /// Fill it with zeros.
    Zero {
        /// Don't extend the file.
        keep_size: bool,
    },
}

impl Contents {
    /// Returns true if files may be written at any offset.
    pub(crate) fn is_advanced(&self) -> bool {
        self.options.advanced_writes || self.view.key_id().is_some()
    }

    /// Opens a file.
    pub(crate) async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        if access.changes() {
            self.gate.check_writable()?;
        }
        self.directories.measure(&[ino]).await?;
        self.register_open(ino, access)?;
        let opened = self.open_registered(ino, access).await;
        tracing::debug!(
            ino = ino.0,
            path = self.log_path(ino),
            read = access.read,
            write = access.write,
            truncate = access.truncate,
            error = opened.as_ref().err().map(tracing::field::display),
            "open"
        );
        if opened.is_err() {
            lock(&self.tree).closed(ino, access.write);
        }
        opened
    }

    /// Returns the stored name of a file, for the log.
    fn log_path(&self, ino: Ino) -> String {
        let path = lock(&self.tree).path(ino);
        path.map_or_else(|_| "(no name)".to_owned(), |path| self.view.log_name(&path))
    }

    fn register_open(&self, ino: Ino, access: Access) -> Result<(), Error> {
        let mut tree = lock(&self.tree);
        if access.changes() && tree.node(ino)?.lost {
            return Err(Error::Stale);
        }
        let file = tree.file(ino)?;
        if file.edit.is_none() && (file.len == Len::Damaged || file.version.is_none()) {
            return Err(Error::Damaged);
        }
        if file.read_only && access.changes() {
            return Err(Error::Denied("plaintext files of a mount with a key are read-only"));
        }
        if access.write && !access.truncate && !self.is_advanced() && !is_new(file) {
            return Err(Error::NotPermitted("an existing file is opened for writing without --advanced-writes"));
        }
        tree.opened(ino, access.write)
    }

    async fn open_registered(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        let handle = FileHandle::new(ino, access);
        if access.truncate {
            self.cut(ino, 0).await?;
        } else if access.read && lock(&self.tree).file(ino)?.edit.is_none() {
            // The version is opened now, so that the handle stays with it, and so that `open` fails if the file can't
            // be read.
            self.pin(&handle).await?;
        }
        let mut tree = lock(&self.tree);
        let file = tree.file_mut(ino)?;
        let now = match (&file.edit, file.version) {
            (Some(edit), _) => Some(Cached::Edit(edit.file)),
            (None, version) => version.map(Cached::Version),
        };
        Ok(Opened::new(self.handles.add_file(handle), &mut file.cached, now))
    }

    /// Writes all of `data`. With `append`, `offset` is ignored.
    pub(crate) async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        let handle = self.handles.file(handle)?;
        if !handle.access.write {
            return Err(Error::BadHandle);
        }
        self.gate.check_writable()?;
        loop {
            let edit = self.edit(handle.ino).await?;
            let start = if handle.access.append { edit.len() } else { offset };
            let end = start.saturating_add(data.len() as u64).max(edit.len());
            // A gap before the data is stored as zeros.
            let bytes = start.saturating_add(data.len() as u64) - start.min(edit.len());
            let room = self.quota.make_space(&edit, bytes, end).await?;
            let Some(mut guard) = edit.write_guard(&self.journal, &self.pool).await else { continue };
            let offset = if handle.access.append { guard.len() } else { offset };
            let end = offset.checked_add(data.len() as u64).filter(|end| *end <= MAX_LEN);
            end.ok_or(Error::TooLarge)?;
            let in_order = handle.access.append || offset == edit.next_write();
            if !self.is_advanced() && !in_order {
                return Err(Error::Invalid("without --advanced-writes a file is written in order"));
            }
            let outcome = guard.write(offset, &data).await;
            if !self.is_advanced() && outcome.is_ok() {
                guard.set_next_write(offset + data.len() as u64);
            }
            guard.keep_promise(room);
            guard.resize_promise();
            drop(guard);
            self.changed(handle.ino, &edit);
            return outcome.map(|()| data.len());
        }
    }

    /// Sets the size of a file.
    pub(crate) async fn truncate(&self, ino: Ino, len: u64) -> Result<(), Error> {
        self.gate.check_writable()?;
        if len > MAX_LEN {
            return Err(Error::TooLarge);
        }
        self.directories.measure(&[ino]).await?;
        {
            let tree = lock(&self.tree);
            let node = tree.node(ino)?;
            if node.lost && node.writers == 0 {
                return Err(Error::Stale);
            }
            let file = tree.file(ino)?;
            if file.read_only {
                return Err(Error::Denied("plaintext files of a mount with a key are read-only"));
            }
            let is_unwritten = file.edit.as_ref().is_some_and(|edit| edit.is_unwritten());
            if len != 0 && file.size().0 != len && !self.is_advanced() && !is_unwritten {
                return Err(RESIZED);
            }
        }
        self.cut(ino, len).await
    }

    /// Changes the size, and waits until a crash can't undo the change.
    async fn cut(&self, ino: Ino, len: u64) -> Result<(), Error> {
        loop {
            let edit = self.edit(ino).await?;
            let room = self.quota.make_space(&edit, len.saturating_sub(edit.len()), len).await?;
            let Some(mut guard) = edit.write_guard(&self.journal, &self.pool).await else { continue };
            // An unchanged size is no change, except for an emptied file: that is a new version, whatever its size
            // was before.
            if guard.len() == len && !(len == 0 && edit.generation() == 0) {
                return Ok(());
            }
            if len != 0 && !self.is_advanced() && !edit.is_unwritten() {
                return Err(RESIZED);
            }
            guard.truncate(len).await?;
            if !self.is_advanced() {
                guard.set_next_write(0);
            }
            guard.keep_promise(room);
            let ticket = guard.settle().await;
            drop(guard);
            self.changed(ino, &edit);
            return self.journal.written(ticket?).await;
        }
    }

    /// Fills a range with zeros, or extends the file. Reserves no space: a later write may still find the disk full.
    pub(crate) async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        let handle = self.handles.file(handle)?;
        if !handle.access.write {
            return Err(Error::BadHandle);
        }
        self.gate.check_writable()?;
        if !self.is_advanced() {
            return Err(Error::NotSupported);
        }
        let end = offset.checked_add(len).filter(|end| *end <= MAX_LEN).ok_or(Error::TooLarge)?;
        if how == Allocate::Reserve {
            return Ok(());
        }
        loop {
            let edit = self.edit(handle.ino).await?;
            let old = edit.len();
            let bytes = match how {
                Allocate::Zero { keep_size: true } => end.min(old).saturating_sub(offset),
                Allocate::Zero { .. } => end - offset.min(old),
                Allocate::Extend | Allocate::Reserve => end.saturating_sub(old),
            };
            let longest = if how == (Allocate::Zero { keep_size: true }) { old } else { end.max(old) };
            let room = self.quota.make_space(&edit, bytes, longest).await?;
            let Some(mut guard) = edit.write_guard(&self.journal, &self.pool).await else { continue };
            let outcome = reshape(&mut guard, offset, end, how).await;
            // Also if it failed halfway: part of the change may be there.
            guard.change();
            guard.keep_promise(room);
            let ticket = guard.settle().await;
            drop(guard);
            self.changed(handle.ino, &edit);
            outcome?;
            return self.journal.written(ticket?).await;
        }
    }

    /// Updates times and schedule after a change of a file's content.
    pub(crate) fn changed(&self, ino: Ino, edit: &Arc<Edit>) {
        self.schedule.wrote(edit);
        let is_due = {
            let mut tree = lock(&self.tree);
            let node = tree.node_mut(ino);
            node.map(|node| {
                node.overrides.mtime = None;
                node.overrides.ctime = None;
                node.place.is_some() && (self.is_advanced() || node.writers == 0)
            })
        };
        if is_due.unwrap_or(false) {
            self.schedule.touch(edit);
        }
    }

    /// Returns the local edit of a file. Starts one from the remote version if there is none.
    pub(crate) async fn edit(&self, ino: Ino) -> Result<Arc<Edit>, Error> {
        for _ in 0..MEASURE_TRIES {
            self.directories.measure(&[ino]).await?;
            if let Some(edit) = self.begin_edit(ino)? {
                return Ok(edit);
            }
        }
        Err(Error::TimedOut)
    }

    /// Does the same for a file whose size is known. `None`: a listing has just brought another version, whose size is
    /// not known yet.
    pub(crate) fn begin_edit(&self, ino: Ino) -> Result<Option<Arc<Edit>>, Error> {
        let mut tree = lock(&self.tree);
        let path = tree.path(ino).ok();
        let has_name = path.is_some();
        let file = tree.file_mut(ino)?;
        if let Some(edit) = &file.edit {
            return Ok(Some(edit.clone()));
        }
        let (version, len) = match (file.version, file.len) {
            (Some(version), Len::Known(len)) => (version, len),
            (Some(_), Len::Unread) => return Ok(None),
            _ => return Err(Error::Damaged),
        };
        let mtime = file.mtime.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let state = DraftState { len, base: Some((version, len)), ..DraftState::default() };
        let draft = self.view.draft(state.clone(), self.pool.clone())?;
        let known = file.file;
        let (ticket, no) = self.journal.transact(Purpose::Work, |ledger| {
            let (no, mut entries) = track(ledger, known, path, Remote::Own(version, len), Some(mtime));
            entries.push(Entry::Begin { file: no, state, generation: 0, mtime });
            Ok((entries, no))
        })?;
        let edit = Arc::new(Edit::new(no, draft, mtime, 0, 0, ticket));
        edit.set_ino(ino);
        file.file = Some(no);
        file.edit = Some(edit.clone());
        self.schedule.add(edit.clone());
        if !has_name {
            edit.count_in(None);
        }
        Ok(Some(edit))
    }

    /// Returns the time that the remote may take to store what a handle has written: the deadline, plus one second
    /// per MiB.
    pub(crate) fn timeout(&self, handle: HandleNo) -> Duration {
        let len =
            self.handles.file(handle).ok().and_then(|handle| Some(lock(&self.tree).file(handle.ino).ok()?.size().0));
        self.options.reply_timeout().saturating_add(Duration::from_secs(len.unwrap_or(0) >> 20))
    }

    /// Persists all writes, as every `close` of a descriptor does. After that, `kill -9` doesn't lose them. In
    /// streaming mode, commits them to the remote.
    pub(crate) async fn flush_file(&self, handle: HandleNo) -> Result<(), Error> {
        let handle = self.handles.file(handle)?;
        if !handle.access.write {
            return Ok(());
        }
        let Some(edit) = lock(&self.tree).file(handle.ino)?.edit.clone() else { return Ok(()) };
        let ticket = edit.settle(&self.journal, &self.pool).await?;
        self.journal.written(ticket).await?;
        if !self.is_advanced() && self.has_name(handle.ino) {
            self.schedule.commit_now(&edit).await?;
        }
        Ok(())
    }

    /// Makes all writes to the file durable, so that a power cut doesn't lose them. With `--fsync remote`, commits
    /// them to the remote.
    pub(crate) async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        let handle = self.handles.file(handle)?;
        let Some(edit) = lock(&self.tree).file(handle.ino)?.edit.clone() else {
            return self.journal.sync_all().await;
        };
        let ticket = edit.settle(&self.journal, &self.pool).await?;
        self.journal.synced(ticket).await?;
        if self.options.fsync_remote && self.has_name(handle.ino) {
            self.schedule.commit_now(&edit).await?;
        }
        Ok(())
    }

    /// Makes all operations on names so far durable, so that a power cut doesn't lose them.
    pub(crate) async fn fsyncdir(&self) -> Result<(), Error> {
        self.journal.sync_all().await
    }

    fn has_name(&self, ino: Ino) -> bool {
        lock(&self.tree).path(ino).is_ok()
    }

    /// Closes a handle.
    pub(crate) async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        let handle = self.handles.remove_file(handle)?;
        let (edit, writers) = {
            let mut tree = lock(&self.tree);
            let edit = tree.file(handle.ino).ok().and_then(|file| file.edit.clone());
            tree.closed(handle.ino, handle.access.write);
            (edit, tree.node(handle.ino).map_or(0, |node| node.writers))
        };
        let Some(edit) = edit else { return Ok(()) };
        if self.end_if_idle(handle.ino, &edit).await? || writers > 0 || !handle.access.write {
            return Ok(());
        }
        // The file is a streaming file that `close` has not committed.
        if !self.is_advanced() && edit.is_dirty() && self.has_name(handle.ino) {
            self.schedule.touch(&edit);
        }
        match edit.write_guard(&self.journal, &self.pool).await {
            Some(guard) => guard.cool(|state| Ok(self.view.draft(state, self.pool.clone())?)),
            None => Ok(()),
        }
    }

    /// Ends local content that isn't needed any more. A file without a name needs it while a handle is open. A file
    /// with a name needs it while the remote doesn't have it or a handle can write. Returns true if the local content
    /// has ended.
    pub(crate) async fn end_if_idle(&self, ino: Ino, edit: &Arc<Edit>) -> Result<bool, Error> {
        if !self.is_idle(ino, edit) {
            return Ok(false);
        }
        let Some(guard) = edit.write_guard(&self.journal, &self.pool).await else { return Ok(false) };
        let ended = guard.end(|end| {
            let mut tree = lock(&self.tree);
            if !self.is_idle_in(&tree, ino, edit) {
                return Ok(false);
            }
            // The record is read before the end, because the end removes the file from the ledger.
            let remote = self.journal.ledger().file(edit.file).map(|record| (record.remote, record.mtime));
            end()?;
            if let Ok(file) = tree.file_mut(ino)
                && file.edit.as_ref().is_some_and(|now| Arc::ptr_eq(now, edit))
            {
                file.edit = None;
                // After a restart, the inode may have been created after the commit and before its journal entry.
                if let Some((Remote::Own(version, len), mtime)) = remote {
                    (file.version, file.len) = (Some(version), Len::Known(len));
                    file.keep_mtime(mtime);
                }
            }
            Ok(true)
        })?;
        if ended {
            self.schedule.remove(edit);
        }
        Ok(ended)
    }

    /// Ends the local content of a file that a restart restored and that was never listed: such a file has no inode
    /// yet. Returns true if it has ended.
    pub(crate) async fn end_if_unseen(&self, edit: &Arc<Edit>) -> Result<bool, Error> {
        let Some(guard) = edit.write_guard(&self.journal, &self.pool).await else { return Ok(false) };
        let ended = guard.end(|end| {
            // A new inode for the file would be created under this lock.
            let _tree = lock(&self.tree);
            let has_name = self.journal.ledger().file(edit.file).is_some_and(|record| record.path.is_some());
            let is_needed = (edit.is_dirty() && has_name) || self.schedule.is_commit_queued(edit.file);
            let over = edit.ino().is_none() && !is_needed;
            if over {
                end()?;
            }
            Ok(over)
        })?;
        if ended {
            self.schedule.remove(edit);
        }
        Ok(ended)
    }

    fn is_idle(&self, ino: Ino, edit: &Edit) -> bool {
        self.is_idle_in(&lock(&self.tree), ino, edit)
    }

    fn is_idle_in(&self, tree: &Tree, ino: Ino, edit: &Edit) -> bool {
        let node = tree.node(ino).ok();
        let is_ours =
            |node: &&Node| node.as_file().is_ok_and(|file| file.edit.as_ref().is_some_and(|now| now.file == edit.file));
        match node.filter(is_ours).filter(|node| node.place.is_some()) {
            Some(node) => node.writers == 0 && !edit.is_dirty(),
            // A queued commit may already have been carried out without our knowledge. Its version must stay known
            // until the result is known. Otherwise the removal that follows couldn't identify the version.
            None => node.is_none_or(|node| node.opens == 0) && !self.schedule.is_commit_queued(edit.file),
        }
    }

    /// Closes a handle whose number was never returned to the kernel.
    pub(crate) async fn abandon(&self, handle: HandleNo) {
        if let Err(error) = self.release(handle).await {
            tracing::debug!(%error, "an abandoned handle could not be released");
        }
    }
}

/// Makes `[offset, end)` zeros, or the file longer, or both.
async fn reshape(guard: &mut EditGuard<'_>, offset: u64, end: u64, how: Allocate) -> Result<(), Error> {
    let old = guard.len();
    if matches!(how, Allocate::Zero { .. }) && offset < old {
        clear(guard, offset, end).await?;
    }
    if how != (Allocate::Zero { keep_size: true }) && end > old {
        guard.truncate(end).await?;
    }
    Ok(())
}

/// Fills `[offset, end)` of a draft that is longer than `offset` with zeros.
async fn clear(guard: &mut EditGuard<'_>, offset: u64, end: u64) -> Result<(), Error> {
    let len = guard.len();
    if end >= len {
        guard.truncate(offset).await?;
        return guard.truncate(len).await;
    }
    if end - offset > MAX_HOLE {
        return Err(Error::NotSupported);
    }
    let mut at = offset;
    while at < end {
        let part = (end - at).min(ZEROS.len() as u64);
        guard.write(at, &ZEROS[..part as usize]).await?;
        at += part;
    }
    Ok(())
}

/// Returns true if streaming writes may continue: the file was created or emptied by a writer that hasn't closed it.
fn is_new(file: &File) -> bool {
    file.edit.as_ref().is_some_and(|edit| edit.is_dirty())
}
