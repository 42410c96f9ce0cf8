//! The HTTP server of the S3 gateway: connections and their limits, TLS, CORS, the access log, and a stop with a
//! deadline.
//!
//! Limits, all stated in `docs/gateway.md`: connections and requests at once, the size of a request's header, the time
//! for a header, the time without a byte of a body, and the time without progress of an answer.

use super::Parts;
use super::auth::Named;
use super::errors::s3_error;
use super::metrics::Metrics;
use crate::gateway::task::Task;
use crate::gateway::{AccessKeys, Error, Gateway};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::host::VirtualHost;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3ErrorCode};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Longest time for a request's header, and for an idle connection. Above the 90 s for which clients keep idle
/// connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// Read buffer of a connection, and so the largest request header.
const HEADER_LIMIT: usize = 64 * 1024;
/// Longest time without a byte of a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time without progress of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait of a request for its turn. After that it is told to come back.
const TURN: Duration = Duration::from_secs(20);
/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two removals of stale uploads.
const CLEANUP: Duration = Duration::from_secs(600);
/// Largest XML body of a request.
const MAX_XML: usize = 4 << 20;
/// Largest file of an HTML form.
const MAX_FORM_FILE: u64 = 8 << 20;
/// Stands for 499 until there is an answer. No answer has it.
const GONE: StatusCode = StatusCode::IM_A_TEAPOT;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amz-request-id");

/// Options of a server.
pub struct ServerOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// TLS, if it is wanted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Access keys.
    pub keys: AccessKeys,
    /// True if requests without credentials may do everything.
    pub anonymous: bool,
    /// Domains below which each bucket has a host name.
    pub domains: Vec<String>,
    /// Origins that browsers may call from; `*` for all.
    pub cors_origins: Vec<String>,
    /// Connections at once. More wait in the kernel's queue.
    pub connections: usize,
    /// Requests at once. More wait for 20 s, and are then told to come back.
    pub requests: usize,
    /// How long a stop waits for requests.
    pub stop_deadline: Duration,
    /// Where the access log goes.
    pub access_log: Option<Box<dyn io::Write + Send>>,
}

/// A running server. Dropping it stops it without waiting.
pub struct Server {
    task: Task,
    cleanup: JoinHandle<()>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Binds and serves.
    pub async fn start(gateway: Arc<Gateway>, options: ServerOptions) -> io::Result<Self> {
        let ServerOptions { listen, tls, keys, anonymous, domains, cors_origins, .. } = options;
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let Parts { service, auth } = Parts::new(gateway.clone(), keys, anonymous);
        let mut builder = S3ServiceBuilder::new(service);
        builder.set_auth(auth.clone());
        builder.set_access(auth);
        builder.set_validation(HubNames);
        builder.set_config(Arc::new(s3s::config::StaticConfigProvider::new(Arc::new(config()))));
        if !domains.is_empty() {
            builder.set_host(Domains(domains));
        }
        let metrics = Arc::new(Metrics::default());
        let front = Arc::new(Front {
            service: builder.build(),
            cors: Cors { origins: cors_origins },
            turns: Arc::new(Semaphore::new(options.requests)),
            metrics: metrics.clone(),
            log: options.access_log.map(std::sync::Mutex::new),
        });
        let deadline = options.stop_deadline;
        let accept = Accept { listener, tls: tls.map(TlsAcceptor::from), front, connections: options.connections };
        let task = Task::start(address, |stopped| accept.run(stopped, deadline));
        let cleanup = tokio::spawn(remove_stale_uploads(gateway));
        Ok(Self { task, cleanup, metrics })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.task.address()
    }

    /// Returns the counters of the server.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Stops taking requests, and waits for those that run until the deadline.
    pub async fn stop(mut self) {
        self.task.stop().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cleanup.abort();
    }
}

