//! The process that holds a mount: opens the source, mounts, serves the control socket, drains at its end.

use super::control::{Answer, Live, Request};
use super::start::{Notice, Orders, Report};
use super::{DrainOutcome, control, registry, stop};
use crate::cli::args::{Fsync, MountArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::signals::Signals;
use crate::fs::front::fuse::{FuseMount, FuseOptions};
use crate::fs::overlay::{self, Detached, LocalLayer, Overlay, Role};
use crate::fs::{self, Drained, Filesystem, Vfs};
use crate::store::deadline::{self, within};
use crate::store::{self, View};
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Longest orders on stdin, bytes.
const MAX_ORDERS: u64 = 1 << 20;

/// How long after a commit it is read back: whoever compared with the version before it has committed by then.
const READ_BACK: Duration = Duration::from_secs(10);

/// How often a source that another daemon is still draining is tried again.
const BUSY_RETRY: Duration = Duration::from_millis(200);

/// `stop` requests that may wait for one drain; more are refused by a closed connection.
const STOPS: usize = 16;

/// `hf-mount daemon`: reads its orders, reports on stdout, then lives without a terminal.
pub(super) async fn background() -> Outcome<ExitCode> {
    let mut text = String::new();
    std::io::stdin().take(MAX_ORDERS).read_to_string(&mut text)?;
    let orders: Orders = serde_json::from_str(&text).map_err(|_| {
        Failure::new(Exit::Usage, "`daemon` is for `hf-mount start`")
            .hint("use `hf-mount start`, or `hf-mount-fuse` to stay in the foreground")
    })?;
    drop(text);
    orders.common.init_logging(tracing::Level::INFO);
    // The starter may be closed, its terminal too.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    let mut ready = false;
    let outcome = serve(&orders, |notices| {
        ready = true;
        report(&Report::Ready(notices))
    })
    .await;
    match outcome {
        Ok(drained) => {
            tracing::info!(flushed = drained.flushed, pending = drained.pending, "ended");
            Ok(stop::exit_code(drained))
        }
        Err(failure) => {
            tracing::error!(error = %failure.message, "failed");
            if !ready {
                report(&Report::Failed(failure.clone()))?;
            }
            Err(failure)
        }
    }
}

/// Writes the one line the starter waits for, and lets go of its pipe.
fn report(report: &Report) -> Outcome {
    let mut line = serde_json::to_vec(report).map_err(std::io::Error::from)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout();
    stdout.write_all(&line)?;
    stdout.flush()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(&null).map_err(std::io::Error::from)?)
}

/// Mounts, calls `ready`, and returns when the mount has ended and its data is drained.
pub(super) async fn serve(orders: &Orders, ready: impl FnOnce(Vec<Notice>) -> Outcome) -> DrainOutcome {
    // From here on files are for this user only: sockets, journals, pools.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut signals = Signals::new()?;
    let socket = registry::socket(&orders.mountpoint)?;
    control::check_path(&socket)?;
    let source = orders.source()?.to_string();
    let mount = Mounted::open(orders).await?;
    // Registered before the socket is taken over: a daemon that drained here until now must see that both are ours.
    let public = || {
        let registration = registry::register(&orders.mountpoint, source.clone(), "fuse")?;
        let listener = control::listen(&socket)?;
        ready(mount.notices.clone())?;
        Ok((registration, listener))
    };
    let (_registration, listener) = match public() {
        Ok(public) => public,
        Err(failure) => {
            mount.abandon().await;
            return Err(failure);
        }
    };
    tracing::info!(mountpoint = %orders.mountpoint.display(), %source, "mounted");
    mount.run(listener, &mut signals).await
}

/// A live mount and all beneath it.
struct Mounted {
    /// Kept for its embedded Hub.
    endpoint: Arc<crate::hub::Endpoint>,
    view: Arc<dyn View>,
    vfs: Arc<Vfs>,
    /// The sealed local files of an overlay.
    sealed: Option<Arc<Vfs>>,
    is_overlay: bool,
    fuse: Arc<FuseMount>,
    source: String,
    since: Instant,
    drain_deadline: Duration,
    notices: Vec<Notice>,
    /// Held by a `stop` from before it unmounts until it has said so.
    stopping: tokio::sync::Mutex<()>,
}

