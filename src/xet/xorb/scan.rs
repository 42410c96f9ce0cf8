//! Verifies the body of an upload as it comes in, in pieces of any length (Xet spec, sections 5.3 and 10.5).

use super::{
    CHUNK_HEADER_LEN, ChunkEntry, ChunkHeader, INFO_IDENT, MAX_CHUNKS, MAX_SERIALISED, MAX_STORED_CHUNK, XorbIndex,
    malformed, open_chunk, take_chunk,
};
use crate::{Error, hash};

/// Server side: decodes and hashes the chunks of an upload body, piece by piece. Keeps no bytes of
/// it but one decompressed chunk.
pub struct UploadScan {
    allow_footer: bool,
    chunks: Vec<ChunkEntry>,
    /// Bytes of the chunks so far.
    area_len: usize,
    /// A footer has begun: it, and whatever follows, is ignored.
    ended: bool,
    raw: Vec<u8>,
}

impl UploadScan {
    /// Longest rest that [`Self::take`] leaves, in bytes: a chunk whose last byte is missing.
    pub const MAX_REST: usize = CHUNK_HEADER_LEN + MAX_STORED_CHUNK - 1;

    /// At the start of a body; `allow_footer`: it may end with a footer.
    pub fn new(allow_footer: bool) -> Self {
        Self { allow_footer, chunks: Vec::new(), area_len: 0, ended: false, raw: Vec::new() }
    }

    /// Takes the whole chunks at the start of `bytes` and gives their length. The rest, at most [`Self::MAX_REST`]
    /// bytes unless [`Self::has_ended`], has to come again with the bytes that follow.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let mut rest = bytes;
        loop {
            self.ended |= self.allow_footer && rest.starts_with(INFO_IDENT);
            if self.ended || !begins_with_chunk(rest)? {
                return Ok(bytes.len() - rest.len());
            }
            self.take_one(&mut rest)?;
        }
    }

    /// Whether the chunks have ended with a footer: no more has to come.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The index of the whole body, where `rest` is what the last [`Self::take`] left.
    pub fn finish(self, rest: &[u8]) -> Result<XorbIndex, Error> {
        if !self.ended && !rest.is_empty() {
            return Err(malformed("cut short in a chunk"));
        }
        if self.chunks.is_empty() {
            return Err(malformed("no chunks"));
        }
        Ok(XorbIndex::of(self.chunks))
    }

    fn take_one(&mut self, bytes: &mut &[u8]) -> Result<(), Error> {
        if self.chunks.len() == MAX_CHUNKS {
            return Err(malformed(format!("more than {MAX_CHUNKS} chunks")));
        }
        let (header, stored) = take_chunk(bytes)?;
        let area_len = self.area_len + CHUNK_HEADER_LEN + stored.len();
        if area_len > MAX_SERIALISED {
            return Err(malformed("longer than any xorb"));
        }
        let hash = hash::chunk_hash(open_chunk(header, stored, &mut self.raw)?);
        self.chunks.push(ChunkEntry { hash, raw_len: header.raw_len, stored_end: area_len as u32 });
        self.area_len = area_len;
        Ok(())
    }
}

/// Whether all of the first chunk is there; an error where it can't be one.
fn begins_with_chunk(bytes: &[u8]) -> Result<bool, Error> {
    let Some((header, rest)) = bytes.split_first_chunk() else { return Ok(false) };
    Ok(rest.len() >= ChunkHeader::parse(header)?.stored_len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xorb::{Builder, scan_upload, write_footer};
    use crate::{Scheme, testdata};
    use proptest::prelude::*;

    /// A body of chunks of these lengths, and its index.
    fn body(lens: &[usize], with_footer: bool) -> (Vec<u8>, XorbIndex) {
        let mut builder = Builder::default();
        for (i, &len) in lens.iter().enumerate() {
            let (raw, scheme) = if i % 2 == 0 {
                (testdata::random(i as u64, len), Scheme::None)
            } else {
                (b"text ".repeat(len / 5 + 1), Scheme::Lz4)
            };
            builder.push(hash::chunk_hash(&raw), &raw, scheme);
        }
        let (body, index) = builder.finish();
        let footer = if with_footer { write_footer(&index) } else { Vec::new() };
        ([&body[..], &footer].concat(), index)
    }

    /// The outcome for a body that comes in pieces of these lengths, over and over.
    fn scan(body: &[u8], allow_footer: bool, pieces: &[usize]) -> Result<(XorbIndex, usize), Error> {
        let mut scan = UploadScan::new(allow_footer);
        let (mut start, mut end) = (0, 0);
        for len in pieces.iter().cycle() {
            if end == body.len() {
                break;
            }
            end = body.len().min(end + len);
            start += scan.take(&body[start..end])?;
            assert!(scan.has_ended() || end - start <= UploadScan::MAX_REST);
        }
        Ok((scan.finish(&body[start..])?, start))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_of_any_length_give_what_the_whole_gives(
            lens in prop::collection::vec(prop_oneof![1..200usize, 1..131_072usize], 1..8),
            with_footer: bool,
            allow_footer: bool,
            damage in prop::option::of((any::<prop::sample::Index>(), 1..=255u8)),
            cut in prop::option::of(any::<prop::sample::Index>()),
            pieces in prop::collection::vec(prop_oneof![1..20usize, 1..100_000usize], 1..10),
        ) {
            let (mut body, index) = body(&lens, with_footer);
            if let Some((at, flip)) = damage {
                let at = at.index(body.len());
                body[at] ^= flip;
            }
            if let Some(cut) = cut {
                body.truncate(cut.index(body.len()));
            }
            let whole = scan_upload(&body, allow_footer);
            let pieced = scan(&body, allow_footer, &pieces);
            prop_assert_eq!(whole.as_ref().ok(), pieced.as_ref().ok());
            if damage.is_none() && cut.is_none() {
                prop_assert_eq!(whole.is_ok(), allow_footer || !with_footer);
                prop_assert!(whole.is_err() || whole.unwrap().0 == index);
            }
        }
    }

    #[test]
    fn chunks_without_end_are_refused_before_they_are_kept() {
        let raw = vec![0; crate::chunker::MAX_CHUNK];
        let header = ChunkHeader { stored_len: raw.len() as u32, scheme: Scheme::None, raw_len: raw.len() as u32 };
        let chunk = [&header.to_bytes()[..], &raw].concat();
        let mut scan = UploadScan::new(false);
        let most = MAX_SERIALISED / chunk.len();
        (0..most).for_each(|_| assert_eq!(scan.take(&chunk).unwrap(), chunk.len()));
        assert!(scan.take(&chunk).is_err());
    }
}
