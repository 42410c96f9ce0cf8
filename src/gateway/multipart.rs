//! Multipart uploads.
//!
//! **Parts** stream into Xet as they come, sealed like any content on an encrypted bucket. So no part lies on a local
//! disk, and any gateway that shares the state can complete an upload that another one began. The state knows the
//! content id, length and digests of each part.
//!
//! **Completion** has one owner at a time. Others wait for its result. The owner's claim runs out if it dies, and a
//! repeated request then completes the upload. The result is kept as long as the upload would have been, so a request
//! that is repeated after a lost answer gets the same answer. Parts are removed together with the recording of the
//! result, never before.

use super::condition::Conditions;
use super::digest::{self, Algorithm, Announced, Checksum, Digests, Hasher, hex};
use super::metadata::Kept;
use super::object::to_its_end;
use super::record::{Headers, PartInfo, Record, Tags};
use super::state::{Claim, UploadRow};
use super::upload::{Body, Late};
use super::{Bucket, Error, Found, Key, MAX_PARTS, MAX_PUT, WAIT, now, random_name, seal};
use crate::store::{ContentId, Error as StoreError, Format, Hash, Side, Stored, Version};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time for which a completion is claimed. The owner renews its claim long before.
const CLAIM: Duration = Duration::from_secs(10);
/// Time between two looks for the result of a completion by another request.
const LOOK: Duration = Duration::from_millis(200);

/// What a client said when it created an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Key of the object.
    pub key: String,
    /// Headers and user metadata of the object.
    #[serde(default)]
    pub headers: Headers,
    /// Tags of the object.
    #[serde(default, skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// Additional checksum of the parts and of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// True if the object's checksum is that of its content (`FULL_OBJECT`), false if it is one of the parts'
    /// checksums (`COMPOSITE`).
    #[serde(default)]
    pub full_object: bool,
}

/// An upload of a list.
#[derive(Clone, Debug)]
pub struct ListedUpload {
    /// Its id.
    pub id: String,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// What the client said.
    pub upload: Upload,
}

/// A part to upload.
#[derive(Default)]
pub struct PartUpload {
    /// Length of the content, if it is known.
    pub len: Option<u64>,
    /// Digests that the client announced.
    pub announced: Announced,
    /// The additional checksum to compute, if the upload has none.
    pub algorithm: Option<Algorithm>,
    /// Digests that come after the content.
    pub late: Option<Late>,
}

/// A part, as the state keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Number, from 1.
    pub number: u32,
    /// Size in bytes.
    pub size: u64,
    /// MD5 in hex, which is the entity tag.
    pub etag: String,
    /// Additional checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// When it was uploaded, in seconds since 1970.
    pub uploaded: i64,
    /// Xet hash of its content.
    hash: String,
    /// Stored size of its content.
    stored_len: u64,
    /// Format of its content; 0 for plaintext.
    format: u8,
}

impl Part {
    fn info(&self) -> PartInfo {
        PartInfo { number: self.number, size: self.size, checksum: self.checksum.clone() }
    }

    fn new(number: u32, stored: &Stored, digests: &Digests) -> Result<Self, Error> {
        let format = match stored.version.side {
            Side::Plain => 0,
            Side::Encrypted(Format::V1) => 1,
            Side::Encrypted(Format::V2) => 2,
        };
        let Version { id, stored_len, .. } = stored.version;
        Ok(Self {
            number,
            size: stored.plain_len,
            etag: hex(&digests.md5),
            checksum: digests.checksum.clone(),
            uploaded: now(),
            hash: id.xet()?.to_string(),
            stored_len,
            format,
        })
    }

    fn version(&self) -> Result<Version, Error> {
        let damaged = || Error::State("a part is damaged".into());
        let side = match self.format {
            0 => Side::Plain,
            1 => Side::Encrypted(Format::V1),
            2 => Side::Encrypted(Format::V2),
            _ => return Err(damaged()),
        };
        let hash: Hash = self.hash.parse().map_err(|_| damaged())?;
        Ok(Version { id: ContentId::Xet(hash), stored_len: self.stored_len, side })
    }

