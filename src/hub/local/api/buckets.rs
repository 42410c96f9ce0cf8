//! Making, showing, listing, changing and deleting buckets (Hub API spec, 3.1 to 3.4, 3.6, 3.7).

use super::access::{Bucket, COLUMNS, Found, find};
use super::json::{cursor, iso_time, link_next, privacy, text_member};
use super::{Call, Target, decode, read_json, reply};
use crate::hub::BucketId;
use crate::hub::local::accounts::now_millis;
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use axum::response::Response;
use rusqlite::{Connection, Transaction};
use serde_json::{Value, json};

/// Regions that clients may ask for; there is no difference here.
const REGIONS: [&str; 2] = ["us", "eu"];

/// `POST /api/buckets/{ns}/{name}`.
pub(super) async fn create(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let namespace = call.caller.resolve(&target.namespace)?;
    call.caller.may_write(&namespace)?;
    let id = BucketId::new(&namespace, &target.name).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let body = read_json(body).await?;
    let private = privacy(&body)?.unwrap_or(false);
    let resource_group = text_member(&body, "resourceGroupId")?;
    let region = text_member(&body, "region")?;
    if region.as_ref().is_some_and(|region| !REGIONS.contains(&region.as_str())) {
        return Err(ApiError::bad_request("\"region\" must be \"us\" or \"eu\""));
    }
    let url = format!("{}/buckets/{id}", call.base());
    let made = call.site.shared.db.write(move |t| insert(t, &id, private, region, resource_group)).await?;
    match made {
        Some(bucket) => reply(&with_url(describe(&bucket), url)),
        None => Err(ApiError::conflict("You already created this bucket").with("url", url)),
    }
}

/// Adds a bucket, `None` where there is one. A name that was moved away is free again.
fn insert(
    t: &Transaction<'_>,
    id: &BucketId,
    private: bool,
    region: Option<String>,
    resource_group: Option<String>,
) -> Result<Option<Bucket>, ApiError> {
    let added = t.execute(
        "INSERT INTO buckets (namespace, name, private, created, updated, region, resource_group)
         VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        (id.namespace(), id.name(), private, now_millis(), region, resource_group),
    )?;
    if added == 0 {
        return Ok(None);
    }
    t.execute("DELETE FROM moved WHERE namespace = ?1 AND name = ?2", (id.namespace(), id.name()))?;
    Ok(Bucket::find(t, id.namespace(), id.name())?)
}

/// `GET /api/buckets/{ns}/{name}`.
pub(super) async fn info(call: Call, target: Target) -> Result<Response, ApiError> {
    match find(&call, &target).await? {
        Found::Here(bucket) => reply(&describe(&bucket)),
        Found::Elsewhere(redirect) => Ok(redirect),
    }
}

/// `DELETE /api/buckets/{ns}/{name}`.
pub(super) async fn delete(call: Call, target: Target) -> Result<Response, ApiError> {
    let Found::Here(bucket) = find(&call, &target).await? else { return Err(ApiError::repo_not_found()) };
    call.caller.may_write(&bucket.namespace)?;
    // By row, not by name: the name may have become another bucket's.
    let gone = move |t: &Transaction<'_>| {
        Ok::<_, ApiError>(t.execute("DELETE FROM buckets WHERE id = ?1 AND kind = 0", [bucket.id])?)
    };
    match call.site.shared.db.write(gone).await? {
        0 => Err(ApiError::repo_not_found()),
        _ => reply(&json!({})),
    }
}

/// `PUT /api/buckets/{ns}/{name}/settings`.
pub(super) async fn settings(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    call.caller.may_write(&bucket.namespace)?;
    let body = read_json(body).await?;
    let private = privacy(&body)?.unwrap_or(bucket.private);
    change(&call, move |t| t.execute("UPDATE buckets SET private = ?1 WHERE id = ?2", (private, bucket.id))).await?;
    reply(&json!({"private": private}))
}

/// `GET /api/buckets/{ns}/{name}/resource-group`.
pub(super) async fn resource_group(call: Call, target: Target) -> Result<Response, ApiError> {
    match find(&call, &target).await? {
        Found::Here(bucket) => reply(&group_json(bucket.resource_group.as_deref())),
        Found::Elsewhere(redirect) => Ok(redirect),
    }
}

