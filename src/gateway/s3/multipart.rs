//! Multipart uploads.

use super::auth::Caller;
use super::body::{check_framing, get_checksum, get_headers, request_body, request_digests, set_checksums, timestamp};
use super::errors::s3_error;
use super::list::Encode;
use super::object::{accept_private, tags};
use super::{Service, etag};
use crate::gateway::{
    Algorithm, ChosenPart, Completed, Completion, Conditions, Error, ListedUpload, PartUpload, Upload,
};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

/// Time for which a client waits for the answer to a completion without hearing anything.
const QUIET: std::time::Duration = std::time::Duration::from_secs(10);
/// Most entries of a list.
const MAX_ENTRIES: usize = 1000;

fn owner(caller: &Caller) -> Owner {
    let id = Some(caller.id().to_owned());
    Owner { display_name: id.clone(), id }
}

fn initiator(caller: &Caller) -> Initiator {
    let id = Some(caller.id().to_owned());
    Initiator { display_name: id.clone(), id }
}

/// Returns the checksum algorithm and type that a new upload takes.
fn checksum_of(input: &CreateMultipartUploadInput) -> Result<(Option<Algorithm>, bool), Error> {
    let Some(name) = &input.checksum_algorithm else {
        return match input.checksum_type {
            Some(_) => Err(Error::InvalidArgument("a checksum type needs a checksum algorithm")),
            None => Ok((None, false)),
        };
    };
    let algorithm = Algorithm::parse(name.as_str()).ok_or(Error::InvalidArgument("an unknown checksum algorithm"))?;
    let full_object = match input.checksum_type.as_ref().map(ChecksumType::as_str) {
        Some(ChecksumType::FULL_OBJECT) => true,
        Some(ChecksumType::COMPOSITE) => false,
        Some(_) => return Err(Error::InvalidArgument("an unknown checksum type")),
        None => algorithm == Algorithm::Crc64Nvme,
    };
    match (full_object, algorithm) {
        (true, algorithm) if !algorithm.is_linear() => {
            Err(Error::InvalidArgument("this algorithm has no checksum of the full object"))
        }
        (false, Algorithm::Crc64Nvme) => Err(Error::InvalidArgument("CRC64NVME is a checksum of the full object")),
        _ => Ok((Some(algorithm), full_object)),
    }
}

fn checksum_type(full_object: bool) -> ChecksumType {
    ChecksumType::from_static(if full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE })
}

pub(super) async fn create_multipart_upload(
    service: &Service,
    mut request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let input = &mut request.input;
    accept_private(input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    if input.sse_customer_algorithm.is_some() {
        return Err(s3s::s3_error!(NotImplemented, "keys of the client (SSE-C) are not supported"));
    }
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let (algorithm, full_object) = checksum_of(input).map_err(s3_error)?;
    let tags = super::body::tags(input.tagging.as_ref()).map_err(s3_error)?;
    let upload = Upload { key: input.key.clone(), headers: get_headers!(input), tags, algorithm, full_object };
    let id = bucket.create_upload(&key, &upload).await.map_err(|error| service.fail(&bucket, error))?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket.clone()),
        key: Some(input.key.clone()),
        upload_id: Some(id),
        checksum_algorithm: algorithm.map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
        checksum_type: algorithm.map(|_| checksum_type(full_object)),
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(super) async fn upload_part(
    service: &Service,
    mut request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    check_framing(&request).map_err(s3_error)?;
    let digests = request_digests(&request, None).map_err(s3_error)?;
    let (body, len) = request_body(request.input.body.take(), &request.method, &request.headers);
    let input = request.input;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let part = PartUpload { len, announced: digests.announced, algorithm: digests.algorithm, late: digests.late };
    let number = u32::try_from(input.part_number).unwrap_or(0);
    let part = bucket
        .put_part(&key, &input.upload_id, number, body, part)
        .await
        .map_err(|error| service.fail(&bucket, error))?;
    let mut output = UploadPartOutput { e_tag: Some(etag(part.etag)), ..UploadPartOutput::default() };
    set_checksums!(output, part.checksum.as_ref());
    Ok(S3Response::new(output))
}

/// Reads a request to complete an upload.
fn completion_of(input: &mut CompleteMultipartUploadInput) -> S3Result<Completion> {
    let mut parts = Vec::new();
    for part in input.multipart_upload.take().and_then(|list| list.parts).unwrap_or_default() {
        parts.push(ChosenPart {
            number: part.part_number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0),
            checksum: get_checksum!(part).map_err(s3_error)?,
            etag: part.e_tag.map(ETag::into_value),
        });
    }
    if parts.is_empty() {
        return Err(s3s::s3_error!(MalformedXML, "the list of parts is empty"));
    }
    Ok(Completion {
        parts,
        checksum: get_checksum!(input).map_err(s3_error)?,
        conditions: Conditions {
            if_match: tags(input.if_match.take()),
            if_none_match: tags(input.if_none_match.take()),
            ..Conditions::default()
        },
        size: input.mpu_object_size.and_then(|size| u64::try_from(size).ok()),
    })
}

