//! Commits are read back, so that a version that another client overwrote at the moment of our commit isn't lost
//! silently.

use super::Mount;
use crate::fs::ids::OpNo;
use crate::fs::journal::ledger::QueuedOp;
use crate::fs::journal::ledger::Unconfirmed;
use crate::fs::{Drained, OnConflict, Options};
use crate::store::{Change, Hash, Outcome, View};
use std::time::Duration;
use tokio::task::JoinHandle;

fn at_once(options: &mut Options) {
    options.read_back_after = Duration::ZERO;
}

fn later(options: &mut Options) {
    options.read_back_after = Duration::from_secs(3600);
}

impl<V: View> Mount<V> {
    fn unconfirmed(&self) -> usize {
        self.vfs.journal.ledger().unconfirmed().len()
    }

    /// Reads back the commits that are due, until none is left.
    pub(super) async fn confirm(&self) {
        for _ in 0..2000 {
            self.vfs.sync.confirm_due().await;
            if self.unconfirmed() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} commits stay unconfirmed", self.unconfirmed());
    }
}

impl Mount {
    /// Kills the mount and starts it with other options.
    async fn restarted(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self.killed().await
    }

    /// Kills the mount, starts it again, and reads all commits back.
    async fn read_back(self) -> Self {
        let mount = self.restarted(at_once).await;
        mount.confirm().await;
        mount
    }

    /// Returns the commits to read back, in the form that a comparison needs.
    fn asked(&self) -> Vec<(OpNo, Unconfirmed)> {
        self.vfs.journal.ledger().unconfirmed().all().map(|(op, commit)| (op, commit.clone())).collect()
    }

    /// Flushes in the background, and returns once a commit is in the queue.
    async fn flush_begins(&self) -> JoinHandle<Drained> {
        let vfs = self.vfs.clone();
        let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
        while !self.vfs.journal.ledger().queue().iter().any(|(_, what)| matches!(what, QueuedOp::Put { .. })) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        flush
    }
}

/// Returns the conflict copy's content, if there is one.
fn copy(mount: &Mount) -> Option<Vec<u8>> {
    mount.remote().into_iter().find(|(path, _)| path.contains(" (conflict ")).map(|(_, content)| content)
}

#[tokio::test]
async fn overwritten_commit_is_detected_and_follows_policy() {
    for (policy, at_path, copied) in [
        (OnConflict::KeepBoth, &b"theirs"[..], Some(b"ours".to_vec())),
        (OnConflict::Overwrite, b"ours", None),
        (OnConflict::Fail, b"theirs", Some(b"ours".to_vec())),
    ] {
        let mount = Mount::with(|options| {
            later(options);
            options.on_conflict = policy;
        })
        .await;
        mount.write("a", b"ours").await.unwrap();
        mount.flush().await;
        mount.view.put_foreign("a", b"theirs");
        // The unconfirmed commit survives the restart, and the next start continues with it.
        let mount = mount.restarted(at_once).await;
        assert_eq!(mount.unconfirmed(), 1);
        mount.confirm().await;
        assert_eq!((mount.remote()["a"].as_slice(), copy(&mount)), (at_path, copied), "{policy:?}");
        assert_eq!(mount.vfs.status().conflicts, 1);
        assert_eq!(mount.read("a").await.unwrap(), at_path);
    }
}

#[tokio::test]
async fn overwritten_rename_is_detected() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("a", b"ours");
    mount.rename("a", "b").await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("b", b"theirs");
    let mount = mount.read_back().await;
    assert_eq!((mount.remote()["b"].as_slice(), copy(&mount).unwrap().as_slice()), (&b"theirs"[..], &b"ours"[..]));
}

