//! Our own client against our own server.

use super::*;
use crate::xet::compression::Policy;
use crate::xet::http::{self, HttpCas};
use crate::xet::{self, Cas, CasToken, Downloader, TokenSource, UploadSession, download, upload};
use std::sync::Arc;

struct Tokens(CasToken);

#[async_trait::async_trait]
impl TokenSource for Tokens {
    async fn token(&self, _scope: Scope, _refused: Option<&CasToken>) -> Result<CasToken, xet::Error> {
        Ok(self.0.clone())
    }
}

fn client(site: &Site) -> Arc<dyn Cas> {
    let expires = now_seconds() + 600;
    let token = CasToken { url: site.url(""), token: site.token_of(site.bucket, Scope::Write, expires), expires };
    Arc::new(HttpCas::new(site.http.clone(), Arc::new(Tokens(token)), http::Options::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_all_sizes_make_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let cas = client(&site);
    let contents = [
        (Vec::new(), Policy::Auto),
        (b"x".to_vec(), Policy::Auto),
        (splitmix64(1, 8_192), Policy::Never),
        (text(3_000_000), Policy::Auto),
        // Two xorbs.
        (splitmix64(2, 80_000_000), Policy::Never),
    ];
    let session = UploadSession::new(Arc::clone(&cas), upload::Options::default());
    let mut files = Vec::new();
    for (content, policy) in &contents {
        files.push(session.add(content.as_slice(), *policy).await.unwrap());
    }
    session.finish().await.unwrap();

    let downloader =
        Downloader::new(Arc::clone(&cas), download::Options { window: 16 << 20, ahead: 2, ..Default::default() });
    for (file, (content, _)) in files.iter().zip(&contents) {
        assert_eq!(file.len, content.len() as u64);
        let mut read = Vec::new();
        downloader.download(&file.hash, file.len, &mut read).await.unwrap();
        assert!(read == *content);
        if file.len > 20 {
            let part = downloader.read(&file.hash, 3..file.len - 9).await.unwrap();
            assert!(part == content[3..content.len() - 9]);
        }
    }
    // What was uploaded is found again.
    let first = chunks(&contents[4].0)[0];
    assert!(cas.query_chunk(&hash::chunk_hash(first)).await.unwrap().is_some());
    assert!(cas.query_chunk(&Hash([1; 32])).await.unwrap().is_none());
}
