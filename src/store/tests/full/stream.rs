//! Streams of objects: their content, and the memory, requests and tasks that they use.

use super::*;
use crate::store::object::{AHEAD, WINDOW};
use crate::store::source::{Ends, open_over};
use crate::store::{ByteStream, Object};
use crate::xet::cas::DataStream;
use crate::xet::reconstruction::Reconstruction;
use crate::xet::{self, Body, Cas};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::Semaphore;

const RECORD: u64 = 65_536;

/// An object in memory, with the default stream of [`Object`].
struct InMemory(Vec<u8>);

#[async_trait]
impl Object for InMemory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let from = (offset as usize).min(self.0.len());
        Ok(Bytes::copy_from_slice(&self.0[from..from.saturating_add(len).min(self.0.len())]))
    }
}

async fn collected(object: &Arc<dyn Object>, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = object.clone().stream(range).try_collect().await?;
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    Ok(pieces.concat())
}

/// Positions close to the edges of records and windows, and others.
fn position() -> impl Strategy<Value = u64> {
    let edges = (0..24_u64, 0..7_u64).prop_map(|(record, near)| (record * RECORD + near).saturating_sub(3));
    let windows = (0..2_u64, 0..7_u64).prop_map(|(window, near)| ((1 << 20 << window) + near).saturating_sub(3));
    prop_oneof![edges, windows, 0..1_700_000_u64]
}

#[test]
fn streamed_ranges_equal_read_ranges() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (objects, _stack) = runtime.block_on(async {
        let stack = Stack::new().await;
        let mut views = vec![stack.plain().await, stack.of_format(Format::V1).await];
        let options = || stack.options(Some(counting_keys()));
        views.push(stack.open(OpenOptions { padding: Padding::Padme, ..options() }).await);
        let disk_cache = Some(DiskCacheOptions { mode: CacheMode::File, max_bytes: 1 << 30 });
        views.push(stack.open(OpenOptions { disk_cache, ..options() }).await);
        let mut objects: Vec<(Arc<dyn Object>, Vec<u8>)> = Vec::new();
        for (i, view) in views.into_iter().enumerate() {
            for len in [0, 1, RECORD - 1, RECORD, RECORD + 1, 20 * RECORD + 7] {
                let (at, content) = (format!("{i} {len}"), bytes(len + 1, len as usize));
                write(&*view, &at, &content).await;
                objects.push((view.open(&version(&*view, &at).await.0).await.unwrap(), content));
            }
        }
        let content = bytes(8, 1_600_000);
        objects.push((Arc::new(InMemory(content.clone())), content));
        (objects, stack)
    });
    let ranges = (0..objects.len(), position(), position());
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let compared = runner.run(&ranges, |(index, one, other)| {
        let (object, content) = &objects[index];
        let range = one.min(other)..one.max(other);
        let len = (range.end - range.start) as usize;
        runtime.block_on(async {
            let streamed = collected(object, range.clone()).await.unwrap();
            assert!(streamed == object.read(range.start, len).await.unwrap(), "{range:?} of {}", object.len());
            let (from, to) = (range.start.min(object.len()), range.end.min(object.len()));
            assert!(streamed == content[from as usize..to as usize]);
        });
        Ok(())
    });
    compared.unwrap();
}

#[tokio::test]
async fn damage_is_delivered_in_order_and_ends_stream() {
    let stack = Stack::new().await;
    // With a file cache, many records arrive in one piece.
    let disk_cache = Some(DiskCacheOptions { mode: CacheMode::File, max_bytes: 1 << 30 });
    let cached = OpenOptions { disk_cache, ..stack.options(Some(counting_keys())) };
    for view in [stack.keyed().await, stack.open(cached).await] {
        let content = bytes(9, 9 * 65_536 - 10);
        write(&*view, "f", &content).await;
        let (stored, _) = version(&*view, "f").await;
        let key = stack.keys().await.pop().unwrap();
        let mut container = read(&*stack.plain().await, &key).await;
        container[HEADER_LEN + 5 * RECORD_LEN + 1000] ^= 1;
        let hash = stack.raw(&key, &container).await;
        let object = view.open(&Version { id: hash.into(), ..stored }).await.unwrap();
        for from in [0, 1, 3 * 65_536 - 1, 5 * 65_536, 5 * 65_536 + 9] {
            let mut stream = object.clone().stream(from as u64..u64::MAX);
            let mut delivered = Vec::new();
            let error = loop {
                match stream.next().await.expect("it doesn't end without the error") {
                    Ok(piece) => delivered.extend_from_slice(&piece),
                    Err(error) => break error,
                }
            };
            assert!(error.is_integrity(), "{error}");
            assert!(delivered == content[from..from.max(5 * 65_536)]);
            assert!(stream.next().await.is_none());
        }
        assert!(collected(&object, 6 * 65_536..u64::MAX).await.unwrap() == content[6 * 65_536..]);
        // The last byte before the damage doesn't need the damaged record.
        assert!(collected(&object, 0..5 * 65_536).await.unwrap() == content[..5 * 65_536]);
        done(&*view, delete("f")).await;
    }
}

