//! What is known of files and xorbs: the hashes and lengths of their chunks, in order.
//!
//! The protocol sends no chunk hashes with a reconstruction, so a ranged read can be checked only against what was learnt otherwise: own
//! uploads, dedup shards, an earlier whole and verified read. A list proves itself: the Merkle root over it is the hash of the file or the xorb
//! (Xet spec, 4.1-4.3), so it is believed when that was recomputed and not before, whoever brought it and whatever happened to the disk.
//!
//! But the root over a single chunk is that chunk's hash, without its length: such a list is not kept on disk, and not believed from there.
//!
//! In memory within a bound, least recently used out first; and, where there is a folder, as one small file per list, within another.
//! Writing is best effort. A file that is damaged is deleted and unknown from then on. Several processes may share a folder; what one
//! of them adds the others see when they open it again.
//!
//! A file of the folder is named `f-` or `x-` (file, xorb) and the hash, and holds:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `XETKNOW1` |
//! | 36 each | chunk hash, then its length as little-endian u32 |

use super::chunker::MAX_CHUNK;
use super::merkle::Tree;
use super::offload::offload;
use super::xorb::MAX_CHUNKS;
use super::{Error, Hash};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// First bytes of a list on disk.
const MAGIC: &[u8; 8] = b"XETKNOW1";
/// Bytes of a chunk on disk.
const RECORD: usize = 36;
/// Most chunks of a list that is kept: 32 GiB of file on average, 20 MiB of memory.
pub const MAX_LIST: usize = 1 << 19;

/// Of what a list are the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A file.
    File,
    /// A xorb.
    Xorb,
}

/// Chunks of a file or xorb, proven by its hash.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkList {
    hashes: Vec<Hash>,
    /// Where each ends, in uncompressed bytes.
    ends: Vec<u64>,
}

impl ChunkList {
    /// Checks `chunks` (hashes and uncompressed lengths) against `hash`.
    pub fn proven(kind: Kind, hash: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<Self, Error> {
        let malformed = |why: &str| Error::Malformed { what: "chunk list", why: why.to_owned() };
        let most = if kind == Kind::Xorb { MAX_CHUNKS } else { MAX_LIST };
        let mut list = Self { hashes: Vec::new(), ends: Vec::new() };
        let mut tree = Tree::new();
        let mut end = 0;
        for (chunk, len) in chunks {
            if list.hashes.len() == most {
                return Err(malformed("too many chunks"));
            }
            if len == 0 || len as usize > MAX_CHUNK {
                return Err(malformed("a length that no chunk has"));
            }
            // At most 2^36 in all.
            end += u64::from(len);
            list.hashes.push(chunk);
            list.ends.push(end);
            tree.push(chunk, u64::from(len));
        }
        let (what, found) = match kind {
            Kind::File => ("file", tree.into_file_hash()),
            Kind::Xorb => ("xorb", tree.into_xorb_hash()),
        };
        if found == *hash { Ok(list) } else { Err(Error::HashMismatch { what, expected: *hash }) }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Hash of a chunk.
    pub fn hash(&self, index: usize) -> Option<&Hash> {
        self.hashes.get(index)
    }

    /// Where a chunk starts; at the number of chunks, where the last ends.
    pub fn start(&self, index: usize) -> Option<u64> {
        index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())
    }

    /// The chunk that starts at `offset`.
    pub fn starting_at(&self, offset: u64) -> Option<usize> {
        let index = self.containing(offset);
        (index < self.len() && self.start(index) == Some(offset)).then_some(index)
    }

    /// The chunk that the byte at `offset` is in; the number of chunks where it is behind all.
    pub fn containing(&self, offset: u64) -> usize {
        self.ends.partition_point(|&end| end <= offset)
    }

    /// Hashes and lengths.
    pub fn iter(&self) -> impl Iterator<Item = (Hash, u32)> + '_ {
        let mut start = 0;
        self.hashes.iter().zip(&self.ends).map(move |(&hash, &end)| {
            let len = end - start;
            start = end;
            // A chunk's length, as `proven` saw to.
            (hash, len as u32)
        })
    }

    fn footprint(&self) -> usize {
        self.len() * (size_of::<Hash>() + size_of::<u64>())
    }

