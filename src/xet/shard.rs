//! Shards (Xet spec, section 7): upload form, server-stored form, dedup answers.
//!
//! Lengths and offsets are bytes unless they are called records or chunks. What parses is well-formed, not true:
//! whether segments and hashes agree with stored xorbs is for the reader to check. Failure: [`Error::Malformed`].

use super::{Error, Hash};
use std::collections::HashSet;

/// Largest shard, in bytes.
pub const MAX_SHARD: usize = 64 * 1024 * 1024;

/// A run of chunks in one xorb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The xorb.
    pub xorb: Hash,
    /// Uncompressed bytes of the run.
    pub raw_len: u32,
    /// First chunk index.
    pub start: u32,
    /// Behind the last chunk index.
    pub end: u32,
}

/// A file: its terms, each with a verification hash where the shard has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// File hash.
    pub hash: Hash,
    /// Terms in file order.
    pub segments: Vec<Segment>,
    /// One per segment, or none at all.
    pub verification: Vec<Hash>,
    /// SHA-256 of the content, as the digest (not in the hash-text convention).
    pub sha256: Option<[u8; 32]>,
}

/// A chunk of a xorb section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardChunk {
    /// Chunk hash, plain or keyed.
    pub hash: Hash,
    /// Start offset in the uncompressed concatenation.
    pub raw_start: u32,
    /// Uncompressed length.
    pub raw_len: u32,
    /// Flags (`0x8000_0000`: eligible for global dedup).
    pub flags: u32,
}

/// A xorb section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XorbInfo {
    /// Xorb hash.
    pub hash: Hash,
    /// Uncompressed bytes.
    pub raw_len: u32,
    /// Serialised bytes, or 0: a hint.
    pub stored_len: u32,
    /// Its chunks.
    pub chunks: Vec<ShardChunk>,
}

/// What a footer adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Key of the chunk hashes; all zero: plain.
    pub hmac_key: [u8; 32],
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds; `u64::MAX` never.
    pub expires: u64,
}

/// A parsed shard.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Shard {
    /// File section.
    pub files: Vec<FileInfo>,
    /// Xorb section.
    pub xorbs: Vec<XorbInfo>,
    /// Footer, where there is one.
    pub footer: Option<Footer>,
}

/// First 32 bytes of a shard: `HFRepoMetaData`, a zero, and 17 bytes of magic.
const TAG: [u8; 32] = *b"HFRepoMetaData\0\x55\x69\x67\x45\x6a\x7b\x81\x57\x83\xa5\xbd\xd9\x5c\xcd\xd1\x4a\xa9";
/// Version in the header.
const HEADER_VERSION: u64 = 2;
/// Version in the footer.
const FOOTER_VERSION: u64 = 1;
/// Bytes of the header and of every record.
const RECORD_LEN: usize = 48;
/// Bytes of the footer.
const FOOTER_LEN: usize = 200;
/// Bytes of an entry of the file and xorb lookups: truncated hash, record index.
const LOOKUP_LEN: usize = 12;
/// Bytes of an entry of the chunk lookup: truncated hash, record index, chunk index.
const CHUNK_LOOKUP_LEN: usize = 16;
/// File flag: a verification record per segment follows the segments.
const FILE_VERIFIED: u32 = 0x8000_0000;
/// File flag: a record with the SHA-256 follows.
const FILE_SHA256: u32 = 0x4000_0000;
/// What a bookend has in the place of a hash.
const BOOKEND_HASH: [u8; 32] = [0xff; 32];
/// What ends a section.
const BOOKEND: [u8; RECORD_LEN] = {
    let mut record = [0; RECORD_LEN];
    let mut i = 0;
    while i < 32 {
        record[i] = 0xff;
        i += 1;
    }
    record
};

type Record = [u8; RECORD_LEN];

