//! Files that are kept on this machine because of their names.

use super::Mount;
use crate::fs::Special;
use crate::fs::journal::file::Purpose;
use crate::fs::journal::ledger::{Entry, QueuedOp};
use crate::store::PlainPath;
use std::time::Duration;

#[tokio::test]
async fn kept_file_is_readable_over_restarts_and_never_uploaded() {
    let mount = Mount::new().await;
    mount.mkdir("d").await.unwrap();
    mount.write("d/.DS_Store", b"desktop").await.unwrap();
    mount.write("d/a", b"a").await.unwrap();
    mount.mkdir("__MACOSX").await.unwrap();
    mount.write("__MACOSX/a", b"fork").await.unwrap();
    mount.special("._link", Special::Link(b"a".to_vec())).await.unwrap();
    let drained = mount.vfs.flush(Some(std::time::Duration::from_secs(20))).await;
    assert_eq!((drained.flushed, drained.pending), (1, 0));
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.names("d").await, [".DS_Store", "a"]);
    assert_eq!(mount.read("d/.DS_Store").await.unwrap(), b"desktop");
    assert_eq!(mount.read("__MACOSX/a").await.unwrap(), b"fork");
    mount.write_at("d/.DS_Store", 0, b"D").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.read("d/.DS_Store").await.unwrap(), b"Desktop");
    let status = mount.vfs.status();
    assert_eq!((status.pending_files, status.kept_files), (0, 2));
    assert!(mount.vfs.pending(None, 10).is_empty());
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["d/a"]);
    mount.unlink("d/.DS_Store").await.unwrap();
    mount.flush().await;
    assert_eq!((mount.names("d").await, mount.vfs.status().kept_files), (vec!["a".to_owned()], 1));
}

#[tokio::test]
async fn kept_file_is_uploaded_once_it_has_another_name() {
    let mount = Mount::new().await;
    mount.write("._a", b"1").await.unwrap();
    mount.mkdir("__MACOSX").await.unwrap();
    mount.write("__MACOSX/b", b"2").await.unwrap();
    mount.rename("._a", "a").await.unwrap();
    mount.rename("__MACOSX", "folder").await.unwrap();
    assert_eq!(mount.vfs.status().pending_files, 2);
    mount.flush().await;
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["a", "folder/b"]);
    assert_eq!(mount.vfs.status().kept_files, 0);
}

#[tokio::test]
async fn file_with_filtered_name_is_kept_only_if_remote_never_had_it() {
    let mount = Mount::new().await;
    mount.view.put_foreign("there", b"there");
    mount.view.put_foreign("d/x", b"x");
    mount.view.put_foreign("Thumbs.db", b"theirs");
    mount.write("new", b"new").await.unwrap();
    mount.rename("new", "desktop.ini").await.unwrap();
    for from in ["there", "d"] {
        assert_eq!(mount.rename(from, "._moved").await.unwrap_err().errno(), libc::EACCES);
    }
    assert_eq!(mount.link("there", "._linked").await.unwrap_err().errno(), libc::EACCES);
    // A file that is at the remote already is treated like any other, until it is removed.
    mount.write_at("Thumbs.db", 0, b"T").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["Thumbs.db"], b"Theirs");
    mount.unlink("Thumbs.db").await.unwrap();
    mount.write("Thumbs.db", b"ours").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.read("Thumbs.db").await.unwrap(), b"ours");
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["d/x", "there"]);
}

#[tokio::test]
async fn unfiltered_mount_uploads_kept_files() {
    let mut mount = Mount::new().await;
    mount.write(".DS_Store", b"desktop").await.unwrap();
    mount.options.filter_os_files = false;
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), [".DS_Store"]);
}

#[tokio::test]
async fn remote_file_hidden_by_kept_file_is_counted_and_keeps_folder() {
    let mount = Mount::new().await;
    mount.mkdir("d").await.unwrap();
    for name in ["d/.DS_Store", "d/Thumbs.db"] {
        mount.write(name, b"ours").await.unwrap();
        mount.view.put_foreign(name, b"theirs");
    }
    assert_eq!(mount.names("d").await, [".DS_Store", "Thumbs.db"]);
    assert_eq!(mount.vfs.status().unreadable_entries, 2);
    mount.rename("d/Thumbs.db", "a").await.unwrap();
    assert_eq!(mount.read("d/Thumbs.db").await.unwrap(), b"theirs");
    mount.unlink("d/.DS_Store").await.unwrap();
    assert!(matches!(mount.rmdir("d").await, Err(crate::fs::Error::NotEmpty)));
    assert_eq!(mount.read("d/.DS_Store").await.unwrap(), b"theirs");
    assert_eq!(mount.vfs.status().unreadable_entries, 0);
}

#[tokio::test]
async fn file_renamed_to_filtered_name_during_upload_is_kept() {
    let mount = Mount::new().await;
    mount.write("a", b"content").await.unwrap();
    let edit = mount.vfs.schedule.edits().remove(0);
    // The journal has the new name before the policy is applied.
    let path = PlainPath::new(".DS_Store").unwrap();
    mount.vfs.journal.append(Purpose::Work, vec![Entry::Move { file: edit.file, path: Some(path) }]).unwrap();
    let drained = mount.vfs.flush(Some(Duration::from_secs(20))).await;
    assert_eq!((drained.flushed, drained.pending), (0, 0));
    assert_eq!((mount.remote().len(), mount.vfs.status().kept_files), (0, 1));
}

#[tokio::test]
async fn file_with_queued_commit_is_not_kept() {
    let mount = Mount::new().await;
    mount.write("a", b"content").await.unwrap();
    let edit = mount.vfs.schedule.edits().remove(0);
    let commits = mount.view.hold_commits().await;
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    while !mount.vfs.journal.ledger().queue().iter().any(|(_, what)| matches!(what, QueuedOp::Put { .. })) {
        tokio::task::yield_now().await;
    }
    mount.vfs.schedule.keep(edit.file);
    drop(commits);
    flush.await.unwrap();
    while mount.remote().is_empty() || mount.vfs.schedule.is_kept(edit.file) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mount.write_at("a", 0, b"C").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"Content");
}
