//! Read-ahead: fetches what a sequential reader will ask for next.
//!
//! Content comes over a network, and the kernel asks for at most 1 MiB at a time. If each request were fetched by
//! itself, a program that reads a file from beginning to end would wait for a round trip per MiB. So once a handle has
//! been read in order a few times, a task follows a stream of the version ([`Object::stream`]) and keeps a little more
//! than what was asked for. The stream itself fetches further ahead, in growing windows.
//!
//! - **Segments.** A stream covers a segment of the file. The first segment is short, so that little is fetched in
//!   vain if the reader soon seeks. The next one begins before the reader reaches the end of the first, and covers the
//!   rest of the file.
//! - **Back-pressure.** The task stops when it is [`AHEAD`] of the reader, and the stream stops with it.
//! - **Cancellation.** If the reader seeks, stops reading or closes the handle, the segments are dropped: their
//!   requests end, and their memory is free.
//! - **Budget.** A segment needs memory of the [`Budget`], which one mount has. It is returned when the last byte of
//!   the segment is freed. If half of the budget is in use, new segments are short. If the budget is used up, a reader
//!   gets no read-ahead.
//! - **Versions.** A segment belongs to one version. Another version drops it.
//! - **Errors.** A failed segment is dropped, and the reader fetches its bytes itself, so that it gets the error.

use crate::fs::lock::{Mutex, lock};
use crate::store::{ByteStream, Error, Object, Version, deadline};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

/// Limit of the memory of all read-ahead of one mount, bytes (256 MiB).
const BUDGET: u64 = 256 << 20;
/// Unit in which memory is counted, bytes.
const UNIT: u64 = 64 << 10;
/// Length of a short segment, bytes (4 MiB).
const SHORT: u64 = 4 << 20;
/// Memory that a short segment needs besides its content, bytes (1 MiB): records that are being opened.
const OVERHEAD: u64 = 1 << 20;
/// Memory of a long segment, bytes (44 MiB): 36 MiB of its stream, 4 MiB of a window of which a part is kept, and
/// what was delivered.
const LONG_MEMORY: u64 = (40 << 20) + AHEAD + BEHIND;
/// Distance that delivered bytes are ahead of the reader, bytes (2 MiB). The windows of the stream come on top.
const AHEAD: u64 = 2 << 20;
/// Bytes that are kept after they were read (2 MiB): the kernel sends the reads of one handle out of order.
const BEHIND: u64 = 2 << 20;
/// Distance from the end of the read before at which a read still counts as sequential (1 MiB).
const JITTER: u64 = 1 << 20;
/// Sequential reads before anything is fetched ahead.
const WARM_UP: u32 = 2;
/// Plaintext bytes of a record: a segment begins at the start of one.
const RECORD: u64 = 1 << 16;
/// Time without a read after which the segments of a handle are dropped.
const IDLE: Duration = Duration::from_secs(5);

/// Memory for read-ahead. A mount has one.
pub(crate) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new((BUDGET / UNIT) as usize)))
    }
}

impl Budget {
    fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes.div_ceil(UNIT)).ok()?).ok()
    }

    /// Returns true if at least half of the memory is free.
    fn is_plentiful(&self) -> bool {
        self.0.available_permits() as u64 * UNIT >= BUDGET / 2
    }
}

/// The read-ahead of one handle.
#[derive(Default)]
pub(crate) struct Readahead(Mutex<State>);

#[derive(Default)]
struct State {
    /// The version that was read last.
    source: Option<(Version, Arc<dyn Object>)>,
    /// Parts of it that are fetched ahead, without a gap between them.
    segments: VecDeque<Segment>,
    /// End of the furthest read that the segments were asked for.
    asked: u64,
    /// Offset of the next read, if it is sequential.
    next: u64,
    /// Sequential reads so far.
    streak: u32,
    used: Option<Instant>,
    /// Reads that wait for bytes now. However slow the remote is, the handle isn't idle meanwhile.
    readers: u32,
}

/// A part of a version that is fetched ahead. Dropping it ends the task that follows its stream.
struct Segment {
    range: Range<u64>,
    progress: Arc<Progress>,
    _task: AbortOnDropHandle<()>,
}

impl Segment {
    fn start(object: &Arc<dyn Object>, range: Range<u64>, memory: OwnedSemaphorePermit) -> Self {
        let delivered =
            Delivered { pieces: VecDeque::new(), start: range.start, end: range.start, wanted: range.start };
        let progress = Arc::new(Progress {
            delivered: Mutex::new(delivered),
            end: range.end,
            is_over: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            more: Notify::new(),
            room: Notify::new(),
            _memory: memory,
        });
        let task = tokio::spawn(follow(Follower(progress.clone()), object.clone().stream(range.clone())));
        Self { range, progress, _task: AbortOnDropHandle::new(task) }
    }
}

/// Delivers a stream to the readers of a segment. When this future is dropped, the stream is dropped before the
/// memory of the segment is returned.
async fn follow(follower: Follower, mut stream: ByteStream) {
    while let Some(Ok(piece)) = stream.next().await {
        follower.0.deliver(piece);
        follower.0.wait_for_room().await;
    }
}

