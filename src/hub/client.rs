//! The Hub over HTTP (Hub API spec, sections 1 to 4).
//!
//! Every answer is checked before it counts: its size, its form, and that it is about what was asked. Memory per call:
//! 32 MiB of listing or 8 MiB of batch answer at most, and what they parse to.

use super::retry::Policy;
use super::token::TokenProvider;
use super::transport::{Answer, Call, Repeat, Transport};
use super::{
    BatchOp, BatchOutcome, BucketId, BucketInfo, Cursor, Error, FileEntry, Hub, Identity, TreePage, parse, route,
};
use crate::xet::{CasToken, Scope};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

pub use super::tokens::bucket_tokens;

/// Largest page of a listing, and largest answer about 1000 paths, in bytes. 5000 entries, the largest page of the API,
/// have 1 KiB keys and 250 bytes beside them: 6 MiB, and more where keys are escaped.
pub(super) const MAX_LISTING: usize = 32 << 20;
/// Largest answer to a batch, in bytes: 1000 lines that failed, each with its key and a page of reasons.
const MAX_OUTCOME: usize = 8 << 20;
/// Largest answer about one thing (a user, a bucket, a token), in bytes. A user with 1000
/// organisations has about half of it.
pub(super) const MAX_OBJECT: usize = 1 << 20;

/// Entries asked for per page: the API's default, so that no server refuses it.
pub(super) const PAGE: usize = 1000;
/// Paths or operations per request: what the Hub's own clients send.
const GROUP: usize = 1000;
/// Most bytes of keys and fields per request, unless one alone is longer. Servers commonly refuse
/// bodies above some MiB.
const GROUP_BYTES: usize = 1 << 20;
/// Most pages of buckets read: nobody has as many, and a Hub that sends pages without end has to stop somewhere.
const MAX_BUCKET_PAGES: usize = 100;

/// A Hub client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(super) transport: Arc<Transport>,
}

impl Client {
    /// A client of the Hub at `base` (no trailing slash). `http` must not follow redirects by itself.
    pub fn new(base: &str, http: reqwest::Client, token: TokenProvider, policy: Policy) -> Result<Self, Error> {
        let (_, url) = super::endpoint::web(base)?;
        Ok(Self { transport: Arc::new(Transport::new(url, http, token, policy)) })
    }

    /// Reads a byte range of an object through its resolve URL. Returns exactly these bytes or an error.
    pub async fn resolve_range(&self, bucket: &BucketId, key: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let path =
            route::resolve(bucket, key).ok_or_else(|| Error::Malformed("a key that no URL can name".to_owned()))?;
        match self.range(&path, range).await? {
            Ok(bytes) => Ok(bytes),
            Err(answer) => Err(self.explain(bucket, &answer).await),
        }
    }

