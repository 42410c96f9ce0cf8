//! Opens versions and reads byte ranges of plaintext, which are authenticated before they are returned
//! (format spec, sections 4 "Reading" and 4b).
//!
//! Records are opened in place in the buffer that came from the network. Offsets and lengths are plaintext
//! bytes unless stated otherwise.

use super::contents::Contents;
use super::draft::Bases;
use super::headers::Headers;
use super::memory::Memory;
use super::remote::Remote;
use super::{ByteStream, Error, Object, Side, Verified, Version};
use crate::crypto::geometry::{self, HEADER_LEN, NONCE_LEN, PlainLen, RECORD_LEN, RECORD_PLAIN, RecordIndex};
use crate::crypto::{self, FileId, Header, Keys, RecordCipher};
use crate::xet::deadline;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use zeroize::Zeroize;

/// Records opened without leaving the async worker (1 MiB, some 0.1 ms). More are opened in pieces of this
/// many records, in parallel.
const PIECE: usize = 16;
/// Damaged records whose index `verify` reports. Further ones are only counted.
const MAX_NAMED: usize = 1000;

/// Bytes of the first window of a stream. A small window makes the first byte arrive soon.
const FIRST_WINDOW: u64 = 1 << 20;
/// Bytes of the longest window of a stream: a request of this length costs little more than its bytes.
pub(super) const WINDOW: u64 = 4 << 20;
/// Windows that a stream fetches ahead of the one that it delivers, at most. Over a round trip of 100 ms, this allows
/// some 250 MB/s. Streams from Xet begin with fewer, and fetch more ahead when their reader has to wait.
pub(super) const AHEAD: usize = 7;
/// The same for streams that are made of single reads.
const FEW_AHEAD: usize = 3;

/// Streams `range` by windows, which `read` returns whole. Windows are read ahead while the stream is polled.
pub(super) fn in_windows<F>(range: Range<u64>, read: impl Fn(Range<u64>) -> F + Send + 'static) -> ByteStream
where
    F: Future<Output = Result<Bytes, Error>> + Send + 'static,
{
    let window = move |start: u64, len: u64| {
        let end = start.saturating_add(len).min(range.end);
        (start < end).then_some((start..end, len))
    };
    let first = window(range.start, FIRST_WINDOW);
    let next = move |(last, len): &(Range<u64>, u64)| window(last.end, (len * 2).min(WINDOW));
    let whole = move |(window, _): (Range<u64>, u64)| {
        let (len, bytes) = (window.end - window.start, read(window));
        async move {
            match bytes.await? {
                bytes if bytes.len() as u64 == len => Ok(bytes),
                _ => Err(Error::LengthMismatch),
            }
        }
    };
    // The window that the reader is at has left the buffer.
    let pieces = stream::iter(std::iter::successors(first, next)).map(whole).buffered(FEW_AHEAD).boxed();
    let pieces = stream::try_unfold(pieces, |mut pieces| async move { Ok(pieces.try_next().await?.zip(Some(pieces))) });
    without_deadline(pieces.boxed())
}

/// Polls a stream without the deadline of the operation that polls it.
pub(super) fn without_deadline(pieces: ByteStream) -> ByteStream {
    let next = |mut pieces: ByteStream| async move {
        let piece = deadline::apart(pieces.next()).await?;
        Some((piece, pieces))
    };
    stream::unfold(pieces, next).boxed()
}

/// Opens versions of one source.
pub(super) struct Opener {
    pub(super) remote: Arc<Remote>,
    pub(super) memory: Arc<Memory>,
    /// Key, and the headers read with it. `None` on a plain source.
    pub(super) sealed: Option<(Arc<Keys>, Arc<Headers>)>,
}

impl Opener {
    async fn header(&self, version: &Version) -> Result<(&Arc<Keys>, Header), Error> {
        let (keys, headers) = self.sealed.as_ref().ok_or(Error::WrongSide)?;
        Ok((keys, headers.header(version).await?))
    }
}

#[async_trait]
impl Bases for Opener {
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        let contents = self.remote.contents.clone();
        match version.side {
            Side::Plain => {
                contents.check(version.id)?;
                Ok(Arc::new(PlainObject { contents, version: *version }))
            }
            Side::Encrypted(format) => {
                let (keys, header) = self.header(version).await?;
                let cipher = Arc::new(keys.records(format, &header.file_id));
                Ok(Arc::new(SealedObject { contents, version: *version, keys: keys.clone(), header, cipher }))
            }
        }
    }

    async fn file_id(&self, version: &Version) -> Result<FileId, Error> {
        Ok(self.header(version).await?.1.file_id)
    }

    async fn sealed(&self, version: &Version, records: Range<u64>) -> Result<Bytes, Error> {
        let Side::Encrypted(format) = version.side else { return Err(Error::WrongSide) };
        let (keys, header) = self.header(version).await?;
        let from = geometry::record_offset(RecordIndex(records.start))?.0;
        let to = geometry::object_len(records.end)?.0;
        let stored = self.remote.contents.read(version, from..to).await?;
        if stored.len() as u64 != to - from {
            return Err(Error::LengthMismatch);
        }
        // The records are going to be stored again, so damage must not be copied.
        let cipher = Arc::new(keys.records(format, &header.file_id));
        let mut plain = open_records(&cipher, header, records.start, stored.clone()).await?;
        plain.zeroize();
        Ok(stored)
    }

    fn is_shared(&self, version: &Version) -> bool {
        // Without a hash nothing is recorded, so the answer is the safe one: an edit takes a new file id.
        version.id.xet().map_or(true, |hash| self.memory.is_shared(&hash))
    }
}

