//! Uploads content to the store. With a key the content is sealed first. The Xet session then chunks and
//! uploads it.
//!
//! A stream needs no length. The header of its container is sealed after the stream has ended, and the
//! session keeps back the chunk that it belongs to (DESIGN, "Ways that make it fast"). Memory is constant in
//! addition to that of the session: one record of a stream, two groups of slots of a frozen draft. Ciphertext
//! is never compressed. Plaintext is compressed if the Xet heuristic says so.

use super::draft::NEW_ID_LIMIT;
use super::headers::Headers;
use super::metadata::MAX_METADATA;
use super::remote::Remote;
use super::{Content, ContentId, Error, Frozen, PutProgress, PutSession, Side, SlotId, SlotIo, Stored, Version};
use crate::crypto::geometry::{self, HEADER_LEN, NONCE_LEN, PlainLen, RECORD_LEN, RECORD_PLAIN};
use crate::crypto::{self, FileId, Format, Header, Keys, Random, RecordCipher, SystemRandom};
use crate::xet::compression::Policy;
use crate::xet::upload::Uploaded;
use crate::xet::{self, Hash, UploadSession};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;
use zeroize::Zeroize;

/// Slots read by one blocking call (1 MiB). This keeps the chunker busy while the next ones are read.
const SLOTS_PER_READ: usize = 16;
/// Bytes of content that a session holds, if its source has no other setting. A mount has four concurrent sessions.
pub(super) const MEMORY: usize = 48 << 20;
/// Reads of slots in flight.
const READS_AHEAD: usize = 2;

/// Settings by which a view seals new content.
#[derive(Clone)]
pub(super) struct Sealing {
    pub(super) keys: Arc<Keys>,
    pub(super) format: Format,
    pub(super) padding: geometry::Padding,
    pub(super) headers: Arc<Headers>,
}

/// An upload session of a view.
pub(super) struct Session {
    upload: UploadSession,
    /// Session for edits in place of large encrypted files, whose unchanged records are stored already.
    edits: UploadSession,
    sealing: Option<Sealing>,
    /// Headers created here. They enter the cache once they are registered. Never held over an await.
    made: Mutex<Vec<(Hash, Bytes)>>,
}

impl Session {
    pub(super) fn new(remote: &Remote, sealing: Option<Sealing>) -> Self {
        let session = |global_dedup| {
            let (local, known) = (remote.shards.clone(), remote.known.clone());
            let memory = remote.session_memory;
            let options = xet::upload::Options { memory, global_dedup, local, known, ..Default::default() };
            UploadSession::new(remote.cas.clone(), options)
        };
        // No two new ciphertexts are equal, so a query for dedup would find nothing.
        Self { upload: session(sealing.is_none()), edits: session(true), sealing, made: Mutex::default() }
    }

    async fn add_stream(&self, reader: Box<dyn AsyncRead + Send + Unpin>, len: u64) -> Result<Stored, Error> {
        let exact = Exact { inner: reader, left: len };
        let Some(sealing) = &self.sealing else {
            return self.put(&self.upload, exact, Policy::Auto, Side::Plain, len, len).await;
        };
        // Content that can't be stored is refused before anything is read.
        let records = geometry::records_for(sealing.format, PlainLen(len), sealing.padding)?;
        self.seal_and_upload(sealing, exact, Some((len, geometry::object_len(records)?.0))).await
    }

    async fn add_unmeasured(&self, reader: Box<dyn AsyncRead + Send + Unpin>) -> Result<Stored, Error> {
        let Some(sealing) = &self.sealing else {
            let Uploaded { hash, len } = self.upload.add(reader, Policy::Auto).await.map_err(upload_error)?;
            return Ok(Stored {
                version: Version { id: hash.into(), stored_len: len, side: Side::Plain },
                plain_len: len,
            });
        };
        self.seal_and_upload(sealing, reader, None).await
    }

