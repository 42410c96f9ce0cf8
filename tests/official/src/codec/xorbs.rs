//! Whole xorbs, chunk area and footer.

use super::*;
use crate::content::chunks;
use hfcrypt::xet::Scheme;
use hfcrypt::xet::xorb::{self, Builder, XorbIndex};
use hfcrypt::xet::{compression, hash};
use std::io::Cursor;
use xet_core_structures::xorb_object::{
    Chunk, CompressionScheme, RawXorbData, SerializedXorbObject, XorbObject, XorbObjectInfoV0,
    reconstruct_xorb_with_footer,
};

/// What a scheme is called on either side; `None` chooses per chunk.
const SCHEMES: [(Option<Scheme>, CompressionScheme); 4] = [
    (Some(Scheme::None), CompressionScheme::None),
    (Some(Scheme::Lz4), CompressionScheme::LZ4),
    (Some(Scheme::Bg4Lz4), CompressionScheme::ByteGrouping4LZ4),
    (None, CompressionScheme::Auto),
];

fn our_xorb(content: &[u8], scheme: Option<Scheme>) -> (bytes::Bytes, XorbIndex) {
    let mut builder = Builder::default();
    for chunk in chunks(content) {
        let scheme = scheme.unwrap_or_else(|| compression::choose(&chunk));
        builder.push(hash::chunk_hash(&chunk), &chunk, scheme);
    }
    builder.finish()
}

fn their_xorb(content: &[u8], scheme: CompressionScheme, footer: bool) -> SerializedXorbObject {
    let chunks: Vec<_> = chunks(content).map(Chunk::new).collect();
    SerializedXorbObject::from_xorb_with_compression(RawXorbData::from_chunks(&chunks, vec![0]), scheme, footer, 32)
        .unwrap()
}

/// The footer that readers must still know, over the chunks of `index`.
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

/// A xorb has a chunk.
fn xorb_content(recipe: &[Piece]) -> Vec<u8> {
    [&b"x"[..], &content(recipe)].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn our_xorbs_are_sound_to_the_official_reader(recipe in any_recipe(), (scheme, _) in select(&SCHEMES[..])) {
        let content = xorb_content(&recipe);
        let (body, index) = our_xorb(&content, scheme);
        let whole = [&body[..], &xorb::write_footer(&index)].concat();

        // A server gets the body and makes the footer: the same one.
        let mut rebuilt = Vec::new();
        let (_, hash) = reconstruct_xorb_with_footer(&mut rebuilt, &body).unwrap();
        prop_assert_eq!(ours(&hash), index.hash);
        prop_assert!(rebuilt == whole);

        let object = XorbObject::validate_xorb_object(&mut Cursor::new(&whole), &hash).unwrap().expect("valid");
        prop_assert!(object.get_all_bytes(&mut Cursor::new(&whole)).unwrap() == content);
    }

    #[test]
    fn official_xorbs_are_sound_to_our_reader(recipe in any_recipe(), (_, scheme) in select(&SCHEMES[..])) {
        let content = xorb_content(&recipe);
        let bare = their_xorb(&content, scheme, false).serialized_data;
        let whole = their_xorb(&content, scheme, true);
        let expected = ours(&whole.hash);
        let whole = whole.serialized_data;

        let (index, area) = xorb::verify_upload(&bare, &expected, false).unwrap();
        prop_assert_eq!(area, bare.len());
        prop_assert!(xorb::verify_upload(&whole, &expected, false).is_err());
        prop_assert_eq!(xorb::verify_upload(&whole, &expected, true).unwrap(), (index.clone(), area));
        prop_assert_eq!(&xorb::parse_footer(&whole).unwrap(), &index);
        prop_assert_eq!(&xorb::parse_info(&whole[area..whole.len() - 4], area).unwrap(), &index);
        prop_assert_eq!(&xorb::parse_footer(&[&bare[..], &old_footer(&index)].concat()).unwrap(), &index);

        let mut decoded = Vec::new();
        xorb::decode_chunks(&bare, |chunk| {
            decoded.extend_from_slice(chunk);
            Ok(())
        }).unwrap();
        prop_assert!(decoded == content);
    }
}
