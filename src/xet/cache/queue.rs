//! What waits for the thread that writes: runs of chunks, within a bound, and the sign that there are notes to enter.
//!
//! Nobody ever waits to put something in: what is over the bound is dropped. Runs of one xorb that touch are taken out
//! as one, so that chunks handed in one by one do not become a file each.

use super::Cached;
use crate::Hash;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs that wait at most, however small they are: finding neighbours is a walk over all of them.
const MAX_RUNS: usize = 1024;
/// Runs that are given out at once: they share their transactions.
const BATCH: usize = 32;
/// How long a note may wait: what is lost with a crash, and how rarely the disk is written to for it.
const NOTES_WAIT: Duration = Duration::from_secs(5);

/// Consecutive chunks of a xorb.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) xorb: Hash,
    pub(super) first: u32,
    /// At least one.
    pub(super) chunks: VecDeque<Cached>,
    /// Of all chunks together.
    pub(super) bytes: u64,
}

impl Run {
    /// Its chunks' indices.
    pub(super) fn range(&self) -> Range<u32> {
        self.first..self.first + self.chunks.len() as u32
    }

    /// Takes `other` in if it is of the same xorb, touches this one, and both together stay within `limit`.
    fn join(&mut self, other: Run, limit: &Limit) -> Result<(), Run> {
        let fits = self.bytes + other.bytes <= limit.bytes && self.chunks.len() + other.chunks.len() <= limit.chunks;
        if self.xorb != other.xorb || !fits {
            return Err(other);
        }
        if self.range().end == other.first {
            self.chunks.extend(other.chunks);
        } else if other.range().end == self.first {
            self.first = other.first;
            other.chunks.into_iter().rev().for_each(|chunk| self.chunks.push_front(chunk));
        } else {
            return Err(other);
        }
        self.bytes += other.bytes;
        Ok(())
    }
}

/// How large a run may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) bytes: u64,
    pub(super) chunks: usize,
}

/// What the writing thread is to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// The oldest runs, at most [`BATCH`].
    Write(Vec<Run>),
    /// Nothing to write, but notes to enter.
    Notes,
    Closed,
}

#[derive(Default)]
struct State {
    runs: VecDeque<Run>,
    /// Of all runs together.
    bytes: u64,
    /// Since when there have been notes.
    notes: Option<Instant>,
    /// They can't wait.
    urgent: bool,
    closed: bool,
    /// Whether the thread is at something.
    busy: bool,
    /// Runs that were dropped.
    dropped: u64,
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Payload that waits at most, bytes.
    max_bytes: u64,
    limit: Limit,
}

impl Queue {
    /// An empty one.
    pub(super) fn new(max_bytes: u64, limit: Limit) -> Self {
        // The thread is at its first look at the folder.
        let state = State { busy: true, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), max_bytes, limit }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a run, or drops it where there is no room.
    pub(super) fn push(&self, run: Run) -> bool {
        let mut state = self.lock();
        if state.closed || state.runs.len() >= MAX_RUNS || state.bytes + run.bytes > self.max_bytes {
            state.dropped += 1;
            return false;
        }
        state.bytes += run.bytes;
        state.runs.push_back(run);
        self.changed.notify_all();
        true
    }

    /// Runs dropped so far.
    #[cfg(test)]
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// There are notes to enter: soon, or at once.
    pub(super) fn note(&self, urgent: bool) {
        let mut state = self.lock();
        if urgent || state.notes.is_none() {
            state.notes.get_or_insert_with(Instant::now);
            state.urgent |= urgent;
            self.changed.notify_all();
        }
    }

