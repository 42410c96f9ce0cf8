//! Fills a draft from its base in pieces, while the draft may be read and written.
//!
//! [`Draft::freeze`] needs all records of the base. Fetching them may take minutes, and every other user of
//! the draft would have to wait. So a [`Gap`] is taken from the draft, fetched without it, and handed back.
//! Records that were written, truncated or sealed otherwise meanwhile take precedence.
//!
//! If an edit keeps the file id of its base, whole records are copied as they are stored. Equal bytes are not
//! uploaded again.

use super::{
    Bases, Binding, Draft, FREEZE_BATCH, Filled, HotBuffer, Medium, PLAIN, SlotIo, cipher, copy_to_slots, fill_slots,
    off_worker,
};
use crate::crypto::geometry::{RECORD_LEN, RECORD_PLAIN};
use crate::store::{Error, Version};
use bytes::BytesMut;
use std::ops::Range;
use std::sync::Arc;
use zeroize::Zeroize;

/// Neighbouring records that only the base has, at most 4 MiB of them.
pub struct Gap {
    medium: Medium,
    bases: Arc<dyn Bases>,
    slots: Arc<dyn SlotIo>,
    base: (Version, u64),
    binding: Binding,
    records: Range<u64>,
    /// True if the base's records are sealed under `binding`, and these are whole.
    is_copy: bool,
}

/// Records of a gap, in slots. Dropping it releases the slots.
pub struct Filling {
    filled: Filled,
    base: (Version, u64),
    binding: Binding,
}

impl Gap {
    /// Returns the index after the last record.
    pub fn end(&self) -> u64 {
        self.records.end
    }

    /// Fetches and seals the records. The draft may change meanwhile.
    pub async fn fetch(self) -> Result<Filling, Error> {
        let Self { medium, bases, slots, base, binding, records, is_copy } = self;
        let (version, visible) = base;
        if is_copy {
            let sealed = bases.sealed(&version, records.clone()).await?;
            if sealed.len() as u64 != (records.end - records.start) * RECORD_LEN as u64 {
                return Err(Error::LengthMismatch);
            }
            let filled = off_worker(move || copy_to_slots(&slots, binding, records.start, &sealed)).await?;
            return Ok(Filling { filled, base, binding });
        }
        let start = records.start * PLAIN;
        let len = (visible.min(records.end * PLAIN) - start) as usize;
        let mut plain = bases
            .open(&version)
            .await?
            .read(start, len)
            .await?
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        if plain.len() != len {
            return Err(Error::LengthMismatch);
        }
        let filled = off_worker(move || {
            let buffers: Vec<_> = records
                .zip(plain.chunks(RECORD_PLAIN))
                .map(|(index, bytes)| {
                    let mut buffer = HotBuffer::zeroed();
                    buffer.plain_mut()[..bytes.len()].copy_from_slice(bytes);
                    (index, Arc::new(buffer))
                })
                .collect();
            plain.zeroize();
            fill_slots(&slots, cipher(&medium, binding).as_ref(), binding, &buffers)
        })
        .await?;
        Ok(Filling { filled, base, binding })
    }
}

impl Draft {
    /// Returns the first records from `from` on that a freeze would have to fetch, or `None` if there are no
    /// more. Chooses their binding.
    pub async fn gap(&mut self, from: u64) -> Result<Option<Gap>, Error> {
        let Some(base) = self.state.base else { return Ok(None) };
        let end = base.1.div_ceil(PLAIN);
        let is_missing = |index: &u64| !self.hot.contains_key(index) && !self.state.records.contains_key(index);
        let Some(first) = (from..end).find(is_missing) else { return Ok(None) };
        let most = end.min(first + FREEZE_BATCH);
        let last = (first + 1..most).find(|index| !is_missing(index)).unwrap_or(most);
        let binding = self.binding().await?;
        let in_place = self.in_place_id().await?.is_some_and(|id| id == binding);
        // Past the end of the file a record is zeros, and an old one may not be. So it is sealed again.
        let whole = if in_place { last.min(base.1 / PLAIN) } else { first };
        let (records, is_copy) = if whole > first { (first..whole, true) } else { (first..last, false) };
        let (medium, bases, slots) = (self.medium.clone(), self.bases.clone(), self.slots.clone());
        Ok(Some(Gap { medium, bases, slots, base, binding, records, is_copy }))
    }

    /// Takes over the records of one of its gaps, except those that have changed meanwhile.
    pub fn fill(&mut self, filling: Filling) {
        let Filling { mut filled, base: (version, visible), binding } = filling;
        let base = self.state.base.filter(|(now, _)| *now == version && self.state.binding == binding);
        let visible_now = base.map_or(0, |(_, visible)| visible);
        filled.keep(|index| {
            let is_same = visible_now == visible || (index + 1) * PLAIN <= visible_now;
            is_same && !self.hot.contains_key(&index) && !self.state.records.contains_key(&index)
        });
        self.place(filled);
    }
}
