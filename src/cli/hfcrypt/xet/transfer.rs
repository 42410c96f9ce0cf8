//! `xet upload` and `xet download`: stored bytes to and from a bucket.

use crate::cli::args::{HubArgs, parse_bucket};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::hfcrypt::{is_dash, refuse_existing};
use crate::cli::print_json;
use crate::cli::term::{self, say};
use crate::hub::client::bucket_tokens;
use crate::hub::{
    BatchOp, BucketId, Client, Endpoint, FileEntry, Hub, replacing_mtime, require_bucket, stored_mtime, stored_now,
};
use crate::xet::compression::Policy;
use crate::xet::deadline::within;
use crate::xet::download::Place;
use crate::xet::http::{self, HttpCas};
use crate::xet::upload::Uploaded;
use crate::xet::{Downloader, Hash, UploadSession, download, upload};
use clap::{Args, ValueEnum};
use futures::stream::{StreamExt, TryStreamExt};
use serde::Serialize;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::io::{InspectReader, InspectWriter};

/// Objects committed in one request, each with its own time limit.
const GROUP: usize = 1000;
/// Least time for a server to check a shard, which it may do in silence.
const SHARD: Duration = Duration::from_secs(60);
/// Files read at once: small ones wait for their disk more than for a core.
const FILES_AT_ONCE: usize = 4;

/// `xet upload`.
#[derive(Args)]
pub(in crate::cli::hfcrypt) struct UploadArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    patience: PatienceArgs,
    /// The files, then hf://buckets/namespace/bucket[/key]; with several files, or a slash at its
    /// end, the key is a folder
    #[arg(required = true, num_args = 2.., value_names = ["FILE", "BUCKET"])]
    paths: Vec<String>,
    /// Whether chunks are compressed; never for content that is encrypted already
    #[arg(long, value_enum, default_value = "auto")]
    compression: Compression,
    /// Make a missing bucket, private
    #[arg(long)]
    create: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How long a transfer waits.
#[derive(Args, Clone, Copy)]
struct PatienceArgs {
    /// Give up when nothing has moved for so long, retries included, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    timeout_ms: u64,
}

impl PatienceArgs {
    fn timeout(self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// A frozen server, one that refuses and one that is away are all waited for as long. A connection that is
    /// silent for half of that is
    /// given up, so that there is time for a second one.
    fn options(self) -> http::Options {
        let timeout = self.timeout();
        http::Options {
            idle: timeout / 2,
            give_up: timeout,
            shard_patience: timeout.max(SHARD),
            ..http::Options::default()
        }
    }
}

/// `--compression`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    /// LZ4, or BG4 before it, where it shrinks.
    Auto,
    /// As it is.
    None,
}

/// `xet download`.
#[derive(Args)]
pub(in crate::cli::hfcrypt) struct DownloadArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    patience: PatienceArgs,
    /// hf://buckets/namespace/bucket/key
    object: String,
    /// A new file, or `-`
    out: PathBuf,
}

#[derive(Serialize)]
struct Put {
    path: String,
    key: String,
    size: u64,
    hash: Hash,
}

/// A bucket, and its CAS.
struct Remote {
    hub: Arc<Client>,
    bucket: BucketId,
    cas: Arc<HttpCas>,
    timeout: Duration,
    /// An embedded Hub ends with it.
    endpoint: Arc<Endpoint>,
}

impl Remote {
    async fn open(args: &HubArgs, patience: PatienceArgs, bucket: BucketId, create: bool) -> Outcome<Self> {
        let endpoint = args.clone().resolved().open().await?;
        let hub = endpoint.client();
        let timeout = patience.timeout();
        let bucket = within(timeout, require_bucket(&*hub, &bucket, create)).await?;
        let tokens = bucket_tokens(hub.clone(), bucket.clone());
        let cas = Arc::new(HttpCas::new(endpoint.http(), tokens, patience.options()));
        Ok(Self { hub, bucket, cas, timeout, endpoint })
    }

