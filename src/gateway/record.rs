//! What an object has beside its content: entity tag, checksums, headers, user metadata.
//!
//! A record belongs to one version at one key, so a version that another program wrote doesn't get the record of an
//! older one. (In a bucket without a key equal content is one version: if another program writes the same content
//! again, it has the record that it had.) Objects without a record have an entity tag that follows from their content
//! id, and no metadata.

use super::Error;
use super::digest::{self, Checksum};
use crate::store::{ContentId, PlainPath, View};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most bytes of user metadata, names and values together, as in S3.
pub(super) const MAX_USER_METADATA: usize = 2048;
/// Most bytes of one header.
const MAX_HEADER: usize = 4096;

/// Headers that a client gave to an object, and that are returned with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Headers {
    /// `Content-Type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `Cache-Control`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// `Content-Disposition`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    /// `Content-Encoding`, without `aws-chunked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// `Content-Language`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    /// `Expires`, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// User metadata, without the prefix `x-amz-meta-`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, String>,
}

impl Headers {
    /// Fails if the headers are larger than allowed.
    pub fn check(&self) -> Result<(), Error> {
        let user: usize = self.user.iter().map(|(name, value)| name.len() + value.len()).sum();
        if user > MAX_USER_METADATA {
            return Err(Error::MetadataTooLarge(MAX_USER_METADATA));
        }
        let headers = [
            &self.content_type,
            &self.cache_control,
            &self.content_disposition,
            &self.content_encoding,
            &self.content_language,
        ];
        match headers.into_iter().flatten().any(|header| header.len() > MAX_HEADER) {
            true => Err(Error::InvalidArgument("a header is longer than 4096 bytes")),
            false => Ok(()),
        }
    }
}

/// Tags of an object, by name.
pub type Tags = BTreeMap<String, String>;

/// Checks tags as S3 does: ten at most, no name twice, 128 characters in a name and 256 in a value.
pub fn check_tags(tags: impl IntoIterator<Item = (String, String)>) -> Result<Tags, Error> {
    let mut checked = Tags::new();
    for (name, value) in tags {
        if name.is_empty() || name.chars().count() > 128 || value.chars().count() > 256 {
            return Err(Error::InvalidTag("a tag has 1 to 128 characters in its name and 256 in its value at most"));
        }
        if checked.insert(name, value).is_some() {
            return Err(Error::InvalidTag("a tag comes twice"));
        }
    }
    if checked.len() > 10 { Err(Error::InvalidTag("an object has 10 tags at most")) } else { Ok(checked) }
}

/// A part of a multipart object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Its number, from 1.
    pub number: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Its additional checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

/// What an object has beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Entity tag without quotes. `None`: none was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Additional checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// Headers and user metadata.
    pub headers: Headers,
    /// Tags.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: Tags,
    /// Id of the multipart upload that made the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// Parts of a multipart object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartInfo>,
}

impl Record {
    /// Returns true if a client could have given it: everything fits a header of an answer.
    pub(super) fn is_valid(&self) -> bool {
        let Headers { content_type, cache_control, content_disposition, content_encoding, content_language, .. } =
            &self.headers;
        let headers = [content_type, cache_control, content_disposition, content_encoding, content_language];
        let user = self.headers.user.iter().flat_map(|(name, value)| [name, value]);
        let checksum = self.checksum.iter().map(|checksum| &checksum.value);
        let mut texts = headers.into_iter().flatten().chain(user).chain(checksum).chain(&self.etag);
        let is_shown = |text: &String| !text.chars().any(char::is_control);
        texts.all(is_shown)
            && self.headers.check().is_ok()
            && self.parts.len() <= super::MAX_PARTS as usize
            && check_tags(self.tags.clone()).is_ok()
    }

    /// Returns the entity tag without quotes: the recorded one, or one that follows from the content id. The latter has
    /// a `-`, so no client takes it for an MD5.
    pub fn etag(&self, id: &ContentId) -> String {
        self.etag.clone().unwrap_or_else(|| opaque_etag(id))
    }
}

/// Returns the entity tag of content that no record describes.
fn opaque_etag(id: &ContentId) -> String {
    let id = id.to_string();
    format!("{}-x", &id[..id.len().min(32)])
}

/// Key of a record's row: SHA-256 over source, stored path and content id. It names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RecordKey(pub(super) [u8; 32]);

impl RecordKey {
    /// Returns the key of a version at a path.
    pub(super) fn new(view: &dyn View, path: &PlainPath, id: &ContentId) -> Self {
        let (path, id) = (view.log_name(path), format!("{id:#}"));
        Self(digest::sha256(&[b"hfcrypt gateway record", &view.identity(), path.as_bytes(), id.as_bytes()]))
    }
}

/// Returns the digest of a path, which all its records share.
pub(super) fn path_digest(view: &dyn View, path: &PlainPath) -> [u8; 32] {
    digest::sha256(&[b"hfcrypt gateway path", &view.identity(), view.log_name(path).as_bytes()])
}