impl Shard {
    /// Parses any form. Counts in headers are capped by the bytes that are there.
    ///
    /// Of files with the same hash the first is kept. Lookup tables are measured but not read. A footer is also taken
    /// where the header announces none, as some uploaders send it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (header, _) = bytes.split_first_chunk::<RECORD_LEN>().ok_or_else(|| malformed("no header"))?;
        let footer_len = parse_header(header)?;
        let mut records = Records(&bytes.as_chunks().0[1..]);
        let files = parse_files(&mut records)?;
        let xorbs_at = records.offset_in(bytes);
        let xorbs = parse_xorbs(&mut records)?;
        let xorbs_end = records.offset_in(bytes);
        let footer = match (footer_len, bytes.len() - xorbs_end) {
            (0, 0) => None,
            _ => Some(parse_footer(bytes, xorbs_at, xorbs_end)?),
        };
        Ok(Self { files, xorbs, footer })
    }

    /// The upload body: no lookups, no footer, files and xorbs ascending by hash.
    pub fn to_upload(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.upload_len());
        self.write_sections(0, &mut out);
        out
    }

    /// The form with a footer and, if asked, lookup tables (server-stored and dedup answers).
    pub fn to_stored(&self, footer: &Footer, lookups: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.upload_len() + FOOTER_LEN);
        let xorbs_at = self.write_sections(FOOTER_LEN as u64, &mut out);
        let lookups = if lookups { self.lookups() } else { Lookups::default() };
        // Offset and count of each table; an absent one is where the next section is.
        let tables = [
            (write_table(&lookups.files, &mut out), lookups.files.len()),
            (write_table(&lookups.xorbs, &mut out), lookups.xorbs.len()),
            (write_chunk_table(&lookups.chunks, &mut out), lookups.chunks.len()),
        ];
        self.write_footer(footer, xorbs_at, &tables, &mut out);
        out
    }

    /// Length of [`Shard::to_upload`] without making it.
    pub fn upload_len(&self) -> usize {
        let files: usize = self.files.iter().map(FileInfo::records).sum();
        let xorbs: usize = self.xorbs.iter().map(XorbInfo::records).sum();
        // Header, and a bookend per section.
        RECORD_LEN * (3 + files + xorbs)
    }

    /// Writes header and sections; gives the offset of the xorb section.
    fn write_sections(&self, footer_len: u64, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&TAG);
        out.extend_from_slice(&HEADER_VERSION.to_le_bytes());
        out.extend_from_slice(&footer_len.to_le_bytes());
        // An empty file proves nothing: its flag follows the others', so that the shard isn't mixed.
        let verified = self.files.iter().all(FileInfo::is_verified);
        for file in ascending(&self.files, |file| file.hash) {
            file.write(verified, out);
        }
        out.extend_from_slice(&BOOKEND);
        let xorbs_at = out.len();
        for xorb in ascending(&self.xorbs, |xorb| xorb.hash) {
            xorb.write(out);
        }
        out.extend_from_slice(&BOOKEND);
        xorbs_at
    }

    fn lookups(&self) -> Lookups {
        let mut lookups = Lookups::default();
        let mut record = 0;
        for file in ascending(&self.files, |file| file.hash) {
            lookups.files.push((file.hash.truncated(), record));
            record += file.records() as u32;
        }
        record = 0;
        for xorb in ascending(&self.xorbs, |xorb| xorb.hash) {
            lookups.xorbs.push((xorb.hash.truncated(), record));
            lookups.chunks.extend((0..).zip(&xorb.chunks).map(|(i, chunk)| (chunk.hash.truncated(), record, i)));
            record += xorb.records() as u32;
        }
        lookups.chunks.sort_unstable();
        lookups
    }

    fn write_footer(&self, footer: &Footer, xorbs_at: usize, tables: &[(usize, usize); 3], out: &mut Vec<u8>) {
        let footer_at = out.len() as u64;
        let mut word = |value: u64| out.extend_from_slice(&value.to_le_bytes());
        word(FOOTER_VERSION);
        word(RECORD_LEN as u64);
        word(xorbs_at as u64);
        for &(offset, count) in tables {
            word(offset as u64);
            word(count as u64);
        }
        footer.hmac_key.as_chunks().0.iter().for_each(|part| word(u64::from_le_bytes(*part)));
        word(footer.created);
        word(footer.expires);
        (0..6).for_each(|_| word(0));
        word(self.xorbs.iter().map(|xorb| u64::from(xorb.stored_len)).sum());
        word(self.files.iter().flat_map(|file| &file.segments).map(|segment| u64::from(segment.raw_len)).sum());
        word(self.xorbs.iter().map(|xorb| u64::from(xorb.raw_len)).sum());
        word(footer_at);
    }
}

