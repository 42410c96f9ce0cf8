//! One task per request, and a deadline on every answer.

use crate::fs::{Error, Vfs};
use fuser::Errno;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// A deadline of zero means none; this stands for it (an hour).
const FOREVER: Duration = Duration::from_secs(3600);

/// Where answers are worked out.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) vfs: Arc<Vfs>,
    pub(super) runtime: Handle,
}

/// The number of an error for the kernel.
pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

impl Desk {
    /// The time an answer may take.
    pub(super) fn deadline(&self, deadline: Option<Duration>) -> Duration {
        let deadline = deadline.unwrap_or(self.vfs.options().reply_deadline);
        if deadline.is_zero() { FOREVER } else { deadline }
    }

    /// Answers with what `work` gives. When the deadline is over the kernel gets `EIO`, but the work goes on to its end, since half an operation is
    /// worse than a late one; what it made for the kernel is handed to `undo`.
    pub(super) fn answer<T, W, U>(
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
            let mut work = pin!(work);
            match tokio::time::timeout(deadline, &mut work).await {
                Ok(done) => reply(done.map_err(|error| note(&error))),
                Err(_) => {
                    reply(Err(Errno::EIO));
                    tracing::warn!("a request was answered with an error because its deadline was over");
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
