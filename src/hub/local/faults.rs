//! Injects faults for tests, and records requests. Only with the feature `faults`, which release builds do not have.
//!
//! A rule names requests (method, pattern of the raw path), how many of them to let through and how many to hit. The
//! first rule that matches a request is used once. Without rules and recorder nothing changes.

use super::errors::ApiError;
use axum::body::{Body, BodyDataStream, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Largest body that the recorder takes up, in bytes: above every body the protocols allow.
const RECORD_LIMIT: usize = 128 * 1024 * 1024;

/// What to do to a request or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Waits before the request is handled.
    Delay(Duration),
    /// Answers this status without handling the request.
    Status {
        /// HTTP status.
        status: u16,
        /// `Retry-After` in seconds.
        retry_after: Option<u64>,
        /// `RateLimit: "api";r=0;t=…` with this many seconds.
        rate_limit: Option<u64>,
    },
    /// Answers this status and body, HTML perhaps, without handling the request.
    Garbage {
        /// HTTP status.
        status: u16,
        /// Body.
        body: &'static str,
    },
    /// Closes the connection without handling the request.
    Refuse,
    /// Handles the request, then closes the connection instead of answering: the client can't know what happened.
    LoseAnswer,
    /// Closes the connection after this many bytes of the answer's body.
    CutBody {
        /// Bytes sent before.
        after: u64,
    },
    /// Sends this many bytes of the answer's body and then nothing more; the connection stays open.
    Stall {
        /// Bytes sent before.
        after: u64,
    },
    /// Sends the answer's body in drops.
    Drip {
        /// Bytes of a drop, at least one.
        bytes: usize,
        /// Pause before each.
        every: Duration,
    },
    /// Gives the answer's body another length, announced and sent alike: cuts it, or adds zeros.
    Resize {
        /// Length in bytes.
        to: u64,
    },
    /// Sets a header of the answer.
    Header {
        /// Its name, in lower case.
        name: &'static str,
        /// Its value.
        value: &'static str,
    },
    /// Answers zeros without end, without handling the request.
    Zeros {
        /// HTTP status.
        status: u16,
        /// Length that is announced, in bytes; no more are sent then.
        announced: Option<u64>,
        /// Pause before each 64 KiB.
        every: Duration,
    },
    /// Closes the connection after this many bytes of the request's body, the others unread: the client sees a reset.
    CutUpload {
        /// Bytes taken before.
        after: u64,
    },
    /// Takes this many bytes of the request's body and then nothing more; the connection stays open.
    StallUpload {
        /// Bytes taken before.
        after: u64,
    },
    /// Reconstructions and grants: makes the pre-signed URLs of the answer such as their server
    /// refuses with 403, as after their hour.
    ExpiredUrls,
    /// Flips a bit of the answer's body.
    CorruptByte {
        /// Offset in the body.
        at: u64,
    },
    /// Token routes: gives a token that has run out, but says it's good for a while.
    ExpiredToken,
}

/// Which requests a fault is for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only this method.
    pub method: Option<Method>,
    /// Pattern of the raw, still encoded path; `*` stands for any run of characters.
    pub path: String,
    /// Fitting requests to let through first.
    pub skip: u64,
    /// Fitting requests to hit after that; `u64::MAX` for all.
    pub count: u64,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// Hits the next request for `path`, whatever its method.
    pub fn once(path: impl Into<String>, fault: Fault) -> Self {
        Self { method: None, path: path.into(), skip: 0, count: 1, fault }
    }

    /// Hits all requests for `path`, whatever their method.
    pub fn always(path: impl Into<String>, fault: Fault) -> Self {
        Self { count: u64::MAX, ..Self::once(path, fault) }
    }

    fn fits(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method())
            && matches(self.path.as_bytes(), request.uri().path().as_bytes())
    }
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Method.
    pub method: Method,
    /// Raw path and query.
    pub url: String,
    /// Headers, credentials included.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

type Recorder = Arc<dyn Fn(&Recorded) + Send + Sync>;

/// A set of faults, changed while the server runs.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    recorder: Mutex<Option<Recorder>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("rules", &*lock(&self.rules)).finish_non_exhaustive()
    }
}

impl Faults {
    /// Adds a rule behind those there are.
    pub fn add(&self, rule: Rule) {
        lock(&self.rules).push(rule);
    }

    /// Whether a rule has requests left to hit.
    pub fn is_armed(&self) -> bool {
        lock(&self.rules).iter().any(|rule| rule.count > 0)
    }