pub(super) async fn complete_multipart_upload(
    service: &Service,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let mut input = request.input;
    let completion = completion_of(&mut input)?;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    // The work goes on if the client leaves: its next request finds the result.
    let mut task = {
        let (bucket, id) = (bucket.clone(), input.upload_id.clone());
        tokio::spawn(async move { bucket.complete_upload(&key, &id, completion).await })
    };
    let (service, name, key) = (service.clone(), input.bucket, input.key);
    let output = move |joined: Result<Result<Completed, Error>, tokio::task::JoinError>| {
        let completed = joined.unwrap_or_else(|error| Err(Error::State(error.to_string())));
        completed.map(|completed| completed_output(name, key, completed)).map_err(|error| service.fail(&bucket, error))
    };
    if let Ok(joined) = tokio::time::timeout(QUIET, &mut task).await {
        return output(joined).map(S3Response::new);
    }
    // The client gets spaces until the result is there, as S3 does it, so that it doesn't run into its timeout.
    let later = async move { output(task.await) };
    let output = CompleteMultipartUploadOutput { future: Some(Box::pin(later)), ..Default::default() };
    Ok(S3Response::new(output))
}

fn completed_output(bucket: String, key: String, completed: Completed) -> CompleteMultipartUploadOutput {
    let mut output = CompleteMultipartUploadOutput {
        location: Some(format!("/{bucket}/{key}")),
        bucket: Some(bucket),
        key: Some(key),
        e_tag: Some(etag(completed.etag)),
        ..CompleteMultipartUploadOutput::default()
    };
    set_checksums!(output, completed.checksum.as_ref());
    output.checksum_type = completed.checksum.map(|checksum| checksum_type(!checksum.value.contains('-')));
    output
}

pub(super) async fn abort_multipart_upload(
    service: &Service,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let (bucket, key) = service.at(&request.input.bucket, &request.input.key).await?;
    let aborted = bucket.abort_upload(&key, &request.input.upload_id).await;
    aborted.map_err(|error| service.fail(&bucket, error))?;
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

/// Returns how many entries a page has.
fn limit(asked: Option<i32>) -> S3Result<usize> {
    let Some(asked) = asked else { return Ok(MAX_ENTRIES) };
    let wrong = |_| s3_error(Error::InvalidArgument("the number of entries is not negative"));
    Ok(usize::try_from(asked).map_err(wrong)?.min(MAX_ENTRIES))
}

fn shown_part(part: &crate::gateway::Part) -> Part {
    let mut shown = Part {
        e_tag: Some(etag(part.etag.clone())),
        last_modified: timestamp(part.uploaded),
        part_number: i32::try_from(part.number).ok(),
        size: i64::try_from(part.size).ok(),
        ..Part::default()
    };
    set_checksums!(shown, part.checksum.as_ref());
    shown
}

pub(super) async fn list_parts(
    service: &Service,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let input = request.input;
    let limit = limit(input.max_parts)?;
    let (bucket, key) = service.at(&input.bucket, &input.key).await?;
    let fail = |error| service.fail(&bucket, error);
    let upload = bucket.get_upload(&key, &input.upload_id).await.map_err(fail)?.upload;
    let mut parts = bucket.list_parts(&key, &input.upload_id).await.map_err(fail)?;
    let after = u32::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
    parts.retain(|part| part.number > after);
    let is_truncated = parts.len() > limit;
    parts.truncate(limit);
    let next = parts.last().and_then(|part| i32::try_from(part.number).ok());
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        checksum_algorithm: upload.algorithm.map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
        checksum_type: upload.algorithm.map(|_| checksum_type(upload.full_object)),
        initiator: Some(initiator(&caller)),
        owner: Some(owner(&caller)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        is_truncated: Some(is_truncated),
        max_parts: i32::try_from(limit).ok(),
        next_part_number_marker: next.filter(|_| is_truncated),
        part_number_marker: Some(input.part_number_marker.unwrap_or(0)),
        parts: Some(parts.iter().map(shown_part).collect()),
        ..ListPartsOutput::default()
    }))
}

/// Which uploads a list shows.
struct UploadQuery<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    key_marker: &'a str,
    id_marker: Option<&'a str>,
    limit: usize,
}

/// The uploads of a page.
#[derive(Default)]
struct UploadPage<'a> {
    uploads: Vec<&'a ListedUpload>,
    prefixes: Vec<&'a str>,
    /// The last upload of this page, if another page follows.
    next: Option<&'a ListedUpload>,
}

