use crate::{crypto, hub, xet};

/// Failure of an operation on a source. Texts name no plaintext path. The layer that reports the error adds
/// the path where that is allowed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there.
    #[error("not found")]
    NotFound,
    /// Empty, `.`, `..`, NUL or `/` in a name.
    #[error("invalid name")]
    InvalidName,
    /// Longer than the format or the backend can store.
    #[error("name too long")]
    NameTooLong,
    /// A write to a plaintext entry of a view with a key, or to anything in a read-only source.
    #[error("read-only")]
    ReadOnly,
    /// A directory that isn't empty as stored. Entries of other keys count.
    #[error("not empty: it holds {0} entries that this key can't read")]
    NotEmpty(u64),
    /// A header, record or slot doesn't authenticate. Never transient.
    #[error("integrity: {0}")]
    Unauthentic(#[source] crypto::Error),
    /// Xet data doesn't match its hash.
    #[error("integrity: {0}")]
    Corrupt(#[source] xet::Error),
    /// The key opens no entry of a tree that isn't empty.
    #[error("this key opens nothing in this bucket; it has {entries} encrypted entries")]
    WrongKey {
        /// Number of entries seen.
        entries: u64,
    },
    /// An object without a Xet hash.
    #[error("the object has no Xet hash")]
    NoContent,
    /// A Git blob where a Xet hash is needed: to read content from the CAS, or to commit it. Files of repositories may
    /// have only a blob id, see [`ContentId`](super::ContentId).
    #[error("the file is a Git blob: its content is not in Xet storage")]
    UnsupportedBlob,
    /// A Git blob whose content doesn't match its id.
    #[error("integrity: the content of the file does not match its Git id")]
    DamagedBlob,
    /// The path of the source is a file.
    #[error("the path in the source is a file, not a folder")]
    SourceIsFile,
    /// Nothing is at the path of the source, and writing there is not allowed.
    #[error("the folder in the source does not exist")]
    NoSuchFolder,
    /// Ciphertext for a plaintext path, or plaintext for the encrypted tree.
    #[error("the content belongs to the other side of the bucket")]
    WrongSide,
    /// The Hub accepted the request but refused the line of this key several times (Hub API spec, 4.3). A
    /// later try may succeed: such refusals have disappeared by themselves.
    #[error("the Hub refused the change: {0}")]
    Refused(String),
    /// A stream was shorter or longer than announced.
    #[error("the content does not have the announced length")]
    LengthMismatch,
    /// No stored format can hold this.
    #[error("{0} can't be stored")]
    Unstorable(&'static str),
    /// Error of the Hub.
    #[error(transparent)]
    Hub(#[from] hub::Error),
    /// Error of the CAS.
    #[error(transparent)]
    Cas(xet::Error),
    /// Sealing failed (size out of range, no randomness).
    #[error(transparent)]
    Crypto(crypto::Error),
    /// The staging file, the header cache or a content reader failed.
    #[error("local I/O: {0}")]
    Io(#[from] std::io::Error),
}

impl Error {
    /// Returns true if the call may succeed later although nothing is changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Hub(e) => e.is_transient(),
            Self::Cas(e) => e.is_transient(),
            Self::Refused(_) => true,
            _ => false,
        }
    }

    /// Returns true if bytes or names failed to authenticate.
    pub fn is_integrity(&self) -> bool {
        matches!(self, Self::Unauthentic(_) | Self::Corrupt(_) | Self::DamagedBlob)
    }
}

impl Error {
    /// Returns a copy of the error. One request may fail for many operations.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::NotFound => Self::NotFound,
            Self::InvalidName => Self::InvalidName,
            Self::NameTooLong => Self::NameTooLong,
            Self::ReadOnly => Self::ReadOnly,
            Self::NotEmpty(count) => Self::NotEmpty(*count),
            Self::Unauthentic(error) => Self::Unauthentic(error.clone()),
            Self::Corrupt(error) => Self::Corrupt(error.clone()),
            Self::WrongKey { entries } => Self::WrongKey { entries: *entries },
            Self::NoContent => Self::NoContent,
            Self::UnsupportedBlob => Self::UnsupportedBlob,
            Self::DamagedBlob => Self::DamagedBlob,
            Self::SourceIsFile => Self::SourceIsFile,
            Self::NoSuchFolder => Self::NoSuchFolder,
            Self::WrongSide => Self::WrongSide,
            Self::Refused(words) => Self::Refused(words.clone()),
            Self::LengthMismatch => Self::LengthMismatch,
            Self::Unstorable(what) => Self::Unstorable(what),
            Self::Hub(error) => Self::Hub(hub_again(error)),
            Self::Cas(error) => Self::Cas(error.clone()),
            Self::Crypto(error) => Self::Crypto(error.clone()),
            Self::Io(error) => Self::Io(io_again(error)),
        }
    }
}

