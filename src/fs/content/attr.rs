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
/// Blocks in all, and free ones (4 PiB): a bucket has no size, and programs refuse to copy into what looks full.
pub const STATFS_BLOCKS: u64 = 1 << 40;
/// Longest name, bytes.
pub const STATFS_NAME: u32 = crate::fs::tree::listing::NAME_MAX as u32;

/// Granularity of every time that is shown: that of the source, so that an upload changes none.
pub const TIME_GRANULARITY: Duration = MTIME_GRANULARITY;

/// What `setattr` is to change.
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
    /// What `stat` tells. What may have changed at the source is looked at again.
    pub(crate) async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        let parent = {
            let tree = lock(&self.tree);
            let node = tree.node(ino)?;
            let clean = node.as_file().map_or(true, |file| file.edit.is_none());
            // What was removed, or replaced while it was open, has no state at the source any more.
            node.place.as_ref().filter(|_| clean && tree.path(ino).is_ok()).map(|(parent, _)| *parent)
        };
        if let Some(parent) = parent {
            self.directories.load(parent).await?;
        }
        self.directories.measure(&[ino]).await?;
        lock(&self.tree).attr(ino, &self.options)
    }

    /// Changes attributes. All but the size, and the time of a file that isn't committed yet, are remembered in memory only.
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
            let looks = &mut tree.node_mut(ino)?.looks;
            looks.mode = set.mode.map(|mode| mode & 0o7777).or(looks.mode);
            looks.uid = set.uid.or(looks.uid);
            looks.gid = set.gid.or(looks.gid);
            looks.atime = set.atime.or(looks.atime);
            looks.mtime = set.mtime.or(looks.mtime);
            looks.ctime = Some(SystemTime::now());
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