    /// Drops all rules.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// Shows every request from now on to `recorder`, before it is handled and before any fault.
    /// Bodies are read whole for that.
    pub fn record(&self, recorder: impl Fn(&Recorded) + Send + Sync + 'static) {
        *lock(&self.recorder) = Some(Arc::new(recorder));
    }

    /// Answers a request by `handle`, with the fault of the first rule that matches. An error closes the connection.
    pub(super) async fn answer<F>(&self, request: Request, handle: impl FnOnce(Request) -> F) -> Result<Response, Cut>
    where
        F: Future<Output = Response>,
    {
        let (request, plan) = self.meet(request).await?;
        let response = match plan.instead() {
            Some(response) => response,
            None => handle(request).await,
        };
        plan.spoil(response).await
    }

    /// Admits a request: records it, waits if a rule says so, and returns what to do with it.
    async fn meet(&self, mut request: Request) -> Result<(Request, Plan), Cut> {
        let recorder = lock(&self.recorder).clone();
        if let Some(recorder) = recorder {
            request = record(request, &recorder).await?;
        }
        let fault = self.take(&request);
        match fault {
            Some(Fault::Refuse) => return Err(Cut),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::CutUpload { after }) => {
                drop(take_some(request.into_body(), after).await);
                return Err(Cut);
            }
            Some(Fault::StallUpload { after }) => {
                // Held, or the rest would be read away.
                let _rest = take_some(request.into_body(), after).await;
                return std::future::pending().await;
            }
            Some(Fault::ExpiredToken) => {
                request.extensions_mut().insert(ExpiredToken);
            }
            _ => {}
        }
        Ok((request, Plan(fault)))
    }

    fn take(&self, request: &Request) -> Option<Fault> {
        for rule in lock(&self.rules).iter_mut().filter(|rule| rule.count > 0 && rule.fits(request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.count != u64::MAX {
                rule.count -= 1;
            }
            return Some(rule.fault.clone());
        }
        None
    }
}

/// Marks a request whose CAS token is to have run out already.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiredToken;

/// The connection is to be closed.
#[derive(Debug, thiserror::Error)]
#[error("connection cut on purpose")]
pub(super) struct Cut;

/// What is to become of a request.
struct Plan(Option<Fault>);

impl Plan {
    /// The answer to give without handling the request.
    fn instead(&self) -> Option<Response> {
        match &self.0 {
            Some(Fault::Status { status, retry_after, rate_limit }) => {
                let mut response = ApiError::injected(status_of(*status)).into_response();
                let headers = response.headers_mut();
                if let Some(seconds) = retry_after {
                    headers.insert(RETRY_AFTER, HeaderValue::from(*seconds));
                }
                if let Some(seconds) = rate_limit {
                    let limit = format!("\"api\";r=0;t={seconds}");
                    let limit = HeaderValue::try_from(limit).expect("quotes and digits make a header value");
                    headers.insert(HeaderName::from_static("ratelimit"), limit);
                    let policy = HeaderValue::from_static("\"fixed window\";\"api\";q=500;w=300");
                    headers.insert(HeaderName::from_static("ratelimit-policy"), policy);
                }
                Some(response)
            }
            Some(Fault::Garbage { status, body }) => {
                let mut response = Response::new(Body::from(*body));
                *response.status_mut() = status_of(*status);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
                Some(response)
            }
            Some(Fault::Zeros { status, announced, every }) => {
                let mut response = Response::new(zeros(*announced, *every));
                *response.status_mut() = status_of(*status);
                if let Some(len) = announced {
                    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(*len));
                }
                Some(response)
            }
            _ => None,
        }
    }

    /// The answer as it goes out.
    async fn spoil(self, mut response: Response) -> Result<Response, Cut> {
        Ok(match self.0 {
            Some(Fault::LoseAnswer) => return Err(Cut),
            Some(Fault::CutBody { after }) => announced(response).map(|body| cut(body, after)),
            Some(Fault::CorruptByte { at }) => announced(response).map(|body| corrupt(body, at)),
            Some(Fault::Stall { after }) => announced(response).map(|body| stall(body, after)),
            Some(Fault::Drip { bytes, every }) => announced(response).map(|body| drip(body, bytes.max(1), every)),
            Some(Fault::Resize { to }) => {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(to));
                response.map(|body| resize(body, to))
            }
            Some(Fault::Header { name, value }) => {
                let (name, value) = (HeaderName::from_static(name), HeaderValue::from_static(value));
                response.headers_mut().insert(name, value);
                response
            }
            Some(Fault::ExpiredUrls) => expire(response).await?,
            _ => response,
        })
    }
}

