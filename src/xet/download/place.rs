//! Whole files, verified, in whatever order their bytes arrive.
//!
//! A few connections at a time each bring one stretch of a xorb (or several small ones under one URL). A blocking thread per connection takes its
//! pieces through a small channel: it cuts them into chunks, hashes each once and writes them, some at a time, to every place where the file has
//! them. So memory is some MiB per connection and the connection never waits but for the disk. Stretches that several terms use are fetched once per window.
//!
//! The file is asked for in windows, each beginning where the one before ended, so that a huge file's plan and hashes are never in memory
//! at once. Two windows at most are under way: chunk hashes enter the Merkle tree in file order, and what came early waits for it. What
//! is written is only good when all of it was verified: until then, and after any error, the sink holds anything.
//!
//! Dropping the future stops the connections at once, and the writers behind the chunk that they are at.

use super::Engine;
use super::decoder::{Decoder, StoredChunk};
use super::layout::{Layout, stored_len};
use crate::xet::chunker::MAX_CHUNK;
use crate::xet::hash::chunk_hash;
use crate::xet::known::MAX_LIST;
use crate::xet::merkle::Tree;
use crate::xet::{Error, Hash};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::slice;
use std::sync::{Arc, PoisonError};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;

/// Where a file may be written in any order. Called from blocking threads, by one at a time: of those who write to one file at once, a kernel lets
/// one, and the others spin.
pub trait Place: Send + Sync + 'static {
    /// Told before the first write that `len` bytes will be written, so that a full disk is known of before anything is fetched.
    fn reserve(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

#[cfg(unix)]
impl Place for std::fs::File {
    #[cfg(target_os = "linux")]
    fn reserve(&self, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, len) {
            // Nothing to reserve, or not on this file system.
            Err(_) if len == 0 => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::SPIPE) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
}

/// Windows under way.
const WINDOWS: usize = 2;
/// Pieces between a connection and its writer: one being written, one to go on with.
const PIECES: usize = 2;
/// Most bytes of small stretches of one URL that are asked for at once: they are held whole.
const MANY: u64 = 2 * 1024 * 1024;
/// Shortest window to fall back to where an answer was too long: some 8,000 terms, if each is one small chunk.
const LEAST_WINDOW: u64 = 64 * 1024 * 1024;
/// Bytes of consecutive chunks that are written in one go: a write of one chunk costs the kernel twice as much by the byte.
const RUN: usize = 512 * 1024;

/// Chunk hashes and lengths.
type Hashes = Vec<(Hash, u32)>;

impl Engine {
    /// Writes the file, which is `len` bytes long, to `place` and verifies it.
    pub(super) async fn place(self: &Arc<Self>, file: &Hash, len: u64, place: Arc<dyn Place>) -> Result<(), Error> {
        let (writers, sink) = (TaskTracker::new(), Arc::new(Sink::new(place)));
        let done = self.place_all(file, len, &sink, &writers).await;
        // Those of connections that an error elsewhere has stopped, too: behind our back nothing is written.
        writers.close();
        writers.wait().await;
        done
    }

    async fn place_all(
        self: &Arc<Self>,
        file: &Hash,
        len: u64,
        sink: &Arc<Sink>,
        writers: &TaskTracker,
    ) -> Result<(), Error> {
        let reserving = Arc::clone(sink);
        let reserved = writers.spawn_blocking(move || reserving.place.reserve(len)).await;
        reserved.map_err(io::Error::from)??;
        let mut sum = Sum::new(self.options.known.is_some());
        let engine = self;
        let windows = Arc::new(Semaphore::new(WINDOWS));
        let jobs = jobs(Arc::clone(self), *file, len, windows);
        let run = |job: Result<Job, Error>| async move { job?.run(engine, sink, writers).await };
        let mut done = jobs.map(run).buffer_unordered(self.options.connections.max(1));
        let mut open = VecDeque::<Pending>::new();
        let mut next = 0;
        while let Some(finished) = done.next().await {
            let Finished { window, hashes } = finished?;
            while open.len() <= window.number - next {
                open.push_back(Pending::default());
            }
            open[window.number - next].add(window, hashes);
            while let Some(window) = open.front_mut().and_then(Pending::complete) {
                window.sum(&mut sum);
                open.pop_front();
                next += 1;
            }
        }
        sum.finish(self, file, len)
    }
}

/// The chunks of a file in order.
struct Sum {
    tree: Tree,
    len: u64,
    /// All of them, while they are few enough to be remembered.
    list: Option<Hashes>,
}

impl Sum {
    fn new(listed: bool) -> Self {
        Self { tree: Tree::new(), len: 0, list: listed.then(Vec::new) }
    }

    fn push(&mut self, hash: Hash, len: u32) {
        self.tree.push(hash, u64::from(len));
        self.len += u64::from(len);
        match &mut self.list {
            Some(list) if list.len() < MAX_LIST => list.push((hash, len)),
            list => *list = None,
        }
    }

    fn finish(self, engine: &Engine, file: &Hash, len: u64) -> Result<(), Error> {
        if self.len != len || self.tree.into_file_hash() != *file {
            return Err(Error::HashMismatch { what: "file", expected: *file });
        }
        if let Some((known, list)) = engine.options.known.as_ref().zip(self.list) {
            // It was verified just now.
            let _ = known.note_file(file, list);
        }
        Ok(())
    }
}

/// A window whose parts have come, or some of them.
#[derive(Default)]
struct Pending {
    window: Option<Arc<Window>>,
    hashes: Vec<Hashes>,
    left: usize,
}

impl Pending {
    fn add(&mut self, window: Arc<Window>, hashes: Vec<(usize, Hashes)>) {
        if self.window.is_none() {
            self.left = window.plan.fetches.len();
            self.hashes = vec![Vec::new(); self.left];
        }
        self.left -= hashes.len();
        hashes.into_iter().for_each(|(fetch, hashes)| self.hashes[fetch] = hashes);
        self.window = Some(window);
    }

    fn complete(&mut self) -> Option<Whole> {
        let window = self.window.take_if(|_| self.left == 0)?;
        Some(Whole { window, hashes: std::mem::take(&mut self.hashes) })
    }
}

/// A window all of whose parts have come.
struct Whole {
    window: Arc<Window>,
    hashes: Vec<Hashes>,
}

impl Whole {
    fn sum(&self, sum: &mut Sum) {
        let plan = &self.window.plan;
        for (term, &fetch) in plan.terms.iter().zip(&plan.fetch_of) {
            let first = plan.fetches[fetch].chunks.start;
            for chunk in term.chunks.clone() {
                let (hash, len) = self.hashes[fetch][(chunk - first) as usize];
                sum.push(hash, len);
            }
        }
    }
}

/// Part of a file whose plan is in memory.
struct Window {
    number: usize,
    /// Where all is; its URLs may be out of date.
    plan: Arc<Layout>,
    /// For each fetch, the terms that use it, ascending by first chunk.
    spots: Vec<Vec<Spot>>,
    /// The same with the latest URLs. Held over the question for newer ones: so only one asks.
    latest: Mutex<Arc<Layout>>,
    _permit: OwnedSemaphorePermit,
}

impl Window {
    fn new(number: usize, plan: Layout, permit: OwnedSemaphorePermit) -> Self {
        let mut spots: Vec<Vec<Spot>> = plan.fetches.iter().map(|_| Vec::new()).collect();
        for (i, (term, &fetch)) in plan.terms.iter().zip(&plan.fetch_of).enumerate() {
            let (offset, len) = (plan.offset_of(i), u64::from(term.raw_len));
            spots[fetch].push(Spot { chunks: term.chunks.clone(), offset, len });
        }
        spots.iter_mut().for_each(|spots| spots.sort_by_key(|spot| spot.chunks.start));
        let plan = Arc::new(plan);
        let latest = Mutex::new(Arc::clone(&plan));
        Self { number, plan, spots, latest, _permit: permit }
    }

    /// Newer URLs than those of `old`.
    async fn renewed(&self, engine: &Engine, old: &Arc<Layout>) -> Result<Arc<Layout>, Error> {
        let mut latest = self.latest.lock().await;
        if Arc::ptr_eq(&latest, old) {
            let new = engine.answers.ask_unkept(&old.file, old.asked.clone()).await?;
            if !new.is_same(old) {
                return Err(Error::Network("the store has moved the file's data meanwhile".to_owned()));
            }
            *latest = Arc::new(new);
        }
        Ok(Arc::clone(&latest))
    }
}

/// Where the chunks of a term belong.
struct Spot {
    chunks: Range<u32>,
    offset: u64,
    len: u64,
}

/// All that is to be fetched, in file order. A window is asked for when everything of the one before has been begun.
fn jobs(engine: Arc<Engine>, file: Hash, len: u64, windows: Arc<Semaphore>) -> BoxStream<'static, Result<Job, Error>> {
    let step = engine.options.plan.max(1);
    let plan = move |(number, at, step): (usize, u64, u64)| {
        let (engine, windows) = (Arc::clone(&engine), Arc::clone(&windows));
        async move {
            if at >= len {
                return Ok(None);
            }
            let permit = windows.acquire_owned().await.expect("it is never closed");
            let (plan, step) = ask(&engine, &file, at..len, step).await?;
            let end = plan.covered().end;
            let window = Arc::new(Window::new(number, plan, permit));
            let job = |fetches| Ok(Job { window: Arc::clone(&window), fetches });
            let jobs: Vec<_> = window.plan.groups(MANY, |_| true).into_iter().map(job).collect();
            Ok::<_, Error>(Some((stream::iter(jobs), (number + 1, end, step))))
        }
    };
    stream::try_unfold((0, 0, step), plan).try_flatten().boxed()
}

