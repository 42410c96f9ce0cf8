//! The index of a cache folder: which entries there are, how large, last used when, and which are being written.
//!
//! A SQLite database beside the entries. It decides nothing about content: a row that lies leads to a file that doesn't
//! prove itself, and both go. What it must get right is the sum of all sizes, which its own triggers keep. In WAL mode
//! with `synchronous=NORMAL` a power cut takes the last transactions, not the database; what files and index then
//! disagree on is settled by a scan ([`super::store`]).
//!
//! Entries of one xorb never overlap, so "what covers chunk n" is one step in a B-tree. Calls block.

use super::entry::Kind;
use super::folder::Key;
use crate::Hash;
use rusqlite::config::DbConfig;
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a writer waits for the transaction of another process.
const WRITER_PATIENCE: Duration = Duration::from_secs(5);
/// The same for a reader, who is only ever in the way of a database being opened or closed.
const READER_PATIENCE: Duration = Duration::from_millis(50);
/// Bytes of log that are kept between checkpoints.
const LOG_BYTES: u32 = 4 << 20;
/// `PRAGMA user_version` of the schema below. A database with another is begun anew.
const VERSION: i64 = 1;
/// `used` of an entry moves by at least this, milliseconds: a file that is read a thousand times a
/// second costs one update in a while.
pub(super) const USE_GRAIN: i64 = 30_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS entries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind INTEGER NOT NULL,
        hash BLOB NOT NULL,
        first INTEGER NOT NULL,
        count INTEGER NOT NULL,
        -- What it costs on disk.
        bytes INTEGER NOT NULL,
        -- Unix milliseconds.
        used INTEGER NOT NULL,
        -- Who is writing it; null: it is there.
        owner TEXT,
        UNIQUE (kind, hash, first)
    );
    CREATE INDEX IF NOT EXISTS by_use ON entries (used) WHERE owner IS NULL;
    CREATE INDEX IF NOT EXISTS by_owner ON entries (owner) WHERE owner IS NOT NULL;
    -- One row: the sum of all sizes, and the state of the last comparison with the files.
    CREATE TABLE IF NOT EXISTS state (
        id INTEGER PRIMARY KEY CHECK (id = 0),
        total INTEGER NOT NULL,
        -- Whether every file is in here.
        complete INTEGER NOT NULL,
        -- Unix milliseconds, and which boot of the machine.
        scanned INTEGER NOT NULL,
        boot TEXT NOT NULL
    );
    INSERT OR IGNORE INTO state VALUES (0, 0, 0, 0, '');
    CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entries
        BEGIN UPDATE state SET total = total + new.bytes; END;
    CREATE TRIGGER IF NOT EXISTS entry_removed AFTER DELETE ON entries
        BEGIN UPDATE state SET total = total - old.bytes; END;
    CREATE TRIGGER IF NOT EXISTS entry_resized AFTER UPDATE OF bytes ON entries
        BEGIN UPDATE state SET total = total + new.bytes - old.bytes; END;
    PRAGMA user_version = 1;
";

/// The columns of [`Entry`].
const COLUMNS: &str = "id, kind, hash, first, count, bytes, used, owner";

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) key: Key,
    /// What it costs on disk.
    pub(super) bytes: u64,
    /// Unix milliseconds.
    pub(super) used: i64,
    /// Who is writing it; none: it is there.
    pub(super) owner: Option<String>,
}

impl Entry {
    /// Its chunks.
    pub(super) fn chunks(&self) -> Range<u32> {
        self.key.first..self.key.first.saturating_add(self.key.count)
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let out_of_range = |column, kind| rusqlite::Error::InvalidColumnType(column, "entry".to_owned(), kind);
        let number: i64 = row.get(1)?;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as i64 == number);
        let kind = kind.ok_or_else(|| out_of_range(1, rusqlite::types::Type::Integer))?;
        let key = Key { kind, hash: Hash(row.get(2)?), first: row.get(3)?, count: row.get(4)? };
        let bytes =
            u64::try_from(row.get::<_, i64>(5)?).map_err(|_| out_of_range(5, rusqlite::types::Type::Integer))?;
        Ok(Self { id: row.get(0)?, key, bytes, used: row.get(6)?, owner: row.get(7)? })
    }
}

