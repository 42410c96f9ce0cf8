//! Whole files, verified, in whatever order their bytes arrive.
//!
//! A few connections at a time each bring one stretch of a xorb (or several small ones under one URL). What comes is
//! cut into chunks and copied to a buffer at once, so that the connection reads into the same memory again, which is in
//! the cache. A blocking thread per connection takes these runs of chunks through a small channel, hashes each chunk
//! once and writes the run to every place where the file has it. So memory is some MiB per connection, used over and
//! over, and the connection never waits but for the disk. Stretches that several terms use are fetched once per window.
//!
//! The file is asked for in windows, each beginning where the one before ended, so that a huge
//! file's plan and hashes are never in memory at once. Two windows at most are under way: chunk
//! hashes enter the Merkle tree in file order, and what came early waits for it. What is written is
//! only good when all of it was verified: until then, and after any error, the sink holds anything.
//!
//! Dropping the future stops the connections at once, and the writers behind the runs that they have.

use super::Engine;
use super::decoder::Decoder;
use super::layout::{Layout, stored_len};
use crate::cas::DataStream;
use crate::chunker::MAX_CHUNK;
use crate::compression::decompress;
use crate::hash::chunk_hash;
use crate::known::MAX_LIST;
use crate::merkle::Tree;
use crate::reconstruction::Fetch;
use crate::xorb::ChunkHeader;
use crate::{Error, Hash};
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

/// A destination that is written in any order. It is called from blocking threads, one at a time: of concurrent writers
/// of one file, the kernel lets one proceed, and the others spin.
pub trait Place: Send + Sync + 'static {
    /// Told before the first write that `len` bytes will be written, so that a full disk is known
    /// of before anything is fetched.
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
/// Runs between a connection and its writer, beside the one being gathered and the one being written.
const RUNS: usize = 1;
/// Most bytes of small stretches of one URL that are asked for at once: they are held whole.
const MANY: u64 = 2 * 1024 * 1024;
/// Shortest window to fall back to where an answer was too long: some 8,000 terms, if each is one small chunk.
const LEAST_WINDOW: u64 = 64 * 1024 * 1024;
/// Bytes of consecutive chunks that are handed over and written in one go: a write of one chunk
/// costs the kernel twice as much by the byte. No less than a connection gives at a time, and
/// little enough to be in a core's cache from the hash to the write.
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

/// The plan of a window at the front of `rest`, and how long the next one should be: an answer that
/// is too long is asked for in halves.
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
        let (runs, gathered) = mpsc::channel(RUNS);
        let writer = {
            let (window, fetches, sink) = (Arc::clone(&self.window), self.fetches.clone(), Arc::clone(sink));
            writers.spawn_blocking(move || write(&window, &fetches, gathered, &sink))
        };
        let fed = self.feed(engine, latest, sink, runs).await;
        // It ends when its runs do, whatever the reason.
        let written = writer.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Error::Network("the download was cut short: the process is shutting down".to_owned())),
        });
        fed.and(written)
    }

    /// Hands on what comes, until all has or the writer has stopped.
    async fn feed(
        &self,
        engine: &Engine,
        latest: &Layout,
        sink: &Arc<Sink>,
        runs: mpsc::Sender<Run>,
    ) -> Result<(), Error> {
        let url = &latest.fetches[self.fetches[0]].url;
        let ranges: Vec<_> = self.fetches.iter().map(|&i| latest.fetches[i].bytes.clone()).collect();
        if let [range] = &ranges[..] {
            let data = engine.cas.fetch(url, range.clone());
            return Gatherer::new(&self.window.plan.fetches[self.fetches[0]], sink).gather(data, &runs).await;
        }
        for (&fetch, body) in self.fetches.iter().zip(engine.cas.fetch_many(url, &ranges).await?) {
            let data = stream::iter([Ok(body)]).boxed();
            Gatherer::new(&self.window.plan.fetches[fetch], sink).gather(data, &runs).await?;
        }
        Ok(())
    }
}

/// Consecutive chunks.
struct Run {
    headers: Vec<ChunkHeader>,
    /// Their payloads, one behind the other.
    stored: Buffer,
}

/// Cuts a stretch into runs.
struct Gatherer<'a> {
    decoder: Decoder,
    /// Bytes of the stretch that have yet to come.
    left: u64,
    run: Run,
    sink: &'a Arc<Sink>,
}

