//! Each thing that an overlay allows, and each that it refuses, over a remote that tests can change.

use super::{LocalLayer, Overlay, Role, instance};
use crate::fs::lock::lock;
use crate::fs::memory_view::MemoryView;
use crate::fs::overlay::Detached;
use crate::fs::tests::options;
use crate::fs::{
    Access, Allocate, Attr, Create, Error, FileKind, Filesystem, HandleNo, Ino, NewAttrs, Options, SetAttr, SetXattr,
    Special, Vfs,
};
use crate::store::View;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const WRITE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;

/// An overlay of the folder `layer` over a remote in memory. Operations take paths.
struct Lab {
    dir: tempfile::TempDir,
    view: Arc<MemoryView>,
    remote: Arc<Vfs>,
    sealed: Option<Arc<Vfs>>,
    overlay: Overlay,
    /// References that the kernel would hold.
    held: std::sync::Mutex<Vec<Ino>>,
}

macro_rules! refused {
    ($result:expr, $errno:ident) => {
        match $result {
            Ok(_) => panic!("not refused"),
            Err(error) => assert_eq!(error.errno(), libc::$errno, "{error}"),
        }
    };
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

async fn started(view: Arc<dyn View>, options: Options) -> Arc<Vfs> {
    for _ in 0..1000 {
        match Vfs::start(view.clone(), options.clone()).await {
            Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            started => return started.unwrap(),
        }
    }
    panic!("the old daemon doesn't release its folder");
}

impl Lab {
    /// Without a key. The remote has `a`, `both`, `d/x` and `d/deep/y`, the folder has `both`, `l` and `d/z`.
    async fn new() -> Self {
        Self::of(false).await
    }

    /// With a key: new files are sealed.
    async fn sealed() -> Self {
        Self::of(true).await
    }

    async fn of(key: bool) -> Self {
        let (dir, view) = (tempfile::tempdir().unwrap(), MemoryView::new(key));
        for path in ["a", "both", "d/x", "d/deep/y"] {
            view.put_foreign(path, format!("remote {path}").as_bytes());
        }
        fs::create_dir_all(dir.path().join("layer/d")).unwrap();
        for path in ["both", "l", "d/z"] {
            fs::write(dir.path().join("layer").join(path), format!("local {path}")).unwrap();
        }
        Self::on(dir, view, key).await
    }

    async fn on(dir: tempfile::TempDir, view: Arc<MemoryView>, key: bool) -> Self {
        let instance = |role| Some(instance(&view.identity(), dir.path(), role));
        let folder = LocalLayer::open(&dir.path().join("layer")).unwrap();
        let options = options(&dir.path().join("cache"));
        let remote = started(view.clone(), Options { instance: instance(Role::Remote), ..options.clone() }).await;
        let (overlay, sealed) = if key {
            let local = Options { instance: instance(Role::Local), keep_all: true, ..options };
            let sealed = started(Detached::new(view.clone()), local).await;
            (Overlay::sealed(folder, sealed.clone(), remote.clone()), Some(sealed))
        } else {
            (Overlay::new(folder, remote.clone()), None)
        };
        Self { dir, view, remote, sealed, overlay, held: std::sync::Mutex::default() }
    }

    /// Returns the lab after `kill -9` and a new start.
    async fn killed(self) -> Self {
        let Self { dir, view, remote, sealed, overlay, .. } = self;
        drop(overlay);
        let key = sealed.is_some();
        for vfs in [Some(remote), sealed].into_iter().flatten() {
            vfs.kill();
        }
        Self::on(dir, view, key).await
    }

    fn layer(&self, path: &str) -> PathBuf {
        self.dir.path().join("layer").join(path)
    }

    fn hold(&self, attr: Attr) -> Attr {
        self.held.lock().unwrap().push(attr.ino);
        attr
    }

    /// Drops all references, as the kernel does when it needs memory.
    fn forget_all(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().rev().for_each(|ino| self.overlay.forget(ino, 1));
    }

    async fn find(&self, path: &str) -> Result<Ino, Error> {
        let mut at = Ino::ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.hold(self.overlay.lookup(at, name).await?).ino;
        }
        Ok(at)
    }

    async fn stat(&self, path: &str) -> Result<Attr, Error> {
        self.overlay.getattr(self.find(path).await?).await
    }

    async fn open(&self, path: &str, flags: i32) -> Result<HandleNo, Error> {
        let (access, is_exclusive) = (Access::from_flags(flags), flags & libc::O_EXCL != 0);
        if flags & libc::O_CREAT != 0 {
            let (parent, name) = split(path);
            let new_attrs = NewAttrs { mode: Some(0o640), owner: None };
            let create = Create { access, exclusive: is_exclusive, new_attrs };
            let (attr, opened) = self.overlay.create(self.find(parent).await?, name, create).await?;
            self.hold(attr);
            return Ok(opened.handle);
        }
        Ok(self.overlay.open(self.find(path).await?, access).await?.handle)
    }

    async fn write(&self, path: &str, data: &str) -> Result<(), Error> {
        let handle = self.open(path, WRITE).await?;
        self.put(handle, 0, data).await?;
        self.overlay.flush_file(handle).await?;
        self.overlay.release(handle).await
    }

    async fn put(&self, handle: HandleNo, offset: u64, data: &str) -> Result<usize, Error> {
        self.overlay.write(handle, offset, Bytes::copy_from_slice(data.as_bytes())).await
    }

    async fn read(&self, path: &str) -> Result<String, Error> {
        let handle = self.open(path, libc::O_RDONLY).await?;
        let data = self.overlay.read(handle, 0, 1 << 20).await;
        self.overlay.release(handle).await?;
        Ok(String::from_utf8(data?.to_vec()).unwrap())
    }

    async fn mkdir(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = split(path);
        let attr = self.overlay.mkdir(self.find(parent).await?, name, NewAttrs::default()).await?;
        self.hold(attr);
        Ok(())
    }

    async fn unlink(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = split(path);
        self.overlay.unlink(self.find(parent).await?, name).await
    }

    async fn rmdir(&self, path: &str) -> Result<(), Error> {
        let (parent, name) = split(path);
        self.overlay.rmdir(self.find(parent).await?, name).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let ((parent, name), (to_parent, to_name)) = (split(from), split(to));
        self.overlay.rename(self.find(parent).await?, name, self.find(to_parent).await?, to_name, true).await
    }

    async fn set(&self, path: &str, set: SetAttr) -> Result<Attr, Error> {
        self.overlay.setattr(self.find(path).await?, set).await
    }

    async fn special(&self, path: &str, special: Special) -> Result<Attr, Error> {
        let (parent, name) = split(path);
        self.overlay.create_special(self.find(parent).await?, name, special, NewAttrs::default()).await
    }

    /// Lists a folder as the kernel does, with `page` entries in a reply. Returns the attributes, dots left out.
    async fn list_in_pages(&self, path: &str, page: usize) -> Result<Vec<(String, Attr)>, Error> {
        let handle = self.overlay.opendir(self.find(path).await?).await?;
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            self.overlay.measure_page(handle, offset).await?;
            let (mut taken, mut end) = (Vec::new(), offset);
            self.overlay.readdirplus(handle, offset, &mut |entry, attr, next| {
                if taken.len() == page {
                    return true;
                }
                assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind), "{}", entry.name);
                taken.push((entry.name.clone(), *attr));
                end = next;
                false
            })?;
            if taken.is_empty() {
                self.overlay.releasedir(handle)?;
                return Ok(found);
            }
            offset = end;
            for (name, attr) in taken.into_iter().filter(|(name, _)| name != "." && name != "..") {
                found.push((name, self.hold(attr)));
            }
        }
    }

    async fn names(&self, path: &str) -> Vec<String> {
        let handle = self.overlay.opendir(self.find(path).await.unwrap()).await.unwrap();
        let mut names = Vec::new();
        self.overlay
            .readdir(handle, 2, &mut |entry, _| {
                names.push(entry.name.clone());
                false
            })
            .unwrap();
        self.overlay.releasedir(handle).unwrap();
        names.sort();
        let mut with_attrs: Vec<_> =
            self.list_in_pages(path, 100).await.unwrap().into_iter().map(|(name, _)| name).collect();
        with_attrs.sort();
        assert_eq!(names, with_attrs);
        names
    }

    /// Checks that nothing was committed, and that the remote has what it had.
    fn assert_remote_unchanged(&self) {
        assert!(self.view.take_commits().is_empty());
        let expected =
            ["a", "both", "d/x", "d/deep/y"].map(|path| (path.to_owned(), format!("remote {path}").into_bytes()));
        assert_eq!(self.view.files(), BTreeMap::from(expected));
    }
}

