//! The codec of entry files (byte tables in [`super`]): bytes in, bytes out.
//!
//! Every number read is hostile until a checksum has vouched for it, and bounded before anything is
//! allocated for it even then: the checksums are not keyed. Lengths and offsets are bytes; chunks
//! and rows count from the first of the entry. Failure: [`Damaged`].

use crate::Hash;
use crate::chunker::MAX_CHUNK;
use std::ops::Range;

/// Bytes of the head.
pub(super) const HEAD_LEN: usize = 96;
/// Bytes of a row of the table: chunk hash, length.
const ROW_LEN: usize = 36;
/// Rows that one checksum covers: a read of one chunk verifies at most 9 KiB of table.
pub(super) const PAGE_ROWS: usize = 256;
/// Bytes of a directory entry: where the page's chunks begin, checksum of the page.
const PAGE_REF_LEN: usize = 40;
/// Most chunks of an entry: 1 TiB in chunks of 64 KiB. Its directory is the most that is allocated
/// on a head's word: 2.6 MB.
pub(super) const MAX_COUNT: u32 = 1 << 24;
/// Starts every entry.
const MAGIC: [u8; 8] = *b"xetcache";
/// Layout of the file.
const VERSION: u16 = 1;
/// Bytes of the head that its checksum covers, with the directory.
const HEAD_CHECKED: usize = 64;
/// BLAKE3 contexts: what one checksum covers never passes for what another does.
const HEAD_CONTEXT: &str = "hfcrypt xet cache 1: head and directory";
const PAGE_CONTEXT: &str = "hfcrypt xet cache 1: page of the table";

/// Bytes that are not the entry they should be: which rule they break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged(pub(super) &'static str);

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Consecutive chunks of a xorb.
    Xorb = 1,
    /// All chunks of a file.
    File = 2,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 2] = [Kind::Xorb, Kind::File];

    fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// The fixed start of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// Of the xorb or the file.
    pub(super) hash: Hash,
    /// Index in the xorb of the first chunk; 0 in a file.
    pub(super) first: u32,
    /// Chunks, at least one.
    pub(super) count: u32,
    /// Bytes of all chunks together.
    pub(super) data_len: u64,
}

impl Head {
    /// Parses the head of a file of `file_len` bytes. Nothing has vouched for it before [`Directory::open`].
    pub(super) fn parse(bytes: &[u8; HEAD_LEN], file_len: u64) -> Result<Self, Damaged> {
        if bytes[..8] != MAGIC {
            return Err(Damaged("no entry"));
        }
        if u16::from_le_bytes(array(&bytes[8..])) != VERSION {
            return Err(Damaged("a layout of another version"));
        }
        let kind = Kind::of(u16::from_le_bytes(array(&bytes[10..]))).ok_or(Damaged("unknown kind"))?;
        if bytes[52..56] != [0; 4] {
            return Err(Damaged("reserved bytes in use"));
        }
        let head = Self {
            kind,
            first: u32::from_le_bytes(array(&bytes[12..])),
            hash: Hash(array(&bytes[16..])),
            count: u32::from_le_bytes(array(&bytes[48..])),
            data_len: u64::from_le_bytes(array(&bytes[56..])),
        };
        if head.count == 0 || head.count > MAX_COUNT || head.first.checked_add(head.count).is_none() {
            return Err(Damaged("chunks out of bounds"));
        }
        let most = u64::from(head.count) * MAX_CHUNK as u64;
        if head.data_len < u64::from(head.count) || head.data_len > most {
            return Err(Damaged("no such chunks have that length"));
        }
        if head.file_len() != file_len {
            return Err(Damaged("not the length its head gives"));
        }
        Ok(head)
    }

    fn to_bytes(self, directory: &[u8]) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.hash.0);
        bytes[48..52].copy_from_slice(&self.count.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.data_len.to_le_bytes());
        let check = head_check(&bytes[..HEAD_CHECKED], directory);
        bytes[HEAD_CHECKED..].copy_from_slice(&check);
        bytes
    }

    fn pages(&self) -> usize {
        (self.count as usize).div_ceil(PAGE_ROWS)
    }

    fn table_start(&self) -> u64 {
        HEAD_LEN as u64 + self.data_len
    }

    /// Where the directory lies in the file.
    pub(super) fn directory(&self) -> Range<u64> {
        let start = self.table_start() + ROW_LEN as u64 * u64::from(self.count);
        start..start + (PAGE_REF_LEN * self.pages()) as u64
    }

    /// Bytes of the whole file.
    pub(super) fn file_len(&self) -> u64 {
        self.directory().end
    }
}

