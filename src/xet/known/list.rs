//! The lists, in memory and on disk (see [`super`] for what they are worth).

use crate::chunker::MAX_CHUNK;
use crate::hash::keyed_chunk_hash;
use crate::merkle::Tree;
use crate::xorb::MAX_CHUNKS;
use crate::{Error, Hash};
use std::fmt;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// First bytes of a proven list on disk.
pub(super) const PROVEN: &[u8; 8] = b"XETKNOW1";
/// First bytes of one that was told.
pub(super) const TOLD: &[u8; 8] = b"XETTOLD1";
/// Bytes of a chunk on disk.
const RECORD: usize = 36;
/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Bytes of the checksum.
const SUM_LEN: usize = 32;
/// Bytes of a list of no chunks that was told: magic, key, expiry, checksum.
const TOLD_LEN: usize = TOLD.len() + KEY_LEN + 8 + SUM_LEN;
/// The key of plain hashes.
const PLAIN: [u8; KEY_LEN] = [0; KEY_LEN];

/// Most chunks of a list that is kept: 32 GiB of file on average, 20 MiB of memory.
pub const MAX_LIST: usize = 1 << 19;
/// Longest list of a file on disk, in bytes.
pub(super) const MAX_FILE_LIST: usize = PROVEN.len() + RECORD * MAX_LIST;
/// Longest list of a xorb on disk, in bytes.
pub(super) const MAX_XORB_LIST: usize = TOLD_LEN + RECORD * MAX_CHUNKS;

/// Of what a list are the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A file.
    File,
    /// A xorb.
    Xorb,
}

/// Chunk hashes and lengths, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rows {
    hashes: Vec<Hash>,
    /// Where each ends, in uncompressed bytes.
    ends: Vec<u64>,
}

impl Rows {
    fn push(&mut self, hash: Hash, len: u32, most: usize) -> Result<(), Error> {
        if self.hashes.len() == most {
            return Err(malformed("too many chunks"));
        }
        if len == 0 || len as usize > MAX_CHUNK {
            return Err(malformed("a length that no chunk has"));
        }
        self.hashes.push(hash);
        // At most 2^36 in all.
        self.ends.push(self.len() + u64::from(len));
        Ok(())
    }

    /// Of all chunks, in bytes.
    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn start(&self, index: usize) -> Option<u64> {
        index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())
    }

    fn containing(&self, offset: u64) -> usize {
        self.ends.partition_point(|&end| end <= offset)
    }

    fn iter(&self) -> impl Iterator<Item = (Hash, u32)> + '_ {
        let mut start = 0;
        self.hashes.iter().zip(&self.ends).map(move |(&hash, &end)| {
            let len = end - start;
            start = end;
            // A chunk's length, as `push` saw to.
            (hash, len as u32)
        })
    }

    /// Those of `chunks` that are there.
    fn part(&self, chunks: Range<usize>) -> Self {
        let end = chunks.end.min(self.hashes.len());
        let range = chunks.start.min(end)..end;
        let start = self.start(range.start).unwrap_or(0);
        let ends = self.ends[range.clone()].iter().map(|end| end - start).collect();
        Self { hashes: self.hashes[range].to_vec(), ends }
    }

    fn footprint(&self) -> usize {
        self.hashes.len() * (size_of::<Hash>() + size_of::<u64>())
    }

    fn write_to(&self, bytes: &mut Vec<u8>) {
        bytes.reserve_exact(RECORD * self.hashes.len() + SUM_LEN);
        for (hash, len) in self.iter() {
            bytes.extend_from_slice(&hash.0);
            bytes.extend_from_slice(&len.to_le_bytes());
        }
    }
}

/// Whole records.
fn records(bytes: &[u8]) -> Result<impl ExactSizeIterator<Item = (Hash, u32)>, Error> {
    let (records, []) = bytes.as_chunks::<RECORD>() else {
        return Err(malformed("not a list of whole records"));
    };
    Ok(records.iter().map(|record| {
        let (hash, len) = record.split_first_chunk::<32>().expect("36 bytes");
        (Hash(*hash), u32::from_le_bytes(len.try_into().expect("the other 4")))
    }))
}

fn malformed(why: &str) -> Error {
    Error::Malformed { what: "chunk list", why: why.to_owned() }
}

/// Chunks of a file or xorb, proven by its hash.
#[derive(Debug, PartialEq, Eq)]
pub struct ChunkList(Rows);

