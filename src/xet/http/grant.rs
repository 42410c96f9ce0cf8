//! Xorb upload by grant: ask, put to the granted URL, commit (Xet spec, 10.5 path B).

use super::exchange::{Answer, Lane, Request, Target, is_https};
use super::retry::{Backoff, Failure};
use super::{HttpCas, MAX_REPLY, PREFIX};
use crate::{Body, Error, Hash, Scope, deadline};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use tokio::time::{Instant, sleep};

/// Grants asked for per xorb before it is sent directly.
const MAX_GRANTS: usize = 3;
/// What stays as it is in a grant id: unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is asked for a grant.
enum Offer {
    Grant(Grant),
    /// The xorb is stored already.
    Stored,
    /// This CAS has no grants.
    Nothing,
}

/// A place to put one xorb.
#[derive(Deserialize)]
struct Grant {
    id: String,
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// What became of a body sent to a granted URL.
enum Put {
    Done,
    /// 409: another writer is at it.
    Busy,
    /// The grant is no good (any more).
    Refused,
    /// Anything else.
    Failed,
}

impl HttpCas {
    /// Stores a xorb by grant; `None`: send it directly.
    pub(super) async fn put_by_grant(&self, hash: &Hash, body: &Body) -> Result<Option<bool>, Error> {
        let request = self.grant_request(body).await;
        for _ in 0..MAX_GRANTS {
            let grant = match self.ask_grant(hash, &request).await? {
                Offer::Grant(grant) => grant,
                Offer::Stored => return Ok(Some(false)),
                Offer::Nothing => {
                    self.no_grants.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
            };
            match self.put_granted(&grant, body).await? {
                Put::Done if self.commit(hash, &grant).await? => return Ok(Some(true)),
                Put::Done | Put::Busy | Put::Refused => (),
                Put::Failed => return Ok(None),
            }
        }
        Ok(None)
    }

    async fn grant_request(&self, body: &Body) -> Bytes {
        let content = body.clone();
        let checksum = move || {
            let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
            content.pieces().iter().for_each(|piece| digest.update(piece));
            digest.finalize()
        };
        let len = usize::try_from(body.len()).unwrap_or(usize::MAX);
        let checksum = crate::offload::offload(len, checksum).await;
        let checksum = serde_json::json!({ "algo": "crc64nvme", "value": checksum.to_string() });
        Bytes::from(serde_json::json!({ "length": body.len(), "checksum": checksum }).to_string())
    }

    async fn ask_grant(&self, hash: &Hash, body: &Bytes) -> Result<Offer, Error> {
        let path = format!("/v1/xorb-grants/{PREFIX}/{hash}");
        let request = Request::new("xorb grant", Method::POST, Target::Cas(&path, Scope::Write), &self.options)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body.clone());
        self.call(request, read_offer).await
    }

    async fn put_granted(&self, grant: &Grant, body: &Body) -> Result<Put, Error> {
        let mut backoff = Backoff::new(&self.options);
        loop {
            // A grant that asks for what we can't send is as good as none.
            let (Some(method), Some(headers)) = (grant.method(), grant.headers()) else { return Ok(Put::Failed) };
            let mut request = Request::new("granted xorb", method, Target::Signed(&grant.url), &self.options);
            request.headers = headers;
            request.body = Some(body.clone());
            request.lane = Lane::Upload;
            request.backoff = Backoff::none();
            // The direct path is as good, so nothing but a conflict is worth a second try here.
            let put = self.call(request, read_put).await.unwrap_or(Put::Failed);
            if !matches!(put, Put::Busy) {
                return Ok(put);
            }
            let dice = getrandom::u32().unwrap_or(0);
            match backoff.next(Failure::network("busy"), dice, Instant::now(), deadline::current()) {
                Ok(wait) => sleep(wait).await,
                Err(_) => return Ok(Put::Busy),
            }
        }
    }

    /// Whether the CAS took what was put; `false`: it found nothing there.
    async fn commit(&self, hash: &Hash, grant: &Grant) -> Result<bool, Error> {
        let id = utf8_percent_encode(&grant.id, SEGMENT);
        let path = format!("/v1/xorb-commits/{PREFIX}/{hash}/grant/{id}");
        let request = Request::new("xorb commit", Method::POST, Target::Cas(&path, Scope::Write), &self.options);
        let read = |answer: Answer| async {
            match answer.status() {
                200..=299 => Ok(true),
                404 => Ok(false),
                _ => Err(Failure::Final(answer.refusal().await)),
            }
        };
        self.call(request.body(Bytes::new()), read).await
    }
}

impl Grant {
    fn check(self, secure: bool) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::Final(Error::Malformed { what: "xorb grant", why: why.to_owned() });
        if matches!(self.id.as_str(), "" | "." | "..") {
            return Err(bad("its id is no path segment"));
        }
        if secure && !is_https(&self.url) {
            return Err(bad("it leads from TLS to plain HTTP"));
        }
        Ok(self)
    }

    /// `None`: none that stores anything.
    fn method(&self) -> Option<Method> {
        match self.method.as_str() {
            "PUT" => Some(Method::PUT),
            "POST" => Some(Method::POST),
            _ => None,
        }
    }

    /// `None`: one of them can't be sent.
    fn headers(&self) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let (name, value) = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok())?;
            // The transport's business, and the same value if the grant is sound.
            if name != CONTENT_LENGTH {
                headers.append(name, value);
            }
        }
        Some(headers)
    }
}

async fn read_offer(answer: Answer) -> Result<Offer, Failure> {
    match answer.status() {
        200 => Ok(Offer::Stored),
        201 => {
            let secure = answer.is_secure();
            let body = answer.collect(MAX_REPLY).await?;
            let grant: Grant = serde_json::from_slice(&body)
                .map_err(|_| Failure::damaged("xorb grant", "not the expected JSON object"))?;
            grant.check(secure).map(Offer::Grant)
        }
        404 => Ok(Offer::Nothing),
        _ => Err(Failure::Final(answer.refusal().await)),
    }
}

async fn read_put(answer: Answer) -> Result<Put, Failure> {
    Ok(match answer.status() {
        // 412: an earlier try of ours, or somebody else, has stored it.
        200..=299 | 412 => Put::Done,
        409 => Put::Busy,
        400 | 403 => Put::Refused,
        _ => Put::Failed,
    })
}