/// A row of the table, found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) hash: Hash,
    /// Offset of the chunk in the data.
    pub(super) offset: u64,
    /// Bytes, at most [`MAX_CHUNK`].
    pub(super) len: u32,
}

impl Row {
    /// Where the chunk ends in the data.
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// Head and directory, vouched for by their checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directory {
    head: Head,
    /// Where the chunks of each page begin in the data; strictly rising.
    offsets: Vec<u64>,
    checks: Vec<[u8; 32]>,
}

impl Directory {
    /// Checks the bytes at [`Head::directory`] and the head that named them.
    pub(super) fn open(head: Head, head_bytes: &[u8; HEAD_LEN], bytes: &[u8]) -> Result<Self, Damaged> {
        let (checked, check) = head_bytes.split_at(HEAD_CHECKED);
        if head_check(checked, bytes) != check {
            return Err(Damaged("head or directory do not match their checksum"));
        }
        let (refs, rest) = bytes.as_chunks::<PAGE_REF_LEN>();
        if refs.len() != head.pages() || !rest.is_empty() {
            return Err(Damaged("a directory of another length"));
        }
        let offsets: Vec<u64> = refs.iter().map(|bytes| u64::from_le_bytes(array(bytes))).collect();
        let rising = offsets.first() == Some(&0) && offsets.is_sorted_by(|a, b| a < b);
        if !rising || offsets.last() >= Some(&head.data_len) {
            return Err(Damaged("pages out of order"));
        }
        Ok(Self { head, offsets, checks: refs.iter().map(|bytes| array(&bytes[8..])).collect() })
    }

    /// The head.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// The page that has row `index`.
    pub(super) fn page_of(&self, index: u32) -> usize {
        index as usize / PAGE_ROWS
    }

    /// The page that has the chunk at this offset in the data.
    pub(super) fn page_at(&self, offset: u64) -> usize {
        self.offsets.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn rows(&self, page: usize) -> Range<usize> {
        let start = page * PAGE_ROWS;
        start..(start + PAGE_ROWS).min(self.head.count as usize)
    }

    /// Where a page lies in the file.
    pub(super) fn page_bytes(&self, page: usize) -> Range<u64> {
        let rows = self.rows(page);
        let at = |row: usize| self.head.table_start() + (ROW_LEN * row) as u64;
        at(rows.start)..at(rows.end)
    }

    /// Checks a page and gives its rows.
    pub(super) fn page(&self, page: usize, bytes: &[u8]) -> Result<Vec<Row>, Damaged> {
        let (Some(&start), Some(check)) = (self.offsets.get(page), self.checks.get(page)) else {
            return Err(Damaged("no such page"));
        };
        if blake3::derive_key(PAGE_CONTEXT, bytes) != *check {
            return Err(Damaged("a page does not match its checksum"));
        }
        let (raw, rest) = bytes.as_chunks::<ROW_LEN>();
        if raw.len() != self.rows(page).len() || !rest.is_empty() {
            return Err(Damaged("a page of another length"));
        }
        let mut offset = start;
        let mut rows = Vec::with_capacity(raw.len());
        for bytes in raw {
            let len = u32::from_le_bytes(array(&bytes[32..]));
            if len == 0 || len as usize > MAX_CHUNK {
                return Err(Damaged("no chunk has that length"));
            }
            rows.push(Row { hash: Hash(array(bytes)), offset, len });
            offset += u64::from(len);
        }
        if offset != self.offsets.get(page + 1).copied().unwrap_or(self.head.data_len) {
            return Err(Damaged("a page's chunks do not fill their place"));
        }
        Ok(rows)
    }
}

/// The table of an entry being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    rows: Vec<u8>,
    data_len: u64,
}

impl Table {
    /// Adds the next chunk, of 1 to [`MAX_CHUNK`] bytes.
    pub(super) fn push(&mut self, hash: &Hash, len: u32) {
        self.rows.extend_from_slice(&hash.0);
        self.rows.extend_from_slice(&len.to_le_bytes());
        self.data_len += u64::from(len);
    }

    /// Chunks so far.
    pub(super) fn count(&self) -> usize {
        self.rows.len() / ROW_LEN
    }

