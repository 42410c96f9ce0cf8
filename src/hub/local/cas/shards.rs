//! Shards (Xet spec, 10.6): validated wholly against the stored xorbs, then registered in one transaction.

use super::dedup::{self, Addition};
use super::{CasStore, Error, authorize, blocking, files};
use crate::hub::local::Site;
use crate::hub::local::body::{self, Received};
use crate::hub::local::db;
use crate::xet::merkle::Tree;
use crate::xet::shard::{FileInfo, MAX_SHARD, Segment, Shard, XorbInfo};
use crate::xet::xorb::XorbIndex;
use crate::xet::{Hash, Scope, hash};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use rusqlite::Transaction;
use serde::Serialize;
use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Most chunks that are looked at to validate a shard: 4 TiB at the usual 64 KiB, some 20 s of one
/// core. Terms may name the same chunks again and again, and in an order that needs each index read
/// anew, so without this a small shard could keep a core busy for hours.
const MAX_EFFORT: u64 = 1 << 26;
/// Memory for a shard, as a multiple of its length: itself and what it parses to.
const COPIES: usize = 2;
/// Longest file, in bytes: what an SQLite integer holds. No shard comes near it.
const MAX_FILE: u64 = i64::MAX as u64;
/// Silence after which the last frame of a v2 answer is repeated.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Files and xorbs between two progress frames.
const PROGRESS_STEP: u64 = 64;

/// `POST /v1/shards`.
pub(super) async fn post_v1(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<serde_json::Value>, Error> {
    let (bucket, received) = admit(&site, &headers, body).await?;
    let store = site.shared.cas.clone();
    let (shard_hash, validated) = blocking(move || {
        let shard = parse(&received)?;
        let shard_hash = hash::chunk_hash(&received.bytes);
        Ok((shard_hash, validate(&store, shard, |_, _| ())?))
    })
    .await?;
    let result = u8::from(register(&site.shared.cas, bucket, validated).await?);
    Ok(Json(serde_json::json!({ "result": result, "shard_hash": shard_hash })))
}

/// `POST /v2/shards`. A shard that doesn't parse is 400; what is found later comes in an error frame.
pub(super) async fn post_v2(State(site): State<Arc<Site>>, headers: HeaderMap, body: Body) -> Result<Response, Error> {
    let (bucket, received) = admit(&site, &headers, body).await?;
    let (shard, received) = blocking(move || Ok((parse(&received)?, received))).await?;
    let (frames, sent) = mpsc::channel(4);
    let store = site.shared.cas.clone();
    // On its own: a client that hangs up doesn't stop what it will ask for again.
    tokio::spawn(async move {
        let outcome = run_v2(&store, bucket, shard, &frames).await;
        drop(received);
        let last = match outcome {
            Ok(()) => Frame::Result,
            Err(error) => {
                tracing::debug!("shard refused: {error}");
                Frame::Error { message: error.to_string(), retryable: error.is_retryable() }
            }
        };
        // Nobody to tell: the client is gone.
        let _ = frames.send(last).await;
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(frame_lines(sent))).into_response())
}

/// Checks the token, then takes the body.
async fn admit(site: &Site, headers: &HeaderMap, body: Body) -> Result<(i64, Received), Error> {
    match authorize(site, headers, Scope::Write) {
        Ok(bucket) => Ok((bucket, site.shared.cas.receive(headers, body, MAX_SHARD, COPIES).await?)),
        Err(error) => {
            body::drain(body, MAX_SHARD).await;
            Err(error)
        }
    }
}

fn parse(received: &Received) -> Result<Shard, Error> {
    let shard = Shard::parse(&received.bytes).map_err(Error::refused)?;
    if shard.footer.as_ref().is_some_and(|footer| footer.hmac_key != [0; 32]) {
        return Err(Error::Invalid("the chunk hashes of an upload must be plain".into()));
    }
    Ok(shard)
}

async fn run_v2(store: &CasStore, bucket: i64, shard: Shard, frames: &mpsc::Sender<Frame>) -> Result<(), Error> {
    let (progress, validating) = (frames.clone(), store.clone());
    let validated = blocking(move || {
        validate(&validating, shard, |verified, total| {
            // A frame that doesn't fit is superseded by the next one anyway.
            let _ = progress.try_send(Frame::Validating { verified, total });
        })
    })
    .await?;
    let _ = frames.try_send(Frame::Committing { stage: "syncing" });
    register(store, bucket, validated).await.map(drop)
}

/// A line of a v2 answer.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Frame {
    Validating { verified: u64, total: u64 },
    Committing { stage: &'static str },
    Result,
    Error { message: String, retryable: bool },
}

/// The frames as lines; the last one again whenever nothing came for a while.
pub(super) fn frame_lines(frames: mpsc::Receiver<Frame>) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    let first = Frame::Validating { verified: 0, total: 0 };
    stream::unfold((frames, first), async |(mut frames, last)| {
        let frame = match tokio::time::timeout(KEEP_ALIVE, frames.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(_) => last,
        };
        let mut line = serde_json::to_vec(&frame).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(line.into()), (frames, frame)))
    })
}