    fn md5(&self) -> Result<[u8; 16], Error> {
        let digits = |at: usize| u8::from_str_radix(self.etag.get(2 * at..2 * at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..16).map(digits).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| Error::State("a part is damaged".into()))
    }
}

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
impl Part {
    /// Reads what a row may hold.
    pub(super) fn fuzz(&self) {
        let _ = (self.version(), self.md5());
    }
}

/// A part of the list that completes an upload.
#[derive(Clone, Debug)]
pub struct ChosenPart {
    /// Number.
    pub number: u32,
    /// Entity tag without quotes, as the client got it.
    pub etag: Option<String>,
    /// Additional checksum, if the client names it again.
    pub checksum: Option<Checksum>,
}

/// A request to complete an upload.
#[derive(Default)]
pub struct Completion {
    /// The parts, in order.
    pub parts: Vec<ChosenPart>,
    /// Checksum that the client announced for the object.
    pub checksum: Option<Checksum>,
    /// What must hold of the present version.
    pub conditions: Conditions,
    /// Size of the object, if the client announced it.
    pub size: Option<u64>,
}

/// Result of a completion, as the state keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// Entity tag without quotes.
    pub etag: String,
    /// Additional checksum of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

fn state_error(error: impl std::fmt::Display) -> Error {
    Error::State(error.to_string())
}

fn purpose(kind: &str, id: &str) -> Vec<u8> {
    format!("{kind} {id}").into_bytes()
}

impl Bucket {
    /// Creates an upload. Returns its id.
    pub async fn create_upload(&self, key: &Key, upload: &Upload) -> Result<String, Error> {
        self.check_key(key)?;
        upload.headers.check()?;
        let mut id = [0; 24];
        getrandom::fill(&mut id).map_err(state_error)?;
        let id = hex(&id);
        let json = serde_json::to_vec(upload).map_err(state_error)?;
        let row = seal::seal(&*self.view, &purpose("upload", &id), &json)?;
        self.state.create_upload(&id, self.view.identity(), row).await?;
        Ok(id)
    }

    /// Returns an upload of a key.
    pub async fn get_upload(&self, key: &Key, id: &str) -> Result<ListedUpload, Error> {
        let row = self.state.upload(id).await?.filter(|row| row.source == self.view.identity());
        let listed = self.read_upload(row.ok_or(Error::NoSuchUpload)?)?;
        if listed.upload.key == key.as_str() { Ok(listed) } else { Err(Error::NoSuchUpload) }
    }

    /// Returns all uploads of the bucket, ascending by key, then by time.
    pub async fn list_uploads(&self) -> Result<Vec<ListedUpload>, Error> {
        let rows = self.state.uploads(&self.view.identity()).await?;
        let mut uploads = rows.into_iter().map(|row| self.read_upload(row)).collect::<Result<Vec<_>, Error>>()?;
        uploads.sort_by(|a, b| (&a.upload.key, a.created, &a.id).cmp(&(&b.upload.key, b.created, &b.id)));
        Ok(uploads)
    }

    fn read_upload(&self, row: UploadRow) -> Result<ListedUpload, Error> {
        let json = seal::open(&*self.view, &purpose("upload", &row.id), &row.row)?;
        let upload = serde_json::from_slice(&json).map_err(state_error)?;
        Ok(ListedUpload { id: row.id, created: row.created, upload })
    }

    /// Uploads a part, in place of an earlier one of its number.
    pub async fn put_part(
        &self,
        key: &Key,
        id: &str,
        number: u32,
        body: Body,
        part: PartUpload,
    ) -> Result<Part, Error> {
        if !(1..=MAX_PARTS).contains(&number) {
            return Err(Error::InvalidArgument("a part number is 1 to 10000"));
        }
        let upload = self.get_upload(key, id).await?.upload;
        if part.len.is_some_and(|len| len > MAX_PUT) {
            return Err(Error::TooLarge(MAX_PUT));
        }
        let hasher = Hasher::new(part.algorithm.or(upload.algorithm));
        let uploaded = self.upload(body, part.len, MAX_PUT, hasher, part.announced, part.late).await?;
        let part = Part::new(number, &uploaded.stored, &uploaded.digests)?;
        uploaded.session.register().await?;
        self.record_part(id, part).await
    }

