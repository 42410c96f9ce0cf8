//! What the CAS answers when it can't do what it was asked.

use crate::hub::local::auth::TokenRefused;
use crate::hub::local::body::Refused;
use crate::hub::local::budget::{self, Busy};
use crate::hub::local::db;
use crate::hub::local::errors::ApiError;
use crate::hub::local::range::Malformed;
use crate::xet::{self, Hash};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::io;

/// A request that failed, or data of ours that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// 400: what was sent breaks a format or a rule.
    #[error("{0}")]
    Invalid(String),
    /// 400: a client that gets the whole of something it asked a part of would take it for the part.
    #[error(transparent)]
    MalformedRange(#[from] Malformed),
    /// 401, or 403 where the token only reads.
    #[error(transparent)]
    Token(#[from] TokenRefused),
    /// 403.
    #[error("{0}")]
    Forbidden(&'static str),
    /// 404.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// 408: a body that makes no progress.
    #[error("the request body stalled")]
    Stalled,
    /// 412: the data of a grant is there.
    #[error("already stored")]
    AlreadyStored,
    /// 416, with the length of what was asked for.
    #[error("range starts at or past the end, at {len}")]
    Range {
        /// Bytes of the file or xorb.
        len: u64,
    },
    /// 500: a file or a row that isn't what we wrote.
    #[error("stored {what} {hash} is damaged: {why}")]
    Damaged {
        /// `xorb` or `file`.
        what: &'static str,
        /// Which one.
        hash: Hash,
        /// How.
        why: String,
    },
    /// 500, or 507 for a full disk.
    #[error("cannot {doing}: {source}")]
    Io {
        /// Infinitive.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// 503: no share of something that requests share.
    #[error(transparent)]
    Busy(#[from] Busy),
    /// 500, or 503 where the database is locked.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// 500: a blocking task panicked or was cancelled at shutdown.
    #[error("a task of the store failed")]
    Task,
}

impl Error {
    /// A map from an I/O error.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// Data sent to us that a format refuses.
    pub(super) fn refused(error: xet::Error) -> Self {
        Self::Invalid(error.to_string())
    }

    /// Data read back from our disk that a format refuses.
    pub(super) fn damaged(what: &'static str, hash: &Hash, why: impl ToString) -> Self {
        Self::Damaged { what, hash: *hash, why: why.to_string() }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::MalformedRange(_) => StatusCode::BAD_REQUEST,
            Self::Token(TokenRefused::ReadOnly) | Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Token(TokenRefused::Invalid | TokenRefused::Expired) => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::AlreadyStored => StatusCode::PRECONDITION_FAILED,
            Self::Range { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Io { source, .. } if is_full(source) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Busy(Busy) | Self::Db(db::Error::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Damaged { .. } | Self::Io { .. } | Self::Db(_) | Self::Task => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether the same request may succeed later: the fault is ours.
    pub(super) fn is_retryable(&self) -> bool {
        self.status().is_server_error()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooSlow => Self::Stalled,
            Refused::Busy(busy) => busy.into(),
            refused @ (Refused::TooLarge(_) | Refused::Broken) => Self::Invalid(refused.to_string()),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Db(error.into())
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(_) => Self::entry_not_found(),
            Error::Range { len } => Self::range_not_satisfiable(len),
            Error::Db(error) => error.into(),
            error => Self::internal(&error),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            tracing::error!("CAS: {self}");
        }
        let mut response = (status, self.to_string()).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, budget::RETRY_AFTER);
        }
        if let Self::Range { len } = self
            && let Ok(value) = HeaderValue::try_from(format!("bytes */{len}"))
        {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    }
}