impl Mounted {
    async fn open(orders: &Orders) -> Outcome<Self> {
        let args = &orders.mount;
        let cache_dir = args.cache_dir()?;
        crate::cli::dirs::make_private(&cache_dir).map_err(|e| Failure::from(e).about(cache_dir.display()))?;
        let endpoint = args.hub.open().await?;
        let mut options = args.source.options(args.read_only || args.overlay, &cache_dir)?;
        options.disk_cache = args.disk_cache();
        let folder = cache_dir.clone();
        // One deadline for all that is asked of the Hub before the mount is live.
        let source = orders.source()?;
        let opened = within(hub_deadline(args), store::open(endpoint.clone(), &source, options)).await;
        let opened = opened.map_err(|error| match error {
            store::Error::Io(error) => in_cache_dir(error, &folder),
            other => other.into(),
        })?;
        let notices = Notice::of(&opened);
        let view = opened.view;
        let Parts { filesystem, vfs, sealed } = start_parts(view.clone(), cache_dir, orders).await?;
        let fuse = FuseOptions {
            source_name: format!("{}{source}", super::mountpoint::SOURCE_PREFIX),
            allow_other: args.allow_other(),
            read_only: view.read_only() && !args.overlay,
            threads: args.max_threads.max(1),
            direct_io: args.direct_io,
        };
        let fuse = match FuseMount::mount(filesystem, &orders.mountpoint, fuse).await {
            Ok(fuse) => Arc::new(fuse),
            Err(error) => {
                end_vfs(&vfs, sealed.as_deref(), Duration::ZERO).await;
                return Err(Failure::from(error));
            }
        };
        let drain_deadline = Duration::from_millis(args.flush_shutdown_timeout_ms);
        Ok(Self {
            endpoint,
            view,
            vfs,
            sealed,
            is_overlay: args.overlay,
            fuse,
            source: orders.source.to_string(),
            since: Instant::now(),
            drain_deadline,
            notices,
            stopping: tokio::sync::Mutex::default(),
        })
    }

    /// Ends a mount that could not be made known.
    async fn abandon(self) {
        if let Err(error) = self.fuse.unmount(true).await {
            tracing::warn!(%error, "cannot unmount");
        }
        end_vfs(&self.vfs, self.sealed.as_deref(), Duration::ZERO).await;
    }

    /// Serves until the mount is gone, by whatever way, then drains.
    async fn run(self, listener: UnixListener, signals: &mut Signals) -> DrainOutcome {
        let this = Arc::new(self);
        let (ended, mut ends) = mpsc::channel(STOPS);
        let server = tokio::spawn(this.clone().control(listener, ended));
        let stopped = tokio::select! {
            () = this.fuse.unmounted() => None,
            () = signals.next() => {
                // Whoever has files open keeps them until they are closed; nothing new can be opened.
                if let Err(error) = this.fuse.unmount(true).await {
                    tracing::warn!(%error, "cannot unmount");
                }
                None
            }
            stopped = ends.recv() => stopped,
        };
        let mut stopped: Vec<Stopped> = stopped.into_iter().collect();
        // The mount ends before the `stop` that ended it has said so: wait for it, its client wants the outcome.
        drop(this.stopping.lock().await);
        stopped.extend(std::iter::from_fn(|| ends.try_recv().ok()));
        let before = stopped.first().map_or(Drained::default(), |stopped| stopped.flushed);
        // What a `stop` has used of its time is not given again.
        let until = stopped.first().map_or_else(|| deadline::after(this.drain_deadline), |stopped| stopped.until);
        let rest = until.saturating_duration_since(deadline::after(Duration::ZERO));
        let rest = end_vfs(&this.vfs, this.sealed.as_deref(), rest).await;
        let drained = Drained { flushed: before.flushed + rest.flushed, ..rest };
        for Stopped { client, .. } in stopped {
            control::reply(client, &Answer::Drained(drained)).await;
        }
        server.abort();
        let _ = server.await;
        if let Ok(this) = Arc::try_unwrap(this) {
            drop((this.vfs, this.sealed, this.view));
            if let Ok(endpoint) = Arc::try_unwrap(this.endpoint) {
                endpoint.close().await;
            }
        }
        Ok(drained)
    }

