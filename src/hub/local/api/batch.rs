//! `POST …/batch` (Hub API spec, 4.3): adds, copies and deletes, one JSON object per line.
//!
//! All lines are parsed before the first is applied; then they are applied in order, in one transaction. A line that
//! can't be carried out is reported and the others stand. Size and number of a bucket's files are kept exact, and its
//! time of change moves on with every request that changed something.

use super::access::{Bucket, Caller, Found, find};
use super::events::Log;
use super::folders::Changes;
use super::json::TIME_RANGE;
use super::tree::Object;
use super::{Call, LARGE, Target, reply};
use crate::hub::RepoKind;
use crate::hub::local::accounts::now_millis;
use crate::hub::local::body::Incoming;
use crate::hub::local::cas::CasStore;
use crate::hub::local::db;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::RepositoryId;
use crate::hub::local::repos::repository::Repository;
use crate::hub::{BucketId, check_key};
use crate::xet::Hash;
use axum::http::StatusCode;
use axum::response::Response;
use rusqlite::Transaction;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use std::collections::HashSet;

/// Operations per request: ten times what known clients send.
const MAX_OPERATIONS: usize = 10_000;
/// Longest key in bytes: the longest path that operating systems take.
const MAX_KEY: usize = 4096;
/// Longest content type in bytes.
const MAX_CONTENT_TYPE: usize = 255;
/// One client sends seconds instead of milliseconds (Hub API spec, 4.3). It sends the size too: then times below
/// this are seconds.
const SECONDS_BELOW: f64 = 1e11;

/// A line.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Operation {
    #[serde(rename = "addFile")]
    Add(Put),
    #[serde(rename = "copyFile")]
    Copy {
        #[serde(flatten)]
        put: Put,
        #[serde(rename = "sourceRepoType")]
        source_type: String,
        #[serde(rename = "sourceRepoId")]
        source_id: String,
    },
    #[serde(rename = "deleteFile")]
    Delete { path: String },
}

/// What `addFile` and `copyFile` share. A size that is sent isn't looked at: the CAS knows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Put {
    path: String,
    xet_hash: String,
    mtime: Option<f64>,
    size: Option<IgnoredAny>,
    content_type: Option<String>,
}

impl Operation {
    fn path(&self) -> &str {
        match self {
            Self::Add(put) | Self::Copy { put, .. } => &put.path,
            Self::Delete { path } => path,
        }
    }
}

/// Why a line was not carried out.
enum Failure {
    /// The reason, for whoever sent it.
    Line(String),
    /// The whole request fails.
    Request(ApiError),
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        Self::Request(error.into())
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Request(error.into())
    }
}

fn line(reason: impl Into<String>) -> Failure {
    Failure::Line(reason.into())
}

/// Answers a batch.
pub(super) async fn answer(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    call.caller.may_write(&bucket.namespace)?;
    let received = body.read(LARGE, 1).await?;
    let parsed = tokio::task::spawn_blocking(move || parse(&received.bytes)).await;
    let operations = parsed.map_err(|e| ApiError::internal(&e))??;
    let processed = operations.len();
    let caller = call.caller.clone();
    let failed = call.site.shared.db.write(move |t| Batch::new(t, bucket.id, &caller)?.run(&operations)).await?;
    let failures: Vec<_> = failed.iter().map(|(path, error)| json!({"path": path, "error": error})).collect();
    let mut response = reply(&json!({
        "success": failures.is_empty(),
        "processed": processed,
        "succeeded": processed - failures.len(),
        "failed": failures,
    }))?;
    if processed > 0 && failed.len() == processed {
        *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(response)
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<Operation>, ApiError> {
    let lines = body.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    let mut operations = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
        if operations.len() == MAX_OPERATIONS {
            return Err(ApiError::bad_request(format!("more than {MAX_OPERATIONS} operations")));
        }
        let operation = serde_json::from_slice(line);
        operations.push(operation.map_err(|e| ApiError::bad_request(format!("line {}: {e}", number + 1)))?);
    }
    Ok(operations)
}

/// A batch being applied.
pub(super) struct Batch<'t> {
    transaction: &'t Transaction<'t>,
    caller: &'t Caller,
    bucket: Bucket,
    /// Time of this change: of every upload in it, and the bucket's.
    stamp: i64,
    folders: Changes<'t>,
    log: Log<'t>,
    /// Contents that this batch has removed from the bucket or replaced. A line after that may still copy them:
    /// some clients send the
    /// deletes of a rename before its copies.
    removed: HashSet<Hash>,
    changed: bool,
}

