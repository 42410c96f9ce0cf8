//! One window of a file, in memory: ask where it is, take what the chunk cache has, fetch the rest,
//! each stretch once, decode what is needed.
//!
//! Bytes are cut into chunks as they arrive, and a connection is drained whatever the reader does: a window is as much
//! memory as was set aside for it. Where the file's chunks are known, or else those of a xorb that it is made of, every
//! chunk is held against its hash at its place; what fails is fetched once more before it is an error. What was fetched
//! goes to the chunk cache behind the reader's back, within a bound.
//!
//! A list of a xorb that is proven also tells which of its chunks are needed. One that was told
//! doesn't: it can refuse a chunk, and place none.

use super::Engine;
use super::chunks::Cached;
use super::decoder::{Decoder, StoredChunk};
use super::layout::Layout;
use crate::hash::chunk_hash;
use crate::known::{ChunkList, Excerpt};
use crate::offload::offload;
use crate::reconstruction::{Fetch, Term};
use crate::{Error, Hash};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Most bytes of small stretches under one URL that are asked for at once: they are held whole before they are decoded.
const MANY: u64 = 4 * 1024 * 1024;
/// Bytes beyond those read that are taken from the chunk cache rather than asking the CAS for a closer answer.
const MOST_READ: u64 = 2 * 1024 * 1024;

/// A chunk of a file.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// File offset of its first byte.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
    pub(super) hash: Option<Hash>,
}

impl Chunk {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// How a window is to be read.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    /// What to ask the CAS for; contains the window.
    pub(super) question: Range<u64>,
    /// Bytes beyond the window's own that may be fetched to save a question.
    pub(super) slack: u64,
    /// With chunk hashes.
    pub(super) hashed: bool,
    /// Whether what was fetched goes to the chunk cache.
    pub(super) kept: bool,
}

impl Engine {
    /// The chunks that cover `range`, which is not empty, in order.
    pub(super) async fn window(
        self: &Arc<Self>,
        file: &Hash,
        range: &Range<u64>,
        manner: &Manner,
    ) -> Result<Vec<Chunk>, Error> {
        let known = match &self.options.known {
            Some(known) => known.file(file).await,
            None => None,
        };
        let job = Job { engine: self, range, manner, known: known.as_ref() };
        // It may be the answer that is wrong, down to the host of a URL: none is believed again
        // that nothing could be read by.
        let done = job.run(file, true).await.inspect_err(|_| self.answers.forget(file));
        let done = match (done, &self.options.known) {
            (Err(error), Some(_)) if is_damage(&error) => {
                tracing::debug!(%error, "damaged data, fetching it again");
                job.run(file, false).await.inspect_err(|_| self.answers.forget(file))
            }
            (done, _) => done,
        };
        if let (Err(Error::HashMismatch { what: "xorb", expected }), Some(known)) = (&done, &self.options.known) {
            known.forget_told(expected).await;
        }
        done
    }
}

/// Whether what came is not what was stored, or not what is known of it.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::HashMismatch { what, .. } => ["chunk", "xorb"].contains(what),
        Error::Malformed { what, .. } => ["xorb data", "xorb", "compressed chunk"].contains(what),
        _ => false,
    }
}

/// One try at a window.
struct Job<'a> {
    engine: &'a Arc<Engine>,
    range: &'a Range<u64>,
    manner: &'a Manner,
    /// The file's chunks.
    known: Option<&'a Arc<ChunkList>>,
}

