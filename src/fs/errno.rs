//! Errors of a mount, and the one table that maps them to the errno that the kernel gets.
//!
//! The table is exhaustive on purpose: each new variant must be given its number here, where the choice can be
//! reviewed. Transient failures are `EIO`, never `EAGAIN`, because programs don't retry operations on regular files.

use crate::store::{self, Cause};
use std::io;

/// An error of a mount, before it becomes an errno. The texts contain no plaintext paths.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the remote.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An I/O error of the local staging or journal.
    #[error("staging: {0}")]
    Staging(#[source] io::Error),
    /// An I/O error of the local layer of an overlay.
    #[error("local layer: {0}")]
    Local(#[source] io::Error),
    /// Local staging or a journal that can't be used as it is. Nothing in it was changed.
    #[error("journal {path}: {why}")]
    Journal {
        /// The file.
        path: String,
        /// The fault, and the next step.
        why: String,
    },
    /// A journal that an earlier version of this program wrote. Nothing in it was changed. That version can upload the
    /// changes that it holds.
    #[error("journal {0}: it was written by an earlier version of this program; the file is kept as it is")]
    EarlierJournal(String),
    /// Another daemon has mounted this remote.
    #[error("this bucket or folder is already mounted by process {0}")]
    Busy(u32),
    /// An error of the FUSE device or of the mount call.
    #[error("cannot mount: {0}")]
    Mount(String),
    /// The mount point is in use.
    #[error("the mount is busy: files in it are open")]
    MountBusy,
    /// The name doesn't exist, or the inode was removed.
    #[error("no such file or directory")]
    NotFound,
    /// The name no longer stands for the inode that the kernel means. The kernel then repeats the lookup.
    #[error("another client replaced or removed it")]
    Stale,
    /// The name already exists.
    #[error("it already exists")]
    Exists,
    /// The operation needs a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The operation needs a file.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An invalid argument, with the reason.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The name isn't UTF-8.
    #[error("the name is not UTF-8")]
    NameEncoding,
    /// An operation that the format can't store, or that the mount's mode doesn't support.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// An access to a plaintext entry of a mount with a key, or to a name whose files are not uploaded.
    #[error("access denied: {0}")]
    Denied(&'static str),
    /// The mount or the remote is read-only.
    #[error("the mount is read-only")]
    ReadOnlyMount,
    /// The handle isn't open, or not open for this operation.
    #[error("bad file handle")]
    BadHandle,
    /// An operation that this filesystem doesn't have.
    #[error("not supported")]
    NotSupported,
    /// The extended attribute doesn't exist.
    #[error("no such attribute")]
    NoAttribute,
    /// The size exceeds the largest possible file.
    #[error("file too large")]
    TooLarge,
    /// An own file whose header doesn't authenticate, or an object without content.
    #[error("the stored file is damaged")]
    Damaged,
    /// The error that prevented a file from being flushed.
    #[error(transparent)]
    Flush(std::sync::Arc<Error>),
    /// Another client changed the file too, and the mount's policy leaves conflicts to the user.
    #[error("conflict: also changed remotely")]
    Conflict,
    /// A deadline has passed.
    #[error("timed out")]
    TimedOut,
    /// The daemon is shutting down.
    #[error("the mount is shutting down")]
    Stopping,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Staging(error)
    }
}

impl Error {
    /// Returns the errno of an error.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Store(e) => of_store(e),
            Self::Flush(e) => e.errno(),
            Self::Staging(e) => of_io(e),
            // The program would get this number from the folder itself.
            Self::Local(e) => e.raw_os_error().unwrap_or(libc::EIO),
            Self::NotFound => libc::ENOENT,
            Self::Stale => libc::ESTALE,
            Self::Exists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::Invalid(_) => libc::EINVAL,
            Self::NameEncoding => libc::EILSEQ,
            Self::NotPermitted(_) => libc::EPERM,
            Self::Denied(_) => libc::EACCES,
            Self::ReadOnlyMount => libc::EROFS,
            Self::BadHandle => libc::EBADF,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::NoAttribute => libc::ENODATA,
            Self::TooLarge => libc::EFBIG,
            Self::Busy(_) | Self::MountBusy => libc::EBUSY,
            Self::Journal { .. }
            | Self::EarlierJournal(_)
            | Self::Mount(_)
            | Self::Damaged
            | Self::Conflict
            | Self::TimedOut
            | Self::Stopping => libc::EIO,
        }
    }

    /// Returns true if the operation may succeed when it is repeated later without any change.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(e) => e.is_transient(),
            Self::Flush(e) => e.is_transient(),
            Self::TimedOut => true,
            _ => false,
        }
    }
}

fn of_store(error: &store::Error) -> i32 {
    match error.cause() {
        Cause::NotFound => libc::ENOENT,
        Cause::InvalidName => libc::EINVAL,
        Cause::NameTooLong => libc::ENAMETOOLONG,
        Cause::ReadOnly | Cause::Denied => libc::EACCES,
        Cause::NotEmpty => libc::ENOTEMPTY,
        Cause::NoSpace => libc::ENOSPC,
        Cause::LocalQuota => libc::EDQUOT,
        Cause::TooLarge => libc::EFBIG,
        Cause::Integrity | Cause::Other => libc::EIO,
    }
}

/// Returns the errno of an I/O error. Only a full disk or quota and a too large file are distinguished, because a
/// caller can't act on any other local error.
fn of_io(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_side_is_eacces_and_read_only_mount_is_erofs() {
        assert_eq!(Error::Store(store::Error::ReadOnly).errno(), libc::EACCES);
        assert_eq!(Error::ReadOnlyMount.errno(), libc::EROFS);
    }

    #[test]
    fn no_transient_error_becomes_eagain() {
        let busy = |status| store::Error::Hub(store::HubError::Status { status, message: String::new() });
        for status in [408, 429, 500, 503] {
            let error = Error::Store(busy(status));
            assert!(error.is_transient());
            assert_eq!(error.errno(), libc::EIO);
        }
    }

    #[test]
    fn quota_and_full_disk_are_enospc() {
        assert_eq!(Error::Store(store::Error::Hub(store::HubError::Quota(String::new()))).errno(), libc::ENOSPC);
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Error::Staging(full()).errno(), libc::ENOSPC);
        assert_eq!(Error::Store(store::Error::Io(full())).errno(), libc::ENOSPC);
    }
}
