//! The one form of error answers (Hub API spec, 1.2): status, `X-Error-Code`, `X-Error-Message`,
//! and `{"error": …}` as body.

use super::body::Refused;
use super::budget::{self, Busy};
use super::db;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Machine-readable code of an error.
pub(crate) const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
/// Text of an error.
pub(crate) const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// Characters of a text that go into the header; all of it is in the body.
const HEADER_TEXT: usize = 500;

/// An error as the client sees it. Its text never holds a token, nor anything of the server's insides.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Map<String, Value>,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), headers: Vec::new(), body: Map::new() }
    }

    /// Adds a header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Adds a member to the body.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body.insert(name.to_owned(), value.into());
        self
    }

    /// 400.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("BadRequest"), message)
    }

    /// 401 for a token that is none of ours. Clients know this text by heart.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, None, "Invalid credentials in Authorization header")
    }

    /// 401 for a request that can't be anonymous.
    pub(crate) fn token_needed() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, None, "This needs an access token")
    }

    /// 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, None, message)
    }

    /// 404 for a bucket or repository that isn't there, or that the caller may not know of.
    pub(crate) fn repo_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("RepoNotFound"), "Repository not found")
    }

    /// 401 for a caller without a token, where the bucket isn't there or is private.
    pub(crate) fn repo_needs_token() -> Self {
        let message = "Repository not found, or it is private: this needs an access token";
        Self::new(StatusCode::UNAUTHORIZED, Some("RepoNotFound"), message)
    }

    /// 404 for a branch, tag or commit that isn't there.
    pub(crate) fn revision_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("RevisionNotFound"), "Revision not found")
    }

    /// 403 for the content of a gated repository.
    pub(crate) fn gated() -> Self {
        let message = "Access to this repository is restricted: only its owner may read it";
        Self::new(StatusCode::FORBIDDEN, Some("GatedRepo"), message)
    }

    /// 404 for a path that isn't there.
    pub(crate) fn entry_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("EntryNotFound"), "Entry not found")
    }

    /// 404 for a route that isn't there.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, None, "Not found")
    }

    /// 405 for a route that takes only the methods `allowed`, separated by commas.
    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, None, "Method not allowed")
            .with_header(ALLOW, HeaderValue::from_static(allowed))
    }

    /// 408 for a body that doesn't come.
    fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, None, "The request body took too long")
    }

    /// 409.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, None, message)
    }

    /// 413.
    fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, None, format!("The request body is larger than {limit} bytes"))
    }

    /// 416 for a file of `size` bytes.
    pub(crate) fn range_not_satisfiable(size: u64) -> Self {
        let range = HeaderValue::try_from(format!("bytes */{size}")).expect("digits make a header value");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, None, "Range not satisfiable").with_header(CONTENT_RANGE, range)
    }

    /// 421 for a request that was meant for another server, or for a name that isn't ours.
    pub(super) fn misdirected() -> Self {
        let message = "This Hub answers to 127.0.0.1, localhost and the host of its --public-base only";
        Self::new(StatusCode::MISDIRECTED_REQUEST, None, message)
    }

    /// 500. What happened goes to the log, not to the client.
    pub(crate) fn internal(what: &dyn std::fmt::Display) -> Self {
        tracing::error!("embedded hub: {what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, "Internal server error")
    }

    /// A status that a test asked for.
    #[cfg(feature = "faults")]
    pub(super) fn injected(status: StatusCode) -> Self {
        Self::new(status, None, "Injected fault")
    }

    /// 503.
    pub(crate) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, None, "The Hub is busy")
            .with_header(RETRY_AFTER, budget::RETRY_AFTER)
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooLarge(limit) => Self::too_large(limit),
            Refused::TooSlow => Self::too_slow(),
            Refused::Broken => Self::bad_request("The request body broke off"),
            Refused::Busy(Busy) => Self::busy(),
        }
    }
}

impl From<db::Error> for ApiError {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Busy => Self::busy(),
            error => Self::internal(&error),
        }
    }
}

impl From<rusqlite::Error> for ApiError {
    fn from(error: rusqlite::Error) -> Self {
        db::Error::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(mut self) -> Response {
        self.body.insert("error".into(), json!(self.message));
        let mut response = Response::new(Body::from(Value::Object(self.body).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        if let Some(code) = self.code {
            headers.insert(ERROR_CODE, HeaderValue::from_static(code));
        }
        // A message may quote what the client sent: only visible ASCII goes into a header, and not all of it.
        let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let visible: String = self.message.chars().take(HEADER_TEXT).map(visible).collect();
        if let Ok(message) = HeaderValue::try_from(visible) {
            headers.insert(ERROR_MESSAGE, message);
        }
        headers.extend(self.headers);
        response
    }
}
