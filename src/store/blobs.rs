//! Reads files of repositories that are not in Xet: Git blobs, and files of old LFS uploads.
//!
//! Small files are read whole and checked: against the Git blob id (SHA-1 of `blob`, a space, the length in decimal,
//! NUL, content), or against the SHA-256 of LFS. Of larger ones only what is needed is read, in steps of [`STEP`], and
//! these bytes are as trustworthy as TLS and the Hub.
//!
//! Bytes that were read are kept as pieces of [`PIECE`] bytes: the last ones in memory, and all in the chunk cache if
//! there is one, under a name derived from the blob id that no xorb has. The kernel reads parts of one file at the same
//! time, and one request serves them all.

use super::{ContentId, Error, Version};
use crate::hub::BlobSource;
use crate::xet::download::{Cached, Chunks, Recent};
use crate::xet::{self, Hash};
use bytes::{Bytes, BytesMut};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a cached piece.
const PIECE: u64 = 64 << 10;
/// Bytes that are read at a time from large files.
const STEP: u64 = 1 << 20;
/// Longest file that is read whole, bytes.
const WHOLE: u64 = 4 << 20;

/// Memory for pieces that were read last, bytes.
const RECENT: usize = 16 << 20;
/// Number of turns. Reads that share one by chance wait for each other.
const TURNS: usize = 64;

/// Reader of the content outside Xet of one repository.
pub(super) struct Blobs {
    source: Arc<dyn BlobSource>,
    recent: Recent,
    /// The chunk cache, if there is one.
    cache: Option<Arc<dyn Chunks>>,
    /// Held while a part of a blob is fetched. Readers of the same part wait, and find it in memory.
    turns: [tokio::sync::Mutex<()>; TURNS],
}

impl Blobs {
    pub(super) fn new(source: Arc<dyn BlobSource>, cache: Option<Arc<dyn Chunks>>) -> Self {
        let turns = std::array::from_fn(|_| tokio::sync::Mutex::default());
        Self { source, recent: Recent::new(RECENT), cache, turns }
    }

