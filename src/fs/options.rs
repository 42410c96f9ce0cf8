//! How a mount behaves, and what it reports of itself.

use crate::fs::ids::OnConflict;
use std::path::PathBuf;
use std::time::Duration;

/// Wait of an operation without a deadline: not endless, so that an operation on a Hub that never answers ends.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Returns the deadline that a duration stands for: zero stands for an hour.
pub fn or_longest_wait(deadline: Duration) -> Duration {
    if deadline.is_zero() { LONGEST_WAIT } else { deadline }
}

/// How a mount behaves. Defaults are the command line's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Staging and journal lie in a folder below, named by the view's identity.
    pub cache_dir: PathBuf,
    /// Staging files and asynchronous flush; without it (plain views only) files are written in order and committed when closed.
    pub advanced_writes: bool,
    /// Refuse all writes.
    pub read_only: bool,
    /// How long attributes and entries may be cached.
    pub metadata_ttl: Duration,
    /// How long a missed name counts as missing. Not longer than [`Options::metadata_ttl`].
    pub negative_ttl: Duration,
    /// Quiet time before a dirty file is flushed.
    pub flush_debounce: Duration,
    /// Longest time a dirty file waits.
    pub flush_max_window: Duration,
    /// Owner of all entries that were made elsewhere, or before this mount.
    pub uid: u32,
    /// Group of the same.
    pub gid: u32,
    /// Permission bits of such files.
    pub file_mode: u16,
    /// Permission bits of such directories.
    pub dir_mode: u16,
    /// Keep new `.DS_Store`, `Thumbs.db` and the like on this machine and don't upload them.
    pub filter_os_files: bool,
    /// Deadline of every remote wait a kernel request makes; zero stands for an hour.
    pub reply_deadline: Duration,
    /// `fsync` also waits for the Hub.
    pub fsync_remote: bool,
    /// What becomes of two changes of the same thing.
    pub on_conflict: OnConflict,
    /// Bytes of disk space for local changes above which content is evicted that the remote already has; `None`:
    /// no limit.
    pub max_staging: Option<u64>,
    /// Bytes of disk space that local changes may take, at least [`MIN_PENDING`]; `None`: no limit.
    pub max_pending: Option<u64>,
    /// How long after a commit it is read back: 10 s or more, except in tests.
    pub read_back_after: Duration,
}

impl Options {
    /// Returns the longest that one operation may wait for the Hub.
    pub fn reply_timeout(&self) -> Duration {
        or_longest_wait(self.reply_deadline)
    }
}

/// What `status` tells of a mount. Paths in it are plaintext: only the control socket carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Files not on the Hub yet, also those that are open for writing, and changes of names that it hasn't seen.
    pub pending_files: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// Files and changes of names that were refused for good, or wait for a decision; nothing of them is lost.
    pub parked_files: u64,
    /// Conflicts kept.
    pub conflicts: u64,
    /// Files that are kept on this machine and not uploaded, because of their names.
    #[serde(default)]
    pub kept_files: u64,
    /// Entries that are at the source and not shown: this key can't read them, their names can't be names of files, or
    /// others hide them.
    pub unreadable_entries: u64,
    /// The last error, as a sentence.
    pub last_error: Option<String>,
    /// When the source was last polled, RFC 3339.
    pub last_poll: Option<String>,
}

/// What a drain achieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drained {
    /// Files committed.
    pub flushed: u64,
    /// Files and changes of names still pending (kept in the journal). A flush doesn't count streaming files that
    /// are open; the end of the mount does.
    pub pending: u64,
    /// Conflicts kept over the mount's life.
    pub conflicts: u64,
}
