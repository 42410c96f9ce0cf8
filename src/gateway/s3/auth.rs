//! Who asks, and what that access key may do.

use crate::gateway::{AccessKey, AccessKeys, Permission};
use http::{Extensions, HeaderMap, Uri, header};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::sync::{Arc, OnceLock};

/// Longest life of a presigned URL in seconds.
const MAX_PRESIGNED: u64 = 7 * 24 * 3600;

/// Checks signatures and scopes.
#[derive(Clone)]
pub(super) struct Auth {
    pub(super) keys: Arc<AccessKeys>,
    /// True if requests without credentials may do everything.
    pub(super) anonymous: bool,
}

/// What the access log may say of a request: only what its check has found.
pub(super) struct Named {
    pub(super) bucket: Option<String>,
    pub(super) access_key: Option<String>,
}

/// The access key of a request. `None`: an anonymous request, where those are allowed.
#[derive(Clone)]
pub(super) struct Caller(Option<Arc<AccessKey>>);

impl Caller {
    /// Returns the caller of a request that has passed the check.
    pub(super) fn of(extensions: &Extensions) -> S3Result<Self> {
        extensions.get::<Self>().cloned().ok_or_else(|| S3Error::new(S3ErrorCode::AccessDenied))
    }

    /// Fails if the caller may not do `needed` there.
    pub(super) fn check(&self, needed: Permission, bucket: &str, key: &str) -> S3Result<()> {
        match &self.0 {
            None => Ok(()),
            Some(caller) => caller.check(needed, Some(bucket), Some(key)).map_err(super::errors::s3_error),
        }
    }

    /// Returns true if the caller may know of a bucket.
    pub(super) fn may_see(&self, bucket: &str) -> bool {
        self.0.as_ref().is_none_or(|caller| caller.may_see(bucket))
    }

    /// Returns the id of the access key, for the owner that lists show.
    pub(super) fn id(&self) -> &str {
        self.0.as_ref().map_or("anonymous", |caller| &caller.access_key_id)
    }
}

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let key = self.keys.get(access_key).ok_or_else(|| S3Error::new(S3ErrorCode::InvalidAccessKeyId))?;
        Ok(SecretKey::from(key.secret_access_key.as_str()))
    }
}

#[async_trait::async_trait]
impl S3Access for Auth {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        check_scheme(cx.headers(), cx.uri())?;
        let named = Named {
            bucket: cx.s3_path().get_bucket_name().map(str::to_owned),
            access_key: cx.credentials().map(|credentials| credentials.access_key.clone()),
        };
        if let Some(slot) = cx.extensions_mut().get::<Arc<OnceLock<Named>>>() {
            // It is empty until here.
            let _ = slot.set(named);
        }
        let caller = match cx.credentials() {
            None if self.anonymous => Caller(None),
            None => return Err(S3Error::new(S3ErrorCode::AccessDenied)),
            Some(credentials) => {
                let key = self.keys.get(&credentials.access_key);
                Caller(Some(Arc::new(key.ok_or_else(|| S3Error::new(S3ErrorCode::InvalidAccessKeyId))?.clone())))
            }
        };
        if let Caller(Some(key)) = &caller
            && !is_allowed(key, cx.s3_op().name(), cx.s3_path(), cx.uri())
        {
            return Err(S3Error::new(S3ErrorCode::AccessDenied));
        }
        cx.extensions_mut().insert(caller);
        Ok(())
    }
}

/// Returns true if an access key may do an operation.
fn is_allowed(key: &AccessKey, name: &str, path: &S3Path, uri: &Uri) -> bool {
    let needed = if is_read(name) { Permission::Read } else { Permission::Write };
    let (bucket, object) = match path {
        S3Path::Root => (None, None),
        S3Path::Bucket { bucket } => (Some(&**bucket), None),
        S3Path::Object { bucket, key } => (Some(&**bucket), Some(&**key)),
    };
    let prefix = if is_list(name) { query(uri, "prefix") } else { None };
    match (name, bucket) {
        // The keys of the request are checked one by one.
        ("DeleteObjects", Some(bucket)) => key.may_see(bucket) && key.permission >= needed,
        // Clients ask for these of a bucket before they work in a part of it.
        ("HeadBucket" | "GetBucketLocation" | "GetBucketVersioning", Some(bucket)) => key.may_see(bucket),
        _ => key.check(needed, bucket, object.or(prefix.as_deref())).is_ok(),
    }
}

/// Returns true if an operation changes nothing.
fn is_read(operation: &str) -> bool {
    ["Get", "Head", "List"].iter().any(|verb| operation.starts_with(verb))
}

/// Returns true if an operation lists keys that begin with a prefix.
fn is_list(operation: &str) -> bool {
    matches!(operation, "ListObjects" | "ListObjectsV2" | "ListObjectVersions" | "ListMultipartUploads")
}

/// Refuses signatures of version 2, and presigned URLs that are valid for too long.
fn check_scheme(headers: &HeaderMap, uri: &Uri) -> S3Result<()> {
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    if authorization.is_some_and(|value| value.starts_with(b"AWS ")) || query(uri, "AWSAccessKeyId").is_some() {
        let message = "signature version 2 is not supported: use AWS4-HMAC-SHA256";
        return Err(S3Error::with_message(S3ErrorCode::InvalidRequest, message));
    }
    let expires = query(uri, "X-Amz-Expires").and_then(|text| text.parse::<u64>().ok());
    if expires.is_some_and(|expires| expires > MAX_PRESIGNED) {
        let message = "X-Amz-Expires must be at most 604800";
        return Err(S3Error::with_message(S3ErrorCode::AuthorizationQueryParametersError, message));
    }
    Ok(())
}

/// Returns the value of a query parameter.
fn query(uri: &Uri, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.into_iter().find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_signatures_and_long_lives_are_refused() {
        let check = |authorization: &str, uri: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())]);
            check_scheme(&headers, &uri.parse().unwrap()).map_err(|error| error.code().clone())
        };
        assert_eq!(check("AWS4-HMAC-SHA256 x", "/b?X-Amz-Expires=604800"), Ok(()));
        assert_eq!(check("", "/b?X-Amz-Expires=604801"), Err(S3ErrorCode::AuthorizationQueryParametersError));
        assert_eq!(check("AWS id:signature", "/b"), Err(S3ErrorCode::InvalidRequest));
        assert_eq!(check("", "/b?AWSAccessKeyId=x&Signature=y"), Err(S3ErrorCode::InvalidRequest));
    }
}
