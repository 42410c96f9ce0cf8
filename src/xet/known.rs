//! What is known of files and xorbs: the hashes and lengths of their chunks, in order.
//!
//! The protocol sends no chunk hashes with a reconstruction, so a ranged read can be checked only against what was
//! learnt otherwise: own uploads, an earlier whole and verified read, answers to chunk queries.
//!
//! | list | of | learnt from | worth |
//! |---|---|---|---|
//! | [`ChunkList`] | a file | own uploads, whole reads | proof |
//! | [`ChunkList`] | a xorb | answers with plain chunk hashes | proof |
//! | [`ToldList`] | a xorb | answers with keyed chunk hashes (the Hub) | the word of the CAS, by another way |
//!
//! A list proves itself: the Merkle root over it is the hash of the file or the xorb (Xet spec, 4.1-4.3), so it is
//! believed when that was recomputed and not before, whoever brought it and whatever happened to the disk. But the root
//! over a single chunk is that chunk's hash, without its length: such a list is not kept on disk, and not believed from
//! there; a xorb's is no more than told.
//!
//! A list that was told proves nothing. It shows that the data isn't what its uploader registered:
//! damage in the store, in a cache before it, at the host of a data URL. It does not help against a
//! CAS that lies in both. So nothing is placed by its lengths and what a file's hash proves isn't
//! held against it; and it is forgotten where it stands against what came twice, or a wrong one
//! would make files unreadable ([`Known::forget_told`]). It is used until the answer expires. The Hub sends
//! hashes under a key only. So these lists are the only check of ranges of plain files that other clients
//! uploaded: uploads of a mount fill them, and its reads use them.
//!
//! Own uploads leave no lists of xorbs: those of their files have the same hashes, and it would be
//! twice as much on disk.
//!
//! In memory within a bound, least recently used out first; and, where there is a folder, as one small file per list,
//! within another. Lists of xorbs, of which others decide how many there are, take at most a quarter of either. Writing
//! is best effort. A file that is damaged is deleted and unknown from then on. Several processes may share a folder;
//! what one of them adds the others see when they open it again.
//!
//! A file of the folder is named `f-` or `x-` (file, xorb) and the hash, and holds:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `XETKNOW1` |
//! | 36 each | chunk hash, then its length as little-endian u32 |
//!
//! Or it is named `k-` and the hash of a xorb of which it was told:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `XETTOLD1` |
//! | 32 | key of the chunk hashes; zeros: they are plain |
//! | 8 | expiry, little-endian Unix seconds |
//! | 36 each | keyed chunk hash, then the chunk's length as little-endian u32 |
//! | 32 | BLAKE3 of all before, keyed with the xorb's hash: against damage, not against people |

mod list;
#[cfg(test)]
mod tests;

use super::offload::offload;
use super::{Error, Hash};
pub use list::{ChunkList, Excerpt, Kind, MAX_LIST, ToldList};
use list::{MAX_FILE_LIST, MAX_XORB_LIST};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Of the bounds, what lists of xorbs may take: one in so many bytes.
const XORB_SHARE: u64 = 4;
/// Bytes that a file takes on disk at least, and by which it grows.
const BLOCK: u64 = 4096;

/// Limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of memory.
    pub memory: usize,
    /// Where lists outlive the process, if anywhere.
    pub dir: Option<PathBuf>,
    /// Most bytes that they take in that folder, in whole blocks of 4 KiB.
    pub disk: u64,
}

impl Default for Options {
    /// 16 MiB of memory are the lists of about 28 GiB of files; 256 MiB of disk those of 480 GiB.
    fn default() -> Self {
        Self { memory: 16 * 1024 * 1024, dir: None, disk: 256 * 1024 * 1024 }
    }
}

/// What a list is of, and of which form it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Name {
    Proven(Kind, Hash),
    Told(Hash),
}

impl Name {
    /// From that of a file.
    fn parse(text: &str) -> Option<Self> {
        let hash = |hash: &str| hash.parse().ok();
        match text.split_at_checked(2)? {
            ("f-", rest) => Some(Self::Proven(Kind::File, hash(rest)?)),
            ("x-", rest) => Some(Self::Proven(Kind::Xorb, hash(rest)?)),
            ("k-", rest) => Some(Self::Told(hash(rest)?)),
            _ => None,
        }
    }

    fn is_of_xorb(&self) -> bool {
        !matches!(self, Self::Proven(Kind::File, _))
    }