fn mode(mode: u16) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

#[tokio::test]
async fn reads_show_remote_and_folder_and_local_file_wins() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        assert_eq!(lab.names("").await, ["a", "both", "d", "l"]);
        assert_eq!(lab.names("d").await, ["deep", "x", "z"]);
        for (path, content) in [
            ("a", "remote a"),
            ("both", "local both"),
            ("l", "local l"),
            ("d/x", "remote d/x"),
            ("d/z", "local d/z"),
            ("d/deep/y", "remote d/deep/y"),
        ] {
            assert_eq!(lab.read(path).await.unwrap(), content);
        }
        refused!(lab.read("none").await, ENOENT);
        refused!(lab.read("a/b").await, ENOTDIR);
    }
}

#[tokio::test]
async fn local_file_hides_remote_folder_and_local_folder_hides_remote_file() {
    let lab = Lab::new().await;
    lab.view.put_foreign("file/below", b"remote");
    lab.view.put_foreign("folder", b"remote");
    fs::write(lab.layer("file"), "local").unwrap();
    fs::create_dir(lab.layer("folder")).unwrap();
    assert_eq!(lab.names("").await, ["a", "both", "d", "file", "folder", "l"]);
    assert_eq!(lab.read("file").await.unwrap(), "local");
    refused!(lab.read("file/below").await, ENOTDIR);
    assert!(lab.names("folder").await.is_empty());
    // Both are local, so they may be removed. Then the remote shows.
    lab.unlink("file").await.unwrap();
    lab.rmdir("folder").await.unwrap();
    assert_eq!(lab.read("file/below").await.unwrap(), "remote");
    assert_eq!(lab.read("folder").await.unwrap(), "remote");
}

