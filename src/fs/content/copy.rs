//! Copies that move no bytes: `link`, and `copy_file_range` of a whole file.
//!
//! A content hash may be committed at any number of paths. A copy of a file that the remote has is therefore a draft
//! over the stored version. It counts as frozen and uploaded from the start, and its commit sends only a name and a
//! hash. Content that the remote doesn't have yet is copied locally.
//!
//! A bucket maps names to contents and has no hard links. So `link` creates an independent file: a later change of
//! one file doesn't change the other.
//!
//! A large file with a key must be marked as shared before a second name has it, because edits in place would keep
//! its file id (format spec, section 4). The view sets the mark only for copies that it makes itself. So these copies
//! fail, and the calling program copies by reading and writing.

use crate::fs::content::Contents;
use crate::fs::content::edit::Edit;
use crate::fs::errno::Error;
use crate::fs::ids::{HandleNo, Ino};
use crate::fs::lock::lock;
use crate::store::staging::Pool;
use crate::store::{Delta, Draft, DraftState, Format, Frozen, Len, PlainPath, Side, SlotIo, Stored};
use std::sync::Arc;
use time::OffsetDateTime;

/// Largest file that `link` copies locally (64 MiB). Above it, the request fails, and the calling program copies the
/// file.
pub(crate) const LOCAL_COPY: u64 = 64 << 20;
/// Stored size up to which every version with a key has a file id of its own (64 MiB; format spec, section 4), so
/// that a copy needs no mark.
const UNMARKED: u64 = 64 << 20;
/// Longest name in format 1, bytes (format spec, section 2).
pub(crate) const NAME_MAX_V1: usize = 194;
/// Bytes per step of a local copy.
const STEP: usize = 1 << 20;

/// The content that a copy is made from.
pub(crate) enum Original {
    /// A version that the remote has.
    Stored(Stored, Option<OffsetDateTime>),
    /// Local content, which only this machine has.
    Local(Arc<Edit>),
}

impl Contents {
    /// Checks the path of a copy. A copy of a file in format 1 stays in format 1, so its name must meet the limits of
    /// that format.
    pub(crate) fn check_format_of(&self, stored: &Stored, path: &PlainPath) -> Result<(), Error> {
        if stored.version.side != Side::Encrypted(Format::V1) {
            return Ok(());
        }
        let fits = path.split().is_some_and(|(_, name)| name.len() <= NAME_MAX_V1);
        let fits = fits && self.view.check_format_1(path).is_ok();
        if fits { Ok(()) } else { Err(Error::NotSupported) }
    }

    pub(crate) fn original(&self, ino: Ino) -> Result<Original, Error> {
        let tree = lock(&self.tree);
        let file = tree.file(ino)?;
        let dirty = file.edit.clone().filter(|edit| edit.is_dirty());
        if let Some(edit) = dirty {
            // A streaming file that isn't closed may still fail.
            if !self.is_advanced() {
                return Err(Error::NotSupported);
            }
            return Ok(Original::Local(edit));
        }
        let (version, plain_len) = match (file.version, file.len) {
            (Some(version), Len::Known(len)) => (version, len),
            // A listing has just brought another version. The bytes can be copied instead.
            (Some(_), Len::Unread) => return Err(Error::NotSupported),
            _ => return Err(Error::Damaged),
        };
        let encrypted = matches!(version.side, Side::Encrypted(_));
        if encrypted != self.view.key_id().is_some() || (encrypted && version.stored_len > UNMARKED) {
            return Err(Error::NotSupported);
        }
        Ok(Original::Stored(Stored { version, plain_len }, file.mtime))
    }

    /// Copies the first `len` bytes of a file into another file without moving bytes. Works only if `len` covers the
    /// whole file and the target is empty, else fails with `NotSupported`. Returns the number of bytes that were
    /// copied.
    pub(crate) async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error> {
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        if !from.access.read || !to.access.write {
            return Err(Error::BadHandle);
        }
        self.gate.check_writable()?;
        let Original::Stored(stored, _) = self.original(from.ino)? else { return Err(Error::NotSupported) };
        let copied = u32::try_from(stored.plain_len).ok().filter(|copied| *copied > 0 && u64::from(*copied) <= len);
        let copied = copied.ok_or(Error::NotSupported)?;
        let path = lock(&self.tree).path(to.ino).map_err(|_| Error::NotSupported)?;
        self.check_format_of(&stored, &path)?;
        let edit = self.edit(to.ino).await?;
        if self.policy.keeps(&path) {
            return Err(Error::NotSupported);
        }
        let guard = edit.write_guard(&self.journal, &self.pool).await;
        let mut guard = guard.filter(|draft| draft.is_empty()).ok_or(Error::NotSupported)?;
        // A commit that is in flight would be taken for the commit of the copy.
        if self.schedule.is_in_progress(edit.file) || !self.is_advanced() {
            return Err(Error::NotSupported);
        }
        let copy = self.view.draft(state_of(&stored), self.pool.clone())?;
        guard.become_copy(copy, stored, frozen_of(&stored)).await?;
        drop(guard);
        self.changed(to.ino, &edit);
        Ok(copied)
    }
}

/// Returns the state of an unchanged draft over a version.
pub(crate) fn state_of(stored: &Stored) -> DraftState {
    let base = Some((stored.version, stored.plain_len));
    DraftState { len: stored.plain_len, base, ..DraftState::default() }
}

/// Returns a placeholder for a frozen version whose bytes are never read, because the remote has them.
pub(crate) fn frozen_of(stored: &Stored) -> Arc<Frozen> {
    Arc::new(Frozen { header: None, len: stored.plain_len, records: Vec::new() })
}

/// Copies all of `source` into an empty draft.
pub(crate) async fn fill(draft: &mut Draft, source: &Draft) -> Result<Option<Delta>, Error> {
    let mut at = 0;
    while at < source.len() {
        let bytes = source.read_at(at, STEP).await?;
        draft.write_at(at, &bytes).await?;
        at += bytes.len() as u64;
    }
    Ok(draft.settle().await?)
}

/// Slots that were filled and that no journal entry names. They are freed on drop, unless an entry names them by
/// then.
pub(crate) struct Unnamed<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) delta: Option<Delta>,
}

impl Drop for Unnamed<'_> {
    fn drop(&mut self) {
        let Some(delta) = self.delta.take() else { return };
        let placed = delta.placed.iter().map(|(_, record)| record.slot);
        placed.chain(delta.freed).for_each(|slot| self.pool.cancel(slot));
    }
}
