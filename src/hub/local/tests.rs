//! The embedded Hub over real HTTP: every route, who may use it, several openers of one directory,
//! restarts, hostile requests.

use super::faults::{Fault, Faults, Rule};
use super::*;
use crate::xet::chunker::Chunker;
use crate::xet::shard::{FileInfo, Segment, Shard, ShardChunk, XorbInfo};
use crate::xet::{Hash, Scheme, hash, merkle, xorb};
use reqwest::{Method, RequestBuilder, Response, StatusCode, redirect};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod repositories;

const PROCESS: &str = "process-token-of-the-tests";
const EMPTY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A served Hub and a client that doesn't follow redirects.
struct Rig {
    hub: LocalHub,
    server: Server,
    http: reqwest::Client,
    token: Option<String>,
}

impl Rig {
    async fn open(dir: &TempDir, options: ServeOptions) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let hub = LocalHub::open(dir.path()).unwrap();
        let server = hub.serve(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
        Self { hub, server, http, token: Some("hf_local".into()) }
    }

    async fn new(dir: &TempDir) -> Self {
        Self::open(dir, ServeOptions::default()).await
    }

    fn base(&self) -> String {
        format!("http://{}", self.server.address())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.base() + path);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        self.request(Method::POST, path).json(&body).send().await.unwrap()
    }

    async fn get_json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    async fn bucket(&self, id: &str) {
        assert_eq!(self.post(&format!("/api/buckets/{id}"), json!({})).await.status(), 200);
    }

    async fn batch(&self, id: &str, lines: &[Value]) -> (StatusCode, Value) {
        let body: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let request = self.request(Method::POST, &format!("/api/buckets/{id}/batch"));
        let response =
            request.header("content-type", "application/x-ndjson").body(body.join("\n")).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// Puts empty files.
    async fn touch(&self, id: &str, keys: &[&str]) {
        let lines: Vec<Value> = keys.iter().map(|key| add(key, EMPTY)).collect();
        let (status, outcome) = self.batch(id, &lines).await;
        assert_eq!((status.as_u16(), &outcome["success"]), (200, &json!(true)), "{outcome}");
    }

    /// Uploads content to the CAS with a write token of the bucket; gives its file hash.
    async fn upload(&self, id: &str, content: &[u8]) -> String {
        let token = self.get_json(&format!("/api/buckets/{id}/xet-write-token")).await;
        let (url, token) = (token["casUrl"].as_str().unwrap(), token["accessToken"].as_str().unwrap());
        let (hash, xorb, shard) = encode(content);
        for (path, body) in [(format!("/v1/xorbs/default/{}", xorb.1), xorb.0), ("/v1/shards".into(), shard.into())] {
            let sent = self.http.post(format!("{url}{path}")).bearer_auth(token).body(body).send().await.unwrap();
            assert_eq!(sent.status(), 200, "{path}");
        }
        hash.to_string()
    }

    /// Paths of all pages of a listing, following links.
    async fn list(&self, path: &str) -> Vec<String> {
        let mut paths = Vec::new();
        let mut url = self.base() + path;
        loop {
            let mut request = self.http.get(&url);
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{url}");
            let next = next_page(&response);
            let entries: Vec<Value> = response.json().await.unwrap();
            paths.extend(entries.iter().map(|e| e["path"].as_str().or(e["id"].as_str()).unwrap().to_owned()));
            match next {
                Some(next) => url = next,
                None => return paths,
            }
        }
    }

    /// The same directory, served by a process to itself alone.
    async fn for_the_process(&self) -> Self {
        let options = ServeOptions { process_token: Some(PROCESS.into()), ..ServeOptions::default() };
        let server = self.hub.serve(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        Self { hub: self.hub.clone(), server, http: self.http.clone(), token: Some(PROCESS.into()) }
    }

    /// Sends text as it is and reads until the connection closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn raw_get(&self, target: &str) -> String {
        self.raw(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }
}

/// File hash, xorb (body and hash) and upload shard of some content.
fn encode(content: &[u8]) -> (Hash, (bytes::Bytes, Hash), Vec<u8>) {
    let mut builder = xorb::Builder::default();
    let mut chunker = Chunker::new();
    let mut rest = content;
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(chunker.next_boundary(rest).unwrap_or(rest.len()));
        builder.push(hash::chunk_hash(chunk), chunk, Scheme::None);
        rest = behind;
    }
    let (body, index) = builder.finish();
    let raw_len = content.len() as u32;
    let mut raw_start = 0;
    let chunks: Vec<ShardChunk> = index
        .chunks
        .iter()
        .map(|entry| {
            let chunk = ShardChunk { hash: entry.hash, raw_start, raw_len: entry.raw_len, flags: 0 };
            raw_start += entry.raw_len;
            chunk
        })
        .collect();
    let leaves: Vec<(Hash, u64)> = chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len.into())).collect();
    let file = FileInfo {
        hash: merkle::file_hash(&leaves),
        segments: vec![Segment { xorb: index.hash, raw_len, start: 0, end: chunks.len() as u32 }],
        verification: vec![hash::term_hash(chunks.iter().map(|chunk| chunk.hash))],
        sha256: None,
    };
    let file_hash = file.hash;
    let section = XorbInfo { hash: index.hash, raw_len, stored_len: 0, chunks };
    let shard = Shard { files: vec![file], xorbs: vec![section], footer: None };
    (file_hash, (body, index.hash), shard.to_upload())
}

/// Content that repeats nowhere.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn add(key: &str, hash: &str) -> Value {
    json!({"type": "addFile", "path": key, "xetHash": hash, "mtime": 1_700_000_000_123_i64})
}

fn delete(key: &str) -> Value {
    json!({"type": "deleteFile", "path": key})
}

fn next_page(response: &Response) -> Option<String> {
    let link = response.headers().get("link")?.to_str().unwrap();
    let url = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    assert!(!url.contains(','), "{url}");
    Some(url.to_owned())
}

fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).unwrap_or_else(|| panic!("{name} is missing")).to_str().unwrap().to_owned()
}

async fn error(response: Response) -> (u16, Option<String>, String) {
    let status = response.status().as_u16();
    let code = response.headers().get("x-error-code").map(|code| code.to_str().unwrap().to_owned());
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    (status, code, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_fresh_directory_is_private_and_has_the_local_user() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("hub");
    LocalHub::open(&inner).unwrap();
    assert_eq!(std::fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
    let rig = Rig::new(&dir).await;
    let me = rig.get_json("/api/whoami-v2").await;
    assert_eq!((&me["name"], &me["auth"]["accessToken"]["role"]), (&json!("local"), &json!("write")));
    assert!(rig.hub.takes_default_token().await.unwrap());
}

#[tokio::test]
async fn whoami_needs_a_good_token() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.token = Some("hf_wrong".into());
    let (status, _, message) = error(rig.get("/api/whoami-v2").await).await;
    assert_eq!((status, message.as_str()), (401, "Invalid credentials in Authorization header"));
    rig.token = None;
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 401);
    let basic = rig.request(Method::GET, "/api/whoami-v2").header("authorization", "Basic aGY6bG9jYWw=");
    assert_eq!(basic.send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn create_takes_both_spellings_and_tells_the_url() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let made: Value = rig.post("/api/buckets/me/a", json!({"visibility": "private"})).await.json().await.unwrap();
    assert_eq!(made["url"], json!(format!("{}/buckets/local/a", rig.base())));
    assert_eq!(rig.get_json("/api/buckets/local/a").await["private"], json!(true));
    rig.post("/api/buckets/local/b", json!({"private": true, "region": "eu"})).await;
    let info = rig.get_json("/api/buckets/local/b").await;
    assert_eq!(info["id"], json!("local/b"));
    assert_eq!((&info["private"], &info["size"], &info["totalFiles"]), (&json!(true), &json!(0), &json!(0)));
    assert!(info["createdAt"].as_str().unwrap().ends_with('Z'));
    // No body at all is fine too.
    assert_eq!(rig.request(Method::POST, "/api/buckets/local/c").send().await.unwrap().status(), 200);

    let again = rig.post("/api/buckets/me/a", json!({})).await;
    assert_eq!(again.status(), 409);
    let again: Value = again.json().await.unwrap();
    assert_eq!(again["url"], json!(format!("{}/buckets/local/a", rig.base())));
    assert!(again["error"].is_string());
}

#[tokio::test]
async fn create_refuses_bad_names_and_bodies() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let long = format!("/api/buckets/local/{}", "x".repeat(97));
    for path in ["/api/buckets/local/a%20b", "/api/buckets/local/a%2Fb", "/api/buckets/local/%2e%2e%2e%2f", &long] {
        assert_eq!(rig.post(path, json!({})).await.status(), 400, "{path}");
    }
    for body in [json!([]), json!({"private": "yes"}), json!({"visibility": "secret"}), json!({"region": 1})] {
        assert_eq!(rig.post("/api/buckets/local/a", body.clone()).await.status(), 400, "{body}");
    }
    let huge = rig.request(Method::POST, "/api/buckets/local/a").body(vec![b' '; 70_000]);
    assert_eq!(huge.send().await.unwrap().status(), 413);
    assert!(rig.list("/api/buckets/local").await.is_empty());
}

