//! Read-ahead over objects that count what is fetched from them, and that hang or fail.

use super::*;
use crate::store::{ContentId, Hash, Side};
use async_trait::async_trait;
use futures::FutureExt;
use proptest::prelude::*;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Counts of the fetches from objects.
#[derive(Default)]
struct Fetches {
    /// Bytes of reads that have not returned and were not dropped.
    in_progress: AtomicU64,
    count: AtomicU64,
    bytes: AtomicU64,
    /// Every read hangs.
    hang: AtomicBool,
    /// Every read of this number fails; 0: none.
    fail_each: AtomicU64,
}

impl Fetches {
    fn in_progress(&self) -> u64 {
        self.in_progress.load(Ordering::SeqCst)
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }
}

/// A read in progress.
struct Running<'a>(&'a Fetches, u64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.in_progress.fetch_sub(self.1, Ordering::SeqCst);
    }
}

/// An object whose bytes follow from their offset and a seed.
struct Pattern {
    len: u64,
    seed: u8,
    fetches: Arc<Fetches>,
}

/// Length after which the bytes of an object repeat. It is a prime, so that no window looks like another.
const PERIOD: u64 = 8191;

/// Returns the bytes of the object with a seed. They are copied from a table: computing each would take seconds.
fn bytes(seed: u8, range: Range<u64>) -> Vec<u8> {
    static TABLE: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..3 * PERIOD as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
    let table = &TABLE[usize::from(seed) * PERIOD as usize..][..PERIOD as usize];
    let (mut out, mut at) = (Vec::with_capacity((range.end - range.start) as usize), range.start);
    while at < range.end {
        let part = &table[(at % PERIOD) as usize..];
        let part = &part[..part.len().min((range.end - at) as usize)];
        out.extend_from_slice(part);
        at += part.len() as u64;
    }
    out
}

#[async_trait]
impl Object for Pattern {
    fn len(&self) -> u64 {
        self.len
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let len = (self.len - offset).min(len as u64);
        let number = self.fetches.count.fetch_add(1, Ordering::SeqCst) + 1;
        self.fetches.bytes.fetch_add(len, Ordering::SeqCst);
        self.fetches.in_progress.fetch_add(len, Ordering::SeqCst);
        let _running = Running(&self.fetches, len);
        if self.fetches.hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        match self.fetches.fail_each.load(Ordering::SeqCst) {
            each if each > 0 && number.is_multiple_of(each) => Err(Error::NotFound),
            _ => Ok(bytes(self.seed, offset..offset + len).into()),
        }
    }
}

/// Handles of one mount, and the object that they read.
struct Reader {
    budget: Budget,
    fetches: Arc<Fetches>,
    object: Arc<dyn Object>,
    version: Version,
    ahead: Readahead,
}

fn version(seed: u8, len: u64) -> Version {
    Version { id: ContentId::Xet(Hash([seed; 32])), stored_len: len, side: Side::Plain }
}

impl Reader {
    fn new(len: u64) -> Self {
        let fetches = Arc::<Fetches>::default();
        let object = Arc::new(Pattern { len, seed: 0, fetches: fetches.clone() });
        let (budget, ahead) = (Budget::default(), Readahead::default());
        Self { budget, fetches, object, version: version(0, len), ahead }
    }

    async fn read_by(&self, ahead: &Readahead, offset: u64, len: u64) -> Result<Bytes, Error> {
        ahead.note(offset, len as usize);
        ahead.read(&self.budget, &self.version, &self.object, offset, len as usize).await
    }

    /// Reads and compares.
    async fn check(&self, offset: u64, len: u64) {
        let read = self.read_by(&self.ahead, offset, len).await.unwrap();
        assert!(read == bytes(0, offset..offset + len), "wrong bytes at {offset}");
    }

    fn free(&self) -> u64 {
        self.budget.0.available_permits() as u64 * UNIT
    }
}

/// Waits until tasks have brought a condition about.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn abandoned_segments_are_freed_at_each_of_1000_seeks() {
    let reader = Reader::new(1 << 40);
    reader.fetches.hang.store(true, Ordering::SeqCst);
    for seek in 0..1000 {
        for number in 0..6 {
            // It hangs, and is dropped after the first poll.
            let read = reader.read_by(&reader.ahead, seek * 64 * MIB + number * 128 * KIB, 128 * KIB).now_or_never();
            assert!(read.is_none());
        }
        until("nothing is fetched ahead", || reader.fetches.in_progress() > 0).await;
        assert!(reader.fetches.in_progress() <= SHORT);
        reader.ahead.note(seek * 64 * MIB + 32 * MIB, 1);
        until("an abandoned fetch goes on", || reader.fetches.in_progress() == 0).await;
        until("memory isn't returned", || reader.free() == BUDGET).await;
    }
}

#[tokio::test]
async fn all_readers_together_stay_within_the_budget_and_return_it() {
    let reader = Reader::new(1 << 40);
    let handles: Vec<_> = (0..100).map(|_| Readahead::default()).collect();
    // Long enough that some handles use up their first segment, and others get its memory.
    for number in 0..40 {
        let reads = handles.iter().map(|ahead| reader.read_by(ahead, number * 128 * KIB, 128 * KIB));
        for read in futures::future::join_all(reads).await {
            assert!(read.unwrap() == bytes(0, number * 128 * KIB..(number + 1) * 128 * KIB));
        }
    }
    reader.fetches.hang.store(true, Ordering::SeqCst);
    for number in 40..44 {
        for ahead in &handles {
            let _hangs = reader.read_by(ahead, number * 128 * KIB, 128 * KIB).now_or_never();
        }
    }
    let permits: u64 = handles
        .iter()
        .flat_map(|ahead| lock(&ahead.0).segments.iter().map(|segment| segment.progress.clone()).collect::<Vec<_>>())
        .map(|progress| progress._memory.num_permits() as u64 * UNIT)
        .sum();
    assert_eq!(permits + reader.free(), BUDGET);
    assert!(permits > BUDGET / 2 && reader.fetches.in_progress() <= permits);
    drop(handles);
    until("memory isn't returned", || reader.free() == BUDGET && reader.fetches.in_progress() == 0).await;
}

