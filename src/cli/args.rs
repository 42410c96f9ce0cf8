//! Options that several commands share: the Hub, the key, the mount.

use super::exit::{Exit, Failure, Outcome};
use crate::crypto::geometry::Padding;
use crate::crypto::{Format, Keys, keyfile};
use crate::fs::OnConflict;
use crate::hub::token::TokenProvider;
use crate::hub::{BucketId, Endpoint, RepoId, RepoKind};
use crate::store::{CacheMode, DiskCacheOptions, OpenOptions, Source};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Which Hub, as whom.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct HubArgs {
    /// Which Hub.
    #[arg(long, global = true, value_name = "URL", help = ENDPOINT_HELP)]
    pub hub_endpoint: Option<String>,
    /// Token file, read again for each request
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Token; other users may see it in the process list, so prefer HF_TOKEN or --token-file
    #[arg(long, global = true, value_name = "TOKEN")]
    pub hf_token: Option<TokenArg>,
}

/// A token from the command line: wiped on drop, hidden from Debug.
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenArg(Zeroizing<String>);

impl std::str::FromStr for TokenArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl std::fmt::Debug for TokenArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenArg(hidden)")
    }
}

/// Not a doc comment: those take a bare address for a link that somebody forgot.
const ENDPOINT_HELP: &str = "Hub: https://…, http://…, or file:///some/dir for an embedded one [default: $HF_ENDPOINT, else https://huggingface.co]";

/// The Hub that is used when nothing else is said.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

impl HubArgs {
    /// Takes over what the environment says, so that another process can be handed the result.
    pub fn resolved(mut self) -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.hub_endpoint =
            Some(self.hub_endpoint.or_else(|| env("HF_ENDPOINT")).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()));
        self
    }

    /// Opens the endpoint.
    pub async fn open(&self) -> Outcome<Arc<Endpoint>> {
        self.open_within(None).await
    }

    /// Opens the endpoint for requests that are given up after `patience`.
    pub async fn open_within(&self, patience: Option<Duration>) -> Outcome<Arc<Endpoint>> {
        let text = self.hub_endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT);
        let env = |name: &str| std::env::var(name).ok();
        let token = TokenProvider::resolve(
            self.token_file.clone(),
            self.hf_token.as_ref().map(|token| token.0.to_string()),
            &env,
        );
        Ok(Arc::new(Endpoint::open_within(text, token, patience).await?))
    }
}

/// `--encryption-algorithm`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// AEGIS-128X2, the only one.
    #[value(name = "aegis-128x2")]
    Aegis128x2,
}

/// `--encryption-format`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FormatArg {
    /// That of the public fork; shows exact sizes.
    #[value(name = "1")]
    V1,
    /// Sealed sizes, long names.
    #[value(name = "2")]
    V2,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::V1 => Format::V1,
            FormatArg::V2 => Format::V2,
        }
    }
}

/// `--size-padding`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PaddingArg {
    /// As few records as the format allows.
    None,
    /// Rounded up by Padmé.
    Padme,
}

impl From<PaddingArg> for Padding {
    fn from(arg: PaddingArg) -> Self {
        match arg {
            PaddingArg::None => Padding::None,
            PaddingArg::Padme => Padding::Padme,
        }
    }
}

/// `--cache-mode`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheModeArg {
    /// The chunks that were read.
    Chunk,
    /// Whole files, filled by their first read.
    File,
}

impl From<CacheModeArg> for CacheMode {
    fn from(arg: CacheModeArg) -> Self {
        match arg {
            CacheModeArg::Chunk => CacheMode::Chunk,
            CacheModeArg::File => CacheMode::File,
        }
    }
}

/// A number of bytes; `K`, `M`, `G`, `T` count thousands, `Ki`, `Mi`, `Gi`, `Ti` count 1024s, and a
/// `B` may follow. Case doesn't matter.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (letter, base) = unit.strip_suffix('i').map_or((unit, 1000u64), |letter| (letter, 1024));
    let power = match letter {
        "" if base == 1000 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err("a size is a number of bytes, or one with K, M, G, T or Ki, Mi, Gi, Ti".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a number".to_owned())?;
    number.checked_mul(base.pow(power)).ok_or_else(|| "no disk is that large".to_owned())
}

/// Parses a number of things that are done at once: at least 1.
fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it is at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("it is a whole number".to_owned()),
    }
}

