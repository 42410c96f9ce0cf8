//! Requests to one endpoint: token, deadline, bounded answers, redirects, retries (Hub API spec, 1.1 to 1.3).
//!
//! The token goes to the endpoint's own origin and nowhere else. Logs name method and path, never a query or a header.

use super::retry::{Policy, asked_wait};
use super::token::{Secret, TokenProvider};
use super::{BucketId, Error, error, route};
use crate::xet::{deadline, foreign};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use url::Url;
use zeroize::Zeroizing;

pub(super) use super::retry::Repeat;

/// Connecting takes at most so long, TLS included: several round trips around the world and a lost packet.
const CONNECT: Duration = Duration::from_secs(10);
/// Unused connections are kept so long; balancers commonly close theirs after 60 s.
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Unused connections kept per host: as many as the CAS transfers that run side by side.
const POOL_SIZE: usize = 64;
/// A silent peer is probed after this time, so that a dead one is noticed within a few of it.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Most bytes read of an answer that says no. What it says beyond them is cut.
const MAX_REFUSAL: usize = 64 * 1024;
/// Longest request number shown, in bytes; a UUID has 36, a trace id up to 90.
const MAX_REQUEST_ID: usize = 100;
/// Moved buckets that are remembered as told.
const MAX_TOLD: usize = 100;
/// Redirects followed for one request. A moved bucket needs one, one moved twice two.
const MAX_REDIRECTS: usize = 5;

/// The HTTP client of this process, for the Hub and the CAS: one pool of connections. It follows no redirects and has
/// no overall deadline; who sends sets both.
pub fn process_client() -> Result<reqwest::Client, Error> {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    match CLIENT.get() {
        Some(client) => Ok(client.clone()),
        None => {
            let client = build(&|name| std::env::var(name).ok())?;
            Ok(CLIENT.get_or_init(|| client).clone())
        }
    }
}

pub(super) fn build(env: &dyn Fn(&str) -> Option<String>) -> Result<reqwest::Client, Error> {
    // An error means that a provider is there already, and any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("hfcrypt/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .no_proxy();
        proxies(env).into_iter().fold(builder, reqwest::ClientBuilder::proxy)
    };
    // A machine without any root certificates can't speak https, yet must be able to use an embedded Hub.
    let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    client.map_err(|error| Error::Network(format!("no HTTP client: {}", chain(&error))))
}

/// The proxies that the environment names, as other tools read it, but never for connections that stay on this machine.
fn proxies(env: &dyn Fn(&str) -> Option<String>) -> Vec<reqwest::Proxy> {
    let get = |name: &str| {
        // `HTTP_PROXY` of a CGI process is a request header, not a setting.
        let upper = name != "http_proxy" || env("REQUEST_METHOD").is_none();
        env(name).or_else(|| env(&name.to_uppercase()).filter(|_| upper)).filter(|value| !value.trim().is_empty())
    };
    let excluded = format!("localhost,127.0.0.0/8,::1,{}", get("no_proxy").unwrap_or_default());
    let named = [
        get("https_proxy").map(reqwest::Proxy::https),
        get("http_proxy").map(reqwest::Proxy::http),
        get("all_proxy").map(reqwest::Proxy::all),
    ];
    let except = || reqwest::NoProxy::from_string(&excluded);
    named.into_iter().flatten().flatten().map(|proxy| proxy.no_proxy(except())).collect()
}

/// One request, as often as it takes.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Content type and body.
    pub(super) content: Option<(&'static str, Bytes)>,
    pub(super) range: Option<HeaderValue>,
    pub(super) repeat: Repeat,
    /// No repeat begins so long after the first try.
    pub(super) repeat_within: Duration,
    /// Most bytes taken of a good answer.
    pub(super) limit: usize,
    /// Redirects to other hosts are followed, without the token.
    pub(super) abroad: bool,
    /// Only the status of a good answer counts: its body isn't read.
    pub(super) bodiless: bool,
}

/// What the Hub answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    token: Option<Secret>,
}

impl Answer {
    /// The Hub's words in an answer that says no.
    pub(super) fn words(&self) -> String {
        match error::words(&self.headers, &self.body, self.token.as_ref().map(Secret::expose)) {
            words if words.is_empty() => self.status.canonical_reason().unwrap_or("no reason given").to_owned(),
            words => words,
        }
    }

    /// The error that an answer other than 2xx stands for. `bucket`: the one the request was about.
    pub(super) fn refusal(&self, bucket: Option<&BucketId>) -> Error {
        let code = self.headers.get("x-error-code").map(HeaderValue::as_bytes);
        match (self.status.as_u16(), bucket) {
            (401, _) => Error::Unauthorized(self.words()),
            (403, _) => Error::Forbidden(self.words()),
            (404, Some(bucket)) if code.is_none_or(|code| code == b"RepoNotFound") => {
                Error::BucketNotFound(bucket.clone())
            }
            (413 | 507, _) => Error::Quota(self.words()),
            (status, _) => Error::Status { status, message: self.words() + &self.request_id() },
        }
    }

