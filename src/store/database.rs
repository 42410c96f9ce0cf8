//! Opens the local SQLite files of the store.
//!
//! There are two kinds: a cache that may disappear at any time ([`super::headers`]), and the state that this
//! machine remembers ([`super::memory`]). Neither holds plaintext, names or keys. If SQLite can't read a
//! file, it is renamed, a warning is logged, and an empty one is created: a mount must not depend on a cache.
//! Several processes may have one file open.

use super::Error;
use rusqlite::{Connection, ErrorCode};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time that a statement waits for a transaction of another process.
const BUSY: Duration = Duration::from_secs(5);

/// An opened database. Calls block on local I/O.
pub(super) struct Database {
    /// Never held over an await.
    connection: Mutex<Connection>,
}

/// Amount of data that a power cut may remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// The last transactions. Their data can be read again from the source.
    Cache,
    /// No committed data.
    Full,
}

impl Database {
    /// Opens `name` in `folder`, or a database in memory without a folder. `schema` is idempotent SQL.
    pub(super) fn open(folder: Option<&Path>, name: &str, durability: Durability, schema: &str) -> Result<Self, Error> {
        let connection = match folder {
            None => Connection::open_in_memory().and_then(|connection| prepare(connection, durability, schema)),
            Some(folder) => return Self::open_file(folder, name, durability, schema),
        };
        Ok(Self { connection: Mutex::new(connection.map_err(failed)?) })
    }

    fn open_file(folder: &Path, name: &str, durability: Durability, schema: &str) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(name);
        // SQLite would create it with the mode of the umask.
        drop(OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?);
        let open = || Connection::open(&path).and_then(|connection| prepare(connection, durability, schema));
        let connection = match open() {
            Err(error) if is_damaged(&error) => {
                tracing::warn!(file = name, %error, "a local database is damaged: renamed to *.damaged and recreated");
                set_aside(&path)?;
                open()
            }
            other => other,
        };
        Ok(Self { connection: Mutex::new(connection.map_err(failed)?) })
    }

    /// Runs `work` on the connection.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        // A panic inside a transaction rolled it back.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(failed)
    }

    /// Runs `work` on the connection, off the async workers.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let database = self.clone();
        tokio::task::spawn_blocking(move || database.with(work)).await.map_err(|e| Error::Io(io::Error::other(e)))?
    }
}

fn prepare(connection: Connection, durability: Durability, schema: &str) -> rusqlite::Result<Connection> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    let synchronous = match durability {
        Durability::Cache => "normal",
        Durability::Full => "full",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.execute_batch(schema)?;
    Ok(connection)
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

/// Keeps the latest damaged file for inspection. Its journal is removed, because it is useless without the
/// file.
fn set_aside(path: &Path) -> io::Result<()> {
    std::fs::rename(path, path.with_extension("damaged"))?;
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?);
    Ok(())
}

/// Converts an error. Keeps the kind of a full disk, because the caller has a hint for it.
fn failed(error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    Error::Io(io::Error::new(kind, error))
}
