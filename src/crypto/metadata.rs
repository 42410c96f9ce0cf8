//! Sealing of what an object store keeps about a file beside its content (docs/format.md, section 13).
//!
//! `"HFEM" | 2 | nonce 16 | ciphertext | tag 16`, AEGIS-128X2. A stored name gives the file's path to nobody. Its
//! object isn't bound to the path, because a rename moves it as it is.

use aegis::aegis128x2::Aegis128X2;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::geometry::{NONCE_LEN, TAG_LEN};
use super::names::{ROOT, replace_symbols};
use super::secret::{Secret, opaque_debug};
use super::{Error, Random, base91};

/// The directory below [`ROOT`] that holds metadata objects. Readers that don't know it skip it, because its name
/// begins with `-`.
pub const DIRECTORY: &str = "-M2";
/// Sealed metadata has a multiple of this many bytes inside. The rest is filled with spaces.
pub const STEP: usize = 256;
const MAGIC: &[u8; 5] = b"HFEM\x02";
const LABEL: &[u8; 19] = b"hfcrypt metadata v2";
/// Bytes that sealing adds, beside the spaces.
pub const OVERHEAD: usize = MAGIC.len() + NONCE_LEN + TAG_LEN;

/// The cipher for metadata objects and their names.
pub struct MetadataCipher {
    content: Secret<16>,
    name: Secret<32>,
}

impl MetadataCipher {
    pub(super) fn new(content: Secret<16>, name: Secret<32>) -> Self {
        Self { content, name }
    }

    /// Returns the object key of the metadata of the file at `path`, which is the full plaintext path in the bucket.
    pub fn key(&self, path: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.name.expose()).expect("HMAC takes any key length");
        mac.update(path.as_bytes());
        let mut text = base91::encode(&mac.finalize().into_bytes());
        replace_symbols(&mut text);
        format!("{ROOT}/{DIRECTORY}/{text}")
    }

    /// Seals metadata, which is JSON: spaces after it mean nothing.
    pub fn seal(&self, json: &[u8], random: &mut dyn Random) -> Result<Vec<u8>, Error> {
        let mut nonce = [0; NONCE_LEN];
        random.fill(&mut nonce)?;
        let padded = json.len().max(1).next_multiple_of(STEP);
        let mut sealed = Vec::with_capacity(padded + OVERHEAD);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&nonce);
        let start = sealed.len();
        sealed.extend_from_slice(json);
        sealed.resize(start + padded, b' ');
        let tag = self.cipher(&nonce).encrypt_in_place(&mut sealed[start..], LABEL);
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens sealed metadata. [`Error::Unauthentic`]: it is damaged, or sealed with another key.
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let rest = sealed.strip_prefix(MAGIC).ok_or(Error::Unauthentic)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(Error::Unauthentic)?;
        let (body, tag) = rest.split_last_chunk().ok_or(Error::Unauthentic)?;
        let mut json = Zeroizing::new(body.to_vec());
        self.cipher(nonce).decrypt_in_place(&mut json, tag, LABEL).map_err(|_| Error::Unauthentic)?;
        Ok(json)
    }

    fn cipher(&self, nonce: &[u8; NONCE_LEN]) -> Aegis128X2<TAG_LEN> {
        Aegis128X2::new(self.content.expose(), nonce)
    }
}

opaque_debug!(MetadataCipher);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, counting_keys};

    #[test]
    fn metadata_comes_back_and_its_length_is_rounded() {
        for (len, inside) in [(0, 256), (1, 256), (255, 256), (256, 256), (257, 512), (5000, 5120)] {
            let json = vec![b'x'; len];
            let sealed = counting_keys().metadata().seal(&json, &mut Script::new(vec![7; 16])).unwrap();
            assert_eq!(sealed.len(), inside + OVERHEAD);
            let opened = counting_keys().metadata().open(&sealed).unwrap();
            assert!(opened[..len] == json[..] && opened[len..].iter().all(|&byte| byte == b' '));
        }
    }

    #[test]
    fn every_bit_flip_and_every_cut_is_rejected() {
        let (keys, other) = (counting_keys(), crate::Keys::derive(&crate::MasterKey::from_bytes([9; 32])));
        let sealed = keys.metadata().seal(b"{}", &mut Script::new(vec![7; 16])).unwrap();
        assert_eq!(other.metadata().open(&sealed), Err(Error::Unauthentic));
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.metadata().open(&altered), Err(Error::Unauthentic), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(keys.metadata().open(&sealed[..len]), Err(Error::Unauthentic));
        }
    }

    #[test]
    fn keys_of_paths_differ_and_are_skipped_by_readers_of_names() {
        let keys = counting_keys();
        let mut all = std::collections::BTreeSet::new();
        for path in ["a", "b", "a/b", "b/a", "ab", &"long".repeat(60)] {
            let key = keys.metadata().key(path);
            assert!(key.len() <= 60 && key.is_ascii(), "{key}");
            assert!(all.insert(key));
        }
        for format in [crate::Format::V1, crate::Format::V2] {
            assert_eq!(keys.names(format).open("", DIRECTORY), crate::Verdict::Extension);
        }
    }

    #[test]
    fn nothing_is_sealed_without_randomness() {
        let sealed = counting_keys().metadata().seal(b"{}", &mut Script::new(vec![0; 15]));
        assert!(matches!(sealed, Err(Error::Random(_))));
    }
}
