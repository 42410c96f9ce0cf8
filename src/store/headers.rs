//! Reads container headers and long-name sidecars once and caches them (format spec, section 5 "Plaintext
//! sizes"; 4b "Names").
//!
//! A listing shows plaintext sizes, which are in the headers, and reading each header costs a request. A Xet
//! hash always identifies the same content. So the bytes read under a hash are kept in a local database: the
//! sealed 70 bytes of a header, the 293 bytes of a sidecar. These are ciphertext, and they are verified again
//! at every use. Only verified bytes are kept, because a ranged read isn't checked against the hash.

use super::database::{Database, Durability};
use super::remote::Remote;
use super::{Error, Len, Side, Version};
use crate::crypto::geometry::{CipherLen, HEADER_LEN};
use crate::crypto::names::SIDECAR_LEN;
use crate::crypto::{self, Header, Keys};
use crate::hub::EMPTY_FILE;
use crate::xet::Hash;
use bytes::Bytes;
use futures::StreamExt;
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads of headers and sidecars in flight.
const PARALLEL: usize = 32;
/// Headers verified before other tasks get their turn: about a millisecond.
const VERIFY_AT_ONCE: usize = 512;
/// Rows of the database: some 80 MB of headers. The oldest rows are removed first.
const MAX_ROWS: i64 = 500_000;
/// Entries of the cache in memory: some 8 MB.
const MAX_KNOWN: usize = 65_536;
/// Sizes in memory: some 20 MB. When there are more, all are forgotten.
const MAX_LENS: usize = 262_144;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS heads (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL);
";

/// Reader and cache of the headers and sidecars of one bucket.
pub(super) struct Headers {
    keys: Arc<Keys>,
    remote: Arc<Remote>,
    database: Arc<Database>,
    /// Cache in memory of database rows. Never held over an await.
    known: Mutex<HashMap<Hash, Bytes>>,
    /// Plaintext sizes of versions whose headers were verified. Never held over an await.
    lens: Mutex<HashMap<Version, u64>>,
}

impl Headers {
    /// Opens the cache in `folder`, or in memory without one.
    pub(super) fn open(folder: Option<&Path>, keys: Arc<Keys>, remote: Arc<Remote>) -> Result<Self, Error> {
        let database = Arc::new(Database::open(folder, "headers.sqlite", Durability::Cache, SCHEMA)?);
        Ok(Self { keys, remote, database, known: Mutex::default(), lens: Mutex::default() })
    }

    /// Returns the verified header of a version. `Error::Unauthentic`: it is damaged. Another error: it can't
    /// be fetched.
    pub(super) async fn header(&self, version: &Version) -> Result<Header, Error> {
        let hash = version.id.cache_name();
        let cached = self.cached(vec![hash]).await.remove(&hash);
        let known = cached.and_then(|bytes| self.verify(version, &bytes).ok());
        self.remote.header_lookups.count(known.is_some());
        if let Some(header) = known {
            return Ok(header);
        }
        self.fetch_header(version).await
    }

