//! Upload session: chunk, hash, pack, send xorbs in parallel, then the shard (Xet spec, section 8).
//!
//! One pass, in four stages per file: read a batch; find chunk boundaries (in order); hash and compress its chunks (batches in parallel, off the
//! async workers); pack them into the session's xorb (in order, one file at a time). All files share one xorb under construction; a full one is
//! sent by a task of its own while the next fills.
//!
//! Bounded memory: at most `xorbs_in_flight + 1` xorbs of 64 MiB, a few MiB of batches per file being added, and about 100 bytes per new
//! chunk for the shard and dedup. A dropped [`UploadSession::add`] leaves a consistent session: chunks that were packed are
//! referenced by nobody, or by later files. Nothing that was added may be committed at the Hub before [`UploadSession::finish`] has
//! returned.

mod content;
mod pack;
mod shards;
#[cfg(test)]
mod tests;

use super::chunker::MIN_CHUNK;
use super::offload::offload;
use super::{Cas, Error, Hash, compression::Policy};
use bytes::Bytes;
use content::{Content, Prepared};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use pack::{Draft, Packer};
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};

/// Most batches of one file being hashed and compressed at once: more cores than this gain nothing, since finding boundaries is serial.
const MOST_PREPARING: usize = 8;

/// Most bytes of a file that may be filled in at its end. No chunk ends before byte 8192, and whether one ends there depends on the 64 bytes
/// before: the chunks are the same whatever these first bytes are.
pub const MAX_LATE_HEAD: usize = MIN_CHUNK - 64;

/// What was uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// File hash (zeros for an empty file).
    pub hash: Hash,
    /// Length in bytes.
    pub len: u64,
}

/// Session options.
#[derive(Clone, Debug)]
pub struct Options {
    /// Xorbs being sent at once.
    pub xorbs_in_flight: usize,
}

impl Default for Options {
    /// Two: one is on the wire while the server checks the other.
    fn default() -> Self {
        Self { xorbs_in_flight: 2 }
    }
}

/// One upload of any number of files.
pub struct UploadSession {
    cas: Arc<dyn Cas>,
    /// One per xorb being sent. Taken before a xorb is cut, so `add` waits while too many are held.
    permits: Arc<Semaphore>,
    /// Locked before `sending` where both are.
    packer: tokio::sync::Mutex<Packer>,
    sending: Mutex<Sending>,
}

/// Xorbs on their way. Dropping it aborts them.
#[derive(Default)]
struct Sending {
    tasks: JoinSet<Result<(), Error>>,
    /// The first failure: the session can't be finished any more.
    failure: Option<Error>,
}

