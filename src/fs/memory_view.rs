//! A remote in memory, for tests. It keeps the promises of [`View`], and fails when a test requests it.

use crate::fs::lock::{Mutex, MutexGuard, lock};
use crate::store::buckets::BucketId;
use crate::store::{
    Change, Content, ContentId, CryptoError, Draft, DraftState, Entry, Error, Expect, Format, Hash, Hidden, HubError,
    Kind, Len, Listing, MovedFile, Object, Op, Outcome, PlainPath, PutProgress, PutSession, Sealer, Side, SlotIo,
    Stored, Version, View, marked_name,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{RwLock, RwLockWriteGuard};

/// Size of a slot, bytes.
const SLOT: usize = 65536;

#[derive(Clone)]
struct File {
    id: ContentId,
    mtime: OffsetDateTime,
}

/// Suffix of the name of a file beside a folder of the same name.
const ALIAS: &str = " (conflict with folder)";

/// The outcome of the next commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum InjectedFault {
    /// It is carried out, but the response is lost.
    LostAnswer,
    /// 403.
    Forbidden,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, File>,
    contents: HashMap<ContentId, Bytes>,
    offline: bool,
    /// Time that an upload takes for each record.
    pace: Duration,
    trouble: Option<InjectedFault>,
    read_only: Vec<String>,
    damaged: Vec<String>,
    /// True if everything is stored in format 1.
    format_1: bool,
    unread: bool,
    commits: Vec<Vec<Op>>,
    /// Prefixes of paths whose operations are refused: permanently (true) or with a transient error (false).
    refused: Vec<(String, bool)>,
    /// The content whose upload session is refused.
    poison: Option<ContentId>,
    unreadable: BTreeMap<String, u64>,
    listed: u64,
    /// True if the remote reports revisions, and how often it was asked.
    reports: bool,
    asked: u64,
    looked_up: Vec<(Vec<PlainPath>, Vec<PlainPath>)>,
}

/// A part of paths whose check for twins fails.
pub(crate) const BAD_CHECK: &str = "no-look";

/// Reads of contents.
#[derive(Default)]
struct Reads {
    /// Held by a test to keep them waiting.
    gate: Arc<RwLock<()>>,
    begun: AtomicU64,
    in_progress: AtomicU64,
}

/// A read in progress.
struct Reading<'a>(&'a Reads);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.in_progress.fetch_sub(1, Relaxed);
    }
}

/// The remote in memory. See the module.
pub(crate) struct MemoryView {
    state: Arc<Mutex<State>>,
    /// Held by a test to keep commits waiting.
    commits: RwLock<()>,
    reads: Arc<Reads>,
    /// Held by a test to keep responses of listings waiting.
    listings: RwLock<()>,
    sealer: Arc<Binder>,
    key: bool,
    /// Number of upload sessions, and of commits.
    requests: (AtomicU64, AtomicU64),
}

impl MemoryView {
    /// Returns an empty remote. With `key`, it reports that it has a key.
    pub(crate) fn new(key: bool) -> Arc<Self> {
        let (commits, reads, listings) = (RwLock::default(), Arc::default(), RwLock::default());
        let (state, sealer, requests) = (Arc::default(), Arc::default(), Default::default());
        Arc::new(Self { state, commits, reads, listings, sealer, key, requests })
    }

