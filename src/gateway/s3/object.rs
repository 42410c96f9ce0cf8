//! Operations on single objects.

use super::auth::Caller;
use super::body::{
    check_framing, get_headers, of_store, request_body, request_digests, response_body, set_checksums, set_headers,
};
use super::errors::s3_error;
use super::{Service, etag};
use crate::gateway::{Conditions, Error, Found, Key, Permission, Put, Record, Tags};
use http::{HeaderValue, header};
use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result};
use time::OffsetDateTime;

/// Most keys of one `DeleteObjects` request in S3.
const MAX_DELETES: usize = 1000;
/// Content type of a directory marker whose writer named none.
const DIRECTORY_TYPE: &str = "application/x-directory";

/// Reads an entity tag condition.
pub(super) fn tags(condition: Option<ETagCondition>) -> Option<Tags> {
    condition.map(|condition| match condition {
        ETagCondition::Any => Tags::Any,
        ETagCondition::ETag(tag) => Tags::Of(vec![tag.into_value()]),
    })
}

/// Reads a date condition.
pub(super) fn date(time: Option<Timestamp>) -> Option<OffsetDateTime> {
    time.map(OffsetDateTime::from)
}

/// Reads the conditions of a read: `If-Match` and `If-None-Match`, `If-Modified-Since` and `If-Unmodified-Since`.
fn read_conditions(
    [matches, differs]: [Option<ETagCondition>; 2],
    [after, before]: [Option<Timestamp>; 2],
) -> Conditions {
    Conditions {
        if_match: tags(matches),
        if_none_match: tags(differs),
        if_modified_since: date(after),
        if_unmodified_since: date(before),
        ..Conditions::default()
    }
}

/// Refuses ids of versions: an object has one version, which clients name `null`.
fn check_version(id: Option<&String>) -> S3Result<()> {
    match id.map(String::as_str) {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3s::s3_error!(NoSuchVersion, "the bucket has no versions")),
    }
}

/// Accepts canned lists that let only the owner in.
pub(super) fn accept_private(acl: Option<&str>) -> S3Result<()> {
    match acl {
        None | Some("private" | "bucket-owner-full-control" | "bucket-owner-read") => Ok(()),
        Some(_) => Err(s3s::s3_error!(AccessControlListNotSupported, "access keys of the gateway say who may do what")),
    }
}

/// Refuses encryption with a key that the client sends: the gateway has its own.
fn check_customer_key(algorithm: Option<&String>) -> S3Result<()> {
    match algorithm {
        None => Ok(()),
        Some(_) => Err(s3s::s3_error!(NotImplemented, "keys of the client (SSE-C) are not supported")),
    }
}

/// Returns the error of a read. "Not modified" carries the headers of a cached answer that may have changed.
fn read_error(error: Error, found: &Found) -> S3Error {
    let not_modified = matches!(error, Error::NotModified);
    let mut error = s3_error(error);
    if not_modified {
        let rfc_7231 = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        let modified = found.modified.to_offset(time::UtcOffset::UTC).format(&rfc_7231).ok();
        let headers = [
            (header::ETAG, Some(format!("\"{}\"", found.etag))),
            (header::LAST_MODIFIED, modified),
            (header::CACHE_CONTROL, found.record.headers.cache_control.clone()),
        ];
        let values = headers.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?)));
        error.set_headers(values.collect());
    }
    error
}

/// Part of an object that a request asks for.
struct Selected {
    range: std::ops::Range<u64>,
    /// Content of the header `Content-Range`, if the answer is a part.
    content_range: Option<String>,
}

fn select(range: Option<Range>, part: Option<i32>, found: &Found) -> Result<Selected, Error> {
    let len = found.len;
    let all = Selected { range: 0..len, content_range: None };
    let range = match (range, part) {
        (Some(_), Some(_)) => return Err(Error::InvalidArgument("a range and a part number exclude each other")),
        (None, None) => return Ok(all),
        (None, Some(number)) => match part_range(number, &found.record, len)? {
            Some(range) => range,
            None => return Ok(all),
        },
        // A client that asks for the end of an empty object gets all of it.
        (Some(Range::Suffix { length }), None) if len == 0 && length > 0 => return Ok(all),
        (Some(range), None) => range.check(len).map_err(|_| Error::InvalidRange)?,
    };
    let content_range = format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1));
    Ok(Selected { range, content_range: Some(content_range) })
}

/// Returns the range of a part. `None`: the object is its only part.
fn part_range(number: i32, record: &Record, len: u64) -> Result<Option<std::ops::Range<u64>>, Error> {
    let mut start = 0;
    for (part, at) in record.parts.iter().zip(1..) {
        if at == number {
            return Ok((part.size > 0).then_some(start..start + part.size));
        }
        start += part.size;
    }
    match number {
        1 if record.parts.is_empty() => Ok((len > 0).then_some(0..len)),
        1.. => Err(Error::InvalidRange),
        _ => Err(Error::InvalidArgument("a part number is 1 to 10000")),
    }
}

