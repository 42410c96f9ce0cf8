//! Fuzz bodies of what the gateway parses itself: any bytes, no panic, and what is accepted keeps its promises.

use super::condition::Tags;
use super::digest::{Algorithm, Announced};
use super::multipart::{Part, Upload};
use super::record::{Record, check_tags};
use super::{AccessKeys, After, Key};

/// A key: key and path determine each other.
pub fn key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(key) = Key::parse(text) else { return };
    assert!(key.as_str() == text && text.len() <= super::MAX_KEY);
    assert!(key.path().as_str().split('/').all(|name| !name.is_empty() && name != "." && name != ".."));
    let back = Key::of_path(key.path());
    assert!(back.as_str() == text && back.path() == key.path() && back.is_marker() == text.ends_with('/'));
}

/// Values of headers and of the query: entity tags, digests, ranges of part copies, continuation tokens, tags.
pub fn request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Tags::Of(tags) = Tags::parse(text) {
        assert!(!tags.is_empty());
    }
    if let Ok(after) = After::from_token(text) {
        assert_eq!(After::from_token(&after.to_token()).ok(), (after != After::Start).then_some(after));
    }
    let _ = Announced::parse_md5(text);
    for algorithm in Algorithm::ALL {
        if let Ok(checksum) = Announced::parse_checksum(algorithm, text) {
            assert_eq!(checksum.value, text);
        }
    }
    super::s3::fuzz(text);
    let pairs = url::form_urlencoded::parse(data).map(|(name, value)| (name.into_owned(), value.into_owned()));
    if let Ok(tags) = check_tags(pairs) {
        assert!(tags.len() <= 10);
    }
}

/// Rows of the state, after they were opened, and the file of access keys.
pub fn record(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<Record>(data) {
        let json = serde_json::to_vec(&record).expect("a record can be written");
        assert_eq!(serde_json::from_slice::<Record>(&json).ok(), Some(record));
    }
    super::metadata::fuzz(data);
    let _ = serde_json::from_slice::<Upload>(data);
    if let Ok(part) = serde_json::from_slice::<Part>(data) {
        part.fuzz();
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(keys) = AccessKeys::parse(text)
    {
        let _ = AccessKeys::new(keys);
    }
}

/// A line of the control connection of FTP.
#[cfg(feature = "ftp")]
pub fn ftp(data: &[u8]) {
    super::ftp::fuzz(data);
}
