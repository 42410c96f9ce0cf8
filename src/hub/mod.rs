//! The Hub: a small trait, its HTTP client, and an embedded Hub to run against ([`local`]).
//!
//! Knows buckets, object keys and Xet hashes; knows nothing of encryption.

pub mod client;
#[cfg(test)]
mod conformance;
pub mod endpoint;
mod error;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(feature = "local-hub")]
pub mod local;
mod mtime;
mod parse;
pub mod repo;
pub mod retry;
mod route;
#[cfg(test)]
mod tests;
pub mod token;
mod tokens;
mod transport;
pub use transport::process_client;
pub mod types;

pub use client::Client;
pub use endpoint::Endpoint;
pub use error::Error;
pub use mtime::{MTIME_GRANULARITY, mtime_from_millis, mtime_millis, replacing_mtime, stored_mtime, stored_now};
pub use repo::{BlobSource, Repository};
pub use types::*;

use crate::xet::{CasToken, Hash, Scope};
use async_trait::async_trait;
use std::time::Duration;

/// What this project needs of a Hub. One conformance list runs against every implementation (`conformance`).
///
/// All calls are idempotent except [`Hub::create_bucket`] (`Conflict` on repeat unless `exist_ok`).
/// Reads retry by themselves what the API calls transient; writes only what the Hub has surely not
/// carried out (no connection, 429, 503), so that a change by others in the meantime isn't undone
/// unseen. Both end at the operation's deadline ([`crate::xet::deadline`]), or after a bounded time
/// without one. Keys are raw object keys from the bucket root, never percent-encoded.
#[async_trait]
pub trait Hub: Send + Sync + 'static {
    /// Returns the user of the token. For the gateway: its buckets are those of the user's namespace.
    async fn whoami(&self) -> Result<Identity, Error>;
    /// Makes a bucket. `exist_ok`: one that is there already is fine, whether private or not. One
    /// that is made is private where asked, or this fails.
    async fn create_bucket(&self, bucket: &BucketId, private: bool, exist_ok: bool) -> Result<(), Error>;
    /// Returns the description of a bucket. Fails with `Error::BucketNotFound`, or with `Error::NotABucket` if the id
    /// is a repository's. The returned id differs from `bucket` if the bucket has moved.
    async fn bucket_info(&self, bucket: &BucketId) -> Result<BucketInfo, Error>;
    /// Lists the buckets of a namespace (`me`: the caller's own). For the gateway's list of buckets.
    async fn list_buckets(&self, namespace: &str) -> Result<Vec<BucketInfo>, Error>;
    /// Deletes a bucket and everything in it. For the gateway's removal of a bucket.
    async fn delete_bucket(&self, bucket: &BucketId) -> Result<(), Error>;
    /// One page of the entries strictly below `prefix` (no slash at its ends; empty: the root), ascending by key;
    /// raw-prefix siblings are filtered out. Not recursive: direct children, files and directories. Recursive: all
    /// files below. An unknown prefix is empty.
    async fn tree_page(
        &self,
        bucket: &BucketId,
        prefix: &str,
        recursive: bool,
        cursor: Option<&Cursor>,
    ) -> Result<TreePage, Error>;
    /// The files among `keys` (any number; sent in groups). Missing keys and directories are left out.
    async fn paths_info(&self, bucket: &BucketId, keys: &[String]) -> Result<Vec<FileEntry>, Error>;
    /// Applies operations in order, in requests of at most 1000. Not transactional: the outcome says which keys failed.
    /// `Err` means that the outcome of the request is unknown or that it was refused whole ([`Error::is_unanswered`]);
    /// where requests before it were answered it is [`Error::Partial`], which holds their outcome. A caller that takes
    /// `Partial` for any other unanswered error loses nothing.
    async fn batch(&self, bucket: &BucketId, operations: &[BatchOp]) -> Result<BatchOutcome, Error> {
        self.batch_within(bucket, operations, Duration::MAX).await
    }
    /// Sends operations that depend on state which was read before. No request is repeated later than `repeat_within`
    /// after its first try, even if the Hub asks for a longer wait (429, 503).
    async fn batch_within(
        &self,
        bucket: &BucketId,
        operations: &[BatchOp],
        repeat_within: Duration,
    ) -> Result<BatchOutcome, Error>;
    /// A fresh CAS token, uncached.
    async fn cas_token(&self, bucket: &BucketId, scope: Scope) -> Result<CasToken, Error>;

    /// Every page of [`Hub::tree_page`].
    async fn tree(&self, bucket: &BucketId, prefix: &str, recursive: bool) -> Result<Vec<TreeEntry>, Error> {
        let mut entries = Vec::new();
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            let page = self.tree_page(bucket, prefix, recursive, cursor.as_ref()).await?;
            entries.extend(page.entries);
            match page.next {
                Some(next) if entries.len() < MAX_ENTRIES => cursor = Some(next),
                Some(_) => break,
                None => return Ok(entries),
            }
        }
        Err(Error::Malformed("a listing without end".to_owned()))
    }
}

/// Returns the id that the bucket has now: another than `bucket` where it has moved, or where `bucket` is an
/// alias. Fails where it isn't there
/// or can't be seen; with `create` a missing one is created, private.
pub async fn require_bucket(hub: &dyn Hub, bucket: &BucketId, create: bool) -> Result<BucketId, Error> {
    match hub.bucket_info(bucket).await {
        // Another client may have created it meanwhile.
        Err(Error::BucketNotFound(_)) if create => hub.create_bucket(bucket, true, true).await.map(|()| bucket.clone()),
        other => other.map(|info| info.id),
    }
}

/// Most entries that [`Hub::tree`] holds in memory at once (some 3 GB of them); larger trees are read page by page.
const MAX_ENTRIES: usize = 10_000_000;
/// Most pages that [`Hub::tree`] asks for: pages may be small or, after filtering, empty, but a Hub
/// that links them in a circle has to stop.
const MAX_PAGES: usize = 200_000;

/// The hash that stands for the empty file, which the CAS needn't know.
pub const EMPTY_FILE: Hash = Hash::ZERO;
