//! Whole files on disk, each filled once, from its first chunk to its last.
//!
//! The first read of a file starts a *fill*: a task that takes the file's chunks in order and appends
//! them to a file in `writing/`. A read is answered from it as soon as all its chunks are there. One
//! that begins at most [`WAIT_AHEAD`] before the fill's end waits for it, as long as the fill moves;
//! any other is *not* answered: its caller reads around the cache. So a sequential reader follows the
//! fill and nothing is fetched twice, and a jump to the end of a large file doesn't wait for all of it.
//!
//! There is one fill of a file over all processes: the row that it reserves in the index says so. Others read around it
//! until it is done. What is read from a fill is as good as a ranged read of the source: each chunk has the hash that
//! the source gave for it, no more. A fill that ends is kept only if the Merkle root of its chunks is the file's hash;
//! one that fails is not tried again for a minute.

use super::entry::{HEAD_LEN, Kind, MAX_COUNT, Row, Table, file_len};
use super::folder::{Key, Temp};
use super::read::read_rows;
use super::store::{Failure, Knobs, Lookup, Reservation, Store, publish};
use super::{Cached, Options, Shared};
use crate::chunker::MAX_CHUNK;
use crate::merkle::Tree;
use crate::{Error, Hash};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

/// Fills at a time.
const FILLS: usize = 8;
/// A read that begins at most so many bytes behind the fill's end waits for it: about what a fill
/// fetches in the time of a request.
const WAIT_AHEAD: u64 = 16 << 20;
/// How long a reader waits for a fill that doesn't move.
const WAIT_STALLED: Duration = Duration::from_secs(5);
/// How long a fill waits for its next chunk. Whoever fetches has its own, shorter deadlines.
const STALLED: Duration = Duration::from_secs(120);
/// How long a file whose fill failed is not filled again.
const RETRY: Duration = Duration::from_secs(60);
/// Failed files that are remembered.
const MAX_FAILED: usize = 1024;
/// Chunks that are ready are written together, so many at most: 1 MiB or so.
const BATCH: usize = 16;
/// Bytes of file for each chunk that a fill remembers: twice as many chunks as there usually are.
/// Their list is in memory, 48 bytes each.
const CHUNK_PART: u64 = 32 << 10;
/// Chunks that any file may have, however small.
const FREE_CHUNKS: u64 = 1024;

/// All chunks of a file, in order, each hash computed from the bytes. Ends after the first error.
pub type Chunks = BoxStream<'static, Result<Cached, Error>>;

/// Whole files on disk. Cheap to clone; fills end when the last clone is dropped.
#[derive(Clone)]
pub struct FileCache {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Shared,
    /// Never held over an await.
    running: Mutex<HashMap<Hash, Running>>,
    /// When fills failed. Never held over an await.
    failed: Mutex<HashMap<Hash, Instant>>,
    fills: Arc<Semaphore>,
}

/// A fill and its task.
struct Running {
    fill: Arc<Fill>,
    _task: AbortOnDropHandle<()>,
}

impl FileCache {
    /// As [`super::ChunkCache::open`]; the folder may be the same.
    pub fn open(options: Options) -> Result<Self, Error> {
        Self::open_with(options, Knobs::default())
    }

