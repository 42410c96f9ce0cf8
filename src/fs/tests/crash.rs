//! The daemon is killed. All acknowledged changes are there again after a restart, in order.

use super::Mount;
use std::time::Duration;

#[tokio::test]
async fn closed_file_survives_kill_and_is_flushed_later() {
    let mount = Mount::new().await;
    let data = vec![b'x'; 150_000];
    mount.view.put_foreign("edited", &data);
    mount.write("new", b"new").await.unwrap();
    mount.write_at("edited", 70_000, b"edit").await.unwrap();
    mount.mkdir("empty").await.unwrap();
    mount.mkdir("d").await.unwrap();
    mount.write("d/x", b"x").await.unwrap();
    let before = mount.tree().await;
    let mount = mount.killed().await;
    assert_eq!(mount.vfs.status().pending_files, 3);
    assert_eq!(mount.tree().await, before);
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote.keys().collect::<Vec<_>>(), ["d/x", "edited", "new"]);
    assert_eq!(remote["edited"][70_000..70_004], *b"edit");
    assert_eq!(mount.tree().await, before);
}

#[tokio::test]
async fn name_operations_survive_kill() {
    let mount = Mount::new().await;
    for path in ["a", "b", "d/1", "d/2", "r/x", "r/y/z"] {
        mount.view.put_foreign(path, path.as_bytes());
    }
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.unlink("a").await.unwrap();
    mount.rename("b", "c").await.unwrap();
    mount.unlink("d/1").await.unwrap();
    mount.unlink("d/2").await.unwrap();
    mount.rmdir("d").await.unwrap();
    mount.unlink("r/x").await.unwrap();
    mount.rename("r", "s").await.unwrap();
    mount.rename("s/y/z", "s/w").await.unwrap();
    let before = mount.tree().await;
    view.set_offline(true);
    drop(held);
    let mount = mount.killed().await;
    view.set_offline(false);
    let held = view.hold_commits().await;
    assert_eq!(mount.tree().await, before);
    drop(held);
    mount.flush().await;
    assert_eq!(mount.tree().await, before);
    let remote = mount.remote();
    assert_eq!(remote.keys().collect::<Vec<_>>(), ["c", "s/w"]);
    assert_eq!(remote["s/w"], b"r/y/z");
}

#[tokio::test]
async fn kill_between_commit_and_its_journal_entry_is_not_conflict() {
    let mount = Mount::new().await;
    mount.write("a", b"ours").await.unwrap();
    mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::LostAnswer));
    let drained = mount.vfs.flush(Some(Duration::from_millis(100))).await;
    assert_eq!(mount.remote()["a"], b"ours");
    let mount = if drained.pending > 0 { mount.killed().await } else { mount };
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
    assert_eq!(mount.remote().len(), 1);
}

#[tokio::test]
async fn foreign_change_while_daemon_is_dead_is_conflict() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"base");
    mount.write_at("a", 0, b"ours").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 1);
    assert_eq!(mount.remote().len(), 2);
}

/// Returns a mount that was killed with the commit of `a` in the queue.
async fn killed_before_the_commit() -> Mount {
    let mount = Mount::new().await;
    mount.write("a", b"first").await.unwrap();
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    while mount.vfs.journal.ledger().queue().iter().count() == 0 {
        tokio::task::yield_now().await;
    }
    view.set_offline(true);
    drop(held);
    mount.vfs.kill();
    flush.await.unwrap();
    let mount = mount.killed().await;
    view.set_offline(false);
    mount
}

#[tokio::test]
async fn file_with_commit_queued_at_kill_can_be_changed_and_flushed_again() {
    let mount = killed_before_the_commit().await;
    mount.write_at("a", 0, b"later").await.unwrap();
    mount.flush().await;
    mount.write_at("a", 5, b" still").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"later still");
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn queued_commit_onto_foreign_file_after_kill_keeps_both_versions() {
    let mount = killed_before_the_commit().await;
    mount.view.put_foreign("a", b"theirs");
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote["a"], b"theirs");
    assert_eq!((remote.len(), mount.vfs.status().conflicts), (2, 1));
}

/// Returns the entries that `directory` shows if all pending changes are committed during its listing.
async fn listed_during_a_flush(mount: &Mount, directory: &str) -> Vec<String> {
    let held = mount.view.hold_listings().await;
    let listed = mount.names(directory);
    let flushed = async {
        // The remote has read the listing, but its response hasn't arrived.
        mount.flush().await;
        let journal = &mount.vfs.journal;
        while journal.ledger().files().count() > 0 {
            tokio::task::yield_now().await;
        }
        drop(held);
    };
    tokio::join!(listed, flushed).0
}

#[tokio::test]
async fn file_committed_during_first_listing_after_kill_is_shown() {
    let mount = killed_before_the_commit().await;
    assert_eq!(listed_during_a_flush(&mount, "").await, ["a"]);
}

#[tokio::test]
async fn file_renamed_during_first_listing_after_kill_is_shown() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.refuse_for_now("a");
    mount.rename("a", "b").await.unwrap();
    let mount = mount.killed().await;
    mount.view.allow("a");
    assert_eq!(listed_during_a_flush(&mount, "").await, ["b"]);
}

