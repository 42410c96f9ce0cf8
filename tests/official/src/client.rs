//! The two clients behind one pair of verbs: upload samples, and check that a file reads as its
//! sample in every way the client can read.

use crate::content::{Sample, ranges};
use crate::server::{Fixed, Server, endpoint};
use futures::{StreamExt, TryStreamExt};
use hfcrypt::xet::compression::Policy;
use hfcrypt::xet::http::{self, HttpCas};
use hfcrypt::xet::{Cas, Downloader, Hash, UploadSession, download, upload};
use std::ops::{Range, RangeBounds};
use std::sync::Arc;
use tempfile::TempDir;
use xet_client::cas_client::auth::{AuthConfig, TokenRefresher};
use xet_data::deduplication::DeduplicationMetrics;
use xet_data::processing::configurations::TranslatorConfig;
use xet_data::processing::{FileDownloadSession, FileUploadSession, Sha256Policy, XetFileInfo};
use xet_runtime::config::XetConfig;
use xet_runtime::core::XetContext;

/// Our client.
pub(crate) struct Ours {
    cas: Arc<dyn Cas>,
}

impl Ours {
    pub(crate) async fn new(server: &Server) -> Self {
        let http = endpoint(&server.token.url).await.http();
        let cas = HttpCas::new(http, Arc::new(Fixed(server.token.clone())), http::Options::default());
        Self { cas: Arc::new(cas) }
    }

    pub(crate) fn downloader(&self) -> Downloader {
        Downloader::new(Arc::clone(&self.cas), download::Options::default())
    }

    /// Uploads all in one session, at once, and gives the file hashes.
    pub(crate) async fn upload(&self, samples: &[Sample]) -> Vec<String> {
        self.upload_measured(samples).await.0
    }

    pub(crate) async fn upload_measured(&self, samples: &[Sample]) -> (Vec<String>, upload::Report) {
        let session = UploadSession::new(Arc::clone(&self.cas), upload::Options::default());
        let add = |sample| add(&session, sample);
        let hashes = futures::stream::iter(samples).map(add).buffered(4).collect().await;
        (hashes, session.finish().await.unwrap())
    }

    /// Reads ranges, a stream, and the whole file verified.
    pub(crate) async fn check(&self, file: &str, sample: &Sample) {
        self.check_ranges(file, sample, ranges(&sample.bytes)).await;
    }

    /// The same with these ranges.
    pub(crate) async fn check_ranges(&self, file: &str, sample: &Sample, ranges: Vec<Range<u64>>) {
        let Sample { name, bytes } = sample;
        let (file, len) = (file.parse::<Hash>().unwrap(), bytes.len() as u64);
        let downloader = self.downloader();
        for range in ranges {
            let read = downloader.read(&file, range.clone()).await.unwrap();
            assert!(read == bytes[range.start as usize..range.end as usize], "{name}, {range:?}");
        }
        let pieces: Vec<_> = downloader.stream(file, len / 5..len).try_collect().await.unwrap();
        assert!(pieces.concat() == bytes[bytes.len() / 5..], "{name}, streamed");
        let mut whole = Vec::new();
        downloader.download(&file, len, &mut whole).await.unwrap();
        assert!(whole == *bytes, "{name}, whole");
    }
}

async fn add(session: &UploadSession, sample: &Sample) -> String {
    let policy = if sample.name.starts_with("random") { Policy::Never } else { Policy::Auto };
    let uploaded = session.add(&sample.bytes[..], policy).await.unwrap();
    assert_eq!(uploaded.len, sample.bytes.len() as u64, "{}", sample.name);
    uploaded.hash.to_string()
}

/// The official client. What it keeps on disk is in a folder of its own.
pub(crate) struct Official {
    config: Arc<TranslatorConfig>,
    _cache: TempDir,
}

impl Official {
    pub(crate) fn new(server: &Server) -> Self {
        let token = &server.token;
        Self::with(&token.url, AuthConfig::maybe_new(Some(token.token.clone()), Some(token.expires), None))
    }

    /// One that holds no token yet.
    pub(crate) fn refreshing(server: &Server, refresher: Arc<dyn TokenRefresher>) -> Self {
        Self::with(&server.token.url, AuthConfig::maybe_new(None, None, Some(refresher)))
    }

    fn with(url: &str, auth: Option<AuthConfig>) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut config = TranslatorConfig::test_server_config(&context(), url, cache.path()).unwrap();
        config.session.auth = auth;
        Self { config: Arc::new(config), _cache: cache }
    }

    /// Uploads all in one session, at once, and gives the file hashes.
    pub(crate) async fn upload(&self, samples: &[Sample]) -> Vec<String> {
        self.upload_measured(samples).await.0
    }

    pub(crate) async fn upload_measured(&self, samples: &[Sample]) -> (Vec<String>, DeduplicationMetrics) {
        let session = FileUploadSession::new(Arc::clone(&self.config)).await.unwrap();
        let mut uploads = Vec::new();
        for sample in samples {
            let bytes = sample.bytes.clone();
            uploads.push(session.spawn_upload_bytes(bytes, Sha256Policy::Compute, None).await.unwrap().1);
        }
        let mut hashes = Vec::new();
        for upload in uploads {
            hashes.push(upload.await.unwrap().unwrap().0.hash);
        }
        (hashes, session.finalize().await.unwrap())
    }

    /// Reads ranges, and the whole file with its size known and unknown.
    pub(crate) async fn check(&self, file: &str, sample: &Sample) {
        self.check_ranges(file, sample, ranges(&sample.bytes)).await;
    }

    /// The same with these ranges; of an empty one there is nothing to ask for.
    pub(crate) async fn check_ranges(&self, file: &str, sample: &Sample, ranges: Vec<Range<u64>>) {
        let Sample { name, bytes } = sample;
        let session = FileDownloadSession::new(Arc::clone(&self.config), None).await.unwrap();
        let known = XetFileInfo::new(file.to_owned(), bytes.len() as u64);
        let unknown = XetFileInfo::new_hash_only(file.to_owned());
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            let read = read(&session, &known, range.clone()).await;
            assert!(read == bytes[range.start as usize..range.end as usize], "{name}, {range:?}");
        }
        assert!(read(&session, &known, ..).await == *bytes, "{name}, whole");
        assert!(read(&session, &unknown, ..).await == *bytes, "{name}, whole, size unknown");
    }
}

async fn read(session: &FileDownloadSession, file: &XetFileInfo, range: impl RangeBounds<u64>) -> Vec<u8> {
    let (_, mut stream) = session.download_stream_range(file, range).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// The official defaults, whatever the environment says, on the test's own runtime.
pub(crate) fn context() -> XetContext {
    XetContext::with_config(XetConfig::default()).unwrap()
}