    pub(super) fn open_with(options: Options, knobs: Knobs) -> Result<Self, Error> {
        let inner = Inner {
            shared: Shared::open(options, knobs)?,
            running: Mutex::default(),
            failed: Mutex::default(),
            fills: Arc::new(Semaphore::new(FILLS)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The bytes `range` of a file of `len` bytes, every chunk of them checked; nobody else's, so
    /// [`Bytes::try_into_mut`] succeeds. `None`: read them elsewhere, now. Where the file is not here and may be, takes
    /// its chunks from `chunks` and begins to fill it. Must be polled inside a Tokio runtime.
    pub async fn read(
        &self,
        file: &Hash,
        len: u64,
        range: Range<u64>,
        chunks: impl FnOnce() -> Chunks,
    ) -> Option<Bytes> {
        if range.is_empty() || range.end > len {
            return None;
        }
        let mut fill = self.inner.running(file);
        if fill.is_none() {
            match self.inner.look_up(file, len, range.clone()).await? {
                Lookup::Found(bytes) => return Some(bytes),
                // It may have been started since.
                Lookup::Busy => fill = self.inner.running(file),
                Lookup::Absent => fill = self.inner.start(file, len, chunks),
            }
        }
        let fill = fill?;
        match fill.wait(&range).await? {
            Filled::Far => None,
            Filled::Here => {
                let filling = self.inner.shared.read(move |_| fill.read(range)).await;
                filling?
            }
            Filled::Done => match self.inner.look_up(file, len, range).await? {
                Lookup::Found(bytes) => Some(bytes),
                Lookup::Absent | Lookup::Busy => None,
            },
        }
    }

    /// Waits until no fill runs any more and what there is to note is noted: for tests and measurements.
    pub async fn settle(&self) {
        while let Some(fill) = self.inner.any_running() {
            fill.ended().await;
            // It leaves the list a moment later.
            tokio::task::yield_now().await;
        }
        self.inner.shared.settle().await;
    }
}

impl Inner {
    fn running(&self, file: &Hash) -> Option<Arc<Fill>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(file).map(|running| Arc::clone(&running.fill))
    }

    fn any_running(&self) -> Option<Arc<Fill>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().next().map(|running| Arc::clone(&running.fill))
    }

    async fn look_up(&self, file: &Hash, len: u64, range: Range<u64>) -> Option<Lookup> {
        let file = *file;
        self.shared.read(move |store| store.file(&file, len, range)).await
    }

    /// Starts a fill, or joins one that was started meanwhile.
    fn start(self: &Arc<Self>, file: &Hash, len: u64, chunks: impl FnOnce() -> Chunks) -> Option<Arc<Fill>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.get(file) {
            return Some(Arc::clone(&running.fill));
        }
        if self.shared.store.is_paused() || self.has_failed(file) {
            return None;
        }
        let permit = Arc::clone(&self.fills).try_acquire_owned().ok()?;
        let fill = Arc::new(Fill::new(*file, len));
        let task = run(Arc::clone(&self.shared.store), Arc::clone(&fill), chunks(), permit, Arc::downgrade(self));
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        running.insert(*file, Running { fill: Arc::clone(&fill), _task: task });
        Some(fill)
    }

    fn has_failed(&self, file: &Hash) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < RETRY);
        failed.contains_key(file)
    }

    fn note_failed(&self, file: &Hash) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() < MAX_FAILED {
            failed.insert(*file, Instant::now());
        }
    }
}

/// How far a fill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// All chunks up to this byte are there.
    At(u64),
    /// The file is in the cache.
    Done,
    Failed,
}

/// Where a read finds its bytes.
enum Filled {
    /// In the file being filled.
    Here,
    /// In the cache.
    Done,
    /// Nowhere soon.
    Far,
}

/// A file being filled.
struct Fill {
    file: Hash,
    len: u64,
    progress: watch::Sender<Progress>,
    /// The file being written. Set before there is progress.
    data: RwLock<Option<Arc<File>>>,
    /// The chunks that are there. Held for moments.
    rows: RwLock<Vec<Row>>,
}

impl Fill {
    fn new(file: Hash, len: u64) -> Self {
        let progress = watch::Sender::new(Progress::At(0));
        Self { file, len, progress, data: RwLock::default(), rows: RwLock::default() }
    }

    /// Waits until the bytes are there, while that is worth it. `None`: it failed, or does not move.
    async fn wait(&self, range: &Range<u64>) -> Option<Filled> {
        let mut progress = self.progress.subscribe();
        loop {
            match *progress.borrow_and_update() {
                Progress::At(at) if at >= range.end => return Some(Filled::Here),
                Progress::At(at) if range.start > at.saturating_add(WAIT_AHEAD) => return Some(Filled::Far),
                Progress::At(_) => {}
                Progress::Done => return Some(Filled::Done),
                Progress::Failed => return None,
            }
            tokio::time::timeout(WAIT_STALLED, progress.changed()).await.ok()?.ok()?;
        }
    }