/// The plan of a window at the front of `rest`, and how long the next one should be: an answer that is too long is asked for in halves.
async fn ask(engine: &Engine, file: &Hash, rest: Range<u64>, mut step: u64) -> Result<(Layout, u64), Error> {
    loop {
        let question = rest.start..rest.start.saturating_add(step).min(rest.end);
        match engine.answers.ask_unkept(file, question).await {
            Ok(plan) => {
                let covered = plan.covered();
                // Windows meet where chunks do, and the last ends with the file.
                if covered.start != rest.start || covered.end > rest.end {
                    return Err(Error::HashMismatch { what: "file", expected: *file });
                }
                return Ok((plan, step));
            }
            Err(Error::Malformed { what: "reconstruction", .. }) if step > LEAST_WINDOW => step /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Some stretches of a window, fetched by one connection.
struct Job {
    window: Arc<Window>,
    fetches: Vec<usize>,
}

/// A job done.
struct Finished {
    window: Arc<Window>,
    /// Of all chunks of each stretch.
    hashes: Vec<(usize, Hashes)>,
}

impl Job {
    async fn run(self, engine: &Engine, sink: &Arc<Sink>, writers: &TaskTracker) -> Result<Finished, Error> {
        let mut latest = Arc::clone(&*self.window.latest.lock().await);
        if latest.is_stale() {
            latest = self.window.renewed(engine, &latest).await?;
        }
        let hashes = match self.transfer(engine, &latest, sink, writers).await {
            // What was written already is written again.
            Err(Error::Forbidden(_)) => {
                latest = self.window.renewed(engine, &latest).await?;
                self.transfer(engine, &latest, sink, writers).await?
            }
            done => done?,
        };
        Ok(Finished { window: self.window, hashes })
    }

    async fn transfer(
        &self,
        engine: &Engine,
        latest: &Layout,
        sink: &Arc<Sink>,
        writers: &TaskTracker,
    ) -> Result<Vec<(usize, Hashes)>, Error> {
        let (pieces, written) = mpsc::channel(PIECES);
        let writer = {
            let (window, fetches, sink) = (Arc::clone(&self.window), self.fetches.clone(), Arc::clone(sink));
            writers.spawn_blocking(move || write(&window, &fetches, written, &sink))
        };
        let fed = self.feed(engine, latest, pieces).await;
        // It ends when its pieces do, whatever the reason.
        let written = writer.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Error::Network("the download was cut short: the process is shutting down".to_owned())),
        });
        fed.and(written)
    }

    /// Hands on what comes, until all has or the writer has stopped.
    async fn feed(&self, engine: &Engine, latest: &Layout, pieces: mpsc::Sender<Bytes>) -> Result<(), Error> {
        let fetch = &latest.fetches[self.fetches[0]];
        if self.fetches.len() == 1 {
            let mut data = engine.cas.fetch(&fetch.url, fetch.bytes.clone());
            while let Some(piece) = data.next().await {
                if pieces.send(piece?).await.is_err() {
                    break;
                }
            }
            return Ok(());
        }
        let ranges: Vec<_> = self.fetches.iter().map(|&i| latest.fetches[i].bytes.clone()).collect();
        for body in engine.cas.fetch_many(&fetch.url, &ranges).await? {
            if pieces.send(body).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The writer of a job. Blocks.
fn write(
    window: &Window,
    fetches: &[usize],
    mut pieces: mpsc::Receiver<Bytes>,
    sink: &Sink,
) -> Result<Vec<(usize, Hashes)>, Error> {
    let mut run = Vec::with_capacity(RUN + MAX_CHUNK);
    let mut all = Vec::with_capacity(fetches.len());
    for &fetch in fetches {
        let stretch = &window.plan.fetches[fetch];
        let mut left = stored_len(stretch);
        let mut decoder = Decoder::new(stretch.chunks.clone());
        let mut writer = Writer::new(&window.spots[fetch], stretch.chunks.len(), run);
        while left > 0 {
            let Some(piece) = pieces.blocking_recv() else { return Err(bad_data("it ends too early")) };
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| bad_data("it is longer than asked for"))?;
            decoder.push(piece, |chunk| writer.put(&chunk, sink))?;
        }
        decoder.finish()?;
        let hashes;
        (hashes, run) = writer.finish(sink)?;
        all.push((fetch, hashes));
    }
    Ok(all)
}

/// Writes the chunks of a stretch to all their places, some at a time.
struct Writer<'a> {
    /// Terms that no chunk has come for.
    spots: slice::Iter<'a, Spot>,
    /// The others, but for those that are written.
    open: Vec<Open<'a>>,
    /// Consecutive chunks that are not written yet.
    run: Vec<u8>,
    hashes: Hashes,
}

/// A term of which chunks have come.
struct Open<'a> {
    spot: &'a Spot,
    /// Where the run goes, as far as it belongs here.
    offset: u64,
    part: Range<usize>,
}

