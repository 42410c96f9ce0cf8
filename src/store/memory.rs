//! Remembers facts about a bucket under a key on this machine (format spec, sections 4, 5 and 6).
//!
//! Some decisions depend on earlier states, which the bucket no longer shows. The memory therefore holds:
//!
//! - files seen as own: if one disappears, it isn't shown from the plaintext side;
//! - content that two paths share: its next edit takes a new file id;
//! - directory moves in progress: a repeat continues, although its own files are at the target;
//! - if the tree had entries, and any of format 1: then an emptied tree is reported.
//!
//! Paths are stored as digests of the tree's identity and the stored key. No name is stored, not even a
//! sealed one.

use super::Error;
use super::database::{Database, Durability};
use crate::xet::Hash;
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files remembered as own, over all buckets: about 60 MB. Further ones aren't remembered.
const MAX_OWN: u64 = 2_000_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS own (path BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS shared (hash BLOB PRIMARY KEY, copied INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS moving (paths BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS trees (tree BLOB PRIMARY KEY, legacy INTEGER NOT NULL) WITHOUT ROWID;
";

/// The memory of one tree.
pub(super) struct Memory {
    database: Arc<Database>,
    tree: [u8; 32],
    /// Rows of `own` that this process knows of.
    own: Arc<AtomicU64>,
    /// Number of renames in progress, by the content that they move. Never held over an await.
    moving: Mutex<HashMap<Hash, usize>>,
}

/// Guard of renames in progress. They end when it is dropped.
pub(super) struct InProgress<'a> {
    memory: &'a Memory,
    hashes: HashSet<Hash>,
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        let mut moving = self.memory.moving();
        for hash in &self.hashes {
            let left = moving.get(hash).map_or(0, |count| count - 1);
            match left {
                0 => drop(moving.remove(hash)),
                left => drop(moving.insert(*hash, left)),
            }
        }
    }
}

/// Reason why two paths have equal content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Permanently.
    Copied,
    /// Until the old path of a rename is removed.
    Moving,
}

/// Earlier state of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// It had entries of format 1.
    pub(super) legacy: bool,
}

/// Stored form of a remembered path.
type PathDigest = [u8; 16];

impl Memory {
    /// Opens the memory of the tree `tree` in `folder`, or in memory without a folder.
    pub(super) fn open(folder: Option<&Path>, tree: [u8; 32]) -> Result<Self, Error> {
        let database = Database::open(folder, "memory.sqlite", Durability::Full, SCHEMA)?;
        let own = database.with(|c| c.query_row("SELECT count(*) FROM own", [], |row| row.get::<_, i64>(0)))?;
        Ok(Self {
            database: Arc::new(database),
            tree,
            own: Arc::new(AtomicU64::new(own.unsigned_abs())),
            moving: Mutex::default(),
        })
    }

    fn digest(&self, parts: &[&str]) -> PathDigest {
        let mut hasher = Sha256::new_with_prefix(self.tree);
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let full: [u8; 32] = hasher.finalize().into();
        *full.first_chunk().expect("16 of 32 bytes")
    }

    /// Records own files at the keys `added`, and that those at `removed` were removed by this client.
    pub(super) async fn note_own(&self, added: &[String], removed: &[String]) -> Result<(), Error> {
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let digests = |keys: &[String]| keys.iter().map(|key| self.digest(&[key])).collect::<Vec<_>>();
        let (added, removed, count) = (digests(added), digests(removed), self.own.clone());
        self.database
            .run(move |connection| {
                let transaction = connection.transaction()?;
                let mut rows = count.load(Ordering::Relaxed);
                {
                    let mut delete = transaction.prepare_cached("DELETE FROM own WHERE path = ?1")?;
                    for path in &removed {
                        rows = rows.saturating_sub(delete.execute(params![path])? as u64);
                    }
                    let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO own VALUES (?1)")?;
                    for path in &added {
                        if rows < MAX_OWN {
                            rows += insert.execute(params![path])? as u64;
                        }
                    }
                }
                count.store(rows, Ordering::Relaxed);
                transaction.commit()
            })
            .await
    }

