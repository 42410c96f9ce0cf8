//! Xorbs (Xet spec, section 5): builder, chunk-stream decoder, footer codec.
//!
//! Lengths and offsets are bytes; `stored` ones count headers and compressed payloads, `raw` ones uncompressed bytes.
//! Every count and length read is hostile until it was checked. Failure: [`Error::Malformed`], or
//! [`Error::HashMismatch`] where sound data is not the data asked for.

mod scan;

pub use scan::UploadScan;

use super::chunker::MAX_CHUNK;
use super::merkle::Tree;
use super::{Body, Error, Hash, Scheme, compression};
use bytes::Bytes;

/// Most uncompressed bytes in a xorb that we make: leaves room for the headers below 64 MiB serialised.
pub const MAX_RAW: usize = 64 * 1024 * 1024 - CHUNK_HEADER_LEN * MAX_CHUNKS;
/// Most chunks in a xorb.
pub const MAX_CHUNKS: usize = 8_192;
/// Most bytes of a serialised xorb that are accepted: 64 MiB raw, headers, and a footer.
pub const MAX_SERIALISED: usize = 64 * 1024 * 1024 + CHUNK_HEADER_LEN * MAX_CHUNKS + 330 * 1024;
/// Bytes of a chunk header.
pub const CHUNK_HEADER_LEN: usize = 8;
/// Most bytes of a stored payload that the reference accepts: twice the largest chunk.
pub const MAX_STORED_CHUNK: usize = 2 * MAX_CHUNK;

/// A chunk header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Stored payload length, at most 262144.
    pub stored_len: u32,
    /// How the payload is stored.
    pub scheme: Scheme,
    /// Uncompressed length, 1..=131072.
    pub raw_len: u32,
}

impl ChunkHeader {
    /// Parses 8 bytes; refuses what the reference refuses, and what no chunk can be.
    pub fn parse(bytes: &[u8; CHUNK_HEADER_LEN]) -> Result<Self, Error> {
        let &[version, s0, s1, s2, scheme, r0, r1, r2] = bytes;
        if version != 0 {
            return Err(malformed(format!("chunk version {version} is unknown")));
        }
        let scheme = match scheme {
            0 => Scheme::None,
            1 => Scheme::Lz4,
            2 => Scheme::Bg4Lz4,
            _ => return Err(malformed(format!("compression scheme {scheme} is unknown"))),
        };
        let stored_len = u32::from_le_bytes([s0, s1, s2, 0]);
        let raw_len = u32::from_le_bytes([r0, r1, r2, 0]);
        if raw_len == 0 || raw_len as usize > MAX_CHUNK {
            return Err(malformed(format!("a chunk of {raw_len} bytes")));
        }
        if stored_len == 0 || stored_len as usize > MAX_STORED_CHUNK {
            return Err(malformed(format!("a chunk stored in {stored_len} bytes")));
        }
        Ok(Self { stored_len, scheme, raw_len })
    }

    /// Whether the payload is the chunk itself.
    pub(super) fn is_plain(&self) -> bool {
        self.scheme == Scheme::None && self.stored_len == self.raw_len
    }

    /// The 8 bytes. Lengths are below 2^24, as `parse` and [`Builder`] see to.
    pub fn to_bytes(self) -> [u8; CHUNK_HEADER_LEN] {
        let [s0, s1, s2, _] = self.stored_len.to_le_bytes();
        let [r0, r1, r2, _] = self.raw_len.to_le_bytes();
        [0, s0, s1, s2, self.scheme as u8, r0, r1, r2]
    }
}

/// One chunk of a decoded or verified xorb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Chunk hash.
    pub hash: Hash,
    /// Uncompressed length.
    pub raw_len: u32,
    /// Offset of the END of the stored chunk (header and payload) in the serialised chunk area.
    pub stored_end: u32,
}

/// What is known of a whole, verified xorb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XorbIndex {
    /// Xorb hash.
    pub hash: Hash,
    /// Its chunks in order.
    pub chunks: Vec<ChunkEntry>,
}

impl XorbIndex {
    fn of(chunks: Vec<ChunkEntry>) -> Self {
        let tree: Tree = chunks.iter().map(|chunk| (chunk.hash, u64::from(chunk.raw_len))).collect();
        Self { hash: tree.into_xorb_hash(), chunks }
    }
}