impl<'a> Writer<'a> {
    /// `spots` ascend by first chunk; `run` is empty.
    fn new(spots: &'a [Spot], chunks: usize, run: Vec<u8>) -> Self {
        Self { spots: spots.iter(), open: Vec::new(), run, hashes: Vec::with_capacity(chunks) }
    }

    fn put(&mut self, chunk: &StoredChunk, sink: &Sink) -> Result<(), Error> {
        let (index, start) = (chunk.index, self.run.len());
        chunk.raw_to(&mut self.run)?;
        let end = self.run.len();
        // A chunk's length.
        self.hashes.push((chunk_hash(&self.run[start..]), (end - start) as u32));
        while let Some(spot) = self.spots.as_slice().first().filter(|spot| spot.chunks.start == index) {
            self.open.push(Open { spot, offset: spot.offset, part: start..start });
            self.spots.next();
        }
        for open in self.open.iter_mut().filter(|open| open.spot.chunks.end > index) {
            open.part.end = end;
            let spot = open.spot;
            let reached = open.offset + (end - open.part.start) as u64;
            let last = index + 1 == spot.chunks.end;
            // Checked before it is written: it must not run over what another term has there.
            if reached > spot.offset + spot.len || last != (reached == spot.offset + spot.len) {
                return Err(bad_data("a term is not as long as announced"));
            }
        }
        if end >= RUN { self.flush(index + 1, sink) } else { Ok(()) }
    }

    /// Writes the run; `next` is the chunk behind it.
    fn flush(&mut self, next: u32, sink: &Sink) -> Result<(), Error> {
        for Open { offset, part, .. } in &mut self.open {
            sink.write(*offset, &self.run[part.clone()])?;
            *offset += part.len() as u64;
            *part = 0..0;
        }
        self.open.retain(|open| open.spot.chunks.end > next);
        self.run.clear();
        Ok(())
    }

    /// The hashes, and the memory of the run.
    fn finish(mut self, sink: &Sink) -> Result<(Hashes, Vec<u8>), Error> {
        self.flush(u32::MAX, sink)?;
        Ok((self.hashes, self.run))
    }
}

/// Where the writers of a download write, in turn.
struct Sink {
    place: Arc<dyn Place>,
    turn: std::sync::Mutex<()>,
}

impl Sink {
    fn new(place: Arc<dyn Place>) -> Self {
        Self { place, turn: std::sync::Mutex::new(()) }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // It guards no data: who panicked left nothing half done here.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.write_at(offset, bytes)
    }
}

fn bad_data(why: &str) -> Error {
    Error::Malformed { what: "xorb data", why: why.to_owned() }
}
