//! The S3 REST API over [`Gateway`].
//!
//! The crate `s3s` checks signatures, routes requests and reads and writes XML. Each file here translates one group of
//! operations. [`server`] is the HTTP server around it.

mod auth;
mod body;
mod buckets;
mod copy;
mod errors;
mod list;
pub mod metrics;
mod multipart;
mod object;
mod probes;
pub mod server;

use super::{AccessKeys, Bucket, Error, Gateway, Key};
use errors::s3_error;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};
use std::sync::Arc;

/// Region that the gateway names.
const REGION: &str = "us-east-1";

/// The S3 service.
#[derive(Clone)]
pub struct Service {
    gateway: Arc<Gateway>,
}

impl Service {
    /// Opens a bucket by the name that a client uses.
    async fn bucket(&self, name: &str) -> S3Result<Arc<Bucket>> {
        self.gateway.bucket(name).await.map_err(s3_error)
    }

    /// Opens a bucket and checks a key.
    async fn at(&self, bucket: &str, key: &str) -> S3Result<(Arc<Bucket>, Key)> {
        let key = Key::parse(key).map_err(s3_error)?;
        Ok((self.bucket(bucket).await?, key))
    }

    /// Opens a bucket and checks a key that is only read. No object has a key that can't be stored.
    async fn at_existing(&self, bucket: &str, key: &str) -> S3Result<(Arc<Bucket>, Key)> {
        let bucket = self.bucket(bucket).await?;
        match Key::parse(key) {
            Ok(key) => Ok((bucket, key)),
            Err(Error::KeyTooLong) => Err(s3_error(Error::KeyTooLong)),
            Err(_) => Err(s3_error(Error::NoSuchKey)),
        }
    }

    /// Turns a failure into an S3 error. A bucket that was found missing is closed.
    fn fail(&self, bucket: &Bucket, error: Error) -> s3s::S3Error {
        if matches!(error, Error::NoSuchBucket) {
            self.gateway.forget(bucket.id());
        }
        s3_error(error)
    }
}

/// Parses values of headers for the fuzz target.
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(super) fn fuzz(text: &str) {
    if let Ok(range) = copy::source_range(text) {
        assert!(range.start < range.end);
    }
    let _ = body::one_checksum([(super::Algorithm::Crc32, &Some(text.to_owned())); 5]);
    let _ = body::tags(Some(&text.to_owned()));
}

/// An entity tag in its S3 form.
fn etag(text: String) -> ETag {
    ETag::Strong(text)
}

/// Forwards operations to the functions that carry them out.
macro_rules! operations {
    ($($name:ident($input:ident) -> $output:ident => $module:ident),* $(,)?) => {
        #[async_trait::async_trait]
        impl S3 for Service {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                $module::$name(self, request).await
            })*
        }
    };
}

