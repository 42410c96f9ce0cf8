//! Pending changes can be listed, retried, read and discarded one by one. Nothing else ever discards them.

use super::Mount;
use crate::fs::memory_view::InjectedFault;
use crate::fs::{Error, OnConflict, Pending, PendingKind, PendingNo, PendingState, drop_order};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Mount {
    fn pending(&self) -> Vec<Pending> {
        self.vfs.pending(None, usize::MAX)
    }

    fn number_of(&self, path: &str) -> PendingNo {
        let pending = self.pending();
        let found = pending.iter().find(|pending| pending.path == path || pending.to.as_deref() == Some(path));
        found.unwrap_or_else(|| panic!("{path} is not pending: {pending:?}")).number
    }

    /// Waits until no request to the remote is in flight.
    async fn is_quiet(&self) {
        let is_trying = || self.vfs.journal.ledger().queue().iter().any(|(op, _)| self.vfs.schedule.is_running(op));
        while is_trying() {
            tokio::task::yield_now().await;
        }
    }

    async fn discard(&self, path: &str) -> Result<(), Error> {
        self.is_quiet().await;
        self.discard_now(path).await
    }

    async fn discard_now(&self, path: &str) -> Result<(), Error> {
        let numbers = [self.number_of(path)];
        let mut answers = self.vfs.drop_pending(&numbers).await.unwrap();
        answers.pop().unwrap().map_or(Ok(()), Err)
    }

    pub(super) async fn discard_all(&self) -> Vec<Option<Error>> {
        self.is_quiet().await;
        let mut numbers: Vec<_> = self.pending().into_iter().map(|pending| pending.number).collect();
        drop_order(&mut numbers);
        self.vfs.drop_pending(&numbers).await.unwrap()
    }

    /// Runs a flush that fails with a transient error.
    async fn fail_to_flush(&self) {
        self.view.set_offline(true);
        self.vfs.flush(Some(Duration::from_millis(50))).await;
        self.view.set_offline(false);
    }

    async fn whole(&self, number: PendingNo) -> Result<Vec<u8>, Error> {
        let file = self.vfs.open_pending(number)?;
        let mut out = Vec::new();
        while (out.len() as u64) < file.len() {
            out.extend_from_slice(&file.read(out.len() as u64, 60_000).await?);
        }
        Ok(out)
    }
}

fn refusal(outcome: Result<(), Error>) -> &'static str {
    match outcome {
        Err(Error::NotPermitted(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("it was discarded"),
    }
}

#[tokio::test]
async fn pending_changes_are_listed_with_their_state() {
    let mount = Mount::new().await;
    for path in ["gone", "old", "d/x"] {
        mount.view.put_foreign(path, b"base");
    }
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.write("new", b"12345").await.unwrap();
    mount.unlink("gone").await.unwrap();
    mount.rename("old", "young").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    let all = mount.pending();
    let told: Vec<_> = all.iter().map(|p| (p.kind, p.path.as_str(), p.to.as_deref(), p.bytes)).collect();
    assert_eq!(
        told,
        [
            (PendingKind::File, "new", None, Some(5)),
            (PendingKind::Delete, "gone", None, None),
            (PendingKind::Rename, "old", Some("young"), None),
            (PendingKind::RenameDirectory, "d", Some("e"), None),
        ]
    );
    assert_eq!(all[0].state, PendingState::Dirty);
    assert!(all.iter().all(|pending| pending.since.is_some()));
    assert_eq!(mount.vfs.status().pending_files, 4);
    // Listing in pages returns the same changes.
    let mut paged = Vec::new();
    while let [next] = &mount.vfs.pending(paged.last().map(|pending: &Pending| pending.number), 1)[..] {
        paged.push(next.clone());
    }
    assert_eq!(paged.iter().map(|p| p.number).collect::<Vec<_>>(), all.iter().map(|p| p.number).collect::<Vec<_>>());
    drop(held);
    mount.flush().await;
    assert!(mount.pending().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn listing_pending_changes_with_concurrent_writers_ends() {
    let mount = Arc::new(Mount::new().await);
    mount.write("first", b"1").await.unwrap();
    let writer = |writer: u32| {
        let mount = mount.clone();
        async move {
            for file in 0..100 {
                mount.write(&format!("{writer}-{file}"), b"content").await.unwrap();
            }
        }
    };
    let writers = [tokio::spawn(writer(1)), tokio::spawn(writer(2))];
    let reader = {
        let mount = mount.clone();
        tokio::spawn(async move {
            let mut seen = 0;
            while seen < 201 {
                seen = mount.pending().len();
                tokio::task::yield_now().await;
            }
        })
    };
    let all = async {
        for writer in writers {
            writer.await.unwrap();
        }
        reader.await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("all of them end");
}

#[tokio::test]
async fn failed_change_reports_attempts_and_refused_change_is_parked() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.fail_to_flush().await;
    let told = mount.pending().remove(0);
    assert_eq!((told.state, told.attempts), (PendingState::Retrying, 1));
    assert!(told.error.unwrap().contains("unplugged"));
    mount.view.set_fault(Some(InjectedFault::Forbidden));
    mount.vfs.flush(Some(Duration::from_secs(20))).await;
    let told = mount.pending().remove(0);
    assert_eq!(told.state, PendingState::Parked);
    assert_eq!(mount.vfs.status().parked_files, 1);
    // A parked change stays parked until it is retried.
    mount.view.set_fault(None);
    mount.vfs.schedule.wake();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(mount.remote().is_empty());
    assert_eq!(mount.vfs.retry(&[mount.number_of("a")], None), 1);
    while !mount.pending().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mount.remote()["a"], b"1");
}

#[tokio::test]
async fn refused_name_change_is_parked_and_blocks_neither_others_nor_flush() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("b", b"b");
    mount.names("").await;
    mount.view.refuse("a");
    mount.rename("a", "c").await.unwrap();
    // It waits for the parked one.
    mount.write_at("c", 0, b"later").await.unwrap();
    mount.unlink("b").await.unwrap();
    mount.write("new", b"new").await.unwrap();
    let drained = mount.vfs.flush(None).await;
    assert_eq!(drained.pending, 2);
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["a", "new"]);
    assert_eq!(mount.vfs.status().parked_files, 1);
    mount.view.allow("a");
    mount.vfs.retry(&[mount.number_of("a")], None);
    mount.flush().await;
    assert_eq!(mount.remote()["c"], b"later");
}

