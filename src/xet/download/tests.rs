//! Downloads against [`MemoryCas`], honest and sabotaged.

use super::*;
use crate::xet::compression::Policy;
use crate::xet::fault::{Call, Fault, Saboteur};
use crate::xet::memory::MemoryCas;
use crate::xet::testdata::{self, Input};
use crate::xet::upload::{self, UploadSession};
use proptest::prelude::*;

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
    Options { window, ahead }
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
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (cas, file) = stored_alone(&data, Policy::Auto).await;
            let downloader = Downloader::new(cas, options(window, ahead));
            assert!(downloader.read(&file, range.clone()).await.unwrap() == data[a..b]);
            assert!(streamed(&downloader, file, range).await.unwrap() == data[a..b]);
            let mut sink = Vec::new();
            downloader.download(&file, data.len() as u64, &mut sink).await.unwrap();
            assert!(sink == data);
        });
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
    let whole = testdata::random(6, 2_000_000);
    let chunks = testdata::chunks(&whole);
    let parts = [&chunks[..5], &chunks[10..20]].concat().concat();
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
    let asked = cas.calls().reconstructions.len();
    assert!((2..=3).contains(&asked), "{asked}");
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
