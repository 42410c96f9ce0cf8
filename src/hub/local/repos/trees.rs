//! Files and folders of a commit, as the database has them.
//!
//! A folder is a tree: rows in the order of Git, under the row of the tree. So a page of a folder is one range of an
//! index, whatever the other folders hold, and folders that are equal in several commits are stored once.
//!
//! A recursive listing descends into each folder right after its own entry. A page ends at a limit. The next one starts
//! after the last entry of the page before, whose path is found again level by level.

use super::git::{Mode, Oid};
use crate::hub::local::db;
use crate::xet::Hash;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row};

/// A file or folder of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::hub::local) struct Entry {
    /// Path from the root of the repository, without a slash at its end.
    pub(in crate::hub::local) path: String,
    pub(in crate::hub::local) oid: Oid,
    pub(in crate::hub::local) mode: Mode,
    pub(in crate::hub::local) node: Node,
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::hub::local) enum Node {
    /// Row of the tree.
    Folder(i64),
    File(File),
}

/// A file's content. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::hub::local) struct File {
    pub(in crate::hub::local) size: u64,
    pub(in crate::hub::local) stored: Stored,
}

/// Place of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub::local) enum Stored {
    /// Row of the blob in the database.
    Blob(i64),
    /// In Xet.
    Xet { hash: Hash, sha256: [u8; 32] },
}

/// Columns of [`Entry::from_row`]. The first one is the name.
const COLUMNS: &str = "name, oid, child, executable, size, blob, sha256, xet";

/// Finds an entry of a tree by its name, as a file and as a folder.
const ONE: &str = "FROM git_entries WHERE tree = ?1 AND name IN (?2, ?3)";
/// Finds the entries of a tree after a name.
const FOLLOWING: &str = "FROM git_entries WHERE tree = ?1 AND name > ?2 ORDER BY name";

impl Entry {
    /// `folder`: path of the folder, with a slash at its end unless it is the root.
    fn from_row(row: &Row<'_>, folder: &str) -> rusqlite::Result<Self> {
        let name = String::from_utf8_lossy(row.get_ref(0)?.as_blob()?);
        let path = format!("{folder}{}", name.trim_end_matches('/'));
        let (node, mode) = match row.get(2)? {
            Some(tree) => (Node::Folder(tree), Mode::Folder),
            None if row.get(3)? => (Node::File(File::from_row(row)?), Mode::Executable),
            None => (Node::File(File::from_row(row)?), Mode::File),
        };
        Ok(Self { path, oid: row.get(1)?, mode, node })
    }

    /// Returns the file that this entry is.
    pub(in crate::hub::local) fn file(&self) -> Option<&File> {
        match &self.node {
            Node::File(file) => Some(file),
            Node::Folder(_) => None,
        }
    }

    /// Returns the place in a listing at which this entry is, for [`list`].
    pub(in crate::hub::local) fn place(&self) -> String {
        let slash = if self.file().is_none() { "/" } else { "" };
        format!("{}{slash}", self.path)
    }
}

impl File {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let size: i64 = row.get(4)?;
        let size = u64::try_from(size).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(4, size))?;
        let stored = match row.get(5)? {
            Some(blob) => Stored::Blob(blob),
            None => Stored::Xet { sha256: row.get(6)?, hash: Hash(row.get(7)?) },
        };
        Ok(Self { size, stored })
    }
}

/// Returns the entry at a path below the tree in row `root`. The root itself has none.
pub(in crate::hub::local) fn find(connection: &Connection, root: i64, path: &str) -> Result<Option<Entry>, db::Error> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} {ONE}"))?;
    let (mut tree, mut above, mut components) = (root, 0, path.split('/').peekable());
    while let Some(name) = components.next() {
        let row = (tree, name.as_bytes(), format!("{name}/").as_bytes().to_vec());
        let Some(entry) = statement.query_row(row, |row| Entry::from_row(row, &path[..above])).optional()? else {
            return Ok(None);
        };
        above += name.len() + 1;
        match (components.peek(), &entry.node) {
            (None, _) => return Ok(Some(entry)),
            (Some(_), Node::Folder(child)) => tree = *child,
            (Some(_), Node::File(_)) => return Ok(None),
        }
    }
    Ok(None)
}

