//! Shows a bucket as plaintext paths, sizes and byte ranges. This is the only layer where crypto meets Xet
//! and the Hub.
//!
//! [`View`] is implemented by [`plain`], [`encrypted`] and [`merged`]. Conflict checks, the order of adds
//! before deletes, format rules and everything that needs a key live here. The layer `fs` above never sees a
//! key, a stored name or a container.
//!
//! Plaintext paths are secrets: [`PlainPath`] has no `Display`, and its `Debug` hides the text.

mod beside;
mod blobs;
pub mod buckets;
mod commit;
#[cfg(test)]
pub(crate) mod conformance;
mod content_id;
mod contents;
mod database;
pub mod draft;
pub mod encrypted;
mod error;
mod headers;
mod hidden;
mod memory;
pub mod merged;
pub mod metadata;
mod names;
mod object;
pub mod offline;
mod path;
pub mod plain;
mod put;
mod remote;
pub mod source;
pub(crate) mod staging;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod twin;
pub mod walk;

pub use content_id::ContentId;
pub use draft::{BaseReader, Binding, Delta, Draft, DraftState, Frozen, RecordRef};
pub use error::{Cause, Error};
pub use metadata::{Described, MetadataObject};
pub use path::PlainPath;
pub use source::{CacheLookups, CacheMode, DiskCacheOptions, OpenOptions, Opened, Source, open};
pub use staging::{SlotId, SlotIo};
pub use twin::marked_name;

/// Types of the layers below that are part of the interface of this layer. Users of the store import no other
/// layer.
pub use crate::{
    crypto::{Error as CryptoError, Format},
    hub::{
        Error as HubError, MTIME_GRANULARITY, RepoId, RepoKind, mtime_from_millis, mtime_millis, stored_mtime,
        stored_now,
    },
    xet::{Error as CasError, Hash, Lookups, deadline},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;
use time::OffsetDateTime;

/// Side of a bucket on which an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Under `.enc/`, in this format: authenticated.
    Encrypted(crate::crypto::Format),
    /// An ordinary object. In a view with a key it is read-only, and nothing about it is authenticated.
    Plain,
}

/// One immutable version of a file. It is pinned by content, never by path, so a reader can't mix two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Id of the stored content.
    pub id: ContentId,
    /// Stored size in bytes.
    pub stored_len: u64,
    /// Side on which it lies.
    pub side: Side,
}

/// Plaintext size of a file, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Len {
    /// Bytes. Verified on the encrypted side, reported by the Hub on the plain side.
    Known(u64),
    /// The header has not been read yet: [`View::stat`] or [`View::lens`] reads it.
    Unread,
    /// An own file whose header doesn't authenticate or has the wrong format. It is shown with size 0. `open`
    /// fails, and `unlink` is allowed.
    Damaged,
}

/// Kind of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// It has a plaintext side in a view with a key, so it can't be renamed or removed.
        read_only: bool,
    },
    /// A file.
    File {
        /// Its content. `None`: an object without a content id, which can't be opened yet.
        version: Option<Version>,
        /// Its plaintext size.
        len: Len,
        /// Time that the writer gave, or else the Hub's.
        mtime: Option<OffsetDateTime>,
        /// A plaintext file in a view with a key.
        read_only: bool,
    },
}

/// A child of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its plaintext name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
}

/// Numbers of entries that a listing did not show, by reason. `status` reports the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Names that don't decode or authenticate: they belong to another key, or are damaged.
    pub foreign: u64,
    /// Names that authenticate but break a name rule.
    pub suspicious: u64,
    /// Hidden by another entry of the same name (plaintext below encrypted, format 1 below format 2).
    pub shadowed: u64,
    /// Keys that can't be paths here (`//`, NUL, `..`, a component of more than 255 bytes).
    pub unreachable: u64,
}

/// A directory's children.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Shown entries, ascending by name bytes, each name once.
    pub entries: Vec<Entry>,
    /// Counts of the entries that are not shown.
    pub hidden: Hidden,
}