#[tokio::test]
async fn sequential_reader_needs_a_request_for_each_window_only() {
    let reader = Reader::new(128 * MIB);
    for number in 0..1024 {
        reader.check(number * 128 * KIB, 128 * KIB).await;
    }
    // Two reads of its own, four windows of the short segment, two small ones and 31 of 4 MiB after them.
    assert!(reader.fetches.count() <= 40, "{} requests", reader.fetches.count());
}

#[tokio::test]
async fn reads_out_of_order_need_no_requests_of_their_own() {
    let reader = Reader::new(64 * MIB);
    for number in 0..128_u64 {
        // The kernel has four requests of 128 KiB under way.
        let order = [1, 0, 3, 2].map(|turn| reader.check(number * 512 * KIB + turn * 128 * KIB, 128 * KIB));
        futures::future::join_all(order).await;
    }
    assert!(reader.fetches.count() <= 32, "{} requests", reader.fetches.count());
}

#[tokio::test]
async fn stream_waits_for_a_reader_that_stops() {
    let reader = Reader::new(1 << 40);
    for number in 0..80 {
        reader.check(number * 128 * KIB, 128 * KIB).await;
        // The tasks run as far as they can.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let ahead = reader.fetches.bytes.load(Ordering::SeqCst).saturating_sub((number + 1) * 128 * KIB);
        assert!(ahead <= LONG_MEMORY, "{ahead} bytes ahead");
    }
}

#[tokio::test]
async fn reader_gets_read_ahead_again_after_a_failure() {
    let reader = Reader::new(64 * MIB);
    for number in 0..16 {
        reader.check(number * 128 * KIB, 128 * KIB).await;
    }
    let failing = reader.fetches.count() + 1;
    reader.fetches.fail_each.store(failing, Ordering::SeqCst);
    for number in 16..512 {
        // Any of the requests ahead may be the one that fails, but not the one of the reader itself.
        reader.check(number * 128 * KIB, 128 * KIB).await;
        if reader.fetches.count() > failing {
            reader.fetches.fail_each.store(0, Ordering::SeqCst);
        }
    }
    assert!(reader.fetches.count() <= 60, "{} requests", reader.fetches.count());
}

#[tokio::test]
async fn reader_that_skips_a_long_part_keeps_its_read_ahead_and_no_old_segment() {
    let reader = Reader::new(1 << 40);
    for number in 0..64 {
        reader.check(number * 128 * KIB, 128 * KIB).await;
    }
    // As a file does of which 32 MiB were changed locally: the program reads them, but not from this version.
    (64..320).for_each(|number| reader.ahead.note(number * 128 * KIB, 128 << 10));
    let before = reader.fetches.count();
    for number in 320..384 {
        reader.check(number * 128 * KIB, 128 * KIB).await;
    }
    assert!(reader.fetches.count() - before <= 12);
    assert!(lock(&reader.ahead.0).segments.iter().all(|segment| segment.range.start >= 40 * MIB));
}

#[derive(Clone, Debug)]
enum Step {
    Sequential(u8),
    Seek(u64),
    Version(u8),
    CoolDown,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..32_u8).prop_map(Step::Sequential),
        2 => (0..24 * MIB).prop_map(Step::Seek),
        1 => (0..3_u8).prop_map(Step::Version),
        1 => Just(Step::CoolDown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn reader_gets_the_bytes_of_its_version_whatever_it_does(
        steps in prop::collection::vec(step(), 1..30),
        len in 1..24 * MIB,
        at_once in 1..300_000_u64,
        fail_each in prop_oneof![Just(0_u64), 2..40_u64],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reader = Reader::new(len);
            reader.fetches.fail_each.store(fail_each, Ordering::SeqCst);
            let object = |seed| Arc::new(Pattern { len, seed, fetches: reader.fetches.clone() }) as Arc<dyn Object>;
            let objects: Vec<_> = (0..3).map(object).collect();
            let (mut seed, mut at) = (0, 0);
            for step in steps {
                let reads = match step {
                    Step::Sequential(count) => count,
                    Step::Seek(to) => {
                        at = to;
                        1
                    }
                    Step::Version(to) => {
                        seed = to;
                        0
                    }
                    Step::CoolDown => {
                        lock(&reader.ahead.0).used = Instant::now().checked_sub(2 * IDLE);
                        reader.ahead.free_idle_buffers();
                        0
                    }
                };
                for _ in 0..reads {
                    let (version, object) = (version(seed, len), &objects[usize::from(seed)]);
                    reader.ahead.note(at, at_once as usize);
                    let read = reader.ahead.read(&reader.budget, &version, object, at, at_once as usize).await;
                    let end = (at + at_once).min(len);
                    match read {
                        Ok(read) => prop_assert!(read == bytes(seed, at.min(end)..end), "wrong bytes at {at}"),
                        Err(_) => prop_assert!(fail_each > 0),
                    }
                    at += at_once;
                }
            }
            drop(reader.ahead);
            Ok(())
        })?;
    }
}