/// An event stream being read.
struct Events {
    response: Response,
    received: String,
}

impl Events {
    async fn open(rig: &Rig, path: &str) -> Self {
        let response = rig.request(Method::GET, path).header("accept", "text/event-stream").send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert!(header(&response, "content-type").starts_with("text/event-stream"));
        Self { response, received: String::new() }
    }

    /// Name and data of the next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.received.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.received = rest;
                let Some((name, data)) = event.split_once('\n') else { continue };
                let name = name.strip_prefix("event: ").unwrap().to_owned();
                return Some((name, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap()));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await;
            let chunk = chunk.expect("an event is due").unwrap()?;
            self.received += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// Operations and paths of the next event, which has to be `changes`, and its cursor.
    async fn changes(&mut self) -> (Vec<String>, String) {
        let (name, data) = self.next().await.unwrap();
        assert_eq!(name, "changes", "{data}");
        let shown = |change: &Value| format!("{} {}", change["op"].as_str().unwrap(), change["path"].as_str().unwrap());
        let changes = data["changes"].as_array().unwrap().iter().map(shown).collect();
        (changes, data["cursor"].as_str().unwrap().to_owned())
    }

    /// Cursor of the next event, which has to be `ready`.
    async fn ready(&mut self) -> String {
        let (name, data) = self.next().await.unwrap();
        assert_eq!(name, "ready", "{data}");
        data["cursor"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn events_are_replayed_from_cursor_or_time_and_followed_across_servers() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Rig::new(&dir).await, Rig::new(&dir).await);
    one.bucket("local/b").await;
    let path = "/api/buckets/local/b/events";
    one.touch("local/b", &["before"]).await;
    let since = one.get_json("/api/buckets/local/b").await["updatedAt"].as_str().unwrap().to_owned();
    let mut live = Events::open(&one, path).await;
    let start = live.ready().await;
    two.touch("local/b", &["d/x", "d/y"]).await;
    let (changes, middle) = live.changes().await;
    assert_eq!(changes, ["add d/x", "add d/y"]);
    two.batch("local/b", &[add("d/x", EMPTY), delete("d/y"), delete("missing")]).await;
    let (changes, end) = live.changes().await;
    assert_eq!(changes, ["update d/x", "delete d/y"]);
    let (status, _) = two.batch("local/b", &[add("..", EMPTY)]).await;
    assert_eq!(status, 422);

    for (query, replayed) in [
        (format!("cursor={start}"), vec!["add d/x", "add d/y", "update d/x", "delete d/y"]),
        (format!("since={since}"), vec!["add d/x", "add d/y", "update d/x", "delete d/y"]),
        (
            "since=2020-01-01T00:00:00%2B01:00".into(),
            vec!["add before", "add d/x", "add d/y", "update d/x", "delete d/y"],
        ),
        (format!("cursor={middle}"), vec!["update d/x", "delete d/y"]),
        (format!("cursor={end}"), vec![]),
        ("since=2100-01-01T00:00:00Z".into(), vec![]),
        (String::new(), vec![]),
    ] {
        let mut events = Events::open(&two, &format!("{path}?{query}")).await;
        if !replayed.is_empty() {
            assert_eq!(
                events.changes().await,
                (replayed.iter().map(ToString::to_string).collect(), end.clone()),
                "{query}"
            );
        }
        assert_eq!(events.ready().await, end, "{query}");
    }
    for bad in ["cursor=", "cursor=x", "cursor=1", "cursor=1-x", "since=", "since=yesterday"] {
        assert_eq!(error(one.get(&format!("{path}?{bad}")).await).await.0, 400, "{bad}");
    }
    // Of another bucket, or of a log that was longer.
    for foreign in ["0-1", "99-1", "1-99", "1--1"] {
        let mut events = Events::open(&one, &format!("{path}?cursor={foreign}")).await;
        assert_eq!(events.next().await.unwrap(), ("reset".into(), json!({"reason": "cursor_too_old"})), "{foreign}");
        assert!(events.next().await.is_none());
    }
}

#[tokio::test]
async fn event_stream_ends_when_reader_may_no_longer_see_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let mut owner = Events::open(&rig, "/api/buckets/local/b/events").await;
    let token = rig.token.take();
    let mut stranger = Events::open(&rig, "/api/buckets/local/b/events").await;
    owner.ready().await;
    stranger.ready().await;
    rig.token = token;
    let hide = rig.request(Method::PUT, "/api/buckets/local/b/settings").json(&json!({"private": true}));
    assert_eq!(hide.send().await.unwrap().status(), 200);
    assert!(stranger.next().await.is_none());
    rig.touch("local/b", &["x"]).await;
    assert_eq!(owner.changes().await.0, ["add x"]);
    assert_eq!(rig.request(Method::DELETE, "/api/buckets/local/b").send().await.unwrap().status(), 200);
    assert!(owner.next().await.is_none());
}

#[tokio::test]
async fn open_event_streams_do_not_hold_up_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let mut events = Events::open(&rig, "/api/buckets/local/b/events").await;
    let cursor = events.ready().await;
    let asked = std::time::Instant::now();
    rig.server.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(9), "a stop waits 10 s for what doesn't end");
    assert_eq!(events.next().await.unwrap(), ("reconnect".into(), json!({"cursor": cursor})));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn event_streams_are_bounded_and_their_places_are_freed() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let mut streams = Vec::new();
    for _ in 0..api::STREAMS {
        let mut events = Events::open(&rig, "/api/buckets/local/b/events").await;
        events.ready().await;
        streams.push(events);
    }
    let refused = rig.get("/api/buckets/local/b/events").await;
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after").as_str()), (503, "5"));
    assert_eq!(rig.get("/api/buckets/local/b").await.status(), 200, "other requests are answered");
    streams.clear();
    while rig.get("/api/buckets/local/b/events").await.status() == 503 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every kind of caller against every route of a public and a private bucket of user `local`.
#[tokio::test]
async fn every_caller_gets_what_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("mallory").await.unwrap();
    let writer = rig.hub.add_token("local", Role::Write).await.unwrap();
    let reader = rig.hub.add_token("local", Role::Read).await.unwrap();
    let stranger = rig.hub.add_token("mallory", Role::Write).await.unwrap();
    rig.token = Some(writer.secret.to_string());
    for (id, private) in [("local/open", false), ("local/shut", true)] {
        rig.post(&format!("/api/buckets/{id}"), json!({"private": private})).await;
        rig.touch(id, &["f"]).await;
    }
    let line = add("g", EMPTY).to_string();
    let routes = [
        ("GET", "/api/buckets/ID", ""),
        ("GET", "/api/buckets/ID/tree", ""),
        ("GET", "/api/buckets/ID/xet-read-token", ""),
        ("HEAD", "/buckets/ID/resolve/f", ""),
        ("GET", "/buckets/ID/resolve/f", ""),
        ("GET", "/api/buckets/ID/events", ""),
        ("GET", "/api/buckets/ID/resource-group", ""),
        ("POST", "/api/buckets/ID/paths-info", r#"{"paths":["f"]}"#),
        ("GET", "/api/buckets/ID/xet-write-token", ""),
        ("POST", "/api/buckets/ID/batch", line.as_str()),
        ("PUT", "/api/buckets/ID/settings", "{}"),
        ("POST", "/api/buckets/ID/resource-group", "{}"),
    ];
    const READING: usize = 8;
    // Statuses of: reading open, changing open, reading shut, changing shut.
    let callers = [
        (None, [200, 401, 401, 401]),
        (Some("hf_wrong"), [401, 401, 401, 401]),
        (Some(stranger.secret.as_str()), [200, 403, 404, 404]),
        (Some(reader.secret.as_str()), [200, 403, 200, 403]),
        (Some(writer.secret.as_str()), [200, 200, 200, 200]),
        (Some(PROCESS), [401, 401, 401, 401]),
    ];
    let of_the_process = [(Some(PROCESS), [200; 4]), (None, [401; 4]), (Some(writer.secret.as_str()), [401; 4])];
    let mut alone = rig.for_the_process().await;
    let served = callers.map(|caller| (false, caller)).into_iter().chain(of_the_process.map(|caller| (true, caller)));
    for (is_alone, (token, due)) in served {
        let rig = if is_alone { &mut alone } else { &mut rig };
        rig.token = token.map(str::to_owned);
        for (bucket, id) in ["local/open", "local/shut"].into_iter().enumerate() {
            for (number, (method, path, body)) in routes.into_iter().enumerate() {
                let request = rig.request(method.parse().unwrap(), &path.replace("ID", id));
                let response = request.body(body.to_owned()).send().await.unwrap();
                let due = due[2 * bucket + usize::from(number >= READING)];
                assert_eq!(response.status(), due, "{token:?} {method} {path} {id}");
                let hidden = id == "local/shut" && (due == 404 || token.is_none()) && !is_alone;
                let code = response.headers().get("x-error-code").map(|code| code.to_str().unwrap());
                assert_eq!(code, hidden.then_some("RepoNotFound"), "{token:?} {method} {path} {id}");
            }
        }
        let create = rig.post("/api/buckets/local/open", json!({})).await.status().as_u16();
        assert_eq!(create, if due[1] == 200 { 409 } else { due[1] }, "{token:?}");
    }
    for (token, due) in [(None, 401), (Some(stranger.secret.as_str()), 404)] {
        rig.token = token.map(str::to_owned);
        for id in ["local/shut", "local/none"] {
            let gone = rig.request(Method::DELETE, &format!("/api/buckets/{id}")).send().await.unwrap();
            let moved =
                rig.post("/api/repos/move", json!({"fromRepo": id, "toRepo": "mallory/x", "type": "bucket"})).await;
            for response in [gone, moved, rig.get(&format!("/api/buckets/{id}")).await] {
                let (status, code, _) = error(response).await;
                assert_eq!((status, code.as_deref()), (due, Some("RepoNotFound")), "{token:?} {id}");
            }
        }
    }
    // Deleting and moving, last.
    for (token, due) in [(None, 401), (Some(stranger.secret.as_str()), 403), (Some(reader.secret.as_str()), 403)] {
        rig.token = token.map(str::to_owned);
        let gone = rig.request(Method::DELETE, "/api/buckets/local/open").send().await.unwrap();
        assert_eq!(gone.status(), due, "{token:?}");
        let moved = json!({"fromRepo": "local/open", "toRepo": "mallory/open", "type": "bucket"});
        assert_eq!(rig.post("/api/repos/move", moved).await.status(), due, "{token:?}");
    }
    rig.token = Some(writer.secret.to_string());
    let given_away = json!({"fromRepo": "local/open", "toRepo": "mallory/open", "type": "bucket"});
    assert_eq!(rig.post("/api/repos/move", given_away).await.status(), 403);
}