#[tokio::test]
async fn refused_upload_of_one_file_does_not_block_its_batch() {
    let mount = Mount::new().await;
    for file in 0..20u8 {
        mount.write(&format!("f{file}"), &[file; 10]).await.unwrap();
    }
    mount.write("bad", b"poison").await.unwrap();
    mount.view.poison(b"poison");
    let drained = mount.vfs.flush(Some(Duration::from_secs(20))).await;
    assert_eq!((drained.flushed, drained.pending), (20, 1));
    assert_eq!(mount.pending()[0].state, PendingState::Parked);
    assert_eq!(mount.read("bad").await.unwrap(), b"poison");
}

#[tokio::test]
async fn pending_file_reads_complete_while_remote_is_offline() {
    let mount = Mount::new().await;
    let data: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).collect();
    mount.write("a", &data).await.unwrap();
    mount.view.put_foreign("edited", &[b'x'; 100_000]);
    mount.write_at("edited", 5, b"yes").await.unwrap();
    let mount = {
        mount.view.set_offline(true);
        mount.killed().await
    };
    assert_eq!(mount.whole(mount.number_of("a")).await.unwrap(), data);
    // Content that was never fetched isn't available, which is an error.
    assert!(mount.whole(mount.number_of("edited")).await.is_err());
    mount.view.set_offline(false);
    assert_eq!(mount.whole(mount.number_of("edited")).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn pending_file_changed_during_read_returns_error() {
    let mount = Mount::new().await;
    mount.write("a", &[1; 1000]).await.unwrap();
    let file = mount.vfs.open_pending(mount.number_of("a")).unwrap();
    file.read(0, 10).await.unwrap();
    mount.write_at("a", 500, b"2").await.unwrap();
    assert!(file.read(10, 10).await.is_err());
}

#[tokio::test]
async fn dropped_edit_shows_remote_version_and_dropped_new_file_disappears() {
    let mount = Mount::new().await;
    mount.view.put_foreign("edited", b"base");
    mount.view.put_foreign("replaced", b"theirs");
    mount.write_at("edited", 0, b"ours").await.unwrap();
    mount.write("d1", b"").await.unwrap();
    mount.mkdir("d").await.unwrap();
    mount.write("d/new", &[1; 70_000]).await.unwrap();
    mount.write("mv", b"mine").await.unwrap();
    mount.rename("mv", "replaced").await.unwrap();
    for path in ["edited", "d/new", "replaced"] {
        mount.discard(path).await.unwrap();
    }
    assert_eq!(mount.read("edited").await.unwrap(), b"base");
    assert_eq!(mount.read("replaced").await.unwrap(), b"theirs");
    assert_eq!(mount.names("d").await, [""; 0]);
    let before = mount.tree().await;
    assert_eq!(before.keys().collect::<Vec<_>>(), ["d", "d1", "edited", "replaced"]);
    let mount = mount.killed().await;
    assert_eq!(mount.tree().await, before);
    mount.flush().await;
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["d1", "edited", "replaced"]);
    mount.staging_empties().await;
}

