//! Reads one bucket through its Hub and its CAS, for the views.
//!
//! Keys here are raw object keys. Replies of the Hub are filtered to the requested keys. The tree API matches
//! raw prefixes (Hub API spec, 4.1), and nothing else that a server adds may reach a view.

use super::contents::Contents;
use super::{ContentId, Error};
use crate::hub::{self, BucketId, EMPTY_FILE, Endpoint, FileEntry, Hub, TreeEntry};
use crate::xet::{Cas, Hash, Known, Lookups, upload};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages of one listing. The limit stops a Hub whose pages link to each other in a circle.
pub(super) const MAX_PAGES: u32 = 200_000;

/// A bucket, its Hub and its CAS.
pub(super) struct Remote {
    pub(super) hub: Arc<dyn Hub>,
    /// Present id of the bucket.
    pub(super) bucket: BucketId,
    pub(super) cas: Arc<dyn Cas>,
    pub(super) contents: Contents,
    /// Chunk lists that ranged reads of plain files are checked against.
    pub(super) known: Option<Known>,
    /// Shards of own uploads. Content that the bucket already has is not sent again.
    pub(super) shards: Option<upload::LocalShards>,
    /// Bytes of content that an upload session holds in memory.
    pub(super) session_memory: usize,
    /// Counts lookups of headers.
    pub(super) header_lookups: Arc<Lookups>,
    /// Buckets in which content is registered that this bucket may not know yet. Never held over an await.
    pub(super) adopted: Mutex<HashMap<Hash, BucketId>>,
    /// Kept alive: an embedded Hub stops when its endpoint is dropped.
    pub(super) _endpoint: Option<Arc<Endpoint>>,
}

/// A direct child of a listed key.
pub(super) struct Child {
    /// Its last component.
    pub(super) name: String,
    /// The object. `None`: a key prefix without an object.
    pub(super) file: Option<FileEntry>,
}

/// Contents of other buckets that are remembered. When there are more, all are forgotten.
const MAX_ADOPTED: usize = 4096;

impl Remote {
    /// Remembers that content is registered in another bucket.
    pub(super) fn adopt(&self, hash: Hash, from: &BucketId) {
        // Every bucket knows the empty file.
        if hash == EMPTY_FILE {
            return;
        }
        let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        if adopted.len() >= MAX_ADOPTED {
            adopted.clear();
        }
        adopted.insert(hash, from.clone());
    }

    /// Forgets where content is registered. From its first commit on this bucket knows it, and the other bucket may
    /// lose it at any time.
    pub(super) fn disown(&self, hash: &Hash) {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).remove(hash);
    }

    /// Returns the other bucket that content comes from.
    pub(super) fn adopted(&self, hash: &Hash) -> Option<BucketId> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    /// Returns the direct children of `key`. A name comes twice if an object and a prefix have it.
    pub(super) async fn children(&self, key: &str) -> Result<Vec<Child>, Error> {
        let entries = self.hub.tree(&self.bucket, key, false).await?;
        Ok(children_of(key, entries))
    }

    /// Passes the children of `key` to `enough`, page by page, until it returns true.
    pub(super) async fn children_until(&self, key: &str, mut enough: impl FnMut(&Child) -> bool) -> Result<(), Error> {
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            let page = self.hub.tree_page(&self.bucket, key, false, cursor.as_ref()).await?;
            if children_of(key, page.entries).iter().any(&mut enough) {
                return Ok(());
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
        Err(hub::Error::Malformed("a listing that does not end".into()).into())
    }

    /// Returns true if anything lies below `key`.
    pub(super) async fn has_children(&self, key: &str) -> Result<bool, Error> {
        let mut any = false;
        self.children_until(key, |_| {
            any = true;
            true
        })
        .await?;
        Ok(any)
    }

    /// Returns all objects below `key`, with their keys relative to it.
    pub(super) async fn subtree(&self, key: &str) -> Result<Vec<(String, FileEntry)>, Error> {
        let entries = self.hub.tree(&self.bucket, key, true).await?;
        let files = entries.into_iter().filter_map(|entry| match entry {
            TreeEntry::File(file) => Some(file),
            TreeEntry::Directory { .. } => None,
        });
        Ok(files.filter_map(|file| Some((relative(key, &file.key)?.to_owned(), file))).collect())
    }

    /// Returns the objects among `keys`, by key.
    pub(super) async fn files(&self, keys: &[String]) -> Result<HashMap<String, FileEntry>, Error> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let asked: HashSet<&str> = keys.iter().map(String::as_str).collect();
        let found = self.hub.paths_info(&self.bucket, keys).await?;
        let found = found.into_iter().filter(|file| asked.contains(file.key.as_str()));
        Ok(found.map(|file| (file.key.clone(), file)).collect())
    }

    /// Returns a text that changes with every change of the bucket's files.
    pub(super) async fn revision(&self) -> Result<Option<String>, Error> {
        Ok(self.hub.bucket_info(&self.bucket).await?.updated_at)
    }
}