    /// The head, which goes to offset 0, and what goes behind the data: table and directory. There
    /// are 1 to [`MAX_COUNT`] chunks.
    pub(super) fn finish(self, kind: Kind, hash: Hash, first: u32) -> ([u8; HEAD_LEN], Vec<u8>) {
        let head = Head { kind, hash, first, count: self.count() as u32, data_len: self.data_len };
        let mut directory = Vec::with_capacity(PAGE_REF_LEN * head.pages());
        let mut offset = 0u64;
        for page in self.rows.chunks(ROW_LEN * PAGE_ROWS) {
            directory.extend_from_slice(&offset.to_le_bytes());
            directory.extend_from_slice(&blake3::derive_key(PAGE_CONTEXT, page));
            let rows = page.as_chunks::<ROW_LEN>().0.iter();
            offset += rows.map(|row| u64::from(u32::from_le_bytes(array(&row[32..])))).sum::<u64>();
        }
        let head = head.to_bytes(&directory);
        let mut tail = self.rows;
        tail.extend_from_slice(&directory);
        (head, tail)
    }
}

/// Bytes of the file of an entry of `count` chunks with `data_len` bytes.
pub(super) fn file_len(count: u64, data_len: u64) -> u64 {
    HEAD_LEN as u64 + data_len + ROW_LEN as u64 * count + PAGE_REF_LEN as u64 * count.div_ceil(PAGE_ROWS as u64)
}

fn head_check(head: &[u8], directory: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(HEAD_CONTEXT);
    hasher.update(head).update(directory);
    *hasher.finalize().as_bytes()
}

/// The first `N` bytes, of a slice that has them by its type or by a check before.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the caller has sliced a longer array")
}

