//! What can go wrong at the Hub, and the Hub's own words made safe to show (Hub API spec, 1.2).

use super::{BatchOutcome, BucketId, RepoId};
use crate::xet::foreign::{spoken, tame};
use crate::xet::is_transient;
use http::HeaderMap;

/// What can go wrong at the Hub.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not `namespace/name`.
    #[error("invalid bucket id {0:?}: it has the form namespace/name")]
    InvalidId(String),
    /// An endpoint that is neither `https://`, `http://` nor `file:///dir`, or a directory that
    /// can't be opened as a Hub.
    #[error("cannot use endpoint {endpoint:?}: {why}")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// Why not.
        why: String,
    },
    /// No such bucket, or a private one that this token may not see.
    #[error("bucket {0} not found")]
    BucketNotFound(BucketId),
    /// The id names a repository of this kind.
    #[error("{id} is a {kind} repository, not a bucket")]
    NotABucket {
        /// The id.
        id: BucketId,
        /// `model`, `dataset`, `space`.
        kind: &'static str,
    },
    /// Not the name of a repository.
    #[error("invalid repository {0:?}: it has the form namespace/name")]
    InvalidRepoId(String),
    /// No such repository, or a private one that this token may not see.
    #[error("{} {} not found", .0.kind(), .0.name())]
    RepoNotFound(RepoId),
    /// The name is that of something else.
    #[error("{} is a {found}, not a {}", id.name(), id.kind())]
    OtherKind {
        /// The repository asked for.
        id: RepoId,
        /// `model`, `dataset`, `space` or `bucket`.
        found: &'static str,
    },
    /// A repository without this branch, tag or commit.
    #[error("{} {} has no revision {revision:?}", id.kind(), id.name())]
    RevisionNotFound {
        /// The repository.
        id: RepoId,
        /// The revision asked for.
        revision: String,
    },
    /// The owner of the repository lets users in one by one, and not yet this one.
    #[error("access to {} {} is restricted: ask for it on its page", .0.kind(), .0.name())]
    Gated(RepoId),
    /// A file of a repository that isn't there.
    #[error("the repository has no such file")]
    EntryNotFound,
    /// It exists already.
    #[error("bucket {0} exists already")]
    Conflict(BucketId),
    /// 401: no token, or one that the Hub doesn't take.
    #[error("the Hub refused the token: {0}")]
    Unauthorized(String),
    /// 403.
    #[error("the Hub denied access: {0}")]
    Forbidden(String),
    /// 413 or 507: over a quota or a size limit.
    #[error("the Hub has no room: {0}")]
    Quota(String),
    /// Any other status, after the retries the API allows.
    #[error("the Hub answered {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Its words, shortened and escaped.
        message: String,
    },
    /// The network failed or stalled, after retries; the request may or may not have been carried out.
    #[error("cannot reach the Hub: {0}")]
    Network(String),
    /// A batch of several requests that stopped on the way. The first `answered` operations were
    /// answered and `outcome` is about them; what became of those after them is as `source` says of
    /// the request it stopped at, and the rest was not sent.
    #[error("stopped after {answered} operations of a batch: {source}")]
    Partial {
        /// Operations answered, counted from the first one handed in.
        answered: usize,
        /// Which of those failed.
        outcome: BatchOutcome,
        /// Why it stopped.
        source: Box<Error>,
    },
    /// An answer that breaks the API.
    #[error("the Hub sent an unusable response: {0}")]
    Malformed(String),
    /// A token file that can't be read.
    #[error("cannot read token file {path}: {source}")]
    TokenFile {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The embedded Hub's directory or database failed.
    #[error("embedded Hub: {0}")]
    Local(String),
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { status, .. } => is_transient(*status),
            Self::Partial { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Whether a write may have been carried out all the same: re-read before repeating or giving up.
    pub fn is_unanswered(&self) -> bool {
        match self {
            Self::Network(_) | Self::Malformed(_) | Self::Partial { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 408,
            _ => false,
        }
    }
}

/// Returns the message of an error response, fit for one line of a log or a terminal: `X-Error-Message`, else one of
/// the body's known forms, else a short text body. An echo of `token`, with which the request was sent, is blanked.
pub(super) fn words(headers: &HeaderMap, body: &[u8], token: Option<&str>) -> String {
    let header = headers.get("x-error-message").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let text = header.filter(|text| !text.trim().is_empty()).or_else(|| spoken(body)).unwrap_or_default();
    tame(&text, token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xet::foreign::MAX as MAX_WORDS;

    fn said(body: &str) -> String {
        words(&HeaderMap::new(), body.as_bytes(), Some("hf_sent"))
    }

    #[test]
    fn all_body_forms_are_understood() {
        assert_eq!(said(r#"{"error":"no such thing"}"#), "no such thing");
        assert_eq!(said(r#"{"error":["a","b"]}"#), "a; b");
        assert_eq!(said(r#"{"errors":[{"message":"m"},{"x":1},{"message":"n"}]}"#), "m; n");
        assert_eq!(said(r#"{"error":"invalid","error_description":"expired"}"#), "invalid; expired");
        assert_eq!(
            said(
                " upstream is busy
"
            ),
            "upstream is busy"
        );
        for silent in
            ["", "<html><body>502</body></html>", "{}", "[]", "7", r#"{"error":{"a":1}}"#, r#"{"error":null}"#]
        {
            assert_eq!(said(silent), "", "{silent}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("x-error-message", "from the header".parse().unwrap());
        assert_eq!(words(&headers, br#"{"error":"from the body"}"#, None), "from the header");
    }

    #[test]
    fn tokens_and_signatures_are_never_echoed() {
        let text =
            said(r#"{"error":"bad token hf_sent in Bearer hf_abcdefghijklmnopqrstuvwxyz at https://h/x?sig=abc ok?"}"#);
        assert_eq!(text, "bad token [token] in Bearer [token] at https://h/x ok?");
    }

    #[test]
    fn hostile_text_is_escaped_and_shortened() {
        assert_eq!(said("a\u{1b}[2J\r\nb\u{202e}c\0"), "a\\u{1b}[2J b\\u{202e}c\\u{0}");
        let long = said(&"é".repeat(100_000));
        assert_eq!(long.chars().count(), MAX_WORDS + 3);
        assert!(said(&"a ".repeat(100_000)).chars().count() <= MAX_WORDS + 3);
        assert_eq!(words(&HeaderMap::new(), b"\xff\xfe", None), "\u{fffd}\u{fffd}");
    }
}
