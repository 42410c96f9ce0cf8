//! Sizes and offsets of a container (format spec, section 4): all arithmetic is here, and checked.
//!
//! A container is a header of [`HEADER_LEN`] bytes and whole records of [`RECORD_LEN`]. Nothing here knows a key.

use std::ops::Range;

use super::{Error, Format};

/// Bytes of a container header.
pub const HEADER_LEN: usize = 70;
/// Plaintext bytes of a record.
pub const RECORD_PLAIN: usize = 65_536;
/// Stored bytes of a record: nonce 16, ciphertext, tag 16.
pub const RECORD_LEN: usize = NONCE_LEN + RECORD_PLAIN + TAG_LEN;
/// Bytes of a record's nonce.
pub const NONCE_LEN: usize = 16;
/// Bytes of a record's tag, and of a header's.
pub const TAG_LEN: usize = 16;

/// A length or offset in plaintext bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PlainLen(pub u64);
/// A length or offset in stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CipherLen(pub u64);
/// The index of a record, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RecordIndex(pub u64);

/// How many records a new file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Padding {
    /// As few as the format allows.
    #[default]
    None,
    /// Rounded up by Padmé. Format 1 has no room for padding and ignores it.
    Padme,
}

/// Records of a new file of `plain` bytes: `ceil(n / 65536)` in format 1, at least one in format 2, then padded.
pub fn records_for(format: Format, plain: PlainLen, padding: Padding) -> Result<u64, Error> {
    let data = plain.0.div_ceil(RECORD_PLAIN as u64);
    let records = match (format, padding) {
        (Format::V1, _) => data,
        (Format::V2, Padding::None) => data.max(1),
        (Format::V2, Padding::Padme) => padme(data.max(1)),
    };
    object_len(records)?;
    Ok(records)
}

/// Padmé of a record count: keeps about half of the significant bits, so that the sizes of `2^e` files fall into
/// `O(log e)` classes and no file grows by more than 11.7 %. `records` is at least 1 and at most 2^48.
fn padme(records: u64) -> u64 {
    let exponent = records.ilog2();
    let exponent_bits = u32::BITS - exponent.leading_zeros();
    let dropped = exponent - exponent_bits;
    records.div_ceil(1 << dropped) << dropped
}

/// Stored length of `records` records: `70 + 65568 * records`.
pub fn object_len(records: u64) -> Result<CipherLen, Error> {
    let bodies = records.checked_mul(RECORD_LEN as u64).ok_or(Error::OutOfRange)?;
    let len = bodies.checked_add(HEADER_LEN as u64).ok_or(Error::OutOfRange)?;
    Ok(CipherLen(len))
}

/// Number of records of an object of this length; an error where the length fits no number.
pub fn records_of(object: CipherLen) -> Result<u64, Error> {
    let bodies = object.0.checked_sub(HEADER_LEN as u64).ok_or(Error::Malformed("shorter than a header"))?;
    if !bodies.is_multiple_of(RECORD_LEN as u64) {
        return Err(Error::Malformed("length is not that of whole records"));
    }
    Ok(bodies / RECORD_LEN as u64)
}

/// Offset of a record in its object. The record's end is within range too.
pub fn record_offset(index: RecordIndex) -> Result<CipherLen, Error> {
    let next = index.0.checked_add(1).ok_or(Error::OutOfRange)?;
    let end = object_len(next)?;
    Ok(CipherLen(end.0 - RECORD_LEN as u64))
}

