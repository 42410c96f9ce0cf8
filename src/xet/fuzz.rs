//! Bodies of the fuzz targets of the formats: no panic on any input, and what parses is written so
//! that it parses to the same.
//!
//! Plain tests replay the vectors, whole and damaged, through them.

use super::chunker::{Chunker, MAX_CHUNK, MIN_CHUNK};
use super::compression::{self, Scheme};
use super::download::decoder::Decoder;
use super::http::ndjson;
use super::known::{ChunkList, Kind, ToldList};
use super::reconstruction::{parse_v1, parse_v2};
use super::shard::Shard;
use super::xorb::{self, ChunkHeader};
use super::{Hash, merkle};
use bytes::Bytes;

pub use super::upload::fuzz::{dedup, upload_shards};

/// A stream, behind 16 bytes that say in pieces of what sizes it comes: chunks end where they do when it comes whole.
///
/// It is repeated until it has some chunks of every length: inputs are short.
pub fn chunker(data: &[u8]) {
    /// Bytes of the stream.
    const LEN: usize = 3 * MAX_CHUNK;
    let Some((sizes, period)) = data.split_first_chunk::<16>() else { return };
    if period.is_empty() {
        return;
    }
    let stream: Vec<u8> = period.iter().copied().cycle().take(LEN).collect();
    let whole = chunk_lens(&stream, std::iter::once(LEN));
    let sizes = sizes.as_chunks::<2>().0.iter().map(|size| usize::from(u16::from_le_bytes(*size)) + 1);
    assert_eq!(chunk_lens(&stream, sizes.cycle()), whole);
    assert_eq!(whole.iter().sum::<usize>(), LEN);
    let (last, rest) = whole.split_last().expect("a stream that isn't empty has a chunk");
    assert!(*last <= MAX_CHUNK && rest.iter().all(|len| (MIN_CHUNK..=MAX_CHUNK).contains(len)));
}

/// The lengths of the chunks of `stream`, which comes in pieces of these sizes.
fn chunk_lens(mut stream: &[u8], mut sizes: impl Iterator<Item = usize>) -> Vec<usize> {
    let (mut chunker, mut lens, mut len) = (Chunker::new(), Vec::new(), 0);
    while !stream.is_empty() {
        let size = sizes.next().unwrap_or(stream.len()).min(stream.len());
        let (mut piece, rest) = stream.split_at(size);
        stream = rest;
        while let Some(end) = chunker.next_boundary(piece) {
            lens.push(len + end);
            (piece, len) = (&piece[end..], 0);
        }
        len += piece.len();
    }
    lens.extend((len > 0).then_some(len));
    lens
}

/// A chunk header.
pub fn chunk_header(data: &[u8]) {
    if let Some(bytes) = data.first_chunk()
        && let Ok(header) = ChunkHeader::parse(bytes)
    {
        assert_eq!(header.to_bytes(), *bytes);
    }
}

/// A chunk's payload behind a header, which supplies scheme and length.
pub fn compression(data: &[u8]) {
    let Some((header, stored)) = data.split_first_chunk() else { return };
    let Ok(ChunkHeader { scheme, raw_len, .. }) = ChunkHeader::parse(header) else { return };
    let mut raw = Vec::new();
    if compression::decompress(scheme, stored, raw_len as usize, &mut raw).is_err() {
        assert!(raw.is_empty() && raw.capacity() <= MAX_CHUNK);
        return;
    }
    assert_eq!(raw.len(), raw_len as usize);
    for wanted in [Scheme::Lz4, Scheme::Bg4Lz4] {
        let mut again = Vec::new();
        let scheme = compression::compress(wanted, &raw, &mut again);
        let mut back = Vec::new();
        compression::decompress(scheme, &again, raw.len(), &mut back).expect("our own frame");
        assert_eq!(back, raw);
    }
}

/// Frames of a v2 shard answer, behind a byte that says in pieces of what size they come: that must
/// not change what they say.
pub fn ndjson(data: &[u8]) {
    let Some((&step, body)) = data.split_first() else { return };
    let outcome = |step: usize| {
        let mut decoder = ndjson::Decoder::new();
        for piece in body.chunks(step) {
            if let Some(outcome) = decoder.push(piece).ok()? {
                return Some(outcome);
            }
        }
        decoder.finish().ok()
    };
    assert_eq!(outcome(usize::from(step).max(1)), outcome(body.len().max(1)));
}