#[tokio::test]
async fn drop_refuses_file_open_for_writing_or_being_committed() {
    let mount = Mount::new().await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"1").await.unwrap();
    assert!(refusal(mount.discard("a").await).contains("open for writing"));
    mount.close(handle).await.unwrap();
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    while mount.pending()[0].state != PendingState::Committing {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(refusal(mount.discard_now("a").await).contains("being committed"));
    drop(held);
    flush.await.unwrap();
    assert_eq!(mount.remote()["a"], b"1");
}

#[tokio::test]
async fn dropped_file_with_queued_commit_is_never_committed() {
    let mount = Mount::new().await;
    mount.view.refuse_for_now("a");
    mount.write("a", b"1").await.unwrap();
    mount.vfs.flush(Some(Duration::from_millis(100))).await;
    assert_eq!(mount.vfs.journal.ledger().queue().iter().count(), 1, "its commit waits to be tried again");
    mount.discard("a").await.unwrap();
    mount.view.allow("a");
    mount.flush().await;
    assert!(mount.remote().is_empty() && mount.names("").await.is_empty());
    mount.write("a", b"2").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"2");
}

#[tokio::test]
async fn dropped_name_changes_are_undone() {
    let mount = Mount::new().await;
    for path in ["gone", "a", "b", "d/x", "d/y/z", "r/only"] {
        mount.view.put_foreign(path, path.as_bytes());
    }
    let before = mount.tree().await;
    mount.view.set_offline(true);
    mount.view.set_offline(false);
    let view = mount.view.clone();
    view.refuse_for_now("");
    mount.unlink("gone").await.unwrap();
    mount.rename("a", "b").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    mount.unlink("r/only").await.unwrap();
    mount.rmdir("r").await.unwrap();
    mount.write_at("e/x", 0, b"D").await.unwrap();
    let after = mount.tree().await;
    assert_eq!(after.keys().collect::<Vec<_>>(), ["b", "e", "e/x", "e/y", "e/y/z"]);
    for path in ["gone", "b", "d", "r/only"] {
        mount.discard(path).await.unwrap();
    }
    let mut expected = before.clone();
    expected.insert("d/x".into(), Some(b"D/x".to_vec()));
    assert_eq!(mount.tree().await, expected);
    let mount = mount.killed().await;
    assert_eq!(mount.tree().await, expected);
    view.allow("");
    mount.flush().await;
    assert_eq!(mount.tree().await, expected);
    assert_eq!(mount.remote()["d/x"], b"D/x");
    assert_eq!(mount.remote().len(), 6);
}

#[tokio::test]
async fn drop_refuses_change_with_dependents() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("x", b"x");
    mount.names("").await;
    mount.view.refuse_for_now("");
    mount.rename("a", "b").await.unwrap();
    mount.rename("b", "c").await.unwrap();
    mount.unlink("x").await.unwrap();
    mount.rename("c", "x").await.unwrap();
    mount.write("a", b"new").await.unwrap();
    assert!(refusal(mount.discard("a").await.and(mount.discard("b").await)).contains("later"));
    assert!(refusal(mount.discard("b").await).contains("later"));
    // Discarding all of them together works, in the right order.
    for refused in mount.discard_all().await {
        assert!(refused.is_none(), "{refused:?}");
    }
    assert!(mount.pending().is_empty());
    let tree = mount.tree().await;
    assert_eq!(
        tree.into_iter().map(|(path, c)| (path, c.unwrap())).collect::<Vec<_>>(),
        [("a".to_owned(), b"a".to_vec()), ("x".to_owned(), b"x".to_vec())]
    );
    mount.view.allow("");
    mount.flush().await;
    assert_eq!(mount.remote().len(), 2);
}

