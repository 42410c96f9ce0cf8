//! The id of a file's content: a Xet hash, or the blob id of Git.
//!
//! Objects of a bucket have a Xet hash. A repository also has small files that are stored in Git only. They have no Xet
//! hash, so the Hub names their content by its Git blob id. Code that only compares or records content uses
//! [`ContentId`] and treats both kinds alike. Code that commits content or reads it from Xet needs the Xet hash:
//! [`ContentId::xet`] returns it, or a typed error for a blob.

use super::Error;
use crate::xet::Hash;
use std::fmt;

/// The id of a file's content.
///
/// Two ids of one kind are equal if the contents are. Ids of different kinds are never equal, even for one content.
///
/// `Display` prints lowercase hex: 64 digits of a Xet hash, 40 digits of a blob id. The alternate form (`{:#}`) puts
/// `xet:` or `blob:` before the digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContentId {
    /// Xet hash of the stored object.
    Xet(Hash),
    /// Git blob id: SHA-1 of the length and the content of a file in a repository.
    Blob([u8; 20]),
}

impl ContentId {
    /// Returns the Xet hash. Fails with [`Error::UnsupportedBlob`] if the content is a Git blob.
    pub fn xet(self) -> Result<Hash, Error> {
        match self {
            Self::Xet(hash) => Ok(hash),
            Self::Blob(_) => Err(Error::UnsupportedBlob),
        }
    }
}

impl ContentId {
    /// Returns a name for local caches, different for any two ids. That of a Xet hash is the hash.
    pub(super) fn cache_name(self) -> Hash {
        match self {
            Self::Xet(hash) => hash,
            Self::Blob(id) => Hash(blake3::derive_key("hfcrypt 2026 name of a Git blob in local caches", &id)),
        }
    }
}

impl From<Hash> for ContentId {
    fn from(hash: Hash) -> Self {
        Self::Xet(hash)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            _ if !f.alternate() => "",
            Self::Xet(_) => "xet:",
            Self::Blob(_) => "blob:",
        };
        f.write_str(kind)?;
        match self {
            Self::Xet(hash) => write!(f, "{hash}"),
            Self::Blob(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: ContentId = ContentId::Blob([0xe6; 20]);

    #[test]
    fn content_id_prints_lowercase_hex_and_its_kind_on_request() {
        let hash = Hash([0xab; 32]);
        let (xet, blob) = ("ab".repeat(32), "e6".repeat(20));
        assert_eq!(ContentId::from(hash).to_string(), hash.to_string());
        assert_eq!(format!("{0} {0:#}", ContentId::Xet(hash)), format!("{xet} xet:{xet}"));
        assert_eq!(format!("{BLOB} {BLOB:#}"), format!("{blob} blob:{blob}"));
    }

    #[test]
    fn blob_id_has_no_xet_hash() {
        let hash = Hash([1; 32]);
        assert_eq!(ContentId::Xet(hash).xet().unwrap(), hash);
        assert!(matches!(BLOB.xet(), Err(Error::UnsupportedBlob)));
    }

    #[test]
    fn ids_of_different_kinds_are_not_equal() {
        assert_ne!(ContentId::Xet(Hash([0; 32])), ContentId::Blob([0; 20]));
    }
}