async fn remove_stale_uploads(gateway: Arc<Gateway>) {
    loop {
        match gateway.remove_stale_uploads().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed multipart uploads that were not completed in time"),
            Err(error) => tracing::warn!(%error, "cannot remove stale multipart uploads"),
        }
        tokio::time::sleep(CLEANUP).await;
    }
}

fn config() -> s3s::config::S3Config {
    let mut config = s3s::config::S3Config::default();
    config.xml_max_body_size = MAX_XML;
    // The file of an HTML form is held in memory.
    config.post_object_max_file_size = MAX_FORM_FILE;
    config.form_max_field_size = 64 * 1024;
    config.form_max_fields_size = 256 * 1024;
    config
}

/// Domains below which each bucket has a host name. Any other host means path style.
struct Domains(Vec<String>);

impl s3s::host::S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
        let below = |domain: &String| {
            let at = name.len().checked_sub(domain.len() + 1)?;
            let (bucket, rest) = name.split_at_checked(at)?;
            let is_below = rest.starts_with('.') && rest[1..].eq_ignore_ascii_case(domain);
            (is_below && !bucket.is_empty()).then_some(bucket)
        };
        let host = VirtualHost::new(name);
        Ok(match self.0.iter().find_map(below) {
            Some(bucket) => host.with_bucket(bucket),
            None => host,
        })
    }
}

/// Names of Hub buckets, which S3 would refuse in part. Whether the bucket exists decides the rest.
struct HubNames;

impl s3s::validation::NameValidation for HubNames {
    fn validate_bucket_name(&self, name: &str) -> bool {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !name.is_empty() && name.len() <= 200 && name.bytes().all(legal)
    }
}

struct Accept {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
    connections: usize,
}

