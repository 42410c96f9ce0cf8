//! Our client as a program: one file up or down.
//!
//! `our-client upload URL TOKEN random|plain FILE` prints the file hash; `our-client download URL TOKEN HASH LEN FILE`
//! verifies the file hash. `random`: the caller knows that the content doesn't compress, as it does of ciphertext.

use async_trait::async_trait;
use hfcrypt::hub::Endpoint;
use hfcrypt::hub::token::TokenProvider;
use hfcrypt::xet::compression::Policy;
use hfcrypt::xet::http::{self, HttpCas};
use hfcrypt::xet::{Cas, CasToken, Downloader, Scope, TokenSource, UploadSession, download, upload};
use std::fs::File;
use std::sync::Arc;

/// One token, for as long as the server takes it.
struct Fixed(CasToken);

#[async_trait]
impl TokenSource for Fixed {
    async fn token(&self, _: Scope, refused: Option<&CasToken>) -> Result<CasToken, hfcrypt::xet::Error> {
        match refused {
            None => Ok(self.0.clone()),
            Some(_) => Err(hfcrypt::xet::Error::Unauthorized),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["upload", url, token, content, path] => {
            let policy = if content == "random" { Policy::Never } else { Policy::Auto };
            let session = UploadSession::new(connect(url, token).await?, upload::Options::default());
            let uploaded = session.add_file(File::open(path)?, policy).await?;
            session.finish().await?;
            println!("{}", uploaded.hash);
        }
        ["download", url, token, hash, len, path] => {
            let downloader = Downloader::new(connect(url, token).await?, download::Options::default());
            let file = File::create(path)?;
            downloader.download_to(&hash.parse()?, len.parse()?, Arc::new(file)).await?;
        }
        _ => return Err("see the top of this program's source".into()),
    }
    Ok(())
}

async fn connect(url: &str, token: &str) -> Result<Arc<dyn Cas>, hfcrypt::hub::Error> {
    // Any endpoint: of it only the HTTP client is used, which is the one of our programs.
    let endpoint = Endpoint::open("http://127.0.0.1", TokenProvider::fixed(String::new())).await?;
    let token = CasToken { url: url.to_owned(), token: token.to_owned(), expires: u64::MAX };
    Ok(Arc::new(HttpCas::new(endpoint.http(), Arc::new(Fixed(token)), http::Options::default())))
}