    async fn ended(&self) {
        // The sender is in `self`.
        let _ = self.progress.subscribe().wait_for(|progress| !matches!(progress, Progress::At(_))).await;
    }

    /// Bytes that are there.
    fn read(&self, range: Range<u64>) -> Option<Bytes> {
        let data = self.data.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let rows = {
            let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
            let first = rows.partition_point(|row| row.end() <= range.start);
            let last = rows.partition_point(|row| row.offset < range.end);
            rows.get(first..last)?.to_vec()
        };
        read_rows(&data, HEAD_LEN as u64, &rows, range).ok()
    }

    /// Takes a batch of chunks that are written.
    fn advance(&self, batch: &[Cached]) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = rows.last().map_or(0, Row::end);
        for chunk in batch {
            let row = Row { hash: chunk.hash, offset: at, len: chunk.bytes.len() as u32 };
            at = row.end();
            rows.push(row);
        }
        drop(rows);
        self.progress.send_replace(Progress::At(at));
    }
}

/// Most chunks that a file of this length is believed to have.
fn most_chunks(len: u64) -> u64 {
    (len / CHUNK_PART + FREE_CHUNKS).min(u64::from(MAX_COUNT)).min(len)
}

/// Why a file was not filled.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    Source(#[from] Error),
    #[error("the store gave other chunks than the file's")]
    Mismatch,
    #[error("no chunk came for a long time")]
    Stalled,
    /// The bound, another process, or a disk that is nearly full.
    #[error("there is no room for it")]
    NoRoom,
    #[error(transparent)]
    Write(#[from] Failure),
    #[error("the process is shutting down")]
    Stopped,
}

async fn run(store: Arc<Store>, fill: Arc<Fill>, chunks: Chunks, permit: OwnedSemaphorePermit, inner: Weak<Inner>) {
    let outcome = run_to_end(&store, &fill, chunks).await;
    drop(permit);
    if let Err(error) = &outcome {
        tracing::debug!(file = %fill.file, %error, "the file is not cached");
        if let FillError::Write(failure) = error {
            store.pause(failure);
        }
    }
    if let Some(inner) = inner.upgrade() {
        if outcome.is_err() {
            inner.note_failed(&fill.file);
        }
        fill.progress.send_replace(if outcome.is_ok() { Progress::Done } else { Progress::Failed });
        // Dropping the handle of this very task aborts it at its next await: there is none.
        inner.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&fill.file);
    }
}

/// Runs what blocks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FillError> + Send + 'static,
) -> Result<T, FillError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FillError::Stopped)?
}

async fn run_to_end(store: &Arc<Store>, fill: &Arc<Fill>, chunks: Chunks) -> Result<(), FillError> {
    let (here, there) = (Arc::clone(store), Arc::clone(fill));
    let mut entry = blocking(move || begin(&here, &there)).await?;
    let copied = copy(store, fill, chunks, &mut entry).await;
    let fill = Arc::clone(fill);
    blocking(move || match copied {
        Ok(()) => finish(&fill, entry),
        Err(error) => {
            entry.discard();
            Err(error)
        }
    })
    .await
}

/// Writes all chunks, and checks that they are the file.
async fn copy(store: &Arc<Store>, fill: &Arc<Fill>, chunks: Chunks, entry: &mut Unfinished) -> Result<(), FillError> {
    let mut tree = Tree::new();
    let (mut at, mut count) = (0u64, 0u64);
    let mut batches = chunks.ready_chunks(BATCH);
    while let Some(batch) = tokio::time::timeout(STALLED, batches.next()).await.map_err(|_| FillError::Stalled)? {
        let batch = batch.into_iter().collect::<Result<Vec<Cached>, Error>>()?;
        for chunk in &batch {
            at = at.saturating_add(chunk.bytes.len() as u64);
            count += 1;
            if !chunk.is_chunk() || at > fill.len || count > most_chunks(fill.len) {
                return Err(FillError::Mismatch);
            }
            tree.push(chunk.hash, chunk.bytes.len() as u64);
        }
        let (store, filled) = (Arc::clone(store), Arc::clone(fill));
        let mut taken = Unfinished(entry.0.take());
        let (taken, outcome) = blocking(move || {
            let outcome = taken.take_in(&store, &filled, &batch);
            Ok((taken, outcome))
        })
        .await?;
        *entry = taken;
        outcome?;
    }
    if at != fill.len || tree.into_file_hash() != fill.file {
        return Err(FillError::Mismatch);
    }
    Ok(())
}

