//! What is stored already is not sent again, and nothing is taken for stored that isn't.

use super::*;
use crate::upload::dedup::is_eligible;

const PLAIN: [u8; 32] = [0; 32];
const KEY: [u8; 32] = [9; 32];

/// 6 MiB, of which no chunk but the first may be asked for.
fn content(mut seed: u64) -> Vec<u8> {
    loop {
        let data = testdata::random(seed, 6 << 20);
        if !testdata::chunks(&data).iter().any(|chunk| is_eligible(&crate::hash::chunk_hash(chunk))) {
            return data;
        }
        seed += 1000;
    }
}

async fn upload_with(cas: &Arc<MemoryCas>, file: &[u8], options: Options) -> (Uploaded, Report) {
    let session = UploadSession::new(cas.clone(), options);
    let uploaded = session.add(file, Policy::Never).await.unwrap();
    let report = session.finish().await.unwrap();
    assert_eq!(report.fresh + report.deduplicated, file.len() as u64);
    assert!(downloaded(cas, &uploaded).await == file);
    (uploaded, report)
}

fn keeping(dir: &tempfile::TempDir) -> Options {
    let local = LocalShards::open(dir.path().to_owned(), LocalLimits::default()).unwrap();
    Options { local: Some(local), ..Options::default() }
}

#[tokio::test]
async fn file_that_another_session_stored_is_not_sent_again() {
    for key in [PLAIN, KEY] {
        let cas = Arc::new(MemoryCas::default().answering(key));
        let data = content(1);
        upload_with(&cas, &data, Options::default()).await;
        cas.forget_calls();
        let (_, report) = upload_with(&cas, &data, Options::default()).await;
        assert_eq!((report.fresh, report.xorbs, report.shards), (0, 0, 1));
        assert_eq!(cas.calls().queries.len(), 1);
    }
}

#[tokio::test]
async fn file_changed_in_its_middle_sends_its_middle_only() {
    for key in [PLAIN, KEY] {
        let cas = Arc::new(MemoryCas::default().answering(key));
        let mut data = content(1);
        upload_with(&cas, &data, Options::default()).await;
        data[3 << 20] ^= 1;
        let (uploaded, report) = upload_with(&cas, &data, Options::default()).await;
        assert!(report.fresh < 400_000, "{report:?}");
        assert_eq!(cas.segments(&uploaded.hash).unwrap().len(), 3);
    }
}

#[tokio::test]
async fn without_global_dedup_nothing_is_asked_and_all_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let cas = Arc::new(MemoryCas::default().answering(PLAIN));
    for _ in 0..2 {
        let (_, report) = upload_with(&cas, &content(1), Options { global_dedup: false, ..keeping(&dir) }).await;
        assert_eq!(report.deduplicated, 0);
    }
    assert!(cas.calls().queries.is_empty());
}

#[tokio::test]
async fn local_shard_says_what_to_ask_for() {
    let data = content(1);
    // Another first chunk, and then the same chunks at other places.
    let moved = [&testdata::random(7, 300_000), &data[..]].concat();
    for (key, keeps) in [(PLAIN, false), (PLAIN, true), (KEY, true)] {
        let dir = tempfile::tempdir().unwrap();
        let cas = Arc::new(MemoryCas::default().answering(key));
        upload_with(&cas, &data, keeping(&dir)).await;
        let options = if keeps { keeping(&dir) } else { Options::default() };
        let (_, report) = upload_with(&cas, &moved, options).await;
        assert_eq!(report.fresh < 600_000, keeps, "{report:?}");
    }
}

#[tokio::test]
async fn answers_are_kept_and_say_what_to_ask_for() {
    let data = content(1);
    let moved = [&testdata::random(7, 300_000), &data[..]].concat();
    for key in [PLAIN, KEY] {
        let dir = tempfile::tempdir().unwrap();
        let cas = Arc::new(MemoryCas::default().answering(key));
        // Another client uploads it; ours sees it once, then meets parts of it.
        upload_with(&cas, &data, Options::default()).await;
        upload_with(&cas, &data, keeping(&dir)).await;
        let (_, report) = upload_with(&cas, &moved, keeping(&dir)).await;
        assert!(report.fresh < 600_000, "{report:?}");
    }
}