/// Returns the row of the tree at a path; that of the root if the path is empty.
pub(in crate::hub::local) fn find_folder(
    connection: &Connection,
    root: i64,
    path: &str,
) -> Result<Option<i64>, db::Error> {
    if path.is_empty() {
        return Ok(Some(root));
    }
    Ok(find(connection, root, path)?.and_then(|entry| match entry.node {
        Node::Folder(tree) => Some(tree),
        Node::File(_) => None,
    }))
}

/// A listing of one folder.
pub(in crate::hub::local) struct Listing<'a> {
    /// Row of its tree.
    pub(in crate::hub::local) tree: i64,
    /// Its path; empty for the root.
    pub(in crate::hub::local) path: &'a str,
    /// All that is below is listed too.
    pub(in crate::hub::local) recursive: bool,
    /// Most entries.
    pub(in crate::hub::local) limit: usize,
}

/// A page of a listing.
pub(in crate::hub::local) struct Page {
    pub(in crate::hub::local) entries: Vec<Entry>,
    /// There are further entries.
    pub(in crate::hub::local) has_more: bool,
}

/// A folder that is being listed.
struct Level {
    tree: i64,
    /// Path, with a slash at its end unless it is the root.
    path: String,
    /// Name of the last entry that was listed, as in the table.
    after: Vec<u8>,
}

impl Level {
    fn child(&self, tree: i64, entry: &Entry) -> Self {
        Self { tree, path: format!("{}/", entry.path), after: Vec::new() }
    }
}

/// Lists entries after the place `after`; empty: from the start. That is the place ([`Entry::place`]) of an entry of
/// the same listing. A place that isn't there yields any of the entries.
pub(in crate::hub::local) fn list(
    connection: &Connection,
    listing: &Listing<'_>,
    after: &str,
) -> Result<Page, db::Error> {
    let slash = if listing.path.is_empty() { "" } else { "/" };
    let top = Level { tree: listing.tree, path: format!("{}{slash}", listing.path), after: Vec::new() };
    let rest = after.strip_prefix(top.path.as_str()).unwrap_or_default();
    let mut levels = resume(connection, listing, top, rest)?;
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} {FOLLOWING}"))?;
    let mut page = Page { entries: Vec::new(), has_more: false };
    while let Some(mut level) = levels.pop() {
        let below = list_level(&mut statement, listing, &mut level, &mut page)?;
        if page.has_more {
            break;
        }
        if let Some(below) = below {
            levels.extend([level, below]);
        }
    }
    Ok(page)
}

/// Lists a level up to its first folder, if that is to be listed too. Returns the level of that folder.
fn list_level(
    statement: &mut CachedStatement<'_>,
    listing: &Listing<'_>,
    level: &mut Level,
    page: &mut Page,
) -> Result<Option<Level>, db::Error> {
    let mut rows = statement.query((level.tree, &level.after))?;
    while let Some(row) = rows.next()? {
        if page.entries.len() >= listing.limit {
            page.has_more = true;
            return Ok(None);
        }
        let entry = Entry::from_row(row, &level.path)?;
        let below = match entry.node {
            Node::Folder(tree) if listing.recursive => Some(level.child(tree, &entry)),
            _ => None,
        };
        page.entries.push(entry);
        if below.is_some() {
            level.after = row.get(0)?;
            return Ok(below);
        }
    }
    Ok(None)
}

