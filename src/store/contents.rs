//! Reads the stored bytes of versions, through the disk cache if there is one.
//!
//! This is below encryption: the bytes that a cache stores of an encrypted source are ciphertext.

use super::object::{AHEAD, WINDOW, in_windows, without_deadline};
use super::{ByteStream, Error, Version};
use crate::xet::cache::FileCache;
use crate::xet::{Downloader, Hash};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::ops::Range;
use tokio::io::AsyncWrite;

/// Reader of one source's content. Cheap to clone.
#[derive(Clone)]
pub(super) struct Contents {
    /// Asks the chunk cache first, if there is one.
    downloader: Downloader,
    /// Cache of whole files. It replaces a chunk cache.
    files: Option<FileCache>,
}

impl Contents {
    pub(super) fn new(downloader: Downloader, files: Option<FileCache>) -> Self {
        Self { downloader, files }
    }

    /// Returns exactly these bytes of this version.
    pub(super) async fn read(&self, version: &Version, range: Range<u64>) -> Result<Bytes, Error> {
        let (hash, stored_len) = (version.id.xet()?, version.stored_len);
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
        if self.files.is_some() {
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

    /// Returns a few bytes of a file, without starting to cache the file. Used where no further read is
    /// expected.
    pub(super) async fn peek(&self, hash: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        Ok(self.downloader.read(hash, range).await?)
    }

    /// Writes a whole version to `sink` in order and checks it against its hash. Reads from the CAS, never
    /// from a cache.
    pub(super) async fn download(&self, version: &Version, sink: impl AsyncWrite + Send + Unpin) -> Result<(), Error> {
        Ok(self.downloader.download(&version.id.xet()?, version.stored_len, sink).await?)
    }
}
