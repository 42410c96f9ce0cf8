//! Secret keys and their derivation (format spec, sections 1, 4b and 4c).
//!
//! Key bytes lie on the heap, where no move copies them, and are wiped on drop; so are the AES key schedules. What
//! the crates beneath leave behind and cannot be wiped from here: the copy of a key that `aegis` puts on the stack
//! for each call, and its MAC state; HKDF's pseudorandom key, once per derivation; and the two blocks that HCTR2
//! precomputes from its key, which decrypt nothing by themselves.

use hkdf::Hkdf;
use sha2::Sha256;
use turboshake::TurboShake128;
use turboshake::digest::{ExtendableOutput, Update, XofReader};
use zeroize::{Zeroize, Zeroizing};

use super::journal::JournalCipher;
use super::metadata::MetadataCipher;
use super::secret::{Secret, opaque_debug};
use super::wide::WideCipher;
use super::{Error, FileId, Format, NameCipher, Random, RecordCipher};

/// The 32-byte master key. Wiped on drop, never printed, never moved in memory.
pub struct MasterKey(Secret<32>);

impl MasterKey {
    /// Takes over 32 key bytes. Wipes its own copy; the caller's, if there is one, is the caller's to wipe.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(Secret::fill(|place| place.copy_from_slice(&bytes)));
        bytes.zeroize();
        key
    }

    /// Draws a fresh key.
    pub fn generate(random: &mut dyn Random) -> Result<Self, Error> {
        Self::try_fill(|place| random.fill(place))
    }

    /// Lets `write` put the key where it will stay.
    pub(super) fn try_fill(write: impl FnOnce(&mut [u8; 32]) -> Result<(), Error>) -> Result<Self, Error> {
        Secret::try_fill(write).map(Self)
    }

    /// The raw bytes, for writing a key file.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

/// Names a master key, whatever the format; shown as 16 hex digits. Not secret, local display only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(pub [u8; 8]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Every subkey of one master key, both formats. `Send + Sync`, wiped on drop; share it in an `Arc`.
pub struct Keys {
    id: KeyId,
    names_v1: NameCipher,
    names_v2: NameCipher,
    content_v1: ContentKey,
    content_v2: ContentKey,
    header: WideCipher,
    journal: JournalCipher,
    metadata: MetadataCipher,
}

impl Keys {
    /// Derives all subkeys.
    pub fn derive(master: &MasterKey) -> Self {
        let one = Derivation::new("hf-mount/v1", master);
        let two = Derivation::new("hfcrypt/v2", master);
        let mut id = [0; 8];
        two.expand("hfcrypt v2 key id", &mut id);
        let long_name = two.secret("hfcrypt v2 long name hmac-sha256");
        Self {
            id: KeyId(id),
            names_v1: NameCipher::v1(&one.secret("hf-mount path-encryption-key hctr2-aes128 v1")),
            names_v2: NameCipher::v2(&two.secret("hfcrypt v2 path key hctr2-aes128"), long_name),
            content_v1: ContentKey(one.secret("hf-mount file-content-key aegis-128x2 v1")),
            content_v2: ContentKey(two.secret("hfcrypt v2 content key aegis-128x2")),
            header: WideCipher::new(&two.secret("hfcrypt v2 header key hctr2-aes128")),
            journal: JournalCipher::new(two.secret("hfcrypt v2 journal key aegis-128x2")),
            metadata: MetadataCipher::new(
                two.secret("hfcrypt v2 metadata key aegis-128x2"),
                two.secret("hfcrypt v2 metadata name hmac-sha256"),
            ),
        }
    }

    /// The key id of the master key.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The name cipher of a format.
    pub fn names(&self, format: Format) -> &NameCipher {
        match format {
            Format::V1 => &self.names_v1,
            Format::V2 => &self.names_v2,
        }
    }

    /// The record cipher of one file.
    pub fn records(&self, format: Format, file_id: &FileId) -> RecordCipher {
        RecordCipher::new(self.content(format).file_keys(file_id), *file_id)
    }

