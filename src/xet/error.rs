use std::sync::Arc;

/// What can go wrong with Xet data or at the CAS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes that break a format: which one, and how.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// `xorb`, `shard`, `reconstruction`, …
        what: &'static str,
        /// The rule broken.
        why: String,
    },
    /// Data whose hash is not the one asked for. Never transient.
    #[error("{what} does not match its hash {expected}")]
    HashMismatch {
        /// `chunk`, `xorb`, `file`.
        what: &'static str,
        /// The hash asked for.
        expected: super::Hash,
    },
    /// The CAS doesn't know this file or xorb.
    #[error("{0} is not in the store")]
    NotFound(super::Hash),
    /// A read that starts behind the end of the file.
    #[error("range starts behind the end of the file")]
    RangeNotSatisfiable,
    /// 401: the token is missing, expired or refused, also after one refresh.
    #[error("the store refused the token")]
    Unauthorized,
    /// 403: the token's scope or grant doesn't cover the request.
    #[error("the store denied access: {0}")]
    Forbidden(String),
    /// Any other status, after the retries the protocol allows.
    #[error("the store answered {status}: {message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// The server's words, shortened and escaped.
        message: String,
    },
    /// The network failed or stalled, after retries.
    #[error("cannot reach the store: {0}")]
    Network(String),
    /// A token could not be had from its source.
    #[error("cannot get a store token: {0}")]
    Token(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The content handed in, or the sink handed out, failed.
    #[error("reading or writing content: {0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { status, .. } => is_transient(*status),
            _ => false,
        }
    }

    /// The same error again, for another caller that waits for the same thing. The source of an
    /// [`Error::Io`] becomes text.
    pub fn duplicate(&self) -> Self {
        match self {
            Self::Malformed { what, why } => Self::Malformed { what, why: why.clone() },
            Self::HashMismatch { what, expected } => Self::HashMismatch { what, expected: *expected },
            Self::NotFound(hash) => Self::NotFound(*hash),
            Self::RangeNotSatisfiable => Self::RangeNotSatisfiable,
            Self::Unauthorized => Self::Unauthorized,
            Self::Forbidden(message) => Self::Forbidden(message.clone()),
            Self::Status { status, message } => Self::Status { status: *status, message: message.clone() },
            Self::Network(why) => Self::Network(why.clone()),
            Self::Token(source) => Self::Token(Arc::clone(source)),
            Self::Io(error) => Self::Io(std::io::Error::new(error.kind(), error.to_string())),
        }
    }
}

/// Whether the same request may be answered otherwise later: every status of a server or proxy in trouble, but for 501.
pub fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=599)
}
