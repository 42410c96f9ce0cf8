//! Bodies of the fuzz targets of what a session believes and what it sends.

pub use super::dedup::fuzz::dedup;
use super::records::{Packed, Xorb};
use super::shards::split;
use crate::Hash;
use crate::shard::{FileInfo, Segment, Shard};

/// Two bytes for the lengths that shards may have, then one per file (of so many terms) or xorb (of so many chunks):
/// what is split, written and parsed again is all there, once and in order, in shards of bounded length.
pub fn upload_shards(data: &[u8]) {
    const RECORD: usize = 48;
    let Some((&[good, most], items)) = data.split_first_chunk() else { return };
    let (good, most) = (RECORD * usize::from(good), RECORD * (usize::from(good) + usize::from(most)));
    let mut packed = Packed::default();
    for (i, &item) in items.iter().enumerate() {
        let (hash, count) = (hash(i as u64), u32::from(item >> 1));
        if item & 1 == 0 {
            let segments = (0..count).map(|start| Segment { xorb: hash, raw_len: 7, start, end: start + 1 }).collect();
            packed.files.push(FileInfo { hash, segments, verification: vec![hash; count as usize], sha256: None });
        } else {
            packed.xorbs.push(Xorb { hash, stored_len: 1, chunks: (0..count).map(|len| (hash, len)).collect() });
        }
    }
    let mut wanted: (Vec<Hash>, Vec<Hash>) =
        (packed.files.iter().map(|file| file.hash).collect(), packed.xorbs.iter().map(|xorb| xorb.hash).collect());
    let longest = items.iter().map(|item| usize::from(item >> 1) * if item & 1 == 0 { 2 } else { 1 }).max();
    let Ok(shards) = split(packed, good, most) else {
        assert!(RECORD * (4 + longest.unwrap_or(0)) > most, "everything fits");
        return;
    };
    let mut found = (Vec::new(), Vec::new());
    for shard in &shards {
        let body = shard.to_upload();
        assert!(body.len() <= most && body.len() == shard.upload_len());
        let parsed = Shard::parse(&body).expect("our own shard");
        found.0.extend(parsed.files.iter().map(|file| file.hash));
        found.1.extend(parsed.xorbs.iter().map(|xorb| xorb.hash));
        assert!(!parsed.files.is_empty() || !parsed.xorbs.is_empty(), "a shard of nothing");
    }
    [&mut wanted.0, &mut wanted.1, &mut found.0, &mut found.1].into_iter().for_each(|hashes| hashes.sort());
    assert_eq!(found, wanted);
}

/// Different for every item.
fn hash(nth: u64) -> Hash {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&nth.to_le_bytes());
    Hash(bytes)
}
