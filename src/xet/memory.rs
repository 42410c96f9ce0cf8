//! A CAS in memory, for the tests of the sessions.
//!
//! It holds uploads to what a server holds them to (Xet spec, 10.6) and answers reconstructions with the codecs of the product, through their
//! wire form.

use super::hash::term_hash;
use super::merkle::file_hash;
use super::plan::{file_len, plan};
use super::reconstruction::{Reconstruction, parse_v1, parse_v2};
use super::shard::{FileInfo, MAX_SHARD, Segment, Shard};
use super::xorb::{ChunkEntry, XorbIndex, verify_upload};
use super::{Cas, Error, Hash};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Every second URL list is of version 2.
#[derive(Default)]
pub(crate) struct MemoryCas {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    xorbs: HashMap<Hash, (Bytes, Arc<XorbIndex>)>,
    files: HashMap<Hash, Vec<Segment>>,
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
}

impl MemoryCas {
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

    async fn fetch(&self, url: &str, bytes: Range<u64>) -> Result<Bytes, Error> {
        let mut state = self.state.lock().unwrap();
        state.calls.fetches.push((url.to_owned(), bytes.clone()));
        let (epoch, xorb) = url.strip_prefix("memory://").and_then(|rest| rest.split_once('/')).expect("a URL of ours");
        if epoch != state.epoch.to_string() {
            return Err(Error::Forbidden("expired".to_owned()));
        }
        let (area, _) = &state.xorbs[&xorb.parse().expect("a URL of ours")];
        Ok(area.slice(bytes.start as usize..bytes.end as usize))
    }

    async fn put_xorb(&self, hash: &Hash, body: Bytes) -> Result<bool, Error> {
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
        for file in shard.files {
            state.check(&file)?;
            state.files.insert(file.hash, file.segments);
        }
        Ok(())
    }

    async fn query_chunk(&self, _: &Hash) -> Result<Option<Bytes>, Error> {
        Ok(None)
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

    fn chunks_of(&self, segment: &Segment) -> Result<&[ChunkEntry], Error> {
        let (_, index) = self.xorbs.get(&segment.xorb).ok_or(Error::NotFound(segment.xorb))?;
        let range = segment.start as usize..segment.end as usize;
        index.chunks.get(range).filter(|chunks| !chunks.is_empty()).ok_or_else(|| invalid("a term has no such chunks"))
    }
}

fn invalid(why: &str) -> Error {
    Error::Status { status: 400, message: why.to_owned() }
}
