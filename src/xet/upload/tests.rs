//! Upload sessions against [`MemoryCas`], which checks what a server checks.

mod dedup;
mod flush;
mod memory;

use super::blocks::ROOM;
use super::content::tests::Trickle;
use super::*;
use crate::download::{self, Downloader};
use crate::fault::{Call, Fault, Saboteur};
use crate::memory::MemoryCas;
use crate::merkle::file_hash;
use crate::testdata::{self, Input};
use crate::xorb::{CHUNK_HEADER_LEN, MAX_CHUNKS, MAX_RAW};
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use proptest::prelude::*;

fn session(cas: &Arc<MemoryCas>) -> UploadSession {
    UploadSession::new(cas.clone(), Options::default())
}

/// The file hash by the whole file at once.
fn expected(data: &[u8]) -> Uploaded {
    let chunks: Vec<_> =
        testdata::chunks(data).iter().map(|chunk| (crate::hash::chunk_hash(chunk), chunk.len() as u64)).collect();
    Uploaded { hash: file_hash(&chunks), len: data.len() as u64 }
}

async fn upload(cas: &Arc<MemoryCas>, files: &[&[u8]], policy: Policy) -> Vec<Uploaded> {
    let session = session(cas);
    let mut uploaded = Vec::new();
    for file in files {
        uploaded.push(session.add(*file, policy).await.unwrap());
    }
    session.finish().await.unwrap();
    uploaded
}

async fn downloaded(cas: &Arc<MemoryCas>, file: &Uploaded) -> Vec<u8> {
    let downloader = Downloader::new(cas.clone(), download::Options::default());
    let mut sink = Vec::new();
    downloader.download(&file.hash, file.len, &mut sink).await.unwrap();
    sink
}

