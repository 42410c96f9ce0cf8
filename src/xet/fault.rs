//! A CAS that misbehaves on request: the saboteur of the tests of whatever uses one.

use super::cas::DataStream;
use super::reconstruction::Reconstruction;
use super::{Body, Cas, Error, Hash};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::HashMap;
use std::future::ready;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Reconstruction,
    Fetch,
    FetchMany,
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
    /// A fetch fails behind so many bytes.
    Break(usize, Error),
    /// A fetch gives byte by byte.
    Drip,
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

/// The first `left` bytes, and then the error.
fn cut<'a>(data: DataStream<'a>, left: usize, error: Option<Error>) -> DataStream<'a> {
    let first = data.scan(left, |left, piece| {
        let piece = piece.map(|piece| piece.slice(..piece.len().min(*left)));
        *left -= piece.as_ref().map_or(0, Bytes::len);
        ready(piece.as_ref().map_or(true, |piece| !piece.is_empty()).then_some(piece))
    });
    first.chain(stream::iter(error.map(Err))).boxed()
}

/// Changes the byte at `at`.
fn flip(data: DataStream<'_>, at: usize) -> DataStream<'_> {
    let flipped = data.scan(0, move |come, piece: Result<Bytes, Error>| {
        let start = *come;
        let piece = piece.map(|piece| {
            *come += piece.len();
            let mut piece = piece.to_vec();
            if let Some(byte) = at.checked_sub(start).and_then(|at| piece.get_mut(at)) {
                *byte ^= 1;
            }
            piece.into()
        });
        ready(Some(piece))
    });
    flipped.boxed()
}

fn drip(data: DataStream<'_>) -> DataStream<'_> {
    let bytes = |piece: Result<Bytes, Error>| match piece {
        Ok(piece) => stream::iter((0..piece.len()).map(|i| Ok(piece.slice(i..i + 1))).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    };
    data.flat_map(bytes).boxed()
}

#[async_trait]
impl<C: Cas> Cas for Saboteur<C> {
    async fn reconstruction(&self, file: &Hash, range: Option<Range<u64>>) -> Result<Reconstruction, Error> {
        let fault = self.enter(Call::Reconstruction).await?;
        leave(fault, self.inner.reconstruction(file, range).await)
    }

    fn fetch<'a>(&'a self, url: &'a str, bytes: Range<u64>) -> DataStream<'a> {
        let len = bytes.end.saturating_sub(bytes.start) as usize;
        let sabotaged = async move {
            let fault = match self.enter(Call::Fetch).await {
                Ok(fault) => fault,
                Err(error) => return stream::iter([Err(error)]).boxed(),
            };
            let data = self.inner.fetch(url, bytes);
            match fault {
                Some(Fault::Cut(left)) => cut(data, left, None),
                Some(Fault::Break(left, error)) => cut(data, left, Some(error)),
                Some(Fault::Lose(error)) => cut(data, len, Some(error)),
                Some(Fault::Flip(at)) => flip(data, at % len.max(1)),
                Some(Fault::Drip) => drip(data),
                _ => data,
            }
        };
        stream::once(sabotaged).flatten().boxed()
    }

    async fn fetch_many(&self, url: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Error> {
        let fault = self.enter(Call::FetchMany).await?;
        leave(fault, self.inner.fetch_many(url, ranges).await)
    }

    async fn put_xorb(&self, hash: &Hash, body: Body) -> Result<bool, Error> {
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