/// A shard that says nothing but the truth about stored xorbs.
struct Validated {
    files: Vec<(Hash, Vec<Segment>)>,
    dedup: Addition,
}

/// Checks every claim of a shard. `progress` gets the number of files and xorbs done, and of all. Blocks.
fn validate(store: &CasStore, shard: Shard, mut progress: impl FnMut(u64, u64)) -> Result<Validated, Error> {
    let mut effort = Effort::start(&shard)?;
    let total = (shard.files.len() + shard.xorbs.len()) as u64;
    let mut done = 0;
    let mut step = || {
        if done % PROGRESS_STEP == 0 {
            progress(done, total);
        }
        done += 1;
    };
    let mut dedup = Addition::default();
    let mut named = HashSet::new();
    for section in &shard.xorbs {
        step();
        check_section(section, effort.find(store, &section.hash)?.as_ref())?;
        named.insert(section.hash);
        dedup.list(section);
    }
    let mut files = Vec::with_capacity(shard.files.len());
    for file in shard.files {
        step();
        if let Some((first, segment)) = check_file(store, &file, &mut effort)? {
            dedup.add(first, segment.xorb);
        }
        named.extend(file.segments.iter().map(|segment| segment.xorb));
        files.push((file.hash, file.segments));
    }
    // The registration must not outlive a xorb: one may be there by the grace of another process
    // that has yet to sync its name.
    store.xorbs().make_durable(&named)?;
    progress(total, total);
    Ok(Validated { files, dedup })
}

/// Chunks that may still be looked at.
pub(super) struct Effort(u64);

impl Effort {
    /// So many.
    pub(super) fn of(chunks: u64) -> Self {
        Self(chunks)
    }

    /// What is left when those that the terms name are paid for.
    fn start(shard: &Shard) -> Result<Self, Error> {
        let segments = shard.files.iter().flat_map(|file| &file.segments);
        let mut effort = Self::of(MAX_EFFORT);
        effort.spend(segments.map(|segment| u64::from(segment.end.saturating_sub(segment.start))).sum())?;
        Ok(effort)
    }

    fn spend(&mut self, chunks: u64) -> Result<(), Error> {
        let too_much = || Error::Invalid(format!("too large: more than {MAX_EFFORT} chunks to look at"));
        self.0 = self.0.checked_sub(chunks).ok_or_else(too_much)?;
        Ok(())
    }

    /// The index of a xorb. One that has to be read costs its chunks.
    pub(super) fn find(&mut self, store: &CasStore, xorb: &Hash) -> Result<Arc<XorbIndex>, Error> {
        if let Some(index) = store.xorbs().cached(xorb) {
            return Ok(index);
        }
        let index = store.xorbs().find(xorb)?.ok_or_else(|| Error::Invalid(format!("xorb {xorb} is not stored")))?;
        self.spend(index.chunks.len() as u64)?;
        Ok(index)
    }
}

