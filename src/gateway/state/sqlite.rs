//! State of one gateway, in a SQLite file.
//!
//! One thread owns the connection. It takes all work that is queued, does it in one transaction and syncs once, so
//! concurrent requests share the wait for the disk. The file is locked: a second gateway can't open it. Times are in
//! milliseconds since 1970.

use super::{Claim, RecordRow, State, UploadRow};
use crate::gateway::Error;
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// Pieces of work that share a transaction.
const GROUP: usize = 256;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS records (
        key BLOB PRIMARY KEY, path BLOB NOT NULL, written INTEGER NOT NULL, row BLOB NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS records_by_path ON records (path);
    CREATE TABLE IF NOT EXISTS uploads (
        id TEXT PRIMARY KEY, source BLOB NOT NULL, created INTEGER NOT NULL, row BLOB NOT NULL,
        owner TEXT, claimed_until INTEGER NOT NULL DEFAULT 0, result BLOB);
    CREATE INDEX IF NOT EXISTS uploads_by_source ON uploads (source, id) WHERE result IS NULL;
    CREATE INDEX IF NOT EXISTS uploads_by_time ON uploads (created);
    CREATE TABLE IF NOT EXISTS leases (
        name BLOB PRIMARY KEY, owner TEXT NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS parts (
        upload TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE, number INTEGER NOT NULL, row BLOB NOT NULL,
        PRIMARY KEY (upload, number)) WITHOUT ROWID;
";

/// Version of the schema. A file of another version is refused.
const VERSION: i64 = 2;

type Work = Box<dyn FnOnce(&Connection) -> (bool, Reply) + Send>;
/// Sends the result of a piece of work to its caller, once the transaction has ended.
type Reply = Box<dyn FnOnce(Result<(), String>) + Send>;

/// State in a SQLite file.
pub struct Sqlite {
    work: mpsc::Sender<Work>,
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::State(error.to_string())
}

impl Sqlite {
    /// Opens a file, and creates a missing one with mode 0600.
    pub fn open(path: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed)?;
        let connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(1)).map_err(failed)?;
        let pragmas = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
            PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;";
        connection.execute_batch(pragmas).map_err(in_use)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(in_use)?;
        match version {
            0 => {
                let create = format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT");
                connection.execute_batch(&create).map_err(in_use)?;
            }
            VERSION => {}
            other => {
                return Err(Error::State(format!("the file has version {other}, and this program knows {VERSION}")));
            }
        }
        let (work, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("gateway-state".into())
            .spawn(move || run(connection, &queue))
            .map_err(failed)?;
        Ok(Self { work })
    }

    /// Runs a piece of work in the next transaction.
    async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |transaction| {
            let result = work(transaction).map_err(failed);
            let succeeded = result.is_ok();
            let reply: Reply = Box::new(move |committed| {
                // The caller may be gone.
                let _ = sender.send(result.and_then(|value| committed.map_err(Error::State).map(|()| value)));
            });
            (succeeded, reply)
        });
        let gone = || Error::State("its thread has ended".into());
        self.work.send(work).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}

fn in_use(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            Error::State("another gateway uses the file".into())
        }
        _ => failed(error),
    }
}

fn run(mut connection: Connection, queue: &mpsc::Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let group: Vec<Work> = std::iter::once(first).chain(queue.try_iter().take(GROUP - 1)).collect();
        let mut replies = Vec::with_capacity(group.len());
        let transact = || -> rusqlite::Result<()> {
            let mut transaction = connection.transaction()?;
            for work in group {
                // A piece of work that fails is undone alone.
                let mut savepoint = transaction.savepoint()?;
                let (succeeded, reply) = work(&savepoint);
                if !succeeded {
                    savepoint.rollback()?;
                }
                savepoint.commit()?;
                replies.push(reply);
            }
            transaction.commit()
        };
        let committed = transact().map_err(|error| error.to_string());
        replies.into_iter().for_each(|reply| reply(committed.clone()));
    }
}