    /// Returns the numbers of upload sessions and commits.
    pub(crate) fn requests(&self) -> (u64, u64) {
        (self.requests.0.load(Relaxed), self.requests.1.load(Relaxed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Writes a file as another client.
    pub(crate) fn put_foreign(&self, path: &str, content: &[u8]) {
        let id = self.state().store(content);
        self.state().files.insert(path.to_owned(), File { id, mtime: OffsetDateTime::UNIX_EPOCH });
    }

    /// Adds a file that another client wrote and that has a Git blob id only. The id is made up.
    pub(crate) fn put_blob(&self, path: &str, content: &[u8]) {
        let id = ContentId::Blob(*blake3::hash(content).as_bytes().first_chunk().expect("a hash is longer"));
        let mut state = self.state();
        state.contents.insert(id, Bytes::copy_from_slice(content));
        state.files.insert(path.to_owned(), File { id, mtime: OffsetDateTime::UNIX_EPOCH });
    }

    /// Removes a file as another client.
    pub(crate) fn delete_foreign(&self, path: &str) {
        self.state().files.remove(path);
    }

    /// Returns all files and their content.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        state.files.iter().map(|(path, file)| (path.clone(), state.contents[&file.id].to_vec())).collect()
    }

    /// Returns the time with which a file was committed.
    pub(crate) fn mtime(&self, path: &str) -> OffsetDateTime {
        self.state().files[path].mtime
    }

    /// Returns true if this content was ever uploaded.
    pub(crate) fn has_content(&self, content: &[u8]) -> bool {
        self.state().contents.contains_key(&content_id(content))
    }

    /// Changes a file's time and nothing else.
    pub(crate) fn set_mtime(&self, path: &str, mtime: OffsetDateTime) {
        self.state().files.get_mut(path).expect("the file is there").mtime = mtime;
    }

    pub(crate) fn set_offline(&self, offline: bool) {
        self.state().offline = offline;
    }

    /// Sets the time that uploads take for each record.
    pub(crate) fn set_pace(&self, pace: Duration) {
        self.state().pace = pace;
    }

    pub(crate) fn set_fault(&self, trouble: Option<InjectedFault>) {
        self.state().trouble = trouble;
    }

    /// Refuses changes of paths that begin with `prefix`, permanently.
    pub(crate) fn refuse(&self, prefix: &str) {
        self.state().refused.push((prefix.to_owned(), true));
    }

    /// Makes changes of paths that begin with `prefix` fail with a transient error.
    pub(crate) fn refuse_for_now(&self, prefix: &str) {
        self.state().refused.push((prefix.to_owned(), false));
    }

    /// Accepts changes of paths that begin with `prefix` again.
    pub(crate) fn allow(&self, prefix: &str) {
        self.state().refused.retain(|(refused, _)| refused != prefix);
    }

    /// Refuses uploads that hold this content.
    pub(crate) fn poison(&self, content: &[u8]) {
        self.state().poison = Some(content_id(content));
    }

    /// Accepts all uploads again.
    pub(crate) fn unpoison(&self) {
        self.state().poison = None;
    }

    /// Makes sealing for the journal fail, or succeed again.
    pub(crate) fn refuse_to_seal(&self, refuse: bool) {
        self.sealer.fails.store(refuse, Relaxed);
    }

    /// Puts a path on the plaintext side.
    pub(crate) fn set_read_only(&self, path: &str) {
        self.state().read_only.push(path.to_owned());
    }

    /// Marks a file as one whose header doesn't authenticate.
    pub(crate) fn set_damaged(&self, path: &str) {
        self.state().damaged.push(path.to_owned());
    }

    /// Marks all files as files of format 1.
    pub(crate) fn set_format_1(&self) {
        self.state().format_1 = true;
    }

    /// Adds entries of another key to a directory.
    pub(crate) fn set_unreadable(&self, directory: &str, count: u64) {
        self.state().unreadable.insert(directory.to_owned(), count);
    }

    /// Makes listings omit sizes.
    pub(crate) fn hide_sizes(&self) {
        self.state().unread = true;
    }

    /// Returns the committed batches since the last call.
    pub(crate) fn take_commits(&self) -> Vec<Vec<Op>> {
        std::mem::take(&mut self.state().commits)
    }

    /// Returns the names that were looked up for twins since the last call, by request.
    pub(crate) fn take_looked_up(&self) -> Vec<(Vec<PlainPath>, Vec<PlainPath>)> {
        std::mem::take(&mut self.state().looked_up)
    }

    /// Makes the remote report a revision, which changes with its files.
    pub(crate) fn report_revisions(&self) {
        self.state().reports = true;
    }

    /// Returns how often the remote was asked for its revision since the last call.
    pub(crate) fn take_asked(&self) -> u64 {
        std::mem::take(&mut self.state().asked)
    }

    /// Returns the number of directories that were listed since the last call.
    pub(crate) fn take_listed(&self) -> u64 {
        std::mem::take(&mut self.state().listed)
    }

    /// Keeps commits waiting while the guard lives.
    pub(crate) async fn hold_commits(&self) -> RwLockWriteGuard<'_, ()> {
        self.commits.write().await
    }

    /// Keeps responses of listings waiting while the guard lives. The listings are read before.
    pub(crate) async fn hold_listings(&self) -> RwLockWriteGuard<'_, ()> {
        self.listings.write().await
    }

    /// Keeps reads waiting while the guard lives.
    pub(crate) async fn hold_reads(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.reads.gate.clone().write_owned().await
    }

    /// Returns the number of reads that began since the last call.
    pub(crate) fn take_reads(&self) -> u64 {
        self.reads.begun.swap(0, Relaxed)
    }