/// Tells the readers when the task has ended, even if it was aborted or has panicked.
struct Follower(Arc<Progress>);

impl Drop for Follower {
    fn drop(&mut self) {
        let is_complete = lock(&self.0.delivered).end == self.0.end;
        self.0.has_failed.store(!is_complete, Ordering::Release);
        self.0.is_over.store(true, Ordering::Release);
        self.0.more.notify_waiters();
    }
}

/// The bytes that a segment's stream has delivered.
struct Progress {
    delivered: Mutex<Delivered>,
    /// End of the segment.
    end: u64,
    /// Nothing more will be delivered.
    is_over: AtomicBool,
    /// It ended before the end of the segment.
    has_failed: AtomicBool,
    /// Something was delivered, or nothing more will be.
    more: Notify,
    /// A reader has asked for more.
    room: Notify,
    _memory: OwnedSemaphorePermit,
}

struct Delivered {
    pieces: VecDeque<Bytes>,
    /// Offset of the first byte in `pieces`.
    start: u64,
    /// Offset after the last byte in `pieces`.
    end: u64,
    /// End of the furthest read.
    wanted: u64,
}

impl Progress {
    fn deliver(&self, piece: Bytes) {
        let mut delivered = lock(&self.delivered);
        delivered.end += piece.len() as u64;
        delivered.pieces.push_back(piece);
        drop(delivered);
        self.more.notify_waiters();
    }

    /// Waits until the readers have come close enough. The task is the only caller.
    async fn wait_for_room(&self) {
        loop {
            {
                let delivered = lock(&self.delivered);
                if delivered.end < delivered.wanted.saturating_add(AHEAD) {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// Waits for the bytes of `range`, which lies in the segment, and returns them in pieces. `None`: they were freed
    /// already, or won't come.
    async fn take(&self, range: &Range<u64>) -> Option<Vec<Bytes>> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            // From here on no notification is missed.
            more.as_mut().enable();
            let is_over = self.is_over.load(Ordering::Acquire);
            {
                let mut delivered = lock(&self.delivered);
                if range.start < delivered.start {
                    return None;
                }
                if delivered.wanted < range.end {
                    delivered.wanted = range.end;
                    self.room.notify_one();
                }
                if range.end <= delivered.end {
                    return Some(delivered.pieces_of(range));
                }
            }
            if is_over {
                return None;
            }
            more.await;
        }
    }
}

impl Delivered {
    /// Returns the bytes of a range that was delivered, and frees those that lie too far before it.
    fn pieces_of(&mut self, range: &Range<u64>) -> Vec<Bytes> {
        let (mut at, mut parts) = (self.start, Vec::new());
        for piece in &self.pieces {
            let end = at + piece.len() as u64;
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                parts.push(piece.slice((from - at) as usize..(to - at) as usize));
            }
            at = end;
        }
        let kept = range.end.saturating_sub(BEHIND);
        while let Some(piece) = self.pieces.front().filter(|piece| self.start + piece.len() as u64 <= kept) {
            self.start += piece.len() as u64;
            self.pieces.pop_front();
        }
        parts
    }
}

impl Readahead {
    /// Records that a program reads `[offset, offset + len)`, wherever these bytes come from. If that isn't sequential,
    /// drops what was fetched ahead.
    pub(crate) fn note(&self, offset: u64, len: usize) {
        let mut state = lock(&self.0);
        let end = offset.saturating_add(len as u64);
        state.used = Some(Instant::now());
        let is_sequential = offset.abs_diff(state.next) <= JITTER;
        state.streak = if is_sequential { state.streak.saturating_add(1) } else { 0 };
        state.next = if is_sequential { state.next.max(end) } else { end };
        let seeked = if state.streak == 0 { std::mem::take(&mut state.segments) } else { VecDeque::new() };
        // The end of a task takes a lock.
        drop(state);
        drop(seeked);
    }

    /// Returns the object of a version, if this version was read last.
    pub(crate) fn object(&self, version: &Version) -> Option<Arc<dyn Object>> {
        let state = lock(&self.0);
        state.source.as_ref().filter(|(known, _)| known == version).map(|(_, object)| object.clone())
    }