fn upload_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<UploadRow> {
    let created: i64 = row.get(2)?;
    Ok(UploadRow { id: row.get(0)?, source: row.get(1)?, created: created.div_euclid(1000), row: row.get(3)? })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn ago(age: Duration) -> i64 {
    now().saturating_sub_unsigned(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

fn after(time: Duration) -> i64 {
    now().saturating_add_unsigned(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[async_trait]
impl State for Sqlite {
    async fn records(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let keys = keys.to_vec();
        self.run(move |transaction| {
            let mut query = transaction.prepare_cached("SELECT row FROM records WHERE key = ?1")?;
            keys.iter().map(|key| query.query_row([key], |row| row.get(0)).optional()).collect()
        })
        .await
    }

    async fn set_record(&self, record: RecordRow) -> Result<(), Error> {
        self.run(move |transaction| {
            let put = "INSERT INTO records (key, path, written, row) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (key) DO UPDATE SET written = excluded.written, row = excluded.row";
            let RecordRow { key, path, row } = record;
            transaction.prepare_cached(put)?.execute(params![key, path, now(), row]).map(drop)
        })
        .await
    }

    async fn remove_records(&self, path: [u8; 32], keep: Option<[u8; 32]>, age: Duration) -> Result<(), Error> {
        self.run(move |transaction| {
            let remove = "DELETE FROM records WHERE path = ?1 AND written <= ?3 AND key IS NOT ?2";
            transaction.prepare_cached(remove)?.execute(params![path, keep, ago(age)]).map(drop)
        })
        .await
    }

    async fn create_upload(&self, id: &str, source: [u8; 32], row: Vec<u8>) -> Result<(), Error> {
        let id = id.to_owned();
        self.run(move |transaction| {
            transaction
                .prepare_cached("INSERT INTO uploads (id, source, created, row) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id, source, now(), row])
                .map(drop)
        })
        .await
    }

    async fn upload(&self, id: &str) -> Result<Option<UploadRow>, Error> {
        let id = id.to_owned();
        self.run(move |transaction| {
            transaction
                .prepare_cached("SELECT id, source, created, row FROM uploads WHERE id = ?1 AND result IS NULL")?
                .query_row([id], upload_row)
                .optional()
        })
        .await
    }

    async fn uploads(&self, source: &[u8; 32]) -> Result<Vec<UploadRow>, Error> {
        let source = *source;
        self.run(move |transaction| {
            transaction
                .prepare_cached("SELECT id, source, created, row FROM uploads WHERE source = ?1 AND result IS NULL")?
                .query_map([source], upload_row)?
                .collect()
        })
        .await
    }

    async fn put_part(&self, id: &str, number: u32, row: Vec<u8>) -> Result<bool, Error> {
        let id = id.to_owned();
        self.run(move |transaction| {
            let put = "INSERT INTO parts (upload, number, row)
                SELECT id, ?2, ?3 FROM uploads WHERE id = ?1 AND result IS NULL
                ON CONFLICT (upload, number) DO UPDATE SET row = excluded.row";
            Ok(transaction.prepare_cached(put)?.execute(params![id, number, row])? == 1)
        })
        .await
    }

    async fn parts(&self, id: &str) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let id = id.to_owned();
        self.run(move |transaction| {
            transaction
                .prepare_cached("SELECT number, row FROM parts WHERE upload = ?1 ORDER BY number")?
                .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    async fn claim(&self, id: &str, owner: &str, time: Duration) -> Result<Claim, Error> {
        let (id, owner) = (id.to_owned(), owner.to_owned());
        self.run(move |transaction| {
            let claim = "UPDATE uploads SET owner = ?2, claimed_until = ?4
                WHERE id = ?1 AND result IS NULL AND (owner IS NULL OR owner = ?2 OR claimed_until <= ?3)";
            if transaction.prepare_cached(claim)?.execute(params![id, owner, now(), after(time)])? == 1 {
                return Ok(Claim::Claimed);
            }
            let result: Option<Option<Vec<u8>>> = transaction
                .prepare_cached("SELECT result FROM uploads WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()?;
            Ok(match result {
                None => Claim::Missing,
                Some(None) => Claim::Held,
                Some(Some(result)) => Claim::Done(result),
            })
        })
        .await
    }

    async fn complete(&self, id: &str, owner: &str, result: Vec<u8>) -> Result<bool, Error> {
        let (id, owner) = (id.to_owned(), owner.to_owned());
        self.run(move |transaction| {
            let complete = "UPDATE uploads SET result = ?3 WHERE id = ?1 AND owner = ?2 AND result IS NULL";
            let completed = transaction.prepare_cached(complete)?.execute(params![id, owner, result])? == 1;
            if completed {
                transaction.prepare_cached("DELETE FROM parts WHERE upload = ?1")?.execute([id])?;
            }
            Ok(completed)
        })
        .await
    }

    async fn release(&self, id: &str, owner: &str) -> Result<(), Error> {
        let (id, owner) = (id.to_owned(), owner.to_owned());
        self.run(move |transaction| {
            let release = "UPDATE uploads SET owner = NULL, claimed_until = 0 WHERE id = ?1 AND owner = ?2";
            transaction.prepare_cached(release)?.execute(params![id, owner]).map(drop)
        })
        .await
    }

    async fn abort(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        self.run(move |transaction| {
            let abort = "DELETE FROM uploads WHERE id = ?1 AND result IS NULL AND claimed_until <= ?2";
            Ok(transaction.prepare_cached(abort)?.execute(params![id, now()])? == 1)
        })
        .await
    }

    async fn remove_stale(&self, age: Duration) -> Result<u64, Error> {
        self.run(move |transaction| {
            transaction.prepare_cached("DELETE FROM leases WHERE until <= ?1")?.execute([now()])?;
            let stale = "DELETE FROM uploads WHERE created <= ?1 AND (result IS NOT NULL OR claimed_until <= ?2)";
            Ok(transaction.prepare_cached(stale)?.execute([ago(age), now()])? as u64)
        })
        .await
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn lease(&self, name: [u8; 32], owner: &str, time: Duration) -> Result<bool, Error> {
        let owner = owner.to_owned();
        self.run(move |transaction| {
            let lease = "INSERT INTO leases (name, owner, until) VALUES (?1, ?2, ?4)
                ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
                WHERE owner = excluded.owner OR until <= ?3";
            Ok(transaction.prepare_cached(lease)?.execute(params![name, owner, now(), after(time)])? == 1)
        })
        .await
    }

    async fn end_lease(&self, name: [u8; 32], owner: &str) -> Result<(), Error> {
        let owner = owner.to_owned();
        self.run(move |transaction| {
            let end = "DELETE FROM leases WHERE name = ?1 AND owner = ?2";
            transaction.prepare_cached(end)?.execute(params![name, owner]).map(drop)
        })
        .await
    }

    async fn check(&self) -> Result<(), Error> {
        self.run(|transaction| transaction.query_row("SELECT 1", [], |_| Ok(()))).await
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    async fn fresh() -> (tempfile::TempDir, Sqlite) {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::open(&folder.path().join("state.sqlite")).unwrap();
        (folder, state)
    }

    #[tokio::test]
    async fn keeps_what_every_state_keeps() {
        let (_folder, state) = fresh().await;
        testing::keeps_all_promises(&state).await;
    }

    #[tokio::test]
    async fn upload_survives_restart_with_its_parts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        {
            let state = Sqlite::open(&path).unwrap();
            state.create_upload("u", [7; 32], b"row".to_vec()).await.unwrap();
            assert!(state.put_part("u", 1, b"one".to_vec()).await.unwrap());
            assert!(matches!(Sqlite::open(&path), Err(Error::State(why)) if why.contains("another gateway")));
        }
        let state = loop {
            // The thread of the first one closes the file when its queue has ended.
            match Sqlite::open(&path) {
                Ok(state) => break state,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        assert_eq!(state.upload("u").await.unwrap().unwrap().row, b"row");
        assert_eq!(state.parts("u").await.unwrap(), [(1, b"one".to_vec())]);
    }

    #[tokio::test]
    async fn failed_work_is_undone_alone() {
        let (_folder, state) = fresh().await;
        let create = |id: &'static str, row: &[u8]| state.create_upload(id, [7; 32], row.to_vec());
        create("u", b"1").await.unwrap();
        let (again, other) = tokio::join!(create("u", b"2"), create("v", b"3"));
        assert!(again.is_err() && other.is_ok());
        assert_eq!(state.upload("u").await.unwrap().unwrap().row, b"1");
    }
}
