//! The system calls of the local layer: operations on a folder by relative paths.
//!
//! The folder is held by its descriptor, so a mount that covers its path doesn't hide it. Every path is resolved with
//! `openat2`, which refuses symbolic links, other mounts and everything outside the folder. All calls block.

use crate::fs::{Access, Error, FileKind, SetAttr};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Tries of a resolution that a rename elsewhere disturbs.
const TRIES: u32 = 16;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The error for a name of which the folder has an entry that isn't shown.
pub(super) const HIDDEN: Error =
    Error::NotPermitted("the local layer has a symbolic link or a special file of this name, which is not shown");

/// The folder. See the module.
pub(super) struct Folder {
    root: OwnedFd,
}

/// The entry that the folder has at a path.
pub(super) enum Seen {
    /// There is none.
    Absent,
    /// There is one that isn't shown: a symbolic link, a special file, or a mount.
    Hidden,
    /// A file or a folder.
    Entry(Stat),
}

impl Folder {
    /// Opens a folder.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = Self { root };
        match folder.resolve("", OFlags::PATH, Mode::empty()) {
            Ok(_) => Ok(folder),
            Err(Errno::NOSYS) => {
                let message = "an overlay needs the system call openat2, which Linux has since 5.6";
                Err(io::Error::new(io::ErrorKind::Unsupported, message))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a path. Fails with `LOOP` if a component is a symbolic link, and with `XDEV` if one is a mount.
    fn resolve(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            match rustix::fs::openat2(&self.root, path, flags, mode, RESOLVE) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::IO)
    }

    /// Opens the folder that has the last component of a path, and returns that component too.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), Error> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let opened = self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        Ok((opened.map_err(error)?, name))
    }

    /// Returns a descriptor of a file or folder for operations on its attributes.
    pub(super) fn handle(&self, path: &str) -> Result<OwnedFd, Error> {
        self.resolve(path, OFlags::PATH, Mode::empty()).map_err(error)
    }

    /// Returns the entry at a path.
    pub(super) fn stat(&self, path: &str) -> Result<Seen, Error> {
        let fd = match self.resolve(path, OFlags::PATH, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Seen::Absent),
            Err(Errno::LOOP | Errno::XDEV) => return Ok(Seen::Hidden),
            Err(errno) => return Err(error(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(error)?;
        Ok(if kind(&stat).is_some() { Seen::Entry(stat) } else { Seen::Hidden })
    }

    /// Returns the files and folders in a folder. Leaves out names that aren't UTF-8.
    pub(super) fn list(&self, path: &str) -> Result<Vec<(String, FileKind)>, Error> {
        let opened = self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(error)?;
        let mut found = Vec::new();
        for entry in Dir::new(opened).map_err(error)? {
            let entry = entry.map_err(error)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::RegularFile => Some(FileKind::File),
                // A mount is not shown. Some filesystems don't report the type of an entry.
                FileType::Directory | FileType::Unknown => match self.stat(&join(path, name))? {
                    Seen::Entry(stat) => kind(&stat),
                    Seen::Absent | Seen::Hidden => None,
                },
                _ => None,
            };
            found.extend(kind.map(|kind| (name.to_owned(), kind)));
        }
        Ok(found)
    }

    /// Opens a file.
    pub(super) fn open_file(&self, path: &str, access: Access) -> Result<File, Error> {
        let opened = self.resolve(path, flags(access) | OFlags::NONBLOCK, Mode::empty()).map_err(error)?;
        let stat = rustix::fs::fstat(&opened).map_err(error)?;
        match kind(&stat) {
            Some(FileKind::File) => Ok(opened.into()),
            Some(_) => Err(Error::IsDirectory),
            None => Err(HIDDEN),
        }
    }

    /// Creates a file, which only this user can open until its attributes are set.
    pub(super) fn create_file(&self, path: &str, access: Access) -> Result<File, Error> {
        let flags = flags(access) | OFlags::CREATE | OFlags::EXCL;
        match self.resolve(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(opened) => Ok(opened.into()),
            Err(Errno::EXIST) if matches!(self.stat(path)?, Seen::Hidden) => Err(HIDDEN),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Creates a folder, and returns a descriptor of it.
    pub(super) fn create_folder(&self, path: &str) -> Result<OwnedFd, Error> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Ok(()) => self.handle(path),
            Err(Errno::EXIST) if matches!(self.stat(path)?, Seen::Hidden) => Err(HIDDEN),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Sets the attributes of a new entry. Only root can give it to another user.
    pub(super) fn set_new(&self, fd: BorrowedFd<'_>, path: &str, mode: u16, owner: (u32, u32)) -> Result<(), Error> {
        const SET_GROUP_ID: u32 = 0o2000;
        let (parent, _) = self.parent(path)?;
        let (above, stat) = (rustix::fs::fstat(&parent).map_err(error)?, rustix::fs::fstat(fd).map_err(error)?);
        // Such a folder passes its group on, and the system has done so.
        let inherits = above.st_mode & SET_GROUP_ID != 0;
        let gid = if inherits { stat.st_gid } else { owner.1 };
        if rustix::process::geteuid().is_root() && (stat.st_uid, stat.st_gid) != (owner.0, gid) {
            chown(fd, Some(owner.0), Some(gid))?;
        }
        let bit = if kind(&stat) == Some(FileKind::Directory) { stat.st_mode & SET_GROUP_ID } else { 0 };
        rustix::fs::chmodat(rustix::fs::CWD, magic(fd), Mode::from_raw_mode(u32::from(mode) | bit), AtFlags::empty())
            .map_err(error)
    }

    /// Removes a file, or an empty folder.
    pub(super) fn remove(&self, path: &str, is_folder: bool) -> Result<(), Error> {
        if !matches!(self.stat(path)?, Seen::Entry(_)) {
            return Err(Error::NotFound);
        }
        let (parent, name) = self.parent(path)?;
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&parent, name, flags).map_err(error)
    }

    /// Moves an entry. Replaces a file, or an empty folder, at the target.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        match (self.stat(from)?, self.stat(to)?) {
            (Seen::Absent | Seen::Hidden, _) => return Err(Error::NotFound),
            (_, Seen::Hidden) => return Err(HIDDEN),
            _ => {}
        }
        let ((from, name), (to, to_name)) = (self.parent(from)?, self.parent(to)?);
        rustix::fs::renameat(&from, name, &to, to_name).map_err(error)
    }

