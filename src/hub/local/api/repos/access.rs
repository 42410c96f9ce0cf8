//! Access to repositories: everybody reads public ones, and only the owner reads private ones. Of gated ones,
//! all others see only the description.
//!
//! A repository that a caller may not see is answered exactly as one that doesn't exist.

use super::super::Call;
use crate::hub::local::errors::ApiError;
use crate::hub::local::repos::RepositoryId;
use crate::hub::local::repos::git::Oid;
use crate::hub::local::repos::history::Commit;
use crate::hub::local::repos::repository::Repository;
use axum::http::{HeaderName, HeaderValue};

/// Commit that an answer is about.
pub(super) const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// Returns the repository that a caller names. Fails if there is none that the caller may see.
pub(super) async fn find(call: &Call, id: Option<RepositoryId>) -> Result<Repository, ApiError> {
    let found = match id {
        Some(id) => call.site.shared.db.read(move |c| Ok::<_, ApiError>(Repository::find(c, &id)?)).await?,
        None => None,
    };
    let is_visible = |found: &Repository| !found.private || call.caller.sees_private(found.id.namespace());
    found.filter(is_visible).ok_or_else(|| call.caller.repo_not_found())
}

/// Fails if the repository is gated and the caller isn't its owner.
pub(super) fn check_gate(call: &Call, repository: &Repository) -> Result<(), ApiError> {
    match repository.gated && !call.caller.sees_private(repository.id.namespace()) {
        true => Err(ApiError::gated()),
        false => Ok(()),
    }
}

/// Returns the commit that a revision names.
pub(super) async fn commit(call: &Call, repository: &Repository, revision: String) -> Result<Commit, ApiError> {
    find_commit(call, repository, revision).await?.ok_or_else(ApiError::revision_not_found)
}

/// Returns the commit that a revision names, or `None` if there is none.
pub(super) async fn find_commit(
    call: &Call,
    repository: &Repository,
    revision: String,
) -> Result<Option<Commit>, ApiError> {
    let row = repository.row;
    call.site.shared.db.read(move |c| Ok::<_, ApiError>(Commit::find(c, row, &revision)?)).await
}

/// Returns the error for a path that the commit doesn't have. Clients remember it for this commit.
pub(super) fn entry_not_found(commit: Oid) -> ApiError {
    let error = ApiError::entry_not_found();
    match HeaderValue::try_from(commit.to_string()) {
        Ok(commit) => error.with_header(REPO_COMMIT, commit),
        Err(_) => error,
    }
}
