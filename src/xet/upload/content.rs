//! A file's content as batches of whole chunks.
//!
//! [`read`] and [`read_file`] fill blocks, a [`Scanner`] finds the chunks in them, one block after
//! the other; then they are hashed and compressed, several blocks at once, each by the thread that
//! has just seen its bytes. A chunk that reaches over the end of a block is carried into the room
//! before the data of the next one: chunks are contiguous and only those bytes are copied.

use super::MAX_LATE_HEAD;
use super::blocks::{BLOCK, Buffer, Pool, ROOM};
use super::progress::Progress;
use crate::Hash;
use crate::chunker::{Chunker, MAX_CHUNK};
use crate::compression::{Policy, Scheme, choose, compress};
use crate::hash::chunk_hash;
use crate::offload::offload_steps;
use futures::future::{BoxFuture, Either, FutureExt, ready};
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

/// Chunks that share the compression scheme chosen for the first of them (Xet spec, section 6).
const SCHEME_RUN: u64 = 32;
/// Bytes looked for while no block is held: a reader that has nothing to give needs none.
const PROBE: usize = 4 * 1024;

/// A block with bytes of a file, `buffer[ROOM..end]`.
pub(super) struct Filled {
    buffer: Buffer,
    end: usize,
    /// Whether the file ends with it.
    is_last: bool,
}

impl Filled {
    pub(super) fn len(&self) -> usize {
        self.end - ROOM
    }
}

/// A batch on its way, in the background.
pub(super) type Preparing = BoxFuture<'static, Prepared>;

/// Reads all of `reader` into blocks and hands on what becomes of them; the last batch, which may be empty, is marked.
/// Ends early when nobody receives any more. Gives the scanner back.
///
/// Holds a block only while `reader` gives bytes or nobody else wants it.
pub(super) async fn read<R>(
    reader: &mut R,
    scanner: Scanner,
    pool: &Arc<Pool>,
    progress: &Progress,
    batches: mpsc::Sender<Preparing>,
) -> io::Result<Scanner>
where
    R: AsyncRead + Send + Unpin,
{
    let mut probe = Vec::new();
    let mut scanned = Either::Left(ready(scanner));
    loop {
        let mut block = Filled { buffer: pool.block().await, end: ROOM + probe.len(), is_last: false };
        block.buffer.bytes[ROOM..block.end].copy_from_slice(&probe);
        probe.clear();
        if !fill(reader, pool, &mut block).await? {
            drop(block);
            probe.resize(PROBE, 0);
            let read = reader.read(&mut probe).await?;
            probe.truncate(read);
            continue;
        }
        progress.add_read(block.len());
        // The block before was scanned while this one was read.
        let mut scanner = scanned.await;
        let Ok(slot) = batches.reserve().await else { return Ok(scanner) };
        let (len, is_last) = (block.len(), block.is_last);
        let scan = move || {
            let batch = scanner.scan(block);
            (scanner, batch)
        };
        let (scanning, prepared) = offload_steps(len, scan, Batch::prepare);
        slot.send(prepared.boxed());
        if is_last {
            return Ok(scanning.await);
        }
        scanned = Either::Right(scanning);
    }
}

/// Reads until the block is full, the file ends, or the reader waits while somebody else waits for memory; `false`:
/// there was nothing to read before that.
async fn fill<R>(reader: &mut R, pool: &Pool, block: &mut Filled) -> io::Result<bool>
where
    R: AsyncRead + Send + Unpin,
{
    while block.end < BLOCK {
        let read = tokio::select! {
            biased;
            read = reader.read(&mut block.buffer.bytes[block.end..BLOCK]) => read?,
            () = pool.wanted() => return Ok(block.end > ROOM),
        };
        block.end += read;
        if read == 0 {
            block.is_last = true;
            break;
        }
    }
    Ok(true)
}

