//! Lists of objects: `ListObjects`, `ListObjectsV2`, `ListObjectVersions`.

use super::auth::Caller;
use super::{Service, etag};
use crate::gateway::{After, Bucket, Error, Page, Query};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

/// Most entries of a page in S3. Larger numbers are accepted and mean this one.
const MAX_KEYS: usize = 1000;
/// Bytes that the encoding `url` leaves as they are.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// What the three kinds of lists have in common.
struct Request {
    bucket: String,
    prefix: Option<String>,
    delimiter: Option<String>,
    encoding: Option<EncodingType>,
    limit: Option<i32>,
    after: After,
    /// True if `after` comes from a continuation token. `None`: it is a marker, which may be the end of a page too.
    continues: Option<bool>,
}

/// A page in the words of S3.
struct Reply {
    objects: Vec<Object>,
    prefixes: Vec<CommonPrefix>,
    next: Option<After>,
    limit: i32,
    encode: Encode,
}

/// How keys are written.
#[derive(Clone, Copy)]
pub(super) struct Encode(bool);

impl Encode {
    /// Reads the encoding type of a request.
    pub(super) fn of(kind: Option<&EncodingType>) -> S3Result<Self> {
        match kind.map(EncodingType::as_str) {
            None => Ok(Self(false)),
            Some(EncodingType::URL) => Ok(Self(true)),
            Some(_) => Err(super::s3_error(Error::InvalidArgument("the encoding type is url"))),
        }
    }

    pub(super) fn text(self, text: &str) -> String {
        if self.0 { utf8_percent_encode(text, KEPT).to_string() } else { text.to_owned() }
    }

    fn option(self, text: Option<&String>) -> Option<String> {
        text.map(|text| self.text(text))
    }
}

impl Service {
    async fn list(&self, request: &Request, owner: Option<Owner>) -> S3Result<Reply> {
        let bucket = self.bucket(&request.bucket).await?;
        let limit = match request.limit {
            None => MAX_KEYS,
            Some(limit) => usize::try_from(limit)
                .map_err(|_| super::s3_error(Error::InvalidArgument("max-keys is not negative")))?
                .min(MAX_KEYS),
        };
        let encode = Encode::of(request.encoding.as_ref())?;
        let query = Query {
            prefix: request.prefix.clone().unwrap_or_default(),
            delimiter: request.delimiter.clone().filter(|delimiter| !delimiter.is_empty()),
            after: request.after.clone(),
            continues: request.continues,
            limit,
        };
        let page = bucket.list(&query).await.map_err(|error| self.fail(&bucket, error))?;
        let objects = entries(&bucket, &page, encode, owner).await.map_err(|error| self.fail(&bucket, error))?;
        let prefix = |prefix: &String| CommonPrefix { prefix: Some(encode.text(prefix)) };
        // `limit` is at most 1000.
        Ok(Reply {
            objects,
            prefixes: page.prefixes.iter().map(prefix).collect(),
            next: page.next,
            limit: limit as i32,
            encode,
        })
    }
}

async fn entries(bucket: &Bucket, page: &Page, encode: Encode, owner: Option<Owner>) -> Result<Vec<Object>, Error> {
    let etags = bucket.etags(&page.objects).await?;
    let object = |(listed, tag): (&crate::gateway::Listed, Option<String>)| Object {
        e_tag: tag.map(etag),
        key: Some(encode.text(&listed.key)),
        last_modified: Some(listed.modified.unwrap_or(time::OffsetDateTime::UNIX_EPOCH).into()),
        size: i64::try_from(listed.len).ok(),
        owner: owner.clone(),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Object::default()
    };
    Ok(page.objects.iter().zip(etags).map(object).collect())
}

fn owner(caller: &Caller) -> Owner {
    let id = Some(caller.id().to_owned());
    Owner { display_name: id.clone(), id }
}

/// Returns where a page starts after a marker. A marker that is a common prefix stands for all its keys.
fn after_marker(marker: Option<&String>, prefix: Option<&String>, delimiter: Option<&String>) -> After {
    let Some(marker) = marker.filter(|marker| !marker.is_empty()) else { return After::Start };
    let rest = marker.strip_prefix(prefix.map_or("", String::as_str));
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
    match (rest, delimiter) {
        (Some(rest), Some(delimiter))
            if rest.find(delimiter.as_str()).is_some_and(|at| at + delimiter.len() == rest.len()) =>
        {
            After::Prefix(marker.clone())
        }
        _ => After::Key(marker.clone()),
    }
}

/// Returns where a page starts after a continuation token or, on the first page, after a key.
fn after_token(token: Option<&str>, start: Option<&str>) -> Result<After, Error> {
    match (token, start) {
        (Some(token), _) if !token.is_empty() => After::from_token(token),
        (_, Some(start)) if !start.is_empty() => Ok(After::Key(start.to_owned())),
        (_, _) => Ok(After::Start),
    }
}

/// Returns the marker of the next page.
fn marker(next: &After) -> Option<String> {
    match next {
        After::Start => None,
        After::Key(text) | After::Prefix(text) => Some(text.clone()),
    }
}

