//! Repositories: models, datasets and spaces, to be read only (Hub API spec, section 5).
//!
//! A [`Repository`] shows one commit at a time as if it were a bucket: it implements [`Hub`], and refuses every change.
//! So all that reads buckets reads repositories too. The commit changes only in [`Hub::bucket_info`], which asks the
//! Hub
//! for the present one. Listings between two such calls are of one commit.

use super::client::{Client, MAX_LISTING, MAX_OBJECT, PAGE, groups};
use super::transport::{Answer, Call, Repeat};
use super::{
    BatchOp, BatchOutcome, Blob, BucketId, BucketInfo, Commit, Cursor, Error, FileEntry, Hub, Identity, RepoId,
    RepoKind, TreeEntry, TreePage, parse, route,
};
use crate::xet::{CasToken, Scope};
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;

/// Branch that is read if no revision is named.
const MAIN: &str = "main";
/// Files outside Xet whose places are remembered: some 30 MB. When there are more, all are forgotten, and one that is
/// read again is looked for.
const MAX_PLACES: usize = 200_000;
/// Pages that a search for a forgotten file reads.
const MAX_PAGES: usize = 10_000;

/// Reads content outside Xet.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// Returns exactly these bytes of a blob that a listing has shown. What they are is not checked.
    async fn read(&self, id: &[u8; 20], range: Range<u64>) -> Result<Bytes, Error>;
    /// Returns the SHA-256 of a blob's content, where it is known: of files in LFS.
    fn sha256(&self, id: &[u8; 20]) -> Option<[u8; 32]>;
}

/// Place of a file outside Xet.
#[derive(Clone)]
struct Place {
    commit: Arc<str>,
    path: Box<str>,
    sha256: Option<[u8; 32]>,
}

/// The commit that is shown.
#[derive(Clone)]
struct Shown {
    id: Arc<str>,
    modified: Option<OffsetDateTime>,
    private: bool,
}

impl From<Commit> for Shown {
    fn from(commit: Commit) -> Self {
        Self { id: commit.id.into(), modified: commit.modified, private: commit.private }
    }
}

/// A repository at a branch, a tag or a commit.
pub struct Repository {
    client: Arc<Client>,
    id: RepoId,
    revision: String,
    /// Never held over an await.
    shown: Mutex<Shown>,
    /// By blob id. Never held over an await.
    places: Mutex<HashMap<[u8; 20], Place>>,
}

impl Repository {
    /// Opens a repository. Fails with `Error::RepoNotFound`, `Error::OtherKind`, `Error::RevisionNotFound`, or
    /// `Error::Gated` if this token may not read its files. `revision`: a branch, a tag or a commit (default `main`).
    pub async fn open(client: Arc<Client>, id: &RepoId, revision: Option<&str>) -> Result<Arc<Self>, Error> {
        let revision = revision.unwrap_or(MAIN).to_owned();
        let commit = match commit(&client, id, &revision).await {
            Err(error @ Error::RepoNotFound(_)) => return Err(other_kind(&client, id).await.unwrap_or(error)),
            found => found?,
        };
        let (name, gated) = (commit.repo.clone(), commit.gated);
        let (shown, places) = (Mutex::new(commit.into()), Mutex::default());
        let repository = Arc::new(Self { client, id: name, revision, shown, places });
        if gated {
            repository.check_access().await?;
        }
        Ok(repository)
    }

    /// Returns its present name.
    pub fn id(&self) -> &RepoId {
        &self.id
    }