#[tokio::test]
async fn directory_whose_first_file_is_committed_during_listing_is_shown() {
    for kill in [false, true] {
        let mut mount = Mount::with(|options| options.metadata_ttl = Duration::ZERO).await;
        mount.mkdir("d").await.unwrap();
        mount.write("d/x", b"x").await.unwrap();
        if kill {
            mount = mount.killed().await;
        }
        assert_eq!(listed_during_a_flush(&mount, "").await, ["d"], "killed: {kill}");
    }
}

/// Returns a mount whose commit of `a` was carried out without a response. All further changes of `a` fail for now.
async fn committed_without_an_answer(kill: bool) -> Mount {
    let mount = Mount::new().await;
    mount.write("a", b"ours").await.unwrap();
    mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::LostAnswer));
    let interrupt = async {
        while mount.remote().is_empty() {
            tokio::task::yield_now().await;
        }
        mount.view.refuse_for_now("a");
    };
    tokio::join!(mount.vfs.flush(Some(Duration::from_millis(100))), interrupt);
    assert_eq!(mount.vfs.journal.ledger().queue().iter().count(), 1, "it is to be committed still");
    if kill { mount.killed().await } else { mount }
}

#[tokio::test]
async fn file_removed_during_unresolved_commit_stays_removed() {
    for (kill, kill_later) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut mount = committed_without_an_answer(kill).await;
        mount.unlink("a").await.unwrap();
        if kill_later {
            mount = mount.killed().await;
        }
        mount.view.allow("a");
        mount.flush().await;
        assert!(mount.remote().is_empty(), "killed: {kill}, {kill_later}");
        assert!(mount.names("").await.is_empty());
        mount.staging_empties().await;
    }
}

#[tokio::test]
async fn file_replaced_during_unresolved_commit_stays_replaced() {
    for kill in [false, true] {
        let mut mount = committed_without_an_answer(kill).await;
        mount.write("b", b"new").await.unwrap();
        mount.rename("b", "a").await.unwrap();
        if kill {
            mount = mount.killed().await;
        }
        mount.view.allow("a");
        mount.flush().await;
        let remote: Vec<_> = mount.remote().into_iter().collect();
        assert_eq!(remote, [("a".to_owned(), b"new".to_vec())], "killed: {kill}");
        assert_eq!(mount.vfs.status().conflicts, 0);
    }
}

#[tokio::test]
async fn file_removed_after_unacknowledged_commit_is_removed_at_remote() {
    for killed in [false, true] {
        let mut mount = Mount::new().await;
        mount.write("a", b"ours").await.unwrap();
        mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::LostAnswer));
        mount.vfs.flush(Some(Duration::from_millis(100))).await;
        mount.view.refuse_for_now("");
        assert_eq!(mount.remote()["a"], b"ours");
        if killed {
            mount = mount.killed().await;
        }
        mount.unlink("a").await.unwrap();
        if killed {
            mount = mount.killed().await;
        }
        mount.view.allow("");
        mount.flush().await;
        assert!(mount.remote().is_empty() && mount.names("").await.is_empty(), "killed: {killed}");
        mount.staging_empties().await;
    }
}

#[tokio::test]
async fn listing_older_than_commit_of_restored_file_shows_file() {
    let mount = killed_before_the_commit().await;
    let view = mount.view.clone();
    let held = view.hold_listings().await;
    let listed = tokio::join!(mount.names(""), async {
        mount.flush().await;
        while mount.vfs.journal.ledger().files().next().is_some() {
            tokio::task::yield_now().await;
        }
        drop(held);
    });
    assert_eq!(listed.0, ["a"]);
}

#[tokio::test]
async fn removed_open_file_frees_staging_after_kill() {
    let mount = Mount::new().await;
    mount.write("a", &[1; 100_000]).await.unwrap();
    let _handle = mount.open("a", libc::O_RDWR).await.unwrap();
    mount.unlink("a").await.unwrap();
    let mount = mount.killed().await;
    assert!(mount.names("").await.is_empty());
    mount.staging_empties().await;
}

#[tokio::test]
async fn repeated_kills_lose_nothing() {
    let mut mount = Mount::new().await;
    for round in 0..8u8 {
        for file in 0..4u8 {
            mount.write(&format!("f{file}"), &vec![round; 1000 * usize::from(round + file)]).await.unwrap();
        }
        mount.write_at("f0", 50, b"edit").await.unwrap();
        if round % 3 == 1 {
            mount.flush().await;
        }
        if round % 4 == 2 {
            mount.rename("f1", "f2").await.unwrap();
        }
        let before = mount.tree().await;
        mount = mount.killed().await;
        assert_eq!(mount.tree().await, before, "round {round}");
    }
    mount.flush().await;
    let remote: Vec<_> = mount.remote().into_iter().map(|(path, content)| (path, Some(content))).collect();
    assert_eq!(remote, mount.tree().await.into_iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn shutdown_flushes_and_refuses_new_work() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    let handle = mount.open("open", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"never closed").await.unwrap();
    let drained = mount.vfs.shutdown(Duration::from_secs(20)).await;
    assert_eq!((drained.flushed, drained.pending), (2, 0));
    assert_eq!(mount.remote()["open"], b"never closed");
    assert!(mount.write("b", b"").await.is_err());
}

#[tokio::test]
async fn changes_not_flushed_by_shutdown_are_restored_at_next_start() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.view.set_offline(true);
    let drained = mount.vfs.shutdown(Duration::from_millis(50)).await;
    assert_eq!(drained.pending, 1);
    mount.view.set_offline(false);
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"1");
}