    /// Longest list on disk, in bytes.
    fn most(&self) -> usize {
        if self.is_of_xorb() { MAX_XORB_LIST } else { MAX_FILE_LIST }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proven(Kind::File, hash) => write!(f, "f-{hash}"),
            Self::Proven(Kind::Xorb, hash) => write!(f, "x-{hash}"),
            Self::Told(hash) => write!(f, "k-{hash}"),
        }
    }
}

#[derive(Clone)]
enum List {
    Proven(Arc<ChunkList>),
    Told(Arc<ToldList>),
}

impl List {
    fn parse(name: &Name, bytes: &[u8]) -> Result<Self, Error> {
        Ok(match name {
            Name::Proven(kind, hash) => Self::Proven(Arc::new(ChunkList::parse(*kind, hash, bytes)?)),
            Name::Told(xorb) => Self::Told(Arc::new(ToldList::parse(xorb, bytes)?)),
        })
    }

    /// What the folder is to have of it, if anything.
    fn to_bytes(&self, name: &Name) -> Option<Vec<u8>> {
        match (self, name) {
            // It couldn't be believed when it is read again.
            (Self::Proven(list), _) => (list.len() != 1).then(|| list.to_bytes()),
            (Self::Told(list), Name::Told(xorb)) => Some(list.to_bytes(xorb)),
            (Self::Told(_), Name::Proven(..)) => None,
        }
    }

    fn is_expired(&self) -> bool {
        matches!(self, Self::Told(list) if list.is_expired(SystemTime::now()))
    }

    fn footprint(&self) -> u64 {
        let bytes = match self {
            Self::Proven(list) => list.footprint(),
            Self::Told(list) => list.footprint(),
        };
        bytes as u64
    }
}

/// All that is known. Cheap to clone.
#[derive(Clone)]
pub struct Known {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lists: HashMap<Name, (List, u64)>,
    memory: Held,
    /// Counts uses.
    clock: u64,
    /// What the folder holds: bytes on disk and when it was written, for all we know.
    files: BTreeMap<Name, (u64, SystemTime)>,
    disk: Held,
}

/// Bytes of lists.
#[derive(Default)]
struct Held {
    all: u64,
    of_xorbs: u64,
}

impl Held {
    fn add(&mut self, name: &Name, bytes: u64) {
        self.all = self.all.saturating_add(bytes);
        self.of_xorbs = self.of_xorbs.saturating_add(if name.is_of_xorb() { bytes } else { 0 });
    }

    fn remove(&mut self, name: &Name, bytes: u64) {
        self.all = self.all.saturating_sub(bytes);
        self.of_xorbs = self.of_xorbs.saturating_sub(if name.is_of_xorb() { bytes } else { 0 });
    }

    /// Which of `lists` has to go for the bound of `most` bytes to be kept, if one has.
    fn superfluous<'a, T: Ord>(&self, most: u64, lists: impl Iterator<Item = (&'a Name, T)>) -> Option<Name> {
        let too_many_of_xorbs = self.of_xorbs > most / XORB_SHARE;
        if !too_many_of_xorbs && self.all <= most {
            return None;
        }
        let may_go = lists.filter(|(name, _)| name.is_of_xorb() || !too_many_of_xorbs);
        may_go.min_by(|(_, a), (_, b)| a.cmp(b)).map(|(name, _)| *name)
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("dir", &self.shared.options.dir).finish_non_exhaustive()
    }
}

impl Known {
    /// In memory only.
    pub fn in_memory() -> Self {
        Self { shared: Arc::new(Shared { options: Options::default(), state: Mutex::default() }) }
    }

    /// Over a folder, which is made if it isn't there. Blocks.
    pub fn open(options: Options) -> Result<Self, Error> {
        let mut state = State::default();
        if let Some(dir) = &options.dir {
            fs::create_dir_all(dir)?;
            state.files = listed(dir)?;
            state.files.iter().for_each(|(name, (bytes, _))| state.disk.add(name, *bytes));
        }
        let known = Self { shared: Arc::new(Shared { options, state: Mutex::new(state) }) };
        known.shrink();
        Ok(known)
    }

    /// Learns the chunks of a file, in order. Fails, and learns nothing, if they aren't that
    /// file's. Nor are more than [`MAX_LIST`] remembered.
    pub fn note_file(&self, file: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        self.note(Kind::File, file, chunks)
    }

