//! One request to the CAS or to a pre-signed URL: token, tries, deadlines, bounded bodies (Xet
//! spec, sections 9 and 11).
//!
//! A try is bounded three ways: no byte in either direction for `idle`; a total that a slow but honest peer keeps
//! (`patience` plus the size at [`LEAST_RATE`]); and the deadline of the operation, if it has one. Dropping the
//! future of [`HttpCas::call`] frees the connection and
//! the permit at once. Neither tokens nor pre-signed URLs reach an error or a log line.

use super::concurrency::Pass;
use super::retry::{Backoff, Failure, asked_wait};
use super::sending::{Progress, sent};
use super::{HttpCas, Options};
use crate::error::is_transient;
use crate::{Body, CasToken, Error, Scope, deadline, foreign};
use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, RANGE, USER_AGENT};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

/// Bytes per second below which a peer is as good as dead: a 64 MiB xorb then takes 68 minutes.
const LEAST_RATE: u64 = 16 * 1024;
/// Bytes of an error answer that are looked at.
const ERROR_TEXT: usize = 2 * 1024;
/// How long the text of an error answer is waited for: it is a courtesy.
const ERROR_TEXT_WAIT: Duration = Duration::from_secs(5);

/// Where a request goes.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A path of the CAS, with a token of this scope.
    Cas(&'a str, Scope),
    /// A pre-signed URL: no token, never shown.
    Signed(&'a str),
}

/// What a request competes with.
#[derive(Clone, Copy, Default)]
pub(super) enum Lane {
    /// Xorbs being sent.
    Upload,
    /// Xorb data being fetched.
    Download,
    /// Nothing but the cap of all requests.
    #[default]
    Other,
}

/// One request, as data: it can be sent any number of times.
pub(super) struct Request<'a> {
    /// What it is about, for errors and logs.
    pub(super) what: &'static str,
    pub(super) method: Method,
    pub(super) target: Target<'a>,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Body>,
    pub(super) lane: Lane,
    /// Bytes expected back.
    pub(super) answer_len: u64,
    pub(super) idle: Duration,
    pub(super) patience: Duration,
    pub(super) backoff: Backoff,
}

impl<'a> Request<'a> {
    pub(super) fn new(what: &'static str, method: Method, target: Target<'a>, options: &Options) -> Self {
        let (idle, patience) = (options.idle, options.idle.saturating_mul(4));
        let backoff = Backoff::new(options);
        let lane = Lane::default();
        Self {
            what,
            method,
            target,
            headers: HeaderMap::new(),
            body: None,
            lane,
            answer_len: 0,
            idle,
            patience,
            backoff,
        }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Longest time that one try may take.
    pub(super) fn budget(&self) -> Duration {
        self.patience.saturating_add(Duration::from_secs(self.bytes() / LEAST_RATE))
    }

    /// Bytes that it moves, either way.
    pub(super) fn bytes(&self) -> u64 {
        self.sent().saturating_add(self.answer_len)
    }

    /// Bytes of its body.
    fn sent(&self) -> u64 {
        self.body.as_ref().map_or(0, Body::len)
    }

    /// The range that it asks for. The URL itself is never logged: it may be signed.
    fn range(&self) -> Option<&HeaderValue> {
        self.headers.get(RANGE)
    }
}

impl HttpCas {
    /// Sends `request` until `read` makes something of an answer or the tries are used up. `read` sees every status but
    /// those that are transient, and 401. A 401 is answered with one fresh token.
    pub(super) async fn call<T, F>(&self, mut request: Request<'_>, read: impl Fn(Answer) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut refused: Option<CasToken> = None;
        let mut last = None;
        loop {
            let mut token = None;
            let tried = async {
                if let Target::Cas(_, scope) = request.target {
                    token = Some(self.token(scope, refused.as_ref()).await?);
                }
                self.attempt(&request, token.as_ref(), &read).await
            };
            let failure = match deadline::timely(tried).await {
                Some(Ok(value)) => return Ok(value),
                Some(Err(failure)) => failure,
                None => return Err(last.unwrap_or_else(|| out_of_time(request.what))),
            };
            match (failure, token) {
                (Failure::Final(Error::Unauthorized), Some(token)) if refused.is_none() => refused = Some(token),
                (failure, _) => {
                    last = failure.repeated();
                    let (dice, now) = (getrandom::u32().unwrap_or(0), Instant::now());
                    let wait = request.backoff.next(failure, dice, now, deadline::current())?;
                    tracing::debug!(what = request.what, ?wait, "trying again");
                    sleep(wait).await;
                }
            }
        }
    }

