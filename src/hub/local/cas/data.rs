//! Data URLs (Xet spec, 10.7): pre-signed, for byte ranges of one xorb, good for an hour without any token.
//!
//! A URL carries its ranges and its expiry under a MAC whose key is in the database, so every process that shares the
//! directory serves it. Asked for may be any part of one of its ranges, or several ascending ones at once (multipart).
//! Altered, expired or asked for more: 403.

use super::pool::Pool;
use super::xorbs::stored_len;
use super::{Error, blocking, parse_hash};
use crate::disk::DiskFile;
use crate::hub::local::Site;
use crate::hub::local::auth::now_seconds;
use crate::hub::local::range::{Wanted, wanted_ranges};
use crate::xet::{Hash, byteranges};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

/// How long a URL lives, in seconds: clients keep reconstructions for 59 minutes.
const URL_LIFE: u64 = 3600;
/// Purpose of the MAC in a URL.
const PURPOSE: &str = "cas data url v1";
/// Most ranges of one request: a v2 URL has no more.
const MAX_RANGES: usize = crate::xet::plan::MAX_RANGES_PER_URL;
/// Bytes of a xorb that are read, and held, at a time.
const PIECE: u64 = 1024 * 1024;
/// Shorter pieces, in bytes, get memory of their own length.
const SHORT: usize = 64 * 1024;

/// The buffers of pieces.
pub(super) fn pieces() -> Pool {
    Pool::new(PIECE as usize)
}

/// Makes the URLs of one answer.
pub(super) struct Signer {
    site: Arc<Site>,
    base: String,
    expires: u64,
}

impl Signer {
    /// For the answer to a request with these headers.
    pub(super) fn new(site: Arc<Site>, headers: &HeaderMap) -> Self {
        let base = site.cas_base(headers);
        Self { site, base, expires: now_seconds() + URL_LIFE }
    }

    /// A URL for ascending byte ranges (end exclusive, not empty) of a xorb.
    pub(super) fn url(&self, xorb: &Hash, ranges: &[Range<u64>]) -> String {
        let mut list = String::with_capacity(20 * ranges.len());
        for range in ranges {
            let separator = if list.is_empty() { "" } else { "_" };
            write!(list, "{separator}{}-{}", range.start, range.end.saturating_sub(1))
                .expect("a String takes all writes");
        }
        let mac = mac(&self.site, xorb, &list, self.expires).to_hex();
        format!("{}/data/{xorb}?r={list}&e={}&s={mac}", self.base, self.expires)
    }
}

fn mac(site: &Site, xorb: &Hash, ranges: &str, expires: u64) -> blake3::Hash {
    site.shared.auth.mac(PURPOSE, format!("{xorb}\n{expires}\n{ranges}").as_bytes())
}

/// The query of a data URL.
#[derive(Deserialize)]
pub(super) struct Signed {
    /// Ranges, `first-last` joined by `_`.
    r: String,
    /// Expiry, Unix seconds.
    e: u64,
    /// The MAC.
    s: String,
}

impl Signed {
    fn check(&self, site: &Site, xorb: &Hash) -> Result<Vec<Range<u64>>, Error> {
        // `blake3::Hash` compares in constant time.
        let given = blake3::Hash::from_hex(&self.s).map_err(|_| REFUSED)?;
        if given != mac(site, xorb, &self.r, self.e) {
            return Err(REFUSED);
        }
        if self.e <= now_seconds() {
            return Err(Error::Forbidden("this URL has expired"));
        }
        let ranges = self.r.split('_').map(|range| match Wanted::parse(range) {
            Some(Wanted::Closed(first, last)) => Ok(first..last.saturating_add(1)),
            _ => Err(REFUSED),
        });
        ranges.collect()
    }
}

const REFUSED: Error = Error::Forbidden("the signature of this URL is not valid");

/// `GET /data/{hash}?…`.
pub(super) async fn get(
    State(site): State<Arc<Site>>,
    Path(hash): Path<String>,
    query: Result<Query<Signed>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let hash = parse_hash(&hash)?;
    let Query(signed) = query.map_err(|_| REFUSED)?;
    let allowed = signed.check(&site, &hash)?;
    let wanted = wanted_ranges(&headers)?;
    let store = site.shared.cas.clone();
    let (file, total) = blocking(move || {
        let (file, index) = store.xorbs().open(&hash)?;
        Ok((file, stored_len(&index)))
    })
    .await?;
    let ranges = match wanted {
        Some(wanted) => resolve(&wanted, &allowed, total)?,
        // Without a header all of the URL's ranges are meant, in the form that a request for them gets.
        None => allowed,
    };
    let source = Source { file: Arc::from(file), buffers: site.shared.cas.pieces.clone() };
    Ok(respond(source, total, ranges))
}

