//! The operations that a front end calls, with one implementation for each kind of mount: [`Vfs`], and the overlay.
//!
//! Inode numbers and handles belong to the filesystem that returned them. The documentation of [`Vfs`] describes each
//! operation.

use crate::fs::{
    Access, Allocate, Attr, Create, Error, HandleNo, Ino, KernelCache, Listed, NewAttrs, Opened, SetAttr, SetXattr,
    Special, Vfs,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Takes an entry of a directory, and the offset of the next one. Returns true if it is full and did not take it.
pub type EntrySink<'a> = &'a mut dyn FnMut(&Listed, u64) -> bool;
/// Takes an entry of a directory with its attributes, as [`EntrySink`] does.
pub type AttrSink<'a> = &'a mut dyn FnMut(&Listed, &Attr, u64) -> bool;

/// A filesystem. See the module.
#[async_trait]
pub trait Filesystem: Send + Sync + 'static {
    /// Finds a name and adds one kernel reference to its inode.
    async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error>;
    /// Drops `count` references of the kernel.
    fn forget(&self, ino: Ino, count: u64);
    /// Returns how much longer the kernel may remember that a name of a directory is missing.
    fn absent_for(&self, parent: Ino) -> Duration;
    /// Returns the attributes of an inode.
    async fn getattr(&self, ino: Ino) -> Result<Attr, Error>;
    /// Changes attributes.
    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error>;
    /// Returns the target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error>;
    /// Opens a directory. The handle shows the entries that the directory has now.
    async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error>;
    /// Passes the entries of an open directory to `sink`, from `offset` on.
    fn readdir(&self, handle: HandleNo, offset: u64, sink: EntrySink<'_>) -> Result<(), Error>;
    /// Reads the attributes of the entries that follow `offset`, for [`Filesystem::readdirplus`].
    async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error>;
    /// Passes entries with their attributes to `sink`. Each entry that it takes counts as one kernel reference, except
    /// for `.` and `..`.
    fn readdirplus(&self, handle: HandleNo, offset: u64, sink: AttrSink<'_>) -> Result<(), Error>;
    /// Closes a directory.
    fn releasedir(&self, handle: HandleNo) -> Result<(), Error>;
    /// Creates and opens a file, or opens the existing one. The attributes count as one kernel reference.
    async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error>;
    /// Creates an empty file and closes it. The attributes count as one kernel reference.
    async fn create_closed(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        let access = Access { write: true, ..Access::default() };
        let (attr, opened) = self.create(parent, name, Create { access, exclusive: true, new_attrs }).await?;
        self.abandon(opened.handle).await;
        Ok(attr)
    }
    /// Creates a directory. The attributes count as one kernel reference.
    async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error>;
    /// Creates a special file. The attributes count as one kernel reference.
    async fn create_special(
        &self,
        parent: Ino,
        name: &str,
        special: Special,
        new_attrs: NewAttrs,
    ) -> Result<Attr, Error>;
    /// Creates a file with the content of another file. The attributes count as one kernel reference.
    async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error>;
    /// Removes a file's name. Open handles can still read the file.
    async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error>;
    /// Removes an empty directory.
    async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error>;
    /// Moves a file or a directory. With `replace`, removes an existing target.
    async fn rename(&self, parent: Ino, name: &str, to_parent: Ino, to_name: &str, replace: bool) -> Result<(), Error>;
    /// Opens a file.
    async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error>;
    /// Reads from a file. Returns fewer bytes than requested only at the end of the file.
    async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error>;
    /// Writes all of `data`.
    async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error>;
    /// Fills a range with zeros, or extends the file.
    async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error>;
    /// Copies a whole file into an empty one without moving bytes, or fails with `NotSupported`.
    async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error>;
    /// Returns how long the storage of what a handle has written may take.
    fn timeout(&self, handle: HandleNo) -> Duration;
    /// Persists all writes, as every `close` of a descriptor does.
    async fn flush_file(&self, handle: HandleNo) -> Result<(), Error>;
    /// Makes all writes to the file durable.
    async fn fsync(&self, handle: HandleNo) -> Result<(), Error>;
    /// Makes all operations on names so far durable.
    async fn fsyncdir(&self) -> Result<(), Error>;
    /// Closes a handle.
    async fn release(&self, handle: HandleNo) -> Result<(), Error>;
    /// Closes a handle whose number was never returned to the kernel.
    async fn abandon(&self, handle: HandleNo);
    /// Returns the value of an extended attribute.
    fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error>;
    /// Returns the names of the extended attributes, each terminated by NUL.
    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error>;
    /// Sets an extended attribute.
    fn setxattr(&self, ino: Ino, name: &str, value: &[u8], how: SetXattr) -> Result<(), Error>;
    /// Removes an extended attribute.
    fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Error>;
    /// Returns the longest that one operation may wait for the Hub.
    fn reply_deadline(&self) -> Duration;
    /// Returns how long the kernel may cache attributes and entries.
    fn metadata_ttl(&self) -> Duration;
    /// Tells which kernel has references to inodes. Where their number has a limit, it is asked to drop some.
    fn use_kernel(&self, _cache: Arc<dyn KernelCache>) -> Result<(), Error> {
        Ok(())
    }
    /// Asks the kernel nothing more.
    fn leave_kernel(&self) {}
}

#[async_trait]
impl Filesystem for Vfs {
    async fn lookup(&self, parent: Ino, name: &str) -> Result<Attr, Error> {
        Vfs::lookup(self, parent, name).await
    }

    fn forget(&self, ino: Ino, count: u64) {
        Vfs::forget(self, ino, count)
    }

    fn absent_for(&self, parent: Ino) -> Duration {
        Vfs::absent_for(self, parent)
    }

    async fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        Vfs::getattr(self, ino).await
    }

    async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr, Error> {
        Vfs::setattr(self, ino, set).await
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        Vfs::readlink(self, ino)
    }

    async fn opendir(&self, ino: Ino) -> Result<HandleNo, Error> {
        Vfs::opendir(self, ino).await
    }

    fn readdir(&self, handle: HandleNo, offset: u64, sink: EntrySink<'_>) -> Result<(), Error> {
        Vfs::readdir(self, handle, offset, sink)
    }

    async fn measure_page(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        Vfs::measure_page(self, handle, offset).await
    }

    fn readdirplus(&self, handle: HandleNo, offset: u64, sink: AttrSink<'_>) -> Result<(), Error> {
        Vfs::readdirplus(self, handle, offset, sink)
    }

    fn releasedir(&self, handle: HandleNo) -> Result<(), Error> {
        Vfs::releasedir(self, handle)
    }

    async fn create(&self, parent: Ino, name: &str, create: Create) -> Result<(Attr, Opened), Error> {
        Vfs::create(self, parent, name, create).await
    }

    async fn create_closed(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        Vfs::create_closed(self, parent, name, new_attrs).await
    }

    async fn mkdir(&self, parent: Ino, name: &str, new_attrs: NewAttrs) -> Result<Attr, Error> {
        Vfs::mkdir(self, parent, name, new_attrs).await
    }

    async fn create_special(
        &self,
        parent: Ino,
        name: &str,
        special: Special,
        new_attrs: NewAttrs,
    ) -> Result<Attr, Error> {
        Vfs::create_special(self, parent, name, special, new_attrs).await
    }

    async fn link(&self, original: Ino, parent: Ino, name: &str) -> Result<Attr, Error> {
        Vfs::link(self, original, parent, name).await
    }

    async fn unlink(&self, parent: Ino, name: &str) -> Result<(), Error> {
        Vfs::unlink(self, parent, name).await
    }

    async fn rmdir(&self, parent: Ino, name: &str) -> Result<(), Error> {
        Vfs::rmdir(self, parent, name).await
    }

    async fn rename(&self, parent: Ino, name: &str, to_parent: Ino, to_name: &str, replace: bool) -> Result<(), Error> {
        Vfs::rename(self, parent, name, to_parent, to_name, replace).await
    }

    async fn open(&self, ino: Ino, access: Access) -> Result<Opened, Error> {
        Vfs::open(self, ino, access).await
    }

    async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        Vfs::read(self, handle, offset, len).await
    }

    async fn write(&self, handle: HandleNo, offset: u64, data: Bytes) -> Result<usize, Error> {
        Vfs::write(self, handle, offset, data).await
    }

    async fn allocate(&self, handle: HandleNo, offset: u64, len: u64, how: Allocate) -> Result<(), Error> {
        Vfs::allocate(self, handle, offset, len, how).await
    }

    async fn copy_whole(&self, from: HandleNo, to: HandleNo, len: u64) -> Result<u32, Error> {
        Vfs::copy_whole(self, from, to, len).await
    }

    fn timeout(&self, handle: HandleNo) -> Duration {
        Vfs::timeout(self, handle)
    }

    async fn flush_file(&self, handle: HandleNo) -> Result<(), Error> {
        Vfs::flush_file(self, handle).await
    }

    async fn fsync(&self, handle: HandleNo) -> Result<(), Error> {
        Vfs::fsync(self, handle).await
    }

    async fn fsyncdir(&self) -> Result<(), Error> {
        Vfs::fsyncdir(self).await
    }

    async fn release(&self, handle: HandleNo) -> Result<(), Error> {
        Vfs::release(self, handle).await
    }

    async fn abandon(&self, handle: HandleNo) {
        Vfs::abandon(self, handle).await
    }

    fn getxattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>, Error> {
        Vfs::getxattr(self, ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        Vfs::listxattr(self, ino)
    }

    fn setxattr(&self, ino: Ino, name: &str, value: &[u8], how: SetXattr) -> Result<(), Error> {
        Vfs::setxattr(self, ino, name, value, how)
    }

    fn removexattr(&self, ino: Ino, name: &str) -> Result<(), Error> {
        Vfs::removexattr(self, ino, name)
    }

    fn reply_deadline(&self) -> Duration {
        Vfs::reply_deadline(self)
    }

    fn metadata_ttl(&self) -> Duration {
        self.options().metadata_ttl
    }

    fn use_kernel(&self, cache: Arc<dyn KernelCache>) -> Result<(), Error> {
        Vfs::use_kernel(self, cache)
    }

    fn leave_kernel(&self) {
        Vfs::leave_kernel(self)
    }
}
