//! The client on the embedded Hub, over real connections.

use super::*;
use crate::hub::client::bucket_tokens;
use crate::hub::conformance;
use crate::hub::local::faults::{Fault, Faults, Rule};
use crate::hub::local::{LocalHub, ServeOptions, Server};
use crate::xet::Scope;
use http::Method;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

async fn open(dir: &Path) -> Endpoint {
    Endpoint::open(&format!("file://{}", dir.display()), TokenProvider::anonymous()).await.unwrap()
}

async fn serve(dir: &Path, options: ServeOptions) -> (Server, Client) {
    let options = ServeOptions { process_token: Some(TOKEN.to_owned()), ..options };
    let server = LocalHub::open(dir).unwrap().serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await.unwrap();
    let client = client_with(&format!("http://{}", server.address()), policy());
    (server, client)
}

async fn serve_with_bucket(dir: &Path) -> (Server, Client, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let (server, client) = serve(dir, ServeOptions { faults: Some(faults.clone()), ..ServeOptions::default() }).await;
    client.create_bucket(&id(), true, false).await.unwrap();
    (server, client, faults)
}

fn rule(method: Method, path: &str, count: u64, fault: Fault) -> Rule {
    Rule { method: Some(method), path: path.to_owned(), skip: 0, count, fault }
}

async fn keys(client: &Client) -> Vec<String> {
    client.tree(&id(), "", true).await.unwrap().iter().map(|entry| entry.key().to_owned()).collect()
}

#[tokio::test]
async fn a_file_endpoint_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = open(dir.path()).await;
    conformance::all(&*endpoint.client()).await;
    endpoint.close().await;
}

#[tokio::test]
async fn small_pages_and_raw_prefixes_conform() {
    let dir = tempfile::tempdir().unwrap();
    let options = ServeOptions { page_size: Some(7), raw_prefix: true, ..ServeOptions::default() };
    let (server, client) = serve(dir.path(), options).await;
    conformance::all(&client).await;
    server.stop().await;
}

#[tokio::test]
async fn a_missing_directory_is_made_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b/hub");
    open(&path).await.close().await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn one_directory_has_one_identity_and_shows_the_same_in_each_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("hub"), &link).unwrap();
    let one = open(&dir.path().join("hub")).await;
    let two = open(&link).await;
    assert_eq!(one.identity(), two.identity());
    assert!(one.identity().ends_with("/hub") && one.identity().starts_with("file:///"), "{}", one.identity());
    one.client().create_bucket(&id(), true, false).await.unwrap();
    let error = two.client().create_bucket(&id(), true, false).await.unwrap_err();
    assert!(matches!(error, Error::Conflict(_)));
    two.client().batch(&id(), &[add("a")]).await.unwrap();
    assert_eq!(keys(&one.client()).await, ["a"]);
    let cas = one.client().cas_token(&id(), Scope::Read).await.unwrap().url;
    let address = url::Url::parse(&cas).unwrap().socket_addrs(|| None).unwrap()[0];
    assert!(address.ip().is_loopback());
    one.close().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "closed is closed");
    assert_eq!(keys(&two.client()).await, ["a"]);
    drop(two);
    assert_eq!(keys(&open(&link).await.client()).await, ["a"]);
}

#[tokio::test]
async fn what_is_no_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let text = format!("file://{}/file", dir.path().display());
    let error = Endpoint::open(&text, TokenProvider::anonymous()).await.err().unwrap();
    assert!(matches!(error, Error::Endpoint { .. }), "{error}");
}

/// A fresh directory has a token that everybody knows, and everybody on the machine can reach the port.
#[tokio::test]
async fn a_file_endpoint_serves_its_own_process_only() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = open(dir.path()).await;
    let client = endpoint.client();
    client.create_bucket(&id(), false, false).await.unwrap();
    let cas = client.cas_token(&id(), Scope::Read).await.unwrap();
    let base = cas.url.strip_suffix("/cas").unwrap();
    let http = transport::process_client().unwrap();
    for path in ["/api/whoami-v2", "/api/buckets/ns/b", "/api/buckets/ns/b/tree", "/api/buckets/ns", "/none"] {
        let request = || http.get(format!("{base}{path}"));
        for request in [request(), request().bearer_auth("hf_local"), request().bearer_auth(&cas.token)] {
            assert_eq!(request.send().await.unwrap().status(), 401, "{path}");
        }
    }
    // The CAS knows its own tokens, whichever process of the directory gave them.
    let other = open(dir.path()).await;
    let cas_of_other = other.client().cas_token(&id(), Scope::Read).await.unwrap().url;
    let empty = format!("{cas_of_other}/v1/files/{}", crate::xet::Hash::ZERO);
    assert_eq!(http.head(empty).bearer_auth(&cas.token).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn strangers_are_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _client, _) = serve_with_bucket(dir.path()).await;
    let base = format!("http://{}", server.address());
    let http = transport::process_client().unwrap();
    for token in [TokenProvider::anonymous(), TokenProvider::fixed("hf_guess".to_owned())] {
        let client = Client::new(&base, http.clone(), token, policy()).unwrap();
        assert!(matches!(client.whoami().await, Err(Error::Unauthorized(_))));
        let error = client.bucket_info(&id()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized(_) | Error::BucketNotFound(_)), "{error:?}");
        assert!(client.batch(&id(), &[add("a")]).await.is_err());
    }
}

#[tokio::test]
async fn a_lost_answer_is_told_and_the_change_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client, faults) = serve_with_bucket(dir.path()).await;
    faults.add(rule(Method::POST, "*/batch", 1, Fault::LoseAnswer));
    assert!(client.batch(&id(), &[add("a")]).await.unwrap_err().is_unanswered());
    assert_eq!(keys(&client).await, ["a"]);
}

#[tokio::test]
async fn busy_servers_and_cut_answers_are_outlived() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client, faults) = serve_with_bucket(dir.path()).await;
    let busy = |status, rate_limit| Fault::Status { status, retry_after: Some(1), rate_limit };
    faults.add(rule(Method::POST, "*/batch", 1, busy(429, Some(9))));
    faults.add(rule(Method::POST, "*/batch", 1, busy(503, None)));
    client.batch(&id(), &[add("a"), add("b")]).await.unwrap();
    for fault in [Fault::CutBody { after: 20 }, Fault::LoseAnswer, Fault::Refuse, busy(500, None)] {
        faults.add(rule(Method::GET, "*/tree", 1, fault));
        assert_eq!(keys(&client).await, ["a", "b"]);
    }
    faults.add(Rule::once(
        "*/tree",
        Fault::Garbage { status: 200, body: "<html>sign in to the airport's network</html>" },
    ));
    malformed(client.tree(&id(), "", true).await);
}

#[tokio::test]
async fn cas_tokens_are_kept_by_scope() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client, _) = serve_with_bucket(dir.path()).await;
    let tokens = bucket_tokens(Arc::new(client), id());
    let first = tokens.token(Scope::Write, None).await.unwrap();
    assert_eq!(tokens.token(Scope::Write, None).await.unwrap(), first);
    assert_ne!(tokens.token(Scope::Read, None).await.unwrap().token, first.token);
}
