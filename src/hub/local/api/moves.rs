//! `POST /api/repos/move` (Hub API spec, 3.5). The old name goes on to lead to the bucket until it is given to another.

use super::access::Bucket;
use super::json::text_member;
use super::{Call, read_json, reply};
use crate::hub::BucketId;
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use axum::http::Method;
use axum::response::Response;
use rusqlite::Transaction;
use serde_json::json;

/// Gives a bucket another name, in another namespace perhaps.
pub(super) async fn answer(call: Call, body: &mut Incoming) -> Result<Response, ApiError> {
    if call.method() != Method::POST {
        return Err(ApiError::method_not_allowed("POST"));
    }
    let body = read_json(body).await?;
    if text_member(&body, "type")?.as_deref() != Some("bucket") {
        return Err(ApiError::repo_not_found());
    }
    let (from, to) = (text_member(&body, "fromRepo")?, text_member(&body, "toRepo")?);
    let (from, to) = (parse(&call, from)?, parse(&call, to)?);
    let here = from.clone();
    let db = &call.site.shared.db;
    let bucket = db.read(move |c| Ok::<_, ApiError>(Bucket::find(c, here.namespace(), here.name())?)).await?;
    let bucket = bucket.filter(|bucket| bucket.visible_to(&call.caller)).ok_or_else(|| call.caller.repo_not_found())?;
    call.caller.may_write(from.namespace())?;
    call.caller.may_write(to.namespace())?;
    db.write(move |t| rename(t, bucket.id, &from, &to)).await?;
    reply(&json!({}))
}

fn parse(call: &Call, id: Option<String>) -> Result<BucketId, ApiError> {
    let id = id.unwrap_or_default();
    let (namespace, name) = id.split_once('/').unwrap_or((&id, ""));
    let namespace = call.caller.resolve(namespace)?;
    BucketId::new(&namespace, name).map_err(|e| ApiError::bad_request(e.to_string()))
}

fn rename(t: &Transaction<'_>, bucket: i64, from: &BucketId, to: &BucketId) -> Result<(), ApiError> {
    if from != to && Bucket::find(t, to.namespace(), to.name())?.is_some() {
        return Err(ApiError::conflict("There is a bucket of that name already"));
    }
    let renamed = t.execute(
        "UPDATE buckets SET namespace = ?1, name = ?2 WHERE id = ?3 AND namespace = ?4 AND name = ?5",
        (to.namespace(), to.name(), bucket, from.namespace(), from.name()),
    )?;
    if renamed == 0 {
        return Err(ApiError::repo_not_found());
    }
    t.execute(
        "INSERT INTO moved (namespace, name, bucket) VALUES (?1, ?2, ?3)
         ON CONFLICT (namespace, name) DO UPDATE SET bucket = excluded.bucket",
        (from.namespace(), from.name(), bucket),
    )?;
    t.execute("DELETE FROM moved WHERE namespace = ?1 AND name = ?2", (to.namespace(), to.name()))?;
    Ok(())
}
