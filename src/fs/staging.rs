//! The folder that holds the journal and the pool of one remote. A file lock keeps a second daemon out of it.

use crate::disk::{Disk, make_folder};
use crate::fs::errno::Error;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder. It is locked while this value lives.
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates and locks the folder of a remote below `cache_dir`. The lock is on the real disk, whatever `disk` is.
    pub(crate) fn open(disk: &dyn Disk, cache_dir: &Path, identity: &[u8; 32]) -> Result<Self, Error> {
        let name: String = identity.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = cache_dir.join("staging").join(name);
        // All of them are synced, because an earlier daemon may have died after it created one and before it synced
        // it.
        for folder in [cache_dir, &cache_dir.join("staging"), &path] {
            make_folder(disk, folder)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy(owner(&mut file))),
            Err(errno) => return Err(std::io::Error::from(errno).into()),
        }
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { path, _lock: file })
    }

    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns the process id in the lock file, or 0 if the process that holds the lock hasn't written it yet.
fn owner(file: &mut File) -> u32 {
    let mut text = String::new();
    let read = file.take(16).read_to_string(&mut text);
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::disk::sim::SimDisk;

    #[test]
    fn new_folder_survives_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        for seed in 1..50 {
            let disk = SimDisk::new(dir.path());
            let folder = Folder::open(&disk, &dir.path().join("a/cache"), &[1; 32]).unwrap();
            let after = disk.cut(seed, dir.path());
            assert!(after.sync_folder(folder.path()).is_ok(), "the folder is missing");
        }
    }

    #[test]
    fn second_daemon_is_refused_with_pid_of_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(&RealDisk, dir.path(), &[1; 32]).unwrap();
        match Folder::open(&RealDisk, dir.path(), &[1; 32]) {
            Err(Error::Busy(pid)) => assert_eq!(pid, std::process::id()),
            _ => panic!("locked twice"),
        }
        assert!(Folder::open(&RealDisk, dir.path(), &[2; 32]).is_ok());
        drop(first);
        assert!(Folder::open(&RealDisk, dir.path(), &[1; 32]).is_ok());
    }
}
