//! `stop` and `flush`.

use super::control::{Answer, Request};
use super::registry::Record;
use super::{control, mountpoint, registry};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::say;
use crate::fs::Drained;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long `stop` waits for the daemon to end after its last word.
const EXIT_WAIT: Duration = Duration::from_secs(10);

/// 75 before 21 before 0.
pub(super) fn exit_code(drained: Drained) -> ExitCode {
    match drained {
        Drained { pending: 1.., .. } => ExitCode::from(Exit::Pending as u8),
        Drained { conflicts: 1.., .. } => ExitCode::from(Exit::Conflicts as u8),
        _ => ExitCode::SUCCESS,
    }
}

/// The mount of ours at a mount point.
pub(super) fn known(point: &Path) -> Outcome<Record> {
    let point = mountpoint::absolute(point)?;
    registry::find(&point)?.ok_or_else(|| {
        Failure::new(Exit::MountPoint, format!("nothing of ours is mounted on {}", point.display()))
            .hint("`hf-mount status` lists our mounts")
    })
}

/// Prints the result on stdout, and on stderr what the user has to know besides.
fn tell(drained: Drained) {
    let files = |n: u64| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
    say!("flushed {}", files(drained.flushed));
    if drained.pending > 0 {
        eprintln!(
            "{} still pending: kept in the journal, uploaded by the next mount of this source",
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

/// `flush`.
pub(super) async fn flush(point: &Path) -> Outcome<ExitCode> {
    let drained = drain(&known(point)?, Request::Flush).await?;
    tell(drained);
    Ok(exit_code(drained))
}

/// `stop <mountpoint>`.
pub(super) async fn stop(point: &Path, force: bool) -> Outcome<ExitCode> {
    let drained = stop_one(&known(point)?, force).await?;
    tell(drained);
    Ok(exit_code(drained))
}

/// `stop --all`: stops all mounts side by side, so that one that waits for its Hub delays no other. Goes on after
/// a failure, and reports the first.
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
            Failure::new(Exit::Pending, format!("the daemon of {point} had died; pending changes are in its journal"));
        return Err(failure.hint("the next `hf-mount start` of the same source continues with them"));
    }
    let drained = drain(record, Request::Stop { lazy: force }).await?;
    let ended = async {
        while record.is_alive() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Its work is done: a process that lingers is no reason to fail.
    let _ = tokio::time::timeout(EXIT_WAIT, ended).await;
    Ok(drained)
}

/// Takes a dead mount out of the mount table.
pub(super) fn detach(point: &Path) -> Outcome {
    crate::fs::front::fuse::detach(point)
        .map_err(|e| Failure { exit: Exit::MountPoint, ..Failure::from(e) }.about(point.display()))
}
