//! Upload by grant (Xet spec, 10.5 B): the client asks, puts the xorb to a signed URL, and commits.
//!
//! A grant is kept nowhere: its id says which xorb, how long, with which checksum and until when, under a MAC whose key
//! is in the database. So any process that shares the directory can take the data and the commit, and there is nothing
//! to clean up. A PUT is verified wholly and published at once; as xorbs are addressed by content, a commit only has to
//! see that it is there. Data that isn't the xorb granted is therefore refused by the PUT (400) and never reaches the
//! commit, which then answers 404: no data for this grant.

use super::intake::{self, Intake};
use super::{Error, authorize, check_prefix, parse_hash, xorbs};
use crate::hub::local::auth::now_seconds;
use crate::hub::local::{Site, body};
use crate::xet::xorb::{CHUNK_HEADER_LEN, MAX_CHUNKS, MAX_SERIALISED};
use crate::xet::{Hash, Scope};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// How long a grant lives, in seconds: as long as a data URL.
const GRANT_LIFE: u64 = 3600;
/// Purpose of the MAC in a grant's id.
const PURPOSE: &str = "cas xorb grant v1";
/// Longest request for a grant, in bytes: ours are about 100.
const MAX_REQUEST: usize = 4096;
/// Longest xorb without a footer, in bytes: 64 MiB of chunks and their headers.
const MAX_AREA: u64 = (64 * 1024 * 1024 + CHUNK_HEADER_LEN * MAX_CHUNKS) as u64;

/// What a client asks a grant for.
#[derive(Deserialize)]
struct Request {
    length: u64,
    checksum: Checksum,
}

#[derive(Deserialize)]
struct Checksum {
    algo: String,
    /// Decimal.
    value: String,
}

/// A grant. As text, `length-crc-expires-mac`, it is the grant's id; the xorb stands
/// beside it in every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    xorb: Hash,
    /// Bytes of the body.
    length: u64,
    /// CRC-64/NVME of the body.
    crc: u64,
    /// Unix seconds.
    expires: u64,
}

impl Grant {
    fn id(&self, site: &Site) -> String {
        format!("{}-{}", self.fields(), self.mac(site).to_hex())
    }

    /// The grant with this id, if we gave it for this xorb.
    fn open(site: &Site, xorb: Hash, id: &str) -> Option<Self> {
        let mut fields = id.split('-');
        let mut number = || fields.next()?.parse().ok();
        let grant = Self { xorb, length: number()?, crc: number()?, expires: number()? };
        let mac = blake3::Hash::from_hex(fields.next()?).ok()?;
        // One spelling only: the MAC is over the numbers, not over the text.
        let is_ours = fields.next().is_none() && mac == grant.mac(site) && id == grant.id(site);
        is_ours.then_some(grant)
    }

    fn fields(&self) -> String {
        format!("{}-{}-{}", self.length, self.crc, self.expires)
    }

    fn mac(&self, site: &Site) -> blake3::Hash {
        site.shared.auth.mac(PURPOSE, format!("{}\n{}", self.xorb, self.fields()).as_bytes())
    }
}

/// `POST /v1/xorb-grants/{prefix}/{hash}`.
pub(super) async fn post(
    State(site): State<Arc<Site>>,
    Path((prefix, hash)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let received = match authorize(&site, &headers, Scope::Write) {
        Ok(_) => site.shared.cas.receive(&headers, body, MAX_REQUEST, 1).await?,
        Err(error) => {
            body::drain(body, MAX_REQUEST).await;
            return Err(error);
        }
    };
    check_prefix(&prefix)?;
    let xorb = parse_hash(&hash)?;
    let (length, crc) = parse_request(&received.bytes)?;
    if xorbs::contains_sound(&site.shared.cas, xorb).await? {
        return Ok(Json(json!({})).into_response());
    }
    let grant = Grant { xorb, length, crc, expires: now_seconds() + GRANT_LIFE };
    let id = grant.id(&site);
    let url = format!("{}/grants/{xorb}/{id}", site.cas_base(&headers));
    let answer = json!({ "id": id, "method": "PUT", "url": url, "headers": { "If-None-Match": "*" } });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

fn parse_request(body: &[u8]) -> Result<(u64, u64), Error> {
    let Request { length, checksum } = serde_json::from_slice(body).map_err(|e| Error::Invalid(e.to_string()))?;
    if checksum.algo != "crc64nvme" {
        return Err(Error::Invalid("the checksum must be crc64nvme".into()));
    }
    let crc = checksum.value.parse().map_err(|_| Error::Invalid("the checksum is not a decimal number".into()))?;
    if length == 0 || length > MAX_AREA {
        return Err(Error::Invalid(format!("a xorb has 1 to {MAX_AREA} bytes")));
    }
    Ok((length, crc))
}

/// `PUT /grants/{hash}/{id}`.
pub(super) async fn put(
    State(site): State<Arc<Site>>,
    Path((hash, id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Error> {
    let grant = match admit(&site, &hash, &id).await {
        Ok(grant) => grant,
        Err(error) => {
            body::drain(body, MAX_SERIALISED).await;
            return Err(error);
        }
    };
    let store = &site.shared.cas;
    let intake = Intake::new(store, grant.xorb, false).granted(grant.length, grant.crc);
    intake::receive(store, &headers, body, grant.length as usize, intake).await?;
    Ok(StatusCode::OK)
}

async fn admit(site: &Site, hash: &str, id: &str) -> Result<Grant, Error> {
    let grant =
        Grant::open(site, parse_hash(hash)?, id).ok_or(Error::Forbidden("this is not a grant of this server"))?;
    if grant.expires <= now_seconds() {
        return Err(Error::Forbidden("this grant has expired"));
    }
    // As `If-None-Match: *` asks.
    if xorbs::contains_sound(&site.shared.cas, grant.xorb).await? { Err(Error::AlreadyStored) } else { Ok(grant) }
}

/// `POST /v1/xorb-commits/{prefix}/{hash}/grant/{id}`.
pub(super) async fn commit(
    State(site): State<Arc<Site>>,
    Path((prefix, hash, id)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Error> {
    authorize(&site, &headers, Scope::Write)?;
    check_prefix(&prefix)?;
    let grant = Grant::open(&site, parse_hash(&hash)?, &id).ok_or(Error::NotFound("grant"))?;
    if xorbs::contains(&site.shared.cas, grant.xorb).await? { Ok(StatusCode::OK) } else { Err(Error::NotFound("data")) }
}