    /// Returns the number of reads that have neither returned nor were dropped.
    pub(crate) fn reads_in_progress(&self) -> u64 {
        self.reads.in_progress.load(Relaxed)
    }

    fn listing(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let mut state = self.state();
        state.listed += 1;
        state.online()?;
        let mut entries: BTreeMap<String, Kind> = BTreeMap::new();
        for (path, file) in &state.files {
            let at = PlainPath::new(path)?;
            if at == *directory || !at.is_within(directory) {
                continue;
            }
            let rest = path[directory.as_str().len()..].trim_start_matches('/');
            match rest.split_once('/') {
                None if state.files.keys().any(|key| key.starts_with(&format!("{path}/"))) => {
                    entries.insert(marked_name(rest, ALIAS), state.entry(path, file, false));
                }
                Some((name, _)) => {
                    let full = directory.join(name)?;
                    let read_only = state.read_only.iter().any(|at| at == full.as_str());
                    entries.insert(name.to_owned(), Kind::Directory { read_only });
                }
                None => {
                    entries.entry(rest.to_owned()).or_insert_with(|| state.entry(path, file, false));
                }
            }
        }
        let foreign = state.unreadable.get(directory.as_str()).copied().unwrap_or(0);
        let entries = entries.into_iter().map(|(name, kind)| Entry { name, kind }).collect();
        Ok(Listing { entries, hidden: Hidden { foreign, ..Hidden::default() } })
    }
}

impl State {
    fn store(&mut self, content: &[u8]) -> ContentId {
        let id = content_id(content);
        self.contents.insert(id, Bytes::copy_from_slice(content));
        id
    }

    fn online(&self) -> Result<(), Error> {
        if self.offline { Err(Error::Hub(HubError::Network("unplugged".into()))) } else { Ok(()) }
    }

    fn entry(&self, path: &str, file: &File, read: bool) -> Kind {
        let version = self.version(file);
        let len = version.stored_len;
        let len = match (self.damaged.iter().any(|at| at == path), self.unread && !read) {
            (true, _) => Len::Damaged,
            (false, true) => Len::Unread,
            (false, false) => Len::Known(len),
        };
        let read_only = self.read_only.iter().any(|at| at == path);
        Kind::File { version: Some(version), len, mtime: Some(file.mtime), read_only }
    }

    fn found(&self, path: &str) -> Option<ContentId> {
        self.files.get(path).map(|file| file.id)
    }

    fn is_met(&self, path: &str, expect: Expect) -> bool {
        match expect {
            Expect::Any => true,
            Expect::Absent => self.found(path).is_none(),
            Expect::Is(id) => self.found(path) == Some(id),
        }
    }

    /// Returns the key that a path stands for.
    fn key(&self, path: &str) -> String {
        let is_alias = path.contains(ALIAS) && !self.files.contains_key(path);
        if is_alias { path.replacen(ALIAS, "", 1) } else { path.to_owned() }
    }

    /// Returns the version of a file.
    fn version(&self, file: &File) -> Version {
        let side = if self.format_1 { Side::Encrypted(Format::V1) } else { Side::Plain };
        Version { id: file.id, stored_len: self.contents[&file.id].len() as u64, side }
    }

    fn apply(&mut self, op: &Op) -> Outcome {
        let path = self.key(op.path.as_str());
        if let Some((_, forever)) = self.refused.iter().find(|(prefix, _)| path.starts_with(prefix.as_str())) {
            return Outcome::Failed(Error::Hub(match forever {
                true => HubError::Forbidden("not this one".into()),
                false => HubError::Network("not now".into()),
            }));
        }
        if path.is_empty() {
            return Outcome::Failed(Error::InvalidName);
        }
        match &op.change {
            // A damaged file may be another program's good data.
            Change::Put { .. } if self.damaged.contains(&path) && self.files.contains_key(&path) => {
                Outcome::Failed(Error::Unauthentic(CryptoError::Unauthentic))
            }
            Change::Put { stored, mtime, .. } => {
                if let Err(error) = stored.version.id.xet() {
                    return Outcome::Failed(error);
                }
                let there = self.found(&path);
                // A repeated put finds its own result, and changes nothing.
                if there == Some(stored.version.id) {
                    return Outcome::Done(Some(stored.version));
                }
                if !self.is_met(&path, op.expect) {
                    return Outcome::Conflict { found: there };
                }
                self.files.insert(path, File { id: stored.version.id, mtime: *mtime });
                Outcome::Done(Some(stored.version))
            }
            // No view of the file system describes files, or changes times alone.
            Change::Describe { .. } | Change::SetModified { .. } => {
                Outcome::Failed(Error::Unstorable("metadata of objects"))
            }
            Change::Delete => {
                let there = self.found(&path);
                if there.is_some() && !self.is_met(&path, op.expect) {
                    return Outcome::Conflict { found: there };
                }
                self.damaged.retain(|at| *at != path);
                self.files.remove(&path);
                Outcome::Done(None)
            }
            Change::Rename { to, expect_to } => self.carry(op, &path, to, *expect_to, true),
            Change::Copy { to, expect_to, .. } => self.carry(op, &path, to, *expect_to, false),
            Change::RenameDirectory { to } => self.move_directory(&op.path, to),
        }
    }

