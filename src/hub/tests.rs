//! The client against a scripted server: every status, hostile answers, cut and stalled
//! connections, redirects, token refresh.

#[cfg(feature = "local-hub")]
mod full;
mod script;

use super::retry::Policy;
use super::token::TokenProvider;
use super::*;
use script::{Reply, Script, Seen};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use time::macros::datetime;

const TOKEN: &str = "hf_a_token_of_the_tests";
const HASH: &str = "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918";

/// Waits of a millisecond, deadlines that no healthy run comes near.
fn policy() -> Policy {
    let [short, long] = [Duration::from_millis(1), Duration::from_secs(60)];
    Policy { retries: 3, first: short, longest: short, request: long, give_up: long, total: long }
}

fn client_with(base: &str, policy: Policy) -> Client {
    let http = transport::process_client().unwrap();
    Client::new(base, http, TokenProvider::fixed(TOKEN.to_owned()), policy).unwrap()
}

async fn start(handler: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> (Script, Client) {
    let script = Script::start(handler).await;
    let client = client_with(&script.base, policy());
    (script, client)
}

fn id() -> BucketId {
    BucketId::new("ns", "b").unwrap()
}

fn info() -> Value {
    json!({ "id": "ns/b", "private": true, "createdAt": "2026-01-01T00:00:00.000Z", "size": 0, "totalFiles": 0 })
}

fn file(key: &str) -> Value {
    json!({ "type": "file", "path": key, "size": 3, "xetHash": HASH, "mtime": null })
}

fn add(key: &str) -> BatchOp {
    BatchOp::Add { key: key.to_owned(), hash: EMPTY_FILE, mtime: datetime!(2026-01-01 0:00 UTC), content_type: None }
}

fn done() -> Reply {
    Reply::json(200, json!({ "success": true, "processed": 1, "succeeded": 1, "failed": [] }))
}

/// Everything logged by this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

/// What is logged for each retry.
const REPEATED: &str = "Hub request is repeated";

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn malformed<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn requests_carry_token_and_name() {
    let (script, client) =
        start(|_, _| Reply::json(200, json!({ "name": "alice", "orgs": [{ "name": "acme" }] }))).await;
    let identity = client.whoami().await.unwrap();
    assert_eq!((&*identity.name, identity.orgs), ("alice", vec!["acme".to_owned()]));
    let seen = &script.seen()[0];
    assert_eq!((&*seen.method, &*seen.target), ("GET", "/api/whoami-v2"));
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    assert_eq!(seen.header("user-agent"), Some(concat!("hfcrypt/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen.header("accept-encoding"), None);
}

#[tokio::test]
async fn anonymous_requests_carry_no_authorization() {
    let script = Script::start(|_, _| Reply::json(200, info())).await;
    let http = transport::process_client().unwrap();
    let client = Client::new(&script.base, http, TokenProvider::anonymous(), policy()).unwrap();
    client.bucket_info(&id()).await.unwrap();
    assert_eq!(script.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_base_with_a_path_keeps_it() {
    let script = Script::start(|_, _| Reply::json(200, info())).await;
    client_with(&format!("{}/hub/", script.base), policy()).bucket_info(&id()).await.unwrap();
    assert_eq!(script.targets(), ["/hub/api/buckets/ns/b"]);
}

#[tokio::test]
async fn a_rotated_token_file_is_used_by_the_next_try() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "hf_old").unwrap();
    let rotated = path.clone();
    let script = Script::start(move |_, n| {
        std::fs::write(&rotated, "hf_new\n").unwrap();
        if n == 0 { Reply::status(503) } else { Reply::json(200, info()) }
    })
    .await;
    let http = transport::process_client().unwrap();
    let client = Client::new(&script.base, http, TokenProvider::file(path.clone()), policy()).unwrap();
    client.bucket_info(&id()).await.unwrap();
    let sent: Vec<_> = script.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(sent, ["Bearer hf_old", "Bearer hf_new"]);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::TokenFile { .. })));
    assert_eq!(script.seen().len(), 2);
}

#[tokio::test]
async fn each_status_has_its_error_and_echoes_no_token() {
    async fn error(status: u16) -> (Error, usize) {
        let text = format!("no, {TOKEN}\u{1b}[31m");
        let (script, client) = start(move |_, _| Reply::json(status, json!({ "error": text }))).await;
        let error = client.cas_token(&id(), crate::xet::Scope::Read).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains(TOKEN), "{error}");
        assert!(!format!("{error} {error:?}").contains('\u{1b}'), "{error}");
        let asked = script.targets().iter().filter(|target| target.ends_with("xet-read-token")).count();
        (error, asked)
    }
    assert!(matches!(error(401).await, (Error::Unauthorized(words), 1) if words.starts_with("no, [token]")));
    assert!(matches!(error(403).await, (Error::Forbidden(_), 1)));
    assert!(matches!(error(404).await, (Error::BucketNotFound(bucket), 1) if bucket == id()));
    assert!(matches!(error(413).await, (Error::Quota(_), 1)));
    assert!(matches!(error(507).await, (Error::Quota(_), 1)));
    for status in [400, 405, 409, 410, 416, 501, 505, 304] {
        assert!(matches!(error(status).await, (Error::Status { status: s, .. }, 1) if s == status), "{status}");
    }
    for status in [408, 429, 500, 502, 503, 504] {
        let (error, asked) = error(status).await;
        assert!(matches!(&error, Error::Status { status: s, .. } if *s == status), "{error:?}");
        assert!(error.is_transient());
        assert_eq!(asked, 4, "{status}: the first try and three more");
    }
}