/// An opened version.
#[async_trait]
pub trait Object: Send + Sync + 'static {
    /// Returns the plaintext size in bytes.
    fn len(&self) -> u64;
    /// Returns true if it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Returns the plaintext bytes `[offset, offset + len)`. The result ends at the end of the file, and is
    /// never shorter otherwise. On the encrypted side the bytes are authenticated before they are returned.
    /// Suitable for up to some MiB per call.
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error>;
    /// Returns the plaintext bytes of `range`, which ends at the end of the file at the latest, as an ordered stream of
    /// pieces, none of them empty. See [`ByteStream`] for what it promises.
    fn stream(self: Arc<Self>, range: Range<u64>) -> ByteStream {
        let range = range.start..range.end.min(self.len());
        object::in_windows(range, move |window| {
            let object = self.clone();
            // A window has some MiB.
            async move { object.read(window.start, (window.end - window.start) as usize).await }
        })
    }
    /// Reads all that is stored, padding too, and checks it against its hash. Damaged records are in the answer, not an
    /// error.
    async fn verify(&self) -> Result<Verified, Error> {
        let mut offset = 0;
        while offset < self.len() {
            offset += self.read(offset, VERIFY_STEP).await?.len().max(1) as u64;
        }
        Ok(Verified::default())
    }
}

/// Plaintext in order, fetched ahead of the reader.
///
/// - **Errors** come in order: every byte before the damage or the failure is delivered, and no byte after
///   it. On the encrypted side each byte was authenticated before it is delivered. The stream ends after the
///   first error. If it ends without an error, the range is complete.
/// - **Windows** are fetched ahead. The first has 1 MiB, and each next one is twice as large. Small windows
///   give an early first byte, large ones need few requests.
/// - **Back-pressure**: nothing more is fetched while the reader doesn't poll.
/// - **Memory**: at most 32 MiB of windows (eight of 4 MiB), and one more that is being decrypted; half of it while the
///   reader never waits. Chunks that cross the edges of windows come on top.
/// - **Dropping** it ends all requests and frees all memory.
/// - **Deadlines**: it outlives the operation that opened it or polls it, so it has none of its own. A reader
///   that has a deadline waits for each piece with [`deadline::timely`]. It must be polled inside a Tokio
///   runtime.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// Bytes that [`Object::verify`] reads per step where an object has no better way.
const VERIFY_STEP: usize = 1 << 20;

/// Result of a check of a whole object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records read; 0 on the plain side.
    pub records: u64,
    /// Number of records that don't authenticate, or have bytes past the end of the file.
    pub damaged: u64,
    /// Indices of the first damaged records.
    pub named: Vec<u64>,
    /// A hint for format 1 only: there are bytes past the end of the file. A truncation left them, or an
    /// older header stands over newer records.
    pub stale_tail: bool,
}

/// Content that is put into the store.
pub enum Content {
    /// Plaintext from a reader. With a key it is sealed in one pass, in constant memory, even if its length
    /// is not known.
    Stream {
        /// The plaintext.
        reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        /// Its length, if it is known in advance. A different length is an error.
        len: Option<u64>,
    },
    /// A frozen draft. Its stored bytes are sent unchanged.
    Frozen {
        /// The frozen version.
        frozen: Arc<Frozen>,
        /// The pool that holds its slots.
        slots: Arc<dyn SlotIo>,
    },
}

/// Content that is in the store. It may be committed under any path once its session has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The version of this content.
    pub version: Version,
    /// Plaintext size.
    pub plain_len: u64,
}

/// Bytes that an upload session has handled so far. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutProgress {
    /// Bytes of content read. A session stops reading when its memory is full, so content that can't be sent
    /// stops it.
    pub read: u64,
    /// Bytes handed to connections. Bytes that are sent again count once.
    pub sent: u64,
}