    /// The Hub's own number for the request, for whoever has to ask its operators.
    fn request_id(&self) -> String {
        let id = ["x-request-id", "x-amzn-trace-id", "x-amz-cf-id"].into_iter().find_map(|name| self.headers.get(name));
        match id.and_then(|id| id.to_str().ok()).filter(|id| id.len() <= MAX_REQUEST_ID) {
            Some(id) => format!(" (request {})", foreign::tame(id, self.token.as_ref().map(Secret::expose))),
            None => String::new(),
        }
    }
}

/// Why there is no answer.
enum Failure {
    /// No repeat would help.
    Final(Error),
    /// The Hub hasn't got the request.
    Unsent(Error),
    /// It may have.
    Unanswered(Error),
}

/// Sends requests to one endpoint.
pub(super) struct Transport {
    pub(super) base: Url,
    http: reqwest::Client,
    token: TokenProvider,
    policy: Policy,
    /// Moved buckets that the user has been told of, by their old ids.
    told: Mutex<HashSet<BucketId>>,
}

impl Transport {
    pub(super) fn new(base: Url, http: reqwest::Client, token: TokenProvider, policy: Policy) -> Self {
        Self { base, http, token, policy, told: Mutex::default() }
    }

    /// An answer of any status, after the retries that the call allows.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, Error> {
        let began = Instant::now();
        let set = deadline::current();
        let end = set.unwrap_or(began + self.policy.total);
        let mut retry = 0;
        loop {
            let sent = Instant::now();
            let outcome = self.attempt(call, end).await;
            let took = sent.elapsed();
            match &outcome {
                Ok(Answer { status, body, .. }) => {
                    let (method, path, bytes) = (&call.method, call.url.path(), body.len());
                    tracing::debug!(%method, path, status = status.as_u16(), bytes, ?took, "Hub request");
                }
                Err(failure) => {
                    let (method, path, error) = (&call.method, call.url.path(), failure.error());
                    tracing::debug!(%method, path, %error, ?took, "Hub request failed");
                }
            }
            let (again, asked) = match &outcome {
                Ok(answer) => (call.repeat.after(answer.status), asked_wait(answer.status, &answer.headers)),
                Err(Failure::Final(_)) => (false, None),
                Err(Failure::Unsent(_)) => (call.repeat.after_silence(false), None),
                Err(Failure::Unanswered(_)) => (call.repeat.after_silence(true), None),
            };
            let last = match (set, asked) {
                (None, None) => end.min(began + self.policy.give_up),
                _ => end,
            };
            // `Duration::MAX` stands for no limit of the call's own.
            let last = began.checked_add(call.repeat_within).map_or(last, |within| last.min(within));
            let left = last.saturating_duration_since(Instant::now());
            let wait = self.policy.wait(retry, asked, getrandom::u32().unwrap_or_default(), left);
            let Some(wait) = wait.filter(|_| again && retry < self.policy.retries) else {
                return outcome.map_err(Failure::into_error);
            };
            let why = match &outcome {
                Ok(answer) => answer.status.to_string(),
                Err(failure) => failure.error().to_string(),
            };
            tracing::warn!(method = %call.method, path = call.url.path(), %why, ?wait, "Hub request is repeated");
            tokio::time::sleep(wait).await;
            retry += 1;
        }
    }

    /// One try within its deadline.
    async fn attempt(&self, call: &Call, end: Instant) -> Result<Answer, Failure> {
        let given = end.saturating_duration_since(Instant::now()).min(self.policy.request);
        let deadline = Instant::now() + given;
        // Read again for each try: it may be the rotation of the token that made the last one fail.
        let token = match timeout_at(deadline, self.token.current()).await {
            Ok(token) => token.map_err(Failure::Final)?,
            // The operation's time was over, not that of the token: nothing is wrong with it, and nothing was sent.
            Err(_) if given < self.policy.request => {
                return Err(Failure::Unsent(Error::Network("the operation's deadline has passed".to_owned())));
            }
            Err(_) => return Err(Failure::Final(self.token.too_slow())),
        };
        match timeout_at(deadline, self.exchange(call, token)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Unanswered(Error::Network(format!("no response within {} s", given.as_secs_f32())))),
        }
    }

    /// Request and answer, through redirects.
    async fn exchange(&self, call: &Call, token: Option<Secret>) -> Result<Answer, Failure> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let home = url.origin() == self.base.origin();
            let request = self.request(call, &url, token.as_ref().filter(|_| home)).map_err(Failure::Final)?;
            let mut response = request.send().await.map_err(Failure::of)?;
            let target = self.redirect(call, &url, response.status(), response.headers()).map_err(Failure::Final)?;
            if let Some(target) = target {
                url = target;
                continue;
            }
            let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
            let body = match call.bodiless && status.is_success() {
                true => Bytes::new(),
                false => read(&mut response, &headers, status, call.limit).await?,
            };
            return Ok(Answer { status, headers, body, token });
        }
        Err(Failure::Final(Error::Malformed("more redirects than any bucket has moved".to_owned())))
    }

    fn request(&self, call: &Call, url: &Url, token: Option<&Secret>) -> Result<reqwest::RequestBuilder, Error> {
        let mut request = self.http.request(call.method.clone(), url.clone());
        if let Some(token) = token {
            let text = Zeroizing::new(format!("Bearer {}", token.expose()));
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| Error::Unauthorized("the token holds characters that no header can carry".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some((kind, body)) = &call.content {
            request = request.header(header::CONTENT_TYPE, *kind).body(body.clone());
        }
        if let Some(range) = &call.range {
            request = request.header(header::RANGE, range);
        }
        Ok(request)
    }

    /// Returns where a redirect leads, if it is one to follow. Reads are redirected freely. A request with another
    /// method is sent again only
    /// where its bucket has moved: to the same route of the new bucket at this endpoint, and with 307 or 308,
    /// which say that nothing has been
    /// done and that method and body stay. A bucket itself is neither created nor deleted under another name than
    /// was asked for.
    fn redirect(&self, call: &Call, from: &Url, status: StatusCode, headers: &HeaderMap) -> Result<Option<Url>, Error> {
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let unusable = |why: &str| Error::Malformed(format!("a redirect {why}"));
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|text| from.join(text).ok());
        let moved = target.as_ref().and_then(|target| route::moved(&self.base, from, target));
        let follows =
            moved.as_ref().is_some_and(|(_, _, route)| matches!(status.as_u16(), 307 | 308) && !route.is_empty());
        if !reads && !follows {
            return Ok(None);
        }
        if let Some((old, new, _)) = moved {
            self.tell_moved(old, &new);
        }
        let target = target.ok_or_else(|| unusable("to nowhere"))?;
        if target.origin() == self.base.origin() || !call.abroad {
            return route::same_origin(&self.base, target.as_str()).map(Some);
        }
        // Leaving https, or reaching into files and the like, is no way to get the bytes of an object.
        let safe = target.scheme() == "https" || (target.scheme() == "http" && self.base.scheme() == "http");
        match safe && !route::has_user(&target) {
            true => Ok(Some(target)),
            false => Err(unusable("to an unsafe place")),
        }
    }
}

