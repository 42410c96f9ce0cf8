//! `pending`: what is not on the Hub yet. The daemon knows things by number; paths are matched here.

use super::control::{self, Answer, Content, PAGE, Request};
use super::registry::Record;
use super::{mountpoint, stop};
use crate::cli::args::OnConflictArg;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::{escape, say};
use crate::cli::{dirs, print_json};
use crate::fs::{Pending, PendingKind, PendingNo, PendingState, drop_order};
use crate::store::mtime_from_millis;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

const EXAMPLES: &str = "\
PATH is a path as `list` shows it, from the mount's root, or an absolute one below the mount point. A folder stands for all below it.

Examples:
  hf-mount pending list ~/data
  hf-mount pending retry ~/data reports/may.csv --on-conflict overwrite
  hf-mount pending export ~/data ~/rescued
  hf-mount pending drop ~/data reports/may.csv";

/// Times that a file which changes while it is read is begun again.
const TRIES: usize = 3;

/// `pending …`.
#[derive(Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Command {
    /// List it: files, and changes of names, with how far they are and what went wrong
    List {
        /// The mount point
        mountpoint: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Try again at once what failed or was refused
    #[command(after_help = EXAMPLES)]
    Retry {
        #[command(flatten)]
        which: Which,
        /// What to do about conflicts of these, whatever the mount does
        #[arg(long, value_enum)]
        on_conflict: Option<OnConflictArg>,
    },
    /// Copy pending files, decrypted, into a folder; nothing there is overwritten
    #[command(after_help = EXAMPLES)]
    Export {
        /// The mount point
        mountpoint: PathBuf,
        /// Where to; made where it is missing
        folder: PathBuf,
        /// These only
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Give up pending changes: files go back to what the Hub has, names to what they were
    #[command(after_help = EXAMPLES)]
    Drop {
        #[command(flatten)]
        which: Which,
        /// Everything pending
        #[arg(long, conflicts_with = "paths", required_unless_present = "paths")]
        all: bool,
    },
}

/// A mount, and paths in it.
#[derive(Args)]
pub(super) struct Which {
    /// The mount point
    mountpoint: PathBuf,
    /// These only
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// `pending …`.
pub(super) async fn run(command: Command) -> Outcome<ExitCode> {
    match command {
        Command::List { mountpoint, json } => list(&mountpoint, json).await,
        Command::Retry { which, on_conflict } => retry(&which, on_conflict).await,
        Command::Export { mountpoint, folder, paths } => export(&Which { mountpoint, paths }, &folder).await,
        Command::Drop { which, .. } => give_up(&which).await,
    }
}

/// As the JSON form has it.
#[derive(Serialize)]
struct Row<'a> {
    kind: PendingKind,
    path: &'a str,
    to: Option<&'a str>,
    bytes: Option<u64>,
    state: PendingState,
    since: Option<&'a str>,
    attempts: u32,
    error: Option<&'a str>,
}

impl<'a> From<&'a Pending> for Row<'a> {
    fn from(pending: &'a Pending) -> Self {
        Self {
            kind: pending.kind,
            path: &pending.path,
            to: pending.to.as_deref(),
            bytes: pending.bytes,
            state: pending.state,
            since: pending.since.as_deref(),
            attempts: pending.attempts,
            error: pending.error.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct Rows<'a> {
    pending: Vec<Row<'a>>,
}

async fn list(point: &Path, json: bool) -> Outcome<ExitCode> {
    let all = all(&live(point)?).await?;
    if json {
        print_json(&Rows { pending: all.iter().map(Row::from).collect() })?;
    } else if all.is_empty() {
        say!("nothing is pending");
    } else {
        all.iter().for_each(|pending| say!("{}", describe(pending)));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(pending: &Pending) -> String {
    let mut text = format!("{:<10} {}", state(pending.state), name(pending));
    if let Some(bytes) = pending.bytes {
        text.push_str(&format!(", {bytes} bytes"));
    }
    if let Some(since) = &pending.since {
        text.push_str(&format!(", since {since}"));
    }
    if let Some(error) = &pending.error {
        let times = if pending.attempts == 1 { "once".to_owned() } else { format!("{} times", pending.attempts) };
        text.push_str(&format!("\n{:<10} failed {times}: {}", "", escape(error)));
    }
    text
}

fn state(state: PendingState) -> &'static str {
    match state {
        PendingState::Dirty => "changed",
        PendingState::Frozen => "uploading",
        PendingState::Uploaded => "uploaded",
        PendingState::Queued => "queued",
        PendingState::Committing => "committing",
        PendingState::Retrying => "retrying",
        PendingState::Parked => "parked",
    }
}

/// What it is, with its names.
fn name(pending: &Pending) -> String {
    let path = escape(&pending.path);
    match (pending.kind, &pending.to) {
        (PendingKind::File, _) => path,
        (PendingKind::Delete, _) => format!("removed {path}"),
        (_, Some(to)) => format!("renamed {path} to {}", escape(to)),
        (_, None) => format!("renamed {path}"),
    }
}

async fn retry(which: &Which, on_conflict: Option<OnConflictArg>) -> Outcome<ExitCode> {
    let record = live(&which.mountpoint)?;
    let chosen = choose(&record, which).await?;
    let mut tried = 0;
    for numbers in numbers(&chosen.pending).chunks(PAGE) {
        let request = Request::Retry { numbers: numbers.to_vec(), on_conflict: on_conflict.map(Into::into) };
        match control::ask(&record, request).await? {
            Answer::Retried(count) => tried += count,
            Answer::Refused(failure) => return Err(failure),
            _ => return Err(control::another_kind()),
        }
    }
    eprintln!("trying {tried} again; `hf-mount flush` waits for them");
    Ok(chosen.exit_code())
}

async fn give_up(which: &Which) -> Outcome<ExitCode> {
    let record = live(&which.mountpoint)?;
    let chosen = choose(&record, which).await?;
    let mut order = numbers(&chosen.pending);
    drop_order(&mut order);
    let mut refused = 0;
    for numbers in order.chunks(PAGE) {
        let outcomes = match control::ask(&record, Request::Drop { numbers: numbers.to_vec() }).await? {
            Answer::Dropped(outcomes) => outcomes,
            Answer::Refused(failure) => return Err(failure),
            _ => return Err(control::another_kind()),
        };
        for (number, outcome) in numbers.iter().zip(outcomes) {
            let Some(pending) = chosen.pending.iter().find(|pending| pending.number == *number) else { continue };
            match outcome {
                None => eprintln!("discarded {}", name(pending)),
                Some(failure) => {
                    refused += 1;
                    failure.about(format!("cannot discard {}", pending_name(pending))).report();
                }
            }
        }
    }
    Ok(if refused > 0 { ExitCode::from(Exit::Failure as u8) } else { chosen.exit_code() })
}

/// As [`name`], to be escaped later.
fn pending_name(pending: &Pending) -> String {
    match &pending.to {
        Some(to) => format!("{} -> {to}", pending.path),
        None => pending.path.clone(),
    }
}

async fn export(which: &Which, folder: &Path) -> Outcome<ExitCode> {
    let record = live(&which.mountpoint)?;
    let chosen = choose(&record, which).await?;
    dirs::make_private(folder).map_err(|e| Failure::from(e).about(folder.display()))?;
    // One wait for a Hub that hangs is enough: after that, what is on this machine is copied.
    let (mut copied, mut failed, mut local) = (0, None, false);
    for pending in chosen.pending.iter().filter(|pending| pending.kind == PendingKind::File) {
        match export_one(&record, pending, folder, local).await {
            Ok(()) => copied += 1,
            Err(failure) => {
                local |= failure.exit == Exit::Unavailable;
                // What doesn't authenticate is said by the code, whatever else failed.
                if failed != Some(Exit::Integrity) {
                    failed = Some(if failure.exit == Exit::Integrity { Exit::Integrity } else { Exit::Failure });
                }
                failure.about(format!("cannot copy {}", pending.path)).report();
            }
        }
    }
    eprintln!("copied {copied} pending files to {}", escape(&folder.display().to_string()));
    Ok(failed.map_or_else(|| chosen.exit_code(), |exit| ExitCode::from(exit as u8)))
}

/// One file, under its final name only when it is whole.
async fn export_one(record: &Record, pending: &Pending, folder: &Path, local: bool) -> Outcome {
    let target = folder.join(&pending.path);
    let parent = target.parent().unwrap_or(folder);
    make_folders(folder, &pending.path).map_err(|e| Failure::from(e).about(parent.display()))?;
    if target.symlink_metadata().is_ok() {
        return Err(Failure::new(Exit::Failure, format!("{} is there already", target.display())));
    }
    let mut temporary = tempfile::Builder::new().prefix(".export-").tempfile_in(parent)?;
    for attempt in 1.. {
        match receive(record, pending.number, local, &mut temporary).await {
            Ok(millis) => {
                let time = SystemTime::from(mtime_from_millis(millis));
                // An hour that can't be set is no reason to withhold the content.
                let _ = temporary.as_file().set_modified(time);
                break;
            }
            Err(failure) if attempt == TRIES || failure.exit != Exit::Failure => return Err(failure),
            Err(_) => {
                temporary.as_file().set_len(0)?;
                temporary.as_file_mut().rewind()?;
            }
        }
    }
    temporary.as_file().sync_all()?;
    temporary.persist_noclobber(&target).map_err(|e| Failure::from(e.error).about(target.display()))?;
    Ok(())
}

async fn receive(record: &Record, number: PendingNo, local: bool, out: &mut impl Write) -> Outcome<i64> {
    let mut content = Content::open(record, number, local).await?;
    while let Some(bytes) = content.next().await? {
        out.write_all(&bytes)?;
    }
    Ok(content.mtime_millis)
}

/// The folders above a file. A link in their place is not followed: it may lead anywhere.
fn make_folders(folder: &Path, path: &str) -> std::io::Result<()> {
    let mut at = folder.to_owned();
    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
    for name in above.split('/').filter(|name| !name.is_empty()) {
        at.push(name);
        match std::fs::create_dir(&at) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if !at.symlink_metadata()?.is_dir() {
                    return Err(std::io::ErrorKind::NotADirectory.into());
                }
            }
            made => made?,
        }
    }
    Ok(())
}

/// The mount, which must run: what is pending is known to its daemon only.
fn live(point: &Path) -> Outcome<Record> {
    let record = stop::known(point)?;
    if record.is_alive() {
        return Ok(record);
    }
    let message = format!("the daemon of {} has died; pending changes are in its journal", record.mountpoint.display());
    Err(Failure::new(Exit::MountPoint, message)
        .hint("mount the same source again: it continues with the pending changes"))
}

async fn all(record: &Record) -> Outcome<Vec<Pending>> {
    let mut found: Vec<Pending> = Vec::new();
    loop {
        let after = found.last().map(|pending| pending.number);
        let page = match control::ask(record, Request::Pending { after }).await? {
            Answer::Pending(page) => page,
            Answer::Refused(failure) => return Err(failure),
            _ => return Err(control::another_kind()),
        };
        if page.is_empty() {
            return Ok(found);
        }
        found.extend(page);
    }
}

/// What the paths of a command stand for.
struct Chosen {
    pending: Vec<Pending>,
    missing: usize,
}

impl Chosen {
    fn exit_code(&self) -> ExitCode {
        if self.missing > 0 { ExitCode::from(Exit::Failure as u8) } else { ExitCode::SUCCESS }
    }
}

async fn choose(record: &Record, which: &Which) -> Outcome<Chosen> {
    let paths = which.paths.iter().map(|path| inside(record, path)).collect::<Outcome<Vec<_>>>()?;
    let mut pending = all(record).await?;
    let mut missing = 0;
    for path in &paths {
        if !pending.iter().any(|pending| concerns(pending, path)) {
            missing += 1;
            Failure::new(Exit::Failure, format!("nothing is pending at {path}")).report();
        }
    }
    pending.retain(|pending| paths.is_empty() || paths.iter().any(|path| concerns(pending, path)));
    Ok(Chosen { pending, missing })
}

fn numbers(pending: &[Pending]) -> Vec<PendingNo> {
    pending.iter().map(|pending| pending.number).collect()
}

/// Whether one of its names is the path, or lies below it.
fn concerns(pending: &Pending, path: &str) -> bool {
    let within = |name: &str| {
        path.is_empty() || name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(&pending.path) || pending.to.as_deref().is_some_and(within)
}

/// A path of the command line as one from the mount's root.
fn inside(record: &Record, path: &Path) -> Outcome<String> {
    let refuse = |why: &str| Failure::new(Exit::Usage, format!("{}: {why}", path.display()));
    let below = if path.is_absolute() {
        let parent = path.parent().and_then(|parent| mountpoint::absolute(parent).ok());
        let full = parent.zip(path.file_name()).map_or_else(|| path.to_owned(), |(parent, name)| parent.join(name));
        let below = path.strip_prefix(&record.mountpoint).or_else(|_| full.strip_prefix(&record.mountpoint));
        below.map_err(|_| refuse("it is not below the mount point"))?.to_owned()
    } else {
        path.to_owned()
    };
    let text = std::str::from_utf8(below.as_os_str().as_bytes()).map_err(|_| refuse("it is not UTF-8"))?;
    let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") {
        return Err(refuse("give it without `..`"));
    }
    Ok(names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            pid: 0,
            started: 0,
            since: 0,
            mountpoint: "/mnt/x".into(),
            bucket: "me/x".into(),
            backend: "fuse".into(),
        }
    }

    #[test]
    fn paths_are_taken_from_the_root_of_the_mount() {
        let at = |path: &str| inside(&record(), Path::new(path)).map_err(|failure| failure.exit);
        assert_eq!(at("d/./a"), Ok("d/a".into()));
        assert_eq!(at("/mnt/x/d/"), Ok("d".into()));
        assert_eq!(at("/mnt/x"), Ok(String::new()));
        assert_eq!(at("/mnt/xy/d"), Err(Exit::Usage));
        assert_eq!(at("d/../a"), Err(Exit::Usage));
    }

    #[test]
    fn a_folder_stands_for_what_is_below_it_and_for_either_name() {
        let pending = Pending {
            number: PendingNo::Change(1),
            kind: PendingKind::Rename,
            path: "d/a".into(),
            to: Some("e/b".into()),
            bytes: None,
            state: PendingState::Queued,
            since: None,
            attempts: 0,
            error: None,
        };
        assert!(["d", "d/a", "e", "e/b", ""].iter().all(|path| concerns(&pending, path)));
        assert!(!["d/", "e/bb", "f", "d/a/x"].iter().any(|path| concerns(&pending, path)));
    }
}