/// Parses `--max-pending-size`: 0, or at least what journal and pool need for a first change.
fn parse_pending_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size @ 1..crate::fs::MIN_PENDING => Err(format!(
            "{size} bytes hold no change: use at least {} (16Mi), or 0 for no limit",
            crate::fs::MIN_PENDING
        )),
        size => Ok(size),
    }
}

/// How new files are written.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct FormatArgs {
    /// Content encryption
    #[arg(long, global = true, value_enum, default_value = "aegis-128x2")]
    pub encryption_algorithm: Algorithm,
    /// Format of new files; both are always read
    #[arg(long, global = true, value_enum, default_value = "2")]
    pub encryption_format: FormatArg,
    /// Hide sizes further by adding records (format 2)
    #[arg(long, global = true, value_enum, default_value = "none")]
    pub size_padding: PaddingArg,
}

impl FormatArgs {
    /// Format 1 has nowhere to put padding.
    pub fn check(&self) -> Outcome {
        if self.encryption_format == FormatArg::V1 && self.size_padding == PaddingArg::Padme {
            return Err(Failure::new(Exit::Usage, "--size-padding padme needs --encryption-format 2"));
        }
        Ok(())
    }
}

/// A source with a key, or without one.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct SourceArgs {
    /// Key file: everything is encrypted on this machine
    #[arg(long, global = true, value_name = "FILE", env = "HFCRYPT_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
    pub format: FormatArgs,
    /// Hide the bucket's plaintext
    #[arg(long, global = true)]
    pub encrypted_only: bool,
    /// Start a further key in a bucket that this key can't read
    #[arg(long, global = true)]
    pub new_key: bool,
    /// Create a missing bucket, private
    #[arg(long, global = true)]
    pub create: bool,
}

impl SourceArgs {
    /// What [`crate::store::open`] is to be told.
    pub fn options(&self, read_only: bool, cache_dir: &Path) -> Outcome<OpenOptions> {
        self.format.check()?;
        let keys = self.encryption_key_file.as_deref().map(read_keys).transpose()?;
        if keys.is_none() && (self.encrypted_only || self.new_key) {
            return Err(Failure::new(Exit::Usage, "--encrypted-only and --new-key need --encryption-key-file"));
        }
        Ok(OpenOptions {
            keys,
            format: Some(self.format.encryption_format.into()),
            padding: self.format.size_padding.into(),
            encrypted_only: self.encrypted_only,
            new_key: self.new_key,
            create: self.create,
            read_only,
            cache_dir: Some(cache_dir.to_owned()),
            ..OpenOptions::default()
        })
    }
}

/// Reads a key file and derives its keys; warnings go to stderr.
pub fn read_keys(path: &Path) -> Outcome<Arc<Keys>> {
    Ok(Arc::new(Keys::derive(&read_key_file(path)?.master)))
}

/// Reads and parses a key file; warnings go to stderr.
pub fn read_key_file(path: &Path) -> Outcome<keyfile::KeyFile> {
    let fail = |e: std::io::Error| Failure::new(Exit::Usage, format!("cannot read key file {}: {e}", path.display()));
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(keyfile::MAX_LEN + 1));
    file.take(keyfile::MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    let parsed = keyfile::parse(&bytes).map_err(|e| Failure::from(e).about(path.display()))?;
    for warning in &parsed.warnings {
        eprintln!("warning: key file {}: {warning}", super::term::escape(&path.display().to_string()));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            eprintln!(
                "warning: key file {}: other users may read it (chmod 600)",
                super::term::escape(&path.display().to_string())
            );
        }
    }
    Ok(parsed)
}

/// A source, and where it is mounted.
#[derive(Subcommand, Clone, Debug, Serialize, Deserialize)]
pub enum SourceCommand {
    /// A storage bucket
    Bucket {
        /// namespace/bucket[/sub/folder]
        source: String,
        /// An empty folder; a missing last component is created
        mountpoint: PathBuf,
    },
    /// A model, dataset or space, to be read
    Repo {
        /// [datasets/|spaces/]namespace/name[/sub/folder]
        source: String,
        /// An empty folder; a missing last component is created
        mountpoint: PathBuf,
        /// Branch, tag or commit [default: main]
        #[arg(long, value_name = "R")]
        revision: Option<String>,
    },
}