    /// Learns the chunks of a xorb, in order, from one who knows their lengths: where it is one
    /// chunk, its hash is all that proves it.
    pub fn note_xorb(&self, xorb: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        self.note(Kind::Xorb, xorb, chunks)
    }

    fn note(&self, kind: Kind, hash: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        let name = Name::Proven(kind, *hash);
        if self.state().lists.contains_key(&name) {
            return Ok(());
        }
        let list = List::Proven(Arc::new(ChunkList::proven(kind, hash, chunks)?));
        self.state().keep(name, &list, self.shared.options.memory as u64);
        self.write(name, list);
        Ok(())
    }

    /// Learns the chunks of a xorb from an answer to a chunk query: their hashes under `key`
    /// (zeros: plain), to be used until `expires` (Unix seconds). Fails, and learns nothing, if
    /// they aren't that xorb's, where that can be told. Blocks.
    pub fn note_answer(&self, xorb: &Hash, key: [u8; 32], expires: u64, chunks: &[(Hash, u32)]) -> Result<(), Error> {
        let proven = Name::Proven(Kind::Xorb, *xorb);
        if self.has(&proven) {
            return Ok(());
        }
        let chunks = chunks.iter().copied();
        let (name, list) = if key == [0; 32] && chunks.len() > 1 {
            (proven, List::Proven(Arc::new(ChunkList::proven(Kind::Xorb, xorb, chunks)?)))
        } else {
            let (name, list) = (Name::Told(*xorb), ToldList::new(key, expires, chunks)?);
            match self.held(name).or_else(|| self.load(name)) {
                Some(List::Told(kept)) if kept.expires() >= expires => return Ok(()),
                _ if list.is_expired(SystemTime::now()) => return Ok(()),
                _ => (name, List::Told(Arc::new(list))),
            }
        };
        self.state().keep(name, &list, self.shared.options.memory as u64);
        // Here and now: an answer may have hundreds, and each would take a thread.
        self.publish(name, &list);
        Ok(())
    }

    /// The chunks of a file, if they are known.
    pub async fn file(&self, file: &Hash) -> Option<Arc<ChunkList>> {
        self.proven(Kind::File, file).await
    }

    /// The chunks of a xorb, if they are known for sure.
    pub async fn xorb(&self, xorb: &Hash) -> Option<Arc<ChunkList>> {
        self.proven(Kind::Xorb, xorb).await
    }

    /// The chunks of a xorb, if an answer told them.
    pub async fn told(&self, xorb: &Hash) -> Option<Arc<ToldList>> {
        match self.list(Name::Told(*xorb)).await? {
            List::Told(list) => Some(list),
            List::Proven(_) => None,
        }
    }

    /// Some chunks of a xorb, if there is a list of it: one that is proven or, if that will do, that was told.
    pub async fn excerpt(&self, xorb: &Hash, chunks: &Range<u32>, may_be_told: bool) -> Option<Excerpt> {
        if let Some(list) = self.xorb(xorb).await {
            return Some(list.excerpt(xorb, chunks));
        }
        let told = if may_be_told { self.told(xorb).await } else { None };
        told.map(|list| list.excerpt(xorb, chunks))
    }

    /// Forgets what was told of a xorb: it stands against data that came twice, so either is wrong,
    /// and nobody knows which.
    pub async fn forget_told(&self, xorb: &Hash) {
        let (known, name) = (self.clone(), Name::Told(*xorb));
        self.state().drop_list(&name);
        // It waits for a disk.
        offload(usize::MAX, move || known.delete(name)).await;
    }

    async fn proven(&self, kind: Kind, hash: &Hash) -> Option<Arc<ChunkList>> {
        match self.list(Name::Proven(kind, *hash)).await? {
            List::Proven(list) => Some(list),
            List::Told(_) => None,
        }
    }

    async fn list(&self, name: Name) -> Option<List> {
        if let Some(list) = self.held(name) {
            return Some(list);
        }
        self.state().files.get(&name)?;
        let known = self.clone();
        // Whatever its length: it waits for a disk.
        offload(usize::MAX, move || known.load(name)).await
    }

    /// Whether there is one, in memory or for all we know in the folder.
    fn has(&self, name: &Name) -> bool {
        let state = self.state();
        state.lists.contains_key(name) || state.files.contains_key(name)
    }

