//! Reads, writes and removes single objects.

use super::condition::{Conditions, Present};
use super::digest::{Algorithm, Announced, Digests, Hasher, hex};
use super::metadata::Kept;
use super::record::{Headers, Record, Tags, path_digest};
use super::turn::Turn;
use super::upload::{Body, Late, Uploaded};
use super::{Bucket, Error, Key, MAX_PUT};
use crate::store::{
    Change, Described, Error as StoreError, Expect, Kind, Len, Object, Op, Outcome, Stored, Version, stored_now,
};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// Runs work to its end, also if the request that waits for it is dropped.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|error| Error::State(error.to_string()))?
}

/// An object.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its version.
    pub version: Version,
    /// Its size in bytes.
    pub len: u64,
    /// Time of its last change.
    pub modified: OffsetDateTime,
    /// Its entity tag, without quotes.
    pub etag: String,
    /// What it has beside its content.
    pub record: Record,
}

impl Found {
    /// Returns the version as conditions compare it.
    pub fn present(&self) -> Present<'_> {
        Present { etag: &self.etag, modified: self.modified, size: self.len }
    }
}

/// A write.
#[derive(Default)]
pub struct Put {
    /// Length of the content, if it is known.
    pub len: Option<u64>,
    /// Headers and user metadata.
    pub headers: Headers,
    /// Tags.
    pub tags: Tags,
    /// Digests that the client announced.
    pub announced: Announced,
    /// The additional checksum to compute and keep.
    pub algorithm: Option<Algorithm>,
    /// Digests that come after the content.
    pub late: Option<Late>,
    /// What must hold of the present version.
    pub conditions: Conditions,
}

impl Bucket {
    /// Returns an object, or [`Error::NoSuchKey`].
    pub async fn head(&self, key: &Key) -> Result<Found, Error> {
        self.find(key).await?.ok_or(Error::NoSuchKey)
    }

    /// Returns an object. `None`: there is none.
    pub(super) async fn find(&self, key: &Key) -> Result<Option<Found>, Error> {
        let path = key.path();
        let found = self.view.described(std::slice::from_ref(path)).await.map_err(Error::of_store)?.pop();
        let Some(Described { file: Some(Kind::File { version, len, mtime, .. }), metadata }) = found else {
            return Ok(None);
        };
        let version = version.ok_or(Error::Store(StoreError::NoContent))?;
        let len = match len {
            Len::Known(len) => len,
            // Opening it tells why.
            Len::Unread | Len::Damaged => self.view.open(&version).await.map_err(Error::of_store)?.len(),
        };
        let record = self.record(path, &version, metadata).await?;
        let modified = mtime.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Ok(Some(Found { version, len, modified, etag: record.etag(&version.id), record }))
    }

