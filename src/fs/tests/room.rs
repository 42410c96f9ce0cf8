//! `--max-staging-size`: writers wait for room, then get `ENOSPC`; nothing that was taken is lost.

use super::Mount;
use crate::fs::Options;
use std::time::{Duration, Instant};

const SLOT: usize = 65_536;

/// Room for 16 slots, and half a second of patience.
fn tight(options: &mut Options) {
    options.max_staging = Some(16 * SLOT as u64);
    options.reply_deadline = Duration::from_millis(700);
}

fn errno(outcome: Result<impl Sized, crate::fs::Error>) -> i32 {
    outcome.err().map_or(0, |error| error.errno())
}

#[tokio::test]
async fn writers_are_slowed_down_to_what_the_source_takes() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(30);
    })
    .await;
    let mut most = 0;
    for file in 0..12u8 {
        mount.write(&format!("f{file}"), &vec![file; 8 * SLOT]).await.unwrap();
        most = most.max(mount.vfs.pool.used());
    }
    assert!(most <= 17, "{most} slots were in use");
    mount.flush().await;
    let remote = mount.remote();
    assert!((0..12u8).all(|file| remote[&format!("f{file}")] == vec![file; 8 * SLOT]));
}

#[tokio::test]
async fn with_the_source_away_writers_get_enospc_in_time_and_older_data_stays() {
    let mount = Mount::with(tight).await;
    mount.write("old", &vec![1; 12 * SLOT]).await.unwrap();
    mount.view.set_offline(true);
    let handle = mount.open("old", libc::O_RDWR).await.unwrap();
    let began = Instant::now();
    assert_eq!(errno(mount.put(handle, 12 * SLOT as u64, &vec![2; 5 * SLOT]).await), libc::ENOSPC);
    assert!(began.elapsed() < Duration::from_secs(20));
    mount.close(handle).await.unwrap();
    assert_eq!(mount.read("old").await.unwrap(), vec![1; 12 * SLOT]);
    // Removing makes room again.
    mount.view.set_offline(false);
    mount.flush().await;
    mount.write("new", &vec![2; 12 * SLOT]).await.unwrap();
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!((&remote["old"], &remote["new"]), (&vec![1; 12 * SLOT], &vec![2; 12 * SLOT]));
}

#[tokio::test]
async fn a_file_that_can_never_fit_is_refused_at_once() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(3600);
    })
    .await;
    mount.view.put_foreign("large", &vec![1; 17 * SLOT]);
    let handle = mount.open("large", libc::O_RDWR).await.unwrap();
    assert_eq!(errno(mount.put(handle, 0, b"2").await), libc::ENOSPC);
    mount.close(handle).await.unwrap();
    assert_eq!(errno(mount.truncate("large", 20 << 20).await), libc::ENOSPC);
    assert_eq!(mount.read("large").await.unwrap(), vec![1; 17 * SLOT]);
    // Emptying it needs no room.
    mount.truncate("large", 0).await.unwrap();
}

#[tokio::test]
async fn committed_content_of_open_files_gives_way_least_recently_touched_first() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(30);
    })
    .await;
    let mut handles = Vec::new();
    for (name, byte) in [("first", 1u8), ("second", 2)] {
        let handle = mount.open(name, libc::O_RDWR | libc::O_CREAT).await.unwrap();
        mount.put(handle, 0, &vec![byte; 6 * SLOT]).await.unwrap();
        handles.push(handle);
        mount.flush().await;
    }
    assert!(mount.vfs.pool.used() >= 12);
    mount.write("third", &vec![3; 7 * SLOT]).await.unwrap();
    mount.flush().await;
    // The first was given back, the second is still here.
    let staged = |ino| {
        let edit = crate::fs::lock(&mount.vfs.tree).file(ino).unwrap().edit.clone().unwrap();
        let ledger = mount.vfs.journal.ledger();
        ledger.file(edit.file).unwrap().draft.as_ref().unwrap().state.records.len()
    };
    let (first, second) = (mount.find("first").await.unwrap(), mount.find("second").await.unwrap());
    assert_eq!((staged(first), staged(second)), (0, 6));
    assert_eq!(mount.read_all(handles[0]).await.unwrap(), vec![1; 6 * SLOT]);
    mount.put(handles[0], 5, b"more").await.unwrap();
    let mut expected = vec![1; 6 * SLOT];
    expected[5..9].copy_from_slice(b"more");
    assert_eq!(mount.read_all(handles[0]).await.unwrap(), expected);
    mount.vfs.flush_file(handles[0]).await.unwrap();
    let before = mount.tree().await;
    let mount = mount.killed().await;
    assert_eq!(mount.tree().await, before);
    mount.flush().await;
    assert_eq!(mount.remote()["first"], expected);
    mount.staging_empties().await;
}

#[tokio::test]
async fn what_was_given_back_is_still_known_after_a_kill_and_a_compaction() {
    let mount = Mount::with(tight).await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, &vec![1; 3 * SLOT]).await.unwrap();
    mount.flush().await;
    let edit = mount.vfs.flusher.edits().remove(0);
    let again = |state| Ok(crate::store::View::draft(&*mount.view, state, mount.vfs.pool.clone())?);
    assert!(edit.evict(&mount.vfs.journal, &mount.vfs.pool, again).await.unwrap());
    mount.put(handle, 0, b"2").await.unwrap();
    mount.vfs.flush_file(handle).await.unwrap();
    // Each start compacts: twice, so that a snapshot of a snapshot is read.
    let mount = mount.killed().await.killed().await;
    let mut expected = vec![1; 3 * SLOT];
    expected[0] = b'2';
    assert_eq!(mount.read("a").await.unwrap(), expected);
    mount.flush().await;
    assert_eq!(mount.remote()["a"], expected);
}