#[tokio::test]
async fn unchanged_commits_are_confirmed_without_changes() {
    let mount = Mount::with(later).await;
    for file in 0..5 {
        mount.write(&format!("f{file}"), b"ours").await.unwrap();
    }
    mount.flush().await;
    let before = mount.remote();
    let mount = mount.restarted(at_once).await;
    mount.view.take_commits();
    mount.confirm().await;
    assert_eq!(mount.remote(), before);
    let requests = mount.view.take_commits();
    assert!(requests.iter().all(|request| request.len() == 5), "one request compares them all, each time");
    assert_eq!(requests.len(), 2);
    let itself = |op: &crate::store::Op| matches!(&op.change, Change::Rename { to, .. } if *to == op.path);
    assert!(requests[0].iter().all(itself));
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn commit_is_not_read_back_before_due_time() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.take_commits();
    mount.vfs.sync.confirm_due().await;
    assert!(mount.view.take_commits().is_empty());
    assert_eq!(mount.unconfirmed(), 1);
}

#[tokio::test]
async fn file_removed_later_by_other_client_stays_removed() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.delete_foreign("a");
    let mount = mount.read_back().await;
    assert!(mount.remote().is_empty());
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn later_changes_of_same_mount_are_not_conflicts() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("d/x", b"x");
    // A version that replaced another one is restored if it is missing.
    for path in ["edited", "moved", "gone", "dirty"] {
        mount.view.put_foreign(path, b"base");
        mount.write(path, path.as_bytes()).await.unwrap();
    }
    mount.flush().await;
    mount.write("edited", b"again").await.unwrap();
    mount.rename("moved", "moved2").await.unwrap();
    mount.unlink("gone").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    mount.flush().await;
    mount.write("dirty", b"more").await.unwrap();
    let mount = mount.read_back().await;
    mount.flush().await;
    mount.confirm().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["dirty", "e/x", "edited", "moved2"]);
}

#[tokio::test]
async fn commit_stays_unconfirmed_while_remote_is_offline() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    let mount = mount.restarted(at_once).await;
    mount.view.set_offline(true);
    mount.vfs.sync.confirm_due().await;
    assert_eq!(mount.unconfirmed(), 1);
    mount.view.set_offline(false);
    let mount = mount.killed().await;
    mount.confirm().await;
}

/// Returns the contents of all files at the remote, without names.
fn contents(mount: &Mount) -> Vec<Vec<u8>> {
    mount.remote().into_values().collect()
}

/// Returns a mount that committed `ours` over another version at `d/a`.
async fn committed(policy: OnConflict) -> Mount {
    let mount = Mount::with(|options| {
        later(options);
        options.on_conflict = policy;
    })
    .await;
    mount.view.put_foreign("d/a", b"base");
    mount.write_at("d/a", 0, b"ours").await.unwrap();
    mount.flush().await;
    mount
}

#[tokio::test]
async fn version_removed_in_place_of_its_predecessor_is_restored() {
    for (policy, restore) in [(OnConflict::KeepBoth, true), (OnConflict::Overwrite, true), (OnConflict::Fail, false)] {
        let mount = committed(policy).await;
        mount.view.delete_foreign("d/a");
        let mount = mount.read_back().await;
        assert_eq!(contents(&mount), [b"ours"], "{policy:?}");
        assert_eq!(mount.remote().contains_key("d/a"), restore, "{policy:?}");
        assert_eq!(mount.names("d").await.len(), 1);
        // The client that removes it again has seen it.
        let path = mount.remote().into_keys().next().unwrap();
        mount.view.delete_foreign(&path);
        let mount = mount.read_back().await;
        assert!(mount.remote().is_empty());
    }
}

#[tokio::test]
async fn overwritten_version_is_kept_though_its_replacement_was_changed_here() {
    for (change, policy) in
        pairs(["edit", "remove", "rename", "replace", "move"], [OnConflict::KeepBoth, OnConflict::Overwrite])
    {
        let mount = committed(policy).await;
        mount.view.put_foreign("d/a", b"theirs");
        mount.view.put_foreign("b", b"another");
        assert_eq!(mount.read("d/a").await.unwrap(), b"theirs");
        match change {
            "edit" => mount.write_at("d/a", 6, b" and more").await.unwrap(),
            "remove" => mount.unlink("d/a").await.unwrap(),
            "rename" => mount.rename("d/a", "c").await.unwrap(),
            "replace" => mount.rename("b", "d/a").await.unwrap(),
            _ => mount.rename("d", "e").await.unwrap(),
        }
        mount.flush().await;
        let before = contents(&mount);
        assert!(!before.contains(&b"ours".to_vec()), "{change}");
        let mount = mount.read_back().await;
        let after = contents(&mount);
        assert!(after.contains(&b"ours".to_vec()), "{change}, {policy:?}: {:?}", mount.remote());
        // A version that this mount made from theirs is ours, too. If only the name was moved, the version is theirs.
        let made_here = before.iter().filter(|content| change == "edit" && content.ends_with(b"more"));
        assert!(made_here.clone().all(|content| after.contains(content)), "{change}, {policy:?}: {:?}", mount.remote());
    }
}