/// Collects chunks until a limit is near, then gives the upload body.
#[derive(Default)]
pub struct Builder {
    /// The upload body so far.
    body: Vec<u8>,
    chunks: Vec<ChunkEntry>,
    raw_len: usize,
    /// The chunk being compressed.
    compressed: Vec<u8>,
}

impl Builder {
    /// Whether a chunk of `raw_len` bytes still fits.
    pub fn fits(&self, raw_len: usize) -> bool {
        self.chunks.len() < MAX_CHUNKS && self.raw_len.saturating_add(raw_len) <= MAX_RAW
    }

    /// Appends a chunk (its hash is known already) and gives its index.
    ///
    /// # Panics
    /// If it doesn't fit, or is no chunk by its length.
    pub fn push(&mut self, hash: Hash, raw: &[u8], scheme: Scheme) -> u32 {
        if scheme == Scheme::None {
            return self.push_stored(hash, raw.len(), scheme, raw);
        }
        let mut compressed = std::mem::take(&mut self.compressed);
        let scheme = compression::compress(scheme, raw, &mut compressed);
        let index = self.push_stored(hash, raw.len(), scheme, &compressed);
        self.compressed = compressed;
        index
    }

    /// The same for a chunk that was compressed already, with [`compression::compress`], to `stored`.
    ///
    /// # Panics
    /// As [`Builder::push`], and if the chunk grew.
    pub fn push_stored(&mut self, hash: Hash, raw_len: usize, scheme: Scheme, stored: &[u8]) -> u32 {
        assert!(self.fits(raw_len), "the chunk does not fit");
        let header = header_of(raw_len, scheme, stored.len());
        self.reserve(CHUNK_HEADER_LEN + stored.len());
        self.body.extend_from_slice(&header.to_bytes());
        self.body.extend_from_slice(stored);
        self.raw_len += raw_len;
        let index = self.chunks.len() as u32;
        self.chunks.push(ChunkEntry { hash, raw_len: header.raw_len, stored_end: self.body.len() as u32 });
        index
    }

    /// Doubles as a `Vec` does, but never beyond the longest body there can be.
    fn reserve(&mut self, more: usize) {
        const MAX_BODY: usize = MAX_RAW + CHUNK_HEADER_LEN * MAX_CHUNKS;
        let (len, capacity) = (self.body.len(), self.body.capacity());
        if capacity - len < more {
            let wanted = (2 * capacity).clamp(len + more, MAX_BODY.max(len + more));
            self.body.reserve_exact(wanted - len);
        }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Uncompressed bytes.
    pub fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// The upload body (chunk area only, no footer) and its index.
    pub fn finish(self) -> (Bytes, XorbIndex) {
        (self.body.into(), XorbIndex::of(self.chunks))
    }
}

/// The header of a chunk that we make.
///
/// # Panics
/// If there is no such chunk, or it grew.
fn header_of(raw_len: usize, scheme: Scheme, stored_len: usize) -> ChunkHeader {
    assert!((1..=MAX_CHUNK).contains(&raw_len), "no chunk has {raw_len} bytes");
    assert!((1..=raw_len).contains(&stored_len), "a chunk is stored in at most its own length");
    ChunkHeader { stored_len: stored_len as u32, scheme, raw_len: raw_len as u32 }
}

/// As [`Builder`], for payloads that stay where they are: only headers are written, and the body shares the rest.
///
/// A chunk is announced by [`Assembly::push`], and its payload handed in later by
/// [`Assembly::attach`], in the same order.
#[derive(Default)]
pub struct Assembly {
    headers: Vec<u8>,
    chunks: Vec<ChunkEntry>,
    payloads: Vec<Bytes>,
    raw_len: usize,
    stored_len: usize,
}

impl Assembly {
    /// Whether a chunk of `raw_len` bytes still fits.
    pub fn fits(&self, raw_len: usize) -> bool {
        self.chunks.len() < MAX_CHUNKS && self.raw_len.saturating_add(raw_len) <= MAX_RAW
    }

    /// Announces a chunk and gives its index.
    ///
    /// # Panics
    /// If it doesn't fit, is no chunk by its length, or grew.
    pub fn push(&mut self, hash: Hash, raw_len: usize, scheme: Scheme, stored_len: usize) -> u32 {
        assert!(self.fits(raw_len), "the chunk does not fit");
        let header = header_of(raw_len, scheme, stored_len);
        self.headers.extend_from_slice(&header.to_bytes());
        self.raw_len += raw_len;
        self.stored_len += CHUNK_HEADER_LEN + stored_len;
        let index = self.chunks.len() as u32;
        self.chunks.push(ChunkEntry { hash, raw_len: header.raw_len, stored_end: self.stored_len as u32 });
        index
    }

