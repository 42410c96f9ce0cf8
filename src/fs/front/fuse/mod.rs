//! The FUSE front end: decodes requests, calls the [`Filesystem`], and encodes replies. Each request is processed in an
//! async task.
//!
//! It talks to the kernel directly, without libfuse. If mounting needs a privilege that this process lacks, the
//! system's `fusermount3` does it. A reply that is dropped unsent returns `EIO`, so a task that panics replies, too.

mod adapter;

use crate::fs::{Error, Filesystem, Ino, KernelCache};
use adapter::Adapter;
use fuser::{Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::mount::UnmountFlags;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::sync::watch;

/// Options of a FUSE mount.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// Name shown in the mount table (never a plaintext path).
    pub source_name: String,
    /// Allow access by other users.
    pub allow_other: bool,
    /// Mount read-only.
    pub read_only: bool,
    /// Number of threads that read /dev/fuse.
    pub threads: usize,
    /// Bypass the page cache.
    pub direct_io: bool,
}

/// A live FUSE mount.
pub struct FuseMount {
    mountpoint: PathBuf,
    served: Arc<dyn Filesystem>,
    ended: watch::Receiver<bool>,
}

impl FuseMount {
    /// Mounts. Returns when the kernel can send requests.
    pub async fn mount(
        filesystem: Arc<dyn Filesystem>,
        mountpoint: &Path,
        options: FuseOptions,
    ) -> Result<Self, Error> {
        check(mountpoint)?;
        let (path, served) = (mountpoint.to_owned(), filesystem.clone());
        let adapter = Adapter::new(filesystem, tokio::runtime::Handle::current(), options.direct_io);
        let session = tokio::task::spawn_blocking(move || {
            let session = Session::new(adapter, &path, &config(&options)).map_err(|error| explain(&path, &error))?;
            Ok::<_, Error>((session, path.canonicalize().unwrap_or(path)))
        });
        let (session, mountpoint) = session.await.map_err(|error| Error::Mount(error.to_string()))??;
        served.use_kernel(Arc::new(Kernel(session.notifier())))?;
        let (end, ended) = watch::channel(false);
        let run = move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the FUSE session ended with an error");
            }
            end.send_replace(true);
        };
        std::thread::Builder::new().name("fuse".into()).spawn(run)?;
        Ok(Self { mountpoint, ended, served })
    }

    /// Resolves when the filesystem is unmounted, by any means (`umount`, `fusermount -u`, [`FuseMount::unmount`]).
    pub async fn unmounted(&self) {
        // The sender is dropped without a value only if its thread panicked. That is an end, too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Unmounts. Fails with [`Error::MountBusy`] if files are open. With `lazy`, the mount disappears immediately and
    /// ends when they are closed.
    pub async fn unmount(&self, lazy: bool) -> Result<(), Error> {
        if *self.ended.borrow() {
            return Ok(());
        }
        self.served.leave_kernel();
        let mountpoint = self.mountpoint.clone();
        let done = tokio::task::spawn_blocking(move || unmount(&mountpoint, lazy)).await;
        done.map_err(|error| Error::Mount(error.to_string()))?
    }
}

/// The kernel's cache of entries of a mount.
struct Kernel(Notifier);

impl KernelCache for Kernel {
    fn drop_entry(&self, parent: Ino, name: &str) {
        // An entry that the kernel keeps is asked for again by a later sweep.
        if let Err(error) = self.0.inval_entry(INodeNo(parent.0), OsStr::new(name)) {
            tracing::trace!(%error, "the kernel keeps an entry");
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if !*self.ended.borrow()
            && let Err(error) = unmount(&self.mountpoint, true)
        {
            tracing::warn!(%error, "cannot unmount");
        }
    }
}

fn config(options: &FuseOptions) -> Config {
    // Commas and spaces would end the field in the option text of the mount table.
    let name = options.source_name.replace([',', ' ', '\t', '\n', '\\'], "_");
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(name),
        subtype(rustix::system::uname().release()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config
}

/// Type that the mount table shows after `fuse.`.
const SUBTYPE: &str = "hf-mount";

/// Returns the option that makes the mount table show the type `fuse.hf-mount`. Linux accepts it since 5.4. An older
/// kernel would refuse the whole mount, so it gets the form that only `fusermount3` reads.
fn subtype(release: &std::ffi::CStr) -> MountOption {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (5, 4) => MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
        _ => MountOption::Subtype(SUBTYPE.into()),
    }
}

/// Checks the conditions that can be checked before mounting.
fn check(mountpoint: &Path) -> Result<(), Error> {
    let metadata = std::fs::metadata(mountpoint)
        .map_err(|error| Error::Mount(format!("mount point {}: {error}", mountpoint.display())))?;
    if !metadata.is_dir() {
        return Err(Error::Mount(format!("mount point {} is not a directory", mountpoint.display())));
    }
    match std::fs::metadata("/dev/fuse") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Mount(
            "/dev/fuse is missing: the kernel has no FUSE, or this container has no access to it".into(),
        )),
        Err(error) => Err(Error::Mount(format!("/dev/fuse: {error}"))),
    }
}

