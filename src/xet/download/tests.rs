//! Downloads against [`MemoryCas`], honest and sabotaged.

use super::*;
use crate::Scheme;
use crate::cas::DataStream;
use crate::compression::Policy;
use crate::fault::{Call, Fault, Saboteur};
use crate::hash::{chunk_hash, keyed_chunk_hash, term_hash};
use crate::known;
use crate::memory::MemoryCas;
use crate::merkle::file_hash;
use crate::reconstruction::{Fetch, Reconstruction, Term};
use crate::shard::{FileInfo, Segment, Shard};
use crate::testdata::{self, Input};
use crate::upload::{self, UploadSession};
use crate::xorb::ChunkHeader;
use proptest::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A CAS that holds `files`, and their hashes. Files of different calls lie in different xorbs.
async fn stored(cas: &Arc<MemoryCas>, files: &[&[u8]], policy: Policy) -> Vec<Hash> {
    let session = UploadSession::new(cas.clone(), upload::Options::default());
    let mut hashes = Vec::new();
    for file in files {
        hashes.push(session.add(*file, policy).await.unwrap().hash);
    }
    session.finish().await.unwrap();
    cas.forget_calls();
    hashes
}

async fn stored_alone(data: &[u8], policy: Policy) -> (Arc<MemoryCas>, Hash) {
    let cas = Arc::new(MemoryCas::default());
    let hash = stored(&cas, &[data], policy).await[0];
    (cas, hash)
}

fn options(window: u64, ahead: usize) -> Options {
    Options { window, ahead, ..Options::default() }
}

fn reader(cas: impl Cas) -> Downloader {
    Downloader::new(Arc::new(cas), Options::default())
}

async fn streamed(downloader: &Downloader, file: Hash, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = downloader.stream(file, range).try_collect().await?;
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    Ok(pieces.concat())
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        (0u64..9, 0usize..3_000_000).prop_map(|(seed, len)| Input::Splitmix64 { seed, len }),
        (0usize..3_000_000).prop_map(|len| Input::Text { len }),
        (0usize..600_000).prop_map(|len| Input::Fill { byte: 0, len }),
    ];
    let input = (leaf.clone(), leaf, 1usize..3)
        .prop_map(|(one, two, times)| Input::Repeat { times, of: Input::Concat { parts: vec![one, two] }.into() });
    input.prop_map(|input| input.bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_range_by_any_windows_is_the_slice(
        data in contents(), a: prop::sample::Index, b: prop::sample::Index, window in 100_000u64..3_000_000, ahead in 0usize..4,
    ) {
        let (a, b) = (a.index(data.len() + 1), b.index(data.len() + 1));
        let (a, b) = (a.min(b), a.max(b));
        let range = a as u64..b as u64;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (cas, file) = stored_alone(&data, Policy::Auto).await;
            let downloader = Downloader::new(cas, options(window, ahead));
            assert!(downloader.read(&file, range.clone()).await.unwrap() == data[a..b]);
            assert!(streamed(&downloader, file, range).await.unwrap() == data[a..b]);
            let mut sink = Vec::new();
            downloader.download(&file, data.len() as u64, &mut sink).await.unwrap();
            assert!(sink == data);
            let memory = Arc::new(Memory::default());
            downloader.download_to(&file, data.len() as u64, memory.clone()).await.unwrap();
            assert!(memory.bytes() == data);
        });
    }

    #[test]
    fn reads_of_one_file_through_caches_are_its_slices(
        data in contents(), reads in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..12),
        grain in prop::sample::select(vec![1, 4_096, 100_000, 1 << 20]), slack in prop::sample::select(vec![0, 300_000, u64::MAX]),
        cached: bool, known: bool, expired in any::<prop::sample::Index>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (cas, file) = stored_alone(&data, Policy::Auto).await;
            let chunks = cached.then(|| Arc::new(Recent::new(1 << 20)) as Arc<dyn Chunks>);
            let options = Options {
                window: 300_000, grain, slack, chunks, known: known.then(|| known_of(&cas, &data, file)), ..Options::default()
            };
            let downloader = Downloader::new(cas.clone(), options);
            for (i, (a, b)) in reads.iter().enumerate() {
                if i == expired.index(12) {
                    cas.expire_urls();
                }
                let (a, b) = (a.index(data.len() + 1), b.index(data.len() + 1));
                let (a, b) = (a.min(b), a.max(b));
                assert!(downloader.read(&file, a as u64..b as u64).await.unwrap() == data[a..b]);
                if i % 3 == 0 {
                    assert!(streamed(&downloader, file, a as u64..b as u64).await.unwrap() == data[a..b]);
                }
            }
        });
    }
}

/// Knows the file.
fn known_of(_: &MemoryCas, data: &[u8], file: Hash) -> Known {
    let known = Known::in_memory();
    known.note_file(&file, testdata::chunks(data).iter().map(|chunk| (chunk_hash(chunk), chunk.len() as u32))).unwrap();
    known
}

/// A place in memory.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    writes: AtomicUsize,
    /// Fails from this write on.
    broken_at: Option<usize>,
    /// Has room for so many bytes.
    room: Option<u64>,
}