    /// Hands in the payload of the first chunk that has none.
    ///
    /// # Panics
    /// If there is none, or its length is not the one announced.
    pub fn attach(&mut self, payload: Bytes) {
        let nth = self.payloads.len();
        let start = nth.checked_sub(1).map_or(0, |before| self.chunks[before].stored_end as usize);
        let stored = self.chunks[nth].stored_end as usize - start - CHUNK_HEADER_LEN;
        assert_eq!(payload.len(), stored, "the payload is not the one announced");
        self.payloads.push(payload);
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Uncompressed bytes.
    pub fn raw_len(&self) -> usize {
        self.raw_len
    }

    /// Bytes of the upload body.
    pub fn stored_len(&self) -> usize {
        self.stored_len
    }

    /// The upload body (chunk area only, no footer) and its index.
    ///
    /// # Panics
    /// If a payload is missing.
    pub fn finish(self) -> (Body, XorbIndex) {
        assert_eq!(self.payloads.len(), self.chunks.len(), "a payload is missing");
        let headers = Bytes::from(self.headers);
        let header = |i: usize| headers.slice(CHUNK_HEADER_LEN * i..CHUNK_HEADER_LEN * (i + 1));
        let body = self.payloads.into_iter().enumerate().flat_map(|(i, payload)| [header(i), payload]).collect();
        (body, XorbIndex::of(self.chunks))
    }
}

/// Decodes chunks from a byte range of a xorb that starts at a chunk header: calls `each(raw bytes)` per chunk, in
/// order. Errors on trailing or missing bytes. Allocates at most one chunk at a time, and one more for BG4.
pub fn decode_chunks(mut bytes: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut raw = Vec::new();
    while !bytes.is_empty() {
        let (header, stored) = take_chunk(&mut bytes)?;
        each(open_chunk(header, stored, &mut raw)?)?;
    }
    Ok(())
}

/// Server side: verifies a whole upload body (with or without a footer, which is ignored), recomputing every hash, and
/// checks it against `expected`. Gives the index and the length of the chunk area.
pub fn verify_upload(body: &[u8], expected: &Hash, allow_footer: bool) -> Result<(XorbIndex, usize), Error> {
    let (index, area_len) = scan_upload(body, allow_footer)?;
    if index.hash != *expected {
        return Err(Error::HashMismatch { what: "xorb", expected: *expected });
    }
    Ok((index, area_len))
}

/// Decodes and hashes every chunk of an upload body.
pub(super) fn scan_upload(body: &[u8], allow_footer: bool) -> Result<(XorbIndex, usize), Error> {
    if body.len() > MAX_SERIALISED {
        return Err(malformed("longer than any xorb"));
    }
    let mut scan = UploadScan::new(allow_footer);
    let area_len = scan.take(body)?;
    Ok((scan.finish(&body[area_len..])?, area_len))
}

/// Splits one chunk off `bytes`: its header, and its payload as stored.
pub fn take_chunk<'a>(bytes: &mut &'a [u8]) -> Result<(ChunkHeader, &'a [u8]), Error> {
    let (header, rest) = bytes.split_first_chunk().ok_or_else(|| malformed("cut short in a chunk header"))?;
    let header = ChunkHeader::parse(header)?;
    let (stored, rest) =
        rest.split_at_checked(header.stored_len as usize).ok_or_else(|| malformed("cut short in a chunk"))?;
    *bytes = rest;
    Ok((header, stored))
}

/// The raw bytes of a chunk: borrowed where it is stored as it is, else decompressed into `raw`.
pub fn open_chunk<'a>(header: ChunkHeader, stored: &'a [u8], raw: &'a mut Vec<u8>) -> Result<&'a [u8], Error> {
    if header.scheme == Scheme::None && header.raw_len == header.stored_len {
        return Ok(stored);
    }
    raw.clear();
    compression::decompress(header.scheme, stored, header.raw_len as usize, raw)?;
    Ok(raw)
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "xorb", why: why.into() }
}

// Footer.

