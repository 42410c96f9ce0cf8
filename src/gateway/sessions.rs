//! Upload sessions of a bucket, and the memory that all of them have together.
//!
//! A session has a fixed budget of memory ([`SESSION`]) and takes any number of contents at the same time. So not the
//! number of uploads is limited but that of sessions:
//!
//! - An object of up to [`SHARED`] bytes goes into a session that all such objects of the bucket share. Those that come
//!   at the same time are sent in one xorb and registered by one shard. So the busier the bucket, the less each costs.
//! - A larger object has a session of its own while there is memory for one: its chunks lie side by side then.
//! - If there isn't, it goes into a second session that large objects of the bucket share.
//!
//! A content that waits for its client holds no memory of its session but a few KiB, so slow clients delay nobody.

use super::{Bucket, Error, PATIENCE, WAIT};
use crate::store::{Content, ContentId, PutSession, Stored};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of content that a session holds in memory.
pub(super) const SESSION: usize = 24 << 20;
/// Most bytes of an object that shares a session from the start.
const SHARED: u64 = 8 << 20;
/// Sessions kept free for shared ones: an old and a new one for small objects, and one for large ones.
const RESERVED: usize = 3;
/// Least number of sessions.
pub(super) const LEAST: usize = RESERVED + 1;
/// Bytes of content and number of registrations after which a shared session takes no more: it remembers a little of
/// each.
const WORN: (u64, u64) = (1 << 30, 1024);

/// The shared sessions of a bucket.
#[derive(Default)]
pub(super) struct Sessions {
    small: Open,
    large: Open,
}

/// A session that takes contents, as long as somebody uses it. Never locked over an await.
type Open = Mutex<Weak<Session>>;

/// A session.
pub(super) struct Session {
    inner: Box<dyn PutSession>,
    added: AtomicU64,
    registrations: AtomicU64,
    is_broken: AtomicBool,
    _memory: OwnedSemaphorePermit,
}

impl Session {
    /// Uploads content.
    pub(super) async fn add(&self, content: Content) -> Result<Stored, crate::store::Error> {
        let stored = self.inner.add(content).await?;
        self.added.fetch_add(stored.version.stored_len, Ordering::Relaxed);
        Ok(stored)
    }

    /// Uploads a metadata object.
    pub(super) async fn add_metadata(&self, json: &[u8]) -> Result<ContentId, Error> {
        self.inner.add_metadata(json).await.map_err(Error::of_store)
    }

    /// Registers the content that was added. None of it may be committed before. Once this has failed, the session
    /// takes no more.
    pub(super) async fn register(&self) -> Result<(), Error> {
        self.registrations.fetch_add(1, Ordering::Relaxed);
        let mut registering = self.inner.register();
        let registered = tokio::select! {
            registered = &mut registering => registered,
            () = tokio::time::sleep(PATIENCE) => {
                // A storage that takes so long must not delay others too.
                self.give_up();
                registering.await
            }
        };
        if registered.is_err() {
            self.is_broken.store(true, Ordering::Relaxed);
        }
        registered.map_err(Error::of_store)
    }

    /// Notes that the storage has failed, so that later contents get another session.
    pub(super) fn give_up(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }

    fn takes_more(&self) -> bool {
        let is_worn =
            self.added.load(Ordering::Relaxed) > WORN.0 || self.registrations.load(Ordering::Relaxed) > WORN.1;
        !is_worn && !self.is_broken.load(Ordering::Relaxed)
    }
}

impl Bucket {
    /// Returns a session for content of this length.
    pub(super) async fn session(&self, len: Option<u64>) -> Result<Arc<Session>, Error> {
        if len.is_some_and(|len| len <= SHARED) {
            return self.shared(&self.sessions.small).await;
        }
        if self.memory.available_permits() > RESERVED
            && let Ok(memory) = self.memory.clone().try_acquire_owned()
        {
            return self.new_session(memory).await;
        }
        self.shared(&self.sessions.large).await
    }

    async fn shared(&self, open: &Open) -> Result<Arc<Session>, Error> {
        let found = |open: &Weak<Session>| open.upgrade().filter(|session| session.takes_more());
        let lock = || open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = found(&lock()) {
            return Ok(session);
        }
        // Only uploads to several buckets at once can exhaust it.
        let memory = tokio::time::timeout(WAIT, self.memory.clone().acquire_owned()).await;
        let Ok(Ok(memory)) = memory else { return Err(Error::Busy) };
        if let Some(session) = found(&lock()) {
            return Ok(session);
        }
        let session = self.new_session(memory).await?;
        let mut open = lock();
        if let Some(faster) = found(&open) {
            return Ok(faster);
        }
        *open = Arc::downgrade(&session);
        Ok(session)
    }

    async fn new_session(&self, memory: OwnedSemaphorePermit) -> Result<Arc<Session>, Error> {
        Ok(Arc::new(Session {
            inner: self.view.put().await.map_err(Error::of_store)?,
            added: AtomicU64::new(0),
            registrations: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            _memory: memory,
        }))
    }
}

/// Returns the memory for sessions that hold so many bytes together.
pub(super) fn memory(bytes: u64) -> Arc<Semaphore> {
    let sessions = usize::try_from(bytes / SESSION as u64).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(sessions.clamp(LEAST, Semaphore::MAX_PERMITS)))
}
