//! Edits a version of a file, as records in slots (DESIGN, "Staging and journal").
//!
//! A draft maps each record index to the place of the record: a slot, the base version, or no place (zeros).
//! With a key each slot holds one sealed record, without a key plain bytes. `fs` owns the slots and the
//! journal. It gets a [`Delta`] to append for each change, and restores a draft from a [`DraftState`]. A slot
//! that a durable entry may name is never overwritten: every persisted record goes to a fresh slot.

mod gap;
mod hot;
#[cfg(test)]
mod over;
#[cfg(test)]
mod tests;

use super::staging::{SlotId, SlotIo};
use super::{Error, Object, Version};
use crate::crypto::geometry::{self, NONCE_LEN, Padding, PlainLen, RECORD_LEN, RECORD_PLAIN};
use crate::crypto::{FileId, Format, Header, Keys, Random, RecordCipher, SystemRandom};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use hot::HotBuffer;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OnceCell;
use zeroize::Zeroize;

/// Key material that a slot's record was sealed under (a file id; zeros without a key). Opaque to the layers
/// above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Binding(pub [u8; 24]);

/// A record in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef {
    /// The slot.
    pub slot: SlotId,
    /// Binding that it was sealed under.
    pub binding: Binding,
}

/// State of a draft that a journal must keep to restore it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DraftState {
    /// Plaintext size.
    pub len: u64,
    /// Binding that new records are sealed under.
    pub binding: Binding,
    /// Version that the draft was started from, and the number of its plaintext bytes that are still visible.
    /// A truncation lowers the number permanently.
    pub base: Option<(Version, u64)>,
    /// Records in slots.
    pub records: BTreeMap<u64, RecordRef>,
}

/// Changes since the last delta, to be journaled as one entry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Delta {
    /// New size.
    pub len: u64,
    /// New binding.
    pub binding: Binding,
    /// New number of visible bytes of the base (0 without a base).
    pub base_len: u64,
    /// Records that are now in these slots.
    pub placed: Vec<(u64, RecordRef)>,
    /// Records at or after this index are no longer in slots (a truncation). This applies before `placed`.
    pub cut: Option<u64>,
    /// Slots that are free once this entry is durable.
    pub freed: Vec<SlotId>,
}

/// A version whose bytes do not change any more: a sealed header and the slots of its records. It is kept in
/// the journal, so that every retry sends the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The 70 bytes of the header. `None` without a key.
    pub header: Option<Vec<u8>>,
    /// Plaintext size.
    pub len: u64,
    /// Slots of all records, in order.
    pub records: Vec<SlotId>,
}

/// Records that one draft keeps decrypted after a write, at most (2 MiB): two writes of the largest size that
/// the kernel sends.
const MAX_HOT: usize = 32;

/// Largest size, in bytes, at which every frozen version takes a new file id, so that its records can't be
/// mixed with those of another version. A larger file keeps its id when it is edited in place, so that
/// unchanged records stay the same bytes and deduplicate (format spec, section 4, "Writing").
pub const NEW_ID_LIMIT: u64 = 64 << 20;

/// Records that are filled from the base or sealed again per step of a freeze (4 MiB). Between steps other
/// tasks get their turn.
const FREEZE_BATCH: u64 = 64;

const PLAIN: u64 = RECORD_PLAIN as u64;

/// Kind of data in the slots of a draft.
#[derive(Clone)]
pub(super) enum Medium {
    /// Plain bytes, 65536 per slot.
    Plain,
    /// Sealed records, 65568 per slot.
    Sealed {
        /// The key.
        keys: Arc<Keys>,
        /// Format of the versions that are frozen.
        format: Format,
        /// Padding policy, which gives the number of their records.
        padding: Padding,
    },
}

impl Medium {
    /// Returns the bytes of a slot.
    pub(super) fn slot_len(&self) -> usize {
        match self {
            Self::Plain => RECORD_PLAIN,
            Self::Sealed { .. } => RECORD_LEN,
        }
    }
}

/// Access to the versions that a draft may be based on.
#[async_trait]
pub(super) trait Bases: Send + Sync + 'static {
    /// Opens a version.
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error>;
    /// Returns the verified file id of an encrypted version.
    async fn file_id(&self, version: &Version) -> Result<FileId, Error>;
    /// Returns records of an encrypted version as they are stored. Each one was authenticated.
    async fn sealed(&self, version: &Version, records: Range<u64>) -> Result<Bytes, Error>;
    /// Returns true if another path may hold this object, so that an edit must take a new file id.
    fn is_shared(&self, version: &Version) -> bool;
}