impl ChunkList {
    /// Checks `chunks` (hashes and uncompressed lengths) against `hash`.
    pub fn proven(kind: Kind, hash: &Hash, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<Self, Error> {
        let most = if kind == Kind::Xorb { MAX_CHUNKS } else { MAX_LIST };
        let (mut rows, mut tree) = (Rows::default(), Tree::new());
        for (chunk, len) in chunks {
            rows.push(chunk, len, most)?;
            tree.push(chunk, u64::from(len));
        }
        let (what, found) = match kind {
            Kind::File => ("file", tree.into_file_hash()),
            Kind::Xorb => ("xorb", tree.into_xorb_hash()),
        };
        if found == *hash { Ok(Self(rows)) } else { Err(Error::HashMismatch { what, expected: *hash }) }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.0.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.hashes.is_empty()
    }

    /// Hash of a chunk.
    pub fn hash(&self, index: usize) -> Option<&Hash> {
        self.0.hashes.get(index)
    }

    /// Where a chunk starts; at the number of chunks, where the last ends.
    pub fn start(&self, index: usize) -> Option<u64> {
        self.0.start(index)
    }

    /// The chunk that starts at `offset`.
    pub fn starting_at(&self, offset: u64) -> Option<usize> {
        let index = self.containing(offset);
        (index < self.len() && self.start(index) == Some(offset)).then_some(index)
    }

    /// The chunk that the byte at `offset` is in; the number of chunks where it is behind all.
    pub fn containing(&self, offset: u64) -> usize {
        self.0.containing(offset)
    }

    /// Hashes and lengths.
    pub fn iter(&self) -> impl Iterator<Item = (Hash, u32)> + '_ {
        self.0.iter()
    }

    /// Some chunks of `xorb`, whose list this is.
    pub(super) fn excerpt(&self, xorb: &Hash, chunks: &Range<u32>) -> Excerpt {
        Excerpt::of(&self.0, xorb, None, chunks)
    }

    pub(super) fn footprint(&self) -> usize {
        self.0.footprint()
    }

    /// The form on disk.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = PROVEN.to_vec();
        self.0.write_to(&mut bytes);
        bytes
    }

    /// Parses what a disk holds, and has it proven.
    pub fn parse(kind: Kind, hash: &Hash, bytes: &[u8]) -> Result<Self, Error> {
        let records = records(bytes.strip_prefix(PROVEN).ok_or_else(|| malformed("no magic"))?)?;
        if records.len() == 1 {
            // The root over one chunk is that chunk's hash: it says nothing of the length.
            return Err(malformed("one chunk proves no length"));
        }
        Self::proven(kind, hash, records)
    }
}

/// Chunks of a xorb, as an answer to a chunk query tells them: their hashes under a key, so that no
/// root over them can be computed.
#[derive(PartialEq, Eq)]
pub struct ToldList {
    key: [u8; KEY_LEN],
    /// Unix seconds.
    expires: u64,
    rows: Rows,
}

impl ToldList {
    /// As told: `key` (zeros: none) of the chunk hashes, until when they are to be used (Unix
    /// seconds), chunk hashes and uncompressed lengths.
    pub fn new(key: [u8; 32], expires: u64, chunks: impl IntoIterator<Item = (Hash, u32)>) -> Result<Self, Error> {
        let mut rows = Rows::default();
        for (chunk, len) in chunks {
            rows.push(chunk, len, MAX_CHUNKS)?;
        }
        if rows.hashes.is_empty() { Err(malformed("no chunks")) } else { Ok(Self { key, expires, rows }) }
    }