fn pairs<A: Copy, B: Copy, const N: usize, const M: usize>(a: [A; N], b: [B; M]) -> impl Iterator<Item = (A, B)> {
    a.into_iter().flat_map(move |a| b.into_iter().map(move |b| (a, b)))
}

#[tokio::test]
async fn recreated_file_after_foreign_removal_has_no_copy() {
    let mount = Mount::with(later).await;
    mount.write("a", b"first").await.unwrap();
    mount.flush().await;
    mount.view.delete_foreign("a");
    mount.write("a", b"second").await.unwrap();
    mount.flush().await;
    let mount = mount.read_back().await;
    assert_eq!((mount.vfs.status().conflicts, contents(&mount)), (0, vec![b"second".to_vec()]));
}

#[tokio::test]
async fn overwritten_new_file_is_kept_whatever_happened_to_its_replacement() {
    for change in ["edit", "remove", "remove and create again", "rename", "replace", "move"] {
        let mount = Mount::with(later).await;
        mount.view.put_foreign("d/other", b"another");
        mount.write("d/a", b"ours").await.unwrap();
        mount.flush().await;
        mount.view.put_foreign("d/a", b"theirs");
        assert_eq!(mount.read("d/a").await.unwrap(), b"theirs");
        match change {
            "edit" => mount.write_at("d/a", 6, b" and more").await.unwrap(),
            "rename" => mount.rename("d/a", "c").await.unwrap(),
            "replace" => mount.rename("d/other", "d/a").await.unwrap(),
            "move" => mount.rename("d", "e").await.unwrap(),
            _ => mount.unlink("d/a").await.unwrap(),
        }
        mount.flush().await;
        if change == "remove and create again" {
            mount.write("d/a", b"new").await.unwrap();
            mount.flush().await;
        }
        let before = contents(&mount);
        assert!(!before.contains(&b"ours".to_vec()), "{change}");
        let mount = mount.read_back().await;
        let after = contents(&mount);
        assert!(after.contains(&b"ours".to_vec()), "{change}: {:?}", mount.remote());
        assert!(before.iter().all(|content| after.contains(content)), "{change}: {:?}", mount.remote());
    }
}

#[tokio::test]
async fn directory_rename_moves_earlier_foreign_change() {
    for policy in [OnConflict::KeepBoth, OnConflict::Overwrite] {
        let mount = Mount::with(|options| {
            later(options);
            options.on_conflict = policy;
            options.metadata_ttl = Duration::from_secs(3600);
        })
        .await;
        mount.view.put_foreign("d/x", b"old");
        assert_eq!(mount.read("d/x").await.unwrap(), b"old");
        mount.view.put_foreign("d/x", b"theirs");
        mount.rename("d", "e").await.unwrap();
        mount.flush().await;
        let mount = mount.read_back().await;
        assert_eq!((mount.vfs.status().conflicts, contents(&mount)), (0, vec![b"theirs".to_vec()]));
    }
}

#[tokio::test]
async fn unlisted_directory_renamed_after_restart_is_read_back() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("d/x/y", b"ours");
    mount.view.refuse_for_now("");
    mount.rename("d", "e").await.unwrap();
    let mount = mount.killed().await;
    mount.view.allow("");
    mount.flush().await;
    mount.view.put_foreign("e/x/y", b"theirs");
    let mount = mount.read_back().await;
    assert_eq!((mount.remote()["e/x/y"].as_slice(), copy(&mount).unwrap().as_slice()), (&b"theirs"[..], &b"ours"[..]));
}

