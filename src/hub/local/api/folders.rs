//! What is known of the directories of a bucket, so that listing one doesn't read every key inside.
//!
//! A cache, kept by the batches themselves: for each directory how many files are inside and the
//! newest upload among them. Where that isn't known (the newest was deleted, or the directory is
//! too deep to be tracked) a listing reads the keys after all.

use crate::hub::local::db;
use rusqlite::{Connection, OptionalExtension, Transaction};
use std::collections::HashMap;

/// Levels that are tracked: a row is written for each level of a key, and real trees are flatter.
const LEVELS: usize = 32;
/// Changes that are collected before they are written: 40 MB of the longest keys.
const PENDING: usize = 10_000;

/// The newest upload in the directory `path` (no slash at its end).
pub(super) fn newest(connection: &Connection, bucket: i64, path: &[u8]) -> Result<i64, db::Error> {
    let known = row(connection, bucket, path)?.and_then(|(_, newest)| newest);
    if let Some(newest) = known {
        return Ok(newest);
    }
    let (first, end) = ([path, b"/"].concat(), [path, b"0"].concat()); // '0' is what follows '/'
    let sql = "SELECT coalesce(max(uploaded), 0) FROM objects WHERE bucket = ?1 AND key >= ?2 AND key < ?3";
    Ok(connection.prepare_cached(sql)?.query_row((bucket, first, end), |row| row.get(0))?)
}

/// Number of files and newest upload, where they are known.
fn row(connection: &Connection, bucket: i64, path: &[u8]) -> Result<Option<(i64, Option<i64>)>, db::Error> {
    let mut statement =
        connection.prepare_cached("SELECT files, newest FROM folders WHERE bucket = ?1 AND path = ?2")?;
    Ok(statement.query_row((bucket, path), |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// The changes that a batch makes to directories.
pub(super) struct Changes<'t> {
    transaction: &'t Transaction<'t>,
    bucket: i64,
    /// Time of every upload in this batch; later than all before.
    stamp: i64,
    pending: HashMap<Vec<u8>, Change>,
}

#[derive(Default)]
struct Change {
    /// Files more or less.
    files: i64,
    /// Whether one was put.
    put: bool,
    /// The latest upload among those removed.
    lost: Option<i64>,
}

impl<'t> Changes<'t> {
    pub(super) fn new(transaction: &'t Transaction<'t>, bucket: i64, stamp: i64) -> Self {
        Self { transaction, bucket, stamp, pending: HashMap::new() }
    }

    /// A file was put; `new` where there was none of that key.
    pub(super) fn put(&mut self, key: &[u8], new: bool) -> Result<(), db::Error> {
        self.note(key, |change| {
            change.files += i64::from(new);
            change.put = true;
        })
    }

    /// A file uploaded at `uploaded` was removed.
    pub(super) fn removed(&mut self, key: &[u8], uploaded: i64) -> Result<(), db::Error> {
        self.note(key, |change| {
            change.files -= 1;
            change.lost = change.lost.max(Some(uploaded));
        })
    }

    fn note(&mut self, key: &[u8], apply: impl Fn(&mut Change)) -> Result<(), db::Error> {
        if self.pending.len() >= PENDING {
            self.store()?;
        }
        let slashes = key.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        for (slash, _) in slashes.take(LEVELS) {
            match self.pending.get_mut(&key[..slash]) {
                Some(change) => apply(change),
                None => apply(self.pending.entry(key[..slash].to_vec()).or_default()),
            }
        }
        Ok(())
    }

    /// Writes what is pending.
    pub(super) fn store(&mut self) -> Result<(), db::Error> {
        for (path, change) in std::mem::take(&mut self.pending) {
            let (files, newest) = row(self.transaction, self.bucket, &path)?.unwrap_or_default();
            self.replace(&path, files + change.files, change.newest(newest, self.stamp))?;
        }
        Ok(())
    }

    fn replace(&self, path: &[u8], files: i64, newest: Option<i64>) -> Result<(), db::Error> {
        if files <= 0 {
            let sql = "DELETE FROM folders WHERE bucket = ?1 AND path = ?2";
            self.transaction.prepare_cached(sql)?.execute((self.bucket, path))?;
        } else {
            let sql = "REPLACE INTO folders (bucket, path, files, newest) VALUES (?1, ?2, ?3, ?4)";
            self.transaction.prepare_cached(sql)?.execute((self.bucket, path, files, newest))?;
        }
        Ok(())
    }
}

impl Change {
    /// The newest upload after this change, if it can be told without looking.
    fn newest(&self, before: Option<i64>, stamp: i64) -> Option<i64> {
        match self.lost {
            // Something put in this very batch went again: whether anything of it stays isn't known.
            Some(lost) if lost >= stamp => None,
            _ if self.put => Some(stamp),
            Some(lost) => before.filter(|&before| before > lost),
            None => before,
        }
    }
}