/// Returns the type of the checksum of an object.
fn checksum_type(record: &Record) -> Option<ChecksumType> {
    let checksum = record.checksum.as_ref()?;
    let kind = if checksum.value.contains('-') { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
    Some(ChecksumType::from_static(kind))
}

/// Returns the headers of an object. A marker of a folder says what it is.
fn shown_headers(key: &Key, found: &Found) -> crate::gateway::Headers {
    let mut headers = found.record.headers.clone();
    if key.is_marker() && headers.content_type.is_none() {
        headers.content_type = Some(DIRECTORY_TYPE.to_owned());
    }
    headers
}

pub(super) async fn head_object(
    service: &Service,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let input = request.input;
    check_version(input.version_id.as_ref())?;
    check_customer_key(input.sse_customer_algorithm.as_ref())?;
    let (bucket, key) = service.at_existing(&input.bucket, &input.key).await?;
    let found = bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    let conditions =
        read_conditions([input.if_match, input.if_none_match], [input.if_modified_since, input.if_unmodified_since]);
    conditions.check_read(found.present()).map_err(|error| read_error(error, &found))?;
    let Selected { range, content_range } = select(input.range, input.part_number, &found).map_err(s3_error)?;
    let mut output = HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        content_length: i64::try_from(range.end - range.start).ok(),
        content_range,
        e_tag: Some(etag(found.etag.clone())),
        last_modified: Some(found.modified.into()),
        parts_count: input.part_number.and(parts_count(&found.record)),
        ..HeadObjectOutput::default()
    };
    set_headers!(output, &shown_headers(&key, &found));
    if wants_checksum(input.checksum_mode.as_ref()) {
        set_checksums!(output, found.record.checksum.as_ref());
        output.checksum_type = checksum_type(&found.record);
    }
    let is_part = output.content_range.is_some();
    let status = if is_part { http::StatusCode::PARTIAL_CONTENT } else { http::StatusCode::OK };
    let mut response = S3Response::with_status(output, status);
    if let Some(count) = tag_count(&found.record) {
        response.headers.insert("x-amz-tagging-count", count.into());
    }
    Ok(response)
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// Returns a part of a multipart object. Parts count from 1, whatever numbers they were uploaded with.
fn part_of(record: &Record, number: Option<i32>) -> Option<&crate::gateway::PartInfo> {
    record.parts.get(usize::try_from(number?.checked_sub(1)?).ok()?)
}

fn tag_count(record: &Record) -> Option<i32> {
    i32::try_from(record.tags.len()).ok().filter(|count| *count > 0)
}

fn parts_count(record: &Record) -> Option<i32> {
    i32::try_from(record.parts.len()).ok().filter(|count| *count > 0)
}

pub(super) async fn get_object(
    service: &Service,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let input = request.input;
    check_version(input.version_id.as_ref())?;
    check_customer_key(input.sse_customer_algorithm.as_ref())?;
    let (bucket, key) = service.at_existing(&input.bucket, &input.key).await?;
    let found = bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    let conditions =
        read_conditions([input.if_match, input.if_none_match], [input.if_modified_since, input.if_unmodified_since]);
    conditions.check_read(found.present()).map_err(|error| read_error(error, &found))?;
    let Selected { range, content_range } = select(input.range, input.part_number, &found).map_err(s3_error)?;
    let object = bucket.open(&found.version).await.map_err(|error| service.fail(&bucket, error))?;
    let len = range.end - range.start;
    let is_part = content_range.is_some();
    let mut output = GetObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        body: Some(response_body(of_store(object.stream(range)))),
        content_length: i64::try_from(len).ok(),
        content_range,
        e_tag: Some(etag(found.etag.clone())),
        last_modified: Some(found.modified.into()),
        parts_count: input.part_number.and(parts_count(&found.record)),
        tag_count: tag_count(&found.record),
        ..GetObjectOutput::default()
    };
    set_headers!(output, &shown_headers(&key, &found));
    // A checksum of the whole can't be compared with a range. A part has its own.
    let part = part_of(&found.record, input.part_number);
    if part.is_some() || (wants_checksum(input.checksum_mode.as_ref()) && !is_part) {
        set_checksums!(output, part.map_or(found.record.checksum.as_ref(), |part| part.checksum.as_ref()));
        output.checksum_type = checksum_type(&found.record);
    }
    let status = if is_part { http::StatusCode::PARTIAL_CONTENT } else { http::StatusCode::OK };
    Ok(S3Response::with_status(output, status))
}