    /// Returns an id for calls of [`Hub`], which take one of a bucket. It is not looked at.
    pub fn label(&self) -> Result<BucketId, Error> {
        let kind = self.id.kind().route();
        let (namespace, name) = self.id.name().split_once('/').unwrap_or((kind, self.id.name()));
        BucketId::new(namespace, name)
    }

    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails if the token may see the repository but not read its files.
    async fn check_access(&self) -> Result<(), Error> {
        let call = Call { bodiless: true, ..self.client.read(&route::repo(&self.id, "/auth-check"), 0)? };
        match self.ask(&call).await {
            // A Hub without this route.
            Err(Error::RepoNotFound(_)) => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn ask(&self, call: &Call) -> Result<Answer, Error> {
        ask(&self.client, &self.id, &self.revision, call).await
    }

    /// Remembers where the files outside Xet are, and gives all entries the time of the commit.
    fn note<'a>(&self, shown: &Shown, files: impl Iterator<Item = &'a mut FileEntry>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files {
            file.uploaded_at = shown.modified;
            let Some(Blob { id, sha256 }) = file.blob else { continue };
            if places.len() >= MAX_PLACES {
                places.clear();
            }
            // An older place is as good: a blob id names one content for ever.
            let (commit, path) = (shown.id.clone(), file.key.as_str().into());
            places.entry(id).or_insert(Place { commit, path, sha256 });
        }
    }

    fn remembered(&self, id: &[u8; 20]) -> Option<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Returns where a blob is. One that was forgotten is looked for in the commit that is shown.
    async fn place(&self, id: &[u8; 20]) -> Result<Place, Error> {
        if let Some(place) = self.remembered(id) {
            return Ok(place);
        }
        let (label, mut cursor) = (self.label()?, None);
        for _ in 0..MAX_PAGES {
            let page = self.tree_page(&label, "", true, cursor.as_ref()).await?;
            if let Some(place) = self.remembered(id) {
                return Ok(place);
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Err(Error::EntryNotFound)
    }
}

/// Asks for the commit that a revision names.
async fn commit(client: &Client, id: &RepoId, revision: &str) -> Result<Commit, Error> {
    // Without these fields the Hub would list all files. Spaces have no gates.
    let fields = "?expand=sha&expand=lastModified&expand=private";
    let gates = if id.kind() == RepoKind::Space { "" } else { "&expand=gated" };
    let path = route::revision(id, "revision", revision) + fields + gates;
    let call = client.read(&path, MAX_OBJECT)?;
    parse::commit(&ask(client, id, revision, &call).await?.body, id.kind())
}

async fn ask(client: &Client, id: &RepoId, revision: &str, call: &Call) -> Result<Answer, Error> {
    let answer = client.transport.send(call).await?;
    match answer.status.is_success() {
        true => Ok(answer),
        false => Err(refusal(id, revision, &answer)),
    }
}

/// Returns the error of an answer about a repository (1.2).
fn refusal(id: &RepoId, revision: &str, answer: &Answer) -> Error {
    let code = answer.headers.get("x-error-code").map(HeaderValue::as_bytes);
    match (answer.status.as_u16(), code) {
        (_, Some(b"GatedRepo")) => Error::Gated(id.clone()),
        (_, Some(b"RevisionNotFound")) => Error::RevisionNotFound { id: id.clone(), revision: revision.to_owned() },
        (_, Some(b"EntryNotFound")) => Error::EntryNotFound,
        (_, Some(b"RepoNotFound")) | (404, None) => Error::RepoNotFound(id.clone()),
        // To strangers the Hub doesn't say whether there is a private one.
        (401, _) if answer.words() != "Invalid credentials in Authorization header" => Error::RepoNotFound(id.clone()),
        _ => answer.refusal(None),
    }
}

/// Returns the error for a name that belongs to something else, if it does. Best effort.
async fn other_kind(client: &Client, id: &RepoId) -> Option<Error> {
    for kind in RepoKind::ALL.into_iter().filter(|kind| *kind != id.kind()) {
        let other = RepoId::new(kind, id.name()).ok()?;
        let call = Call { repeat: Repeat::Never, bodiless: true, ..client.read(&route::repo(&other, ""), 0).ok()? };
        if client.transport.send(&call).await.is_ok_and(|answer| answer.status.is_success()) {
            return Some(Error::OtherKind { id: id.clone(), found: kind.as_str() });
        }
    }
    let bucket: BucketId = id.name().parse().ok()?;
    client.bucket_info(&bucket).await.is_ok().then(|| Error::OtherKind { id: id.clone(), found: "bucket" })
}

/// Returns the body of a question about paths (5.4), in the form that the Hub's own client sends.
fn form(paths: &[&str]) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(paths.iter().map(|path| ("paths", path))).append_pair("expand", "false").finish()
}

fn refused<T>() -> Result<T, Error> {
    Err(Error::Forbidden("a repository is only read here".to_owned()))
}

#[async_trait]
impl Hub for Repository {
    async fn whoami(&self) -> Result<Identity, Error> {
        self.client.whoami().await
    }

    async fn create_bucket(&self, _: &BucketId, _: bool, _: bool) -> Result<(), Error> {
        refused()
    }

    async fn bucket_info(&self, label: &BucketId) -> Result<BucketInfo, Error> {
        let mut shown = self.shown();
        // The files of a commit never change.
        if *self.revision != *shown.id {
            shown = commit(&self.client, &self.id, &self.revision).await?.into();
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown.clone();
        }
        Ok(BucketInfo {
            id: label.clone(),
            private: shown.private,
            size: 0,
            total_files: 0,
            created_at: None,
            updated_at: Some(shown.id.to_string()),
        })
    }

    async fn list_buckets(&self, _: &str) -> Result<Vec<BucketInfo>, Error> {
        Ok(Vec::new())
    }

    async fn delete_bucket(&self, _: &BucketId) -> Result<(), Error> {
        refused()
    }

    async fn tree_page(
        &self,
        _: &BucketId,
        prefix: &str,
        recursive: bool,
        cursor: Option<&Cursor>,
    ) -> Result<TreePage, Error> {
        let shown = self.shown();
        let nothing = TreePage { entries: Vec::new(), next: None };
        // Git has no such names.
        let Some(path) = route::repo_tree(&self.id, &shown.id, prefix, recursive, PAGE) else { return Ok(nothing) };
        let mut call = self.client.read(&path, MAX_LISTING)?;
        if let Some(Cursor(url)) = cursor {
            call.url = route::same_origin(&self.client.transport.base, url)?;
        }
        let answer = match self.ask(&call).await {
            Err(Error::EntryNotFound) => return Ok(nothing),
            answer => answer?,
        };
        let mut entries = parse::repo_tree(&answer.body, prefix, recursive)?;
        let next = route::next_page(&self.client.transport.base, &call.url, &answer.headers)?;
        if next.as_ref() == Some(&call.url) {
            return Err(Error::Malformed("a page of a listing that is its own next page".to_owned()));
        }
        let files = entries.iter_mut().filter_map(|entry| match entry {
            TreeEntry::File(file) => Some(file),
            TreeEntry::Directory { .. } => None,
        });
        self.note(&shown, files);
        Ok(TreePage { entries, next: next.map(|url| Cursor(url.into())) })
    }

    async fn paths_info(&self, _: &BucketId, keys: &[String]) -> Result<Vec<FileEntry>, Error> {
        let shown = self.shown();
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).filter(|key| !key.is_empty()).collect();
        keys.sort_unstable();
        keys.dedup();
        let path = route::revision(&self.id, "paths-info", &shown.id);
        let mut files = Vec::new();
        for group in groups(&keys, |key| key.len()) {
            let mut call = self.client.post(&path, "application/x-www-form-urlencoded", form(group), MAX_LISTING)?;
            call.repeat = Repeat::Freely;
            files.extend(parse::repo_files(&self.ask(&call).await?.body, group)?);
        }
        self.note(&shown, files.iter_mut());
        Ok(files)
    }

    async fn batch_within(&self, _: &BucketId, _: &[BatchOp], _: Duration) -> Result<BatchOutcome, Error> {
        refused()
    }

    async fn cas_token(&self, _: &BucketId, scope: Scope) -> Result<CasToken, Error> {
        if scope == Scope::Write {
            return refused();
        }
        let path = route::revision(&self.id, "xet-read-token", &self.shown().id);
        let answer = self.ask(&self.client.read(&path, MAX_OBJECT)?).await?;
        parse::cas_token(&answer.body, &answer.headers, self.client.transport.base.scheme() == "https")
    }
}

#[async_trait]
impl BlobSource for Repository {
    async fn read(&self, id: &[u8; 20], range: Range<u64>) -> Result<Bytes, Error> {
        let Place { commit, path, .. } = self.place(id).await?;
        let path = route::repo_resolve(&self.id, &commit, &path).ok_or(Error::EntryNotFound)?;
        match self.client.range(&path, range).await? {
            Ok(bytes) => Ok(bytes),
            Err(answer) => Err(refusal(&self.id, &commit, &answer)),
        }
    }

    fn sha256(&self, id: &[u8; 20]) -> Option<[u8; 32]> {
        self.remembered(id)?.sha256
    }
}