/// A CAS that counts fetched bytes, and answers a request for data only if there is a permit.
struct Counting {
    inner: Arc<dyn Cas>,
    /// Bytes delivered.
    fetched: AtomicU64,
    /// Requests for data in progress.
    live: AtomicUsize,
    permits: Semaphore,
}

struct Live<'a>(&'a AtomicUsize);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Cas for Counting {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, xet::Error> {
        self.inner.reconstruction(file, range).await
    }

    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        self.live.fetch_add(1, Ordering::SeqCst);
        let live = Live(&self.live);
        let data = futures::stream::once(async move {
            self.permits.acquire().await.unwrap().forget();
            self.inner.fetch(url, bytes)
        });
        let counted = data.flatten().inspect_ok(move |piece| {
            let _live = &live;
            self.fetched.fetch_add(piece.len() as u64, Ordering::SeqCst);
        });
        counted.boxed()
    }

    async fn put_xorb(&self, hash: &Hash, body: Body) -> Result<bool, xet::Error> {
        self.inner.put_xorb(hash, body).await
    }

    async fn put_shard(&self, body: Bytes) -> Result<(), xet::Error> {
        self.inner.put_shard(body).await
    }

    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, xet::Error> {
        self.inner.query_chunk(chunk).await
    }
}

async fn counted(stack: &Stack, keys: Option<Arc<Keys>>, len: usize) -> (Arc<Counting>, Arc<dyn Object>) {
    let hub = stack.endpoint.client();
    let id = crate::hub::require_bucket(&*hub, &bucket(), true).await.unwrap();
    let tokens = crate::hub::client::bucket_tokens(hub.clone(), id.clone());
    let inner = Arc::new(HttpCas::new(stack.endpoint.http(), tokens, http::Options::default()));
    let (fetched, live, permits) = (AtomicU64::new(0), AtomicUsize::new(0), Semaphore::new(1 << 20));
    let cas = Arc::new(Counting { inner, fetched, live, permits });
    let ends = Ends { hub, bucket: id.clone(), cas: cas.clone(), blobs: None, identity: "test".into(), endpoint: None };
    let source = Source::Bucket { id, prefix: String::new() };
    let options = OpenOptions { keys, create: true, ..OpenOptions::default() };
    let view = open_over(ends, &source, options).await.unwrap().view;
    write(&*view, "f", &bytes(3, len)).await;
    let object = view.open(&version(&*view, "f").await.0).await.unwrap();
    cas.fetched.store(0, Ordering::SeqCst);
    (cas, object)
}

/// Waits until a condition holds. If it never does, the time limit of the test ends it.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn first_piece(stream: &mut ByteStream) -> usize {
    stream.next().await.unwrap().unwrap().len()
}

#[tokio::test]
async fn unread_stream_fetches_bounded_part_of_range() {
    let len = 24 << 20;
    for keys in [None, Some(counting_keys())] {
        let stack = Stack::new().await;
        let (cas, object) = counted(&stack, keys, len).await;
        let mut stream = object.clone().stream(0..u64::MAX);
        let mut read = first_piece(&mut stream).await;
        // Windows of 1, 2 and 4 MiB, and the 4 MiB of the next.
        let fetched = || cas.fetched.load(Ordering::SeqCst);
        until(|| fetched() >= 7 << 20 && cas.live.load(Ordering::SeqCst) == 0).await;
        // Chunks across the edges of windows are fetched twice.
        let overlap = 2 << 20;
        assert!(fetched() <= (AHEAD as u64 + 1) * WINDOW + overlap, "{} bytes", fetched());
        while read < 12 << 20 {
            read += first_piece(&mut stream).await;
            let held = fetched().saturating_sub(read as u64);
            assert!(held <= (AHEAD as u64 + 1) * WINDOW + overlap, "{held} bytes ahead");
        }
        let rest: Vec<Bytes> = stream.try_collect().await.unwrap();
        assert_eq!(read + rest.iter().map(Bytes::len).sum::<usize>(), len);
    }
}

#[tokio::test]
async fn dropped_stream_ends_its_requests() {
    for keys in [None, Some(counting_keys())] {
        let stack = Stack::new().await;
        let (cas, object) = counted(&stack, keys, 9 << 20).await;
        cas.permits.forget_permits(usize::MAX);
        let mut stream = object.clone().stream(0..u64::MAX);
        tokio::select! {
            _ = stream.next() => panic!("there are no data"),
            () = until(|| cas.live.load(Ordering::SeqCst) > 0) => {}
        }
        drop(stream);
        until(|| cas.live.load(Ordering::SeqCst) == 0).await;
        assert_eq!(Arc::strong_count(&object), 1);
    }
}

#[tokio::test]
async fn stream_outlives_deadline_of_reader() {
    let stack = Stack::new().await;
    let (cas, object) = counted(&stack, Some(counting_keys()), 3 << 20).await;
    cas.permits.forget_permits(usize::MAX);
    let mut stream = object.stream(0..u64::MAX);
    let hurried = crate::store::deadline::within(Duration::from_millis(50), async {
        crate::store::deadline::timely(stream.next()).await.is_none()
    });
    assert!(hurried.await, "there are no data");
    cas.permits.add_permits(1 << 10);
    let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 3 << 20);
}