/// The state of the last comparison with the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) complete: bool,
    /// Unix milliseconds.
    pub(super) at: i64,
    pub(super) boot: String,
}

/// An open index.
pub(super) struct Index {
    /// Of lookups. Held for microseconds.
    reader: Mutex<Connection>,
    /// Of transactions. Held over unlinks, too.
    writer: Mutex<Connection>,
}

impl Index {
    /// Opens or makes it. Call it with the gate of the folder held: switching to WAL takes no patience.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let mut writer = connect(path, WRITER_PATIENCE)?;
        writer.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        writer.pragma_update(None, "synchronous", "normal")?;
        writer.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))?;
        let version: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version == 0 {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.commit()?;
        } else if version != VERSION {
            return Err(corrupt());
        }
        Ok(Self { reader: Mutex::new(connect(path, READER_PATIENCE)?), writer: Mutex::new(writer) })
    }

    /// The entries, being written or not, that overlap `chunks` of a xorb, in order.
    pub(super) fn overlapping(&self, xorb: &Hash, chunks: &Range<u32>) -> rusqlite::Result<Vec<Entry>> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        overlapping(&reader, xorb, chunks)
    }

    /// The entry of a whole file, being written or not.
    pub(super) fn file(&self, file: &Hash) -> rusqlite::Result<Option<Entry>> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let sql = format!("SELECT {COLUMNS} FROM entries WHERE kind = ?1 AND hash = ?2 AND first = 0");
        reader.prepare_cached(&sql)?.query_row(params![Kind::File as i64, file.0], Entry::read).optional()
    }

    /// Runs `work` in a transaction that no other writer is beside of; all of it is done, or
    /// nothing where it gives an error.
    pub(super) fn write<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&Changes<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // A panic inside a transaction rolled it back.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = Changes(writer.transaction_with_behavior(TransactionBehavior::Immediate)?);
        let outcome = work(&changes)?;
        changes.0.commit()?;
        Ok(outcome)
    }
}

/// A transaction.
pub(super) struct Changes<'a>(Transaction<'a>);

