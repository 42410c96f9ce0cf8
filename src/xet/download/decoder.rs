//! Whole chunks out of a stretch of a xorb as its bytes arrive (Xet spec, 5.1).
//!
//! The received bytes are checked against the announcement: headers against the limits, and the
//! number of chunks against the chunk range. A chunk that lies inside one piece shares its memory; one that
//! lies across pieces is put together in a buffer of its own, which is used again once nobody holds
//! what was in it. Lengths are bytes. Failure: [`Error::Malformed`].

use crate::Error;
use crate::compression::decompress;
use crate::xorb::{CHUNK_HEADER_LEN, ChunkHeader};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// A chunk as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredChunk {
    /// In its xorb.
    pub(crate) index: u32,
    pub(crate) header: ChunkHeader,
    pub(crate) payload: Bytes,
}

impl StoredChunk {
    pub(crate) fn raw_len(&self) -> u32 {
        self.header.raw_len
    }

    /// Its raw bytes, which share the payload's memory where that isn't compressed.
    pub(crate) fn into_raw(self) -> Result<Bytes, Error> {
        if self.header.is_plain() {
            return Ok(self.payload);
        }
        let mut raw = Vec::with_capacity(self.header.raw_len as usize);
        decompress(self.header.scheme, &self.payload, self.header.raw_len as usize, &mut raw)?;
        Ok(raw.into())
    }
}

/// Cuts a stretch into its chunks.
pub(crate) struct Decoder {
    /// Chunk indexes that have yet to come.
    expected: Range<u32>,
    /// The beginning of a chunk that lies across pieces: at most a header and a payload.
    partial: BytesMut,
}

impl Decoder {
    /// For a stretch of exactly `chunks`.
    pub(crate) fn new(chunks: Range<u32>) -> Self {
        Self { expected: chunks, partial: BytesMut::new() }
    }

    /// Takes the next bytes and calls `each` for every chunk that they complete. After an error it
    /// is of no further use.
    pub(crate) fn push(
        &mut self,
        mut piece: Bytes,
        mut each: impl FnMut(StoredChunk) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !piece.is_empty() {
            match self.take(&mut piece)? {
                Some(chunk) => each(chunk)?,
                None => break,
            }
        }
        Ok(())
    }

    /// To be called behind the last piece.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if !self.partial.is_empty() {
            return Err(malformed("the last chunk is cut short"));
        }
        if self.expected.is_empty() { Ok(()) } else { Err(malformed("there are fewer chunks than announced")) }
    }

    /// The next chunk off the front of `piece`, or `None` if it ends before the chunk does: then all of it was kept.
    fn take(&mut self, piece: &mut Bytes) -> Result<Option<StoredChunk>, Error> {
        if self.expected.is_empty() {
            return Err(malformed("there are more chunks than announced"));
        }
        if self.partial.is_empty() {
            if let Some(header) = piece.first_chunk::<CHUNK_HEADER_LEN>() {
                let header = ChunkHeader::parse(header)?;
                let end = CHUNK_HEADER_LEN + header.stored_len as usize;
                if end <= piece.len() {
                    let stored = piece.split_to(end);
                    return Ok(Some(self.chunk(header, stored)));
                }
                self.partial.reserve(end);
            }
            self.partial.extend_from_slice(&piece.split_off(0));
            return Ok(None);
        }
        if !self.fill(piece, CHUNK_HEADER_LEN) {
            return Ok(None);
        }
        let header = self.partial.first_chunk().expect("it was just filled so far");
        let header = ChunkHeader::parse(header)?;
        if !self.fill(piece, CHUNK_HEADER_LEN + header.stored_len as usize) {
            return Ok(None);
        }
        let stored = self.partial.split().freeze();
        Ok(Some(self.chunk(header, stored)))
    }

    /// Moves bytes off the front of `piece` until `partial` has `len`; `false` where they are too few.
    fn fill(&mut self, piece: &mut Bytes, len: usize) -> bool {
        let missing = len.saturating_sub(self.partial.len());
        self.partial.reserve(missing);
        self.partial.extend_from_slice(&piece.split_to(missing.min(piece.len())));
        self.partial.len() >= len
    }

    fn chunk(&mut self, header: ChunkHeader, stored: Bytes) -> StoredChunk {
        let index = self.expected.start;
        self.expected.start += 1;
        StoredChunk { index, header, payload: stored.slice(CHUNK_HEADER_LEN..) }
    }
}

