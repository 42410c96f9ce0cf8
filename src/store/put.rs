//! Putting content into the store: sealed on the way where there is a key, then chunked and uploaded by the Xet session.
//!
//! Constant memory beside the session's own: one record of a stream, two groups of slots of a frozen draft. Ciphertext is never
//! compressed; plaintext as the Xet heuristic says.

use super::headers::Headers;
use super::{Content, Error, Frozen, PutSession, Side, SlotId, SlotIo, Stored, Version};
use crate::crypto::geometry::{self, HEADER_LEN, NONCE_LEN, PlainLen, RECORD_LEN, RECORD_PLAIN};
use crate::crypto::{self, FileId, Format, Header, Keys, Random, RecordCipher, SystemRandom};
use crate::xet::compression::Policy;
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

/// Slots read by one blocking call (1 MiB): enough to keep the chunker busy while the next ones are read.
const SLOTS_PER_READ: usize = 16;
/// Such reads under way.
const READS_AHEAD: usize = 2;

/// How a view seals new content.
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
    sealing: Option<Sealing>,
    /// Headers made here, for the cache once they are registered. Never held over an await.
    made: Mutex<Vec<(Hash, Bytes)>>,
}

impl Session {
    pub(super) fn new(cas: Arc<dyn xet::Cas>, sealing: Option<Sealing>) -> Self {
        let upload = UploadSession::new(cas, xet::upload::Options::default());
        Self { upload, sealing, made: Mutex::default() }
    }

    async fn add_stream(&self, reader: Box<dyn AsyncRead + Send + Unpin>, len: u64) -> Result<Stored, Error> {
        let exact = Exact { inner: reader, left: len };
        let Some(Sealing { keys, format, padding, .. }) = &self.sealing else {
            return self.upload(exact, Policy::Auto, Side::Plain, len, len).await;
        };
        let plain_len = PlainLen(len);
        let records = geometry::records_for(*format, plain_len, *padding)?;
        let header = Header { format: *format, plain_len, records, file_id: FileId::generate(&mut SystemRandom)? };
        let head = keys.seal_header(&header)?;
        let stored_len = geometry::object_len(records)?.0;
        let sealed = SealingReader::new(exact, header, head, keys.records(*format, &header.file_id));
        let stored = self.upload(sealed, Policy::Never, Side::Encrypted(*format), stored_len, len).await?;
        self.made(stored.version.hash, Bytes::copy_from_slice(&head));
        Ok(stored)
    }

    async fn add_frozen(&self, frozen: Arc<Frozen>, slots: Arc<dyn SlotIo>) -> Result<Stored, Error> {
        let count = frozen.records.len() as u64;
        match (&self.sealing, &frozen.header) {
            (None, None) => {
                if count != frozen.len.div_ceil(RECORD_PLAIN as u64) {
                    return Err(Error::LengthMismatch);
                }
                let content = read_slots(slots, frozen.clone(), RECORD_PLAIN, frozen.len);
                self.upload(reader_of(Bytes::new(), content), Policy::Auto, Side::Plain, frozen.len, frozen.len).await
            }
            (Some(Sealing { keys, .. }), Some(head)) => {
                let stored_len = geometry::object_len(count)?.0;
                let format = crypto::probe(head, stored_len)?.format;
                // It has been on disk: what would be uploaded must open again.
                if keys.open_header(format, head, stored_len)?.plain_len.0 != frozen.len {
                    return Err(Error::LengthMismatch);
                }
                let head = Bytes::copy_from_slice(head);
                let content = read_slots(slots, frozen.clone(), RECORD_LEN, stored_len - HEADER_LEN as u64);
                let content = reader_of(head.clone(), content);
                let side = Side::Encrypted(format);
                let stored = self.upload(content, Policy::Never, side, stored_len, frozen.len).await?;
                self.made(stored.version.hash, head);
                Ok(stored)
            }
            _ => Err(Error::WrongSide),
        }
    }

    async fn upload(
        &self,
        content: impl AsyncRead + Send + Unpin,
        policy: Policy,
        side: Side,
        stored_len: u64,
        plain_len: u64,
    ) -> Result<Stored, Error> {
        let uploaded = self.upload.add(content, policy).await.map_err(upload_error)?;
        if uploaded.len != stored_len {
            return Err(Error::LengthMismatch);
        }
        Ok(Stored { version: Version { hash: uploaded.hash, stored_len, side }, plain_len })
    }

    fn made(&self, hash: Hash, head: Bytes) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push((hash, head));
    }
}

#[async_trait]
impl PutSession for Session {
    async fn add(&self, content: Content) -> Result<Stored, Error> {
        match content {
            Content::Stream { reader, len } => self.add_stream(reader, len).await,
            Content::Frozen { frozen, slots } => self.add_frozen(frozen, slots).await,
        }
    }

    async fn finish(self: Box<Self>) -> Result<(), Error> {
        let Self { upload, sealing, made } = *self;
        upload.finish().await?;
        if let Some(sealing) = sealing {
            sealing.headers.learn(made.into_inner().unwrap_or_else(PoisonError::into_inner)).await;
        }
        Ok(())
    }
}

