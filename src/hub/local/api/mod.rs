//! The Hub's routes, matched on the raw path (Hub API spec, 1.5), one file per group.
//!
//! Only the fixed part of a path is split at slashes; what follows is an object key, which is percent-decoded once and
//! never normalised: `%2F`, `//` and `.` in it mean what they say. What isn't a route is 404 as JSON.

mod access;
mod batch;
mod buckets;
mod events;
mod folders;
mod json;
mod moves;
mod paths_info;
mod repos;
mod resolve;
#[cfg(test)]
mod tests;
mod tokens;
mod tree;
mod whoami;

use super::Site;
use super::body::Incoming;
use super::errors::ApiError;
use access::Caller;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
pub(super) use events::STREAMS;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Largest body of a request whose body is a small JSON object, in bytes.
const SMALL: usize = 64 * 1024;
/// Largest body of a batch or a paths-info request, in bytes: 10,000 operations of 1.6 kB each.
const LARGE: usize = 16 * 1024 * 1024;
/// Memory for all bodies being read or worked on, in MiB. Further ones wait unread.
pub(super) const BODIES_MIB: u32 = 128;

/// Answers a request to the Hub.
pub(super) async fn answer(site: &Arc<Site>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = Incoming::new(&parts.headers, body, &site.bodies);
    let outcome = match access::identify(site, &parts.headers).await {
        Ok(caller) => route(Call { site: Arc::clone(site), parts, caller }, &mut body).await,
        Err(error) => Err(error),
    };
    body.drain(LARGE).await;
    outcome.unwrap_or_else(IntoResponse::into_response)
}

/// A request on its way through a route, all but its body.
struct Call {
    site: Arc<Site>,
    parts: Parts,
    caller: Caller,
}

impl Call {
    fn method(&self) -> &Method {
        &self.parts.method
    }

    fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// Base URL for links.
    fn base(&self) -> String {
        self.site.base(&self.parts.headers)
    }

    /// Value of a query parameter; the last one counts.
    fn query(&self, name: &str) -> Option<String> {
        let pairs = url::form_urlencoded::parse(self.parts.uri.query().unwrap_or_default().as_bytes());
        pairs.filter(|(key, _)| key == name).last().map(|(_, value)| value.into_owned())
    }
}

/// The body as a JSON object; none at all counts as `{}`.
async fn read_json(body: &mut Incoming) -> Result<Map<String, Value>, ApiError> {
    let received = body.read(SMALL, 1).await?;
    if received.bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&received.bytes).map_err(|e| ApiError::bad_request(format!("malformed JSON: {e}")))
}

