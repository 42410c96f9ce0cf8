//! What a session packed, as upload shards of bounded size (Xet spec, 7.6 and 8.6). Pure.

use super::records::{Packed, Xorb};
use crate::Error;
use crate::shard::{MAX_SHARD, Shard, ShardChunk, XorbInfo};

/// Bytes of a record: all that a shard consists of.
const RECORD: usize = 48;
/// Records of an empty shard: its header and a bookend behind each section.
const EMPTY: usize = 3;
/// Bytes that a shard grows to; only a file of very many terms needs a longer one.
pub(super) const GOOD_SHARD: usize = 8 * 1024 * 1024;
/// Most terms of a file: they must fit into one shard, and one more of a first chunk that comes last.
pub(super) const FILE_MAX_TERMS: usize = (MAX_SHARD / RECORD - EMPTY - 1) / 2 - 1;

/// Records of a file: its header, then a segment and a verification record per term.
pub(super) fn file_records(terms: usize) -> usize {
    1 + 2 * terms
}

/// Records of a xorb.
pub(super) fn xorb_records(chunks: usize) -> usize {
    1 + chunks
}

/// Fills shards of about `good` bytes, and `max` at most. A file may lie in another shard than its
/// xorbs: those are all stored by now.
pub(super) fn split(packed: Packed, good: usize, max: usize) -> Result<Vec<Shard>, Error> {
    let (good, most) = (good / RECORD, max / RECORD);
    let mut shards = Filling { done: Vec::new(), current: Shard::default(), records: EMPTY, good, most };
    for file in packed.files {
        shards.make_room(file_records(file.segments.len()))?.files.push(file);
    }
    for xorb in packed.xorbs {
        shards.make_room(xorb_records(xorb.chunks.len()))?.xorbs.push(describe_xorb(&xorb));
    }
    Ok(shards.finish())
}

struct Filling {
    done: Vec<Shard>,
    current: Shard,
    records: usize,
    /// Records to stop at, and never to exceed.
    good: usize,
    most: usize,
}

impl Filling {
    fn make_room(&mut self, records: usize) -> Result<&mut Shard, Error> {
        if EMPTY + records > self.most {
            let why = "its terms don't fit into one shard".to_owned();
            return Err(Error::Malformed { what: "file", why });
        }
        if self.records > EMPTY && self.records + records > self.good {
            self.done.push(std::mem::take(&mut self.current));
            self.records = EMPTY;
        }
        self.records += records;
        Ok(&mut self.current)
    }

    fn finish(mut self) -> Vec<Shard> {
        if self.records > EMPTY {
            self.done.push(self.current);
        }
        self.done
    }
}

fn describe_xorb(xorb: &Xorb) -> XorbInfo {
    let mut raw_len = 0;
    let mut describe = |&(hash, len): &(crate::Hash, u32)| {
        let chunk = ShardChunk { hash, raw_start: raw_len, raw_len: len, flags: 0 };
        raw_len += len;
        chunk
    };
    let chunks = xorb.chunks.iter().map(&mut describe).collect();
    XorbInfo { hash: xorb.hash, raw_len, stored_len: xorb.stored_len, chunks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;
    use crate::shard::{FileInfo, Segment};

    fn packed() -> Packed {
        let hash = |kind: u8, n: usize| Hash([kind, n as u8, 3, 4, 5, 6, 7, 8].repeat(4).try_into().unwrap());
        let xorbs = (0..10).map(|n| {
            let chunks = (0..=n).map(|i| (hash(1, 10 * n + i), 100 + i as u32)).collect();
            Xorb { hash: hash(2, n), stored_len: 7, chunks }
        });
        let files = (0..10).map(|n| FileInfo {
            hash: hash(4, n),
            segments: (0..n).map(|slot| Segment { xorb: hash(2, slot), raw_len: 100, start: 0, end: 1 }).collect(),
            verification: (0..n).map(|slot| hash(3, slot)).collect(),
            sha256: None,
        });
        Packed { xorbs: xorbs.collect(), files: files.collect() }
    }

    #[test]
    fn shards_hold_everything_once_and_stay_below_the_limit() {
        let whole = split(packed(), usize::MAX, usize::MAX).unwrap();
        assert_eq!(whole.len(), 1);
        for max in [22 * RECORD, 23 * RECORD, 30 * RECORD, 1500, whole[0].upload_len() - 1, whole[0].upload_len()] {
            let shards = split(packed(), max, max).unwrap();
            assert!(shards.iter().all(|shard| shard.to_upload().len() <= max));
            assert_eq!(shards.len() == 1, max >= whole[0].upload_len());
            let files: Vec<_> = shards.iter().flat_map(|shard| shard.files.clone()).collect();
            let xorbs: Vec<_> = shards.iter().flat_map(|shard| shard.xorbs.clone()).collect();
            assert_eq!((files, xorbs), (whole[0].files.clone(), whole[0].xorbs.clone()));
        }
    }

    #[test]
    fn only_what_needs_a_longer_shard_gets_one() {
        let shards = split(packed(), 8 * RECORD, usize::MAX).unwrap();
        // Only the two smallest files share one, and the two smallest xorbs.
        assert_eq!(shards.len(), 18);
        assert!(shards.iter().all(|shard| shard.files.len() + shard.xorbs.len() <= 2));
    }

    #[test]
    fn file_too_fragmented_for_a_shard_is_an_error() {
        // Nine terms: a header and 18 records, and the three of the shard.
        let max = 22 * RECORD - 1;
        assert!(matches!(split(packed(), max, max), Err(Error::Malformed { what: "file", .. })));
    }

    #[test]
    fn chunks_are_laid_end_to_end() {
        let xorb = &split(packed(), usize::MAX, usize::MAX).unwrap()[0].xorbs[2];
        let starts: Vec<_> = xorb.chunks.iter().map(|chunk| chunk.raw_start).collect();
        assert_eq!((starts, xorb.raw_len), (vec![0, 100, 201], 303));
    }
}
