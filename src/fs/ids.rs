//! Numbers and plain data that all parts of the filesystem share. Nothing here has behaviour.

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory, as the kernel numbers it.
    pub const ROOT: Self = Self(1);
}

/// What an inode is.
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

/// See the module.
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
    /// What `stat` calls it.
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Link(_) => FileKind::Link,
            Self::Fifo => FileKind::Fifo,
            Self::Socket => FileKind::Socket,
            Self::CharDevice(_) => FileKind::CharDevice,
            Self::BlockDevice(_) => FileKind::BlockDevice,
        }
    }

    /// Size as `stat` tells it: that of a link's target.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Link(target) => target.len() as u64,
            _ => 0,
        }
    }

    /// A device's number.
    pub(crate) fn device(&self) -> u32 {
        match self {
            Self::CharDevice(number) | Self::BlockDevice(number) => *number,
            _ => 0,
        }
    }
}

/// A handle's number; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleNo(pub u64);

/// A file that the ledger knows, by number; never reused within a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileNo(pub(crate) u64);

/// A queued operation; higher is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OpNo(pub(crate) u64);

/// What becomes of two changes of the same thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// Both are kept.
    #[default]
    KeepBoth,
    /// Ours replaces theirs.
    Overwrite,
    /// Ours is parked until the user decides.
    Fail,
}