#[tokio::test]
async fn new_files_and_folders_land_in_the_folder_and_outlive_the_mount() {
    let lab = Lab::new().await;
    lab.write("new", "1").await.unwrap();
    lab.write("d/deep/new", "2").await.unwrap();
    lab.mkdir("d/deep/folder").await.unwrap();
    lab.write("d/deep/folder/new", "3").await.unwrap();
    for (path, content) in [("new", "1"), ("d/deep/new", "2"), ("d/deep/folder/new", "3")] {
        assert_eq!(fs::read_to_string(lab.layer(path)).unwrap(), content);
        assert_eq!(fs::metadata(lab.layer(path)).unwrap().mode() & 0o7777, 0o640);
    }
    assert_eq!(lab.names("d/deep").await, ["folder", "new", "y"]);
    let lab = lab.killed().await;
    assert_eq!(lab.read("d/deep/folder/new").await.unwrap(), "3");
    assert_eq!(lab.read("d/deep/y").await.unwrap(), "remote d/deep/y");
    lab.assert_remote_unchanged();
}

#[tokio::test]
async fn all_of_the_local_layer_may_be_changed() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        lab.mkdir("own").await.unwrap();
        lab.write("own/file", "one").await.unwrap();
        lab.write("own/file", "other").await.unwrap();
        assert_eq!(lab.read("own/file").await.unwrap(), "other");
        let handle = lab.open("own/file", libc::O_RDWR | libc::O_APPEND).await.unwrap();
        lab.put(handle, 0, " end").await.unwrap();
        lab.overlay.release(handle).await.unwrap();
        assert_eq!(lab.set("own/file", SetAttr { len: Some(7), ..SetAttr::default() }).await.unwrap().len, 7);
        assert_eq!(lab.read("own/file").await.unwrap(), "other e");
        assert_eq!(lab.set("own/file", mode(0o600)).await.unwrap().mode, 0o600);
        let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let set = SetAttr { mtime: Some(mtime), ..SetAttr::default() };
        assert_eq!(lab.set("own/file", set).await.unwrap().mtime, mtime);
        lab.rename("own/file", "own/moved").await.unwrap();
        refused!(lab.read("own/file").await, ENOENT);
        refused!(lab.rmdir("own").await, ENOTEMPTY);
        // Also to a folder that only the remote has, and with its folder.
        lab.rename("own/moved", "d/deep/moved").await.unwrap();
        lab.rename("own", "d/deep/own").await.unwrap();
        lab.rename("d/deep/moved", "d/deep/own/moved").await.unwrap();
        assert_eq!(lab.read("d/deep/own/moved").await.unwrap(), "other e");
        lab.unlink("d/deep/own/moved").await.unwrap();
        lab.rmdir("d/deep/own").await.unwrap();
        assert_eq!(lab.names("d/deep").await, ["y"]);
        lab.assert_remote_unchanged();
    }
}