/// Why a content reader of ours failed, inside an `io::Error`.
#[derive(Debug, thiserror::Error)]
enum ContentError {
    #[error("the content is not of the announced length")]
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
        None => Error::Io(error),
    }
}

/// A reader that must end after exactly so many bytes.
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

/// A container being written: header, records of plaintext from `inner`, pad records.
struct SealingReader<R> {
    inner: R,
    header: Header,
    cipher: RecordCipher,
    head: [u8; HEADER_LEN],
    /// The next record to fill.
    index: u64,
    /// Its plaintext bytes so far.
    filled: usize,
    slot: Box<[u8; RECORD_LEN]>,
    /// Bytes of the header, then of the slot, that are still to be given out.
    head_left: usize,
    slot_left: usize,
    ended: bool,
}

impl<R> SealingReader<R> {
    fn new(inner: R, header: Header, head: [u8; HEADER_LEN], cipher: RecordCipher) -> Self {
        let slot = vec![0; RECORD_LEN].into_boxed_slice().try_into().expect("made with that length");
        Self {
            inner,
            header,
            cipher,
            head,
            index: 0,
            filled: 0,
            slot,
            head_left: HEADER_LEN,
            slot_left: 0,
            ended: false,
        }
    }
}

impl<R: AsyncRead + Unpin> SealingReader<R> {
    /// Fills the slot with the next record's plaintext and seals it.
    fn poll_seal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wanted = self.header.plain_in(self.index);
        while self.filled < wanted {
            let mut part = ReadBuf::new(&mut self.slot[NONCE_LEN + self.filled..NONCE_LEN + wanted]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
            let read = part.filled().len();
            if read == 0 {
                return Poll::Ready(Err(ContentError::Length.into()));
            }
            self.filled += read;
        }
        // The slot still holds the record before.
        self.slot[NONCE_LEN + wanted..NONCE_LEN + RECORD_PLAIN].fill(0);
        let mut nonce = [0; NONCE_LEN];
        SystemRandom.fill(&mut nonce).map_err(ContentError::Crypto)?;
        self.cipher.seal(self.index, &nonce, &mut self.slot);
        (self.index, self.filled, self.slot_left) = (self.index + 1, 0, RECORD_LEN);
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            let mut byte = [0; 1];
            let mut probe = ReadBuf::new(&mut byte);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut probe))?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for SealingReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.head_left == 0 && this.slot_left == 0 {
            if this.index == this.header.records {
                // The reader below refuses what comes behind the announced length.
                return this.poll_end(cx);
            }
            ready!(this.poll_seal(cx))?;
        }
        let (source, left): (&[u8], _) = match this.head_left {
            0 => (&this.slot[..], &mut this.slot_left),
            _ => (&this.head[..], &mut this.head_left),
        };
        let part = &source[source.len() - *left..];
        let part = &part[..part.len().min(out.remaining())];
        out.put_slice(part);
        *left -= part.len();
        Poll::Ready(Ok(()))
    }
}

impl<R> Drop for SealingReader<R> {
    fn drop(&mut self) {
        self.slot.zeroize();
    }
}

/// The content of a frozen draft's slots, cut at `len`, read by blocking calls off the async workers.
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

/// `head`, then the stream, as a reader.
fn reader_of(head: Bytes, rest: impl Stream<Item = io::Result<Bytes>> + Send) -> impl AsyncRead + Send + Unpin {
    // An empty piece would end a reader.
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

    /// Gives its bytes in pieces of these lengths, and isn't ready before each.
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
        fn whatever_is_sealed_opens_again(
            content in prop::collection::vec(any::<u8>(), 0..200_000),
            lens in prop::collection::vec(1usize..70_000, 0..8),
            step in 1usize..100_000,
            extra in 0u64..3,
            old in any::<bool>(),
        ) {
            let keys = counting_keys();
            let (format, extra) = if old { (Format::V1, 0) } else { (Format::V2, extra) };
            let plain_len = PlainLen(content.len() as u64);
            let records = geometry::records_for(format, plain_len, geometry::Padding::None).unwrap() + extra;
            let header = Header { format, plain_len, records, file_id: FileId([3; 24]) };
            let head = keys.seal_header(&header).unwrap();
            let exact = Exact { inner: pieces(&content, lens), left: plain_len.0 };
            let reader = SealingReader::new(exact, header, head, keys.records(format, &header.file_id));
            let mut sealed = block_on(read_all(reader, step)).unwrap();
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
        fn another_length_than_announced_is_an_error(
            len in 0usize..140_000, announced in 0u64..140_000, step in 1usize..70_000,
        ) {
            let exact = Exact { inner: pieces(&vec![1; len], vec![]), left: announced };
            let read = block_on(read_all(exact, step));
            prop_assert_eq!(read.is_ok(), len as u64 == announced);
        }
    }
}
