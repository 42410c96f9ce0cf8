//! A source as plaintext paths, sizes and byte ranges: the one place where crypto meets Xet and the Hub.
//!
//! [`View`] is implemented by [`plain`], [`encrypted`] and [`merged`]. Conflict checks, adds-before-deletes, format rules and everything
//! that needs a key live here; `fs` above never sees a key, a stored name or a container.
//!
//! Plaintext paths are secrets: [`PlainPath`] has no `Display`, and its `Debug` hides the text.

mod beside;
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
pub use path::PlainPath;
pub use source::{CacheMode, DiskCacheOptions, OpenOptions, Opened, Source, open};
pub use staging::{SlotId, SlotIo};
pub use twin::marked_name;

/// Types of the layers beneath that are part of this one's surface: who uses the store names no other layer.
pub use crate::{
    crypto::{Error as CryptoError, Format},
    hub::{Error as HubError, MTIME_GRANULARITY, mtime_from_millis, mtime_millis, stored_mtime, stored_now},
    xet::{Error as CasError, Hash, deadline},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::ops::Range;
use std::sync::Arc;
use time::OffsetDateTime;

/// Which side of a source an entry lies on.
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
    /// Where it lies.
    pub side: Side,
}

/// A file's plaintext size, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Len {
    /// Verified (encrypted), or as the Hub says (plain). Bytes.
    Known(u64),
    /// The header has not been read yet: [`View::stat`] or [`View::lens`] reads it.
    Unread,
    /// An own file whose header doesn't authenticate or is of the wrong format: shown, size 0, `open` fails, `unlink` is allowed.
    Damaged,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory. `read_only`: it has a plaintext side in a view with a key, so it can't be renamed or removed.
    Directory {
        /// See above.
        read_only: bool,
    },
    /// A file.
    File {
        /// Its content. `None`: an object without a content id, which can't be opened yet.
        version: Option<Version>,
        /// Its plaintext size.
        len: Len,
        /// The writer's time, else the Hub's.
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
    /// What it is.
    pub kind: Kind,
}

/// What a listing did not show, by reason. Never silent: `status` has the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Don't decode or authenticate: another key's, or damaged.
    pub foreign: u64,
    /// Authenticate but break a name rule.
    pub suspicious: u64,
    /// Hidden by another entry of the same name (plaintext below encrypted, format 1 below format 2).
    pub shadowed: u64,
    /// Keys that are no path for us (`//`, NUL, `..`, a component of more than 255 bytes).
    pub unreachable: u64,
}

/// A directory's children.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Shown entries, ascending by name bytes, each name once.
    pub entries: Vec<Entry>,
    /// Counts of what is not shown.
    pub hidden: Hidden,
}

/// An opened version.
#[async_trait]
pub trait Object: Send + Sync + 'static {
    /// Plaintext size in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The plaintext bytes `[offset, offset + len)`, cut at the end of the file, never short otherwise. Authenticated before they are
    /// given out on the encrypted side. Good up to some MiB a call.
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
/// - **Errors** come in their place: every byte before the damage or the failure is delivered, and none after it. On
///   the encrypted side each byte was authenticated before it is delivered. The stream ends after the first error. If
///   it ends without an error, the range is complete.
/// - **Windows** of 1 MiB at first, then twice as large each, are fetched ahead: small ones for an early first byte,
///   large ones for few requests.
/// - **Back-pressure**: nothing more is fetched while the reader doesn't poll.
/// - **Memory**: at most 16 MiB of windows (four of 4 MiB), and one more that is being opened. Chunks that lie across
///   the edges of windows come on top.
/// - **Dropping** it ends all requests and frees all memory.
/// - **Deadlines**: it outlives the operation that opened it or polls it, so it has none of its own. A reader that has
///   a deadline waits for each piece with [`deadline::timely`]. It must be polled inside a Tokio runtime.
pub type ByteStream = BoxStream<'static, Result<Bytes, Error>>;

/// Bytes that [`Object::verify`] reads at once where an object has no better way.
const VERIFY_STEP: usize = 1 << 20;

/// What a check of a whole object found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Records read; 0 on the plain side.
    pub records: u64,
    /// How many don't authenticate, or have bytes behind the end.
    pub damaged: u64,
    /// The first of those, by index.
    pub named: Vec<u64>,
    /// A hint, format 1 only: bytes behind the end, left by a truncation, or by an older header over newer records.
    pub stale_tail: bool,
}

/// What is put into the store.
pub enum Content {
    /// Plaintext from a reader: sealed on the way where there is a key, in one pass and constant memory, whether its length is known or not.
    Stream {
        /// The plaintext.
        reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        /// Its length, if it is known before: another one is an error.
        len: Option<u64>,
    },
    /// A draft that was frozen: its stored bytes are sent as they are.
    Frozen {
        /// What was frozen.
        frozen: Arc<Frozen>,
        /// Where its slots are.
        slots: Arc<dyn SlotIo>,
    },
}

/// Content that is in the store and may be committed under any path once its session has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The version it makes.
    pub version: Version,
    /// Plaintext size.
    pub plain_len: u64,
}

/// Bytes that an upload session has handled so far. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutProgress {
    /// Bytes of content read. A session reads on only while it has memory, so what can't be sent stops it.
    pub read: u64,
    /// Bytes handed to connections. What is sent again counts once.
    pub sent: u64,
}

