//! What either side makes of damaged bytes.
//!
//! If both accept an input, they must read the same from it. Each input that the official parsers accept and ours
//! refuse needs one of the reasons named here: ours are stricter if the official ones leave a field unread, or leave a
//! check to their caller. Ours must refuse each input that theirs refuse, except for one case, which is named too.

use super::*;
use futures::FutureExt;
use hfcrypt::xet::shard::{FileInfo, Footer, Segment, Shard, ShardChunk, XorbInfo};
use hfcrypt::xet::xorb::{self, Builder, XorbIndex};
use hfcrypt::xet::{Error, Scheme, hash, merkle};
use proptest::collection::vec;
use proptest::sample::Index;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use xet_core_structures::metadata_shard::file_structs::MDBFileInfo;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::metadata_shard::{MDBShardFileFooter, MDBShardInfo};
use xet_core_structures::xorb_object::{
    XorbObject, XorbObjectInfoV0, deserialize_chunks, reconstruct_xorb_with_footer,
};

/// Cases of a property: a second or so, at some KB each.
const CASES: u32 = 20_000;

/// One thing done to an input. Positions are drawn for any length.
#[derive(Clone, Debug)]
enum Damage {
    Flip {
        at: Index,
        bit: u8,
    },
    Byte {
        at: Index,
        value: u8,
    },
    /// A count or an offset, as far as it is aligned to what it may count.
    Word {
        at: Index,
        value: u32,
    },
    Cut {
        at: Index,
    },
    Remove {
        at: Index,
        len: usize,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    /// A stretch again, somewhere else: over what is there, or between.
    Copy {
        from: Index,
        to: Index,
        len: usize,
        over: bool,
    },
}

impl Damage {
    /// `unit`: what positions and lengths of splices are multiples of, so that whole records move.
    fn apply(&self, bytes: &mut Vec<u8>, unit: usize) {
        if bytes.len() < unit.max(4) {
            return;
        }
        let place = |at: &Index| at.index(bytes.len() / unit) * unit;
        match self {
            Self::Flip { at, bit } => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Byte { at, value } => {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            Self::Word { at, value } => {
                let at = at.index(bytes.len() / 4) * 4;
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            Self::Cut { at } => bytes.truncate(at.index(bytes.len())),
            Self::Remove { at, len } => {
                let at = place(at);
                let end = (at + len * unit).min(bytes.len());
                bytes.drain(at..end);
            }
            Self::Insert { at, bytes: more } => {
                let at = place(at);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Copy { from, to, len, over } => {
                let (from, to) = (place(from), place(to));
                let stretch = bytes[from..(from + len * unit).min(bytes.len())].to_vec();
                let end = if *over { (to + stretch.len()).min(bytes.len()) } else { to };
                bytes.splice(to..end, stretch);
            }
        }
    }
}

fn any_damage() -> impl Strategy<Value = Vec<Damage>> {
    let word = select(
        &[
            0,
            1,
            2,
            3,
            7,
            8,
            9,
            48,
            99,
            200,
            8_192,
            8_193,
            131_072,
            131_073,
            262_144,
            1 << 24,
            1 << 30,
            1 << 31,
            u32::MAX,
        ][..],
    );
    let damage = prop_oneof![
        3 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        3 => (any::<Index>(), select(&[0u8, 1, 2, 3, 99, 0x80, 0xff][..])).prop_map(|(at, value)| Damage::Byte { at, value }),
        3 => (any::<Index>(), word).prop_map(|(at, value)| Damage::Word { at, value }),
        1 => any::<Index>().prop_map(|at| Damage::Cut { at }),
        1 => (any::<Index>(), 1..6usize).prop_map(|(at, len)| Damage::Remove { at, len }),
        1 => (any::<Index>(), vec(any::<u8>(), 1..60)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        2 => (any::<Index>(), any::<Index>(), 1..20usize, any::<bool>())
            .prop_map(|(from, to, len, over)| Damage::Copy { from, to, len, over }),
    ];
    vec(damage, 0..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage], unit: usize) -> Vec<u8> {
    damage.iter().for_each(|damage| damage.apply(&mut bytes, unit));
    bytes
}

/// What the official code makes of an input; a panic of its debug assertions is a refusal, too.
fn theirs_of<T>(parse: impl FnOnce() -> Option<T>) -> Option<T> {
    catch_unwind(AssertUnwindSafe(parse)).ok().flatten()
}

// Xorbs.

/// A few short chunks: most of an input is then structure.
fn any_xorb() -> impl Strategy<Value = (Vec<u8>, XorbIndex)> {
    let chunk = (any_content(), select(&[Scheme::None, Scheme::Lz4, Scheme::Bg4Lz4][..]));
    vec(chunk, 1..6).prop_map(|chunks| {
        let mut builder = Builder::default();
        for (chunk, scheme) in chunks {
            builder.push(hash::chunk_hash(&chunk), &chunk, scheme);
        }
        let (body, index) = builder.finish();
        (body.to_vec(), index)
    })
}

fn any_content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 1..40),
        (1..900usize).prop_map(text),
        (0..9u64, 1..200usize).prop_map(|(seed, count)| floats(seed, count)),
        (any::<u8>(), 1..2_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

/// What a xorb means: its hash, and each chunk with its length and the end of its stored form.
type Meaning = (Hash, Vec<(Hash, u32, u32)>);

fn meaning(index: &XorbIndex) -> Meaning {
    (index.hash, index.chunks.iter().map(|chunk| (chunk.hash, chunk.raw_len, chunk.stored_end)).collect())
}

/// Returns the official server's reading of an upload that its own reader accepts. Rebuilding alone
/// doesn't check chunks against their headers.
fn their_upload(body: &[u8]) -> Option<Meaning> {
    theirs_of(|| {
        let mut rebuilt = Vec::new();
        let (_, hash) = reconstruct_xorb_with_footer(&mut rebuilt, body).ok()?;
        their_stored(&rebuilt, &hash)
    })
}

fn their_stored(whole: &[u8], hash: &MerkleHash) -> Option<Meaning> {
    let object = XorbObject::validate_xorb_object(&mut Cursor::new(whole), hash).ok()??;
    let info = &object.info;
    let (mut start, mut chunks) = (0, Vec::new());
    for (hash, &end) in info.chunk_hashes.iter().zip(&info.chunk_boundary_offsets) {
        // The older footer has no lengths: they are those in the headers, which the validation has seen to.
        let header = &whole[start as usize..];
        chunks.push((ours(hash), u32::from_le_bytes([header[5], header[6], header[7], 0]), end));
        start = end;
    }
    Some((ours(hash), chunks))
}

/// Why a chunk area that the official code reads is refused by ours.
fn refused_area(mut area: &[u8]) -> Option<&'static str> {
    if area.is_empty() || area.starts_with(b"XETBLOB") {
        return Some("no chunk: nobody uploads such a xorb, and no hash stands for it");
    }
    while let Some((header, rest)) = area.split_first_chunk::<8>() {
        if header.starts_with(b"XETBLOB") {
            break;
        }
        let stored_len = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
        let raw_len = u32::from_le_bytes([header[5], header[6], header[7], 0]);
        if raw_len == 0 {
            return Some("a chunk of no bytes: no chunker makes one");
        }
        let (stored, rest) = rest.split_at_checked(stored_len)?;
        if header[4] != 0
            && let Some(reason) = refused_frame(stored)
        {
            return Some(reason);
        }
        area = rest;
    }
    None
}

/// Why an LZ4 frame that the official decoder reads is refused by ours.
fn refused_frame(frame: &[u8]) -> Option<&'static str> {
    let flags = *frame.get(4)?;
    let mut at = 4 + 2 + 1;
    if flags & 0b1000 != 0 {
        at += 8;
    }
    if flags & 0b01 != 0 {
        return Some("a frame that wants a dictionary, which there is none of");
    }
    if flags & 0b10 != 0 || frame.get(5)? & 0b1000_1111 != 0 {
        return Some("a frame with reserved bits set: no decoder knows what they mean");
    }
    loop {
        let word = u32::from_le_bytes(*frame.get(at..)?.first_chunk::<4>()?);
        at += 4;
        if word == 0 {
            break;
        }
        if word == 1 << 31 {
            return Some("a frame without an end: theirs stops at any empty block");
        }
        at += (word & 0x7fff_ffff) as usize + if flags & 0b1_0000 != 0 { 4 } else { 0 };
    }
    if flags & 0b100 != 0 {
        at += 4;
    }
    (at < frame.len()).then_some("bytes behind the end of a frame: they would be stored and mean nothing")
}

fn is_malformed<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Malformed { .. }))
}

