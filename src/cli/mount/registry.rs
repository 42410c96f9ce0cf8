//! Which mounts run: one small file and one control socket for each, in `~/.hf-mount/pids`.
//!
//! The file names the bucket only: a subfolder is a plaintext path and comes over the socket.

use crate::cli::exit::{Failure, Outcome};
use crate::cli::{dirs, process};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A mount as its file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Process id of the daemon.
    pub(super) pid: u32,
    /// Its start time: a pid may be used again.
    pub(super) started: u64,
    /// Unix seconds.
    pub(super) since: u64,
    /// The mount point.
    pub(super) mountpoint: PathBuf,
    /// `namespace/bucket`.
    pub(super) bucket: String,
    /// `fuse`.
    pub(super) backend: String,
}

impl Record {
    /// Whether its daemon runs.
    pub(super) fn is_alive(&self) -> bool {
        process::start_time(self.pid) == Some(self.started)
    }

    /// Its control socket.
    pub(super) fn socket(&self) -> Outcome<PathBuf> {
        socket(&self.mountpoint)
    }
}

/// A registration that ends with its owner.
pub(super) struct Registration(Record);

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(failure) = forget(&self.0) {
            tracing::warn!(error = %failure.message, "cannot remove the registration");
        }
    }
}

/// 16 hex digits that name a mount point in file names: short, since a socket's path may have 108 bytes.
pub(super) fn slug(mountpoint: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex()[..16].to_owned()
}

fn file(mountpoint: &Path) -> Outcome<PathBuf> {
    Ok(dirs::pids()?.join(format!("{}.json", slug(mountpoint))))
}

/// The control socket of a mount point.
pub(super) fn socket(mountpoint: &Path) -> Outcome<PathBuf> {
    Ok(dirs::pids()?.join(format!("{}.sock", slug(mountpoint))))
}

/// Registers a mount of this process.
pub(super) fn register(mountpoint: &Path, bucket: String, backend: &str) -> Outcome<Registration> {
    let pid = std::process::id();
    let record = Record {
        pid,
        started: process::start_time(pid).unwrap_or_default(),
        since: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs()),
        mountpoint: mountpoint.to_owned(),
        bucket,
        backend: backend.to_owned(),
    };
    let path = file(mountpoint)?;
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&path);
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(&record)?)
    };
    write().map_err(|e| Failure::from(e).about(path.display()))?;
    Ok(Registration(record))
}

/// The mount registered at a mount point.
pub(super) fn find(mountpoint: &Path) -> Outcome<Option<Record>> {
    Ok(read(&file(mountpoint)?).filter(|record| record.mountpoint == mountpoint))
}

/// Forgets a mount that has ended. Another daemon may have mounted there since, while this one drained: its files stay.
pub(super) fn forget(record: &Record) -> Outcome {
    if find(&record.mountpoint)?.as_ref() == Some(record) {
        let _ = std::fs::remove_file(record.socket()?);
        let _ = std::fs::remove_file(file(&record.mountpoint)?);
    }
    Ok(())
}

/// All registered mounts, live ones first, then by mount point. Files that don't parse are left
/// alone: they aren't ours.
pub(super) fn all() -> Outcome<Vec<Record>> {
    let dir = dirs::pids()?;
    let entries = std::fs::read_dir(&dir).map_err(|e| Failure::from(e).about(dir.display()))?;
    let mut records: Vec<Record> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .filter_map(|path| read(&path))
        .collect();
    records.sort_by_key(|record| (!record.is_alive(), record.mountpoint.clone()));
    Ok(records)
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