    /// Returns, for each key, if it has held an own file that this client didn't remove.
    pub(super) async fn were_own(&self, keys: &[String]) -> Result<Vec<bool>, Error> {
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let paths: Vec<PathDigest> = keys.iter().map(|key| self.digest(&[key])).collect();
        self.database.run(move |connection| paths.iter().map(|path| is_own(connection, path)).collect()).await
    }

    /// Returns true if the key has held an own file that this client didn't remove. Reads only a local index,
    /// so it doesn't await.
    pub(super) fn was_own(&self, key: &str) -> Result<bool, Error> {
        let path = self.digest(&[key]);
        self.database.with(|connection| is_own(connection, &path))
    }

    /// Marks content that is about to be under two paths. The mark is on disk when it returns.
    pub(super) async fn mark_shared(&self, sharing: Sharing, hashes: Vec<Hash>) -> Result<(), Error> {
        if hashes.is_empty() {
            return Ok(());
        }
        let copied = sharing == Sharing::Copied;
        let mark = "INSERT INTO shared VALUES (?1, ?2) ON CONFLICT DO UPDATE SET copied = max(copied, excluded.copied)";
        self.database
            .run(move |connection| {
                let transaction = connection.transaction()?;
                for hash in &hashes {
                    transaction.prepare_cached(mark)?.execute(params![hash.0, copied])?;
                }
                transaction.commit()
            })
            .await
    }

    fn moving(&self) -> MutexGuard<'_, HashMap<Hash, usize>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a rename (or several that run together) of this content as in progress until the guard is
    /// dropped.
    pub(super) fn begin_moving(&self, hashes: HashSet<Hash>) -> InProgress<'_> {
        let mut moving = self.moving();
        hashes.iter().for_each(|hash| *moving.entry(*hash).or_default() += 1);
        drop(moving);
        InProgress { memory: self, hashes }
    }

    /// Removes the mark of renames that succeeded, while they are still counted as in progress. Content that
    /// another rename moves too keeps its mark. After a failure the mark stays, which only costs a new file
    /// id.
    pub(super) async fn unmark_moved(&self, mut hashes: Vec<Hash>) {
        {
            let moving = self.moving();
            hashes.retain(|hash| moving.get(hash).is_none_or(|count| *count < 2));
        }
        if hashes.is_empty() {
            return;
        }
        let unmarked = self.database.run(move |connection| {
            let transaction = connection.transaction()?;
            for hash in &hashes {
                transaction
                    .prepare_cached("DELETE FROM shared WHERE hash = ?1 AND copied = 0")?
                    .execute(params![hash.0])?;
            }
            transaction.commit()
        });
        if let Err(error) = unmarked.await {
            tracing::warn!(%error, "cannot remove the mark of a finished rename");
        }
    }

    /// Returns true if another path may hold this content. If the database can't be read, content counts as
    /// shared.
    pub(super) fn is_shared(&self, hash: &Hash) -> bool {
        let found = self.database.with(|connection| {
            let mut select = connection.prepare_cached("SELECT 1 FROM shared WHERE hash = ?1")?;
            select.exists(params![hash.0])
        });
        found.unwrap_or(true)
    }

    /// Returns true if a directory move between these keys has started and not ended.
    pub(super) async fn is_moving(&self, from: &str, to: &str) -> Result<bool, Error> {
        let paths = self.digest(&[from, to]);
        self.database
            .run(move |connection| {
                connection.prepare_cached("SELECT 1 FROM moving WHERE paths = ?1")?.exists(params![paths])
            })
            .await
    }

    /// Records that a directory move starts or has ended.
    pub(super) async fn set_moving(&self, from: &str, to: &str, moving: bool) -> Result<(), Error> {
        let paths = self.digest(&[from, to]);
        let statement =
            if moving { "INSERT OR IGNORE INTO moving VALUES (?1)" } else { "DELETE FROM moving WHERE paths = ?1" };
        self.database.run(move |connection| connection.execute(statement, params![paths]).map(|_| ())).await
    }

    /// Returns the earlier state of the tree. `None`: it had no entries.
    pub(super) async fn seen(&self) -> Result<Option<Seen>, Error> {
        let tree = self.tree;
        self.database
            .run(move |connection| {
                let select = "SELECT legacy FROM trees WHERE tree = ?1";
                let legacy: Option<bool> = connection.query_row(select, params![tree], |row| row.get(0)).optional()?;
                Ok(legacy.map(|legacy| Seen { legacy }))
            })
            .await
    }

    /// Records that the tree has entries.
    pub(super) async fn note_seen(&self, seen: Seen) -> Result<(), Error> {
        let tree = self.tree;
        let note = "INSERT INTO trees VALUES (?1, ?2) ON CONFLICT DO UPDATE SET legacy = max(legacy, excluded.legacy)";
        self.database.run(move |connection| connection.execute(note, params![tree, seen.legacy]).map(|_| ())).await
    }
}