    /// Gets a token. Its source has tried as long as the operation that asked it allowed. That may have been
    /// another operation, whose
    /// deadline was earlier: then this one tries again.
    async fn token(&self, scope: Scope, refused: Option<&CasToken>) -> Result<CasToken, Failure> {
        let began = Instant::now();
        let asked = self.tokens.token(scope, refused);
        let token = match deadline::current() {
            Some(_) => asked.await,
            None => deadline::within(self.options.give_up, asked).await,
        };
        token.map_err(|error| match error.is_transient() {
            true => Failure::Transient { error, after: None, silent: began.elapsed() },
            false => Failure::Final(error),
        })
    }

    async fn attempt<T, F>(
        &self,
        request: &Request<'_>,
        token: Option<&CasToken>,
        read: &impl Fn(Answer) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let permit = self.permit(request.lane).await;
        let exchange = async { read(self.open(request, token).await?).await };
        let result = timeout(request.budget(), exchange).await.unwrap_or_else(|_| Err(too_slow(request.what)));
        permit.tell(result.as_ref().err(), request.bytes());
        result
    }

    /// Waits for a share of what may be in flight. It is given back on drop.
    pub(super) async fn permit(&self, lane: Lane) -> Permit<'_> {
        let pass = match lane {
            Lane::Upload => Some(self.uploads.enter().await),
            Lane::Download => Some(self.downloads.enter().await),
            Lane::Other => None,
        };
        let cap = self.permits.acquire().await.expect("the semaphore is never closed");
        Permit { pass, _cap: cap }
    }

    /// One try up to the head of its answer, whose status is neither transient nor 401.
    pub(super) async fn open(&self, request: &Request<'_>, token: Option<&CasToken>) -> Result<Answer, Failure> {
        let answer = self.send(request, token).await?;
        match answer.status() {
            401 => Err(Failure::Final(Error::Unauthorized)),
            status if is_transient(status) => {
                let after = asked_wait(answer.response.status(), answer.headers());
                Err(Failure::Transient { error: answer.refusal().await, after, silent: Duration::ZERO })
            }
            _ => Ok(answer),
        }
    }

    async fn send(&self, request: &Request<'_>, token: Option<&CasToken>) -> Result<Answer, Failure> {
        let builder = match (request.target, token) {
            (Target::Cas(path, _), Some(token)) => {
                let url = format!("{}{path}", token.url.trim_end_matches('/'));
                self.http.request(request.method.clone(), url).bearer_auth(&token.token)
            }
            (Target::Cas(url, _) | Target::Signed(url), _) => self.http.request(request.method.clone(), url),
        };
        let began = Instant::now();
        let progress = Arc::new(Progress::new());
        let mut builder = builder.headers(request.headers.clone()).header("x-xet-session-id", &self.session);
        builder = builder.header(USER_AGENT, super::AGENT);
        if let Some(body) = &request.body {
            builder = builder.header(CONTENT_LENGTH, body.len()).body(sent(body.clone(), Arc::clone(&progress)));
        }
        let response = tokio::select! {
            sent = builder.send() => sent.map_err(|error| network(request.what, error))?,
            () = progress.stalled(request.idle) => return Err(stalled(request.what, request.idle)),
        };
        let status = response.status().as_u16();
        tracing::debug!(what = request.what, method = %request.method, range = ?request.range(), sent = request.sent(), status,
            took = ?began.elapsed(), "storage request");
        Ok(Answer {
            response,
            what: request.what,
            idle: request.idle,
            signed: matches!(request.target, Target::Signed(_)),
            secure: token.is_some_and(|token| is_https(&token.url)),
            token: token.map(|token| token.token.clone()),
        })
    }
}