struct PlainObject {
    contents: Contents,
    version: Version,
}

#[async_trait]
impl Object for PlainObject {
    fn len(&self) -> u64 {
        self.version.stored_len
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64).min(self.len());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let bytes = self.contents.read(&self.version, offset..end).await?;
        if bytes.len() as u64 != end - offset {
            return Err(Error::LengthMismatch);
        }
        Ok(bytes)
    }

    fn stream(self: Arc<Self>, range: Range<u64>) -> ByteStream {
        let range = range.start..range.end.min(self.len());
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let left = range.end - range.start;
        let pieces = self.contents.stream(&self.version, range);
        let next = |(mut pieces, left): (ByteStream, u64)| async move {
            match pieces.try_next().await? {
                Some(piece) => {
                    let left = left.checked_sub(piece.len() as u64).ok_or(Error::LengthMismatch)?;
                    Ok(Some((piece, (pieces, left))))
                }
                None if left > 0 => Err(Error::LengthMismatch),
                None => Ok(None),
            }
        };
        stream::try_unfold((pieces, left), next).boxed()
    }

    async fn verify(&self) -> Result<Verified, Error> {
        self.contents.download(&self.version, tokio::io::sink()).await?;
        Ok(Verified::default())
    }
}

struct SealedObject {
    contents: Contents,
    version: Version,
    keys: Arc<Keys>,
    header: Header,
    cipher: Arc<RecordCipher>,
}

#[async_trait]
impl Object for SealedObject {
    fn len(&self) -> u64 {
        self.header.plain_len.0
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let end = offset.saturating_add(len as u64).min(self.len());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let records = geometry::records_of_range(PlainLen(offset), PlainLen(end));
        let from = geometry::record_offset(RecordIndex(records.start))?.0;
        let to = geometry::object_len(records.end)?.0;
        let stored = self.contents.read(&self.version, from..to).await?;
        if stored.len() as u64 != to - from {
            return Err(Error::LengthMismatch);
        }
        let mut plain = open_records(&self.cipher, self.header, records.start, stored).await?;
        plain.advance((offset - records.start * RECORD_PLAIN as u64) as usize);
        plain.truncate((end - offset) as usize);
        Ok(plain.freeze())
    }