operations! {
    list_buckets(ListBucketsInput) -> ListBucketsOutput => buckets,
    create_bucket(CreateBucketInput) -> CreateBucketOutput => buckets,
    head_bucket(HeadBucketInput) -> HeadBucketOutput => buckets,
    delete_bucket(DeleteBucketInput) -> DeleteBucketOutput => buckets,
    get_bucket_location(GetBucketLocationInput) -> GetBucketLocationOutput => buckets,
    list_objects(ListObjectsInput) -> ListObjectsOutput => list,
    list_objects_v2(ListObjectsV2Input) -> ListObjectsV2Output => list,
    list_object_versions(ListObjectVersionsInput) -> ListObjectVersionsOutput => list,
    head_object(HeadObjectInput) -> HeadObjectOutput => object,
    get_object(GetObjectInput) -> GetObjectOutput => object,
    put_object(PutObjectInput) -> PutObjectOutput => object,
    delete_object(DeleteObjectInput) -> DeleteObjectOutput => object,
    delete_objects(DeleteObjectsInput) -> DeleteObjectsOutput => object,
    get_object_attributes(GetObjectAttributesInput) -> GetObjectAttributesOutput => object,
    copy_object(CopyObjectInput) -> CopyObjectOutput => copy,
    upload_part_copy(UploadPartCopyInput) -> UploadPartCopyOutput => copy,
    create_multipart_upload(CreateMultipartUploadInput) -> CreateMultipartUploadOutput => multipart,
    upload_part(UploadPartInput) -> UploadPartOutput => multipart,
    complete_multipart_upload(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput => multipart,
    abort_multipart_upload(AbortMultipartUploadInput) -> AbortMultipartUploadOutput => multipart,
    list_parts(ListPartsInput) -> ListPartsOutput => multipart,
    list_multipart_uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput => multipart,
    get_bucket_acl(GetBucketAclInput) -> GetBucketAclOutput => probes,
    get_object_acl(GetObjectAclInput) -> GetObjectAclOutput => probes,
    put_bucket_acl(PutBucketAclInput) -> PutBucketAclOutput => probes,
    put_object_acl(PutObjectAclInput) -> PutObjectAclOutput => probes,
    get_bucket_versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput => probes,
    get_bucket_tagging(GetBucketTaggingInput) -> GetBucketTaggingOutput => probes,
    get_object_tagging(GetObjectTaggingInput) -> GetObjectTaggingOutput => object,
    put_object_tagging(PutObjectTaggingInput) -> PutObjectTaggingOutput => object,
    delete_object_tagging(DeleteObjectTaggingInput) -> DeleteObjectTaggingOutput => object,
    get_bucket_policy(GetBucketPolicyInput) -> GetBucketPolicyOutput => probes,
    get_bucket_policy_status(GetBucketPolicyStatusInput) -> GetBucketPolicyStatusOutput => probes,
    get_bucket_lifecycle_configuration(GetBucketLifecycleConfigurationInput) -> GetBucketLifecycleConfigurationOutput => probes,
    get_bucket_cors(GetBucketCorsInput) -> GetBucketCorsOutput => probes,
    get_bucket_encryption(GetBucketEncryptionInput) -> GetBucketEncryptionOutput => probes,
    get_bucket_website(GetBucketWebsiteInput) -> GetBucketWebsiteOutput => probes,
    get_bucket_logging(GetBucketLoggingInput) -> GetBucketLoggingOutput => probes,
    get_bucket_replication(GetBucketReplicationInput) -> GetBucketReplicationOutput => probes,
    get_bucket_request_payment(GetBucketRequestPaymentInput) -> GetBucketRequestPaymentOutput => probes,
    get_bucket_accelerate_configuration(GetBucketAccelerateConfigurationInput) -> GetBucketAccelerateConfigurationOutput => probes,
    get_bucket_notification_configuration(GetBucketNotificationConfigurationInput) -> GetBucketNotificationConfigurationOutput => probes,
    get_bucket_ownership_controls(GetBucketOwnershipControlsInput) -> GetBucketOwnershipControlsOutput => probes,
    get_public_access_block(GetPublicAccessBlockInput) -> GetPublicAccessBlockOutput => probes,
    get_object_lock_configuration(GetObjectLockConfigurationInput) -> GetObjectLockConfigurationOutput => probes,
    get_object_retention(GetObjectRetentionInput) -> GetObjectRetentionOutput => probes,
    get_object_legal_hold(GetObjectLegalHoldInput) -> GetObjectLegalHoldOutput => probes,
}

/// Parts of a service that a server needs.
struct Parts {
    service: Service,
    auth: auth::Auth,
}

impl Parts {
    /// A service over a gateway. `anonymous`: requests without credentials may do everything.
    fn new(gateway: Arc<Gateway>, keys: AccessKeys, anonymous: bool) -> Self {
        let auth = auth::Auth { keys: Arc::new(keys), anonymous };
        Self { service: Service { gateway }, auth }
    }
}