impl<'a> Gatherer<'a> {
    fn new(stretch: &Fetch, sink: &'a Arc<Sink>) -> Self {
        Self { decoder: Decoder::new(stretch.chunks.clone()), left: stored_len(stretch), run: sink.run(), sink }
    }

    async fn gather(mut self, mut data: DataStream<'_>, runs: &mpsc::Sender<Run>) -> Result<(), Error> {
        while let Some(mut piece) = data.try_next().await? {
            let left = self.left.checked_sub(piece.len() as u64);
            self.left = left.ok_or_else(|| bad_data("it is longer than asked for"))?;
            while !piece.is_empty() {
                // A piece that isn't longer is gone when this waits: the connection may read into its memory.
                let full = self.push(piece.split_to(piece.len().min(RUN)))?;
                for run in full {
                    if runs.send(run).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if self.left > 0 {
            return Err(bad_data("it ends too early"));
        }
        self.decoder.finish()?;
        // That the writer has stopped is for it to say.
        let _ = runs.send(self.run).await;
        Ok(())
    }

    /// The runs that are full with these bytes.
    fn push(&mut self, piece: Bytes) -> Result<Vec<Run>, Error> {
        let mut full = Vec::new();
        self.decoder.push(piece, |chunk| {
            self.run.headers.push(chunk.header);
            self.run.stored.bytes.extend_from_slice(&chunk.payload);
            if self.run.stored.bytes.len() >= RUN {
                full.push(std::mem::replace(&mut self.run, self.sink.run()));
            }
            Ok(())
        })?;
        Ok(full)
    }
}

/// The writer of a job. Blocks.
fn write(
    window: &Window,
    fetches: &[usize],
    mut runs: mpsc::Receiver<Run>,
    sink: &Sink,
) -> Result<Vec<(usize, Hashes)>, Error> {
    let mut all = Vec::with_capacity(fetches.len());
    for &fetch in fetches {
        let chunks = window.plan.fetches[fetch].chunks.clone();
        let mut writer = Writer::new(&window.spots[fetch], chunks.clone());
        while writer.next < chunks.end {
            // If there are no more, who gathers says why.
            let Some(run) = runs.blocking_recv() else { return Err(bad_data("it ends too early")) };
            writer.put(&run, sink)?;
        }
        all.push((fetch, writer.hashes));
    }
    Ok(all)
}

/// Writes the chunks of a stretch to all their places, some at a time.
struct Writer<'a> {
    /// Terms that no chunk has come for.
    spots: slice::Iter<'a, Spot>,
    /// The others, but for those that are written.
    open: Vec<Open<'a>>,
    /// The next chunk.
    next: u32,
    hashes: Hashes,
    /// Of chunks that were compressed.
    raw: Vec<u8>,
}

/// A term of which chunks have come.
struct Open<'a> {
    spot: &'a Spot,
    /// Where it goes on in the file.
    offset: u64,
    /// What of the bytes to write next belongs here.
    part: Range<usize>,
}

impl<'a> Writer<'a> {
    /// `spots` ascend by first chunk.
    fn new(spots: &'a [Spot], chunks: Range<u32>) -> Self {
        let hashes = Vec::with_capacity(chunks.len());
        Self { spots: spots.iter(), open: Vec::new(), next: chunks.start, hashes, raw: Vec::new() }
    }

    fn put(&mut self, run: &Run, sink: &Sink) -> Result<(), Error> {
        let mut stored = &run.stored.bytes[..];
        if run.headers.iter().all(ChunkHeader::is_plain) {
            return self.put_raw(stored, &run.headers, sink);
        }
        let mut raw = std::mem::take(&mut self.raw);
        let mut first = 0;
        for (i, header) in run.headers.iter().enumerate() {
            let payload = stored.split_off(..header.stored_len as usize).expect("it was gathered with its header");
            decompress(header.scheme, payload, header.raw_len as usize, &mut raw)?;
            if raw.len() >= RUN || i + 1 == run.headers.len() {
                self.put_raw(&raw, &run.headers[first..=i], sink)?;
                raw.clear();
                first = i + 1;
            }
        }
        self.raw = raw;
        Ok(())
    }

