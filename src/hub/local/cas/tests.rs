//! The CAS over real HTTP on 127.0.0.1, fed by the pure codecs.

mod access;
mod bounds;
mod intake;
mod ours;
mod reads;
mod shards;
mod shared;
mod xorbs;

use super::CasStore;
use crate::hub::local::auth::{CasGrant, now_seconds};
use crate::hub::local::{LocalHub, ServeOptions, Server, db};
use crate::xet::chunker::Chunker;
use crate::xet::reconstruction::{self, Reconstruction};
use crate::xet::shard::{FileInfo, Segment, Shard, ShardChunk, XorbInfo};
use crate::xet::xorb::{self, XorbIndex};
use crate::xet::{Hash, Scheme, Scope, hash, merkle};
use axum::http::StatusCode;
use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, Response};
use std::path::Path;

/// A served Hub directory, and clients' tokens for one of its buckets.
struct Site {
    hub: LocalHub,
    server: Server,
    http: Client,
    bucket: i64,
}

impl Site {
    async fn open(dir: &Path) -> Self {
        // Fails where another test of the process was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let hub = LocalHub::open(dir).unwrap();
        let server = hub.serve("127.0.0.1:0".parse().unwrap(), ServeOptions::default()).await.unwrap();
        let mut site = Self { hub, server, http: Client::builder().no_proxy().build().unwrap(), bucket: 0 };
        site.bucket = site.make_bucket("first").await;
        site
    }

    fn store(&self) -> CasStore {
        self.hub.shared.cas.clone()
    }

    /// The row of a bucket, made if need be.
    async fn make_bucket(&self, name: &'static str) -> i64 {
        let make = move |transaction: &rusqlite::Transaction<'_>| {
            let insert = "INSERT OR IGNORE INTO buckets (namespace, name, private, created, updated) VALUES ('local', ?1, 1, 0, 0)";
            transaction.execute(insert, [name])?;
            Ok::<_, db::Error>(
                transaction.query_row("SELECT id FROM buckets WHERE name = ?1", [name], |row| row.get(0))?,
            )
        };
        self.hub.shared.db.write(make).await.unwrap()
    }

    fn token_of(&self, bucket: i64, scope: Scope, expires: u64) -> String {
        self.hub.shared.auth.cas_token(CasGrant { bucket, scope, expires }).unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/cas{path}", self.server.address())
    }

    /// A request with a token for `bucket`.
    fn request_for(&self, bucket: i64, scope: Scope, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(self.token_of(bucket, scope, now_seconds() + 600))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request_for(self.bucket, Scope::Read, Method::GET, path)
    }

    fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request_for(self.bucket, Scope::Write, Method::POST, path).body(body)
    }

    async fn put_xorb(&self, xorb: &Xorb) -> bool {
        let response =
            self.post(&format!("/v1/xorbs/default/{}", xorb.index.hash), xorb.body.clone()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        json(response).await["was_inserted"].as_bool().unwrap()
    }

    async fn put_shard(&self, shard: &Shard) -> Response {
        self.post("/v1/shards", shard.to_upload()).send().await.unwrap()
    }

    /// Stores xorb and shard of `file`.
    async fn put(&self, file: &Sample) {
        self.put_xorb(&file.xorb).await;
        assert_eq!(self.put_shard(&file.shard()).await.status(), StatusCode::OK);
    }

    async fn reconstruct(&self, version: u8, hash: &Hash, range: Option<&str>) -> Result<Reconstruction, StatusCode> {
        let mut request = self.get(&format!("/v{version}/reconstructions/{hash}"));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.unwrap();
        if response.status() != StatusCode::OK {
            return Err(response.status());
        }
        let json = response.bytes().await.unwrap();
        let parse = if version == 1 { reconstruction::parse_v1 } else { reconstruction::parse_v2 };
        Ok(parse(&json).unwrap())
    }

    async fn fetch(&self, url: &str, range: &str) -> Response {
        self.http.get(url).header("range", range).send().await.unwrap()
    }

    /// The bytes of all terms of an answer, behind the skipped ones, fetched as clients do.
    async fn read_terms(&self, answer: &Reconstruction) -> Vec<u8> {
        let mut stretches = Vec::new();
        for fetch in &answer.fetches {
            let range = format!("bytes={}-{}", fetch.bytes.start, fetch.bytes.end - 1);
            let response = self.fetch(&fetch.url, &range).await;
            assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
            stretches.push(decode(&response.bytes().await.unwrap()));
        }
        let mut bytes = Vec::new();
        for term in &answer.terms {
            let fetch = answer.fetch_of(term).unwrap();
            let first = answer.fetches[fetch].chunks.start;
            let chunks = &stretches[fetch][(term.chunks.start - first) as usize..(term.chunks.end - first) as usize];
            let term_bytes = chunks.concat();
            assert_eq!(term_bytes.len(), term.raw_len as usize);
            bytes.extend_from_slice(&term_bytes);
        }
        bytes.split_off(answer.skip as usize)
    }
}

