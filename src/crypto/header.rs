//! The container header (format spec, sections 4 and 4b).
//!
//! Both formats carry the same 64 inner bytes at offset 6: in clear in format 1, sealed under the header key in
//! format 2, where the record count is part of the tweak. A size is to be believed only behind
//! [`Keys::open_header`]; [`probe`] repeats what the server claims.

use aegis::aegis128x2::Aegis128X2Mac;
use subtle::ConstantTimeEq;

use super::geometry::{CipherLen, HEADER_LEN, PlainLen, RECORD_PLAIN, TAG_LEN, object_len, records_of};
use super::keys::ContentKey;
use super::{Error, Format, Keys, Random};

/// Bytes in front of the inner header: magic, version, algorithm.
const PREFIX_LEN: usize = 6;
/// Bytes of the inner header.
const INNER_LEN: usize = HEADER_LEN - PREFIX_LEN;
/// Bytes of the inner header that its tag covers.
const TAGGED_LEN: usize = INNER_LEN - TAG_LEN;

const MAGIC: &[u8; 4] = b"HFEB";
/// AEGIS-128X2, in the prefix and in the inner header.
const ALGORITHM: u8 = 2;
/// The inner header up to the size: magic, length 64, version 1, algorithm 2, chunk size 65536.
const INNER_CONSTANTS: &[u8; 16] = b"AEGISRAF\x40\x00\x01\x02\x00\x00\x01\x00";

const SIZE_MISMATCH: Error = Error::Malformed("size does not fit the number of records");

/// The random id that a file's record keys are derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub [u8; 24]);

impl FileId {
    /// Draws a fresh one.
    pub fn generate(random: &mut dyn Random) -> Result<Self, Error> {
        let mut id = [0; 24];
        random.fill(&mut id)?;
        Ok(Self(id))
    }
}

/// A header that has been verified, or is about to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format of the container.
    pub format: Format,
    /// Plaintext size.
    pub plain_len: PlainLen,
    /// Number of records in the object.
    pub records: u64,
    /// File id.
    pub file_id: FileId,
}

impl Header {
    /// Records that hold plaintext. Those behind them, up to `records`, are padding.
    pub fn data_records(&self) -> u64 {
        self.plain_len.0.div_ceil(RECORD_PLAIN as u64)
    }

    /// Plaintext bytes in record `index`: 65536, fewer in the last one with data, 0 in a pad record.
    pub fn plain_in(&self, index: u64) -> usize {
        let before = index.saturating_mul(RECORD_PLAIN as u64);
        self.plain_len.0.saturating_sub(before).min(RECORD_PLAIN as u64) as usize
    }

    /// Whether `plain`, the whole opened record `index`, is zero behind the end of the file.
    pub fn tail_is_zero(&self, index: u64, plain: &[u8]) -> bool {
        plain.iter().skip(self.plain_in(index)).all(|&byte| byte == 0)
    }

    /// Refuses bytes behind the end of a format-2 file in the opened record `index`. Format 1 must accept them:
    /// libaegis shrinks a file without rewriting its last record (format spec, section 4).
    pub fn check_tail(&self, index: u64, plain: &[u8]) -> Result<(), Error> {
        match self.format {
            Format::V2 if !self.tail_is_zero(index, plain) => Err(Error::BytesBehindEnd(index)),
            Format::V1 | Format::V2 => Ok(()),
        }
    }

    /// Whether the size and the number of records go together in this format.
    fn check_size(&self) -> Result<(), Error> {
        object_len(self.records).map_err(|_| SIZE_MISMATCH)?;
        let fits = match self.format {
            Format::V1 => self.records == self.data_records(),
            Format::V2 => self.records >= self.data_records().max(1),
        };
        if fits { Ok(()) } else { Err(SIZE_MISMATCH) }
    }
}

/// What can be said of an object without a key. Nothing in it is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Format.
    pub format: Format,
    /// Records by the object's length.
    pub records: u64,
    /// The plaintext size it claims (format 1), or at most this many bytes (format 2).
    pub plain_len: PlainLen,
    /// The file id in clear (format 1).
    pub file_id: Option<FileId>,
}

/// Checks constants and length; needs no key. Bytes of `head` behind the header are ignored.
pub fn probe(head: &[u8], object_len: u64) -> Result<Probe, Error> {
    let head = whole_header(head, object_len)?;
    match version(head)? {
        Format::V1 => probe_v1(head, object_len),
        Format::V2 => probe_v2(head, object_len),
    }
}

fn whole_header(head: &[u8], object_len: u64) -> Result<&[u8; HEADER_LEN], Error> {
    match head.first_chunk() {
        Some(head) if object_len >= HEADER_LEN as u64 => Ok(head),
        _ => Err(Error::Malformed("shorter than a header")),
    }
}