#[tokio::test]
async fn listing_buckets_pages_searches_and_hides_private_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(&dir, ServeOptions { page_size: Some(2), ..ServeOptions::default() }).await;
    for name in ["b1", "b2", "b3", "other", "b4"] {
        rig.post(&format!("/api/buckets/local/{name}"), json!({"private": name == "b3"})).await;
    }
    assert_eq!(rig.list("/api/buckets/me").await, ["local/b1", "local/b2", "local/b3", "local/b4", "local/other"]);
    assert_eq!(rig.list("/api/buckets/local?search=b").await, ["local/b1", "local/b2", "local/b3", "local/b4"]);
    rig.hub.add_user("empty").await.unwrap();
    assert_eq!(rig.list("/api/buckets/empty").await, [""; 0]);
    let fresh = tempfile::tempdir().unwrap();
    let alone = Rig::new(&fresh).await.for_the_process().await;
    alone.hub.remove_user("local").await.unwrap();
    assert_eq!(alone.list("/api/buckets/me").await, [""; 0]);
    assert_eq!(rig.list("/api/buckets/local?search=none").await, [""; 0]);
    rig.token = None;
    for unknown in ["nobody", "loca", "%20", "b1"] {
        let (status, code, _) = error(rig.get(&format!("/api/buckets/{unknown}")).await).await;
        assert_eq!((status, code.as_deref()), (404, Some("RepoNotFound")), "{unknown}");
    }
    assert_eq!(rig.list("/api/buckets/local").await, ["local/b1", "local/b2", "local/b4", "local/other"]);
    assert_eq!(rig.get("/api/buckets/me").await.status(), 401);
}

#[tokio::test]
async fn a_deleted_bucket_is_gone_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["x"]).await;
    let delete = || rig.request(Method::DELETE, "/api/buckets/local/b").send();
    assert_eq!(delete().await.unwrap().status(), 200);
    assert_eq!(error(delete().await.unwrap()).await.1.as_deref(), Some("RepoNotFound"));
    assert_eq!(rig.get("/api/buckets/local/b/tree").await.status(), 404);
    rig.bucket("local/b").await;
    assert!(rig.list("/api/buckets/local/b/tree").await.is_empty());
    assert_eq!(rig.get_json("/api/buckets/local/b").await["totalFiles"], json!(0));
}

#[tokio::test]
async fn a_moved_bucket_is_found_under_its_old_name() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/old").await;
    rig.bucket("local/taken").await;
    rig.touch("local/old", &["a b/c"]).await;
    let go = |to: &str| rig.post("/api/repos/move", json!({"fromRepo": "local/old", "toRepo": to, "type": "bucket"}));
    assert_eq!(go("local/taken").await.status(), 409);
    assert_eq!(go("local/bad name").await.status(), 400);
    assert_eq!(go("me/new").await.status(), 200);
    assert_eq!(go("local/new2").await.status(), 404);

    for (method, path, to) in [
        ("GET", "/api/buckets/local/old", "/api/buckets/local/new"),
        ("GET", "/api/buckets/local/old/tree/a%20b?recursive=true", "/api/buckets/local/new/tree/a%20b?recursive=true"),
        ("POST", "/api/buckets/local/old/batch", "/api/buckets/local/new/batch"),
        ("HEAD", "/buckets/local/old/resolve/a%20b%2Fc", "/buckets/local/new/resolve/a%20b%2Fc"),
    ] {
        let response = rig.request(method.parse().unwrap(), path).send().await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "location").as_str()), (307, to), "{method} {path}");
        let response = rig.request(method.parse().unwrap(), to).send().await.unwrap();
        assert_eq!(response.status(), 200, "{method} {to}");
    }
    // An old name deletes nothing, and may be taken again.
    let gone = rig.request(Method::DELETE, "/api/buckets/local/old").send().await.unwrap();
    assert_eq!(gone.status(), 404);
    rig.bucket("local/old").await;
    assert!(rig.list("/api/buckets/local/old/tree").await.is_empty());
    assert_eq!(rig.list("/api/buckets/local/new/tree?recursive=false").await, ["a b"]);
    // And back: the redirect of the name it has now is gone.
    assert_eq!(rig.request(Method::DELETE, "/api/buckets/local/old").send().await.unwrap().status(), 200);
    let back = json!({"fromRepo": "local/new", "toRepo": "local/old", "type": "bucket"});
    assert_eq!(rig.post("/api/repos/move", back).await.status(), 200);
    assert_eq!(rig.list("/api/buckets/local/old/tree?recursive=false").await, ["a b"]);
    assert_eq!(rig.get("/api/buckets/local/new").await.status(), 307);
}

#[tokio::test]
async fn the_old_name_of_a_private_bucket_tells_strangers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.post("/api/buckets/local/old", json!({"private": true})).await;
    rig.post("/api/repos/move", json!({"fromRepo": "local/old", "toRepo": "local/new", "type": "bucket"})).await;
    assert_eq!(rig.get("/api/buckets/local/old").await.status(), 307);
    rig.token = None;
    assert_eq!(rig.get("/api/buckets/local/old").await.status(), 401);
}

#[tokio::test]
async fn settings_and_resource_group_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let put = rig.request(Method::PUT, "/api/buckets/local/b/settings").json(&json!({"private": true}));
    assert_eq!(put.send().await.unwrap().status(), 200);
    assert_eq!(rig.get_json("/api/buckets/local/b").await["private"], json!(true));
    rig.post("/api/buckets/local/b/resource-group", json!({"resourceGroupId": "g1"})).await;
    assert_eq!(rig.get_json("/api/buckets/local/b/resource-group").await, json!({"id": "g1"}));
    rig.post("/api/buckets/local/b/resource-group", json!({"resourceGroupId": null})).await;
    assert_eq!(rig.get_json("/api/buckets/local/b/resource-group").await, json!(null));
}

#[tokio::test]
async fn batch_reports_each_line_and_keeps_the_totals_exact() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let unknown = "1".repeat(64);
    let (status, outcome) = rig
        .batch("local/b", &[add("a", EMPTY), add("b", &unknown), add("c", "xyz"), delete("missing"), add("a", EMPTY)])
        .await;
    assert_eq!(status, 200);
    assert_eq!(
        (&outcome["success"], &outcome["processed"], &outcome["succeeded"]),
        (&json!(false), &json!(5), &json!(3))
    );
    let failed: Vec<_> = outcome["failed"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(failed, ["b", "c"]);
    assert_eq!(rig.get_json("/api/buckets/local/b").await["totalFiles"], json!(1));

    let (status, outcome) = rig.batch("local/b", &[add("b", &unknown)]).await;
    assert_eq!((status.as_u16(), &outcome["succeeded"]), (422, &json!(0)));
    let (status, outcome) = rig.batch("local/b", &[]).await;
    assert_eq!((status.as_u16(), &outcome["success"]), (200, &json!(true)));
    let (_, outcome) = rig.batch("local/b", &[delete("a"), delete("a")]).await;
    assert_eq!(outcome["success"], json!(true));
    assert_eq!(rig.get_json("/api/buckets/local/b").await["totalFiles"], json!(0));
}

