//! Who asks, and what that access key may do.

use crate::gateway::{AccessKey, AccessKeys, Permission};
use http::{Extensions, HeaderMap, Uri, header};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::path::S3Path;
use s3s::{S3Error, S3ErrorCode, S3Result};
use std::sync::{Arc, OnceLock};
use time::OffsetDateTime;

/// Longest life of a presigned URL in seconds.
const MAX_PRESIGNED: i64 = 7 * 24 * 3600;

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
        check_scheme(cx.headers(), cx.uri(), OffsetDateTime::now_utc())?;
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

/// Refuses presigned URLs that are valid for too long, and signatures of version 2 in a header: they don't cover the
/// content, could be repeated for ever, and the protocol layer computes some of them in another way than clients do.
fn check_scheme(headers: &HeaderMap, uri: &Uri, now: OffsetDateTime) -> S3Result<()> {
    let too_long = |message| Err(S3Error::with_message(S3ErrorCode::AuthorizationQueryParametersError, message));
    let number = |name| query(uri, name).and_then(|text| text.parse::<i64>().ok());
    if number("X-Amz-Expires").is_some_and(|seconds| seconds > MAX_PRESIGNED) {
        return too_long("X-Amz-Expires must be at most 604800");
    }
    let is_version_2 = query(uri, "AWSAccessKeyId").is_some();
    if is_version_2 && number("Expires").is_none_or(|at| at > now.unix_timestamp() + MAX_PRESIGNED) {
        return too_long("Expires must be at most 604800 seconds ahead");
    }
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    if authorization.is_some_and(|value| value.starts_with(b"AWS ")) {
        let message = "signature version 2 is not supported in a header: use AWS4-HMAC-SHA256";
        return Err(S3Error::with_message(S3ErrorCode::InvalidRequest, message));
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
    use http::HeaderName;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-12-01 00:00 UTC);

    fn check(headers: &[(&'static str, &str)], uri: &str) -> Result<(), S3ErrorCode> {
        let header = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        let headers = HeaderMap::from_iter(headers.iter().map(header));
        check_scheme(&headers, &uri.parse().unwrap(), NOW).map_err(|error| error.code().clone())
    }

    #[test]
    fn presigned_urls_live_for_a_week_at_most() {
        assert_eq!(check(&[], "/b?X-Amz-Expires=604800"), Ok(()));
        assert_eq!(check(&[], "/b?X-Amz-Expires=604801"), Err(S3ErrorCode::AuthorizationQueryParametersError));
        let (now, long) = (NOW.unix_timestamp(), Err(S3ErrorCode::AuthorizationQueryParametersError));
        assert_eq!(check(&[], &format!("/b?AWSAccessKeyId=x&Expires={}", now + MAX_PRESIGNED)), Ok(()));
        assert_eq!(check(&[], &format!("/b?AWSAccessKeyId=x&Expires={}", now + MAX_PRESIGNED + 1)), long);
        for expires in ["", "&Expires=", "&Expires=x"] {
            assert_eq!(check(&[], &format!("/b?AWSAccessKeyId=x{expires}")), long, "{expires}");
        }
    }

    #[test]
    fn old_signatures_are_refused_in_headers() {
        assert_eq!(check(&[("authorization", "AWS id:signature")], "/b"), Err(S3ErrorCode::InvalidRequest));
        assert_eq!(check(&[("authorization", "AWS4-HMAC-SHA256 x")], "/b"), Ok(()), "checked elsewhere");
    }
}
