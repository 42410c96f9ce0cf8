//! Files and folders of the same name.

use super::Mount;
use crate::fs::Error;
use crate::fs::memory_view::BAD_CHECK;
use crate::store::PlainPath;

fn path(text: &str) -> PlainPath {
    PlainPath::new(text).unwrap()
}

/// Flushes, and returns the number of conflicts that were counted by then.
async fn conflicts(mount: &Mount) -> u64 {
    mount.vfs.flush(Some(std::time::Duration::from_secs(20))).await.conflicts
}

const ALIAS: &str = "n (conflict with folder)";

#[tokio::test]
async fn file_beside_folder_is_usable_under_its_alias() {
    let mount = Mount::new().await;
    for name in ["n", "m", "o"] {
        mount.view.put_foreign(name, b"file");
        mount.view.put_foreign(&format!("{name}/i"), b"below");
    }
    let alias = |name: &str| format!("{name} (conflict with folder)");
    assert_eq!(mount.names("").await.len(), 6);
    assert_eq!(mount.names("n").await, ["i"]);
    assert_eq!(mount.read(ALIAS).await.unwrap(), b"file");
    mount.rename(ALIAS, "moved").await.unwrap();
    mount.unlink(&alias("m")).await.unwrap();
    mount.write_at(&alias("o"), 0, b"F").await.unwrap();
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote.keys().collect::<Vec<_>>(), ["m/i", "moved", "n/i", "o", "o/i"]);
    assert_eq!((&remote["moved"][..], &remote["o"][..]), (&b"file"[..], &b"File"[..]));
    assert_eq!(mount.read(&alias("o")).await.unwrap(), b"File");
    assert_eq!(mount.names("").await, ["m", "moved", "n", "o", &alias("o")]);
}

#[tokio::test]
async fn file_committed_beside_foreign_folder_is_one_conflict() {
    let mount = Mount::new().await;
    mount.write("n", b"ours").await.unwrap();
    mount.view.put_foreign("n/i", b"theirs");
    assert_eq!(conflicts(&mount).await, 1);
    assert_eq!(mount.vfs.status().conflicts, 1);
    assert_eq!(mount.names("").await, ["n", ALIAS]);
    assert_eq!(mount.read("n/i").await.unwrap(), b"theirs");
    assert_eq!(mount.read(ALIAS).await.unwrap(), b"ours");
    assert_eq!(conflicts(&mount).await, 1);
}

#[tokio::test]
async fn folder_committed_beside_foreign_file_is_one_conflict() {
    let mount = Mount::new().await;
    mount.mkdir("n").await.unwrap();
    mount.mkdir("n/deep").await.unwrap();
    mount.write("n/deep/i", b"ours").await.unwrap();
    mount.write("n/deep/j", b"ours").await.unwrap();
    mount.view.put_foreign("n", b"theirs");
    // The folder also keeps its name before its first file is committed.
    assert_eq!(mount.names("").await, ["n", ALIAS]);
    assert_eq!(mount.read(ALIAS).await.unwrap(), b"theirs");
    assert_eq!(conflicts(&mount).await, 1);
    assert_eq!(mount.names("").await, ["n", ALIAS]);
    assert_eq!(mount.read("n/deep/i").await.unwrap(), b"ours");
}

#[tokio::test]
async fn names_created_by_other_clients_are_not_conflicts() {
    let mount = Mount::new().await;
    mount.view.put_foreign("n", b"theirs");
    mount.view.put_foreign("n/i", b"theirs");
    mount.write("n/j", b"ours").await.unwrap();
    mount.write("other", b"ours").await.unwrap();
    assert_eq!(mount.names("").await, ["n", ALIAS, "other"]);
    // Ours is below a file's name, whichever came first.
    assert_eq!(conflicts(&mount).await, 1);
    let mount = Mount::new().await;
    mount.view.put_foreign("n", b"theirs");
    mount.view.put_foreign("n/i", b"theirs");
    mount.write("other", b"ours").await.unwrap();
    assert_eq!(conflicts(&mount).await, 0);
}

#[tokio::test]
async fn folder_hidden_by_pending_file_is_counted_and_keeps_parent() {
    let mount = Mount::new().await;
    mount.mkdir("d").await.unwrap();
    mount.write("d/n", b"ours").await.unwrap();
    mount.view.put_foreign("d/n/i", b"theirs");
    assert_eq!(mount.names("d").await, ["n"]);
    assert_eq!(mount.vfs.status().unreadable_entries, 1);
    mount.unlink("d/n").await.unwrap();
    assert!(matches!(mount.rmdir("d").await, Err(Error::NotEmpty)));
    assert_eq!(mount.vfs.status().unreadable_entries, 0);
    assert_eq!(mount.names("d").await, ["n"]);
}

