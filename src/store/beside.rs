//! Reads the plaintext side of a merged view without revealing encrypted names.
//!
//! The Hub must not learn names of the encrypted tree from requests for the plaintext side: **no request
//! names a path that the Hub hasn't named first**. So a directory is searched in the listing of the one above
//! it, from the bucket's root down, including the prefix of a subfolder mount. Only a directory that is found
//! there is listed. A name that was found is trusted for [`FRESH`], because otherwise every check would cost
//! a request per level. A name that was not found is never trusted to be absent. The level is read again, or,
//! if it is large, the bucket's revision.

use super::plain::PlainTree;
use super::{Entry, Error, Kind, Listing, PlainPath};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Time for which the names in a plaintext directory are trusted. A request for a directory that was removed
/// meanwhile returns nothing.
const FRESH: Duration = Duration::from_secs(10);
/// Number of names above which a level takes several requests to read. Reading the bucket's revision takes
/// one.
const LARGE: usize = 1000;
/// Names kept over all directories, some 100 MB at worst. If there are more, all are forgotten.
const MAX_NAMES: usize = 1_000_000;

/// The plaintext objects of a bucket, for a view with a key.
pub(super) struct Beside {
    tree: PlainTree,
    /// By full key. Never held over an await.
    levels: Mutex<HashMap<String, Arc<Level>>>,
}

/// The names in a plaintext directory.
struct Level {
    read: Instant,
    /// The bucket's revision before the level was read. Only set for a large level that was read again.
    revision: Option<String>,
    directories: HashSet<String>,
    files: HashSet<String>,
}

impl Beside {
    pub(super) fn new(tree: PlainTree) -> Self {
        Self { tree, levels: Mutex::default() }
    }

    /// Returns the entries of a directory, none if it doesn't exist.
    pub(super) async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        if !self.is_directory(directory).await? {
            return Ok(Listing::default());
        }
        self.tree.list(directory).await
    }

    /// Returns one entry.
    pub(super) async fn stat(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        if self.is_directory(path).await? {
            return Ok(Some(Kind::Directory { read_only: true }));
        }
        if !self.is_file(path).await? {
            return Ok(None);
        }
        self.tree.stat(path).await
    }

    /// Returns the file at exactly this path. The Hub must have named it.
    pub(super) async fn file(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        Ok(self.tree.files(std::slice::from_ref(path)).await?.pop().and_then(|described| described.file))
    }

    /// Returns true if a directory exists. The root of the view always does.
    pub(super) async fn is_directory(&self, path: &PlainPath) -> Result<bool, Error> {
        let key = self.tree.key(path);
        Ok(match self.parent(&key).await? {
            Some((level, name)) => level.directories.contains(name),
            None => key.is_empty(),
        })
    }

    /// Returns true if an object exists.
    pub(super) async fn is_file(&self, path: &PlainPath) -> Result<bool, Error> {
        let key = self.tree.key(path);
        Ok(self.parent(&key).await?.is_some_and(|(level, name)| level.files.contains(name)))
    }

    /// Returns the directory that holds `key`, and the key's name in it. `None`: the directory doesn't exist.
    async fn parent<'a>(&self, key: &'a str) -> Result<Option<(Arc<Level>, &'a str)>, Error> {
        if key.is_empty() {
            return Ok(None);
        }
        let (mut directory, mut start) = ("", 0);
        for (at, _) in key.match_indices('/') {
            if !self.level(directory, &key[start..at]).await?.directories.contains(&key[start..at]) {
                return Ok(None);
            }
            (directory, start) = (&key[..at], at + 1);
        }
        Ok(Some((self.level(directory, &key[start..]).await?, &key[start..])))
    }

    /// Returns the names in a directory that the Hub has named. If `name` isn't among them, the level is
    /// complete.
    async fn level(&self, key: &str, name: &str) -> Result<Arc<Level>, Error> {
        let known = self.levels.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        let mut revision = None;
        if let Some(level) = known {
            let named = level.directories.contains(name) || level.files.contains(name);
            if named && level.read.elapsed() < FRESH {
                return Ok(level);
            }
            if level.len() > LARGE {
                // The revision is read before the listing, so that a change in between is noticed.
                revision = self.tree.remote.revision().await?;
                if revision.is_some() && revision == level.revision {
                    return Ok(level);
                }
            }
        }
        let listing = self.tree.list_key(key).await?;
        Ok(self.keep(key, revision, listing))
    }

    fn keep(&self, key: &str, revision: Option<String>, listing: Listing) -> Arc<Level> {
        let (mut directories, mut files) = (HashSet::new(), HashSet::new());
        for Entry { name, kind } in listing.entries {
            let names = if matches!(kind, Kind::Directory { .. }) { &mut directories } else { &mut files };
            names.insert(name);
        }
        let level = Arc::new(Level { read: Instant::now(), revision, directories, files });
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let names: usize = levels.values().map(|level| level.len()).sum();
        if names + level.len() > MAX_NAMES {
            levels.clear();
        }
        levels.insert(key.to_owned(), level.clone());
        level
    }
}

impl Level {
    /// Returns the number of names, as the cost of keeping the level.
    fn len(&self) -> usize {
        1 + self.directories.len() + self.files.len()
    }
}