fn explain(mountpoint: &Path, error: &io::Error) -> Error {
    let at = mountpoint.display();
    Error::Mount(match error.kind() {
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => {
            format!("{at}: {error}; letting other users in needs `user_allow_other` in /etc/fuse.conf")
        }
        io::ErrorKind::PermissionDenied => format!("{at}: {error}; this user may not use /dev/fuse"),
        io::ErrorKind::NotFound => format!("{at}: {error}; mounting as this user needs `fusermount3` (package fuse3)"),
        _ => format!("{at}: {error}"),
    })
}

/// Unmounts. Blocks, because the kernel may send requests meanwhile. So a task that has to reply to them must not
/// call this.
fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags) {
        // It is not a mount point any more: another process has unmounted it.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(Error::MountBusy),
        Err(rustix::io::Errno::PERM) => unmount_as_user(mountpoint, lazy),
        Err(errno) => Err(Error::Mount(format!("cannot unmount {}: {errno}", mountpoint.display()))),
    }
}

fn unmount_as_user(mountpoint: &Path, lazy: bool) -> Result<(), Error> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output().map_err(|error| Error::Mount(format!("cannot run fusermount3: {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(Error::MountBusy),
        false => Err(Error::Mount(said.trim().to_owned())),
    }
}

/// Removes the mount of a dead daemon from the mount table.
pub fn detach(mountpoint: &Path) -> Result<(), Error> {
    unmount(mountpoint, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::Mount;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    /// Bytes of one write: the largest that the kernel sends.
    const WRITE: usize = 1 << 20;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs root and /dev/fuse"]
    async fn mount_replies_while_more_writes_wait_than_are_processed_at_once() {
        let mount = Mount::new().await;
        let old = vec![1; WRITE + 2];
        // One more than the limit of 64 MiB has turns for.
        let files = 80;
        (0..files).for_each(|number| mount.view.put_foreign(&format!("f{number}"), &old));
        let folder = tempfile::tempdir().unwrap();
        let options = FuseOptions {
            source_name: "test".into(),
            allow_other: false,
            read_only: false,
            threads: 2,
            direct_io: true,
        };
        let fuse = FuseMount::mount(mount.vfs.clone(), folder.path(), options).await.unwrap();
        let open = |number: usize| {
            let path = folder.path().join(format!("f{number}"));
            std::fs::File::options().write(true).open(path).unwrap()
        };
        let opened: Vec<_> = tokio::task::block_in_place(|| (0..files).map(open).collect());
        let source_hangs = mount.view.hold_reads().await;
        // Each begins in the middle of a record, of which the remote has the rest.
        let write = |file: std::fs::File| move || file.write_at(&vec![2; WRITE], 1).unwrap();
        let writers: Vec<_> = opened.into_iter().map(|file| std::thread::spawn(write(file))).collect();
        while mount.view.reads_in_progress() < 64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A thread that waited for a turn would reply to this only when the source works again.
        let path = folder.path().to_owned();
        let replies = tokio::task::spawn_blocking(move || (0..20).all(|_| std::fs::metadata(&path).is_ok()));
        let replies = tokio::time::timeout(Duration::from_secs(5), replies).await;
        drop(source_hangs);
        let written: Vec<_> =
            tokio::task::block_in_place(|| writers.into_iter().map(|writer| writer.join().unwrap()).collect());
        assert!(replies.expect("the mount doesn't reply").unwrap());
        assert_eq!(written, vec![WRITE; files]);
        mount.flush().await;
        let expected = [&[1][..], &vec![2; WRITE], &[1]].concat();
        assert!(mount.remote().values().all(|content| *content == expected));
        fuse.unmount(true).await.unwrap();
        fuse.unmounted().await;
    }

    #[test]
    fn kernel_before_5_4_gets_no_subtype_option() {
        for (release, taken) in [
            (c"6.18.44-fc-v669", true),
            (c"5.4.0-26-generic", true),
            (c"5.3.18", false),
            (c"4.18.0-553.el8_10.x86_64", false),
            (c"5", false),
            (c"", false),
        ] {
            assert_eq!(matches!(subtype(release), MountOption::CUSTOM(_)), taken, "{release:?}");
        }
    }
}
