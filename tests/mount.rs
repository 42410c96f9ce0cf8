//! Real mounts: the kernel, the FUSE front end, staging, a view with a key, the client and the
//! embedded Hub, with the tools that people use.
//!
//! They need /dev/fuse and root, so they are ignored unless asked for: `cargo test --test mount -- --ignored`.
#![cfg(all(feature = "fuse", feature = "local-hub"))]

use hfcrypt::crypto::{Keys, MasterKey};
use hfcrypt::fs::front::fuse::{FuseMount, FuseOptions};
use hfcrypt::fs::{Error, OnConflict, Options, Vfs};
use hfcrypt::hub::token::TokenProvider;
use hfcrypt::hub::{BucketId, Endpoint};
use hfcrypt::store::{OpenOptions, Source, View, open};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

struct Mounted {
    runtime: Runtime,
    vfs: Arc<Vfs>,
    fuse: FuseMount,
    view: Arc<dyn View>,
    dir: Arc<tempfile::TempDir>,
}

fn keys() -> Arc<Keys> {
    Arc::new(Keys::derive(&MasterKey::from_bytes([0x42; 32])))
}

async fn view(dir: &Path, keys: Option<Arc<Keys>>) -> Arc<dyn View> {
    let address = format!("file://{}", dir.join("hub").display());
    let endpoint = Arc::new(Endpoint::open(&address, TokenProvider::anonymous()).await.unwrap());
    let source = Source::Bucket { id: BucketId::new("local", "bucket").unwrap(), prefix: String::new() };
    let options = OpenOptions { keys, create: true, cache_dir: Some(dir.join("cache")), ..OpenOptions::default() };
    open(endpoint, &source, options).await.unwrap().view
}

fn options(dir: &Path) -> Options {
    Options {
        cache_dir: dir.join("cache"),
        advanced_writes: true,
        read_only: false,
        negative_ttl: Duration::from_secs(1),
        poll_interval: None,
        poll_listings: 4,
        inode_limit: None,
        sweep_interval: Duration::from_secs(5),
        metadata_ttl: Duration::from_secs(1),
        flush_debounce: Duration::from_millis(200),
        flush_max_window: Duration::from_secs(5),
        uid: 0,
        gid: 0,
        file_mode: 0o644,
        dir_mode: 0o755,
        filter_os_files: true,
        keep_all: false,
        instance: None,
        reply_deadline: Duration::from_secs(30),
        fsync_remote: false,
        on_conflict: OnConflict::KeepBoth,
        max_staging: None,
        max_pending: None,
        read_back_after: Duration::from_secs(10),
    }
}