    /// The form on disk.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + RECORD * self.len());
        bytes.extend_from_slice(MAGIC);
        for (hash, len) in self.iter() {
            bytes.extend_from_slice(&hash.0);
            bytes.extend_from_slice(&len.to_le_bytes());
        }
        bytes
    }

    /// Parses what a disk holds, and has it proven.
    pub fn parse(kind: Kind, hash: &Hash, bytes: &[u8]) -> Result<Self, Error> {
        let records = bytes.strip_prefix(MAGIC).map(<[u8]>::as_chunks::<RECORD>);
        let Some((records, [])) = records else {
            return Err(Error::Malformed { what: "chunk list", why: "not a list of whole records".to_owned() });
        };
        let record = |record: &[u8; RECORD]| {
            let (hash, len) = record.split_first_chunk::<32>().expect("36 bytes");
            (Hash(*hash), u32::from_le_bytes(len.try_into().expect("the other 4")))
        };
        if records.len() == 1 {
            // The root over one chunk is that chunk's hash: it says nothing of the length.
            return Err(Error::Malformed { what: "chunk list", why: "one chunk proves no length".to_owned() });
        }
        Self::proven(kind, hash, records.iter().map(record))
    }
}

/// Limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of memory.
    pub memory: usize,
    /// Where lists outlive the process, if anywhere.
    pub dir: Option<PathBuf>,
    /// Most bytes in that folder.
    pub disk: u64,
}

impl Default for Options {
    /// 16 MiB of memory are the lists of about 28 GiB of files; 256 MiB of disk those of 480 GiB.
    fn default() -> Self {
        Self { memory: 16 * 1024 * 1024, dir: None, disk: 256 * 1024 * 1024 }
    }
}

