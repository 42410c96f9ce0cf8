//! Opens a source: selects bucket, subfolder and key, and checks that the key is the right one (format spec,
//! section 5).

use super::beside::Beside;
use super::blobs::Blobs;
use super::contents::Contents;
use super::encrypted::{Encrypted, KeyVerdict, Setup};
use super::headers::Headers;
use super::memory::{Memory, Seen};
use super::merged::Merged;
use super::plain::{Plain, PlainTree};
use super::remote::Remote;
use super::{Error, Kind, PlainPath, View};
use crate::crypto::{Format, Keys, geometry::Padding};
use crate::hub::client::bucket_tokens;
use crate::hub::{self, BlobSource, BucketId, Endpoint, Hub, RepoId, Repository};
use crate::xet::cache::{self, ChunkCache, FileCache};
use crate::xet::http::{self, HttpCas};
use crate::xet::upload::{LocalLimits, LocalShards};
use crate::xet::{self, Cas, Downloader, Hash, Known, Lookups, download, known};
use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Object that is mounted or served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A bucket, or a plaintext subfolder of it.
    Bucket {
        /// Its id.
        id: BucketId,
        /// Plaintext subfolder; empty for the whole bucket.
        prefix: String,
    },
    /// A repository, or a plaintext subfolder of it. It is only read.
    Repository {
        /// Its kind and name.
        id: RepoId,
        /// Branch, tag or commit. `None`: `main`.
        revision: Option<String>,
        /// Plaintext subfolder; empty for the whole repository.
        prefix: String,
    },
}

impl Source {
    /// Returns the plaintext subfolder.
    fn prefix(&self) -> &str {
        match self {
            Self::Bucket { prefix, .. } | Self::Repository { prefix, .. } => prefix,
        }
    }

    /// Returns kind and name for the identities of local state.
    fn kind_and_name(&self) -> (String, String) {
        match self {
            Self::Bucket { id, .. } => ("bucket".to_owned(), id.to_string()),
            // No name has this character.
            Self::Repository { id, revision: None, .. } => (id.kind().to_string(), id.name().to_owned()),
            Self::Repository { id, revision: Some(revision), .. } => {
                (id.kind().to_string(), format!("{}@{revision}", id.name()))
            }
        }
    }
}

impl fmt::Display for Source {
    /// Prints the bucket or the repository, without the subfolder, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket { id, .. } => id.fmt(f),
            Self::Repository { id, revision: None, .. } => id.fmt(f),
            Self::Repository { id, revision: Some(revision), .. } => write!(f, "{id}@{revision}"),
        }
    }
}

/// Options of [`open`].
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Key. `None`: a plain view.
    pub keys: Option<Arc<Keys>>,
    /// Format of new files (default 2).
    pub format: Option<Format>,
    /// Padding policy of new files.
    pub padding: Padding,
    /// True to hide the plaintext side of a view with a key.
    pub encrypted_only: bool,
    /// True to start another key in a bucket that this key can't read.
    pub new_key: bool,
    /// True to create a missing bucket, as a private one.
    pub create: bool,
    /// True to refuse all writes.
    pub read_only: bool,
    /// True to give every object its own name, as stores of objects do: a listing has a file and a directory of one
    /// name
    /// side by side, and no path is an alias. False: each name once, as file systems need it (see
    /// [`View::show_beside`]).
    pub exact_names: bool,
    /// Folder of the local header cache and of the state that this machine remembers of the source. `None`:
    /// in memory only.
    pub cache_dir: Option<PathBuf>,
    /// Disk cache of data read, in a folder of `cache_dir` that all sources share. Without it, or without
    /// `cache_dir`, every read asks the CAS.
    pub disk_cache: Option<DiskCacheOptions>,
    /// Bytes of content that an upload session holds in memory, at least 16 MiB (default 48 MiB).
    pub session_memory: Option<usize>,
    /// Time without progress after which requests to the storage are not repeated any more, even if it asks for a
    /// longer wait. `None`: the defaults of [`http::Options`].
    pub patience: Option<Duration>,
    /// Counts lookups of the caches. Clones share the counters.
    pub lookups: CacheLookups,
}

/// Counters of the caches of sources.
#[derive(Clone, Debug, Default)]
pub struct CacheLookups {
    /// Chunks in the disk cache.
    pub chunks: Arc<Lookups>,
    /// Kept reconstructions, which tell where the chunks of a file are.
    pub plans: Arc<Lookups>,
    /// Headers of encrypted files, which tell their sizes.
    pub headers: Arc<Lookups>,
}

