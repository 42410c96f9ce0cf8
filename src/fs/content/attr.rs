//! Attributes: `stat`, `chmod`, `chown`, `utimes`, `statfs`.

use crate::fs::content::Contents;
use crate::fs::errno::Error;
use crate::fs::ids::Ino;
use crate::fs::lock::lock;
use crate::fs::tree::inode::Attr;
use crate::store::{MTIME_GRANULARITY, stored_mtime};
use std::time::{Duration, SystemTime};

/// Size of a block in `statfs`, bytes.
pub const STATFS_BLOCK: u32 = 4096;
/// Total and free blocks in `statfs` (4 PiB). A bucket has no size limit, and programs refuse to copy into a
/// filesystem that seems to be full.
pub const STATFS_BLOCKS: u64 = 1 << 40;
/// Longest name, bytes.
pub const STATFS_NAME: u32 = crate::fs::tree::listing::NAME_MAX as u32;

/// Granularity of all times that are shown. It is that of the remote, so that an upload changes none of them.
pub const TIME_GRANULARITY: Duration = MTIME_GRANULARITY;

/// The attributes that `setattr` changes. `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub len: Option<u64>,
    /// Last access.
    pub atime: Option<SystemTime>,
    /// Last change of the content.
    pub mtime: Option<SystemTime>,
}

impl Contents {
    /// Returns the attributes of an inode. Revalidates what may have changed at the remote.
    pub(crate) async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        let parent = {
            let tree = lock(&self.tree);
            let node = tree.node(ino)?;
            let clean = node.as_file().map_or(true, |file| file.edit.is_none());
            // A file that was removed, or replaced while it was open, has no state at the remote any more.
            node.place.as_ref().filter(|_| clean && tree.path(ino).is_ok()).map(|(parent, _)| *parent)
        };
        if let Some(parent) = parent {
            self.directories.load(parent).await?;
        }
        self.directories.measure(&[ino]).await?;
        lock(&self.tree).attr(ino, &self.options)
    }

    /// Changes attributes. The size is always stored, and so is the modification time of a file that isn't committed
    /// yet. All other attributes are kept in memory only.
    pub(crate) async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        self.gate.check_writable()?;
        if let Some(len) = set.len {
            self.truncate(ino, len).await?;
        }
        if let Some(mtime) = set.mtime {
            self.set_mtime(ino, mtime)?;
        }
        {
            let mut tree = lock(&self.tree);
            let overrides = &mut tree.node_mut(ino)?.overrides;
            overrides.mode = set.mode.map(|mode| mode & 0o7777).or(overrides.mode);
            overrides.uid = set.uid.or(overrides.uid);
            overrides.gid = set.gid.or(overrides.gid);
            overrides.atime = set.atime.or(overrides.atime);
            overrides.mtime = set.mtime.or(overrides.mtime);
            overrides.ctime = Some(SystemTime::now());
        }
        self.directories.measure(&[ino]).await?;
        lock(&self.tree).attr(ino, &self.options)
    }

    fn set_mtime(&self, ino: Ino, mtime: SystemTime) -> Result<(), Error> {
        let edit = lock(&self.tree).node(ino)?.as_file().ok().and_then(|file| file.edit.clone());
        let Some(edit) = edit else { return Ok(()) };
        edit.set_mtime(&self.journal, stored_mtime(mtime)).map(|_| ())
    }
}
