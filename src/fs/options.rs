//! Settings of a mount, and the status that it reports.

use crate::fs::ids::OnConflict;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait of an operation without a deadline. It is finite, so that an operation ends even if the Hub never
/// answers.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Returns the deadline that a duration stands for: zero stands for an hour.
pub fn or_longest_wait(deadline: Duration) -> Duration {
    if deadline.is_zero() { LONGEST_WAIT } else { deadline }
}

/// Settings of a mount. The defaults are those of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Parent folder of staging and journal. They are in a subfolder named by the view's identity.
    pub cache_dir: PathBuf,
    /// Use staging files and upload asynchronously. Without it (plain views only), files are written in order and
    /// committed when they are closed.
    pub advanced_writes: bool,
    /// Refuse all writes.
    pub read_only: bool,
    /// Longest time that attributes and entries may be cached.
    pub metadata_ttl: Duration,
    /// Time that a missed name counts as missing. Not longer than [`Options::metadata_ttl`].
    pub negative_ttl: Duration,
    /// Interval at which the remote is asked for changes. `None`: never.
    pub poll_interval: Option<Duration>,
    /// Number of directories that are listed again at once, at least 1.
    pub poll_listings: usize,
    /// Number of inodes near which the table is kept, at least 1. `None`: no limit.
    pub inode_limit: Option<usize>,
    /// Interval at which the table is compared with that limit.
    pub sweep_interval: Duration,
    /// Quiet time before a dirty file is flushed.
    pub flush_debounce: Duration,
    /// Longest time that a dirty file waits before it is flushed.
    pub flush_max_window: Duration,
    /// Owner of all entries that were created elsewhere, or before this mount.
    pub uid: u32,
    /// Group of those entries.
    pub gid: u32,
    /// Permission bits of those files.
    pub file_mode: u16,
    /// Permission bits of those directories.
    pub dir_mode: u16,
    /// Keep new `.DS_Store`, `Thumbs.db` and similar files on this machine, without uploading them.
    pub filter_os_files: bool,
    /// Keep all new files on this machine, without uploading them: the local layer of an overlay.
    pub keep_all: bool,
    /// Identity of the staging folder. `None`: that of the remote.
    pub instance: Option<[u8; 32]>,
    /// Deadline of each wait for the remote in a kernel request. Zero stands for an hour.
    pub reply_deadline: Duration,
    /// `fsync` also waits for the Hub.
    pub fsync_remote: bool,
    /// The way to resolve conflicts with changes of other clients.
    pub on_conflict: OnConflict,
    /// Limit of the disk space for local changes, bytes. Above it, content that the remote already has is evicted.
    /// `None` means no limit.
    pub max_staging: Option<u64>,
    /// Limit of the disk space that pending changes may take, bytes, at least
    /// [`MIN_PENDING`](crate::fs::MIN_PENDING). `None` means no limit.
    pub max_pending: Option<u64>,
    /// Time between a commit and its read-back: 10 s or more, except in tests.
    pub read_back_after: Duration,
}

impl Options {
    /// Returns the longest that one operation may wait for the Hub.
    pub fn reply_timeout(&self) -> Duration {
        or_longest_wait(self.reply_deadline)
    }
}

/// The status of a mount. Paths in it are plaintext, so only the control socket carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// Files that aren't on the Hub yet, including those open for writing, and changes of names that it doesn't have
    /// yet.
    pub pending_files: u64,
    /// Bytes of these files.
    pub pending_bytes: u64,
    /// Files and changes of names that were refused permanently or wait for a decision. None of them is lost.
    pub parked_files: u64,
    /// Conflicts of which both versions were kept.
    pub conflicts: u64,
    /// Files that are kept on this machine and not uploaded, because of their names.
    #[serde(default)]
    pub kept_files: u64,
    /// Entries at the remote that aren't shown. Either this key can't read them, or their names aren't valid file
    /// names, or other entries hide them.
    pub unreadable_entries: u64,
    /// The last error, as a sentence.
    pub last_error: Option<String>,
    /// Files and directories in memory.
    #[serde(default)]
    pub inodes: u64,
    /// Time of the last poll of the remote, RFC 3339.
    pub last_poll: Option<String>,
}

/// The result of a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drained {
    /// Files committed.
    pub flushed: u64,
    /// Files and changes of names that are still pending (kept in the journal). A flush doesn't count streaming files
    /// that are open; the end of the mount does.
    pub pending: u64,
    /// Conflicts of which both versions were kept, since the mount started.
    pub conflicts: u64,
}