/// Does as [`read`], but reads on the threads that scan. When it is dropped a read under way ends first.
pub(super) async fn read_file<R>(
    mut reader: R,
    mut scanner: Scanner,
    pool: &Arc<Pool>,
    progress: &Progress,
    batches: mpsc::Sender<Preparing>,
) -> io::Result<Scanner>
where
    R: Read + Send + 'static,
{
    loop {
        let Ok(slot) = batches.reserve().await else { return Ok(scanner) };
        let buffer = pool.block().await;
        let scan = move || {
            let mut block = Filled { buffer, end: ROOM, is_last: false };
            let read = fill_all(&mut reader, &mut block).map(|()| (block.len(), block.is_last));
            let batch = scanner.scan(block);
            ((reader, scanner, read), batch)
        };
        let (scanning, prepared) = offload_steps(BLOCK, scan, Batch::prepare);
        slot.send(prepared.boxed());
        let read;
        (reader, scanner, read) = scanning.await;
        let (len, is_last) = read?;
        progress.add_read(len);
        if is_last {
            return Ok(scanner);
        }
    }
}

/// Reads until the block is full or the file ends.
fn fill_all(reader: &mut impl Read, block: &mut Filled) -> io::Result<()> {
    while block.end < BLOCK {
        match reader.read(&mut block.buffer.bytes[block.end..BLOCK]) {
            Ok(0) => {
                block.is_last = true;
                break;
            }
            Ok(read) => block.end += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Finds chunks and chooses how to compress them, in file order.
pub(super) struct Scanner {
    chunker: Chunker,
    policy: Policy,
    /// Of the current run.
    scheme: Scheme,
    chunks: u64,
    /// The beginning of a chunk, shorter than a whole one.
    carried: Vec<u8>,
    /// Whether the first chunk is kept back.
    keeps_first: bool,
    pub(super) first: Option<Kept>,
}

impl Scanner {
    pub(super) fn new(policy: Policy, keeps_first: bool) -> Self {
        let carried = Vec::new();
        Self { chunker: Chunker::new(), policy, scheme: Scheme::None, chunks: 0, carried, keeps_first, first: None }
    }

    /// The chunks that end in this block.
    pub(super) fn scan(&mut self, block: Filled) -> Batch {
        let Filled { mut buffer, end, is_last } = block;
        let mut start = ROOM - self.carried.len();
        buffer.bytes[start..ROOM].copy_from_slice(&self.carried);
        self.carried.clear();
        let bytes = &buffer.bytes[..end];
        let mut unseen = ROOM;
        let mut chunks = Vec::with_capacity(2 * BLOCK / MAX_CHUNK);
        while let Some(len) = self.chunker.next_boundary(&bytes[unseen..]) {
            unseen += len;
            chunks.extend(self.found(bytes, start..unseen));
            start = unseen;
        }
        if is_last && start < end {
            chunks.extend(self.found(bytes, start..end));
            start = end;
        }
        self.carried.extend_from_slice(&bytes[start..]);
        Batch { buffer, chunks, is_last }
    }

    fn found(&mut self, bytes: &[u8], range: Range<usize>) -> Option<(Range<usize>, Scheme)> {
        if self.policy == Policy::Auto && self.chunks.is_multiple_of(SCHEME_RUN) {
            self.scheme = choose(&bytes[range.clone()]);
        }
        self.chunks += 1;
        if self.chunks == 1 && self.keeps_first {
            self.first = Some(Kept { bytes: bytes[range].to_vec(), scheme: self.scheme });
            return None;
        }
        Some((range, self.scheme))
    }
}

/// The first chunk of a file, kept back until its first bytes are known.
pub(super) struct Kept {
    bytes: Vec<u8>,
    scheme: Scheme,
}

impl Kept {
    /// Fills in the first bytes; `None` for a file of none.
    pub(super) fn with_head(kept: Option<Self>, head: &[u8]) -> io::Result<Option<Self>> {
        let Some(mut kept) = kept else {
            return if head.is_empty() { Ok(None) } else { Err(too_long()) };
        };
        let room = kept.bytes.get_mut(..head.len()).filter(|room| room.len() <= MAX_LATE_HEAD);
        room.ok_or_else(too_long)?.copy_from_slice(head);
        Ok(Some(kept))
    }

    pub(super) async fn into_batch(self, pool: &Arc<Pool>) -> Batch {
        let range = 0..self.bytes.len();
        Batch { buffer: pool.adopt(self.bytes).await, chunks: vec![(range, self.scheme)], is_last: true }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the head filled in is longer than what was kept back for it")
}

/// Some chunks of a file in order.
pub(super) struct Batch {
    buffer: Buffer,
    chunks: Vec<(Range<usize>, Scheme)>,
    is_last: bool,
}

impl Batch {
    /// Uncompressed bytes.
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|(range, _)| range.len()).sum()
    }

    /// Hashes and compresses. Where a chunk shrinks, all are copied to a buffer as small as they
    /// need, and the block is free.
    pub(super) fn prepare(self) -> Prepared {
        let Self { buffer, chunks, is_last } = self;
        let (mut packed, mut shrunk) = (Vec::new(), Vec::new());
        let prepare = |(range, scheme): (Range<usize>, Scheme)| {
            let raw = &buffer.bytes[range.clone()];
            let (hash, raw_len) = (chunk_hash(raw), raw.len() as u32);
            if scheme != Scheme::None && compress(scheme, raw, &mut shrunk) == scheme {
                let stored = packed.len()..packed.len() + shrunk.len();
                packed.extend_from_slice(&shrunk);
                return Chunk { hash, raw_len, scheme, stored };
            }
            Chunk { hash, raw_len, scheme: Scheme::None, stored: range }
        };
        let mut chunks: Vec<Chunk> = chunks.into_iter().map(prepare).collect();
        if packed.is_empty() {
            return Prepared { buffer, chunks, is_last };
        }
        for chunk in chunks.iter_mut().filter(|chunk| chunk.scheme == Scheme::None) {
            let at = packed.len();
            packed.extend_from_slice(&buffer.bytes[chunk.stored.clone()]);
            chunk.stored = at..packed.len();
        }
        packed.shrink_to_fit();
        Prepared { buffer: buffer.replaced_by(packed), chunks, is_last }
    }
}

/// Chunks ready to be packed.
pub(super) struct Prepared {
    pub(super) buffer: Buffer,
    pub(super) chunks: Vec<Chunk>,
    /// Whether the file ends with them.
    pub(super) is_last: bool,
}

/// One of them.
#[derive(Clone)]
pub(super) struct Chunk {
    pub(super) hash: Hash,
    pub(super) raw_len: u32,
    pub(super) scheme: Scheme,
    /// Where it lies in the buffer, as it will lie in the xorb.
    pub(super) stored: Range<usize>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::testdata;
    use proptest::prelude::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// A reader that gives a few bytes at a time, and is not ready every other time.
    pub(in crate::upload) struct Trickle<'a> {
        rest: &'a [u8],
        step: usize,
        is_ready: bool,
        left_to_failure: usize,
    }

    impl<'a> Trickle<'a> {
        pub(in crate::upload) fn new(data: &'a [u8], step: usize) -> Self {
            Self { rest: data, step, is_ready: false, left_to_failure: usize::MAX }
        }

        pub(in crate::upload) fn is_at_end(&self) -> bool {
            self.rest.is_empty()
        }

        pub(in crate::upload) fn failing_at(mut self, offset: usize) -> Self {
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

    /// All chunks of a file, read through blocks as a session does.
    async fn found(reader: impl AsyncRead + Send + Unpin, pool: &Arc<Pool>) -> io::Result<Vec<Vec<u8>>> {
        let (sender, mut batches) = mpsc::channel(1);
        let progress = Progress::default();
        let mut reader = reader;
        let reading = read(&mut reader, Scanner::new(Policy::Never, false), pool, &progress, sender);
        let taking = async {
            let (mut found, mut has_ended) = (Vec::new(), false);
            while let Some(batch) = batches.recv().await {
                let batch = batch.await;
                assert!(!std::mem::replace(&mut has_ended, batch.is_last));
                found.extend(batch.chunks.iter().map(|chunk| batch.buffer.bytes[chunk.stored.clone()].to_vec()));
            }
            (found, has_ended)
        };
        let (read, (found, has_ended)) = futures::join!(reading, taking);
        let scanner = read?;
        assert!(scanner.carried.is_empty() && has_ended);
        Ok(found)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn batches_are_the_chunks_of_the_whole(seed: u64, len in 0usize..(5 * BLOCK / 2), step in 1000usize..2 * BLOCK) {
            let data = testdata::random(seed, len);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(found(Trickle::new(&data, step), &Pool::new(0))).unwrap();
            prop_assert!(found == testdata::chunks(&data));
        }
    }

    #[tokio::test]
    async fn block_is_given_up_while_its_reader_has_nothing_and_another_waits() {
        let pool = Pool::new(0);
        let data = testdata::random(1, 3 * BLOCK);
        let (client, mut server) = tokio::io::duplex(BLOCK);
        let finding = tokio::spawn({
            let pool = pool.clone();
            async move { found(client, &pool).await.unwrap() }
        });
        // It has read something, and waits for more with a block in hand.
        tokio::io::AsyncWriteExt::write_all(&mut server, &data[..1000]).await.unwrap();
        while pool.free() + BLOCK > super::super::blocks::LEAST_MEMORY {
            tokio::task::yield_now().await;
        }
        let all: Vec<_> = {
            let mut all = Vec::new();
            // The last of these can only be had if it lets go.
            for _ in 0..super::super::blocks::LEAST_MEMORY / BLOCK {
                all.push(pool.block().await);
            }
            all
        };
        drop(all);
        tokio::io::AsyncWriteExt::write_all(&mut server, &data[1000..]).await.unwrap();
        drop(server);
        assert!(finding.await.unwrap() == testdata::chunks(&data));
    }

    #[test]
    fn scheme_is_chosen_once_per_run_and_never_for_ciphertext() {
        let (text, floats) = (testdata::text(1 << 20), testdata::floats(1, 1 << 18));
        let schemes = |policy| {
            let mut scanner = Scanner::new(policy, false);
            let mut scan = |bytes: &[u8]| {
                let found: Vec<_> = (0..40).map(|_| scanner.found(bytes, 0..bytes.len()).unwrap().1).collect();
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

    #[tokio::test]
    async fn compressed_chunks_free_their_block_and_incompressible_ones_are_not_copied() {
        let pool = Pool::new(0);
        let prepared = async |content: Vec<u8>| {
            let mut buffer = pool.block().await;
            buffer.bytes[ROOM..ROOM + content.len()].copy_from_slice(&content);
            let (at, end) = (buffer.bytes.as_ptr(), ROOM + content.len());
            let batch = Scanner::new(Policy::Auto, false).scan(Filled { buffer, end, is_last: true });
            (batch.prepare(), at)
        };
        let (random, at) = prepared(testdata::random(1, 1 << 20)).await;
        assert_eq!(random.buffer.bytes.as_ptr(), at);
        drop(random);
        let before = pool.free();
        let (mixed, _) = prepared([testdata::text(1 << 19), testdata::random(1, 1 << 19)].concat()).await;
        let held = before - pool.free();
        assert!(held > 1 << 19 && held < 3 << 18, "{held}");
        assert!(mixed.chunks.iter().any(|chunk| chunk.scheme == Scheme::None));
        assert!(mixed.chunks.iter().any(|chunk| chunk.scheme != Scheme::None));
        for chunk in &mixed.chunks {
            let mut raw = Vec::new();
            let stored = &mixed.buffer.bytes[chunk.stored.clone()];
            crate::compression::decompress(chunk.scheme, stored, chunk.raw_len as usize, &mut raw).unwrap();
            assert_eq!(chunk_hash(&raw), chunk.hash);
        }
    }
}