#[expect(deprecated, reason = "nobody else writes it any more")]
fn old_footer(index: &XorbIndex) -> Vec<u8> {
    let mut info = XorbObjectInfoV0::default();
    info.xorb_hash = theirs(&index.hash);
    info.num_chunks = index.chunks.len() as u32;
    info.chunk_boundary_offsets = index.chunks.iter().map(|chunk| chunk.stored_end).collect();
    info.chunk_hashes = index.chunks.iter().map(|chunk| theirs(&chunk.hash)).collect();
    let mut footer = Vec::new();
    let len = info.serialize(&mut footer).unwrap() as u32;
    footer.extend_from_slice(&len.to_le_bytes());
    footer
}

// Shards.

fn any_shard() -> impl Strategy<Value = Shard> {
    let any_hash = || any::<[u8; 32]>().prop_map(Hash);
    let chunk = (any_hash(), 1..=MAX_CHUNK as u32, select(&[0, 0x8000_0000u32][..]));
    let xorb = (any_hash(), vec(chunk, 1..6)).prop_map(|(hash, parts)| {
        let mut raw_len = 0;
        let chunk = |(hash, len, flags)| {
            let chunk = ShardChunk { hash, raw_start: raw_len, raw_len: len, flags };
            raw_len += len;
            chunk
        };
        let chunks = parts.into_iter().map(chunk).collect();
        XorbInfo { hash, raw_len, stored_len: 0, chunks }
    });
    let segment = (any_hash(), 1..1_000_000u32, 0..50u32, 1..50u32).prop_map(|(xorb, raw_len, start, count)| Segment {
        xorb,
        raw_len,
        start,
        end: start + count,
    });
    let file = (any_hash(), vec((segment, any_hash()), 0..4), any::<Option<[u8; 32]>>());
    (vec(file, 0..4), vec(xorb, 0..4), any::<bool>()).prop_map(|(files, mut xorbs, verified)| {
        let file = |(hash, terms, sha256): (Hash, Vec<(Segment, Hash)>, _)| {
            let (segments, mut verification): (Vec<_>, Vec<_>) = terms.into_iter().unzip();
            if !verified {
                verification.clear();
            }
            FileInfo { hash, segments, verification, sha256 }
        };
        let mut files: Vec<_> = files.into_iter().map(file).collect();
        files.sort_by_key(|file| file.hash);
        xorbs.sort_by_key(|xorb| xorb.hash);
        Shard { files, xorbs, footer: None }
    })
}

