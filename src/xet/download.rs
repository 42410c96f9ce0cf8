//! Reading files from a CAS by range (Xet spec, 10.1 and 10.7).
//!
//! | | delivered | checked |
//! |---|---|---|
//! | [`Downloader::read`] | at once | structure and lengths; chunks, if those of the file or xorb are known |
//! | [`Downloader::stream`] | in order | the same |
//! | [`Downloader::download`] | in order, into a writer | every chunk hash and the file hash |
//! | [`Downloader::download_to`] | in any order, into a [`Place`] | the same |
//!
//! A reconstruction carries no chunk hashes. If [`Options::known`] is given they are known of files that were uploaded
//! here, or read whole before, and of xorbs that an upload was told of, which is proof where the hashes are plain and a
//! second opinion of the CAS where they are not ([`super::known`]); else a ranged read is as good as TLS and the CAS.
//!
//! Locations of data are requested by ranges, and cached while they are valid (`answers.rs`). A
//! data URL is signed for exact stretches: what an answer says lies in one stretch is fetched whole
//! or not at all. So asking for more than is read saves questions and costs bytes: [`Options::grain`]
//! and [`Options::slack`] say how many. A reader of small neighbouring ranges profits from a larger
//! grain only with a chunk cache, which then has what was fetched and not read.
//!
//! Long ranges are read in windows. Each is reconstructed, fetched and decoded by a task of its own, so that one that
//! waits for its consumer holds neither a connection nor a permit of the CAS client; a dropped stream aborts them.
//! Windows give whole chunks: one that lies across the edge of two windows comes twice and is used once. Offsets are
//! file bytes. Memory: `ahead + 1` windows and one xorb each at worst, and usually no more than the windows themselves;
//! a [`Downloader::download_to`] needs a few MiB per connection.

mod answers;
mod chunks;
pub(crate) mod decoder;
mod expiry;
mod layout;
mod place;
#[cfg(test)]
mod tests;
mod window;

use super::known::{Known, MAX_LIST};
use super::{Cas, Error, Hash, Lookups, deadline, merkle::Tree};
use answers::Answers;
use bytes::{Bytes, BytesMut};
pub use chunks::{Cached, Chunks, Recent};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesOrdered, Stream, StreamExt, TryStreamExt};
pub use place::Place;
use std::collections::VecDeque;
use std::iter::successors;
use std::panic::resume_unwind;
use std::time::Duration;
use std::{fmt, ops::Range, sync::Arc, vec};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use window::{Chunk, Manner};

/// File bytes of the first window of a stream; later ones double up to [`Options::window`]. The
/// first byte should come soon.
const FIRST_WINDOW: u64 = 1024 * 1024;
/// Windows fetched ahead before a consumer had to wait. Where nothing is far away, more would only take memory.
const FIRST_AHEAD: usize = 3;
/// KiB of raw chunks that may be on their way to the chunk cache; more are not kept.
const INSERTS: usize = 32 * 1024;

/// Limits.
#[derive(Clone)]
pub struct Options {
    /// File bytes asked for in one reconstruction when streaming.
    pub window: u64,
    /// Windows fetched ahead of the consumer.
    pub ahead: usize,
    /// File bytes asked for in one reconstruction when downloading whole files unordered: their
    /// plan is in memory, their data isn't.
    pub plan: u64,
    /// Stretches fetched at a time when downloading whole files unordered.
    pub connections: usize,
    /// A read that is shorter asks where all of the aligned blocks of this many bytes are that it
    /// touches, so that neighbours need not ask again.
    pub grain: u64,
    /// Bytes beyond those read that are fetched rather than asking for a closer answer: worth a round trip.
    pub slack: u64,
    /// How long data URLs are used that don't say how long they are good.
    pub url_life: Duration,
    /// Chunk hashes that ranged reads are checked against, and that whole reads record. Readers that
    /// authenticate data by other means need none.
    pub known: Option<Known>,
    /// Where chunks are looked for before they are fetched, and kept.
    pub chunks: Option<Arc<dyn Chunks>>,
    /// Streams and ordered downloads of this many bytes or more leave nothing in the chunk cache:
    /// they would drive out everything else.
    pub bypass: u64,
    /// Counts lookups of kept reconstructions.
    pub plan_lookups: Arc<Lookups>,
}