impl SourceCommand {
    /// Returns the source and the mount point.
    pub fn parts(&self) -> (SourceText, &Path) {
        match self {
            Self::Bucket { source, mountpoint } => (SourceText::Bucket(source.clone()), mountpoint),
            Self::Repo { source, mountpoint, revision } => {
                (SourceText::Repository { name: source.clone(), revision: revision.clone() }, mountpoint)
            }
        }
    }
}

/// A source as its user wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceText {
    /// `namespace/bucket[/sub/folder]`.
    Bucket(String),
    /// A repository.
    Repository {
        /// `[datasets/|spaces/]namespace/name[/sub/folder]`.
        name: String,
        /// Branch, tag or commit.
        revision: Option<String>,
    },
}

impl SourceText {
    /// Returns the source.
    pub fn parse(&self) -> Outcome<Source> {
        match self {
            Self::Bucket(text) => parse_bucket(text).map(|(id, prefix)| Source::Bucket { id, prefix }),
            Self::Repository { name, revision } => {
                let (id, prefix) = parse_repository(name)?;
                if revision.as_deref().is_some_and(|revision| revision.trim().is_empty()) {
                    return Err(Failure::new(Exit::Usage, "--revision is empty"));
                }
                Ok(Source::Repository { id, revision: revision.clone(), prefix })
            }
        }
    }

    /// Returns the usual form of the same source, without `hf://` and without a slash at the end.
    pub fn normal(&self) -> Outcome<Self> {
        let join = |name: String, prefix: String| if prefix.is_empty() { name } else { format!("{name}/{prefix}") };
        Ok(match self.parse()? {
            Source::Bucket { id, prefix } => Self::Bucket(join(id.to_string(), prefix)),
            Source::Repository { id, revision, prefix } => {
                Self::Repository { name: join(id.to_string(), prefix), revision }
            }
        })
    }
}

impl std::fmt::Display for SourceText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bucket(text) | Self::Repository { name: text, revision: None } => f.write_str(text),
            Self::Repository { name, revision: Some(revision) } => write!(f, "{name} at {revision}"),
        }
    }
}

/// Splits `namespace/bucket[/sub/folder]`, also as `hf://buckets/…`, into the bucket and the folder.
pub fn parse_bucket(text: &str) -> Outcome<(BucketId, String)> {
    let path = text.strip_prefix("hf://buckets/").unwrap_or(text).trim_end_matches('/');
    let usage = || {
        Failure::new(Exit::Usage, format!("invalid bucket {text:?}"))
            .hint("a bucket is namespace/name, optionally followed by a folder: me/data/run1")
    };
    let mut parts = path.splitn(3, '/');
    let (Some(namespace), Some(name)) = (parts.next(), parts.next()) else { return Err(usage()) };
    if matches!(namespace, "datasets" | "spaces" | "models") {
        let hint = "a repository is mounted with `repo`, not `bucket`";
        return Err(Failure::new(Exit::NotFound, format!("{text:?} is a repository, not a bucket")).hint(hint));
    }
    let id = BucketId::new(namespace, name).map_err(|_| usage())?;
    let prefix = parts.next().unwrap_or("");
    crate::store::PlainPath::new(prefix).map_err(|_| usage())?;
    Ok((id, prefix.to_owned()))
}

/// Splits `[datasets/|spaces/]namespace/name[/sub/folder]`, also behind `hf://`, into the repository and the folder.
/// One component alone is a model, such as `gpt2`, or behind `datasets/` a dataset.
pub fn parse_repository(text: &str) -> Outcome<(RepoId, String)> {
    let path = text.strip_prefix("hf://").unwrap_or(text).trim_end_matches('/');
    let usage = || {
        Failure::new(Exit::Usage, format!("invalid repository {text:?}"))
            .hint("a repository is [datasets/|spaces/]namespace/name, optionally followed by a folder")
    };
    let (kind, path) = match path.split_once('/') {
        Some(("models", rest)) => (RepoKind::Model, rest),
        Some(("datasets", rest)) => (RepoKind::Dataset, rest),
        Some(("spaces", rest)) => (RepoKind::Space, rest),
        Some(("buckets", rest)) => {
            let hint = format!("mount it with `bucket {rest}`");
            return Err(Failure::new(Exit::NotFound, format!("{text:?} is a bucket, not a repository")).hint(hint));
        }
        None if matches!(path, "models" | "datasets" | "spaces" | "buckets") => return Err(usage()),
        _ => (RepoKind::Model, path),
    };
    let folder = path.match_indices('/').nth(1).map(|(at, _)| at);
    let (name, prefix) = folder.map_or((path, ""), |at| (&path[..at], &path[at + 1..]));
    let id = RepoId::new(kind, name).map_err(|_| usage())?;
    crate::store::PlainPath::new(prefix).map_err(|_| usage())?;
    Ok((id, prefix.to_owned()))
}