    /// Renames or copies the file at `path`.
    fn carry(&mut self, op: &Op, path: &str, to: &PlainPath, expect_to: Expect, moves: bool) -> Outcome {
        if to.is_root() {
            return Outcome::Failed(Error::InvalidName);
        }
        let is_itself = *to == op.path;
        let means_file = is_itself || matches!(expect_to, Expect::Is(_));
        let to = if means_file { self.key(to.as_str()) } else { to.as_str().to_owned() };
        let Some(file) = self.files.get(path).cloned() else {
            return match (op.expect, self.files.get(&to)) {
                // An earlier attempt has done it.
                (Expect::Is(id), Some(there)) if moves && there.id == id => Outcome::Done(Some(self.version(there))),
                (Expect::Is(_), _) => Outcome::Conflict { found: None },
                _ => Outcome::Failed(Error::NotFound),
            };
        };
        if !self.is_met(path, op.expect) {
            return Outcome::Conflict { found: self.found(path) };
        }
        let version = self.version(&file);
        if is_itself {
            return Outcome::Done(Some(version));
        }
        if self.found(&to) != Some(file.id) {
            if !self.is_met(&to, expect_to) {
                return Outcome::Conflict { found: self.found(&to) };
            }
            self.files.insert(to, file);
        }
        if moves {
            self.files.remove(path);
        }
        Outcome::Done(Some(version))
    }

    fn move_directory(&mut self, from: &PlainPath, to: &PlainPath) -> Outcome {
        if from == to {
            return Outcome::Moved(Vec::new());
        }
        if to.is_within(from) {
            return Outcome::Failed(Error::InvalidName);
        }
        let unreadable = |(directory, count): (&String, &u64)| {
            PlainPath::new(directory).is_ok_and(|directory| directory.is_within(from)).then_some(*count)
        };
        let unreadable: u64 = self.unreadable.iter().filter_map(unreadable).sum();
        if unreadable > 0 {
            return Outcome::Failed(Error::NotEmpty(unreadable));
        }
        let below = |directory: &PlainPath| -> Vec<String> {
            let is_below =
                |path: &&String| PlainPath::new(path).is_ok_and(|path| path.is_within(directory) && path != *directory);
            self.files.keys().filter(is_below).cloned().collect()
        };
        let (found, occupied) = (below(from), below(to));
        if !found.is_empty() && !occupied.is_empty() {
            return Outcome::Failed(Error::NotEmpty(occupied.len() as u64));
        }
        let mut moved = Vec::new();
        // The files at the target were moved by an earlier attempt.
        for path in found.into_iter().chain(occupied) {
            let file = self.files.remove(&path).expect("just listed");
            let path = PlainPath::new(&path).expect("just checked");
            let path = path.rebase(from, to).unwrap_or(path);
            let (version, mtime) = (self.version(&file), Some(file.mtime));
            self.files.insert(path.as_str().to_owned(), file);
            moved.push(MovedFile { path, version, mtime });
        }
        Outcome::Moved(moved)
    }
}

struct MemoryObject {
    content: Bytes,
    state: Arc<Mutex<State>>,
    reads: Arc<Reads>,
}

#[async_trait]
impl Object for MemoryObject {
    fn len(&self) -> u64 {
        self.content.len() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        self.reads.begun.fetch_add(1, Relaxed);
        self.reads.in_progress.fetch_add(1, Relaxed);
        let _reading = Reading(&self.reads);
        let _turn = self.reads.gate.read().await;
        lock(&self.state).online()?;
        let start = (offset as usize).min(self.content.len());
        Ok(self.content.slice(start..self.content.len().min(start.saturating_add(len))))
    }
}

