//! `hugbucket hub import`: puts a folder into a repository as one commit.
//!
//! Names are read first ([`super::folder`]), then contents are stored ([`super::content`]), then one transaction makes
//! the commit and moves the branch ([`super::record`]). Other processes may serve the directory meanwhile: they see the
//! repository as it was, or the whole commit.

use super::content::ContentWriter;
use super::error::ImportError;
use super::folder::{self, Found};
use super::history::MAIN;
use super::id::RepositoryId;
use super::record::{self, Imported, Record, Snapshot};
use crate::hub::RepoKind;
use crate::hub::local::auth::{CAS_TOKEN_LIFE, CasGrant, now_seconds, to_hex};
use crate::hub::local::{LocalHub, ServeOptions, Server, Shared, auth};
use crate::hub::process_client;
use crate::xet::http::{self, HttpCas};
use crate::xet::{self, CasToken, Scope, TokenSource, UploadSession, upload};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

/// Longest name of a branch or tag in bytes.
const LONGEST_REF: usize = 255;

/// Options of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Branch; `main` if there is none.
    pub revision: Option<String>,
    /// Tag that the commit gets too. A tag that exists is moved.
    pub tag: Option<String>,
    /// Only the owner sees the repository. Without this, a private repository stays private.
    pub private: bool,
    /// Only the owner reads files. Without this, a gated repository stays gated.
    pub gated: bool,
}

impl LocalHub {
    /// Puts a folder into a repository as one commit, whose files are exactly those of the folder. Creates the
    /// repository and the branch if they are missing.
    pub async fn import_folder(
        &self,
        folder: &Path,
        id: &RepositoryId,
        options: &ImportOptions,
    ) -> Result<Imported, ImportError> {
        let branch = options.revision.clone().unwrap_or_else(|| MAIN.to_owned());
        for name in std::iter::once(&branch).chain(&options.tag) {
            check_ref(name)?;
        }
        let (scanned, shared) = (folder.to_owned(), Arc::clone(&self.shared));
        let found = tokio::task::spawn_blocking(move || folder::scan(&scanned, &shared.dir)).await;
        let found = found.map_err(|error| ImportError::hub(error.to_string()))??;
        let named = id.clone();
        let row = self.shared.db.write(move |t| record::content_row(t, &named)).await?;
        let snapshot = self.store(row, id.kind(), found).await?;
        let (private, gated) = (options.private, options.gated);
        let record = Record { row, id: id.clone(), private, gated, branch, tag: options.tag.clone(), snapshot };
        self.shared.db.write(move |t| record.write(t)).await
    }

    /// Stores the contents of files durably. Large ones take the way of all uploads, through the CAS of this Hub at a
    /// port of its own, where they are verified.
    async fn store(&self, row: i64, kind: RepoKind, found: Vec<Found>) -> Result<Snapshot, ImportError> {
        let mut secret = [0; 32];
        auth::random(&mut secret)?;
        let options = ServeOptions { process_token: Some(to_hex(&secret)), ..ServeOptions::default() };
        let server = self.serve((Ipv4Addr::LOCALHOST, 0).into(), options).await?;
        let stored = self.store_at(&server, row, kind, found).await;
        server.stop().await;
        stored
    }

    async fn store_at(
        &self,
        server: &Server,
        row: i64,
        kind: RepoKind,
        found: Vec<Found>,
    ) -> Result<Snapshot, ImportError> {
        let url = format!("http://{}{}", server.address(), crate::hub::local::CAS_PREFIX);
        let tokens = Arc::new(OwnTokens { shared: Arc::clone(&self.shared), row, url });
        let cas = HttpCas::new(process_client()?, tokens, http::Options::default());
        let session = UploadSession::new(Arc::new(cas), upload::Options::default());
        let mut writer = ContentWriter::new(self.shared.db.clone(), session, kind);
        let mut files = Vec::with_capacity(found.len());
        for found in found {
            let content = writer.add(&found).await?;
            files.push((found.path, found.executable, content));
        }
        writer.finish().await?;
        Ok(Snapshot::new(files))
    }
}

/// CAS tokens for the content of one repository.
struct OwnTokens {
    shared: Arc<Shared>,
    /// Row of the content.
    row: i64,
    url: String,
}

#[async_trait::async_trait]
impl TokenSource for OwnTokens {
    async fn token(&self, scope: Scope, _refused: Option<&CasToken>) -> Result<CasToken, xet::Error> {
        let expires = now_seconds() + CAS_TOKEN_LIFE;
        let token = self.shared.auth.cas_token(CasGrant { bucket: self.row, scope, expires });
        let token = token.map_err(|error| xet::Error::Network(error.to_string()))?;
        Ok(CasToken { url: self.url.clone(), token, expires })
    }
}

/// Fails unless Git takes the name for a branch or tag, and no request takes it for something else.
fn check_ref(name: &str) -> Result<(), ImportError> {
    let is_legal = |c: char| !c.is_control() && !matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let is_component = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let is_name = name.len() <= LONGEST_REF && name.chars().all(is_legal) && name.split('/').all(is_component);
    let is_special = name.contains("..") || name.contains("@{") || name.ends_with('.') || name.starts_with('-');
    let is_other = name == "@" || name == "refs" || name.starts_with("refs/") || super::git::Oid::parse(name).is_some();
    if is_name && !is_special && !is_other { Ok(()) } else { Err(ImportError::Ref(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_branches_are_those_of_git() {
        for name in ["main", "v1.0", "feature/x", "ü", "a-b_c"] {
            assert!(check_ref(name).is_ok(), "{name}");
        }
        let id = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
        for name in [
            "",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a..b",
            "a b",
            "a:b",
            "a\\b",
            "-a",
            "@",
            "a.",
            "refs/pr/1",
            id,
        ] {
            assert!(matches!(check_ref(name), Err(ImportError::Ref(_))), "{name}");
        }
    }
}