/// A xorb section must list exactly the chunks of the stored xorb. Start offsets may be of either kind that clients
/// write (spec, 7.3), lengths on disk are hints.
fn check_section(section: &XorbInfo, index: &XorbIndex) -> Result<(), Error> {
    let stored = dedup::section(index);
    let same_lists = section.chunks.len() == stored.chunks.len() && section.raw_len == stored.raw_len;
    let mut stored_start = 0;
    let same_chunks = section.chunks.iter().zip(&stored.chunks).zip(&index.chunks).all(|((given, stored), entry)| {
        let starts = [stored.raw_start, std::mem::replace(&mut stored_start, entry.stored_end)];
        given.hash == stored.hash && given.raw_len == stored.raw_len && starts.contains(&given.raw_start)
    });
    if same_lists && same_chunks {
        Ok(())
    } else {
        Err(Error::Invalid(format!("the section of xorb {} is not that of the stored one", section.hash)))
    }
}

/// Checks a file's terms, their verification hashes and its file hash. Gives its first chunk, unless it is empty.
fn check_file(store: &CasStore, file: &FileInfo, effort: &mut Effort) -> Result<Option<(Hash, Segment)>, Error> {
    let refused = |why: &str| Error::Invalid(format!("file {}: {why}", file.hash));
    if file.verification.len() != file.segments.len() {
        return Err(refused("its terms have no verification hashes"));
    }
    let mut tree = Tree::new();
    let mut len = 0u64;
    let mut first = None;
    for (segment, verification) in file.segments.iter().zip(&file.verification) {
        let index = effort.find(store, &segment.xorb)?;
        let chunks = index.chunks.get(segment.start as usize..segment.end as usize).unwrap_or_default();
        let chunk =
            chunks.first().ok_or_else(|| refused("a term names no chunks, or some that its xorb doesn't have"))?;
        first.get_or_insert((chunk.hash, *segment));
        let raw_len: u64 = chunks.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
        if raw_len != u64::from(segment.raw_len) {
            return Err(refused("a term's length is not that of its chunks"));
        }
        if hash::term_hash(chunks.iter().map(|chunk| chunk.hash)) != *verification {
            return Err(refused("a verification hash is wrong"));
        }
        chunks.iter().for_each(|chunk| tree.push(chunk.hash, u64::from(chunk.raw_len)));
        len = len.checked_add(raw_len).filter(|&len| len <= MAX_FILE).ok_or_else(|| refused("it is too long"))?;
    }
    if tree.into_file_hash() != file.hash {
        return Err(refused("its chunks have another hash"));
    }
    Ok(first)
}

/// Registers a validated shard for a bucket, durably. Whether a file of it is new.
async fn register(store: &CasStore, bucket: i64, validated: Validated) -> Result<bool, Error> {
    store.db().write(move |transaction| insert(transaction, bucket, &validated)).await
}

fn insert(transaction: &Transaction<'_>, bucket: i64, validated: &Validated) -> Result<bool, Error> {
    // A token outlives its bucket by some minutes.
    if !bucket_exists(transaction, bucket)? {
        return Err(Error::Forbidden("the bucket of this token was removed"));
    }
    let mut any_new = false;
    for (hash, segments) in &validated.files {
        if *hash == Hash::ZERO {
            continue;
        }
        let (file, is_new) = files::register(transaction, hash, segments)?;
        files::link(transaction, bucket, &file)?;
        any_new |= is_new;
    }
    dedup::insert(transaction, bucket, &validated.dedup)?;
    Ok(any_new)
}

fn bucket_exists(transaction: &Transaction<'_>, bucket: i64) -> Result<bool, db::Error> {
    Ok(transaction.prepare_cached("SELECT 1 FROM buckets WHERE id = ?1")?.exists([bucket])?)
}