impl Changes<'_> {
    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.0.prepare_cached(sql)
    }

    /// As [`Index::overlapping`].
    pub(super) fn overlapping(&self, xorb: &Hash, chunks: &Range<u32>) -> rusqlite::Result<Vec<Entry>> {
        overlapping(&self.0, xorb, chunks)
    }

    /// The entry that begins where `key` does.
    pub(super) fn find(&self, key: &Key) -> rusqlite::Result<Option<Entry>> {
        let sql = format!("SELECT {COLUMNS} FROM entries WHERE kind = ?1 AND hash = ?2 AND first = ?3");
        self.prepare(&sql)?.query_row(params![key.kind as i64, key.hash.0, key.first], Entry::read).optional()
    }

    /// Adds an entry; `owner`: who is going to write it. Gives its id, which is never used again.
    pub(super) fn add(&self, key: &Key, bytes: u64, used: i64, owner: Option<&str>) -> rusqlite::Result<i64> {
        let sql =
            "INSERT INTO entries (kind, hash, first, count, bytes, used, owner) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![key.kind as i64, key.hash.0, key.first, key.count, signed(bytes), used, owner];
        self.prepare(sql)?.execute(values)?;
        Ok(self.0.last_insert_rowid())
    }

    /// An entry is there from now on. `false`: somebody has taken its row away.
    pub(super) fn written(&self, id: i64, bytes: u64) -> rusqlite::Result<bool> {
        let sql = "UPDATE entries SET owner = NULL, bytes = ?2 WHERE id = ?1";
        Ok(self.prepare(sql)?.execute([id, signed(bytes)])? == 1)
    }

    /// Removes a row.
    pub(super) fn remove(&self, id: i64) -> rusqlite::Result<()> {
        self.prepare("DELETE FROM entries WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// The size of an entry is another.
    pub(super) fn resize(&self, id: i64, bytes: u64) -> rusqlite::Result<()> {
        self.prepare("UPDATE entries SET bytes = ?2 WHERE id = ?1")?.execute([id, signed(bytes)])?;
        Ok(())
    }

    /// Notes when an entry was used.
    pub(super) fn used(&self, id: i64, at: i64) -> rusqlite::Result<()> {
        self.prepare("UPDATE entries SET used = ?2 WHERE id = ?1 AND used < ?2")?.execute([id, at])?;
        Ok(())
    }

    /// The entry that was used least recently of those that are there.
    pub(super) fn oldest(&self) -> rusqlite::Result<Option<Entry>> {
        let sql = format!("SELECT {COLUMNS} FROM entries WHERE owner IS NULL ORDER BY used, id LIMIT 1");
        self.prepare(&sql)?.query_row([], Entry::read).optional()
    }

    /// Everything that is being written, or was when its writer died.
    pub(super) fn unwritten(&self) -> rusqlite::Result<Vec<Entry>> {
        let sql = format!("SELECT {COLUMNS} FROM entries WHERE owner IS NOT NULL");
        self.prepare(&sql)?.query_map([], Entry::read)?.collect()
    }

    /// The sum of all sizes.
    pub(super) fn total(&self) -> rusqlite::Result<u64> {
        let total: i64 = self.prepare("SELECT total FROM state")?.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(total).unwrap_or(0))
    }

    /// The entries of a kind whose hash begins with this byte.
    pub(super) fn shard(&self, kind: Kind, shard: u8) -> rusqlite::Result<Vec<Entry>> {
        let sql =
            format!("SELECT {COLUMNS} FROM entries WHERE kind = ?1 AND hash >= ?2 AND hash <= ?3 ORDER BY hash, first");
        let mut bounds = [[0; 32], [0xff; 32]];
        bounds.iter_mut().for_each(|bound| bound[0] = shard);
        self.prepare(&sql)?.query_map(params![kind as i64, bounds[0], bounds[1]], Entry::read)?.collect()
    }

    /// The state of the last comparison with the files.
    pub(super) fn scanned(&self) -> rusqlite::Result<Scanned> {
        self.prepare("SELECT complete, scanned, boot FROM state")?
            .query_row([], |row| Ok(Scanned { complete: row.get(0)?, at: row.get(1)?, boot: row.get(2)? }))
    }

    /// Every file has been compared. Sums up all sizes again, and takes back uses that lie in the
    /// future: a clock was wrong.
    pub(super) fn set_scanned(&self, at: i64, boot: &str) -> rusqlite::Result<()> {
        self.0.execute("UPDATE entries SET used = ?1 WHERE used > ?1", [at])?;
        let sql = "UPDATE state SET complete = 1, scanned = ?1, boot = ?2, total = (SELECT coalesce(sum(bytes), 0) FROM entries)";
        self.0.execute(sql, params![at, boot])?;
        Ok(())
    }
}

/// SQLite's integers are signed.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The error of a database that can't be what we wrote.
fn corrupt() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None)
}

/// Whether the index is to be thrown away and made again from the files.
pub(super) fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        E::SqliteFailure(failure, _) => matches!(
            failure.code,
            ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                // A schema that doesn't parse, a sum that overflows.
                | ErrorCode::Unknown
        ),
        // No such table or column.
        E::SqlInputError { .. } => true,
        E::InvalidColumnType(..)
        | E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::QueryReturnedNoRows => true,
        _ => false,
    }
}

fn connect(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(patience)?;
    // The file may be damaged: no trust in what it says of itself.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(connection)
}

fn overlapping(connection: &Connection, xorb: &Hash, chunks: &Range<u32>) -> rusqlite::Result<Vec<Entry>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM entries WHERE kind = ?1 AND hash = ?2 AND first < ?4 AND first >= coalesce(
             (SELECT first FROM entries WHERE kind = ?1 AND hash = ?2 AND first <= ?3 ORDER BY first DESC LIMIT 1), ?3)
         ORDER BY first"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let found = statement.query_map(params![Kind::Xorb as i64, xorb.0, chunks.start, chunks.end], Entry::read)?;
    let mut found = found.collect::<rusqlite::Result<Vec<_>>>()?;
    found.retain(|entry| entry.chunks().end > chunks.start);
    Ok(found)
}