    pub(super) async fn record_part(&self, id: &str, part: Part) -> Result<Part, Error> {
        let json = serde_json::to_vec(&part).map_err(state_error)?;
        let row = seal::seal(&*self.view, &purpose("part", &format!("{id} {}", part.number)), &json)?;
        match self.state.put_part(id, part.number, row).await? {
            true => Ok(part),
            false => Err(Error::NoSuchUpload),
        }
    }

    /// Returns the parts of an upload, ascending by number.
    pub async fn list_parts(&self, key: &Key, id: &str) -> Result<Vec<Part>, Error> {
        self.get_upload(key, id).await?;
        self.read_parts(id).await
    }

    async fn read_parts(&self, id: &str) -> Result<Vec<Part>, Error> {
        let read = |(number, row): (u32, Vec<u8>)| {
            let json = seal::open(&*self.view, &purpose("part", &format!("{id} {number}")), &row)?;
            serde_json::from_slice(&json).map_err(state_error)
        };
        self.state.parts(id).await?.into_iter().map(read).collect()
    }

    /// Removes an upload and its parts.
    pub async fn abort_upload(&self, key: &Key, id: &str) -> Result<(), Error> {
        self.get_upload(key, id).await?;
        if self.state.abort(id).await? { Ok(()) } else { Err(Error::NoSuchUpload) }
    }

    /// Completes an upload. A repeated or concurrent request gets the result of the first one.
    pub async fn complete_upload(
        self: &Arc<Self>,
        key: &Key,
        id: &str,
        completion: Completion,
    ) -> Result<Completed, Error> {
        // Each request has an owner's name of its own, so two requests to one gateway exclude each other too.
        let owner = format!("{} {}", self.owner, random_name()?);
        if let Some(row) = self.claim(id, &owner).await? {
            return self.read_result(key, id, &row);
        }
        let released = Release { bucket: self, id, owner: &owner };
        let conditions = completion.conditions.clone();
        let composed = tokio::select! {
            composed = self.complete_claimed(key, id, completion) => composed,
            lost = self.renew_claim(id, &owner) => Err(lost),
        };
        let completed = match composed {
            Ok((completed, Some(content))) => {
                self.commit_completed(key, id, &owner, content, conditions).await.map(|()| completed)
            }
            composed => composed.map(|(completed, _)| completed),
        };
        match completed {
            Ok(completed) => {
                let json = serde_json::to_vec(&(key.as_str(), &completed)).map_err(state_error)?;
                let row = seal::seal(&*self.view, &purpose("result", id), &json)?;
                self.state.complete(id, &owner, row).await?;
                released.forget();
                Ok(completed)
            }
            Err(error) => {
                released.now().await;
                Err(error)
            }
        }
    }

    /// Claims the completion of an upload, after waiting for another request that has it. Returns the result if there
    /// is one.
    async fn claim(&self, id: &str, owner: &str) -> Result<Option<Vec<u8>>, Error> {
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            match self.state.claim(id, owner, CLAIM).await? {
                Claim::Claimed => return Ok(None),
                Claim::Done(row) => return Ok(Some(row)),
                Claim::Missing => return Err(Error::NoSuchUpload),
                Claim::Held if tokio::time::Instant::now() >= deadline => return Err(Error::Busy),
                Claim::Held => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Renews a claim until it is lost. Returns why.
    async fn renew_claim(&self, id: &str, owner: &str) -> Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(CLAIM / 4).await;
            let asked = Instant::now();
            match self.state.claim(id, owner, CLAIM).await {
                Ok(Claim::Claimed) => renewed = asked,
                // The state can't be reached, but the claim still has time.
                Err(_) if renewed.elapsed() < CLAIM * 3 / 4 => {}
                Ok(_) => return Error::Busy,
                Err(error) => return error,
            }
        }
    }