    fn stream(self: Arc<Self>, range: Range<u64>) -> ByteStream {
        let range = range.start..range.end.min(self.len());
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let opening = match Opening::new(&self, range) {
            Ok(opening) => opening,
            Err(error) => return stream::once(async { Err(error) }).boxed(),
        };
        let next = |mut opening: Opening| async move { Ok(opening.next().await?.zip(Some(opening))) };
        stream::try_unfold(opening, next).boxed()
    }

    async fn verify(&self) -> Result<Verified, Error> {
        let mut check = Check::new(self);
        let whole = self.contents.download(&self.version, &mut check).await;
        // A bad header explains more than the error that stopped the download after it.
        std::mem::replace(&mut check.header, Ok(()))?;
        whole?;
        Ok(std::mem::take(&mut check.found))
    }
}

/// Opens whole records, the first of index `first`. Returns their plaintext without the gaps between them.
async fn open_records(
    cipher: &Arc<RecordCipher>,
    header: Header,
    first: u64,
    stored: Bytes,
) -> Result<BytesMut, Error> {
    let mut stored = stored.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if stored.len() <= PIECE * RECORD_LEN {
        open_piece(cipher, &header, first, &mut stored)?;
        return Ok(stored);
    }
    let mut pieces = Vec::new();
    let mut index = first;
    while !stored.is_empty() {
        let mut piece = stored.split_to(stored.len().min(PIECE * RECORD_LEN));
        let (cipher, from) = (cipher.clone(), index);
        index += PIECE as u64;
        pieces.push(tokio::task::spawn_blocking(move || {
            open_piece(&cipher, &header, from, &mut piece)?;
            Ok::<_, Error>(piece)
        }));
    }
    let mut plain = BytesMut::with_capacity(pieces.len() * PIECE * RECORD_PLAIN);
    for piece in pieces {
        plain.extend_from_slice(&piece.await.map_err(io::Error::other)??);
    }
    Ok(plain)
}

/// Opens the records in `piece` in place and closes the gaps. After an error no byte of `piece` may be used.
fn open_piece(cipher: &RecordCipher, header: &Header, first: u64, piece: &mut BytesMut) -> Result<(), Error> {
    open_leading(cipher, header, first, piece).map_or(Ok(()), Err)
}

/// Opens the records in `piece` in place, up to the first that doesn't authenticate, and closes the gaps. The
/// piece is then the plaintext of the records before that one.
fn open_leading(cipher: &RecordCipher, header: &Header, first: u64, piece: &mut BytesMut) -> Option<Error> {
    let records = piece.len() / RECORD_LEN;
    let (mut opened, mut damage) = (records, None);
    for position in 0..records {
        let index = first + position as u64;
        let at = position * RECORD_LEN;
        let slot = piece[at..].first_chunk_mut().expect("whole records");
        let checked = cipher.open(index, slot).map_err(Error::from);
        let checked = checked.and_then(|()| Ok(header.check_tail(index, &slot[crypto::record::PLAIN])?));
        if let Err(error) = checked {
            (opened, damage) = (position, Some(error));
            break;
        }
        // Distances are multiples of 32. `memmove` is slow for distances of 1 to 31 modulo 4096.
        piece.copy_within(at + NONCE_LEN..at + NONCE_LEN + RECORD_PLAIN, NONCE_LEN + position * RECORD_PLAIN);
    }
    piece.advance(NONCE_LEN.min(piece.len()));
    piece.truncate(opened * RECORD_PLAIN);
    damage
}

/// A stream of plaintext. Whole records are opened as soon as their last byte has arrived.
struct Opening {
    stored: ByteStream,
    cipher: Arc<RecordCipher>,
    header: Header,
    /// Stored bytes that were received but not opened.
    buffer: BytesMut,
    /// Index of the first record in the buffer.
    index: u64,
    /// Plaintext bytes of that record that come before the range.
    skip: usize,
    /// Plaintext bytes that are still to be delivered.
    left: u64,
    /// Error that is returned after the delivered bytes.
    damage: Option<Error>,
}