    /// Answers control clients, each in a task of its own.
    async fn control(self: Arc<Self>, listener: UnixListener, ended: mpsc::Sender<Stopped>) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().answer(stream, ended.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, mut client: UnixStream, ended: mpsc::Sender<Stopped>) {
        match control::receive(&mut client).await {
            Ok(Request::Status) => control::reply(client, &Answer::Status(Box::new(self.live()))).await,
            Ok(Request::Flush) => {
                let drained = self.vfs.flush_unless_stalled(self.drain_deadline).await;
                control::reply(client, &Answer::Drained(drained)).await;
            }
            Ok(Request::Stop { lazy }) => {
                let until = deadline::after(self.drain_deadline);
                let flushed = self.vfs.flush(Some(self.drain_deadline)).await;
                let _one_at_a_time = self.stopping.lock().await;
                match self.fuse.unmount(lazy).await {
                    Ok(()) => drop(ended.try_send(Stopped { client, flushed, until })),
                    Err(error) => {
                        let failure = Failure::from(error).hint("close what is open in it, or `hf-mount stop --force`");
                        control::reply(client, &Answer::Refused(Failure { exit: Exit::MountPoint, ..failure })).await;
                    }
                }
            }
            Ok(Request::Pending { after }) => {
                control::reply(client, &Answer::Pending(self.vfs.pending(after, control::PAGE))).await;
            }
            Ok(Request::Retry { numbers, on_conflict }) => {
                control::reply(client, &Answer::Retried(self.vfs.retry(&numbers, on_conflict))).await;
            }
            Ok(Request::Read { number, local }) => match self.vfs.open_pending(number) {
                Ok(file) => {
                    let patience = if local { Duration::ZERO } else { self.vfs.reply_deadline() };
                    control::send_content(client, file, patience).await;
                }
                Err(error) => control::reply(client, &Answer::Refused(error.into())).await,
            },
            Ok(Request::Drop { numbers }) => {
                let answer = match self.vfs.drop_pending(&numbers).await {
                    Ok(outcomes) => {
                        Answer::Dropped(outcomes.into_iter().map(|error| error.map(Failure::from)).collect())
                    }
                    Err(error) => Answer::Refused(error.into()),
                };
                control::reply(client, &answer).await;
            }
            Err(error) => tracing::debug!(%error, "control client"),
        }
    }

    fn live(&self) -> Live {
        let mut status = self.vfs.status();
        if let Some(sealed) = self.sealed.as_ref().map(|sealed| sealed.status()) {
            status.kept_files = sealed.kept_files;
            status.last_error = sealed.last_error.or(status.last_error);
        }
        Live {
            source: self.source.clone(),
            uptime_s: self.since.elapsed().as_secs(),
            key_id: self.view.key_id(),
            overlay: self.is_overlay,
            draining: false,
            status,
        }
    }
}

/// A `stop` that has unmounted and waits for the drain.
struct Stopped {
    client: UnixStream,
    flushed: Drained,
    /// When its drain ends.
    until: tokio::time::Instant,
}

/// The longest that a start waits for the Hub, as one file operation does: zero stands for an hour there too.
fn hub_deadline(args: &MountArgs) -> Duration {
    fs::or_longest_wait(Duration::from_millis(args.read_fetch_timeout_ms))
}

/// Names the folder that a local failure is about. A full disk has a way out.
fn in_cache_dir(error: std::io::Error, folder: &std::path::Path) -> Failure {
    let failure = Failure::from(error).about(format!("cache folder {}", folder.display()));
    match failure.exit {
        Exit::Full => failure.hint("free space there, or choose another disk with --cache-dir"),
        _ => failure,
    }
}