fn is_own(connection: &Connection, path: &PathDigest) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM own WHERE path = ?1")?.exists(params![path])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> Hash {
        Hash([byte; 32])
    }

    #[tokio::test]
    async fn own_files_are_remembered_until_removed_by_us() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::open(Some(folder.path()), [1; 32]).unwrap();
        let keys = ["a".to_owned(), "b".to_owned()];
        memory.note_own(&keys, &[]).await.unwrap();
        memory.note_own(&[], &keys[..1]).await.unwrap();
        drop(memory);
        let memory = Memory::open(Some(folder.path()), [1; 32]).unwrap();
        assert_eq!(memory.were_own(&keys).await.unwrap(), [false, true]);
        assert!(memory.was_own("b").unwrap());
        let other_tree = Memory::open(Some(folder.path()), [2; 32]).unwrap();
        assert!(!other_tree.was_own("b").unwrap());
    }

    #[tokio::test]
    async fn finished_rename_removes_only_its_own_mark() {
        let memory = Memory::open(None, [0; 32]).unwrap();
        memory.mark_shared(Sharing::Copied, vec![hash(1)]).await.unwrap();
        memory.mark_shared(Sharing::Moving, vec![hash(1), hash(2)]).await.unwrap();
        assert!(memory.is_shared(&hash(1)) && memory.is_shared(&hash(2)) && !memory.is_shared(&hash(3)));
        memory.unmark_moved(vec![hash(1), hash(2)]).await;
        assert!(memory.is_shared(&hash(1)) && !memory.is_shared(&hash(2)));
    }

    #[tokio::test]
    async fn mark_stays_while_another_rename_moves_same_content() {
        let memory = Memory::open(None, [0; 32]).unwrap();
        let (one, other) = (memory.begin_moving([hash(1)].into()), memory.begin_moving([hash(1)].into()));
        memory.mark_shared(Sharing::Moving, vec![hash(1)]).await.unwrap();
        memory.unmark_moved(vec![hash(1)]).await;
        drop(one);
        assert!(memory.is_shared(&hash(1)));
        memory.unmark_moved(vec![hash(1)]).await;
        assert!(!memory.is_shared(&hash(1)));
        drop(other);
        assert!(memory.moving().is_empty());
    }

    #[tokio::test]
    async fn directory_move_is_remembered_by_both_paths() {
        let memory = Memory::open(None, [0; 32]).unwrap();
        memory.set_moving("a", "b", true).await.unwrap();
        assert!(memory.is_moving("a", "b").await.unwrap());
        assert!(!memory.is_moving("b", "a").await.unwrap());
        assert!(!memory.is_moving("", "ab").await.unwrap());
        memory.set_moving("a", "b", false).await.unwrap();
        assert!(!memory.is_moving("a", "b").await.unwrap());
    }

    #[tokio::test]
    async fn format_1_seen_once_stays_remembered() {
        let memory = Memory::open(None, [0; 32]).unwrap();
        assert_eq!(memory.seen().await.unwrap(), None);
        for legacy in [false, true, false] {
            memory.note_seen(Seen { legacy }).await.unwrap();
        }
        assert_eq!(memory.seen().await.unwrap(), Some(Seen { legacy: true }));
    }

    #[tokio::test]
    async fn damaged_database_is_renamed_and_new_one_holds_no_stored_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.sqlite");
        std::fs::write(&path, b"this is not a database, but long enough to be read as one .....................")
            .unwrap();
        let memory = Memory::open(Some(folder.path()), [1; 32]).unwrap();
        assert!(folder.path().join("memory.damaged").exists());
        memory.note_own(&["stored-name-canary".to_owned()], &[]).await.unwrap();
        drop(memory);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(18).any(|window| window == b"stored-name-canary"));
        }
    }
}
