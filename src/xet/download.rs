//! Reading files from a CAS by range (Xet spec, 10.1 and 10.7).
//!
//! A reconstruction carries no chunk hashes: [`Downloader::read`] and [`Downloader::stream`] check structure and lengths only;
//! [`Downloader::download`] reads a whole file, recomputes every chunk hash and checks the file hash.
//!
//! Long ranges are read in windows. Each is reconstructed, fetched and decoded by a task of its own, so that one that waits for its consumer
//! holds neither a connection nor a permit of the CAS client; a dropped stream aborts them. Windows give whole chunks: one that lies across the
//! edge of two windows comes twice and is used once. Offsets are file bytes. Memory: `ahead + 1` windows and one xorb each at worst, and
//! usually no more than the windows themselves.

#[cfg(test)]
mod tests;
mod window;

use super::{Cas, Error, Hash, merkle::Tree};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use std::iter::successors;
use std::panic::resume_unwind;
use std::{ops::Range, sync::Arc, vec};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;
use window::{Chunk, fetch};

/// File bytes of the first window of a stream; later ones double up to [`Options::window`]. The first byte should come soon.
const FIRST_WINDOW: u64 = 1024 * 1024;

/// Limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// File bytes asked for in one reconstruction when streaming.
    pub window: u64,
    /// Windows fetched ahead of the consumer.
    pub ahead: usize,
}

impl Default for Options {
    /// 64 MiB ahead of the consumer, in four requests.
    fn default() -> Self {
        Self { window: 16 * 1024 * 1024, ahead: 4 }
    }
}

/// Reads files from one CAS. Cheap to clone.
#[derive(Clone)]
pub struct Downloader {
    cas: Arc<dyn Cas>,
    options: Options,
}

impl Downloader {
    /// A reader over `cas`.
    pub fn new(cas: Arc<dyn Cas>, options: Options) -> Self {
        Self { cas, options }
    }

    /// Exactly the bytes `range` of `file` (which the caller knows to exist), never fewer. The bytes are nobody else's, so
    /// [`Bytes::try_into_mut`] succeeds. It is one request, all of it in memory: for ranges of some MiB at most.
    pub async fn read(&self, file: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let too_long = |_| Error::Malformed { what: "range", why: "it is longer than memory".to_owned() };
        let len = usize::try_from(range.end - range.start).map_err(too_long)?;
        let chunks = fetch(&*self.cas, file, &range, false).await?;
        let mut bytes = BytesMut::with_capacity(len);
        let mut cursor = Cursor { at: range.start, end: range.end };
        for chunk in &chunks {
            bytes.extend_from_slice(&cursor.take(chunk)?);
        }
        Ok(bytes.freeze())
    }

    /// The same as an ordered stream of pieces, none of them empty, fetched ahead within bounds. It ends after the first error. Must be polled
    /// inside a Tokio runtime.
    pub fn stream(&self, file: Hash, range: Range<u64>) -> BoxStream<'static, Result<Bytes, Error>> {
        let cursor = Cursor { at: range.start, end: range.end };
        let pieces =
            Pieces { windows: self.windows(file, range, false).boxed(), chunks: Vec::new().into_iter(), cursor };
        stream::try_unfold(pieces, |mut pieces| async move { Ok(pieces.next().await?.map(|piece| (piece, pieces))) })
            .boxed()
    }

    /// A whole file of `len` bytes into `sink`, verified. On an error the sink holds a prefix that must be discarded.
    pub async fn download<W>(&self, file: &Hash, len: u64, mut sink: W) -> Result<(), Error>
    where
        W: AsyncWrite + Send + Unpin,
    {
        let mismatch = || Error::HashMismatch { what: "file", expected: *file };
        let mut windows = std::pin::pin!(self.windows(*file, 0..len, true));
        let mut tree = Tree::new();
        let mut at = 0;
        while let Some(chunks) = windows.try_next().await? {
            // A chunk across the edge came with the window before, too.
            let seen = at;
            for chunk in chunks.into_iter().skip_while(|chunk| chunk.end() <= seen) {
                if chunk.offset != at || chunk.end() > len {
                    return Err(mismatch());
                }
                at = chunk.end();
                tree.push(chunk.hash.ok_or_else(mismatch)?, chunk.bytes.len() as u64);
                sink.write_all(&chunk.bytes).await?;
            }
        }
        if at != len || tree.into_file_hash() != *file {
            return Err(mismatch());
        }
        sink.flush().await?;
        Ok(())
    }

    /// The chunks of `range` by windows, in order; `hashed`: with their hashes. Doesn't end at an error.
    fn windows(
        &self,
        file: Hash,
        range: Range<u64>,
        hashed: bool,
    ) -> impl Stream<Item = Result<Vec<Chunk>, Error>> + use<> {
        let cas = Arc::clone(&self.cas);
        let read = move |window: Range<u64>| {
            let cas = Arc::clone(&cas);
            let task = tokio::spawn(async move { fetch(&*cas, &file, &window, hashed).await });
            let task = AbortOnDropHandle::new(task);
            async move {
                task.await.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    Err(_) => {
                        Err(Error::Network("the download was cut short: the process is shutting down".to_owned()))
                    }
                })
            }
        };
        // The window that the consumer is at has left the buffer.
        stream::iter(windows(range, self.options.window)).map(read).buffered(self.options.ahead.max(1))
    }
}

/// Cuts `range` into windows of [`FIRST_WINDOW`] bytes, then twice as many each, up to `longest`.
fn windows(range: Range<u64>, longest: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let longest = longest.max(1);
    let window = move |start: u64, len: u64| {
        let end = start.saturating_add(len).min(range.end);
        (start < end).then_some((start..end, len))
    };
    let first = window(range.start, FIRST_WINDOW.min(longest));
    successors(first, move |(last, len)| window(last.end, len.saturating_mul(2).min(longest))).map(|(window, _)| window)
}

/// How far a reader of consecutive chunks has come.
struct Cursor {
    at: u64,
    end: u64,
}

impl Cursor {
    /// What `chunk` adds, if anything.
    fn take(&mut self, chunk: &Chunk) -> Result<Bytes, Error> {
        if chunk.offset > self.at {
            return Err(Error::Malformed {
                what: "reconstruction",
                why: "two answers contradict each other".to_owned(),
            });
        }
        let (from, to) = (self.at, chunk.end().min(self.end));
        if to <= from {
            return Ok(Bytes::new());
        }
        self.at = to;
        // Both lie in the chunk, which is in memory.
        Ok(chunk.bytes.slice((from - chunk.offset) as usize..(to - chunk.offset) as usize))
    }
}

/// State of a stream.
struct Pieces {
    windows: BoxStream<'static, Result<Vec<Chunk>, Error>>,
    /// Of the current window.
    chunks: vec::IntoIter<Chunk>,
    cursor: Cursor,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            for chunk in &mut self.chunks {
                let piece = self.cursor.take(&chunk)?;
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
            }
            match self.windows.try_next().await? {
                Some(chunks) => self.chunks = chunks.into_iter(),
                None => return Ok(None),
            }
        }
    }
}
