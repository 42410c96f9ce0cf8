//! Tests of both caches over real folders.

mod bench;
mod files;
mod model;
mod processes;

use super::folder::{Folder, Key};
use super::read::Reader;
use super::*;
use crate::hash::chunk_hash;
use futures::FutureExt;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// What an entry of a few small chunks costs.
const SMALL: u64 = 4096 + 1024;

/// The hash of a xorb that is told apart by a number.
fn xorb(number: u8) -> Hash {
    Hash([number; 32])
}

/// What chunk `index` of that xorb holds.
fn chunk(number: u8, index: u32) -> (Hash, Bytes) {
    let mut bytes = vec![0; 1 + (usize::from(number) * 7 + index as usize * 13) % 97];
    blake3::Hasher::new().update(&[number]).update(&index.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (chunk_hash(&bytes), bytes.into())
}

fn run(number: u8, range: Range<u32>) -> Vec<(Hash, Bytes)> {
    range.map(|index| chunk(number, index)).collect()
}

/// A folder, a clock, and how a cache is opened over them.
struct Rig {
    _dir: tempfile::TempDir,
    clock: Arc<AtomicI64>,
    options: Options,
    pause: Duration,
}

impl Rig {
    fn new(max_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { max_bytes, min_free: Some(0), ..Options::new(dir.path().join("cache")) };
        Self { _dir: dir, clock: Arc::new(AtomicI64::new(1_000_000)), options, pause: Duration::from_secs(3600) }
    }

    fn knobs(&self) -> Knobs {
        let clock = Arc::clone(&self.clock);
        // Every use is later than the one before.
        let clock = Arc::new(move || clock.fetch_add(1, Ordering::Relaxed));
        Knobs { clock, use_grain: 0, pause: self.pause, boot: "this".to_owned() }
    }

    /// Opens it, and waits for its first look at the folder.
    async fn open(&self) -> ChunkCache {
        let cache = ChunkCache::open_with(self.options.clone(), self.knobs()).unwrap();
        cache.settle().await;
        cache
    }

    fn path(&self) -> &Path {
        &self.options.dir
    }

    /// Paths of all entries, relative.
    fn entries(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for kind in ["chunks", "files"] {
            for shard in std::fs::read_dir(self.path().join(kind)).into_iter().flatten().flatten() {
                for entry in std::fs::read_dir(shard.path()).unwrap().flatten() {
                    found.insert(entry.path().strip_prefix(self.path()).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }

    /// What the entries take on disk by our own rule.
    fn cost(&self) -> u64 {
        let len = |path| std::fs::metadata(self.path().join(path)).unwrap().len();
        self.entries().into_iter().map(|path| len(path).next_multiple_of(4096) + 1024).sum()
    }

    /// Names in `writing`.
    fn writing(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join("writing")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn entry(&self, number: u8, range: Range<u32>) -> std::path::PathBuf {
        let name = format!("chunks/{number:02x}/{}-{}-{}", xorb(number), range.start, range.len());
        self.path().join(name)
    }
}

async fn insert(cache: &ChunkCache, number: u8, range: Range<u32>) {
    cache.insert(&xorb(number), range.start, &run(number, range)).await;
    cache.settle().await;
}

/// Whether the range is there; if so it is right.
async fn has(cache: &ChunkCache, number: u8, range: Range<u32>) -> bool {
    let Some(found) = cache.chunks(&xorb(number), range.clone()).await else { return false };
    let wanted: Vec<Cached> = run(number, range).into_iter().map(|(hash, bytes)| Cached { hash, bytes }).collect();
    assert_eq!(found, wanted);
    true
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn what_was_inserted_is_read_also_after_reopening() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    insert(&cache, 1, 10..20).await;
    for _ in 0..2 {
        let cache = rig.open().await;
        for range in [10..20, 10..11, 19..20, 13..17] {
            assert!(has(&cache, 1, range).await);
        }
        for range in [9..11, 19..21, 0..1, 20..21] {
            assert!(!has(&cache, 1, range).await);
        }
        assert!(!has(&cache, 2, 10..11).await);
    }
    for path in [rig.entry(1, 10..20), rig.path().join("index.sqlite"), rig.path().join("index.sqlite-wal")] {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn what_is_no_range_of_a_xorb_is_ignored() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    let (hash, bytes) = chunk(1, 0);
    let too_long = Bytes::from(vec![0; MAX_CHUNK + 1]);
    cache.insert(&xorb(1), 0, &[]).await;
    cache.insert(&xorb(1), 0, &[(hash, bytes.clone()), (hash, Bytes::new())]).await;
    cache.insert(&xorb(1), 0, &[(hash, too_long)]).await;
    cache.insert(&xorb(1), MAX_CHUNKS as u32, &[(hash, bytes.clone())]).await;
    cache.insert(&xorb(1), u32::MAX, &[(hash, bytes)]).await;
    cache.settle().await;
    assert!(rig.entries().is_empty());
    #[allow(clippy::reversed_empty_ranges, reason = "a caller may ask for one")]
    for range in [0..0, 5..3, 0..MAX_CHUNKS as u32 + 1, u32::MAX - 1..u32::MAX] {
        assert!(cache.chunks(&xorb(1), range).await.is_none());
    }
    insert(&cache, 1, MAX_CHUNKS as u32 - 1..MAX_CHUNKS as u32).await;
    assert!(has(&cache, 1, MAX_CHUNKS as u32 - 1..MAX_CHUNKS as u32).await);
}

#[tokio::test]
async fn an_insert_stores_what_is_missing_and_nothing_twice() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    insert(&cache, 1, 5..10).await;
    insert(&cache, 1, 15..20).await;
    let names = |ranges: &[Range<u32>]| -> BTreeSet<String> {
        let name = |range: &Range<u32>| {
            rig.entry(1, range.clone()).strip_prefix(rig.path()).unwrap().to_str().unwrap().to_owned()
        };
        ranges.iter().map(name).collect()
    };
    assert_eq!(rig.entries(), names(&[5..10, 15..20]));
    insert(&cache, 1, 0..30).await;
    let all = names(&[0..5, 5..10, 10..15, 15..20, 20..30]);
    assert_eq!(rig.entries(), all);
    assert!(has(&cache, 1, 0..30).await && has(&cache, 1, 3..22).await);
    let written = |path: &String| std::fs::metadata(rig.path().join(path)).unwrap().modified().unwrap();
    let before: Vec<_> = all.iter().map(written).collect();
    insert(&cache, 1, 0..30).await;
    insert(&cache, 1, 7..18).await;
    assert_eq!(rig.entries(), all);
    assert_eq!(all.iter().map(written).collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn chunks_that_come_one_by_one_become_few_files() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    // The thread is kept from its work meanwhile.
    let opened = cache.shared.store.opened();
    let folder = Folder::open(rig.path()).unwrap();
    let index = super::index::Index::open(&folder.index_path().unwrap()).unwrap();
    let cache = &cache;
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let blocked = std::thread::spawn(move || index.write(|_| held.recv().map_err(|_| rusqlite::Error::InvalidQuery)));
    while opened.owner.name().is_empty() {}
    for index in 0..50 {
        cache.insert(&xorb(1), index, &run(1, index..index + 1)).await;
    }
    hold.send(()).unwrap();
    blocked.join().unwrap().unwrap();
    cache.settle().await;
    assert!(has(cache, 1, 0..50).await);
    assert!(rig.entries().len() <= 3, "{:?}", rig.entries());
}

#[tokio::test]
async fn inserts_never_wait_and_are_dropped_when_too_much_waits() {
    let mut rig = Rig::new(1 << 30);
    rig.options.queue_bytes = 1 << 20;
    let cache = rig.open().await;
    let folder = Folder::open(rig.path()).unwrap();
    let index = super::index::Index::open(&folder.index_path().unwrap()).unwrap();
    let data = Bytes::from(vec![7; 64 << 10]);
    let chunk = (chunk_hash(&data), data);
    // Nothing can be reserved while this transaction is open.
    index
        .write(|_| {
            for number in 0..100 {
                let xorb = xorb(number);
                let insert = cache.insert(&xorb, 0, std::slice::from_ref(&chunk));
                insert.now_or_never().expect("it waits for nothing");
            }
            Ok::<_, rusqlite::Error>(())
        })
        .unwrap();
    // 16 wait at most, and as many were taken out before.
    assert!(cache.shared.store.queue.dropped() >= 100 - 2 * 16);
    cache.settle().await;
    assert!((16..=32).contains(&rig.entries().len()), "{}", rig.entries().len());
}

#[tokio::test]
async fn a_read_of_one_chunk_of_a_thousand_minds_no_other() {
    let rig = Rig::new(1 << 30);
    let cache = rig.open().await;
    insert(&cache, 1, 0..1000).await;
    let path = rig.entry(1, 0..1000);
    let offset = |index: u32| 96 + run(1, 0..index).iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let table = offset(1000);
    // Another chunk, and a row on another page of the table.
    flip(&path, offset(499));
    flip(&path, offset(501));
    flip(&path, table + 36 * 800);
    assert!(has(&cache, 1, 500..501).await && has(&cache, 1, 0..499).await && has(&cache, 1, 502..768).await);
    cache.settle().await;
    assert!(path.exists());
    // Its own page.
    flip(&path, table + 36 * 300);
    assert!(!has(&cache, 1, 500..501).await);
    cache.settle().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_damaged_entry_is_dropped_and_can_be_stored_again() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    let path = rig.entry(1, 0..5);
    insert(&cache, 1, 0..5).await;
    let len = std::fs::metadata(&path).unwrap().len();
    for at in 0..len {
        flip(&path, at);
        assert!(!has(&cache, 1, 0..5).await, "byte {at}");
        insert(&cache, 1, 0..5).await;
        assert!(has(&cache, 1, 0..5).await, "byte {at}");
    }
    for damage in [0, 1, len - 1, len + 1] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(damage).unwrap();
        assert!(!has(&cache, 1, 0..5).await, "{damage} bytes");
        insert(&cache, 1, 0..5).await;
    }
    std::fs::remove_file(&path).unwrap();
    assert!(!has(&cache, 1, 0..5).await);
    insert(&cache, 1, 0..5).await;
    assert!(has(&cache, 1, 0..5).await);
    assert_eq!((cache.shared.store.total(), rig.cost()), (SMALL, SMALL));
}

#[tokio::test]
async fn a_sound_entry_under_another_name_is_not_believed() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    for (number, range) in [(1, 0..5), (2, 0..5), (1, 10..15)] {
        insert(&cache, number, range).await;
    }
    std::fs::copy(rig.entry(2, 0..5), rig.entry(1, 0..5)).unwrap();
    assert!(!has(&cache, 1, 0..5).await);
    insert(&cache, 1, 0..5).await;
    std::fs::copy(rig.entry(1, 10..15), rig.entry(1, 0..5)).unwrap();
    assert!(!has(&cache, 1, 0..5).await && has(&cache, 1, 10..15).await && has(&cache, 2, 0..5).await);
}

#[tokio::test]
async fn least_recently_used_goes_first_also_after_reopening() {
    let rig = Rig::new(5 * SMALL);
    let cache = rig.open().await;
    for number in 1..=5 {
        insert(&cache, number, 0..1).await;
    }
    assert!(has(&cache, 1, 0..1).await && has(&cache, 3, 0..1).await);
    cache.settle().await;
    drop(cache);
    let cache = rig.open().await;
    for (new, gone) in [(6, 2), (7, 4), (8, 5), (9, 1), (10, 3), (11, 6)] {
        insert(&cache, new, 0..1).await;
        assert!(!rig.entry(gone, 0..1).exists() && rig.entry(new, 0..1).exists(), "{new}");
        assert_eq!((rig.entries().len(), cache.shared.store.total()), (5, 5 * SMALL));
    }
}

#[tokio::test]
async fn a_use_counts_before_it_is_entered_into_the_index() {
    let rig = Rig::new(2 * SMALL);
    let cache = rig.open().await;
    insert(&cache, 1, 0..1).await;
    insert(&cache, 2, 0..1).await;
    assert!(has(&cache, 1, 0..1).await);
    insert(&cache, 3, 0..1).await;
    assert!(has(&cache, 1, 0..1).await && !has(&cache, 2, 0..1).await);
}

#[tokio::test]
async fn an_entry_larger_than_the_bound_is_not_kept_and_pushes_nothing_out() {
    let rig = Rig::new(20 * SMALL);
    let cache = rig.open().await;
    insert(&cache, 1, 0..1).await;
    let data = Bytes::from(vec![7; MAX_CHUNK]);
    cache.insert(&xorb(2), 0, &[(chunk_hash(&data), data)]).await;
    cache.settle().await;
    assert!(has(&cache, 1, 0..1).await && rig.entries().len() == 1);
}

#[tokio::test]
async fn an_entry_that_is_evicted_while_it_is_read_is_read_to_its_end() {
    let rig = Rig::new(SMALL);
    let cache = rig.open().await;
    insert(&cache, 1, 0..5).await;
    let reader = Reader::open(&cache.shared.store.opened().folder, &Key::xorb(&xorb(1), 0, 5)).ok().unwrap();
    insert(&cache, 2, 0..5).await;
    assert!(!rig.entry(1, 0..5).exists() && !has(&cache, 1, 0..5).await);
    assert_eq!(reader.chunks(0..5).unwrap().len(), 5);
}

#[tokio::test]
async fn a_missing_or_damaged_index_is_made_again_from_the_files() {
    let rig = Rig::new(1 << 20);
    let index = rig.path().join("index.sqlite");
    let damages: [&dyn Fn(); 6] = [
        &|| std::fs::remove_file(&index).unwrap(),
        &|| std::fs::write(&index, b"").unwrap(),
        &|| std::fs::write(&index, vec![0; 8192]).unwrap(),
        &|| std::fs::write(&index, b"no database, but long enough to have a header of one: ".repeat(20)).unwrap(),
        &|| std::fs::File::options().write(true).open(&index).unwrap().set_len(4096).unwrap(),
        &|| {
            let other = rusqlite::Connection::open(&index).unwrap();
            other.pragma_update(None, "user_version", 77).unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let cache = rig.open().await;
        insert(&cache, number as u8, 3..9).await;
        drop(cache);
        // The thread lets go a moment later.
        while !rig.writing().is_empty() {
            tokio::task::yield_now().await;
        }
        damage();
        let cache = rig.open().await;
        for number in 0..=number {
            assert!(has(&cache, number as u8, 3..9).await, "damage {number}");
        }
        assert_eq!((cache.shared.store.total(), rig.cost()), ((number as u64 + 1) * SMALL, rig.cost()));
        let names = std::fs::read_dir(rig.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.into_iter().all(|name| !name.to_str().unwrap().contains("damaged")));
    }
}

#[tokio::test]
async fn a_folder_removed_under_an_open_cache_is_made_again() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    insert(&cache, 1, 0..5).await;
    std::fs::remove_dir_all(rig.path()).unwrap();
    assert!(!has(&cache, 1, 0..5).await);
    insert(&cache, 1, 0..5).await;
    assert!(has(&cache, 1, 0..5).await && rig.entry(1, 0..5).exists());
    let other = rig.open().await;
    assert!(has(&other, 1, 0..5).await);
}

#[tokio::test]
async fn an_index_damaged_under_an_open_cache_is_made_again() {
    let rig = Rig::new(1 << 20);
    let (cache, other) = (rig.open().await, rig.open().await);
    insert(&cache, 1, 0..5).await;
    {
        let opened = rusqlite::Connection::open(rig.path().join("index.sqlite")).unwrap();
        opened.execute_batch("DROP TABLE state").unwrap();
    }
    insert(&cache, 2, 0..5).await;
    insert(&cache, 3, 0..5).await;
    insert(&other, 4, 0..5).await;
    for cache in [&cache, &other] {
        assert!(has(cache, 1, 0..5).await && has(cache, 3, 0..5).await && has(cache, 4, 0..5).await);
    }
    assert_eq!(cache.shared.store.total(), rig.cost());
}

#[tokio::test]
async fn files_and_index_are_compared_after_a_boot() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    for number in 1..=4 {
        insert(&cache, number, 0..5).await;
    }
    drop(cache);
    // A row without a file; a file of another size; a file without a row; one that overlaps; a symlink and a stranger.
    std::fs::remove_file(rig.entry(1, 0..5)).unwrap();
    std::fs::File::options().write(true).open(rig.entry(2, 0..5)).unwrap().set_len(10_000).unwrap();
    std::fs::copy(rig.entry(3, 0..5), rig.entry(3, 7..9)).unwrap();
    std::fs::copy(rig.entry(4, 0..5), rig.entry(4, 3..9)).unwrap();
    std::os::unix::fs::symlink(rig.entry(4, 0..5), rig.entry(4, 20..21)).unwrap();
    std::fs::write(rig.path().join("chunks/04/notes"), b"").unwrap();
    let same_boot = rig.open().await;
    assert_eq!(same_boot.shared.store.total(), 4 * SMALL);
    drop(same_boot);
    let knobs = Knobs { boot: "next".to_owned(), ..rig.knobs() };
    let cache = ChunkCache::open_with(rig.options.clone(), knobs).unwrap();
    cache.settle().await;
    assert_eq!(cache.shared.store.total(), 3 * SMALL + 12_288 + 1024);
    assert!(!rig.entry(4, 3..9).exists() && rig.entry(4, 20..21).symlink_metadata().is_ok());
    assert!(rig.path().join("chunks/04/notes").exists());
    assert!(has(&cache, 4, 0..5).await && !has(&cache, 2, 0..5).await && !has(&cache, 3, 7..9).await);
    cache.settle().await;
    assert_eq!(cache.shared.store.total(), 2 * SMALL);
}

#[tokio::test]
async fn what_a_dead_writer_left_is_removed_and_its_room_is_free_again() {
    let rig = Rig::new(2 * SMALL);
    let cache = rig.open().await;
    insert(&cache, 1, 0..5).await;
    let store = Arc::clone(&cache.shared.store);
    // As after a kill: a row, a half-written file, and an entry that was renamed but not noted.
    let dead = "0123456789abcdef".repeat(2);
    let key = Key::xorb(&xorb(2), 0, 5);
    store.opened().index_for_tests().write(|changes| changes.add(&key, SMALL, 0, Some(&dead))).unwrap();
    std::fs::write(rig.path().join(format!("writing/{dead}.lock")), b"").unwrap();
    std::fs::write(rig.path().join(format!("writing/{dead}.7")), b"half").unwrap();
    std::fs::create_dir_all(rig.entry(2, 0..5).parent().unwrap()).unwrap();
    std::fs::write(rig.entry(2, 0..5), b"half").unwrap();
    assert_eq!(store.total(), 2 * SMALL);
    let second = rig.open().await;
    assert_eq!((store.total(), rig.entries().len(), rig.writing().len()), (SMALL, 1, 2));
    insert(&second, 2, 0..5).await;
    assert!(has(&second, 1, 0..5).await && has(&cache, 2, 0..5).await);
}

#[tokio::test]
async fn a_full_disk_stops_writing_for_a_while_and_reads_go_on() {
    let mut rig = Rig::new(1 << 20);
    for (errno, pause) in [(libc::ENOSPC, 3600), (libc::EIO, 3600), (libc::EDQUOT, 0), (libc::EROFS, 0)] {
        rig.pause = Duration::from_secs(pause);
        let cache = rig.open().await;
        insert(&cache, 1, 0..5).await;
        let folder = cache.shared.store.opened();
        folder.folder.fault.store(errno, Ordering::Relaxed);
        insert(&cache, 2, 0..5).await;
        assert!(has(&cache, 1, 0..5).await && !has(&cache, 2, 0..5).await);
        folder.folder.fault.store(0, Ordering::Relaxed);
        insert(&cache, 2, 0..5).await;
        assert_eq!(has(&cache, 2, 0..5).await, pause == 0);
        assert_eq!(cache.shared.store.total(), rig.cost());
        assert!(rig.writing().iter().all(|name| name.ends_with(".lock")));
        drop((cache, folder));
        std::fs::remove_dir_all(rig.path()).unwrap();
    }
}

#[tokio::test]
async fn a_nearly_full_disk_is_given_room_and_none_is_taken() {
    let mut rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    for number in 1..=5 {
        insert(&cache, number, 0..5).await;
    }
    drop(cache);
    rig.options.min_free = Some(u64::MAX);
    let cache = rig.open().await;
    assert!(has(&cache, 1, 0..5).await);
    insert(&cache, 6, 0..5).await;
    assert_eq!((cache.shared.store.total(), rig.entries().len()), (0, 0));
}

#[tokio::test]
async fn a_lower_bound_holds_from_the_opening_on() {
    let mut rig = Rig::new(10 * SMALL);
    let cache = rig.open().await;
    for number in 1..=10 {
        insert(&cache, number, 0..5).await;
    }
    drop(cache);
    rig.options.max_bytes = 3 * SMALL;
    let cache = rig.open().await;
    assert_eq!((cache.shared.store.total(), rig.entries().len()), (3 * SMALL, 3));
    assert!(has(&cache, 10, 0..5).await && has(&cache, 8, 0..5).await);
}

#[tokio::test]
async fn what_a_writer_left_that_died_meanwhile_is_removed_when_it_shows() {
    let rig = Rig::new(2 * SMALL);
    let cache = rig.open().await;
    let store = Arc::clone(&cache.shared.store);
    let dead = "0123456789abcdef".repeat(2);
    let key = Key::xorb(&xorb(2), 0, 5);
    store.opened().index_for_tests().write(|changes| changes.add(&key, SMALL, 0, Some(&dead))).unwrap();
    std::fs::write(rig.path().join(format!("writing/{dead}.7")), b"half").unwrap();
    assert!(!has(&cache, 2, 2..3).await);
    insert(&cache, 2, 0..5).await;
    assert!(has(&cache, 2, 2..3).await);
    assert_eq!((store.total(), rig.writing().len()), (SMALL, 1));
}

#[tokio::test]
async fn bytes_out_of_the_cache_are_nobody_elses() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    insert(&cache, 1, 0..5).await;
    for chunk in cache.chunks(&xorb(1), 0..5).await.unwrap() {
        assert!(chunk.bytes.try_into_mut().is_ok());
    }
}

#[tokio::test]
async fn two_caches_on_one_folder_share_entries_and_the_bound() {
    let rig = Rig::new(4 * SMALL);
    let (a, b) = (rig.open().await, rig.open().await);
    for number in 1..=8 {
        insert(if number % 2 == 0 { &a } else { &b }, number, 0..5).await;
        assert!(has(&a, number, 0..5).await && has(&b, number, 0..5).await);
        assert!(rig.cost() <= 4 * SMALL);
    }
    assert_eq!(rig.entries().len(), 4);
}

#[tokio::test]
async fn a_cache_that_is_let_go_leaves_no_lock_and_no_thread() {
    let rig = Rig::new(1 << 20);
    let cache = rig.open().await;
    let clone = cache.clone();
    drop(cache);
    insert(&clone, 1, 0..5).await;
    assert_eq!(rig.writing().len(), 1);
    drop(clone);
    while !rig.writing().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_folder_that_can_not_be_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(ChunkCache::open(Options::new(file.join("cache"))), Err(Error::Io(_))));
    assert!(matches!(ChunkCache::open(Options::new(&file)), Err(Error::Io(_))));
}
