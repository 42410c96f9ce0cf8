//! Upload session: chunk, hash, deduplicate, pack, send xorbs in parallel, then the shards (Xet spec, section 8).
//!
//! One pass, several blocks of the file side by side, off the async workers: blocks are read and chunk boundaries found
//! in them, in order; then the same thread, in whose cache the bytes are, hashes their chunks and, if so wanted,
//! compresses them, while another goes on with the next block. Chunks stored nowhere yet enter the session's xorb, in
//! order. All files share one xorb under construction; a full one is sent by a task of its own while the next fills.
//! Payloads are never copied after they were read: a xorb's body is slices of the blocks.
//!
//! Bounded memory: payload takes at most [`Options::memory`], and reading waits when that is used up; `blocks` says why
//! nobody waits for ever. Beside it there are 128 KiB per file being added (twice that with a late head), about 70
//! bytes per chunk of the latest 32 GiB, up to 80 bytes per chunk that the CAS told of, and what waits for a shard:
//! those are sent on the way, every 8 MiB. So a file of 1 TiB needs no more than one of 32 GiB.
//!
//! [`UploadSession::flush`] registers what was added so far, and the session goes on. So any number of writers can
//! share one session, and its memory.
//!
//! A dropped [`UploadSession::add`] leaves a consistent session: chunks that were packed are referenced by nobody, or
//! by later files. Nothing that was added may be committed at the Hub before [`UploadSession::flush`] or
//! [`UploadSession::finish`] has returned. Dropping the session ends all that it has started.

mod blocks;
mod content;
mod dedup;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod late;
mod pack;
mod progress;
mod records;
mod shards;
#[cfg(test)]
mod tests;

pub use dedup::{LocalLimits, LocalShards};
pub use progress::Progress;

use super::chunker::MIN_CHUNK;
use super::offload::offload;
use super::xorb::MAX_RAW;
use super::{Body, Cas, Error, Hash, Known, compression::Policy};
use blocks::{BLOCK, LEAST_MEMORY, Pool};
use bytes::Bytes;
use content::{Chunk, Kept, Prepared, Preparing, Scanner};
use dedup::{Asker, Dedup};
use futures::{TryFutureExt, try_join};
use pack::{Draft, File, Packer};
use records::Packed;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncRead;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

/// Most batches of one file on their way behind the one that is packed next: more cores than this
/// gain nothing, since finding boundaries is serial.
const MOST_PREPARING: usize = 8;
/// Most batches of one file that are packed together while others are packed too, for longer terms.
const MOST_TOGETHER: usize = 8;

/// Most bytes of a file that may be filled in at its end. No chunk ends before byte 8192, and whether one ends there
/// depends on the 64 bytes before: the chunks are the same whatever these first bytes are.
pub const MAX_LATE_HEAD: usize = MIN_CHUNK - 64;

/// What was uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// File hash (zeros for an empty file).
    pub hash: Hash,
    /// Length in bytes.
    pub len: u64,
}

/// What a session did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Files added.
    pub files: u64,
    /// Their bytes that were new.
    pub fresh: u64,
    /// Their bytes that were stored already, in this session or before.
    pub deduplicated: u64,
    /// Xorbs sent.
    pub xorbs: u64,
    /// Their bytes: headers, and payloads after compression.
    pub stored: u64,
    /// Shards sent.
    pub shards: u64,
}

/// Session options.
#[derive(Clone, Debug)]
pub struct Options {
    /// Xorbs being sent at once, at most. The client finds by itself how many are worth it; memory allows about two
    /// full ones, and more if they compress.
    pub xorbs_in_flight: usize,
    /// Bytes of content in memory, at least 16 MiB. Xorbs are cut at a third of it, below their own limit of 64 MiB.
    pub memory: usize,
    /// Whether the CAS is asked for chunks that others have stored. Of no use for ciphertext: no two are alike.
    pub global_dedup: bool,
    /// Folder that keeps shards of own uploads for one bucket or repository of one CAS, looked up with `global_dedup`.
    /// It is written in any case: terms and chunk hashes of own uploads are there for later sessions.
    pub local: Option<LocalShards>,
    /// Learns the chunks of the files added, but for those with a late head, and of the xorbs that the CAS tells of
    /// where it is asked with `global_dedup`: ranged reads can be checked then, of other files too. See
    /// [`super::known`] for what each is worth.
    pub known: Option<Known>,
}

