//! The CAS as the sessions see it: a small trait, and where its tokens come from.
//!
//! Every call may be repeated: all of them are idempotent (content is addressed by hash). Implementations retry what
//! the protocol says is transient (until the operation's [deadline](super::deadline), or for a bounded time) and map
//! the rest to [`Error`].

use super::reconstruction::Reconstruction;
use super::{Body, Error, Hash};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use std::ops::Range;

/// Bytes as they arrive, no piece empty. Ends after its first error. Dropping it frees the connection.
pub type DataStream<'a> = BoxStream<'a, Result<Bytes, Error>>;

/// What a CAS token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Reconstructions and chunk queries.
    Read,
    /// Xorbs and shards, and all that `Read` may.
    Write,
}

/// A CAS base URL and the token for it.
#[derive(Clone, PartialEq, Eq)]
pub struct CasToken {
    /// Base URL without a trailing slash.
    pub url: String,
    /// Bearer token.
    pub token: String,
    /// Unix seconds.
    pub expires: u64,
}

impl std::fmt::Debug for CasToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CasToken").field("url", &self.url).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Where CAS tokens come from (the Hub's token routes). Caches, refreshes before expiry, single flight.
#[async_trait]
pub trait TokenSource: Send + Sync + 'static {
    /// A token that is good for a while. `refused`: one that the CAS has just answered 401 to; it
    /// is not handed out again.
    async fn token(&self, scope: Scope, refused: Option<&CasToken>) -> Result<CasToken, Error>;
}

/// A content-addressed store of xorbs, shards and files.
#[async_trait]
pub trait Cas: Send + Sync + 'static {
    /// Returns the location of the bytes of `file`. `range` is half-open file bytes, `None` the whole
    /// file. Fails with `RangeNotSatisfiable` if the range starts at or past the end.
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error>;
    /// Bytes of a data URL of a reconstruction, exactly `bytes` (end exclusive), which must be one
    /// of its ranges. `Err(Forbidden)`, at first or in the middle, where the URL has expired: ask
    /// for the reconstruction again. Whoever polls it should go on until its end: a connection, and
    /// its share of what may be in flight, is held meanwhile.
    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a>;
    /// All of `ranges` under one data URL, each whole and in the order asked for: in one request where the store can,
    /// for ranges that are worth less than a request each. They are held in memory, so the caller limits their sum.
    async fn fetch_many(&self, url: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let mut all = Vec::with_capacity(ranges.len());
        for range in ranges {
            all.push(gather(self.fetch(url, range.clone())).await?);
        }
        Ok(all)
    }
    /// Stores a serialised xorb (chunk area only). `false` where it was there already.
    async fn put_xorb(&self, hash: &Hash, body: Body) -> Result<bool, Error>;
    /// Registers the files of an upload-form shard, all of whose xorbs are stored.
    async fn put_shard(&self, body: Bytes) -> Result<(), Error>;
    /// The dedup shard that knows `chunk`, if any (upload form 7.6 "dedup response").
    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, Error>;
}

/// All of a stream. It is as long as what was asked for, so the caller has capped it.
pub async fn gather(mut stream: DataStream<'_>) -> Result<Bytes, Error> {
    let Some(first) = stream.next().await.transpose()? else { return Ok(Bytes::new()) };
    let Some(second) = stream.next().await.transpose()? else { return Ok(first) };
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&second);
    while let Some(piece) = stream.next().await.transpose()? {
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}