pub(super) async fn list_objects(
    service: &Service,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let owner = owner(&Caller::of(&request.extensions)?);
    let ListObjectsInput { bucket, delimiter, encoding_type, marker: start, max_keys, prefix, .. } = request.input;
    let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
    let after = after_marker(start.as_ref(), prefix.as_ref(), delimiter.as_ref());
    let (encoding, limit) = (encoding_type, max_keys);
    let request = Request { bucket, prefix, delimiter, encoding, limit, after, continues: None };
    let Reply { objects, prefixes, next, limit, encode } = service.list(&request, Some(owner)).await?;
    let Request { bucket, prefix, delimiter, encoding, .. } = request;
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(bucket),
        prefix: Some(encode.text(prefix.as_deref().unwrap_or_default())),
        marker: Some(encode.text(start.as_deref().unwrap_or_default())),
        max_keys: Some(limit),
        is_truncated: Some(next.is_some()),
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        // Without a delimiter clients take the last key, as S3 does.
        next_marker: next.as_ref().and_then(marker).filter(|_| delimiter.is_some()).map(|text| encode.text(&text)),
        delimiter: encode.option(delimiter.as_ref()),
        encoding_type: encoding,
        request_charged: None,
    }))
}

pub(super) async fn list_objects_v2(
    service: &Service,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let caller = Caller::of(&request.extensions)?;
    let input = request.input;
    let after =
        after_token(input.continuation_token.as_deref(), input.start_after.as_deref()).map_err(super::s3_error)?;
    let shown_owner = input.fetch_owner.unwrap_or(false).then(|| owner(&caller));
    let request = Request {
        bucket: input.bucket,
        prefix: input.prefix,
        delimiter: input.delimiter.filter(|delimiter| !delimiter.is_empty()),
        encoding: input.encoding_type,
        limit: input.max_keys,
        after,
        continues: Some(input.continuation_token.as_ref().is_some_and(|token| !token.is_empty())),
    };
    let Reply { objects, prefixes, next, limit, encode } = service.list(&request, shown_owner).await?;
    let Request { bucket, prefix, delimiter, encoding, .. } = request;
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(bucket),
        prefix: Some(encode.text(prefix.as_deref().unwrap_or_default())),
        max_keys: Some(limit),
        // Each of the two is at most 1000.
        key_count: Some((objects.len() + prefixes.len()) as i32),
        continuation_token: input.continuation_token,
        is_truncated: Some(next.is_some()),
        next_continuation_token: next.map(|next| next.to_token()),
        contents: Some(objects),
        common_prefixes: Some(prefixes),
        delimiter: encode.option(delimiter.as_ref()),
        encoding_type: encoding,
        start_after: encode.option(input.start_after.as_ref()),
        request_charged: None,
    }))
}

/// Every object has one version, with the id `null`, as in a bucket without versions.
pub(super) async fn list_object_versions(
    service: &Service,
    request: S3Request<ListObjectVersionsInput>,
) -> S3Result<S3Response<ListObjectVersionsOutput>> {
    let owner = owner(&Caller::of(&request.extensions)?);
    let ListObjectVersionsInput { bucket, delimiter, encoding_type, key_marker, max_keys, prefix, .. } = request.input;
    let after = after_marker(key_marker.as_ref(), prefix.as_ref(), delimiter.as_ref());
    let (encoding, limit) = (encoding_type, max_keys);
    let request = Request { bucket, prefix, delimiter, encoding, limit, after, continues: None };
    let Reply { objects, prefixes, next, limit, encode } = service.list(&request, Some(owner)).await?;
    let version = |object: Object| ObjectVersion {
        e_tag: object.e_tag,
        is_latest: Some(true),
        key: object.key,
        last_modified: object.last_modified,
        owner: object.owner,
        size: object.size,
        storage_class: Some(ObjectVersionStorageClass::from_static(ObjectVersionStorageClass::STANDARD)),
        version_id: Some("null".to_owned()),
        ..ObjectVersion::default()
    };
    let next_key = next.as_ref().and_then(marker);
    Ok(S3Response::new(ListObjectVersionsOutput {
        common_prefixes: Some(prefixes),
        delimiter: encode.option(request.delimiter.as_ref()),
        encoding_type: request.encoding,
        is_truncated: Some(next.is_some()),
        key_marker: Some(encode.text(key_marker.as_deref().unwrap_or_default())),
        max_keys: Some(limit),
        name: Some(request.bucket),
        next_version_id_marker: next_key.as_ref().map(|_| "null".to_owned()),
        next_key_marker: encode.option(next_key.as_ref()),
        prefix: Some(encode.text(request.prefix.as_deref().unwrap_or_default())),
        versions: Some(objects.into_iter().map(version).collect()),
        ..ListObjectVersionsOutput::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_that_is_a_common_prefix_stands_for_its_keys() {
        let after = |marker: &str, prefix: &str, delimiter: &str| {
            after_marker(Some(&marker.to_owned()), Some(&prefix.to_owned()), Some(&delimiter.to_owned()))
        };
        assert_eq!(after("", "", "/"), After::Start);
        assert_eq!(after("a/", "", "/"), After::Prefix("a/".into()));
        assert_eq!(after("a/b", "", "/"), After::Key("a/b".into()));
        assert_eq!(after("a/b/", "", "/"), After::Key("a/b/".into()));
        assert_eq!(after("a/b/", "a/", "/"), After::Prefix("a/b/".into()));
        assert_eq!(after("a/", "a/", "/"), After::Key("a/".into()));
        assert_eq!(after("a/", "", ""), After::Key("a/".into()));
    }

    #[test]
    fn keys_are_encoded_as_url_on_request() {
        assert_eq!(Encode(true).text("a b/ü+\n"), "a%20b/%C3%BC%2B%0A");
        assert_eq!(Encode(false).text("a b/ü"), "a b/ü");
    }
}
