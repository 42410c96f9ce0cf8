//! The API's JSON answers into types (Hub API spec, sections 2 to 4). Pure: bytes in, values out.
//!
//! Every answer is hostile: lists have a bound, keys must lie where they were asked for, and errors
//! quote nothing of the answer, for it may hold tokens. Unknown fields are ignored, unknown entry
//! types are not: leaving one out would cut a listing short in silence.

use super::{
    BatchOutcome, Blob, BucketId, BucketInfo, Commit, Error, FileEntry, Identity, RepoId, RepoKind, TreeEntry,
};
use crate::xet::{CasToken, Hash, foreign};
use http::HeaderMap;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use url::Url;

/// Most items taken in one answer. The API's largest page has 5000 entries, its largest request 2000 keys.
pub(super) const MAX_ITEMS: usize = 10_000;

/// Longest CAS token in bytes: it has to fit a request header that servers take (8 KiB is usual).
const MAX_CAS_TOKEN: usize = 8 * 1024;

/// The user behind a token.
pub(super) fn identity(body: &[u8]) -> Result<Identity, Error> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    #[derive(Deserialize)]
    struct Answer {
        name: String,
        #[serde(default)]
        orgs: List<Named>,
    }
    let answer: Answer = json("identity", body)?;
    Ok(Identity { name: answer.name, orgs: answer.orgs.0.into_iter().map(|org| org.name).collect() })
}

/// One bucket.
pub(super) fn bucket(body: &[u8]) -> Result<BucketInfo, Error> {
    json::<RawBucket>("bucket", body)?.checked()
}

/// A page of buckets.
pub(super) fn buckets(body: &[u8]) -> Result<Vec<BucketInfo>, Error> {
    json::<List<RawBucket>>("bucket list", body)?.0.into_iter().map(RawBucket::checked).collect()
}

/// The id in the answer to a creation: its `url` ends in `buckets/{namespace}/{name}`.
pub(super) fn created(body: &[u8]) -> Result<BucketId, Error> {
    #[derive(Deserialize)]
    struct Answer {
        url: String,
    }
    let answer: Answer = json("creation", body)?;
    let mut parts = answer.url.trim_end_matches('/').rsplit('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("buckets")) => id(namespace, name),
        _ => Err(Error::Malformed("a creation whose url is no bucket's".to_owned())),
    }
}

/// A page of a listing of `prefix`, with the raw-prefix siblings that the Hub puts in left out (4.1).
pub(super) fn tree(body: &[u8], prefix: &str, recursive: bool) -> Result<Vec<TreeEntry>, Error> {
    let mut entries = Vec::new();
    for raw in json::<List<RawEntry>>("listing", body)?.0 {
        let entry = raw.checked()?;
        match placed(entry.key(), prefix) {
            Place::Below(rest) if belongs(&entry, rest, recursive) => entries.push(entry),
            Place::Beside => {}
            Place::Below(_) => {
                return Err(Error::Malformed("a listing of one level with another level in it".to_owned()));
            }
            Place::Elsewhere => return Err(Error::Malformed("a listing with entries of another place".to_owned())),
        }
    }
    Ok(entries)
}

/// A repository at a commit (5.1).
pub(super) fn commit(body: &[u8], kind: RepoKind) -> Result<Commit, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        id: String,
        sha: String,
        last_modified: Option<String>,
        #[serde(default)]
        private: bool,
        /// `false`, or how users are let in.
        #[serde(default)]
        gated: serde_json::Value,
    }
    let answer: Answer = json("repository", body)?;
    let malformed = |why: &str| Error::Malformed(format!("a repository {why}"));
    Ok(Commit {
        repo: RepoId::new(kind, &answer.id).map_err(|_| malformed("with an impossible name"))?,
        id: answer.sha.parse::<Oid<20>>().map(|_| answer.sha).map_err(|()| malformed("without a commit id"))?,
        modified: time(answer.last_modified),
        private: answer.private,
        gated: !matches!(answer.gated, serde_json::Value::Null | serde_json::Value::Bool(false)),
    })
}

