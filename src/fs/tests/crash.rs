//! The daemon is killed: what was acknowledged is there again, in order.

use super::Mount;
use std::time::Duration;

#[tokio::test]
async fn what_was_closed_survives_a_kill_and_is_flushed_later() {
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
async fn operations_on_names_survive_a_kill() {
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
async fn a_kill_after_the_commit_but_before_its_note_is_no_conflict() {
    let mount = Mount::new().await;
    mount.write("a", b"ours").await.unwrap();
    mount.view.set_trouble(Some(crate::fs::memory_view::Trouble::LostAnswer));
    let drained = mount.vfs.flush(Some(Duration::from_millis(100))).await;
    assert_eq!(mount.remote()["a"], b"ours");
    let mount = if drained.pending > 0 { mount.killed().await } else { mount };
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
    assert_eq!(mount.remote().len(), 1);
}

#[tokio::test]
async fn a_foreign_change_while_the_daemon_was_dead_is_a_conflict() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"base");
    mount.write_at("a", 0, b"ours").await.unwrap();
    mount.view.put_foreign("a", b"theirs");
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.vfs.status().conflicts, 1);
    assert_eq!(mount.remote().len(), 2);
}

/// Killed with the commit of `a` in the queue.
async fn killed_before_the_commit() -> Mount {
    let mount = Mount::new().await;
    mount.write("a", b"first").await.unwrap();
    let view = mount.view.clone();
    let held = view.hold_commits().await;
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    while mount.vfs.journal.ledger().ops().count() == 0 {
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
async fn a_file_whose_commit_was_queued_at_a_kill_can_be_changed_and_flushed_again() {
    let mount = killed_before_the_commit().await;
    mount.write_at("a", 0, b"later").await.unwrap();
    mount.flush().await;
    mount.write_at("a", 5, b" still").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote()["a"], b"later still");
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn a_queued_commit_that_meets_a_foreign_file_after_a_kill_keeps_both() {
    let mount = killed_before_the_commit().await;
    mount.view.put_foreign("a", b"theirs");
    mount.flush().await;
    let remote = mount.remote();
    assert_eq!(remote["a"], b"theirs");
    assert_eq!((remote.len(), mount.vfs.status().conflicts), (2, 1));
}

#[tokio::test]
async fn a_removed_file_that_was_open_leaves_nothing_behind() {
    let mount = Mount::new().await;
    mount.write("a", &[1; 100_000]).await.unwrap();
    let _handle = mount.open("a", libc::O_RDWR).await.unwrap();
    mount.unlink("a").await.unwrap();
    let mount = mount.killed().await;
    assert!(mount.names("").await.is_empty());
    mount.staging_empties().await;
}

#[tokio::test]
async fn many_kills_lose_nothing() {
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
async fn shutting_down_flushes_and_refuses_new_work() {
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
async fn what_a_shutdown_could_not_flush_is_there_at_the_next_start() {
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

/// A disk after a power cut: each sector of a file is as it was at the last sync, or as it was written since.
fn torn(synced: &[u8], written: &[u8], seed: &mut u64) -> Vec<u8> {
    const SECTOR: usize = 512;
    let mut disk = written.to_vec();
    let mut coin = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed & 3 == 0
    };
    for start in (0..disk.len()).step_by(SECTOR) {
        let end = disk.len().min(start + SECTOR);
        let old: Vec<u8> = (start..end).map(|at| synced.get(at).copied().unwrap_or(0)).collect();
        if disk[start..end] != old && coin() {
            disk[start..end].copy_from_slice(&old);
        }
    }
    disk
}

fn image(mount: &Mount) -> Vec<Vec<u8>> {
    let folder = mount.vfs._folder.path();
    ["journal", "pool"].iter().map(|name| std::fs::read(folder.join(name)).unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest() {
    for round in 1..=30u64 {
        let mut seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mount = Mount::new().await;
        mount.view.put_foreign("base", &[b'b'; 100_000]);
        mount.write("a", &vec![1; 90_000]).await.unwrap();
        mount.write_at("base", 70_000, b"synced").await.unwrap();
        mount.vfs.fsyncdir().await.unwrap();
        let synced = image(&mount);
        // From here on nothing is promised but order.
        let mut states = vec![mount.tree().await];
        mount.rename("a", "b").await.unwrap();
        states.push(mount.tree().await);
        mount.write_at("b", 10, b"later").await.unwrap();
        states.push(mount.tree().await);
        mount.write_at("b", 80_000, &[7; 30_000]).await.unwrap();
        states.push(mount.tree().await);
        mount.truncate("base", 5).await.unwrap();
        states.push(mount.tree().await);
        mount.mkdir("d").await.unwrap();
        states.push(mount.tree().await);
        let written = image(&mount);
        let folder = mount.vfs._folder.path().to_owned();
        let (view, dir, options) = (mount.view.clone(), mount.dir.clone(), mount.options.clone());
        // The background sync would only make it easier: its files are replaced.
        drop(mount.killed().await);
        let mount = Mount {
            vfs: wait_for_start(&view, &options, &folder, &synced, &written, &mut seed).await,
            view,
            dir,
            options,
        };
        let after = mount.tree().await;
        assert!(states.contains(&after), "round {round}: {:?}", after.keys().collect::<Vec<_>>());
    }
}

async fn wait_for_start(
    view: &std::sync::Arc<crate::fs::memory_view::MemoryView>,
    options: &crate::fs::Options,
    folder: &std::path::Path,
    synced: &[Vec<u8>],
    written: &[Vec<u8>],
    seed: &mut u64,
) -> std::sync::Arc<crate::fs::Vfs> {
    for _ in 0..1000 {
        let locked = crate::fs::staging::Folder::open(&options.cache_dir, &[7; 32]);
        if let Ok(locked) = locked {
            for (name, (synced, written)) in ["journal", "pool"].iter().zip(synced.iter().zip(written)) {
                std::fs::write(folder.join(name), torn(synced, written, seed)).unwrap();
            }
            drop(locked);
            return crate::fs::Vfs::start(view.clone(), options.clone()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the old daemon doesn't let go of its folder");
}