#[tokio::test]
async fn what_only_the_remote_has_cannot_be_changed() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND, libc::O_RDONLY | libc::O_TRUNC] {
            refused!(lab.open("a", flags).await, EPERM);
        }
        refused!(lab.set("a", SetAttr { len: Some(0), ..SetAttr::default() }).await, EPERM);
        refused!(lab.set("a", mode(0o600)).await, EPERM);
        refused!(lab.set("d/deep", mode(0o700)).await, EPERM);
        refused!(lab.set("a", SetAttr { mtime: Some(SystemTime::now()), ..SetAttr::default() }).await, EPERM);
        refused!(lab.unlink("a").await, EPERM);
        refused!(lab.rename("a", "b").await, EPERM);
        refused!(lab.rename("d/deep", "e").await, EPERM);
        refused!(lab.rmdir("d/deep").await, EPERM);
        refused!(lab.unlink("d").await, EISDIR);
        refused!(lab.rmdir("a").await, ENOTDIR);
        let ino = lab.find("a").await.unwrap();
        refused!(lab.overlay.setxattr(ino, "user.a", b"1", SetXattr::Any), EPERM);
        lab.write("own", "1").await.unwrap();
        lab.mkdir("folder").await.unwrap();
        refused!(lab.rename("own", "a").await, EPERM);
        refused!(lab.rename("folder", "d/deep").await, EPERM);
        assert_eq!(lab.read("a").await.unwrap(), "remote a");
        lab.assert_remote_unchanged();
    }
}

#[tokio::test]
async fn folder_that_remote_has_too_cannot_be_moved_or_removed() {
    let lab = Lab::new().await;
    lab.unlink("d/z").await.unwrap();
    refused!(lab.rmdir("d").await, EPERM);
    refused!(lab.rename("d", "e").await, EPERM);
    // Its attributes are those of the local folder.
    assert_eq!(lab.set("d", mode(0o700)).await.unwrap().mode, 0o700);
    assert_eq!(lab.names("d").await, ["deep", "x"]);
}