    /// Reads a byte range of what a path leads to, at other hosts too. Returns exactly these bytes, or the answer of a
    /// Hub that refuses.
    pub(super) async fn range(&self, path: &str, range: Range<u64>) -> Result<Result<Bytes, Answer>, Error> {
        let last = range.end.checked_sub(1).filter(|last| *last >= range.start);
        let Some(last) = last else { return Ok(Ok(Bytes::new())) };
        let asked = format!("bytes={}-{last}", range.start);
        let length = usize::try_from(range.end - range.start)
            .map_err(|_| Error::Malformed("a range larger than memory".to_owned()))?;
        let mut call = self.read(path, length)?;
        call.range = HeaderValue::from_str(&asked).ok();
        call.abroad = true;
        let answer = self.transport.send(&call).await?;
        match answer.status {
            StatusCode::PARTIAL_CONTENT => in_range(&answer, range.start, last)?,
            // The whole object, and no more than was asked for: the limit saw to that.
            StatusCode::OK if range.start == 0 => {}
            StatusCode::OK => return Err(Error::Malformed("an answer that ignores the range".to_owned())),
            _ => return Ok(Err(answer)),
        }
        match answer.body.len() == length {
            true => Ok(Ok(answer.body)),
            false => Err(Error::Malformed(format!("{} bytes instead of {length}", answer.body.len()))),
        }
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        // The base has no slash at its end and the path one at its start: they are joined as text,
        // so that a base with a path keeps it.
        let base = self.transport.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}")).map_err(|_| Error::Malformed("a request without a URL".to_owned()))
    }

    pub(super) fn read(&self, path: &str, limit: usize) -> Result<Call, Error> {
        let url = self.url(path)?;
        Ok(Call {
            method: Method::GET,
            url,
            content: None,
            range: None,
            repeat: Repeat::Freely,
            repeat_within: Duration::MAX,
            limit,
            abroad: false,
            bodiless: false,
        })
    }

    pub(super) fn post(&self, path: &str, kind: &'static str, body: String, limit: usize) -> Result<Call, Error> {
        let content = Some((kind, Bytes::from(body)));
        Ok(Call { method: Method::POST, content, repeat: Repeat::WhenRefused, ..self.read(path, limit)? })
    }

    /// Sends a call about a bucket and takes 2xx only.
    async fn ask(&self, bucket: &BucketId, call: &Call) -> Result<Answer, Error> {
        let answer = self.transport.send(call).await?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.explain(bucket, &answer).await),
        }
    }

    /// The error of an answer about a bucket. The Hub says 404, or 401 to strangers, for the id of a repository: worth
    /// a question, since "not found" would be a lie.
    async fn explain(&self, bucket: &BucketId, answer: &Answer) -> Error {
        let error = answer.refusal(Some(bucket));
        let stranger =
            matches!(&error, Error::Unauthorized(words) if words != "Invalid credentials in Authorization header");
        if !stranger && !matches!(error, Error::BucketNotFound(_)) {
            return error;
        }
        match self.repository_kind(bucket).await {
            Some(kind) => Error::NotABucket { id: bucket.clone(), kind },
            None => error,
        }
    }

    /// The kind of the repository of this name, if there is one; best effort.
    async fn repository_kind(&self, id: &BucketId) -> Option<&'static str> {
        let exists = async |route: &str| {
            let path = format!("/api/{route}/{id}");
            let call = Call { repeat: Repeat::Never, bodiless: true, ..self.read(&path, 0).ok()? };
            let answer = self.transport.send(&call).await.ok()?;
            answer.status.is_success().then_some(())
        };
        let (model, dataset, space) = futures::join!(exists("models"), exists("datasets"), exists("spaces"));
        model.map(|()| "model").or(dataset.map(|()| "dataset")).or(space.map(|()| "space"))
    }

    /// Fails where a bucket that was to be private isn't: an API that knows neither of the two
    /// fields for it would make a public one.
    async fn confirm_private(&self, bucket: &BucketId, answer: &Answer) -> Result<(), Error> {
        let id = if bucket.namespace() == "me" { parse::created(&answer.body)? } else { bucket.clone() };
        match self.bucket_info(&id).await?.private {
            true => Ok(()),
            false => Err(Error::Malformed(format!("bucket {id} was to be private, but the Hub made it public"))),
        }
    }

    async fn batch_group(
        &self,
        bucket: &BucketId,
        operations: &[BatchOp],
        repeat_within: Duration,
    ) -> Result<BatchOutcome, Error> {
        let path = route::bucket(bucket, "/batch");
        let call = self.post(&path, "application/x-ndjson", lines(operations), MAX_OUTCOME)?;
        let call = Call { repeat_within, ..call };
        let answer = self.transport.send(&call).await?;
        let keys: HashSet<&str> = operations.iter().map(BatchOp::key).collect();
        match answer.status {
            status if status.is_success() => parse::outcome(&answer.body, &keys, false),
            // All lines failed, unless it is a request that was refused as a whole.
            StatusCode::UNPROCESSABLE_ENTITY if parse::names_failures(&answer.body) => {
                parse::outcome(&answer.body, &keys, true)
            }
            _ => Err(self.explain(bucket, &answer).await),
        }
    }
}

#[async_trait]
impl Hub for Client {
    async fn whoami(&self) -> Result<Identity, Error> {
        let answer = self.transport.send(&self.read("/api/whoami-v2", MAX_OBJECT)?).await?;
        match answer.status.is_success() {
            true => parse::identity(&answer.body),
            false => Err(answer.refusal(None)),
        }
    }

    async fn create_bucket(&self, bucket: &BucketId, private: bool, exist_ok: bool) -> Result<(), Error> {
        // Older servers know the first field, newer ones the second.
        let visibility = if private { "private" } else { "public" };
        let body = json!({ "private": private, "visibility": visibility }).to_string();
        let mut call = self.post(&route::bucket(bucket, ""), "application/json", body, MAX_OBJECT)?;
        if exist_ok {
            call.repeat = Repeat::Freely;
        }
        let answer = self.transport.send(&call).await?;
        match answer.status {
            status if status.is_success() && private => self.confirm_private(bucket, &answer).await,
            status if status.is_success() => Ok(()),
            StatusCode::CONFLICT if exist_ok => Ok(()),
            StatusCode::CONFLICT => Err(Error::Conflict(bucket.clone())),
            // Who may not create in a namespace may still have been let into a bucket there.
            StatusCode::FORBIDDEN if exist_ok && self.bucket_info(bucket).await.is_ok() => Ok(()),
            StatusCode::NOT_FOUND => Err(answer.refusal(None)),
            _ => Err(answer.refusal(Some(bucket))),
        }
    }

