//! The requests of the kernel, with one method each: decode, call the filesystem, encode.

use crate::fs::front::request::{Repeatable, RequestContext, WriteMemory};
use crate::fs::{
    Access, Allocate, Attr, Create, Error, FileKind, HandleNo, Ino, NewAttrs, STATFS_BLOCK, STATFS_BLOCKS, STATFS_NAME,
    SetAttr, SetXattr, Special, TIME_GRANULARITY, filesystem,
};
use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;

/// Largest write and read-ahead of the kernel, bytes. Each write in flight holds one copy of its data.
const MAX_IO: u32 = 1 << 20;
/// Number of requests that the kernel may send without a process that waits for each.
const MAX_BACKGROUND: u16 = 64;
/// Limit of the data of writes that are being processed (64 MiB).
const WRITES: usize = 64 << 20;
/// Limit of the data of all writes in flight (512 MiB). The data of a write must be copied before a thread can take
/// the next request, so writes that wait for their turn hold a copy too. The kernel sends one write of at most
/// [`MAX_IO`] for each thread that is inside `write(2)`, one for each file at a time, and at most [`MAX_BACKGROUND`]
/// writes of asynchronous direct I/O. 512 threads reach the limit at the earliest. It fails writes instead of blocking
/// the thread that reads requests: while that thread waits, the mount replies to no one.
const WRITE_COPIES: usize = 512 << 20;
/// Optimal size of a read or write, bytes: one record.
const BLOCK_SIZE: u32 = 65536;

/// The FUSE requests. See the module.
pub(crate) struct Adapter {
    context: RequestContext,
    direct_io: bool,
    writes: WriteMemory,
}

impl Adapter {
    pub(crate) fn new(vfs: Arc<dyn filesystem::Filesystem>, runtime: Handle, direct_io: bool) -> Self {
        Self { context: RequestContext::new(vfs, runtime), direct_io, writes: WriteMemory::new(WRITE_COPIES, WRITES) }
    }

    fn vfs(&self) -> Arc<dyn filesystem::Filesystem> {
        self.context.vfs.clone()
    }

    fn ttl(&self) -> Duration {
        self.context.vfs.metadata_ttl()
    }

    fn fopen(&self, keep_cache: bool) -> FopenFlags {
        match (self.direct_io, keep_cache) {
            (true, _) => FopenFlags::FOPEN_DIRECT_IO,
            (false, true) => FopenFlags::FOPEN_KEEP_CACHE,
            (false, false) => FopenFlags::empty(),
        }
    }

