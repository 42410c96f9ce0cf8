//! Keeps the inode table near its limit.
//!
//! A listing is dropped as a whole, the least recently used first: its directory will be listed again when it is
//! needed.
//! Of its entries those stay that hold something that no listing would bring back, or that are in use:
//!
//! - files with local content or local times, attributes or extended attributes that a user has set, special files;
//! - files that are open, and directories with entries of their own;
//! - entries that the kernel has references to. The kernel is asked to drop those of files. When it has done so, they
//!   go.
//!   It isn't asked to drop directories: a process whose working directory one of them is could lose its path.
//!
//! A thread of its own tells the kernel (see [`KernelCache`]): the kernel may block it until requests are answered.

use crate::fs::errno::Error;
use crate::fs::ids::Ino;
use crate::fs::lock::{Mutex, lock};
use crate::fs::tree::inode::{InodeTable, Tree};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Inodes above the limit from which a sweep doesn't wait for its time.
pub(crate) const SLACK: usize = 256;
/// Entries that the kernel is asked to drop in one sweep.
const ASKED_AT_ONCE: usize = 16_384;

/// The kernel's cache of entries.
pub trait KernelCache: Send + Sync + 'static {
    /// Asks the kernel to drop an entry. May block until the kernel has the replies to other requests.
    fn drop_entry(&self, parent: Ino, name: &str);
}

/// An entry that the kernel is asked to drop.
type Asked = (Ino, String);

/// Sweeps the table. See the module.
pub(crate) struct Evictor {
    tree: Arc<InodeTable>,
    limit: usize,
    interval: Duration,
    /// Time for which a listing that was used stays. An operation that changes names relies on what it has listed, and
    /// has ended by then.
    unused: Duration,
    /// Notified when the table has grown beyond the limit.
    grown: Arc<Notify>,
    /// Takes entries to the thread that tells the kernel. `None`: there is no kernel, or not yet, or no more.
    kernel: Mutex<Option<SyncSender<Vec<Asked>>>>,
}

impl Evictor {
    /// `limit`: inodes that the table holds, at least 1. `unused`: time for which a listing that was used stays.
    pub(crate) fn new(tree: Arc<InodeTable>, limit: usize, interval: Duration, unused: Duration) -> Arc<Self> {
        let grown = Arc::<Notify>::default();
        lock(&tree).limit(limit, grown.clone());
        Arc::new(Self { tree, limit, interval, unused, grown, kernel: Mutex::default() })
    }

    /// Starts the thread that tells the kernel. Fails if the system has no more threads.
    pub(crate) fn use_kernel(&self, cache: Arc<dyn KernelCache>) -> Result<(), Error> {
        let (sender, receiver): (_, Receiver<Vec<Asked>>) = sync_channel(1);
        let tell = move || {
            for batch in receiver {
                batch.iter().for_each(|(parent, name)| cache.drop_entry(*parent, name));
            }
        };
        std::thread::Builder::new().name("fuse-forget".into()).spawn(tell)?;
        *lock(&self.kernel) = Some(sender);
        Ok(())
    }

    /// Tells the kernel nothing more. At the end of a mount it could wait for replies that won't come.
    pub(crate) fn leave_kernel(&self) {
        *lock(&self.kernel) = None;
    }

    /// Sweeps until the mount stops.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.grown.notified() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            self.sweep();
        }
    }

    /// Drops listings until the table is within its limit, or none is left.
    pub(crate) fn sweep(&self) {
        self.sweep_unused(self.unused);
    }

    fn sweep_unused(&self, unused: Duration) {
        let asked = lock(&self.tree).drop_listings(self.limit, ASKED_AT_ONCE, unused);
        if asked.is_empty() {
            return;
        }
        let sender = lock(&self.kernel).clone();
        // A thread that is still busy gets the rest in a later sweep.
        if let Some(Err(refused)) = sender.map(|sender| sender.try_send(asked)) {
            tracing::debug!(%refused, "the kernel is still dropping entries");
        }
    }
}

