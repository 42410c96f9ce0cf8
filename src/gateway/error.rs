//! Failures of the gateway, before a protocol gives them its own codes.

use crate::store::{self, Cause};

/// Failure of a request. Texts name no key and no secret: they reach the client and the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such bucket, or not one that this gateway serves.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// A bucket of this name exists.
    #[error("the bucket exists already")]
    BucketExists,
    /// A bucket that holds objects.
    #[error("the bucket holds {0} objects")]
    BucketNotEmpty(u64),
    /// A bucket name that the Hub doesn't allow.
    #[error("a bucket name has letters, digits, '-', '_' and '.', 96 at most")]
    InvalidBucketName,
    /// No object has this key.
    #[error("the object does not exist")]
    NoSuchKey,
    /// A folder that is not empty.
    #[error("the folder holds files")]
    FolderNotEmpty,
    /// A file or folder has this name.
    #[error("the name is taken")]
    NameTaken,
    /// A key that the bucket can't store. It is refused, because another key would have to take its place.
    #[error("the bucket can't store this key: {0}")]
    InvalidKey(&'static str),
    /// A key, or one of its components, that is too long.
    #[error("a key has 1,024 bytes at most, and 255 between slashes")]
    KeyTooLong,
    /// The access key may not do this.
    #[error("this access key may not do this")]
    Denied,
    /// A condition of the request doesn't hold.
    #[error("the condition {0} does not hold")]
    PreconditionFailed(&'static str),
    /// Another writer changed the object while this request was checked.
    #[error("another writer changed the object at the same time")]
    Conflict,
    /// The client has this version already.
    #[error("not modified")]
    NotModified,
    /// The content doesn't have the digest that the client announced.
    #[error("the content does not match {0}")]
    BadDigest(&'static str),
    /// A digest that is not well formed.
    #[error("{0} is not a digest in base64")]
    InvalidDigest(&'static str),
    /// The body ended early, or has more bytes than announced.
    #[error("the body does not have the announced length")]
    IncompleteBody,
    /// A body that the client cut, or that breaks its framing.
    #[error("the body can't be read: {0}")]
    Body(String),
    /// A body in aws-chunked framing without a signature in the header.
    #[error("aws-chunked bodies need a signature in the header")]
    UnsignedFraming,
    /// Content larger than allowed.
    #[error("the object is larger than {0} bytes")]
    TooLarge(u64),
    /// A request that can't be carried out as it is.
    #[error("{0}")]
    InvalidRequest(&'static str),
    /// An argument out of range.
    #[error("{0}")]
    InvalidArgument(&'static str),
    /// No byte of the object is in the range.
    #[error("no byte of the object is in the range")]
    InvalidRange,
    /// Metadata larger than allowed.
    #[error("user metadata has {0} bytes at most")]
    MetadataTooLarge(usize),
    /// Tags that are not allowed.
    #[error("{0}")]
    InvalidTag(&'static str),
    /// No such multipart upload, or one that was completed or aborted.
    #[error("the multipart upload does not exist")]
    NoSuchUpload,
    /// A part of the list was not uploaded, or has another ETag.
    #[error("part {0} was not uploaded, or has another ETag")]
    InvalidPart(u32),
    /// The list of parts isn't in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// A part other than the last one that is too small.
    #[error("part {0} is smaller than 5 MiB and not the last one")]
    PartTooSmall(u32),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The state of the gateway failed.
    #[error("the state of the gateway: {0}")]
    State(String),
    /// More work than the gateway takes at once.
    #[error("the gateway is busy")]
    Busy,
}

impl Error {
    /// Gives failures of the store the more exact kinds of a gateway, where there is one.
    pub(super) fn of_store(error: store::Error) -> Self {
        use store::HubError;
        match error {
            store::Error::Hub(HubError::BucketNotFound(_) | HubError::NotABucket { .. }) => Self::NoSuchBucket,
            store::Error::Hub(HubError::Conflict(_)) => Self::BucketExists,
            store::Error::Hub(HubError::InvalidId(_)) => Self::InvalidBucketName,
            store::Error::NotEmpty(files) => Self::BucketNotEmpty(files),
            error => match error.cause() {
                Cause::NotFound => Self::NoSuchKey,
                Cause::InvalidName => Self::InvalidKey("the Hub refuses it"),
                Cause::NameTooLong => Self::KeyTooLong,
                _ => Self::Store(error),
            },
        }
    }
}

/// Failure inside a reader or a stream, where only `io::Error` passes.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}