#[tokio::test]
async fn name_of_remote_file_cannot_be_created() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        refused!(lab.open("a", libc::O_WRONLY | libc::O_CREAT).await, EPERM);
        refused!(lab.open("a", libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL).await, EEXIST);
        let handle = lab.open("a", libc::O_RDONLY | libc::O_CREAT).await.unwrap();
        assert_eq!(lab.overlay.read(handle, 0, 100).await.unwrap(), "remote a");
        refused!(lab.put(handle, 0, "x").await, EBADF);
        lab.overlay.release(handle).await.unwrap();
        refused!(lab.mkdir("a").await, EEXIST);
        refused!(lab.mkdir("d/deep").await, EEXIST);
        refused!(lab.special("a", Special::Fifo).await, EEXIST);
        assert!(!lab.layer("a").exists());
    }
}

#[tokio::test]
async fn removed_local_file_shows_remote_one_again() {
    let lab = Lab::new().await;
    let local = lab.stat("both").await.unwrap();
    lab.unlink("both").await.unwrap();
    assert_eq!(lab.read("both").await.unwrap(), "remote both");
    let remote = lab.stat("both").await.unwrap();
    assert!(remote.ino != local.ino && remote.len == 11);
    refused!(lab.unlink("both").await, EPERM);
    refused!(lab.write("both", "x").await, EPERM);
}

#[tokio::test]
async fn symbolic_links_are_hidden_and_lead_nowhere() {
    let lab = Lab::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), lab.layer("out")).unwrap();
    symlink(outside.path().join("secret"), lab.layer("file")).unwrap();
    symlink("l", lab.layer("inside")).unwrap();
    symlink(outside.path(), lab.layer("d/deep")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, lab.layer("pipe"), rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(lab.names("").await, ["a", "both", "d", "l"]);
    for path in ["out", "file", "inside", "pipe", "out/secret"] {
        refused!(lab.read(path).await, ENOENT);
        if !path.contains('/') {
            // Its name stays taken.
            refused!(lab.write(path, "x").await, EPERM);
            refused!(lab.mkdir(path).await, EPERM);
            refused!(lab.rename("l", path).await, EPERM);
            refused!(lab.unlink(path).await, ENOENT);
        }
    }
    // The remote folder shows through a link of its name, but can't get local files.
    assert_eq!(lab.names("d/deep").await, ["y"]);
    refused!(lab.write("d/deep/new", "x").await, EPERM);
    for special in [Special::Link(b"l".to_vec()), Special::Fifo, Special::Socket, Special::CharDevice(0)] {
        refused!(lab.special("new", special).await, EPERM);
    }
    let l = lab.find("l").await.unwrap();
    refused!(lab.overlay.link(l, Ino::ROOT, "new").await, EPERM);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(lab.layer("file")).unwrap(), "secret");
    assert!(lab.layer("inside").is_symlink() && lab.layer("d/deep").is_symlink());
}

#[tokio::test]
async fn folder_that_becomes_a_link_under_the_mount_is_not_followed() {
    let lab = Lab::new().await;
    let outside = lab.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("z"), "secret").unwrap();
    let (folder, file) = (lab.find("d").await.unwrap(), lab.find("d/z").await.unwrap());
    fs::rename(lab.layer("d"), lab.layer("old")).unwrap();
    // A relative target stays on the file system of the layer.
    symlink("../outside", lab.layer("d")).unwrap();
    refused!(lab.overlay.open(file, Access::from_flags(libc::O_RDONLY)).await, EPERM);
    refused!(lab.overlay.setattr(file, mode(0o777)).await, EPERM);
    refused!(lab.overlay.lookup(folder, "z").await, ENOENT);
    assert!(lab.overlay.unlink(folder, "z").await.is_err());
    assert_eq!(fs::read_to_string(outside.join("z")).unwrap(), "secret");
    assert_ne!(fs::metadata(outside.join("z")).unwrap().permissions().mode() & 0o777, 0o777);
}

