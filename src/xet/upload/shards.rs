//! What a session packed, as upload shards of bounded size (Xet spec, 7.6 and 8.6). Pure.

use super::pack::{File, Packed, Xorb};
use crate::xet::Error;
use crate::xet::shard::{FileInfo, Segment, Shard, ShardChunk, XorbInfo};

/// Bytes of a record: all that a shard consists of.
const RECORD: usize = 48;
/// Records of an empty shard: its header and a bookend behind each section.
const EMPTY: usize = 3;

/// Fills shards of at most `max` bytes. A file may lie in another shard than its xorbs: those are all stored by now.
pub(super) fn split(packed: Packed, max: usize) -> Result<Vec<Shard>, Error> {
    let mut shards = Filling { done: Vec::new(), current: Shard::default(), records: EMPTY, most: max / RECORD };
    for file in packed.files {
        // Its header, then a segment and a verification record per term.
        let file_records = 1 + 2 * file.terms.len();
        shards.make_room(file_records)?.files.push(describe_file(file, &packed.xorbs));
    }
    for xorb in packed.xorbs {
        shards.make_room(1 + xorb.chunks.len())?.xorbs.push(describe_xorb(xorb));
    }
    Ok(shards.finish())
}

struct Filling {
    done: Vec<Shard>,
    current: Shard,
    records: usize,
    most: usize,
}

impl Filling {
    fn make_room(&mut self, records: usize) -> Result<&mut Shard, Error> {
        if EMPTY + records > self.most {
            let why = "its terms don't fit into one shard".to_owned();
            return Err(Error::Malformed { what: "file", why });
        }
        if self.records + records > self.most {
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

fn describe_file(file: File, xorbs: &[Xorb]) -> FileInfo {
    let verification = file.terms.iter().map(|term| term.verification).collect();
    let segment = |term: super::pack::Term| Segment {
        xorb: xorbs[term.slot].hash,
        raw_len: term.raw_len,
        start: term.chunks.start,
        end: term.chunks.end,
    };
    let segments = file.terms.into_iter().map(segment).collect();
    FileInfo { hash: file.hash, segments, verification, sha256: None }
}

fn describe_xorb(xorb: Xorb) -> XorbInfo {
    let mut raw_len = 0;
    let mut describe = |(hash, len)| {
        let chunk = ShardChunk { hash, raw_start: raw_len, raw_len: len, flags: 0 };
        raw_len += len;
        chunk
    };
    let chunks = xorb.chunks.into_iter().map(&mut describe).collect();
    XorbInfo { hash: xorb.hash, raw_len, stored_len: xorb.stored_len, chunks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xet::Hash;
    use crate::xet::upload::pack::Term;

    fn packed() -> Packed {
        let hash = |kind: u8, n: usize| Hash([kind, n as u8, 3, 4, 5, 6, 7, 8].repeat(4).try_into().unwrap());
        let xorbs = (0..10).map(|n| {
            let chunks = (0..=n).map(|i| (hash(1, 10 * n + i), 100 + i as u32)).collect();
            Xorb { hash: hash(2, n), stored_len: 7, chunks }
        });
        let files = (0..10).map(|n| {
            let term = |slot| Term { slot, chunks: 0..1, raw_len: 100, verification: hash(3, slot) };
            File { hash: hash(4, n), terms: (0..n).map(term).collect() }
        });
        Packed { xorbs: xorbs.collect(), files: files.collect() }
    }

    #[test]
    fn shards_hold_everything_once_and_stay_below_the_limit() {
        let whole = split(packed(), usize::MAX).unwrap();
        assert_eq!(whole.len(), 1);
        for max in [22 * RECORD, 23 * RECORD, 30 * RECORD, 1500, whole[0].upload_len() - 1, whole[0].upload_len()] {
            let shards = split(packed(), max).unwrap();
            assert!(shards.iter().all(|shard| shard.to_upload().len() <= max));
            assert_eq!(shards.len() == 1, max >= whole[0].upload_len());
            let files: Vec<_> = shards.iter().flat_map(|shard| shard.files.clone()).collect();
            let xorbs: Vec<_> = shards.iter().flat_map(|shard| shard.xorbs.clone()).collect();
            assert_eq!((files, xorbs), (whole[0].files.clone(), whole[0].xorbs.clone()));
        }
    }

    #[test]
    fn file_too_fragmented_for_a_shard_is_an_error() {
        // Nine terms: a header and 18 records, and the three of the shard.
        assert!(matches!(split(packed(), 22 * RECORD - 1), Err(Error::Malformed { what: "file", .. })));
    }

    #[test]
    fn chunks_are_laid_end_to_end() {
        let xorb = &split(packed(), usize::MAX).unwrap()[0].xorbs[2];
        let starts: Vec<_> = xorb.chunks.iter().map(|chunk| chunk.raw_start).collect();
        assert_eq!((starts, xorb.raw_len), (vec![0, 100, 201], 303));
    }
}