#[tokio::test]
async fn a_malformed_batch_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let good = add("a", EMPTY).to_string();
    let too_many = format!("{}\n", delete("x")).repeat(10_001);
    for bad in [
        "{".to_owned(),
        "[]".into(),
        r#"{"type":"renameFile","path":"x"}"#.into(),
        r#"{"path":"x"}"#.into(),
        r#"{"type":"addFile","path":"x"}"#.into(),
        r#"{"type":"deleteFile","path":"\ud800"}"#.into(),
        too_many,
    ] {
        let request = rig.request(Method::POST, "/api/buckets/local/b/batch").body(format!("{good}\n{bad}"));
        assert_eq!(request.send().await.unwrap().status(), 400);
    }
    let huge = rig.request(Method::POST, "/api/buckets/local/b/batch").body(vec![b'\n'; 17 << 20]);
    assert_eq!(huge.send().await.unwrap().status(), 413);
    assert!(rig.list("/api/buckets/local/b/tree").await.is_empty());
}

#[tokio::test]
async fn keys_that_the_hub_refuses_fail_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let long = "x".repeat(4097);
    let bad = [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/./b",
        "a/../b",
        "../a",
        "a\0b",
        "back\\slash",
        "a/dots..",
        "dots../x",
        "...",
        &long,
    ];
    let lines: Vec<Value> = bad.iter().map(|key| add(key, EMPTY)).collect();
    let (status, outcome) = rig.batch("local/b", &lines).await;
    assert_eq!((status.as_u16(), outcome["failed"].as_array().unwrap().len()), (422, bad.len()));
    let odd = ["a", "a/b", "a b", "a#b", "a?b", "a%2Fb", "%", "...a", "ü/日本", "C:x", "a\nb", "a..b/c", "a,b;c\"d"];
    rig.touch("local/b", &odd).await;
    let listed: BTreeSet<String> = rig.list("/api/buckets/local/b/tree?recursive=true").await.into_iter().collect();
    assert_eq!(listed, odd.iter().map(|&key| key.to_owned()).collect());
    for copied in ["a\\b", "x..", "y../z"] {
        let copy = json!({"type": "copyFile", "path": copied, "xetHash": EMPTY, "sourceRepoType": "bucket", "sourceRepoId": "local/b"});
        assert_eq!(rig.batch("local/b", &[copy]).await.0, 422, "{copied}");
    }
}

/// As an older version left them.
#[tokio::test]
async fn invalid_keys_that_are_stored_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["d/old"]).await;
    let rename =
        |t: &rusqlite::Transaction<'_>| Ok::<_, db::Error>(t.execute("UPDATE objects SET key = ?1", [b"d/a\\b.."])?);
    rig.hub.shared.db.write(rename).await.unwrap();
    let (status, _) = rig.batch("local/b", &[delete("d/a\\b..")]).await;
    assert_eq!(status, 200);
    assert!(rig.list("/api/buckets/local/b/tree?recursive=true").await.is_empty());
}

#[tokio::test]
async fn times_come_back_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let at = |key: &str, mtime: Value| json!({"type": "addFile", "path": key, "xetHash": EMPTY, "mtime": mtime});
    let lines = [
        at("millis", json!(1_770_399_477_042_i64)),
        at("1970", json!(1_770_399_477)),
        at("1972", json!(63_072_000_250_i64)),
        json!({"type": "addFile", "path": "with size", "xetHash": EMPTY, "mtime": 63_072_000, "size": 0}),
        at("none", json!(null)),
        at("before", json!(-1)),
        at("never", json!(1e300)),
    ];
    let (_, outcome) = rig.batch("local/b", &lines).await;
    assert_eq!(outcome["failed"].as_array().unwrap().len(), 1);
    let files = rig.get_json("/api/buckets/local/b/tree").await;
    let times: Vec<_> = files.as_array().unwrap().iter().map(|f| (f["path"].as_str().unwrap(), &f["mtime"])).collect();
    assert_eq!(
        times,
        [
            ("1970", &json!("1970-01-21T11:46:39.477Z")),
            ("1972", &json!("1972-01-01T00:00:00.250Z")),
            ("before", &json!("1969-12-31T23:59:59.999Z")),
            ("millis", &json!("2026-02-06T17:37:57.042Z")),
            ("none", &json!(null)),
            ("with size", &json!("1972-01-01T00:00:00.000Z")),
        ]
    );
}

#[tokio::test]
async fn updated_at_moves_with_every_change_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let mut seen = vec![rig.get_json("/api/buckets/local/b").await["updatedAt"].clone()];
    for round in 0..20 {
        rig.batch("local/b", &[if round % 2 == 0 { add("a", EMPTY) } else { delete("a") }]).await;
        let updated = rig.get_json("/api/buckets/local/b").await["updatedAt"].clone();
        assert!(!seen.contains(&updated));
        seen.push(updated);
    }
    rig.batch("local/b", &[delete("missing"), add("..", EMPTY)]).await;
    assert_eq!(rig.get_json("/api/buckets/local/b").await["updatedAt"], seen[20]);
}

#[tokio::test]
async fn copies_need_a_source_that_the_caller_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("eve").await.unwrap();
    let local = rig.hub.add_token("local", Role::Write).await.unwrap();
    let eve = rig.hub.add_token("eve", Role::Write).await.unwrap();
    rig.token = Some(local.secret.to_string());
    rig.post("/api/buckets/local/shut", json!({"private": true})).await;
    rig.bucket("local/open").await;
    rig.token = Some(eve.secret.to_string());
    rig.bucket("eve/mine").await;
    let copy = |kind: &str, id: &str| json!({"type": "copyFile", "path": id, "xetHash": EMPTY, "sourceRepoType": kind, "sourceRepoId": id});
    let refused = rig.batch("eve/mine", &[copy("bucket", "local/open")]).await;
    assert_eq!(
        (refused.0.as_u16(), &refused.1["failed"][0]["path"]),
        (422, &json!("local/open")),
        "it has no empty file"
    );
    rig.token = Some(local.secret.to_string());
    rig.touch("local/open", &["empty"]).await;
    rig.token = Some(eve.secret.to_string());
    let lines =
        [copy("bucket", "local/open"), copy("bucket", "local/shut"), copy("bucket", "x"), copy("model", "local/open")];
    let (_, outcome) = rig.batch("eve/mine", &lines).await;
    assert_eq!(outcome["succeeded"], json!(1), "{outcome}");
    assert_eq!(rig.list("/api/buckets/eve/mine/tree?recursive=true").await, ["local/open"]);
}

#[tokio::test]
async fn copy_names_content_that_a_file_of_the_source_has() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/from").await;
    rig.bucket("local/to").await;
    let hash = rig.upload("local/from", &noise(6, 90_000)).await;
    let copy = |hash: &str, source: &str| json!({"type": "copyFile", "path": "copy", "xetHash": hash, "sourceRepoType": "bucket", "sourceRepoId": source});
    assert_eq!(rig.batch("local/to", &[copy(&hash, "local/from")]).await.0, 422, "it was uploaded, but no file has it");
    rig.batch("local/from", &[add("x", &hash)]).await;
    let (status, outcome) = rig.batch("local/to", &[copy(&hash, "local/from"), copy(EMPTY, "local/from")]).await;
    assert_eq!((status.as_u16(), &outcome["succeeded"]), (200, &json!(1)));
    assert_eq!(outcome["failed"].as_array().unwrap().len(), 1);
    // Renames in both orders, within one request.
    assert_eq!(rig.batch("local/to", &[copy(&hash, "local/to"), delete("copy")]).await.0, 200);
    rig.batch("local/to", &[copy(&hash, "local/from")]).await;
    let mut renamed = copy(&hash, "local/to");
    renamed["path"] = json!("renamed");
    assert_eq!(rig.batch("local/to", &[delete("copy"), renamed.clone()]).await.1["success"], json!(true));
    assert_eq!(rig.list("/api/buckets/local/to/tree").await, ["renamed"]);
    rig.batch("local/to", &[delete("renamed")]).await;
    assert_eq!(rig.batch("local/to", &[renamed]).await.0, 422);
}

#[tokio::test]
async fn trees_list_one_level_or_all() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["logs", "logs/1", "logs/2/x", "logs_old/x", "logs#1", "z"]).await;
    for (path, listed) in [
        ("tree", vec!["logs", "logs#1", "logs/1", "logs/2/x", "logs_old/x", "z"]),
        ("tree/", vec!["logs", "logs#1", "logs/1", "logs/2/x", "logs_old/x", "z"]),
        ("tree/logs", vec!["logs", "logs/1", "logs/2/x"]),
        ("tree?recursive=false", vec!["logs", "logs#1", "logs", "logs_old", "z"]),
        ("tree?recursive=true", vec!["logs", "logs#1", "logs/1", "logs/2/x", "logs_old/x", "z"]),
        ("tree/logs?recursive=false", vec!["logs", "logs/1", "logs/2"]),
        ("tree/logs/?recursive=false", vec!["logs/1", "logs/2"]),
        ("tree/logs?recursive=true", vec!["logs", "logs/1", "logs/2/x"]),
        ("tree/logs%2F2", vec!["logs/2/x"]),
        ("tree/logs/2", vec!["logs/2/x"]),
        ("tree/logs%231", vec!["logs#1"]),
        ("tree/log", vec![]),
        ("tree/nothing/here", vec![]),
        ("tree//", vec![]),
        ("tree/%2Flogs", vec![]),
    ] {
        assert_eq!(rig.list(&format!("/api/buckets/local/b/{path}")).await, listed, "{path}");
    }
    let entries = rig.get_json("/api/buckets/local/b/tree/logs?recursive=false").await;
    assert_eq!(entries[0]["type"], json!("file"));
    assert_eq!((&entries[0]["size"], &entries[0]["xetHash"]), (&json!(0), &json!(EMPTY)));
    assert_eq!(entries[2]["type"], json!("directory"));
    assert!(entries[2]["uploadedAt"].as_str().unwrap().starts_with("20"));
    for bad in ["tree?recursive=maybe", "tree?limit=x", "tree?cursor=xyz", "tree/%ff"] {
        assert_eq!(rig.get(&format!("/api/buckets/local/b/{bad}")).await.status(), 400, "{bad}");
    }
}