impl Default for Options {
    /// 96 MiB: two xorbs of 32 MiB on their way while a third fills.
    fn default() -> Self {
        Self { xorbs_in_flight: 64, memory: 96 * 1024 * 1024, global_dedup: true, local: None, known: None }
    }
}

/// One upload of any number of files.
pub struct UploadSession {
    cas: Arc<dyn Cas>,
    pool: Arc<Pool>,
    memory: usize,
    /// One per xorb being sent. Taken before a xorb is cut, so `add` waits while too many are held.
    permits: Arc<Semaphore>,
    /// Of the one shard that is sent on the way.
    registering: Arc<Semaphore>,
    /// Locked before `sending`, and before what `dedup` knows, where both are.
    packer: tokio::sync::Mutex<Packer>,
    /// Xorbs and shards on their way. Dropping it aborts them.
    sending: Mutex<JoinSet<()>>,
    outcomes: Arc<Outcomes>,
    /// Calls of `flush` so far.
    flushes: AtomicU64,
    /// Those whose files are registered. Held by the call that works for all.
    flushed: tokio::sync::Mutex<u64>,
    dedup: Option<Dedup>,
    local: Option<LocalShards>,
    known: Option<Known>,
    progress: Arc<Progress>,
    /// Batches of one file on their way, behind the one that is packed next.
    preparing_at_once: usize,
    /// Files being added.
    adding: AtomicUsize,
}

/// What has become of xorbs and shards. Each task notes its own before it ends.
#[derive(Default)]
struct Outcomes {
    noted: Mutex<Noted>,
    /// Told when something was noted.
    ended: Notify,
}

#[derive(Default)]
struct Noted {
    /// Slots of xorbs that have arrived since they were last taken.
    stored: Vec<u32>,
    shards: u64,
    /// The first failure: the session can't be finished any more.
    failure: Option<Error>,
}

/// What has arrived.
enum Sent {
    Xorb(u32),
    Shards(u64),
}

