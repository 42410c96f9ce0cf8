//! Shared parts of this layer's tests: an in-memory Hub with faults on request, a CAS that accepts
//! everything, keys, names.

#[cfg(feature = "local-hub")]
pub(crate) mod power;

use super::commit::{Held, Place};
use super::contents::Contents;
use super::encrypted::{Encrypted, Setup};
use super::headers::Headers;
use super::memory::Memory;
use super::names::Names;
use super::plain::{Plain, PlainTree};
use super::remote::Remote;
use super::{Change, Expect, Op, Outcome, PlainPath, Side, Stored, Version, View};
use crate::crypto::geometry::{Padding, PlainLen};
use crate::crypto::{FileId, Format, Header, Keys, MasterKey};
use crate::hub::{
    BatchOp, BatchOutcome, BucketId, BucketInfo, Cursor, Error, FileEntry, Hub, Identity, TreeEntry, TreePage,
};
use crate::xet::cas::DataStream;
use crate::xet::reconstruction::Reconstruction;
use crate::xet::{self, Cas, CasToken, Downloader, Hash, Scope};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

/// Returns keys of the vectors' master key: bytes 0 to 31.
pub(super) fn counting_keys() -> Arc<Keys> {
    Arc::new(Keys::derive(&MasterKey::from_bytes(std::array::from_fn(|i| i as u8))))
}

/// Returns keys of another master key.
pub(super) fn other_keys() -> Arc<Keys> {
    Arc::new(Keys::derive(&MasterKey::from_bytes([0xa5; 32])))
}

/// Returns a bucket id.
pub(super) fn bucket() -> BucketId {
    BucketId::new("local", "bucket").unwrap()
}

