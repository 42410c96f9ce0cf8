//! A CAS in memory, for the tests of the sessions.
//!
//! It holds uploads to what a server holds them to (Xet spec, 10.6) and answers reconstructions
//! with the codecs of the product, through their wire form.

use super::cas::DataStream;
use super::hash::{keyed_chunk_hash, term_hash};
use super::merkle::file_hash;
use super::plan::{file_len, plan};
use super::reconstruction::{Reconstruction, parse_v1, parse_v2};
use super::shard::{FileInfo, Footer, MAX_SHARD, Segment, Shard};
use super::xorb::{ChunkEntry, XorbIndex, verify_upload};
use super::{Body, Cas, Error, Hash};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Bytes of the pieces of fetched data.
const PIECE: usize = 100_003;

/// Every second URL list is of version 2.
#[derive(Default)]
pub(crate) struct MemoryCas {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    xorbs: HashMap<Hash, (Bytes, Arc<XorbIndex>)>,
    files: HashMap<Hash, Vec<Segment>>,
    /// All that were registered.
    shards: Vec<Shard>,
    /// Key of answers to chunk queries; without one there are none.
    dedup_key: Option<[u8; 32]>,
    /// Part of every URL; only the current one is good.
    epoch: u64,
    calls: Calls,
}

/// What was asked of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) reconstructions: Vec<Option<Range<u64>>>,
    pub(crate) fetches: Vec<(String, Range<u64>)>,
    pub(crate) xorbs: Vec<Hash>,
    pub(crate) shards: usize,
    pub(crate) queries: Vec<Hash>,
}

impl MemoryCas {
    /// Chunk queries are answered, with hashes under this key; zeros: plain.
    pub(crate) fn answering(self, key: [u8; 32]) -> Self {
        self.state.lock().unwrap().dedup_key = Some(key);
        self
    }

    fn data(&self, url: &str, bytes: Range<u64>) -> Result<Bytes, Error> {
        let mut state = self.state.lock().unwrap();
        state.calls.fetches.push((url.to_owned(), bytes.clone()));
        let (epoch, xorb) = url.strip_prefix("memory://").and_then(|rest| rest.split_once('/')).expect("a URL of ours");
        if epoch != state.epoch.to_string() {
            return Err(Error::Forbidden("expired".to_owned()));
        }
        let (area, _) = &state.xorbs[&xorb.parse().expect("a URL of ours")];
        Ok(area.slice(bytes.start as usize..bytes.end as usize))
    }

    /// All URLs that were given out stop working.
    pub(crate) fn expire_urls(&self) {
        self.state.lock().unwrap().epoch += 1;
    }

    pub(crate) fn calls(&self) -> Calls {
        self.state.lock().unwrap().calls.clone()
    }

    pub(crate) fn forget_calls(&self) {
        self.state.lock().unwrap().calls = Calls::default();
    }

    /// Terms of a file.
    pub(crate) fn segments(&self, file: &Hash) -> Option<Vec<Segment>> {
        self.state.lock().unwrap().files.get(file).cloned()
    }

    /// Sum of all serialised xorbs.
    pub(crate) fn stored(&self) -> usize {
        self.state.lock().unwrap().xorbs.values().map(|(area, _)| area.len()).sum()
    }
}