/// `--fsync`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fsync {
    /// On this machine's disk.
    Local,
    /// On the Hub.
    Remote,
}

/// `--on-conflict`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflictArg {
    /// Keep both: one of them goes to `name (conflict …)`.
    KeepBoth,
    /// Ours replaces theirs.
    Overwrite,
    /// Park ours until `hf-mount pending` decides.
    Fail,
}

impl From<OnConflictArg> for OnConflict {
    fn from(arg: OnConflictArg) -> Self {
        match arg {
            OnConflictArg::KeepBoth => Self::KeepBoth,
            OnConflictArg::Overwrite => Self::Overwrite,
            OnConflictArg::Fail => Self::Fail,
        }
    }
}

/// How a mount behaves.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct MountArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "see SourceArgs")]
    pub hub: HubArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "see SourceArgs")]
    pub source: SourceArgs,
    /// Folder of caches, staging files and journals [default: $XDG_CACHE_HOME/hf-mount]
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Largest size of the disk cache of data that was read: bytes, or 500M, 10G, 10GiB; 0: none
    #[arg(long, global = true, value_name = "SIZE", default_value = "10000000000", value_parser = parse_size)]
    pub cache_size: u64,
    /// Content of that cache: the chunks that were read, or whole files
    #[arg(long, global = true, value_enum, default_value = "chunk")]
    pub cache_mode: CacheModeArg,
    /// Keep no content on disk that was read
    #[arg(long, global = true)]
    pub no_disk_cache: bool,
    /// Use FUSE (the only backend of this version)
    #[arg(long, global = true)]
    pub fuse: bool,
    /// Use NFS (not in this version: exit code 7)
    #[arg(long, global = true)]
    pub nfs: bool,
    /// Refuse all writes
    #[arg(long, global = true)]
    pub read_only: bool,
    /// Make the mount point's folder a writable local layer over the remote, which is never changed
    #[arg(long, global = true, conflicts_with = "read_only")]
    pub overlay: bool,
    /// With --overlay and a key: keep new local files as plaintext in the mount point's folder
    #[arg(long, global = true)]
    pub overlay_plaintext: bool,
    /// Random writes through staging files and an asynchronous flush; a key implies it
    #[arg(long, global = true)]
    pub advanced_writes: bool,
    /// How long file metadata is cached, milliseconds
    #[arg(long, global = true, default_value_t = 10_000, value_name = "MS")]
    pub metadata_ttl_ms: u64,
    /// How long a missing name counts as missing, milliseconds
    #[arg(long, global = true, default_value_t = 1_000, value_name = "MS")]
    pub negative_ttl_ms: u64,
    /// Check metadata on every access
    #[arg(long, global = true)]
    pub metadata_ttl_minimal: bool,
    /// Time between two questions to the Hub whether anything has changed, seconds; limits --metadata-ttl-ms; 0: off
    #[arg(long, global = true, default_value_t = 30, value_name = "SECONDS")]
    pub poll_interval_secs: u64,
    /// Directories that are listed again at once after a change
    #[arg(long, global = true, default_value = "4", value_name = "N", value_parser = parse_count)]
    pub poll_listing_concurrency: usize,
    /// Files and folders near which the number of those in memory is kept; 0: no limit
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub inode_soft_limit: usize,
    /// Time between two checks of that limit, milliseconds
    #[arg(long, global = true, default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub lru_sweep_interval_ms: u64,
    /// Quiet time before a file is flushed, milliseconds
    #[arg(long, global = true, default_value_t = 2_000, value_name = "MS")]
    pub flush_debounce_ms: u64,
    /// Longest time a changed file waits for its flush, milliseconds
    #[arg(long, global = true, default_value_t = 30_000, value_name = "MS")]
    pub flush_max_batch_window_ms: u64,
    /// Longest flush at SIGTERM, `stop` or `umount`, milliseconds; what is left stays in the journal
    #[arg(long, global = true, default_value_t = 45_000, value_name = "MS")]
    pub flush_shutdown_timeout_ms: u64,
    /// Longest wait of one file operation for the Hub, milliseconds
    #[arg(long, global = true, default_value_t = 30_000, value_name = "MS")]
    pub read_fetch_timeout_ms: u64,
    /// Where data must be before fsync returns
    #[arg(long, global = true, value_enum, default_value = "local")]
    pub fsync: Fsync,
    /// Action when another client has changed the same file or name
    #[arg(long, global = true, value_enum, default_value = "keep-both")]
    pub on_conflict: OnConflictArg,
    /// Disk space of local changes above which copies of uploaded content are removed (500M, 10G); 0: no limit
    #[arg(long, global = true, default_value = "0", value_name = "SIZE", value_parser = parse_size)]
    pub max_staging_size: u64,
    /// Most disk space of local changes, at least 16Mi: a write beyond it waits, then fails with ENOSPC; 0: no limit
    #[arg(long, global = true, default_value = "0", value_name = "SIZE", value_parser = parse_pending_size)]
    pub max_pending_size: u64,
    /// Threads that read kernel requests
    #[arg(long, global = true, default_value_t = 16, value_name = "N")]
    pub max_threads: usize,
    /// Bypass the kernel's page cache
    #[arg(long, global = true)]
    pub direct_io: bool,
    /// Upload .DS_Store, Thumbs.db and similar files too; else new ones are kept on this machine
    #[arg(long, global = true)]
    pub no_filter_os_files: bool,
    /// Owner of all files [default: this user]
    #[arg(long, global = true, value_name = "UID")]
    pub uid: Option<u32>,
    /// Group of all files [default: this user's]
    #[arg(long, global = true, value_name = "GID")]
    pub gid: Option<u32>,
    /// Permission bits of files that nobody has changed here, octal
    #[arg(long, global = true, value_name = "MODE", default_value = "644", value_parser = permission_bits)]
    pub file_mode: u16,
    /// Permission bits of folders that nobody has changed here, octal
    #[arg(long, global = true, value_name = "MODE", default_value = "755", value_parser = permission_bits)]
    pub dir_mode: u16,
    /// Allow access by other users, also on a mount with a key
    #[arg(long, global = true)]
    pub fuse_allow_other: bool,
    /// Deny access by other users, also on a mount without a key
    #[arg(long, global = true, conflicts_with = "fuse_allow_other")]
    pub fuse_owner_only: bool,
}