    async fn find(&self, key: &str) -> Outcome<FileEntry> {
        let found = within(self.timeout, self.hub.paths_info(&self.bucket, &[key.to_owned()])).await?;
        let found = found.into_iter().find(|file| file.key == key);
        found.ok_or_else(|| Failure::new(Exit::NotFound, format!("{} has no object {key:?}", self.bucket)))
    }

    async fn close(self) {
        let Self { hub, cas, endpoint, .. } = self;
        drop((hub, cas));
        if let Some(endpoint) = Arc::into_inner(endpoint) {
            endpoint.close().await;
        }
    }
}

/// A bucket address with a key, as typed: nothing is trimmed from the key.
fn parse_object(text: &str) -> Outcome<(BucketId, String)> {
    if !text.starts_with("hf://buckets/") {
        return Err(Failure::new(Exit::Usage, format!("invalid bucket address {text:?}"))
            .hint("a bucket address is hf://buckets/namespace/bucket/key"));
    }
    parse_bucket(text)
}

pub(super) async fn upload(args: &UploadArgs) -> Outcome<ExitCode> {
    let (to, files) = args.paths.split_last().expect("clap sees to two");
    let (bucket, key) = parse_object(to)?;
    let keys = keys_of(files, &key, to.ends_with('/'))?;
    let total = total_len(files)?;
    let remote = Remote::open(&args.hub, args.patience, bucket, args.create).await?;
    let put = put_all(&remote, files, keys, args.compression, total).await;
    remote.close().await;
    let put = put?;
    if args.json {
        print_json(&serde_json::json!({ "files": put }))?;
    } else {
        put.iter().for_each(|put| say!("{}  {}", put.hash, term::escape(&put.key)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where each file goes.
fn keys_of(files: &[String], key: &str, is_folder: bool) -> Outcome<Vec<String>> {
    if let ([_], false, false) = (files, is_folder, key.is_empty()) {
        return Ok(vec![key.to_owned()]);
    }
    let key_in_folder = |file: &String| {
        let name = Path::new(file).file_name().and_then(|name| name.to_str());
        let name =
            name.ok_or_else(|| Failure::new(Exit::Usage, format!("{file:?} has no name that an object can have")))?;
        Ok(if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") })
    };
    let keys: Vec<String> = files.iter().map(key_in_folder).collect::<Outcome<_>>()?;
    let mut sorted: Vec<&String> = keys.iter().collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::new(Exit::Usage, format!("two files would become {:?}", pair[0]))),
        None => Ok(keys),
    }
}

fn total_len(files: &[String]) -> Outcome<u64> {
    let len = |file: &String| {
        let about = |e: std::io::Error| Failure::from(e).about(file);
        let metadata = std::fs::metadata(file).map_err(about)?;
        match metadata.is_dir() {
            true => Err(Failure::new(Exit::Usage, format!("{file} is a folder")).hint("name its files")),
            false => Ok(metadata.len()),
        }
    };
    files.iter().map(len).sum()
}

async fn put_all(
    remote: &Remote,
    files: &[String],
    keys: Vec<String>,
    compression: Compression,
    total: u64,
) -> Outcome<Vec<Put>> {
    let session = UploadSession::new(remote.cas.clone(), upload::Options::default());
    let progress = term::byte_progress(total, "uploading");
    let policy = match compression {
        Compression::Auto => Policy::Auto,
        Compression::None => Policy::Never,
    };
    let (session_ref, progress_ref) = (&session, &progress);
    let add = |(file, key): (&String, String)| {
        let file = file.clone();
        async move {
            let about = |e: std::io::Error| Failure::from(e).about(&file);
            let opened = std::fs::File::open(&file).map_err(about)?;
            let metadata = opened.metadata().map_err(about)?;
            let mtime = metadata.modified().map_err(about)?;
            let added = if metadata.is_file() {
                session_ref.add_file(progress_ref.wrap_read(opened), policy).await
            } else {
                // A pipe, say, may have nothing to give for a while.
                let opened = tokio::fs::File::from_std(opened);
                session_ref.add(InspectReader::new(opened, |bytes| progress_ref.inc(bytes.len() as u64)), policy).await
            };
            let Uploaded { hash, len } = added.map_err(|e| Failure::from(e).about(&file))?;
            Ok::<_, Failure>((Put { path: file, key, size: len, hash }, mtime))
        }
    };
    let put: Vec<(Put, SystemTime)> =
        futures::stream::iter(files.iter().zip(keys)).map(add).buffered(FILES_AT_ONCE).try_collect().await?;
    session.finish().await?;
    progress.finish_and_clear();
    // Only what is registered may be committed.
    let keys: Vec<String> = put.iter().map(|(put, _)| put.key.clone()).collect();
    let mut held = Vec::new();
    for group in keys.chunks(GROUP) {
        held.extend(within(remote.timeout, remote.hub.paths_info(&remote.bucket, group)).await?);
    }
    let held: HashMap<&str, &FileEntry> = held.iter().map(|file| (file.key.as_str(), file)).collect();
    let operation = |(put, mtime): &(Put, SystemTime)| {
        let replaced = held.get(put.key.as_str()).filter(|file| file.hash != Some(put.hash));
        let held = replaced.and_then(|file| file.mtime.max(file.uploaded_at));
        let mtime = replacing_mtime(stored_mtime(*mtime), held, stored_now());
        BatchOp::Add { key: put.key.clone(), hash: put.hash, mtime, content_type: None }
    };
    let operations: Vec<BatchOp> = put.iter().map(operation).collect();
    let mut failed = Vec::new();
    for group in operations.chunks(GROUP) {
        failed.extend(within(remote.timeout, remote.hub.batch(&remote.bucket, group)).await?.failed);
    }
    match failed.first() {
        Some((key, words)) => Err(Failure::new(Exit::Failure, format!("{key:?} was refused: {words}"))),
        None => Ok(put.into_iter().map(|(put, _)| put).collect()),
    }
}

pub(super) async fn download(args: &DownloadArgs) -> Outcome<ExitCode> {
    let (bucket, key) = parse_object(&args.object)?;
    if key.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("{:?} names no object", args.object)));
    }
    if !is_dash(&args.out) {
        refuse_existing(&args.out)?;
    }
    let remote = Remote::open(&args.hub, args.patience, bucket, false).await?;
    let done = fetch(&remote, &key, &args.out).await;
    remote.close().await;
    done.map_err(|failure| failure.about(&args.object))?;
    Ok(ExitCode::SUCCESS)
}