/// A page of a listing of a folder of a repository (5.3). Recursive listings name folders too, which are left out.
pub(super) fn repo_tree(body: &[u8], folder: &str, recursive: bool) -> Result<Vec<TreeEntry>, Error> {
    let mut entries = Vec::new();
    for raw in json::<List<RawRepoEntry>>("listing", body)?.0 {
        let entry = raw.checked()?;
        match placed(entry.key(), folder) {
            Place::Below(_) if recursive && matches!(entry, TreeEntry::Directory { .. }) => {}
            Place::Below(rest) if belongs(&entry, rest, recursive) => entries.push(entry),
            _ => return Err(Error::Malformed("a listing with entries of another folder".to_owned())),
        }
    }
    Ok(entries)
}

/// The files of an answer about `asked` paths of a repository (5.4); directories are left out.
pub(super) fn repo_files(body: &[u8], asked: &[&str]) -> Result<Vec<FileEntry>, Error> {
    let raw = json::<List<RawRepoEntry>>("answer about paths", body)?.0;
    files_among(raw.into_iter().map(RawRepoEntry::checked), asked)
}

enum Place<'a> {
    /// Strictly below the prefix, with this relative key.
    Below(&'a str),
    /// The prefix itself or what shares its first letters.
    Beside,
    Elsewhere,
}

fn placed<'a>(key: &'a str, prefix: &str) -> Place<'a> {
    match key.strip_prefix(prefix) {
        _ if key.is_empty() => Place::Elsewhere,
        None => Place::Elsewhere,
        Some(rest) if prefix.is_empty() => Place::Below(rest),
        Some(rest) => rest.strip_prefix('/').map_or(Place::Beside, Place::Below),
    }
}

/// Returns true if an entry may be in such a listing. Keys with empty components have no clear level:
/// they are accepted at any level.
fn belongs(entry: &TreeEntry, rest: &str, recursive: bool) -> bool {
    match entry {
        TreeEntry::File(_) if recursive => true,
        TreeEntry::Directory { .. } if recursive => false,
        _ => rest.split('/').filter(|component| !component.is_empty()).count() <= 1,
    }
}

/// The files of an answer about `asked` keys; directories are left out.
pub(super) fn files(body: &[u8], asked: &[&str]) -> Result<Vec<FileEntry>, Error> {
    let raw = json::<List<RawEntry>>("answer about paths", body)?.0;
    files_among(raw.into_iter().map(RawEntry::checked), asked)
}

fn files_among(
    entries: impl Iterator<Item = Result<TreeEntry, Error>>,
    asked: &[&str],
) -> Result<Vec<FileEntry>, Error> {
    let mut open: HashSet<&str> = asked.iter().copied().collect();
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !open.remove(entry.key()) {
            return Err(Error::Malformed("an answer about paths that were not asked for, or twice".to_owned()));
        }
        if let TreeEntry::File(file) = entry {
            files.push(file);
        }
    }
    Ok(files)
}

/// What became of a batch about `keys`; `all`: the status says that every line failed.
pub(super) fn outcome(body: &[u8], keys: &HashSet<&str>, all: bool) -> Result<BatchOutcome, Error> {
    #[derive(Deserialize)]
    struct Failure {
        path: String,
        #[serde(default)]
        error: Option<String>,
    }
    #[derive(Deserialize)]
    struct Answer {
        success: bool,
        #[serde(default)]
        failed: List<Failure>,
    }
    let malformed = |why: &str| Err(Error::Malformed(why.to_owned()));
    let answer: Answer = json("batch answer", body)?;
    let failed: Vec<_> = answer.failed.0;
    let named: HashSet<&str> = failed.iter().map(|failure| failure.path.as_str()).collect();
    if !named.is_subset(keys) {
        return malformed("a batch answer about other keys than those sent");
    }
    if (all && named.len() < keys.len()) || (!answer.success && failed.is_empty()) {
        return malformed("a batch answer that says it failed but not where");
    }
    let words = |failure: &Failure| foreign::tame(failure.error.as_deref().unwrap_or("no reason given"), None);
    Ok(BatchOutcome {
        failed: failed
            .into_iter()
            .map(|failure| {
                let why = words(&failure);
                (failure.path, why)
            })
            .collect(),
    })
}

/// Returns true if an answer has the form that [`outcome`] reads and lists failures. Any other answer
/// is about the request as a whole.
pub(super) fn names_failures(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        failed: List<serde::de::IgnoredAny>,
    }
    json::<Answer>("batch answer", body).is_ok_and(|answer| !answer.failed.0.is_empty())
}