impl Mounted {
    fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("cache")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self::on(dir, Some(keys()), |_| {})
    }

    fn on(dir: Arc<tempfile::TempDir>, keys: Option<Arc<Keys>>, change: impl FnOnce(&mut Options)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let (vfs, fuse, view) = runtime.block_on(async {
            let view = view(dir.path(), keys).await;
            let mut options = options(dir.path());
            change(&mut options);
            let vfs = Vfs::start(view.clone(), options).await.unwrap();
            let fuse = FuseOptions {
                source_name: "hf-mount-test".into(),
                allow_other: false,
                read_only: false,
                threads: 2,
                direct_io: false,
            };
            let fuse = FuseMount::mount(vfs.clone(), &dir.path().join("mnt"), fuse).await.unwrap();
            (vfs, fuse, view)
        });
        Self { runtime, vfs, fuse, view, dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("mnt").join(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn flush(&self) {
        let drained = self.runtime.block_on(self.vfs.flush(Some(Duration::from_secs(60))));
        assert_eq!(drained.pending, 0, "{:?}", self.vfs.status());
    }

    /// Unmounts, drains and lets go; gives the folder back.
    fn end(self) -> Arc<tempfile::TempDir> {
        self.runtime.block_on(async {
            self.fuse.unmount(false).await.unwrap();
            self.fuse.unmounted().await;
            let drained = self.vfs.shutdown(Duration::from_secs(60)).await;
            assert_eq!(drained.pending, 0);
        });
        let Self { runtime, vfs, fuse, view, dir } = self;
        drop((fuse, vfs, view));
        runtime.shutdown_timeout(Duration::from_secs(10));
        dir
    }

    /// A new mount of the same bucket, with nothing cached.
    fn again(self) -> Self {
        let dir = self.end();
        fs::remove_dir_all(dir.path().join("cache")).unwrap();
        fs::create_dir(dir.path().join("cache")).unwrap();
        Self::on(dir, Some(keys()), |_| {})
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(step).collect()
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn files_survive_a_remount_with_an_empty_cache() {
    let mounted = Mounted::new();
    let data = noise(5_000_000, 1);
    fs::write(mounted.at("big"), &data).unwrap();
    fs::write(mounted.at("empty"), b"").unwrap();
    fs::create_dir_all(mounted.at("a/b")).unwrap();
    fs::write(mounted.at("a/b/näme with spaces"), b"hello").unwrap();
    fs::write(mounted.at(&"l".repeat(255)), b"long name").unwrap();
    assert_eq!(fs::read(mounted.at("big")).unwrap(), data);
    let mounted = mounted.again();
    assert_eq!(fs::read(mounted.at("big")).unwrap(), data);
    assert_eq!(fs::metadata(mounted.at("big")).unwrap().len(), data.len() as u64);
    assert_eq!(fs::read(mounted.at("empty")).unwrap(), b"");
    assert_eq!(fs::read(mounted.at("a/b/näme with spaces")).unwrap(), b"hello");
    assert_eq!(fs::read(mounted.at(&"l".repeat(255))).unwrap(), b"long name");
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn the_tools_people_use_work() {
    let mounted = Mounted::new();
    let source = mounted.outside("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    for i in 0..60usize {
        fs::write(source.join(format!("deep/f{i}")), noise(i * 3000, i as u64)).unwrap();
        fs::write(source.join(format!("deep/er/g{i}")), format!("{i}\n")).unwrap();
    }
    let (from, to) = (text(&source).to_owned(), mounted.at("copy"));
    run("cp", &["-r", &from, text(&to)]);
    run("diff", &["-r", &from, text(&to)]);
    mounted.flush();
    run("diff", &["-r", &from, text(&to)]);
    run("mv", &[text(&to), text(&mounted.at("moved"))]);
    run("diff", &["-r", &from, text(&mounted.at("moved"))]);
    let file = mounted.at("dd");
    run("dd", &["if=/dev/urandom", &format!("of={}", text(&file)), "bs=1M", "count=8", "conv=fsync", "status=none"]);
    let before = fs::read(&file).unwrap();
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", text(&file)),
            "bs=1000",
            "seek=777",
            "count=3",
            "conv=notrunc",
            "status=none",
        ],
    );
    let mut expected = before;
    expected[777_000..780_000].fill(0);
    assert_eq!(fs::read(&file).unwrap(), expected);
    run("sh", &["-c", &format!("echo one > {0}; echo two >> {0}; echo three >> {0}", text(&mounted.at("log")))]);
    assert_eq!(fs::read_to_string(mounted.at("log")).unwrap(), "one\ntwo\nthree\n");
    run("sed", &["-i", "s/two/2/", text(&mounted.at("log"))]);
    assert_eq!(fs::read_to_string(mounted.at("log")).unwrap(), "one\n2\nthree\n");
    run("truncate", &["-s", "5", text(&mounted.at("log"))]);
    run("truncate", &["-s", "+70000", text(&mounted.at("log"))]);
    assert_eq!(fs::metadata(mounted.at("log")).unwrap().len(), 70_005);
    let found = run("find", &[text(&mounted.at("moved")), "-type", "f"]);
    assert_eq!(found.lines().count(), 120);
    run("tar", &["-C", &from, "-cf", text(&mounted.at("t.tar")), "."]);
    run("mkdir", &[text(&mounted.at("untar"))]);
    run("tar", &["-C", text(&mounted.at("untar")), "-xf", text(&mounted.at("t.tar"))]);
    run("diff", &["-r", &from, text(&mounted.at("untar"))]);
    run("rm", &["-rf", text(&mounted.at("moved"))]);
    assert!(!mounted.at("moved").exists());
    let mounted = mounted.again();
    let mut names: Vec<_> = fs::read_dir(mounted.at("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dd", "log", "t.tar", "untar"]);
    run("diff", &["-r", text(&mounted.outside("source")), text(&mounted.at("untar"))]);
    assert_eq!(fs::read(mounted.at("dd")).unwrap(), expected);
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn the_kernel_sees_posix_errors_and_attributes() {
    let mounted = Mounted::new();
    let at = |name: &str| mounted.at(name);
    fs::write(at("a"), b"12345").unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/x"), b"").unwrap();
    let exclusive = fs::OpenOptions::new().write(true).create_new(true).open(at("a"));
    assert_eq!(errno(exclusive), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(at("a"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(at("d"))), libc::EISDIR);
    assert_eq!(errno(fs::read(at("missing"))), libc::ENOENT);
    std::os::unix::fs::symlink("a", at("s")).unwrap();
    assert_eq!(fs::read(at("s")).unwrap(), b"12345");
    fs::hard_link(at("a"), at("h")).unwrap();
    assert_eq!(errno(fs::hard_link(at("d/x"), at("h"))), libc::EEXIST);
    fs::remove_file(at("h")).unwrap();
    fs::remove_file(at("s")).unwrap();
    fs::write(at(".DS_Store"), b"kept").unwrap();
    assert_eq!(fs::read(at(".DS_Store")).unwrap(), b"kept");
    fs::remove_file(at(".DS_Store")).unwrap();
    assert_eq!(errno(fs::write(at(&"x".repeat(256)), b"")), libc::ENAMETOOLONG);
    let bad: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&[b'a', 0xff]);
    assert_eq!(errno(fs::write(mounted.at("").join(bad), b"")), libc::EILSEQ);
    let noreplace = rustix::fs::renameat_with(
        rustix::fs::CWD,
        at("a"),
        rustix::fs::CWD,
        at("d/x"),
        rustix::fs::RenameFlags::NOREPLACE,
    );
    assert_eq!(noreplace, Err(rustix::io::Errno::EXIST));
    let exchange = rustix::fs::renameat_with(
        rustix::fs::CWD,
        at("a"),
        rustix::fs::CWD,
        at("d/x"),
        rustix::fs::RenameFlags::EXCHANGE,
    );
    assert_eq!(exchange, Err(rustix::io::Errno::INVAL));
    fs::set_permissions(at("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let metadata = fs::metadata(at("a")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.nlink(), metadata.len()), (0o600, 1, 5));
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    fs::File::options().write(true).open(at("a")).unwrap().set_modified(time).unwrap();
    assert_eq!(fs::metadata(at("a")).unwrap().modified().unwrap(), time);
    let mut value = [0; 80];
    let len = rustix::fs::getxattr(at("a"), "user.hf.encrypted", &mut value).unwrap();
    assert_eq!(&value[..len], b"1");
    assert_eq!(rustix::fs::getxattr(at("a"), "user.nothing", &mut value), Err(rustix::io::Errno::NODATA));
    mounted.flush();
    let len = rustix::fs::getxattr(at("a"), "user.hf.hash", &mut value).unwrap();
    assert_eq!(len, 64);
    let set = |name: &str| rustix::fs::setxattr(at("a"), name, b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(set("user.x"), Ok(()));
    assert_eq!(set("user.hf.hash"), Err(rustix::io::Errno::PERM));
    assert_eq!(set("trusted.x"), Err(rustix::io::Errno::OPNOTSUPP));
    let len = rustix::fs::listxattr(at("a"), &mut value).unwrap();
    assert_eq!(&value[..len], b"user.x\0");
    rustix::fs::removexattr(at("a"), "user.x").unwrap();
    assert_eq!(rustix::fs::statvfs(at("")).unwrap().f_namemax, 255);
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn an_open_file_outlives_its_name() {
    let mounted = Mounted::new();
    let mut file =
        fs::File::options().read(true).write(true).create(true).truncate(true).open(mounted.at("a")).unwrap();
    file.write_all(b"one").unwrap();
    fs::remove_file(mounted.at("a")).unwrap();
    file.write_all(b" two").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut read = String::new();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "one two");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    fs::write(mounted.at("a"), b"another").unwrap();
    fs::write(mounted.at("b"), b"b").unwrap();
    let mut replaced = fs::File::open(mounted.at("a")).unwrap();
    fs::rename(mounted.at("b"), mounted.at("a")).unwrap();
    let mut read = String::new();
    replaced.read_to_string(&mut read).unwrap();
    assert_eq!((read.as_str(), fs::read(mounted.at("a")).unwrap().as_slice()), ("another", &b"b"[..]));
    drop((file, replaced));
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn mapped_and_direct_and_synchronous_reads_and_writes_agree() {
    let mounted = Mounted::new();
    let data = noise(300_000, 9);
    fs::write(mounted.at("a"), &data).unwrap();
    let mounted = mounted.again();
    let path = mounted.at("a");
    // `cmp` maps nothing; python does.
    let script = "import mmap,sys,hashlib\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nprint(hashlib.sha256(m).hexdigest())\nm[1000:1005]=b'hello'\nm.flush()\n";
    if Command::new("python3").arg("-V").output().is_ok() {
        run("python3", &["-c", script, text(&path)]);
        let mut expected = data.clone();
        expected[1000..1005].copy_from_slice(b"hello");
        assert_eq!(fs::read(&path).unwrap(), expected);
        fs::write(&path, &data).unwrap();
    }
    let direct = fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    if let Ok(direct) = direct {
        let mut part = vec![0; 65536 + 512];
        let skip = part.as_ptr().align_offset(512);
        let read = direct.read_at(&mut part[skip..skip + 65536], 65536).unwrap();
        assert_eq!(part[skip..skip + read], data[65536..65536 + read]);
    }
    let sync = fs::File::options().write(true).custom_flags(libc::O_SYNC).open(&path).unwrap();
    sync.write_all_at(b"sync", 5).unwrap();
    drop(sync);
    assert_eq!(&fs::read(&path).unwrap()[5..9], b"sync");
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn many_threads_use_the_mount_at_once() {
    let mounted = Mounted::new();
    std::thread::scope(|scope| {
        for worker in 0..8usize {
            let root = mounted.at(&format!("w{worker}"));
            scope.spawn(move || {
                fs::create_dir(&root).unwrap();
                for round in 0..15usize {
                    let data = noise(1 + worker * 7000 + round * 1000, (worker * 100 + round) as u64);
                    let (tmp, path) = (root.join("tmp"), root.join(format!("f{}", round % 5)));
                    fs::write(&tmp, &data).unwrap();
                    fs::rename(&tmp, &path).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), data);
                    if round % 4 == 3 {
                        fs::remove_file(&path).unwrap();
                    }
                }
            });
        }
    });
    let tree =
        |root: &Path| run("sh", &["-c", &format!("cd {} && find . -type f -exec sha256sum {{}} + | sort", text(root))]);
    let before = tree(&mounted.at(""));
    assert!(before.lines().count() >= 8 * 3);
    let mounted = mounted.again();
    assert_eq!(tree(&mounted.at("")), before);
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn unmounting_a_busy_mount_is_refused_unless_lazy() {
    let mounted = Mounted::new();
    let file = fs::File::create(mounted.at("a")).unwrap();
    let refused = mounted.runtime.block_on(mounted.fuse.unmount(false));
    assert!(matches!(refused, Err(Error::MountBusy)), "{refused:?}");
    mounted.runtime.block_on(mounted.fuse.unmount(true)).unwrap();
    assert!(!mounted.at("a").exists());
    drop(file);
    mounted.runtime.block_on(mounted.fuse.unmounted());
    assert_eq!(mounted.runtime.block_on(mounted.vfs.shutdown(Duration::from_secs(60))).pending, 0);
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_foreign_umount_ends_the_mount_and_the_drain_still_happens() {
    let mounted = Mounted::new();
    fs::write(mounted.at("a"), b"last words").unwrap();
    run("umount", &[text(&mounted.outside("mnt"))]);
    let dir = mounted.runtime.block_on(async {
        mounted.fuse.unmounted().await;
        let drained = mounted.vfs.shutdown(Duration::from_secs(60)).await;
        assert_eq!(drained.pending, 0);
        mounted.dir.clone()
    });
    drop(mounted);
    let mounted = Mounted::on(dir, Some(keys()), |_| {});
    assert_eq!(fs::read(mounted.at("a")).unwrap(), b"last words");
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_plain_mount_streams_and_refuses_the_rest() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(dir.path().join("cache")).unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    let mounted = Mounted::on(dir, None, |options| options.advanced_writes = false);
    let data = noise(3_000_000, 5);
    fs::write(mounted.at("a"), &data).unwrap();
    assert_eq!(mounted.vfs.status().pending_files, 0, "close committed it");
    assert_eq!(fs::read(mounted.at("a")).unwrap(), data);
    assert_eq!(errno(fs::File::options().write(true).open(mounted.at("a"))), libc::EPERM);
    run("sh", &["-c", &format!("echo hello > {}", text(&mounted.at("b")))]);
    assert_eq!(fs::read(mounted.at("b")).unwrap(), b"hello\n");
    mounted.end();
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn nothing_plain_lands_on_the_disk() {
    let mounted = Mounted::new();
    let canary = "CANARY-7f3a-plain";
    fs::create_dir(mounted.at(&format!("{canary}-dir"))).unwrap();
    let inside = mounted.at(&format!("{canary}-dir/{canary}-file"));
    fs::write(&inside, canary.repeat(5000)).unwrap();
    let open = fs::File::options().append(true).open(&inside).unwrap();
    (&open).write_all(canary.as_bytes()).unwrap();
    open.sync_all().unwrap();
    fs::rename(&inside, mounted.at(&format!("{canary}-moved"))).unwrap();
    drop(open);
    std::os::unix::fs::symlink(format!("../{canary}"), mounted.at(&format!("{canary}-link"))).unwrap();
    let value = canary.as_bytes();
    rustix::fs::setxattr(mounted.at("."), format!("user.{canary}"), value, rustix::fs::XattrFlags::CREATE).unwrap();
    mounted.flush();
    fs::write(mounted.at("pending"), canary.repeat(100)).unwrap();
    // While mounted, and with the mount point left out.
    for folder in ["cache", "hub"] {
        let hits = Command::new("grep").args(["-rlaF", canary]).arg(mounted.outside(folder)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&hits.stdout), "", "plaintext in {folder}");
    }
    mounted.end();
}

/// The daemon of the next test: this very program, run again with a folder in the environment.
#[test]
#[ignore = "a part of another test"]
fn daemon() {
    let Ok(dir) = std::env::var("HFCRYPT_TEST_DAEMON") else { return };
    let dir = PathBuf::from(dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let view = view(&dir, Some(keys())).await;
        // Nothing is flushed before it is killed.
        let never = Duration::from_secs(3600);
        let options = Options { flush_debounce: never, flush_max_window: never, ..options(&dir) };
        let vfs = Vfs::start(view, options).await.unwrap();
        let fuse = FuseOptions {
            source_name: "hf-mount-test".into(),
            allow_other: false,
            read_only: false,
            threads: 2,
            direct_io: false,
        };
        let fuse = FuseMount::mount(vfs, &dir.join("mnt"), fuse).await.unwrap();
        fs::write(dir.join("ready"), b"").unwrap();
        fuse.unmounted().await;
    });
}

/// Unmounts whatever happens.
struct Killed(std::process::Child, PathBuf);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.1).output();
    }
}

fn start_daemon(dir: &Path) -> Killed {
    let _ = fs::remove_file(dir.join("ready"));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon", "--ignored", "--nocapture"])
        .env("HFCRYPT_TEST_DAEMON", dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Killed(child, dir.join("mnt"));
    for _ in 0..1000 {
        if dir.join("ready").exists() {
            return daemon;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the daemon doesn't start");
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn what_was_closed_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("cache")).unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    let at = |path: String| dir.path().join("mnt").join(path);
    let mut expected = std::collections::BTreeMap::new();
    for round in 0..4u64 {
        let daemon = start_daemon(dir.path());
        for (path, data) in &expected {
            assert_eq!(&fs::read(at(String::clone(path))).unwrap(), data, "{path} in round {round}");
        }
        fs::create_dir(at(format!("d{round}"))).unwrap();
        for i in 0..20u64 {
            let (path, data) = (format!("d{round}/f{i}"), noise((i * 9000) as usize, round * 100 + i));
            fs::write(at(path.clone()), &data).unwrap();
            expected.insert(path, data);
        }
        let moved = expected.remove(&format!("d{round}/f3")).unwrap();
        fs::rename(at(format!("d{round}/f3")), at(format!("moved{round}"))).unwrap();
        expected.insert(format!("moved{round}"), moved);
        fs::remove_file(at(format!("d{round}/f4"))).unwrap();
        expected.remove(&format!("d{round}/f4"));
        let edited = expected.get_mut(&format!("d{round}/f19")).unwrap();
        edited[100_000..100_005].copy_from_slice(b"edit!");
        fs::File::options()
            .write(true)
            .open(at(format!("d{round}/f19")))
            .unwrap()
            .write_all_at(b"edit!", 100_000)
            .unwrap();
        drop(daemon);
    }
    let dir = Arc::new(dir);
    let mounted = Mounted::on(dir, Some(keys()), |_| {});
    mounted.flush();
    let mounted = mounted.again();
    for (path, data) in &expected {
        assert_eq!(&fs::read(mounted.at(path)).unwrap(), data, "{path}");
    }
    let files = run("find", &[text(&mounted.at("")), "-type", "f"]).lines().count();
    assert_eq!(files, expected.len());
    mounted.end();
}

/// Goes whatever happens.
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_full_staging_disk_is_an_error_that_passes() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let cache = dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", text(&cache)]);
    let _tmpfs = Tmpfs(cache);
    let mounted = Mounted::on(dir, Some(keys()), |options| {
        options.flush_debounce = Duration::from_secs(3600);
        options.flush_max_window = Duration::from_secs(3600);
    });
    let small = noise(1_000_000, 3);
    fs::write(mounted.at("small"), &small).unwrap();
    let refused = fs::write(mounted.at("large"), noise(40_000_000, 4));
    assert_eq!(errno(refused), libc::ENOSPC);
    assert_eq!(fs::read(mounted.at("small")).unwrap(), small);
    fs::remove_file(mounted.at("large")).unwrap();
    mounted.flush();
    // Freed slots are there for the next: the sync of a second may have to pass.
    let next = noise(9_000_000, 5);
    let written = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(200));
        fs::write(mounted.at("next"), &next).is_ok()
    });
    assert!(written);
    mounted.flush();
    assert_eq!(fs::read(mounted.at("next")).unwrap(), next);
    assert_eq!(fs::read(mounted.at("small")).unwrap(), small);
    mounted.end();
}
