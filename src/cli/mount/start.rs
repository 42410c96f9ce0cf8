//! `start`: checks what can be checked here, starts the daemon, and waits until its mount is live.

use super::mountpoint::Made;
use super::{StartArgs, mountpoint, registry};
use crate::cli::args::{MountArgs, SourceText, read_key_file};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::{escape, say};
use crate::cli::{CommonArgs, dirs};
use crate::store::{Opened, Source};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// Time that an interrupted daemon has to detach its mount.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// All that the process which mounts is told. Goes over a pipe: a command line is visible to others
/// and may hold a plaintext path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) common: CommonArgs,
    pub(super) mount: MountArgs,
    pub(super) source: SourceText,
    pub(super) mountpoint: PathBuf,
}

impl Orders {
    /// The source, parsed.
    pub(super) fn source(&self) -> Outcome<Source> {
        self.source.parse()
    }
}

/// What the daemon says on its stdout, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The mount is live, and this is what its user should know of it.
    Ready(Vec<Notice>),
    /// It won't be.
    Failed(Failure),
}

/// Something about a source that is no failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notice {
    /// The bucket has moved and has this id now.
    Moved(String),
    /// The source's subfolder has nothing in it yet.
    NewFolder,
}

impl Notice {
    /// Returns what is to be said of a source.
    pub(super) fn of(opened: &Opened) -> Vec<Self> {
        let moved = opened.moved.as_ref().map(|id| Self::Moved(id.to_string()));
        moved.into_iter().chain(opened.is_new.then_some(Self::NewFolder)).collect()
    }

    /// Prints it, one line on stderr. Names the bucket and not the folder: stderr of a foreground mount is often a
    /// log file.
    pub(super) fn print(&self, source: &Source) {
        let line = match self {
            Self::Moved(id) => format!(
                "warning: bucket {source} has moved: it is {id} now. Changes that are pending here belong to the old name: use the new \
                 one after this mount was stopped with exit code 0"
            ),
            Self::NewFolder => format!("note: the folder is new: it will be in bucket {source} once it holds a file"),
        };
        eprintln!("{}", crate::cli::term::escape(&line));
    }
}

/// Checks the arguments and makes them independent of this process's folder and environment.
pub(super) fn orders(common: &CommonArgs, args: StartArgs) -> Outcome<(Orders, Made)> {
    let mut mount = args.mount;
    mount.check_backend()?;
    mount.check_overlay()?;
    mount.source.format.check()?;
    let (source, point) = args.source.parts();
    let source = source.normal()?;
    if matches!(source, SourceText::Repository { .. }) {
        if mount.source.create || mount.source.new_key {
            let message = "a repository is only read here: --create and --new-key need a bucket";
            return Err(Failure::new(Exit::Usage, message));
        }
        mount.read_only = !mount.overlay;
    }
    mount.hub = mount.hub.resolved();
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|e| Failure::from(e).about(path.display()));
    mount.hub.token_file = mount.hub.token_file.as_ref().map(absolute).transpose()?;
    mount.source.encryption_key_file = mount.source.encryption_key_file.as_ref().map(absolute).transpose()?;
    mount.cache_dir = Some(absolute(&mount.cache_dir()?)?);
    detach_dead(point)?;
    let (mountpoint, made) = if mount.overlay {
        let prepared = mountpoint::prepare_layer(point)?;
        check_files_outside(&prepared.0, &mount)?;
        prepared
    } else {
        mountpoint::prepare(point)?
    };
    Ok((Orders { common: common.clone(), mount, source, mountpoint }, made))
}

