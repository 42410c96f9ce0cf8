//! The stored bytes of versions, through the disk cache where there is one.
//!
//! All of it is below encryption: what a cache keeps of an encrypted source is ciphertext.

use super::object::{AHEAD, WINDOW, in_windows, without_deadline};
use super::{ByteStream, Error, Version};
use crate::xet::cache::FileCache;
use crate::xet::{Downloader, Hash};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::ops::Range;
use tokio::io::AsyncWrite;

/// Reads one source's content. Cheap to clone.
#[derive(Clone)]
pub(super) struct Contents {
    /// Asks the chunk cache first, if it has one.
    downloader: Downloader,
    /// Instead of a chunk cache.
    files: Option<FileCache>,
}

impl Contents {
    pub(super) fn new(downloader: Downloader, files: Option<FileCache>) -> Self {
        Self { downloader, files }
    }

    /// Exactly these bytes of a version, nobody else's.
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

    /// The same where a few bytes are wanted and nothing tells that more will be: doesn't begin to keep the file.
    pub(super) async fn peek(&self, hash: &Hash, range: Range<u64>) -> Result<Bytes, Error> {
        Ok(self.downloader.read(hash, range).await?)
    }

    /// A whole version in order, checked against its hash: from the source, whatever a cache has.
    pub(super) async fn download(&self, version: &Version, sink: impl AsyncWrite + Send + Unpin) -> Result<(), Error> {
        Ok(self.downloader.download(&version.id.xet()?, version.stored_len, sink).await?)
    }
}
