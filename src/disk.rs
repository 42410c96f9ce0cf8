//! The disk that promises rest on: the files of staging and journal, and those of the embedded Hub.
//!
//! The effect of a call is visible immediately. A power cut may undo it, wholly or in parts, until it is synced: a
//! file's bytes and length by [`DiskFile::sync`] or [`DiskFile::sync_data`], whatever names the file has; names by
//! [`Disk::sync_folder`] of the folder they are in, whatever is in the file. Nothing is in order but by syncs.
//! [`RealDisk`] is this machine's; tests put one beneath that loses all that it may (`sim`).
//!
//! Locks (`flock`) aren't part of it: they last as long as a process, and are taken on real folders. Offsets and
//! lengths are bytes. All calls block. Failures are the system's.

#![cfg_attr(not(feature = "local-hub"), allow(dead_code, reason = "part of it is for the embedded Hub only"))]

#[cfg(test)]
pub(crate) mod sim;

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// Names of files and folders.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing, and makes it (0600) where it is missing. The name is
    /// durable once the folder is synced.
    fn create(&self, path: &Path, existing: Existing) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file, in the place of whatever has the new name. After a power cut it has the old name or the new one,
    /// which is durable once the folder is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// The same unless the new name is taken; whether it did.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<bool>;
    /// Removes a file's name. Durable once the folder is synced.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes a folder (0700); fine where it is there. Durable once the folder above is synced.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Makes all changes of names in a folder durable that came before.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// What [`Disk::create`] makes of a file that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// An error.
    Refused,
    /// It is opened as it is.
    Kept,
    /// It is cut to nothing; durable once it is synced.
    Emptied,
}

/// An open file of a [`Disk`]: a file, not a name. It stays what it is when another takes its name.
pub(crate) trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset`; an error where the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes`, beyond the end too. Until it is synced, each sector is as it was before or after.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Length now.
    fn size(&self) -> io::Result<u64>;
    /// Cuts the file, or makes it longer with zeros. Durable once it is synced.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Finds room on disk for a range, so that writing there can't fail for want of it.
    /// `Unsupported` where the file system can't.
    fn allocate(&self, offset: u64, len: u64, beyond: Beyond) -> io::Result<()>;
    /// Makes content and length durable, and with them all that is known of the file.
    fn sync(&self) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// What [`DiskFile::allocate`] does to the length where the range goes beyond the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// The file becomes longer; what is new reads as zeros.
    Lengthens,
    /// It stays: the room is there for what will be appended.
    Reserves,
}

/// Makes a folder and those above it that are missing, and sees to it that a power cut leaves it there. That a folder
/// exists doesn't say that its name is on disk: whoever made it may have died before.
pub(crate) fn make_folder(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    match disk.create_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_folder(disk, above)?;
            disk.create_folder(path)?;
        }
        outcome => outcome?,
    }
    match disk.sync_folder(above) {
        // A folder that we may not read can't be synced by us; what we have in it is up to those who gave it to us.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome,
    }
}

/// The disk of this machine.
#[derive(Debug, Default)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn create(&self, path: &Path, existing: Existing) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match existing {
            Existing::Refused => options.create_new(true),
            Existing::Kept => options.create(true).truncate(false),
            Existing::Emptied => options.create(true).truncate(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<bool> {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            // Not every file system has it; hard links nearly all have.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_new(from, to),
            Err(e) => Err(e.into()),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            outcome => outcome,
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

fn link_new(from: &Path, to: &Path) -> io::Result<bool> {
    match std::fs::hard_link(from, to) {
        Ok(()) => {
            // The content has its name; a second one in staging is swept later at worst.
            let _ = std::fs::remove_file(from);
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

impl DiskFile for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn allocate(&self, offset: u64, len: u64, beyond: Beyond) -> io::Result<()> {
        let flags = match beyond {
            Beyond::Lengthens => FallocateFlags::empty(),
            Beyond::Reserves => FallocateFlags::KEEP_SIZE,
        };
        match fallocate(self, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            outcome => Ok(outcome?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_refused_kept_or_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        RealDisk.create(&path, Existing::Refused).unwrap().write_all_at(b"content", 0).unwrap();
        assert!(RealDisk.create(&path, Existing::Refused).is_err());
        assert_eq!(RealDisk.create(&path, Existing::Kept).unwrap().size().unwrap(), 7);
        assert_eq!(RealDisk.create(&path, Existing::Emptied).unwrap().size().unwrap(), 0);
    }

    #[test]
    fn a_name_that_is_taken_stays_with_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, b"one").unwrap();
        std::fs::write(&two, b"two").unwrap();
        assert!(!RealDisk.rename_new(&one, &two).unwrap());
        assert!(!link_new(&one, &two).unwrap());
        assert_eq!(std::fs::read(&two).unwrap(), b"two");
        RealDisk.rename(&one, &two).unwrap();
        assert!(RealDisk.rename_new(&two, &one).unwrap());
        assert!(link_new(&one, &two).unwrap());
        assert_eq!((std::fs::read(&two).unwrap(), one.exists()), (b"one".to_vec(), false));
    }

    #[test]
    fn room_is_found_with_and_without_length() {
        let file: Box<dyn DiskFile> = Box::new(tempfile::tempfile().unwrap());
        for (beyond, len) in [(Beyond::Reserves, 0), (Beyond::Lengthens, 8192)] {
            match file.allocate(0, 8192, beyond) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                outcome => {
                    outcome.unwrap();
                    assert_eq!(file.size().unwrap(), len);
                }
            }
        }
    }
}
