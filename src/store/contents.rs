//! Reads the stored bytes of versions, through the disk cache if there is one.
//!
//! This is below encryption: the bytes that a cache stores of an encrypted source are ciphertext.

use super::blobs::Blobs;
use super::object::{AHEAD, WINDOW, in_windows, without_deadline};
use super::{ByteStream, ContentId, Error, Version};
use crate::xet::Downloader;
use crate::xet::cache::FileCache;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::ops::Range;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Reader of one source's content. Cheap to clone.
#[derive(Clone)]
pub(super) struct Contents {
    /// Asks the chunk cache first, if there is one.
    downloader: Downloader,
    /// Cache of whole files. It replaces a chunk cache.
    files: Option<FileCache>,
    /// Content outside Xet. `None`: the source has none.
    blobs: Option<Arc<Blobs>>,
}

impl Contents {
    pub(super) fn new(downloader: Downloader, files: Option<FileCache>, blobs: Option<Arc<Blobs>>) -> Self {
        Self { downloader, files, blobs }
    }

    /// Fails if the source has no content of this kind.
    pub(super) fn check(&self, id: ContentId) -> Result<(), Error> {
        match id {
            ContentId::Xet(_) => Ok(()),
            ContentId::Blob(_) => self.blobs().map(drop),
        }
    }

    fn blobs(&self) -> Result<&Arc<Blobs>, Error> {
        self.blobs.as_ref().ok_or(Error::UnsupportedBlob)
    }

    /// Returns exactly these bytes of this version.
    pub(super) async fn read(&self, version: &Version, range: Range<u64>) -> Result<Bytes, Error> {
        let stored_len = version.stored_len;
        let hash = match version.id {
            ContentId::Xet(hash) => hash,
            ContentId::Blob(id) => return self.blobs()?.read(&id, stored_len, range).await,
        };
        if let Some(files) = &self.files {
            let fill = || self.downloader.chunks(hash, stored_len);
            if let Some(bytes) = files.read(&hash, stored_len, range.clone(), fill).await {
                return Ok(bytes);
            }
        }
        Ok(self.downloader.read(&hash, range).await?)
    }

    /// Streams exactly these bytes of a version, or ends with an error.
    pub(super) fn stream(&self, version: &Version, range: Range<u64>) -> ByteStream {
        let version = *version;
        let is_blob = matches!(version.id, ContentId::Blob(_));
        if self.files.is_some() || is_blob {
            let contents = self.clone();
            return in_windows(range, move |window| {
                let contents = contents.clone();
                async move { contents.read(&version, window).await }
            });
        }
        let hash = match version.id.xet() {
            Ok(hash) => hash,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let pieces = self.downloader.stream_within(hash, range, WINDOW, AHEAD);
        without_deadline(pieces.map_err(Error::from).boxed())
    }

    /// Returns a few bytes of a file of `stored_len` bytes, without starting to cache the file. Used where no further
    /// read is
    /// expected.
    pub(super) async fn peek(&self, id: ContentId, stored_len: u64, range: Range<u64>) -> Result<Bytes, Error> {
        match id {
            ContentId::Xet(hash) => Ok(self.downloader.read(&hash, range).await?),
            ContentId::Blob(id) => self.blobs()?.read(&id, stored_len, range).await,
        }
    }

    /// Writes a whole version to `sink` in order and checks it against its hash. Reads from the CAS, never
    /// from a cache.
    pub(super) async fn download(
        &self,
        version: &Version,
        mut sink: impl AsyncWrite + Send + Unpin,
    ) -> Result<(), Error> {
        if let ContentId::Blob(id) = version.id {
            let mut pieces = self.stream(version, 0..version.stored_len);
            while let Some(piece) = pieces.try_next().await? {
                sink.write_all(&piece).await?;
            }
            return self.blobs()?.verify(version, &id).await;
        }
        Ok(self.downloader.download(&version.id.xet()?, version.stored_len, sink).await?)
    }
}