/// The CAS token of a token route's answer: from the body, else from its headers (4.4). `secure`:
/// the endpoint is https, so its CAS must be.
pub(super) fn cas_token(body: &[u8], headers: &HeaderMap, secure: bool) -> Result<CasToken, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        cas_url: String,
        exp: u64,
        access_token: String,
    }
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (url, expires, token) = match json::<Answer>("CAS token", body) {
        Ok(answer) => (answer.cas_url, answer.exp, answer.access_token),
        Err(error) => {
            let expires = header("x-xet-token-expiration").and_then(|value| value.trim().parse().ok());
            match (header("x-xet-cas-url"), expires, header("x-xet-access-token")) {
                (Some(url), Some(expires), Some(token)) => (url.to_owned(), expires, token.to_owned()),
                _ => return Err(error),
            }
        }
    };
    if token.is_empty() || token.len() > MAX_CAS_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Malformed("a CAS token that no header can carry".to_owned()));
    }
    Ok(CasToken { url: cas_url(&url, secure)?, token, expires })
}

fn cas_url(text: &str, secure: bool) -> Result<String, Error> {
    let malformed = |why: &str| Err(Error::Malformed(format!("a CAS address that {why}")));
    let Ok(url) = Url::parse(text) else { return malformed("is no URL") };
    match url.scheme() {
        "https" => {}
        "http" if !secure => {}
        "http" => return malformed("is not https although the endpoint is"),
        _ => return malformed("is neither http nor https"),
    }
    if super::route::has_user(&url) || url.query().is_some() || url.fragment().is_some() {
        return malformed("has more than host and path");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn json<T: DeserializeOwned>(what: &str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Malformed(format!("{what}: {}", foreign::json_fault(&error))))
}

fn id(namespace: &str, name: &str) -> Result<BucketId, Error> {
    BucketId::new(namespace, name).map_err(|_| Error::Malformed("a bucket with an impossible id".to_owned()))
}

/// A time that can't be read, or that leaves the years 0 to 9999 in UTC, is no time: nothing here depends on one.
pub(in crate::hub) fn time(text: Option<String>) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(text.as_deref()?, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    (time.year() >= 0).then_some(time)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBucket {
    id: String,
    private: Option<bool>,
    visibility: Option<String>,
    size: u64,
    total_files: u64,
    created_at: Option<String>,
    updated_at: Option<String>,
}

impl RawBucket {
    fn checked(self) -> Result<BucketInfo, Error> {
        let private = match (self.private, self.visibility.as_deref()) {
            (Some(private), _) => private,
            (None, Some(visibility)) => visibility != "public",
            (None, None) => return Err(Error::Malformed("a bucket that is neither private nor public".to_owned())),
        };
        let (namespace, name) = self.id.split_once('/').unwrap_or_default();
        Ok(BucketInfo {
            id: id(namespace, name)?,
            private,
            size: self.size,
            total_files: self.total_files,
            created_at: time(self.created_at),
            updated_at: self.updated_at,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    r#type: String,
    path: String,
    size: Option<u64>,
    xet_hash: Option<Hash>,
    mtime: Option<String>,
    uploaded_at: Option<String>,
}

impl RawEntry {
    fn checked(self) -> Result<TreeEntry, Error> {
        let (key, uploaded_at) = (self.path, time(self.uploaded_at));
        match (self.r#type.as_str(), self.size) {
            ("file", Some(size)) => {
                let mtime = time(self.mtime);
                Ok(TreeEntry::File(FileEntry { key, size, hash: self.xet_hash, blob: None, mtime, uploaded_at }))
            }
            ("file", None) => Err(Error::Malformed("a file without a size".to_owned())),
            ("directory", _) => Ok(TreeEntry::Directory { key, uploaded_at }),
            _ => Err(Error::Malformed("an entry that is neither file nor directory".to_owned())),
        }
    }
}

/// The bytes of an object id in hex.
struct Oid<const N: usize>([u8; N]);

impl<const N: usize> std::str::FromStr for Oid<N> {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != N || !rest.is_empty() {
            return Err(());
        }
        let mut id = [0; N];
        for (byte, pair) in id.iter_mut().zip(pairs) {
            let digit = |letter: u8| char::from(letter).to_digit(16).ok_or(());
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Self(id))
    }
}

/// An entry of a repository. The sizes that it has twice are those of the content and of its LFS pointer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRepoEntry {
    r#type: String,
    path: String,
    oid: Option<String>,
    size: Option<u64>,
    xet_hash: Option<Hash>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    oid: String,
    size: u64,
}

impl RawRepoEntry {
    fn checked(self) -> Result<TreeEntry, Error> {
        let malformed = |why: &str| Error::Malformed(format!("an entry of a repository {why}"));
        let size = self.lfs.as_ref().map(|lfs| lfs.size).or(self.size);
        match (self.r#type.as_str(), size) {
            ("directory", _) => Ok(TreeEntry::Directory { key: self.path, uploaded_at: None }),
            ("file", Some(size)) => {
                let blob = || {
                    let id = self.oid.as_deref().and_then(|text| text.parse::<Oid<20>>().ok());
                    let sha256 = self.lfs.as_ref().map(|lfs| lfs.oid.parse::<Oid<32>>());
                    let sha256 = sha256.transpose().map_err(|()| malformed("with an unreadable SHA-256"))?;
                    let id = id.ok_or_else(|| malformed("without a blob id"))?;
                    Ok::<_, Error>(Blob { id: id.0, sha256: sha256.map(|sha256| sha256.0) })
                };
                let blob = if self.xet_hash.is_none() { Some(blob()?) } else { None };
                let (hash, mtime, uploaded_at) = (self.xet_hash, None, None);
                Ok(TreeEntry::File(FileEntry { key: self.path, size, hash, blob, mtime, uploaded_at }))
            }
            ("file", None) => Err(malformed("without a size")),
            _ => Err(malformed("that is neither file nor directory")),
        }
    }
}

/// A JSON array of at most [`MAX_ITEMS`] items.
struct List<T>(Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_ITEMS} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MAX_ITEMS {
                return Err(A::Error::custom("too many items"));
            }
            list.push(item);
        }
        Ok(List(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const HASH: &str = "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918";

    fn file(key: &str) -> String {
        format!(r#"{{"type":"file","path":"{key}","size":1}}"#)
    }

    fn directory(key: &str) -> String {
        format!(r#"{{"type":"directory","path":"{key}"}}"#)
    }

    fn keys(entries: &[String], prefix: &str, recursive: bool) -> Option<Vec<String>> {
        let body = format!("[{}]", entries.join(","));
        match tree(body.as_bytes(), prefix, recursive) {
            Ok(entries) => Some(entries.iter().map(|entry| entry.key().to_owned()).collect()),
            Err(Error::Malformed(_)) => None,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_fields_of_an_entry_are_read() {
        let body = format!(
            r#"[{{"type":"file","path":"a/ü\"\n","size":18446744073709551615,"xetHash":"{HASH}","mtime":"2026-02-06T17:37:57.123Z",
            "uploadedAt":"2026-02-06T18:37:57+01:00","contentType":"x","new":[{{}}]}},{{"type":"directory","path":"a/b","uploadedAt":null}}]"#
        );
        let entries = tree(body.as_bytes(), "a", false).unwrap();
        let expected = FileEntry {
            key: "a/ü\"\n".to_owned(),
            size: u64::MAX,
            hash: Some(Hash(std::array::from_fn(|i| i as u8))),
            blob: None,
            mtime: Some(datetime!(2026-02-06 17:37:57.123 UTC)),
            uploaded_at: Some(datetime!(2026-02-06 17:37:57 UTC)),
        };
        assert_eq!(entries[0], TreeEntry::File(expected));
        assert_eq!(entries[1], TreeEntry::Directory { key: "a/b".to_owned(), uploaded_at: None });
    }

    #[test]
    fn raw_prefix_siblings_are_left_out_and_strangers_refused() {
        let siblings = ["logs", "logs_old/x", "logs#1", "logs/x", "logs/y"].map(file);
        assert_eq!(keys(&siblings, "logs", false).unwrap(), ["logs/x", "logs/y"]);
        assert_eq!(keys(&[directory("logs"), directory("logs_old")], "logs", false).unwrap(), [""; 0]);
        for stranger in ["", "log", "other", "/logs/x", "Logs/x", "a/logs/x"] {
            assert_eq!(keys(&[file("logs/x"), file(stranger)], "logs", false), None, "{stranger}");
        }
        assert_eq!(keys(&[file("")], "", true), None);
    }

    #[test]
    fn a_listing_of_one_level_holds_one_level() {
        assert_eq!(keys(&[file("a/b/c")], "a", false), None);
        assert_eq!(keys(&[file("a/b")], "", false), None);
        assert_eq!(keys(&[directory("a/b/c")], "a", false), None);
        assert_eq!(keys(&[file("a/b/c"), file("a/d")], "a", true).unwrap(), ["a/b/c", "a/d"]);
        assert_eq!(keys(&[directory("a/b")], "a", true), None);
        // Keys without a clear level stay visible, wherever the Hub shows them.
        let odd = [file("a//b"), file("a/"), directory("a//"), directory("a/.."), file("a/b/")];
        assert_eq!(keys(&odd, "a", false).unwrap(), ["a//b", "a/", "a//", "a/..", "a/b/"]);
    }

    #[test]
    fn garbage_is_malformed_and_quotes_nothing() {
        for body in [
            "",
            "null",
            "{}",
            "[",
            "[{}]",
            "[null]",
            "<html>hf_secret</html>",
            r#"[{"type":"file","path":"a"}]"#,
            r#"[{"type":"file","path":"a","size":-1}]"#,
            r#"[{"type":"file","path":"a","size":1.5}]"#,
            r#"[{"type":"file","path":"a","size":18446744073709551616}]"#,
            r#"[{"type":"file","path":"a","size":"hf_secret"}]"#,
            r#"[{"type":"file","path":7,"size":1}]"#,
            r#"[{"type":"file","path":"\ud800","size":1}]"#,
            r#"[{"type":"file","path":"a","size":1,"xetHash":"hf_secret"}]"#,
            r#"[{"type":"file","path":"a","size":1,"mtime":5}]"#,
            r#"[{"type":"file","path":"a","path":"b","size":1}]"#,
            r#"[{"type":"hf_secret","path":"a","size":1}]"#,
            "[] []",
        ] {
            match tree(body.as_bytes(), "", true) {
                Err(Error::Malformed(why)) => assert!(!why.contains("secret"), "{why}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        assert!(matches!(
            tree(b"[{\"type\":\"file\",\"path\":\"\xff\",\"size\":1}]", "", true),
            Err(Error::Malformed(_))
        ));
        assert!(matches!(tree("[".repeat(200_000).as_bytes(), "", true), Err(Error::Malformed(_))));
    }

    #[test]
    fn lists_are_bounded() {
        let full: Vec<_> = (0..MAX_ITEMS).map(|i| file(&i.to_string())).collect();
        assert_eq!(keys(&full, "", true).unwrap().len(), MAX_ITEMS);
        assert_eq!(keys(&[full, vec![file("x")]].concat(), "", true), None);
    }

    #[test]
    fn times_out_of_reach_are_no_times() {
        for text in ["", "yesterday", "2026-02-06", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59"] {
            assert_eq!(time(Some(text.to_owned())), None, "{text}");
        }
        assert_eq!(time(Some("2026-02-06T17:37:57Z".to_owned())), Some(datetime!(2026-02-06 17:37:57 UTC)));
    }

    #[test]
    fn paths_not_asked_for_are_refused() {
        let answer = |keys: &[&str]| format!("[{}]", keys.iter().map(|k| file(k)).collect::<Vec<_>>().join(","));
        let asked = ["a", "b/c"];
        assert_eq!(files(answer(&["b/c"]).as_bytes(), &asked).unwrap()[0].key, "b/c");
        assert_eq!(files(format!("[{}]", directory("a")).as_bytes(), &asked).unwrap(), []);
        for keys in [&["b"][..], &["a", "a"], &[""]] {
            assert!(matches!(files(answer(keys).as_bytes(), &asked), Err(Error::Malformed(_))), "{keys:?}");
        }
    }

    #[test]
    fn a_batch_answer_says_which_keys_failed_or_is_unusable() {
        let keys = HashSet::from(["a", "b"]);
        let failed = |body: &str, all| outcome(body.as_bytes(), &keys, all).ok().map(|outcome| outcome.failed);
        let one = vec![("a".to_owned(), "no".to_owned())];
        assert_eq!(failed(r#"{"success":true,"processed":2,"succeeded":2,"failed":[]}"#, false), Some(vec![]));
        assert_eq!(failed(r#"{"success":true}"#, false), Some(vec![]));
        assert_eq!(failed(r#"{"success":false,"failed":[{"path":"a","error":"no"}]}"#, false), Some(one.clone()));
        assert_eq!(failed(r#"{"success":true,"failed":[{"path":"a","error":"no"}]}"#, false), Some(one));
        let both = r#"{"success":false,"failed":[{"path":"a"},{"path":"b","error":null}]}"#;
        assert_eq!(failed(both, true).unwrap().len(), 2);
        for (body, all) in [
            (r#"{"success":false,"failed":[]}"#, false),
            (r#"{"success":false}"#, true),
            (r#"{"success":false,"failed":[{"path":"a","error":"no"}]}"#, true),
            (r#"{"success":false,"failed":[{"path":"c","error":"no"}]}"#, false),
            (r#"{"failed":[]}"#, false),
            ("", false),
            ("[]", false),
        ] {
            assert_eq!(failed(body, all), None, "{body}");
        }
    }

    #[test]
    fn a_cas_token_comes_from_the_body_else_from_the_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("x-xet-cas-url", "http://header/".parse().unwrap());
        headers.insert("x-xet-access-token", "t-header".parse().unwrap());
        headers.insert("x-xet-token-expiration", "7".parse().unwrap());
        let body = br#"{"casUrl":"http://body:1/cas/","exp":9,"accessToken":"t-body"}"#;
        let token = cas_token(body, &headers, false).unwrap();
        assert_eq!((&*token.url, &*token.token, token.expires), ("http://body:1/cas", "t-body", 9));
        let token = cas_token(b"{}", &headers, false).unwrap();
        assert_eq!((&*token.url, &*token.token, token.expires), ("http://header", "t-header", 7));
        headers.remove("x-xet-cas-url");
        assert!(matches!(cas_token(b"{}", &headers, false), Err(Error::Malformed(_))));
    }

    #[test]
    fn unsafe_cas_addresses_and_tokens_are_refused() {
        assert_eq!(cas_url("https://cas.example/", true).unwrap(), "https://cas.example");
        for bad in
            ["http://cas.example", "ftp://x", "file:///x", "cas", "", "https://u@h", "https://h?q", "https://h#f"]
        {
            assert!(cas_url(bad, true).is_err(), "{bad}");
        }
        for bad in ["", "a b", "a\\nb", "é", &"x".repeat(MAX_CAS_TOKEN + 1)] {
            let body = format!(r#"{{"casUrl":"http://h","exp":9,"accessToken":"{bad}"}}"#);
            assert!(cas_token(body.as_bytes(), &HeaderMap::new(), false).is_err(), "{bad}");
        }
    }

    #[test]
    fn buckets_need_their_mandatory_fields() {
        let body = br#"{"id":"a/b","private":true,"size":3,"totalFiles":1,"createdAt":"2026-02-06T17:37:57.000Z","updatedAt":"u"}"#;
        let info = bucket(body).unwrap();
        assert_eq!((info.id.to_string(), info.private, info.size, info.total_files), ("a/b".to_owned(), true, 3, 1));
        assert_eq!(
            (info.created_at, info.updated_at.as_deref()),
            (Some(datetime!(2026-02-06 17:37:57 UTC)), Some("u"))
        );
        assert!(!bucket(br#"{"id":"a/b","visibility":"public","size":3,"totalFiles":1}"#).unwrap().private);
        for bad in [
            r#"{"id":"a/b","size":3,"totalFiles":1}"#,
            r#"{"id":"ab","private":true,"size":3,"totalFiles":1}"#,
            r#"{"id":"a/../b","private":true,"size":3,"totalFiles":1}"#,
            r#"{"id":"a/b","private":true,"totalFiles":1}"#,
        ] {
            assert!(matches!(bucket(bad.as_bytes()), Err(Error::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn the_created_id_is_read_from_its_url() {
        let id = |url: &str| created(format!(r#"{{"url":"{url}"}}"#).as_bytes()).ok().map(|id| id.to_string());
        assert_eq!(id("http://h/x/buckets/alice/b").as_deref(), Some("alice/b"));
        for bad in ["", "http://h/alice/b", "buckets/b", "http://h/buckets/alice/..", "http://h/buckets/alice/b/c"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
