//! `GET …/xet-read-token` and `…/xet-write-token` (Hub API spec, 4.4): answered in the body and in
//! headers, as clients read either.

use super::access::{Found, find};
use super::{Call, Target, reply};
use crate::hub::local::auth::{CAS_TOKEN_LIFE, CasGrant, now_seconds};
use crate::hub::local::errors::ApiError;
use crate::xet::Scope;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use serde_json::json;

/// A CAS token for one bucket.
pub(super) async fn answer(call: Call, target: Target, scope: Scope) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    if scope == Scope::Write {
        call.caller.may_write(&bucket.namespace)?;
    }
    issue(&call, bucket.id, scope)
}

/// Answers with a CAS token for the content in this row.
pub(super) fn issue(call: &Call, row: i64, scope: Scope) -> Result<Response, ApiError> {
    let expires = now_seconds() + CAS_TOKEN_LIFE;
    let sealed = if is_expired_for_test(call) { 1 } else { expires };
    let token = call
        .site
        .shared
        .auth
        .cas_token(CasGrant { bucket: row, scope, expires: sealed })
        .map_err(|e| ApiError::internal(&e))?;
    let url = call.site.cas_base(call.headers());
    let mut response = reply(&json!({"casUrl": url, "exp": expires, "accessToken": token}))?;
    let headers = response.headers_mut();
    for (name, value) in [("x-xet-cas-url", &url), ("x-xet-access-token", &token)] {
        let value = HeaderValue::try_from(value.as_str()).map_err(|e| ApiError::internal(&e))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    headers.insert(HeaderName::from_static("x-xet-token-expiration"), HeaderValue::from(expires));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Returns true if a test wants a token that has expired already, although the response says that it is valid.
#[cfg(feature = "faults")]
fn is_expired_for_test(call: &Call) -> bool {
    call.parts.extensions.get::<crate::hub::local::faults::ExpiredToken>().is_some()
}

#[cfg(not(feature = "faults"))]
fn is_expired_for_test(_: &Call) -> bool {
    false
}