#[tokio::test]
async fn an_error_names_the_request() {
    let (_script, client) =
        start(|_, _| Reply::json(418, json!({ "error": "tea" })).header("x-request-id", "r-1")).await;
    let error = client.bucket_info(&id()).await.unwrap_err();
    assert_eq!(error.to_string(), "the Hub answered 418: tea (request r-1)");
}

#[tokio::test]
async fn other_404s_are_not_taken_for_a_missing_bucket() {
    let (_script, client) =
        start(|_, _| Reply::json(404, json!({ "error": "gone" })).header("x-error-code", "EntryNotFound")).await;
    assert!(matches!(client.resolve_range(&id(), "a", 0..1).await, Err(Error::Status { status: 404, .. })));
}

#[tokio::test]
async fn a_repository_given_as_bucket_is_named() {
    for (status, route, kind) in [(404, "datasets", "dataset"), (401, "models", "model"), (404, "spaces", "space")] {
        let (script, client) = start(move |seen, _| match seen.target.starts_with(&format!("/api/{route}/")) {
            true => Reply::json(200, json!({})),
            false => Reply::json(status, json!({ "error": "?" })),
        })
        .await;
        let error = client.bucket_info(&id()).await.unwrap_err();
        assert!(matches!(&error, Error::NotABucket { kind: k, .. } if *k == kind), "{error:?}");
        assert_eq!(script.seen().len(), 4);
    }
}

#[tokio::test]
async fn a_refused_token_asks_no_further_questions() {
    let (script, client) =
        start(|_, _| Reply::json(401, json!({ "error": "Invalid credentials in Authorization header" }))).await;
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::Unauthorized(_))));
    assert_eq!(script.seen().len(), 1);
}

#[tokio::test]
async fn reads_survive_cut_connections_and_server_errors() {
    let (script, client) = start(|_, n| match n {
        0 => Reply::Cut,
        1 => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"id\":".to_vec()),
        2 => Reply::status(502),
        _ => Reply::json(200, info()),
    })
    .await;
    assert_eq!(client.bucket_info(&id()).await.unwrap().id, id());
    assert_eq!(script.seen().len(), 4);
}

#[tokio::test]
async fn retries_end() {
    let (script, client) = start(|_, _| Reply::Cut).await;
    let error = client.bucket_info(&id()).await.unwrap_err();
    assert!(matches!(error, Error::Network(_)) && error.is_transient(), "{error:?}");
    assert_eq!(script.seen().len(), 4);
}

/// A pipe that nobody writes to stands for a file on a dead network disk.
#[tokio::test]
async fn a_token_file_that_cannot_be_read_in_time_is_an_error() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (script, _) = start(|_, _| Reply::json(200, json!({}))).await;
    let policy = Policy { request: Duration::from_millis(50), ..policy() };
    let http = transport::process_client().unwrap();
    let client = Client::new(&script.base, http, TokenProvider::file(path.clone()), policy).unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(20), client.whoami()).await;
    // Lets go of the thread that reads it.
    drop(std::fs::File::options().read(true).write(true).open(&path).unwrap());
    assert!(matches!(outcome, Ok(Err(Error::TokenFile { .. }))), "{outcome:?}");
}