/// Starts the info block.
const INFO_IDENT: &[u8; 7] = b"XETBLOB";
/// Starts the hash section of a version-1 footer.
const HASHES_IDENT: &[u8; 7] = b"XBLBHSH";
/// Starts the boundary section of a version-1 footer.
const BOUNDARIES_IDENT: &[u8; 7] = b"XBLBBND";
/// Versions of the hash section and the boundary section that a version-1 footer has.
const HASHES_VERSION: u8 = 0;
const BOUNDARIES_VERSION: u8 = 1;
/// Bytes of the boundary section without its offsets: ident, version, two counts, two section offsets, buffer.
const BOUNDARIES_FIXED_LEN: usize = 7 + 1 + 4 + 3 * 4 + BUFFER_LEN;
/// Bytes of the hash section without its hashes: ident, version, count.
const HASHES_FIXED_LEN: usize = 7 + 1 + 4;
/// Bytes of the info block before its sections: ident, version, xorb hash.
const INFO_FIXED_LEN: usize = 7 + 1 + 32;
/// Nonce and zeros at the end; ignored by readers.
const BUFFER_LEN: usize = 16;

/// Serialises the version-1 footer (info block and its length).
pub fn write_footer(index: &XorbIndex) -> Vec<u8> {
    let count = index.chunks.len();
    let boundaries_len = BOUNDARIES_FIXED_LEN + 8 * count;
    let hashes_len = HASHES_FIXED_LEN + 32 * count;
    let info_len = INFO_FIXED_LEN + hashes_len + boundaries_len;
    let mut out = Vec::with_capacity(info_len + 4);
    let word = |n: usize| u32::try_from(n).expect("a xorb has at most 8192 chunks").to_le_bytes();

    out.extend_from_slice(INFO_IDENT);
    out.push(1);
    out.extend_from_slice(&index.hash.0);

    out.extend_from_slice(HASHES_IDENT);
    out.push(HASHES_VERSION);
    out.extend_from_slice(&word(count));
    index.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.hash.0));

    out.extend_from_slice(BOUNDARIES_IDENT);
    out.push(BOUNDARIES_VERSION);
    out.extend_from_slice(&word(count));
    index.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.stored_end.to_le_bytes()));
    let mut raw_end = 0u32;
    for chunk in &index.chunks {
        raw_end += chunk.raw_len;
        out.extend_from_slice(&raw_end.to_le_bytes());
    }
    out.extend_from_slice(&word(count));
    out.extend_from_slice(&word(hashes_len + boundaries_len));
    out.extend_from_slice(&word(boundaries_len));
    out.extend_from_slice(&[0; BUFFER_LEN]);

    out.extend_from_slice(&word(info_len));
    out
}

/// Parses the footer (version 0 or 1) at the end of a stored xorb.
///
/// Its offsets must agree with the chunk headers, and its chunk hashes with its xorb hash. The
/// chunks themselves are not decoded.
pub fn parse_footer(xorb: &[u8]) -> Result<XorbIndex, Error> {
    if xorb.len() > MAX_SERIALISED {
        return Err(malformed("longer than any xorb"));
    }
    let (rest, info_len) = xorb.split_last_chunk().ok_or_else(|| malformed("no footer"))?;
    let area_len = rest.len().checked_sub(u32::from_le_bytes(*info_len) as usize);
    let (area, info) = rest.split_at(area_len.ok_or_else(|| malformed("footer longer than the xorb"))?);
    let footer = Footer::parse(info)?;
    let chunks = footer.join_headers(area)?;
    let index = XorbIndex::of(chunks);
    if index.hash != footer.hash {
        return Err(Error::HashMismatch { what: "xorb", expected: footer.hash });
    }
    Ok(index)
}

/// Parses an info block by itself (what stands between the chunk area and its length field at the
/// end), for a server that keeps xorbs as files and doesn't read 64 MiB to find a chunk. `area_len`
/// is the length of the chunk area before it.
///
/// Chunk hashes and lengths must agree with the xorb hash, as in [`parse_footer`]; that the headers are where the
/// offsets say is not checked. Version 1 only: version 0 has no lengths.
pub fn parse_info(info: &[u8], area_len: usize) -> Result<XorbIndex, Error> {
    let footer = Footer::parse(info)?;
    let index = XorbIndex::of(footer.without_headers(area_len)?);
    if index.hash != footer.hash {
        return Err(Error::HashMismatch { what: "xorb", expected: footer.hash });
    }
    Ok(index)
}

/// The fields of an info block, lists still as bytes.
struct Footer<'a> {
    hash: Hash,
    hashes: &'a [[u8; 32]],
    stored_ends: &'a [[u8; 4]],
    /// Absent in version 0.
    raw_ends: Option<&'a [[u8; 4]]>,
}