    /// Puts the content of a completed upload at its key, if the claim holds. Goes on if its client leaves, as
    /// [`Bucket::commit_new`] does.
    async fn commit_completed(
        self: &Arc<Self>,
        key: &Key,
        id: &str,
        owner: &str,
        (stored, kept): (Stored, Kept),
        conditions: Conditions,
    ) -> Result<(), Error> {
        let (this, key, id, owner) = (self.clone(), key.clone(), id.to_owned(), owner.to_owned());
        to_its_end(async move {
            let turn = this.turn(key.path()).await?;
            // It may have run out meanwhile, and another request may have completed the upload.
            if this.state.claim(&id, &owner, CLAIM).await? != Claim::Claimed {
                return Err(Error::Busy);
            }
            let commit = async {
                let expect = this.expected(&key, &conditions).await?;
                this.commit_put(&turn, &key, stored, kept, expect, &conditions).await.map(drop)
            };
            // A commit that is on its way is not given up, whatever becomes of the claim.
            let renewed = async {
                this.renew_claim(&id, &owner).await;
                std::future::pending().await
            };
            tokio::select! { committed = commit => committed, () = renewed => Ok(()) }
        })
        .await
    }

    fn read_result(&self, key: &Key, id: &str, row: &[u8]) -> Result<Completed, Error> {
        let json = seal::open(&*self.view, &purpose("result", id), row)?;
        let (of, completed): (String, Completed) = serde_json::from_slice(&json).map_err(state_error)?;
        if of == key.as_str() { Ok(completed) } else { Err(Error::NoSuchUpload) }
    }

    /// Composes the content of an upload. `None`: it is committed already.
    async fn complete_claimed(
        &self,
        key: &Key,
        id: &str,
        completion: Completion,
    ) -> Result<(Completed, Option<(Stored, Kept)>), Error> {
        let upload = self.get_upload(key, id).await?.upload;
        let parts = self.choose(self.read_parts(id).await?, &completion)?;
        let size: u64 = parts.iter().map(|part| part.size).sum();
        if completion.size.is_some_and(|announced| announced != size) {
            return Err(Error::InvalidArgument("the parts do not have the announced size"));
        }
        let checksum = object_checksum(&upload, &parts)?;
        if completion.checksum.as_ref().is_some_and(|announced| !same_checksum(announced, checksum.as_ref())) {
            return Err(Error::BadDigest("the checksum of the object"));
        }
        let md5s = parts.iter().map(Part::md5).collect::<Result<Vec<_>, Error>>()?;
        let etag = digest::multipart_etag(&md5s);
        if !completion.conditions.is_empty() {
            let found = self.find(key).await?;
            if found.as_ref().is_some_and(|found| found.record.upload.as_deref() == Some(id)) {
                // An earlier request has committed it, and its gateway died before it recorded the result.
                return Ok((Completed { etag, checksum }, None));
            }
            completion.conditions.check_write(found.as_ref().map(Found::present))?;
        }
        let record = Record {
            etag: Some(etag.clone()),
            checksum: checksum.clone(),
            headers: upload.headers,
            tags: upload.tags,
            upload: Some(id.to_owned()),
            parts: parts.iter().map(Part::info).collect(),
        };
        let content = self.compose(&parts, record).await?;
        Ok((Completed { etag, checksum }, Some(content)))
    }

