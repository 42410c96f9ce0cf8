//! Error codes of S3. A failure that is no bug of the gateway never becomes `InternalError`: clients would repeat it.

use crate::gateway::Error;
use crate::store::{Cause, Error as StoreError, HubError};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use s3s::{S3Error, S3ErrorCode};

/// Seconds after which a client may repeat what was refused for load.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// Returns the S3 error of a failure.
pub(super) fn s3_error(error: Error) -> S3Error {
    let message = error.to_string();
    if let Some(code) = code_of(&error) {
        return S3Error::with_message(code, message);
    }
    match error {
        Error::Body(why) => of_body(&why),
        Error::Store(error) => of_store(&error),
        Error::Busy => later(S3ErrorCode::SlowDown, message),
        _ => {
            tracing::error!(error = %message, "the state of the gateway failed");
            later(S3ErrorCode::ServiceUnavailable, "the state of the gateway failed".to_owned())
        }
    }
}

/// Returns the code of a failure that needs nothing else.
fn code_of(error: &Error) -> Option<S3ErrorCode> {
    use S3ErrorCode as C;
    Some(match error {
        Error::NoSuchBucket => C::NoSuchBucket,
        Error::BucketExists => C::BucketAlreadyOwnedByYou,
        Error::BucketNotEmpty(_) => C::BucketNotEmpty,
        Error::InvalidBucketName => C::InvalidBucketName,
        Error::NoSuchKey => C::NoSuchKey,
        Error::InvalidKey(_) | Error::InvalidArgument(_) => C::InvalidArgument,
        Error::KeyTooLong => C::KeyTooLongError,
        Error::Denied => C::AccessDenied,
        Error::PreconditionFailed(_) => C::PreconditionFailed,
        Error::Conflict => C::ConditionalRequestConflict,
        Error::NotModified => C::NotModified,
        Error::BadDigest(_) => C::BadDigest,
        Error::InvalidDigest("Content-MD5") => C::InvalidDigest,
        // Only other protocols make folders.
        Error::FolderNotEmpty | Error::NameTaken => C::InvalidRequest,
        Error::InvalidDigest(_) | Error::InvalidRequest(_) => C::InvalidRequest,
        Error::IncompleteBody => C::IncompleteBody,
        Error::UnsignedFraming => C::NotImplemented,
        Error::TooLarge(_) => C::EntityTooLarge,
        Error::InvalidRange => C::InvalidRange,
        Error::MetadataTooLarge(_) => C::MetadataTooLarge,
        Error::InvalidTag(_) => C::InvalidTag,
        Error::NoSuchUpload => C::NoSuchUpload,
        Error::InvalidPart(_) => C::InvalidPart,
        Error::InvalidPartOrder => C::InvalidPartOrder,
        Error::PartTooSmall(_) => C::EntityTooSmall,
        Error::Body(_) | Error::Store(_) | Error::State(_) | Error::Busy => return None,
    })
}

fn of_store(error: &StoreError) -> S3Error {
    use S3ErrorCode as C;
    let message = error.to_string();
    match error.cause() {
        Cause::Denied => S3Error::with_message(C::AccessDenied, message),
        Cause::ReadOnly => S3Error::with_message(
            C::AccessDenied,
            "the object is plaintext beside an encrypted tree, or the bucket is read-only",
        ),
        Cause::NoSpace | Cause::LocalQuota => custom("QuotaExceeded", StatusCode::FORBIDDEN, message),
        Cause::TooLarge => S3Error::with_message(C::EntityTooLarge, message),
        Cause::Integrity => {
            tracing::error!(error = %message, "stored data does not authenticate");
            custom("IntegrityError", StatusCode::BAD_GATEWAY, message)
        }
        _ if matches!(error, StoreError::LengthMismatch) => {
            tracing::error!(error = %message, "a stored object has another length than it should have");
            custom("IntegrityError", StatusCode::BAD_GATEWAY, message)
        }
        _ if is_rate_limit(error) => later(C::SlowDown, message),
        _ => {
            tracing::warn!(error = %message, "the Hub or the CAS failed");
            later(C::ServiceUnavailable, message)
        }
    }
}

fn is_rate_limit(error: &StoreError) -> bool {
    let at_hub = |error: &HubError| matches!(error, HubError::Status { status: 429, .. });
    match error {
        StoreError::Hub(HubError::Partial { source, .. }) => at_hub(source),
        StoreError::Hub(error) => at_hub(error),
        StoreError::Cas(error) => matches!(error, crate::store::CasError::Status { status: 429, .. }),
        _ => false,
    }
}

fn custom(code: &'static str, status: StatusCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), message);
    error.set_status_code(status);
    error
}

fn later(code: S3ErrorCode, message: String) -> S3Error {
    let mut error = S3Error::with_message(code, message);
    error.set_headers(HeaderMap::from_iter([(header::RETRY_AFTER, RETRY_AFTER)]));
    error
}

/// Returns the error of a body that the protocol layer could not read. Its types are private, so their texts decide.
fn of_body(why: &str) -> S3Error {
    use S3ErrorCode as C;
    let is = |text: &str| why.ends_with(text);
    if is("Sha256Mismatch") {
        let message = "the content does not match x-amz-content-sha256".to_owned();
        return custom("XAmzContentSHA256Mismatch", StatusCode::BAD_REQUEST, message);
    }
    if is("SignatureMismatch") {
        return S3Error::with_message(C::SignatureDoesNotMatch, "the signature of a chunk does not match");
    }
    if is("FormatError") || why.contains("TooLarge") || why.contains("TooMany") {
        return S3Error::with_message(C::InvalidRequest, "the aws-chunked body is malformed");
    }
    S3Error::with_message(C::IncompleteBody, "the body ended early, or is longer than announced")
}

/// Returns the error for a request that a bucket of the Hub can't answer with content.
pub(super) fn no_such(code: &'static str, message: &'static str) -> S3Error {
    custom(code, StatusCode::NOT_FOUND, message.to_owned())
}