/// The lookup tables (spec, section 7.4), sorted. Records are counted from the start of their section.
#[derive(Default)]
struct Lookups {
    /// Truncated file hash, record of the file header.
    files: Vec<(u64, u32)>,
    /// Truncated xorb hash, record of the xorb header.
    xorbs: Vec<(u64, u32)>,
    /// Truncated chunk hash, record of the xorb header, index of the chunk.
    chunks: Vec<(u64, u32, u32)>,
}

/// Gives the offset that the table has in `out`.
fn write_table(table: &[(u64, u32)], out: &mut Vec<u8>) -> usize {
    let at = out.len();
    for (truncated, record) in table {
        out.extend_from_slice(&truncated.to_le_bytes());
        out.extend_from_slice(&record.to_le_bytes());
    }
    at
}

/// Gives the offset that the table has in `out`.
fn write_chunk_table(table: &[(u64, u32, u32)], out: &mut Vec<u8>) -> usize {
    let at = out.len();
    for (truncated, record, index) in table {
        out.extend_from_slice(&truncated.to_le_bytes());
        out.extend_from_slice(&record.to_le_bytes());
        out.extend_from_slice(&index.to_le_bytes());
    }
    at
}

impl FileInfo {
    /// Whether it has a verification hash for every segment it has.
    fn is_verified(&self) -> bool {
        self.verification.len() == self.segments.len()
    }

    /// Records that [`FileInfo::write`] makes.
    fn records(&self) -> usize {
        let per_segment = if self.is_verified() { 2 } else { 1 };
        1 + per_segment * self.segments.len() + usize::from(self.sha256.is_some())
    }

    fn write(&self, empty_is_verified: bool, out: &mut Vec<u8>) {
        let verified = if self.segments.is_empty() { empty_is_verified } else { self.is_verified() };
        let mut flags = 0;
        if verified {
            flags |= FILE_VERIFIED;
        }
        if self.sha256.is_some() {
            flags |= FILE_SHA256;
        }
        write_record(&self.hash, [flags, self.segments.len() as u32, 0, 0], out);
        for segment in &self.segments {
            write_record(&segment.xorb, [0, segment.raw_len, segment.start, segment.end], out);
        }
        if verified {
            self.verification.iter().for_each(|range_hash| write_record(range_hash, [0; 4], out));
        }
        if let Some(digest) = self.sha256 {
            write_record(&Hash(swap_words(digest)), [0; 4], out);
        }
    }
}

impl XorbInfo {
    /// Records that [`XorbInfo::write`] makes.
    fn records(&self) -> usize {
        1 + self.chunks.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_record(&self.hash, [0, self.chunks.len() as u32, self.raw_len, self.stored_len], out);
        for chunk in &self.chunks {
            write_record(&chunk.hash, [chunk.raw_start, chunk.raw_len, chunk.flags, 0], out);
        }
    }
}

/// References in the order the reference writes them.
fn ascending<T>(items: &[T], hash: impl Fn(&T) -> Hash) -> Vec<&T> {
    let mut sorted: Vec<&T> = items.iter().collect();
    sorted.sort_by_key(|item| hash(item));
    sorted
}

/// A digest to the hash-text convention and back: the bytes of each word reversed (spec, section 7.2).
fn swap_words(mut digest: [u8; 32]) -> [u8; 32] {
    digest.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word.reverse());
    digest
}