impl Default for Options {
    /// Streams are 56 MiB at most, in seven windows; whole files come over four connections. A
    /// quarter of a MiB takes about as long as a question does.
    fn default() -> Self {
        Self {
            window: 8 * 1024 * 1024,
            ahead: 6,
            plan: 1024 * 1024 * 1024,
            connections: 4,
            grain: 256 * 1024,
            slack: 512 * 1024,
            url_life: Duration::from_secs(10 * 60),
            known: None,
            chunks: None,
            bypass: 256 * 1024 * 1024,
            plan_lookups: Arc::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Options");
        fields.field("window", &self.window).field("ahead", &self.ahead).field("plan", &self.plan);
        fields.field("connections", &self.connections).field("grain", &self.grain).field("slack", &self.slack);
        fields.field("known", &self.known.is_some()).field("chunks", &self.chunks.is_some()).finish_non_exhaustive()
    }
}

/// Reads files from one CAS. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct Downloader {
    engine: Arc<Engine>,
}

/// What all reads of a downloader share.
struct Engine {
    cas: Arc<dyn Cas>,
    options: Options,
    answers: Answers,
    /// KiB that may be on their way to the chunk cache.
    inserts: Arc<Semaphore>,
}

impl Downloader {
    /// A reader over `cas`.
    pub fn new(cas: Arc<dyn Cas>, options: Options) -> Self {
        let answers = Answers::new(Arc::clone(&cas), options.url_life, Arc::clone(&options.plan_lookups));
        Self { engine: Arc::new(Engine { cas, options, answers, inserts: Arc::new(Semaphore::new(INSERTS)) }) }
    }

    /// Exactly the bytes `range` of `file` (which the caller knows to exist), never fewer. The bytes are nobody else's,
    /// so [`Bytes::try_into_mut`] succeeds. It is one request, all of it in memory: for ranges of some MiB at most.
    pub async fn read(&self, file: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let too_long = |_| Error::Malformed { what: "range", why: "it is longer than memory".to_owned() };
        let len = usize::try_from(range.end - range.start).map_err(too_long)?;
        let Options { grain, slack, .. } = self.engine.options;
        let manner = Manner { question: around(&range, grain), slack, hashed: false, kept: true };
        let chunks = self.engine.window(file, &range, &manner).await?;
        let mut bytes = BytesMut::with_capacity(len);
        let mut cursor = Cursor { at: range.start, end: range.end };
        for chunk in &chunks {
            bytes.extend_from_slice(&cursor.take(chunk)?);
        }
        if cursor.at != range.end {
            return Err(layout::malformed("it has less than it says"));
        }
        Ok(bytes.freeze())
    }

