//! The CAS over HTTP (Xet spec, sections 9-11): v2 with fallback to v1, grants with fallback to
//! direct upload, bounded retries.
//!
//! All requests are idempotent (content is addressed by hash), so each is repeated after a transient failure: until the
//! [deadline](crate::deadline) of the operation, or for [`Options::give_up`] where it has none. Answers are capped
//! before they are held. What a server says is shortened and escaped in errors; tokens and
//! pre-signed URLs are in no error and no log line.

mod concurrency;
mod data;
mod exchange;
mod grant;
pub mod ndjson;
pub mod retry;
mod sending;
#[cfg(test)]
mod tests;

use super::cas::DataStream;
use super::reconstruction::{Reconstruction, parse_v1, parse_v2};
use super::shard::MAX_SHARD;
use super::{Body, Cas, Error, Hash, Scope, TokenSource};
use async_trait::async_trait;
use bytes::Bytes;
use concurrency::Gate;
use exchange::{Answer, Lane, Request, Target, is_https};
use reqwest::Method;
use reqwest::header::{HeaderValue, RANGE};
use retry::{Backoff, Failure};
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// `User-Agent` of every request.
const AGENT: &str = concat!("hfcrypt/", env!("CARGO_PKG_VERSION"));
/// Prefix of xorbs and chunks: the one that the reference client sends.
const PREFIX: &str = "default";
/// Largest reconstruction answer in bytes: room for 64 MiB of file in the smallest chunks, each
/// under a URL of 4 KiB of its own.
const MAX_RECONSTRUCTION: usize = 32 * 1024 * 1024;
/// Largest answer in bytes to a request that is answered with a few fields.
const MAX_REPLY: usize = 64 * 1024;
/// Largest answer in bytes to a chunk query: the chunks of 22 GiB. A longer one would cost more
/// memory than it is worth.
const MAX_DEDUP_ANSWER: usize = 16 * 1024 * 1024;

/// Xorbs sent and ranges fetched at once before anything is known of the link (Xet spec, section 11).
const FIRST_UPLOADS: u32 = 2;
const FIRST_DOWNLOADS: u32 = 8;

/// Limits and deadlines.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most retries of a transient failure, per request. Normally time ends them.
    pub retries: u32,
    /// First delay of the back-off; it doubles, with jitter, and honours `Retry-After`.
    pub first_delay: Duration,
    /// Time without progress after which no retry begins, if the operation has no deadline and the server does not ask
    /// for a longer wait.
    pub give_up: Duration,
    /// The same time if the server asks for waits.
    pub asked_for: Duration,
    /// A response or request body that makes no progress for this long is a network error.
    pub idle: Duration,
    /// Longest validation of a shard: every term of it is checked against its xorb. The v1
    /// route is silent meanwhile.
    pub shard_patience: Duration,
    /// Requests in flight, over all kinds. Below it, xorbs being sent and data being fetched find their own numbers.
    pub in_flight: usize,
}

impl Default for Options {
    /// 60 s covers what a server needs to check and store a whole xorb. A connection that dies in silence takes
    /// that long to be noticed,
    /// so retries go on for more than twice that.
    fn default() -> Self {
        Self {
            retries: u32::MAX,
            first_delay: Duration::from_secs(1),
            give_up: Duration::from_secs(150),
            // Five of the longest waits that are kept.
            asked_for: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            shard_patience: Duration::from_secs(15 * 60),
            in_flight: 64,
        }
    }
}

/// A CAS client. One session: what it learns of the server (no v2, no grants) it keeps.
pub struct HttpCas {
    http: reqwest::Client,
    tokens: Arc<dyn TokenSource>,
    options: Options,
    /// For all requests; taken after that of a gate.
    permits: Semaphore,
    uploads: Arc<Gate>,
    downloads: Arc<Gate>,
    /// `X-Xet-Session-Id`.
    session: String,
    /// A v2 reconstruction was refused and v1 answered.
    v1_reconstructions: AtomicBool,
    /// The v2 shard route is unknown to the server.
    v1_shards: AtomicBool,
    /// The grant route is unknown to the server.
    no_grants: AtomicBool,
    /// Data URLs answer one range at a time.
    single_ranges: AtomicBool,
}

