//! Lists all files below a directory in pages, for readers that must not hold a whole tree in memory.
//!
//! A [`Walk`] goes through a [`View`] directory by directory and returns the files in a fixed order. A reader
//! that no longer has its walk, or whose protocol is stateless, starts a new one after the last path that it
//! has seen.
//!
//! **Order.** Ascending by the bytes of the plaintext path, as S3 lists keys: `a`, `a.txt`, `a/b`, `b`. A
//! directory is placed where its name followed by a slash would be. Stored names of a source with a key have
//! another order, so a walk over the stored tree can't replace the walk over directories.
//!
//! **Memory.** The listing of each directory on the way from the start to the current file, and the page. One
//! directory is always listed whole.
//!
//! **Concurrent changes.** Each directory is in the state in which the walk listed it. A file that exists all
//! the time is returned exactly once. A file that is moved may be returned twice, or not at all.
//!
//! Aliases of files next to a folder of their name are files like others. Entries that a listing hides are
//! counted in [`Page::hidden`]. A directory that can't be listed is an error of the next call that has no
//! files to return. The walk may then be continued.

use super::{Entry, Error, Hidden, HubError, Kind, Listing, PlainPath, View};

/// Nesting depth of directories. The limit stops at a server that invents an endless tree. Real keys are far
/// shorter.
const MAX_DEPTH: usize = 4096;

/// A file found by a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Its path in the view.
    pub path: PlainPath,
    /// Always [`Kind::File`]. Its size may be [`Unread`](super::Len::Unread), as in a listing.
    pub kind: Kind,
}

/// Some files of a walk.
#[derive(Debug, Default)]
pub struct Page {
    /// Files, in the order of the walk.
    pub files: Vec<Walked>,
    /// Counts of entries that are hidden in the directories listed for this page.
    pub hidden: Hidden,
    /// True if the walk has ended. Otherwise a new walk after the last of `files` continues it.
    pub is_last: bool,
}

/// A recursive listing in progress.
pub struct Walk<'a> {
    view: &'a dyn View,
    /// Paths must begin with this text.
    prefix: String,
    /// Paths must come after this one in the order of the walk.
    after: String,
    /// Directories from the start to the current one, each with its remaining entries, the next one last.
    levels: Vec<(PlainPath, Vec<Entry>)>,
    /// A directory to be listed next.
    next: Option<PlainPath>,
}

impl<'a> Walk<'a> {
    /// Starts a walk over the files whose path begins with `prefix`, a text that may end within a name.
    /// `after`: only files after this path. Nothing is listed yet.
    pub fn new(view: &'a dyn View, prefix: &str, after: Option<&PlainPath>) -> Self {
        let start = prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        Self {
            view,
            prefix: prefix.to_owned(),
            after: after.map_or_else(String::new, |path| path.as_str().to_owned()),
            levels: Vec::new(),
            // A prefix that is not a path has no files.
            next: PlainPath::new(start).ok(),
        }
    }

    /// Returns the next files, `limit` at most. Lists as many directories as that takes. Fewer files are
    /// returned at the end, and before a directory that can't be listed.
    pub async fn page(&mut self, limit: usize) -> Result<Page, Error> {
        let mut page = Page::default();
        loop {
            match self.descend().await {
                Ok(hidden) => page.hidden += hidden,
                Err(error) if page.files.is_empty() => return Err(error),
                // Files that were found are returned first. The next call lists the directory again.
                Err(_) => return Ok(page),
            }
            let Some((directory, entries)) = self.levels.last_mut() else {
                page.is_last = true;
                return Ok(page);
            };
            let Some(entry) = entries.last() else {
                self.levels.pop();
                continue;
            };
            let path = directory.join(&entry.name)?;
            if matches!(entry.kind, Kind::Directory { .. }) {
                self.next = Some(path);
            } else if page.files.len() < limit {
                page.files.push(Walked { path, kind: entry.kind.clone() });
            } else {
                return Ok(page);
            }
            entries.pop();
        }
    }

    /// Lists the next directory, and adds a level with those of its entries that may hold files of the walk.
    async fn descend(&mut self) -> Result<Hidden, Error> {
        let Some(directory) = &self.next else { return Ok(Hidden::default()) };
        if self.levels.len() == MAX_DEPTH {
            return Err(HubError::Malformed("a directory tree that does not end".into()).into());
        }
        let Listing { mut entries, hidden } = self.view.list(directory).await?;
        let above = if directory.is_root() { String::new() } else { format!("{}/", directory.as_str()) };
        entries.retain(|entry| self.may_hold(&format!("{above}{}", key(entry)), entry));
        entries.sort_by_cached_key(|entry| std::cmp::Reverse(key(entry)));
        self.levels.extend(self.next.take().map(|directory| (directory, entries)));
        Ok(hidden)
    }

    /// Returns true if the entry is a file of the walk, or a directory that may hold one. `key` is its path,
    /// with a slash after that of a directory.
    fn may_hold(&self, key: &str, entry: &Entry) -> bool {
        let (prefix, after) = (self.prefix.as_str(), self.after.as_str());
        match entry.kind {
            Kind::Directory { .. } => {
                (key.starts_with(prefix) || prefix.starts_with(key)) && (key > after || after.starts_with(key))
            }
            Kind::File { .. } => key.starts_with(prefix) && key > after,
        }
    }
}