    /// Replies to a request that creates nothing that would have to be undone.
    fn answer<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        reply: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        self.context.answer(None, work, reply, |_, _| async {});
    }

    fn answer_empty(&self, work: impl Future<Output = Result<(), Error>> + Send + 'static, reply: ReplyEmpty) {
        self.answer(work, |done| empty(reply, done));
    }

    /// Replies with an entry. Drops its reference if the kernel doesn't get the reply.
    fn answer_entry(
        &self,
        missed_in: Option<Ino>,
        work: impl Future<Output = Result<Attr, Error>> + Send + 'static,
        reply: ReplyEntry,
    ) {
        let reply = self.entry(missed_in, reply);
        self.context.answer(None, work, reply, |vfs, attr| async move { vfs.forget(attr.ino, 1) });
    }

    fn entry(&self, missed_in: Option<Ino>, reply: ReplyEntry) -> impl FnOnce(Result<Attr, Error>) + Send + 'static {
        let (ttl, vfs) = (self.ttl(), self.vfs());
        // An entry without an inode number tells the kernel that it may cache the absence.
        let absent_for = move || missed_in.map_or(Duration::ZERO, |parent| vfs.absent_for(parent));
        move |done: Result<Attr, Error>| match done {
            Ok(attr) => reply.entry(&ttl_of(&attr, ttl), &file_attr(&attr), Generation(0)),
            Err(error) if error.errno() == libc::ENOENT => match absent_for() {
                Duration::ZERO => reply.error(errno(&error)),
                ttl => reply.entry(&ttl, &absent(), Generation(0)),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// Returns the errno of an error.
fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

fn empty(reply: ReplyEmpty, done: Result<(), Error>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Returns a name as UTF-8, the only form that the remote can store.
fn utf8(name: &OsStr) -> Result<String, Error> {
    name.to_str().map(str::to_owned).ok_or(Error::NameEncoding)
}

fn ttl_of(attr: &Attr, ttl: Duration) -> Duration {
    if attr.is_certain { ttl } else { Duration::ZERO }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.len,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn absent() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::File => FileType::RegularFile,
        FileKind::Link => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Returns the attributes of a new entry: the mode, which the kernel has masked, and the owner of the process.
fn new_attrs(req: &Request, mode: Option<u32>) -> NewAttrs {
    NewAttrs { mode: mode.map(permissions), owner: Some((req.uid(), req.gid())) }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => from_kernel(time),
        TimeOrNow::Now => SystemTime::now(),
    }
}

/// Returns the time that the kernel sent. The kernel sends negative seconds with nanoseconds that count forward;
/// fuser 0.18 counts those nanoseconds backward.
fn from_kernel(time: SystemTime) -> SystemTime {
    let epoch = SystemTime::UNIX_EPOCH;
    let Ok(before) = epoch.duration_since(time) else { return time };
    let nanos = Duration::from_nanos(before.subsec_nanos().into());
    epoch.checked_sub(before - nanos).and_then(|time| time.checked_add(nanos)).unwrap_or(time)
}

/// Returns the permission bits of a mode: always 12 bits.
fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// Replies with an extended attribute's value or with its size, as requested.
fn xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Error>) {
    match value {
        Err(error) => reply.error(errno(&error)),
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without the first, the kernel would mix pages of two versions. Without the second, `open` would truncate
        // files before we could refuse.
        let needed = InitFlags::FUSE_AUTO_INVAL_DATA | InitFlags::FUSE_ATOMIC_O_TRUNC;
        config.add_capabilities(needed).map_err(|missing| {
            io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's FUSE lacks {missing:?}"))
        })?;
        // Not asynchronous direct I/O: the kernel would send the parts of one large write concurrently, and a file
        // that is opened to append takes them in the order in which they come.
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ];
        for flag in wanted {
            // An older kernel works without it.
            let _ = config.add_capabilities(flag);
        }
        if self.direct_io {
            let _ = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        }
        if let Err(nearest) = config.set_max_write(MAX_IO) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(MAX_IO) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        // The kernel then rounds the times that programs set, as a local file system would.
        let _ = config.set_time_granularity(TIME_GRANULARITY);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let vfs = self.vfs();
        let name = match utf8(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(&error)),
        };
        let request = Repeatable::Lookup { parent: parent.0, name: name.clone() };
        let work = async move { vfs.lookup(Ino(parent.0), &name).await };
        let reply = self.entry(Some(Ino(parent.0)), reply);
        self.context.answer_once(request, work, reply, |vfs, attr| async move { vfs.forget(attr.ino, 1) });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.context.vfs.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (vfs, ttl) = (self.vfs(), self.ttl());
        self.answer(async move { vfs.getattr(Ino(ino.0)).await }, move |done| match done {
            Ok(attr) => reply.attr(&ttl_of(&attr, ttl), &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (vfs, ttl) = (self.vfs(), self.ttl());
        let mode = mode.map(permissions);
        let set = SetAttr { mode, uid, gid, len: size, atime: atime.map(time), mtime: mtime.map(time) };
        self.answer(async move { vfs.setattr(Ino(ino.0), set).await }, move |done| match done {
            Ok(attr) => reply.attr(&ttl_of(&attr, ttl), &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.context.vfs.readlink(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let special = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => None,
            libc::S_IFIFO => Some(Special::Fifo),
            libc::S_IFSOCK => Some(Special::Socket),
            libc::S_IFCHR => Some(Special::CharDevice(rdev)),
            libc::S_IFBLK => Some(Special::BlockDevice(rdev)),
            _ => return reply.error(Errno::EINVAL),
        };
        let (vfs, parent, name, new_attrs) = (self.vfs(), Ino(parent.0), utf8(name), new_attrs(req, Some(mode)));
        let work = async move {
            match special {
                Some(special) => vfs.create_special(parent, &name?, special, new_attrs).await,
                None => vfs.create_closed(parent, &name?, new_attrs).await,
            }
        };
        self.answer_entry(None, work, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (vfs, name, new_attrs) = (self.vfs(), utf8(name), new_attrs(req, Some(mode)));
        let work = async move { vfs.mkdir(Ino(parent.0), &name?, new_attrs).await };
        self.answer_entry(None, work, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs(), utf8(name));
        self.answer_empty(async move { vfs.unlink(Ino(parent.0), &name?).await }, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs(), utf8(name));
        self.answer_empty(async move { vfs.rmdir(Ino(parent.0), &name?).await }, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (vfs, name, new_attrs) = (self.vfs(), utf8(name), new_attrs(req, None));
        let special = Special::Link(target.as_os_str().as_encoded_bytes().to_vec());
        let work = async move { vfs.create_special(Ino(parent.0), &name?, special, new_attrs).await };
        self.answer_entry(None, work, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = match flags {
            RenameFlags::RENAME_NOREPLACE => false,
            flags if flags.is_empty() => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let (vfs, name, newname) = (self.vfs(), utf8(name), utf8(newname));
        let work = async move { vfs.rename(Ino(parent.0), &name?, Ino(newparent.0), &newname?, replace).await };
        self.answer_empty(work, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (vfs, name) = (self.vfs(), utf8(newname));
        self.answer_entry(None, async move { vfs.link(Ino(ino.0), Ino(newparent.0), &name?).await }, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let vfs = self.vfs();
        let (keep, drop) = (self.fopen(true), self.fopen(false));
        let work = async move { vfs.open(Ino(ino.0), Access::from_flags(flags.0)).await };
        self.context.answer(
            None,
            work,
            move |done| match done {
                Ok(opened) => reply.opened(FileHandle(opened.handle.0), if opened.keep_cache { keep } else { drop }),
                Err(error) => reply.error(errno(&error)),
            },
            |vfs, opened| async move { vfs.abandon(opened.handle).await },
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let vfs = self.vfs();
        let request = Repeatable::Read { handle: fh.0, bytes: offset..offset.saturating_add(u64::from(size)) };
        let work = async move { vfs.read(HandleNo(fh.0), offset, size as usize).await };
        let reply = move |done: Result<Bytes, Error>| match done {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
        };
        self.context.answer_once(request, work, reply, |_, _| async {});
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The buffer is borrowed, so it must be copied before this function returns.
        let Some(queued) = self.writes.copy(data) else { return reply.error(Errno::ENOMEM) };
        let vfs = self.vfs();
        let durable = flags.0 & libc::O_DSYNC != 0;
        let work = async move {
            let (data, _turn) = queued.turn().await?;
            let handle = HandleNo(fh.0);
            let written = vfs.write(handle, offset, data).await?;
            if durable {
                vfs.fsync(handle).await?;
            }
            Ok(written)
        };
        self.answer(work, move |done| match done {
            // Not longer than one request.
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let (vfs, handle) = (self.vfs(), HandleNo(fh.0));
        let timeout = Some(vfs.timeout(handle));
        let work = async move { vfs.flush_file(handle).await };
        self.context.answer(timeout, work, |done| empty(reply, done), |_, ()| async {});
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs();
        self.answer_empty(async move { vfs.release(HandleNo(fh.0)).await }, reply);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (vfs, handle) = (self.vfs(), HandleNo(fh.0));
        let timeout = Some(vfs.timeout(handle));
        let work = async move { vfs.fsync(handle).await };
        self.context.answer(timeout, work, |done| empty(reply, done), |_, ()| async {});
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let vfs = self.vfs();
        let work = async move { vfs.opendir(Ino(ino.0)).await };
        self.context.answer(
            None,
            work,
            move |done| match done {
                Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            },
            // The handle was created a moment ago, and its number was never returned.
            |vfs, handle| async move { drop(vfs.releasedir(handle)) },
        );
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let done = self.context.vfs.readdir(HandleNo(fh.0), offset, &mut |entry, next| {
            reply.add(INodeNo(entry.ino.0), next, file_type(entry.kind), &entry.name)
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (vfs, ttl) = (self.vfs(), self.ttl());
        let deadline = self.context.deadline(None);
        self.context.runtime.spawn(async move {
            // Sizes that can't be read in time are left uncertain, so the page itself is never late.
            let (timeout, handle) = (deadline / 2, HandleNo(fh.0));
            let measured = tokio::time::timeout(timeout, vfs.measure_page(handle, offset)).await;
            let done = measured.unwrap_or(Ok(())).and_then(|()| {
                vfs.readdirplus(handle, offset, &mut |entry, attr, next| {
                    reply.add(
                        INodeNo(entry.ino.0),
                        next,
                        &entry.name,
                        &ttl_of(attr, ttl),
                        &file_attr(attr),
                        Generation(0),
                    )
                })
            });
            match done {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        empty(reply, self.context.vfs.releasedir(HandleNo(fh.0)));
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let vfs = self.vfs();
        self.answer_empty(async move { vfs.fsyncdir().await }, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = STATFS_BLOCKS;
        reply.statfs(blocks, blocks, blocks, 0, 0, STATFS_BLOCK, STATFS_NAME, STATFS_BLOCK);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let name = name.to_str().ok_or(Error::NotSupported);
        let done = name.and_then(|name| self.context.vfs.setxattr(Ino(ino.0), name, value, how));
        empty(reply, done);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.to_str().ok_or(Error::NoAttribute);
        xattr(reply, size, name.and_then(|name| self.context.vfs.getxattr(Ino(ino.0), name)));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.context.vfs.listxattr(Ino(ino.0)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_str().ok_or(Error::NoAttribute);
        let done = name.and_then(|name| self.context.vfs.removexattr(Ino(ino.0), name));
        empty(reply, done);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel decides by mode and owner (default_permissions) and doesn't ask.
        reply.ok();
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (vfs, name, ttl) = (self.vfs(), utf8(name), self.ttl());
        let (keep, drop) = (self.fopen(true), self.fopen(false));
        let create = Create {
            access: Access::from_flags(flags),
            exclusive: flags & libc::O_EXCL != 0,
            new_attrs: new_attrs(req, Some(mode)),
        };
        let work = async move { vfs.create(Ino(parent.0), &name?, create).await };
        self.context.answer(
            None,
            work,
            move |done| match done {
                Ok((attr, opened)) => {
                    let flags = if opened.keep_cache { keep } else { drop };
                    let ttl = ttl_of(&attr, ttl);
                    reply.created(&ttl, &file_attr(&attr), Generation(0), FileHandle(opened.handle.0), flags);
                }
                Err(error) => reply.error(errno(&error)),
            },
            |vfs, (attr, opened)| async move {
                vfs.abandon(opened.handle).await;
                vfs.forget(attr.ino, 1);
            },
        );
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Other modes shift the data after the range, or need a feature that a bucket doesn't have.
        let how = match mode {
            0 => Allocate::Extend,
            libc::FALLOC_FL_KEEP_SIZE => Allocate::Reserve,
            mode if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => {
                Allocate::Zero { keep_size: true }
            }
            mode if mode == libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE => {
                Allocate::Zero { keep_size: true }
            }
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero { keep_size: false },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let vfs = self.vfs();
        self.answer_empty(async move { vfs.allocate(HandleNo(fh.0), offset, length, how).await }, reply);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // All but the copy of a whole file is left to the kernel. When it gets EOPNOTSUPP, it reads and writes by
        // itself.
        if offset_in != 0 || offset_out != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let vfs = self.vfs();
        let work = async move { vfs.copy_whole(HandleNo(fh_in.0), HandleNo(fh_out.0), len).await };
        self.answer(work, |done| match done {
            // Replies have 32 bits. A longer file isn't copied this way.
            Ok(copied) => reply.written(copied),
            Err(error) => reply.error(errno(&error)),
        });
    }

    // The kernel implements these operations by itself once it got these error numbers.

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn kernel_time_is_seconds_plus_later_nanoseconds(
            seconds in -1_000_000_000_000..1_000_000_000_000i64,
            nanos in 0..1_000_000_000u32,
        ) {
            let (epoch, whole) = (SystemTime::UNIX_EPOCH, seconds.unsigned_abs());
            let fraction = Duration::from_nanos(nanos.into());
            // The form in which fuser passes it.
            let since = Duration::new(whole, nanos);
            let given = if seconds < 0 { epoch - since } else { epoch + since };
            let meant = if seconds < 0 { epoch - Duration::from_secs(whole) + fraction } else { given };
            prop_assert_eq!(from_kernel(given), meant);
        }
    }
}