/// A chunk cache whose lookups are counted.
struct Counted {
    cache: ChunkCache,
    lookups: Arc<Lookups>,
}

#[async_trait]
impl download::Chunks for Counted {
    async fn chunks(&self, xorb: &Hash, chunks: Range<u32>) -> Option<Vec<download::Cached>> {
        let found = self.cache.chunks(xorb, chunks).await;
        self.lookups.count(found.is_some());
        found
    }

    async fn insert(&self, xorb: &Hash, first: u32, chunks: &[(Hash, Bytes)]) {
        self.cache.insert(xorb, first, chunks).await;
    }
}

/// Options of the disk cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskCacheOptions {
    /// Kind of pieces that are cached.
    pub mode: CacheMode,
    /// Bytes on disk, over all mounts that share the folder.
    pub max_bytes: u64,
}

/// Kind of pieces in a disk cache. A cache has one kind only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The chunks that were read.
    #[default]
    Chunk,
    /// Whole files, filled by their first read.
    File,
}

/// Folder of the disk cache below `cache_dir`. Staging and the local databases are next to it, never in it.
const DISK_CACHE: &str = "xet";
/// Folder of the chunk lists of plain files.
const KNOWN: &str = "known";
/// Folder of the shards of own uploads.
const SHARDS: &str = "shards";

/// An opened disk cache.
pub(super) enum DiskCache {
    Chunks(ChunkCache),
    Files(FileCache),
}

impl DiskCache {
    /// Opens the requested disk cache. A mount doesn't depend on it: if it can't be opened, a warning is
    /// logged and reads do without it.
    async fn open(options: &OpenOptions) -> Option<Self> {
        let (cache_dir, wanted) = (options.cache_dir.as_ref()?, options.disk_cache?);
        let cache = cache::Options { max_bytes: wanted.max_bytes, ..cache::Options::new(cache_dir.join(DISK_CACHE)) };
        let open = move || -> Result<Self, xet::Error> {
            Ok(match wanted.mode {
                CacheMode::Chunk => Self::Chunks(ChunkCache::open(cache)?),
                CacheMode::File => Self::Files(FileCache::open(cache)?),
            })
        };
        let opened = tokio::task::spawn_blocking(open).await.ok()?;
        opened.inspect_err(|error| tracing::warn!(%error, "cannot open the disk cache: every read asks the CAS")).ok()
    }
}

/// A source that was opened, and facts about it that its user should know.
pub struct Opened {
    /// The source. Keeps the endpoint alive.
    pub view: Arc<dyn View>,
    /// New id of the bucket, if it has moved. Requests with the old id are redirected, so the source stays
    /// usable.
    pub moved: Option<BucketId>,
    /// Nothing is in the source's subfolder yet. The first file in it will create it.
    pub is_new: bool,
}

/// Opens a source. Checks that the bucket is there (or creates it), that it is a bucket, that the key fits,
/// and that the subfolder is a folder. Fails with [`Error::SourceIsFile`] if it is a file, and with
/// [`Error::NoSuchFolder`] if it is missing and writing is not allowed.
pub async fn open(endpoint: Arc<Endpoint>, source: &Source, options: OpenOptions) -> Result<Opened, Error> {
    let mut options = options;
    let (hub, bucket, blobs): (Arc<dyn Hub>, BucketId, Option<Arc<dyn BlobSource>>) = match source {
        Source::Bucket { id, .. } => {
            let hub: Arc<dyn Hub> = endpoint.client();
            let bucket = hub::require_bucket(&*hub, id, options.create && !options.read_only).await?;
            (hub, bucket, None)
        }
        Source::Repository { id, revision, .. } => {
            options.read_only = true;
            let repository = Repository::open(endpoint.client(), id, revision.as_deref()).await?;
            (repository.clone(), repository.label()?, Some(repository))
        }
    };
    let tokens = bucket_tokens(hub.clone(), bucket.clone());
    let mut http = http::Options::default();
    if let Some(patience) = options.patience {
        (http.give_up, http.asked_for, http.idle) = (patience, patience, patience.min(http.idle));
    }
    let cas = Arc::new(HttpCas::new(endpoint.http(), tokens, http));
    let identity = endpoint.identity().to_owned();
    open_over(Ends { hub, bucket, cas, blobs, identity, endpoint: Some(endpoint) }, source, options).await
}

