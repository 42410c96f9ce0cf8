//! Our client against our server, over a network and a store that misbehave.
//!
//! Whatever goes wrong, a transfer ends in time: with the right bytes, or with a typed error. After that, as soon as
//! the store is well again, the same client works at once: no connection, permit or task is stuck. [`faults`] has a
//! test per kind of fault, [`random`] a campaign of several at once, [`memory`] what a hostile answer may cost.
#![cfg(feature = "local-hub")]

mod faults;
mod memory;
mod random;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use hfcrypt::hub::local::faults::{Fault, Faults, Rule};
use hfcrypt::hub::local::{LocalHub, ServeOptions, Server};
use hfcrypt::hub::token::TokenProvider;
use hfcrypt::hub::{self, BucketId, Endpoint, Hub};
use hfcrypt::xet::compression::Policy;
use hfcrypt::xet::http::{self, HttpCas};
use hfcrypt::xet::known::Known;
use hfcrypt::xet::{Cas, CasToken, Downloader, Error, Hash, Scope, TokenSource, UploadSession, download, upload};
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Mutex;

const RECONSTRUCTION: &str = "/cas/v2/reconstructions/*";
const DATA: &str = "/cas/data/*";
const GRANT: &str = "/cas/v1/xorb-grants/*";
const GRANTED: &str = "/cas/grants/*";
const COMMIT: &str = "/cas/v1/xorb-commits/*";
const XORB: &str = "/cas/v1/xorbs/*";
const SHARD: &str = "/cas/v2/shards";
const SHARD_V1: &str = "/cas/v1/shards";
const CHUNK: &str = "/cas/v1/chunks/*";
const TOKEN: &str = "*/xet-*-token";

/// No transfer of these tests may take longer, whatever happens to it: their deadlines are far below.
const FOR_EVER: Duration = Duration::from_secs(60);

/// Little patience, so that a stall costs a test little.
fn impatient() -> http::Options {
    http::Options {
        retries: 2,
        first_delay: Duration::from_millis(5),
        idle: Duration::from_millis(700),
        shard_patience: Duration::from_secs(3),
        ..http::Options::default()
    }
}

/// Tokens of one bucket from the Hub's token route: one until it is refused.
struct Tokens {
    hub: Arc<hub::Client>,
    bucket: BucketId,
    latest: Mutex<Option<CasToken>>,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self, _: Scope, refused: Option<&CasToken>) -> Result<CasToken, Error> {
        let mut latest = self.latest.lock().await;
        if let Some(token) = latest.as_ref().filter(|token| Some(*token) != refused) {
            return Ok(token.clone());
        }
        let token = self.hub.cas_token(&self.bucket, Scope::Write).await.map_err(|e| Error::Token(Arc::new(e)))?;
        *latest = Some(token.clone());
        Ok(token)
    }
}

/// A server with faults, and a client of it that gets its tokens from the Hub, as a program does.
struct Rig {
    faults: Arc<Faults>,
    endpoint: Endpoint,
    tokens: Arc<dyn TokenSource>,
    client: Client,
    /// Contents made so far, so that none comes twice.
    made: AtomicU64,
    _server: Server,
    _dir: TempDir,
}

impl Rig {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let options = ServeOptions { faults: Some(Arc::clone(&faults)), ..ServeOptions::default() };
        let hub = LocalHub::open(dir.path()).unwrap();
        let server = hub.serve(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let endpoint = open(&format!("http://{}", server.address())).await;
        let bucket = BucketId::new("local", "engine").unwrap();
        endpoint.client().create_bucket(&bucket, true, false).await.unwrap();
        let tokens =
            Arc::new(Tokens { hub: endpoint.client(), bucket, latest: Mutex::default() }) as Arc<dyn TokenSource>;
        let client = Client::new(&endpoint, &tokens);
        Self { faults, endpoint, tokens, client, made: AtomicU64::new(1000), _server: server, _dir: dir }
    }

    /// A client that knows nothing yet.
    fn fresh_client(&self) -> Client {
        Client::new(&self.endpoint, &self.tokens)
    }

    /// Content that nobody has seen: a few chunks that don't compress.
    fn fresh(&self) -> Vec<u8> {
        random_bytes(self.made.fetch_add(1, Ordering::Relaxed), 300_000)
    }

