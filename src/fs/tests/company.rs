//! Uploads in company: how many sessions files cost, how long they wait, and what it costs to find those that are due.

use super::{Mount, shortest};
use crate::fs::sync::schedule::COMPANY;
use crate::fs::{PendingNo, PendingState};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const DEBOUNCE: Duration = Duration::from_millis(50);
/// Longest wait of a test for something that happens by itself.
const MAX_WAIT: Duration = Duration::from_secs(60);

async fn mount() -> Mount {
    Mount::with(|options| {
        options.flush_debounce = DEBOUNCE;
        options.flush_max_window = Duration::from_secs(30);
        options.metadata_ttl = MAX_WAIT;
    })
    .await
}

/// A mount that flushes nothing by itself.
async fn quiet_mount() -> Mount {
    Mount::with(|options| options.metadata_ttl = MAX_WAIT * 60).await
}

/// Waits until the remote has so many files. Returns how long that took.
async fn uploaded(mount: &Mount, files: usize) -> Duration {
    let began = Instant::now();
    while mount.remote().len() < files {
        assert!(began.elapsed() < MAX_WAIT, "{} of {files} files are at the remote", mount.remote().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// Creates files and waits until they are uploaded. Returns sessions, commits, files that were looked at, and how long
/// it took to create them.
async fn create_and_upload(files: u64) -> (u64, u64, u64, Duration) {
    let mount = mount().await;
    let began = Instant::now();
    for file in 0..files {
        mount.write(&format!("{file}"), &file.to_le_bytes()).await.unwrap();
    }
    let took = began.elapsed();
    uploaded(&mount, files as usize).await;
    let (sessions, commits) = mount.view.requests();
    (sessions, commits, mount.vfs.schedule.checks.load(Relaxed), took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_that_are_written_together_share_sessions_and_commits() {
    for files in [100, 1500] {
        let (sessions, commits, checks, took) = create_and_upload(files).await;
        // Full sessions, one for each time that files waited in vain for company, and the last.
        let most = files / 256 + took.as_millis() as u64 / COMPANY.as_millis() as u64 + 2;
        assert!(sessions <= most, "{sessions} sessions for {files} files in {took:?}");
        assert!(commits <= 4 * most, "{commits} commits for {files} files in {took:?}");
        // A file is looked at when its debounce is over, when its session ends, and when its commit is done; a few more
        // times if its first write comes to an end late.
        assert!(checks <= 4 * files, "{files} files were looked at {checks} times");
    }
}

#[tokio::test]
async fn lone_file_waits_for_no_company() {
    let mount = mount().await;
    mount.write("a", b"alone").await.unwrap();
    let took = uploaded(&mount, 1).await;
    assert!(took < COMPANY, "{took:?}");
}

#[tokio::test]
async fn file_that_waits_for_others_is_uploaded_within_the_bound() {
    let mount = mount().await;
    let busy = mount.open("busy", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    let mut at = 0;
    mount.write("a", b"content").await.unwrap();
    let began = Instant::now();
    while !mount.remote().contains_key("a") {
        // Another file is written all the time, so company may come.
        mount.put(busy, at, b"x").await.unwrap();
        at += 1;
        assert!(began.elapsed() < COMPANY * 5, "it is left waiting");
        tokio::time::sleep(DEBOUNCE / 5).await;
    }
    assert!(began.elapsed() >= COMPANY / 2, "it did not wait: {:?}", began.elapsed());
    mount.close(busy).await.unwrap();
}

#[tokio::test]
async fn fsync_of_a_file_that_waits_for_company_uploads_it_immediately() {
    let mount = Mount::with(|options| {
        options.flush_debounce = DEBOUNCE;
        options.flush_max_window = Duration::from_secs(30);
        options.fsync_remote = true;
    })
    .await;
    let busy = mount.open("busy", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(busy, 0, b"x").await.unwrap();
    let handle = mount.open("a", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"content").await.unwrap();
    let began = Instant::now();
    mount.vfs.fsync(handle).await.unwrap();
    assert!(began.elapsed() < COMPANY && mount.remote().contains_key("a"), "{:?}", began.elapsed());
    mount.close(handle).await.unwrap();
    mount.close(busy).await.unwrap();
}

#[tokio::test]
async fn cost_of_status_and_of_a_page_of_pending_does_not_depend_on_how_much_is_pending() {
    let mut times = Vec::new();
    for files in [50, 2500] {
        let mount = quiet_mount().await;
        for file in 0..files {
            mount.write(&format!("{file}"), b"content").await.unwrap();
        }
        let last = mount.vfs.pending(None, usize::MAX).last().unwrap().number;
        let PendingNo::File(last) = last else { panic!("a change of names") };
        let after = PendingNo::File(last - 5);
        times.push(shortest(|| {
            for _ in 0..100 {
                let status = mount.vfs.status();
                assert_eq!((status.pending_files, status.pending_bytes), (files, 7 * files));
                let page = mount.vfs.pending(Some(after), 10);
                assert!(page.len() == 5 && page.iter().all(|file| file.state == PendingState::Dirty));
                assert_eq!(mount.vfs.pending(None, 3).len(), 3);
            }
        }));
    }
    assert!(times[1] < times[0] * 5, "{:?} with 50 files, {:?} with 2,500", times[0], times[1]);
}

#[tokio::test]
async fn flush_of_many_files_is_told_of_each_once() {
    let mount = quiet_mount().await;
    for file in 0..1000 {
        mount.write(&format!("{file}"), b"content").await.unwrap();
    }
    let drained = mount.vfs.flush(Some(MAX_WAIT)).await;
    assert_eq!((drained.flushed, drained.pending), (1000, 0));
    let (sessions, commits) = mount.view.requests();
    assert!(sessions <= 5 && commits <= 20, "{sessions} sessions, {commits} commits");
}
