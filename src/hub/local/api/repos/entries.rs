//! `GET …/tree/{rev}[/{path}]` and `POST …/paths-info/{rev}` (Hub API spec, 5.3, 5.4): entries of a commit.
//!
//! A cursor names the commit of the first page and the last entry shown: a listing stays that of one commit, even if
//! the branch moves on meanwhile.

use super::super::json::{cursor, iso_time, link_next};
use super::super::paths_info::Query;
use super::super::tree::{flag, page_limit};
use super::super::{Call, reply};
use super::access::{self, REPO_COMMIT, entry_not_found};
use crate::hub::local::auth::to_hex;
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::git::{Oid, pointer};
use crate::hub::local::repos::history::{self, Commit};
use crate::hub::local::repos::repository::Repository;
use crate::hub::local::repos::trees::{self, Entry, Listing, Node, Stored};
use axum::http::HeaderValue;
use axum::response::Response;
use rusqlite::Connection;
use serde_json::{Value, json};

/// Most entries on a page if the last commit of each is asked for, which costs a walk through the history.
const EXPANDED: usize = 100;

/// A page of a listing, as a request asks for it.
struct TreeQuery {
    path: String,
    recursive: bool,
    expand: bool,
    limit: usize,
    after: String,
}

/// Answers with a page of the entries of a folder.
pub(super) async fn tree(
    call: &Call,
    repository: &Repository,
    revision: String,
    path: String,
) -> Result<Response, ApiError> {
    let mut commit = access::commit(call, repository, revision).await?;
    let (recursive, expand) = (flag(call, "recursive", false)?, flag(call, "expand", false)?);
    let limit = page_limit(call)?.min(if expand { EXPANDED } else { usize::MAX });
    let path = path.strip_suffix('/').unwrap_or(&path).to_owned();
    let mut wanted = TreeQuery { path, recursive, expand, limit, after: String::new() };
    if let Some(cursor) = cursor(call)? {
        let (oid, after) = parse_cursor(&cursor).ok_or_else(|| ApiError::bad_request("malformed cursor"))?;
        wanted.after = after;
        commit = access::commit(call, repository, oid.to_string()).await?;
    }
    let oid = commit.oid;
    let (entries, last) = call.site.shared.db.read(move |c| wanted.run(c, &commit)).await?;
    let mut response = reply(&entries)?;
    if let Some(last) = last {
        link_next(call, &mut response, &[&oid.0, last.as_bytes()].concat())?;
    }
    let oid = HeaderValue::try_from(oid.to_string()).map_err(|e| ApiError::internal(&e))?;
    response.headers_mut().insert(REPO_COMMIT, oid);
    Ok(response)
}

/// Splits a cursor into its commit and the place of the last entry shown.
fn parse_cursor(cursor: &[u8]) -> Option<(Oid, String)> {
    let (oid, after) = cursor.split_first_chunk()?;
    Some((Oid(*oid), String::from_utf8(after.to_vec()).ok()?))
}

impl TreeQuery {
    /// Returns the entries, and the place of the last one if there are more.
    fn run(&self, connection: &Connection, commit: &Commit) -> Result<(Vec<Value>, Option<String>), ApiError> {
        let tree = trees::find_folder(connection, commit.tree, &self.path)?;
        let tree = tree.ok_or_else(|| entry_not_found(commit.oid))?;
        let listing = Listing { tree, path: &self.path, recursive: self.recursive, limit: self.limit };
        let page = trees::list(connection, &listing, &self.after)?;
        let last = page.entries.last().filter(|_| page.has_more).map(Entry::place);
        Ok((describe_all(connection, commit, &page.entries, self.expand)?, last))
    }
}

/// Answers with the entries at some paths, in the order asked. Missing ones are left out.
pub(super) async fn paths_info(
    call: &Call,
    body: &mut Incoming,
    repository: &Repository,
    revision: String,
) -> Result<Response, ApiError> {
    let commit = access::commit(call, repository, revision).await?;
    let query = Query::read(call, body).await?;
    let find = move |connection: &Connection| {
        let paths = query.paths.iter().map(|path| path.trim_end_matches('/'));
        let found = paths.filter_map(|path| trees::find(connection, commit.tree, path).transpose());
        let found: Vec<Entry> = found.collect::<Result<_, _>>()?;
        describe_all(connection, &commit, &found, query.expand)
    };
    reply(&call.site.shared.db.read(find).await?)
}

fn describe_all(
    connection: &Connection,
    commit: &Commit,
    entries: &[Entry],
    expand: bool,
) -> Result<Vec<Value>, ApiError> {
    let mut described: Vec<Value> = entries.iter().map(describe).collect();
    if expand {
        let last = history::last_commits(connection, commit, entries)?;
        for (entry, last) in described.iter_mut().zip(last) {
            entry["lastCommit"] =
                json!({"id": last.oid.to_string(), "title": last.title(), "date": iso_time(last.created)});
        }
    }
    Ok(described)
}

fn describe(entry: &Entry) -> Value {
    let (path, oid) = (&entry.path, entry.oid.to_string());
    let file = match &entry.node {
        Node::Folder(_) => return json!({"type": "directory", "oid": oid, "size": 0, "path": path}),
        Node::File(file) => file,
    };
    let mut described = json!({"type": "file", "oid": oid, "size": file.size, "path": path});
    if let Stored::Xet { hash, sha256 } = &file.stored {
        let pointer = pointer(sha256, file.size).len();
        described["lfs"] = json!({"oid": to_hex(sha256), "size": file.size, "pointerSize": pointer});
        described["xetHash"] = json!(hash);
    }
    described
}