#[tokio::test]
async fn raw_prefixes_match_siblings_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(&dir, ServeOptions { raw_prefix: true, ..ServeOptions::default() }).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["logs", "logs/1", "logs/2/x", "logs_old/x", "logs#1", "z"]).await;
    for (path, listed) in [
        ("tree/logs?recursive=false", vec!["logs", "logs#1", "logs/1", "logs/2", "logs_old"]),
        ("tree/logs/?recursive=false", vec!["logs/1", "logs/2"]),
        ("tree/log?recursive=true", vec!["logs", "logs#1", "logs/1", "logs/2/x", "logs_old/x"]),
    ] {
        assert_eq!(rig.list(&format!("/api/buckets/local/b/{path}")).await, listed, "{path}");
    }
}

#[tokio::test]
async fn a_directory_shows_the_newest_upload_inside() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["d/e/old"]).await;
    rig.touch("local/b", &["d/e/f/new", "d0"]).await;
    let newest = rig.get_json("/api/buckets/local/b").await["updatedAt"].clone();
    rig.touch("local/b", &["unrelated"]).await;
    assert_eq!(rig.get_json("/api/buckets/local/b/tree?recursive=false").await[0]["uploadedAt"], newest);
    assert_eq!(rig.get_json("/api/buckets/local/b/tree/d?recursive=false").await[0]["uploadedAt"], newest);
    rig.batch("local/b", &[delete("d/e/f/new")]).await;
    assert_ne!(rig.get_json("/api/buckets/local/b/tree?recursive=false").await[0]["uploadedAt"], newest);
}

#[tokio::test]
async fn paging_is_stable_while_the_bucket_changes() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(&dir, ServeOptions { page_size: Some(3), ..ServeOptions::default() }).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["a", "b,1/x", "b,1/y", "c", "d", "e", "f", "g/x"]).await;
    let first = rig.get("/api/buckets/local/b/tree?limit=5000&recursive=false&x=%2C").await;
    let next = next_page(&first).unwrap();
    assert!(
        next.starts_with(&format!("{}/api/buckets/local/b/tree?limit=5000&recursive=false&x=%2C&cursor=", rig.base())),
        "{next}"
    );
    assert_eq!(first.json::<Vec<Value>>().await.unwrap().len(), 3);
    // What the cursor points at goes, and something comes before and behind it.
    rig.batch("local/b", &[delete("d"), delete("c"), add("a0", EMPTY), add("e0", EMPTY)]).await;
    assert_eq!(rig.list(next.strip_prefix(&rig.base()).unwrap()).await, ["e", "e0", "f", "g"]);
    // A comma in the path must not split the Link header.
    rig.touch("local/b", &["b,1/1", "b,1/2"]).await;
    assert_eq!(rig.list("/api/buckets/local/b/tree/b,1").await, ["b,1/1", "b,1/2", "b,1/x", "b,1/y"]);
    assert_eq!(rig.list("/api/buckets/local/b/tree?limit=1&recursive=true").await.len(), 10);
    assert_eq!(rig.list("/api/buckets/local/b/tree?limit=0&recursive=false").await.len(), 7);
}

#[tokio::test]
async fn links_name_the_host_that_the_client_used() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(&dir, ServeOptions { page_size: Some(1), ..ServeOptions::default() }).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["a", "b"]).await;
    let answer =
        rig.raw("GET /api/buckets/local/b/tree HTTP/1.1\r\nHost: localhost:99\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("<http://localhost:99/api/buckets/local/b/tree?cursor=62>"), "{answer}");
    let nameless = rig.raw("GET /api/buckets/local/b/tree HTTP/1.0\r\n\r\n").await;
    assert!(nameless.contains(&format!("<{}/api/", rig.base())), "{nameless}");

    let options = ServeOptions { public_base: Some("https://hub.example/".into()), ..ServeOptions::default() };
    let public = Rig::open(&dir, options).await;
    let token = public.get("/api/buckets/local/b/xet-read-token").await;
    assert_eq!(header(&token, "x-xet-cas-url"), "https://hub.example/cas");
}

/// As a page of another site would have a browser do.
#[tokio::test]
async fn foreign_names_and_pages_of_other_sites_are_refused_on_every_route() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    for path in ["/api/whoami-v2", "/api/buckets/local/b", "/cas/health", "/none"] {
        let rebound = rig.request(Method::GET, path).header("host", "evil.example").send().await.unwrap();
        assert_eq!(error(rebound).await.0, 421, "{path}");
        let foreign = rig.request(Method::GET, path).header("origin", "https://evil.example").send().await.unwrap();
        assert_eq!(error(foreign).await.0, 403, "{path}");
    }
    assert_eq!(rig.get("/api/buckets/local/b").await.status(), 200);
}

#[tokio::test]
async fn paths_info_gives_the_files_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["d/x", "y"]).await;
    let ask = |paths: Value| rig.post("/api/buckets/local/b/paths-info", json!({"paths": paths}));
    let found: Vec<Value> = ask(json!(["y", "", "d", "missing", "d/x"])).await.json().await.unwrap();
    let found: Vec<_> = found.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(found, ["y", "d/x"]);
    assert_eq!(ask(json!(vec!["x"; 2001])).await.status(), 400);
    assert_eq!(ask(json!("x")).await.status(), 400);

    let form = |body: String| {
        let request = rig.request(Method::POST, "/api/buckets/local/b/paths-info");
        request.header("content-type", "application/x-www-form-urlencoded; charset=utf-8").body(body).send()
    };
    let found: Vec<Value> =
        form("paths=y&paths=&paths=d&paths=d%2Fx&expand=True".into()).await.unwrap().json().await.unwrap();
    let found: Vec<_> = found.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(found, ["y", "d/x"]);
    for bad in [String::new(), "path=y".into(), r#"{"paths":["y"]}"#.into(), "paths=x&".repeat(2001)] {
        assert_eq!(form(bad).await.unwrap().status(), 400);
    }
}

#[tokio::test]
async fn cas_tokens_are_told_in_body_and_headers() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    for (route, scope) in
        [("xet-read-token", crate::xet::Scope::Read), ("xet-write-token/main", crate::xet::Scope::Write)]
    {
        let response = rig.get(&format!("/api/buckets/local/b/{route}")).await;
        let headers = ["x-xet-cas-url", "x-xet-access-token", "x-xet-token-expiration"].map(|h| header(&response, h));
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["casUrl"], json!(format!("{}/cas", rig.base())));
        assert_eq!(headers[0], body["casUrl"].as_str().unwrap());
        assert_eq!(headers[1], body["accessToken"].as_str().unwrap());
        assert_eq!(headers[2], body["exp"].to_string());
        let grant = rig.hub.shared.auth.check_cas_token(&headers[1], scope, auth::now_seconds()).unwrap();
        assert_eq!(json!(grant.expires), body["exp"]);
        assert!(grant.expires > auth::now_seconds() + 300);
        // A CAS token is no access token.
        let cross = rig.http.get(rig.base() + "/api/whoami-v2").bearer_auth(&headers[1]).send().await.unwrap();
        assert_eq!(cross.status(), 401);
    }
}

