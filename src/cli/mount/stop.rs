//! Runs `stop` and `flush`.

use super::control::{Answer, Request};
use super::registry::Record;
use super::{control, mountpoint, registry};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::say;
use crate::fs::Drained;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Time that `stop` waits for the daemon to exit after its reply.
const EXIT_WAIT: Duration = Duration::from_secs(10);

/// Returns 75 if changes are pending, else 21 if there were conflicts, else 0.
pub(super) fn exit_code(drained: Drained) -> ExitCode {
    match drained {
        Drained { pending: 1.., .. } => ExitCode::from(Exit::Pending as u8),
        Drained { conflicts: 1.., .. } => ExitCode::from(Exit::Conflicts as u8),
        _ => ExitCode::SUCCESS,
    }
}

/// Returns the mount of hf-mount at a mount point.
pub(super) fn known(point: &Path) -> Outcome<Record> {
    let point = mountpoint::absolute(point)?;
    registry::find(&point)?.ok_or_else(|| {
        Failure::new(Exit::MountPoint, format!("hf-mount has no mount on {}", point.display()))
            .hint("`hf-mount status` lists the mounts")
    })
}

/// Prints the result on stdout, and warnings about pending changes and conflicts on stderr.
fn tell(drained: Drained) {
    let files = |n: u64| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
    say!("flushed {}", files(drained.flushed));
    if drained.pending > 0 {
        eprintln!(
            "{} still pending: kept in the journal; the next mount of this source uploads them",
            files(drained.pending)
        );
    }
    if drained.conflicts > 0 {
        eprintln!("{} also changed remotely: both versions were kept", files(drained.conflicts));
    }
}

async fn drain(record: &Record, request: Request) -> Outcome<Drained> {
    match control::ask(record, request).await? {
        Answer::Drained(drained) => Ok(drained),
        Answer::Refused(failure) => Err(failure),
        _ => Err(control::another_kind()),
    }
}

/// Runs `flush`.
pub(super) async fn flush(point: &Path) -> Outcome<ExitCode> {
    let drained = drain(&known(point)?, Request::Flush).await?;
    tell(drained);
    Ok(exit_code(drained))
}

/// Runs `stop <mountpoint>`.
pub(super) async fn stop(point: &Path, force: bool) -> Outcome<ExitCode> {
    let drained = stop_one(&known(point)?, force).await?;
    tell(drained);
    Ok(exit_code(drained))
}

/// Runs `stop --all`. Stops all mounts concurrently, so that one that waits for its Hub doesn't delay the others.
/// Continues after a failure. Returns the exit code of the first one.
pub(super) async fn stop_all(force: bool) -> Outcome<ExitCode> {
    let mut sum = Drained::default();
    let mut failed = None;
    let records = registry::all()?;
    let stopped = futures::future::join_all(records.iter().map(|record| stop_one(record, force))).await;
    for (record, outcome) in records.iter().zip(stopped) {
        match outcome {
            Ok(drained) => {
                sum.flushed += drained.flushed;
                sum.pending += drained.pending;
                sum.conflicts += drained.conflicts;
            }
            Err(failure) => {
                let failure = failure.about(record.mountpoint.display());
                failure.report();
                failed.get_or_insert(ExitCode::from(failure.exit as u8));
            }
        }
    }
    tell(sum);
    Ok(failed.unwrap_or_else(|| exit_code(sum)))
}

async fn stop_one(record: &Record, force: bool) -> Outcome<Drained> {
    if !record.is_alive() {
        if mountpoint::is_mounted(&record.mountpoint) {
            detach(&record.mountpoint)?;
        }
        registry::forget(record)?;
        let point = record.mountpoint.display();
        // Exit code 0 would mean that everything is on the Hub.
        let failure =
            Failure::new(Exit::Pending, format!("the daemon of {point} has died; pending changes are in its journal"));
        return Err(failure.hint("the next `hf-mount start` of the same source continues with them"));
    }
    let drained = drain(record, Request::Stop { lazy: force }).await?;
    let ended = async {
        while record.is_alive() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Its work is done, so a process that takes longer to exit is not a failure.
    let _ = tokio::time::timeout(EXIT_WAIT, ended).await;
    Ok(drained)
}

/// Removes a dead mount from the mount table.
pub(super) fn detach(point: &Path) -> Outcome {
    crate::fs::front::fuse::detach(point)
        .map_err(|e| Failure { exit: Exit::MountPoint, ..Failure::from(e) }.about(point.display()))
}