#[tokio::test]
async fn open_file_outlives_its_name() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        lab.write("own", "content").await.unwrap();
        let ino = lab.find("own").await.unwrap();
        let handle = lab.open("own", libc::O_RDWR).await.unwrap();
        lab.unlink("own").await.unwrap();
        lab.write("own", "another file").await.unwrap();
        lab.put(handle, 0, "CON").await.unwrap();
        assert_eq!(lab.overlay.read(handle, 0, 100).await.unwrap(), "CONtent");
        lab.overlay.setattr(ino, SetAttr { len: Some(5), ..SetAttr::default() }).await.unwrap();
        let attr = lab.overlay.getattr(ino).await.unwrap();
        assert_eq!((attr.ino, attr.len, attr.nlink), (ino, 5, 0));
        lab.overlay.fsync(handle).await.unwrap();
        lab.overlay.release(handle).await.unwrap();
        assert_ne!(lab.find("own").await.unwrap(), ino);
        assert_eq!(lab.read("own").await.unwrap(), "another file");
    }
}

#[tokio::test]
async fn rename_without_replacement_and_onto_other_kind_is_refused() {
    let lab = Lab::new().await;
    lab.write("own", "own").await.unwrap();
    lab.mkdir("folder").await.unwrap();
    refused!(lab.overlay.rename(Ino::ROOT, "own", Ino::ROOT, "l", false).await, EEXIST);
    refused!(lab.rename("own", "folder").await, EISDIR);
    refused!(lab.rename("folder", "own").await, ENOTDIR);
    refused!(lab.rename("none", "x").await, ENOENT);
    lab.rename("own", "own").await.unwrap();
    lab.rename("own", "l").await.unwrap();
    assert_eq!(lab.read("l").await.unwrap(), "own");
    // A local file may also be replaced where it hides a remote one.
    lab.rename("l", "both").await.unwrap();
    assert_eq!(lab.read("both").await.unwrap(), "own");
}

#[tokio::test]
async fn inode_number_is_stable_while_known_and_moves_with_its_file() {
    let lab = Lab::new().await;
    let (l, d, x) = (lab.find("l").await.unwrap(), lab.find("d").await.unwrap(), lab.find("d/x").await.unwrap());
    lab.rename("l", "moved").await.unwrap();
    lab.write("l", "another").await.unwrap();
    assert_eq!(lab.find("moved").await.unwrap(), l);
    assert_ne!(lab.find("l").await.unwrap(), l);
    let listed: BTreeMap<_, _> = lab.list_in_pages("", 3).await.unwrap().into_iter().collect();
    assert_eq!((listed["moved"].ino, listed["d"].ino), (l, d));
    assert_eq!(lab.find("d/x").await.unwrap(), x);
}

#[tokio::test]
async fn forgotten_inodes_leave_no_reference_anywhere() {
    for lab in [Lab::new().await, Lab::sealed().await] {
        for _ in 0..2 {
            assert_eq!(lab.names("").await.len(), 4);
            assert_eq!(lab.names("d").await.len(), 3);
            lab.read("d/deep/y").await.unwrap();
            lab.write("d/deep/new", "1").await.unwrap();
            lab.mkdir("own").await.unwrap();
            lab.rename("d/deep/new", "own/new").await.unwrap();
            refused!(lab.write("a", "x").await, EPERM);
            lab.unlink("own/new").await.unwrap();
            lab.rmdir("own").await.unwrap();
        }
        lab.forget_all();
        assert_eq!(lock(&lab.overlay.nodes).len(), 1);
        for path in ["a", "both", "d", "d/x", "d/deep", "d/deep/y"] {
            let tree = lock(&lab.remote.tree);
            let ino = tree.find(&crate::store::PlainPath::new(path).unwrap());
            assert_eq!(ino.map_or(0, |ino| tree.node(ino).unwrap().lookups), 0, "{path}");
        }
    }
}