#[tokio::test]
async fn resolve_tells_all_about_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["d/ä b"]).await;
    let head = rig.request(Method::HEAD, "/buckets/local/b/resolve/d%2F%C3%A4%20b").send().await.unwrap();
    assert_eq!(head.status(), 200);
    let auth_route = format!("{}/api/buckets/local/b/xet-read-token", rig.base());
    for (name, value) in [
        ("x-xet-hash", EMPTY.to_owned()),
        ("x-xet-refresh-route", auth_route.clone()),
        ("x-linked-size", "0".into()),
        ("content-length", "0".into()),
        ("etag", format!("\"{EMPTY}\"")),
        ("x-linked-etag", format!("\"{EMPTY}\"")),
        ("accept-ranges", "bytes".into()),
        ("content-type", "application/octet-stream".into()),
        ("content-disposition", "attachment; filename*=UTF-8''%C3%A4%20b".into()),
    ] {
        assert_eq!(header(&head, name), value, "{name}");
    }
    let link = format!(
        "<{auth_route}>; rel=\"xet-auth\", <{}/cas/v1/reconstructions/{EMPTY}>; rel=\"xet-reconstruction-info\"",
        rig.base()
    );
    assert_eq!(header(&head, "link"), link);
    assert!(header(&head, "last-modified").ends_with(" GMT"));
    let path = "/buckets/local/b/resolve/d/%C3%A4%20b";
    assert_eq!(rig.get(path).await.bytes().await.unwrap().len(), 0);
    let matching = rig.request(Method::GET, path).header("if-none-match", format!("\"x\", W/\"{EMPTY}\""));
    assert_eq!(matching.send().await.unwrap().status(), 304);
    let ranged = rig.request(Method::GET, path).header("range", "bytes=0-").send().await.unwrap();
    assert_eq!((ranged.status().as_u16(), header(&ranged, "content-range").as_str()), (416, "bytes */0"));
    for range in [None, Some("bytes=0-0"), Some("bytes=7-")] {
        let mut request = rig.request(Method::GET, path).header("accept", "application/vnd.xet-fileinfo+json, */*");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let info = request.send().await.unwrap();
        assert_eq!((info.status().as_u16(), header(&info, "x-linked-size").as_str()), (200, "0"), "{range:?}");
        assert_eq!(info.json::<Value>().await.unwrap(), json!({"hash": EMPTY, "size": 0}));
    }
    for missing in ["d", "d/", "", "d//%C3%A4%20b", "d%2F.%2F%C3%A4%20b"] {
        let (status, code, _) = error(rig.get(&format!("/buckets/local/b/resolve/{missing}")).await).await;
        assert_eq!((status, code.as_deref()), (404, Some("EntryNotFound")), "{missing}");
    }
    let (_, code, _) = error(rig.get("/buckets/local/none/resolve/x").await).await;
    assert_eq!(code.as_deref(), Some("RepoNotFound"));
}

#[tokio::test]
async fn uploaded_content_comes_back_whole_and_in_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let content = noise(1, 700_001);
    let hash = rig.upload("local/b", &content).await;
    let line =
        json!({"type": "addFile", "path": "d/x", "xetHash": hash, "mtime": 1, "contentType": "text/x", "size": 5});
    let (status, outcome) = rig.batch("local/b", &[line, add("same", &hash)]).await;
    assert_eq!((status.as_u16(), &outcome["success"]), (200, &json!(true)), "{outcome}");
    let info = rig.get_json("/api/buckets/local/b").await;
    assert_eq!((&info["size"], &info["totalFiles"]), (&json!(1_400_002), &json!(2)));
    let entry = &rig.get_json("/api/buckets/local/b/tree/d").await[0];
    assert_eq!(
        (&entry["size"], &entry["xetHash"], &entry["contentType"]),
        (&json!(700_001), &json!(hash), &json!("text/x"))
    );

    let path = "/buckets/local/b/resolve/d/x";
    let head = rig.request(Method::HEAD, path).send().await.unwrap();
    for (name, value) in
        [("content-length", "700001"), ("x-linked-size", "700001"), ("x-xet-hash", &hash), ("content-type", "text/x")]
    {
        assert_eq!(header(&head, name), value, "{name}");
    }
    let whole = rig.get(path).await;
    assert_eq!((whole.status().as_u16(), header(&whole, "content-length").as_str()), (200, "700001"));
    assert_eq!(whole.bytes().await.unwrap(), content);
    let etag = format!("\"{hash}\"");
    let ranges = [
        ("bytes=0-0", None, Some(0..1)),
        ("bytes=100000-299999", Some(etag.as_str()), Some(100_000..300_000)),
        ("bytes=700000-", None, Some(700_000..700_001)),
        ("bytes=5-99999999", None, Some(5..700_001)),
        ("bytes=-10", None, Some(699_991..700_001)),
        ("bytes=-99999999", None, Some(0..700_001)),
        ("bytes=0-4", Some("\"other\""), None),
        ("bytes=0-1,5-6", None, None),
        ("nonsense", None, None),
    ];
    for (range, if_range, bytes) in ranges {
        let mut request = rig.request(Method::GET, path).header("range", range);
        if let Some(tag) = if_range {
            request = request.header("if-range", tag);
        }
        let response = request.send().await.unwrap();
        match bytes {
            Some(bytes) => {
                let shown = format!("bytes {}-{}/700001", bytes.start, bytes.end - 1);
                assert_eq!((response.status().as_u16(), header(&response, "content-range")), (206, shown), "{range}");
                assert_eq!(response.bytes().await.unwrap(), content[bytes], "{range}");
            }
            None => {
                assert_eq!(response.status(), 200, "{range}");
                assert_eq!(response.bytes().await.unwrap().len(), content.len());
            }
        }
    }
    for range in ["bytes=700001-", "bytes=-0"] {
        let response = rig.request(Method::GET, path).header("range", range).send().await.unwrap();
        assert_eq!((response.status().as_u16(), header(&response, "content-range").as_str()), (416, "bytes */700001"));
    }

    let asked = |accept: &'static str, range: &'static str| {
        rig.request(Method::GET, path).header("accept", accept).header("range", range).send()
    };
    for accept in ["application/vnd.xet-fileinfo+json", "Application/vnd.XET-fileinfo+json;q=1, */*"] {
        let info = asked(accept, "bytes=0-0").await.unwrap();
        assert_eq!(info.status(), 200, "{accept}");
        for name in
            ["x-xet-hash", "x-xet-refresh-route", "x-linked-size", "x-linked-etag", "etag", "link", "last-modified"]
        {
            assert_eq!(header(&info, name), header(&head, name), "{name}");
        }
        assert_eq!(header(&info, "content-type"), "application/vnd.xet-fileinfo+json");
        assert_eq!(info.json::<Value>().await.unwrap(), json!({"hash": hash, "size": 700_001}));
    }
    for accept in ["*/*", "*/*, application/vnd.xet-fileinfo+json", "application/json"] {
        assert_eq!(asked(accept, "bytes=0-0").await.unwrap().bytes().await.unwrap(), content[..1], "{accept}");
    }

    let (_, outcome) = rig.batch("local/b", &[add("same", EMPTY), delete("d/x")]).await;
    assert_eq!(outcome["success"], json!(true));
    let info = rig.get_json("/api/buckets/local/b").await;
    assert_eq!((&info["size"], &info["totalFiles"]), (&json!(0), &json!(1)));
    // What the bucket held once, it may hold again.
    let (status, _) = rig.batch("local/b", &[add("back", &hash)]).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn another_process_serves_what_this_one_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Rig::new(&dir).await, Rig::new(&dir).await);
    one.bucket("local/b").await;
    let content = noise(2, 200_000);
    let hash = one.upload("local/b", &content).await;
    assert_eq!(two.batch("local/b", &[add("x", &hash)]).await.0, 200);
    assert_eq!(one.get("/buckets/local/b/resolve/x").await.bytes().await.unwrap(), content);
    assert_eq!(two.get("/buckets/local/b/resolve/x").await.bytes().await.unwrap(), content);
}

/// A hash alone, learnt somewhere, opens nothing: not by an add, and not by a copy from where one may not read.
#[tokio::test]
async fn content_of_a_private_bucket_cannot_be_had_by_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("eve").await.unwrap();
    let local = rig.hub.add_token("local", Role::Write).await.unwrap();
    let eve = rig.hub.add_token("eve", Role::Write).await.unwrap();
    rig.token = Some(local.secret.to_string());
    rig.post("/api/buckets/local/shut", json!({"private": true})).await;
    rig.bucket("local/open").await;
    let (secret, public) = (noise(3, 90_000), noise(4, 90_000));
    let secret_hash = rig.upload("local/shut", &secret).await;
    let public_hash = rig.upload("local/open", &public).await;
    rig.batch("local/shut", &[add("x", &secret_hash)]).await;
    rig.batch("local/open", &[add("x", &public_hash)]).await;

    rig.token = Some(eve.secret.to_string());
    rig.bucket("eve/mine").await;
    let copy = |hash: &str, id: &str| json!({"type": "copyFile", "path": "y", "xetHash": hash, "sourceRepoType": "bucket", "sourceRepoId": id});
    for line in [
        add("y", &secret_hash),
        copy(&secret_hash, "local/shut"),
        copy(&secret_hash, "local/open"),
        copy(&secret_hash, "eve/mine"),
    ] {
        assert_eq!(rig.batch("eve/mine", std::slice::from_ref(&line)).await.0, 422, "{line}");
    }
    assert_eq!(rig.batch("eve/mine", &[copy(&public_hash, "local/open")]).await.0, 200);
    assert_eq!(rig.get("/buckets/eve/mine/resolve/y").await.bytes().await.unwrap(), public);
    // The directory's own process may do all that.
    assert_eq!(rig.for_the_process().await.batch("eve/mine", &[add("z", &secret_hash)]).await.0, 200);
}

#[tokio::test]
async fn neither_kind_of_token_is_taken_for_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let hash = rig.upload("local/b", &noise(5, 90_000)).await;
    let token = rig.get_json("/api/buckets/local/b/xet-read-token").await["accessToken"].as_str().unwrap().to_owned();
    let url = format!("{}/cas/v1/reconstructions/{hash}", rig.base());
    for (bearer, due) in [(token.as_str(), 200), ("hf_local", 401), (PROCESS, 401)] {
        assert_eq!(rig.http.get(&url).bearer_auth(bearer).send().await.unwrap().status(), due);
    }
    assert_eq!(rig.http.get(&url).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_refusal_is_seen_though_the_body_is_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.token = Some("hf_wrong".into());
    for path in ["/api/buckets/local/b/batch", "/api/buckets/local/none/batch", "/api/nothing"] {
        let request = rig.request(Method::POST, path).body(vec![b'\n'; 15 << 20]);
        assert_eq!(request.send().await.unwrap().status(), 401, "{path}");
    }
}