impl Job<'_> {
    async fn run(&self, file: &Hash, cached: bool) -> Result<Vec<Chunk>, Error> {
        if let Some(chunks) = self.take_cached(file, cached).await? {
            return Ok(chunks);
        }
        let Manner { question, slack, .. } = self.manner;
        let mut layout = self.engine.answers.find(file, self.range, *slack, question.clone()).await?;
        let mut needs = self.needs(&layout, cached).await?;
        let mut stretches = Stretches::new(&layout);
        let mut denied = false;
        let mut is_usable = needs.iter().all(|need| need.cached.is_some()) || !layout.is_stale();
        loop {
            if !is_usable {
                let renewed = self.engine.answers.renewed(&layout).await?;
                if !renewed.is_same(&layout) {
                    if !renewed.covers(self.range) {
                        return Err(super::layout::malformed("two answers contradict each other"));
                    }
                    needs = self.needs(&renewed, cached).await?;
                    stretches = Stretches::new(&renewed);
                }
                layout = renewed;
            }
            match self.fetch_missing(&layout, &needs, &mut stretches).await? {
                None => break,
                Some(error) if denied => return Err(error),
                Some(_) => (denied, is_usable) = (true, false),
            }
        }
        self.finish(layout, needs, stretches).await
    }

    /// The window without a question nor a fetch, if a kept answer says what is needed and the cache has all of it.
    async fn take_cached(&self, file: &Hash, cached: bool) -> Result<Option<Vec<Chunk>>, Error> {
        if !cached || self.engine.options.chunks.is_none() {
            return Ok(None);
        }
        let Some(layout) = self.engine.answers.kept(file, self.range) else { return Ok(None) };
        let needs = self.unfilled(&layout).await?;
        let len = needs.iter().map(|need| need.len).fold(0, u64::saturating_add);
        // Where chunk lengths are unknown, a term may be far longer than what is read of it.
        if len > (self.range.end - self.range.start).saturating_add(MOST_READ) {
            return Ok(None);
        }
        let needs = self.look_up(&layout, needs).await;
        if needs.iter().any(|need| need.cached.is_none()) {
            return Ok(None);
        }
        self.engine.options.plan_lookups.count(true);
        let stretches = Stretches::new(&layout);
        self.finish(layout, needs, stretches).await.map(Some)
    }

    /// What of each term is needed.
    async fn unfilled(&self, layout: &Layout) -> Result<Vec<Need>, Error> {
        let mut needs = Vec::new();
        for index in layout.terms_in(self.range) {
            let listed = self.listed(&layout.terms[index]).await;
            needs.push(Need::of(layout, index, self.range, self.known.map(Arc::as_ref), listed)?);
        }
        Ok(needs)
    }

    /// Returns the known chunks of a term, for a file whose chunks aren't known. Only the part of a
    /// list that the term uses is kept, because a hostile answer may name many xorbs.
    async fn listed(&self, term: &Term) -> Option<Excerpt> {
        match (self.known, &self.engine.options.known) {
            // Where its reader proves the file, nothing that was only told stands against that.
            (None, Some(known)) => known.excerpt(&term.xorb, &term.chunks, !self.manner.hashed).await,
            _ => None,
        }
    }

    /// Adds what the cache has.
    async fn look_up(&self, layout: &Layout, mut needs: Vec<Need>) -> Vec<Need> {
        if let Some(chunks) = &self.engine.options.chunks {
            for need in &mut needs {
                let found = chunks.chunks(&layout.terms[need.term].xorb, need.chunks.clone()).await;
                need.cached = found.filter(|found| need.fits(found));
            }
        }
        needs
    }

    /// What of each term is needed, with what the cache has of it.
    async fn needs(&self, layout: &Layout, cached: bool) -> Result<Vec<Need>, Error> {
        let needs = self.unfilled(layout).await?;
        if cached { Ok(self.look_up(layout, needs).await) } else { Ok(needs) }
    }

    /// Fetches what is needed and isn't there. Gives the error of those that were denied, which is
    /// how an expired URL shows.
    async fn fetch_missing(
        &self,
        layout: &Layout,
        needs: &[Need],
        stretches: &mut Stretches,
    ) -> Result<Option<Error>, Error> {
        let missing = missing(layout, needs, stretches, self.keeps());
        let groups = layout.groups(MANY, |fetch| missing.contains_key(&fetch));
        let mut running: FuturesUnordered<_> =
            groups.into_iter().map(|group| self.fetch_group(layout, group, &missing)).collect();
        let mut denied = None;
        while let Some((group, fetched)) = running.next().await {
            match fetched {
                Ok(fetched) => {
                    for (i, stretch) in group.into_iter().zip(fetched) {
                        layout.learn(i, &stretch.ends);
                        stretches.0[i] = Some(stretch);
                    }
                }
                Err(error @ Error::Forbidden(_)) => denied = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(denied)
    }

    async fn fetch_group(
        &self,
        layout: &Layout,
        group: Vec<usize>,
        missing: &BTreeMap<usize, Range<u32>>,
    ) -> (Vec<usize>, Result<Vec<Stretch>, Error>) {
        let fetched = match group[..] {
            [one] => self.fetch_one(&layout.fetches[one], missing[&one].clone()).await.map(|stretch| vec![stretch]),
            _ => self.fetch_many(layout, &group, missing).await,
        };
        (group, fetched)
    }

    async fn fetch_one(&self, fetch: &Fetch, kept: Range<u32>) -> Result<Stretch, Error> {
        let mut stretch = Stretch::new(fetch, kept);
        let mut decoder = Decoder::new(fetch.chunks.clone());
        let mut data = self.engine.cas.fetch(&fetch.url, fetch.bytes.clone());
        while let Some(piece) = data.next().await {
            decoder.push(piece?, |chunk| stretch.push(chunk))?;
        }
        decoder.finish().map(|()| stretch)
    }

    async fn fetch_many(
        &self,
        layout: &Layout,
        group: &[usize],
        missing: &BTreeMap<usize, Range<u32>>,
    ) -> Result<Vec<Stretch>, Error> {
        let ranges: Vec<_> = group.iter().map(|&i| layout.fetches[i].bytes.clone()).collect();
        let bodies = self.engine.cas.fetch_many(&layout.fetches[group[0]].url, &ranges).await?;
        let stretch = |(&i, body): (&usize, Bytes)| {
            let fetch = &layout.fetches[i];
            let mut stretch = Stretch::new(fetch, missing[&i].clone());
            let mut decoder = Decoder::new(fetch.chunks.clone());
            decoder.push(body, |chunk| stretch.push(chunk))?;
            decoder.finish().map(|()| stretch)
        };
        group.iter().zip(bodies).map(stretch).collect()
    }

    /// Decodes, checks, hands what is new to the cache.
    async fn finish(&self, layout: Arc<Layout>, needs: Vec<Need>, stretches: Stretches) -> Result<Vec<Chunk>, Error> {
        let work = Assembly {
            layout,
            range: self.range.clone(),
            hashed: self.manner.hashed,
            known: self.known.cloned(),
            stretches,
        };
        let checked = work.known.is_some() || needs.iter().any(|need| need.listed.is_some());
        let heavy = work.hashed || checked || work.stretches.is_compressed();
        let bytes = if heavy { (self.range.end - self.range.start) as usize } else { 0 };
        let (chunks, stretches) = offload(bytes, move || work.run(needs)).await?;
        if self.keeps() {
            self.engine.keep(stretches);
        }
        Ok(chunks)
    }

    /// Whether all that is fetched is of use.
    fn keeps(&self) -> bool {
        self.manner.kept && self.engine.options.chunks.is_some()
    }
}

/// What is needed of one term.
struct Need {
    term: usize,
    /// In the xorb: those in the range where chunk lengths are known, else all of the term's.
    chunks: Range<u32>,
    /// File offset of the first of them.
    offset: u64,
    /// Bytes of them.
    len: u64,
    /// What is known of the term's chunks, where the file's aren't.
    listed: Option<Excerpt>,
    cached: Option<Vec<Cached>>,
}

impl Need {
    fn of(
        layout: &Layout,
        index: usize,
        range: &Range<u64>,
        known: Option<&ChunkList>,
        listed: Option<Excerpt>,
    ) -> Result<Self, Error> {
        let (term, offset) = (&layout.terms[index], layout.offset_of(index));
        let len = u64::from(term.raw_len);
        let wanted = range.start.max(offset)..range.end.min(offset + len);
        if let Some(list) = listed.as_ref().filter(|list| !list.measures(term.chunks.len(), len)) {
            return Err(list.contradiction());
        }
        let proven = listed.as_ref().filter(|list| list.is_proven());
        let proven = proven.and_then(|list| list.around(&(wanted.start - offset..wanted.end - offset)));
        let (chunks, bytes) = match (known, proven, layout.edges(index)) {
            (Some(known), ..) => {
                let contradiction = || Error::HashMismatch { what: "file", expected: layout.file };
                let base = known.starting_at(offset).ok_or_else(contradiction)?;
                if known.start(base + term.chunks.len()) != Some(offset + len) {
                    return Err(contradiction());
                }
                // Both lie in the term, which has as many chunks as `base` and its end are apart.
                let (first, last) = (known.containing(wanted.start), known.containing(wanted.end - 1));
                let start = known.start(first).ok_or_else(contradiction)?;
                let end = known.start(last + 1).ok_or_else(contradiction)?;
                ((first - base) as u32..(last + 1 - base) as u32, start..end)
            }
            (None, Some((chunks, bytes)), _) => {
                let first = term.chunks.start;
                (chunks.start - first..chunks.end - first, offset + bytes.start..offset + bytes.end)
            }
            // From other data than the answer: they need not agree.
            (None, None, Some(edges)) if edges.last() == Some(&(offset + len)) => {
                let first = edges.partition_point(|&edge| edge <= wanted.start) - 1;
                let behind = edges.partition_point(|&edge| edge < wanted.end);
                (first as u32..behind as u32, edges[first]..edges[behind])
            }
            (None, None, _) => (0..term.chunks.len() as u32, offset..offset + len),
        };
        let chunks = term.chunks.start + chunks.start..term.chunks.start + chunks.end;
        Ok(Self { term: index, chunks, offset: bytes.start, len: bytes.end - bytes.start, listed, cached: None })
    }

    /// Whether these are as many chunks and bytes as are needed.
    fn fits(&self, found: &[Cached]) -> bool {
        let len: u64 = found.iter().map(|chunk| chunk.bytes.len() as u64).sum();
        found.len() == self.chunks.len() && len == self.len
    }
}

/// Which fetches are missing, and which of their chunks are of use.
fn missing(layout: &Layout, needs: &[Need], stretches: &Stretches, all: bool) -> BTreeMap<usize, Range<u32>> {
    let mut missing = BTreeMap::<usize, Range<u32>>::new();
    for need in needs.iter().filter(|need| need.cached.is_none()) {
        let fetch = layout.fetch_of[need.term];
        if stretches.0[fetch].is_none() {
            let wanted = if all { &layout.fetches[fetch].chunks } else { &need.chunks };
            let hull = missing.entry(fetch).or_insert_with(|| wanted.clone());
            *hull = hull.start.min(wanted.start)..hull.end.max(wanted.end);
        }
    }
    missing
}

/// What was fetched, by fetch.
struct Stretches(Vec<Option<Stretch>>);

impl Stretches {
    fn new(layout: &Layout) -> Self {
        Self(layout.fetches.iter().map(|_| None).collect())
    }

    fn is_compressed(&self) -> bool {
        self.0.iter().flatten().flat_map(|stretch| &stretch.chunks).any(|slot| match slot {
            Slot::Stored(chunk) => chunk.payload.len() != chunk.raw_len() as usize,
            Slot::Open(..) => false,
        })
    }
}

/// A fetched stretch of a xorb.
struct Stretch {
    xorb: Hash,
    /// Index of its first chunk in the xorb.
    first: u32,
    /// Where each of its chunks ends, in uncompressed bytes.
    ends: Vec<u32>,
    /// Chunks that are of use.
    kept: Range<u32>,
    chunks: Vec<Slot>,
}

/// A chunk, before and after it was opened.
enum Slot {
    Stored(StoredChunk),
    Open(Bytes, Option<Hash>),
}

impl Slot {
    fn open(&mut self, hashed: bool) -> Result<(Bytes, Option<Hash>), Error> {
        if let Self::Stored(chunk) = self {
            let raw = chunk.clone().into_raw()?;
            *self = Self::Open(raw, None);
        }
        let Self::Open(raw, hash) = self else { unreachable!("it was just opened") };
        if hashed && hash.is_none() {
            *hash = Some(chunk_hash(raw));
        }
        Ok((raw.clone(), *hash))
    }
}

impl Stretch {
    fn new(fetch: &Fetch, kept: Range<u32>) -> Self {
        Self { xorb: fetch.xorb, first: fetch.chunks.start, ends: Vec::new(), kept, chunks: Vec::new() }
    }

    fn push(&mut self, chunk: StoredChunk) -> Result<(), Error> {
        // At most 8192 chunks of 128 KiB.
        self.ends.push(self.ends.last().unwrap_or(&0) + chunk.raw_len());
        if self.kept.contains(&chunk.index) {
            self.chunks.push(Slot::Stored(chunk));
        }
        Ok(())
    }

    /// Where a chunk starts, in uncompressed bytes from the start of the stretch.
    fn start(&self, chunk: u32) -> u32 {
        (chunk - self.first).checked_sub(1).map_or(0, |before| self.ends[before as usize])
    }
}

/// What turns stretches into chunks of the file.
struct Assembly {
    layout: Arc<Layout>,
    range: Range<u64>,
    hashed: bool,
    known: Option<Arc<ChunkList>>,
    stretches: Stretches,
}

impl Assembly {
    fn run(mut self, needs: Vec<Need>) -> Result<(Vec<Chunk>, Stretches), Error> {
        let mut chunks = Vec::new();
        for mut need in needs {
            match need.cached.take() {
                Some(cached) => self.take_cached(&need, cached, &mut chunks)?,
                None => self.take_fetched(&need, &mut chunks)?,
            }
        }
        if !self.is_covered(&chunks) {
            return Err(bad_data("its chunks are not where they were before"));
        }
        Ok((chunks, self.stretches))
    }

    /// Returns true if the chunks cover the range. They don't if they were chosen by lengths from an
    /// earlier read that were wrong.
    fn is_covered(&self, chunks: &[Chunk]) -> bool {
        let covered =
            chunks.iter().try_fold(self.range.start, |at, chunk| (chunk.offset <= at).then(|| chunk.end().max(at)));
        covered.is_some_and(|end| end >= self.range.end)
    }

    fn take_cached(&self, need: &Need, cached: Vec<Cached>, chunks: &mut Vec<Chunk>) -> Result<(), Error> {
        let mut offset = need.offset;
        // As many as are needed.
        for (index, Cached { hash, bytes }) in need.chunks.clone().zip(cached) {
            let chunk = Chunk { offset, bytes, hash: Some(hash) };
            offset = chunk.end();
            self.check_place(need, index, chunk.offset..chunk.end())?;
            if overlap(&(chunk.offset..chunk.end()), &self.range) {
                self.check_hash(need, index, &chunk)?;
                chunks.push(chunk);
            }
        }
        Ok(())
    }

    fn take_fetched(&mut self, need: &Need, chunks: &mut Vec<Chunk>) -> Result<(), Error> {
        let term = &self.layout.terms[need.term];
        let stretch =
            self.stretches.0[self.layout.fetch_of[need.term]].as_mut().expect("all that is needed was fetched");
        if stretch.start(term.chunks.end) - stretch.start(term.chunks.start) != term.raw_len {
            return Err(bad_data("a term is not as long as announced"));
        }
        let term_start = stretch.start(term.chunks.start);
        let base = self.layout.offset_of(need.term);
        let hashed = self.hashed || self.known.is_some() || need.listed.is_some();
        let mut found = Vec::new();
        for index in need.chunks.clone() {
            let at = |chunk: u32| base + u64::from(stretch.start(chunk) - term_start);
            let place = at(index)..at(index + 1);
            let bytes = match overlap(&place, &self.range) {
                true => Some(stretch.chunks[(index - stretch.kept.start) as usize].open(hashed)?),
                false => None,
            };
            found.push((index, place, bytes));
        }
        for (index, place, opened) in found {
            self.check_place(need, index, place.clone())?;
            if let Some((bytes, hash)) = opened {
                let chunk = Chunk { offset: place.start, bytes, hash };
                self.check_hash(need, index, &chunk)?;
                chunks.push(chunk);
            }
        }
        Ok(())
    }

    /// Checks the position of a chunk, as far as that is known. Chunks that aren't read are checked too,
    /// because a wrong length moves all chunks after it.
    fn check_place(&self, need: &Need, index: u32, place: Range<u64>) -> Result<(), Error> {
        if let Some(known) = &self.known {
            let end = known.starting_at(place.start).and_then(|index| known.start(index + 1));
            if end != Some(place.end) {
                return Err(Error::HashMismatch { what: "chunk", expected: self.layout.file });
            }
        }
        if let Some(list) = &need.listed {
            let term = self.layout.offset_of(need.term);
            if !list.lies_at(index, &(place.start - term..place.end - term)) {
                return Err(list.mismatch(index));
            }
        }
        Ok(())
    }

    /// Whether a chunk that is where it should be is the one.
    fn check_hash(&self, need: &Need, index: u32, chunk: &Chunk) -> Result<(), Error> {
        if let Some(known) = &self.known {
            let expected = known.starting_at(chunk.offset).and_then(|index| known.hash(index));
            let expected = *expected.unwrap_or(&self.layout.file);
            if chunk.hash != Some(expected) {
                return Err(Error::HashMismatch { what: "chunk", expected });
            }
        }
        match &need.listed {
            Some(list) if !chunk.hash.is_some_and(|hash| list.has(index, &hash)) => Err(list.mismatch(index)),
            _ => Ok(()),
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Engine {
    /// Gives what was fetched to the chunk cache, in the background: or not, if that can't keep up.
    fn keep(&self, stretches: Stretches) {
        let Some(chunks) = self.options.chunks.clone() else { return };
        for stretch in stretches.0.into_iter().flatten() {
            let kib = stretch.ends.last().unwrap_or(&0).div_ceil(1024);
            let Ok(permit) = Arc::clone(&self.inserts).try_acquire_many_owned(kib) else { continue };
            let chunks = Arc::clone(&chunks);
            let (xorb, first) = (stretch.xorb, stretch.kept.start);
            tokio::spawn(async move {
                let work = move || (open_all(stretch), permit);
                if let (Some(opened), _permit) = offload(usize::MAX, work).await {
                    chunks.insert(&xorb, first, &opened).await;
                }
            });
        }
    }
}

/// Raw chunks with their hashes. Damage shows to those who read, not here.
fn open_all(stretch: Stretch) -> Option<Vec<(Hash, Bytes)>> {
    let open = |mut slot: Slot| {
        let (bytes, hash) = slot.open(true).ok()?;
        Some((hash?, bytes))
    };
    stretch.chunks.into_iter().map(open).collect()
}

fn bad_data(why: &str) -> Error {
    Error::Malformed { what: "xorb data", why: why.to_owned() }
}