    /// Returns the plaintext size of each version.
    pub(super) async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        let mut lens: Vec<Result<Len, Error>> = self.cached_lens(versions).await.into_iter().map(Ok).collect();
        let unread = (0..lens.len()).filter(|&index| matches!(lens[index], Ok(Len::Unread))).collect::<Vec<_>>();
        let misses = unread.len() as u64;
        self.remote.header_lookups.add(versions.len() as u64 - misses, misses);
        let reads = unread.into_iter().map(async |index| (index, len_of(self.fetch_header(&versions[index]).await)));
        let mut reads = futures::stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some((index, len)) = reads.next().await {
            lens[index] = len;
        }
        lens
    }

    /// Returns the sizes that need no request. The others are `Unread`.
    pub(super) async fn cached_lens(&self, versions: &[Version]) -> Vec<Len> {
        let mut lens: Vec<Len> = {
            let known = self.lens.lock().unwrap_or_else(PoisonError::into_inner);
            versions.iter().map(|version| known.get(version).map_or(Len::Unread, |len| Len::Known(*len))).collect()
        };
        let unknown: Vec<usize> = (0..lens.len()).filter(|&index| lens[index] == Len::Unread).collect();
        let cached = self.cached(unknown.iter().map(|&index| versions[index].id.cache_name()).collect()).await;
        for part in unknown.chunks(VERIFY_AT_ONCE) {
            for &index in part {
                let version = &versions[index];
                let bytes = cached.get(&version.id.cache_name());
                if let Some(Ok(header)) = bytes.map(|bytes| self.verify(version, bytes)) {
                    lens[index] = Len::Known(header.plain_len.0);
                }
            }
            tokio::task::yield_now().await;
        }
        lens
    }

    /// Returns the content of sidecars by hash. If one can't be fetched, the call fails: a transient failure
    /// must not remove entries from a listing.
    pub(super) async fn sidecars(&self, hashes: Vec<Hash>) -> Result<HashMap<Hash, Bytes>, Error> {
        let mut found = self.cached(hashes.clone()).await;
        found.retain(|_, bytes| bytes.len() == SIDECAR_LEN);
        let missing: Vec<Hash> = hashes.into_iter().filter(|hash| !found.contains_key(hash)).collect();
        let reads = missing.into_iter().map(async |hash| {
            let bytes = self.remote.contents.peek(hash.into(), SIDECAR_LEN as u64, 0..SIDECAR_LEN as u64).await;
            bytes.map(|bytes| (hash, Bytes::copy_from_slice(&bytes)))
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some(read) = reads.next().await {
            let (hash, bytes) = read?;
            found.insert(hash, bytes);
        }
        Ok(found)
    }

    /// Keeps a header in memory only.
    #[cfg(test)]
    pub(super) fn remember_only(&self, hash: Hash, head: Bytes) {
        self.remember(&[(hash, head)]);
    }

    async fn fetch_header(&self, version: &Version) -> Result<Header, Error> {
        let hash = version.id.cache_name();
        if version.stored_len < HEADER_LEN as u64 || hash == EMPTY_FILE {
            return Err(crypto::Error::Malformed("shorter than a header").into());
        }
        // No number of records gives this length, so the bytes can't be a container.
        crypto::geometry::records_of(CipherLen(version.stored_len))?;
        let bytes = self.remote.contents.peek(version.id, version.stored_len, 0..HEADER_LEN as u64).await?;
        let header = self.verify(version, &bytes)?;
        self.learn(vec![(hash, Bytes::copy_from_slice(&bytes))]).await;
        Ok(header)
    }

    fn verify(&self, version: &Version, bytes: &[u8]) -> Result<Header, Error> {
        let Side::Encrypted(format) = version.side else { return Err(Error::WrongSide) };
        let head = bytes.get(..HEADER_LEN).ok_or(Error::LengthMismatch)?;
        let header = self.keys.open_header(format, head, version.stored_len)?;
        let mut lens = self.lens.lock().unwrap_or_else(PoisonError::into_inner);
        if lens.len() >= MAX_LENS {
            lens.clear();
        }
        lens.insert(*version, header.plain_len.0);
        Ok(header)
    }

    /// Returns the cached bytes of these hashes.
    async fn cached(&self, hashes: Vec<Hash>) -> HashMap<Hash, Bytes> {
        let mut found = HashMap::new();
        let mut unknown = Vec::new();
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            for hash in hashes {
                match known.get(&hash) {
                    Some(bytes) => drop(found.insert(hash, bytes.clone())),
                    None => unknown.push(hash),
                }
            }
        }
        if unknown.is_empty() {
            return found;
        }
        let stored = self.database.run(move |connection| {
            let mut select = connection.prepare_cached("SELECT bytes FROM heads WHERE hash = ?1")?;
            let mut stored = Vec::new();
            for hash in unknown {
                let bytes: Option<Vec<u8>> = select.query_row(params![hash.0], |row| row.get(0)).optional()?;
                stored.extend(bytes.map(|bytes| (hash, Bytes::from(bytes))));
            }
            Ok(stored)
        });
        match stored.await {
            Ok(stored) => {
                self.remember(&stored);
                found.extend(stored);
            }
            Err(error) => tracing::debug!(%error, "the header cache can't be read"),
        }
        found
    }

    /// Stores headers and sidecars that this process created, or that have authenticated.
    pub(super) async fn learn(&self, heads: Vec<(Hash, Bytes)>) {
        let heads = self.unknown(heads);
        if heads.is_empty() {
            return;
        }
        self.remember(&heads);
        let kept = self.database.run(move |connection| {
            let transaction = connection.transaction()?;
            {
                let replace = "INSERT INTO heads (hash, bytes) VALUES (?1, ?2) ON CONFLICT (hash) DO UPDATE SET bytes = excluded.bytes";
                let mut insert = transaction.prepare_cached(replace)?;
                for (hash, bytes) in &heads {
                    insert.execute(params![hash.0, &bytes[..]])?;
                }
            }
            // Ids grow with time, so this removes the oldest rows, found by index.
            transaction.execute("DELETE FROM heads WHERE id <= (SELECT max(id) FROM heads) - ?1", params![MAX_ROWS])?;
            transaction.commit()
        });
        if let Err(error) = kept.await {
            tracing::debug!(%error, "the header cache can't be written");
        }
    }

    /// Returns the entries that aren't cached yet.
    fn unknown(&self, mut heads: Vec<(Hash, Bytes)>) -> Vec<(Hash, Bytes)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        heads.retain(|(hash, bytes)| known.get(hash) != Some(bytes));
        heads
    }

    fn remember(&self, heads: &[(Hash, Bytes)]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() + heads.len() > MAX_KNOWN {
            known.clear();
        }
        known.extend(heads.iter().take(MAX_KNOWN).cloned());
    }
}

/// Maps a header to its size. A damaged file is shown. A header that can't be fetched is an error.
fn len_of(header: Result<Header, Error>) -> Result<Len, Error> {
    match header {
        Ok(header) => Ok(Len::Known(header.plain_len.0)),
        Err(Error::Unauthentic(_)) => Ok(Len::Damaged),
        Err(other) => Err(other),
    }
}