struct Session(Arc<Mutex<State>>, Mutex<Vec<ContentId>>, Arc<AtomicU64>);

impl Session {
    async fn add_stream(
        &self,
        mut reader: Box<dyn AsyncRead + Send + Unpin>,
        len: Option<u64>,
    ) -> Result<Stored, Error> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await?;
        if len.is_some_and(|len| len != bytes.len() as u64) {
            return Err(Error::LengthMismatch);
        }
        self.2.fetch_add(bytes.len() as u64, Relaxed);
        Ok(self.store(&bytes))
    }

    fn store(&self, bytes: &[u8]) -> Stored {
        let (id, plain_len) = (lock(&self.0).store(bytes), bytes.len() as u64);
        lock(&self.1).push(id);
        Stored { version: Version { id, stored_len: plain_len, side: Side::Plain }, plain_len }
    }
}

#[async_trait]
impl PutSession for Session {
    fn progress(&self) -> Box<dyn Fn() -> PutProgress + Send + Sync> {
        let read = self.2.clone();
        Box::new(move || PutProgress { read: read.load(Relaxed), sent: 0 })
    }

    async fn add(&self, content: Content) -> Result<Stored, Error> {
        lock(&self.0).online()?;
        let (frozen, slots) = match content {
            Content::Frozen { frozen, slots } => (frozen, slots),
            Content::Stream { reader, len } => return self.add_stream(reader, len).await,
        };
        let mut bytes = Vec::new();
        for slot in &frozen.records {
            let pace = lock(&self.0).pace;
            if !pace.is_zero() {
                tokio::time::sleep(pace).await;
            }
            self.2.fetch_add(SLOT as u64, Relaxed);
            let mut buffer = vec![0; SLOT];
            slots.read(*slot, &mut buffer)?;
            bytes.extend_from_slice(&buffer);
        }
        assert!(bytes.len() as u64 >= frozen.len, "all records are there");
        bytes.truncate(frozen.len as usize);
        Ok(self.store(&bytes))
    }

    async fn register(&self) -> Result<(), Error> {
        let added = lock(&self.1).clone();
        let state = lock(&self.0);
        state.online()?;
        match state.poison.filter(|poison| added.contains(poison)) {
            Some(_) => Err(Error::Hub(HubError::Status { status: 413, message: "too large".into() })),
            None => Ok(()),
        }
    }

    async fn finish(self: Box<Self>) -> Result<(), Error> {
        self.register().await
    }
}

/// A sealer that binds to the position as the real one does, and encrypts nothing.
#[derive(Default)]
struct Binder {
    /// True if sealing fails.
    fails: AtomicBool,
}

impl Sealer for Binder {
    fn seal(&self, journal: &[u8; 32], sequence: u64, payload: &[u8]) -> Result<Vec<u8>, Error> {
        if self.fails.load(Relaxed) {
            return Err(Error::Unauthentic(CryptoError::Unauthentic));
        }
        Ok([&journal[..], &sequence.to_le_bytes(), payload].concat())
    }

    fn open(&self, journal: &[u8; 32], sequence: u64, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let expected = [&journal[..], &sequence.to_le_bytes()].concat();
        let payload = sealed.strip_prefix(&expected[..]);
        payload.map(<[u8]>::to_vec).ok_or(Error::Unauthentic(CryptoError::Unauthentic))
    }
}

/// Returns the sealer of the view, for tests of the journal alone.
pub(crate) fn sealer() -> Arc<dyn Sealer> {
    Arc::new(Binder::default())
}

