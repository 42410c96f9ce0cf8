//! An endpoint, opened: `https://…`, `http://…`, or `file:///dir` (an embedded Hub in this process).

use super::retry::Policy;
use super::token::TokenProvider;
use super::{Client, Error, route, transport};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// An opened endpoint. Keeps the embedded Hub (if that is what it is) serving for as long as it lives.
pub struct Endpoint {
    client: Arc<Client>,
    http: reqwest::Client,
    identity: String,
    #[cfg(feature = "local-hub")]
    embedded: Option<embedded::Embedded>,
}

impl Endpoint {
    /// Opens `text`. For `file://` the directory is made where it is missing (0700), served on 127.0.0.1 at a free
    /// port, and the client uses a random per-process token that never leaves memory; `token` is not used then.
    pub async fn open(text: &str, token: TokenProvider) -> Result<Self, Error> {
        Self::open_within(text, token, None).await
    }

    /// Does as [`Endpoint::open`]. `patience`: time after which a call that belongs to no operation with a deadline is
    /// given up, with all its retries.
    pub async fn open_within(text: &str, token: TokenProvider, patience: Option<Duration>) -> Result<Self, Error> {
        let policy = patience.map_or_else(Policy::default, Policy::within);
        let http = transport::process_client()?;
        if text.trim().to_ascii_lowercase().starts_with("file:") {
            return Self::open_directory(text.trim(), http, policy).await;
        }
        let (identity, url) = web(text)?;
        if url.scheme() == "http" && !is_loopback(&url) {
            tracing::warn!(endpoint = %identity, "tokens travel unencrypted to an http endpoint");
        }
        let client = Arc::new(Client::new(&identity, http.clone(), token, policy)?);
        Ok(Self {
            client,
            http,
            identity,
            #[cfg(feature = "local-hub")]
            embedded: None,
        })
    }

    #[cfg(not(feature = "local-hub"))]
    async fn open_directory(text: &str, _http: reqwest::Client, _policy: Policy) -> Result<Self, Error> {
        Err(refused(text, "this program was built without the embedded Hub"))
    }

    #[cfg(feature = "local-hub")]
    async fn open_directory(text: &str, http: reqwest::Client, policy: Policy) -> Result<Self, Error> {
        let (embedded, identity, token) = embedded::Embedded::open(text).await?;
        let client = Client::new(&embedded.base(), http.clone(), token, policy)?;
        Ok(Self { client: Arc::new(client), http, identity, embedded: Some(embedded) })
    }

    /// The Hub client.
    pub fn client(&self) -> Arc<Client> {
        self.client.clone()
    }

    /// The process-wide HTTP client, for the CAS. It follows no redirects and sets no deadline but that of connecting.
    pub fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// A name for this endpoint that is stable over processes (the given URL, normalised; `file:///canonical/dir`).
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Stops an embedded Hub and waits until what it acknowledged is on disk. Nothing to do for a remote one.
    pub async fn close(self) {
        #[cfg(feature = "local-hub")]
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}

/// A web endpoint in its normal form, without a slash at its end, and as a URL.
pub(super) fn web(text: &str) -> Result<(String, Url), Error> {
    let text = text.trim();
    let refuse = |why| Err(refused(&shown(text), why));
    let Ok(url) = Url::parse(text) else {
        return refuse("it is not a URL; use https://…, http://… or file:///dir");
    };
    if !matches!(url.scheme(), "https" | "http") {
        return refuse("it is neither https://…, http://… nor file:///dir");
    }
    if route::has_user(&url) {
        return refuse("it holds a user name; tokens are given apart");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("it has more than a host and a path");
    }
    Ok((url.as_str().trim_end_matches('/').to_owned(), url))
}

/// What a web endpoint may be repeated as: passwords and keys that don't belong there are left out.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match text.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => text.to_owned(),
    }
}

fn refused(endpoint: &str, why: &str) -> Error {
    Error::Endpoint { endpoint: endpoint.to_owned(), why: why.to_owned() }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(feature = "local-hub")]
