//! The daemon's control socket: one JSON request line, one JSON answer line. Mode 0600: answers hold plaintext paths.

use super::registry::Record;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::fs::{Drained, Status};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest line either side takes, bytes.
const MAX_LINE: u64 = 64 * 1024;

/// What a client may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    /// How is it?
    Status,
    /// Wait until what is pending is on the Hub.
    Flush,
    /// Flush, unmount, drain, exit.
    Stop {
        /// Detach although files are open.
        lazy: bool,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// To `Status`.
    Status(Box<Live>),
    /// To `Flush` and `Stop`.
    Drained(Drained),
    /// Not done; the mount goes on.
    Refused(Failure),
}

/// What only the daemon knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Live {
    /// Source with its plaintext subfolder.
    pub(super) source: String,
    /// Seconds since it was mounted.
    pub(super) uptime_s: u64,
    /// Key id, where there is a key.
    pub(super) key_id: Option<String>,
    /// Unmounted already, finishing its uploads.
    pub(super) draining: bool,
    /// The filesystem's own.
    pub(super) status: Status,
}

/// Bytes of a socket's path that the kernel takes.
const MAX_PATH: usize = 107;

/// Whether a socket can have this path: asked before anything is mounted.
pub(super) fn check_path(path: &Path) -> Outcome {
    if path.as_os_str().len() > MAX_PATH {
        let message = format!("control socket {}: the path is longer than {MAX_PATH} bytes", path.display());
        return Err(Failure::new(Exit::System, message).hint("set HOME to a shorter path"));
    }
    Ok(())
}

/// Opens the socket; a dead one is replaced.
pub(super) fn listen(path: &Path) -> Outcome<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::remove_file(path);
    let fail = |e: std::io::Error| Failure::from(e).about(format!("control socket {}", path.display()));
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

async fn read_line<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> std::io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_LINE)).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Reads the request of one connection. A client that says nothing for 10 s is dropped.
pub(super) async fn receive(stream: &mut UnixStream) -> std::io::Result<Request> {
    tokio::time::timeout(Duration::from_secs(10), read_line(stream)).await?
}

/// Sends the answer. A client that is gone is no failure of ours.
pub(super) async fn reply(mut stream: UnixStream, answer: &Answer) {
    if let Err(error) = write_line(&mut stream, answer).await {
        tracing::debug!(%error, "control client left");
    }
}

/// Asks a running daemon.
pub(super) async fn ask(record: &Record, request: Request) -> Outcome<Answer> {
    let path = record.socket()?;
    let fail = |e: std::io::Error| {
        Failure::new(
            Exit::Failure,
            format!("the daemon of {} (pid {}) does not answer: {e}", record.mountpoint.display(), record.pid),
        )
    };
    let exchange = async {
        let mut stream = UnixStream::connect(&path).await?;
        write_line(&mut stream, &request).await?;
        read_line(&mut stream).await
    };
    match request {
        Request::Status => {
            tokio::time::timeout(Duration::from_secs(5), exchange).await.unwrap_or_else(|e| Err(e.into()))
        }
        // As long as it takes: whoever asked may interrupt the client, and the daemon goes on.
        Request::Flush | Request::Stop { .. } => exchange.await,
    }
    .map_err(fail)
}
