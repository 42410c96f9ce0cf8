/// What can be wrong with a key file, a name or a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tag, a sealed header or a record count did not verify: altered, or made with another key.
    #[error("does not authenticate")]
    Unauthentic,
    /// Record `0` of a container did not verify.
    #[error("record {0} does not authenticate")]
    UnauthenticRecord(u64),
    /// Bytes behind the end of a format-2 file are not zero.
    #[error("record {0} has bytes past the end of the file")]
    BytesBehindEnd(u64),
    /// Not a container at all, or one whose constants or length are wrong; the text says which.
    #[error("not a valid container: {0}")]
    Malformed(&'static str),
    /// The magic is right and the version is above those known.
    #[error("container version {0} is newer than this program")]
    NewerVersion(u8),
    /// A container of one format under a name of the other.
    #[error("format mismatch: the container is not of its name's format")]
    FormatMismatch,
    /// A name component longer than the format can store, in bytes.
    #[error("name of {0} bytes is too long")]
    NameTooLong(usize),
    /// An empty name, `.`, `..`, or one with NUL or `/`.
    #[error("invalid name: {0}")]
    NameInvalid(&'static str),
    /// A key file that is neither 32 raw bytes nor 64 hex digits; the text says why, never the bytes.
    #[error("not a key: {0}")]
    KeyFile(String),
    /// A size, offset or count beyond what the format can express.
    #[error("size out of range")]
    OutOfRange,
    /// The random generator failed.
    #[error("no randomness: {0}")]
    Random(String),
}