impl MountArgs {
    /// The folder of caches, staging files and journals.
    pub fn cache_dir(&self) -> Outcome<PathBuf> {
        match &self.cache_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(super::dirs::cache_home()?.join("hf-mount")),
        }
    }

    /// What is to be kept on disk of what was read.
    pub fn disk_cache(&self) -> Option<DiskCacheOptions> {
        let wanted = DiskCacheOptions { mode: self.cache_mode.into(), max_bytes: self.cache_size };
        (!self.no_disk_cache && self.cache_size > 0).then_some(wanted)
    }

    /// Checks the options of an overlay.
    pub fn check_overlay(&self) -> Outcome {
        let usage = |message| Err(Failure::new(Exit::Usage, message));
        if self.overlay_plaintext && !self.overlay {
            return usage("--overlay-plaintext needs --overlay");
        }
        if self.overlay && (self.source.create || self.source.new_key) {
            return usage("--overlay never changes the remote: --create and --new-key need a mount without it");
        }
        Ok(())
    }

    /// Returns true if new files of an overlay are kept sealed, below the cache folder.
    pub fn seals_local_files(&self) -> bool {
        self.overlay && self.source.encryption_key_file.is_some() && !self.overlay_plaintext
    }

    /// NFS isn't built yet.
    pub fn check_backend(&self) -> Outcome {
        if self.nfs {
            let message = "the NFS backend comes with a later version";
            return Err(
                Failure::new(Exit::System, message).hint("omit --nfs; FUSE is the only backend of this version")
            );
        }
        Ok(())
    }

    /// Returns how long metadata may be cached: the TTL, or the poll interval where that is shorter.
    pub fn metadata_ttl(&self) -> Duration {
        let ttl = Duration::from_millis(if self.metadata_ttl_minimal { 0 } else { self.metadata_ttl_ms });
        match self.poll_interval_secs {
            0 => ttl,
            seconds => ttl.min(Duration::from_secs(seconds)),
        }
    }

    /// Whether other users may see the mount: with a key only when asked, without one as upstream does.
    pub fn allow_other(&self) -> bool {
        self.fuse_allow_other
            || (self.source.encryption_key_file.is_none()
                && !self.fuse_owner_only
                && rustix::process::geteuid().is_root())
    }
}