    /// Returns the bytes `[offset, offset + len)` of `object`, which is `version`, up to its end. The caller has noted
    /// the read.
    pub(crate) async fn read(
        &self,
        budget: &Budget,
        version: &Version,
        object: &Arc<dyn Object>,
        offset: u64,
        len: usize,
    ) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64).min(object.len());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let wanted = (end - offset) as usize;
        let _reading = Reading::begin(self);
        if let Some(bytes) = collect(self.plan(budget, version, object, offset..end), wanted).await {
            return Ok(bytes);
        }
        let bytes = object.read(offset, wanted).await?;
        // A short reply would become zeros in the kernel's page.
        if bytes.len() == wanted { Ok(bytes) } else { Err(Error::LengthMismatch) }
    }

    /// Returns the parts of the segments that hold `range`, in order; nothing if the range isn't fetched ahead.
    fn plan(
        &self,
        budget: &Budget,
        version: &Version,
        object: &Arc<dyn Object>,
        range: Range<u64>,
    ) -> Vec<(Arc<Progress>, Range<u64>)> {
        let mut dropped = VecDeque::new();
        let mut state = lock(&self.0);
        if !state.source.as_ref().is_some_and(|(known, _)| known == version) {
            dropped.append(&mut state.segments);
            state.source = Some((*version, object.clone()));
        }
        state.extend(budget, object, &range, &mut dropped);
        let parts = state.parts(&range);
        // The end of a task takes a lock.
        drop(state);
        drop(dropped);
        parts
    }

    /// Drops the segments of a handle that was not read for a while.
    pub(crate) fn free_idle_buffers(&self) {
        let mut state = lock(&self.0);
        let is_idle = state.readers == 0 && state.used.is_some_and(|at| at.elapsed() > IDLE);
        let idle = if is_idle { std::mem::take(&mut state.segments) } else { VecDeque::new() };
        state.used = state.used.filter(|_| !is_idle);
        drop(state);
        drop(idle);
    }
}

/// A read that waits for bytes.
struct Reading<'a>(&'a Readahead);

impl<'a> Reading<'a> {
    fn begin(ahead: &'a Readahead) -> Self {
        lock(&ahead.0).readers += 1;
        Self(ahead)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        state.readers -= 1;
        state.used = Some(Instant::now());
    }
}

impl State {
    /// Adds the segments that a read of `range` needs, and the next one. Removes those that it doesn't need any more.
    fn extend(
        &mut self,
        budget: &Budget,
        object: &Arc<dyn Object>,
        range: &Range<u64>,
        dropped: &mut VecDeque<Segment>,
    ) {
        if self.segments.iter().any(|segment| segment.progress.has_failed.load(Ordering::Acquire)) {
            self.streak = 0;
        }
        // A reader may skip a long part that isn't read from this version, because it was changed locally.
        let has_skipped = range.start > self.asked.saturating_add(JITTER);
        if self.streak <= WARM_UP || has_skipped {
            dropped.append(&mut self.segments);
        }
        if self.streak <= WARM_UP {
            return;
        }
        while self.segments.front().is_some_and(|first| first.range.end.saturating_add(BEHIND) <= range.start) {
            dropped.extend(self.segments.pop_front());
        }
        if self.segments.is_empty() && !self.push(budget, object, range.start / RECORD * RECORD, true) {
            return;
        }
        while let Some(end) = self.segments.back().map(|last| last.range.end)
            && end < object.len()
            && end < range.end.saturating_add(SHORT / 2)
            && self.push(budget, object, end, false)
        {}
        // There was no memory for the next segment. That of the old one may suffice at the next read.
        if self.segments.back().is_some_and(|last| last.range.end <= range.start) {
            dropped.append(&mut self.segments);
        }
    }

    /// Adds a segment that begins at `start`. Returns false if there is no memory for it.
    fn push(&mut self, budget: &Budget, object: &Arc<dyn Object>, start: u64, is_first: bool) -> bool {
        let is_short = is_first || !budget.is_plentiful();
        let end = if is_short { start.saturating_add(SHORT).min(object.len()) } else { object.len() };
        let memory = (end - start + OVERHEAD).min(LONG_MEMORY);
        let Some(memory) = budget.take(memory) else { return false };
        self.segments.push_back(Segment::start(object, start..end, memory));
        true
    }

    fn parts(&mut self, range: &Range<u64>) -> Vec<(Arc<Progress>, Range<u64>)> {
        self.asked = range.end.max(if self.segments.is_empty() { 0 } else { self.asked });
        let (first, last) = (self.segments.front(), self.segments.back());
        let is_covered = first.is_some_and(|first| first.range.start <= range.start)
            && last.is_some_and(|last| range.end <= last.range.end);
        let part = |segment: &Segment| {
            let part = range.start.max(segment.range.start)..range.end.min(segment.range.end);
            (!part.is_empty()).then(|| (segment.progress.clone(), part))
        };
        if is_covered { self.segments.iter().filter_map(part).collect() } else { Vec::new() }
    }
}

/// Waits for `len` bytes from these parts of segments. `None`: they don't have them.
async fn collect(parts: Vec<(Arc<Progress>, Range<u64>)>, len: usize) -> Option<Bytes> {
    let mut pieces = Vec::new();
    for (progress, range) in parts {
        pieces.extend(deadline::timely(progress.take(&range)).await??);
    }
    match pieces.len() {
        0 => None,
        1 => pieces.pop(),
        _ => {
            let mut out = BytesMut::with_capacity(len);
            pieces.iter().for_each(|piece| out.extend_from_slice(piece));
            Some(out.freeze())
        }
    }
}

#[cfg(test)]
mod tests;