#[tokio::test]
async fn logs_of_retries_name_neither_query_nor_token() {
    let (log, _guard) = Log::start();
    let (script, client) = start(|seen, n| match n {
        0 => Reply::json(503, json!({ "error": format!("no {TOKEN}") })),
        1 => Reply::Cut,
        _ => Reply::json(200, json!([])).header("link", &format!("<{}&x=1>; rel=next", seen.target)),
    })
    .await;
    let cursor = Cursor(format!("{}/api/buckets/ns/b/tree/below?cursor=signed", script.base));
    client.tree_page(&id(), "below", false, Some(&cursor)).await.unwrap();
    let log = log.text();
    assert_eq!(log.matches(REPEATED).count(), 2, "{log}");
    assert!(log.contains("/api/buckets/ns/b/tree/below"), "{log}");
    for secret in [TOKEN, "cursor", "signed", "Bearer"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let script = Script::start(|_, _| Reply::status(503).header("retry-after", "3600")).await;
    let long = Duration::from_secs(3600);
    let client = client_with(&script.base, Policy { longest: long, ..policy() });
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::Status { status: 503, .. })));
    assert_eq!(script.seen().len(), 1);
}

#[tokio::test]
async fn a_stalled_hub_is_a_network_error() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec();
    for reply in [Reply::Stall(Vec::new()), Reply::Stall(head)] {
        let script = Script::start(move |_, _| reply.clone()).await;
        let client = client_with(&script.base, Policy { retries: 1, request: Duration::from_millis(50), ..policy() });
        assert!(matches!(client.bucket_info(&id()).await, Err(Error::Network(_))));
    }
}

#[tokio::test]
async fn nobody_listening_is_a_network_error_without_the_url() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = client_with(&base, policy()).tree_page(&id(), "secret", false, None).await.unwrap_err();
    assert!(matches!(&error, Error::Network(why) if !why.contains("secret")), "{error}");
}

#[tokio::test]
async fn a_write_that_found_nobody_is_repeated() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (log, _guard) = Log::start();
    let error = client_with(&base, policy()).batch(&id(), &[add("a")]).await.unwrap_err();
    assert!(matches!(error, Error::Network(_)), "{error}");
    assert_eq!(log.text().matches(REPEATED).count(), 3);
}

#[tokio::test]
async fn https_is_never_spoken_without_tls() {
    let script = Script::start(|_, _| Reply::json(200, info())).await;
    let client = client_with(&script.base.replace("http", "https"), policy());
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::Network(_))));
    assert!(script.seen().iter().all(|seen| !seen.method.starts_with("GET")));
}

#[tokio::test]
async fn proxies_are_used_except_for_this_machine() {
    let proxy = Script::start(|_, _| Reply::json(200, info())).await;
    let hub = Script::start(|_, _| Reply::json(200, info())).await;
    let address = proxy.base.clone();
    let http = transport::build(&move |name| (name == "http_proxy").then(|| address.clone())).unwrap();
    let ask = async |base: &str| {
        let client = Client::new(base, http.clone(), TokenProvider::anonymous(), policy()).unwrap();
        client.bucket_info(&id()).await.unwrap()
    };
    ask("http://hub.example").await;
    assert_eq!(proxy.targets(), ["http://hub.example/api/buckets/ns/b"]);
    ask(&hub.base).await;
    ask(&hub.base.replace("127.0.0.1", "localhost")).await;
    assert_eq!((proxy.seen().len(), hub.seen().len()), (1, 2));
}

#[tokio::test]
async fn answers_that_are_too_large_are_refused() {
    let body = |n: usize| [b"\"", &*vec![b'x'; n], b"\""].concat();
    // Announced, and not announced.
    let (_script, client) = start(move |_, n| match n {
        0 => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec()),
        _ => Reply::Raw([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", &*body(2 << 20)].concat()),
    })
    .await;
    assert!(malformed(client.bucket_info(&id()).await).contains("more than 1048576 bytes"));
    assert!(malformed(client.bucket_info(&id()).await).contains("more than 1048576 bytes"));
    // What goes with an error is cut, and the error stands.
    let (_script, client) = start(move |_, _| Reply::new(403, body(4 << 20))).await;
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::Forbidden(words)) if words.len() < 400));
}