impl<'a> Footer<'a> {
    fn parse(info: &'a [u8]) -> Result<Self, Error> {
        let info_len = info.len();
        let mut fields = Fields(info);
        fields.expect(INFO_IDENT)?;
        let [version] = *fields.array()?;
        let hash = Hash(*fields.array()?);
        let footer = match version {
            0 => {
                let count = fields.count()?;
                let stored_ends = fields.list(count)?;
                let hashes = fields.list(count)?;
                Self { hash, hashes, stored_ends, raw_ends: None }
            }
            1 => {
                let hashes_at = fields.0.len();
                fields.expect(HASHES_IDENT)?;
                fields.expect(&[HASHES_VERSION])?;
                let count = fields.count()?;
                let hashes = fields.list(count)?;
                let boundaries_at = fields.0.len();
                fields.expect(BOUNDARIES_IDENT)?;
                fields.expect(&[BOUNDARIES_VERSION])?;
                fields.expect_word(count)?;
                let stored_ends = fields.list(count)?;
                let raw_ends = Some(fields.list(count)?);
                fields.expect_word(count)?;
                fields.expect_word(hashes_at)?;
                fields.expect_word(boundaries_at)?;
                Self { hash, hashes, stored_ends, raw_ends }
            }
            _ => return Err(malformed(format!("footer version {version} is unknown"))),
        };
        if fields.0.len() != BUFFER_LEN {
            return Err(malformed(format!("a footer of {info_len} bytes for {} chunks", footer.hashes.len())));
        }
        Ok(footer)
    }

    /// The chunks, with the headers in `area` found where the footer says and saying the same.
    fn join_headers(&self, area: &[u8]) -> Result<Vec<ChunkEntry>, Error> {
        let mut rest = area;
        let mut raw_end = 0;
        let mut chunks = Vec::with_capacity(self.hashes.len());
        for (i, (hash, stored_end)) in self.hashes.iter().zip(self.stored_ends).enumerate() {
            let (header, _) = take_chunk(&mut rest)?;
            raw_end += header.raw_len;
            let stored_end = u32::from_le_bytes(*stored_end);
            let same_raw_end = self.raw_ends.is_none_or(|ends| u32::from_le_bytes(ends[i]) == raw_end);
            if stored_end as usize != area.len() - rest.len() || !same_raw_end {
                return Err(malformed(format!("footer and header of chunk {i} disagree")));
            }
            chunks.push(ChunkEntry { hash: Hash(*hash), raw_len: header.raw_len, stored_end });
        }
        if !rest.is_empty() || chunks.is_empty() {
            return Err(malformed("footer does not list all chunks"));
        }
        Ok(chunks)
    }

    /// The chunks, by the footer alone.
    fn without_headers(&self, area_len: usize) -> Result<Vec<ChunkEntry>, Error> {
        let raw_ends = self.raw_ends.ok_or_else(|| malformed("a version-0 footer has no uncompressed lengths"))?;
        let (mut stored_end, mut raw_end) = (0u32, 0u32);
        let mut chunks = Vec::with_capacity(self.hashes.len());
        for ((hash, stored), raw) in self.hashes.iter().zip(self.stored_ends).zip(raw_ends) {
            let (stored, raw) = (u32::from_le_bytes(*stored), u32::from_le_bytes(*raw));
            let stored_len = stored.saturating_sub(stored_end) as usize;
            let raw_len = raw.saturating_sub(raw_end);
            let fits = (CHUNK_HEADER_LEN + 1..=CHUNK_HEADER_LEN + MAX_STORED_CHUNK).contains(&stored_len);
            if !fits || !(1..=MAX_CHUNK).contains(&(raw_len as usize)) {
                return Err(malformed("offsets that no chunk can have"));
            }
            (stored_end, raw_end) = (stored, raw);
            chunks.push(ChunkEntry { hash: Hash(*hash), raw_len, stored_end });
        }
        if chunks.is_empty() || stored_end as usize != area_len {
            return Err(malformed("footer does not fit the chunk area"));
        }
        Ok(chunks)
    }
}