type Name = (Kind, Hash);

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
    lists: HashMap<Name, (Arc<ChunkList>, u64)>,
    memory: usize,
    /// Counts uses.
    clock: u64,
    /// What the folder holds: length and when it was used, for all we know.
    files: BTreeMap<Name, (u64, SystemTime)>,
    disk: u64,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
            state.disk = state.files.values().map(|(len, _)| len).sum();
        }
        let known = Self { shared: Arc::new(Shared { options, state: Mutex::new(state) }) };
        known.shrink();
        Ok(known)
    }

    /// Learns the chunks of a file, in order. Fails, and learns nothing, if they aren't that file's. Nor are more than [`MAX_LIST`] remembered.
    pub fn note_file(&self, file: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        self.note(Kind::File, file, chunks)
    }

    /// Learns the chunks of a xorb, in order.
    pub fn note_xorb(&self, xorb: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        self.note(Kind::Xorb, xorb, chunks)
    }

    fn note(&self, kind: Kind, hash: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<(), Error> {
        if self.state().lists.contains_key(&(kind, *hash)) {
            return Ok(());
        }
        let list = Arc::new(ChunkList::proven(kind, hash, chunks)?);
        self.state().keep((kind, *hash), &list, self.shared.options.memory);
        self.write((kind, *hash), list);
        Ok(())
    }

    /// The chunks of a file, if they are known.
    pub async fn file(&self, file: &Hash) -> Option<Arc<ChunkList>> {
        self.list((Kind::File, *file)).await
    }

    /// The chunks of a xorb, if they are known.
    pub async fn xorb(&self, xorb: &Hash) -> Option<Arc<ChunkList>> {
        self.list((Kind::Xorb, *xorb)).await
    }

    async fn list(&self, name: Name) -> Option<Arc<ChunkList>> {
        {
            let mut state = self.state();
            state.clock += 1;
            let now = state.clock;
            if let Some((list, used)) = state.lists.get_mut(&name) {
                *used = now;
                return Some(Arc::clone(list));
            }
            state.files.get(&name)?;
        }
        let known = self.clone();
        // Whatever its length: it waits for a disk.
        offload(usize::MAX, move || known.load(name)).await
    }

    /// Blocks.
    fn load(&self, name: Name) -> Option<Arc<ChunkList>> {
        let path = self.path(name)?;
        let list = match read_capped(&path) {
            Ok(bytes) => ChunkList::parse(name.0, &name.1, &bytes).ok(),
            Err(_) => None,
        };
        let Some(list) = list.map(Arc::new) else {
            self.forget(name, &path);
            return None;
        };
        self.state().keep(name, &list, self.shared.options.memory);
        Some(list)
    }

    fn forget(&self, name: Name, path: &Path) {
        let mut state = self.state();
        if let Some((len, _)) = state.files.remove(&name) {
            state.disk = state.disk.saturating_sub(len);
        }
        drop(state);
        let _ = fs::remove_file(path);
    }

    /// Puts a list on disk, if there is one; in the background where there is a runtime.
    fn write(&self, name: Name, list: Arc<ChunkList>) {
        // One chunk couldn't be believed when it is read again.
        if list.len() == 1 || self.shared.options.dir.is_none() || self.state().files.contains_key(&name) {
            return;
        }
        let known = self.clone();
        let write = move || {
            if let Err(error) = known.publish(name, &list) {
                tracing::debug!(%error, "chunk list not kept");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Whole or not at all under its name. Not synced: what a power cut leaves behind proves itself or is dropped.
    fn publish(&self, name: Name, list: &ChunkList) -> io::Result<()> {
        let Some((dir, path)) = self.shared.options.dir.as_ref().zip(self.path(name)) else { return Ok(()) };
        let bytes = list.to_bytes();
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        file.write_all(&bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        let len = bytes.len() as u64;
        let mut state = self.state();
        state.disk += len;
        if let Some((before, _)) = state.files.insert(name, (len, SystemTime::now())) {
            state.disk = state.disk.saturating_sub(before);
        }
        drop(state);
        self.shrink();
        Ok(())
    }

    /// Deletes the oldest until the folder is within its bound.
    fn shrink(&self) {
        loop {
            let oldest = {
                let state = self.state();
                if state.disk <= self.shared.options.disk {
                    return;
                }
                state.files.iter().min_by_key(|(_, (_, at))| *at).map(|(name, _)| *name)
            };
            match oldest.and_then(|name| Some((name, self.path(name)?))) {
                Some((name, path)) => self.forget(name, &path),
                None => return,
            }
        }
    }

    fn path(&self, (kind, hash): Name) -> Option<PathBuf> {
        let prefix = if kind == Kind::File { 'f' } else { 'x' };
        Some(self.shared.options.dir.as_ref()?.join(format!("{prefix}-{hash}")))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, name: Name, list: &Arc<ChunkList>, most: usize) {
        self.clock += 1;
        self.memory += list.footprint();
        if let Some((old, _)) = self.lists.insert(name, (Arc::clone(list), self.clock)) {
            self.memory -= old.footprint();
        }
        // One that alone is above the bound is let go, too.
        while self.memory > most {
            let Some(&oldest) = self.lists.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| name) else {
                return;
            };
            if let Some((list, _)) = self.lists.remove(&oldest) {
                self.memory -= list.footprint();
            }
        }
    }
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
        let kind = match name.get(..2) {
            Some("f-") => Kind::File,
            Some("x-") => Kind::Xorb,
            _ => continue,
        };
        if let Ok(hash) = name[2..].parse::<Hash>() {
            files.insert((kind, hash), (about.len(), at));
        }
    }
    Ok(files)
}

/// Seconds after which a file that was never finished belongs to no living process.
const ABANDONED: u64 = 3600;

fn read_capped(path: &Path) -> io::Result<Vec<u8>> {
    const MOST: u64 = (MAGIC.len() + RECORD * MAX_LIST) as u64;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xet::merkle::{file_hash, xorb_hash};
    use proptest::prelude::*;

    fn chunks(seed: u8, count: usize) -> Vec<(Hash, u32)> {
        (0..count).map(|i| (Hash([seed.wrapping_add(i as u8); 32]), 1 + i as u32 * 7)).collect()
    }

    fn wide(chunks: &[(Hash, u32)]) -> Vec<(Hash, u64)> {
        chunks.iter().map(|&(hash, len)| (hash, u64::from(len))).collect()
    }

    fn over(dir: &Path, disk: u64) -> Known {
        Known::open(Options { dir: Some(dir.to_owned()), disk, ..Options::default() }).unwrap()
    }

    proptest! {
        #[test]
        fn lists_survive_the_disk_and_no_other_bytes_do(count in 0usize..60, at: prop::sample::Index, bits in 1u8..) {
            let chunks = chunks(1, count);
            let hash = file_hash(&wide(&chunks));
            let list = ChunkList::proven(Kind::File, &hash, chunks.clone()).unwrap();
            let mut bytes = list.to_bytes();
            if count == 1 {
                // Nothing would show that its length was altered.
                prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes).is_err());
                return Ok(());
            }
            prop_assert_eq!(&ChunkList::parse(Kind::File, &hash, &bytes).unwrap(), &list);
            prop_assert!(list.iter().eq(chunks));
            let at = at.index(bytes.len());
            prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes[..at]).is_err());
            bytes[at] ^= bits;
            prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes).is_err());
        }

        #[test]
        fn hostile_bytes_are_never_a_list(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [&MAGIC[..], &bytes].concat();
            prop_assert!(ChunkList::parse(Kind::Xorb, &Hash([3; 32]), &bytes).is_err());
        }
    }

    #[test]
    fn offsets_find_their_chunks() {
        let chunks = vec![(Hash([1; 32]), 10), (Hash([2; 32]), 5)];
        let list = ChunkList::proven(Kind::Xorb, &xorb_hash(&wide(&chunks)), chunks).unwrap();
        assert_eq!([0, 9, 10, 14, 15, 99].map(|at| list.containing(at)), [0, 0, 1, 1, 2, 2]);
        assert_eq!([0, 9, 10, 14, 15].map(|at| list.starting_at(at)), [Some(0), None, Some(1), None, None]);
        assert_eq!([0, 1, 2, 3].map(|index| list.start(index)), [Some(0), Some(10), Some(15), None]);
    }

    #[tokio::test]
    async fn only_what_proves_itself_is_learnt() {
        let known = Known::in_memory();
        let chunks = chunks(1, 9);
        let (file, xorb) = (file_hash(&wide(&chunks)), xorb_hash(&wide(&chunks)));
        assert!(known.note_file(&xorb, chunks.clone()).is_err());
        assert!(known.note_xorb(&file, chunks.clone()).is_err());
        assert!(known.note_file(&file, chunks[1..].to_vec()).is_err());
        assert!(known.file(&file).await.is_none());
        known.note_file(&file, chunks.clone()).unwrap();
        known.note_xorb(&xorb, chunks).unwrap();
        assert_eq!(known.file(&file).await.unwrap().len(), 9);
        assert_eq!(known.xorb(&xorb).await.unwrap().len(), 9);
        assert!(known.xorb(&file).await.is_none());
        let none: [(Hash, u32); 0] = [];
        known.note_file(&Hash::ZERO, none).unwrap();
        assert!(known.note_file(&Hash([1; 32]), [(Hash([1; 32]), 0)]).is_err());
        assert!(known.note_file(&Hash([1; 32]), [(Hash([1; 32]), MAX_CHUNK as u32 + 1)]).is_err());
    }

    #[test]
    fn a_folder_keeps_lists_for_the_next_process_and_drops_damaged_ones() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (one, two) = (chunks(1, 9), chunks(2, 9));
        let (first, second) = (file_hash(&wide(&one)), file_hash(&wide(&two)));
        let known = over(dir.path(), 1 << 20);
        known.note_file(&first, one.clone()).unwrap();
        known.note_file(&second, two).unwrap();
        fs::write(dir.path().join("f-notes"), "mine").unwrap();

        let path = dir.path().join(format!("f-{second}"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
        let known = over(dir.path(), 1 << 20);
        assert!(runtime.block_on(known.file(&first)).unwrap().iter().eq(one));
        assert!(runtime.block_on(known.file(&second)).is_none());
        assert!(!path.exists() && dir.path().join("f-notes").exists());
        assert!(runtime.block_on(known.file(&second)).is_none());
    }

    #[test]
    fn folder_and_memory_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { memory: 2_000, dir: Some(dir.path().to_owned()), disk: 1_000 };
        let known = Known::open(options.clone()).unwrap();
        for seed in 0..40 {
            let chunks = chunks(seed, 10);
            known.note_file(&file_hash(&wide(&chunks)), chunks).unwrap();
            let on_disk: u64 =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert!(on_disk <= 1_000 && known.state().memory <= 2_000);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(known.state().lists.len(), 5);
        Known::open(Options { disk: 400, ..options }).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_list_is_limited() {
        let endless = std::iter::repeat((Hash([1; 32]), 1));
        assert!(ChunkList::proven(Kind::File, &Hash::ZERO, endless.clone()).is_err());
        assert!(ChunkList::proven(Kind::Xorb, &Hash::ZERO, endless).is_err());
    }
}
