//! Content and lists over a data connection.

use super::STALL;
use super::entry::{Entry, Facts, is_shown};
use super::login::Caller;
use super::place::prefix;
use super::wire::{Pulse, Wire};
use crate::gateway::{After, Bucket, Error, Listed, Permission, Query, UploadBody};
use crate::store::{ByteStream, PlainPath};
use bytes::BytesMut;
use futures::StreamExt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes read from a data connection at once.
const READ: usize = 256 << 10;
/// Entries of a list that are looked up at once.
const PAGE: usize = 2000;
/// Longest wait for the end of TLS on a data connection.
const CLOSE: Duration = Duration::from_secs(2);

/// Returns what a client sends. The stream fails if the client is gone at its end, or made no progress.
pub(super) fn receive(wire: Wire, pulse: Pulse, count: impl Fn(u64) + Send + 'static) -> UploadBody {
    let state = (wire, BytesMut::new(), count);
    let body = futures::stream::try_unfold(state, move |(mut wire, mut buffer, count)| {
        let pulse = pulse.clone();
        async move {
            buffer.reserve(READ);
            let len = match tokio::time::timeout(STALL, wire.read_buf(&mut buffer)).await {
                Ok(read) => read.map_err(|error| Error::Body(error.to_string()))?,
                Err(_) => return Err(Error::Body("no byte came for a minute".into())),
            };
            count(len as u64);
            if len > 0 {
                let bytes = buffer.split().freeze();
                return Ok(Some((bytes, (wire, buffer, count))));
            }
            if pulse.is_gone() {
                return Err(Error::Body("the client left before the end".into()));
            }
            // All content has come, whether or not the client waits for the end of TLS.
            if let Ok(Ok(())) = tokio::time::timeout(CLOSE, say_end(&mut wire)).await {
                wait_for_end(wire).await;
            }
            Ok(None)
        }
    });
    body.boxed()
}

/// Sends content. Returns the number of bytes.
pub(super) async fn send(mut wire: Wire, mut content: ByteStream, sent: &AtomicU64) -> Result<u64, Error> {
    let mut total = 0;
    while let Some(piece) = content.next().await {
        let written = match piece {
            Ok(piece) => write(&mut wire, &piece).await.map(|()| piece.len() as u64),
            Err(error) => {
                wire.cut();
                return Err(Error::Store(error));
            }
        };
        let len = written.map_err(|error| Error::Body(error.to_string()))?;
        sent.fetch_add(len, Ordering::Relaxed);
        total += len;
    }
    finish(wire).await?;
    Ok(total)
}

/// Ends a connection over which content was sent. Fails if the client doesn't take all of it.
async fn finish(mut wire: Wire) -> Result<(), Error> {
    match tokio::time::timeout(STALL, say_end(&mut wire)).await {
        Ok(Ok(())) => {
            wait_for_end(wire).await;
            Ok(())
        }
        Ok(Err(error)) => Err(Error::Body(error.to_string())),
        Err(_) => {
            wire.cut();
            Err(Error::Body("the client takes nothing".into()))
        }
    }
}

/// Sends what TLS holds back because the socket hasn't taken it yet, and then the end of the connection.
async fn say_end(wire: &mut Wire) -> io::Result<()> {
    wire.flush().await?;
    wire.shutdown().await
}

