//! A file's content as batches of whole chunks.
//!
//! A chunk that reaches over the end of a batch is carried into the next one, into room kept free before its data: chunks are contiguous
//! and only those bytes are copied.

use super::MAX_LATE_HEAD;
use crate::xet::Hash;
use crate::xet::chunker::{Chunker, MAX_CHUNK};
use crate::xet::compression::{Policy, Scheme, choose, compress};
use crate::xet::hash::chunk_hash;
use crate::xet::offload::offload;
use std::io;
use std::ops::Range;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes read before they are chunked: some 16 chunks, about 1 ms of work.
const BATCH: usize = 1024 * 1024;
/// Chunks that share the compression scheme chosen for the first of them (Xet spec, section 6).
const SCHEME_RUN: u64 = 32;

/// The reading side.
pub(super) struct Content<R> {
    reader: R,
    /// Taken while it is at work elsewhere.
    scanner: Option<Scanner>,
    /// Found, but not given out.
    rest: Option<Batch>,
    /// Read, but not scanned.
    next: Option<Buffer>,
    started: bool,
}

impl<R: AsyncRead + Send + Unpin> Content<R> {
    pub(super) fn new(reader: R, policy: Policy) -> Self {
        let scanner = Scanner { chunker: Chunker::new(), policy, scheme: Scheme::None, chunks: 0 };
        Self { reader, scanner: Some(scanner), rest: None, next: None, started: false }
    }

    /// The next chunks; `None` at the end. While they are being looked for, the bytes behind them are read. Not to be called again after an
    /// error or a dropped call.
    pub(super) async fn next(&mut self) -> io::Result<Option<Batch>> {
        if self.rest.is_some() {
            return Ok(self.rest.take());
        }
        if !self.started {
            self.started = true;
            self.next = Some(Buffer::first(&mut self.reader).await?);
        }
        let (Some(buffer), Some(mut scanner)) = (self.next.take(), self.scanner.take()) else { return Ok(None) };
        if buffer.is_empty() {
            return Ok(None);
        }
        let is_last = buffer.is_last;
        let scanning = offload(buffer.bytes.len(), move || {
            let batch = scanner.scan(buffer);
            (scanner, batch)
        });
        let reading = async { if is_last { Ok(None) } else { Buffer::following(&mut self.reader).await.map(Some) } };
        let ((scanner, (batch, carried)), following) = tokio::join!(scanning, reading);
        self.next = following?.map(|following| following.preceded_by(&batch.bytes[carried]));
        self.scanner = Some(scanner);
        Ok(Some(batch))
    }

    /// The next chunk alone; a batch of none at the end.
    pub(super) async fn next_chunk(&mut self) -> io::Result<Batch> {
        let mut batch = self.next().await?.unwrap_or_default();
        let first = batch.split_first();
        self.rest = Some(batch);
        Ok(first)
    }

    pub(super) fn reader(&mut self) -> &mut R {
        &mut self.reader
    }
}

/// Bytes of a file, `bytes[start..]`, of which the scanner knows those before `unseen`.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    unseen: usize,
    is_last: bool,
}

impl Buffer {
    /// The start of a file: takes no more memory than a small file needs.
    async fn first(reader: impl AsyncRead + Unpin) -> io::Result<Self> {
        Self::read(reader, Vec::new(), 0).await
    }

    /// Later bytes, with room before them.
    async fn following(reader: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(MAX_CHUNK + BATCH);
        bytes.resize(MAX_CHUNK, 0);
        Self::read(reader, bytes, MAX_CHUNK).await
    }

    async fn read(reader: impl AsyncRead + Unpin, mut bytes: Vec<u8>, start: usize) -> io::Result<Self> {
        let read = reader.take(BATCH as u64).read_to_end(&mut bytes).await?;
        Ok(Self { bytes, start, unseen: start, is_last: read < BATCH })
    }

    /// With the beginning of an unfinished chunk (always shorter than a whole one) put before it.
    fn preceded_by(mut self, carried: &[u8]) -> Self {
        self.start -= carried.len();
        self.bytes[self.start..self.unseen].copy_from_slice(carried);
        self
    }

    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }
}

/// Finds chunks and chooses how to compress them, in file order.
struct Scanner {
    chunker: Chunker,
    policy: Policy,
    /// Of the current run.
    scheme: Scheme,
    chunks: u64,
}

impl Scanner {
    /// The chunks that end in `buffer`, and what is left of it.
    fn scan(&mut self, buffer: Buffer) -> (Batch, Range<usize>) {
        let Buffer { bytes, mut start, mut unseen, is_last } = buffer;
        let mut chunks = Vec::with_capacity(2 * BATCH / MAX_CHUNK);
        while let Some(len) = self.chunker.next_boundary(&bytes[unseen..]) {
            unseen += len;
            chunks.push(self.found(&bytes, start..unseen));
            start = unseen;
        }
        if is_last && start < bytes.len() {
            chunks.push(self.found(&bytes, start..bytes.len()));
            start = bytes.len();
        }
        let carried = start..bytes.len();
        (Batch { bytes, chunks }, carried)
    }

    fn found(&mut self, bytes: &[u8], range: Range<usize>) -> (Range<usize>, Scheme) {
        if self.policy == Policy::Auto && self.chunks.is_multiple_of(SCHEME_RUN) {
            self.scheme = choose(&bytes[range.clone()]);
        }
        self.chunks += 1;
        (range, self.scheme)
    }
}