impl HttpCas {
    /// A client; `http` is the process-wide HTTP client.
    pub fn new(http: reqwest::Client, tokens: Arc<dyn TokenSource>, options: Options) -> Self {
        Self {
            http,
            tokens,
            permits: Semaphore::new(options.in_flight.clamp(1, Semaphore::MAX_PERMITS)),
            uploads: Gate::new(FIRST_UPLOADS, options.in_flight),
            downloads: Gate::new(FIRST_DOWNLOADS, options.in_flight),
            options,
            session: uuid::Uuid::now_v7().to_string(),
            v1_reconstructions: AtomicBool::new(false),
            v1_shards: AtomicBool::new(false),
            no_grants: AtomicBool::new(false),
            single_ranges: AtomicBool::new(false),
        }
    }

    /// Asks one version of the route; `None`: the file or the route is unknown.
    async fn ask_reconstruction(
        &self,
        version: Version,
        file: &Hash,
        range: Option<&Range<u64>>,
    ) -> Result<Option<Reconstruction>, Error> {
        let path = format!("/{}/reconstructions/{file}", version.segment());
        let mut request = self.request("reconstruction", Method::GET, Target::Cas(&path, Scope::Read));
        if let Some(range) = range {
            request = request.header(RANGE, byte_range(range)?);
        }
        self.call(request, |answer| read_reconstruction(version, answer)).await
    }

    async fn put_xorb_directly(&self, hash: &Hash, body: Body) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Reply {
            was_inserted: bool,
        }
        let path = format!("/v1/xorbs/{PREFIX}/{hash}");
        let mut request = self.request("xorb", Method::POST, Target::Cas(&path, Scope::Write)).body(body);
        request.lane = Lane::Upload;
        let reply: Reply = self.call(request, |answer| read_reply("xorb answer", answer)).await?;
        Ok(reply.was_inserted)
    }

    /// `false`: the server doesn't know the route.
    async fn put_shard_v2(&self, body: Bytes) -> Result<bool, Error> {
        let mut request = self.request("shard", Method::POST, Target::Cas("/v2/shards", Scope::Write)).body(body);
        request.patience = self.options.shard_patience;
        self.call(request, read_frames).await
    }

    async fn put_shard_v1(&self, body: Bytes) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Reply {
            #[serde(rename = "result")]
            _result: u8,
        }
        let mut request = self.request("shard", Method::POST, Target::Cas("/v1/shards", Scope::Write)).body(body);
        (request.idle, request.patience) = (self.options.shard_patience, self.options.shard_patience);
        self.call(request, |answer| read_reply::<Reply>("shard answer", answer)).await.map(drop)
    }

    fn request<'a>(&self, what: &'static str, method: Method, target: Target<'a>) -> Request<'a> {
        Request::new(what, method, target, &self.options)
    }
}

#[async_trait]
impl Cas for HttpCas {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        if !self.v1_reconstructions.load(Ordering::Relaxed)
            && let Some(found) = self.ask_reconstruction(Version::V2, file, range.as_ref()).await?
        {
            return Ok(found);
        }
        // A v2 404 doesn't say whether the file or the route is missing: only what v1 finds proves the route is.
        let found = self.ask_reconstruction(Version::V1, file, range.as_ref()).await?;
        let found = found.ok_or(Error::NotFound(*file))?;
        self.v1_reconstructions.store(true, Ordering::Relaxed);
        Ok(found)
    }

    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        self.stream_data(url, bytes)
    }

    async fn fetch_many(&self, url: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        self.fetch_parts(url, ranges).await
    }

    async fn put_xorb(&self, hash: &Hash, body: Body) -> Result<bool, Error> {
        if !self.no_grants.load(Ordering::Relaxed)
            && let Some(inserted) = self.put_by_grant(hash, &body).await?
        {
            return Ok(inserted);
        }
        self.put_xorb_directly(hash, body).await
    }

    async fn put_shard(&self, body: Bytes) -> Result<(), Error> {
        if body.len() > MAX_SHARD {
            return Err(Error::Malformed { what: "shard", why: "it is larger than 64 MiB".to_owned() });
        }
        if !self.v1_shards.load(Ordering::Relaxed) {
            if self.put_shard_v2(body.clone()).await? {
                return Ok(());
            }
            self.v1_shards.store(true, Ordering::Relaxed);
        }
        self.put_shard_v1(body).await
    }

    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, Error> {
        let path = format!("/v1/chunks/{PREFIX}/{chunk}");
        let mut request = self.request("chunk query", Method::GET, Target::Cas(&path, Scope::Read));
        // No answer only costs some dedup.
        request.backoff = Backoff::none();
        let read = |answer: Answer| async {
            match answer.status() {
                200 => answer.collect(MAX_DEDUP_ANSWER).await.map(Some),
                404 => Ok(None),
                _ => Err(Failure::Final(answer.refusal().await)),
            }
        };
        self.call(request, read).await
    }
}

