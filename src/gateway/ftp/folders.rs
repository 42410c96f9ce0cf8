//! Folders that clients have emptied.
//!
//! A folder of a bucket exists by what is in it, so it is gone with its last file. Clients that remove a folder with
//! its files expect it to be there until they remove it too. So it is remembered for a while, by all sessions of a
//! server: some clients spread such a removal over several.

use crate::store::PlainPath;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time for which an emptied folder is remembered.
const KEPT: Duration = Duration::from_secs(600);
/// Most folders that are remembered. When there are more, all are forgotten.
const MAX: usize = 100_000;

/// Emptied folders, by bucket and path. Never locked over an await.
#[derive(Default)]
pub(super) struct Emptied(Mutex<HashMap<(String, PlainPath), Instant>>);

impl Emptied {
    /// Remembers the folders above a path that was removed.
    pub(super) fn note(&self, bucket: &str, removed: &PlainPath) {
        let mut folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut path = removed.clone();
        while let Some((parent, _)) = path.split().filter(|(parent, _)| !parent.is_root()) {
            if folders.len() >= MAX {
                folders.clear();
            }
            folders.insert((bucket.to_owned(), parent.clone()), Instant::now());
            path = parent;
        }
    }

    /// Returns true if a folder was emptied a while ago.
    pub(super) fn has(&self, bucket: &str, folder: &PlainPath) -> bool {
        let folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        folders.get(&(bucket.to_owned(), folder.clone())).is_some_and(|at| at.elapsed() < KEPT)
    }

    /// Forgets a folder. Returns true if it was remembered.
    pub(super) fn remove(&self, bucket: &str, folder: &PlainPath) -> bool {
        let mut folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        folders.remove(&(bucket.to_owned(), folder.clone())).is_some_and(|at| at.elapsed() < KEPT)
    }
}

impl Emptied {
    /// Forgets a path and everything below it: something else is there now, or nothing.
    pub(super) fn forget(&self, bucket: &str, path: &PlainPath) {
        let mut folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        folders.retain(|(of, folder), _| of != bucket || !folder.is_within(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_a_removed_file_are_remembered_once() {
        let path = |text: &str| PlainPath::new(text).unwrap();
        let emptied = Emptied::default();
        emptied.note("data", &path("a/b/c"));
        assert!(emptied.has("data", &path("a/b")) && emptied.has("data", &path("a")));
        assert!(!emptied.has("data", &path("a/b/c")) && !emptied.has("data", &PlainPath::root()));
        assert!(!emptied.has("other", &path("a")));
        assert!(emptied.remove("data", &path("a/b")) && !emptied.remove("data", &path("a/b")));
        assert!(emptied.has("data", &path("a")));
        emptied.note("data", &path("b/c/d"));
        emptied.forget("data", &path("b"));
        assert!(!emptied.has("data", &path("b/c")) && emptied.has("data", &path("a")));
        for number in 0..MAX + 10 {
            emptied.note("data", &path(&format!("{number}/x")));
        }
        assert!(emptied.0.lock().unwrap().len() <= MAX);
    }
}