impl UploadSession {
    /// Starts a session. Its runtime must have timers.
    pub fn new(cas: Arc<dyn Cas>, options: Options) -> Self {
        let memory = options.memory.max(LEAST_MEMORY);
        let dedup =
            options.global_dedup.then(|| Dedup::new(Arc::clone(&cas), options.local.clone(), options.known.clone()));
        Self {
            cas,
            pool: Pool::new(memory),
            memory,
            permits: Arc::new(Semaphore::new(options.xorbs_in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            registering: Arc::new(Semaphore::new(1)),
            packer: tokio::sync::Mutex::new(Packer::new(MAX_RAW.min(memory / 3))),
            sending: Mutex::default(),
            outcomes: Arc::default(),
            flushes: AtomicU64::new(0),
            flushed: tokio::sync::Mutex::new(0),
            dedup,
            local: options.local,
            known: options.known,
            progress: Arc::default(),
            // Asking costs reading a dozen files.
            preparing_at_once: std::thread::available_parallelism().map_or(1, usize::from).min(MOST_PREPARING),
            adding: AtomicUsize::new(0),
        }
    }

    /// Returns its progress, which can be kept and read at any time.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Chunks and packs one file. Files may be added concurrently (`&self`). An error of `content` leaves the session
    /// usable for others; an error of a xorb fails all that follows.
    ///
    /// Every future of `add` must be polled or dropped: one that is kept without being polled holds
    /// memory that others may wait for.
    pub async fn add<R>(&self, mut content: R, policy: Policy) -> Result<Uploaded, Error>
    where
        R: AsyncRead + Send + Unpin,
    {
        let (to, batches) = mpsc::channel(self.preparing_at_once);
        let read = content::read(&mut content, Scanner::new(policy, false), &self.pool, &self.progress, to);
        self.add_read(read, batches).await
    }

    /// Adds content that blocking threads read, directly into the buffer that is sent. Reads must not wait for other
    /// programs, as those of a pipe do: they would hold memory that others wait for.
    pub async fn add_file<R>(&self, content: R, policy: Policy) -> Result<Uploaded, Error>
    where
        R: io::Read + Send + 'static,
    {
        let (to, batches) = mpsc::channel(self.preparing_at_once);
        let read = content::read_file(content, Scanner::new(policy, false), &self.pool, &self.progress, to);
        self.add_read(read, batches).await
    }

    async fn add_read(
        &self,
        read: impl Future<Output = io::Result<Scanner>>,
        batches: mpsc::Receiver<Preparing>,
    ) -> Result<Uploaded, Error> {
        self.check()?;
        let draft = if self.known.is_some() { Draft::listed() } else { Draft::default() };
        let (mut draft, _) = self.pack_all(read, batches, draft).await?;
        let list = draft.take_list();
        let uploaded = self.register(draft.finish()).await;
        if let (Some(known), Some(list)) = (self.known.clone(), list) {
            // It is what was hashed just now.
            let _ = offload(64 * list.len(), move || known.note_file(&uploaded.hash, list)).await;
        }
        Ok(uploaded)
    }

    /// Adds content whose first bytes are only known at its end, for example a header with a length.
    /// It takes one pass and no staging.
    ///
    /// `content` begins with as many placeholder bytes. When it has ended, `head` is asked for those to put in their
    /// place, at most [`MAX_LATE_HEAD`]. Only the first chunk is kept back for them; it is packed last.
    pub async fn add_with_late_head<R, H>(&self, mut content: R, head: H, policy: Policy) -> Result<Uploaded, Error>
    where
        R: AsyncRead + Send + Unpin,
        H: FnOnce(&mut R) -> io::Result<Vec<u8>> + Send,
    {
        self.check()?;
        let (to, batches) = mpsc::channel(self.preparing_at_once);
        let read = content::read(&mut content, Scanner::new(policy, true), &self.pool, &self.progress, to);
        let (rest, first) = self.pack_all(read, batches, Draft::behind_first()).await?;
        let Some(first) = Kept::with_head(first, &head(&mut content)?)? else {
            return Ok(self.register(Draft::default().finish()).await);
        };
        let batch = first.into_batch(&self.pool).await;
        let prepared = offload(batch.len(), || batch.prepare()).await;
        let entry = prepared.chunks[0].clone();
        let mut draft = Draft::default();
        self.pack(&mut draft, vec![prepared]).await?;
        Ok(self.register(draft.with_rest(&entry, rest)).await)
    }

    /// Registers all files whose `add` has returned, as [`UploadSession::finish`] does. Files may be added meanwhile:
    /// they are registered later. Concurrent calls share the work.
    pub async fn flush(&self) -> Result<(), Error> {
        let call = self.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        let mut flushed = self.flushed.lock().await;
        if *flushed < call {
            // All calls so far have files that are packed already.
            let calls = self.flushes.load(Ordering::SeqCst);
            self.flush_packed().await?;
            *flushed = calls;
        }
        Ok(())
    }

    async fn flush_packed(&self) -> Result<(), Error> {
        let end = {
            let mut packer = self.packer.lock().await;
            if !packer.is_empty() {
                self.cut(&mut packer).await?;
            }
            packer.slot()
        };
        loop {
            let mut ended = pin!(self.outcomes.ended.notified());
            // Before the outcomes are looked at: what ends in between tells us.
            ended.as_mut().enable();
            self.check()?;
            let mut packer = self.packer.lock().await;
            self.note_stored(&mut packer);
            if packer.first_open() >= end {
                self.start_to_register(&mut packer).await;
                break;
            }
            drop(packer);
            ended.await;
        }
        // Its permit is free again when the shard has arrived, or has failed.
        drop(self.registering.acquire().await.expect("the semaphore is never closed"));
        self.check()
    }

    /// Sends what is left: all xorbs, then the shard(s).
    pub async fn finish(self) -> Result<Report, Error> {
        let mut packer = self.packer.lock().await;
        if !packer.is_empty() {
            self.cut(&mut packer).await?;
        }
        self.wait_for_all().await?;
        self.note_stored(&mut packer);
        let mut shards = self.outcomes.noted().shards;
        shards += register(&self.cas, self.local.as_ref(), packer.take_registrable()).await?;
        Ok(Report { shards, ..packer.report() })
    }

    /// Packs all that is read; gives also the first chunk, if it was to be kept.
    async fn pack_all(
        &self,
        read: impl Future<Output = io::Result<Scanner>>,
        batches: mpsc::Receiver<Preparing>,
        draft: Draft,
    ) -> Result<(Draft, Option<Kept>), Error> {
        let _adding = Adding::on(&self.adding);
        let (scanner, draft) = try_join!(read.err_into(), self.pack_batches(batches, draft))?;
        Ok((draft, scanner.first))
    }

    /// Packs the batches of a file. Waits for no memory.
    async fn pack_batches(&self, mut batches: mpsc::Receiver<Preparing>, mut draft: Draft) -> Result<Draft, Error> {
        let mut ready: Vec<Prepared> = Vec::new();
        let mut asker = Asker::default();
        while let Some(preparing) = batches.recv().await {
            let prepared = preparing.await;
            self.consult(&mut asker, &prepared).await;
            ready.push(prepared);
            if ready.len() >= self.batches_together() {
                self.pack(&mut draft, std::mem::take(&mut ready)).await?;
            }
        }
        self.pack(&mut draft, ready).await?;
        Ok(draft)
    }

    /// Returns the number of batches of a file that are packed together. A file alone has the xorb for itself; of
    /// several, each would get a term per batch. What all of them keep for that is below a quarter
    /// of the memory, however many come: n-th comers keep less than 1/n of an eighth.
    fn batches_together(&self) -> usize {
        match self.adding.load(Ordering::Relaxed) {
            0 | 1 => 1,
            files => (self.memory / 8 / BLOCK / files).clamp(1, MOST_TOGETHER),
        }
    }

    /// Asks the CAS for some of these chunks, if that is wanted.
    async fn consult(&self, asker: &mut Asker, prepared: &Prepared) {
        if let Some(dedup) = &self.dedup {
            let packer = self.packer.lock().await;
            let questions = dedup.questions(asker, &prepared.chunks, |chunk| packer.has(chunk));
            drop(packer);
            dedup.ask_all(questions, prepared.is_last).await;
        }
    }

    async fn register(&self, (uploaded, file): (Uploaded, File)) -> Uploaded {
        let mut packer = self.packer.lock().await;
        packer.register(file);
        // Files of known chunks only never fill a xorb.
        self.note_stored(&mut packer);
        self.register_due(&mut packer).await;
        uploaded
    }

    /// Packs all of `batches`, cutting xorbs where they are full.
    async fn pack(&self, draft: &mut Draft, batches: Vec<Prepared>) -> Result<(), Error> {
        let mut packer = self.packer.lock().await;
        for Prepared { buffer, chunks, .. } in batches {
            let mut payload = Payload::Whole(buffer);
            let mut rest = &chunks[..];
            loop {
                let mut fresh = Vec::new();
                let placed = self.place(&mut packer, draft, rest, &mut fresh);
                let is_done = placed.as_ref().is_ok_and(|placed| *placed == rest.len());
                packer.attach(payload.pieces(&fresh, is_done));
                rest = &rest[placed?..];
                if rest.is_empty() {
                    break;
                }
                // The lock is held while a slot to send in is waited for: nobody else could pack either.
                self.cut(&mut packer).await?;
            }
        }
        Ok(())
    }

    fn place(
        &self,
        packer: &mut Packer,
        draft: &mut Draft,
        chunks: &[Chunk],
        fresh: &mut Vec<Range<usize>>,
    ) -> Result<usize, Error> {
        let known = self.dedup.as_ref().map(Dedup::known);
        packer.place(draft, chunks, known.as_deref(), fresh)
    }

    /// Cuts the current xorb and starts to send it.
    async fn cut(&self, packer: &mut Packer) -> Result<(), Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        self.check()?;
        self.note_stored(packer);
        self.register_due(packer).await;
        // No await between here and the spawn: a caller that gives up must not lose a xorb that files refer to.
        let (slot, hash, body) = packer.cut();
        let body: Body = body.counted_in(self.progress.sent_counter());
        let cas = Arc::clone(&self.cas);
        self.start(permit, async move { cas.put_xorb(&hash, body).await.map(|_| Sent::Xorb(slot)) });
        Ok(())
    }

    /// Starts to register what is stored, when it has become much: so that what waits for a shard
    /// doesn't grow with the content.
    async fn register_due(&self, packer: &mut Packer) {
        if packer.is_due() {
            self.start_to_register(packer).await;
        }
    }

    async fn start_to_register(&self, packer: &mut Packer) {
        let permit = Arc::clone(&self.registering).acquire_owned().await.expect("the semaphore is never closed");
        // As in `cut`: no await before the spawn.
        let packed = packer.take_registrable();
        let (cas, local) = (Arc::clone(&self.cas), self.local.clone());
        self.start(permit, async move { register(&cas, local.as_ref(), packed).await.map(Sent::Shards) });
    }

    /// Starts to send something. Its outcome is noted before its permit is given back.
    fn start(&self, permit: OwnedSemaphorePermit, work: impl Future<Output = Result<Sent, Error>> + Send + 'static) {
        let outcomes = Ending { outcomes: Arc::clone(&self.outcomes), is_noted: false };
        self.sending().spawn(async move {
            let _permit = permit;
            outcomes.note(work.await);
        });
    }

    /// Fails once a xorb has failed: with the same error each time.
    fn check(&self) -> Result<(), Error> {
        while let Some(ended) = self.sending().try_join_next() {
            resume(ended);
        }
        self.outcomes.noted().failure.as_ref().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    fn note_stored(&self, packer: &mut Packer) {
        std::mem::take(&mut self.outcomes.noted().stored).into_iter().for_each(|slot| packer.note_stored(slot));
    }

    async fn wait_for_all(&self) -> Result<(), Error> {
        let mut tasks = std::mem::take(&mut *self.sending());
        while let Some(ended) = tasks.join_next().await {
            resume(ended);
            self.check()?;
        }
        // Also what was noted before.
        self.check()
    }

    fn sending(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the shards of what is stored, one after the other, and keeps them; gives their number.
async fn register(cas: &Arc<dyn Cas>, local: Option<&LocalShards>, packed: Packed) -> Result<u64, Error> {
    let mut count = 0;
    for shard in shards::split(packed, shards::GOOD_SHARD, super::shard::MAX_SHARD)? {
        let shard = Arc::new(shard);
        let serialised = Arc::clone(&shard);
        let body = offload(shard.upload_len(), move || Bytes::from(serialised.to_upload())).await;
        cas.put_shard(body).await?;
        count += 1;
        if let Some(local) = local.cloned() {
            // It writes a file.
            offload(usize::MAX, move || local.keep_own(&shard)).await;
        }
    }
    Ok(count)
}

/// The payloads of a batch.
enum Payload {
    Whole(blocks::Buffer),
    /// Some are in a xorb.
    Shared(Bytes),
    Gone,
}

impl Payload {
    /// Pieces of it. `is_all`: there will be no others, so where they are less than three quarters
    /// of it they are copied out.
    fn pieces(&mut self, parts: &[Range<usize>], is_all: bool) -> Vec<Bytes> {
        let len: usize = parts.iter().map(Range::len).sum();
        let shared = match std::mem::replace(self, Self::Gone) {
            Self::Gone => return Vec::new(),
            Self::Whole(_) if parts.is_empty() && is_all => return Vec::new(),
            Self::Whole(buffer) if is_all && len < buffer.bytes.len() / 4 * 3 => {
                let copy = buffer.copied(parts, len).share();
                let mut at = 0;
                let next = |part: &Range<usize>| {
                    at += part.len();
                    copy.slice(at - part.len()..at)
                };
                return parts.iter().map(next).collect();
            }
            Self::Whole(buffer) => buffer.share(),
            Self::Shared(bytes) => bytes,
        };
        let pieces = parts.iter().map(|part| shared.slice(part.clone())).collect();
        *self = Self::Shared(shared);
        pieces
    }
}

/// Counts a file being added, for as long as that.
struct Adding<'a>(&'a AtomicUsize);

impl<'a> Adding<'a> {
    fn on(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Passes on the panic of a task.
fn resume(ended: Result<(), JoinError>) {
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        resume_unwind(panic);
    }
}

impl Outcomes {
    fn noted(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, result: Result<Sent, Error>) {
        {
            let mut noted = self.noted();
            match result {
                Ok(Sent::Xorb(slot)) => noted.stored.push(slot),
                Ok(Sent::Shards(count)) => noted.shards += count,
                Err(error) => {
                    noted.failure.get_or_insert(error);
                }
            }
        }
        self.ended.notify_waiters();
    }
}

/// Notes a failure if its task ends without an outcome: because it panics, or the process is shutting down.
struct Ending {
    outcomes: Arc<Outcomes>,
    is_noted: bool,
}

impl Ending {
    fn note(mut self, result: Result<Sent, Error>) {
        self.is_noted = true;
        self.outcomes.note(result);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.is_noted {
            let why = "the upload was cut short: the process is shutting down";
            self.outcomes.note(Err(Error::Network(why.to_owned())));
        }
    }
}
