//! Keeps the pages of other sites out of a Hub on this machine.
//!
//! A page that somebody looks at can have the browser send requests to 127.0.0.1, and it can give that
//! address a name of its own (DNS rebinding): then the browser takes our answers for the page's and
//! shows them to it, and the token of a fresh Hub is well known. So a server on a loopback address
//! answers to the names of loopback, and of its public base, only. And wherever it listens, a request
//! that a browser says another site has sent is refused; clients that are no browsers don't say so.

use super::errors::ApiError;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Request};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use url::Url;

/// Decides by what a request calls us, and by who sent it.
pub(super) struct Gate {
    /// Only names of loopback are ours.
    is_loopback: bool,
    /// Host of the public base.
    public: Option<String>,
}

impl Gate {
    /// For a server on `address`. `public_base`: what clients reach it by.
    pub(super) fn new(address: SocketAddr, public_base: Option<&str>) -> Self {
        let public = public_base.and_then(|base| Some(Url::parse(base).ok()?.host_str()?.to_owned()));
        Self { is_loopback: address.ip().is_loopback(), public }
    }

    /// An error unless the request is one to answer.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let (headers, target) = (request.headers(), request.uri().authority());
        let mut hosts = headers.get_all(HOST).iter().map(authority).chain(target.map(|host| Some(host.clone())));
        if self.is_loopback && !hosts.all(|host| host.is_some_and(|host| self.answers_to(&host))) {
            return Err(ApiError::misdirected());
        }
        if headers.get_all(ORIGIN).iter().all(|origin| self.is_own(origin, headers)) {
            Ok(())
        } else {
            Err(ApiError::forbidden("Pages of other sites may not use this Hub"))
        }
    }

    fn answers_to(&self, host: &Authority) -> bool {
        is_loopback_name(host.host()) || self.is_public(host.host())
    }

    fn is_public(&self, host: &str) -> bool {
        self.public.as_ref().is_some_and(|public| public.eq_ignore_ascii_case(host))
    }

    /// Whether an `Origin` is where the request went.
    fn is_own(&self, origin: &HeaderValue, headers: &HeaderMap) -> bool {
        let site = origin.to_str().ok().and_then(|origin| origin.split_once("://")?.1.parse::<Authority>().ok());
        let host = headers.get(HOST).and_then(authority);
        site.is_some_and(|site| self.is_public(site.host()) || host.is_some_and(|host| host == site))
    }
}

/// Host and port of a `Host` header; one with a user name is none.
fn authority(host: &HeaderValue) -> Option<Authority> {
    let text = host.to_str().ok()?;
    text.parse().ok().filter(|_| !text.contains('@'))
}

fn is_loopback_name(host: &str) -> bool {
    let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse().ok(),
    };
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;

    const LOOPBACK: &str = "127.0.0.1:8080";

    /// The status that a request is refused with.
    fn refusal(address: &str, public: Option<&str>, headers: &[(&str, &str)]) -> Option<StatusCode> {
        let mut request = Request::builder().uri("/api/whoami-v2");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let checked = Gate::new(address.parse().unwrap(), public).check(&request.body(()).unwrap());
        checked.err().map(|error| error.into_response().status())
    }

    #[test]
    fn a_server_on_loopback_answers_to_loopback_only() {
        for host in ["127.0.0.1:8080", "127.0.0.1", "127.1.2.3:1", "localhost:8080", "LocalHost", "[::1]:99", "[::1]"] {
            assert_eq!(refusal(LOOPBACK, None, &[("host", host)]), None, "{host}");
            assert_eq!(refusal("[::1]:1", None, &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.0.1:8080",
            "0.0.0.0:8080",
            "[::2]",
            "2130706433",
            "127.0.0.1@evil.example",
            "evil@127.0.0.1",
            "",
            "a>;b",
        ] {
            assert_eq!(refusal(LOOPBACK, None, &[("host", host)]), Some(StatusCode::MISDIRECTED_REQUEST), "{host}");
        }
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(refusal(LOOPBACK, None, &two), Some(StatusCode::MISDIRECTED_REQUEST));
        assert_eq!(refusal("192.168.0.1:80", None, &[("host", "nas.home")]), None, "elsewhere any name may be ours");
    }

    #[test]
    fn an_absolute_target_counts_as_a_host() {
        let request = Request::builder().uri("http://evil.example/").header("host", "localhost").body(()).unwrap();
        assert!(Gate::new(LOOPBACK.parse().unwrap(), None).check(&request).is_err());
    }

    #[test]
    fn the_public_base_is_a_name_of_ours() {
        let public = Some("https://hub.example/base");
        for host in ["hub.example", "HUB.example:443", "localhost"] {
            assert_eq!(refusal(LOOPBACK, public, &[("host", host)]), None, "{host}");
        }
        assert_eq!(refusal(LOOPBACK, public, &[("host", "x.hub.example")]), Some(StatusCode::MISDIRECTED_REQUEST));
        let proxied = [("host", "127.0.0.1:8080"), ("origin", "https://hub.example")];
        assert_eq!(refusal(LOOPBACK, public, &proxied), None);
        assert_eq!(refusal(LOOPBACK, None, &proxied), Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn a_foreign_origin_is_refused_everywhere() {
        for (address, host) in [(LOOPBACK, "localhost:8080"), ("192.168.0.1:80", "nas.home")] {
            let refused = |origin| refusal(address, None, &[("host", host), ("origin", origin)]);
            for foreign in ["https://evil.example", "null", "", "http://localhost:3000", "http://localhost", "file://"]
            {
                assert_eq!(refused(foreign), Some(StatusCode::FORBIDDEN), "{foreign}");
            }
            assert_eq!(refused(&format!("http://{host}")), None);
        }
        let no_host = [("origin", "http://evil.example")];
        assert_eq!(refusal("192.168.0.1:80", None, &no_host), Some(StatusCode::FORBIDDEN));
    }
}