    async fn bucket_info(&self, bucket: &BucketId) -> Result<BucketInfo, Error> {
        let answer = self.ask(bucket, &self.read(&route::bucket(bucket, ""), MAX_OBJECT)?).await?;
        parse::bucket(&answer.body)
    }

    async fn list_buckets(&self, namespace: &str) -> Result<Vec<BucketInfo>, Error> {
        // The namespace of an id obeys the same rules as one alone.
        let checked = BucketId::new(namespace, "x").map_err(|_| Error::InvalidId(namespace.to_owned()))?;
        let mut call = self.read(&format!("/api/buckets/{}", checked.namespace()), MAX_LISTING)?;
        let mut buckets = Vec::new();
        for _ in 0..MAX_BUCKET_PAGES {
            let answer = self.transport.send(&call).await?;
            if !answer.status.is_success() {
                return Err(answer.refusal(None));
            }
            buckets.extend(parse::buckets(&answer.body)?);
            match route::next_page(&self.transport.base, &call.url, &answer.headers)? {
                Some(next) => call.url = next,
                None => return Ok(buckets),
            }
        }
        Err(Error::Malformed("a list of buckets without end".to_owned()))
    }

    async fn delete_bucket(&self, bucket: &BucketId) -> Result<(), Error> {
        let call = Call {
            method: Method::DELETE,
            repeat: Repeat::WhenRefused,
            bodiless: true,
            ..self.read(&route::bucket(bucket, ""), 0)?
        };
        self.ask(bucket, &call).await.map(drop)
    }

    async fn tree_page(
        &self,
        bucket: &BucketId,
        prefix: &str,
        recursive: bool,
        cursor: Option<&Cursor>,
    ) -> Result<TreePage, Error> {
        let mut call = self.read(&route::tree(bucket, prefix, recursive, PAGE), MAX_LISTING)?;
        if let Some(Cursor(url)) = cursor {
            call.url = route::same_origin(&self.transport.base, url)?;
        }
        let answer = self.ask(bucket, &call).await?;
        let entries = parse::tree(&answer.body, prefix, recursive)?;
        let next = route::next_page(&self.transport.base, &call.url, &answer.headers)?;
        if next.as_ref() == Some(&call.url) {
            return Err(Error::Malformed("a page of a listing that is its own next page".to_owned()));
        }
        Ok(TreePage { entries, next: next.map(|url| Cursor(url.into())) })
    }

    async fn paths_info(&self, bucket: &BucketId, keys: &[String]) -> Result<Vec<FileEntry>, Error> {
        // The empty key names nothing, and a key asked for twice is answered once.
        let mut seen = HashSet::new();
        let keys: Vec<&str> =
            keys.iter().map(String::as_str).filter(|key| !key.is_empty() && seen.insert(*key)).collect();
        let path = route::bucket(bucket, "/paths-info");
        let mut files = Vec::new();
        for group in groups(&keys, |key| key.len()) {
            let body = json!({ "paths": group }).to_string();
            let mut call = self.post(&path, "application/json", body, MAX_LISTING)?;
            call.repeat = Repeat::Freely;
            files.extend(parse::files(&self.ask(bucket, &call).await?.body, group)?);
        }
        Ok(files)
    }

    async fn batch_within(
        &self,
        bucket: &BucketId,
        operations: &[BatchOp],
        repeat_within: Duration,
    ) -> Result<BatchOutcome, Error> {
        let mut outcome = BatchOutcome::default();
        let mut answered = 0;
        for group in groups(operations, size) {
            match self.batch_group(bucket, group, repeat_within).await {
                Ok(answer) => outcome.failed.extend(answer.failed),
                Err(error) if answered == 0 => return Err(error),
                Err(error) => return Err(Error::Partial { answered, outcome, source: Box::new(error) }),
            }
            answered += group.len();
        }
        Ok(outcome)
    }

    async fn cas_token(&self, bucket: &BucketId, scope: Scope) -> Result<CasToken, Error> {
        let route = match scope {
            Scope::Read => "/xet-read-token",
            Scope::Write => "/xet-write-token",
        };
        let answer = self.ask(bucket, &self.read(&route::bucket(bucket, route), MAX_OBJECT)?).await?;
        parse::cas_token(&answer.body, &answer.headers, self.transport.base.scheme() == "https")
    }
}

