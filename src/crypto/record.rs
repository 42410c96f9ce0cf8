//! Seals and opens one record of a container (format spec, section 4), in place.
//!
//! A slot is `nonce 16 | 65536 bytes | tag 16`. Bit for bit what `aegis::raf` makes, without its
//! copies and locks. Draws no nonce: the caller passes it, fresh for every seal.

use std::ops::Range;

use aegis::aegis128x2::Aegis128X2;

use super::geometry::{NONCE_LEN, RECORD_LEN, RECORD_PLAIN, TAG_LEN};
use super::keys::FileKeys;
use super::secret::opaque_debug;
use super::{Error, FileId};

/// Where the plaintext lies in a slot.
pub const PLAIN: Range<usize> = NONCE_LEN..NONCE_LEN + RECORD_PLAIN;

/// Bytes of the associated data: file id, index, record size.
const AD_LEN: usize = 24 + 8 + 4;

/// The cipher for the records of one file. `Send + Sync`, wiped on drop, allocates nothing per record.
pub struct RecordCipher {
    keys: FileKeys,
    file_id: FileId,
}

impl RecordCipher {
    pub(super) fn new(keys: FileKeys, file_id: FileId) -> Self {
        Self { keys, file_id }
    }

    /// The file id whose records these are.
    pub fn file_id(&self) -> &FileId {
        &self.file_id
    }

    /// Seals record `index`: takes the plaintext in `slot[16..65552]`, leaves nonce, ciphertext and tag.
    pub fn seal(&self, index: u64, nonce: &[u8; NONCE_LEN], slot: &mut [u8; RECORD_LEN]) {
        let (body, tag) = body_and_tag(slot);
        *tag = self.cipher(nonce).encrypt_in_place(body, &self.associated_data(index));
        slot[..NONCE_LEN].copy_from_slice(nonce);
    }

    /// Opens record `index`: on success the plaintext is in `slot[16..65552]`. On failure that part is zeroed.
    pub fn open(&self, index: u64, slot: &mut [u8; RECORD_LEN]) -> Result<(), Error> {
        let nonce = *slot.first_chunk().expect("a slot begins with its nonce");
        let (body, tag) = body_and_tag(slot);
        self.cipher(&nonce).decrypt_in_place(body, tag, &self.associated_data(index)).map_err(|_| {
            // The crate erases it already; this layer's promise doesn't lean on that.
            body.fill(0);
            Error::UnauthenticRecord(index)
        })
    }

    fn cipher(&self, nonce: &[u8; NONCE_LEN]) -> Aegis128X2<TAG_LEN> {
        Aegis128X2::new(self.keys.record(), nonce)
    }

    fn associated_data(&self, index: u64) -> [u8; AD_LEN] {
        let mut ad = [0; AD_LEN];
        ad[..24].copy_from_slice(&self.file_id.0);
        ad[24..32].copy_from_slice(&index.to_le_bytes());
        ad[32..].copy_from_slice(&(RECORD_PLAIN as u32).to_le_bytes());
        ad
    }
}

fn body_and_tag(slot: &mut [u8; RECORD_LEN]) -> (&mut [u8], &mut [u8; TAG_LEN]) {
    let (rest, tag) = slot.split_last_chunk_mut().expect("a slot ends with its tag");
    (&mut rest[NONCE_LEN..], tag)
}

opaque_debug!(RecordCipher);

#[cfg(test)]
mod tests;
