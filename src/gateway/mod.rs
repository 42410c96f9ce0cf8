//! Serves buckets to programs that speak the protocols of object stores.
//!
//! This layer knows keys, entity tags, conditions, metadata and multipart uploads. A protocol is a thin adapter over
//! it: [`s3`], [`ftp`]. Everything that is stored goes through [`store`](crate::store), so with a key the Hub only ever
//! sees ciphertext. Plaintext keys and names never enter a log or a file.

mod access;
pub mod admin;
mod condition;
mod copy;
mod digest;
mod error;
mod files;
#[cfg(feature = "ftp")]
pub mod ftp;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzz;
mod key;
mod list;
mod metadata;
mod multipart;
mod names;
mod object;
mod record;
pub mod s3;
mod seal;
mod sessions;
pub mod state;
mod task;
mod turn;
mod upload;

pub use access::{AccessKey, AccessKeys, Permission, Scope};
pub use condition::{Conditions, Present, Tags};
pub use copy::Copy as CopyRequest;
pub use digest::{Algorithm, Announced, Checksum};
pub use error::Error;
pub use files::Start;
pub use key::{Key, MAX_KEY};
pub use list::{After, Listed, Page, Query};
pub use multipart::{ChosenPart, Completed, Completion, ListedUpload, Part, PartUpload, Upload};
pub use names::Namespaces;
pub use object::{Found, Put};
pub use record::{Headers, PartInfo, Record, Tags as ObjectTags, check_tags};
pub use upload::{Body as UploadBody, Late as LateDigests};

use crate::store::buckets::{BucketId, BucketInfo, Buckets};
use crate::store::{CacheLookups, Lookups, OpenOptions, Source, View};
use digest::hex;
use list::Listings;
use state::State;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use turn::Turns;

/// Options of a gateway.
#[derive(Clone)]
pub struct Options {
    /// How buckets are opened: key, formats, caches. [`OpenOptions::exact_names`] is always set.
    pub open: OpenOptions,
    /// True to keep the records of objects in the bucket too. False: in the state only.
    pub metadata: bool,
    /// Age at which a multipart upload that is not completed is removed.
    pub upload_ttl: Duration,
    /// Smallest size of a part that isn't the last one.
    pub min_part: u64,
    /// Bytes of content that all uploads together hold in memory, at least 96 MiB.
    pub upload_memory: u64,
}

/// Time without progress after which a request to the Hub or the storage is given up. A request that needs a new token
/// may take it twice, and clients wait for 60 s for an answer.
pub const PATIENCE: Duration = Duration::from_secs(28);
/// Longest wait of a request for another one: for a turn, for memory, or for a completion that runs.
const WAIT: Duration = Duration::from_secs(20);
/// Records that a list holds in memory.
const RECORDS: usize = 50;
/// Smallest size of a part in S3.
pub const MIN_PART: u64 = 5 << 20;
/// Largest object of one request, and largest part, in S3.
pub const MAX_PUT: u64 = 5 << 30;
/// Largest number of a part in S3.
pub const MAX_PARTS: u32 = 10_000;

/// The buckets of some namespaces, and what is kept about them.
pub struct Gateway {
    buckets: Buckets,
    namespaces: Namespaces,
    options: Options,
    state: Arc<dyn State>,
    /// Random name of this process among those that share the state.
    owner: String,
    /// Memory for upload sessions.
    memory: Arc<Semaphore>,
    /// Counts lookups of records in the state.
    record_lookups: Arc<Lookups>,
    /// Opened buckets. Never held over an await.
    opened: Mutex<HashMap<BucketId, Arc<OnceCell<Arc<Bucket>>>>>,
}

/// An opened bucket.
pub struct Bucket {
    id: BucketId,
    view: Arc<dyn View>,
    listings: Listings,
    state: Arc<dyn State>,
    owner: String,
    min_part: u64,
    /// Memory for upload sessions, of all buckets.
    memory: Arc<Semaphore>,
    turns: Turns,
    sessions: sessions::Sessions,
    /// True if records are kept in the bucket.
    metadata: bool,
    undescribed: metadata::Undescribed,
    record_lookups: Arc<Lookups>,
    /// Held for reading by commits, and for writing while the bucket is removed: the Hub removes a bucket with its
    /// files.
    existence: tokio::sync::RwLock<()>,
}

impl Gateway {
    /// A gateway over the buckets of `namespaces`.
    pub fn new(
        buckets: Buckets,
        namespaces: Namespaces,
        state: Arc<dyn State>,
        mut options: Options,
    ) -> Result<Self, Error> {
        options.open.exact_names = true;
        let owner = random_name()?;
        options.open.session_memory = Some(sessions::SESSION);
        options.open.patience = Some(PATIENCE);
        let memory = sessions::memory(options.upload_memory);
        Ok(Self {
            buckets,
            namespaces,
            options,
            state,
            owner,
            memory,
            record_lookups: Arc::default(),
            opened: Mutex::default(),
        })
    }

    /// Returns the buckets of all namespaces, with the names that clients use, ascending by name.
    pub async fn list_buckets(&self) -> Result<Vec<(String, BucketInfo)>, Error> {
        let mut all = Vec::new();
        for namespace in self.namespaces.all() {
            let buckets = self.buckets.list(namespace).await.map_err(Error::of_store)?;
            let named = |info: BucketInfo| self.namespaces.name(&info.id).map(|name| (name, info));
            all.extend(buckets.into_iter().filter_map(named));
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(a, _), (b, _)| a == b);
        Ok(all)
    }

