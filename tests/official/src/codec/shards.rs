//! Shards: upload form, stored form with its lookups, keyed dedup answers.

use super::*;
use hfcrypt::xet::hash::{keyed_chunk_hash, term_hash};
use hfcrypt::xet::shard::{FileInfo, Footer, Segment, Shard, ShardChunk, XorbInfo};
use proptest::collection::vec;
use std::io::Cursor;
use std::time::Duration;
use xet_core_structures::metadata_shard::MDBShardInfo;
use xet_core_structures::metadata_shard::file_structs::{
    FileDataSequenceEntry, FileDataSequenceHeader, FileMetadataExt, FileVerificationEntry, MDBFileInfo, Sha256,
};
use xet_core_structures::metadata_shard::shard_in_memory::MDBInMemoryShard;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::metadata_shard::xorb_structs::{MDBXorbInfo, XorbChunkSequenceEntry, XorbChunkSequenceHeader};

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

/// A xorb section whose offsets and sums hold; hashes are any.
fn any_xorb() -> impl Strategy<Value = XorbInfo> {
    let chunk = (any_hash(), 1..=MAX_CHUNK as u32, select(&[0, 0x8000_0000u32][..]));
    (any_hash(), vec(chunk, 1..40)).prop_map(|(hash, parts)| {
        let mut raw_len = 0;
        let chunk = |(hash, len, flags)| {
            let chunk = ShardChunk { hash, raw_start: raw_len, raw_len: len, flags };
            raw_len += len;
            chunk
        };
        let chunks = parts.into_iter().map(chunk).collect();
        XorbInfo { hash, raw_len, stored_len: 0, chunks }
    })
}

/// Where a term is: xorb and chunks, as far as there are that many.
type Place = (usize, u32, u32);

/// A file over `xorbs` with verification, as both clients upload it.
fn file(hash: Hash, places: &[Place], sha256: Option<[u8; 32]>, xorbs: &[XorbInfo]) -> FileInfo {
    let segment = |&(xorb, start, len): &Place| {
        let xorb = &xorbs[xorb % xorbs.len()];
        let count = xorb.chunks.len() as u32;
        let start = start % count;
        let end = (start + len).min(count);
        let chunks = &xorb.chunks[start as usize..end as usize];
        let raw_len = chunks.iter().map(|chunk| chunk.raw_len).sum();
        (Segment { xorb: xorb.hash, raw_len, start, end }, term_hash(chunks.iter().map(|chunk| chunk.hash)))
    };
    let (segments, verification) = places.iter().map(segment).unzip();
    FileInfo { hash, segments, verification, sha256 }
}

/// Sections in ascending order, as they are written.
fn any_shard() -> impl Strategy<Value = Shard> {
    let places = vec((any::<usize>(), any::<u32>(), 1..20u32), 0..10);
    let files = vec((any_hash(), places, any::<Option<[u8; 32]>>()), 0..8);
    (vec(any_xorb(), 1..5), files).prop_map(|(mut xorbs, files)| {
        xorbs.sort_by_key(|xorb| xorb.hash);
        let mut files: Vec<_> =
            files.iter().map(|(hash, places, sha256)| file(*hash, places, *sha256, &xorbs)).collect();
        files.sort_by_key(|file| file.hash);
        Shard { files, xorbs, footer: None }
    })
}

// The same in the official structures, field by field.

fn official_file(file: &FileInfo) -> MDBFileInfo {
    let segment = |segment: &Segment| {
        FileDataSequenceEntry::new(theirs(&segment.xorb), segment.raw_len, segment.start, segment.end)
    };
    // The digest's hex, read as a hash.
    let sha256 = |digest: &[u8; 32]| {
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        FileMetadataExt::new(Sha256::from_hex(&hex).unwrap())
    };
    MDBFileInfo {
        metadata: FileDataSequenceHeader::new(theirs(&file.hash), file.segments.len(), true, file.sha256.is_some()),
        segments: file.segments.iter().map(segment).collect(),
        verification: file.verification.iter().map(|hash| FileVerificationEntry::new(theirs(hash))).collect(),
        metadata_ext: file.sha256.as_ref().map(sha256),
    }
}

