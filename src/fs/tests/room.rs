//! `--max-pending-size`: writers wait for space, then get `ENOSPC`; nothing that was accepted is lost.
//! `--max-staging-size`: nothing is refused.

use super::Mount;
use crate::fs::Options;
use std::time::{Duration, Instant};

const SLOT: usize = 65_536;

/// Disk space for a pool of 64 slots and a journal, bytes.
const LIMIT: u64 = 6 << 20;

/// Limits disk space to [`LIMIT`], and the wait for it to half a second.
fn tight(options: &mut Options) {
    options.max_pending = Some(LIMIT);
    options.reply_deadline = Duration::from_millis(700);
}

/// Returns the bytes that the files of a mount's staging folder take on disk.
fn on_disk(mount: &Mount) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut folders = vec![mount.options.cache_dir.clone()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            match metadata.is_dir() {
                true => folders.push(entry.path()),
                false => bytes += metadata.blocks() * 512,
            }
        }
    }
    assert!(bytes > 0);
    bytes
}

/// Lists the root, then disconnects the remote, so that names are still found. The mount needs a long TTL.
async fn unplug(mount: &Mount) {
    mount.names("").await;
    mount.view.set_offline(true);
}

/// Sets the limits of [`tight`], with listings that stay valid.
fn tight_and_listed(options: &mut Options) {
    tight(options);
    options.metadata_ttl = Duration::from_secs(3600);
}

fn errno(outcome: Result<impl Sized, crate::fs::Error>) -> i32 {
    outcome.err().map_or(0, |error| error.errno())
}

#[tokio::test]
async fn writers_are_slowed_down_to_speed_of_remote() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(30);
    })
    .await;
    let mut most = 0;
    for file in 0..12u8 {
        mount.write(&format!("f{file}"), &vec![file; 31 * SLOT]).await.unwrap();
        most = most.max(on_disk(&mount));
    }
    assert!(most <= LIMIT, "{most} bytes were in use");
    mount.flush().await;
    let remote = mount.remote();
    assert!((0..12u8).all(|file| remote[&format!("f{file}")] == vec![file; 31 * SLOT]));
}

#[tokio::test]
async fn writer_with_offline_remote_gets_enospc_in_time_and_old_data_stays() {
    let mount = Mount::with(tight).await;
    mount.write("old", &vec![1; 48 * SLOT]).await.unwrap();
    mount.view.set_offline(true);
    let handle = mount.open("old", libc::O_RDWR).await.unwrap();
    let began = Instant::now();
    assert_eq!(errno(mount.put(handle, 48 * SLOT as u64, &vec![2; 20 * SLOT]).await), libc::ENOSPC);
    assert!(began.elapsed() < Duration::from_secs(20));
    mount.close(handle).await.unwrap();
    assert_eq!(mount.read("old").await.unwrap(), vec![1; 48 * SLOT]);
    // Removing a file frees space again.
    mount.view.set_offline(false);
    mount.flush().await;
    mount.write("new", &vec![2; 48 * SLOT]).await.unwrap();
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!((&remote["old"], &remote["new"]), (&vec![1; 48 * SLOT], &vec![2; 48 * SLOT]));
}

#[tokio::test]
async fn deadline_of_zero_lets_a_writer_wait_for_space() {
    let mount = Mount::with(|options| {
        tight_and_listed(options);
        options.reply_deadline = Duration::ZERO;
    })
    .await;
    mount.write("old", &vec![1; 48 * SLOT]).await.unwrap();
    unplug(&mount).await;
    let handle = mount.open("new", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    assert_eq!(mount.vfs.timeout(handle), Duration::from_secs(3600));
    let (vfs, data) = (mount.vfs.clone(), vec![2; 40 * SLOT].into());
    let mut write = tokio::spawn(async move { vfs.write(handle, 0, data).await });
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut write).await.is_err(), "the writer gave up");
    mount.view.set_offline(false);
    mount.vfs.flush(Some(Duration::from_secs(20))).await;
    assert_eq!(write.await.unwrap().unwrap(), 40 * SLOT);
    mount.close(handle).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["new"], vec![2; 40 * SLOT]);
}

#[tokio::test]
async fn file_larger_than_limit_is_refused_immediately() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(3600);
    })
    .await;
    mount.view.put_foreign("large", &vec![1; 65 * SLOT]);
    let handle = mount.open("large", libc::O_RDWR).await.unwrap();
    assert_eq!(errno(mount.put(handle, 0, b"2").await), libc::ENOSPC);
    mount.close(handle).await.unwrap();
    assert_eq!(errno(mount.truncate("large", 20 << 20).await), libc::ENOSPC);
    assert_eq!(mount.read("large").await.unwrap(), vec![1; 65 * SLOT]);
    // Emptying it needs no space.
    mount.truncate("large", 0).await.unwrap();
}

