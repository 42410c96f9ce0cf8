//! Copies of objects and of parts.

use super::auth::Caller;
use super::body::{get_headers, set_checksums};
use super::errors::s3_error;
use super::object::{accept_private, date, tags};
use super::{Service, etag};
use crate::gateway::{Algorithm, Bucket, Conditions, CopyRequest, Error, Key, Permission};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};
use std::sync::Arc;

impl Service {
    /// Opens the source of a copy. The caller must be allowed to read it.
    async fn source(&self, caller: &Caller, source: &CopySource) -> S3Result<(Arc<Bucket>, Key)> {
        let CopySource::Bucket { bucket, key, version_id } = source else {
            return Err(s3s::s3_error!(NotImplemented, "the source of a copy is BUCKET/KEY"));
        };
        if version_id.as_deref().is_some_and(|id| id != "null") {
            return Err(s3s::s3_error!(NoSuchVersion, "the bucket has no versions"));
        }
        caller.check(Permission::Read, bucket, key)?;
        self.at_existing(bucket, key).await
    }
}

/// Reads the conditions on the target of a copy.
fn target_conditions(headers: &http::HeaderMap) -> Conditions {
    let tags = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(crate::gateway::Tags::parse);
    Conditions { if_match: tags("if-match"), if_none_match: tags("if-none-match"), ..Conditions::default() }
}

/// Reads a copy.
fn copy_of(input: &mut CopyObjectInput, conditions: Conditions) -> Result<CopyRequest, Error> {
    let replace = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some(MetadataDirective::COPY) => false,
        Some(MetadataDirective::REPLACE) => true,
        Some(_) => return Err(Error::InvalidArgument("the metadata directive is COPY or REPLACE")),
    };
    let named = input
        .checksum_algorithm
        .as_ref()
        .map(|name| Algorithm::parse(name.as_str()).ok_or(Error::InvalidArgument("an unknown checksum algorithm")));
    Ok(CopyRequest {
        source_conditions: Conditions {
            if_match: tags(input.copy_source_if_match.take()),
            if_none_match: tags(input.copy_source_if_none_match.take()),
            if_modified_since: date(input.copy_source_if_modified_since.take()),
            if_unmodified_since: date(input.copy_source_if_unmodified_since.take()),
            ..Conditions::default()
        },
        conditions,
        headers: if replace { Some(get_headers!(input)) } else { None },
        tags: match input.tagging_directive.as_ref().map(TaggingDirective::as_str) {
            Some(TaggingDirective::REPLACE) => Some(super::body::tags(input.tagging.as_ref())?),
            _ => None,
        },
        algorithm: named.transpose()?,
    })
}

pub(super) async fn copy_object(
    service: &Service,
    mut request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let conditions = target_conditions(&request.headers);
    let input = &mut request.input;
    accept_private(input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    let (source, source_key) = service.source(&caller, &input.copy_source).await?;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let copy = copy_of(input, conditions).map_err(s3_error)?;
    let found = bucket.copy(&key, &source, &source_key, copy).await.map_err(|error| service.fail(&bucket, error))?;
    let mut result = CopyObjectResult {
        e_tag: Some(etag(found.etag)),
        last_modified: Some(found.modified.into()),
        ..CopyObjectResult::default()
    };
    set_checksums!(result, found.record.checksum.as_ref());
    Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
}

/// Reads the range of a part copy: `bytes=first-last`, and nothing else.
pub(super) fn source_range(text: &str) -> Result<std::ops::Range<u64>, Error> {
    let wrong = || Error::InvalidArgument("x-amz-copy-source-range has the form bytes=first-last");
    let (first, last) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')).ok_or_else(wrong)?;
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u64>().map_err(|_| wrong()),
        false => Err(wrong()),
    };
    let (first, last) = (number(first)?, number(last)?);
    match last.checked_add(1) {
        Some(end) if first <= last => Ok(first..end),
        _ => Err(wrong()),
    }
}

pub(super) async fn upload_part_copy(
    service: &Service,
    mut request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let input = &mut request.input;
    let (source, source_key) = service.source(&caller, &input.copy_source).await?;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let range = input.copy_source_range.as_deref().map(source_range).transpose().map_err(s3_error)?;
    let conditions = Conditions {
        if_match: tags(input.copy_source_if_match.take()),
        if_none_match: tags(input.copy_source_if_none_match.take()),
        if_modified_since: date(input.copy_source_if_modified_since.take()),
        if_unmodified_since: date(input.copy_source_if_unmodified_since.take()),
        ..Conditions::default()
    };
    let number = u32::try_from(input.part_number).unwrap_or(0);
    let part = bucket
        .copy_part((&key, &input.upload_id, number), &source, &source_key, range, &conditions)
        .await
        .map_err(|error| service.fail(&bucket, error))?;
    let mut result = CopyPartResult {
        e_tag: Some(etag(part.etag)),
        last_modified: super::body::timestamp(part.uploaded),
        ..CopyPartResult::default()
    };
    set_checksums!(result, part.checksum.as_ref());
    Ok(S3Response::new(UploadPartCopyOutput { copy_part_result: Some(result), ..UploadPartCopyOutput::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_part_copy_has_one_form() {
        assert_eq!(source_range("bytes=0-0").unwrap(), 0..1);
        assert_eq!(source_range("bytes=5-9").unwrap(), 5..10);
        let wrong =
            ["", "0-1", "bytes=", "bytes=1-", "bytes=-1", "bytes=2-1", "bytes=0-1,3-4", "bytes=a-b", "bytes=+1-2"];
        for text in wrong.into_iter().chain(["bytes=0-18446744073709551615"]) {
            assert!(source_range(text).is_err(), "{text}");
        }
    }
}
