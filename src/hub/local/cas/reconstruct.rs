//! Reconstructions (Xet spec, 10.1-10.3): where the bytes of a file are.

use super::files::{self, File, Terms};
use super::{CasStore, Error, authorize, blocking, data, parse_hash};
use crate::hub::local::budget::{Budget, Share};
use crate::hub::local::range::{Wanted, wanted_ranges};
use crate::hub::local::{Site, body};
use crate::xet::plan::{self, Plan};
use crate::xet::reconstruction::MAX_TERMS;
use crate::xet::shard::Segment;
use crate::xet::{self, Hash, Scope};
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

/// Files of one batch request: what fits into a URL.
const MAX_BATCH: usize = 1000;
/// Longest body of a batch request, in bytes: about 140 for each file.
const MAX_BATCH_BODY: usize = 256 * 1024;
/// Terms of an answer that needs no share: half a megabyte, tens of GiB of an ordinary file.
const SHORT: usize = 1024;
/// Bytes of a long answer that are handed to the connection at a time.
const PIECE: usize = 1024 * 1024;

/// `GET /v1/reconstructions/{hash}`.
pub(super) async fn get_v1(site: State<Arc<Site>>, hash: Path<String>, headers: HeaderMap) -> Result<Response, Error> {
    answer(site, hash, headers, |plan, signer| plan.to_v1(|xorb, ranges| signer.url(xorb, ranges))).await
}

/// `GET /v2/reconstructions/{hash}`.
pub(super) async fn get_v2(site: State<Arc<Site>>, hash: Path<String>, headers: HeaderMap) -> Result<Response, Error> {
    answer(site, hash, headers, |plan, signer| plan.to_v2(|xorb, ranges| signer.url(xorb, ranges))).await
}

async fn answer(
    State(site): State<Arc<Site>>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    write: impl FnOnce(&Plan, &data::Signer) -> Vec<u8> + Send + 'static,
) -> Result<Response, Error> {
    let bucket = authorize(&site, &headers, Scope::Read)?;
    let hash = parse_hash(&hash)?;
    let wanted = wanted_range(&headers)?;
    let store = site.shared.cas.clone();
    let find = move |connection: &Connection| Ok(vec![find_range(connection, bucket, &hash, wanted)?]);
    let (found, share) = read_terms(&store, find).await?;
    let signer = data::Signer::new(Arc::clone(&site), &headers);
    let json = blocking(move || {
        let (_, range, terms) = found.first().ok_or(Error::Task)?;
        Ok(write(&plan_range(&store, &hash, terms, range)?, &signer))
    });
    Ok(json_response(json.await?, share))
}

/// `HEAD /v1/files/{hash}`.
pub(super) async fn head_file(
    State(site): State<Arc<Site>>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let bucket = authorize(&site, &headers, Scope::Read)?;
    let hash = parse_hash(&hash)?;
    let find = move |connection: &Connection| find_file(connection, bucket, &hash);
    let file = site.shared.cas.db().read(find).await?;
    Ok(super::head_of_len(file.len))
}

/// `GET /v1/reconstructions?file_id=…&file_id=…`.
pub(super) async fn get_many(
    State(site): State<Arc<Site>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let bucket = authorize(&site, &headers, Scope::Read)?;
    let query = query.unwrap_or_default();
    let ids = query.split('&').filter_map(|pair| pair.strip_prefix("file_id="));
    let hashes = ids.map(parse_hash).collect::<Result<Vec<_>, _>>()?;
    answer_many(&site, bucket, hashes, &headers).await
}

/// One file of a batch request.
#[derive(Deserialize)]
struct BatchItem {
    hash: Hash,
}

/// `POST /v1/reconstructions`.
pub(super) async fn post_many(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let bucket = match authorize(&site, &headers, Scope::Read) {
        Ok(bucket) => bucket,
        Err(error) => {
            body::drain(body, MAX_BATCH_BODY).await;
            return Err(error);
        }
    };
    let received = site.shared.cas.receive(&headers, body, MAX_BATCH_BODY, 1).await?;
    let items: Vec<BatchItem> = serde_json::from_slice(&received.bytes).map_err(|e| Error::Invalid(e.to_string()))?;
    answer_many(&site, bucket, items.into_iter().map(|item| item.hash).collect(), &headers).await
}

/// Whole files; those that aren't there are left out.
async fn answer_many(site: &Arc<Site>, bucket: i64, hashes: Vec<Hash>, headers: &HeaderMap) -> Result<Response, Error> {
    if hashes.len() > MAX_BATCH {
        return Err(Error::Invalid(format!("more than {MAX_BATCH} files")));
    }
    let store = site.shared.cas.clone();
    let find = move |connection: &Connection| {
        // Each file once, however often it is named.
        let each =
            hashes.iter().collect::<BTreeSet<_>>().into_iter().map(|hash| find_range(connection, bucket, hash, None));
        each.filter(|found| !matches!(found, Err(Error::NotFound(_)))).collect()
    };
    let (found, share) = read_terms(&store, find).await?;
    let signer = data::Signer::new(Arc::clone(site), headers);
    let json = blocking(move || batch_json(&store, found, &signer)).await?;
    Ok(json_response(json, share))
}