    /// Reads a range as an ordered stream of pieces, none of them empty, fetched ahead within bounds. It ends after the
    /// first error. Must be polled inside a Tokio runtime.
    pub fn stream(&self, file: Hash, range: Range<u64>) -> BoxStream<'static, Result<Bytes, Error>> {
        let Options { window, ahead, .. } = self.engine.options;
        self.stream_within(file, range, window, ahead)
    }

    /// Streams like [`Downloader::stream`], with windows of at most `window` bytes and `ahead` of them fetched ahead:
    /// for a reader that is one of many.
    pub fn stream_within(
        &self,
        file: Hash,
        range: Range<u64>,
        window: u64,
        ahead: usize,
    ) -> BoxStream<'static, Result<Bytes, Error>> {
        let cursor = Cursor { at: range.start, end: range.end };
        let windows = self.windows(file, range, false, window, ahead).boxed();
        let pieces = Pieces { windows, chunks: Vec::new().into_iter(), cursor };
        stream::try_unfold(pieces, |mut pieces| async move { Ok(pieces.next().await?.map(|piece| (piece, pieces))) })
            .boxed()
    }

    /// A whole file of `len` bytes into `sink`, verified. On an error the sink holds a prefix that must be discarded.
    pub async fn download<W>(&self, file: &Hash, len: u64, mut sink: W) -> Result<(), Error>
    where
        W: AsyncWrite + Send + Unpin,
    {
        let mismatch = || Error::HashMismatch { what: "file", expected: *file };
        let mut chunks = self.chunks(*file, len);
        let mut tree = Tree::new();
        let mut list = self.engine.options.known.as_ref().map(|_| Vec::new());
        let mut at = 0;
        while let Some(Cached { hash, bytes }) = chunks.try_next().await? {
            at += bytes.len() as u64;
            tree.push(hash, bytes.len() as u64);
            list = list.filter(|list| list.len() < MAX_LIST);
            // A chunk's length.
            list.iter_mut().for_each(|list| list.push((hash, bytes.len() as u32)));
            sink.write_all(&bytes).await?;
        }
        if at != len || tree.into_file_hash() != *file {
            return Err(mismatch());
        }
        if let Some((known, list)) = self.engine.options.known.as_ref().zip(list) {
            // It was verified just now.
            let _ = known.note_file(file, list);
        }
        sink.flush().await?;
        Ok(())
    }

    /// The chunks of a whole file of `len` bytes, in order and each with its hash; whether they make the file is for
    /// the caller to check. Ends after the first error. Must be polled inside a Tokio runtime.
    pub fn chunks(&self, file: Hash, len: u64) -> BoxStream<'static, Result<Cached, Error>> {
        let mismatch = move || Error::HashMismatch { what: "file", expected: file };
        let mut at = 0;
        let Options { window, ahead, .. } = self.engine.options;
        let chunks = self.windows(file, 0..len, true, window, ahead).map(move |window| {
            // A chunk across the edge came with the window before, too.
            let seen = at;
            let mut fresh = Vec::new();
            for chunk in window?.into_iter().skip_while(|chunk| chunk.end() <= seen) {
                if chunk.offset != at || chunk.end() > len {
                    return Err(mismatch());
                }
                at = chunk.end();
                fresh.push(Ok(Cached { hash: chunk.hash.ok_or_else(mismatch)?, bytes: chunk.bytes }));
            }
            Ok(stream::iter(fresh))
        });
        chunks
            .try_flatten()
            .scan(false, |failed, chunk| {
                let ended = std::mem::replace(failed, chunk.is_err());
                std::future::ready((!ended).then_some(chunk))
            })
            .boxed()
    }

    /// A whole file of `len` bytes into `place`, in any order and verified; the chunk cache is neither asked nor
    /// filled. On an error the place holds anything. A dropped future leaves writers behind that finish the runs of
    /// chunks that they have. Must be polled inside a Tokio runtime.
    pub async fn download_to(&self, file: &Hash, len: u64, place: Arc<dyn Place>) -> Result<(), Error> {
        let (engine, file) = (Arc::clone(&self.engine), *file);
        let placing = tokio::spawn(deadline::inherited(async move { engine.place(&file, len, place).await }));
        joined(AbortOnDropHandle::new(placing)).await
    }

    /// The chunks of `range` by windows, in order; `hashed`: with their hashes. Doesn't end at an error.
    fn windows(
        &self,
        file: Hash,
        range: Range<u64>,
        hashed: bool,
        window: u64,
        ahead: usize,
    ) -> impl Stream<Item = Result<Vec<Chunk>, Error>> + use<> {
        let engine = Arc::clone(&self.engine);
        let Options { slack, bypass, .. } = engine.options;
        let kept = range.end.saturating_sub(range.start) < bypass;
        let ask = {
            let engine = Arc::clone(&engine);
            move |window: &Range<u64>| engine.ask_ahead(&file, window, slack)
        };
        let read = move |Asked { window, asking }: Asked| {
            let engine = Arc::clone(&engine);
            let manner = Manner { question: window.clone(), slack, hashed, kept };
            let task = tokio::spawn(deadline::inherited(async move {
                let _asking = asking;
                engine.window(&file, &window, &manner).await
            }));
            joined(AbortOnDropHandle::new(task)).boxed()
        };
        let most = ahead.max(1);
        let (asked, fetched) = (VecDeque::new(), FuturesOrdered::new());
        let windows = windows(range, window);
        let flight = Flight { windows, asked, fetched, ask, read, ahead: most.min(FIRST_AHEAD), most };
        stream::unfold(flight, |mut flight| async move { Some((flight.next().await?, flight)) })
    }
}

/// A window whose place is being asked for.
struct Asked {
    window: Range<u64>,
    asking: Option<AbortOnDropHandle<()>>,
}

/// Fetches the windows of a stream ahead of its consumer, more of them whenever the consumer had to wait. Places are
/// asked for as many windows further ahead, so that a window costs one round trip and not two.
struct Flight<W, A, R> {
    windows: W,
    asked: VecDeque<Asked>,
    fetched: FuturesOrdered<BoxFuture<'static, Result<Vec<Chunk>, Error>>>,
    ask: A,
    read: R,
    ahead: usize,
    most: usize,
}

