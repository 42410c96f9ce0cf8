//! Operations of file protocols that object stores don't have: folders, moves, times, and writes that continue a file.

use super::condition::{Conditions, Tags};
use super::digest::Hasher;
use super::metadata::Kept;
use super::object::to_its_end;
use super::record::Record;
use super::upload::{Body, Uploaded};
use super::{Bucket, Error, Found, Key, Query};
use crate::store::{Change, Error as StoreError, Expect, Kind, MovedFile, Op, Outcome, PlainPath, stored_mtime};
use futures::StreamExt;
use std::sync::Arc;
use time::OffsetDateTime;

/// Where the content of a write begins in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The content is the whole file, whatever was there.
    Replace,
    /// The content is a new file. There must be none yet.
    Create,
    /// It follows the first bytes of the present file, so many of them. The rest of the file is cut off.
    At(u64),
    /// It follows the present file, if there is one.
    End,
}

/// The present content that a write keeps, and what must hold at its end.
struct Base {
    keep: Option<(Found, u64)>,
    conditions: Conditions,
}

impl Bucket {
    /// Stores a file of any length. It is the old one until the new one is whole. No digest is computed: its entity tag
    /// follows from its content id. If the content continues the present file, that file's headers and tags are kept,
    /// and another write meanwhile is [`Error::PreconditionFailed`].
    pub async fn write_file(self: &Arc<Self>, key: &Key, body: Body, start: Start) -> Result<Found, Error> {
        self.check_key(key)?;
        let Base { keep, conditions } = self.base(key, start).await?;
        let (body, record) = match keep {
            None => (body, Record::default()),
            Some((found, len)) => {
                let (headers, tags) = (found.record.headers.clone(), found.record.tags.clone());
                let head = self.content(&found, 0..len).await?;
                (head.chain(body).boxed(), Record { headers, tags, ..Record::default() })
            }
        };
        let uploaded = self.upload(body, None, u64::MAX, Hasher::none(), Default::default(), None).await?;
        let Uploaded { session, stored, .. } = uploaded;
        let kept = match record == Record::default() {
            // Metadata that is there names the content that it describes, so it is no longer shown.
            true => Kept { record, object: None },
            false => self.describe(&session, &stored.version, record).await?,
        };
        session.register().await?;
        drop(session);
        self.commit_new(key, stored, kept, conditions).await
    }

    async fn base(&self, key: &Key, start: Start) -> Result<Base, Error> {
        let absent = Conditions { if_none_match: Some(Tags::Any), ..Conditions::default() };
        let found = match start {
            Start::Replace | Start::At(0) => return Ok(Base { keep: None, conditions: Conditions::default() }),
            Start::Create => return Ok(Base { keep: None, conditions: absent }),
            Start::At(_) | Start::End => self.find(key).await?,
        };
        let Some(found) = found else {
            return match start {
                Start::End => Ok(Base { keep: None, conditions: absent }),
                _ => Err(Error::NoSuchKey),
            };
        };
        let len = if let Start::At(len) = start { len } else { found.len };
        if len > found.len {
            return Err(Error::InvalidRange);
        }
        let if_match = Some(Tags::Of(vec![found.etag.clone()]));
        Ok(Base { keep: Some((found, len)), conditions: Conditions { if_match, ..Conditions::default() } })
    }

    /// Sets the time of a file's last change, rounded down to milliseconds. The Hub has no such operation: the content
    /// is put again with another time. So what another program stores between the look and that is lost.
    pub async fn set_modified(self: &Arc<Self>, key: &Key, time: OffsetDateTime) -> Result<(), Error> {
        self.check_key(key)?;
        let (this, key) = (self.clone(), key.clone());
        to_its_end(async move {
            let turn = this.turn(key.path()).await?;
            let found = this.head(&key).await?;
            let change = Change::SetModified { mtime: stored_mtime(time.into()) };
            let op = Op { path: key.path().clone(), expect: Expect::Is(found.version.id), change };
            this.commit_one(&turn, op, &Conditions::default()).await
        })
        .await
    }

    /// Returns true if a folder is there. The root always is. A folder without files exists by its marker.
    pub async fn is_folder(&self, path: &PlainPath) -> Result<bool, Error> {
        let found = self.view.stat(path).await.map_err(Error::of_store)?;
        Ok(path.is_root() || found.is_some_and(|entry| matches!(entry.kind, Kind::Directory { .. })))
    }

    /// Makes a folder: puts its marker. Fails with [`Error::NameTaken`] if a file or folder has the name.
    pub async fn make_folder(self: &Arc<Self>, path: &PlainPath) -> Result<(), Error> {
        if self.view.stat(path).await.map_err(Error::of_store)?.is_some() {
            return Err(Error::NameTaken);
        }
        let nothing = futures::stream::empty().boxed();
        match self.write_file(&marker(path)?, nothing, Start::Create).await {
            // Another client has just made it.
            Err(Error::PreconditionFailed(_)) => Err(Error::NameTaken),
            made => made.map(drop),
        }
    }