impl Transport {
    /// Logs once for each bucket that it has moved.
    fn tell_moved(&self, old: BucketId, new: &BucketId) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD && !told.contains(&old) && new.has_moved_from(&old) {
            tracing::warn!(%old, %new, "the bucket has moved; use its new name");
            told.insert(old);
        }
    }
}

/// The body: all of a good answer or an error, the beginning of a bad one.
async fn read(
    response: &mut reqwest::Response,
    headers: &HeaderMap,
    status: StatusCode,
    limit: usize,
) -> Result<Bytes, Failure> {
    let good = status.is_success();
    let limit = if good { limit } else { MAX_REFUSAL };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let too_long = || Failure::Final(Error::Malformed(format!("an answer of more than {limit} bytes")));
    if good && announced.is_some_and(|announced| announced > limit as u64) {
        return Err(too_long());
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(Failure::of)? {
        let room = limit - body.len();
        if chunk.len() > room && good {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            break;
        }
    }
    Ok(body.freeze())
}

impl Failure {
    fn of(error: reqwest::Error) -> Self {
        let text = chain(&error);
        if error.is_builder() {
            Self::Final(Error::Malformed(format!("request that can't be made: {text}")))
        } else if error.is_connect() {
            Self::Unsent(Error::Network(text))
        } else {
            Self::Unanswered(Error::Network(text))
        }
    }

    fn error(&self) -> &Error {
        match self {
            Self::Final(error) | Self::Unsent(error) | Self::Unanswered(error) => error,
        }
    }

    fn into_error(self) -> Error {
        match self {
            Self::Final(error) | Self::Unsent(error) | Self::Unanswered(error) => error,
        }
    }
}

/// What went wrong, innermost cause last. reqwest's own line is left out where it has causes: it holds the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    match causes.is_empty() {
        true if error.is_timeout() => "timed out".to_owned(),
        true => "the request failed".to_owned(),
        false => foreign::tame(&causes.join(": "), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(vars: &'static [(&str, &str)]) -> usize {
        proxies(&|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())).len()
    }

    #[test]
    fn proxies_come_from_the_environment_but_not_from_a_request() {
        assert_eq!(named(&[]), 0);
        assert_eq!(named(&[("https_proxy", "http://p:1"), ("ALL_PROXY", "http://p:2"), ("http_proxy", " ")]), 2);
        assert_eq!(named(&[("HTTP_PROXY", "http://p:1")]), 1);
        assert_eq!(named(&[("HTTP_PROXY", "http://p:1"), ("REQUEST_METHOD", "GET")]), 0);
        assert_eq!(named(&[("https_proxy", "::nonsense::")]), 0);
    }
}