/// Status of an injected answer; nonsense becomes 500.
fn status_of(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

async fn record(request: Request, recorder: &Recorder) -> Result<Request, Cut> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, RECORD_LIMIT).await.map_err(|_| Cut)?;
    let url = parts.uri.path_and_query().map_or("/", |url| url.as_str()).to_owned();
    let recorded = Recorded { method: parts.method.clone(), url, headers: parts.headers.clone(), body: body.clone() };
    recorder(&recorded);
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Reads at least `len` bytes of a request's body, unless it ends before. Gives what was not read.
async fn take_some(body: Body, len: u64) -> BodyDataStream {
    let mut rest = body.into_data_stream();
    let mut taken = 0;
    while taken < len {
        let Some(Ok(piece)) = rest.next().await else { break };
        taken += piece.len() as u64;
    }
    rest
}

/// With its length in its head, where it is known: a body that is changed below would lose it.
fn announced(mut response: Response) -> Response {
    if let Some(len) = response.body().size_hint().exact() {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(len));
    }
    response
}

type Piece = Result<Bytes, axum::BoxError>;

/// The first `len` bytes of a body.
fn first(body: Body, len: u64) -> impl Stream<Item = Piece> + Send + 'static {
    body.into_data_stream().scan(len, |left, piece| {
        let outcome = match piece {
            Ok(_) if *left == 0 => None,
            Ok(mut piece) => {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
                Some(Ok(piece))
            }
            Err(error) => Some(Err(axum::BoxError::from(error))),
        };
        ready(outcome)
    })
}

fn cut(body: Body, after: u64) -> Body {
    // An error in a body makes the server close the connection, whatever length it announced. What
    // was sent is given time to leave.
    let broken = stream::once(async {
        tokio::task::yield_now().await;
        Err(axum::BoxError::from(Cut))
    });
    Body::from_stream(first(body, after).chain(broken))
}

fn stall(body: Body, after: u64) -> Body {
    Body::from_stream(first(body, after).chain(stream::pending()))
}

fn drip(body: Body, len: usize, every: Duration) -> Body {
    let state = (body.into_data_stream(), Bytes::new());
    Body::from_stream(stream::unfold(state, move |(mut rest, mut piece)| async move {
        while piece.is_empty() {
            match rest.next().await? {
                Ok(next) => piece = next,
                Err(error) => return Some((Err(error), (rest, piece))),
            }
        }
        tokio::time::sleep(every).await;
        let drop = piece.split_to(len.min(piece.len()));
        Some((Ok(drop), (rest, piece)))
    }))
}

fn resize(body: Body, len: u64) -> Body {
    let padding = zero_pieces().map(Ok::<_, axum::BoxError>);
    Body::from_stream(first(Body::from_stream(body.into_data_stream().map_err(Into::into).chain(padding)), len))
}

fn zeros(len: Option<u64>, every: Duration) -> Body {
    let paced = zero_pieces().then(move |piece| async move {
        tokio::time::sleep(every).await;
        Ok::<_, Infallible>(piece)
    });
    match len {
        Some(len) => Body::from_stream(first(Body::from_stream(paced), len)),
        None => Body::from_stream(paced),
    }
}

fn zero_pieces() -> impl Stream<Item = Bytes> + Send + 'static {
    stream::repeat(Bytes::from_static(&[0; 64 * 1024]))
}

/// Spoils the signature at the end of every `"url"`.
async fn expire(response: Response) -> Result<Response, Cut> {
    const URL: &[u8] = b"\"url\":\"";
    let (mut parts, body) = response.into_parts();
    let mut json = to_bytes(body, RECORD_LIMIT).await.map_err(|_| Cut)?.to_vec();
    let starts: Vec<_> =
        json.windows(URL.len()).enumerate().filter(|(_, words)| *words == URL).map(|(at, _)| at).collect();
    for start in starts {
        let url = &mut json[start + URL.len()..];
        let end = url.iter().position(|&byte| byte == b'"').unwrap_or(0);
        if let Some(last) = url[..end].last_mut() {
            *last = if *last == b'0' { b'1' } else { b'0' };
        }
    }
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Body::from(json)))
}

fn corrupt(body: Body, at: u64) -> Body {
    Body::from_stream(body.into_data_stream().scan(at, |left, piece| {
        let spoilt = piece.map(|piece| match usize::try_from(*left) {
            Ok(offset) if offset < piece.len() => {
                let mut bytes = piece.to_vec();
                bytes[offset] ^= 1;
                *left = u64::MAX;
                Bytes::from(bytes)
            }
            _ => {
                *left = left.saturating_sub(piece.len() as u64);
                piece
            }
        });
        ready(Some(spoilt))
    }))
}

