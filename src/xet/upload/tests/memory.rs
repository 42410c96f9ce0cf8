//! Memory is bounded, nobody waits for it for ever, and all of it comes back.

use super::*;
use crate::upload::blocks::{BLOCK, LEAST_MEMORY};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Longer than any of this takes; only reached by what would never end.
const FOR_EVER: Duration = Duration::from_secs(120);

fn least() -> Options {
    Options { memory: 0, ..Options::default() }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOR_EVER, work).await.expect("somebody waits for ever")
}

#[tokio::test]
async fn reading_stops_when_the_budget_is_used_up() {
    let cas = Arc::new(MemoryCas::default());
    let mut held = Saboteur::new(cas.clone());
    for nth in 0..20 {
        held = held.with(Call::PutXorb, nth, Fault::Hold);
    }
    let held = Arc::new(held);
    let session = Arc::new(UploadSession::new(held.clone(), least()));
    let data = testdata::random(1, 40 << 20);
    let adding = tokio::spawn({
        let (session, data) = (session.clone(), data.clone());
        async move { session.add(&data[..], Policy::Never).await }
    });
    let progress = session.progress();
    while session.pool.free() >= BLOCK || held.count(Call::PutXorb) < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(progress.read() <= LEAST_MEMORY as u64, "{progress:?}");
    (0..20).for_each(|_| held.release());
    let uploaded = in_time(adding).await.unwrap().unwrap();
    Arc::into_inner(session).unwrap().finish().await.unwrap();
    assert!(downloaded(&cas, &uploaded).await == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_files_at_once_share_the_least_memory() {
    let cas = Arc::new(MemoryCas::default());
    let session = UploadSession::new(cas.clone(), least());
    // Tiny ones, and ones with much that is carried over from block to block; every third with a late head.
    let files: Vec<_> = (0..150u64)
        .map(|seed| testdata::random(seed, if seed % 3 == 0 { 100 } else { BLOCK / 2 + 7000 * seed as usize }))
        .collect();
    let adds = files.iter().enumerate().map(async |(i, file)| {
        let reader = Trickle::new(file, 50_000);
        match i % 3 {
            1 => session.add_with_late_head(reader, |_| Ok(file[..70].to_vec()), Policy::Never).await,
            _ => session.add(reader, Policy::Auto).await,
        }
    });
    let uploaded = in_time(try_join_all(adds)).await.unwrap();
    let pool = session.pool.clone();
    in_time(session.finish()).await.unwrap();
    assert_eq!(pool.free(), LEAST_MEMORY);
    for (file, uploaded) in files.iter().zip(&uploaded) {
        assert_eq!(*uploaded, expected(file));
        assert!(downloaded(&cas, uploaded).await == *file);
    }
}

#[tokio::test]
async fn files_that_wait_for_their_source_hold_up_nobody() {
    let cas = Arc::new(MemoryCas::default());
    let session = UploadSession::new(cas.clone(), least());
    let files: Vec<_> = (0..40u64).map(|seed| testdata::random(seed, BLOCK + 300_000)).collect();
    let (writers, readers): (Vec<_>, Vec<_>) = files.iter().map(|_| tokio::io::duplex(64 * 1024)).unzip();
    let adds = readers.into_iter().map(|reader| session.add(reader, Policy::Never));
    // All get a little, then the last is fed first: it needs blocks that those before it could hold.
    let feed = async {
        let mut writers: Vec<_> = writers.into_iter().zip(&files).collect();
        for (writer, file) in &mut writers {
            writer.write_all(&file[..1000]).await.unwrap();
        }
        for (mut writer, file) in writers.into_iter().rev() {
            writer.write_all(&file[1000..]).await.unwrap();
        }
    };
    let (uploaded, ()) = in_time(async { tokio::join!(try_join_all(adds), feed) }).await;
    in_time(session.finish()).await.unwrap();
    for (file, uploaded) in files.iter().zip(&uploaded.unwrap()) {
        assert!(downloaded(&cas, uploaded).await == *file);
    }
}

#[tokio::test]
async fn few_new_chunks_among_known_ones_pin_no_blocks() {
    let cas = Arc::new(MemoryCas::default());
    let session = UploadSession::new(cas.clone(), Options { global_dedup: false, ..least() });
    let known = testdata::random(1, 2 << 20);
    session.add(&known[..], Policy::Never).await.unwrap();
    let before = session.pool.free();
    // 30 MiB, in each block of which there is one small new chunk.
    let files: Vec<_> = (0..15u64).map(|seed| [&known[..], &testdata::random(100 + seed, 9_000)].concat()).collect();
    for file in &files {
        in_time(session.add(&file[..], Policy::Never)).await.unwrap();
    }
    let held = before - session.pool.free();
    assert!(held < 15 * 150_000, "{held} bytes for 15 chunks");
    session.finish().await.unwrap();
    for file in &files {
        assert!(downloaded(&cas, &expected(file)).await == *file);
    }
}

#[tokio::test]
async fn dropped_add_and_dropped_session_give_everything_back() {
    let cas = Arc::new(MemoryCas::default());
    let session = UploadSession::new(cas.clone(), least());
    let data = testdata::random(1, 5 << 20);
    for steps in [1, 5, 20, 60] {
        let mut adding = Box::pin(session.add(Trickle::new(&data, 100_000), Policy::Auto));
        for _ in 0..steps {
            assert!((&mut adding).now_or_never().is_none());
            tokio::task::yield_now().await;
        }
    }
    // What was packed stays for those who come later; all else is free.
    let uploaded = session.add(&data[..], Policy::Never).await.unwrap();
    let pool = session.pool.clone();
    session.finish().await.unwrap();
    assert!(downloaded(&cas, &uploaded).await == data);
    // Blocking work of a dropped add ends by itself.
    in_time(async {
        while pool.free() < LEAST_MEMORY {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let hung =
        Arc::new(Saboteur::new(cas.clone()).with(Call::PutXorb, 0, Fault::Hang).with(Call::PutXorb, 1, Fault::Hang));
    let session = UploadSession::new(hung, least());
    let pool = session.pool.clone();
    session.add(&testdata::random(2, 8 << 20)[..], Policy::Never).await.unwrap();
    assert!(pool.free() < LEAST_MEMORY);
    drop(session);
    in_time(async {
        while pool.free() < LEAST_MEMORY {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn bodies_are_slices_of_what_was_read() {
    let session = UploadSession::new(Arc::new(MemoryCas::default()), Options::default());
    session.add(&testdata::random(1, 3 << 20)[..], Policy::Never).await.unwrap();
    let (_, _, body) = session.packer.lock().await.cut();
    // A header before each payload; and payloads follow each other in memory, but for the chunks carried over.
    let payloads: Vec<_> = body.pieces().iter().skip(1).step_by(2).map(|piece| piece.as_ptr_range()).collect();
    let apart = payloads.windows(2).filter(|pair| pair[0].end != pair[1].start).count();
    assert!(payloads.len() > 30 && apart <= 3, "{apart} of {}", payloads.len());
}

#[tokio::test]
async fn progress_counts_every_byte_once() {
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    let progress = session.progress();
    let data = testdata::random(1, 5 << 20);
    for _ in 0..2 {
        session.add(&data[..], Policy::Never).await.unwrap();
    }
    session.finish().await.unwrap();
    let len = data.len() as u64;
    assert_eq!((progress.read(), progress.sent()), (2 * len, cas.stored() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_any_size_gives_the_same_files() {
    let files = [testdata::random(1, 9 << 20), testdata::text(20 << 20), testdata::random(2, 7 << 20)];
    for memory in [0, 20 << 20, 40 << 20, 1 << 30] {
        let cas = Arc::new(MemoryCas::default());
        let session = UploadSession::new(cas.clone(), Options { memory, ..Options::default() });
        let adds = files.iter().map(|file| session.add(&file[..], Policy::Auto));
        let uploaded = in_time(try_join_all(adds)).await.unwrap();
        in_time(session.finish()).await.unwrap();
        for (file, uploaded) in files.iter().zip(&uploaded) {
            assert!(downloaded(&cas, uploaded).await == *file);
        }
    }
}