fn malformed(why: &str) -> Error {
    Error::Malformed { what: "xorb data", why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::chunk_hash;
    use crate::xorb::{Builder, decode_chunks};
    use crate::{Scheme, testdata};
    use proptest::prelude::*;

    fn xorb() -> Bytes {
        let mut builder = Builder::default();
        let chunks = [
            (testdata::random(1, 131_072), Scheme::None),
            (testdata::text(50_000), Scheme::Lz4),
            (vec![7], Scheme::None),
            (testdata::floats(2, 9_000), Scheme::Bg4Lz4),
            (testdata::random(3, 9_000), Scheme::None),
        ];
        for (raw, scheme) in &chunks {
            builder.push(chunk_hash(raw), raw, *scheme);
        }
        builder.finish().0
    }

    /// Raw chunks, by pieces that end at `cuts`.
    fn decoded(body: &Bytes, chunks: Range<u32>, cuts: &[usize]) -> Result<Vec<Vec<u8>>, Error> {
        let mut decoder = Decoder::new(chunks.clone());
        let (mut raw, mut start) = (Vec::new(), 0);
        for &end in cuts.iter().chain([&body.len()]) {
            decoder.push(body.slice(start..end), |chunk| {
                assert_eq!(chunk.index, chunks.start + raw.len() as u32);
                raw.push(chunk.into_raw()?.to_vec());
                Ok(())
            })?;
            start = end;
        }
        decoder.finish()?;
        Ok(raw)
    }

    fn oracle(body: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut raw = Vec::new();
        decode_chunks(body, |chunk| {
            raw.push(chunk.to_vec());
            Ok(())
        })
        .ok()?;
        Some(raw)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_split_gives_the_chunks_and_any_damage_what_the_whole_gives(
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
            damage in prop::option::of((any::<prop::sample::Index>(), 1u8..)),
            len in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut body = xorb().to_vec();
            if let Some((at, bits)) = damage {
                let at = at.index(body.len());
                body[at] ^= bits;
            }
            body.truncate(len.map_or(body.len(), |len| len.index(body.len())));
            let body = Bytes::from(body);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.sort_unstable();
            let expected = oracle(&body).filter(|raw| raw.len() == 5);
            prop_assert_eq!(decoded(&body, 11..16, &cuts).ok(), expected);
        }
    }

    #[test]
    fn pieces_of_one_byte_are_enough() {
        let body = xorb();
        let cuts: Vec<_> = (1..body.len()).collect();
        assert_eq!(decoded(&body, 0..5, &cuts).unwrap(), oracle(&body).unwrap());
    }

    #[test]
    fn number_of_chunks_is_the_one_announced() {
        let body = xorb();
        assert!(decoded(&body, 0..5, &[]).is_ok());
        assert!(decoded(&body, 0..4, &[]).is_err());
        assert!(decoded(&body, 0..6, &[]).is_err());
        assert!(decoded(&Bytes::new(), 0..1, &[]).is_err());
    }

    #[test]
    fn chunks_inside_a_piece_share_its_memory() {
        let body = xorb();
        let mut decoder = Decoder::new(0..5);
        let mut payloads = Vec::new();
        let keep = |chunk: StoredChunk| {
            payloads.push(chunk.payload);
            Ok(())
        };
        decoder.push(body.clone(), keep).unwrap();
        let inside = body.as_ptr_range();
        assert!(payloads.iter().all(|payload| inside.contains(&payload.as_ptr())));
    }

    #[test]
    fn bad_header_is_seen_before_its_payload() {
        let mut decoder = Decoder::new(0..1);
        let header = [0, 255, 255, 255, 0, 1, 0, 0];
        assert!(decoder.push(Bytes::copy_from_slice(&header), |_| Ok(())).is_err());
        let mut decoder = Decoder::new(0..1);
        decoder.push(Bytes::copy_from_slice(&header[..7]), |_| Ok(())).unwrap();
        assert!(decoder.push(Bytes::copy_from_slice(&header[7..]), |_| Ok(())).is_err());
    }
}
