//! Numbers and plain data that all parts of the filesystem share. Nothing here has behaviour.

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as the kernel numbers it.
    pub const ROOT: Self = Self(1);
}

/// The kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A file that only this machine has, because a bucket can't store it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Special {
    /// A symbolic link, with its target as it was given.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device, with its number as the kernel packs it.
    CharDevice(u32),
    /// A block device, with its number as the kernel packs it.
    BlockDevice(u32),
}

impl Special {
    /// Returns the kind that `stat` reports.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Link(_) => FileKind::Link,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }

    /// Returns the size that `stat` reports: for a link, the length of its target.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Link(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// Returns the number of a device, or 0.
    pub(crate) fn device(&self) -> u32 {
        match self {
            Self::CharDevice(number) | Self::BlockDevice(number) => *number,
            _ => 0,
        }
    }
}

/// The number of a handle. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleNo(pub u64);

/// The number of a file in the ledger. Never reused within a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileNo(pub(crate) u64);

/// The number of a queued operation. A higher number is a later operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OpNo(pub(crate) u64);

/// The way to resolve a conflict of a local change with another client's change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// Keep both versions.
    #[default]
    KeepBoth,
    /// Our change replaces theirs.
    Overwrite,
    /// Our change is parked until the user decides.
    Fail,
}
