//! Streams content into the store and computes its digests on the way.

use super::digest::{Announced, Digests, Hasher};
use super::sessions::Session;
use super::{Bucket, Error};
use crate::store::{Content, Error as StoreError, Stored};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio_util::io::StreamReader;

/// Content of a request. Errors of it are the client's: it cut the body, or broke its framing or its signature.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;
/// Returns the digests that follow the content, once it has ended.
pub type Late = Box<dyn FnOnce() -> Result<Announced, Error> + Send>;

/// A body that is hashed while it is read.
struct Hashed {
    body: Body,
    shared: Arc<Mutex<Shared>>,
    left: u64,
}

struct Shared {
    hasher: Option<Hasher>,
    /// The error that ended the body. The store only passes on that reading failed.
    error: Option<Error>,
}

impl Stream for Hashed {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.body.poll_next_unpin(cx));
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let error = match next {
            None => return Poll::Ready(None),
            Some(Ok(bytes)) if bytes.len() as u64 <= self.left => {
                shared.hasher.iter_mut().for_each(|hasher| hasher.update(&bytes));
                drop(shared);
                self.left -= bytes.len() as u64;
                return Poll::Ready(Some(Ok(bytes)));
            }
            Some(Ok(_)) => Error::TooLarge(super::MAX_PUT),
            Some(Err(error)) => error,
        };
        shared.error = Some(error);
        Poll::Ready(Some(Err(std::io::Error::other("the body of the request failed"))))
    }
}

/// Content whose announced digests match. It isn't registered yet, so that more can be added to its session.
pub(super) struct Uploaded {
    pub(super) session: Arc<Session>,
    pub(super) stored: Stored,
    pub(super) digests: Digests,
}

impl Bucket {
    /// Uploads content without giving it a key. `len`: its length, if it is known. `most`: the length at which it is
    /// refused. All announced digests match when this returns.
    pub(super) async fn upload(
        &self,
        body: Body,
        len: Option<u64>,
        most: u64,
        hasher: Hasher,
        announced: Announced,
        late: Option<Late>,
    ) -> Result<Uploaded, Error> {
        let shared = Arc::new(Mutex::new(Shared { hasher: Some(hasher), error: None }));
        let reader = StreamReader::new(Hashed { body, shared: shared.clone(), left: most });
        let session = self.session(len).await?;
        let stored = session.add(Content::Stream { reader: Box::new(reader), len }).await;
        let (hasher, error) = {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            (shared.hasher.take(), shared.error.take())
        };
        let stored = match (stored, error) {
            (_, Some(error)) => return Err(error),
            // The content is the client's, and so is its length.
            (Err(StoreError::LengthMismatch), None) => return Err(Error::IncompleteBody),
            (Err(error), None) => {
                session.give_up();
                return Err(Error::of_store(error));
            }
            (Ok(stored), None) => stored,
        };
        let digests = hasher.map(Hasher::finish).ok_or(Error::IncompleteBody)?;
        announced.verify(&digests)?;
        if let Some(late) = late {
            late()?.verify(&digests)?;
        }
        Ok(Uploaded { session, stored, digests })
    }
}
