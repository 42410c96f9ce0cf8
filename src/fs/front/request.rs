//! Runs one task per request, and enforces a deadline for every reply.

use crate::fs::{Error, Vfs, or_longest_wait};
use crate::store::deadline::within;
use fuser::Errno;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Time after a late reply in which the kernel's own retry of the request may arrive. It arrives within a
/// millisecond; a second allows for a busy machine.
const SECOND_TRY: Duration = Duration::from_secs(1);
/// Limit of the late replies that are remembered.
const MAX_LATE: usize = 256;

/// A request that the kernel repeats once after an error, before it returns the error to the program.
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

/// The context in which requests are processed.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) vfs: Arc<Vfs>,
    pub(crate) runtime: Handle,
    late: Arc<Late>,
}

/// Returns the errno of an error.
pub(crate) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

impl Desk {
    pub(crate) fn new(vfs: Arc<Vfs>, runtime: Handle) -> Self {
        Self { vfs, runtime, late: Arc::default() }
    }

    /// Processes a request that the kernel may send twice. `reply` and `undo` are those of [`Desk::answer`].
    pub(crate) fn answer_once<T, W, U>(
        &self,
        request: Repeatable,
        work: W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
        undo: impl FnOnce(Arc<Vfs>, T) -> U + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        if self.late.take(&request) {
            return reply(Err(Errno::EIO));
        }
        let (late, began, deadline) = (self.late.clone(), Instant::now(), self.deadline(None));
        let reply = move |done: Result<T, Errno>| {
            // A failure after most of the time was caused by the deadline, whichever part noticed it first.
            if done.as_ref().is_err_and(|error| error.code() == libc::EIO) && began.elapsed() > deadline / 2 {
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

    /// Replies with the result of `work`. When the deadline has passed, the kernel gets `EIO`. The work isn't
    /// dropped, because half an operation is worse than a late one. Its waits for the remote end by the same
    /// deadline. Then `undo` gets its result, and releases what the work created for the kernel.
    pub(crate) fn answer<T, W, U>(
        &self,
        deadline: Option<Duration>,
        work: W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
        undo: impl FnOnce(Arc<Vfs>, T) -> U + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        U: Future<Output = ()> + Send,
    {
        let (deadline, vfs) = (self.deadline(deadline), self.vfs.clone());
        self.runtime.spawn(async move {
            let mut work = pin!(within(deadline, work));
            match tokio::time::timeout(deadline, &mut work).await {
                Ok(done) => reply(done.map_err(|error| note(&error))),
                Err(_) => {
                    reply(Err(Errno::EIO));
                    tracing::warn!("a request failed because its deadline has passed");
                    if let Ok(made) = work.await {
                        undo(vfs, made).await;
                    }
                }
            }
        });
    }
}

fn note(error: &Error) -> Errno {
    let errno = errno(error);
    if error.errno() == libc::EIO {
        tracing::warn!(%error, "a request failed");
    }
    errno
}

#[cfg(test)]
mod tests {
    use super::*;

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