/// An upload body and a stored xorb.
pub fn xorb(data: &[u8]) {
    if let Ok((index, area_len)) = xorb::scan_upload(data, true) {
        xorb::verify_upload(data, &index.hash, true).expect("scanned already");
        let mut chunks = index.chunks.iter();
        xorb::decode_chunks(&data[..area_len], |raw| {
            let chunk = chunks.next().expect("no more chunks than the index has");
            assert_eq!((super::hash::chunk_hash(raw), raw.len()), (chunk.hash, chunk.raw_len as usize));
            Ok(())
        })
        .expect("decoded already");
        let stored = [&data[..area_len], &xorb::write_footer(&index)].concat();
        assert_eq!(xorb::parse_footer(&stored).expect("our own footer"), index);
    }
    if let Ok(index) = xorb::parse_footer(data) {
        let area_len = index.chunks.last().map_or(0, |chunk| chunk.stored_end as usize);
        let stored = [&data[..area_len], &xorb::write_footer(&index)].concat();
        assert_eq!(xorb::parse_footer(&stored).expect("our own footer"), index);
    }
}

/// Chunks of a xorb, behind a byte that says in pieces of what size they come: they give the same as the whole does.
pub fn stretch(data: &[u8]) {
    let Some((&step, body)) = data.split_first() else { return };
    let mut expected = Vec::new();
    let whole = xorb::decode_chunks(body, |raw| {
        expected.push(raw.to_vec());
        Ok(())
    });
    // As many as were good, so that there is something to compare.
    let count = expected.len() as u32;
    let decoded = |step: usize| {
        let mut decoder = Decoder::new(3..3 + count);
        let mut found = Vec::new();
        let fed = body.chunks(step).try_for_each(|piece| {
            decoder.push(Bytes::copy_from_slice(piece), |chunk| {
                assert_eq!(chunk.index, 3 + found.len() as u32);
                found.push(chunk.into_raw()?.to_vec());
                Ok(())
            })
        });
        (fed.and_then(|()| decoder.finish()).is_ok(), found)
    };
    for step in [usize::from(step).max(1), body.len().max(1)] {
        assert_eq!(decoded(step), (whole.is_ok(), expected.clone()));
    }
}

/// A list of chunks as a disk holds it, under the hash that it has and under another; and all but
/// the checksum of one that was told.
pub fn chunk_list(data: &[u8]) {
    let records = data.get(8..).unwrap_or_default().as_chunks::<36>().0;
    let chunks: Vec<_> = records
        .iter()
        .map(|record| {
            let (hash, len) = record.split_at(32);
            let len = u32::from_le_bytes(len.try_into().expect("4 of 36"));
            (Hash(hash.try_into().expect("32 of 36")), u64::from(len))
        })
        .collect();
    for (kind, hash) in [(Kind::File, merkle::file_hash(&chunks)), (Kind::Xorb, merkle::xorb_hash(&chunks))] {
        if let Ok(list) = ChunkList::parse(kind, &hash, data) {
            assert_eq!(list.to_bytes(), data);
        }
        // No fixed hash would do: that of a xorb of one chunk is the chunk's.
        let mut other = hash;
        other.0[0] ^= 1;
        assert!(ChunkList::parse(kind, &other, data).is_err());
    }
    let (xorb, other) = (Hash([3; 32]), Hash([4; 32]));
    let told = [data, &ToldList::sum(&xorb, data)].concat();
    if let Ok(list) = ToldList::parse(&xorb, &told) {
        assert_eq!(list.to_bytes(&xorb), told);
    }
    assert!(ToldList::parse(&other, &told).is_err());
}

/// A shard of any form.
pub fn shard(data: &[u8]) {
    let Ok(shard) = Shard::parse(data) else { return };
    let upload = shard.to_upload();
    assert_eq!(upload.len(), shard.upload_len());
    assert!(upload.len() <= data.len());
    let again = Shard::parse(&upload).expect("our own shard");
    assert_eq!(again.to_upload(), upload);
    if let Some(footer) = &shard.footer {
        for lookups in [false, true] {
            let stored = Shard::parse(&shard.to_stored(footer, lookups)).expect("our own shard");
            assert_eq!((&stored.files, &stored.xorbs), (&again.files, &again.xorbs));
            assert_eq!(stored.footer.as_ref(), Some(footer));
        }
    }
}

