//! Operations on buckets.

use super::auth::Caller;
use super::{REGION, Service, s3_error};
use crate::gateway::Error;
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};
use time::OffsetDateTime;

/// Most buckets of one page.
const MAX_BUCKETS: usize = 10_000;

pub(super) async fn list_buckets(
    service: &Service,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let caller = Caller::of(&request.extensions)?;
    let ListBucketsInput { continuation_token, max_buckets, prefix, .. } = request.input;
    let limit = match max_buckets {
        None => MAX_BUCKETS,
        Some(limit) => usize::try_from(limit)
            .ok()
            .filter(|limit| (1..=MAX_BUCKETS).contains(limit))
            .ok_or_else(|| s3_error(Error::InvalidArgument("max-buckets is 1 to 10000")))?,
    };
    let start = prefix.as_deref().unwrap_or_default();
    let after = continuation_token.as_deref().unwrap_or_default();
    let all = service.gateway.list_buckets().await.map_err(s3_error)?;
    let shown = |name: &str| name.starts_with(start) && name > after && caller.may_see(name);
    let mut page: Vec<Bucket> = Vec::new();
    let mut continuation_token = None;
    for (name, info) in all.into_iter().filter(|(name, _)| shown(name)) {
        if page.len() == limit {
            continuation_token = page.last().and_then(|bucket| bucket.name.clone());
            break;
        }
        let creation_date = Some(info.created_at.unwrap_or(OffsetDateTime::UNIX_EPOCH).into());
        page.push(Bucket { bucket_region: None, creation_date, name: Some(name) });
    }
    let id = Some(caller.id().to_owned());
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(page),
        continuation_token,
        owner: Some(Owner { display_name: id.clone(), id }),
        prefix,
    }))
}

pub(super) async fn create_bucket(
    service: &Service,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let name = &request.input.bucket;
    match service.gateway.create_bucket(name).await {
        // As in us-east-1: clients create a bucket before they write to it, whether it exists or not.
        Ok(()) | Err(Error::BucketExists) => {}
        Err(error) => return Err(s3_error(error)),
    }
    Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{name}")) }))
}

pub(super) async fn head_bucket(
    service: &Service,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
    Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(REGION.to_owned()), ..Default::default() }))
}

pub(super) async fn delete_bucket(
    service: &Service,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    service.gateway.delete_bucket(&request.input.bucket).await.map_err(s3_error)?;
    Ok(S3Response::new(DeleteBucketOutput::default()))
}

pub(super) async fn get_bucket_location(
    service: &Service,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
    // S3 names the region us-east-1 by an empty answer.
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint: None }))
}