/// Reads the version that a draft is based on, for a caller that has a faster way than one request for each read.
#[async_trait]
pub trait BaseReader: Send + Sync {
    /// Returns exactly the bytes of `range`, which lies in `version`.
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<Bytes, Error>;
}

/// Reads a base with one request for each range.
struct Direct<'a> {
    bases: &'a dyn Bases,
    object: OnceCell<Arc<dyn Object>>,
}

#[async_trait]
impl BaseReader for Direct<'_> {
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<Bytes, Error> {
        let object = self.object.get_or_try_init(|| self.bases.open(version)).await?;
        object.read(range.start, (range.end - range.start) as usize).await
    }
}

/// A decrypted record. `dirty`: no slot holds its present bytes.
struct Hot {
    buffer: Arc<HotBuffer>,
    dirty: bool,
}

/// A version being edited. There is one writer at a time: the owner serialises calls that take `&mut self`.
///
/// Every call may be dropped before it ends (a deadline). Data written before stays, in memory or in slots.
pub struct Draft {
    medium: Medium,
    bases: Arc<dyn Bases>,
    slots: Arc<dyn SlotIo>,
    /// Size including writes that are not persisted. `state.len` is the size at the last settle.
    len: u64,
    /// Present slots, including those that a settle inside `write_at` filled.
    state: DraftState,
    hot: BTreeMap<u64, Hot>,
    /// The record written last. It stays decrypted after a settle, for the next small append.
    newest: Option<u64>,
    /// Content of the next delta.
    unsaid: Unsaid,
}

/// Changes of the state that are in no delta yet.
#[derive(Default)]
struct Unsaid {
    changed: bool,
    placed: BTreeMap<u64, RecordRef>,
    cut: Option<u64>,
    freed: Vec<SlotId>,
}

/// Slots that were filled on a blocking thread. They are released unless the draft takes them over.
struct Filled {
    slots: Arc<dyn SlotIo>,
    records: Vec<(u64, RecordRef)>,
}

impl Filled {
    /// Keeps the records that `wanted` accepts and releases the slots of the others.
    fn keep(&mut self, mut wanted: impl FnMut(u64) -> bool) {
        let (kept, rest) = self.records.drain(..).partition(|(index, _)| wanted(*index));
        self.records = kept;
        rest.into_iter().for_each(|(_, record): (u64, RecordRef)| self.slots.cancel(record.slot));
    }

    fn take(mut self) -> Vec<(u64, RecordRef)> {
        std::mem::take(&mut self.records)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.records.drain(..).for_each(|(_, record)| self.slots.cancel(record.slot));
    }
}

/// Returns the cipher for slots of one binding. Plain media have none.
fn cipher(medium: &Medium, binding: Binding) -> Option<RecordCipher> {
    match medium {
        Medium::Plain => None,
        Medium::Sealed { keys, format, .. } => Some(keys.records(*format, &FileId(binding.0))),
    }
}

/// Seals copies of the buffers and writes each to a fresh slot. The draft keeps the buffers until the slots
/// are its own.
fn fill_slots(
    slots: &Arc<dyn SlotIo>,
    cipher: Option<&RecordCipher>,
    binding: Binding,
    records: &[(u64, Arc<HotBuffer>)],
) -> Result<Filled, Error> {
    let mut filled = Filled { slots: slots.clone(), records: Vec::with_capacity(records.len()) };
    let mut sealed = Box::new([0u8; RECORD_LEN]);
    for (index, buffer) in records {
        let slot = slots.allocate()?;
        filled.records.push((*index, RecordRef { slot, binding }));
        match cipher {
            None => slots.write(slot, buffer.plain())?,
            Some(cipher) => {
                let mut nonce = [0; NONCE_LEN];
                SystemRandom.fill(&mut nonce)?;
                sealed.copy_from_slice(buffer.slot());
                cipher.seal(*index, &nonce, &mut sealed);
                slots.write(slot, &sealed[..])?;
            }
        }
    }
    Ok(filled)
}