    /// No more is taken, and what waits is dropped.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.runs.clear();
        state.bytes = 0;
        self.changed.notify_all();
    }

    /// Waits for something to do. For one thread.
    pub(super) fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            state.busy = true;
            if state.closed {
                return Next::Closed;
            }
            let batch: Vec<Run> = std::iter::from_fn(|| self.take(&mut state)).take(BATCH).collect();
            if !batch.is_empty() {
                return Next::Write(batch);
            }
            let wait = state.notes.map(|since| NOTES_WAIT.saturating_sub(since.elapsed()));
            if state.urgent || wait == Some(Duration::ZERO) {
                (state.notes, state.urgent) = (None, false);
                return Next::Notes;
            }
            state.busy = false;
            self.changed.notify_all();
            state = match wait {
                Some(wait) => self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The oldest run, and what touches it.
    fn take(&self, state: &mut State) -> Option<Run> {
        let mut run = state.runs.pop_front()?;
        let mut at = 0;
        while let Some(other) = state.runs.remove(at) {
            match run.join(other, &self.limit) {
                // What lies before it may touch it now.
                Ok(()) => at = 0,
                Err(other) => {
                    state.runs.insert(at, other);
                    at += 1;
                }
            }
        }
        state.bytes -= run.bytes;
        Some(run)
    }

    /// Waits until all that was put in before is done, notes among it. Blocks.
    pub(super) fn settle(&self) {
        self.note(true);
        let mut state = self.lock();
        while !state.closed && (state.busy || state.urgent || !state.runs.is_empty()) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::chunk_hash;
    use bytes::Bytes;

    const LIMIT: Limit = Limit { bytes: 10, chunks: 5 };

    fn run(xorb: u8, range: Range<u32>) -> Run {
        let chunk = |i: u32| Cached { hash: chunk_hash(&[i as u8]), bytes: Bytes::from(vec![i as u8]) };
        Run {
            xorb: Hash([xorb; 32]),
            first: range.start,
            bytes: u64::from(range.end - range.start),
            chunks: range.map(chunk).collect(),
        }
    }

    fn taken(queue: &Queue) -> Vec<(u8, Range<u32>)> {
        let Next::Write(runs) = queue.next() else { panic!("nothing to write") };
        let check = |run: Run| {
            let bytes: Vec<u8> = run.chunks.iter().map(|chunk| chunk.bytes[0]).collect();
            assert_eq!(bytes, run.range().map(|i| i as u8).collect::<Vec<_>>());
            assert_eq!(run.bytes, bytes.len() as u64);
            (run.xorb.0[0], run.range())
        };
        runs.into_iter().map(check).collect()
    }

    #[test]
    fn runs_that_touch_become_one_and_others_stay() {
        let queue = Queue::new(100, LIMIT);
        for (xorb, range) in [(1, 3..4), (2, 4..5), (1, 5..6), (1, 2..3), (1, 4..5), (1, 0..1)] {
            assert!(queue.push(run(xorb, range)));
        }
        assert_eq!(taken(&queue), [(1, 2..6), (2, 4..5), (1, 0..1)]);
    }

    #[test]
    fn no_run_grows_beyond_its_limit() {
        let queue = Queue::new(100, LIMIT);
        (0..8).for_each(|i| assert!(queue.push(run(1, i..i + 1))));
        assert_eq!(taken(&queue), [(1, 0..5), (1, 5..8)]);
    }

    #[test]
    fn what_is_over_the_bound_is_dropped() {
        let queue = Queue::new(6, LIMIT);
        assert!(queue.push(run(1, 0..4)));
        assert!(!queue.push(run(2, 0..3)));
        assert!(queue.push(run(3, 0..2)));
        assert_eq!(taken(&queue), [(1, 0..4), (3, 0..2)]);
        assert!(queue.push(run(2, 0..3)));
        assert_eq!(queue.dropped(), 1);
        let many = Queue::new(u64::MAX, LIMIT);
        assert_eq!((0..2 * MAX_RUNS).filter(|_| many.push(run(1, 0..1))).count(), MAX_RUNS);
        assert_eq!(taken(&many).len(), BATCH);
    }

    #[test]
    fn a_closed_queue_takes_and_gives_nothing() {
        let queue = Queue::new(6, LIMIT);
        assert!(queue.push(run(1, 0..4)));
        queue.close();
        assert!(!queue.push(run(1, 0..1)));
        assert!(matches!(queue.next(), Next::Closed));
        queue.settle();
    }

    #[test]
    fn urgent_notes_come_after_what_waits_and_once() {
        let queue = Queue::new(6, LIMIT);
        queue.note(false);
        queue.note(true);
        assert!(queue.push(run(1, 0..1)));
        assert!(matches!(queue.next(), Next::Write(_)));
        assert!(matches!(queue.next(), Next::Notes));
        queue.close();
        assert!(matches!(queue.next(), Next::Closed));
    }
}
