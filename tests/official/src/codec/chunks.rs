//! Boundaries, hashes and their text, compression of single chunks.

use super::*;
use crate::content::chunks;
use hfcrypt::xet::{Scheme, compression, hash, merkle};
use proptest::collection::vec;
use xet_core_structures::merklehash::{compute_data_hash, file_hash, xorb_hash};
use xet_core_structures::metadata_shard::chunk_verification::range_hash_from_chunks;
use xet_core_structures::xorb_object::CompressionScheme;

/// Our chunk lengths when `content` arrives in buffers of the given lengths, and then all at once.
fn our_lengths(content: &[u8], buffers: &[usize]) -> Vec<usize> {
    let (mut lengths, mut chunker, mut pending) = (Vec::new(), Chunker::new(), 0);
    let mut rest = content;
    for &len in buffers.iter().chain([&usize::MAX]) {
        let (mut buffer, behind) = rest.split_at(len.min(rest.len()));
        rest = behind;
        while let Some(end) = chunker.next_boundary(buffer) {
            lengths.push(pending + end);
            (pending, buffer) = (0, &buffer[end..]);
        }
        pending += buffer.len();
    }
    lengths.extend((pending > 0).then_some(pending));
    lengths
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn content_is_cut_and_named_alike(recipe in any_recipe(), buffers in vec(0..20_000usize, 0..20)) {
        let content = content(&recipe);
        let lengths: Vec<_> = chunks(&content).map(|chunk| chunk.len()).collect();
        prop_assert_eq!(our_lengths(&content, &buffers), lengths);

        let hashes: Vec<_> = chunks(&content).map(|chunk| (compute_data_hash(&chunk), chunk.len() as u64)).collect();
        let of_ours: Vec<_> = chunks(&content).map(|chunk| (hash::chunk_hash(&chunk), chunk.len() as u64)).collect();
        prop_assert!(of_ours.iter().map(|(hash, len)| (theirs(hash), *len)).eq(hashes.iter().copied()));
        prop_assert_eq!(merkle::file_hash(&of_ours), ours(&file_hash(&hashes)));
        prop_assert_eq!(merkle::xorb_hash(&of_ours), ours(&xorb_hash(&hashes)));
    }

    #[test]
    fn chunks_compressed_by_either_open_with_the_other(recipe in any_recipe()) {
        for chunk in chunks(&content(&recipe)) {
            for (scheme, official) in
                [(Scheme::Lz4, CompressionScheme::LZ4), (Scheme::Bg4Lz4, CompressionScheme::ByteGrouping4LZ4)]
            {
                let mut stored = Vec::new();
                if compression::compress(scheme, &chunk, &mut stored) == scheme {
                    prop_assert!(*official.decompress_from_slice(&stored).unwrap() == *chunk);
                }
                let stored = official.compress_from_slice(&chunk).unwrap();
                let mut opened = Vec::new();
                compression::decompress(scheme, &stored, chunk.len(), &mut opened).unwrap();
                prop_assert!(opened == chunk);
            }
        }
    }

    #[test]
    fn runs_are_regrouped_where_the_official_client_does(seed in any::<u8>(), groups in 50..2_000usize, lean in 0..100u8) {
        // Bytes of all bit counts alike, but that every fourth is zero more often: by little, near the limit of either.
        let noise = random(seed.into(), 4 * groups);
        let chance = random(u64::from(seed) + 1_000, groups);
        let leaning = |i: usize| i.is_multiple_of(4) && chance[i / 4] < lean;
        let byte = |(i, byte): (usize, &u8)| if leaning(i) { 0 } else { (0xff_u16 >> (byte % 9)) as u8 };
        let chunk: Vec<u8> = noise.iter().enumerate().map(byte).collect();
        prop_assert_eq!(compression::choose(&chunk) as u8, CompressionScheme::choose_from_data(&chunk) as u8);
    }

    #[test]
    fn long_lists_of_chunks_have_one_root(
        words in vec(any::<[u64; 4]>(), 0..3_000),
        lengths in vec(1..=MAX_CHUNK as u64, 3_000),
        // Entries that end a group: none, some as they fall, or all.
        ending in 0..3u8,
    ) {
        let chunks: Vec<(Hash, u64)> = words.iter().zip(lengths).map(|(words, len)| {
            let mut words = *words;
            match ending {
                0 => words[3] |= 1,
                1 => {}
                _ => words[3] &= !3,
            }
            (ours(&MerkleHash::from(words)), len)
        }).collect();
        let official: Vec<_> = chunks.iter().map(|(hash, len)| (theirs(hash), *len)).collect();
        prop_assert_eq!(merkle::file_hash(&chunks), ours(&file_hash(&official)));
        prop_assert_eq!(merkle::xorb_hash(&chunks), ours(&xorb_hash(&official)));
    }

    #[test]
    fn hashes_have_one_text_one_order_and_one_keyed_form(pair in any::<[[u64; 4]; 2]>(), key in any::<[u64; 4]>()) {
        let official = pair.map(MerkleHash::from);
        let [a, b] = [ours(&official[0]), ours(&official[1])];
        prop_assert_eq!(a.to_string(), official[0].hex());
        prop_assert_eq!(official[0].hex().parse::<Hash>().unwrap(), a);
        prop_assert_eq!(a.cmp(&b), official[0].cmp(&official[1]));
        prop_assert_eq!(a.modulo(1024), official[0] % 1024);
        let key = MerkleHash::from(key);
        let keyed = hash::keyed_chunk_hash(key.as_bytes().try_into().unwrap(), &a);
        prop_assert_eq!(keyed, ours(&official[0].hmac(key)));
        prop_assert_eq!(hash::term_hash([a, b]), ours(&range_hash_from_chunks(&official)));
    }
}