/// Refuses writes that ask for more than the gateway can do.
fn check_put(request: &S3Request<PutObjectInput>) -> S3Result<()> {
    check_framing(request).map_err(s3_error)?;
    let input = &request.input;
    check_customer_key(input.sse_customer_algorithm.as_ref())?;
    accept_private(input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    if input.object_lock_mode.is_some() || input.object_lock_legal_hold_status.is_some() {
        return Err(s3s::s3_error!(InvalidRequest, "the bucket has no object lock"));
    }
    match input.write_offset_bytes {
        None => Ok(()),
        Some(_) => Err(s3s::s3_error!(NotImplemented, "appending to an object is not supported")),
    }
}

pub(super) async fn put_object(
    service: &Service,
    mut request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    check_put(&request)?;
    let digests = request_digests(&request, None).map_err(s3_error)?;
    let (body, len) = request_body(request.input.body.take(), &request.method, &request.headers);
    let input = &mut request.input;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let put = Put {
        len,
        headers: get_headers!(input),
        tags: super::body::tags(input.tagging.as_ref()).map_err(s3_error)?,
        announced: digests.announced,
        algorithm: digests.algorithm,
        late: digests.late,
        conditions: Conditions {
            if_match: tags(input.if_match.take()),
            if_none_match: tags(input.if_none_match.take()),
            ..Conditions::default()
        },
    };
    let found = bucket.put(&key, body, put).await.map_err(|error| service.fail(&bucket, error))?;
    let mut output = PutObjectOutput { e_tag: Some(etag(found.etag)), ..PutObjectOutput::default() };
    set_checksums!(output, found.record.checksum.as_ref());
    output.checksum_type = checksum_type(&found.record);
    Ok(S3Response::new(output))
}

pub(super) async fn delete_object(
    service: &Service,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let input = request.input;
    check_version(input.version_id.as_ref())?;
    let bucket = service.bucket(&input.bucket).await?;
    // No object has a key that can't be stored, so there is nothing to remove.
    if let Ok(key) = Key::parse(&input.key) {
        let conditions = Conditions {
            if_match: tags(input.if_match),
            size: input.if_match_size.and_then(|size| u64::try_from(size).ok()),
            modified: date(input.if_match_last_modified_time),
            ..Conditions::default()
        };
        bucket.delete(&key, conditions).await.map_err(|error| service.fail(&bucket, error))?;
    }
    Ok(S3Response::with_status(DeleteObjectOutput::default(), http::StatusCode::NO_CONTENT))
}

/// Removes objects. Returns each key, with the error if it was not removed.
async fn remove(
    bucket: &std::sync::Arc<crate::gateway::Bucket>,
    caller: &Caller,
    name: &str,
    objects: Vec<ObjectIdentifier>,
) -> S3Result<Vec<(String, Option<S3Error>)>> {
    let mut outcomes: Vec<(String, Option<S3Error>)> = Vec::with_capacity(objects.len());
    let (mut keys, mut places) = (Vec::new(), Vec::new());
    for object in objects {
        let refused = check_version(object.version_id.as_ref())
            .and_then(|()| caller.check(Permission::Write, name, &object.key))
            .err();
        let conditions = Conditions {
            if_match: object.e_tag.map(|tag| Tags::Of(vec![tag.into_value()])),
            size: object.size.and_then(|size| u64::try_from(size).ok()),
            modified: date(object.last_modified_time),
            ..Conditions::default()
        };
        let outcome = match (refused, Key::parse(&object.key)) {
            (Some(refused), _) => Some(refused),
            // No object has a key that can't be stored, so there is nothing to remove.
            (None, Err(_)) => None,
            (None, Ok(key)) if conditions.is_empty() => {
                keys.push(key);
                places.push(outcomes.len());
                None
            }
            // Conditions are checked one by one.
            (None, Ok(key)) => bucket.delete(&key, conditions).await.err().map(s3_error),
        };
        outcomes.push((object.key, outcome));
    }
    for (place, result) in places.into_iter().zip(bucket.delete_all(keys).await.map_err(s3_error)?) {
        outcomes[place].1 = result.err().map(s3_error);
    }
    Ok(outcomes)
}

pub(super) async fn delete_objects(
    service: &Service,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let DeleteObjectsInput { bucket: name, delete, .. } = request.input;
    if delete.objects.is_empty() || delete.objects.len() > MAX_DELETES {
        return Err(s3s::s3_error!(MalformedXML, "a request removes 1 to 1000 objects"));
    }
    let bucket = service.bucket(&name).await?;
    let quiet = delete.quiet.unwrap_or(false);
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for (key, error) in remove(&bucket, &caller, &name, delete.objects).await? {
        match error {
            None if quiet => {}
            None => deleted.push(DeletedObject { key: Some(key), ..DeletedObject::default() }),
            Some(error) => errors.push(s3s::dto::Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(key),
                message: error.message().map(str::to_owned),
                version_id: None,
            }),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), errors: Some(errors), request_charged: None }))
}