fn io_again(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

fn hub_again(error: &hub::Error) -> hub::Error {
    use hub::Error as E;
    match error {
        E::InvalidId(id) => E::InvalidId(id.clone()),
        E::Endpoint { endpoint, why } => E::Endpoint { endpoint: endpoint.clone(), why: why.clone() },
        E::BucketNotFound(id) => E::BucketNotFound(id.clone()),
        E::NotABucket { id, kind } => E::NotABucket { id: id.clone(), kind },
        E::InvalidRepoId(id) => E::InvalidRepoId(id.clone()),
        E::RepoNotFound(id) => E::RepoNotFound(id.clone()),
        E::OtherKind { id, found } => E::OtherKind { id: id.clone(), found },
        E::RevisionNotFound { id, revision } => E::RevisionNotFound { id: id.clone(), revision: revision.clone() },
        E::Gated(id) => E::Gated(id.clone()),
        E::EntryNotFound => E::EntryNotFound,
        E::Conflict(id) => E::Conflict(id.clone()),
        E::Unauthorized(why) => E::Unauthorized(why.clone()),
        E::Forbidden(why) => E::Forbidden(why.clone()),
        E::Quota(why) => E::Quota(why.clone()),
        E::Status { status, message } => E::Status { status: *status, message: message.clone() },
        E::Network(why) => E::Network(why.clone()),
        E::Partial { answered, outcome, source } => {
            E::Partial { answered: *answered, outcome: outcome.clone(), source: Box::new(hub_again(source)) }
        }
        E::Malformed(why) => E::Malformed(why.clone()),
        E::TokenFile { path, source } => E::TokenFile { path: path.clone(), source: io_again(source) },
        E::Local(why) => E::Local(why.clone()),
    }
}

/// Kind of a failure, independent of the layer that it comes from. The tables of codes in the front ends need
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is there.
    NotFound,
    /// A name that isn't allowed.
    InvalidName,
    /// A name that is too long.
    NameTooLong,
    /// A write to a read-only path.
    ReadOnly,
    /// A directory that isn't empty.
    NotEmpty,
    /// Data doesn't authenticate or match its hash.
    Integrity,
    /// The Hub or the CAS denied access.
    Denied,
    /// A quota of the Hub is exceeded, or the local disk is full.
    NoSpace,
    /// A local quota is exceeded.
    LocalQuota,
    /// A file larger than the limit.
    TooLarge,
    /// Any other failure.
    Other,
}

impl Error {
    /// Returns the kind of the failure.
    pub fn cause(&self) -> Cause {
        match self {
            Self::NotFound | Self::NoSuchFolder | Self::SourceIsFile => Cause::NotFound,
            Self::InvalidName => Cause::InvalidName,
            Self::NameTooLong => Cause::NameTooLong,
            Self::ReadOnly => Cause::ReadOnly,
            Self::NotEmpty(_) => Cause::NotEmpty,
            Self::Unauthentic(_) | Self::Corrupt(_) | Self::DamagedBlob | Self::WrongKey { .. } => Cause::Integrity,
            Self::Hub(error) => cause_at_hub(error),
            Self::Cas(error) => cause_at_cas(error),
            Self::Io(error) => cause_of_io(error),
            Self::Crypto(crypto::Error::OutOfRange) => Cause::TooLarge,
            Self::NoContent
            | Self::UnsupportedBlob
            | Self::LengthMismatch
            | Self::WrongSide
            | Self::Refused(_)
            | Self::Unstorable(_)
            | Self::Crypto(_) => Cause::Other,
        }
    }
}

fn cause_at_hub(error: &hub::Error) -> Cause {
    use hub::Error as E;
    match error {
        E::Unauthorized(_) | E::Forbidden(_) | E::Gated(_) => Cause::Denied,
        E::Quota(_) => Cause::NoSpace,
        E::Status { status, .. } => cause_of_status(*status),
        E::Partial { source, .. } => cause_at_hub(source),
        E::InvalidId(_)
        | E::Endpoint { .. }
        | E::BucketNotFound(_)
        | E::NotABucket { .. }
        | E::InvalidRepoId(_)
        | E::RepoNotFound(_)
        | E::OtherKind { .. }
        | E::RevisionNotFound { .. }
        | E::EntryNotFound
        | E::Conflict(_)
        | E::Network(_)
        | E::Malformed(_)
        | E::TokenFile { .. }
        | E::Local(_) => Cause::Other,
    }
}

fn cause_at_cas(error: &xet::Error) -> Cause {
    use xet::Error as E;
    match error {
        E::Unauthorized | E::Forbidden(_) => Cause::Denied,
        E::Status { status, .. } => cause_of_status(*status),
        E::Io(error) => cause_of_io(error),
        E::Malformed { .. } | E::HashMismatch { .. } => Cause::Integrity,
        // The Hub's error gives the reason why there is no token.
        E::Token(source) => source.downcast_ref::<hub::Error>().map_or(Cause::Other, cause_at_hub),
        E::NotFound(_) | E::RangeNotSatisfiable | E::Network(_) => Cause::Other,
    }
}

fn cause_of_status(status: u16) -> Cause {
    match status {
        401 | 403 => Cause::Denied,
        413 | 507 => Cause::NoSpace,
        _ => Cause::Other,
    }
}

fn cause_of_io(error: &std::io::Error) -> Cause {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Cause::NoSpace,
        std::io::ErrorKind::QuotaExceeded => Cause::LocalQuota,
        std::io::ErrorKind::FileTooLarge => Cause::TooLarge,
        _ => Cause::Other,
    }
}

impl From<xet::Error> for Error {
    fn from(error: xet::Error) -> Self {
        match error {
            xet::Error::HashMismatch { .. } | xet::Error::Malformed { .. } => Self::Corrupt(error),
            other => Self::Cas(other),
        }
    }
}

impl From<crypto::Error> for Error {
    fn from(error: crypto::Error) -> Self {
        use crypto::Error as E;
        match error {
            E::Unauthentic
            | E::UnauthenticRecord(_)
            | E::BytesBehindEnd(_)
            | E::Malformed(_)
            | E::NewerVersion(_)
            | E::FormatMismatch => Self::Unauthentic(error),
            E::NameTooLong(_) => Self::NameTooLong,
            E::NameInvalid(_) => Self::InvalidName,
            other => Self::Crypto(other),
        }
    }
}