fn write_record(hash: &Hash, words: [u32; 4], out: &mut Vec<u8>) {
    out.extend_from_slice(&hash.0);
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

/// A record's hash and its four words.
fn split_record(record: &Record) -> (Hash, [u32; 4]) {
    let (hash, words) = record.split_first_chunk::<32>().expect("a record is 48 bytes");
    let words = words.as_chunks::<4>().0;
    (Hash(*hash), std::array::from_fn(|i| u32::from_le_bytes(words[i])))
}

/// The records not read yet.
struct Records<'a>(&'a [Record]);

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<&'a Record, Error> {
        let (first, rest) = self.0.split_first().ok_or_else(|| malformed("a section has no end"))?;
        self.0 = rest;
        Ok(first)
    }

    /// `count` records, which are there: whatever is allocated for them is bounded by the input.
    fn take(&mut self, count: u32) -> Result<&'a [Record], Error> {
        let (head, rest) = self
            .0
            .split_at_checked(count as usize)
            .ok_or_else(|| malformed(format!("{count} records are not there")))?;
        self.0 = rest;
        Ok(head)
    }

    /// Where the next record is in `bytes`, which these are the whole records of.
    fn offset_in(&self, bytes: &[u8]) -> usize {
        (bytes.len() / RECORD_LEN - self.0.len()) * RECORD_LEN
    }

    /// The header record of the next item, or `None` at the bookend.
    fn next_item(&mut self) -> Result<Option<(Hash, [u32; 4])>, Error> {
        let record = self.next()?;
        if *record == BOOKEND {
            return Ok(None);
        }
        let item = split_record(record);
        // Written again, with the words that mean nothing as zeros, it would be a bookend.
        if item.0.0 == BOOKEND_HASH {
            return Err(malformed("a header has the hash that marks a section's end"));
        }
        Ok(Some(item))
    }
}

/// The footer length that the header announces: 0 or 200.
fn parse_header(header: &Record) -> Result<u64, Error> {
    let (tag, rest) = header.split_first_chunk::<32>().expect("a record is 48 bytes");
    let words = rest.as_chunks::<8>().0;
    let [version, footer_len] = [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])];
    if *tag != TAG {
        return Err(malformed("not a shard"));
    }
    if version != HEADER_VERSION {
        return Err(malformed(format!("version {version} is unknown")));
    }
    if footer_len != 0 && footer_len != FOOTER_LEN as u64 {
        return Err(malformed(format!("a footer of {footer_len} bytes")));
    }
    Ok(footer_len)
}

fn parse_files(records: &mut Records<'_>) -> Result<Vec<FileInfo>, Error> {
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    let mut verified = None;
    while let Some((hash, [flags, count, _, _])) = records.next_item()? {
        if flags & !(FILE_VERIFIED | FILE_SHA256) != 0 {
            return Err(malformed(format!("file flags {flags:#x} are unknown")));
        }
        let has_verification = flags & FILE_VERIFIED != 0;
        // A file without segments has nothing to verify, whatever its flag says.
        if count > 0 && *verified.get_or_insert(has_verification) != has_verification {
            return Err(malformed("only some files have verification hashes"));
        }
        let segments = records.take(count)?.iter().map(parse_segment).collect::<Result<_, _>>()?;
        let verification = records.take(if has_verification { count } else { 0 })?;
        let verification = verification.iter().map(|record| split_record(record).0).collect();
        let sha256 = match flags & FILE_SHA256 {
            0 => None,
            _ => Some(swap_words(split_record(records.next()?).0.0)),
        };
        if seen.insert(hash) {
            files.push(FileInfo { hash, segments, verification, sha256 });
        }
    }
    Ok(files)
}

fn parse_segment(record: &Record) -> Result<Segment, Error> {
    let (xorb, [_, raw_len, start, end]) = split_record(record);
    if start >= end || raw_len == 0 {
        return Err(malformed(format!("a segment of chunks {start} to {end} and {raw_len} bytes")));
    }
    Ok(Segment { xorb, raw_len, start, end })
}

fn parse_xorbs(records: &mut Records<'_>) -> Result<Vec<XorbInfo>, Error> {
    let mut xorbs = Vec::new();
    while let Some((hash, [_, count, raw_len, stored_len])) = records.next_item()? {
        let chunks = records.take(count)?.iter().map(|record| {
            let (hash, [raw_start, raw_len, flags, _]) = split_record(record);
            ShardChunk { hash, raw_start, raw_len, flags }
        });
        let chunks = chunks.collect();
        xorbs.push(XorbInfo { hash, raw_len, stored_len, chunks });
    }
    Ok(xorbs)
}

