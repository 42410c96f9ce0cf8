//! `GET …/tree[/{prefix}]` (Hub API spec, 4.1): a page of a listing.
//!
//! There are only keys; directories are what keys have before a slash. A page is made by skipping: a
//! range query finds the next key, and where that lies in a directory the next query starts behind
//! it, so that a page costs about one query per entry however many keys the directories hold.
//! Cursors name the key to go on at, so paging is stable while the bucket changes. Entries come in
//! the order of keys, a directory where its first key is (`a.txt` before the directory `a`).

use super::access::{Found, find};
use super::folders::newest;
use super::json::{cursor, iso_time, link_next};
use super::{Call, Target, reply};
use crate::hub::local::db;
use crate::hub::local::errors::ApiError;
use crate::xet::Hash;
use axum::response::Response;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::{Value, json};

/// Largest page.
const MAX_PAGE: usize = 5000;

/// Answers a listing.
pub(super) async fn answer(call: Call, target: Target, prefix: String) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let listing = Listing {
        bucket: bucket.id,
        prefix: prefix.into_bytes(),
        // Clients that send no `recursive` expect every file below.
        recursive: flag(&call, "recursive", true)?,
        raw: call.site.options.raw_prefix,
        limit: page_limit(&call)?,
    };
    let from = cursor(&call)?;
    let page = call.site.shared.db.read(move |c| listing.page(c, from)).await?;
    let mut response = reply(&page.entries.iter().map(Entry::describe).collect::<Vec<_>>())?;
    if let Some(next) = page.next {
        link_next(&call, &mut response, &next)?;
    }
    Ok(response)
}

pub(super) fn flag(call: &Call, name: &str, default: bool) -> Result<bool, ApiError> {
    match call.query(name).as_deref() {
        None => Ok(default),
        Some("false" | "False" | "0" | "") => Ok(false),
        Some("true" | "True" | "1") => Ok(true),
        Some(_) => Err(ApiError::bad_request(format!("{name:?} must be true or false"))),
    }
}

/// Entries on this page: what the client asks for, within what the server gives.
pub(super) fn page_limit(call: &Call) -> Result<usize, ApiError> {
    let asked = call.query("limit").map(|limit| limit.parse::<usize>()).transpose();
    let asked = asked.map_err(|_| ApiError::bad_request("\"limit\" must be a number"))?;
    let most = call.site.options.page_size.unwrap_or(MAX_PAGE);
    Ok(asked.unwrap_or_else(|| call.site.page_size()).min(most).clamp(1, MAX_PAGE))
}

/// A file of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: Vec<u8>,
    pub(super) hash: Hash,
    pub(super) size: u64,
    pub(super) mtime: Option<i64>,
    pub(super) uploaded: i64,
    pub(super) content_type: Option<String>,
}

impl Object {
    /// Columns of [`Object::from_row`].
    const COLUMNS: &'static str = "key, hash, size, mtime, uploaded, content_type";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: row.get(0)?,
            hash: Hash(row.get(1)?),
            size: unsigned(row, 2)?,
            mtime: row.get(3)?,
            uploaded: row.get(4)?,
            content_type: row.get(5)?,
        })
    }

    /// The file that has this key.
    pub(super) fn find(connection: &Connection, bucket: i64, key: &[u8]) -> Result<Option<Self>, db::Error> {
        let sql = format!("SELECT {} FROM objects WHERE bucket = ?1 AND key = ?2", Self::COLUMNS);
        let mut statement = connection.prepare_cached(&sql)?;
        Ok(statement.query_row((bucket, key), Self::from_row).optional()?)
    }

    /// Returns true if a file of the bucket has this content.
    pub(super) fn is_held(connection: &Connection, bucket: i64, hash: &Hash) -> Result<bool, db::Error> {
        let sql = "SELECT EXISTS (SELECT 1 FROM objects WHERE bucket = ?1 AND hash = ?2)";
        Ok(connection.prepare_cached(sql)?.query_row((bucket, hash.0), |row| row.get(0))?)
    }

    /// Size as the database counts it.
    pub(super) fn stored_size(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX) // it came out of an i64
    }

    /// As answers show it.
    pub(super) fn describe(&self) -> Value {
        let mut entry = json!({
            "type": "file",
            "path": String::from_utf8_lossy(&self.key),
            "size": self.size,
            "xetHash": self.hash,
            "mtime": self.mtime.map(iso_time),
            "uploadedAt": iso_time(self.uploaded),
        });
        if let Some(kind) = &self.content_type {
            entry["contentType"] = json!(kind);
        }
        entry
    }
}