impl Opening {
    /// Starts a stream of `range`, which isn't empty and lies in the file.
    fn new(object: &SealedObject, range: Range<u64>) -> Result<Self, Error> {
        let records = geometry::records_of_range(PlainLen(range.start), PlainLen(range.end));
        let from = geometry::record_offset(RecordIndex(records.start))?.0;
        let to = geometry::object_len(records.end)?.0;
        Ok(Self {
            stored: object.contents.stream(&object.version, from..to),
            cipher: object.cipher.clone(),
            header: object.header,
            buffer: BytesMut::new(),
            index: records.start,
            skip: (range.start - records.start * RECORD_PLAIN as u64) as usize,
            left: range.end - range.start,
            damage: None,
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(error) = self.damage.take() {
                return Err(error);
            }
            if self.left == 0 {
                return Ok(None);
            }
            let records = (self.buffer.len() / RECORD_LEN).min(PIECE);
            if records > 0 {
                let piece = self.open(records);
                if !piece.is_empty() {
                    return Ok(Some(piece));
                }
                continue;
            }
            let stored = self.stored.try_next().await?.ok_or(Error::LengthMismatch)?;
            match self.buffer.is_empty() {
                true => self.buffer = stored.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..])),
                false => self.buffer.extend_from_slice(&stored),
            }
        }
    }

    /// Opens records at the front of the buffer. The piece ends before the first record that doesn't
    /// authenticate.
    fn open(&mut self, records: usize) -> Bytes {
        let mut piece = self.buffer.split_to(records * RECORD_LEN);
        self.damage = open_leading(&self.cipher, &self.header, self.index, &mut piece);
        self.index += records as u64;
        piece.advance(std::mem::take(&mut self.skip).min(piece.len()));
        piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= piece.len() as u64;
        piece.freeze()
    }
}

/// Checker of a container's stored bytes as they arrive: the header, then every record, pad records included.
struct Check<'a> {
    object: &'a SealedObject,
    header: Result<(), Error>,
    head: Vec<u8>,
    slot: Box<[u8; RECORD_LEN]>,
    filled: usize,
    index: u64,
    found: Verified,
}

impl<'a> Check<'a> {
    fn new(object: &'a SealedObject) -> Self {
        let (slot, head) = (Box::new([0; RECORD_LEN]), Vec::with_capacity(HEADER_LEN));
        Self { object, header: Ok(()), head, slot, filled: 0, index: 0, found: Verified::default() }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.head.len() < HEADER_LEN {
                let (now, later) = bytes.split_at(bytes.len().min(HEADER_LEN - self.head.len()));
                self.head.extend_from_slice(now);
                bytes = later;
                if self.head.len() == HEADER_LEN {
                    self.check_header();
                }
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(RECORD_LEN - self.filled));
            self.slot[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == RECORD_LEN {
                self.check_record();
            }
        }
    }

    /// Checks the stored header. The object may have been opened with a header from the cache.
    fn check_header(&mut self) {
        let SealedObject { keys, version, header, .. } = self.object;
        let Side::Encrypted(format) = version.side else { return };
        self.header = match keys.open_header(format, &self.head, version.stored_len) {
            Ok(stored) if stored == *header => Ok(()),
            Ok(_) => Err(crypto::Error::Unauthentic.into()),
            Err(error) => Err(error.into()),
        };
    }

    fn check_record(&mut self) {
        let (index, header) = (self.index, &self.object.header);
        let opened = self.object.cipher.open(index, &mut self.slot);
        let plain = &self.slot[crypto::record::PLAIN];
        if opened.is_err() || header.check_tail(index, plain).is_err() {
            self.found.damaged += 1;
            if self.found.named.len() < MAX_NAMED {
                self.found.named.push(index);
            }
        } else if !header.tail_is_zero(index, plain) {
            self.found.stale_tail = true;
        }
        self.filled = 0;
        self.index += 1;
        self.found.records = self.index;
    }
}

impl Drop for Check<'_> {
    fn drop(&mut self) {
        self.slot.zeroize();
    }
}

impl AsyncWrite for Check<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