fn vfs_options(args: &MountArgs, cache_dir: std::path::PathBuf) -> fs::Options {
    fs::Options {
        cache_dir,
        advanced_writes: args.advanced_writes || args.source.encryption_key_file.is_some(),
        read_only: args.read_only,
        metadata_ttl: args.metadata_ttl(),
        negative_ttl: Duration::from_millis(args.negative_ttl_ms),
        poll_interval: (args.poll_interval_secs > 0).then(|| Duration::from_secs(args.poll_interval_secs)),
        poll_listings: args.poll_listing_concurrency,
        inode_limit: Some(args.inode_soft_limit).filter(|limit| *limit > 0),
        sweep_interval: Duration::from_millis(args.lru_sweep_interval_ms),
        flush_debounce: Duration::from_millis(args.flush_debounce_ms),
        flush_max_window: Duration::from_millis(args.flush_max_batch_window_ms),
        uid: args.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: args.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        file_mode: args.file_mode,
        dir_mode: args.dir_mode,
        filter_os_files: !args.no_filter_os_files,
        keep_all: false,
        instance: None,
        reply_deadline: Duration::from_millis(args.read_fetch_timeout_ms),
        fsync_remote: args.fsync == Fsync::Remote,
        on_conflict: args.on_conflict.into(),
        max_staging: Some(args.max_staging_size).filter(|bytes| *bytes > 0),
        max_pending: Some(args.max_pending_size).filter(|bytes| *bytes > 0),
        read_back_after: READ_BACK,
    }
}

/// The filesystem of a mount, and the parts of it that have a journal.
struct Parts {
    filesystem: Arc<dyn Filesystem>,
    vfs: Arc<Vfs>,
    /// See [`Mounted::sealed`].
    sealed: Option<Arc<Vfs>>,
}

/// Starts the filesystem of a mount. The folder of an overlay is opened before the mount covers it.
async fn start_parts(view: Arc<dyn View>, cache_dir: std::path::PathBuf, orders: &Orders) -> Outcome<Parts> {
    let args = &orders.mount;
    let options = vfs_options(args, cache_dir);
    if !args.overlay {
        let vfs = start_vfs(view, options, args).await?;
        return Ok(Parts { filesystem: vfs.clone(), vfs, sealed: None });
    }
    let folder = LocalLayer::open(&orders.mountpoint)
        .map_err(|e| Failure::from(e).about(format!("mount point {}", orders.mountpoint.display())))?;
    let instance = |role| Some(overlay::instance(&view.identity(), &orders.mountpoint, role));
    let remote = fs::Options { instance: instance(Role::Remote), ..options.clone() };
    let vfs = start_vfs(view.clone(), remote, args).await?;
    if !args.seals_local_files() {
        return Ok(Parts { filesystem: Arc::new(Overlay::new(folder, vfs.clone())), vfs, sealed: None });
    }
    let local = fs::Options { instance: instance(Role::Local), keep_all: true, poll_interval: None, ..options };
    let sealed = start_vfs(Detached::new(view), local, args).await?;
    let filesystem = Arc::new(Overlay::sealed(folder, sealed.clone(), vfs.clone()));
    Ok(Parts { filesystem, vfs, sealed: Some(sealed) })
}

/// Persists and flushes everything, as [`Vfs::shutdown`] does.
async fn end_vfs(vfs: &Vfs, sealed: Option<&Vfs>, deadline: Duration) -> Drained {
    if let Some(sealed) = sealed {
        sealed.shutdown(deadline).await;
    }
    vfs.shutdown(deadline).await
}

/// Opens staging and journal. While another daemon of the same source drains, waits for it as long as a drain may take.
async fn start_vfs(view: Arc<dyn View>, options: fs::Options, args: &MountArgs) -> Outcome<Arc<Vfs>> {
    let until = Instant::now() + Duration::from_millis(args.flush_shutdown_timeout_ms);
    loop {
        match Vfs::start(view.clone(), options.clone()).await {
            Err(fs::Error::Busy(pid)) if Instant::now() < until && is_draining(pid) => {
                tokio::time::sleep(BUSY_RETRY).await
            }
            Err(fs::Error::Staging(error)) => return Err(in_cache_dir(error, &options.cache_dir)),
            other => return Ok(other?),
        }
    }
}

/// Whether that daemon's mount is gone from the mount table: then it only drains.
fn is_draining(pid: u32) -> bool {
    let records = registry::all().unwrap_or_default();
    records.iter().any(|record| record.pid == pid && !super::mountpoint::is_mounted(&record.mountpoint))
}