/// `POST /api/buckets/{ns}/{name}/resource-group`. Kept and shown; it has no effect on access.
pub(super) async fn set_resource_group(call: Call, body: &mut Incoming, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    call.caller.may_write(&bucket.namespace)?;
    let body = read_json(body).await?;
    let group = text_member(&body, "resourceGroupId")?;
    let stored = group.clone();
    change(&call, move |t| t.execute("UPDATE buckets SET resource_group = ?1 WHERE id = ?2", (stored, bucket.id)))
        .await?;
    reply(&group_json(group.as_deref()))
}

/// Changes one bucket's row; 404 if it has just been deleted.
async fn change(
    call: &Call,
    update: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<usize> + Send + 'static,
) -> Result<(), ApiError> {
    match call.site.shared.db.write(move |t| Ok::<_, ApiError>(update(t)?)).await? {
        0 => Err(ApiError::repo_not_found()),
        _ => Ok(()),
    }
}

/// `GET /api/buckets/{ns}`.
pub(super) async fn list(call: Call, namespace: &str) -> Result<Response, ApiError> {
    let namespace = call.caller.resolve(&decode(namespace)?)?;
    let private = call.caller.sees_private(&namespace);
    let is_own = call.caller.name() == Some(&namespace);
    let search = call.query("search").unwrap_or_default();
    let after = match cursor(&call)? {
        Some(bytes) => String::from_utf8(bytes).map_err(|_| ApiError::bad_request("malformed cursor"))?,
        None => String::new(),
    };
    let size = call.site.page_size();
    // One more than a page says whether there is a further one.
    let db = &call.site.shared.db;
    let listed = db.read(move |c| list_namespace(c, &namespace, private, &search, &after, size + 1)).await?;
    // Not the 401 for a bucket: no bucket was named. The process's own namespace needs no user in the database.
    let mut buckets = listed.or_else(|| is_own.then(Vec::new)).ok_or_else(ApiError::repo_not_found)?;
    let more = buckets.len() > size;
    buckets.truncate(size);
    let mut response = reply(&buckets.iter().map(describe).collect::<Vec<_>>())?;
    if let (true, Some(last)) = (more, buckets.last()) {
        link_next(&call, &mut response, last.name.as_bytes())?;
    }
    Ok(response)
}

/// Returns the buckets of a namespace, as [`select`] does, or `None` if there is no such namespace: neither a user
/// nor a bucket that the
/// caller may see.
fn list_namespace(
    connection: &Connection,
    namespace: &str,
    private: bool,
    search: &str,
    after: &str,
    limit: usize,
) -> Result<Option<Vec<Bucket>>, ApiError> {
    let buckets = select(connection, namespace, private, search, after, limit)?;
    let sql = "SELECT EXISTS (SELECT 1 FROM users WHERE name = ?1)
               OR EXISTS (SELECT 1 FROM buckets WHERE namespace = ?1 AND kind = 0 AND (?2 OR NOT private))";
    let is_known = || connection.prepare_cached(sql)?.query_row((namespace, private), |row| row.get(0));
    Ok(if !buckets.is_empty() || is_known()? { Some(buckets) } else { None })
}

fn select(
    connection: &Connection,
    namespace: &str,
    private: bool,
    search: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<Bucket>, ApiError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM buckets WHERE namespace = ?1 AND kind = 0 AND name > ?2 AND (?3 OR NOT private)
         AND instr(name, ?4) > 0 ORDER BY name LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map((namespace, after, private, search, limit), Bucket::from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn describe(bucket: &Bucket) -> Value {
    json!({
        "id": format!("{}/{}", bucket.namespace, bucket.name),
        "author": bucket.namespace,
        "private": bucket.private,
        "visibility": if bucket.private { "private" } else { "public" },
        "createdAt": iso_time(bucket.created),
        "updatedAt": iso_time(bucket.updated),
        "size": bucket.size,
        "totalFiles": bucket.files,
        "region": bucket.region,
        "resourceGroup": group_json(bucket.resource_group.as_deref()),
    })
}

fn group_json(group: Option<&str>) -> Value {
    group.map_or(Value::Null, |id| json!({"id": id}))
}

fn with_url(mut description: Value, url: String) -> Value {
    description["url"] = Value::String(url);
    description
}