/// A reconstruction answer of either version.
pub fn reconstruction(data: &[u8]) {
    for answer in [parse_v1(data), parse_v2(data)].into_iter().flatten() {
        assert!(answer.terms.iter().all(|term| answer.fetch_of(term).is_some()));
        assert_eq!(parse_v1(&answer.to_v1()).expect("our own answer"), answer);
        assert_eq!(parse_v2(&answer.to_v2()).expect("our own answer"), answer);
    }
}

/// A `Content-Type` value, a line end, and a multipart body.
pub fn byteranges(data: &[u8]) {
    let Some(line_end) = data.iter().position(|&byte| byte == b'\n') else { return };
    let Some(boundary) = str::from_utf8(&data[..line_end]).ok().and_then(super::byteranges::boundary) else { return };
    let Ok(parts) = super::byteranges::parse(boundary, &Bytes::copy_from_slice(&data[line_end + 1..])) else { return };
    let mut body = Vec::new();
    for part in &parts {
        assert_eq!(part.range.end - part.range.start, part.data.len() as u64);
        body.extend_from_slice(super::byteranges::part_head(boundary, &part.range, part.range.end).as_bytes());
        body.extend_from_slice(&part.data);
    }
    body.extend_from_slice(super::byteranges::end(boundary).as_bytes());
    assert_eq!(super::byteranges::parse(boundary, &body.into()).expect("our own body"), parts);
}

/// An entry file of the disk cache.
pub fn cache_entry(data: &[u8]) {
    super::cache::fuzz(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;
    use proptest::prelude::*;
    use serde_json::Value;

    /// Every input of every kind that the vectors hold.
    fn seeds() -> Vec<Vec<u8>> {
        let mut seeds: Vec<Vec<u8>> = vectors::binaries().collect();
        for chunk in vectors::list(&vectors::json::<Value>("compression.json")["serialized_chunks"]) {
            seeds.push(vectors::bytes(&chunk["serialized_chunk_hex"]));
        }
        for set in vectors::list(&vectors::json::<Value>("pipeline.json")["sets"]) {
            for case in vectors::list(&set["reconstruction"]["cases"]) {
                seeds.extend(["v1", "v2"].map(|version| case[version].to_string().into_bytes()));
            }
        }
        let multipart = "multipart/byteranges; boundary=b\n\r\n--b\r\nContent-Range: bytes 7-9/10\r\n\r\nabc\
                         \r\n--b\r\nContent-Range: bytes 0-1/*\r\n\r\nde\r\n--b--\r\n";
        seeds.push(multipart.into());
        assert!(seeds.len() > 40);
        seeds
    }

    fn all(data: &[u8]) {
        let bodies = [
            chunk_header,
            chunker,
            compression,
            xorb,
            stretch,
            chunk_list,
            shard,
            dedup,
            upload_shards,
            reconstruction,
            byteranges,
            cache_entry,
        ];
        for body in bodies {
            body(data);
        }
    }

    #[test]
    fn vectors_pass_through_every_body() {
        seeds().iter().for_each(|seed| all(seed));
    }

    #[test]
    fn every_body_gets_past_its_parser_with_some_vector() {
        let seeds = seeds();
        let any = |accepts: &dyn Fn(&[u8]) -> bool| assert!(seeds.iter().any(|seed| accepts(seed)));
        any(&|seed| xorb::scan_upload(seed, true).is_ok());
        any(&|seed| xorb::parse_footer(seed).is_ok());
        any(&|seed| Shard::parse(seed).is_ok());
        any(&|seed| parse_v1(seed).is_ok());
        any(&|seed| parse_v2(seed).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn damaged_vectors_pass_through_every_body(
            seed in prop::sample::select(seeds()),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
            more in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut data = seed;
            for (at, value) in flips {
                let at = at.index(data.len());
                data[at] ^= value;
            }
            if let Some(cut) = cut {
                data.truncate(cut.index(data.len()));
            }
            data.extend(more);
            all(&data);
        }

        #[test]
        fn arbitrary_bytes_pass_through_every_body(data in prop::collection::vec(any::<u8>(), 0..400)) {
            all(&data);
        }
    }
}