/// Checks that no file of this program is below the mount point of an overlay: once the mount covers it, the daemon
/// would wait for itself.
fn check_files_outside(mountpoint: &Path, mount: &MountArgs) -> Outcome {
    let hub = mount.hub.hub_endpoint.as_deref().and_then(|endpoint| url::Url::parse(endpoint).ok());
    let hub = hub.filter(|url| url.scheme() == "file").and_then(|url| url.to_file_path().ok());
    let folders = [Some(mount.cache_dir()?), Some(dirs::logs()?), Some(dirs::pids()?), hub];
    for folder in folders.into_iter().flatten() {
        let real = folder.canonicalize().unwrap_or_else(|_| folder.clone());
        if real.starts_with(mountpoint) || folder.starts_with(mountpoint) {
            let message = format!("mount point {}: {} lies in it", mountpoint.display(), folder.display());
            return Err(
                Failure::new(Exit::MountPoint, message).hint("choose a mount point that has no files of hf-mount")
            );
        }
    }
    Ok(())
}

/// A mount of ours whose daemon died stays in the mount table and answers every access with an
/// error: it is detached first.
pub(super) fn detach_dead(point: &Path) -> Outcome {
    let Ok(point) = mountpoint::absolute(point) else { return Ok(()) };
    match registry::find(&point)? {
        Some(record) if record.is_alive() => Ok(()),
        Some(record) => {
            if mountpoint::is_mounted(&point) {
                super::stop::detach(&point)?;
            }
            registry::forget(&record)
        }
        // It died between mounting and registering.
        None if mountpoint::is_dead_of_ours(&point) => super::stop::detach(&point),
        None => Ok(()),
    }
}

/// `start`.
pub(super) async fn start(common: &CommonArgs, args: StartArgs) -> Outcome<ExitCode> {
    let (orders, made) = orders(common, args)?;
    launch(&orders).await?;
    made.keep();
    say!("mounted {} on {}", escape(&orders.source.to_string()), escape(&orders.mountpoint.display().to_string()));
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemon and waits for its report.
pub(super) async fn launch(orders: &Orders) -> Outcome {
    if let Some(file) = &orders.mount.source.encryption_key_file {
        // A bad key file is told here, on the terminal, with its warnings.
        read_key_file(file)?;
    }
    let log = log_file(&orders.mountpoint)?;
    let program = std::env::current_exe().map_err(|e| Failure::from(e).about("cannot find this program"))?;
    let spawn = || -> std::io::Result<tokio::process::Child> {
        let stderr = std::fs::File::options().create(true).append(true).mode(0o600).open(&log)?;
        Command::new(program)
            .arg("daemon")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .process_group(0)
            .spawn()
    };
    let mut child = spawn().map_err(|e| Failure::from(e).about("cannot start the daemon"))?;
    let told = async {
        let mut stdin = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&serde_json::to_vec(orders)?).await?;
        drop(stdin);
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        BufReader::new(stdout).read_line(&mut line).await?;
        Ok::<Report, std::io::Error>(serde_json::from_str(&line)?)
    };
    let told = tokio::select! {
        told = told => told,
        _ = tokio::signal::ctrl_c() => {
            end(&mut child).await;
            return Err(Failure::new(Exit::Interrupted, "interrupted before the mount was live"));
        }
    };
    match told {
        Ok(Report::Ready(notices)) => {
            let source = orders.source()?;
            notices.iter().for_each(|notice| notice.print(&source));
            Ok(())
        }
        Ok(Report::Failed(failure)) => Err(failure),
        Err(_) => {
            let failure = Failure::new(Exit::Failure, "the daemon ended before it had mounted anything");
            Err(failure.hint(format!("its log is {}", log.display())))
        }
    }
}

/// Ends a daemon whose mount is no longer wanted: by SIGTERM, which detaches what it may have mounted, and by
/// force if that takes too long.
async fn end(child: &mut tokio::process::Child) {
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?));
    // It may be gone already.
    let _ = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
    if tokio::time::timeout(LAST_WAIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn log_file(mountpoint: &Path) -> Outcome<PathBuf> {
    Ok(dirs::logs()?.join(format!("{}.log", registry::slug(mountpoint))))
}