/// Body of the fuzz target: what parses is written as it was.
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(crate) fn fuzz(file: &[u8]) {
    let Some(bytes) = file.first_chunk::<HEAD_LEN>() else { return };
    let Ok(head) = Head::parse(bytes, file.len() as u64) else { return };
    let at = |range: Range<u64>| &file[range.start as usize..range.end as usize];
    let Ok(directory) = Directory::open(head, bytes, at(head.directory())) else { return };
    let mut table = Table::default();
    for page in 0..head.pages() {
        let Ok(rows) = directory.page(page, at(directory.page_bytes(page))) else { return };
        assert_eq!(directory.page_of(table.count() as u32), page);
        for row in rows {
            assert_eq!((row.offset, directory.page_at(row.offset)), (table.data_len, page));
            assert!(row.end() <= head.data_len);
            table.push(&row.hash, row.len);
        }
    }
    assert_eq!(file_len(table.count() as u64, table.data_len), file.len() as u64);
    let (again, tail) = table.finish(head.kind, head.hash, head.first);
    assert_eq!((&again[..], &tail[..]), (&bytes[..], at(head.table_start()..head.file_len())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::chunk_hash;
    use proptest::prelude::*;

    /// An entry of chunks of these lengths.
    fn entry(lens: &[u32]) -> Vec<u8> {
        let mut table = Table::default();
        let mut data = Vec::new();
        for (i, &len) in lens.iter().enumerate() {
            let chunk = vec![i as u8; len as usize];
            table.push(&chunk_hash(&chunk), len);
            data.extend(chunk);
        }
        let (head, tail) = table.finish(Kind::Xorb, Hash([7; 32]), 3);
        [&head[..], &data, &tail].concat()
    }

    /// All rows, by the path that reads take.
    fn parse(file: &[u8]) -> Result<(Head, Vec<Row>), Damaged> {
        let bytes = file.first_chunk().ok_or(Damaged("short"))?;
        let head = Head::parse(bytes, file.len() as u64)?;
        let at = |range: Range<u64>| &file[range.start as usize..range.end as usize];
        let directory = Directory::open(head, bytes, at(head.directory()))?;
        let pages = (0..head.pages()).map(|page| directory.page(page, at(directory.page_bytes(page))));
        Ok((head, pages.collect::<Result<Vec<_>, _>>()?.concat()))
    }

    #[test]
    fn entries_of_one_some_and_many_pages_parse_back() {
        for count in [1, 2, 255, 256, 257, 512, 513, 1000] {
            let lens: Vec<u32> = (0..count).map(|i| 1 + i % 7).collect();
            let file = entry(&lens);
            fuzz(&file);
            let (head, rows) = parse(&file).unwrap();
            assert_eq!((head.kind, head.hash, head.first, head.count), (Kind::Xorb, Hash([7; 32]), 3, count));
            assert_eq!(rows.iter().map(|row| row.len).collect::<Vec<_>>(), lens);
            assert_eq!(rows.last().unwrap().end(), head.data_len);
            assert_eq!(file.len() as u64, file_len(count.into(), head.data_len));
        }
    }

    #[test]
    fn entries_are_written_as_they_always_were() {
        for (name, kind, first, lens) in [
            ("xorb-1", Kind::Xorb, 0, &[1][..]),
            ("xorb-3", Kind::Xorb, 8000, &[3, 1, 200]),
            ("file-2", Kind::File, 0, &[64, 7]),
            ("file-40", Kind::File, 0, &[1; 40]),
        ] {
            let mut table = Table::default();
            let data: Vec<u8> = (0..lens.iter().sum::<u32>()).map(|i| i as u8).collect();
            let mut rest = &data[..];
            for &len in lens {
                let (chunk, later) = rest.split_at(len as usize);
                table.push(&chunk_hash(chunk), len);
                rest = later;
            }
            let (head, tail) = table.finish(kind, Hash(std::array::from_fn(|i| i as u8)), first);
            let path = format!("{}/../../tests/vectors/cache/{name}.bin", env!("CARGO_MANIFEST_DIR"));
            let entry = [&head[..], &data, &tail].concat();
            assert_eq!(std::fs::read(path).unwrap(), entry, "{name}");
            fuzz(&entry);
        }
    }

    #[test]
    fn every_flipped_bit_outside_the_data_is_noticed() {
        let file = entry(&[5; 300]);
        let data = HEAD_LEN..HEAD_LEN + 1500;
        for at in (0..file.len()).filter(|at| !data.contains(at)) {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(parse(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn every_cut_and_every_byte_more_is_noticed() {
        let file = entry(&[5; 10]);
        for len in 0..file.len() {
            assert!(parse(&file[..len]).is_err(), "cut to {len}");
        }
        assert!(parse(&[&file[..], &[0]].concat()).is_err());
    }

    /// Writes `change` into the head and makes the checksum right again, as an attacker would.
    fn forged(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut file = entry(&[5; 10]);
        change(&mut file);
        let directory = file.len() - PAGE_REF_LEN;
        let check = head_check(&file[..HEAD_CHECKED], &file[directory..]);
        file[HEAD_CHECKED..HEAD_LEN].copy_from_slice(&check);
        file
    }

    #[test]
    fn absurd_numbers_under_a_right_checksum_are_refused() {
        assert!(parse(&forged(|_| ())).is_ok());
        let put =
            |at: usize, bytes: &'static [u8]| parse(&forged(|file| file[at..at + bytes.len()].copy_from_slice(bytes)));
        for (at, bytes) in [
            (0, &b"X"[..]),
            (8, &[2]),
            (10, &[0]),
            (10, &[3]),
            (12, &[0xff; 4]),
            (48, &[0; 4]),
            (48, &[0xff; 4]),
            (48, &[9, 0, 0, 0]),
            (52, &[1]),
            (56, &[0; 8]),
            (56, &[0xff; 8]),
        ] {
            assert!(put(at, bytes).is_err(), "{bytes:?} at {at}");
        }
        let offset = entry(&[5; 10]).len() - PAGE_REF_LEN;
        assert!(parse(&forged(|file| file[offset] = 1)).is_err(), "first page not at 0");
    }

    #[test]
    fn a_chunk_of_no_or_too_many_bytes_is_refused() {
        for lens in [[0, 10], [MAX_CHUNK as u32 + 1, 1]] {
            let mut table = Table::default();
            lens.iter().for_each(|&len| table.push(&Hash::ZERO, len));
            let data_len = table.data_len as usize;
            let (head, tail) = table.finish(Kind::File, Hash::ZERO, 0);
            assert!(parse(&[&head[..], &vec![0; data_len], &tail].concat()).is_err());
        }
    }

    proptest! {
        #[test]
        fn damaged_entries_pass_through_the_fuzz_body(
            lens in prop::collection::vec(1..20u32, 1..600),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut data = entry(&lens);
            for (at, value) in flips {
                let at = at.index(data.len());
                data[at] ^= value;
            }
            if let Some(cut) = cut {
                data.truncate(cut.index(data.len()));
            }
            fuzz(&data);
        }
    }
}
