//! Many tasks create, write, rename and remove files under a few names concurrently, while the files are being
//! flushed.

use super::Mount;
use super::bench::options;
use super::model::cases;
use crate::fs::Options;
use crate::fs::memory_view::MemoryView;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TASKS: u64 = 8;
/// Number of operations of each task.
const STEPS: u64 = 150;
/// Longest duration of the last flush. It takes some milliseconds, and a second if an operation failed before.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Pseudo-random numbers that depend only on the seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    /// Returns a name that only files have.
    fn file(&mut self) -> &'static str {
        ["a", "b", "d/a", "d/b"][self.roll(4) as usize]
    }

    /// Returns a name that a file or a folder may have, or a name in that folder.
    fn name(&mut self) -> &'static str {
        ["c", "c/a"][self.roll(2) as usize]
    }
}

/// Performs one step. It may fail, because other tasks change the same names.
async fn step(mount: &Mount, dice: &mut Dice, content: &[u8]) {
    let (file, name) = (dice.file(), dice.name());
    let _ = match dice.roll(12) {
        0..3 => mount.write(file, content).await,
        3 => mount.write_at(file, dice.roll(100), content).await,
        4..6 => mount.unlink(file).await,
        6..8 => mount.rename(file, dice.file()).await,
        8 => mount.write(name, content).await,
        9 => mount.unlink(name).await,
        10 => mount.mkdir("c").await,
        _ => mount.rmdir("c").await,
    };
}

/// Delays commits from time to time until `ended`, so that operations meet them in every state.
async fn disturb(view: Arc<MemoryView>, ended: Arc<AtomicBool>, mut dice: Dice) {
    while !ended.load(Ordering::Relaxed) {
        let held = view.hold_commits().await;
        tokio::time::sleep(Duration::from_micros(dice.roll(3000))).await;
        drop(held);
        tokio::time::sleep(Duration::from_micros(dice.roll(3000))).await;
    }
}

async fn round(seed: u64) {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let soon = Duration::from_millis(1);
    let options = Options { flush_debounce: soon, flush_max_window: soon * 5, ..options(dir.path()) };
    let mount = Arc::new(Mount::on(MemoryView::new(true), dir, options).await);
    mount.mkdir("d").await.unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let dice = |number: u64| Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number + 1));
    let disturber = tokio::spawn(disturb(mount.view.clone(), ended.clone(), dice(TASKS)));
    let tasks = (0..TASKS).map(|number| {
        let (mount, mut dice) = (mount.clone(), dice(number));
        tokio::spawn(async move {
            for at in 0..STEPS {
                step(&mount, &mut dice, format!("{number} {at}").as_bytes()).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    disturber.await.unwrap();
    let began = Instant::now();
    let drained = mount.vfs.flush(Some(MAX_WAIT)).await;
    let status = mount.vfs.status();
    assert_eq!((drained.pending, status.pending_files, status.parked_files), (0, 0, 0), "seed {seed}: {status:?}");
    assert!(began.elapsed() < MAX_WAIT, "seed {seed}: the flush ended at its deadline, {:?}", mount.vfs.schedule);
    assert_eq!(drained.conflicts, 0, "seed {seed}: {status:?}");
    let files: BTreeMap<_, _> =
        mount.tree().await.into_iter().filter_map(|(path, content)| Some((path, content?))).collect();
    assert_eq!(mount.remote(), files, "seed {seed}");
    // No file is left that the uploader would check again and again.
    let idle = async {
        while !mount.vfs.schedule.is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(MAX_WAIT, idle).await.is_ok(), "seed {seed}: {:?}", mount.vfs.schedule);
}

#[tokio::test]
async fn file_touched_after_removal_does_not_block_flush() {
    let mount = Mount::new().await;
    let handle = mount.open("a", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"content").await.unwrap();
    let edit = mount.vfs.schedule.edits().pop().unwrap();
    mount.unlink("a").await.unwrap();
    // A write that began before the removal does this.
    mount.vfs.schedule.touch(&edit);
    let began = Instant::now();
    assert_eq!(mount.vfs.flush(Some(MAX_WAIT)).await.pending, 0);
    assert!(began.elapsed() < MAX_WAIT && mount.vfs.schedule.is_idle(), "{:?}", mount.vfs.schedule);
    mount.close(handle).await.unwrap();
    assert_eq!(mount.remote(), BTreeMap::new());
}

#[tokio::test]
async fn file_with_unqueueable_commit_is_committed_later() {
    let mount = Mount::new().await;
    mount.write("a", b"content").await.unwrap();
    // The file is frozen, so that the next attempt journals nothing before the commit.
    mount.view.poison(b"content");
    assert_eq!(mount.vfs.flush(Some(MAX_WAIT)).await.pending, 1);
    mount.view.unpoison();
    mount.view.refuse_to_seal(true);
    assert_eq!(mount.vfs.flush(Some(MAX_WAIT)).await.pending, 1);
    mount.view.refuse_to_seal(false);
    mount.flush().await;
    assert_eq!(mount.remote().len(), 1);
}

#[test]
fn concurrently_changed_names_are_flushed_in_time() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    for seed in 0..u64::from(cases().div_ceil(8)) {
        runtime.block_on(round(seed));
    }
}