/// Waits a moment for the end of TLS that the client says.
async fn wait_for_end(mut wire: Wire) {
    let end = async {
        let mut rest = [0; 256];
        while wire.is_secure() && wire.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Nothing depends on it.
    let _ = tokio::time::timeout(CLOSE, end).await;
}

async fn write(wire: &mut Wire, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // Each step of progress has its own time.
        let len = tokio::time::timeout(STALL, wire.write(bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if len == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[len..];
    }
    Ok(())
}

/// Form of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As of `ls -l`.
    Long,
    /// For programs.
    Facts(Facts),
    /// Names.
    Names,
}

/// Entries of a list, a page at a time.
pub(super) enum List {
    /// These.
    Fixed(Vec<Entry>),
    /// Those of a folder.
    Folder(Folder),
}

/// A folder that is being listed.
pub(super) struct Folder {
    bucket: Arc<Bucket>,
    /// Name of the bucket for clients.
    name: String,
    path: PlainPath,
    caller: Caller,
    /// Where the next page starts. `None`: there is none.
    next: Option<After>,
}

impl Folder {
    pub(super) fn new(bucket: Arc<Bucket>, name: String, path: PlainPath, caller: Caller) -> Self {
        Self { bucket, name, path, caller, next: Some(After::Start) }
    }

    async fn page(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let Some(after) = self.next.take() else { return Ok(None) };
        let prefix = prefix(&self.path);
        let continues = Some(after != After::Start);
        let delimiter = Some("/".to_owned());
        let query = Query { prefix: prefix.clone(), delimiter, after, continues, limit: PAGE };
        let page = self.bucket.list(&query).await?;
        self.next = page.next;
        let folders = page.prefixes.iter().filter_map(|key| self.folder(key, &prefix));
        let files = page.objects.iter().filter_map(|object| self.file(object, &prefix));
        Ok(Some(folders.chain(files).collect()))
    }

    fn folder(&self, key: &str, prefix: &str) -> Option<Entry> {
        let name = key.strip_prefix(prefix)?.strip_suffix('/')?.to_owned();
        let is_seen = is_shown(&name) && self.caller.may_enter(&self.name, key);
        let writable = self.caller.may(Permission::Write, &self.name, key);
        is_seen.then_some(Entry { name, len: None, modified: None, writable })
    }

    fn file(&self, object: &Listed, prefix: &str) -> Option<Entry> {
        // The folder's own marker has no name.
        let name = object.key.strip_prefix(prefix).filter(|name| !name.is_empty())?.to_owned();
        let is_seen = is_shown(&name) && self.caller.may(Permission::Read, &self.name, &object.key);
        let writable = self.caller.may(Permission::Write, &self.name, &object.key);
        is_seen.then_some(Entry { name, len: Some(object.len), modified: object.modified, writable })
    }
}

impl List {
    /// Returns the next entries. `None`: there are no more.
    pub(super) async fn page(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        match self {
            Self::Fixed(entries) => Ok(Some(std::mem::take(entries)).filter(|entries| !entries.is_empty())),
            Self::Folder(folder) => folder.page().await,
        }
    }
}

/// A list in the form that a client wants.
pub(super) struct Shown {
    pub(super) list: List,
    pub(super) form: Form,
    /// Text in front of each name: the folder of the client's argument.
    pub(super) before: String,
    /// Only names that match.
    pub(super) pattern: Option<wildmatch::WildMatch>,
}

impl Shown {
    /// Returns the lines of the next page. `None`: there are no more.
    pub(super) async fn lines(&mut self) -> Result<Option<String>, Error> {
        let Some(entries) = self.list.page().await? else { return Ok(None) };
        let now = time::OffsetDateTime::now_utc();
        let matches = |entry: &&Entry| self.pattern.as_ref().is_none_or(|pattern| pattern.matches(&entry.name));
        let line = |entry: &Entry| match self.form {
            Form::Long => entry.ls_line(now),
            Form::Facts(facts) => format!("{}\r\n", entry.facts_line(facts, entry.kind(), &entry.name)),
            Form::Names => format!("{}{}\r\n", self.before, entry.name),
        };
        Ok(Some(entries.iter().filter(matches).map(line).collect()))
    }

    /// Sends the list.
    pub(super) async fn send(mut self, mut wire: Wire, sent: &AtomicU64) -> Result<u64, Error> {
        let mut total = 0;
        loop {
            match self.lines().await {
                Ok(None) => break,
                Ok(Some(text)) => {
                    write(&mut wire, text.as_bytes()).await.map_err(|error| Error::Body(error.to_string()))?;
                    total += text.len() as u64;
                }
                Err(error) => {
                    wire.cut();
                    return Err(error);
                }
            }
        }
        sent.fetch_add(total, Ordering::Relaxed);
        finish(wire).await?;
        Ok(total)
    }
}