/// Hub and CAS through which a source is reached.
pub(super) struct Ends {
    pub(super) hub: Arc<dyn Hub>,
    /// The source's bucket under its present name. The old name may be given to another bucket later. Neither
    /// requests nor tokens may follow it there.
    pub(super) bucket: BucketId,
    pub(super) cas: Arc<dyn Cas>,
    /// Content outside Xet, which repositories have.
    pub(super) blobs: Option<Arc<dyn BlobSource>>,
    /// Stable name of the endpoint.
    pub(super) identity: String,
    /// The endpoint, kept alive.
    pub(super) endpoint: Option<Arc<Endpoint>>,
}

/// Opens a source like [`open`], over any Hub and CAS.
pub(super) async fn open_over(ends: Ends, source: &Source, options: OpenOptions) -> Result<Opened, Error> {
    let prefix = PlainPath::new(source.prefix().trim_matches('/'))?;
    let moved = match source {
        Source::Bucket { id, .. } => ends.bucket.has_moved_from(id).then(|| ends.bucket.clone()),
        Source::Repository { .. } => None,
    };
    let (kind, name) = source.kind_and_name();
    let known = if options.keys.is_none() { known_chunks(&options).await } else { None };
    let contents = contents(ends.cas.clone(), &options, known.clone(), ends.blobs).await;
    let shards = match options.read_only {
        true => None,
        false => local_shards(&ends.identity, &name, &options).await,
    };
    let (endpoint, identity) = (ends.endpoint, ends.identity);
    let remote = Arc::new(Remote {
        hub: ends.hub,
        bucket: ends.bucket,
        cas: ends.cas,
        contents,
        known,
        shards,
        session_memory: options.session_memory.unwrap_or(super::put::MEMORY),
        adopted: Mutex::default(),
        header_lookups: options.lookups.headers.clone(),
        _endpoint: endpoint,
    });
    // Local state belongs to the requested name, so changes that were pending before a move are still found.
    let place = At { remote, endpoint: &identity, kind: &kind, name: &name };
    let (view, root) = match options.keys.clone() {
        None => open_plain(&place, &prefix, &options)?,
        Some(keys) => open_keyed(&place, &prefix, keys, &options).await?,
    };
    let is_new = !prefix.is_root() && is_missing(&*view, &*root, &prefix).await?;
    if is_new && options.read_only {
        return Err(Error::NoSuchFolder);
    }
    Ok(Opened { view, moved, is_new })
}

/// A bucket or repository for views, and the names that identify its local state.
struct At<'a> {
    remote: Arc<Remote>,
    endpoint: &'a str,
    kind: &'a str,
    name: &'a str,
}

/// Returns true if nothing is below `prefix`. Fails if it is a file. `root` shows the whole bucket.
async fn is_missing(view: &dyn View, root: &dyn View, prefix: &PlainPath) -> Result<bool, Error> {
    match root.stat(prefix).await?.map(|entry| entry.kind) {
        Some(Kind::Directory { .. }) => Ok(false),
        None => Ok(true),
        // A file and a folder have this name. The folder is the source.
        Some(Kind::File { .. }) if !view.list(&PlainPath::root()).await?.entries.is_empty() => Ok(false),
        Some(Kind::File { .. }) => Err(Error::SourceIsFile),
    }
}

/// Returns the reader of content from `cas`, through the cache if there is one.
async fn contents(
    cas: Arc<dyn Cas>,
    options: &OpenOptions,
    known: Option<Known>,
    blobs: Option<Arc<dyn BlobSource>>,
) -> Contents {
    let CacheLookups { chunks, plans, .. } = options.lookups.clone();
    let (mut downloads, mut files) = (download::Options { known, plan_lookups: plans, ..Default::default() }, None);
    match DiskCache::open(options).await {
        None => {}
        Some(DiskCache::Chunks(cache)) => downloads.chunks = Some(Arc::new(Counted { cache, lookups: chunks })),
        Some(DiskCache::Files(cache)) => files = Some(cache),
    }
    let blobs = blobs.map(|source| Arc::new(Blobs::new(source, downloads.chunks.clone())));
    Contents::new(Downloader::new(cas, downloads), files, blobs)
}

/// Opens the chunk lists that ranged reads of plain files are checked against. Encrypted files authenticate
/// themselves.
async fn known_chunks(options: &OpenOptions) -> Option<Known> {
    let dir = options.cache_dir.as_ref().map(|dir| dir.join(KNOWN));
    let open = move || Known::open(known::Options { dir, ..Default::default() });
    let opened = tokio::task::spawn_blocking(open).await.ok()?;
    opened.inspect_err(|error| tracing::warn!(%error, "cannot open the chunk lists of plain files")).ok()
}