    /// The store is well again: whatever happened, `client` must work, and a new one find what `client` has stored.
    async fn expect_recovery(&self, client: &Client) {
        self.faults.clear();
        let content = self.fresh();
        let file = client.upload(&content).await.expect("the store is well");
        client.check(&file, &content).await;
        self.fresh_client().check(&file, &content).await;
    }
}

/// One [`HttpCas`], and what a program has over it: upload sessions, and a reader that remembers
/// answers and, in a second form, chunk hashes.
struct Client {
    cas: Arc<HttpCas>,
    reader: Downloader,
    knowing: Downloader,
}

impl Client {
    fn new(endpoint: &Endpoint, tokens: &Arc<dyn TokenSource>) -> Self {
        Self::with(endpoint, tokens, impatient())
    }

    fn with(endpoint: &Endpoint, tokens: &Arc<dyn TokenSource>, options: http::Options) -> Self {
        let cas = Arc::new(HttpCas::new(endpoint.http(), Arc::clone(tokens), options));
        let knowing = download::Options { known: Some(Known::in_memory()), ..download::Options::default() };
        let reader = Downloader::new(Arc::clone(&cas) as Arc<dyn Cas>, download::Options::default());
        let knowing = Downloader::new(Arc::clone(&cas) as Arc<dyn Cas>, knowing);
        Self { cas, reader, knowing }
    }

    fn cas(&self) -> Arc<dyn Cas> {
        Arc::clone(&self.cas) as Arc<dyn Cas>
    }

    /// Uploads one file in a session of its own.
    async fn upload(&self, content: &[u8]) -> Result<Hash, Error> {
        Ok(self.upload_all(&[(content, Policy::Never)]).await?[0])
    }

    /// Uploads all in one session, side by side.
    async fn upload_all(&self, contents: &[(&[u8], Policy)]) -> Result<Vec<Hash>, Error> {
        in_time(async {
            let session = UploadSession::new(self.cas(), upload::Options::default());
            let adds = contents.iter().map(|&(content, policy)| session.add(content, policy));
            let files = futures::future::try_join_all(adds).await?;
            session.finish().await?;
            Ok(files.iter().map(|file| file.hash).collect())
        })
        .await
    }

    /// The whole file, verified.
    async fn download(&self, file: &Hash, len: usize) -> Result<Vec<u8>, Error> {
        let mut read = Vec::new();
        in_time(self.knowing.download(file, len as u64, &mut read)).await?;
        Ok(read)
    }

    /// The same, delivered in any order.
    async fn download_unordered(&self, file: &Hash, len: usize) -> Result<Vec<u8>, Error> {
        let place = tempfile::tempfile().unwrap();
        in_time(self.reader.download_to(file, len as u64, Arc::new(place.try_clone().unwrap()))).await?;
        let mut read = vec![0; len];
        place.read_exact_at(&mut read, 0).unwrap();
        Ok(read)
    }

    async fn read(&self, file: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        in_time(self.reader.read(file, range)).await
    }

    /// A range of a file that was downloaded: its chunks are known.
    async fn read_known(&self, file: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        in_time(self.knowing.read(file, range)).await
    }

    async fn stream(&self, file: &Hash, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let pieces: Vec<Bytes> = in_time(self.reader.stream(*file, range).try_collect()).await?;
        Ok(pieces.concat())
    }

    /// The file reads as `content` in every way.
    async fn check(&self, file: &Hash, content: &[u8]) {
        let len = content.len();
        assert!(self.download(file, len).await.unwrap() == content, "whole");
        assert!(self.download_unordered(file, len).await.unwrap() == content, "whole, in any order");
        let (start, end) = (len / 3, len - len / 5);
        assert!(self.read(file, start as u64..end as u64).await.unwrap() == content[start..end], "a range");
        assert!(self.read_known(file, start as u64..end as u64).await.unwrap() == content[start..end], "a known range");
        assert!(self.stream(file, start as u64..len as u64).await.unwrap() == content[start..], "streamed");
    }
}

async fn in_time<T>(transfer: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOR_EVER, transfer).await.expect("a transfer hangs")
}

async fn open(url: &str) -> Endpoint {
    Endpoint::open(url, TokenProvider::fixed("hf_local".to_owned())).await.unwrap()
}

/// `len` bytes that don't compress.
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `len` bytes that do.
fn text(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..=len / 20).flat_map(|i| format!("line {i}: cormorant\n").into_bytes()).collect();
    bytes.truncate(len);
    bytes
}