#[tokio::test]
async fn drop_refuses_change_whose_old_name_is_taken() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("gone", b"gone");
    mount.names("").await;
    mount.view.refuse_for_now("");
    mount.rename("a", "b").await.unwrap();
    mount.mkdir("a").await.unwrap();
    let rename = mount.number_of("b");
    let refused = mount.vfs.drop_pending(&[rename]).await.unwrap().remove(0);
    assert!(refused.unwrap().to_string().contains("taken"));
    mount.unlink("gone").await.unwrap();
    let delete = mount.number_of("gone");
    mount.mkdir("gone").await.unwrap();
    assert!(mount.vfs.drop_pending(&[delete]).await.unwrap().remove(0).is_some());
    assert_eq!(mount.pending().len(), 2);
}

#[tokio::test]
async fn retry_with_policy_resolves_parked_conflict() {
    for (wish, theirs_stay) in [(OnConflict::KeepBoth, true), (OnConflict::Overwrite, false)] {
        let mount = Mount::with(|options| options.on_conflict = OnConflict::Fail).await;
        mount.view.put_foreign("a", b"base");
        mount.write_at("a", 0, b"ours").await.unwrap();
        mount.view.put_foreign("a", b"theirs");
        mount.vfs.flush(None).await;
        assert_eq!(mount.pending()[0].state, PendingState::Parked);
        assert_eq!(mount.remote()["a"], b"theirs");
        assert_eq!(mount.read("a").await.unwrap(), b"ours");
        mount.vfs.retry(&[mount.number_of("a")], Some(wish));
        while !mount.pending().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let remote = mount.remote();
        assert!(remote.values().any(|content| content == b"ours"));
        assert_eq!(remote.values().any(|content| content == b"theirs"), theirs_stay);
    }
}

impl Mount {
    fn turns(&self) -> u64 {
        self.vfs.schedule.turns.load(Ordering::Relaxed)
    }

    /// Removes `path`, and waits until the removal has failed at the remote.
    async fn fail_to_unlink(&self, path: &str) {
        self.unlink(path).await.unwrap();
        while self.pending().iter().any(|pending| pending.path == path && pending.attempts == 0) {
            tokio::task::yield_now().await;
        }
    }
}

/// Time after which the first retry of a failed operation is certainly due.
const PAST_THE_RETRY: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn failed_removal_is_cancelled_when_name_is_created_again() {
    let file = async |mount: &Mount, path: &str| mount.write(path, b"new").await.unwrap();
    let renamed = async |mount: &Mount, path: &str| {
        mount.write("other", b"new").await.unwrap();
        mount.rename("other", path).await.unwrap();
    };
    let linked = async |mount: &Mount, path: &str| {
        mount.write("other", b"new").await.unwrap();
        mount.link("other", path).await.unwrap();
    };
    let mount = Mount::new().await;
    for path in ["a", "b", "c"] {
        mount.view.put_foreign(path, b"old");
        mount.view.refuse(path);
        mount.fail_to_unlink(path).await;
    }
    assert_eq!(mount.vfs.status().parked_files, 3);
    file(&mount, "a").await;
    assert_eq!(mount.vfs.status().parked_files, 2);
    renamed(&mount, "b").await;
    assert_eq!(mount.vfs.status().parked_files, 1);
    linked(&mount, "c").await;
    assert_eq!(mount.vfs.status().parked_files, 0);
}

#[tokio::test]
async fn cancelled_retry_does_not_keep_commit_loop_busy() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    mount.view.refuse_for_now("a");
    mount.fail_to_unlink("a").await;
    mount.write("a", b"new").await.unwrap();
    let before = mount.turns();
    tokio::time::sleep(PAST_THE_RETRY).await;
    assert!(mount.turns() - before < 10, "{} turns", mount.turns() - before);
    mount.view.allow("a");
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"new");
}

#[tokio::test]
async fn due_retry_waits_for_batch_in_flight_without_busy_loop() {
    let mount = Mount::new().await;
    for path in ["a", "b"] {
        mount.view.put_foreign(path, b"old");
    }
    mount.view.refuse_for_now("a");
    mount.fail_to_unlink("a").await;
    let failed = Instant::now();
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    mount.unlink("b").await.unwrap();
    while !mount.vfs.journal.ledger().queue().iter().any(|(op, _)| mount.vfs.schedule.is_running(op)) {
        tokio::task::yield_now().await;
    }
    // Otherwise the retry would be part of the batch.
    assert!(failed.elapsed() < Duration::from_millis(900), "this machine is too slow for this test");
    let before = mount.turns();
    tokio::time::sleep(PAST_THE_RETRY).await;
    assert!(mount.turns() - before < 10, "{} turns", mount.turns() - before);
    // The due operation is retried when the batch has ended, without a flush.
    mount.view.allow("a");
    drop(held);
    while !mount.remote().is_empty() {
        tokio::task::yield_now().await;
    }
}