/// The sections as the official server reads an upload: as a stream, allocating for no more than has come.
fn their_sections(bytes: &[u8]) -> Option<MDBMinimalShard> {
    theirs_of(|| {
        let limit = Some(bytes.len() as u64);
        MDBMinimalShard::from_reader_async(&mut &bytes[..], true, true, limit).now_or_never()?.ok()
    })
}

fn meant_files(shard: &MDBMinimalShard) -> Vec<FileInfo> {
    let file = |i| {
        let file = MDBFileInfo::from(shard.file(i).unwrap());
        let segment = |entry: &xet_core_structures::metadata_shard::file_structs::FileDataSequenceEntry| Segment {
            xorb: ours(&entry.xorb_hash),
            raw_len: entry.unpacked_segment_bytes,
            start: entry.chunk_index_start,
            end: entry.chunk_index_end,
        };
        // The digest's hex, read as a hash.
        let sha256 = file.metadata_ext.map(|ext| {
            let hex = ext.sha256.hex();
            std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
        });
        FileInfo {
            hash: ours(&file.metadata.file_hash),
            segments: file.segments.iter().map(segment).collect(),
            verification: file.verification.iter().map(|entry| ours(&entry.range_hash)).collect(),
            sha256,
        }
    };
    (0..shard.num_files()).map(file).collect()
}