/// Some chunks of a file in order.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    chunks: Vec<(Range<usize>, Scheme)>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the first chunk out, if there is one.
    fn split_first(&mut self) -> Self {
        if self.chunks.is_empty() {
            return Self::default();
        }
        let (range, scheme) = self.chunks.remove(0);
        Self { bytes: self.bytes[range.clone()].to_vec(), chunks: vec![(0..range.len(), scheme)] }
    }

    /// Replaces the first bytes.
    pub(super) fn put_head(&mut self, head: &[u8]) -> io::Result<()> {
        let why = "the head filled in is longer than what was kept back for it";
        let room = self.bytes.get_mut(..head.len()).filter(|room| room.len() <= MAX_LATE_HEAD);
        room.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, why))?.copy_from_slice(head);
        Ok(())
    }

    /// Hashes and compresses.
    pub(super) fn prepare(self) -> Prepared {
        let Self { bytes, chunks } = self;
        let prepare = |(range, scheme): (Range<usize>, Scheme)| {
            let raw = &bytes[range.clone()];
            let mut packed = Vec::new();
            let scheme = match scheme {
                Scheme::None => Scheme::None,
                tried => compress(tried, raw, &mut packed),
            };
            Chunk { hash: chunk_hash(raw), range, scheme, packed }
        };
        let chunks = chunks.into_iter().map(prepare).collect();
        Prepared { bytes, chunks }
    }
}

/// Chunks ready to be packed.
pub(super) struct Prepared {
    bytes: Vec<u8>,
    chunks: Vec<Chunk>,
}

struct Chunk {
    hash: Hash,
    range: Range<usize>,
    scheme: Scheme,
    /// The compressed bytes, where there is a scheme.
    packed: Vec<u8>,
}

impl Prepared {
    pub(super) fn chunks(&self) -> Chunks<'_> {
        Chunks { bytes: &self.bytes, rest: &self.chunks }
    }
}

/// The chunks of a [`Prepared`] that are not packed yet.
#[derive(Clone, Copy)]
pub(super) struct Chunks<'a> {
    bytes: &'a [u8],
    rest: &'a [Chunk],
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct ChunkRef<'a> {
    pub(super) hash: Hash,
    pub(super) raw_len: u32,
    pub(super) scheme: Scheme,
    /// As it will lie in the xorb.
    pub(super) stored: &'a [u8],
}

impl<'a> Chunks<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn first(&self) -> Option<ChunkRef<'a>> {
        self.rest.first().map(|chunk| ChunkRef {
            hash: chunk.hash,
            raw_len: u32::try_from(chunk.range.len()).expect("a chunk has at most 128 KiB"),
            scheme: chunk.scheme,
            stored: if chunk.scheme == Scheme::None { &self.bytes[chunk.range.clone()] } else { &chunk.packed },
        })
    }

    pub(super) fn skip(mut self, count: usize) -> Self {
        self.rest = &self.rest[count..];
        self
    }

    /// Hashes of all, in order.
    pub(super) fn hashes(&self) -> impl Iterator<Item = Hash> {
        self.rest.iter().map(|chunk| chunk.hash)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::xet::testdata;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// A reader that gives a few bytes at a time, and is not ready every other time.
    pub(in crate::xet::upload) struct Trickle<'a> {
        rest: &'a [u8],
        step: usize,
        is_ready: bool,
        left_to_failure: usize,
    }

    impl<'a> Trickle<'a> {
        pub(in crate::xet::upload) fn new(data: &'a [u8], step: usize) -> Self {
            Self { rest: data, step, is_ready: false, left_to_failure: usize::MAX }
        }

        pub(in crate::xet::upload) fn is_at_end(&self) -> bool {
            self.rest.is_empty()
        }

        pub(in crate::xet::upload) fn failing_at(mut self, offset: usize) -> Self {
            self.left_to_failure = offset;
            self
        }
    }

    impl AsyncRead for Trickle<'_> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.is_ready = !self.is_ready;
            if !self.is_ready {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.left_to_failure == 0 {
                return Poll::Ready(Err(io::Error::other("the disk is on fire")));
            }
            let len = self.step.min(self.rest.len()).min(buf.remaining()).min(self.left_to_failure);
            let (piece, rest) = self.rest.split_at(len);
            buf.put_slice(piece);
            self.rest = rest;
            self.left_to_failure -= len;
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn batches_are_the_chunks_of_the_whole(seed: u64, len in 0usize..(5 * BATCH / 2), step in 1000usize..2 * BATCH) {
            let data = testdata::random(seed, len);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let mut content = Content::new(Trickle::new(&data, step), Policy::Never);
                let mut found = Vec::new();
                while let Some(batch) = content.next().await.unwrap() {
                    found.extend(batch.chunks.iter().map(|(range, _)| batch.bytes[range.clone()].to_vec()));
                }
                assert!(content.next().await.unwrap().is_none());
                found
            });
            prop_assert!(found == testdata::chunks(&data));
        }
    }

    #[test]
    fn scheme_is_chosen_once_per_run_and_never_for_ciphertext() {
        let (text, floats) = (testdata::text(BATCH), testdata::floats(1, BATCH / 4));
        let schemes = |policy| {
            let mut scanner = Scanner { chunker: Chunker::new(), policy, scheme: Scheme::None, chunks: 0 };
            let mut scan = |bytes: &[u8]| {
                let found: Vec<_> = (0..40).map(|_| scanner.found(bytes, 0..bytes.len()).1).collect();
                found
            };
            [scan(&text), scan(&floats)].concat()
        };
        let auto = schemes(Policy::Auto);
        // 40 chunks of text, then 40 of floats: the runs begin at 0, 32 and 64.
        assert!(auto[..64].iter().all(|&scheme| scheme == Scheme::Lz4));
        assert!(auto[64..].iter().all(|&scheme| scheme == Scheme::Bg4Lz4));
        assert!(schemes(Policy::Never).iter().all(|&scheme| scheme == Scheme::None));
    }
}
