//! A CAS that misbehaves on request: the saboteur of the tests of whatever uses one.

use super::reconstruction::Reconstruction;
use super::{Cas, Error, Hash};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Reconstruction,
    Fetch,
    PutXorb,
    PutShard,
    QueryChunk,
}

/// What goes wrong.
pub(crate) enum Fault {
    /// The call fails and does nothing.
    Fail(Error),
    /// The call does its work and fails all the same: an answer was lost.
    Lose(Error),
    /// A fetch gives fewer bytes than it should: so many are left.
    Cut(usize),
    /// A fetch gives a wrong byte: this one is changed (modulo the length).
    Flip(usize),
    /// The call never returns.
    Hang,
    /// The call waits until [`Saboteur::release`].
    Hold,
}

/// Wraps a CAS.
pub(crate) struct Saboteur<C> {
    inner: Arc<C>,
    state: Mutex<State>,
    released: Semaphore,
}

#[derive(Default)]
struct State {
    counts: HashMap<Call, usize>,
    faults: HashMap<(Call, usize), Fault>,
}

impl<C: Cas> Saboteur<C> {
    pub(crate) fn new(inner: Arc<C>) -> Self {
        Self { inner, state: Mutex::default(), released: Semaphore::new(0) }
    }

    /// The `nth` call of this kind, counted from 0, goes wrong.
    pub(crate) fn with(self, call: Call, nth: usize, fault: Fault) -> Self {
        self.state.lock().unwrap().faults.insert((call, nth), fault);
        self
    }

    /// Calls of this kind so far.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.state.lock().unwrap().counts.get(&call).copied().unwrap_or(0)
    }

    /// Lets one held call go on.
    pub(crate) fn release(&self) {
        self.released.add_permits(1);
    }

    /// Counts a call. Gives what is left to do after its work.
    async fn enter(&self, call: Call) -> Result<Option<Fault>, Error> {
        let fault = {
            let mut state = self.state.lock().unwrap();
            let count = state.counts.entry(call).or_default();
            let nth = *count;
            *count += 1;
            state.faults.remove(&(call, nth))
        };
        match fault {
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Hold) => {
                self.released.acquire().await.expect("never closed").forget();
                Ok(None)
            }
            other => Ok(other),
        }
    }
}

fn leave<T>(fault: Option<Fault>, result: Result<T, Error>) -> Result<T, Error> {
    match fault {
        Some(Fault::Lose(error)) => result.and(Err(error)),
        _ => result,
    }
}

#[async_trait]
impl<C: Cas> Cas for Saboteur<C> {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        let fault = self.enter(Call::Reconstruction).await?;
        leave(fault, self.inner.reconstruction(file, range).await)
    }

    async fn fetch(&self, url: &str, bytes: Range<u64>) -> Result<Bytes, Error> {
        let fault = self.enter(Call::Fetch).await?;
        let body = self.inner.fetch(url, bytes).await?;
        match fault {
            Some(Fault::Cut(len)) => Ok(body.slice(..len.min(body.len()))),
            Some(Fault::Flip(at)) => {
                let mut body = body.to_vec();
                let at = at % body.len();
                body[at] ^= 1;
                Ok(body.into())
            }
            fault => leave(fault, Ok(body)),
        }
    }

    async fn put_xorb(&self, hash: &Hash, body: Bytes) -> Result<bool, Error> {
        let fault = self.enter(Call::PutXorb).await?;
        leave(fault, self.inner.put_xorb(hash, body).await)
    }

    async fn put_shard(&self, body: Bytes) -> Result<(), Error> {
        let fault = self.enter(Call::PutShard).await?;
        leave(fault, self.inner.put_shard(body).await)
    }

    async fn query_chunk(&self, chunk: &Hash) -> Result<Option<Bytes>, Error> {
        let fault = self.enter(Call::QueryChunk).await?;
        leave(fault, self.inner.query_chunk(chunk).await)
    }
}