    /// Seals and uploads content in one pass, without staging. The header is sealed when the content has
    /// ended, and put into the first chunk, which the session keeps back. `announced`: the plaintext and
    /// stored length that the content must have.
    async fn seal_and_upload(
        &self,
        sealing: &Sealing,
        content: impl AsyncRead + Send + Unpin,
        announced: Option<(u64, u64)>,
    ) -> Result<Stored, Error> {
        let Sealing { keys, format, padding, .. } = sealing;
        let file_id = FileId::generate(&mut SystemRandom)?;
        let sealed = SealingReader::new(content, *format, *padding, file_id, keys.records(*format, &file_id));
        let mut made = None;
        let head = |reader: &mut SealingReader<_>| {
            let header = reader.header()?;
            let head = keys.seal_header(&header).map_err(ContentError::Crypto)?;
            made = Some((header, head));
            Ok(head.to_vec())
        };
        let Uploaded { hash, len } =
            self.upload.add_with_late_head(sealed, head, Policy::Never).await.map_err(upload_error)?;
        let (header, head) = made.expect("the session asks for the head before it is done");
        let stored_len = geometry::object_len(header.records)?.0;
        if len != stored_len || announced.is_some_and(|announced| announced != (header.plain_len.0, stored_len)) {
            return Err(Error::LengthMismatch);
        }
        self.made(hash, Bytes::copy_from_slice(&head));
        let version = Version { id: hash.into(), stored_len, side: Side::Encrypted(*format) };
        Ok(Stored { version, plain_len: header.plain_len.0 })
    }

    async fn add_json(&self, json: &[u8]) -> Result<ContentId, Error> {
        if json.len() > MAX_METADATA {
            return Err(Error::Unstorable("so much metadata"));
        }
        let sealed = match &self.sealing {
            Some(sealing) => sealing.keys.metadata().seal(json, &mut SystemRandom)?,
            None => json.to_vec(),
        };
        let Uploaded { hash, .. } = self.upload.add(&sealed[..], Policy::Never).await.map_err(upload_error)?;
        Ok(hash.into())
    }

    async fn add_frozen(&self, frozen: Arc<Frozen>, slots: Arc<dyn SlotIo>) -> Result<Stored, Error> {
        let count = frozen.records.len() as u64;
        match (&self.sealing, &frozen.header) {
            (None, None) => {
                if count != frozen.len.div_ceil(RECORD_PLAIN as u64) {
                    return Err(Error::LengthMismatch);
                }
                let content = read_slots(slots, frozen.clone(), RECORD_PLAIN, frozen.len);
                let content = reader_of(Bytes::new(), content);
                self.put(&self.upload, content, Policy::Auto, Side::Plain, frozen.len, frozen.len).await
            }
            (Some(Sealing { keys, .. }), Some(head)) => {
                let stored_len = geometry::object_len(count)?.0;
                let format = crypto::probe(head, stored_len)?.format;
                // The header has been on disk, so it must be checked that it still opens.
                if keys.open_header(format, head, stored_len)?.plain_len.0 != frozen.len {
                    return Err(Error::LengthMismatch);
                }
                let head = Bytes::copy_from_slice(head);
                let content = read_slots(slots, frozen.clone(), RECORD_LEN, stored_len - HEADER_LEN as u64);
                let content = reader_of(head.clone(), content);
                let side = Side::Encrypted(format);
                let session = if frozen.len > NEW_ID_LIMIT { &self.edits } else { &self.upload };
                let stored = self.put(session, content, Policy::Never, side, stored_len, frozen.len).await?;
                self.made(stored.version.id.xet()?, head);
                Ok(stored)
            }
            _ => Err(Error::WrongSide),
        }
    }

    async fn put(
        &self,
        session: &UploadSession,
        content: impl AsyncRead + Send + Unpin,
        policy: Policy,
        side: Side,
        stored_len: u64,
        plain_len: u64,
    ) -> Result<Stored, Error> {
        let uploaded = session.add(content, policy).await.map_err(upload_error)?;
        if uploaded.len != stored_len {
            return Err(Error::LengthMismatch);
        }
        Ok(Stored { version: Version { id: uploaded.hash.into(), stored_len, side }, plain_len })
    }

