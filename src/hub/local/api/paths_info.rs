//! `POST …/paths-info` (Hub API spec, 4.2): the files among some paths.

use super::access::{Found, find};
use super::tree::Object;
use super::{Call, LARGE, Target, reply};
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use axum::response::Response;
use rusqlite::Connection;
use serde::Deserialize;

/// Paths per request, as documented for the Hub.
const MAX_PATHS: usize = 2000;

#[derive(Deserialize)]
struct Question {
    paths: Vec<String>,
}

/// Answers the entries of those paths that are files, in the order asked; all others are left out.
pub(super) async fn answer(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let received = body.read(LARGE, 1).await?;
    let question: Question =
        serde_json::from_slice(&received.bytes).map_err(|e| ApiError::bad_request(format!("malformed JSON: {e}")))?;
    if question.paths.len() > MAX_PATHS {
        return Err(ApiError::bad_request(format!("more than {MAX_PATHS} paths")));
    }
    let objects = call.site.shared.db.read(move |c| look_up(c, bucket.id, &question.paths)).await?;
    reply(&objects.iter().map(Object::describe).collect::<Vec<_>>())
}

fn look_up(connection: &Connection, bucket: i64, paths: &[String]) -> Result<Vec<Object>, ApiError> {
    let found = paths.iter().filter_map(|path| Object::find(connection, bucket, path.as_bytes()).transpose());
    Ok(found.collect::<Result<_, _>>()?)
}