impl<'t> Batch<'t> {
    pub(super) fn new(transaction: &'t Transaction<'t>, bucket: i64, caller: &'t Caller) -> Result<Self, ApiError> {
        let bucket = Bucket::by_row(transaction, bucket)?.ok_or_else(ApiError::repo_not_found)?;
        // Strictly later than the change before, whatever the clock does: clients compare the two for equality.
        let stamp = now_millis().max(bucket.updated + 1);
        let folders = Changes::new(transaction, bucket.id, stamp);
        let log = Log::new(transaction, &bucket, stamp);
        Ok(Self { transaction, caller, bucket, stamp, folders, log, removed: HashSet::new(), changed: false })
    }

    /// Applies the operations in order; gives path and reason of those that failed.
    pub(super) fn run(mut self, operations: &[Operation]) -> Result<Vec<(String, String)>, ApiError> {
        let mut failed = Vec::new();
        for operation in operations {
            match self.apply(operation) {
                Ok(()) => {}
                Err(Failure::Line(reason)) => failed.push((operation.path().to_owned(), reason)),
                Err(Failure::Request(error)) => return Err(error),
            }
        }
        if self.changed {
            self.folders.store()?;
            self.log.store()?;
            self.transaction
                .prepare_cached("UPDATE buckets SET size = ?1, files = ?2, updated = ?3 WHERE id = ?4")?
                .execute((self.bucket.size, self.bucket.files, self.stamp, self.bucket.id))?;
        }
        Ok(failed)
    }

    fn apply(&mut self, operation: &Operation) -> Result<(), Failure> {
        match operation {
            Operation::Add(put) => {
                check_path(&put.path)?;
                let hash = parse_hash(&put.xet_hash)?;
                let size =
                    self.size_of(&hash)?.ok_or_else(|| line("unknown xetHash: its file has not been uploaded"))?;
                self.put(put, hash, size)
            }
            Operation::Copy { put, source_type, source_id } => {
                check_path(&put.path)?;
                let hash = parse_hash(&put.xet_hash)?;
                let size = self.size_at_source(&hash, source_type, source_id)?;
                self.put(put, hash, size)
            }
            Operation::Delete { path } => self.delete(path),
        }
    }

    /// Size of a file that this bucket may hold: one uploaded with a token of the bucket, or put there before.
    fn size_of(&self, hash: &Hash) -> Result<Option<u64>, Failure> {
        if *hash == Hash::ZERO {
            return Ok(Some(0));
        }
        Ok(match self.caller {
            Caller::Process => CasStore::link_file(self.transaction, self.bucket.id, hash)?,
            _ => CasStore::linked_file_len(self.transaction, self.bucket.id, hash)?,
        })
    }

    /// Returns the size of a file that the caller may read at its source, and makes it readable here. Fails the
    /// line unless a file of the
    /// source has this content: the empty one is no exception.
    fn size_at_source(&self, hash: &Hash, kind: &str, id: &str) -> Result<u64, Failure> {
        let unknown = || line(format!("source {kind} {id} has no such file"));
        if kind != "bucket" {
            let len = self.size_in_repository(hash, kind, id)?;
            return len.ok_or_else(unknown);
        }
        let id: BucketId = id.parse().map_err(|_| unknown())?;
        let source = Bucket::find_anywhere(self.transaction, id.namespace(), id.name())?;
        let source = source.filter(|source| source.visible_to(self.caller)).ok_or_else(unknown)?;
        let was_here = source.id == self.bucket.id && self.removed.contains(hash);
        if !was_here && !Object::is_held(self.transaction, source.id, hash)? {
            return Err(unknown());
        }
        if *hash == Hash::ZERO {
            return Ok(0);
        }
        CasStore::link_file(self.transaction, self.bucket.id, hash)?.ok_or_else(unknown)
    }