/// An entry being written. Dropped unfinished it vanishes.
struct Unfinished(Option<(Reservation, Temp)>);

impl Unfinished {
    fn parts(&mut self) -> &mut (Reservation, Temp) {
        self.0.as_mut().expect("whoever takes it puts it back or ends it")
    }

    fn append(&mut self, pieces: &[&[u8]]) -> Result<(), Failure> {
        let (reservation, temp) = self.parts();
        Ok(temp.append(&reservation.opened.folder, pieces)?)
    }

    /// Writes a batch of chunks.
    fn take_in(&mut self, store: &Store, fill: &Fill, batch: &[Cached]) -> Result<(), FillError> {
        // What is written counts as used already.
        if !store.has_room(0)? {
            return Err(FillError::NoRoom);
        }
        self.append(&batch.iter().map(|chunk| &chunk.bytes[..]).collect::<Vec<_>>())?;
        fill.advance(batch);
        Ok(())
    }

    fn discard(mut self) {
        drop(self.0.take());
    }

    fn finish(mut self, head: &[u8], tail: &[u8]) -> Result<(), Failure> {
        self.append(&[tail])?;
        let (reservation, temp) = self.parts();
        temp.write_head(&reservation.opened.folder, head)?;
        publish(self.0.take().into_iter().collect())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let parts = self.0.take();
        // To unlink a large file takes long, and an aborted task is dropped by an async worker.
        if let (Some(parts), Ok(runtime)) = (parts, Handle::try_current()) {
            runtime.spawn_blocking(move || drop(parts));
        }
    }
}

fn begin(store: &Arc<Store>, fill: &Fill) -> Result<Unfinished, FillError> {
    let most = file_len(most_chunks(fill.len), fill.len);
    let key = Key::file(&fill.file);
    if most_chunks(fill.len).saturating_mul(MAX_CHUNK as u64) < fill.len || !store.has_room(most)? {
        return Err(FillError::NoRoom);
    }
    let missing = |changes: &super::index::Changes<'_>| {
        Ok(if changes.find(&key)?.is_some() { Vec::new() } else { vec![(key, most)] })
    };
    let reservation = store.reserve(&[missing])?.into_iter().flatten().next().ok_or(FillError::NoRoom)?;
    let temp = reservation.opened.owner.create(&reservation.opened.folder).map_err(Failure::from)?;
    let data = Arc::new(temp.file.try_clone().map_err(Failure::from)?);
    let mut entry = Unfinished(Some((reservation, temp)));
    // The place of the head, which is written last.
    entry.append(&[&[0; HEAD_LEN]])?;
    *fill.data.write().unwrap_or_else(PoisonError::into_inner) = Some(data);
    Ok(entry)
}

fn finish(fill: &Fill, entry: Unfinished) -> Result<(), FillError> {
    let mut table = Table::default();
    for row in fill.rows.read().unwrap_or_else(PoisonError::into_inner).iter() {
        table.push(&row.hash, row.len);
    }
    let (head, tail) = table.finish(Kind::File, fill.file, 0);
    Ok(entry.finish(&head, &tail)?)
}

#[cfg(test)]
impl FileCache {
    /// The store beneath.
    pub(super) fn inner_for_tests(&self) -> &Arc<Store> {
        &self.inner.shared.store
    }

    /// How far the fill of a file has come.
    pub(super) fn filled_for_tests(&self, file: &Hash) -> Option<u64> {
        match *self.inner.running(file)?.progress.borrow() {
            Progress::At(at) => Some(at),
            Progress::Done | Progress::Failed => None,
        }
    }
}