#[tokio::test]
async fn failed_check_of_folder_does_not_block_others() {
    let mount = Mount::new().await;
    let bad = format!("{BAD_CHECK}/n");
    for at in ["a/n", &bad, "z/n"] {
        mount.view.put_foreign(at, b"ours");
        mount.view.put_foreign(&format!("{at}/i"), b"theirs");
        mount.vfs.twins.record_created(&path(at));
    }
    assert!(mount.vfs.sync.find_twins().await.is_err());
    assert_eq!(mount.vfs.status().conflicts, 2);
    // The folders are looked up together. After each failure they are halved, until the bad one is in a group of its
    // own.
    for _ in 0..3 {
        assert!(mount.vfs.sync.find_twins().await.is_err());
    }
    mount.view.take_looked_up();
    assert!(mount.vfs.sync.find_twins().await.is_err());
    let asked = mount.view.take_looked_up();
    assert!(!asked.is_empty());
    let asked = asked.iter().flat_map(|(files, folders)| files.iter().chain(folders));
    assert_eq!(asked.filter(|path| !path.as_str().contains(BAD_CHECK)).count(), 0);
}

#[tokio::test]
async fn new_files_of_one_folder_are_looked_up_together() {
    let mount = Mount::new().await;
    (0..3000).for_each(|number| mount.vfs.twins.record_created(&path(&format!("d/{number}"))));
    mount.vfs.sync.find_twins().await.unwrap();
    let asked = mount.view.take_looked_up();
    let sizes: Vec<_> = asked.iter().map(|(files, folders)| (files.len(), folders.len())).collect();
    assert_eq!(sizes, [(0, 1), (3000, 0)]);
}

#[tokio::test]
async fn renamed_folder_is_looked_up_without_its_files() {
    let mount = Mount::new().await;
    for number in 0..20 {
        mount.view.put_foreign(&format!("d/{number}"), b"theirs");
    }
    mount.rename("d", "e").await.unwrap();
    mount.flush().await;
    mount.vfs.sync.find_twins().await.unwrap();
    assert_eq!(mount.view.take_looked_up(), [(vec![], vec![path("e")])]);
}

#[tokio::test]
async fn hidden_folder_of_removed_directory_is_not_counted() {
    let mount = Mount::new().await;
    mount.view.put_foreign("d/x", b"theirs");
    mount.write("d/n", b"ours").await.unwrap();
    mount.view.put_foreign("d/n/i", b"theirs");
    assert_eq!(mount.names("d").await, ["n", "x"]);
    assert_eq!(mount.vfs.status().unreadable_entries, 1);
    // The directory isn't listed again before it is removed.
    mount.unlink("d/n").await.unwrap();
    ["d/x", "d/n/i"].iter().for_each(|at| mount.view.delete_foreign(at));
    assert_eq!(mount.names("").await, Vec::<String>::new());
    assert_eq!(mount.vfs.status().unreadable_entries, 0);
}

#[tokio::test]
async fn file_with_queued_removal_is_not_twin_of_its_folder() {
    let mount = Mount::new().await;
    mount.write("n", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.refuse_for_now("n");
    mount.unlink("n").await.unwrap();
    mount.mkdir("n").await.unwrap();
    mount.vfs.twins.record_moved_folder(&path("n"));
    mount.vfs.sync.find_twins().await.unwrap();
    assert!(mount.remote().contains_key("n"), "it is still there when it is looked up");
    assert_eq!(mount.vfs.status().conflicts, 0);
    mount.view.allow("n");
    // The name is looked up again after the file is removed.
    assert_eq!(conflicts(&mount).await, 0);
    mount.view.put_foreign("n", b"theirs");
    mount.write("n/i", b"ours").await.unwrap();
    assert_eq!(conflicts(&mount).await, 1);
}

#[tokio::test]
async fn file_that_a_folder_replaced_before_its_look_is_no_twin() {
    let mount = Mount::new().await;
    mount.write("n", b"file").await.unwrap();
    mount.flush().await;
    mount.unlink("n").await.unwrap();
    mount.mkdir("n").await.unwrap();
    mount.write("n/i", b"below").await.unwrap();
    mount.flush().await;
    mount.vfs.twins.record_created(&path("n"));
    assert_eq!(conflicts(&mount).await, 0);
}

#[tokio::test]
async fn folder_that_a_file_replaced_before_its_look_is_no_twin() {
    let mount = Mount::new().await;
    mount.mkdir("n").await.unwrap();
    mount.write("n/i", b"below").await.unwrap();
    mount.flush().await;
    mount.unlink("n/i").await.unwrap();
    mount.rmdir("n").await.unwrap();
    mount.write("n", b"file").await.unwrap();
    mount.flush().await;
    mount.vfs.twins.record_created(&path("n/i"));
    assert_eq!(conflicts(&mount).await, 0);
}