impl Tree {
    /// Drops the listings that were not used for longest, until at most `limit` inodes are left. Returns entries that
    /// the kernel should drop, `most` at most or a little more.
    fn drop_listings(&mut self, limit: usize, most: usize, unused: Duration) -> Vec<Asked> {
        let (mut asked, mut kept) = (Vec::new(), Vec::new());
        while self.len() > limit + asked.len() && asked.len() < most {
            let Some(directory) = self.least_recently_used(unused) else { break };
            let before = asked.len();
            if self.drop_listing(directory, &mut asked) || asked.len() > before {
                kept.push(directory);
            }
        }
        // They are swept again when the kernel has dropped what it was asked to drop, or a file was closed.
        kept.into_iter().for_each(|directory| self.use_listing(directory));
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::Mount;
    use crate::fs::{Access, NewAttrs, SetAttr};
    use std::collections::BTreeSet;

    const FOLDERS: usize = 20;
    const FILES: usize = 50;

    /// Returns a mount with a limit, over folders with files, all of which were listed.
    async fn mount(limit: usize, read_only: bool) -> Mount {
        let mount = Mount::with(|options| {
            options.read_only = read_only;
            options.inode_limit = Some(limit);
            options.sweep_interval = Duration::from_secs(3600);
            options.metadata_ttl = Duration::from_secs(3600);
        })
        .await;
        for folder in 0..FOLDERS {
            (0..FILES).for_each(|file| mount.view.put_foreign(&format!("d{folder:02}/f{file:02}"), b"x"));
        }
        mount
    }

    async fn list_all(mount: &Mount) {
        for folder in 0..FOLDERS {
            assert_eq!(mount.names(&format!("d{folder:02}")).await.len(), FILES);
        }
    }

    fn len(mount: &Mount) -> usize {
        lock(&mount.vfs.tree).len()
    }

    fn sweep(mount: &Mount) {
        mount.vfs.evictor.as_ref().unwrap().sweep_unused(Duration::ZERO);
    }

    #[tokio::test]
    async fn table_stays_near_its_limit_while_a_tree_is_walked() {
        let mount = mount(200, true).await;
        let mut largest = 0;
        for round in 0..3 {
            for folder in 0..FOLDERS {
                let names = mount.names(&format!("d{folder:02}")).await;
                assert_eq!(names.len(), FILES, "round {round}");
                largest = largest.max(len(&mount));
                tokio::task::yield_now().await;
            }
        }
        assert!(largest <= 200 + SLACK + FILES + 1, "{largest}");
        sweep(&mount);
        assert!(len(&mount) <= 200, "{}", len(&mount));
        // The folder that was used last is still there.
        mount.view.take_listed();
        mount.names(&format!("d{:02}", FOLDERS - 1)).await;
        assert_eq!(mount.view.take_listed(), 0);
        mount.names("d00").await;
        assert_eq!(mount.view.take_listed(), 1);
    }

    #[tokio::test]
    async fn listing_that_was_used_lately_stays_where_names_may_change() {
        let mount = mount(10, false).await;
        list_all(&mount).await;
        mount.vfs.evictor.as_ref().unwrap().sweep();
        assert_eq!(len(&mount), FOLDERS * (FILES + 1) + 1);
        sweep(&mount);
        assert!(len(&mount) < 60, "{}", len(&mount));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn walks_are_complete_while_listings_are_dropped() {
        let mount = Arc::new(mount(60, true).await);
        for folder in 0..FOLDERS {
            // As a kernel does, a reference keeps the inode of each folder.
            mount.vfs.lookup(Ino::ROOT, &format!("d{folder:02}")).await.unwrap();
        }
        let walks = (0..4).map(|_| {
            let mount = mount.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    list_all(&mount).await;
                    assert!(mount.find("d07/f07").await.is_ok());
                }
            })
        });
        for walk in walks.collect::<Vec<_>>() {
            walk.await.unwrap();
        }
    }

    #[tokio::test]
    async fn table_without_limit_keeps_all() {
        let mount = Mount::with(|options| options.metadata_ttl = Duration::from_secs(3600)).await;
        (0..500).for_each(|file| mount.view.put_foreign(&format!("d/{file}"), b"x"));
        assert_eq!(mount.names("d").await.len(), 500);
        assert!(mount.vfs.evictor.is_none() && len(&mount) == 502);
    }

    #[tokio::test]
    async fn entries_with_local_state_and_open_files_stay() {
        let mount = mount(10, false).await;
        mount.write("d00/new", b"not uploaded yet").await.unwrap();
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        mount.vfs.setattr(mount.find("d01/f01").await.unwrap(), mode).await.unwrap();
        mount.vfs.setxattr(mount.find("d01/f02").await.unwrap(), "user.a", b"1", crate::fs::SetXattr::Any).unwrap();
        mount.vfs.mkdir(mount.find("d02").await.unwrap(), "made", NewAttrs::default()).await.unwrap();
        let open =
            mount.vfs.open(mount.find("d03/f03").await.unwrap(), Access::from_flags(libc::O_RDONLY)).await.unwrap();
        for folder in 0..FOLDERS {
            mount.names(&format!("d{folder:02}")).await;
        }
        sweep(&mount);
        assert!(len(&mount) < 60, "{}", len(&mount));
        assert_eq!(mount.read("d00/new").await.unwrap(), b"not uploaded yet");
        assert_eq!(mount.stat("d01/f01").await.unwrap().mode, 0o600);
        assert_eq!(mount.vfs.getxattr(mount.find("d01/f02").await.unwrap(), "user.a").unwrap(), b"1");
        assert!(mount.names("d02/made").await.is_empty());
        assert_eq!(&mount.vfs.read(open.handle, 0, 9).await.unwrap()[..], b"x");
        mount.vfs.release(open.handle).await.unwrap();
        mount.flush().await;
        assert_eq!(mount.remote()["d00/new"], b"not uploaded yet");
        list_all(mount_with_one_more(&mount).await).await;
    }

    /// Removes what the test above has added, so that the folders are as they were.
    async fn mount_with_one_more(mount: &Mount) -> &Mount {
        mount.unlink("d00/new").await.unwrap();
        mount.rmdir("d02/made").await.unwrap();
        mount
    }

    /// A kernel that drops each entry that it is asked to drop.
    struct Kernel(std::sync::Mutex<Vec<Asked>>);

    impl KernelCache for Kernel {
        fn drop_entry(&self, parent: Ino, name: &str) {
            self.0.lock().unwrap().push((parent, name.to_owned()));
        }
    }

    #[tokio::test]
    async fn kernel_is_asked_to_drop_files_and_not_directories() {
        let mount = mount(10, true).await;
        let kernel = Arc::new(Kernel(std::sync::Mutex::default()));
        let evictor = mount.vfs.evictor.clone().unwrap();
        evictor.use_kernel(kernel.clone()).unwrap();
        let mut known = Vec::new();
        for folder in 0..FOLDERS {
            let parent = mount.vfs.lookup(Ino::ROOT, &format!("d{folder:02}")).await.unwrap().ino;
            for file in 0..FILES {
                known.push(mount.vfs.lookup(parent, &format!("f{file:02}")).await.unwrap().ino);
            }
        }
        let asked = || kernel.0.lock().unwrap().iter().cloned().collect::<BTreeSet<Asked>>();
        // A busy thread takes nothing. It is asked again.
        for _ in 0..1000 {
            if asked().len() == FOLDERS * FILES {
                break;
            }
            evictor.sweep();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let asked = asked();
        assert_eq!(asked.len(), FOLDERS * FILES);
        assert!(asked.iter().all(|(parent, name)| *parent != Ino::ROOT && name.starts_with('f')));
        assert_eq!(len(&mount), FOLDERS * (FILES + 1) + 1, "they stay until the kernel has dropped them");
        // One of them is looked up again before the kernel has dropped it.
        let kept = mount.find("d05/f05").await.unwrap();
        mount.vfs.lookup(mount.find("d05").await.unwrap(), "f05").await.unwrap();
        known.iter().for_each(|ino| mount.vfs.forget(*ino, 1));
        evictor.sweep();
        assert!(len(&mount) <= FOLDERS + 2, "{}", len(&mount));
        assert_eq!(mount.find("d05/f05").await.unwrap(), kept);
        evictor.leave_kernel();
        list_all(&mount).await;
    }
}