fn inputs() -> impl Strategy<Value = Input> {
    // Around: a chunk's limits, a batch, a batch and what is carried over it.
    let edges = [0, 1, 8_192, 65_536, 131_072, 262_144, 1 << 20, (1 << 20) + 131_072, 2 << 20, 3 << 20];
    let len = (prop::sample::select(edges.to_vec()), -2i64..=2).prop_map(|(edge, off)| (edge + off).max(0) as usize);
    let leaf = prop_oneof![
        (0u64..4, len.clone()).prop_map(|(seed, len)| Input::Splitmix64 { seed, len }),
        (0u64..2, len.clone()).prop_map(|(seed, len)| Input::Floats { seed, count: len / 4 }),
        len.clone().prop_map(|len| Input::Text { len }),
        len.prop_map(|len| Input::Fill { byte: 7, len }),
    ];
    prop_oneof![
        3 => leaf.clone(),
        1 => (leaf.clone(), 2usize..4).prop_map(|(of, times)| Input::Repeat { times, of: of.into() }),
        1 => prop::collection::vec(leaf, 2..4).prop_map(|parts| Input::Concat { parts }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_was_uploaded_is_what_is_downloaded(
        files in prop::collection::vec(inputs(), 1..5), never: bool, trickle in 1usize..200_000, xorbs_in_flight in 1usize..3,
    ) {
        let files: Vec<_> = files.iter().map(Input::bytes).collect();
        let policy = if never { Policy::Never } else { Policy::Auto };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        runtime.block_on(async {
            let cas = Arc::new(MemoryCas::default());
            let session = UploadSession::new(cas.clone(), Options { xorbs_in_flight, ..Options::default() });
            let adds = files.iter().map(|file| session.add(Trickle::new(file, trickle), policy));
            let uploaded = try_join_all(adds).await.unwrap();
            session.finish().await.unwrap();
            for (file, uploaded) in files.iter().zip(&uploaded) {
                assert_eq!(*uploaded, expected(file));
                assert!(downloaded(&cas, uploaded).await == *file);
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn head_filled_in_late_gives_the_file_with_it(
        content in inputs(), head in prop::collection::vec(any::<u8>(), 0..100), longest: bool,
    ) {
        let head = if longest { head.into_iter().cycle().take(MAX_LATE_HEAD).collect() } else { head };
        let content = content.bytes();
        let whole = [&head[..], &content].concat();
        let placeholders = [&vec![0; head.len()][..], &content].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let cas = Arc::new(MemoryCas::default());
            let session = session(&cas);
            let reader = Trickle::new(&placeholders, 300_000);
            let asked = |reader: &mut Trickle<'_>| {
                assert!(reader.is_at_end());
                Ok(head.clone())
            };
            let uploaded = session.add_with_late_head(reader, asked, Policy::Auto).await.unwrap();
            session.finish().await.unwrap();
            assert_eq!(uploaded, expected(&whole));
            assert!(downloaded(&cas, &uploaded).await == whole);
        });
    }
}

#[tokio::test]
async fn late_head_longer_than_its_room_is_an_error() {
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    for (content, head) in [(0, 1), (69, 70), (100_000, MAX_LATE_HEAD + 1)] {
        let content = testdata::random(1, content);
        let added = session.add_with_late_head(&content[..], |_| Ok(vec![0; head]), Policy::Never).await;
        assert!(matches!(added, Err(Error::Io(error)) if error.kind() == io::ErrorKind::InvalidInput));
    }
}

#[tokio::test]
async fn empty_file_has_the_zero_hash_and_is_registered() {
    let cas = Arc::new(MemoryCas::default());
    let uploaded = upload(&cas, &[b"", b""], Policy::Auto).await;
    assert_eq!(uploaded, [Uploaded { hash: Hash::ZERO, len: 0 }; 2]);
    assert_eq!(cas.segments(&Hash::ZERO), Some(vec![]));
    assert!(cas.calls().xorbs.is_empty());
}

#[tokio::test]
async fn session_without_files_sends_nothing() {
    let cas = Arc::new(MemoryCas::default());
    session(&cas).finish().await.unwrap();
    assert_eq!(cas.calls().shards, 0);
}

#[tokio::test]
async fn small_files_share_a_xorb() {
    let cas = Arc::new(MemoryCas::default());
    let uploaded = upload(&cas, &[b"one", b"two", b"three"], Policy::Auto).await;
    let calls = cas.calls();
    assert_eq!((calls.xorbs.len(), calls.shards), (1, 1));
    assert_eq!(downloaded(&cas, &uploaded[2]).await, b"three");
}

#[tokio::test]
async fn never_stores_as_it_is_and_auto_compresses() {
    let text = testdata::text(3_000_000);
    let stored = async |policy| {
        let cas = Arc::new(MemoryCas::default());
        upload(&cas, &[&text], policy).await;
        cas.stored()
    };
    assert_eq!(stored(Policy::Never).await, text.len() + CHUNK_HEADER_LEN * testdata::chunks(&text).len());
    assert!(stored(Policy::Auto).await < text.len() / 2);
}

#[tokio::test]
async fn repeated_content_is_stored_once() {
    let data = testdata::random(1, 5_000_000);
    let once = Arc::new(MemoryCas::default());
    upload(&once, &[&data], Policy::Never).await;
    let twice = Arc::new(MemoryCas::default());
    let uploaded = upload(&twice, &[&data, &data[..], &[&data[..], b"tail"].concat()], Policy::Never).await;
    // The tail changes the last chunk.
    assert!(twice.stored() < once.stored() + 200_000);
    assert!(twice.segments(&uploaded[2].hash).unwrap().len() <= 2);
}

#[tokio::test]
async fn file_of_scattered_repeats_is_not_fragmented_without_end() {
    let original = testdata::random(2, 40 << 20);
    let chunks = testdata::chunks(&original);
    // Whole chunks in another order stay the same chunks, but no run of them is longer than one.
    let chunks = &chunks[..chunks.len() - 1];
    let shuffled: Vec<u8> = (0..chunks.len()).flat_map(|i| chunks[i * 11 % chunks.len()]).copied().collect();
    assert!(!chunks.len().is_multiple_of(11) && chunks.len() > 300, "{}", chunks.len());
    let cas = Arc::new(MemoryCas::default());
    let uploaded = upload(&cas, &[&original, &shuffled], Policy::Never).await;
    let terms = cas.segments(&uploaded[1].hash).unwrap().len();
    // Without a guard there would be as many terms as chunks; without dedup, one.
    assert!((100..=128 + chunks.len() / 4).contains(&terms), "{terms} terms for {} chunks", chunks.len());
    assert!(downloaded(&cas, &uploaded[1]).await == shuffled);
}

#[tokio::test]
async fn xorbs_are_cut_below_their_limit_and_files_span_them() {
    let data = testdata::random(3, MAX_RAW + (3 << 20));
    let cas = Arc::new(MemoryCas::default());
    let session = UploadSession::new(cas.clone(), Options { memory: 256 << 20, ..Options::default() });
    let uploaded = session.add(&data[..], Policy::Never).await.unwrap();
    session.finish().await.unwrap();
    assert_eq!(cas.calls().xorbs.len(), 2);
    let segments = cas.segments(&uploaded.hash).unwrap();
    assert_eq!(segments.len(), 2);
    assert!(segments[0].raw_len as usize <= MAX_RAW && segments[0].raw_len as usize > MAX_RAW - (1 << 17));
    assert!(downloaded(&cas, &uploaded).await == data);
}

/// A file that is interrupted before each read and gives a few bytes at a time, up to where it fails.
struct Halting<'a> {
    rest: &'a [u8],
    step: usize,
    fails: bool,
    interrupted: bool,
}

impl std::io::Read for Halting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        if self.rest.is_empty() && self.fails {
            return Err(std::io::Error::other("the disk is on fire"));
        }
        let step = self.step.min(buffer.len());
        self.rest.read(&mut buffer[..step])
    }
}

