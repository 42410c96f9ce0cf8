//! Fuzz bodies of the Hub's decoders: any bytes, no panic, and what is accepted keeps its promises.

use super::{BucketId, parse, route};
use http::{HeaderMap, HeaderValue};
use std::collections::HashSet;
use url::Url;

/// A listing, read under a prefix and without one, in both depths.
pub fn tree(data: &[u8]) {
    for prefix in ["", "a", "a/b"] {
        for recursive in [false, true] {
            for entry in parse::tree(data, prefix, recursive).unwrap_or_default() {
                let rest = entry.key().strip_prefix(prefix).expect("only keys of the prefix are let through");
                assert!(prefix.is_empty() && !rest.is_empty() || rest.starts_with('/'));
            }
        }
    }
}

/// The other answers of the API.
pub fn answers(data: &[u8]) {
    let keys = ["a", "a/b", ""];
    let files = parse::files(data, &keys).unwrap_or_default();
    assert!(files.iter().all(|file| keys.contains(&file.key.as_str())));
    let asked = HashSet::from(keys);
    let failed = parse::outcome(data, &asked, false).unwrap_or_default().failed;
    assert!(failed.iter().all(|(key, _)| asked.contains(key.as_str())));
    let _ = (parse::identity(data), parse::bucket(data), parse::buckets(data), parse::created(data));
    if let Ok(token) = parse::cas_token(data, &HeaderMap::new(), true) {
        assert!(token.url.starts_with("https://"));
    }
}

/// An error's words, as body and as header.
pub fn words(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for _ in 0..2 {
        let text = super::error::words(&headers, data, Some("hf_x"));
        assert!(!text.contains("hf_x") && !text.chars().any(char::is_control));
        headers
            .extend(HeaderValue::from_bytes(data).ok().map(|v| (http::HeaderName::from_static("x-error-message"), v)));
    }
}

/// A `Link` header: what is followed stays at the endpoint.
pub fn link(data: &[u8]) {
    let base = Url::parse("https://hub.example").expect("a constant");
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::from_bytes(data).ok().map(|v| (http::header::LINK, v)));
    if let Ok(Some(next)) = route::next_page(&base, &base, &headers) {
        assert_eq!(next.origin(), base.origin());
        assert!(!route::has_user(&next));
    }
}

/// A key: its URL stays below the bucket.
pub fn key(data: &[u8]) {
    let id = BucketId::new("ns", "b").expect("a constant");
    let Ok(key) = std::str::from_utf8(data) else { return };
    let Ok(url) = Url::parse(&format!("https://hub.example{}", route::tree(&id, key, true, 1))) else { return };
    assert!(url.path().starts_with("/api/buckets/ns/b/tree"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(data: &[u8]) {
        tree(data);
        answers(data);
        words(data);
        link(data);
        key(data);
    }

    #[test]
    fn odd_inputs_do_no_harm() {
        for data in [
            &b""[..],
            b"\0",
            b"[]",
            b"..",
            b"../../x",
            b"\xff\xfe",
            br#"[{"type":"file","path":"a/b/c","size":0},{"type":"directory","path":"a"}]"#,
            br#"[{"type":"file","path":"a","size":1,"mtime":"9999-12-31T23:59:59-23:59"}]"#,
            br#"{"success":false,"failed":[{"path":"a","error":"\u0000\u001b"}]}"#,
            br#"{"casUrl":"https://h","exp":0,"accessToken":"x"}"#,
            br#"{"error":{"error":[["hf_x"]]},"errors":[[],{"message":"hf_hf_xx"}]}"#,
            b"<https://hub.example/n>; rel=next",
            b"<https://hub.example@evil/>; rel=next",
        ] {
            all(data);
        }
        all(&b"[{\"a\":".repeat(5000));
    }

    proptest! {
        #[test]
        fn any_text_does_no_harm(data in ".{0,200}") {
            all(data.as_bytes());
        }

        #[test]
        fn any_entries_do_no_harm(
            entries in prop::collection::vec(("file|directory|x", "[a/.b]{0,6}", any::<i64>(), "[0-9T:Z+-]{0,26}"), 0..6)
        ) {
            let entries: Vec<_> = entries
                .iter()
                .map(|(t, p, s, m)| format!(r#"{{"type":"{t}","path":"{p}","size":{s},"mtime":"{m}"}}"#))
                .collect();
            all(format!("[{}]", entries.join(",")).as_bytes());
        }
    }
}
