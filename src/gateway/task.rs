//! The task of a server: its address, and a stop.

use std::net::SocketAddr;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The running task of a server. Dropping it ends it without waiting.
pub(super) struct Task {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Task {
    /// Starts a task, which ends after the watched value has become true. `address`: where the server listens.
    pub(super) fn start<F>(address: SocketAddr, serve: impl FnOnce(watch::Receiver<bool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        Self { address, stop, task: tokio::spawn(serve(stopped)) }
    }

    /// Returns the address where the server listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells the task to end, and waits for it.
    pub(super) async fn stop(&mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}
