//! Routes of repositories (Hub API spec, 5), one file per group. All of them read.
//!
//! The id has one or two segments. No repository has the name of a route, so that a path has one meaning.

mod access;
mod entries;
mod info;
mod resolve;

use super::{Call, decode, reply, tokens};
use crate::hub::RepoKind;
use crate::hub::local::body::Incoming;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::RepositoryId;
use crate::xet::Scope;
use access::find;
use axum::response::Response;

/// A request for something of a repository. Revisions and paths are decoded.
pub(super) struct Request {
    /// `None` if there can be no repository of this name.
    id: Option<RepositoryId>,
    route: Route,
}

/// Part of a repository that a request is for.
enum Route {
    Info {
        revision: Option<String>,
    },
    /// Tells whether the caller may read the files.
    AuthCheck,
    Refs,
    Commits {
        revision: String,
    },
    Tree {
        revision: String,
        path: String,
    },
    PathsInfo {
        revision: String,
    },
    ReadToken {
        revision: String,
    },
    Resolve {
        revision: String,
        path: String,
    },
}

impl Request {
    /// Parses a raw path; `None` if it is no route of repositories.
    pub(super) fn parse(path: &str) -> Result<Option<Self>, ApiError> {
        if let Some((kind, rest)) = path.strip_prefix("/api/").and_then(|rest| rest.split_once('/')) {
            let Some(kind) = RepoKind::of_route(kind) else { return Ok(None) };
            return Self::parse_api(kind, rest.strip_suffix('/').unwrap_or(rest));
        }
        let path = path.strip_prefix('/').unwrap_or(path);
        let prefixed = [RepoKind::Dataset, RepoKind::Space];
        let found = prefixed.into_iter().find_map(|kind| Some((kind, path.strip_prefix(kind.prefix())?)));
        let (kind, rest) = found.unwrap_or((RepoKind::Model, path));
        Self::parse_file(kind, rest)
    }

    /// Parses what follows the kind in a path of the API.
    fn parse_api(kind: RepoKind, rest: &str) -> Result<Option<Self>, ApiError> {
        let parts: Vec<&str> = rest.split('/').collect();
        let (namespace, name, tail) = match parts.as_slice() {
            [name] => ("", *name, &[][..]),
            [name, tail @ ..] if is_route(tail) => ("", *name, tail),
            [namespace, name, tail @ ..] => (*namespace, *name, tail),
            [] => return Ok(None),
        };
        let route = match tail {
            [] => Route::Info { revision: None },
            ["auth-check"] => Route::AuthCheck,
            ["refs"] => Route::Refs,
            ["revision", tail @ ..] => Route::Info { revision: Some(decode(&tail.join("/"))?) },
            ["commits", tail @ ..] => Route::Commits { revision: decode(&tail.join("/"))? },
            ["paths-info", tail @ ..] => Route::PathsInfo { revision: decode(&tail.join("/"))? },
            ["xet-read-token", tail @ ..] => Route::ReadToken { revision: decode(&tail.join("/"))? },
            ["tree", tail @ ..] => {
                let (revision, path) = revision_and_path(tail)?;
                Route::Tree { revision, path }
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { id: id(kind, namespace, name)?, route }))
    }

    /// Parses what follows the kind in the path of a file.
    fn parse_file(kind: RepoKind, rest: &str) -> Result<Option<Self>, ApiError> {
        let parts: Vec<&str> = rest.split('/').collect();
        let (namespace, name, tail) = match parts.as_slice() {
            [name, "resolve", tail @ ..] => ("", *name, tail),
            [namespace, name, "resolve", tail @ ..] => (*namespace, *name, tail),
            _ => return Ok(None),
        };
        let (revision, path) = revision_and_path(tail)?;
        if path.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { id: id(kind, namespace, name)?, route: Route::Resolve { revision, path } }))
    }
}

/// Returns true if these segments are a route of a repository, and not its name.
fn is_route(tail: &[&str]) -> bool {
    match tail {
        ["auth-check" | "refs"] => true,
        [first, _, ..] => {
            matches!(*first, "revision" | "commits" | "paths-info" | "xet-read-token" | "tree")
        }
        _ => false,
    }
}

fn id(kind: RepoKind, namespace: &str, name: &str) -> Result<Option<RepositoryId>, ApiError> {
    Ok(RepositoryId::new(kind, &decode(namespace)?, &decode(name)?).ok())
}

/// Splits raw segments into a revision and a path. A revision is one segment, or three as in `refs/heads/main`.
fn revision_and_path(tail: &[&str]) -> Result<(String, String), ApiError> {
    let count = if let ["refs", "heads" | "tags" | "pr" | "convert", _, ..] = tail { 3 } else { 1 };
    let (revision, path) = tail.split_at(count.min(tail.len()));
    Ok((decode(&revision.join("/"))?, decode(&path.join("/"))?))
}

impl Route {
    /// Methods that the route takes.
    fn methods(&self) -> &'static str {
        match self {
            Self::PathsInfo { .. } => "POST",
            _ => "GET, HEAD",
        }
    }
}

/// Answers a request.
pub(super) async fn answer(call: Call, body: &mut Incoming, request: Request) -> Result<Response, ApiError> {
    let repository = find(&call, request.id).await?;
    let methods = request.route.methods();
    if !methods.split(", ").any(|method| method == call.method()) {
        return Err(ApiError::method_not_allowed(methods));
    }
    if !matches!(request.route, Route::Info { .. }) {
        access::check_gate(&call, &repository)?;
    }
    match request.route {
        Route::Info { revision } => info::answer(&call, repository, revision).await,
        Route::AuthCheck => reply(&serde_json::json!({})),
        Route::Refs => info::refs(&call, &repository).await,
        Route::Commits { revision } => info::commits(&call, &repository, revision).await,
        Route::Tree { revision, path } => entries::tree(&call, &repository, revision, path).await,
        Route::PathsInfo { revision } => entries::paths_info(&call, body, &repository, revision).await,
        Route::ReadToken { revision } => {
            access::commit(&call, &repository, revision).await?;
            tokens::issue(&call, repository.row, Scope::Read)
        }
        Route::Resolve { revision, path } => resolve::answer(&call, &repository, revision, path).await,
    }
}
