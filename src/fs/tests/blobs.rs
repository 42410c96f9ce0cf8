//! Files that have a Git blob id instead of a Xet hash. Their names and sizes work; their content can't be read yet.

use super::Mount;
use crate::fs::Error;
use crate::store::Error as StoreError;

#[track_caller]
fn refused<T>(result: Result<T, Error>) {
    match result.err() {
        Some(error @ Error::Store(StoreError::UnsupportedBlob)) => {
            assert_eq!((error.errno(), error.is_transient()), (libc::EIO, false));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn file_with_blob_id_is_shown_and_access_to_its_content_is_refused() {
    let mount = Mount::new().await;
    mount.view.put_blob("a", b"blob");
    assert_eq!(mount.stat("a").await.unwrap().len, 4);
    refused(mount.read("a").await);
    refused(mount.write_at("a", 1, b"x").await);
    refused(mount.copy("a", "b").await);
    let attribute = mount.vfs.getxattr(mount.find("a").await.unwrap(), "user.hf.hash");
    assert!(matches!(attribute, Err(Error::NoAttribute)), "a blob id is not a Xet hash");
}

#[tokio::test]
async fn pending_changes_of_files_with_blob_id_survive_kill() {
    let mount = Mount::new().await;
    for path in ["gone", "moved", "target", "rewritten", "unread"] {
        mount.view.put_blob(path, path.as_bytes());
    }
    mount.view.put_foreign("onto", b"onto");
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.unlink("gone").await.unwrap();
    mount.rename("moved", "new").await.unwrap();
    mount.rename("onto", "target").await.unwrap();
    mount.write("rewritten", b"ours").await.unwrap();
    view.set_damaged("unread");
    mount.unlink("unread").await.unwrap();
    view.set_offline(true);
    drop(held);
    let mount = mount.killed().await;
    view.set_offline(false);
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
    let expected = [("new", &b"moved"[..]), ("rewritten", b"ours"), ("target", b"onto")];
    assert_eq!(mount.remote(), expected.map(|(path, content)| (path.to_owned(), content.to_vec())).into());
}
