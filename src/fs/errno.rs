//! What can go wrong in a mount, and the one table that says which errno the kernel gets for it.
//!
//! The table is exhaustive on purpose: a new error variant below must be given its number here, where the choice can be reviewed. Transient trouble is `EIO`, never `EAGAIN`: programs don't retry regular files.

use crate::store::{self, Cause};
use std::io;

/// What can go wrong in a mount, before it becomes an errno. Texts name no plaintext path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the source.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Local staging or journal.
    #[error("staging: {0}")]
    Staging(#[source] io::Error),
    /// Local staging or journal that can't be used as it is; nothing of it was changed.
    #[error("journal {path}: {why}")]
    Journal {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Another daemon has this source open.
    #[error("this source is mounted already by process {0}")]
    Busy(u32),
    /// The FUSE device or the mount call.
    #[error("cannot mount: {0}")]
    Mount(String),
    /// The mount point is in use.
    #[error("the mount is busy: files in it are open")]
    MountBusy,
    /// Nothing has this name, or the inode is gone.
    #[error("no such file or directory")]
    NotFound,
    /// The inode that the kernel means isn't what the name stands for any more: it looks the name up again.
    #[error("replaced or removed by somebody else")]
    Stale,
    /// The name is taken.
    #[error("it exists already")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A file was needed.
    #[error("is a directory")]
    IsDirectory,
    /// A directory that has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// An argument that makes no sense: which.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name that isn't UTF-8.
    #[error("the name is not UTF-8")]
    NameEncoding,
    /// What the format can't keep, or the mode of the mount doesn't do.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// A plaintext entry of a mount with a key, or a name whose files are not uploaded.
    #[error("access denied: {0}")]
    Denied(&'static str),
    /// The mount or the source is read-only.
    #[error("the mount is read-only")]
    ReadOnlyMount,
    /// A handle that isn't open, or not for this.
    #[error("bad file handle")]
    BadHandle,
    /// An operation this filesystem doesn't have.
    #[error("not supported")]
    NotSupported,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Larger than a file may be.
    #[error("file too large")]
    TooLarge,
    /// An own file whose header doesn't authenticate, or an object without content.
    #[error("the stored file is damaged")]
    Damaged,
    /// What kept a file from being flushed.
    #[error(transparent)]
    Flush(std::sync::Arc<Error>),
    /// Somebody else changed the same thing, and the mount was told to leave such cases to its user.
    #[error("changed elsewhere too")]
    Conflict,
    /// A deadline was over.
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
    /// The errno for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Store(e) => of_store(e),
            Self::Flush(e) => e.errno(),
            Self::Staging(e) => of_io(e),
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
            | Self::Mount(_)
            | Self::Damaged
            | Self::Conflict
            | Self::TimedOut
            | Self::Stopping => libc::EIO,
        }
    }

    /// Whether the same operation may succeed later without anybody changing anything.
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

/// Only a full disk is told apart: any other local fault says nothing that the caller could use.
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
