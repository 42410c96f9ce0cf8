//! `HEAD|GET /buckets/{ns}/{name}/resolve/{path}` (Hub API spec, 4.5): a file's headers, and its bytes.
//!
//! Answered with 200 and the bytes themselves, never a redirect: that every client can read.

use super::access::{Bucket, Found, find};
use super::json::http_time;
use super::tree::Object;
use super::{Call, Target};
use crate::hub::local::db::{self, Db};
use crate::hub::local::errors::ApiError;
use crate::hub::local::range::wanted_ranges;
use crate::xet::Hash;
use axum::body::{Body, Bytes};
use axum::http::header::{
    ACCEPT, ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, LAST_MODIFIED, LINK, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use futures::stream::{self, Stream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use std::ops::Range;

/// What files are served as when their uploader said nothing, or nothing that fits a header.
pub(super) const DEFAULT_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Bytes of a blob that are read at a time.
const PIECE: u64 = 1024 * 1024;

/// The media type of a file's hash and size as JSON. Some clients ask for it instead of sending HEAD.
const FILE_INFO: &str = "application/vnd.xet-fileinfo+json";

/// Answers for one file.
pub(super) async fn answer(call: Call, target: Target, key: String) -> Result<Response, ApiError> {
    if !matches!(call.method(), &Method::GET | &Method::HEAD) {
        return Err(ApiError::method_not_allowed("GET, HEAD"));
    }
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let row = bucket.id;
    let object = call.site.shared.db.read(move |c| Ok::<_, ApiError>(Object::find(c, row, key.as_bytes())?)).await?;
    let object = object.ok_or_else(ApiError::entry_not_found)?;
    let headers = describe(&call, &bucket, &object).map_err(|e| ApiError::internal(&e))?;
    let content = Content { etag: etag(&object), size: object.size, place: Place::Xet(object.hash) };
    serve(&call, headers, &content).await
}

/// A file's content, as answers need it.
pub(super) struct Content {
    /// Entity tag, with quotes.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) place: Place,
}

/// Place of a file's content.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In Xet, with this file hash.
    Xet(Hash),
    /// In this row of the table `git_blobs`.
    Blob(i64),
}

/// Answers with the bytes that a request asks for, under these headers, to which those of the range are added.
pub(super) async fn serve(call: &Call, headers: HeaderMap, content: &Content) -> Result<Response, ApiError> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    if let Place::Xet(hash) = content.place
        && call.method() == Method::GET
        && wants_file_info(call.headers())
    {
        return Ok(file_info(response, hash, content.size));
    }
    if call.headers().get_all(IF_NONE_MATCH).iter().any(|value| names(value, &content.etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let mut bytes = 0..content.size;
    if call.method() == Method::GET
        && let Some(range) = wanted(call.headers(), &content.etag, content.size)?
    {
        let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, content.size);
        let shown = HeaderValue::try_from(shown).map_err(|e| ApiError::internal(&e))?;
        response.headers_mut().insert(CONTENT_RANGE, shown);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        bytes = range;
    }
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if call.method() == Method::GET && !bytes.is_empty() {
        *response.body_mut() = read(call, content.place, bytes).await?;
    }
    Ok(response)
}

/// Reads a range of a content piece by piece. An error in it breaks the connection off.
async fn read(call: &Call, place: Place, bytes: Range<u64>) -> Result<Body, ApiError> {
    match place {
        Place::Xet(hash) => {
            let content = call.site.shared.cas.read_file(&hash, bytes).await.map_err(|e| ApiError::internal(&e))?;
            Ok(Body::from_stream(content))
        }
        Place::Blob(row) => Ok(Body::from_stream(read_blob(call.site.shared.db.clone(), row, bytes))),
    }
}

/// Reads a range of a blob in pieces of at most [`PIECE`] bytes.
fn read_blob(db: Db, row: i64, bytes: Range<u64>) -> impl Stream<Item = Result<Bytes, db::Error>> {
    stream::try_unfold(bytes, move |mut bytes| {
        let db = db.clone();
        async move {
            if bytes.is_empty() {
                return Ok(None);
            }
            let len = PIECE.min(bytes.end - bytes.start);
            // The first byte has number 1.
            let first = i64::try_from(bytes.start + 1).unwrap_or(i64::MAX);
            let piece: Vec<u8> = db
                .read(move |c| {
                    let sql = "SELECT substr(content, ?2, ?3) FROM git_blobs WHERE id = ?1";
                    Ok::<_, db::Error>(c.prepare_cached(sql)?.query_row((row, first, len as i64), |row| row.get(0))?)
                })
                .await?;
            bytes.start += len;
            Ok(Some((Bytes::from(piece), bytes)))
        }
    })
}

/// Returns true if the client would rather have [`FILE_INFO`] than the bytes: `Accept` names it first.
fn wants_file_info(headers: &HeaderMap) -> bool {
    let first =
        headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).and_then(|accept| accept.split([',', ';']).next());
    first.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(FILE_INFO))
}

