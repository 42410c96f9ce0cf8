//! Several processes on one folder, and processes that are killed in the middle of it.

use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Names the folder that a child process is to work on.
const CHILD_DIR: &str = "HFCRYPT_TEST_CACHE_DIR";
/// Numbers the child.
const CHILD_SEED: &str = "HFCRYPT_TEST_CACHE_SEED";
/// Rounds of a child that is not killed.
const ROUNDS: u64 = 150;
/// Bound of the shared folder: less than what is inserted.
const BOUND: u64 = 40 * SMALL;

fn options(dir: &Path) -> Options {
    Options { max_bytes: BOUND, min_free: Some(0), ..Options::new(dir) }
}

/// Inserts, reads and fills what a seed says; all that it reads is right.
async fn work(dir: &Path, seed: u64, rounds: u64) {
    let cache = ChunkCache::open(options(dir)).unwrap();
    let files = FileCache::open(options(dir)).unwrap();
    for round in 0..rounds {
        let random = blake3::hash(&[seed.to_le_bytes(), round.to_le_bytes()].concat());
        let &[a, b, c, d, ..] = random.as_bytes();
        let (number, first, count) = (a % 6, u32::from(b % 20), 1 + u32::from(c % 8));
        match d % 4 {
            0 => drop(has(&cache, number, first..first + count).await),
            1 => drop(super::files::read_some(&files, 1 + u32::from(a % 8), first, count).await),
            _ => cache.insert(&xorb(number), first, &run(number, first..first + count)).await,
        }
        if round % 16 == 15 {
            cache.settle().await;
            println!("round {round}.");
        }
    }
    cache.settle().await;
    files.settle().await;
    println!("done.");
}

#[tokio::test]
#[ignore = "runs as a child process"]
async fn child_that_works_on_a_cache() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let seed = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let rounds = if std::env::var_os("HFCRYPT_TEST_CACHE_FOREVER").is_some() { u64::MAX } else { ROUNDS };
    work(Path::new(&dir), seed, rounds).await;
}

fn start(dir: &Path, seed: u64, forever: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "cache::tests::processes::child_that_works_on_a_cache", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir)
        .env(CHILD_SEED, seed.to_string())
        .stdout(Stdio::piped());
    if forever {
        command.env("HFCRYPT_TEST_CACHE_FOREVER", "1");
    }
    command.spawn().unwrap()
}

#[tokio::test]
async fn several_processes_share_a_folder_its_bound_and_nothing_wrong() {
    let rig = Rig::new(BOUND);
    let cache = ChunkCache::open(options(rig.path())).unwrap();
    let mut children: Vec<Child> = (0..3).map(|seed| start(rig.path(), seed, false)).collect();
    let mut running = children.len();
    while running > 0 {
        // Files that are being removed while they are counted are not there any more.
        assert!(cache.shared.store.total() <= BOUND);
        for number in 0..6 {
            has(&cache, number, 0..20).await;
        }
        running = children.iter_mut().filter_map(|child| child.try_wait().unwrap().is_none().then_some(())).count();
    }
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    cache.settle().await;
    assert_eq!(cache.shared.store.total(), rig.cost());
    // A process that ends doesn't wait for its cache: what it leaves is removed by who opens next.
    let _next = ChunkCache::open(options(rig.path())).unwrap();
    assert_eq!(rig.writing().len(), 2);
}

#[tokio::test]
async fn killed_processes_leave_nothing_but_sound_entries() {
    let rig = Rig::new(BOUND);
    let mut found = 0;
    for seed in 0..12 {
        let mut child = start(rig.path(), seed, true);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // At another moment each time.
        let rounds = lines.map(Result::unwrap).filter(|line| line.starts_with("round ")).take(1 + seed as usize % 4);
        assert_eq!(rounds.count(), 1 + seed as usize % 4);
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = ChunkCache::open(options(rig.path())).unwrap();
        cache.settle().await;
        assert_eq!(rig.writing().len(), 1, "after kill {seed}");
        // A kill between an eviction and its commit leaves a row without a file: counted, until it is looked up.
        assert!(rig.cost() <= cache.shared.store.total() && cache.shared.store.total() <= BOUND, "after kill {seed}");
        for number in 0..6 {
            for index in 0..28 {
                has(&cache, number, index..index + 1).await;
            }
        }
        for number in 1..=8 {
            super::files::check(&FileCache::open(options(rig.path())).unwrap(), number).await;
        }
        cache.settle().await;
        found += rig.entries().len();
        assert_eq!(rig.cost(), cache.shared.store.total(), "after kill {seed}");
    }
    assert!(found > 0);
}

/// No file of this process may become larger, bytes: a disk that is full in the middle of a write.
const FILE_LIMIT: u64 = 512 << 10;

#[tokio::test]
#[ignore = "runs as a child process"]
async fn child_that_may_not_write_large_files() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let options = Options { max_bytes: 1 << 30, min_free: Some(0), ..Options::new(&dir) };
    let cache = ChunkCache::open(options.clone()).unwrap();
    insert(&cache, 1, 0..5).await;
    assert!(has(&cache, 1, 0..5).await);
    let data = Bytes::from(vec![7; MAX_CHUNK]);
    let chunk = (chunk_hash(&data), data);
    let large = vec![chunk; 2 * (FILE_LIMIT as usize / MAX_CHUNK) + 2];
    cache.insert(&xorb(2), 0, &large).await;
    cache.settle().await;
    assert!(cache.shared.store.is_paused());
    assert!(has(&cache, 1, 0..5).await && cache.chunks(&xorb(2), 0..1).await.is_none());
    assert_eq!(cache.shared.store.total(), SMALL);
    println!("done.");
}

#[test]
fn a_write_that_stops_half_way_leaves_nothing() {
    let rig = Rig::new(1 << 30);
    // A signal that is ignored stays ignored: the write gives an error instead.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", FILE_LIMIT / 512);
    let name = "cache::tests::processes::child_that_may_not_write_large_files";
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(CHILD_DIR, rig.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("done."), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(rig.entries().len(), 1);
    assert!(rig.writing().iter().all(|name| name.ends_with(".lock")));
}