fn official_xorb(xorb: &XorbInfo) -> MDBXorbInfo {
    let chunk = |chunk: &ShardChunk| {
        XorbChunkSequenceEntry::new(theirs(&chunk.hash), chunk.raw_len, chunk.raw_start)
            .with_global_dedup_flag(chunk.flags != 0)
    };
    MDBXorbInfo {
        metadata: XorbChunkSequenceHeader::new(theirs(&xorb.hash), xorb.chunks.len(), xorb.raw_len),
        chunks: xorb.chunks.iter().map(chunk).collect(),
    }
}

/// The official stored form: footer, all lookups.
fn official_stored(shard: &Shard) -> Vec<u8> {
    let mut official = MDBInMemoryShard::default();
    shard.files.iter().for_each(|file| official.add_file_reconstruction_info(official_file(file)).unwrap());
    shard.xorbs.iter().for_each(|xorb| official.add_xorb_block(official_xorb(xorb)).unwrap());
    official.to_bytes().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn our_uploads_say_to_the_official_parser_what_we_meant(shard in any_shard()) {
        let parsed = MDBMinimalShard::from_reader(&mut Cursor::new(shard.to_upload()), true, true).unwrap();
        let files = (0..parsed.num_files()).map(|i| MDBFileInfo::from(parsed.file(i).unwrap()));
        prop_assert!(files.eq(shard.files.iter().map(official_file)));
        let xorbs = (0..parsed.num_xorb()).map(|i| MDBXorbInfo::from(parsed.xorb(i).unwrap()));
        prop_assert!(xorbs.eq(shard.xorbs.iter().map(official_xorb)));
    }

    #[test]
    fn our_stored_shards_are_the_official_ones_byte_for_byte(shard in any_shard()) {
        let official = official_stored(&shard);
        let parsed = Shard::parse(&official).unwrap();
        prop_assert_eq!(&parsed.files, &shard.files);
        prop_assert_eq!(&parsed.xorbs, &shard.xorbs);
        let footer = parsed.footer.expect("it has one");
        prop_assert!(shard.to_stored(&footer, true) == official);
    }

    #[test]
    fn our_lookups_answer_official_queries(shard in any_shard()) {
        let footer = Footer { hmac_key: [0; 32], created: 1, expires: u64::MAX };
        let mut stored = Cursor::new(shard.to_stored(&footer, true));
        let info = MDBShardInfo::load_from_reader(&mut stored).unwrap();
        for file in &shard.files {
            let found = info.get_file_reconstruction_info(&mut stored, &theirs(&file.hash)).unwrap();
            prop_assert_eq!(found, Some(official_file(file)));
        }
        for xorb in &shard.xorbs {
            let start = xorb.chunks.len() / 2;
            let query: Vec<_> = xorb.chunks[start..].iter().map(|chunk| theirs(&chunk.hash)).collect();
            let (count, entry) = info.chunk_hash_dedup_query(&mut stored, &query).unwrap().expect("it is there");
            prop_assert_eq!((count, entry.chunk_index_start as usize), (query.len(), start));
            prop_assert_eq!(ours(&entry.xorb_hash), xorb.hash);
        }
    }

    #[test]
    fn keyed_dedup_answers_of_the_official_server_are_read(shard in any_shard(), key in any::<[u64; 4]>()) {
        let (stored, key) = (official_stored(&shard), MerkleHash::from(key));
        let mut keyed = Vec::new();
        MDBShardInfo::export_as_keyed_shard_streaming(
            &mut Cursor::new(&stored), &mut keyed, key, Duration::from_secs(3600), false, true, true,
        ).unwrap();
        let parsed = Shard::parse(&keyed).unwrap();
        let footer = parsed.footer.expect("it has one");
        prop_assert_eq!(&footer.hmac_key, key.as_bytes());
        prop_assert!(parsed.files.is_empty());
        prop_assert_eq!(parsed.xorbs.len(), shard.xorbs.len());
        for (parsed, xorb) in parsed.xorbs.iter().zip(&shard.xorbs) {
            prop_assert_eq!(parsed.hash, xorb.hash);
            let keyed = xorb.chunks.iter().map(|chunk| keyed_chunk_hash(&footer.hmac_key, &chunk.hash));
            prop_assert!(parsed.chunks.iter().map(|chunk| chunk.hash).eq(keyed));
        }
    }
}
