//! Other clients change the remote concurrently: both versions are kept, and none of theirs is overwritten.

use super::Mount;
use crate::fs::OnConflict::{Fail, KeepBoth, Overwrite};
use crate::fs::memory_view::InjectedFault;
use crate::fs::{Access, OnConflict, PendingState};
use std::collections::BTreeMap;
use std::time::Duration;

fn is_conflict_copy(name: &str, of: &str) -> bool {
    name.starts_with(&format!("{of} (conflict "))
}

#[tokio::test]
async fn foreign_change_of_edited_file_keeps_both_versions() {
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
async fn file_created_on_both_sides_keeps_both_versions() {
    let mount = Mount::new().await;
    mount.write("a", b"ours").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote["a"], b"theirs");
    assert_eq!(remote.len(), 2);
}

#[tokio::test]
async fn foreign_change_of_removed_file_survives() {
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
async fn foreign_removal_of_removed_file_is_not_conflict() {
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
async fn foreign_change_of_renamed_file_stays_at_old_name() {
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
async fn foreign_file_at_rename_target_gets_conflict_name() {
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
async fn lost_response_is_not_conflict() {
    let mount = Mount::new().await;
    mount.view.put_foreign("old", b"old");
    mount.view.put_foreign("gone", b"gone");
    mount.write("new", b"new").await.unwrap();
    mount.view.set_fault(Some(InjectedFault::LostAnswer));
    mount.flush().await;
    mount.rename("old", "moved").await.unwrap();
    mount.view.set_fault(Some(InjectedFault::LostAnswer));
    mount.flush().await;
    mount.unlink("gone").await.unwrap();
    mount.view.set_fault(Some(InjectedFault::LostAnswer));
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote.keys().collect::<Vec<_>>(), ["moved", "new"]);
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn interrupted_operations_are_repeated_until_done() {
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

/// Performs `work` on the mount and `foreign` at the remote, concurrently, starting from the files `base`. Returns
/// the files of the remote after a flush, and the mount. Conflict copies are called `…*`.
async fn clash<W, F>(policy: OnConflict, base: &[&str], work: W, foreign: F) -> (BTreeMap<String, String>, Mount)
where
    W: AsyncFnOnce(&Mount),
    F: FnOnce(&Mount),
{
    let mount = Mount::with(|options| options.on_conflict = policy).await;
    for path in base {
        mount.view.put_foreign(path, format!("base {path}").as_bytes());
    }
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    work(&mount).await;
    foreign(&mount);
    drop(held);
    mount.vfs.flush(Some(Duration::from_secs(20))).await;
    let name = |path: &str| match path.split_once(" (conflict ") {
        Some((stem, _)) => format!("{stem}*"),
        None => path.to_owned(),
    };
    let text = |content: Vec<u8>| String::from_utf8(content).unwrap();
    (mount.remote().into_iter().map(|(path, content)| (name(&path), text(content))).collect(), mount)
}

fn source(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

/// Checks the remote's files, the number of conflicts and the parked changes. If a change is parked, also checks that
/// the mount still shows its own state, and that it can continue once the foreign change is removed.
fn check(
    policy: OnConflict,
    (found, mount): &(BTreeMap<String, String>, Mount),
    expected: &[(&str, &str)],
    conflicts: u64,
) {
    assert_eq!(*found, source(expected), "{policy:?}");
    let status = mount.vfs.status();
    let parked = u64::from(policy == Fail);
    assert_eq!(
        (status.conflicts, status.parked_files, status.pending_files),
        (conflicts, parked, parked),
        "{policy:?}"
    );
    if policy == Fail {
        let pending = mount.vfs.pending(None, 9);
        assert_eq!(pending[0].state, PendingState::Parked);
        assert_eq!(pending[0].error.as_deref(), Some("conflict: also changed remotely"));
    }
}

#[tokio::test]
async fn commit_over_other_version_follows_policy() {
    for (policy, expected, count) in [
        (KeepBoth, &[("a", "theirs"), ("a*", "ours a")][..], 1),
        (Overwrite, &[("a", "ours a")], 1),
        (Fail, &[("a", "theirs")], 0),
    ] {
        let work = async |mount: &Mount| mount.write_at("a", 0, b"ours").await.unwrap();
        let outcome = clash(policy, &["a"], work, |mount| mount.view.put_foreign("a", b"theirs")).await;
        check(policy, &outcome, expected, count);
        let ours = outcome.1.tree().await;
        assert!(ours.values().flatten().any(|content| content == b"ours a"), "{policy:?}");
    }
}

#[tokio::test]
async fn commit_after_foreign_removal_follows_policy() {
    for (policy, expected) in [(KeepBoth, &[("a", "ours a")][..]), (Overwrite, &[("a", "ours a")]), (Fail, &[])] {
        let work = async |mount: &Mount| mount.write_at("a", 0, b"ours").await.unwrap();
        let outcome = clash(policy, &["a"], work, |mount| mount.view.delete_foreign("a")).await;
        check(policy, &outcome, expected, 0);
    }
}

#[tokio::test]
async fn removal_of_other_version_follows_policy() {
    for (policy, expected, count) in
        [(KeepBoth, &[("a", "theirs")][..], 1), (Overwrite, &[], 1), (Fail, &[("a", "theirs")], 0)]
    {
        let work = async |mount: &Mount| mount.unlink("a").await.unwrap();
        let outcome = clash(policy, &["a"], work, |mount| mount.view.put_foreign("a", b"theirs")).await;
        check(policy, &outcome, expected, count);
        let shown = if policy == KeepBoth { vec!["a"] } else { vec![] };
        assert_eq!(outcome.1.names("").await, shown, "{policy:?}");
    }
}

#[tokio::test]
async fn rename_of_other_version_follows_policy() {
    for (policy, expected, count) in [
        (KeepBoth, &[("a", "theirs"), ("b", "base a")][..], 1),
        (Overwrite, &[("b", "base a")], 1),
        (Fail, &[("a", "theirs")], 0),
    ] {
        let work = async |mount: &Mount| mount.rename("a", "b").await.unwrap();
        let outcome = clash(policy, &["a"], work, |mount| mount.view.put_foreign("a", b"theirs")).await;
        check(policy, &outcome, expected, count);
    }
}

#[tokio::test]
async fn rename_onto_other_version_follows_policy() {
    for (policy, expected, count) in [
        (KeepBoth, &[("b", "base a"), ("b*", "theirs")][..], 1),
        (Overwrite, &[("b", "base a")], 1),
        (Fail, &[("a", "base a"), ("b", "theirs")], 0),
    ] {
        for base in [&["a"][..], &["a", "b"]] {
            let work = async |mount: &Mount| mount.rename("a", "b").await.unwrap();
            let outcome = clash(policy, base, work, |mount| mount.view.put_foreign("b", b"theirs")).await;
            check(policy, &outcome, expected, count);
            assert_eq!(outcome.1.read("b").await.unwrap(), b"base a", "{policy:?}");
        }
    }
}

#[tokio::test]
async fn rename_of_removed_file_follows_policy() {
    for (policy, expected, count) in
        [(KeepBoth, &[("b", "base a")][..], 1), (Overwrite, &[("b", "base a")], 1), (Fail, &[], 0)]
    {
        let work = async |mount: &Mount| mount.rename("a", "b").await.unwrap();
        let outcome = clash(policy, &["a"], work, |mount| mount.view.delete_foreign("a")).await;
        check(policy, &outcome, expected, count);
    }
}

#[tokio::test]
async fn directory_rename_onto_files_follows_policy() {
    for (policy, expected, count) in [
        (KeepBoth, &[("e/only", "other"), ("e/x", "base d/x"), ("e/x*", "theirs"), ("e/y/z", "base d/y/z")][..], 1),
        (Overwrite, &[("e/only", "other"), ("e/x", "base d/x"), ("e/y/z", "base d/y/z")], 1),
        (Fail, &[("d/x", "base d/x"), ("d/y/z", "base d/y/z"), ("e/only", "other"), ("e/x", "theirs")], 0),
    ] {
        let work = async |mount: &Mount| mount.rename("d", "e").await.unwrap();
        let foreign = |mount: &Mount| {
            mount.view.put_foreign("e/x", b"theirs");
            mount.view.put_foreign("e/only", b"other");
        };
        let outcome = clash(policy, &["d/x", "d/y/z"], work, foreign).await;
        check(policy, &outcome, expected, count);
        assert_eq!(outcome.1.read("e/x").await.unwrap(), b"base d/x", "{policy:?}");
        if policy != Fail {
            assert!(outcome.1.find("d").await.is_err(), "{policy:?}");
            assert_eq!(outcome.1.read("e/only").await.unwrap(), b"other");
        }
    }
}

#[tokio::test]
async fn conflict_in_renamed_directory_does_not_block_writes_below_it() {
    let work = async |mount: &Mount| {
        mount.rename("d", "e").await.unwrap();
        mount.write_at("e/x", 0, b"ours").await.unwrap();
        mount.write("e/new", b"new").await.unwrap();
    };
    let foreign = |mount: &Mount| mount.view.put_foreign("e/x", b"theirs");
    let outcome = clash(KeepBoth, &["d/x"], work, foreign).await;
    check(KeepBoth, &outcome, &[("e/new", "new"), ("e/x", "ours d/x"), ("e/x*", "theirs")], 1);
}

#[tokio::test]
async fn parked_conflict_continues_after_foreign_change_is_undone() {
    let work = async |mount: &Mount| mount.rename("d", "e").await.unwrap();
    let (_, mount) = clash(Fail, &["d/x"], work, |mount| mount.view.put_foreign("e/x", b"theirs")).await;
    mount.view.delete_foreign("e/x");
    mount.flush().await;
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["e/x"]);
}

#[tokio::test]
async fn name_that_format_1_cannot_store_is_refused_immediately() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("d/x", b"x");
    mount.view.set_format_1();
    let (fits, long) = ("n".repeat(194), "n".repeat(195));
    for from in ["a", "d"] {
        let refused = mount.rename(from, &long).await.unwrap_err();
        assert_eq!(refused.errno(), libc::ENAMETOOLONG);
    }
    assert_eq!(mount.vfs.status().pending_files, 0);
    mount.rename("a", &fits).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["d/x", fits.as_str()]);
}

#[tokio::test]
async fn entries_removed_from_path_do_not_reappear_in_directory_moved_there() {
    let mount = Mount::new().await;
    for path in ["e/old", "e/x", "d/x", "d/y"] {
        mount.view.put_foreign(path, path.as_bytes());
    }
    let view = mount.view.clone();
    let _held = view.hold_commits().await;
    mount.unlink("e/old").await.unwrap();
    mount.unlink("e/x").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    assert_eq!(mount.names("e").await, ["x", "y"]);
    assert_eq!(mount.read("e/x").await.unwrap(), b"d/x");
}

#[tokio::test]
async fn file_open_for_writing_keeps_name_after_foreign_change() {
    for (foreign, expected) in [(Some(&b"theirs"[..]), 2), (None, 1)] {
        let mount = Mount::new().await;
        mount.view.put_foreign("d/a", b"base");
        let handle = mount.open("d/a", libc::O_WRONLY).await.unwrap();
        match foreign {
            Some(content) => mount.view.put_foreign("d/a", content),
            None => mount.view.delete_foreign("d/a"),
        }
        // Both directories are listed again.
        assert_eq!(mount.names("").await, ["d"]);
        assert_eq!(mount.names("d").await, ["a"]);
        mount.put(handle, 0, b"ours").await.unwrap();
        mount.close(handle).await.unwrap();
        mount.flush().await;
        let remote = mount.remote();
        assert_eq!(remote.len(), expected);
        assert!(remote.values().any(|content| content == b"ours"), "{remote:?}");
    }
}

#[tokio::test]
async fn open_for_writing_by_stale_kernel_entry_fails_with_estale() {
    let mount = Mount::new().await;
    mount.view.put_foreign("d/a", b"base");
    mount.view.put_foreign("e/b", b"base");
    let inos = [mount.find("d/a").await.unwrap(), mount.find("e/b").await.unwrap()];
    // Adds a reference of the kernel, as its cache of names would.
    for (ino, parent, name) in [(inos[0], "d", "a"), (inos[1], "e", "b")] {
        assert_eq!(mount.vfs.lookup(mount.find(parent).await.unwrap(), name).await.unwrap().ino, ino);
    }
    mount.view.delete_foreign("d/a");
    mount.view.delete_foreign("e/b");
    mount.view.put_foreign("d/other", b"");
    assert_eq!(mount.names("").await, ["d"]);
    assert_eq!(mount.names("d").await, ["other"]);
    for ino in inos {
        let access = Access { read: true, write: true, ..Access::default() };
        assert_eq!(mount.vfs.open(ino, access).await.unwrap_err().errno(), libc::ESTALE);
        assert_eq!(mount.vfs.truncate(ino, 1).await.unwrap_err().errno(), libc::ESTALE);
    }
    // A file that was removed by this mount can be opened again by its descriptor.
    mount.view.put_foreign("c", b"base");
    let ino = mount.find("c").await.unwrap();
    let handle = mount.open("c", libc::O_RDWR).await.unwrap();
    mount.unlink("c").await.unwrap();
    let again = mount.vfs.open(ino, Access { write: true, ..Access::default() }).await.unwrap();
    mount.close(again.handle).await.unwrap();
    mount.close(handle).await.unwrap();
}

#[tokio::test]
async fn unchanged_file_shows_foreign_change_after_last_writer_closes() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"base");
    mount.view.put_foreign("b", b"base");
    let handles = [mount.open("a", libc::O_WRONLY).await.unwrap(), mount.open("b", libc::O_WRONLY).await.unwrap()];
    mount.view.put_foreign("a", b"theirs");
    mount.view.delete_foreign("b");
    assert_eq!(mount.names("").await, ["a", "b"]);
    for handle in handles {
        mount.close(handle).await.unwrap();
    }
    assert_eq!(mount.names("").await, ["a"]);
    assert_eq!(mount.read("a").await.unwrap(), b"theirs");
}