mod embedded {
    use super::{Error, TokenProvider, Url, refused};
    use crate::hub::local::{LocalHub, ServeOptions, Server};
    use std::fmt::Write;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::path::PathBuf;

    /// An embedded Hub, serving this process.
    pub(super) struct Embedded {
        server: Server,
        // Owns what the server works on.
        _hub: LocalHub,
    }

    impl Embedded {
        /// The Hub in the directory that `text` names, its stable name, and the token of this process.
        pub(super) async fn open(text: &str) -> Result<(Self, String, TokenProvider), Error> {
            let path = directory(text)?;
            let fail = |error: Error| refused(text, &error.to_string());
            let (hub, path) = blocking(move || {
                let hub = LocalHub::open(&path)?;
                let path = path.canonicalize().map_err(|error| Error::Local(error.to_string()))?;
                Ok((hub, path))
            })
            .await
            .map_err(fail)?;
            let identity = Url::from_file_path(path).map_err(|()| refused(text, "its path cannot be part of a URL"))?;
            let token = random_token()?;
            let options = ServeOptions { process_token: Some(token.clone()), ..ServeOptions::default() };
            let server = hub.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await.map_err(fail)?;
            Ok((Self { server, _hub: hub }, identity.into(), TokenProvider::fixed(token)))
        }

        /// Where it listens.
        pub(super) fn base(&self) -> String {
            format!("http://{}", self.server.address())
        }

        /// Waits for what is under way.
        pub(super) async fn close(self) {
            self.server.stop().await;
        }
    }

    /// The local path of a `file://` URL.
    pub(super) fn directory(text: &str) -> Result<PathBuf, Error> {
        let why = "file:// takes an absolute path: file:///some/dir";
        let url = Url::parse(text).map_err(|_| refused(text, why))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused(text, "`?` and `#` in a path are written %3F and %23"));
        }
        let slashes = text.get(5..8) == Some("///");
        url.to_file_path().ok().filter(|_| slashes).ok_or_else(|| refused(text, why))
    }

    /// 256 random bits in hex: nobody else on this machine can speak to the port.
    fn random_token() -> Result<String, Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Error::Local(format!("no randomness: {error}")))?;
        Ok(bytes.iter().fold(String::from("hf_"), |mut text, byte| {
            // Writing to a String doesn't fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(Error::Local("opening it was interrupted".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        web(text).unwrap().0
    }

    #[test]
    fn one_endpoint_has_one_name() {
        assert_eq!(name(" https://HuggingFace.co:443/ "), "https://huggingface.co");
        assert_eq!(name("http://127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(name("HTTP://Hub.example/a/../b/"), "http://hub.example/b");
        assert_eq!(name("http://[::1]:80/"), "http://[::1]");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_repeating_secrets() {
        for bad in [
            "",
            "huggingface.co",
            "localhost:8080",
            "ftp://h",
            "https://",
            "https://h?x",
            "https://h#x",
            "/tmp",
            "s3://b",
        ] {
            assert!(matches!(web(bad), Err(Error::Endpoint { .. })), "{bad}");
        }
        for bad in [
            "https://u:geheim@h",
            "https://geheim@h",
            "https://u:geheim@",
            "ftp://u:geheim@h",
            "https://h?token=geheim",
        ] {
            let error = web(bad).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("geheim"), "{bad}");
        }
    }

    #[cfg(feature = "local-hub")]
    #[test]
    fn file_endpoints_name_absolute_paths() {
        use std::path::Path;
        assert_eq!(embedded::directory("file:///tmp/a%20b/").unwrap(), Path::new("/tmp/a b/"));
        assert_eq!(embedded::directory("FILE:///tmp/a b").unwrap(), Path::new("/tmp/a b"));
        for bad in ["file://", "file:tmp", "file://tmp", "file:/tmp", "file://./tmp", "file:///a?b", "file:///a#b"] {
            assert!(matches!(embedded::directory(bad), Err(Error::Endpoint { .. })), "{bad}");
        }
    }
}
