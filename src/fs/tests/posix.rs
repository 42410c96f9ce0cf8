//! Features of POSIX that a bucket doesn't have: special files, extended attributes, owners, copies, holes.

use super::Mount;
use crate::fs::memory_view::InjectedFault;
use crate::fs::{Allocate, FileKind, Ino, NewAttrs, SetAttr, SetXattr, Special};
use crate::store::Change;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

macro_rules! refused {
    ($result:expr, $errno:ident) => {
        match $result {
            Ok(_) => panic!("not refused"),
            Err(error) => assert_eq!(error.errno(), libc::$errno, "{error}"),
        }
    };
}

#[tokio::test]
async fn special_files_outlive_mount_and_need_no_remote_object() {
    let mount = Mount::new().await;
    mount.mkdir("d").await.unwrap();
    mount.symlink("d/link", "../a").await.unwrap();
    mount.special("fifo", Special::Fifo).await.unwrap();
    mount.special("socket", Special::Socket).await.unwrap();
    mount.special("null", Special::CharDevice(259)).await.unwrap();
    mount.special("disk", Special::BlockDevice(2048)).await.unwrap();
    mount.flush().await;
    let mount = mount.killed().await;
    assert_eq!(mount.names("").await, ["d", "disk", "fifo", "null", "socket"]);
    let link = mount.stat("d/link").await.unwrap();
    assert_eq!((link.kind, link.len, link.mode), (FileKind::Link, 4, 0o777));
    assert_eq!(mount.vfs.readlink(link.ino).unwrap(), b"../a");
    let device = mount.stat("null").await.unwrap();
    assert_eq!((device.kind, device.device), (FileKind::CharDevice, 259));
    assert_eq!(mount.stat("fifo").await.unwrap().kind, FileKind::Fifo);
    refused!(mount.vfs.readlink(device.ino), EINVAL);
    assert!(mount.view.take_commits().is_empty());
}

#[tokio::test]
async fn special_files_are_moved_removed_and_replaced_like_files() {
    let mount = Mount::new().await;
    mount.view.put_foreign("d/file", b"1");
    mount.symlink("d/link", "x").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    mount.rename("e/link", "e/moved").await.unwrap();
    refused!(mount.symlink("e/moved", "y").await, EEXIST);
    let mount = mount.killed().await;
    assert_eq!(mount.names("e").await, ["file", "moved"]);
    mount.flush().await;
    assert_eq!(mount.names("e").await, ["file", "moved"]);
    mount.rename("e/moved", "e/file").await.unwrap();
    assert_eq!(mount.stat("e/file").await.unwrap().kind, FileKind::Link);
    mount.flush().await;
    assert!(mount.remote().is_empty());
    assert_eq!(mount.stat("e/file").await.unwrap().kind, FileKind::Link);
    mount.write("new", b"2").await.unwrap();
    mount.rename("new", "e/file").await.unwrap();
    refused!(mount.rmdir("e").await, ENOTEMPTY);
    mount.flush().await;
    let mount = mount.killed().await;
    assert_eq!(mount.read("e/file").await.unwrap(), b"2");
    mount.symlink("e/last", "x").await.unwrap();
    mount.unlink("e/last").await.unwrap();
    mount.unlink("e/file").await.unwrap();
    mount.rmdir("e").await.unwrap();
    mount.flush().await;
    assert!(mount.killed().await.names("").await.is_empty());
}

#[tokio::test]
async fn remote_file_is_shown_instead_of_special_file() {
    let mount = Mount::new().await;
    mount.symlink("a", "x").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    assert_eq!(mount.read("a").await.unwrap(), b"theirs");
    let mount = mount.killed().await;
    assert_eq!(mount.read("a").await.unwrap(), b"theirs");
    mount.view.delete_foreign("a");
    assert_eq!(mount.stat("a").await.unwrap().kind, FileKind::Link);
    mount.view.put_foreign("a", b"theirs");
    mount.unlink("a").await.unwrap();
    mount.flush().await;
    assert!(mount.names("").await.is_empty(), "both are removed");
    mount.mkdir("d").await.unwrap();
    mount.symlink("d/a", "x").await.unwrap();
    mount.view.put_foreign("d/a/b", b"theirs");
    mount.unlink("d/a/b").await.unwrap();
    mount.rmdir("d/a").await.unwrap();
    mount.flush().await;
    mount.rmdir("d").await.unwrap();
    assert!(mount.killed().await.names("").await.is_empty());
}