/// A cursor over an info block.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Error> {
        let (head, rest) = self.0.split_first_chunk().ok_or_else(|| malformed("footer cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn word(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    fn count(&mut self) -> Result<usize, Error> {
        let count = self.word()? as usize;
        if count > MAX_CHUNKS { Err(malformed(format!("{count} chunks are too many"))) } else { Ok(count) }
    }

    fn list<const N: usize>(&mut self, count: usize) -> Result<&'a [[u8; N]], Error> {
        // `count` is capped: no overflow.
        let (list, rest) = self.0.split_at_checked(count * N).ok_or_else(|| malformed("footer cut short"))?;
        self.0 = rest;
        Ok(list.as_chunks().0)
    }

    fn expect(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0 = self.0.strip_prefix(bytes).ok_or_else(|| malformed("footer section missing or of unknown version"))?;
        Ok(())
    }

    fn expect_word(&mut self, value: usize) -> Result<(), Error> {
        if self.word()? as usize == value { Ok(()) } else { Err(malformed("footer contradicts itself")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;
    use crate::testdata;
    use proptest::prelude::*;

    const SCHEMES: [Scheme; 3] = [Scheme::None, Scheme::Lz4, Scheme::Bg4Lz4];

    fn build(chunks: &[(Vec<u8>, Scheme)]) -> (bytes::Bytes, XorbIndex) {
        let mut builder = Builder::default();
        for (i, (raw, scheme)) in (0..).zip(chunks) {
            assert!(builder.fits(raw.len()));
            assert_eq!(builder.push(hash::chunk_hash(raw), raw, *scheme), i);
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn assembly_of_shared_payloads_is_the_body_that_is_built(
            chunks in prop::collection::vec(chunk(), 1..8), late in any::<prop::sample::Index>(),
        ) {
            let (body, index) = build(&chunks);
            let mut assembly = Assembly::default();
            let mut payloads = Vec::new();
            let mut stored = Vec::new();
            for (i, (raw, scheme)) in chunks.iter().enumerate() {
                let scheme = compression::compress(*scheme, raw, &mut stored);
                prop_assert!(assembly.fits(raw.len()));
                prop_assert_eq!(assembly.push(hash::chunk_hash(raw), raw.len(), scheme, stored.len()), i as u32);
                payloads.push(Bytes::from(stored.clone()));
                if i >= late.index(chunks.len()) {
                    payloads.drain(..).for_each(|payload| assembly.attach(payload));
                }
            }
            prop_assert_eq!((assembly.len(), assembly.stored_len()), (chunks.len(), body.len()));
            let (assembled, same) = assembly.finish();
            prop_assert_eq!(assembled.pieces().len(), 2 * chunks.len());
            prop_assert_eq!((assembled.to_bytes(), same), (body, index));
        }
    }

    #[test]
    #[should_panic(expected = "not the one announced")]
    fn payload_of_another_length_is_a_broken_invariant() {
        let mut assembly = Assembly::default();
        assembly.push(Hash::ZERO, 9, Scheme::None, 9);
        assembly.attach(Bytes::from_static(b"eight by"));
    }

    /// Three chunks, one of each kind of payload.
    fn small() -> (Vec<u8>, XorbIndex) {
        let chunks = [
            (testdata::random(1, 40), Scheme::Lz4),
            (testdata::text(300), Scheme::Lz4),
            (testdata::floats(1, 100), Scheme::Bg4Lz4),
        ];
        let (body, index) = build(&chunks);
        (body.to_vec(), index)
    }

    fn chunk() -> impl Strategy<Value = (Vec<u8>, Scheme)> {
        let raw = prop_oneof![
            (any::<u64>(), 1..5_000usize).prop_map(|(seed, len)| testdata::random(seed, len)),
            (1..5_000usize).prop_map(testdata::text),
            (any::<u64>(), 1..1_000usize).prop_map(|(seed, count)| testdata::floats(seed, count)),
            Just(vec![0; MAX_CHUNK]),
        ];
        (raw, prop::sample::select(&SCHEMES[..]))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn built_xorbs_verify_decode_and_index_alike(chunks in prop::collection::vec(chunk(), 1..12)) {
            let (body, index) = build(&chunks);
            prop_assert_eq!(verify_upload(&body, &index.hash, false).unwrap(), (index.clone(), body.len()));

            let whole = [&body, write_footer(&index).as_slice()].concat();
            prop_assert_eq!(verify_upload(&whole, &index.hash, true).unwrap(), (index.clone(), body.len()));
            prop_assert_eq!(&parse_footer(&whole).unwrap(), &index);
            prop_assert_eq!(&parse_info(&whole[body.len()..whole.len() - 4], body.len()).unwrap(), &index);
            let old = [&body, version_0_footer(&index).as_slice()].concat();
            prop_assert_eq!(&parse_footer(&old).unwrap(), &index);

            // Any run of chunks decodes by itself.
            let starts: Vec<usize> =
                std::iter::once(0).chain(index.chunks.iter().map(|chunk| chunk.stored_end as usize)).collect();
            for (first, &start) in starts.iter().enumerate() {
                let mut decoded = Vec::new();
                let result = decode_chunks(&body[start..], |raw| {
                    decoded.push(raw.to_vec());
                    Ok(())
                });
                prop_assert!(result.is_ok());
                prop_assert!(decoded.iter().eq(chunks[first..].iter().map(|(raw, _)| raw)));
            }
        }

        #[test]
        fn headers_parse_back(bytes: [u8; 8]) {
            if let Ok(header) = ChunkHeader::parse(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }

    fn version_0_footer(index: &XorbIndex) -> Vec<u8> {
        let mut info = b"XETBLOB\0".to_vec();
        info.extend(index.hash.0);
        info.extend((index.chunks.len() as u32).to_le_bytes());
        index.chunks.iter().for_each(|chunk| info.extend(chunk.stored_end.to_le_bytes()));
        index.chunks.iter().for_each(|chunk| info.extend(chunk.hash.0));
        info.extend([0; 16]);
        info.extend((info.len() as u32).to_le_bytes());
        info
    }

    #[test]
    fn headers_outside_the_limits_are_rejected() {
        let header = |stored_len, raw_len| ChunkHeader { stored_len, scheme: Scheme::Lz4, raw_len }.to_bytes();
        for good in [header(1, 1), header(262_144, 131_072)] {
            assert_eq!(ChunkHeader::parse(&good).unwrap().to_bytes(), good);
        }
        let bad_version = [1, 1, 0, 0, 0, 1, 0, 0];
        let bad_schemes = [3, 99, 255].map(|scheme| [0, 1, 0, 0, scheme, 1, 0, 0]);
        let bad_lengths = [header(0, 1), header(1, 0), header(262_145, 1), header(1, 131_073), *b"XETBLOB\x01"];
        for bad in bad_schemes.iter().chain(&bad_lengths).chain([&bad_version]) {
            assert!(ChunkHeader::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_body_cut_or_changed_anywhere_is_rejected() {
        let (body, index) = small();
        for len in 0..body.len() {
            assert!(verify_upload(&body[..len], &index.hash, true).is_err(), "cut to {len}");
        }
        for bit in 0..8 * body.len() {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // A flip may leave what an LZ4 frame decodes to, or the choice between its equal matches, alone.
            if let Ok((same, _)) = verify_upload(&bad, &index.hash, true) {
                assert_eq!(same, index, "bit {bit}");
            }
        }
        assert!(verify_upload(&[body.as_slice(), b"X"].concat(), &index.hash, true).is_err());
    }

    #[test]
    fn sound_data_under_another_hash_is_a_mismatch() {
        let (body, _) = small();
        let other = Hash([7; 32]);
        let error = verify_upload(&body, &other, false).unwrap_err();
        assert!(matches!(error, Error::HashMismatch { what: "xorb", expected } if expected == other));
    }

    #[test]
    fn a_footer_is_only_taken_where_it_is_allowed() {
        let (body, index) = small();
        let whole = [body.as_slice(), &write_footer(&index)].concat();
        assert!(verify_upload(&whole, &index.hash, false).is_err());
        assert!(decode_chunks(&whole, |_| Ok(())).is_err());
        // What follows the ident is not looked at.
        let junk = [body.as_slice(), b"XETBLOB junk"].concat();
        assert_eq!(verify_upload(&junk, &index.hash, true).unwrap(), (index, body.len()));
    }

    #[test]
    fn a_footer_cut_or_changed_anywhere_is_rejected() {
        let (body, index) = small();
        for footer in [write_footer(&index), version_0_footer(&index)] {
            let whole = [body.as_slice(), &footer].concat();
            assert_eq!(parse_footer(&whole).unwrap(), index);
            for len in 0..whole.len() {
                assert!(parse_footer(&whole[..len]).is_err(), "cut to {len}");
            }
            let ignored = whole.len() - 4 - BUFFER_LEN..whole.len() - 4;
            for at in (body.len()..whole.len()).filter(|at| !ignored.contains(at)) {
                for bit in 0..8 {
                    let mut bad = whole.clone();
                    bad[at] ^= 1 << bit;
                    assert!(parse_footer(&bad).is_err(), "bit {bit} of byte {at}");
                }
            }
            let mut nonce = whole.clone();
            nonce[ignored].fill(9);
            assert_eq!(parse_footer(&nonce).unwrap(), index);
        }
    }

    #[test]
    fn an_info_block_by_itself_never_gives_other_chunks() {
        let (body, index) = small();
        let mut footer = write_footer(&index);
        let info = &mut footer[..92 + 40 * index.chunks.len()];
        for area_len in [0, body.len() - 1, body.len() + 1, usize::MAX] {
            assert!(parse_info(info, area_len).is_err());
        }
        for at in 0..info.len() {
            assert!(parse_info(&info[..at], body.len()).is_err(), "cut to {at}");
            for bit in 0..8 {
                info[at] ^= 1 << bit;
                // Only where stored chunks end inside the area can't be told from here.
                if let Ok(other) = parse_info(info, body.len()) {
                    let chunks =
                        |index: &XorbIndex| index.chunks.iter().map(|c| (c.hash, c.raw_len)).collect::<Vec<_>>();
                    assert_eq!((chunks(&other), other.hash), (chunks(&index), index.hash), "bit {bit} of byte {at}");
                    assert!(other.chunks.is_sorted_by_key(|chunk| chunk.stored_end));
                }
                info[at] ^= 1 << bit;
            }
        }
        let old = version_0_footer(&index);
        assert!(parse_info(&old[..old.len() - 4], body.len()).is_err());
    }

    #[test]
    fn nothing_is_no_xorb() {
        assert!(verify_upload(&[], &Hash::ZERO, true).is_err());
        let empty = XorbIndex { hash: Hash::ZERO, chunks: Vec::new() };
        assert!(verify_upload(&write_footer(&empty), &Hash::ZERO, true).is_err());
        assert!(parse_footer(&write_footer(&empty)).is_err());
        assert!(decode_chunks(&[], |_| panic!("there is no chunk")).is_ok());
    }

    #[test]
    fn a_failing_consumer_stops_the_decoder() {
        let (body, _) = small();
        let mut calls = 0;
        let result = decode_chunks(&body, |_| {
            calls += 1;
            Err(Error::RangeNotSatisfiable)
        });
        assert!(matches!(result, Err(Error::RangeNotSatisfiable)));
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_xorb_has_at_most_8192_chunks() {
        let mut builder = Builder::default();
        let chunk = hash::chunk_hash(b"a");
        while builder.fits(1) {
            builder.push(chunk, b"a", Scheme::None);
        }
        assert_eq!(builder.len(), MAX_CHUNKS);
        let (body, index) = builder.finish();
        assert!(verify_upload(&body, &index.hash, false).is_ok());
        assert_eq!(parse_footer(&[&body, write_footer(&index).as_slice()].concat()).unwrap(), index);

        let one_more = [&body, &body[..CHUNK_HEADER_LEN + 1]].concat();
        let error = verify_upload(&one_more, &index.hash, false).unwrap_err();
        assert!(error.to_string().contains("more than 8192"), "{error}");
    }

    #[test]
    fn a_full_xorb_is_64_mib_at_most_and_becomes_the_body_in_place() {
        let chunk = testdata::random(1, MAX_CHUNK);
        let hash = hash::chunk_hash(&chunk);
        let mut builder = Builder::default();
        while builder.fits(chunk.len()) {
            builder.push(hash, &chunk, Scheme::None);
        }
        let rest = MAX_RAW - builder.raw_len();
        assert!(rest < MAX_CHUNK && !builder.fits(rest + 1));
        builder.push(hash::chunk_hash(&chunk[..rest]), &chunk[..rest], Scheme::None);
        assert_eq!(builder.raw_len(), MAX_RAW);
        assert!(!builder.fits(1) && !builder.fits(usize::MAX));
        assert!(builder.body.capacity() <= 64 << 20);

        let place = builder.body.as_ptr();
        let (body, index) = builder.finish();
        assert_eq!(body.as_ptr(), place);
        assert!(body.len() <= 64 << 20);
        assert!(verify_upload(&body, &index.hash, false).is_ok());
    }

    #[test]
    #[should_panic(expected = "no chunk has 0 bytes")]
    fn an_empty_chunk_is_not_pushed() {
        Builder::default().push(Hash::ZERO, b"", Scheme::None);
    }
}
