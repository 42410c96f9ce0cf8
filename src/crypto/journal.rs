//! Sealing of local journal payloads (format spec, section 4c).
//!
//! `nonce 16 | ciphertext | tag 16`, AEGIS-128X2, bound to one journal and one place in it. What is sealed here is
//! never uploaded. The length shows: callers pad payloads that hold names. A journal cut short or set back as a
//! whole authenticates.

use aegis::aegis128x2::Aegis128X2;
use zeroize::Zeroizing;

use super::geometry::{NONCE_LEN, TAG_LEN};
use super::secret::{Secret, opaque_debug};
use super::{Error, Random};

/// Bytes that sealing adds to a payload.
pub const OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// In front of the associated data: this key seals nothing but journals, and journals of this version.
const LABEL: &[u8; 18] = b"hfcrypt journal v1";
/// Bytes of the associated data: label, journal id, sequence number.
const AD_LEN: usize = LABEL.len() + 32 + 8;

/// The cipher for payloads of local journals.
pub struct JournalCipher(Secret<16>);

impl JournalCipher {
    pub(super) fn new(key: Secret<16>) -> Self {
        Self(key)
    }

    /// `nonce 16 | ciphertext | tag 16` of `payload`, bound to a journal id and a sequence number.
    pub fn seal(
        &self,
        journal: &[u8; 32],
        sequence: u64,
        payload: &[u8],
        random: &mut dyn Random,
    ) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        random.fill(&mut nonce)?;
        let mut sealed = Vec::with_capacity(payload.len() + OVERHEAD);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(payload);
        let tag = self.cipher(&nonce).encrypt_in_place(&mut sealed[NONCE_LEN..], &associated_data(journal, sequence));
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// The payload, if it was sealed for this journal and sequence number.
    pub fn open(&self, journal: &[u8; 32], sequence: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (nonce, rest) = sealed.split_first_chunk().ok_or(Error::Unauthentic)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Error::Unauthentic)?;
        let mut payload = Zeroizing::new(body.to_vec());
        self.cipher(nonce)
            .decrypt_in_place(&mut payload, tag, &associated_data(journal, sequence))
            .map_err(|_| Error::Unauthentic)?;
        Ok(payload)
    }

    fn cipher(&self, nonce: &[u8; NONCE_LEN]) -> Aegis128X2<TAG_LEN> {
        Aegis128X2::new(self.0.expose(), nonce)
    }
}

fn associated_data(journal: &[u8; 32], sequence: u64) -> [u8; AD_LEN] {
    let mut ad = [0; AD_LEN];
    ad[..18].copy_from_slice(LABEL);
    ad[18..50].copy_from_slice(journal);
    ad[50..].copy_from_slice(&sequence.to_le_bytes());
    ad
}

opaque_debug!(JournalCipher);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, counting_keys};

    const JOURNAL: [u8; 32] = [1; 32];

    fn sealed(payload: &[u8]) -> Vec<u8> {
        counting_keys().journal().seal(&JOURNAL, 5, payload, &mut Script::new(vec![0xab; 16])).unwrap()
    }

    #[test]
    fn payloads_of_any_length_come_back() {
        for len in [0, 1, 15, 16, 31, 32, 33, 63, 64, 65, 1000, 100_000] {
            let payload = vec![0x5a; len];
            let sealed = sealed(&payload);
            assert_eq!(sealed.len(), len + OVERHEAD);
            assert_eq!(sealed[..16], [0xab; 16]);
            assert_eq!(*counting_keys().journal().open(&JOURNAL, 5, &sealed).unwrap(), payload);
        }
    }

    #[test]
    fn sealing_is_aegis_128x2_over_the_documented_data() {
        let keys = counting_keys();
        let mut body = b"payload".to_vec();
        let ad = [b"hfcrypt journal v1".as_slice(), &[1; 32], &[5, 0, 0, 0, 0, 0, 0, 0]].concat();
        let tag = Aegis128X2::<16>::new(keys.journal().0.expose(), &[0xab; 16]).encrypt_in_place(&mut body, &ad);
        assert_eq!(sealed(b"payload"), [&[0xab; 16], &body[..], &tag].concat());
    }

    #[test]
    fn another_place_or_journal_or_key_is_unauthentic() {
        let (keys, sealed) = (counting_keys(), sealed(b"payload"));
        let other = crate::Keys::derive(&crate::MasterKey::from_bytes([9; 32]));
        assert_eq!(keys.journal().open(&JOURNAL, 6, &sealed), Err(Error::Unauthentic));
        assert_eq!(keys.journal().open(&[2; 32], 5, &sealed), Err(Error::Unauthentic));
        assert_eq!(other.journal().open(&JOURNAL, 5, &sealed), Err(Error::Unauthentic));
    }

    #[test]
    fn every_bit_flip_and_every_cut_is_rejected() {
        let (keys, sealed) = (counting_keys(), sealed(b"a payload of some length"));
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.journal().open(&JOURNAL, 5, &altered), Err(Error::Unauthentic), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(keys.journal().open(&JOURNAL, 5, &sealed[..len]), Err(Error::Unauthentic));
        }
    }

    #[test]
    fn nothing_is_sealed_without_randomness() {
        let sealed = counting_keys().journal().seal(&JOURNAL, 5, b"payload", &mut Script::new(vec![0; 15]));
        assert!(matches!(sealed, Err(Error::Random(_))));
    }
}