/// Parses the footer at the end of `bytes` and checks that nothing but its lookup tables lies
/// between it and the sections.
fn parse_footer(bytes: &[u8], xorbs_at: usize, xorbs_end: usize) -> Result<Footer, Error> {
    let (tables, footer) = bytes[xorbs_end..].split_last_chunk::<FOOTER_LEN>().ok_or_else(|| malformed("no footer"))?;
    let words = footer.as_chunks::<8>().0;
    let word = |offset: usize| u64::from_le_bytes(words[offset / 8]);
    if word(0) != FOOTER_VERSION {
        return Err(malformed(format!("footer version {} is unknown", word(0))));
    }
    let at = |offset: u64, expected: usize| offset == expected as u64;
    if !at(word(8), RECORD_LEN) || !at(word(16), xorbs_at) || !at(word(192), bytes.len() - FOOTER_LEN) {
        return Err(malformed("footer and sections disagree"));
    }
    // Some writers leave the lookup fields zero: they have no tables.
    let mut end = xorbs_end as u64;
    for (field, entry_len) in [(24, LOOKUP_LEN), (40, LOOKUP_LEN), (56, CHUNK_LOOKUP_LEN)] {
        let (offset, count) = (word(field), word(field + 8));
        if offset != end && (offset, count) != (0, 0) {
            return Err(malformed("lookup table out of place"));
        }
        let next = count.checked_mul(entry_len as u64).and_then(|len| end.checked_add(len));
        end = next.ok_or_else(|| malformed("lookup table too long"))?;
    }
    if end != (xorbs_end + tables.len()) as u64 {
        return Err(malformed("lookup tables and footer do not meet"));
    }
    let hmac_key = *footer[72..].first_chunk().expect("the footer is 200 bytes");
    Ok(Footer { hmac_key, created: word(104), expires: word(112) })
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed { what: "shard", why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_hash() -> impl Strategy<Value = Hash> {
        any::<[u8; 32]>().prop_map(Hash)
    }

    fn segment() -> impl Strategy<Value = Segment> {
        (any_hash(), 1..u32::MAX, 0..100u32, 1..100u32).prop_map(|(xorb, raw_len, start, count)| Segment {
            xorb,
            raw_len,
            start,
            end: start + count,
        })
    }

    fn file(verified: bool) -> impl Strategy<Value = FileInfo> {
        (any_hash(), prop::collection::vec((segment(), any_hash()), 0..5), any::<Option<[u8; 32]>>()).prop_map(
            move |(hash, segments, sha256)| {
                let (segments, mut verification): (Vec<_>, Vec<_>) = segments.into_iter().unzip();
                if !verified {
                    verification.clear();
                }
                FileInfo { hash, segments, verification, sha256 }
            },
        )
    }

    fn xorb() -> impl Strategy<Value = XorbInfo> {
        let chunk = (any_hash(), any::<(u32, u32, u32)>()).prop_map(|(hash, (raw_start, raw_len, flags))| ShardChunk {
            hash,
            raw_start,
            raw_len,
            flags,
        });
        (any_hash(), any::<(u32, u32)>(), prop::collection::vec(chunk, 0..5))
            .prop_map(|(hash, (raw_len, stored_len), chunks)| XorbInfo { hash, raw_len, stored_len, chunks })
    }

    /// Ascending, as shards are written.
    fn shard() -> impl Strategy<Value = Shard> {
        let files = any::<bool>().prop_flat_map(|verified| prop::collection::vec(file(verified), 0..5));
        (files, prop::collection::vec(xorb(), 0..5)).prop_map(|(mut files, mut xorbs)| {
            files.sort_by_key(|file| file.hash);
            xorbs.sort_by_key(|xorb| xorb.hash);
            Shard { files, xorbs, footer: None }
        })
    }

    fn footer() -> impl Strategy<Value = Footer> {
        any::<([u8; 32], u64, u64)>().prop_map(|(hmac_key, created, expires)| Footer { hmac_key, created, expires })
    }

    proptest! {
        #[test]
        fn written_shards_parse_back(shard in shard(), footer in footer(), lookups: bool) {
            let upload = shard.to_upload();
            prop_assert_eq!(upload.len(), shard.upload_len());
            prop_assert_eq!(&Shard::parse(&upload).unwrap(), &shard);

            let stored = shard.to_stored(&footer, lookups);
            let parsed = Shard::parse(&stored).unwrap();
            prop_assert_eq!(&parsed.to_upload(), &upload);
            prop_assert_eq!(parsed, Shard { footer: Some(footer.clone()), ..shard.clone() });

            // Some uploaders send the footer though their header announces none.
            let mut unannounced = stored;
            unannounced[40..48].fill(0);
            prop_assert_eq!(Shard::parse(&unannounced).unwrap().footer, Some(footer));
        }

        #[test]
        fn order_of_items_does_not_change_what_is_written(shard in shard()) {
            let reversed = Shard {
                files: shard.files.iter().rev().cloned().collect(),
                xorbs: shard.xorbs.iter().rev().cloned().collect(),
                footer: None,
            };
            prop_assert_eq!(reversed.to_upload(), shard.to_upload());
        }

        #[test]
        fn a_shard_cut_anywhere_is_rejected(shard in shard(), footer in footer(), lookups: bool, cut in 0.0..1.0) {
            for whole in [shard.to_upload(), shard.to_stored(&footer, lookups)] {
                let len = (whole.len() as f64 * cut) as usize;
                // Without its footer a stored shard differs from an upload by its header only.
                prop_assert!(Shard::parse(&whole[..len]).is_err(), "cut to {} of {}", len, whole.len());
            }
        }

        #[test]
        fn lookups_point_at_the_records_they_name(shard in shard(), footer in footer()) {
            let bytes = shard.to_stored(&footer, true);
            let tail = bytes.last_chunk::<FOOTER_LEN>().unwrap();
            let word = |at: usize| u64::from_le_bytes(tail[at..at + 8].try_into().unwrap()) as usize;
            let truncated = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            for (section, table, count) in [(word(8), word(24), word(32)), (word(16), word(40), word(48))] {
                for entry in (0..count).map(|i| table + i * LOOKUP_LEN) {
                    prop_assert_eq!(truncated(section + RECORD_LEN * half(entry + 8)), truncated(entry));
                }
            }
            prop_assert_eq!((word(32), word(48)), (shard.files.len(), shard.xorbs.len()));
            let mut last = 0;
            for entry in (0..word(64)).map(|i| word(56) + i * CHUNK_LOOKUP_LEN) {
                let record = half(entry + 8) + 1 + half(entry + 12);
                prop_assert_eq!(truncated(word(16) + RECORD_LEN * record), truncated(entry));
                prop_assert!(truncated(entry) >= last);
                last = truncated(entry);
            }
        }
    }

    const NEVER: Footer = Footer { hmac_key: [0; 32], created: 0, expires: u64::MAX };

    fn file_of(hash: u8, segments: usize, verified: bool) -> FileInfo {
        let segment = Segment { xorb: Hash([1; 32]), raw_len: 5, start: 0, end: 1 };
        FileInfo {
            hash: Hash([hash; 32]),
            segments: vec![segment; segments],
            verification: vec![Hash([2; 32]); if verified { segments } else { 0 }],
            sha256: None,
        }
    }

    fn shard_of(files: &[FileInfo]) -> Shard {
        Shard { files: files.to_vec(), ..Shard::default() }
    }

    /// Overwrites a word of the upload form of one file with two verified segments; its header is the second record.
    fn with_word(at: usize, value: u32) -> Result<Shard, Error> {
        let mut bytes = shard_of(&[file_of(1, 2, true)]).to_upload();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Shard::parse(&bytes)
    }

    #[test]
    fn counts_beyond_the_bytes_are_rejected() {
        let count_at = RECORD_LEN + 36;
        assert!(with_word(count_at, 2).is_ok());
        for count in [3, 4, 1_000, u32::MAX / 2, u32::MAX] {
            assert!(with_word(count_at, count).is_err(), "{count} segments");
        }
        let xorb = XorbInfo { hash: Hash([1; 32]), raw_len: 0, stored_len: 0, chunks: Vec::new() };
        let mut bytes = Shard { xorbs: vec![xorb], ..Shard::default() }.to_upload();
        bytes[2 * RECORD_LEN + 36..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Shard::parse(&bytes).is_err());
    }

    #[test]
    fn unknown_flags_and_versions_are_rejected() {
        let flags_at = RECORD_LEN + 32;
        assert!(with_word(flags_at, FILE_VERIFIED).is_ok());
        assert!(with_word(flags_at, FILE_VERIFIED | 1).is_err());
        assert!(with_word(0, 0).is_err());
        assert!(with_word(32, 1).is_err());
        assert!(with_word(40, 199).is_err());
    }

    #[test]
    fn segments_without_chunks_or_bytes_are_rejected() {
        let segment = 2 * RECORD_LEN + 32;
        assert!(with_word(segment + 4, 0).is_err());
        assert!(with_word(segment + 8, 1).is_err());
        assert!(with_word(segment + 8, 2).is_err());
        assert!(with_word(segment + 12, 2).is_ok());
    }

    #[test]
    fn a_shard_with_some_files_verified_is_rejected() {
        let mixed = shard_of(&[file_of(1, 1, true), file_of(2, 1, false)]);
        assert!(Shard::parse(&mixed.to_upload()).is_err());
    }

    #[test]
    fn an_empty_file_goes_with_either_kind() {
        for verified in [true, false] {
            let shard = shard_of(&[file_of(0, 0, true), file_of(2, 1, verified)]);
            let bytes = shard.to_upload();
            assert_eq!(Shard::parse(&bytes).unwrap(), shard);
            let empty_flags = u32::from_le_bytes(bytes[RECORD_LEN + 32..][..4].try_into().unwrap());
            assert_eq!(empty_flags, if verified { FILE_VERIFIED } else { 0 });
            // Its own flag does not count.
            let mut other = bytes;
            other[RECORD_LEN + 35] ^= 0x80;
            assert_eq!(Shard::parse(&other).unwrap(), shard);
        }
    }

    #[test]
    fn of_files_with_one_hash_the_first_is_kept() {
        let shard = shard_of(&[file_of(1, 2, true), file_of(1, 3, true)]);
        let parsed = Shard::parse(&shard.to_upload()).unwrap();
        assert_eq!(parsed.files, shard.files[..1]);
    }

    #[test]
    fn footers_that_contradict_the_sections_are_rejected() {
        let shard = shard_of(&[file_of(1, 1, true)]);
        let bytes = shard.to_stored(&NEVER, true);
        let footer_at = bytes.len() - FOOTER_LEN;
        // Version, section offsets, lookup offsets and counts, the footer's own offset.
        for field in (0..72).step_by(8).chain([192]) {
            let mut bad = bytes.clone();
            bad[footer_at + field] ^= 1;
            assert!(Shard::parse(&bad).is_err(), "field at {field}");
            bad[footer_at + field..][..8].fill(0xff);
            assert!(Shard::parse(&bad).is_err(), "field at {field}");
        }
        let mut padded = bytes.clone();
        padded.insert(footer_at, 0);
        assert!(Shard::parse(&padded).is_err());
        assert!(Shard::parse(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_footer_with_reserved_lookup_fields_is_accepted() {
        let shard = shard_of(&[file_of(1, 1, true)]);
        let mut bytes = shard.to_stored(&NEVER, false);
        let footer_at = bytes.len() - FOOTER_LEN;
        bytes[footer_at + 24..footer_at + 72].fill(0);
        assert_eq!(Shard::parse(&bytes).unwrap().files, shard.files);
    }

    #[test]
    fn a_header_that_is_a_bookend_but_for_its_flags_is_rejected() {
        let found = include_bytes!("../../fuzz/seeds/shard/found-bookend-with-flags");
        assert!(Shard::parse(found).is_err());
    }

    #[test]
    fn an_announced_footer_must_be_there() {
        let mut bytes = shard_of(&[file_of(1, 1, true)]).to_upload();
        bytes[40] = FOOTER_LEN as u8;
        assert!(Shard::parse(&bytes).is_err());
    }
}