fn meant_xorbs(shard: &MDBMinimalShard) -> Vec<XorbInfo> {
    let xorb = |i| {
        let xorb = shard.xorb(i).unwrap();
        // Not by their conversion, which adds up offsets and overflows.
        let (metadata, chunks) = (xorb.header(), (0..xorb.num_entries()).map(|i| xorb.chunk(i)));
        let chunk = |chunk: &xet_core_structures::metadata_shard::xorb_structs::XorbChunkSequenceEntry| ShardChunk {
            hash: ours(&chunk.chunk_hash),
            raw_start: chunk.chunk_byte_range_start,
            raw_len: chunk.unpacked_segment_bytes,
            flags: chunk.flags,
        };
        XorbInfo {
            hash: ours(&metadata.xorb_hash),
            raw_len: metadata.num_bytes_in_xorb,
            stored_len: metadata.num_bytes_on_disk,
            chunks: chunks.map(|entry| chunk(&entry)).collect(),
        }
    };
    (0..shard.num_xorb()).map(xorb).collect()
}

fn their_footer(bytes: &[u8]) -> Option<MDBShardFileFooter> {
    let footer = &bytes[bytes.len().checked_sub(200)?..];
    MDBShardFileFooter::deserialize(&mut &footer[..]).ok()
}

/// Why a shard whose sections the official code reads is refused by ours.
fn refused_shard(bytes: &[u8]) -> Option<&'static str> {
    let word = |record: &[u8], i: usize| u32::from_le_bytes(*record[32 + 4 * i..].first_chunk().unwrap());
    let header = bytes.get(..48)?;
    if (word(header, 0), word(header, 1)) != (2, 0) {
        return Some("another header version: whatever it changed");
    }
    if word(header, 3) != 0 || ![0, 200].contains(&word(header, 2)) {
        return Some("a footer of another length than footers have");
    }
    let mut records = bytes[48..].chunks_exact(48);
    let bookend = |record: &[u8]| record[..32] == [0xff; 32];
    let clean = |record: &[u8]| record[32..] == [0; 16];
    const MARKED: &str =
        "a header with the hash of a bookend, and words that a bookend has not: it would be lost when written again";
    loop {
        let file = records.next()?;
        if bookend(file) {
            if !clean(file) {
                return Some(MARKED);
            }
            break;
        }
        let (flags, count) = (word(file, 0), word(file, 1) as usize);
        if flags & !0xc000_0000 != 0 {
            return Some("unknown file flags: what they add can't be skipped, nor written again");
        }
        for segment in records.by_ref().take(count) {
            if word(segment, 2) >= word(segment, 3) || word(segment, 1) == 0 {
                return Some("a term of no chunks, or of no bytes");
            }
        }
        let more = if flags >> 31 != 0 { count } else { 0 } + (flags >> 30 & 1) as usize;
        records.by_ref().take(more).for_each(drop);
    }
    loop {
        let xorb = records.next()?;
        if bookend(xorb) {
            if !clean(xorb) {
                return Some(MARKED);
            }
            break;
        }
        records.by_ref().take(word(xorb, 1) as usize).for_each(drop);
    }
    let left = records.count() * 48 + bytes[48..].len() % 48;
    match (left, word(header, 2)) {
        (0, 0) => None,
        (0, _) => Some("no footer, though the header announces one"),
        _ => refused_footer(bytes, left),
    }
}

/// Why what stands behind the sections, `left` bytes, is refused by ours. The official readers of
/// uploads don't look at it.
fn refused_footer(bytes: &[u8], left: usize) -> Option<&'static str> {
    let Some(footer) = their_footer(bytes).filter(|_| left >= 200) else {
        return Some("something behind the sections that is no footer");
    };
    let end = (bytes.len() - left) as u64;
    let tables = [
        (footer.file_lookup_offset, footer.file_lookup_num_entry, 12),
        (footer.xorb_lookup_offset, footer.xorb_lookup_num_entry, 12),
        (footer.chunk_lookup_offset, footer.chunk_lookup_num_entry, 16),
    ];
    let mut at = end;
    let mut placed = true;
    for (offset, count, len) in tables {
        placed &= offset == at || (offset, count) == (0, 0);
        at = at.saturating_add(count.saturating_mul(len));
    }
    let placed =
        placed && at == bytes.len() as u64 - 200 && footer.footer_offset == at && footer.file_info_offset == 48;
    let sections_meet = footer.xorb_info_offset <= end;
    (!placed || !sections_meet || footer.xorb_info_offset != xorbs_at(bytes))
        .then_some("a footer whose offsets lead elsewhere than to the sections")
}