#[tokio::test]
async fn new_entry_has_owner_of_process_and_group_of_setgid_directory() {
    let mount = Mount::new().await;
    let new_attrs = |mode| NewAttrs { mode: Some(mode), owner: Some((7, 8)) };
    let made = mount.vfs.mkdir(Ino::ROOT, "d", new_attrs(0o750)).await.unwrap();
    assert_eq!((made.uid, made.gid, made.mode), (7, 8, 0o750));
    let set = SetAttr { mode: Some(0o2755), gid: Some(99), ..SetAttr::default() };
    mount.vfs.setattr(made.ino, set).await.unwrap();
    let file = mount.vfs.create_closed(made.ino, "f", new_attrs(0o640)).await.unwrap();
    assert_eq!((file.uid, file.gid, file.mode), (7, 99, 0o640));
    let below = mount.vfs.mkdir(made.ino, "d", new_attrs(0o755)).await.unwrap();
    assert_eq!((below.uid, below.gid, below.mode), (7, 99, 0o2755));
    mount.view.put_foreign("theirs", b"");
    let theirs = mount.stat("theirs").await.unwrap();
    assert_eq!((theirs.uid, theirs.gid), (1000, 1000));
}

#[tokio::test]
async fn user_extended_attributes_are_kept_and_bounded() {
    let mount = Mount::new().await;
    mount.write("a", b"").await.unwrap();
    let ino = mount.find("a").await.unwrap();
    let set = |name: &str, value: &[u8], how| mount.vfs.setxattr(ino, name, value, how);
    set("user.one", b"1", SetXattr::Create).unwrap();
    refused!(set("user.one", b"2", SetXattr::Create), EEXIST);
    refused!(set("user.two", b"2", SetXattr::Replace), ENODATA);
    set("user.one", b"2", SetXattr::Replace).unwrap();
    set("user.two", b"", SetXattr::Any).unwrap();
    assert_eq!(mount.vfs.getxattr(ino, "user.one").unwrap(), b"2");
    assert_eq!(mount.vfs.listxattr(ino).unwrap(), b"user.one\0user.two\0");
    refused!(set("user.three", &[0; 65536], SetXattr::Any), ENOSPC);
    refused!(set("security.capability", b"", SetXattr::Any), EOPNOTSUPP);
    refused!(set("user.hf.hash", b"", SetXattr::Any), EPERM);
    mount.vfs.removexattr(ino, "user.one").unwrap();
    refused!(mount.vfs.removexattr(ino, "user.one"), ENODATA);
    mount.vfs.setxattr(Ino::ROOT, "user.x", &[1; 100], SetXattr::Any).unwrap();
    mount.unlink("a").await.unwrap();
    assert_eq!(crate::fs::lock::lock(&mount.vfs.tree).xattr_bytes(), 106);
}

/// Returns the number of puts in the commits since the last call.
fn puts(mount: &Mount) -> usize {
    let commits = mount.view.take_commits();
    commits.iter().flatten().filter(|op| matches!(op.change, Change::Put { .. })).count()
}

#[tokio::test]
async fn link_is_copy_by_hash_without_reads() {
    let mount = Mount::new().await;
    let content = vec![b'x'; 200_000];
    mount.view.put_foreign("a", &content);
    let reads = mount.view.hold_reads().await;
    mount.link("a", "b").await.unwrap();
    refused!(mount.link("a", "b").await, EEXIST);
    mount.flush().await;
    drop(reads);
    assert_eq!(puts(&mount), 1);
    assert_eq!(mount.remote()["b"], content);
    let (a, b) = (mount.stat("a").await.unwrap(), mount.stat("b").await.unwrap());
    assert_eq!((a.nlink, b.nlink, b.len), (1, 1, 200_000));
    mount.write_at("b", 0, b"other").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], content);
    assert_eq!(mount.remote()["b"][..6], *b"otherx");
    mount.staging_empties().await;
}

#[tokio::test]
async fn copy_committed_while_open_keeps_content() {
    let mount = Mount::new().await;
    let content = vec![b'x'; 200_000];
    mount.view.put_foreign("a", &content);
    mount.link("a", "b").await.unwrap();
    let handle = mount.open("b", libc::O_RDWR).await.unwrap();
    mount.flush().await;
    mount.put(handle, 100_000, b"y").await.unwrap();
    let mut expected = content;
    expected[100_000] = b'y';
    assert_eq!(mount.read_all(handle).await.unwrap(), expected);
    mount.close(handle).await.unwrap();
    let mount = mount.killed().await;
    assert_eq!(mount.read("b").await.unwrap(), expected);
    mount.flush().await;
    assert_eq!(mount.remote()["b"], expected);
}

#[tokio::test]
async fn link_of_uncommitted_file_is_copied_locally_and_survives_kill() {
    let mount = Mount::new().await;
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    mount.write("a", &content).await.unwrap();
    mount.link("a", "b").await.unwrap();
    mount.unlink("a").await.unwrap();
    let mount = mount.killed().await;
    assert_eq!(mount.names("").await, ["b"]);
    assert_eq!(mount.read("b").await.unwrap(), content);
    mount.flush().await;
    assert_eq!(mount.remote()["b"], content);
    mount.staging_empties().await;
}