#[tokio::test]
async fn version_is_kept_once_after_rename_of_its_directory() {
    let mount = committed(OnConflict::KeepBoth).await;
    mount.rename("d", "e").await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("e/a", b"theirs");
    let mount = mount.read_back().await;
    assert_eq!((mount.vfs.status().conflicts, mount.remote().len()), (1, 2), "{:?}", mount.remote());
}

#[tokio::test]
async fn files_of_dropped_directory_rename_are_read_back_at_old_paths() {
    for overwritten in [false, true] {
        let mount = committed(OnConflict::KeepBoth).await;
        mount.view.refuse_for_now("");
        mount.rename("d", "e").await.unwrap();
        assert_eq!(mount.discard_all().await.iter().filter(|refused| refused.is_some()).count(), 0);
        mount.view.allow("");
        if overwritten {
            mount.view.put_foreign("d/a", b"theirs");
        }
        let mount = mount.read_back().await;
        let expected: &[&[u8]] = if overwritten { &[b"theirs", b"ours"] } else { &[b"ours"] };
        assert_eq!(contents(&mount), expected, "{:?}", mount.remote());
        assert!(mount.remote().keys().all(|path| path.starts_with("d/")));
    }
}

#[tokio::test]
async fn version_that_appears_during_comparison_is_compared_again() {
    let mount = committed(OnConflict::KeepBoth).await;
    let asked = mount.asked();
    mount.view.put_foreign("d/a", b"theirs");
    mount.vfs.sync.all_compared(asked, || Outcome::Conflict { found: None }).await;
    assert_eq!((mount.unconfirmed(), contents(&mount)), (1, vec![b"theirs".to_vec()]));
}

#[tokio::test]
async fn uncommitted_change_does_not_confirm_older_commit() {
    let mount = committed(OnConflict::KeepBoth).await;
    mount.view.put_foreign("d/a", b"theirs");
    assert_eq!(mount.read("d/a").await.unwrap(), b"theirs");
    mount.write_at("d/a", 6, b" and more").await.unwrap();
    let mount = mount.read_back().await;
    assert!(contents(&mount).contains(&b"ours".to_vec()));
}

#[tokio::test]
async fn commit_is_read_back_at_new_path_of_its_directory() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("d/a", b"base");
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.write_at("d/a", 0, b"ours").await.unwrap();
    let flush = mount.flush_begins().await;
    mount.rename("d", "e").await.unwrap();
    drop(held);
    flush.await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("e/a", b"theirs");
    let mount = mount.read_back().await;
    assert_eq!((mount.remote()["e/a"].as_slice(), copy(&mount).unwrap().as_slice()), (&b"theirs"[..], &b"ours"[..]));
    assert_eq!((mount.remote().len(), mount.vfs.status().conflicts), (2, 1), "{:?}", mount.remote());
}

#[tokio::test]
async fn version_expected_by_queued_change_is_not_read_back() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("d/a", b"base");
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.rename("d/a", "d/b").await.unwrap();
    mount.write_at("d/b", 0, b"ours").await.unwrap();
    let flush = mount.flush_begins().await;
    // Two changes of the file are queued, under names that it doesn't have any more.
    mount.rename("d", "e").await.unwrap();
    drop(held);
    flush.await.unwrap();
    mount.flush().await;
    let mount = mount.read_back().await;
    assert_eq!((mount.vfs.status().conflicts, contents(&mount)), (0, vec![b"ours".to_vec()]));
}

