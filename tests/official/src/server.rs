//! The CAS servers: the official test server in three set-ups, and our embedded Hub.

use async_trait::async_trait;
use hfcrypt::hub::local::{LocalHub, ServeOptions};
use hfcrypt::hub::token::TokenProvider;
use hfcrypt::hub::{BucketId, Endpoint, Hub, local};
use hfcrypt::xet::{CasToken, Error, Scope, TokenSource};
use std::net::{Ipv4Addr, SocketAddr};
use tempfile::TempDir;
use xet_client::cas_client::{DirectAccessClient, LocalTestServer, LocalTestServerBuilder};

/// Which server, in which set-up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Official, as it is: v2 routes, upload grants, in memory.
    Official,
    /// Official, as an older server: v1 routes only, direct uploads, on disk.
    OfficialV1,
    /// Official, with at most two ranges per data URL: several URLs per xorb.
    OfficialNarrow,
    /// Ours.
    Embedded,
}

/// The token that a fresh embedded Hub starts with.
pub(crate) const HUB_TOKEN: &str = "hf_local";
/// The bucket whose CAS tokens the clients get.
pub(crate) const BUCKET: (&str, &str) = ("local", "ferry");

/// A running server. It stops when it is dropped.
pub(crate) struct Server {
    /// Good for reading and writing. The official server asks for none and ignores it.
    pub(crate) token: CasToken,
    /// Base URL of the Hub; only the embedded server has one.
    pub(crate) hub: Option<String>,
    _running: Running,
}

/// What keeps it running; the folder goes last.
enum Running {
    Official { _server: Box<LocalTestServer> },
    Embedded { _server: local::Server, _hub: LocalHub, _dir: TempDir },
}

impl Server {
    pub(crate) async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Embedded => Self::embedded().await,
            _ => Self::official(kind).await,
        }
    }

    async fn official(kind: Kind) -> Self {
        // The official crates are built without TLS of their own: even clients that only speak to
        // 127.0.0.1 want a provider installed.
        endpoint("http://127.0.0.1").await;
        let builder = LocalTestServerBuilder::new();
        let server = match kind {
            Kind::OfficialV1 => builder.with_ephemeral_disk().start().await,
            _ => builder.start().await,
        };
        match kind {
            Kind::OfficialV1 => {
                server.disable_v2_endpoints(404);
                server.set_xorb_upload_grants_enabled(false).await.unwrap();
            }
            Kind::OfficialNarrow => server.set_max_ranges_per_fetch(2),
            _ => {}
        }
        let url = server.http_endpoint().to_owned();
        let token = CasToken { url, token: "anything".to_owned(), expires: u64::MAX };
        Self { token, hub: None, _running: Running::Official { _server: Box::new(server) } }
    }

    async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = LocalHub::open(dir.path()).unwrap();
        let server = hub.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ServeOptions::default()).await.unwrap();
        let base = format!("http://{}", server.address());
        let client = endpoint(&base).await.client();
        let bucket = BucketId::new(BUCKET.0, BUCKET.1).unwrap();
        client.create_bucket(&bucket, true, false).await.unwrap();
        let token = client.cas_token(&bucket, Scope::Write).await.unwrap();
        let running = Running::Embedded { _server: server, _hub: hub, _dir: dir };
        Self { token, hub: Some(base), _running: running }
    }
}

/// An endpoint of ours, for its HTTP client: the one that our programs use. Opening it installs the
/// process's TLS provider, too.
pub(crate) async fn endpoint(url: &str) -> Endpoint {
    Endpoint::open(url, TokenProvider::fixed(HUB_TOKEN.to_owned())).await.unwrap()
}

/// One token, for as long as the server takes it.
pub(crate) struct Fixed(pub(crate) CasToken);

#[async_trait]
impl TokenSource for Fixed {
    async fn token(&self, _: Scope, refused: Option<&CasToken>) -> Result<CasToken, Error> {
        match refused {
            None => Ok(self.0.clone()),
            Some(_) => Err(Error::Unauthorized),
        }
    }
}