async fn route(call: Call, body: &mut Incoming) -> Result<Response, ApiError> {
    let path = call.parts.uri.path().to_owned();
    match path.as_str() {
        "/api/whoami-v2" => return whoami::answer(&call),
        "/api/repos/move" => return moves::answer(call, body).await,
        _ => {}
    }
    if let Some(rest) = path.strip_prefix("/api/buckets/") {
        let mut parts = rest.splitn(4, '/');
        let (namespace, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (verb, rest) = (parts.next(), parts.next());
        return match (namespace, name, verb, call.method().as_str()) {
            ("", ..) => Err(ApiError::not_found()),
            (_, "", None, "GET" | "HEAD") => buckets::list(call, namespace).await,
            // No bucket is named by one segment: there is none, whatever the method.
            (_, "", None, _) => Err(ApiError::repo_not_found()),
            (_, "", Some(_), _) => Err(ApiError::not_found()),
            _ => {
                let target = Target { namespace: decode(namespace)?, name: decode(name)? };
                bucket_route(call, body, target, verb, rest).await
            }
        };
    }
    if let Some(rest) = path.strip_prefix("/buckets/") {
        let mut parts = rest.splitn(4, '/');
        if let (Some(namespace), Some(name), Some("resolve"), Some(key)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
            && !namespace.is_empty()
            && !name.is_empty()
        {
            let target = Target { namespace: decode(namespace)?, name: decode(name)? };
            return resolve::answer(call, target, decode(key)?).await;
        }
    }
    if let Some(request) = repos::Request::parse(&path)? {
        return repos::answer(call, body, request).await;
    }
    if is_repository_path(&path) {
        return Err(ApiError::repo_not_found());
    }
    Err(ApiError::not_found())
}

/// A bucket as a request names it.
#[derive(Clone, Debug)]
struct Target {
    namespace: String,
    name: String,
}

async fn bucket_route(
    call: Call,
    body: &mut Incoming,
    target: Target,
    verb: Option<&str>,
    rest: Option<&str>,
) -> Result<Response, ApiError> {
    match (verb, rest, call.method().as_str()) {
        (None | Some(""), None, "GET" | "HEAD") => buckets::info(call, target).await,
        (None | Some(""), None, "POST") => buckets::create(call, body, target).await,
        (None | Some(""), None, "DELETE") => buckets::delete(call, target).await,
        (Some("tree"), prefix, "GET" | "HEAD") => {
            let prefix = decode(prefix.unwrap_or_default())?;
            tree::answer(call, target, prefix).await
        }
        (Some("paths-info"), None, "POST") => paths_info::answer(call, body, target).await,
        (Some("batch"), None, "POST") => batch::answer(call, body, target).await,
        (Some("xet-read-token"), rest, "GET" | "HEAD") if is_revision(rest) => {
            tokens::answer(call, target, crate::xet::Scope::Read).await
        }
        (Some("xet-write-token"), rest, "GET" | "HEAD") if is_revision(rest) => {
            tokens::answer(call, target, crate::xet::Scope::Write).await
        }
        (Some("settings"), None, "PUT") => buckets::settings(call, body, target).await,
        (Some("resource-group"), None, "GET" | "HEAD") => buckets::resource_group(call, target).await,
        (Some("resource-group"), None, "POST") => buckets::set_resource_group(call, body, target).await,
        (Some("events"), None, "GET" | "HEAD") => events::answer(call, target).await,
        (verb, rest, _) => Err(allowed(verb, rest).map_or_else(ApiError::not_found, ApiError::method_not_allowed)),
    }
}

/// Returns the methods that a route of a bucket takes, or `None` if there is no such route.
fn allowed(verb: Option<&str>, rest: Option<&str>) -> Option<&'static str> {
    match (verb, rest) {
        (None | Some(""), None) => Some("GET, HEAD, POST, DELETE"),
        (Some("paths-info" | "batch"), None) => Some("POST"),
        (Some("settings"), None) => Some("PUT"),
        (Some("resource-group"), None) => Some("GET, HEAD, POST"),
        (Some("events"), None) | (Some("tree"), _) => Some("GET, HEAD"),
        (Some("xet-read-token" | "xet-write-token"), rest) if is_revision(rest) => Some("GET, HEAD"),
        _ => None,
    }
}

/// Returns true if `rest` is nothing or one path segment. Some clients append a revision to a token route; buckets
/// have none, and it is
/// ignored.
fn is_revision(rest: Option<&str>) -> bool {
    rest.is_none_or(|rest| !rest.contains('/'))
}

/// Returns true if a path would be that of a repository, but names none that there can be.
fn is_repository_path(path: &str) -> bool {
    let api = path.strip_prefix("/api/").and_then(|rest| rest.split_once('/'));
    api.is_some_and(|(kind, _)| matches!(kind, "models" | "datasets" | "spaces" | "kernels"))
        || path.contains("/resolve/")
}

/// Percent-decodes a part of a raw path.
fn decode(raw: &str) -> Result<String, ApiError> {
    let text = percent_decode_str(raw).decode_utf8().map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
    Ok(text.into_owned())
}

/// A JSON answer.
fn reply(value: &impl serde::Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(value).map_err(|e| ApiError::internal(&e))?;
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}
