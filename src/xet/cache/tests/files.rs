//! Whole files: fills, who waits for them and who reads around them.

use super::*;
use crate::merkle::file_hash;
use futures::stream::{self, StreamExt};
use std::sync::atomic::AtomicUsize;
use tokio::sync::mpsc;

/// Chunks of a test file, and its bytes.
struct Sample {
    hash: Hash,
    chunks: Vec<Cached>,
    bytes: Vec<u8>,
}

impl Sample {
    /// `count` chunks of `len` bytes, but for the last one, which is shorter.
    fn new(number: u8, count: usize, len: usize) -> Self {
        let chunk = |index: usize| {
            let mut bytes = vec![0; if index + 1 == count { len / 2 + 1 } else { len }];
            blake3::Hasher::new().update(&[number, 1]).update(&index.to_le_bytes()).finalize_xof().fill(&mut bytes);
            Cached { hash: chunk_hash(&bytes), bytes: bytes.into() }
        };
        let chunks: Vec<Cached> = (0..count).map(chunk).collect();
        let list: Vec<(Hash, u64)> = chunks.iter().map(|chunk| (chunk.hash, chunk.bytes.len() as u64)).collect();
        let bytes = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
        Self { hash: file_hash(&list), chunks, bytes }
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn stream(&self) -> Chunks {
        stream::iter(self.chunks.clone()).map(Ok).boxed()
    }

    /// Reads; what comes is right. Whether anything came.
    async fn read(&self, cache: &FileCache, range: Range<u64>) -> bool {
        let Some(bytes) = cache.read(&self.hash, self.len(), range.clone(), || self.stream()).await else {
            return false;
        };
        assert_eq!(bytes, self.bytes[range.start as usize..range.end as usize]);
        assert!(bytes.try_into_mut().is_ok());
        true
    }
}

fn small(number: u32) -> Sample {
    Sample::new(number as u8, 1 + number as usize * 3, 50)
}

/// For several processes: reads a part of one of some small files.
pub(super) async fn read_some(cache: &FileCache, number: u32, first: u32, count: u32) -> bool {
    let sample = small(number);
    let start = u64::from(first).min(sample.len() - 1);
    sample.read(cache, start..(start + 20 * u64::from(count)).min(sample.len())).await
}

/// For several processes: the file is whole or not there.
pub(super) async fn check(cache: &FileCache, number: u32) {
    let sample = small(number);
    let found = cache.read(&sample.hash, sample.len(), 0..sample.len(), || stream::empty().boxed()).await;
    assert!(found.is_none_or(|bytes| bytes == sample.bytes));
    cache.settle().await;
}

fn open(rig: &Rig) -> FileCache {
    let cache = FileCache::open_with(rig.options.clone(), rig.knobs()).unwrap();
    cache.inner_for_tests().queue.settle();
    cache
}

#[tokio::test]
async fn a_file_is_filled_once_and_read_by_any_range_also_after_reopening() {
    let rig = Rig::new(1 << 24);
    for (number, count, len) in [(1, 1, 1), (2, 1, 100), (3, 2, 64), (4, 700, 90), (5, 30, 100_000)] {
        let sample = Sample::new(number, count, len);
        let cache = open(&rig);
        assert!(sample.read(&cache, 0..1).await);
        cache.settle().await;
        for cache in [cache, open(&rig)] {
            let len = sample.len();
            for range in [0..len, 0..1, len - 1..len, len / 3..len / 3 + 1, len / 4..len - len / 4] {
                let found = cache.read(&sample.hash, len, range.clone(), || panic!("it is there")).await.unwrap();
                assert_eq!(found, sample.bytes[range.start as usize..range.end as usize]);
            }
        }
    }
    assert_eq!(rig.entries().len(), 5);
}

/// A stream that gives what is sent, and how often one was asked for.
struct Gate {
    send: mpsc::UnboundedSender<Result<Cached, Error>>,
    receive: std::sync::Mutex<Option<mpsc::UnboundedReceiver<Result<Cached, Error>>>>,
    asked: AtomicUsize,
}

impl Gate {
    fn new() -> Self {
        let (send, receive) = mpsc::unbounded_channel();
        Self { send, receive: std::sync::Mutex::new(Some(receive)), asked: AtomicUsize::new(0) }
    }