#[tokio::test]
async fn committed_content_of_open_files_is_evicted_least_recently_used_first() {
    let mount = Mount::with(|options| {
        tight(options);
        options.reply_deadline = Duration::from_secs(30);
    })
    .await;
    let mut handles = Vec::new();
    for (name, byte) in [("first", 1u8), ("second", 2)] {
        let handle = mount.open(name, libc::O_RDWR | libc::O_CREAT).await.unwrap();
        mount.put(handle, 0, &vec![byte; 24 * SLOT]).await.unwrap();
        handles.push(handle);
        mount.flush().await;
    }
    assert!(mount.vfs.pool.used() >= 48);
    mount.write("third", &vec![3; 28 * SLOT]).await.unwrap();
    mount.flush().await;
    // The first one was evicted, the second one is still here.
    let staged = |ino| {
        let edit = crate::fs::lock::lock(&mount.vfs.tree).file(ino).unwrap().edit.clone().unwrap();
        let ledger = mount.vfs.journal.ledger();
        ledger.file(edit.file).unwrap().draft.as_ref().unwrap().state.records.len()
    };
    let (first, second) = (mount.find("first").await.unwrap(), mount.find("second").await.unwrap());
    assert_eq!((staged(first), staged(second)), (0, 24));
    assert_eq!(mount.read_all(handles[0]).await.unwrap(), vec![1; 24 * SLOT]);
    mount.put(handles[0], 5, b"more").await.unwrap();
    let mut expected = vec![1; 24 * SLOT];
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
async fn evicted_file_is_readable_after_kill_and_compaction() {
    let mount = Mount::with(tight).await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, &vec![1; 3 * SLOT]).await.unwrap();
    mount.flush().await;
    let edit = mount.vfs.schedule.edits().remove(0);
    let again = |state| Ok(crate::store::View::draft(&*mount.view, state, mount.vfs.pool.clone())?);
    let guard = edit.try_write_guard(&mount.vfs.journal, &mount.vfs.pool).unwrap();
    assert_eq!(guard.evict(again).await.unwrap(), 3);
    mount.put(handle, 0, b"2").await.unwrap();
    mount.vfs.flush_file(handle).await.unwrap();
    // Each start compacts the journal. Two starts read a snapshot of a snapshot.
    let mount = mount.killed().await.killed().await;
    let mut expected = vec![1; 3 * SLOT];
    expected[0] = b'2';
    assert_eq!(mount.read("a").await.unwrap(), expected);
    mount.flush().await;
    assert_eq!(mount.remote()["a"], expected);
}

#[tokio::test]
async fn pending_limit_counts_unfetched_part_of_edited_file() {
    let mount = Mount::with(tight_and_listed).await;
    mount.view.put_foreign("large", &vec![1; 40 * SLOT]);
    let large = mount.open("large", libc::O_RDWR).await.unwrap();
    mount.put(large, 0, b"2").await.unwrap();
    unplug(&mount).await;
    // No slot is in use yet, but the upload of the edit needs 40.
    assert!(mount.vfs.pool.used() <= 1);
    let other = mount.open("other", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    assert_eq!(errno(mount.put(other, 0, &vec![3; 30 * SLOT]).await), libc::ENOSPC);
    mount.put(other, 0, &vec![3; 20 * SLOT]).await.unwrap();
    // A file that is closed and removed frees the space that was promised to it.
    mount.close(large).await.unwrap();
    mount.view.set_offline(false);
    mount.flush().await;
    assert!(on_disk(&mount) <= LIMIT);
    mount.put(other, 20 * SLOT as u64, &vec![3; 30 * SLOT]).await.unwrap();
    mount.close(other).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["other"], vec![3; 50 * SLOT]);
}

#[tokio::test]
async fn pending_limit_counts_open_files_whose_writes_are_in_memory() {
    let mount = Mount::with(tight_and_listed).await;
    unplug(&mount).await;
    let mut handles = Vec::new();
    let mut refused = 0;
    for file in 0..100 {
        let handle = mount.open(&format!("f{file}"), libc::O_RDWR | libc::O_CREAT).await.unwrap();
        if handles.len() < 62 {
            mount.put(handle, 0, b"small").await.unwrap();
            handles.push(handle);
        } else {
            refused += i32::from(errno(mount.put(handle, 0, b"small").await) == libc::ENOSPC);
            if refused == 2 {
                break;
            }
        }
    }
    assert_eq!(refused, 2);
    for handle in handles {
        mount.close(handle).await.unwrap();
    }
    assert!(on_disk(&mount) <= LIMIT);
}