#[tokio::test]
async fn uncommitted_link_survives_kill() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"content");
    mount.link("a", "b").await.unwrap();
    let mount = mount.killed().await;
    assert_eq!(mount.read("b").await.unwrap(), b"content");
    mount.flush().await;
    assert_eq!(mount.remote().len(), 2);
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn link_is_refused_if_copy_would_not_be_equivalent() {
    let mount = Mount::new().await;
    mount.special("fifo", Special::Fifo).await.unwrap();
    refused!(mount.link("fifo", "b").await, EPERM);
    mount.symlink("s", "x").await.unwrap();
    mount.link("s", "t").await.unwrap();
    assert_eq!(mount.stat("t").await.unwrap().kind, FileKind::Link);
    mount.mkdir("d").await.unwrap();
    refused!(mount.link("d", "b").await, EISDIR);
    for path in ["d/objects", "d/objects/ab", "objects"] {
        mount.mkdir(path).await.unwrap();
    }
    for path in ["d/HEAD", "file"] {
        mount.write(path, b"x").await.unwrap();
    }
    refused!(mount.link("file", "d/objects/ab/cdef").await, EPERM);
    mount.link("file", "d/outside").await.unwrap();
    mount.link("file", "objects/of-something-else").await.unwrap();
}

#[tokio::test]
async fn whole_file_copy_sends_hash_and_set_time() {
    let mount = Mount::new().await;
    let content = vec![b'x'; 100_000];
    mount.view.put_foreign("a", &content);
    assert!(mount.copy("a", "b").await.unwrap());
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = SetAttr { mtime: Some(time), ..SetAttr::default() };
    mount.vfs.setattr(mount.find("b").await.unwrap(), set).await.unwrap();
    assert_eq!(mount.stat("b").await.unwrap().len, 100_000);
    let reads = mount.view.hold_reads().await;
    mount.flush().await;
    drop(reads);
    assert_eq!(mount.remote()["b"], content);
    assert_eq!(mount.view.mtime("b"), OffsetDateTime::from(time));
    assert!(mount.copy("b", "a").await.unwrap(), "also onto what is there");
    mount.write("a", b"dirty").await.unwrap();
    assert!(!mount.copy("a", "b").await.unwrap(), "content that the remote lacks has to be copied");
    assert_eq!(mount.read("b").await.unwrap(), b"dirty");
}

#[tokio::test]
async fn copy_refused_by_remote_is_uploaded_whole() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"content");
    mount.link("a", "b").await.unwrap();
    mount.view.set_fault(Some(InjectedFault::Forbidden));
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    let mut stored = mount.vfs.pool.used();
    while stored == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        stored = mount.vfs.pool.used();
    }
    mount.view.set_fault(None);
    flush.await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["b"], b"content");
    mount.staging_empties().await;
}

#[tokio::test]
async fn copy_survives_kill_and_edit() {
    let mount = Mount::new().await;
    let content = vec![b'x'; 200_000];
    mount.view.put_foreign("a", &content);
    assert!(mount.copy("a", "b").await.unwrap());
    let mount = mount.killed().await;
    assert_eq!(mount.read("b").await.unwrap(), content);
    mount.write_at("b", 70_000, b"y").await.unwrap();
    mount.truncate("b", 150_000).await.unwrap();
    let mut expected = content[..150_000].to_vec();
    expected[70_000] = b'y';
    let mount = mount.killed().await;
    assert_eq!(mount.read("b").await.unwrap(), expected);
    mount.flush().await;
    assert_eq!(mount.remote()["b"], expected);
}

#[tokio::test]
async fn fallocate_extends_and_punches_holes() {
    let mount = Mount::new().await;
    let size = 200_000u64;
    mount.write("a", &vec![b'x'; size as usize]).await.unwrap();
    let handle = mount.open("a", libc::O_RDWR).await.unwrap();
    let mut expected = vec![b'x'; size as usize];
    let hole = Allocate::Zero { keep_size: true };
    mount.vfs.allocate(handle, 65_000, 70_000, hole).await.unwrap();
    expected[65_000..135_000].fill(0);
    mount.vfs.allocate(handle, 190_000, 50_000, hole).await.unwrap();
    expected[190_000..].fill(0);
    mount.vfs.allocate(handle, 300_000, 50_000, hole).await.unwrap();
    mount.vfs.allocate(handle, 300_000, 50_000, Allocate::Reserve).await.unwrap();
    assert_eq!(mount.read_all(handle).await.unwrap(), expected);
    mount.vfs.allocate(handle, 199_999, 2, Allocate::Zero { keep_size: false }).await.unwrap();
    mount.vfs.allocate(handle, 100, 220_000, Allocate::Extend).await.unwrap();
    expected.resize(220_100, 0);
    assert_eq!(mount.read_all(handle).await.unwrap(), expected);
    refused!(mount.vfs.allocate(handle, 0, 1 << 60, Allocate::Extend).await, EFBIG);
    mount.close(handle).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], expected);
    let reader = mount.open("a", libc::O_RDONLY).await.unwrap();
    refused!(mount.vfs.allocate(reader, 0, 1, Allocate::Extend).await, EBADF);
}
