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

/// Paths that a request asks for, and the details.
#[derive(Deserialize)]
pub(super) struct Query {
    pub(super) paths: Vec<String>,
    /// For repositories: the last commit of each path too.
    #[serde(default)]
    pub(super) expand: bool,
}

impl Query {
    /// Reads the body of a request, as JSON or as a form.
    pub(super) async fn read(call: &Call, body: &mut Incoming) -> Result<Self, ApiError> {
        let received = body.read(LARGE, 1).await?;
        let query = match is_form(call.headers()) {
            true => Self::of_form(&received.bytes)?,
            false => serde_json::from_slice(&received.bytes)
                .map_err(|e| ApiError::bad_request(format!("malformed JSON: {e}")))?,
        };
        match query.paths.len() > MAX_PATHS {
            true => Err(ApiError::bad_request(format!("more than {MAX_PATHS} paths"))),
            false => Ok(query),
        }
    }

    /// Reads a form: one path more than [`MAX_PATHS`] at most. Unknown fields are ignored.
    fn of_form(body: &[u8]) -> Result<Self, ApiError> {
        let mut query = Self { paths: Vec::new(), expand: false };
        for (name, value) in url::form_urlencoded::parse(body) {
            match &*name {
                "paths" if query.paths.len() <= MAX_PATHS => query.paths.push(value.into_owned()),
                "expand" => query.expand = matches!(&*value, "true" | "True" | "1"),
                _ => {}
            }
        }
        if query.paths.is_empty() { Err(ApiError::bad_request("the form has no field \"paths\"")) } else { Ok(query) }
    }
}

/// Answers the entries of those paths that are files, in the order asked; all others are left out.
pub(super) async fn answer(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let paths = Query::read(&call, body).await?.paths;
    let objects = call.site.shared.db.read(move |c| look_up(c, bucket.id, &paths)).await?;
    reply(&objects.iter().map(Object::describe).collect::<Vec<_>>())
}

/// Returns true if the body is a form, as repositories take it and some clients send it for buckets too.
fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn look_up(connection: &Connection, bucket: i64, paths: &[String]) -> Result<Vec<Object>, ApiError> {
    let found = paths.iter().filter_map(|path| Object::find(connection, bucket, path.as_bytes()).transpose());
    Ok(found.collect::<Result<_, _>>()?)
}