/// Where the xorb section begins.
fn xorbs_at(bytes: &[u8]) -> u64 {
    let mut at = 48;
    while let Some(record) = bytes.get(at..at + 48).filter(|record| record[..32] != [0xff; 32]) {
        let (flags, count) = (
            u32::from_le_bytes(*record[32..].first_chunk().unwrap()),
            u32::from_le_bytes(*record[36..].first_chunk().unwrap()),
        );
        at += 48 * (1 + count as usize * if flags >> 31 != 0 { 2 } else { 1 } + (flags >> 30 & 1) as usize);
    }
    at as u64 + 48
}

/// Holds both readings of a shard of any form against each other.
fn compare_shards(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (read, official) = (Shard::parse(bytes), their_sections(bytes));
    match (&read, &official) {
        (Ok(shard), Some(official)) => {
            prop_assert_eq!(&shard.files, &meant_files(official));
            prop_assert_eq!(&shard.xorbs, &meant_xorbs(official));
            if let Some(Footer { hmac_key, created, expires }) = &shard.footer {
                let footer = their_footer(bytes).expect("ours found one");
                prop_assert_eq!(hmac_key, footer.chunk_hash_hmac_key.as_bytes());
                prop_assert_eq!((*created, *expires), (footer.shard_creation_timestamp, footer.shard_key_expiry));
            }
            // And what we write of it means the same to both, in ascending order.
            let again = shard.to_upload();
            let official_again = their_sections(&again).expect("our own shard");
            let (mut files, mut xorbs) = (meant_files(official), meant_xorbs(official));
            files.sort_by_key(|file| file.hash);
            xorbs.sort_by_key(|xorb| xorb.hash);
            prop_assert_eq!(meant_files(&official_again), files);
            prop_assert_eq!(meant_xorbs(&official_again), xorbs);
        }
        (Ok(shard), None) => {
            // The one case in which ours are the more lenient: a file of no terms whose flag differs from the others'.
            // It has nothing to verify, and we write it with their flag.
            prop_assert!(shard.files.iter().any(|file| file.segments.is_empty()), "only ours read it: {shard:?}");
            prop_assert!(their_sections(&shard.to_upload()).is_some());
        }
        (Err(error), Some(_)) => prop_assert!(refused_shard(bytes).is_some(), "only theirs read it: {error}"),
        (Err(_), None) => {}
    }
    Ok(())
}

