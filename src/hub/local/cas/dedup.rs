//! Global dedup (Xet spec, 10.4), within one bucket.
//!
//! Indexed are the first chunk of every file, the chunks whose hash is 0 modulo 1024, and those that a shard flags. A
//! query is answered with xorbs that shards of the same bucket listed with all their chunks, in the order in which one
//! shard listed them: the xorb of the chunk first, so that a client that goes on reading finds the following ones too.
//! Hashes are sent plain, as the bucket gave them to us itself.

use super::{CasStore, Error, authorize, blocking, parse_hash};
use crate::hub::local::Site;
use crate::hub::local::auth::now_seconds;
use crate::hub::local::db;
use crate::xet::shard::{Footer, Shard, ShardChunk, XorbInfo};
use crate::xet::xorb::XorbIndex;
use crate::xet::{Hash, Scope};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use rusqlite::{Connection, OptionalExtension, Transaction};
use std::collections::HashSet;
use std::sync::Arc;

/// A chunk whose hash is 0 modulo this may be asked for.
const ELIGIBLE: u64 = 1024;
/// Flag of a shard's chunk: it may be asked for.
pub(super) const FLAG: u32 = 0x8000_0000;
/// Most chunks of one shard that are indexed; a shard of flagged chunks only would bloat the database.
const MAX_INDEXED: usize = 1 << 16;
/// Chunks in an answer, after which no further xorb is added: 1 MiB, about 1 GiB of files.
const ANSWER_CHUNKS: usize = 1 << 14;
/// Most xorbs looked at for one answer.
const ANSWER_XORBS: usize = 1024;
/// Time for which a client may use an answer, in seconds: three weeks, as clients do with their own
/// shards. Xorbs never go away.
const ANSWER_LIFE: u64 = 21 * 86_400;

/// What a validated shard adds to the index.
#[derive(Debug, Default)]
pub(super) struct Addition {
    /// Xorbs that the shard lists, in its order.
    listed: Vec<Hash>,
    /// Chunks that may be asked for, and a xorb that has them.
    chunks: Vec<(Hash, Hash)>,
    seen: HashSet<Hash>,
}

impl Addition {
    /// A xorb section that was found to be that of a stored xorb.
    pub(super) fn list(&mut self, section: &XorbInfo) {
        if !self.seen.insert(section.hash) {
            return;
        }
        self.listed.push(section.hash);
        for chunk in &section.chunks {
            if chunk.hash.modulo(ELIGIBLE) == 0 || chunk.flags & FLAG != 0 {
                self.add(chunk.hash, section.hash);
            }
        }
    }

    /// A chunk that may be asked for.
    pub(super) fn add(&mut self, chunk: Hash, xorb: Hash) {
        if self.chunks.len() < MAX_INDEXED {
            self.chunks.push((chunk, xorb));
        }
    }
}

/// Adds a shard to the bucket's index. What is there already stays: both answers are right.
pub(super) fn insert(transaction: &Transaction<'_>, bucket: i64, addition: &Addition) -> Result<(), db::Error> {
    let mut find =
        transaction.prepare_cached("SELECT shard, position FROM cas_listed WHERE bucket = ?1 AND xorb = ?2")?;
    let mut listed = |xorb: &Hash| find.query_row((bucket, xorb.0), |row| Ok((row.get(0)?, row.get(1)?))).optional();
    let mut is_new = false;
    for xorb in &addition.listed {
        let found: Option<(i64, i64)> = listed(xorb)?;
        is_new |= found.is_none();
    }
    if is_new {
        insert_shard(transaction, bucket, &addition.listed)?;
    }
    let mut insert = transaction
        .prepare_cached("INSERT OR IGNORE INTO cas_chunks (bucket, chunk, shard, position) VALUES (?1, ?2, ?3, ?4)")?;
    for (chunk, xorb) in &addition.chunks {
        // Not listed by any shard of the bucket: then its other chunks are none of the bucket's business.
        if let Some((shard, position)) = listed(xorb)? {
            insert.execute((bucket, chunk.0, shard, position))?;
        }
    }
    Ok(())
}