/// The ranges asked for: ascending, not overlapping, each within one that the URL allows. So a
/// request never costs more than the xorb.
fn resolve(wanted: &[Wanted], allowed: &[Range<u64>], total: u64) -> Result<Vec<Range<u64>>, Error> {
    if wanted.len() > MAX_RANGES {
        return Err(Error::Invalid(format!("more than {MAX_RANGES} ranges")));
    }
    let mut end = 0;
    let resolve_one = |wanted: &Wanted| {
        let range = wanted.resolve(total).ok_or(Error::Range { len: total })?;
        if !allowed.iter().any(|allowed| allowed.start <= range.start && range.end <= allowed.end) {
            return Err(Error::Forbidden("this URL doesn't cover that range"));
        }
        if range.start < std::mem::replace(&mut end, range.end) {
            return Err(Error::Invalid("ranges overlap or don't ascend".into()));
        }
        Ok(range)
    };
    wanted.iter().map(resolve_one).collect()
}

fn respond(source: Source, total: u64, ranges: Vec<Range<u64>>) -> Response {
    let mut pieces = VecDeque::new();
    let (content_type, content_range) = match ranges.as_slice() {
        [range] => {
            pieces.extend(cut(range));
            ("application/octet-stream".to_owned(), Some(format!("bytes {}-{}/{total}", range.start, range.end - 1)))
        }
        _ => {
            let boundary = uuid::Uuid::now_v7().simple().to_string();
            for range in &ranges {
                pieces.push_back(Piece::Text(byteranges::part_head(&boundary, range, total)));
                pieces.extend(cut(range));
            }
            pieces.push_back(Piece::Text(byteranges::end(&boundary)));
            (format!("multipart/byteranges; boundary={boundary}"), None)
        }
    };
    let len: u64 = pieces.iter().map(Piece::len).sum();
    let headers = [(header::CONTENT_TYPE, content_type), (header::CONTENT_LENGTH, len.to_string())];
    let content_range = content_range.map(|value| [(header::CONTENT_RANGE, value)]);
    (StatusCode::PARTIAL_CONTENT, headers, content_range, stream_pieces(source, pieces)).into_response()
}

/// Something to send.
enum Piece {
    /// Of a multipart frame.
    Text(String),
    /// Bytes of the file, at most [`PIECE`].
    File(Range<u64>),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::File(range) => range.end - range.start,
        }
    }

    /// Blocks.
    fn read(self, file: &dyn DiskFile, buffers: &Pool) -> std::io::Result<Bytes> {
        let range = match self {
            Self::Text(text) => return Ok(text.into()),
            Self::File(range) => range,
        };
        let len = (range.end - range.start) as usize;
        if len < SHORT {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, range.start)?;
            return Ok(bytes.into());
        }
        let mut buffer = buffers.take();
        file.read_exact_at(&mut buffer[..len], range.start)?;
        Ok(Bytes::from_owner(buffer).slice(..len))
    }
}

/// A range as pieces.
fn cut(range: &Range<u64>) -> impl Iterator<Item = Piece> + use<> {
    let Range { start, end } = *range;
    (start..end).step_by(PIECE as usize).map(move |at| Piece::File(at..end.min(at + PIECE)))
}

/// Where pieces are read from, and into.
#[derive(Clone)]
struct Source {
    file: Arc<dyn DiskFile>,
    buffers: Pool,
}

/// A failed read breaks the connection, so that the client sees that bytes are missing.
fn stream_pieces(source: Source, pieces: VecDeque<Piece>) -> Body {
    Body::from_stream(stream::try_unfold((source, pieces), async |(source, mut pieces)| {
        let Some(piece) = pieces.pop_front() else { return Ok(None) };
        let Source { file, buffers } = source.clone();
        let read = move || piece.read(file.as_ref(), &buffers).map_err(Error::io("read a xorb"));
        Ok::<_, Error>(Some((blocking(read).await?, (source, pieces))))
    }))
}