    fn stream(&self) -> Chunks {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let receive = self.receive.lock().unwrap().take().expect("asked for once");
        stream::unfold(receive, async |mut receive| receive.recv().await.map(|item| (item, receive))).boxed()
    }

    fn give(&self, chunks: &[Cached]) {
        chunks.iter().for_each(|chunk| self.send.send(Ok(chunk.clone())).unwrap());
    }
}

/// Reads with the gate as the source, in a task of its own.
fn reader(
    cache: &FileCache,
    sample: &Arc<Sample>,
    gate: &Arc<Gate>,
    range: Range<u64>,
) -> tokio::task::JoinHandle<Option<Bytes>> {
    let (cache, sample, gate) = (cache.clone(), Arc::clone(sample), Arc::clone(gate));
    tokio::spawn(async move {
        let found = cache.read(&sample.hash, sample.len(), range.clone(), || gate.stream()).await;
        if let Some(bytes) = &found {
            assert_eq!(*bytes, sample.bytes[range.start as usize..range.end as usize]);
        }
        found
    })
}

/// Lets the tasks and the blocking threads come to rest.
async fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        tokio::task::yield_now().await;
    }
}

fn at(cache: &FileCache, sample: &Sample) -> Option<u64> {
    cache.filled_for_tests(&sample.hash)
}