fn version(head: &[u8; HEADER_LEN]) -> Result<Format, Error> {
    if !head.starts_with(MAGIC) {
        return Err(Error::Malformed("no HFEB magic"));
    }
    match head[4] {
        0 => Err(Error::Malformed("version 0")),
        1 => Ok(Format::V1),
        2 => Ok(Format::V2),
        newer => Err(Error::NewerVersion(newer)),
    }
}

fn check_algorithm(head: &[u8; HEADER_LEN]) -> Result<(), Error> {
    if head[5] == ALGORITHM { Ok(()) } else { Err(Error::Malformed("unknown algorithm")) }
}

fn probe_v1(head: &[u8; HEADER_LEN], object_len: u64) -> Result<Probe, Error> {
    check_algorithm(head)?;
    let inner = inner(head);
    check_constants(inner)?;
    let header = Header {
        format: Format::V1,
        plain_len: size_of_inner(inner),
        records: records_of(CipherLen(object_len))?,
        file_id: id_of_inner(inner),
    };
    header.check_size()?;
    Ok(Probe {
        format: header.format,
        records: header.records,
        plain_len: header.plain_len,
        file_id: Some(header.file_id),
    })
}

/// Names the constant that is wrong; for a header in clear, where that gives nothing away.
fn check_constants(inner: &[u8; INNER_LEN]) -> Result<(), Error> {
    let fields = [
        (0..8, "no AEGISRAF magic"),
        (8..10, "inner header size is not 64"),
        (10..11, "inner version is not 1"),
        (11..12, "inner algorithm differs"),
        (12..16, "record size is not 65536"),
    ];
    for (at, wrong) in fields {
        if inner[at.clone()] != INNER_CONSTANTS[at] {
            return Err(Error::Malformed(wrong));
        }
    }
    Ok(())
}

fn probe_v2(head: &[u8; HEADER_LEN], object_len: u64) -> Result<Probe, Error> {
    check_algorithm(head)?;
    let records = records_of(CipherLen(object_len))?;
    if records == 0 {
        return Err(Error::Malformed("no record"));
    }
    let most = records.checked_mul(RECORD_PLAIN as u64).ok_or(Error::OutOfRange)?;
    Ok(Probe { format: Format::V2, records, plain_len: PlainLen(most), file_id: None })
}

impl Keys {
    /// Makes the 70 header bytes. Fails where size and record count don't go together.
    pub fn seal_header(&self, header: &Header) -> Result<[u8; HEADER_LEN], Error> {
        header.check_size().map_err(|_| Error::OutOfRange)?;
        let inner = inner_header(self.content(header.format), header);
        let mut head = [0; HEADER_LEN];
        head[..4].copy_from_slice(MAGIC);
        head[4] = match header.format {
            Format::V1 => 1,
            Format::V2 => 2,
        };
        head[5] = ALGORITHM;
        match header.format {
            Format::V1 => head[PREFIX_LEN..].copy_from_slice(&inner),
            Format::V2 => {
                let tweak = header_tweak(&head, header.records);
                self.header_cipher().encrypt(&inner, &tweak, &mut head[PREFIX_LEN..]);
            }
        }
        Ok(head)
    }

    /// Verifies the header of an object of `object_len` bytes that lies under a name of format `name`.
    /// Only then is its size to be believed.
    pub fn open_header(&self, name: Format, head: &[u8], object_len: u64) -> Result<Header, Error> {
        let head = whole_header(head, object_len)?;
        if version(head)? != name {
            return Err(Error::FormatMismatch);
        }
        match name {
            Format::V1 => self.open_header_v1(head, object_len),
            Format::V2 => self.open_header_v2(head, object_len),
        }
    }

    fn open_header_v1(&self, head: &[u8; HEADER_LEN], object_len: u64) -> Result<Header, Error> {
        let records = probe_v1(head, object_len)?.records;
        self.verify_inner(Format::V1, inner(head), records)
    }

    fn open_header_v2(&self, head: &[u8; HEADER_LEN], object_len: u64) -> Result<Header, Error> {
        let records = probe_v2(head, object_len)?.records;
        let mut inner = [0; INNER_LEN];
        self.header_cipher().decrypt(&head[PREFIX_LEN..], &header_tweak(head, records), &mut inner);
        let header = self.verify_inner(Format::V2, &inner, records)?;
        header.check_size()?;
        Ok(header)
    }

    /// One verdict and one duration for wrong constants and a wrong tag: in format 2 both mean that the header was
    /// not sealed with this key for this many records.
    fn verify_inner(&self, format: Format, inner: &[u8; INNER_LEN], records: u64) -> Result<Header, Error> {
        let header = Header { format, plain_len: size_of_inner(inner), records, file_id: id_of_inner(inner) };
        let right = inner_header(self.content(format), &header);
        if bool::from(inner[..].ct_eq(&right[..])) { Ok(header) } else { Err(Error::Unauthentic) }
    }
}