/// Permission bits, octal. More than those (set-user-ID and the like) nothing should have unless somebody asks for it.
fn permission_bits(text: &str) -> Result<u16, String> {
    let bits = u16::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777);
    bits.ok_or_else(|| "give octal permission bits such as 640".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_bits_are_octal_and_no_more_than_nine() {
        assert_eq!(permission_bits("0640"), Ok(0o640));
        for wrong in ["1777", "8", "rw", "", "-1"] {
            assert!(permission_bits(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bucket_sources_are_split_into_id_and_folder() {
        let (id, prefix) = parse_bucket("hf://buckets/me/data/run 1/x/").unwrap();
        assert_eq!((id.to_string().as_str(), prefix.as_str()), ("me/data", "run 1/x"));
        assert_eq!(parse_bucket("me/data").unwrap(), ("me/data".parse().unwrap(), String::new()));
    }

    #[test]
    fn repositories_are_split_into_kind_name_and_folder() {
        for (text, kind, name, folder) in [
            ("gpt2", RepoKind::Model, "gpt2", ""),
            ("me/m", RepoKind::Model, "me/m", ""),
            ("hf://models/me/m/", RepoKind::Model, "me/m", ""),
            ("hf://me/m/on nx/x", RepoKind::Model, "me/m", "on nx/x"),
            ("datasets/squad", RepoKind::Dataset, "squad", ""),
            ("hf://datasets/me/d/train", RepoKind::Dataset, "me/d", "train"),
            ("spaces/me/s", RepoKind::Space, "me/s", ""),
        ] {
            let found = parse_repository(text).unwrap();
            assert_eq!(found, (RepoId::new(kind, name).unwrap(), folder.to_owned()), "{text}");
        }
        for (text, exit) in [
            ("", Exit::Usage),
            ("datasets/", Exit::Usage),
            ("me/a b", Exit::Usage),
            ("me/m@v1", Exit::Usage),
            ("me/m//x", Exit::Usage),
            ("me/..", Exit::Usage),
            ("hf://buckets/me/data", Exit::NotFound),
        ] {
            assert_eq!(parse_repository(text).unwrap_err().exit, exit, "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (text, size) in [
            ("0", 0),
            ("10000000000", 10_000_000_000),
            ("10G", 10_000_000_000),
            ("10 gb", 10_000_000_000),
            ("500M", 500_000_000),
            ("1k", 1000),
            ("1B", 1),
            ("2TiB", 2 << 40),
            ("3Gi", 3 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in
            ["", "G", "-1", "+1", "1.5G", "1X", "1i", "1GG", "1 G x", "99999999999999999999", "18446744073709551615K"]
        {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        mount: MountArgs,
    }

    fn parse(args: &[&str]) -> MountArgs {
        <Only as clap::Parser>::parse_from(["x"].iter().chain(args)).mount
    }

    /// The public program's options with their defaults. `None`: none is shown by clap, or another one is meant here
    /// (docs/cli.md says which).
    const UPSTREAM: [(&str, Option<&str>); 30] = [
        ("hf-token", None),
        ("hub-endpoint", None),
        ("cache-dir", None),
        ("cache-size", Some("10000000000")),
        ("cache-mode", Some("chunk")),
        ("max-staging-size", Some("0")),
        ("read-only", Some("false")),
        ("advanced-writes", Some("false")),
        ("poll-interval-secs", Some("30")),
        ("poll-listing-concurrency", Some("4")),
        ("max-threads", Some("16")),
        ("metadata-ttl-ms", Some("10000")),
        ("metadata-ttl-minimal", Some("false")),
        ("flush-debounce-ms", Some("2000")),
        ("flush-max-batch-window-ms", Some("30000")),
        ("flush-shutdown-timeout-ms", Some("45000")),
        ("no-disk-cache", Some("false")),
        ("direct-io", Some("false")),
        ("no-filter-os-files", Some("false")),
        ("uid", None),
        ("gid", None),
        ("fuse-owner-only", Some("false")),
        ("token-file", None),
        ("inode-soft-limit", Some("0")),
        ("lru-sweep-interval-ms", Some("5000")),
        ("encryption-key-file", None),
        ("encryption-algorithm", Some("aegis-128x2")),
        ("fuse", Some("false")),
        ("nfs", Some("false")),
        ("overlay", Some("false")),
    ];

    #[test]
    fn every_option_of_the_public_program_exists_with_its_default() {
        let command = <Only as clap::CommandFactory>::command();
        for (name, default) in UPSTREAM {
            let found = command.get_arguments().find(|arg| arg.get_long() == Some(name));
            let arg = found.unwrap_or_else(|| panic!("--{name} is missing"));
            let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            let flag = if arg.get_action().takes_values() { default } else { None };
            assert_eq!(values.first().map(|value| &**value), flag, "--{name}");
        }
    }

    #[test]
    fn overlay_options_that_exclude_each_other_are_refused() {
        for (args, is_valid) in [
            (&["--overlay"][..], true),
            (&["--overlay", "--overlay-plaintext"], true),
            (&["--overlay-plaintext"], false),
            (&["--overlay", "--create"], false),
            (&["--overlay", "--new-key"], false),
            (&["--create", "--new-key"], true),
        ] {
            let checked = parse(args).check_overlay();
            assert_eq!(
                checked.map_err(|failure| failure.exit),
                if is_valid { Ok(()) } else { Err(Exit::Usage) },
                "{args:?}"
            );
        }
        assert!(<Only as clap::Parser>::try_parse_from(["x", "--overlay", "--read-only"]).is_err());
        let sealed = |args: &[&str]| parse(&[&["--encryption-key-file", "k"], args].concat()).seals_local_files();
        assert!(sealed(&["--overlay"]) && !sealed(&["--overlay", "--overlay-plaintext"]) && !sealed(&[]));
        assert!(!parse(&["--overlay"]).seals_local_files());
    }

    #[test]
    fn a_shorter_poll_interval_limits_the_ttl_and_zero_does_not() {
        let ttl = |args: &[&str]| parse(args).metadata_ttl().as_millis();
        assert_eq!(ttl(&[]), 10_000);
        assert_eq!(ttl(&["--poll-interval-secs", "3"]), 3_000);
        assert_eq!(ttl(&["--metadata-ttl-ms", "3600000"]), 30_000);
        assert_eq!(ttl(&["--metadata-ttl-ms", "3600000", "--poll-interval-secs", "0"]), 3_600_000);
        assert_eq!(ttl(&["--metadata-ttl-minimal"]), 0);
    }

    #[test]
    fn pending_limit_too_small_for_any_change_is_refused() {
        assert_eq!(parse_pending_size("0"), Ok(0));
        assert_eq!(parse_pending_size("16Mi"), Ok(crate::fs::MIN_PENDING));
        for small in ["1", "16M", "16777215"] {
            assert!(parse_pending_size(small).is_err(), "{small}");
        }
    }

    #[test]
    fn the_disk_cache_is_on_unless_it_is_turned_off() {
        let parse = |args: &[&str]| parse(args).disk_cache();
        let wanted = |mode, max_bytes| Some(DiskCacheOptions { mode, max_bytes });
        assert_eq!(parse(&[]), wanted(CacheMode::Chunk, crate::xet::cache::DEFAULT_MAX_BYTES));
        assert_eq!(parse(&["--cache-mode", "file", "--cache-size", "1G"]), wanted(CacheMode::File, 1_000_000_000));
        assert_eq!(parse(&["--no-disk-cache"]), None);
        assert_eq!(parse(&["--cache-size", "0"]), None);
    }

    #[test]
    fn what_is_no_bucket_is_refused_with_the_right_code() {
        for (text, exit) in [
            ("data", Exit::Usage),
            ("me/da ta", Exit::Usage),
            ("me/data//x", Exit::Usage),
            ("datasets/me/data", Exit::NotFound),
        ] {
            assert_eq!(parse_bucket(text).unwrap_err().exit, exit, "{text}");
        }
    }
}