    /// The cipher of local journals (section 4c). The same for mounts of either format.
    pub fn journal(&self) -> &JournalCipher {
        &self.journal
    }

    /// The cipher of metadata objects (docs/format.md, section 13). The same for files of either format.
    pub fn metadata(&self) -> &MetadataCipher {
        &self.metadata
    }

    pub(super) fn content(&self, format: Format) -> &ContentKey {
        match format {
            Format::V1 => &self.content_v1,
            Format::V2 => &self.content_v2,
        }
    }

    pub(super) fn header_cipher(&self) -> &WideCipher {
        &self.header
    }
}

/// The pseudorandom key of one format, from which its subkeys are expanded.
struct Derivation(Hkdf<Sha256>);

impl Derivation {
    fn new(salt: &str, master: &MasterKey) -> Self {
        Self(Hkdf::new(Some(salt.as_bytes()), master.expose()))
    }

    fn secret<const N: usize>(&self, label: &str) -> Secret<N> {
        Secret::fill(|place| self.expand(label, place))
    }

    fn expand(&self, label: &str, out: &mut [u8]) {
        self.0.expand(label.as_bytes(), out).expect("no subkey is near HKDF's limit of 8160 bytes");
    }
}

/// The content key of one format.
pub(super) struct ContentKey(Secret<16>);

impl ContentKey {
    /// The keys of one file.
    pub(super) fn file_keys(&self, file_id: &FileId) -> FileKeys {
        let mut message = Zeroizing::new([0; 56]);
        message[..16].copy_from_slice(b"aegis-raf-kdf-v1");
        message[16..32].copy_from_slice(self.0.expose());
        message[32..].copy_from_slice(&file_id.0);
        let mut hash = TurboShake128::default();
        hash.update(&*message);
        FileKeys(Secret::fill(|place| hash.finalize_xof().read(place)))
    }
}

/// What is derived from a content key and a file id: the record key, then the header key.
pub(super) struct FileKeys(Secret<32>);

impl FileKeys {
    pub(super) fn record(&self) -> &[u8; 16] {
        self.0.expose().first_chunk().expect("16 of 32 bytes")
    }

    pub(super) fn header(&self) -> &[u8; 16] {
        self.0.expose().last_chunk().expect("16 of 32 bytes")
    }
}

#[cfg(test)]
impl ContentKey {
    /// For the oracles, which take the key itself.
    pub(super) fn expose(&self) -> &[u8; 16] {
        self.0.expose()
    }
}

opaque_debug!(MasterKey, Keys, ContentKey, FileKeys);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::counting_keys;

    #[test]
    fn keys_and_ciphers_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Keys>();
        shared::<RecordCipher>();
        shared::<NameCipher>();
        shared::<JournalCipher>();
        shared::<MasterKey>();
    }

    #[test]
    fn debug_shows_no_key_bytes() {
        let keys = counting_keys();
        let shown = format!("{keys:?} {:?} {:?}", MasterKey::from_bytes([0x41; 32]), keys.names(Format::V1));
        assert_eq!(shown, "Keys(..) MasterKey(..) NameCipher(..)");
        assert_eq!(format!("{:?}", keys.records(Format::V1, &FileId([1; 24]))), "RecordCipher(..)");
        assert_eq!(format!("{:?}", keys.journal()), "JournalCipher(..)");
    }

    #[test]
    fn formats_share_no_subkey() {
        let keys = counting_keys();
        let id = FileId([1; 24]);
        assert_ne!(keys.content(Format::V1).expose(), keys.content(Format::V2).expose());
        let [one, two] = [Format::V1, Format::V2].map(|format| keys.content(format).file_keys(&id));
        assert_ne!(one.record(), two.record());
        assert_ne!(one.header(), two.header());
    }

    #[test]
    fn a_key_id_shows_as_16_hex_digits() {
        assert_eq!(KeyId([0, 1, 2, 3, 0xab, 0xcd, 0xef, 0xff]).to_string(), "00010203abcdefff");
    }
}
