//! Reads files of repositories that are not in Xet: Git blobs, and files of old LFS uploads.
//!
//! Small files are read whole and checked: against the Git blob id (SHA-1 of `blob`, a space, the length in decimal,
//! NUL,
//! content), or against the SHA-256 of LFS. Of larger ones only what is needed is read, in steps of [`STEP`], and these
//! bytes are as trustworthy as TLS and the Hub.
//!
//! What was read is kept as pieces of [`PIECE`] bytes in the chunk cache, under a name derived from the blob id that no
//! xorb has.

use super::{ContentId, Error, Version};
use crate::hub::BlobSource;
use crate::xet;
use crate::xet::download::{Cached, Chunks};
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

/// Reader of the content outside Xet of one repository.
pub(super) struct Blobs {
    source: Arc<dyn BlobSource>,
    cache: Arc<dyn Chunks>,
}

impl Blobs {
    pub(super) fn new(source: Arc<dyn BlobSource>, cache: Arc<dyn Chunks>) -> Self {
        Self { source, cache }
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
        if let Some(pieces) = self.cache.chunks(&name, pieces_of(&range)).await
            && let Some(bytes) = cut(&pieces, &range)
        {
            return Ok(bytes);
        }
        let (start, bytes) = match len <= WHOLE {
            true => (0, self.whole(id, len).await?),
            false => {
                let wanted = range.start / STEP * STEP..range.end.next_multiple_of(STEP).min(len);
                (wanted.start, self.source.read(id, wanted).await?)
            }
        };
        let found = (range.start - start) as usize..(range.end - start) as usize;
        if bytes.len() < found.end {
            return Err(Error::LengthMismatch);
        }
        let pieces = bytes.chunks(PIECE as usize);
        let pieces: Vec<_> =
            pieces.map(|piece| (xet::hash::chunk_hash(piece), Bytes::copy_from_slice(piece))).collect();
        self.cache.insert(&name, (start / PIECE) as u32, &pieces).await;
        Ok(bytes.slice(found))
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

/// Returns the numbers of the pieces that a range touches.
fn pieces_of(range: &Range<u64>) -> Range<u32> {
    let number = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
    number(range.start / PIECE)..number(range.end.div_ceil(PIECE))
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
    use crate::xet::download::Recent;
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
            Ok(Bytes::copy_from_slice(&self.content[range.start as usize..range.end as usize]))
        }

        fn sha256(&self, _: &[u8; 20]) -> Option<[u8; 32]> {
            self.sha256
        }
    }

    fn blobs(content: &[u8], sha256: Option<[u8; 32]>) -> (Arc<One>, Blobs) {
        let one = Arc::new(One { content: content.to_owned(), sha256, read: Mutex::default() });
        (one.clone(), Blobs::new(one, Arc::new(Recent::new(64 << 20))))
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