#[tokio::test]
async fn garbage_instead_of_json_is_malformed() {
    for body in ["", "<html>welcome</html>", "null", "[]", "{}", "{\"id\":\"ns/b\"", "\u{0}"] {
        let (script, client) = start(move |_, _| Reply::new(200, body)).await;
        malformed(client.bucket_info(&id()).await);
        malformed(client.cas_token(&id(), crate::xet::Scope::Read).await);
        malformed(client.batch(&id(), &[add("a")]).await);
        assert_eq!(script.seen().len(), 3, "no retry makes sense of it");
        if body != "[]" {
            malformed(client.tree_page(&id(), "", true, None).await);
            malformed(client.paths_info(&id(), &["a".to_owned()]).await);
            malformed(client.list_buckets("me").await);
        }
        malformed(client.whoami().await);
    }
    let (_script, client) = start(|_, _| Reply::Raw(b"\x16\x03\x01 SSH-2.0\r\n\r\n".to_vec())).await;
    assert!(matches!(client.bucket_info(&id()).await, Err(Error::Network(_))));
}

#[tokio::test]
async fn listings_follow_their_pages() {
    let script = Script::start(|seen, _| {
        let base = format!("http://{}", seen.header("host").unwrap());
        match seen.query("cursor") {
            None => Reply::json(200, json!([file("a/b c/1")])).header(
                "link",
                &format!("<{base}/api/buckets/ns/b/tree/a/b%20c?cursor=x%2Cy&recursive=true>; rel=\"next\""),
            ),
            Some("x%2Cy") => {
                Reply::json(200, json!([])).header("link", &format!("<{base}/last?cursor=z>; rel=\"next\""))
            }
            _ => Reply::json(200, json!([file("a/b c/2"), file("a/b c#2")])),
        }
    })
    .await;
    let client = client_with(&script.base, policy());
    let entries = client.tree(&id(), "a/b c", true).await.unwrap();
    assert_eq!(entries.iter().map(TreeEntry::key).collect::<Vec<_>>(), ["a/b c/1", "a/b c/2"]);
    assert_eq!(
        script.targets(),
        [
            "/api/buckets/ns/b/tree/a/b%20c?recursive=true&limit=1000",
            "/api/buckets/ns/b/tree/a/b%20c?cursor=x%2Cy&recursive=true",
            "/last?cursor=z"
        ]
    );
    assert!(script.seen().iter().all(|seen| seen.header("authorization").is_some()));
}