/// Returns the id of a file's content. `None`: it has none.
pub(super) fn content_id(file: &FileEntry) -> Option<ContentId> {
    file.hash.map(ContentId::Xet).or(file.blob.map(|blob| ContentId::Blob(blob.id)))
}

fn children_of(key: &str, entries: Vec<TreeEntry>) -> Vec<Child> {
    let child = |entry: TreeEntry| {
        // Entries with an empty name are returned too: the views count them.
        let is_nameless = entry.key().strip_prefix(key).is_some_and(|rest| rest == "/");
        let name = if is_nameless { "" } else { relative(key, entry.key())? };
        // One level only. A deeper key in a flat listing is a server's mistake that must not become a name
        // with a slash.
        if name.contains('/') && matches!(entry, TreeEntry::File(_)) {
            return None;
        }
        let name = name.to_owned();
        let file = match entry {
            TreeEntry::File(file) => Some(file),
            TreeEntry::Directory { .. } => None,
        };
        Some(Child { name, file })
    };
    entries.into_iter().filter_map(child).collect()
}

/// Returns `key` relative to the directory key `directory`, if it lies strictly below.
pub(super) fn relative<'a>(directory: &str, key: &'a str) -> Option<&'a str> {
    if directory.is_empty() {
        return (!key.is_empty()).then_some(key);
    }
    key.strip_prefix(directory)?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_keys_strictly_below() {
        assert_eq!(relative("a/b", "a/b/c"), Some("c"));
        assert_eq!(relative("a/b", "a/b/c/d"), Some("c/d"));
        assert_eq!(relative("", "x"), Some("x"));
        for key in ["a/b", "a/bc", "a/b#1", "a/b/", "a", "b", ""] {
            assert_eq!(relative("a/b", key), None, "{key}");
        }
        assert_eq!(relative("", ""), None);
    }

    #[test]
    fn listing_with_empty_names_returns_them() {
        let directory = |key: &str| TreeEntry::Directory { key: key.into(), uploaded_at: None };
        for (at, key) in [("d", "d/"), ("", "/")] {
            let children = children_of(at, vec![directory(key)]);
            assert_eq!(children.iter().map(|child| child.name.as_str()).collect::<Vec<_>>(), [""], "{key}");
        }
        assert!(children_of("d", vec![directory("d")]).is_empty());
    }

    #[test]
    fn directory_and_file_of_one_name_are_both_returned() {
        let file = FileEntry { key: "d/x".into(), size: 1, hash: None, blob: None, mtime: None, uploaded_at: None };
        let deep = FileEntry { key: "d/y/z".into(), ..file.clone() };
        let entries = vec![
            TreeEntry::File(file),
            TreeEntry::Directory { key: "d/x".into(), uploaded_at: None },
            TreeEntry::File(deep),
            TreeEntry::Directory { key: "dx".into(), uploaded_at: None },
        ];
        let children = children_of("d", entries);
        let seen: Vec<_> = children.iter().map(|c| (c.name.as_str(), c.file.is_some())).collect();
        assert_eq!(seen, [("x", true), ("x", false)]);
    }
}