#[tokio::test]
async fn a_file_read_by_threads_is_the_one_that_is_streamed() {
    let data: &'static [u8] = testdata::random(9, 3_500_000).leak();
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    let bad = Halting { rest: &data[..2_500_000], step: 100_000, fails: true, interrupted: false };
    assert!(matches!(session.add_file(bad, Policy::Never).await, Err(Error::Io(_))));
    for len in [0, 1, BLOCK - ROOM, data.len()] {
        for step in [70_000, usize::MAX] {
            let good = Halting { rest: &data[..len], step, fails: false, interrupted: false };
            let read = session.add_file(good, Policy::Never).await.unwrap();
            assert_eq!(read, session.add(&data[..len], Policy::Never).await.unwrap(), "{len} by {step}");
        }
    }
    let whole = session.add_file(data, Policy::Never).await.unwrap();
    session.finish().await.unwrap();
    assert!(downloaded(&cas, &whole).await == data);
}

#[tokio::test]
async fn failing_reader_leaves_the_session_usable() {
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    let good = testdata::random(4, 3 << 20);
    let bad = Trickle::new(&good, 100_000).failing_at(2_500_000);
    assert!(matches!(session.add(bad, Policy::Never).await, Err(Error::Io(_))));
    let uploaded = session.add(&good[..], Policy::Never).await.unwrap();
    session.finish().await.unwrap();
    assert!(downloaded(&cas, &uploaded).await == good);
}

#[tokio::test]
async fn failed_xorb_fails_the_session_and_no_shard_is_sent() {
    let cas = Arc::new(MemoryCas::default());
    let sabotaged = Saboteur::new(cas.clone()).with(Call::PutXorb, 0, Fault::Fail(Error::Forbidden("no".into())));
    let session = UploadSession::new(Arc::new(sabotaged), Options::default());
    session.add(&b"content"[..], Policy::Auto).await.unwrap();
    assert!(matches!(session.finish().await, Err(Error::Forbidden(_))));
    assert_eq!(cas.calls().shards, 0);
}

#[tokio::test]
async fn upload_whose_answer_was_lost_can_be_repeated() {
    let cas = Arc::new(MemoryCas::default());
    let lost = || Fault::Lose(Error::Network("cut off".to_owned()));
    let sabotaged = Arc::new(Saboteur::new(cas.clone()).with(Call::PutXorb, 0, lost()).with(Call::PutShard, 0, lost()));
    for attempt in 0..3 {
        let session = UploadSession::new(sabotaged.clone(), Options::default());
        let uploaded = session.add(&b"content"[..], Policy::Auto).await.unwrap();
        let finished = session.finish().await;
        assert_eq!(finished.is_ok(), attempt == 2, "{finished:?}");
        if finished.is_ok() {
            assert_eq!(downloaded(&cas, &uploaded).await, b"content");
        }
    }
}