/// Opens the folder of a bucket's shards. Each bucket has its own, because content of one bucket may be
/// missing in another.
async fn local_shards(endpoint: &str, bucket: &str, options: &OpenOptions) -> Option<LocalShards> {
    let bucket = identity(&["hfcrypt shards", endpoint, "bucket", bucket]);
    let name: String = bucket[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let dir = options.cache_dir.as_ref()?.join(SHARDS).join(name);
    let open = move || LocalShards::open(dir, LocalLimits::default());
    let opened = tokio::task::spawn_blocking(open).await.ok()?;
    opened
        .inspect_err(|error| tracing::warn!(%error, "cannot store the shards of own uploads: dedup does not use them"))
        .ok()
}

/// View of the source, and view of the whole bucket.
type Views = (Arc<dyn View>, Arc<dyn View>);

fn open_plain(place: &At<'_>, prefix: &PlainPath, options: &OpenOptions) -> Result<Views, Error> {
    let At { endpoint, kind, name, .. } = *place;
    let tree = identity(&["hfcrypt tree", endpoint, kind, name, "plain"]);
    let memory = Arc::new(Memory::open(options.cache_dir.as_deref(), tree)?);
    let view = |prefix: PlainPath| -> Arc<dyn View> {
        let identity = identity(&["hfcrypt source", endpoint, kind, name, "plain", prefix.as_str()]);
        let tree = PlainTree::new(place.remote.clone(), prefix, options.exact_names);
        Arc::new(Plain::new(tree, memory.clone(), options.read_only, identity))
    };
    Ok((view(prefix.clone()), view(PlainPath::root())))
}

async fn open_keyed(
    place: &At<'_>,
    prefix: &PlainPath,
    keys: Arc<Keys>,
    options: &OpenOptions,
) -> Result<Views, Error> {
    let At { endpoint, kind, name, .. } = *place;
    let (remote, key_id) = (place.remote.clone(), keys.id().to_string());
    let identity_of = |last: &[&str]| {
        let parts = [&[last[0], endpoint, kind, name, &key_id], &last[1..]].concat();
        identity(&parts)
    };
    let folder = options.cache_dir.as_deref();
    let memory = Arc::new(Memory::open(folder, identity_of(&["hfcrypt tree"]))?);
    let headers = Arc::new(Headers::open(folder, keys.clone(), remote.clone())?);
    let seen = memory.seen().await?;
    let encrypted = |prefix: &PlainPath| {
        let stored_prefix = keys.names(Format::V2).seal_path(prefix.as_str())?.key;
        let setup = Setup {
            remote: remote.clone(),
            keys: keys.clone(),
            prefix: prefix.clone(),
            format: options.format.unwrap_or(Format::V2),
            padding: options.padding,
            headers: headers.clone(),
            memory: memory.clone(),
            read_only: options.read_only,
            exact_names: options.exact_names,
            identity: identity_of(&["hfcrypt source", &stored_prefix]),
        };
        // In a tree that is seen for the first time, entries of format 1 are no surprise.
        Ok::<_, Error>(Encrypted::new(setup, seen.is_none_or(|seen| seen.legacy)))
    };
    let own = encrypted(prefix)?;
    match own.check_key().await? {
        KeyVerdict::RightKey => {
            if seen.is_none() {
                memory.note_seen(Seen { legacy: own.has_legacy().await? }).await?;
            }
        }
        KeyVerdict::NewTree if seen.is_some() => {
            tracing::warn!(%name, %key_id, "the encrypted tree is empty now, but had entries before");
        }
        KeyVerdict::NewTree => {}
        KeyVerdict::WrongKey { .. } if options.new_key => {}
        KeyVerdict::WrongKey { entries } => return Err(Error::WrongKey { entries }),
    }
    let view = |own: Arc<Encrypted>, prefix: PlainPath| -> Arc<dyn View> {
        if options.encrypted_only {
            return own;
        }
        let tree = PlainTree::new(remote.clone(), prefix, options.exact_names);
        let tree = PlainTree { beside_encrypted: true, ..tree };
        Merged::new(own, Beside::new(tree))
    };
    let root = encrypted(&PlainPath::root())?;
    Ok((view(own, prefix.clone()), view(root, PlainPath::root())))
}

/// Returns SHA-256 over the parts, each with its length, so that two different lists of parts never give
/// equal bytes.
fn identity(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
