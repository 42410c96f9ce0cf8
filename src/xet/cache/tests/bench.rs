//! What the cache costs, in figures. Ignored: they are to be looked at, not held to.
//!
//!     cargo test --release --lib xet::cache::tests::bench -- --ignored --nocapture --test-threads=1

use super::*;
use std::time::Instant;

/// 64 KiB, the length of most chunks.
fn full_chunk(xorb: u32, index: u32) -> (Hash, Bytes) {
    let mut bytes = vec![0; 64 << 10];
    blake3::Hasher::new().update(&xorb.to_le_bytes()).update(&index.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (chunk_hash(&bytes), bytes.into())
}

fn full_xorb(number: u32) -> Hash {
    chunk_hash(&number.to_le_bytes())
}

fn mib_per_s(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / since.elapsed().as_secs_f64()
}

#[tokio::test]
#[ignore = "a benchmark"]
async fn opening_with_150_000_entries_inside() {
    let mut rig = Rig::new(DEFAULT_MAX_BYTES * 2);
    rig.options.queue_bytes = 256 << 20;
    let cache = rig.open().await;
    let data = full_chunk(0, 0);
    let begun = Instant::now();
    for number in 0..150_000u32 {
        cache.insert(&full_xorb(number), 7, std::slice::from_ref(&data)).await;
        if number % 1000 == 999 {
            cache.settle().await;
        }
    }
    let total = cache.shared.store.total();
    println!("150,000 single chunks written: {:.0} MiB/s, {total} bytes in all", mib_per_s(total, begun));
    drop(cache);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..3 {
        let begun = Instant::now();
        let cache = ChunkCache::open_with(rig.options.clone(), rig.knobs()).unwrap();
        let opened = begun.elapsed();
        assert!(cache.chunks(&full_xorb(77_777), 7..8).await.is_some());
        println!("opened in {opened:?}; first chunk after {:?}", begun.elapsed());
        let begun = Instant::now();
        for number in (0..150_000).step_by(15) {
            assert!(cache.chunks(&full_xorb(number), 7..8).await.is_some());
        }
        println!("10,000 random chunks, one after the other: {:.1?} each", begun.elapsed() / 10_000);
    }
    let index =
        ["index.sqlite", "index.sqlite-wal"].map(|name| std::fs::metadata(rig.path().join(name)).unwrap().len());
    println!("index and log: {index:?} bytes");
    let begun = Instant::now();
    let knobs = Knobs { boot: "next".to_owned(), ..rig.knobs() };
    let cache = ChunkCache::open_with(rig.options.clone(), knobs).unwrap();
    let opened = begun.elapsed();
    cache.settle().await;
    println!("after a boot: opened in {opened:?}, compared with the files after {:?}", begun.elapsed());
    drop(cache);
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::fs::remove_file(rig.path().join("index.sqlite")).unwrap();
    let begun = Instant::now();
    let cache = ChunkCache::open_with(rig.options.clone(), rig.knobs()).unwrap();
    let opened = begun.elapsed();
    cache.settle().await;
    println!("without index: opened in {opened:?}, made again after {:?}", begun.elapsed());
    assert_eq!(cache.shared.store.total(), total);
}

#[tokio::test]
#[ignore = "a benchmark"]
async fn writing_and_reading_a_gib() {
    let mut rig = Rig::new(DEFAULT_MAX_BYTES);
    rig.options.queue_bytes = 2 << 30;
    let cache = rig.open().await;
    let chunks: Vec<_> = (0..1024).map(|index| full_chunk(0, index)).collect();
    let gib = 1u64 << 30;
    for (name, at_once) in [("one by one", 1), ("by 16 MiB", 256), ("whole xorbs", 1024)] {
        let begun = Instant::now();
        for number in 0..16 {
            // No more small runs than may wait.
            cache.settle().await;
            for (first, piece) in chunks.chunks(at_once).enumerate() {
                cache.insert(&full_xorb(number + at_once as u32 * 100), (first * at_once) as u32, piece).await;
            }
        }
        cache.settle().await;
        println!("written {name}: {:.0} MiB/s, {} files", mib_per_s(gib, begun), rig.entries().len());
        let begun = Instant::now();
        for number in 0..16 {
            for first in (0..1024).step_by(16) {
                assert!(cache.chunks(&full_xorb(number + at_once as u32 * 100), first..first + 16).await.is_some());
            }
        }
        println!("read by 1 MiB: {:.0} MiB/s", mib_per_s(gib, begun));
    }
}