    fn made(&self, hash: Hash, head: Bytes) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push((hash, head));
    }
}

#[async_trait]
impl PutSession for Session {
    fn progress(&self) -> Box<dyn Fn() -> PutProgress + Send + Sync> {
        let both = [self.upload.progress(), self.edits.progress()];
        Box::new(move || PutProgress {
            read: both.iter().map(|session| session.read()).sum(),
            sent: both.iter().map(|session| session.sent()).sum(),
        })
    }

    async fn add(&self, content: Content) -> Result<Stored, Error> {
        match content {
            Content::Stream { reader, len: Some(len) } => self.add_stream(reader, len).await,
            Content::Stream { reader, len: None } => self.add_unmeasured(reader).await,
            Content::Frozen { frozen, slots } => self.add_frozen(frozen, slots).await,
        }
    }

    async fn add_metadata(&self, json: &[u8]) -> Result<ContentId, Error> {
        self.add_json(json).await
    }

    async fn register(&self) -> Result<(), Error> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        self.upload.flush().await?;
        self.edits.flush().await?;
        if let Some(sealing) = &self.sealing {
            sealing.headers.learn(made).await;
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), Error> {
        let Self { upload, edits, sealing, made } = *self;
        upload.finish().await?;
        edits.finish().await?;
        if let Some(sealing) = sealing {
            sealing.headers.learn(made.into_inner().unwrap_or_else(PoisonError::into_inner)).await;
        }
        Ok(())
    }
}

/// Failure of a content reader of this module, inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
enum ContentError {
    #[error("the content does not have the announced length")]
    Length,
    #[error(transparent)]
    Crypto(crypto::Error),
}

impl From<ContentError> for io::Error {
    fn from(error: ContentError) -> Self {
        io::Error::other(error)
    }
}

fn upload_error(error: xet::Error) -> Error {
    let xet::Error::Io(error) = error else { return error.into() };
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(ContentError::Length) => Error::LengthMismatch,
        Some(ContentError::Crypto(error)) => Error::from(error.clone()),
        None => Error::Io(xet::io_error(error)),
    }
}

/// A reader that must end after exactly `left` bytes.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Exact<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.left == 0 {
            let mut byte = [0; 1];
            let mut probe = ReadBuf::new(&mut byte);
            ready!(pin!(&mut self.inner).poll_read(cx, &mut probe))?;
            let ended = probe.filled().is_empty();
            return Poll::Ready(if ended { Ok(()) } else { Err(ContentError::Length.into()) });
        }
        let most = out.remaining().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut part = ReadBuf::new(out.initialize_unfilled_to(most));
        ready!(pin!(&mut self.inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        out.advance(read);
        if read == 0 {
            return Poll::Ready(Err(ContentError::Length.into()));
        }
        self.left -= read as u64;
        Poll::Ready(Ok(()))
    }
}

/// A container being written, whose length is known only at the end: space for the header, records of
/// plaintext from `inner`, pad records.
struct SealingReader<R> {
    inner: R,
    format: Format,
    padding: geometry::Padding,
    file_id: FileId,
    cipher: RecordCipher,
    /// Plaintext bytes read.
    plain_len: u64,
    /// Records of the container, once `inner` has ended.
    records: Option<u64>,
    /// Index of the next record to fill.
    index: u64,
    /// Plaintext bytes of that record so far.
    filled: usize,
    slot: Box<[u8; RECORD_LEN]>,
    /// Bytes of the header's space, then of the slot, that are still to be delivered.
    head_left: usize,
    slot_left: usize,
}

impl<R> SealingReader<R> {
    fn new(inner: R, format: Format, padding: geometry::Padding, file_id: FileId, cipher: RecordCipher) -> Self {
        let slot = vec![0; RECORD_LEN].into_boxed_slice().try_into().expect("it has that length");
        Self {
            inner,
            format,
            padding,
            file_id,
            cipher,
            plain_len: 0,
            records: None,
            index: 0,
            filled: 0,
            slot,
            head_left: HEADER_LEN,
            slot_left: 0,
        }
    }