#[tokio::test]
async fn pending_limit_counts_gaps_zeroed_ranges_and_links() {
    let mount = Mount::with(tight_and_listed).await;
    mount.write("a", &vec![1; 40 * SLOT]).await.unwrap();
    unplug(&mount).await;
    let handle = mount.open("b", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    let far = 30 * SLOT as u64;
    assert_eq!(errno(mount.put(handle, far, b"after a gap").await), libc::ENOSPC);
    assert_eq!(errno(mount.vfs.allocate(handle, 0, far, crate::fs::Allocate::Extend).await), libc::ENOSPC);
    let zero = crate::fs::Allocate::Zero { keep_size: false };
    assert_eq!(errno(mount.vfs.allocate(handle, 0, far, zero).await), libc::ENOSPC);
    assert_eq!(errno(mount.link("a", "c").await), libc::ENOSPC);
    mount.put(handle, 0, b"here").await.unwrap();
}

#[tokio::test]
async fn staging_limit_refuses_no_write_and_evicts_oldest_uploaded_content_first() {
    const LIMIT: u64 = 8 << 20;
    let mount = Mount::with(|options| {
        options.max_staging = Some(LIMIT);
        options.metadata_ttl = Duration::from_secs(3600);
    })
    .await;
    unplug(&mount).await;
    let used_is = async |slots: u64| {
        while mount.vfs.pool.used() != slots {
            mount.vfs.journal.sync_soon();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let began = Instant::now();
    mount.write("first", b"has the first slot").await.unwrap();
    let old = mount.open("old", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    mount.put(old, 0, &vec![1; 200 * SLOT]).await.unwrap();
    mount.vfs.flush_file(old).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "a write waited");
    mount.unlink("first").await.unwrap();
    used_is(200).await;
    let new = mount.open("new", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    mount.put(new, 0, b"2").await.unwrap();
    mount.vfs.flush_file(new).await.unwrap();
    mount.vfs.quota.collect().await;
    used_is(201).await;

    mount.view.set_offline(false);
    mount.flush().await;
    // Evicting the older one is sufficient.
    used_is(1).await;
    assert!(on_disk(&mount) <= LIMIT, "the pool gives its space back");
    assert_eq!(mount.read_all(old).await.unwrap(), vec![1; 200 * SLOT]);
}

#[tokio::test]
async fn eviction_skips_files_whose_readers_wait_for_remote() {
    let mount = Mount::with(|options| {
        options.max_staging = Some(1);
        options.metadata_ttl = Duration::from_secs(3600);
    })
    .await;
    let edit = |name| {
        let ino = crate::fs::lock::lock(&mount.vfs.tree).child(crate::fs::Ino::ROOT, name).unwrap();
        mount.vfs.schedule.edits().into_iter().find(|edit| edit.ino() == ino).unwrap()
    };
    let mut handles = Vec::new();
    for name in ["read", "held", "free"] {
        let handle = mount.open(name, libc::O_RDWR | libc::O_CREAT).await.unwrap();
        mount.put(handle, 0, &[1; 4 * SLOT]).await.unwrap();
        if name == "read" {
            mount.flush().await;
            mount.vfs.quota.collect().await;
            mount.staging_empties().await;
        }
        handles.push(handle);
    }
    let _source_hangs = mount.view.hold_reads().await;
    let (vfs, handle) = (mount.vfs.clone(), handles[0]);
    let read = tokio::spawn(async move { vfs.read(handle, 0, 10).await });
    while edit("read").try_write_guard(&mount.vfs.journal, &mount.vfs.pool).is_some() {
        tokio::task::yield_now().await;
    }
    mount.flush().await;
    let held = edit("held");
    let _held = held.reader().await;
    let collected = tokio::time::timeout(Duration::from_secs(20), mount.vfs.quota.collect()).await;
    collected.expect("eviction waits for a reader");
    let free = edit("free").file;
    let is_evicted = |draft: &crate::fs::journal::ledger::DraftRecord| draft.state.records.is_empty();
    assert!(mount.vfs.journal.ledger().file(free).unwrap().draft.as_ref().is_some_and(is_evicted));
    read.abort();
}
