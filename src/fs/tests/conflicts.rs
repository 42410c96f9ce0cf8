//! Others change the source meanwhile: both versions are kept, and nothing of theirs is overwritten.

use super::Mount;
use crate::fs::memory_view::Trouble;
use std::time::Duration;

fn is_conflict_copy(name: &str, of: &str) -> bool {
    name.starts_with(&format!("{of} (conflict "))
}

#[tokio::test]
async fn a_foreign_change_below_an_edit_keeps_both() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a.txt", b"base");
    mount.write_at("a.txt", 0, b"ours").await.unwrap();
    mount.view.put_foreign("a.txt", b"theirs");
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 1);
    let remote = mount.remote();
    assert_eq!(remote["a.txt"], b"theirs");
    let (name, content) = remote.iter().find(|(name, _)| is_conflict_copy(name, "a")).unwrap();
    assert!(name.ends_with(".txt"));
    assert_eq!(content, b"ours");
    assert_eq!(mount.read("a.txt").await.unwrap(), b"theirs");
    assert_eq!(mount.read(name).await.unwrap(), b"ours");
}

#[tokio::test]
async fn a_file_made_on_both_sides_keeps_both() {
    let mount = Mount::new().await;
    mount.write("a", b"ours").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote["a"], b"theirs");
    assert_eq!(remote.len(), 2);
}

#[tokio::test]
async fn a_foreign_change_of_a_file_that_we_remove_survives() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"base");
    mount.view.set_offline(true);
    mount.view.set_offline(false);
    let held = mount.view.hold_commits().await;
    mount.unlink("a").await.unwrap();
    assert!(mount.names("").await.is_empty());
    mount.view.put_foreign("a", b"theirs");
    drop(held);
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"theirs");
    assert_eq!(mount.vfs.status().conflicts, 1);
    assert_eq!(mount.read("a").await.unwrap(), b"theirs");
}

#[tokio::test]
async fn a_foreign_removal_of_a_file_that_we_remove_is_no_conflict() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"base");
    let held = mount.view.hold_commits().await;
    mount.unlink("a").await.unwrap();
    mount.view.delete_foreign("a");
    drop(held);
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn a_foreign_change_of_a_file_that_we_rename_stays_and_ours_appears_at_the_new_name() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"ours");
    let held = mount.view.hold_commits().await;
    mount.rename("a", "b").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    drop(held);
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!((remote["a"].as_slice(), remote["b"].as_slice()), (&b"theirs"[..], &b"ours"[..]));
}

#[tokio::test]
async fn a_foreign_file_where_we_rename_to_is_kept_beside() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"ours");
    let held = mount.view.hold_commits().await;
    mount.rename("a", "b").await.unwrap();
    mount.view.put_foreign("b", b"theirs");
    drop(held);
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote["b"], b"ours");
    assert_eq!(remote.len(), 2);
    let (name, content) = remote.iter().find(|(name, _)| *name != "b").unwrap();
    assert!(is_conflict_copy(name, "b"));
    assert_eq!(content, b"theirs");
}

#[tokio::test]
async fn a_lost_answer_is_no_conflict() {
    let mount = Mount::new().await;
    mount.view.put_foreign("old", b"old");
    mount.view.put_foreign("gone", b"gone");
    mount.write("new", b"new").await.unwrap();
    mount.view.set_trouble(Some(Trouble::LostAnswer));
    mount.flush().await;
    mount.rename("old", "moved").await.unwrap();
    mount.view.set_trouble(Some(Trouble::LostAnswer));
    mount.flush().await;
    mount.unlink("gone").await.unwrap();
    mount.view.set_trouble(Some(Trouble::LostAnswer));
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote.keys().collect::<Vec<_>>(), ["moved", "new"]);
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn operations_that_were_cut_off_are_repeated_until_they_are_done() {
    let mount = Mount::with(|options| options.flush_debounce = Duration::from_millis(1)).await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("b", b"b");
    mount.names("").await;
    mount.view.set_offline(true);
    mount.vfs.getattr(crate::fs::Ino::ROOT).await.unwrap();
    mount.view.set_offline(false);
    let held = mount.view.hold_commits().await;
    mount.unlink("a").await.unwrap();
    mount.rename("b", "c").await.unwrap();
    mount.view.set_offline(true);
    drop(held);
    let drained = mount.vfs.flush(Some(Duration::from_millis(50))).await;
    assert_eq!(drained.pending, 2);
    mount.view.set_offline(false);
    mount.flush().await;
    assert_eq!(mount.remote().into_iter().collect::<Vec<_>>(), [("c".to_owned(), b"b".to_vec())]);
}