#[async_trait]
impl Cas for MemoryCas {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        let mut state = self.state.lock().unwrap();
        state.calls.reconstructions.push(range.clone());
        let segments = state.files.get(file).ok_or(Error::NotFound(*file))?;
        let plan = plan(segments, range, |xorb| {
            state.xorbs.get(xorb).map(|(_, index)| Arc::clone(index)).ok_or(Error::NotFound(*xorb))
        })?;
        let epoch = state.epoch;
        let url = |xorb: &Hash, _: &[Range<u64>]| format!("memory://{epoch}/{xorb}");
        match state.calls.reconstructions.len() % 2 {
            0 => parse_v1(&plan.to_v1(url)),
            _ => parse_v2(&plan.to_v2(url)),
        }
    }

    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        let pieces = self.data(url, bytes).map(|data| {
            // Pieces that chunks don't fit into evenly.
            let piece = |i: usize| data.slice(i..data.len().min(i + PIECE));
            (0..data.len()).step_by(PIECE).map(piece).collect::<Vec<_>>()
        });
        match pieces {
            Ok(pieces) => stream::iter(pieces.into_iter().map(Ok)).boxed(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn put_xorb(&self, hash: &Hash, body: Body) -> Result<bool, Error> {
        body.note_sent(body.len());
        let body = body.to_bytes();
        let (index, area_len) = verify_upload(&body, hash, false)?;
        let mut state = self.state.lock().unwrap();
        state.calls.xorbs.push(*hash);
        Ok(state.xorbs.insert(*hash, (body.slice(..area_len), Arc::new(index))).is_none())
    }

    async fn put_shard(&self, body: Bytes) -> Result<(), Error> {
        assert!(body.len() <= MAX_SHARD);
        let shard = Shard::parse(&body)?;
        let mut state = self.state.lock().unwrap();
        state.calls.shards += 1;
        for xorb in &shard.xorbs {
            let (area, stored) = state.xorbs.get(&xorb.hash).ok_or(Error::NotFound(xorb.hash))?;
            let listed = xorb.chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len));
            let same = listed.eq(stored.chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len)));
            let mut raw_end = 0;
            let contiguous = xorb.chunks.iter().all(|chunk| {
                raw_end += chunk.raw_len;
                chunk.raw_start + chunk.raw_len == raw_end
            });
            if !same || !contiguous || raw_end != xorb.raw_len || xorb.stored_len as usize != area.len() {
                return Err(invalid("a xorb section is not that of the stored xorb"));
            }
        }
        for file in &shard.files {
            state.check(file)?;
            state.files.insert(file.hash, file.segments.clone());
        }
        state.shards.push(shard);
        Ok(())
    }

    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, Error> {
        let mut state = self.state.lock().unwrap();
        state.calls.queries.push(*chunk);
        let Some(key) = state.dedup_key else { return Ok(None) };
        Ok(state.shard_with(chunk).map(|shard| answer(shard, key)))
    }
}

impl State {
    fn check(&self, file: &FileInfo) -> Result<(), Error> {
        let mut all = Vec::new();
        if file.verification.len() != file.segments.len() {
            return Err(invalid("a term has no verification hash"));
        }
        for (segment, verification) in file.segments.iter().zip(&file.verification) {
            let chunks = self.chunks_of(segment)?;
            if chunks.iter().map(|chunk| chunk.raw_len).sum::<u32>() != segment.raw_len {
                return Err(invalid("a term is not as long as its chunks"));
            }
            if term_hash(chunks.iter().map(|chunk| chunk.hash)) != *verification {
                return Err(invalid("a verification hash is wrong"));
            }
            all.extend(chunks.iter().map(|chunk| (chunk.hash, u64::from(chunk.raw_len))));
        }
        if file_hash(&all) != file.hash {
            return Err(Error::HashMismatch { what: "file", expected: file.hash });
        }
        assert_eq!(file_len(&file.segments), all.iter().map(|(_, len)| len).sum::<u64>());
        Ok(())
    }

    /// The shard that lists a chunk, if that is one of those that are answered for.
    fn shard_with(&self, chunk: &Hash) -> Option<&Shard> {
        let is_first = |segments: &Vec<Segment>| {
            let first = segments.first().and_then(|segment| self.chunks_of(segment).ok());
            first.is_some_and(|chunks| chunks[0].hash == *chunk)
        };
        if chunk.modulo(1024) != 0 && !self.files.values().any(is_first) {
            return None;
        }
        let lists =
            |shard: &&Shard| shard.xorbs.iter().flat_map(|xorb| &xorb.chunks).any(|listed| listed.hash == *chunk);
        self.shards.iter().find(lists)
    }

    fn chunks_of(&self, segment: &Segment) -> Result<&[ChunkEntry], Error> {
        let (_, index) = self.xorbs.get(&segment.xorb).ok_or(Error::NotFound(segment.xorb))?;
        let range = segment.start as usize..segment.end as usize;
        index.chunks.get(range).filter(|chunks| !chunks.is_empty()).ok_or_else(|| invalid("a term has no such chunks"))
    }
}

/// The xorbs of a shard as a dedup answer.
fn answer(shard: &Shard, key: [u8; 32]) -> Bytes {
    let mut xorbs = shard.xorbs.clone();
    if key != [0; 32] {
        let chunks = xorbs.iter_mut().flat_map(|xorb| &mut xorb.chunks);
        chunks.for_each(|chunk| chunk.hash = keyed_chunk_hash(&key, &chunk.hash));
    }
    let footer = Footer { hmac_key: key, created: 0, expires: u64::MAX };
    Shard { xorbs, ..Shard::default() }.to_stored(&footer, true).into()
}

fn invalid(why: &str) -> Error {
    Error::Status { status: 400, message: why.to_owned() }
}
