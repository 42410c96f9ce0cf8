//! `GET /api/{kinds}/{id}` and `…/revision/{rev}`, `…/refs` and `…/commits/{rev}` (Hub API spec, 5.1, 5.2, 5.6).

use super::super::json::{cursor, iso_time, link_next};
use super::super::tree::{flag, page_limit};
use super::super::{Call, reply};
use super::access::{self, REPO_COMMIT};
use crate::hub::RepoKind;
use crate::hub::local::auth::to_hex;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::git::{Oid, pointer};
use crate::hub::local::repos::history::{self, Commit, MAIN, Ref};
use crate::hub::local::repos::repository::Repository;
use crate::hub::local::repos::trees::{self, Entry, Listing, Stored};
use axum::http::HeaderValue;
use axum::response::Response;
use rusqlite::Connection;
use serde_json::{Map, Value, json};

/// Most commits on a page.
const COMMITS: usize = 100;

/// Answers with the description of a repository at a revision. Without a revision, a repository that has no branch
/// `main` is described without its files.
pub(super) async fn answer(
    call: &Call,
    repository: Repository,
    revision: Option<String>,
) -> Result<Response, ApiError> {
    let commit = match revision {
        Some(revision) => Some(access::commit(call, &repository, revision).await?),
        None => access::find_commit(call, &repository, MAIN.to_owned()).await?,
    };
    let expand = Expand::of(call);
    let blobs = flag(call, "blobs", false)?;
    let oid = commit.as_ref().map(|commit| commit.oid);
    let described =
        call.site.shared.db.read(move |c| describe(c, &repository, commit.as_ref(), blobs, &expand)).await?;
    let mut response = reply(&described)?;
    if let Some(oid) = oid {
        let oid = HeaderValue::try_from(oid.to_string()).map_err(|e| ApiError::internal(&e))?;
        response.headers_mut().insert(REPO_COMMIT, oid);
    }
    Ok(response)
}

/// The members that a request asks for with `expand`; none: all.
struct Expand(Vec<String>);

impl Expand {
    fn of(call: &Call) -> Self {
        let pairs = url::form_urlencoded::parse(call.parts.uri.query().unwrap_or_default().as_bytes());
        let wanted = pairs.filter(|(name, _)| matches!(&**name, "expand" | "expand[]"));
        Self(wanted.map(|(_, value)| value.into_owned()).collect())
    }

    fn wants(&self, member: &str) -> bool {
        self.0.is_empty() || matches!(member, "_id" | "id") || self.0.iter().any(|wanted| wanted == member)
    }
}

fn describe(
    connection: &Connection,
    repository: &Repository,
    commit: Option<&Commit>,
    blobs: bool,
    expand: &Expand,
) -> Result<Value, ApiError> {
    let id = repository.id.path();
    let namespace = repository.id.namespace();
    let mut members = json!({
        "_id": format!("{:024x}", repository.row),
        "id": id,
        "author": if namespace.is_empty() { None } else { Some(namespace) },
        "sha": commit.map(|commit| commit.oid.to_string()),
        "lastModified": iso_time(commit.map_or(repository.created, |commit| commit.created)),
        "createdAt": iso_time(repository.created),
        "private": repository.private,
        "gated": if repository.gated { json!("manual") } else { json!(false) },
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": commit.map_or(0, |commit| commit.size),
    });
    if repository.id.kind() == RepoKind::Model {
        members["modelId"] = json!(id);
    }
    if expand.wants("siblings") {
        members["siblings"] = commit.map_or(Ok(json!([])), |commit| siblings(connection, commit.tree, blobs))?;
    }
    if let Value::Object(members) = &mut members {
        members.retain(|name, _| expand.wants(name));
    }
    Ok(members)
}

/// Returns all files of a tree.
fn siblings(connection: &Connection, tree: i64, blobs: bool) -> Result<Value, ApiError> {
    let listing = Listing { tree, path: "", recursive: true, limit: usize::MAX };
    let page = trees::list(connection, &listing, "")?;
    Ok(page.entries.iter().filter_map(|entry| sibling(entry, blobs)).collect())
}

fn sibling(entry: &Entry, blobs: bool) -> Option<Value> {
    let file = entry.file()?;
    let mut members = Map::from_iter([("rfilename".to_owned(), json!(entry.path))]);
    if blobs {
        members.insert("blobId".to_owned(), json!(entry.oid.to_string()));
        members.insert("size".to_owned(), json!(file.size));
        if let Stored::Xet { sha256, .. } = &file.stored {
            let pointer = pointer(sha256, file.size).len();
            let lfs = json!({"sha256": to_hex(sha256), "size": file.size, "pointerSize": pointer});
            members.insert("lfs".to_owned(), lfs);
        }
    }
    Some(members.into())
}

/// Answers with the branches and tags.
pub(super) async fn refs(call: &Call, repository: &Repository) -> Result<Response, ApiError> {
    let row = repository.row;
    let refs = call.site.shared.db.read(move |c| Ok::<_, ApiError>(history::refs(c, row)?)).await?;
    let of_kind =
        |wanted: &str| -> Value { refs.iter().filter(|(kind, ..)| kind == wanted).map(describe_ref).collect() };
    let mut members = json!({"branches": of_kind("heads"), "converts": [], "tags": of_kind("tags")});
    if call.query("include_prs").is_some() {
        members["pullRequests"] = json!([]);
    }
    reply(&members)
}

fn describe_ref((kind, name, commit): &Ref) -> Value {
    json!({"name": name, "ref": format!("refs/{kind}/{name}"), "targetCommit": commit.to_string()})
}

/// Answers with a page of the history. A cursor is the id of the commit that the page starts with.
pub(super) async fn commits(call: &Call, repository: &Repository, revision: String) -> Result<Response, ApiError> {
    let head = access::commit(call, repository, revision).await?;
    let limit = page_limit(call)?.min(COMMITS);
    let start = match cursor(call)? {
        Some(bytes) => Some(Oid(bytes.try_into().map_err(|_| ApiError::bad_request("malformed cursor"))?)),
        None => None,
    };
    let row = repository.row;
    let mut commits = call
        .site
        .shared
        .db
        .read(move |c| {
            let from = match start {
                Some(oid) => Commit::by_oid(c, row, oid)?.ok_or_else(|| ApiError::bad_request("malformed cursor"))?,
                None => head,
            };
            Ok::<_, ApiError>(history::log(c, from, limit + 1)?)
        })
        .await?;
    let next = (commits.len() > limit).then(|| commits.pop()).flatten();
    let mut response = reply(&commits.iter().map(describe_commit).collect::<Vec<_>>())?;
    if let Some(next) = next {
        link_next(call, &mut response, &next.oid.0)?;
    }
    Ok(response)
}

fn describe_commit(commit: &Commit) -> Value {
    let author = commit.author.split(" <").next().unwrap_or_default();
    let message = commit.message.strip_prefix(commit.title()).unwrap_or_default().trim();
    json!({
        "id": commit.oid.to_string(),
        "title": commit.title(),
        "message": message,
        "authors": [{"user": author}],
        "date": iso_time(commit.created),
    })
}
