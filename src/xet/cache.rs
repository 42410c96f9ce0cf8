//! The disk cache: verified chunks of xorbs ([`ChunkCache`]) or whole files ([`FileCache`]), one
//! folder for all processes of a user.
//!
//! The cache stores and returns exactly the bytes of the CAS. It sits below
//! encryption: on a mount with a key it is handed ciphertext and knows no key, so **no plaintext of
//! an encrypted source can land here**, whoever calls.
//!
//! # Promises
//!
//! - *Never a wrong byte.* Every chunk is hashed at every read, and what names it is under a
//!   checksum, too. An entry that fails is dropped, and the read is a miss. The checksums are not
//!   keyed: whoever can write to the folder (its owner) can forge a chunk *and* its hash. A caller
//!   who knows what hash a chunk must have compares it with [`Cached::hash`].
//! - *Never an error, never a wait for a write.* Anything that goes wrong is a miss. Writes go
//!   through a bounded queue to one thread; what does not fit is dropped. After a failure (full
//!   disk, read-only file system) nothing is written for a minute.
//! - *Bounded*, over all processes together: [`Options::max_bytes`] counts whole blocks, what is being written among
//!   them, and a share for inode, name and index row. What was used least recently goes first; uses are entered in
//!   batches, so the order is exact to half a minute. When the disk is nearly full ([`Options::min_free`]), nothing is
//!   added and entries are evicted instead.
//! - *Crash-safe.* `kill -9` at any moment leaves what the next one to open the folder removes. Nothing is synced: a
//!   power cut may tear entries, which their checksums show.
//! - *Fast to open*: nothing is read but the index's first pages, whatever is inside.
//!
//! # The folder
//!
//! Mode 0700, files 0600. Names that are not ours, symlinks and special files are neither followed nor removed.
//!
//! | path | what |
//! |---|---|
//! | `chunks/XX/<xorb>-<first>-<count>` | an entry: `count` chunks of a xorb from `first`; XX: first byte of the hash |
//! | `files/XX/<file>` | an entry: all chunks of a file |
//! | `writing/<writer>.lock` | held by a living writer (a cache opened by some process) |
//! | `writing/<writer>.<n>` | an entry that it is writing |
//! | `index.sqlite`, `-wal`, `-shm` | all entries, their size and last use, and what each writer writes |
//! | `lock`, `scan` | held while writers come and go and the index is opened; held by who compares index and files |
//!
//! The index is SQLite in WAL mode. Names on disk alone would do for lookups, but not for the size and the order of use
//! of 150,000 entries under several processes without walking them all. It is rebuilt from the names and sizes of the
//! files where it is missing or damaged, and compared with them by the first to open it after a boot or a week, in the
//! background; until a rebuilt one is complete nothing is added.
//!
//! # An entry
//!
//! Numbers are little-endian. `count` is C, `data length` is D, and there are P = ⌈C / 256⌉ pages.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `xetcache` |
//! | 8 | 2 | version, 1 |
//! | 10 | 2 | kind: 1 xorb, 2 file |
//! | 12 | 4 | index of the first chunk in the xorb; 0 in a file |
//! | 16 | 32 | hash of the xorb or file |
//! | 48 | 4 | count of chunks C, at least 1 |
//! | 52 | 4 | zero |
//! | 56 | 8 | data length D |
//! | 64 | 32 | BLAKE3 of bytes 0..64 and the directory |
//! | 96 | D | the chunks, uncompressed, one after the other |
//! | 96 + D | 36 C | the table, 256 rows a page: chunk hash (32), length (4, 1 to 131072) |
//! | 96 + D + 36 C | 40 P | the directory: where the page's chunks begin in the data (8), BLAKE3 of the page (32) |
//!
//! A chunk of 1 byte makes a file of 96 + 1 + 36 + 40 = 173 bytes; 1,000 of 64 KiB make 65,536,000 + 96 + 36,000 + 160.
//! A read of one of those takes the head, the directory, one page (9 KiB) and that chunk; damage anywhere else is not
//! its business. Contexts of the two BLAKE3 `derive_key` checksums: see `entry.rs`. The table lies behind the data
//! because a file that is being filled doesn't know yet how many chunks it has; the head is written with it, or last.
//!
//! # Writing, step by step
//!
//! 1. A transaction takes the ranges that no entry has yet, evicts until they fit (file first, then
//!    row) and adds their rows, marked with the writer's name. *Killed after it*: the rows of a
//!    writer that doesn't hold its lock are removed by who opens next. *Between an eviction and its
//!    commit*: rows without files; whoever looks them up removes them.
//! 2. The file is written in `writing/`. *Killed*: it is swept together with the rows.
//! 3. A transaction takes the mark away and, before it commits, renames the file. *Killed between*: the row is still
//!    marked; row and file are removed by who opens next.
//! 4. *Power cut at any later time*: the file may be shorter than its head says, or zeros, or
//!    garbage: it is dropped by the first read. Of the index the last transactions may be missing:
//!    the scan after the boot takes in or removes what files and index disagree on.
//!
//! Entries of one xorb never overlap: an insert stores what is missing, and nothing if nothing is.