#[tokio::test]
async fn many_readers_start_one_fill() {
    let rig = Rig::new(1 << 24);
    let (cache, gate) = (open(&rig), Arc::new(Gate::new()));
    let sample = Arc::new(Sample::new(1, 100, 1000));
    let readers: Vec<_> = (0..20).map(|i| reader(&cache, &sample, &gate, i * 100..(i + 1) * 4000)).collect();
    until(|| gate.asked.load(Ordering::Relaxed) == 1).await;
    sample.chunks.chunks(7).for_each(|chunks| gate.give(chunks));
    for reader in readers {
        assert!(reader.await.unwrap().is_some());
    }
    assert_eq!(gate.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_there_is_read_at_once_what_is_near_is_waited_for_and_the_rest_is_read_around() {
    let rig = Rig::new(1 << 30);
    let (cache, gate) = (open(&rig), Arc::new(Gate::new()));
    // The last chunk begins 16 MiB and a byte behind the first one's end.
    let sample = Arc::new(Sample::new(1, 170, 100_000));
    let first = reader(&cache, &sample, &gate, 0..100_000);
    gate.give(&sample.chunks[..1]);
    assert!(first.await.unwrap().is_some());
    // The fill does not move.
    assert!(reader(&cache, &sample, &gate, 500..99_000).await.unwrap().is_some());
    let far = 100_000 + (16 << 20);
    assert!(reader(&cache, &sample, &gate, far + 1..far + 2).await.unwrap().is_none());
    let near = reader(&cache, &sample, &gate, 250_000..350_000);
    gate.give(&sample.chunks[1..3]);
    until(|| at(&cache, &sample) == Some(300_000)).await;
    assert!(!near.is_finished());
    gate.give(&sample.chunks[3..4]);
    assert!(near.await.unwrap().is_some());
    assert_eq!(gate.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_file_of_other_chunks_is_not_kept_and_not_tried_again() {
    let rig = Rig::new(1 << 24);
    let sample = Sample::new(1, 50, 1000);
    type Spoil = fn(&mut Vec<Cached>);
    let spoils: [Spoil; 6] = [
        |chunks| chunks.swap(3, 4),
        |chunks| drop(chunks.pop()),
        |chunks| chunks.push(chunks[0].clone()),
        |chunks| chunks[7] = Cached { hash: chunk_hash(b"x"), ..chunks[7].clone() },
        |chunks| chunks[7].bytes = Bytes::new(),
        |chunks| chunks[7].bytes = Bytes::from(vec![0; MAX_CHUNK + 1]),
    ];
    for spoil in spoils {
        let cache = open(&rig);
        let mut chunks = sample.chunks.clone();
        spoil(&mut chunks);
        let spoilt = || stream::iter(chunks.clone()).map(Ok).boxed();
        let len = sample.len();
        // While it is being filled it may be read: its last byte is as it should be.
        let last = cache.read(&sample.hash, len, len - 1..len, spoilt).await;
        assert!(last.is_none_or(|bytes| bytes == sample.bytes[sample.bytes.len() - 1..]));
        cache.settle().await;
        assert!(cache.read(&sample.hash, len, 0..1, || panic!("not again")).await.is_none());
        assert_eq!((rig.entries().len(), cache.inner_for_tests().total()), (0, 0));
        assert!(rig.writing().iter().all(|name| name.ends_with(".lock")));
    }
}

#[tokio::test]
async fn a_wrong_hash_of_a_chunk_shows_while_the_file_is_filled() {
    let rig = Rig::new(1 << 24);
    let (cache, gate) = (open(&rig), Arc::new(Gate::new()));
    let sample = Arc::new(Sample::new(1, 50, 1000));
    let waiting = reader(&cache, &sample, &gate, 0..1);
    gate.give(&[Cached { bytes: Bytes::from(vec![0; 1000]), ..sample.chunks[0].clone() }]);
    assert!(waiting.await.unwrap().is_none());
}

#[tokio::test]
async fn a_fill_that_fails_lets_its_readers_go_and_leaves_nothing() {
    let rig = Rig::new(1 << 24);
    let (cache, gate) = (open(&rig), Arc::new(Gate::new()));
    let sample = Arc::new(Sample::new(1, 50, 1000));
    let waiting = reader(&cache, &sample, &gate, 10_000..20_000);
    gate.give(&sample.chunks[..5]);
    until(|| at(&cache, &sample) == Some(5000)).await;
    gate.send.send(Err(Error::Network("cut".to_owned()))).unwrap();
    assert!(waiting.await.unwrap().is_none());
    cache.settle().await;
    assert_eq!((rig.entries().len(), cache.inner_for_tests().total()), (0, 0));
    assert!(rig.writing().iter().all(|name| name.ends_with(".lock")));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_a_fill_that_does_not_move() {
    let rig = Rig::new(1 << 24);
    let (cache, gate) = (open(&rig), Arc::new(Gate::new()));
    let sample = Arc::new(Sample::new(1, 50, 1000));
    let begun = tokio::time::Instant::now();
    assert!(reader(&cache, &sample, &gate, 10_000..20_000).await.unwrap().is_none());
    assert!(begun.elapsed() < Duration::from_secs(60));
    // In the end the fill itself is given up.
    cache.settle().await;
    assert_eq!(at(&cache, &sample), None);
}

#[tokio::test]
async fn at_most_eight_files_fill_at_a_time() {
    let rig = Rig::new(1 << 24);
    let cache = open(&rig);
    let samples: Vec<_> =
        (0..9).map(|number| (Arc::new(Sample::new(number, 10, 1000)), Arc::new(Gate::new()))).collect();
    let readers: Vec<_> = samples.iter().map(|(sample, gate)| reader(&cache, sample, gate, 0..1)).collect();
    let asked = || samples.iter().filter(|(_, gate)| gate.asked.load(Ordering::Relaxed) == 1).count();
    until(|| asked() == 8 && readers.iter().filter(|reader| reader.is_finished()).count() == 1).await;
    for (sample, gate) in samples {
        gate.give(&sample.chunks);
    }
    let mut served = 0;
    for reader in readers {
        served += usize::from(reader.await.unwrap().is_some());
    }
    assert_eq!(served, 8);
}

#[tokio::test]
async fn another_process_reads_around_a_fill_and_takes_over_when_it_dies() {
    let rig = Rig::new(1 << 24);
    let (first, second) = (open(&rig), open(&rig));
    let (sample, gate) = (Arc::new(Sample::new(1, 50, 1000)), Arc::new(Gate::new()));
    let waiting = reader(&first, &sample, &gate, 0..1000);
    gate.give(&sample.chunks[..1]);
    assert!(waiting.await.unwrap().is_some());
    let len = sample.len();
    assert!(second.read(&sample.hash, len, 0..1, || panic!("somebody is at it")).await.is_none());
    drop(first);
    until(|| rig.writing().len() == 1).await;
    // The one that finds it dead cleans up; the next one fills it.
    second.read(&sample.hash, len, 0..1, || sample.stream()).await;
    second.settle().await;
    assert!(sample.read(&second, 0..len).await);
    second.settle().await;
    assert_eq!((rig.entries().len(), rig.writing().len()), (1, 1));
}

#[tokio::test]
async fn a_damaged_file_is_dropped_and_filled_again() {
    let rig = Rig::new(1 << 24);
    let cache = open(&rig);
    let sample = Sample::new(1, 600, 100);
    assert!(sample.read(&cache, 0..1).await);
    cache.settle().await;
    let path = rig.path().join(rig.entries().pop_first().unwrap());
    flip(&path, 96 + 100 * 300);
    assert!(sample.read(&cache, 0..30_000).await && sample.read(&cache, 30_100..sample.len()).await);
    assert!(!sample.read(&cache, 30_099..30_100).await);
    cache.settle().await;
    assert!(!path.exists());
    assert!(sample.read(&cache, 0..sample.len()).await);
}

#[tokio::test]
async fn ranges_that_are_none_and_wrong_lengths_give_nothing() {
    let rig = Rig::new(1 << 24);
    let cache = open(&rig);
    let sample = Sample::new(1, 60, 100);
    let len = sample.len();
    for range in [0..0, len..len + 1, 0..len + 1] {
        assert!(cache.read(&sample.hash, len, range, || panic!("nothing to fill")).await.is_none());
    }
    assert!(sample.read(&cache, 0..len).await);
    cache.settle().await;
    assert!(cache.read(&sample.hash, len + 1, 0..1, || panic!("it is there")).await.is_none());
    assert!(cache.read(&sample.hash, len - 1, 0..1, || panic!("it is there")).await.is_none());
}

#[tokio::test]
async fn files_and_chunks_share_the_bound_and_its_order() {
    let rig = Rig::new(4 * SMALL);
    let (chunks, files) = (rig.open().await, open(&rig));
    // What a fill reserves is a little more than it takes in the end.
    for number in 1..=3 {
        let sample = Sample::new(number, 1, 50);
        assert!(sample.read(&files, 0..1).await);
        files.settle().await;
        insert(&chunks, number, 0..1).await;
    }
    assert!(rig.cost() <= 4 * SMALL && !rig.entries().is_empty());
    assert_eq!(chunks.shared.store.total(), rig.cost());
    assert!(has(&chunks, 3, 0..1).await && !has(&chunks, 1, 0..1).await);
}

#[tokio::test]
async fn a_file_larger_than_the_bound_or_of_too_many_chunks_is_not_filled() {
    let rig = Rig::new(1 << 20);
    let cache = open(&rig);
    let large = Sample::new(1, 11, 100_000);
    assert!(!large.read(&cache, 0..1).await);
    cache.settle().await;
    let many = Sample::new(2, 2000, 2);
    assert!(!many.read(&cache, 3990..3991).await);
    cache.settle().await;
    assert!(rig.entries().is_empty());
}

#[tokio::test]
async fn a_full_disk_ends_a_fill_and_nothing_else() {
    let rig = Rig::new(1 << 24);
    let cache = open(&rig);
    let (kept, lost) = (Sample::new(1, 10, 100), Sample::new(2, 10, 100));
    assert!(kept.read(&cache, 0..1).await);
    cache.settle().await;
    cache.inner_for_tests().opened().folder.fault.store(libc::ENOSPC, Ordering::Relaxed);
    assert!(!lost.read(&cache, 0..1).await);
    cache.settle().await;
    assert!(kept.read(&cache, 0..kept.len()).await);
    assert_eq!((rig.entries().len(), cache.inner_for_tests().total()), (1, rig.cost()));
}