/// A column that is never negative.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File(Object),
    /// Key without its slash, newest upload inside.
    Directory(Vec<u8>, i64),
}

impl Entry {
    fn describe(&self) -> Value {
        match self {
            Self::File(object) => object.describe(),
            Self::Directory(path, newest) => {
                json!({"type": "directory", "path": String::from_utf8_lossy(path), "uploadedAt": iso_time(*newest)})
            }
        }
    }
}

/// What is to be listed.
pub(super) struct Listing {
    pub(super) bucket: i64,
    pub(super) prefix: Vec<u8>,
    pub(super) recursive: bool,
    pub(super) raw: bool,
    pub(super) limit: usize,
}

/// One page; `next` is the key that the following one starts at.
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    pub(super) next: Option<Vec<u8>>,
}

impl Listing {
    pub(super) fn page(mut self, connection: &Connection, from: Option<Vec<u8>>) -> Result<Page, ApiError> {
        let mut entries = Vec::new();
        if !self.raw && !self.prefix.is_empty() {
            let named = self.prefix.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
            if named == 0 {
                return Ok(Page { entries, next: None });
            }
            if named == self.prefix.len() && from.is_none() {
                entries.extend(Object::find(connection, self.bucket, &self.prefix)?.map(Entry::File));
            }
            self.prefix.truncate(named);
            self.prefix.push(b'/');
        }
        let from = from.unwrap_or_default().max(self.prefix.clone());
        Ok(self.walk(connection, entries, from)?)
    }

    /// Goes through the keys with the prefix, beginning at `from`, until the page is full.
    fn walk(&self, connection: &Connection, mut entries: Vec<Entry>, mut from: Vec<u8>) -> Result<Page, db::Error> {
        let end = successor(&self.prefix);
        let sql = format!(
            "SELECT {} FROM objects WHERE bucket = ?1 AND key >= ?2 AND key < ?3 ORDER BY key",
            Object::COLUMNS
        );
        let mut statement = connection.prepare_cached(&sql)?;
        'skip: loop {
            let mut rows = statement.query((self.bucket, &from, &end))?;
            while let Some(row) = rows.next()? {
                let key = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
                if entries.len() >= self.limit {
                    return Ok(Page { entries, next: Some(key.to_vec()) });
                }
                let Some(directory) = self.directory_of(key) else {
                    entries.push(Entry::File(Object::from_row(row)?));
                    continue;
                };
                let behind = [directory, b"0"].concat(); // '0' is what follows '/'
                let newest = newest(connection, self.bucket, directory)?;
                entries.push(Entry::Directory(directory.to_vec(), newest));
                from = behind;
                continue 'skip;
            }
            return Ok(Page { entries, next: None });
        }
    }

    /// The directory that stands for `key` in this listing, or `None` where the key itself is listed.
    fn directory_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if self.recursive {
            return None;
        }
        let mut level = self.prefix.len();
        // The prefix names a directory without its slash: what is listed is the level below.
        if level > 0 && self.prefix.last() != Some(&b'/') && key.get(level) == Some(&b'/') {
            level += 1;
        }
        let slash = key.get(level..)?.iter().position(|&byte| byte == b'/')?;
        key.get(..level + slash)
    }
}

/// The first key behind all that start with `prefix`, which is UTF-8, where no byte is 0xff.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut next = prefix.to_vec();
    match next.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        None => next.push(u8::MAX),
    }
    next
}
