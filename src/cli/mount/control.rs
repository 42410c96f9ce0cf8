//! The daemon's control socket: one JSON request line, one JSON answer line, and behind the answer to `Read` a file's
//! bytes. Mode 0600: answers hold plaintext paths and contents.
//!
//! Contents come in frames: a length (u32, little-endian) and so many bytes. A length of 0 ends
//! them, and one more line says how it went.

use super::registry::Record;
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::fs::{Drained, OnConflict, Pending, PendingFile, PendingNo, Status};
use crate::store::deadline::within;
use crate::store::mtime_millis;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest line either side takes, bytes: a page of [`PAGE`] paths of 4096 bytes each and more, escaped.
const MAX_LINE: u64 = 32 << 20;
/// Things in one answer or request.
pub(super) const PAGE: usize = 500;
/// Longest frame of a content, bytes.
const MAX_FRAME: usize = 1 << 20;
/// How long the part of a frame that is on this machine may take.
const LOCAL_READ: Duration = Duration::from_secs(10);
/// How long a client may take to accept a frame.
const FRAME_PATIENCE: Duration = Duration::from_secs(60);

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What is pending? One page.
    Pending {
        /// The last of the page before.
        after: Option<PendingNo>,
    },
    /// Try these again at once.
    Retry {
        /// Which.
        numbers: Vec<PendingNo>,
        /// What to do about conflicts.
        on_conflict: Option<OnConflict>,
    },
    /// The content of one.
    Read {
        /// Which.
        number: PendingNo,
        /// Without waiting for the Hub: it didn't answer a moment ago.
        #[serde(default)]
        local: bool,
    },
    /// Give these up, in this order.
    Drop {
        /// Which.
        numbers: Vec<PendingNo>,
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
    /// To `Pending`: empty behind the last.
    Pending(Vec<Pending>),
    /// To `Retry`: how many of them are pending.
    Retried(usize),
    /// To `Read`: frames follow.
    Content {
        /// Bytes in all.
        len: u64,
        /// When it was changed last, milliseconds since 1970.
        mtime_millis: i64,
    },
    /// Behind the frames of a content: it is whole.
    Whole,
    /// To `Drop`: why each was not given up, if so.
    Dropped(Vec<Option<Failure>>),
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
    /// True in overlay mode.
    #[serde(default)]
    pub(super) overlay: bool,
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

async fn read_line<T: serde::de::DeserializeOwned>(stream: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<T> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

async fn write_line(stream: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Reads the request of one connection. A client that says nothing for 10 s is dropped.
pub(super) async fn receive(stream: &mut UnixStream) -> std::io::Result<Request> {
    tokio::time::timeout(Duration::from_secs(10), read_line(&mut BufReader::new(stream))).await?
}

/// Sends the answer. A client that is gone is no failure of ours.
pub(super) async fn reply(mut stream: UnixStream, answer: &Answer) {
    if let Err(error) = write_line(&mut stream, answer).await {
        tracing::debug!(%error, "control client left");
    }
}

/// Sends a pending file's content. `patience`: how long one read may wait for the Hub.
pub(super) async fn send_content(mut stream: UnixStream, file: PendingFile, patience: Duration) {
    let answer = Answer::Content { len: file.len(), mtime_millis: mtime_millis(file.mtime()) };
    let send = async {
        write_line(&mut stream, &answer).await?;
        let mut offset = 0;
        let end = loop {
            if offset >= file.len() {
                break Answer::Whole;
            }
            let read = within(patience, file.read(offset, MAX_FRAME));
            let read = tokio::time::timeout(patience.saturating_add(LOCAL_READ), read).await;
            let bytes = match read.unwrap_or(Err(crate::fs::Error::TimedOut)) {
                Ok(bytes) if !bytes.is_empty() => bytes,
                Ok(_) => break Answer::Refused(Failure::new(Exit::Failure, "it ended early")),
                Err(error) => break Answer::Refused(error.into()),
            };
            offset += bytes.len() as u64;
            let frame = async {
                stream.write_u32_le(bytes.len() as u32).await?;
                stream.write_all(&bytes).await
            };
            tokio::time::timeout(FRAME_PATIENCE, frame).await??;
        };
        stream.write_u32_le(0).await?;
        write_line(&mut stream, &end).await
    };
    if let Err(error) = send.await {
        tracing::debug!(%error, "control client left");
    }
}

/// A content that is being received.
pub(super) struct Content {
    stream: BufReader<UnixStream>,
    pub(super) len: u64,
    /// Milliseconds since 1970.
    pub(super) mtime_millis: i64,
    got: u64,
}

impl Content {
    /// Asks for the content of a pending file.
    pub(super) async fn open(record: &Record, number: PendingNo, local: bool) -> Outcome<Self> {
        let fail = |e| no_answer(record, e);
        let mut stream = UnixStream::connect(record.socket()?).await.map_err(fail)?;
        write_line(&mut stream, &Request::Read { number, local }).await.map_err(fail)?;
        let mut stream = BufReader::new(stream);
        match read_line(&mut stream).await.map_err(fail)? {
            Answer::Content { len, mtime_millis } => Ok(Self { stream, len, mtime_millis, got: 0 }),
            Answer::Refused(failure) => Err(failure),
            _ => Err(another_kind()),
        }
    }

    /// The next bytes; `None` behind the last. Fails where they aren't all there.
    pub(super) async fn next(&mut self) -> Outcome<Option<Vec<u8>>> {
        let len = self.stream.read_u32_le().await? as usize;
        if len > MAX_FRAME {
            return Err(another_kind());
        }
        if len > 0 {
            let mut bytes = vec![0; len];
            self.stream.read_exact(&mut bytes).await?;
            self.got += len as u64;
            return Ok(Some(bytes));
        }
        match read_line(&mut self.stream).await? {
            Answer::Whole if self.got == self.len => Ok(None),
            Answer::Refused(failure) => Err(failure),
            _ => Err(another_kind()),
        }
    }
}

/// The error for a reply that does not match the request.
pub(super) fn another_kind() -> Failure {
    Failure::new(Exit::Failure, "unexpected reply from the daemon")
        .hint("stop the mount and start it again with this version")
}

fn no_answer(record: &Record, error: std::io::Error) -> Failure {
    let point = record.mountpoint.display();
    Failure::new(Exit::Failure, format!("the daemon of {point} (pid {}) does not reply: {error}", record.pid))
}

/// Asks a running daemon.
pub(super) async fn ask(record: &Record, request: Request) -> Outcome<Answer> {
    let path = record.socket()?;
    let exchange = async {
        let mut stream = UnixStream::connect(&path).await?;
        write_line(&mut stream, &request).await?;
        read_line(&mut BufReader::new(stream)).await
    };
    match &request {
        Request::Status => {
            tokio::time::timeout(Duration::from_secs(5), exchange).await.unwrap_or_else(|e| Err(e.into()))
        }
        // As long as it takes: whoever asked may interrupt the client, and the daemon goes on.
        _ => exchange.await,
    }
    .map_err(|error| no_answer(record, error))
}