/// The 64 bytes that size and file id determine, tag included.
fn inner_header(content: &ContentKey, header: &Header) -> [u8; INNER_LEN] {
    let mut inner = [0; INNER_LEN];
    inner[..16].copy_from_slice(INNER_CONSTANTS);
    inner[16..24].copy_from_slice(&header.plain_len.0.to_le_bytes());
    inner[24..TAGGED_LEN].copy_from_slice(&header.file_id.0);
    let keys = content.file_keys(&header.file_id);
    let mut mac = Aegis128X2Mac::<TAG_LEN>::new(keys.header());
    mac.update(&inner[..TAGGED_LEN]);
    inner[TAGGED_LEN..].copy_from_slice(&mac.finalize());
    inner
}

fn header_tweak(head: &[u8; HEADER_LEN], records: u64) -> [u8; PREFIX_LEN + 8] {
    let mut tweak = [0; PREFIX_LEN + 8];
    tweak[..PREFIX_LEN].copy_from_slice(&head[..PREFIX_LEN]);
    tweak[PREFIX_LEN..].copy_from_slice(&records.to_le_bytes());
    tweak
}

fn inner(head: &[u8; HEADER_LEN]) -> &[u8; INNER_LEN] {
    head.last_chunk().expect("64 of 70 bytes")
}

fn size_of_inner(inner: &[u8; INNER_LEN]) -> PlainLen {
    let size = inner[16..].first_chunk().expect("8 of 48 bytes");
    PlainLen(u64::from_le_bytes(*size))
}