#[tokio::test]
async fn after_a_failed_xorb_every_add_fails_alike() {
    let cas = Arc::new(MemoryCas::default());
    let sabotaged = Saboteur::new(cas).with(Call::PutXorb, 0, Fault::Fail(Error::Unauthorized));
    let session = UploadSession::new(Arc::new(sabotaged), Options { xorbs_in_flight: 1, ..Options::default() });
    fill_xorb(&session, 0).await;
    // The next one cuts the xorb and sends it.
    while session.add(&b"next xorb"[..], Policy::Never).await.is_ok() {
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert!(matches!(session.add(&b"more"[..], Policy::Never).await, Err(Error::Unauthorized)));
    }
    assert!(matches!(session.finish().await, Err(Error::Unauthorized)));
}

/// Adds as many tiny files as a xorb has chunks.
async fn fill_xorb(session: &UploadSession, nth: u64) {
    for i in 0..MAX_CHUNKS as u64 {
        let content = (nth << 32 | i).to_le_bytes();
        session.add(&content[..], Policy::Never).await.unwrap();
    }
}

#[tokio::test]
async fn add_waits_while_as_many_xorbs_are_sent_as_may_be() {
    let cas = Arc::new(MemoryCas::default());
    let held = Arc::new(Saboteur::new(cas.clone()).with(Call::PutXorb, 0, Fault::Hold));
    let session = UploadSession::new(held.clone(), Options { xorbs_in_flight: 1, ..Options::default() });
    fill_xorb(&session, 0).await;
    fill_xorb(&session, 1).await;
    // One xorb is on its way, another is full. A caller that gives up waiting breaks nothing.
    for _ in 0..3 {
        assert!(session.add(&b"one more"[..], Policy::Never).now_or_never().is_none());
    }
    held.release();
    let uploaded = session.add(&b"one more"[..], Policy::Never).await.unwrap();
    session.finish().await.unwrap();
    assert_eq!(downloaded(&cas, &uploaded).await, b"one more");
    assert_eq!(cas.calls().xorbs.len(), 3);
    for content in [0u64, 1 << 32 | 8191] {
        assert_eq!(downloaded(&cas, &expected(&content.to_le_bytes())).await, content.to_le_bytes());
    }
}

#[tokio::test]
async fn shard_waits_for_every_xorb() {
    let cas = Arc::new(MemoryCas::default());
    let held = Arc::new(Saboteur::new(cas.clone()).with(Call::PutXorb, 0, Fault::Hold));
    let session = UploadSession::new(held.clone(), Options::default());
    session.add(&b"content"[..], Policy::Never).await.unwrap();
    let mut finishing = std::pin::pin!(session.finish());
    for _ in 0..100 {
        assert!((&mut finishing).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!((held.count(Call::PutXorb), held.count(Call::PutShard)), (1, 0));
    held.release();
    finishing.await.unwrap();
    assert_eq!(held.count(Call::PutShard), 1);
}

#[tokio::test]
async fn dropped_session_stops_sending() {
    let cas = Arc::new(MemoryCas::default());
    let hung: Arc<dyn Cas> = Arc::new(Saboteur::new(cas).with(Call::PutXorb, 0, Fault::Hang));
    let options = Options { xorbs_in_flight: 1, global_dedup: false, ..Options::default() };
    let session = UploadSession::new(hung.clone(), options);
    fill_xorb(&session, 0).await;
    session.add(&b"next xorb"[..], Policy::Never).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&hung), 3);
    drop(session);
    while Arc::strong_count(&hung) > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn concurrent_files_keep_long_terms() {
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    let files: Vec<_> = (10..14).map(|seed| testdata::random(seed, 6 << 20)).collect();
    let adds = files.iter().map(|file| session.add(Trickle::new(file, 65_536), Policy::Never));
    let uploaded = join_all(adds).await;
    session.finish().await.unwrap();
    for uploaded in uploaded {
        let segments = cas.segments(&uploaded.unwrap().hash).unwrap();
        // Six or seven batches, packed by twos.
        assert!(segments.len() <= 5, "a term per two batches at most: {}", segments.len());
    }
}