    /// Returns the header for the first [`HEADER_LEN`] bytes. Fails until the content has ended.
    fn header(&self) -> io::Result<Header> {
        let records = self.records.ok_or(ContentError::Length)?;
        let plain_len = PlainLen(self.plain_len);
        Ok(Header { format: self.format, plain_len, records, file_id: self.file_id })
    }
}

impl<R: AsyncRead + Unpin> SealingReader<R> {
    /// Fills the slot with the plaintext of the next record and seals it. Returns `false` if there is no
    /// further record.
    fn poll_seal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.filled < RECORD_PLAIN && self.records.is_none() {
            let mut part = ReadBuf::new(&mut self.slot[NONCE_LEN + self.filled..NONCE_LEN + RECORD_PLAIN]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
            let read = part.filled().len();
            self.filled += read;
            self.plain_len += read as u64;
            if read == 0 {
                let records = geometry::records_for(self.format, PlainLen(self.plain_len), self.padding);
                self.records = Some(records.map_err(ContentError::Crypto)?);
            }
        }
        if self.records == Some(self.index) {
            return Poll::Ready(Ok(false));
        }
        // The slot still holds the previous record.
        self.slot[NONCE_LEN + self.filled..NONCE_LEN + RECORD_PLAIN].fill(0);
        let mut nonce = [0; NONCE_LEN];
        SystemRandom.fill(&mut nonce).map_err(ContentError::Crypto)?;
        self.cipher.seal(self.index, &nonce, &mut self.slot);
        (self.index, self.filled, self.slot_left) = (self.index + 1, 0, RECORD_LEN);
        Poll::Ready(Ok(true))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for SealingReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.head_left > 0 {
            let len = this.head_left.min(out.remaining());
            out.put_slice(&[0; HEADER_LEN][..len]);
            this.head_left -= len;
            return Poll::Ready(Ok(()));
        }
        if this.slot_left == 0 && !ready!(this.poll_seal(cx))? {
            return Poll::Ready(Ok(()));
        }
        let part = &this.slot[RECORD_LEN - this.slot_left..];
        let part = &part[..part.len().min(out.remaining())];
        out.put_slice(part);
        this.slot_left -= part.len();
        Poll::Ready(Ok(()))
    }
}

impl<R> Drop for SealingReader<R> {
    fn drop(&mut self) {
        // Behind the part of a record that isn't sealed yet there is ciphertext only.
        self.slot[NONCE_LEN..NONCE_LEN + self.filled].zeroize();
    }
}

/// Returns the content of a frozen draft's slots, truncated to `len`. Blocking calls read it off the async
/// workers.
fn read_slots(
    slots: Arc<dyn SlotIo>,
    frozen: Arc<Frozen>,
    slot_len: usize,
    len: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let groups = frozen.records.len().div_ceil(SLOTS_PER_READ);
    let read = move |group: usize| {
        let (slots, frozen) = (slots.clone(), frozen.clone());
        async move {
            let first = group * SLOTS_PER_READ;
            let last = frozen.records.len().min(first + SLOTS_PER_READ);
            let left = len.saturating_sub((first * slot_len) as u64);
            let work = move || read_group(&*slots, &frozen.records[first..last], slot_len, left);
            tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
        }
    };
    futures::stream::iter(0..groups).map(read).buffered(READS_AHEAD)
}

fn read_group(slots: &dyn SlotIo, group: &[SlotId], slot_len: usize, left: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; group.len() * slot_len];
    for (slot, out) in group.iter().zip(bytes.chunks_exact_mut(slot_len)) {
        slots.read(*slot, out)?;
    }
    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    Ok(bytes.into())
}