#[tokio::test]
async fn what_is_no_route_is_json_404() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    for path in [
        "/",
        "/api",
        "/api/",
        "/api/nothing",
        "/api/agent-harnesses",
        "/api/buckets/local/b/batch/x",
        "/buckets/local/b",
        "/api/buckets",
    ] {
        assert_eq!(error(rig.get(path).await).await.0, 404, "{path}");
    }
    for path in
        ["/api/models/local/b", "/api/datasets/x/y/tree/main", "/gpt2/resolve/main/x", "/api/buckets/local/none"]
    {
        assert_eq!(error(rig.get(path).await).await.1.as_deref(), Some("RepoNotFound"), "{path}");
    }
    for (method, path) in [
        ("POST", "/api/whoami-v2"),
        ("GET", "/api/repos/move"),
        ("GET", "/api/buckets/local/b/batch"),
        ("DELETE", "/api/buckets/local/b/tree"),
        ("PATCH", "/api/buckets/local/b"),
        ("PUT", "/buckets/local/b/resolve/x"),
    ] {
        let response = rig.request(method.parse().unwrap(), path).send().await.unwrap();
        assert_eq!(error(response).await.0, 405, "{method} {path}");
    }
}

/// Every route with one path segment too few and too many, with every method.
#[tokio::test]
async fn routes_refuse_other_methods_and_other_numbers_of_segments() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let get = Ok("GET, HEAD");
    let (no_route, no_repo) = (Err(None), Err(Some("RepoNotFound")));
    // The methods that a path takes, or the code of the 404 that all others get.
    let paths = [
        ("/api/buckets", no_route),
        ("/api/buckets/", no_route),
        ("/api/buckets//b", no_route),
        ("/api/buckets//b/tree", no_route),
        ("/api/buckets/local//tree", no_route),
        ("/api/buckets/local/b", Ok("GET, HEAD, POST, DELETE")),
        ("/api/buckets/local/b/x", no_route),
        ("/api/buckets/local/b/tree", get),
        ("/api/buckets/local/b/tree/a/b", get),
        ("/api/buckets/local/b/paths-info", Ok("POST")),
        ("/api/buckets/local/b/paths-info/x", no_route),
        ("/api/buckets/local/b/batch", Ok("POST")),
        ("/api/buckets/local/b/batch/x", no_route),
        ("/api/buckets/local/b/settings", Ok("PUT")),
        ("/api/buckets/local/b/settings/x", no_route),
        ("/api/buckets/local/b/resource-group", Ok("GET, HEAD, POST")),
        ("/api/buckets/local/b/resource-group/x", no_route),
        ("/api/buckets/local/b/events", get),
        ("/api/buckets/local/b/events/x", no_route),
        ("/api/buckets/local/b/xet-read-token", get),
        ("/api/buckets/local/b/xet-read-token/main", get),
        ("/api/buckets/local/b/xet-read-token/a/b", no_route),
        ("/api/buckets/local/b/xet-write-token", get),
        ("/api/buckets/local/b/xet-write-token/a/b", no_route),
        ("/buckets/local/b/resolve/x", get),
        ("/buckets/local/b/resolve", no_route),
        ("/buckets/local/resolve/x", no_repo),
        ("/buckets/local/b/x/resolve/x", no_repo),
        ("/buckets//b/resolve/x", no_repo),
        ("/buckets/local/b", no_route),
        ("/buckets/local", no_route),
        ("/api/repos/move", Ok("POST")),
        ("/api/repos/move/x", no_route),
        ("/api/repos", no_route),
        ("/api/whoami-v2", get),
        ("/api/whoami-v2/x", no_route),
    ];
    // A list of buckets, and no bucket.
    let namespaces = [("/api/buckets/local", 200), ("/api/buckets/local/", 200), ("/api/buckets/unknown", 404)];
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let answer = async |path: &str| {
            let response = rig.request(method.parse().unwrap(), path).send().await.unwrap();
            let text = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), text("x-error-code"), text("allow"))
        };
        for (path, due) in paths {
            let (status, code, allow) = answer(path).await;
            match due {
                Ok(methods) if methods.split(", ").any(|allowed| allowed == method) => {
                    assert_ne!(status, 405, "{method} {path}");
                    assert_eq!(allow, None, "{method} {path}");
                }
                Ok(methods) => {
                    assert_eq!((status, code, allow.as_deref()), (405, None, Some(methods)), "{method} {path}")
                }
                Err(expected) => assert_eq!((status, code.as_deref()), (404, expected), "{method} {path}"),
            }
        }
        for (path, listed) in namespaces {
            let due = if matches!(method, "GET" | "HEAD") { listed } else { 404 };
            let (status, code, _) = answer(path).await;
            assert_eq!((status, code.as_deref()), (due, (due == 404).then_some("RepoNotFound")), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn hostile_request_lines_are_answered_and_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    for target in [
        "//api/buckets/local/b",
        "/api//buckets/local/b",
        "/api/buckets//b",
        "/api/buckets/../../../etc/passwd",
        "/api/buckets/local/../b",
        "/buckets/local/b/resolve/../../../../etc/passwd",
        "/buckets/local/b/resolve/%2e%2e/%2e%2e/hub.sqlite",
        "/buckets/local/b/resolve/%00",
        "/cas/../hub.sqlite",
        "/cas/%2e%2e/hub.sqlite",
    ] {
        let answer = rig.raw_get(target).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{target}: {answer}");
    }
    for target in ["/buckets/local/b/resolve/%ff", "/api/buckets/%c0%ae/x"] {
        assert!(rig.raw_get(target).await.starts_with("HTTP/1.1 400"), "{target}");
    }
    let long = format!("/buckets/local/b/resolve/{}", "a".repeat(200_000));
    assert!(rig.raw_get(&long).await.starts_with("HTTP/1.1 4"));
    rig.raw("\x16\x03\x01\0\0garbage\r\n\r\n").await;
    let lying = "POST /api/buckets/local/b/batch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer hf_local\r\nContent-Length: 99999999999\r\n\r\n";
    assert!(rig.raw(&format!("{lying}{}", "x".repeat(10))).await.starts_with("HTTP/1.1 413"));
    assert_eq!(rig.get("/api/buckets/local/b").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_openers_of_one_directory_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Rig::new(&dir).await, Rig::new(&dir).await);
    one.bucket("local/b").await;
    let writer = |rig: &Rig, name: &'static str| {
        let (http, url) = (rig.http.clone(), rig.base() + "/api/buckets/local/b/batch");
        tokio::spawn(async move {
            for round in 0..25 {
                let lines = [add(&format!("{name}/{round}"), EMPTY), add("same", EMPTY)].map(|line| line.to_string());
                let sent = http.post(&url).bearer_auth("hf_local").body(lines.join("\n")).send().await.unwrap();
                assert_eq!(sent.status(), 200);
            }
        })
    };
    let writers = [writer(&one, "a"), writer(&two, "b"), writer(&one, "c"), writer(&two, "d")];
    for task in writers {
        task.await.unwrap();
    }
    for rig in [&one, &two] {
        assert_eq!(rig.get_json("/api/buckets/local/b").await["totalFiles"], json!(101));
        assert_eq!(rig.list("/api/buckets/local/b/tree?recursive=true").await.len(), 101);
    }
    // Users, and both kinds of tokens, are common property.
    one.hub.add_user("ann").await.unwrap();
    let token = one.hub.add_token("ann", Role::Write).await.unwrap();
    let asked = two.http.get(two.base() + "/api/whoami-v2").bearer_auth(token.secret.as_str()).send().await.unwrap();
    assert_eq!(asked.json::<Value>().await.unwrap()["name"], json!("ann"));
    let grant = auth::CasGrant { bucket: 1, scope: crate::xet::Scope::Read, expires: u64::MAX };
    let cas_token = one.hub.shared.auth.cas_token(grant).unwrap();
    assert_eq!(two.hub.shared.auth.check_cas_token(&cas_token, grant.scope, 0), Ok(grant));
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    rig.touch("local/b", &["x/y"]).await;
    rig.hub.add_user("ann").await.unwrap();
    let token = rig.hub.add_token("ann", Role::Read).await.unwrap();
    let Rig { server, hub, .. } = rig;
    server.stop().await;
    drop(hub);

    let mut rig = Rig::new(&dir).await;
    rig.token = Some(token.secret.to_string());
    assert_eq!(rig.list("/api/buckets/local/b/tree?recursive=true").await, ["x/y"]);
    assert_eq!(rig.get_json("/api/whoami-v2").await["auth"]["accessToken"]["role"], json!("read"));
    // The well-known token is good until it is revoked, and stays so after that.
    rig.token = Some("hf_local".into());
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 200);
    let known = rig.hub.list_tokens().await.unwrap().into_iter().find(|token| token.user == "local").unwrap();
    rig.hub.revoke_token(known.id).await.unwrap();
    LocalHub::open(dir.path()).unwrap();
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 401);
}