/// Puts content into the store: any number of files share xorbs, and one shard registers them.
#[async_trait]
pub trait PutSession: Send + Sync {
    /// Returns a function that tells how far the session is. It may be called at any time, also while the session
    /// finishes.
    fn progress(&self) -> Box<dyn Fn() -> PutProgress + Send + Sync>;
    /// Uploads one content. An error concerns this content only.
    async fn add(&self, content: Content) -> Result<Stored, Error>;
    /// Uploads one content that has metadata. No format has a place for metadata yet, so this is a seam: it fails with
    /// [`Error::Unstorable`] unless the metadata is empty.
    async fn add_with(&self, content: Content, metadata: &metadata::Metadata) -> Result<Stored, Error> {
        metadata.check_storable()?;
        self.add(content).await
    }
    /// Registers what was added. Before this has returned, nothing of it may be committed.
    async fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// What a path must be right before a change for the change to happen.
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
    /// Puts stored content at the path, replacing what is there.
    Put {
        /// The content.
        stored: Stored,
        /// Modification time to record.
        mtime: OffsetDateTime,
    },
    /// Removes the file (in both formats, with its sidecars).
    Delete,
    /// Moves the file at the path to `to`; content untouched. `expect` concerns the source, `expect_to` the target.
    Rename {
        /// New path.
        to: PlainPath,
        /// What must be at `to`.
        expect_to: Expect,
    },
    /// Moves everything below the directory at the path to `to`, which must not exist or hold nothing.
    RenameDirectory {
        /// New path.
        to: PlainPath,
    },
    /// Adds the same content at `to`: an independent file.
    Copy {
        /// New path.
        to: PlainPath,
        /// What must be at `to`.
        expect_to: Expect,
    },
}

/// One operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The path.
    pub path: PlainPath,
    /// What must be there.
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
    /// Time of its last change, where one is known.
    pub mtime: Option<OffsetDateTime>,
}

/// What became of one operation.
#[derive(Debug)]
pub enum Outcome {
    /// Done; the version that is now at the (new) path, if any.
    Done(Option<Version>),
    /// A directory was moved, with these files.
    Moved(Vec<MovedFile>),
    /// Something else is there than was expected; nothing was changed.
    Conflict {
        /// What is there.
        found: Option<ContentId>,
    },
    /// Not (wholly) done. Adds that succeeded stay; no delete ran before its add succeeded. Repeating is safe.
    Failed(Error),
}

/// Seals what a mount keeps in local files: identity on a source without a key.
pub trait Sealer: Send + Sync + 'static {
    /// Seals `payload` for place `sequence` of journal `journal`.
    fn seal(&self, journal: &[u8; 32], sequence: u64, payload: &[u8]) -> Result<Vec<u8>, Error>;
    /// Opens it again; `Error::Unauthentic` where it was altered or belongs elsewhere.
    fn open(&self, journal: &[u8; 32], sequence: u64, sealed: &[u8]) -> Result<Vec<u8>, Error>;
}

/// A source as plaintext paths. All calls are safe to repeat. Every remote wait is bounded.
#[async_trait]
pub trait View: Send + Sync + 'static {
    /// Children of a directory. An unknown directory is empty (the Hub has none). What can't be listed is an error.
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error>;
    /// One entry, its size read. `None`: nothing is there. A header that can't be fetched is an error, never `None`.
    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error>;
    /// Plaintext sizes of many versions at once, from the local header cache where possible.
    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>>;
    /// Opens a version.
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error>;
    /// Begins an upload.
    async fn put(&self) -> Result<Box<dyn PutSession>, Error>;
    /// Carries out operations in order and gives one outcome each, in the same order. Batches are formed inside: all adds first, deletes in a
    /// later batch and only for adds that succeeded; expectations are compared with the remote state right before.
    /// Concurrent calls wait for each other where their paths overlap (equal, above or below), and share batches where
    /// they don't. Dropping the call ends what no other call shares, at any point.
    async fn commit(&self, operations: &[Op]) -> Vec<Outcome>;
    /// Returns those of `files` where the source also has a folder of that name, and those of `folders` where it also
    /// has a file.
    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error>;
    /// Returns the name under which the file `name` is shown beside a folder of that name which only this machine has;
    /// `taken` says which names are in use. From then on changes of that name are changes of the file. `None`: no such
    /// name is free.
    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String>;
    /// Checks a name that is about to be created (length, characters, reserved) before any local state changes.
    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error>;
    /// Checks that a file which is stored in format 1 can be stored, in its format, at another path.
    fn check_format_1(&self, _path: &PlainPath) -> Result<(), Error> {
        Ok(())
    }
    /// A new draft for local editing. `state`: empty, over a base version, or from a journal.
    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error>;
    /// Bytes of one staging slot: 65568 with a key, 65536 without.
    fn slot_len(&self) -> usize;
    /// The sealer of local journals.
    fn sealer(&self) -> Arc<dyn Sealer>;
    /// An opaque text that changes whenever a file of the source does; `None` where the source doesn't tell.
    async fn revision(&self) -> Result<Option<String>, Error>;
    /// Whether nothing may be written at all.
    fn read_only(&self) -> bool;
    /// Names the source: SHA-256(endpoint, kind, bucket id, key id or "plain", stored prefix).
    fn identity(&self) -> [u8; 32];
    /// Key id as 16 hex digits, on a source with a key.
    fn key_id(&self) -> Option<String>;
    /// What a path is called in logs: its stored path, never plaintext on a source with a key.
    fn log_name(&self, path: &PlainPath) -> String;
    /// Sums of hidden entries over the directories listed so far.
    fn hidden(&self) -> Hidden;
}
