//! Bodies of requests and responses, and the digests that requests announce.

use crate::gateway::{Algorithm, Announced, Checksum, Error, Headers, ObjectTags, check_tags};
use crate::gateway::{LateDigests, UploadBody};
use crate::store::ByteStream;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, Method, header};
use s3s::dto::{StreamingBlob, Timestamp};
use s3s::stream::ByteStream as _;
use s3s::{S3Request, TrailingHeaders};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::task::{Context, Poll};
use sync_wrapper::SyncStream;
use time::OffsetDateTime;

/// Returns the body of a request and its length, if it is known.
pub(super) fn request_body(
    blob: Option<StreamingBlob>,
    method: &Method,
    headers: &HeaderMap,
) -> (UploadBody, Option<u64>) {
    let Some(blob) = blob else { return (futures::stream::empty().boxed(), Some(0)) };
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    // With aws-chunked framing the length of the content has a header of its own.
    let exact = || blob.remaining_length().exact().map(|len| len as u64);
    let in_header = || number("x-amz-decoded-content-length").or_else(|| number(header::CONTENT_LENGTH.as_str()));
    // The headers of a form are about the form.
    let len = if method == Method::POST { exact() } else { in_header().or_else(exact) };
    (blob.map(|piece| piece.map_err(|error| Error::Body(error.to_string()))).boxed(), len)
}

/// Returns a response body over a stream of the store.
pub(super) fn response_body(stream: impl Stream<Item = Result<bytes::Bytes, Error>> + Send + 'static) -> StreamingBlob {
    StreamingBlob::wrap(Ended { inner: SyncStream::new(Box::pin(stream)) })
}

/// A stream of the store for a response. An error cuts the connection, so the client sees a body that is too short. The
/// log says why.
struct Ended<S> {
    inner: SyncStream<Pin<Box<S>>>,
}

impl<S: Stream<Item = Result<bytes::Bytes, Error>>> Stream for Ended<S> {
    type Item = Result<bytes::Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.inner.poll_next_unpin(cx));
        if let Some(Err(error)) = &next {
            tracing::error!(%error, "a response was cut");
        }
        Poll::Ready(next)
    }
}

/// Refuses aws-chunked framing that the protocol layer has not decoded: without a signature in the header it doesn't.
pub(super) fn check_framing<T>(request: &S3Request<T>) -> Result<(), Error> {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // The header of the digest says whether there is framing. Without it the others do.
    let is_framed = match text("x-amz-content-sha256") {
        "" => text("content-encoding").contains("aws-chunked") || !text("x-amz-trailer").is_empty(),
        digest => digest.starts_with("STREAMING-"),
    };
    if is_framed && request.trailing_headers.is_none() { Err(Error::UnsignedFraming) } else { Ok(()) }
}

/// The digests that a request announces.
pub(super) struct RequestDigests {
    pub(super) announced: Announced,
    /// The additional checksum to compute.
    pub(super) algorithm: Option<Algorithm>,
    /// Digests in a trailer.
    pub(super) late: Option<LateDigests>,
}

/// Reads the digests that the headers announce. `default`: the checksum to compute if they name none.
pub(super) fn request_digests<T>(request: &S3Request<T>, default: Option<Algorithm>) -> Result<RequestDigests, Error> {
    let text = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let md5 = text("content-md5").map(Announced::parse_md5).transpose()?;
    let mut checksum = None;
    for algorithm in Algorithm::ALL {
        if let Some(value) = text(algorithm.header()) {
            if checksum.is_some() {
                return Err(Error::InvalidRequest("more than one checksum header"));
            }
            checksum = Some(Announced::parse_checksum(algorithm, value)?);
        }
    }
    let named = text("x-amz-sdk-checksum-algorithm").or_else(|| text("x-amz-checksum-algorithm"));
    let named = named.map(|name| Algorithm::parse(name).ok_or(Error::InvalidArgument("an unknown checksum algorithm")));
    let trailer = text("x-amz-trailer").unwrap_or_default();
    let in_trailer = trailer
        .split(',')
        .find_map(|name| Algorithm::ALL.into_iter().find(|a| name.trim().eq_ignore_ascii_case(a.header())));
    let algorithm = checksum.as_ref().map(|checksum: &Checksum| checksum.algorithm);
    let algorithm = algorithm.or(in_trailer).or(named.transpose()?).or(default);
    let late = in_trailer.zip(request.trailing_headers.clone()).map(|(algorithm, trailers)| late(algorithm, trailers));
    Ok(RequestDigests { announced: Announced { md5, checksum }, algorithm, late })
}

fn late(algorithm: Algorithm, trailers: TrailingHeaders) -> LateDigests {
    Box::new(move || {
        let value = trailers.read(|headers| {
            let value = headers.get(HeaderName::from_static(algorithm.header()))?;
            Some(value.to_str().unwrap_or_default().to_owned())
        });
        let value = value.flatten().ok_or_else(|| Error::Body("the announced trailer is missing".into()))?;
        Ok(Announced { md5: None, checksum: Some(Announced::parse_checksum(algorithm, &value)?) })
    })
}