/// Returns the folders in which a listing was when it had come to `rest`, a place below `top`.
fn resume(connection: &Connection, listing: &Listing<'_>, mut top: Level, rest: &str) -> Result<Vec<Level>, db::Error> {
    if !listing.recursive {
        top.after = rest.as_bytes().to_vec();
        return Ok(vec![top]);
    }
    let (mut levels, mut level, mut rest) = (Vec::new(), top, rest);
    while let Some((name, below)) = rest.split_once('/') {
        level.after = format!("{name}/").into_bytes();
        let Some(entry) = find(connection, level.tree, name)? else { break };
        let Node::Folder(tree) = entry.node else { break };
        let path = format!("{}{name}/", level.path);
        levels.push(std::mem::replace(&mut level, Level { tree, path, after: Vec::new() }));
        rest = below;
    }
    if !rest.is_empty() && level.after.is_empty() {
        level.after = rest.as_bytes().to_vec();
    }
    levels.push(level);
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::super::git::blob_id;
    use super::super::record::Snapshot;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A database with the trees of these empty files, and the row of the root.
    fn tree_of(paths: &BTreeSet<String>) -> (Connection, i64) {
        let mut connection = db::in_memory();
        let transaction = connection.transaction().unwrap();
        let oid = blob_id(b"");
        transaction.execute("INSERT INTO git_blobs (oid, content) VALUES (?1, x'')", [oid]).unwrap();
        let files = paths.iter().map(|path| (path.clone(), false, Content { oid, size: 0, xet: None }));
        let root = Snapshot::new(files.collect()).store(&transaction, 0).unwrap();
        transaction.commit().unwrap();
        (connection, root)
    }

    /// Paths without those that would be a file and a folder at once.
    fn paths() -> impl Strategy<Value = BTreeSet<String>> {
        let component = proptest::sample::select(vec!["a", "a-", "a0", "b", "\u{fc}"]);
        let path = proptest::collection::vec(component, 1..4).prop_map(|parts| parts.join("/"));
        proptest::collection::btree_set(path, 0..20).prop_map(|paths| {
            let is_folder = |path: &String| paths.iter().any(|other| other.starts_with(&format!("{path}/")));
            paths.iter().filter(|path| !is_folder(path)).cloned().collect()
        })
    }

    /// Places of all entries below `folder`, in the order of Git.
    fn expected(paths: &BTreeSet<String>, folder: &str, recursive: bool) -> Vec<String> {
        let below = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut places = BTreeSet::new();
        for path in paths.iter().filter(|path| path.starts_with(&below)) {
            let slashes = path.match_indices('/').map(|(at, _)| path[..=at].to_owned());
            let ends = slashes.chain([path.clone()]).filter(|place| place.len() > below.len());
            places.extend(ends.take(if recursive { usize::MAX } else { 1 }));
        }
        places.into_iter().collect()
    }

    fn all_pages(connection: &Connection, listing: &Listing<'_>) -> Vec<String> {
        let (mut places, mut after) = (Vec::new(), String::new());
        loop {
            let page = list(connection, listing, &after).unwrap();
            assert!(page.entries.len() == listing.limit || !page.has_more);
            places.extend(page.entries.iter().map(Entry::place));
            match places.last() {
                Some(last) if page.has_more => after = last.clone(),
                _ => return places,
            }
        }
    }

    proptest! {
        #[test]
        fn pages_of_any_size_list_every_entry_once_in_order_of_git(
            paths in paths(), limit in 1..7usize, recursive: bool,
        ) {
            let (connection, root) = tree_of(&paths);
            for folder in ["", "a", "a/b", "\u{fc}"] {
                let Some(tree) = find_folder(&connection, root, folder).unwrap() else {
                    prop_assert!(expected(&paths, folder, true).is_empty());
                    continue;
                };
                let listing = Listing { tree, path: folder, recursive, limit };
                prop_assert_eq!(all_pages(&connection, &listing), expected(&paths, folder, recursive));
            }
            for place in expected(&paths, "", true) {
                let entry = find(&connection, root, place.trim_end_matches('/')).unwrap().unwrap();
                prop_assert_eq!(entry.place(), place);
            }
        }

        #[test]
        fn forged_cursors_yield_entries_or_nothing(paths in paths(), after in ".*") {
            let (connection, root) = tree_of(&paths);
            let all = expected(&paths, "", true);
            for recursive in [true, false] {
                let listing = Listing { tree: root, path: "", recursive, limit: usize::MAX };
                let page = list(&connection, &listing, &after).unwrap();
                prop_assert!(page.entries.iter().all(|entry| all.contains(&entry.place())));
            }
        }
    }

    #[test]
    fn missing_paths_are_not_found() {
        let (connection, root) = tree_of(&["a/b".to_owned(), "c".to_owned()].into());
        for path in ["", "/", "a/", "/a", "a//b", "a/b/", "c/", "c/d", "b", "A", "a/b/c"] {
            assert_eq!(find(&connection, root, path).unwrap(), None, "{path:?}");
        }
        assert_eq!(find_folder(&connection, root, "c").unwrap(), None);
    }

    #[test]
    fn entries_are_found_by_an_index() {
        let connection = db::in_memory();
        for sql in [ONE, FOLLOWING] {
            let sql = format!("EXPLAIN QUERY PLAN SELECT {COLUMNS} {sql}");
            let mut statement = connection.prepare(&sql).unwrap();
            let mut rows = statement.raw_query();
            let mut steps: Vec<String> = Vec::new();
            while let Some(row) = rows.next().unwrap() {
                steps.push(row.get(3).unwrap());
            }
            assert!(steps.len() == 1 && steps[0].starts_with("SEARCH git_entries USING PRIMARY KEY"), "{steps:?}");
        }
    }
}