#[tokio::test]
async fn cursors_that_lead_away_are_not_followed() {
    let other = Script::start(|_, _| Reply::json(200, json!([]))).await;
    let link = format!("<{}/x>; rel=\"next\"", other.base);
    let (_script, client) = start(move |_, _| Reply::json(200, json!([])).header("link", &link)).await;
    malformed(client.tree_page(&id(), "", false, None).await);
    malformed(client.list_buckets("me").await);
    let cursor = Cursor(format!("{}/x", other.base));
    malformed(client.tree_page(&id(), "", false, Some(&cursor)).await);
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn listings_in_a_circle_end() {
    let (_script, client) =
        start(|seen, _| Reply::json(200, json!([])).header("link", &format!("<{}>; rel=next", seen.target))).await;
    malformed(client.tree(&id(), "", false).await);
    let (script, client) = start(|_, n| {
        Reply::json(200, json!([info()])).header("link", &format!("</api/buckets/ns?cursor={}>; rel=next", n % 2))
    })
    .await;
    malformed(client.list_buckets("ns").await);
    assert_eq!(script.seen().len(), 100);
}

#[tokio::test]
async fn entries_of_another_place_are_refused() {
    let (_script, client) = start(|_, _| Reply::json(200, json!([file("a/1"), file("b/2")]))).await;
    malformed(client.tree_page(&id(), "a", true, None).await);
}

#[tokio::test]
async fn odd_prefixes_arrive_as_they_are() {
    let (script, client) = start(|_, _| Reply::json(200, json!([]))).await;
    for prefix in ["..", "a/../b", ".", "a//b", "%2e%2e/x", "a?b#c", "é\u{0}\n"] {
        client.tree_page(&id(), prefix, false, None).await.unwrap();
        let seen = script.targets().pop().unwrap();
        let path = seen.split_once('?').unwrap().0.strip_prefix("/api/buckets/ns/b/tree/").unwrap();
        let path = percent_encoding::percent_decode_str(path).decode_utf8().unwrap();
        assert!(path == prefix || path.strip_suffix('/') == Some(prefix), "{prefix}: {seen}");
    }
}

#[tokio::test]
async fn redirects_of_reads_are_followed_at_home_only() {
    let away = Script::start(|_, _| Reply::json(200, info())).await;
    let target = format!("{}/api/buckets/ns/b", away.base);
    let (script, client) = start(move |seen, _| match &*seen.target {
        "/api/buckets/ns/b" => Reply::status(307).header("location", "/api/buckets/new/b"),
        "/api/buckets/new/b" => Reply::status(302).header("location", "../new/c"),
        "/api/buckets/new/c" => Reply::json(200, json!({ "id": "new/c", "private": true, "size": 1, "totalFiles": 1 })),
        "/api/buckets/ns/away" => Reply::status(307).header("location", &target),
        "/api/buckets/ns/loop" => Reply::status(308).header("location", "/api/buckets/ns/loop"),
        _ => Reply::status(301),
    })
    .await;
    assert_eq!(client.bucket_info(&id()).await.unwrap().id.to_string(), "new/c");
    assert_eq!(script.seen().len(), 3);
    for name in ["away", "loop", "nowhere"] {
        malformed(client.bucket_info(&BucketId::new("ns", name).unwrap()).await);
    }
    assert!(away.seen().is_empty(), "no token goes to another origin");
}

#[tokio::test]
async fn writes_are_redirected_only_to_the_same_route_of_the_moved_bucket() {
    let away = Script::start(|_, _| done()).await;
    let abroad = format!("{}/api/buckets/new/b/batch", away.base);
    let odd = [
        "/elsewhere",
        "/api/buckets/new/b/paths-info",
        "/api/buckets/new/b/batch?x=1",
        "/api/buckets/ns/b/batch",
        &abroad,
    ];
    for (status, target) in odd.into_iter().map(|target| (307, target)).chain([(302, "/api/buckets/new/b/batch")]) {
        let location = target.to_owned();
        let (script, client) = start(move |_, _| Reply::status(status).header("location", &location)).await;
        let error = client.batch(&id(), &[add("a")]).await.unwrap_err();
        assert!(
            matches!(error, Error::Status { status: of, .. } if of == status) && !error.is_unanswered(),
            "{target}"
        );
        assert_eq!(script.seen().len(), 1, "{target}");
    }
    assert!(away.seen().is_empty(), "nothing goes to another origin");
    // A bucket is neither created nor deleted under another name than was asked for.
    let (script, client) = start(|_, _| Reply::status(307).header("location", "/api/buckets/new/b")).await;
    assert!(client.create_bucket(&id(), true, true).await.is_err());
    assert!(client.delete_bucket(&id()).await.is_err());
    assert!(script.targets().iter().all(|target| target == "/api/buckets/ns/b"));
}

#[tokio::test]
async fn requests_to_moved_bucket_are_followed_with_method_and_body_and_logged_once() {
    let (log, _guard) = Log::start();
    let (script, client) = start(|seen, _| match seen.target.strip_prefix("/api/buckets/ns/b") {
        Some(rest) => Reply::status(if rest == "/batch" { 307 } else { 308 })
            .header("location", &format!("/api/buckets/new/c{rest}")),
        None if seen.target.ends_with("/paths-info") => Reply::json(200, json!([file("a")])),
        None => done(),
    })
    .await;
    client.batch(&id(), &[add("a")]).await.unwrap();
    assert_eq!(client.paths_info(&id(), &["a".to_owned()]).await.unwrap().len(), 1);
    for pair in script.seen().chunks(2) {
        assert_eq!((&*pair[0].method, &pair[0].body), ("POST", &pair[1].body));
        assert_eq!(pair[1].method, "POST");
        assert!(!pair[1].body.is_empty() && pair[1].header("authorization").is_some());
        assert_eq!(pair[1].header("content-type"), pair[0].header("content-type"));
    }
    assert_eq!(script.seen().len(), 4);
    assert_eq!(log.text().matches("the bucket has moved").count(), 1, "{}", log.text());
    assert!(log.text().contains("new/c"));
}

/// A Hub that is away for a while: refused, cut off, busy, limited. The operation's deadline decides how long that
/// is waited for.
#[tokio::test]
async fn reads_and_refused_writes_are_retried_until_the_deadline_of_the_operation() {
    use crate::xet::deadline::within;
    let short = Policy { first: Duration::from_millis(20), longest: Duration::from_millis(40), ..Policy::default() };
    for write in [false, true] {
        let began = std::time::Instant::now();
        let away = Duration::from_millis(700);
        let script = Script::start(move |seen, n| match (began.elapsed() < away, &*seen.method) {
            (true, _) if n % 2 == 0 => Reply::status(503),
            (true, "POST") => Reply::status(429),
            (true, _) => Reply::Cut,
            (false, "POST") => done(),
            (false, _) => Reply::json(200, info()),
        })
        .await;
        // Without a deadline it gives up sooner than that.
        let client = client_with(&script.base, Policy { give_up: Duration::from_millis(100), ..short.clone() });
        let call = || async {
            match write {
                true => client.batch(&id(), &[add("a")]).await.map(drop),
                false => client.bucket_info(&id()).await.map(drop),
            }
        };
        assert!(call().await.is_err());
        assert!(within(Duration::from_millis(200), call()).await.is_err());
        within(Duration::from_secs(60), call()).await.unwrap();
        assert!(began.elapsed() >= away);
        assert!(script.seen().len() < 60, "no storm: {}", script.seen().len());
    }
}

#[tokio::test]
async fn hub_that_never_answers_takes_one_deadline() {
    use crate::xet::deadline::within;
    let script = Script::start(|_, _| Reply::Stall(Vec::new())).await;
    let client = client_with(&script.base, Policy::default());
    let began = std::time::Instant::now();
    let outcome = within(Duration::from_millis(300), client.batch(&id(), &[add("a")])).await;
    assert!(outcome.unwrap_err().is_unanswered(), "its fate is unknown");
    let outcome = within(Duration::from_millis(300), client.tree(&id(), "", true)).await;
    assert!(matches!(outcome, Err(Error::Network(_))));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(script.seen().len(), 2, "a write whose fate is unknown is not repeated");
}

#[tokio::test]
async fn paths_are_asked_for_in_groups_once_each() {
    let (script, client) = start(|seen, _| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        let even = |key: &&Value| key.as_str().unwrap().ends_with('0');
        Reply::json(
            200,
            asked["paths"].as_array().unwrap().iter().filter(even).map(|k| file(k.as_str().unwrap())).collect(),
        )
    })
    .await;
    let mut keys: Vec<String> = (0..2500).map(|i| format!("k{i}")).collect();
    keys.extend(["k0".to_owned(), String::new()]);
    let files = client.paths_info(&id(), &keys).await.unwrap();
    assert_eq!(files.len(), 250);
    assert!(files.iter().all(|file| file.size == 3 && file.hash.unwrap().to_string() == HASH));
    let seen = script.seen();
    let sizes: Vec<_> = seen
        .iter()
        .map(|s| serde_json::from_slice::<Value>(&s.body).unwrap()["paths"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [1000, 1000, 500]);
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(client.paths_info(&id(), &[]).await.unwrap(), []);
    assert_eq!(script.seen().len(), 3, "nothing to ask, nothing asked");
}

#[tokio::test]
async fn a_batch_goes_out_in_groups_and_tells_what_failed() {
    let (script, client) = start(|seen, _| {
        let lines: Vec<Value> = seen
            .body
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect();
        let failed: Vec<_> = lines
            .iter()
            .filter(|l| l["path"] == "k7" || l["path"] == "k1007")
            .map(|l| json!({ "path": l["path"], "error": "no such\u{7} hash" }))
            .collect();
        Reply::json(200, json!({ "success": failed.is_empty(), "processed": lines.len(), "failed": failed }))
    })
    .await;
    let operations: Vec<_> = (0..1500).map(|i| add(&format!("k{i}"))).collect();
    let outcome = client.batch(&id(), &operations).await.unwrap();
    let said = "no such\\u{7} hash".to_owned();
    assert_eq!(outcome.failed, [("k7".to_owned(), said.clone()), ("k1007".to_owned(), said)]);
    assert_eq!(script.seen().len(), 2);
    assert_eq!(script.seen()[0].header("content-type"), Some("application/x-ndjson"));
    assert_eq!(client.batch(&id(), &[]).await.unwrap(), BatchOutcome::default());
    assert_eq!(script.seen().len(), 2);
}

#[tokio::test]
async fn a_batch_that_all_failed_is_told_from_one_that_was_refused() {
    let all = json!({ "success": false, "failed": [{ "path": "a", "error": "unknown hash" }] });
    let (_script, client) = start(move |_, n| match n {
        0 => Reply::json(422, all.clone()),
        1 => Reply::json(422, json!({ "error": "malformed line" })),
        _ => Reply::json(200, json!({ "success": false, "failed": [{ "path": "b", "error": "?" }] })),
    })
    .await;
    assert_eq!(client.batch(&id(), &[add("a")]).await.unwrap().failed.len(), 1);
    let error = client.batch(&id(), &[add("a")]).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 422, .. }) && !error.is_unanswered());
    assert!(malformed(client.batch(&id(), &[add("a")]).await).contains("other keys"));
}

