//! Processes requests, and enforces a deadline for every reply. A request that has to wait becomes a task of its own. A
//! front end passes the work, the reply in its own protocol, and what undoes the work if the reply came too late.

use crate::fs::{Error, Filesystem, or_longest_wait};
use crate::store::deadline::{timely, within};
use bytes::Bytes;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Time after a late reply in which the kernel's own retry of the request may arrive. It arrives within a
/// millisecond; a second allows for a busy machine.
const SECOND_TRY: Duration = Duration::from_secs(1);
/// Limit of the late replies that are remembered.
const MAX_LATE: usize = 256;

/// A request that the client, such as the kernel, repeats once after an error, before it returns the error to the
/// program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Repeatable {
    /// Bytes of an open file. After a failed read-ahead, the kernel reads the one page that it needs.
    Read { handle: u64, bytes: Range<u64> },
    /// A name that the kernel has cached. If it can't revalidate the name, it drops it and sends a new lookup.
    Lookup { parent: u64, name: String },
}

impl Repeatable {
    /// Returns true if `self` requests a part of what `first` requested.
    fn repeats(&self, first: &Self) -> bool {
        match (self, first) {
            (Self::Read { handle, bytes }, Self::Read { handle: of, bytes: all }) => {
                handle == of && all.start <= bytes.start && bytes.start < all.end
            }
            _ => self == first,
        }
    }
}

/// Requests whose deadline passed recently. A program that reads one page must not wait for two deadlines, so the
/// kernel's retry gets its reply immediately.
#[derive(Default)]
struct Late(crate::fs::lock::Mutex<Vec<(Instant, Repeatable)>>);

impl Late {
    fn note(&self, request: Repeatable) {
        let mut late = crate::fs::lock::lock(&self.0);
        late.retain(|(at, _)| at.elapsed() < SECOND_TRY);
        if late.len() < MAX_LATE {
            late.push((Instant::now(), request));
        }
    }

    /// Returns true if this is a retry. Does so once for each late reply.
    fn take(&self, request: &Repeatable) -> bool {
        let mut late = crate::fs::lock::lock(&self.0);
        late.retain(|(at, _)| at.elapsed() < SECOND_TRY);
        let found = late.iter().position(|(_, first)| request.repeats(first));
        found.map(|index| late.swap_remove(index)).is_some()
    }
}

/// Memory for the data of writes. A front end gets the data of a write in a buffer of its own, which it has to copy
/// before it takes the next request. It never waits for that: the task of the write does.
pub(crate) struct WriteMemory {
    /// Bytes that may still be copied.
    copies: Arc<Semaphore>,
    /// Bytes of which the writes may still begin.
    turns: Arc<Semaphore>,
    in_turn: usize,
}

/// The data of a write that waits for its turn.
pub(crate) struct QueuedWrite {
    data: Bytes,
    turns: Arc<Semaphore>,
    /// Bytes that it takes of `turns`.
    weight: u32,
    copied: OwnedSemaphorePermit,
}

/// Memory of a write that is being processed.
pub(crate) struct WriteTurn {
    _turn: OwnedSemaphorePermit,
    _copied: OwnedSemaphorePermit,
}

impl WriteMemory {
    /// At most `copies` bytes are copied, and `in_turn` of them belong to writes that are being processed.
    pub(crate) fn new(copies: usize, in_turn: usize) -> Self {
        Self { copies: Arc::new(Semaphore::new(copies)), turns: Arc::new(Semaphore::new(in_turn)), in_turn }
    }

    /// Copies the data of a write. `None`: too much is copied already. Never waits.
    pub(crate) fn copy(&self, data: &[u8]) -> Option<QueuedWrite> {
        let copied = self.copies.clone().try_acquire_many_owned(u32::try_from(data.len()).ok()?).ok()?;
        // A write that exceeds the limit by itself waits until no other one is being processed.
        let weight = data.len().min(self.in_turn) as u32;
        Some(QueuedWrite { data: Bytes::copy_from_slice(data), turns: self.turns.clone(), weight, copied })
    }
}

impl QueuedWrite {
    /// Waits for the turn of this write, in the order of arrival, until the deadline of the request. Keep the second
    /// value until the write is done.
    pub(crate) async fn turn(self) -> Result<(Bytes, WriteTurn), Error> {
        let turn = timely(self.turns.acquire_many_owned(self.weight)).await;
        let turn = turn.and_then(Result::ok).ok_or(Error::TimedOut)?;
        Ok((self.data, WriteTurn { _turn: turn, _copied: self.copied }))
    }
}

/// The context in which requests are processed.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) vfs: Arc<dyn Filesystem>,
    pub(crate) runtime: Handle,
    late: Arc<Late>,
}

impl RequestContext {
    pub(crate) fn new(vfs: Arc<dyn Filesystem>, runtime: Handle) -> Self {
        Self { vfs, runtime, late: Arc::default() }
    }