    /// Removes a folder that holds nothing but its marker. Fails with [`Error::NoSuchKey`] if there is none, and with
    /// [`Error::FolderNotEmpty`].
    pub async fn remove_folder(self: &Arc<Self>, path: &PlainPath) -> Result<(), Error> {
        let marker = marker(path)?;
        let query = Query { prefix: marker.as_str().to_owned(), limit: 2, ..Query::default() };
        let page = self.list(&query).await?;
        match page.objects.as_slice() {
            [] => Err(Error::NoSuchKey),
            [only] if only.key == marker.as_str() => self.delete(&marker, Conditions::default()).await,
            _ => Err(Error::FolderNotEmpty),
        }
    }

    /// Moves a file. No byte of it is read. A file at the new path is replaced.
    pub async fn move_file(self: &Arc<Self>, from: &Key, to: &Key) -> Result<(), Error> {
        self.check_key(to)?;
        let (this, from, to) = (self.clone(), from.clone(), to.clone());
        to_its_end(async move {
            // In one order, so that two moves don't wait for each other.
            let mut paths = [from.path(), to.path()];
            paths.sort();
            let _first = this.turn(paths[0]).await?;
            let turn = if from == to { None } else { Some(this.turn(paths[1]).await?) };
            let found = this.head(&from).await?;
            let Some(turn) = turn else { return Ok(()) };
            let change = Change::Rename { to: to.path().clone(), expect_to: Expect::Any };
            let op = Op { path: from.path().clone(), expect: Expect::Is(found.version.id), change };
            this.keep_record(to.path(), &found).await?;
            this.commit_one(&turn, op, &Conditions::default()).await?;
            this.tidy(&from, None);
            this.tidy(&to, Some(&found.version));
            Ok(())
        })
        .await
    }

    /// Moves a folder with all that is below it. No byte is read. Fails with [`Error::NameTaken`] if something is at
    /// the new path.
    pub async fn move_folder(self: &Arc<Self>, from: &PlainPath, to: &PlainPath) -> Result<(), Error> {
        self.check_key(&Key::of_path(to))?;
        if to.is_within(from) || from.is_root() {
            return Err(Error::InvalidKey("a folder can't be moved into itself"));
        }
        let there = self.view.stat(to).await.map_err(Error::of_store)?;
        if there.is_some_and(|entry| matches!(entry.kind, Kind::File { .. })) {
            return Err(Error::NameTaken);
        }
        let (this, from, to) = (self.clone(), from.clone(), to.clone());
        to_its_end(async move { this.move_folder_now(from, to).await }).await
    }

    async fn move_folder_now(&self, from: PlainPath, to: PlainPath) -> Result<(), Error> {
        let _exists = self.existence.read().await;
        let op = Op { path: from.clone(), expect: Expect::Any, change: Change::RenameDirectory { to: to.clone() } };
        let moved = match self.view.commit(&[op]).await.pop() {
            Some(Outcome::Moved(moved)) => moved,
            // A move that was cut goes on instead.
            Some(Outcome::Failed(StoreError::NotEmpty(_))) => return Err(Error::NameTaken),
            Some(Outcome::Failed(error)) => return Err(Error::of_store(error)),
            _ => return Err(Error::Conflict),
        };
        if moved.is_empty() {
            return Err(Error::NoSuchKey);
        }
        // Those in the bucket have moved with their files.
        let alone = if self.metadata { Vec::new() } else { moved };
        for moved in alone.chunks(super::RECORDS) {
            self.move_records(&from, &to, moved).await?;
        }
        Ok(())
    }

    /// Copies the rows of moved files to their new paths.
    async fn move_records(&self, from: &PlainPath, to: &PlainPath, moved: &[MovedFile]) -> Result<(), Error> {
        let old = |file: &MovedFile| Some((file.path.rebase(to, from)?, file.version));
        let versions: Vec<_> = moved.iter().filter_map(old).collect();
        let records = self.records(&versions).await?;
        for (record, file) in records.into_iter().zip(moved) {
            let kept = Kept { record, object: None };
            self.note_record(&file.path, &file.version, &kept).await?;
        }
        Ok(())
    }

    /// Gives a file that is about to be moved its row at the new path. If metadata is in the bucket, it moves itself.
    async fn keep_record(&self, to: &PlainPath, found: &Found) -> Result<(), Error> {
        match self.metadata {
            true => Ok(()),
            false => {
                let kept = Kept { record: found.record.clone(), object: None };
                self.note_record(to, &found.version, &kept).await
            }
        }
    }
}

/// Returns the key of a folder's marker.
fn marker(folder: &PlainPath) -> Result<Key, Error> {
    match folder.is_root() {
        true => Err(Error::Store(StoreError::InvalidName)),
        false => Key::parse(&format!("{}/", folder.as_str())),
    }
}