#[tokio::test]
async fn an_unanswered_write_is_not_repeated() {
    for reply in [Reply::Cut, Reply::status(500), Reply::status(502), Reply::status(504), Reply::status(408)] {
        let (script, client) = start(move |_, _| reply.clone()).await;
        let error = client.batch(&id(), &[add("a")]).await.unwrap_err();
        assert!(error.is_unanswered(), "{error:?}");
        assert!(client.create_bucket(&id(), true, false).await.unwrap_err().is_unanswered());
        assert!(client.delete_bucket(&id()).await.unwrap_err().is_unanswered());
        assert_eq!(script.seen().len(), 3);
    }
}

#[tokio::test]
async fn a_write_that_was_not_carried_out_is_repeated() {
    let (script, client) = start(|_, n| match n {
        0 => Reply::status(429).header("ratelimit", "\"api\";r=0;t=1"),
        1 => Reply::status(503).header("retry-after", "1"),
        _ => done(),
    })
    .await;
    client.batch(&id(), &[add("a")]).await.unwrap();
    assert_eq!(script.seen().len(), 3);
    assert!(script.seen().iter().all(|seen| seen.body == script.seen()[0].body));
}

#[tokio::test]
async fn a_batch_that_was_put_off_for_long_is_for_its_caller_to_repeat() {
    let script = Script::start(|_, _| Reply::status(503).header("retry-after", "9")).await;
    let client = client_with(&script.base, Policy::default());
    let error = client.batch_within(&id(), &[add("a")], Duration::from_secs(5)).await.unwrap_err();
    assert!(error.is_transient(), "what it was compared with is old by then: {error:?}");
    assert_eq!(script.seen().len(), 1);
}