/// Answers with hash and size as JSON, under the headers that `response` has. Applies to the whole file, whatever
/// range was asked for.
fn file_info(mut response: Response, hash: Hash, size: u64) -> Response {
    let body = json!({"hash": hash, "size": size}).to_string();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(FILE_INFO));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::from(body);
    response
}

fn describe(
    call: &Call,
    bucket: &Bucket,
    object: &Object,
) -> Result<HeaderMap, axum::http::header::InvalidHeaderValue> {
    let (base, hash) = (call.base(), object.hash);
    let auth = format!("{base}/api/buckets/{}/{}/xet-read-token", bucket.namespace, bucket.name);
    let cas = call.site.cas_base(call.headers());
    let link =
        format!("<{auth}>; rel=\"xet-auth\", <{cas}/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\"");
    let kind = object.content_type.as_ref().and_then(|kind| HeaderValue::try_from(kind).ok());
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (HeaderName::from_static("x-xet-hash"), HeaderValue::try_from(hash.to_string())?),
        (HeaderName::from_static("x-xet-refresh-route"), HeaderValue::try_from(auth)?),
        (HeaderName::from_static("x-linked-size"), HeaderValue::from(object.size)),
        (HeaderName::from_static("x-linked-etag"), HeaderValue::try_from(etag(object))?),
        (LINK, HeaderValue::try_from(link)?),
        (ETAG, HeaderValue::try_from(etag(object))?),
        (LAST_MODIFIED, HeaderValue::try_from(http_time(object.uploaded))?),
        (ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        // The answer to GET depends on it.
        (VARY, HeaderValue::from_static("accept")),
        (CONTENT_TYPE, kind.unwrap_or(DEFAULT_TYPE)),
        // Whoever uploads a page with a script in it shall not have a browser run it on this origin.
        (CONTENT_DISPOSITION, HeaderValue::try_from(disposition(&object.key))?),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ] {
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Returns a `Content-Disposition` that saves the file of this path under its name.
pub(super) fn disposition(path: &[u8]) -> String {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(&name, NON_ALPHANUMERIC))
}

fn etag(object: &Object) -> String {
    format!("\"{}\"", object.hash)
}

/// Whether a list of entity tags has this one, or is `*`.
fn names(list: &HeaderValue, etag: &str) -> bool {
    let Ok(list) = list.to_str() else { return false };
    list.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// The part of the file that the request asks for; `None` is the whole of it, as it is for a `Range` that is malformed,
/// names several parts or was meant for another version (RFC 9110, 14.2).
fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Result<Option<Range<u64>>, ApiError> {
    let ranges = wanted_ranges(headers).ok().flatten();
    let ranges = ranges.filter(|_| headers.get(IF_RANGE).is_none_or(|tag| tag == etag));
    let Some([wanted]) = ranges.as_deref() else { return Ok(None) };
    wanted.resolve(size).map(Some).ok_or_else(|| ApiError::range_not_satisfiable(size))
}