    /// Fails if this gateway may not write.
    fn check_writes(&self) -> Result<(), Error> {
        if self.options.open.read_only { Err(Error::Store(crate::store::Error::ReadOnly)) } else { Ok(()) }
    }

    /// Creates a private bucket.
    pub async fn create_bucket(&self, name: &str) -> Result<(), Error> {
        self.check_writes()?;
        self.buckets.create(&self.namespaces.bucket(name)?).await.map_err(Error::of_store)
    }

    /// Returns the description of a bucket.
    pub async fn bucket_info(&self, name: &str) -> Result<BucketInfo, Error> {
        let id = self.namespaces.bucket(name)?;
        let info = self.buckets.info(&id).await.map_err(Error::of_store);
        if let Err(Error::NoSuchBucket) = info {
            self.forget(&id);
        }
        info
    }

    /// Removes an empty bucket.
    pub async fn delete_bucket(&self, name: &str) -> Result<(), Error> {
        self.check_writes()?;
        let id = self.namespaces.bucket(name)?;
        let opened = self.opened().get(&id).and_then(|cell| cell.get().cloned());
        let _no_commit = match &opened {
            Some(bucket) => Some(bucket.existence.write().await),
            None => None,
        };
        self.buckets.remove_empty(&id).await.map_err(Error::of_store)?;
        self.forget(&id);
        Ok(())
    }

    /// Opens a bucket. It stays open.
    pub async fn bucket(&self, name: &str) -> Result<Arc<Bucket>, Error> {
        let id = self.namespaces.bucket(name)?;
        let cell = self.opened().entry(id.clone()).or_default().clone();
        match cell.get_or_try_init(|| self.open(&id)).await {
            Ok(bucket) => Ok(bucket.clone()),
            Err(error) => {
                self.forget(&id);
                Err(error)
            }
        }
    }

    /// Closes a bucket that was removed, so that a new one of its name is opened again.
    pub fn forget(&self, id: &BucketId) {
        self.opened().remove(id);
    }

    /// Removes multipart uploads that are older than their time to live. Returns their number.
    pub async fn remove_stale_uploads(&self) -> Result<u64, Error> {
        self.state.remove_stale(self.options.upload_ttl).await
    }

    /// Fails if the Hub or the state can't be reached.
    pub async fn check(&self) -> Result<(), Error> {
        self.state.check().await?;
        self.buckets.user().await.map(drop).map_err(Error::of_store)
    }

    /// Returns the counters of the caches in the text format of Prometheus (version 0.0.4).
    pub fn cache_counters(&self) -> String {
        let CacheLookups { chunks, plans, headers } = &self.options.open.lookups;
        let caches = [("chunks", chunks), ("plans", plans), ("headers", headers), ("metadata", &self.record_lookups)];
        let counts = caches.map(|(name, lookups)| (name, lookups.get()));
        let mut text = String::new();
        for (kind, of) in [("hits", 0), ("misses", 1)] {
            let metric = format!("hugbucket_cache_{kind}_total");
            text += &format!("# TYPE {metric} counter\n");
            for (name, (hits, misses)) in counts {
                text += &format!("{metric}{{cache=\"{name}\"}} {}\n", [hits, misses][of]);
            }
        }
        text
    }

    async fn open(&self, id: &BucketId) -> Result<Arc<Bucket>, Error> {
        let endpoint = self.buckets.endpoint().ok_or(Error::NoSuchBucket)?.clone();
        let source = Source::Bucket { id: id.clone(), prefix: String::new() };
        let opened = crate::store::open(endpoint, &source, self.options.open.clone()).await.map_err(Error::of_store)?;
        Ok(Arc::new(Bucket {
            id: id.clone(),
            view: opened.view,
            listings: Listings::default(),
            state: self.state.clone(),
            owner: self.owner.clone(),
            min_part: self.options.min_part,
            memory: self.memory.clone(),
            turns: Turns::default(),
            sessions: Default::default(),
            metadata: self.options.metadata,
            undescribed: Default::default(),
            record_lookups: self.record_lookups.clone(),
            existence: tokio::sync::RwLock::default(),
        }))
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, HashMap<BucketId, Arc<OnceCell<Arc<Bucket>>>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    /// Returns the bucket's id at the Hub.
    pub fn id(&self) -> &BucketId {
        &self.id
    }

    /// Returns a page of keys.
    pub async fn list(&self, query: &Query) -> Result<Page, Error> {
        list::page(&*self.view, &self.listings, query).await
    }

    /// Returns the entity tags of listed objects, in their order. An object that can't be read has none.
    pub async fn etags(&self, objects: &[Listed]) -> Result<Vec<Option<String>>, Error> {
        let mut etags = Vec::with_capacity(objects.len());
        // A record may be large, and only its entity tag is kept.
        for objects in objects.chunks(RECORDS) {
            let versions = objects.iter().filter_map(|object| Some((object.path.clone(), object.version?)));
            let mut records = self.records(&versions.collect::<Vec<_>>()).await?.into_iter();
            for object in objects {
                let record = object.version.and_then(|version| Some((version, records.next()?)));
                etags.push(record.map(|(version, record)| record.etag(&version.id)));
            }
        }
        Ok(etags)
    }
}

/// Returns a name that nobody else has.
fn random_name() -> Result<String, Error> {
    let mut name = [0; 16];
    getrandom::fill(&mut name).map_err(|error| Error::State(format!("no randomness: {error}")))?;
    Ok(hex(&name))
}

/// Returns the time in seconds since 1970.
fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}