    /// The next chunks, uncompressed and one behind the other.
    fn put_raw(&mut self, raw: &[u8], headers: &[ChunkHeader], sink: &Sink) -> Result<(), Error> {
        let mut start = 0;
        for header in headers {
            let end = start + header.raw_len as usize;
            self.hashes.push((chunk_hash(&raw[start..end]), header.raw_len));
            self.place(start..end)?;
            start = end;
        }
        for Open { offset, part, .. } in &mut self.open {
            sink.write(*offset, &raw[part.clone()])?;
            *offset += part.len() as u64;
            *part = 0..0;
        }
        self.open.retain(|open| open.spot.chunks.end > self.next);
        Ok(())
    }

    /// The next chunk, which lies there in the bytes to write next, belongs to all terms that have it.
    fn place(&mut self, chunk: Range<usize>) -> Result<(), Error> {
        let index = self.next;
        self.next += 1;
        while let Some(spot) = self.spots.as_slice().first().filter(|spot| spot.chunks.start == index) {
            self.open.push(Open { spot, offset: spot.offset, part: chunk.start..chunk.start });
            self.spots.next();
        }
        for open in self.open.iter_mut().filter(|open| open.spot.chunks.end > index) {
            open.part.end = chunk.end;
            let spot = open.spot;
            let reached = open.offset + open.part.len() as u64;
            let last = self.next == spot.chunks.end;
            // Checked before it is written: it must not run over what another term has there.
            if reached > spot.offset + spot.len || last != (reached == spot.offset + spot.len) {
                return Err(bad_data("a term is not as long as announced"));
            }
        }
        Ok(())
    }
}

/// Where the writers of a download write, in turn.
struct Sink {
    place: Arc<dyn Place>,
    turn: std::sync::Mutex<()>,
    /// Memory of runs that are written.
    spare: std::sync::Mutex<Vec<Vec<u8>>>,
}

impl Sink {
    fn new(place: Arc<dyn Place>) -> Self {
        Self { place, turn: std::sync::Mutex::default(), spare: std::sync::Mutex::default() }
    }

    /// An empty run.
    fn run(self: &Arc<Self>) -> Run {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(RUN + MAX_CHUNK));
        Run { headers: Vec::with_capacity(2 * RUN / MAX_CHUNK), stored: Buffer { bytes, home: Arc::clone(self) } }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // It guards no data: who panicked left nothing half done here.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.place.write_at(offset, bytes)
    }
}

/// Memory that is used again.
struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Sink>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.spare.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

fn bad_data(why: &str) -> Error {
    Error::Malformed { what: "xorb data", why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xorb::Builder;
    use crate::{Scheme, testdata};

    struct Nowhere;

    impl Place for Nowhere {
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn no_piece_is_held_while_the_next_is_waited_for_or_the_writer_is() {
        let mut builder = Builder::default();
        (0..20).for_each(|seed| {
            let raw = testdata::random(seed, MAX_CHUNK);
            builder.push(chunk_hash(&raw), &raw, Scheme::None);
        });
        let body = builder.finish().0;
        let stretch = Fetch { xorb: Hash::ZERO, url: "".into(), bytes: 0..body.len() as u64, chunks: 0..20 };
        let sink = Arc::new(Sink::new(Arc::new(Nowhere)));
        // Pieces that are not shared but by who holds on to them.
        let held = Arc::new(());
        let pieces: Vec<_> = body.chunks(100_000).map(<[u8]>::to_vec).collect();
        struct Piece(Vec<u8>, #[expect(dead_code, reason = "counts")] Arc<()>);
        impl AsRef<[u8]> for Piece {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let counted = Arc::clone(&held);
        let data = stream::iter(pieces).map(move |piece| {
            assert_eq!(Arc::strong_count(&counted), 2, "a piece is held");
            Ok(Bytes::from_owner(Piece(piece, Arc::clone(&counted))))
        });
        let (runs, mut gathered) = mpsc::channel::<Run>(RUNS);
        let taking = async {
            let (mut chunks, mut stored) = (0, 0);
            while let Some(run) = gathered.recv().await {
                assert!(Arc::strong_count(&held) <= 2, "a piece is held");
                (chunks, stored) = (chunks + run.headers.len(), stored + run.stored.bytes.len());
            }
            (chunks, stored)
        };
        let gatherer = Gatherer::new(&stretch, &sink);
        let gathering = async move { gatherer.gather(data.boxed(), &runs).await };
        let (done, taken) = futures::join!(gathering, taking);
        done.unwrap();
        assert_eq!(taken, (20, 20 * MAX_CHUNK));
        // One gathered, one between, one written: used over and over.
        assert!(sink.spare.lock().unwrap().len() <= RUNS + 2);
    }
}
