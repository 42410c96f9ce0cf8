//! Copies objects: by content id where both buckets have one key, else by reading and writing.
//!
//! Content isn't bound to its path, so one stored object may have any number of keys and no byte moves. Plaintext
//! beside an encrypted tree is the exception: it has to be sealed.

use super::condition::Conditions;
use super::digest::{Algorithm, Hasher, hex};
use super::object::to_its_end;
use super::record::{Headers, Record, Tags};
use super::upload::Body;
use super::{Bucket, Error, Found, Key, MAX_PUT, multipart::Part, multipart::PartUpload};
use crate::store::{Change, Error as StoreError, Expect, Op, Side, Stored};
use futures::{StreamExt, TryStreamExt};
use std::ops::Range;
use std::sync::Arc;

/// A copy.
#[derive(Default)]
pub struct Copy {
    /// What must hold of the source.
    pub source_conditions: Conditions,
    /// What must hold of the target.
    pub conditions: Conditions,
    /// New headers and user metadata. `None`: those of the source.
    pub headers: Option<Headers>,
    /// New tags. `None`: those of the source.
    pub tags: Option<Tags>,
    /// The additional checksum that the copy shall have. `None`: that of the source.
    pub algorithm: Option<Algorithm>,
}

impl Copy {
    fn check(&self, is_itself: bool) -> Result<(), Error> {
        if is_itself && self.headers.is_none() && self.tags.is_none() && self.algorithm.is_none() {
            return Err(Error::InvalidRequest("an object is copied to itself only with other metadata"));
        }
        self.headers.as_ref().map_or(Ok(()), Headers::check)
    }
}

impl Bucket {
    /// Copies an object of `source` to a key of this bucket.
    pub async fn copy(
        self: &Arc<Self>,
        key: &Key,
        source: &Bucket,
        source_key: &Key,
        copy: Copy,
    ) -> Result<Found, Error> {
        self.check_key(key)?;
        let found = source.head(source_key).await?;
        copy.source_conditions.check_copy(found.present())?;
        let is_itself = self.id == source.id && key == source_key;
        copy.check(is_itself)?;
        let must_read = self.must_read(source, &found, copy.algorithm);
        let headers = copy.headers.unwrap_or_else(|| found.record.headers.clone());
        let tags = copy.tags.unwrap_or_else(|| found.record.tags.clone());
        let record = Record { headers, tags, ..found.record.clone() };
        self.expected(key, &copy.conditions).await?;
        if must_read {
            return self.copy_by_reading(key, source, &found, record, copy.algorithm, &copy.conditions).await;
        }
        if is_itself {
            let headers = record.headers.clone();
            let tags = record.tags.clone();
            self.change_record(key, |record| Record { headers, tags, ..record }).await?;
            return Ok(Found { record, ..found });
        }
        let copied = self.copy_by_id(key, source, source_key, &found, record.clone(), &copy.conditions).await;
        match copied {
            // The Hub may refuse content of a bucket in another region.
            Err(Error::Store(StoreError::Refused(_))) if self.id != source.id => {
                self.copy_by_reading(key, source, &found, record, copy.algorithm, &copy.conditions).await
            }
            copied => copied,
        }
    }

    /// Returns true if a copy has to read the content: to seal it, or to compute another checksum.
    fn must_read(&self, source: &Bucket, found: &Found, algorithm: Option<Algorithm>) -> bool {
        let has = |wanted| found.record.checksum.as_ref().is_some_and(|checksum| checksum.algorithm == wanted);
        let is_sealed = found.version.side != Side::Plain;
        algorithm.is_some_and(|wanted| !has(wanted))
            || is_sealed != self.view.key_id().is_some()
            || self.view.key_id() != source.view.key_id()
    }

    /// Puts the stored object of `source` at a key of this bucket.
    async fn copy_by_id(
        self: &Arc<Self>,
        key: &Key,
        source: &Bucket,
        source_key: &Key,
        found: &Found,
        record: Record,
        conditions: &Conditions,
    ) -> Result<Found, Error> {
        if self.id != source.id {
            self.view.adopt(&found.version, &source.id).await.map_err(Error::of_store)?;
            let stored = Stored { version: found.version, plain_len: found.len };
            let kept = self.describe_alone(&found.version, record).await?;
            return self.commit_new(key, stored, kept, conditions.clone()).await;
        }
        let (this, conditions, found) = (self.clone(), conditions.clone(), found.clone());
        let (key, source_path) = (key.clone(), source_key.path().clone());
        to_its_end(async move {
            let kept = this.describe_alone(&found.version, record).await?;
            let turn = this.turn(key.path()).await?;
            let expect_to = this.expected(&key, &conditions).await?;
            this.note_record(key.path(), &found.version, &kept).await?;
            let change = Change::Copy { to: key.path().clone(), expect_to, metadata: kept.object };
            let op = Op { path: source_path, expect: Expect::Is(found.version.id), change };
            this.commit_one(&turn, op, &conditions).await?;
            this.tidy(&key, Some(&found.version));
            let modified = this.head(&key).await?.modified;
            Ok(Found { record: kept.record, modified, ..found })
        })
        .await
    }

    async fn copy_by_reading(
        self: &Arc<Self>,
        key: &Key,
        source: &Bucket,
        found: &Found,
        mut record: Record,
        algorithm: Option<Algorithm>,
        conditions: &Conditions,
    ) -> Result<Found, Error> {
        let body = source.content(found, 0..found.len).await?;
        let hasher = Hasher::new(algorithm);
        let uploaded = self.upload(body, Some(found.len), u64::MAX, hasher, Default::default(), None).await?;
        if record.etag.is_none() {
            record.etag = Some(hex(&uploaded.digests.md5));
        }
        record.checksum = uploaded.digests.checksum.clone().or(record.checksum);
        let kept = self.describe(&uploaded.session, &uploaded.stored.version, record).await?;
        uploaded.session.register().await?;
        self.commit_new(key, uploaded.stored, kept, conditions.clone()).await
    }

    /// Uploads a part that is a range of an object of `source`.
    pub async fn copy_part(
        &self,
        (key, id, number): (&Key, &str, u32),
        source: &Bucket,
        source_key: &Key,
        range: Option<Range<u64>>,
        conditions: &Conditions,
    ) -> Result<Part, Error> {
        let found = source.head(source_key).await?;
        conditions.check_copy(found.present())?;
        let range = range.unwrap_or(0..found.len);
        if range.end > found.len || range.start > range.end {
            return Err(Error::InvalidRange);
        }
        if range.end - range.start > MAX_PUT {
            return Err(Error::TooLarge(MAX_PUT));
        }
        let len = Some(range.end - range.start);
        let body = source.content(&found, range).await?;
        self.put_part(key, id, number, body, PartUpload { len, ..PartUpload::default() }).await
    }

    /// Returns a range of an object as a stream.
    pub(super) async fn content(&self, found: &Found, range: Range<u64>) -> Result<Body, Error> {
        let object = self.open(&found.version).await?;
        if object.len() != found.len {
            return Err(Error::Store(StoreError::LengthMismatch));
        }
        Ok(object.stream(range).map_err(Error::of_store).boxed())
    }
}
