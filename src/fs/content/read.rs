//! Reads files: from local content if there is some, else from the version that the handle is pinned to. Both read
//! ahead.

use crate::fs::content::Contents;
use crate::fs::errno::Error;
use crate::fs::handle::{FileHandle, Pinned};
use crate::fs::ids::{HandleNo, Ino};
use crate::fs::lock::lock;
use crate::store::{self, BaseReader, Len, Version};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// Reads the version that a file with local changes is based on, with the read-ahead of a handle.
struct Base<'a> {
    contents: &'a Contents,
    handle: &'a FileHandle,
}

#[async_trait]
impl BaseReader for Base<'_> {
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<Bytes, store::Error> {
        let object = match self.handle.ahead.object(version) {
            Some(object) => object,
            None => self.contents.view.open(version).await?,
        };
        // A read of the kernel is far smaller than 4 GiB.
        let len = (range.end - range.start) as usize;
        self.handle.ahead.read(&self.contents.read_ahead, version, &object, range.start, len).await
    }
}

impl Contents {
    /// Reads from a file. Returns fewer bytes than requested only at the end of the file.
    pub(crate) async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        let handle = self.handles.file(handle)?;
        if !handle.access.read {
            return Err(Error::BadHandle);
        }
        handle.ahead.note(offset, len);
        loop {
            let edit = lock(&self.tree).file(handle.ino)?.edit.clone();
            let Some(edit) = edit else { break };
            // `None` means that the edit ended during the wait. The inode has its version then.
            if let Some(draft) = edit.reader().await.as_ref() {
                tracing::debug!(ino = handle.ino.0, offset, len, "read from local content");
                let base = Base { contents: self, handle: &handle };
                return Ok(draft.read_through(&base, offset, len).await?);
            }
        }
        let Pinned { version, object, .. } = self.pin(&handle).await?;
        tracing::debug!(ino = handle.ino.0, offset, len, "read");
        Ok(handle.ahead.read(&self.read_ahead, &version, &object, offset, len).await?)
    }

    /// Returns the version that a handle reads: the inode's at the time of `open`, or a later one that this mount
    /// committed.
    pub(crate) async fn pin(&self, handle: &FileHandle) -> Result<Pinned, Error> {
        let (version, epoch) = self.readable_version(handle.ino)?;
        let pinned = lock(&handle.pinned).clone();
        if let Some(pinned) = pinned.filter(|pinned| pinned.epoch == epoch) {
            return Ok(pinned);
        }
        let pinned = Pinned { epoch, version, object: self.view.open(&version).await? };
        *lock(&handle.pinned) = Some(pinned.clone());
        Ok(pinned)
    }

    /// Returns the version to read, or the reason why there is none.
    fn readable_version(&self, ino: Ino) -> Result<(Version, u64), Error> {
        let tree = lock(&self.tree);
        let file = tree.file(ino)?;
        match (file.version, file.len) {
            (_, Len::Damaged) | (None, _) => Err(Error::Damaged),
            (Some(version), _) => Ok((version, file.epoch)),
        }
    }
}