impl UploadQuery<'_> {
    /// Returns the page of `uploads`, which are ascending by key, then by time.
    fn page<'a>(&self, uploads: &'a [ListedUpload]) -> UploadPage<'a> {
        let mut page = UploadPage::default();
        let mut last = None;
        // The id counts only together with its key.
        let position = uploads.iter().position(|listed| self.id_marker == Some(listed.id.as_str()));
        let position = position.filter(|&at| uploads[at].upload.key == self.key_marker);
        for (at, listed) in uploads.iter().enumerate() {
            let key = listed.upload.key.as_str();
            let is_after = position.map_or(self.key_marker.is_empty() || key > self.key_marker, |start| at > start);
            let Some(rest) = key.strip_prefix(self.prefix).filter(|_| is_after) else { continue };
            let end = self.delimiter.and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len()));
            let common = end.map(|end| &key[..self.prefix.len() + end]);
            let is_counted =
                |common: &str| page.prefixes.last() == Some(&common) || self.key_marker.starts_with(common);
            if !common.is_some_and(is_counted) {
                if page.uploads.len() + page.prefixes.len() == self.limit {
                    page.next = last;
                    break;
                }
                match common {
                    Some(common) => page.prefixes.push(common),
                    None => page.uploads.push(listed),
                }
            }
            last = Some(listed);
        }
        page
    }
}

fn shown_upload(listed: &ListedUpload, caller: &Caller) -> MultipartUpload {
    let ListedUpload { id, created, upload } = listed;
    MultipartUpload {
        checksum_algorithm: upload.algorithm.map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
        checksum_type: upload.algorithm.map(|_| checksum_type(upload.full_object)),
        initiated: timestamp(*created),
        initiator: Some(initiator(caller)),
        owner: Some(owner(caller)),
        key: Some(upload.key.clone()),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(id.clone()),
    }
}

pub(super) async fn list_multipart_uploads(
    service: &Service,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let input = request.input;
    let bucket = service.bucket(&input.bucket).await?;
    let uploads = bucket.list_uploads().await.map_err(|error| service.fail(&bucket, error))?;
    let query = UploadQuery {
        prefix: input.prefix.as_deref().unwrap_or_default(),
        delimiter: input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty()),
        key_marker: input.key_marker.as_deref().unwrap_or_default(),
        id_marker: input.upload_id_marker.as_deref(),
        limit: limit(input.max_uploads)?,
    };
    let UploadPage { uploads, prefixes, next } = query.page(&uploads);
    let encode = Encode::of(input.encoding_type.as_ref())?;
    let prefix = |prefix: &str| CommonPrefix { prefix: Some(encode.text(prefix)) };
    let shown = |listed: &ListedUpload| {
        let shown = shown_upload(listed, &caller);
        MultipartUpload { key: shown.key.map(|key| encode.text(&key)), ..shown }
    };
    Ok(S3Response::new(ListMultipartUploadsOutput {
        common_prefixes: Some(prefixes.into_iter().map(prefix).collect()),
        next_key_marker: next.map(|listed| encode.text(&listed.upload.key)),
        next_upload_id_marker: next.map(|listed| listed.id.clone()),
        is_truncated: Some(next.is_some()),
        key_marker: Some(encode.text(query.key_marker)),
        max_uploads: i32::try_from(query.limit).ok(),
        prefix: Some(encode.text(query.prefix)),
        upload_id_marker: Some(query.id_marker.unwrap_or_default().to_owned()),
        uploads: Some(uploads.into_iter().map(shown).collect()),
        bucket: Some(input.bucket),
        delimiter: query.delimiter.map(|delimiter| encode.text(delimiter)),
        encoding_type: input.encoding_type,
        request_charged: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(key: &str, id: &str) -> ListedUpload {
        let upload = Upload {
            key: key.into(),
            headers: Default::default(),
            tags: Default::default(),
            algorithm: None,
            full_object: false,
        };
        ListedUpload { id: id.into(), created: 0, upload }
    }

    #[test]
    fn pages_of_uploads_show_each_upload_and_common_prefix_once() {
        let uploads: Vec<ListedUpload> =
            [("a", "1"), ("a", "2"), ("b/x", "3"), ("b/y", "4"), ("c", "5")].map(|(key, id)| upload(key, id)).into();
        for limit in [1, 2, 3, 10] {
            let (mut seen, mut marker) = (Vec::new(), (String::new(), None::<String>));
            loop {
                let query = UploadQuery {
                    prefix: "",
                    delimiter: Some("/"),
                    key_marker: &marker.0,
                    id_marker: marker.1.as_deref(),
                    limit,
                };
                let page = query.page(&uploads);
                assert!(page.uploads.len() + page.prefixes.len() <= limit);
                seen.extend(page.uploads.iter().map(|listed| listed.id.clone()));
                seen.extend(page.prefixes.iter().map(|prefix| (*prefix).to_owned()));
                match page.next {
                    Some(next) => marker = (next.upload.key.clone(), Some(next.id.clone())),
                    None => break,
                }
            }
            seen.sort();
            assert_eq!(seen, ["1", "2", "5", "b/"], "{limit}");
        }
    }
}