    /// Returns exactly these bytes of a blob of `len` bytes.
    pub(super) async fn read(&self, id: &[u8; 20], len: u64, range: Range<u64>) -> Result<Bytes, Error> {
        if range.end > len {
            return Err(Error::LengthMismatch);
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let name = ContentId::Blob(*id).cache_name();
        if let Some(bytes) = self.kept(&name, &range).await {
            return Ok(bytes);
        }
        let part = match len <= WHOLE {
            true => 0..len,
            false => {
                let end = range.end.checked_next_multiple_of(STEP).map_or(len, |end| end.min(len));
                range.start / STEP * STEP..end
            }
        };
        let turn = (u64::from(id[0]) + part.start / STEP) % TURNS as u64;
        let _turn = self.turns[turn as usize].lock().await;
        // Another reader may have fetched it meanwhile.
        if let Some(bytes) = kept(&self.recent, &name, &range).await {
            return Ok(bytes);
        }
        let bytes = match len <= WHOLE {
            true => self.whole(id, len).await?,
            false => self.source.read(id, part.clone()).await?,
        };
        let found = (range.start - part.start) as usize..(range.end - part.start) as usize;
        if bytes.len() < found.end {
            return Err(Error::LengthMismatch);
        }
        self.keep(&name, part.start, &bytes).await;
        Ok(bytes.slice(found))
    }

    async fn kept(&self, name: &Hash, range: &Range<u64>) -> Option<Bytes> {
        match (kept(&self.recent, name, range).await, &self.cache) {
            (None, Some(cache)) => kept(&**cache, name, range).await,
            (found, _) => found,
        }
    }

    /// Keeps bytes, the first of which is at `start`, the beginning of a piece.
    async fn keep(&self, name: &Hash, start: u64, bytes: &Bytes) {
        // A file of 256 TiB has more pieces than can be numbered.
        let Ok(first) = u32::try_from(start / PIECE) else { return };
        let pieces = bytes.chunks(PIECE as usize);
        let pieces: Vec<_> =
            pieces.map(|piece| (xet::hash::chunk_hash(piece), Bytes::copy_from_slice(piece))).collect();
        self.recent.insert(name, first, &pieces).await;
        if let Some(cache) = &self.cache {
            cache.insert(name, first, &pieces).await;
        }
    }

    async fn whole(&self, id: &[u8; 20], len: u64) -> Result<Bytes, Error> {
        let bytes = self.source.read(id, 0..len).await?;
        let is_right = match self.source.sha256(id) {
            Some(sha256) => Sha256::digest(&bytes)[..] == sha256,
            None => {
                let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
                hasher.update(&bytes);
                hasher.finalize()[..] == *id
            }
        };
        if is_right { Ok(bytes) } else { Err(Error::DamagedBlob) }
    }

    /// Reads a whole blob and checks it if it is small enough.
    pub(super) async fn verify(&self, version: &Version, id: &[u8; 20]) -> Result<(), Error> {
        if version.stored_len <= WHOLE {
            return self.whole(id, version.stored_len).await.map(drop);
        }
        let mut start = 0;
        while start < version.stored_len {
            let end = (start + STEP).min(version.stored_len);
            self.source.read(id, start..end).await?;
            start = end;
        }
        Ok(())
    }
}

/// Returns a range from kept pieces. `None`: not all of them are there.
async fn kept(chunks: &dyn Chunks, name: &Hash, range: &Range<u64>) -> Option<Bytes> {
    let number = |at: u64| u32::try_from(at).ok();
    let numbers = number(range.start / PIECE)?..number(range.end.div_ceil(PIECE))?;
    cut(&chunks.chunks(name, numbers).await?, range)
}

/// Returns the bytes of a range from the pieces that it touches. `None`: the cache has others.
fn cut(pieces: &[Cached], range: &Range<u64>) -> Option<Bytes> {
    let skip = (range.start % PIECE) as usize;
    let len = (range.end - range.start) as usize;
    if let [piece] = pieces {
        return (piece.bytes.len() >= skip + len).then(|| piece.bytes.slice(skip..skip + len));
    }
    let mut joined = BytesMut::with_capacity(pieces.len() * PIECE as usize);
    pieces.iter().for_each(|piece| joined.extend_from_slice(&piece.bytes));
    (joined.len() >= skip + len).then(|| joined.freeze().slice(skip..skip + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Side;
    use async_trait::async_trait;
    use std::sync::Mutex;

    /// One blob, and the ranges of it that were read.
    struct One {
        content: Vec<u8>,
        sha256: Option<[u8; 32]>,
        read: Mutex<Vec<Range<u64>>>,
    }

    #[async_trait]
    impl BlobSource for One {
        async fn read(&self, _: &[u8; 20], range: Range<u64>) -> Result<Bytes, crate::hub::Error> {
            self.read.lock().unwrap().push(range.clone());
            tokio::task::yield_now().await;
            let found = self.content.get(range.start as usize..range.end as usize);
            found.map(Bytes::copy_from_slice).ok_or(crate::hub::Error::EntryNotFound)
        }

        fn sha256(&self, _: &[u8; 20]) -> Option<[u8; 32]> {
            self.sha256
        }
    }

    fn blobs(content: &[u8], sha256: Option<[u8; 32]>) -> (Arc<One>, Blobs) {
        let one = Arc::new(One { content: content.to_owned(), sha256, read: Mutex::default() });
        (one.clone(), Blobs::new(one, None))
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 % 251) as u8).collect()
    }

    fn git_id(content: &[u8]) -> [u8; 20] {
        Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize().into()
    }

    #[tokio::test]
    async fn small_blob_is_read_once_and_checked() {
        let bytes = content(200_000);
        let (one, blobs) = blobs(&bytes, None);
        let id = git_id(&bytes);
        for range in [0..200_000, 65_535..65_537, 199_999..200_000, 5..5, 131_072..140_000] {
            let read = blobs.read(&id, 200_000, range.clone()).await.unwrap();
            assert_eq!(read, bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(*one.read.lock().unwrap(), std::slice::from_ref(&(0..200_000)));
        assert!(matches!(blobs.read(&id, 200_000, 0..200_001).await, Err(Error::LengthMismatch)));
        // An id that `git hash-object` prints.
        let (_, blobs) = super::tests::blobs(b"hello\n", None);
        let id = *hex::decode("ce013625030ba8dba906f756967f9e9ca394464a").unwrap().first_chunk().unwrap();
        assert_eq!(&blobs.read(&id, 6, 0..6).await.unwrap()[..], b"hello\n");
    }

    #[tokio::test]
    async fn parts_that_are_read_at_the_same_time_take_one_request() {
        let bytes = content(3 << 20);
        let (one, blobs) = blobs(&bytes, None);
        let id = git_id(&bytes);
        let reads = (0..24).map(|part| blobs.read(&id, 3 << 20, part << 17..(part + 1) << 17));
        let read = futures::future::try_join_all(reads).await.unwrap();
        assert_eq!(read.concat(), bytes);
        assert_eq!(one.read.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn length_that_no_file_has_is_no_panic() {
        let (one, blobs) = blobs(b"", None);
        let last = u64::MAX - 1..u64::MAX;
        assert!(matches!(blobs.read(&[1; 20], u64::MAX, last).await, Err(Error::Hub(_))));
        assert_eq!(one.read.lock().unwrap().last().unwrap().end, u64::MAX);
    }

    #[tokio::test]
    async fn blob_with_another_id_is_refused_and_not_kept() {
        let bytes = content(100);
        let (one, reader) = blobs(&bytes, None);
        for _ in 0..2 {
            assert!(matches!(reader.read(&[7; 20], 100, 0..1).await, Err(Error::DamagedBlob)));
        }
        assert_eq!(one.read.lock().unwrap().len(), 2);
        let (_, reader) = blobs(&bytes, Some(Sha256::digest(&bytes).into()));
        assert_eq!(reader.read(&[7; 20], 100, 0..100).await.unwrap(), bytes, "the id of an LFS file is its pointer's");
        let (_, reader) = blobs(&bytes, Some([0; 32]));
        assert!(matches!(reader.read(&git_id(&bytes), 100, 0..1).await, Err(Error::DamagedBlob)));
    }

    #[tokio::test]
    async fn large_blob_is_read_in_steps_and_each_step_once() {
        let len = WHOLE as usize + 100_001;
        let bytes = content(len);
        let (one, blobs) = blobs(&bytes, None);
        let id = git_id(&bytes);
        for range in [STEP + 5..STEP + 9, STEP..2 * STEP, 2 * STEP - 1..2 * STEP, len as u64 - 3..len as u64] {
            let read = blobs.read(&id, len as u64, range.clone()).await.unwrap();
            assert_eq!(read, bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        assert_eq!(*one.read.lock().unwrap(), [STEP..2 * STEP, WHOLE..len as u64]);
        let version = Version { id: ContentId::Blob(id), stored_len: len as u64, side: Side::Plain };
        blobs.verify(&version, &id).await.unwrap();
    }
}