#[tokio::test]
async fn own_change_before_comparison_is_not_conflict() {
    for change in ["remove", "rename", "edit", "move"] {
        let mount = Mount::with(later).await;
        mount.view.put_foreign("d/a", b"base");
        mount.write_at("d/a", 0, b"ours").await.unwrap();
        mount.flush().await;
        // The comparison has been requested.
        let asked = mount.asked();
        assert_eq!(asked.len(), 1);
        match change {
            "remove" => mount.unlink("d/a").await.unwrap(),
            "rename" => mount.rename("d/a", "b").await.unwrap(),
            "edit" => mount.write_at("d/a", 0, b"more").await.unwrap(),
            _ => mount.rename("d", "e").await.unwrap(),
        }
        mount.flush().await;
        let before = mount.remote();
        // The remote carries it out after the later change.
        mount
            .vfs
            .sync
            .all_compared(asked, || Outcome::Conflict { found: before.get("d/a").map(|_| Hash([7; 32]).into()) })
            .await;
        assert_eq!((mount.vfs.status().conflicts, mount.remote()), (0, before), "{change}");
        let before = mount.remote();
        let mount = mount.read_back().await;
        assert_eq!((mount.vfs.status().conflicts, mount.remote()), (0, before), "{change}");
    }
}

#[tokio::test]
async fn files_of_renamed_directory_are_read_back() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("d/x/y", b"ours");
    mount.rename("d", "e").await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("e/x/y", b"theirs");
    let mount = mount.read_back().await;
    assert_eq!((mount.remote()["e/x/y"].as_slice(), copy(&mount).unwrap().as_slice()), (&b"theirs"[..], &b"ours"[..]));
}

#[tokio::test]
async fn overwritten_new_file_is_kept_though_replacement_is_removed_later() {
    // The first comparison comes after half a second. The test doesn't wait for the second one.
    let mount = Mount::with(|options| options.read_back_after = Duration::from_secs(5)).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("a", b"theirs");
    for _ in 0..400 {
        mount.vfs.sync.confirm_due().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mount.view.delete_foreign("a");
    assert_eq!(contents(&mount), [b"ours"]);
}

#[tokio::test]
async fn kept_conflict_copy_is_read_back() {
    let mount = committed(OnConflict::KeepBoth).await;
    mount.view.put_foreign("d/a", b"theirs");
    let mount = mount.read_back().await;
    let compared = |op: &crate::store::Op| matches!(&op.change, Change::Rename { to, .. } if *to == op.path);
    let requests = mount.view.take_commits().concat();
    let last = requests.last().unwrap();
    assert!(
        compared(last) && last.path.as_str().starts_with("d/a (conflict "),
        "another mount may have taken the same name"
    );
}

#[tokio::test]
async fn rename_with_conflict_and_its_conflict_copy_are_read_back() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("a", b"ours");
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.rename("a", "b").await.unwrap();
    mount.view.put_foreign("b", b"theirs");
    drop(held);
    mount.flush().await;
    let unconfirmed: Vec<_> = mount.asked().into_iter().map(|(_, commit)| commit.path.as_str().to_owned()).collect();
    assert!(unconfirmed.contains(&"b".to_owned()), "{unconfirmed:?}");
    assert!(unconfirmed.iter().any(|path| path.starts_with("b (conflict ")), "{unconfirmed:?}");
}

#[tokio::test]
async fn files_changed_in_renamed_directory_before_kill_are_not_conflicts() {
    let mount = Mount::with(later).await;
    for path in ["d/edited", "d/moved", "d/removed", "d/still"] {
        mount.view.put_foreign(path, b"theirs");
    }
    mount.view.refuse_for_now("");
    mount.rename("d", "e").await.unwrap();
    mount.write_at("e/edited", 0, b"ours").await.unwrap();
    mount.rename("e/moved", "f").await.unwrap();
    mount.unlink("e/removed").await.unwrap();
    mount.vfs.flush(Some(Duration::from_millis(100))).await;
    let before = mount.tree().await;
    // The inodes exist before the operations continue, and have no record of the later result.
    let mount = mount.killed().await;
    assert_eq!(mount.tree().await, before);
    mount.view.allow("");
    mount.flush().await;
    let mount = mount.read_back().await;
    assert_eq!((mount.vfs.status().conflicts, copy(&mount)), (0, None));
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["e/edited", "e/still", "f"]);
    assert_eq!(mount.tree().await, before);
}