/// Returns the text that gives an entry its place among the others of its directory.
fn key(entry: &Entry) -> String {
    match entry.kind {
        Kind::Directory { .. } => format!("{}/", entry.name),
        Kind::File { .. } => entry.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Format::V2;
    use crate::store::testing::{Keyed, hash_of, path};
    use std::collections::BTreeSet;

    const FILES: [&str; 12] =
        ["a", "a.txt", "a-b", "b/a", "b/c/d", "b/c/e", "b/cc", "b-", "bb/x", "n/i", "z/z/z/z", "ü/ü"];

    /// Returns all paths of a walk, `limit` per page, without those of the encrypted tree that a plain view
    /// shows.
    async fn walked(view: &dyn View, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
        let (mut walk, mut paths) = (Walk::new(view, prefix, after.map(path).as_ref()), Vec::new());
        loop {
            let page = walk.page(limit).await.unwrap();
            assert!(page.files.len() <= limit && (page.is_last || page.files.len() == limit));
            assert!(page.files.iter().all(|file| matches!(file.kind, Kind::File { .. })));
            paths.extend(page.files.into_iter().map(|file| file.path.as_str().to_owned()));
            if page.is_last {
                paths.retain(|path| !path.starts_with(".enc/"));
                return paths;
            }
        }
    }

    #[tokio::test]
    async fn walk_with_any_prefix_and_start_returns_files_in_order() {
        let keyed = Keyed::new().await;
        for at in FILES.into_iter().chain(["n"]) {
            keyed.hub.put(at, hash_of(at), 1);
            keyed.object(at, V2, at);
        }
        let mut files: Vec<&str> = FILES.into_iter().chain(["n (conflict with folder)"]).collect();
        files.sort_unstable();
        let mut prefixes: BTreeSet<&str> = ["nothing", "/", "a//", "b//c"].into();
        for at in &files {
            prefixes.extend(at.char_indices().map(|(end, _)| &at[..end]).chain([*at]));
        }
        let plain = keyed.plain();
        let sides: [&dyn View; 2] = [&*keyed.view, &plain];
        for view in sides {
            for limit in [1, 2, 7, 1000] {
                assert_eq!(walked(view, "", None, limit).await, files);
            }
            for prefix in &prefixes {
                let below: Vec<&str> = files.iter().filter(|at| at.starts_with(prefix)).copied().collect();
                assert_eq!(walked(view, prefix, None, 3).await, below, "{prefix}");
            }
            // Also after paths that are directories, or that nothing is at.
            for at in files.iter().chain(&prefixes).filter(|at| PlainPath::new(at).is_ok()) {
                let rest: Vec<&str> = files.iter().filter(|file| *file > at).copied().collect();
                assert_eq!(walked(view, "", Some(at), 1000).await, rest, "after {at}");
            }
        }
    }

    #[tokio::test]
    async fn walk_of_one_page_lists_needed_directories_only() {
        let keyed = Keyed::new().await;
        for directory in 0..1000 {
            keyed.hub.put(&format!("d/{directory:03}/f"), hash_of("f"), 1);
        }
        let plain = keyed.plain();
        let mut walk = Walk::new(&plain, "d/", None);
        for page in 0..3 {
            keyed.hub.take_listings();
            let found = walk.page(10).await.unwrap();
            assert_eq!(found.files[9].path, path(&format!("d/0{page}9/f")));
            assert!(keyed.hub.take_listings() <= 12);
            assert!(walk.levels.len() <= 2);
        }
        assert_eq!(walked(&plain, "d/", Some("d/998/f"), 9).await, ["d/999/f"]);
        assert_eq!(walked(&plain, "d/50", None, 9).await.len(), 10);
        assert!(keyed.hub.take_listings() <= 3 + 11);
    }

    #[tokio::test]
    async fn walk_reports_hidden_entries_and_continues_after_error() {
        let keyed = Keyed::new().await;
        for at in ["a", "d/b", "e", "f/g"] {
            keyed.object(at, V2, at);
        }
        keyed.hub.put(".enc/foreign", hash_of("foreign"), 1);
        let mut walk = Walk::new(&*keyed.view, "", None);
        let paths = |page: &Page| page.files.iter().map(|file| file.path.as_str().to_owned()).collect::<Vec<_>>();
        let page = walk.page(1).await.unwrap();
        assert_eq!((paths(&page), page.hidden.foreign, page.is_last), (vec!["a".to_owned()], 1, false));
        keyed.hub.reads_fail_after(0);
        let page = walk.page(9).await.unwrap();
        assert_eq!((paths(&page), page.is_last), (vec!["d/b".to_owned(), "e".to_owned()], false));
        assert!(walk.page(9).await.is_err());
        keyed.hub.no_more_faults();
        let page = walk.page(9).await.unwrap();
        assert_eq!((paths(&page), page.is_last), (vec!["f/g".to_owned()], true));
    }
}