fn insert_shard(transaction: &Transaction<'_>, bucket: i64, listed: &[Hash]) -> Result<(), db::Error> {
    let xorbs: Vec<u8> = listed.iter().flat_map(|xorb| xorb.0).collect();
    transaction.prepare_cached("INSERT INTO cas_shards (bucket, xorbs) VALUES (?1, ?2)")?.execute((bucket, xorbs))?;
    let shard = transaction.last_insert_rowid();
    let mut insert = transaction
        .prepare_cached("INSERT OR IGNORE INTO cas_listed (bucket, xorb, shard, position) VALUES (?1, ?2, ?3, ?4)")?;
    for (position, xorb) in (0i64..).zip(listed) {
        insert.execute((bucket, xorb.0, shard, position))?;
    }
    Ok(())
}

/// `GET /v1/chunks/{prefix}/{hash}`; any prefix.
pub(super) async fn get(
    State(site): State<Arc<Site>>,
    Path((_, hash)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let bucket = authorize(&site, &headers, Scope::Read)?;
    let chunk = parse_hash(&hash)?;
    let store = site.shared.cas.clone();
    let found = store.db().read(move |connection| find(connection, bucket, &chunk)).await?;
    let xorbs = found.ok_or(Error::NotFound("chunk"))?;
    let shard = blocking(move || answer(&store, &xorbs)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], shard).into_response())
}

/// The xorbs to answer with, that of the chunk first.
fn find(connection: &Connection, bucket: i64, chunk: &Hash) -> Result<Option<Vec<Hash>>, Error> {
    let mut query = connection.prepare_cached(
        "SELECT xorbs, position FROM cas_chunks JOIN cas_shards ON cas_shards.id = shard
         WHERE cas_chunks.bucket = ?1 AND chunk = ?2",
    )?;
    let row = query.query_row((bucket, chunk.0), |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)));
    let Some((xorbs, position)) = row.optional()? else { return Ok(None) };
    let from = usize::try_from(position).ok();
    let listed = from.and_then(|from| xorbs.as_chunks::<32>().0.get(from..)).filter(|listed| !listed.is_empty());
    let listed = listed.ok_or_else(|| Error::damaged("shard with chunk", chunk, "its list of xorbs is cut short"))?;
    Ok(Some(listed.iter().take(ANSWER_XORBS).map(|xorb| Hash(*xorb)).collect()))
}

/// Blocks.
fn answer(store: &CasStore, xorbs: &[Hash]) -> Result<Bytes, Error> {
    let mut shard = Shard::default();
    let mut chunks = 0;
    for xorb in xorbs {
        let index = match store.xorbs().index(xorb) {
            // Who is pointed to a damaged xorb won't upload what would heal it.
            Err(Error::Damaged { .. }) if shard.xorbs.is_empty() => return Err(Error::NotFound("chunk")),
            Err(Error::Damaged { .. }) => break,
            index => index?,
        };
        chunks += index.chunks.len();
        shard.xorbs.push(section(&index));
        if chunks >= ANSWER_CHUNKS {
            break;
        }
    }
    // Tables of a shard are sorted by hash.
    shard.xorbs.sort_by_key(|section| section.hash);
    let created = now_seconds();
    let footer = Footer { hmac_key: [0; 32], created, expires: created + ANSWER_LIFE };
    Ok(shard.to_stored(&footer, true).into())
}

/// The xorb section of a stored xorb.
pub(super) fn section(index: &XorbIndex) -> XorbInfo {
    let mut raw_len = 0;
    let chunks = index.chunks.iter().map(|chunk| {
        let flags = if chunk.hash.modulo(ELIGIBLE) == 0 { FLAG } else { 0 };
        let raw_start = raw_len;
        raw_len += chunk.raw_len;
        ShardChunk { hash: chunk.hash, raw_start, raw_len: chunk.raw_len, flags }
    });
    let chunks = chunks.collect();
    let stored_len = index.chunks.last().map_or(0, |chunk| chunk.stored_end);
    XorbInfo { hash: index.hash, raw_len, stored_len, chunks }
}
