//! Polite answers about features that buckets of the Hub don't have: clients ask before they work.

use super::errors::no_such;
use super::object::accept_private;
use super::{Service, auth::Caller, s3_error};
use s3s::dto::*;
use s3s::{S3Request, S3Response, S3Result};

/// Answers that a feature is not configured, with the code that S3 has for that.
macro_rules! not_configured {
    ($($name:ident($input:ident) -> $output:ident: $code:literal, $message:literal);* $(;)?) => {
        $(pub(super) async fn $name(
            service: &Service,
            request: S3Request<$input>,
        ) -> S3Result<S3Response<$output>> {
            service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
            Err(no_such($code, $message))
        })*
    };
}

/// Answers with defaults.
macro_rules! default_answer {
    ($($name:ident($input:ident) -> $output:ident);* $(;)?) => {
        $(pub(super) async fn $name(
            service: &Service,
            request: S3Request<$input>,
        ) -> S3Result<S3Response<$output>> {
            service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
            Ok(S3Response::new($output::default()))
        })*
    };
}

not_configured! {
    get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput:
        "NoSuchTagSet", "the bucket has no tags";
    get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput:
        "NoSuchBucketPolicy", "the bucket has no policy";
    get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput:
        "NoSuchBucketPolicy", "the bucket has no policy";
    get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput) -> GetBucketLifecycleConfigurationOutput:
        "NoSuchLifecycleConfiguration", "the bucket has no lifecycle rules";
    get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput:
        "NoSuchCORSConfiguration", "CORS is set by the option --cors-origin of the gateway";
    get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput:
        "ServerSideEncryptionConfigurationNotFoundError", "there is no encryption by the server";
    get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput:
        "NoSuchWebsiteConfiguration", "the bucket is no website";
    get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput:
        "ReplicationConfigurationNotFoundError", "the bucket is not replicated";
    get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput:
        "OwnershipControlsNotFoundError", "the bucket has no ownership controls";
    get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput:
        "NoSuchPublicAccessBlockConfiguration", "the bucket has no public access block";
    get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput:
        "ObjectLockConfigurationNotFoundError", "the bucket has no object lock";
    get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput:
        "NoSuchObjectLockConfiguration", "the object has no retention";
    get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput:
        "NoSuchObjectLockConfiguration", "the object has no legal hold";
}

default_answer! {
    get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput;
    get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput;
    get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput) -> GetBucketAccelerateConfigurationOutput;
    get_bucket_notification_configuration(GetBucketNotificationConfigurationInput) -> GetBucketNotificationConfigurationOutput;
}

pub(super) async fn get_bucket_request_payment(
    service: &Service,
    request: S3Request<GetBucketRequestPaymentInput>,
) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
    service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
    let payer = Some(Payer::from_static(Payer::BUCKET_OWNER));
    Ok(S3Response::new(GetBucketRequestPaymentOutput { payer }))
}

/// Returns the canned list that every object and bucket has: its owner may do everything.
fn private(caller: &Caller) -> (Option<Owner>, Option<Vec<Grant>>) {
    let id = Some(caller.id().to_owned());
    let grantee = Grantee {
        display_name: id.clone(),
        email_address: None,
        id: id.clone(),
        type_: Type::from_static(Type::CANONICAL_USER),
        uri: None,
    };
    let permission = Some(Permission::from_static(Permission::FULL_CONTROL));
    (Some(Owner { display_name: id.clone(), id }), Some(vec![Grant { grantee: Some(grantee), permission }]))
}

pub(super) async fn get_bucket_acl(
    service: &Service,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
    let (owner, grants) = private(&Caller::of(&request.extensions)?);
    Ok(S3Response::new(GetBucketAclOutput { owner, grants }))
}

pub(super) async fn get_object_acl(
    service: &Service,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let (bucket, key) = service.at_existing(&request.input.bucket, &request.input.key).await?;
    bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    let (owner, grants) = private(&Caller::of(&request.extensions)?);
    Ok(S3Response::new(GetObjectAclOutput { owner, grants, ..Default::default() }))
}

pub(super) async fn put_bucket_acl(
    service: &Service,
    request: S3Request<PutBucketAclInput>,
) -> S3Result<S3Response<PutBucketAclOutput>> {
    service.gateway.bucket_info(&request.input.bucket).await.map_err(s3_error)?;
    accept_private(request.input.acl.as_ref().map(BucketCannedACL::as_str))?;
    Ok(S3Response::new(PutBucketAclOutput::default()))
}

pub(super) async fn put_object_acl(
    service: &Service,
    request: S3Request<PutObjectAclInput>,
) -> S3Result<S3Response<PutObjectAclOutput>> {
    let (bucket, key) = service.at_existing(&request.input.bucket, &request.input.key).await?;
    bucket.head(&key).await.map_err(|error| service.fail(&bucket, error))?;
    accept_private(request.input.acl.as_ref().map(ObjectCannedACL::as_str))?;
    Ok(S3Response::new(PutObjectAclOutput::default()))
}