pub(super) async fn get_object_attributes(
    service: &Service,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let input = request.input;
    check_version(input.version_id.as_ref())?;
    let (bucket, key) = service.at_existing(&input.bucket, &input.key).await?;
    let found = bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    // Clients write all names into one header.
    let names = || input.object_attributes.iter().flat_map(|attribute| attribute.as_str().split(',').map(str::trim));
    let wants = |name: &str| names().any(|wanted| wanted == name);
    let mut output = GetObjectAttributesOutput {
        last_modified: Some(found.modified.into()),
        ..GetObjectAttributesOutput::default()
    };
    if wants(ObjectAttributes::ETAG) {
        output.e_tag = Some(etag(found.etag.clone()));
    }
    if wants(ObjectAttributes::OBJECT_SIZE) {
        output.object_size = i64::try_from(found.len).ok();
    }
    if wants(ObjectAttributes::STORAGE_CLASS) {
        output.storage_class = Some(StorageClass::from_static(StorageClass::STANDARD));
    }
    if wants(ObjectAttributes::CHECKSUM) && found.record.checksum.is_some() {
        let mut checksum = Checksum { checksum_type: checksum_type(&found.record), ..Checksum::default() };
        set_checksums!(checksum, found.record.checksum.as_ref());
        output.checksum = Some(checksum);
    }
    if wants(ObjectAttributes::OBJECT_PARTS) && !found.record.parts.is_empty() {
        output.object_parts = Some(object_parts(&found.record, input.part_number_marker, input.max_parts));
    }
    Ok(S3Response::new(output))
}

fn object_parts(record: &Record, marker: Option<i32>, limit: Option<i32>) -> GetObjectAttributesParts {
    let after = u32::try_from(marker.unwrap_or(0)).unwrap_or(0);
    let limit = usize::try_from(limit.unwrap_or(1000)).unwrap_or(0).min(1000);
    let rest: Vec<_> = record.parts.iter().filter(|part| part.number > after).collect();
    let shown = &rest[..rest.len().min(limit)];
    let part = |part: &&crate::gateway::PartInfo| {
        let mut shown = ObjectPart {
            part_number: i32::try_from(part.number).ok(),
            size: i64::try_from(part.size).ok(),
            ..ObjectPart::default()
        };
        set_checksums!(shown, part.checksum.as_ref());
        shown
    };
    GetObjectAttributesParts {
        is_truncated: Some(shown.len() < rest.len()),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: shown.last().and_then(|part| i32::try_from(part.number).ok()),
        part_number_marker: Some(marker.unwrap_or(0)),
        // S3 lists parts only if they have checksums.
        parts: record.parts.iter().all(|part| part.checksum.is_some()).then(|| shown.iter().map(part).collect()),
        total_parts_count: parts_count(record),
    }
}

pub(super) async fn get_object_tagging(
    service: &Service,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    check_version(request.input.version_id.as_ref())?;
    let (bucket, key) = service.at_existing(&request.input.bucket, &request.input.key).await?;
    let found = bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    let tag = |(key, value): (String, String)| Tag { key: Some(key), value: Some(value) };
    let tag_set = found.record.tags.into_iter().map(tag).collect();
    Ok(S3Response::new(GetObjectTaggingOutput { tag_set, version_id: None }))
}

pub(super) async fn put_object_tagging(
    service: &Service,
    request: S3Request<PutObjectTaggingInput>,
) -> S3Result<S3Response<PutObjectTaggingOutput>> {
    let PutObjectTaggingInput { bucket, key, tagging, version_id, .. } = request.input;
    check_version(version_id.as_ref())?;
    let pair = |tag: Tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default());
    let tags = crate::gateway::check_tags(tagging.tag_set.into_iter().map(pair)).map_err(s3_error)?;
    let (bucket, key) = service.at_existing(&bucket, &key).await?;
    bucket.set_tags(&key, tags).await.map_err(|error| service.fail(&bucket, error))?;
    Ok(S3Response::new(PutObjectTaggingOutput::default()))
}

pub(super) async fn delete_object_tagging(
    service: &Service,
    request: S3Request<DeleteObjectTaggingInput>,
) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
    check_version(request.input.version_id.as_ref())?;
    let (bucket, key) = service.at_existing(&request.input.bucket, &request.input.key).await?;
    bucket.set_tags(&key, Default::default()).await.map_err(|error| service.fail(&bucket, error))?;
    Ok(S3Response::with_status(DeleteObjectTaggingOutput::default(), http::StatusCode::NO_CONTENT))
}