async fn json(response: Response) -> serde_json::Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn decode(stored: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    xorb::decode_chunks(stored, |chunk| {
        chunks.push(chunk.to_vec());
        Ok(())
    })
    .unwrap();
    chunks
}

/// A xorb as a client sends it.
#[derive(Clone)]
struct Xorb {
    body: Bytes,
    index: XorbIndex,
}

impl Xorb {
    fn of<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, scheme: Scheme) -> Self {
        let mut builder = xorb::Builder::default();
        for chunk in chunks {
            builder.push(hash::chunk_hash(chunk), chunk, scheme);
        }
        let (body, index) = builder.finish();
        Self { body, index }
    }

    fn section(&self) -> XorbInfo {
        let mut raw_len = 0;
        let chunk = |entry: &xorb::ChunkEntry| {
            let raw_start = raw_len;
            raw_len += entry.raw_len;
            ShardChunk { hash: entry.hash, raw_start, raw_len: entry.raw_len, flags: 0 }
        };
        let chunks = self.index.chunks.iter().map(chunk).collect();
        XorbInfo { hash: self.index.hash, raw_len, stored_len: 0, chunks }
    }

    /// A file of one run of chunks.
    fn run(&self, run: std::ops::Range<u32>) -> FileInfo {
        self.file(&[run])
    }

    /// A file of these runs of chunks.
    fn file(&self, runs: &[std::ops::Range<u32>]) -> FileInfo {
        let entries = |run: &std::ops::Range<u32>| &self.index.chunks[run.start as usize..run.end as usize];
        let segment = |run: &std::ops::Range<u32>| {
            let raw_len = entries(run).iter().map(|entry| entry.raw_len).sum();
            Segment { xorb: self.index.hash, raw_len, start: run.start, end: run.end }
        };
        let leaves: Vec<_> =
            runs.iter().flat_map(entries).map(|entry| (entry.hash, u64::from(entry.raw_len))).collect();
        FileInfo {
            hash: merkle::file_hash(&leaves),
            segments: runs.iter().map(segment).collect(),
            verification: runs.iter().map(|run| hash::term_hash(entries(run).iter().map(|entry| entry.hash))).collect(),
            sha256: None,
        }
    }
}

/// A file in a xorb of its own.
#[derive(Clone)]
struct Sample {
    content: Vec<u8>,
    xorb: Xorb,
    file: FileInfo,
}

impl Sample {
    fn new(content: Vec<u8>, scheme: Scheme) -> Self {
        let xorb = Xorb::of(chunks(&content), scheme);
        let file = xorb.run(0..xorb.index.chunks.len() as u32);
        Self { content, xorb, file }
    }

    fn random(seed: u64, len: usize) -> Self {
        Self::new(splitmix64(seed, len), Scheme::None)
    }

    fn shard(&self) -> Shard {
        Shard { files: vec![self.file.clone()], xorbs: vec![self.xorb.section()], footer: None }
    }

    fn hash(&self) -> Hash {
        self.file.hash
    }
}

fn chunks(mut content: &[u8]) -> Vec<&[u8]> {
    let mut chunker = Chunker::new();
    let mut chunks = Vec::new();
    while !content.is_empty() {
        let (chunk, rest) = content.split_at(chunker.next_boundary(content).unwrap_or(content.len()));
        chunks.push(chunk);
        content = rest;
    }
    chunks
}

/// The generator of the vectors.
fn splitmix64_words(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

fn splitmix64(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = splitmix64_words(seed).take(len.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn text(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..=len / 28).flat_map(|i| format!("line {i}: the quick brown fox\n").into_bytes()).collect();
    bytes.truncate(len);
    bytes
}
