//! Writes a commit of imported files into the database, and moves its branch, in one transaction.

use super::content::Content;
use super::error::ImportError;
use super::git::{CommitText, Mode, Oid, tree_id};
use super::history::Commit;
use super::id::RepositoryId;
use super::repository::Repository;
use crate::hub::local::accounts::now_millis;
use crate::hub::local::cas::CasStore;
use rusqlite::{OptionalExtension, Transaction};
use std::collections::BTreeMap;

/// Result of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Id of the commit, 40 hex digits.
    pub commit: String,
    /// False if the branch had exactly these files: then there is no new commit.
    pub is_new: bool,
    /// Number of files.
    pub files: u64,
    /// Sum of their sizes in bytes.
    pub size: u64,
}

/// Author of commits.
const AUTHOR: &str = "hugbucket <hugbucket@localhost>";

/// An entry of a tree that is to be written. Its name ends with `/` if it is a folder.
struct NewEntry {
    name: Vec<u8>,
    mode: Mode,
    oid: Oid,
    /// `None` for a folder.
    content: Option<Content>,
}

impl NewEntry {
    /// The name without the slash of a folder.
    fn plain_name(&self) -> &[u8] {
        self.name.strip_suffix(b"/").unwrap_or(&self.name)
    }
}

/// A tree that is to be written, with its id.
struct NewTree {
    oid: Oid,
    entries: Vec<NewEntry>,
}

/// The files of a commit that is to be made.
pub(super) struct Snapshot {
    /// All trees, each after those of its folders. The last one is the root.
    trees: Vec<NewTree>,
    files: u64,
    size: u64,
}

impl Snapshot {
    /// Makes the trees of these files: path, whether it may be executed, content.
    pub(super) fn new(files: Vec<(String, bool, Content)>) -> Self {
        let (count, size) = (files.len() as u64, files.iter().map(|(_, _, content)| content.size).sum());
        // Folders by path, and their entries in the order of Git.
        let mut folders: BTreeMap<String, BTreeMap<Vec<u8>, NewEntry>> = BTreeMap::new();
        folders.insert(String::new(), BTreeMap::new());
        for (path, executable, content) in files {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let mode = if executable { Mode::Executable } else { Mode::File };
            let name = name.as_bytes().to_vec();
            let entry = NewEntry { name: name.clone(), mode, oid: content.oid, content: Some(content) };
            folders.entry(above.to_owned()).or_default().insert(name, entry);
        }
        let mut trees = Vec::new();
        // A folder's path comes after that of the folder it is in: the last one holds no folder that is still open.
        while let Some((path, entries)) = folders.pop_last() {
            let entries: Vec<NewEntry> = entries.into_values().collect();
            let oid = tree_id(entries.iter().map(|entry| (entry.plain_name(), entry.mode, entry.oid)));
            trees.push(NewTree { oid, entries });
            if !path.is_empty() {
                let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
                let name = format!("{name}/").into_bytes();
                let entry = NewEntry { name: name.clone(), mode: Mode::Folder, oid, content: None };
                folders.entry(above.to_owned()).or_default().insert(name, entry);
            }
        }
        Self { trees, files: count, size }
    }

    fn root(&self) -> Oid {
        self.trees.last().expect("the root is always there").oid
    }

    /// Writes the trees that the database doesn't have. Returns the row of the root.
    pub(super) fn store(&self, transaction: &Transaction<'_>, repository: i64) -> Result<i64, ImportError> {
        let mut root = 0;
        for tree in &self.trees {
            tree.check_links(transaction, repository)?;
            root = match tree_row(transaction, tree.oid)? {
                Some(row) => row,
                None => tree.store(transaction)?,
            };
        }
        Ok(root)
    }
}

impl NewTree {
    /// Fails unless the repository's tokens can read all files in Xet.
    fn check_links(&self, transaction: &Transaction<'_>, repository: i64) -> Result<(), ImportError> {
        for content in self.entries.iter().filter_map(|entry| entry.content.as_ref()) {
            let Some((_, hash)) = &content.xet else { continue };
            if CasStore::linked_file_len(transaction, repository, hash)? != Some(content.size) {
                return Err(ImportError::hub(format!("the content {hash} is not in the Xet storage")));
            }
        }
        Ok(())
    }

    fn store(&self, transaction: &Transaction<'_>) -> Result<i64, ImportError> {
        transaction.prepare_cached("INSERT INTO git_trees (oid) VALUES (?1)")?.execute([self.oid])?;
        let row = transaction.last_insert_rowid();
        let mut insert = transaction.prepare_cached(
            "INSERT INTO git_entries (tree, name, oid, child, executable, size, blob, sha256, xet)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        for entry in &self.entries {
            let child = match entry.mode {
                Mode::Folder => tree_row(transaction, entry.oid)?,
                _ => None,
            };
            let content = entry.content.as_ref();
            let blob = match content {
                Some(Content { oid, xet: None, .. }) => Some(blob_row(transaction, *oid)?),
                _ => None,
            };
            let size = content.map_or(0, |content| signed(content.size));
            let (sha256, xet) = content.and_then(|content| content.xet).unzip();
            let (executable, xet) = (entry.mode == Mode::Executable, xet.map(|hash| hash.0));
            insert.execute((row, &entry.name, entry.oid, child, executable, size, blob, sha256, xet))?;
        }
        Ok(row)
    }
}

