//! `status`.

use super::control::{Answer, Live, Request};
use super::{control, registry};
use crate::cli::exit::Outcome;
use crate::cli::term::say;
use crate::cli::{print_json, term};
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;

/// One mount, as the JSON form has it.
#[derive(Serialize)]
struct Mount {
    source: String,
    mountpoint: String,
    backend: String,
    pid: u32,
    alive: bool,
    uptime_s: u64,
    key_id: Option<String>,
    pending_files: u64,
    pending_bytes: u64,
    parked_files: u64,
    conflicts: u64,
    unreadable_entries: u64,
    inodes: u64,
    /// For people only.
    #[serde(skip)]
    kept_files: u64,
    /// For people only.
    #[serde(skip)]
    overlay: bool,
    last_error: Option<String>,
    last_poll: Option<String>,
}

#[derive(Serialize)]
struct Mounts {
    mounts: Vec<Mount>,
}

impl Mount {
    fn new(record: &registry::Record, live: Option<Live>) -> Self {
        let alive = live.is_some();
        let (source, uptime_s, key_id, overlay, status) = match live {
            Some(live) => (live.source, live.uptime_s, live.key_id, live.overlay, live.status),
            None => (record.bucket.clone(), 0, None, false, crate::fs::Status::default()),
        };
        Self {
            source,
            mountpoint: record.mountpoint.display().to_string(),
            backend: record.backend.clone(),
            pid: record.pid,
            alive,
            uptime_s,
            key_id,
            pending_files: status.pending_files,
            pending_bytes: status.pending_bytes,
            parked_files: status.parked_files,
            conflicts: status.conflicts,
            unreadable_entries: status.unreadable_entries,
            inodes: status.inodes,
            kept_files: status.kept_files,
            overlay,
            last_error: status.last_error,
            last_poll: status.last_poll,
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("{} on {}", term::escape(&self.source), term::escape(&self.mountpoint));
        if !self.alive {
            text.push_str(
                "\n  dead: its daemon has died; `hf-mount stop` cleans up, a new `start` continues with the pending changes\n",
            );
            return text;
        }
        let key = self.key_id.as_deref().unwrap_or("none (plain)");
        let mode = if self.overlay { ", overlay" } else { "" };
        let kept = match self.overlay {
            true => "files are kept sealed in the local layer",
            false => "files such as .DS_Store are kept on this machine and not uploaded",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "\n  {}{mode}, pid {}, up {} s, key {key}", self.backend, self.pid, self.uptime_s);
        let _ = writeln!(text, "  pending: {} files, {} bytes", self.pending_files, self.pending_bytes);
        for (count, what) in [
            (self.parked_files, "files were refused by the Hub; their data is kept"),
            (self.conflicts, "conflicts were kept"),
            (self.kept_files, kept),
            (
                self.unreadable_entries,
                "entries of the bucket are not shown: encrypted with another key, damaged, with an invalid name, or with the name of another entry",
            ),
        ] {
            if count > 0 {
                let _ = writeln!(text, "  {count} {what}");
            }
        }
        if let Some(error) = &self.last_error {
            let _ = writeln!(text, "  last error: {}", term::escape(error));
        }
        text
    }
}

/// `status`.
pub(super) async fn status(json: bool) -> Outcome<ExitCode> {
    let records = registry::all()?;
    // Side by side: a daemon that doesn't answer delays no other.
    let mounts = futures::future::join_all(records.iter().map(async |record| {
        let live = match record.is_alive() {
            true => match control::ask(record, Request::Status).await {
                Ok(Answer::Status(live)) => Some(*live),
                Ok(_) => None,
                Err(failure) => {
                    eprintln!("warning: {}", term::escape(&failure.message));
                    None
                }
            },
            false => None,
        };
        Mount::new(record, live)
    }));
    let mounts = mounts.await;
    if json {
        print_json(&Mounts { mounts })?;
    } else if mounts.is_empty() {
        say!("nothing is mounted");
    } else {
        mounts.iter().for_each(|mount| term::print(format_args!("{}", mount.describe())));
    }
    Ok(ExitCode::SUCCESS)
}