    /// Returns the size of a file that the caller may read in a repository, and makes it readable here. Returns `None`
    /// if there is no such file. Only files in Xet have a hash, and the empty one is none of them.
    fn size_in_repository(&self, hash: &Hash, kind: &str, id: &str) -> Result<Option<u64>, Failure> {
        let kind = RepoKind::ALL.into_iter().find(|known| known.as_str() == kind);
        let (namespace, name) = id.split_once('/').unwrap_or(("", id));
        let Some(id) = kind.and_then(|kind| RepositoryId::new(kind, namespace, name).ok()) else { return Ok(None) };
        let source = Repository::find(self.transaction, &id)?;
        let is_readable = |source: &Repository| {
            let is_open = !source.private && !source.gated;
            is_open || self.caller.sees_private(source.id.namespace())
        };
        let Some(source) = source.filter(is_readable) else { return Ok(None) };
        if *hash == Hash::ZERO || CasStore::linked_file_len(self.transaction, source.row, hash)?.is_none() {
            return Ok(None);
        }
        Ok(CasStore::link_file(self.transaction, self.bucket.id, hash)?)
    }

    fn put(&mut self, put: &Put, hash: Hash, size: u64) -> Result<(), Failure> {
        let mtime = put.mtime.map(|mtime| parse_time(mtime, put.size.is_some())).transpose()?;
        if put.content_type.as_ref().is_some_and(|kind| kind.len() > MAX_CONTENT_TYPE) {
            return Err(line("contentType is too long"));
        }
        let old = Object::find(self.transaction, self.bucket.id, put.path.as_bytes())?;
        let size = i64::try_from(size).map_err(|_| line("the file is too large"))?;
        let rest = self.bucket.size - old.as_ref().map_or(0, Object::stored_size);
        self.bucket.size = rest.checked_add(size).ok_or_else(|| line("the bucket would be too large"))?;
        self.bucket.files += i64::from(old.is_none());
        self.changed = true;
        let sql = "INSERT INTO objects (bucket, key, hash, size, mtime, uploaded, content_type) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                   ON CONFLICT (bucket, key) DO UPDATE SET hash = excluded.hash, size = excluded.size, mtime = excluded.mtime,
                   uploaded = excluded.uploaded, content_type = excluded.content_type";
        let row = (self.bucket.id, put.path.as_bytes(), hash.0, size, mtime, self.stamp, &put.content_type);
        self.transaction.prepare_cached(sql)?.execute(row)?;
        self.log.put(put.path.as_bytes(), old.as_ref(), &hash, size, mtime)?;
        self.removed.extend(old.as_ref().map(|old| old.hash));
        Ok(self.folders.put(put.path.as_bytes(), old.is_none())?)
    }

    /// Deletes a file. Succeeds if there is none and the key is valid. A file with an invalid key is deleted:
    /// older versions stored such.
    fn delete(&mut self, path: &str) -> Result<(), Failure> {
        let Some(old) = Object::find(self.transaction, self.bucket.id, path.as_bytes())? else {
            return check_path(path);
        };
        let sql = "DELETE FROM objects WHERE bucket = ?1 AND key = ?2";
        self.transaction.prepare_cached(sql)?.execute((self.bucket.id, path.as_bytes()))?;
        self.bucket.size -= old.stored_size();
        self.bucket.files -= 1;
        self.changed = true;
        self.log.delete(path.as_bytes())?;
        self.removed.insert(old.hash);
        Ok(self.folders.removed(path.as_bytes(), old.uploaded)?)
    }
}

/// Fails the line if no file may be stored at `path`.
fn check_path(path: &str) -> Result<(), Failure> {
    if path.len() > MAX_KEY {
        return Err(line("the path is too long"));
    }
    check_key(path).map_err(|reason| line(format!("invalid path: {reason}")))
}

fn parse_hash(text: &str) -> Result<Hash, Failure> {
    text.parse().map_err(|_| line("invalid xetHash"))
}

/// Milliseconds of an `mtime`.
fn parse_time(mtime: f64, has_size: bool) -> Result<i64, Failure> {
    let is_seconds = has_size && (0.0..SECONDS_BELOW).contains(&mtime);
    let millis = if is_seconds { mtime * 1000.0 } else { mtime }.round();
    // Within the range that answers can show, every whole number of milliseconds is exact in both types.
    if millis < *TIME_RANGE.start() as f64 || millis > *TIME_RANGE.end() as f64 || millis.is_nan() {
        return Err(line("invalid mtime"));
    }
    Ok(millis as i64)
}
