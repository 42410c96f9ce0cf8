//! Metadata objects: what an object store keeps about a file beside its content (format spec, section 13).
//!
//! The metadata of a file is a small JSON object of its own, at a key that follows from the file's path. With a key of
//! the source it is sealed, and no reader of names shows it. Without one it lies below [`DIRECTORY`], where everybody
//! sees it. A commit writes both in one batch, and a lookup of the file asks for both in one request.
//!
//! The JSON names the content that it describes. After another program has written the file, the metadata describes a
//! version that is gone, and its reader ignores it.

use super::contents::Contents;
use super::{ContentId, Entry, Error, Kind, PlainPath};
use crate::crypto::metadata::{DIRECTORY as SEALED_DIRECTORY, OVERHEAD, STEP};
use crate::crypto::{Keys, names::ROOT};
use crate::hub::FileEntry;
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Folder of the metadata objects of a source without a key.
pub const DIRECTORY: &str = ".hugbucket/metadata";
/// Most bytes of the JSON of one file.
pub const MAX_METADATA: usize = 4 << 20;

/// A metadata object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataObject {
    /// Its id.
    pub id: ContentId,
    /// Its stored size in bytes.
    pub stored_len: u64,
}

impl MetadataObject {
    /// Returns a listed object. `None`: it is no object that we wrote.
    pub(super) fn of(file: &FileEntry) -> Option<Self> {
        Some(Self { id: file.hash?.into(), stored_len: file.size })
    }

    /// Reads and opens an object.
    pub(super) async fn read(&self, contents: &Contents, keys: Option<&Keys>) -> Result<Option<Bytes>, Error> {
        if self.stored_len > (MAX_METADATA + STEP + OVERHEAD) as u64 {
            return Ok(None);
        }
        let stored = contents.peek(self.id, self.stored_len, 0..self.stored_len).await?;
        let Some(keys) = keys else { return Ok(Some(stored)) };
        Ok(keys.metadata().open(&stored).ok().map(|json| Bytes::copy_from_slice(&json)))
    }
}

/// A path and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The file. `None`: there is none.
    pub file: Option<Kind>,
    /// Its metadata object.
    pub metadata: Option<MetadataObject>,
}

/// Returns the key of the metadata of a plaintext object, whose full key is `key`.
pub(super) fn plain_key(key: &str) -> String {
    let digest: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{DIRECTORY}/{digest}")
}

/// Returns true if an object key is one of a metadata object, sealed or not.
pub(super) fn is_metadata(key: &str) -> bool {
    let sealed = || key.strip_prefix(ROOT)?.strip_prefix('/')?.strip_prefix(SEALED_DIRECTORY)?.strip_prefix('/');
    sealed().is_some() || key.strip_prefix(DIRECTORY).is_some_and(|rest| rest.starts_with('/'))
}

/// Returns true if a plaintext path is in the folder that metadata objects and their like have for themselves.
pub fn is_reserved(path: &PlainPath) -> bool {
    path.as_str().split('/').next() == DIRECTORY.split('/').next()
}

impl Entry {
    /// Returns the entity tag of a file, in the quotes of HTTP. It needs no format: the id of the stored object names
    /// the content. Equal tags mean equal content. On a source with a key the opposite isn't true, because equal
    /// content is sealed to another object each time. `None`: a directory, or an object without an id.
    pub fn etag(&self) -> Option<String> {
        match &self.kind {
            Kind::File { version, .. } => version.map(|version| format!("\"{}\"", version.id)),
            Kind::Directory { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{counting_keys, hash_of, path};
    use crate::store::{Len, Side, Version};

    #[test]
    fn etag_is_hash_of_version() {
        let file = |content| {
            let version = Some(Version { id: hash_of(content).into(), stored_len: 1, side: Side::Plain });
            let kind = Kind::File { version, len: Len::Known(1), mtime: None, read_only: false };
            Entry { name: "f".into(), kind }
        };
        assert_eq!(file("a").etag(), Some(format!("\"{}\"", hash_of("a"))));
        assert_ne!(file("a").etag(), file("b").etag());
        assert_eq!(Entry { name: "d".into(), kind: Kind::Directory { read_only: false } }.etag(), None);
    }

    #[test]
    fn reserved_folder_is_the_one_at_the_root() {
        for (at, reserved) in [(".hugbucket", true), (".hugbucket/x", true), ("a/.hugbucket", false), (".hug", false)] {
            assert_eq!(is_reserved(&path(at)), reserved, "{at}");
        }
        assert!(is_reserved(&path(&plain_key("a"))));
    }

    #[test]
    fn plain_keys_are_those_of_the_vectors() {
        let file = format!("{}/tests/vectors/crypto/metadata.json", env!("CARGO_MANIFEST_DIR"));
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let cases = file["plain_keys"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            assert_eq!(plain_key(case["path"].as_str().unwrap()), case["key"]);
        }
    }

    #[test]
    fn keys_of_metadata_are_told_from_others() {
        let sealed = counting_keys().metadata().key("a");
        assert!(is_metadata(&plain_key("a")) && is_metadata(&sealed));
        for key in [".hugbucket/metadata", ".hugbucket/other", "x/.hugbucket/metadata/a", ".enc/-M2", ".enc/-M2x/a"] {
            assert!(!is_metadata(key), "{key}");
        }
    }
}