/// Uploads content to the store. Any number of files share xorbs, and one shard registers them.
#[async_trait]
pub trait PutSession: Send + Sync {
    /// Returns a function that reports the progress of the session. It may be called at any time, also while
    /// the session finishes.
    fn progress(&self) -> Box<dyn Fn() -> PutProgress + Send + Sync>;
    /// Uploads one content. An error concerns this content only.
    async fn add(&self, content: Content) -> Result<Stored, Error>;
    /// Uploads a metadata object, sealed on a source with a key (format spec, section 13). `json`: at most
    /// [`MAX_METADATA`](metadata::MAX_METADATA) bytes. Returns its id for [`Change::Put`], [`Change::Copy`] and
    /// [`Change::Describe`].
    async fn add_metadata(&self, json: &[u8]) -> Result<ContentId, Error> {
        let _ = json;
        Err(Error::Unstorable("metadata of objects"))
    }
    /// Registers the content whose `add` has returned, like [`PutSession::finish`], and goes on. Other content may be
    /// added meanwhile. Concurrent calls share the work. Once this has failed, the session can't be used any more.
    async fn register(&self) -> Result<(), Error>;
    /// Registers the added content. None of it may be committed before this has returned.
    async fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// State of a path that a change requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is there.
    Absent,
    /// This content is there.
    Is(ContentId),
    /// Whatever is there.
    Any,
}

/// A change of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts stored content at the path and replaces the file there.
    Put {
        /// The content.
        stored: Stored,
        /// Modification time to record.
        mtime: OffsetDateTime,
        /// Metadata object of the new version (see [`PutSession::add_metadata`]).
        metadata: Option<ContentId>,
    },
    /// Gives the file at the path other metadata (see [`PutSession::add_metadata`]).
    Describe {
        /// The metadata object.
        metadata: ContentId,
    },
    /// Gives the file at the path another modification time, also an earlier one. A `Put` of content that is there
    /// changes nothing. The Hub has no such operation, so the content is put again: what another client stores in the
    /// moment between is replaced.
    SetModified {
        /// The time.
        mtime: OffsetDateTime,
    },
    /// Removes the file (in both formats, with its sidecars and its metadata).
    Delete,
    /// Moves the file at the path to `to`. The content is unchanged. `expect` concerns the old path,
    /// `expect_to` the new one.
    Rename {
        /// New path.
        to: PlainPath,
        /// Required state of `to`.
        expect_to: Expect,
    },
    /// Moves everything below the directory at the path to `to`. `to` must not exist or must be empty.
    RenameDirectory {
        /// New path.
        to: PlainPath,
    },
    /// Adds a file with this content at `to`. The two files are independent.
    Copy {
        /// New path.
        to: PlainPath,
        /// Required state of `to`.
        expect_to: Expect,
        /// Metadata object of the copy. `None`: that of the source.
        metadata: Option<ContentId>,
    },
}

/// One operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The path.
    pub path: PlainPath,
    /// Required state of the path.
    pub expect: Expect,
    /// The change.
    pub change: Change,
}

/// A file that was moved with its directory. Objects without a content id are left out.
#[derive(Clone, Debug)]
pub struct MovedFile {
    /// Its new path.
    pub path: PlainPath,
    /// Its version.
    pub version: Version,
    /// Time of its last change, if it is known.
    pub mtime: Option<OffsetDateTime>,
}

/// Result of one operation.
#[derive(Debug)]
pub enum Outcome {
    /// The operation was carried out. Holds the version that is now at the (new) path, if any.
    Done(Option<Version>),
    /// A directory was moved, with these files.
    Moved(Vec<MovedFile>),
    /// The path was not in the expected state. Nothing was changed.
    Conflict {
        /// What is there.
        found: Option<ContentId>,
    },
    /// The operation was not carried out, or only partly. Adds that succeeded stay. No delete ran before its
    /// add succeeded. Repeating is safe.
    Failed(Error),
}

/// Sealer of the data that a mount keeps in local files. On a source without a key it leaves the data unchanged.
pub trait Sealer: Send + Sync + 'static {
    /// Seals `payload` for sequence number `sequence` of journal `journal`.
    fn seal(&self, journal: &[u8; 32], sequence: u64, payload: &[u8]) -> Result<Vec<u8>, Error>;
    /// Opens a sealed payload. Fails with `Error::Unauthentic` if it was altered or belongs to another place.
    fn open(&self, journal: &[u8; 32], sequence: u64, sealed: &[u8]) -> Result<Vec<u8>, Error>;
}