    /// Processes a request that the client may send twice. `reply` and `undo` are those of [`RequestContext::answer`].
    pub(crate) fn answer_once<T, W, U>(
        &self,
        request: Repeatable,
        work: W,
        reply: impl FnOnce(Result<T, Error>) + Send + 'static,
        undo: impl FnOnce(Arc<dyn Filesystem>, T) -> U + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        if self.late.take(&request) {
            return reply(Err(Error::TimedOut));
        }
        let (late, began, deadline) = (self.late.clone(), Instant::now(), self.deadline(None));
        let reply = move |done: Result<T, Error>| {
            // A failure after most of the time was caused by the deadline, whichever part noticed it first.
            if done.as_ref().is_err_and(|error| error.errno() == libc::EIO) && began.elapsed() > deadline / 2 {
                late.note(request);
            }
            reply(done);
        };
        self.answer(None, work, reply, undo);
    }

    /// Returns the time that a reply may take.
    pub(crate) fn deadline(&self, deadline: Option<Duration>) -> Duration {
        deadline.map_or_else(|| self.vfs.reply_deadline(), or_longest_wait)
    }

    /// Replies with the result of `work`. When the deadline has passed, the reply is [`Error::TimedOut`]. The work
    /// isn't dropped, because half an operation is worse than a late one. Its waits for the remote end by the same
    /// deadline. Then `undo` gets its result, and releases what the work created for the client.
    pub(crate) fn answer<T, W, U>(
        &self,
        deadline: Option<Duration>,
        work: W,
        reply: impl FnOnce(Result<T, Error>) + Send + 'static,
        undo: impl FnOnce(Arc<dyn Filesystem>, T) -> U + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        let (deadline, vfs) = (self.deadline(deadline), self.vfs.clone());
        let mut task = Box::pin(async move {
            let mut work = pin!(within(deadline, work));
            match tokio::time::timeout(deadline, &mut work).await {
                Ok(done) => reply(done.inspect_err(log)),
                Err(_) => {
                    reply(Err(Error::TimedOut));
                    tracing::warn!("a request failed because its deadline has passed");
                    if let Ok(made) = work.await {
                        undo(vfs, made).await;
                    }
                }
            }
        });
        // Most requests have nothing to wait for. They are answered by this thread, because waking another one often
        // costs more than the work. A request that has to wait goes on as a task of the runtime.
        let entered = self.runtime.enter();
        let poll = AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        let polled = std::panic::catch_unwind(poll);
        drop(entered);
        match polled {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => drop(self.runtime.spawn(task)),
            // As in a task: the reply was dropped, which answers with an error, and the front end goes on.
            Err(_) => tracing::error!("a request was aborted by a panic"),
        }
    }
}

fn log(error: &Error) {
    if error.errno() == libc::EIO {
        tracing::warn!(%error, "a request failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn write_is_copied_at_once_and_waits_for_its_turn_in_order_until_its_deadline() {
        let memory = WriteMemory::new(10, 4);
        let first = memory.copy(b"1234").unwrap().turn().await.unwrap();
        let mut second = pin!(memory.copy(b"56").unwrap().turn());
        let mut third = pin!(memory.copy(b"7").unwrap().turn());
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        let late = within(Duration::from_secs(3), memory.copy(b"8").unwrap().turn()).await;
        assert!(matches!(late, Err(Error::TimedOut)));
        // 7 bytes are copied.
        assert!(memory.copy(b"abcd").is_none());
        drop(first);
        assert_eq!(second.await.unwrap().0, &b"56"[..]);
        assert_eq!(third.await.unwrap().0, &b"7"[..]);
        // It is larger than all that may be processed at once.
        let large = memory.copy(b"0123456789").unwrap().turn().await.unwrap();
        assert!(large.0.len() == 10 && memory.copy(b"x").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn retry_of_late_request_is_recognised_once_within_a_second() {
        let read = |bytes| Repeatable::Read { handle: 1, bytes };
        let lookup = |name: &str| Repeatable::Lookup { parent: 1, name: name.to_owned() };
        let late = Late::default();
        assert!(!late.take(&lookup("a")));
        late.note(lookup("a"));
        late.note(read(4096..8192));
        assert!(!late.take(&lookup("b")) && !late.take(&read(0..4096)) && !late.take(&read(8192..9000)));
        assert!(!late.take(&Repeatable::Read { handle: 2, bytes: 4096..8192 }));
        assert!(late.take(&lookup("a")) && late.take(&read(8000..9000)));
        assert!(!late.take(&lookup("a")) && !late.take(&read(8000..9000)));
        late.note(lookup("a"));
        tokio::time::advance(SECOND_TRY).await;
        assert!(!late.take(&lookup("a")));
    }
}