#[tokio::test]
async fn answers_of_earlier_groups_outlive_a_later_failure() {
    let (_script, client) = start(|_, n| match n {
        0 => Reply::json(200, json!({ "success": false, "failed": [{ "path": "k3", "error": "no" }] })),
        _ => Reply::Cut,
    })
    .await;
    let operations: Vec<_> = (0..2500).map(|i| add(&format!("k{i}"))).collect();
    let error = client.batch(&id(), &operations).await.unwrap_err();
    assert!(error.is_unanswered() && error.is_transient());
    let Error::Partial { answered, outcome, source } = error else { panic!("{error:?}") };
    assert_eq!((answered, outcome.failed), (1000, vec![("k3".to_owned(), "no".to_owned())]));
    assert!(matches!(*source, Error::Network(_)));
}

#[tokio::test]
async fn a_bucket_that_was_to_be_private_and_is_not_is_an_error() {
    let public = json!({ "id": "alice/b", "visibility": "public", "size": 0, "totalFiles": 0 });
    let (script, client) = start(move |seen, _| match &*seen.method {
        "POST" => Reply::json(200, json!({ "url": "http://h/buckets/alice/b" })),
        _ => Reply::json(200, public.clone()),
    })
    .await;
    assert!(malformed(client.create_bucket(&"me/b".parse().unwrap(), true, false).await).contains("public"));
    assert_eq!(script.targets(), ["/api/buckets/me/b", "/api/buckets/alice/b"]);
    client.create_bucket(&id(), false, false).await.unwrap();
    let sent: Value = serde_json::from_slice(&script.seen()[2].body).unwrap();
    assert_eq!(sent, json!({ "private": false, "visibility": "public" }));
}

#[tokio::test]
async fn an_existing_bucket_is_a_conflict_unless_it_may_exist() {
    let (_script, client) = start(|seen, _| match &*seen.method {
        "POST" => Reply::json(409, json!({ "error": "exists", "url": "http://h/buckets/ns/b" })),
        _ => Reply::json(200, info()),
    })
    .await;
    assert!(matches!(client.create_bucket(&id(), true, false).await, Err(Error::Conflict(bucket)) if bucket == id()));
    client.create_bucket(&id(), true, true).await.unwrap();
    // May not create here, yet may read what is there.
    let (_script, client) = start(|seen, _| match &*seen.method {
        "POST" => Reply::json(403, json!({ "error": "no" })),
        _ => Reply::json(200, info()),
    })
    .await;
    client.create_bucket(&id(), true, true).await.unwrap();
    assert!(matches!(client.create_bucket(&id(), true, false).await, Err(Error::Forbidden(_))));
}

