//! `HEAD|GET /{prefix}{id}/resolve/{rev}/{path}` (Hub API spec, 5.5): a file's headers, and its bytes.
//!
//! Answered with 200 and the bytes themselves, never a redirect: that every client can read.

use super::super::Call;
use super::super::resolve::{Content, DEFAULT_TYPE, Place, disposition, serve};
use super::access::{self, REPO_COMMIT, entry_not_found};
use crate::hub::local::auth::to_hex;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::git::Oid;
use crate::hub::local::repos::repository::Repository;
use crate::hub::local::repos::trees::{self, Entry, File, Node, Stored};
use crate::xet::Hash;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, InvalidHeaderValue, LINK, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

/// Answers for one file of a commit.
pub(super) async fn answer(
    call: &Call,
    repository: &Repository,
    revision: String,
    path: String,
) -> Result<Response, ApiError> {
    let commit = access::commit(call, repository, revision).await?;
    let tree = commit.tree;
    let found = call.site.shared.db.read(move |c| Ok::<_, ApiError>(trees::find(c, tree, &path)?)).await?;
    let missing = || entry_not_found(commit.oid);
    let entry = found.ok_or_else(missing)?;
    let Node::File(file) = &entry.node else { return Err(missing()) };
    let content = content(&entry, file);
    let headers = describe(call, repository, commit.oid, &entry, &content).map_err(|e| ApiError::internal(&e))?;
    serve(call, headers, &content).await
}

fn content(entry: &Entry, file: &File) -> Content {
    let (tag, place) = match &file.stored {
        Stored::Blob(row) => (entry.oid.to_string(), Place::Blob(*row)),
        Stored::Xet { hash, sha256 } => (to_hex(sha256), Place::Xet(*hash)),
    };
    Content { etag: format!("\"{tag}\""), size: file.size, place }
}

fn describe(
    call: &Call,
    repository: &Repository,
    commit: Oid,
    entry: &Entry,
    content: &Content,
) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::from_iter([
        (REPO_COMMIT, HeaderValue::try_from(commit.to_string())?),
        (ETAG, HeaderValue::try_from(&content.etag)?),
        (ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        // The answer to GET depends on it.
        (VARY, HeaderValue::from_static("accept")),
        (CONTENT_TYPE, DEFAULT_TYPE),
        // A browser must not run a page of a repository on this origin.
        (CONTENT_DISPOSITION, HeaderValue::try_from(disposition(entry.path.as_bytes()))?),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]);
    if let Place::Xet(hash) = content.place {
        headers.extend(xet_headers(call, repository, commit, hash, content)?);
    }
    Ok(headers)
}

/// Returns the headers that only files in Xet have.
fn xet_headers(
    call: &Call,
    repository: &Repository,
    commit: Oid,
    hash: Hash,
    content: &Content,
) -> Result<HeaderMap, InvalidHeaderValue> {
    let (base, cas) = (call.base(), call.site.cas_base(call.headers()));
    let (kind, id) = (repository.id.kind().route(), repository.id.path());
    let auth = format!("{base}/api/{kind}/{id}/xet-read-token/{commit}");
    let link =
        format!("<{auth}>; rel=\"xet-auth\", <{cas}/v1/reconstructions/{hash}>; rel=\"xet-reconstruction-info\"");
    Ok(HeaderMap::from_iter([
        (HeaderName::from_static("x-xet-hash"), HeaderValue::try_from(hash.to_string())?),
        (HeaderName::from_static("x-xet-refresh-route"), HeaderValue::try_from(auth)?),
        (HeaderName::from_static("x-linked-size"), HeaderValue::from(content.size)),
        (HeaderName::from_static("x-linked-etag"), HeaderValue::try_from(&content.etag)?),
        (LINK, HeaderValue::try_from(link)?),
    ]))
}