fn id_of_inner(inner: &[u8; INNER_LEN]) -> FileId {
    let id = inner[24..].first_chunk().expect("24 of 40 bytes");
    FileId(*id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::MasterKey;
    use crate::testing::{Script, counting_keys};

    fn header(format: Format, plain_len: u64, records: u64) -> Header {
        Header { format, plain_len: PlainLen(plain_len), records, file_id: FileId([0xa5; 24]) }
    }

    fn len(records: u64) -> u64 {
        object_len(records).unwrap().0
    }

    #[test]
    fn every_bit_flip_is_rejected() {
        let keys = counting_keys();
        for header in [header(Format::V1, 200_000, 4), header(Format::V1, 0, 0), header(Format::V2, 200_000, 5)] {
            let head = keys.seal_header(&header).unwrap();
            assert_eq!(keys.open_header(header.format, &head, len(header.records)), Ok(header));
            for bit in 0..HEADER_LEN * 8 {
                let mut head = head;
                head[bit / 8] ^= 1 << (bit % 8);
                let opened = keys.open_header(header.format, &head, len(header.records));
                let sealed_part = bit >= PREFIX_LEN * 8;
                match header.format {
                    Format::V2 if sealed_part => assert_eq!(opened, Err(Error::Unauthentic), "bit {bit}"),
                    _ => assert!(opened.is_err(), "bit {bit}"),
                }
            }
        }
    }

    #[test]
    fn any_other_record_count_is_unauthentic_in_format_2() {
        let keys = counting_keys();
        let head = keys.seal_header(&header(Format::V2, 200_000, 6)).unwrap();
        for records in (1..40).chain([1 << 30, 1 << 47]).filter(|&records| records != 6) {
            assert_eq!(keys.open_header(Format::V2, &head, len(records)), Err(Error::Unauthentic));
        }
    }

    #[test]
    fn any_other_record_count_is_malformed_in_format_1() {
        let keys = counting_keys();
        let head = keys.seal_header(&header(Format::V1, 200_000, 4)).unwrap();
        for records in (0..40).filter(|&records| records != 4) {
            assert_eq!(keys.open_header(Format::V1, &head, len(records)), Err(SIZE_MISMATCH));
        }
    }

    #[test]
    fn another_master_key_is_unauthentic() {
        let other = Keys::derive(&MasterKey::from_bytes([1; 32]));
        for header in [header(Format::V1, 1, 1), header(Format::V2, 1, 1)] {
            let head = counting_keys().seal_header(&header).unwrap();
            assert_eq!(other.open_header(header.format, &head, len(1)), Err(Error::Unauthentic));
        }
    }

    #[test]
    fn a_size_that_its_records_cannot_hold_is_not_sealed() {
        let keys = counting_keys();
        let wrong = [
            header(Format::V1, 0, 1),
            header(Format::V1, 1, 0),
            header(Format::V1, 65_536, 2),
            header(Format::V2, 0, 0),
            header(Format::V2, 65_537, 1),
            header(Format::V2, 1, 1 << 48),
            header(Format::V1, u64::MAX, 1 << 48),
            header(Format::V2, u64::MAX, u64::MAX),
        ];
        for header in wrong {
            assert_eq!(keys.seal_header(&header), Err(Error::OutOfRange), "{header:?}");
        }
    }

    #[test]
    fn short_heads_and_objects_are_malformed() {
        let keys = counting_keys();
        let head = keys.seal_header(&header(Format::V2, 1, 1)).unwrap();
        for cut in 0..HEADER_LEN {
            assert!(matches!(probe(&head[..cut], len(1)), Err(Error::Malformed(_))));
            assert!(matches!(keys.open_header(Format::V2, &head[..cut], len(1)), Err(Error::Malformed(_))));
            assert!(matches!(probe(&head, cut as u64), Err(Error::Malformed(_))));
        }
    }

    #[test]
    fn bytes_behind_the_header_are_ignored() {
        let keys = counting_keys();
        for header in [header(Format::V1, 1, 1), header(Format::V2, 1, 1)] {
            let mut head = keys.seal_header(&header).unwrap().to_vec();
            head.extend([0xee; 500]);
            assert_eq!(probe(&head, len(1)).unwrap().format, header.format);
            assert_eq!(keys.open_header(header.format, &head, len(1)), Ok(header));
        }
    }

    #[test]
    fn a_probe_says_what_shows_without_a_key() {
        let keys = counting_keys();
        let one = header(Format::V1, 70_000, 2);
        let shown = probe(&keys.seal_header(&one).unwrap(), len(2)).unwrap();
        assert_eq!((shown.plain_len, shown.records, shown.file_id), (one.plain_len, 2, Some(one.file_id)));
        let two = header(Format::V2, 70_000, 3);
        let shown = probe(&keys.seal_header(&two).unwrap(), len(3)).unwrap();
        assert_eq!((shown.plain_len, shown.records, shown.file_id), (PlainLen(3 * 65_536), 3, None));
    }

    #[test]
    fn newer_versions_are_told_from_garbage() {
        let mut head = counting_keys().seal_header(&header(Format::V2, 1, 1)).unwrap();
        head[4] = 9;
        assert_eq!(probe(&head, len(1)), Err(Error::NewerVersion(9)));
        assert_eq!(counting_keys().open_header(Format::V1, &head, len(1)), Err(Error::NewerVersion(9)));
    }

    #[test]
    fn only_format_2_refuses_bytes_behind_the_end() {
        let mut plain = vec![0; RECORD_PLAIN];
        plain[100] = 1;
        for (format, refused) in [(Format::V1, false), (Format::V2, true)] {
            let short = header(format, 100, 1);
            assert_eq!(short.check_tail(0, &plain).is_err(), refused);
            assert!(!short.tail_is_zero(0, &plain));
            assert_eq!(header(format, 101, 1).check_tail(0, &plain), Ok(()));
        }
        assert_eq!(header(Format::V2, 65_536, 2).check_tail(1, &plain), Err(Error::BytesBehindEnd(1)));
        assert_eq!(header(Format::V2, 65_536, 2).check_tail(1, &[0; RECORD_PLAIN]), Ok(()));
    }

    #[test]
    fn plaintext_is_shared_out_among_records() {
        let header = header(Format::V2, 65_537, 4);
        assert_eq!(header.data_records(), 2);
        assert_eq!([0, 1, 2, 3, u64::MAX].map(|index| header.plain_in(index)), [65_536, 1, 0, 0, 0]);
    }

    #[test]
    fn a_file_id_takes_what_the_generator_gives_or_fails_with_it() {
        assert_eq!(FileId::generate(&mut Script::new(vec![7; 24])), Ok(FileId([7; 24])));
        assert!(matches!(FileId::generate(&mut Script::new(vec![7; 23])), Err(Error::Random(_))));
    }

    proptest! {
        #[test]
        fn any_header_opens_as_it_was_sealed(
            plain_len in 0..1u64 << 60,
            spare in 0..1000u64,
            id in any::<[u8; 24]>(),
            v2 in any::<bool>(),
        ) {
            let keys = counting_keys();
            let data = plain_len.div_ceil(65_536);
            let (format, records) = if v2 { (Format::V2, data.max(1) + spare) } else { (Format::V1, data) };
            let header = Header { format, plain_len: PlainLen(plain_len), records, file_id: FileId(id) };
            let head = keys.seal_header(&header).unwrap();
            prop_assert_eq!(keys.open_header(format, &head, len(records)), Ok(header));
        }

        #[test]
        fn no_bytes_open_by_chance(head in proptest::collection::vec(any::<u8>(), 70), records in 0..1000u64) {
            let mut head = head;
            for format in [1, 2] {
                head[..6].copy_from_slice(&[b'H', b'F', b'E', b'B', format, 2]);
                let name = if format == 1 { Format::V1 } else { Format::V2 };
                prop_assert!(counting_keys().open_header(name, &head, len(records)).is_err());
            }
        }
    }
}