fn footer() -> Footer {
    Footer { hmac_key: [7; 32], created: 5, expires: u64::MAX }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn damaged_uploads_of_xorbs_are_judged_alike((body, index) in any_xorb(), tail in 0..3u8, damage in any_damage()) {
        let tail = match tail {
            0 => Vec::new(),
            1 => xorb::write_footer(&index),
            _ => old_footer(&index),
        };
        let body = damaged([body, tail].concat(), &damage, 1);
        match their_upload(&body) {
            Some((hash, chunks)) => match xorb::verify_upload(&body, &hash, true) {
                Ok((index, _)) => prop_assert_eq!(meaning(&index), (hash, chunks)),
                Err(error) => {
                    prop_assert!(matches!(error, Error::Malformed { .. }), "read as another xorb");
                    prop_assert!(refused_area(&body).is_some(), "only theirs read it: {error}");
                }
            },
            // A footer cut behind its first word: all of a footer is ignored, but theirs wants a byte more to know one.
            None if body.ends_with(b"XETBLOB") => {}
            // Anything but malformed means that it was read.
            None => prop_assert!(is_malformed(&xorb::verify_upload(&body, &Hash::ZERO, true)), "only ours read it"),
        }
    }

    #[test]
    fn damaged_stored_xorbs_are_judged_alike((body, index) in any_xorb(), old in any::<bool>(), damage in any_damage()) {
        let footer = if old { old_footer(&index) } else { xorb::write_footer(&index) };
        let whole = damaged([body, footer].concat(), &damage, 1);
        let object = theirs_of(|| XorbObject::deserialize(&mut Cursor::new(&whole)).ok());
        let valid = object.as_ref().and_then(|object| theirs_of(|| their_stored(&whole, &object.info.xorb_hash)));
        let read = xorb::parse_footer(&whole);
        if let Some(valid) = valid {
            match &read {
                Ok(index) => prop_assert_eq!(meaning(index), valid),
                Err(error) => prop_assert!(refused_area(&whole).is_some(), "only theirs read it: {error}"),
            }
        } else if let Ok(index) = read {
            // Ours leaves the chunks themselves to whoever reads them; what the footer says must be the same.
            let info = object.expect("only ours read it").info;
            prop_assert_eq!(index.hash, ours(&info.xorb_hash));
            prop_assert!(index.chunks.iter().map(|chunk| chunk.hash).eq(info.chunk_hashes.iter().map(ours)));
            prop_assert!(index.chunks.iter().map(|chunk| chunk.stored_end).eq(info.chunk_boundary_offsets.iter().copied()));
        }
    }

    #[test]
    fn damaged_stretches_of_chunks_are_judged_alike((body, _) in any_xorb(), damage in any_damage()) {
        let body = damaged(body, &damage, 1);
        let mut decoded = Vec::new();
        let read = xorb::decode_chunks(&body, |chunk| {
            decoded.extend_from_slice(chunk);
            Ok(())
        });
        match (read, theirs_of(|| deserialize_chunks(&mut Cursor::new(&body)).ok())) {
            (Ok(()), Some((bytes, _))) => prop_assert!(decoded == bytes),
            (Ok(()), None) => prop_assert!(false, "only ours read it"),
            (Err(error), Some(_)) => prop_assert!(
                refused_area(&body).is_some() || refused_stream(&body),
                "only theirs read it: {error}"
            ),
            (Err(_), None) => {}
        }
    }

    #[test]
    fn damaged_uploads_of_shards_are_judged_alike(shard in any_shard(), damage in any_damage(), whole_records in any::<bool>()) {
        compare_shards(&damaged(shard.to_upload(), &damage, if whole_records { 48 } else { 1 }))?;
    }

    #[test]
    fn damaged_stored_shards_are_judged_alike(
        shard in any_shard(),
        lookups in any::<bool>(),
        damage in any_damage(),
        whole_records in any::<bool>(),
    ) {
        compare_shards(&damaged(shard.to_stored(&footer(), lookups), &damage, if whole_records { 48 } else { 1 }))?;
    }

    #[test]
    fn damaged_dedup_answers_are_judged_alike(
        shard in any_shard(),
        key in any::<[u64; 4]>(),
        damage in any_damage(),
        whole_records in any::<bool>(),
    ) {
        let plain = shard.to_stored(&Footer { hmac_key: [0; 32], ..footer() }, true);
        let mut keyed = Vec::new();
        let life = Duration::from_secs(3600);
        MDBShardInfo::export_as_keyed_shard_streaming(
            &mut Cursor::new(&plain), &mut keyed, MerkleHash::from(key), life, false, true, true,
        ).unwrap();
        compare_shards(&damaged(keyed, &damage, if whole_records { 48 } else { 1 }))?;
    }

    #[test]
    fn what_the_official_server_stores_we_write_byte_for_byte(shard in any_shard()) {
        let mut stored = Vec::new();
        let official = their_sections(&shard.to_upload()).unwrap();
        official.serialize(&mut stored, official.has_file_verification(), Some(77)).unwrap();
        let parsed = Shard::parse(&stored).unwrap();
        prop_assert_eq!(&parsed.files, &shard.files);
        let footer = parsed.footer.clone().expect("it has one");
        prop_assert!(parsed.to_stored(&footer, false) == stored);
    }

    #[test]
    fn roots_of_arbitrary_lists_are_the_same(words in vec((any::<[u64; 4]>(), any::<u32>()), 0..60)) {
        let chunks: Vec<_> = words.iter().map(|(words, len)| (ours(&MerkleHash::from(*words)), u64::from(*len))).collect();
        let official: Vec<_> = chunks.iter().map(|(hash, len)| (theirs(hash), *len)).collect();
        prop_assert_eq!(merkle::xorb_hash(&chunks), ours(&xet_core_structures::merklehash::xorb_hash(&official)));
        prop_assert_eq!(merkle::file_hash(&chunks), ours(&xet_core_structures::merklehash::file_hash(&official)));
    }
}

/// The official stream reader doesn't count what a compressed chunk takes from it: one whose frame
/// ends before its payload shifts all that follows, and the last one may be shorter than its header
/// says. Ours holds every chunk to the length in its header.
fn refused_stream(mut area: &[u8]) -> bool {
    while let Some((header, rest)) = area.split_first_chunk::<8>() {
        let stored_len = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
        let Some((stored, rest)) = rest.split_at_checked(stored_len) else { return true };
        if header[4] != 0 && refused_frame(stored).is_some() {
            return true;
        }
        area = rest;
    }
    false
}
