use std::sync::Arc;

/// An error of Xet data or of the CAS. Clones are for callers that wait for the same result.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// A read that starts past the end of the file.
    #[error("range starts past the end of the file")]
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
    Io(#[source] Arc<std::io::Error>),
}

impl Error {
    /// Returns true if a retry of the same call may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { status, .. } => is_transient(*status),
            _ => false,
        }
    }
}

/// Returns the error of an [`Error::Io`] by value. If other clones share it, its code or its kind and text are copied.
pub fn io_error(error: Arc<std::io::Error>) -> std::io::Error {
    Arc::try_unwrap(error).unwrap_or_else(|shared| match shared.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(shared.kind(), shared.to_string()),
    })
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Returns true if a retry of the same request may get another status: those of a server or proxy in difficulties,
/// except 501.
pub fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=599)
}