/// Blocks: reads the indexes of xorbs.
fn batch_json(store: &CasStore, found: Vec<WithTerms>, signer: &data::Signer) -> Result<Vec<u8>, Error> {
    // Planned as if they were one file, for stretches that are merged over all of them. Whole files
    // keep all their terms.
    let counts: Vec<_> = found.iter().map(|(file, _, terms)| (file.hash, terms.segments.len())).collect();
    let segments: Vec<Segment> = found.into_iter().flat_map(|(_, _, terms)| terms.segments).collect();
    let len = plan::file_len(&segments);
    let plan = plan_range(store, &Hash::ZERO, &Terms { start: 0, segments }, &(0..len))?;
    let mut terms = plan.terms.iter().map(|term| {
        let range = json!({ "start": term.chunks.start, "end": term.chunks.end });
        json!({ "hash": term.xorb, "unpacked_length": term.raw_len, "range": range })
    });
    let files: Map<String, Value> =
        counts.iter().map(|(hash, count)| (hash.to_string(), terms.by_ref().take(*count).collect())).collect();
    let mut fetch_info = BTreeMap::<Hash, Vec<Value>>::new();
    for stretch in &plan.stretches {
        let url = signer.url(&stretch.xorb, std::slice::from_ref(&stretch.bytes));
        let range = json!({ "start": stretch.chunks.start, "end": stretch.chunks.end });
        let url_range = json!({ "start": stretch.bytes.start, "end": stretch.bytes.end - 1 });
        let fetch = json!({ "range": range, "url": url, "url_range": url_range });
        fetch_info.entry(stretch.xorb).or_default().push(fetch);
    }
    serde_json::to_vec(&json!({ "files": files, "fetch_info": fetch_info })).map_err(|_| Error::Task)
}

/// A file, and the bytes of it that are asked for: none only of the empty file.
type Ranged = (File, Range<u64>);
/// The same with the terms that hold them.
type WithTerms = (File, Range<u64>, Terms);

fn find_file(connection: &Connection, bucket: i64, hash: &Hash) -> Result<File, Error> {
    files::find_linked(connection, bucket, hash)?.ok_or(Error::NotFound("file"))
}

fn find_range(connection: &Connection, bucket: i64, hash: &Hash, wanted: Option<Wanted>) -> Result<Ranged, Error> {
    let file = find_file(connection, bucket, hash)?;
    let range = match wanted.unwrap_or(Wanted::From(0)) {
        Wanted::Closed(0, _) | Wanted::From(0) | Wanted::Last(_) if file.len == 0 => 0..0,
        wanted => wanted.resolve(file.len).ok_or(Error::Range { len: file.len })?,
    };
    Ok((file, range))
}

/// What the first look into the database gives.
enum Answer {
    Short(Vec<WithTerms>),
    /// With the number of its terms.
    Long(Vec<Ranged>, usize),
}

/// Terms of all long answers under way together: what the longest answer that clients take has. About 500 bytes each.
pub(super) fn terms_in_flight() -> Budget {
    Budget::new(MAX_TERMS as u32)
}

/// Reads the terms of what `find` finds. Long answers get their share of the terms in flight first,
/// to be kept until they are sent.
async fn read_terms(
    store: &CasStore,
    find: impl FnOnce(&Connection) -> Result<Vec<Ranged>, Error> + Send + 'static,
) -> Result<(Vec<WithTerms>, Option<Share>), Error> {
    let first = move |connection: &Connection| {
        let found = find(connection)?;
        let counts = found.iter().map(|(file, range)| files::count_terms(connection, file, range));
        let count = counts.sum::<Result<usize, _>>()?;
        let short = count <= SHORT;
        Ok::<_, Error>(if short { Answer::Short(with_terms(connection, found)?) } else { Answer::Long(found, count) })
    };
    let (found, count) = match store.db().read(first).await? {
        Answer::Short(found) => return Ok((found, None)),
        Answer::Long(found, count) => (found, count),
    };
    if count > MAX_TERMS {
        return Err(Error::Invalid(format!("more than {MAX_TERMS} terms at once")));
    }
    let share = store.terms.take(count).await?;
    let found = store.db().read(move |connection| with_terms(connection, found)).await?;
    Ok((found, Some(share)))
}

fn with_terms(connection: &Connection, found: Vec<Ranged>) -> Result<Vec<WithTerms>, Error> {
    let terms = |file: &File, range: &Range<u64>| match range.is_empty() {
        true => Ok(Terms { start: 0, segments: Vec::new() }),
        false => files::terms(connection, file, range),
    };
    found.into_iter().map(|(file, range)| terms(&file, &range).map(|terms| (file, range, terms))).collect()
}

/// What of `terms` holds the file bytes `range`. Blocks.
pub(super) fn plan_range(store: &CasStore, file: &Hash, terms: &Terms, range: &Range<u64>) -> Result<Plan, Error> {
    let relative = range.start - terms.start..range.end - terms.start;
    // The planner's error type is that of the formats: what the store itself says is kept aside.
    let mut own = None;
    let plan = plan::plan(&terms.segments, Some(relative), |xorb| {
        store.xorbs().index(xorb).map_err(|error| {
            own = Some(error);
            xet::Error::NotFound(*xorb)
        })
    });
    plan.map_err(|error| own.unwrap_or_else(|| Error::damaged("file", file, error)))
}

/// The one range of a request for a file.
fn wanted_range(headers: &HeaderMap) -> Result<Option<Wanted>, Error> {
    match wanted_ranges(headers)?.as_deref() {
        None => Ok(None),
        Some([wanted]) => Ok(Some(*wanted)),
        Some(_) => Err(Error::Invalid("several ranges of a file".into())),
    }
}

/// The share is given back when the last byte was taken for sending, or the client is gone.
fn json_response(json: Vec<u8>, share: Option<Share>) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, json.len().to_string())];
    let body = match share {
        None => Body::from(json),
        Some(share) => Body::from_stream(stream::unfold((Bytes::from(json), share), async |(mut rest, share)| {
            let piece = rest.split_to(rest.len().min(PIECE));
            (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (rest, share)))
        })),
    };
    (headers, body).into_response()
}
