//! Reads files: from local content if there is some, else from the version that the handle is pinned to, with a small
//! read-ahead.

use crate::fs::content::Contents;
use crate::fs::errno::Error;
use crate::fs::handle::{FileHandle, Pinned};
use crate::fs::ids::{HandleNo, Ino};
use crate::fs::lock::Mutex;
use crate::fs::lock::lock;
use crate::store::{Len, Object, deadline};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one read-ahead fetch (2 MiB): some tens of records, so that one request to the store transfers several of
/// its chunks.
const WINDOW: u64 = 2 << 20;
/// Number of windows of one handle: the one that is being read, the next one, and the last one for reads that the
/// kernel sends out of order.
const WINDOWS: usize = 3;
/// Number of windows of all handles together (256 MiB). Beyond it, reads have no read-ahead.
const ALL_WINDOWS: usize = 128;
/// Largest distance between a read and the end of the one before in sequential reading (1 MiB), because the kernel
/// has several reads in flight.
const JITTER: u64 = 1 << 20;
/// Number of sequential reads before the read-ahead begins.
const WARM_UP: u32 = 2;
/// Time without reads after which the buffers of a handle are freed.
const IDLE: Duration = Duration::from_secs(5);

static BUDGET: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ALL_WINDOWS)));

/// A fetch that several reads may wait for. `None` means that it failed. A read that needs the bytes then requests
/// them itself, to get the error.
type Fetch = Shared<BoxFuture<'static, Option<Bytes>>>;

struct Window {
    fetch: Fetch,
    _permit: OwnedSemaphorePermit,
}

/// The read-ahead of one handle.
#[derive(Default)]
pub(crate) struct Readahead(Mutex<State>);

#[derive(Default)]
struct State {
    object: Option<Arc<dyn Object>>,
    windows: BTreeMap<u64, Window>,
    next: u64,
    streak: u32,
    used: Option<Instant>,
}

impl Readahead {
    /// Returns the bytes `[offset, offset + len)` of `object`, or fewer at its end.
    async fn read(&self, object: &Arc<dyn Object>, offset: u64, len: usize) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64).min(object.len());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let wanted = (end - offset) as usize;
        let fetches = self.plan(object, offset, end);
        if let Some(bytes) = collect(fetches, offset, wanted).await {
            return Ok(bytes);
        }
        let bytes = object.read(offset, wanted).await?;
        // The kernel would fill the rest of its page with zeros after a short reply.
        if bytes.len() == wanted { Ok(bytes) } else { Err(Error::Store(crate::store::Error::LengthMismatch)) }
    }

    /// Returns the windows to read `[offset, end)` from, in order. Returns none if the reads aren't sequential.
    fn plan(&self, object: &Arc<dyn Object>, offset: u64, end: u64) -> Vec<(u64, Fetch)> {
        let mut state = lock(&self.0);
        if !state.object.as_ref().is_some_and(|old| Arc::ptr_eq(old, object)) {
            *state = State { object: Some(object.clone()), ..State::default() };
        }
        state.used = Some(Instant::now());
        let sequential = offset.abs_diff(state.next) <= JITTER;
        state.streak = if sequential { state.streak.saturating_add(1) } else { 0 };
        state.next = if sequential { state.next.max(end) } else { end };
        if state.streak <= WARM_UP {
            state.windows.clear();
            return Vec::new();
        }
        let (first, last) = (offset / WINDOW, (end - 1) / WINDOW);
        let ahead = (last + 1).min((object.len() - 1) / WINDOW);
        (first..=ahead).for_each(|index| state.fetch(object, index));
        while state.windows.len() > WINDOWS {
            state.windows.pop_first();
        }
        (first..=last).map_while(|index| Some((index, state.windows.get(&index)?.fetch.clone()))).collect()
    }

    /// Frees buffers that weren't used for a while.
    pub(crate) fn cool_down(&self) {
        let mut state = lock(&self.0);
        if state.used.is_some_and(|at| at.elapsed() > IDLE) {
            state.windows.clear();
            state.used = None;
        }
    }
}

impl State {
    fn fetch(&mut self, object: &Arc<dyn Object>, index: u64) {
        if self.windows.contains_key(&index) {
            return;
        }
        let Ok(permit) = BUDGET.clone().try_acquire_owned() else { return };
        let object = object.clone();
        let (start, len) = (index * WINDOW, WINDOW.min(object.len() - index * WINDOW) as usize);
        let task = tokio::spawn(async move { object.read(start, len).await.ok().filter(|bytes| bytes.len() == len) });
        let fetch = async move { task.await.ok().flatten() }.boxed().shared();
        self.windows.insert(index, Window { fetch, _permit: permit });
    }
}

/// Returns the bytes `[offset, offset + len)` from adjacent windows, or `None` if one is missing.
async fn collect(fetches: Vec<(u64, Fetch)>, offset: u64, len: usize) -> Option<Bytes> {
    let mut parts = Vec::with_capacity(fetches.len());
    let mut at = offset;
    let end = offset + len as u64;
    for (index, fetch) in fetches {
        let bytes = deadline::timely(fetch).await??;
        let start = index * WINDOW;
        let from = usize::try_from(at.checked_sub(start)?).ok()?;
        let to = usize::try_from(end - start).ok()?.min(bytes.len());
        parts.push(bytes.get(from..to).map(|_| bytes.slice(from..to))?);
        at = start + to as u64;
    }
    match parts.len() {
        _ if at != end => None,
        1 => parts.pop(),
        _ => {
            let mut out = BytesMut::with_capacity(len);
            parts.iter().for_each(|part| out.extend_from_slice(part));
            Some(out.freeze())
        }
    }
}

impl Contents {
    /// Reads from a file. Returns fewer bytes than requested only at the end of the file.
    pub(crate) async fn read(&self, handle: HandleNo, offset: u64, len: usize) -> Result<Bytes, Error> {
        let handle = self.handles.file(handle)?;
        if !handle.access.read {
            return Err(Error::BadHandle);
        }
        loop {
            let edit = lock(&self.tree).file(handle.ino)?.edit.clone();
            let Some(edit) = edit else { break };
            // `None` means that the edit ended during the wait. The inode has its version then.
            if let Some(draft) = edit.reader().await.as_ref() {
                tracing::debug!(ino = handle.ino.0, offset, len, "read from local content");
                return Ok(draft.read_at(offset, len).await?);
            }
        }
        let object = self.pin(&handle).await?;
        tracing::debug!(ino = handle.ino.0, offset, len, "read");
        handle.ahead.read(&object, offset, len).await
    }

    /// Returns the version that a handle reads: the inode's at the time of `open`, or a later one that this mount
    /// committed.
    pub(crate) async fn pin(&self, handle: &FileHandle) -> Result<Arc<dyn Object>, Error> {
        let (version, epoch) = self.readable_version(handle.ino)?;
        let pinned = lock(&handle.pinned).clone();
        if let Some(pinned) = pinned.filter(|pinned| pinned.epoch == epoch) {
            return Ok(pinned.object);
        }
        let object = self.view.open(&version).await?;
        *lock(&handle.pinned) = Some(Pinned { epoch, object: object.clone() });
        Ok(object)
    }

    /// Returns the version to read, or the reason why there is none.
    fn readable_version(&self, ino: Ino) -> Result<(crate::store::Version, u64), Error> {
        let tree = lock(&self.tree);
        let file = tree.file(ino)?;
        match (file.version, file.len) {
            (_, Len::Damaged) | (None, _) => Err(Error::Damaged),
            (Some(version), _) => Ok((version, file.epoch)),
        }
    }
}