async fn fetch(remote: &Remote, key: &str, out: &Path) -> Outcome {
    let file = remote.find(key).await?;
    let hash = file.hash.ok_or_else(|| Failure::new(Exit::NotFound, "it has no Xet hash"))?;
    let progress = term::byte_progress(file.size, "downloading");
    let downloader = Downloader::new(remote.cas.clone(), download::Options::default());
    if is_dash(out) {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        let count = progress.clone();
        let sink = InspectWriter::new(tokio::fs::File::from_std(stdout.into()), |bytes| count.inc(bytes.len() as u64));
        downloader.download(&hash, file.size, sink).await?;
    } else {
        let about = |e: std::io::Error| Failure::from(e).about(out.display());
        // Beside its place: the last step is a rename, which can't be half done.
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".hfcrypt-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(about)?;
        let place = Counted { file: temporary.reopen().map_err(about)?, progress: progress.clone() };
        downloader.download_to(&hash, file.size, Arc::new(place)).await?;
        if let Some(mtime) = file.mtime {
            // A folder that can't hold the time is no reason to withhold the content.
            let _ = temporary.as_file().set_modified(mtime.into());
        }
        temporary.persist_noclobber(out).map_err(|e| about(e.error))?;
    }
    progress.finish_and_clear();
    Ok(())
}

/// A file whose progress is shown.
struct Counted {
    file: std::fs::File,
    progress: indicatif::ProgressBar,
}

impl Place for Counted {
    fn reserve(&self, len: u64) -> std::io::Result<()> {
        self.file.reserve(len)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        Place::write_at(&self.file, offset, bytes)?;
        self.progress.inc(bytes.len() as u64);
        Ok(())
    }
}
