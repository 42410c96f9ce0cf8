//! The HTTP client against a server on loopback that answers by script and can break the connection anywhere.

use super::*;
use crate::CasToken;
use crate::cas::gather;
use crate::deadline;
use crate::memory::MemoryCas;
use crate::upload::{self, UploadSession};
use crate::xorb::MAX_SERIALISED;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    /// Names in lower case.
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Seen {
    fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What to answer.
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Whether the length of the body is in the head; else the end of the connection is its end.
    is_announced: bool,
    /// Bytes of the body that are sent before the connection closes.
    cut: usize,
    /// The connection stays open, and silent, after what was sent.
    stalls: bool,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: vec![], body: body.into(), is_announced: true, cut: usize::MAX, stalls: false }
}

impl Reply {
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn unannounced(mut self) -> Self {
        self.is_announced = false;
        self
    }

    fn cut(mut self, len: usize) -> Self {
        self.cut = len;
        self
    }

    fn stalling(mut self) -> Self {
        self.stalls = true;
        self
    }
}

type Script = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// Serves one request per connection.
struct Server {
    url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    arrived: Notify,
    /// Requests being answered now, and the most there were.
    active: Mutex<(usize, usize)>,
}

impl Server {
    /// `script` is told how many requests with the same method and path came before.
    async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            arrived: Notify::new(),
            active: Mutex::default(),
        });
        let serve = {
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    tokio::spawn(Arc::clone(&shared).answer(socket));
                }
            }
        };
        Self { url, shared, _task: AbortOnDropHandle::new(tokio::spawn(serve)) }
    }

    fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, mut socket: TcpStream) {
        let Some(request) = read_request(&mut socket).await else { return };
        {
            let mut active = self.active.lock().unwrap();
            *active = (active.0 + 1, active.1.max(active.0 + 1));
        }
        let nth = {
            let mut seen = self.seen.lock().unwrap();
            let nth = seen.iter().filter(|earlier| earlier.line() == request.line()).count();
            seen.push(request.clone());
            nth
        };
        self.arrived.notify_one();
        let reply = (self.script)(&request, nth);
        // Give others a chance to arrive meanwhile.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.active.lock().unwrap().0 -= 1;
        let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
        if reply.is_announced {
            head += &format!("content-length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent = &reply.body[..reply.body.len().min(reply.cut)];
        let _ = socket.write_all(&[head.as_bytes(), b"\r\n", sent].concat()).await;
        if reply.stalls {
            std::future::pending::<()>().await;
        }
        let _ = socket.shutdown().await;
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    assert!(!headers.contains_key("transfer-encoding"), "uploads announce their length");
    let mut body = vec![0; headers.get("content-length").map_or(0, |len| len.parse().unwrap())];
    socket.read_exact(&mut body).await.ok()?;
    Some(Seen { method, path, headers, body })
}

/// Tokens `t0`, `t1`, … each after the one before was refused.
struct Tokens {
    url: String,
    refused: Mutex<Vec<String>>,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self, _: Scope, refused: Option<&CasToken>) -> Result<CasToken, Error> {
        let mut all = self.refused.lock().unwrap();
        if let Some(refused) = refused
            && !all.contains(&refused.token)
        {
            all.push(refused.token.clone());
        }
        Ok(CasToken { url: self.url.clone(), token: format!("t{}", all.len()), expires: u64::MAX })
    }
}

fn client(url: &str, options: Options) -> HttpCas {
    // Plain HTTP, but the client wants to be ready for TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tokens = Tokens { url: format!("{url}/"), refused: Mutex::default() };
    HttpCas::new(reqwest::Client::new(), Arc::new(tokens), options)
}

fn quick(retries: u32) -> Options {
    Options { retries, first_delay: Duration::from_millis(1), ..Options::default() }
}

/// A server and its client.
async fn pair(retries: u32, script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> (Server, HttpCas) {
    let server = Server::start(script).await;
    let client = client(&server.url, quick(retries));
    (server, client)
}

const FILE: Hash = Hash([7; 32]);

fn v1_answer() -> Value {
    let xorb = Hash([1; 32]).to_string();
    json!({
        "offset_into_first_range": 3,
        "terms": [{ "hash": xorb, "unpacked_length": 100, "range": { "start": 0, "end": 1 } }],
        "fetch_info": { xorb: [{ "range": { "start": 0, "end": 1 }, "url": "http://h/d?sig=1", "url_range": { "start": 0, "end": 107 } }] },
    })
}

fn v2_answer() -> Value {
    let mut answer = v1_answer();
    let xorb = Hash([1; 32]).to_string();
    answer["fetch_info"].take();
    let ranges = json!([{ "chunks": { "start": 0, "end": 1 }, "bytes": { "start": 0, "end": 107 } }]);
    answer["xorbs"] = json!({ xorb: [{ "url": "http://h/d?sig=1", "ranges": ranges }] });
    answer
}

// Reconstructions, tokens, retries.

/// A CAS that is away for a while. The operation's deadline decides how long that is waited for.
#[tokio::test]
async fn requests_and_streams_are_retried_until_the_deadline_of_the_operation() {
    let began = std::time::Instant::now();
    let away = Duration::from_millis(700);
    let server = Server::start(move |seen, n| match (began.elapsed() < away, &*seen.path) {
        (true, _) if n % 2 == 0 => reply(503, ""),
        (true, _) => reply(429, ""),
        (false, "/d") => reply(206, vec![7; 10]),
        (false, _) => reply(200, v2_answer().to_string()),
    })
    .await;
    let short = Duration::from_millis(100);
    let cas = client(&server.url, Options { first_delay: short / 2, give_up: short, ..Options::default() });
    let url = format!("{}/d", server.url);
    // Without a deadline, or with a short one, it is given up sooner than that.
    assert!(cas.reconstruction(&FILE, None).await.unwrap_err().is_transient());
    assert!(deadline::within(short, gather(cas.fetch(&url, 0..10))).await.is_err());
    let long = Duration::from_secs(60);
    let (found, bytes) = futures::join!(
        deadline::within(long, cas.reconstruction(&FILE, None)),
        deadline::within(long, gather(cas.fetch(&url, 0..10)))
    );
    assert_eq!((found.unwrap().skip, bytes.unwrap().len()), (3, 10));
    assert!(began.elapsed() >= away);
    assert!(server.seen().len() < 40, "no storm: {}", server.seen().len());
}

#[tokio::test]
async fn server_that_never_answers_takes_one_deadline() {
    let server = Server::start(|_, _| reply(200, "x").cut(0).stalling()).await;
    // One request holds the only permit: the others wait for it, and that is bounded too.
    let cas = client(&server.url, Options { in_flight: 1, ..Options::default() });
    let (short, url) = (Duration::from_millis(300), format!("{}/d", server.url));
    let began = std::time::Instant::now();
    let (first, second, third) = futures::join!(
        deadline::within(short, cas.reconstruction(&FILE, None)),
        deadline::within(short, gather(cas.fetch(&url, 0..10))),
        deadline::within(short, cas.put_xorb(&FILE, Body::from(Bytes::from_static(b"xorb")))),
    );
    for error in [first.err(), second.err(), third.err()] {
        assert!(matches!(error, Some(Error::Network(_))), "{error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn reconstruction_is_asked_of_v2_with_an_inclusive_range() {
    let (server, cas) = pair(0, |_, _| reply(200, v2_answer().to_string())).await;
    let found = cas.reconstruction(&FILE, Some(5..10)).await.unwrap();
    assert_eq!((found.skip, found.terms.len(), found.fetches[0].bytes.clone()), (3, 1, 0..108));
    cas.reconstruction(&FILE, None).await.unwrap();
    let seen = server.seen();
    assert_eq!(server.lines(), vec![format!("GET /v2/reconstructions/{FILE}"); 2]);
    assert_eq!(seen[0].headers["range"], "bytes=5-9");
    assert_eq!(seen[0].headers["authorization"], "Bearer t0");
    assert!(seen[0].headers["user-agent"].starts_with("hfcrypt/"));
    assert_eq!(seen[0].headers["x-xet-session-id"].len(), 36);
    assert_eq!(seen[0].headers["x-xet-session-id"], seen[1].headers["x-xet-session-id"]);
    assert!(!seen[1].headers.contains_key("range"));
}

#[tokio::test]
async fn v1_is_remembered_once_it_found_what_v2_did_not() {
    for refusal in [404, 501] {
        let (server, cas) = pair(3, move |seen, _| match seen.path.starts_with("/v1/") {
            true => reply(200, v1_answer().to_string()),
            false => reply(refusal, ""),
        })
        .await;
        for _ in 0..2 {
            assert_eq!(cas.reconstruction(&FILE, None).await.unwrap().skip, 3);
        }
        let versions: Vec<_> = server.lines().iter().map(|line| line[5..7].to_owned()).collect();
        assert_eq!(versions, ["v2", "v1", "v1"]);
    }
}

#[tokio::test]
async fn missing_file_is_not_taken_for_a_missing_route() {
    let (server, cas) = pair(3, |_, _| reply(404, "")).await;
    for _ in 0..2 {
        assert!(matches!(cas.reconstruction(&FILE, None).await, Err(Error::NotFound(FILE))));
    }
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn statuses_become_errors() {
    for (status, expected) in
        [(416, "range starts"), (403, "the store denied access: why not"), (400, "the store answered 400: why not")]
    {
        let (server, cas) = pair(3, move |_, _| reply(status, "why not")).await;
        let error = cas.reconstruction(&FILE, Some(0..9)).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(server.seen().len(), 1, "{status} is final");
    }
}

#[tokio::test]
async fn echoed_tokens_and_pages_are_in_no_error() {
    for status in [400, 403, 418, 503] {
        for form in ["you sent AUTH", "{\"error\":\"you sent AUTH\"}", "<html>you sent AUTH</html>"] {
            let answer = move |seen: &Seen, _| {
                let body = form.replace("AUTH", &seen.headers["authorization"]);
                reply(status, body).with("x-request-id", seen.headers["authorization"].clone())
            };
            let (_server, cas) = pair(0, answer).await;
            let error = cas.reconstruction(&FILE, None).await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("t0") && !text.contains("html"), "{text}");
            assert_eq!(text.contains("you sent Bearer [token]"), !form.starts_with('<'), "{text}");
        }
    }
    // After a 200 too.
    let frame = |seen: &Seen, _: usize| {
        let message = json!({ "type": "error", "message": seen.headers["authorization"], "retryable": false });
        reply(200, message.to_string())
    };
    let (error, _) = put_shard(frame).await;
    let text = format!("{:?}", error.unwrap_err());
    assert!(text.contains("[token]") && !text.contains("t0"), "{text}");
}

#[tokio::test]
async fn expired_token_is_refreshed_once() {
    let (server, cas) = pair(3, |seen, _| match seen.headers["authorization"].as_str() {
        "Bearer t0" => reply(401, ""),
        _ => reply(200, v2_answer().to_string()),
    })
    .await;
    cas.reconstruction(&FILE, None).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn token_that_is_refused_twice_is_an_error() {
    let (server, cas) = pair(3, |_, _| reply(401, "")).await;
    assert!(matches!(cas.reconstruction(&FILE, None).await, Err(Error::Unauthorized)));
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn transient_failures_are_tried_again_within_bounds() {
    for status in [408, 429, 500, 502, 503, 504] {
        let answer = move |_: &Seen, nth| if nth < 2 { reply(status, "") } else { reply(200, v2_answer().to_string()) };
        let (_server, cas) = pair(2, answer).await;
        cas.reconstruction(&FILE, None).await.unwrap();
        let (server, cas) = pair(1, answer).await;
        let error = cas.reconstruction(&FILE, None).await.unwrap_err();
        assert!(matches!(error, Error::Status { status: last, .. } if last == status) && error.is_transient());
        assert_eq!(server.seen().len(), 2);
    }
}

#[tokio::test]
async fn damaged_answer_is_asked_for_again() {
    for damage in [reply(200, "{"), reply(200, "<html>"), reply(200, v2_answer().to_string()).cut(20)] {
        let damage = Mutex::new(Some(damage));
        let (server, cas) =
            pair(1, move |_, _| damage.lock().unwrap().take().unwrap_or_else(|| reply(200, v2_answer().to_string())))
                .await;
        cas.reconstruction(&FILE, None).await.unwrap();
        assert_eq!(server.seen().len(), 2);
    }
}

#[tokio::test]
async fn silent_server_is_a_network_error() {
    let (server, _) = pair(0, |_, _| reply(200, v2_answer().to_string()).cut(0).stalling()).await;
    let cas = client(&server.url, Options { idle: Duration::from_millis(50), ..quick(1) });
    let error = cas.reconstruction(&FILE, None).await.unwrap_err();
    assert!(matches!(error, Error::Network(_)), "{error}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn server_that_takes_no_bytes_is_a_network_error() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cas = client(&url, Options { idle: Duration::from_millis(50), ..quick(0) });
    // More than sockets buffer.
    let error = cas.put_xorb_directly(&FILE, vec![0; 32 << 20].into()).await.unwrap_err();
    assert!(matches!(&error, Error::Network(why) if why.contains("no byte went")), "{error}");
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let (server, _) = pair(0, |_, _| reply(206, "x")).await;
    let cas = client(&server.url, Options { in_flight: 2, ..quick(0) });
    let url = format!("{}/d", server.url);
    futures::future::join_all((0..20).map(|i| gather(cas.fetch(&url, i..i + 1)))).await;
    assert_eq!(server.seen().len(), 20);
    assert!(server.shared.active.lock().unwrap().1 <= 2);
}

#[tokio::test]
async fn dropped_request_frees_its_permit() {
    let (server, _) =
        pair(0, |_, nth| if nth == 0 { reply(206, "x").cut(0).stalling() } else { reply(206, "x") }).await;
    let cas = client(&server.url, Options { in_flight: 1, ..quick(0) });
    let url = format!("{}/d", server.url);
    tokio::select! {
        _ = gather(cas.fetch(&url, 0..1)) => panic!("the server never answers the first"),
        () = server.shared.arrived.notified() => (),
    }
    assert_eq!(gather(cas.fetch(&url, 0..1)).await.unwrap(), "x");
}

// Data URLs.

async fn fetched(answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> (Result<Bytes, Error>, Vec<Seen>) {
    let (server, cas) = pair(1, answer).await;
    let result = gather(cas.fetch(&format!("{}/d?sig=SECRET", server.url), 10..14)).await;
    (result, server.seen())
}

#[tokio::test]
async fn data_is_fetched_by_exact_range_without_the_token() {
    for status in [200, 206] {
        let (result, seen) = fetched(move |_, _| reply(status, "abcd").with("content-range", "bytes 10-13/99")).await;
        assert_eq!(result.unwrap(), "abcd");
        assert_eq!(seen[0].headers["range"], "bytes=10-13");
        assert!(!seen[0].headers.contains_key("authorization"));
        assert!(seen[0].headers.contains_key("x-xet-session-id"));
    }
}

#[tokio::test]
async fn data_of_another_length_or_range_is_refused() {
    for bad in
        [("abc", "bytes 10-12/99"), ("abcde", "bytes 10-14/99"), ("abcd", "bytes 11-14/99"), ("", "bytes 10-13/99")]
    {
        let (result, seen) = fetched(move |_, _| reply(206, bad.0).with("content-range", bad.1)).await;
        assert!(matches!(result, Err(Error::Malformed { what: "xorb data", .. })), "{bad:?}");
        assert_eq!(seen.len(), 2);
    }
    let (result, _) = fetched(|_, _| reply(200, "the whole xorb, range ignored")).await;
    assert!(matches!(result, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn length_of_data_is_checked_where_it_was_not_announced() {
    assert_eq!(fetched(|_, _| reply(206, "abcd").unannounced()).await.0.unwrap(), "abcd");
    for bad in ["", "abc", "abcde"] {
        let (result, _) = fetched(move |_, _| reply(206, bad).unannounced()).await;
        assert!(matches!(result, Err(Error::Malformed { what: "xorb data", .. })), "{bad:?}");
    }
}

#[tokio::test]
async fn cut_data_is_fetched_again() {
    let (result, seen) = fetched(|_, nth| reply(206, "abcd").cut(if nth == 0 { 2 } else { 4 })).await;
    assert_eq!((result.unwrap(), seen.len()), ("abcd".into(), 2));
    let (result, _) = fetched(|_, _| reply(206, "abcd").cut(2)).await;
    assert!(matches!(result, Err(Error::Network(_))));
}

#[tokio::test]
async fn data_store_in_trouble_is_asked_again() {
    for status in [408, 429, 500, 503] {
        let (result, seen) = fetched(move |_, nth| if nth == 0 { reply(status, "") } else { reply(206, "abcd") }).await;
        assert_eq!((result.unwrap(), seen.len()), ("abcd".into(), 2));
    }
    let (result, seen) = fetched(|_, _| reply(404, "")).await;
    assert!(matches!(result, Err(Error::Status { status: 404, .. })));
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn what_was_given_before_a_cut_is_not_given_again() {
    // Each try comes further than the one before.
    let (server, cas) = pair(3, |_, nth| reply(206, "abcdefgh").cut([3, 2, 6, 8][nth])).await;
    let url = format!("{}/d", server.url);
    let mut stream = cas.fetch(&url, 0..8);
    let mut got = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.unwrap();
        assert!(!piece.is_empty());
        got.extend_from_slice(&piece);
    }
    assert_eq!(got, b"abcdefgh");
    assert!(server.seen().iter().all(|seen| seen.headers["range"] == "bytes=0-7"), "only the signed range is allowed");
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn url_that_expires_in_the_middle_is_forbidden() {
    let (server, cas) =
        pair(3, |_, nth| if nth == 0 { reply(206, "abcdefgh").cut(3) } else { reply(403, "expired") }).await;
    let url = format!("{}/d", server.url);
    let mut stream = cas.fetch(&url, 0..8);
    assert_eq!(stream.next().await.unwrap().unwrap(), "abc");
    assert!(matches!(stream.next().await, Some(Err(Error::Forbidden(_)))));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn stream_that_stalls_is_a_network_error() {
    let (server, _) = pair(0, |_, _| reply(206, "abcdefgh").cut(3).stalling()).await;
    let cas = client(&server.url, Options { idle: Duration::from_millis(50), ..quick(1) });
    let url = format!("{}/d", server.url);
    let mut stream = cas.fetch(&url, 0..8);
    assert_eq!(stream.next().await.unwrap().unwrap(), "abc");
    assert!(matches!(stream.next().await, Some(Err(Error::Network(_)))));
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn dropped_stream_frees_its_permit() {
    let (server, _) = pair(0, |_, nth| match nth {
        0 => reply(206, "abcdefgh").cut(3).stalling(),
        _ => reply(206, "abcdefgh"),
    })
    .await;
    let cas = client(&server.url, Options { in_flight: 1, ..quick(0) });
    let url = format!("{}/d", server.url);
    let mut stream = cas.fetch(&url, 0..8);
    assert_eq!(stream.next().await.unwrap().unwrap(), "abc");
    drop(stream);
    assert_eq!(gather(cas.fetch(&url, 0..8)).await.unwrap(), "abcdefgh");
}

#[tokio::test]
async fn finished_stream_holds_no_permit() {
    let (server, _) = pair(0, |_, _| reply(206, "x")).await;
    let cas = client(&server.url, Options { in_flight: 1, ..quick(0) });
    let url = format!("{}/d", server.url);
    let mut first = cas.fetch(&url, 0..1);
    assert_eq!(first.next().await.unwrap().unwrap(), "x");
    assert_eq!(gather(cas.fetch(&url, 0..1)).await.unwrap(), "x");
    assert!(first.next().await.is_none());
}

// Several ranges.

const RANGES: [Range<u64>; 3] = [2..4, 6..9, 11..12];
const ALPHABET: &[u8] = b"abcdefghijklmno";

/// What a server that knows one kind of answer says to any ranges of the alphabet.
fn alphabet(seen: &Seen) -> Vec<(Range<usize>, &'static [u8])> {
    let list = seen.headers["range"].strip_prefix("bytes=").unwrap();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap();
        first.parse().unwrap()..last.parse::<usize>().unwrap() + 1
    };
    list.split(',').map(range).map(|range| (range.clone(), &ALPHABET[range])).collect()
}

fn multipart(parts: &[(Range<usize>, &[u8])], boundary: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (range, data) in parts {
        let head = format!(
            "--{boundary}\r\nContent-Type: x/y\r\nContent-Range: bytes {}-{}/15\r\n\r\n",
            range.start,
            range.end - 1
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

#[tokio::test]
async fn many_ranges_are_one_request_whatever_the_order_of_its_parts() {
    for kind in ["multipart/byteranges; boundary=XyZ", "multipart/byteranges; x=y; boundary=\"XyZ\""] {
        let (server, cas) = pair(0, move |seen, _| {
            let mut parts = alphabet(seen);
            parts.rotate_left(1);
            reply(206, multipart(&parts, "XyZ")).with("content-type", kind)
        })
        .await;
        let got = cas.fetch_many(&format!("{}/d", server.url), &RANGES).await.unwrap();
        assert_eq!(got, ["cd", "ghi", "l"]);
        assert_eq!(server.seen().len(), 1);
        assert_eq!(server.seen()[0].headers["range"], "bytes=2-3,6-8,11-11");
        assert!(!server.seen()[0].headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn server_without_multipart_is_asked_singly_from_then_on() {
    type Answer = fn(&[(Range<usize>, &[u8])]) -> Reply;
    let answers: [(&str, Answer); 5] = [
        ("the whole", |_| reply(200, ALPHABET)),
        ("the first only", |parts| reply(206, parts[0].1)),
        ("denied", |_| reply(403, "")),
        ("refused", |_| reply(416, "")),
        ("a part less", |parts| {
            reply(206, multipart(&parts[1..], "b")).with("content-type", "multipart/byteranges; boundary=b")
        }),
    ];
    for (name, answer) in answers {
        let (server, cas) = pair(0, move |seen, _| match &alphabet(seen)[..] {
            [(_, data)] => reply(206, *data),
            parts => answer(parts),
        })
        .await;
        for _ in 0..2 {
            assert_eq!(
                cas.fetch_many(&format!("{}/d", server.url), &RANGES).await.unwrap(),
                ["cd", "ghi", "l"],
                "{name}"
            );
        }
        let joined = server.seen().iter().filter(|seen| seen.headers["range"].contains(',')).count();
        assert_eq!((joined, server.seen().len()), (1, 7), "{name}");
    }
}

#[tokio::test]
async fn expired_url_of_many_ranges_is_forbidden_and_proves_nothing() {
    let (server, cas) = pair(0, |_, _| reply(403, "")).await;
    for _ in 0..2 {
        let result = cas.fetch_many(&format!("{}/d", server.url), &RANGES).await;
        assert!(matches!(result, Err(Error::Forbidden(_))));
    }
    let joined = server.seen().iter().filter(|seen| seen.headers["range"].contains(',')).count();
    assert_eq!(joined, 2);
}

#[tokio::test]
async fn damaged_parts_are_fetched_again_and_endless_ones_refused() {
    let kind = "multipart/byteranges; boundary=b";
    let (server, cas) = pair(1, move |seen, nth| {
        let mut body = multipart(&alphabet(seen), "b");
        body.truncate(if nth == 0 { 60 } else { body.len() });
        reply(206, body).with("content-type", kind)
    })
    .await;
    assert_eq!(cas.fetch_many(&format!("{}/d", server.url), &RANGES).await.unwrap(), ["cd", "ghi", "l"]);
    assert_eq!(server.seen().len(), 2);
    let (server, cas) = pair(0, move |_, _| reply(206, vec![b'\n'; 100_000]).with("content-type", kind)).await;
    let result = cas.fetch_many(&format!("{}/d", server.url), &RANGES).await;
    assert!(matches!(result, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn expired_url_is_forbidden_and_no_error_shows_it() {
    let (result, seen) = fetched(|_, _| reply(403, "signature SECRET of /d?sig=SECRET")).await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Forbidden(_)) && !error.to_string().contains("SECRET"), "{error}");
    assert_eq!(seen.len(), 1);
    let cas = client("http://127.0.0.1:9", quick(0));
    for url in ["http://127.0.0.1:9/d?sig=SECRET", "http://SECRET\u{7f}/", "SECRET", "file:///SECRET"] {
        let error = format!("{0} {0:?}", gather(cas.fetch(url, 0..1)).await.unwrap_err());
        assert!(!error.contains("SECRET") && !error.contains("sig="), "{error}");
    }
}

#[tokio::test]
async fn range_longer_than_a_xorb_is_never_asked_for() {
    let (server, cas) = pair(0, |_, _| reply(206, "")).await;
    #[expect(clippy::reversed_empty_ranges, reason = "a hostile answer may well say so")]
    for bytes in [0..MAX_SERIALISED as u64 + 1, 0..u64::MAX, 5..4] {
        assert!(matches!(gather(cas.fetch(&server.url, bytes)).await, Err(Error::Malformed { .. })));
    }
    assert!(gather(cas.fetch(&server.url, 5..5)).await.unwrap().is_empty());
    assert!(server.seen().is_empty());
}

#[test]
fn answer_over_tls_may_not_lead_away_from_it() {
    let at = |url: &str| {
        let mut answer = parse_v2(v2_answer().to_string().as_bytes()).unwrap();
        answer.fetches[0].url = url.into();
        refuse_downgrade(&answer)
    };
    assert!(at("https://h/d").is_ok());
    assert!(matches!(at("http://h/d"), Err(Failure::Final(Error::Malformed { .. }))));
}

// Xorbs.

const BODY: &[u8] = b"123456789";

/// A CAS with grants; `put` answers at the granted URL, `commit` the commit.
async fn granting(
    put: impl Fn(usize) -> u16 + Send + Sync + 'static,
    commit: impl Fn(usize) -> u16 + Send + Sync + 'static,
) -> (Server, HttpCas) {
    pair(1, move |seen, nth| {
        let host = &seen.headers["host"];
        match seen.path.split('/').nth(2) {
            Some("xorb-grants") => {
                let headers = json!({ "If-None-Match": "*", "X-Odd": "a b", "Content-Length": "9" });
                let grant = json!({ "id": "a/b %", "method": "PUT", "url": format!("http://{host}/put?sig=1"), "headers": headers });
                reply(201, grant.to_string())
            }
            Some("xorb-commits") => reply(commit(nth), "commit"),
            Some("xorbs") => reply(200, "{\"was_inserted\":true,\"more\":1}"),
            _ => reply(put(nth), "put"),
        }
    })
    .await
}

fn steps(server: &Server) -> Vec<String> {
    let name = |line: String| {
        ["grants", "commits", "put", "xorbs"].into_iter().find(|step| line.contains(step)).unwrap().to_owned()
    };
    server.lines().into_iter().map(name).collect()
}

#[tokio::test]
async fn xorb_goes_by_grant_where_grants_are_offered() {
    let (server, cas) = granting(|_| 200, |_| 200).await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    let seen = server.seen();
    assert_eq!(
        server.lines(),
        [
            format!("POST /v1/xorb-grants/default/{FILE}"),
            "PUT /put?sig=1".to_owned(),
            format!("POST /v1/xorb-commits/default/{FILE}/grant/a%2Fb%20%25"),
        ]
    );
    let asked: Value = serde_json::from_slice(&seen[0].body).unwrap();
    let checksum = 0xAE8B_1486_0A79_9888_u64.to_string();
    assert_eq!(asked, json!({ "length": 9, "checksum": { "algo": "crc64nvme", "value": checksum } }));
    assert_eq!(seen[0].headers["content-type"], "application/json");
    assert_eq!((&seen[1].headers["if-none-match"][..], &seen[1].headers["x-odd"][..]), ("*", "a b"));
    assert_eq!((&seen[1].headers["content-length"][..], &seen[1].body[..]), ("9", BODY));
    assert!(!seen[1].headers.contains_key("authorization"));
    assert_eq!((&seen[2].headers["content-length"][..], &seen[2].body[..]), ("0", &b""[..]));
}

#[tokio::test]
async fn xorb_goes_directly_where_grants_are_unknown_and_that_is_remembered() {
    let (server, cas) = pair(0, |seen, nth| match seen.path.contains("grants") {
        true => reply(404, ""),
        false => reply(200, json!({ "was_inserted": nth == 0 }).to_string()),
    })
    .await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert!(!cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants", "xorbs", "xorbs"]);
    assert_eq!(server.seen()[1].body, BODY);
    assert_eq!(server.seen()[1].path, format!("/v1/xorbs/default/{FILE}"));
}

#[tokio::test]
async fn stored_xorb_needs_no_grant() {
    let (server, cas) = pair(0, |_, _| reply(200, "")).await;
    assert!(!cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants"]);
}

#[tokio::test]
async fn granted_put_that_finds_the_data_there_is_a_success() {
    let (server, cas) = granting(|_| 412, |_| 204).await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants", "put", "commits"]);
}

#[tokio::test]
async fn refused_grants_are_renewed_twice_then_the_xorb_goes_directly() {
    for status in [400, 403] {
        let (server, cas) = granting(move |_| status, |_| 200).await;
        assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
        assert_eq!(steps(&server), ["grants", "put", "grants", "put", "grants", "put", "xorbs"]);
    }
}

#[tokio::test]
async fn conflict_at_the_granted_url_is_tried_again_before_a_new_grant() {
    let (server, cas) = granting(|nth| if nth < 2 { 409 } else { 200 }, |_| 200).await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants", "put", "put", "grants", "put", "commits"]);
}

#[tokio::test]
async fn any_other_failure_at_the_granted_url_takes_the_direct_path_at_once() {
    for status in [404, 500, 503] {
        let (server, cas) = granting(move |_| status, |_| 200).await;
        assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
        assert_eq!(steps(&server), ["grants", "put", "xorbs"]);
    }
}

#[tokio::test]
async fn unreachable_granted_url_takes_the_direct_path() {
    // Nobody listens where a listener has just been closed.
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let (server, cas) = pair(3, move |seen, _| match seen.path.contains("grants") {
        true => reply(201, json!({ "id": "1", "method": "PUT", "url": format!("http://{closed}/put") }).to_string()),
        false => reply(200, "{\"was_inserted\":true}"),
    })
    .await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants", "xorbs"]);
}

#[tokio::test]
async fn commit_without_data_asks_for_a_new_grant() {
    let (server, cas) = granting(|_| 200, |nth| if nth == 0 { 404 } else { 200 }).await;
    assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap());
    assert_eq!(steps(&server), ["grants", "put", "commits", "grants", "put", "commits"]);
}

#[tokio::test]
async fn refused_commit_is_an_error() {
    let (server, cas) = granting(|_| 200, |_| 400).await;
    assert!(matches!(cas.put_xorb(&FILE, BODY.into()).await, Err(Error::Status { status: 400, .. })));
    assert_eq!(steps(&server), ["grants", "put", "commits"]);
}

#[tokio::test]
async fn unusable_grant_is_an_error() {
    let sound = json!({ "id": "1", "method": "PUT", "url": "http://127.0.0.1:9/", "headers": {} });
    let changes = [("id", json!("")), ("id", json!("..")), ("id", json!("x".repeat(MAX_REPLY)))];
    for (field, value) in changes {
        let mut grant = sound.clone();
        grant[field] = value;
        let (_server, cas) = pair(0, move |_, _| reply(201, grant.to_string())).await;
        assert!(matches!(cas.put_xorb(&FILE, BODY.into()).await, Err(Error::Malformed { .. })), "{field}");
    }
}

#[tokio::test]
async fn grant_that_asks_for_what_cannot_be_sent_takes_the_direct_path() {
    let changes = [
        ("method", json!("DELETE")),
        ("method", json!("put it")),
        ("headers", json!({ "a b": "c" })),
        ("headers", json!({ "a": "b\nc" })),
    ];
    for (field, value) in changes {
        let mut grant = json!({ "id": "1", "method": "PUT", "url": "http://127.0.0.1:9/", "headers": {} });
        grant[field] = value.clone();
        let (server, cas) = pair(0, move |seen, _| match seen.path.contains("grants") {
            true => reply(201, grant.to_string()),
            false => reply(200, "{\"was_inserted\":true}"),
        })
        .await;
        assert!(cas.put_xorb(&FILE, BODY.into()).await.unwrap(), "{value}");
        assert_eq!(steps(&server), ["grants", "xorbs"]);
    }
}

#[tokio::test]
async fn grant_route_that_fails_fails_the_xorb() {
    for status in [202, 400, 403, 501] {
        let (server, cas) = pair(0, move |_, _| reply(status, "")).await;
        assert!(cas.put_xorb(&FILE, BODY.into()).await.is_err());
        assert_eq!(steps(&server), ["grants"]);
    }
}

#[tokio::test]
async fn only_two_xorbs_are_sent_before_anything_is_known_of_the_link() {
    let (server, cas) = pair(0, |_, _| reply(200, "never sent").cut(0).stalling()).await;
    let mut sending = Box::pin(futures::future::join_all((0..5).map(|_| cas.put_xorb_directly(&FILE, BODY.into()))));
    arrive(&server, 2, &mut sending).await;
    for _ in 0..1000 {
        assert!((&mut sending).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!(server.seen().len(), 2);
    // Given up, they make room for others.
    drop(sending);
    let mut later = Box::pin(cas.put_xorb_directly(&FILE, BODY.into()));
    arrive(&server, 3, &mut later).await;
}

/// Polls `sending`, which never ends, until so many requests have arrived.
async fn arrive(server: &Server, count: usize, sending: impl Future + Unpin) {
    let arrived = async {
        while server.seen().len() < count {
            server.shared.arrived.notified().await;
        }
    };
    let arrived = std::pin::pin!(arrived);
    assert!(matches!(futures::future::select(arrived, sending).await, futures::future::Either::Left(_)));
}

#[tokio::test]
async fn body_of_pieces_arrives_whole_under_its_length() {
    let pieces = [vec![1; 8], vec![2; 100_000], vec![3; 8], vec![4; 300_000]].map(Bytes::from);
    let (server, cas) = pair(1, |seen, nth| match (seen.path.contains("grants"), nth) {
        (true, _) => reply(404, ""),
        (_, 0) => reply(503, ""),
        _ => reply(200, "{\"was_inserted\":true}"),
    })
    .await;
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let body = pieces.iter().cloned().collect::<crate::Body>().counted_in(Arc::clone(&sent));
    assert!(cas.put_xorb(&FILE, body).await.unwrap());
    let seen = server.seen();
    assert!(seen[1].body == pieces.concat() && seen[2].body == pieces.concat());
    assert_eq!(seen[1].headers["content-length"], "400016");
    // Sent twice, counted once.
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 400_016);
    let asked: Value = serde_json::from_slice(&seen[0].body).unwrap();
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &pieces.concat());
    assert_eq!(asked["checksum"]["value"], checksum.to_string());
}

// Shards.

async fn put_shard(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> (Result<(), Error>, Vec<String>) {
    let (server, cas) = pair(1, script).await;
    let result = cas.put_shard(b"shard".as_slice().into()).await;
    assert!(server.seen().iter().all(|seen| seen.body == b"shard"));
    (result, server.lines())
}

const REGISTERED: &str = "{\"type\":\"result\"}\n";
const RETRYABLE: &str = "{\"type\":\"validating\",\"verified\":1,\"total\":2}\n{\"type\":\"error\",\"message\":\"later\",\"retryable\":true}\n";

#[tokio::test]
async fn shard_is_registered_by_its_terminal_frame() {
    let (result, lines) = put_shard(|_, _| reply(200, format!("{{\"type\":\"committing\"}}\n{REGISTERED}"))).await;
    assert!(result.is_ok());
    assert_eq!(lines, ["POST /v2/shards"]);
}

#[tokio::test]
async fn terminal_frame_is_enough_though_the_connection_stays_open() {
    let body = format!("{REGISTERED}{REGISTERED}");
    let (result, _) = put_shard(move |_, _| reply(200, body.clone()).cut(REGISTERED.len()).stalling()).await;
    assert!(result.is_ok());
}

#[tokio::test]
async fn retryable_frame_sends_the_shard_again() {
    let (result, lines) = put_shard(|_, nth| reply(200, if nth == 0 { RETRYABLE } else { REGISTERED })).await;
    assert!(result.is_ok());
    assert_eq!(lines.len(), 2);
    let (result, lines) = put_shard(|_, _| reply(200, RETRYABLE)).await;
    let error = result.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("later"), "{error}");
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn failure_after_200_is_a_failure() {
    for body in
        ["", "{\"type\":\"validating\"}\n", "rubbish", "{\"result\":1}", "{\"type\":\"error\",\"message\":\"bad\"}"]
    {
        let (result, lines) = put_shard(move |_, _| reply(200, body)).await;
        assert!(result.is_err_and(|error| !error.is_transient()), "{body:?}");
        assert_eq!(lines.len(), 1);
    }
}

#[tokio::test]
async fn connection_cut_between_frames_sends_the_shard_again() {
    let body = format!("{{\"type\":\"validating\"}}\n{REGISTERED}");
    let (result, lines) =
        put_shard(move |_, nth| reply(200, body.clone()).cut(if nth == 0 { 23 } else { usize::MAX })).await;
    assert!(result.is_ok());
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn shard_goes_to_v1_where_v2_is_unknown_and_that_is_remembered() {
    for refusal in [404, 501] {
        let (server, cas) = pair(0, move |seen, nth| match seen.path.starts_with("/v1/") {
            true => reply(200, json!({ "result": nth, "shard_hash": "x" }).to_string()),
            false => reply(refusal, ""),
        })
        .await;
        for _ in 0..2 {
            cas.put_shard(b"shard".as_slice().into()).await.unwrap();
        }
        assert_eq!(server.lines(), ["POST /v2/shards", "POST /v1/shards", "POST /v1/shards"]);
    }
}

#[tokio::test]
async fn page_of_something_else_is_no_registration() {
    let (result, _) = put_shard(|seen, _| match seen.path.starts_with("/v1/") {
        true => reply(200, "<html>welcome to this hotel</html>"),
        false => reply(404, ""),
    })
    .await;
    assert!(matches!(result, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn shard_above_the_limit_is_not_sent() {
    let (server, cas) = pair(0, |_, _| reply(200, REGISTERED)).await;
    assert!(cas.put_shard(vec![0; MAX_SHARD + 1].into()).await.is_err());
    assert!(server.seen().is_empty());
}

// Chunk queries.

#[tokio::test]
async fn chunk_query_knows_hits_and_misses_and_is_not_repeated() {
    let (server, cas) = pair(3, |seen, nth| match (seen.path.ends_with(&FILE.to_string()), nth) {
        (true, 0) => reply(200, "shard"),
        (true, _) => reply(404, ""),
        _ => reply(429, ""),
    })
    .await;
    assert_eq!(cas.query_chunk(&FILE).await.unwrap().unwrap(), "shard");
    assert_eq!(cas.query_chunk(&FILE).await.unwrap(), None);
    assert!(cas.query_chunk(&Hash::ZERO).await.is_err());
    assert_eq!(server.lines()[0], format!("GET /v1/chunks/default/{FILE}"));
    assert_eq!(server.seen().len(), 3);
}

// All of it together.

#[tokio::test]
async fn session_over_http_ends_in_a_store() {
    let store = Arc::new(MemoryCas::default());
    let inner = Arc::clone(&store);
    let (_server, cas) = pair(0, move |seen, _| {
        let call = |done: Result<Value, Error>| match done {
            Ok(value) => reply(200, value.to_string()),
            Err(error) => reply(400, error.to_string()),
        };
        let body = Bytes::from(seen.body.clone());
        match seen.path.split('/').nth(2).unwrap() {
            "xorbs" => {
                let hash = seen.path.rsplit('/').next().unwrap().parse().unwrap();
                let put = inner.put_xorb(&hash, body.into()).now_or_never().unwrap();
                call(put.map(|inserted| json!({ "was_inserted": inserted })))
            }
            "shards" if seen.path.starts_with("/v2") => {
                call(inner.put_shard(body).now_or_never().unwrap().map(|()| json!({ "type": "result" })))
            }
            _ => reply(404, ""),
        }
    })
    .await;
    let session = UploadSession::new(Arc::new(cas), upload::Options::default());
    let uploaded = session.add(&b"hello"[..], Default::default()).await.unwrap();
    session.finish().await.unwrap();
    assert!(store.segments(&uploaded.hash).is_some());
}