#[tokio::test]
async fn each_name_of_large_folders_is_listed_once_in_pages_of_any_size() {
    let lab = Lab::new().await;
    fs::create_dir(lab.layer("many")).unwrap();
    for number in 0..700_usize {
        lab.view.put_foreign(&format!("many/r{number}"), b"remote");
        fs::write(lab.layer(&format!("many/l{number}")), "local file").unwrap();
        if number.is_multiple_of(3) {
            fs::write(lab.layer(&format!("many/r{number}")), "hides").unwrap();
        }
    }
    let expected: BTreeSet<_> = (0..700).flat_map(|number| [format!("r{number}"), format!("l{number}")]).collect();
    for page in [7, 100, 5000] {
        let listed = lab.list_in_pages("many", page).await.unwrap();
        assert_eq!(listed.len(), 1400);
        assert_eq!(listed.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>(), expected);
        for (name, attr) in listed {
            let number: usize = name[1..].parse().unwrap();
            let len = if name.starts_with('l') {
                10
            } else if number.is_multiple_of(3) {
                5
            } else {
                6
            };
            assert_eq!(attr.len, len, "{name}");
        }
    }
    lab.forget_all();
    assert_eq!(lock(&lab.overlay.nodes).len(), 1);
}

#[tokio::test]
async fn folder_of_several_branches_is_looked_up_before_kernel_uses_it() {
    let lab = Lab::new().await;
    let listed: BTreeMap<_, _> = lab.list_in_pages("", 100).await.unwrap().into_iter().collect();
    // The kernel caches the others and would never ask for the remote's part.
    assert!(!listed["d"].is_certain && listed["a"].is_certain && listed["l"].is_certain);
    assert_eq!(listed["d"].nlink, 1);
}

#[tokio::test]
async fn remote_changes_appear_in_folders_that_were_local() {
    let lab = Lab::new().await;
    lab.mkdir("cache").await.unwrap();
    lab.write("cache/own", "own").await.unwrap();
    let folder = lab.find("cache").await.unwrap();
    lab.view.put_foreign("cache/theirs", b"theirs");
    // A program that works in the folder, without another lookup of its name.
    let handle = lab.overlay.opendir(folder).await.unwrap();
    lab.overlay.releasedir(handle).unwrap();
    lab.hold(lab.overlay.lookup(folder, "theirs").await.unwrap());
    assert_eq!(lab.find("cache").await.unwrap(), folder);
    assert_eq!(lab.names("cache").await, ["own", "theirs"]);
    refused!(lab.rename("cache", "other").await, EPERM);
    // And goes when the remote removes it.
    lab.view.delete_foreign("cache/theirs");
    assert_eq!(lab.names("cache").await, ["own"]);
    refused!(lab.read("cache/theirs").await, ENOENT);
    lab.rename("cache", "other").await.unwrap();
    assert_eq!(lab.read("other/own").await.unwrap(), "own");
}

#[tokio::test]
async fn local_files_are_readable_offline_and_no_listing_is_shorter() {
    let lab = Lab::new().await;
    lab.view.set_offline(true);
    assert_eq!(lab.read("l").await.unwrap(), "local l");
    refused!(lab.read("a").await, EIO);
    refused!(lab.write("new", "x").await, EIO);
    let opened = lab.overlay.opendir(Ino::ROOT).await;
    refused!(opened, EIO);
    lab.view.set_offline(false);
    assert_eq!(lab.names("").await, ["a", "both", "d", "l"]);
}

#[tokio::test]
async fn allocation_fills_and_extends_local_files() {
    let lab = Lab::new().await;
    lab.write("own", "content").await.unwrap();
    let handle = lab.open("own", libc::O_RDWR).await.unwrap();
    lab.overlay.allocate(handle, 0, 3, Allocate::Zero { keep_size: true }).await.unwrap();
    lab.overlay.allocate(handle, 0, 9, Allocate::Extend).await.unwrap();
    assert_eq!(lab.overlay.read(handle, 0, 100).await.unwrap(), "\0\0\0tent\0\0");
    lab.overlay.release(handle).await.unwrap();
    let reader = lab.open("own", libc::O_RDONLY).await.unwrap();
    refused!(lab.overlay.allocate(reader, 0, 20, Allocate::Extend).await, EBADF);
}

