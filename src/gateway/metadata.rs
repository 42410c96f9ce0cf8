//! Records of objects: in the bucket, where every gateway finds them, and copies in the state, which need no read.
//!
//! A record is stored as a metadata object of the bucket (`docs/format.md`, section 13). It names the version that it
//! describes, because another program may write the object and not its metadata. The state has a copy of each record
//! that this gateway wrote or read, by key and version, with the id of the metadata object that it came from. A lookup
//! of an object returns that id in the same request. So a metadata object is read once, and again after it was
//! replaced.

use super::object::to_its_end;
use super::record::{Record, RecordKey, path_digest};
use super::sessions::Session;
use super::state::RecordRow;
use super::turn::Turn;
use super::{Bucket, Error, Key, seal};
use crate::store::{
    Change, ContentId, Described, Expect, MetadataObject, Op, PlainPath, Version, View, metadata::MAX_METADATA,
};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Age below which the record of another version of an object is kept.
const RECORD_GRACE: Duration = Duration::from_secs(3600);
/// Metadata objects read at once for one list.
const READS: usize = 8;
/// Time for which lists don't look for the metadata of a version again after there was none.
const NONE_KNOWN: Duration = Duration::from_secs(60);
/// Versions that are known to have no metadata. When there are more, all are forgotten.
const MAX_NONE: usize = 100_000;

/// A metadata object's content.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Version of this layout.
    v: u32,
    /// Id of the content that is described.
    of: String,
    #[serde(flatten)]
    record: Record,
}

impl Stored {
    /// Reads a metadata object. `None`: it describes other content, or is none of ours.
    fn parse(json: &[u8], id: &ContentId) -> Option<Record> {
        let stored: Self = serde_json::from_slice(json).ok()?;
        (stored.v == 1 && stored.of == id.to_string() && stored.record.is_valid()).then_some(stored.record)
    }
}

/// A row of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) record: Record,
    /// Id of the metadata object that it was written to, or read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
}

impl Row {
    fn seal(&self, view: &dyn View, key: &RecordKey) -> Result<Vec<u8>, Error> {
        let json = serde_json::to_vec(self).map_err(|error| Error::State(error.to_string()))?;
        seal::seal(view, &key.0, &json)
    }

    fn open(view: &dyn View, key: &RecordKey, row: &[u8]) -> Result<Self, Error> {
        let json = seal::open(view, &key.0, row)?;
        serde_json::from_slice(&json).map_err(|_| Error::State("a record of an object is damaged".into()))
    }
}

/// A record of a version that is about to be committed.
pub(super) struct Kept {
    pub(super) record: Record,
    /// Its metadata object. `None`: the gateway doesn't keep metadata in the bucket.
    pub(super) object: Option<ContentId>,
}

/// Versions that had no metadata a moment ago. Never held over an await.
#[derive(Default)]
pub(super) struct Undescribed(Mutex<HashMap<[u8; 32], Instant>>);

impl Undescribed {
    fn note(&self, key: &RecordKey) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NONE {
            known.clear();
        }
        known.insert(key.0, Instant::now());
    }

    fn has(&self, key: &RecordKey) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key.0).is_some_and(|at| at.elapsed() < NONE_KNOWN)
    }
}

impl Bucket {
    /// Uploads the metadata object of a version, in the session of its content.
    pub(super) async fn describe(&self, session: &Session, version: &Version, record: Record) -> Result<Kept, Error> {
        if !self.metadata {
            return Ok(Kept { record, object: None });
        }
        let stored = Stored { v: 1, of: version.id.to_string(), record };
        let json = serde_json::to_vec(&stored).map_err(|error| Error::State(error.to_string()))?;
        if json.len() > MAX_METADATA {
            return Err(Error::MetadataTooLarge(MAX_METADATA));
        }
        let object = session.add_metadata(&json).await?;
        Ok(Kept { record: stored.record, object: Some(object) })
    }

    /// Does the same for content that is uploaded already.
    pub(super) async fn describe_alone(&self, version: &Version, record: Record) -> Result<Kept, Error> {
        if !self.metadata {
            return Ok(Kept { record, object: None });
        }
        let session = self.session(Some(0)).await?;
        let kept = self.describe(&session, version, record).await?;
        session.register().await?;
        Ok(kept)
    }

    /// Gives the present version of an object another record. The caller has the turn of the key.
    async fn set_record(&self, turn: &Turn, key: &Key, version: &Version, record: Record) -> Result<(), Error> {
        let kept = self.describe_alone(version, record).await?;
        if let Some(metadata) = kept.object {
            let change = Change::Describe { metadata };
            let op = Op { path: key.path().clone(), expect: Expect::Is(version.id), change };
            self.commit_one(turn, op, &Default::default()).await?;
        }
        self.note_record(key.path(), version, &kept).await
    }