impl<W, A, R> Flight<W, A, R>
where
    W: Iterator<Item = Range<u64>>,
    A: Fn(&Range<u64>) -> Option<AbortOnDropHandle<()>>,
    R: Fn(Asked) -> BoxFuture<'static, Result<Vec<Chunk>, Error>>,
{
    /// Returns the next window. The one that the consumer is at has left the flight.
    async fn next(&mut self) -> Option<Result<Vec<Chunk>, Error>> {
        self.fill();
        match self.fetched.next().now_or_never() {
            Some(ready) => ready,
            None => {
                self.ahead = (self.ahead + 1).min(self.most);
                self.fill();
                self.fetched.next().await
            }
        }
    }

    fn fill(&mut self) {
        while self.fetched.len() < self.ahead {
            let unasked = || self.windows.next().map(|window| Asked { window, asking: None });
            let Some(next) = self.asked.pop_front().or_else(unasked) else { return };
            self.fetched.push_back((self.read)(next));
        }
        while self.asked.len() < self.ahead {
            let Some(window) = self.windows.next() else { return };
            self.asked.push_back(Asked { asking: (self.ask)(&window), window });
        }
    }
}

impl Engine {
    /// Begins to ask where a window is, unless that is known. `None`: it is.
    fn ask_ahead(self: &Arc<Self>, file: &Hash, window: &Range<u64>, slack: u64) -> Option<AbortOnDropHandle<()>> {
        if self.answers.kept(file, window).is_some() {
            return None;
        }
        let (engine, file, window) = (Arc::clone(self), *file, window.clone());
        let asking = async move {
            // Whoever reads the window asks again, and gets the error.
            let _ = engine.answers.find(&file, &window, slack, window.clone()).await;
        };
        Some(AbortOnDropHandle::new(tokio::spawn(deadline::inherited(asking))))
    }
}

/// The result of a task of ours.
async fn joined<T>(task: AbortOnDropHandle<Result<T, Error>>) -> Result<T, Error> {
    task.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => Err(Error::Network("the download was cut short: the process is shutting down".to_owned())),
    })
}

/// What to ask for where `range` is to be read.
fn around(range: &Range<u64>, grain: u64) -> Range<u64> {
    if range.end - range.start >= grain {
        return range.clone();
    }
    // The end may be behind that of the file, which an answer tells by ending.
    let end = range.end.checked_next_multiple_of(grain).unwrap_or(range.end);
    range.start / grain * grain..end
}

/// Cuts `range` into windows of [`FIRST_WINDOW`] bytes, then twice as many each, up to `longest`.
fn windows(range: Range<u64>, longest: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let longest = longest.max(1);
    let window = move |start: u64, len: u64| {
        let end = start.saturating_add(len).min(range.end);
        (start < end).then_some((start..end, len))
    };
    let first = window(range.start, FIRST_WINDOW.min(longest));
    successors(first, move |(last, len)| window(last.end, len.saturating_mul(2).min(longest))).map(|(window, _)| window)
}

/// How far a reader of consecutive chunks has come.
struct Cursor {
    at: u64,
    end: u64,
}

impl Cursor {
    /// What `chunk` adds, if anything.
    fn take(&mut self, chunk: &Chunk) -> Result<Bytes, Error> {
        if chunk.offset > self.at {
            return Err(Error::Malformed {
                what: "reconstruction",
                why: "two answers contradict each other".to_owned(),
            });
        }
        let (from, to) = (self.at, chunk.end().min(self.end));
        if to <= from {
            return Ok(Bytes::new());
        }
        self.at = to;
        // Both lie in the chunk, which is in memory.
        Ok(chunk.bytes.slice((from - chunk.offset) as usize..(to - chunk.offset) as usize))
    }
}

/// State of a stream.
struct Pieces {
    windows: BoxStream<'static, Result<Vec<Chunk>, Error>>,
    /// Of the current window.
    chunks: vec::IntoIter<Chunk>,
    cursor: Cursor,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            for chunk in &mut self.chunks {
                let piece = self.cursor.take(&chunk)?;
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
            }
            match self.windows.try_next().await? {
                Some(chunks) => self.chunks = chunks.into_iter(),
                None => return Ok(None),
            }
        }
    }
}
