use super::*;
use crate::hash::{chunk_hash, keyed_chunk_hash};
use crate::shard::{FileInfo, Segment, ShardChunk, XorbInfo};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

fn chunk(n: u32) -> Hash {
    let mut hash = chunk_hash(&n.to_le_bytes());
    // Never eligible by itself.
    hash.0[24] |= 1;
    hash
}

fn xorb(chunks: impl Iterator<Item = Hash>) -> XorbInfo {
    let chunks = chunks.map(|hash| ShardChunk { hash, raw_start: 0, raw_len: 9000, flags: 0 });
    let chunks: Vec<_> = chunks.collect();
    XorbInfo { hash: chunk_hash(&chunks[0].hash.0), raw_len: 0, stored_len: 0, chunks }
}

/// Two xorbs; a file starts at the third chunk of the first.
fn own(n: u32) -> Shard {
    let xorbs = vec![xorb((n..n + 10).map(chunk)), xorb((n + 10..n + 20).map(chunk))];
    let segments = vec![Segment { xorb: xorbs[0].hash, raw_len: 9000, start: 2, end: 3 }];
    let files = vec![FileInfo { hash: chunk(n + 999), segments, verification: vec![chunk(n + 998)], sha256: None }];
    Shard { files, xorbs, footer: None }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn open(dir: &Path) -> LocalShards {
    LocalShards::open(dir.to_owned(), LocalLimits::default()).unwrap()
}

#[test]
fn own_shards_are_found_again_with_their_terms_by_every_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    first.keep_own(&own(0));
    for shards in [first, open(dir.path())] {
        assert_eq!(shards.hint(&chunk(5)), Some(chunk(2)));
        assert_eq!(shards.hint(&chunk(15)), Some(chunk(2)));
        assert_eq!(shards.hint(&chunk(25)), None);
    }
    let kept = Shard::parse(&fs::read(&files(dir.path())[0]).unwrap()).unwrap();
    assert_eq!(kept.files, own(0).files);
    let footer = kept.footer.unwrap();
    assert_eq!(footer.expires - footer.created, 21 * 86_400);
}

#[test]
fn answers_are_hints_to_their_question_also_under_a_key_until_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let shards = open(dir.path());
    let now = seconds(SystemTime::now());
    let answer = |key: [u8; 32], n: u32, expires| {
        let keyed = (n..n + 10).map(|n| if key == [0; 32] { chunk(n) } else { keyed_chunk_hash(&key, &chunk(n)) });
        let shard = Shard { xorbs: vec![xorb(keyed)], ..Shard::default() };
        shard.to_stored(&Footer { hmac_key: key, created: 0, expires }, true)
    };
    for (key, n, expires) in
        [([0; 32], 0, now + 1000), ([7; 32], 100, now + 1000), ([0; 32], 200, now), ([0; 32], 300, 0)]
    {
        shards.keep_answer(&chunk(n), &answer(key, n, expires), expires);
    }
    let again = open(dir.path());
    assert_eq!((again.hint(&chunk(3)), again.hint(&chunk(103))), (Some(chunk(0)), Some(chunk(100))));
    assert_eq!((again.hint(&chunk(203)), again.hint(&chunk(303))), (None, None));
    // One that expires while it lies there.
    let hints = again.0.files().read(SystemTime::now() + Duration::from_secs(2000));
    assert_eq!(hints.find(&chunk(3)), None);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn damaged_files_are_deleted_and_foreign_ones_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).keep_own(&own(0));
    let shard = files(dir.path()).remove(0);
    let bytes = fs::read(&shard).unwrap();
    fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
    fs::write(dir.path().join(format!("{}.shard", chunk_hash(b"no shard"))), b"no shard").unwrap();
    for damaged in
        [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &[&bytes[..99], &[1], &bytes[100..]].concat(), b""]
    {
        fs::write(&shard, damaged).unwrap();
        assert_eq!(open(dir.path()).hint(&chunk(5)), None);
        assert_eq!(files(dir.path()), [dir.path().join("notes.txt")]);
    }
    fs::write(&shard, &bytes).unwrap();
    assert!(open(dir.path()).hint(&chunk(5)).is_some());
}

#[test]
fn folder_keeps_its_bounds_and_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let one = own(0).to_stored(&own_footer(0), false).len() as u64;
    for limits in
        [LocalLimits { max_bytes: 3 * one, max_files: 99 }, LocalLimits { max_bytes: u64::MAX / 2, max_files: 3 }]
    {
        let shards = LocalShards::open(dir.path().to_owned(), limits).unwrap();
        for n in 0..6u64 {
            let written = SystemTime::now() - Duration::from_secs(60 * (100 - n));
            shards.keep_own_at(&own(100 * n as u32), written);
            assert!(files(dir.path()).len() <= 3);
        }
        let again = LocalShards::open(dir.path().to_owned(), limits).unwrap();
        assert!(again.hint(&chunk(205)).is_none() && again.hint(&chunk(505)).is_some());
    }
}

#[test]
fn only_abandoned_unfinished_files_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let shards = open(dir.path());
    fs::write(dir.path().join("x.tmp"), b"half").unwrap();
    shards.0.files().folder.list(SystemTime::now()).unwrap();
    assert_eq!(files(dir.path()).len(), 1);
    shards.0.files().folder.list(SystemTime::now() + Duration::from_secs(4000)).unwrap();
    assert!(files(dir.path()).is_empty());
}