    /// Opens a version.
    pub async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.view.open(version).await.map_err(Error::of_store)
    }

    /// Stores an object. It is the old one until the new one is whole and all announced digests match.
    pub async fn put(self: &Arc<Self>, key: &Key, body: Body, put: Put) -> Result<Found, Error> {
        self.check_key(key)?;
        put.headers.check()?;
        if put.len.is_some_and(|len| len > MAX_PUT) {
            return Err(Error::TooLarge(MAX_PUT));
        }
        self.expected(key, &put.conditions).await?;
        let (headers, tags) = (put.headers, put.tags);
        let record = |digests: &Digests| {
            let (etag, checksum) = (Some(hex(&digests.md5)), digests.checksum.clone());
            Record { etag, checksum, headers, tags, ..Record::default() }
        };
        let hasher = Hasher::new(put.algorithm);
        let Uploaded { session, stored, digests } =
            self.upload(body, put.len, MAX_PUT, hasher, put.announced, put.late).await?;
        let kept = self.describe(&session, &stored.version, record(&digests)).await?;
        session.register().await?;
        drop(session);
        // The content took its time, so the conditions are checked again.
        self.commit_new(key, stored, kept, put.conditions).await
    }

    /// Puts stored content at a key if the conditions hold. Goes on if the client leaves: a commit that is on its way
    /// to the Hub may still be carried out, so the turn must not end before its outcome is known.
    pub(super) async fn commit_new(
        self: &Arc<Self>,
        key: &Key,
        stored: Stored,
        kept: Kept,
        conditions: Conditions,
    ) -> Result<Found, Error> {
        let (this, key) = (self.clone(), key.clone());
        to_its_end(async move {
            let turn = this.turn(key.path()).await?;
            let expect = this.expected(&key, &conditions).await?;
            this.commit_put(&turn, &key, stored, kept, expect, &conditions).await
        })
        .await
    }

    /// Replaces the tags of an object.
    pub async fn set_tags(self: &Arc<Self>, key: &Key, tags: Tags) -> Result<(), Error> {
        self.change_record(key, |record| Record { tags, ..record }).await
    }

    /// Removes an object. A missing one is no error.
    pub async fn delete(self: &Arc<Self>, key: &Key, conditions: Conditions) -> Result<(), Error> {
        let (this, key) = (self.clone(), key.clone());
        to_its_end(async move { this.delete_in_turn(&key, &conditions).await }).await
    }

    async fn delete_in_turn(&self, key: &Key, conditions: &Conditions) -> Result<(), Error> {
        let turn = self.turn(key.path()).await?;
        let expect = match conditions.is_empty() {
            true => Expect::Any,
            // A condition on a missing object holds for a removal: nothing is left to remove.
            false => match self.find(key).await? {
                None => return Ok(()),
                Some(found) => {
                    conditions.check_write(Some(found.present()))?;
                    Expect::Is(found.version.id)
                }
            },
        };
        let op = Op { path: key.path().clone(), expect, change: Change::Delete };
        self.commit_one(&turn, op, conditions).await?;
        // Writers of the object wait for this turn, so no record belongs to a write that is still to come.
        self.state.remove_records(path_digest(&*self.view, key.path()), None, Duration::ZERO).await
    }

    /// Removes several objects. Returns one result each.
    pub async fn delete_all(self: &Arc<Self>, keys: Vec<Key>) -> Result<Vec<Result<(), Error>>, Error> {
        let this = self.clone();
        to_its_end(async move {
            // All of them in one order, so that two such removals don't wait for each other.
            let mut paths: Vec<_> = keys.iter().map(Key::path).collect();
            paths.sort();
            paths.dedup();
            let mut turns = Vec::with_capacity(paths.len());
            for path in paths {
                turns.push(this.turn(path).await?);
            }
            let op = |key: &Key| Op { path: key.path().clone(), expect: Expect::Any, change: Change::Delete };
            let ops: Vec<Op> = keys.iter().map(op).collect();
            turns.iter().try_for_each(Turn::check)?;
            let results = this.commit(&ops, &Conditions::default()).await;
            let tidied = |(key, result): (&Key, Result<_, Error>)| result.map(|_| this.tidy(key, None));
            Ok(keys.iter().zip(results).map(tidied).collect())
        })
        .await
    }

    /// Puts stored content at a key, with its record.
    pub(super) async fn commit_put(
        &self,
        turn: &Turn,
        key: &Key,
        stored: Stored,
        kept: Kept,
        expect: Expect,
        conditions: &Conditions,
    ) -> Result<Found, Error> {
        // The record comes first, so that the version is never without it. It means nothing until its version is there,
        // unless the object has this content already.
        if kept.object.is_some() || kept.record != Record::default() {
            self.note_record(key.path(), &stored.version, &kept).await?;
        }
        let modified = stored_now();
        let change = Change::Put { stored, mtime: modified, metadata: kept.object };
        let op = Op { path: key.path().clone(), expect, change };
        self.commit_one(turn, op, conditions).await?;
        self.tidy(key, Some(&stored.version));
        let etag = kept.record.etag(&stored.version.id);
        Ok(Found { version: stored.version, len: stored.plain_len, modified, etag, record: kept.record })
    }

    /// Carries out a change in the turn of its object.
    pub(super) async fn commit_one(&self, turn: &Turn, op: Op, conditions: &Conditions) -> Result<(), Error> {
        turn.check()?;
        self.commit(&[op], conditions).await.pop().unwrap_or(Ok(None)).map(drop)
    }

    /// Carries out changes. A conflict is a condition that no longer holds.
    pub(super) async fn commit(&self, ops: &[Op], conditions: &Conditions) -> Vec<Result<Option<Version>, Error>> {
        let _exists = self.existence.read().await;
        let result = |outcome: Outcome| match outcome {
            Outcome::Done(version) => Ok(version),
            Outcome::Moved(_) => Ok(None),
            Outcome::Conflict { .. } if conditions.if_none_match.is_some() => {
                Err(Error::PreconditionFailed("If-None-Match"))
            }
            Outcome::Conflict { .. } if conditions.if_match.is_some() => Err(Error::PreconditionFailed("If-Match")),
            Outcome::Conflict { .. } => Err(Error::Conflict),
            Outcome::Failed(error) => Err(Error::of_store(error)),
        };
        self.view.commit(ops).await.into_iter().map(result).collect()
    }

    /// Checks the conditions of a write against the present version. Returns the state that the commit has to find.
    pub(super) async fn expected(&self, key: &Key, conditions: &Conditions) -> Result<Expect, Error> {
        if conditions.is_empty() {
            return Ok(Expect::Any);
        }
        let found = self.find(key).await?;
        conditions.check_write(found.as_ref().map(Found::present))?;
        Ok(found.map_or(Expect::Absent, |found| Expect::Is(found.version.id)))
    }

    /// Fails if the bucket can't store a key, or is read-only.
    pub(super) fn check_key(&self, key: &Key) -> Result<(), Error> {
        if self.view.read_only() {
            return Err(Error::Store(StoreError::ReadOnly));
        }
        let Some((parent, name)) = key.path().split() else { return Ok(()) };
        self.view.check_name(&parent, name).map_err(Error::of_store)
    }
}