#[async_trait]
impl View for MemoryView {
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let listing = self.listing(directory);
        let _turn = self.listings.read().await;
        listing
    }

    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error> {
        let state = self.state();
        state.online()?;
        let name = path.split().map_or("", |(_, name)| name).to_owned();
        let key = state.key(path.as_str());
        let below = format!("{}/", path.as_str());
        if key == path.as_str() && (path.is_root() || state.files.keys().any(|key| key.starts_with(&below))) {
            let read_only = state.read_only.iter().any(|at| at == path.as_str());
            return Ok(Some(Entry { name, kind: Kind::Directory { read_only } }));
        }
        Ok(state.files.get(&key).map(|file| Entry { name, kind: state.entry(&key, file, true) }))
    }

    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        let state = self.state();
        state.online()?;
        let kind = |path: &PlainPath| state.files.get(path.as_str()).map(|file| state.entry(path.as_str(), file, true));
        Ok(paths.iter().map(kind).collect())
    }

    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        let state = self.state();
        let len = |version: &Version| state.online().map(|()| Len::Known(version.stored_len));
        versions.iter().map(len).collect()
    }

    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.state().online()?;
        version.id.xet()?;
        let content = self.state().contents.get(&version.id).cloned().ok_or(Error::NotFound)?;
        Ok(Arc::new(MemoryObject { content, state: self.state.clone(), reads: self.reads.clone() }))
    }

    async fn adopt(&self, _version: &Version, _from: &BucketId) -> Result<(), Error> {
        self.state().online()
    }

    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        self.state().online()?;
        self.requests.0.fetch_add(1, Relaxed);
        Ok(Box::new(Session(self.state.clone(), Mutex::default(), Arc::default())))
    }

    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        let _turn = self.commits.read().await;
        self.requests.1.fetch_add(1, Relaxed);
        let mut state = self.state();
        if state.trouble == Some(InjectedFault::Forbidden) {
            return operations.iter().map(|_| Outcome::Failed(Error::Hub(HubError::Forbidden("no".into())))).collect();
        }
        if state.online().is_err() {
            let failed = |_| Outcome::Failed(Error::Hub(HubError::Network("unplugged".into())));
            return operations.iter().map(failed).collect();
        }
        state.commits.push(operations.to_vec());
        let outcomes: Vec<_> = operations.iter().map(|op| state.apply(op)).collect();
        if state.trouble.take() == Some(InjectedFault::LostAnswer) {
            let lost = |_| Outcome::Failed(Error::Hub(HubError::Network("cut".into())));
            return operations.iter().map(lost).collect();
        }
        outcomes
    }

    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        let mut state = self.state();
        state.online()?;
        state.looked_up.push((files.to_vec(), folders.to_vec()));
        if files.iter().chain(folders).any(|path| path.as_str().contains(BAD_CHECK)) {
            return Err(Error::Hub(HubError::Network("no look".into())));
        }
        let below = |path: &PlainPath| format!("{}/", path.as_str());
        let is_folder = |path: &&PlainPath| state.files.keys().any(|key| key.starts_with(&below(path)));
        let is_file = |path: &&PlainPath| state.files.contains_key(path.as_str());
        Ok(files.iter().filter(is_folder).chain(folders.iter().filter(is_file)).cloned().collect())
    }

    fn show_beside(&self, _: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        let alias = marked_name(name, ALIAS);
        (!taken(&alias)).then_some(alias)
    }

    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        parent.join(name)?;
        if name.len() > 255 { Err(Error::NameTooLong) } else { Ok(()) }
    }

    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        let (shared, reads) = (self.state.clone(), self.reads.clone());
        let open = move |version: &Version| {
            let state = lock(&shared);
            state.online()?;
            version.id.xet()?;
            let content = state.contents.get(&version.id).cloned().ok_or(Error::NotFound)?;
            Ok(Arc::new(MemoryObject { content, state: shared.clone(), reads: reads.clone() }) as Arc<dyn Object>)
        };
        Ok(Draft::over(Arc::new(open), slots, state))
    }

    fn slot_len(&self) -> usize {
        SLOT
    }

    fn sealer(&self) -> Arc<dyn Sealer> {
        self.sealer.clone()
    }

    async fn revision(&self) -> Result<Option<String>, Error> {
        let mut state = self.state();
        state.online()?;
        state.asked += 1;
        let now = format!("{:?}", state.files.iter().map(|(path, file)| (path, file.id)).collect::<Vec<_>>());
        Ok(state.reports.then(|| blake3::hash(now.as_bytes()).to_string()))
    }

    fn read_only(&self) -> bool {
        false
    }

    fn identity(&self) -> [u8; 32] {
        [7; 32]
    }

    fn key_id(&self) -> Option<String> {
        self.key.then(|| "0123456789abcdef".to_owned())
    }

    fn log_name(&self, _: &PlainPath) -> String {
        "stored".into()
    }

    fn hidden(&self) -> Hidden {
        Hidden::default()
    }
}

/// Returns a content id that stands for the Xet hash of some content.
pub(crate) fn content_id(content: &[u8]) -> ContentId {
    ContentId::Xet(Hash(*blake3::hash(content).as_bytes()))
}

#[tokio::test]
async fn memory_view_keeps_contract() {
    crate::store::conformance::all(&*MemoryView::new(false)).await;
}