/// Returns the checksum that a list of optional values names.
pub(super) fn one_checksum(values: [(Algorithm, &Option<String>); 5]) -> Result<Option<Checksum>, Error> {
    let mut found = values.into_iter().filter_map(|(algorithm, value)| Some((algorithm, value.as_ref()?)));
    let Some((algorithm, value)) = found.next() else { return Ok(None) };
    // The checksum of a multipart object may carry the number of its parts.
    let (digest, _parts) = value.rsplit_once('-').unwrap_or((value, ""));
    Announced::parse_checksum(algorithm, digest)?;
    Ok(Some(Checksum { algorithm, value: value.clone() }))
}

/// Returns the value of a checksum, for the field of this algorithm.
pub(super) fn value_of(checksum: Option<&Checksum>, algorithm: Algorithm) -> Option<String> {
    checksum.filter(|checksum| checksum.algorithm == algorithm).map(|checksum| checksum.value.clone())
}

/// Sets the five checksum fields of a response.
macro_rules! set_checksums {
    ($output:expr, $checksum:expr) => {{
        use crate::gateway::Algorithm;
        use $crate::gateway::s3::body::value_of;
        let checksum = $checksum;
        $output.checksum_crc32 = value_of(checksum, Algorithm::Crc32);
        $output.checksum_crc32c = value_of(checksum, Algorithm::Crc32c);
        $output.checksum_crc64nvme = value_of(checksum, Algorithm::Crc64Nvme);
        $output.checksum_sha1 = value_of(checksum, Algorithm::Sha1);
        $output.checksum_sha256 = value_of(checksum, Algorithm::Sha256);
    }};
}
/// Reads the five checksum fields of a request.
macro_rules! get_checksum {
    ($input:expr) => {{
        use crate::gateway::Algorithm;
        $crate::gateway::s3::body::one_checksum([
            (Algorithm::Crc32, &$input.checksum_crc32),
            (Algorithm::Crc32c, &$input.checksum_crc32c),
            (Algorithm::Crc64Nvme, &$input.checksum_crc64nvme),
            (Algorithm::Sha1, &$input.checksum_sha1),
            (Algorithm::Sha256, &$input.checksum_sha256),
        ])
    }};
}
/// Reads the headers of an object from a request.
macro_rules! get_headers {
    ($input:expr) => {
        $crate::gateway::s3::body::headers(
            [
                $input.content_type.take(),
                $input.cache_control.take(),
                $input.content_disposition.take(),
                $input.content_encoding.take(),
                $input.content_language.take(),
            ],
            $input.expires.take(),
            $input.metadata.take(),
        )
    };
}
/// Sets the headers of an object in a response.
macro_rules! set_headers {
    ($output:expr, $headers:expr) => {{
        let headers = $headers;
        $output.content_type =
            Some(headers.content_type.clone().unwrap_or_else(|| $crate::gateway::s3::body::DEFAULT_TYPE.to_owned()));
        $output.cache_control = headers.cache_control.clone();
        $output.content_disposition = headers.content_disposition.clone();
        $output.content_encoding = headers.content_encoding.clone();
        $output.content_language = headers.content_language.clone();
        $output.expires = headers.expires.and_then($crate::gateway::s3::body::timestamp);
        $output.metadata = (!headers.user.is_empty()).then(|| headers.user.clone().into_iter().collect());
    }};
}
pub(super) use {get_checksum, get_headers, set_checksums, set_headers};

/// Reads the header `x-amz-tagging`: names and values as in a query.
pub(super) fn tags(header: Option<&String>) -> Result<ObjectTags, Error> {
    let pairs = url::form_urlencoded::parse(header.map_or("", String::as_str).as_bytes());
    check_tags(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())))
}

/// Content type of an object whose writer named none, as in S3.
pub(super) const DEFAULT_TYPE: &str = "binary/octet-stream";

/// Returns the headers of an object. The fields are those of [`Headers`] in their order.
pub(super) fn headers(
    [content_type, cache_control, content_disposition, content_encoding, content_language]: [Option<String>; 5],
    expires: Option<Timestamp>,
    user: Option<HashMap<String, String>>,
) -> Headers {
    // The framing of the request is no property of the object.
    let content_encoding = content_encoding.and_then(|all| {
        let kept: Vec<&str> =
            all.split(',').map(str::trim).filter(|one| !one.is_empty() && *one != "aws-chunked").collect();
        (!kept.is_empty()).then(|| kept.join(", "))
    });
    Headers {
        content_type: content_type.filter(|text| !text.is_empty()),
        cache_control,
        content_disposition,
        content_encoding,
        content_language,
        expires: expires.map(|time| OffsetDateTime::from(time).unix_timestamp()),
        user: user.unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
    }
}

/// Returns a time in seconds since 1970 as responses write it.
pub(super) fn timestamp(seconds: i64) -> Option<Timestamp> {
    OffsetDateTime::from_unix_timestamp(seconds).ok().map(Timestamp::from)
}

/// Maps errors of a store's stream.
pub(super) fn of_store(stream: ByteStream) -> impl Stream<Item = Result<bytes::Bytes, Error>> + Send + 'static {
    stream.map(|piece| piece.map_err(Error::of_store))
}