impl Accept {
    async fn run(self, mut stopped: watch::Receiver<bool>, deadline: Duration) {
        let permits = Arc::new(Semaphore::new(self.connections));
        let mut connections = JoinSet::new();
        loop {
            let next = async {
                let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
                self.listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                Some(_) = connections.join_next() => continue,
                _ = stopped.changed() => break,
            };
            match accepted {
                Ok((stream, peer, permit)) => {
                    let (front, tls, stopped) = (self.front.clone(), self.tls.clone(), stopped.clone());
                    connections.spawn(async move {
                        connection(stream, peer, tls, front, stopped).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, finished).await.is_err() {
            tracing::warn!("requests that still ran at the deadline of the stop were cut");
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
    stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    // An answer that makes no progress ends the connection.
    let timeout = ANSWER_TIMEOUT.as_millis() as u32;
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, timeout);
    match tls {
        None => serve(stream, peer, front, stopped).await,
        Some(tls) => match tokio::time::timeout(HEADER_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve(stream, peer, front, stopped).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    front: Arc<Front>,
    mut stopped: watch::Receiver<bool>,
) {
    let answer = service_fn(move |request| {
        let front = front.clone();
        async move { Ok::<_, Infallible>(front.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let stop = async { drop(stopped.wait_for(|stop| *stop).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

/// What happens to a request before and after the S3 service.
struct Front {
    service: S3Service,
    cors: Cors,
    turns: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    log: Option<std::sync::Mutex<Box<dyn io::Write + Send>>>,
}

impl Front {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>, peer: SocketAddr) -> Response<Answer> {
        let id = request_id();
        let origin = request.headers().get(header::ORIGIN).cloned();
        let (entry, began) = (Entry::new(&request, peer, &id), Instant::now());
        let mut done = Done { front: self.clone(), entry, status: GONE, began, sent: 0, _permit: None };
        let (expectation, cut) = (Expectation::of(&request), Arc::<AtomicBool>::default());
        let completes = is_completion(&request);
        let (mut response, permit) = match self.early(&request) {
            Some(response) => (response, None),
            None => {
                request.extensions_mut().insert(done.entry.named.clone());
                self.ask(request, expectation.clone(), cut.clone()).await
            }
        };
        if response.status() == StatusCode::INTERNAL_SERVER_ERROR && cut.load(Ordering::Relaxed) {
            // The protocol layer takes a body of XML that ends early for a failure of the server.
            response = error_response(Error::IncompleteBody);
        }
        if !expectation.is_met() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Ok(id) = HeaderValue::try_from(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        let mut response = with_request_id(response, &id);
        if let Some(origin) = origin {
            self.cors.allow(&origin, response.headers_mut());
        }
        (done.status, done._permit) = (response.status(), permit);
        response.map(|body| Answer { body, done, declaration: completes.then_some(false) })
    }

    /// Answers what needs no S3: browsers' noise, and the questions of CORS.
    fn early(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let empty = |status| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        };
        let is_noise = matches!(request.uri().path(), "/favicon.ico" | "/robots.txt");
        let is_plain = request.method() == Method::GET
            && request.uri().query().is_none()
            && !request.headers().contains_key(header::AUTHORIZATION);
        if is_noise && is_plain {
            return Some(empty(StatusCode::NOT_FOUND));
        }
        if has_unusable_region(request.headers()) {
            return Some(wrong_region());
        }
        if request.method() != Method::OPTIONS {
            return None;
        }
        let origin = request.headers().get(header::ORIGIN);
        let mut response = empty(StatusCode::FORBIDDEN);
        if origin.is_some_and(|origin| self.cors.permits(origin)) {
            *response.status_mut() = StatusCode::NO_CONTENT;
            let headers = response.headers_mut();
            let methods = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE");
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HeaderValue::from_static("*")));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
        }
        Some(response)
    }

    async fn ask(
        &self,
        mut request: Request<Incoming>,
        expectation: Expectation,
        cut: Arc<AtomicBool>,
    ) -> (Response<Body>, Option<OwnedSemaphorePermit>) {
        let Ok(Ok(permit)) = tokio::time::timeout(TURN, self.turns.clone().acquire_owned()).await else {
            return (error_response(Error::Busy), None);
        };
        forget_unusable_range(request.headers_mut());
        let request = request.map(|body| Body::http_body_unsync(Timely { body, timer: None, expectation, cut }));
        let response = match self.service.call(request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::error!(?error, "a request could not be answered");
                error_response(Error::State("a request could not be answered".into()))
            }
        };
        (response, Some(permit))
    }
}

fn error_response(error: Error) -> Response<Body> {
    let error = s3_error(error);
    let status = error.status_code().unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = xml_error(status, error.code().as_str(), error.message().unwrap_or_default(), "");
    if *error.code() == S3ErrorCode::SlowDown {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}

/// Returns true if a request completes a multipart upload. Its answer begins before its outcome is known.
fn is_completion(request: &Request<Incoming>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::POST && query.split('&').any(|pair| pair.starts_with("uploadId="))
}

/// Returns true if a signature names a region that the protocol layer refuses: one that isn't of lowercase letters,
/// digits and `-`. `US` is the default of s3cmd.
fn has_unusable_region(headers: &http::HeaderMap) -> bool {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((_, scope)) = header.split_once("Credential=") else { return false };
    // Access key, date, region, service, `aws4_request`. An access key may have slashes.
    let region = scope.split(',').next().unwrap_or_default().rsplit('/').nth(2);
    let is_usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    region.is_some_and(|region| !region.bytes().all(is_usual))
}

/// Returns the error that names the region to sign for. Clients repeat their request with it.
fn wrong_region() -> Response<Body> {
    let message = "the region of the signature is wrong; expecting 'us-east-1'";
    xml_error(StatusCode::BAD_REQUEST, "AuthorizationHeaderMalformed", message, "<Region>us-east-1</Region>")
}

/// Returns an error in XML. `more`: further elements.
fn xml_error(status: StatusCode, code: &str, message: &str, more: &str) -> Response<Body> {
    let fields = format!("<Code>{code}</Code><Message>{message}</Message>{more}");
    let xml = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error>{fields}</Error>");
    let mut response = Response::new(Body::from(Bytes::from(xml)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

/// Adds the id of the request to an error in XML, where clients look for it.
fn with_request_id(mut response: Response<Body>, id: &str) -> Response<Body> {
    const END: &str = "</Error>";
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    let Some(bytes) = response.body().bytes().filter(|_| is_error) else { return response };
    let Some(head) = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix(END)) else { return response };
    let text = format!("{head}<RequestId>{id}</RequestId>{END}");
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|_| Body::from(Bytes::from(text)))
}

/// Removes a range that S3 ignores: several ranges, another unit, or bounds in the wrong order (RFC 9110, 14.2). A
/// range that the signature covers stays.
fn forget_unusable_range(headers: &mut http::HeaderMap) {
    let Some(range) = headers.get(header::RANGE) else { return };
    let is_usable = range.to_str().is_ok_and(|range| s3s::dto::Range::parse(range).is_ok());
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let is_signed = authorization.is_some_and(|text| {
        let signed = text.split("SignedHeaders=").nth(1).unwrap_or_default();
        signed.split(',').next().unwrap_or_default().split(';').any(|name| name.eq_ignore_ascii_case("range"))
    });
    if !is_usable && !is_signed {
        headers.remove(header::RANGE);
    }
}

/// Returns a random id of a request.
fn request_id() -> String {
    let mut id = [0; 8];
    // An id that isn't random is still an id.
    let _ = getrandom::fill(&mut id);
    crate::gateway::hex(&id).to_uppercase()
}

/// Origins that browsers may call from.
struct Cors {
    origins: Vec<String>,
}

impl Cors {
    fn permits(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }

    fn allow(&self, origin: &HeaderValue, headers: &mut http::HeaderMap) {
        if self.permits(origin) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
            let exposed = HeaderValue::from_static("ETag, Content-Range, x-amz-request-id, x-amz-meta-*");
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

/// Whether a client that waits for "100 Continue" got it.
///
/// It doesn't if the request is answered before its body is read, or has no body. Then the connection has to end with
/// the answer: the client may or may not send the body (RFC 9110, section 10.1.1), and botocore takes the answer to its
/// next request on the same connection for a part of this one, until its timeout.
#[derive(Clone)]
struct Expectation(Option<Arc<AtomicBool>>);

impl Expectation {
    fn of(request: &Request<Incoming>) -> Self {
        let expects = request.headers().get(header::EXPECT);
        let expects = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self(expects.then(Arc::default))
    }

    /// The body is read, which sends "100 Continue".
    fn meet(&self) {
        if let Some(met) = &self.0 {
            met.store(true, Ordering::Relaxed);
        }
    }

    fn is_met(&self) -> bool {
        self.0.as_ref().is_none_or(|met| met.load(Ordering::Relaxed))
    }
}

/// A request's body, which fails if no byte comes for too long.
struct Timely {
    body: Incoming,
    expectation: Expectation,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// True once the body has failed.
    cut: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("no byte of the body came for {} seconds", BODY_TIMEOUT.as_secs())]
    Stalled,
    #[error(transparent)]
    Cut(hyper::Error),
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.body.is_end_stream() {
            self.expectation.meet();
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.timer = None;
                self.cut.fetch_or(matches!(frame, Some(Err(_))), Ordering::Relaxed);
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Cut)))
            }
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
                std::task::ready!(timer.as_mut().poll(cx));
                self.cut.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(BodyError::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A line of the access log. It holds no key, no query and no secret: keys are plaintext names.
struct Entry {
    peer: SocketAddr,
    method: Method,
    named: Arc<OnceLock<Named>>,
    received: u64,
    id: String,
}

impl Entry {
    fn new(request: &Request<Incoming>, peer: SocketAddr, id: &str) -> Self {
        let len = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Self {
            peer,
            method: request.method().clone(),
            named: Arc::default(),
            received: len.and_then(|len| len.parse().ok()).unwrap_or(0),
            id: id.to_owned(),
        }
    }
}

/// Counts and logs a request when it ends, also if the client has gone.
struct Done {
    front: Arc<Front>,
    entry: Entry,
    /// Status of the answer, or 499 if the client left before there was one.
    status: StatusCode,
    began: Instant,
    sent: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Done {
    fn drop(&mut self) {
        let Self { front, entry, status, began, sent, .. } = self;
        let status = if *status == GONE { 499 } else { status.as_u16() };
        front.metrics.count(&entry.method, status, entry.received, *sent, began.elapsed());
        let Some(log) = &front.log else { return };
        let time = time::OffsetDateTime::now_utc();
        let time = time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        let named = entry.named.get();
        let line = serde_json::json!({
            "time": time, "request_id": entry.id, "peer": entry.peer.to_string(), "method": entry.method.as_str(),
            "bucket": named.and_then(|named| named.bucket.as_ref()),
            "access_key": named.and_then(|named| named.access_key.as_ref()), "status": status,
            "received": entry.received, "sent": sent, "seconds": began.elapsed().as_secs_f64(),
        });
        let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A log that can't be written must not stop requests.
        let _ = writeln!(log, "{line}").and_then(|()| log.flush());
    }
}

/// The body of an answer.
struct Answer {
    body: Body,
    done: Done,
    /// Of the answer to a completion: true once its XML declaration was sent.
    declaration: Option<bool>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(declared), Some(Ok(sent))) = (&mut self.declaration, &mut frame)
            && let Some(data) = sent.data_ref().filter(|data| data.starts_with(b"<?xml"))
        {
            // The protocol layer sends a second one with an error that comes late, which no parser takes.
            let end = data.iter().position(|byte| *byte == b'>').filter(|_| *declared);
            *declared = true;
            if let Some(end) = end {
                *sent = Frame::data(data.slice(end + 1..));
            }
        }
        if let Some(Ok(frame)) = &frame {
            self.done.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_that_s3_ignores_is_removed() {
        let kept = |range: &str, authorization: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
            forget_unusable_range(&mut headers);
            headers.contains_key(header::RANGE)
        };
        for range in ["bytes=0-1", "bytes=5-", "bytes=-5"] {
            assert!(kept(range, ""), "{range}");
        }
        for range in ["bytes=0-1,3-4", "items=0-1", "bytes=5-1", "bytes=", "x"] {
            assert!(
                !kept(range, "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host;x-amz-date, Signature=b"),
                "{range}"
            );
            assert!(kept(range, "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host;range, Signature=b"), "{range}");
        }
    }

    #[test]
    fn host_below_a_domain_names_a_bucket() {
        use s3s::host::S3Host as _;
        let domains = Domains(vec!["s3.example.com".into(), "localhost".into()]);
        let bucket = |host: &str| domains.parse_host_header(host).unwrap().bucket().map(str::to_owned);
        for host in ["data.s3.example.com", "data.s3.example.com:9000", "data.S3.Example.com", "data.localhost:9000"] {
            assert_eq!(bucket(host).as_deref(), Some("data"), "{host}");
        }
        for host in
            ["s3.example.com", "s3.example.com:9000", "localhost:9000", "other.host", ".localhost", "xlocalhost"]
        {
            assert_eq!(bucket(host), None, "{host}");
        }
        assert_eq!(bucket("a.b.localhost").as_deref(), Some("a.b"));
    }

    #[test]
    fn bucket_names_of_the_hub_are_accepted() {
        use s3s::validation::NameValidation as _;
        for name in ["a", "Weird_Name.v2", "org.data", &"x".repeat(96)] {
            assert!(HubNames.validate_bucket_name(name), "{name}");
        }
        for name in ["", "a b", "ü", "a%", &"x".repeat(201)] {
            assert!(!HubNames.validate_bucket_name(name), "{name}");
        }
    }
}