    /// From memory.
    fn held(&self, name: Name) -> Option<List> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        let (list, used) = state.lists.get_mut(&name)?;
        *used = now;
        let list = list.clone();
        if list.is_expired() {
            state.drop_list(&name);
            return None;
        }
        Some(list)
    }

    /// From the folder. Blocks.
    fn load(&self, name: Name) -> Option<List> {
        self.state().files.get(&name)?;
        let bytes = read_capped(&self.path(&name)?, name.most());
        let list = bytes.ok().and_then(|bytes| List::parse(&name, &bytes).ok()).filter(|list| !list.is_expired());
        match &list {
            Some(list) => self.state().keep(name, list, self.shared.options.memory as u64),
            None => self.delete(name),
        }
        list
    }

    /// From the folder.
    fn delete(&self, name: Name) {
        let Some(path) = self.path(&name) else { return };
        let mut state = self.state();
        if let Some((bytes, _)) = state.files.remove(&name) {
            state.disk.remove(&name, bytes);
        }
        drop(state);
        let _ = fs::remove_file(path);
    }

    /// Puts a list on disk, if there is one; in the background where there is a runtime.
    fn write(&self, name: Name, list: List) {
        if self.shared.options.dir.is_none() || self.state().files.contains_key(&name) {
            return;
        }
        let known = self.clone();
        let write = move || known.publish(name, &list);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Puts a list on disk, if there is one. Blocks.
    fn publish(&self, name: Name, list: &List) {
        if let Err(error) = self.try_publish(name, list) {
            tracing::debug!(%error, "chunk list not kept");
        }
    }

    /// Whole or not at all under its name. Not synced: what a power cut leaves behind proves itself or is dropped.
    fn try_publish(&self, name: Name, list: &List) -> io::Result<()> {
        let Some((dir, path)) = self.shared.options.dir.as_ref().zip(self.path(&name)) else { return Ok(()) };
        let Some(bytes) = list.to_bytes(&name) else { return Ok(()) };
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.write_all(&bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        let len = on_disk(bytes.len() as u64);
        let mut state = self.state();
        state.disk.add(&name, len);
        if let Some((before, _)) = state.files.insert(name, (len, SystemTime::now())) {
            state.disk.remove(&name, before);
        }
        drop(state);
        self.shrink();
        Ok(())
    }

    /// Deletes the oldest until the folder is within its bounds.
    fn shrink(&self) {
        loop {
            let oldest = {
                let state = self.state();
                let files = state.files.iter().map(|(name, (_, at))| (name, *at));
                state.disk.superfluous(self.shared.options.disk, files)
            };
            match oldest {
                Some(name) => self.delete(name),
                None => return,
            }
        }
    }

    fn path(&self, name: &Name) -> Option<PathBuf> {
        Some(self.shared.options.dir.as_ref()?.join(name.to_string()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, name: Name, list: &List, most: u64) {
        self.clock += 1;
        self.memory.add(&name, list.footprint());
        if let Some((old, _)) = self.lists.insert(name, (list.clone(), self.clock)) {
            self.memory.remove(&name, old.footprint());
        }
        // One that alone is above the bound is let go, too.
        loop {
            let lists = self.lists.iter().map(|(name, (_, used))| (name, *used));
            match self.memory.superfluous(most, lists) {
                Some(oldest) => self.drop_list(&oldest),
                None => return,
            }
        }
    }

    /// From memory.
    fn drop_list(&mut self, name: &Name) {
        if let Some((list, _)) = self.lists.remove(name) {
            self.memory.remove(name, list.footprint());
        }
    }
}

/// What a file of so many bytes takes.
fn on_disk(len: u64) -> u64 {
    len.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

/// The lists in a folder, by their names; what is no list is left alone, but for what a crash left half written.
fn listed(dir: &Path) -> io::Result<BTreeMap<Name, (u64, SystemTime)>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(about) = entry.metadata() else { continue };
        let at = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if name.starts_with(".new-") && at.elapsed().is_ok_and(|age| age.as_secs() > ABANDONED) {
            let _ = fs::remove_file(entry.path());
        }
        if let Some(name) = Name::parse(name) {
            files.insert(name, (on_disk(about.len()), at));
        }
    }
    Ok(files)
}

/// Seconds after which a file that was never finished belongs to no living process.
const ABANDONED: u64 = 3600;

/// One byte more than `most` at most: that is too long for any list.
fn read_capped(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