/// Writes records that are already sealed under `binding` to fresh slots. The first one has index `first`.
fn copy_to_slots(slots: &Arc<dyn SlotIo>, binding: Binding, first: u64, sealed: &[u8]) -> Result<Filled, Error> {
    let mut filled = Filled { slots: slots.clone(), records: Vec::with_capacity(sealed.len() / RECORD_LEN) };
    for (index, record) in (first..).zip(sealed.chunks_exact(RECORD_LEN)) {
        let slot = slots.allocate()?;
        filled.records.push((index, RecordRef { slot, binding }));
        slots.write(slot, record)?;
    }
    Ok(filled)
}

/// Reads one slot and leaves its plaintext in `buffer`.
fn load_slot(
    slots: &dyn SlotIo,
    cipher: Option<&RecordCipher>,
    index: u64,
    slot: SlotId,
    buffer: &mut HotBuffer,
) -> Result<(), Error> {
    match cipher {
        None => slots.read(slot, buffer.plain_mut())?,
        Some(cipher) => {
            slots.read(slot, buffer.slot_mut())?;
            cipher.open(index, buffer.slot_mut())?;
        }
    }
    Ok(())
}

/// Runs local I/O and ciphers off the async workers.
async fn off_worker<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::Io(io::Error::other(e))))
}

/// Returns the records that `[start, end)` touches, with the touched part of each, relative to the record.
fn parts(start: u64, end: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    geometry::records_of_range(PlainLen(start), PlainLen(end)).map(move |index| {
        let base = index * PLAIN;
        let from = start.saturating_sub(base).min(PLAIN) as usize;
        let to = (end - base).min(PLAIN) as usize;
        (index, from..to)
    })
}

impl Draft {
    pub(super) fn new(medium: Medium, bases: Arc<dyn Bases>, slots: Arc<dyn SlotIo>, state: DraftState) -> Self {
        let len = state.len;
        Self { medium, bases, slots, len, state, hot: BTreeMap::new(), newest: None, unsaid: Unsaid::default() }
    }

    /// Returns the plaintext size, including writes that are not persisted.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the state at the last settle: the sum of the deltas so far.
    pub fn state(&self) -> &DraftState {
        &self.state
    }

    /// Records that the last frozen version is committed as `version`. Later versions are edits of it.
    pub fn rebase(&mut self, version: Version) {
        // All its records are in slots, so none of its bytes is needed. Only its identity counts (file id,
        // sharing).
        self.state.base = Some((version, 0));
    }