/// An answer whose body has yet to come.
pub(super) struct Answer {
    response: reqwest::Response,
    what: &'static str,
    idle: Duration,
    signed: bool,
    secure: bool,
    /// What the request was sent with: what is shown of the answer must not repeat it.
    token: Option<String>,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Whether the CAS itself was spoken to over TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// The next bytes of the body.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        self.piece_within(Duration::MAX).await
    }

    /// The next bytes of the body; `left` is what the try may still take.
    pub(super) async fn piece_within(&mut self, left: Duration) -> Result<Option<Bytes>, Failure> {
        match timeout(self.idle.min(left), self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| network(self.what, error)),
            Err(_) if left < self.idle => Err(too_slow(self.what)),
            Err(_) => Err(stalled(self.what, self.idle)),
        }
    }

    /// Length of the body, where the head says.
    pub(super) fn announced(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The whole body, at most `cap` bytes of it.
    pub(super) async fn collect(mut self, cap: usize) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece().await? {
            if piece.len() > cap - body.len() {
                let why = format!("it is longer than {cap} bytes");
                return Err(Failure::Final(Error::Malformed { what: self.what, why }));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// The error for a status that means nothing else.
    pub(super) async fn refusal(mut self) -> Error {
        let status = self.status();
        if let Some(id) = self.headers().get("x-request-id") {
            let id = self.tame(&String::from_utf8_lossy(id.as_bytes()));
            tracing::debug!(what = self.what, status, request_id = id, "refused");
        }
        // What a storage service says about a pre-signed request repeats its signature.
        let said = if self.signed { self.what.to_owned() } else { self.text().await };
        let silence = || self.response.status().canonical_reason().unwrap_or("no reason given").to_owned();
        let message = if said.is_empty() { silence() } else { said };
        match status {
            403 => Error::Forbidden(message),
            _ => Error::Status { status, message },
        }
    }

    async fn text(&mut self) -> String {
        let mut text = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = self.piece().await {
                text.extend_from_slice(&piece[..piece.len().min(ERROR_TEXT - text.len())]);
                if text.len() == ERROR_TEXT {
                    break;
                }
            }
        };
        // Whatever has come by then is shown.
        let _ = timeout(ERROR_TEXT_WAIT, read).await;
        self.tame(&foreign::spoken(&text).unwrap_or_default())
    }

    /// The server's text as an error may show it.
    pub(super) fn tame(&self, text: &str) -> String {
        foreign::tame(text, self.token.as_deref())
    }
}

/// A share of what may be in flight.
pub(super) struct Permit<'a> {
    pass: Option<Pass>,
    _cap: SemaphorePermit<'a>,
}

impl Permit<'_> {
    /// Tells the gate how a request that moved `bytes` ended: load and stalls are its business, refusals are not.
    pub(super) fn tell(self, failure: Option<&Failure>, bytes: u64) {
        let Some(pass) = self.pass else { return };
        match failure {
            None => pass.finished(bytes),
            Some(Failure::Transient {
                error: Error::Network(_) | Error::Status { status: 408 | 429 | 503 | 504, .. },
                ..
            }) => pass.refused(),
            Some(_) => {}
        }
    }
}

pub(super) fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn stalled(what: &str, silent: Duration) -> Failure {
    Failure::stalled(format!("{what}: no byte went either way for {} s", silent.as_secs_f32()), silent)
}

/// The error of a request that the operation's deadline ended.
pub(super) fn out_of_time(what: &str) -> Error {
    Error::Network(format!("{what}: not done by the deadline of the operation"))
}

pub(super) fn too_slow(what: &str) -> Failure {
    Failure::network(format!("{what}: too slow"))
}

/// What went wrong below HTTP, without the URL.
fn network(what: &'static str, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    if error.is_builder() {
        return Failure::Final(Error::Malformed { what, why: "its URL or a header cannot be used".to_owned() });
    }
    let mut text = format!("{what}: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Failure::network(foreign::tame(&text, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_is_told_from_the_rest() {
        assert!(is_https("HTTPS://x/"));
        assert!(!is_https("http://x/") && !is_https("https:/") && !is_https("ü"));
    }
}
