//! State that a gateway keeps beside the buckets: records of objects, multipart uploads, and leases.
//!
//! Rows are opaque here. The gateway seals them where there is a key. One gateway keeps its state in a SQLite file.
//! Several gateways that serve the same buckets share a PostgreSQL database. The state has the only clock that counts,
//! so clocks of gateways may differ.

#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sqlite;
#[cfg(test)]
mod testing;

use super::Error;
use async_trait::async_trait;
use std::time::Duration;

/// A multipart upload, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// Its id: random, for URLs.
    pub id: String,
    /// Name of its bucket's source, as in [`View::identity`](crate::store::View::identity).
    pub source: [u8; 32],
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Key, headers and options, sealed.
    pub row: Vec<u8>,
}

/// What an object has beside its content, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRow {
    /// Digest of source, path and version.
    pub key: [u8; 32],
    /// Digest of source and path.
    pub path: [u8; 32],
    /// The record, sealed.
    pub row: Vec<u8>,
}

/// Result of [`State::claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller completes the upload now.
    Claimed,
    /// Another request completes it.
    Held,
    /// It was completed with this result.
    Done(Vec<u8>),
    /// There is no such upload.
    Missing,
}

/// A store of rows. All changes are on disk when a call returns.
#[async_trait]
pub trait State: Send + Sync + 'static {
    /// Returns the records with these keys, in their order.
    async fn records(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, Error>;
    /// Puts a record.
    async fn set_record(&self, record: RecordRow) -> Result<(), Error>;
    /// Removes the records of a path that were written at least `age` ago, except `keep`.
    async fn remove_records(&self, path: [u8; 32], keep: Option<[u8; 32]>, age: Duration) -> Result<(), Error>;

    /// Adds an upload.
    async fn create_upload(&self, id: &str, source: [u8; 32], row: Vec<u8>) -> Result<(), Error>;
    /// Returns an upload that is neither completed nor aborted.
    async fn upload(&self, id: &str) -> Result<Option<UploadRow>, Error>;
    /// Returns the uploads of a source that are neither completed nor aborted.
    async fn uploads(&self, source: &[u8; 32]) -> Result<Vec<UploadRow>, Error>;
    /// Puts a part of an upload. Returns false if the upload is completed or missing.
    async fn put_part(&self, id: &str, number: u32, row: Vec<u8>) -> Result<bool, Error>;
    /// Returns the parts of an upload, by ascending number.
    async fn parts(&self, id: &str) -> Result<Vec<(u32, Vec<u8>)>, Error>;
    /// Claims the completion of an upload for `owner`. The claim ends with [`State::complete`] or [`State::release`],
    /// or when its `time` has passed. The owner may claim again.
    async fn claim(&self, id: &str, owner: &str, time: Duration) -> Result<Claim, Error>;
    /// Records the result of a completed upload, and removes its parts. Returns false if the owner's claim was lost.
    async fn complete(&self, id: &str, owner: &str, result: Vec<u8>) -> Result<bool, Error>;
    /// Gives up a claim. The parts stay.
    async fn release(&self, id: &str, owner: &str) -> Result<(), Error>;
    /// Removes an upload that is not completed and that nobody completes now, with its parts. Returns false if there
    /// was none.
    async fn abort(&self, id: &str) -> Result<bool, Error>;
    /// Removes uploads that were created at least `age` ago, completed or not, except those that are being completed.
    /// Also removes leases that have ended. Returns the number of uploads.
    async fn remove_stale(&self, age: Duration) -> Result<u64, Error>;

    /// Returns true if several gateways may use the state at the same time. If not, its leases aren't needed.
    fn is_shared(&self) -> bool;
    /// Takes or renews the lease of this name for `owner`. Returns false if another owner has it. It ends with
    /// [`State::end_lease`], or when its `time` has passed.
    async fn lease(&self, name: [u8; 32], owner: &str, time: Duration) -> Result<bool, Error>;
    /// Ends a lease, if the owner still has it.
    async fn end_lease(&self, name: [u8; 32], owner: &str) -> Result<(), Error>;

    /// Fails if the state can't be read.
    async fn check(&self) -> Result<(), Error>;
}