/// Reads a vector file.
pub(super) fn vectors(file: &str) -> serde_json::Value {
    let path = format!("{}/tests/vectors/crypto/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns a hash for some content.
pub(super) fn hash_of(content: &str) -> Hash {
    xet::hash::chunk_hash(content.as_bytes())
}

/// Fault of the Hub in the next batch.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// Refuses the lines of these keys.
    Refuse(BTreeSet<String>),
    /// Applies so many lines, then loses the answer.
    Lose(usize),
    /// Refuses the request.
    Deny,
    /// Answers with status 503.
    PutOff,
}

/// A Hub in memory with one bucket. It accepts any hash.
#[derive(Default)]
pub(super) struct MemoryHub {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listings: u64,
    repeats: Vec<Duration>,
    files: BTreeMap<String, FileEntry>,
    batches: Vec<Vec<BatchOp>>,
    /// Faults of the next batches, in order. The default is no fault.
    faults: std::collections::VecDeque<Option<Fault>>,
    always: Option<Fault>,
    /// Function that runs before each batch.
    meddle: Option<Meddle>,
    /// Contents after every applied line.
    history: Vec<BTreeMap<String, Hash>>,
    /// Number of reads that are still answered.
    reads_left: Option<usize>,
    /// Function that runs at each read of keys, and the time that the read takes.
    on_read: Option<(Duration, Meddle)>,
    /// Batches with this key get no answer until a permit exists.
    hung: Option<(String, Arc<Semaphore>)>,
}

type Meddle = Box<dyn FnMut(&mut BTreeMap<String, FileEntry>) + Send>;

impl MemoryHub {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn put(&self, key: &str, hash: Hash, size: u64) {
        self.state().files.insert(key.to_owned(), file(key, hash, size));
    }

    pub(super) fn remove(&self, key: &str) {
        self.state().files.remove(key);
    }

    pub(super) fn fault(&self, fault: Option<Fault>) {
        self.state().faults.push_back(fault);
    }

    pub(super) fn always(&self, fault: Option<Fault>) {
        self.state().always = fault;
    }

    pub(super) fn no_more_faults(&self) {
        let mut state = self.state();
        state.faults.clear();
        (state.always, state.reads_left) = (None, None);
    }

    /// Returns the number of listings since it was called last.
    pub(super) fn take_listings(&self) -> u64 {
        std::mem::take(&mut self.state().listings)
    }

    pub(super) fn reads_fail_after(&self, reads: usize) {
        self.state().reads_left = Some(reads);
    }

    pub(super) fn on_read(&self, takes: Duration, with: impl FnMut(&mut BTreeMap<String, FileEntry>) + Send + 'static) {
        self.state().on_read = Some((takes, Box::new(with)));
    }

    /// Makes batches that have `key` wait for a permit.
    pub(super) fn hang(&self, key: &str) -> Arc<Semaphore> {
        let answers = Arc::new(Semaphore::new(0));
        self.state().hung = Some((key.to_owned(), answers.clone()));
        answers
    }

    pub(super) fn meddle(&self, with: impl FnMut(&mut BTreeMap<String, FileEntry>) + Send + 'static) {
        self.state().meddle = Some(Box::new(with));
    }

    /// Returns the time of the object at a key.
    pub(super) fn mtime(&self, key: &str) -> Option<OffsetDateTime> {
        self.state().files[key].mtime
    }

    /// Returns the time in which each batch might have been repeated.
    pub(super) fn take_repeats(&self) -> Vec<Duration> {
        std::mem::take(&mut self.state().repeats)
    }

    pub(super) fn take_batches(&self) -> Vec<Vec<BatchOp>> {
        std::mem::take(&mut self.state().batches)
    }

    pub(super) fn take_history(&self) -> Vec<BTreeMap<String, Hash>> {
        std::mem::take(&mut self.state().history)
    }

    pub(super) fn contents(&self) -> BTreeMap<String, Hash> {
        contents(&self.state().files)
    }
}

fn contents(files: &BTreeMap<String, FileEntry>) -> BTreeMap<String, Hash> {
    files.iter().filter_map(|(key, file)| Some((key.clone(), file.hash?))).collect()
}

fn file(key: &str, hash: Hash, size: u64) -> FileEntry {
    FileEntry { key: key.to_owned(), size, hash: Some(hash), blob: None, mtime: None, uploaded_at: None }
}

impl State {
    fn read(&mut self) -> Result<(), Error> {
        match &mut self.reads_left {
            Some(0) => Err(Error::Network("no network".into())),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn apply(&mut self, operation: &BatchOp) {
        match operation {
            BatchOp::Add { key, hash, mtime, .. } | BatchOp::Copy { key, hash, mtime, .. } => {
                // The real Hub takes the size from the CAS. Here it is that of any object with this content.
                let known = self.files.values().find(|file| file.hash == Some(*hash)).map(|file| file.size);
                let size = known.unwrap_or(if key.contains("/-N2") { 293 } else { 65_638 });
                self.files.insert(key.clone(), FileEntry { mtime: Some(*mtime), ..file(key, *hash, size) });
            }
            BatchOp::Delete { key } => drop(self.files.remove(key)),
        }
        self.history.push(contents(&self.files));
    }
}

#[async_trait]
impl Hub for MemoryHub {
    async fn whoami(&self) -> Result<Identity, Error> {
        Ok(Identity { name: "local".into(), orgs: vec![] })
    }

    async fn create_bucket(&self, _: &BucketId, _: bool, _: bool) -> Result<(), Error> {
        Ok(())
    }

    async fn bucket_info(&self, bucket: &BucketId) -> Result<BucketInfo, Error> {
        let id = bucket.clone();
        Ok(BucketInfo { id, private: true, size: 0, total_files: 0, created_at: None, updated_at: None })
    }

    async fn list_buckets(&self, _: &str) -> Result<Vec<BucketInfo>, Error> {
        Ok(vec![])
    }

    async fn delete_bucket(&self, _: &BucketId) -> Result<(), Error> {
        Ok(())
    }

    async fn tree_page(
        &self,
        _: &BucketId,
        prefix: &str,
        recursive: bool,
        _: Option<&Cursor>,
    ) -> Result<TreePage, Error> {
        let mut state = self.state();
        state.read()?;
        state.listings += 1;
        let mut entries: BTreeMap<(String, bool), TreeEntry> = BTreeMap::new();
        for (key, file) in &state.files {
            let Some(rest) = super::remote::relative(prefix, key) else { continue };
            match rest.split_once('/').filter(|_| !recursive) {
                None => drop(entries.insert((key.clone(), true), TreeEntry::File(file.clone()))),
                Some((name, _)) => {
                    let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
                    entries.insert((key.clone(), false), TreeEntry::Directory { key, uploaded_at: None });
                }
            }
        }
        Ok(TreePage { entries: entries.into_values().collect(), next: None })
    }

    async fn paths_info(&self, _: &BucketId, keys: &[String]) -> Result<Vec<FileEntry>, Error> {
        let takes = self.state().on_read.as_ref().map(|(takes, _)| *takes);
        if let Some(takes) = takes {
            tokio::time::sleep(takes).await;
        }
        let mut state = self.state();
        state.read()?;
        if let Some((takes, mut meddle)) = state.on_read.take() {
            meddle(&mut state.files);
            state.on_read = Some((takes, meddle));
        }
        Ok(keys.iter().filter_map(|key| state.files.get(key).cloned()).collect())
    }

    async fn batch_within(
        &self,
        _: &BucketId,
        operations: &[BatchOp],
        repeat_within: Duration,
    ) -> Result<BatchOutcome, Error> {
        let hung = self.state().hung.clone().filter(|(key, _)| operations.iter().any(|op| op.key() == key));
        if let Some((_, answers)) = hung {
            answers.acquire().await.unwrap().forget();
        }
        let mut state = self.state();
        state.repeats.push(repeat_within);
        if let Some(mut meddle) = state.meddle.take() {
            meddle(&mut state.files);
            state.meddle = Some(meddle);
        }
        state.batches.push(operations.to_vec());
        let fault = state.faults.pop_front().unwrap_or_else(|| state.always.clone());
        match fault {
            Some(Fault::PutOff) => Err(Error::Status { status: 503, message: "later".into() }),
            Some(Fault::Deny) => Err(Error::Forbidden("no".into())),
            Some(Fault::Lose(lines)) => {
                operations.iter().take(lines).for_each(|operation| state.apply(operation));
                Err(Error::Network("connection lost".into()))
            }
            Some(Fault::Refuse(keys)) => {
                let (refused, taken): (Vec<_>, Vec<_>) = operations.iter().partition(|op| keys.contains(op.key()));
                taken.into_iter().for_each(|operation| state.apply(operation));
                Ok(BatchOutcome {
                    failed: refused.iter().map(|op| (op.key().to_owned(), "not today".into())).collect(),
                })
            }
            None => {
                operations.iter().for_each(|operation| state.apply(operation));
                Ok(BatchOutcome::default())
            }
        }
    }

    async fn cas_token(&self, _: &BucketId, _: Scope) -> Result<CasToken, Error> {
        Err(Error::Network("there is no CAS".into()))
    }
}

/// A CAS that accepts all uploads and returns no data.
pub(super) struct Sink;

#[async_trait]
impl Cas for Sink {
    async fn reconstruction(&self, file: &Hash, _: Option<Range<u64>>) -> Result<Reconstruction, xet::Error> {
        Err(xet::Error::NotFound(*file))
    }

    fn fetch<'a>(&'a self, _: &'a str, _: Range<u64>) -> DataStream<'a> {
        stream::iter([Err(xet::Error::Forbidden("nothing here".into()))]).boxed()
    }

    async fn put_xorb(&self, _: &Hash, _: xet::Body) -> Result<bool, xet::Error> {
        Ok(true)
    }

    async fn put_shard(&self, _: Bytes) -> Result<(), xet::Error> {
        Ok(())
    }

    async fn query_chunk(&self, _: &Hash) -> Result<Option<Bytes>, xet::Error> {
        Ok(None)
    }
}

/// Returns an object with this content.
pub(super) fn held_of(content: &str) -> Held {
    Held { hash: Some(hash_of(content)), size: 65_638, mtime: None }
}

/// A view with a key over a Hub in memory.
pub(super) struct Keyed {
    pub(super) hub: Arc<MemoryHub>,
    pub(super) view: Arc<Encrypted>,
    pub(super) memory: Arc<Memory>,
    remote: Arc<Remote>,
    headers: Arc<Headers>,
    keys: Arc<Keys>,
    names: Names,
    format: Format,
}

impl Keyed {
    pub(super) async fn new() -> Self {
        Self::of_format(Format::V2)
    }

    pub(super) fn of_format(format: Format) -> Self {
        let (hub, keys) = (Arc::new(MemoryHub::default()), counting_keys());
        let cas: Arc<dyn Cas> = Arc::new(Sink);
        let contents = Contents::new(Downloader::new(cas.clone(), xet::download::Options::default()), None, None);
        let remote = Arc::new(Remote {
            hub: hub.clone(),
            bucket: bucket(),
            cas,
            contents,
            known: None,
            shards: None,
            session_memory: 48 << 20,
            adopted: Mutex::default(),
            header_lookups: Arc::default(),
            _endpoint: None,
        });
        let memory = Arc::new(Memory::open(None, [0; 32]).unwrap());
        let headers = Arc::new(Headers::open(None, keys.clone(), remote.clone()).unwrap());
        let names = Names::new(keys.clone(), PlainPath::root());
        let setup = setup(&remote, &keys, &headers, &memory, format);
        Self { hub, view: Encrypted::new(setup, true), memory, remote, headers, keys, names, format }
    }

    /// Returns a view of the bucket without the key.
    pub(super) fn plain(&self) -> Plain {
        Plain::new(PlainTree::new(self.remote(), PlainPath::root(), false), self.memory.clone(), false, [0; 32])
    }

    pub(super) fn remote(&self) -> Arc<Remote> {
        self.remote.clone()
    }

    /// Returns another view of this bucket.
    pub(super) fn encrypted(&self) -> Arc<Encrypted> {
        self.encrypted_with(true)
    }

    pub(super) fn encrypted_with(&self, legacy_seen: bool) -> Arc<Encrypted> {
        Encrypted::new(setup(&self.remote, &self.keys, &self.headers, &self.memory, self.format), legacy_seen)
    }

    /// Adds a sidecar whose content can be read.
    pub(super) fn sidecar(&self, key: &str, bytes: Vec<u8>) {
        self.hub.put(key, hash_of(key), bytes.len() as u64);
        self.remember(hash_of(key), bytes.into());
    }

    pub(super) fn remember(&self, hash: Hash, bytes: Bytes) {
        self.headers.remember_only(hash, bytes);
    }

    /// Returns the header of a small file.
    pub(super) fn head(&self, format: Format) -> Vec<u8> {
        let header = Header { format, plain_len: PlainLen(1), records: 1, file_id: FileId([7; 24]) };
        self.keys.seal_header(&header).unwrap().to_vec()
    }

    /// Caches headers, so that every object opens as a small file of its key's format.
    pub(super) fn learn_all_headers(&self) {
        let all = vectors("format2_names.json");
        for entry in all["merged"]["view"].as_array().unwrap() {
            let format = if entry["format"] == 1 { Format::V1 } else { Format::V2 };
            if let Some(key) = entry["object_key"].as_str() {
                self.remember(hash_of(key), self.head(format).into());
            }
        }
    }

    pub(super) fn place(&self, at: &str) -> Place {
        self.names.place(&path(at)).unwrap()
    }

    pub(super) fn key(&self, at: &str, format: Format) -> String {
        self.names.sealed(format, &path(at)).unwrap().key
    }

    /// Adds an object without using the view. Its sidecars are not added.
    pub(super) fn object(&self, at: &str, format: Format, content: &str) {
        self.sized_object(at, format, content, 1);
    }

    pub(super) fn sized_object(&self, at: &str, format: Format, content: &str, records: u64) {
        let header = Header { format, plain_len: PlainLen(records * 65_536), records, file_id: FileId([7; 24]) };
        let head = Bytes::copy_from_slice(&self.keys.seal_header(&header).unwrap());
        self.headers.remember_only(hash_of(content), head);
        self.hub.put(&self.key(at, format), hash_of(content), 70 + 65_568 * records);
    }

    /// Returns the content that a reader sees at a path. Its sidecars must exist too.
    pub(super) fn shown(&self, at: &str) -> Option<Hash> {
        shown(&self.place(at), &self.hub.contents())
    }

    pub(super) async fn commit(&self, operation: Op) -> Outcome {
        self.learn(&operation);
        self.view.commit(&[operation]).await.pop().unwrap()
    }

    pub(super) async fn commit_all(&self, operations: &[Op]) {
        for outcome in self.view.commit(operations).await {
            assert!(matches!(outcome, Outcome::Done(_) | Outcome::Moved(_)), "{outcome:?}");
        }
    }

    /// Caches the header of new content, as if it had been uploaded.
    pub(super) fn learn(&self, operation: &Op) {
        if let Change::Put { stored, .. } = operation.change {
            let Side::Encrypted(format) = stored.version.side else { return };
            self.remember(stored.version.id.xet().unwrap(), self.head(format).into());
        }
    }

    pub(super) fn move_directory(&self, from: &str, to: &str) -> Op {
        Op { path: path(from), expect: Expect::Any, change: Change::RenameDirectory { to: path(to) } }
    }
}

fn setup(
    remote: &Arc<Remote>,
    keys: &Arc<Keys>,
    headers: &Arc<Headers>,
    memory: &Arc<Memory>,
    format: Format,
) -> Setup {
    Setup {
        remote: remote.clone(),
        keys: keys.clone(),
        prefix: PlainPath::root(),
        format,
        padding: Padding::None,
        headers: headers.clone(),
        memory: memory.clone(),
        read_only: false,
        exact_names: false,
        identity: [0; 32],
    }
}

/// Returns the content that a reader sees at a place.
pub(super) fn shown(place: &Place, contents: &BTreeMap<String, Hash>) -> Option<Hash> {
    let readable = place.sidecars.iter().all(|sidecar| contents.get(&sidecar.key) == Some(&sidecar.hash));
    let primary = contents.get(&place.primary).filter(|_| readable);
    primary.or_else(|| contents.get(place.legacy.as_ref()?)).copied()
}

/// Returns a path.
pub(super) fn path(text: &str) -> PlainPath {
    PlainPath::new(text).unwrap()
}

/// Returns a long name of the vectors: base-36 digits in steps of 7.
pub(super) fn long_name(len: usize, start: usize) -> String {
    (0..len).map(|i| char::from_digit(((start + 7 * i) % 36) as u32, 36).unwrap()).collect()
}

/// Returns an operation that puts new content in format 2.
pub(super) fn put(at: &str, content: &str, expect: Expect) -> Op {
    put_as(at, content, expect, Format::V2)
}

/// Returns an operation that puts new content.
pub(super) fn put_as(at: &str, content: &str, expect: Expect, format: Format) -> Op {
    let version = Version { id: hash_of(content).into(), stored_len: 65_638, side: Side::Encrypted(format) };
    let stored = Stored { version, plain_len: 1 };
    Op { path: path(at), expect, change: Change::Put { stored, mtime: OffsetDateTime::UNIX_EPOCH, metadata: None } }
}

/// Returns an operation that renames a file.
pub(super) fn rename(from: &str, to: &str, expect: Expect, expect_to: Expect) -> Op {
    Op { path: path(from), expect, change: Change::Rename { to: path(to), expect_to } }
}