#[tokio::test]
async fn sealed_files_survive_kill_and_are_never_uploaded() {
    let lab = Lab::sealed().await;
    lab.mkdir("own").await.unwrap();
    lab.write("own/file", "one").await.unwrap();
    lab.write("d/deep/new", "two").await.unwrap();
    lab.write("gone", "three").await.unwrap();
    lab.unlink("gone").await.unwrap();
    lab.rename("own", "moved").await.unwrap();
    let lab = lab.killed().await;
    for vfs in [&lab.remote, lab.sealed.as_ref().unwrap()] {
        let drained = vfs.flush(Some(Duration::from_secs(20))).await;
        assert_eq!((drained.flushed, drained.pending), (0, 0));
    }
    assert_eq!(lab.names("").await, ["a", "both", "d", "l", "moved"]);
    assert_eq!(lab.names("d/deep").await, ["new", "y"]);
    assert_eq!(lab.read("moved/file").await.unwrap(), "one");
    assert_eq!(lab.read("d/deep/new").await.unwrap(), "two");
    let status = lab.sealed.as_ref().unwrap().status();
    assert_eq!((status.kept_files, status.pending_files), (2, 0));
    lab.assert_remote_unchanged();
    assert_eq!(files_below(&lab.layer("")), ["both", "d/z", "l"]);
}

fn files_below(folder: &Path) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => open.push(entry),
                false => found.push(entry.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn files_that_were_in_the_folder_of_a_sealed_overlay_are_read_only() {
    let lab = Lab::sealed().await;
    refused!(lab.write("l", "x").await, EPERM);
    refused!(lab.unlink("l").await, EPERM);
    refused!(lab.rename("l", "m").await, EPERM);
    refused!(lab.set("l", mode(0o600)).await, EPERM);
    refused!(lab.set("d", mode(0o700)).await, EPERM);
    lab.write("own", "own").await.unwrap();
    refused!(lab.rename("own", "l").await, EPERM);
    refused!(lab.rename("own", "both").await, EPERM);
    lab.write("d/own", "own").await.unwrap();
    assert_eq!(lab.names("d").await, ["deep", "own", "x", "z"]);
    refused!(lab.rmdir("d").await, EPERM);
    assert_eq!(lab.read("l").await.unwrap(), "local l");
    assert_eq!(lab.read("d/own").await.unwrap(), "own");
}

#[tokio::test]
async fn overlays_and_mounts_of_one_remote_have_different_staging_folders() {
    let remote = [7; 32];
    let ids: BTreeSet<_> = [("/a", Role::Remote), ("/a", Role::Local), ("/b", Role::Remote)]
        .into_iter()
        .map(|(path, role)| instance(&remote, Path::new(path), role))
        .chain([remote])
        .collect();
    assert_eq!(ids.len(), 4);
}

#[test]
fn layer_that_is_not_a_folder_is_refused() {
    assert!(LocalLayer::open(Path::new("/nonexistent/folder")).is_err());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    assert!(LocalLayer::open(&dir.path().join("file")).is_err());
}

#[tokio::test]
async fn file_in_set_group_id_folder_gets_its_group() {
    let lab = Lab::new().await;
    fs::set_permissions(lab.layer("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    lab.mkdir("d/own").await.unwrap();
    assert_eq!(lab.stat("d/own").await.unwrap().mode, 0o2755);
    assert_eq!(lab.stat("d/own").await.unwrap().kind, FileKind::Directory);
    lab.write("d/file", "1").await.unwrap();
    let group = fs::metadata(lab.layer("d")).unwrap().gid();
    assert_eq!((lab.stat("d/file").await.unwrap().gid, lab.stat("d/file").await.unwrap().mode), (group, 0o640));
}