#[tokio::test]
async fn odd_namespaces_never_reach_a_url() {
    let (script, client) = start(|_, _| Reply::json(200, json!([]))).await;
    for namespace in ["", "..", "a/b", "a?b", "a b"] {
        assert!(matches!(client.list_buckets(namespace).await, Err(Error::InvalidId(_))), "{namespace}");
    }
    assert!(script.seen().is_empty());
}

#[tokio::test]
async fn ranges_are_exact_or_errors() {
    let part = |status, range: &str, body: &'static str| Reply::new(status, body).header("content-range", range);
    let replies = [
        part(206, "bytes 2-5/10", "cdef"),
        part(206, "bytes 2-4/10", "cde"),
        part(206, "bytes 3-6/10", "defg"),
        part(206, "bytes 2-5/10", "cde"),
        part(206, "bytes 2-5/10", "cdefg"),
        Reply::new(206, "cdef"),
        Reply::new(200, "cdef"),
    ];
    let (script, client) = start(move |_, n| replies[n].clone()).await;
    let bucket = id();
    let get = || client.resolve_range(&bucket, "a b/c", 2..6);
    assert_eq!(&get().await.unwrap()[..], b"cdef");
    assert_eq!(script.seen()[0].header("range"), Some("bytes=2-5"));
    assert_eq!(script.targets(), ["/buckets/ns/b/resolve/a%20b/c"]);
    for _ in 1..7 {
        malformed(get().await);
    }
    let (script, client) = start(|_, _| Reply::new(200, "abcd")).await;
    assert_eq!(&client.resolve_range(&id(), "k", 0..4).await.unwrap()[..], b"abcd");
    malformed(client.resolve_range(&id(), "k", 0..3).await);
    malformed(client.resolve_range(&id(), "k", 0..5).await);
    malformed(client.resolve_range(&id(), "..", 0..4).await);
    assert!(client.resolve_range(&id(), "k", 4..4).await.unwrap().is_empty());
    assert_eq!(script.seen().len(), 3);
}

#[tokio::test]
async fn bytes_come_from_another_host_without_the_token() {
    let cdn = Script::start(|_, _| Reply::new(206, "bc").header("content-range", "bytes 1-2/9")).await;
    let target = format!("{}/blob?sig=x", cdn.base);
    let (_script, client) = start(move |_, _| Reply::status(302).header("location", &target)).await;
    assert_eq!(&client.resolve_range(&id(), "k", 1..3).await.unwrap()[..], b"bc");
    let seen = cdn.seen();
    assert_eq!((&*seen[0].target, seen[0].header("range")), ("/blob?sig=x", Some("bytes=1-2")));
    assert_eq!(seen[0].header("authorization"), None);
}

#[tokio::test]
async fn cas_tokens_are_asked_for_by_scope() {
    let (script, client) =
        start(|_, _| Reply::json(200, json!({ "casUrl": "http://c/", "exp": 5, "accessToken": "t" }))).await;
    let token = client.cas_token(&id(), crate::xet::Scope::Read).await.unwrap();
    client.cas_token(&id(), crate::xet::Scope::Write).await.unwrap();
    assert_eq!((&*token.url, &*token.token, token.expires), ("http://c", "t", 5));
    assert_eq!(script.targets(), ["/api/buckets/ns/b/xet-read-token", "/api/buckets/ns/b/xet-write-token"]);
}

#[tokio::test]
async fn web_endpoints_open_under_their_name() {
    let script = Script::start(|_, _| Reply::json(200, info())).await;
    let endpoint = Endpoint::open(&format!("{}/", script.base), TokenProvider::anonymous()).await.unwrap();
    assert_eq!(endpoint.identity(), script.base);
    endpoint.client().bucket_info(&id()).await.unwrap();
    endpoint.close().await;
    for bad in ["", "hub", "file://relative", "gopher://h"] {
        assert!(matches!(Endpoint::open(bad, TokenProvider::anonymous()).await, Err(Error::Endpoint { .. })), "{bad}");
    }
}
