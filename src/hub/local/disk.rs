//! Files of an embedded Hub that are there whole or not at all, also after a power cut.
//!
//! [`Publisher`] stages content in a temporary file of the same directory tree, syncs it, renames it to its name and
//! syncs the folder; when [`Staged::publish_new`] or [`Staged::publish_over`] returns, file and name are on disk.
//!
//! Every opened Hub stages in a folder of its own, locked for as long as it lives; what a dead
//! process left behind is removed when the next one opens.

use crate::disk::{Disk, DiskFile, Existing, RealDisk};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Folder below the root where content is staged.
const STAGING: &str = "staging";

/// Publishes files below one root.
#[derive(Clone)]
pub(crate) struct Publisher {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    staging: Arc<StagingFolder>,
    /// Folders below the root whose own entry this process has synced. That a folder exists doesn't say that its entry
    /// is on disk: another process may have made it just now.
    synced: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Publisher {
    /// Takes `root`, which exists, and removes what dead processes have staged there.
    pub(crate) fn open(root: &Path, disk: Arc<dyn Disk>) -> io::Result<Self> {
        let staging = Arc::new(StagingFolder::claim(&root.join(STAGING), disk.as_ref())?);
        Ok(Self { disk, root: root.to_owned(), staging, synced: Arc::default() })
    }

    /// The disk beneath, for reading.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Begins a file. Blocks, as everything here does.
    pub(crate) fn stage(&self) -> io::Result<Staged> {
        let path = self.staging.path.join(uuid::Uuid::now_v7().simple().to_string());
        let file = self.disk.create(&path, Existing::Refused)?;
        Ok(Staged { publisher: self.clone(), path, file, len: 0, published: false })
    }

    /// Makes every folder from the root to `relative`, durably.
    fn ensure_folder(&self, relative: &Path) -> io::Result<()> {
        let mut folder = self.root.clone();
        for component in relative.components() {
            let above = folder.clone();
            folder.push(component);
            if self.synced.lock().is_ok_and(|synced| synced.contains(&folder)) {
                continue;
            }
            self.disk.create_folder(&folder)?;
            self.disk.sync_folder(&above)?;
            if let Ok(mut synced) = self.synced.lock() {
                synced.insert(folder.clone());
            }
        }
        Ok(())
    }
}

/// A file being written; dropped unpublished it vanishes.
pub(crate) struct Staged {
    publisher: Publisher,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Bytes written.
    len: u64,
    published: bool,
}

impl Staged {
    /// Appends.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Gives the content its name below the root and returns when both are on disk. Never replaces: `false` where the
    /// name was taken, even by another process a moment ago; then this content is dropped, and the other is on disk.
    pub(crate) fn publish_new(mut self, relative: impl AsRef<Path>) -> io::Result<bool> {
        let (path, above) = self.prepare(relative.as_ref())?;
        self.published = self.publisher.disk.rename_new(&self.path, &path)?;
        // Where the name was taken, whoever took it may not have synced the folder yet.
        self.publisher.disk.sync_folder(&above)?;
        Ok(self.published)
    }

    /// Gives the content its name below the root, in the place of what has it, and returns when
    /// both are on disk. Who has the other open keeps that.
    pub(crate) fn publish_over(mut self, relative: impl AsRef<Path>) -> io::Result<()> {
        let (path, above) = self.prepare(relative.as_ref())?;
        self.publisher.disk.rename(&self.path, &path)?;
        self.published = true;
        self.publisher.disk.sync_folder(&above)
    }

    /// Syncs the content and makes the folder for it. Gives the final path and that folder.
    fn prepare(&self, relative: &Path) -> io::Result<(PathBuf, PathBuf)> {
        let above = relative.parent().unwrap_or(Path::new(""));
        self.file.sync()?;
        self.publisher.ensure_folder(above)?;
        let root = &self.publisher.root;
        Ok((root.join(relative), root.join(above)))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: what stays is removed when the folder's owner is gone.
            let _ = self.publisher.disk.remove(&self.path);
        }
    }
}

/// The staging folder of one opened Hub. The lock says that its owner lives.
struct StagingFolder {
    path: PathBuf,
    _lock: File,
}

impl StagingFolder {
    fn claim(all: &Path, disk: &dyn Disk) -> io::Result<Self> {
        // Locks are on real folders, whatever disk the files are on.
        let create = |folder: &Path| disk.create_folder(folder).and_then(|()| RealDisk.create_folder(folder));
        create(all)?;
        // Held while folders are made and swept, so that none is swept between being made and being locked.
        let gate = File::open(all)?;
        flock(&gate, FlockOperation::LockExclusive)?;
        sweep(all);
        let path = all.join(uuid::Uuid::now_v7().simple().to_string());
        create(&path)?;
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for StagingFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders below `all` whose owner is gone. Best effort: what fails is tried again at the next opening.
fn sweep(all: &Path) {
    let Ok(entries) = std::fs::read_dir(all) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(folder) = File::open(&path) else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher(root: &Path) -> Publisher {
        Publisher::open(root, Arc::new(RealDisk)).unwrap()
    }

    fn staged_files(root: &Path) -> usize {
        let folders = std::fs::read_dir(root.join(STAGING)).unwrap();
        folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
    }

    #[test]
    fn published_content_is_whole_and_staging_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let publisher = publisher(root.path());
        let mut staged = publisher.stage().unwrap();
        staged.write_all(b"one").unwrap();
        staged.write_all(b"two").unwrap();
        assert!(staged.publish_new("a/b/c").unwrap());
        assert_eq!(std::fs::read(root.path().join("a/b/c")).unwrap(), b"onetwo");
        assert_eq!(staged_files(root.path()), 0);
    }

    #[test]
    fn new_content_never_replaces() {
        let root = tempfile::tempdir().unwrap();
        let publisher = publisher(root.path());
        for (content, published) in [(b"one", true), (b"two", false)] {
            let mut staged = publisher.stage().unwrap();
            staged.write_all(content).unwrap();
            assert_eq!(staged.publish_new("a/b").unwrap(), published);
        }
        assert_eq!(std::fs::read(root.path().join("a/b")).unwrap(), b"one");
        assert_eq!(staged_files(root.path()), 0);
    }

    #[test]
    fn content_is_replaced_where_that_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let publisher = publisher(root.path());
        for content in [b"one", b"two"] {
            let mut staged = publisher.stage().unwrap();
            staged.write_all(content).unwrap();
            staged.publish_over("a/b").unwrap();
            assert_eq!(std::fs::read(root.path().join("a/b")).unwrap(), content);
        }
        assert_eq!(staged_files(root.path()), 0);
    }

    #[test]
    fn abandoned_content_vanishes() {
        let root = tempfile::tempdir().unwrap();
        let publisher = publisher(root.path());
        let mut staged = publisher.stage().unwrap();
        staged.write_all(b"half").unwrap();
        assert_eq!(staged_files(root.path()), 1);
        drop(staged);
        assert_eq!(staged_files(root.path()), 0);
    }

    #[test]
    fn leftovers_of_the_dead_are_swept_and_those_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let living = publisher(root.path());
        let kept = living.stage().unwrap();
        let dead = root.path().join(STAGING).join("dead");
        std::fs::create_dir(&dead).unwrap();
        std::fs::write(dead.join("file"), b"half").unwrap();
        let second = publisher(root.path());
        assert!(!dead.exists());
        assert_eq!(staged_files(root.path()), 1);
        assert!(kept.publish_new("kept").unwrap());
        drop(second);
        assert!(root.path().join("kept").exists());
    }
}