impl UploadSession {
    /// Starts a session.
    pub fn new(cas: Arc<dyn Cas>, options: Options) -> Self {
        Self {
            cas,
            permits: Arc::new(Semaphore::new(options.xorbs_in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            packer: tokio::sync::Mutex::default(),
            sending: Mutex::default(),
        }
    }

    /// Chunks and packs one file. Files may be added concurrently (`&self`). An error of `content` leaves the session usable for others; an
    /// error of a xorb fails all that follows.
    pub async fn add<R>(&self, content: R, policy: Policy) -> Result<Uploaded, Error>
    where
        R: AsyncRead + Send + Unpin,
    {
        self.check()?;
        let mut content = Content::new(content, policy);
        let mut draft = Draft::default();
        self.pack_all(&mut content, &mut draft).await?;
        Ok(self.register(draft).await)
    }

    /// The same for content whose first bytes are only known at its end, as a header with a length is: one pass and no staging all the same.
    ///
    /// `content` begins with as many placeholder bytes. When it has ended, `head` is asked for those to put in their place, at most
    /// [`MAX_LATE_HEAD`]. Only the first chunk is kept back for them; it is packed last.
    pub async fn add_with_late_head<R, H>(&self, content: R, head: H, policy: Policy) -> Result<Uploaded, Error>
    where
        R: AsyncRead + Send + Unpin,
        H: FnOnce(&mut R) -> io::Result<Vec<u8>> + Send,
    {
        self.check()?;
        let mut content = Content::new(content, policy);
        let mut first = content.next_chunk().await?;
        let mut rest = Draft::behind_another();
        self.pack_all(&mut content, &mut rest).await?;
        first.put_head(&head(content.reader())?)?;
        let mut draft = Draft::default();
        self.pack(&mut draft, &offload(first.len(), || first.prepare()).await).await?;
        Ok(self.register(draft.followed_by(rest)).await)
    }

    /// Sends what is left: all xorbs, then the shard(s).
    pub async fn finish(self) -> Result<(), Error> {
        let mut packer = self.packer.lock().await;
        if !packer.is_empty() {
            self.cut(&mut packer).await?;
        }
        self.wait_for_xorbs().await?;
        let packed = std::mem::take(&mut *packer).into_packed();
        for shard in shards::split(packed, super::shard::MAX_SHARD)? {
            let body = offload(shard.upload_len(), move || Bytes::from(shard.to_upload())).await;
            self.cas.put_shard(body).await?;
        }
        Ok(())
    }

    /// Packs all of `content` that has not been taken from it.
    async fn pack_all<R>(&self, content: &mut Content<R>, draft: &mut Draft) -> Result<(), Error>
    where
        R: AsyncRead + Send + Unpin,
    {
        let mut preparing = FuturesOrdered::new();
        while let Some(batch) = content.next().await? {
            preparing.push_back(offload(batch.len(), || batch.prepare()));
            if preparing.len() >= preparing_at_once()
                && let Some(prepared) = preparing.next().await
            {
                self.pack(draft, &prepared).await?;
            }
        }
        while let Some(prepared) = preparing.next().await {
            self.pack(draft, &prepared).await?;
        }
        Ok(())
    }

    async fn register(&self, draft: Draft) -> Uploaded {
        let (uploaded, file) = draft.finish();
        self.packer.lock().await.register(file);
        uploaded
    }

    /// Packs all of `prepared`, cutting xorbs where they are full.
    async fn pack(&self, draft: &mut Draft, prepared: &Prepared) -> Result<(), Error> {
        let mut packer = self.packer.lock().await;
        let mut chunks = prepared.chunks();
        loop {
            chunks = packer.place(draft, chunks);
            if chunks.is_empty() {
                return Ok(());
            }
            // The lock is held while a slot to send in is waited for: nobody else could pack either.
            self.cut(&mut packer).await?;
        }
    }

    /// Cuts the current xorb and starts to send it.
    async fn cut(&self, packer: &mut Packer) -> Result<(), Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        self.check()?;
        // No await between here and the spawn: a caller that gives up must not lose a xorb that files refer to.
        let (hash, body) = packer.cut();
        let cas = Arc::clone(&self.cas);
        self.sending().tasks.spawn(async move {
            let _permit = permit;
            cas.put_xorb(&hash, body).await.map(drop)
        });
        Ok(())
    }

    /// Fails once a xorb has failed: with the same error each time.
    fn check(&self) -> Result<(), Error> {
        let mut sending = self.sending();
        while let Some(sent) = sending.tasks.try_join_next() {
            sending.note(sent);
        }
        sending.failure.as_ref().map_or(Ok(()), |failure| Err(failure.duplicate()))
    }

    async fn wait_for_xorbs(&self) -> Result<(), Error> {
        let mut tasks = std::mem::take(&mut self.sending().tasks);
        while let Some(sent) = tasks.join_next().await {
            self.sending().note(sent);
            self.check()?;
        }
        Ok(())
    }

    fn sending(&self) -> std::sync::MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    fn note(&mut self, sent: Result<Result<(), Error>, JoinError>) {
        let result = sent.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Error::Network("the upload was cut short: the process is shutting down".to_owned())),
        });
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }
}

fn preparing_at_once() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_PREPARING)
}