/// A response of the CAS that holds one xorb.
fn answer(n: u32, expires: u64) -> Vec<u8> {
    let shard = Shard { xorbs: vec![xorb((n..n + 10).map(chunk))], ..Shard::default() };
    shard.to_stored(&Footer { hmac_key: [0; 32], created: 0, expires }, true)
}

#[test]
fn session_cost_does_not_depend_on_number_of_kept_shards() {
    let looked = |kept: u32| {
        let dir = tempfile::tempdir().unwrap();
        let shards = open(dir.path());
        for n in 0..kept {
            shards.keep_answer(&chunk(n), &answer(10 * n, u64::MAX), u64::MAX);
        }
        let shards = open(dir.path());
        let before = shards.0.files().folder.looked;
        assert!(before >= u64::from(kept), "the folder is listed when it is opened");
        (0..100).for_each(|n| shards.keep_own(&own(1_000_000 + 100 * n)));
        shards.0.files().folder.looked - before
    };
    assert_eq!((looked(20), looked(200), looked(2000)), (0, 0, 0));
}

#[test]
fn many_sessions_list_the_folder_rarely_and_leave_few_files() {
    let dir = tempfile::tempdir().unwrap();
    let shards = open(dir.path());
    let before = shards.0.files().folder.looked;
    let sessions = 3000;
    (0..sessions).for_each(|n| shards.keep_own(&own(100 * n)));
    let left = files(dir.path()).len();
    assert!(left <= 40, "{left} files");
    // A listing after each quarter of the bounds.
    let looked = shards.0.files().folder.looked - before;
    assert!(looked <= u64::from(sessions) / 10, "{looked} listings and status calls");
    let again = open(dir.path());
    for n in [0, 1, sessions / 2, sessions - 1] {
        for shards in [&shards, &again] {
            assert_eq!(shards.hint(&chunk(100 * n + 5)), Some(chunk(100 * n + 2)), "session {n}");
        }
    }
}

#[test]
fn shards_of_many_processes_are_merged_at_open() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..200 {
        open(dir.path()).keep_own(&own(100 * n));
    }
    let left = files(dir.path()).len();
    assert!(left <= 2 * MERGE, "{left} files");
    let again = open(dir.path());
    assert!((0..200).all(|n| again.hint(&chunk(100 * n + 5)) == Some(chunk(100 * n + 2))));
    for path in files(dir.path()) {
        let shard = Shard::parse(&fs::read(path).unwrap()).unwrap();
        let hashes: HashSet<_> = shard.files.iter().map(|file| file.hash).collect();
        assert_eq!(hashes.len(), shard.files.len(), "a merged shard lists each file once");
    }
}

#[test]
fn merged_shard_expires_with_its_oldest_part() {
    let dir = tempfile::tempdir().unwrap();
    let shards = open(dir.path());
    let start = SystemTime::now();
    for n in 0..MERGE as u32 {
        shards.keep_own_at(&own(100 * n), start + Duration::from_secs(u64::from(n) * 60));
    }
    let left = files(dir.path());
    assert_eq!(left.len(), 1);
    let footer = Shard::parse(&fs::read(&left[0]).unwrap()).unwrap().footer.unwrap();
    assert_eq!((footer.created, footer.expires), (seconds(start), seconds(start) + OWN_LIFE));
    // A day later another file is begun, so that a slow writer does not lose its newest shards.
    let later = start + Duration::from_secs(MERGED_SPAN + 1);
    (0..MERGE as u32).for_each(|n| shards.keep_own_at(&own(10_000 + 100 * n), later));
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn processes_that_share_a_folder_keep_each_others_shards() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    for n in 0..50 {
        one.keep_own(&own(100 * n));
        two.keep_own(&own(100_000 + 100 * n));
        // A third process merges the small files of both under them.
        drop(open(dir.path()));
    }
    let again = open(dir.path());
    for n in 0..50 {
        assert!(again.hint(&chunk(100 * n + 5)).is_some() && again.hint(&chunk(100_000 + 100 * n + 5)).is_some());
    }
}

#[test]
fn processes_that_share_a_folder_exceed_its_bounds_by_a_part_only() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LocalLimits { max_files: 40, ..LocalLimits::default() };
    let processes: Vec<_> = (0..4).map(|_| LocalShards::open(dir.path().to_owned(), limits).unwrap()).collect();
    for n in 0..200 {
        for (process, nth) in processes.iter().zip(0..) {
            let question = nth * 1000 + n;
            process.keep_answer(&chunk(question), &answer(10 * question, u64::MAX), u64::MAX);
        }
        let count = files(dir.path()).len();
        assert!(count <= 2 * limits.max_files, "{count} files");
    }
}

#[test]
fn file_that_another_process_deleted_does_not_stop_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let shards = open(dir.path());
    for n in 0..40 {
        shards.keep_own(&own(100 * n));
        files(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    assert_eq!(shards.hint(&chunk(5)), Some(chunk(2)));
    shards.keep_own(&own(9_000));
    assert!(!files(dir.path()).is_empty());
}