/// Whether `text` fits a pattern in which `*` stands for any run of bytes.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && matches(rest, text)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::time::Instant;

    #[test]
    fn patterns_match_runs() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("/api/*/batch", "/api/buckets/a/b/batch", true),
            ("/api/*/batch", "/api/buckets/a/b/batches", false),
            ("*xorbs*", "/cas/v1/xorbs/default/00", true),
            ("/a", "/a/", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    /// What `fault` makes of an answer of `body`.
    async fn spoilt(fault: Fault, body: &'static str) -> Response {
        let response = Response::new(Body::from(body));
        Plan(Some(fault)).spoil(response).await.unwrap()
    }

    fn announced_len(response: &Response) -> Option<&str> {
        response.headers().get(CONTENT_LENGTH).map(|len| len.to_str().unwrap())
    }

    async fn text(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_body_that_is_cut_or_stalls_announces_all_of_it() {
        let cut = spoilt(Fault::CutBody { after: 3 }, "answer").await;
        assert_eq!(announced_len(&cut), Some("6"));
        let pieces: Vec<_> = cut.into_body().into_data_stream().collect().await;
        assert!(matches!(pieces.as_slice(), [Ok(piece), Err(_)] if piece == "ans"));

        let stalled = spoilt(Fault::Stall { after: 3 }, "answer").await;
        assert_eq!(announced_len(&stalled), Some("6"));
        let mut pieces = stalled.into_body().into_data_stream();
        assert_eq!(pieces.next().await.unwrap().unwrap(), "ans");
        assert!(pieces.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_body_is_all_there_in_the_end() {
        let start = Instant::now();
        let dripped = spoilt(Fault::Drip { bytes: 4, every: Duration::from_secs(9) }, "an answer").await;
        assert_eq!(announced_len(&dripped), Some("9"));
        assert_eq!(text(dripped).await, "an answer");
        assert_eq!(start.elapsed(), Duration::from_secs(27));
    }

    #[tokio::test]
    async fn a_resized_body_is_as_long_as_announced() {
        for (to, body) in [(0, ""), (2, "an"), (6, "answer"), (8, "answer\0\0")] {
            let resized = spoilt(Fault::Resize { to }, "answer").await;
            assert_eq!(announced_len(&resized), Some(to.to_string().as_str()));
            assert_eq!(text(resized).await, body);
        }
    }

    #[tokio::test]
    async fn zeros_end_where_announced_or_never() {
        let zeros = |announced| Plan(Some(Fault::Zeros { status: 206, announced, every: Duration::ZERO }));
        let some = zeros(Some(100_000)).instead().unwrap();
        assert_eq!((some.status().as_u16(), announced_len(&some)), (206, Some("100000")));
        assert_eq!(text(some).await, "\0".repeat(100_000));
        let endless = zeros(None).instead().unwrap();
        assert_eq!(announced_len(&endless), None);
        assert!(to_bytes(endless.into_body(), 10_000_000).await.is_err(), "more than that");
    }

    #[tokio::test]
    async fn expired_urls_differ_in_their_signature_only() {
        let json = r#"{"url":"http://a/1?s=af","hash":"f","list":[{"url":"http://a/2?s=10"},{"url":""}]}"#;
        let expected = r#"{"url":"http://a/1?s=a0","hash":"f","list":[{"url":"http://a/2?s=11"},{"url":""}]}"#;
        assert_eq!(text(spoilt(Fault::ExpiredUrls, json).await).await, expected);
    }

    #[tokio::test]
    async fn an_upload_is_taken_as_far_as_asked() {
        let upload = || {
            let pieces = stream::iter(["abc", "def", "ghi"]).map(Ok::<_, Infallible>);
            Request::post("/x").body(Body::from_stream(pieces)).unwrap()
        };
        let faults = Faults::default();
        faults.add(Rule::once("/x", Fault::CutUpload { after: 4 }));
        assert!(faults.meet(upload()).await.is_err());
        faults.add(Rule::once("/x", Fault::StallUpload { after: 4 }));
        assert!(faults.meet(upload()).now_or_never().is_none());
        assert!(faults.meet(upload()).await.is_ok(), "rules are used up");
        let rest = take_some(upload().into_body(), 4).await;
        assert_eq!(rest.collect::<Vec<_>>().await.len(), 1, "two pieces hold four bytes");
    }
}
