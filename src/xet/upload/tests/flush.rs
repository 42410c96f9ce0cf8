//! Sessions whose files are registered while others are still being added.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_files_are_there_while_others_are_added() {
    let cas = Arc::new(MemoryCas::default());
    let session = Arc::new(UploadSession::new(cas.clone(), Options { memory: 0, ..Options::default() }));
    let writers = (0..12u64).map(|writer| {
        let (cas, session) = (cas.clone(), session.clone());
        tokio::spawn(async move {
            for round in 0..6 {
                let len = [10, 70_000, 3_000_000, 9_000_000][((writer + round) % 4) as usize];
                let data = testdata::random(100 * writer + round, len);
                let reader = Trickle::new(&data, 50_000);
                let uploaded = match writer % 2 {
                    0 => session.add(reader, Policy::Never).await.unwrap(),
                    _ => session.add_with_late_head(reader, |_| Ok(Vec::new()), Policy::Never).await.unwrap(),
                };
                session.flush().await.unwrap();
                assert!(downloaded(&cas, &uploaded).await == data);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let session = Arc::into_inner(session).unwrap();
    let shards = cas.calls().shards;
    session.finish().await.unwrap();
    assert_eq!(cas.calls().shards, shards, "nothing is left to register");
}

#[tokio::test]
async fn concurrent_flushes_share_their_work() {
    let saboteur = Saboteur::new(Arc::new(MemoryCas::default())).with(Call::PutShard, 0, Fault::Hold);
    let saboteur = Arc::new(saboteur);
    let session = UploadSession::new(saboteur.clone(), Options { global_dedup: false, ..Options::default() });
    let put = async |number: u64| {
        session.add(&testdata::random(number, 1000)[..], Policy::Never).await.unwrap();
        session.flush().await.unwrap();
    };
    let release = async {
        while saboteur.count(Call::PutShard) == 0 {
            tokio::task::yield_now().await;
        }
        // The others have time to come.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        saboteur.release();
    };
    tokio::join!(join_all((0..32).map(put)), release);
    // The first ones come at once, and the others while the shard of these is held.
    assert!(saboteur.count(Call::PutShard) <= 3 && saboteur.count(Call::PutXorb) <= 3);
}

#[tokio::test]
async fn failure_fails_the_flush_that_needs_it_and_all_later_ones() {
    for call in [Call::PutXorb, Call::PutShard] {
        let broken = || Fault::Fail(Error::Network("gone".into()));
        let cas = Arc::new(Saboteur::new(Arc::new(MemoryCas::default())).with(call, 1, broken()));
        let session = UploadSession::new(cas.clone(), Options { global_dedup: false, ..Options::default() });
        session.add(&b"first"[..], Policy::Never).await.unwrap();
        session.flush().await.unwrap();
        session.add(&b"second"[..], Policy::Never).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(session.flush().await, Err(Error::Network(_))), "{call:?}");
        }
        assert!(session.add(&b"third"[..], Policy::Never).await.is_err());
        assert_eq!(cas.count(Call::PutShard), if call == Call::PutXorb { 1 } else { 2 });
    }
}

#[tokio::test]
async fn flush_that_is_given_up_loses_nothing() {
    let inner = Arc::new(MemoryCas::default());
    for call in [Call::PutXorb, Call::PutShard] {
        let cas = Arc::new(Saboteur::new(inner.clone()).with(call, 0, Fault::Hold));
        let session = UploadSession::new(cas.clone(), Options { global_dedup: false, ..Options::default() });
        let data = testdata::random(5, 200_000);
        let uploaded = session.add(&data[..], Policy::Never).await.unwrap();
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), session.flush()).await;
        assert!(given_up.is_err());
        cas.release();
        session.flush().await.unwrap();
        assert!(downloaded(&inner, &uploaded).await == data);
    }
}

#[tokio::test]
async fn flush_of_nothing_sends_nothing() {
    let cas = Arc::new(MemoryCas::default());
    let session = session(&cas);
    session.flush().await.unwrap();
    session.add(&b"content"[..], Policy::Never).await.unwrap();
    session.flush().await.unwrap();
    session.flush().await.unwrap();
    assert_eq!((cas.calls().xorbs.len(), cas.calls().shards), (1, 1));
}