/// Whether a partial answer is of exactly the bytes asked for.
fn in_range(answer: &Answer, first: u64, last: u64) -> Result<(), Error> {
    let value = answer.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match value.split_once('/') {
        Some((range, _)) if range.trim() == format!("bytes {first}-{last}") => Ok(()),
        _ => Err(Error::Malformed("an answer of another range".to_owned())),
    }
}

/// Slices of at most [`GROUP`] items and [`GROUP_BYTES`] bytes, or of one item.
pub(super) fn groups<T>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0usize;
        let fitting = rest.iter().take(GROUP).take_while(|item| {
            bytes = bytes.saturating_add(size(item));
            bytes <= GROUP_BYTES
        });
        let count = fitting.count().max(1).min(rest.len());
        let (group, after) = rest.split_at(count);
        rest = after;
        (!group.is_empty()).then_some(group)
    })
}

/// About the bytes of an operation's line, beside what all lines have.
fn size(operation: &BatchOp) -> usize {
    let kind = match operation {
        BatchOp::Add { content_type, .. } => content_type.as_ref().map_or(0, String::len),
        BatchOp::Copy { .. } | BatchOp::Delete { .. } => 0,
    };
    operation.key().len() + kind
}

/// The body of a batch (4.3).
fn lines(operations: &[BatchOp]) -> String {
    let mut body = String::new();
    for operation in operations {
        let line = match operation {
            BatchOp::Add { key, hash, mtime, content_type } => {
                let milliseconds = super::mtime_millis(*mtime);
                let mut line =
                    json!({ "type": "addFile", "path": key, "xetHash": hash.to_string(), "mtime": milliseconds });
                if let Some(kind) = content_type {
                    line["contentType"] = json!(kind);
                }
                line
            }
            BatchOp::Copy { key, hash, from, mtime } => json!({
                "type": "copyFile", "path": key, "xetHash": hash.to_string(), "sourceRepoType": "bucket",
                "sourceRepoId": from.to_string(), "mtime": super::mtime_millis(*mtime),
            }),
            BatchOp::Delete { key } => json!({ "type": "deleteFile", "path": key }),
        };
        body.push_str(&line.to_string());
        body.push('\n');
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xet::Hash;
    use time::macros::datetime;

    #[test]
    fn groups_hold_every_item_once_and_keep_both_limits() {
        let sizes = |items: &[usize]| -> Vec<usize> { groups(items, |size| *size).map(<[usize]>::len).collect() };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[1; 1000]), [1000]);
        assert_eq!(sizes(&[1; 2001]), [1000, 1000, 1]);
        assert_eq!(sizes(&[GROUP_BYTES, 1, GROUP_BYTES - 1, 1, usize::MAX, usize::MAX]), [1, 2, 1, 1, 1]);
    }

    #[test]
    fn batch_lines_are_one_json_object_each() {
        let add =
            |mtime, content_type| BatchOp::Add { key: "a\n\"é".to_owned(), hash: Hash::ZERO, mtime, content_type };
        let zeros = "0".repeat(64);
        assert_eq!(
            lines(&[
                add(datetime!(2026-02-06 17:37:57.123_999 UTC), None),
                add(datetime!(1969-12-31 23:59:58.999_999 UTC), Some("text/plain".to_owned())),
                BatchOp::Copy {
                    key: "c".to_owned(),
                    hash: Hash::ZERO,
                    from: BucketId::new("n", "b").unwrap(),
                    mtime: datetime!(2026-02-06 17:37:57 UTC),
                },
                BatchOp::Delete { key: "b".to_owned() },
            ]),
            format!(
                "{{\"mtime\":1770399477123,\"path\":\"a\\n\\\"é\",\"type\":\"addFile\",\"xetHash\":\"{zeros}\"}}\n\
                 {{\"contentType\":\"text/plain\",\"mtime\":-1001,\"path\":\"a\\n\\\"é\",\"type\":\"addFile\",\"xetHash\":\"{zeros}\"}}\n\
                 {{\"mtime\":1770399477000,\"path\":\"c\",\"sourceRepoId\":\"n/b\",\"sourceRepoType\":\"bucket\",\"type\":\"copyFile\",\"xetHash\":\"{zeros}\"}}\n\
                 {{\"path\":\"b\",\"type\":\"deleteFile\"}}\n"
            )
        );
    }
}