/// Returns a reader of `head` followed by the stream.
fn reader_of(head: Bytes, rest: impl Stream<Item = io::Result<Bytes>> + Send) -> impl AsyncRead + Send + Unpin {
    // An empty piece would end the reader.
    let pieces = futures::stream::iter((!head.is_empty()).then_some(Ok(head))).chain(rest);
    StreamReader::new(Box::pin(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::record::PLAIN;
    use crate::store::testing::counting_keys;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use tokio::io::AsyncReadExt;

    /// A reader that returns its bytes in pieces of these lengths, and isn't ready before each.
    struct Pieces {
        bytes: VecDeque<u8>,
        lens: VecDeque<usize>,
        ready: bool,
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.ready = !self.ready;
            if self.ready {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let len = self.lens.pop_front().unwrap_or(usize::MAX).clamp(1, out.remaining()).min(self.bytes.len());
            let piece: Vec<u8> = self.bytes.drain(..len).collect();
            out.put_slice(&piece);
            Poll::Ready(Ok(()))
        }
    }

    fn pieces(content: &[u8], lens: Vec<usize>) -> Pieces {
        Pieces { bytes: content.to_vec().into(), lens: lens.into(), ready: false }
    }

    async fn read_all(mut reader: impl AsyncRead + Unpin, step: usize) -> io::Result<Vec<u8>> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
        loop {
            match reader.read(&mut buffer).await? {
                0 => return Ok(all),
                len => all.extend_from_slice(&buffer[..len]),
            }
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn sealed_content_opens_again(
            content in prop_oneof![prop::collection::vec(any::<u8>(), 0..200_000), prop::collection::vec(any::<u8>(), RECORD_PLAIN..=RECORD_PLAIN)],
            lens in prop::collection::vec(1usize..70_000, 0..8),
            step in 1usize..100_000,
            padding in prop::sample::select(vec![geometry::Padding::None, geometry::Padding::Padme]),
            format in prop::sample::select(vec![Format::V1, Format::V2]),
        ) {
            let keys = counting_keys();
            let plain_len = PlainLen(content.len() as u64);
            let records = geometry::records_for(format, plain_len, padding).unwrap();
            let header = Header { format, plain_len, records, file_id: FileId([3; 24]) };
            let cipher = keys.records(format, &header.file_id);
            let mut reader = SealingReader::new(pieces(&content, lens), format, padding, header.file_id, cipher);
            prop_assert!(reader.header().is_err(), "the header needs the length");
            let mut sealed = block_on(read_all(&mut reader, step)).unwrap();
            prop_assert_eq!(reader.header().unwrap(), header);
            prop_assert!(sealed[..HEADER_LEN].iter().all(|&byte| byte == 0));
            sealed[..HEADER_LEN].copy_from_slice(&keys.seal_header(&header).unwrap());
            prop_assert_eq!(sealed.len() as u64, geometry::object_len(records).unwrap().0);
            prop_assert_eq!(keys.open_header(format, &sealed, sealed.len() as u64).unwrap(), header);
            let (mut opened, cipher) = (Vec::new(), keys.records(format, &header.file_id));
            let mut nonces = std::collections::BTreeSet::new();
            for (index, slot) in sealed[HEADER_LEN..].chunks_exact_mut(RECORD_LEN).enumerate() {
                nonces.insert(slot[..NONCE_LEN].to_vec());
                cipher.open(index as u64, slot.first_chunk_mut().unwrap()).unwrap();
                prop_assert!(header.tail_is_zero(index as u64, &slot[PLAIN]));
                opened.extend_from_slice(&slot[PLAIN]);
            }
            prop_assert_eq!(nonces.len() as u64, records);
            prop_assert!(opened[..content.len()] == content);
        }

        #[test]
        fn content_of_unannounced_length_fails(
            len in 0usize..140_000, announced in 0u64..140_000, step in 1usize..70_000,
        ) {
            let exact = Exact { inner: pieces(&vec![1; len], vec![]), left: announced };
            let read = block_on(read_all(exact, step));
            prop_assert_eq!(read.is_ok(), len as u64 == announced);
        }
    }
}