mod entry;
mod files;
mod folder;
mod index;
mod queue;
mod read;
mod store;
#[cfg(test)]
mod tests;

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(super) use entry::fuzz;
pub use files::{Chunks, FileCache};

use super::chunker::MAX_CHUNK;
use super::xorb::MAX_CHUNKS;
use super::{Error, Hash};
use bytes::Bytes;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Failure, Knobs, Store};
use tokio::sync::Semaphore;

/// Bytes of all entries by default, 10 GB.
pub const DEFAULT_MAX_BYTES: u64 = 10_000_000_000;
/// Payload that waits to be written by default: a second's worth for a slow disk.
const DEFAULT_QUEUE_BYTES: u64 = 32 << 20;
/// Reads at a time: what keeps a disk busy. Each takes a thread.
const READS: usize = 16;

/// Where a cache is, and how large it may be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder, of which it makes the last component, and all above that is missing.
    pub dir: PathBuf,
    /// Bytes that it may take on disk, over all processes that give the same number.
    pub max_bytes: u64,
    /// Bytes of the file system that it leaves free; none: 5 % or 1 GiB, whichever is less.
    pub min_free: Option<u64>,
    /// Payload that may wait to be written, bytes.
    pub queue_bytes: u64,
}

impl Options {
    /// A cache of 10 GB in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_bytes: DEFAULT_MAX_BYTES, min_free: None, queue_bytes: DEFAULT_QUEUE_BYTES }
    }
}

/// A chunk, uncompressed, and its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Chunk hash.
    pub hash: Hash,
    /// 1 to 131072 bytes. Out of the cache they are nobody else's.
    pub bytes: Bytes,
}

impl Cached {
    fn is_chunk(&self) -> bool {
        (1..=MAX_CHUNK).contains(&self.bytes.len())
    }
}

/// What the handles of one opened cache share.
struct Shared {
    store: Arc<Store>,
    reads: Arc<Semaphore>,
}

impl Shared {
    fn open(options: Options, knobs: Knobs) -> Result<Self, Error> {
        let store = Store::open(options, knobs).map_err(|failure| match failure {
            Failure::Io(error) => Error::from(error),
            Failure::Index(error) => Error::from(std::io::Error::other(error)),
        })?;
        Ok(Self { store, reads: Arc::new(Semaphore::new(READS)) })
    }

    /// Runs `work`, which reads, on a blocking thread.
    async fn read<T: Send + 'static>(&self, work: impl FnOnce(&Arc<Store>) -> T + Send + 'static) -> Option<T> {
        let permit = Arc::clone(&self.reads).acquire_owned().await.ok()?;
        let store = Arc::clone(&self.store);
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&store)
        });
        task.await.ok()
    }

    async fn settle(&self) {
        let store = Arc::clone(&self.store);
        // It fails when the runtime shuts down: nothing left to wait for.
        let _ = tokio::task::spawn_blocking(move || store.queue.settle()).await;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.store.queue.close();
    }
}

/// Chunks of xorbs on disk. Cheap to clone; the folder is let go when the last clone is dropped,
/// and what waits to be written with it.
#[derive(Clone)]
pub struct ChunkCache {
    shared: Arc<Shared>,
}

impl ChunkCache {
    /// Opens the folder, or makes it. Blocks, for some milliseconds. Fails where there can't be a cache: no permission,
    /// a folder of another user, a file system without locks.
    pub fn open(options: Options) -> Result<Self, Error> {
        Self::open_with(options, Knobs::default())
    }

    fn open_with(options: Options, knobs: Knobs) -> Result<Self, Error> {
        Ok(Self { shared: Arc::new(Shared::open(options, knobs)?) })
    }

    /// All of these chunks of a xorb, each checked, or none. They may come from several entries.
    pub async fn chunks(&self, xorb: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>> {
        if chunks.is_empty() || chunks.end as usize > MAX_CHUNKS {
            return None;
        }
        let xorb = *xorb;
        self.shared.read(move |store| store.chunks(&xorb, chunks)).await?
    }

    /// Keeps consecutive chunks of a xorb, the first of which has index `first`: soon, or not at
    /// all. Their hashes are taken at their word here and checked at every read. Shares the bytes
    /// while they wait: a small slice of a large buffer keeps all of it.
    pub async fn insert(&self, xorb: &Hash, first: u32, chunks: &[(Hash, Bytes)]) {
        let chunks: Vec<Cached> =
            chunks.iter().map(|(hash, bytes)| Cached { hash: *hash, bytes: bytes.clone() }).collect();
        let fits = (first as usize).saturating_add(chunks.len()) <= MAX_CHUNKS;
        if fits && chunks.iter().all(Cached::is_chunk) && !self.shared.store.is_paused() {
            self.shared.store.queue_run(xorb, first, chunks);
        }
    }

    /// Waits until what was inserted before is written or given up: for tests and measurements.
    pub async fn settle(&self) {
        self.shared.settle().await;
    }
}