/// The records that hold the plaintext range `[start, end)`, as a half-open index range. Empty for an empty range.
pub fn records_of_range(start: PlainLen, end: PlainLen) -> Range<u64> {
    let first = start.0 / RECORD_PLAIN as u64;
    if start >= end {
        return first..first;
    }
    first..end.0.div_ceil(RECORD_PLAIN as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The most records whose object length fits 64 bits.
    const MOST: u64 = (u64::MAX - 70) / 65_568;

    #[test]
    fn object_lengths_hug_record_boundaries() {
        let cases = [(0, 0, 70), (1, 1, 65_638), (65_535, 1, 65_638), (65_536, 1, 65_638), (65_537, 2, 131_206)];
        for (plain, records, len) in cases {
            assert_eq!(records_for(Format::V1, PlainLen(plain), Padding::None), Ok(records));
            assert_eq!(records_for(Format::V2, PlainLen(plain), Padding::None), Ok(records.max(1)));
            assert_eq!(object_len(records), Ok(CipherLen(len)));
        }
    }

    #[test]
    fn format_1_ignores_padding() {
        assert_eq!(records_for(Format::V1, PlainLen(550_000), Padding::Padme), Ok(9));
        assert_eq!(records_for(Format::V2, PlainLen(550_000), Padding::Padme), Ok(10));
    }

    #[test]
    fn padme_grows_by_less_than_the_promised_parts() {
        for records in 1..20_000u64 {
            let padded = padme(records);
            assert!(padded >= records && padme(padded) == padded);
            assert!((padded - records) * 1000 <= records * 117, "{records}");
            assert!(records < 257 || (padded - records) * 1000 < records * 63, "{records}");
        }
    }

    #[test]
    fn sizes_beyond_an_object_of_64_bits_are_refused() {
        let most_plain = PlainLen(MOST * 65_536);
        for format in [Format::V1, Format::V2] {
            assert_eq!(records_for(format, most_plain, Padding::None), Ok(MOST));
            for plain in [most_plain.0 + 1, 1 << 63, u64::MAX] {
                for padding in [Padding::None, Padding::Padme] {
                    let records = records_for(format, PlainLen(plain), padding);
                    assert_eq!(records.is_ok(), plain <= most_plain.0, "{plain}");
                }
            }
        }
        assert_eq!(object_len(MOST + 1), Err(Error::OutOfRange));
        assert_eq!(object_len(u64::MAX), Err(Error::OutOfRange));
        assert!(record_offset(RecordIndex(MOST - 1)).is_ok());
        assert_eq!(record_offset(RecordIndex(MOST)), Err(Error::OutOfRange));
        assert_eq!(record_offset(RecordIndex(u64::MAX)), Err(Error::OutOfRange));
    }

    #[test]
    fn records_of_a_range_are_those_it_touches() {
        let range = |start, end| records_of_range(PlainLen(start), PlainLen(end));
        assert_eq!(range(0, 1), 0..1);
        assert_eq!(range(65_535, 65_536), 0..1);
        assert_eq!(range(65_535, 65_537), 0..2);
        assert_eq!(range(65_536, 131_072), 1..2);
        assert!(range(65_536, 65_536).is_empty());
        assert!(range(10, 3).is_empty());
        assert_eq!(range(0, u64::MAX), 0..1 << 48);
    }

    proptest! {
        #[test]
        fn lengths_and_record_counts_are_inverse(len in any::<u64>()) {
            match records_of(CipherLen(len)) {
                Ok(records) => prop_assert_eq!(object_len(records), Ok(CipherLen(len))),
                Err(_) => prop_assert!(len < 70 || (len - 70) % 65_568 != 0),
            }
        }

        #[test]
        fn record_counts_and_lengths_are_inverse(records in 0..=MOST) {
            prop_assert_eq!(records_of(object_len(records).unwrap()), Ok(records));
        }

        #[test]
        fn a_range_lies_in_its_records(start in any::<u64>(), len in 1..10_000_000u64) {
            let end = start.saturating_add(len);
            let records = records_of_range(PlainLen(start), PlainLen(end));
            prop_assert_eq!(records.is_empty(), start == end);
            if start < end {
                prop_assert_eq!(records.start, start / 65_536);
                prop_assert_eq!(records.end - 1, (end - 1) / 65_536);
            }
        }
    }
}