#[tokio::test]
async fn users_and_tokens_are_managed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    let hub = rig.hub.clone();
    hub.add_user("ann").await.unwrap();
    for bad in ["ann", "", "me", "a/b", "..", "a b"] {
        assert!(hub.add_user(bad).await.is_err(), "{bad}");
    }
    assert_eq!(hub.list_users().await.unwrap(), ["ann", "local"]);
    assert!(hub.add_token("nobody", Role::Read).await.is_err());
    assert!(hub.takes_default_token().await.unwrap());
    let token = hub.add_token("ann", Role::Write).await.unwrap();
    assert!(hub.takes_default_token().await.unwrap(), "only a revocation ends it");
    let listed = hub.list_tokens().await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[1].id, listed[1].user.as_str(), listed[1].role), (token.id, "ann", Role::Write));
    assert!(token.secret.starts_with("hf_") && token.secret.ends_with(&listed[1].hint));
    hub.revoke_token(listed[0].id).await.unwrap();
    assert!(!hub.takes_default_token().await.unwrap());

    rig.token = Some(token.secret.to_string());
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 200);
    hub.revoke_token(token.id).await.unwrap();
    assert!(hub.revoke_token(token.id).await.is_err());
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 401);

    let token = hub.add_token("ann", Role::Write).await.unwrap();
    rig.token = Some(token.secret.to_string());
    hub.remove_user("ann").await.unwrap();
    assert!(hub.remove_user("ann").await.is_err());
    assert_eq!(rig.get("/api/whoami-v2").await.status(), 401);
}

#[tokio::test]
async fn no_token_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let token = rig.hub.add_token("local", Role::Write).await.unwrap();
    rig.for_the_process().await.get_json("/api/whoami-v2").await;
    for entry in std::fs::read_dir(dir.path()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).unwrap();
        for secret in [token.secret.as_bytes(), PROCESS.as_bytes()] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{:?}", entry.path());
        }
    }
}

async fn faulty(dir: &TempDir) -> (Rig, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let rig = Rig::open(dir, ServeOptions { faults: Some(Arc::clone(&faults)), ..ServeOptions::default() }).await;
    rig.bucket("local/b").await;
    (rig, faults)
}

#[tokio::test]
async fn injected_statuses_are_answered_and_used_up() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, faults) = faulty(&dir).await;
    let limited = Fault::Status { status: 429, retry_after: Some(7), rate_limit: Some(9) };
    faults.add(Rule { skip: 1, count: 1, ..Rule::once("/api/*/tree", limited) });
    faults.add(Rule::once("/api/buckets/local/b", Fault::Garbage { status: 200, body: "<html>" }));
    let path = "/api/buckets/local/b/tree";
    assert_eq!(rig.get(path).await.status(), 200);
    let response = rig.get(path).await;
    assert_eq!(response.status(), 429);
    assert_eq!(header(&response, "retry-after"), "7");
    assert_eq!(header(&response, "ratelimit"), "\"api\";r=0;t=9");
    assert_eq!(rig.get(path).await.status(), 200);
    assert_eq!(rig.get("/api/buckets/local/b").await.text().await.unwrap(), "<html>");
    assert_eq!(rig.get("/api/buckets/local/b").await.status(), 200);
}

#[tokio::test]
async fn cut_connections_look_cut_and_a_lost_answer_was_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, faults) = faulty(&dir).await;
    let only = |method: Method, fault| Rule { method: Some(method), ..Rule::once("*", fault) };
    faults.add(only(Method::GET, Fault::Refuse));
    assert!(rig.request(Method::GET, "/api/buckets/local/b").send().await.is_err());
    faults.add(only(Method::POST, Fault::LoseAnswer));
    let body = add("x", EMPTY).to_string();
    assert!(rig.request(Method::POST, "/api/buckets/local/b/batch").body(body).send().await.is_err());
    assert_eq!(rig.list("/api/buckets/local/b/tree").await, ["x"]);

    let whole = rig.get("/api/buckets/local/b/tree").await.bytes().await.unwrap();
    faults.add(only(Method::GET, Fault::CutBody { after: 10 }));
    match rig.request(Method::GET, "/api/buckets/local/b/tree").send().await {
        Ok(response) => assert!(response.bytes().await.is_err()),
        Err(error) => assert!(!error.is_connect()),
    }
    faults.add(only(Method::GET, Fault::CorruptByte { at: 3 }));
    let spoilt = rig.get("/api/buckets/local/b/tree").await.bytes().await.unwrap();
    let differing: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != spoilt[at]).collect();
    assert_eq!((spoilt.len(), differing), (whole.len(), vec![3]));
}

#[tokio::test]
async fn an_expired_token_is_announced_as_good() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, faults) = faulty(&dir).await;
    faults.add(Rule::once("*/xet-read-token", Fault::ExpiredToken));
    let body: Value = rig.get_json("/api/buckets/local/b/xet-read-token").await;
    assert!(body["exp"].as_u64().unwrap() > auth::now_seconds());
    let token = body["accessToken"].as_str().unwrap();
    let checked = rig.hub.shared.auth.check_cas_token(token, crate::xet::Scope::Read, auth::now_seconds());
    assert_eq!(checked, Err(auth::TokenRefused::Expired));
}

#[tokio::test]
async fn the_recorder_sees_every_request_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, faults) = faulty(&dir).await;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    faults.record(move |request| sink.lock().unwrap().push(request.clone()));
    rig.touch("local/b", &["canary"]).await;
    rig.get("/cas/v1/nothing?x=canary2").await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[0].method.as_str(), seen[0].url.as_str()), ("POST", "/api/buckets/local/b/batch"));
    assert_eq!(seen[0].headers["authorization"], "Bearer hf_local");
    assert_eq!(seen[0].body, add("canary", EMPTY).to_string());
    assert_eq!(seen[1].url, "/cas/v1/nothing?x=canary2");
}

#[tokio::test]
async fn stopping_lets_a_request_finish_and_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, faults) = faulty(&dir).await;
    faults.add(Rule::once("/api/whoami-v2", Fault::Delay(Duration::from_millis(200))));
    let arrived = Arc::new(tokio::sync::Notify::new());
    let signal = Arc::clone(&arrived);
    faults.record(move |_| signal.notify_one());
    let (request, address) = (rig.request(Method::GET, "/api/whoami-v2"), rig.server.address());
    let answer = tokio::spawn(request.send());
    arrived.notified().await;
    rig.server.stop().await;
    assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    assert!(TcpStream::connect(address).await.is_err());
}

/// Names the directory that a child process is to serve.
const CHILD_DIR: &str = "HFCRYPT_TEST_HUB_DIR";

#[tokio::test]
#[ignore = "runs as a child process of killing_the_servers_loses_nothing_acknowledged"]
async fn child_that_serves_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let hub = LocalHub::open(Path::new(&dir)).unwrap();
    let server = hub.serve(([127, 0, 0, 1], 0).into(), ServeOptions::default()).await.unwrap();
    println!("serving {}.", server.address());
    std::future::pending::<()>().await;
}

/// A server in a process of its own. Killed when dropped.
struct Child {
    process: std::process::Child,
    base: String,
}

impl Child {
    fn start(dir: &Path) -> Self {
        use std::io::BufRead;
        let name = "hub::local::tests::child_that_serves_until_it_is_killed";
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .map(Result::unwrap)
            .find_map(|line| Some(line.split_once("serving ")?.1.strip_suffix('.')?.to_owned()));
        Self { process, base: format!("http://{}", address.unwrap()) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_servers_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let children = [Child::start(dir.path()), Child::start(dir.path())];
    let writers: Vec<_> = (0..4)
        .map(|writer: usize| {
            let url = format!("{}/api/buckets/local/b/batch", children[writer % 2].base);
            let http = rig.http.clone();
            let (acknowledged, watch) = tokio::sync::watch::channel(0);
            let task = tokio::spawn(async move {
                // Until the server dies: then the last one is in doubt, and all before it must be there.
                for number in 0.. {
                    let line = add(&format!("{writer}/{number}"), EMPTY).to_string();
                    match http.post(&url).bearer_auth("hf_local").body(line).send().await {
                        Ok(response) if response.status() == 200 => acknowledged.send_replace(number + 1),
                        _ => break,
                    };
                }
            });
            (task, watch)
        })
        .collect();
    for (kill, child) in children.into_iter().enumerate() {
        for (_, watch) in writers.iter().skip(kill).step_by(2) {
            watch.clone().wait_for(|&count| count >= 20 * (kill + 1)).await.unwrap();
        }
        drop(child);
    }
    let listed: BTreeSet<String> = rig.list("/api/buckets/local/b/tree?recursive=true").await.into_iter().collect();
    for (writer, (task, watch)) in writers.into_iter().enumerate() {
        task.await.unwrap();
        let count = *watch.borrow();
        assert!((0..count).all(|number| listed.contains(&format!("{writer}/{number}"))), "{writer} {count}");
    }
    let total = rig.get_json("/api/buckets/local/b").await["totalFiles"].as_u64().unwrap();
    assert_eq!(total, listed.len() as u64);
}