#[tokio::test]
async fn empty_store_at_the_old_address_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = content(1);
    for key in [None, Some(PLAIN), Some(KEY)] {
        // The folder knows the content from the stores before; this one has nothing.
        let cas = MemoryCas::default();
        let cas = Arc::new(match key {
            Some(key) => cas.answering(key),
            None => cas,
        });
        let (_, report) = upload_with(&cas, &data, keeping(&dir)).await;
        assert_eq!(report.deduplicated, 0);
    }
}

#[tokio::test]
async fn store_that_has_lost_some_of_it_gets_that_again() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (content(1), content(2));
    let both = [&one[..], &two[..]].concat();
    let before = Arc::new(MemoryCas::default().answering(PLAIN));
    upload_with(&before, &both, keeping(&dir)).await;
    // A new store has the beginning, under another xorb.
    let after = Arc::new(MemoryCas::default().answering(PLAIN));
    upload_with(&after, &one, Options::default()).await;
    let (_, report) = upload_with(&after, &both, keeping(&dir)).await;
    assert!(
        report.fresh > two.len() as u64 - 300_000 && report.deduplicated > one.len() as u64 - 300_000,
        "{report:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn question_that_fails_or_hangs_costs_dedup_only() {
    let damaged = || Fault::Fail(Error::Malformed { what: "shard", why: "x".into() });
    for fault in [Fault::Fail(Error::Unauthorized), Fault::Hang, damaged()] {
        let cas = Arc::new(MemoryCas::default().answering(PLAIN));
        let data = content(1);
        upload_with(&cas, &data, Options::default()).await;
        let sabotaged = Arc::new(Saboteur::new(cas.clone()).with(Call::QueryChunk, 0, fault));
        let session = UploadSession::new(sabotaged.clone(), Options::default());
        let uploaded = session.add(&data[..], Policy::Never).await.unwrap();
        assert_eq!(session.finish().await.unwrap().fresh, data.len() as u64);
        assert!(sabotaged.count(Call::QueryChunk) >= 1 && downloaded(&cas, &uploaded).await == data);
    }
}

#[tokio::test]
async fn questions_of_a_file_keep_their_distance() {
    // All zeros: one chunk over and over, then random ones.
    let cas = Arc::new(MemoryCas::default());
    let data = testdata::random(3, 60 << 20);
    upload_with(&cas, &data, Options::default()).await;
    let hashes: Vec<_> = testdata::chunks(&data).iter().map(|chunk| crate::hash::chunk_hash(chunk)).collect();
    let places: Vec<_> =
        cas.calls().queries.iter().map(|asked| hashes.iter().position(|hash| hash == asked).unwrap()).collect();
    assert_eq!(places[0], 0);
    assert!(places.iter().all(|&place| place == 0 || is_eligible(&hashes[place])));
    assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 256), "{places:?}");
}

#[tokio::test]
async fn small_files_are_not_asked_for() {
    let cas = Arc::new(MemoryCas::default().answering(PLAIN));
    for n in 0..20 {
        upload_with(&cas, &testdata::random(n, 50_000), Options::default()).await;
    }
    assert!(cas.calls().queries.is_empty());
}

#[tokio::test]
async fn content_of_this_session_is_not_asked_for() {
    let cas = Arc::new(MemoryCas::default().answering(PLAIN));
    let session = session(&cas);
    let data = content(1);
    for _ in 0..3 {
        session.add(&data[..], Policy::Never).await.unwrap();
    }
    let report = session.finish().await.unwrap();
    assert_eq!((report.fresh, report.deduplicated, report.files), (data.len() as u64, 2 * data.len() as u64, 3));
    assert_eq!(cas.calls().queries.len(), 1);
}
