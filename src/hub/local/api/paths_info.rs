//! `POST …/paths-info` (Hub API spec, 4.2): the files among some paths.

use super::access::{Found, find};
use super::tree::Object;
use super::{Call, LARGE, Target, reply};
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use rusqlite::Connection;
use serde::Deserialize;

/// Paths per request, as documented for the Hub.
const MAX_PATHS: usize = 2000;

#[derive(Deserialize)]
struct Query {
    paths: Vec<String>,
}

/// Answers the entries of those paths that are files, in the order asked; all others are left out.
pub(super) async fn answer(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let received = body.read(LARGE, 1).await?;
    let paths = match is_form(call.headers()) {
        true => form_paths(&received.bytes)?,
        false => {
            let query: Query = serde_json::from_slice(&received.bytes)
                .map_err(|e| ApiError::bad_request(format!("malformed JSON: {e}")))?;
            query.paths
        }
    };
    if paths.len() > MAX_PATHS {
        return Err(ApiError::bad_request(format!("more than {MAX_PATHS} paths")));
    }
    let objects = call.site.shared.db.read(move |c| look_up(c, bucket.id, &paths)).await?;
    reply(&objects.iter().map(Object::describe).collect::<Vec<_>>())
}

/// Returns true if the body is a form, as repositories take it and some clients send it for buckets too.
fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Returns the fields `paths` of a form: one more than [`MAX_PATHS`] at most. Other fields are ignored.
fn form_paths(body: &[u8]) -> Result<Vec<String>, ApiError> {
    let paths = url::form_urlencoded::parse(body).filter(|(name, _)| name == "paths");
    let paths: Vec<_> = paths.map(|(_, path)| path.into_owned()).take(MAX_PATHS + 1).collect();
    if paths.is_empty() { Err(ApiError::bad_request("the form has no field \"paths\"")) } else { Ok(paths) }
}

fn look_up(connection: &Connection, bucket: i64, paths: &[String]) -> Result<Vec<Object>, ApiError> {
    let found = paths.iter().filter_map(|path| Object::find(connection, bucket, path.as_bytes()).transpose());
    Ok(found.collect::<Result<_, _>>()?)
}