impl Memory {
    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Place for Memory {
    fn reserve(&self, len: u64) -> std::io::Result<()> {
        match self.room {
            Some(room) if len > room => Err(std::io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> std::io::Result<()> {
        let write = self.writes.fetch_add(1, Ordering::Relaxed);
        if self.broken_at.is_some_and(|at| write >= at) {
            return Err(std::io::Error::other("full"));
        }
        let mut bytes = self.bytes.lock().unwrap();
        let (start, end) = (offset as usize, offset as usize + new.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(new);
        Ok(())
    }
}

#[tokio::test]
async fn windows_of_one_byte_still_give_the_file() {
    let data = testdata::random(1, 300);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let downloader = Downloader::new(cas, options(0, 0));
    assert_eq!(streamed(&downloader, file, 3..290).await.unwrap(), data[3..290]);
}

#[tokio::test]
async fn read_buffer_is_the_readers_own() {
    let (cas, file) = stored_alone(&testdata::random(1, 1000), Policy::Never).await;
    assert!(reader(Saboteur::new(cas)).read(&file, 0..1000).await.unwrap().try_into_mut().is_ok());
}

#[tokio::test]
async fn nothing_is_asked_for_nothing() {
    let cas = Arc::new(MemoryCas::default());
    let downloader = Downloader::new(cas.clone(), Options::default());
    assert!(downloader.read(&Hash([1; 32]), 5..5).await.unwrap().is_empty());
    assert!(streamed(&downloader, Hash([1; 32]), 5..5).await.unwrap().is_empty());
    downloader.download(&Hash::ZERO, 0, Vec::new()).await.unwrap();
    downloader.download_to(&Hash::ZERO, 0, Arc::new(Memory::default())).await.unwrap();
    let other = downloader.download_to(&Hash([1; 32]), 0, Arc::new(Memory::default())).await;
    assert!(matches!(other, Err(Error::HashMismatch { .. })));
    assert!(matches!(downloader.download(&Hash([1; 32]), 0, Vec::new()).await, Err(Error::HashMismatch { .. })));
    assert!(cas.calls().reconstructions.is_empty());
}

#[tokio::test]
async fn chunks_that_a_file_uses_often_are_fetched_once() {
    let data = testdata::random(2, 150_000).repeat(3);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    assert!(cas.segments(&file).unwrap().len() > 1);
    let downloader = Downloader::new(cas.clone(), Options::default());
    assert!(downloader.read(&file, 0..450_000).await.unwrap() == data);
    assert_eq!(cas.calls().fetches.len(), 1);
}

#[tokio::test]
async fn wrong_byte_never_passes_a_download() {
    let data = testdata::random(3, 500_000);
    for policy in [Policy::Never, Policy::Auto] {
        for at in [0, 1, 3, 5, 7, 8, 9, 100_000, 400_000] {
            let (cas, file) = stored_alone(&data, policy).await;
            let downloader = reader(Saboteur::new(cas).with(Call::Fetch, 0, Fault::Flip(at)));
            let result = downloader.download(&file, 500_000, Vec::new()).await;
            assert!(
                matches!(result, Err(Error::HashMismatch { .. } | Error::Malformed { .. })),
                "byte {at}: {result:?}"
            );
        }
    }
}

#[tokio::test]
async fn wrong_byte_in_a_compressed_chunk_never_passes_a_download() {
    let data = testdata::text(400_000);
    for at in (0..20_000).step_by(997) {
        let (cas, file) = stored_alone(&data, Policy::Auto).await;
        let downloader = reader(Saboteur::new(cas).with(Call::Fetch, 0, Fault::Flip(at)));
        assert!(downloader.download(&file, 400_000, Vec::new()).await.is_err(), "byte {at}");
    }
}

#[tokio::test]
async fn cut_body_is_an_error_and_never_short_data() {
    let data = testdata::random(4, 500_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    for len in [0, 7, 8, 9, 100_000, 499_999] {
        let cut = || reader(Saboteur::new(cas.clone()).with(Call::Fetch, 0, Fault::Cut(len)));
        assert!(matches!(cut().read(&file, 0..500_000).await, Err(Error::Malformed { .. })));
        assert!(matches!(streamed(&cut(), file, 0..500_000).await, Err(Error::Malformed { .. })));
        assert!(matches!(cut().download(&file, 500_000, Vec::new()).await, Err(Error::Malformed { .. })));
    }
}

#[tokio::test]
async fn wrong_length_or_hash_never_passes_a_download() {
    let data = testdata::random(5, 500_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let downloader = Downloader::new(cas, Options::default());
    for len in [1, 131_072, 499_999, 500_001] {
        assert!(downloader.download(&file, len, Vec::new()).await.is_err(), "{len}");
    }
    assert!(matches!(downloader.download(&Hash([9; 32]), 500_000, Vec::new()).await, Err(Error::NotFound(_))));
}

/// A file of two runs of chunks that are not neighbours in their xorb, so two stretches are fetched.
async fn stored_in_two_stretches() -> (Arc<MemoryCas>, Vec<u8>, Hash) {
    // More than is asked for at once.
    let whole = testdata::random(6, 8_000_000);
    let chunks = testdata::chunks(&whole);
    let parts = [&chunks[..30], &chunks[40..90]].concat().concat();
    let cas = Arc::new(MemoryCas::default());
    let file = stored(&cas, &[&whole, &parts], Policy::Never).await[1];
    (cas, parts, file)
}

#[tokio::test]
async fn expired_url_is_asked_for_again_and_what_is_there_is_kept() {
    let (cas, data, file) = stored_in_two_stretches().await;
    let denied = Fault::Fail(Error::Forbidden("expired".to_owned()));
    let sabotaged = Arc::new(Saboteur::new(cas.clone()).with(Call::Fetch, 1, denied));
    let downloader = Downloader::new(sabotaged.clone(), Options::default());
    assert!(downloader.read(&file, 0..data.len() as u64).await.unwrap() == data);
    assert_eq!((sabotaged.count(Call::Reconstruction), sabotaged.count(Call::Fetch)), (2, 3));
}

#[tokio::test]
async fn url_that_is_denied_twice_is_an_error() {
    let (cas, data, file) = stored_in_two_stretches().await;
    let denied = || Fault::Fail(Error::Forbidden("expired".to_owned()));
    let sabotaged = Saboteur::new(cas).with(Call::Fetch, 0, denied()).with(Call::Fetch, 2, denied());
    assert!(matches!(reader(sabotaged).read(&file, 0..data.len() as u64).await, Err(Error::Forbidden(_))));
}

#[tokio::test]
async fn urls_that_expire_during_a_stream_do_not_stop_it() {
    let data = testdata::random(8, 8 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let mut stream = Downloader::new(cas.clone(), options(1 << 20, 2)).stream(file, 0..data.len() as u64);
    let mut read = Vec::new();
    while let Some(piece) = stream.next().await {
        read.extend_from_slice(&piece.unwrap());
        cas.expire_urls();
    }
    assert!(read == data);
}

#[tokio::test]
async fn stream_ends_after_its_first_error() {
    let data = testdata::random(9, 4 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let failing = Saboteur::new(cas).with(Call::Fetch, 1, Fault::Fail(Error::Unauthorized));
    let mut stream = Downloader::new(Arc::new(failing), options(1 << 20, 1)).stream(file, 0..data.len() as u64);
    let mut read = 0;
    let error = loop {
        match stream.next().await.expect("an error comes before the end") {
            Ok(piece) => read += piece.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Unauthorized));
    assert!((1 << 20..(1 << 20) + 131_072).contains(&read), "only the first window: {read}");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn no_more_windows_are_asked_for_than_allowed() {
    let data = testdata::random(10, 8 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let mut stream = Downloader::new(cas.clone(), options(1 << 20, 2)).stream(file, 0..data.len() as u64);
    stream.next().await.unwrap().unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let (asked, fetched) = (cas.calls().reconstructions.len(), cas.calls().fetches.len());
    assert!((2..=3).contains(&fetched), "{fetched}");
    assert!((fetched + 1..=5).contains(&asked), "places are asked for ahead of what is fetched: {asked}");
}

#[tokio::test]
async fn more_windows_are_fetched_ahead_once_the_reader_has_to_wait() {
    let data = testdata::random(12, 24 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let mut stream = Downloader::new(cas.clone(), options(1 << 20, 8)).stream(file, 0..data.len() as u64);
    // The first window is never there at once.
    stream.next().await.unwrap().unwrap();
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let first = cas.calls().fetches.len();
    assert!(first <= FIRST_AHEAD + 2, "{first}");
    let mut read = 0;
    while let Some(piece) = stream.next().await {
        read += piece.unwrap().len();
        if read > 12 << 20 {
            break;
        }
    }
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    let ahead = cas.calls().fetches.len() - read.div_ceil(1 << 20);
    assert!((1..=9).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn dropped_stream_stops_its_fetches() {
    let data = testdata::random(11, 4 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let hung: Arc<dyn Cas> = Arc::new(Saboteur::new(cas).with(Call::Fetch, 1, Fault::Hang));
    let mut stream = Downloader::new(hung.clone(), options(1 << 20, 3)).stream(file, 0..data.len() as u64);
    stream.next().await.unwrap().unwrap();
    drop(stream);
    while Arc::strong_count(&hung) > 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn windows_grow_and_cover_the_range() {
    let mib = |n: u64| n << 20;
    let cut = |range, longest| windows(range, longest).collect::<Vec<_>>();
    assert_eq!(cut(5..5, 10), []);
    assert_eq!(cut(mib(1)..mib(9), mib(4)), [mib(1)..mib(2), mib(2)..mib(4), mib(4)..mib(8), mib(8)..mib(9)]);
    assert_eq!(cut(3..10, 3), [3..6, 6..9, 9..10]);
    assert_eq!(cut(0..3, 0), [0..1, 1..2, 2..3]);
    assert_eq!(cut(u64::MAX - 5..u64::MAX, 4), [u64::MAX - 5..u64::MAX - 1, u64::MAX - 1..u64::MAX]);
}

// Answers.

async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn one_of(cas: Arc<MemoryCas>, options: Options) -> (Downloader, Arc<MemoryCas>) {
    (Downloader::new(cas.clone(), options), cas)
}

#[tokio::test]
async fn neighbouring_small_reads_share_an_answer() {
    let data = testdata::random(20, 2 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let (downloader, cas) = one_of(cas, Options { grain: 1 << 18, ..Options::default() });
    for start in (0..1 << 18).step_by(1 << 16) {
        let range = start..start + (1 << 16);
        assert!(downloader.read(&file, range.clone()).await.unwrap() == data[range.start as usize..range.end as usize]);
    }
    assert_eq!(cas.calls().reconstructions, [Some(0..1 << 18)]);
    assert_eq!(cas.calls().fetches.len(), 4);
}

#[tokio::test]
async fn answer_that_costs_more_than_the_slack_is_not_used() {
    let data = testdata::random(21, 4 << 20);
    for (slack, asked) in [(1 << 20, 2), (8 << 20, 1)] {
        let (cas, file) = stored_alone(&data, Policy::Never).await;
        let (downloader, cas) = one_of(cas, Options { slack, ..Options::default() });
        downloader.read(&file, 0..4 << 20).await.unwrap();
        assert!(downloader.read(&file, 100..200).await.unwrap() == data[100..200]);
        assert_eq!(cas.calls().reconstructions.len(), asked);
    }
}

#[tokio::test]
async fn equal_questions_are_one_request() {
    let data = testdata::random(22, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let held = Arc::new(Saboteur::new(cas).with(Call::Reconstruction, 0, Fault::Hold));
    let downloader = Downloader::new(held.clone(), Options::default());
    let reads = futures::future::join_all((0..10).map(|i| {
        let downloader = downloader.clone();
        async move { downloader.read(&file, i * 10..i * 10 + 10).await.unwrap() }
    }));
    let reads = tokio::spawn(reads);
    while held.count(Call::Reconstruction) == 0 {
        tokio::task::yield_now().await;
    }
    settle().await;
    held.release();
    let reads = reads.await.unwrap();
    assert!(reads.iter().enumerate().all(|(i, read)| *read == data[i * 10..i * 10 + 10]));
    assert_eq!(held.count(Call::Reconstruction), 1);
}

#[tokio::test]
async fn failed_question_fails_all_who_wait_and_nobody_after() {
    let data = testdata::random(22, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let failing = Saboteur::new(cas).with(Call::Reconstruction, 0, Fault::Fail(Error::Unauthorized));
    let held = Arc::new(Saboteur::new(Arc::new(failing)).with(Call::Reconstruction, 0, Fault::Hold));
    let downloader = Downloader::new(held.clone(), Options::default());
    let both = futures::future::join(downloader.read(&file, 0..9), downloader.read(&file, 5..6));
    let (both, ()) = futures::future::join(both, async { held.release() }).await;
    assert!(matches!(both, (Err(Error::Unauthorized), Err(Error::Unauthorized))));
    assert!(downloader.read(&file, 0..9).await.unwrap() == data[..9]);
}

#[tokio::test]
async fn question_whose_first_asker_left_is_answered_to_the_others() {
    let data = testdata::random(22, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let held = Arc::new(Saboteur::new(cas).with(Call::Reconstruction, 0, Fault::Hold));
    let downloader = Downloader::new(held.clone(), Options::default());
    let mut first = Box::pin(downloader.read(&file, 0..10));
    assert!(futures::poll!(&mut first).is_pending());
    let mut second = Box::pin(downloader.read(&file, 10..20));
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    held.release();
    assert!(second.await.unwrap() == data[10..20]);
    assert_eq!(held.count(Call::Reconstruction), 1);
}

#[tokio::test]
async fn abandoned_question_is_given_up() {
    let data = testdata::random(22, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let hung: Arc<dyn Cas> = Arc::new(Saboteur::new(cas).with(Call::Reconstruction, 0, Fault::Hang));
    let downloader = Downloader::new(hung.clone(), Options::default());
    let handles = Arc::strong_count(&hung);
    let mut read = Box::pin(downloader.read(&file, 0..10));
    assert!(futures::poll!(&mut read).is_pending());
    drop(read);
    assert_eq!(Arc::strong_count(&hung), handles);
    assert!(downloader.read(&file, 0..10).await.unwrap() == data[..10]);
}

#[tokio::test]
async fn all_reads_under_an_expired_url_ask_once() {
    let data = testdata::random(23, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let (downloader, cas) = one_of(cas, Options { slack: 1 << 30, ..Options::default() });
    downloader.read(&file, 0..300_000).await.unwrap();
    cas.expire_urls();
    cas.forget_calls();
    let reads = (0..20).map(|i| downloader.read(&file, i * 100..i * 100 + 100));
    let reads = futures::future::join_all(reads).await;
    assert!(reads.into_iter().enumerate().all(|(i, read)| read.unwrap() == data[i * 100..i * 100 + 100]));
    assert_eq!(cas.calls().reconstructions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_are_asked_for_again_when_their_urls_are_old() {
    let data = testdata::random(24, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let (downloader, cas) = one_of(cas, Options { url_life: Duration::from_secs(100), ..Options::default() });
    for (wait, asked) in [(0, 1), (90, 1), (20, 2), (90, 2), (3600, 3)] {
        tokio::time::advance(Duration::from_secs(wait)).await;
        assert!(downloader.read(&file, 5..50).await.unwrap() == data[5..50]);
        assert_eq!(cas.calls().reconstructions.len(), asked);
    }
}

#[tokio::test]
async fn url_that_is_old_when_it_comes_is_used_all_the_same() {
    let data = testdata::random(26, 5_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let (downloader, cas) = one_of(cas, Options { url_life: Duration::ZERO, ..Options::default() });
    assert!(downloader.read(&file, 0..5_000).await.unwrap() == data);
    assert_eq!(cas.calls().reconstructions.len(), 1);
}

#[tokio::test]
async fn ends_of_files_are_found_by_whoever_reads_behind_them() {
    let data = testdata::random(25, 5_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let (downloader, _) = one_of(cas, Options::default());
    for _ in 0..2 {
        assert!(matches!(downloader.read(&file, 5_000..5_001).await, Err(Error::RangeNotSatisfiable)));
        assert!(matches!(downloader.read(&file, 1 << 40..(1 << 40) + 1).await, Err(Error::RangeNotSatisfiable)));
        assert!(matches!(downloader.read(&file, 4_999..5_001).await, Err(Error::Malformed { .. })));
        assert!(downloader.read(&file, 4_999..5_000).await.unwrap() == data[4_999..]);
    }
}

#[test]
fn questions_are_whole_blocks_around_short_reads() {
    assert_eq!(around(&(5..6), 100), 0..100);
    assert_eq!(around(&(99..101), 100), 0..200);
    assert_eq!(around(&(5..105), 100), 5..105);
    assert_eq!(around(&(5..6), 0), 5..6);
    assert_eq!(around(&(u64::MAX - 3..u64::MAX), 100), u64::MAX / 100 * 100..u64::MAX);
}

// Chunk cache.

#[tokio::test]
async fn chunks_in_the_cache_are_not_fetched() {
    let data = testdata::random(30, 3 << 20);
    let (cas, file) = stored_alone(&data, Policy::Auto).await;
    let chunks = Arc::new(Recent::new(16 << 20));
    let (downloader, cas) = one_of(cas, Options { chunks: Some(chunks), ..Options::default() });
    assert!(streamed(&downloader, file, 0..3 << 20).await.unwrap() == data);
    settle_inserts(&downloader).await;
    // URLs are of no use, and of no need.
    cas.expire_urls();
    cas.forget_calls();
    assert!(streamed(&downloader, file, 0..3 << 20).await.unwrap() == data);
    let mut sink = Vec::new();
    downloader.download(&file, 3 << 20, &mut sink).await.unwrap();
    assert!(sink == data);
    assert!(cas.calls().fetches.is_empty());
}

/// Waits until nothing is on its way to the chunk cache.
async fn settle_inserts(downloader: &Downloader) {
    let all = downloader.engine.inserts.acquire_many(INSERTS as u32).await.unwrap();
    drop(all);
}

#[tokio::test]
async fn what_was_fetched_around_a_read_is_kept_too() {
    let data = testdata::random(31, 1 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let options = Options { grain: 1 << 20, chunks: Some(Arc::new(Recent::new(8 << 20))), ..Options::default() };
    let (downloader, cas) = one_of(cas, options);
    downloader.read(&file, 0..10).await.unwrap();
    settle_inserts(&downloader).await;
    for start in (0..1 << 20).step_by(50_000) {
        let end = (start + 50_000).min(1 << 20);
        assert!(downloader.read(&file, start as u64..end as u64).await.unwrap() == data[start..end]);
    }
    assert_eq!((cas.calls().reconstructions.len(), cas.calls().fetches.len()), (1, 1));
}

#[tokio::test]
async fn large_streams_leave_the_cache_alone() {
    let data = testdata::random(32, 2 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let chunks = Arc::new(Recent::new(8 << 20));
    let options = Options { bypass: 1 << 20, chunks: Some(chunks), ..Options::default() };
    let (downloader, cas) = one_of(cas, options);
    for _ in 0..2 {
        cas.forget_calls();
        assert!(streamed(&downloader, file, 0..2 << 20).await.unwrap() == data);
        settle_inserts(&downloader).await;
        assert!(!cas.calls().fetches.is_empty());
    }
}

/// A cache that misbehaves.
struct Odd(fn(usize) -> Option<Vec<Cached>>);

#[async_trait::async_trait]
impl Chunks for Odd {
    async fn chunks(&self, _: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>> {
        (self.0)(chunks.len())
    }

    async fn insert(&self, _: &Hash, _: u32, _: &[(Hash, Bytes)]) {
        std::future::pending().await
    }
}

#[tokio::test]
async fn cache_that_gives_too_little_or_never_stores_delays_nobody() {
    let data = testdata::random(33, 1 << 20);
    let short: fn(usize) -> Option<Vec<Cached>> =
        |count| Some(vec![Cached { hash: Hash::ZERO, bytes: Bytes::new() }; count]);
    let fewer: fn(usize) -> Option<Vec<Cached>> = |_| Some(Vec::new());
    for answer in [short, fewer, |_| None] {
        let (cas, file) = stored_alone(&data, Policy::Never).await;
        let (downloader, _) = one_of(cas, Options { chunks: Some(Arc::new(Odd(answer))), ..Options::default() });
        for _ in 0..50 {
            assert!(downloader.read(&file, 0..1 << 20).await.unwrap() == data);
        }
        assert_eq!(downloader.engine.inserts.available_permits() % 1024, 0, "what hangs is bounded");
    }
}

// What is known.

#[tokio::test]
async fn ranged_reads_of_known_files_are_checked_and_damage_is_fetched_again() {
    let data = testdata::random(40, 500_000);
    for at in [3, 8, 100, 250_000, 499_000] {
        let (cas, file) = stored_alone(&data, Policy::Never).await;
        let known = known_of(&cas, &data, file);
        let options = || Options { known: Some(known.clone()), ..Options::default() };
        let once = Saboteur::new(cas.clone()).with(Call::Fetch, 0, Fault::Flip(at));
        let once = Downloader::new(Arc::new(once), options());
        assert!(once.read(&file, 0..500_000).await.unwrap() == data, "byte {at}");
        let twice = Saboteur::new(cas).with(Call::Fetch, 0, Fault::Flip(at)).with(Call::Fetch, 1, Fault::Flip(at));
        let result = Downloader::new(Arc::new(twice), options()).read(&file, 0..500_000).await;
        assert!(matches!(result, Err(Error::HashMismatch { .. } | Error::Malformed { .. })), "byte {at}: {result:?}");
    }
}

#[tokio::test]
async fn damaged_cache_entry_of_a_known_file_is_fetched() {
    let data = testdata::random(41, 100);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let known = known_of(&cas, &data, file);
    let wrong: fn(usize) -> Option<Vec<Cached>> =
        |_| Some(vec![Cached { hash: Hash([1; 32]), bytes: vec![0; 100].into() }]);
    let options = Options { known: Some(known), chunks: Some(Arc::new(Odd(wrong))), ..Options::default() };
    let (downloader, _) = one_of(cas, options);
    assert!(downloader.read(&file, 0..100).await.unwrap() == data);
}

#[tokio::test]
async fn whole_reads_teach_what_ranged_ones_are_checked_against() {
    let data = testdata::random(42, 500_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    for unordered in [false, true] {
        let known = Known::in_memory();
        let (downloader, _) = one_of(cas.clone(), Options { known: Some(known.clone()), ..Options::default() });
        match unordered {
            false => downloader.download(&file, 500_000, Vec::new()).await.unwrap(),
            true => downloader.download_to(&file, 500_000, Arc::new(Memory::default())).await.unwrap(),
        }
        let list = known.file(&file).await.unwrap();
        assert_eq!(list.len(), testdata::chunks(&data).len());
    }
}

/// A cache that has nothing, and notes what it was asked for.
#[derive(Default)]
struct Asked(Mutex<Vec<Range<u32>>>);

#[async_trait::async_trait]
impl Chunks for Asked {
    async fn chunks(&self, _: &Hash, chunks: Range<u32>) -> Option<Vec<Cached>> {
        self.0.lock().unwrap().push(chunks);
        None
    }
    async fn insert(&self, _: &Hash, _: u32, _: &[(Hash, Bytes)]) {}
}

#[tokio::test]
async fn known_lengths_narrow_what_is_asked_of_the_cache() {
    let data = testdata::random(43, 1 << 20);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let asked = Arc::new(Asked::default());
    let known = known_of(&cas, &data, file);
    let options = Options { known: Some(known), chunks: Some(asked.clone()), grain: 1 << 20, ..Options::default() };
    let (downloader, _) = one_of(cas, options);
    let ends: Vec<u64> = testdata::chunks(&data)
        .iter()
        .scan(0, |at, chunk| {
            *at += chunk.len() as u64;
            Some(*at)
        })
        .collect();
    let range = ends[2] - 1..ends[3] + 1;
    assert!(downloader.read(&file, range.clone()).await.unwrap() == data[range.start as usize..range.end as usize]);
    assert_eq!(*asked.0.lock().unwrap(), vec![2..5]);
}

// What is known of xorbs.

const KEY: [u8; 32] = [5; 32];

/// What a client knows of a xorb.
#[derive(Clone, Copy, Debug)]
enum Lore {
    Nothing,
    Proven,
    Told,
    /// It was told what isn't so.
    Wrong(usize),
}

impl Lore {
    fn is_right(self) -> bool {
        matches!(self, Self::Proven | Self::Told)
    }
}

fn lores() -> impl Strategy<Value = Lore> {
    prop_oneof![Just(Lore::Nothing), Just(Lore::Proven), Just(Lore::Told), (0usize..100).prop_map(Lore::Wrong)]
}

/// A stored xorb.
struct Holder {
    xorb: Hash,
    chunks: Vec<Vec<u8>>,
}

impl Holder {
    async fn new(cas: &Arc<MemoryCas>, data: &[u8]) -> Self {
        let file = stored(cas, &[data], Policy::Auto).await[0];
        let segments = cas.segments(&file).unwrap();
        assert_eq!(segments.len(), 1);
        Self { xorb: segments[0].xorb, chunks: testdata::chunks(data).into_iter().map(<[u8]>::to_vec).collect() }
    }

    fn list(&self) -> Vec<(Hash, u32)> {
        self.chunks.iter().map(|chunk| (chunk_hash(chunk), chunk.len() as u32)).collect()
    }

    fn note(&self, known: &Known, lore: Lore) {
        let mut told = self.list();
        told.iter_mut().for_each(|(hash, _)| *hash = keyed_chunk_hash(&KEY, hash));
        match lore {
            Lore::Nothing => return,
            Lore::Proven => return known.note_answer(&self.xorb, [0; 32], 0, &self.list()).unwrap(),
            Lore::Told => {}
            Lore::Wrong(at) => {
                let (kind, at) = (at % 3, at % (told.len() - 1));
                match kind {
                    0 => told[at].0 = Hash([7; 32]),
                    1 => drop(told.pop()),
                    // The edge of two chunks moves.
                    _ if told[at].1 > told[at + 1].1 => {
                        (told[at].1, told[at + 1].1) = (told[at].1 - 1, told[at + 1].1 + 1)
                    }
                    _ => (told[at].1, told[at + 1].1) = (told[at].1 + 1, told[at + 1].1 - 1),
                }
            }
        }
        known.note_answer(&self.xorb, KEY, u64::MAX, &told).unwrap();
    }
}

/// Registers the file that is these chunks of these xorbs; gives it with its hash.
async fn composed(cas: &MemoryCas, terms: &[(&Holder, Range<usize>)]) -> (Vec<u8>, Hash) {
    let chunks: Vec<_> = terms.iter().flat_map(|(holder, range)| &holder.chunks[range.clone()]).collect();
    let listed: Vec<_> = chunks.iter().map(|chunk| (chunk_hash(chunk), chunk.len() as u64)).collect();
    let segment = |(holder, range): &(&Holder, Range<usize>)| Segment {
        xorb: holder.xorb,
        raw_len: holder.chunks[range.clone()].iter().map(|chunk| chunk.len() as u32).sum(),
        start: range.start as u32,
        end: range.end as u32,
    };
    let verify = |(holder, range): &(&Holder, Range<usize>)| {
        term_hash(holder.chunks[range.clone()].iter().map(|chunk| chunk_hash(chunk)))
    };
    let hash = file_hash(&listed);
    let segments = terms.iter().map(segment).collect();
    let info = FileInfo { hash, segments, verification: terms.iter().map(verify).collect(), sha256: None };
    let shard = Shard { files: vec![info], ..Shard::default() };
    cas.put_shard(shard.to_upload().into()).await.unwrap();
    (chunks.into_iter().flatten().copied().collect(), hash)
}

/// Gives a wrong byte with each of the first fetches of some xorbs.
struct Rotten {
    inner: Arc<MemoryCas>,
    spots: Vec<(Hash, u64)>,
    left: AtomicUsize,
}

#[async_trait::async_trait]
impl Cas for Rotten {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        self.inner.reconstruction(file, range).await
    }

    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        let len = bytes.end - bytes.start;
        let data = self.inner.fetch(url, bytes);
        let xorb: Hash = url.rsplit('/').next().unwrap().parse().unwrap();
        let Some((_, spot)) = self.spots.iter().find(|(rotten, _)| *rotten == xorb) else { return data };
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return data;
        }
        let (spot, mut at) = (spot % len, 0);
        data.map(move |piece| {
            let mut piece = piece?.to_vec();
            if let Some(byte) =
                usize::try_from(spot - at.min(spot)).ok().filter(|_| spot >= at).and_then(|i| piece.get_mut(i))
            {
                *byte ^= 1;
            }
            at += piece.len() as u64;
            Ok(piece.into())
        })
        .boxed()
    }

    async fn put_xorb(&self, hash: &Hash, body: crate::Body) -> Result<bool, Error> {
        self.inner.put_xorb(hash, body).await
    }

    async fn put_shard(&self, body: Bytes) -> Result<(), Error> {
        self.inner.put_shard(body).await
    }

    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, Error> {
        self.inner.query_chunk(chunk).await
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_wrong_byte_comes_of_xorbs_that_are_known(
        lores in prop::array::uniform3(lores()),
        terms in prop::collection::vec((0usize..3, any::<[prop::sample::Index; 2]>()), 1..8),
        reads in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index, bool)>(), 1..8),
        spots: [u64; 3],
        // Of none, of one fetch, of all.
        damaged in prop::sample::select(vec![0, 1, usize::MAX]),
        cached: bool, grain in prop::sample::select(vec![1, 100_000, 1 << 20]), seed in 0u64..9,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let cas = Arc::new(MemoryCas::default());
            let mut holders = Vec::new();
            for data in [testdata::random(seed, 350_000), testdata::text(400_000), testdata::random(seed + 10, 300_000)] {
                holders.push(Holder::new(&cas, &data).await);
            }
            let term = |(nth, ends): &(usize, [prop::sample::Index; 2])| {
                let holder: &Holder = &holders[*nth];
                let [a, b] = ends.map(|end| end.index(holder.chunks.len()));
                (holder, a.min(b)..a.max(b) + 1)
            };
            let terms: Vec<_> = terms.iter().map(term).collect();
            let (data, file) = composed(&cas, &terms).await;

            let known = Known::in_memory();
            let note = || holders.iter().zip(lores).for_each(|(holder, lore)| holder.note(&known, lore));
            let known_right = holders.iter().zip(lores).zip(spots).filter(|((_, lore), _)| lore.is_right());
            let spots = known_right.map(|((holder, _), spot)| (holder.xorb, spot)).collect();
            let rotten = Rotten { inner: cas.clone(), spots, left: AtomicUsize::new(damaged) };
            let chunks = cached.then(|| Arc::new(Recent::new(1 << 20)) as Arc<dyn Chunks>);
            let options = Options { window: 300_000, grain, chunks, known: Some(known.clone()), ..Options::default() };
            let downloader = Downloader::new(Arc::new(rotten), options);
            note();
            for (a, b, whole) in &reads {
                let (a, b) = (a.index(data.len() + 1), b.index(data.len() + 1));
                let (a, b) = (a.min(b), a.max(b));
                let range = a as u64..b as u64;
                let read = async || match whole {
                    true => streamed(&downloader, file, range.clone()).await,
                    false => downloader.read(&file, range.clone()).await.map(Vec::from),
                };
                let mut found = read().await;
                if damaged == usize::MAX {
                    if let Ok(found) = found {
                        assert!(found == data[a..b], "a wrong byte");
                    }
                    // Those that were told are forgotten where they stood against what came twice.
                    note();
                    continue;
                }
                // A wrong list refuses once, or twice where damage came between.
                let wrong = lores.iter().filter(|lore| matches!(lore, Lore::Wrong(_))).count();
                for _ in 0..wrong + damaged.min(wrong) {
                    if found.is_err() {
                        found = read().await;
                    }
                }
                assert!(found.unwrap() == data[a..b]);
            }
        });
    }
}

/// A file of one xorb, of which this much is known.
async fn listed(lore: Lore) -> (Arc<MemoryCas>, Vec<u8>, Hash, Known, Holder) {
    let cas = Arc::new(MemoryCas::default());
    let data = testdata::random(44, 500_000);
    let holder = Holder::new(&cas, &data).await;
    let (_, file) = composed(&cas, &[(&holder, 0..holder.chunks.len())]).await;
    let known = Known::in_memory();
    holder.note(&known, lore);
    (cas, data, file, known, holder)
}

#[tokio::test]
async fn damage_in_a_known_xorb_is_fetched_again_and_refused_when_it_stays() {
    for lore in [Lore::Proven, Lore::Told] {
        for at in [3, 8, 100, 250_000, 499_000] {
            let (cas, data, file, known, holder) = listed(lore).await;
            let options = || Options { known: Some(known.clone()), ..Options::default() };
            let once = Saboteur::new(cas.clone()).with(Call::Fetch, 0, Fault::Flip(at));
            let once = Downloader::new(Arc::new(once), options());
            assert!(once.read(&file, 0..500_000).await.unwrap() == data, "byte {at}");
            let twice = Saboteur::new(cas).with(Call::Fetch, 0, Fault::Flip(at)).with(Call::Fetch, 1, Fault::Flip(at));
            let result = Downloader::new(Arc::new(twice), options()).read(&file, 0..500_000).await;
            assert!(
                matches!(result, Err(Error::HashMismatch { .. } | Error::Malformed { .. })),
                "byte {at}: {result:?}"
            );
            // What proves itself stays; what was told doesn't, if it was this that stood against the data.
            let is_mismatch = matches!(result, Err(Error::HashMismatch { what: "xorb", .. }));
            assert_eq!(known.xorb(&holder.xorb).await.is_some(), matches!(lore, Lore::Proven));
            assert_eq!(known.told(&holder.xorb).await.is_some(), matches!(lore, Lore::Told) && !is_mismatch);
            assert!(at < 100 || is_mismatch == matches!(lore, Lore::Told));
        }
    }
}

#[tokio::test]
async fn damaged_cache_entry_of_a_known_xorb_is_fetched() {
    for lore in [Lore::Proven, Lore::Told] {
        let (cas, data, file, known, _) = listed(lore).await;
        let chunks = Arc::new(Recent::new(1 << 20));
        let rotten = Arc::new(Saboteur::new(cas).with(Call::Fetch, 0, Fault::Flip(1000)));
        // One that knows nothing fills the cache.
        let options = |known| Options { grain: 1 << 20, known, chunks: Some(chunks.clone()), ..Options::default() };
        let careless = Downloader::new(rotten.clone(), options(None));
        assert!(careless.read(&file, 0..500_000).await.unwrap() != data);
        settle_inserts(&careless).await;
        let careful = Downloader::new(rotten.clone(), options(Some(known)));
        assert!(careful.read(&file, 400_000..400_009).await.unwrap() == data[400_000..400_009]);
        let before = rotten.count(Call::Fetch);
        assert!(careful.read(&file, 900..1100).await.unwrap() == data[900..1100]);
        assert_eq!(rotten.count(Call::Fetch), before + 1);
    }
}

#[tokio::test]
async fn list_that_was_told_wrong_refuses_once_and_whole_files_never() {
    for wrong in 0..30 {
        let (cas, data, file, known, holder) = listed(Lore::Wrong(wrong)).await;
        let (downloader, _) = one_of(cas, Options { known: Some(known.clone()), ..Options::default() });
        let mut sink = Vec::new();
        downloader.download(&file, 500_000, &mut sink).await.unwrap();
        assert!(sink == data && known.told(&holder.xorb).await.is_some());
        // It has taught what the file is: that is left out here.
        let again = Known::in_memory();
        holder.note(&again, Lore::Wrong(wrong));
        let downloader =
            Downloader::new(downloader.engine.cas.clone(), Options { known: Some(again), ..Options::default() });
        assert!(downloader.read(&file, 0..500_000).await.is_err(), "{wrong}");
        assert!(downloader.read(&file, 0..500_000).await.unwrap() == data);
    }
}

#[tokio::test]
async fn proven_list_of_a_xorb_narrows_what_is_asked_of_the_cache() {
    for (lore, expected) in [(Lore::Proven, 3..5), (Lore::Told, 1..6)] {
        let (cas, _, _, known, holder) = listed(lore).await;
        let (data, file) = composed(&cas, &[(&holder, 1..6)]).await;
        let asked = Arc::new(Asked::default());
        let chunks: Arc<dyn Chunks> = asked.clone();
        let (downloader, _) =
            one_of(cas, Options { known: Some(known), chunks: Some(chunks), grain: 1 << 20, ..Options::default() });
        // The last byte of chunk 3 and the first of chunk 4.
        let edge: usize = holder.chunks[1..4].iter().map(Vec::len).sum();
        let range = edge as u64 - 1..edge as u64 + 1;
        assert!(downloader.read(&file, range).await.unwrap() == data[edge - 1..edge + 1]);
        assert_eq!(*asked.0.lock().unwrap(), vec![expected], "what was told places nothing");
    }
}

#[tokio::test]
async fn answers_to_uploads_check_what_others_uploaded() {
    for key in [[0; 32], KEY] {
        let cas = Arc::new(MemoryCas::default().answering(key));
        let first = testdata::random(45, 3_000_000);
        let file = stored(&cas, &[&first], Policy::Never).await[0];
        // Another client uploads something alike.
        let dir = tempfile::tempdir().unwrap();
        let open = || Known::open(known::Options { dir: Some(dir.path().to_owned()), ..Default::default() }).unwrap();
        let second = [&first[..2_000_000], &testdata::random(46, 300_000)].concat();
        let session = UploadSession::new(cas.clone(), upload::Options { known: Some(open()), ..Default::default() });
        session.add(&second[..], Policy::Never).await.unwrap();
        assert!(session.finish().await.unwrap().deduplicated > 1_000_000);
        // Later it reads the first, which it has neither uploaded nor read, and behind what they
        // share. The byte is at most a chunk before.
        let range = 2_500_000..2_700_000;
        let expected = &first[range.start as usize..range.end as usize];
        let reader = |known: Option<Known>, damaged: usize| {
            let sabotaged = (0..damaged)
                .fold(Saboteur::new(cas.clone()), |cas, nth| cas.with(Call::Fetch, nth, Fault::Flip(140_000)));
            Downloader::new(Arc::new(sabotaged), Options { known, grain: 1, ..Options::default() })
        };
        assert!(open().file(&file).await.is_none());
        assert!(reader(None, 1).read(&file, range.clone()).await.unwrap() != expected, "nobody notices");
        assert!(reader(Some(open()), 1).read(&file, range.clone()).await.unwrap() == expected);
        let refused = reader(Some(open()), 2).read(&file, range.clone()).await;
        assert!(matches!(refused, Err(Error::HashMismatch { .. })), "{refused:?}");
    }
}

// Whole files in any order.

async fn placed(cas: impl Cas, options: Options, file: Hash, len: usize) -> Result<Vec<u8>, Error> {
    let memory = Arc::new(Memory::default());
    Downloader::new(Arc::new(cas), options).download_to(&file, len as u64, memory.clone()).await?;
    Ok(memory.bytes())
}

/// Several windows, several stretches each, chunks used twice.
async fn stored_in_pieces() -> (Arc<MemoryCas>, Vec<u8>, Hash) {
    let cas = Arc::new(MemoryCas::default());
    let whole = testdata::random(50, 6_000_000);
    let chunks = testdata::chunks(&whole);
    stored(&cas, &[&whole], Policy::Never).await;
    let more = testdata::text(2_000_000);
    let data = [
        &chunks[..20].concat()[..],
        &chunks[30..50].concat(),
        &more,
        &chunks[10..25].concat(),
        &chunks[30..50].concat(),
    ]
    .concat();
    let file = stored(&cas, &[&data], Policy::Auto).await[0];
    (cas, data, file)
}

fn small_windows() -> Options {
    Options { plan: 700_000, connections: 3, ..Options::default() }
}

#[tokio::test]
async fn file_in_pieces_is_placed_by_windows_that_meet() {
    let (cas, data, file) = stored_in_pieces().await;
    assert!(placed(Saboteur::new(cas.clone()), small_windows(), file, data.len()).await.unwrap() == data);
    let asked = cas.calls().reconstructions;
    assert!(asked.len() > 5);
    cas.forget_calls();
    assert!(placed(Saboteur::new(cas.clone()), Options::default(), file, data.len()).await.unwrap() == data);
    assert_eq!(cas.calls().reconstructions.len(), 1);
    // Chunks 10..20 and 30..50 are in the file twice.
    let fetched: u64 = cas.calls().fetches.iter().map(|(_, bytes)| bytes.end - bytes.start).sum();
    assert!(fetched < data.len() as u64 - 1_000_000, "{fetched} of {}", data.len());
}

#[tokio::test]
async fn expired_urls_do_not_stop_a_placed_download() {
    let (cas, data, file) = stored_in_pieces().await;
    for nth in [0, 1, 5] {
        let denied = || Error::Forbidden("expired".to_owned());
        let at_first = Saboteur::new(cas.clone()).with(Call::Fetch, nth, Fault::Fail(denied()));
        assert!(placed(at_first, small_windows(), file, data.len()).await.unwrap() == data);
        let in_the_middle = Saboteur::new(cas.clone()).with(Call::Fetch, nth, Fault::Break(50_000, denied()));
        assert!(placed(in_the_middle, small_windows(), file, data.len()).await.unwrap() == data);
    }
    let always = (0..40).fold(Saboteur::new(cas), |cas, nth| {
        cas.with(Call::Fetch, nth, Fault::Fail(Error::Forbidden("no".to_owned())))
    });
    assert!(matches!(placed(always, small_windows(), file, data.len()).await, Err(Error::Forbidden(_))));
}

#[tokio::test]
async fn placed_download_of_damaged_data_fails() {
    let (cas, data, file) = stored_in_pieces().await;
    for nth in [0, 3] {
        let faults = [Fault::Flip(0), Fault::Flip(5), Fault::Flip(70_000), Fault::Cut(0), Fault::Cut(20)];
        for fault in faults.into_iter().chain([Fault::Break(9, Error::Unauthorized)]) {
            let sabotaged = Saboteur::new(cas.clone()).with(Call::Fetch, nth, fault);
            assert!(placed(sabotaged, small_windows(), file, data.len()).await.is_err());
        }
    }
    let failing = Saboteur::new(cas.clone()).with(Call::Reconstruction, 2, Fault::Fail(Error::Unauthorized));
    assert!(matches!(placed(failing, small_windows(), file, data.len()).await, Err(Error::Unauthorized)));
    for len in [0, 1, data.len() - 1, data.len() + 1] {
        let sound = Saboteur::new(cas.clone());
        assert!(placed(sound, small_windows(), file, len).await.is_err(), "{len}");
    }
}

#[tokio::test]
async fn dripping_data_is_data() {
    let data = testdata::random(51, 200_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let drip = || Saboteur::new(cas.clone()).with(Call::Fetch, 0, Fault::Drip);
    assert!(placed(drip(), Options::default(), file, 200_000).await.unwrap() == data);
    assert!(reader(drip()).read(&file, 0..200_000).await.unwrap() == data);
}

#[tokio::test]
async fn full_disk_stops_a_placed_download() {
    let (cas, data, file) = stored_in_pieces().await;
    for broken_at in [0, 7] {
        let memory = Arc::new(Memory { broken_at: Some(broken_at), ..Memory::default() });
        let downloader = Downloader::new(cas.clone(), small_windows());
        let result = downloader.download_to(&file, data.len() as u64, memory).await;
        assert!(matches!(result, Err(Error::Io(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_file_that_has_no_room_is_not_fetched() {
    let (cas, data, file) = stored_in_pieces().await;
    let len = data.len() as u64;
    for (room, fits) in [(len - 1, false), (len, true)] {
        let saboteur = Arc::new(Saboteur::new(cas.clone()));
        let memory = Arc::new(Memory { room: Some(room), ..Memory::default() });
        let done = Downloader::new(saboteur.clone(), Options::default()).download_to(&file, len, memory).await;
        assert_eq!((done.is_ok(), saboteur.count(Call::Fetch) > 0), (fits, fits));
        assert!(fits || matches!(done, Err(Error::Io(ref error)) if error.kind() == std::io::ErrorKind::StorageFull));
    }
}

#[test]
fn space_of_a_file_is_reserved_and_absurd_lengths_are_errors() {
    let file = tempfile::tempfile().unwrap();
    file.reserve(0).unwrap();
    file.reserve(100_000).unwrap();
    // Where the file system can't reserve, nothing happens.
    assert!([0, 100_000].contains(&file.metadata().unwrap().len()));
    assert!(file.reserve(1 << 62).is_err() || file.metadata().unwrap().len() <= 100_000);
    assert!(file.reserve(u64::MAX).is_err() || file.metadata().unwrap().len() <= 100_000);
}

#[tokio::test]
async fn straggler_holds_back_windows_and_memory() {
    let (cas, data, file) = stored_in_pieces().await;
    let held = Arc::new(Saboteur::new(cas).with(Call::Fetch, 0, Fault::Hold));
    let downloader = Downloader::new(held.clone(), Options { plan: 200_000, connections: 8, ..Options::default() });
    let memory = Arc::new(Memory::default());
    let place = memory.clone();
    let len = data.len() as u64;
    let download = tokio::spawn(async move { downloader.download_to(&file, len, place).await });
    while held.count(Call::Reconstruction) < WINDOWS_AT_ONCE {
        tokio::task::yield_now().await;
    }
    settle().await;
    assert_eq!(held.count(Call::Reconstruction), WINDOWS_AT_ONCE);
    held.release();
    download.await.unwrap().unwrap();
    assert!(memory.bytes() == data);
}

const WINDOWS_AT_ONCE: usize = 2;

#[tokio::test]
async fn dropped_placed_download_frees_everything() {
    let (cas, data, file) = stored_in_pieces().await;
    let hung: Arc<dyn Cas> = Arc::new(Saboteur::new(cas).with(Call::Fetch, 2, Fault::Hang));
    let downloader = Downloader::new(hung.clone(), small_windows());
    let memory = Arc::new(Memory::default());
    let mut download = Box::pin(downloader.download_to(&file, data.len() as u64, memory.clone()));
    while memory.writes.load(Ordering::Relaxed) == 0 {
        assert!(futures::poll!(&mut download).is_pending());
        tokio::task::yield_now().await;
    }
    drop(download);
    drop(downloader);
    while Arc::strong_count(&hung) > 1 || Arc::strong_count(&memory) > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn files_are_places() {
    let data = testdata::random(52, 400_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let target = Arc::new(tempfile::tempfile().unwrap());
    Downloader::new(cas, Options::default()).download_to(&file, 400_000, target.clone()).await.unwrap();
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut &*target, &mut read).unwrap();
    assert!(read == data);
}

#[tokio::test]
async fn small_stretches_of_one_url_come_at_once() {
    let whole = testdata::random(53, 2_000_000);
    let chunks = testdata::chunks(&whole);
    let parts = [&chunks[..2], &chunks[5..7], &chunks[9..11]].concat().concat();
    let cas = Arc::new(MemoryCas::default());
    let file = stored(&cas, &[&whole, &parts], Policy::Never).await[1];
    let counting = Arc::new(Saboteur::new(cas));
    let downloader = Downloader::new(counting.clone(), Options::default());
    // Answers of the second version share URLs.
    assert!(downloader.read(&file, 0..parts.len() as u64).await.unwrap() == parts);
    assert_eq!((counting.count(Call::FetchMany), counting.count(Call::Fetch)), (1, 0));
    let memory = Arc::new(Memory::default());
    downloader.download_to(&file, parts.len() as u64, memory.clone()).await.unwrap();
    assert!(memory.bytes() == parts);
    assert_eq!((counting.count(Call::FetchMany), counting.count(Call::Fetch)), (2, 0));
}

#[tokio::test]
async fn dropped_read_frees_its_fetch() {
    let data = testdata::random(54, 300_000);
    let (cas, file) = stored_alone(&data, Policy::Never).await;
    let hung = Arc::new(Saboteur::new(cas).with(Call::Fetch, 0, Fault::Hang));
    let downloader = Downloader::new(hung.clone(), Options::default());
    let handles = Arc::strong_count(&hung);
    let mut read = Box::pin(downloader.read(&file, 0..10));
    while hung.count(Call::Fetch) == 0 {
        assert!(futures::poll!(&mut read).is_pending());
        tokio::task::yield_now().await;
    }
    drop(read);
    assert_eq!(Arc::strong_count(&hung), handles);
    assert!(downloader.read(&file, 0..10).await.unwrap() == data[..10]);
}

// Huge files.

/// A file of one chunk over and over.
struct Endless {
    len: u64,
    asked: AtomicUsize,
}

impl Endless {
    const CHUNK: u64 = 131_072;

    fn chunk() -> Bytes {
        testdata::random(60, Self::CHUNK as usize).into()
    }

    fn file(&self) -> Hash {
        let hash = chunk_hash(&Self::chunk());
        let mut tree = Tree::new();
        (0..self.len / Self::CHUNK).for_each(|_| tree.push(hash, Self::CHUNK));
        tree.into_file_hash()
    }
}

#[async_trait::async_trait]
impl Cas for Endless {
    async fn reconstruction(&self, _: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let range = range.unwrap();
        let range = range.start..range.end.min(self.len);
        let count = (range.start / Self::CHUNK..range.end.div_ceil(Self::CHUNK)).count();
        let xorb = chunk_hash(&Self::chunk());
        let term = Term { xorb, raw_len: Self::CHUNK as u32, chunks: 0..1 };
        let fetch = Fetch { xorb, chunks: 0..1, url: "u".into(), bytes: 0..Self::CHUNK + 8 };
        Ok(Reconstruction { skip: range.start % Self::CHUNK, terms: vec![term; count], fetches: vec![fetch] })
    }

    fn fetch<'a>(&'a self, _: &'a str, _: Range<u64>) -> DataStream<'a> {
        let header = ChunkHeader { stored_len: 131_072, scheme: Scheme::None, raw_len: 131_072 };
        stream::iter([Ok(Bytes::copy_from_slice(&header.to_bytes())), Ok(Self::chunk())]).boxed()
    }

    async fn put_xorb(&self, _: &Hash, _: crate::Body) -> Result<bool, Error> {
        Err(Error::Unauthorized)
    }

    async fn put_shard(&self, _: Bytes) -> Result<(), Error> {
        Err(Error::Unauthorized)
    }

    async fn query_chunk(&self, _: &Hash) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }
}

/// Counts what is written and where it ends.
#[derive(Default)]
struct Counter(AtomicU64, AtomicU64);

impl Place for Counter {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.1.fetch_max(offset + bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test]
async fn huge_file_is_placed_by_windows() {
    let cas = Arc::new(Endless { len: 8 << 30, asked: AtomicUsize::new(0) });
    let counter = Arc::new(Counter::default());
    let downloader = Downloader::new(cas.clone(), Options::default());
    downloader.download_to(&cas.file(), 8 << 30, counter.clone()).await.unwrap();
    assert_eq!((counter.0.load(Ordering::Relaxed), counter.1.load(Ordering::Relaxed)), (8 << 30, 8 << 30));
    assert_eq!(cas.asked.load(Ordering::Relaxed), 8);
}

#[tokio::test]
async fn end_of_a_file_of_a_tebibyte_is_read() {
    let cas = Arc::new(Endless { len: 1 << 40, asked: AtomicUsize::new(0) });
    let downloader = Downloader::new(cas, Options::default());
    let range = (1 << 40) - 300_000..1 << 40;
    let chunk = Endless::chunk();
    let expected = [&chunk[..], &chunk, &chunk].concat();
    let expected = &expected[expected.len() - 300_000..];
    assert!(downloader.read(&Hash([1; 32]), range.clone()).await.unwrap() == expected);
    assert!(streamed(&downloader, Hash([1; 32]), range).await.unwrap() == expected);
}