fn tree_row(transaction: &Transaction<'_>, oid: Oid) -> rusqlite::Result<Option<i64>> {
    let mut query = transaction.prepare_cached("SELECT id FROM git_trees WHERE oid = ?1")?;
    query.query_row([oid], |row| row.get(0)).optional()
}

fn blob_row(transaction: &Transaction<'_>, oid: Oid) -> rusqlite::Result<i64> {
    transaction.prepare_cached("SELECT id FROM git_blobs WHERE oid = ?1")?.query_row([oid], |row| row.get(0))
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Everything that one import changes.
pub(super) struct Record {
    /// Row of the content, from [`content_row`].
    pub(super) row: i64,
    pub(super) id: RepositoryId,
    pub(super) private: bool,
    pub(super) gated: bool,
    pub(super) branch: String,
    pub(super) tag: Option<String>,
    pub(super) snapshot: Snapshot,
}

/// Returns the row in `buckets` that the content of a repository belongs to. Adds it if it is missing. A row without a
/// repository is left by an import that has failed, and nobody has access to it.
pub(super) fn content_row(transaction: &Transaction<'_>, id: &RepositoryId) -> Result<i64, ImportError> {
    transaction.execute(
        "INSERT INTO buckets (namespace, name, private, created, updated, kind) VALUES ('', ?1, 1, ?2, ?2, 1)
         ON CONFLICT DO NOTHING",
        (id.to_string(), now_millis()),
    )?;
    let sql = "SELECT id FROM buckets WHERE namespace = '' AND name = ?1 AND kind = 1";
    Ok(transaction.query_row(sql, [id.to_string()], |row| row.get(0))?)
}

impl Record {
    /// Adds the repository, the commit and the refs, as far as they are missing.
    pub(super) fn write(&self, transaction: &Transaction<'_>) -> Result<Imported, ImportError> {
        let repository = self.repository(transaction)?;
        let tree = self.snapshot.store(transaction, repository.row)?;
        let parent = Commit::by_ref(transaction, repository.row, "heads", &self.branch)?;
        let (row, oid, is_new) = match parent.filter(|parent| parent.tree == tree) {
            Some(present) => (present.row, present.oid, false),
            None => {
                let (row, oid) = self.commit(transaction, &repository, tree)?;
                (row, oid, true)
            }
        };
        set_ref(transaction, repository.row, "heads", &self.branch, row)?;
        if let Some(tag) = &self.tag {
            set_ref(transaction, repository.row, "tags", tag, row)?;
        }
        let (files, size) = (self.snapshot.files, self.snapshot.size);
        Ok(Imported { commit: oid.to_string(), is_new, files, size })
    }

    fn repository(&self, transaction: &Transaction<'_>) -> Result<Repository, ImportError> {
        let (kind, namespace, name) = (self.id.kind().as_str(), self.id.namespace(), self.id.name());
        transaction.execute(
            "INSERT INTO repositories (id, kind, namespace, name, private, gated, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET private = private OR excluded.private, gated = gated OR excluded.gated",
            (self.row, kind, namespace, name, self.private, self.gated, now_millis()),
        )?;
        let found = Repository::find(transaction, &self.id)?;
        found.ok_or_else(|| ImportError::hub(format!("the repository {} was not added", self.id)))
    }

    /// Adds a commit after the present one of the branch. Returns its row and its id.
    fn commit(
        &self,
        transaction: &Transaction<'_>,
        repository: &Repository,
        tree: i64,
    ) -> Result<(i64, Oid), ImportError> {
        let parent = Commit::by_ref(transaction, repository.row, "heads", &self.branch)?;
        let files = if self.snapshot.files == 1 { "file" } else { "files" };
        let message = format!("Import {} {files}", self.snapshot.files);
        // Whole seconds, as Git has them, and never before the parent.
        let seconds = (now_millis() / 1000).max(parent.as_ref().map_or(0, |parent| parent.created / 1000));
        let text = CommitText {
            tree: self.snapshot.root(),
            parent: parent.as_ref().map(|parent| parent.oid),
            author: AUTHOR,
            seconds,
            message: &message,
        };
        let oid = text.id();
        if let Some(known) = Commit::by_oid(transaction, repository.row, oid)? {
            return Ok((known.row, oid));
        }
        transaction.execute(
            "INSERT INTO git_commits (repository, oid, parent, tree, created, author, message, size)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            (
                repository.row,
                oid,
                parent.map(|parent| parent.row),
                tree,
                seconds * 1000,
                AUTHOR,
                &message,
                signed(self.snapshot.size),
            ),
        )?;
        Ok((transaction.last_insert_rowid(), oid))
    }
}

fn set_ref(
    transaction: &Transaction<'_>,
    repository: i64,
    kind: &str,
    name: &str,
    commit: i64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO git_refs (repository, kind, name, target) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (repository, kind, name) DO UPDATE SET target = excluded.target";
    transaction.execute(sql, (repository, kind, name, commit)).map(drop)
}