    /// Returns the listed parts, after checking the list as S3 does.
    fn choose(&self, uploaded: Vec<Part>, completion: &Completion) -> Result<Vec<Part>, Error> {
        if completion.parts.is_empty() {
            return Err(Error::InvalidArgument("a multipart upload has at least one part"));
        }
        let mut chosen: Vec<Part> = Vec::with_capacity(completion.parts.len());
        let mut last = 0;
        for part in &completion.parts {
            if part.number <= last {
                return Err(Error::InvalidPartOrder);
            }
            last = part.number;
            let wrong = || Error::InvalidPart(part.number);
            let at = uploaded.binary_search_by_key(&part.number, |part| part.number).map_err(|_| wrong())?;
            let found = &uploaded[at];
            let is_other = part.etag.as_ref().is_some_and(|etag| *etag != found.etag)
                || (part.checksum.is_some() && part.checksum != found.checksum);
            if is_other {
                return Err(wrong());
            }
            chosen.push(found.clone());
        }
        let small = chosen[..chosen.len() - 1].iter().find(|part| part.size < self.min_part);
        match small {
            Some(part) => Err(Error::PartTooSmall(part.number)),
            None => Ok(chosen),
        }
    }

    /// Makes one content of the parts, and describes it.
    async fn compose(&self, parts: &[Part], record: Record) -> Result<(Stored, Kept), Error> {
        if let [part] = parts {
            let stored = Stored { version: part.version()?, plain_len: part.size };
            return Ok((stored, self.describe_alone(&stored.version, record).await?));
        }
        let len = parts.iter().map(|part| part.size).sum();
        let versions = parts.iter().map(Part::version).collect::<Result<Vec<_>, Error>>()?;
        let view = self.view.clone();
        let pieces = futures::stream::iter(versions).then(move |version| {
            let view = view.clone();
            async move {
                let object = view.open(&version).await.map_err(Error::of_store)?;
                let len = object.len();
                Ok::<_, Error>(object.stream(0..len).map_err(Error::of_store))
            }
        });
        let pieces: Body = pieces.try_flatten().boxed();
        let uploaded = self.upload(pieces, Some(len), u64::MAX, Hasher::none(), Announced::default(), None).await;
        match uploaded {
            // It is not the client's fault if parts have another length than they had.
            Err(Error::IncompleteBody) => Err(Error::Store(StoreError::LengthMismatch)),
            Err(error) => Err(error),
            Ok(uploaded) => {
                let kept = self.describe(&uploaded.session, &uploaded.stored.version, record).await?;
                uploaded.session.register().await?;
                Ok((uploaded.stored, kept))
            }
        }
    }
}

/// Returns the checksum of a multipart object, if its parts have what it takes.
fn object_checksum(upload: &Upload, parts: &[Part]) -> Result<Option<Checksum>, Error> {
    let Some(algorithm) = upload.algorithm else { return Ok(None) };
    let of_parts: Option<Vec<Checksum>> =
        parts.iter().map(|part| part.checksum.clone().filter(|checksum| checksum.algorithm == algorithm)).collect();
    let Some(of_parts) = of_parts else { return Ok(None) };
    if upload.full_object {
        let sized = of_parts.iter().zip(parts).map(|(checksum, part)| (checksum, part.size));
        return digest::combined(algorithm, sized).map(Some);
    }
    Ok(digest::composite(algorithm, &of_parts))
}

/// Compares the checksum that a client announced for a multipart object. It may leave out the number of parts.
fn same_checksum(announced: &Checksum, found: Option<&Checksum>) -> bool {
    let Some(found) = found.filter(|found| found.algorithm == announced.algorithm) else { return false };
    found.value == announced.value || found.value.rsplit_once('-').is_some_and(|(value, _)| value == announced.value)
}

/// Gives up a claim when its request ends without a result, also if the client has gone.
struct Release<'a> {
    bucket: &'a Bucket,
    id: &'a str,
    owner: &'a str,
}

impl Release<'_> {
    fn forget(self) {
        std::mem::forget(self);
    }

    async fn now(self) {
        if let Err(error) = self.bucket.state.release(self.id, self.owner).await {
            tracing::warn!(%error, "cannot give up the completion of an upload");
        }
        self.forget();
    }
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let (state, id, owner) = (self.bucket.state.clone(), self.id.to_owned(), self.owner.to_owned());
        tokio::spawn(async move { state.release(&id, &owner).await });
    }
}