    /// Puts a record into the state. If it is in the bucket too, nobody waits for the state: a row that is missing is
    /// made when the object is looked up.
    pub(super) async fn note_record(&self, path: &PlainPath, version: &Version, kept: &Kept) -> Result<(), Error> {
        let row = Row { record: kept.record.clone(), object: kept.object.map(|id| id.to_string()) };
        let row = self.row(path, version, &row)?;
        if kept.object.is_none() {
            return self.state.set_record(row).await;
        }
        let state = self.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.set_record(row).await {
                tracing::warn!(%error, "cannot put the metadata of an object into the state");
            }
        });
        Ok(())
    }

    fn row(&self, path: &PlainPath, version: &Version, row: &Row) -> Result<RecordRow, Error> {
        let at = RecordKey::new(&*self.view, path, &version.id);
        let row = row.seal(&*self.view, &at)?;
        Ok(RecordRow { key: at.0, path: path_digest(&*self.view, path), row })
    }

    /// Returns the record of a version, which was found with this metadata object.
    pub(super) async fn record(
        &self,
        path: &PlainPath,
        version: &Version,
        object: Option<MetadataObject>,
    ) -> Result<Record, Error> {
        let row = self.rows([(path, *version)].into_iter()).await?.pop().flatten();
        match (row, object.filter(|_| self.metadata)) {
            // A row of a metadata object that is gone describes an earlier object of the same content.
            (row, None) => Ok(row.filter(|row| row.object.is_none() || !self.metadata).unwrap_or_default().record),
            (Some(row), Some(object)) if row.object.as_deref() == Some(&object.id.to_string()) => Ok(row.record),
            (row, Some(object)) => self.load(path, version, &object, row).await,
        }
    }

    /// Reads a metadata object and puts its record into the state. Metadata of another version means nothing, so a
    /// row that the state has stays.
    async fn load(
        &self,
        path: &PlainPath,
        version: &Version,
        object: &MetadataObject,
        row: Option<Row>,
    ) -> Result<Record, Error> {
        let json = self.view.metadata(object).await.map_err(Error::of_store)?;
        let stored = json.and_then(|json| Stored::parse(&json, &version.id));
        let record = stored.or(row.map(|row| row.record)).unwrap_or_default();
        let row = Row { record, object: Some(object.id.to_string()) };
        if let Err(error) = self.state.set_record(self.row(path, version, &row)?).await {
            // The next lookup reads it again.
            tracing::warn!(%error, "cannot put the metadata of an object into the state");
        }
        Ok(row.record)
    }

    /// Returns the records of listed versions, in their order. Those that the state doesn't have are looked for in
    /// the bucket.
    pub(super) async fn records(&self, versions: &[(PlainPath, Version)]) -> Result<Vec<Record>, Error> {
        let mut rows = self.rows(versions.iter().map(|(path, version)| (path, *version))).await?;
        let at = |index: usize| RecordKey::new(&*self.view, &versions[index].0, &versions[index].1.id);
        let missing = (0..rows.len()).filter(|&index| rows[index].is_none() && !self.undescribed.has(&at(index)));
        let missing: Vec<usize> = if self.metadata { missing.collect() } else { Vec::new() };
        let paths: Vec<PlainPath> = missing.iter().map(|&index| versions[index].0.clone()).collect();
        let described = match paths.is_empty() {
            true => Vec::new(),
            false => self.view.described(&paths).await.map_err(Error::of_store)?,
        };
        let mut loads = Vec::new();
        for (index, Described { metadata, .. }) in missing.into_iter().zip(described) {
            match metadata {
                Some(object) => loads.push((index, object)),
                None => self.undescribed.note(&at(index)),
            }
        }
        let load = async |(index, object): (usize, MetadataObject)| {
            let (path, version) = &versions[index];
            Ok::<_, Error>((index, self.load(path, version, &object, None).await?))
        };
        let mut loads = futures::stream::iter(loads.into_iter().map(load)).buffer_unordered(READS);
        while let Some((index, record)) = loads.try_next().await? {
            rows[index] = Some(Row { record, object: None });
        }
        Ok(rows.into_iter().map(|row| row.unwrap_or_default().record).collect())
    }

    /// Returns the rows that the state has of versions, in their order.
    async fn rows<'p>(
        &self,
        versions: impl Iterator<Item = (&'p PlainPath, Version)>,
    ) -> Result<Vec<Option<Row>>, Error> {
        let view: &dyn View = &*self.view;
        let keys: Vec<RecordKey> = versions.map(|(path, version)| RecordKey::new(view, path, &version.id)).collect();
        let rows = self.state.records(&keys.iter().map(|key| key.0).collect::<Vec<_>>()).await?;
        let hits = rows.iter().flatten().count() as u64;
        self.record_lookups.add(hits, rows.len() as u64 - hits);
        let open = |(key, row): (&RecordKey, Option<Vec<u8>>)| row.map(|row| Row::open(view, key, &row)).transpose();
        keys.iter().zip(rows).map(open).collect()
    }

    /// Removes the records of versions that are gone from the state, in the background. Newer ones may belong to a
    /// write whose commit is still to come.
    pub(super) fn tidy(&self, key: &Key, present: Option<&Version>) {
        let keep = present.map(|version| RecordKey::new(&*self.view, key.path(), &version.id).0);
        let (state, path) = (self.state.clone(), path_digest(&*self.view, key.path()));
        tokio::spawn(async move {
            if let Err(error) = state.remove_records(path, keep, RECORD_GRACE).await {
                tracing::warn!(%error, "cannot remove records of versions that are gone");
            }
        });
    }

    /// Changes the record of the present version of an object.
    pub(super) async fn change_record(
        self: &Arc<Self>,
        key: &Key,
        change: impl FnOnce(Record) -> Record + Send + 'static,
    ) -> Result<(), Error> {
        self.check_key(key)?;
        let (this, key) = (self.clone(), key.clone());
        to_its_end(async move {
            let turn = this.turn(key.path()).await?;
            let found = this.head(&key).await?;
            this.set_record(&turn, &key, &found.version, change(found.record)).await
        })
        .await
    }
}

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(super) fn fuzz(data: &[u8]) {
    let _ = Stored::parse(data, &ContentId::Blob([1; 20]));
    if let Ok(row) = serde_json::from_slice::<Row>(data) {
        let json = serde_json::to_vec(&row).expect("a row can be written");
        assert_eq!(serde_json::from_slice::<Row>(&json).ok(), Some(row));
    }
}