    /// Returns the plaintext bytes `[offset, offset + len)`, truncated at the end of the file. Fetches bytes
    /// that aren't local from the base.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.read_through(&self.direct(), offset, len).await
    }

    fn direct(&self) -> Direct<'_> {
        Direct { bases: &*self.bases, object: OnceCell::new() }
    }

    /// Reads as [`Self::read_at`] does. `base` reads what isn't local.
    pub async fn read_through(&self, base: &dyn BaseReader, offset: u64, len: usize) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64).min(self.len);
        if offset >= end {
            return Ok(Bytes::new());
        }
        let mut out = BytesMut::zeroed((end - offset) as usize);
        self.read_base(base, offset, end, &mut out).await?;
        let mut local = Vec::new();
        for (index, part) in parts(offset, end) {
            let at = (index * PLAIN + part.start as u64 - offset) as usize;
            if let Some(hot) = self.hot.get(&index) {
                out[at..at + part.len()].copy_from_slice(&hot.buffer.plain()[part]);
            } else if let Some(record) = self.state.records.get(&index) {
                local.push((index, *record, part, at));
            }
        }
        if local.is_empty() {
            return Ok(out.freeze());
        }
        let (slots, medium) = (self.slots.clone(), self.medium.clone());
        off_worker(move || {
            let mut buffer = HotBuffer::zeroed();
            let mut current: Option<(Binding, Option<RecordCipher>)> = None;
            for (index, record, part, at) in local {
                if current.as_ref().is_none_or(|(binding, _)| *binding != record.binding) {
                    current = Some((record.binding, cipher(&medium, record.binding)));
                }
                let cipher = current.as_ref().and_then(|(_, cipher)| cipher.as_ref());
                load_slot(&*slots, cipher, index, record.slot, &mut buffer)?;
                out[at..at + part.len()].copy_from_slice(&buffer.plain()[part]);
            }
            Ok(out.freeze())
        })
        .await
    }

    /// Fills `out`, which stands for `[offset, end)` and holds zeros, with the bytes that only the base has.
    async fn read_base(&self, base: &dyn BaseReader, offset: u64, end: u64, out: &mut [u8]) -> Result<(), Error> {
        let Some((version, visible)) = self.state.base else { return Ok(()) };
        let end = end.min(visible);
        if offset >= end {
            return Ok(());
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, part) in parts(offset, end) {
            if self.hot.contains_key(&index) || self.state.records.contains_key(&index) {
                continue;
            }
            let start = index * PLAIN + part.start as u64;
            let stop = index * PLAIN + part.end as u64;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = stop,
                _ => runs.push(start..stop),
            }
        }
        for run in runs {
            let bytes = base.read(&version, run.clone()).await?;
            let at = (run.start - offset) as usize;
            // An `Object` is never short inside its size. A base that is shorter than at the start of the
            // draft is another object.
            let target = out.get_mut(at..at + bytes.len()).ok_or(Error::LengthMismatch)?;
            if bytes.len() as u64 != run.end - run.start {
                return Err(Error::LengthMismatch);
            }
            target.copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Writes data. A gap past the end reads as zeros. The touched records are kept decrypted in bounded,
    /// locked, wiped buffers until they are persisted. If there are too many, some are persisted here. The
    /// next [`Draft::settle`] returns these changes.
    pub async fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or(Error::Crypto(crate::crypto::Error::OutOfRange))?;
        if self.hot.len() > MAX_HOT {
            // An earlier write could not persist its records (a full disk). No data is accepted until that
            // works.
            self.settle_hot().await?;
        }
        let mut rest = data;
        for (index, part) in parts(offset, end) {
            let (now, later) = rest.split_at(part.len());
            rest = later;
            let whole = part.len() == RECORD_PLAIN;
            let buffer = self.heat(index, whole).await?;
            buffer.plain_mut()[part.clone()].copy_from_slice(now);
            self.newest = Some(index);
            // This is done per record, so that a write that fails in the middle leaves no bytes past the
            // size.
            self.len = self.len.max(index * PLAIN + part.end as u64);
        }
        if self.hot.len() > MAX_HOT || HotBuffer::over_budget() {
            self.settle_hot().await?;
        }
        Ok(())
    }

    /// Loads record `index` into a buffer and marks it dirty. A record that is going to be overwritten whole
    /// is not read.
    async fn heat(&mut self, index: u64, overwrite: bool) -> Result<&mut HotBuffer, Error> {
        if !self.hot.contains_key(&index) {
            let buffer = if overwrite { HotBuffer::zeroed() } else { self.load(index).await? };
            self.hot.insert(index, Hot { buffer: Arc::new(buffer), dirty: true });
        }
        let MapEntry::Occupied(hot) = self.hot.entry(index) else { unreachable!("inserted above") };
        let hot = hot.into_mut();
        hot.dirty = true;
        // The buffer is shared only if a settle was dropped and its thread still reads the old bytes.
        Ok(Arc::make_mut(&mut hot.buffer))
    }

    /// Returns the present bytes of a record that isn't in a buffer, zeros past the end.
    async fn load(&self, index: u64) -> Result<HotBuffer, Error> {
        if let Some(record) = self.state.records.get(&index).copied() {
            let (slots, medium) = (self.slots.clone(), self.medium.clone());
            return off_worker(move || {
                let mut buffer = HotBuffer::zeroed();
                load_slot(&*slots, cipher(&medium, record.binding).as_ref(), index, record.slot, &mut buffer)?;
                Ok(buffer)
            })
            .await;
        }
        let mut buffer = HotBuffer::zeroed();
        let start = index.saturating_mul(PLAIN);
        self.read_base(&self.direct(), start, start.saturating_add(PLAIN), buffer.plain_mut()).await?;
        Ok(buffer)
    }

    /// Truncates the file, or extends it with zeros.
    pub async fn truncate(&mut self, len: u64) -> Result<(), Error> {
        if len > i64::MAX as u64 {
            return Err(Error::Crypto(crate::crypto::Error::OutOfRange));
        }
        if len < self.len {
            self.shrink(len).await?;
        }
        if len != self.len {
            self.len = len;
            self.unsaid.changed = true;
        }
        Ok(())
    }

    async fn shrink(&mut self, len: u64) -> Result<(), Error> {
        let kept = len.div_ceil(PLAIN);
        let tail = (len % PLAIN) as usize;
        let last = kept.checked_sub(1).filter(|_| tail != 0);
        // Bytes past the new end must neither reappear when the file grows nor be uploaded.
        if let Some(last) = last.filter(|i| self.hot.contains_key(i) || self.state.records.contains_key(i)) {
            self.heat(last, false).await?.plain_mut()[tail..].fill(0);
        }
        self.hot.split_off(&kept);
        for (index, record) in self.state.records.split_off(&kept) {
            self.unsaid.placed.remove(&index);
            self.unsaid.freed.push(record.slot);
        }
        self.unsaid.cut = Some(self.unsaid.cut.map_or(kept, |cut| cut.min(kept)));
        if let Some((_, visible)) = &mut self.state.base {
            *visible = (*visible).min(len);
        }
        if len == 0 {
            // The file is rewritten: no byte of the old version is left, so no record may share its file id.
            if matches!(self.medium, Medium::Sealed { .. }) {
                self.state.binding = fresh()?;
            }
        }
        self.unsaid.changed = true;
        Ok(())
    }

    /// Seals decrypted records into fresh slots. Returns `None` if nothing changed. The caller syncs nothing
    /// before it has appended the delta.
    pub async fn settle(&mut self) -> Result<Option<Delta>, Error> {
        self.settle_hot().await?;
        self.unsaid.changed |= self.state.len != self.len;
        Ok(self.say())
    }

    /// Returns the number of slots that a freeze will allocate for content that is in no slot yet: records of
    /// the base, gaps, and records that were changed in memory. A freeze that seals all records again takes
    /// more for a moment.
    pub fn slots_needed(&self) -> u64 {
        let records = self.len.div_ceil(PLAIN).saturating_sub(self.state.records.len() as u64);
        let changed =
            self.hot.iter().filter(|(index, hot)| hot.dirty && self.state.records.contains_key(index)).count();
        records + changed as u64
    }

    /// Drops data that isn't in a slot and returns the pending delta. This is the last call for a draft whose
    /// content isn't needed any more.
    pub fn abandon(&mut self) -> Option<Delta> {
        self.hot.clear();
        self.say()
    }

    fn say(&mut self) -> Option<Delta> {
        let Unsaid { changed, placed, cut, freed } = std::mem::take(&mut self.unsaid);
        self.state.len = self.len;
        changed.then(|| Delta {
            len: self.len,
            binding: self.state.binding,
            base_len: self.state.base.map_or(0, |(_, visible)| visible),
            placed: placed.into_iter().collect(),
            cut,
            freed,
        })
    }

    /// Writes every dirty record to a slot. Evicts the plaintext of all but the newest.
    async fn settle_hot(&mut self) -> Result<(), Error> {
        let dirty: Vec<_> =
            self.hot.iter().filter(|(_, hot)| hot.dirty).map(|(i, hot)| (*i, hot.buffer.clone())).collect();
        if !dirty.is_empty() {
            let binding = self.binding().await?;
            let (slots, medium) = (self.slots.clone(), self.medium.clone());
            let filled =
                off_worker(move || fill_slots(&slots, cipher(&medium, binding).as_ref(), binding, &dirty)).await?;
            self.place(filled);
        }
        // Many files may wait for their upload concurrently, so the record that each keeps for its next
        // append counts.
        let newest = self.newest.filter(|_| !HotBuffer::over_budget());
        self.hot.retain(|index, hot| {
            hot.dirty = false;
            Some(*index) == newest
        });
        Ok(())
    }

    /// Takes over filled slots. The slots that they replace are freed.
    fn place(&mut self, filled: Filled) {
        for (index, record) in filled.take() {
            self.unsaid.placed.insert(index, record);
            if let Some(old) = self.state.records.insert(index, record) {
                self.unsaid.freed.push(old.slot);
            }
            self.unsaid.changed = true;
        }
    }

    /// Returns the binding of new records. Chooses it at the first record.
    async fn binding(&mut self) -> Result<Binding, Error> {
        if matches!(self.medium, Medium::Sealed { .. }) && self.state.binding == Binding::default() {
            self.state.binding = match self.in_place_id().await? {
                Some(id) => id,
                None => fresh()?,
            };
            self.unsaid.changed = true;
        }
        Ok(self.state.binding)
    }

    /// Returns the base's file id if an edit may keep it. The file must be large, not shared, and of the
    /// format that is written.
    async fn in_place_id(&self) -> Result<Option<Binding>, Error> {
        let Medium::Sealed { format, padding, .. } = &self.medium else { return Ok(None) };
        let Some((version, _)) = self.state.base else { return Ok(None) };
        let large = self.len > NEW_ID_LIMIT && version.stored_len > NEW_ID_LIMIT;
        let same_format = version.side == super::Side::Encrypted(*format);
        // With padding, an edit in place that changes the size would reveal the position of the old end. Then
        // the id must be new, and the first record is sealed before it is known if the size will change.
        if !large || !same_format || *padding != Padding::None || self.bases.is_shared(&version) {
            return Ok(None);
        }
        Ok(Some(Binding(self.bases.file_id(&version).await?.0)))
    }

    /// Completes the version, under a new file id if the format requires one, and seals its header. Records
    /// that are still in the base are fetched. If that may take long, fill the gaps before this call. The
    /// delta holds the changes of the freeze. The draft continues in new slots: the caller pins those of the
    /// frozen version.
    pub async fn freeze(&mut self) -> Result<(Frozen, Option<Delta>), Error> {
        self.settle_hot().await?;
        let binding = self.binding_to_freeze().await?;
        let records = match &self.medium {
            Medium::Plain => self.len.div_ceil(PLAIN),
            Medium::Sealed { format, padding, .. } => geometry::records_for(*format, PlainLen(self.len), *padding)?,
        };
        let mut from = 0;
        while let Some(gap) = self.gap(from).await? {
            from = gap.end();
            let filling = gap.fetch().await?;
            self.fill(filling);
        }
        let mut index = 0;
        while index < records {
            let stop = records.min(index + FREEZE_BATCH);
            self.complete(index..stop, binding).await?;
            index = stop;
        }
        let header = match &self.medium {
            Medium::Plain => None,
            Medium::Sealed { keys, format, .. } => {
                let header =
                    Header { format: *format, plain_len: PlainLen(self.len), records, file_id: FileId(binding.0) };
                Some(keys.seal_header(&header)?.to_vec())
            }
        };
        let slots = self.state.records.range(..records).map(|(_, record)| record.slot).collect();
        let frozen = Frozen { header, len: self.len, records: slots };
        if self.len <= NEW_ID_LIMIT || !matches!(self.medium, Medium::Sealed { padding: Padding::None, .. }) {
            // Later writes belong to the next version.
            self.state.binding = Binding::default();
            self.unsaid.changed = true;
        }
        self.unsaid.changed |= self.state.len != self.len;
        Ok((frozen, self.say()))
    }

    /// Returns the file id of the version to be frozen.
    async fn binding_to_freeze(&mut self) -> Result<Binding, Error> {
        let binding = self.binding().await?;
        let Some((version, _)) = self.state.base else { return Ok(binding) };
        if binding == Binding::default() || version.stored_len <= NEW_ID_LIMIT {
            return Ok(binding);
        }
        let keeps = self.len > NEW_ID_LIMIT && !self.bases.is_shared(&version);
        if !keeps && self.bases.file_id(&version).await?.0 == binding.0 {
            self.state.binding = fresh()?;
            self.unsaid.changed = true;
        }
        Ok(self.state.binding)
    }

    /// Copies records into slots under `binding`, from their present places.
    async fn complete(&mut self, range: Range<u64>, binding: Binding) -> Result<(), Error> {
        let missing: Vec<u64> = range
            .clone()
            .filter(|i| self.state.records.get(i).is_none_or(|record| record.binding != binding))
            .collect();
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else { return Ok(()) };
        let (start, end) = (first * PLAIN, (last + 1) * PLAIN);
        let mut plain = self
            .read_at(start, (end - start) as usize)
            .await?
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        let mut buffers = Vec::with_capacity(missing.len());
        for index in &missing {
            let at = (index * PLAIN - start) as usize;
            let mut buffer = HotBuffer::zeroed();
            // Past the end of the file the record is zeros: the rest of the last record, and pad records.
            if let Some(bytes) = plain.get(at..plain.len().min(at + RECORD_PLAIN)) {
                buffer.plain_mut()[..bytes.len()].copy_from_slice(bytes);
            }
            buffers.push((*index, Arc::new(buffer)));
        }
        plain.zeroize();
        let (slots, medium) = (self.slots.clone(), self.medium.clone());
        let filled =
            off_worker(move || fill_slots(&slots, cipher(&medium, binding).as_ref(), binding, &buffers)).await?;
        self.place(filled);
        Ok(())
    }
}

/// Returns a new file id as a binding.
fn fresh() -> Result<Binding, Error> {
    Ok(Binding(FileId::generate(&mut SystemRandom)?.0))
}