/// A source as plaintext paths. All calls are safe to repeat. Every remote wait is bounded.
#[async_trait]
pub trait View: Send + Sync + 'static {
    /// Returns the children of a directory. An unknown directory is empty, because the Hub has no
    /// directories. A directory that can't be listed is an error.
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error>;
    /// Returns one entry with its size. `None`: nothing is there. A header that can't be fetched is an error,
    /// never `None`.
    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error>;
    /// Returns the files at exactly these paths, in their order, with their sizes. Directories don't matter, aliases
    /// are not
    /// resolved (see [`OpenOptions::exact_names`]), and many paths take few requests. A path that can't be stored has
    /// no
    /// file.
    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error>;
    /// Does the same, and returns the metadata objects of the files too. It takes no further request.
    async fn described(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        let described = |file| Described { file, metadata: None };
        Ok(self.files(paths).await?.into_iter().map(described).collect())
    }
    /// Returns the JSON of a metadata object. `None`: it is damaged, or belongs to another key.
    async fn metadata(&self, object: &metadata::MetadataObject) -> Result<Option<Bytes>, Error> {
        let _ = object;
        Ok(None)
    }
    /// Returns the plaintext sizes of many versions, from the local header cache where possible.
    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>>;
    /// Opens a version.
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error>;
    /// Starts an upload.
    async fn put(&self) -> Result<Box<dyn PutSession>, Error>;
    /// Carries out operations in order and returns one outcome each, in the order of `operations`. Batches
    /// are formed inside. All adds come first. Deletes run in a later batch, and only for adds that
    /// succeeded. Expectations are checked against the remote state immediately before.
    ///
    /// Concurrent calls wait for each other where their paths overlap (equal, above or below). Other calls
    /// share batches. The call may be dropped at any point. Its work then ends, except the part that other
    /// calls share.
    async fn commit(&self, operations: &[Op]) -> Vec<Outcome>;
    /// Makes a file's content in another bucket known here, so that it can be committed. Both sources must have the
    /// same
    /// key, or none. The content counts as copied: an edit of a large copy takes a new file id (format spec, section
    /// 4).
    async fn adopt(&self, version: &Version, from: &buckets::BucketId) -> Result<(), Error>;
    /// Returns those of `files` for which the source also has a folder of that name, and those of `folders`
    /// for which it also has a file.
    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error>;
    /// Returns the name under which the file `name` is shown next to a folder of that name that exists only
    /// on this machine. `taken` returns true for a name that is in use. From then on changes of the returned
    /// name are changes of the file. `None`: no such name is free.
    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String>;
    /// Checks a name that is about to be created (length, characters, reserved) before any local state changes.
    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error>;
    /// Checks that a file that is stored in format 1 can be stored, in its format, at another path.
    fn check_format_1(&self, _path: &PlainPath) -> Result<(), Error> {
        Ok(())
    }
    /// Returns a new draft for local editing. `state` is empty, based on a version, or read from a journal.
    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error>;
    /// Returns the bytes of one staging slot: 65568 with a key, 65536 without.
    fn slot_len(&self) -> usize;
    /// Returns the sealer of local journals.
    fn sealer(&self) -> Arc<dyn Sealer>;
    /// Returns an opaque text that changes whenever a file of the source changes. `None`: the source doesn't
    /// report it.
    async fn revision(&self) -> Result<Option<String>, Error>;
    /// Returns true if all writes are refused.
    fn read_only(&self) -> bool;
    /// Returns the identity of the source: SHA-256(endpoint, kind, bucket id, key id or "plain", stored
    /// prefix).
    fn identity(&self) -> [u8; 32];
    /// Returns the key id as 16 hex digits, on a source with a key.
    fn key_id(&self) -> Option<String>;
    /// Returns the name of a path for logs: its stored path. On a source with a key it is never plaintext.
    fn log_name(&self, path: &PlainPath) -> String;
    /// Returns the sums of hidden entries over the directories listed so far.
    fn hidden(&self) -> Hidden;
}