/// Of the reconstruction route.
#[derive(Clone, Copy)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn segment(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    fn parse(self, json: &[u8]) -> Result<Reconstruction, Error> {
        match self {
            Self::V1 => parse_v1(json),
            Self::V2 => parse_v2(json),
        }
    }
}

/// A `Range` value: its end is inclusive on the wire, so an empty range has none.
fn byte_range(range: &Range<u64>) -> Result<HeaderValue, Error> {
    if range.is_empty() {
        return Err(Error::RangeNotSatisfiable);
    }
    let value = format!("bytes={}-{}", range.start, range.end - 1);
    Ok(HeaderValue::try_from(value).expect("digits and punctuation are legal in a header"))
}

async fn read_reconstruction(version: Version, answer: Answer) -> Result<Option<Reconstruction>, Failure> {
    match answer.status() {
        200 => {
            let secure = answer.is_secure();
            let found = version.parse(&answer.collect(MAX_RECONSTRUCTION).await?).map_err(Failure::transient)?;
            if secure {
                refuse_downgrade(&found)?;
            }
            Ok(Some(found))
        }
        404 | 501 => Ok(None),
        416 => Err(Failure::Final(Error::RangeNotSatisfiable)),
        _ => Err(Failure::Final(answer.refusal().await)),
    }
}

/// A CAS that is spoken to over TLS must not send us to data without it.
fn refuse_downgrade(answer: &Reconstruction) -> Result<(), Failure> {
    if answer.fetches.iter().all(|fetch| is_https(&fetch.url)) {
        return Ok(());
    }
    Err(Failure::Final(Error::Malformed { what: "reconstruction", why: "it leads from TLS to plain HTTP".to_owned() }))
}

async fn read_reply<T: for<'de> Deserialize<'de>>(what: &'static str, answer: Answer) -> Result<T, Failure> {
    match answer.status() {
        200..=299 => {
            let body = answer.collect(MAX_REPLY).await?;
            serde_json::from_slice(&body).map_err(|_| Failure::damaged(what, "not the expected JSON object"))
        }
        _ => Err(Failure::Final(answer.refusal().await)),
    }
}

/// Reads the frames of a v2 shard answer up to the terminal one; `false`: no such route. After the 200 only a frame can
/// say that the shard failed: as status 503 if it may be sent again, else as 422.
async fn read_frames(mut answer: Answer) -> Result<bool, Failure> {
    match answer.status() {
        200 => (),
        404 | 501 => return Ok(false),
        _ => return Err(Failure::Final(answer.refusal().await)),
    }
    let mut frames = ndjson::Decoder::new();
    let outcome = loop {
        match answer.piece().await? {
            Some(piece) => {
                if let Some(outcome) = frames.push(&piece).map_err(Failure::Final)? {
                    break outcome;
                }
            }
            None => break frames.finish().map_err(Failure::Final)?,
        }
    };
    match outcome {
        ndjson::Outcome::Registered => Ok(true),
        ndjson::Outcome::Failed { message, retryable } => {
            let message = answer.tame(&message);
            match retryable {
                true => Err(Failure::transient(Error::Status { status: 503, message })),
                false => Err(Failure::Final(Error::Status { status: 422, message })),
            }
        }
    }
}