    /// Until when it is to be used, in Unix seconds.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    pub(super) fn is_expired(&self, now: SystemTime) -> bool {
        now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() >= self.expires
    }

    /// Some chunks of `xorb`, whose list this is.
    pub(super) fn excerpt(&self, xorb: &Hash, chunks: &Range<u32>) -> Excerpt {
        Excerpt::of(&self.rows, xorb, Some(self.key), chunks)
    }

    pub(super) fn footprint(&self) -> usize {
        size_of::<Self>() + self.rows.footprint()
    }

    /// The form on disk of the list of `xorb`.
    pub(crate) fn to_bytes(&self, xorb: &Hash) -> Vec<u8> {
        let mut bytes = TOLD.to_vec();
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.expires.to_le_bytes());
        self.rows.write_to(&mut bytes);
        bytes.extend_from_slice(&Self::sum(xorb, &bytes));
        bytes
    }

    /// Parses what a disk holds under the name of `xorb`. Nothing but damage is found out: who
    /// writes to the disk can write any list.
    pub fn parse(xorb: &Hash, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = || malformed("damaged on disk");
        let (summed, sum) = bytes.split_last_chunk::<SUM_LEN>().ok_or_else(damaged)?;
        if *sum != Self::sum(xorb, summed) {
            return Err(damaged());
        }
        let rest = summed.strip_prefix(TOLD).ok_or_else(|| malformed("no magic"))?;
        let (key, rest) = rest.split_first_chunk::<KEY_LEN>().ok_or_else(|| malformed("no key"))?;
        let (expires, rest) = rest.split_first_chunk::<8>().ok_or_else(|| malformed("no expiry"))?;
        Self::new(*key, u64::from_le_bytes(*expires), records(rest)?)
    }

    /// Checksum of what is before it. Under the name, so that it can't be that of another xorb.
    pub(crate) fn sum(xorb: &Hash, bytes: &[u8]) -> [u8; SUM_LEN] {
        *blake3::keyed_hash(&xorb.0, bytes).as_bytes()
    }
}

impl fmt::Debug for ToldList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToldList")
            .field("expires", &self.expires)
            .field("chunks", &self.rows.hashes.len())
            .finish_non_exhaustive()
    }
}

/// Consecutive chunks of a xorb, as far as its list has them: what a term is held against. Chunks are indexes in the
/// xorb, offsets count from the first of them.
#[derive(Clone, Debug)]
pub struct Excerpt {
    xorb: Hash,
    first: u32,
    /// Of a list that was told.
    key: Option<[u8; KEY_LEN]>,
    rows: Rows,
}

impl Excerpt {
    fn of(rows: &Rows, xorb: &Hash, key: Option<[u8; KEY_LEN]>, chunks: &Range<u32>) -> Self {
        let rows = rows.part(chunks.start as usize..chunks.end as usize);
        Self { xorb: *xorb, first: chunks.start, key, rows }
    }

    /// Whether the xorb's hash proves it, lengths too.
    pub fn is_proven(&self) -> bool {
        self.key.is_none()
    }

    /// Whether it has so many chunks, of so many bytes in all.
    pub fn measures(&self, chunks: usize, len: u64) -> bool {
        (self.rows.hashes.len(), self.rows.len()) == (chunks, len)
    }

    /// The chunks that have bytes in `wanted`, which isn't empty, and the bytes that they are;
    /// none, where it isn't within the excerpt.
    pub fn around(&self, wanted: &Range<u64>) -> Option<(Range<u32>, Range<u64>)> {
        let first = self.rows.containing(wanted.start);
        let behind = self.rows.containing(wanted.end.checked_sub(1)?) + 1;
        let bytes = self.rows.start(first)?..self.rows.start(behind)?;
        // A xorb's chunks.
        Some((self.first + first as u32..self.first + behind as u32, bytes))
    }

    /// Whether `chunk` is just these bytes.
    pub fn lies_at(&self, chunk: u32, place: &Range<u64>) -> bool {
        let Some(index) = chunk.checked_sub(self.first).map(|index| index as usize) else { return false };
        self.rows.start(index) == Some(place.start) && self.rows.start(index + 1) == Some(place.end)
    }

    /// Whether `chunk` has this hash.
    pub fn has(&self, chunk: u32, hash: &Hash) -> bool {
        let key = self.key.as_ref().filter(|key| **key != PLAIN);
        self.hash(chunk).is_some_and(|known| *known == key.map_or(*hash, |key| keyed_chunk_hash(key, hash)))
    }

    fn hash(&self, chunk: u32) -> Option<&Hash> {
        self.rows.hashes.get(chunk.checked_sub(self.first)? as usize)
    }

    /// What to say of a `chunk` that isn't the one of the list.
    pub fn mismatch(&self, chunk: u32) -> Error {
        match self.hash(chunk).filter(|_| self.is_proven()) {
            Some(&expected) => Error::HashMismatch { what: "chunk", expected },
            // A hash under a key says nothing to anybody.
            None => self.contradiction(),
        }
    }

    /// What to say where the xorb can't be as the list and something else say.
    pub fn contradiction(&self) -> Error {
        Error::HashMismatch { what: "xorb", expected: self.xorb }
    }
}