    /// Makes all changes in the folder durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.root).map_err(error)
    }
}

/// Changes the attributes of an open entry. The descriptor may be one of the kind `O_PATH`.
pub(super) fn set_attributes(fd: BorrowedFd<'_>, set: SetAttr) -> Result<(), Error> {
    if let Some(len) = set.len {
        let file = rustix::fs::open(magic(fd), OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
        rustix::fs::ftruncate(file.map_err(error)?, len).map_err(error)?;
    }
    if set.uid.is_some() || set.gid.is_some() {
        chown(fd, set.uid, set.gid)?;
    }
    if let Some(mode) = set.mode {
        let mode = Mode::from_raw_mode(mode.into());
        rustix::fs::chmodat(rustix::fs::CWD, magic(fd), mode, AtFlags::empty()).map_err(error)?;
    }
    if set.atime.is_some() || set.mtime.is_some() {
        let times = Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
        rustix::fs::utimensat(rustix::fs::CWD, magic(fd), &times, AtFlags::empty()).map_err(error)?;
    }
    Ok(())
}

/// Joins a relative path and a name.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// Returns the kind of an entry that is shown.
pub(super) fn kind(stat: &Stat) -> Option<FileKind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(FileKind::File),
        FileType::Directory => Some(FileKind::Directory),
        _ => None,
    }
}

/// Returns the time that a `stat` has as seconds and nanoseconds.
pub(super) fn time(seconds: i64, nanos: i64) -> SystemTime {
    let (whole, nanos) = (Duration::from_secs(seconds.unsigned_abs()), Duration::from_nanos(nanos.unsigned_abs()));
    let epoch = SystemTime::UNIX_EPOCH;
    let second = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    second.and_then(|time| time.checked_add(nanos)).unwrap_or(epoch)
}

/// Returns the error of a system call.
pub(super) fn error(errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::NotFound,
        Errno::EXIST => Error::Exists,
        Errno::NOTDIR => Error::NotDirectory,
        Errno::ISDIR => Error::IsDirectory,
        Errno::NOTEMPTY => Error::NotEmpty,
        Errno::LOOP | Errno::XDEV => HIDDEN,
        errno => Error::Local(errno.into()),
    }
}

/// Returns the path under which the system has the file of a descriptor. Many calls don't take a descriptor of the kind
/// `O_PATH`, but they take this path.
fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn chown(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Error> {
    let (uid, gid) = (uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw));
    rustix::fs::chownat(fd.as_fd(), "", uid, gid, AtFlags::EMPTY_PATH).map_err(error)
}

fn timespec(time: Option<SystemTime>) -> Timespec {
    let Some(time) = time else { return Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT } };
    let seconds = |part: Duration| i64::try_from(part.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Timespec { tv_sec: seconds(after), tv_nsec: after.subsec_nanos().into() },
        Err(before) => {
            let before = before.duration();
            let nanos = before.subsec_nanos();
            let borrow = i64::from(nanos > 0);
            let tv_nsec = if nanos > 0 { i64::from(1_000_000_000 - nanos) } else { 0 };
            Timespec { tv_sec: -seconds(before) - borrow, tv_nsec }
        }
    }
}

fn flags(access: Access) -> OFlags {
    let mut flags = match (access.read, access.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    flags.set(OFlags::APPEND, access.append);
    flags.set(OFlags::TRUNC, access.truncate);
    flags
}
